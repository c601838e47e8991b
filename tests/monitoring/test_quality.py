"""Faults of the data, each planted, told apart, and none where nothing changed; skew between two computations."""

from collections.abc import Callable

import numpy as np
import pytest

from vitok.errors import Conflict, InvalidInput
from vitok.monitoring import QualityRule, ReferenceProfile, WindowCounts, check_quality, check_schema, skew
from vitok.stats import LatencyHistogram

NAMES = ["amount", "celsius", "channel", "tenure", "income", "rating", "flag"]
VIEWS = {"customer": ["tenure", "income", "rating"]}


def world(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lost = rng.random(n) < 0.01
    view = np.column_stack([rng.gamma(3, 2, n), rng.lognormal(10, 0.5, n), np.round(rng.normal(5, 2, n))])
    view[lost] = np.nan
    return np.column_stack(
        [
            rng.lognormal(3, 0.9, n),
            rng.normal(15, 8, n),
            rng.choice(4, n, p=(0.5, 0.25, 0.15, 0.1)),
            view,
            rng.random(n) < 0.3,
        ]
    ).astype(float)


@pytest.fixture(scope="module")
def profile() -> ReferenceProfile:
    X = world(0, 20_000)
    return ReferenceProfile.fit(NAMES, X, np.random.default_rng(1).beta(1, 50, 20_000), start=0, end=1)


def window(profile: ReferenceProfile, X: np.ndarray) -> WindowCounts:
    p = np.random.default_rng(2).beta(1, 50, len(X))
    return WindowCounts(
        model_version="m/1",
        start=0,
        end=1,
        n=len(X),
        n_hours=1,
        digest=profile.digest,
        counts=profile.layout.count_columns([*X.T, p]),
        actions={},
        routes={},
        feature_status={},
        n_probability=len(X),
        mean_probability=0.02,
        latency=LatencyHistogram(),
    )


def at(name: str) -> int:
    return NAMES.index(name)


def hit(X: np.ndarray, share: float) -> np.ndarray:
    return np.random.default_rng(9).random(len(X)) < share


def nulls(X: np.ndarray) -> None:
    X[hit(X, 0.1), at("amount")] = np.nan


def cents(X: np.ndarray) -> None:
    X[:, at("amount")] *= 100


def some_cents(X: np.ndarray) -> None:
    X[hit(X, 0.35), at("amount")] *= 100


def thousandth(X: np.ndarray) -> None:
    X[:, at("amount")] /= 1000


def fahrenheit(X: np.ndarray) -> None:
    X[:, at("celsius")] = 1.8 * X[:, at("celsius")] + 32


def swapped(X: np.ndarray) -> None:
    X[:, at("channel")] = np.array([2.0, 1.0, 0.0, 3.0])[X[:, at("channel")].astype(int)]


def joinless(X: np.ndarray) -> None:
    X[np.ix_(hit(X, 0.2), [at("tenure"), at("income"), at("rating")])] = np.nan


def constant(X: np.ndarray) -> None:
    X[:, at("celsius")] = 20.0


def negative(X: np.ndarray) -> None:
    X[hit(X, 0.2), at("amount")] = -1.0


@pytest.mark.parametrize("views", [VIEWS, None])
@pytest.mark.parametrize(
    ("plant", "kind", "columns"),
    [
        (nulls, "null_spike", ("amount",)),
        (cents, "unit_change", ("amount",)),
        (some_cents, "unit_change", ("amount",)),
        (thousandth, "unit_change", ("amount",)),
        (fahrenheit, "unit_change", ("celsius",)),
        (swapped, "category_swap", ("channel",)),
        (joinless, "join_failure", ("income", "rating", "tenure")),
        (constant, "constant", ("celsius",)),
        (negative, "unseen_values", ("amount",)),
    ],
)
def test_each_fault_has_its_name(
    profile: ReferenceProfile, plant: Callable[[np.ndarray], None], kind: str, columns: tuple[str, ...], views: object
) -> None:
    X = world(3, 4_000)
    plant(X)
    found = check_quality(profile, window(profile, X), views=views)  # type: ignore[arg-type]
    assert [(fault.kind, tuple(sorted(fault.columns))) for fault in found] == [(kind, columns)]


def test_sizes_are_named(profile: ReferenceProfile) -> None:
    X = world(3, 8_000)
    cents(X)
    joinless(X)
    join, unit = check_quality(profile, window(profile, X), views=VIEWS)
    assert join.value == pytest.approx(0.2, abs=0.02)
    assert str(join).startswith("join_failure: customer: tenure to null")
    assert unit.value == 100.0


@pytest.mark.parametrize("n", [0, 100, 300, 5_000])
def test_nothing_where_nothing_changed(profile: ReferenceProfile, n: int) -> None:
    for seed in range(10, 20):
        assert check_quality(profile, window(profile, world(seed, n))) == ()


def test_drift_is_no_fault(profile: ReferenceProfile) -> None:
    X = world(5, 5_000)
    X[:, at("amount")] *= 1.4
    X[:, at("celsius")] += 6
    X[:, at("channel")] = np.random.default_rng(1).choice(4, 5_000, p=(0.4, 0.3, 0.2, 0.1))
    assert check_quality(profile, window(profile, X)) == ()


def test_other_bins_and_bad_rules_are_refused(profile: ReferenceProfile) -> None:
    other = ReferenceProfile.fit(["x"], [[1.0], [2.0]], [0.1, 0.2], start=0, end=1)
    with pytest.raises(Conflict, match="other bins"):
        check_quality(other, window(profile, world(0, 300)))
    for wrong in ({"min_n": 0}, {"min_jump": 0.0}, {"min_ratio": 0.5}, {"max_p_value": 1.0}, {"explained": 1.0}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            QualityRule(**wrong)


def test_schema() -> None:
    assert check_schema({"a": "Int64"}, {"a": "Int64"}) == ()
    assert {fault.columns for fault in check_schema({"a": "Int64"}, {"b": "Int64"})} == {("a",), ("b",)}


def test_skew_tells_how_and_where() -> None:
    rng = np.random.default_rng(0)
    again = rng.lognormal(size=1_000)
    late, unit, null = again.copy(), again.copy(), again.copy()
    late[:50] += 1.0
    unit *= 100
    null[:10] = np.nan
    served = {"rounded": again.astype(np.float32), "late": late, "unit": unit, "null": null}
    report = skew(list(range(1_000)), served, dict.fromkeys(served, again))
    found = {column.name: column for column in report.columns}
    assert [column.name for column in report.columns] == ["unit", "late", "null", "rounded"]
    assert found["rounded"].share.value == 0.0
    assert found["late"].share.value == 0.05
    assert found["late"].largest == pytest.approx(1.0)
    assert found["unit"].ratio == pytest.approx(100)
    assert found["null"].n_served_null == 10
    assert found["null"].examples == ("0", "1", "2", "3", "4")
    assert report.n_exact == 0
    assert len(report.differing) == 3
    assert skew([], {"a": []}, {"a": []}).n_exact == 0
    with pytest.raises(InvalidInput, match="same features"):
        skew([1], {"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(InvalidInput, match=r"served\[a\]"):
        skew([1], {"a": [1.0, 2.0]}, {"a": [1.0]})
