"""Rate limits: exact against a token bucket in fractions, bounded memory, clocks that jump, and many processes."""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engines.servers import Server, until, valkey

from vitok.errors import InvalidInput
from vitok.guard import Allowance, Limit, Limiter, SharedLimiter

S = 1_000_000_000


class Bucket:
    """The oracle: a token bucket in exact fractions, as the textbook has it."""

    def __init__(self, limit: Limit) -> None:
        self.speed = Fraction(limit.rate, limit.microseconds * 1000)
        self.size = limit.size
        self.level, self.at = Fraction(limit.size), 0

    def admit(self, now: int, n: int) -> int:
        self.level = min(Fraction(self.size), self.level + (now - self.at) * self.speed)
        self.at = now
        if n > self.size:
            return -1
        if self.level >= n:
            self.level -= n
            return 0
        wait = (n - self.level) / self.speed
        return -(-wait.numerator // wait.denominator)


limits = st.builds(Limit, st.integers(1, 1000), st.integers(1, 100_000), st.integers(1, 50))
calls = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200_000_000), st.integers(1, 60)), max_size=60)


@given(limits, calls)
def test_as_a_token_bucket_to_the_nanosecond(limit: Limit, plan: list[tuple[str, int, int]]) -> None:
    limiter, oracles, now = Limiter(limit), {name: Bucket(limit) for name in "abc"}, 0
    for name, step, n in plan:
        now += step
        oracle = oracles[name]
        assert limiter.admit(name, now, n) == oracle.admit(now, n)
        said = limiter.peek(name, now)
        assert said.remaining == int(oracle.level)
        full = (oracle.size - oracle.level) / oracle.speed
        assert said.reset == -(-full.numerator // full.denominator)
        assert len(limiter) <= 3


def test_a_million_requests_leave_no_error_behind() -> None:
    # A seventh of a second is no whole number of nanoseconds: rounded anywhere, the sum would drift.
    limiter = Limiter(Limit(7, "1s", burst=2))
    assert [limiter.admit("a", 0), limiter.admit("a", 0)] == [0, 0]
    assert all(limiter.admit("a", -(-i * S // 7)) == 0 for i in range(1, 200_000))
    at = -(-200_000 * S // 7)
    assert limiter.admit("a", at - 1) == 1
    assert limiter.admit("a", at) == 0


def test_no_window_lets_twice_the_rate_through() -> None:
    # A fixed window of a minute lets 200 through around its edge.
    limiter = Limiter(Limit(100, "1m", burst=10))
    times = [59 * S + i * 10_000_000 for i in range(200)]
    assert sum(limiter.admit("a", now) == 0 for now in times) == 10 + 3


def test_refused_costs_nothing_and_retry_after_is_right() -> None:
    limiter = Limiter(Limit(1, "1s", burst=2))
    assert [limiter.admit("a", 0) for _ in range(5)] == [0, 0, S, S, S]
    assert limiter.admit("a", S - 1) == 1
    assert limiter.admit("a", S) == 0
    assert limiter.admit("a", S, n=3) == -1
    said = limiter.check("a", S)
    assert (said.admitted, said.remaining, said.reset, said.retry_after) == (False, 0, 2 * S, S)
    assert said.headers()["retry-after"] == "1"


def test_headers() -> None:
    limiter = Limiter(Limit(100, "1m", burst=20, name="key"))
    first = limiter.check("a", 0)
    assert first.headers() == {"ratelimit-policy": '"key";q=100;w=60', "ratelimit": '"key";r=19;t=1'}
    assert str(first) == "admitted, 19 more of 100 a 60 s, 20 at once"
    never = limiter.check("a", 0, n=21)
    assert not never.admitted
    assert "retry-after" not in never.headers()
    assert "ever" in str(never)
    assert Limit(5, 100_000).policy() == '"default";q=50;w=1'


def test_a_clock_that_goes_back() -> None:
    limiter = Limiter(Limit(10, "1s", burst=5))
    now = 1_000_000 * S
    assert [limiter.admit("a", now) for _ in range(6)] == [0] * 5 + [S // 10]
    # An hour back: not locked for an hour, and no new burst.
    back = now - 3600 * S
    assert limiter.admit("a", back) == S // 10
    assert limiter.admit("a", back + S // 10) == 0
    assert sum(limiter.admit("a", back + S // 10 + i) == 0 for i in range(100)) == 0


def test_a_time_from_just_before_forgets_nobody() -> None:
    limiter = Limiter(Limit(10, "1s", burst=5))
    limiter.admit("first", 0)
    assert [limiter.admit("a", 4 * S // 10) for _ in range(6)] == [0] * 5 + [S // 10]
    # The generations turn at half a second; then comes a request that was timed before.
    limiter.admit("b", S // 2)
    limiter.admit("c", S // 2 - 1)
    limiter.admit("b", S // 2)
    assert [limiter.admit("a", S // 2) for _ in range(2)] == [0, S // 10]


def test_memory_is_bounded_and_a_flood_of_names_gives_nobody_a_fresh_bucket() -> None:
    limiter = Limiter(Limit(1, "1s", burst=3), capacity=100)
    for _ in range(3):
        assert limiter.admit("me", 0) == 0
    passed = sum(limiter.admit(f"invented {i}", 0) == 0 for i in range(10_000))
    assert passed == 99 * 1 + 3
    assert len(limiter) <= 101
    assert limiter.n_shared == 10_000 - 99
    assert limiter.admit("me", 0) == S
    # When their buckets are full they are forgotten.
    assert limiter.admit("me", 20 * S) == 0
    assert len(limiter) == 1
    assert limiter.check("later", 20 * S).remaining == 2


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2 * S)), max_size=200))
def test_forgetting_changes_no_answer(plan: list[tuple[int, int]]) -> None:
    limit = Limit(2, "1s", burst=2)
    limiter, oracles, now = Limiter(limit), [Bucket(limit) for _ in range(31)], 0
    for name, step in plan:
        now += step
        assert limiter.admit(name, now) == oracles[name].admit(now, 1)


def test_a_batch_is_as_one_after_another() -> None:
    one, many = Limiter(Limit(2)), Limiter(Limit(2))
    names = ["a", "b", "a", "a"]
    assert many.admit_many(names, 0) == [one.admit(name, 0) for name in names] == [0, 0, 0, S // 2]


turns = st.lists(
    st.tuples(st.integers(-50_000_000, 200_000_000), st.lists(st.sampled_from("abcd"), min_size=1, max_size=8)),
    max_size=30,
)


@given(limits, turns, st.integers(1, 4))
def test_a_turn_takes_what_each_caller_needs_or_nothing(
    limit: Limit, plan: list[tuple[int, list[str]]], capacity: int
) -> None:
    limiter, oracle, now = Limiter(limit, capacity=capacity), Limiter(limit, capacity=capacity), 0
    for step, callers in plan:
        now += step
        counts = Counter(callers)
        taken = limiter.take(counts, now)
        for caller, n in counts.items():
            said = oracle.check(caller, now, n)
            assert (caller in taken) == said.admitted
            if said.admitted:
                assert taken[caller] == (said.remaining, said.reset)


@pytest.mark.parametrize(
    "arguments", [(0,), (1.5,), (True,), (1, 0), (1, "1s", 0), (1, "1d", 1000), (1, "1s", 1, 'a"b'), (1, "1s", 1, "")]
)
def test_limits_that_are_none(arguments: tuple[object, ...]) -> None:
    with pytest.raises(InvalidInput):
        Limit(*arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with valkey() as running:
        yield running


def test_shared_admits_exactly_the_burst_and_gives_it_back(server: Server) -> None:
    limit = Limit(1, "100s", burst=5)
    shared = SharedLimiter(server.url, limit, prefix="exact:")
    found = shared.check_many(["a"] * 7 + ["b"], 0)
    assert [one.admitted for one in found] == [True] * 5 + [False] * 2 + [True]
    assert [one.remaining for one in found] == [4, 3, 2, 1, 0, 0, 0, 4]
    assert 99 * S < found[5].retry_after <= 100 * S
    assert 499 * S < found[5].reset <= 500 * S
    assert not any(one.degraded for one in found)
    assert shared.check("a", 0, n=6).retry_after == -1
    assert shared.check_many([], 0) == []
    shared.close()


def test_shared_is_exact_at_odd_rates(server: Server) -> None:
    # 7 a second is no whole number of microseconds; the sum of 7 requests is exactly a second all the same.
    shared = SharedLimiter(server.url, Limit(7, "1000s", burst=7_000), prefix="odd:")
    found = shared.check_many(["a"] * 700, 0)
    assert all(one.admitted for one in found)
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(server.url) as client:
        us, part = client.get("odd:a").split(b":")
        seconds, more = client.time()
        assert int(part) == 0
        assert 0 <= 100_000 * 1_000_000 - (int(us) - seconds * 1_000_000 - more) < 60_000_000
        assert 99_000_000 < client.pttl("odd:a") <= 100_000_002
    shared.close()


def test_shared_by_threads_admits_the_burst_once(server: Server) -> None:
    limit = Limit(1, "1000s", burst=300)
    admitted: list[int] = []

    def work(seed: int) -> None:
        shared, random_ = SharedLimiter(server.url, limit, prefix="threads:"), random.Random(seed)
        for _ in range(20):
            admitted.append(sum(one.admitted for one in shared.check_many(["a"] * random_.randint(1, 20), 0)))
        shared.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 300


def test_shared_recovers_from_nonsense_and_from_a_clock_far_ahead(server: Server) -> None:
    redis = pytest.importorskip("redis")
    shared = SharedLimiter(server.url, Limit(1, "10s", burst=2), prefix="odd clock:")
    with redis.Redis.from_url(server.url) as client:
        client.set("odd clock:a", "nonsense")
        client.set("odd clock:b", f"{(time.time_ns() // 1000) + 10**12}:0")
    nonsense, ahead = shared.check_many(["a", "b"], 0)
    assert nonsense.admitted
    assert not ahead.admitted
    assert ahead.retry_after == 10 * S
    shared.close()


def test_without_a_server() -> None:
    now = 0
    with valkey("--timeout", "0") as running:
        url = f"{running.url}?timeout_ms=300"
        shared = {
            what: SharedLimiter(url, Limit(1, "10s", burst=2), prefix=what, on_error=what)  # type: ignore[arg-type]
            for what in ("local", "admit", "refuse")
        }
        assert all(one.check("a", now).admitted for one in shared.values())
        running.process.kill()
        running.process.wait()

        def said(what: str, at: int) -> list[bool]:
            found = shared[what].check_many(["a"] * 3, at)
            assert all(one.degraded for one in found)
            return [one.admitted for one in found]

        assert said("local", now) == [True, True, False]
        assert said("admit", now) == [True, True, True]
        assert said("refuse", now) == [False, False, False]
        assert "cannot be reached" in shared["local"].problem
        refused = shared["refuse"].check("a", now)
        assert refused.headers()["retry-after"] == "1"

    with valkey(port=running.ports[0]):
        # Left alone for a second, then asked again.
        assert shared["refuse"].check("a", now + S - 1).degraded
        back: Allowance = until(
            lambda: (found := shared["refuse"].check("a", now + S)) and not found.degraded and found
        )
        assert back.admitted
        assert shared["refuse"].problem == ""
    for one in shared.values():
        one.close()


def test_shared_options() -> None:
    with pytest.raises(InvalidInput, match="on_error"):
        SharedLimiter("redis://localhost", Limit(1), on_error="maybe")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="database"):
        SharedLimiter("redis://localhost/x", Limit(1))
    shared = SharedLimiter("redis://localhost", Limit(1))
    for costs in ([1, 1], [0]):
        with pytest.raises(InvalidInput, match="costs"):
            shared.check_many(["a"], 0, costs=costs)
