"""Releases: what joins the judge, the ledger and the records into begin, settle, push and roll back.

The ledger is the truth about what serves; the records tell people about it. Each function looks at where the model
stands first, so that a step repeated after a crash finishes what is missing and does nothing twice.
"""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from vitok.errors import Conflict, InvalidInput
from vitok.loop.judge import State
from vitok.loop.records import Record, Records
from vitok.registry import Entry, Registry

_OUTCOMES = {"accept": "accepted", "refuse": "refused"}
_ROLLED_BACK = "rolled back"


class Reasoned(Protocol):
    """What a roll back rests on: a `ReleaseVerdict`, or an alert."""

    @property
    def reason(self) -> str:
        """Why, in words."""
        ...


class Judged(Protocol):
    """What a canary is settled by: a `ReleaseVerdict` of pairs, or a `TrafficVerdict` of split traffic."""

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


def begin_canary(
    registry: Registry,
    records: Records,
    model: str,
    version: int,
    share: float,
    *,
    now: int,
    actor: str,
    reason: str,
    override: str | None = None,
) -> Record:
    """Lets a version answer a share of the decisions, and opens its release record.

    For the running canary of this version it changes the share; where that is the share already, it only makes
    sure that the record is there.

    Args:
        registry: Where the version is registered.
        records: Where the release is recorded.
        model: Name of the model.
        version: Its number.
        share: Share of the decisions, in (0, 1).
        now: The present, in microseconds.
        actor: Who begins it.
        reason: Why, in words.
        override: Why it may answer although no accepted gate verdict is on record.

    Returns:
        The release record; it stays open until `settle_canary`.

    Raises:
        GateRefused: If no accepted verdict is on record, and there is no override.
        Conflict: If nothing is in Production to compare with, or another canary runs.
    """
    state = registry.state(model)
    if state.canary != version or state.canary_share != share:
        registry.ledger.start_canary(
            model, version, share, reason=reason, actor=actor, now=now, expected=state.production, override=override
        )
        state = registry.state(model)
    incumbent = f"{model}/{state.production}"
    details = {"way": "canary", "incumbent": incumbent, "share": share, "actor": actor}
    record = records.open(
        "release",
        f"canary of {model}/{version} beside {incumbent}",
        system=model,
        version=f"{model}/{version}",
        now=now,
        why=reason,
        details=details | ({} if override is None else {"override": override}),
        key=f"{model}/{version} canary since {state.canary_since}",
    )
    entry = _last(registry, model, version, "canary_started")
    text = f"{100 * share:g} % of the decisions go to {model}/{version}: {entry.reason}"
    return records.add(record.record_id, text, now=now, key=f"ledger {entry.seq}")


def settle_canary(registry: Registry, records: Records, model: str, verdict: Judged, *, now: int, actor: str) -> Record:
    """Acts on a verdict: accept puts the candidate into Production, refuse ends its canary.

    Args:
        registry: Where the version is registered.
        records: Where the release is recorded.
        model: Name of the model.
        verdict: What the judge said; it must not be "continue".
        now: The present, in microseconds.
        actor: Who settles it.

    Returns:
        The closed release record; called again with the same verdict, the same record.

    Raises:
        InvalidInput: If the verdict is to continue, or about another model.
        Conflict: If no canary of the candidate was begun, it was settled the other way, or something else than the
            verdict's incumbent is in Production.
    """
    if verdict.state == "continue":
        raise InvalidInput("verdict", verdict.state, "be accept or refuse", "Wait for more decisions and outcomes")
    candidate, incumbent = _number(model, verdict.candidate), _number(model, verdict.incumbent)
    record = _latest(records, verdict.candidate, "canary")
    if record is None:
        raise Conflict(f"no canary of {verdict.candidate} is on record; call begin_canary first")
    outcome = _OUTCOMES[verdict.state]
    if not record.is_open:
        if record.outcome not in (outcome, _ROLLED_BACK):
            raise Conflict(f"{record.record_id} was closed as {record.outcome!r}, not {outcome!r}")
        return record
    key = f"{record.record_id} settled"
    if verdict.state == "accept":
        entry = registry.ledger.promote(
            model,
            candidate,
            "Production",
            reason=verdict.reason,
            actor=actor,
            now=now,
            expected=incumbent,
            override=_override(record),
            key=key,
        )
    else:
        entry = registry.ledger.end_canary(
            model, verdict="refused", version=candidate, reason=verdict.reason, actor=actor, now=now, key=key
        )
    text = f"{outcome} by {actor}: {verdict.reason}"
    records.add(record.record_id, text, now=now, data=verdict.to_dict() | {"ledger": entry.seq}, key=key)
    return records.close(record.record_id, outcome, now=now)


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
    _close_ended(registry, records, model, f"{model}/{version} was put straight into Production", now=now)
    if not record.is_open:
        return record
    records.add(record.record_id, f"in Production by {entry.actor}: {entry.reason}", now=now, key="promoted")
    return records.close(record.record_id, "pushed", now=now)


def roll_back(
    registry: Registry, records: Records, model: str, verdict: Reasoned, *, expected: int, now: int, actor: str
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

    Returns:
        Wall seconds until the ledger named the earlier version; for a roll back that was done already, the seconds
        it took then where they are on record, else 0.

    Raises:
        Conflict: If something else is in Production than expected, or nothing was there before.
    """
    began = time.perf_counter()
    seconds = None
    if registry.state(model).production == expected or not _left(registry, model, expected):
        registry.ledger.rollback(model, reason=verdict.reason, actor=actor, now=now, expected=expected)
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
    incident = records.add(incident.record_id, f"{good} serves again", now=now, data=data, key="rolled back")
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
    _close_ended(registry, records, model, f"{bad} was rolled back to {good}, which ends every canary", now=now)
    if incident.is_open:
        records.close(incident.record_id, f"{good} serves again", now=now)
    known = next(entry.data.get("seconds") for entry in incident.timeline if entry.key == "rolled back")
    return seconds if seconds is not None else known or 0.0


def _close_ended(registry: Registry, records: Records, model: str, why: str, *, now: int) -> None:
    """Closes the records of canaries that something else than their verdict has ended."""
    canary = registry.state(model).canary
    for record in records.list("release"):
        ours = record.is_open and record.system == model and record.details.get("way") == "canary"
        if ours and record.version != f"{model}/{canary}":
            records.add(record.record_id, f"ended without a verdict: {why}", now=now, key="ended")
            records.close(record.record_id, "inconclusive", now=now)


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


def _latest(records: Records, version: str, way: str | None = None) -> Record | None:
    found = [record for record in records.list("release") if record.version == version]
    return next((record for record in reversed(found) if way in (None, record.details.get("way"))), None)


def _override(record: Record) -> str | None:
    """A version that came into its canary by an override needs one for Production too; the judge's verdict is it."""
    given = record.details.get("override")
    return None if given is None else f"accepted by its canary, which was begun by override: {given}"


def _number(model: str, version: str) -> int:
    name, _, number = version.rpartition("/")
    if name != model or not number.isdecimal():
        raise InvalidInput("verdict", version, f"be about a version of {model}, such as {model}/2")
    return int(number)
