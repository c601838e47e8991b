"""A service that began with nothing: it decides by rules, outcomes come over HTTP, and a version is made of its log."""

import contextlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from vitok import decisions
from vitok.clock import DAY, HOUR, isoformat
from vitok.console.decision_replay import FraudReplay
from vitok.decisions import replay_decision
from vitok.loop import TriggerRules, Triggers
from vitok.registry import Registry
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.operating import LiveOperator
from vitok.systems.fraud.replay import Replay, ServiceProcess, hours

WEEK = 7 * DAY
REVERSED = 60


@pytest.mark.slow
def test_a_first_version_is_made_of_a_live_log_and_answers(tmp_path: Path, world) -> None:
    home = tmp_path / "home"
    home.mkdir()
    begin, last = world.timeline.start, world.timeline.end - DAY
    with ServiceProcess(home) as service:
        replay = Replay(service, window=256)
        for hour in hours(world.transactions, world.labels, start=begin, end=last):
            replay.send(hour)
        assert (replay.tally.refused, replay.tally.version) == (0, "rules")

        # Some chargebacks are reversed: what is learned is what is held to be true, not what was told first.
        known = decisions.labels(home / "log" / "outcomes", as_of=last, kind=SYSTEM)
        wrong = known.filter(pl.col("label") == 1).head(REVERSED)["request_id"].to_list()
        said = [
            {"request_id": name, "value": 0, "event_time": isoformat(last - HOUR), "supersedes": True} for name in wrong
        ]
        taken = replay.tally.outcomes
        replay.learn([json.dumps({"outcomes": said}).encode()])
        assert replay.tally.outcomes - taken == REVERSED

        registry = Registry(home)
        operator = LiveOperator(home, registry, label_delay=WEEK, triggers=TriggerRules(debounce=0))
        told: list[str] = []
        operator.tell = lambda _, text: told.append(text)
        with contextlib.closing(Triggers(home, TriggerRules())) as triggers:
            triggers.ask(SYSTEM, who="ann", why="there is no version yet", now=last)
        operator.round(last + 1)
        assert any(text.startswith("retraining (hand): ann: there is no version yet") for text in told)
        assert any(text.startswith(("gate accepted fraud/1", "gate refused fraud/1")) for text in told), told
        [gate] = [entry for entry in registry.ledger.history(SYSTEM, version=1) if entry.kind == "gate"]
        assert_learned_what_is_true(home, gate.details, wrong, at=last + 1)
        card = next((home / "mlartifacts").rglob("card.md")).read_text()
        assert "| brier | time_of_day night |" in card
        assert "Brier against the base rate of time_of_day night" in card
        operator.round(last + 2)
        assert len(registry.state(SYSTEM).versions) == 1

        if registry.state(SYSTEM).production is None:
            why = "the test does not judge the model"
            registry.ledger.promote(SYSTEM, 1, "Production", reason="first", actor="ann", now=last + 2, override=why)
        replay.until(registry.ledger.revision())
        [hour] = list(hours(world.transactions, world.labels, start=last + 12 * HOUR, end=last + 13 * HOUR))
        replay.decide(hour.bodies)
        assert (replay.tally.refused, replay.tally.version) == (0, "fraud/1")
        operator.close()
        registry.close()
        replay.close()
    answered = decisions.read(home / "log" / "decisions", since=last + 12 * HOUR)
    assert len(answered) == len(hour.bodies) > 0
    assert set(answered["route"]) == {"champion"}
    again = FraudReplay(home)
    for raw in answered["decision_id"][:5]:
        found = replay_decision(home / "log" / "decisions", str(uuid.UUID(bytes=raw)), again.recompute)
        assert found.differences == ()


def assert_learned_what_is_true(home: Path, gate: Mapping[str, Any], wrong: list[str], *, at: int) -> None:
    """The gate says how many rows and frauds it learned from: those of the label view, of all of whole days."""
    said = {check["name"]: check["value"] for check in gate["checks"]}
    n_frauds, n_rows = int(said["data: frauds"]), int(said["data: rows"])
    view = decisions.labels(home / "log" / "outcomes", as_of=at, kind=SYSTEM)
    rows = decisions.join(decisions.read(home / "log" / "decisions"), view).drop_nulls("label").sort("event_time")
    first = pl.lit((at - WEEK) // DAY * DAY - 35 * DAY).cast(pl.Datetime("us", "UTC"))
    learned = rows.filter(pl.col("event_time") >= first).head(n_rows)
    assert n_frauds == learned["label"].sum()
    assert learned["request_id"].is_in(wrong).sum() > REVERSED // 2
