"""A reversed chargeback through the whole service: what decisions saw is what the log says they must have seen."""

import json
import random
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok import decisions
from vitok.clock import DAY, HOUR, EventClock, SystemClock, isoformat
from vitok.console.decision_rebuild import SAME, rebuild_decision
from vitok.console.decision_replay import FraudReplay
from vitok.decisions import replay_decision
from vitok.features import compare, table
from vitok.features.corrections import with_corrections
from vitok.serving import HotRequest
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.label_events import label_events
from vitok.systems.fraud.messages import SYSTEM
from vitok.systems.fraud.service import FraudService
from vitok.systems.fraud.state import FeatureState

START = 17_700 * DAY
LABELLED = [name for name in FEATURES.names if name.startswith("terminal_labels_")]


def open_service(home: Path, **options: Any) -> FraudService:
    return FraudService(home, clock=EventClock(), deadline=30.0, **options)


def decide(service: FraudService, name: str, moment: int, customer: str, terminal: str) -> None:
    body = {
        "transaction_id": name,
        "event_time": isoformat(moment),
        "customer_id": customer,
        "terminal_id": terminal,
        "amount": 10.0,
    }
    [reply] = service.handle([HotRequest(json.dumps(body).encode(), 0, [])])
    assert reply.status == 200, reply.body


def tell(service: FraudService, *outcomes: dict[str, Any]) -> tuple[int, int]:
    told = [{**one, "event_time": isoformat(one["event_time"])} for one in outcomes]
    reply = service.learn(json.dumps({"outcomes": told}).encode())
    assert reply.status == 200, reply.body
    found = json.loads(reply.body)
    assert found["rejected"] == []
    return found["accepted"], found["duplicates"]


def outcome(name: str, value: int, moment: int, **more: Any) -> dict[str, Any]:
    return {"request_id": name, "value": value, "event_time": moment, **more}


def crash(service: FraudService) -> None:
    # As after a kill: nothing is saved any more, and the locks are let go.
    service.state._wait()
    service._log.close()
    service._outcomes.close()
    service.state._store.close()
    service.registry.close()


def labels_seen(service: FraudService, terminal: str, moment: int) -> dict[str, float | None]:
    values = np.zeros((1, len(FEATURES.computed)))
    keys = {"customer_id": ["nobody"], "terminal_id": [terminal]}
    service.state._online.read_many(keys, np.array([moment]), values)
    found = {name: values[0, FEATURES.computed.index(name)] for name in LABELLED}
    return {name: None if np.isnan(value) else float(value) for name, value in found.items()}


def history(seed: int, *, days: int, n: int) -> list[tuple[int, str, Any]]:
    """Payments and outcomes in the order in which they arrive; no two payments at one moment."""
    rng = random.Random(seed)
    moments = sorted(rng.sample(range(START, START + days * DAY), n))
    told: list[tuple[int, str, Any]] = []
    for place, moment in enumerate(moments):
        name = f"t{place}"
        told.append((moment, "payment", (name, moment, f"c{rng.randrange(20)}", f"m{rng.randrange(5)}")))
        if rng.random() < 0.15:
            continue
        known = moment + rng.randrange(HOUR, 10 * DAY)
        says = [outcome(name, int(rng.random() < 0.4), known, supersedes=rng.random() < 0.1)]
        while rng.random() < 0.45:
            known += rng.choice([0, rng.randrange(6 * DAY)])
            source = rng.choice(["bank", "court"])
            says.append(outcome(name, rng.randrange(2), known, source=source, supersedes=True))
        for one in says:
            # Some come late, after those that supersede them; some come twice.
            arrival = one["event_time"] + rng.choice([0, rng.randrange(HOUR), rng.randrange(4 * DAY)])
            told.append((arrival, "outcome", one))
            if rng.random() < 0.2:
                told.append((arrival + rng.randrange(DAY), "outcome", one))
    return sorted(told, key=lambda item: item[0])


def logged_outcomes(home: Path) -> pl.DataFrame:
    names = {"request_id": "transaction_id", "value": "is_fraud", "event_time": "label_time"}
    return decisions.read(home / "log" / "outcomes").rename({**names, "ingest_time": "known_time"})


def tabled(home: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The decisions, and the point-in-time table of the same rows, from the same two logs."""
    logged = decisions.read(home / "log" / "decisions")
    paid = logged.select(
        pl.col("request_id").alias("transaction_id"), "event_time", "customer_id", "terminal_id", "amount"
    )
    terminals = paid.select("transaction_id", "terminal_id")
    events = label_events(logged_outcomes(home))
    sources = {"transactions": paid, "labels": events.labels.join(terminals, on="transaction_id")}
    corrections = events.corrections.join(terminals, on="transaction_id", maintain_order="left")
    return logged, table(paid, *with_corrections(FEATURES, sources, {"labels": corrections}))


def assert_same(home: Path) -> pl.DataFrame:
    logged, rows = tabled(home)
    seen = logged.select(f"f_{name}" for name in FEATURES.names).to_numpy()
    found = compare(FEATURES, seen, rows.select(FEATURES.names).to_numpy())
    assert found.n_differing_rows == 0, str(found)
    bits = logged.select(f"f_{name}" for name in LABELLED).to_numpy()
    np.testing.assert_array_equal(bits, rows.select(LABELLED).to_numpy())
    return logged


@pytest.mark.parametrize("seed", [1, 2])
def test_every_decision_saw_what_was_held_to_be_true_then(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    service = open_service(tmp_path, checkpoint_every=150)
    n_corrected = 0
    for place, (_, kind, what) in enumerate(history(seed, days=80, n=900)):
        if kind == "payment":
            decide(service, *what)
        else:
            accepted, duplicates = tell(service, what)
            assert accepted + duplicates == 1
            n_corrected += accepted and what["supersedes"]
        if place % 301 == 300:
            crash(service)
            service = open_service(tmp_path, checkpoint_every=150)
    assert n_corrected > 100
    assert "uncorrected_labels" not in service.counts
    service.close()
    logged = assert_same(tmp_path)
    risk = logged["f_terminal_labels_risk_30d"].drop_nans()
    assert risk.is_between(0.0, 1.0).all()
    # The corrections matter: labels alone give another table.
    first = label_events(logged_outcomes(tmp_path)).labels
    view = decisions.labels(tmp_path / "log" / "outcomes", as_of=START + 200 * DAY, kind=SYSTEM)
    assert view["label"].sum() != first["is_fraud"].sum()
    for place in rng.sample(range(len(logged)), 4):
        found = str(uuid.UUID(bytes=logged["decision_id"][place]))
        again = rebuild_decision(tmp_path, found)
        assert [one.name for one in again.features if one.state != SAME] == []
        assert replay_decision(tmp_path / "log" / "decisions", found, FraudReplay(tmp_path).recompute).differences == ()


def test_a_reversal_counts_from_when_it_is_learned_and_leaves_with_its_label(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    for place in range(4):
        decide(service, f"t{place}", START + place, "c", "m")
    known = START + DAY
    for place in range(4):
        assert tell(service, outcome(f"t{place}", int(place == 0), known + place)) == (1, 0)
    decide(service, "before", START + 10 * DAY, "c", "m")
    assert tell(service, outcome("t0", 0, START + 9 * DAY, supersedes=True)) == (1, 0)
    decide(service, "after", START + 10 * DAY + 1, "c", "m")
    assert tell(service, outcome("t1", 1, START + 11 * DAY, supersedes=True)) == (1, 0)
    decide(service, "turned", START + 12 * DAY, "c", "m")
    decide(service, "gone", known + 32 * DAY, "c", "m")
    service.close()
    logged = assert_same(tmp_path).filter(
        ~pl.col("request_id").str.starts_with("t") | (pl.col("request_id") == "turned")
    )
    assert logged["f_terminal_labels_risk_30d"].fill_nan(None).to_list() == [0.25, 0.0, 0.25, None]
    assert logged["f_terminal_labels_count_30d"].to_list() == [4.0, 4.0, 4.0, 0.0]


def test_what_changes_nothing_is_a_duplicate_and_is_not_logged(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    decide(service, "t", START, "c", "m")
    day = [START + place * DAY for place in range(6)]
    # The reversal comes before what it reverses: nothing was known, so it is the first label.
    assert tell(service, outcome("t", 0, day[3], supersedes=True)) == (1, 0)
    assert tell(service, outcome("t", 1, day[1])) == (0, 1)
    assert tell(service, outcome("t", 1, day[2], supersedes=True)) == (0, 1)
    assert tell(service, outcome("t", 0, day[3], supersedes=True)) == (0, 1)
    # All in one batch, each after the other; what is repeated in it too.
    batch = [outcome("t", 1, day[4], supersedes=True), outcome("t", 0, day[5], supersedes=True)]
    assert tell(service, *batch, *batch) == (2, 2)
    assert tell(service, batch[0]) == (0, 1)
    rows = logged_outcomes(tmp_path)
    assert rows["supersedes"].to_list() == [False, True, True]
    assert rows["known_time"].is_sorted()
    assert labels_seen(service, "m", day[5] + HOUR)["terminal_labels_risk_30d"] == 0.0
    decide(service, "next", day[5] + HOUR, "c", "m")
    service.close()
    assert_same(tmp_path)


def test_of_one_moment_the_later_word_stands_for_log_and_features_alike(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    decide(service, "t", START, "c", "m")
    said = [outcome("t", value, START + DAY, source=source, supersedes=True) for value, source in [(1, "a"), (0, "b")]]
    assert tell(service, *said) == (2, 0)
    assert tell(service, *said) == (0, 2)
    assert labels_seen(service, "m", START + 2 * DAY)["terminal_labels_risk_1d"] == 0.0
    view = decisions.labels(tmp_path / "log" / "outcomes", as_of=START + 2 * DAY, kind=SYSTEM)
    assert view["label"].to_list() == [0.0]
    service.close()


@pytest.mark.parametrize("died", ["before the log", "before the features", "after the features", "after a checkpoint"])
def test_killed_while_it_learns_a_reversal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: str) -> None:
    service = open_service(tmp_path)
    decide(service, "t", START, "c", "m")
    decide(service, "u", START + 1, "c", "m")
    tell(service, outcome("t", 1, START + DAY), outcome("u", 0, START + DAY))
    service.state.checkpoint()
    reversal = outcome("t", 0, START + 2 * DAY, supersedes=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if died == "before the log":
            patch.setattr(decisions.OutcomeLog, "append", killed)
        elif died == "before the features":
            patch.setattr(FeatureState, "learn", killed)
        if died.startswith("before"):
            with pytest.raises(KeyboardInterrupt):
                tell(service, reversal)
        else:
            tell(service, reversal)
    if died == "after a checkpoint":
        service.state.checkpoint()
    crash(service)
    service = open_service(tmp_path)
    once = (1, 0) if died == "before the log" else (0, 1)
    assert tell(service, reversal) == once
    seen = labels_seen(service, "m", START + 3 * DAY)
    assert (seen["terminal_labels_risk_30d"], seen["terminal_labels_count_30d"]) == (0.0, 2.0)
    crash(service)
    service = open_service(tmp_path)
    assert labels_seen(service, "m", START + 3 * DAY) == seen
    decide(service, "next", START + 3 * DAY, "c", "m")
    service.close()
    assert len(logged_outcomes(tmp_path)) == 3
    assert_same(tmp_path)


def test_a_label_of_the_loaded_history_is_superseded(home: Path, world) -> None:
    service = open_service(home)
    begin = world.timeline.replay_start
    known = world.labels.join(world.transactions.select("transaction_id", "event_time"), on="transaction_id").filter(
        (pl.col("label_time").dt.epoch("us") < begin) & (pl.col("event_time").dt.epoch("us") > begin - 20 * DAY)
    )
    fraud = known.filter(pl.col("is_fraud") == 1).row(0, named=True)
    before = labels_seen(service, fraud["terminal_id"], begin + HOUR)
    name = fraud["transaction_id"]
    assert tell(service, outcome(name, 0, begin, supersedes=True)) == (1, 0)
    after = labels_seen(service, fraud["terminal_id"], begin + HOUR)
    n = before["terminal_labels_count_30d"]
    assert after["terminal_labels_count_30d"] == n
    gone = before["terminal_labels_risk_30d"] - after["terminal_labels_risk_30d"]
    assert gone == pytest.approx(1 / n)
    service.close()


def test_a_label_that_was_loaded_without_a_note_stays_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = open_service(tmp_path)
    decide(service, "t", START, "c", "m")
    tell(service, outcome("t", 1, START + DAY))
    monkeypatch.setattr(FeatureState, "standing", lambda *_: None)
    assert tell(service, outcome("t", 0, START + 2 * DAY, supersedes=True)) == (1, 0)
    assert service.counts["uncorrected_labels"] == 1
    assert labels_seen(service, "m", START + 3 * DAY)["terminal_labels_risk_30d"] == 1.0
    service.close()


def test_a_reversal_about_somebody_who_was_forgotten(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    for name, customer in (("t", "gone"), ("u", "stays")):
        decide(service, name, START + len(customer), customer, "m")
    tell(service, outcome("t", 1, START + DAY), outcome("u", 1, START + DAY))
    decide(service, "seen", START + 2 * DAY, "stays", "m")
    logs = tmp_path / "log"
    decisions.forget(
        logs, "customer_id", "gone", key=bytes(16), now=START + 3 * DAY, open_logs=(service._log, service._outcomes)
    )
    assert tell(service, outcome("t", 0, START + 4 * DAY, supersedes=True)) == (1, 0)
    assert tell(service, outcome("u", 0, START + 4 * DAY, supersedes=True)) == (1, 0)
    seen = labels_seen(service, "m", START + 5 * DAY)
    assert (seen["terminal_labels_risk_30d"], seen["terminal_labels_count_30d"]) == (0.0, 2.0)
    # What was forgotten is in no table; the reversal that came after is about nothing there, and takes nothing away.
    events = label_events(logged_outcomes(tmp_path))
    assert events.labels["transaction_id"].to_list() == ["u"]
    assert events.corrections["transaction_id"].to_list() == ["u"]
    assert events.n_orphans == 1
    decide(service, "next", START + 5 * DAY, "stays", "m")
    crash(service)
    # There was no checkpoint, and the log that the features are made of again holds nothing of them.
    service = open_service(tmp_path)
    seen = labels_seen(service, "m", START + 5 * DAY)
    assert (seen["terminal_labels_risk_30d"], seen["terminal_labels_count_30d"]) == (0.0, 1.0)
    service.close()
    for raw in decisions.read(logs / "decisions")["decision_id"]:
        found = replay_decision(logs / "decisions", str(uuid.UUID(bytes=raw)), FraudReplay(tmp_path).recompute)
        assert found.differences == ()


def test_a_reversal_by_the_clock_of_the_wall(tmp_path: Path) -> None:
    clock = SystemClock()
    service = FraudService(tmp_path, clock=clock, deadline=30.0)
    now = clock.now()
    decide(service, "t", now - 2 * DAY, "c", "m")
    tell(service, outcome("t", 1, now - DAY))
    tell(service, outcome("t", 0, now - HOUR, supersedes=True))
    assert labels_seen(service, "m", now)["terminal_labels_risk_30d"] == 0.0
    decide(service, "next", clock.now(), "c", "m")
    service.close()
    assert logged_outcomes(tmp_path)["supersedes"].to_list() == [False, True]
    found = decisions.read(tmp_path / "log" / "decisions")
    again = rebuild_decision(tmp_path, str(uuid.UUID(bytes=found["decision_id"][-1])))
    assert [one.name for one in again.features if one.state != SAME] == []
