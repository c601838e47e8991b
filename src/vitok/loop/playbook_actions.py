"""What the loop can do to a system, how far it may go, and which of it follows from what was found."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vitok.clock import DAY, HOUR
from vitok.errors import InvalidInput, NotFound
from vitok.loop.switches import ACTIONS
from vitok.loop.triage import Triage, TriageRules, of_any_length
from vitok.stats.results import Result


@dataclass(frozen=True, kw_only=True)
class Order(Result):
    """What an action is asked to do.

    Attributes:
        key: Names this order: an action that was done under a key is not done again, but returns what it returned.
        incident: The incident that it belongs to.
        system: Which system.
        version: The version that the alert is about, or `"all"`.
        reason: Why, in words; it goes into ledgers.
        now: The present, in microseconds.
        by: How far, where that has a meaning: by how much a threshold is raised.
        until: When it ends by itself, in microseconds; None where it stays until somebody takes it back.
        to: Version that a roll back puts back; empty elsewhere.
    """

    key: str
    incident: str
    system: str
    version: str
    reason: str
    now: int
    by: float = 0.0
    until: int | None = None
    to: str = ""


class Action(Protocol):
    """Something that the loop can do to a system, and take back.

    Both are called at least once: after a crash again, with the same key. Where the key was done, they change nothing.
    """

    def do(self, order: Order) -> Mapping[str, Any]:
        """Does it and returns what `undo` must know, ready for JSON.

        Raises:
            VitokError: If it cannot be done; nothing was changed then.
        """
        ...

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:
        """Takes it back.

        Raises:
            VitokError: If it cannot be taken back.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Actions:
    """What a system lets the loop do; what is None can only be proposed.

    Attributes:
        rollback: Puts the version before back: `roll_back` of this room.
        raise_threshold: Blocks less and sends more to review, by `Order.by`.
        use_rules: Lets the rules answer instead of the model.
        recalibrate: Asks for a new calibrator of the version in force, which is tried before a retraining.
        retrain: Asks for a retraining, which begins when there is something to learn from.
    """

    rollback: Action | None = None
    raise_threshold: Action | None = None
    use_rules: Action | None = None
    recalibrate: Action | None = None
    retrain: Action | None = None

    def of(self, name: str) -> Action | None:
        """Returns an action by its name."""
        if name not in ACTIONS:
            raise NotFound("action", name, ACTIONS)
        found: Action | None = getattr(self, name)
        return found


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How often, how far and how long the loop does something without asking.

    Attributes:
        per_day: How often within 24 hours, at least 0; 0 always proposes.
        per_week: How often within 7 days.
        by: How far one order goes.
        total: How far all that are not taken back may go together.
        lasts: After how long it is taken back, in microseconds; None for never.
    """

    per_day: int = 1
    per_week: int = 3
    by: float = 0.0
    total: float = 0.0
    lasts: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_day", "per_week", "by", "total"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"bound: {name}", getattr(self, name), "be at least 0")
        if self.lasts is not None and self.lasts < 1:
            raise InvalidInput("bound: lasts", self.lasts, "be longer than zero, or None")


def usual_bounds() -> dict[str, Bound]:
    """Returns the usual bounds: a roll back a day, small steps of thresholds, rules for hours; what is new is asked."""
    return {
        "rollback": Bound(per_day=1, per_week=2),
        "raise_threshold": Bound(per_day=2, per_week=4, by=0.1, total=0.2, lasts=DAY),
        "use_rules": Bound(per_day=2, per_week=4, lasts=6 * HOUR),
        "recalibrate": Bound(per_day=0, per_week=0),
        "retrain": Bound(per_day=0, per_week=0),
    }


@dataclass(frozen=True, kw_only=True)
class Measure(Result):
    """What the playbook would do.

    Attributes:
        action: Name of the action.
        why: Why this one.
    """

    action: str
    why: str


def measures(alert: Mapping[str, Any], found: Triage, rules: TriageRules) -> tuple[Measure, ...]:
    """Chooses what is done: roll back what is young, raise thresholds where quality fell, rules where no model answers.

    Broken data and mere drift are answered by no action on the model: a feed is mended by people, and drift costs
    nothing as long as decisions are as good as before. Where only probabilities went off, a new calibrator comes before
    a new model; both are asked for, since the first mends no ranking.

    Args:
        alert: The alert as `Alert.to_dict` gives it.
        found: What triage says.
        rules: How alerts are read.
    """
    rule = of_any_length(alert["rule"])
    if found.cause == "release" and found.rollback_to:
        return (Measure(action="rollback", why=f"a young version is at fault, {found.rollback_to} was good"),)
    if rule in rules.model_out:
        return (Measure(action="use_rules", why="no model answers, and nobody else would decide"),)
    if rule in rules.quality:
        review = Measure(action="raise_threshold", why="decisions got worse: block less, let people look at more")
        again = Measure(action="retrain", why="decisions got worse and no release is at fault")
        if found.cause == "data":
            return (review,)
        if rule in rules.calibration:
            level = Measure(action="recalibrate", why="probabilities went off, which a new calibrator may mend")
            return (review, level, again)
        return (review, again)
    return ()


VERBS = {
    "rollback": "roll back",
    "raise_threshold": "raise thresholds",
    "use_rules": "let rules answer",
    "recalibrate": "ask for a new calibrator",
    "retrain": "ask for a retraining",
}
LASTING = ("rollback", "raise_threshold", "use_rules")
"""Actions that stand until they are taken back, so that the same again in the same incident would be one too many."""


def words(action: str, order: Order) -> str:
    """Says what an order asks for."""
    far = f" by {order.by:g}" if order.by else ""
    to = f" from {order.version} to {order.to}" if order.to else ""
    return f"{VERBS[action]}{far}{to}"
