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


def selective(seed: int, *, chance: float, n: int = 20_000, tilt: float = 1.0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A day of decisions whose blocks hide their labels, and the same with all labels."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.15, 3.0, n)
    label = (rng.random(n) < np.clip(probability**tilt, 0, 1)).astype(float)
    would_block = probability > 0.4
    passes = would_block & (rng.random(n) < chance)
    blocked = would_block & ~passes
    whole = pl.DataFrame(
        {
            "label": label,
            "probability": probability,
            "action": np.where(blocked, "block", "allow"),
            "propensity": np.where(would_block, np.where(passes, chance, 1 - chance), 1.0),
            "amount": rng.lognormal(3.0, 0.5, n),
        }
    )
    hidden = whole.with_columns(label=pl.when(pl.col("action") == "block").then(None).otherwise("label"))
    return hidden, whole


def test_nothing_hidden_changes_nothing() -> None:
    _, whole = selective(1, chance=0.1)
    kept = whole.with_columns(propensity=pl.lit(1.0))
    assert performance(kept, costs=Costs(), hiding=("review",)) == performance(kept, costs=Costs())


@pytest.mark.parametrize("tilt", [1.0, 0.8])
def test_what_passed_at_random_stands_for_what_was_blocked(tilt: float) -> None:
    # Oracle: the same decisions with all labels. Without a correction the best of the ranking would be missing.
    names = ("auc", "average_precision", "brier", "fraud_rate", "cost_per_decision")
    errors: dict[str, list[float]] = {name: [] for name in names}
    inside: dict[str, int] = dict.fromkeys(names, 0)
    naive: list[float] = []
    runs = 60
    for seed in range(runs):
        hidden, whole = selective(seed, chance=0.1, tilt=tilt)
        found = performance(hidden, costs=Costs(), hiding=("block",))
        truth = performance(whole, costs=Costs())
        naive.append(performance(hidden).average_precision.value - truth.average_precision.value)
        for name in names:
            estimate, known = getattr(found, name), getattr(truth, name)
            errors[name].append(estimate.value - known.value)
            inside[name] += estimate.lower <= known.value <= estimate.upper
        assert found.n_unsupported == 0
        assert found.labelled.value == 1.0
    for name in names:
        spread = np.std(errors[name]) / math.sqrt(runs)
        assert abs(np.mean(errors[name])) < 4 * spread + 2e-3, name
        assert inside[name] >= 0.9 * runs, name
    assert np.mean(naive) < -0.05


def test_blocks_that_never_pass_are_taken_at_their_word_and_counted() -> None:
    hidden, whole = selective(3, chance=0.1)
    never = hidden.with_columns(propensity=pl.lit(1.0))
    found = performance(never, costs=Costs(), hiding=("block",))
    assert found.n_unsupported == found.n_hidden == (whole["action"] == "block").sum()
    assert "without a chance of one" in str(found)
    assert found.fraud_rate.value == pytest.approx(whole["label"].mean(), abs=0.01)


def test_a_label_after_a_block_is_not_used() -> None:
    hidden, whole = selective(4, chance=0.1)
    assert performance(whole, costs=Costs(), hiding=("block",)) == performance(hidden, costs=Costs(), hiding=("block",))


def test_all_blocked_has_no_ranking() -> None:
    rows = pl.DataFrame(
        {"label": [None, None], "probability": [0.5, 0.6], "action": "block", "propensity": 0.99, "amount": 1.0},
        schema_overrides={"label": pl.Float64},
    )
    found = performance(rows, costs=Costs(), hiding=("block",))
    assert found.n_labelled == 0
    assert found.cost_per_decision.value == pytest.approx(30 * 0.45)
