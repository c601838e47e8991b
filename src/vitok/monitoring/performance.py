"""How good the decisions were, now that their labels are known: ranking, calibration, money, each with its interval."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok import stats
from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.policies import Costs
from vitok.stats import Estimate
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Performance(Result):
    """Realised performance; what the data cannot answer is an estimate of NaN that says why.

    Attributes:
        n_decisions: Decisions looked at, labelled or not.
        n_labelled: Those whose label is known; all but `labelled` rests on these.
        n_fraud: Labelled frauds.
        labelled: Share of the decisions whose label is known.
        auc: Area under the ROC curve of the calibrated probability.
        average_precision: Its average precision.
        card_precision: Share of compromised cards among the k of highest probability a day.
        calibration_error: Debiased calibration error.
        brier: Brier score.
        mean_probability: What the model expects.
        fraud_rate: What happened; beside `mean_probability` it tells whether the level is right.
        cost_per_decision: What the actions cost, realised.
    """

    n_decisions: int
    n_labelled: int
    n_fraud: int
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
        return "\n".join([head, *(f"  {estimate}" for estimate in self.estimates[1:])])


def performance(
    decisions: "pl.DataFrame",
    *,
    costs: Costs | None = None,
    k: int = 100,
    card: str | None = None,
    day: str = "event_time",
    amount: str = "amount",
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
        confidence_level: Level of the intervals, in (0, 1).

    Returns:
        The performance.

    Raises:
        InvalidInput: If a column that is needed is missing, or a label is not 0, 1 or null.

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

    _need(decisions, "label", "probability", *(("action", amount) if costs else ()), *((card, day) if card else ()))
    label = decisions["label"].cast(pl.Float64).fill_null(math.nan).to_numpy()
    probability = decisions["probability"].cast(pl.Float64).fill_null(math.nan).to_numpy()
    known = ~np.isnan(label)
    wrong = known & (label != 0.0) & (label != 1.0)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidInput(f"decisions: label[{at}]", float(label[at]), "be 0, 1 or null")
    scored = known & ~np.isnan(probability)
    y, p = label[scored], probability[scored]
    no_model = "" if scored.any() or not known.any() else "no labelled decision has a probability"

    def measured(estimate: Estimate) -> Estimate:
        return dataclasses.replace(estimate, definition=no_model) if no_model else estimate

    def named(estimate: Estimate, name: str, definition: str) -> Estimate:
        return dataclasses.replace(estimate, name=name, definition=definition if estimate.n_obs else "no rows")

    level = confidence_level
    n_labelled, n_fraud = int(known.sum()), int(np.nansum(label))
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
    return Performance(
        n_decisions=decisions.height,
        n_labelled=n_labelled,
        n_fraud=n_fraud,
        labelled=named(
            stats.wilson(n_labelled, decisions.height, confidence_level=level),
            "labelled",
            "share of decisions whose label is known, Wilson score interval",
        ),
        auc=measured(stats.roc_auc(y, p, confidence_level=level)),
        average_precision=measured(stats.average_precision(y, p, confidence_level=level)),
        card_precision=card_precision,
        calibration_error=measured(_plain(stats.calibration_error(y, p, confidence_level=level))),
        brier=measured(stats.brier(y, p, confidence_level=level)),
        mean_probability=measured(stats.mean_interval(p, confidence_level=level, name="mean_probability")),
        fraud_rate=named(
            stats.wilson(n_fraud, n_labelled, confidence_level=level),
            "fraud_rate",
            "share of frauds among labelled decisions, Wilson score interval",
        ),
        cost_per_decision=_cost(decisions, label, known, costs, amount, level),
    )


def _need(decisions: "pl.DataFrame", *names: str) -> None:
    missing = [name for name in names if name not in decisions.columns]
    if missing:
        raise InvalidInput("decisions: columns", missing, "be there", f"There is: {', '.join(decisions.columns)}")


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
    known: NDArray[np.bool_],
    costs: Costs | None,
    amount: str,
    confidence_level: float,
) -> Estimate:
    if costs is None:
        return _undefined("cost_per_decision", "no costs given", confidence_level)
    import polars as pl

    amounts = decisions[amount].cast(pl.Float64).fill_null(math.nan).to_numpy()
    priced = known & np.isfinite(amounts)
    actions = decisions["action"].to_numpy()[priced]
    cost = costs.realised(actions, amounts[priced], label[priced] == 1.0)
    found = stats.mean_interval(cost, confidence_level=confidence_level, name="cost_per_decision")
    definition = "mean realised cost of the actions, in the amounts' currency; t interval over decisions"
    return dataclasses.replace(
        found, lower=max(0.0, found.lower), definition=definition if found.n_obs > 1 else found.definition
    )
