"""The breaker against a model of it that keeps every call in a list."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.serving.backends import Ticks

from vitok.errors import InvalidInput
from vitok.serving.breaker import Breaker, BreakerRules

RULES = BreakerRules(
    error_share=0.5, slow_share=0.6, slow_after=0.1, min_calls=4, window=10, cool_down=5, longest=12, jitter=0, probes=2
)


class Slow:
    """The rules of the docstring, written out with lists and no thought of speed."""

    def __init__(self, rules: BreakerRules, now: int) -> None:
        self.rules = rules
        self.state = "closed"
        self.calls: list[tuple[int, bool, bool]] = []
        self.until = self.wait = self.row = self.out = self.passed = 0
        self.era = 1
        self.closed_since = now

    def admit(self, now: int) -> int:
        if self.state == "closed":
            return self.era
        if now >= self.until:
            self.turn("half-open")
            self.until = now + self.wait
        if self.state == "open" or self.out + self.passed == self.rules.probes:
            return 0
        self.out += 1
        return self.era

    def turn(self, state: str) -> None:
        self.state = state
        self.era += 1
        self.out = self.passed = 0

    def record(self, permit: int, now: int, ok: bool, took: int) -> None:
        if permit != self.era:
            return
        slow = took >= self.rules.slow_after * 1e9
        if self.state == "half-open":
            self.out -= 1
            if slow or not ok:
                self.open(now)
            else:
                self.passed += 1
                if self.passed == self.rules.probes:
                    self.turn("closed")
                    self.calls = []
                    self.closed_since = now
            return
        self.calls.append((now // 10**9, ok, slow))
        held = [call for call in self.calls if call[0] > now // 10**9 - 10]
        bad = sum(not call[1] for call in held)
        slowly = sum(call[2] for call in held)
        if not (slow or not ok) or len(held) < self.rules.min_calls:
            return
        row = not any(call[1] for call in held[-self.rules.min_calls :])
        if row or bad >= self.rules.error_share * len(held) or slowly >= self.rules.slow_share * len(held):
            self.open(now)

    def open(self, now: int) -> None:
        if self.state == "closed" and self.wait:
            self.row = max(0, self.row - (now - self.closed_since) // self.wait)
        self.row += 1
        self.wait = round(min(self.rules.longest, self.rules.cool_down * self.row) * 1e9)
        self.until = now + self.wait
        self.turn("open")


STEP = st.one_of(
    st.tuples(st.just("pass"), st.integers(0, 8_000)),
    st.tuples(st.just("ask"), st.just(0)),
    st.tuples(st.just("well"), st.integers(0, 5)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("slow"), st.integers(0, 5)),
    st.tuples(st.just("give up"), st.integers(0, 5)),
)


@settings(max_examples=300)
@given(st.lists(STEP, max_size=120))
def test_it_does_as_the_slow_one(steps: list[tuple[str, int]]) -> None:
    clock = Ticks(123_456_789_000)
    breaker, slow = Breaker(RULES, clock=clock), Slow(RULES, clock.now)
    permits: list[int] = []
    for what, how in steps:
        if what == "pass":
            clock.pass_seconds(how / 1000)
        elif what == "ask":
            wanted = slow.admit(clock.now)
            would = breaker.admits
            got = breaker.admit()
            assert bool(got) == bool(wanted) == would
            if got:
                permits.append(got)
                assert got == wanted
        elif permits:
            permit = permits.pop(how % len(permits))
            if what == "give up":
                breaker.release(permit)
                if permit == slow.era and slow.state == "half-open":
                    slow.out -= 1
            else:
                took = 200_000_000 if what == "slow" else 1_000_000
                breaker.record(permit, ok=what != "fail", took=took)
                slow.record(permit, clock.now, what != "fail", took)
        assert breaker.state == slow.state


def opened(rules: BreakerRules = RULES) -> tuple[Breaker, Ticks]:
    clock = Ticks()
    breaker = Breaker(rules, clock=clock)
    for _ in range(rules.min_calls):
        breaker.record(breaker.admit(), ok=False)
    assert breaker.state == "open"
    return breaker, clock


def test_it_recovers_by_probes_alone() -> None:
    breaker, clock = opened()
    clock.pass_seconds(4.999)
    assert not any(breaker.admit() for _ in range(100))
    clock.pass_seconds(0.001)
    probes = [permit for _ in range(100) if (permit := breaker.admit())]
    assert len(probes) == 2
    assert breaker.probed == 2
    breaker.record(probes[0], ok=True)
    assert breaker.state == "half-open"
    assert not breaker.admit()
    breaker.record(probes[1], ok=True)
    assert breaker.state == "closed"
    assert str(breaker) == "closed"


def test_a_failed_probe_opens_it_for_longer_up_to_a_limit() -> None:
    breaker, clock = opened()
    waits = []
    for _ in range(4):
        waited = 0.0
        while not (permit := breaker.admit()):
            clock.pass_seconds(0.5)
            waited += 0.5
        waits.append(waited)
        breaker.record(permit, ok=False)
        assert breaker.reason == "a probe failed"
    assert waits == [5, 10, 12, 12]


def test_having_been_well_is_remembered() -> None:
    breaker, clock = opened()
    for seconds in (5, 10):
        clock.pass_seconds(seconds)
        breaker.record(breaker.admit(), ok=False)
    clock.pass_seconds(12)
    for _ in range(2):
        breaker.record(breaker.admit(), ok=True)
    assert breaker.state == "closed"
    clock.pass_seconds(3 * 12)
    for _ in range(4):
        breaker.record(breaker.admit(), ok=False)
    clock.pass_seconds(5)
    assert breaker.admit()


def test_slow_calls_open_it_though_they_succeed() -> None:
    clock = Ticks()
    breaker = Breaker(RULES, clock=clock)
    for _ in range(4):
        breaker.record(breaker.admit(), ok=True, took=100_000_000)
    assert str(breaker) == "open: 4 of 4 calls took longer than 0.1 s; half open in 5 s"


def test_a_call_given_up_counts_where_it_was_slow_already() -> None:
    breaker = Breaker(RULES, clock=Ticks())
    for _ in range(10):
        breaker.release(breaker.admit(), took=50_000_000)
    assert breaker.state == "closed"
    for _ in range(4):
        breaker.release(breaker.admit(), took=150_000_000)
    assert breaker.state == "open"


def test_what_comes_late_says_nothing() -> None:
    clock = Ticks()
    breaker = Breaker(RULES, clock=clock)
    late = breaker.admit()
    for _ in range(4):
        breaker.record(breaker.admit(), ok=False)
    clock.pass_seconds(5)
    probe = breaker.admit()
    breaker.record(late, ok=False)
    breaker.record(0, ok=False)
    assert breaker.state == "half-open"
    breaker.record(probe, ok=True)
    assert str(breaker) == "half-open: 1 of 2 probes have succeeded"


def test_probes_that_never_come_back_do_not_block_it() -> None:
    breaker, clock = opened()
    clock.pass_seconds(5)
    assert breaker.admit()
    assert breaker.admit()
    assert not breaker.admits
    clock.pass_seconds(5)
    assert breaker.admits
    assert breaker.admit()


def test_few_calls_say_nothing() -> None:
    breaker = Breaker(BreakerRules(min_calls=20), clock=Ticks())
    for _ in range(19):
        breaker.record(breaker.admit(), ok=False)
    assert breaker.state == "closed"


def test_a_total_failure_is_seen_at_once() -> None:
    breaker = Breaker(RULES, clock=Ticks())
    for _ in range(1000):
        breaker.record(breaker.admit(), ok=True)
    for _ in range(4):
        assert breaker.state == "closed"
        breaker.record(breaker.admit(), ok=False)
    assert str(breaker) == "open: 4 calls in a row failed; half open in 5 s"


def test_the_window_forgets() -> None:
    clock = Ticks()
    breaker = Breaker(RULES, clock=clock)
    for _ in range(3):
        breaker.record(breaker.admit(), ok=False)
    clock.pass_seconds(10)
    breaker.record(breaker.admit(), ok=False)
    assert breaker.state == "closed"


def test_the_jitter_spreads_and_never_shortens() -> None:
    rules = BreakerRules(min_calls=1, jitter=0.5, cool_down=10)
    waits = set()
    for seed in range(50):
        clock = Ticks()
        breaker = Breaker(rules, clock=clock, seed=seed)
        breaker.record(breaker.admit(), ok=False)
        while not breaker.admits:
            clock.pass_seconds(0.01)
        waits.add(clock.now)
    assert len(waits) > 40
    assert min(waits) >= 10e9
    assert max(waits) <= 15.02e9


def test_ejected_from_outside() -> None:
    clock = Ticks()
    breaker = Breaker(RULES, clock=clock)
    breaker.eject("worse than the others", seconds=2)
    breaker.eject("again", seconds=9)
    assert breaker.reason == "worse than the others"
    assert breaker.ejected
    clock.pass_seconds(1)
    assert not breaker.admit()
    breaker.probe_now()
    for _ in range(2):
        breaker.record(breaker.admit(), ok=True)
    assert not breaker.ejected
    breaker.probe_now()
    assert breaker.state == "closed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"error_share": 0.0},
        {"error_share": 50},
        {"slow_share": math.nan},
        {"window": 0.0},
        {"slow_after": -1.0},
        {"slow_after": math.nan},
        {"longest": 1.0},
        {"jitter": 2.0},
        {"probes": 0},
        {"min_calls": 0},
        {"cool_down": math.inf},
    ],
)
def test_wrong_rules(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        BreakerRules(**wrong)  # type: ignore[arg-type]
