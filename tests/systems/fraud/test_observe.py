"""A live service is sketched and watched by itself; a log of the past is not judged by today's clock."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok import decisions, monitoring
from vitok.clock import DAY, HOUR, EventClock
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.observing import Observer
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService
from vitok.systems.fraud.sketching import SLICES, Profiles, hour_sealer, with_slices


def fill(home: Path, world: Any, days: int, *, after: int = 0) -> EventClock:
    clock = EventClock()
    service = FraudService(home, clock=clock)
    start = world.timeline.replay_start + after * DAY
    send(service, world, start, start + days * DAY)
    service.close()
    return clock


def send(service: FraudService, world: Any, start: int, end: int) -> None:
    for hour in hours(world.transactions, world.labels, start=start, end=end):
        for outcomes in hour.outcomes:
            service.learn(outcomes)
        if hour.bodies:
            service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])


def observer(home: Path) -> Observer:
    return Observer(home, Registry(home), label_delay=7 * DAY, costs=Costs())


def test_what_is_logged_is_sketched_once(home: Path, world: Any) -> None:
    clock = fill(home, world, 2)
    first = observer(home)
    frame = first.follow()
    assert frame is not None
    assert first.follow() is None
    assert first.is_live(clock.now())
    first.judge(clock.now())
    first.close()
    again = observer(home)
    assert again.follow() is None
    window = again.sketches.window("fraud/1", world.timeline.replay_start, world.timeline.replay_start + 2 * DAY)
    assert window is not None
    assert window.n == len(frame)
    again.close()


def test_a_log_of_the_past_is_not_judged_by_today(home: Path, world: Any) -> None:
    clock = fill(home, world, 2)
    watcher = observer(home)
    watcher.follow()
    assert not watcher.is_live(clock.now() + 3000 * DAY)
    watcher.close()


def same(one: monitoring.Sketches, other: monitoring.Sketches) -> None:
    assert one.hours() == other.hours()
    start, end = one.hours()[0], one.hours()[-1] + HOUR
    versions = one.versions(start, end)
    assert versions == other.versions(start, end)
    for version in versions:
        first, second = one.series(version, start, end), other.series(version, start, end)
        assert first is not None
        assert second is not None
        assert first.digest == second.digest
        np.testing.assert_array_equal(first.n, second.n)
        np.testing.assert_array_equal(first.counts, second.counts)
        for mine, theirs in zip(first.numbers, second.numbers, strict=True):
            left, right = json.loads(mine), json.loads(theirs)
            assert left.pop("probability") == pytest.approx(right.pop("probability"), rel=1e-12)
            assert left == right
        for hour in one.hours(version):
            for left, right in zip(
                one.slices(version, hour, hour + HOUR), other.slices(version, hour, hour + HOUR), strict=True
            ):
                assert (left.column, left.value, left.n) == (right.column, right.value, right.n)
                np.testing.assert_array_equal(left.counts, right.counts)


def by_rows(home: Path, folder: Path) -> monitoring.Sketches:
    """Counts all rows of the log at once: what any way of watching must come to."""
    profiles = Profiles(Registry(home))
    sketches = monitoring.Sketches(folder / "by_rows.sqlite")
    sketches.follow(with_slices(decisions.read(home / "log" / "decisions")), profiles.profile)
    return sketches


def test_counts_of_the_seal_are_those_of_the_rows(home: Path, world: Any, tmp_path: Path) -> None:
    fill(home, world, 1)
    fill(home, world, 1, after=1)
    sealed = list(decisions.sidecars(home / "log" / "decisions", "hours"))
    assert len(sealed) == 2
    watcher = observer(home)
    reads = []
    watcher.follow = lambda: reads.append(1)  # type: ignore[method-assign]
    n = watcher.catch_up()
    assert n == sum(one.rows for one in sealed)
    assert watcher.catch_up() == 0
    assert reads == []
    expected = by_rows(home, tmp_path)
    same(watcher.sketches, expected)
    assert {one.column for one in expected.slices("fraud/1", *span(expected))} == set(SLICES)
    watcher.close()


def span(sketches: monitoring.Sketches) -> tuple[int, int]:
    return sketches.hours()[0], sketches.hours()[-1] + HOUR


def test_a_segment_begun_by_rows_is_ended_by_rows_and_the_next_is_absorbed(
    home: Path, world: Any, tmp_path: Path
) -> None:
    clock = EventClock()
    service = FraudService(home, clock=clock)
    send(service, world, world.timeline.replay_start, world.timeline.replay_start + 6 * HOUR)
    watcher = observer(home)
    assert watcher.catch_up() > 0
    send(service, world, world.timeline.replay_start + 6 * HOUR, world.timeline.replay_start + 12 * HOUR)
    service.close()
    fill(home, world, 1, after=1)
    service = FraudService(home, clock=clock)
    send(service, world, world.timeline.replay_start + 2 * DAY, world.timeline.replay_start + 2 * DAY + 6 * HOUR)
    watcher.catch_up()
    service.close()
    again = observer(home)
    again.catch_up()
    same(again.sketches, by_rows(home, tmp_path))
    again.close()
    watcher.close()


def test_a_segment_without_counts_is_read(home: Path, world: Any, tmp_path: Path) -> None:
    for day in range(3):
        fill(home, world, 1, after=day)
    second = sorted((home / "log" / "decisions").rglob("*.hours.side"))[1]
    second.unlink()
    watcher = observer(home)
    watcher.catch_up()
    same(watcher.sketches, by_rows(home, tmp_path))
    watcher.close()


def test_a_merge_under_an_observer_counts_no_row_twice(home: Path, world: Any, tmp_path: Path) -> None:
    clock, start = EventClock(), world.timeline.replay_start

    def serve(first: int, last: int) -> None:
        service = FraudService(home, clock=clock)
        send(service, world, start + first * HOUR, start + last * HOUR)
        service.close()

    serve(0, 5)
    watcher = observer(home)
    assert watcher.catch_up() > 0
    service = FraudService(home, clock=clock)
    send(service, world, start + 5 * HOUR, start + 9 * HOUR)
    assert watcher.catch_up() > 0
    watcher.close()
    shutil.copytree(home / "monitoring", tmp_path / "half")
    watcher = observer(home)
    assert watcher.catch_up() == 0
    send(service, world, start + 9 * HOUR, start + 13 * HOUR)
    service.close()
    serve(13, 18)
    expected = by_rows(home, tmp_path)
    done = decisions.merge(home / "log" / "decisions", now=start + 5 * DAY, on_seal=hour_sealer(Registry(home)))
    assert (done.segments_before, done.segments_after) == (3, 1)
    # One that goes on, one that is opened anew at the same place, and one that begins at the first row.
    watcher.catch_up()
    same(watcher.sketches, expected)
    watcher.close()
    for left in (tmp_path / "half", None):
        shutil.rmtree(home / "monitoring")
        if left is not None:
            shutil.copytree(left, home / "monitoring")
        watcher = observer(home)
        assert (watcher.sketches.position() is None) == (left is None)
        watcher.catch_up()
        same(watcher.sketches, expected)
        watcher.close()


def test_what_cannot_be_counted_at_the_seal_is_left_to_the_reader(home: Path, world: Any, tmp_path: Path) -> None:
    rows = pl.DataFrame({"event_time": [5], "model_version": ["fraud/99"]}).to_arrow()
    assert hour_sealer(Registry(home))(rows, "segment-00000001") == {}
