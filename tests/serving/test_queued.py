"""A model with a queue as a target: who shares a batch, who is refused at once, and who suffers from a wrong row."""

import asyncio
import threading
import time

import numpy as np
import pytest
from tests.serving.backends import MS

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.chains import Fallback
from vitok.serving.queued import QueuedModel
from vitok.serving.targets import Batch, Constant, LocalModel, LocalTarget, Scored, Target, TargetFailed, TimedOut

ONE = Batch(np.array([[1.0, 2.0]]))


class Held:
    """A function that waits until it may go on, and keeps what it was given."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.seen: list[np.ndarray] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.begun.set()
        assert self.go_on.wait(30)
        self.seen.append(rows)
        if (rows < 0).any():
            raise InvalidInput("rows", float(rows.min()), "be at least 0")
        return rows.sum(axis=1)


async def until(met: object) -> None:
    while not met():  # type: ignore[operator]
        await asyncio.sleep(0.001)


def test_what_comes_meanwhile_is_the_next_batch() -> None:
    held = Held()
    model = QueuedModel(LocalModel("sum", held, version="sum/1", cost=2.0))

    async def main() -> list[Scored]:
        first = asyncio.ensure_future(model.call(ONE))
        await until(held.begun.is_set)
        batches = [Batch(np.full((n, 2), float(n))) for n in (1, 3, 2)]
        others = [asyncio.ensure_future(model.call(batch)) for batch in batches]
        others.append(asyncio.ensure_future(model.call(Batch(np.ones((1, 3))))))
        await until(lambda: model.queue.waiting_rows == 7)
        others[0].cancel()
        await asyncio.sleep(0)
        held.go_on.set()
        found = [await first, *(await asyncio.gather(*others[1:]))]
        await model.aclose()
        return found

    found = asyncio.run(main())
    assert [scored.values.tolist() for scored in found] == [[3.0], [6.0] * 3, [4.0] * 2, [3.0]]
    # What was given up was not run, and rows of another width are a run of their own.
    assert [rows.shape for rows in held.seen] == [(1, 2), (5, 2), (1, 3)]
    choice = found[1].choice(0)
    assert (choice.target, choice.version, choice.reason) == ("sum", "sum/1", "in a batch of 5 rows")
    assert choice.waited > 0
    assert [scored.cost for scored in found] == [2.0, 6.0, 4.0, 2.0]
    assert isinstance(model, Target)
    assert not isinstance(model, LocalTarget)


def test_who_cannot_be_answered_in_time_gets_the_fallback_at_once() -> None:
    held = Held()
    model = QueuedModel(LocalModel("sum", held), seconds_per_run=30.0)
    chain = Fallback([model, Constant(0.1)])

    async def main() -> tuple[Scored, float, Scored]:
        first = asyncio.ensure_future(model.call(ONE))
        await until(held.begun.is_set)
        started = time.perf_counter()
        scored = await chain.call(ONE, time.perf_counter_ns() + 20_000 * MS)
        took = time.perf_counter() - started
        held.go_on.set()
        return scored, took, await first

    scored, took, first = asyncio.run(main())
    assert scored.choice(0).reason.startswith("sum: the answer would come after the deadline; ")
    assert (scored.values.tolist(), first.values.tolist()) == ([0.1], [3.0])
    assert took < 5
    model.queue.close()


def test_there_is_an_end_to_the_queue() -> None:
    held = Held()
    model = QueuedModel(LocalModel("sum", held), max_waiting=2)

    async def main() -> None:
        first = asyncio.ensure_future(model.call(ONE))
        await until(held.begun.is_set)
        waiting = [asyncio.ensure_future(model.call(ONE)) for _ in range(2)]
        await until(lambda: model.queue.waiting_rows == 2)
        with pytest.raises(TargetFailed, match="sum: its queue is full"):
            await model.call(ONE)
        held.go_on.set()
        await asyncio.gather(first, *waiting)
        await model.aclose()
        with pytest.raises(TargetFailed, match="sum: it is closed"):
            await model.call(ONE)

    asyncio.run(main())


def test_a_wrong_row_is_its_callers_alone() -> None:
    held = Held()
    model = QueuedModel(LocalModel("sum", held))

    async def main() -> list[Scored | BaseException]:
        first = asyncio.ensure_future(model.call(ONE))
        await until(held.begun.is_set)
        others = [asyncio.ensure_future(model.call(Batch(np.array([[value, 1.0]])))) for value in (4.0, -1.0, 5.0)]
        await until(lambda: model.queue.waiting_rows == 3)
        held.go_on.set()
        await first
        found = await asyncio.gather(*others, return_exceptions=True)
        await model.aclose()
        return found

    one, wrong, other = asyncio.run(main())
    assert isinstance(one, Scored)
    assert isinstance(other, Scored)
    assert (one.values.tolist(), other.values.tolist()) == ([5.0], [6.0])
    assert isinstance(wrong, InvalidInput)


@pytest.mark.parametrize("error", [OSError("no memory"), ServiceError("the engine failed")])
def test_a_model_that_fails_and_comes_back(error: Exception) -> None:
    broken = True

    def function(rows: np.ndarray) -> np.ndarray:
        if broken:
            raise error
        return rows[:, 0]

    model = QueuedModel(LocalModel("a", function))

    async def main() -> Scored:
        nonlocal broken
        found = await asyncio.gather(*(model.call(ONE) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, TargetFailed) for one in found)
        assert len({id(one) for one in found}) == 3
        broken = False
        scored = await model.call(ONE)
        assert len(await model.call(Batch(np.empty((0, 2))))) == 0
        await model.aclose()
        return scored

    assert asyncio.run(main()).values.tolist() == [1.0]


def test_a_deadline_that_passes_while_it_runs() -> None:
    held = Held()
    model = QueuedModel(LocalModel("sum", held), seconds_per_run=1e-6)

    async def main() -> None:
        with pytest.raises(TimedOut, match="sum: no answer within "):
            await model.call(ONE, time.perf_counter_ns() + 30 * MS)
        held.go_on.set()
        assert (await model.call(ONE)).values.tolist() == [3.0]
        await model.aclose()

    asyncio.run(main())


def test_a_version_is_replaced_between_two_batches() -> None:
    models = [LocalModel("m", lambda rows: rows[:, 0], version="m/1", quality=0.8)]
    model = QueuedModel(lambda: models[-1])

    async def main() -> list[str]:
        versions = [(await model.call(ONE)).choice(0).version]
        models.append(LocalModel("m", lambda rows: rows[:, 1], version="m/2", quality=0.9))
        versions.append((await model.call(ONE)).choice(0).version)
        await model.aclose()
        return versions

    assert asyncio.run(main()) == ["m/1", "m/2"]
    assert (model.version, model.quality, model.cost > 0) == ("m/2", 0.9, True)


@pytest.mark.parametrize("more", [{"seconds_per_run": 0.0}, {"max_rows": 0}, {"max_delay": float("nan")}])
def test_wrong_numbers(more: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(more))):
        QueuedModel(LocalModel("a", lambda rows: rows[:, 0]), **more)  # type: ignore[arg-type]
