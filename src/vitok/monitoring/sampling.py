"""Which rows to have labelled when labels cost money: few, chosen where they say most, weighed so that nothing is bent.

Each row is drawn with a known probability. The estimate starts from what the calibrated probabilities expect and
corrects it by what the drawn labels say, so that it is unbiased whatever the probabilities are worth; the better they
are, the fewer labels it takes.
"""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import Estimate
from vitok.stats.arrays import numbers
from vitok.stats.intervals import normal_quantile
from vitok.stats.performance_estimation import bounded_interval, expected_by_flag
from vitok.stats.results import Result

_Floats = NDArray[np.float64]
METRICS = ("accuracy", "precision", "recall", "positive_rate")
_NOTHING = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelPlan(Result):
    """Which rows to have labelled for one metric.

    Attributes:
        metric: What is to be known.
        rows: Indices of the rows drawn, ascending.
        propensity: Probability with which each of them was drawn, in (0, 1].
        expected_labels: Labels expected over repeated draws; `rows` may be some more or fewer.
        half_width: Half width of the interval to expect, if the probabilities are calibrated.
        uniform_half_width: The same for as many rows drawn all alike.
        n_obs: Rows drawn from.
        confidence_level: Level of the interval.
    """

    metric: str
    rows: NDArray[np.intp]
    propensity: _Floats
    expected_labels: float
    half_width: float
    uniform_half_width: float
    n_obs: int
    confidence_level: float

    def to_dict(self) -> dict[str, object]:
        """Returns what JSON can hold."""
        found = super().to_dict()
        return {**found, "rows": self.rows.tolist(), "propensity": self.propensity.tolist()}

    def __str__(self) -> str:
        return (
            f"{len(self.rows):,} of {self.n_obs:,} rows to label for {self.metric}:"
            f" {within(self.half_width, self.uniform_half_width, self.confidence_level)}"
        )


@dataclass(frozen=True, kw_only=True)
class Population(Result):
    """What an estimate from a few labels needs to know of all the rows that they were drawn from.

    Attributes:
        n_obs: Rows.
        n_flagged: Rows that were taken for positives.
        expected: Sum of their probabilities.
        expected_flagged: The same over those taken for positives.
    """

    n_obs: int
    n_flagged: int
    expected: float
    expected_flagged: float

    def __post_init__(self) -> None:
        if not 0 <= self.n_flagged <= self.n_obs or self.n_obs < 1:
            rule = "be from 0 to the rows in all, of which there is one at least"
            raise InvalidInput("n_flagged and n_obs", (self.n_flagged, self.n_obs), rule)
        # Sums over the same rows in another order differ in their last digits.
        near = 1 + 1e-9
        flagged = 0 <= self.expected_flagged <= near * min(self.expected, self.n_flagged)
        if not (flagged and self.expected <= near * self.n_obs):
            rule = f"be sums of probabilities, of {self.n_flagged} rows and of {self.n_obs}"
            raise InvalidInput("expected_flagged and expected", (self.expected_flagged, self.expected), rule)

    @classmethod
    def of(cls, probability: ArrayLike, flagged: ArrayLike) -> "Population":
        """Adds up rows.

        Args:
            probability: Calibrated probability of a positive, shape (n,), in [0, 1].
            flagged: Which rows were taken for positives, shape (n,).

        Raises:
            InvalidInput: If shapes differ or values are out of range.
        """
        p, flags = _inputs(probability, flagged)
        return cls(
            n_obs=len(p), n_flagged=int(flags.sum()), expected=float(p.sum()), expected_flagged=float(p[flags].sum())
        )


def within(half_width: float, uniform_half_width: float, confidence_level: float) -> str:
    """Says how sure an answer is going to be.

    Args:
        half_width: Half width of the interval to expect.
        uniform_half_width: The same for as many rows drawn all alike.
        confidence_level: Level of the interval.

    Example:
        >>> print(within(0.03, 0.05, 0.95), within(1.2, 1.3, 0.95), sep="; ")
        within 0.03 at 95 % (drawn all alike: 0.05); so few that they say nothing
    """
    # A share lies in [0, 1], whatever is labelled.
    if half_width >= _NOTHING:
        return "so few that they say nothing"
    return f"within {half_width:.3g} at {100 * confidence_level:g} % (drawn all alike: {uniform_half_width:.3g})"


def _inputs(probability: ArrayLike, flagged: ArrayLike) -> tuple[_Floats, NDArray[np.bool_]]:
    p, flags = numbers("probability", probability), np.asarray(flagged)
    if p.ndim != 1 or p.shape != flags.shape or len(p) == 0:
        raise InvalidInput("probability and flagged", (p.shape, flags.shape), "have the same shape (n,), n at least 1")
    if not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput("probability", p[:5].tolist(), "be in [0, 1]", "Calibrate raw scores first")
    if flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        raise InvalidInput("flagged", flags[:5].tolist(), "be yes or no, or 0 or 1")
    return p, flags.astype(np.bool_)


def _slopes(metric: str, p: _Floats, flags: NDArray[np.bool_]) -> _Floats:
    if metric not in METRICS:
        raise InvalidInput("metric", metric, f"be one of {', '.join(METRICS)}")
    if metric == "positive_rate":
        return np.full(len(p), 1 / len(p))
    value, slope = expected_by_flag(flags, p)[metric]
    if math.isnan(value):
        raise InvalidInput("flagged", int(flags.sum()), f"leave rows that {metric} can be taken over")
    return slope


def _inclusion(size: _Floats, budget: float) -> _Floats:
    """Returns probabilities proportional to size, at most 1, that add up to the budget."""
    low, high = 0.0, budget / max(float(size.min(where=size > 0, initial=np.inf)), 1e-300)
    if budget >= np.count_nonzero(size):
        return (size > 0).astype(np.float64)
    for _ in range(100):
        middle = (low + high) / 2
        if float(np.minimum(1.0, middle * size).sum()) > budget:
            high = middle
        else:
            low = middle
    return np.minimum(1.0, low * size)


def plan_labels(
    probability: ArrayLike,
    flagged: ArrayLike,
    *,
    metric: str,
    budget: int | None = None,
    half_width: float | None = None,
    uniform_share: float = 0.2,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> LabelPlan:
    """Draws the rows whose labels say most about a metric.

    A row counts by how far its label moves the metric times how uncertain the label is (Neyman). A share of the
    budget is spread over all rows that matter at all, so that no weight is huge where the probabilities are wrong.

    Args:
        probability: Calibrated probability of a positive, shape (n,), in [0, 1].
        flagged: Which rows were taken for positives, shape (n,).
        metric: `"accuracy"`, `"precision"`, `"recall"` or `"positive_rate"`.
        budget: Labels to spend on average, at least 1; or give `half_width`.
        half_width: Half width of the interval to plan for, above 0: the smallest budget that gives it is taken.
        uniform_share: Share of the budget that is spread evenly, in (0, 1].
        confidence_level: Level of the interval, in (0, 1).
        seed: Of the draw.

    Returns:
        The plan.

    Raises:
        InvalidInput: If shapes differ, an argument is out of range, or not exactly one of budget and half width is
            given.

    Source: Neyman, JRSS 1934; for model evaluation Sawade et al., ICML 2010, and Kossen et al., Active Testing, ICML
    2021.

    Example:
        >>> p = np.random.default_rng(0).beta(0.1, 5, 50_000)
        >>> plan = plan_labels(p, p > 0.3, metric="recall", budget=500)
        >>> plan.half_width < 0.6 * plan.uniform_half_width
        True
    """
    p, flags = _inputs(probability, flagged)
    if (budget is None) == (half_width is None):
        raise InvalidInput("budget and half_width", (budget, half_width), "be given one of them")
    if budget is not None and (not isinstance(budget, Real) or not 1 <= budget < math.inf):
        raise InvalidInput("budget", budget, "be a number of at least 1")
    if half_width is not None and (not isinstance(half_width, Real) or not 0 < half_width < math.inf):
        raise InvalidInput("half_width", half_width, "be a finite number above 0")
    if not 0 < uniform_share <= 1:
        raise InvalidInput("uniform_share", uniform_share, "be in (0, 1]")
    slope = _slopes(metric, p, flags)
    matters = slope != 0
    # Laplace's rule keeps a probability of 0 or 1 from never being asked about.
    moved = np.abs(slope) * np.sqrt(np.maximum(p * (1 - p), 1e-4))
    count = float(matters.sum())
    size = (1 - uniform_share) * moved / max(float(moved.sum()), 1e-300) + uniform_share * matters / max(count, 1.0)
    variance = slope**2 * p * (1 - p)
    z = normal_quantile(confidence_level)

    def half(inclusion: _Floats) -> float:
        drawn = inclusion > 0
        return z * math.sqrt(float(variance[drawn] @ ((1 - inclusion[drawn]) / inclusion[drawn])))

    if budget is None:
        low, high = 1, int(count)
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if half(_inclusion(size, middle)) <= float(half_width or 0) else (middle + 1, high)
            )
        budget = low
    inclusion = _inclusion(size, float(budget))
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(p)) < inclusion)
    return LabelPlan(
        metric=metric,
        rows=rows,
        propensity=inclusion[rows],
        expected_labels=float(inclusion.sum()),
        half_width=half(inclusion),
        uniform_half_width=half(np.where(matters, min(1.0, float(inclusion.sum()) / max(count, 1.0)), 0.0)),
        n_obs=len(p),
        confidence_level=confidence_level,
    )


def estimate_from_labels(plan: LabelPlan, y: ArrayLike, probability: ArrayLike, flagged: ArrayLike) -> Estimate:
    """Estimates the metric of all rows from the labels of those drawn.

    Args:
        plan: As `plan_labels` made it.
        y: Labels of `plan.rows`, in their order, bool or 0 and 1.
        probability: Of all rows, shape (n,), as given to the plan.
        flagged: Of all rows, shape (n,).

    Returns:
        The metric with a normal interval. The numbers of positives are unbiased for any probabilities; precision and
        accuracy with them, recall as a ratio of two such numbers up to 1 / labels. The interval is never surer than
        the plan: where positives are rare, a draw without any of those that stand for a thousand rows looks certain.

    Raises:
        InvalidInput: If labels do not fit the plan.

    Source: the difference estimator, Särndal, Swensson & Wretman, Model Assisted Survey Sampling, 1992, under
    independent draws (Poisson sampling).

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(0.1, 5, 50_000)
        >>> y = rng.random(50_000) < p
        >>> plan = plan_labels(p, p > 0.3, metric="precision", budget=300)
        >>> found = estimate_from_labels(plan, y[plan.rows], p, p > 0.3)
        >>> bool(found.lower < y[p > 0.3].mean() < found.upper)
        True
    """
    p, flags = _inputs(probability, flagged)
    labels = numbers("y", y)
    if labels.shape != plan.rows.shape or not np.isin(labels, (0.0, 1.0)).all():
        raise InvalidInput("y", labels.shape, f"be 0 or 1 for each of the {len(plan.rows)} rows of the plan")
    if len(p) != plan.n_obs:
        raise InvalidInput("probability", len(p), f"be those of the {plan.n_obs} rows that the plan was made for")
    return estimate_from_draw(
        plan.metric,
        labels,
        probability=p[plan.rows],
        flagged=flags[plan.rows],
        propensity=plan.propensity,
        population=Population.of(p, flags),
        half_width=plan.half_width,
        confidence_level=plan.confidence_level,
    )


def estimate_from_draw(
    metric: str,
    y: ArrayLike,
    *,
    probability: ArrayLike,
    flagged: ArrayLike,
    propensity: ArrayLike,
    population: Population,
    half_width: float = 0.0,
    confidence_level: float = 0.95,
) -> Estimate:
    """Estimates as `estimate_from_labels` does, from the rows drawn and the sums over all: no other row is needed.

    Args:
        metric: As in `plan_labels`.
        y: Labels of the rows drawn, shape (k,), bool or 0 and 1.
        probability: Their calibrated probabilities, shape (k,), in [0, 1].
        flagged: Which of them were taken for positives, shape (k,).
        propensity: With which probability each was drawn, shape (k,), in (0, 1].
        population: The sums over all rows drawn from.
        half_width: The half width that was planned for, at least 0: what the labels leave open is taken to be as much
            at least, since the few that were drawn may show none of the rare ones.
        confidence_level: Level of the interval, in (0, 1).

    Raises:
        InvalidInput: If shapes differ or values are out of range.

    Example:
        >>> population = Population(n_obs=100, n_flagged=10, expected=8.0, expected_flagged=6.0)
        >>> found = estimate_from_draw("precision", [1, 0], probability=[0.6, 0.6], flagged=[1, 1],
        ...     propensity=[0.5, 0.5], population=population)
        >>> round(found.value, 3)
        0.56
    """
    if metric not in METRICS:
        raise InvalidInput("metric", metric, f"be one of {', '.join(METRICS)}")
    p, flags = _inputs(probability, flagged)
    labels, drawn = numbers("y", y), numbers("propensity", propensity)
    if not labels.shape == drawn.shape == p.shape:
        raise InvalidInput("y and propensity", (labels.shape, drawn.shape), f"have the shape {p.shape}")
    if not np.isin(labels, (0.0, 1.0)).all():
        raise InvalidInput("y", labels[:5].tolist(), "be 0 or 1")
    if not ((drawn > 0) & (drawn <= 1)).all():
        raise InvalidInput("propensity", drawn[:5].tolist(), "be in (0, 1]")
    if not 0 <= half_width < math.inf:
        raise InvalidInput("half_width", half_width, "be a finite number of at least 0")
    off = (labels - p) / drawn
    n, n_flagged = population.n_obs, population.n_flagged
    positives = population.expected + float(off.sum())
    hits = population.expected_flagged + float(off[flags].sum())
    yes = flags.astype(np.float64)
    if metric == "positive_rate":
        value, slope = positives / n, np.full(len(p), 1 / n)
    elif metric == "accuracy":
        value, slope = (hits + (n - n_flagged) - (positives - hits)) / n, (2 * yes - 1) / n
    elif metric == "precision":
        value, slope = (hits / n_flagged, yes / n_flagged) if n_flagged else (math.nan, yes)
    else:
        value = hits / positives if positives > 0 else math.nan
        slope = (yes - value) / positives if positives > 0 else yes
    variance = float(((slope * off) ** 2) @ (1 - drawn))
    lower, upper = 0.0, 1.0
    if not math.isnan(value):
        value = min(max(value, 0.0), 1.0)
        z = normal_quantile(confidence_level)
        lower, upper = bounded_interval(value, max(math.sqrt(variance), half_width / z), z, 0.0, 1.0)
    return Estimate(
        name=metric,
        value=value,
        lower=lower,
        upper=upper,
        n_obs=len(p),
        confidence_level=confidence_level,
        definition=f"of {n:,} rows, from {len(p):,} labels drawn with known probabilities; difference estimator",
    )
