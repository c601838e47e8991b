"""Calibration measures by the names that papers give them, and a test that asks whether any of it is more than noise.

`calibration_error` is the one to watch. These are for comparison: each says its binning and its kind, because the same
three letters stand for many numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import Flags, Floats, labels_and_probabilities, positive_integer
from vitok.stats.calibration import (
    CalibrationError,
    bin_sums,
    calibration_error,
    equal_mass_bins,
    equal_width_bins,
)
from vitok.stats.results import Estimate, NullTest, Result


@dataclass(frozen=True, kw_only=True)
class MurphyDecomposition(Result):
    """The Brier score over bins, with the two terms that make the sum exact.

    brier = reliability - resolution + uncertainty + within_variance - within_covariance.

    Attributes:
        brier: The score.
        reliability: Mean squared gap of frequency and mean probability of the bins.
        resolution: Variance of the bins' frequencies.
        uncertainty: Score of the base rate.
        within_variance: Mean variance of the probability within the bins.
        within_covariance: Twice the mean covariance of label and probability within the bins.
        n_bins: Bins that hold rows.
        n_obs: Number of rows.
    """

    brier: float
    reliability: float
    resolution: float
    uncertainty: float
    within_variance: float
    within_covariance: float
    n_bins: int
    n_obs: int

    def __str__(self) -> str:
        return (
            f"brier {self.brier:.4g} = reliability {self.reliability:.4g} - resolution {self.resolution:.4g}"
            f" + uncertainty {self.uncertainty:.4g} + within bins {self.within_variance - self.within_covariance:.4g}"
            f" (n = {self.n_obs:,})"
        )


def murphy_decomposition(y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15) -> MurphyDecomposition:
    """Splits the Brier score over bins of equal width, exactly; `brier_decomposition` needs no bins.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Bins of equal width, at least 1.

    Returns:
        Parts that add up to the score to rounding; all NaN without rows.

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Murphy, Journal of Applied Meteorology 1973; the within-bin terms of Stephenson, Coelho & Jolliffe,
    Weather and Forecasting 2008.

    Example:
        >>> print(murphy_decomposition([0, 1, 0, 1], [0.1, 0.4, 0.6, 0.8], n_bins=2))
        brier 0.1925 = reliability 0.05125 - resolution 0 + uncertainty 0.25 + within bins -0.1088 (n = 4)
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    count = len(p)
    if count == 0:
        return MurphyDecomposition(
            brier=math.nan,
            reliability=math.nan,
            resolution=math.nan,
            uncertainty=math.nan,
            within_variance=math.nan,
            within_covariance=math.nan,
            n_bins=0,
            n_obs=0,
        )
    bins = equal_width_bins(p, n_bins)
    total, positive = np.bincount(bins, minlength=n_bins), np.bincount(bins, weights=flags, minlength=n_bins)
    n = np.maximum(total, 1)
    mean_p, rate = np.bincount(bins, weights=p, minlength=n_bins) / n, positive / n
    base = float(flags.mean())
    off = p - mean_p[bins]
    return MurphyDecomposition(
        brier=float(np.mean((p - flags) ** 2)),
        reliability=float(total @ (mean_p - rate) ** 2) / count,
        resolution=float(total @ (rate - base) ** 2) / count,
        uncertainty=base * (1 - base),
        within_variance=float(np.mean(off**2)),
        within_covariance=2 * float(np.mean(off * (flags - rate[bins]))),
        n_bins=int((total > 0).sum()),
        n_obs=count,
    )


def _named(name: str, value: float, null: float, n_bins: int, n: int, definition: str) -> CalibrationError:
    return CalibrationError(
        name=name,
        value=value,
        lower=0.0,
        upper=1.0,
        n_obs=n,
        definition=definition if n else "no rows",
        null_mean=null,
        n_bins=n_bins,
    )


def adaptive_calibration_error(y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15) -> CalibrationError:
    """ACE of the probability of class 1: mean absolute gap over bins of equal mass, each bin counting alike.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Bins of about equal mass, at least 1; equal probabilities share a bin.

    Returns:
        The error, biased upwards: compare it with `null_mean`. No interval is given: it is [0, 1].

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Nixon et al., Measuring Calibration in Deep Learning, CVPR workshops 2019.

    Example:
        >>> round(adaptive_calibration_error([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], n_bins=2).value, 4)
        0.25
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    if len(p) == 0:
        return _named("adaptive_calibration_error", math.nan, math.nan, 0, 0, "")
    n, sum_p, sum_y, variance = bin_sums(equal_mass_bins(p, n_bins), flags, p)
    definition = f"plain mean of absolute gaps over {len(n)} bins of equal mass; biased upwards, see null_mean"
    null = float(np.mean(math.sqrt(2 / math.pi) * np.sqrt(variance) / n))
    value = float(np.mean(np.abs(sum_y - sum_p) / n))
    return _named("adaptive_calibration_error", value, null, len(n), len(p), definition)


def maximum_calibration_error(y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15) -> CalibrationError:
    """MCE of the probability of class 1: the largest absolute gap of any bin of equal width.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Bins of equal width, at least 1.

    Returns:
        The error. One bin of few rows makes it; its `null_mean` is the mean of the largest of as many independent
        half-normals, by quadrature.

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Naeini, Cooper & Hauskrecht, AAAI 2015.

    Example:
        >>> round(maximum_calibration_error([0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9], n_bins=2).value, 4)
        0.35
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    if len(p) == 0:
        return _named("maximum_calibration_error", math.nan, math.nan, 0, 0, "")
    n, sum_p, sum_y, variance = bin_sums(equal_width_bins(p, n_bins), flags, p)
    definition = f"largest absolute gap among {len(n)} bins of equal width; far above 0 for a perfect model"
    from scipy.special import erf

    spread = np.sqrt(variance) / n
    grid = np.linspace(0.0, 1.0, 2_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.where(spread > 0, erf(grid[:, None] / (math.sqrt(2) * spread)), 1.0).prod(axis=1)
    null = float(np.sum((1 - below[1:] + 1 - below[:-1]) / 2) * (grid[1] - grid[0]))
    value = float((np.abs(sum_y - sum_p) / n).max())
    return _named("maximum_calibration_error", value, null, len(n), len(p), definition)


def smooth_calibration_error(y: ArrayLike, probability: ArrayLike, *, resolution: int = 2_000) -> Estimate:
    """smECE: the calibration error of kernel-smoothed gaps, at the bandwidth that equals it; no bins to choose.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        resolution: Cells of the grid that probabilities are put on, at least 10.

    Returns:
        The error, with the interval [0, 1]. The kernel is Gaussian, reflected at 0 and 1. Its smallest value is
        about one cell.

    Raises:
        InvalidInput: As for `calibration_error`.

    Source: Błasiok & Nakkiran, Smooth ECE, ICLR 2024.

    Example:
        >>> p = np.repeat([0.2, 0.8], 500)
        >>> round(smooth_calibration_error(np.tile([0, 0, 0, 0, 1], 200), p).value, 3)
        0.3
    """
    from scipy.fft import dct, idct

    flags, p = labels_and_probabilities(y, probability)
    if positive_integer("resolution", resolution) < 10:
        raise InvalidInput("resolution", resolution, "be at least 10")
    definition = "smooth calibration error with a reflected Gaussian kernel, at the bandwidth that equals it"
    if len(p) == 0:
        return Estimate(
            name="smooth_calibration_error", value=math.nan, lower=0.0, upper=1.0, n_obs=0, definition="no rows"
        )
    # A cosine transform is convolution with reflection at the ends, and a Gaussian stays one in it.
    place = np.minimum((p * resolution).astype(np.intp), resolution - 1)
    gap = np.bincount(place, weights=(flags - p) / len(p), minlength=resolution)
    waves = dct(gap, norm="ortho")
    frequency = np.pi * np.arange(resolution)

    def error(bandwidth: float) -> float:
        return float(np.abs(idct(waves * np.exp(-((frequency * bandwidth) ** 2) / 2), norm="ortho")).sum())

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) > middle else (low, middle)
    return Estimate(
        name="smooth_calibration_error", value=high, lower=0.0, upper=1.0, n_obs=len(p), definition=definition
    )


def _classes(y: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.intp], Floats]:
    p, truth = np.asarray(probability, dtype=np.float64), np.asarray(y)
    if p.ndim != 2 or p.shape[1] < 2 or truth.shape != p.shape[:1]:
        raise InvalidInput("y and probability", (truth.shape, p.shape), "have the shapes (n,) and (n, k), k at least 2")
    if not np.isfinite(p).all() or (p < 0).any() or (p > 1).any():
        raise InvalidInput("probability", "outside [0, 1]", "be in [0, 1]")
    codes = truth.astype(np.intp)
    if (codes != truth).any() or (codes < 0).any() or (codes >= p.shape[1]).any():
        raise InvalidInput("y", truth[:5].tolist(), f"be whole numbers from 0 to {p.shape[1] - 1}")
    return codes, p


def top_label_error(
    y: ArrayLike,
    probability: ArrayLike,
    *,
    error: Callable[[Flags, Floats], CalibrationError] = calibration_error,
) -> CalibrationError:
    """Calibration of the predicted class alone: how often it is right against how sure the model was of it.

    Args:
        y: Index of the true class, shape (n,), 0 to k - 1.
        probability: Shape (n, k), in [0, 1].
        error: The measure for right or wrong against confidence, such as `ece_equal_width`.

    Returns:
        The error. It says nothing of the other k - 1 probabilities: `class_wise_error` does.

    Raises:
        InvalidInput: If shapes do not fit or a value is out of range.

    Source: Guo, Pleiss, Sun & Weinberger, ICML 2017; the name is that of Gupta & Ramdas, ICLR 2022.

    Example:
        >>> p = np.tile([[0.9, 0.05, 0.05]], (100, 1))
        >>> round(top_label_error(np.tile([0, 0, 0, 1], 25), p).value, 2)
        0.14
    """
    codes, p = _classes(y, probability)
    chosen = p.argmax(axis=1) if len(p) else codes
    found = error(chosen == codes, p[np.arange(len(p)), chosen])
    return CalibrationError(**{**vars(found), "name": f"top_label_{found.name}"})


@dataclass(frozen=True, kw_only=True)
class ClassWiseError(Result):
    """Calibration error of every class against the rest.

    Attributes:
        mean: Plain mean over classes.
        by_class: One for each class.
    """

    mean: float
    by_class: tuple[CalibrationError, ...]

    def __str__(self) -> str:
        lines = [f"  class {at}: {one}" for at, one in enumerate(self.by_class)]
        return "\n".join([f"class-wise {self.mean:.4g} over {len(self.by_class)} classes", *lines])


def class_wise_error(
    y: ArrayLike,
    probability: ArrayLike,
    *,
    error: Callable[[Flags, Floats], CalibrationError] = calibration_error,
) -> ClassWiseError:
    """Calibration of each class's probability against the rest, and the mean.

    Args:
        y: Index of the true class, shape (n,), 0 to k - 1.
        probability: Shape (n, k), in [0, 1].
        error: The measure for each class, such as `ece_equal_mass`.

    Raises:
        InvalidInput: If shapes do not fit or a value is out of range.

    Source: Kull et al., Beyond temperature scaling, NeurIPS 2019.

    Example:
        >>> p = np.tile([[0.9, 0.1]], (100, 1))
        >>> round(class_wise_error(np.tile([0, 0, 0, 1], 25), p).mean, 2)
        0.14
    """
    codes, p = _classes(y, probability)
    found = tuple(error(codes == at, p[:, at]) for at in range(p.shape[1]))
    return ClassWiseError(mean=float(np.mean([one.value for one in found])), by_class=found)


def _squared_error(flags: Flags, p: Floats, bins: NDArray[np.intp]) -> float:
    n, sum_p, sum_y, _ = bin_sums(bins, flags, p)
    kept = n > 1
    n, sum_p, sum_y = n[kept], sum_p[kept], sum_y[kept]
    rate = sum_y / n
    return float(n @ ((rate - sum_p / n) ** 2 - rate * (1 - rate) / (n - 1)) / max(n.sum(), 1.0))


def calibration_null_test(
    y: ArrayLike, probability: ArrayLike, *, n_bins: int = 15, n_draws: int = 1_000, seed: int = 0
) -> NullTest:
    """Tests whether the debiased calibration error is more than noise, by labels drawn from the probabilities.

    `spiegelhalter` sees probabilities that are too bold or too timid; this sees any gap that spans a bin.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_bins: Bins of about equal mass, at least 1.
        n_draws: Draws under calibration, at least 19.
        seed: Of the draws.

    Returns:
        The debiased squared error and the share of draws, the data counted as one, in which it was at least as
        large: an exact level whatever n is.

    Raises:
        InvalidInput: As for `calibration_error`, and if there are fewer than 19 draws.

    Source: Bröcker & Smith, Weather and Forecasting 2007 (consistency resampling); Vaicenavicius et al., AISTATS
    2019.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.random(500)
        >>> bool(calibration_null_test(rng.random(500) < p, p).p_value > 0.05)
        True
        >>> calibration_null_test(rng.random(500) < p**2, p).p_value < 0.01
        True
    """
    flags, p = labels_and_probabilities(y, probability)
    positive_integer("n_bins", n_bins)
    if n_draws < 19:
        raise InvalidInput("n_draws", n_draws, "be at least 19")
    definition = f"null: y is Bernoulli(p); debiased squared error over equal-mass bins, {n_draws:,} draws"
    if len(p) < 2:
        return NullTest(
            name="calibration_null", statistic=math.nan, p_value=1.0, n_obs=len(p), definition="too few rows"
        )
    bins = equal_mass_bins(p, n_bins)
    value = _squared_error(flags, p, bins)
    rng = np.random.default_rng(seed)
    above = sum(_squared_error(rng.random(len(p)) < p, p, bins) >= value - 1e-15 for _ in range(n_draws))
    return NullTest(
        name="calibration_null",
        statistic=value,
        p_value=(1 + above) / (1 + n_draws),
        n_obs=len(p),
        definition=definition,
    )
