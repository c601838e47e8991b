"""The request path in one process: what a decision saw, what it says, and what bad input gets."""

import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vitok import decisions
from vitok.clock import DAY, EventClock, SystemClock
from vitok.decisions import DecisionLog
from vitok.errors import StoreError
from vitok.features import compare
from vitok.registry import Registry
from vitok.serving import HotRequest, Reply
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService


def ask(service: FraudService, *bodies: bytes) -> list[Reply]:
    return service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in bodies])


def body(**changes: object) -> bytes:
    fields = {
        "transaction_id": "new-1",
        "event_time": "2018-05-20T12:00:00Z",
        "customer_id": "1",
        "terminal_id": "2",
        "amount": 12.5,
    }
    return json.dumps({**fields, **changes}).encode()


@pytest.fixture
def service(home: Path):
    service = FraudService(home, clock=EventClock(), checkpoint_every=500, deadline=5.0)
    yield service
    service.close()


def replay(service: FraudService, world, days: int, size: int = 16) -> int:
    start = world.timeline.replay_start
    n = 0
    for hour in hours(world.transactions, world.labels, start=start, end=start + days * DAY):
        for outcomes in hour.outcomes:
            assert service.learn(outcomes).status == 200
        for i in range(0, len(hour.bodies), size):
            replies = ask(service, *hour.bodies[i : i + size])
            assert {reply.status for reply in replies} == {200}
            n += len(replies)
    return n


def assert_parity(home: Path, world, expected: int) -> None:
    logged = decisions.read(home / "log" / "decisions")
    assert len(logged) == expected
    assert logged["request_id"].n_unique() == expected
    joined = world.rows.join(logged, left_on="transaction_id", right_on="request_id", suffix="_logged")
    seen = joined.select(f"f_{name}" for name in FEATURES.names).to_numpy()
    assert str(compare(FEATURES, seen, joined.select(FEATURES.names).to_numpy())).startswith(f"0 of {expected} ")


def test_decisions_see_what_the_table_says(service: FraudService, home: Path, world) -> None:
    n = replay(service, world, 3)
    assert n > 1000
    assert_parity(home, world, n)
    logged = decisions.read(home / "log" / "decisions")
    assert set(logged["model_version"]) == {"fraud/1"}
    assert set(logged["action"]) <= {"allow", "review", "block"}
    assert logged["probability"].is_between(0, 1).all()
    assert (logged["latency_us"] >= 0).all()


def test_the_same_request_gets_the_same_decision_and_counts_once(service: FraudService, home: Path) -> None:
    [first] = ask(service, body())
    [again] = ask(service, body())
    assert first.status == again.status == 200
    assert json.loads(first.body) == json.loads(again.body)
    both = ask(service, body(transaction_id="new-2"), body(transaction_id="new-2"))
    assert both[0].body == both[1].body
    assert len(decisions.read(home / "log" / "decisions")) == 2
    [conflict] = ask(service, body(amount=99.0))
    assert conflict.status == 409


@pytest.mark.parametrize(
    ("bad", "field", "status"),
    [
        (body(amount="12"), "amount", 422),
        (body(amount=-1), "amount", 422),
        (body(amount=None), "amount", 422),
        (
            b'{"transaction_id":"x","event_time":"2018-05-20T12:00:00Z","customer_id":"1","amount":1}',
            "terminal_id",
            422,
        ),
        (body(surprise=1), "surprise", 422),
        (body(event_time="yesterday"), "event_time", 422),
        (body(event_time="9999-12-31T23:59:59-23:00"), "event_time", 422),
        (body(event_time="0001-01-01T00:00:00+23:00"), "event_time", 422),
        (body(transaction_id="\ud800"), None, 400),
        (body(transaction_id=""), "transaction_id", 422),
        (body(transaction_id="x" * 500), "transaction_id", 422),
        (body(customer_id=["1"]), "customer_id", 422),
        (body().replace(b"12.5", b"NaN"), None, 400),
        (body().replace(b"12.5", b"1e999"), "amount", 422),
        (b"", None, 400),
        (b"\xff\xfe", None, 400),
        (b"[" * 5000, None, 400),
        (b"[]", None, 422),
    ],
)
def test_bad_requests_are_named_and_others_go_on(
    service: FraudService, bad: bytes, field: str | None, status: int
) -> None:
    replies = ask(service, body(transaction_id="a"), bad, body(transaction_id="b"))
    assert [replies[0].status, replies[2].status] == [200, 200]
    assert 400 <= replies[1].status < 500
    document = json.loads(replies[1].body)
    assert document["status"] == replies[1].status
    assert document["detail"]
    if field is not None:
        assert replies[1].status == status
        assert field in json.dumps(document)


def test_a_future_event_is_refused_on_the_system_clock(home: Path) -> None:
    service = FraudService(home, clock=SystemClock())
    [reply] = ask(service, body(event_time="2999-01-01T00:00:00Z"))
    assert reply.status == 422
    assert b"future" in reply.body
    service.close()


def test_outcomes_are_joined_once_and_unknown_ones_are_named(service: FraudService, home: Path) -> None:
    ask(service, body())
    outcome = {"request_id": "new-1", "value": 1, "event_time": "2018-05-27T12:00:00Z"}
    first = json.loads(service.learn(json.dumps({"outcomes": [outcome, outcome]}).encode()).body)
    again = json.loads(service.learn(json.dumps({"outcomes": [outcome]}).encode()).body)
    assert (first["accepted"], first["duplicates"], again["accepted"], again["duplicates"]) == (1, 1, 0, 1)
    wrong = [{**outcome, "request_id": "nobody"}, {**outcome, "value": 3}, {**outcome, "kind": "taste"}]
    told = json.loads(service.learn(json.dumps({"outcomes": wrong}).encode()).body)["rejected"]
    assert [item["detail"].split(":")[0] for item in told] == ["request_id", "value", "kind"]
    assert service.quarantine.count() == 3
    [after] = ask(service, body(transaction_id="new-3", event_time="2018-05-28T12:00:00Z"))
    assert after.status == 200
    seen = decisions.read(home / "log" / "decisions").filter(pl.col("request_id") == "new-3")
    assert seen["f_terminal_labels_risk_1d"][0] > 0
    reversal = {**outcome, "value": 0, "event_time": "2018-06-01T12:00:00Z", "supersedes": True}
    assert json.loads(service.learn(json.dumps({"outcomes": [reversal]}).encode()).body)["accepted"] == 1
    view = decisions.labels(home / "log" / "outcomes", as_of=service.clock.now(), kind=SYSTEM)
    assert view.filter(pl.col("request_id") == "new-1")["label"].to_list() == [0.0]


@pytest.mark.parametrize("bad", [b"", b"{}", b'{"outcomes":[{}]}', b'{"outcomes":7}', b"\xff"])
def test_bad_outcomes_are_named(service: FraudService, bad: bytes) -> None:
    assert 400 <= service.learn(bad).status < 500


def test_a_restart_goes_on_from_checkpoint_and_log(home: Path, world) -> None:
    start = world.timeline.replay_start
    n = 0
    for day in range(3):
        service = FraudService(home, clock=EventClock(), checkpoint_every=300, deadline=5.0)
        part = list(hours(world.transactions, world.labels, start=start + day * DAY, end=start + (day + 1) * DAY))
        for hour in part:
            for outcomes in hour.outcomes:
                service.learn(outcomes)
            if hour.bodies:
                ask(service, *hour.bodies)
                n += len(hour.bodies)
        if day == 1:
            service.close()
        else:  # as after a crash: nothing is saved, the log's lock is let go
            service.state._wait()
            service._log.close()
            service._outcomes.close()
            service.state._store.close()
    assert_parity(home, world, n)


def test_a_log_that_cannot_be_written_refuses_and_leaves_no_trace(
    service: FraudService, home: Path, world, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(service, body(transaction_id="before"))

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(DecisionLog, "append", full)
        [refused] = ask(service, body(transaction_id="during"))
    assert refused.status == 503
    assert b"retry-after" in refused.headers
    assert len(decisions.read(home / "log" / "decisions")) == 1
    [accepted] = ask(service, body(transaction_id="during", event_time="2018-05-20T13:00:00Z"))
    assert accepted.status == 200
    logged = decisions.read(home / "log" / "decisions")
    assert logged["f_customer_count_6h"].to_list()[-1] == logged["f_customer_count_6h"][0] + 1


def test_rules_answer_where_no_model_does(world, tmp_path: Path) -> None:
    service = FraudService(world.home(tmp_path / "home", model=False), clock=EventClock(), deadline=5.0)
    [reply] = ask(service, body(amount=500))
    answer = json.loads(reply.body)
    assert (answer["route"], answer["model_version"], answer["action"]) == ("fallback", "rules", "block")
    assert answer["probability"] is None
    assert service.ready()["model"] != "ok"
    service.close()


def test_a_model_that_fails_degrades_the_answer(service: FraudService, monkeypatch: pytest.MonkeyPatch) -> None:
    champion = service.versions.current.champion
    assert champion is not None

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(champion.runtime._runner), "run", broken)
    [reply] = ask(service, body())
    answer = json.loads(reply.body)
    assert (reply.status, answer["route"]) == (200, "fallback")


def test_canary_takes_its_share_and_both_are_scored(service: FraudService, home: Path, world) -> None:
    package = service.registry.load(SYSTEM, 1)
    files = {name: package.bytes(name) for name in package.files}
    registry = Registry(home)
    now = world.timeline.replay_start
    version = registry.register(SYSTEM, files, now=now, actor="test")
    registry.ledger.start_canary(SYSTEM, version.version, 0.3, reason="t", actor="t", now=now, override="a test")
    service.versions.refresh()
    n = replay(service, world, 1)
    logged = decisions.read(home / "log" / "decisions")
    share = (logged["route"] == "canary").mean()
    assert 0.15 < share < 0.45
    assert set(logged.filter(pl.col("route") == "canary")["model_version"]) == {"fraud/2"}
    assert set(logged.filter(pl.col("route") == "canary")["shadow_version"]) == {"fraud/1"}
    by_customer = logged.group_by("customer_id").agg(pl.col("route").n_unique())
    assert by_customer["route"].max() == 1
    np.testing.assert_allclose(logged["probability"], logged["shadow_probability"])
    registry.ledger.promote(SYSTEM, version.version, "Production", reason="t", actor="t", now=now, override="a test")
    service.versions.refresh()
    [reply] = ask(service, body(event_time="2018-05-13T00:00:00Z"))
    assert json.loads(reply.body)["model_version"] == "fraud/2"
    registry.ledger.rollback(SYSTEM, reason="t", actor="t", now=now)
    service.versions.refresh()
    [reply] = ask(service, body(transaction_id="n2", event_time="2018-05-13T00:00:00Z"))
    assert json.loads(reply.body)["model_version"] == "fraud/1"
    assert n == len(logged)
    registry.close()
