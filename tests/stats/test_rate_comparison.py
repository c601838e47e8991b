"""Two rates under concurrent traffic: exact null, the same answer as the interval, state that goes on."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from vitok.errors import InvalidInput
from vitok.stats import rate_difference_sequence
from vitok.stats.confidence_sequences import log_evidence_step
from vitok.stats.rate_comparison import RateComparison

Counts = tuple[float, float]


def block(seen: RateComparison, control: Counts, treatment: Counts) -> None:
    seen.add(
        control_successes=control[0], control_n=control[1], treatment_successes=treatment[0], treatment_n=treatment[1]
    )


@pytest.mark.parametrize("bound", [-0.2, 0.0, 0.15])
def test_expected_evidence_under_every_null_is_at_most_one(bound: float) -> None:
    # One block after a fixed past, every possible outcome weighted by its probability: the e-value's mean, exactly.
    n_a, n_b = 9, 4
    evidence = {}
    for i in range(n_a + 1):
        for j in range(n_b + 1):
            parts = [np.array([float(part)]) for part in (i, n_a, j, n_b)]
            step = log_evidence_step(
                bounds=np.array([bound]),
                successes_a=parts[0],
                n_a=parts[1],
                successes_b=parts[2],
                n_b=parts[3],
                before=(np.array([3.0]), np.array([30.0]), np.array([6.0]), np.array([12.0])),
            )
            evidence[i, j] = math.exp(step[0, 0])
    for a in np.linspace(0, 1, 15):
        for b in np.linspace(0, 1, 15):
            if b - a <= bound:
                mean = sum(binom.pmf(i, n_a, a) * binom.pmf(j, n_b, b) * e for (i, j), e in evidence.items())
                assert mean <= 1 + 1e-9


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.03, 0.05, 0.3])
def test_it_says_what_the_confidence_sequence_says(rate: float) -> None:
    rng = np.random.default_rng(3)
    control, treatment = rng.binomial(540, 0.02, 60), rng.binomial(60, rate, 60)
    seen = RateComparison([0.005, -0.005])
    for c, t in zip(control, treatment, strict=True):
        block(seen, (c, 540), (t, 60))
    interval = rate_difference_sequence(
        control_successes=control, control_n=[540] * 60, treatment_successes=treatment, treatment_n=[60] * 60
    )
    for bound in (0.005, -0.005):
        assert seen.above(bound) == (interval.lower > bound)
        assert seen.below(bound) == (interval.upper < bound)
    found = seen.estimate("difference")
    assert found.value == pytest.approx(interval.value)
    # Wider by a cell of the grid at most: about 2.5 points of a root, so 2.5 % of the root of the bound.
    assert interval.lower - 0.03 * math.sqrt(abs(interval.lower)) - 1e-3 <= found.lower <= interval.lower + 1e-6
    assert interval.upper - 1e-6 <= found.upper <= interval.upper + 0.03 * math.sqrt(abs(interval.upper)) + 1e-3


def test_error_over_sixty_looks_with_an_outage_of_both_arms() -> None:
    rng = np.random.default_rng(11)
    n_runs, wrong = 200, 0
    for _ in range(n_runs):
        seen = RateComparison([0.0])
        for look in range(60):
            share = 0.1 if look < 30 else 0.5
            rate = 0.6 if 20 <= look < 25 else 0.02
            n = rng.binomial(600, share)
            block(seen, (rng.binomial(600 - n, rate), 600 - n), (rng.binomial(n, rate), n))
        wrong += seen.above(0.0) or seen.below(0.0)
    # At a true share of 0.05, more than this has a probability of 0.2 %.
    assert wrong <= binom.ppf(0.998, n_runs, 0.05)


def test_state_goes_on_where_it_stopped_and_empty_blocks_change_nothing() -> None:
    whole, first = RateComparison([0.01]), RateComparison([0.01])
    blocks = [((2, 100), (3, 20)), ((0, 0), (0, 0)), ((1, 90), (4, 30)), ((0, 0), (5, 20))]
    for control, treatment in blocks:
        block(whole, control, treatment)
    for control, treatment in blocks[:2]:
        block(first, control, treatment)
    second = RateComparison.from_dict(json.loads(json.dumps(first.to_dict())))
    for control, treatment in blocks[2:]:
        block(second, control, treatment)
    assert second.to_dict() == whole.to_dict()
    assert whole.counts() == (3, 190, 12, 70)


@pytest.mark.parametrize(
    ("control", "treatment", "said"),
    [
        ((3, 2), (0, 0), "control_successes"),
        ((0, 2), (-1, 3), "treatment_successes"),
        ((0, math.inf), (0, 0), "control_successes"),
        ((math.nan, 2), (0, 0), "control_successes"),
    ],
)
def test_impossible_counts_are_refused_and_change_nothing(control: Counts, treatment: Counts, said: str) -> None:
    seen = RateComparison()
    with pytest.raises(InvalidInput, match=said):
        block(seen, control, treatment)
    assert seen.to_dict() == RateComparison().to_dict()


def test_edges() -> None:
    seen = RateComparison([0.0])
    assert math.isnan(seen.estimate().value)
    assert (seen.estimate().lower, seen.estimate().upper) == (-1.0, 1.0)
    for _ in range(200):
        block(seen, (0, 1000), (1000, 1000))
    assert seen.estimate().lower == pytest.approx(0.999)
    assert seen.estimate().upper == 1.0
    with pytest.raises(InvalidInput, match="bounds"):
        RateComparison([1.0])
    with pytest.raises(InvalidInput, match="confidence_level"):
        RateComparison(confidence_level=1.0)
    with pytest.raises(InvalidInput, match="named at the beginning"):
        seen.above(0.5)
    with pytest.raises(InvalidInput, match="to_dict"):
        RateComparison.from_dict({"bounds": []})
    with pytest.raises(InvalidInput, match="sums"):
        RateComparison.from_dict(seen.to_dict() | {"sums": [1.0]})
