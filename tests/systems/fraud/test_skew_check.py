"""Skew between a version's profile and the log. Oracle: features of the log with planted faults."""

import time
from pathlib import Path

import numpy as np
import pytest

from vitok import decisions
from vitok.clock import DAY, EventClock
from vitok.monitoring import ReferenceProfile
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.features import CALENDAR, FEATURES
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.rehearsal import logged_values
from vitok.systems.fraud.releases import load
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService
from vitok.systems.fraud.skew_check import skew_check


@pytest.fixture
def logged(home: Path, world) -> tuple[Path, LoadedModel, int]:
    """Three days of decisions."""
    start = world.timeline.replay_start
    service = FraudService(home, clock=EventClock(), deadline=100.0)
    for hour in hours(world.transactions, world.labels, start=start, end=start + 3 * DAY):
        service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
        for body in hour.outcomes:
            service.learn(body)
    service.close()
    registry = Registry(home)
    model = load(registry, 1)
    registry.close()
    return home / "log" / "decisions", model, start


def profile_of(values: np.ndarray, model: LoadedModel) -> ReferenceProfile:
    _, probability = model.answer(values)
    return ReferenceProfile.fit(list(FEATURES.names), values, probability, start=0, end=1, ignored=CALENDAR)


def test_the_rows_of_the_log_themselves_are_no_skew_and_faults_are_named(logged: tuple[Path, LoadedModel, int]) -> None:
    folder, model, start = logged
    span = {"since": start, "until": start + 3 * DAY}
    values = logged_values(decisions.read(folder, **span))
    found = skew_check(folder, model, profile_of(values, model), **span)
    assert found.passed, found.reason
    assert found.reason == f"{len(values):,} logged rows look as those of its profile"

    leaked = values.copy()
    column = FEATURES.names.index("terminal_labels_risk_1d")
    leaked[:, column] = np.where(np.arange(len(values)) % 100 == 0, 0.8, 0.0)
    assert np.isnan(values[:, column]).mean() > 0.2
    found = skew_check(folder, model, profile_of(leaked, model), **span)
    assert not found.passed
    assert "terminal_labels_risk_1d is null in" in found.reason

    cents = values.copy()
    cents[:, FEATURES.names.index("customer_sum_7d")] *= 100
    found = skew_check(folder, model, profile_of(cents, model), **span)
    assert not found.passed
    assert "customer_sum_7d" in found.reason


def test_nothing_was_logged_then(logged: tuple[Path, LoadedModel, int]) -> None:
    folder, model, start = logged
    profile = profile_of(logged_values(decisions.read(folder)), model)
    found = skew_check(folder, model, profile, since=start - DAY, until=start)
    assert (found.passed, found.value) == (True, 0.0)
    assert "nothing was logged" in found.reason
