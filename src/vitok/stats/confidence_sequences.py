"""Intervals that hold at every look at once: stop, go on or act whenever you like, the error stays at its level.

A fixed-size interval looked at sixty times fails far more often than it says. These do not: the chance that the truth
is ever outside, over all looks together, is at most one less the confidence level.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, open_unit, positive_integer, same_length, vector
from vitok.stats.results import Estimate

_BISECTIONS = 50


def mean_sequence(
    *, n_obs: int, mean: float, variance: float, tuned_for: int, confidence_level: float = 0.95, name: str = "mean"
) -> Estimate:
    """Asymptotic confidence sequence for a mean, from running sums.

    Args:
        n_obs: Observations so far.
        mean: Their mean.
        variance: Their variance, at least 0.
        tuned_for: Number of observations at which the interval is tightest; fix it before the first look.
        confidence_level: Level over all looks, in (0, 1).
        name: Name of the estimate.

    Returns:
        The mean and its interval now: about 1.5 times as wide as a single-look interval near `tuned_for`. The
        promise is asymptotic: begin to look once there are some dozens of observations of ordinary tails. Without
        observations the interval is (-inf, inf).

    Raises:
        InvalidInput: If the variance is negative or NaN, or a size is below its least.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, Time-uniform central limit theory and asymptotic
    confidence sequences, Annals of Statistics 2024.

    Example:
        >>> print(mean_sequence(n_obs=1000, mean=0.5, variance=0.25, tuned_for=1000))
        mean 0.5 (95 % interval 0.452 to 0.548, n = 1,000)
    """
    alpha = 1 - open_unit("confidence_level", confidence_level)
    positive_integer("tuned_for", tuned_for)
    if n_obs < 0:
        raise InvalidInput("n_obs", n_obs, "be at least 0")
    if n_obs and not 0 <= variance < math.inf:
        raise InvalidInput("variance", variance, "be finite and at least 0")
    if n_obs == 0:
        value, half, definition = math.nan, math.inf, "no observations"
    else:
        value = mean
        cost = -2 * math.log(alpha)
        mixed = n_obs * (cost + math.log(cost + 1)) / tuned_for + 1
        half = math.sqrt(variance * 2 * mixed / (n_obs * (mixed - 1)) * math.log(math.sqrt(mixed) / alpha))
        definition = f"mean, asymptotic confidence sequence by a Gaussian mixture tuned for n = {tuned_for:,}"
    return Estimate(
        name=name,
        value=value,
        lower=value - half if n_obs else -math.inf,
        upper=value + half if n_obs else math.inf,
        n_obs=n_obs,
        confidence_level=confidence_level,
        definition=definition,
    )


def bounded_mean_sequence(values: ArrayLike, *, confidence_level: float = 0.95, name: str = "mean") -> Estimate:
    """Confidence sequence for the mean of values in [0, 1], without any assumption on their law.

    Args:
        values: Shape (n,), in [0, 1], in the order in which they came; rescale other bounded values first.
        confidence_level: Level over all looks, in (0, 1).
        name: Name of the estimate.

    Returns:
        The mean and the intersection of the intervals at 1, 2, ..., n: valid at every n for independent values or
        any values with a constant conditional mean. The value is moved into the interval where it lies outside.
        Without values the interval is [0, 1].

    Raises:
        InvalidInput: If a value is NaN or outside [0, 1].

    Source: predictable plug-in empirical Bernstein of Waudby-Smith & Ramdas, Estimating means of bounded random
    variables by betting, JRSS B 2024.

    Example:
        >>> bounded_mean_sequence(np.tile([0.4, 0.6], 500)).lower > 0.45
        True
    """
    x = vector("values", values)
    alpha = 1 - open_unit("confidence_level", confidence_level)
    if ((x < 0) | (x > 1)).any():
        at = int(np.argmax((x < 0) | (x > 1)))
        raise InvalidInput(f"values[{at}]", float(x[at]), "be in [0, 1]", "Divide by the largest possible value")
    n = len(x)
    if n == 0:
        return Estimate(
            name=name,
            value=math.nan,
            lower=0.0,
            upper=1.0,
            n_obs=0,
            confidence_level=confidence_level,
            definition="no observations",
        )
    t = np.arange(1, n + 1)
    means = (0.5 + np.cumsum(x)) / (t + 1)
    variances = (0.25 + np.cumsum((x - means) ** 2)) / (t + 1)
    # Each bet rests on what was seen before it: shifted by one.
    mean_before = np.concatenate(([0.5], means[:-1]))
    variance_before = np.concatenate(([0.25], variances[:-1]))
    bet = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (variance_before * t * np.log1p(t))), 0.5)
    cost = 4 * (x - mean_before) ** 2 * (-np.log1p(-bet) - bet) / 4
    total = np.cumsum(bet)
    centre = np.cumsum(bet * x) / total
    half = (math.log(2 / alpha) + np.cumsum(cost)) / total
    lower = max(0.0, float((centre - half).max()))
    upper = min(1.0, float((centre + half).min()))
    return Estimate(
        name=name,
        value=min(max(float(x.mean()), lower), upper),
        lower=lower,
        upper=upper,
        n_obs=n,
        confidence_level=confidence_level,
        definition="mean of values in [0, 1], empirical Bernstein confidence sequence with running intersection",
    )


def rate_sequence(*, successes: int, n_obs: int, confidence_level: float = 0.95, name: str = "rate") -> Estimate:
    """Exact confidence sequence for a rate, from running counts.

    Args:
        successes: Successes so far, 0 to `n_obs`.
        n_obs: Trials so far.
        confidence_level: Level over all looks, in (0, 1).
        name: Name of the estimate.

    Returns:
        The rate and its interval now: the rates that a beta-binomial mixture with Jeffreys' prior does not refute.
        Without trials the interval is [0, 1].

    Raises:
        InvalidInput: If the counts are impossible.

    Source: Robbins, Annals of Mathematical Statistics 1970; Howard, Ramdas, McAuliffe & Sekhon, Annals of
    Statistics 2021.

    Example:
        >>> print(rate_sequence(successes=20, n_obs=1000))
        rate 0.02 (95 % interval 0.007819 to 0.04064, n = 1,000)
    """
    from scipy.special import betaln, xlog1py, xlogy

    if n_obs < 0 or not 0 <= successes <= n_obs:
        raise InvalidInput("successes", successes, f"be between 0 and n_obs = {n_obs}")
    alpha = 1 - open_unit("confidence_level", confidence_level)
    value = successes / n_obs if n_obs else math.nan
    failures = n_obs - successes
    allowed = float(betaln(successes + 0.5, failures + 0.5) - betaln(0.5, 0.5)) + math.log(alpha)

    def refuted(rate: float) -> bool:
        return float(xlogy(successes, rate) + xlog1py(failures, -rate)) <= allowed

    ends = []
    for outside in (0.0, 1.0):
        out, inside = outside, value
        if n_obs and refuted(outside):
            for _ in range(_BISECTIONS):
                middle = (out + inside) / 2
                out, inside = (middle, inside) if refuted(middle) else (out, middle)
        ends.append(out)
    return Estimate(
        name=name,
        value=value,
        lower=ends[0],
        upper=ends[1],
        n_obs=n_obs,
        confidence_level=confidence_level,
        definition="share of successes, beta-binomial mixture confidence sequence" if n_obs else "no trials",
    )


def log_evidence_step(
    *,
    bounds: Floats,
    successes_a: Floats,
    n_a: Floats,
    successes_b: Floats,
    n_b: Floats,
    before: tuple[Floats, Floats, Floats, Floats],
) -> Floats:
    """Returns what blocks add to the log e-values against "rate of b less rate of a is at most the bound".

    Args:
        bounds: Shape (d,), each in (-1, 1).
        successes_a: Successes of a in each block, shape (b,).
        n_a: Trials of a.
        successes_b: Successes of b.
        n_b: Trials of b.
        before: The sums of the four over the blocks before each; the bets rest on them.

    Returns:
        Shape (d, b); 0 where nothing is bet: in the first block, of which nothing is known, and where the bet itself
        satisfies the null.
    """
    # Each arm is pulled towards the pooled rate by one success's worth of rows: an arm of which little is known would
    # otherwise lose its evidence in one wild bet.
    pooled = (before[0] + before[2] + 0.5) / (before[1] + before[3] + 1)
    bet_a = ((before[0] + 1) / (before[1] + 1 / pooled))[None, :]
    bet_b = ((before[2] + 1) / (before[3] + 1 / pooled))[None, :]
    d = bounds[:, None]
    rows_a, rows_b = n_a[None, :], n_b[None, :]
    low = np.maximum(0.0, -d) + np.zeros_like(bet_a)
    high = np.minimum(1.0, 1.0 - d) + np.zeros_like(bet_a)
    # The null law nearest to the bet lies on the line b = a + d; its place solves a monotone equation.
    for _ in range(_BISECTIONS):
        at = (low + high) / 2
        moved = at + d
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = rows_a * (at - bet_a) / (at * (1 - at)) + rows_b * (moved - bet_b) / (moved * (1 - moved))
        rising = slope > 0
        high = np.where(rising, at, high)
        low = np.where(rising, low, at)
    at = np.clip((low + high) / 2, 1e-15, 1 - 1e-15)
    moved = np.clip((low + high) / 2 + d, 1e-15, 1 - 1e-15)
    gain = (
        successes_a * np.log(bet_a / at)
        + (n_a - successes_a) * np.log((1 - bet_a) / (1 - at))
        + successes_b * np.log(bet_b / moved)
        + (n_b - successes_b) * np.log((1 - bet_b) / (1 - moved))
    )
    return np.where((bet_b - bet_a > d) & (before[1] + before[3] > 0), gain, 0.0)


class _Blocks:
    """Evidence, look by look, that the difference of two rates exceeds a given one."""

    def __init__(self, successes_a: Floats, n_a: Floats, successes_b: Floats, n_b: Floats) -> None:
        self.parts = (successes_a, n_a, successes_b, n_b)

    def swapped(self) -> "_Blocks":
        return _Blocks(*self.parts[2:], *self.parts[:2])

    def log_evidence(self, bounds: Floats) -> Floats:
        """Returns the largest log e-value over the looks so far against "b - a <= bound", for each bound in (-1, 1)."""
        successes_a, n_a, successes_b, n_b = self.parts
        sums = [np.concatenate(([0.0], np.cumsum(part)[:-1])) for part in self.parts]
        steps = log_evidence_step(
            bounds=bounds,
            successes_a=successes_a,
            n_a=n_a,
            successes_b=successes_b,
            n_b=n_b,
            before=(sums[0], sums[1], sums[2], sums[3]),
        )
        return np.asarray(np.cumsum(steps, axis=1).max(axis=1))


def _lower_bound(blocks: _Blocks, allowed: float) -> float:
    """Smallest d for which "b - a <= d" is not refuted: a lower bound of the difference, -1 at least."""
    # Denser near 0, where the differences of interest are: error rates are small.
    grid = np.tanh(np.linspace(-4.0, 4.0, 257)) * np.abs(np.tanh(np.linspace(-4.0, 4.0, 257)))
    standing = np.flatnonzero(blocks.log_evidence(grid) < allowed)
    first = int(standing[0]) if len(standing) else len(grid)
    refuted = float(grid[first - 1]) if first > 0 else -1.0
    stands = float(grid[first]) if first < len(grid) else 1.0
    if first == 0:
        return -1.0
    for _ in range(4):
        finer = np.linspace(refuted, stands, 18)[1:-1]
        standing = np.flatnonzero(blocks.log_evidence(finer) < allowed)
        first = int(standing[0]) if len(standing) else len(finer)
        refuted, stands = (
            float(finer[first - 1]) if first > 0 else refuted,
            float(finer[first]) if first < len(finer) else stands,
        )
    return refuted


def rate_difference_sequence(
    *,
    control_successes: ArrayLike,
    control_n: ArrayLike,
    treatment_successes: ArrayLike,
    treatment_n: ArrayLike,
    confidence_level: float = 0.95,
    name: str = "rate_difference",
) -> Estimate:
    """Exact confidence sequence for the difference of two rates under concurrent traffic of any split.

    Each look adds one block: what came since the look before, in both arms. An alarm over a canary rests on
    `lower > 0` (or above the harm that is tolerated), a promotion on `upper` below that harm.

    Args:
        control_successes: Successes (or errors) of the control in each block, shape (b,). Not cumulated.
        control_n: Trials of the control in each block, shape (b,); 0 is allowed.
        treatment_successes: The same for the treatment.
        treatment_n: The same for the treatment; the split may differ from block to block.
        confidence_level: Level over all looks, in (0, 1).
        name: Name of the estimate.

    Returns:
        Treatment rate less control rate, pooled over the blocks, moved into the interval where it lies outside;
        without trials in both arms NaN. The first block is only learnt from, so that one block gives [-1, 1]: look
        often, or cut what is there into blocks by time. "Not larger than d" is refuted with the right error even
        where both rates change together from block to block (an outage that hits both arms is no evidence).

    Raises:
        InvalidInput: If shapes differ, or counts are impossible.

    Source: the e-variables of Turner, Ly & Grünwald, Generic E-variables for exact sequential k-sample tests,
    2024, inverted as in Turner & Grünwald, Exact anytime-valid confidence intervals for contingency tables, 2023.

    Example:
        >>> found = rate_difference_sequence(
        ...     control_successes=[18] * 20, control_n=[900] * 20, treatment_successes=[7] * 20, treatment_n=[100] * 20)
        >>> 0 < found.lower < found.value < found.upper
        True
    """
    level = open_unit("confidence_level", confidence_level)
    arms: list[Floats] = []
    for arm, successes, n in (
        ("control", control_successes, control_n),
        ("treatment", treatment_successes, treatment_n),
    ):
        s_k, n_k = vector(f"{arm}_successes", successes, finite=True), vector(f"{arm}_n", n, finite=True)
        same_length(**{f"{arm}_successes": s_k, f"{arm}_n": n_k})
        if ((s_k < 0) | (s_k > n_k)).any():
            at = int(np.argmax((s_k < 0) | (s_k > n_k)))
            raise InvalidInput(f"{arm}_successes[{at}]", float(s_k[at]), f"be between 0 and the {n_k[at]:g} trials")
        arms += [s_k, n_k]
    same_length(control_n=arms[1], treatment_n=arms[3])
    arms = [part[(arms[1] + arms[3]) > 0] for part in arms]
    n_a, n_b = float(arms[1].sum()), float(arms[3].sum())
    value, lower, upper = math.nan, -1.0, 1.0
    if n_a and n_b:
        blocks = _Blocks(*arms)
        allowed = math.log(2 / (1 - level))
        lower = _lower_bound(blocks, allowed)
        upper = -_lower_bound(blocks.swapped(), allowed)
        value = min(max(float(arms[2].sum()) / n_b - float(arms[0].sum()) / n_a, lower), upper)
    return Estimate(
        name=name,
        value=value,
        lower=lower,
        upper=upper,
        n_obs=int(n_a + n_b),
        confidence_level=level,
        definition="treatment rate less control rate, blockwise e-process confidence sequence"
        if n_a and n_b
        else "an arm has no trials",
    )
