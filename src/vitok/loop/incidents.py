"""Incidents: one for what belongs together, open until somebody or something has written down how it was resolved.

An alert that clears ends no incident: the cause may still be there, and nobody has said what it was. Everything is an
entry in the timeline of a record, which only ever grows, so a person reads it from the top and goes on at the end.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from vitok.clock import DAY, HOUR, isoformat
from vitok.errors import Conflict, InvalidInput
from vitok.loop.records import Record, RecordEntry, Records
from vitok.registry.files import exclusive

ALL_VERSIONS = "all"
_MERGED = re.compile(r"merged into (incident-\d{4,})")


class RaisedAlert(Protocol):
    """What the loop reads of an alert: `vitok.monitoring.Alert` has it all."""

    @property
    def id(self) -> int:
        """Its number."""
        ...

    @property
    def fingerprint(self) -> str:
        """What it is about: the same for each time that its rule fires on its subject."""
        ...

    def to_dict(self) -> dict[str, object]:
        """Returns rule, severity, system, version, slice, first_seen, value, bound, reason and playbook."""
        ...


def facts_of(alert: RaisedAlert) -> dict[str, Any]:
    """Returns an alert as the timeline keeps it; one about no system, such as of the watch itself, is about all."""
    given = alert.to_dict()
    return {**given, "system": given["system"] or ALL_VERSIONS, "fingerprint": alert.fingerprint}


class Incidents:
    """The incidents of a home.

    Args:
        home: Folder of everything vitok writes; the records lie in `home/records`.
        reopen_within: An alert on what a resolved incident was about opens that one again, so long after its
            resolution, in microseconds.
        merge_within: An alert of the same system and version as an open incident joins it, so long after its last
            alert, in microseconds.

    Example:
        >>> import tempfile
        >>> from vitok.monitoring import Alert
        >>> alert = Alert(id=1, rule="quality", severity="critical", system="fraud", version="fraud/2", first_seen=0,
        ...     raised_at=0, value=0.4, bound=0.6, reason="precision 0.4", playbook="roll back", state="open",
        ...     cleared_at=None, cleared_reason="")
        >>> with tempfile.TemporaryDirectory() as home:
        ...     incidents = Incidents(home)
        ...     record = incidents.report(alert, now=HOUR)
        ...     _ = incidents.quiet(alert, now=2 * HOUR)
        ...     print([one.record_id for one in incidents.open()])
        ...     print(incidents.resolve(record.record_id, "fraud/2 was made anew", who="ann", now=3 * HOUR))
        ['incident-0001']
        incident-0001 fraud/2 quality: precision 0.4: fraud/2 was made anew (3 entries)
    """

    def __init__(self, home: str | Path, *, reopen_within: int = 2 * DAY, merge_within: int = 6 * HOUR) -> None:
        self.records = Records(home)
        self._reopen_within = reopen_within
        self._merge_within = merge_within

    def report(self, alert: RaisedAlert, *, now: int) -> Record:
        """Files an alert: with the open incident that it belongs to, one that it opens again, or a new one.

        Called again with the same alert it changes nothing.

        Args:
            alert: An alert that was raised.
            now: The present, in microseconds.

        Returns:
            The incident that it is filed with.

        Raises:
            StoreError: If the disk is full, or a record is damaged.
        """
        facts = facts_of(alert)
        key = _key(facts)
        with self._filing():
            incidents = self.records.list("incident")
            for record in incidents:
                if _holds(record, facts):
                    return self.follow(record.record_id)
            found = self._home_of(facts, incidents, now)
            if found is None:
                found = self.records.open(
                    "incident",
                    f"{facts['rule']}: {facts['reason']}",
                    system=facts["system"],
                    version=facts["version"],
                    now=now,
                    why=f"{facts['severity']} alert, since {isoformat(facts['first_seen'])}",
                    details={"fingerprint": alert.fingerprint, "severity": facts["severity"]},
                    key=key,
                )
            elif not found.is_open:
                again = f"{facts['rule']} is back: {facts['reason']}"
                self.records.reopen(found.record_id, again, now=now, key=f"{key}/reopened")
            text = f"alert {alert.id}, {facts['severity']} {facts['rule']}: {facts['reason']}"
            return self.records.add(found.record_id, text, now=now, data={"event": "alert", "alert": facts}, key=key)

    def quiet(self, alert: RaisedAlert, *, now: int) -> Record | None:
        """Writes down that an alert cleared; the incident stays open. None where it was never filed."""
        facts = facts_of(alert)
        with self._filing():
            for record in self.records.list("incident"):
                if _holds(record, facts):
                    text = f"alert {alert.id}, {facts['rule']}, cleared: {facts['cleared_reason']}"
                    home = self.follow(record.record_id)
                    data = {"event": "quiet", "alert": alert.id}
                    return self.records.add(home.record_id, text, now=now, data=data, key=f"{_key(facts)}/cleared")
        return None

    def note(
        self,
        record_id: str,
        text: str,
        *,
        who: str,
        now: int,
        data: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Record:
        """Adds what somebody found out or did.

        Raises:
            InvalidInput: If nobody is named, or nothing is said.
            NotFound: If there is no such incident.
        """
        _check_who(who)
        if not text.strip():
            raise InvalidInput("text", text, "not be empty", "Say what was found out or done")
        given = {"event": "note", "who": who} | dict(data or {})
        return self.records.add(record_id, f"{who}: {text}", now=now, data=given, key=key)

    def resolve(self, record_id: str, resolution: str, *, who: str, now: int) -> Record:
        """Ends an incident: what the cause was and what ended it, in words. Only this ends one.

        Raises:
            InvalidInput: If nobody is named, or the words are those of a merge.
            NotFound: If there is no such incident.
            Conflict: If it was resolved with other words.
        """
        _check_who(who)
        if _MERGED.fullmatch(resolution.strip()):
            raise InvalidInput("resolution", resolution, "say what the cause was", "Use merge for a duplicate")
        with self._filing():
            record = self.records.get(record_id)
            if record.is_open:
                data = {"event": "resolved", "who": who}
                text = f"{who}: resolved, {resolution}"
                # By its place, so that an incident that was opened again can be resolved again.
                key = f"resolved/{sum(_event(entry) == 'reopened' for entry in record.timeline)}"
                self.records.add(record_id, text, now=now, data=data, key=key)
            return self.records.close(record_id, resolution, now=now)

    def merge(self, record_id: str, into: str, *, who: str, now: int) -> Record:
        """Closes an incident as a duplicate of another; what is filed with it later goes there.

        Returns:
            The incident that goes on.

        Raises:
            InvalidInput: If both are one.
            NotFound: If one of them is not there.
            Conflict: If the other one is not open, or this one was resolved.
        """
        _check_who(who)
        # An alert that was filed between the reading and the closing would lie in the closed one.
        with self._filing():
            target = self.follow(into)
            record = self.records.get(record_id)
            if target.record_id == record_id:
                raise InvalidInput("into", into, "be another incident")
            if not target.is_open:
                raise Conflict(f"{into} is resolved; open it again by reporting, or merge the other way round")
            outcome = f"merged into {target.record_id}"
            if not record.is_open and record.outcome != outcome:
                raise Conflict(f"{record_id} was closed as {record.outcome!r}; merge the other way round")
            data = {"event": "merged", "from": record_id, "fingerprints": sorted(_fingerprints(record)), "who": who}
            text = f"{who}: {record_id} is about the same ({record.title})"
            target = self.records.add(target.record_id, text, now=now, data=data, key=f"merged {record_id}")
            self.records.close(record_id, outcome, now=now)
            return target

    def follow(self, record_id: str) -> Record:
        """Returns an incident, or the one that it was merged into."""
        record = self.records.get(record_id)
        while (merged := _MERGED.fullmatch(record.outcome or "")) is not None:
            record = self.records.get(merged[1])
        return record

    def _filing(self) -> AbstractContextManager[None]:
        return exclusive(self.records.folder / ".incidents.lock")

    def open(self, *, system: str | None = None) -> tuple[Record, ...]:
        """Returns the incidents without a resolution, the oldest first."""
        return tuple(
            record
            for record in self.records.list("incident")
            if record.is_open and (system is None or record.system == system)
        )

    def _home_of(self, facts: Mapping[str, Any], incidents: Sequence[Record], now: int) -> Record | None:
        """Returns the incident that an alert belongs to, the latest first; None for a new one."""
        newest = list(reversed(incidents))
        for record in newest:
            if record.is_open and facts["fingerprint"] in _fingerprints(record):
                return record
        for record in newest:
            alike = facts["version"] in (record.version, ALL_VERSIONS) or record.version == ALL_VERSIONS
            last = max((entry.time_us for entry in record.timeline if _is_alert(entry)), default=None)
            recent = last is not None and now - last <= self._merge_within
            if record.is_open and record.system == facts["system"] and alike and recent:
                return record
        for record in newest:
            ours = not record.is_open and _MERGED.fullmatch(record.outcome or "") is None
            if ours and facts["fingerprint"] in _fingerprints(record) and record.closed is not None:
                return record if now - record.closed <= self._reopen_within else None
        return None


def events(record: Record, kind: str) -> tuple[RecordEntry, ...]:
    """Returns the entries of a kind: alert, quiet, triage, intent, action, proposal, undone, note, and so on."""
    return tuple(entry for entry in record.timeline if _event(entry) == kind)


def standing(record: Record) -> tuple[RecordEntry, ...]:
    """Returns the actions that were done and not taken back."""
    undone = {entry.data["of"] for entry in events(record, "undone")}
    return tuple(entry for entry in events(record, "action") if entry.data["order"]["key"] not in undone)


def _key(facts: Mapping[str, Any]) -> str:
    # Not by its number alone, which comes again in another file of alerts.
    return f"alert/{facts['system']}/{facts['id']}/{facts['first_seen']}/{facts['fingerprint']}"


def _holds(record: Record, facts: Mapping[str, Any]) -> bool:
    alerts = [entry.data["alert"] for entry in record.timeline if _is_alert(entry)]
    return any(all(one.get(name) == facts[name] for name in ("id", "fingerprint", "first_seen")) for one in alerts)


def _event(entry: RecordEntry) -> object:
    return entry.data.get("event")


def _is_alert(entry: RecordEntry) -> bool:
    return _event(entry) == "alert"


def _fingerprints(record: Record) -> set[str]:
    found = {entry.data["alert"]["fingerprint"] for entry in record.timeline if _is_alert(entry)}
    for entry in events(record, "merged"):
        found |= set(entry.data["fingerprints"])
    return found | {record.details.get("fingerprint", "")}


def _check_who(who: str) -> None:
    if not who.strip():
        raise InvalidInput("who", who, "not be empty", "Say who does it")
