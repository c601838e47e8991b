"""Models that are too slow for the event loop: a thread with a queue, and batches of whatever came while it was busy.

Nothing waits for company unless it is told to: the next batch is what has come meanwhile, so that batches grow with
the load by themselves. What cannot be answered before its deadline is refused on arrival, not after it has waited.
"""

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitok.errors import InvalidInput

_FORGET = 0.98
_SECOND = 1_000_000_000
_LONG = 64


class ServiceCurve:
    """How long a batch takes by its number of rows, a + c * rows, learned from the batches that were run.

    Least squares with weights that halve every 34 batches, so that the curve follows a machine that gets slower.

    Args:
        fixed_ns: The first guess of a, in nanoseconds.
        row_ns: The first guess of c, in nanoseconds a row.

    Example:
        >>> curve = ServiceCurve(fixed_ns=0, row_ns=1_000_000)
        >>> for rows in (1, 8, 64, 8, 1, 32) * 50:
        ...     curve.learn(rows, 60_000 + 11_000 * rows)
        >>> round(curve.expected_ns(10) / 1000)
        170
    """

    def __init__(self, *, fixed_ns: float, row_ns: float) -> None:
        self.fixed_ns = fixed_ns
        self.row_ns = row_ns
        self._sums = [0.0] * 5  # of weights, rows, rows squared, times, rows times times

    def learn(self, rows: int, ns: int) -> None:
        """Takes in how long a batch took."""
        w, r, rr, t, rt = (value * _FORGET for value in self._sums)
        w, r, rr, t, rt = w + 1, r + rows, rr + rows * rows, t + ns, rt + rows * ns
        self._sums = [w, r, rr, t, rt]
        spread = w * rr - r * r
        # Batches of one size say nothing about the slope: then the guess of it stands, and the level follows.
        if spread > 1e-3 * rr * w:
            self.row_ns = max((w * rt - r * t) / spread, 0.0)
        self.fixed_ns = max((t - self.row_ns * r) / w, 0.0)
        if self.fixed_ns == 0.0:
            self.row_ns = rt / rr

    def expected_ns(self, rows: int) -> float:
        """Returns how long a batch of so many rows takes, in nanoseconds."""
        return self.fixed_ns + self.row_ns * rows

    def most_rows(self, ns: float) -> int:
        """Returns how many rows can be done within a time; 0 where not even one can."""
        if self.expected_ns(1) > ns:
            return 0
        return int((ns - self.fixed_ns) / self.row_ns) if self.row_ns else 1 << 30


class Task:
    """A request that waits for its batch.

    Attributes:
        job: What is to be done.
        rows: How many rows it has.
        arrived: When it came, in nanoseconds of `time.perf_counter_ns`.
        deadline: Until when its answer is of use, on the same clock.
        priority: 0 goes before 1, and so on.
        tenant: Whose it is; tenants take turns.
        waited_us: How long it waited for its batch; known once that runs.
    """

    __slots__ = ("arrived", "deadline", "job", "priority", "rows", "tenant", "waited_us")

    def __init__(
        self, job: Any, *, rows: int, arrived: int, deadline: int, priority: int = 1, tenant: str = ""
    ) -> None:
        self.job = job
        self.rows = rows
        self.arrived = arrived
        self.deadline = deadline
        self.priority = priority
        self.tenant = tenant
        self.waited_us = 0


@dataclass(frozen=True)
class Refusal:
    """Why a request does not get into the queue.

    Attributes:
        reason: `"full"`: the queue is as long as it may be. `"late"`: its turn would come after its deadline.
            `"closed"`: the service shuts down.
        retry_after: Seconds after which it may be worth another try.
    """

    reason: str
    retry_after: float


class _Line:
    # What one tenant has waiting at one priority: a heap of (deadline, number, task), and how many rows that is.
    __slots__ = ("heap", "rows")

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Task]] = []
        self.rows = 0

    def rows_until(self, deadline: int) -> int:
        # Of a long line the whole counts: looking through it would cost more than it tells.
        if len(self.heap) > _LONG:
            return self.rows
        return sum(task.rows for until, _, task in self.heap if until <= deadline)


class BatchQueue:
    """A queue before one model, with a thread that runs it.

    Of what waits, the highest priority goes first; within it tenants take turns, so that one who sends much does not
    hold up the others; within a tenant the earliest deadline goes first. A batch is as large as `max_rows` and the
    time `budget` for one batch allow, by the learned service curve.

    Args:
        run: Does a batch, in the queue's thread, and answers every task of it; it must not raise.
        expire: Answers a task whose deadline has passed while it waited; in the queue's thread.
        curve: The first guess of how long batches take.
        max_rows: Most rows of a batch; one request with more is a batch by itself.
        max_waiting: Most rows that wait; beyond, requests are refused.
        max_delay: Seconds that a batch waits for more rows while it is not full. 0 suits nearly every model.
        budget: Most seconds that a batch should take; None for no bound.

    Raises:
        InvalidInput: If a bound is out of range.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Task]], None],
        expire: Callable[[Task], None],
        curve: ServiceCurve,
        *,
        max_rows: int = 256,
        max_waiting: int = 10_000,
        max_delay: float = 0.0,
        budget: float | None = None,
        name: str = "model",
    ) -> None:
        for field, value in (("max_rows", max_rows), ("max_waiting", max_waiting)):
            if value < 1:
                raise InvalidInput(field, value, "be at least 1")
        if not 0 <= max_delay < math.inf:
            raise InvalidInput("max_delay", max_delay, "be seconds, at least 0")
        self.curve = curve
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.max_delay = max_delay
        self.budget = budget
        self.waiting_rows = 0
        self.batches = 0
        self.refused = 0
        self.expired = 0
        self._run = run
        self._expire = expire
        self._levels: dict[int, dict[str, _Line]] = {}  # by priority and tenant
        self._numbers = itertools.count()
        self._busy_until = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"vitok-{name}", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> Refusal | None:
        """Takes a task, or says why not; takes some microseconds, on whatever thread."""
        now = time.perf_counter_ns()
        with self._changed:
            if self._closed:
                return Refusal("closed", 1.0)
            ahead = max(self._busy_until - now, 0) + self._drain_ns(self._rows_ahead(task))
            if self.waiting_rows + task.rows > self.max_waiting and self.waiting_rows:
                self.refused += 1
                return Refusal("full", self._drain_ns(self.waiting_rows) / _SECOND)
            if now + ahead + self.curve.expected_ns(task.rows) > task.deadline:
                self.refused += 1
                return Refusal("late", ahead / _SECOND)
            level = self._levels.setdefault(task.priority, {})
            line = level.get(task.tenant)
            if line is None:
                line = level[task.tenant] = _Line()
            heapq.heappush(line.heap, (task.deadline, next(self._numbers), task))
            line.rows += task.rows
            self.waiting_rows += task.rows
            self._changed.notify()
        return None

    def close(self) -> None:
        """Takes nothing more, finishes what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _rows_ahead(self, task: Task) -> int:
        # What certainly goes first: higher priorities; of the own, at most what the turns of the tenants let through.
        ahead = 0
        for priority, tenants in self._levels.items():
            if priority < task.priority:
                ahead += sum(line.rows for line in tenants.values())
            elif priority == task.priority:
                own = tenants.get(task.tenant)
                mine = own.rows_until(task.deadline) if own is not None else 0
                turns = mine + task.rows
                ahead += mine + sum(min(line.rows, turns) for line in tenants.values() if line is not own)
        return ahead

    def _drain_ns(self, rows: int) -> float:
        if not rows:
            return 0.0
        size = max(self._cap(), 1)
        return math.ceil(rows / size) * self.curve.fixed_ns + rows * self.curve.row_ns

    def _cap(self) -> int:
        if self.budget is None:
            return self.max_rows
        return min(self.max_rows, max(self.curve.most_rows(self.budget * _SECOND), 1))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self.waiting_rows and not self._closed:
                    self._changed.wait()
                if not self.waiting_rows:
                    return
                if self.max_delay and not self._closed:
                    self._linger()
                batch, gone = self._take()
                rows = sum(task.rows for task in batch)
                started = time.perf_counter_ns()
                self._busy_until = started + int(self.curve.expected_ns(rows)) if batch else 0
            for task in gone:
                self._expire(task)
            if not batch:
                continue
            for task in batch:
                task.waited_us = max(started - task.arrived, 0) // 1000
            self._run(batch)
            with self._changed:
                self.batches += 1
                self._busy_until = 0
                self.curve.learn(rows, time.perf_counter_ns() - started)

    def _linger(self) -> None:
        until = time.perf_counter() + self.max_delay
        cap = self._cap()
        while self.waiting_rows < cap and not self._closed:
            left = until - time.perf_counter()
            if left <= 0:
                return
            self._changed.wait(left)

    def _take(self) -> tuple[list[Task], list[Task]]:
        # The next batch, and what can no longer be answered in time.
        cap = self._cap()
        batch: list[Task] = []
        gone: list[Task] = []
        rows = 0
        now = time.perf_counter_ns()
        for priority in sorted(self._levels):
            tenants = self._levels[priority]
            # One task a turn; the tenant whose turn was the last in this batch is behind the others in the next.
            while tenants and rows < cap:
                tenant = next(iter(tenants))
                line = tenants.pop(tenant)
                _, _, task = line.heap[0]
                if rows + task.rows > cap and batch:
                    # It does not fit; whoever is next might, but then large requests would never get their turn.
                    tenants[tenant] = line
                    rows = cap
                    break
                heapq.heappop(line.heap)
                line.rows -= task.rows
                self.waiting_rows -= task.rows
                if now + self.curve.expected_ns(task.rows) > task.deadline:
                    gone.append(task)
                    self.expired += 1
                else:
                    batch.append(task)
                    rows += task.rows
                if line.heap:
                    tenants[tenant] = line
        self._levels = {priority: tenants for priority, tenants in self._levels.items() if tenants}
        return batch, gone
