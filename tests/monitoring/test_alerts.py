"""Alerts: N in a row, once, with hysteresis; gaps, repetitions and order."""

import dataclasses
import math
import sqlite3
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vitok.clock import DAY, MINUTE
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring import Alert, AlertRule, Alerts
from vitok.monitoring.prometheus import Sample
from vitok.monitoring.rule_set import read_rules
from vitok.monitoring.rules import Series, canonical, evaluate

RULE = AlertRule(name="data_drift", severity="warning", playbook="look", windows=3, clear_after=2)


@pytest.fixture
def alerts(tmp_path: Path) -> Alerts:
    return Alerts(tmp_path / "alerts.sqlite")


def see(alerts: Alerts, day: int, firing: bool, rule: AlertRule = RULE, **more: Any) -> Alert | None:
    given: dict[str, Any] = {
        "system": "fraud",
        "version": "fraud/1",
        "value": float(day),
        "bound": 0.1,
        "now": 1_000 * DAY,
    } | more
    return alerts.observe(rule, window_end=day * DAY, firing=firing, reason=f"day {day}", **given)


def course(alerts: Alerts, pattern: str) -> str:
    """Observes one window per character: x firing, . quiet, blank missing; R raised and C cleared come back."""
    told = ""
    for day, sign in enumerate(pattern, start=1):
        changed = None if sign == " " else see(alerts, day, sign == "x")
        told += "-" if changed is None else "R" if changed.state == "open" else "C"
    return told


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("xx.xx.xx", "--------"),
        ("xxx", "--R"),
        ("xxxxxx", "--R---"),
        ("xxx.x.x..", "--R-----C"),
        ("xxx..xx", "--R-C--"),
        ("xxx..xxx", "--R-C--R"),
        ("xx xx", "-----"),
        ("xx xxx", "-----R"),
        ("xxx . .", "--R----"),
        ("xxx . ..", "--R----C"),
        ("   ", "---"),
    ],
)
def test_rows_of_windows(alerts: Alerts, pattern: str, expected: str) -> None:
    assert course(alerts, pattern) == expected


@settings(max_examples=30)
@given(st.text(alphabet="x. ", max_size=30))
def test_any_course_against_a_plain_model(tmp_path_factory: pytest.TempPathFactory, pattern: str) -> None:
    expected, is_open, row, last = "", False, 0, None
    for sign in pattern:
        row = 0 if sign == " " else row + 1 if sign == last else 1
        last = sign
        due = RULE.clear_after if is_open else RULE.windows
        changes = sign == ("." if is_open else "x") and row >= due
        expected += ("C" if is_open else "R") if changes else "-"
        if changes:
            is_open, row, last = not is_open, 0, None
    alerts = Alerts(tmp_path_factory.mktemp("alerts") / "alerts.sqlite")
    assert course(alerts, pattern) == expected
    assert len(alerts.open()) == is_open
    alerts.close()


def test_an_alert_says_what_and_what_next(alerts: Alerts) -> None:
    course(alerts, "xxx")
    (found,) = alerts.open()
    assert (found.first_seen, found.raised_at) == (DAY, 3 * DAY)
    assert (found.rule, found.severity, found.version, found.value, found.bound) == (
        "data_drift",
        "warning",
        "fraud/1",
        3.0,
        0.1,
    )
    assert str(found) == "1970-01-04T00:00:00Z warning data_drift of fraud/1 (fraud): day 3. Next: look"
    see(alerts, 4, False)
    cleared = see(alerts, 5, False)
    assert cleared is not None
    assert (cleared.id, cleared.state, cleared.cleared_at) == (found.id, "cleared", 5 * DAY)
    assert alerts.open() == ()
    assert alerts.history() == (cleared,)
    assert "Cleared 1970-01-06T00:00:00Z: 2 quiet windows in a row" in str(cleared)


def test_the_same_window_and_an_older_one_change_nothing(alerts: Alerts) -> None:
    for _ in range(5):
        assert see(alerts, 1, True) is None
        assert see(alerts, 2, True) is None
    assert see(alerts, 3, True) is not None
    assert see(alerts, 3, True) is None
    assert see(alerts, 2, False) is None
    assert len(alerts.observations(system="fraud")) == 3
    assert len(alerts.history()) == 1


def test_rules_systems_and_versions_are_counted_apart(alerts: Alerts) -> None:
    other = AlertRule(name="quality", severity="critical", playbook="roll back", windows=1)
    for day in (1, 2, 3):
        see(alerts, day, True, version="fraud/1" if day < 3 else "fraud/2")
    assert alerts.open() == ()
    assert see(alerts, 3, True, version="fraud/1") is not None
    assert see(alerts, 3, True, rule=other) is not None
    assert see(alerts, 3, True, rule=other, system="shop") is not None
    assert [(alert.rule, alert.system) for alert in alerts.open()] == [
        ("quality", "fraud"),
        ("quality", "shop"),
        ("data_drift", "fraud"),
    ]
    assert len(alerts.open(system="shop")) == len(alerts.history(system="shop")) == 1


def test_clearing_by_hand_starts_the_row_anew(alerts: Alerts) -> None:
    course(alerts, "xxxx")
    (found,) = alerts.open()
    cleared = alerts.clear(found.id, now=4 * DAY, reason="rolled back")
    assert alerts.clear(found.id, now=9 * DAY, reason="again") == cleared
    assert [see(alerts, day, True) is not None for day in (5, 6, 7)] == [False, False, True]
    assert len(alerts.history()) == 2
    with pytest.raises(NotFound, match="alert 99"):
        alerts.clear(99, now=0, reason="")


def test_two_openings_share_one_file(tmp_path: Path) -> None:
    one, other = Alerts(tmp_path / "a.sqlite"), Alerts(tmp_path / "a.sqlite")
    results = [see(one if day % 2 else other, day, True) for day in (1, 2, 3)]
    assert [result is not None for result in results] == [False, False, True]
    assert one.open() == other.open()
    one.finish("fraud", 5)
    other.finish("fraud", 3)
    assert (one.watched_until("fraud"), one.watched_until("shop")) == (5, None)


def test_a_number_may_be_missing(alerts: Alerts) -> None:
    rule = AlertRule(name="absence", severity="critical", playbook="check", windows=1, clear_after=1)
    found = see(alerts, 1, True, rule=rule, value=math.nan, bound=math.inf)
    assert found is not None
    assert math.isnan(found.value)
    assert found.bound == math.inf
    (seen,) = alerts.observations(system="fraud", rule="absence", version="fraud/1", since=0)
    assert math.isnan(seen.value)
    assert str(seen) == "1970-01-02T00:00:00Z absence of fraud/1: FIRING, day 1"
    assert alerts.observations(system="fraud", since=DAY) == ()


def test_refuses_windows_of_the_future_and_odd_rules(alerts: Alerts) -> None:
    with pytest.raises(InvalidInput, match="closed windows"):
        see(alerts, 2, True, now=DAY)
    for wrong in ({"windows": 0}, {"clear_after": 0}, {"every": 0}, {"playbook": ""}, {"severity": "loud"}):
        with pytest.raises(InvalidInput):
            AlertRule(**({"name": "x", "severity": "info", "playbook": "y"} | wrong))


@settings(max_examples=60)
@given(st.text(alphabet="x. !", max_size=30), st.integers(1, 4), st.integers(1, 4))
def test_the_gauge_of_windows_raises_and_clears_at_the_same_time(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, windows: int, clear_after: int
) -> None:
    rule = AlertRule(name="data_drift", severity="warning", playbook="look", windows=windows, clear_after=clear_after)
    alerts = Alerts(tmp_path_factory.mktemp("alerts") / "alerts.sqlite")
    values, is_open = [], []
    for day, sign in enumerate(pattern, start=1):
        if sign == "!":
            for alert in alerts.open():
                alerts.clear(alert.id, now=day * DAY, reason="by hand")
        elif sign != " ":
            see(alerts, day, sign == "x", rule)
        values += [sample.value for sample in alerts.windows([rule], system="fraud")] or [math.nan]
        is_open.append(bool(alerts.open()))
    times = np.arange(1, len(pattern) + 1) * DAY
    labels = {"rule": "data_drift", "system": "fraud", "version": "fraud/1"}
    gauge = Series(metric="vitok_alert_windows", labels=labels, times=times, values=np.array(values))
    assert [bool(firing) for firing in evaluate(rule, [gauge], times.tolist())] == is_open
    alerts.close()


GAUGES = (
    AlertRule(name="high", severity="critical", playbook="p", metric="m", threshold=2.0, clear=1.0),
    AlertRule(name="long", severity="warning", playbook="p", metric="m", for_us=2 * MINUTE, keep_firing_us=MINUTE),
    AlertRule(name="gone", severity="info", playbook="p", metric="m", labels={"system": "b"}, absent=True),
)


@pytest.mark.parametrize("seed", range(5))
def test_gauges_are_evaluated_as_series_are_over_restarts(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.arange(1, 40) * MINUTE
    subjects = ({"system": "a", "version": "a/1"}, {"system": "b", "slice": "country=FR"})
    series = [
        Series(metric="m", labels=labels, times=times, values=rng.integers(-1, 4, 39) * 1.0, stale=rng.random(39) < 0.2)
        for labels in subjects
    ]
    expected = [evaluate(rule, series, times.tolist()) for rule in GAUGES]
    for place, time in enumerate(times.tolist()):
        alerts = Alerts(tmp_path / "alerts.sqlite")
        seen = [(one, one.at(time)) for one in series]
        samples = [Sample(metric="m", labels=one.labels, value=value) for one, value in seen if value is not None]
        alerts.evaluate(GAUGES, samples, now=time)
        assert alerts.evaluate(GAUGES, [], now=time) == ()
        open_now = {(alert.rule, alert.system, alert.version, alert.slice) for alert in alerts.open()}
        wanted = set()
        for rule, found in zip(GAUGES, expected, strict=True):
            for labels in (dict(firing.labels) for firing in found[place]):
                subject = (labels["system"], labels.get("version", "all"), labels.get("slice", ""))
                wanted.add((rule.name, *subject))
        assert open_now == wanted
        alerts.close()


def test_a_gauge_alert_says_of_whom_and_how_large(alerts: Alerts) -> None:
    labels = {"system": "fraud", "slice": "country=FR", "column": "amount", "version": ""}
    (raised,) = alerts.evaluate(GAUGES[:1], [Sample(metric="m", labels=labels, value=3.5)], now=MINUTE)
    assert (raised.system, raised.version, raised.slice) == ("fraud", "all", "country=FR, column=amount")
    assert (raised.value, raised.bound, raised.first_seen) == (3.5, 2.0, MINUTE)
    assert raised.reason == "high of fraud, slice country=FR: m is 3.5, alarming from > 2"
    assert alerts.get(raised.id) == alerts.after(0)[0] == raised
    assert alerts.after(raised.id) == ()
    with pytest.raises(NotFound, match="alert 9"):
        alerts.get(9)
    cleared = alerts.clear(raised.id, now=2 * MINUTE, reason="by hand")
    assert cleared.fingerprint == raised.fingerprint
    # Cleared by hand while it goes on: it is raised anew.
    (again,) = alerts.evaluate(GAUGES[:1], [Sample(metric="m", labels=labels, value=3.5)], now=3 * MINUTE)
    assert (again.id, again.fingerprint) == (raised.id + 1, raised.fingerprint)
    assert canonical(labels) == (("column", "amount"), ("slice", "country=FR"), ("system", "fraud"))


def test_a_file_of_the_first_layout_keeps_its_alerts(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    old = sqlite3.connect(path)
    old.executescript(
        """
        CREATE TABLE observation (rule TEXT NOT NULL, system TEXT NOT NULL, version TEXT NOT NULL,
            window_end INTEGER NOT NULL, firing INTEGER NOT NULL, value REAL, bound REAL, reason TEXT NOT NULL,
            observed_at INTEGER NOT NULL, PRIMARY KEY (rule, system, version, window_end)) STRICT;
        CREATE TABLE alert (id INTEGER PRIMARY KEY, rule TEXT NOT NULL, severity TEXT NOT NULL, system TEXT NOT NULL,
            version TEXT NOT NULL, first_seen INTEGER NOT NULL, raised_at INTEGER NOT NULL, value REAL, bound REAL,
            reason TEXT NOT NULL, playbook TEXT NOT NULL, cleared_at INTEGER,
            cleared_reason TEXT NOT NULL DEFAULT '') STRICT;
        CREATE UNIQUE INDEX alert_open ON alert (rule, system, version) WHERE cleared_at IS NULL;
        CREATE TABLE progress (system TEXT PRIMARY KEY, until INTEGER NOT NULL) STRICT;
        INSERT INTO alert VALUES (1, 'data_drift', 'warning', 'fraud', 'fraud/1', 1, 2, 0.3, 0.1, 'moved', 'look',
            NULL, '');
        INSERT INTO observation VALUES ('data_drift', 'fraud', 'fraud/1', 86400000000, 1, 0.3, 0.1, 'moved', 0);
        INSERT INTO progress VALUES ('fraud', 86400000000);
        PRAGMA user_version = 1;
        """
    )
    old.close()
    alerts = Alerts(path)
    (kept,) = alerts.open()
    assert (kept.id, kept.rule, kept.slice, kept.value) == (1, "data_drift", "", 0.3)
    assert alerts.watched_until("fraud") == DAY
    assert see(alerts, 2, False) is None
    cleared = see(alerts, 3, False)
    assert cleared is not None
    assert cleared.state == "cleared"
    gauge = AlertRule(name="g", severity="critical", playbook="look", metric="m", threshold=1)
    assert len(alerts.evaluate([gauge], [Sample(metric="m", labels={"slice": "x"}, value=2)], now=DAY)) == 1
    alerts.close()
    Alerts(path).close()


GAUGE = AlertRule(name="g", severity="critical", playbook="look", metric="m", threshold=1)


def test_a_clock_that_was_ahead_stops_no_rule(alerts: Alerts) -> None:
    alerts.evaluate([GAUGE], [], now=900 * DAY)
    high = [Sample(metric="m", value=2)]
    assert alerts.evaluate([GAUGE], high, now=900 * DAY - MINUTE) == ()
    assert [one.state for one in alerts.evaluate([GAUGE], high, now=500 * DAY)] == ["open"]
    assert [one.state for one in alerts.evaluate([GAUGE], [], now=500 * DAY + MINUTE)] == ["cleared"]
    rule = dataclasses.replace(RULE, windows=1, clear_after=1)
    assert see(alerts, 900, False, rule, now=900 * DAY) is None
    assert see(alerts, 500, True, rule, now=500 * DAY) is not None
    assert see(alerts, 501, False, rule, now=501 * DAY) is not None


def test_series_that_are_one_subject_share_an_alert(alerts: Alerts) -> None:
    one, two = (Sample(metric="m", labels=labels, value=2) for labels in ({"version": "all"}, {}))
    assert len(alerts.evaluate([GAUGE], [one, two], now=1)) == 1
    assert alerts.evaluate([GAUGE], [two], now=2) == ()
    assert [alert.state for alert in alerts.evaluate([GAUGE], [], now=3)] == ["cleared"]
    # A rule that was about windows before, and has left an alert open.
    see(alerts, 1, True, AlertRule(name="g", severity="critical", playbook="look", windows=1), system="", version="all")
    assert len(alerts.open()) == 1
    assert alerts.evaluate([GAUGE], [two], now=4) == ()
    assert [alert.state for alert in alerts.evaluate([GAUGE], [], now=5)] == ["cleared"]


def test_two_rules_of_one_name_are_refused(alerts: Alerts, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="differ in their names"):
        alerts.evaluate([GAUGE, GAUGE], [], now=1)
    path = tmp_path / "rules.yml"
    rule = "- {name: a, severity: info, playbook: p, metric: m}\n"
    path.write_text(rule + rule)
    with pytest.raises(InvalidInput, match="differ in their names"):
        read_rules(path)
    for wrong in ("labels: [x]", "absent: 'no'"):
        path.write_text(f"- {{name: a, severity: info, playbook: p, metric: m, {wrong}}}\n")
        with pytest.raises(InvalidInput, match=wrong.partition(":")[0]):
            read_rules(path)
    path.write_text("- {name: a}\n")
    with pytest.raises(InvalidInput, match="have severity and playbook"):
        read_rules(path)
