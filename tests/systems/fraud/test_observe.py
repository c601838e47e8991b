"""A live service is sketched and watched by itself; a log of the past is not judged by today's clock."""

import threading
import time
from pathlib import Path

from vitok.clock import DAY, EventClock
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.operations import Observer, observe
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService


def fill(home: Path, world, days: int) -> EventClock:
    clock = EventClock()
    service = FraudService(home, clock=clock)
    start = world.timeline.replay_start
    for hour in hours(world.transactions, world.labels, start=start, end=start + days * DAY):
        for outcomes in hour.outcomes:
            service.learn(outcomes)
        if hour.bodies:
            service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
    service.close()
    return clock


def observer(home: Path) -> Observer:
    return Observer(home, Registry(home), label_delay=7 * DAY, costs=Costs())


def test_what_is_logged_is_sketched_once(home: Path, world) -> None:
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


def test_a_log_of_the_past_is_not_judged_by_today(home: Path, world) -> None:
    clock = fill(home, world, 2)
    watcher = observer(home)
    watcher.follow()
    assert not watcher.is_live(clock.now() + 3000 * DAY)
    watcher.close()


def test_the_thread_of_a_live_service_sketches_and_ends(home: Path, world) -> None:
    clock = fill(home, world, 2)
    rounds: list[int] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rounds.append(1)
            return len(rounds) > 2

    observe(home, clock=clock, label_delay=7 * DAY, stop=Stop())
    watcher = observer(home)
    assert watcher.sketches.hours()
    assert watcher.alerts.open() == ()
    watcher.close()
