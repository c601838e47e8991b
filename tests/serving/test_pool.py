"""A pool: who is asked, who is asked again, and for how long; in a time that passes at once."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from tests.serving.backends import MS, Scripted, Ticks, always, in_virtual_time

from vitok.errors import InvalidInput
from vitok.serving.balance import Balancer, LeastLatency, Loads, PeakEwma, PowerOfTwo
from vitok.serving.breaker import BreakerRules
from vitok.serving.outliers import OutlierRules
from vitok.serving.pool import Pool
from vitok.serving.retries import Budget, Hedge
from vitok.serving.targets import Batch, Constant, LocalModel, Scored, TargetFailed, TimedOut

ONE = Batch(np.zeros((1, 2)))
DOWN = TargetFailed("it is down")


class First:
    """The first member that may be asked."""

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        return candidates[0]

    def reason(self, member: int, loads: Loads) -> str:
        return "the first"


def test_another_member_answers_where_one_fails() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Scored, Pool]:
        bad, good = Scripted("bad", always(0.010, DOWN)), Scripted("good", always(0.020, 0.7))
        pool = Pool([bad, good], balancer=First(), clock=clock)
        return await pool.call(ONE, clock() + 100 * MS), pool

    scored, pool = in_virtual_time(main)
    choice = scored.choice(0)
    assert (choice.target, choice.version, choice.route) == ("good", "good/1", "champion")
    assert choice.reason == "the first; after it is down"
    assert [(attempt.target, attempt.took, bool(attempt.failure)) for attempt in choice.attempts] == [
        ("bad", 10_000, True),
        ("good", 20_000, False),
    ]
    assert choice.waited == 10_000
    assert (pool.state.retries, pool.state.requests, pool.state.in_flight) == (1, 1, (0, 0))


def test_timeouts_add_up_to_the_deadline() -> None:
    async def main(clock: Callable[[], int]) -> tuple[int, TimedOut, list[Scripted]]:
        members = [Scripted(str(k), always(9.0, 0.5)) for k in range(5)]
        pool = Pool(members, balancer=First(), tries=3, clock=clock)
        started = clock()
        with pytest.raises(TimedOut) as caught:
            await pool.call(ONE, started + 90 * MS)
        return clock() - started, caught.value, members

    took, error, members = in_virtual_time(main)
    assert took == pytest.approx(90 * MS, abs=1000)
    assert [attempt.took for attempt in error.attempts] == pytest.approx([30_000] * 3, abs=2)
    assert [member.cancelled for member in members] == [1, 1, 1, 0, 0]
    assert [member.calls for member in members] == [1, 1, 1, 0, 0]


def test_timeouts_open_the_breaker() -> None:
    async def main(clock: Callable[[], int]) -> Pool:
        pool = Pool([Scripted("a", always(9.0, 0.5))], breaker=BreakerRules(min_calls=3), clock=clock)
        for _ in range(3):
            with pytest.raises(TimedOut):
                await pool.call(ONE, clock() + 10 * MS)
        with pytest.raises(TargetFailed, match="no member may be asked: a is open: 3 calls in a row failed"):
            await pool.call(ONE, clock() + 10 * MS)
        return pool

    pool = in_virtual_time(main)
    assert pool.state.calls == (3,)


def test_retries_stay_within_the_budget() -> None:
    async def main(clock: Callable[[], int]) -> tuple[int, Pool]:
        members = [Scripted("bad", always(0.001, DOWN)), Scripted("good", always(0.001, 0.5))]
        never = BreakerRules(min_calls=10**6)
        budget = Budget(0.1, reserve=1)
        pool = Pool(members, balancer=First(), breaker=never, outliers=None, retries=budget, clock=clock)
        failed = 0
        for _ in range(200):
            try:
                await pool.call(ONE)
            except TargetFailed:
                failed += 1
        return failed, pool

    failed, pool = in_virtual_time(main)
    assert pool.retries <= 1 + 0.1 * 200
    assert failed + pool.retries == 200


def test_what_is_wrong_is_not_tried_again_and_harms_nobody() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Pool, list[Scripted]]:
        members = [Scripted(name, always(0.001, InvalidInput("rows", 3, "be 4"))) for name in "ab"]
        pool = Pool(members, breaker=BreakerRules(min_calls=1), clock=clock)
        for _ in range(10):
            with pytest.raises(InvalidInput, match="rows: got 3, must be 4"):
                await pool.call(ONE)
        return pool, members

    pool, members = in_virtual_time(main)
    assert pool.state.states == ("closed", "closed")
    assert sum(member.calls for member in members) == 10


def test_recovery_is_by_probes_alone() -> None:
    health = {"a": False}

    def script(_: int) -> tuple[float, float | Exception]:
        return 0.001, (0.5 if health["a"] else DOWN)

    async def main(clock: Callable[[], int]) -> tuple[list[str], Scripted, Pool]:
        sick, well = Scripted("a", script), Scripted("b", always(0.001, 0.5))
        rules = BreakerRules(min_calls=5, cool_down=30, jitter=0, probes=3)
        pool = Pool([sick, well], balancer=First(), breaker=rules, retries=Budget(1.0), clock=clock)
        reasons = []
        for _ in range(40):
            await pool.call(ONE)
        before = sick.calls
        health["a"] = True
        await asyncio.sleep(29)
        for _ in range(100):
            await pool.call(ONE)
        assert sick.calls == before
        await asyncio.sleep(1)
        for _ in range(4):
            reasons.append((await pool.call(ONE)).choice(0).reason.partition(",")[0])
        return reasons, sick, pool

    reasons, _, pool = in_virtual_time(main)
    assert reasons[:3] == ["a probe"] * 3
    assert reasons[3] != "a probe"
    assert pool.breakers[0].probed == 3
    assert pool.state.states == ("closed", "closed")


def test_at_once_many_callers_send_no_more_than_the_probes() -> None:
    async def main(clock: Callable[[], int]) -> Scripted:
        sick = Scripted("a", lambda call: (0.5, DOWN if call < 1 else 0.5))
        rules = BreakerRules(min_calls=1, jitter=0, probes=2)
        pool = Pool([sick, Scripted("b", always(0.001, 0.5))], balancer=First(), breaker=rules, clock=clock)
        await pool.call(ONE)
        await asyncio.sleep(30)
        async with asyncio.TaskGroup() as group:
            for _ in range(200):
                group.create_task(pool.call(ONE))
        return sick

    assert in_virtual_time(main).calls == 1 + 2


Hedged = tuple[Scored, Pool, list[Scripted], int]


def hedged(
    slow: float, *, share: float = 0.5, billed: bool = False
) -> Callable[[Callable[[], int]], Coroutine[Any, Any, Hedged]]:
    async def main(clock: Callable[[], int]) -> tuple[Scored, Pool, list[Scripted], int]:
        members = [
            Scripted("a", lambda call: (0.010 if call < 20 else slow, 0.1), billed=billed),
            Scripted("b", always(0.010, 0.2), billed=billed),
        ]
        hedge = Hedge(quantile=0.9, share=share, least=20)
        pool = Pool(members, balancer=First(), hedge=hedge, clock=clock, breaker=BreakerRules(slow_after=0.015))
        for _ in range(20):
            await pool.call(ONE)
        started = clock()
        scored = await pool.call(ONE, clock() + 1000 * MS)
        return scored, pool, members, clock() - started

    return main


def test_a_hedge_answers_where_the_first_is_slow() -> None:
    scored, pool, members, took = in_virtual_time(hedged(0.9))
    assert scored.values.tolist() == [0.2]
    assert scored.choice(0).reason == "a second call, since the first took longer than 10 ms"
    assert scored.choice(0).waited == pytest.approx(10_000, abs=2)
    assert took == pytest.approx(20 * MS, abs=1000)
    assert members[0].cancelled == 1
    assert pool.hedges == 1
    assert pool.state.in_flight == (0, 0)


def test_the_call_that_a_hedge_has_overtaken_is_paid_too() -> None:
    scored, _, members, _ = in_virtual_time(hedged(0.9, billed=True))
    assert members[0].cancelled == 1
    assert scored.cost == 2.0
    scored, _, _, _ = in_virtual_time(hedged(0.9))
    assert scored.cost == 1.0


def test_the_first_still_counts_where_it_is_faster_than_the_hedge() -> None:
    scored, pool, members, _ = in_virtual_time(hedged(0.012))
    assert scored.values.tolist() == [0.1]
    assert members[1].cancelled == 1
    assert pool.state.in_flight == (0, 0)


class InTurn:
    """One member after the other, whatever is known of them."""

    def __init__(self) -> None:
        self.turn = -1

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        self.turn += 1
        return candidates[self.turn % len(candidates)]

    def reason(self, member: int, loads: Loads) -> str:
        return "in turn"


HALTED = 1e6


def with_halted(
    balancer: Balancer, *, outliers: OutlierRules | None, breaker: BreakerRules, halted: int = 1, n: int = 4
) -> Callable[[Callable[[], int]], Coroutine[Any, Any, tuple[Pool, list[int], int]]]:
    """Members that take 10 ms, of which the last `halted` do not answer from their 100th call on until healed."""

    async def main(clock: Callable[[], int]) -> tuple[Pool, list[int], int]:
        members = [Scripted(str(k), always(0.010, 0.5)) for k in range(n - halted)]
        members += [Scripted(str(n - halted + k), lambda c: (0.010 if c < 100 else HALTED, 0.5)) for k in range(halted)]
        hedge = Hedge(quantile=0.95, share=1.0, reserve=1000)
        pool = Pool(members, balancer=balancer, breaker=breaker, outliers=outliers, hedge=hedge, clock=clock)
        most_ejected = 0
        async with asyncio.TaskGroup() as group:

            async def ask() -> None:
                # Where several are halted, the hedge may have gone to one of them too.
                with contextlib.nullcontext() if halted == 1 else contextlib.suppress(TimedOut):
                    assert (await pool.call(ONE, clock() + 1000 * MS)).values.tolist() == [0.5]

            for _ in range(4000):
                await asyncio.sleep(0.002)
                group.create_task(ask())
                most_ejected = max(most_ejected, len(pool.state.ejected))
        return pool, [member.calls for member in members], most_ejected

    return main


@pytest.mark.parametrize("balancer", [InTurn, PowerOfTwo, PeakEwma], ids=lambda kind: kind.__name__)
def test_a_halted_member_is_ejected_although_hedges_answer_in_its_place(balancer: Callable[[], Balancer]) -> None:
    never = BreakerRules(min_calls=10**6)
    pool, calls, most = in_virtual_time(with_halted(balancer(), outliers=OutlierRules(), breaker=never))
    # In turn it would be a quarter of 4,000; of some 8 s one goes by until it is halted.
    assert calls[3] < 250
    assert most <= 1
    if balancer is InTurn:
        assert most == 1
        assert pool.breakers[3].reason == "20 calls overtaken by hedges and none answered"
    assert pool.state.in_flight == (0, 0, 0, 0)
    assert all(pool.breakers[k].opened == 0 for k in range(3))


def test_a_halted_member_opens_its_breaker_where_nobody_ejects() -> None:
    pool, calls, _ = in_virtual_time(with_halted(InTurn(), outliers=None, breaker=BreakerRules()))
    assert calls[3] < 250
    assert pool.breakers[3].reason == "20 calls in a row failed or were overtaken"
    assert all(pool.breakers[k].opened == 0 for k in range(3))


def test_hedges_eject_no_more_than_the_share() -> None:
    rules = OutlierRules(max_share=0.2)
    never = BreakerRules(min_calls=10**6)
    pool, _, most = in_virtual_time(with_halted(InTurn(), outliers=rules, breaker=never, halted=4, n=10))
    assert most == 2
    assert pool.detector is not None
    assert pool.detector.spared > 0


def test_long_tails_eject_nobody() -> None:
    # Well members, the tails of which are hedged all the time, and each of which stalls at times.
    generator = np.random.default_rng(5)

    def well(_: int) -> tuple[float, float]:
        return (0.3 if generator.random() < 0.002 else 0.005 * generator.lognormal(0, 1)), 0.5

    async def main(clock: Callable[[], int]) -> Pool:
        hedge = Hedge(quantile=0.9, share=0.2)
        pool = Pool([Scripted(str(k), well) for k in range(5)], hedge=hedge, clock=clock)
        async with asyncio.TaskGroup() as group:
            for _ in range(20_000):
                await asyncio.sleep(generator.exponential(0.002))
                group.create_task(pool.call(ONE))
        return pool

    pool = in_virtual_time(main)
    assert pool.hedges > 1000
    assert pool.detector is not None
    assert (pool.detector.ejections, pool.detector.spared) == (0, 0)
    assert sum(breaker.opened for breaker in pool.breakers) == 0
    calls = np.array(pool.state.calls)
    assert calls.min() > 0.7 * calls.mean()


def test_one_stall_is_one_piece_of_evidence() -> None:
    """Forty calls are in flight when a member stalls, and all are overtaken: it is slow once, not forty times."""

    async def main(clock: Callable[[], int]) -> Pool:
        stalls = Scripted("a", lambda call: (0.010 if call < 100 or call >= 140 else HALTED, 0.5))
        hedge = Hedge(quantile=0.9, share=1.0, reserve=1000)
        pool = Pool([stalls, Scripted("b", always(0.010, 0.5))], balancer=First(), hedge=hedge, clock=clock)
        for _ in range(100):
            await pool.call(ONE)
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(pool.call(ONE))
        return pool

    pool = in_virtual_time(main)
    assert pool.hedges == 40
    assert pool.state.states == ("closed", "closed")


def test_an_overtaken_probe_has_failed() -> None:
    async def main(clock: Callable[[], int]) -> Pool:
        sick = Scripted("a", lambda call: (0.010, 0.5) if call < 100 else (HALTED, 0.5))
        rules = BreakerRules(min_calls=5, cool_down=30, jitter=0, probes=1)
        hedge = Hedge(quantile=0.9, share=1.0, reserve=1000)
        members = [sick, Scripted("b", always(0.010, 0.5))]
        pool = Pool(members, balancer=First(), breaker=rules, outliers=None, hedge=hedge, clock=clock)
        for _ in range(105):
            await pool.call(ONE)
        assert pool.state.states == ("open", "closed")
        await asyncio.sleep(30)
        assert (await pool.call(ONE)).choice(0).target == "b"
        assert str(pool.breakers[0]) == "open: a probe was overtaken; half open in 60 s"
        return pool

    assert in_virtual_time(main).breakers[0].opened == 2


def test_no_hedge_without_a_budget() -> None:
    async def main(clock: Callable[[], int]) -> Pool:
        members = [Scripted(name, lambda call: (0.010 if call < 20 else 0.1, 0.1)) for name in "ab"]
        pool = Pool(members, hedge=Hedge(quantile=0.9, share=0.01, reserve=1, least=20), clock=clock)
        for _ in range(100):
            await pool.call(ONE)
        return pool

    pool = in_virtual_time(main)
    assert 0 < pool.hedges <= 1 + 0.01 * 100


def test_both_calls_of_a_hedge_may_fail() -> None:
    async def main(clock: Callable[[], int]) -> TargetFailed:
        members = [
            Scripted("a", lambda call: (0.01, 0.5) if call < 20 else (0.05, DOWN)),
            Scripted("b", always(0.05, DOWN)),
        ]
        pool = Pool(members, balancer=First(), hedge=Hedge(quantile=0.5, share=1.0, least=20), clock=clock)
        for _ in range(20):
            await pool.call(ONE)
        with pytest.raises(TargetFailed) as caught:
            await pool.call(ONE)
        return caught.value

    assert len(in_virtual_time(main).attempts) == 2


def test_a_caller_that_goes_away_leaves_nothing_behind() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Pool, list[Scripted]]:
        members = [Scripted(name, lambda call: (0.010 if call < 20 else 5.0, 0.1)) for name in "ab"]
        pool = Pool(members, hedge=Hedge(quantile=0.5, share=1.0, least=20), clock=clock)
        for _ in range(60):
            await asyncio.wait([asyncio.ensure_future(pool.call(ONE))], timeout=0.02)
        task = asyncio.ensure_future(pool.call(ONE))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(
            task, *(t for t in asyncio.all_tasks() if t is not asyncio.current_task()), return_exceptions=True
        )
        return pool, members

    pool, _ = in_virtual_time(main)
    assert pool.state.in_flight == (0, 0)


def test_outliers_are_ejected_and_never_more_than_the_share() -> None:
    async def main(clock: Callable[[], int]) -> tuple[Pool, int]:
        members = [Scripted(str(k), always(0.001, DOWN if k < 4 else 0.5)) for k in range(10)]
        rules = BreakerRules(min_calls=10**6)
        pool = Pool(members, breaker=rules, outliers=OutlierRules(max_share=0.2), retries=Budget(1.0), clock=clock)
        most = 0
        for _ in range(500):
            try:
                await pool.call(ONE)
            except TargetFailed:
                continue
            finally:
                most = max(most, len(pool.state.ejected))
        return pool, most

    pool, most = in_virtual_time(main)
    assert most == 2
    assert "(ejected)" in str(pool.state)


def test_models_of_this_process_need_no_loop() -> None:
    clock = Ticks()

    def broken(rows: np.ndarray) -> np.ndarray:
        raise OSError("the disk")

    pool = Pool(
        [LocalModel("a", broken), LocalModel("b", lambda rows: rows[:, 0])], balancer=LeastLatency(), clock=clock
    )
    for _ in range(30):
        scored = pool.score(ONE)
    assert scored.choice(0).target == "b"
    # What fails at once must not draw all calls to itself.
    assert pool.loads.calls == [1, 30]
    remote = Pool([Scripted("a", always(0, 0.5))])
    with pytest.raises(InvalidInput, match="of this process"):
        remote.score(ONE)


def test_what_a_pool_is() -> None:
    small, large = Constant(0.0, version="m/1"), Constant(1.0)
    pool = Pool([small, large])
    assert (pool.name, pool.version, pool.cost, pool.quality) == ("constant", "m/1", 0.0, None)
    assert Pool([Scripted(name, always(0, 1.0), quality=q) for name, q in (("a", 0.9), ("b", 0.8))]).quality == 0.8
    with pytest.raises(InvalidInput, match="targets"):
        Pool([])
    with pytest.raises(InvalidInput, match="tries"):
        Pool([small], tries=0)
