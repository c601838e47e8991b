"""What acts beside the service: playbook, triggers, retraining, releases, roll back, delivery; from the log.

Everything that it does is in a file before it is done: `loop.sqlite` has the steps, `loop/` the triggers, the releases
and the overrides, `records/` what people read of it, the ledger what serves. So one that was killed goes on where it
was.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from vitok import decisions, monitoring
from vitok.clock import DAY, HOUR, EventClock, parse_time
from vitok.errors import VitokError
from vitok.loop import (
    Bound,
    Durable,
    Incidents,
    Playbook,
    Record,
    Release,
    Run,
    Switches,
    TriggerRules,
    Triggers,
    rollback_seconds,
)
from vitok.loop.incidents import ALL_VERSIONS, events
from vitok.loop.triage import TriageRules, of_any_length
from vitok.monitoring.conditions import hourly_fallback_finding
from vitok.monitoring.label_guard import LABEL_SOURCE
from vitok.monitoring.outbox import Channel
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.systems.fraud.acting import CALIBRATOR, LOOP, RECALIBRATIONS, RETRAININGS, actions
from vitok.systems.fraud.evidence import FraudEvidence
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LEARNED
from vitok.systems.fraud.notices import channels as file_channels
from vitok.systems.fraud.observing import Observer
from vitok.systems.fraud.overrides import Overrides
from vitok.systems.fraud.releasing import UNDECIDED, Releasing

_RECENT = 7 * DAY
# A job that only somebody asks for, once a week, whoever asks.
_RECALIBRATING = TriggerRules(drift=frozenset(), loss=frozenset(), cool_down=7 * DAY, runs_a_week=1)


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


class Refitting(Protocol):
    """Who refits calibrators: `releases.Maker.refit` in this process, or another process."""

    def __call__(self, key: str, *, champion: int, reason: str, at: int) -> dict[str, Any]:
        """Makes a version of the champion's trees and a new calibrator; the same key again makes nothing new."""
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
        refit: Refits the champion's calibrator; None where that can only be proposed.
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
        refit: Refitting | None = None,
    ) -> None:
        super().__init__(home, registry, label_delay=label_delay, costs=costs, rules=rules)
        self.maker, self.costs, self._refit = maker, costs, refit
        self.tell = tell
        self.trigger_rules, self.min_matured = triggers, min_matured
        # What the playbook asks for a retraining for is a loss too.
        self._of_loss = triggers.loss | TriageRules().quality
        self.triggers = Triggers(home, triggers)
        self.recalibrations = Triggers(home, _RECALIBRATING)
        self.durable = Durable(home)
        # The watch judges days: what belongs together is alerted days apart.
        self.incidents = Incidents(home, merge_within=_RECENT)
        self.records = self.incidents.records
        self.overrides = Overrides(home)
        self.clock = EventClock()
        self.paused = ""
        ways, told = channels or file_channels(home)
        self.delivery = monitoring.Delivery(home / "monitoring" / "delivery.sqlite", self.alerts, ways, told)
        self.switches = Switches(home)
        may = actions(
            registry,
            self.records,
            self.overrides,
            self.triggers,
            clock=self.clock,
            lacks=maker.lacks,
            well=self.answers,
        )
        self.playbook = Playbook(
            self.incidents,
            may if refit is not None else dataclasses.replace(may, recalibrate=None),
            FraudEvidence(registry, self.sketches, self.alerts, self.overrides, self.profile, self.watch.rules),
            durable=self.durable,
            switches=self.switches,
            bounds={"recalibrate": RECALIBRATIONS, "retrain": RETRAININGS, **(bounds or {})},
        )
        self.releasing = Releasing(
            home,
            registry,
            self.records,
            costs=costs,
            label_delay=label_delay,
            guard=self.guard,
            profile_of=self.profile,
            tell=lambda now, text: self.tell(now, text),
            note=lambda text, now, key: self._note(text, now=now, key=key),
            mirror=maker.mirror,
        )
        self._answered: set[str] = set()
        self._rests_until = 0
        self._refit_rests_until = 0

    # Each hour

    def hour(self, now: int) -> None:
        """Does what is due each hour: counts, judges the release under way and the hours, answers, ends, delivers."""
        self.follow_up(now)
        self.look(now)
        self.answer(now)
        self.delivery.tick(now)

    def follow_up(self, now: int) -> None:
        """Sketches what was logged since, moves the release under way, and ends what has come to its end."""
        self.clock.advance(now)
        self.follow()
        self.releasing.tick(now)
        over = {f"{key}/undone" for key in self.playbook.expire(now=now)}
        for record in self.incidents.records.list("incident") if over else ():
            for entry in record.timeline:
                if entry.key in over:
                    self.tell(now, f"{record.record_id}, {entry.text}")

    @property
    def trial(self) -> Release | None:
        """The release under way, if there is one."""
        return self.releasing.open()

    @property
    def rollback_seconds(self) -> dict[int, float]:
        """Wall seconds of each roll back, by the number of its entry in the ledger."""
        return rollback_seconds(self.records, SYSTEM)

    def answers(self, now: int) -> str:
        """Says that the model answers, by the last hour of the sketches; empty where it does not, or nobody asked."""
        end = now // HOUR * HOUR
        totals = self.sketches.totals(end - HOUR, end)
        found = None if totals is None else hourly_fallback_finding(totals, self.watch.rules)
        return "" if found is None or found.firing else f"the model answers again: {found.reason}"

    # Each day

    def day(self, now: int) -> None:
        """Evaluates what has closed, answers alerts, and recalibrates and retrains where that is due."""
        self.clock.advance(now)
        self.look(now)
        self.answer(now)
        self.recalibrate(now)
        self.retrain(now)

    def look(self, now: int) -> None:
        """Judges the hours and days that have closed, which raises and clears alerts."""
        seen = self.look_at_labels(now)
        watched = self.judge(now)
        for alert in (*(one for one in seen if one.state == "open"), *watched.raised):
            self.tell(now, f"{alert.severity} alert {alert.rule} on {alert.version}: {alert.reason}")
        for alert in (*(one for one in seen if one.state == "cleared"), *watched.cleared):
            self.tell(now, f"alert {alert.rule} on {alert.version} cleared: {alert.cleared_reason}")

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
        self.releasing.catch_up(now)

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

    def recalibrate(self, now: int) -> None:
        """Tries a new calibrator for the champion where one was asked for; a retraining does not depend on it."""
        state = self.registry.state(SYSTEM)
        if self._refit is None or state.production is None or now < self._refit_rests_until:
            return
        self._lapse(state.production, now)
        ready = not self._in_the_way(now, besides=None)
        run = self.recalibrations.due(CALIBRATOR, now=now, alerts=(), labels=0, ready=ready)
        if run is None:
            return
        began, refit, rescue = time.perf_counter(), self._refit, bool(self._losses())

        def choose(_: dict[str, Any]) -> dict[str, Any]:
            return {"champion": state.production}

        def make(results: dict[str, Any]) -> dict[str, Any]:
            return refit(run.key, champion=results["champion"], reason=run.reason, at=run.begun_at)

        def release(results: dict[str, Any]) -> dict[str, Any]:
            if "version" not in results:
                return {}
            if results["champion"] != self.registry.state(SYSTEM).production:
                return {"impossible": f"{SYSTEM}/{results['champion']} is not in Production any more"}
            key = f"{run.key}/release"
            self.releasing.begin(results["version"], rescue=rescue, now=now, reason=results["gate"], key=key)
            return {}

        try:
            done = self.durable.run(run.key, [("choose", choose), ("make", make), ("release", release)])
        except VitokError as error:
            if now - run.begun_at < DAY:
                # It goes on where it stopped; what else is due does not wait for it.
                self._refit_rests_until = now + HOUR
                self.tell(now, f"the calibrator cannot be refitted now: {error}")
                return
            done = {"impossible": f"given up after a day: {error}"}
        if "impossible" in done:
            told = f"no calibrator was refitted: {done['impossible']}"
        else:
            told = f"gate accepted {SYSTEM}/{done['version']}: {done['gate']}"
        hours = (time.perf_counter() - began) / 3600
        self.tell(now, told)
        self._note(told, now=now, key=run.key)
        self.recalibrations.end(run.key, now=now, cost=hours, outcome=told)
        self.releasing.tick(now)

    def _lapse(self, production: int, now: int) -> None:
        # What the playbook asked for was meant for the version of that time.
        if not self.recalibrations.pending(CALIBRATOR):
            return
        moved = self.registry.ledger.history(SYSTEM, version=production)
        since = max(one.time_us for one in moved if one.kind == "promoted" and one.stage_to == "Production")
        for asked in self.recalibrations.lapse(CALIBRATOR, before=since):
            told = f"no calibrator is refitted, since {SYSTEM}/{production} came into Production after {asked}"
            self.tell(now, told)
            self._note(told, now=now, key=f"lapsed/{CALIBRATOR}/{since}")

    def retrain(self, now: int) -> None:
        """Makes a version where one is due and begins its release; each step is done once, also after a crash."""
        if now < self._rests_until:
            return
        stale, why = self._outlived(now)
        ready = not self.holds_back(now, besides=stale)
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
        changed, rescue = self._changed(), bool(self._losses())

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
            if stale is not None:
                self.releasing.supersede(stale, why=why, now=now)
            key = f"{run.key}/release"
            self.releasing.begin(version, rescue=rescue, now=now, reason=run.reason, key=key)
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
        if done["released"] == "Production":
            self.tell(now, f"{name} promoted, nothing was in Production")
        self.releasing.tick(now)

    def _end(self, run: Run, outcome: str, began: float, now: int) -> None:
        hours = (time.perf_counter() - began) / 3600
        self.tell(now, outcome)
        self._note(f"retraining ({run.kind}): {outcome}", now=now, key=run.key)
        self.triggers.end(run.key, now=now, cost=hours, outcome=outcome)

    def _note(self, text: str, *, now: int, key: str) -> None:
        # Where the playbook asked for it, what came of it is read in the incident.
        for record in self.incidents.open(system=SYSTEM):
            asked = [one for one in events(record, "action") if one.data["action"] in ("recalibrate", "retrain")]
            if asked:
                self.incidents.note(record.record_id, text, who=LOOP, now=now, key=f"note/{key}")

    def _outlived(self, now: int) -> tuple[Release | None, str]:
        """Returns the canary that makes way for a version that passes its gate, and why; None where that has to wait.

        It makes way where it has not been decided in a week; and at once, unless it is ahead, where the champion loses
        since the world changed: made of labels of before, it has learned nothing of that.
        """
        release, changed = self.trial, self._changed()
        if release is None or release.kind != "canary" or release.entered_at is None:
            return None, ""
        said = release.verdicts.get("canary") or {}
        if said.get("state", "continue") != "continue":
            return None, ""
        if now - release.entered_at >= UNDECIDED:
            days = (now - release.entered_at) / DAY
            return release, f"undecided after {days:.0f} days, and a newer version has passed its gate"
        ahead = (said.get("cost_difference") or {}).get("value")
        made = self.registry.ledger.history(SYSTEM, version=release.version)[0].time_us
        if (ahead is not None and ahead < 0) or changed is None:
            return None, ""
        if self._recalibrated(release.version):
            again = any(one.first_seen > made for one in self._losses())
            return (release, "the champion loses in a way that a new calibrator did not mend") if again else (None, "")
        if made - self.label_delay > changed:
            return None, ""
        return release, "the world changed after the labels that it learned from, and the champion loses"

    def holds_back(self, now: int, *, besides: Release | None = None) -> str:
        """Says why no version is to be made now, whoever asks; empty where nothing is in the way.

        Args:
            now: The present, in microseconds.
            besides: A release that is not in the way.
        """
        found = self._in_the_way(now, besides=besides)
        if found:
            return found
        changed = self._changed()
        if changed is not None and now - self.label_delay - changed < self.min_matured:
            return f"labels of {self.min_matured / DAY:.3g} days since the change are needed"
        return self.maker.lacks(now)

    def _in_the_way(self, now: int, *, besides: Release | None) -> str:
        release = self.releasing.busy(now)
        if release is not None and (besides is None or release.release_id != besides.release_id):
            return f"{release.candidate} is on trial"
        if self.paused:
            return self.paused
        open_alerts = self.alerts.open(system=SYSTEM)
        # Labels of a source that went wrong are held: what is made meanwhile does not learn from them.
        of_data = TriageRules().data - {LABEL_SOURCE.name}
        faulty = [alert.rule for alert in open_alerts if of_any_length(alert.rule) in of_data]
        return f"the data are at fault: {', '.join(faulty)}" if faulty else ""

    def _known(self, now: int) -> int:
        # How many labels are known; asked only where somebody wants to know, since all outcomes are read for it.
        folder = self.home / "log" / "outcomes"
        if self.trigger_rules.labels is None or not any(folder.rglob("segment-*")):
            return 0
        return decisions.labels(folder, as_of=now, kind=SYSTEM).height

    def _losses(self) -> list[monitoring.Alert]:
        """Returns the open alerts that say that the champion decides worse than it did."""
        champion = f"{SYSTEM}/{self.registry.state(SYSTEM).production}"
        found = self.alerts.open(system=SYSTEM)
        return [one for one in found if one.version == champion and of_any_length(one.rule) in self._of_loss]

    def _changed(self) -> int | None:
        """Says since when the champion has been losing, by its alerts; None where it does not lose.

        Drift alone costs nothing, and the customers of a canary differ from all customers: neither is a reason to wait.
        What stood against the versions before it, of days that it has not learned from, stands against it too; but
        of one that was made after a change, only what was raised since.
        """
        losses = self._losses()
        if not losses:
            return None
        # A loss is seen when its labels have come; what it is about began so much earlier.
        late = dict.fromkeys(self.trigger_rules.drift, 0) | dict.fromkeys(self._of_loss, self.label_delay)
        champion, (learned, answered) = losses[0].version, self._learned()
        left = {
            f"{SYSTEM}/{entry.details['from_version']}": entry.time_us
            for entry in self.registry.ledger.history(SYSTEM)
            if entry.kind == "promoted" and entry.details.get("from_version") and "rollback_of" not in entry.details
        }
        began = []
        for one in self.alerts.history(system=SYSTEM):
            rule = of_any_length(one.rule)
            since = one.first_seen - late.get(rule, 0)
            stood = one.cleared_at is None or one.cleared_at >= left.get(one.version, math.inf)
            inherited = one.version in left and since > learned and one.first_seen > answered
            own = one.version == champion and one.cleared_at is None
            if rule in late and stood and (own or inherited):
                began.append(since)
        return min(began)

    def _learned(self) -> tuple[float, float]:
        # The last row that the champion learned from, and the last alert that its making has answered.
        state = self.registry.state(SYSTEM)
        package = None if state.production is None else self.registry.load(SYSTEM, state.production)
        if state.production is None or package is None or LEARNED not in package:
            # Of a version that does not say, nothing is known of what came before.
            return math.inf, math.inf
        learned = package.json(LEARNED)
        made = self.registry.ledger.history(SYSTEM, version=state.production)[0].time_us
        return parse_time(learned["train_end"]), -math.inf if learned["changed"] is None else made

    @property
    def latest_retrained(self) -> int | None:
        """The newest version that was made by a retraining."""
        return max(self._made(self.triggers, SYSTEM), default=None)

    def _recalibrated(self, version: int) -> bool:
        return version in self._made(self.recalibrations, CALIBRATOR)

    def _made(self, triggers: Triggers, job: str) -> list[int]:
        entries = [self.registry.ledger.entry(SYSTEM, run.key) for run in triggers.runs(system=job)]
        return [entry.version for entry in entries if entry is not None and entry.version]

    @property
    def last_retrain(self) -> int | None:
        """When the last retraining began, in microseconds."""
        return max((run.begun_at for run in self.triggers.runs(system=SYSTEM)), default=None)

    def close(self) -> None:
        """Ends what runs in the background, and closes what is open."""
        self.releasing.close()
        self.durable.close()
        self.triggers.close()
        self.recalibrations.close()
        self.delivery.close()
        super().close()
