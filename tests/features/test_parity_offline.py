"""How two computations of the same features are compared."""

import math

import numpy as np
import polars as pl
import pytest

from vitok.errors import InvalidInput
from vitok.features import Count, Entity, FeatureSet, Latest, Max, Mean, Source, Sum, View, compare
from vitok.features.parity import exact_features, values_of

CUSTOMER, EVENTS = Entity("customer", "customer"), Source("events", "id")
FEATURES = FeatureSet(
    request=("amount",),
    views=(
        View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Count("1h"), Sum("x", "1h"), Max("x", "1h"))),
        Latest(name="l", entity=CUSTOMER, source=EVENTS, columns={"rate": "float32", "level": "int64"}),
    ),
)
ROW = np.array([[1.0, 2.0, 1e6, 0.1, float(np.float32(0.1)), 4.0]])


def changed(column: int, by: float) -> np.ndarray:
    out = ROW.copy()
    out[0, column] += by
    return out


def test_which_features_must_be_equal_to_the_last_bit() -> None:
    assert exact_features(FEATURES) == {"v_count_1h", "v_x_max_1h", "l_rate", "l_level"}


@pytest.mark.parametrize(
    ("column", "by", "differs"),
    [
        (0, 1e-12, 0),
        (1, 1e-12, 1),
        (2, 1e-4, 0),
        (2, 1e-2, 1),
        (3, 1e-16, 1),
        (4, 1e-12, 0),
        (4, 1e-7, 1),
        (5, 1.0, 1),
    ],
)
def test_each_feature_by_its_own_measure(column: int, by: float, differs: int) -> None:
    assert compare(FEATURES, changed(column, by), ROW).n_differing_rows == differs


def test_nothing_equals_nothing_and_nothing_else() -> None:
    nothing = np.full((1, 6), math.nan)
    assert compare(FEATURES, nothing, nothing).n_differing_rows == 0
    found = compare(FEATURES, nothing, ROW)
    assert found.by_feature == dict.fromkeys(FEATURES.names, 1)
    assert str(found) == "1 of 1 rows differ (6 values, worst inf); first: row 0, amount: saw nan, the table says 1.0"


def test_frames_are_taken_by_their_names() -> None:
    names = FEATURES.names
    whole = pl.DataFrame(ROW, schema=list(names)).with_columns(pl.col("l_level").cast(pl.Int64))
    assert compare(FEATURES, whole.select(reversed(names)), ROW).n_differing_rows == 0
    nulls = whole.with_columns(pl.lit(None, pl.Int64).alias("l_level"))
    assert np.isnan(values_of(FEATURES, nulls)[0, 5])
    with pytest.raises(InvalidInput, match="hold l_level"):
        compare(FEATURES, whole.drop("l_level"), ROW)


def test_shapes_must_agree() -> None:
    with pytest.raises(InvalidInput, match="shape of expected"):
        compare(FEATURES, ROW, np.vstack([ROW, ROW]))
    with pytest.raises(InvalidInput, match=r"shape \(n, 6\)"):
        compare(FEATURES, ROW[:, :2], ROW[:, :2])
    assert str(compare(FEATURES, ROW[:0], ROW[:0])) == "0 of 0 rows differ (0 values, worst 0.0e+00)"


def test_means_are_not_exact() -> None:
    view = View(name="v", entity=CUSTOMER, source=EVENTS, aggregations=(Mean("x", "1h"),))
    assert exact_features(FeatureSet(views=(view,))) == frozenset()
