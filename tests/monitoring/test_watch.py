"""Whole weeks of simulated traffic through sketches, rules and alerts: silence where nothing changes, and alarms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vitok.clock import DAY
from vitok.monitoring import Alerts, Sketches, Watch, Watched, WatchRules
from vitok.policies import Costs

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


@pytest.mark.parametrize(("per_day", "n_customers"), [(4_000, 1_000), (10_000, 5_000)])
def test_stationary_traffic_raises_nothing_in_forty_days(
    tmp_path: Path, traffic: Any, per_day: int, n_customers: int
) -> None:
    world = World(tmp_path, traffic(per_day=per_day, n_customers=n_customers))
    seen = world.run(range(REFERENCE, REFERENCE + 40))
    assert world.alerts.history() == ()
    # Silence because all was judged and found quiet, not because nothing was looked at.
    judged = {(finding.rule.name) for finding in seen[-1].days[0].findings}
    assert judged == {"absence", "fallback", "data_drift", "prediction_drift", "quality", "calibration"}
    firing = [finding for tick in seen for day in tick.days for finding in day.findings if finding.firing]
    assert len(firing) <= 1


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
