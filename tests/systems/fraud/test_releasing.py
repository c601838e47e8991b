"""Releases of the fraud service: rehearsed, gated, superseded, and an outage answered within the hour."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.systems.fraud.test_operations import DRIFT, QUALITY, WEEK, Desk, another, fill, promoted

from vitok import decisions
from vitok.clock import DAY, HOUR, EventClock
from vitok.errors import ServiceError
from vitok.loop.incidents import events
from vitok.monitoring import AlertRule, ReferenceProfile
from vitok.monitoring.label_guard import LABEL_SOURCE
from vitok.registry import at_least, evaluate
from vitok.serving import HotRequest, LocalModel
from vitok.systems.fraud.features import CALENDAR, FEATURES
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.observing import watch_rules
from vitok.systems.fraud.rehearsal import logged_values
from vitok.systems.fraud.releases import load
from vitok.systems.fraud.releasing import CANARY_LONGEST, LEAST_PROBATION, UNDECIDED
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService

GOOD = evaluate([at_least("average_precision", 0.6, 0.5)])
FALLBACK = AlertRule(name="fallback", severity="critical", playbook="look", windows=1, clear_after=1)


@pytest.fixture
def desk(home: Path, world) -> Iterator[Desk]:
    made = Desk(home, world)
    yield made
    made.close()


def begun(desk: Desk, now: int, **given: Any) -> int:
    version = another(desk.registry, now=now)
    desk.operator.releasing.begin(version, now=now, reason="test", key=f"test/{version}", **given)
    desk.operator.releasing.tick(now)
    return version


def said(desk: Desk) -> dict[str, Any]:
    release = desk.operator.trial
    assert release is not None
    return dict(release.verdicts["canary"])


def test_a_canary_is_rehearsed_once_on_the_days_whose_labels_were_to_come_also_after_a_restart(
    home: Path, world
) -> None:
    fill(home, world, 10)
    desk = Desk(home, world)
    now = desk.start + 9 * DAY
    assert begun(desk, now) == 2
    desk.operator.releasing.tick(now)
    before = decisions.read(home / "log" / "decisions", since=now - WEEK, until=now)
    # What was decided later is in the log already, but was scored by one version only.
    assert said(desk)["n_decisions"] == len(before)
    assert said(desk)["alert_rate_difference"]["value"] == 0
    first = decisions.labels(home / "log" / "outcomes", as_of=now, kind=SYSTEM)
    due = before.filter(before["event_time"].to_physical() < now - WEEK)
    assert said(desk)["n_outcomes"] == len(decisions.join(due, first).drop_nulls("label"))
    desk.close()
    desk = Desk(home, world)
    later = now + DAY
    desk.operator.releasing.tick(later)
    known = decisions.labels(home / "log" / "outcomes", as_of=later, kind=SYSTEM)
    due = before.filter(before["event_time"].to_physical() < later - WEEK)
    outcomes = len(decisions.join(due, known).drop_nulls("label"))
    assert outcomes > 100
    for _ in range(2):
        assert said(desk)["n_decisions"] == len(before)
        assert said(desk)["n_outcomes"] == outcomes
        desk.operator.releasing.tick(later)
    desk.close()


def test_a_version_whose_profile_is_not_what_is_logged_answers_nobody(home: Path, world) -> None:
    fill(home, world, 2)
    desk = Desk(home, world)
    now = desk.start + 2 * DAY
    folder = desk.registry.packages / SYSTEM / "1"
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    values = logged_values(decisions.read(home / "log" / "decisions"))
    _, probability = load(desk.registry, 1).answer(values)
    values[:, FEATURES.names.index("amount")] *= 100
    profile = ReferenceProfile.fit(list(FEATURES.names), values, probability, start=0, end=1, ignored=CALENDAR)
    files["profile.json"] = profile.to_dict()
    version = desk.registry.register(SYSTEM, files, now=now, actor="test").version
    desk.registry.ledger.record_gate(SYSTEM, version, GOOD, now=now, actor="gate")
    desk.operator.releasing.begin(version, now=now, reason="test", key="test")
    desk.operator.releasing.tick(now)
    assert desk.operator.trial is None
    assert desk.registry.state(SYSTEM).canary is None
    assert desk.registry.state(SYSTEM).version(version).gate is False
    assert f"fraud/{version} refused: gate of canary 10 %" in desk.told[-1]
    assert "amount" in desk.told[-1]
    desk.close()


def test_no_release_goes_by_the_gate_of_skew_alone(desk: Desk) -> None:
    folder = desk.registry.packages / SYSTEM / "1"
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    version = desk.registry.register(SYSTEM, files, now=desk.start, actor="test").version
    desk.operator.releasing.begin(version, now=desk.start, reason="test", key="test")
    desk.operator.releasing.tick(desk.start)
    assert "no valid verdict on record" in desk.told[-1]
    assert desk.registry.state(SYSTEM).canary is None


def test_a_canary_that_learned_nothing_of_the_change_makes_way_for_one_that_can(desk: Desk) -> None:
    begun(desk, desk.start + 8 * DAY)
    changed = desk.start + 4 * DAY
    now = changed + WEEK
    desk.operator.min_matured = 2 * DAY
    desk.operator.triggers.ask(SYSTEM, who="ann", why="it loses", now=now)
    desk.operator.retrain(now)
    # Without a loss of the champion, the canary is waited for.
    assert desk.maker.asked == []
    desk.alert(DRIFT, "fraud/1", changed)
    desk.alert(QUALITY, "fraud/1", now)
    desk.operator.retrain(now)
    assert desk.operator.holds_back(now, besides=desk.operator.trial) == "labels of 2 days since the change are needed"
    assert desk.registry.state(SYSTEM).canary == 2
    desk.operator.retrain(now + 2 * DAY)
    (old, new) = desk.operator.releasing.releases.book.list()
    assert (old.version, old.status) == (2, "superseded")
    assert "the world changed after the labels" in old.events[-1].text
    assert (new.version, new.status, new.shares[-1][1]) == (3, "running", 0.5)
    assert any("canary fraud/2 superseded: the world changed" in text for text in desk.told)
    assert desk.operator.records.list("release")[0].outcome == "superseded"


def test_drift_of_a_canary_holds_no_retraining_back(desk: Desk) -> None:
    now = desk.start + 12 * DAY
    desk.operator.min_matured = 3 * DAY
    desk.alert(DRIFT, "fraud/9", now - DAY)
    desk.alert(QUALITY, "fraud/9", now - DAY)
    desk.alert(DRIFT, "fraud/1", now - DAY)
    # Labels of a source that went wrong are held; what is made meanwhile does without them.
    desk.alert(dataclasses.replace(LABEL_SOURCE, windows=1), "all", now)
    assert LABEL_SOURCE.name in {alert.rule for alert in desk.operator.alerts.open(system=SYSTEM)}
    assert desk.operator.holds_back(now) == ""


def test_an_undecided_canary_makes_way_after_a_week_and_ends_where_nothing_newer_comes(desk: Desk) -> None:
    now = desk.start + DAY
    begun(desk, now)
    desk.operator.triggers.ask(SYSTEM, who="ann", why="new", now=now)
    desk.operator.retrain(now + UNDECIDED - HOUR)
    assert desk.maker.asked == []
    desk.operator.retrain(now + UNDECIDED)
    assert [one.status for one in desk.operator.releasing.releases.book.list()] == ["superseded", "running"]
    end = now + UNDECIDED + CANARY_LONGEST + WEEK
    desk.operator.hour(end)
    assert desk.operator.trial is None
    assert "canary fraud/3 ended undecided: canary 10 % was not decided within 14d" in desk.told[-1]


def test_a_probation_lasts_until_labels_are_in_but_a_newer_version_need_not_wait_for_that(desk: Desk) -> None:
    now = desk.start + DAY
    promoted(desk, now)
    desk.operator.hour(now)
    assert desk.operator.holds_back(now + LEAST_PROBATION - HOUR) == "fraud/2 is on trial"
    assert desk.operator.holds_back(now + LEAST_PROBATION) == ""
    desk.operator.hour(now + LEAST_PROBATION)
    release = desk.operator.trial
    assert release is not None
    assert release.plan["steps"][-1]["least"] == WEEK + LEAST_PROBATION
    assert begun(desk, now + LEAST_PROBATION) == 3
    assert [one.status for one in desk.operator.releasing.releases.book.list()] == ["finished", "running"]
    assert "fraud/2 has passed its probation" in desk.told


def test_what_is_wrong_with_a_release_is_said_once_and_the_watch_goes_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = desk.start + DAY
    begun(desk, now)

    def fails(*_: Any, **__: Any) -> Any:
        raise ServiceError("the runtime is down")

    monkeypatch.setattr(desk.operator.releasing, "_evidence", type("Fails", (), {"look": fails})())
    desk.told.clear()
    for hour in range(1, 4):
        desk.operator.hour(now + hour * HOUR)
    assert desk.told == ["plan-0001 of fraud/2 cannot go on: the runtime is down"]


def test_an_outage_by_day_is_answered_within_the_hour_and_not_after_it_is_over(home: Path, world) -> None:
    clock = EventClock()
    service = FraudService(home, clock=clock)
    start = world.timeline.replay_start
    down = start + 12 * HOUR
    desk = Desk(home, world, rules=dataclasses.replace(watch_rules(WEEK), hourly_min_n=5))
    # A young version is not at fault where the one before it does not answer either.
    promoted(desk, start)
    service.versions.refresh()

    def out(_: np.ndarray) -> np.ndarray:
        raise ServiceError("the runtime is down")

    for hour in hours(world.transactions, world.labels, start=start, end=start + 20 * HOUR):
        both = (service.versions.current.champion, service.versions.current.previous)
        if hour.start == down:
            well = [model.target.model for model in both]
            for model in both:
                model.target.model = LocalModel(model.version, out)
        if hour.start == down + HOUR:
            for model, runtime in zip(both, well, strict=True):
                model.target.model, model.target.breaker = runtime, type(model.target.breaker)()
        if hour.bodies:
            service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
        desk.operator.hour(hour.start + HOUR)
        if hour.start == down:
            (override,) = desk.operator.overrides.standing(down + HOUR)
            assert (override.action, override.since) == ("use_rules", down + HOUR)
    service.close()
    assert [alert.rule for alert in desk.operator.alerts.history()] == ["fallback_1h"]
    assert desk.operator.alerts.history()[0].state == "cleared"
    # The day's alert comes when the model has been well for hours: nothing is put in force for it.
    later = start + 19 * HOUR
    desk.operator.overrides.end(override.key, who="ann", now=later)
    assert "the model answers again" in desk.operator.answers(later)
    desk.alert(FALLBACK, "all", later)
    desk.operator.answer(later)
    assert desk.operator.overrides.standing(later) == ()
    failed = [entry.text for one in desk.operator.incidents.open() for entry in events(one, "failed")]
    assert not failed or "the model answers again" in failed[0]
    assert desk.registry.state(SYSTEM).production == 2
    desk.close()
