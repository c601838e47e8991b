"""Incidents as people read them and go on with them, what may be approved or taken back, and what is silenced."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitok import settings
from vitok.clock import Clock, SystemClock
from vitok.console import stores
from vitok.console.wording import plural
from vitok.errors import InvalidInput
from vitok.loop import Change, Fact, Record, RecordEntry, Switches
from vitok.loop.incidents import Incidents, events, standing
from vitok.loop.incidents_report import prevention
from vitok.loop.playbook_actions import VERBS
from vitok.loop.switches import Switch
from vitok.monitoring.silences import Silence
from vitok.systems.fraud.messages import SYSTEM

MOST_RESOLVED = 100
YOU = "YOUR-NAME"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncidentLine:
    """An incident in the list.

    Attributes:
        record: The incident.
        severity: The gravest severity among its alerts; empty where it holds none.
        cause: What triage takes for the likeliest cause; empty where none was made.
        waiting: Proposals that nobody has approved.
        standing: Actions that were done and not taken back.
    """

    record: Record
    severity: str
    cause: str
    waiting: int
    standing: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncidentsSeen:
    """The incidents of a home.

    Attributes:
        open: Those without a resolution, the latest first.
        resolved: Those with one, the latest first, at most `MOST_RESOLVED`.
        n_resolved: How many are resolved.
        silences: What nobody is told about, now or later.
        switches: Actions that the loop may only propose.
    """

    open: tuple[IncidentLine, ...]
    resolved: tuple[IncidentLine, ...]
    n_resolved: int
    silences: tuple[Silence, ...]
    switches: tuple[Switch, ...]

    def __str__(self) -> str:
        head = f"{plural(len(self.open), 'incident')} open, {self.n_resolved} resolved"
        return "\n".join([head, *(f"  {line.record}" for line in self.open)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TriageSeen:
    """What was asked about an alert, and what was found.

    Attributes:
        time: When, in microseconds.
        alert: Number of the alert.
        cause: The likeliest cause.
        text: Why, in words.
        facts: The questions with their answers: data first, then where it shows.
        changes: What was changed before, the latest first.
        measures: What the playbook would do, and why.
    """

    time: int
    alert: int
    cause: str
    text: str
    facts: tuple[Fact, ...]
    changes: tuple[Change, ...]
    measures: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Something that was done, or is proposed.

    Attributes:
        time: When, in microseconds.
        action: Name of the action.
        text: What it is, in words.
        why: Why it was done, or why it is only proposed.
        until: When it ends by itself, in microseconds; None where it stays.
        key: Its key, by which it is approved or taken back.
        command: The command that does so.
    """

    time: int
    action: str
    text: str
    why: str
    until: int | None
    key: str
    command: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class IncidentStory:
    """One incident.

    Attributes:
        line: The incident as the list has it.
        alerts: Its alerts, as they were filed.
        triages: What was found out about them.
        standing: What was done and stands.
        proposals: What waits for somebody to approve it.
        merged_into: The incident that goes on in its place; empty where there is none.
        prevention: What would have seen it earlier.
        commands: How to go on with it: what for, and the command; empty once it is resolved.
    """

    line: IncidentLine
    alerts: tuple[Mapping[str, Any], ...]
    triages: tuple[TriageSeen, ...]
    standing: tuple[Step, ...]
    proposals: tuple[Step, ...]
    merged_into: str
    prevention: tuple[str, ...]
    commands: tuple[tuple[str, str], ...]

    @property
    def record(self) -> Record:
        """The record itself."""
        return self.line.record

    def __str__(self) -> str:
        return str(self.record)


def incidents(home: Path, *, clock: Clock | None = None) -> IncidentsSeen:
    """Reads the incidents, the silences in force or to come, and what the loop may only propose.

    Args:
        home: Folder of everything vitok writes.
        clock: Tells which silences are over.
    """
    every = list(reversed(stores.records(home).list("incident")))
    resolved = [record for record in every if not record.is_open]
    with stores.silences(home) as opened:
        now = (clock or SystemClock()).now()
        silenced = () if opened is None else opened.all(at=now)
    latest = {switch.action: switch for switch in Switches(home).history()}
    return IncidentsSeen(
        open=tuple(_line(record) for record in every if record.is_open),
        resolved=tuple(_line(record) for record in resolved[:MOST_RESOLVED]),
        n_resolved=len(resolved),
        silences=silenced,
        switches=tuple(switch for switch in latest.values() if switch.propose_only),
    )


def incident_story(home: Path, record_id: str) -> IncidentStory:
    """Reads one incident.

    Raises:
        InvalidInput: If that is no id of an incident.
        NotFound: If there is no such incident.
    """
    if not record_id.startswith("incident-"):
        raise InvalidInput("incident", record_id, "be such as incident-0003")
    record = stores.records(home).get(record_id)
    into = Incidents(home).follow(record_id).record_id
    given = home_option(home)
    going_on = (
        (
            ("Write down what you found or did", f"note {record_id} 'WHAT YOU FOUND' --by {YOU}"),
            ("Resolve it: the cause, and what ended it", f"resolve {record_id} 'THE CAUSE, AND ITS END' --by {YOU}"),
            ("Join it with another one", f"merge {record_id} --into INCIDENT --by {YOU}"),
        )
        if record.is_open
        else ()
    )
    return IncidentStory(
        line=_line(record),
        alerts=tuple(entry.data["alert"] for entry in events(record, "alert")),
        triages=tuple(map(_triage, events(record, "triage"))),
        standing=tuple(_step(entry, home, "undo", " --reason 'WHY'") for entry in standing(record)),
        proposals=tuple(_step(entry, home, "approve") for entry in waiting(record)),
        merged_into="" if into == record_id else into,
        prevention=prevention(record) if record.timeline else (),
        commands=tuple((what, f"vitok incidents {command}{given}") for what, command in going_on),
    )


def incident_of(record: Record, alert_id: int, first_seen: int) -> bool:
    """Says whether an incident was opened for an alert, or the alert was filed with it."""
    if record.details.get("alert") == alert_id and (record.key or f"/{first_seen}").endswith(f"/{first_seen}"):
        return True
    filed = (entry.data["alert"] for entry in events(record, "alert"))
    return any((one.get("id"), one.get("first_seen")) == (alert_id, first_seen) for one in filed)


def waiting(record: Record) -> tuple[RecordEntry, ...]:
    """Returns what waits for somebody's word: proposals, and what was tried and failed; nothing once resolved.

    What was taken back, or came to its end, can be done anew too, but waits for nobody.
    """
    if not record.is_open:
        return ()
    failed = {entry.data["order"]["key"] for entry in events(record, "failed")}
    tried = [entry for entry in events(record, "intent") if entry.data["order"]["key"] in failed]
    # Approved anew after a failure, an action has a key of its own below that of the proposal.
    done = [str(entry.data["order"]["key"]).partition("/again/")[0] for entry in events(record, "action")]
    return tuple(entry for entry in (*events(record, "proposal"), *tried) if entry.data["order"]["key"] not in done)


def _line(record: Record) -> IncidentLine:
    severities = [str(entry.data["alert"].get("severity", "")) for entry in events(record, "alert")]
    severities.append(str(record.details.get("severity", "")))
    found = events(record, "triage")
    return IncidentLine(
        record=record,
        severity=next((name for name in ("critical", "warning", "info") if name in severities), ""),
        cause=str(found[-1].data["cause"]) if found else "",
        waiting=len(waiting(record)),
        standing=len(standing(record)),
    )


def _triage(entry: RecordEntry) -> TriageSeen:
    data = entry.data
    return TriageSeen(
        time=entry.time_us,
        alert=int(data["alert"]),
        cause=str(data["cause"]),
        text=str(data["text"]),
        facts=tuple(Fact(**fact) for fact in (*data["integrity"], *data["where"])),
        changes=tuple(Change(**change) for change in data["changes"]),
        measures=tuple((VERBS.get(one["action"], one["action"]), one["why"]) for one in data["measures"]),
    )


def _step(entry: RecordEntry, home: Path, verb: str, more: str = "") -> Step:
    order = entry.data["order"]
    key = str(order["key"])
    command = f"vitok incidents {verb} {order['incident']} {shlex.quote(key)} --by {YOU}{more}{home_option(home)}"
    return Step(
        time=entry.time_us,
        action=str(entry.data["action"]),
        text=entry.text,
        why=str(entry.data.get("held") or order["reason"]),
        until=order.get("until"),
        key=key,
        command=command,
    )


def home_option(home: Path) -> str:
    """Returns the option that a command needs for a home that is not the usual one, with a space before it."""
    usual = settings.current().home / SYSTEM
    return "" if home == usual else f" --home {shlex.quote(str(home))}"
