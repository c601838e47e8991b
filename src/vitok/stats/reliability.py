"""The reliability diagram without bins: isotonic recalibration, and the band in which a calibrated model would stay."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, labels_and_probabilities, open_unit, positive_integer
from vitok.stats.calibration import BrierDecomposition, brier_decomposition
from vitok.stats.ranking import roc_auc
from vitok.stats.results import Estimate, Result

_MOST_PLACES = 10_000


@dataclass(frozen=True, kw_only=True)
class ReliabilityDiagram(Result):
    """What a probability turned out to mean, with the band that pure chance explains, and how well it ranks.

    Attributes:
        probability: Points on the axis, ascending: forecast probabilities.
        recalibrated: Isotonic frequency at each point.
        lower: Lower end of the consistency band at each point.
        upper: Upper end.
        outside: Share of the rows whose recalibrated frequency lies outside the band; about one less the level, or
            less, for a calibrated model. Beyond 10,000 distinct probabilities, of 10,000 of them.
        score: The Brier score and its exact parts.
        discrimination: Area under the ROC curve: a calibrated model may rank badly, and one that ranks well may be
            off.
        n_obs: Rows.
        confidence_level: Level of the band at each point on its own.
    """

    probability: tuple[float, ...]
    recalibrated: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    outside: float
    score: BrierDecomposition
    discrimination: Estimate
    n_obs: int
    confidence_level: float

    def __str__(self) -> str:
        lines = [
            f"{p:11.4g}  {f:12.4g}  {low:.4g} to {high:.4g}{'' if low <= f <= high else '  outside'}"
            for p, f, low, high in zip(self.probability, self.recalibrated, self.lower, self.upper, strict=True)
        ]
        tail = [str(self.score), str(self.discrimination)]
        return "\n".join(["probability  recalibrated  band", *lines, *tail])


def _spread(n: int, most: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(np.intp))


def _isotonic(y: Floats, weight: Floats) -> Floats:
    from scipy.optimize import isotonic_regression

    found: Floats = isotonic_regression(y, weights=weight).x
    return found


def reliability_diagram(
    y: ArrayLike,
    probability: ArrayLike,
    *,
    n_points: int = 50,
    n_draws: int = 200,
    confidence_level: float = 0.9,
    seed: int = 0,
) -> ReliabilityDiagram:
    """Recalibrates by isotonic regression and draws labels from the probabilities to see what chance would do.

    Args:
        y: Labels of shape (n,), bool or 0 and 1.
        probability: Shape (n,), in [0, 1].
        n_points: At most so many points are kept, at quantiles of the distinct probabilities, at least 2.
        n_draws: Draws for the band, at least 20.
        confidence_level: Level of the band, in (0, 1).
        seed: Of the draws.

    Returns:
        The diagram; no points without rows.

    Raises:
        InvalidInput: If shapes differ, a value is out of range, or there are too few points or draws.

    Source: CORP of Dimitriadis, Gneiting & Jordan, PNAS 2021, with their consistency bands by resampling.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.random(2_000)
        >>> bool(reliability_diagram(rng.random(2_000) < p, p).outside < 0.3)
        True
        >>> reliability_diagram(rng.random(2_000) < p**3, p).outside > 0.7
        True
    """
    flags, p = labels_and_probabilities(y, probability)
    level = open_unit("confidence_level", confidence_level)
    if positive_integer("n_points", n_points) < 2 or n_draws < 20:
        raise InvalidInput("n_points and n_draws", (n_points, n_draws), "be at least 2 and 20")
    score, discrimination = brier_decomposition(flags, p), roc_auc(flags, p)
    if len(p) == 0:
        return ReliabilityDiagram(
            probability=(),
            recalibrated=(),
            lower=(),
            upper=(),
            outside=math.nan,
            score=score,
            discrimination=discrimination,
            n_obs=0,
            confidence_level=level,
        )
    distinct, group = np.unique(p, return_inverse=True)
    n = np.bincount(group).astype(np.float64)
    fitted = _isotonic(np.bincount(group, weights=flags) / n, n)
    rng = np.random.default_rng(seed)
    # Positives among rows of one probability are binomial: one draw a distinct value.
    shown = _spread(len(distinct), n_points)
    # Every draw at every distinct probability of a million rows would take gigabytes.
    kept = np.union1d(_spread(len(distinct), _MOST_PLACES), shown)
    draws = np.array([_isotonic(rng.binomial(n.astype(np.int64), distinct) / n, n)[kept] for _ in range(n_draws)])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    out = (fitted[kept] < low - 1e-12) | (fitted[kept] > high + 1e-12)
    place = np.searchsorted(kept, shown)
    return ReliabilityDiagram(
        probability=tuple(distinct[shown].tolist()),
        recalibrated=tuple(fitted[shown].tolist()),
        lower=tuple(low[place].tolist()),
        upper=tuple(high[place].tolist()),
        outside=float(n[kept] @ out / n[kept].sum()),
        score=score,
        discrimination=discrimination,
        n_obs=len(p),
        confidence_level=level,
    )
