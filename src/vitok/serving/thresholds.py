"""Where a cascade hands over: accuracy against cost at every threshold, and the threshold that is cheapest in all.

A cascade asks a small model first and a large one where the small one is unsure. The small one is always paid, so a
threshold costs `cost_small + share escalated * cost_large + loss_price * mean loss`, and the best one is read from
data on which neither model was trained.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import CalibrationError, Estimate, ece_equal_mass, mean_interval

_Floats = NDArray[np.float64]
_FEW_ROWS = 2


def confidence_of(probability: ArrayLike) -> _Floats:
    """Returns how sure a model is of the class it would choose.

    It is a probability of being right only if the probabilities are calibrated; see `vitok.models`.

    Args:
        probability: Of class 1, shape (n,), or of each class, shape (n, k).

    Returns:
        Shape (n,); NaN where the model gave none.

    Example:
        >>> confidence_of([0.1, 0.5, 0.9])
        array([0.9, 0.5, 0.9])
        >>> confidence_of([[0.2, 0.7, 0.1]])
        array([0.7])
    """
    p = np.asarray(probability, np.float64)
    return np.maximum(p, 1 - p) if p.ndim == 1 else p.max(axis=1)


@dataclass(frozen=True, kw_only=True)
class CascadePoint:
    """What a cascade costs and how often it is wrong at one threshold.

    Attributes:
        threshold: A request whose confidence is below it is escalated; one exactly at it is not.
        escalated: Share of the requests that are escalated.
        cost: Mean cost of a request, both models.
        loss: Mean loss; where losses are 0 and 1, the error rate.
        total: `cost + loss_price * loss`.
        n_obs: Rows that it stands on.

    Example:
        >>> print(CascadePoint(threshold=0.8, escalated=0.25, cost=3.5, loss=0.04, total=7.5, n_obs=1000))
        threshold 0.8: 25 % escalated, cost 3.5, loss 0.04, total 7.5 (n = 1,000)
    """

    threshold: float
    escalated: float
    cost: float
    loss: float
    total: float
    n_obs: int

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4g}: {100 * self.escalated:.3g} % escalated, cost {self.cost:.4g}, "
            f"loss {self.loss:.4g}, total {self.total:.4g} (n = {self.n_obs:,})"
        )


@dataclass(frozen=True, kw_only=True)
class CascadeFrontier:
    """All thresholds that divide the data differently, ascending; the last one escalates everything.

    Attributes:
        threshold: Shape (m,), the last infinite.
        escalated: Share escalated at each, shape (m,), rising.
        cost: Mean cost at each, shape (m,).
        loss: Mean loss at each, shape (m,).
        total: What each costs with its losses, shape (m,).
        n_obs: Rows.
        loss_price: What a loss of 1 costs, in the unit of the costs.
        calibration: How far the confidence is from the share of right answers of the small model; None where losses
            are not 0 and 1.
    """

    threshold: _Floats = field(repr=False)
    escalated: _Floats = field(repr=False)
    cost: _Floats = field(repr=False)
    loss: _Floats = field(repr=False)
    total: _Floats = field(repr=False)
    n_obs: int
    loss_price: float
    calibration: CalibrationError | None

    def __len__(self) -> int:
        return len(self.threshold)

    def point(self, k: int) -> CascadePoint:
        """Returns the k-th threshold."""
        return CascadePoint(
            threshold=float(self.threshold[k]),
            escalated=float(self.escalated[k]),
            cost=float(self.cost[k]),
            loss=float(self.loss[k]),
            total=float(self.total[k]),
            n_obs=self.n_obs,
        )

    def at(self, threshold: float) -> CascadePoint:
        """Returns what any threshold gives.

        Raises:
            InvalidInput: If it is NaN.
        """
        if math.isnan(threshold):
            raise InvalidInput("threshold", threshold, "be a number")
        k = min(int(np.searchsorted(self.threshold, threshold, side="left")), len(self) - 1)
        found = self.point(k)
        return CascadePoint(**{**vars(found), "threshold": float(threshold)})

    def table(self, n: int = 11) -> tuple[CascadePoint, ...]:
        """Returns loss against cost from the small model alone to the large one alone, as evenly as ties allow.

        Args:
            n: Most points, at least 2.

        Raises:
            InvalidInput: If it is less.

        Example:
            >>> curve = frontier([0.9, 0.6, 0.8, 0.7], [0, 1, 0, 1], [0] * 4, cost_small=1.0, cost_large=9.0)
            >>> for point in curve.table(3):
            ...     print(point)
            threshold 0.6: 0 % escalated, cost 1, loss 0.5, total 1.5 (n = 4)
            threshold 0.8: 50 % escalated, cost 5.5, loss 0, total 5.5 (n = 4)
            threshold inf: 100 % escalated, cost 10, loss 0, total 10 (n = 4)
        """
        if n < 2:
            raise InvalidInput("n", n, "be at least 2")
        shares = np.linspace(self.escalated[0], self.escalated[-1], n)
        places = np.minimum(np.searchsorted(self.escalated, shares), len(self) - 1)
        return tuple(self.point(k) for k in np.unique(places).tolist())

    @property
    def best(self) -> CascadePoint:
        """The smallest total; of equal ones the one that escalates least."""
        return self.point(int(np.argmin(self.total)))

    def within_cost(self, cost: float) -> CascadePoint:
        """Returns the smallest loss for at most this mean cost; of equal ones the cheapest.

        Raises:
            InvalidInput: If no threshold is that cheap.
        """
        allowed = self.cost <= cost
        if not allowed.any():
            raise InvalidInput("cost", cost, f"be at least {self.cost.min():.6g}", "The small model alone costs that")
        return self.point(int(np.argmin(np.where(allowed, self.loss, np.inf))))

    def reaching(self, loss: float) -> CascadePoint:
        """Returns the cheapest threshold with at most this mean loss.

        Raises:
            InvalidInput: If no threshold is that good.
        """
        allowed = self.loss <= loss
        if not allowed.any():
            raise InvalidInput("loss", loss, f"be at least {self.loss.min():.6g}", "No threshold is better than that")
        return self.point(int(np.argmin(np.where(allowed, self.cost, np.inf))))

    def __str__(self) -> str:
        told = [f"small alone: {self.point(0)}", f"large alone: {self.point(-1)}", f"best: {self.best}"]
        if self.calibration is not None:
            told.append(f"confidence of the small model: {self.calibration}")
        return "\n".join(told)


def frontier(
    confidence: ArrayLike,
    small_loss: ArrayLike,
    large_loss: ArrayLike,
    *,
    cost_small: float,
    cost_large: float,
    loss_price: float = 1.0,
) -> CascadeFrontier:
    """Computes cost and loss of a cascade at all thresholds, in one pass after a sort.

    A row without a confidence (NaN) is escalated at every threshold.

    Args:
        confidence: Of the small model, shape (n,).
        small_loss: Loss of its answer, at least 0, shape (n,): 0 and 1 for right and wrong, or any price of an error.
        large_loss: Loss of the large model's answer, shape (n,).
        cost_small: What the small model costs a row; it is always paid.
        cost_large: What the large model costs a row.
        loss_price: What a loss of 1 costs, in the unit of the costs.

    Raises:
        InvalidInput: If shapes differ, there are no rows, or a loss, cost or price is negative or not finite.

    Example:
        >>> curve = frontier([0.9, 0.6, 0.8], [0, 1, 0], [0, 0, 0], cost_small=1.0, cost_large=9.0, loss_price=30.0)
        >>> curve.threshold, curve.total
        (array([0.6, 0.8, 0.9, inf]), array([11.,  4.,  7., 10.]))
        >>> print(curve.best)
        threshold 0.8: 33.3 % escalated, cost 4, loss 0, total 4 (n = 3)
    """
    conf, small, large = _columns(confidence, small_loss, large_loss)
    for name, value in (("cost_small", cost_small), ("cost_large", cost_large), ("loss_price", loss_price)):
        if not 0 <= value < math.inf:
            raise InvalidInput(name, value, "be finite and at least 0")
    n = len(conf)
    unsure = np.isnan(conf)
    order = np.argsort(conf, kind="stable")  # NaN last
    order = np.concatenate((order[n - int(unsure.sum()) :], order[: n - int(unsure.sum())]))
    ordered = np.where(unsure[order], -np.inf, conf[order])
    # Sums over the first k rows of that order, which are those that a threshold above them escalates.
    saved = np.concatenate(((0.0,), np.cumsum(large[order] - small[order])))
    values, starts = np.unique(ordered[int(unsure.sum()) :], return_index=True)
    threshold = np.append(values, np.inf) if not len(values) or values[-1] < np.inf else values
    counts = np.append(starts + int(unsure.sum()), n)[: len(threshold)]
    escalated = counts / n
    cost = cost_small + escalated * cost_large
    loss = np.maximum((small.sum() + saved[counts]) / n, 0.0)
    return CascadeFrontier(
        threshold=threshold,
        escalated=escalated,
        cost=cost,
        loss=loss,
        total=cost + loss_price * loss,
        n_obs=n,
        loss_price=float(loss_price),
        calibration=_calibration(conf, small),
    )


def judged(
    threshold: float,
    confidence: ArrayLike,
    small_loss: ArrayLike,
    large_loss: ArrayLike,
    *,
    cost_small: float,
    cost_large: float,
    loss_price: float = 1.0,
    confidence_level: float = 0.95,
) -> Estimate:
    """Returns what a request costs in all at a threshold, with its interval, on rows that did not choose it.

    The total at the chosen threshold on the rows that chose it is too good; this is what may be promised.

    Args:
        threshold: As `frontier` chose it on other rows.
        confidence: Shape (n,).
        small_loss: Shape (n,).
        large_loss: Shape (n,).
        cost_small: What the small model costs a row.
        cost_large: What the large model costs a row.
        loss_price: What a loss of 1 costs.
        confidence_level: Level of the interval, in (0, 1).

    Raises:
        InvalidInput: As `frontier`.

    Example:
        >>> print(judged(0.7, [0.9, 0.6], [0, 1], [0, 0], cost_small=1.0, cost_large=9.0))
        total cost 5.5 (95 % interval -51.68 to 62.68, n = 2)
    """
    if math.isnan(threshold):
        raise InvalidInput("threshold", threshold, "be a number")
    conf, small, large = _columns(confidence, small_loss, large_loss)
    up = ~(conf >= threshold)
    total = cost_small + np.where(up, cost_large + loss_price * large, loss_price * small)
    return mean_interval(total, confidence_level=confidence_level, name="total cost")


def _columns(confidence: ArrayLike, small_loss: ArrayLike, large_loss: ArrayLike) -> tuple[_Floats, _Floats, _Floats]:
    conf, small, large = (np.asarray(column, np.float64) for column in (confidence, small_loss, large_loss))
    if conf.ndim != 1 or conf.shape != small.shape or conf.shape != large.shape:
        shapes = (conf.shape, small.shape, large.shape)
        raise InvalidInput("confidence, small_loss, large_loss", shapes, "have the same shape (n,)")
    if not len(conf):
        raise InvalidInput("confidence", [], "hold at least one row")
    for name, column in (("small_loss", small), ("large_loss", large)):
        bad = ~((column >= 0) & np.isfinite(column))
        if bad.any():
            at = int(np.argmax(bad))
            raise InvalidInput(f"{name}[{at}]", float(column[at]), "be finite and at least 0")
    return conf, small, large


def _calibration(confidence: _Floats, loss: _Floats) -> CalibrationError | None:
    known = np.isfinite(confidence)
    inside = known & (confidence >= 0) & (confidence <= 1)
    if known.sum() < _FEW_ROWS or (known != inside).any() or not np.isin(loss, (0.0, 1.0)).all():
        return None
    return ece_equal_mass(loss[known] == 0, confidence[known])
