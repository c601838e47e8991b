"""When a retraining is due."""

import dataclasses
from typing import Any

import pytest

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.loop import RetrainTrigger


@dataclasses.dataclass(frozen=True)
class Alert:
    rule: str
    first_seen: int
    reason: str = "moved"


TRIGGER = RetrainTrigger(
    schedule_us=30 * DAY,
    cool_down_us=5 * DAY,
    budget=2,
    min_matured_us=3 * DAY,
    label_delay_us=7 * DAY,
    rules={"drift", "quality"},
)


def due(now: int, *alerts: Alert, last: int | None = 0, n: int = 0, ready: bool = True, **changes: Any) -> str | None:
    reason = dataclasses.replace(TRIGGER, **changes).due(now, alerts, last, n, data_ready=ready)
    return None if reason is None else f"{reason.kind} {reason.rule}"


@pytest.mark.parametrize(("day", "expected"), [(29, None), (30, "alert drift"), (31, "alert drift")])
def test_an_alert_waits_for_its_labels(day: int, expected: str | None) -> None:
    assert due(day * DAY, Alert("drift", 20 * DAY), schedule_us=None) == expected


def test_the_oldest_alert_that_a_model_can_answer_is_the_reason() -> None:
    alerts = [Alert("quality", 12 * DAY), Alert("drift", 10 * DAY), Alert("latency", 1 * DAY)]
    assert due(25 * DAY, *alerts) == "alert drift"
    assert due(25 * DAY, Alert("latency", 1 * DAY)) is None
    assert due(25 * DAY, Alert("latency", 1 * DAY), rules=None) == "alert latency"


@pytest.mark.parametrize(("day", "last", "expected"), [(29, 0, None), (30, 0, "schedule None"), (99, None, None)])
def test_the_schedule_counts_from_the_last_training(day: int, last: int | None, expected: str | None) -> None:
    assert due(day * DAY, last=last) == expected


def test_cool_down_budget_and_data_hold_everything_back() -> None:
    alert = Alert("drift", 0)
    assert due(40 * DAY, alert, last=36 * DAY) is None
    assert due(41 * DAY, alert, last=36 * DAY) == "alert drift"
    assert due(40 * DAY, alert, n=2) is None
    assert due(40 * DAY, alert, ready=False) is None
    assert due(40 * DAY, alert, last=None) == "alert drift"
    assert due(40 * DAY, budget=0) is None


def test_a_reason_says_what_it_rests_on() -> None:
    reason = TRIGGER.due(31 * DAY, [Alert("drift", 20 * DAY, "PSI 0.4")], 0, 0, data_ready=True)
    assert str(reason) == "alert: drift since 1970-01-21T00:00:00Z, now with 4 d of labels: PSI 0.4"
    reason = TRIGGER.due(31 * DAY, [], 0, 0, data_ready=True)
    assert str(reason) == "schedule: 31 d since the last training, every 30 d"
    assert reason is not None
    assert reason.since == 30 * DAY


@pytest.mark.parametrize(
    "changes", [{"schedule_us": 0}, {"cool_down_us": -1}, {"budget": -1}, {"min_matured_us": -1}, {"rules": "drift"}]
)
def test_ranges_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        dataclasses.replace(TRIGGER, **changes)
