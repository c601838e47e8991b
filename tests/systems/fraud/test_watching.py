"""What the fraud system's watch is given, and that a day is estimated before its labels and told of after."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vitok.clock import DAY, EventClock
from vitok.monitoring import AlertRule, Baseline
from vitok.monitoring.estimate_watch import METRICS
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.observing import Observer, watch_rules
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService
from vitok.systems.fraud.sketching import SLICES, VIEWS, Profiles, with_slices


def test_each_windowed_feature_comes_from_one_view() -> None:
    names = [name for view in VIEWS.values() for name in view]
    assert len(set(names)) == len(names)
    assert set(names) <= set(FEATURES.names)


def test_a_version_carries_what_watching_it_needs(home: Path) -> None:
    registry = Registry(home)
    profiles = Profiles(registry)
    found = profiles.of("fraud/1")
    assert found.profile is not None
    assert tuple(found.profile.slices) == SLICES
    # Slices split the reference whole.
    assert found.weights is not None
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert set(found.weights) == set(FEATURES.names)
    assert found.estimator is not None
    assert found.sets is not None
    assert found.sets.coverage == 0.95
    assert found.profile.baseline_of("fraud_rate") is not None
    assert found.profile.joint is not None
    assert profiles.of("fraud/1") is found
    assert profiles.of("rules").profile is None
    registry.close()


def test_values_between_bands_and_nulls_have_their_slice() -> None:
    rows = pl.DataFrame(
        {
            "f_amount": [2.99, 3.0, 10_000.0, None, float("nan")],
            "f_is_night": [0.0, 1.0, None, 0.0, 0.0],
            "f_customer_count_30d": [0.0, 1.0, 50.0, None, 9.0],
            "f_terminal_labels_risk_30d": [None, 0.0, 0.2, float("nan"), 0.0],
        }
    )
    found = with_slices(rows).select(SLICES).to_dict(as_series=False)
    assert found["amount_band"] == ["under 3", "3 to 10", "10,000 and more", None, None]
    assert found["time_of_day"] == ["day", "night", "day", "day", "day"]
    assert found["customer_in_30d"] == ["none", "1 to 10", "50 and more", "none", "1 to 10"]
    assert found["terminal_labels"] == ["none known", "no fraud", "fraud", "none known", "no fraud"]
    # Rows of another feature set get what can be made of them.
    assert with_slices(rows.select("f_amount")).columns == ["f_amount", "amount_band"]


def test_a_drifted_day_is_told_of_again_when_its_labels_are_in(home: Path, world: Any) -> None:
    start = world.timeline.replay_start
    service = FraudService(home, clock=EventClock())
    for hour in hours(world.transactions, world.labels, start=start, end=start + 9 * DAY):
        for outcomes in hour.outcomes:
            service.learn(outcomes)
        if hour.bodies:
            service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
    service.close()
    rules = dataclasses.replace(watch_rules(7 * DAY), min_n=200)
    watcher = Observer(home, Registry(home), label_delay=7 * DAY, costs=Costs(), rules=rules)
    told: list[tuple[int, str]] = []
    watcher.tell = lambda moment, text: told.append((moment, text))
    watcher.catch_up()
    first = start + DAY
    raised = watcher.alerts.observe(
        AlertRule(name="data_drift_7d", severity="warning", playbook="look", windows=1, clear_after=99),
        system="fraud",
        version="fraud/1",
        window_end=first,
        firing=True,
        value=1.0,
        bound=0.1,
        reason="amounts moved",
        now=first,
    )
    assert raised is not None
    watcher.judge(first)
    before = watcher.estimates.pairs("fraud/1", "average_precision")
    assert [(pair.end, pair.realised) for pair in before] == [(first, None)]
    watched = watcher.judge(start + 9 * DAY)
    assert [day.end for day in watched.days] == [start + day * DAY for day in range(2, 10)]
    pairs = {metric: watcher.estimates.pairs("fraud/1", metric) for metric in METRICS}
    assert {len(found) for found in pairs.values()} == {9}
    # What was estimated first stands, and two of the days have their labels by now.
    assert pairs["average_precision"][0].estimated == before[0].estimated
    assert [pair.realised is not None for pair in pairs["cost"]] == [True] * 2 + [False] * 7
    ((moment, text),) = told
    assert moment == start + 8 * DAY
    assert text.startswith("labels of the day that raised data_drift_7d on fraud/1 are in: average precision ")
    assert " was estimated (" in text
    # The bins of a version that began later are filled from what this one decided.
    profile = watcher.profile("fraud/1")
    assert profile is not None
    assert watch_rules(7 * DAY).baselines == ("healthy", "last week", "last year")
    logged = watcher.logged(start + DAY, start + 2 * DAY)
    assert Baseline.of_rows(profile, logged, start + DAY, start + 2 * DAY, name="last week").n == logged.height > 0
    assert watcher.logged(start - DAY, start).is_empty()
    # Blocked payments have outcomes in these data; none of them is used.
    performances = [found for day in watched.days for _, found in day.performance]
    assert performances
    assert all(found.n_labelled + found.n_hidden <= found.n_decisions for found in performances)
    watcher.close()
