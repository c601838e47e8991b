"""The challenger against the champion on matured decisions, and as a version. Oracle: the costs written out by row."""

import dataclasses
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

from vitok import decisions, stats
from vitok.clock import DAY, HOUR, EventClock
from vitok.decisions import labels, replay_decision
from vitok.errors import Conflict, NotFound
from vitok.policies import Costs, TierPolicy
from vitok.registry import Registry, Tracker
from vitok.serving import HotRequest
from vitok.systems.fraud.challenger import Challenger, ChallengerRules
from vitok.systems.fraud.challenger_release import online_candidate, register_online
from vitok.systems.fraud.challenger_serving import FOLDER
from vitok.systems.fraud.challenger_standing import Tally, standing
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.service import FraudService

RULES = ChallengerRules(grace=HOUR)
POLICY = TierPolicy(costs=Costs(), pass_through=0.02)


def law(X: Any) -> Any:
    return np.where(X[:, 0] > 110, 0.7, 0.002)


@dataclasses.dataclass
class Lived:
    home: Path
    end: int
    challenger: Challenger
    tracker: Tracker


@pytest.fixture(scope="module")
def lived(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    """A home in which the champion says nothing of use, and the challenger what is true."""
    home = tmp_path_factory.mktemp("lived") / "home"
    shutil.copytree(template, home)
    X, n = rows(12_000), 12_000
    said = {
        "probability": np.full(n, 0.05),
        "score": np.full(n, 0.05),
        "shadow_version": [None] * 500 + ["fraud-online/000000000000"] * (n - 500),
        "shadow_probability": law(X),
    }
    life = Life(home, X, law, days=8, delay=DAY, columns=said)
    registry = Registry(home)
    challenger = Challenger(home, registry, label_delay=DAY, rules=RULES)
    for day in range(2, 10):
        challenger.day(life.until(BEGIN + day * DAY))
    life.until(life.end)
    life.close()
    yield Lived(home, life.end, challenger, Tracker(home))
    registry.close()


def frame(lived: Lived, **columns: Any) -> pl.DataFrame:
    logged = decisions.read(lived.home / "log" / "decisions")
    known = labels(lived.home / "log" / "outcomes", as_of=lived.end, kind="fraud")
    return decisions.join(logged, known).with_columns(**columns)


def test_both_are_compared_on_the_same_decisions(lived: Lived) -> None:
    told = frame(lived)
    found = standing(told, policy=POLICY, costs=Costs(), since=BEGIN, until=lived.end)
    assert found is not None
    both = told.drop_nulls("shadow_version")
    y, amount = both["label"].to_numpy(), both["amount"].to_numpy()
    assert (found.n_obs, found.n_positives) == (len(y), int(y.sum()))
    plain = dataclasses.replace(POLICY, pass_through=0.0)
    costs = {}
    for side, column in ((found.challenger, "shadow_probability"), (found.champion, "probability")):
        p = both[column].to_numpy()
        actions = np.array(plain.decide(p, amount, [""] * len(p)).actions)
        costs[side.name] = Costs().realised(actions, amount, y)
        assert side.cost.value == pytest.approx(costs[side.name].mean())
        assert side.roc_auc.value == stats.roc_auc(y, p).value
        assert side.average_precision.value == stats.average_precision(y, p).value
        assert side.log_loss.value == pytest.approx(stats.log_loss(y, p).value)
    difference = costs["challenger"] - costs["champion"]
    assert found.cost_difference.value == pytest.approx(difference.mean())
    assert found.cost_difference.upper < 0
    assert found.log_loss_difference.upper < 0
    text = str(found)
    assert "  challenger: AUC 0." in text
    assert "  challenger less champion: log loss -" in text
    json.dumps(found.to_dict())
    tally = Tally(until=0)
    for first in range(0, len(told), 2500):
        tally = tally.added(told[first : first + 2500], policy=POLICY, costs=Costs(), until=first)
    assert tally.n_obs == len(difference)
    assert tally.mean == pytest.approx(difference.mean())
    assert tally.scatter / tally.n_obs == pytest.approx(difference.var())
    assert Tally(**json.loads(json.dumps(tally.to_dict()))) == tally
    assert tally.difference().lower < found.cost_difference.lower


def test_what_was_blocked_is_stood_for_by_what_was_let_pass(lived: Lived) -> None:
    # Oracle: all labels. Of what the champion blocks one in fifty passes at random, and the rest has no label.
    told = frame(lived).drop_nulls("shadow_version")
    X = told["amount"].to_numpy()
    probability = np.where(X > 60, 0.95, 0.01)
    told = told.with_columns(probability=pl.Series(probability))
    actions = POLICY.decide(probability, X, told["request_id"].to_list())
    assert 0.1 < actions.actions.count("block") / len(X) < 0.6
    whole = standing(told, policy=POLICY, costs=Costs(), since=0, until=1)
    blocked = np.array(actions.actions) == "block"
    seen = told.with_columns(
        action=pl.Series(actions.actions),
        propensity=pl.Series(actions.propensity),
        label=pl.when(pl.Series(~blocked)).then(pl.col("label")),
    )
    partly = standing(seen, policy=POLICY, costs=Costs(), since=0, until=1)
    assert whole is not None
    assert partly is not None
    assert partly.n_obs == int((~blocked).sum())
    for name in ("challenger", "champion"):
        true, found = getattr(whole, name).cost.value, getattr(partly, name).cost
        assert found.lower < true < found.upper
    assert partly.cost_difference.lower < whole.cost_difference.value < partly.cost_difference.upper


def test_nothing_to_compare(lived: Lived) -> None:
    told = frame(lived)
    how: dict[str, Any] = {"policy": POLICY, "costs": Costs(), "since": 0, "until": 1}
    assert standing(told[:0], **how) is None
    assert standing(told.with_columns(label=pl.lit(None, pl.Float64)), **how) is None
    assert standing(told.with_columns(shadow_version=pl.lit("fraud/2")), **how) is None
    empty = Tally(until=3).added(told[:0], policy=POLICY, costs=Costs(), until=4)
    assert empty == Tally(until=4)
    assert empty.difference().n_obs == 0


def test_a_day_tells_how_it_does(lived: Lived) -> None:
    day = lived.challenger.day(lived.end)
    assert day.standing is not None
    assert day.better
    assert day.cost_difference.upper < 0
    assert "it is better" in str(day)
    json.dumps(day.to_dict())
    again = lived.challenger.day(lived.end)
    assert again.cost_difference == day.cost_difference
    assert again.hour.learned == 0


def test_what_proves_better_becomes_a_version(lived: Lived, tmp_path: Path) -> None:
    registry = lived.challenger.registry
    lived.challenger.day(lived.end)
    how: dict[str, Any] = {"now": lived.end, "actor": "test", "reason": "it is better", "key": "online/1"}
    made = register_online(lived.challenger, registry, lived.tracker, **how)
    assert made.verdict.accepted, made.verdict
    assert register_online(lived.challenger, registry, lived.tracker, **how) == made
    model = LoadedModel.load(registry.load(SYSTEM, made.version), made.name, "", FEATURES)
    X = rows(500, seed=9).astype(np.float32).astype(np.float64)
    snapshot = lived.challenger.snapshot()
    assert snapshot is not None
    _, probability = model.answer(X)
    expected = snapshot.predict({name: X[:, i] for i, name in enumerate(FEATURES.names)})
    np.testing.assert_allclose(probability, expected, rtol=1e-12)
    registry.ledger.start_canary(SYSTEM, made.version, 0.5, reason="it is better", actor="test", now=lived.end)
    service = FraudService(lived.home, clock=EventClock(), deadline=5.0)
    answers = [json.loads(reply.body) for reply in service.handle([asked(number) for number in range(20)])]
    assert {answer["model_version"] for answer in answers} == {"fraud/1", made.name}
    service.close()
    for answer in answers:
        replayed = replay_decision(lived.home / "log" / "decisions", answer["decision_id"], FraudReplayed(lived.home))
        assert replayed.differences == ()
        assert "shadow_probability" in replayed.compared


def FraudReplayed(home: Path) -> Any:  # noqa: N802
    from vitok.console.decision_replay import FraudReplay

    return FraudReplay(home).recompute


def asked(number: int) -> HotRequest:
    body = {
        "transaction_id": f"q-{number}",
        "event_time": "2018-05-20T12:00:00Z",
        "customer_id": str(number),
        "terminal_id": "2",
        "amount": 10.0 * number + 1,
    }
    return HotRequest(json.dumps(body).encode(), time.perf_counter_ns(), [])


def test_one_that_is_no_better_is_refused_by_its_gate(lived: Lived, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, ignore=shutil.ignore_patterns(FOLDER, "log"))
    n = 4000
    said = {
        "shadow_version": ["fraud-online/000000000000"] * n,
        "shadow_probability": np.random.default_rng(0).random(n),
    }
    life = Life(home, rows(n), law, days=8, delay=DAY, columns=said)
    life.until(life.end)
    life.close()
    registry = Registry(home)
    challenger = Challenger(home, registry, label_delay=DAY, rules=RULES)
    assert not challenger.day(life.end).better
    candidate = online_candidate(challenger, life.end)
    assert not candidate.verdict.accepted
    assert {check.name for check in candidate.verdict.failed} >= {"cost against the champion", "calibration"}
    registry.close()


def test_nothing_can_be_released_before_it_has_begun(home: Path) -> None:
    registry = Registry(home)
    challenger = Challenger(home, registry, label_delay=DAY, rules=RULES)
    with pytest.raises(Conflict, match="no challenger"):
        online_candidate(challenger, BEGIN)
    challenger.hour(BEGIN)
    with pytest.raises(NotFound):
        online_candidate(challenger, BEGIN)
    registry.close()
