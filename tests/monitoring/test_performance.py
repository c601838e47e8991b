"""Realised performance: against scikit-learn, and whole where the data cannot answer."""

import json
import math

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.monitoring import performance
from vitok.policies import Costs

COSTS = Costs(false_block=30, review=3, reviewer_recall=0.9)


def rows(n: int, *, rate: float = 0.05) -> pl.DataFrame:
    rng = np.random.default_rng(11)
    probability = np.clip(rng.beta(1, 1 / rate - 1, n), 0, 1)
    label = pl.Series((rng.random(n) < probability).astype(float)) if n else pl.Series([], dtype=pl.Float64)
    return pl.DataFrame(
        {
            "event_time": pl.Series(rng.integers(0, 3 * DAY, n)).cast(pl.Datetime("us", "UTC")),
            "customer_id": [f"c{number}" for number in rng.integers(0, 50, n)],
            "probability": probability,
            "action": rng.choice(["allow", "review", "block"], n),
            "amount": rng.lognormal(3, 1, n),
            "label": label,
        },
        schema_overrides={"customer_id": pl.String, "action": pl.String},
    )


def test_agrees_with_scikit_learn_on_what_is_labelled() -> None:
    # Oracle: scikit-learn 1.9.
    frame = rows(5_000).with_columns(label=pl.when(pl.int_range(5_000) < 4_000).then("label"))
    found = performance(frame, costs=COSTS, card="customer_id", k=5)
    y, p = frame["label"][:4_000].to_numpy(), frame["probability"][:4_000].to_numpy()
    assert (found.n_decisions, found.n_labelled, found.n_fraud) == (5_000, 4_000, int(y.sum()))
    assert found.labelled.value == 0.8
    assert found.auc.value == pytest.approx(roc_auc_score(y, p), abs=1e-12)
    assert found.average_precision.value == pytest.approx(average_precision_score(y, p), abs=1e-12)
    assert found.brier.value == pytest.approx(brier_score_loss(y, p), abs=1e-12)
    assert found.calibration_error.lower == 0.0
    assert found.mean_probability.value == pytest.approx(p.mean())
    assert found.fraud_rate.value == y.mean()
    cost = COSTS.realised(frame["action"][:4_000].to_numpy(), frame["amount"][:4_000].to_numpy(), y == 1)
    assert found.cost_per_decision.value == pytest.approx(cost.mean())
    assert found.cost_per_decision.lower < cost.mean() < found.cost_per_decision.upper
    assert (found.card_precision.n_obs, found.card_precision.name) == (3, "card_precision_at_5")
    assert json.dumps(found.to_dict())
    assert "4,000 of 5,000 decisions labelled" in str(found)


def test_days_may_be_whole_numbers() -> None:
    frame = rows(500).with_columns(day=pl.col("event_time").to_physical() // DAY)
    found = performance(frame, card="customer_id", day="day", k=5)
    assert found.card_precision == performance(frame, card="customer_id", k=5).card_precision
    with pytest.raises(InvalidInput, match="time"):
        performance(frame, card="customer_id", day="action")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (rows(0), "no rows"),
        (rows(50).with_columns(label=pl.lit(None, dtype=pl.Float64)), "no rows"),
        (rows(50).with_columns(label=pl.lit(0.0)), "no positives"),
        (rows(50).with_columns(label=pl.lit(1.0)), "no negatives"),
        (rows(50).with_columns(probability=pl.lit(math.nan)), "no labelled decision has a probability"),
    ],
)
def test_what_cannot_be_answered_says_why(frame: pl.DataFrame, reason: str) -> None:
    found = performance(frame, costs=COSTS, card="customer_id")
    assert math.isnan(found.auc.value)
    assert math.isnan(found.average_precision.value)
    assert found.auc.definition == found.average_precision.definition == reason
    assert reason in str(found)
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_rules_without_probability_still_cost_money() -> None:
    frame = rows(200).with_columns(probability=pl.lit(math.nan))
    found = performance(frame, costs=COSTS)
    assert found.cost_per_decision.n_obs == 200
    assert found.fraud_rate.n_obs == 200
    assert math.isnan(performance(frame).cost_per_decision.value)


def test_one_decision() -> None:
    found = performance(rows(1), costs=COSTS, card="customer_id")
    assert found.n_labelled == 1
    assert found.cost_per_decision.upper == math.inf


def test_refuses_missing_columns_and_odd_labels() -> None:
    with pytest.raises(InvalidInput, match="label"):
        performance(rows(3).drop("label"))
    with pytest.raises(InvalidInput, match="amount"):
        performance(rows(3).drop("amount"), costs=COSTS)
    with pytest.raises(InvalidInput, match="account"):
        performance(rows(3), card="account")
    with pytest.raises(InvalidInput, match=r"label\[0\]"):
        performance(rows(3).with_columns(label=pl.lit(0.5)))
