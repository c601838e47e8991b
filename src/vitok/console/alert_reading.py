"""What is wrong: alerts, open and past, each with what its rule measured, its incident and who is told."""

import dataclasses
import math
from pathlib import Path

from vitok.clock import SystemClock
from vitok.console import stores
from vitok.console.incident_reading import incident_of
from vitok.console.wording import count, figure
from vitok.loop import Record
from vitok.monitoring import Alert, Observation
from vitok.monitoring.silences import Silence
from vitok.systems.fraud.messages import SYSTEM


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlertSeen:
    """An alert with what its rule saw over time.

    Attributes:
        alert: The alert.
        observations: What its rule saw of this version, by window, oldest first.
        incident: The incident that it is filed with, or None.
        silence: Why nobody is told about it now, or None.
    """

    alert: Alert
    observations: tuple[Observation, ...]
    incident: Record | None
    silence: Silence | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlertsSeen:
    """Alerts, open and past.

    Attributes:
        open: Open ones, critical first.
        past: Cleared ones, the latest first.
        watched_until: End of the last day that was watched, in microseconds, or None.
    """

    open: tuple[AlertSeen, ...]
    past: tuple[AlertSeen, ...]
    watched_until: int | None

    def __str__(self) -> str:
        lines = [f"{count(len(self.open))} open, {count(len(self.past))} past"]
        return "\n".join(lines + [f"  {seen.alert}" for seen in (*self.open, *self.past)])


def alerts(home: Path) -> AlertsSeen:
    """Reads the alerts, open and past, each with its playbook step and the course of what it watches."""
    with stores.alert_store(home) as store:
        if store is None:
            return AlertsSeen(open=(), past=(), watched_until=None)
        opened, every = store.open(system=SYSTEM), store.history(system=SYSTEM)
        observed = store.observations(system=SYSTEM)
        until = store.watched_until(SYSTEM)
    incidents = list(reversed(stores.records(home).list("incident")))
    with stores.silences(home) as silenced:
        now = SystemClock().now()
        silences = () if silenced is None else silenced.all(at=now)

    def seen(alert: Alert) -> AlertSeen:
        ours = tuple(item for item in observed if (item.rule, item.version) == (alert.rule, alert.version))
        return AlertSeen(
            alert=alert,
            observations=ours,
            incident=next((one for one in incidents if incident_of(one, alert.id, alert.first_seen)), None),
            silence=next((one for one in silences if one.matches(alert.to_dict(), now)), None),
        )

    past = sorted((alert for alert in every if alert.state == "cleared"), key=lambda alert: -alert.raised_at)
    return AlertsSeen(open=tuple(map(seen, opened)), past=tuple(map(seen, past)), watched_until=until)


def value_of(alert: Alert) -> str:
    """Writes what was measured against what it was held against."""
    if math.isnan(alert.value):
        return ""
    return figure(alert.value) if math.isnan(alert.bound) else f"{figure(alert.value)} against {figure(alert.bound)}"
