"""What the loop may do to the fraud service: five actions, each done once under its key and taken back likewise."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

from vitok.clock import DAY, Clock
from vitok.errors import Conflict
from vitok.loop import Actions, Bound, Order, Records, Triggers, push, roll_back
from vitok.loop.incidents import ALL_VERSIONS
from vitok.registry import Registry
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.overrides import Override, Overrides

LOOP = "loop"
CALIBRATOR = f"{SYSTEM}/calibrator"
"""What triggers call the job of refitting the calibrator of the version in force; retraining is `SYSTEM`."""
DAYS_AT_LEAST = 21
RETRAININGS = Bound(per_day=1, per_week=1)
"""The loop asks for a retraining by itself once a week; the gate, the canary and the triggers' budget come after it."""
RECALIBRATIONS = Bound(per_day=1, per_week=1)
"""And for a new calibrator, whose gate and canary come after it likewise."""


def too_young(start: int, now: int) -> str:
    """Says why no version can be made of data that begin at a time, both in microseconds; empty where one can be tried.

    Example:
        >>> too_young(0, 30 * DAY), too_young(0, 5 * DAY)
        ('', 'the data reach back 5 days; at least 21 are needed to make a version')
    """
    days = max(0.0, (now - start) / DAY)
    if days >= DAYS_AT_LEAST:
        return ""
    return f"the data reach back {days:.3g} days; at least {DAYS_AT_LEAST} are needed to make a version"


def actions(
    registry: Registry,
    records: Records,
    overrides: Overrides,
    triggers: Triggers,
    *,
    clock: Clock,
    lacks: Callable[[int], str],
    well: Callable[[int], str],
) -> Actions:
    """Returns all that the loop may do to the service.

    Args:
        registry: Where versions stand.
        records: Where roll backs are recorded.
        overrides: What is other than released, for a while.
        triggers: What begins retrainings and new calibrators.
        clock: Says when something is taken back.
        lacks: Says at a time why no version can be made here at all; empty where one can.
        well: Says at a time why no rules are needed, since the model answers; empty where they may be.
    """
    return Actions(
        rollback=RollBack(registry, records),
        raise_threshold=OverrideFor(overrides, "raise_threshold", clock),
        use_rules=OverrideFor(overrides, "use_rules", clock, needless=well),
        recalibrate=AskFor(CALIBRATOR, triggers),
        retrain=AskFor(SYSTEM, triggers, lacks=lacks),
    )


class RollBack:
    """Puts the version back that served before, if the one that the order is about is still in force.

    Args:
        registry: Where versions stand.
        records: Where roll backs are recorded.
    """

    def __init__(self, registry: Registry, records: Records) -> None:
        self._registry = registry
        self._records = records

    def do(self, order: Order) -> Mapping[str, Any]:
        """Rolls back.

        Raises:
            Conflict: If another version is in force by now, or another one would come back than triage said.
        """
        ledger = self._registry.ledger
        state, entry = ledger.state(SYSTEM), ledger.entry(SYSTEM, order.key)
        if entry is None:
            bad, good = f"{SYSTEM}/{state.production}", f"{SYSTEM}/{state.previous}"
            if order.version not in (bad, ALL_VERSIONS) or order.to != good:
                raise Conflict(
                    f"{bad} is in Production and {good} was before; the order is {order.version} to {order.to}"
                )
        leaves = int((state.production if entry is None else entry.version) or 0)
        seconds = roll_back(
            self._registry, self._records, SYSTEM, order, expected=leaves, now=order.now, actor=LOOP, key=order.key
        )
        entry = ledger.entry(SYSTEM, order.key)
        assert entry is not None  # noqa: S101
        return {"from": leaves, "to": entry.details["to_version"], "seconds": seconds}

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:
        """Puts the version that left back into force, where the one that came is still there.

        Raises:
            Conflict: If something else is in Production by now.
            GateRefused: If versions need approvals.
        """
        why = f"its roll back was taken back, see {order.incident}"
        entry = self._registry.ledger.promote(
            SYSTEM,
            int(done["from"]),
            "Production",
            reason=why,
            actor=LOOP,
            now=order.now,
            expected=int(done["to"]),
            override=why,
            key=f"{order.key}/undo",
        )
        push(self._registry, self._records, SYSTEM, int(done["from"]), override=why, now=entry.time_us, actor=LOOP)


class OverrideFor:
    """Puts an override in force until the order's end, which the service follows without a restart.

    Args:
        overrides: The overrides of the home.
        action: Which.
        clock: Says when one is taken back.
        needless: Says at a time why it is not needed any more; empty where it may be.
    """

    def __init__(
        self,
        overrides: Overrides,
        action: Literal["raise_threshold", "use_rules"],
        clock: Clock,
        *,
        needless: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._overrides = overrides
        self._action = action
        self._clock = clock
        self._needless = needless

    def do(self, order: Order) -> Mapping[str, Any]:
        """Writes the override.

        Raises:
            Conflict: If the order has no end, or is not needed any more.
            InvalidInput: If it goes too far or lasts too long.
        """
        if order.until is None:
            raise Conflict(f"{order.key} has no end; what is other than released has to have one")
        over = self._needless(order.now)
        if over:
            raise Conflict(over)
        by = order.by if self._action == "raise_threshold" else 0.0
        made = Override(
            key=order.key, action=self._action, by=by, who=LOOP, why=_short(order), since=order.now, until=order.until
        )
        return self._overrides.add(made).to_dict()

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Takes the override back."""
        self._overrides.end(order.key, who=LOOP, now=self._clock.now())


class AskFor:
    """Asks the triggers for a retraining or a new calibrator, which begins once nothing is in its way.

    Args:
        job: What is asked for: `SYSTEM` is a retraining, `CALIBRATOR` a new calibrator.
        triggers: What begins jobs.
        lacks: Says at a time why no version can be made here at all; empty where one can.
    """

    def __init__(self, job: str, triggers: Triggers, *, lacks: Callable[[int], str] = lambda _: "") -> None:
        self._job = job
        self._triggers = triggers
        self._lacks = lacks

    def do(self, order: Order) -> Mapping[str, Any]:
        """Asks.

        Raises:
            Conflict: If no version can be made here.
        """
        lacking = self._lacks(order.now)
        if lacking:
            raise Conflict(lacking)
        self._triggers.ask(self._job, who=LOOP, why=_short(order), now=order.now, kind="incident", key=order.key)
        return {"asked": order.key}

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Asks no longer.

        Raises:
            Conflict: If the job has begun.
        """
        self._triggers.withdraw(order.key)


def _short(order: Order) -> str:
    # It stands beside each decision that is made meanwhile; what the alert said is read in the incident.
    return order.reason.partition(" (")[0]
