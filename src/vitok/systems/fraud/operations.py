"""What acts beside the service: playbook, triggers, retraining, canary, probation, roll back, delivery; from the log.

Everything that it does is in a file before it is done: `loop.sqlite` has the steps, `loop/` the triggers and the
overrides, `records/` the incidents and releases, the ledger what serves. So one that was killed goes on where it was.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vitok import decisions, monitoring
from vitok.clock import DAY, HOUR, EventClock
from vitok.errors import VitokError
from vitok.loop import (
    Bound,
    Durable,
    Incidents,
    Order,
    PairedJudge,
    Playbook,
    Record,
    ReleaseVerdict,
    Run,
    Switches,
    TriggerRules,
    Triggers,
    begin_canary,
    roll_back,
    settle_canary,
)
from vitok.loop.incidents import ALL_VERSIONS, events
from vitok.loop.playbook_actions import words
from vitok.loop.triage import TriageRules, of_any_length
from vitok.monitoring.outbox import Channel
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry
from vitok.systems.fraud.acting import LOOP, RETRAININGS, actions
from vitok.systems.fraud.evidence import FraudEvidence
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.notices import channels as file_channels
from vitok.systems.fraud.observing import Observer
from vitok.systems.fraud.overrides import Overrides, as_released
from vitok.systems.fraud.versions import PROBATION

CANARY_SHARE = 0.1
CANARY_LONGEST = 7 * DAY
"""So long after its first labels can be known, an undecided canary is ended: while it runs, none other can be made."""
_RECENT = 7 * DAY
_JUDGED = (
    "request_id",
    "model_version",
    "probability",
    "action",
    "shadow_version",
    "shadow_probability",
    "amount",
    "route",
    "route_reason",
    "policy_version",
)


@dataclasses.dataclass
class Trial:
    """A version under judgement: a canary beside the champion, or a new champion beside the version before."""

    judge: PairedJudge
    version: int
    incumbent: int
    started: int
    canary: bool

    @property
    def subject(self) -> tuple[int, int, int, bool]:
        """What is judged; the ledger says the same of it after a restart."""
        return self.version, self.incumbent, self.started, self.canary


class Making(Protocol):
    """Who makes versions: `releases.Maker` in this process, or another process."""

    def lacks(self, now: int) -> str:
        """Says why no version can be made of what is here; empty where one can be tried."""
        ...

    def again(self, key: str, *, reason: str, at: int, changed: int | None) -> dict[str, Any]:
        """Makes a version of what is known at a time; the same key again makes nothing new."""
        ...

    def mirror(self) -> None:
        """Shows the stages of the versions in the tracking store."""
        ...


class Operator(Observer):
    """Watches the log of the fraud service and acts on what it says.

    Args:
        home: The service's home folder.
        registry: Where versions stand.
        maker: Makes versions.
        costs: What actions cost.
        label_delay: Age at which labels are known, microseconds.
        triggers: When to retrain.
        min_matured: How much time since a change must have labels before a version is made of it, microseconds.
        tell: Gets (time, text) for everything worth telling.
        rules: What the watch looks for.
        channels: Ways to people, by name, and who is told what; a file in the home by default.
        bounds: How often, how far and how long the playbook acts by itself, by action.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        maker: Making,
        *,
        costs: Costs,
        label_delay: int,
        triggers: TriggerRules,
        min_matured: int = 0,
        tell: Callable[[int, str], None] = lambda _moment, _text: None,
        rules: monitoring.WatchRules | None = None,
        channels: tuple[Mapping[str, Channel], monitoring.DeliveryRules] | None = None,
        bounds: Mapping[str, Bound] | None = None,
    ) -> None:
        super().__init__(home, registry, label_delay=label_delay, costs=costs, rules=rules)
        self.maker, self.costs = maker, costs
        self.tell = tell
        self.trigger_rules, self.min_matured = triggers, min_matured
        self.triggers = Triggers(home, triggers)
        self.durable = Durable(home)
        # The watch judges days: what belongs together is alerted days apart.
        self.incidents = Incidents(home, merge_within=_RECENT)
        self.records = self.incidents.records
        self.overrides = Overrides(home)
        self.clock = EventClock()
        self.trial: Trial | None = None
        self.rollback_seconds: list[float] = []
        self.paused = ""
        ways, told = channels or file_channels(home)
        self.delivery = monitoring.Delivery(home / "monitoring" / "delivery.sqlite", self.alerts, ways, told)
        self.switches = Switches(home)
        self.playbook = Playbook(
            self.incidents,
            actions(
                registry,
                self.records,
                self.overrides,
                self.triggers,
                clock=self.clock,
                lacks=maker.lacks,
                seconds=self.rollback_seconds,
            ),
            FraudEvidence(registry, self.sketches, self.alerts, self.overrides, self.profile, self.watch.rules),
            durable=self.durable,
            switches=self.switches,
            bounds={"retrain": RETRAININGS, **(bounds or {})},
        )
        self._policies: dict[int, TierPolicy] = {}
        self._answered: set[str] = set()
        self._seen_revision = -1
        self._rests_until = 0

    # Each hour

    def hour(self, now: int) -> None:
        """Sketches what was logged since, judges the version on trial at once, and ends and tells what is due."""
        self.clock.advance(now)
        frame = self.follow()
        if not self._on_trial(now) and frame is not None and self.trial is not None:
            self.trial.judge.see(as_released(frame, self._policy_of))
        if self.trial is not None:
            self._settle(self.trial, self.trial.judge.verdict(now), now)
        over = {f"{key}/undone" for key in self.playbook.expire(now=now)}
        for record in self.incidents.records.list("incident") if over else ():
            for entry in record.timeline:
                if entry.key in over:
                    self.tell(now, f"{record.record_id}, {entry.text}")
        self.delivery.tick(now)

    def _settle(self, trial: Trial, verdict: ReleaseVerdict, now: int) -> None:
        name = f"{SYSTEM}/{trial.version}"
        if verdict.state == "continue" or (verdict.state == "accept" and not trial.canary):
            if not trial.canary and now - trial.started > PROBATION:
                self.tell(now, f"{name} has passed its probation")
                self.trial = None
            elif trial.canary and now - trial.started > CANARY_LONGEST + self.label_delay:
                self._give_up(trial, verdict, now)
            return
        if trial.canary:
            settle_canary(self.registry, self.records, SYSTEM, verdict, now=now, actor=LOOP)
            told = "accepted and promoted" if verdict.state == "accept" else "refused"
            self.tell(now, f"canary {name} {told}: {verdict.reason}")
            self._note(f"canary {name} {told}: {verdict.reason}", now=now, key=f"{name}/{told}")
        elif self._only_proposed(trial, verdict, now):
            return
        else:
            seconds = roll_back(
                self.registry, self.records, SYSTEM, verdict, expected=trial.version, now=now, actor=LOOP
            )
            self.rollback_seconds.append(seconds)
            told = f"{name} rolled back to {SYSTEM}/{trial.incumbent} in {seconds:.3f} s: {verdict.reason}"
            self.tell(now, told)
        self._on_trial(now)
        self.maker.mirror()

    def _give_up(self, trial: Trial, verdict: ReleaseVerdict, now: int) -> None:
        name, days = f"{SYSTEM}/{trial.version}", (now - trial.started) / DAY
        reason = f"undecided after {days:.0f} days: {verdict.reason}"
        self.registry.ledger.end_canary(
            SYSTEM, verdict="inconclusive", version=trial.version, reason=reason, actor=LOOP, now=now
        )
        for record in self.records.list("release"):
            if record.is_open and record.version == name:
                self.records.add(record.record_id, f"ended without a verdict: {reason}", now=now, key="ended")
                self.records.close(record.record_id, "inconclusive", now=now)
        self.tell(now, f"canary {name} ended, {reason}")
        self._on_trial(now)
        self.maker.mirror()

    def _only_proposed(self, trial: Trial, verdict: ReleaseVerdict, now: int) -> bool:
        switch = self.switches.holds("rollback")
        if switch is None:
            return False
        name, to = f"{SYSTEM}/{trial.version}", f"{SYSTEM}/{trial.incumbent}"
        key = f"trial/{name}/{trial.started}/rollback"
        record = self.records.open(
            "incident",
            f"{name} is worse than {to}",
            system=SYSTEM,
            version=name,
            now=now,
            why=verdict.reason,
            key=key,
        )
        if not any(entry.key == key for entry in record.timeline):
            order = Order(
                key=key,
                incident=record.record_id,
                system=SYSTEM,
                version=name,
                reason=verdict.reason,
                now=now,
                to=to,
            )
            text = f"{LOOP} proposes to {words('rollback', order)}: {verdict.reason}; not done, since {switch}"
            data = {"event": "proposal", "action": "rollback", "order": order.to_dict(), "held": str(switch)}
            self.records.add(record.record_id, text, now=now, data=data, key=key)
            self.tell(now, f"{record.record_id}, {text}")
        return True

    def _on_trial(self, now: int) -> bool:
        """Lets the trial be the one that the ledger names; a new one begins with what was logged since its start.

        Returns:
            Whether a trial has begun here, with all that is logged by now.
        """
        revision = self.registry.ledger.revision()
        if revision == self._seen_revision:
            return False
        self._seen_revision = revision
        subject = self._subject(now)
        if subject is None or (self.trial is not None and self.trial.subject == subject):
            self.trial = None if subject is None else self.trial
            return False
        version, incumbent, started, canary = subject
        judge = PairedJudge(
            candidate=f"{SYSTEM}/{version}",
            incumbent=f"{SYSTEM}/{incumbent}",
            candidate_policy=self._policy(version),
            incumbent_policy=self._policy(incumbent),
            costs=self.costs,
        )
        self.trial = Trial(judge, version, incumbent, started, canary)
        if self._logged("decisions"):
            log = self.home / "log" / "decisions"
            judge.see(as_released(decisions.read(log, since=started, columns=_JUDGED), self._policy_of))
            self._mature(self.trial, now)
        return True

    def _mature(self, trial: Trial, now: int) -> None:
        if self._logged("outcomes"):
            trial.judge.mature(as_released(self.labelled(trial.started, now, now), self._policy_of))

    def _logged(self, name: str) -> bool:
        folder = self.home / "log" / name
        return folder.is_dir() and any(folder.rglob("segment-*"))

    def _subject(self, now: int) -> tuple[int, int, int, bool] | None:
        state = self.registry.state(SYSTEM)
        if state.production is None:
            return None
        if state.canary is not None and state.canary_since is not None:
            return state.canary, state.production, state.canary_since, True
        for entry in reversed(self.registry.ledger.history(SYSTEM, version=state.production)):
            if entry.kind == "promoted" and entry.stage_to == "Production":
                young = now - entry.time_us <= PROBATION and "rollback_of" not in entry.details
                return (state.production, state.previous, entry.time_us, False) if young and state.previous else None
        return None

    def _policy(self, number: int) -> TierPolicy:
        if number not in self._policies:
            self._policies[number] = TierPolicy.from_dict(self.registry.load(SYSTEM, number).json("policy.json"))
        return self._policies[number]

    def _policy_of(self, version: str) -> TierPolicy:
        return self._policy(int(version.partition("/")[2]))

    # Each day

    def day(self, now: int) -> None:
        """Evaluates the days that have closed, answers alerts, learns from matured outcomes, retrains where due."""
        self.clock.advance(now)
        self.look(now)
        self.answer(now)
        self.learn(now)
        self.retrain(now)

    def look(self, now: int) -> None:
        """Judges the days that have closed, which raises and clears alerts."""
        of_labels = self.look_at_labels(now)
        watched = self.judge(now)
        for alert in (*(one for one in of_labels if one.state == "open"), *watched.raised):
            self.tell(now, f"{alert.severity} alert {alert.rule} on {alert.version}: {alert.reason}")
        for alert in (*(one for one in of_labels if one.state == "cleared"), *watched.cleared):
            self.tell(now, f"alert {alert.rule} on {alert.version} cleared: {alert.cleared_reason}")

    def learn(self, now: int) -> None:
        """Judges the version on trial by the outcomes that are known by now."""
        if self.trial is not None:
            self._mature(self.trial, now)
            self._settle(self.trial, self.trial.judge.verdict(now), now)

    def answer(self, now: int) -> None:
        """Lets the playbook answer each open alert, once, and writes down which have cleared."""
        for alert in self.alerts.open():
            key = f"{alert.id}/{alert.fingerprint}/{alert.first_seen}"
            if key not in self._answered:
                self._tell_answer(self.playbook.respond(alert, now=now), alert, now)
                self._answered.add(key)
        for alert in self.alerts.history():
            key = f"{alert.id}/{alert.fingerprint}/{alert.first_seen}/cleared"
            recent = alert.cleared_at is not None and now - alert.cleared_at <= _RECENT
            if recent and key not in self._answered:
                self.incidents.quiet(alert, now=now)
                self._answered.add(key)
        self._on_trial(now)

    def _tell_answer(self, record: Record, alert: monitoring.Alert, now: int) -> None:
        for entry in record.timeline:
            ours = (entry.key or "").startswith(f"playbook/{alert.system or ALL_VERSIONS}/{alert.id}/")
            if not ours or entry.time_us != now or entry.data.get("event") == "intent":
                continue
            # What is found of one alert is mostly found of the next one too; it is told once an incident.
            text = f"{record.record_id}, {entry.text.removeprefix(f'triage of alert {alert.id}: ')}"
            if text not in self._answered:
                self.tell(now, text)
                self._answered.add(text)

    def retrain(self, now: int) -> None:
        """Makes a version where one is due and lets it answer a share; each step is done once, also after a crash."""
        if now < self._rests_until:
            return
        ready = not self.holds_back(now)
        # Switched to "propose only", a retraining begins when a person asks, or by the schedule that one has set.
        proposed = self.switches.holds("retrain") is not None
        alerts = () if proposed else self.alerts.open(system=SYSTEM)
        labels = 0 if proposed else self._known(now)
        run = self.triggers.due(SYSTEM, now=now, alerts=alerts, labels=labels, ready=ready)
        if run is None:
            return
        began = time.perf_counter()
        self.tell(now, f"retraining ({run.kind}): {run.reason}")
        state = self.registry.state(SYSTEM)
        changed = self._changed()

        def make(_: dict[str, Any]) -> dict[str, Any]:
            return self.maker.again(run.key, reason=run.reason, at=run.begun_at, changed=changed)

        def release(results: dict[str, Any]) -> dict[str, Any]:
            if not results.get("accepted"):
                return {"released": ""}
            version = results["version"]
            if state.production is None:
                key = f"{run.key}/promote"
                self.registry.ledger.promote(
                    SYSTEM, version, "Production", reason=run.reason, actor=LOOP, now=now, key=key
                )
                return {"released": "Production"}
            share, why = CANARY_SHARE, run.reason
            begin_canary(self.registry, self.records, SYSTEM, version, share, now=now, actor=LOOP, reason=why)
            return {"released": "canary"}

        try:
            done = self.durable.run(run.key, [("make", make), ("release", release)])
        except VitokError:
            # It goes on where it stopped, but not at once: what is in the way takes a person to see.
            self._rests_until = now + HOUR
            raise
        if "impossible" in done:
            self._end(run, f"no version could be made: {done['impossible']}", began, now)
            return
        name = f"{SYSTEM}/{done['version']}"
        told = f"gate {'accepted' if done['accepted'] else 'refused'} {name}: {done['gate']}"
        self._end(run, told, began, now)
        if done["released"] == "canary":
            self.tell(now, f"canary {name} answers {CANARY_SHARE:.0%} of the customers")
        elif done["released"]:
            self.tell(now, f"{name} promoted, nothing was in Production")
        self._on_trial(now)

    def _end(self, run: Run, outcome: str, began: float, now: int) -> None:
        hours = (time.perf_counter() - began) / 3600
        self.tell(now, outcome)
        self._note(f"retraining ({run.kind}): {outcome}", now=now, key=run.key)
        self.triggers.end(run.key, now=now, cost=hours, outcome=outcome)

    def _note(self, text: str, *, now: int, key: str) -> None:
        # Where the playbook asked for it, what came of it is read in the incident.
        for record in self.incidents.open(system=SYSTEM):
            asked = [one for one in events(record, "action") if one.data["action"] == "retrain"]
            if asked:
                self.incidents.note(record.record_id, text, who=LOOP, now=now, key=f"note/{key}")

    def holds_back(self, now: int) -> str:
        """Says why no version is to be made now, whoever asks; empty where nothing is in the way."""
        if self.trial is not None:
            return f"{SYSTEM}/{self.trial.version} is on trial"
        if self.paused:
            return self.paused
        open_alerts = self.alerts.open(system=SYSTEM)
        faulty = [alert.rule for alert in open_alerts if of_any_length(alert.rule) in TriageRules().data]
        if faulty:
            return f"the data are at fault: {', '.join(faulty)}"
        changed = self._changed()
        if changed is not None and now - self.label_delay - changed < self.min_matured:
            return f"labels of {self.min_matured / DAY:.3g} days since the change are needed"
        return self.maker.lacks(now)

    def _known(self, now: int) -> int:
        # How many labels are known; asked only where somebody wants to know, since all outcomes are read for it.
        if self.trigger_rules.labels is None or not self._logged("outcomes"):
            return 0
        return decisions.labels(self.home / "log" / "outcomes", as_of=now, kind=SYSTEM).height

    def _changed(self) -> int | None:
        # A loss is seen when its labels have come; what it is about began so much earlier.
        rules = self.trigger_rules
        late = dict.fromkeys(rules.drift, 0) | dict.fromkeys(rules.loss, self.label_delay)
        found = [(of_any_length(alert.rule), alert.first_seen) for alert in self.alerts.open(system=SYSTEM)]
        begun = [first_seen - late[rule] for rule, first_seen in found if rule in late]
        return min(begun, default=None)

    @property
    def latest_retrained(self) -> int | None:
        """The newest version that was made by a retraining."""
        made = [self.registry.ledger.entry(SYSTEM, run.key) for run in self.triggers.runs(system=SYSTEM)]
        return max((entry.version for entry in made if entry is not None and entry.version), default=None)

    @property
    def last_retrain(self) -> int | None:
        """When the last retraining began, in microseconds."""
        return max((run.begun_at for run in self.triggers.runs(system=SYSTEM)), default=None)

    def close(self) -> None:
        """Ends what runs in the background."""
        self.durable.close()
        self.triggers.close()
        self.delivery.close()
        super().close()
