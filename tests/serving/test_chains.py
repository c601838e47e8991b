"""Chains that always answer; and real backends that are killed, slowed, and made to lie."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.backends import MS, Scripted, Ticks, always, backends, in_virtual_time

from vitok.errors import InvalidInput, MissingExtra, NotFound, StoreError
from vitok.serving.balance import PowerOfTwo
from vitok.serving.breaker import BreakerRules
from vitok.serving.chains import Fallback
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.remote import RemoteModel
from vitok.serving.retries import NO_DEADLINE, Budget, Hedge
from vitok.serving.targets import Batch, Constant, LocalModel, Rules, Scored, TargetFailed

ONE = Batch(np.zeros((1, 2)))
DOWN = TargetFailed("it is down")


def local(name: str, value: float, **more: Any) -> LocalModel:
    return LocalModel(name, lambda rows: np.full(len(rows), value), version=f"{name}/1", **more)


def test_a_chain_ends_in_an_answer_and_says_why() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Scored, int, Fallback]:
        chain = Fallback(
            [
                Scripted("a", always(9.0, 0.5)),
                Scripted("b", always(0.001, InvalidInput("rows", 3, "be 4"))),
                Scripted("c", always(0.001, KeyError("x"))),
                Rules(lambda batch: np.full(len(batch), 0.25), otherwise=0.5),
            ],
            clock=clock,
        )
        started = clock()
        return await chain.call(ONE, started + 95 * MS), clock() - started, chain

    scored, took, chain = in_virtual_time(main)
    assert scored.values.tolist() == [0.25]
    choice = scored.choice(0)
    assert (choice.target, choice.version, choice.route) == ("rules", "rules", "fallback")
    assert choice.reason == ("a: no answer within 30 ms; rows: got 3, must be 4; c: KeyError('x'); the rules answered")
    assert [attempt.target for attempt in choice.attempts] == ["a", "b", "c", "rules"]
    assert took < 95 * MS
    assert choice.waited == pytest.approx(took // 1000, abs=2)
    assert chain.answered == [0, 0, 0, 1]


def test_a_chain_whose_time_is_over_still_answers() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Scored, Scripted]:
        first = Scripted("a", always(0.0, 0.5))
        return await Fallback([first, Constant(0.1)], clock=clock).call(ONE, clock() - MS), first

    scored, first = in_virtual_time(main)
    assert scored.values.tolist() == [0.1]
    assert first.calls == 0
    assert scored.choice(0).reason == "a: no time was left; the answer is always 0.1"


def test_the_champion_that_answers_is_no_fallback() -> None:
    chain = Fallback([local("a", 0.5, cost=1.0, quality=0.9), Constant(0.1)])
    assert chain.score(ONE).choice(0)[2:4] == ("champion", "the first of the chain")
    assert chain.score(ONE).choice(0) is chain.score(ONE).choice(0)
    assert (chain.version, chain.cost, chain.quality) == ("a/1", 1.0, 0.9)
    with pytest.raises(InvalidInput, match="end in a Constant or Rules"):
        Fallback([local("a", 0.5)])
    with pytest.raises(InvalidInput, match="margin"):
        Fallback([Constant(0.5)], margin=-1)


@pytest.mark.parametrize("way", ["score", "call"])
def test_requests_without_a_number_go_on_alone(way: str) -> None:
    first = LocalModel("a", lambda rows: np.log(rows[:, 0]), version="a/1", cost=1.0)
    second = LocalModel("b", lambda rows: np.where(rows[:, 0] < 0, np.nan, 7.0), version="b/1", cost=10.0)
    chain = Fallback([first, second, Constant(0.1)])
    batch = Batch(np.array([[1.0], [0.0], [-1.0], [1.0]]), units=["p", "q", "r", "s"])
    with np.errstate(divide="ignore", invalid="ignore"):
        scored = chain.score(batch) if way == "score" else asyncio.run(chain.call(batch))
    assert scored.values.tolist() == [0.0, 7.0, 0.1, 0.0]
    told = [(scored.choice(row).target, scored.choice(row).route, scored.choice(row).reason) for row in range(4)]
    assert told == [
        ("a", "champion", "the first of the chain"),
        ("b", "fallback", "a: no finite number"),
        ("constant", "fallback", "a: no finite number; b: no finite number; the answer is always 0.1"),
        ("a", "champion", "the first of the chain"),
    ]
    # Four rows at the first and two at the second, each paid once.
    assert scored.cost == 24.0
    assert chain.answered == [1, 1, 1]


def test_several_columns_go_on_together() -> None:
    pairs = LocalModel("a", lambda rows: np.column_stack((rows[:, 0], np.sqrt(rows[:, 0]))))
    with np.errstate(invalid="ignore"):
        scored = Fallback([pairs, Constant(0.1)]).score(Batch(np.array([[-1.0], [4.0]])))
    assert scored.values.tolist() == [0.1, 0.1]
    assert Fallback([pairs, Constant(0.1)]).score(Batch(np.array([[4.0]]))).values.tolist() == [[4.0, 2.0]]


@pytest.mark.parametrize(
    "error", [KeyError("x"), NotFound("table", "amounts"), StoreError("it is down"), MissingExtra("serve", "scoring")]
)
def test_whatever_a_target_raises_there_is_an_answer(error: Exception) -> None:
    class Odd(Constant):
        def score(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
            raise error

    # A target of the caller's own, which keeps no promise.
    chain = Fallback([Odd(1.0, name="odd"), Constant(0.1)])
    assert chain.score(ONE).values.tolist() == [0.1]
    assert asyncio.run(chain.call(ONE)).values.tolist() == [0.1]
    assert "odd: " in chain.score(ONE).choice(0).reason


def test_a_chain_outlives_a_pool_whose_timeouts_still_count() -> None:
    async def main(clock: Callable[[], int]) -> Pool:
        pool = Pool([Scripted("a", always(9.0, 0.5))], breaker=BreakerRules(min_calls=5), clock=clock)
        chain = Fallback([pool, Constant(0.1)], clock=clock)
        for _ in range(6):
            await chain.call(ONE, clock() + 20 * MS)
        return pool

    pool = in_virtual_time(main)
    assert pool.state.states == ("open",)
    assert pool.state.calls == (5,)


OUTCOME = st.tuples(
    st.sampled_from([0.0, 0.001, 0.01, 0.03, 0.2, 5.0]),
    st.sampled_from([0.5, 0.5, DOWN, InvalidInput("rows", 3, "be 4"), KeyError("x"), TimeoutError("its own")]),
)


@settings(max_examples=60)
@given(
    st.lists(st.lists(OUTCOME, min_size=1, max_size=6), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=40),
    st.booleans(),
)
def test_whatever_happens_there_is_an_answer_in_time(
    scripts: list[list[tuple[float, float | Exception]]], requests: list[tuple[int, int]], hedge: bool
) -> None:
    async def main(clock: Callable[[], int]) -> None:
        members = [
            Scripted(str(k), lambda call, script=script: script[call % len(script)])  # type: ignore[misc]
            for k, script in enumerate(scripts)
        ]
        rules = BreakerRules(min_calls=3, window=1, cool_down=0.1, longest=0.2, probes=2)
        pool = Pool(
            members,
            breaker=rules,
            outliers=OutlierRules(consecutive_errors=2, ejection=0.1, max_share=0.3),
            tries=3,
            retries=Budget(0.2, reserve=2),
            hedge=Hedge(quantile=0.5, share=0.3, least=2) if hedge else None,
            clock=clock,
        )
        chain = Fallback([pool, Rules(lambda batch: np.full(len(batch), 0.1), otherwise=0.5)], clock=clock)

        async def ask(milliseconds: int) -> None:
            deadline = clock() + milliseconds * MS
            scored = await chain.call(ONE, deadline)
            assert clock() <= deadline
            choice = scored.choice(0)
            assert scored.values.tolist() == [0.1 if choice.target == "rules" else 0.5]
            assert choice.reason
            assert choice.route == ("fallback" if choice.target == "rules" else "champion")
            assert sum(attempt.took for attempt in choice.attempts) <= 2 * 1000 * milliseconds
            assert pool.detector is not None
            assert len(pool.state.ejected) <= pool.detector.most

        tasks = []
        for gap, milliseconds in requests:
            await asyncio.sleep(gap / 1000)
            tasks.append(asyncio.ensure_future(ask(milliseconds)))
        await asyncio.gather(*tasks)
        n = len(requests)
        assert pool.state.in_flight == (0,) * len(members)
        assert pool.retries <= 2 + 0.2 * n
        assert pool.hedges <= 5 + 0.3 * n
        assert sum(pool.state.calls) <= n + pool.retries + pool.hedges
        assert sum(chain.answered) == n

    in_virtual_time(main)


DEADLINE_MS = 400


def test_real_backends_that_die_and_come_back() -> None:
    rules = BreakerRules(min_calls=4, window=5, cool_down=0.3, longest=0.6, jitter=0.1, probes=2)

    async def main(servers: list[Any]) -> None:
        members = [RemoteModel(server.url, "sum", name=str(k)) for k, server in enumerate(servers)]
        pool = Pool(
            members,
            balancer=PowerOfTwo(),
            breaker=rules,
            retries=Budget(0.1),
            outliers=OutlierRules(consecutive_errors=3, ejection=0.3, max_share=0.34),
        )
        chain = Fallback([pool, Rules(lambda batch: batch.rows[:, 0], otherwise=0.5)])
        took: list[float] = []
        ejected = 0

        async def ask() -> Scored:
            nonlocal ejected
            started = time.perf_counter_ns()
            scored = await chain.call(Batch(np.array([[1.0, 2.0]])), started + DEADLINE_MS * MS)
            took.append((time.perf_counter_ns() - started) / MS)
            ejected = max(ejected, len(pool.state.ejected))
            # Either the sum, or what the rules say.
            assert scored.values.tolist() == ([1.0] if scored.choice(0).target == "rules" else [3.0])
            return scored

        async def ask_many(n: int) -> list[str]:
            routes = []
            for _ in range(n // 4):
                found = await asyncio.gather(*(ask() for _ in range(4)))
                routes += [scored.choice(0).route for scored in found]
            return routes

        async def recovers(k: int) -> None:
            until = time.perf_counter() + 20
            while pool.breakers[k].state != "closed":
                assert time.perf_counter() < until
                await ask_many(4)
                await asyncio.sleep(0.01)

        async def story() -> None:
            assert set(await ask_many(40)) == {"champion"}
            servers[0].kill()
            await ask_many(60)
            before = pool.breakers[0].probed
            servers[0].start()
            await recovers(0)
            if pool.breakers[0].opened:
                assert pool.breakers[0].probed - before >= rules.probes
            for mode in ("error", "truncate", "garbage"):
                servers[1].mode = mode
                await ask_many(60)
                servers[1].mode = "answer"
                await recovers(1)
            servers[2].mode = "hang"
            await ask_many(24)
            servers[2].mode = "answer"
            await recovers(2)
            for server in servers:
                server.mode = "error"
            assert "fallback" in set(await ask_many(80))
            seen = [server.requests for server in servers]
            assert set(await ask_many(20)) == {"fallback"}
            assert sum(server.requests for server in servers) - sum(seen) <= 3 * rules.probes
            for server in servers:
                server.mode = "answer"
            for k in range(3):
                await recovers(k)
            assert set(await ask_many(40)) == {"champion"}
            assert ejected <= 1
            # Nothing failed, and nearly all were answered in time on whatever machine this is.
            assert np.quantile(took, 0.99) < DEADLINE_MS

        try:
            await story()
        finally:
            await chain.aclose()

    with backends(3) as servers:
        asyncio.run(main(servers))


def test_no_deadline_is_never_over() -> None:
    clock = Ticks(NO_DEADLINE - 1)
    assert Fallback([Constant(0.5)], clock=clock).score(ONE).values.tolist() == [0.5]
