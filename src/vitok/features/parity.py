"""Whether two computations of the same features agree, such as what decisions saw and what the table says."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.definitions import FeatureSet
from vitok.features.views import Latest, View

if TYPE_CHECKING:
    import polars as pl

RELATIVE_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Whether two computations of the same features agree.

    Attributes:
        n_rows: Rows compared.
        n_values: Values compared.
        n_differing_rows: Rows with at least one value that differs.
        worst: Largest relative difference among all features.
        by_feature: Differing values by feature, only those with any.
        example: The first difference, in words; empty where there is none.
    """

    n_rows: int
    n_values: int
    n_differing_rows: int
    worst: float
    by_feature: Mapping[str, int]
    example: str = ""

    def __str__(self) -> str:
        """Says it in one line."""
        head = f"{self.n_differing_rows} of {self.n_rows} rows differ ({self.n_values} values, worst {self.worst:.1e})"
        return head + (f"; first: {self.example}" if self.example else "")


def compare(
    features: FeatureSet, seen: "np.ndarray | pl.DataFrame", expected: "np.ndarray | pl.DataFrame"
) -> Comparison:
    """Compares values that decisions saw with what the table says.

    Counts, different values, extremes, first, last, recent and most frequent values, and latest values (in their
    declared type) must be equal bit for bit. The others may differ by 1e-9 relative (of the value, or of one where it
    is smaller). NaN and null equal each other.

    Args:
        features: The definitions; they give the order of the columns.
        seen: Shape (n, features), or a frame that holds the features.
        expected: As `seen`.

    Raises:
        InvalidInput: If the two are not of one shape, or not as wide as the features.

    Example:
        >>> import numpy as np
        >>> from vitok.features import FeatureSet
        >>> print(compare(FeatureSet(request=("amount",)), np.array([[1.0]]), np.array([[2.0]])))
        1 of 1 rows differ (1 values, worst 5.0e-01); first: row 0, amount: saw 1.0, the table says 2.0
    """
    seen, expected = values_of(features, seen), values_of(features, expected)
    names = features.names
    if seen.shape != expected.shape:
        raise InvalidInput("seen", seen.shape, f"have the shape of expected, {expected.shape}")
    if seen.ndim != 2 or seen.shape[1] != len(names):
        raise InvalidInput("seen", seen.shape, f"have shape (n, {len(names)}), a column a feature")
    for column, dtype in _rounded(features).items():
        seen, expected = _through(seen, column, dtype), _through(expected, column, dtype)
    both_nan = np.isnan(seen) & np.isnan(expected)
    scale = np.maximum(np.maximum(np.abs(seen), np.abs(expected)), 1.0)
    with np.errstate(invalid="ignore"):
        relative = np.where(both_nan | (seen == expected), 0.0, np.abs(seen - expected) / scale)
    relative[np.isnan(relative)] = np.inf
    exact = exact_features(features)
    bound = np.array([0.0 if name in exact else RELATIVE_TOLERANCE for name in names])
    wrong = relative > bound
    example = ""
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        example = f"row {row}, {names[column]}: saw {seen[row, column]}, the table says {expected[row, column]}"
    sums = wrong.sum(axis=0)
    return Comparison(
        n_rows=len(seen),
        n_values=seen.size,
        n_differing_rows=int(wrong.any(axis=1).sum()),
        worst=float(relative.max(initial=0.0)),
        by_feature={name: int(count) for name, count in zip(names, sums, strict=True) if count},
        example=example,
    )


def exact_features(features: FeatureSet) -> frozenset[str]:
    """Returns the names of the features that are equal bit for bit however they were computed.

    Example:
        >>> from vitok.features import Count, Entity, FeatureSet, Mean, Source, View
        >>> customer, events = Entity("customer", "customer_id"), Source("events", "id")
        >>> view = View(name="c", entity=customer, source=events, aggregations=(Count("1h"), Mean("amount", "1h")))
        >>> exact_features(FeatureSet(views=(view,)))
        frozenset({'c_count_1h'})
    """
    found: set[str] = set()
    for view in features.views:
        if isinstance(view, Latest):
            found.update(view.feature_names)
        elif isinstance(view, View):
            found.update(name for name, exact in zip(view.feature_names, view.plan.is_exact, strict=True) if exact)
    return frozenset(found)


def values_of(features: FeatureSet, table: "np.ndarray | pl.DataFrame") -> np.ndarray:
    """Returns the features of a table as one matrix of float64, null as NaN, shape (n, features).

    Example:
        >>> import polars as pl
        >>> from vitok.features import FeatureSet
        >>> values_of(FeatureSet(request=("a", "b")), pl.DataFrame({"b": [1, None], "a": [True, False]}))
        array([[ 1.,  1.],
               [ 0., nan]])
    """
    import polars as pl

    if not isinstance(table, pl.DataFrame):
        return np.asarray(table, np.float64)
    missing = [name for name in features.names if name not in table.columns]
    if missing:
        raise InvalidInput("table: columns", table.columns, f"hold {', '.join(missing)}")
    out = np.empty((len(table), len(features.names)))
    for column, name in enumerate(features.names):
        out[:, column] = table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return out


def _rounded(features: FeatureSet) -> dict[int, str]:
    declared = {
        name: dtype
        for view in features.latest
        for name, dtype in zip(view.feature_names, view.dtypes, strict=True)
        if dtype == "float32"
    }
    return {column: declared[name] for column, name in enumerate(features.names) if name in declared}


def _through(values: np.ndarray, column: int, dtype: str) -> np.ndarray:
    rounded = values[:, column].astype(dtype).astype(np.float64)
    if np.array_equal(rounded, values[:, column], equal_nan=True):
        return values
    out = values.copy()
    out[:, column] = rounded
    return out
