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
from vitok.systems.fraud import gate, recalibrating
from vitok.systems.fraud.acting import CALIBRATOR
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.operating import MakerApart, by_hand
from vitok.systems.fraud.recalibrating import Recalibrated, recalibrated
from vitok.systems.fraud.rehearsal import logged_values
from vitok.systems.fraud.releases import Maker, Workshop, load
from vitok.systems.fraud.releasing import Releasing
from vitok.systems.fraud.training import not_filled

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
    names = [check["name"] for check in gate.details["checks"]]
    assert gate.details["reason"].startswith(f"calibrator refitted: all {len(names)} checks passed")
    sliced = [name for name in names if name.startswith("Brier against fraud/2 of ")]
    assert "Brier against fraud/2 of time_of_day day" in sliced
    assert [name for name in names if name not in sliced] == [
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


def refitting(desk: Desk, rows: pl.DataFrame, *, version: int = 2, **changes: Any) -> Recalibrated:
    now, champion = desk.start + DAYS * DAY, load(desk.registry, version)
    workshop = Workshop.of_log(desk.home, costs=Costs(), start=desk.start)
    profile = ReferenceProfile.from_dict(desk.registry.load(SYSTEM, version).json("profile.json"))
    reference = workshop.rows(now, since=now - WEEK)
    return recalibrated(rows, reference, champion, profile, **{"costs": Costs(), **changes})


def decided(desk: Desk) -> pl.DataFrame:
    workshop = Workshop.of_log(desk.home, costs=Costs(), start=desk.start)
    now = desk.start + DAYS * DAY
    rows = workshop.decided(now, since=desk.start, until=now - WEEK)
    assert rows is not None
    return rows


def test_a_slice_that_would_lose_is_told_and_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = decided(desk)
    found = refitting(desk, rows)
    assert found.verdict.accepted, found.verdict.table()
    told = found.slices["time_of_day day"]
    assert set(told) == {"fraud_rate", "brier", "cost_per_decision"}
    assert told["brier"].lower < found.metrics["brier"].value < 0.1
    # One curve for all says of every terminal what has become true of some alone; four times the rows show it.
    few, likely = pl.col("amount") < pl.col("amount").median(), pl.col("probability").rank() > 0.9 * pl.len()
    turned = rows.with_columns(label=pl.when(few & likely).then(1.0).otherwise("label"))
    monkeypatch.setattr(gate, "MAX_RISE", 0.0)
    verdict = refitting(desk, pl.concat([turned] * 4), version=1).verdict
    names = [check.name for check in verdict.failed]
    assert "Brier against fraud/1 of terminal_labels no fraud" in names, verdict.table()
    assert "calibrator" not in names


def test_both_tiers_are_priced_by_what_actions_cost_now(desk: Desk) -> None:
    rows = decided(desk)
    (before, after) = (
        next(check for check in refitting(desk, rows, costs=costs).verdict.checks if check.name.startswith("cost"))
        for costs in (Costs(), Costs(review=0.01, false_block=0.01))
    )
    assert before.bound is not None
    assert after.bound is not None
    assert after.bound < before.bound


def test_days_with_many_frauds_are_two_at_least(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalibrating, "ENOUGH", 1)
    rows = decided(desk)
    found = refitting_days(rows)
    assert found == 2
    assert refitting_days(rows.filter(pl.col("event_time").dt.date() == pl.col("event_time").dt.date().max())) == 1


def refitting_days(rows: pl.DataFrame) -> int:
    return recalibrating._latest(rows)["event_time"].dt.date().n_unique()


@pytest.mark.slow
def test_a_process_of_its_own_makes_what_this_one_would(desk: Desk) -> None:
    now = desk.start + DAYS * DAY
    apart = MakerApart(desk.home, costs=Costs(), label_delay=WEEK, begins=lambda: desk.start - 30 * DAY)
    given = {"champion": 2, "reason": "test", "at": now}
    made = apart.refit("k/1", **given)
    assert made["gate"].startswith("calibrator refitted: all ")
    workshop = Workshop.of_log(desk.home, costs=Costs(), start=desk.start)
    assert made == Maker(workshop, desk.registry, Tracker(desk.home), label_delay=WEEK).refit("k/1", **given)
    assert desk.registry.state(SYSTEM).latest == made["version"] == 3
    expected = refitting(desk, decided(desk), unwatched=unwatched(desk, now))
    there = desk.registry.load(SYSTEM, 3)
    for name in ("calibrator.json", "policy.json"):
        assert there.json(name) == json.loads(json.dumps(expected.changed[name]))
    with pytest.raises(ServiceError, match="fraud"):
        apart.refit("k/2", champion=77, reason="test", at=now)


def test_a_champion_without_a_profile_or_without_days_gets_no_calibrator(desk: Desk) -> None:
    now, workshop = desk.start + DAYS * DAY, Workshop.of_log(desk.home, costs=Costs(), start=desk.start)
    package = desk.registry.load(SYSTEM, 2)
    files = {name: package.bytes(name) for name in package.files if name != "profile.json"}
    bare = desk.registry.register(SYSTEM, files, now=now - DAY, actor="test").version
    maker = Maker(workshop, desk.registry, Tracker(desk.home), label_delay=WEEK)
    assert "no profile.json" in maker.refit("k/1", champion=bare, reason="test", at=now)["impossible"]
    files["profile.json"] = package.bytes("profile.json")
    young = desk.registry.register(SYSTEM, files, now=now, actor="test").version
    told = maker.refit("k/2", champion=young, reason="test", at=now)["impossible"]
    assert "frauds with mature labels: got 0, must be at least 50" in told
    assert desk.registry.state(SYSTEM).latest == young


def unwatched(desk: Desk, now: int) -> tuple[str, ...]:
    return not_filled(now - WEEK - (desk.start - 30 * DAY), WEEK)
