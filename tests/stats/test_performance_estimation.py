"""Oracles: labels drawn from the probabilities and measured by this room's own metrics; brute force over all labels."""

import itertools
import math

import numpy as np
import pytest

from vitok import stats
from vitok.errors import InvalidInput, NotFound
from vitok.stats.binned_performance import ScoreBins, score_edges
from vitok.stats.performance_estimation import (
    ExpectedRanking,
    calibration_noise,
    expected_multiclass,
    expected_performance,
)


def realised(y: np.ndarray, score: np.ndarray, flagged: np.ndarray) -> dict[str, float]:
    hits = float((y & flagged).sum())
    return {
        "positive_rate": float(y.mean()),
        "roc_auc": stats.roc_auc(y, score).value,
        "average_precision": stats.average_precision(y, score).value,
        "accuracy": float((y == flagged).mean()),
        "precision": hits / flagged.sum(),
        "recall": hits / y.sum(),
        "specificity": float((~y & ~flagged).sum() / (~y).sum()),
        "f1": 2 * hits / (flagged.sum() + y.sum()),
        "false_negative_share": float((y & ~flagged).mean()),
        "brier": stats.brier(y, score).value,
        "log_loss": stats.log_loss(y, score).value,
    }


@pytest.mark.parametrize(("a", "b", "n"), [(0.05, 5.0, 20_000), (2.0, 2.0, 1_000), (0.5, 3.0, 4_000)])
def test_labels_drawn_from_the_probabilities_fall_into_the_intervals(a: float, b: float, n: int) -> None:
    rng = np.random.default_rng(3)
    p = np.clip(rng.beta(a, b, n), 1e-6, 1 - 1e-6)
    flagged = p > 0.2
    found = expected_performance(p, p, flagged=flagged)
    draws = [realised(rng.random(n) < p, p, flagged) for _ in range(120)]
    for name in draws[0]:
        values = np.array([draw[name] for draw in draws])
        metric = found[name]
        assert metric.label_error == pytest.approx(values.std(), rel=0.35)
        assert abs(values.mean() - metric.value) < 5 * values.std() / math.sqrt(len(values)) + 0.06 * values.std()
        inside = ((values >= metric.lower) & (values <= metric.upper)).mean()
        assert inside > 0.87, name


def test_pairs_of_a_small_window_are_counted_exactly() -> None:
    p, score = np.array([0.1, 0.4, 0.4, 0.9]), np.array([1.0, 2.0, 2.0, 3.0])
    in_order = pairs = found = positives = 0.0
    for labels in itertools.product((0, 1), repeat=4):
        y = np.array(labels)
        chance = float(np.prod(np.where(y == 1, p, 1 - p)))
        for i, j in itertools.permutations(range(4), 2):
            if y[i] == 1 and y[j] == 0:
                pairs += chance
                in_order += chance * (1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0)
        for i in range(4):
            if y[i]:
                found += chance * y[score >= score[i]].mean()
                positives += chance
    expected = expected_performance(score, p)
    assert expected["roc_auc"].value == pytest.approx(in_order / pairs, abs=1e-12)
    assert expected["average_precision"].value == pytest.approx(found / positives, abs=1e-12)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "f1", "recall", "specificity", "precision"])
def test_label_error_is_the_slope_by_finite_differences(name: str) -> None:
    rng = np.random.default_rng(0)
    p, score = rng.uniform(0.1, 0.9, 200), rng.integers(0, 30, 200).astype(float)
    flagged = score > 15
    value = expected_performance(score, p, flagged=flagged)[name].value
    slopes = []
    for row in range(200):
        moved = p.copy()
        moved[row] += 1e-6
        slopes.append((expected_performance(score, moved, flagged=flagged)[name].value - value) / 1e-6)
    by_hand = math.sqrt(float(np.array(slopes) ** 2 @ (p * (1 - p))))
    assert expected_performance(score, p, flagged=flagged)[name].label_error == pytest.approx(by_hand, rel=0.02)


def test_costs_and_a_forecast_that_is_not_calibrated() -> None:
    p, q = np.array([0.2, 0.8]), np.array([0.5, 0.5])
    found = expected_performance(q, p, forecast=q, cost_if_positive=[100.0, 0.0], cost_if_negative=[0.0, 30.0])
    assert found["cost"].value == pytest.approx((20.0 + 6.0) / 2)
    assert found["brier"].value == pytest.approx(0.25)
    assert found["log_loss"].value == pytest.approx(math.log(2))


def test_interval_shrinks_with_the_window_but_not_below_the_calibration() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(1, 4, 3_000)
    noise = calibration_noise(p[:1_000], rng.random(1_000) < p[:1_000])
    widths = []
    for n in (300, 3_000, 300_000):
        many = np.tile(p, 100)[:n]
        metric = expected_performance(many, many, noise=noise)["positive_rate"]
        widths.append(metric.upper - metric.lower)
        assert metric.calibration_error > 0.005
    assert widths[0] > widths[1] > widths[2] > 0.02


def test_calibration_noise_is_the_noise_of_refitting() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(1, 4, 20_000)
    rates = [float((rng.random(2_000) < p[at : at + 2_000]).mean()) for at in range(0, 20_000, 2_000)]
    noise = calibration_noise(p[:2_000], rng.random(2_000) < p[:2_000])
    found = expected_performance(p[2_000:], p[2_000:], noise=noise)["positive_rate"].calibration_error
    assert found == pytest.approx(np.std(rates, ddof=1), rel=0.6)
    weighted = calibration_noise(p[:2_000], rng.random(2_000) < p[:2_000], weight=rng.exponential(size=2_000))
    assert sum(weighted.variance) > 1.4 * sum(noise.variance)


@pytest.mark.parametrize("p", [[], [0.0, 0.0], [1.0, 1.0]])
def test_what_cannot_be_said_is_not_a_number(p: list[float]) -> None:
    found = expected_performance(p, p, flagged=[False] * len(p))
    metric = found["roc_auc"]
    assert math.isnan(metric.value)
    assert (metric.lower, metric.upper) == (0.0, 1.0)
    assert metric.definition.startswith("no rows")
    if p:
        assert math.isnan(found["precision"].value)


def test_one_row() -> None:
    found = expected_performance([0.3], [0.3], flagged=[True])
    assert found["precision"].value == pytest.approx(0.3)
    assert math.isnan(found["roc_auc"].value)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InvalidInput, match="probability"):
        expected_performance([1.0], [1.2])
    with pytest.raises(InvalidInput, match="both or not at all"):
        expected_performance([1.0], [0.2], cost_if_positive=[1.0])
    with pytest.raises(InvalidInput, match="score"):
        expected_performance([math.nan], [0.2])
    with pytest.raises(InvalidInput, match="predicted"):
        expected_multiclass(np.full((2, 2), 0.5), np.full((2, 2), 0.5), [0, 2])
    with pytest.raises(NotFound, match="gini"):
        expected_performance([0.1], [0.1])["gini"]


def test_several_classes_against_labels_drawn() -> None:
    from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

    rng = np.random.default_rng(5)
    p = rng.dirichlet([0.6, 0.3, 0.4], 3_000)
    predicted = p.argmax(axis=1)
    found = expected_multiclass(p, p, predicted)
    draws: dict[str, list[float]] = {name: [] for name in ("accuracy", "roc_auc", "precision", "recall", "f1")}
    for _ in range(60):
        y = (p.cumsum(axis=1) < rng.random((3_000, 1))).sum(axis=1)
        draws["accuracy"].append(float((y == predicted).mean()))
        draws["roc_auc"].append(roc_auc_score(y, p, multi_class="ovr", average="macro"))
        draws["precision"].append(precision_score(y, predicted, average="macro"))
        draws["recall"].append(recall_score(y, predicted, average="macro"))
        draws["f1"].append(f1_score(y, predicted, average="macro"))
    one = np.eye(3)[(p.cumsum(axis=1) < rng.random((3_000, 1))).sum(axis=1)]
    assert found["average_precision"].value == pytest.approx(average_precision_score(one, p), abs=0.03)
    for name, values in draws.items():
        assert found[name].value == pytest.approx(np.mean(values), abs=0.6 * np.std(values))
        assert found[name].label_error == pytest.approx(np.std(values), rel=0.4)


def test_a_class_that_is_never_predicted() -> None:
    p = np.tile([0.5, 0.4, 0.1], (20, 1))
    found = expected_multiclass(p, p, np.zeros(20))
    assert math.isnan(found["precision"].value)
    assert found["accuracy"].value == pytest.approx(0.5)
    assert math.isnan(expected_multiclass(np.zeros((0, 3)), np.zeros((0, 3)), [])["accuracy"].value)


def test_without_rows_flags_and_costs_are_there_and_undefined() -> None:
    rows = expected_performance([0.5], [0.5], flagged=[True], cost_if_positive=[1.0], cost_if_negative=[0.0])
    found = expected_performance([], [], flagged=[], cost_if_positive=[], cost_if_negative=[])
    assert [one.name for one in found.estimates] == [one.name for one in rows.estimates]
    assert all(math.isnan(one.value) for one in found.estimates)


def test_gradients_are_those_of_the_values() -> None:
    """Oracle: differences of the expected metric, which is what it says for other probabilities of single rows."""
    rng = np.random.default_rng(8)
    p = rng.uniform(0.05, 0.6, 12)
    score = np.concatenate([rng.permutation(9.0 + np.arange(9)), [1.0, 1.0, 1.0]])
    p[9:] = 0.3

    def found(probability: np.ndarray, name: str) -> float:
        return float(getattr(ExpectedRanking.of(score, probability), name)()[0])

    for name in ("roc_auc", "average_precision"):
        gradient = getattr(ExpectedRanking.of(score, p), name)()[1]
        for at in range(len(p)):
            up, down = p.copy(), p.copy()
            up[at] += 1e-5
            down[at] -= 1e-5
            assert gradient[at] == pytest.approx((found(up, name) - found(down, name)) / 2e-5, abs=1e-8), (name, at)


@pytest.mark.parametrize(("a", "b", "n"), [(0.3, 20.0, 1_000), (0.05, 30.0, 8_000), (0.1, 0.3, 1_000)])
def test_intervals_hold_what_labels_will_show(a: float, b: float, n: int) -> None:
    """Rare positives, of which the first few ranks decide; and a sharp model, of which precision may well be 1."""
    rng = np.random.default_rng(5)
    p = np.clip(rng.beta(a, b, n), 1e-5, 1 - 1e-5)
    flagged = p > np.quantile(p, 0.9)
    names = ("average_precision", "precision", "recall", "roc_auc", "brier")
    said = expected_performance(p, p, flagged=flagged)
    order = np.argsort(-p)
    inside = dict.fromkeys(names, 0)
    spread = []
    for _ in range(300):
        y = rng.random(n) < p
        ranked = np.cumsum(y[order])
        found = {
            "average_precision": float((ranked / np.arange(1, n + 1))[y[order]].mean()),
            "precision": float(y[flagged].mean()),
            "recall": float(flagged[y].mean()),
            "roc_auc": stats.roc_auc(y, p).value,
            "brier": float(((y - p) ** 2).mean()),
        }
        for name in names:
            inside[name] += said[name].lower <= found[name] <= said[name].upper
        one = said["average_precision"]
        spread.append((found["average_precision"] - one.value) / one.label_error)
    assert min(inside.values()) >= 0.9 * 300, inside
    assert 0.85 < np.std(spread) < 1.15


def test_bins_know_how_uncertain_average_precision_is() -> None:
    """Oracle: the rows themselves."""
    rng = np.random.default_rng(5)
    p = rng.beta(0.05, 30, 20_000)
    y = rng.random(20_000) < p
    edges = score_edges(p, n_bins=32)
    from_counts = ScoreBins.fit(edges, p, y).expected(edges.count(p))["average_precision"]
    from_rows = expected_performance(p, p)["average_precision"]
    assert from_counts.label_error == pytest.approx(from_rows.label_error, rel=0.35)
