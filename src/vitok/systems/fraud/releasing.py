"""Releases of the fraud service: the plan, what it is judged on, and what is told of it; `Releases` does the rest.

Rehearsal, canary and probation are judged by pairs: both versions score each decision. What somebody else has let
answer (a canary or a push by hand) is taken up, and judged and put back like a release of the loop's own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vitok.clock import DAY, HOUR
from vitok.errors import NotFound, VitokError
from vitok.loop import (
    JudgeRules,
    LogEvidence,
    Order,
    PairedJudge,
    PlannedJudge,
    Records,
    Release,
    ReleasePlan,
    Releases,
    Step,
    Switches,
    rollback_seconds,
)
from vitok.loop.playbook_actions import words
from vitok.loop.release_book import ReleaseEvent
from vitok.monitoring import ReferenceProfile
from vitok.monitoring.label_guard import LabelGuard
from vitok.policies import Costs, TierPolicy
from vitok.registry import Check, Registry, Verdict, evaluate
from vitok.systems.fraud.acting import LOOP
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.overrides import as_released
from vitok.systems.fraud.rehearsal import Rehearsing, rehearsed
from vitok.systems.fraud.skew_check import skew_check
from vitok.systems.fraud.versions import PROBATION

if TYPE_CHECKING:
    import polars as pl

CANARY_SHARE = 0.1
RESCUE_SHARE = 0.5
"""Share of a canary beside a champion that loses: there is less to lose than to win."""
CANARY_LONGEST = 7 * DAY
"""So long after its first labels can be known, an undecided canary is ended."""
UNDECIDED = 7 * DAY
"""A canary that is undecided for so long makes way for a version that is to be made."""
LEAST_PROBATION = 3 * DAY
"""A retraining waits for so much of a probation; it lasts a label delay longer where no newer version is made."""
_LOOKED_BACK = 7 * DAY


class Releasing:
    """The releases of a home.

    Args:
        home: The service's home folder.
        registry: Where versions stand.
        records: Where people read about releases.
        costs: What actions cost.
        label_delay: Age at which labels are known, microseconds.
        guard: Says which labels are believed.
        profile_of: Gives the reference profile of a version.
        tell: Gets (time, text) for everything worth telling.
        note: Gets (text, time, key) for what came of a retraining.
        mirror: Shows the stages of the versions elsewhere, after each change of the ledger.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        records: Records,
        *,
        costs: Costs,
        label_delay: int,
        guard: LabelGuard,
        profile_of: Callable[[str], ReferenceProfile | None],
        tell: Callable[[int, str], None],
        note: Callable[[str, int, str], None],
        mirror: Callable[[], None],
    ) -> None:
        self.registry, self.records, self.costs, self.label_delay = registry, records, costs, label_delay
        self.releases = Releases(registry, records)
        self._decisions = home / "log" / "decisions"
        self._switches = Switches(home)
        self._profile_of, self._tell, self._note, self._mirror = profile_of, tell, note, mirror
        log = LogEvidence(
            folder=home / "log",
            kind=SYSTEM,
            maturity=label_delay,
            label_every=DAY,
            seen_as=lambda rows: as_released(rows, self._policy_of),
            trusted=guard.trusted,
        )
        self._evidence = Rehearsing(log=log, since=self._rehearsed_since, score=self._rehearse)
        self._policies: dict[int, TierPolicy] = {}
        self._models: dict[str, LoadedModel] = {}
        # What people have been told of each release, and the entry of the ledger that was shown elsewhere.
        self._told = {release.release_id: len(release.events) for release in self.releases.book.list(model=SYSTEM)}
        self._said: dict[str, str] = {}
        self._revision = registry.ledger.revision()
        self._taken_up = -1
        present = self.open()
        self._under_way = "" if present is None else present.release_id

    def close(self) -> None:
        """Closes the file of the releases."""
        self.releases.close()

    def open(self) -> Release | None:
        """Returns the release that is under way."""
        return next(iter(self.releases.book.list(model=SYSTEM, closed=False)), None)

    def plan(self, share: float = CANARY_SHARE) -> ReleasePlan:
        """Returns what happens to a version that passed its gate: a canary of a share, then a probation.

        Args:
            share: Of the customers, in (0, 1).

        Example:
            >>> import tempfile
            >>> from vitok.monitoring.label_guard import LabelGuard
            >>> home = tempfile.TemporaryDirectory()
            >>> registry, guard = Registry(home.name), LabelGuard(Path(home.name) / "holds.sqlite")
            >>> releasing = Releasing(Path(home.name), registry, Records(home.name), costs=Costs(), guard=guard,
            ...     label_delay=7 * DAY, profile_of=lambda _: None, tell=print, note=print, mirror=lambda: None)
            >>> print(releasing.plan())
            canary 10 % for 1h, then full for 10d
            >>> releasing.close(); guard.close(); registry.close(); home.cleanup()
        """
        canary = Step(
            name=f"canary {100 * share:g} %",
            kind="canary",
            share=share,
            least=HOUR,
            longest=CANARY_LONGEST + self.label_delay,
            judges=("canary",),
            accepts=("canary",),
            gate=self._gate,
        )
        # The outcomes of its first days are to be known before the way back is given up, as far as the service goes
        # on scoring the version before.
        lasts = min(self.label_delay + LEAST_PROBATION, PROBATION)
        full = Step(name="full", kind="full", share=1, least=lasts, judges=("probation",))
        judges = {name: PlannedJudge(make=self._judge) for name in ("canary", "probation")}
        return ReleasePlan(steps=(canary, full), judges=judges)

    # What moves

    def busy(self, now: int) -> Release | None:
        """Returns the release that a newer version has to wait for: none in a probation that has lasted enough."""
        release = self.open()
        if release is None or release.entered_at is None:
            return release
        return None if release.kind == "full" and now - release.entered_at >= LEAST_PROBATION else release

    def begin(
        self, version: int, *, now: int, reason: str, key: str, rescue: bool = False, actor: str = LOOP
    ) -> Release:
        """Begins the release of a version beside the one in Production; the next `tick` begins its canary.

        A probation that has lasted for its least time is ended for it; the same key again begins nothing new.

        Args:
            version: Its number.
            now: The present, in microseconds.
            reason: Why, in words.
            key: Names what is begun.
            rescue: Whether the champion loses, which gives the canary a larger share.
            actor: Who begins it.

        Raises:
            Conflict: If another release is under way.
            GateRefused: If the gate refused the version.
        """
        known, present = self.releases.book.keyed(key), self.open()
        if known is None and present is not None and self.busy(now) is None:
            why = f"{SYSTEM}/{version} is to be tried"
            self.releases.advance(present.release_id, who=actor, why=why, now=now)
            self.tick(now)
        plan = self.plan(RESCUE_SHARE if rescue else CANARY_SHARE)
        return self.releases.begin(SYSTEM, version, plan, now=now, actor=actor, reason=reason, key=key)

    def supersede(self, release: Release, *, why: str, now: int) -> None:
        """Ends an undecided release for a newer version."""
        self._after(self.releases.supersede(release.release_id, who=LOOP, why=why, now=now), now)
        self._shown()

    def tick(self, now: int) -> None:
        """Looks once at the release that is under way, moves it where that is due, and tells of it."""
        self._take_up(now)
        release = self.open()
        if self._under_way and (release is None or release.release_id != self._under_way):
            self._after(self.releases.book.get(self._under_way), now)
        self._under_way = "" if release is None else release.release_id
        if release is not None:
            held = self._switches.holds("rollback")
            try:
                judges = dict.fromkeys(release.plan["judges"], self._judge)
                plan = ReleasePlan.kept(release.plan, judges=judges, gate=self._gate)
                after = self.releases.tick(
                    release.release_id, plan, self._evidence, now=now, only_proposed="" if held is None else str(held)
                )
            except VitokError as error:
                # The watch goes on, whatever is wrong with a release; a person has to see to it.
                self._once(release, f"{release.release_id} of {release.candidate} cannot go on: {error}", now)
            else:
                self._said.pop(release.release_id, None)
                if held is not None:
                    self._propose(after, str(held), now)
                self._after(after, now)
        self._shown()

    def catch_up(self, now: int) -> None:
        """Does what `tick` does where the ledger has moved since."""
        if self.registry.ledger.revision() != self._revision:
            self.tick(now)

    def _take_up(self, now: int) -> None:
        """Makes a release of a canary, or of a young version in Production, that somebody let answer otherwise."""
        revision = self.registry.ledger.revision()
        state, release = self.registry.state(SYSTEM), self.open()
        version, share = state.canary or state.production, state.canary_share
        if revision == self._taken_up or version is None or (release is not None and release.version == version):
            return
        kind = "canary_started" if state.canary else "promoted"
        entries = [
            entry
            for entry in self.registry.ledger.history(SYSTEM, version=version)
            if entry.kind == kind and (state.canary or entry.stage_to == "Production")
        ]
        if not entries:
            return
        entry = entries[-1]
        young = state.canary or (state.previous and now - entry.time_us <= LEAST_PROBATION)
        ours = any(event.data.get("ledger") == entry.seq for one in self._of(version) for event in one.events)
        if not young or "rollback_of" in entry.details or ours:
            self._taken_up = revision
            return
        plan = self.plan(share) if state.canary else self.plan()
        key = f"{SYSTEM}/{version} since entry {entry.seq}"
        try:
            made = self.releases.adopt(SYSTEM, version, plan, now=now, actor=entry.actor, reason=entry.reason, key=key)
        except VitokError as error:
            self._once(release, f"{SYSTEM}/{version} cannot be taken up: {error}", now)
            return
        self._after(made, now)

    def _of(self, version: int) -> tuple[Release, ...]:
        return tuple(one for one in self.releases.book.list(model=SYSTEM) if one.version == version)

    # What is told

    def _after(self, release: Release, now: int) -> None:
        known = self._told.get(release.release_id, 0)
        self._told[release.release_id] = len(release.events)
        for event in release.events[known:]:
            text = self._words(release, event)
            if text:
                self._tell(now, text)
                judged = event.kind == "closed" or event.data.get("share") == 1
                if judged and "canary" in release.verdicts and release.status != "finished":
                    self._note(text, now, release.key_of(f"{event.kind} told"))

    def _words(self, release: Release, event: ReleaseEvent) -> str:
        name, said = release.candidate, event.text.partition(": ")[2]
        if event.kind == "entered":
            share = float(event.data["share"])
            if share < 1:
                return f"canary {name} answers {share:.0%} of the customers"
            judged = release.verdicts.get("canary")
            if judged is None:
                return f"{name} is on probation beside {release.champion}"
            return f"canary {name} accepted and promoted: {judged['reason']}"
        if event.kind != "closed":
            return "" if event.kind == "begun" else f"{release.release_id} of {name}, {event}"
        if release.status == "finished":
            return f"{name} has passed its probation"
        if release.status == "inconclusive":
            return f"canary {name} ended undecided: {said}"
        if release.status == "refused" and release.kind == "full":
            seconds = self._seconds(release.version)
            return f"{name} rolled back to {release.champion} in {seconds:.3f} s: {said}"
        step = f"{release.kind} {name}" if release.kind in ("canary", "shadow") else name
        return f"{step} {release.status}: {said}"

    def _seconds(self, version: int) -> float:
        entries = [one for one in self.registry.ledger.history(SYSTEM, version=version) if one.kind == "rolled_back"]
        return rollback_seconds(self.records, SYSTEM).get(entries[-1].seq, 0.0) if entries else 0.0

    def _once(self, release: Release | None, text: str, now: int) -> None:
        about = "" if release is None else release.release_id
        if self._said.get(about) != text:
            self._tell(now, text)
        self._said[about] = text

    def _propose(self, release: Release, held: str, now: int) -> None:
        """Writes into an incident that a version would be rolled back, which a person may approve."""
        refused = [one for one in release.verdicts.values() if one["state"] == "refuse"]
        if not (release.is_open and release.kind == "full" and refused):
            return
        name, to, reason = release.candidate, release.champion, str(refused[0]["reason"])
        key = release.key_of("rollback")
        record = self.records.open(
            "incident", f"{name} is worse than {to}", system=SYSTEM, version=name, now=now, why=reason, key=key
        )
        if any(entry.key == key for entry in record.timeline):
            return
        order = Order(key=key, incident=record.record_id, system=SYSTEM, version=name, reason=reason, now=now, to=to)
        text = f"{LOOP} proposes to {words('rollback', order)}: {reason}; not done, since {held}"
        data = {"event": "proposal", "action": "rollback", "order": order.to_dict(), "held": held}
        self.records.add(record.record_id, text, now=now, data=data, key=key)
        self._tell(now, f"{record.record_id}, {text}")

    def _shown(self) -> None:
        revision = self.registry.ledger.revision()
        if revision != self._revision:
            self._mirror()
            self._revision = revision

    # What it is judged on

    def _judge(self, *, candidate: str, incumbent: str, confidence_level: float) -> PairedJudge:
        return PairedJudge(
            candidate=candidate,
            incumbent=incumbent,
            candidate_policy=self._policy_of(candidate),
            incumbent_policy=self._policy_of(incumbent),
            costs=self.costs,
            rules=JudgeRules(confidence_level=confidence_level),
        )

    def _policy_of(self, version: str) -> TierPolicy:
        number = int(version.partition("/")[2])
        if number not in self._policies:
            self._policies[number] = TierPolicy.from_dict(self.registry.load(SYSTEM, number).json("policy.json"))
        return self._policies[number]

    def _gate(self, candidate: str, incumbent: str, now: int) -> Verdict:  # noqa: ARG002
        """Asks about skew before a customer is answered; what the version's own gate said stands beside it."""
        number = int(candidate.partition("/")[2])
        given = [one for one in self.registry.ledger.history(SYSTEM, version=number) if one.kind == "gate"]
        if given and self.registry.state(SYSTEM).version(number).gate is not None:
            checks = list(Verdict.from_dict(given[-1].details).checks)
        else:
            checks = [Check(name="gate", passed=False, value=None, bound=None, reason="no valid verdict on record")]
        profile = self._profile_of(candidate)
        if profile is not None:
            try:
                found = skew_check(
                    self._decisions, self._model(candidate), profile, since=now - _LOOKED_BACK, until=now
                )
            except NotFound:
                found = Check(name="skew", passed=True, value=0.0, bound=0.0, reason="nothing was logged yet")
            checks = [*(check for check in checks if check.name != "skew"), found]
        return evaluate(checks)

    def _rehearsed_since(self, release: Release) -> int | None:
        if release.kind == "full" or not any(self._decisions.rglob("segment-*")):
            return None
        # No label of later days was known when it was made.
        return self.registry.ledger.history(SYSTEM, version=release.version)[0].time_us - self.label_delay

    def _rehearse(self, release: Release, since: int, until: int) -> "pl.DataFrame":
        candidate, incumbent = self._model(release.candidate), self._model(release.champion)
        return rehearsed(self._decisions, candidate=candidate, incumbent=incumbent, since=since, until=until)

    def _model(self, version: str) -> LoadedModel:
        if version not in self._models:
            # Only the two of a release are asked for again.
            self._models = dict(list(self._models.items())[-1:])
            package = self.registry.load(SYSTEM, int(version.partition("/")[2]))
            self._models[version] = LoadedModel.load(package, version, "", FEATURES)
        return self._models[version]
