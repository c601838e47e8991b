"""A second target that sees the same requests and answers nobody, without making anybody wait."""

import asyncio
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitok.errors import InvalidInput, VitokError
from vitok.serving.breaker import Nanoseconds
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.targets import Batch, Scored, Target, all_local, asked, close_all

_PATIENCE = 0.05


class Mirror:
    """Asks a target from a thread of its own, from a queue with an end; what does not fit is dropped and counted.

    The thread has an event loop of its own, to which the target then belongs: do not ask it elsewhere as well, unless
    it is a model of this process.

    Args:
        target: The target.
        on_answer: Gets each batch, what was handed over with it, and the answer or why there is none. It runs in the
            thread, after which the next batch is taken.
        capacity: Batches that may wait, at least 1.
        seconds: How long an answer may take.
        clock: Nanoseconds.

    Attributes:
        taken: Batches that were put into the queue.
        dropped: Batches that were not, because it was full.
        broken: How often `on_answer` itself has failed.

    Raises:
        InvalidInput: If an argument is out of its range.
    """

    def __init__(
        self,
        target: Target,
        on_answer: Callable[[Batch, Any, Scored | VitokError], None],
        *,
        capacity: int = 256,
        seconds: float = 10.0,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if capacity < 1:
            raise InvalidInput("capacity", capacity, "be at least 1")
        if not 0 < seconds < 1e6:
            raise InvalidInput("seconds", seconds, "be above zero and finite")
        self.target = target
        self.taken = self.dropped = self.broken = 0
        self._on_answer = on_answer
        self._queue: queue.Queue[tuple[Batch, Any]] = queue.Queue(capacity)
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False

    def put(self, batch: Batch, beside: Any) -> bool:
        """Hands a batch over without waiting; returns False where it was dropped.

        Args:
            batch: The requests; their arrays are copied, since the caller may use the array again.
            beside: What `on_answer` gets with it.
        """
        if self._closing or self._queue.full():
            self.dropped += 1
            return False
        fields = {
            name: column.copy() if isinstance(column, np.ndarray) else list(column)
            for name, column in batch.fields.items()
        }
        copied = Batch(batch.rows.copy(), list(batch.units), fields)
        # Under the lock, so that nothing gets into the queue of a thread that has ended.
        with self._lock:
            if self._closing:
                self.dropped += 1
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="vitok-mirror", daemon=True)
                self._thread.start()
            try:
                self._queue.put_nowait((copied, beside))
            except queue.Full:
                self.dropped += 1
                return False
            self.taken += 1
        return True

    def drain(self) -> None:
        """Waits until all that was handed over has been answered."""
        self._queue.join()

    def close(self) -> None:
        """Drops what waits and ends the thread; nothing is taken any more."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        asyncio.run(self._answer_all())

    async def _answer_all(self) -> None:
        while True:
            try:
                batch, beside = self._queue.get(timeout=_PATIENCE)
            except queue.Empty:
                if self._closing and self._queue.empty():
                    await close_all([self.target])
                    return
                # A connection that the server has closed is noticed here.
                await asyncio.sleep(0)
                continue
            try:
                if not self._closing:
                    await self._answer(batch, beside)
                else:
                    self.dropped += 1
            finally:
                self._queue.task_done()

    async def _answer(self, batch: Batch, beside: Any) -> None:
        deadline = self._clock() + round(self._seconds * 1e9)
        found: Scored | VitokError
        try:
            found = await asked(self.target, batch, deadline, self._clock)
        except VitokError as error:
            found = error
        try:
            self._on_answer(batch, beside, found)
        except Exception:  # noqa: BLE001 - whatever a caller's function raises must not end the thread
            self.broken += 1


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How the answers of a shadow differ from those that acted.

    Attributes:
        n: Rows that both answered.
        mean: Mean of shadow less main.
        mean_absolute: Mean distance.
        largest: Largest distance.
        apart: Rows whose distance is above the tolerance, or where only one is a number.
        tolerance: What counts as the same.
        failed: Batches that the shadow gave no answer to.
        dropped: Batches that it has not seen because its queue was full.
        taken: Batches that it was given.

    Example:
        >>> print(Difference(n=100, mean=0.01, mean_absolute=0.02, largest=0.3, apart=4, tolerance=0.05, failed=0,
        ...                  dropped=1, taken=50))
        100 rows: mean difference 0.01, mean distance 0.02, largest 0.3; 4 apart by more than 0.05; of 51 batches 0
        failed and 1 dropped
    """

    n: int
    mean: float
    mean_absolute: float
    largest: float
    apart: int
    tolerance: float
    failed: int
    dropped: int
    taken: int

    def __str__(self) -> str:
        return (
            f"{self.n:,} rows: mean difference {self.mean:.4g}, mean distance {self.mean_absolute:.4g}, largest "
            f"{self.largest:.4g}; {self.apart:,} apart by more than {self.tolerance:g}; of "
            f"{self.taken + self.dropped:,} batches {self.failed:,} failed and {self.dropped:,} dropped"
        )


class Shadow:
    """Answers by one target and shows the same requests to another, whose answers are compared and thrown away.

    The shadow works in a thread of its own; while it lags behind, batches are dropped and counted, and nobody waits.

    Args:
        main: Whose answers act.
        shadow: Whose answers are compared; see `Mirror` on where it may be used.
        capacity: Batches that may wait for it.
        seconds: How long it may take.
        tolerance: Distance up to which two answers are the same.
        on_pair: Gets each batch with both answers, for instance to log the shadow's score; runs in its thread.
        clock: Nanoseconds.

    Example:
        >>> from vitok.serving.targets import LocalModel
        >>> main, other = LocalModel("a", lambda rows: rows[:, 0]), LocalModel("b", lambda rows: rows[:, 0] + 0.5)
        >>> route = Shadow(main, other)
        >>> route.score(Batch(np.array([[1.0], [2.0]]))).values
        array([1., 2.])
        >>> route.drain()
        >>> route.difference.mean, route.difference.apart
        (0.5, 2)
        >>> route.close()
    """

    def __init__(
        self,
        main: Target,
        shadow: Target,
        *,
        capacity: int = 256,
        seconds: float = 10.0,
        tolerance: float = 0.0,
        on_pair: Callable[[Batch, Scored, Scored], None] | None = None,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if not 0 <= tolerance < math.inf:
            raise InvalidInput("tolerance", tolerance, "be finite and at least 0")
        self.main = main
        self.name = main.name
        self._local = all_local([main])
        self._mirror = Mirror(shadow, self._compare, capacity=capacity, seconds=seconds, clock=clock)
        self._on_pair = on_pair
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self._n = self._apart = self._failed = self._numbers = 0
        self._sum = self._absolute = self._largest = 0.0

    @property
    def version(self) -> str:
        """Version of the target that acts."""
        return self.main.version

    @property
    def cost(self) -> float:
        """What a row costs at the target that acts and at the shadow."""
        return self.main.cost + self._mirror.target.cost

    @property
    def quality(self) -> float | None:
        """Quality of the target that acts."""
        return self.main.quality

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch by the main target.

        Raises:
            InvalidInput: As the main target.
            ServiceError: As the main target; the shadow's failures are counted only.
        """
        scored = await self.main.call(batch, deadline)
        self._show(batch, scored)
        return scored

    def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch by the main target, where that is of this process.

        Raises:
            InvalidInput: As the main target, or if it is not of this process.
            ServiceError: As the main target.
        """
        if not self._local:
            raise InvalidInput("main", self.name, "be of this process", "Await call() instead")
        scored = self._local[0].score(batch, deadline)
        self._show(batch, scored)
        return scored

    def _show(self, batch: Batch, scored: Scored) -> None:
        # The answers may lie in an array that the caller, or the model, uses again.
        self._mirror.put(batch, Scored(scored.values.copy(), scored.choices, scored.places, scored.cost))

    def _compare(self, batch: Batch, main: Scored, found: Scored | VitokError) -> None:
        if isinstance(found, VitokError) or found.values.shape != main.values.shape:
            with self._lock:
                self._failed += 1
            return
        if not len(main):
            return
        one = np.asarray(main.values, np.float64)
        other = np.asarray(found.values, np.float64)
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore"):
            off = np.where(same, 0.0, other - one)
        distance = np.abs(off)
        numbers = np.isfinite(off)
        # A row of several values is apart where one of them is.
        apart = (~(distance <= self._tolerance)).reshape(len(one), -1).any(axis=1)
        with self._lock:
            self._n += len(one)
            self._numbers += int(numbers.sum())
            self._sum += float(off[numbers].sum())
            self._absolute += float(distance[numbers].sum())
            self._largest = max(self._largest, float(distance[numbers].max(initial=0.0)))
            self._apart += int(apart.sum())
        if self._on_pair is not None:
            shadowed = found.changed(lambda c: c._replace(route="shadow"))
            self._on_pair(batch, main, shadowed)

    @property
    def difference(self) -> Difference:
        """How the two have differed so far; means are over finite distances."""
        with self._lock:
            n = self._numbers
            return Difference(
                n=self._n,
                mean=self._sum / n if n else math.nan,
                mean_absolute=self._absolute / n if n else math.nan,
                largest=self._largest,
                apart=self._apart,
                tolerance=self._tolerance,
                failed=self._failed,
                dropped=self._mirror.dropped,
                taken=self._mirror.taken,
            )

    def drain(self) -> None:
        """Waits until the shadow has seen all that it was given."""
        self._mirror.drain()

    def close(self) -> None:
        """Ends the shadow's thread; the main target goes on answering."""
        self._mirror.close()

    async def aclose(self) -> None:
        """Ends the shadow's thread and closes what the main target holds open."""
        await asyncio.get_running_loop().run_in_executor(None, self._mirror.close)
        await close_all([self.main])
