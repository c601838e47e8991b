"""A model of this process with a queue and a thread of its own, as a target: callers share its batches.

What comes while a batch runs is the next batch. A batch of rows that could not be answered before its deadline is
refused on arrival, as is one for which there is no room, so that a chain of fallbacks asks its next target at once
instead of after a wait for nothing.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.queues import BatchQueue, Refusal, ServiceCurve, Task
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.targets import Batch, Choice, LocalModel, Scored, TargetFailed, TimedOut

_TOLD = {"full": "its queue is full", "closed": "it is closed"}


class QueuedModel:
    """Asks a model in a thread of its own, with the rows of all who wait for it in one batch.

    Rows are joined where they have the same width and type. Where the model calls a joined batch wrong, each caller's
    rows are asked by themselves, so that nobody pays for another's. What a caller has given up is not run. Answers say
    in how large a batch they were, and how long they waited for it.

    Args:
        model: The model; or gives it, and is asked once a batch, so that a version may be replaced between two.
        seconds_per_run: How long a run of one row takes; the first guess of the service curve, which learns.
        max_rows: Most rows of a batch.
        max_waiting: Most rows that wait.
        max_delay: Seconds that a batch which is not full waits for more.
        budget: Most seconds that a batch should take; None for no bound.

    Attributes:
        now: Gives the model in force.

    Raises:
        InvalidInput: If a number is out of its range.

    Example:
        >>> model = QueuedModel(LocalModel("sum", lambda rows: rows.sum(axis=1), version="sum/1", cost=1.0))
        >>> async def ask():
        ...     try:
        ...         return await model.call(Batch(np.array([[1.0, 2.0]])))
        ...     finally:
        ...         await model.aclose()
        >>> scored = asyncio.run(ask())
        >>> scored.values, scored.cost, scored.choice(0).reason
        (array([3.]), 1.0, 'in a batch of 1 rows')
    """

    def __init__(
        self,
        model: LocalModel | Callable[[], LocalModel],
        *,
        seconds_per_run: float = 0.001,
        max_rows: int = 256,
        max_waiting: int = 10_000,
        max_delay: float = 0.0,
        budget: float | None = None,
    ) -> None:
        if not 0 < seconds_per_run < 1e6:
            raise InvalidInput("seconds_per_run", seconds_per_run, "be above 0 and finite")
        self.now: Callable[[], LocalModel] = (lambda: model) if isinstance(model, LocalModel) else model
        self.name = self.now().name
        first = 1e9 * seconds_per_run
        self.queue = BatchQueue(
            self._run,
            self._expire,
            ServiceCurve(fixed_ns=first, row_ns=0.1 * first),
            max_rows=max_rows,
            max_waiting=max_waiting,
            max_delay=max_delay,
            budget=budget,
            name=self.name,
        )

    @property
    def version(self) -> str:
        """Version in force."""
        return self.now().version

    @property
    def cost(self) -> float:
        """What a row costs."""
        return self.now().cost

    @property
    def quality(self) -> float | None:
        """How good it is."""
        return self.now().quality

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Answers a batch.

        Raises:
            InvalidInput: If the model says that the batch is wrong.
            TimedOut: If the answer would come, or comes, after the deadline.
            TargetFailed: If there is no room, or the model fails.
        """
        if not len(batch):
            return self.now().score(batch)
        now = time.perf_counter_ns()
        job = _Job(batch, asyncio.get_running_loop())
        refusal = self.queue.submit(Task(job, rows=len(batch), arrived=now, deadline=deadline))
        if refusal is not None:
            raise self._refused(refusal)
        left = None if deadline >= NO_DEADLINE else max(0, deadline - now) / 1e9
        try:
            async with asyncio.timeout(left):
                return await job.answer
        except TimeoutError:
            raise TimedOut(f"{self.name}: no answer within {1e3 * (left or 0):.3g} ms") from None

    def _refused(self, refusal: Refusal) -> TargetFailed:
        if refusal.reason == "late":
            before = f"; {1e3 * refusal.retry_after:.3g} ms of work are before it" if refusal.retry_after else ""
            return TimedOut(f"{self.name}: the answer would come after the deadline{before}")
        return TargetFailed(f"{self.name}: {_TOLD[refusal.reason]}")

    def _run(self, tasks: Sequence[Task]) -> None:
        # In the queue's thread.
        groups: dict[tuple[Any, ...], list[Task]] = {}
        for task in tasks:
            rows = task.job.batch.rows
            # Asked of another thread's future, to save work only: what is given up a moment later is run.
            if not task.job.answer.cancelled():
                groups.setdefault((rows.shape[1:], rows.dtype), []).append(task)
        found: list[tuple[_Job, Scored | Exception]] = []
        for group in groups.values():
            found += self._answers(group)
        _hand_over(found)

    def _answers(self, tasks: Sequence[Task]) -> "list[tuple[_Job, Scored | Exception]]":
        jobs: list[_Job] = [task.job for task in tasks]
        try:
            rows = jobs[0].batch.rows if len(jobs) == 1 else np.concatenate([job.batch.rows for job in jobs])
            scored = self.now().score(Batch(rows))
        except InvalidInput as error:
            if len(tasks) == 1:
                return [(jobs[0], error)]
            return [one for task in tasks for one in self._answers([task])]
        except ServiceError as error:
            return [(job, _again(error)) for job in jobs]
        except Exception as error:  # noqa: BLE001 - a thread that has ended answers nobody any more
            return [(job, TargetFailed(f"{self.name}: {error!r}")) for job in jobs]
        found: list[tuple[_Job, Scored | Exception]] = []
        told, at = f"in a batch of {len(rows)} rows", 0
        for job, task in zip(jobs, tasks, strict=True):
            n = task.rows
            choice: Choice = scored.choices[0]._replace(reason=told, waited=task.waited_us)
            found.append((job, Scored(scored.values[at : at + n], (choice,), None, scored.cost * n / len(rows))))
            at += n
        return found

    def _expire(self, task: Task) -> None:
        _hand_over([(task.job, TimedOut(f"{self.name}: the deadline passed in its queue"))])

    async def aclose(self) -> None:
        """Takes nothing more, answers what waits, and ends the thread."""
        await asyncio.to_thread(self.queue.close)

    def __repr__(self) -> str:
        return f"QueuedModel({self.name!r}, version={self.version!r})"


class _Job:
    # What one caller waits for, and where.
    __slots__ = ("answer", "batch", "loop")

    def __init__(self, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        self.batch = batch
        self.loop = loop
        self.answer: asyncio.Future[Scored] = loop.create_future()


def _again(error: ServiceError) -> TargetFailed:
    # One exception each: raised by several callers, one would collect the tracebacks of all.
    if isinstance(error, TargetFailed):
        return type(error)(str(error), attempts=error.attempts, cost=error.cost)
    return TargetFailed(str(error))


def _hand_over(found: "Sequence[tuple[_Job, Scored | Exception]]") -> None:
    # Callers of one loop get their answers in one call.
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Scored | Exception]]] = {}
    for job, answer in found:
        by_loop.setdefault(job.loop, []).append((job, answer))
    for loop, pairs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody waits any more
            loop.call_soon_threadsafe(_give, pairs)


def _give(pairs: "Sequence[tuple[_Job, Scored | Exception]]") -> None:
    for job, answer in pairs:
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
