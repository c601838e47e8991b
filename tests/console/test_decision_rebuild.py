"""Decisions of the fraud system computed again: the oracle is what each decision saw, as its log has it."""

import json
import uuid
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from vitok import decisions
from vitok.clock import DAY, HOUR, MINUTE, EventClock
from vitok.console.decision_rebuild import DIFFERS, SAME, UNKNOWN, rebuild_decision, spans
from vitok.console.feature_work import app
from vitok.engines import LmdbStore
from vitok.errors import Conflict, NotFound
from vitok.features import FeatureSet
from vitok.serving import HotRequest
from vitok.systems.fraud import FraudService, read, simulate
from vitok.systems.fraud.features import FEATURES, online_features
from vitok.systems.fraud.messages import history_note
from vitok.systems.fraud.replay import hours


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["rebuild", *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    return result.stderr


class Past:
    """A small world of payments, its files, and a home whose service was started in the middle of it."""

    def __init__(self, folder: Path) -> None:
        data = simulate(n_customers=60, n_terminals=60, days=40, seed=7)
        labels = data.labels.with_columns(pl.col("is_fraud").cast(pl.Float64))
        self.transactions = data.transactions.sort("event_time", maintain_order=True)
        first = int(self.transactions["event_time"].to_physical()[0])  # type: ignore[arg-type]
        start = first // DAY * DAY + 35 * DAY
        self.file = folder / "payments.csv"
        known = labels.select("transaction_id", "is_fraud", "label_time")
        self.transactions.join(known, on="transaction_id").write_csv(self.file)
        self.home = folder / "home"
        self.home.mkdir()
        store = LmdbStore(self.home / "online")
        columns = [self.transactions[name] for name in ("customer_id", "terminal_id", "amount")]
        times = self.transactions["event_time"].to_physical()
        notes = [history_note(*row) for row in zip(times, *columns, strict=True)]
        of_terminals = labels.join(self.transactions.select("transaction_id", "terminal_id"), on="transaction_id")
        online_features(store).backfill(
            {"transactions": self.transactions, "labels": of_terminals},
            until=start,
            notes={"transactions": pl.Series(notes, dtype=pl.Binary)},
        )
        store.close()
        service = FraudService(self.home, clock=EventClock())
        for hour in hours(self.transactions, labels, start=start, end=start + 2 * DAY):
            for body in hour.outcomes:
                service.learn(body)
            for at_once in range(0, len(hour.bodies), 5):
                requests = [HotRequest(body, 0, []) for body in hour.bodies[at_once : at_once + 5]]
                assert {reply.status for reply in service.handle(requests)} == {200}
        service.close()
        self.start = start
        self.log = decisions.read(self.home / "log" / "decisions")
        self.ids = [str(uuid.UUID(bytes=raw)) for raw in self.log["decision_id"]]


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    return Past(tmp_path_factory.mktemp("past"))


def test_decisions_are_rebuilt_from_log_and_history(past: Past) -> None:
    history = read(past.file)
    for place in (0, len(past.ids) // 2, len(past.ids) - 1):
        found = rebuild_decision(past.home, past.ids[place], history=history)
        assert [item.name for item in found.features if item.state != SAME] == []
        assert found.n_history > 0
    assert found.n_labels > 0
    assert any(item.rebuilt > 0 for item in found.features if item.name == "terminal_labels_count_7d")
    result = run(past.ids[-1], "--home", past.home, "--transactions", past.file)
    assert result.exit_code == 0
    assert f"{len(FEATURES.names)} of {len(FEATURES.names)} features are the same, 0 differ" in result.stdout
    assert past.ids[-1] in result.stdout


def test_a_history_that_is_not_in_the_home_is_said(past: Past) -> None:
    result = run(past.ids[-1], "--home", past.home)
    assert result.exit_code == 2
    assert "what was loaded then is not in this home. Give its file with --transactions" in result.stdout
    found = rebuild_decision(past.home, past.ids[-1])
    states = {item.name: item.state for item in found.features}
    assert states["customer_count_30d"] == UNKNOWN
    assert {states[name] for name in ("amount", "is_night", "customer_count_15m", "customer_count_1h")} == {SAME}
    assert not found.of_state(DIFFERS)
    assert spans(FEATURES)["customer_count_1h"] == HOUR + 5 * MINUTE


def test_a_feature_that_differs_is_said(past: Past, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    rows = pl.read_csv(past.file, schema_overrides={"customer_id": pl.String, "terminal_id": pl.String})
    customer = past.log["customer_id"][-1]
    rows.with_columns(
        amount=pl.when(pl.col("customer_id") == customer).then(pl.col("amount") + 1).otherwise("amount")
    ).write_csv(other)
    result = run(past.ids[-1], "--home", past.home, "--transactions", other, "--json")
    assert result.exit_code == 1
    found = {item["name"]: item for item in json.loads(result.stdout)["features"]}
    assert found["customer_sum_30d"]["state"] == DIFFERS
    assert found["customer_sum_30d"]["rebuilt"] > found["customer_sum_30d"]["seen"]
    assert found["customer_count_30d"]["state"] == SAME
    told = run(past.ids[-1], "--home", past.home, "--transactions", other).stdout
    assert any(line.startswith("customer_sum_30d") and line.endswith("differs") for line in told.splitlines())


def test_decisions_that_cannot_be_rebuilt(past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "decision_id: got 'x', must be a UUID" in refused("x", "--home", past.home)
    nobody = "01890a5d-ac96-774b-bcce-b302099a8057"
    assert f"decision '{nobody}' does not exist" in refused(nobody, "--home", past.home)
    with pytest.raises(NotFound, match="decision log in"):
        rebuild_decision(tmp_path, nobody)
    missing = tmp_path / "none.csv"
    assert "none.csv" in refused(nobody, "--home", past.home, "--transactions", missing)
    changed = FeatureSet(request=FEATURES.request, views=FEATURES.views)
    monkeypatch.setattr("vitok.console.decision_rebuild.FEATURES", changed)
    with pytest.raises(Conflict, match="Rebuild it with the code of then"):
        rebuild_decision(past.home, past.ids[0])


def test_every_vector_of_a_day_is_rebuilt(past: Past) -> None:
    # As the demo compares all decisions with one table; here some, each by itself.
    history = read(past.file)
    chosen = np.random.default_rng(0).choice(len(past.ids), 6, replace=False)
    for place in chosen.tolist():
        assert not rebuild_decision(past.home, past.ids[place], history=history).of_state(DIFFERS)
