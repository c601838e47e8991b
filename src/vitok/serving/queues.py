"""Models that are too slow for the event loop: a thread with a queue, and batches of whatever came while it was busy.

Nothing waits for company unless it is told to: the next batch is what has come meanwhile, so that batches grow with
the load by themselves. What cannot be answered before its deadline is refused on arrival, not after it has waited.

A larger batch does more a second, and everybody in it waits until all of it is done. So a request is taken if it is
in time even with the company that is to be expected by then, and no batch takes longer than halfway from its fixed
part `a` to the time D that a request in it was given, (a + D) / 2. Then the requests of a full batch can come while
another full one runs, and all of them are in time: with more load than can be done, batches stay full.
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

_SECOND = 1_000_000_000
_FORGET = 0.98
_MOST_OFF = 8.0
_DEVIATIONS = 4.0
_LONG = 64
# Of the time that a request was given, what stays for batches that take longer than expected and for the way back.
_LEAST, _MOST = 0.15, 0.3
# Of so many refusals while nothing was to be done one is run after all.
_PROBE = 32
# For so long a request that is too late tells so of the next one like it, unless a batch begins or ends meanwhile.
_SAME_NS = 1_000_000
_NEVER = 1 << 62


class ServiceCurve:
    """How long a batch takes by its number of rows, a + c * rows, learned from the batches that were run.

    Least squares with weights that halve every 34 batches, so that the curve follows a machine that gets slower. A
    batch counts as at most eight times what was expected: one that was stopped on its way says little of the others.

    Args:
        fixed_ns: The first guess of a, in nanoseconds.
        row_ns: The first guess of c, in nanoseconds a row.

    Attributes:
        margin_ns: Four times the mean deviation from what was expected: few batches are later than that.

    Source: the margin is that of TCP's retransmission timer (Jacobson, Congestion avoidance and control, 1988).

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
        self.margin_ns = 0.0
        self._sums = [0.0] * 5  # of weights, rows, rows squared, times, rows times times

    def learn(self, rows: int, ns: int) -> None:
        """Takes in how long a batch took."""
        expected = self.expected_ns(rows)
        if expected > 0:  # where nothing was guessed nothing is bounded
            ns = round(min(ns, _MOST_OFF * expected))
        self.margin_ns += 0.1 * (_DEVIATIONS * abs(ns - expected) - self.margin_ns)
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
        probe: Whether it is run though it is expected to be late.
    """

    __slots__ = ("arrived", "deadline", "job", "priority", "probe", "rows", "tenant", "waited_us")

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
        self.probe = False


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
    # What one tenant has waiting at one priority: a heap of (deadline, number, task), how many rows that is, and the
    # last deadline that was ever in it.
    __slots__ = ("heap", "last", "rows")

    def __init__(self) -> None:
        self.heap: list[tuple[int, int, Task]] = []
        self.last = 0
        self.rows = 0

    def push(self, task: Task, number: int) -> None:
        heapq.heappush(self.heap, (task.deadline, number, task))
        self.rows += task.rows
        self.last = max(self.last, task.deadline)

    def rows_until(self, deadline: int) -> int:
        # Of a long line the whole counts: looking through it would cost more than it tells.
        if deadline >= self.last or len(self.heap) > _LONG:
            return self.rows
        return sum(task.rows for until, _, task in self.heap if until <= deadline)


class BatchQueue:
    """A queue before one model, with a thread that runs it.

    Of what waits, the highest priority goes first; within it tenants take turns, so that one who sends much does not
    hold up the others; within a tenant the earliest deadline goes first. A batch is as large as `max_rows`, the time
    `budget` for one batch and the deadlines of those in it allow, by the learned service curve.

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
        self._idle_refusals = 0
        # By tenant: until which deadline requests of one row and the usual priority are refused, and how.
        self._closed_to: dict[str, tuple[int, Refusal]] = {}
        # Rows that came since the batch before began, taken or not, and how many come in a nanosecond.
        self._offered = 0
        self._rate = 0.0
        self._began = time.perf_counter_ns()
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
            self._offered += task.rows
            if self.waiting_rows + task.rows > self.max_waiting and self.waiting_rows:
                return self._refuse(task, Refusal("full", self._drain_ns(self.waiting_rows) / _SECOND), _NEVER)
            ahead, done = self._forecast(task, now)
            if now + done > task.deadline and not self._worth_a_probe(task, now):
                return self._refuse(
                    task, Refusal("late", ahead / _SECOND), min(now + int(done), task.deadline + _SAME_NS)
                )
            level = self._levels.setdefault(task.priority, {})
            line = level.get(task.tenant)
            if line is None:
                line = level[task.tenant] = _Line()
            line.push(task, next(self._numbers))
            self.waiting_rows += task.rows
            self._changed.notify()
        return None

    def turned_away(self, tenant: str, deadline: int) -> Refusal | None:
        """Refuses a request of at least one row and of the usual priority, of which nothing else is known yet.

        It is what `submit` has just said of another one like it, so that under overload a request that gets nothing
        but a refusal need not be read. On the thread of an event loop.

        Args:
            tenant: Whose it is.
            deadline: Until when its answer would be of use.

        Returns:
            The refusal, which counts as such; None where `submit` has to say.
        """
        found = self._closed_to.get(tenant)
        if found is None or deadline >= found[0]:
            return None
        self.refused += 1
        self._offered += 1
        return found[1]

    def _refuse(self, task: Task, refusal: Refusal, until: int) -> Refusal:
        self.refused += 1
        # Where nothing is to be done refusals lead to a probe, so each has to be counted.
        if task.rows == 1 and task.priority == 1 and (self._busy_until or self.waiting_rows):
            self._closed_to[task.tenant] = (until, refusal)
        return refusal

    def close(self) -> None:
        """Takes nothing more, finishes what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _forecast(self, task: Task, now: int) -> tuple[float, float]:
        # Until its batch begins and until it is done, in nanoseconds: full batches first, and its own with whatever
        # is expected to come until that begins.
        curve = self.curve
        given = task.deadline - task.arrived
        reserve = min(max(curve.margin_ns, _LEAST * given), _MOST * given)
        cap = max(min(self._cap(), curve.most_rows(self._longest_ns(given - reserve))), task.rows)
        place = self._rows_ahead(task) + task.rows
        ahead: float = max(self._busy_until - now, 0)
        if self.waiting_rows:
            # The next batch is no larger than whoever has to be answered first allows.
            first = max(min(cap, curve.most_rows(self._first_deadline() - now - ahead - reserve)), 1)
            if place > first:
                place -= first
                ahead += curve.expected_ns(first)
        batches, place = divmod(place - 1, cap)
        ahead += batches * curve.expected_ns(cap)
        company = min(cap, place + 1 + int(self._rate * ahead))
        return ahead, ahead + curve.expected_ns(company) + reserve

    def _first_deadline(self) -> int:
        return min(line.heap[0][0] for tenants in self._levels.values() for line in tenants.values())

    def _longest_ns(self, given: float) -> float:
        return (self.curve.fixed_ns + given) / 2

    def _shed(self, now: int) -> list[Task]:
        # Where more comes than can be done, those that are so near their deadline that a batch with them would be less
        # than half of what it could be: all behind them would be as near to theirs, and so on with each batch.
        curve, most = self.curve, self._cap()
        gone: list[Task] = []
        for tenants in self._levels.values():
            for line in tenants.values():
                while len(line.heap) > 1:
                    task = line.heap[0][2]
                    could = max(min(most, curve.most_rows(self._longest_ns(task.deadline - task.arrived))), 1)
                    if self._rate * curve.expected_ns(could) <= could:
                        break
                    if 2 * curve.most_rows(self._bound_ns(task, now)) >= min(could, self.waiting_rows):
                        break
                    heapq.heappop(line.heap)
                    line.rows -= task.rows
                    self.waiting_rows -= task.rows
                    gone.append(task)
        self.expired += len(gone)
        return gone

    def _bound_ns(self, task: Task, now: int) -> float:
        # How long a batch with it may take; less is kept back than on arrival, so that no batch is cut for a trifle.
        given = task.deadline - task.arrived
        back = min(max(self.curve.margin_ns, _LEAST * given), _MOST * given) / 2
        return min(self._longest_ns(given), task.deadline - now - back)

    def _worth_a_probe(self, task: Task, now: int) -> bool:
        # Where all are refused nothing is learned any more, and the curve may be wrong.
        if self._busy_until or self.waiting_rows or now >= task.deadline:
            return False
        self._idle_refusals += 1
        if self._idle_refusals < _PROBE:
            return False
        self._idle_refusals = 0
        task.probe = True
        return True

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
                batch, gone = self._begin()
            for task in gone:
                self._expire(task)
            if batch:
                self._run(batch)
                with self._changed:
                    self._end(batch)

    def _begin(self) -> tuple[list[Task], list[Task]]:
        self._closed_to = {}
        batch, gone = self._take()
        if batch:
            started = time.perf_counter_ns()
            self._busy_until = started + int(self.curve.expected_ns(sum(task.rows for task in batch)))
            self._rate = (self._rate + self._offered / max(started - self._began, 1)) / 2
            self._began, self._offered = started, 0
            for task in batch:
                task.waited_us = max(started - task.arrived, 0) // 1000
        return batch, gone

    def _end(self, batch: Sequence[Task]) -> None:
        self.batches += 1
        self._closed_to = {}
        self._busy_until = 0
        self.curve.learn(sum(task.rows for task in batch), time.perf_counter_ns() - self._began)

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
        curve = self.curve
        batch: list[Task] = []
        rows = 0
        longest = math.inf
        full = False
        now = time.perf_counter_ns()
        gone = self._shed(now)
        for priority in sorted(self._levels):
            tenants = self._levels[priority]
            # One task a turn; the tenant whose turn was the last in this batch is behind the others in the next.
            while tenants and rows < cap and not full:
                tenant = next(iter(tenants))
                line = tenants.pop(tenant)
                _, _, task = line.heap[0]
                late = now + curve.expected_ns(task.rows) > task.deadline and not task.probe
                if batch and not late:
                    bound = min(longest, self._bound_ns(task, now))
                    if rows + task.rows > cap or curve.expected_ns(rows + task.rows) > bound:
                        # It does not fit; whoever is next might, but then large requests would never get their turn.
                        tenants[tenant] = line
                        full = True
                        break
                    longest = bound
                heapq.heappop(line.heap)
                line.rows -= task.rows
                self.waiting_rows -= task.rows
                if late:
                    gone.append(task)
                    self.expired += 1
                else:
                    if not batch:
                        longest = self._bound_ns(task, now)
                    batch.append(task)
                    rows += task.rows
                if line.heap:
                    tenants[tenant] = line
        self._levels = {priority: tenants for priority, tenants in self._levels.items() if tenants}
        return batch, gone
