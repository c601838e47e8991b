"""The moves of a release: into a step, out of it, and to the end; each is made once, whoever makes it.

A move stands in the book before it is made. In the ledger it carries a key, by which one that was made is known, and
in the book it is ticked off after that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from vitok.clock import isoformat
from vitok.errors import Conflict, GateRefused
from vitok.loop.records import Record, Records
from vitok.loop.release_book import Release, ReleaseBook, ReleaseEvent, Status
from vitok.loop.releases import roll_back
from vitok.registry import Check, Entry, Registry, evaluate
from vitok.registry.files import exclusive

LOOP = "loop"
_OUTCOMES = {"finished": "accepted"}


@dataclass(frozen=True)
class _Why:
    """What a roll back rests on."""

    reason: str


@dataclass(frozen=True)
class Moves:
    """Makes the moves that stand in the book.

    Attributes:
        registry: Where the versions are registered.
        records: Where people read about releases.
        book: Where the moves stand.
        wait_s: Seconds to wait for another process that is making one.
    """

    registry: Registry
    records: Records
    book: ReleaseBook
    wait_s: float

    def settled(self, release: Release, now: int) -> Release:
        """Makes the move that was written down, if there is one, and returns the release after it.

        Raises:
            Conflict: If another process has been making a move of it all the time.
            StoreError: If a file cannot be written; the move still stands in the book.
        """
        if release.move is None:
            return release
        lock = self.book.path.with_name(f"{release.release_id}.lock")
        with exclusive(lock, wait_s=self.wait_s):
            release = self.book.get(release.release_id)
            move = release.move
            if move is None:
                return release
            if move["kind"] in ("enter", "adopt"):
                self._enter(release, int(move["step"]), now, adopted=move["kind"] == "adopt")
            else:
                self._end(release, move, now)
        return self.book.get(release.release_id)

    def _enter(self, release: Release, place: int, now: int, *, adopted: bool) -> None:
        step = release.plan["steps"][place]
        record = self._record(release)
        key = release.key_of(step["name"])
        try:
            entry = self._adopted(release, step, key, now) if adopted else self._moved(release, step, key, now)
        except (Conflict, GateRefused) as error:
            # Somebody moved the model, or took an approval's ground away: the next tick sees what holds.
            with self.book.changing(release) as writing:
                writing.set(move=None, waits=f"{step['name']} could not begin: {error}")
            return
        text = f"{step['name']} of {release.candidate} since {isoformat(entry.time_us)}"
        self.records.add(record.record_id, text, now=now, data={"ledger": entry.seq, "share": step["share"]}, key=key)
        with self.book.changing(release) as writing:
            writing.set(move=None, step=place, entered_at=entry.time_us, decisions=0, waits="", ordered=None)
            data = {"share": step["share"], "ledger": entry.seq}
            writing.tell(ReleaseEvent(at=entry.time_us, kind="entered", who=entry.actor, text=text, data=data))

    def _moved(self, release: Release, step: Mapping[str, Any], key: str, now: int) -> Entry:
        """Makes the entry of a step in the ledger, or finds it there."""
        ledger, model, version = self.registry.ledger, release.model, release.version
        known = ledger.entry(model, key)
        if known is not None:
            return known
        asked = release.ordered
        actor = LOOP if asked is None else str(asked["who"])
        reason = f"{release.release_id}, {step['name']}: {release.reason if asked is None else asked['why']}"
        if step["kind"] == "canary":
            return ledger.start_canary(
                model,
                version,
                step["share"],
                reason=reason,
                actor=actor,
                now=now,
                expected=release.incumbent,
                key=key,
            )
        if step["kind"] == "full":
            return ledger.promote(
                model,
                version,
                "Production",
                reason=reason,
                actor=actor,
                now=now,
                expected=release.incumbent,
                key=key,
            )
        if self.registry.state(model).version(version).stage == "Staging":
            return ledger.note(model, reason, version=version, actor=actor, now=now, key=key)
        return ledger.promote(
            model, version, "Staging", reason=reason, actor=actor, now=now, expected=release.incumbent, key=key
        )

    def _adopted(self, release: Release, step: Mapping[str, Any], key: str, now: int) -> Entry:
        """Writes into the ledger that a version which serves already is in a step from now on."""
        reason = f"{release.release_id}, {step['name']}: {release.reason}"
        return self.registry.ledger.note(
            release.model, reason, version=release.version, actor=release.actor, now=now, key=key
        )

    def _end(self, release: Release, move: Mapping[str, Any], now: int) -> None:
        outcome, reason, who = str(move["outcome"]), str(move["reason"]), str(move["who"])
        ledger, key = self.registry.ledger, release.key_of(outcome)
        if move["kind"] == "finish":
            ledger.note(release.model, reason, version=release.version, actor=who, now=now, key=key)
        elif move["kind"] == "back":
            try:
                self._put_back(release, outcome, reason, who, now)
            except Conflict as error:
                if outcome == "refused":
                    self._refused(release, reason, who, now)
                outcome, reason = "overtaken", f"{reason}; not put back: {error}"
        # Records come after the pointer: what keeps them from being written delays no way back.
        record = self._record(release)
        text = f"{outcome} by {who}: {reason}"
        self.records.add(record.record_id, text, now=now, data={"verdicts": dict(release.verdicts)}, key=f"{key} told")
        if self.records.get(record.record_id).is_open:
            self.records.close(record.record_id, _OUTCOMES.get(outcome, outcome), now=now)
        with self.book.changing(release) as writing:
            share = 1.0 if outcome == "finished" else 0.0
            writing.close(cast("Status", outcome), now=now)
            writing.tell(ReleaseEvent(at=now, kind="closed", who=who, text=text, data={"share": share}))

    def _put_back(self, release: Release, outcome: str, reason: str, who: str, now: int) -> None:
        """Takes the candidate away from where it stands, and its gate with it where it was refused."""
        ledger, model, version = self.registry.ledger, release.model, release.version
        if release.kind == "full":
            roll_back(self.registry, self.records, model, _Why(reason), expected=version, now=now, actor=who)
            return
        ended = release.key_of("end of the canary")
        if release.kind == "canary" and ledger.entry(model, ended) is None:
            ledger.end_canary(
                model,
                verdict="refused" if outcome == "refused" else "inconclusive",
                version=version,
                reason=reason,
                actor=who,
                now=now,
                key=ended,
            )
        present = self.registry.state(model).version(version)
        if outcome == "refused" and release.kind in ("", "shadow") and present.gate is not False:
            self._refused(release, reason, who, now)
        # Else services that score what is in Staging would go on doing so.
        if release.kind and present.stage == "Staging":
            key = release.key_of("archived")
            ledger.promote(model, version, "Archived", reason=reason, actor=who, now=now, key=key)

    def _refused(self, release: Release, reason: str, who: str, now: int) -> None:
        """Writes a refusal down as the verdict of a gate, so that the version does not pass by the one before."""
        check = Check(name=release.step_name, passed=False, value=None, bound=None, reason=reason)
        key = release.key_of("refused in a step")
        self.registry.ledger.record_gate(release.model, release.version, evaluate([check]), now=now, actor=who, key=key)

    def _record(self, release: Release) -> Record:
        details = {"way": "plan", "incumbent": release.champion, "actor": release.actor, "plan": dict(release.plan)}
        return self.records.open(
            "release",
            f"{release.candidate} beside {release.champion} by plan",
            system=release.model,
            version=release.candidate,
            now=release.begun_at,
            why=release.reason,
            details=details,
            key=release.key_of("record"),
        )
