"""Targets of this process, constants and rules; and remote models on real servers that misbehave."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.serving.backends import MS, Backend, Scripted, Ticks, always, backends, in_virtual_time

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.remote import RemoteModel
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.runners import CallableRunner
from vitok.serving.runtime import Runtime
from vitok.serving.targets import (
    Batch,
    Choice,
    Constant,
    LocalModel,
    LocalTarget,
    Rules,
    Scored,
    Target,
    TargetFailed,
    TimedOut,
    asked,
    merged,
)
from vitok.serving.tensors import TensorSpec

ROWS = np.array([[1.0, 2.0], [3.0, np.nan], [0.5, 0.25]])
BATCH = Batch(ROWS, units=["a", "b", "c"], fields={"n": np.array([1, 2, 3]), "s": ["x", "y", "z"]})


def test_parts_of_a_batch() -> None:
    part = BATCH.take(np.array([2, 0]))
    assert part.rows.tolist() == [[0.5, 0.25], [1.0, 2.0]]
    assert part.units == ["c", "a"]
    assert part.fields["n"].tolist() == [3, 1]  # type: ignore[union-attr]
    assert part.fields["s"] == ["z", "x"]


def test_parts_of_an_answer_come_together() -> None:
    one, two = Choice("a", "a/1"), Choice("b", "b/1")
    parts = [
        (np.array([2, 0]), Scored(np.array([0.2, 0.0]), (one,), None, 1.0)),
        (np.array([1]), Scored(np.array([1], np.int64), (one, two), np.array([1]), 2.0)),
    ]
    whole = merged(3, parts)
    assert whole.values.tolist() == [0.0, 1.0, 0.2]
    assert [whole.choice(k).target for k in range(3)] == ["a", "b", "a"]
    assert whole.cost == 3.0
    with pytest.raises(ServiceError, match="of one shape"):
        merged(2, [(np.array([0]), Scored(np.zeros(1), (one,))), (np.array([1]), Scored(np.zeros((1, 2)), (one,)))])


def test_a_local_model() -> None:
    model = LocalModel("sum", lambda rows: rows.sum(axis=1))
    assert model.cost == 0.0
    scored = asyncio.run(model.call(BATCH))
    assert scored.values[0] == 3.0
    assert model.cost * 3 == pytest.approx(scored.cost)
    assert isinstance(model, LocalTarget)
    assert len(model.score(Batch(np.empty((0, 2))))) == 0


def test_a_local_model_that_fails() -> None:
    with pytest.raises(TargetFailed, match=r"short: answers have the shape \(1,\) for 3 rows"):
        LocalModel("short", lambda rows: rows[0, :1]).score(BATCH)
    with pytest.raises(TargetFailed, match="bad: ZeroDivisionError"):
        LocalModel("bad", lambda rows: 1 / 0).score(BATCH)  # type: ignore[arg-type, return-value]
    clock = Ticks(100)
    with pytest.raises(TimedOut, match="no time was left"):
        LocalModel("late", lambda rows: rows[:, 0], clock=clock).score(BATCH, 100)


def test_a_local_model_in_a_thread_is_given_up() -> None:
    with ThreadPoolExecutor(1) as executor:
        import threading

        go_on = threading.Event()

        def slow(rows: np.ndarray) -> np.ndarray:
            go_on.wait(10)
            return rows[:, 0]

        model = LocalModel("slow", slow, executor=executor)
        with pytest.raises(TimedOut, match="slow: no answer within"):
            asyncio.run(model.call(BATCH, time.perf_counter_ns() + 20 * MS))
        go_on.set()
        assert asyncio.run(model.call(BATCH)).values.tolist() == [1.0, 3.0, 0.5]


def test_a_runtime_is_a_target() -> None:
    runner = CallableRunner(
        lambda t: {"y": t["x"].sum(axis=1)}, [TensorSpec("x", "FP32", (-1, 2))], [TensorSpec("y", "FP32", (-1,))]
    )
    model = LocalModel.of(Runtime(runner, version="sum/4"), cost=2.0, quality=0.9)
    scored = model.score(Batch(ROWS[:1]))
    assert (scored.values.tolist(), scored.cost, scored.choice(0).version) == ([3.0], 2.0, "sum/4")
    assert (model.name, model.quality) == ("sum/4", 0.9)


def test_what_cannot_fail() -> None:
    rules = Rules(lambda batch: batch.rows[:, 0] * 2, otherwise=0.5)
    assert rules.score(BATCH, -1).values.tolist() == [2.0, 6.0, 1.0]
    assert rules.score(BATCH).choice(0).reason == "the rules answered"
    broken = Rules(lambda batch: batch.fields["nothing"], otherwise=0.5)  # type: ignore[arg-type, return-value]
    scored = asyncio.run(broken.call(BATCH))
    assert scored.values.tolist() == [0.5] * 3
    assert scored.choice(0).route == "fallback"
    assert scored.choice(0).reason == "the rules failed (KeyError('nothing')), the answer is always 0.5"
    crooked = Rules(lambda batch: batch.rows, otherwise=0.25)
    assert crooked.score(BATCH).values.tolist() == [0.25] * 3
    assert (broken.failed, crooked.failed) == (1, 1)
    halting = Rules(lambda batch: batch.rows[:, 0] / batch.rows[:, 1], otherwise=0.25)
    with np.errstate(divide="ignore", invalid="ignore"):
        scored = halting.score(Batch(np.array([[1.0, 2.0], [1.0, 0.0], [np.nan, 1.0]])))
        assert halting.score(Batch(np.array([[1.0, 0.0]]))).values.tolist() == [0.25]
    assert scored.values.tolist() == [0.5, 0.25, 0.25]
    assert [scored.choice(row).route for row in range(3)] == ["champion", "fallback", "fallback"]
    with pytest.raises(InvalidInput, match="value"):
        Constant(float("nan"))


def test_promises_are_seen_to() -> None:
    async def main(clock: Any) -> None:
        deadline = clock() + 50 * MS
        with pytest.raises(TimedOut, match="slow: no answer within 50 ms"):
            await asked(Scripted("slow", always(9.0, 0.5)), BATCH, deadline, clock)
        with pytest.raises(TimedOut, match="late: no time was left"):
            await asked(Scripted("late", always(0.0, 0.5)), BATCH, deadline, clock)
        with pytest.raises(TargetFailed, match=r"odd: KeyError\('x'\)"):
            await asked(Scripted("odd", always(0.0, KeyError("x"))), BATCH, clock() + 50 * MS, clock)

        class Short(Scripted):
            async def call(self, batch: Batch, deadline: int = 0) -> Scored:
                return await super().call(Batch(batch.rows[:1]), deadline)

        with pytest.raises(TimedOut, match=r"tired: TimeoutError\('its own'\)"):
            await asked(Scripted("tired", always(0.0, TimeoutError("its own"))), BATCH, NO_DEADLINE, clock)
        with pytest.raises(TargetFailed, match="short: 1 answers for 3 rows"):
            await asked(Short("short", always(0.0, 0.5)), BATCH, clock() + 50 * MS, clock)

    in_virtual_time(main)


def test_choices_print_themselves() -> None:
    assert str(Choice("a", "a/1", reason="the first")) == "a as champion: the first"


@pytest.fixture(name="backend")
def _backend() -> Iterator[Backend]:
    with backends(1) as servers:
        yield servers[0]


def within(milliseconds: float) -> int:
    return time.perf_counter_ns() + round(milliseconds * MS)


MADE: list[RemoteModel] = []


def remote_to(url: str, model: str, **more: Any) -> RemoteModel:
    MADE.append(RemoteModel(url, model, **more))
    return MADE[-1]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def main() -> Any:
        try:
            return await work
        finally:
            while MADE:
                await MADE.pop().aclose()

    return asyncio.run(main())


@pytest.mark.parametrize("binary", [True, False])
def test_a_remote_model(backend: Backend, binary: bool) -> None:
    remote = remote_to(backend.url + "/", "sum", binary=binary, cost=0.5, headers={"x-key": "k"})
    assert isinstance(remote, Target)

    async def work() -> list[Scored]:
        return [await remote.call(Batch(ROWS[[0, 2]]), within(5000)) for _ in range(3)]

    for scored in run(work()):
        assert scored.values.tolist() == [3.0, 0.75]
        assert scored.choice(0).version == "sum/7"
        assert scored.cost == 1.0
    assert backend.heads[0].startswith(b"POST /v2/models/sum/infer HTTP/1.1\r\n")
    assert b"x-key: k\r\n" in backend.heads[0]


def test_bytes_keep_what_json_cannot(backend: Backend) -> None:
    remote = remote_to(backend.url, "sum")
    scored = run(remote.call(Batch(np.array([[np.inf, 1.0], [np.nan, 1.0]]))))
    assert scored.values[0] == np.inf
    assert np.isnan(scored.values[1])


def test_one_connection_serves_many_requests_and_many_open_for_many_at_once(backend: Backend) -> None:
    remote = remote_to(backend.url, "sum", connections=8)

    async def work() -> tuple[int, int, int]:
        for _ in range(5):
            await remote.call(BATCH)
        before = remote._connections.open
        await asyncio.gather(*(remote.call(BATCH) for _ in range(8)))
        busy = await asyncio.gather(*(remote.call(BATCH) for _ in range(9)), return_exceptions=True)
        refused = [error for error in busy if isinstance(error, TargetFailed)]
        assert "all 8 connections" in str(refused[0])
        after = remote._connections.open
        return before, after, len(refused)

    assert run(work()) == (1, 8, 1)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("error", "it answered 500 burnt"),
        ("truncate", "closed the connection in the middle of its answer"),
        ("garbage", "no reply of HTTP/1.1"),
        ("nonsense", "its answer cannot be read"),
        ("fewer", r"it gave the shape \[0\] for 3 rows"),
    ],
)
def test_remote_failures(backend: Backend, mode: str, reason: str) -> None:
    remote = remote_to(backend.url, "sum", name="r")

    async def work() -> None:
        await remote.call(BATCH)
        backend.mode = mode
        with pytest.raises(TargetFailed, match=reason) as caught:
            await remote.call(BATCH, within(5000))
        assert caught.value.attempts[0].target == "r"
        backend.mode = "answer"
        assert (await remote.call(BATCH, within(5000))).values[0] == 3.0

    run(work())


@pytest.mark.parametrize(
    ("mode", "paid"), [("error", 0.0), ("truncate", 0.0), ("nonsense", 1.5), ("fewer", 1.5), ("slow", 1.5)]
)
def test_what_a_call_without_an_answer_has_cost(backend: Backend, mode: str, paid: float) -> None:
    remote = remote_to(backend.url, "sum", cost=0.5)
    backend.mode = mode

    async def work() -> None:
        with pytest.raises(TargetFailed) as caught:
            await remote.call(BATCH, within(60 if mode == "slow" else 5000))
        assert caught.value.cost == paid
        if mode == "slow":
            # Cut off by who waits for it, it was sent all the same.
            with pytest.raises(TimedOut) as caught:
                async with asyncio.timeout(None):
                    await asked(remote, BATCH, within(60), time.perf_counter_ns)
            assert caught.value.cost == paid

    run(work())


def test_an_answer_that_comes_too_late_is_nobodys(backend: Backend) -> None:
    remote = remote_to(backend.url, "sum")

    async def work() -> None:
        backend.mode = "slow"
        with pytest.raises(TimedOut, match="no answer within"):
            await remote.call(Batch(np.array([[100.0, 0.0]])), within(30))
        backend.mode = "answer"
        for _ in range(5):
            assert (await remote.call(Batch(np.array([[1.0, 0.0]])), within(5000))).values.tolist() == [1.0]
        with pytest.raises(TimedOut, match="no time was left"):
            await remote.call(BATCH, within(0))

    run(work())


def test_a_reply_too_many_belongs_to_nobody(backend: Backend) -> None:
    remote = remote_to(backend.url, "sum")

    async def work() -> None:
        backend.mode = "twice"
        await remote.call(Batch(np.array([[100.0, 0.0]])))
        backend.mode = "answer"
        for _ in range(3):
            assert (await remote.call(Batch(np.array([[1.0, 0.0]])))).values.tolist() == [1.0]

    run(work())


def test_a_connection_that_was_closed_while_idle_is_no_failure(backend: Backend) -> None:
    remote = remote_to(backend.url, "sum")

    async def work() -> None:
        for _ in range(5):
            await remote.call(BATCH)
            backend.close_idle()
            await remote.call(BATCH)
        backend.mode = "goodbye"
        for _ in range(3):
            await remote.call(BATCH)

    run(work())
    assert backend.requests == 13


def test_nobody_listens(backend: Backend) -> None:
    remote = remote_to(backend.url, "sum")

    async def work() -> None:
        await remote.call(BATCH)
        backend.kill()
        with pytest.raises(TargetFailed, match="no connection to"):
            await remote.call(BATCH, within(5000))
        backend.start()
        await remote.call(BATCH, within(5000))

    run(work())


def test_chunks_and_two_columns(backend: Backend) -> None:
    backend.mode = "chunks"
    scored = run(remote_to(backend.url, "sum").call(Batch(ROWS[:1])))
    assert scored.values.tolist() == [0.75]
    assert scored.choice(0).version == "sum"


def test_the_callers_fault(backend: Backend) -> None:
    backend.mode = "refuse"
    with pytest.raises(InvalidInput, match="422 bad shape"):
        run(remote_to(backend.url, "sum").call(BATCH))
    with pytest.raises(InvalidInput, match="rows"):
        run(remote_to(backend.url, "sum").call(Batch(np.array([["text"]], object))))


def test_an_answer_that_is_too_long(backend: Backend) -> None:
    with pytest.raises(TargetFailed, match="longer than 50 bytes"):
        run(remote_to(backend.url, "sum", max_answer=50).call(BATCH))


def test_outputs_by_name(backend: Backend) -> None:
    assert run(remote_to(backend.url, "sum", output="sum").call(BATCH)).values[0] == 3.0
    with pytest.raises(TargetFailed, match="no output 'p', only sum"):
        run(remote_to(backend.url, "sum", output="p").call(BATCH))


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("ftp://host", {}),
        ("http://", {}),
        ("http://u:p@host", {}),
        ("http://host:99999", {}),
        ("http://ho st", {}),
        ("http://host", {"datatype": "FLOAT"}),
        ("http://host", {"connections": 0}),
        ("http://host", {"headers": {"a": "b\r\nc: d"}}),
    ],
)
def test_wrong_remotes(url: str, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        RemoteModel(url, "sum", **more)
    with pytest.raises(InvalidInput, match="model"):
        RemoteModel("http://host", "")
