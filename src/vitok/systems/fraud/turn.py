"""The whole turn on card transactions: data, contract, features, model, service, monitoring, release, roll back.

Read `Turn.run`: it is the story. Each step uses the public names of one room.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok import contracts, decisions
from vitok.clock import DAY, HOUR, isoformat
from vitok.engines import LmdbStore
from vitok.errors import ContractBroken
from vitok.features import compare, table
from vitok.loop import Cron, TriggerRules, push
from vitok.loop.incidents import events
from vitok.policies import Costs
from vitok.registry import Registry, Tracker
from vitok.systems.fraud.challenger import Challenger
from vitok.systems.fraud.features import FEATURES, online_features
from vitok.systems.fraud.intake import CONTRACT
from vitok.systems.fraud.label_events import label_notes
from vitok.systems.fraud.messages import SYSTEM, history_note
from vitok.systems.fraud.operations import Operator
from vitok.systems.fraud.releases import Maker, Workshop, load, register
from vitok.systems.fraud.releasing import CANARY_SHARE
from vitok.systems.fraud.replay import Replay, ServiceProcess, hours
from vitok.systems.fraud.report import Report, Scored, by_rules, comparison, numbers
from vitok.systems.fraud.training import Sample, Timeline, not_filled
from vitok.systems.fraud.transactions import Transactions

if TYPE_CHECKING:
    import polars as pl

PACED_RATE = 1000.0
PACED_DECISIONS = 6_000
_DRILL_BEFORE_END = 2 * DAY
DRILL = "release drill"
Tell = Callable[[int | None, str], None]
Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Data that keep the contract, with features as of each moment.

    Attributes:
        transactions: Accepted transactions, in order of time.
        labels: Accepted labels: `transaction_id`, `is_fraud`, `label_time`, `terminal_id`.
        rows: The transactions of the timeline with their features.
        timeline: How the data are used.
        rejected: Rows that went to quarantine.
    """

    transactions: "pl.DataFrame"
    labels: "pl.DataFrame"
    rows: "pl.DataFrame"
    timeline: Timeline
    rejected: int


class Turn:
    """One turn of the loop over one data set.

    Args:
        home: Folder for everything that is written; it must be empty or absent.
        data: The transactions and their labels.
        change: When the world changes in the data, microseconds, where that is known; None otherwise.
        costs: What actions cost.
        tell: Gets (time or None, text) for everything worth telling.
        progress: Gets (what is being done, share done in [0, 1]).
    """

    def __init__(
        self,
        home: Path,
        data: Transactions,
        *,
        change: int | None = None,
        costs: Costs | None = None,
        tell: Tell = lambda _moment, _text: None,
        progress: Progress = lambda _what, _share: None,
    ) -> None:
        self.home = home
        self.data = data
        self.change = change
        self.costs = costs or Costs()
        self.story: list[tuple[str, str]] = []
        self._tell = tell
        self._progress = progress
        self.seconds: dict[str, float] = {}
        self.drill_at: int | None = None

    def run(self) -> Report:
        """Makes the turn.

        Returns:
            The numbers and the story.

        Raises:
            ContractBroken: If the data cannot be used.
            InvalidInput: If they are too short or hold too few frauds.
            ServiceError: If the service does not start or stops.
        """
        prepared = self._timed("contract and features", self.prepare)
        registry, tracker = Registry(self.home), Tracker(self.home)
        start = prepared.timeline.start
        # What the service decides is read from its log; the history ends where that begins.
        history = prepared.rows.filter(prepared.rows["event_time"].to_physical() < prepared.timeline.replay_start)
        workshop = Workshop(self.home, history, prepared.labels, self.data.fingerprint, self.costs, start)
        self._timed("training", lambda: self.first_version(prepared, workshop, registry, tracker))
        self._timed("online store", lambda: self.fill_online(prepared))
        maker = Maker(workshop, registry, tracker, label_delay=self.data.label_delay_us)
        operator = Operator(
            self.home,
            registry,
            maker,
            costs=self.costs,
            label_delay=self.data.label_delay_us,
            triggers=self._triggers(prepared.timeline),
            min_matured=min(7 * DAY, self._third(prepared.timeline) // 2),
            tell=self.tell,
            refit=maker.refit,
        )
        with ServiceProcess(self.home) as service:
            self._timed("replay", lambda: self.replay(prepared, service, operator, maker))
        report = self._timed("comparison", lambda: self.report(prepared, registry, operator))
        operator.close()
        registry.close()
        return report

    def tell(self, moment: int | None, text: str) -> None:
        """Adds to the story."""
        self.story.append((isoformat(moment)[:16].replace("T", " ") if moment is not None else "", text))
        self._tell(moment, text)

    def _timed(self, name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        self._progress(name, 0.0)
        result = step()
        self.seconds[name] = time.perf_counter() - started
        return result

    # Contract and features

    def prepare(self) -> Prepared:
        """Checks the contract, puts aside what breaks it, and computes every feature as of every moment."""
        import polars as pl

        for sentence in self.data.assumptions:
            self.tell(None, sentence)
        contract = contracts.load(CONTRACT)
        quarantine = contracts.Quarantine(self.home / "quarantine")
        times = self.data.transactions["event_time"].drop_nulls().cast(pl.Int64)
        now = int(times.to_numpy().max(initial=0))
        checked = contract.check(self.data.transactions, schema="transactions", now=now)
        labelled = contract.check(self.data.labels, schema="labels", now=now + self.data.label_delay_us)
        for name, report in (("transactions", checked), ("labels", labelled)):
            quarantine.put(report, batch=name, now=now)
            for result in report.failed:
                self.tell(None, f"contract: {result.label} failed on {result.n_failed} of {result.n_checked} {name}")
        transactions = checked.accepted.sort("event_time", maintain_order=True)
        if transactions.is_empty():
            raise ContractBroken("transactions: no row keeps the contract; the reasons are in the quarantine folder")
        labels = labelled.accepted.with_columns(pl.col("is_fraud").cast(pl.Float64)).join(
            transactions.select("transaction_id", "terminal_id"), on="transaction_id", how="inner"
        )
        times = transactions["event_time"].cast(pl.Int64)
        timeline = Timeline.plan(int(times[0]), int(times[-1]) + 1, label_delay=self.data.label_delay_us)
        self.tell(None, f"{len(transactions):,} transactions keep the contract, {checked.n_rejected:,} in quarantine")
        self.tell(None, str(timeline))
        young = not_filled(timeline.validation_end - timeline.start, timeline.label_delay)
        if young:
            self.tell(None, f"too little history to watch these for drift: {', '.join(young)}")
        self._progress("features", 0.3)
        used = transactions.filter(times >= timeline.train_start)
        rows = table(used, FEATURES, {"transactions": transactions, "labels": labels})
        return Prepared(
            transactions=transactions,
            labels=labels,
            rows=rows,
            timeline=timeline,
            rejected=checked.n_rejected + labelled.n_rejected,
        )

    # Training and registry

    def first_version(self, prepared: Prepared, workshop: Workshop, registry: Registry, tracker: Tracker) -> None:
        """Fits the first version; it goes to Production if its gate lets it, and rules decide until one does."""
        now = prepared.timeline.replay_start
        candidate = workshop.first(prepared.timeline)
        self._progress("training", 0.6)
        made = register(
            workshop, registry, tracker, candidate, name="first version", now=now, actor="demo", key="first"
        )
        self.tell(now, f"gate {'accepted' if made.verdict.accepted else 'refused'} {made.name}: {made.verdict.reason}")
        if made.verdict.accepted:
            registry.ledger.promote(
                SYSTEM, made.version, "Production", reason="first version", actor="demo", now=now, key="first/promote"
            )
            tracker.mirror(registry.state(SYSTEM), packages=registry.location)

    # Service

    def fill_online(self, prepared: Prepared) -> None:
        """Brings the online store to the state that the stream would have left when the service starts."""
        import polars as pl

        transactions = prepared.transactions
        columns = (transactions["event_time"].to_physical(), *(transactions[name] for name in _NOTED))
        notes = pl.Series([history_note(*row) for row in zip(*columns, strict=True)], dtype=pl.Binary)
        store = LmdbStore(self.home / "online")
        online_features(store).backfill(
            {"transactions": transactions, "labels": prepared.labels},
            until=prepared.timeline.replay_start,
            notes={"transactions": notes, "labels": label_notes(prepared.labels)},
        )
        store.sync()
        store.close()

    def replay(self, prepared: Prepared, service: ServiceProcess, operator: Operator, maker: Maker) -> None:
        """Sends the replay period through the service hour by hour; the operator looks on and acts."""
        timeline = prepared.timeline
        replay = Replay(service)
        drill_at = max(timeline.replay_start + DAY, timeline.end - _DRILL_BEFORE_END)
        challenger = self.challenger = Challenger(
            self.home,
            operator.registry,
            label_delay=self.data.label_delay_us,
            costs=self.costs,
            history=maker.workshop.rows(timeline.replay_start, since=timeline.train_start),
        )
        self.tell(timeline.replay_start, str(challenger.hour(timeline.replay_start)))
        paced = 0
        followed: tuple[int, tuple[str, ...]] = (0, ())
        for hour in hours(prepared.transactions, prepared.labels, start=timeline.replay_start, end=timeline.end):
            if self.drill_at is None and hour.start >= drill_at and self.drill(operator, maker, hour.start):
                self.drill_at = hour.start
            overrides = tuple(one.key for one in operator.overrides.standing(hour.start))
            present = (operator.registry.ledger.revision(), overrides)
            if present != followed:
                replay.until(*present)
                followed = present
            replay.send(hour, rate=PACED_RATE if paced < PACED_DECISIONS else None)
            paced += len(hour.bodies)
            now = hour.start + HOUR
            operator.hour(now)
            for restarted in challenger.hour(now).restarts:
                self.tell(now, str(restarted))
            if now % DAY == 0:
                operator.day(now)
                challenger.day(now)
            self._progress("replay", (now - timeline.replay_start) / (timeline.end - timeline.replay_start))
        replay.close()
        self.replayed = replay

    def drill(self, operator: Operator, maker: Maker, now: int) -> bool:
        """Pushes a deliberately bad version straight to Production, to see that it is rolled back.

        Returns:
            False where nothing is in Production that could be gone back to.
        """
        registry = operator.registry
        state = registry.state(SYSTEM)
        if state.production is None:
            return False
        release = operator.trial
        if release is not None and release.kind != "full":
            why = "the replay ends before it could be judged"
            operator.releasing.releases.abort(release.release_id, who=DRILL, why=why, now=now)
            operator.releasing.tick(now)
        operator.paused = "a release drill has been held"
        candidate = maker.workshop.upside_down(now, label_delay=maker.label_delay)
        name, key = "drill: labels flipped in an export", f"drill/{now}"
        made = register(maker.workshop, registry, maker.tracker, candidate, name=name, now=now, actor=DRILL, key=key)
        self.tell(now, f"gate refused {made.name} (drill: labels flipped): {made.verdict.reason}")
        why = "release drill: pushed past the gate on purpose"
        push(registry, operator.records, SYSTEM, made.version, override=why, now=now, actor=DRILL)
        self.tell(now, f"{made.name} pushed to Production past the gate (drill)")
        operator.releasing.tick(now)
        return True

    def _third(self, timeline: Timeline) -> int:
        return max(2 * DAY, (timeline.end - timeline.replay_start) // 3 // DAY * DAY)

    def _triggers(self, timeline: Timeline) -> TriggerRules:
        # Without an alert, the schedule retrains a third into the replay, late enough to have new labels and early
        # enough for a canary to be judged, and as long after that again.
        third = self._third(timeline)
        times = [isoformat(timeline.replay_start + number * third) for number in (1, 2)]
        days, months = (sorted({int(text[part]) for text in times}) for part in (slice(8, 10), slice(5, 7)))
        schedule = Cron(f"0 0 {','.join(map(str, days))} {','.join(map(str, months))} *")
        return TriggerRules(
            schedule=schedule if self.change is None else None,
            debounce=2 * DAY,
            cool_down=min(7 * DAY, third),
            runs_a_week=2,
        )

    # Numbers

    def report(self, prepared: Prepared, registry: Registry, operator: Operator) -> Report:
        """Compares what decisions saw with the table, and the versions with each other and with the rules."""
        timeline = prepared.timeline
        logged = decisions.read(self.home / "log" / "decisions")
        matched = prepared.rows.join(
            logged, left_on="transaction_id", right_on="request_id", how="inner", suffix="_logged"
        )
        seen = np.ascontiguousarray(matched.select(f"f_{name}" for name in FEATURES.names).to_numpy())
        parity = compare(FEATURES, seen, matched.select(FEATURES.names).to_numpy())
        mismatches = parity.n_differing_rows + abs(len(logged) - len(matched))
        self.tell(None, f"features of decisions against the table: {parity}")
        challenged = self.challenger.day(timeline.end)
        for line in str(challenged).splitlines():
            self.tell(None, line.strip())
        known = prepared.labels.select("transaction_id", "is_fraud")
        rows = matched.select("transaction_id", "event_time", "customer_id", "amount", *FEATURES.names[1:]).join(
            known, on="transaction_id", how="inner"
        )
        sample = Sample.of(rows.sort("event_time", maintain_order=True))
        versions = {"incumbent": 1} if registry.state(SYSTEM).latest else {}
        retrained = operator.latest_retrained
        if retrained is not None:
            versions["retrained"] = retrained
        scorers = {name: load(registry, number) for name, number in versions.items()}

        def on(part: Sample, roles: Mapping[str, Any]) -> dict[str, Any]:
            found = {"rules": by_rules(part)} if len(part) else {}
            for role, model in roles.items():
                if not len(part):
                    continue
                _, probability = model.answer(part.values)
                policy = dataclasses.replace(model.policy, pass_through=0.0)
                actions = policy.decide(probability, part.amount, [""] * len(part)).actions
                found[role] = Scored(name=model.version, score=probability, actions=np.array(actions), calibrated=True)
            return comparison(part, found, self.costs)

        split = operator.last_retrain or self.change or timeline.replay_start
        edge = min(self.change or split, split)
        before = on(sample.between(timeline.replay_start, edge), {k: v for k, v in scorers.items() if k == "incumbent"})
        after = on(sample.between(split, timeline.end), scorers)
        tally = self.replayed.tally
        latency = self.replayed.latency
        service = {
            "decisions": len(logged),
            "refused": tally.refused,
            "first_refusal": tally.first_refusal,
            "outcomes": tally.outcomes,
            "feature_mismatches": mismatches,
            "feature_values_compared": parity.n_values,
            "worst_relative_difference": parity.worst,
            "rows_in_quarantine": prepared.rejected,
            "latency_ms": {
                name: latency.quantile(q) / 1000 for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
            },
            "latency_protocol": f"open loop at {PACED_RATE:.0f} requests/s from the intended time of sending, "
            f"n = {latency.count}",
            "decisions_per_second": (tally.decisions - latency.count) / tally.seconds if tally.seconds else None,
            "decisions_per_second_protocol": "one connection, 64 requests in flight, client and service on one machine",
        }
        return Report(
            numbers=numbers(
                before=before,
                after=after,
                service=service,
                turn=self._turn(registry, operator, timeline) | {"challenger": challenged.to_dict()},
            ),
            story=self.story,
        )

    def _turn(self, registry: Registry, operator: Operator, timeline: Timeline) -> dict[str, Any]:
        history = registry.ledger.history(SYSTEM)
        alerts = operator.alerts.history()
        change = self.change
        promotions = [entry for entry in history if entry.kind == "promoted" and entry.stage_to == "Production"]
        promoted = next((entry.time_us for entry in promotions if entry.version == operator.latest_retrained), None)
        after = [alert.raised_at for alert in alerts if change is not None and alert.raised_at > change]

        rolled_back = [entry for entry in history if entry.kind == "rolled_back"]
        seconds = operator.rollback_seconds

        def days(moment: int | None) -> float | None:
            return None if moment is None or change is None else (moment - change) / DAY

        return {
            "alerts": [
                {
                    "rule": alert.rule,
                    "severity": alert.severity,
                    "version": alert.version,
                    "at": isoformat(alert.raised_at),
                    "reason": alert.reason,
                }
                for alert in alerts
            ],
            "incidents": [
                {
                    "id": record.record_id,
                    "title": record.title,
                    "version": record.version,
                    "at": isoformat(record.opened),
                    "done": [entry.data["action"] for entry in events(record, "action")],
                    "proposed": [entry.data["action"] for entry in events(record, "proposal")],
                }
                for record in operator.records.list("incident")
            ],
            "false_alerts_before_change": None
            if change is None
            else sum(alert.raised_at <= change for alert in alerts),
            "releases": [
                {"version": f"{SYSTEM}/{entry.version}", "at": isoformat(entry.time_us), "kind": entry.kind}
                for entry in history
                if entry.kind in {"promoted", "canary_started", "canary_ended", "rolled_back"}
            ],
            "rollbacks": [
                {"version": f"{SYSTEM}/{entry.version}", "at": isoformat(entry.time_us), "seconds": seconds[entry.seq]}
                for entry in rolled_back
            ],
            "canary_share": CANARY_SHARE,
            "days_from_change_to_alert": days(min(after, default=None)),
            "days_from_change_to_promotion": days(promoted),
            "hours_from_bad_release_to_rollback": None
            if self.drill_at is None
            else next(
                ((entry.time_us - self.drill_at) / HOUR for entry in rolled_back if entry.time_us >= self.drill_at),
                None,
            ),
            "timeline": dataclasses.asdict(timeline),
            "label_delay_days": timeline.label_delay / DAY,
            "assumptions": list(self.data.assumptions),
            "seconds": self.seconds,
        }


_NOTED = ("customer_id", "terminal_id", "amount")


def fingerprint(arguments: Mapping[str, Any]) -> str:
    """Returns what a turn depends on: its arguments and the code of the package."""
    import hashlib

    digest = hashlib.sha256(json.dumps(arguments, sort_keys=True, default=str).encode())
    package = Path(__file__).parents[2]
    for path in sorted(package.rglob("*.py")):
        # The console only shows what a turn has left.
        if package / "console" not in path.parents:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
