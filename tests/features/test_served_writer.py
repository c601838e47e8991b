"""What is served is counted beside the requests and kept by the hour; oracle: numpy over the vectors."""

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from vitok.clock import HOUR, MINUTE, SECOND, EventClock
from vitok.engines import KeyValueStore, LmdbStore, MemoryStore, open_store
from vitok.engines.key_value import Write
from vitok.errors import InvalidInput, StoreError
from vitok.features import Embedding, Entity, FeatureSet, Latest, Source
from vitok.features import served_writer as module
from vitok.features.served import ServedStatistics, load
from vitok.features.served_writer import ServedSet, ServedWriter
from vitok.features.vectors import FRESH, MISSING, STALE, Vectors
from vitok.stats import FrozenEdges

ITEM = Entity("item", "item")
LIMITS = Latest(name="limit", entity=ITEM, source=Source("limits"), columns=("amount",))
VECTOR = Embedding(name="vector", entity=ITEM, index="items", index_version="1", dimension=2)
FEATURES = FeatureSet(request=("asked",), views=(VECTOR, LIMITS))
NAMES = (*FEATURES.names, "limit.age_seconds")
START = 480_000 * HOUR


def vectors(n: int = 4, *, seed: int = 0, now: int = START) -> Vectors:
    rng = np.random.default_rng(seed)
    status = rng.choice([FRESH, STALE, MISSING], (n, 2)).astype(np.uint8)
    values = rng.normal(size=(n, 4))
    values[status[:, 1] != FRESH, 3] = math.nan
    times = now - rng.integers(1, 1000, (n, 2)) * SECOND
    times[status == MISSING] = -1
    return Vectors(
        names=FEATURES.names,
        values=values,
        event_times=times,
        status=status,
        source=np.zeros((n, 2), np.uint8),
        views=("vector", "limit"),
    )


def check(found: ServedStatistics, served: list[Vectors], start: int, end: int, *, asked: int = START) -> None:
    window = found.window(start, end)
    values = np.concatenate([item.values for item in served])
    ages = np.concatenate([(asked - item.event_times[:, 1]) / SECOND for item in served])
    missing = np.concatenate([item.status[:, 1] == MISSING for item in served])
    assert window.n == len(values)
    assert tuple(item.name for item in window.features) == NAMES
    for place, item in enumerate(window.features[:-1]):
        column = values[:, place]
        assert item.nulls == np.isnan(column).sum()
        assert item.mean == pytest.approx(np.nanmean(column))
        assert item.std == pytest.approx(np.nanstd(column, ddof=1))
    age = window.features[-1]
    assert age.nulls == missing.sum()
    assert age.mean == pytest.approx(ages[~missing].mean())


class Broken(MemoryStore):
    """A store that can be down."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False

    def commit(self, writes: object) -> None:
        if self.down:
            raise StoreError("the disk is full")
        super().commit(writes)  # type: ignore[arg-type]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    store = Broken()
    monkeypatch.setattr(module, "open_store", lambda _: store)
    return store


def only(store: KeyValueStore) -> ServedStatistics:
    (found,) = load(store)
    return found


def test_every_vector_is_counted_once(tmp_path: Path) -> None:
    clock = EventClock(START)
    served = [vectors(n, seed=n) for n in range(1, 400)]
    with ServedWriter(f"lmdb://{tmp_path}/served", clock=clock) as writer:
        one = writer.of("credit", FEATURES)

        def add(part: list[Vectors]) -> None:
            for item in part:
                one.add(item)

        threads = [threading.Thread(target=add, args=(served[first::4],)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    store = LmdbStore(tmp_path / "served")
    found = only(store)
    assert found.about == f"credit {FEATURES.version}"
    check(found, served, START, START + HOUR)
    store.close()
    assert (writer.n_failed, writer.last_error) == (0, "")


def test_ages_are_those_of_the_question() -> None:
    writer = ServedWriter("memory://served-ages", clock=EventClock(START))
    one = writer.of("credit", FEATURES)
    served = [vectors(3, seed=1), vectors(2, seed=2)]
    one.add(served[0], [START - MINUTE] * 3)
    one.add(served[1])
    one.drain()
    age = one.statistics.window(START, START + HOUR).feature("limit.age_seconds")
    known = [item.status[:, 1] != MISSING for item in served]
    ages = np.concatenate(
        [
            ((START - MINUTE - served[0].event_times[:, 1]) / SECOND)[known[0]],
            ((START - served[1].event_times[:, 1]) / SECOND)[known[1]],
        ]
    )
    assert age.mean == pytest.approx(ages.mean())
    one.add(vectors(0))
    one.drain()
    assert one.statistics.window(START, START + HOUR).n == 5


def test_edges_of_the_reference_make_histograms() -> None:
    edges = FrozenEdges.from_values(np.random.default_rng(0).normal(size=500), n_bins=8)
    writer = ServedWriter("memory://served-edges", clock=EventClock(START))
    one = writer.of("credit", FEATURES, edges={"limit_amount": edges})
    served = vectors(50)
    one.add(served)
    one.drain()
    window = one.statistics.window(START, START + HOUR)
    assert window.feature("limit_amount").counts.tolist() == edges.count(served.values[:, 3]).tolist()
    assert window.feature("asked").counts.sum() == 50
    assert len(window.feature("asked").counts) == 4


def test_hours_that_are_over_are_let_go_and_none_is_counted_twice(broken: Broken) -> None:
    clock = EventClock(START + 59 * MINUTE)
    writer = ServedWriter("memory://x", clock=clock, every="1h")
    one = writer.of("credit", FEATURES)
    first, late, second = vectors(5, seed=1), vectors(4, seed=2), vectors(3, seed=3)
    one.add(first)
    writer.turn()
    assert load(broken) == ()  # neither the time nor the hour is over
    clock.advance(START + HOUR)
    writer.turn()
    assert only(broken).window(START, START + HOUR).n == 5
    assert one.statistics.hours == ()
    # A request that was under way when the hour ended.
    one._waiting.append(module._Served(START + HOUR - 1, late, None))
    one.add(second)
    assert writer.save()
    one.drain()
    assert writer.save()
    assert only(broken).window(START, START + HOUR).n == 9
    assert only(broken).window(START + HOUR, START + 2 * HOUR).n == 3
    clock.advance(START + 2 * HOUR)
    writer.turn()
    writer.close()
    assert only(broken).window(START, START + 3 * HOUR).n == 12


def test_a_clock_that_goes_back_loses_nothing(broken: Broken) -> None:
    class Clock:
        moment = START + HOUR

        def now(self) -> int:
            return self.moment

    clock = Clock()
    writer = ServedWriter("memory://x", clock=clock)
    one = writer.of("credit", FEATURES)
    for hour in (1, 2, 1, 0, 1, 5):
        clock.moment = START + hour * HOUR
        one.add(vectors(2))
        writer.turn()
    writer.close()
    found = only(broken)
    assert {(hour - START) // HOUR: found.window(hour, hour + 1).n for hour in found.hours} == {0: 2, 1: 6, 2: 2, 5: 2}


def test_a_store_that_cannot_be_written_fails_no_request_and_is_told_once(broken: Broken) -> None:
    told: list[str] = []
    clock = EventClock(START)
    writer = ServedWriter("memory://x", clock=clock, every=1, tell=told.append)
    one = writer.of("credit", FEATURES)
    broken.down = True
    for hour in range(3):
        clock.advance(START + hour * HOUR)
        one.add(vectors(2))
        writer.turn()
    assert (writer.n_failed, writer.last_error) == (3, "the disk is full")
    assert told == ["what is served is counted but cannot be kept: the disk is full; trying again"]
    broken.down = False
    writer.turn()
    assert told[1:] == ["what is served is kept again"]
    assert [only(broken).window(START + h * HOUR, START + h * HOUR + 1).n for h in range(3)] == [2, 2, 2]
    broken.down = True
    one.add(vectors(1))
    writer.close()
    assert told[-1] == "the last counts of what was served are lost: the disk is full"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told: list[str] = []
    with ServedWriter(f"lmdb://{tmp_path}/file/served", clock=EventClock(START), tell=told.append) as writer:
        writer.of("credit", FEATURES).add(vectors())
    assert writer.n_failed == 1
    assert "could not be opened" in told[0]


def test_old_hours_are_deleted(broken: Broken) -> None:
    clock = EventClock(START)
    old = ServedStatistics(["gone"], about="other 1")
    old.add([[1.0]], START - 10 * HOUR)
    old.save(broken, writer="dead")
    writer = ServedWriter("memory://x", clock=clock, keep="2h")
    one = writer.of("credit", FEATURES)
    for hour in range(6):
        clock.advance(START + hour * HOUR)
        one.add(vectors(1))
        writer.turn()
    writer.close()
    hours = {hour for found in load(broken) for hour in found.hours}
    assert hours == {START + hour * HOUR for hour in (3, 4, 5)}
    with pytest.raises(InvalidInput, match="at least 2h"):
        ServedWriter("memory://x", keep="1h")


def test_too_much_that_waits_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 100)
    one: ServedSet = ServedWriter("memory://x", clock=EventClock(START)).of("credit", FEATURES)
    for _ in range(30):
        one.add(vectors(4))
    assert len(one._waiting) * 16 <= 116
    one.drain()
    assert one.statistics.window(START, START + HOUR).n == 120


def test_a_store_that_hangs_holds_up_no_request(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 10)
    entered, go_on = threading.Event(), threading.Event()

    def hang(writes: list[Write]) -> None:
        entered.set()
        assert go_on.wait(30)
        MemoryStore.commit(broken, writes)

    clock = EventClock(START)
    writer = ServedWriter("memory://x", clock=clock, every=1)
    one = writer.of("credit", FEATURES)
    one.add(vectors(2))
    monkeypatch.setattr(broken, "commit", hang)
    clock.advance(START + HOUR)
    thread = threading.Thread(target=writer.turn)
    thread.start()
    assert entered.wait(30)
    for _ in range(20):
        one.add(vectors(4))  # counts by itself, as too much waits
    go_on.set()
    thread.join()
    writer.close()
    assert only(broken).window(START, START + HOUR).n == 2
    assert only(broken).window(START + HOUR, START + 2 * HOUR).n == 80


WRITER = """
import sys
from tests.features.test_served_writer import FEATURES, HOUR, START, vectors
from vitok.clock import EventClock
from vitok.features.served_writer import ServedWriter
clock = EventClock(START)
writer = ServedWriter(f"lmdb://{sys.argv[1]}", clock=clock, every=1)
one = writer.of("credit", FEATURES)
for turn in range(60):
    clock.advance(START + turn // 20 * HOUR)
    one.add(vectors(2, seed=turn))
    writer.turn()
one.add(vectors(2, seed=99))  # of the hour that is not over and not written
print("ready", flush=True)
if sys.argv[2] == "dies":
    sys.stdin.read()
writer.close()
"""


def start(folder: Path, how: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", WRITER, str(folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_write_side_by_side_and_one_that_is_killed_keeps_its_hours(tmp_path: Path) -> None:
    processes = [start(tmp_path, how) for how in ("ends", "dies", "ends")]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    processes[1].send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, -signal.SIGKILL, 0]
    again = start(tmp_path, "ends")
    again.communicate(timeout=60)
    store = open_store(f"lmdb://{tmp_path}")
    found = only(store)
    assert [found.window(START + h * HOUR, START + h * HOUR + 1).n for h in range(3)] == [160, 160, 3 * 42 + 40]
    served = [vectors(2, seed=turn) for turn in range(20)] * 4
    check(found, served, START, START + HOUR, asked=START)
    store.close()  # type: ignore[attr-defined]
