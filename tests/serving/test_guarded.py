"""The guard before an endpoint: who is let in, what is told, and that nothing else changes."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from vitok.clock import DAY, SECOND, EventClock
from vitok.errors import InvalidInput
from vitok.guard import AddressList, Allowance, KeyRing, KeyStore, Limit, Limiter, SharedLimiter
from vitok.serving import Door, HotRequest, Later, Reply
from vitok.serving.guarded import Guarded
from vitok.serving.messages import key_header


class Echo:
    path = "/echo"

    def __init__(self) -> None:
        self.seen: list[HotRequest] = []
        self.later: list[Later] = []
        self.owing = False

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply | Later]:
        self.seen.extend(requests)
        if self.owing:
            self.later = [Later() for _ in requests]
            return list(self.later)
        return [Reply(200, request.body) for request in requests]


def request(*headers: tuple[str, str], peer: str = "10.0.0.1", body: bytes = b"{}") -> HotRequest:
    return HotRequest(body, 0, [(name.encode(), value.encode()) for name, value in headers], peer)


def noted(*headers: tuple[str, str]) -> HotRequest:
    """As the protocol makes it, which has looked for a key."""
    asked = request(*headers)
    found = (key_header(name, value) for name, value in asked.headers)
    asked.shown = next((shown for shown in found if shown is not None), None)
    return asked


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.sqlite")


def ask(guarded: Guarded, *requests: HotRequest) -> list[Reply]:
    return [reply for reply in guarded.handle(requests) if isinstance(reply, Reply)]


def header(reply: Reply, name: str) -> str:
    lines = [line.partition(b": ") for line in reply.headers.split(b"\r\n")]
    return next((value.decode() for found, _, value in lines if found == name.encode()), "")


def test_keys(store: KeyStore) -> None:
    clock = EventClock(DAY)
    good = store.create("shop", tenant="shop", scopes=["echo:a"], actor="ann", now=0)
    other = store.create("other", tenant="other", scopes=["echo:b"], actor="ann", now=0)
    short = store.create("short", tenant="short", scopes=["echo:*"], actor="ann", now=0, expires=DAY // 2)
    echo = Echo()
    guarded = Guarded(echo, scope="echo:a", keys=KeyRing(store), clock=clock)
    replies = ask(
        guarded,
        request(bearer(good.token), body=b"1"),
        request(),
        request(("x-api-key", good.token), body=b"2"),
        request(bearer(other.token)),
        request(bearer(short.token)),
        request(bearer(good.token[:-2])),
        request(("authorization", "Basic abc")),
    )
    assert [reply.status for reply in replies] == [200, 401, 200, 403, 401, 401, 401]
    assert [reply.body for reply in replies if reply.status == 200] == [b"1", b"2"]
    assert [seen.tenant for seen in echo.seen] == ["shop", "shop"]
    assert header(replies[1], "www-authenticate") == "Bearer"
    assert 'error="insufficient_scope"' in header(replies[3], "www-authenticate")
    assert "expired" in json.loads(replies[4].body)["detail"]
    assert good.token.encode() not in b"".join(reply.body for reply in replies)
    assert sum(guarded.refused.values()) == 5


def test_rates_by_key_and_by_user(store: KeyStore) -> None:
    one = store.create("one", tenant="t", scopes=["echo"], actor="ann", now=0)
    two = store.create("two", tenant="t", scopes=["echo"], actor="ann", now=0)
    guarded = Guarded(
        Echo(),
        scope="echo",
        keys=KeyRing(store),
        key_limit=Limiter(Limit(3, "1h")),
        user_limit=Limiter(Limit(1, "1h")),
        clock=EventClock(DAY),
    )
    ann, bob = ("x-user-id", "ann"), ("x-user-id", "bob")
    replies = ask(
        guarded,
        request(bearer(one.token), ann),
        request(bearer(one.token), ann),
        request(bearer(one.token), bob),
        request(bearer(one.token)),
        request(bearer(two.token), ann),
    )
    assert [reply.status for reply in replies] == [200, 429, 200, 429, 200]
    assert header(replies[0], "ratelimit") == '"default";r=2;t=1200'
    assert int(header(replies[3], "retry-after")) > 1000
    assert guarded.refused == {"user rate": 1, "rate": 1}


def test_addresses_and_sizes() -> None:
    guarded = Guarded(
        Echo(), scope="echo", addresses=AddressList(allow=["10.0.0.0/8"], trusted=["10.9.9.9/32"]), max_body=4
    )
    replies = ask(
        guarded,
        request(),
        request(peer="192.0.2.1"),
        request(("x-forwarded-for", "10.1.1.1"), peer="192.0.2.1"),
        request(("x-forwarded-for", "192.0.2.7"), peer="10.9.9.9"),
        request(body=b"12345"),
        request(peer=""),
    )
    assert [reply.status for reply in replies] == [200, 403, 403, 403, 413, 403]


def test_an_answer_that_is_owed_tells_the_rate_too() -> None:
    echo = Echo()
    echo.owing = True
    guarded = Guarded(echo, scope="echo", key_limit=Limiter(Limit(2, "1h")))
    (later,) = guarded.handle([request()])
    assert isinstance(later, Later)
    echo.later[0].give(Reply(200, b"{}", b"x: y\r\n"))
    assert later.reply is not None
    assert later.reply.headers.startswith(b"x: y\r\nratelimit-policy: ")


def test_the_door_takes_it_for_an_endpoint_like_any_other() -> None:
    guarded = Guarded(Echo(), scope="echo", key_limit=Limiter(Limit(2, "1h")))
    door = Door([guarded])
    replies = door.answer(guarded, [request(), request(), request()])
    assert [reply.status for reply in replies if isinstance(reply, Reply)] == [200, 200, 429]
    assert door.faults == 0


def test_a_guard_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="guard: got 'nothing', must check something"):
        Guarded(Echo(), scope="echo")


def test_what_is_told_of_the_rate_is_what_the_allowance_says() -> None:
    limits = [Limit(3, "1m", name="key"), Limit(2, "1s", burst=9, name="other")]
    for limit in limits:
        guarded = Guarded(Echo(), scope="echo", key_limit=Limiter(limit))
        for left in range(limit.size - 1, -1, -1):
            reply = ask(guarded, request())[0]
            seconds = header(reply, "ratelimit").rpartition("=")[2]
            assert header(reply, "ratelimit") == f'"{limit.name}";r={left};t={seconds}'
            assert header(reply, "ratelimit-policy") == limit.policy()
            assert 0 < int(seconds) <= 60


def test_a_turn_takes_its_tokens_together_or_as_far_as_they_reach(store: KeyStore) -> None:
    one = store.create("one", tenant="one", scopes=["echo"], actor="ann", now=0)
    ring = KeyRing(store)
    guarded = Guarded(Echo(), scope="echo", keys=ring, key_limit=Limiter(Limit(5, "1h")), clock=EventClock(DAY))
    both = [request(bearer(one.token)), request(("x-api-key", one.token)), request(bearer(one.token))]
    first = ask(guarded, *both)
    assert [header(reply, "ratelimit").partition(";t=")[0] for reply in first] == ['"default";r=2'] * 3
    second = ask(guarded, *both)
    assert [reply.status for reply in second] == [200, 200, 429]
    assert [header(reply, "ratelimit").partition(";t=")[0][-1] for reply in second] == ["1", "0", "0"]
    assert guarded.refused == {"rate": 1}


def test_every_line_of_forwarded_for_counts() -> None:
    edge = AddressList(allow=["203.0.113.0/24"], trusted=["10.0.0.0/8"])
    guarded = Guarded(Echo(), scope="", addresses=edge)
    # The caller wrote the first line, the proxy appended what it saw.
    lied = request(("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "198.51.100.1"), peer="10.0.0.2")
    honest = request(("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "10.0.0.3"), peer="10.0.0.2")
    assert [reply.status for reply in ask(guarded, lied, honest)] == [403, 200]


def test_callers_behind_a_proxy_have_a_rate_each() -> None:
    limiter = Limiter(Limit(1, "1h"))
    edge = AddressList(allow=["0.0.0.0/0"], trusted=["10.0.0.0/8"])
    guarded = Guarded(Echo(), scope="", addresses=edge, key_limit=limiter)
    asked = [request(("x-forwarded-for", address), peer="10.0.0.2") for address in ("192.0.2.1", "192.0.2.2")]
    assert [reply.status for reply in ask(guarded, *asked)] == [200, 200]
    assert [reply.status for reply in ask(guarded, *asked)] == [429, 429]


class Shared(SharedLimiter):
    """One that needs no server and counts how often it is asked."""

    def __init__(self, limit: Limit) -> None:
        self.inner = Limiter(limit)
        self.trips = 0

    def check_many(self, callers: Sequence[str], now: int, *, costs: Sequence[int] | None = None) -> list[Allowance]:
        self.trips += 1
        return [self.inner.check(name, now, n) for name, n in zip(callers, costs or [1] * len(callers), strict=True)]


def test_a_turn_is_one_round_trip_to_the_limit_that_processes_share() -> None:
    shared = Shared(Limit(10, "1h"))
    guarded = Guarded(Echo(), scope="", key_limit=shared)
    asked = [request(peer=f"192.0.2.{place % 8}") for place in range(64)]
    replies = ask(guarded, *asked)
    assert [reply.status for reply in replies] == [200] * 64
    assert shared.trips == 1
    assert header(replies[0], "ratelimit") == '"default";r=2;t=2880'
    # Two more are there for each; of eight each, two pass.
    assert sorted(reply.status for reply in ask(guarded, *asked)) == [200] * 16 + [429] * 48
    assert shared.trips == 3


def test_many_keys_are_let_in_as_each_by_itself(store: KeyStore) -> None:
    made = [store.create(f"k{n}", tenant=f"t{n % 7}", scopes=["echo"], actor="ann", now=0) for n in range(100)]
    clock, echo = EventClock(DAY), Echo()
    guarded = Guarded(echo, scope="echo", keys=KeyRing(store), key_limit=Limiter(Limit(100, "1h")), clock=clock)
    for asked in range(3):
        for at in range(0, 100, 10):
            turn = made[at : at + 10]
            replies = ask(guarded, *(noted(bearer(one.token)) for one in turn))
            assert [reply.status for reply in replies] == [200] * 10
            assert {header(reply, "ratelimit").partition(";t=")[0] for reply in replies} == {
                f'"default";r={99 - asked}'
            }
    assert [seen.tenant for seen in echo.seen] == [one.key.tenant for one in made] * 3
    assert guarded.refused == {}


def test_a_key_that_is_revoked_is_refused_at_the_next_look_and_no_other_with_it(store: KeyStore) -> None:
    made = [store.create(f"k{n}", tenant="t", scopes=["echo"], actor="ann", now=0) for n in range(4)]
    clock, echo = EventClock(DAY), Echo()
    guarded = Guarded(echo, scope="echo", keys=KeyRing(store, refresh="1s"), clock=clock)

    def statuses() -> list[int]:
        return [reply.status for reply in ask(guarded, *(noted(bearer(one.token)) for one in made))]

    assert statuses() == statuses() == [200] * 4
    store.revoke(made[2].key.key_id, reason="lost", actor="ann", now=DAY)
    clock.advance(DAY + SECOND - 1)
    assert statuses() == [200] * 4
    clock.advance(DAY + SECOND)
    assert statuses() == [200, 200, 401, 200]
    assert statuses() == [200, 200, 401, 200]


def test_a_remembered_key_is_for_its_own_endpoint_only(store: KeyStore) -> None:
    made = store.create("one", tenant="t", scopes=["echo:a"], actor="ann", now=0)
    ring, clock = KeyRing(store), EventClock(DAY)
    one, other = (Guarded(Echo(), scope=scope, keys=ring, clock=clock) for scope in ("echo:a", "echo:b"))
    for _ in range(2):
        assert ask(one, noted(bearer(made.token)))[0].status == 200
        assert ask(other, noted(bearer(made.token)))[0].status == 403


def test_the_first_header_with_a_key_counts_whoever_reads_it(store: KeyStore) -> None:
    good, bad = (store.create(name, tenant=name, scopes=[name], actor="ann", now=0) for name in ("echo", "other"))
    guarded = Guarded(Echo(), scope="echo", keys=KeyRing(store), clock=EventClock(DAY))
    for make in (request, noted):
        for _ in range(2):
            replies = ask(
                guarded,
                make(("x-api-key", good.token), bearer(bad.token)),
                make(bearer(bad.token), ("x-api-key", good.token)),
                make(("authorization", "Basic abc"), ("authorization", f"bEARER  {good.token} ")),
                make(("x-other", good.token)),
            )
            assert [reply.status for reply in replies] == [200, 403, 200, 401]
