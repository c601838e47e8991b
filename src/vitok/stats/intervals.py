"""Intervals for one rate or one mean at one look; for repeated looks see `confidence_sequences`."""

import math
from numbers import Real
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import open_unit, vector
from vitok.stats.results import Estimate


def normal_quantile(confidence_level: float) -> float:
    """Returns the two-sided normal quantile z of a confidence level.

    Example:
        >>> round(normal_quantile(0.95), 4)
        1.96
    """
    return NormalDist().inv_cdf(0.5 + open_unit("confidence_level", confidence_level) / 2)


def _check_rate(successes: float, n_obs: int) -> None:
    if not isinstance(n_obs, Real) or n_obs < 0 or n_obs != int(n_obs):
        raise InvalidInput("n_obs", n_obs, "be a whole number of at least 0")
    if not isinstance(successes, Real) or not 0 <= successes <= n_obs:
        raise InvalidInput("successes", successes, f"be between 0 and n_obs = {n_obs}")


def clopper_pearson(successes: int, n_obs: int, *, confidence_level: float = 0.95) -> Estimate:
    """Exact two-sided interval for a rate: covers at least at its level for every true rate.

    Args:
        successes: Number of successes, 0 to `n_obs`.
        n_obs: Number of trials; with 0 trials the value is NaN and the interval [0, 1].
        confidence_level: Level, in (0, 1).

    Returns:
        The rate and its interval.

    Raises:
        InvalidInput: If the counts are impossible.

    Source: Clopper & Pearson, Biometrika 1934.

    Example:
        >>> print(clopper_pearson(598, 598))
        rate 1 (95 % interval 0.9939 to 1, n = 598)
    """
    from scipy.special import betaincinv

    _check_rate(successes, n_obs)
    alpha = 1 - open_unit("confidence_level", confidence_level)
    lower = float(betaincinv(successes, n_obs - successes + 1, alpha / 2)) if successes > 0 else 0.0
    upper = float(betaincinv(successes + 1, n_obs - successes, 1 - alpha / 2)) if successes < n_obs else 1.0
    return Estimate(
        name="rate",
        value=successes / n_obs if n_obs else math.nan,
        lower=lower,
        upper=upper,
        n_obs=int(n_obs),
        confidence_level=confidence_level,
        definition="share of successes, Clopper-Pearson interval" if n_obs else "no trials",
    )


def clopper_pearson_lower(successes: int, n_obs: int, *, confidence_level: float = 0.95) -> Estimate:
    """Exact one-sided lower bound for a rate; the upper end is 1.

    This is the bound to publish for the precision of an automatic block, not the point estimate.

    Args:
        successes: Number of successes, 0 to `n_obs`.
        n_obs: Number of trials.
        confidence_level: One-sided level, in (0, 1).

    Returns:
        The rate with its lower bound.

    Raises:
        InvalidInput: If the counts are impossible.

    Source: Clopper & Pearson, Biometrika 1934.

    Example:
        >>> clopper_pearson_lower(598, 598).lower >= 0.995
        True
    """
    if confidence_level <= 0.5:
        raise InvalidInput("confidence_level", confidence_level, "be above 0.5 for a one-sided bound")
    two_sided = clopper_pearson(
        successes, n_obs, confidence_level=2 * open_unit("confidence_level", confidence_level) - 1
    )
    return Estimate(
        name="rate",
        value=two_sided.value,
        lower=two_sided.lower,
        upper=1.0,
        n_obs=int(n_obs),
        confidence_level=confidence_level,
        definition="share of successes, one-sided Clopper-Pearson lower bound" if n_obs else "no trials",
    )


def trials_needed(rate: float, *, failures: int = 0, confidence_level: float = 0.95) -> int:
    """Says how many trials show that a rate is at least `rate`, if `failures` of them fail.

    Args:
        rate: The rate to be shown, in (0, 1).
        failures: Failures among the trials, at least 0.
        confidence_level: One-sided level, in (0, 1).

    Returns:
        The smallest number of trials whose one-sided Clopper-Pearson lower bound reaches `rate`.

    Raises:
        InvalidInput: If an argument is outside its range.

    Source: inversion of Clopper & Pearson 1934.

    Example:
        >>> trials_needed(0.995)
        598
    """
    from scipy.special import bdtr

    open_unit("rate", rate)
    alpha = 1 - open_unit("confidence_level", confidence_level)
    if failures < 0 or failures != int(failures):
        raise InvalidInput("failures", failures, "be a whole number of at least 0")

    def shown(n: int) -> bool:
        return float(bdtr(failures, n, 1 - rate)) <= alpha

    high = failures + 1
    while not shown(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def wilson(successes: float, n_obs: int, *, confidence_level: float = 0.95) -> Estimate:
    """Score interval for a rate: right on average where Clopper-Pearson is too wide; never leaves [0, 1].

    Args:
        successes: Number of successes, 0 to `n_obs`; a fraction is allowed where ties are shared out.
        n_obs: Number of trials; with 0 trials the value is NaN and the interval [0, 1].
        confidence_level: Level, in (0, 1).

    Returns:
        The rate and its interval.

    Raises:
        InvalidInput: If the counts are impossible.

    Source: Wilson, JASA 1927.

    Example:
        >>> print(wilson(3, 40))
        rate 0.075 (95 % interval 0.02584 to 0.1986, n = 40)
    """
    _check_rate(successes, n_obs)
    z = normal_quantile(confidence_level)
    if n_obs == 0:
        value, lower, upper = math.nan, 0.0, 1.0
    else:
        value = successes / n_obs
        shrunk = 1 + z * z / n_obs
        centre = (value + z * z / (2 * n_obs)) / shrunk
        half = z / shrunk * math.sqrt(value * (1 - value) / n_obs + z * z / (4 * n_obs * n_obs))
        lower = 0.0 if successes == 0 else max(0.0, centre - half)
        upper = 1.0 if successes == n_obs else min(1.0, centre + half)
    return Estimate(
        name="rate",
        value=value,
        lower=lower,
        upper=upper,
        n_obs=int(n_obs),
        confidence_level=confidence_level,
        definition="share of successes, Wilson score interval" if n_obs else "no trials",
    )


def mean_interval_from_moments(
    *, mean: float, variance: float, n_obs: int, confidence_level: float = 0.95, name: str = "mean"
) -> Estimate:
    """Student's t interval for a mean from running sums; the normal interval is its limit for many observations.

    Args:
        mean: Sample mean.
        variance: Sample variance with divisor n - 1, at least 0; not read where `n_obs` is below 2.
        n_obs: Number of observations.
        confidence_level: Level, in (0, 1).
        name: Name of the estimate.

    Returns:
        The mean and its interval; from 0 or 1 observation the interval is (-inf, inf).

    Raises:
        InvalidInput: If the variance is negative or NaN.

    Source: Student, Biometrika 1908.

    Example:
        >>> print(mean_interval_from_moments(mean=2.0, variance=1.0, n_obs=3))
        mean 2 (95 % interval -0.4841 to 4.484, n = 3)
    """
    from scipy.special import stdtrit

    level = open_unit("confidence_level", confidence_level)
    if n_obs < 2:
        return Estimate(
            name=name,
            value=mean if n_obs == 1 else math.nan,
            lower=-math.inf,
            upper=math.inf,
            n_obs=n_obs,
            confidence_level=level,
            definition="mean; one observation has no interval" if n_obs == 1 else "no observations",
        )
    if not variance >= 0:
        raise InvalidInput("variance", variance, "be at least 0")
    half = float(stdtrit(n_obs - 1, 0.5 + level / 2)) * math.sqrt(variance / n_obs)
    return Estimate(
        name=name,
        value=mean,
        lower=mean - half,
        upper=mean + half,
        n_obs=n_obs,
        confidence_level=level,
        definition="mean, Student t interval over independent observations",
    )


def mean_interval(values: ArrayLike, *, confidence_level: float = 0.95, name: str = "mean") -> Estimate:
    """Student's t interval for the mean of independent observations.

    Args:
        values: Finite numbers of shape (n,).
        confidence_level: Level, in (0, 1).
        name: Name of the estimate.

    Returns:
        The mean and its interval; see `mean_interval_from_moments` for fewer than two values.

    Raises:
        InvalidInput: If a value is not finite.

    Source: Student, Biometrika 1908.

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        mean 2 (95 % interval -0.4841 to 4.484, n = 3)
    """
    array = vector("values", values, finite=True)
    n_obs = len(array)
    return mean_interval_from_moments(
        mean=float(array.mean()) if n_obs else math.nan,
        variance=float(np.var(array, ddof=1)) if n_obs > 1 else math.nan,
        n_obs=n_obs,
        confidence_level=confidence_level,
        name=name,
    )
