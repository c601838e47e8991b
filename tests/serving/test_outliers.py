"""Ejection from a pool: whom, never too many, and back by probes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.backends import MS, Ticks

from vitok.errors import InvalidInput
from vitok.serving.breaker import Breaker, BreakerRules
from vitok.serving.outliers import OutlierDetector, OutlierRules


def pool(n: int, clock: Ticks, **rules: float) -> tuple[list[Breaker], OutlierDetector]:
    breakers = [Breaker(BreakerRules(jitter=0, min_calls=10**6), clock=clock) for _ in range(n)]
    return breakers, OutlierDetector(breakers, OutlierRules(**rules), clock=clock)  # type: ignore[arg-type]


def test_failures_in_a_row() -> None:
    clock = Ticks()
    breakers, detector = pool(10, clock)
    for _ in range(4):
        detector.record(3, ok=False)
    detector.record(3, ok=True)
    for _ in range(4):
        detector.record(3, ok=False)
    assert detector.ejected == ()
    detector.record(3, ok=False)
    assert list(detector.ejected) == [3]
    assert str(breakers[3]) == "open: 5 failures in a row; half open in 30 s"
    assert str(detector) == "1 of 10 ejected, 1 may be at a time"


# Oracle: Envoy's documentation, "success rate": ejected below mean - 1.9 standard deviations of the hosts' rates.
@given(st.lists(st.integers(0, 200), min_size=5, max_size=12))
def test_success_rates(good: list[int]) -> None:
    clock = Ticks()
    _, detector = pool(len(good), clock, consecutive_errors=10**6, max_share=1.0, panic_share=0.0)
    for k, n in enumerate(good):
        for call in range(200):
            detector.record(k, ok=call < n)
    clock.pass_seconds(10)
    detector.record(0, ok=True)
    rates = [n / 200 for n in good]
    rates[0] = (good[0] + 1) / 201
    mean = sum(rates) / len(rates)
    deviation = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
    wanted = [k for k, rate in enumerate(rates) if deviation > 0 and rate < mean - 1.9 * deviation - 1e-12]
    close = [k for k, rate in enumerate(rates) if abs(rate - (mean - 1.9 * deviation)) <= 1e-12]
    assert [k for k in detector.ejected if k not in close] == [k for k in wanted if k not in close]


def test_rates_need_enough_members_and_calls() -> None:
    clock = Ticks()
    _, detector = pool(5, clock, consecutive_errors=10**6)
    for k in range(5):
        for _ in range(99 if k == 0 else 200):
            detector.record(k, ok=k != 0)
    clock.pass_seconds(10)
    detector.record(1, ok=True)
    assert detector.ejected == ()


def test_latency() -> None:
    clock = Ticks()
    breakers, detector = pool(3, clock)
    for _ in range(200):
        for k in range(3):
            detector.record(k, ok=True, took=(50 if k == 1 else 10) * MS)
    clock.pass_seconds(10)
    detector.record(0, ok=True, took=10 * MS)
    assert detector.ejected == (1,)
    assert breakers[1].reason == "50 ms a call, 10 ms in the pool"


def test_latencies_too_small_to_matter() -> None:
    clock = Ticks()
    _, detector = pool(3, clock)
    for _ in range(200):
        for k in range(3):
            detector.record(k, ok=True, took=900_000 if k == 1 else 10_000)
    clock.pass_seconds(10)
    detector.record(0, ok=True)
    assert detector.ejected == ()


@pytest.mark.parametrize(
    ("n", "share", "most"),
    [(1, 0.1, 0), (2, 0.1, 1), (3, 0.1, 1), (10, 0.1, 1), (10, 0.3, 3), (10, 1.0, 5), (3, 1.0, 1), (4, 0.5, 2)],
)
def test_how_many_may_be_ejected(n: int, share: float, most: int) -> None:
    clock = Ticks()
    _, detector = pool(n, clock, max_share=share)
    for k in range(n):
        for _ in range(5):
            detector.record(k, ok=False)
    assert detector.most == most
    assert len(detector.ejected) == most
    assert detector.spared == n - most


@given(
    st.integers(1, 12),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.integers(0, 2000)), max_size=400),
)
def test_the_share_is_never_exceeded(n: int, share: float, panic: float, calls: list[tuple[int, bool, int]]) -> None:
    clock = Ticks()
    breakers = [Breaker(BreakerRules(jitter=0.1, min_calls=8, probes=1), clock=clock, seed=k) for k in range(n)]
    detector = OutlierDetector(
        breakers,
        OutlierRules(max_share=share, panic_share=panic, consecutive_errors=2, interval=5, min_calls=2, min_members=3),
        clock=clock,
    )
    most = max(1, min(math.floor(share * n), n - math.ceil(panic * n))) if n > 1 else 0
    for member, ok, milliseconds in calls:
        clock.pass_seconds(milliseconds / 1000)
        k = member % n
        before = detector.ejections
        well = sum(breaker.state == "closed" for breaker in breakers)
        if permit := breakers[k].admit():
            breakers[k].record(permit, ok=ok, took=milliseconds * MS)
            detector.record(k, ok=ok, took=milliseconds * MS)
        assert len(detector.ejected) <= most
        if detector.ejections > before and well < n:
            # Only the first of a pool that is all well may go whatever the panic threshold says.
            assert sum(breaker.state == "closed" for breaker in breakers) >= math.ceil(panic * n)


def test_the_ejected_come_back_by_probes() -> None:
    clock = Ticks()
    breakers, detector = pool(4, clock)
    for _ in range(5):
        detector.record(2, ok=False)
    clock.pass_seconds(30)
    permits = [permit for _ in range(20) if (permit := breakers[2].admit())]
    assert len(permits) == 3
    assert list(detector.ejected) == [2]
    for permit in permits:
        breakers[2].record(permit, ok=True)
    assert detector.ejected == ()


def test_in_panic_the_ejected_are_probed_once() -> None:
    clock = Ticks()
    breakers = [Breaker(BreakerRules(jitter=0, min_calls=3, probes=1), clock=clock) for _ in range(4)]
    detector = OutlierDetector(breakers, clock=clock)
    breakers[0].eject("slow")
    for k in (1, 2, 3):
        assert not breakers[0].admits
        for _ in range(3):
            breakers[k].record(breakers[k].admit(), ok=False)
            detector.record(k, ok=False)
        if detector.in_panic:
            break
    assert breakers[0].admits
    breakers[0].record(breakers[0].admit(), ok=False)
    detector.record(0, ok=False)
    assert not breakers[0].admits


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_share": 10},
        {"panic_share": -0.1},
        {"interval": 0},
        {"min_members": 1},
        {"latency_factor": 1.0},
        {"latency_floor": -1},
        {"consecutive_errors": 0},
    ],
)
def test_wrong_rules(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        OutlierRules(**wrong)  # type: ignore[arg-type]


def test_a_pool_of_nobody() -> None:
    with pytest.raises(InvalidInput, match="breakers"):
        OutlierDetector([])
