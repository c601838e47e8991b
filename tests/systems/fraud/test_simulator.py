"""The simulator against the published counts and against the procedure's own sentences."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import truncnorm

from vitok.clock import DAY, MINUTE, parse_time
from vitok.errors import InvalidInput
from vitok.systems.fraud.simulator import _World, simulate
from vitok.systems.fraud.transactions import Transactions

SMALL: dict[str, Any] = {"n_customers": 400, "n_terminals": 800, "days": 60, "radius": 8.0}


def joined(data: Transactions) -> pl.DataFrame:
    start = parse_time("2018-04-01")
    return data.transactions.join(data.labels, on="transaction_id", maintain_order="left").with_columns(
        day=(pl.col("event_time").to_physical() - start) // DAY,
        second=(pl.col("event_time").to_physical() % DAY) // 1_000_000,
    )


@pytest.fixture(scope="module")
def published() -> pl.DataFrame:
    return joined(simulate())


@pytest.fixture(scope="module")
def changed() -> pl.DataFrame:
    return joined(simulate(n_customers=2500, n_terminals=5000, days=90, change_day=45))


def test_published_size_gives_the_published_counts(published: pl.DataFrame) -> None:
    # Oracle: the published set has 1,754,155 transactions and 973 / 9,077 / 4,631 frauds by scenario. Between seeds
    # the number of transactions moves by 0.8 % (5,000 uniform daily means), the frauds by some percent.
    counts = dict(published["scenario"].value_counts().rows())
    assert len(published) == pytest.approx(1_754_155, rel=0.03)
    assert counts[1] == pytest.approx(973, rel=0.15)
    assert counts[2] == pytest.approx(9077, rel=0.1)
    assert counts[3] == pytest.approx(4631, rel=0.1)


def test_honest_transactions_follow_the_profiles(published: pl.DataFrame) -> None:
    honest = published.filter(pl.col("scenario") == 0)
    # Oracle: scipy.stats.truncnorm, the normal law of mean 43,200 s and standard deviation 20,000 s cut to the day.
    law = truncnorm(-2.16, 2.16, loc=43_200, scale=20_000)
    assert honest["second"].mean() == pytest.approx(law.mean(), rel=0.005)
    assert honest["second"].std() == pytest.approx(law.std(), rel=0.005)
    assert honest["second"].min() > 0  # type: ignore[operator]
    assert honest["second"].max() < 86_400  # type: ignore[operator]
    assert honest["amount"].min() >= 0  # type: ignore[operator]
    assert honest["amount"].max() <= 220  # type: ignore[operator]
    np.testing.assert_allclose(honest["amount"], honest["amount"].round(2), atol=1e-9)
    by_customer = honest.group_by("customer_id").agg(pl.len().alias("n"), pl.col("amount").mean())
    assert by_customer["n"].max() < 4 * 183 * 1.2  # type: ignore[operator]
    assert by_customer["n"].mean() == pytest.approx(2 * 183 * 0.969, rel=0.03)
    assert by_customer["amount"].median() == pytest.approx(52.5, rel=0.05)


def test_ids_count_up_in_order_of_time(published: pl.DataFrame) -> None:
    assert published["event_time"].is_sorted()
    assert published["transaction_id"].cast(pl.Int64).to_list() == list(range(len(published)))
    assert published.schema["event_time"] == pl.Datetime("us", "UTC")


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = (simulate(**SMALL, seed=seed) for seed in (3, 3, 4))
    assert first.transactions.equals(again.transactions)
    assert first.labels.equals(again.labels)
    assert first.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("size", [300, 1200])
def test_fraud_rate_does_not_depend_on_the_size(size: int) -> None:
    rates = [
        (simulate(n_customers=size, n_terminals=2 * size, days=120, radius=10, seed=seed).labels["is_fraud"]).mean()
        for seed in range(4)
    ]
    assert np.mean(rates) == pytest.approx(0.00837, rel=0.25)  # type: ignore[arg-type]


def test_large_amounts_alone_are_frauds_where_nothing_else_is() -> None:
    rows = joined(simulate(**SMALL, compromised_terminals_per_day=0, leaked_cards_per_day=0))
    assert (rows["is_fraud"] == (rows["amount"] > 220).cast(pl.Int8)).all()
    assert set(rows["scenario"]) == {0, 1}


def test_compromised_terminals_stay_so_for_28_days() -> None:
    data = simulate(**SMALL, compromised_terminals_per_day=0.3, leaked_cards_per_day=0)
    rows = joined(data).with_columns(fraud=pl.col("scenario") == 2)
    for _, terminal in rows.filter(pl.col("fraud").any().over("terminal_id")).group_by("terminal_id"):
        runs = terminal.sort("event_time").with_columns(run=pl.col("fraud").rle_id())
        for _, run in runs.filter("fraud").group_by("run"):
            draws = -(-(run["day"].max() - run["day"].min() + 1) // 28)  # type: ignore[operator]
            assert draws <= 3
        # A terminal drawn once has one run of at most 28 days with no genuine transaction in it.
        fraud_days = terminal.filter("fraud")["day"]
        span = fraud_days.max() - fraud_days.min() + 1  # type: ignore[operator]
        if span <= 28:
            inside = terminal.filter(pl.col("day").is_between(fraud_days.min(), fraud_days.max(), closed="none"))  # type: ignore[arg-type]
            assert inside["fraud"].all()


def test_leaked_cards_pay_five_times_a_third_of_the_time() -> None:
    quiet = joined(simulate(**SMALL, compromised_terminals_per_day=0, leaked_cards_per_day=0))
    # One leak a day at most, so that the plain amounts are those of the run without leaks.
    leaked = joined(simulate(**SMALL, compromised_terminals_per_day=0, leaked_cards_per_day=0.4))
    assert leaked.select("event_time", "customer_id", "terminal_id").equals(
        quiet.select("event_time", "customer_id", "terminal_id")
    )
    fraud = leaked["scenario"] == 3
    factor = (leaked["amount"] / quiet["amount"]).filter(fraud)
    assert fraud.sum() > 50
    assert (factor.round(0).is_in([5.0, 25.0])).mean() > 0.99  # type: ignore[operator]
    assert (leaked["amount"] == quiet["amount"]).filter(~fraud).all()
    for _, card in leaked.filter(fraud.any() & pl.col("scenario").eq(3).any().over("customer_id")).group_by(
        "customer_id"
    ):
        days = card.filter(pl.col("scenario") == 3)["day"]
        if days.max() - days.min() < 14:  # type: ignore[operator]
            inside = card.filter(pl.col("day").is_between(days.max() - 13, days.min() + 13))  # type: ignore[operator]
            assert len(days) <= len(inside) / 3


def test_terminals_are_those_in_reach() -> None:
    # Oracle: all distances.
    rng = np.random.default_rng(0)
    world = _World.draw(60, 300, 9.0, rng)
    customer = np.sort(rng.integers(0, 60, 20_000))
    chosen = world.choose_terminals(customer, np.random.default_rng(1))
    distance = np.linalg.norm(world.home[:, None] - world.position[None], axis=2)
    for who in range(60):
        reach = set(np.flatnonzero(distance[who] < 9.0).tolist())
        drawn = chosen[customer == who]
        assert set(drawn.tolist()) == (reach or {-1})
        if reach:
            counts = np.bincount(drawn, minlength=300)[sorted(reach)]
            assert counts.max() < len(drawn) / len(reach) + 6 * np.sqrt(len(drawn) / len(reach))


def test_customers_without_a_terminal_in_reach_pay_nowhere() -> None:
    data = simulate(n_customers=100, n_terminals=1, radius=5, days=30, change_day=10, leaked_cards_per_day=5)
    assert data.transactions["customer_id"].n_unique() < 10
    empty = simulate(n_customers=1, n_terminals=1, radius=0.001, days=2, change_day=1)
    assert len(empty) == 0
    assert repr(empty) == "Transactions(0 transactions without a time)"
    with pytest.raises(InvalidInput, match="hold a transaction"):
        empty.span()


def test_labels_come_late() -> None:
    data = simulate(**SMALL, label_delay_days=30, label_jitter_days=2)
    age = (data.labels["label_time"] - data.transactions["event_time"]).dt.total_microseconds()
    assert age.min() >= 30 * DAY  # type: ignore[operator]
    assert age.max() <= 32 * DAY  # type: ignore[operator]
    assert age.n_unique() > 100
    assert data.label_delay_us == 32 * DAY
    assert "up to 2 days later" in data.assumptions[1]


def test_what_lies_before_the_change_stays_as_it_is() -> None:
    plain, changed = simulate(**SMALL), simulate(**SMALL, change_day=30)
    before = pl.col("event_time").dt.epoch("us") < parse_time("2018-05-01")
    assert plain.transactions.filter(before).equals(changed.transactions.filter(before))
    n = len(plain.transactions.filter(before))
    assert n > 10_000
    assert plain.labels.head(n).equals(changed.labels.head(n))
    assert "From 2018-05-01 on" in changed.assumptions[2]


def test_the_change_is_what_it_says(changed: pl.DataFrame) -> None:
    before, after = changed.filter(pl.col("day") < 45), changed.filter(pl.col("day") >= 45)
    honest = after.filter(pl.col("scenario") == 0)
    usual = before.filter(pl.col("scenario") == 0)
    assert honest["amount"].mean() / usual["amount"].mean() == pytest.approx(1.15, abs=0.03)  # type: ignore[operator]
    evening = [(rows["second"] > 18 * 3600).mean() for rows in (usual, honest)]
    assert evening[1] - evening[0] > 0.08  # type: ignore[operator]
    assert honest["amount"].max() > 220  # type: ignore[operator]

    large = [rows.filter(pl.col("scenario") == 1) for rows in (before, after)]
    assert large[0]["amount"].min() > 220  # type: ignore[operator]
    assert large[1]["amount"].min() >= 150  # type: ignore[operator]
    assert large[1]["amount"].max() < 220  # type: ignore[operator]
    assert len(large[1]) > 2 * len(large[0])

    terminals = [rows.filter(pl.col("scenario") == 2) for rows in (before, after)]
    assert len(terminals[1]) < len(terminals[0]) / 2
    night = [(rows["second"].is_between(3600, 5 * 3600)).mean() for rows in terminals]
    assert night[1] > 0.7 > 0.2 > night[0]  # type: ignore[operator]


def test_after_the_change_leaked_cards_pay_in_bursts(changed: pl.DataFrame) -> None:
    cards = changed.filter((pl.col("day") >= 45) & (pl.col("scenario") == 3)).sort("customer_id", "event_time")
    gap = pl.col("event_time").diff().over("customer_id").dt.total_microseconds()
    assert cards.select((gap < 15 * MINUTE).fill_null(value=False).mean()).item() > 0.8
    usual = changed.filter((pl.col("day") < 45) & (pl.col("scenario") == 0))
    means = usual.group_by("customer_id").agg(mean=pl.col("amount").mean())
    relative = cards.join(means, on="customer_id").select(pl.col("amount") / pl.col("mean")).to_series()
    assert relative.median() == pytest.approx(0.75, abs=0.1)
    assert relative.quantile(0.99) < 2.5  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"n_customers": 0}, "n_customers"),
        ({"n_terminals": -1}, "n_terminals"),
        ({"days": 0}, "days"),
        ({"days": 1.5}, "days"),
        ({"radius": 0.0}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"seed": -1}, "seed"),
        ({"label_delay_days": -1.0}, "label_delay_days"),
        ({"leaked_cards_per_day": float("inf")}, "leaked_cards_per_day"),
        ({"change_day": 60}, "change_day"),
        ({"start": "2018-04-01T10:00:00"}, "start"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        simulate(**{**SMALL, **arguments})
    assert caught.value.field == field


def test_more_draws_than_there_are_take_all() -> None:
    data = simulate(n_customers=20, n_terminals=3, radius=200, days=5, compromised_terminals_per_day=50)
    assert (data.labels["is_fraud"] == 1).all()
