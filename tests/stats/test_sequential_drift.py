"""Oracles: the promises, by simulation; a plain rank for the p-values; the law of uniform numbers."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from vitok.errors import InvalidInput
from vitok.stats.detectors import Detector
from vitok.stats.detectors_calibration import calibrate, run_length
from vitok.stats.histograms import FrozenEdges
from vitok.stats.sequential_drift import ConformalDrift
from vitok.stats.sequential_proportions import proportion_drift


def numbers(rng: np.random.Generator, n: int) -> np.ndarray:
    """Ties, nulls and infinities beside a continuous part."""
    values = np.round(rng.lognormal(size=n), 1)
    values[rng.random(n) < 0.1] = np.nan
    values[rng.random(n) < 0.02] = np.inf
    return values


def binomial_limit(n: int, share: float) -> float:
    """Four standard errors above a share."""
    return n * share + 4 * math.sqrt(n * share * (1 - share))


EDGES = FrozenEdges.from_values(numbers(np.random.default_rng(100), 2_000), n_bins=16)


@pytest.mark.parametrize("learns", [True, False])
def test_no_alarm_ever_but_for_alpha(learns: bool) -> None:
    # 1,000 streams of 2,000 observations; small references where the test learns, a large one where it trusts.
    rng, n_streams, alarms = np.random.default_rng(1), 1_000, 0
    n_reference = 300 if learns else 1_000_000
    counts = EDGES.count(numbers(rng, n_reference))
    for stream in range(n_streams):
        if learns:
            counts = EDGES.count(numbers(rng, n_reference))
        test = ConformalDrift(counts, edges=EDGES, alpha=0.05, seed=stream, learns=learns)
        alarms += len(test.alarms(numbers(rng, 2_000))) > 0
    assert alarms <= binomial_limit(n_streams, 0.05)


def test_no_alarm_ever_but_for_alpha_of_categories() -> None:
    rng, n_streams, alarms = np.random.default_rng(2), 1_000, 0
    law = np.array([0.6, 0.3, 0.09, 0.01, 0.0])
    for stream in range(n_streams):
        test = ConformalDrift(rng.multinomial(100, law), alpha=0.05, seed=stream)
        alarms += len(test.alarms(rng.choice(5, 2_000, p=law))) > 0
    assert alarms <= binomial_limit(n_streams, 0.05)


def test_edges_of_the_counted_rows_hold_the_promise_too() -> None:
    rng, n_streams, alarms = np.random.default_rng(3), 500, 0
    for stream in range(n_streams):
        rows = rng.normal(size=500)
        edges = FrozenEdges.from_values(rows, n_bins=20)
        test = ConformalDrift(edges.count(rows), edges=edges, alpha=0.05, seed=stream)
        alarms += len(test.alarms(rng.normal(size=3_000))) > 0
    assert alarms <= binomial_limit(n_streams, 0.05)


def test_run_length_is_at_least_the_promise() -> None:
    # The first alarm only: there the promise is exact. 300 runs, the mean of the first 20 times the promise.
    rng, promise, total, n_runs = np.random.default_rng(4), 200, 0, 300
    for stream in range(n_runs):
        test = ConformalDrift(EDGES.count(numbers(rng, 500)), edges=EDGES, arl0=promise, seed=stream)
        alarms = test.alarms(numbers(rng, 20 * promise))
        total += int(alarms[0]) + 1 if len(alarms) else 20 * promise
    assert total / n_runs >= promise * (1 - 2 / math.sqrt(n_runs))


def test_expected_capital_is_one() -> None:
    # After few bets, whose law is not yet too skewed to average; reference and stream are one shuffled pool.
    rng, pool, final = np.random.default_rng(5), np.repeat([0, 1, 2], [33, 18, 9]), []
    for stream in range(4_000):
        rng.shuffle(pool)
        test = ConformalDrift(np.bincount(pool[:45], minlength=3), alpha=1e-9, seed=stream)
        test.codes(pool[45:])
        final.append(test.evidence)
    assert np.mean(final) == pytest.approx(1.0, abs=4 * np.std(final) / math.sqrt(len(final)))


def test_p_values_are_uniform_and_independent_with_ties() -> None:
    rng = np.random.default_rng(6)
    test = ConformalDrift(EDGES.count(numbers(rng, 200)), edges=EDGES, alpha=0.01, seed=1)
    p = test.p_values(numbers(rng, 20_000))
    assert kstest(p, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.03
    still = ConformalDrift(EDGES.count(numbers(rng, 200)), edges=EDGES, alpha=0.01, learns=False)
    assert kstest(still.p_values(numbers(rng, 20_000)), "uniform").pvalue < 0.001


def test_p_values_by_plain_ranks() -> None:
    reference, values = [0, 0, 1, 2, 2, 2], [2, 0, 1, 1]
    test = ConformalDrift(np.bincount(reference), alpha=0.5)
    for p, x in zip(test.p_values(values).tolist(), values, strict=True):
        reference.append(x)
        below, own = sum(y < x for y in reference), sum(y == x for y in reference)
        assert below / len(reference) < p < (below + own) / len(reference)


@pytest.mark.parametrize(
    ("changed", "direction", "within"),
    [
        (lambda rng, n: numbers(rng, n) * 2, "higher", 200),
        (lambda rng, n: numbers(rng, n) / 2, "lower", 200),
        (lambda rng, n: np.where(rng.random(n) < 0.5, 0.1, 9.0), "unclear", 100),
        (lambda rng, n: np.ones(n), None, 150),
        (lambda rng, n: np.where(rng.random(n) < 0.3, np.nan, numbers(rng, n)), None, 400),
    ],
)
def test_changes_are_found(changed: Any, direction: str | None, within: int) -> None:
    rng = np.random.default_rng(7)
    test = ConformalDrift(EDGES.count(numbers(rng, 5_000)), edges=EDGES, arl0=100_000)
    assert test.alarms(numbers(rng, 3_000)).tolist() == []
    assert test.n_obs == 3_000
    found = test.update_many(changed(rng, 1_000))
    assert found.alarms[0] < within
    assert direction in (found.directions[0], None)


def test_swapped_categories_are_found_and_new_ones() -> None:
    rng = np.random.default_rng(8)
    law = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
    for other in ([0.1, 0.2, 0.3, 0.4, 0.0], [0.3, 0.4, 0.2, 0.1, 0.0], [0.3, 0.25, 0.15, 0.1, 0.2]):
        test = ConformalDrift(rng.multinomial(5_000, law), arl0=5_000)
        assert test.alarms(rng.choice(5, 2_000, p=law)).tolist() == []
        found = test.update_many(rng.choice(5, 1_500, p=other))
        assert found.alarms
        assert set(found.directions) == {"unclear"}


def test_better_is_no_alarm() -> None:
    rng = np.random.default_rng(9)
    test = ConformalDrift(EDGES.count(numbers(rng, 2_000)), edges=EDGES, arl0=100_000, worse="higher")
    found = test.update_many(numbers(rng, 100) / 3)
    assert set(found.directions) == {"lower"}
    assert found.alarms == ()


def test_nulls_are_never_an_improvement() -> None:
    rng = np.random.default_rng(14)
    for worse in ("higher", "lower"):
        test = ConformalDrift(EDGES.count(numbers(rng, 2_000)), edges=EDGES, arl0=1_000, worse=worse)
        for share in (0.3, 1.0):
            values = np.where(rng.random(500) < share, np.nan, numbers(rng, 500))
            found = test.update_many(values)
            assert found.directions[0] == "unclear"
            assert found.alarms[0] == found.changes[0]
            test.reset()


@pytest.mark.parametrize(
    "test",
    [
        ConformalDrift(EDGES.count([1.0] * 50 + [2.0] * 50), edges=EDGES, arl0=300, seed=4),
        ConformalDrift([10, 20, 0], alpha=0.05, learns=False),
    ],
    ids=str,
)
def test_batches_are_one_by_one_and_bytes_go_on(test: ConformalDrift) -> None:
    rng = np.random.default_rng(10)
    values = np.floor(rng.random(3_000) ** 2 * 3)
    single = copy.deepcopy(test)
    changes = [at for at, x in enumerate(values.tolist()) if single.update(x).change]
    assert len(changes) > 1
    assert list(test.update_many(values[:1_111]).changes) == [at for at in changes if at < 1_111]
    again = Detector.from_bytes(test.to_bytes())
    assert isinstance(again, ConformalDrift)
    assert [1_111 + at for at in again.update_many(values[1_111:]).changes] == [at for at in changes if at >= 1_111]
    assert again.to_bytes() == single.to_bytes()


def test_it_can_be_calibrated_like_any_detector() -> None:
    rng = np.random.default_rng(11)
    test = ConformalDrift([500, 500], arl0=500)
    healthy = np.repeat([0.0, 1.0], 500)
    found = calibrate(test, arl0=500, null=healthy, n_runs=50, tolerance=0.1)
    # The promise is a lower bound, so the same run length needs less.
    assert found.value < 500
    seen = run_length(test, null=healthy, changed=rng.choice(2, 1000, p=[0.2, 0.8]), n_runs=20, horizon=5_000)
    assert seen.detected == 1.0
    with pytest.raises(InvalidInput, match="arl0"):
        calibrate(ConformalDrift([5, 5], alpha=0.1), arl0=100, null=healthy)


@pytest.mark.parametrize(
    ("reference", "options"),
    [
        ([], {"alpha": 0.1}),
        ([0, 0], {"alpha": 0.1}),
        ([1, -1], {"alpha": 0.1}),
        ([1, 0.5], {"alpha": 0.1}),
        ([1, 1], {"edges": EDGES, "alpha": 0.1}),
        ([1, 1], {"alpha": 0.1, "worse": "higher"}),
        ([1, 1], {}),
        ([1, 1], {"alpha": 0.1, "arl0": 10}),
        ([1, 1], {"alpha": 1.0}),
        ([1, 1], {"arl0": math.inf}),
        ([1, 1], {"arl0": 10, "seed": -1}),
    ],
)
def test_out_of_range(reference: list[float], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        ConformalDrift(reference, **options)


def test_what_is_no_observation() -> None:
    test = ConformalDrift([5, 5], alpha=0.1)
    for bad in (2, -1, 0.5, math.nan, math.inf, "x"):
        with pytest.raises(InvalidInput, match=r"category|number"):
            test.update(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            test.update_many([0, bad])
    of_numbers = ConformalDrift(EDGES.count([1.0]), edges=EDGES, alpha=0.1)
    for bad_shape in ([[1.0]], ["x"]):
        with pytest.raises(InvalidInput):
            of_numbers.update_many(bad_shape)
    assert of_numbers.update_many([]).n_obs == 0
    assert of_numbers.update_many([math.nan, math.inf, -math.inf]).n_obs == 3


def test_proportions_keep_their_promises() -> None:
    rng, n_streams, ever, total = np.random.default_rng(12), 400, 0, 0
    for _ in range(n_streams):
        # Both move together, and the splits differ.
        rate = rng.beta(2, 50, 100)
        n_a, n_b = rng.integers(0, 400, 100), rng.integers(0, 100, 100)
        parts = {
            "reference_successes": rng.binomial(n_a, rate),
            "reference_n": n_a,
            "successes": rng.binomial(n_b, rate),
            "n": n_b,
        }
        ever += len(proportion_drift(**parts, alpha=0.05).alarms) > 0
        alarms = proportion_drift(**parts, arl0=20).alarms
        total += alarms[0] + 1 if alarms else 100
    assert ever <= binomial_limit(n_streams, 0.05)
    assert total / n_streams >= 20


def test_proportions_that_come_apart() -> None:
    rng = np.random.default_rng(13)
    n = np.full(200, 500)
    rate = np.repeat([0.04, 0.08], 100)
    parts = {"reference_successes": rng.binomial(n, 0.04), "reference_n": n, "n": n}
    worse = proportion_drift(**parts, successes=rng.binomial(n, rate), arl0=1_000)
    assert 100 <= worse.alarms[0] < 110
    assert worse.directions[0] == "higher"
    assert "higher" in str(worse)
    better = rng.binomial(n, np.repeat([0.04, 0.01], 100))
    assert proportion_drift(**parts, successes=better, arl0=1_000, worse="higher").alarms == ()
    assert set(proportion_drift(**parts, successes=better, arl0=1_000).directions) == {"lower"}


def test_proportions_of_nothing_and_bad_input() -> None:
    empty: dict[str, Any] = {"reference_successes": [], "reference_n": [], "successes": [], "n": []}
    assert str(proportion_drift(**empty, alpha=0.05)).startswith("evidence none")
    none = {name: [0, 0] for name in empty}
    assert proportion_drift(**none, alpha=0.05).e_values == (1.0, 1.0)
    one: dict[str, Any] = {name: [1] for name in empty}
    for bad in (
        {"n": [0]},
        {"successes": [-1]},
        {"n": [1, 2]},
        {"alpha": None},
        {"arl0": 5.0},
        {"alpha": 0.0},
        {"half_life": 0.0},
        {"worse": "up"},
        {"alpha": None, "arl0": 0.5},
    ):
        with pytest.raises(InvalidInput):
            proportion_drift(**{**one, "alpha": 0.05, **bad})


def test_millions_of_successes_without_a_failure() -> None:
    rows = [10**8] * 30
    calm = proportion_drift(reference_successes=rows, reference_n=rows, successes=rows, n=rows, arl0=1_000)
    assert calm.alarms == ()
    assert max(calm.evidence) < 100
    worse = [10**8] * 10 + [10**8 - 200] * 20
    found = proportion_drift(reference_successes=rows, reference_n=rows, successes=worse, n=rows, arl0=1_000)
    assert 10 <= found.alarms[0] <= 12
    assert found.directions[0] == "lower"
    # Successes and failures change places: the same evidence, by the other name.
    none = [0] * 30
    other = proportion_drift(reference_successes=none, reference_n=rows, successes=[10**8 - n for n in worse], n=rows,
                             arl0=1_000)  # fmt: skip
    assert 10 <= other.alarms[0] <= 12
    assert other.directions[0] == "higher"
