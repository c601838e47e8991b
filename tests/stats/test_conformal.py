"""Oracles: crepes 0.9.1 on the same rows; coverage by simulation; the bound of Gibbs & Candès."""

import json
import math

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats.conformal import (
    AdaptiveCoverage,
    ConformalIntervals,
    ConformalSets,
    conformal_quantile,
    watch_coverage,
)


def classes(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    p = rng.dirichlet([1, 1, 1], n)
    return p, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


def test_sets_are_those_of_crepes() -> None:
    rng = np.random.default_rng(7)
    rng.normal(size=199)
    p, y = classes(rng, 300)
    new = rng.dirichlet([1, 1, 1], 50)
    assert ConformalSets.fit(p, y).predict(new).sum(axis=0).tolist() == [32, 31, 31]
    halves = ConformalSets.fit(p, y, group=np.arange(300) % 2).predict(new, group=np.arange(50) % 2)
    assert halves.sum(axis=0).tolist() == [32, 32, 31]


@pytest.mark.parametrize(
    ("n", "coverage", "rank"), [(199, 0.9, 180), (9, 0.9, 9), (8, 0.9, None), (99, 0.95, 95), (19, 0.7, 14)]
)
def test_rank_of_the_quantile(n: int, coverage: float, rank: int | None) -> None:
    assert conformal_quantile(np.arange(1.0, n + 1), coverage) == (math.inf if rank is None else rank)
    assert conformal_quantile([1.0], 0.0) == -math.inf


def test_marginal_coverage_hides_a_class_that_mondrian_sets_keep() -> None:
    rng = np.random.default_rng(3)

    def rare(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = (rng.random(n) < 0.1).astype(int)
        score = 1 / (1 + np.exp(-(rng.normal(size=n) * 1.5 + 2.5 * y - 3)))
        return np.column_stack([1 - score, score]), y

    (p, y), (new, truth) = rare(10_000), rare(10_000)
    rows = np.arange(10_000)
    plain = ConformalSets.fit(p, y, coverage=0.9).predict(new)[rows, truth]
    by_class = ConformalSets.fit(p, y, coverage=0.9, by_class=True).predict(new)[rows, truth]
    assert plain.mean() == pytest.approx(0.9, abs=0.012)
    assert plain[truth == 1].mean() < 0.5
    assert by_class[truth == 1].mean() == pytest.approx(0.9, abs=0.04)


def test_intervals_around_a_point_and_around_quantiles() -> None:
    rng = np.random.default_rng(4)
    x = rng.uniform(size=8_000)
    y = rng.normal(size=8_000) * (0.1 + x)
    cut, rest = slice(0, 4_000), slice(4_000, None)
    point = ConformalIntervals.fit(y[cut], np.zeros(4_000)).predict(np.zeros(4_000))
    # Quantiles of a model that is too sure of itself, of the right shape.
    low, high = -1.4 * (0.1 + x), 1.4 * (0.1 + x)
    shaped = ConformalIntervals.fit(y[cut], low[cut], high[cut]).predict(low[rest], high[rest])
    for ends in (point, shaped):
        assert ((y[rest] >= ends[0]) & (y[rest] <= ends[1])).mean() == pytest.approx(0.9, abs=0.015)
    wide = x[rest] > 0.8
    assert ((y[rest] >= point[0]) & (y[rest] <= point[1]))[wide].mean() < 0.8
    assert ((y[rest] >= shaped[0]) & (y[rest] <= shaped[1]))[wide].mean() > 0.86


def test_unknown_group_and_small_groups_promise_nothing() -> None:
    found = ConformalIntervals.fit([0.0, 1.0], [0.0, 0.0], group=["a", "a"])
    low, high = found.predict([0.0, 0.0], group=["a", "b"])
    assert np.isinf(low).all()
    assert np.isinf(high).all()
    narrowed = ConformalIntervals.fit(np.zeros(99), np.full(99, -2.0), np.full(99, 2.0), coverage=0.9)
    low, high = narrowed.predict([0.0], [1.0])
    assert low[0] == high[0] == 0.5


def test_adaptive_coverage_holds_where_split_coverage_breaks() -> None:
    rng = np.random.default_rng(5)
    p, y = classes(rng, 2_000)
    fixed = ConformalSets.fit(p, y, coverage=0.9)
    watch = AdaptiveCoverage.start(0.9, rate=0.02)
    held_fixed = held = 0
    n = 3_000
    for _ in range(n):
        q, truth = classes(rng, 1)
        blurred = q**3 / (q**3).sum()
        held_fixed += bool(fixed.predict(blurred)[0, truth[0]])
        covered = bool(fixed.predict(blurred, coverage=watch.level)[0, truth[0]])
        held += covered
        watch = watch.update(covered=covered)
    assert held_fixed / n < 0.87
    assert abs(held / n - 0.9) <= (0.9 + 0.02) / (0.02 * n) + 1e-9
    assert watch.n_missed == n - held
    batch = AdaptiveCoverage.start(0.9).update_many([True] * 9 + [False])
    assert batch.level == pytest.approx(0.9)


def test_watch_looks_after_every_window_without_crying_wolf() -> None:
    rng = np.random.default_rng(6)
    alarms = sum(
        watch_coverage(rng.binomial(200, 0.9, 60).tolist(), [200] * 60, promised=0.9).first_broken is not None
        for _ in range(60)
    )
    assert alarms <= 5
    found = watch_coverage([180] * 10 + [160] * 10, [200] * 20, promised=0.9)
    assert found.first_broken is not None
    assert 10 <= found.first_broken < 18
    assert watch_coverage([200] * 10, [200] * 10, promised=0.9).first_wasteful is not None
    assert "not refuted" in str(watch_coverage([], [], promised=0.9))


def test_wrong_input_is_named() -> None:
    with pytest.raises(InvalidInput, match="by_class"):
        ConformalSets.fit([[0.5, 0.5]], [0], group=["a"], by_class=True)
    with pytest.raises(InvalidInput, match="group"):
        ConformalSets.fit([[0.5, 0.5]], [0], group=["a", "b"])
    with pytest.raises(InvalidInput, match="same shape"):
        ConformalIntervals.fit([0.0], [0.0, 1.0])
    with pytest.raises(InvalidInput, match="rate"):
        AdaptiveCoverage.start(0.9, rate=0.0)
    with pytest.raises(InvalidInput, match="same length"):
        watch_coverage([1], [], promised=0.9)
    with pytest.raises(InvalidInput, match="successes"):
        watch_coverage(["a"], [3], promised=0.9)  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match=r"probability: got .*numbers"):
        ConformalSets.fit([["a", "b"]], [0])
    with pytest.raises(InvalidInput, match=r"probability: got .*numbers"):
        ConformalSets.fit([[0.5, 0.5]] * 30, [0] * 30).predict([["a", "b"]])


def test_a_probability_that_is_not_there_makes_no_empty_set() -> None:
    sets = ConformalSets.fit([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    with pytest.raises(InvalidInput, match="probability"):
        sets.predict([[math.nan, 0.5]])


def test_what_was_calibrated_survives_a_file() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 300)
    y = p.argmax(axis=1)
    slices = np.arange(300) % 2
    for sets in (ConformalSets.fit(p, y, by_class=True), ConformalSets.fit(p, y, group=slices)):
        again = ConformalSets.from_dict(json.loads(json.dumps(sets.to_dict())))
        assert again == sets
        assert (again.predict(p, group=slices) == sets.predict(p, group=slices)).all()
    intervals = ConformalIntervals.fit(y, np.ones(300), coverage=0.8)
    assert ConformalIntervals.from_dict(json.loads(json.dumps(intervals.to_dict()))) == intervals
    with pytest.raises(InvalidInput, match="scores and coverage"):
        ConformalSets.from_dict({"coverage": 0.9})


def test_each_slice_gets_its_own_scores_at_one_sort() -> None:
    rng = np.random.default_rng(1)
    y, slices = rng.normal(size=40_000), rng.integers(0, 20_000, 40_000)
    found = ConformalIntervals.fit(y, np.zeros(40_000), group=slices)
    for name in ("0", "77", "19999"):
        assert found.scores[name] == tuple(sorted(np.abs(y[slices == int(name)]).tolist()))
    assert sum(map(len, found.scores.values())) == 40_000
