"""How sure the thresholds of a tier policy are: precision of blocks with a bound, and thresholds under resampling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.policies.tiers import BLOCK, Costs, TierPolicy
from vitok.stats import Estimate, clopper_pearson_lower, trials_needed
from vitok.stats.arrays import labels_and_probabilities, open_unit, same_length, vector
from vitok.stats.results import Result

_Floats = NDArray[np.float64]


def label_weights(action: Sequence[str] | NDArray[np.str_], propensity: ArrayLike) -> _Floats:
    """Weighs decisions so that those whose outcome is seen stand for all.

    A block has no outcome; what was let pass of the blocks stands for them by one over its propensity.

    Args:
        action: Actions as shown, n of them.
        propensity: Probability of each action, shape (n,), in (0, 1].

    Returns:
        Weights of shape (n,): 0 for a block, one over the propensity for what was let through. Fit calibrators and
        estimate performance with them.

    Raises:
        InvalidInput: If lengths differ or a propensity is not in (0, 1].

    Source: Horvitz & Thompson, JASA 1952.

    Example:
        >>> label_weights(["allow", "block", "allow"], [1.0, 0.99, 0.01]).tolist()
        [1.0, 0.0, 100.0]
    """
    p = vector("propensity", propensity)
    actions = np.asarray(action, dtype=object)
    if p.ndim != 1 or actions.shape != p.shape:
        raise InvalidInput("action and propensity", (actions.shape, p.shape), "have the same shape (n,)")
    if not ((p > 0) & (p <= 1)).all():
        raise InvalidInput("propensity", p[:5].tolist(), "be in (0, 1]", "Log the probability of the action as shown")
    return np.where(actions == BLOCK, 0.0, 1 / p)


@dataclass(frozen=True, kw_only=True)
class BlockEvidence(Result):
    """What is known of the precision of automatic blocks.

    Attributes:
        precision: Share of frauds among the blocks that were let pass, with its one-sided lower bound.
        target: Precision to be shown.
        shown: Whether the bound reaches the target.
        more_needed: How many more blocks let pass would show it if none of them were honest; 0 where it is shown.
    """

    precision: Estimate
    target: float
    shown: bool
    more_needed: int

    def __str__(self) -> str:
        verdict = "shown" if self.shown else f"not shown; at least {self.more_needed:,} more clean blocks are needed"
        return f"block precision at least {self.target:.4g}: {verdict} ({self.precision})"


def block_evidence(
    n_fraud: int, n_passed: int, *, target: float = 0.995, confidence_level: float = 0.95
) -> BlockEvidence:
    """Says what the blocks that were let pass show of the precision of all blocks.

    Args:
        n_fraud: Frauds among them.
        n_passed: Blocks let pass at random whose outcome is known.
        target: Precision to be shown, in (0, 1).
        confidence_level: One-sided level, in (0.5, 1).

    Raises:
        InvalidInput: If counts are impossible or a level is out of range.

    Source: Clopper & Pearson, Biometrika 1934.

    Example:
        >>> print(block_evidence(400, 400))
        block precision at least 0.995: not shown; at least 198 more clean blocks are needed (rate 1 (95 % interval
        0.9925 to 1, n = 400))
        >>> block_evidence(598, 598).shown
        True
    """
    found = clopper_pearson_lower(n_fraud, n_passed, confidence_level=confidence_level)
    needed = trials_needed(target, failures=n_passed - n_fraud, confidence_level=confidence_level)
    shown = found.lower >= target
    return BlockEvidence(
        precision=found, target=target, shown=shown, more_needed=0 if shown else max(0, needed - n_passed)
    )


@dataclass(frozen=True, kw_only=True)
class PreciseThreshold(Result):
    """The lowest probability above which a precision is shown.

    Attributes:
        threshold: Block from here; 1 where no threshold shows it.
        precision: Precision above the threshold with its one-sided bound.
        n_above: Rows above it.
        target: Precision to be shown.
    """

    threshold: float
    precision: Estimate
    n_above: int
    target: float

    def __str__(self) -> str:
        if not self.n_above:
            return f"no threshold shows a precision of {self.target:.4g} ({self.precision})"
        return f"precision of {self.target:.4g} is shown from {self.threshold:.4g} on ({self.precision})"


def precise_threshold(
    probability: ArrayLike,
    y: ArrayLike,
    *,
    target: float = 0.995,
    confidence_level: float = 0.95,
    steps: int = 50,
) -> PreciseThreshold:
    """Finds the lowest threshold whose precision is shown, with one error level for the whole search.

    Thresholds are tested in order, from the one with enough rows above it that two honest ones may be among them (or
    none, where there are too few rows for that) downwards, and the search stops at the first that fails: so that
    trying many costs nothing. Looking for the best of all bounds instead would be wrong
    far more often than promised.

    Args:
        probability: Shape (n,), of rows with outcomes: a random sample of traffic, or blocks let pass.
        y: Labels, shape (n,), bool or 0 and 1.
        target: Precision to be shown, in (0, 1).
        confidence_level: One-sided level, in (0.5, 1).
        steps: How many thresholds are tried, evenly by rank; fix it before looking.

    Raises:
        InvalidInput: If shapes differ or an argument is out of range.

    Source: fixed-sequence testing, Angelopoulos et al., Learn then Test, 2021.

    Example:
        >>> p = np.linspace(0.0, 1.0, 4_001)
        >>> found = precise_threshold(p, p > 0.5)
        >>> 0.49 < found.threshold < 0.6
        True
    """
    labels, p = labels_and_probabilities(y, probability)
    if steps < 1:
        raise InvalidInput("steps", steps, "be at least 1")
    forgiving, strict = (trials_needed(target, failures=k, confidence_level=confidence_level) for k in (2, 0))
    least = forgiving if len(p) >= forgiving else strict
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(labels[order])
    nothing = clopper_pearson_lower(0, 0, confidence_level=confidence_level)
    best = PreciseThreshold(threshold=1.0, precision=nothing, n_above=0, target=target)
    if len(p) < least:
        return best
    for rank in np.unique(np.linspace(least, len(p), steps).round().astype(np.intp)).tolist():
        cut = float(p[order[rank - 1]])
        # Rows equal to the cut are above it too.
        above = int(np.searchsorted(-p[order], -cut, side="right"))
        found = clopper_pearson_lower(int(hits[above - 1]), above, confidence_level=confidence_level)
        if found.lower < target:
            break
        best = PreciseThreshold(threshold=cut, precision=found, n_above=above, target=target)
    return best


def _traffic(probability: ArrayLike, amount: ArrayLike, day: ArrayLike) -> tuple[_Floats, _Floats, _Floats]:
    p, amounts = vector("probability", probability), vector("amount", amount, finite=True)
    days = vector("day", day, finite=True)
    same_length(probability=p, amount=amounts, day=days)
    for field, array, bad, rule in (
        ("probability", p, (p < 0) | (p > 1), "be in [0, 1]"),
        ("amount", amounts, amounts < 0, "be at least 0"),
        ("day", days, days != np.floor(days), "be a whole number"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            raise InvalidInput(f"{field}[{at}]", float(array[at]), rule)
    if len(p) == 0:
        raise InvalidInput("probability", [], "hold at least one row", "Pass held-out traffic")
    return p, amounts, days


def daily_prices(
    probability: ArrayLike, amount: ArrayLike, day: ArrayLike, *, reviews_per_day: float, costs: Costs | None = None
) -> dict[int, float]:
    """Finds, day by day, the price of a review at which that day needs no more reviews than there are reviewers for.

    Their spread says how far one price for all days can be from what a day would ask for.

    Args:
        probability: Shape (n,), calibrated.
        amount: Shape (n,).
        day: Whole numbers of shape (n,).
        reviews_per_day: Capacity, greater than 0.
        costs: What actions cost.

    Returns:
        Day to price, ascending; 0 where the capacity does not bind.

    Raises:
        InvalidInput: If shapes differ, a value is out of its range, or there are no rows.

    Example:
        >>> p, amount = np.tile([0.05, 0.2, 0.3], 2), np.full(6, 100.0)
        >>> [round(price, 1) for price in daily_prices(p, amount, [1, 1, 1, 2, 2, 2], reviews_per_day=2).values()]
        [1.5, 1.5]
    """
    p, amounts, days = _traffic(probability, amount, day)
    return {
        int(each): TierPolicy.fit(
            p[days == each], amounts[days == each], days=1, reviews_per_day=reviews_per_day, costs=costs
        ).review_price
        for each in np.unique(days)
    }


@dataclass(frozen=True, kw_only=True)
class TierUncertainty(Result):
    """How far a policy's price and thresholds may be off, because held-out days were few.

    Attributes:
        review_price: Price with a percentile interval over resampled days.
        amount: Amounts that thresholds are given for.
        review_from: For each amount the probability from which it is reviewed.
        block_from: For each amount the probability from which it is blocked.
        n_days: Days resampled.
    """

    review_price: Estimate
    amount: tuple[float, ...]
    review_from: tuple[Estimate, ...]
    block_from: tuple[Estimate, ...]
    n_days: int

    def __str__(self) -> str:
        lines = [
            f"  {amount:g}: review from {low.value:.4g} ({low.lower:.4g} to {low.upper:.4g}),"
            f" block from {high.value:.4g} ({high.lower:.4g} to {high.upper:.4g})"
            for amount, low, high in zip(self.amount, self.review_from, self.block_from, strict=True)
        ]
        return "\n".join([f"{self.review_price} over {self.n_days} days", *lines])


def tier_uncertainty(
    probability: ArrayLike,
    amount: ArrayLike,
    day: ArrayLike,
    *,
    reviews_per_day: float,
    amounts: Sequence[float] = (10.0, 100.0, 1000.0),
    costs: Costs | None = None,
    n_draws: int = 200,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> TierUncertainty:
    """Fits the policy to resampled days: whole days, since frauds and rushes come in bursts.

    Args:
        probability: Shape (n,), calibrated, of held-out traffic.
        amount: Shape (n,).
        day: Whole numbers of shape (n,); at least two days.
        reviews_per_day: Capacity, greater than 0.
        amounts: Amounts to give thresholds for.
        costs: What actions cost.
        n_draws: Draws, at least 20.
        confidence_level: Level of the intervals, in (0, 1).
        seed: Of the draws.

    Raises:
        InvalidInput: If shapes differ, a value is out of its range, there are fewer than two days, or too few draws.

    Source: Efron, Annals of Statistics 1979; days as blocks.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> found = tier_uncertainty(rng.beta(0.1, 5, 2_000), rng.gamma(2, 50, 2_000), np.arange(2_000) // 200,
        ...     reviews_per_day=10, n_draws=20)
        >>> found.review_price.lower <= found.review_price.value <= found.review_price.upper
        True
    """
    p, money, days = _traffic(probability, amount, day)
    open_unit("confidence_level", confidence_level)
    names = np.unique(days)
    if len(names) < 2 or n_draws < 20:
        raise InvalidInput("day and n_draws", (len(names), n_draws), "be at least 2 days and 20 draws")
    rows = [np.flatnonzero(days == name) for name in names]

    def fitted(chosen: NDArray[np.intp]) -> TierPolicy:
        return TierPolicy.fit(p[chosen], money[chosen], days=len(names), reviews_per_day=reviews_per_day, costs=costs)

    rng = np.random.default_rng(seed)
    whole = fitted(np.concatenate(rows))
    drawn = [
        fitted(np.concatenate([rows[at] for at in rng.integers(0, len(rows), len(rows)).tolist()]))
        for _ in range(n_draws)
    ]

    def between(name: str, value: float, values: list[float]) -> Estimate:
        low, high = np.quantile(values, [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
        return Estimate(
            name=name,
            value=value,
            lower=min(float(low), value),
            upper=max(float(high), value),
            n_obs=len(names),
            confidence_level=confidence_level,
            definition=f"percentiles of {n_draws} resamples of whole days",
        )

    thresholds = [[policy.thresholds(each) for policy in drawn] for each in amounts]
    points = [whole.thresholds(each) for each in amounts]
    return TierUncertainty(
        review_price=between("review_price", whole.review_price, [policy.review_price for policy in drawn]),
        amount=tuple(float(each) for each in amounts),
        review_from=tuple(
            between("review_from", point[0], [pair[0] for pair in pairs])
            for point, pairs in zip(points, thresholds, strict=True)
        ),
        block_from=tuple(
            between("block_from", point[1], [pair[1] for pair in pairs])
            for point, pairs in zip(points, thresholds, strict=True)
        ),
        n_days=len(names),
    )
