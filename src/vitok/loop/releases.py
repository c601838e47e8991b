"""What joins the ledger and the records into push and roll back; releases in steps are those of `Releases`.

The ledger is the truth about what serves; the records tell people about it. Each function looks at where the model
stands first, so that a step repeated after a crash finishes what is missing and does nothing twice.
"""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from vitok.errors import Conflict
from vitok.loop.judge import State
from vitok.loop.records import Record, Records
from vitok.registry import Entry, Registry

_ROLLED_BACK = "rolled back"
_BACK = "rolled back"
"""Key of the line in an incident that says how long a roll back took."""


class Reasoned(Protocol):
    """What a roll back rests on: a `ReleaseVerdict`, or an alert."""

    @property
    def reason(self) -> str:
        """Why, in words."""
        ...


class Judged(Protocol):
    """What a judge says: a `ReleaseVerdict` of pairs, or a `TrafficVerdict` of split traffic."""

    @property
    def state(self) -> State:
        """What is to be done: `"continue"`, `"accept"` or `"refuse"`."""
        ...

    @property
    def reason(self) -> str:
        """Why, in words."""
        ...

    @property
    def candidate(self) -> str:
        """Version that was judged, such as `"fraud/2"`."""
        ...

    @property
    def incumbent(self) -> str:
        """Version it was compared with."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns what was found as plain values."""
        ...


def push(
    registry: Registry, records: Records, model: str, version: int, *, override: str | None, now: int, actor: str
) -> Record:
    """Puts a version straight into Production, without a canary.

    Args:
        registry: Where the version is registered.
        records: Where the release is recorded.
        model: Name of the model.
        version: Its number.
        override: Why it may serve where no accepted gate verdict is on record; None where the gate accepted it.
        now: The present, in microseconds.
        actor: Who pushes it.

    Returns:
        The release record, closed as "pushed"; where the version serves already, the record of how it came there.

    Raises:
        GateRefused: If no accepted verdict is on record, and there is no override.
        Conflict: If another version's canary is running, or somebody else promoted at the same time.
    """
    reason = "pushed without a canary" if override is None else override
    state = registry.state(model)
    if state.production != version:
        registry.ledger.promote(
            model,
            version,
            "Production",
            reason=reason,
            actor=actor,
            now=now,
            expected=state.production or 0,
            override=override,
        )
    entry = _last(registry, model, version, "promoted")
    former = entry.details.get("from_version")
    record = records.open(
        "release",
        f"{model}/{version} straight to Production",
        system=model,
        version=f"{model}/{version}",
        now=now,
        why=entry.reason,
        details={"way": "push", "incumbent": former and f"{model}/{former}", "actor": actor, "ledger": entry.seq},
        key=f"{model} ledger {entry.seq}",
    )
    if not record.is_open:
        return record
    records.add(record.record_id, f"in Production by {entry.actor}: {entry.reason}", now=now, key="promoted")
    return records.close(record.record_id, "pushed", now=now)


def roll_back(
    registry: Registry,
    records: Records,
    model: str,
    verdict: Reasoned,
    *,
    expected: int,
    now: int,
    actor: str,
    key: str | None = None,
) -> float:
    """Puts the version back that served before, and opens an incident record about the one that leaves.

    The pointer moves first: records are written after it, so that a full disk there delays no roll back.

    Args:
        registry: Where the version is registered.
        records: Where the incident is recorded.
        model: Name of the model.
        verdict: What it rests on; its `reason` goes into ledger and record.
        expected: The version that must be in Production now.
        now: The present, in microseconds.
        actor: Who rolls back.
        key: Idempotency key of the entry in the ledger: the same key again moves nothing.

    Returns:
        Wall seconds until the ledger named the earlier version; for a roll back that was done already, the seconds
        it took then where they are on record, else 0.

    Raises:
        Conflict: If something else is in Production than expected, or nothing was there before.
    """
    began = time.perf_counter()
    seconds = None
    done = key is not None and registry.ledger.entry(model, key) is not None
    if not done and (registry.state(model).production == expected or not _left(registry, model, expected)):
        registry.ledger.rollback(model, reason=verdict.reason, actor=actor, now=now, expected=expected, key=key)
        seconds = time.perf_counter() - began
    entry = _last(registry, model, expected, "rolled_back")
    bad, good = f"{model}/{expected}", f"{model}/{entry.details['to_version']}"
    incident = records.open(
        "incident",
        f"{bad} rolled back to {good}",
        system=model,
        version=bad,
        now=now,
        why=entry.reason,
        details={"to_version": good, "actor": entry.actor, "ledger": entry.seq},
        key=f"{model} ledger {entry.seq}",
    )
    data: Mapping[str, Any] = {"seconds": seconds, "ledger": entry.seq}
    incident = records.add(incident.record_id, f"{good} serves again", now=now, data=data, key=_BACK)
    release = _latest(records, bad)
    if release is not None:
        records.add(
            release.record_id,
            f"rolled back to {good}, see {incident.record_id}: {entry.reason}",
            now=now,
            key=f"rolled back {entry.seq}",
        )
        if release.is_open:
            records.close(release.record_id, _ROLLED_BACK, now=now)
    if incident.is_open:
        records.close(incident.record_id, f"{good} serves again", now=now)
    known = next(entry.data.get("seconds") for entry in incident.timeline if entry.key == _BACK)
    return seconds if seconds is not None else known or 0.0


def rollback_seconds(records: Records, model: str) -> dict[int, float]:
    """Returns how many wall seconds each roll back of a model took, by the number of its entry in the ledger.

    Args:
        records: Where roll backs are recorded.
        model: Name of the model.
    """
    told = [
        entry.data
        for record in records.list("incident")
        if record.system == model
        for entry in record.timeline
        if entry.key == _BACK
    ]
    # A process that died between ledger and record measured nothing.
    return {int(data["ledger"]): float(data["seconds"] or 0.0) for data in told}


def _left(registry: Registry, model: str, version: int) -> bool:
    """Says whether the last thing that happened to a version is that it was rolled back."""
    moves = [entry for entry in registry.ledger.history(model, version=version) if entry.stage_from != entry.stage_to]
    return bool(moves) and moves[-1].kind == "rolled_back"


def _last(registry: Registry, model: str, version: int, kind: str) -> Entry:
    entries = [entry for entry in registry.ledger.history(model, version=version) if entry.kind == kind]
    if kind == "promoted":
        entries = [entry for entry in entries if entry.stage_to == "Production"]
    if not entries:
        raise Conflict(f"the ledger does not say when {model}/{version} was {kind.replace('_', ' ')}")
    return entries[-1]


def _latest(records: Records, version: str) -> Record | None:
    return next((record for record in reversed(records.list("release")) if record.version == version), None)
