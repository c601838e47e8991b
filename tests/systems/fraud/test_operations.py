"""The operator acts on what its alerts and its judge say, within its orders, and goes on after a restart."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vitok.clock import DAY, HOUR, EventClock, isoformat, parse_time
from vitok.errors import Conflict
from vitok.loop import LogEvidence, Look, Records, Switches, TriggerRules, Triggers
from vitok.loop.incidents import events, standing
from vitok.monitoring import Alert, AlertRule, publish, usual_rules
from vitok.monitoring.conditions import DATA_DRIFT, HOURLY_FALLBACK, for_length
from vitok.policies import Costs
from vitok.registry import Registry, at_least, evaluate
from vitok.serving import HotRequest
from vitok.serving.metrics import Metrics
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LEARNED
from vitok.systems.fraud.notices import GAUGES
from vitok.systems.fraud.observing import watch_rules
from vitok.systems.fraud.operating import Gauges, MakerApart, by_hand, operate
from vitok.systems.fraud.operations import Operator
from vitok.systems.fraud.releasing import RESCUE_SHARE
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService

WEEK = 7 * DAY
QUALITY = AlertRule(name="quality", severity="critical", playbook="retrain", windows=1, clear_after=1)
DRIFT = AlertRule(name="data_drift", severity="warning", playbook="look", windows=1, clear_after=1)


class Making:
    """Makes copies of the first version, and notes what it was asked for."""

    def __init__(self, registry: Registry, lacking: str = "") -> None:
        self.registry, self.lacking = registry, lacking
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def lacks(self, now: int) -> str:
        assert now
        return self.lacking

    def again(self, key: str, *, reason: str, at: int, changed: int | None) -> dict[str, Any]:
        self.asked.append({"key": key, "reason": reason, "at": at, "changed": changed})
        if self.error is not None:
            raise self.error
        return {"version": another(self.registry, now=at, key=key), "accepted": True, "gate": "all checks passed"}

    def mirror(self) -> None:
        """Shows nothing to nobody."""


def another(registry: Registry, *, now: int, key: str | None = None) -> int:
    """Registers a copy of the first version, and its gate."""
    folder = registry.packages / SYSTEM / "1"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    made = registry.register(SYSTEM, files, now=now, actor="test", key=key).version
    gate_key = None if key is None else f"{key}/gate"
    gate = evaluate([at_least("average_precision", 0.6, 0.5)])
    registry.ledger.record_gate(SYSTEM, made, gate, now=now, actor="gate", key=gate_key)
    return made


class Desk:
    """An operator on a home, what it told, and a service that fills its log."""

    def __init__(self, home: Path, world, **options: Any) -> None:
        self.home, self.start = home, world.timeline.replay_start
        self.registry = Registry(home)
        self.maker = Making(self.registry)
        self.told: list[str] = []
        self.operator = Operator(
            home,
            self.registry,
            self.maker,
            costs=Costs(),
            label_delay=WEEK,
            triggers=TriggerRules(debounce=0),
            tell=lambda _, text: self.told.append(text),
            **options,
        )

    def alert(self, rule: AlertRule, version: str, end: int, *, firing: bool = True) -> Alert | None:
        return self.operator.alerts.observe(
            rule,
            system=SYSTEM,
            version=version,
            window_end=end,
            firing=firing,
            value=0.4,
            bound=0.6,
            reason="0.4 against 0.6",
            now=end,
        )

    def close(self) -> None:
        self.operator.close()
        self.registry.close()


def fill(home: Path, world, days: int) -> EventClock:
    clock = EventClock()
    service = FraudService(home, clock=clock)
    start = world.timeline.replay_start
    for hour in hours(world.transactions, world.labels, start=start, end=start + days * DAY):
        service.versions.refresh()
        for outcomes in hour.outcomes:
            service.learn(outcomes)
        if hour.bodies:
            service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
    service.close()
    return clock


@pytest.fixture
def desk(home: Path, world) -> Iterator[Desk]:
    made = Desk(home, world)
    yield made
    made.close()


def promoted(desk: Desk, now: int) -> int:
    version = another(desk.registry, now=now)
    desk.registry.ledger.promote(SYSTEM, version, "Production", reason="better", actor="ann", now=now)
    return version


def test_a_young_version_with_a_loss_is_rolled_back_once_and_a_person_may_put_it_back(desk: Desk) -> None:
    now = desk.start + 2 * DAY
    assert promoted(desk, desk.start + DAY) == 2
    desk.alert(QUALITY, "fraud/2", now)
    desk.operator.answer(now)
    desk.operator.answer(now + HOUR)
    assert desk.registry.state(SYSTEM).production == 1
    assert len(desk.operator.rollback_seconds) == 1
    assert any("loop did roll back from fraud/2 to fraud/1" in text for text in desk.told)
    record = desk.operator.incidents.open(system=SYSTEM)[0]
    (done,) = standing(record)
    assert desk.registry.ledger.entry(SYSTEM, done.data["order"]["key"]).kind == "rolled_back"
    desk.operator.durable.close()
    with by_hand(desk.home, clock=EventClock(now + 2 * HOUR)) as playbook:
        playbook.undo(record.record_id, done.data["order"]["key"], who="ann", why="the feed was at fault", now=now)
    assert desk.registry.state(SYSTEM).production == 2


def seen(desk: Desk, monkeypatch: pytest.MonkeyPatch, rows: pl.DataFrame) -> None:
    """Lets the release of a desk see decisions that are in no log."""
    given: list[Look] = []

    def look(_: Any, release: Any, *, now: int) -> Look:
        given.append(Look(decisions=None if given else rows, position=release.position or now))
        return given[-1]

    monkeypatch.setattr(LogEvidence, "look", look)


def stopping(candidate: str, incumbent: str) -> pl.DataFrame:
    """Decisions of a candidate that stops everybody, beside an incumbent that stops nobody."""
    n = 400
    return pl.DataFrame(
        {
            "request_id": [f"t{row}" for row in range(n)],
            "amount": [50.0] * n,
            "model_version": [candidate] * n,
            "probability": [0.99] * n,
            "action": ["block"] * n,
            "shadow_version": [incumbent] * n,
            "shadow_probability": [0.0001] * n,
        }
    )


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_bad_release_is_rolled_back_by_its_judge_or_only_proposed_to_be(
    desk: Desk, by_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = desk.start + DAY
    promoted(desk, now)
    desk.operator.hour(now)
    assert desk.operator.trial is not None
    assert desk.told == ["fraud/2 is on probation beside fraud/1"]
    seen(desk, monkeypatch, stopping("fraud/2", "fraud/1"))
    if not by_itself:
        Switches(desk.home).set("rollback", propose_only=True, who="ann", why="audit", now=now)
    desk.operator.hour(now + HOUR)
    desk.operator.hour(now + 2 * HOUR)
    if by_itself:
        assert desk.registry.state(SYSTEM).production == 1
        assert len(desk.operator.rollback_seconds) == 1
        assert desk.operator.trial is None
        assert "fraud/2 rolled back to fraud/1 in 0." in desk.told[-1]
        return
    assert desk.registry.state(SYSTEM).production == 2
    (record,) = desk.operator.incidents.open()
    (proposal,) = events(record, "proposal")
    assert "only proposed" in proposal.text
    assert sum("proposes to roll back from fraud/2 to fraud/1" in text for text in desk.told) == 1
    desk.operator.durable.close()
    with by_hand(desk.home, clock=EventClock(now)) as playbook:
        playbook.approve(record.record_id, proposal.data["order"]["key"], who="ann", now=now + 3 * HOUR)
    assert desk.registry.state(SYSTEM).production == 1
    desk.operator.hour(now + 3 * HOUR)
    assert desk.operator.trial is None


def test_an_order_of_before_does_not_roll_back_what_came_since(desk: Desk) -> None:
    now = desk.start + 2 * DAY
    promoted(desk, desk.start + DAY)
    desk.alert(QUALITY, "fraud/2", now)
    Switches(desk.home).set("rollback", propose_only=True, who="ann", why="audit", now=now)
    desk.operator.answer(now)
    (proposal,) = events(desk.operator.incidents.open()[0], "proposal")
    promoted(desk, now + HOUR)
    desk.operator.durable.close()
    with by_hand(desk.home, clock=EventClock(now)) as playbook:
        record = playbook.approve(proposal.data["order"]["incident"], proposal.data["order"]["key"], who="ann", now=now)
    assert "fraud/3 is in Production" in record.timeline[-1].text
    assert desk.registry.state(SYSTEM).production == 3


def test_drift_of_the_inputs_puts_no_release_at_fault(desk: Desk) -> None:
    promoted(desk, desk.start + DAY)
    desk.alert(DRIFT, "fraud/2", desk.start + 2 * DAY)
    desk.operator.answer(desk.start + 2 * DAY)
    assert desk.registry.state(SYSTEM).production == 2
    assert any("likeliest cause: drift" in text for text in desk.told)


def test_what_changed_under_the_version_before_is_known_where_the_champion_learned_nothing_of_it(desk: Desk) -> None:
    start, desk.operator.min_matured = desk.start, 3 * DAY
    learned = desk.registry.load(SYSTEM, 1).json(LEARNED)
    assert parse_time(learned["train_end"]) < start
    drifted = desk.alert(DRIFT, "fraud/1", start + 2 * DAY)
    over = desk.alert(dataclasses.replace(DRIFT, name="prediction_drift"), "fraud/1", start + DAY)
    for alert, days in ((over, 3), (drifted, 6)):
        assert alert is not None
        desk.operator.alerts.clear(alert.id, now=start + days * DAY, reason="test")
    promoted(desk, start + 5 * DAY)
    now = start + 15 * DAY
    desk.alert(QUALITY, "fraud/2", now)
    assert desk.operator.holds_back(now) == ""
    desk.operator.answer(now)
    desk.operator.retrain(now)
    # Neither the day of its own loss nor the drift that was over before it came.
    assert [one["changed"] for one in desk.maker.asked] == [start + 2 * DAY]


@pytest.mark.parametrize("knows", ["rows of it", "the change", ""])
def test_what_changed_before_is_no_matter_where_the_champion_learned_of_it_or_does_not_say(
    desk: Desk, knows: str
) -> None:
    start, desk.operator.min_matured = desk.start, 3 * DAY
    desk.alert(DRIFT, "fraud/1", start + 2 * DAY)
    package = desk.registry.load(SYSTEM, 1)
    files = {name: package.bytes(name) for name in package.files}
    if knows:
        # Made after the change, it answers what was raised against the one before it until then.
        new = {"train_end": isoformat(start + 3 * DAY)} if knows == "rows of it" else {"changed": start}
        files[LEARNED] = json.dumps(package.json(LEARNED) | new).encode()
    else:
        del files[LEARNED]
    made = desk.registry.register(SYSTEM, files, now=start + 5 * DAY, actor="test").version
    desk.registry.ledger.promote(
        SYSTEM, made, "Production", reason="test", actor="ann", now=start + 5 * DAY, override="test"
    )
    now = start + 15 * DAY
    desk.alert(QUALITY, f"fraud/{made}", now)
    desk.operator.answer(now)
    desk.operator.retrain(now)
    assert desk.operator.holds_back(now) == "labels of 3 days since the change are needed"
    desk.operator.retrain(now + 3 * DAY)
    assert [one["changed"] for one in desk.maker.asked] == [now - WEEK]


def test_a_champion_made_after_a_change_answers_for_what_was_raised_while_it_waited(desk: Desk) -> None:
    start, desk.operator.min_matured = desk.start, 3 * DAY
    package = desk.registry.load(SYSTEM, 1)
    files = {name: package.bytes(name) for name in package.files}
    files[LEARNED] = json.dumps(package.json(LEARNED) | {"changed": start - 9 * DAY}).encode()
    made = desk.registry.register(SYSTEM, files, now=start + DAY, actor="test").version
    desk.alert(dataclasses.replace(DRIFT, name="prediction_drift"), "fraud/1", start + DAY)
    desk.alert(DRIFT, "fraud/1", start + 2 * DAY)
    desk.registry.ledger.promote(
        SYSTEM, made, "Production", reason="test", actor="ann", now=start + 5 * DAY, override="test"
    )
    now = start + 15 * DAY
    desk.alert(QUALITY, f"fraud/{made}", now)
    desk.operator.answer(now)
    desk.operator.retrain(now)
    assert [one["changed"] for one in desk.maker.asked] == [start + 2 * DAY]


def test_a_loss_raises_thresholds_for_a_day_and_a_version_is_made_once_labels_are_in(desk: Desk) -> None:
    now = desk.start + 12 * DAY
    desk.operator.min_matured = 3 * DAY
    desk.alert(DRIFT, "fraud/1", desk.start + 3 * DAY)
    desk.alert(QUALITY, "fraud/1", now)
    desk.operator.answer(now)
    (raised,) = desk.operator.overrides.standing(now)
    assert (raised.action, raised.by, raised.until) == ("raise_threshold", 0.1, now + DAY)
    desk.operator.retrain(now)
    assert desk.maker.asked == []
    assert desk.operator.holds_back(now) == "labels of 3 days since the change are needed"
    desk.operator.hour(now + DAY)
    assert desk.operator.overrides.standing(now) == ()
    assert "took back raise thresholds by 0.1: its time is over" in desk.told[-1]
    later = desk.start + 13 * DAY
    desk.operator.retrain(later)
    (asked,) = desk.maker.asked
    assert asked["key"].startswith("incident/fraud/")
    assert asked["changed"] == desk.start + 3 * DAY
    assert desk.registry.state(SYSTEM).canary == 2
    # The champion loses: there is less to lose than to win.
    assert desk.registry.state(SYSTEM).canary_share == RESCUE_SHARE
    assert desk.operator.latest_retrained == 2
    assert desk.operator.last_retrain == later
    notes = [entry.text for record in desk.operator.incidents.open() for entry in events(record, "note")]
    assert notes == ["loop: retraining (incident): gate accepted fraud/2: all checks passed"]
    desk.operator.retrain(later + 6 * DAY)
    assert len(desk.maker.asked) == 1
    assert desk.operator.holds_back(later) == "fraud/2 is on trial"


def test_where_no_version_can_be_made_the_incident_says_so(desk: Desk) -> None:
    now = desk.start + 2 * DAY
    desk.maker.lacking = "the data reach back 2 days; at least 21 are needed to make a version"
    desk.alert(QUALITY, "fraud/1", now)
    desk.operator.answer(now)
    record = desk.operator.incidents.open()[0]
    assert any("could not ask for a retraining: the data reach back 2 days" in one.text for one in record.timeline)
    assert desk.operator.triggers.pending(SYSTEM) == ()


def test_what_is_switched_off_is_not_begun_by_drift_with_loss_either(desk: Desk) -> None:
    now = desk.start + 12 * DAY
    Switches(desk.home).set("all", propose_only=True, who="ann", why="audit", now=now)
    desk.alert(DRIFT, "fraud/1", desk.start + 3 * DAY)
    desk.alert(QUALITY, "fraud/1", now)
    desk.operator.answer(now)
    desk.operator.retrain(now)
    assert desk.operator.overrides.history() == ()
    assert desk.maker.asked == []
    desk.operator.triggers.ask(SYSTEM, who="ann", why="all the same", now=now)
    desk.operator.retrain(now)
    assert len(desk.maker.asked) == 1


def test_a_retraining_that_failed_goes_on_later_under_its_key(desk: Desk) -> None:
    now = desk.start + 2 * DAY
    desk.operator.triggers.ask(SYSTEM, who="ann", why="a new feature", now=now)
    desk.maker.error = Conflict("somebody else is at it")
    with pytest.raises(Conflict):
        desk.operator.retrain(now)
    desk.maker.error = None
    desk.operator.retrain(now + HOUR // 2)
    assert len(desk.maker.asked) == 1
    desk.operator.retrain(now + HOUR)
    assert len({one["key"] for one in desk.maker.asked}) == 1
    assert len(desk.maker.asked) == 2
    assert desk.registry.state(SYSTEM).canary == 2


def test_alerts_that_cleared_are_written_down_and_their_incident_stays_open(desk: Desk) -> None:
    now = desk.start + 2 * DAY
    desk.alert(DRIFT, "fraud/1", now)
    desk.operator.answer(now)
    desk.alert(DRIFT, "fraud/1", now + DAY, firing=False)
    desk.operator.answer(now + DAY)
    (record,) = desk.operator.incidents.open()
    assert [entry.data["event"] for entry in record.timeline] == ["alert", "triage", "quiet"]


def test_a_canary_of_a_person_is_taken_up_and_judged_on_after_a_restart(home: Path, world) -> None:
    start = world.timeline.replay_start
    first = Desk(home, world)
    version = another(first.registry, now=start)
    first.registry.ledger.start_canary(SYSTEM, version, 0.3, reason="test", actor="ann", now=start)
    first.operator.hour(start)
    assert first.told == ["canary fraud/2 answers 30% of the customers"]
    fill(home, world, 2)
    first.operator.hour(start + 2 * DAY)
    release = first.operator.trial
    assert release is not None
    said = release.verdicts["canary"]
    assert said["n_decisions"] > 500
    first.close()
    again = Desk(home, world)
    again.operator.hour(start + 2 * DAY)
    assert again.operator.trial is not None
    assert again.operator.trial.verdicts["canary"] == said
    assert again.operator.trial.shares == ((start, 0.3),)
    assert again.told == []
    again.registry.ledger.end_canary(SYSTEM, verdict="refused", reason="test", actor="ann", now=start + 2 * DAY)
    again.operator.hour(start + 2 * DAY)
    assert again.operator.trial is None
    assert again.told == ["canary fraud/2 overtaken: fraud/2 is no canary of 30 % any more"]
    again.close()


class Rounds(threading.Event):
    """Lets a loop make so many rounds, with a moment after each for others."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.left -= 1
        return self.left < 0


def test_a_live_operator_sketches_answers_tells_and_publishes(home: Path, world) -> None:
    clock = fill(home, world, 2)
    start, gauges = world.timeline.replay_start, Gauges()
    desk = Desk(home, world)
    desk.alert(QUALITY, "fraud/1", start + DAY)
    for rule in (HOURLY_FALLBACK, for_length(DATA_DRIFT, WEEK)):
        desk.alert(rule, "fraud/1", start + DAY, firing=False)
    desk.close()
    operate(home, clock=clock, label_delay=WEEK, stop=Rounds(3), gauges=gauges)
    found = {sample.metric: sample.value for sample in gauges.read()}
    page = Metrics()
    publish(page, gauges.read, gauges=GAUGES)
    for rule in ("fallback_1h", "data_drift_7d", "quality"):
        assert f'vitok_alert_windows{{system="fraud",version="fraud/1",rule="{rule}"}}' in page.expose().decode()
    assert {rule.condition.metric for rule in usual_rules(watch_rules(WEEK))} <= set(GAUGES)
    assert found["vitok_incidents_open"] >= 1
    assert "vitok_watch_age_seconds" in found
    (record,) = [one for one in Records(home).list("incident") if "quality" in one.title]
    assert [one.data["action"] for one in events(record, "action")] == ["raise_threshold"]
    assert any("could not ask for a retraining" in one.text for one in record.timeline)
    told = (home / "monitoring" / "notices.jsonl").read_text()
    assert "CRITICAL quality of fraud fraud/1" in told


def test_orders_from_the_command_line(home: Path, world) -> None:
    start = world.timeline.replay_start
    desk = Desk(home, world)
    Switches(home).set("raise_threshold", propose_only=True, who="ann", why="audit", now=start)
    desk.alert(QUALITY, "fraud/1", start + DAY)
    desk.operator.answer(start + DAY)
    (proposal,) = events(desk.operator.incidents.open()[0], "proposal")
    desk.close()

    def vitok(*arguments: str, folder: Path = home) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vitok", "incidents", *arguments, "--home", str(folder), "--by", "ann"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    incident, key = proposal.data["order"]["incident"], proposal.data["order"]["key"]
    at = ("--now", "2018-06-01T00:00:00Z")
    approved = vitok("approve", incident, key, *at)
    assert "ann did raise thresholds by 0.1, until 2018-06-02T00:00:00Z" in approved.stdout, approved.stderr
    undone = vitok("undo", incident, key, "--reason", "calm again", *at)
    assert "ann took back raise thresholds by 0.1: calm again" in undone.stdout, undone.stderr
    asked = vitok("retrain", "--reason", "a new feature")
    assert "asked for: ann: a new feature" in asked.stdout, asked.stderr
    with_triggers = Triggers(home, TriggerRules())
    assert with_triggers.pending(SYSTEM)[-1] == "ann: a new feature"
    with_triggers.close()
    nowhere = vitok("retrain", "--reason", "a new feature", folder=home / "nowhere")
    assert nowhere.returncode != 0
    assert not (home / "nowhere").exists()


@pytest.mark.slow
def test_a_version_is_made_in_a_process_of_its_own_from_the_log_alone(home: Path, world) -> None:
    fill(home, world, 3)
    start = world.timeline.replay_start
    shutil.rmtree(home / "online")
    maker = MakerApart(home, costs=Costs(), label_delay=0, begins=lambda: start)
    assert maker.lacks(start + 3 * DAY) == "the data reach back 3 days; at least 21 are needed to make a version"
    found = maker.again("hand/1", reason="test", at=start + 3 * DAY, changed=None)
    assert "frauds" in found["impossible"]


def test_a_round_that_fails_is_said_once_and_the_next_goes_on(home: Path, world, caplog: Any) -> None:
    clock = fill(home, world, 1)
    alerts = home / "monitoring" / "alerts.sqlite"
    alerts.parent.mkdir(exist_ok=True)
    alerts.write_bytes(b"no database" * 100)

    class Mended(Rounds):
        def wait(self, timeout: float | None = None) -> bool:
            if self.left == 2:
                alerts.unlink()
            return super().wait(timeout)

    gauges = Gauges()
    operate(home, clock=clock, label_delay=WEEK, stop=Mended(4), gauges=gauges)
    assert sum("operating" in record.message for record in caplog.records) == 1
    assert gauges.read()
