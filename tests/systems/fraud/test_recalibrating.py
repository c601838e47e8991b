"""Probabilities that went off get a new calibrator; a ranking that fell gets none, and a retraining goes on."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.systems.fraud.operator_life import judge
from tests.systems.fraud.test_operations import QUALITY, WEEK, Desk, fill

from vitok.clock import DAY, HOUR, EventClock
from vitok.errors import ServiceError
from vitok.loop import Switches, TriggerRules, Triggers
from vitok.loop.incidents import events
from vitok.loop.release_book import ReleaseBook
from vitok.monitoring import AlertRule, ReferenceProfile
from vitok.policies import Costs
from vitok.registry import Registry, Tracker
from vitok.systems.fraud.acting import CALIBRATOR
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.operating import by_hand
from vitok.systems.fraud.recalibrating import recalibrated
from vitok.systems.fraud.rehearsal import logged_values
from vitok.systems.fraud.releases import Maker, Workshop, load
from vitok.systems.fraud.releasing import Releasing

CALIBRATION = AlertRule(name="calibration", severity="warning", playbook="recalibrate", windows=1, clear_after=1)
LIFE = Path(__file__).with_name("recalibration_life.py")
DAYS, OFF = 17, 8.0


@pytest.fixture(scope="module")
def lived(template: Path, world, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose champion says odds that are eight times too low, and the days after, with their labels."""
    home = tmp_path_factory.mktemp("lived") / "home"
    shutil.copytree(template, home)
    registry, now = Registry(home), world.timeline.replay_start
    package = registry.load(SYSTEM, 1)
    files = {name: package.bytes(name) for name in package.files}
    calibrator = package.json("calibrator.json")
    assert calibrator["kind"] == "platt"
    files["calibrator.json"] = json.dumps(calibrator | {"intercept": calibrator["intercept"] - math.log(OFF)}).encode()
    # Three days of validation say little of the ranking; many would have said this.
    profile = package.json("profile.json")
    told = {"value": 0.89, "lower": 0.85, "upper": 0.93}
    files["profile.json"] = json.dumps(profile | {"baseline": profile["baseline"] | {"auc": told}}).encode()
    version = registry.register(SYSTEM, files, now=now, actor="test").version
    registry.ledger.promote(SYSTEM, version, "Production", reason="test", actor="test", now=now, override="test")
    registry.close()
    fill(home, world, DAYS)
    return home


@pytest.fixture
def desk(lived: Path, world, tmp_path: Path) -> Any:
    home = tmp_path / "home"
    shutil.copytree(lived, home)
    made = opened(home, world)
    yield made
    made.close()


def opened(home: Path, world) -> Desk:
    start = world.timeline.replay_start
    workshop = Workshop.of_log(home, costs=Costs(), start=start - 30 * DAY)
    registry = Registry(home)
    maker = Maker(workshop, registry, Tracker(home), label_delay=WEEK)
    return Desk(home, world, refit=maker.refit)


def day(desk: Desk, now: int, rule: AlertRule = CALIBRATION) -> None:
    desk.alert(rule, "fraud/2", now)
    desk.operator.answer(now)
    desk.operator.recalibrate(now)
    desk.operator.retrain(now)


def test_a_champion_whose_probabilities_went_off_gets_a_new_calibrator_that_is_judged_and_promoted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = desk.start + DAYS * DAY
    monkeypatch.setattr(Releasing, "_judge", judge)
    day(desk, now)
    state = desk.registry.state(SYSTEM)
    assert (state.production, state.canary) == (2, 3)
    assert desk.maker.asked == []
    gate, *_ = [entry for entry in desk.registry.ledger.history(SYSTEM, version=3) if entry.kind == "gate"]
    assert gate.details["reason"].startswith("calibrator refitted: all 6 checks passed")
    assert [check["name"] for check in gate.details["checks"]] == [
        "calibrator",
        "ranking",
        "average precision",
        "calibration error",
        "cost above fraud/2",
        "labels",
    ]
    before, after = (desk.registry.load(SYSTEM, version) for version in (2, 3))
    for name in ("model.forest", "model.txt", "examples.json", "features.json"):
        assert before.bytes(name) == after.bytes(name)
    off, new = (load(desk.registry, version) for version in (2, 3))
    # Oracle: how many frauds the simulator made.
    workshop = Workshop.of_log(desk.home, costs=Costs(), start=desk.start)
    rows = workshop.decided(now, since=desk.start, until=now - WEEK)
    assert rows is not None
    happened = float(rows["label"].sum())
    expected = [float(model.answer(logged_values(rows))[1].sum()) for model in (off, new)]
    assert expected[0] < happened / 3
    assert expected[1] == pytest.approx(happened, rel=0.4)
    assert desk.registry.state(SYSTEM).version(3).run_id is not None
    notes = [entry.text for record in desk.operator.incidents.open() for entry in events(record, "note")]
    assert notes[0].startswith("loop: gate accepted fraud/3: calibrator refitted")
    for hour in range(1, 4):
        desk.operator.follow_up(now + hour * HOUR)
    assert desk.registry.state(SYSTEM).production == 3
    # Once a week: what is alerted next is only proposed.
    desk.alert(CALIBRATION, "fraud/3", now + 5 * DAY)
    desk.operator.answer(now + 5 * DAY)
    proposed = [entry.data for record in desk.operator.incidents.open() for entry in events(record, "proposal")]
    assert "recalibrate" in [one["action"] for one in proposed]


def test_too_few_labels_are_said_and_the_retraining_goes_on(desk: Desk) -> None:
    day(desk, desk.start + 8 * DAY)
    (told,) = [text for text in desk.told if text.startswith("no calibrator was refitted")]
    assert "frauds with mature labels" in told
    assert "must be at least 50" in told
    assert desk.registry.state(SYSTEM).version(3).gate is not None  # the retraining's
    assert len(desk.maker.asked) == 1
    notes = [entry.text for record in desk.operator.incidents.open() for entry in events(record, "note")]
    assert notes[0] == f"loop: {told}"


def test_a_ranking_that_fell_is_no_matter_for_a_calibrator(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Workshop.decided

    def shuffled(self: Workshop, now: int, *, since: int, until: int) -> pl.DataFrame | None:
        found = real(self, now, since=since, until=until)
        return None if found is None else found.with_columns(pl.col("label").shuffle(seed=1))

    monkeypatch.setattr(Workshop, "decided", shuffled)
    day(desk, desk.start + DAYS * DAY)
    (told,) = [text for text in desk.told if text.startswith("no calibrator was refitted")]
    assert "ranks worse than when it was made" in told
    assert len(desk.maker.asked) == 1
    assert "calibrator" not in str(desk.registry.state(SYSTEM).version(3).gate)


def test_what_is_only_proposed_waits_for_a_person(desk: Desk) -> None:
    now = desk.start + DAYS * DAY
    Switches(desk.home).set("all", propose_only=True, who="ann", why="audit", now=now)
    day(desk, now)
    assert desk.registry.state(SYSTEM).latest == 2
    record = desk.operator.incidents.open()[0]
    key = next(one.data["order"]["key"] for one in events(record, "proposal") if one.data["action"] == "recalibrate")
    desk.operator.durable.close()
    with by_hand(desk.home, clock=EventClock(now)) as playbook:
        playbook.approve(record.record_id, key, who="ann", now=now)
    desk.operator.recalibrate(now + HOUR)
    assert desk.registry.state(SYSTEM).canary == 3


def test_what_was_asked_for_another_champion_lapses(desk: Desk) -> None:
    now = desk.start + DAYS * DAY
    desk.alert(CALIBRATION, "fraud/2", now)
    desk.operator.answer(now)
    assert len(desk.operator.recalibrations.pending(CALIBRATOR)) == 1
    ledger, later = desk.registry.ledger, now + HOUR
    ledger.promote(SYSTEM, 1, "Production", reason="test", actor="ann", now=later, override="test")
    desk.operator.recalibrate(later)
    assert desk.operator.recalibrations.runs(system=CALIBRATOR) == ()
    (told,) = [text for text in desk.told if text.startswith("no calibrator is refitted")]
    assert "fraud/1 came into Production" in told
    notes = [entry.text for record in desk.operator.incidents.open() for entry in events(record, "note")]
    assert notes[-1] == f"loop: {told}"


def test_a_loss_of_quality_asks_for_no_calibrator(desk: Desk) -> None:
    day(desk, desk.start + DAYS * DAY, QUALITY)
    assert desk.operator.recalibrations.runs(system=CALIBRATOR) == ()
    assert len(desk.maker.asked) == 1


def test_what_fails_is_tried_again_for_a_day_and_holds_nothing_up(lived: Path, world, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived, home)
    asked: list[str] = []

    def broken(key: str, *, champion: int, reason: str, at: int) -> dict[str, Any]:
        asked.append(f"{key}, {champion}, {reason}, {at}")
        raise ServiceError("the process died")

    desk = Desk(home, world, refit=broken)
    now = desk.start + DAYS * DAY
    day(desk, now)
    assert len(desk.maker.asked) == 1
    desk.operator.recalibrate(now + HOUR // 2)
    assert len(asked) == 1
    desk.close()
    desk = Desk(home, world, refit=broken)
    desk.operator.releasing.releases.abort(desk.operator.trial.release_id, who="ann", why="test", now=now)
    desk.operator.recalibrate(now + HOUR)
    desk.operator.recalibrate(now + 2 * DAY)
    assert len(set(asked)) == 1
    assert len(asked) == 3
    assert "no calibrator was refitted: given up after a day: the process died" in desk.told
    (run,) = desk.operator.recalibrations.runs(system=CALIBRATOR)
    assert run.ended_at is not None
    desk.close()


@pytest.mark.slow
def test_an_operator_that_is_killed_in_between_makes_and_releases_once(home: Path, world) -> None:
    start = world.timeline.replay_start
    fill(home, world, 1)
    for place, code in (("made", -signal.SIGKILL), ("begun", -signal.SIGKILL), ("", 0)):
        command = [sys.executable, str(LIFE), str(home), str(start + DAY), place]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, (place, done.stderr)
    registry, book, triggers = Registry(home), ReleaseBook(home), Triggers(home, TriggerRules())
    assert registry.state(SYSTEM).latest == 2
    (release,) = book.list()
    assert (release.candidate, release.reason) == ("fraud/2", "calibrator refitted: test")
    (run,) = triggers.runs(system=CALIBRATOR)
    assert run.outcome == "gate accepted fraud/2: calibrator refitted: test"
    for one in (registry, book, triggers):
        one.close()


def test_labels_of_blocks_and_of_sources_that_are_held_teach_nothing(desk: Desk) -> None:
    now, maker = desk.start + DAYS * DAY, Workshop.of_log(desk.home, costs=Costs(), start=desk.start)
    rows = maker.decided(now, since=desk.start, until=now - WEEK)
    assert rows is not None
    champion, package = load(desk.registry, 2), desk.registry.load(SYSTEM, 2)
    profile = ReferenceProfile.from_dict(package.json("profile.json"))
    reference = maker.rows(now, since=now - WEEK)
    blocked = pl.int_range(pl.len()) % 7 == 0

    def refitted(label: float | None) -> str:
        given = rows.with_columns(
            action=pl.when(blocked).then(pl.lit("block")).otherwise("action"),
            propensity=pl.when(blocked).then(0.99).otherwise("propensity"),
            label=pl.when(blocked).then(pl.lit(label, pl.Float64)).otherwise("label"),
        )
        found = recalibrated(given, reference, champion, profile, costs=Costs())
        return f"{found.refit} {found.verdict}"

    assert refitted(1.0) == refitted(0.0) == refitted(None)
    desk.operator.guard.hold("chargeback", since=0, why="test")
    held = maker.decided(now, since=desk.start, until=now - WEEK)
    assert held is not None
    assert held["label"].null_count() == len(held)
