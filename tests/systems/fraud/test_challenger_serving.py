"""The challenger in the request path: the shadow of the log, where it gives way, and that it harms no decision."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.systems.fraud.challenger_logs import BEGIN, Life, rows

from vitok import decisions
from vitok.clock import DAY, HOUR, EventClock
from vitok.errors import StoreError
from vitok.models.online import OnlineModel
from vitok.models.online_features import Buckets, HashedFeatures
from vitok.models.online_matrix import MatrixScorer
from vitok.registry import Registry
from vitok.serving import BreakerRules, HotRequest
from vitok.systems.fraud.challenger import Challenger, ChallengerRules
from vitok.systems.fraud.challenger_serving import FOLDER, SERVING, SNAPSHOTS, ChallengerShadow, shadow_again
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.service import FraudService

NAMES = [f"f_{name}" for name in FEATURES.names]


@pytest.fixture(scope="module")
def taught(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a challenger that has learned from rows, and no log."""
    folder = tmp_path_factory.mktemp("taught")
    shutil.copytree(template, folder / "logged")
    life = Life(folder / "logged", rows(3000), lambda X: np.where(X[:, 0] > 60, 0.3, 0.01), days=2, delay=DAY)
    registry = Registry(folder / "logged")
    challenger = Challenger(
        folder / "logged", registry, label_delay=DAY, rules=ChallengerRules(grace=HOUR), features=FEATURES
    )
    for hour in (60, 90):
        challenger.hour(life.until(BEGIN + hour * HOUR))
    life.close()
    registry.close()
    shutil.copytree(template, folder / "home")
    shutil.copytree(folder / "logged" / FOLDER, folder / "home" / FOLDER)
    return folder / "home"


@pytest.fixture
def place(taught: Path, tmp_path: Path) -> Path:
    shutil.copytree(taught, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def service(place: Path) -> Iterator[FraudService]:
    service = FraudService(place, clock=EventClock(), deadline=5.0)
    yield service
    service.close()


def ask(service: FraudService, n: int, *, first: int = 0, ago: int = 0) -> list[dict[str, Any]]:
    requests = [
        HotRequest(
            json.dumps(
                {
                    "transaction_id": f"s-{number}",
                    "event_time": "2018-05-20T12:00:00Z",
                    "customer_id": str(number % 7),
                    "terminal_id": str(number % 5),
                    "amount": 3.5 * (number + 1),
                }
            ).encode(),
            time.perf_counter_ns() - ago,
            [],
        )
        for number in range(first, first + n)
    ]
    replies = service.handle(requests)
    assert {reply.status for reply in replies} == {200}
    return [json.loads(reply.body) for reply in replies]


def logged(service: FraudService) -> pl.DataFrame:
    return decisions.read(service.home / "log" / "decisions")


def break_(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[int]:
    calls: list[int] = []

    def score(_: MatrixScorer, rows: np.ndarray) -> np.ndarray:
        calls.append(len(rows))
        if error is not None:
            raise error
        return np.full(len(rows), np.nan)

    monkeypatch.setattr(MatrixScorer, "__call__", score)
    return calls


def test_it_is_the_shadow_of_every_decision(service: FraudService, place: Path) -> None:
    for first, n in ((0, 1), (1, 9), (10, 64)):
        ask(service, n, first=first)
    found = logged(service)
    assert set(found["route"]) == {"champion"}
    [version] = set(found["shadow_version"])
    assert version == service.challenger.version
    values = found.select(NAMES).to_numpy()
    model = OnlineModel.load(place / FOLDER / SERVING)
    expected = model.predict({name: values[:, i] for i, name in enumerate(FEATURES.names)})
    np.testing.assert_array_equal(found["shadow_probability"].to_numpy(), expected)
    assert len(set(expected.tolist())) > 20
    np.testing.assert_array_equal(shadow_again(place, version, values), expected)


def test_a_newer_snapshot_is_taken_beside_the_requests(service: FraudService, place: Path) -> None:
    ask(service, 1)
    before = service.challenger.version
    model = OnlineModel.load(place / FOLDER / SERVING)
    model.learn_many([dict.fromkeys(FEATURES.names, 1.0)], [1])
    model.save(place / FOLDER / SERVING)
    ask(service, 1, first=1)
    service.refresh()
    assert not service.challenger.refresh()
    ask(service, 1, first=2)
    assert logged(service)["shadow_version"].to_list() == [before, before, service.challenger.version]
    assert service.challenger.version != before


def test_a_snapshot_that_is_no_good_leaves_the_one_before(service: FraudService, place: Path) -> None:
    before = service.challenger.version
    path = place / FOLDER / SERVING
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    service.refresh()
    assert service.counts["challenger_load_failures"] == 1
    OnlineModel(HashedFeatures(features=(Buckets("elsewhere", (1.0,)),))).save(path)
    for _ in range(3):
        service.refresh()
    assert service.counts["challenger_load_failures"] == 2
    ask(service, 1)
    # A challenger that was begun anew with other bins is as good as any.
    OnlineModel(HashedFeatures(features=(Buckets("amount", (1.0,)),))).save(path)
    service.refresh()
    ask(service, 1, first=1)
    assert logged(service)["shadow_version"].to_list() == [before, service.challenger.version]
    assert service.challenger.version != before


def test_a_challenger_may_come_later_and_may_be_of_other_columns(home: Path, taught: Path) -> None:
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    service.refresh()
    ask(service, 1)
    (home / FOLDER).mkdir()
    OnlineModel(HashedFeatures(features=(Buckets("elsewhere", (1.0,)),))).save(home / FOLDER / SERVING)
    service.refresh()
    ask(service, 1, first=1)
    assert service.counts["challenger_load_failures"] == 1
    shutil.copy(taught / FOLDER / SERVING, home / FOLDER / SERVING)
    service.refresh()
    ask(service, 1, first=2)
    assert logged(service)["shadow_version"].to_list() == [None, None, service.challenger.version]
    service.close()


@pytest.mark.parametrize("error", [MemoryError("no memory"), ZeroDivisionError("a bug"), None])
def test_a_challenger_that_fails_is_counted_and_left_alone(
    service: FraudService, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    calls = break_(monkeypatch, error)
    for number in range(25):
        [answer] = ask(service, 1, first=number)
        assert answer["route"] == "champion"
    assert len(calls) == 20
    assert (service.counts["challenger_failures"], service.counts["challenger_skipped"]) == (20, 5)
    assert logged(service)["shadow_version"].is_null().all()


def test_a_slow_challenger_costs_nobody_the_champions_answer(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each call takes longer than the whole deadline.
    service = FraudService(place, clock=EventClock(), deadline=0.05)
    current = service.challenger._current
    assert current is not None
    well = current[1].model._function

    def slow(rows: np.ndarray) -> Any:
        until = time.perf_counter_ns() + 60_000_000
        while time.perf_counter_ns() < until:
            pass
        return well(rows)

    monkeypatch.setattr(current[1].model, "_function", slow)
    monkeypatch.setattr(current[1], "breaker", service.challenger._breaker)
    service.challenger._breaker.rules = BreakerRules(slow_after=0.005, min_calls=3)
    ask(service, 4, first=100, ago=60_000_000)
    for number in range(5):
        ask(service, 2, first=2 * number)
    found = logged(service).filter(pl.col("route") != "fallback")
    # The machine may be busy; what was late was late before the challenger was asked.
    late = logged(service).filter(pl.col("route") == "fallback")
    assert late["route_reason"].str.starts_with("older than its deadline of 50 ms when its turn came").all()
    assert len(found) >= 2
    assert set(found["model_version"]) == {"fraud/1"}
    assert service.counts["challenger_skipped"] >= 1
    service.close()


def second(service: FraudService, world: Any, *, canary: float = 0.0) -> str:
    package = service.registry.load(SYSTEM, 1)
    registry = Registry(service.home)
    at = world.timeline.replay_start
    version = registry.register(SYSTEM, {name: package.bytes(name) for name in package.files}, now=at, actor="test")
    why = {"reason": "test", "actor": "test", "now": at, "override": "a test"}
    if canary:
        registry.ledger.start_canary(SYSTEM, version.version, canary, **why)
    else:
        registry.ledger.promote(SYSTEM, version.version, "Production", **why)
    registry.close()
    service.refresh()
    return version.name


def test_it_gives_way_to_a_version_on_trial(service: FraudService, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = second(service, world, canary=0.5)
    ask(service, 20)
    assert set(logged(service)["shadow_version"]) == {"fraud/1", name}
    canary = service.versions.current.canary
    assert canary is not None
    monkeypatch.setattr(canary.runtime, "score", lambda rows: np.full(len(rows), np.nan))
    ask(service, 20, first=20)
    # Where the version on trial has failed, its judge must find nothing in its place.
    assert logged(service)[20:]["shadow_version"].is_null().all()


def test_it_gives_way_to_the_version_before_in_the_probation(service: FraudService, world: Any) -> None:
    second(service, world)
    service.clock.advance(world.timeline.replay_start + DAY)  # type: ignore[attr-defined]
    ask(service, 3)
    assert set(logged(service)["shadow_version"]) <= {"fraud/1", service.challenger.version}


def test_late_requests_have_no_shadow(service: FraudService) -> None:
    ask(service, 2, ago=6_000_000_000)
    ask(service, 2, first=2)
    found = logged(service).sort("request_id")
    assert found["shadow_version"].is_null().to_list() == [True, True, False, False]
    assert found["shadow_probability"].is_nan().to_list()[:2] == [True, True] or found[
        "shadow_probability"
    ].is_null().to_list()[:2] == [True, True]


def test_a_champion_that_misses_its_deadline_is_replaced_by_rules(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FraudService(place, clock=EventClock(), deadline=0.05)
    champion = service.versions.current.champion
    assert champion is not None
    well = champion.runtime._runner.run

    def slow(inputs: Any) -> Any:
        until = time.perf_counter_ns() + 60_000_000
        while time.perf_counter_ns() < until:
            pass
        return well(inputs)

    monkeypatch.setattr(champion.runtime, "_runner", type("Slow", (), {"run": staticmethod(slow)})())
    # What waits behind a turn that takes too long is too old when its own comes.
    arrived = time.perf_counter_ns()
    ask(service, 1)
    [waited] = ask(service, 1, first=1, ago=time.perf_counter_ns() - arrived)
    assert (waited["route"], waited["model_version"]) == ("fallback", "rules")
    for number in range(2, 32):
        ask(service, 1, first=number)
    answers = ask(service, 2, first=40)
    assert {answer["model_version"] for answer in answers} == {"rules"}
    found = logged(service)
    reasons = found.filter(pl.col("route") == "fallback")["route_reason"].to_list()
    assert reasons[0] == "older than its deadline of 50 ms when its turn came; the rules answered"
    assert any("fraud/1 is out: " in reason and "took longer than 0.05 s" in reason for reason in reasons)
    assert reasons[-1].endswith("the rules answered")
    service.close()


def test_a_snapshot_that_is_gone_says_nothing(place: Path) -> None:
    values = np.zeros((2, len(FEATURES.names)))
    for name in ("fraud-online/000000000000", "fraud-online/../../x", "fraud-online/"):
        assert shadow_again(place, name, values) is None
    [path, *_] = (place / FOLDER / SNAPSHOTS).iterdir()
    path.write_bytes(b"no snapshot")
    with pytest.raises(StoreError):
        shadow_again(place, f"fraud-online/{path.stem}", values)


def test_without_a_challenger_there_is_no_shadow(tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    shadow = ChallengerShadow(tmp_path, FEATURES, count=lambda name, n: counts.update({name: n}))
    assert not shadow.refresh()
    assert shadow.score(np.zeros((1, len(FEATURES.names)))) is None
    assert shadow.version is None
    assert counts == {}
