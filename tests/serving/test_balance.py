"""Who gets the next call; and what that does to the slowest of them."""

import heapq
import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.backends import MS, Ticks

from vitok.errors import InvalidInput
from vitok.serving.balance import Balancer, ByWeight, LeastCost, LeastLatency, Loads, PeakEwma, PowerOfTwo


class AtRandom:
    def __init__(self) -> None:
        self._random = Random(5)

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        return self._random.choice(candidates)

    def reason(self, member: int, loads: Loads) -> str:
        return ""


class InTurn:
    def __init__(self) -> None:
        self._next = -1

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        self._next += 1
        return candidates[self._next % len(candidates)]

    def reason(self, member: int, loads: Loads) -> str:
        return ""


class Shortest(InTurn):
    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        return min(candidates, key=lambda k: loads.in_flight[k])


def waiting(balancer: Balancer, *, n: int = 120_000, replicas: int = 10, rho: float = 0.9) -> float:
    """Simulates queues of exponential work at Poisson arrivals; returns the P99 of the time in the system."""
    generator = np.random.default_rng(11)
    arrivals = np.cumsum(generator.exponential(1 / (rho * replicas), n)).tolist()
    work = generator.exponential(1.0, n).tolist()
    loads = Loads(replicas)
    free = [0.0] * replicas
    leaving: list[tuple[float, int]] = []
    everyone = list(range(replicas))
    took = []
    for at, length in zip(arrivals, work, strict=True):
        while leaving and leaving[0][0] <= at:
            loads.finish(heapq.heappop(leaving)[1])
        k = balancer.pick(everyone, loads)
        loads.start(k)
        free[k] = max(free[k], at) + length
        heapq.heappush(leaving, (free[k], k))
        took.append(free[k] - at)
    return float(np.quantile(took[n // 10 :], 0.99))


# Oracle: the simulation in the research of this project, 10 replicas, rho 0.9, exponential service, P99 in service
# times: random 35.7, in turn 25.2, two choices 10.9, shortest queue 8.0; a random queue is M/M/1, whose P99 is
# ln(100) / (1 - 0.9) = 46 in the long run.
def test_two_choices_cut_the_tail() -> None:
    found = {
        "random": waiting(AtRandom()),
        "in turn": waiting(InTurn()),
        "two": waiting(PowerOfTwo()),
        "shortest": waiting(Shortest()),
    }
    assert found["two"] == pytest.approx(10.9, rel=0.15)
    assert found["random"] == pytest.approx(math.log(100) / 0.1, rel=0.35)
    assert found["in turn"] == pytest.approx(25.2, rel=0.35)
    assert found["shortest"] == pytest.approx(8.0, rel=0.15)


def test_peak_ewma_leaves_the_slow_one_alone() -> None:
    clock = Ticks()
    loads = Loads(3, clock=clock)
    balancer = PeakEwma()
    for _ in range(3000):
        clock.now += MS
        k = balancer.pick([0, 1, 2], loads)
        loads.start(k)
        loads.finish(k, took=(20 if k == 1 else 2) * MS)
    assert loads.calls[1] < 30
    # It is drawn against itself never, so only where its latency has faded.
    assert loads.calls[1] > 0


def test_a_peak_counts_at_once_and_fades() -> None:
    clock = Ticks()
    loads = Loads(1, decay=10, clock=clock)
    loads.start(0)
    loads.finish(0, took=2 * MS)
    loads.start(0)
    loads.finish(0, took=200 * MS)
    assert loads.latency(0) == 200 * MS
    clock.pass_seconds(10)
    loads.start(0)
    assert loads.burden(0) == 2 * loads.latency(0)
    loads.finish(0, took=2 * MS)
    # Oracle: 200 e^-1 + 2 (1 - e^-1).
    assert loads.latency(0) == pytest.approx((200 * math.exp(-1) + 2 * (1 - math.exp(-1))) * MS)
    clock.pass_seconds(30)
    assert loads.latency(0) < 0.2 * 75 * MS


def test_what_has_never_answered_is_tried_by_one_call_at_a_time() -> None:
    loads = Loads(2, clock=Ticks())
    loads.start(0)
    loads.finish(0, took=MS)
    assert LeastLatency().pick([0, 1], loads) == 1
    loads.start(1)
    assert LeastLatency().pick([0, 1], loads) == 0
    assert LeastLatency().reason(0, loads) == "1 ms expected, the fastest"


def test_what_fails_at_once_is_left_alone_for_a_while() -> None:
    clock = Ticks()
    loads = Loads(2, decay=10, clock=clock)
    for balancer in (PowerOfTwo(), PeakEwma(), LeastLatency()):
        loads.start(1)
        loads.finish(1, took=MS)
        loads.start(0)
        loads.finish(0, ok=False)
        assert {balancer.pick([0, 1], loads) for _ in range(20)} == {1}
        clock.pass_seconds(11)
        assert balancer.pick([0, 1], loads) in (0, 1)
        assert loads.queue(0) == 0
    loads.start(0)
    loads.finish(0, ok=None)
    loads.start(0)
    loads.finish(0, took=MS)
    assert loads.queue(0) == 0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True), st.integers(0, 1000))
def test_only_candidates_are_picked(candidates: list[int], seed: int) -> None:
    loads = Loads(10, costs=list(range(10)), weights=[0, 1, 2, 0, 4, 5, 0, 7, 8, 9], clock=Ticks())
    for balancer in (PowerOfTwo(seed=seed), PeakEwma(seed=seed), LeastLatency(), ByWeight(seed=seed), LeastCost()):
        for _ in range(10):
            k = balancer.pick(candidates, loads)
            assert k in candidates
            assert balancer.reason(k, loads)
            loads.start(k)


def test_two_different_ones_are_drawn() -> None:
    loads = Loads(2, clock=Ticks())
    loads.start(0)
    balancer = PowerOfTwo()
    assert {balancer.pick([0, 1], loads) for _ in range(100)} == {1}


def test_weights() -> None:
    # Oracle: binomial; 5 standard deviations of 20,000 draws at 0.75 are 0.0153.
    loads = Loads(3, weights=[3, 1, 0])
    balancer = ByWeight()
    drawn = [balancer.pick([0, 1, 2], loads) for _ in range(20_000)]
    assert abs(drawn.count(0) / 20_000 - 0.75) < 0.0153
    assert drawn.count(2) == 0
    assert balancer.pick([2], loads) == 2
    assert balancer.reason(0, loads) == "drawn by its weight of 3 in 4"


def test_least_cost_then_fewest_in_flight() -> None:
    loads = Loads(3, costs=[2, 1, 1])
    loads.start(1)
    assert LeastCost().pick([0, 1, 2], loads) == 2
    assert LeastCost().pick([0], loads) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"n": 2, "costs": [1.0]},
        {"n": 1, "weights": [-1.0]},
        {"n": 1, "weights": [0.0]},
        {"n": 1, "costs": [math.nan]},
        {"n": 1, "decay": 0.0},
    ],
)
def test_wrong_loads(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Loads(**wrong)  # type: ignore[arg-type]
