"""How good the decisions were, now that their labels are known: ranking, calibration, money, each with its interval.

A blocked payment has no outcome. What is known of it is its probability, and what became of the few of its kind that
were let pass at random: the probability stands for the label, corrected by how far those few were from theirs, each
counted by one over the chance that it had of passing. The estimate is then one over all decisions, right on average
whatever the probabilities are worth, and its interval has what the few leave open.
"""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok import stats
from vitok.clock import DAY
from vitok.decisions import label_weights
from vitok.errors import InvalidInput
from vitok.policies import Costs
from vitok.stats import Estimate
from vitok.stats.intervals import normal_quantile
from vitok.stats.performance_estimation import ExpectedRanking
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

_DIFFERENCE = "what can have no label is estimated from its probability and from what passed at random"


@dataclass(frozen=True, kw_only=True)
class Performance(Result):
    """Realised performance; what the data cannot answer is an estimate of NaN that says why.

    Attributes:
        n_decisions: Decisions looked at, labelled or not.
        n_labelled: Those whose label is known; all but `labelled` rests on these.
        n_fraud: Labelled frauds.
        n_hidden: Decisions after which no outcome can be seen.
        n_unsupported: Of those, decisions without a chance of passing: their probability is taken at its word.
        informed: Share of the expected frauds that lies in decisions whose label is known, in [0, 1].
        labelled: Share of the decisions whose label is known, of those that can have one.
        auc: Area under the ROC curve of the calibrated probability.
        average_precision: Its average precision.
        card_precision: Share of compromised cards among the k of highest probability a day.
        calibration_error: Debiased calibration error of the decisions whose outcome was seen.
        brier: Brier score.
        mean_probability: What the model expects.
        fraud_rate: What happened; beside `mean_probability` it tells whether the level is right.
        cost_per_decision: What the actions cost, realised.
    """

    n_decisions: int
    n_labelled: int
    n_fraud: int
    n_hidden: int
    n_unsupported: int
    informed: float
    labelled: Estimate
    auc: Estimate
    average_precision: Estimate
    card_precision: Estimate
    calibration_error: Estimate
    brier: Estimate
    mean_probability: Estimate
    fraud_rate: Estimate
    cost_per_decision: Estimate

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """All estimates, in the order of declaration."""
        found = (getattr(self, item.name) for item in dataclasses.fields(self))
        return tuple(value for value in found if isinstance(value, Estimate))

    def __str__(self) -> str:
        head = f"{self.n_labelled:,} of {self.n_decisions:,} decisions labelled, {self.n_fraud:,} frauds"
        if self.n_hidden:
            head += f"; {self.n_hidden:,} without an outcome"
            head += f", {self.n_unsupported:,} of them without a chance of one" if self.n_unsupported else ""
        return "\n".join([head, *(f"  {estimate}" for estimate in self.estimates[1:])])


def performance(
    decisions: "pl.DataFrame",
    *,
    costs: Costs | None = None,
    k: int = 100,
    card: str | None = None,
    day: str = "event_time",
    amount: str = "amount",
    hiding: Collection[str] = (),
    confidence_level: float = 0.95,
) -> Performance:
    """Measures decisions against the labels that are known.

    Give decisions that are old enough for their labels to be in: where frauds are known before honest payments are,
    young decisions look worse than they are. Intervals take rows as independent; frauds come in bursts, so the true
    ones are somewhat wider.

    Args:
        decisions: Rows of the log joined with labels (`vitok.decisions.join`): `label` (0, 1, or null where it is
            not known yet), `probability` (NaN where no model answered: left out of all but labels and money), and
            the columns named below where they are needed.
        costs: What actions cost; needs the columns `action` and `amount`.
        k: Cards looked at a day, at least 1.
        card: Column with the card or customer; None leaves card precision out.
        day: Column that gives the day: a time, or whole days as integers.
        amount: Column with the amount.
        hiding: Actions after which no outcome can be seen, such as `("block",)`: a label of theirs is not used. Needs
            the columns `action` and `propensity` (that of the action taken), so that what passed at random stands
            for what did not.
        confidence_level: Level of the intervals, in (0, 1).

    Returns:
        The performance.

    Raises:
        InvalidInput: If a column that is needed is missing, a label is not 0, 1 or null, or a propensity is not in
            (0, 1].

    Source: the difference estimator, Särndal, Swensson & Wretman, Model Assisted Survey Sampling, 1992; as augmented
    inverse propensity weighting Robins, Rotnitzky & Zhao, JASA 1994.

    Example:
        >>> import polars as pl
        >>> rows = pl.DataFrame({"label": [0.0, 1.0, 0.0, None], "probability": [0.1, 0.8, 0.2, 0.3],
        ...     "action": ["allow", "block", "allow", "allow"], "amount": [10.0, 90.0, 20.0, 5.0]})
        >>> found = performance(rows, costs=Costs(false_block=30, review=3))
        >>> found.labelled.value, found.average_precision.value, found.cost_per_decision.value
        (0.75, 1.0, 0.0)
        >>> print(found.card_precision)
        card_precision_at_100 undefined (no card column named, n = 0)
    """
    import polars as pl

    selective = ("action", "propensity") if hiding else ()
    _need(
        decisions,
        "label",
        "probability",
        *selective,
        *(("action", amount) if costs else ()),
        *((card, day) if card else ()),
    )
    label = decisions["label"].cast(pl.Float64).fill_null(math.nan).to_numpy()
    probability = decisions["probability"].cast(pl.Float64).fill_null(math.nan).to_numpy()
    hidden, chance = _seen(decisions, hiding)
    known = ~np.isnan(label) & ~hidden
    wrong = known & (label != 0.0) & (label != 1.0)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidInput(f"decisions: label[{at}]", float(label[at]), "be 0, 1 or null")
    scored = known & ~np.isnan(probability)
    rows = _Rows.of(label, probability, known, hidden, chance)
    y, p = label[scored], probability[scored]
    no_model = "" if scored.any() or not known.any() else "no labelled decision has a probability"

    def measured(estimate: Estimate) -> Estimate:
        return dataclasses.replace(estimate, definition=no_model) if no_model else estimate

    level = confidence_level
    n_labelled, n_fraud = int(known.sum()), int(label[known].sum())
    card_precision = _undefined(f"card_precision_at_{k}", "no card column named", level)
    if card is not None:
        days = _days(decisions[day])
        found = stats.card_precision_at_k(
            day=days[scored],
            card=decisions[card].to_numpy()[scored],
            is_fraud=y,
            score=p,
            k=k,
            confidence_level=level,
        )
        card_precision = measured(_plain(found))
    n_visible = decisions.height - int(hidden.sum())
    return Performance(
        n_decisions=decisions.height,
        n_labelled=n_labelled,
        n_fraud=n_fraud,
        n_hidden=decisions.height - n_visible,
        n_unsupported=int((hidden & (chance <= 0)).sum()),
        informed=rows.informed(np.nansum(probability)),
        labelled=_named(
            stats.wilson(n_labelled, n_visible, confidence_level=level),
            "labelled",
            "share of decisions whose label is known, Wilson score interval",
        ),
        auc=measured(rows.ranking("roc_auc", level)),
        average_precision=measured(rows.ranking("average_precision", level)),
        card_precision=card_precision,
        calibration_error=measured(_plain(stats.calibration_error(y, p, confidence_level=level))),
        brier=measured(rows.brier(level)),
        mean_probability=measured(stats.mean_interval(rows.p, confidence_level=level, name="mean_probability")),
        fraud_rate=_fraud_rate(rows, n_fraud, n_labelled, level),
        cost_per_decision=_cost(decisions, np.where(known, label, math.nan), rows, costs, amount, hiding, level),
    )


@dataclass(frozen=True)
class _Rows:
    """The rows that an estimate rests on: those with a label, and those that can have none.

    Attributes:
        place: Shape (n,), their places among all.
        p: Shape (n,), their probabilities.
        y: Shape (n,), their labels; NaN where there can be none.
        extra: Shape (n,), by how much (label - probability) counts more than once: one over the chance, less one.
        noise: Shape (n,), variance that the few who passed leave in each label.
    """

    place: NDArray[np.intp]
    p: NDArray[np.float64]
    y: NDArray[np.float64]
    extra: NDArray[np.float64]
    noise: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        label: NDArray[np.float64],
        probability: NDArray[np.float64],
        known: NDArray[np.bool_],
        hidden: NDArray[np.bool_],
        chance: NDArray[np.float64],
    ) -> "_Rows":
        place = np.flatnonzero((known | hidden) & ~np.isnan(probability))
        p, chances = probability[place], chance[place]
        sure = chances <= 0
        extra = np.where(sure, 0.0, 1 / np.where(sure, 1.0, chances) - 1)
        spread = np.clip(p, 0, 1) * (1 - np.clip(p, 0, 1))
        y = np.where(hidden[place], math.nan, label[place])
        # By the probabilities, or where those who passed show them to be wrong, by how far off these were.
        off = np.where(hidden[place], 0.0, extra * (1 + extra) * (np.where(hidden[place], p, y) - p) ** 2)
        return cls(
            place=place,
            p=p,
            y=y,
            extra=np.where(hidden[place], 0.0, extra),
            noise=np.maximum(spread * np.where(sure, 1.0, extra), off),
        )

    @property
    def selective(self) -> bool:
        """Whether some can have no label."""
        return bool(self.noise.any() or np.isnan(self.y).any())

    def informed(self, expected: float) -> float:
        """Share of the expected positives of all rows that lies in those with a label."""
        return min(1.0, float(self.p[~np.isnan(self.y)].sum()) / expected) if expected > 0 else 0.0

    @property
    def expected(self) -> NDArray[np.float64]:
        """The label, or the probability where there can be none, shape (n,)."""
        return np.where(np.isnan(self.y), self.p, self.y)

    @property
    def corrected(self) -> NDArray[np.float64]:
        """The same, and what those who passed say of those who did not, shape (n,); not within [0, 1]."""
        return np.where(np.isnan(self.y), self.p, self.y + self.extra * (self.y - self.p))

    def ranking(self, name: str, level: float) -> Estimate:
        """Area under the ROC curve, or average precision."""
        measure = stats.roc_auc if name == "roc_auc" else stats.average_precision
        if not self.selective:
            return measure(self.y, self.p, confidence_level=level)
        # What sampling does to the value is told by whole labels, what the few who passed do by its slope.
        whole = measure(np.round(np.clip(self.expected, 0, 1)), self.p, confidence_level=level)
        unique, group = np.unique(-self.p, return_inverse=True)
        ranked = ExpectedRanking(
            group=group,
            n=np.bincount(group, minlength=len(unique)).astype(np.float64),
            positive=_sums(group, self.corrected, len(unique)),
            noise=_sums(group, np.where(np.isnan(self.y), self.p * (1 - self.p), 0.0), len(unique)),
        )
        value, slope = ranked.roc_auc() if name == "roc_auc" else ranked.average_precision()
        if math.isnan(value) or math.isnan(whole.value):
            return dataclasses.replace(whole, value=math.nan, lower=0.0, upper=1.0, definition="no fraud to rank")
        value = min(max(value, 1e-6), 1 - 1e-6)
        lower, upper = _joined(value, whole, math.sqrt(float((slope**2 * self.noise).sum())))
        return dataclasses.replace(
            whole,
            value=value,
            lower=lower,
            upper=upper,
            n_obs=len(self.p),
            definition=f"{whole.definition}; {_DIFFERENCE}",
        )

    def brier(self, level: float) -> Estimate:
        """Mean squared distance of the probability from the label."""
        if not self.selective:
            return stats.brier(self.y, self.p, confidence_level=level)
        found = self.mean(self.p**2, 1 - 2 * self.p, level, name="brier")
        return dataclasses.replace(found, lower=max(0.0, found.lower), upper=min(1.0, found.upper))

    def mean(
        self,
        base: NDArray[np.float64],
        slope: NDArray[np.float64],
        level: float,
        *,
        name: str,
        hidden_slope: NDArray[np.float64] | None = None,
    ) -> Estimate:
        """Mean of `base + slope * label`; `hidden_slope` is the slope that holds for those who did not pass."""
        other = slope if hidden_slope is None else hidden_slope
        found = stats.mean_interval(base + slope * self.expected, confidence_level=level, name=name)
        if not len(self.p) or not self.selective:
            return found
        residual = np.where(np.isnan(self.y), 0.0, self.extra * (self.y - self.p))
        value = found.value + float((residual * other).sum()) / len(self.p)
        error = math.sqrt(float((other**2 * self.noise).sum())) / len(self.p) * normal_quantile(level)
        half = math.hypot((found.upper - found.lower) / 2, error)
        return dataclasses.replace(
            found, value=value, lower=value - half, upper=value + half, definition=f"{found.definition}; {_DIFFERENCE}"
        )


def _sums(group: NDArray[np.intp], values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.asarray(np.bincount(group, weights=values, minlength=length), dtype=np.float64)


def _joined(value: float, whole: Estimate, error: float) -> tuple[float, float]:
    """Returns an interval on the logit scale from that of `whole` and a standard error at `value`."""
    z = normal_quantile(whole.confidence_level)

    def logit(share: float) -> float:
        inside = min(max(share, 1e-9), 1 - 1e-9)
        return math.log(inside / (1 - inside))

    own = (logit(whole.upper) - logit(whole.lower)) / 2
    half = math.hypot(own, z * error / (value * (1 - value)))
    ends = (logit(value) - half, logit(value) + half)
    return 1 / (1 + math.exp(min(700.0, -ends[0]))), 1 / (1 + math.exp(min(700.0, max(-700.0, -ends[1]))))


def _seen(decisions: "pl.DataFrame", hiding: Collection[str]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns whether an outcome cannot be seen, and the chance that it could have been; shape (n,) each."""
    n = decisions.height
    if not hiding:
        return np.zeros(n, dtype=np.bool_), np.ones(n)
    weights = label_weights(decisions, hiding=hiding)
    hidden = weights.weight == 0
    propensity = decisions["propensity"].to_numpy()
    return hidden, np.where(hidden, 1 - propensity, propensity)


def _named(estimate: Estimate, name: str, definition: str) -> Estimate:
    return dataclasses.replace(estimate, name=name, definition=definition if estimate.n_obs else "no rows")


def _fraud_rate(rows: _Rows, n_fraud: int, n_labelled: int, level: float) -> Estimate:
    if rows.selective and len(rows.p):
        found = rows.mean(np.zeros(len(rows.p)), np.ones(len(rows.p)), level, name="fraud_rate")
        # The frauds that were seen are there, whatever is thought of the rest.
        least = float(np.nansum(rows.y)) / len(rows.p)
        value, lower, upper = (min(max(each, least), 1.0) for each in (found.value, found.lower, found.upper))
        return dataclasses.replace(found, value=value, lower=lower, upper=upper)
    share = stats.wilson(n_fraud, n_labelled, confidence_level=level)
    return _named(share, "fraud_rate", "share of frauds among labelled decisions, Wilson score interval")


def _need(decisions: "pl.DataFrame", *names: str) -> None:
    missing = [name for name in names if name not in decisions.columns]
    if missing:
        raise InvalidInput("decisions: columns", missing, "be there", f"There is: {', '.join(decisions.columns)}")
    for name in {"label", "probability"} & set(names):
        kind = decisions.schema[name]
        if not (kind.is_numeric() or str(kind) in ("Boolean", "Null")):
            raise InvalidInput(f"decisions: {name}", str(kind), "be a column of numbers")


def _days(column: "pl.Series") -> NDArray[np.int64]:
    import polars as pl

    if column.dtype.is_integer():
        return column.cast(pl.Int64).to_numpy()
    if not column.dtype.is_temporal():
        raise InvalidInput(f"decisions: {column.name}", column.dtype, "be a time, or whole days as integers")
    return column.cast(pl.Datetime("us")).to_physical().to_numpy() // DAY


def _plain(estimate: Estimate) -> Estimate:
    values: dict[str, Any] = {item.name: getattr(estimate, item.name) for item in dataclasses.fields(Estimate)}
    return Estimate(**values)


def _undefined(name: str, reason: str, confidence_level: float) -> Estimate:
    return Estimate(
        name=name,
        value=math.nan,
        lower=0.0,
        upper=math.inf if name == "cost_per_decision" else 1.0,
        n_obs=0,
        confidence_level=confidence_level,
        definition=reason,
    )


def _cost(
    decisions: "pl.DataFrame",
    label: NDArray[np.float64],
    rows: _Rows,
    costs: Costs | None,
    amount: str,
    hiding: Collection[str],
    confidence_level: float,
) -> Estimate:
    if costs is None:
        return _undefined("cost_per_decision", "no costs given", confidence_level)
    import polars as pl

    amounts = decisions[amount].cast(pl.Float64).fill_null(math.nan).to_numpy()
    actions = decisions["action"].to_numpy()
    if rows.selective:
        priced = np.isfinite(amounts[rows.place])
        kept = _Rows(*(getattr(rows, item.name)[priced] for item in dataclasses.fields(rows)))
        at, n = kept.place, len(kept.place)

        def price(taken: NDArray[Any], happened: bool) -> NDArray[np.float64]:  # noqa: FBT001
            return np.asarray(costs.realised(taken, amounts[at], np.full(n, happened)), dtype=np.float64)

        if_not = price(actions[at], False)
        others = np.full(n, next(iter(hiding)), dtype=object)
        found = kept.mean(
            if_not,
            price(actions[at], True) - if_not,
            confidence_level,
            name="cost_per_decision",
            hidden_slope=price(others, True) - price(others, False),
        )
    else:
        priced = ~np.isnan(label) & np.isfinite(amounts)
        cost = costs.realised(actions[priced], amounts[priced], label[priced] == 1.0)
        found = stats.mean_interval(cost, confidence_level=confidence_level, name="cost_per_decision")
    definition = "mean realised cost of the actions, in the amounts' currency; t interval over decisions"
    definition += f"; {_DIFFERENCE}" if rows.selective else ""
    return dataclasses.replace(
        found, lower=max(0.0, found.lower), definition=definition if found.n_obs > 1 else found.definition
    )
