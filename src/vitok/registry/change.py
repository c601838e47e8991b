"""One change of one model's ledger: the rules that every change keeps, and the entries it appends."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from vitok.errors import Conflict, GateRefused, InvalidInput
from vitok.registry.stages import CanaryVerdict, Entry, Kind, ModelState, Stage, Version, replay
from vitok.registry.storage import Writing


class Change:
    """A change in progress, inside the ledger's transaction.

    Args:
        transaction: The open transaction.
        state: The model's state before the change; it follows the entries that are appended.
        actor: Who makes the change.
        reason: Why.
        now: The present, in microseconds.
        key: Idempotency key, or None.
    """

    def __init__(
        self, transaction: Writing, state: ModelState, *, actor: str, reason: str, now: int, key: str | None
    ) -> None:
        self._transaction = transaction
        self.state = state
        self._actor, self._reason, self._now, self._key = actor, reason, now, key
        self._entry: Entry | None = None

    @property
    def entry(self) -> Entry:
        """The entry that the caller asked for, appended now or when the key was first used."""
        assert self._entry is not None  # noqa: S101
        return self._entry

    def repeated(
        self, kind: Kind, version: int | None, stage_to: Stage | None, details: Mapping[str, Any] | None = None
    ) -> bool:
        """Says whether the key was used before, and checks that it was used for the same."""
        if self._key is None:
            return False
        found = self._transaction.read("model = ? AND key = ?", (self.state.model, self._key))
        if not found:
            return False
        entry = found[0]
        same = (
            entry.kind == kind
            and version in (None, entry.version)
            and stage_to in (None, entry.stage_to)
            and all(entry.details.get(name) == value for name, value in (details or {}).items())
        )
        if not same:
            raise Conflict(f"key {self._key!r} was used for something else: {entry}. Use a key of its own")
        self._entry = entry
        return True

    def expect(self, production: int | None) -> None:
        """Checks which version is in Production, 0 for none; None does not ask."""
        if production is not None and production != (self.state.production or 0):
            present = self.state.production
            told = "nothing is" if present is None else f"{self.state.model}/{present} is"
            raise Conflict(f"{told} in Production, not version {production} as expected; read the state again")

    def permitted(self, version: Version, override: str | None) -> dict[str, Any]:
        """Returns what goes into the entry where the version may answer; raises where it may not.

        An override stands for a verdict of the gate, never for somebody's approval.
        """
        self.present(version)
        self._approved(version)
        if version.gate is None:
            missing = f"{version.name} has no valid gate verdict; run the gate and record it"
        elif not version.gate:
            verdicts = self._transaction.read(
                "model = ? AND version = ? AND kind = 'gate'", (self.state.model, version.version)
            )
            missing = f"the gate refused {version.name}: {verdicts[-1].reason}"
        else:
            return {}
        if override is None:
            raise GateRefused(missing)
        check_text("override", override)
        return {"override": override, "missing": missing}

    def present(self, version: Version) -> None:
        """Checks that a version's package was not removed."""
        if version.removed:
            raise Conflict(f"the package of {version.name} was removed; register it again")

    def stood(self, version: int) -> bool:
        """Says whether a version ever was in Staging or Production, or a canary."""
        moved = "model = ? AND version = ? AND kind IN ('promoted', 'canary_started')"
        return bool(self._transaction.read(moved, (self.state.model, version)))

    def _approved(self, version: Version) -> None:
        needed = max(self.state.approvals, int(version.proposed_by is not None))
        given = version.n_approvers
        if given >= needed:
            return
        if version.proposed_by is None:
            raise GateRefused(
                f"{version.name} needs {_people(needed)} to approve it, and was not proposed; call propose first"
            )
        so_far = f", {given} of {needed} given" if given else ""
        raise GateRefused(
            f"{version.name} was proposed by {version.proposed_by!r} and waits for somebody else's approval{so_far}"
        )

    def end_canary(self, verdict: CanaryVerdict, *, main: bool = True) -> None:
        """Ends the running canary."""
        details = {"verdict": verdict, "share": self.state.canary_share, "since": self.state.canary_since}
        self.append("canary_ended", self.state.canary, details=details, main=main)

    def append(
        self,
        kind: Kind,
        version: int | None,
        *,
        stage_from: Stage | None = None,
        stage_to: Stage | None = None,
        details: Mapping[str, Any] | None = None,
        main: bool = True,
    ) -> None:
        """Appends an entry; `main` is the one that carries the key and is returned to the caller."""
        if kind != "registered" and version is not None:
            stage_from = self.state.version(version).stage
            stage_to = stage_to or stage_from
        time_us = max(self._now, self.state.time_us)
        moved = {} if time_us == self._now else {"clock": self._now}
        entry = self._transaction.append(
            Entry(
                seq=0,
                time_us=time_us,
                kind=kind,
                model=self.state.model,
                version=version,
                stage_from=stage_from,
                stage_to=stage_to,
                actor=self._actor,
                reason=self._reason,
                details={**(details or {}), **moved},
                key=self._key if main else None,
            )
        )
        self.state = replay([entry], start=self.state)
        if main:
            self._entry = entry


def _people(n: int) -> str:
    return "one person" if n == 1 else f"{n} people"


def check_text(field: str, value: object) -> None:
    """Checks that a text can be written into the ledger.

    Raises:
        InvalidInput: If it is empty, no text, or not valid Unicode.
    """
    if not isinstance(value, str) or not value.strip():
        raise InvalidInput(field, value, "be a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(field, value, "be valid Unicode") from None


def checked_time(field: str, value: object) -> int:
    """Returns a time as the stores take it: they would compare a text with numbers, and answer.

    Raises:
        InvalidInput: If it is no whole number of 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or not -(2**63) <= int(value) < 2**63:
        fix = "Read a text with vitok.clock.parse_time"
        raise InvalidInput(field, value, "be microseconds since 1970, a whole number", fix)
    return int(value)
