"""The entries of the ledger, and the state of a model that follows from them: pure, no I/O."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vitok.clock import isoformat
from vitok.errors import InvalidInput, NotFound
from vitok.registry.people import person

Stage = Literal["None", "Staging", "Production", "Archived"]
Kind = Literal[
    "registered",
    "gate",
    "proposed",
    "approved",
    "promoted",
    "canary_started",
    "canary_ended",
    "rolled_back",
    "archived",
    "approvals",
    "removed",
    "note",
]
CanaryVerdict = Literal["accepted", "refused", "inconclusive"]

NO_HASH = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger: who did what to which version, when and why.

    Attributes:
        seq: Its place in the ledger, from 1 without gaps.
        time_us: When, in microseconds; never earlier than the entry before it of the same model.
        kind: What happened.
        model: Name of the model.
        version: The version it is about, or None where it is about the model.
        stage_from: Stage of that version before.
        stage_to: Stage of that version after.
        actor: Who did it: a person or a part of the system.
        reason: Why, in words.
        details: What belongs to the kind, such as a gate's checks or a canary's share.
        key: The caller's idempotency key, or None.
        previous_hash: Hash of the entry before.
        hash: SHA-256 over all of the above.
    """

    seq: int
    time_us: int
    kind: Kind
    model: str
    version: int | None
    stage_from: Stage | None
    stage_to: Stage | None
    actor: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    previous_hash: str = field(default=NO_HASH, repr=False)
    hash: str = field(default="", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts."""
        return {**self.__dict__, "details": dict(self.details)}

    def __str__(self) -> str:
        subject = self.model if self.version is None else f"{self.model}/{self.version}"
        moved = self.stage_from is not None and self.stage_from != self.stage_to
        move = f" {self.stage_from} → {self.stage_to}" if moved else ""
        return f"{isoformat(self.time_us)} {subject} {self.kind.replace('_', ' ')}{move} by {self.actor}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a model, as it stands.

    Attributes:
        model: Name of the model.
        version: Its number, from 1.
        stage: Where it stands.
        registered: When it was registered, in microseconds.
        digest: Digest of its package.
        path: Where its package lies, relative to the folder of packages.
        run_id: The training run that made it, or None.
        gate: Whether its latest gate accepted it; None where no verdict is valid: none was given yet, or a roll
            back or a lost canary has voided it.
        proposed_by: Who proposed it for Production, or None.
        approved_by: Who approved that proposal last, or None.
        approvers: All who approved it, in order.
        removed: Whether its package was removed; it never comes back to a stage then.
    """

    model: str
    version: int
    stage: Stage
    registered: int
    digest: str
    path: str
    run_id: str | None = None
    gate: bool | None = None
    proposed_by: str | None = None
    approved_by: str | None = None
    approvers: tuple[str, ...] = ()
    removed: bool = False

    @property
    def name(self) -> str:
        """Model and number, as decisions carry it: `"fraud/3"`."""
        return f"{self.model}/{self.version}"

    @property
    def n_approvers(self) -> int:
        """How many people have approved it besides who proposed it, however their names are spelled."""
        return len({person(name) for name in self.approvers} - {person(self.proposed_by or "")})

    def __str__(self) -> str:
        gate = {None: "no gate", True: "gate accepted", False: "gate refused"}[self.gate]
        removed = ", package removed" if self.removed else ""
        return f"{self.name} {self.stage} ({gate}, registered {isoformat(self.registered)}{removed})"


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """Where a model stands after an entry of its ledger.

    Attributes:
        model: Name of the model.
        production: The version that serves, or None.
        canary: The version that answers a share of the decisions, or None.
        canary_share: That share, in [0, 1).
        canary_since: When it started, in microseconds, or None.
        served: The versions that served one after another up to the present one; a roll back takes the last away.
        approvals: How many people besides the proposer have to approve each version.
        fewer_approvals: A lower number that somebody asked for and nobody else has confirmed yet, with who asked.
        versions: All versions, by number.
        revision: `seq` of the latest entry of this model, 0 where there is none.
        time_us: Time of that entry.
    """

    model: str
    production: int | None = None
    canary: int | None = None
    canary_share: float = 0.0
    canary_since: int | None = None
    served: tuple[int, ...] = ()
    approvals: int = 0
    fewer_approvals: tuple[int, str] | None = None
    versions: tuple[Version, ...] = ()
    revision: int = 0
    time_us: int = 0

    @property
    def previous(self) -> int | None:
        """The version that a roll back would put back, or None."""
        return self.served[-2] if len(self.served) > 1 else None

    @property
    def staging(self) -> tuple[int, ...]:
        """The versions in Staging, by number."""
        return tuple(version.version for version in self.versions if version.stage == "Staging")

    @property
    def latest(self) -> int:
        """The highest version number given so far, 0 where there is none."""
        return len(self.versions)

    def version(self, version: int) -> Version:
        """Returns one version.

        Raises:
            NotFound: If it was never registered.
        """
        if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= len(self.versions):
            known = [item.name for item in self.versions]
            raise NotFound("model version", f"{self.model}/{version}", known)
        return self.versions[version - 1]

    def resolve(self, version: int | str) -> Version:
        """Finds a version by number or by a word.

        Args:
            version: A number, `"Production"`, `"Staging"` (the newest there), `"canary"` or `"latest"`.

        Raises:
            NotFound: If there is none.
            InvalidInput: If the word is none of these.
        """
        if isinstance(version, int):
            return self.version(version)
        found: int | None
        match version:
            case "Production":
                found = self.production
            case "Staging":
                found = max(self.staging, default=None)
            case "canary":
                found = self.canary
            case "latest":
                found = self.latest or None
            case _:
                raise InvalidInput("version", version, "be a number, 'Production', 'Staging', 'canary' or 'latest'")
        if found is None:
            raise NotFound(f"version of {self.model} for", version, [str(item) for item in self.versions])
        return self.version(found)

    def __str__(self) -> str:
        serving = (
            "nothing in Production" if self.production is None else f"{self.model}/{self.production} in Production"
        )
        canary = "" if self.canary is None else f", canary {self.model}/{self.canary} at {100 * self.canary_share:g} %"
        return f"{serving}{canary}, {len(self.versions)} version{'' if len(self.versions) == 1 else 's'}"


def entry_hash(entry: Entry) -> str:
    """Computes the SHA-256 that seals an entry together with all before it.

    Example:
        >>> entry = Entry(seq=1, time_us=0, kind="note", model="fraud", version=None, stage_from=None,
        ...               stage_to=None, actor="ann", reason="hello")
        >>> entry_hash(entry) == entry_hash(replace(entry, reason="Hello"))
        False
    """
    fields = [value for name, value in entry.to_dict().items() if name != "hash"]
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def canonical(value: object) -> str:
    """Writes JSON in the one form that is hashed and stored: sorted, without spaces.

    Raises:
        InvalidInput: If the value is not JSON.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput("details", value, f"become JSON ({error})", "Write a number, text or None") from None


def replay(entries: Iterable[Entry], *, start: ModelState) -> ModelState:
    """Follows entries of one model from a state to the state after them.

    Args:
        entries: Entries of `start.model` in the order of `seq`, all later than `start.revision`.
        start: The state before them.

    Returns:
        The state after them.

    Raises:
        LookupError: If they cannot be the entries of one ledger.

    Example:
        >>> print(replay([], start=ModelState(model="fraud")))
        nothing in Production, 0 versions
    """
    state = start
    versions = list(start.versions)
    for entry in entries:
        changes: dict[str, Any] = {"revision": entry.seq, "time_us": entry.time_us}
        if entry.kind == "registered":
            if entry.version != len(versions) + 1:
                raise LookupError(f"entry {entry.seq} registers version {entry.version} after {len(versions)}")
            versions.append(_registered(entry))
        elif entry.kind == "approvals":
            changes |= _approvals(entry)
        elif entry.version is not None:
            index = entry.version - 1
            versions[index] = _moved(versions[index], entry)
            changes |= _pointers(state, entry)
        state = replace(state, **changes)
    return replace(state, versions=tuple(versions))


def _registered(entry: Entry) -> Version:
    assert entry.version is not None  # noqa: S101
    return Version(
        model=entry.model,
        version=entry.version,
        stage="None",
        registered=entry.time_us,
        digest=entry.details["digest"],
        path=entry.details["path"],
        run_id=entry.details.get("run_id"),
    )


def _moved(version: Version, entry: Entry) -> Version:
    changes: dict[str, Any] = {"stage": entry.stage_to}
    match entry.kind:
        case "gate":
            changes["gate"] = entry.details["accepted"]
        case "proposed":
            changes |= {"proposed_by": entry.actor, "approved_by": None, "approvers": ()}
        case "approved":
            changes |= {"approved_by": entry.actor, "approvers": (*version.approvers, entry.actor)}
        case "promoted" if entry.stage_to == "Production":
            changes |= {"proposed_by": None, "approved_by": None, "approvers": ()}
        case "rolled_back":
            changes["gate"] = None
        case "removed":
            changes["removed"] = True
        case "canary_ended" if entry.details["verdict"] == "refused":
            changes["gate"] = None
    return replace(version, **changes)


def _approvals(entry: Entry) -> dict[str, Any]:
    needed = entry.details["needed"]
    if entry.details["waits"]:
        return {"fewer_approvals": (needed, entry.actor)}
    return {"approvals": needed, "fewer_approvals": None}


def _pointers(state: ModelState, entry: Entry) -> dict[str, Any]:
    match entry.kind:
        case "promoted" if entry.stage_to == "Production":
            back = entry.details.get("rollback_of") is not None
            served = state.served if back else (*state.served, entry.version)
            return {"production": entry.version, "served": served}
        case "rolled_back":
            return {"production": None, "served": state.served[:-1]}
        case "archived" if entry.stage_from == "Production":
            return {"production": None}
        case "canary_started":
            return {
                "canary": entry.version,
                "canary_share": entry.details["share"],
                "canary_since": state.canary_since if state.canary == entry.version else entry.time_us,
            }
        case "canary_ended":
            return {"canary": None, "canary_share": 0.0, "canary_since": None}
    return {}
