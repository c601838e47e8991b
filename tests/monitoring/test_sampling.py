"""Oracle: repeated draws from a population whose metrics are known."""

import math
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.monitoring.sampling import METRICS, Population, estimate_from_draw, estimate_from_labels, plan_labels


def population(bend: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    rng = np.random.default_rng(0)
    p = rng.beta(0.1, 4, 20_000)
    y = rng.random(20_000) < p**bend
    flags = p > 0.3
    truth = {
        "accuracy": float((y == flags).mean()),
        "precision": float(y[flags].mean()),
        "recall": float(flags[y].mean()),
        "positive_rate": float(y.mean()),
    }
    return p, y, flags, truth


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("bend", [1.0, 1.4])
def test_unbiased_and_covering_even_where_probabilities_are_wrong(metric: str, bend: float) -> None:
    p, y, flags, truth = population(bend)
    values, covered, halves = [], 0, []
    for seed in range(80):
        plan = plan_labels(p, flags, metric=metric, budget=400, seed=seed)
        found = estimate_from_labels(plan, y[plan.rows], p, flags)
        values.append(found.value)
        covered += found.lower <= truth[metric] <= found.upper
        halves.append(plan.half_width)
    error = np.std(values) / math.sqrt(80)
    assert np.mean(values) == pytest.approx(truth[metric], abs=4 * error + 0.004)
    assert covered >= 69
    if bend == 1.0:
        assert 1.96 * np.std(values) == pytest.approx(halves[0], rel=0.3)


@pytest.mark.parametrize("odds", [1.0, 1.7, 0.5])
def test_where_positives_are_rare_the_interval_is_no_surer_than_the_plan(odds: float) -> None:
    rng = np.random.default_rng(1)
    p = np.clip(rng.gamma(0.3, 0.02, 6_000) + np.where(rng.random(6_000) < 0.01, 0.6, 0.0), 0, 1)
    flags = p > 0.3
    covered = 0
    for seed in range(100):
        y = rng.random(6_000) < np.minimum(odds * p, 1.0)
        plan = plan_labels(p, flags, metric="recall", budget=100, seed=seed)
        found = estimate_from_labels(plan, y[plan.rows], p, flags)
        covered += found.lower <= flags[y].mean() <= found.upper
    # By the spread of the labels alone far fewer; what is left are draws that saw no positive but flagged ones.
    assert covered >= 90


@pytest.mark.parametrize(
    "changes", [{"n_obs": 0}, {"n_flagged": 11}, {"expected": math.nan}, {"expected_flagged": 9.0}]
)
def test_sums_that_no_rows_have_are_told(changes: dict[str, float]) -> None:
    given: dict[str, Any] = {"n_obs": 10, "n_flagged": 2, "expected": 3.0, "expected_flagged": 1.5}
    Population(**given)
    with pytest.raises(InvalidInput, match=r"n_flagged|expected_flagged"):
        Population(**given | changes)
    with pytest.raises(InvalidInput, match="half_width"):
        estimate_from_draw(
            "recall",
            [1],
            probability=[0.5],
            flagged=[1],
            propensity=[0.5],
            population=Population(**given),
            half_width=math.nan,
        )


def test_a_plan_that_promises_nothing_says_so() -> None:
    p, _, flags, _ = population(1.0)
    assert str(plan_labels(p, flags, metric="recall", budget=1)).endswith("so few that they say nothing")


@pytest.mark.parametrize("metric", ["accuracy", "recall", "positive_rate"])
def test_chosen_rows_beat_rows_drawn_all_alike(metric: str) -> None:
    p, _, flags, _ = population(1.0)
    plan = plan_labels(p, flags, metric=metric, budget=400)
    assert plan.half_width < 0.6 * plan.uniform_half_width
    assert plan.expected_labels == pytest.approx(400, rel=0.01)
    assert 330 < len(plan.rows) < 470


def test_budget_for_a_half_width() -> None:
    p, _, flags, _ = population(1.0)
    plan = plan_labels(p, flags, metric="recall", half_width=0.05)
    assert plan.half_width <= 0.05
    fewer = plan_labels(p, flags, metric="recall", budget=round(plan.expected_labels) - 5)
    assert fewer.half_width > 0.05
    assert "rows to label for recall" in str(plan)
    assert len(plan.to_dict()["rows"]) == len(plan.rows)  # type: ignore[arg-type]


def test_every_row_labelled_is_the_truth_itself() -> None:
    p, y, flags, truth = population(1.4)
    plan = plan_labels(p, flags, metric="precision", budget=10**6)
    found = estimate_from_labels(plan, y[plan.rows], p, flags)
    assert found.value == pytest.approx(truth["precision"])
    assert found.upper - found.lower < 1e-9
    assert flags[plan.rows].all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": float("nan")}, "budget"),
        ({"budget": "10"}, "budget"),
        ({"budget": None, "half_width": float("inf")}, "half_width"),
        ({"probability": ["a", "b"]}, "probability"),
        ({"flagged": [0.3, 1.0]}, "flagged"),
    ],
)
def test_what_is_no_number_is_named(changes: dict[str, Any], said: str) -> None:
    given = {"probability": [0.3, 0.6], "flagged": [0, 1], "metric": "precision", "budget": 1, **changes}
    with pytest.raises(InvalidInput, match=said):
        plan_labels(given.pop("probability"), given.pop("flagged"), **given)


def test_wrong_input_is_named() -> None:
    p, flags = np.array([0.2, 0.8]), np.array([False, True])
    for match, given in {
        "given one of them": {"budget": None},
        "metric": {"metric": "f2"},
        "budget": {"budget": 0},
        "uniform_share": {"uniform_share": 0.0},
    }.items():
        with pytest.raises(InvalidInput, match=match):
            plan_labels(p, flags, **{"metric": "accuracy", "budget": 1, **given})
    with pytest.raises(InvalidInput, match="precision"):
        plan_labels(p, [False, False], metric="precision", budget=1)
    plan = plan_labels(p, flags, metric="accuracy", budget=2)
    with pytest.raises(InvalidInput, match="y"):
        estimate_from_labels(plan, [0, 1, 1], p, flags)
    with pytest.raises(InvalidInput, match="plan was made for"):
        estimate_from_labels(plan, np.zeros(len(plan.rows)), [0.1], [True])
