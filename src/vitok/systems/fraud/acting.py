"""What the loop may do to the fraud service: four actions, each done once under its key and taken back likewise."""

import time
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
DAYS_AT_LEAST = 21
RETRAININGS = Bound(per_day=1, per_week=1)
"""The loop asks for a retraining by itself once a week; the gate, the canary and the triggers' budget come after it."""


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
    seconds: list[float],
) -> Actions:
    """Returns all that the loop may do to the service.

    Args:
        registry: Where versions stand.
        records: Where roll backs are recorded.
        overrides: What is other than released, for a while.
        triggers: What begins retrainings.
        clock: Says when something is taken back.
        lacks: Says at a time why no version can be made here at all; empty where one can.
        seconds: Gets the wall seconds of each roll back.
    """
    return Actions(
        rollback=RollBack(registry, records, seconds),
        raise_threshold=OverrideFor(overrides, "raise_threshold", clock),
        use_rules=OverrideFor(overrides, "use_rules", clock),
        retrain=AskToRetrain(triggers, lacks),
    )


class RollBack:
    """Puts the version back that served before, if the one that the order is about is still in force.

    Args:
        registry: Where versions stand.
        records: Where roll backs are recorded.
        seconds: Gets the wall seconds until the ledger named the earlier version, for each roll back.
    """

    def __init__(self, registry: Registry, records: Records, seconds: list[float]) -> None:
        self._registry = registry
        self._records = records
        self._seconds = seconds

    def do(self, order: Order) -> Mapping[str, Any]:
        """Rolls back.

        Raises:
            Conflict: If another version is in force by now, or another one would come back than triage said.
        """
        began = time.perf_counter()
        ledger = self._registry.ledger
        entry = ledger.entry(SYSTEM, order.key)
        if entry is None:
            state = ledger.state(SYSTEM)
            bad, good = f"{SYSTEM}/{state.production}", f"{SYSTEM}/{state.previous}"
            if order.version not in (bad, ALL_VERSIONS) or order.to != good:
                raise Conflict(
                    f"{bad} is in Production and {good} was before; the order is {order.version} to {order.to}"
                )
            entry = ledger.rollback(
                SYSTEM, reason=order.reason, actor=LOOP, now=order.now, expected=state.production, key=order.key
            )
            self._seconds.append(time.perf_counter() - began)
        bad_version = int(entry.version or 0)
        # The ledger has moved; this writes the records of it, and ends those of a canary.
        roll_back(self._registry, self._records, SYSTEM, order, expected=bad_version, now=order.now, actor=LOOP)
        return {"from": bad_version, "to": entry.details["to_version"], "seconds": time.perf_counter() - began}

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
    """

    def __init__(self, overrides: Overrides, action: Literal["raise_threshold", "use_rules"], clock: Clock) -> None:
        self._overrides = overrides
        self._action = action
        self._clock = clock

    def do(self, order: Order) -> Mapping[str, Any]:
        """Writes the override.

        Raises:
            Conflict: If the order has no end.
            InvalidInput: If it goes too far or lasts too long.
        """
        if order.until is None:
            raise Conflict(f"{order.key} has no end; what is other than released has to have one")
        by = order.by if self._action == "raise_threshold" else 0.0
        made = Override(
            key=order.key, action=self._action, by=by, who=LOOP, why=_short(order), since=order.now, until=order.until
        )
        return self._overrides.add(made).to_dict()

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Takes the override back."""
        self._overrides.end(order.key, who=LOOP, now=self._clock.now())


class AskToRetrain:
    """Asks the triggers for a retraining, which begins once there are labels to learn from.

    Args:
        triggers: What begins retrainings.
        lacks: Says at a time why no version can be made here at all; empty where one can.
    """

    def __init__(self, triggers: Triggers, lacks: Callable[[int], str]) -> None:
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
        self._triggers.ask(SYSTEM, who=LOOP, why=_short(order), now=order.now, kind="incident", key=order.key)
        return {"asked": order.key}

    def undo(self, order: Order, done: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Asks no longer.

        Raises:
            Conflict: If the retraining has begun.
        """
        self._triggers.withdraw(order.key)


def _short(order: Order) -> str:
    # It stands beside each decision that is made meanwhile; what the alert said is read in the incident.
    return order.reason.partition(" (")[0]
