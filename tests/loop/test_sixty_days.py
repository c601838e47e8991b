"""The world of the benchmark of sixty days: what is planted is where it should be; money is counted by the truth."""

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.loop import _sixty_days as days  # noqa: E402
from bench.loop import sixty_days as bench  # noqa: E402

from vitok import settings  # noqa: E402
from vitok.clock import DAY, HOUR  # noqa: E402
from vitok.policies import Costs  # noqa: E402

SEED, CUSTOMERS = 7, 250


@pytest.fixture(scope="module")
def world() -> days.World:
    return days.world(SEED, CUSTOMERS)


def test_only_one_source_lies_and_only_on_its_days(world: days.World) -> None:
    both = world.told.join(world.labels.select("transaction_id", truth="is_fraud"), on="transaction_id")
    wrong = both.filter(pl.col("is_fraud") != pl.col("truth"))
    arrived = (wrong["label_time"].to_physical().to_numpy() - world.begin) / DAY
    assert set(wrong["source"]) == {days.POISONED_SOURCE}
    assert arrived.min() >= days.POISON[0]
    assert arrived.max() < days.POISON[1]
    since, until = (pl.lit(world.at(day)).cast(pl.Datetime("us", "UTC")) for day in days.POISON)
    there = both.filter(
        (pl.col("source") == days.POISONED_SOURCE) & pl.col("label_time").is_between(since, until, closed="left")
    )
    assert len(wrong) / len(there) == pytest.approx(days.SWAPPED, abs=0.03)


def test_the_hours_hold_each_decision_and_each_outcome_of_the_sixty_days_once(world: days.World) -> None:
    hours = list(days.lived_hours(world))
    assert len(hours) == days.DAYS * 24
    assert hours[0].start == world.begin
    asked = [msgspec.json.decode(body)["transaction_id"] for hour in hours for body in hour.bodies]
    assert len(asked) == len(set(asked)) == len(world.lived)
    for hour in hours[:48]:
        for body in hour.outcomes:
            for item in msgspec.json.decode(body)["outcomes"]:
                assert item["source"].startswith("acquirer-")
    told = [
        item["request_id"] for hour in hours for body in hour.outcomes for item in msgspec.json.decode(body)["outcomes"]
    ]
    late = world.labels["label_time"].to_physical()
    expected = world.labels.filter((late >= world.begin) & (late < world.timeline.end))["transaction_id"]
    assert sorted(told) == sorted(expected)
    assert all(hour.start % HOUR == 0 for hour in hours)


def test_the_change_comes_on_its_day(world: days.World) -> None:
    lived = world.lived
    frauds = lived.where(lived.is_fraud == 1)
    large = frauds.amount > 220
    day = (frauds.event_time - world.begin) / DAY
    assert large[day < days.CHANGE_AT].any()
    assert not large[day >= days.CHANGE_AT].any()


def test_money_is_counted_by_the_truth(world: days.World) -> None:
    logged = world.transactions.filter(pl.col("event_time").to_physical() >= world.begin).select(
        "event_time", "amount", request_id="transaction_id", action=pl.lit("allow")
    )
    found = days.paid(world, logged, Costs())
    lived = world.lived
    assert found.sum() == pytest.approx(lived.amount[lived.is_fraud == 1].sum())
    assert np.allclose(found, days.by_day(world, np.where(lived.is_fraud == 1, lived.amount, 0.0)))


def test_wrong_labels_are_counted(world: days.World) -> None:
    lived = world.lived
    assert days.wrong_share(world, lived) == 0
    frauds = np.flatnonzero(lived.is_fraud == 1)
    lived.is_fraud[frauds[0]] = 0
    assert days.wrong_share(world, lived) == pytest.approx(1 / (len(frauds) - 1))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bench, "N_CUSTOMERS", 600)
    with settings.using(seed=0, threads=2):
        yield


@pytest.mark.slow
def test_sixty_days_are_lived_through(small: None, tmp_path: Path) -> None:
    found = bench.SixtyDays(tmp_path, days.world(0, 600), 0).run()
    assert found.refused == 0
    assert found.full[1] == 0
    assert len(found.paid) == len(found.oracles.strict) == days.DAYS
    assert (found.paid >= 0).all()
    assert found.fallbacks[0] == found.fallbacks[1] > 0
    assert bench.LEAKY in found.roles.values()
    assert found.roles[min(found.bad)] == bench.LEAKY
    assert found.days["outage to alert"] <= 1.5
    # By hindsight, the strict oracle may keep the version that never retrains.
    assert found.oracles.strict.sum() <= found.oracles.stale.sum()
