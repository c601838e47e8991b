"""A small world of card transactions, and a home in which a service can start."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from vitok import settings
from vitok.clock import DAY
from vitok.engines import LmdbStore
from vitok.features import table
from vitok.policies import Costs
from vitok.registry import Registry
from vitok.systems.fraud.features import FEATURES, online_features
from vitok.systems.fraud.label_events import label_notes
from vitok.systems.fraud.messages import SYSTEM, history_note
from vitok.systems.fraud.releases import Workshop
from vitok.systems.fraud.simulator import simulate
from vitok.systems.fraud.training import Timeline


class World:
    """Simulated data with their table, and what starts a service from them."""

    def __init__(self) -> None:
        self.data = simulate(n_customers=400, n_terminals=800, days=45, seed=3)
        transactions = self.data.transactions.sort("event_time", maintain_order=True)
        self.transactions = transactions
        self.labels = self.data.labels.with_columns(pl.col("is_fraud").cast(pl.Float64)).join(
            transactions.select("transaction_id", "terminal_id"), on="transaction_id"
        )
        times = transactions["event_time"].cast(pl.Int64)
        self.timeline = Timeline.plan(int(times[0]), int(times[-1]) + 1, label_delay=7 * DAY)
        sources = {"transactions": transactions, "labels": self.labels}
        self.rows = table(transactions, FEATURES, sources)

    def home(self, folder: Path, *, model: bool = True) -> Path:
        """Fills a home: online store up to the replay, and a version in Production."""
        folder.mkdir(parents=True, exist_ok=True)
        columns = [self.transactions[name] for name in ("customer_id", "terminal_id", "amount")]
        times = self.transactions["event_time"].to_physical()
        notes = pl.Series([history_note(*row) for row in zip(times, *columns, strict=True)], dtype=pl.Binary)
        store = LmdbStore(folder / "online")
        online_features(store).backfill(
            {"transactions": self.transactions, "labels": self.labels},
            until=self.timeline.replay_start,
            notes={"transactions": notes, "labels": label_notes(self.labels)},
        )
        store.close()
        if model:
            workshop = Workshop(folder, self.rows, self.labels, "test", Costs(), self.timeline.start)
            with settings.using(threads=1):
                candidate = workshop.first(self.timeline)
            registry = Registry(folder)
            now = self.timeline.replay_start
            version = registry.register(SYSTEM, candidate.files(), now=now, actor="test")
            why = "the tests do not judge the model"
            registry.ledger.promote(
                SYSTEM, version.version, "Production", reason="test", actor="test", now=now, override=why
            )
            registry.close()
        return folder


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def template(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.home(tmp_path_factory.mktemp("template") / "home")


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "home")
    return tmp_path / "home"
