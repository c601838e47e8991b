"""Calibration over time, window by window as labels mature, with a test that may be looked at after each window."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput
from vitok.models.calibrators import PlattCalibrator
from vitok.stats import CalibrationError, Estimate, NullTest, calibration_error, mean_interval, roc_auc, spiegelhalter
from vitok.stats.arrays import labels_and_probabilities, open_unit
from vitok.stats.results import Result

_Floats = NDArray[np.float64]
# A probability nearer to 0 or 1 than this counts as this: one wrong certainty is strong evidence, not an infinite one.
_SMALLEST = 1e-6
# A hair of the base rate in every bet: without it a model that is certain and wrong for the first time would win.
_BASE_RATE_SHARE = 1e-5


@dataclass(frozen=True, kw_only=True)
class CalibrationWindow(Result):
    """Calibration of one window, with discrimination beside it: neither implies the other.

    Attributes:
        start: When the window begins, in microseconds.
        end: When it ends, not included.
        error: Debiased calibration error.
        gap: Mean of label less probability: above 0 the model promises too little.
        test: Spiegelhalter's test of this window alone.
        discrimination: Area under the ROC curve.
        log_evidence: Natural logarithm of the evidence against calibration in all windows up to this one.
    """

    start: int
    end: int
    error: CalibrationError
    gap: Estimate
    test: NullTest
    discrimination: Estimate
    log_evidence: float

    def __str__(self) -> str:
        return (
            f"{isoformat(self.start)}: calibration error {self.error.value:.4g}, gap {self.gap.value:+.4g}"
            f" ({self.gap.lower:+.4g} to {self.gap.upper:+.4g}), AUC {self.discrimination.value:.3f},"
            f" log evidence {self.log_evidence:.2f}, n = {self.error.n_obs:,}"
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationWatch(Result):
    """Calibration of all windows.

    Attributes:
        windows: The windows, oldest first.
        threshold: Logarithm of the evidence that raises the alarm.
        alarm: Index of the first window at whose end it was reached; None while it was not.
    """

    windows: tuple[CalibrationWindow, ...]
    threshold: float
    alarm: int | None

    def __str__(self) -> str:
        if not self.windows:
            return "no windows"
        head = "calibrated as far as can be seen"
        if self.alarm is not None:
            head = f"not calibrated: evidence reached at the end of {isoformat(self.windows[self.alarm].start)}"
        return "\n".join([head, *(f"  {window}" for window in self.windows)])


def watch_calibration(
    event_time: ArrayLike,
    probability: ArrayLike,
    y: ArrayLike,
    *,
    window: int = DAY,
    false_alarm: float = 0.01,
    remembered: int = 30,
) -> CalibrationWatch:
    """Watches calibration window by window.

    The evidence is a bet that may be settled at any time: before each window, a logistic recalibration learnt from
    the windows before it is set against the published probabilities, half and half with them and with a hair of the
    base rate; the ratio of their likelihoods multiplies up. If every label were a draw with its published
    probability, the evidence would ever reach 1 / false_alarm with at most that probability, however often one looks.

    Args:
        event_time: Times of decided rows with mature labels, in microseconds, shape (n,).
        probability: Published probabilities, shape (n,), in [0, 1].
        y: Labels, shape (n,), bool or 0 and 1.
        window: Length of a window in microseconds, above 0.
        false_alarm: Chance of ever raising an alarm for a calibrated model, in (0, 1).
        remembered: Windows that the bet learns from, at least 1.

    Returns:
        The windows that hold rows.

    Raises:
        InvalidInput: If shapes differ or an argument is out of range.

    Source: Ville 1939; the plug-in likelihood ratio as in Wasserman, Ramdas & Balakrishnan, Universal inference,
    PNAS 2020; for calibration Arnold, Henzi & Ziegel, Sequentially valid tests for forecast calibration, 2023.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p, time = rng.beta(1, 9, 20_000), np.arange(20_000) * (10 * DAY // 20_000)
        >>> drifted = np.where(time < 5 * DAY, p, np.minimum(1.6 * p, 1.0))
        >>> watch_calibration(time, p, rng.random(20_000) < p).alarm is None
        True
        >>> watch_calibration(time, p, rng.random(20_000) < drifted).alarm in (5, 6, 7)
        True
    """
    flags, p = labels_and_probabilities(y, probability)
    times = np.asarray(event_time)
    if times.shape != p.shape or not np.issubdtype(times.dtype, np.integer):
        raise InvalidInput("event_time", times.shape, f"be whole microseconds of shape {p.shape}")
    open_unit("false_alarm", false_alarm)
    if window < 1 or remembered < 1:
        raise InvalidInput("window and remembered", (window, remembered), "be at least 1")
    threshold = -math.log(false_alarm)
    order = np.argsort(times, kind="stable")
    place = times[order] // window
    names, starts = np.unique(place, return_index=True)
    ends = np.append(starts[1:], len(order))[: len(starts)]
    found: list[CalibrationWindow] = []
    alarm, evidence = None, 0.0
    for at, (name, first, last) in enumerate(zip(names.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        rows = order[first:last]
        past = order[starts[max(0, at - remembered)] : first]
        evidence += _log_ratio(p[past], flags[past], p[rows], flags[rows])
        if alarm is None and evidence >= threshold:
            alarm = at
        found.append(
            CalibrationWindow(
                start=int(name) * window,
                end=(int(name) + 1) * window,
                error=calibration_error(flags[rows], p[rows]),
                gap=mean_interval(flags[rows] - p[rows], name="gap"),
                test=spiegelhalter(flags[rows], p[rows]),
                discrimination=roc_auc(flags[rows], p[rows]),
                log_evidence=evidence,
            )
        )
    return CalibrationWatch(windows=tuple(found), threshold=threshold, alarm=alarm)


def _log_ratio(past_p: _Floats, past_y: NDArray[np.bool_], p: _Floats, y: NDArray[np.bool_]) -> float:
    if not past_y.any() or past_y.all():
        return 0.0
    claimed = np.clip(p, _SMALLEST, 1 - _SMALLEST)
    learnt = PlattCalibrator.fit(past_p, past_y)(p)
    bet = (1 - _BASE_RATE_SHARE) * (claimed + learnt) / 2 + _BASE_RATE_SHARE * float(past_y.mean())
    return float(np.log(np.where(y, bet / claimed, (1 - bet) / (1 - claimed))).sum())
