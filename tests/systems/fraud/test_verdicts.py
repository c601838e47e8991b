"""Who answers: versions, canary, shadow, the version before, and rules where no model does in time."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok import decisions
from vitok.clock import EventClock
from vitok.errors import InvalidInput
from vitok.features import compare
from vitok.loop import CANARY_FAILED
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService
from vitok.systems.fraud.verdicts import Verdicts

EARLY = 6_000_000_000  # nanoseconds, longer than the deadline that a busy machine keeps


@pytest.fixture
def service(home: Path) -> Iterator[FraudService]:
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    yield service
    service.close()


def body(number: int, **changes: object) -> bytes:
    fields = {
        "transaction_id": f"v-{number}",
        "event_time": "2018-05-20T12:00:00Z",
        "customer_id": str(number),
        "terminal_id": "2",
        "amount": 12.5,
    }
    return json.dumps({**fields, **changes}).encode()


def ask(service: FraudService, *requests: HotRequest) -> list[dict[str, Any]]:
    replies = service.handle(list(requests))
    assert {reply.status for reply in replies} == {200}
    return [json.loads(reply.body) for reply in replies]


def now(number: int, *, ago: int = 0, **more: Any) -> HotRequest:
    return HotRequest(body(number), time.perf_counter_ns() - ago, [], **more)


def logged(service: FraudService) -> pl.DataFrame:
    return decisions.read(service.home / "log" / "decisions")


def break_(model: LoadedModel | None, monkeypatch: pytest.MonkeyPatch, how: Callable[..., Any]) -> None:
    assert model is not None
    monkeypatch.setattr(model.runtime, "_runner", type("Broken", (), {"run": staticmethod(how)})())


def out_of_memory(*_: object) -> None:
    raise MemoryError("no memory")


def second(service: FraudService, world: Any, *, canary: float = 0.0, **files: Any) -> str:
    """Registers the version once more, in Production or as a canary."""
    package = service.registry.load(SYSTEM, 1)
    contents = {name: package.bytes(name) for name in package.files} | files
    registry = Registry(service.home)
    at = world.timeline.replay_start
    version = registry.register(SYSTEM, contents, now=at, actor="test")
    why = {"reason": "test", "actor": "test", "now": at, "override": "a test"}
    if canary:
        registry.ledger.start_canary(SYSTEM, version.version, canary, **why)
    else:
        registry.ledger.promote(SYSTEM, version.version, "Production", **why)
    registry.close()
    service.versions.refresh()
    return version.name


def test_a_request_that_is_late_at_its_turn_is_answered_by_rules(service: FraudService) -> None:
    late, on_time = ask(service, now(1, ago=EARLY), now(2))
    assert (late["route"], late["model_version"], late["probability"]) == ("fallback", "rules", None)
    assert (on_time["route"], on_time["model_version"]) == ("champion", "fraud/1")
    assert [answer["route"] for answer in ask(service, now(3, ago=EARLY), now(4, ago=EARLY))] == ["fallback"] * 2
    assert service.counts["late"] == 3
    rows = logged(service).sort("request_id")
    assert rows["route_reason"].to_list() == [
        "older than its deadline of 5000 ms when its turn came; the rules answered",
        "there is no canary",
        *["older than its deadline of 5000 ms when its turn came; the rules answered"] * 2,
    ]
    assert rows["policy_version"].to_list()[0] == "rules"
    assert rows["latency_us"].to_list()[0] >= EARLY // 1000


def test_lateness_changes_nothing_of_what_is_seen(service: FraudService, world: Any) -> None:
    # Oracle: the point-in-time table.
    n, start = 0, world.timeline.replay_start
    for hour in hours(world.transactions, world.labels, start=start, end=start + 20 * 3_600_000_000):
        for outcomes in hour.outcomes:
            service.learn(outcomes)
        for i in range(0, len(hour.bodies), 7):
            requests = [
                HotRequest(text, time.perf_counter_ns() - (EARLY if place % 3 == 0 else 0), [])
                for place, text in enumerate(hour.bodies[i : i + 7])
            ]
            n += len(ask(service, *requests))
    rows = logged(service)
    assert len(rows) == n
    assert 0.2 < (rows["route"] == "fallback").mean() < 0.6
    joined = world.rows.join(rows, left_on="transaction_id", right_on="request_id", suffix="_logged")
    seen = joined.select(f"f_{name}" for name in FEATURES.names).to_numpy()
    assert compare(FEATURES, seen, joined.select(FEATURES.names).to_numpy()).n_differing_rows == 0
    answered = rows.filter(pl.col("route") == "champion")
    champion = service.versions.current.champion
    assert champion is not None
    values = answered.select(f"f_{name}" for name in FEATURES.names).to_numpy()
    np.testing.assert_array_equal(champion.answer(values)[1], answered["probability"].to_numpy())


def test_a_model_that_fails_is_left_alone(service: FraudService, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def broken(*_: object) -> None:
        calls.append(1)
        raise MemoryError("no memory")

    break_(service.versions.current.champion, monkeypatch, broken)
    assert {ask(service, now(number))[0]["route"] for number in range(25)} == {"fallback"}
    assert len(calls) == 20
    assert service.counts["fallbacks"] == 25
    reasons = logged(service)["route_reason"].to_list()
    assert "no memory" in reasons[0]
    assert reasons[-1] == "there is no canary; fraud/1 is out: 20 calls in a row failed; the rules answered"
    assert service.ready()["model"] == "fraud/1 is out: 20 calls in a row failed"


def test_a_score_that_is_no_number_is_a_failure(service: FraudService, monkeypatch: pytest.MonkeyPatch) -> None:
    champion = service.versions.current.champion
    assert champion is not None
    monkeypatch.setattr(champion.runtime, "score", lambda rows: np.full(len(rows), np.nan))
    [answer] = ask(service, now(1))
    assert answer["route"] == "fallback"
    assert "a score is no number" in logged(service)["route_reason"][0]


def test_the_version_before_answers_for_a_champion_that_fails(
    service: FraudService, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = second(service, world)
    [well] = ask(service, now(1))
    assert well["model_version"] == name
    break_(service.versions.current.champion, monkeypatch, out_of_memory)
    [answer] = ask(service, now(2))
    assert (answer["route"], answer["model_version"]) == ("fallback", "fraud/1")
    assert answer["probability"] is not None
    row = logged(service).sort("request_id").row(1, named=True)
    assert row["route_reason"].startswith(f"there is no canary; {name}: the model failed on")
    assert (row["stage"], row["shadow_version"]) == ("Archived", None)


def test_a_canary_that_fails_is_said_of_each_decision(
    service: FraudService, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    second(service, world, canary=0.5)
    both = ask(service, *(now(number) for number in range(20)))
    assert {answer["route"] for answer in both} == {"champion", "canary"}
    break_(service.versions.current.canary, monkeypatch, out_of_memory)
    assert {answer["route"] for answer in ask(service, *(now(number) for number in range(20, 40)))} == {"champion"}
    rows = logged(service)[20:]
    assert set(rows["route_reason"]) == {CANARY_FAILED}
    assert rows["shadow_version"].is_null().all()
    assert service.counts["shadow_failures"] == 20


def test_a_canary_keeps_its_customers_where_the_champion_fails(
    service: FraudService, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = second(service, world, canary=0.5)
    before = [answer["route"] for answer in ask(service, *(now(number) for number in range(20)))]
    break_(service.versions.current.champion, monkeypatch, out_of_memory)
    requests = [
        HotRequest(body(number, transaction_id=f"again-{number}"), time.perf_counter_ns(), []) for number in range(20)
    ]
    after = ask(service, *requests)
    assert [answer["route"] for answer in after] == ["canary" if route == "canary" else "fallback" for route in before]
    assert {answer["model_version"] for answer in after} == {name, "rules"}
    rows = logged(service).filter(pl.col("request_id").str.starts_with("again") & (pl.col("route") == "canary"))
    assert rows["shadow_version"].is_null().all()
    assert rows["route_reason"].str.starts_with("hash of the unit is within the 50 %").all()


def test_a_version_that_cannot_be_loaded_stops_nothing(service: FraudService, world: Any) -> None:
    second(service, world, **{"features.json": {"version": "other"}})
    [answer] = ask(service, now(1))
    assert (answer["route"], answer["model_version"]) == ("fallback", "fraud/1")
    assert logged(service)["route_reason"][0] == "fraud/2 cannot be loaded; there is no canary"
    assert service.ready()["model"] == "fraud/2 cannot be loaded; fraud/1 answers"
    assert service.counts["model_load_failures"] == 1
    second(service, world, canary=0.5, **{"model.forest": b"no trees"})
    ask(service, now(2))
    assert logged(service)["route_reason"].to_list()[-1].endswith(CANARY_FAILED)


def test_who_asked_and_in_which_trace_is_kept(service: FraudService) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = [(b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())]
    traced = HotRequest(body(1), time.perf_counter_ns(), headers, tenant="shop")
    service._team_of = lambda tenant: {"shop": "checkout"}.get(tenant, tenant)
    ask(service, traced, now(2, tenant="bank"), now(3))
    rows = logged(service).sort("request_id")
    assert rows["tenant"].to_list() == ["shop", "bank", ""]
    assert rows["team"].to_list() == ["checkout", "bank", ""]
    assert rows["trace_id"].to_list() == [trace, "", ""]


def test_the_time_of_a_turn_is_known_by_stage(service: FraudService) -> None:
    ask(service, *(now(number) for number in range(5)))
    found = {name: item.count for name, item in service.stages.histograms.items()}
    assert found == {"wait": 5, "read": 1, "model": 1, "log": 1, "write": 1, "total": 5}


def test_columns_of_one_value_and_of_many_mix() -> None:
    # Oracle: each row by itself.
    score = np.array([0.0, 0.4, 1.0])
    one, other = Verdicts.of_rules(score, "late"), Verdicts.of_rules(score[::-1], "out")
    found = one.or_where(np.array([False, True, False]), other)
    assert found.route_reason == ["late", "out", "late"]
    assert list(found.rows()) == [
        (action, pytest.approx(np.nan, nan_ok=True), 1.0, "rules", "fallback")
        for action in ("allow", "review", "block")
    ]


def test_the_deadline_is_fifty_milliseconds(home: Path) -> None:
    service = FraudService(home, clock=EventClock())
    [answer] = ask(service, now(1, ago=60_000_000))
    assert answer["route"] == "fallback"
    assert logged(service)["route_reason"][0].startswith("older than its deadline of 50 ms")
    service.close()


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), 1e9])
def test_a_deadline_that_is_none_is_refused(home: Path, wrong: float) -> None:
    with pytest.raises(InvalidInput, match="deadline"):
        FraudService(home, deadline=wrong)
