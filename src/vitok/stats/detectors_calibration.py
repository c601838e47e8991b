"""How long a detector runs until a false alarm, how late it sees a change, and the threshold for a wished run length.

A detector on a stream without a change raises an alarm some day. The mean of that time, the average run length ARL0,
is what an operator feels: one false alarm a month, say. Its papers' parameters do not tell it, so it is simulated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit, positive_integer, vector
from vitok.stats.detectors import Detector
from vitok.stats.results import Estimate, Result

Stream: TypeAlias = ArrayLike | Callable[[np.random.Generator, int], ArrayLike]
"""Observations to draw from with replacement, or a function of a generator and n that returns n in their order."""

_STRETCH = 1 << 15
_LARGEST_STRICTNESS = 1e9
_BISECTIONS = 40
_HORIZON = 20


def _drawer(field: str, stream: Stream) -> Callable[[np.random.Generator, int], Floats]:
    if callable(stream):
        made = stream
        return lambda rng, n: _as_many(field, vector(field, made(rng, n)), n)
    values = vector(field, stream)
    if len(values) == 0:
        raise InvalidInput(field, [], "hold at least one value", "Pass observations of a healthy period")
    return lambda rng, n: values[rng.integers(0, len(values), n)]


def _as_many(field: str, drawn: Floats, n: int) -> Floats:
    # Fewer or more would count into the run lengths as if they had been n.
    if len(drawn) != n:
        raise InvalidInput(field, len(drawn), f"return the {n:,} observations that it is asked for")
    return drawn


@dataclass(frozen=True)
class _Runs:
    lengths: Floats
    ended: Floats

    def estimate(self, confidence_level: float, horizon: int) -> Estimate:
        from scipy.special import gammainccinv, ndtri

        n, alarms = len(self.lengths), float(self.ended.sum())
        total = float(self.lengths.sum())
        value = total / alarms if alarms else math.inf
        tail = (1 - confidence_level) / 2
        if alarms >= 2:
            # The ratio's error by the delta method, on a logarithm: lengths are skewed.
            spread = float(np.sqrt(((self.lengths - value * self.ended) ** 2).sum() * n / (n - 1)))
            half = float(ndtri(1 - tail)) * spread / total
            lower, upper = value * math.exp(-half), value * math.exp(half)
        else:
            # Exact for a Poisson number of alarms.
            lower, upper = total / float(gammainccinv(alarms + 1, tail)), math.inf
        return Estimate(
            name="arl0",
            value=value,
            lower=lower,
            upper=upper,
            n_obs=n,
            confidence_level=confidence_level,
            definition=(
                f"mean observations to a false alarm, from {n:,} simulated runs, of which {int(alarms):,} ended in "
                f"one; a run without is begun anew after {horizon:,}"
            ),
        )


def _simulate(
    detector: Detector,
    draw: Callable[[np.random.Generator, int], Floats],
    *,
    n_runs: int,
    horizon: int,
    seed: int,
) -> _Runs:
    rng = np.random.default_rng(seed)
    detector.reset()
    lengths: list[float] = []
    ended: list[float] = []
    since = 0
    while len(lengths) < n_runs:
        # Never past the horizon, so that at most the last run of a stretch is without an alarm.
        n = min(horizon - since, _STRETCH)
        last = -1 - since
        for at in detector.alarms(draw(rng, n)).tolist():
            lengths.append(at - last)
            ended.append(1.0)
            last = at
        since = n - 1 - last
        if since >= horizon:
            lengths.append(since)
            ended.append(0.0)
            detector.reset()
            since = 0
    return _Runs(np.array(lengths[:n_runs], dtype=np.float64), np.array(ended[:n_runs]))


@dataclass(frozen=True, kw_only=True)
class Calibration(Result):
    """A threshold for a wished run length.

    Attributes:
        parameter: Name of the threshold.
        value: Its value.
        wished: The run length that was asked for.
        arl0: The run length at this value, simulated with other random numbers than those of the search.
        median: Half of these runs were at most so long; see `RunLength.median`.
    """

    parameter: str
    value: float
    wished: float
    arl0: Estimate
    median: float

    def __str__(self) -> str:
        return (
            f"{self.parameter} {self.value:.6g} for a wished run length of {self.wished:,.0f}: {self.arl0}, half of "
            f"the runs at most {self.median:,.0f}"
        )


def calibrate(
    detector: Detector,
    *,
    arl0: float,
    null: Stream,
    n_runs: int = 400,
    tolerance: float = 0.02,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Finds the threshold at which the mean run length to a false alarm is the wished one.

    Args:
        detector: The detector with all its other parameters; it is not touched. Only its alarms count: where it says
            what is worse, a change for the better is none.
        arl0: Wished mean observations to a false alarm, above 1.
        null: Observations without a change: an array to draw from with replacement, or a function of a generator and
            n that returns n of them in their order, which keeps what one has to do with the next.
        n_runs: Runs for each threshold that is tried, and for the final estimate, at least 20.
        tolerance: Relative distance from the wished run length at which the search ends, in (0, 1).
        confidence_level: Level of the interval, in (0, 1).
        seed: Of the simulation: the same gives the same.

    Returns:
        The threshold and its run length with an interval. Where the run length goes in steps, as that of KSWIN does,
        the first threshold on the safe side is taken. Give the detector by `detector.with_threshold(found.value)`.

    Raises:
        InvalidInput: If an argument is out of range, or no threshold reaches the wished run length.

    Example:
        >>> from vitok.stats.detectors_page_hinkley import PageHinkley
        >>> found = calibrate(PageHinkley(), arl0=1000, null=lambda rng, n: rng.normal(size=n), n_runs=200)
        >>> found.parameter, 10 < found.value < 60, 700 < found.arl0.value < 1400
        ('threshold', True, True)
    """
    if not 1 < arl0 < math.inf:
        raise InvalidInput("arl0", arl0, "be above 1 and finite")
    if positive_integer("n_runs", n_runs) < 20:
        raise InvalidInput("n_runs", n_runs, "be at least 20")
    open_unit("tolerance", tolerance)
    level = open_unit("confidence_level", confidence_level)
    draw, kind = _drawer("null", null), type(detector)

    def run_length_at(strictness: float, runs: int, horizon: int, with_seed: int) -> _Runs:
        tried = detector.with_threshold(kind.from_strictness(strictness))
        return _simulate(tried, draw, n_runs=runs, horizon=horizon, seed=with_seed)

    def found_at(strictness: float, runs: int, times: int) -> float:
        made = run_length_at(strictness, runs, max(1, math.ceil(times * arl0)), seed)
        return float(made.lengths.sum() / max(made.ended.sum(), 0.5))

    low = high = kind.strictness(detector.threshold)
    # A rough bracket first: a threshold far too strict would run each of its runs to the horizon.
    if found_at(high, 20, 4) < arl0:
        while found_at(high, 20, 4) < arl0:
            low, high = high, 2 * high
            if high > _LARGEST_STRICTNESS:
                raise InvalidInput("arl0", arl0, f"be reached by some {kind.threshold_name}", "Wish for a shorter one")
    else:
        while found_at(low, 20, 4) >= arl0:
            low, high = low / 2, low
            if low < 1 / _LARGEST_STRICTNESS:
                raise InvalidInput("arl0", arl0, "be longer than that of the laxest threshold", "Wish for a longer one")
    # The few runs above may have been on the wrong side of it.
    low, high = low / 1.25, high * 1.25
    best = high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        length = found_at(middle, n_runs, _HORIZON)
        if length >= arl0:
            best = high = middle
        else:
            low = middle
        if abs(length / arl0 - 1) <= tolerance:
            best = middle
            break
        if high - low < 1e-4 * high:
            break
    horizon = math.ceil(_HORIZON * arl0)
    final = run_length_at(best, n_runs, horizon, seed + 1)
    return Calibration(
        parameter=kind.threshold_name,
        value=kind.from_strictness(best),
        wished=float(arl0),
        arl0=final.estimate(level, horizon),
        median=float(np.median(final.lengths)),
    )


@dataclass(frozen=True, kw_only=True)
class RunLength(Result):
    """How long a detector runs without a change, and how late it sees one.

    Attributes:
        arl0: Mean observations to a false alarm.
        median: Half of the runs to a false alarm are at most so long. Where it is far below 0.7 of the mean, as for
            DDM, EDDM and HDDM_A, a detector that has come through its first time rarely alarms any more, falsely or
            not, and the mean rests on a few long runs.
        delay: Mean observations from the change to the alarm, the first changed one included, over the runs that
            saw it; None where no change was given.
        delay_median: Half of the runs saw the change within so many; infinite where fewer did.
        delay_p90: Nine in ten did.
        detected: Share of the runs that saw the change within `limit` observations.
        limit: Observations after the change in each run.
    """

    arl0: Estimate
    median: float
    delay: Estimate | None = None
    delay_median: float = math.nan
    delay_p90: float = math.nan
    detected: float = math.nan
    limit: int = 0

    def __str__(self) -> str:
        if self.delay is None:
            return str(self.arl0)
        return (
            f"{self.arl0}; {self.delay}, median {self.delay_median:,.0f}, 90 % within {self.delay_p90:,.0f}, "
            f"{100 * self.detected:.4g} % seen within {self.limit:,}"
        )


def run_length(
    detector: Detector,
    *,
    null: Stream,
    changed: Stream | None = None,
    warm_up: int = 1_000,
    limit: int = 10_000,
    horizon: int = 200_000,
    n_runs: int = 400,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> RunLength:
    """Simulates how long a detector runs to a false alarm, and how late it sees a given change.

    Args:
        detector: The detector; it is not touched.
        null: Observations without a change, as `calibrate` takes them.
        changed: Observations after the change, likewise; None asks for the run length only.
        warm_up: Observations before the change in each run, at least 0. What the detector did in them, false alarms
            included, is as it would be in service.
        limit: Observations after the change in each run, at least 1.
        horizon: A run without a false alarm is begun anew after so many, at least 1.
        n_runs: Simulated runs, at least 20.
        confidence_level: Level of the intervals, in (0, 1).
        seed: Of the simulation: the same gives the same.

    Returns:
        The run length and the delays, with intervals.

    Raises:
        InvalidInput: If an argument is out of range.

    Example:
        >>> from vitok.stats.detectors_page_hinkley import PageHinkley
        >>> found = run_length(PageHinkley(threshold=20), null=lambda rng, n: rng.normal(size=n),
        ...                    changed=lambda rng, n: rng.normal(1, 1, size=n), n_runs=100)
        >>> found.detected, 15 < found.delay_median < 40
        (1.0, True)
    """
    if positive_integer("n_runs", n_runs) < 20:
        raise InvalidInput("n_runs", n_runs, "be at least 20")
    level = open_unit("confidence_level", confidence_level)
    own = detector.with_threshold(detector.threshold)
    draw = _drawer("null", null)
    runs = _simulate(own, draw, n_runs=n_runs, horizon=positive_integer("horizon", horizon), seed=seed)
    length, median = runs.estimate(level, horizon), float(np.median(runs.lengths))
    if changed is None:
        return RunLength(arl0=length, median=median)
    if warm_up < 0:
        raise InvalidInput("warm_up", warm_up, "be at least 0")
    positive_integer("limit", limit)
    draw_changed = _drawer("changed", changed)
    rng = np.random.default_rng(seed + 1)
    delays = np.full(n_runs, np.inf)
    for run in range(n_runs):
        own.reset()
        if warm_up:
            own.codes(draw(rng, warm_up))
        done = 0
        while done < limit and math.isinf(delays[run]):
            # Most changes are seen soon: a short stretch first spares the rest.
            n = min(limit - done, max(256, done))
            alarms = own.alarms(draw_changed(rng, n))
            if len(alarms):
                delays[run] = done + int(alarms[0]) + 1
            done += n
    ordered = np.sort(delays)
    return RunLength(
        arl0=length,
        median=median,
        delay=_mean_delay(delays[np.isfinite(delays)], level),
        delay_median=float(ordered[math.ceil(0.5 * n_runs) - 1]),
        delay_p90=float(ordered[math.ceil(0.9 * n_runs) - 1]),
        detected=float(np.isfinite(delays).mean()),
        limit=limit,
    )


def _mean_delay(seen: Floats, level: float) -> Estimate:
    from scipy.special import ndtri

    n = len(seen)
    mean = float(seen.mean()) if n else math.nan
    half = float(ndtri((1 + level) / 2) * seen.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
    return Estimate(
        name="delay",
        value=mean,
        lower=max(1.0, mean - half) if n else 1.0,
        upper=mean + half if n else math.inf,
        n_obs=n,
        confidence_level=level,
        definition="mean observations from the change to the alarm, over the runs that saw it"
        if n
        else "no run saw the change",
    )
