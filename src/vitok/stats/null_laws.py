"""What distances between two histograms show where nothing has changed, for bins that hold few observations.

The closed forms in `divergences` want enough expected counts a bin: about five for chi-square, about twenty for the
others, whose logarithms and roots bend more. Where more than a fifth of the bins hold fewer, the law is drawn: pairs of
multinomial samples of the pooled shares, from a fixed seed. The draws of the closest class of (shares, n, m) are kept,
so that watching the same columns hour after hour costs them once.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from vitok.stats.arrays import Floats

DRAWS = 999
# At ten a bin of 32 the index passes its 5 % bound in 10 % of windows and its 1 % bound in 3 %, at twenty in 6.7 and
# 1.6 %; Pearson's statistic keeps both at five.
_FEW = {"chi_square": 5.0, "psi": 20.0, "jensen_shannon": 20.0, "hellinger": 20.0}
_SHARE_OF_FEW = 0.2
# Counts are rounded to eighths of a doubling, so by at most 4.4 %; those below six stay what they are.
_STEPS = 8
_MOST = 10_000_000
_KINDS = ("psi", "jensen_shannon", "hellinger", "chi_square")


@dataclass(frozen=True)
class DrawnLaw:
    """The law of one distance by its draws, in multiples of the distance's unit 1/n + 1/m (for chi-square: 1).

    Attributes:
        mean: Mean of the draws.
        variance: Their variance.
        ordered: The draws, ascending.
    """

    mean: float
    variance: float
    ordered: Floats

    def quantile(self, level: float) -> float:
        """Returns the quantile of the draws at `level`, of the fitted gamma law where they are too few for it."""
        if (1 - level) * len(self.ordered) >= 10:
            return float(np.quantile(self.ordered, level))
        from scipy.special import gammainccinv

        if self.variance <= 0:
            return self.mean
        return float(gammainccinv(self.mean**2 / self.variance, 1 - level) * self.variance / self.mean)

    def p_value(self, value: float) -> float:
        """Returns the chance of at least `value`: by the draws where 10 or more reach it, else by the gamma law."""
        reached = len(self.ordered) - int(np.searchsorted(self.ordered, value * (1 - 1e-12), side="left"))
        if reached >= 10 or self.variance <= 0:
            return (reached + 1) / (len(self.ordered) + 1)
        from scipy.special import gammaincc

        return min(
            11 / (len(self.ordered) + 1),
            float(gammaincc(self.mean**2 / self.variance, value * self.mean / self.variance)),
        )


def is_sparse(kind: str, reference: Floats, current: Floats) -> bool:
    """Says whether the bins hold too few for the closed form: over a fifth expect fewer than it needs on a side.

    Args:
        kind: Which distance, as `drawn` names it.
        reference: Counts of shape (b,), the bins in use.
        current: Counts of shape (b,).

    Source: Cochran, Biometrics 1954, for the rule of five; twenty is from simulation.

    Example:
        >>> before, now = np.array([50.0, 60.0]), np.array([9.0, 8.0])
        >>> is_sparse("chi_square", before, now), is_sparse("psi", before, now)
        (False, True)
    """
    return float(np.mean(expected_counts(reference, current) < _FEW[kind])) > _SHARE_OF_FEW


def expected_counts(reference: Floats, current: Floats) -> Floats:
    """Returns what each bin of the smaller side would hold if both had the pooled shares."""
    pooled = reference + current
    return np.asarray(pooled * min(reference.sum(), current.sum()) / pooled.sum())


def drawn(kind: str, reference: Floats, current: Floats) -> DrawnLaw:
    """Returns the drawn law of a distance at the sizes of two histograms.

    Args:
        kind: `"psi"`, `"jensen_shannon"` (squared, in nats), `"hellinger"` (squared) or `"chi_square"`.
        reference: Counts of shape (b,), the bins in use, at least 2 of them.
        current: Counts of shape (b,).

    Example:
        >>> law = drawn("psi", np.full(10, 3.0), np.full(10, 2.0))
        >>> 7 < law.mean < 14, law.p_value(2 * law.mean) < 0.1 < law.p_value(law.mean)
        (True, True)
    """
    pooled = np.sort(reference + current)
    classes = tuple(np.round(_STEPS * np.log2(pooled)).astype(int).tolist())
    # All four are the same with the sides exchanged. Rounded is the share of the smaller one: that of the larger, near
    # 1, would leave the smaller with another size altogether.
    share = _STEPS * math.log2(float(min(reference.sum(), current.sum()) / pooled.sum()))
    return _draw(classes, round(share))[_KINDS.index(kind)]


@functools.lru_cache(maxsize=1_024)
def _draw(classes: tuple[int, ...], of_share: int) -> tuple[DrawnLaw, ...]:
    from scipy.special import xlogy

    # More in one bin changes nothing of the law, and numpy deals out fewer than a milliard.
    pooled = np.clip(np.round(2.0 ** (np.array(classes) / _STEPS)), 1, _MOST).astype(np.int64)
    total = int(pooled.sum())
    m = min(total - 1, max(1, round(total * 2 ** (of_share / _STEPS))))
    n = total - m
    rng = np.random.default_rng((len(classes), total, m))
    c = rng.multivariate_hypergeometric(pooled, m, DRAWS, method="marginals")
    r = pooled - c
    rate = 1 / n + 1 / m
    p, q = r / n, c / m
    p_, q_ = np.where(r == 0, 0.5 / n, p), np.where(c == 0, 0.5 / m, q)
    middle = (p + q) / 2
    found = (
        ((q_ - p_) * np.log(q_ / p_)).sum(axis=1) / rate,
        (xlogy(p, p / middle) + xlogy(q, q / middle)).sum(axis=1) / 2 / rate,
        ((np.sqrt(p) - np.sqrt(q)) ** 2).sum(axis=1) / 2 / rate,
        n * m * ((p - q) ** 2 / pooled).sum(axis=1),
    )
    return tuple(DrawnLaw(float(one.mean()), float(one.var()), np.sort(one)) for one in found)


@functools.lru_cache(maxsize=1_024)
def gap_law(cuts: tuple[float, ...]) -> "GapLaw":
    """Returns the law of the Kolmogorov-Smirnov distance at given cuts, in units of the root of 1/n + 1/m.

    Args:
        cuts: Cumulated shares at the k cuts, ascending, strictly within (0, 1); k at least 1.

    Returns:
        The law of the largest absolute value of a Brownian bridge looked at only there.

    Source: the chance that it passes z is at most Kolmogorov's at z, about Kolmogorov's at z + 0.5826 times the
    root of the step between cuts (the correction for looking at a path at steps of Siegmund 1985 and Broadie et al.
    1997), and at most the sum over the cuts (Boole); the least of them is taken. One cut is exact.

    Example:
        >>> round(gap_law((0.5,)).p_value(0.98), 4), round(gap_law(tuple(np.arange(1, 200) / 200)).mean, 2)
        (0.05, 0.83)
    """
    pooled = np.array(cuts)
    deviation = np.sqrt(pooled * (1 - pooled))
    steps = np.diff(np.concatenate(([0.0], pooled, [1.0])))
    # A point mass is one long step, but the path is looked at on both sides of it: the shorter step counts.
    step = float(np.minimum(steps[1:], steps[:-1]) @ deviation**2 / (deviation @ deviation))
    return GapLaw(deviation, 0.5826 * math.sqrt(step) if len(pooled) >= _ENOUGH_CUTS else 0.0)


_ENOUGH_CUTS = 4
_GRID = np.linspace(0.0, 4.0, 401)


class GapLaw:
    """Law of a Kolmogorov-Smirnov distance on bins; see `gap_law`."""

    def __init__(self, deviation: Floats, correction: float) -> None:
        self._deviation = deviation
        self._correction = correction

    def p_value(self, z: float) -> float:
        """Returns the chance of at least `z`."""
        return float(self._tail(np.array([z]))[0])

    @functools.cached_property
    def _tails(self) -> Floats:
        return self._tail(_GRID)

    @functools.cached_property
    def mean(self) -> float:
        """Its mean."""
        return float(np.trapezoid(self._tails, _GRID))

    def quantile(self, level: float) -> float:
        """Returns its quantile."""
        return float(np.interp(-(1 - level), -self._tails, _GRID))

    def _tail(self, z: Floats) -> Floats:
        from scipy.special import kolmogorov, ndtr

        single = 2 * ndtr(-z[:, None] / self._deviation).sum(axis=1)
        return np.minimum(1.0, np.minimum(kolmogorov(z + self._correction), single))
