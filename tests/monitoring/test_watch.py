"""Whole weeks of simulated traffic through sketches, rules and alerts: silence where nothing changes, and alarms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY, HOUR, isoformat
from vitok.monitoring import (
    Alerts,
    EstimateLedger,
    PerformanceEstimator,
    Sketches,
    Watch,
    Watched,
    WatchRules,
    usual_rules,
)
from vitok.monitoring.estimate_watch import METRICS, EstimateWatch
from vitok.policies import Costs
from vitok.stats import ConformalSets

FIRST, REFERENCE = 0, 7


class World:
    """Runs traffic through a watch, day by day, as the service and its timer do."""

    def __init__(self, folder: Path, traffic: Any, *, rules: WatchRules | None = None) -> None:
        self.traffic = traffic
        profile = traffic.profile(FIRST, REFERENCE)
        self.sketches, self.alerts = Sketches(folder / "sketches.sqlite"), Alerts(folder / "alerts.sqlite")
        self.profile_of: Callable[[str], Any] = lambda version: None if version == "rules" else profile
        self.days: dict[int, pl.DataFrame] = {}
        self.watch = Watch(
            "fraud",
            profile_of=self.profile_of,
            sketches=self.sketches,
            alerts=self.alerts,
            rules=rules,
            labelled=self.labelled,
            costs=Costs(),
        )

    def labelled(self, start: int, end: int, as_of: int) -> pl.DataFrame:
        assert end <= as_of
        names = ("request_id", "event_time", "model_version", "probability", "action", "amount", "label")
        kept = [frame.select(names) for day, frame in self.days.items() if start <= day * DAY < end]
        empty = next(iter(self.days.values())).select(names).clear()
        return pl.concat([empty, *kept])

    def run(self, days: range, change: Callable[[pl.DataFrame], pl.DataFrame] = lambda frame: frame) -> list[Watched]:
        seen = []
        for day in days:
            frame = change(self.traffic.day(day))
            self.days[day] = frame
            if frame.height:
                self.sketches.follow(frame, self.profile_of, position=(day + 1, 0))
            seen.append(self.watch.tick((day + 1) * DAY))
        return seen


@pytest.mark.parametrize(("per_day", "n_customers"), [(4_000, 1_000), (10_000, 4_000)])
def test_stationary_traffic_raises_nothing_in_forty_days(
    tmp_path: Path, traffic: Any, per_day: int, n_customers: int
) -> None:
    world = World(tmp_path, traffic(per_day=per_day, n_customers=n_customers))
    seen = world.run(range(REFERENCE, REFERENCE + 40))
    assert world.alerts.history() == ()
    # Silence because all was judged and found quiet, not because nothing was looked at.
    judged = {finding.rule.name for finding in seen[-1].days[0].findings}
    assert judged == {
        "absence", "fallback", "data_quality", "data_drift", "prediction_drift", "quality", "calibration", "confidence",
    }  # fmt: skip
    # Single days may fire, above all with few customers who pay often; that is what the row of three is for.
    findings = [finding for tick in seen for day in tick.days for finding in day.findings]
    assert sum(finding.firing for finding in findings) <= 0.05 * len(findings)


@pytest.mark.parametrize("seed", [1, 2])
def test_amounts_up_by_fifteen_per_cent_alert_within_days(tmp_path: Path, traffic: Any, seed: int) -> None:
    change = REFERENCE + 8
    world = World(tmp_path, traffic(seed=seed, shift=1.15, shift_day=change))
    world.run(range(REFERENCE, change + 6))
    alerts = [alert for alert in world.alerts.history() if alert.rule == "data_drift"]
    assert [alert.state for alert in alerts] == ["open"]
    assert change * DAY < alerts[0].first_seen
    assert alerts[0].raised_at <= (change + 4) * DAY
    assert "amount" in alerts[0].reason


def relabelled(frame: pl.DataFrame, share: float) -> pl.DataFrame:
    """Frauds that the model does not see: labels that come by chance in place of some that it foresaw."""
    mixed = frame["label"].sample(fraction=1.0, shuffle=True, seed=frame.height)
    return frame.with_columns(
        label=pl.when(pl.int_range(frame.height) % 10 < 10 * share).then(mixed).otherwise("label")
    )


def test_a_model_that_went_blind_raises_quality_when_labels_mature(tmp_path: Path, traffic: Any) -> None:
    change = REFERENCE + 3
    world = World(tmp_path, traffic(per_day=4_000))
    world.run(range(REFERENCE, change))
    world.run(range(change, change + 16), lambda frame: relabelled(frame, 0.8))
    raised = {alert.rule: alert for alert in world.alerts.history()}
    assert set(raised) >= {"quality"}
    assert "data_drift" not in raised
    # Labels take a week: nothing can be known before.
    assert (change + 7) * DAY < raised["quality"].raised_at <= (change + 14) * DAY
    assert raised["quality"].severity == "critical"


def test_probabilities_at_twice_the_truth_raise_calibration(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(per_day=4_000))

    def doubled(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns((pl.col("probability") * 2.2).clip(0, 1))

    seen = world.run(range(REFERENCE, REFERENCE + 12), doubled)
    rules = {alert.rule for alert in world.alerts.open()}
    assert {"calibration", "prediction_drift"} <= rules
    assert "data_drift" not in rules
    (alert,) = [alert for alert in world.alerts.open() if alert.rule == "calibration"]
    assert "not calibrated: evidence reached at the end of" in alert.reason
    ((version, found),) = seen[-1].days[0].calibration
    assert version == "fraud/1"
    assert len(found.windows) >= 5


def test_fallbacks_and_silence(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic())

    def failing(frame: pl.DataFrame) -> pl.DataFrame:
        bad = pl.int_range(frame.height) % 20 == 0
        return frame.with_columns(
            route=pl.when(bad).then(pl.lit("fallback")).otherwise("route"),
            model_version=pl.when(bad).then(pl.lit("rules")).otherwise("model_version"),
        )

    start = REFERENCE
    world.run(range(start, start + 2))
    world.run(range(start + 2, start + 3), failing)
    (alert,) = world.alerts.open()
    assert (alert.rule, alert.version) == ("fallback", "all")
    assert alert.value == pytest.approx(0.05, abs=0.001)
    world.run(range(start + 3, start + 4))
    assert world.alerts.open() == ()
    (day,) = world.run(range(start + 4, start + 5), lambda frame: frame.clear())[0].days
    assert [alert.rule for alert in day.raised] == ["absence"]
    assert day.drift == ()
    assert "no decisions" in str(day)
    (day,) = world.run(range(start + 5, start + 6))[0].days
    assert [alert.rule for alert in day.cleared] == ["absence"]


def test_an_outage_is_told_within_the_hour_by_a_rule_of_the_set_and_ends_after_two_good_ones(
    tmp_path: Path, traffic: Any
) -> None:
    world = World(tmp_path, traffic())
    day = REFERENCE
    frame = world.traffic.day(day)
    hour = frame["event_time"].to_physical().cast(pl.Int64) // HOUR - day * 24
    out = (hour == 9) | (hour == 10)
    frame = frame.with_columns(
        route=pl.when(out).then(pl.lit("fallback")).otherwise("route"),
        model_version=pl.when(out).then(pl.lit("rules")).otherwise("model_version"),
    )
    world.days[day] = frame
    rules, told, gauge = usual_rules(world.watch.rules), [], []
    for number in range(24):
        world.sketches.follow(frame.filter(hour == number), world.profile_of, position=(day + 1, number + 1))
        now = day * DAY + (number + 1) * HOUR
        seen = world.watch.tick(now)
        told += [(number, one.rule, one.state) for one in (*seen.raised, *seen.cleared) if one.rule != "fallback"]
        found = world.alerts.windows(rules, system="fraud")
        gauge += [(number, one.value) for one in found if one.labels["rule"] == "fallback_1h"]
    assert told == [(9, "fallback_1h", "open"), (12, "fallback_1h", "cleared")]
    # Nothing is kept of hours in which nothing was, and what Prometheus sees goes from one to the other as it did.
    assert gauge[:4] == [(9, 1.0), (10, 2.0), (11, -1.0), (12, -2.0)]
    assert {value for _, value in gauge[4:]} == {-2.0}


def test_an_outage_that_was_over_when_the_watch_came_back_is_left_to_its_day(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic())
    hours = pl.col("event_time").dt.hour()

    def out(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(route=pl.when(hours == 9).then(pl.lit("fallback")).otherwise("route"))

    world.run(range(REFERENCE, REFERENCE + 1), out)
    assert [alert.rule for alert in world.alerts.history()] == ["fallback"]


def test_hours_that_nobody_asks_for_are_not_judged(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(), rules=WatchRules(hourly_quality=None, hourly_absence=None, hourly_fallback=None))
    world.run(range(REFERENCE, REFERENCE + 1), lambda frame: frame.with_columns(route=pl.lit("fallback")))
    assert [alert.rule for alert in world.alerts.history()] == ["fallback"]
    assert world.alerts.watched_until("fraud/1h") is None


def test_a_day_is_judged_once_and_only_when_it_has_closed(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(), rules=WatchRules(settle=DAY // 24))
    frame = traffic().day(REFERENCE)
    world.days[REFERENCE] = frame
    world.sketches.follow(frame, world.profile_of, position=(1, 0))
    end = (REFERENCE + 1) * DAY
    assert world.watch.tick(end).days == ()
    assert str(world.watch.tick(end + DAY // 24 - 1)) == "no day has closed since"
    assert len(world.watch.tick(end + DAY // 24).days) == 1
    assert world.watch.tick(end + DAY // 24).days == ()
    assert world.alerts.watched_until("fraud") == end


def test_catching_up_sees_what_daily_ticks_saw(tmp_path: Path, traffic: Any) -> None:
    change = REFERENCE + 3
    daily = World(tmp_path / "daily", traffic(shift=1.15, shift_day=change))
    daily.run(range(REFERENCE, change + 6))
    late = World(tmp_path / "late", traffic(shift=1.15, shift_day=change))
    late.days = daily.days
    for day, frame in daily.days.items():
        late.sketches.follow(frame, late.profile_of, position=(day + 1, 0))
    seen = late.watch.tick((change + 6) * DAY)
    assert len(seen.days) == 9
    assert seen.raised == late.alerts.history() == daily.alerts.history()
    assert seen.raised


def test_a_crash_between_observing_and_finishing_changes_nothing(
    tmp_path: Path, traffic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = REFERENCE + 2
    world = World(tmp_path, traffic(shift=1.3, shift_day=change))
    world.run(range(REFERENCE, change + 2))
    with monkeypatch.context() as patched:
        finish = world.alerts.finish

        def crash(system: str, until: int, *, now: int | None = None) -> None:
            if system == "fraud":
                raise RuntimeError
            finish(system, until, now=now)

        patched.setattr(world.alerts, "finish", crash)
        with pytest.raises(RuntimeError):
            world.run(range(change + 2, change + 3))
    assert len(world.alerts.open()) >= 1
    before = world.alerts.history()
    (day,) = world.watch.tick((change + 3) * DAY).days
    assert day.raised == ()
    assert world.alerts.history() == before


def test_alerts_of_a_version_that_left_are_cleared(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(shift=1.3, shift_day=REFERENCE))
    world.run(range(REFERENCE, REFERENCE + 4))
    assert {alert.version for alert in world.alerts.open()} == {"fraud/1"}

    def replaced(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(model_version=pl.lit("fraud/2"))

    (tick,) = world.run(range(REFERENCE + 4, REFERENCE + 5), replaced)
    assert world.alerts.open() == ()
    assert {alert.cleared_reason for alert in tick.cleared} == {"fraud/1 no longer decides"}


def test_a_version_with_few_decisions_is_not_judged(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(shift=1.5, shift_day=REFERENCE))

    def canary(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            model_version=pl.when(pl.int_range(frame.height) < 999).then(pl.lit("fraud/2")).otherwise("model_version")
        )

    seen = world.run(range(REFERENCE, REFERENCE + 3), canary)
    assert {finding.version for tick in seen for day in tick.days for finding in day.findings} == {"all", "fraud/1"}


def test_a_broken_feed_is_named_at_once_and_is_no_drift(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic())
    world.run(range(REFERENCE, REFERENCE + 4))

    def cents(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col("f_customer_sum_7d") * 100)

    world.run(range(REFERENCE + 4, REFERENCE + 9), cents)
    raised = world.alerts.history()
    assert [(alert.rule, alert.raised_at // DAY) for alert in raised] == [("data_quality", REFERENCE + 5)]
    assert "customer_sum_7d is multiplied by 100 in 100 % of the rows" in raised[0].reason


def test_far_fewer_decisions_than_expected_are_absence(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic())
    world.run(range(REFERENCE, REFERENCE + 15))
    assert world.alerts.history() == ()
    world.run(range(REFERENCE + 15, REFERENCE + 16), lambda frame: frame.head(frame.height // 2))
    raised = {alert.rule: alert for alert in world.alerts.history()}
    assert set(raised) == {"absence", "absence_1h"}
    assert "were expected, at least" in raised["absence"].reason
    # The hours without traffic tell before the day closes, and as soon as the second of them.
    assert raised["absence_1h"].raised_at < raised["absence"].raised_at
    assert raised["absence_1h"].raised_at - raised["absence_1h"].first_seen == HOUR


def test_longer_windows_see_what_is_too_small_for_a_day(tmp_path: Path, traffic: Any) -> None:
    rules = WatchRules(min_n=6_000, lengths=(DAY, 7 * DAY))
    world = World(tmp_path, traffic(shift=1.6, shift_day=REFERENCE + 2), rules=rules)
    world.run(range(REFERENCE, REFERENCE + 9))
    assert {alert.rule for alert in world.alerts.history()} >= {"data_drift_7d"}
    assert "data_drift" not in {alert.rule for alert in world.alerts.history()}


def test_a_broken_feed_of_two_hours_is_told_before_the_day_closes(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(per_day=12_000))
    world.run(range(REFERENCE, REFERENCE + 4))
    day = REFERENCE + 4

    def broken(frame: pl.DataFrame) -> pl.DataFrame:
        hour = frame["event_time"].to_physical().cast(pl.Int64) // HOUR % 24
        gone = (hour >= 10) & (hour < 13)
        return frame.with_columns(f_amount=pl.when(gone).then(None).otherwise(pl.col("f_amount")))

    frame = broken(world.traffic.day(day))
    hours = frame["event_time"].to_physical().cast(pl.Int64) // HOUR - day * 24
    raised = []
    for hour in range(24):
        part = frame.filter(hours == hour)
        world.sketches.follow(part, world.profile_of, position=(day + 1, hour + 1))
        seen = world.watch.tick(day * DAY + (hour + 1) * HOUR)
        raised += [(hour, alert.rule) for alert in seen.raised if alert.rule != "data_quality"]
        if hour == 11:
            (one,) = seen.hours
            assert "amount to null" in str(one)
            assert one.raised[0].severity == "critical"
            # Asking twice within the hour judges nothing twice.
            assert world.watch.tick(day * DAY + (hour + 1) * HOUR).hours == ()
    assert raised == [(11, "data_quality_1h")]
    # Two quiet hours end it.
    (alert,) = [alert for alert in world.alerts.history() if alert.rule == "data_quality_1h"]
    assert alert.cleared_at == day * DAY + 15 * HOUR


def test_hours_of_one_time_of_day_are_held_against_each_other(tmp_path: Path, traffic: Any) -> None:
    # Each night all of a feature is null: an hour of the night is as it always was.
    world = World(tmp_path, traffic(per_day=12_000))

    def nightly(frame: pl.DataFrame) -> pl.DataFrame:
        hour = frame["event_time"].to_physical().cast(pl.Int64) // HOUR % 24
        return frame.with_columns(f_amount=pl.when(hour < 6).then(None).otherwise(pl.col("f_amount")))

    world.run(range(REFERENCE, REFERENCE + 8), nightly)
    assert not [alert for alert in world.alerts.history() if alert.rule.endswith("_1h")]


def test_after_a_clock_that_was_ahead_watching_goes_on(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(shift=1.3, shift_day=REFERENCE + 4))
    world.run(range(REFERENCE, REFERENCE + 2))
    # For a moment the clock shows a month later.
    ahead = (REFERENCE + 32) * DAY
    world.watch.tick(ahead)
    assert world.alerts.watched_until("fraud") == ahead
    seen = world.run(range(REFERENCE + 2, REFERENCE + 9))
    # The day during which it was put right has been judged already, as an empty one.
    assert [len(tick.days) for tick in seen] == [0, 1, 1, 1, 1, 1, 1]
    assert world.alerts.watched_until("fraud") == (REFERENCE + 9) * DAY
    assert "data_drift" in {alert.rule for alert in world.alerts.history()}
    # An hour back, as a clock that is corrected may go, repeats nothing.
    assert world.watch.tick((REFERENCE + 9) * DAY - HOUR).days == ()


def test_an_alert_says_what_has_happened_where_and_since_when(tmp_path: Path, traffic: Any) -> None:
    change = REFERENCE + 14
    rules = WatchRules(baselines=("healthy", "last week"))
    world = World(tmp_path, traffic(shift=1.3, shift_day=change), rules=rules)
    seen = world.run(range(REFERENCE, change + 4))
    (alert,) = [alert for alert in world.alerts.history() if alert.rule == "data_drift"]
    assert "data drift in " in alert.reason
    assert f" decisions, since {isoformat(change * DAY)}" in alert.reason
    assert "against last week: " in alert.reason
    assert "against the healthy week to " in alert.reason
    diagnoses = [found for tick in seen[14:] for day in tick.days for found in day.diagnoses]
    assert len(diagnoses) == 4
    assert {found.since for found in diagnoses} == {change * DAY}
    # Another process that takes over finds the same beginning.
    other = Watch(
        "fraud", profile_of=world.profile_of, sketches=world.sketches, alerts=world.alerts, labelled=world.labelled
    )
    frame = world.traffic.day(change + 4)
    world.days[change + 4] = frame
    world.sketches.follow(frame, world.profile_of, position=(change + 5, 0))
    (day,) = other.tick((change + 5) * DAY).days
    assert day.diagnoses[0].since == change * DAY


def test_a_young_version_is_held_against_what_others_saw_last_year(tmp_path: Path, traffic: Any) -> None:
    change = REFERENCE + 5
    rules = WatchRules(baselines=("last year",))
    world = World(tmp_path, traffic(shift=1.3, shift_day=change), rules=rules)
    asked = []

    def logged(start: int, end: int) -> pl.DataFrame:
        asked.append((start, end))
        return world.traffic.day(change + 1).with_columns(model_version=pl.lit("fraud/0"))

    world.watch = Watch(
        "fraud",
        profile_of=world.profile_of,
        sketches=world.sketches,
        alerts=world.alerts,
        rules=rules,
        labelled=world.labelled,
        logged=logged,
    )
    world.run(range(REFERENCE, change + 4))
    (alert,) = [alert for alert in world.alerts.history() if alert.rule == "data_drift"]
    _, told, against = alert.reason.partition("against last year: ")
    assert told
    assert "amount" in alert.reason
    assert "amount" not in against
    # The rows are asked for only while a drift may become an alert, each day of them once.
    assert asked == [((day - 364) * DAY, (day - 363) * DAY) for day in range(change, change + len(asked))]


def test_a_blind_model_is_called_concept_drift(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(per_day=4_000))
    world.run(range(REFERENCE, REFERENCE + 3))
    seen = world.run(range(REFERENCE + 3, REFERENCE + 16), lambda frame: relabelled(frame, 0.8))
    names = {name for tick in seen for day in tick.days for found in day.diagnoses for name in found.names}
    assert "concept drift" in names
    (alert,) = [alert for alert in world.alerts.history() if alert.rule == "quality"]
    assert "; concept drift" in alert.reason
    assert " happened, " in alert.reason


def test_days_are_estimated_before_their_labels_and_realised_after(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(per_day=4_000))
    held_out = world.traffic.day(REFERENCE - 1)
    estimator = PerformanceEstimator.fit(held_out["probability"], held_out["label"])
    ledger = EstimateLedger(tmp_path / "estimates.sqlite")
    world.watch = Watch(
        "fraud",
        profile_of=world.profile_of,
        sketches=world.sketches,
        alerts=world.alerts,
        labelled=world.labelled,
        costs=Costs(),
        estimates=EstimateWatch(ledger, estimator_of=lambda version: estimator, costs=Costs()),
    )
    seen = world.run(range(REFERENCE, REFERENCE + 20))
    (first,) = seen[0].days
    ((version, estimates),) = first.estimated
    assert version == "fraud/1"
    assert {one.name for one in estimates} == set(METRICS)
    pairs = ledger.pairs("fraud/1", "roc_auc")
    assert len(pairs) == 20
    known = [pair for pair in pairs if pair.realised is not None]
    # Labels take a week, and a day is realised when its last ones are in.
    assert [pair.start // DAY for pair in known] == list(range(REFERENCE, REFERENCE + 13))
    assert all(pair.made_at == pair.end for pair in pairs)
    assert all(pair.as_of == pair.end + 7 * DAY for pair in known)
    assert sum(bool(pair.covered) for pair in known) >= 10
    (told,) = seen[8].days[0].realised
    assert {pair.estimated.name for pair in told[1]} == set(METRICS)
    # Judged again after a crash, or with rows that came late: what was first said stands.
    assert EstimateWatch(ledger, estimator_of=lambda version: estimator).estimate(
        "fraud/1", world.days[REFERENCE].head(100), REFERENCE * DAY, (REFERENCE + 1) * DAY, made_at=99 * DAY
    )
    assert ledger.pairs("fraud/1", "roc_auc")[0] == pairs[0]
    ledger.close()


def test_sets_that_hold_too_little_are_found(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(per_day=4_000))
    held_out = world.traffic.day(REFERENCE - 1)
    p = held_out["probability"].to_numpy()
    sets = ConformalSets.fit(np.column_stack([1 - p, p]), held_out["label"].to_numpy().astype(int), coverage=0.95)
    world.watch = Watch(
        "fraud",
        profile_of=world.profile_of,
        sketches=world.sketches,
        alerts=world.alerts,
        labelled=world.labelled,
        sets_of=lambda version: sets,
    )
    world.run(range(REFERENCE, REFERENCE + 9))
    assert "coverage" not in {alert.rule for alert in world.alerts.history()}

    def wrong(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(label=pl.when(pl.int_range(frame.height) % 5 == 0).then(1.0).otherwise("label"))

    world.run(range(REFERENCE + 9, REFERENCE + 22), wrong)
    assert "coverage" in {alert.rule for alert in world.alerts.history()}


def test_what_was_blocked_is_not_judged_by_its_labels(tmp_path: Path, traffic: Any) -> None:
    world = World(tmp_path, traffic(per_day=4_000))
    world.watch = Watch(
        "fraud",
        profile_of=world.profile_of,
        sketches=world.sketches,
        alerts=world.alerts,
        labelled=lambda start, end, as_of: hidden(world, start, end),
        costs=Costs(),
        hiding=("block",),
    )
    seen = world.run(range(REFERENCE, REFERENCE + 12))
    ((_, found),) = seen[-1].days[0].performance
    assert found.n_hidden > 0
    assert found.labelled.value == 1.0
    assert "quality" not in {alert.rule for alert in world.alerts.history()}


def hidden(world: World, start: int, end: int) -> pl.DataFrame:
    names = ("request_id", "event_time", "model_version", "probability", "action", "amount", "label")
    kept = [frame.select(names) for day, frame in world.days.items() if start <= day * DAY < end]
    rows = pl.concat([next(iter(world.days.values())).select(names).clear(), *kept])
    top = rows["probability"] > 0.3
    passes = top & (pl.Series(range(rows.height)) % 20 == 0)
    blocked = top & ~passes
    return rows.with_columns(
        action=pl.when(blocked).then(pl.lit("block")).otherwise(pl.lit("allow")),
        propensity=pl.when(blocked).then(0.95).when(passes).then(0.05).otherwise(1.0),
        label=pl.when(blocked).then(None).otherwise("label"),
    )


def test_a_slice_is_kept_with_the_alert_and_tells_no_alerts_apart(tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.sqlite")
    rule = WatchRules().data_quality
    known: dict[str, Any] = {"system": "fraud", "version": "fraud/1", "value": 1.0, "bound": 0.0, "reason": "nulls"}
    for day, where in ((1, "country = CH"), (2, "country = AT")):
        alerts.observe(rule, window_end=day * DAY, firing=True, now=day * DAY, slice=where, **known)
    (alert,) = alerts.open()
    assert alert.slice == "country = CH"
    (gauge,) = alerts.windows([rule], system="fraud")
    assert gauge.value == 2
    for day in (3, 4):
        alerts.observe(rule, window_end=day * DAY, firing=False, now=day * DAY, **known)
    assert alerts.open() == ()
    alerts.close()
