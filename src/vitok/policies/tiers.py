"""Allow, review or block: the action of least expected cost for each amount, within what reviewers can do."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Self

import numpy as np

from vitok.errors import InvalidInput
from vitok.stats.arrays import numbers

ALLOW, REVIEW, BLOCK = "allow", "review", "block"
_NAMES = np.array([ALLOW, REVIEW, BLOCK], dtype=object)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What an action costs on a transaction of amount L, in the amounts' currency.

    Attributes:
        false_block: Cost of blocking an honest transaction, F > 0.
        review: Cost of one review, r > 0.
        reviewer_recall: Share of frauds that a review finds, q in (0, 1].
    """

    false_block: float = 30.0
    review: float = 3.0
    reviewer_recall: float = 0.9

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, value in (("false_block", self.false_block), ("review", self.review)):
            if not isinstance(value, Real) or not 0 < value < np.inf:
                raise InvalidInput(f"costs: {name}", value, "be a finite number greater than 0")
        if not isinstance(self.reviewer_recall, Real) or not 0 < self.reviewer_recall <= 1:
            raise InvalidInput("costs: reviewer_recall", self.reviewer_recall, "be in (0, 1]")

    def expected(self, probability: np.ndarray, amount: np.ndarray) -> np.ndarray:
        """Returns the expected cost of allow, review and block, shape (3, n).

        Allow p L; review r + p (1 - q) L; block (1 - p) F.
        """
        lost = probability * amount
        return np.stack([lost, self.review + (1 - self.reviewer_recall) * lost, (1 - probability) * self.false_block])

    def realised(self, action: np.ndarray, amount: np.ndarray, is_fraud: np.ndarray) -> np.ndarray:
        """Returns what each action cost once the truth is known, shape (n,); a review counts by its expectation.

        Example:
            >>> import numpy as np
            >>> costs = Costs(false_block=30, review=3, reviewer_recall=0.9)
            >>> truth = np.array([True, False, True])
            >>> costs.realised(np.array(["allow", "block", "review"]), np.array([100.0, 50.0, 100.0]), truth)
            array([100.,  30.,  13.])
        """
        fraud = np.asarray(is_fraud, dtype=bool)
        reviewed = self.review + np.where(fraud, (1 - self.reviewer_recall) * amount, 0.0)
        allowed = np.where(fraud, amount, 0.0)
        blocked = np.where(fraud, 0.0, self.false_block)
        return np.where(action == BLOCK, blocked, np.where(action == REVIEW, reviewed, allowed))


def _check_rows(probability: np.ndarray, amount: np.ndarray, fix: str) -> None:
    for field, values, fits, rule in (
        ("probability", probability, (probability >= 0) & (probability <= 1), "be in [0, 1]"),
        ("amount", amount, np.isfinite(amount) & (amount >= 0), "be a finite number of at least 0"),
    ):
        if not fits.all():
            at = int(np.argmin(fits))
            raise InvalidInput(f"{field}[{at}]", float(values[at]), rule, fix)


@dataclasses.dataclass(frozen=True)
class Tiers:
    """Actions for a batch.

    Attributes:
        actions: Shape (n,), text.
        propensity: Shape (n,): probability of that action under the policy, in (0, 1].
    """

    actions: list[str]
    propensity: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class TierPolicy:
    """Takes the action of least expected cost; a small random share of blocks passes, so that blocks can be judged.

    A review is charged `review_price` above its cost: the shadow price at which the expected number of reviews meets
    the reviewers' capacity.

    Args:
        costs: What actions cost.
        review_price: Added to the cost of a review, at least 0.
        pass_through: Probability with which a block is let pass, in [0, 1).
        salt: Changes who passes.

    Example:
        >>> import numpy as np
        >>> policy = TierPolicy(costs=Costs(false_block=30, review=3, reviewer_recall=0.9))
        >>> policy.thresholds(300.0)
        (0.0111, 0.45)
        >>> policy.decide(np.array([0.01, 0.2, 0.9]), np.array([300.0, 300.0, 300.0]), ["a", "b", "c"]).actions
        ['allow', 'review', 'block']
    """

    costs: Costs = dataclasses.field(default_factory=Costs)
    review_price: float = 0.0
    pass_through: float = 0.0
    salt: str = "pass"

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.pass_through < 1:
            raise InvalidInput("policy: pass_through", self.pass_through, "be in [0, 1)")
        if not self.review_price >= 0:
            raise InvalidInput("policy: review_price", self.review_price, "be at least 0")

    @property
    def version(self) -> str:
        """Content hash of everything that changes an action."""
        text = json.dumps(self.describe(), sort_keys=True)
        return "tiers-" + hashlib.sha256(text.encode()).hexdigest()[:8]

    def decide(self, probability: np.ndarray, amount: np.ndarray, units: Sequence[str]) -> Tiers:
        """Chooses an action for each row.

        Args:
            probability: Shape (n,), calibrated, in [0, 1].
            amount: Shape (n,), at least 0.
            units: n ids; the same id always falls on the same side of the random pass-through.

        Raises:
            InvalidInput: If lengths differ, a probability is not in [0, 1], or an amount is not a number of at least
                0. Nothing is decided then: a row without a number has no cheapest action, least of all to allow it.

        Example:
            >>> import numpy as np
            >>> TierPolicy().decide(np.array([np.nan]), np.array([900.0]), ["a"])
            Traceback (most recent call last):
            vitok.errors.InvalidInput: probability[0]: got nan, must be in [0, 1]. Answer rows without one by rules
        """
        p, amounts = numbers("probability", probability), numbers("amount", amount)
        if not p.shape == amounts.shape == (len(units),):
            shapes = (p.shape, amounts.shape, (len(units),))
            raise InvalidInput("probability, amount and units", shapes, "have one shape (n,)")
        with np.errstate(invalid="ignore"):
            cost = self.costs.expected(p, amounts)
        # One look at the costs finds every row outside its range, since what is none makes them NaN or negative.
        if not (cost >= 0).all():
            _check_rows(p, amounts, "Answer rows without one by rules")
        cost[1] += self.review_price
        choice = cost.argmin(axis=0)
        propensity = np.ones(len(choice))
        if self.pass_through:
            for row in np.flatnonzero(choice == 2).tolist():
                if self._draw(units[row]) < self.pass_through:
                    choice[row] = 0
                    propensity[row] = self.pass_through
                else:
                    propensity[row] = 1 - self.pass_through
        return Tiers(_NAMES[choice].tolist(), propensity)

    def _draw(self, unit: str) -> float:
        digest = hashlib.blake2b(f"{self.salt}/{unit}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2.0**64

    def thresholds(self, amount: float) -> tuple[float, float]:
        """Returns the probabilities from which an amount is reviewed and blocked, rounded to 4 digits.

        Where a review never pays (small amounts, a high price), both are the probability from which it is blocked;
        1 stands for never.

        Args:
            amount: Amount, at least 0.

        Raises:
            InvalidInput: If the amount is negative or not finite.

        Example:
            >>> TierPolicy(costs=Costs(false_block=30, review=3, reviewer_recall=0.9)).thresholds(2.0)
            (0.9375, 0.9375)
        """
        if not isinstance(amount, Real) or not 0 <= amount < np.inf:
            raise InvalidInput("amount", amount, "be finite and at least 0")
        r, q, f = self.costs.review + self.review_price, self.costs.reviewer_recall, self.costs.false_block
        review = r / (q * amount) if amount else np.inf
        block = (f - r) / (f + (1 - q) * amount)
        if review >= block:
            review = block = f / (f + amount)
        return round(min(review, 1.0), 4), round(min(block, 1.0), 4)

    @classmethod
    def fit(
        cls,
        probability: np.ndarray,
        amount: np.ndarray,
        *,
        days: float,
        reviews_per_day: float,
        costs: Costs | None = None,
        pass_through: float = 0.0,
    ) -> Self:
        """Finds the review price at which held-out traffic needs no more reviews than there are reviewers for.

        Args:
            probability: Shape (n,), calibrated, of a held-out period.
            amount: Shape (n,).
            days: Length of the period in days, greater than 0.
            reviews_per_day: Capacity, greater than 0.
            costs: What actions cost.
            pass_through: Probability with which a block is let pass.

        Returns:
            The policy; its price is 0 where the capacity does not bind.

        Raises:
            InvalidInput: If there are no rows, lengths differ, a probability is not in [0, 1], an amount is not a
                finite number of at least 0, or the period or the capacity is not greater than 0.
        """
        probability, amount = numbers("probability", probability), numbers("amount", amount)
        if probability.shape != amount.shape:
            raise InvalidInput("amount", amount.shape, f"have the shape of probability, {probability.shape}")
        _check_rows(probability, amount, "Leave such rows out of the held-out period")
        if not (len(probability) and days > 0 and reviews_per_day > 0):
            raise InvalidInput("days and reviews_per_day", (days, reviews_per_day), "be greater than 0, with rows")
        costs = costs or Costs()

        def reviews(price: float) -> float:
            policy = cls(costs=costs, review_price=price)
            cost = policy.costs.expected(probability, amount)
            cost[1] += price
            return float((cost.argmin(axis=0) == 1).sum()) / days

        low, high = 0.0, costs.false_block
        if reviews(0.0) > reviews_per_day:
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if reviews(middle) > reviews_per_day else (low, middle)
        else:
            high = 0.0
        return cls(costs=costs, review_price=high, pass_through=pass_through)

    def describe(self) -> dict[str, Any]:
        """Returns the policy ready for JSON."""
        return {
            "kind": "tiers",
            "costs": dataclasses.asdict(self.costs),
            "review_price": self.review_price,
            "pass_through": self.pass_through,
            "salt": self.salt,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `describe` wrote."""
        return cls(
            costs=Costs(**data["costs"]),
            review_price=data["review_price"],
            pass_through=data["pass_through"],
            salt=data["salt"],
        )
