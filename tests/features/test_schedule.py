"""The schedule: which view is due when, and what the store says of the runs."""

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.features.latest_oracle import Failing, frame, history

from vitok.clock import HOUR, MINUTE, SECOND, EventClock, duration
from vitok.engines.memory import MemoryRows
from vitok.errors import StoreError
from vitok.features import Entity, FeatureSet, Latest, Source
from vitok.features.schedule import Materialiser, due

CUSTOMER = Entity("customer", "customer_id")
SOURCE = Source("accounts", ingest_time="known_at")
OTHER = Source("others", ingest_time="known_at")


def view(name: str, refresh: str, source: Source = SOURCE) -> Latest:
    return Latest(name=name, entity=CUSTOMER, source=source, columns=("limit",), refresh=refresh)


HOT, WARM = view("hot", "5m"), view("warm", "1h")
START = 200 * HOUR


def job_of(*views: Latest, **options: Any) -> tuple[Materialiser, Failing, EventClock]:
    store, clock = Failing(MemoryRows()), EventClock(START)
    sources = {"accounts": frame(history(0, 40)), **options}
    return Materialiser(FeatureSet(views=views), sources, store, clock=clock), store, clock


@given(
    refreshes=st.lists(st.sampled_from(["1m", "5m", "1h", "1d"]), max_size=6),
    ages=st.lists(st.integers(0, 3 * HOUR) | st.none(), min_size=6, max_size=6),
)
def test_due_is_exactly_what_waited_its_time_the_most_overdue_first(
    refreshes: list[str], ages: list[int | None]
) -> None:
    views = [view(f"v{place}", refresh) for place, refresh in enumerate(refreshes)]
    last = {f"v{place}": START - age for place, age in enumerate(ages[: len(views)]) if age is not None}
    found = due(views, last, START)
    waits = {item.name: duration(item.refresh) for item in views}
    assert {item.name for item in found} == {
        name for name, wait in waits.items() if name not in last or START - last[name] >= wait
    }
    overdue = [(START - last[item.name]) / waits[item.name] if item.name in last else 1e18 for item in found]
    assert overdue == sorted(overdue, reverse=True)


def test_each_view_runs_at_its_own_pace_and_the_store_remembers() -> None:
    job, store, clock = job_of(HOT, WARM)
    assert [outcome.view for outcome in job.run_due()] == ["hot", "warm"]
    clock.advance(START + 5 * MINUTE - 1)
    assert job.run_due() == ()
    clock.advance(START + 5 * MINUTE)
    again = Materialiser(job.features, job.sources, store, clock=clock)
    (outcome,) = again.run_due()
    assert (outcome.view, outcome.written, outcome.watermark) == ("hot", 0, START + 5 * MINUTE)
    assert outcome.newest == again.outcomes()["warm"].newest > 0
    assert again.outcomes()["hot"].lag(START + 6 * MINUTE) == MINUTE
    assert "0 rows written" in str(outcome)
    clock.advance(START + HOUR)
    assert {outcome.view for outcome in again.run_due()} == {"hot", "warm"}


def test_a_view_that_fails_holds_up_no_other_and_is_tried_again_soon() -> None:
    job, _, clock = job_of(HOT, view("broken", "1h", OTHER))
    outcomes = {outcome.view: outcome for outcome in job.run_due()}
    assert outcomes["hot"].failures == 0
    assert outcomes["broken"].failures == 1
    assert "hold 'others'" in outcomes["broken"].error
    assert "failed 1 times" in str(outcomes["broken"])
    assert outcomes["broken"].lag(START) is None
    clock.advance(START + 59 * SECOND)
    assert job.run_due() == ()
    clock.advance(START + MINUTE)
    (outcome,) = job.run_due()
    assert (outcome.view, outcome.failures) == ("broken", 2)
    job.sources = {**job.sources, "others": frame(history(1, 20))}
    clock.advance(START + 2 * MINUTE)
    (outcome,) = job.run_due()
    assert (outcome.failures, outcome.error, outcome.watermark) == (0, "", START + 2 * MINUTE)


def test_a_store_that_fails_in_the_middle_is_said_in_the_outcome() -> None:
    job, store, clock = job_of(HOT)
    store.fails_at_write = 2
    (outcome,) = job.run_due()
    assert outcome.error == "the store does not answer"
    assert job.outcomes()["hot"].failures == 1

    # Even where the store cannot be told of it.
    store.reads = 0
    clock.advance(START + MINUTE)
    real = store.write
    store.write = lambda _: (_ for _ in ()).throw(StoreError("full"))  # type: ignore[assignment, method-assign]
    (outcome,) = job.run_due()
    assert job.outcomes()["hot"].failures == 2
    store.write = real  # type: ignore[method-assign]
    clock.advance(START + 2 * MINUTE)
    (outcome,) = job.run_due()
    assert outcome.failures == 0
    assert job.outcomes()["hot"] == outcome

    store.down = True
    with pytest.raises(StoreError):
        job.run_due()


def test_another_version_of_a_view_begins_anew() -> None:
    job, store, clock = job_of(HOT)
    job.run_due()
    changed = Latest(name="hot", entity=CUSTOMER, source=SOURCE, columns=("limit",), refresh="5m", ttl="1d")
    other = Materialiser(FeatureSet(views=(changed,)), job.sources, store, clock=clock)
    (outcome,) = other.run_due()
    assert outcome.written > 0
    assert outcome.version == changed.version


def test_run_forever_ends_when_told_and_outlives_a_dead_store() -> None:
    job, store, clock = job_of(HOT)

    class Stop(threading.Event):
        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == 10.0
            self.waits += 1
            store.down = self.waits == 1
            clock.advance(START + self.waits * 5 * MINUTE)
            if self.waits == 4:
                self.set()
            return self.is_set()

    stop = Stop()
    job.run_forever(stop, every="10s")
    assert stop.waits == 4
    assert job.outcomes()["hot"].started == START + 15 * MINUTE
