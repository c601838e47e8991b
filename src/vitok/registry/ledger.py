"""The ledger: which version stood where, when, by whom and why; the truth about stages, and it only grows."""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.registry.change import Change, check_text, checked_time
from vitok.registry.gates import Verdict
from vitok.registry.package import check_model_name
from vitok.registry.people import check_person, person
from vitok.registry.stages import CanaryVerdict, Entry, ModelState, Stage, replay
from vitok.registry.storage import EntryStore, Verification

_TARGETS = ("Staging", "Production", "Archived")


class Ledger:
    """The append-only record of every model's versions, stages, gates, approvals and canaries.

    Each method that changes something appends one entry, or two in one transaction, and returns it. Every entry
    carries the hash of the one before it. Methods take `key`, an idempotency key: the same key of the same model
    again returns the first entry and appends nothing, so that a step that is repeated after a crash does no harm.

    Any number of threads and processes may use one file, and of machines one database. Times are microseconds; where
    a clock stepped back, an entry takes the time of the one before it and keeps the clock's own under
    `details["clock"]`.

    A PostgreSQL database is followed, so that `state` and `revision` take no time: they show one's own changes at
    once, and another process's as soon as the database tells of them, mostly within milliseconds and at the latest
    after three seconds. `catch_up` waits for all there is; every change is decided by what is in the database. While it
    does not answer they say so, at once and each time in the same words, until it does.

    Args:
        place: The SQLite file, made where it does not exist; or `postgresql://user@host/database`.
        copy: File in which a copy of what the database has is kept, as `state` reads it. A ledger that is opened
            while the database does not answer knows what the copy has until it does; nothing can be changed so long.

    Raises:
        StoreError: If it cannot be opened, or is something else.
        MissingExtra: If psycopg, which PostgreSQL needs, is not installed.

    Example:
        >>> import tempfile
        >>> from vitok.registry import at_least, evaluate
        >>> folder = tempfile.TemporaryDirectory()
        >>> ledger = Ledger(Path(folder.name) / "ledger.sqlite")
        >>> ledger.register("fraud", digest="3f2a", path="fraud/1", now=1_000_000, actor="train")
        1
        >>> verdict = evaluate([at_least("average_precision", 0.62, 0.5)])
        >>> print(ledger.record_gate("fraud", 1, verdict, now=2_000_000, actor="gate"))
        1970-01-01T00:00:02Z fraud/1 gate by gate: average_precision 0.62 is at least 0.5
        >>> print(ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=3_000_000))
        1970-01-01T00:00:03Z fraud/1 promoted None → Production by ann: first
        >>> print(ledger.state("fraud"))
        fraud/1 in Production, 1 version
        >>> ledger.at("fraud", 2_500_000) is None, ledger.at("fraud", 3_000_000)
        (True, 1)
        >>> ledger.close(); folder.cleanup()
    """

    def __init__(self, place: str | Path, *, copy: Path | None = None) -> None:
        self._copy = copy
        self._store = EntryStore(place, copy=copy)
        # With each state the revision of the whole ledger up to which it is known to be the latest.
        self._states: dict[str, tuple[int, ModelState]] = {}
        self._states_lock = threading.Lock()

    def __reduce__(self) -> tuple[object, tuple[str | Path, Path | None]]:
        return _opened, (self._store.place, self._copy)

    def __repr__(self) -> str:
        return f"Ledger({self._store.shown!r})"

    @property
    def place(self) -> str | Path:
        """The SQLite file; or the address of the database, with its password where it has one."""
        return self._store.place

    @property
    def path(self) -> Path:
        """The SQLite file.

        Raises:
            InvalidInput: If it lies in a database of a server.
        """
        place = self._store.place
        if isinstance(place, str):
            raise InvalidInput("ledger", self._store.shown, "lie in a file to have a path")
        return place

    def problem(self) -> str:
        """Says that the database does not answer, where one is followed; empty where all is well. Nobody is asked."""
        return self._store.problem()

    def close(self) -> None:
        """Closes file or connections; a closed ledger cannot be used any more."""
        self._store.close()

    def register(
        self,
        model: str,
        *,
        digest: str,
        path: str,
        now: int,
        actor: str,
        run_id: str | None = None,
        reason: str = "registered",
        expected: int | None = None,
        key: str | None = None,
    ) -> int:
        """Adds a version and returns its number: 1, 2, 3 ... for each model.

        Args:
            model: Name of the model.
            digest: Digest of its package.
            path: Where the package lies, relative to the folder of packages.
            now: The present, in microseconds.
            actor: Who registers it.
            run_id: The training run that made it.
            reason: Why, in words.
            expected: The number it must get; None for the next one.
            key: Idempotency key.

        Raises:
            InvalidInput: If a value breaks its rule.
            Conflict: If the next number is not the expected one, or the key came with another digest.
        """
        if not digest or not path:
            raise InvalidInput("digest, path", (digest, path), "name the package")
        details = {"digest": digest, "path": path, "run_id": run_id}
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if change.repeated("registered", None, None, {"digest": digest}):
                return cast("int", change.entry.version)
            number = change.state.latest + 1
            if expected is not None and expected != number:
                raise Conflict(f"the next version of {model} is {number}, not {expected}: somebody registered first")
            change.append("registered", number, stage_from=None, stage_to="None", details=details)
        return number

    def record_gate(
        self, model: str, version: int, verdict: Verdict, *, now: int, actor: str, key: str | None = None
    ) -> Entry:
        """Records what a gate decided about a version; the latest verdict counts.

        Raises:
            NotFound: If there is no such version.
        """
        with self._change(model, actor=actor, reason=verdict.reason, now=now, key=key) as change:
            if not change.repeated("gate", version, None):
                change.append("gate", version, details=verdict.to_dict())
        return change.entry

    def propose(self, model: str, version: int, *, reason: str, actor: str, now: int, key: str | None = None) -> Entry:
        """Proposes a version for Production: from now on it takes a second person's approval to promote it."""
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if not change.repeated("proposed", version, None):
                if change.state.version(version).stage == "Production":
                    raise Conflict(f"{model}/{version} is in Production already")
                change.append("proposed", version)
        return change.entry

    def approve(self, model: str, version: int, *, reason: str, actor: str, now: int, key: str | None = None) -> Entry:
        """Approves a proposed version.

        Raises:
            Conflict: If it was not proposed, or the same actor proposed or approved it, however the name is spelled.
        """
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if not change.repeated("approved", version, None):
                present = change.state.version(version)
                proposer = present.proposed_by
                if proposer is None:
                    raise Conflict(f"{model}/{version} was not proposed; call propose first")
                if person(proposer) == person(actor):
                    raise Conflict(f"{model}/{version} was proposed by {proposer!r}; somebody else has to approve it")
                if person(actor) in map(person, present.approvers):
                    raise Conflict(f"{model}/{version} was approved by {actor!r} already; it counts once")
                change.append("approved", version)
        return change.entry

    def require_approvals(
        self, model: str, needed: int, *, reason: str, actor: str, now: int, key: str | None = None
    ) -> Entry:
        """Says how many people besides the proposer have to approve each version before it may answer anything.

        To ask for more holds at once. To ask for fewer takes two people: it holds once a second one asks for the
        same number. Roll backs need nobody's approval.

        Args:
            model: Name of the model; it need not be registered yet.
            needed: How many, at least 0.
            reason: Why, in words.
            actor: Who asks for it.
            now: The present, in microseconds.
            key: Idempotency key.

        Returns:
            The entry; `details["waits"]` says whether it waits for a second person.

        Raises:
            InvalidInput: If the number is below 0.
            Conflict: If that many are needed already, or the same actor asks for the same lower number again.
        """
        if isinstance(needed, bool) or not isinstance(needed, int) or needed < 0:
            raise InvalidInput("needed", needed, "be a whole number of at least 0")
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if not change.repeated("approvals", None, None, {"needed": needed}):
                present, asked = change.state.approvals, change.state.fewer_approvals
                if needed == present:
                    raise Conflict(f"{model} needs {needed} approvals already")
                if asked is not None and (asked[0], person(asked[1])) == (needed, person(actor)):
                    raise Conflict(
                        f"{actor!r} asked for {needed} approvals of {model}; somebody else has to confirm it"
                    )
                waits = needed < present and (asked is None or asked[0] != needed)
                change.append("approvals", None, details={"needed": needed, "waits": waits})
        return change.entry

    def promote(
        self,
        model: str,
        version: int,
        stage: Stage,
        *,
        reason: str,
        actor: str,
        now: int,
        expected: int | None = None,
        override: str | None = None,
        key: str | None = None,
    ) -> Entry:
        """Moves a version to another stage; what was in Production before is archived in the same transaction.

        A canary of this very version ends with it, as accepted.

        Args:
            model: Name of the model.
            version: Which version.
            stage: `"Staging"`, `"Production"` or `"Archived"`.
            reason: Why, in words.
            actor: Who does it.
            now: The present, in microseconds.
            expected: The version that must be in Production now, 0 for none; None does not ask.
            override: Why it may go to Production although no valid gate verdict is on record; written into the
                entry. It stands for no approval.
            key: Idempotency key.

        Raises:
            NotFound: If there is no such version.
            GateRefused: If no accepted verdict is on record, or a proposal waits for approval.
            Conflict: If something else is in Production than expected, the version stands there already, another
                version's canary is running, or the version that serves would be taken away.
        """
        if stage not in _TARGETS:
            raise InvalidInput("stage", stage, f"be one of {', '.join(_TARGETS)}")
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if change.repeated("archived" if stage == "Archived" else "promoted", version, stage):
                return change.entry
            change.expect(expected)
            present = change.state.version(version)
            if present.stage == stage:
                raise Conflict(f"{present.name} is in {stage} already")
            if present.stage == "Production":
                raise Conflict(f"{present.name} serves; promote another version or roll back, then it is archived")
            if stage == "Archived":
                if change.state.canary == version:
                    raise Conflict(f"{present.name} is a running canary; end the canary first")
                change.append("archived", version, stage_to=stage)
            elif stage == "Staging":
                change.present(present)
                change.append("promoted", version, stage_to=stage)
            else:
                details = change.permitted(present, override)
                if change.state.canary not in (None, version):
                    raise Conflict(f"{model}/{change.state.canary} is a running canary beside Production; end it first")
                if change.state.canary == version:
                    change.end_canary("accepted", main=False)
                former = change.state.production
                if former is not None:
                    replaced = {"replaced_by": version}
                    change.append("archived", former, stage_to="Archived", details=replaced, main=False)
                change.append("promoted", version, stage_to=stage, details={**details, "from_version": former})
        return change.entry

    def rollback(
        self, model: str, *, reason: str, actor: str, now: int, expected: int | None = None, key: str | None = None
    ) -> Entry:
        """Puts the version back that was in Production before; the one that leaves needs a new gate to come back.

        It asks for no gate and ends a running canary, since it has to work at any time.

        Args:
            model: Name of the model.
            reason: Why, in words.
            actor: Who does it.
            now: The present, in microseconds.
            expected: The version that must be in Production now. Give it: then two watchers that see the same
                trouble go back one version, not two.
            key: Idempotency key.

        Returns:
            The entry of the version that left; `details["to_version"]` is the one that serves now.

        Raises:
            Conflict: If something else is in Production than expected, or nothing was there before.
        """
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if change.repeated("rolled_back", None, None):
                return change.entry
            change.expect(expected)
            bad, good = change.state.production, change.state.previous
            if bad is None or good is None:
                raise Conflict(f"{model}: no version was in Production before, there is nothing to go back to")
            if change.state.canary is not None:
                change.end_canary("inconclusive", main=False)
            change.append("rolled_back", bad, stage_to="Archived", details={"to_version": good})
            change.append("promoted", good, stage_to="Production", details={"rollback_of": bad}, main=False)
        return change.entry

    def start_canary(
        self,
        model: str,
        version: int,
        share: float,
        *,
        reason: str,
        actor: str,
        now: int,
        expected: int | None = None,
        override: str | None = None,
        key: str | None = None,
    ) -> Entry:
        """Lets a version answer a share of the decisions; for the running canary, changes its share.

        Args:
            model: Name of the model.
            version: Which version.
            share: Share of the decisions, in (0, 1).
            reason: Why, in words.
            actor: Who does it.
            now: The present, in microseconds.
            expected: The version that must be in Production now; None does not ask.
            override: Why it may answer although no accepted gate verdict is on record; written into the entry.
            key: Idempotency key.

        Raises:
            GateRefused: If no accepted verdict is on record.
            Conflict: If nothing is in Production to compare with, or another canary runs.
        """
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise InvalidInput("share", share, "be above 0 and below 1")
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if change.repeated("canary_started", version, None, {"share": float(share)}):
                return change.entry
            change.expect(expected)
            present = change.state.version(version)
            if change.state.production is None:
                raise Conflict(f"{model}: nothing is in Production that a canary could be compared with")
            if change.state.production == version:
                raise Conflict(f"{present.name} is in Production; a canary is another version")
            if change.state.canary not in (None, version):
                raise Conflict(f"{model}/{change.state.canary} is a running canary; end it first")
            details = change.permitted(present, override)
            change.append("canary_started", version, details={**details, "share": float(share)})
        return change.entry

    def end_canary(
        self,
        model: str,
        *,
        verdict: CanaryVerdict,
        reason: str,
        actor: str,
        now: int,
        version: int | None = None,
        key: str | None = None,
    ) -> Entry:
        """Ends the running canary; a refused one needs a new gate before it can answer again.

        Args:
            model: Name of the model.
            verdict: `"accepted"`, `"refused"` or `"inconclusive"`.
            reason: Why, in words.
            actor: Who does it.
            now: The present, in microseconds.
            version: The version that must be the canary; None does not ask.
            key: Idempotency key.

        Raises:
            Conflict: If no canary runs, or another version's.
        """
        if verdict not in ("accepted", "refused", "inconclusive"):
            raise InvalidInput("verdict", verdict, "be 'accepted', 'refused' or 'inconclusive'")
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if not change.repeated("canary_ended", version, None):
                if change.state.canary is None:
                    raise Conflict(f"{model}: no canary is running")
                if version is not None and change.state.canary != version:
                    raise Conflict(f"{model}/{change.state.canary} is the running canary, not version {version}")
                change.end_canary(verdict)
        return change.entry

    def remove(self, model: str, version: int, *, reason: str, actor: str, now: int, key: str | None = None) -> Entry:
        """Records that a version's package is removed: from now on it comes to no stage.

        Raises:
            NotFound: If there is no such version.
            Conflict: If it ever was in Staging or Production or a canary, was proposed, or is removed already.
        """
        with self._change(model, actor=actor, reason=reason, now=now, key=key) as change:
            if not change.repeated("removed", version, None):
                present = change.state.version(version)
                change.present(present)
                if change.stood(version) or present.proposed_by is not None:
                    raise Conflict(f"{present.name} stood in a stage, answered, or was proposed; its package is kept")
                change.append("removed", version, details={"digest": present.digest})
        return change.entry

    def note(
        self,
        model: str,
        text: str,
        *,
        actor: str,
        now: int,
        version: int | None = None,
        details: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Entry:
        """Writes a remark that moves nothing."""
        with self._change(model, actor=actor, reason=text, now=now, key=key) as change:
            if not change.repeated("note", version, None):
                change.append("note", version, details=details or {})
        return change.entry

    def state(self, model: str, *, at: int | None = None) -> ModelState:
        """Returns where a model stands now, or stood at a time in microseconds; of an unknown model, the empty state.

        Only the entries since the last call are read.

        Raises:
            InvalidInput: If the time is no whole number, such as a text.
        """
        if at is not None:
            entries = self._store.read("model = ? AND time_us <= ?", (model, checked_time("at", at)))
            return self._after(entries, ModelState(model=model))
        revision = self._store.revision()
        seen, known = self._known(model)
        if seen >= revision and known.revision:
            return known
        entries = self._store.read("model = ? AND seq > ?", (model, known.revision))
        if entries:
            self._store.keep()
        return self._remember(self._after(entries, known), revision)

    def catch_up(self) -> int:
        """Looks for what others have written, however recently; returns the revision, as `revision` does.

        It is for who was told of a change that another process made and has to see it: on PostgreSQL, what follows is
        never older than this call. On SQLite all reads are so.
        """
        return self._store.catch_up()

    def at(self, model: str, time_us: int) -> int | None:
        """Returns the version that was in Production at a time in microseconds, or None.

        Raises:
            InvalidInput: If the time is no whole number, such as a text.
        """
        time_us = checked_time("time_us", time_us)
        moved = "kind = 'promoted' AND stage_to = 'Production' OR kind = 'rolled_back'"
        last = self._store.last(f"model = ? AND time_us <= ? AND ({moved})", (model, time_us))
        return None if last is None or last.kind == "rolled_back" else last.version

    def history(self, model: str, *, version: int | None = None, after: int = 0) -> tuple[Entry, ...]:
        """Returns the entries of a model (or of one version), later than entry number `after`, in order."""
        if version is None:
            return tuple(self._store.read("model = ? AND seq > ?", (model, after)))
        return tuple(self._store.read("model = ? AND seq > ? AND version = ?", (model, after, version)))

    def entry(self, model: str, key: str) -> Entry | None:
        """Returns the entry that carries an idempotency key, or None."""
        found = self._store.read("model = ? AND key = ?", (model, key))
        return found[0] if found else None

    def models(self) -> tuple[str, ...]:
        """Returns the names of all models, sorted."""
        return tuple(self._store.names())

    def revision(self) -> int:
        """Returns a number that grows with every entry of any model; cheap enough to ask at every batch."""
        return self._store.revision()

    def take_over(self, entries: Iterable[Entry]) -> None:
        """Fills an empty ledger with all entries of another, such as those of a backup, as they are.

        Raises:
            Conflict: If it has entries.
        """
        self._store.take_over(entries)

    def verify(self, *, head: str | None = None) -> Verification:
        """Checks the chain of hashes from the first entry on, and says which entry was altered.

        Args:
            head: A `head` that an earlier verification returned and that was kept elsewhere. Without it, a tail that
                was cut off, or a ledger that was written anew from the start, cannot be told from a true one.
        """
        return self._store.verify(head)

    @contextlib.contextmanager
    def _change(self, model: str, *, actor: str, reason: str, now: int, key: str | None) -> Iterator[Change]:
        check_model_name(model)
        check_text("actor", actor)
        check_person("actor", actor)
        check_text("reason", reason)
        if key is not None:
            check_text("key", key)
        if isinstance(now, bool) or not isinstance(now, int) or not 0 <= now < 2**62:
            raise InvalidInput("now", now, "be microseconds since 1970, a whole number")
        with self._store.writing() as transaction:
            _, known = self._known(model)
            entries = transaction.read("model = ? AND seq > ?", (model, known.revision))
            change = Change(transaction, self._after(entries, known), actor=actor, reason=reason, now=now, key=key)
            yield change
        # Only now is it kept.
        self._remember(change.state, change.state.revision)

    def _known(self, model: str) -> tuple[int, ModelState]:
        with self._states_lock:
            return self._states.get(model) or (0, ModelState(model=model))

    def _remember(self, state: ModelState, revision: int) -> ModelState:
        if state.revision:
            with self._states_lock:
                seen, known = self._states.get(state.model, (0, state))
                newer = state if state.revision > known.revision else known
                self._states[state.model] = (max(seen, revision, state.revision), newer)
        return state

    def _after(self, entries: list[Entry], start: ModelState) -> ModelState:
        try:
            return replay(entries, start=start)
        except (LookupError, TypeError) as error:
            raise StoreError(
                f"ledger {self._store.shown} does not make sense for {start.model}; call verify()"
            ) from error


def _opened(place: str | Path, copy: Path | None) -> Ledger:
    return Ledger(place, copy=copy)
