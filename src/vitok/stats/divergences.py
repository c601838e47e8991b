"""How far two histograms over the same bins are apart, each with what sampling alone would show.

The first count vector is the reference, the second the current window. A divergence of two samples of the same law is
not 0, and shrinks with their sizes: so each comes with the mean and a quantile of its null law, and 0.1 means nothing
without them. The law is a closed form where the bins hold enough, else drawn from a fixed seed (`null_laws`). Two empty
bins say nothing and are left out.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, count_vectors, open_unit, vector
from vitok.stats.null_laws import GapLaw, drawn, expected_counts, gap_law, is_sparse
from vitok.stats.results import Result


@dataclass(frozen=True, kw_only=True)
class Divergence(Result):
    """A distance between two histograms and its law where nothing has changed.

    Where one side has no counts, `value` is NaN, `p_value` is 1 and `definition` says so.

    Attributes:
        name: Which divergence.
        value: The distance.
        null_mean: Its mean where both are samples of one law.
        null_quantile: Its quantile at `confidence_level` there.
        p_value: Chance of at least this value there.
        n_reference: Counts in the reference.
        n_current: Counts in the current window.
        n_bins: Bins in use on either side.
        confidence_level: Level of `null_quantile`.
        definition: Formula, treatment of empty bins, and the null law.
    """

    name: str
    value: float
    null_mean: float
    null_quantile: float
    p_value: float
    n_reference: float
    n_current: float
    n_bins: int
    confidence_level: float
    definition: str

    @property
    def excess(self) -> float:
        """The value less its null mean: about 0 without a change, whatever the sizes."""
        return self.value - self.null_mean

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.name} undefined ({self.definition})"
        level = f"{100 * self.confidence_level:.6g}"
        return (
            f"{self.name} {self.value:.4g} (without change: mean {self.null_mean:.4g}, {level} % below"
            f" {self.null_quantile:.4g}; p = {self.p_value:.4g};"
            f" n = {self.n_reference:,.0f} and {self.n_current:,.0f})"
        )


@dataclass(frozen=True)
class _Pair:
    reference: Floats
    current: Floats
    n: float
    m: float
    level: float

    @property
    def rate(self) -> float:
        return 1 / self.n + 1 / self.m

    @property
    def freedom(self) -> int:
        return len(self.reference) - 1

    def result(
        self, name: str, value: float, null_mean: float, null_quantile: float, p_value: float, definition: str
    ) -> Divergence:
        return Divergence(
            name=name,
            value=value,
            null_mean=null_mean,
            null_quantile=null_quantile,
            p_value=p_value,
            n_reference=self.n,
            n_current=self.m,
            n_bins=len(self.reference),
            confidence_level=self.level,
            definition=definition,
        )

    def undefined(self, name: str) -> Divergence:
        side = "reference" if self.n == 0 else "current window"
        return self.result(name, math.nan, math.nan, math.nan, 1.0, f"the {side} has no counts")


def _read(reference: ArrayLike, current: ArrayLike, confidence_level: float) -> _Pair:
    r, c = count_vectors(reference, current)
    used = (r > 0) | (c > 0)
    level = open_unit("confidence_level", confidence_level)
    return _Pair(r[used], c[used], float(r.sum()), float(c.sum()), level)


@dataclass(frozen=True)
class _Law:
    mean: float
    quantile: float
    p_value: float
    origin: str


def _law(pair: _Pair, kind: str, value: float, unit: float, per_rate: float) -> _Law:
    """Returns the null law of a distance whose closed form is `unit` times chi-square, at `value`.

    Args:
        pair: The counts.
        kind: Which distance, as `drawn` names it.
        value: The distance.
        unit: Of the chi-square.
        per_rate: What a drawn value is to be multiplied by.
    """
    from scipy.special import chdtrc, chdtri

    if pair.freedom == 0:
        return _Law(0.0, 0.0, 1.0, "one bin never differs")
    if is_sparse(kind, pair.reference, pair.current):
        law = drawn(kind, pair.reference, pair.current)
        origin = "drawn, as many bins hold few"
        return _Law(per_rate * law.mean, per_rate * law.quantile(pair.level), law.p_value(value / per_rate), origin)
    quantile = unit * float(chdtri(pair.freedom, 1 - pair.level))
    p_value = float(chdtrc(pair.freedom, max(0.0, value / unit)))
    return _Law(unit * pair.freedom, quantile, p_value, "chi-square of bins - 1")


def psi(reference: ArrayLike, current: ArrayLike, *, confidence_level: float = 0.95) -> Divergence:
    """Population stability index: the sum over bins of (q - p) ln(q / p), with p and q the shares.

    Args:
        reference: Counts of shape (b,), at least 0.
        current: Counts of shape (b,) over the same bins.
        confidence_level: Level of the null quantile, in (0, 1).

    Returns:
        The index. A bin that is empty on one side only counts there as half an observation, without renormalising;
        this is the only use of an epsilon. The null law is (1/n + 1/m) times chi-square with one degree less
        than there are bins where the bins hold about twenty or more, else it is drawn.

    Raises:
        InvalidInput: If a count is negative or not finite, or the lengths differ.

    Source: Jeffreys 1946; null law of Yurdakul, Statistical Properties of Population Stability Index, 2018.

    Example:
        >>> print(psi([100, 200, 300, 400], [200, 200, 300, 300]))
        psi 0.09808 (without change: mean 0.006, 95 % below 0.01563; p = 1.278e-10; n = 1,000 and 1,000)
    """
    pair = _read(reference, current, confidence_level)
    if not pair.n or not pair.m:
        return pair.undefined("psi")
    p = np.where(pair.reference > 0, pair.reference, 0.5) / pair.n
    q = np.where(pair.current > 0, pair.current, 0.5) / pair.m
    value = float(np.sum((q - p) * np.log(q / p)))
    law = _law(pair, "psi", value, pair.rate, pair.rate)
    definition = (
        "sum of (q - p) ln(q / p) over bins in use, half a count where one side is empty;"
        f" null law of the index over (1/n + 1/m): {law.origin}"
    )
    return pair.result("psi", value, law.mean, law.quantile, law.p_value, definition)


def _root_law(pair: _Pair, name: str, squared: float, unit: float, per_rate: float, definition: str) -> Divergence:
    """Result for a distance whose square is `unit` times chi-square where nothing has changed."""
    law = _law(pair, name, squared, unit, per_rate)
    mean = math.sqrt(law.mean)
    if pair.freedom and not is_sparse(name, pair.reference, pair.current):
        half = pair.freedom / 2
        mean = math.sqrt(2 * unit) * math.exp(math.lgamma(half + 0.5) - math.lgamma(half))
    value = math.sqrt(max(0.0, squared))
    return pair.result(name, value, mean, math.sqrt(law.quantile), law.p_value, f"{definition}; {law.origin}")


def jensen_shannon(reference: ArrayLike, current: ArrayLike, *, confidence_level: float = 0.95) -> Divergence:
    """Jensen-Shannon distance: the square root of the divergence in bits, in [0, 1]. No epsilon is needed.

    Args:
        reference: Counts of shape (b,), at least 0.
        current: Counts of shape (b,) over the same bins.
        confidence_level: Level of the null quantile, in (0, 1).

    Returns:
        The distance; its square has the null law (1/n + 1/m) / (8 ln 2) times chi-square, or a drawn one.

    Raises:
        InvalidInput: If a count is negative or not finite, or the lengths differ.

    Source: Lin, IEEE Transactions on Information Theory 1991; Endres & Schindelin, ibid. 2003.

    Example:
        >>> round(jensen_shannon([1, 2, 3, 4], [2, 2, 3, 3]).value, 6)
        0.132007
    """
    from scipy.special import xlogy

    pair = _read(reference, current, confidence_level)
    if not pair.n or not pair.m:
        return pair.undefined("jensen_shannon")
    p, q = pair.reference / pair.n, pair.current / pair.m
    middle = (p + q) / 2
    bits = float(np.sum(xlogy(p, p / middle) + xlogy(q, q / middle))) / 2 / math.log(2)
    definition = (
        "square root of the Jensen-Shannon divergence in bits; its square over (1/n + 1/m)/(8 ln 2) has the law"
    )
    unit = pair.rate / math.log(2)
    return _root_law(pair, "jensen_shannon", bits, unit / 8, unit, definition)


def hellinger(reference: ArrayLike, current: ArrayLike, *, confidence_level: float = 0.95) -> Divergence:
    """Hellinger distance: the Euclidean distance of the square roots of the shares over sqrt(2), in [0, 1].

    Args:
        reference: Counts of shape (b,), at least 0.
        current: Counts of shape (b,) over the same bins.
        confidence_level: Level of the null quantile, in (0, 1).

    Returns:
        The distance; its square has the null law (1/n + 1/m) / 8 times chi-square, or a drawn one.

    Raises:
        InvalidInput: If a count is negative or not finite, or the lengths differ.

    Source: Hellinger 1909; Le Cam & Yang, Asymptotics in Statistics, 2000.

    Example:
        >>> round(hellinger([1, 0], [0, 1]).value, 6)
        1.0
    """
    pair = _read(reference, current, confidence_level)
    if not pair.n or not pair.m:
        return pair.undefined("hellinger")
    squared = float(np.sum((np.sqrt(pair.reference / pair.n) - np.sqrt(pair.current / pair.m)) ** 2)) / 2
    definition = "sqrt of half the sum of (sqrt p - sqrt q) squared; its square over (1/n + 1/m)/8 has the law"
    return _root_law(pair, "hellinger", squared, pair.rate / 8, pair.rate, definition)


def _without_tiny(pair: _Pair) -> _Pair:
    """Puts the bins together that expect less than one, and with the smallest other one where that is not enough."""
    expected = expected_counts(pair.reference, pair.current)
    tiny = expected < 1
    if not tiny.any() or tiny.all():
        return pair
    if expected[tiny].sum() < 1:
        tiny[np.argmin(np.where(tiny, np.inf, expected))] = True
    r, c = (np.append(side[~tiny], side[tiny].sum()) for side in (pair.reference, pair.current))
    return _Pair(r, c, pair.n, pair.m, pair.level)


def chi_square(reference: ArrayLike, current: ArrayLike, *, confidence_level: float = 0.95) -> Divergence:
    """Pearson's two-sample chi-square statistic; it grows with the sizes, so it tests and does not measure.

    Args:
        reference: Counts of shape (b,), at least 0.
        current: Counts of shape (b,) over the same bins.
        confidence_level: Level of the null quantile, in (0, 1).

    Returns:
        The statistic; its null law is chi-square where the bins hold about five or more, else it is drawn. Where few
        bins expect less than one they are put together: a single observation in one of them, of a window that is much
        smaller than the reference, would else be an enormous value.

    Raises:
        InvalidInput: If a count is negative or not finite, or the lengths differ.

    Source: Pearson, Philosophical Magazine 1900; Cochran, Biometrics 1954, for bins that expect less than one.

    Example:
        >>> round(chi_square([10, 20], [20, 10]).value, 4)
        6.6667
    """
    pair = _read(reference, current, confidence_level)
    if not pair.n or not pair.m:
        return pair.undefined("chi_square")
    if not is_sparse("chi_square", pair.reference, pair.current):
        pair = _without_tiny(pair)
    gap = pair.reference / pair.n - pair.current / pair.m
    value = pair.n * pair.m * float(np.sum(gap**2 / (pair.reference + pair.current)))
    law = _law(pair, "chi_square", value, 1.0, 1.0)
    definition = f"Pearson statistic of the 2 x bins table; null law: {law.origin}"
    return pair.result("chi_square", value, law.mean, law.quantile, law.p_value, definition)


def _gap_law(pair: _Pair) -> GapLaw:
    # The larger side says almost all about the common shares, and is, as a rule, a frozen profile: its law is kept.
    larger, n = (pair.reference, pair.n) if pair.n >= pair.m else (pair.current, pair.m)
    below = np.cumsum(larger)[:-1] / n
    inside = below[(below > 0) & (below < 1)]
    if not len(inside):
        below = np.cumsum(pair.reference + pair.current)[:-1] / (pair.n + pair.m)
        inside = below
    return gap_law(tuple(inside.tolist()))


def ks(reference: ArrayLike, current: ArrayLike, *, confidence_level: float = 0.95) -> Divergence:
    """Kolmogorov-Smirnov distance: the largest gap between the two cumulated shares, over bins in ascending order.

    Args:
        reference: Counts of shape (b,), at least 0, in the order of the axis.
        current: Counts of shape (b,) over the same bins.
        confidence_level: Level of the null quantile, in (0, 1).

    Returns:
        The distance between the binned samples, at most that of the raw ones. The null law is that of a Brownian
        bridge looked at between the bins only (`null_laws.gap_law`); Kolmogorov's own would be too wide.

    Raises:
        InvalidInput: If a count is negative or not finite, or the lengths differ.

    Source: Smirnov, Bulletin Mathématique de l'Université de Moscou 1939.

    Example:
        >>> round(ks([5, 5, 0], [0, 5, 5]).value, 6)
        0.5
    """
    pair = _read(reference, current, confidence_level)
    if not pair.n or not pair.m:
        return pair.undefined("ks")
    definition = "largest gap of the cumulated shares at the edges of the bins; null law of a Brownian bridge there"
    if pair.freedom == 0:
        return pair.result("ks", 0.0, 0.0, 0.0, 1.0, definition)
    gap = np.cumsum(pair.reference) / pair.n - np.cumsum(pair.current) / pair.m
    value = float(np.abs(gap[:-1]).max())
    unit = math.sqrt(pair.rate)
    law = _gap_law(pair)
    p_value = law.p_value(value / unit)
    return pair.result("ks", value, unit * law.mean, unit * law.quantile(pair.level), p_value, definition)


def wasserstein(
    reference: ArrayLike,
    current: ArrayLike,
    *,
    positions: ArrayLike,
    scale: float = 1.0,
    confidence_level: float = 0.95,
) -> Divergence:
    """Wasserstein-1 distance: how far mass must move on average, in units of `scale`.

    Args:
        reference: Counts of shape (b,), at least 0.
        current: Counts of shape (b,) over the same bins.
        positions: Where each bin lies on the axis, shape (b,), such as `FrozenEdges.centers`; bins at NaN (null,
            infinities) have no place and are left out of shares and counts.
        scale: Positive unit of distance, such as `FrozenEdges.scale`; a standard deviation explodes for heavy tails.
        confidence_level: Level of the null quantile, in (0, 1).

    Returns:
        The distance between the mass at the positions. Its null law is that of the integral of a Brownian bridge,
        with the exact asymptotic mean and variance, as a gamma distribution.

    Raises:
        InvalidInput: If counts or positions do not fit, or the scale is not positive.

    Source: Vallender, Theory of Probability 1974; del Barrio, Giné & Matrán, Annals of Probability 1999.

    Example:
        >>> wasserstein([1, 1, 0], [0, 1, 1], positions=[0.0, 1.0, 2.0]).value
        1.0
    """
    from scipy.special import gammaincc, gammainccinv

    r, c = count_vectors(reference, current)
    places = np.asarray(positions, dtype=np.float64)
    if places.shape != r.shape:
        raise InvalidInput("positions", places.shape, f"have the shape {r.shape} of the counts")
    if not 0 < scale < math.inf:
        raise InvalidInput("scale", scale, "be positive and finite")
    placed = ~np.isnan(places)
    at = vector("positions", places[placed], finite=True)
    order = np.argsort(at, kind="stable")
    r, c, at = r[placed][order], c[placed][order], at[order]
    used = (r > 0) | (c > 0)
    r, c, at = r[used], c[used], at[used] / scale
    pair = _Pair(r, c, float(r.sum()), float(c.sum()), open_unit("confidence_level", confidence_level))
    if not pair.n or not pair.m:
        return pair.undefined("wasserstein")
    widths = np.diff(at)
    gap = np.cumsum(r)[:-1] / pair.n - np.cumsum(c)[:-1] / pair.m
    value = float(widths @ np.abs(gap))
    mean = variance = 0.0
    pooled = np.cumsum(r + c)[:-1] / (pair.n + pair.m)
    spread = np.sqrt(np.maximum(pooled * (1 - pooled), 0.0))
    if len(widths) and (widths * spread).any():
        # E|X||Y| of a bivariate normal with correlation a is (2/pi)(sqrt(1 - a^2) + a asin a).
        low, high = np.minimum.outer(pooled, pooled), np.maximum.outer(pooled, pooled)
        product = np.outer(spread, spread)
        a = np.minimum(low * (1 - high) / np.where(product > 0, product, 1.0), 1.0)
        covariance = 2 / math.pi * (np.sqrt(1 - a**2) + a * np.arcsin(a) - 1)
        weights = widths * spread
        mean = math.sqrt(2 / math.pi * pair.rate) * float(weights.sum())
        variance = pair.rate * float(weights @ covariance @ weights)
    quantile, p_value = 0.0, 1.0
    if variance > 0:
        shape, unit = mean**2 / variance, variance / mean
        quantile = unit * float(gammainccinv(shape, 1 - pair.level))
        p_value = float(gammaincc(shape, value / unit))
    definition = (
        f"integral of the gap of the cumulated shares, in units of {scale:.6g}; gamma null law of equal moments"
    )
    return pair.result("wasserstein", value, mean, quantile, p_value, definition)
