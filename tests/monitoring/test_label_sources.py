"""Sources of labels held against each other. Oracles: scipy's exact binomial test, and simulated days."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.monitoring.label_sources import SourceCounts, SourceRules, judge_sources

NAMES = ("a", "b", "c", "d")


def simulated(rng: np.random.Generator, days: int = 32, *, per_day: int = 800, rate: float = 0.01) -> SourceCounts:
    """Days whose frauds come in bursts that all sources see alike."""
    n = np.full((days, len(NAMES)), float(per_day))
    level = rate * rng.gamma(20, 1 / 20, size=(days, 1))
    return SourceCounts(
        sources=NAMES,
        days=np.arange(days),
        n=n,
        positive=rng.poisson(n * level * np.array([1, 1, 0.5, 2])).astype(float),
    )


def at(counts: SourceCounts, source: str, positive: float) -> SourceCounts:
    changed = counts.positive.copy()
    changed[-1, NAMES.index(source)] = positive
    return SourceCounts(sources=counts.sources, days=counts.days, n=counts.n, positive=changed)


def test_the_chance_is_that_of_the_exact_binomial_test_where_the_past_is_long() -> None:
    days = np.arange(400)
    n, positive = np.full((400, 2), 1e6), np.full((400, 2), 1e4)
    n[-1], positive[-1] = (1000.0, 1000.0), (9.0, 3.0)
    counts = SourceCounts(sources=("a", "b"), days=days, n=n, positive=positive)
    found = judge_sources(counts, 399, rules=SourceRules(reference=399))
    expected = 2 * binomtest(9, 12, 0.5, alternative="greater").pvalue
    assert found[0].p_value == pytest.approx(expected, rel=1e-3)
    assert found[0].expected == pytest.approx(3.0)


def test_a_flood_and_a_silence_are_found_and_a_change_of_the_world_is_not() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = simulated(rng)
        flood = {one.source: one.firing for one in judge_sources(at(counts, "c", 80), 31)}
        assert flood == {"a": False, "b": False, "c": True, "d": False}
        several = counts.positive.copy()
        several[-3:, 3] = 0
        silent = SourceCounts(sources=NAMES, days=counts.days, n=counts.n, positive=several)
        assert [one.source for one in judge_sources(silent, 31, window=3) if one.firing] == ["d"]
        changed = counts.positive.copy()
        changed[-1] = rng.poisson(3 * 800 * 0.01 * np.array([1, 1, 0.5, 2]))
        world = SourceCounts(sources=NAMES, days=counts.days, n=counts.n, positive=changed)
        assert not any(one.firing for one in judge_sources(world, 31))


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    rng = np.random.default_rng(1)
    rules = SourceRules(level=0.01, min_ratio=1.0001)
    fired = [one.firing for _ in range(500) for one in judge_sources(simulated(rng), 31, rules=rules)]
    assert np.mean(fired) <= 0.012


def test_of_two_sources_the_one_that_left_its_past_is_at_fault() -> None:
    days = np.arange(30)
    n, positive = np.full((30, 2), 2000.0), np.full((30, 2), 16.0)
    positive[-1] = [200, 15]
    counts = SourceCounts(sources=("a", "b"), days=days, n=n, positive=positive)
    assert [one.firing for one in judge_sources(counts, 29)] == [True, False]


def test_what_cannot_be_judged_says_why() -> None:
    days = np.arange(30)
    n, positive = np.full((30, 1), 100.0), np.full((30, 1), 90.0)
    (alone,) = judge_sources(SourceCounts(sources=("a",), days=days, n=n, positive=positive), 29)
    assert not alone.firing
    assert "no other source" in alone.reason
    n, positive = np.full((30, 2), 100.0), np.full((30, 2), 5.0)
    n[:-1, 1] = positive[:-1, 1] = 0
    positive[-1, 1] = 100
    new = judge_sources(SourceCounts(sources=("a", "new"), days=days, n=n, positive=positive), 29)[1]
    assert not new.firing
    assert "too few to know it by" in new.reason
    few = np.full((30, 2), 1.0)
    found = judge_sources(SourceCounts(sources=("a", "b"), days=days, n=n * 0 + 100, positive=few), 29)
    assert {one.firing for one in found} == {False}
    assert "too few to judge it by" in found[0].reason


def test_others_that_report_nothing_at_all_leave_an_infinite_ratio() -> None:
    days = np.arange(30)
    n, positive = np.full((30, 3), 2000.0), np.full((30, 3), 16.0)
    positive[-1] = [400, 0, 0]
    found = judge_sources(SourceCounts(sources=("a", "b", "c"), days=days, n=n, positive=positive), 29)
    assert found[0].ratio == np.inf
    assert [one.firing for one in found] == [True, False, False]


def test_nothing_came() -> None:
    frame = pl.DataFrame(
        schema={"source": pl.String, "label": pl.Float64, "label_ingest_time": pl.Datetime("us", "UTC")}
    )
    counts = SourceCounts.of(frame)
    assert counts.sources == ()
    assert judge_sources(counts, 3) == ()
    one = SourceCounts.of(
        frame.vstack(pl.DataFrame({"source": "a", "label": 1.0, "label_ingest_time": [5 * DAY]}).cast(frame.schema))
    )
    assert judge_sources(one, 9) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": 0.0},
        {"level": float("nan")},
        {"min_ratio": 1.0},
        {"reference": 0},
        {"min_expected": 0.0},
        {"min_positives": 0},
    ],
)
def test_rules_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        SourceRules(**wrong)  # type: ignore[arg-type]


def test_arguments_out_of_range() -> None:
    counts = simulated(np.random.default_rng(2))
    with pytest.raises(InvalidInput, match="window"):
        judge_sources(counts, 31, window=0)
    with pytest.raises(InvalidInput, match="left_out"):
        judge_sources(counts, 31, left_out=np.zeros((1, 4)))
