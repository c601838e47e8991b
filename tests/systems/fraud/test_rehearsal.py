"""Rehearsed decisions. Oracle: the service itself, with the candidate answering a part and scoring beside the rest."""

import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vitok import decisions, settings
from vitok.clock import DAY, EventClock
from vitok.errors import InvalidInput
from vitok.loop import PairedJudge
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.serving import HotRequest
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.model import LoadedModel
from vitok.systems.fraud.rehearsal import rehearsed
from vitok.systems.fraud.releases import Workshop, load
from vitok.systems.fraud.replay import hours
from vitok.systems.fraud.service import FraudService


@pytest.fixture
def served(home: Path, world) -> tuple[Path, LoadedModel, LoadedModel]:
    """Two days, on the second of which a canary of another version runs."""
    start = world.timeline.replay_start
    registry = Registry(home)
    service = FraudService(home, clock=EventClock(), deadline=100.0)
    for hour in hours(world.transactions, world.labels, start=start, end=start + 2 * DAY):
        if hour.start == start + DAY:
            workshop = Workshop(home, world.rows, world.labels, "test", Costs(false_block=60), world.timeline.start)
            with settings.using(threads=1, seed=9):
                files = workshop.first(world.timeline).files()
            number = registry.register(SYSTEM, files, now=hour.start, actor="test").version
            registry.ledger.start_canary(
                SYSTEM, number, 0.3, reason="test", actor="test", now=hour.start, override="the tests do not judge it"
            )
            service.versions.refresh()
        service.handle([HotRequest(body, time.perf_counter_ns(), []) for body in hour.bodies])
    service.close()
    found = (home / "log" / "decisions", load(registry, 2), load(registry, 1))
    registry.close()
    return found


def test_what_is_rehearsed_is_what_the_service_did(served: tuple[Path, LoadedModel, LoadedModel], world) -> None:
    folder, candidate, incumbent = served
    start = world.timeline.replay_start
    found = rehearsed(folder, candidate=candidate, incumbent=incumbent, since=start + DAY, until=start + 2 * DAY)
    logged = decisions.read(folder, since=start + DAY)
    assert found["request_id"].to_list() == logged["request_id"].to_list()
    acted = (logged["model_version"] == candidate.version).to_numpy()
    assert 0 < acted.sum() < len(acted)
    probability, shadow = logged["probability"].to_numpy(), logged["shadow_probability"].to_numpy()
    assert np.array_equal(found["probability"].to_numpy(), np.where(acted, shadow, probability))
    assert np.array_equal(found["shadow_probability"].to_numpy(), np.where(acted, probability, shadow))
    assert found["action"].to_numpy()[~acted].tolist() == logged["action"].to_numpy()[~acted].tolist()
    assert not np.array_equal(found["probability"].to_numpy(), found["shadow_probability"].to_numpy())


def test_a_judge_takes_days_from_before_the_canary(served: tuple[Path, LoadedModel, LoadedModel], world) -> None:
    folder, candidate, incumbent = served
    start = world.timeline.replay_start
    before = rehearsed(folder, candidate=candidate, incumbent=incumbent, since=start, until=start + DAY)
    judge = PairedJudge(
        candidate=candidate.version,
        incumbent=incumbent.version,
        candidate_policy=candidate.policy,
        incumbent_policy=incumbent.policy,
        costs=Costs(),
    )
    assert judge.see(before) == len(before) > 100
    truth = world.labels.select(pl.col("transaction_id").alias("request_id"), label="is_fraud")
    assert judge.mature(before.join(truth, on="request_id")) == len(before)
    live = decisions.read(folder, since=start + DAY)
    assert judge.see(live) == len(live)


def test_a_period_without_decisions(served: tuple[Path, LoadedModel, LoadedModel]) -> None:
    folder, candidate, incumbent = served
    found = rehearsed(folder, candidate=candidate, incumbent=incumbent, since=0, until=DAY)
    assert found.is_empty()
    assert found.schema["shadow_probability"] == pl.Float64
    with pytest.raises(InvalidInput, match="another version"):
        rehearsed(folder, candidate=candidate, incumbent=candidate, since=0, until=DAY)
