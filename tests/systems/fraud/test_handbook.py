"""The published protocol: split, test set, order of equal scores, and the published figures on the published data."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from vitok import settings, stats
from vitok.clock import DAY, parse_time
from vitok.errors import InvalidInput
from vitok.systems.fraud.handbook import (
    COLUMNS,
    PUBLISHED,
    Comparison,
    Split,
    _as_published,
    _tested,
    evaluate,
    protocol_report,
)
from vitok.systems.fraud.simulator import simulate
from vitok.systems.fraud.transactions import Transactions, read


def windowed(
    key: NDArray[np.int64], second: NDArray[np.int64], value: NDArray[np.float64], *, until: int, since: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count and sum over (t - since, t - until] of the same key; with until = 0 in the order of the rows."""
    order = np.argsort(key, kind="stable")
    line = key[order] * 10**9 + second[order] - second.min() + 10**8
    total = np.concatenate(([0.0], np.cumsum(value[order])))
    low = np.searchsorted(line, line - since, side="right")
    high = np.searchsorted(line, line - until, side="right") if until else np.arange(len(line)) + 1
    count, summed = np.empty(len(line)), np.empty(len(line))
    count[order], summed[order] = high - low, total[high] - total[low]
    return count, summed


def published_features(data: Transactions) -> pl.DataFrame:
    """An independent computation of the 15 features, from their description."""
    second = data.transactions["event_time"].to_physical().to_numpy() // 1_000_000
    customer, terminal = (
        data.transactions[name].rank("dense").cast(pl.Int64).to_numpy() for name in ("customer_id", "terminal_id")
    )
    amount = data.transactions["amount"].to_numpy()
    fraud = data.labels["is_fraud"].cast(pl.Float64).to_numpy()
    day = 86_400
    columns = {
        "transaction_id": data.transactions["transaction_id"],
        "amount": amount,
        "is_weekend": data.transactions["event_time"].dt.weekday() >= 6,
        "is_night": data.transactions["event_time"].dt.hour() <= 6,
    }
    for days in (1, 7, 30):
        count, total = windowed(customer, second, amount, until=0, since=days * day)
        columns |= {f"customer_count_{days}d": count, f"customer_mean_{days}d": total / count}
    for days in (1, 7, 30):
        count, total = windowed(terminal, second, fraud, until=7 * day, since=(7 + days) * day)
        risk = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        columns |= {f"terminal_count_{days}d": count, f"terminal_risk_{days}d": risk}
    return pl.DataFrame(columns)


@pytest.fixture(scope="module")
def small() -> Transactions:
    return simulate(n_customers=400, n_terminals=800, radius=8.0, days=45, start="2026-01-01")


@pytest.fixture(scope="module")
def comparison(small: Transactions) -> Comparison:
    return evaluate(published_features(small), small)


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Transactions:
    return read(shared_data / "fraud_handbook_2018-06-15_2018-08-14.parquet")


@pytest.mark.slow
def test_published_figures(published: Transactions) -> None:
    # Oracle: the Handbook, chapter 3.4; the counts of rows and frauds are those it prints with the split.
    found = evaluate(published_features(published), published)
    assert found.split.published
    assert (found.n_train, found.train_frauds, found.n_test, found.test_frauds) == (67_240, 598, 58_264, 385)
    for model in ("logistic regression", "decision tree, depth 2"):
        expected = PUBLISHED[model]
        assert expected is not None
        assert found[model].values[:2] == pytest.approx(expected[:2], abs=0.0005)
    assert found["logistic regression"].values[2] == pytest.approx(0.291, abs=0.0005)
    # Four leaves leave most of the hundred to chance: the published 0.241 is one order of equal scores.
    lowest, mean, highest = found["decision tree, depth 2"].over_ties
    assert lowest <= found["decision tree, depth 2"].values[2] <= highest
    assert lowest <= 0.241 <= highest
    assert mean == pytest.approx(0.239, abs=0.001)
    assert found["decision tree, depth 2"].values[2] == pytest.approx(0.241, abs=0.002)
    assert found["decision tree, unlimited"].values == pytest.approx((0.788, 0.309, 0.243), abs=0.004)
    # Five seeds of the forest gave 0.863 to 0.871 / 0.658 to 0.670 / 0.290 to 0.291.
    for value, published_value in zip(found["random forest"].values, (0.867, 0.658, 0.287), strict=True):
        assert value > published_value - 0.003
    assert found["LightGBM"].values[0] > 0.87


@pytest.mark.slow
def test_the_declared_features_give_the_same_table(published: Transactions) -> None:
    told: list[str] = []
    models = protocol_report(published, tell=told.append).numbers["models"]
    for model, tolerance in {"logistic regression": 0.0005, "decision tree, depth 2": 0.0005}.items():
        values = [models[model][name]["value"] for name in ("auc", "average_precision")]
        assert values == pytest.approx(PUBLISHED[model][:2], abs=tolerance)  # type: ignore[index]
    assert "0.871 / 0.606 / 0.291  0.871 / 0.606 / 0.291" in told[0]
    ours = [models["LightGBM, all our features"][name]["value"] for name in ("auc", "average_precision")]
    assert ours > [0.867, 0.658]
    assert ours[1] > 0.658


def test_other_data_take_their_last_three_weeks(comparison: Comparison) -> None:
    assert str(comparison.split) == (
        "training 2026-01-25 to 2026-01-31, delay 7 d, test 2026-02-08 to 2026-02-14 "
        "(the last three weeks of the data, laid out as published)"
    )
    text = str(comparison)
    assert "logistic regression" in text
    assert "not in it" in text
    assert "Simulated by the published procedure" in text
    assert [row.model for row in comparison.rows] == list(PUBLISHED)[:-1]
    assert comparison["random forest"].values[0] > 0.6
    assert comparison.to_dict()["models"]["LightGBM"]["published"] is None
    assert comparison.to_dict()["test"]["n"] == comparison.n_test


@pytest.mark.parametrize(
    ("first", "last", "is_published"),
    [
        ("2018-07-24T23:59:59", "2018-08-14", True),
        ("2018-07-25", "2018-08-20", False),
        ("2018-04-01", "2018-08-13T23:59:59", False),
    ],
)
def test_the_published_dates_need_a_day_before(first: str, last: str, *, is_published: bool) -> None:
    split = Split.plan(parse_time(first), parse_time(last))
    assert split.published == is_published
    assert split.end - split.train_start == 21
    assert split.train_end - split.train_start == split.end - split.test_start == 7


def test_too_little_data_says_so() -> None:
    with pytest.raises(InvalidInput, match="got '21 days', must be at least 22 days"):
        Split.plan(0, 21 * DAY - 1)
    Split.plan(0, 22 * DAY - 1)


def test_the_test_leaves_out_known_cards_as_days_pass() -> None:
    # Oracle: the rule in words, day by day with sets.
    rng = np.random.default_rng(0)
    n = 4000
    day = np.sort(rng.integers(90, 125, n))
    card, is_fraud = rng.integers(0, 150, n), (rng.random(n) < 0.02).astype(np.int64)
    split = Split(train_start=100, test_start=114, end=121, published=False)
    expected = np.zeros(n, dtype=bool)
    known = {int(c) for c in card[(day >= 100) & (day < 107) & (is_fraud == 1)]}
    for today in range(114, 121):
        known |= {int(c) for c in card[(day == today - 8) & (is_fraud == 1)]}
        expected |= (day == today) & ~np.isin(card, sorted(known))
    found = _tested(split, day=day, card=card, is_fraud=is_fraud)
    np.testing.assert_array_equal(found, expected)
    assert 0 < found.sum() < ((day >= 114) & (day < 121)).sum()


def test_equal_scores_come_in_the_order_of_a_data_frame_sort() -> None:
    # Oracle: pandas' sort_values in descending order, whose default is quicksort.
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(1)
    n, k = 6000, 50
    day, card = rng.integers(0, 5, n), rng.integers(0, 900, n)
    is_fraud = (rng.random(n) < 0.05).astype(np.int64)
    score = rng.integers(0, 4, n) / 4 + is_fraud * rng.integers(0, 2, n) / 4
    frame = pandas.DataFrame({"day": day, "card": card, "is_fraud": is_fraud, "score": score})
    found: set[int] = set()
    expected = []
    for today in range(5):
        rows = frame[(frame.day == today) & ~frame.card.isin(found)]
        best = rows.groupby("card")[["score", "is_fraud"]].max().sort_values("score", ascending=False).head(k)
        caught = best.index[best.is_fraud == 1].tolist()
        expected.append(len(caught) / k)
        found |= set(caught)
    untied = _as_published(score, day=day, card=card, is_fraud=is_fraud, k=k)
    result = stats.card_precision_at_k(day=day, card=card, is_fraud=is_fraud, score=untied, k=k)
    assert result.precision_by_day == pytest.approx(tuple(expected))


def test_without_ties_the_order_is_that_of_the_scores() -> None:
    rng = np.random.default_rng(2)
    day, card = rng.integers(0, 4, 2000), rng.integers(0, 300, 2000)
    is_fraud, score = (rng.random(2000) < 0.05).astype(np.int64), rng.random(2000)
    plain = stats.card_precision_at_k(day=day, card=card, is_fraud=is_fraud, score=score, k=20)
    untied = _as_published(score, day=day, card=card, is_fraud=is_fraud, k=20)
    again = stats.card_precision_at_k(day=day, card=card, is_fraud=is_fraud, score=untied, k=20)
    assert again.precision_by_day == plain.precision_by_day


def test_columns_are_checked(small: Transactions) -> None:
    features = published_features(small)
    with pytest.raises(InvalidInput, match="customer_mean_7d"):
        evaluate(features.drop("customer_mean_7d"), small)
    with pytest.raises(InvalidInput, match="be finite"):
        evaluate(features.with_columns(customer_mean_7d=pl.lit(float("nan"))), small)
    assert COLUMNS[3:5] == ("customer_count_1d", "customer_mean_1d")
    assert COLUMNS[-2:] == ("terminal_count_30d", "terminal_risk_30d")


def test_rows_without_label_or_features_take_no_part(small: Transactions, comparison: Comparison) -> None:
    start = small.span()[0]
    early = pl.col("event_time").dt.epoch("us") < start // DAY * DAY + 5 * DAY
    dropped = small.transactions.filter(early)["transaction_id"]
    features = published_features(small).filter(~pl.col("transaction_id").is_in(dropped.to_list()))
    with settings.using(threads=1):
        again = evaluate(features, small)
    assert again.rows[0].values == comparison.rows[0].values
    assert f"{len(dropped):,} transactions without label or features take no part." in again.notes


def test_no_fraud_in_the_week_is_said(small: Transactions) -> None:
    import dataclasses

    quiet = dataclasses.replace(small, labels=small.labels.with_columns(is_fraud=pl.lit(0, pl.Int8)))
    with pytest.raises(InvalidInput, match="training week: frauds: got 0"):
        evaluate(published_features(small), quiet)


@pytest.mark.slow
def test_simulated_data_give_the_published_table_within_a_tolerance() -> None:
    # Two draws of the published world differ by their frauds (about 400 in the test week). Over seeds 0 and 1 the
    # draw alone moved these rows by up to 0.052, 0.035 and 0.035; the tolerance is 0.06, 0.05 and 0.04.
    models = protocol_report(simulate(days=136, seed=0), tell=lambda _: None).numbers["models"]
    for model in ("logistic regression", "decision tree, depth 2", "random forest"):
        row = [models[model][name]["value"] for name in ("auc", "average_precision", "card_precision")]
        published_row = PUBLISHED[model]
        assert published_row is not None
        for value, expected, tolerance in zip(row, published_row, (0.06, 0.05, 0.04), strict=True):
            assert value == pytest.approx(expected, abs=tolerance)
