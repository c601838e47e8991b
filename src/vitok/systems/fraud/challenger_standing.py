"""How the challenger does against the champion, on the same decisions, once their labels are known.

What both said is taken from the log, as it was said at the time. Both are turned into actions by one policy, the
champion's without its dice, so that what is compared is the models.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok import stats
from vitok.clock import isoformat
from vitok.decisions import label_weights
from vitok.policies import Costs, TierPolicy
from vitok.stats import Estimate
from vitok.stats.confidence_sequences import mean_sequence
from vitok.stats.off_policy import doubly_robust, snips
from vitok.stats.results import Result
from vitok.systems.fraud.messages import CHALLENGER

if TYPE_CHECKING:
    import polars as pl

_Floats = NDArray[np.float64]
COLUMNS = (
    "request_id",
    "event_time",
    "amount",
    "probability",
    "action",
    "propensity",
    "shadow_version",
    "shadow_probability",
)
_PLACES = {"allow": 0, "review": 1, "block": 2}
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Side(Result):
    """One of the two, on decisions with labels.

    Attributes:
        name: `"challenger"` or `"champion"`.
        roc_auc: Of the decisions that have a label. Those that were blocked for good are missing in it, which flatters
            the challenger: it is the champion that has put them away.
        average_precision: The same.
        log_loss: Nats a decision, each weighted by one over the probability that its label could be seen.
        cost: Of a decision, in the amounts' currency, doubly robust: where a block hides the label, what the champion
            believed stands in, and the pass-through corrects it.
    """

    name: str
    roc_auc: Estimate
    average_precision: Estimate
    log_loss: Estimate
    cost: Estimate

    def __str__(self) -> str:
        return (
            f"{self.name}: AUC {_told(self.roc_auc)}, average precision {_told(self.average_precision)}, "
            f"log loss {_told(self.log_loss)}, cost {_told(self.cost)}"
        )


@dataclass(frozen=True, kw_only=True)
class Standing(Result):
    """The two beside each other.

    Attributes:
        since: Event time from which decisions count, in microseconds.
        until: Event time at which they end, in microseconds.
        n_obs: Decisions that both scored and whose label is known.
        n_positives: Of those, frauds.
        challenger: The one that learns online.
        champion: The one that answered.
        log_loss_difference: Challenger less champion, weighted, from the same decisions.
        cost_difference: Challenger less champion, doubly robust, from the same decisions.
    """

    since: int
    until: int
    n_obs: int
    n_positives: int
    challenger: Side
    champion: Side
    log_loss_difference: Estimate
    cost_difference: Estimate

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.n_obs:,} decisions from {isoformat(self.since)} to {isoformat(self.until)}, "
                f"{self.n_positives:,} frauds",
                f"  {self.challenger}",
                f"  {self.champion}",
                f"  challenger less champion: log loss {_told(self.log_loss_difference)}, "
                f"cost a decision {_told(self.cost_difference)}",
            ]
        )


def standing(rows: "pl.DataFrame", *, policy: TierPolicy, costs: Costs, since: int, until: int) -> Standing | None:
    """Compares the two on decisions with labels.

    Args:
        rows: `COLUMNS` of the decision log and `label`, null where it is not known.
        policy: Turns a probability into an action.
        costs: What an action costs once the truth is known.
        since: Begin of the period, in microseconds.
        until: Its end.

    Returns:
        The comparison, or None where no decision was scored by both and has a label.
    """
    found = _Paired.of(rows, policy=policy, costs=costs)
    known = np.isfinite(found.label)
    if not known.any():
        return None
    label = found.label[known] == 1
    weight = np.where(known, found.weight, 0.0)
    losses = [_losses(p, found.label) for p in found.probabilities]

    def side(name: str, at: int) -> Side:
        score = found.probabilities[at][known]
        return Side(
            name=name,
            roc_auc=stats.roc_auc(label, score),
            average_precision=stats.average_precision(label, score),
            log_loss=_named("log_loss", snips(losses[at], weight)),
            cost=_named("cost_per_decision", doubly_robust(*found.robust(lambda costs: costs[at]))),
        )

    return Standing(
        since=since,
        until=until,
        n_obs=int(known.sum()),
        n_positives=int(label.sum()),
        challenger=side("challenger", 0),
        champion=side("champion", 1),
        log_loss_difference=_named("log_loss_difference", snips(losses[0] - losses[1], weight)),
        cost_difference=_named("cost_difference", doubly_robust(*found.robust(_less))),
    )


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Running sums of what the challenger's action costs more than the champion's, for looks at any time.

    Attributes:
        until: Event time up to which decisions have been counted, in microseconds.
        n_obs: Decisions counted.
        mean: Mean of the difference.
        scatter: Sum of the squared distances from the mean.
        n_positives: Frauds among them whose label is known.

    Example:
        >>> print(Tally(until=0, n_obs=40_000, mean=-0.02, scatter=4_000.0, n_positives=200).difference())
        cost_difference -0.02 (95 % interval -0.02481 to -0.01519, n = 40,000)
    """

    until: int
    n_obs: int = 0
    mean: float = 0.0
    scatter: float = 0.0
    n_positives: int = 0

    def added(self, rows: "pl.DataFrame", *, policy: TierPolicy, costs: Costs, until: int) -> "Tally":
        """Returns it with decisions added, each of which must come once; see `standing`."""
        found = _Paired.of(rows, policy=policy, costs=costs)
        reward, weight, guess, _ = found.robust(_less)
        terms = guess + np.where(weight > 0, weight * (np.where(weight > 0, reward, 0.0) - guess), 0.0)
        n, total = len(terms), self.n_obs + len(terms)
        if not n:
            return dataclasses.replace(self, until=until)
        # Chan, Golub and LeVeque 1979: the sums of two parts make those of both.
        moved = float(terms.mean()) - self.mean
        return Tally(
            until=until,
            n_obs=total,
            mean=self.mean + moved * n / total,
            scatter=self.scatter + float(((terms - terms.mean()) ** 2).sum()) + moved**2 * self.n_obs * n / total,
            n_positives=self.n_positives + int((found.label == 1).sum()),
        )

    def difference(self, *, tuned_for: int = 50_000, confidence_level: float = 0.95) -> Estimate:
        """Returns the mean difference with an interval that holds at all looks together."""
        variance = self.scatter / self.n_obs if self.n_obs else 0.0
        return mean_sequence(
            n_obs=self.n_obs,
            mean=self.mean,
            variance=variance,
            tuned_for=tuned_for,
            confidence_level=confidence_level,
            name="cost_difference",
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Paired:
    # Decisions that both scored and that can tell something: challenger first, champion second.
    label: _Floats
    weight: _Floats
    probabilities: tuple[_Floats, _Floats]
    realised: tuple[_Floats, _Floats]
    believed: tuple[_Floats, _Floats]

    @classmethod
    def of(cls, rows: "pl.DataFrame", *, policy: TierPolicy, costs: Costs) -> "_Paired":
        import polars as pl

        both = pl.col("shadow_version").str.starts_with(f"{CHALLENGER}/")
        both &= pl.col("shadow_probability").is_finite() & pl.col("probability").is_finite()
        rows = rows.filter(both.fill_null(value=False))
        rows = rows.unique("request_id", keep="first", maintain_order=True)
        label = rows["label"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        weight = label_weights(rows).weight
        propensity = rows["propensity"].to_numpy()
        # A label that could come and has not says nothing yet; one that nobody could ever see is missed by all.
        kept = ~((weight > 0) & ~np.isfinite(label)) & ~((weight == 0) & (propensity >= 1) & ~np.isfinite(label))
        rows, label, weight = rows.filter(pl.Series(kept, dtype=pl.Boolean)), label[kept], weight[kept]
        amount = rows["amount"].to_numpy()
        pair = rows["shadow_probability"].to_numpy(), rows["probability"].to_numpy()
        fixed = dataclasses.replace(policy, pass_through=0.0)
        guess = costs.expected(pair[1], amount)
        places = np.arange(len(label))
        realised, believed = [], []
        for probability in pair:
            actions = fixed.decide(probability, amount, [""] * len(label)).actions
            chosen = np.array([_PLACES[action] for action in actions], np.int64)
            truth = costs.expected(np.nan_to_num(label), amount)[chosen, places]
            realised.append(np.where(np.isfinite(label), truth, math.nan))
            believed.append(guess[chosen, places])
        return cls(
            label=label,
            weight=weight,
            probabilities=pair,
            realised=(realised[0], realised[1]),
            believed=(believed[0], believed[1]),
        )

    def robust(self, of: Any) -> tuple[_Floats, _Floats, _Floats, _Floats]:
        """Returns what `doubly_robust` takes, of a quantity of the two costs."""
        weight = np.where(np.isfinite(self.label), self.weight, 0.0)
        guess = of(self.believed)
        return of(self.realised), weight, guess, guess


def _less(costs: tuple[_Floats, _Floats]) -> _Floats:
    return costs[0] - costs[1]


def _losses(probability: _Floats, label: _Floats) -> _Floats:
    p = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.where(np.isfinite(label), np.where(label == 1, -np.log(p), -np.log1p(-p)), math.nan)


def _named(name: str, estimate: Estimate) -> Estimate:
    return dataclasses.replace(estimate, name=name)


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ({estimate.lower:.4g} to {estimate.upper:.4g})"
