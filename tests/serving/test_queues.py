"""The queue of a slow model: who goes first, what is refused, and that everybody is answered."""

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.serving import queues
from vitok.serving.queues import BatchQueue, ServiceCurve, Task

LONG = 3600 * 10**9
FAST = 1_000.0  # nanoseconds a row, as the first guess


class Model:
    """Runs batches when it is let, and remembers them."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gone: list[str] = []
        self.let = threading.Semaphore(0)
        self.at_work = threading.Event()
        self.work: Callable[[int], None] = lambda rows: None

    def run(self, tasks: Sequence[Task]) -> None:
        self.batches.append([task.job for task in tasks])
        self.at_work.set()
        self.let.acquire()
        self.work(sum(task.rows for task in tasks))

    def expire(self, task: Task) -> None:
        self.gone.append(task.job)


def curve() -> ServiceCurve:
    return ServiceCurve(fixed_ns=0, row_ns=FAST)


def task(job: str, *, rows: int = 1, within: int = LONG, priority: int = 1, tenant: str = "") -> Task:
    now = time.perf_counter_ns()
    return Task(job, rows=rows, arrived=now, deadline=now + within, priority=priority, tenant=tenant)


def busy(queue: BatchQueue, model: Model) -> None:
    # A first batch keeps the thread, so that what follows waits and is ordered.
    assert queue.submit(task("first")) is None
    model.at_work.wait(5)


def finish(queue: BatchQueue, model: Model) -> list[list[str]]:
    model.let.release(1000)
    queue.close()
    return model.batches[1:]


def test_what_came_while_busy_is_one_batch() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, curve())
    busy(queue, model)
    for i in range(5):
        assert queue.submit(task(str(i))) is None
    assert queue.waiting_rows == 5
    assert finish(queue, model) == [["0", "1", "2", "3", "4"]]
    assert (queue.waiting_rows, queue.batches) == (0, 2)


def test_priorities_turns_of_tenants_and_deadlines() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, curve(), max_rows=4)
    busy(queue, model)
    for i in range(6):
        queue.submit(task(f"a{i}", tenant="a", within=LONG - i * 10**9))
    for i in range(2):
        queue.submit(task(f"b{i}", tenant="b"))
    queue.submit(task("urgent", priority=0, tenant="c"))
    queue.submit(task("idle", priority=2))
    assert finish(queue, model) == [["urgent", "a5", "b0", "a4"], ["b1", "a3", "a2", "a1"], ["a0", "idle"]]


def test_large_requests_get_their_turn() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, curve(), max_rows=4)
    busy(queue, model)
    for job, rows in (("a", 3), ("huge", 9), ("b", 1), ("c", 1)):
        queue.submit(task(job, rows=rows))
    assert finish(queue, model) == [["a"], ["huge"], ["b", "c"]]


def test_a_full_queue_and_one_that_is_too_slow_refuse_on_arrival() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, ServiceCurve(fixed_ns=0, row_ns=1e9), max_waiting=3)
    busy(queue, model)
    late = queue.submit(task("late", within=10**8))
    assert late is not None
    assert late.reason == "late"
    for i in range(3):
        assert queue.submit(task(str(i))) is None
    full = queue.submit(task("full"))
    assert full is not None
    assert full.reason == "full"
    assert full.retry_after == pytest.approx(3.0)
    assert queue.refused == 2
    finish(queue, model)
    closed = queue.submit(task("closed"))
    assert closed is not None
    assert closed.reason == "closed"


def test_what_is_like_one_that_was_refused_is_turned_away_unread_until_a_batch_begins_or_ends() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, ServiceCurve(fixed_ns=0, row_ns=1e9), max_waiting=2)
    late = task("idle", within=10**8)
    assert queue.turned_away("", late.deadline) is None
    busy(queue, model)
    refused = task("late", within=10**8)
    assert queue.turned_away("", refused.deadline) is None
    said = queue.submit(refused)
    assert said is not None
    assert queue.turned_away("", refused.deadline) == said
    assert queue.refused == 2
    # A millisecond later it is asked anew, and so are another tenant and whoever has more time.
    assert queue.turned_away("", refused.deadline + 10**6) is None
    assert queue.turned_away("other", refused.deadline) is None
    assert queue.submit(task("large", rows=2, within=10**8, tenant="large")) is not None
    assert queue.submit(task("first of all", priority=0, within=10**8, tenant="large")) is not None
    assert queue.turned_away("large", refused.deadline) is None
    for i in range(2):
        assert queue.submit(task(str(i))) is None
    full = task("full")
    said = queue.submit(full)
    assert said is not None
    assert said.reason == "full"
    assert queue.turned_away("", full.deadline) == said
    finish(queue, model)
    assert queue.turned_away("", full.deadline) is None
    assert model.batches[1:] == [["0", "1"]]


def test_a_queue_with_nothing_to_do_turns_nobody_away_unread() -> None:
    # It would never get to its probe.
    model = Model()
    queue = BatchQueue(model.run, model.expire, ServiceCurve(fixed_ns=1e12, row_ns=1e9))
    refused = task("late", within=10**8)
    assert queue.submit(refused) is not None
    assert queue.turned_away("", refused.deadline) is None
    finish(queue, model)


def test_one_request_that_is_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, curve(), max_rows=2, max_waiting=3)
    busy(queue, model)
    assert queue.submit(task("huge", rows=10)) is None
    assert finish(queue, model) == [["huge"]]


def test_an_urgent_request_is_not_held_to_what_waits_behind_it() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, ServiceCurve(fixed_ns=0, row_ns=1e6))
    busy(queue, model)
    for i in range(50):
        assert queue.submit(task(f"slow{i}", tenant="a")) is None
    assert queue.submit(task("high", priority=0, within=10 * 10**6)) is None
    assert queue.submit(task("other tenant", tenant="b", within=10 * 10**6)) is None
    assert queue.submit(task("own", tenant="a", within=10 * 10**6)) is None
    finish(queue, model)
    assert model.gone == [] or len(model.gone) <= 3


def test_what_waited_too_long_is_told_so() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, curve())
    busy(queue, model)
    assert queue.submit(task("short", within=5 * 10**6)) is None
    assert queue.submit(task("long")) is None
    until = time.perf_counter() + 0.02
    while time.perf_counter() < until:
        pass
    assert finish(queue, model) == [["long"]]
    assert (model.gone, queue.expired) == (["short"], 1)


def test_a_budget_bounds_the_batch() -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, ServiceCurve(fixed_ns=0, row_ns=1e6), budget=0.003)
    busy(queue, model)
    for i in range(7):
        queue.submit(task(str(i)))
    queue.curve.learn = lambda rows, ns: None  # type: ignore[method-assign]
    assert [len(batch) for batch in finish(queue, model)] == [3, 3, 1]


def test_a_delay_waits_for_company_and_no_longer() -> None:
    model = Model()
    model.let.release(1000)
    queue = BatchQueue(model.run, model.expire, curve(), max_rows=3, max_delay=5.0)
    started = time.perf_counter()
    for i in range(3):
        queue.submit(task(str(i)))
    queue.close()
    assert [job for batch in model.batches for job in batch] == ["0", "1", "2"]
    assert time.perf_counter() - started < 4


def test_bounds_are_checked() -> None:
    model = Model()
    for wrong in ({"max_rows": 0}, {"max_waiting": 0}, {"max_delay": -1.0}, {"max_delay": float("inf")}):
        with pytest.raises(InvalidInput):
            BatchQueue(model.run, model.expire, curve(), **wrong)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(0, 2), st.sampled_from("abc")),
        max_size=60,
    ),
    st.integers(1, 12),
)
def test_everybody_is_answered_once_and_no_batch_is_too_large(
    wanted: list[tuple[int, int, str]], max_rows: int
) -> None:
    model = Model()
    queue = BatchQueue(model.run, model.expire, curve(), max_rows=max_rows)
    busy(queue, model)
    for i, (rows, priority, tenant) in enumerate(wanted):
        assert queue.submit(task(str(i), rows=rows, priority=priority, tenant=tenant)) is None
    batches = finish(queue, model)
    assert sorted(int(job) for batch in batches for job in batch) == list(range(len(wanted)))
    for batch in batches:
        rows = [wanted[int(job)][0] for job in batch]
        assert sum(rows) <= max_rows or len(rows) == 1
    order = [wanted[int(job)][1] for batch in batches for job in batch]
    assert order == sorted(order)


@given(st.floats(0, 1e6), st.floats(10, 1e5), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_the_curve_learns_what_batches_cost(fixed: float, row: float, seed: int) -> None:
    # The oracle is the line the times were drawn from.
    rng = np.random.default_rng(seed)
    learned = ServiceCurve(fixed_ns=1e6, row_ns=1e6)
    for rows in rng.integers(1, 200, 400).tolist():
        learned.learn(rows, int((fixed + row * rows) * rng.uniform(0.95, 1.05)))
    for rows in (20, 100, 200):
        assert learned.expected_ns(rows) == pytest.approx(fixed + row * rows, rel=0.1)


def test_batches_of_one_size_move_the_level_only() -> None:
    learned = ServiceCurve(fixed_ns=100, row_ns=10)
    for _ in range(500):
        learned.learn(1, 5_000)
    assert learned.expected_ns(1) == pytest.approx(5_000, rel=0.01)
    assert learned.row_ns == 10
    assert learned.most_rows(4_000) == 0
    assert learned.most_rows(5_100) == pytest.approx(11, abs=1)
    assert ServiceCurve(fixed_ns=1, row_ns=0).most_rows(2) > 10**6


MS = 10**6


class Line:
    """A queue in a time of its own: requests at random, batches that take a + c * rows and some noise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fixed: float, row: float, noise: float = 0.05) -> None:
        self.now = 10**9
        self.fixed, self.row, self.noise = fixed, row, noise
        self.rng = np.random.default_rng(0)
        self.in_time = self.late = self.refused = self.gone = 0
        self.sizes: list[int] = []
        clock = SimpleNamespace(perf_counter_ns=lambda: self.now, perf_counter=lambda: self.now / 1e9)
        monkeypatch.setattr(queues, "time", clock)
        still = SimpleNamespace(Thread=lambda **_: SimpleNamespace(start=lambda: None), Condition=threading.Condition)
        monkeypatch.setattr(queues, "threading", still)
        first = ServiceCurve(fixed_ns=(fixed + row) * MS, row_ns=0.1 * (fixed + row) * MS)
        self.queue = BatchQueue(lambda tasks: None, lambda task: None, first)
        self.batch: list[Task] = []
        self.ends = 0

    def takes(self, rows: int) -> int:
        return round((self.fixed + self.row * rows) * MS * max(0.3, 1 + self.noise * self.rng.standard_normal()))

    def offer(self, within: float) -> bool:
        made = task("", within=0)
        made.arrived, made.deadline = self.now, self.now + round(within * MS)
        return self.queue.submit(made) is None

    def turn(self, until: int) -> None:
        """Does what is to be done before a moment, and goes there."""
        while True:
            if self.batch:
                if self.ends > until:
                    break
                self.now = self.ends
                self.in_time += sum(self.now <= done.deadline for done in self.batch)
                self.late += sum(self.now > done.deadline for done in self.batch)
                self.queue._end(self.batch)
                self.batch = []
            if not self.queue.waiting_rows:
                break
            self.batch, gone = self.queue._begin()
            self.gone += len(gone)
            if self.batch:
                self.sizes.append(len(self.batch))
                self.ends = self.now + self.takes(len(self.batch))
        self.now = until

    def run(self, rate: float, within: float, seconds: float) -> None:
        """Offers requests at random times, so many a millisecond."""
        end = self.now + round(seconds * 1e9)
        while self.now < end:
            self.turn(self.now + round(self.rng.exponential(MS / rate)))
            self.refused += not self.offer(within)


@pytest.mark.parametrize("times", [2, 4])
def test_with_more_load_than_can_be_done_batches_stay_full_and_in_time(
    monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    # The oracle is what full batches of (a + D) / 2 would do: 1 / c, less the share of the fixed part.
    fixed, row, within = 6.0, 0.3, 100.0
    line = Line(monkeypatch, fixed=fixed, row=row)
    line.run(times / row, within, 3.0)
    best = 3_000 / row * (1 - fixed / ((fixed + within) / 2))
    assert line.in_time > 0.9 * best
    assert line.late < 0.005 * line.in_time
    assert line.gone < 0.01 * line.in_time
    assert np.median(line.sizes) > 100


def test_below_what_can_be_done_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, fixed=6.0, row=0.3)
    line.run(0.5 / 0.3, 100.0, 2.0)
    assert (line.refused, line.late, line.gone) == (0, 0, 0)


def test_after_a_stall_the_queue_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, fixed=6.0, row=0.3)
    line.run(2 / 0.3, 100.0, 1.0)
    # The process was stopped: a batch took five seconds, and all that waited is late.
    line.ends += 5 * 10**9
    line.turn(line.now + 6 * 10**9)
    before = line.in_time
    line.run(2 / 0.3, 100.0, 2.0)
    assert line.in_time - before > 0.8 * 2_000 / 0.3 * (1 - 6 / 53)


def test_a_wrong_curve_is_found_out_by_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, fixed=1.0, row=0.1)
    line.queue.curve.fixed_ns = 500.0 * MS
    taken = [line.offer(100.0) for _ in range(64)]
    assert taken == [False] * 31 + [True] + [False] * 32
    for _ in range(400):
        line.turn(line.now + 20 * MS)
        line.offer(100.0)
    assert line.offer(100.0)
    assert line.queue.curve.expected_ns(1) < 10 * MS


def test_a_probe_is_not_made_of_what_is_late_already(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(monkeypatch, fixed=1.0, row=0.1)
    assert not any(line.offer(-1.0) for _ in range(100))


def test_one_batch_that_was_stopped_says_little() -> None:
    learned = ServiceCurve(fixed_ns=0, row_ns=1_000)
    for _ in range(100):
        learned.learn(10, 10_000)
    learned.learn(10, 10**12)
    assert learned.expected_ns(10) < 12_000
    assert learned.margin_ns < 40_000
