"""What runs beside the service: sketches, watch, retraining, canary, probation and rollback, all from the log."""

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import decisions, monitoring
from vitok.clock import DAY, Clock, isoformat
from vitok.errors import VitokError
from vitok.loop import (
    Durable,
    PairedJudge,
    Record,
    Records,
    ReleaseVerdict,
    RetrainTrigger,
    begin_canary,
    push,
    roll_back,
    settle_canary,
)
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry, Tracker
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.releases import Workshop, load, register
from vitok.systems.fraud.versions import PROBATION

if TYPE_CHECKING:
    import polars as pl

CANARY_SHARE = 0.1
_LIVE = 7 * DAY
_LOG = logging.getLogger("vitok.fraud")
LOOP, DRILL = "loop", "release drill"


@dataclasses.dataclass
class Trial:
    """A version under judgement: a canary beside the champion, or a new champion beside the version before."""

    judge: PairedJudge
    version: int
    incumbent: int
    started: int
    canary: bool


class Observer:
    """Keeps the sketches of the log up to date, and raises and clears alerts; it takes no step itself.

    Args:
        home: The service's home folder.
        registry: Where versions, with their reference profiles, are kept.
        label_delay: Age at which labels are taken to be known, microseconds.
        costs: What actions cost.
        rules: What the watch looks for.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        *,
        label_delay: int,
        costs: Costs,
        rules: monitoring.WatchRules | None = None,
    ) -> None:
        self.home = home
        self.registry = registry
        self.label_delay = label_delay
        self.records = Records(home)
        self.sketches = monitoring.Sketches(home / "monitoring" / "sketches.sqlite")
        self.alerts = monitoring.Alerts(home / "monitoring" / "alerts.sqlite")
        self.watch = monitoring.Watch(
            SYSTEM,
            profile_of=self.profile,
            sketches=self.sketches,
            alerts=self.alerts,
            rules=rules or monitoring.WatchRules(maturity=label_delay),
            labelled=self.labelled,
            costs=costs,
        )
        self._tail = decisions.Tail(home / "log" / "decisions", self.sketches.position())
        self._labels: tuple[int, pl.DataFrame] | None = None
        self._profiles: dict[str, monitoring.ReferenceProfile] = {}

    def profile(self, version: str) -> monitoring.ReferenceProfile | None:
        """Returns the reference profile of a version such as `"fraud/2"`; None for the rules."""
        if "/" not in version:
            return None
        if version not in self._profiles:
            package = self.registry.load(SYSTEM, int(version.partition("/")[2]))
            self._profiles[version] = monitoring.ReferenceProfile.from_dict(package.json("profile.json"))
        return self._profiles[version]

    def follow(self) -> "pl.DataFrame | None":
        """Sketches what was logged since, and returns it; None where there is nothing new."""
        before = self.sketches.position()
        frame = self._tail.read()
        if frame is not None:
            self.sketches.follow(frame, self.profile, position=self._tail.position, since=before)
        return frame

    def judge(self, now: int) -> monitoring.Watched:
        """Judges the days that have closed; an alert opens an incident, and its end closes it."""
        watched = self.watch.tick(now)
        for alert in watched.raised:
            self._incident(alert, now)
        for alert in watched.cleared:
            record = self._incident(alert, now)
            if record.is_open:
                self.records.close(record.record_id, f"cleared: {alert.cleared_reason}", now=now)
        return watched

    def is_live(self, now: int) -> bool:
        """Says whether decisions are of these days; a log of the past, such as a replay's, is not watched by the clock.

        Where a live log follows an old one, the days between them are passed over: nobody decided then.
        """
        hours = self.sketches.hours()
        if not hours or now - hours[-1] > _LIVE:
            return False
        until = self.alerts.watched_until(SYSTEM)
        if until is not None and now - until > 2 * _LIVE:
            self.alerts.finish(SYSTEM, hours[-1] // DAY * DAY)
        return True

    def labelled(self, start: int, end: int, as_of: int) -> "pl.DataFrame":
        """Returns the decisions of `[start, end)` whose labels were known at `as_of`, with them."""
        logged = decisions.read(self.home / "log" / "decisions", since=start, until=end)
        # The label view is the same all day; it is read once.
        if self._labels is None or self._labels[0] != as_of:
            view = decisions.labels(self.home / "log" / "outcomes", as_of=as_of, kind=SYSTEM)
            self._labels = (as_of, view)
        return decisions.join(logged, self._labels[1]).drop_nulls("label")

    def _incident(self, alert: monitoring.Alert, now: int) -> Record:
        return self.records.open(
            "incident",
            f"{alert.rule}: {alert.reason}",
            system=SYSTEM,
            version=alert.version,
            now=now,
            why=f"the rule held for its windows in a row since {isoformat(alert.first_seen)}",
            details={"severity": alert.severity, "playbook": alert.playbook, "alert": alert.id},
            key=f"alert/{alert.id}/{alert.first_seen}",
        )

    def close(self) -> None:
        """Closes what is open."""
        self._tail.close()
        self.sketches.close()
        self.alerts.close()


def observe(home: Path, *, clock: Clock, label_delay: int, stop: threading.Event, every: float = 30.0) -> None:
    """Observes a live service until `stop` is set: sketches every so many seconds, alerts once a day has closed.

    Made for a thread of its own. A fault is logged and the next round tries again: watching must not stop decisions.
    """
    registry = Registry(home)
    observer = Observer(home, registry, label_delay=label_delay, costs=Costs())
    while not stop.wait(every):
        try:
            observer.follow()
            if observer.is_live(clock.now()):
                observer.judge(clock.now())
        except VitokError:
            _LOG.exception("observing %s failed; the next round tries again", home)
    observer.close()
    registry.close()


class Operator(Observer):
    """Watches the log of the fraud service and acts on what it says.

    Args:
        home: The service's home folder.
        registry: Where versions stand.
        tracker: Where runs are kept.
        workshop: Where versions are made.
        label_delay: Age at which labels are known, microseconds.
        trigger: When to retrain.
        trained_at: When the version in force was trained, microseconds.
        tell: Gets (time, text) for everything worth telling.
        rules: What the watch looks for.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        tracker: Tracker,
        workshop: Workshop,
        *,
        label_delay: int,
        trigger: RetrainTrigger,
        trained_at: int,
        tell: Callable[[int, str], None],
        rules: monitoring.WatchRules | None = None,
    ) -> None:
        super().__init__(home, registry, label_delay=label_delay, costs=workshop.costs, rules=rules)
        self.tracker, self.workshop = tracker, workshop
        self.trigger = trigger
        self._trained_at = trained_at
        self.tell = tell
        self.durable = Durable(home)
        self.trial: Trial | None = None
        self.last_retrain: int | None = None
        self.retrainings = 0
        self.latest_retrained: int | None = None
        self.rollback_seconds: list[float] = []
        self.drilled = False

    # Each hour

    def hour(self, now: int) -> None:
        """Sketches what was logged since, and judges the version on trial at once."""
        frame = self.follow()
        if frame is None:
            return
        if self.trial is not None:
            self.trial.judge.see(frame)
            self._act(self.trial.judge.verdict(now), now)

    def _act(self, verdict: ReleaseVerdict, now: int) -> None:
        trial = self.trial
        assert trial is not None  # noqa: S101
        name = f"{SYSTEM}/{trial.version}"
        if verdict.state == "continue":
            if not trial.canary and now - trial.started > PROBATION:
                self.tell(now, f"{name} has passed its probation")
                self.trial = None
            return
        if trial.canary:
            settle_canary(self.registry, self.records, SYSTEM, verdict, now=now, actor=LOOP)
            self.trial = None
            if verdict.state == "accept":
                self.tell(now, f"canary {name} accepted and promoted: {verdict.reason}")
                self._on_trial(trial.version, trial.incumbent, now, canary=False)
            else:
                self.tell(now, f"canary {name} refused: {verdict.reason}")
        elif verdict.state == "refuse":
            seconds = roll_back(
                self.registry, self.records, SYSTEM, verdict, expected=trial.version, now=now, actor=LOOP
            )
            self.rollback_seconds.append(seconds)
            self.trial = None
            self.tell(now, f"{name} rolled back to {SYSTEM}/{trial.incumbent}: {verdict.reason}")
        self.tracker.mirror(self.registry.state(SYSTEM), packages=self.registry.packages)

    def _on_trial(self, version: int, incumbent: int, now: int, *, canary: bool) -> None:
        def policy(number: int) -> TierPolicy:
            return TierPolicy.from_dict(self.registry.load(SYSTEM, number).json("policy.json"))

        judge = PairedJudge(
            candidate=f"{SYSTEM}/{version}",
            incumbent=f"{SYSTEM}/{incumbent}",
            candidate_policy=policy(version),
            incumbent_policy=policy(incumbent),
            costs=self.workshop.costs,
        )
        self.trial = Trial(judge, version, incumbent, now, canary)

    # Each day

    def day(self, now: int) -> None:
        """Evaluates the day that has closed, learns from matured outcomes, retrains where that is due."""
        watched = self.judge(now)
        for alert in watched.raised:
            self.tell(now, f"{alert.severity} alert {alert.rule} on {alert.version}: {alert.reason}")
        for alert in watched.cleared:
            self.tell(now, f"alert {alert.rule} on {alert.version} cleared: {alert.cleared_reason}")
        if self.trial is not None:
            self.trial.judge.mature(self.labelled(self.trial.started, now, now))
            self._act(self.trial.judge.verdict(now), now)
        reason = self.trigger.due(
            now,
            self.alerts.open(),
            self._trained_at,
            self.retrainings,
            data_ready=self.trial is None and not self.drilled,
        )
        if reason is not None:
            self.retrain(now, str(reason))

    def retrain(self, now: int, reason: str) -> None:
        """Makes a version from matured data and lets it answer a share; each step is done once, also after a crash."""
        self.last_retrain = self._trained_at = now
        self.retrainings += 1
        state = self.registry.state(SYSTEM)
        alerts = self.alerts.open()
        changed = min((alert.first_seen for alert in alerts), default=None)
        key = f"retrain/{now}"
        self.tell(now, f"retraining: {reason}")

        def make(_: dict[str, Any]) -> dict[str, Any]:
            incumbent = load(self.registry, state.production) if state.production is not None else None
            candidate = self.workshop.again(now, label_delay=self.label_delay, changed=changed, incumbent=incumbent)
            made = register(
                self.workshop, self.registry, self.tracker, candidate, name=reason, now=now, actor=LOOP, key=key
            )
            return {"version": made.version, "accepted": made.verdict.accepted, "gate": made.verdict.reason}

        def release(results: dict[str, Any]) -> dict[str, Any]:
            if not results["accepted"]:
                return {"released": False}
            if state.production is None:
                self.registry.ledger.promote(
                    SYSTEM, results["version"], "Production", reason=reason, actor=LOOP, now=now, key=f"{key}/promote"
                )
            else:
                begin_canary(
                    self.registry,
                    self.records,
                    SYSTEM,
                    results["version"],
                    CANARY_SHARE,
                    now=now,
                    actor=LOOP,
                    reason=reason,
                )
            return {"released": True}

        results = self.durable.run(key, [("make", make), ("release", release)])
        version = self.latest_retrained = results["version"]
        self.tell(now, f"gate {'accepted' if results['accepted'] else 'refused'} {SYSTEM}/{version}: {results['gate']}")
        if results["released"] and state.production is not None:
            self.tell(now, f"canary {SYSTEM}/{version} answers {CANARY_SHARE:.0%} of the customers")
            self._on_trial(version, state.production, now, canary=True)

    def drill(self, now: int) -> bool:
        """Pushes a deliberately bad version straight to Production, to see that it is rolled back.

        Returns:
            False where nothing is in Production that could be gone back to.
        """
        state = self.registry.state(SYSTEM)
        if state.production is None:
            return False
        if self.trial is not None and self.trial.canary:
            self.registry.ledger.end_canary(
                SYSTEM, verdict="inconclusive", reason="the replay ends before it could be judged", actor=LOOP, now=now
            )
            self.tell(now, f"canary {SYSTEM}/{self.trial.version} ended without a verdict")
        self.drilled = True
        candidate = self.workshop.upside_down(now, label_delay=self.label_delay)
        made = register(
            self.workshop,
            self.registry,
            self.tracker,
            candidate,
            name="drill: labels flipped in an export",
            now=now,
            actor=DRILL,
            key=f"drill/{now}",
        )
        self.tell(now, f"gate refused {made.name} (drill: labels flipped): {made.verdict.reason}")
        why = "release drill: pushed past the gate on purpose"
        push(self.registry, self.records, SYSTEM, made.version, override=why, now=now, actor=DRILL)
        self.tell(now, f"{made.name} pushed to Production past the gate (drill)")
        self._on_trial(made.version, state.production, now, canary=False)
        return True

    def close(self) -> None:
        """Ends what runs in the background."""
        self.durable.close()
        super().close()
