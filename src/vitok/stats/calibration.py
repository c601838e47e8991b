"""Whether probabilities mean what they say: proper scores, their decomposition, calibration errors, a null test.

A calibration error from bins is above 0 for a perfect model: with 200 rows and 15 bins about 0.12. So
`calibration_error` subtracts that bias, and the plain variants carry their mean under perfect calibration.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.stats.arrays import Flags, Floats, labels_and_probabilities, positive_integer
from vitok.stats.intervals import mean_interval, normal_quantile, wilson
from vitok.stats.results import Estimate, NullTest, Result

_LOG_FLOOR = 1e-15


def _mean_score(name: str, losses: Floats, ceiling: float, confidence_level: float, definition: str) -> Estimate:
    found = mean_interval(losses, confidence_level=confidence_level)
    return Estimate(
        name=name,
        value=found.value,
        lower=max(0.0, found.lower),
        upper=min(ceiling, found.upper),
        n_obs=found.n_obs,
        confidence_level=confidence_level,
        definition=f"{definition}; t interval over rows" if found.n_obs else "no rows",
    )


def brier(y: ArrayLike, probability: ArrayLike, *, confidence_level: float = 0.95) -> Estimate:
    """Brier score: mean squared difference between probability and label, 0 best.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        confidence_level: Level, in (0, 1).

    Returns:
        The score with a t interval over rows; NaN without rows.

    Raises:
        InvalidInput: If shapes differ, a label is not 0 or 1, or a probability is NaN or outside [0, 1].

    Source: Brier, Monthly Weather Review 1950.

    Example:
        >>> round(brier([0, 1, 1], [0.1, 0.8, 0.6]).value, 6)
        0.07
    """
    flags, p = labels_and_probabilities(y, probability)
    return _mean_score("brier", (p - flags) ** 2, 1.0, confidence_level, "mean of (p - y) squared")


def log_loss(y: ArrayLike, probability: ArrayLike, *, confidence_level: float = 0.95) -> Estimate:
    """Logarithmic loss in nats, 0 best.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1]; the probability of what happened is raised to at least 1e-15.
        confidence_level: Level, in (0, 1).

    Returns:
        The loss with a t interval over rows; NaN without rows.

    Raises:
        InvalidInput: If shapes differ, a label is not 0 or 1, or a probability is NaN or outside [0, 1].

    Source: Good, JRSS B 1952.

    Example:
        >>> round(log_loss([0, 1, 1], [0.1, 0.8, 0.6]).value, 6)
        0.279777
    """
    flags, p = labels_and_probabilities(y, probability)
    losses = -np.log(np.maximum(np.where(flags, p, 1 - p), _LOG_FLOOR))
    return _mean_score("log_loss", losses, -math.log(_LOG_FLOOR), confidence_level, "mean of -ln P(what happened)")


@dataclass(frozen=True, kw_only=True)
class BrierDecomposition(Result):
    """The Brier score as miscalibration - discrimination + uncertainty, exactly.

    Attributes:
        brier: The score.
        miscalibration: What isotonic recalibration would save, at least 0.
        discrimination: What the recalibrated probabilities save against the base rate, at least 0.
        uncertainty: Score of the base rate.
        n_obs: Number of rows.
        definition: How the parts are computed.
    """

    brier: float
    miscalibration: float
    discrimination: float
    uncertainty: float
    n_obs: int
    definition: str

    def __str__(self) -> str:
        return (
            f"brier {self.brier:.4g} = miscalibration {self.miscalibration:.4g}"
            f" - discrimination {self.discrimination:.4g} + uncertainty {self.uncertainty:.4g} (n = {self.n_obs:,})"
        )


def isotonic_means(score: Floats, y: Flags | Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Fits the non-decreasing step function of least squares, ties in the score pooled first.

    Args:
        score: Shape (n,), without NaN, at least one.
        y: Targets of shape (n,).
        weight: Positive weights of shape (n,).

    Returns:
        Distinct scores ascending, fitted means, and total weights, each of shape (m,).

    Source: Barlow et al., Statistical Inference under Order Restrictions, 1972.

    Example:
        >>> isotonic_means(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.5]), np.ones(3))[1].tolist()
        [0.0, 0.75, 0.75]
    """
    from scipy.optimize import isotonic_regression

    distinct, group = np.unique(score, return_inverse=True)
    weights = np.bincount(group, weights=weight)
    means = np.bincount(group, weights=weight * y) / weights
    fitted: Floats = isotonic_regression(means, weights=weights).x
    return distinct, fitted, weights.astype(np.float64)


def brier_decomposition(y: ArrayLike, probability: ArrayLike) -> BrierDecomposition:
    """Splits the Brier score into miscalibration, discrimination and uncertainty, without choosing bins.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].

    Returns:
        Parts that add up to the score to rounding; all NaN without rows.

    Raises:
        InvalidInput: If shapes differ, a label is not 0 or 1, or a probability is NaN or outside [0, 1].

    Source: CORP of Dimitriadis, Gneiting & Jordan, PNAS 2021.

    Example:
        >>> print(brier_decomposition([0, 1, 0, 1], [0.2, 0.4, 0.6, 0.8]))
        brier 0.2 = miscalibration 0.075 - discrimination 0.125 + uncertainty 0.25 (n = 4)
    """
    flags, p = labels_and_probabilities(y, probability)
    n = len(flags)
    definition = "CORP: recalibrated by isotonic regression of y on p, compared with the base rate"
    if n == 0:
        nan = math.nan
        return BrierDecomposition(
            brier=nan, miscalibration=nan, discrimination=nan, uncertainty=nan, n_obs=0, definition="no rows"
        )
    distinct, means, _ = isotonic_means(p, flags, np.ones(n))
    recalibrated = means[np.searchsorted(distinct, p)]
    score = float(np.mean((p - flags) ** 2))
    best = float(np.mean((recalibrated - flags) ** 2))
    rate = float(flags.mean())
    uncertainty = rate * (1 - rate)
    return BrierDecomposition(
        brier=score,
        miscalibration=score - best,
        discrimination=uncertainty - best,
        uncertainty=uncertainty,
        n_obs=n,
        definition=definition,
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationError(Estimate):
    """A calibration error with the value that a perfectly calibrated model would show.

    Attributes:
        null_mean: Mean of the value under perfect calibration with these probabilities and bins.
        n_bins: Bins that hold at least one row.
    """

    null_mean: float
    n_bins: int


def equal_width_bins(p: Floats, n_bins: int) -> NDArray[np.intp]:
    """Returns the bin of each probability among bins [i/n_bins, (i+1)/n_bins), the last one closed."""
    return np.minimum((p * n_bins).astype(np.intp), n_bins - 1)


def equal_mass_bins(p: Floats, n_bins: int) -> NDArray[np.intp]:
    """Returns the bin of each probability among bins of about equal mass; equal probabilities share a bin."""
    # Edges are values of p, so that equal probabilities always share a bin.
    ordered = np.sort(p)
    edges = np.unique(ordered[(len(p) * np.arange(1, n_bins)) // n_bins])
    return np.searchsorted(edges, p, side="right")


def bin_sums(bins: NDArray[np.intp], flags: Flags, p: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns rows, summed probabilities, positives and summed p (1 - p) of each bin that holds rows."""
    n = np.bincount(bins).astype(np.float64)
    held = n > 0
    sums: list[Floats] = [np.bincount(bins, weights=w)[held].astype(np.float64) for w in (p, flags, p * (1 - p))]
    return n[held], sums[0], sums[1], sums[2]


def _plain_error(
    name: str, bins: NDArray[np.intp], flags: Flags, p: Floats, confidence_level: float, how: str
) -> CalibrationError:
    n, sum_p, sum_y, sum_variance = bin_sums(bins, flags, p)
    total = n.sum()
    gap = (sum_y - sum_p) / n
    rate = sum_y / n
    value = float(n @ np.abs(gap) / total)
    half = normal_quantile(confidence_level) * math.sqrt(float(n @ (rate * (1 - rate)))) / total
    return CalibrationError(
        name=name,
        value=value,
        lower=max(0.0, value - half),
        upper=min(1.0, value + half),
        n_obs=len(p),
        confidence_level=confidence_level,
        definition=f"mean absolute gap of frequency and mean probability over {how}; biased upwards, see null_mean",
        null_mean=float(math.sqrt(2 / math.pi) * np.sqrt(sum_variance).sum() / total),
        n_bins=len(n),
    )


def _no_rows(name: str, confidence_level: float) -> CalibrationError:
    return CalibrationError(
        name=name,
        value=math.nan,
        lower=0.0,
        upper=1.0,
        n_obs=0,
        confidence_level=confidence_level,
        definition="no rows",
        null_mean=math.nan,
        n_bins=0,
    )


def calibration_error(
    y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15, confidence_level: float = 0.95
) -> CalibrationError:
    """Debiased root mean squared calibration error over equal-mass bins: about 0 for a perfect model of any n.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Bins of about equal mass, at least 1; equal probabilities share a bin. Bins of one row are left out.
        confidence_level: Level, in (0, 1).

    Returns:
        The error, 0 where the sampling noise explains all of it. The interval is the delta method's for the squared
        error, cut at 0. NaN without two rows in a bin.

    Raises:
        InvalidInput: If shapes differ, a label is not 0 or 1, a probability is NaN or outside [0, 1], or n_bins < 1.

    Source: Kumar, Liang & Ma, Verified Uncertainty Calibration, NeurIPS 2019.

    Example:
        >>> p = np.repeat([0.2, 0.8], 50)
        >>> y = np.tile([1, 0, 0, 0, 0], 20)
        >>> round(calibration_error(y, p).value, 4)
        0.4204
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    z = normal_quantile(confidence_level)
    if len(p) == 0:
        return _no_rows("calibration_error", confidence_level)
    n, sum_p, sum_y, _ = bin_sums(equal_mass_bins(p, n_bins), flags, p)
    kept = n > 1
    n, sum_p, sum_y = n[kept], sum_p[kept], sum_y[kept]
    if len(n) == 0:
        return _no_rows("calibration_error", confidence_level)
    share = n / n.sum()
    rate = sum_y / n
    gap = rate - sum_p / n
    noise = rate * (1 - rate) / (n - 1)
    squared = float(share @ (gap**2 - noise))
    half = z * math.sqrt(float(share**2 @ (4 * np.maximum(gap**2 - noise, 0.0) * noise + 2 * noise**2)))
    return CalibrationError(
        name="calibration_error",
        value=math.sqrt(max(0.0, squared)),
        lower=math.sqrt(max(0.0, squared - half)),
        upper=min(1.0, math.sqrt(max(0.0, squared + half))),
        n_obs=len(p),
        confidence_level=confidence_level,
        definition=f"root mean squared gap over {len(n)} equal-mass bins, sampling noise subtracted; delta interval",
        null_mean=0.0,
        n_bins=len(n),
    )


def ece_equal_width(
    y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15, confidence_level: float = 0.95
) -> CalibrationError:
    """Expected calibration error of the probability of class 1 over bins of equal width: for comparison with papers.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Bins [i/n_bins, (i+1)/n_bins), the last one closed.
        confidence_level: Level, in (0, 1).

    Returns:
        The error, which is biased upwards: compare it with `null_mean`. NaN without rows.

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Naeini, Cooper & Hauskrecht, AAAI 2015.

    Example:
        >>> round(ece_equal_width([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], n_bins=2).value, 4)
        0.25
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    if len(p) == 0:
        return _no_rows("ece_equal_width", confidence_level)
    how = f"{n_bins} bins of equal width"
    return _plain_error("ece_equal_width", equal_width_bins(p, n_bins), flags, p, confidence_level, how)


def ece_equal_mass(
    y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15, confidence_level: float = 0.95
) -> CalibrationError:
    """Expected calibration error of the probability of class 1 over bins of about equal mass.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Number of bins; equal probabilities share a bin, so there may be fewer.
        confidence_level: Level, in (0, 1).

    Returns:
        The error, which is biased upwards: compare it with `null_mean`. NaN without rows.

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Nguyen & O'Connor, EMNLP 2015.

    Example:
        >>> round(ece_equal_mass([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], n_bins=2).value, 4)
        0.25
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    if len(p) == 0:
        return _no_rows("ece_equal_mass", confidence_level)
    how = f"{n_bins} bins of equal mass"
    return _plain_error("ece_equal_mass", equal_mass_bins(p, n_bins), flags, p, confidence_level, how)


def spiegelhalter(y: ArrayLike, probability: ArrayLike) -> NullTest:
    """Tests that each label is a draw with its own probability: an alert on calibration rests on this, not on an ECE.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].

    Returns:
        A two-sided z test. Where all probabilities are 0.5 the statistic does not exist: NaN with p-value 1. Where
        a probability of 0 or 1 was proved wrong and none lies between, it is infinite with p-value 0.

    Raises:
        InvalidInput: If shapes differ, a label is not 0 or 1, or a probability is NaN or outside [0, 1].

    Source: Spiegelhalter, Statistics in Medicine 1986.

    Example:
        >>> print(spiegelhalter([0, 1, 1, 1], [0.2, 0.4, 0.6, 0.8]))
        spiegelhalter -0.5455 (p = 0.5854, n = 4)
    """
    flags, p = labels_and_probabilities(y, probability)
    tilt = 1 - 2 * p
    excess = float(((flags - p) * tilt).sum())
    variance = float((tilt**2 * p * (1 - p)).sum())
    definition = "null: y is Bernoulli(p) row by row; z is standard normal, two-sided"
    if variance > 0:
        statistic = excess / math.sqrt(variance)
        p_value = math.erfc(abs(statistic) / math.sqrt(2))
    elif abs(excess) > 0:
        statistic, p_value = math.copysign(math.inf, excess), 0.0
    else:
        statistic, p_value = math.nan, 1.0
        definition = "undefined: no row says anything about calibration"
    return NullTest(name="spiegelhalter", statistic=statistic, p_value=p_value, n_obs=len(p), definition=definition)


@dataclass(frozen=True, kw_only=True)
class ReliabilityCurve(Result):
    """Observed frequency against mean probability, bin by bin.

    Attributes:
        mean_probability: Mean probability of each bin, ascending.
        frequency: Share of positives in each bin.
        lower: Lower end of Wilson's interval for the frequency.
        upper: Upper end.
        n_obs: Rows in each bin.
        confidence_level: Level of each interval on its own.
    """

    mean_probability: tuple[float, ...]
    frequency: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    n_obs: tuple[int, ...]
    confidence_level: float

    def __str__(self) -> str:
        rows = zip(self.mean_probability, self.frequency, self.lower, self.upper, self.n_obs, strict=True)
        lines = [f"{p:11.4g}  {f:9.4g}  {low:.4g} to {high:.4g}  (n = {n:,})" for p, f, low, high, n in rows]
        return "\n".join(["probability  frequency", *lines])


def reliability_curve(
    y: ArrayLike, probability: ArrayLike, *, n_bins: int = 10, confidence_level: float = 0.95
) -> ReliabilityCurve:
    """Gives the points of a reliability diagram over bins of about equal mass.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Number of bins; equal probabilities share a bin, so there may be fewer.
        confidence_level: Level of each bin's interval, in (0, 1).

    Returns:
        One point a bin that holds rows; no points without rows.

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Bröcker & Smith, Weather and Forecasting 2007.

    Example:
        >>> print(reliability_curve([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], n_bins=2))
        probability  frequency
               0.15        0.5  0.09453 to 0.9055  (n = 2)
               0.85          1  0.3424 to 1  (n = 2)
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    normal_quantile(confidence_level)
    if len(p) == 0:
        n = sum_p = sum_y = np.empty(0)
    else:
        n, sum_p, sum_y, _ = bin_sums(equal_mass_bins(p, n_bins), flags, p)
    rates = [wilson(float(y_), int(n_), confidence_level=confidence_level) for y_, n_ in zip(sum_y, n, strict=True)]
    return ReliabilityCurve(
        mean_probability=tuple((sum_p / n).tolist()),
        frequency=tuple(rate.value for rate in rates),
        lower=tuple(rate.lower for rate in rates),
        upper=tuple(rate.upper for rate in rates),
        n_obs=tuple(int(count) for count in n),
        confidence_level=confidence_level,
    )
