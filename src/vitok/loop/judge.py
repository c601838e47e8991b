"""Judging a release on the log: one version against another on the same decisions, valid at every look.

During a canary both versions score every decision; one acts, the other is the decision's shadow. What the shadow
would have done follows from its probability and its policy, so each decision is a pair, and what both share (the day,
the customers, the amounts) cancels out.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from vitok.clock import isoformat
from vitok.errors import Conflict, InvalidInput
from vitok.loop.release_evidence import Look, Seen, kept_ids
from vitok.policies import ALLOW, Costs, TierPolicy
from vitok.stats import Estimate, mean_sequence

if TYPE_CHECKING:
    import polars as pl

State = Literal["continue", "accept", "refuse"]
CANARY_FAILED = "the canary failed"
"""The `route_reason` of a decision that the candidate was asked for and did not answer."""

_COLUMNS = ("request_id", "model_version", "probability", "action", "shadow_version", "shadow_probability", "amount")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeRules:
    """When a candidate is refused and when it is accepted.

    Attributes:
        max_alert_rate_increase: Rise of the share of decisions that are stopped or fail which is still tolerated,
            in [0, 1).
        cost_margin: How much dearer than the incumbent a candidate may be, as a share of the incumbent's cost, at
            least 0.
        min_decisions: Decisions before the first judgement on alerts; below some dozens the intervals promise
            nothing.
        min_outcomes: Decisions with labels before the first judgement on cost.
        min_positives: Positive labels among them before that: cost is made by few rows, and without them the
            spread looks smaller than it is.
        confidence_level: Level of the whole judgement over all looks, in (0, 1).
        tuned_for: Number of decisions at which the intervals are tightest.
    """

    max_alert_rate_increase: float = 0.02
    cost_margin: float = 0.05
    min_decisions: int = 200
    min_outcomes: int = 500
    min_positives: int = 50
    confidence_level: float = 0.95
    tuned_for: int = 20_000

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.max_alert_rate_increase < 1:
            raise InvalidInput("rules: max_alert_rate_increase", self.max_alert_rate_increase, "be in [0, 1)")
        if not (self.cost_margin >= 0 and math.isfinite(self.cost_margin)):
            raise InvalidInput("rules: cost_margin", self.cost_margin, "be at least 0")
        for name in ("min_decisions", "min_outcomes", "tuned_for"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"rules: {name}", getattr(self, name), "be at least 1")
        if self.min_positives < 0:
            raise InvalidInput("rules: min_positives", self.min_positives, "be at least 0")
        if not 0 < self.confidence_level < 1:
            raise InvalidInput("rules: confidence_level", self.confidence_level, "be in (0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleaseVerdict:
    """What the log says about a candidate by now.

    Attributes:
        state: `"continue"`, `"accept"` or `"refuse"`.
        reason: Why, in words, with the numbers.
        candidate: Version under judgement, such as `"fraud/2"`.
        incumbent: Version it is compared with.
        time_us: When it was judged, in microseconds.
        alert_rate_difference: Share of decisions that the candidate stops or fails to answer, less the
            incumbent's share of stops, with its interval over all looks.
        cost_difference: Candidate's realised cost a decision less the incumbent's, with its interval over all looks.
        incumbent_cost: The incumbent's realised cost a decision; NaN before the first label.
        n_decisions: Pairs seen.
        n_failures: Those of them that the candidate did not answer.
        n_outcomes: Pairs with a label.
        n_positives: Positive labels among them.
    """

    state: State
    reason: str
    candidate: str
    incumbent: str
    time_us: int
    alert_rate_difference: Estimate
    cost_difference: Estimate
    incumbent_cost: float
    n_decisions: int
    n_failures: int
    n_outcomes: int
    n_positives: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts; NaN and infinities become None."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "alert_rate_difference": self.alert_rate_difference.to_dict(),
            "cost_difference": self.cost_difference.to_dict(),
            "incumbent_cost": self.incumbent_cost if math.isfinite(self.incumbent_cost) else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a field is missing.
        """
        try:
            read = {name: Estimate.from_dict(data[name]) for name in ("alert_rate_difference", "cost_difference")}
            base = data["incumbent_cost"]
            return cls(**{**data, **read, "incumbent_cost": math.nan if base is None else base})
        except (KeyError, TypeError) as error:
            raise InvalidInput("verdict", data, f"be what ReleaseVerdict.to_dict wrote ({error})") from None

    def __str__(self) -> str:
        return f"{isoformat(self.time_us)} {self.candidate} against {self.incumbent}: {self.state}: {self.reason}"


class _Sums:
    """Running sums of one or two paired columns: enough for the mean and variance of any mix of them."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = np.zeros(2)
        self._scatter = np.zeros((2, 2))

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Adds rows, each of shape (n,), by the update of Chan, Golub & LeVeque (1979), which does not cancel."""
        rows = np.stack([first, second], axis=1)
        if not len(rows):
            return
        n, total = len(rows), self.n + len(rows)
        mean = rows.mean(axis=0)
        moved, centred = mean - self._mean, rows - mean
        self._scatter += centred.T @ centred + np.outer(moved, moved) * self.n * n / total
        self._mean += moved * n / total
        self.n = total

    def to_state(self) -> dict[str, Any]:
        """Returns the sums as what JSON can hold, exactly."""
        return {"n": self.n, "mean": self._mean.tolist(), "scatter": self._scatter.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Goes on from `to_state`."""
        sums = cls()
        sums.n = int(state["n"])
        sums._mean, sums._scatter = np.array(state["mean"], np.float64), np.array(state["scatter"], np.float64)
        return sums

    def mean(self, *weights: float) -> float:
        """Mean of the weighted sum of the columns; NaN without rows."""
        return float(self._mean @ np.array(weights)) if self.n else math.nan

    def variance(self, *weights: float) -> float:
        """Variance of the weighted sum of the columns."""
        mix = np.array(weights)
        return max(float(mix @ self._scatter @ mix) / self.n, 0.0) if self.n else 0.0


class PairedJudge:
    """Keeps the running sums of one candidate against one incumbent, and judges at every look.

    Only decisions that both versions scored count, and those that the candidate was asked for and failed; anything
    else in a frame is passed over. A request counts once, with the row and the label it came with first, so that
    frames may overlap. The judge holds no file: keep `to_state` beside the place in the log that it has read, and
    `restore` it after a restart; it then goes on to the last bit as if there had been none.

    The chance that a candidate is refused although it neither stops more than is tolerated nor costs more than the
    incumbent is at most `1 - confidence_level` over all looks together: half of it is given to each of the two
    intervals (union bound). The chance that one which costs more than the margin allows is accepted is at most half
    of it. A verdict other than "continue" is final. The intervals are asymptotic (`vitok.stats.mean_sequence`): with
    costs so skewed that a few rows make the sum, and a candidate exactly at the bound, the first looks err more
    often than promised, which is what `min_positives` is for. They speak about the decisions of this span, not
    about those to come.

    Args:
        candidate: Version under judgement, such as `"fraud/2"`.
        incumbent: Version it is compared with.
        candidate_policy: Turns the candidate's probability into an action where it was the shadow.
        incumbent_policy: The same for the incumbent.
        costs: What an action cost once the truth is known.
        rules: When to refuse and to accept.

    Raises:
        InvalidInput: If both versions are the same.

    Example:
        >>> import polars as pl
        >>> policy = TierPolicy(costs=Costs())
        >>> judge = PairedJudge(candidate="fraud/2", incumbent="fraud/1", candidate_policy=policy,
        ...                     incumbent_policy=policy, costs=Costs())
        >>> n = 400
        >>> judge.see(pl.DataFrame({
        ...     "request_id": [str(row) for row in range(n)], "amount": [50.0] * n,
        ...     "model_version": ["fraud/1"] * n, "probability": [0.001] * n, "action": ["allow"] * n,
        ...     "shadow_version": ["fraud/2"] * n, "shadow_probability": [0.99] * n,
        ... }))
        400
        >>> verdict = judge.verdict(0)
        >>> verdict.state, verdict.alert_rate_difference.value
        ('refuse', 1.0)
    """

    def __init__(
        self,
        *,
        candidate: str,
        incumbent: str,
        candidate_policy: TierPolicy,
        incumbent_policy: TierPolicy,
        costs: Costs,
        rules: JudgeRules | None = None,
    ) -> None:
        if candidate == incumbent:
            raise InvalidInput("candidate", candidate, "be another version than the incumbent")
        self.candidate = candidate
        self.incumbent = incumbent
        self.rules = rules or JudgeRules()
        self._policies = {candidate: candidate_policy, incumbent: incumbent_policy}
        self._costs = costs
        self._alerts = _Sums()
        self._cost = _Sums()
        self._failures = 0
        self._positives = 0
        self._seen, self._matured = Seen(), Seen()
        self._final: ReleaseVerdict | None = None

    def take(self, look: Look, *, now: int) -> ReleaseVerdict:
        """Takes in a look's decisions and labels, and judges."""
        if look.decisions is not None:
            self.see(look.decisions)
        if look.labelled is not None:
            self.mature(look.labelled)
        return self.verdict(now)

    def see(self, decisions: "pl.DataFrame") -> int:
        """Takes decisions into account as soon as they are made: what would each version have stopped?

        Args:
            decisions: Rows of the decision log; of a column `route_reason`, `CANARY_FAILED` counts as a failure, and
                so does `"fallback"` of a column `route` where the incumbent answered.

        Returns:
            How many of the rows were new pairs.

        Raises:
            InvalidInput: If a column is missing, or an amount is not a number of at least 0.
        """
        pairs = self._pairs(decisions, self._seen)
        stops = {version: pairs.actions[version] != ALLOW for version in (self.candidate, self.incumbent)}
        self._failures += int(pairs.failed.sum())
        self._alerts.add((stops[self.candidate] | pairs.failed).astype(float), stops[self.incumbent].astype(float))
        return len(pairs.failed)

    def mature(self, labelled: "pl.DataFrame") -> int:
        """Takes decisions into account whose outcome is known: what did each version's action cost?

        Args:
            labelled: Rows of the decision log with a column `label` of 0 or 1; rows where it is null are passed over.

        Returns:
            How many of the rows were new pairs with a label.

        Raises:
            InvalidInput: If a column is missing, or a label is neither 0 nor 1.
        """
        if "label" not in labelled.columns:
            raise InvalidInput("labelled", labelled.columns, "have a column 'label'", "Join labels with decisions.join")
        labelled = labelled.filter(labelled["label"].is_not_null())
        label = labelled["label"].to_numpy().astype(np.float64)
        wrong = label[(label != 0) & (label != 1)]
        if len(wrong):
            raise InvalidInput("label", float(wrong[0]), "be 0 or 1")
        pairs = self._pairs(labelled, self._matured)
        truth = label[pairs.rows] == 1
        cost = {name: self._costs.realised(acts, pairs.amount, truth) for name, acts in pairs.actions.items()}
        self._positives += int(truth.sum())
        self._cost.add(cost[self.candidate], cost[self.incumbent])
        return len(truth)

    def verdict(self, now: int) -> ReleaseVerdict:
        """Judges on all that was taken in so far; call it as often as you like.

        Args:
            now: The present, in microseconds.

        Returns:
            The verdict. Refuse: the alert rate rose by more than is tolerated, or the candidate is dearer. Accept:
            it is not dearer than the incumbent's cost and the margin together. Once it is one of the two, it stays.
        """
        if self._final is not None:
            return self._final
        rules = self.rules
        alerts = self._sequence("alert_rate_difference", self._alerts, 1.0, -1.0)
        cost = self._sequence("cost_difference", self._cost, 1.0, -1.0)
        # The incumbent's cost is an estimate too, so the margin is judged as one mean: candidate less (1 + margin)
        # times incumbent.
        beyond = self._sequence("cost_beyond_margin", self._cost, 1.0, -1.0 - rules.cost_margin)
        base = self._cost.mean(0.0, 1.0)
        judged = self._cost.n >= rules.min_outcomes and self._positives >= rules.min_positives
        state: State = "continue"
        if self._alerts.n >= rules.min_decisions and alerts.lower > rules.max_alert_rate_increase:
            state = "refuse"
            reason = (
                f"it stops or fails {_points(alerts.value)} more of {alerts.n_obs:,} decisions "
                f"({_points(alerts.lower)} to {_points(alerts.upper)}), above the "
                f"{_points(rules.max_alert_rate_increase)} that are tolerated"
                + (f"; {self._failures:,} were not answered" if self._failures else "")
            )
        elif judged and cost.lower > 0:
            state = "refuse"
            reason = f"it is dearer: {_told(cost, base)}"
        elif judged and beyond.upper < 0:
            state = "accept"
            reason = f"it is not dearer by more than {100 * rules.cost_margin:g} %: {_told(cost, base)}"
        elif not judged:
            reason = (
                f"{self._cost.n:,} of at least {rules.min_outcomes:,} outcomes, {self._positives:,} of at least "
                f"{rules.min_positives:,} positive ones; {_stopped(alerts)}"
            )
        else:
            reason = f"the interval still holds both better and worse: {_told(cost, base)}; {_stopped(alerts)}"
        found = ReleaseVerdict(
            state=state,
            reason=reason,
            candidate=self.candidate,
            incumbent=self.incumbent,
            time_us=now,
            alert_rate_difference=alerts,
            cost_difference=cost,
            incumbent_cost=base,
            n_decisions=self._alerts.n,
            n_failures=self._failures,
            n_outcomes=self._cost.n,
            n_positives=self._positives,
        )
        if state != "continue":
            self._final = found
        return found

    def to_state(self) -> dict[str, Any]:
        """Returns all that was taken in, as a dict that `json.dumps` accepts: 11 bytes a request and look at it."""
        return self.sums() | {name: seen.to_state() for name, seen in self.ids.items()}

    @property
    def ids(self) -> Mapping[str, Seen]:
        """The requests that were counted when they were decided, and when their labels were known."""
        return {"seen": self._seen, "matured": self._matured}

    def sums(self) -> dict[str, Any]:
        """Returns what `to_state` does without the `ids`, for who keeps those apart; it stays small."""
        return {
            "about": self._about(),
            "alerts": self._alerts.to_state(),
            "cost": self._cost.to_state(),
            "failures": self._failures,
            "positives": self._positives,
            "final": None if self._final is None else self._final.to_dict(),
        }

    def restore(self, state: Mapping[str, Any], *, ids: Mapping[str, Seen] | None = None) -> None:
        """Goes on from what `to_state` returned, in place of all that this judge took in.

        Args:
            state: That; or what `sums` returned, with `ids`.
            ids: The ids that were kept apart; those in the state count before them.

        Raises:
            Conflict: If that was a judge of other versions, policies, costs or rules.
            InvalidInput: If a part is missing.
        """
        try:
            if state["about"] != self._about():
                raise Conflict(f"the state is of a judge of {state['about']}, not of {self._about()}")
            alerts, cost = _Sums.from_state(state["alerts"]), _Sums.from_state(state["cost"])
            failures, positives = int(state["failures"]), int(state["positives"])
            seen, matured = (kept_ids(state, ids, name) for name in ("seen", "matured"))
            final = None if state["final"] is None else ReleaseVerdict.from_dict(state["final"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput("state", sorted(state), f"be what PairedJudge.to_state returned ({error})") from None
        self._alerts, self._cost, self._failures, self._positives = alerts, cost, failures, positives
        self._seen, self._matured, self._final = seen, matured, final

    def _about(self) -> dict[str, Any]:
        return {
            "candidate": self.candidate,
            "incumbent": self.incumbent,
            "policies": {name: policy.describe() for name, policy in self._policies.items()},
            "costs": dataclasses.asdict(self._costs),
            "rules": dataclasses.asdict(self.rules),
        }

    def _sequence(self, name: str, sums: _Sums, *weights: float) -> Estimate:
        return mean_sequence(
            n_obs=sums.n,
            mean=sums.mean(*weights),
            variance=sums.variance(*weights),
            tuned_for=self.rules.tuned_for,
            confidence_level=1 - (1 - self.rules.confidence_level) / 2,
            name=name,
        )

    def _pairs(self, frame: "pl.DataFrame", known: Seen) -> "_Pairs":
        """Finds the new pairs of a frame and what each version did or would have done."""
        import polars as pl

        for name in _COLUMNS:
            if name not in frame.columns:
                raise InvalidInput("decisions", frame.columns, f"have a column {name!r}")
        mine = [self.candidate, self.incumbent]
        reason = pl.col("route_reason") if "route_reason" in frame.columns else pl.lit("")
        route = pl.col("route") if "route" in frame.columns else pl.lit("")
        by_incumbent = pl.col("model_version") == self.incumbent
        both = pl.col("model_version").is_in(mine) & pl.col("shadow_version").is_in(mine)
        both &= pl.col("model_version") != pl.col("shadow_version")
        # Where the incumbent did not answer there is nothing to compare with.
        both &= by_incumbent | pl.col("shadow_probability").is_between(0, 1)
        # The candidate was asked: as the canary, or as the champion in whose place the incumbent answered.
        failed = by_incumbent & ((reason == CANARY_FAILED) | (route == "fallback"))
        paired = both.fill_null(value=False) | failed.fill_null(value=False)
        frame = (
            frame.select(*_COLUMNS, row=pl.int_range(pl.len()), paired=paired)
            .filter("paired")
            .unique("request_id", keep="first", maintain_order=True)
        )
        frame = frame.filter(pl.Series(known.new(frame["request_id"].to_list()), dtype=pl.Boolean))
        requests = frame["request_id"].to_list()
        amount = frame["amount"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        if not (np.isfinite(amount) & (amount >= 0)).all():
            at = int(np.argmin(np.isfinite(amount) & (amount >= 0)))
            raise InvalidInput(f"amount of {requests[at]}", float(amount[at]), "be a finite number of at least 0")
        acted = frame["action"].to_numpy().astype(object)
        shadow = frame["shadow_probability"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        candidate_acted = (frame["model_version"] == self.candidate).to_numpy()
        # Where the candidate did not answer, what the incumbent did stands for both.
        answered = np.isfinite(shadow) & (shadow >= 0) & (shadow <= 1)
        actions = {self.candidate: acted.copy(), self.incumbent: acted.copy()}
        for version, shadowed in ((self.candidate, ~candidate_acted), (self.incumbent, candidate_acted)):
            rows = np.flatnonzero(shadowed & answered)
            units = [requests[row] for row in rows]
            actions[version][rows] = self._policies[version].decide(shadow[rows], amount[rows], units).actions
        probability = frame["probability"].cast(pl.Float64).fill_null(math.nan).to_numpy()
        silent = np.where(candidate_acted, ~np.isfinite(probability), ~answered)
        known.add(requests)
        return _Pairs(rows=frame["row"].to_numpy(), amount=amount, actions=actions, failed=silent)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pairs:
    rows: np.ndarray
    amount: np.ndarray
    actions: dict[str, np.ndarray]
    failed: np.ndarray


def _points(share: float) -> str:
    return f"{100 * share:.3g} %"


def _told(cost: Estimate, base: float) -> str:
    return (
        f"a decision costs {cost.value:+.4g} ({cost.lower:+.4g} to {cost.upper:+.4g}) against the incumbent's "
        f"{base:.4g} on {cost.n_obs:,} outcomes"
    )


def _stopped(alerts: Estimate) -> str:
    if not alerts.n_obs:
        return "no decision was scored by both yet"
    return (
        f"alert rate {100 * alerts.value:+.3g} % ({100 * alerts.lower:+.3g} to {100 * alerts.upper:+.3g}) on "
        f"{alerts.n_obs:,} decisions"
    )
