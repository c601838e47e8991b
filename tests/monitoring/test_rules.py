"""Rules: the same series, evaluated here and by promtool of Prometheus 2.42 or newer, minute by minute."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from vitok.clock import DAY, HOUR, MINUTE, SECOND
from vitok.errors import InvalidInput
from vitok.monitoring import Alerts, HourlyWatch, Sketches, WatchRules, usual_rules
from vitok.monitoring.rules import (
    LOOKBACK,
    WINDOWS,
    AlertRule,
    RuleState,
    Series,
    advance,
    canonical,
    duration_text,
    evaluate,
    step,
    to_prometheus,
)

PROMTOOL = os.environ.get("VITOK_PROMTOOL") or shutil.which("promtool")
MINUTES, LONG = 45, 100
LONGER = WatchRules(lengths=(DAY, 7 * DAY))


def rule(name: str = "r", **changes: Any) -> AlertRule:
    given: dict[str, Any] = {"severity": "warning", "playbook": "look at it", "metric": "m"}
    return AlertRule(name=name, **(given | changes))


RULES = (
    rule("plain", threshold=2.0),
    rule("for", threshold=2.0, for_us=3 * MINUTE, severity="critical"),
    rule("keep", comparison=">=", threshold=3.0, keep_firing_us=4 * MINUTE),
    rule("both", comparison="<", threshold=1.0, for_us=2 * MINUTE, keep_firing_us=2 * MINUTE),
    rule("latch", threshold=3.0, clear=1.0),
    rule("latch_low", comparison="<=", threshold=0.0, clear=2.0, for_us=MINUTE),
    rule("latch_all", comparison=">=", threshold=3.0, clear=1.0, for_us=2 * MINUTE, keep_firing_us=3 * MINUTE),
    rule("equal", comparison="==", threshold=2.0),
    rule("other", comparison="!=", threshold=2.0, for_us=90 * SECOND),
    rule("fraud", threshold=1.5, labels={"system": "fraud"}, severity="info"),
    rule("french", threshold=0.0, labels={"slice": 'country="FR"\\', "system": "fraud"}, keep_firing_us=30 * SECOND),
    rule("absent", absent=True, labels={"system": "shop"}, for_us=2 * MINUTE, keep_firing_us=MINUTE),
    rule("absent_all", absent=True, metric="n"),
    rule("never", threshold=1e300),
)
SUBJECTS: tuple[dict[str, str], ...] = (
    {"system": "fraud", "version": "fraud/1"},
    {"system": "fraud", "version": "fraud/1", "slice": 'country="FR"\\'},
    {"system": "fraud", "column": "amount"},
    {"system": "shop", "version": "shop/7"},
    {"other": "ünï"},
    {},
)


def world(seed: int) -> tuple[int, list[Series]]:
    """Makes series with gaps around the lookback, NaN, infinities, stale markers and resets to zero."""
    rng = np.random.default_rng(seed)
    every = int(rng.choice([15 * SECOND, 30 * SECOND, MINUTE, 90 * SECOND, 2 * MINUTE, LOOKBACK]))
    n = MINUTES * MINUTE // every + 1
    made = []
    for labels in SUBJECTS:
        if rng.random() < 0.25:
            continue
        course = np.cumsum(rng.choice([0.0, 1.0, -1.0], n, p=[0.7, 0.2, 0.1])) if seed % 2 else rng.lognormal(0, 1, n)
        course = np.abs(course) if seed % 3 else np.round(course)
        for at in np.flatnonzero(rng.random(n) < 0.05):
            course[at:] -= course[at]
        course[rng.random(n) < 0.04] = np.nan
        course[rng.random(n) < 0.02] = np.inf
        course[rng.random(n) < 0.02] = -np.inf
        stale = rng.random(n) < 0.05
        present = rng.random(n) < 0.9
        for at in np.flatnonzero(rng.random(n) < 0.06):
            present[at : at + int(rng.integers(1, 2 + 7 * MINUTE // every))] = False
        times = np.arange(n) * every
        made.append(
            Series(metric="m", labels=labels, times=times[present], values=course[present], stale=stale[present])
        )
    return every, made


def usual_world(seed: int) -> tuple[int, list[Series]]:
    """Makes series as the gauges of the usual rules are: rows of windows, ages, messages; some of them missing."""
    rng = np.random.default_rng(seed)
    every = int(rng.choice([30 * SECOND, MINUTE, 2 * MINUTE]))
    n = LONG * MINUTE // every + 1
    possible: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {
        (WINDOWS, (("rule", one.name), ("system", "fraud"), ("version", version))): [-3, -2, -1, 1, 2, 3]
        for one in usual_rules(LONGER)
        if not one.metric
        for version in ("all", "fraud/1")
    }
    if seed % 2:
        possible["vitok_watch_age_seconds", (("system", "fraud"),)] = [60, 129_600, 129_601, 300_000]
    possible |= {("vitok_notices", (("channel", "pager"), ("state", state))): [0, 1, 2] for state in ("sent", "dead")}
    made = []
    for (metric, labels), values in possible.items():
        # A gauge stays as it is until the next window is judged.
        changed = np.maximum.accumulate(np.where(rng.random(n) < 0.08, np.arange(n), 0))
        present = rng.random(n) < 0.95
        times, course = np.arange(n) * every, rng.choice(values, n)[changed]
        made.append(
            Series(
                metric=metric,
                labels=dict(labels),
                times=times[present],
                values=course[present],
                stale=(rng.random(n) < 0.02)[present],
            )
        )
    return every, made


def written(series: Series, every: int, minutes: int) -> str:
    """Writes a series in the notation of promtool."""
    assert series.stale is not None
    samples = dict(zip(series.times.tolist(), zip(series.values.tolist(), series.stale, strict=True), strict=True))
    told = []
    for time in range(0, minutes * MINUTE + 1, every):
        value, stale = samples.get(time, (None, False))
        if value is None:
            told.append("_")
        elif stale:
            told.append("stale")
        else:
            told.append({math.inf: "Inf", -math.inf: "-Inf"}.get(value, "NaN" if math.isnan(value) else repr(value)))
    return " ".join(told)


def selector(series: Series) -> str:
    pairs = ",".join(f"{name}={yaml_text(value)}" for name, value in series.labels.items())
    return f"{series.metric}{{{pairs}}}"


def yaml_text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def promtool(
    folder: Path,
    worlds: list[tuple[int, list[Series]]],
    rules: tuple[AlertRule, ...],
    lookback: int,
    minutes: int = MINUTES,
) -> str:
    """Asks promtool whether at each minute exactly those alerts fire that `evaluate` says; returns what it says."""
    times = [minute * MINUTE for minute in range(minutes + 1)]
    tests = []
    for every, series in worlds:
        checks = []
        for one in rules:
            for time, firing in zip(times, evaluate(one, series, times, lookback=lookback), strict=True):
                expected = [
                    {
                        "exp_labels": dict(found.labels),
                        "exp_annotations": {"summary": found.summary, "playbook": one.playbook},
                    }
                    for found in firing
                ]
                checks.append({"eval_time": duration_text(time), "alertname": one.name, "exp_alerts": expected})
        tests.append(
            {
                "interval": duration_text(every),
                "input_series": [{"series": selector(one), "values": written(one, every, minutes)} for one in series],
                "alert_rule_test": checks,
            }
        )
    (folder / "rules.yml").write_text(to_prometheus(rules))
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(content, allow_unicode=True, width=2**20))
    assert PROMTOOL is not None
    checked = subprocess.run([PROMTOOL, "check", "rules", "rules.yml"], cwd=folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    done = subprocess.run([PROMTOOL, "test", "rules", "tests.yml"], cwd=folder, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def lookback_of_promtool() -> int:
    assert PROMTOOL is not None
    found = subprocess.run([PROMTOOL, "--version"], capture_output=True, text=True, check=True)
    version = re.search(r"version (\d+)\.", found.stdout + found.stderr)
    assert version is not None
    return LOOKBACK if int(version[1]) < 3 else LOOKBACK - 1000


needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="no promtool on the path or in VITOK_PROMTOOL; it is in Debian's package prometheus, and needs no root:"
    " apt-get download prometheus && dpkg-deb -x prometheus_*.deb prom"
    " && export VITOK_PROMTOOL=$PWD/prom/usr/bin/promtool",
)


@needs_promtool
def test_fires_at_the_same_minutes_as_prometheus(tmp_path: Path) -> None:
    assert promtool(tmp_path, [world(seed) for seed in range(20)], RULES, lookback_of_promtool()) == ""


@needs_promtool
def test_promtool_would_notice_a_difference(tmp_path: Path) -> None:
    # The same series with a lookback that is too long for the gaps in them.
    assert "FAILED" in promtool(tmp_path, [world(seed) for seed in range(4)], RULES, 20 * MINUTE)


@needs_promtool
def test_the_usual_rules_fire_at_the_same_minutes_as_in_prometheus(tmp_path: Path) -> None:
    rules = usual_rules(LONGER)
    assert promtool(tmp_path, [usual_world(seed) for seed in range(4)], rules, lookback_of_promtool(), LONG) == ""


def test_every_usual_rule_fires_and_clears_in_these_worlds() -> None:
    times = range(0, LONG * MINUTE, MINUTE)
    worlds = [usual_world(seed)[1] for seed in range(4)]
    for one in usual_rules(LONGER):
        fired = [bool(firing) for series in worlds for firing in evaluate(one, series, times)]
        assert 0.02 < np.mean(fired) < 0.98, one.name


def outage(folder: Path, decisions: Callable[..., pl.DataFrame]) -> tuple[list[Series], list[bool]]:
    """Judges eight hours of which two were answered by rules; returns the gauge by minute, and whether it alerts."""
    sketches, alerts = Sketches(folder / "sketches.sqlite"), Alerts(folder / "alerts.sqlite")
    watch = HourlyWatch(
        "fraud",
        profile_of=lambda version: None,
        sketches=sketches,
        alerts=alerts,
        rules=WatchRules(hourly_absence=None),
    )
    values: dict[int, float] = {}
    is_open: list[bool] = [False] * 60
    for hour in range(8):
        given = {"route": "fallback", "version": "rules"} if hour in (2, 3) else {}
        frame = decisions(40, seed=hour, **given).with_columns(pl.col("event_time") + pl.duration(hours=hour))
        sketches.follow(frame, lambda version: None, position=(0, hour + 1))
        watch.tick((hour + 1) * HOUR)
        seen = [one for one in alerts.windows(usual_rules(), system="fraud") if one.labels["rule"] == "fallback_1h"]
        values |= {60 * (hour + 1) + minute: one.value for one in seen for minute in range(60)}
        is_open += [bool(alerts.open())] * 60
    sketches.close()
    alerts.close()
    labels = {"rule": "fallback_1h", "system": "fraud", "version": "all"}
    times, course = np.array(list(values)) * MINUTE, np.array(list(values.values()))
    return [Series(metric=WINDOWS, labels=labels, times=times, values=course, stale=course != course)], is_open


def test_an_outage_alerts_here_when_its_rule_does(tmp_path: Path, decisions: Callable[..., pl.DataFrame]) -> None:
    series, is_open = outage(tmp_path, decisions)
    (one,) = [one for one in usual_rules() if one.name == "fallback_1h"]
    fired = [bool(firing) for firing in evaluate(one, series, range(0, 9 * HOUR, MINUTE))]
    assert fired == is_open
    assert [minute for minute in range(1, 9 * 60) if fired[minute] != fired[minute - 1]] == [3 * 60, 6 * 60]


@needs_promtool
def test_an_outage_alerts_in_prometheus_when_it_does_here(
    tmp_path: Path, decisions: Callable[..., pl.DataFrame]
) -> None:
    series, _ = outage(tmp_path, decisions)
    rules = tuple(one for one in usual_rules() if one.name == "fallback_1h")
    assert promtool(tmp_path, [(MINUTE, series)], rules, lookback_of_promtool(), 9 * 60 - 1) == ""


def test_the_worlds_make_every_kind_of_rule_fire_and_clear() -> None:
    times = range(0, MINUTES * MINUTE, MINUTE)
    worlds = [world(seed)[1] for seed in range(8)]
    for one in RULES[:-1]:
        fired = [bool(firing) for series in worlds for firing in evaluate(one, series, times)]
        assert one.name == "absent_all" or 0.02 < np.mean(fired) < 0.98, one.name


def course(one: AlertRule, values: list[float | None]) -> str:
    """Evaluates once a minute: F fires, p is pending, - neither."""
    state: RuleState | None = None
    told = ""
    for minute, value in enumerate(values):
        state = step(one.condition, state, value, minute * MINUTE)
        told += "-" if state is None else "F" if state.firing else "p"
    return told


@pytest.mark.parametrize(
    ("changes", "values", "expected"),
    [
        ({"threshold": 1.0}, [0, 2, 1, 2, None, 2], "-F-F-F"),
        ({"threshold": 1.0, "for_us": 2 * MINUTE}, [2, 2, 2, 0, 2, 2, None, 2, 2, 2], "ppF-pp-ppF"),
        ({"threshold": 1.0, "keep_firing_us": 2 * MINUTE}, [2, 0, 0, 0, 2, 0, 2, 0, 0, 0], "FFF-FFFFF-"),
        ({"threshold": 3.0, "clear": 1.0}, [2, 4, 2, 2, 1, 2, 4, None], "-FFF--F-"),
        ({"threshold": 1.0}, [math.nan, math.inf, -math.inf], "-F-"),
        ({"comparison": "!=", "threshold": 1.0}, [math.nan, 1.0], "F-"),
    ],
)
def test_courses(changes: dict[str, Any], values: list[float | None], expected: str) -> None:
    assert course(rule(**changes), values) == expected


def test_a_sample_is_seen_for_five_minutes_and_a_stale_marker_ends_it() -> None:
    seen = Series(metric="m", labels={}, times=np.array([0, 20 * MINUTE]), values=np.array([1.0, 2.0]))
    assert [seen.at(at) for at in (-1, 0, LOOKBACK, LOOKBACK + 1)] == [None, 1.0, 1.0, None]
    marked = Series(metric="m", labels={}, times=seen.times, values=seen.values, stale=np.array([False, True]))
    assert [marked.at(at) for at in (LOOKBACK, 20 * MINUTE, 21 * MINUTE)] == [1.0, None, None]
    assert Series(metric="m", labels={}, times=np.array([], np.int64), values=np.array([])).at(0) is None


def test_each_series_is_an_alert_of_its_own_and_absence_is_one() -> None:
    fires = rule(threshold=1.0)
    found = advance(fires, {}, {canonical({"system": "a"}): 2.0, canonical({"system": "b", "x": ""}): 3.0}, 0)
    assert {labels: state.value for labels, state in found.items()} == {
        (("system", "a"),): 2.0,
        (("system", "b"),): 3.0,
    }
    gone = rule(absent=True, labels={"system": "a"})
    assert list(advance(gone, {}, {}, 0)) == [(("system", "a"),)]
    assert advance(gone, {}, {canonical({"system": "a"}): math.nan}, 0) == {}


def test_says_what_of_whom_how_large_and_since_when() -> None:
    one = rule("cost", threshold=0.25, labels={"system": "fraud"})
    seen = Series(
        metric="m",
        labels={"system": "fraud", "version": "fraud/2", "slice": "country=FR"},
        times=np.array([MINUTE]),
        values=np.array([0.31234]),
    )
    (firing,) = evaluate(one, [seen], [2 * MINUTE])[0]
    assert firing.summary == "cost of fraud fraud/2, slice country=FR: m is 0.3123, alarming from > 0.25"
    assert (firing.since, firing.fired_at, dict(firing.labels)["severity"]) == (2 * MINUTE, 2 * MINUTE, "warning")


def test_rules_about_judged_windows_become_hysteresis_over_their_gauge() -> None:
    judged = AlertRule(name="data_drift", severity="warning", playbook="look", windows=3, clear_after=2)
    series = 'vitok_alert_windows{rule="data_drift"}'
    assert judged.expression == (
        f"({series} >= 3) or ({series} >= -1 and ignoring (alertname, alertstate, severity)"
        ' ALERTS{alertname="data_drift",alertstate="firing"})'
    )
    (group,) = yaml.safe_load(to_prometheus([judged, rule("other", for_us=DAY)], interval=30 * SECOND))["groups"]
    assert group["interval"] == "30s"
    assert [one["alert"] for one in group["rules"]] == ["data_drift", "other"]
    assert (group["rules"][1]["for"], group["rules"][1]["labels"]) == ("1d", {"severity": "warning"})
    assert group["rules"][0]["annotations"]["playbook"] == "look"


def test_lengths_of_time_are_written_as_prometheus_reads_them() -> None:
    assert [duration_text(at) for at in (0, 1000, 90 * SECOND, 25 * HOUR, 14 * DAY)] == [
        "0s",
        "1ms",
        "1m30s",
        "1d1h",
        "14d",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"metric": "1m"},
        {"metric": ""} | {"labels": {"system": "fraud"}},
        {"labels": {"severity": "x"}},
        {"labels": {"__name__": "x"}},
        {"labels": {"system": ""}},
        {"labels": {"system": "{{ . }}"}},
        {"comparison": "=~"},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"threshold": 1.0, "clear": 2.0},
        {"threshold": 1.0, "clear": 0.0, "comparison": "<"},
        {"clear": 0.0, "comparison": "=="},
        {"clear": math.nan},
        {"for_us": -1},
        {"for_us": 1},
        {"keep_firing_us": 999},
        {"playbook": "see {{ $value }}"},
        {"severity": "loud"},
        {"windows": 0},
        {"windows": 1.5},
        {"clear_after": "3"},
    ],
)
def test_refuses_odd_rules(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        rule(**changes)


def test_refuses_odd_series_and_files() -> None:
    with pytest.raises(InvalidInput, match="ascend"):
        Series(metric="m", labels={}, times=np.array([1, 1]), values=np.zeros(2))
    with pytest.raises(InvalidInput, match="be 1, as the times"):
        Series(metric="m", labels={}, times=np.array([1]), values=np.zeros(2))
    with pytest.raises(InvalidInput, match="differ in their names"):
        to_prometheus([rule("a"), rule("a")])
    with pytest.raises(InvalidInput, match="up to five minutes"):
        to_prometheus([rule("a")], interval=6 * MINUTE)
