"""Rounding and noise on what a model says, for who does not need its last digits.

**Neither stops extraction.** A student trained on what a model answers learns as much from rounded or noisy answers,
and nearly as much from bare labels: measured on a model of ours in bench/serving/guard_extraction.py and told in
docs/guard.md. What counts is how many different rows somebody may ask (`Limit(2_000, "30d")`) and seeing that they
do not look like traffic (`ExtractionWatch`). Noise makes single answers less exact, which spoils attacks
that read small differences (whether a row was in the training data, where a boundary is).

Noise is drawn from a hash of a secret, the model version and the input, so asking again gives the same answer and
does not average it away; inputs that are alike to a few digits share theirs, so that a tiny change does not draw anew.

About 4 us a row in batches of ten (bench/serving/guard_parts.py).
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import labels_and_probabilities, vector

Floats = NDArray[np.float64]


def rounded(probability: ArrayLike, decimals: int) -> Floats:
    """Rounds probabilities.

    Args:
        probability: Any shape, in [0, 1].
        decimals: How many digits after the point, 1 to 15.

    Raises:
        InvalidInput: If `decimals` is out of range.

    Example:
        >>> rounded([0.12345, 0.98765], 2).tolist()
        [0.12, 0.99]
    """
    if not 1 <= decimals <= 15:
        raise InvalidInput("decimals", decimals, "be from 1 to 15")
    p: Floats = np.asarray(probability, dtype=np.float64)
    return p.round(decimals)


class KeyedNoise:
    """Adds normal noise to the log-odds of a probability, the same for the same input.

    In log-odds, so that a probability of 0.001 is moved as much as its size bears; 0 and 1 stay. Where `thresholds`
    are given, no probability is moved across one: whoever compares the answer with them decides as before.

    Args:
        key: A secret of 16 to 64 bytes, the same in all processes.
        scale: Standard deviation in log-odds; `scale_for` finds one by what it may cost.
        thresholds: Probabilities at which something is decided, each in (0, 1).
        digits: Inputs whose values agree to so many significant digits share their noise, 1 to 15. Fewer make it
            harder to average over neighbours.
        model_version: Goes into the hash, so that a new version draws anew.

    Raises:
        InvalidInput: If a value is out of range.

    Example:
        >>> noise = KeyedNoise(b"a secret of sixteen bytes", scale=0.2, thresholds=[0.5])
        >>> X = [[1.0, 2.0], [3.0, 4.0]]
        >>> first, second = noise.apply([0.3, 0.3], X), noise.apply([0.3, 0.3], X)
        >>> bool((first == second).all()), bool(first[0] != first[1])
        (True, True)
    """

    def __init__(
        self,
        key: bytes,
        *,
        scale: float,
        thresholds: Sequence[float] = (),
        digits: int = 3,
        model_version: str = "",
    ) -> None:
        if not 16 <= len(key) <= 64:
            raise InvalidInput("key", f"{len(key)} bytes", "have 16 to 64 bytes")
        if not 0 <= scale < 100:
            raise InvalidInput("scale", scale, "be at least 0 and below 100")
        if not 1 <= digits <= 15:
            raise InvalidInput("digits", digits, "be from 1 to 15")
        if any(not 0 < threshold < 1 for threshold in thresholds):
            raise InvalidInput("thresholds", thresholds, "be strictly between 0 and 1")
        self.scale, self.digits = float(scale), digits
        self._cuts = np.array(sorted({0.0, 1.0, *thresholds}))
        self._hash = blake2b(model_version.encode(), key=key, digest_size=8)

    def apply(self, probability: ArrayLike, X: ArrayLike) -> Floats:
        """Returns noisy probabilities.

        Args:
            probability: Shape (n,), in [0, 1].
            X: Shape (n, f), the inputs that they answer.

        Raises:
            InvalidInput: If the shapes do not fit or a probability is out of range.
        """
        from scipy.special import expit, logit, ndtri

        p = vector("probability", probability)
        rows = _alike(np.asarray(X, dtype=np.float64), self.digits)
        if rows.ndim != 2 or len(rows) != len(p):
            raise InvalidInput("X", rows.shape, f"have the shape ({len(p)}, f)")
        if len(p) and ((p < 0) | (p > 1)).any():
            raise InvalidInput("probability", (float(p.min()), float(p.max())), "be in [0, 1]")
        if not self.scale or not len(p):
            return p.copy()
        z = ndtri(self._uniform(rows))
        noisy = expit(logit(p) + self.scale * z)
        cell = np.minimum(np.searchsorted(self._cuts, p, side="right"), len(self._cuts) - 1)
        low, high = self._cuts[cell - 1], self._cuts[cell]
        # Mirrored where it would cross, so that nothing gathers at a threshold and tells of it. At 0 and 1 the
        # log-odds are infinite and no mirror helps: these stay what they are.
        with np.errstate(invalid="ignore"):
            mirror = expit(2 * logit(np.where(noisy < low, low, high)) - logit(noisy))
        noisy = np.where((noisy < low) | (noisy >= high), mirror, noisy)
        return np.where((noisy >= low) & (noisy < high), noisy, p)

    def _uniform(self, rows: Floats) -> Floats:
        width = rows.shape[1] * rows.itemsize
        raw, base, out = rows.tobytes(), self._hash, bytearray()
        for start in range(0, len(raw), width) if width else [0] * len(rows):
            one = base.copy()
            one.update(raw[start : start + width])
            out += one.digest()
        # 53 bits in the middle of their cells: never 0 and never 1.
        drawn = np.frombuffer(out, dtype="<u8") >> np.uint64(11)
        return (drawn.astype(np.float64) + 0.5) * 2.0**-53


def scale_for(y: ArrayLike, probability: ArrayLike, *, max_rise: float = 0.01) -> float:
    """Finds the largest scale of noise whose expected rise in log loss stays within a bound.

    Args:
        y: Labels, shape (n,).
        probability: Calibrated probabilities, shape (n,).
        max_rise: Share by which the mean log loss may rise, above 0.

    Returns:
        The scale in log-odds; the expectation over the noise is by Gauss-Hermite quadrature with 21 nodes.

    Raises:
        InvalidInput: If there are no rows, or the bound is not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(1, 5, 20_000)
        >>> 0.1 < scale_for(rng.random(20_000) < p, p, max_rise=0.01) < 0.5
        True
    """
    flags, p = labels_and_probabilities(y, probability)
    if not len(p):
        raise InvalidInput("probability", [], "hold at least one value")
    if not max_rise > 0:
        raise InvalidInput("max_rise", max_rise, "be above 0")
    from scipy.special import logit

    odds = logit(np.clip(p, 1e-15, 1 - 1e-15))
    sign = np.where(flags, -1.0, 1.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()

    def loss(scale: float) -> float:
        each = (float(np.logaddexp(0.0, sign * (odds + scale * node)).mean()) for node in nodes)
        return float(sum(weight * one for weight, one in zip(weights, each, strict=True)))

    allowed = loss(0.0) * (1 + max_rise)
    low, high = 0.0, 8.0
    if loss(high) <= allowed:
        return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) <= allowed else (low, middle)
    return low


def _alike(X: Floats, digits: int) -> Floats:
    """Rounds to significant digits; all NaN become one, and -0 becomes 0."""
    finite = np.isfinite(X) & (X != 0)
    size = np.floor(np.log10(np.abs(np.where(finite, X, 1.0))))
    step = 10.0 ** (size - digits + 1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        short = np.rint(X / step) * step
    short = np.where(finite & np.isfinite(short), short, X) + 0.0
    short[np.isnan(short)] = np.nan
    return np.ascontiguousarray(short)
