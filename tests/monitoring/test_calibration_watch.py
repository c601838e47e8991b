"""Oracle: simulation, of a calibrated model looked at every day and of one that drifts."""

import numpy as np
import pytest

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.monitoring.calibration_watch import watch_calibration
from vitok.stats import calibration_error, roc_auc


def test_many_looks_raise_no_more_false_alarms_than_promised() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(6_000) * (30 * DAY // 6_000)
    alarms = 0
    for _ in range(60):
        p = rng.beta(1, 9, 6_000)
        alarms += watch_calibration(time, p, rng.random(6_000) < p, false_alarm=0.1).alarm is not None
    assert alarms <= 10


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_drift_of_the_level_is_found_in_both_directions(factor: float) -> None:
    rng = np.random.default_rng(1)
    time = np.arange(30_000) * (30 * DAY // 30_000)
    p = rng.beta(1, 9, 30_000)
    now = np.where(time < 15 * DAY, p, np.clip(factor * p, 0, 1))
    found = watch_calibration(time, p, rng.random(30_000) < now)
    assert found.alarm is not None
    assert 15 <= found.alarm <= 20
    assert len(found.windows) == 30
    assert (found.windows[-1].gap.value > 0) == (factor > 1)
    assert "not calibrated" in str(found)


def test_a_window_shows_discrimination_beside_calibration() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(1, 3, 2_000)
    y = rng.random(2_000) < p
    found = watch_calibration(np.full(2_000, 3 * DAY + 5), p, y)
    [window] = found.windows
    assert (window.start, window.end) == (3 * DAY, 4 * DAY)
    assert window.error == calibration_error(y, p)
    assert window.discrimination == roc_auc(y, p)
    assert window.log_evidence == 0.0


def test_nothing_certainties_and_nonsense() -> None:
    empty = watch_calibration(np.zeros(0, dtype=np.int64), [], [])
    assert (empty.windows, empty.alarm, str(empty)) == ((), None, "no windows")
    rng = np.random.default_rng(3)
    p = np.concatenate((rng.random(500), np.zeros(100)))
    y = np.concatenate((rng.random(500) < p[:500], np.ones(100)))
    time = np.concatenate((np.zeros(500, dtype=np.int64), np.full(100, DAY)))
    assert watch_calibration(time, p, y).alarm == 1
    with pytest.raises(InvalidInput, match="event_time"):
        watch_calibration([0.5], [0.5], [1])
    with pytest.raises(InvalidInput, match="window"):
        watch_calibration([0], [0.5], [1], window=0)
