"""Means of rows that stand for more than themselves: importance weights, inverse propensities, sampling weights."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit, vector
from vitok.stats.results import Estimate


@dataclass(frozen=True, kw_only=True)
class WeightedEstimate(Estimate):
    """A weighted mean.

    Attributes:
        n_effective: Rows of equal weight that would say as much: squared sum of weights over their sum of squares.
    """

    n_effective: float


def weights_of(field: str, weight: ArrayLike | None, n: int) -> Floats:
    """Reads weights of n rows: finite, at least 0, not all 0; None gives ones.

    Raises:
        InvalidInput: If they are not.

    Example:
        >>> weights_of("weight", None, 2)
        array([1., 1.])
    """
    if weight is None:
        return np.ones(n)
    found = vector(field, weight, finite=True)
    if len(found) != n:
        raise InvalidInput(field, found.shape, f"have the shape ({n},), one for each row")
    if (found < 0).any():
        at = int(np.argmax(found < 0))
        raise InvalidInput(f"{field}[{at}]", float(found[at]), "be at least 0")
    if n and not found.any():
        raise InvalidInput(field, 0.0, "be above 0 for at least one row")
    return found


def effective_sample_size(weight: ArrayLike) -> float:
    """Returns how many rows of equal weight say as much as these (Kish): 0 without rows, or where all are 0.

    Example:
        >>> effective_sample_size([1.0, 1.0, 2.0])
        2.6666666666666665
    """
    w = vector("weight", weight, finite=True)
    largest = float(np.abs(w).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    # Squares of tiny or huge weights would leave the range of numbers.
    w = w / largest
    return float(w.sum()) ** 2 / float(w @ w)


def weighted_mean_interval(
    values: ArrayLike, weight: ArrayLike, *, confidence_level: float = 0.95, name: str = "mean"
) -> WeightedEstimate:
    """Mean of independent rows by self-normalised weights (Hájek), with an interval.

    Args:
        values: Finite numbers of shape (n,).
        weight: Weights of shape (n,), at least 0, not all 0; their scale does not matter.
        confidence_level: Level, in (0, 1).
        name: Name of the estimate.

    Returns:
        The mean. The variance is that of the linearised ratio, and Student's t is taken with one degree of freedom
        less than the effective sample size. Below two effective rows the interval is (-inf, inf).

    Raises:
        InvalidInput: If a value is not finite or a weight is negative.

    Source: Hájek 1971; Kish, Survey Sampling, 1965.

    Example:
        >>> print(weighted_mean_interval([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]))
        mean 2 (95 % interval -0.4841 to 4.484, n = 3)
    """
    from scipy.special import stdtrit

    x = vector("values", values, finite=True)
    w = weights_of("weight", weight, len(x))
    w = w / w.max(initial=0.0) if len(w) else w
    level = open_unit("confidence_level", confidence_level)
    total, n_effective = float(w.sum()), effective_sample_size(w)
    mean = float(w @ x) / total if len(x) else math.nan
    lower, upper = -math.inf, math.inf
    if n_effective > 1 + 1e-9:
        spread = float((w**2) @ (x - mean) ** 2) / total**2 * n_effective / (n_effective - 1)
        half = float(stdtrit(n_effective - 1, 0.5 + level / 2)) * math.sqrt(spread)
        lower, upper = mean - half, mean + half
    definition = f"self-normalised weighted mean, t interval at {n_effective:.4g} effective rows"
    return WeightedEstimate(
        name=name,
        value=mean,
        lower=lower,
        upper=upper,
        n_obs=len(x),
        confidence_level=level,
        definition=definition if len(x) else "no rows",
        n_effective=n_effective,
    )
