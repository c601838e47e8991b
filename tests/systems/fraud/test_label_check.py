"""The gate's question about held labels, on a log that the service wrote."""

import json
import time
from pathlib import Path

import pytest

from vitok.clock import DAY, HOUR, EventClock, isoformat
from vitok.monitoring.label_guard import LabelGuard
from vitok.serving import HotRequest
from vitok.systems.fraud.label_check import HOLDS, label_check
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService


@pytest.fixture
def labelled(home: Path, world) -> tuple[Path, int, int]:
    """A day of decisions; each fifth of their outcomes is from a source called odd."""
    start = world.timeline.replay_start
    service = FraudService(home, clock=EventClock(), deadline=100.0)
    asked = []
    for hour in hours(world.transactions, world.labels.clear(), start=start, end=start + DAY):
        service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
        asked += [json.loads(body)["transaction_id"] for body in hour.bodies]
    items = [
        {
            "request_id": request,
            "value": float(place % 10 == 0),
            "event_time": isoformat(start + DAY + HOUR),
            "source": "odd" if place % 5 == 0 else "even",
        }
        for place, request in enumerate(asked)
    ]
    assert service.learn(json.dumps({"outcomes": items}).encode()).status == 200
    service.close()
    return home, start, sum(item["source"] == "odd" for item in items)


def test_a_version_that_learned_from_held_labels_is_refused(labelled: tuple[Path, int, int]) -> None:
    home, start, odd = labelled
    span = {"since": start, "until": start + DAY, "now": start + 2 * DAY}
    assert label_check(home, **span, left_out=False).passed
    guard = LabelGuard(home / HOLDS)
    assert label_check(home, **span, left_out=False).passed
    guard.hold("odd", since=start + DAY, why="its export is broken")
    found = label_check(home, **span, left_out=False)
    assert not found.passed
    assert found.value == odd
    assert f"{odd} of odd, 5" in found.reason
    assert label_check(home, **span, left_out=True).passed
    assert label_check(home, since=start - DAY, until=start, now=start + 2 * DAY, left_out=False).passed
    assert label_check(home, since=start, until=start + DAY, now=start + DAY, left_out=False).passed
    guard.release("odd", until=0, why="it was in order")
    assert label_check(home, **span, left_out=False).passed
    guard.close()


def test_a_home_without_a_log(tmp_path: Path) -> None:
    found = label_check(tmp_path, since=0, until=DAY, now=DAY, left_out=False)
    assert (found.passed, found.reason) == (True, "no label is held")
    assert not (tmp_path / HOLDS).exists()
