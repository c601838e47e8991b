"""Who answers a transaction and what it says: champion, canary and shadow, and rules where no model answers in time."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from vitok.decisions import Constant
from vitok.errors import ServiceError
from vitok.features import FeatureSet
from vitok.loop import CANARY_FAILED
from vitok.serving import Batch, Choice, Route, Scored, TimedOut
from vitok.serving.hosted import Chosen
from vitok.serving.targets import because
from vitok.systems.fraud import rules
from vitok.systems.fraud.challenger_serving import ChallengerShadow
from vitok.systems.fraud.intake import Accepted
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.versions import NO_MODEL, InForce

_SECOND = 1_000_000_000
_NO_VERSION = Constant(None)
_NO_NUMBER = Constant(math.nan)
_CERTAIN = Constant(1.0)
_Texts = Sequence[str] | Constant
_Numbers = np.ndarray | Constant


@functools.lru_cache(maxsize=512)
def every(text: str) -> Constant:
    """Returns a column that has this text in every row; the same object each time, so that it is made but once."""
    return Constant(text)


@dataclasses.dataclass(slots=True, kw_only=True)
class Verdicts:
    """The columns of the decision log that come of versions, route and policy; n rows, as `DecisionBlock` has them."""

    model_version: _Texts
    stage: _Texts
    route: _Texts
    route_reason: _Texts
    score: np.ndarray
    probability: np.ndarray
    shadow_version: Sequence[str | None] | Constant
    shadow_probability: _Numbers
    policy_version: _Texts
    action: Sequence[str]
    propensity: _Numbers

    @classmethod
    def of(cls, model: LoadedModel, score: np.ndarray, accepted: Accepted, *, route: str, reason: str) -> "Verdicts":
        """Makes the verdicts of a version from its scores, shape (n,)."""
        probability = model.calibrator(score)
        tiers = model.policy.decide(probability, np.array(accepted.amount), accepted.transaction_id)
        return cls(
            model_version=every(model.version),
            stage=every(model.stage),
            route=every(route),
            route_reason=every(reason),
            score=score,
            probability=probability,
            shadow_version=_NO_VERSION,
            shadow_probability=_NO_NUMBER,
            policy_version=every(model.policy_version),
            action=tiers.actions,
            propensity=tiers.propensity,
        )

    @classmethod
    def of_rules(cls, score: np.ndarray, reason: str) -> "Verdicts":
        """Makes the verdicts of the rules from their scores, shape (n,)."""
        return cls(
            model_version=every(rules.VERSION),
            stage=every("None"),
            route=every("fallback"),
            route_reason=every(reason),
            score=score,
            probability=np.full(len(score), math.nan),
            shadow_version=_NO_VERSION,
            shadow_probability=_NO_NUMBER,
            policy_version=every(rules.VERSION),
            action=rules.rule_actions(score),
            propensity=_CERTAIN,
        )

    def or_where(self, mask: np.ndarray, other: "Verdicts") -> "Verdicts":
        """Returns these verdicts, and the other's in the rows of a mask of shape (n,)."""
        columns = {
            field.name: _mixed(mask, getattr(other, field.name), getattr(self, field.name))
            for field in dataclasses.fields(self)
        }
        return Verdicts(**columns)

    def versions(self) -> Iterable[str]:
        """Goes over the version that answered, by row."""
        return _each(self.model_version, len(self.score))

    def chosen(self) -> Chosen | None:
        """Returns who answered each row and why, for a meter; None where the champion answered all."""
        route = self.route
        if isinstance(self.model_version, Constant) and isinstance(route, Constant) and route.value == "champion":
            return None
        columns = (self.model_version, self.route, self.route_reason, self.propensity)
        return Chosen(*(list(_each(column, len(self.score))) for column in columns))

    def rows(self) -> Iterable[tuple[Any, ...]]:
        """Goes over (action, probability, propensity, version, route) by row."""
        columns = (self.action, self.probability, self.propensity, self.model_version, self.route)
        return zip(*(_each(column, len(self.score)) for column in columns), strict=True)


class Scorer:
    """Asks the versions in force about a turn of transactions.

    A request that is older than the deadline when its turn comes is answered by rules. A model of this process
    cannot be cut off while it computes; where it fails, or was slow too often, its breaker keeps requests away from
    it, and the version before it or the rules answer.

    Args:
        features: What the columns of the values are.
        deadline: Seconds from the arrival of a request.
        count: Counts `late`, `fallbacks` and `shadow_failures`.
        challenger: Is the shadow where no version on trial is; it is asked after the champion has answered, so that
            it cannot use up the champion's time. None for nothing.
    """

    def __init__(
        self,
        features: FeatureSet,
        *,
        deadline: float,
        count: Callable[[str, int], None],
        challenger: ChallengerShadow | None = None,
    ) -> None:
        self._rules = rules.as_target(features.names)
        self._challenger = challenger
        self._deadline = round(deadline * _SECOND)
        self._late = f"older than its deadline of {1000 * deadline:g} ms when its turn came; the rules answered"
        self._count = count

    def verdicts(self, values: np.ndarray, accepted: Accepted, in_force: InForce, *, now: int, now_ns: int) -> Verdicts:
        """Returns the verdicts on a turn.

        Args:
            values: Features, shape (n, features).
            accepted: The transactions.
            in_force: The versions that answer.
            now: The present, in microseconds.
            now_ns: The present, in nanoseconds of `time.perf_counter_ns`.
        """
        limit, oldest = now_ns - self._deadline, min(accepted.arrived)
        if oldest >= limit:
            return self._asked(values, accepted, in_force, now, oldest + self._deadline)
        arrived = np.array(accepted.arrived)
        late = arrived < limit
        self._count("late", int(late.sum()))
        by_rules = Verdicts.of_rules(self._rules.score(Batch(values)).values, self._late)
        if late.all():
            return by_rules
        deadline = int(arrived[~late].min()) + self._deadline
        return self._asked(values, accepted, in_force, now, deadline).or_where(late, by_rules)

    def _asked(self, values: np.ndarray, accepted: Accepted, in_force: InForce, now: int, deadline: int) -> Verdicts:
        batch = Batch(values)
        if in_force.route is None:
            return Verdicts.of_rules(self._rules.score(batch).values, in_force.champion_absent or NO_MODEL)
        scored = in_force.chain.score(batch, deadline)
        choice = scored.choice(0)
        acting = in_force.model(choice.version)
        beside = in_force.beside(now)
        other, failure = None, ""
        if beside is not None and beside is not acting:
            other, failure = self._beside(beside, batch, deadline)
        canary = in_force.canary
        if canary is None or other is None:
            # Where the canary has failed, the log must say so of each decision that it was asked for.
            missing = failure if canary is not None else CANARY_FAILED if in_force.canary_absent else ""
            verdicts = _acting(scored, acting, accepted, missing or in_force.route.assign("").reason)
            if other is not None and beside is not None:
                verdicts.shadow_version = every(beside.version)
                verdicts.shadow_probability = beside.calibrator(other)
            elif beside is None and not in_force.canary_absent and self._challenger is not None:
                # Never in the place of a version on trial: its judge would take what stands there for its answer.
                shadow = self._challenger.score(values)
                if shadow is not None:
                    verdicts.shadow_version, verdicts.shadow_probability = shadow
        else:
            verdicts = self._divided(scored, acting, other, accepted, in_force.route, canary)
        if in_force.champion_absent:
            verdicts = _stood_in(verdicts, in_force.champion_absent)
        if choice.route == "fallback":
            self._count("fallbacks", len(values))
        return verdicts

    def _beside(self, model: LoadedModel, batch: Batch, deadline: int) -> tuple[np.ndarray | None, str]:
        # The scores of a version that is asked beside; or None, and the reason that the log gives.
        try:
            return model.target.score(batch, deadline).values, ""
        except TimedOut as error:
            return None, str(error)
        except ServiceError:
            self._count("shadow_failures", len(batch))
            return None, CANARY_FAILED

    @staticmethod
    def _divided(
        scored: Scored,
        acting: LoadedModel | None,
        other: np.ndarray,
        accepted: Accepted,
        route: Route,
        canary: LoadedModel,
    ) -> Verdicts:
        # Gives the canary its customers; each of the two is the other's shadow.
        assigned = [route.assign(customer) for customer in accepted.customer]
        verdicts = _acting(scored, acting, accepted, "")
        choice = scored.choice(0)
        verdicts.route_reason = [_told(assignment.reason, choice) for assignment in assigned]
        trial = Verdicts.of(canary, other, accepted, route="canary", reason="")
        trial.route_reason = [assignment.reason for assignment in assigned]
        verdicts.shadow_version, verdicts.shadow_probability = every(canary.version), trial.probability
        if acting is not None:
            trial.shadow_version, trial.shadow_probability = every(acting.version), verdicts.probability
        return verdicts.or_where(np.array([assignment.route == "canary" for assignment in assigned]), trial)


def _acting(scored: Scored, model: LoadedModel | None, accepted: Accepted, reason: str) -> Verdicts:
    # What the chain's answer comes to: the verdicts of a version, or those of the rules.
    choice = scored.choice(0)
    told = _told(reason, choice)
    if model is None:
        return Verdicts.of_rules(scored.values, told)
    return Verdicts.of(model, scored.values, accepted, route=choice.route, reason=told)


def _told(reason: str, choice: Choice) -> str:
    # That the first of the chain has answered is no news.
    return because(reason, choice.reason) if choice.route == "fallback" else reason


def _stood_in(verdicts: Verdicts, absent: str) -> Verdicts:
    # The version in Production is not there, so who answers in its place does so as a fallback.
    n = len(verdicts.score)
    routes, reasons = list(_each(verdicts.route, n)), list(_each(verdicts.route_reason, n))
    verdicts.route = [route if route == "canary" else "fallback" for route in routes]
    verdicts.route_reason = [
        reason if route == "canary" else because(absent, reason) for route, reason in zip(routes, reasons, strict=True)
    ]
    return verdicts


def _each(column: Any, n: int) -> Iterable[Any]:
    if type(column) is Constant:
        return itertools.repeat(column.value, n)
    return column.tolist() if isinstance(column, np.ndarray) else column


def _mixed(mask: np.ndarray, where: Any, otherwise: Any) -> Any:
    if where is otherwise:
        return where
    n = len(mask)
    if isinstance(where, np.ndarray) or isinstance(otherwise, np.ndarray):
        return np.where(mask, _number(where), _number(otherwise))
    rows = zip(mask.tolist(), _each(where, n), _each(otherwise, n), strict=True)
    return [one if chosen else another for chosen, one, another in rows]


def _number(column: _Numbers) -> Any:
    return column.value if isinstance(column, Constant) else column
