"""Releases by plan: one look and at most one move a tick, by any process, whatever died in between.

A move is written into the book before it is made in the ledger, where it carries a key, and ticked off after it. So a
move that a crash interrupted is finished by whoever comes next and is made once; one that was not written down was
not begun, and the look that would have led to it is taken again from where the judges stood.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitok.errors import Conflict, GateRefused, InvalidInput
from vitok.loop.records import Records
from vitok.loop.release_book import Release, ReleaseBook, ReleaseEvent, Status, Writing, check_words
from vitok.loop.release_evidence import ReleaseEvidence, Seen
from vitok.loop.release_looks import scored_by, taken
from vitok.loop.release_moves import LOOP, Moves
from vitok.loop.release_plan import CountsOnce, Judge, ReleasePlan, Step
from vitok.loop.releases import Judged
from vitok.monitoring.rules import duration_text
from vitok.registry import ModelState, Registry, Verdict
from vitok.registry.people import person

_ATTEMPTS = 5


class Releases:
    """The releases by plan of a home.

    Any number of processes may tick a release, and people may give orders meanwhile: whoever was faster has acted, and
    the others see it. What has moved is always in the ledger of the registry.

    Args:
        registry: Where the versions are registered.
        records: Where people read about releases.
        wait_s: Seconds to wait for another process that is making a move.

    Raises:
        StoreError: If the file of the releases cannot be opened.

    Example:
        >>> import tempfile
        >>> from vitok.loop.release_evidence import Look
        >>> from vitok.loop.release_plan import ReleasePlan, Step
        >>> from vitok.registry import at_least, evaluate
        >>> class Nothing:
        ...     def look(self, release, *, now):
        ...         return Look()
        >>> home = tempfile.TemporaryDirectory()
        >>> registry, records = Registry(home.name), Records(home.name)
        >>> for number in (1, 2):
        ...     _ = registry.register("fraud", {"weights": bytes([number])}, now=0, actor="train")
        ...     gate = evaluate([at_least("average_precision", 0.6, 0.5)])
        ...     _ = registry.ledger.record_gate("fraud", number, gate, now=0, actor="gate")
        >>> _ = registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=0)
        >>> plan = ReleasePlan(steps=(Step(name="canary", kind="canary", share=0.1, least=60), Step(name="full",
        ...     kind="full", share=1, least=600)))
        >>> releases = Releases(registry, records)
        >>> release = releases.begin("fraud", 2, plan, now=10, actor="ann", reason="retrained")
        >>> for now in (10, 50, 70, 400, 670):
        ...     release = releases.tick(release.release_id, plan, Nothing(), now=now)
        ...     print(now, release.status, release.step_name, release.warm, registry.state("fraud").production)
        10 running canary ('fraud/2', 'fraud/1') 1
        50 running canary ('fraud/2', 'fraud/1') 1
        70 running full ('fraud/2', 'fraud/1') 2
        400 running full ('fraud/2', 'fraud/1') 2
        670 finished full () 2
        >>> releases.close(); registry.close(); home.cleanup()
    """

    def __init__(self, registry: Registry, records: Records, *, wait_s: float = 10.0) -> None:
        self.registry, self.records = registry, records
        self.book = ReleaseBook(registry.home)
        self._moves = Moves(registry, records, self.book, wait_s)
        # What judges counted and the book has: a tick that comes after one of this process reads none of it again.
        self._ids: dict[tuple[str, str], Mapping[str, Seen]] = {}

    def close(self) -> None:
        """Closes the file."""
        self.book.close()

    def begin(
        self,
        model: str,
        version: int,
        plan: ReleasePlan,
        *,
        now: int,
        actor: str,
        reason: str,
        key: str | None = None,
    ) -> Release:
        """Begins a release beside the version in Production; the next `tick` takes the first step.

        Args:
            model: Name of the model.
            version: Number of the candidate.
            plan: What is to happen.
            now: The present, in microseconds.
            actor: Who begins it; none of the people who may approve it.
            reason: Why, in words.
            key: Idempotency key: the same key again returns the release that it began, also after that has ended.

        Returns:
            The release; the same call again, while it is open, returns it as it stands.

        Raises:
            NotFound: If there is no such version.
            GateRefused: If its gate refused it, or it has no verdict and no step before its first answer has a gate.
            Conflict: If nothing is in Production to compare with, another release of the model is open, or a canary
                runs that was begun otherwise.
        """
        check_words(actor=actor, reason=reason)
        state = self.registry.state(model)
        present = state.version(version)
        if (known := self._begun(state, version, plan, now=now, actor=actor, reason=reason, key=key)) is not None:
            return known
        if present.removed:
            raise Conflict(f"the package of {present.name} was removed; register it again")
        if state.production is None:
            raise Conflict(f"nothing of {model} is in Production to compare with; call push for the first version")
        if state.production == version:
            raise Conflict(f"{present.name} is in Production already; call adopt for its probation")
        if state.canary is not None:
            raise Conflict(f"{model}/{state.canary} is a running canary; end it first")
        if present.gate is False:
            raise GateRefused(f"the gate refused {present.name}; a release begins with a version that passed")
        first = next((at for at, step in enumerate(plan.steps) if step.kind != "shadow"), 0)
        if present.gate is None and not any(step.gate for step in plan.steps[: first + 1]):
            raise GateRefused(f"{present.name} has no valid gate verdict; run the gate and record it")
        incumbent = state.production
        return self.book.begin(model, version, incumbent, plan, actor=actor, reason=reason, now=now, key=key)

    def adopt(
        self,
        model: str,
        version: int,
        plan: ReleasePlan,
        *,
        now: int,
        actor: str,
        reason: str,
        key: str | None = None,
    ) -> Release:
        """Takes up a version that somebody let answer otherwise: its release begins in the step where it stands.

        That is the last step of a plan where it was pushed straight to Production: its probation begins now, beside
        the version that served before it, which a roll back puts back. For a running canary it is the plan's canary
        of that share. The steps before are not made up for, and no gate and no approval is asked of them: whoever let
        it answer has answered for them.

        Args:
            model: Name of the model.
            version: Number of the version, which serves, or is the canary.
            plan: The plan; its steps are done from there on, at their judges' part of the error.
            now: The present, in microseconds.
            actor: Who takes it up.
            reason: Why, in words.
            key: Idempotency key: the same key again returns the release that it began, also after that has ended.

        Returns:
            The release, in its step; the same call again, while it is open, returns it as it stands.

        Raises:
            NotFound: If there is no such version.
            Conflict: If it neither serves nor is the canary, nothing served before it, another release of the model is
                open, another canary runs, or the plan has no canary of its share.
        """
        check_words(actor=actor, reason=reason)
        state = self.registry.state(model)
        name = state.version(version).name
        known = self._begun(state, version, plan, now=now, actor=actor, reason=reason, key=key)
        if known is None:
            place, beside = len(plan.steps) - 1, state.previous
            if state.canary == version:
                found = [at for at, step in enumerate(plan.steps) if step.share == state.canary_share]
                if not found:
                    raise Conflict(f"{name} is a canary of {100 * state.canary_share:g} %; the plan has none of that")
                place, beside = found[0], state.production
            elif state.production != version:
                raise Conflict(f"{name} is not in Production; call push first, or begin for a release of all steps")
            elif state.canary is not None:
                raise Conflict(f"{model}/{state.canary} is a running canary; end it first")
            if beside is None:
                raise Conflict(f"nothing served before {name}: there is nothing to compare it with, or to go back to")
            move = {"kind": "adopt", "step": place}
            known = self.book.begin(
                model, version, beside, plan, actor=actor, reason=reason, now=now, key=key, move=move
            )
        return self._moves.settled(known, now)

    def _begun(
        self, state: ModelState, version: int, plan: ReleasePlan, *, now: int, actor: str, reason: str, key: str | None
    ) -> Release | None:
        """Returns the release that was begun by the same call before; ends one that the model was moved away from."""
        known = None if key is None else self.book.keyed(key)
        if known is not None:
            if (known.model, known.version) != (state.model, version):
                raise Conflict(f"key {key!r} was used for {known}; use a key of its own")
            return known
        for release in self.book.list(model=state.model, closed=False):
            present = self._moves.settled(release, now)
            lost = self._overtaken(present) if present.is_open else ""
            if lost:
                with self.book.changing(present) as writing:
                    writing.set(move={"kind": "left", "outcome": "overtaken", "reason": lost, "who": LOOP})
                self._moves.settled(self.book.get(present.release_id), now)
            elif present.is_open and present.version == version:
                incumbent = present.incumbent
                return self.book.begin(state.model, version, incumbent, plan, actor=actor, reason=reason, now=now)
        return None

    def tick(
        self, release_id: str, plan: ReleasePlan, evidence: ReleaseEvidence, *, now: int, only_proposed: str = ""
    ) -> Release:
        """Looks once, and moves once where that is due; call it as often as you like.

        A move that was begun and not finished is finished first. In a step, its judges take in what came since. One
        that refuses rolls the release back at once, also while it is paused. Else it goes on where the step lasted
        for its time and decisions, the judges that must have accepted did, the next step's gate accepts, and its
        approvals were given. A gate that has not enough evidence is asked again at the next tick.

        Args:
            release_id: Such as `"plan-0003"`, or `"fraud/2"` for the latest of a version.
            plan: The plan that it was begun with.
            evidence: Where it is judged on.
            now: The present, in microseconds; a clock that was set back only makes the step last longer.
            only_proposed: Why a roll back from full traffic is not made but only told in `waits`, such as the text of
                a switch; empty where it is made. A canary that is refused always ends.

        Returns:
            The release as it stands then. Where another process or person changed it meanwhile, what they made of it.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it was begun with another plan, or another process has been making a move all the time.
            StoreError: If a file cannot be written; nothing is lost, tick again.
        """
        release = self.book.get(release_id)
        # A move that a crash left is this tick's move; it needs no plan, and a way back waits for none.
        if release.move is not None:
            return self._moves.settled(release, now)
        if not release.is_open:
            return release
        if release.plan != plan.to_dict():
            raise Conflict(f"{release.release_id} was begun with another plan; go on with that, or abort it")
        self._propose(release, now)
        lost = self._overtaken(release)
        step = plan.steps[release.step] if release.step >= 0 else None
        judges: dict[str, Judge] = {}
        said: dict[str, Judged] = {}
        aside: dict[str, list[str]] = {}
        counted, position, more = release.decisions, release.position, False
        if step is not None and not lost:
            judges, more = {name: self._judge(release, plan, name) for name in step.judges}, True
        while more:
            look = evidence.look(dataclasses.replace(release, position=position), now=now)
            for name, judge in judges.items():
                said[name], refused = taken(judge, look, now=now)
                aside.setdefault(name, []).extend(refused)
            counted += scored_by(look, release.candidate)
            # A refusal waits for nothing.
            more = look.more and look.position != position and not any(one.state == "refuse" for one in said.values())
            position = position if look.position is None else look.position
        # A time to come is no beginning: the clock was ahead then.
        entered = None if release.entered_at is None else min(release.entered_at, now)
        if lost:
            move: dict[str, Any] | None = {"kind": "left", "outcome": "overtaken", "reason": lost, "who": LOOP}
            waits = ""
        else:
            move, waits = self._decide(release, plan, said, counted, entered, now)
            if only_proposed and release.kind == "full" and move is not None and move["kind"] == "back":
                waits = f"roll back to {release.champion} is proposed: {move['reason']}; {only_proposed}"
                move = None
        try:
            with self.book.changing(release) as writing:
                for name, judge in judges.items():
                    apart = judge.ids if isinstance(judge, CountsOnce) else None
                    state = judge.sums() if isinstance(judge, CountsOnce) else judge.to_state()
                    writing.judged(name, state, said[name].to_dict(), ids=apart)
                    if aside[name] and not any(one.kind == "aside" and one.who == name for one in release.events):
                        text = f"rows that it cannot judge are put aside, {len(aside[name]):,} here: {aside[name][0]}"
                        writing.tell(ReleaseEvent(at=now, kind="aside", who=name, text=text))
                writing.set(position=position, decisions=counted, entered_at=entered, waits=waits, move=move)
        except Conflict:
            present = self.book.get(release.release_id)
            if present == release:
                raise
            return self._moves.settled(present, now)
        for name, judge in judges.items():
            if isinstance(judge, CountsOnce):
                self._ids[release.release_id, name] = judge.ids
                for seen in judge.ids.values():
                    seen.kept()
        release = self._moves.settled(self.book.get(release.release_id), now)
        if not release.is_open:
            self._ids = {place: ids for place, ids in self._ids.items() if place[0] != release.release_id}
        return release

    def pause(self, release_id: str, *, who: str, why: str, now: int) -> Release:
        """Holds a release where it is: it goes on to no other step, but a judge that refuses still rolls it back.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it has ended.
        """

        def change(writing: Writing, _: Release) -> None:
            writing.set(status="paused", waits=f"paused by {who}: {why}")
            writing.tell(ReleaseEvent(at=now, kind="paused", who=who, text=why))

        return self._order(release_id, change, who=who, why=why, now=now)

    def resume(self, release_id: str, *, who: str, why: str, now: int) -> Release:
        """Lets a paused release go on.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it has ended, or is not paused.
        """

        def change(writing: Writing, release: Release) -> None:
            if release.status != "paused":
                raise Conflict(f"{release.release_id} is not paused")
            writing.set(status="running", waits="")
            writing.tell(ReleaseEvent(at=now, kind="resumed", who=who, text=why))

        return self._order(release_id, change, who=who, why=why, now=now)

    def advance(self, release_id: str, *, who: str, why: str, now: int) -> Release:
        """Asks for the next step at the next tick, before the step has lasted and its judges have accepted.

        It stands for no gate and for no approval, and who asks cannot be among those who approve.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it has ended or is paused.
        """

        def change(writing: Writing, release: Release) -> None:
            if release.status == "paused":
                raise Conflict(f"{release.release_id} is paused; resume it first")
            place = release.step + 1
            steps = release.plan["steps"]
            text = f"on to {steps[place]['name'] if place < len(steps) else 'the end'}: {why}"
            writing.set(ordered={"step": place, "who": who, "why": why})
            writing.tell(ReleaseEvent(at=now, kind="ordered", who=who, text=text))

        return self._order(release_id, change, who=who, why=why, now=now)

    def approve(self, release_id: str, *, who: str, why: str, now: int) -> Release:
        """Approves the next step that asks for approvals, and the version where the ledger asks for them.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it has ended, nothing asks for an approval, or the same person began or asked for it.
        """

        def change(writing: Writing, release: Release) -> None:
            steps = release.plan["steps"]
            place = next((at for at in range(release.step + 1, len(steps)) if steps[at]["approvals"]), None)
            if place is None and not self._ledger_waits(release):
                raise Conflict(f"{release.release_id} waits for nobody's approval")
            if person(who) in _involved(release):
                raise Conflict(f"{release.release_id} was begun or asked for by {who!r}; somebody else has to approve")
            if place is not None:
                writing.approve(place, who=who, why=why, now=now)
            what = release.candidate if place is None else steps[place]["name"]
            writing.tell(ReleaseEvent(at=now, kind="approved", who=who, text=f"{what}: {why}"))

        check_words(who=who, why=why)
        # First the ledger, which has rules of its own; its entry has a key, so asking again adds none.
        release = self.book.get(release_id)
        self._propose(release, now)
        if release.is_open and person(who) not in _involved(release) and self._ledger_waits(release):
            key = release.key_of(f"approved by {person(who)}")
            self.registry.ledger.approve(release.model, release.version, reason=why, actor=who, now=now, key=key)
            if not any(step["approvals"] for step in release.plan["steps"][release.step + 1 :]):
                event = ReleaseEvent(at=now, kind="approved", who=who, text=f"{release.candidate}: {why}")
                return self._order(release_id, lambda writing, _: writing.tell(event), who=who, why=why, now=now)
        return self._order(release_id, change, who=who, why=why, now=now)

    def abort(self, release_id: str, *, who: str, why: str, now: int) -> Release:
        """Ends a release at once and puts things back as they were: shadow and canary end, full is rolled back.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it has ended.
        """
        return self._put_back(release_id, "aborted", "abort", who=who, why=why, now=now)

    def supersede(self, release_id: str, *, who: str, why: str, now: int) -> Release:
        """Ends a release that is undecided because a newer version is to be tried in its place; else as `abort`.

        Raises:
            NotFound: If there is no such release.
            Conflict: If it has ended.
        """
        return self._put_back(release_id, "superseded", "make way", who=who, why=why, now=now)

    def _put_back(self, release_id: str, outcome: Status, told: str, *, who: str, why: str, now: int) -> Release:
        def change(writing: Writing, _: Release) -> None:
            writing.set(move={"kind": "back", "outcome": outcome, "reason": why, "who": who})
            writing.tell(ReleaseEvent(at=now, kind="ordered", who=who, text=f"{told}: {why}"))

        return self._order(release_id, change, who=who, why=why, now=now)

    # What is decided

    def _judge(self, release: Release, plan: ReleasePlan, name: str) -> Judge:
        judge = plan.judges[name].make(
            candidate=release.candidate, incumbent=release.champion, confidence_level=plan.confidence_level(name)
        )
        state = self.book.state(release, name)
        # Taken out: no other thread may add to them, nor a tick after one that came to nothing.
        known = self._ids.pop((release.release_id, name), {})
        try:
            if state is not None and isinstance(judge, CountsOnce):
                stored = self.book.n_ids(release, name)
                # Ids only grow, and each change rests on the one before: as many are the same.
                same = {one: len(ids) for one, ids in known.items() if len(ids)} == stored
                ids = known if same else self.book.ids(release, name)
                judge.restore(state, ids={one: ids.get(one, Seen()) for one in judge.ids})
            elif state is not None:
                judge.restore(state)
        except (Conflict, InvalidInput) as error:
            fix = "go on with the program that began the release, or abort it"
            raise Conflict(f"judge {name!r} of {release.release_id} cannot go on, {fix}: {error}") from error
        return judge

    def _decide(
        self,
        release: Release,
        plan: ReleasePlan,
        said: Mapping[str, Judged],
        counted: int,
        entered: int | None,
        now: int,
    ) -> tuple[dict[str, Any] | None, str]:
        """Returns the move to make, or None, and what is waited for."""
        for name, verdict in said.items():
            if verdict.state == "refuse":
                return {"kind": "back", "outcome": "refused", "reason": f"{name}: {verdict.reason}", "who": LOOP}, ""
        if release.status == "paused":
            return None, release.waits
        place = release.step + 1
        if entered is not None:
            step = plan.steps[release.step]
            missing = _missing(step, said, counted, now - entered)
            asked = release.ordered is not None and release.ordered["step"] == place
            if missing and not asked:
                if step.longest is not None and now - entered >= step.longest:
                    reason = f"{step.name} was not decided within {duration_text(step.longest)}: {missing}"
                    return {"kind": "back", "outcome": "inconclusive", "reason": reason, "who": LOOP}, ""
                return None, missing
            if place == len(plan.steps):
                reason = f"{release.candidate} has passed its release; the way back is given up"
                return {"kind": "finish", "outcome": "finished", "reason": reason, "who": LOOP}, ""
        return self._entry(release, plan.steps[place], place, now)

    def _entry(self, release: Release, step: Step, place: int, now: int) -> tuple[dict[str, Any] | None, str]:
        """Asks gate and approvals of a step."""
        present = self.registry.state(release.model).version(release.version)
        verdict = self._gate(release, step, now) if present.gate is not False else None
        if verdict is not None and verdict.undecided:
            return None, f"{step.name} waits for its gate: {verdict.reason}"
        if present.gate is False or (verdict is not None and not verdict.accepted):
            told = "a gate refused it" if verdict is None else verdict.reason
            return {"kind": "back", "outcome": "refused", "reason": f"gate of {step.name}: {told}", "who": LOOP}, ""
        if step.kind != "shadow" and self.registry.state(release.model).version(release.version).gate is None:
            return None, f"{step.name} waits for a gate: the verdict on {release.candidate} is void"
        given = {person(who) for at, who, _ in release.approvals if at == place} - _involved(release)
        if len(given) < step.approvals:
            return None, f"{step.name} waits for approval, {len(given)} of {step.approvals} given"
        if step.kind != "shadow" and self._ledger_waits(release):
            return None, f"{release.candidate} waits for approval before it may answer"
        return {"kind": "enter", "step": place}, ""

    def _gate(self, release: Release, step: Step, now: int) -> Verdict | None:
        """Returns the verdict of a step's gate, the one on record where it was decided before; None without a gate."""
        if step.gate is None:
            return None
        key = release.key_of(f"gate of {step.name}")
        entry = self.registry.ledger.entry(release.model, key)
        if entry is None:
            verdict = step.gate(release.candidate, release.champion, now)
            if verdict.undecided:
                return verdict
            entry = self.registry.ledger.record_gate(
                release.model, release.version, verdict, now=now, actor=f"gate of {step.name}", key=key
            )
        return Verdict.from_dict(entry.details)

    def _ledger_waits(self, release: Release) -> bool:
        state = self.registry.state(release.model)
        present = state.version(release.version)
        serves = state.production == release.version
        return not serves and present.n_approvers < max(state.approvals, int(present.proposed_by is not None))

    def _propose(self, release: Release, now: int) -> None:
        state = self.registry.state(release.model)
        wanted = state.approvals and state.version(release.version).proposed_by is None
        if release.is_open and wanted and state.production != release.version:
            key = release.key_of("proposed")
            ledger = self.registry.ledger
            ledger.propose(release.model, release.version, reason=release.reason, actor=release.actor, now=now, key=key)

    def _overtaken(self, release: Release) -> str:
        """Says what moved the model other than this release; empty where nothing did."""
        state = self.registry.state(release.model)
        serves = f"{release.model}/{state.production} is in Production" if state.production else "nothing serves"
        if release.kind == "full":
            return "" if state.production == release.version else f"{serves}, not {release.candidate}"
        if state.production != release.incumbent:
            return f"{serves}, not {release.champion}"
        if release.kind == "canary":
            share = release.plan["steps"][release.step]["share"]
            if state.canary != release.version or state.canary_share != share:
                return f"{release.candidate} is no canary of {100 * share:g} % any more"
        if release.kind == "shadow" and state.version(release.version).stage != "Staging":
            return f"{release.candidate} is not in Staging any more"
        return ""

    # What people order

    def _order(
        self, release_id: str, change: Callable[[Writing, Release], None], *, who: str, why: str, now: int
    ) -> Release:
        """Changes a release for a person; where a tick was faster, on what it made of the release."""
        check_words(who=who, why=why)
        for attempt in range(_ATTEMPTS):
            release = self._moves.settled(self.book.get(release_id), now)
            if not release.is_open:
                raise Conflict(f"{release.release_id} has ended: {release.status}")
            try:
                with self.book.changing(release) as writing:
                    change(writing, release)
            except Conflict:
                if attempt + 1 == _ATTEMPTS or self.book.get(release.release_id) == release:
                    raise
            else:
                break
        return self._moves.settled(self.book.get(release.release_id), now)


def _missing(step: Step, said: Mapping[str, Judged], counted: int, lasted: int) -> str:
    """Says what a step still waits for; empty where it has what it needs."""
    if lasted < step.least:
        return f"{step.name} lasts {duration_text(step.least)}, {duration_text(max(lasted, 0))} so far"
    if counted < step.least_decisions:
        return f"{step.name} waits for {step.least_decisions:,} decisions, {counted:,} so far"
    open_ = [name for name in step.accepts if said[name].state != "accept"]
    return "; ".join(f"{name}: {said[name].reason}" for name in open_)


def _involved(release: Release) -> set[str]:
    """Says who began the release and who asked for the step that comes next, each as `person` writes them."""
    entered = max((at for at, event in enumerate(release.events) if event.kind == "entered"), default=0)
    ordered = [event.who for event in release.events[entered:] if event.kind == "ordered"]
    return {person(who) for who in (release.actor, *ordered)}
