"""Oracles: a CUSUM's run length by its renewal equation, geometric run lengths, and brute-force simulation."""

import math
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats.detectors import Detector
from vitok.stats.detectors_adwin import ADWIN
from vitok.stats.detectors_calibration import calibrate, run_length
from vitok.stats.detectors_error_rates import DDM, EDDM
from vitok.stats.detectors_hddm import HDDMA, HDDMW
from vitok.stats.detectors_kswin import KSWIN
from vitok.stats.detectors_page_hinkley import PageHinkley

RATE = (np.arange(1000) < 100).astype(np.float64)


def brute_force(detector: Detector, values: np.ndarray) -> float:
    """Mean time between alarms over a long stream; a detector begins anew after each."""
    alarms = [at for at, x in enumerate(values.tolist()) if detector.update(x)]
    return (alarms[-1] + 1) / len(alarms)


@pytest.mark.parametrize(
    "detector",
    [
        HDDMW(drift_confidence=0.03, warning_confidence=0.1),
        PageHinkley(threshold=15.0),
        PageHinkley(threshold=12.0, mode="down", delta=0.02),
    ],
    ids=str,
)
def test_run_length_by_brute_force(detector: Detector) -> None:
    rng = np.random.default_rng(1)
    found = run_length(detector, null=RATE, n_runs=400, horizon=100_000)
    plain = brute_force(detector.with_threshold(detector.threshold), rng.choice(RATE, 400_000))
    assert found.arl0.lower * 0.9 < plain < found.arl0.upper * 1.1
    assert found.delay is None
    assert "arl0" in str(found)
    # About geometric, which has 0.69.
    assert 0.4 < found.median / found.arl0.value < 1.2


def test_interval_covers_a_known_run_length() -> None:
    # With one observation needed, an alarm comes with the first value above the rest: geometric, mean 50.
    detector = PageHinkley(min_instances=1, delta=0.0, threshold=0.5, mode="up")
    values = np.zeros(50)
    values[0] = 1e9
    covered = 0
    for seed in range(40):
        found = run_length(detector, null=values, n_runs=100, seed=seed).arl0
        # The alarm needs a value before it, and zeros after the huge one's restart start anew.
        covered += found.lower <= 51.0 <= found.upper
    assert covered >= 34


@pytest.mark.parametrize(
    "detector",
    [
        DDM(),
        EDDM(),
        HDDMA(two_sided=True, worse="higher"),
        HDDMW(),
        PageHinkley(),
    ],
    ids=str,
)
def test_calibrated_threshold_gives_the_wished_length(detector: Detector) -> None:
    found = calibrate(detector, arl0=800, null=RATE, n_runs=200, tolerance=0.05)
    assert found.parameter == detector.threshold_name
    again = run_length(detector.with_threshold(found.value), null=RATE, n_runs=400, horizon=16_000, seed=99)
    # The run lengths of DDM and EDDM vary more than geometric ones.
    assert again.arl0.value == pytest.approx(800, rel=0.35)
    assert found.arl0.lower < found.arl0.value < found.arl0.upper
    assert "wished" in str(found)


def test_adwin_on_numbers_with_a_larger_spread() -> None:
    found = calibrate(ADWIN(clock=4), arl0=800, null=lambda rng, n: rng.normal(0, 10, size=n), n_runs=100)
    assert found.arl0.value == pytest.approx(800, rel=0.35)


def test_steps_are_taken_on_the_safe_side() -> None:
    found = calibrate(KSWIN(), arl0=400, null=lambda rng, n: rng.normal(size=n), n_runs=100)
    assert found.arl0.upper >= 400


def test_same_seed_same_result_and_detector_untouched() -> None:
    detector = PageHinkley(threshold=7.0)
    detector.update_many(RATE)
    before = detector.to_bytes()
    first = calibrate(detector, arl0=300, null=RATE, n_runs=50)
    assert calibrate(detector, arl0=300, null=RATE, n_runs=50) == first
    run_length(detector, null=RATE, changed=1 - RATE, n_runs=20)
    assert detector.to_bytes() == before


def test_delays() -> None:
    detector = PageHinkley(threshold=10.0, mode="up")
    found = run_length(detector, null=np.zeros(1), changed=np.ones(1), n_runs=20, warm_up=500, limit=100, horizon=1000)
    # Each deviation is 1 - k / (500 + k), less 0.005: the sum passes 10 with the 11th.
    assert found.delay is not None
    assert (found.delay.value, found.delay_median, found.delay_p90, found.detected) == (11.0, 11.0, 11.0, 1.0)
    assert found.arl0.value == math.inf
    assert found.arl0.lower > 1000
    never = run_length(detector, null=np.zeros(1), changed=np.zeros(1), n_runs=20, limit=10, horizon=100)
    assert never.delay is not None
    assert math.isnan(never.delay.value)
    assert (never.detected, never.delay_median) == (0.0, math.inf)
    assert "undefined" in str(never)
    assert never.to_dict()["delay_p90"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"arl0": 1.0},
        {"arl0": math.inf},
        {"n_runs": 10},
        {"tolerance": 0.0},
        {"confidence_level": 1.0},
        {"null": []},
        {"null": [math.nan]},
    ],
)
def test_calibrate_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        calibrate(PageHinkley(), **{"arl0": 100.0, "null": RATE, **arguments})


def test_what_cannot_be_reached() -> None:
    with pytest.raises(InvalidInput, match="Wish for a longer one"):
        calibrate(ADWIN(grace_period=5_000), arl0=50, null=RATE, n_runs=20)


@pytest.mark.parametrize("arguments", [{"n_runs": 3}, {"horizon": 0}, {"warm_up": -1}, {"limit": 0}, {"changed": []}])
def test_run_length_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        run_length(PageHinkley(), **{"null": RATE, "changed": RATE, "horizon": 10, **arguments})


def test_a_stream_gives_as_many_as_it_is_asked_for() -> None:
    with pytest.raises(InvalidInput, match="observations that it is asked for"):
        run_length(PageHinkley(), null=lambda rng, n: rng.normal(size=2 * n))


def test_the_bound_from_one_alarm_is_that_of_the_poisson_law() -> None:
    from scipy.stats import chi2

    from vitok.stats.detectors_calibration import _Runs

    found = _Runs(np.array([100.0] * 20), np.array([1.0] + [0.0] * 19)).estimate(0.95, 100)
    assert found.lower == pytest.approx(2_000 / (chi2.ppf(0.975, 4) / 2))
    assert found.upper == math.inf
    none = _Runs(np.full(20, 100.0), np.zeros(20)).estimate(0.95, 100)
    assert none.lower == pytest.approx(2_000 / -math.log(0.025))
