"""Calibrators. Oracles: scikit-learn 1.9 (logistic and isotonic regression), hand computation, simulation."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from vitok.errors import InvalidInput
from vitok.models.calibrators import (
    CALIBRATORS,
    BetaCalibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    calibrator_from_dict,
    fit_best,
)
from vitok.stats import calibration_error, log_loss

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({y for _, y in rows}) == 2
)
GRID = np.array([0.0, 1e-300, 1e-9, 0.01, 0.3, 0.5, 0.9, 1 - 1e-9, 1.0])


def draw(n: int, seed: int, power: float = 2.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    p = rng.beta(0.5, 3, n)
    return p**power, rng.uniform(size=n) < p


@pytest.mark.parametrize("kind", CALIBRATORS)
@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_any_fit_is_monotone_strictly_inside_and_survives_json(kind: Any, rows: list[tuple[float, bool]]) -> None:
    score, y = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    calibrator = kind.fit(score, y)
    x = np.sort(np.concatenate((GRID, score)))
    p = calibrator(x)
    assert (np.diff(p) >= -1e-12).all()
    assert p.min() > 0
    assert p.max() < 1
    again = calibrator_from_dict(json.loads(json.dumps(calibrator.to_dict(), allow_nan=False)))
    assert again == calibrator
    assert again(x).tolist() == p.tolist()


def softened_sklearn(design: Any, y: Any) -> Any:
    """Logistic regression on Platt's targets: each row stands there once for each class, weighted by its target."""
    n_positive, n_negative = y.sum(), (~y).sum()
    target = np.where(y, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))
    model = LogisticRegression(C=math.inf, tol=1e-10, max_iter=1000, solver="newton-cholesky")
    return model.fit(
        np.vstack((design, design)), np.repeat([1, 0], len(y)), sample_weight=np.concatenate((target, 1 - target))
    )


def test_platt_equals_sklearn_on_raw_scores_and_on_probabilities() -> None:
    score, y = draw(800, 0)
    # The calibrators keep probabilities 1e-12 from 0 and 1; the oracle has no such limit.
    score = np.clip(score, 1e-9, 1 - 1e-9)
    raw = 30 * score - 5
    for given_score, design in ((raw, raw), (score, np.log(score / (1 - score)))):
        expected = softened_sklearn(design[:, None], y)
        found = PlattCalibrator.fit(given_score, y)
        assert (found.slope, found.intercept) == pytest.approx((expected.coef_[0, 0], expected.intercept_[0]), rel=1e-5)
    assert found.on_logit


def test_beta_equals_sklearn() -> None:
    score, y = draw(3000, 1)
    score = np.clip(score, 1e-9, 1 - 1e-9)
    expected = softened_sklearn(np.column_stack((np.log(score), -np.log1p(-score))), y)
    found = BetaCalibrator.fit(score, y)
    assert (expected.coef_ > 0).all()
    assert (found.a, found.b, found.c) == pytest.approx((*expected.coef_[0], expected.intercept_[0]), rel=1e-5)


def test_isotonic_equals_sklearn_with_the_two_pseudo_rows() -> None:
    score, y = draw(1000, 2)
    x, targets = np.append(score, [score.min(), score.max()]), np.append(y, [y.mean()] * 2)
    expected = IsotonicRegression(out_of_bounds="clip").fit(x, targets)
    points = np.linspace(-0.1, 1.1, 500)
    assert IsotonicCalibrator.fit(score, y)(points) == pytest.approx(expected.predict(points), abs=1e-10)


def test_isotonic_keeps_the_base_rate() -> None:
    score, y = draw(1000, 3)
    assert IsotonicCalibrator.fit(score, y)(score).mean() == pytest.approx(y.mean(), abs=2e-3)


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_calibrated_scores_mean_what_they_say(kind: Any) -> None:
    calibrator = kind.fit(*draw(20_000, 4))
    score, y = draw(20_000, 5)
    assert calibration_error(y, score).lower > 0.05
    assert calibration_error(y, calibrator(score)).value < 0.03


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_a_score_against_the_labels_becomes_the_base_rate_and_not_its_reverse(kind: Any) -> None:
    score, y = draw(2000, 6)
    p = kind.fit(1 - score, y)(np.array([0.01, 0.5, 0.99]))
    assert p.max() - p.min() < 0.02
    assert p[1] == pytest.approx(y.mean(), abs=0.02)


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_separable_and_constant_scores_have_a_fit(kind: Any) -> None:
    p = kind.fit([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])(np.array([0.1, 0.9]))
    assert 0 < p[0] < 0.5 < p[1] < 1
    assert kind.fit([0.3] * 4, [0, 0, 0, 1])(np.array([0.3])) == pytest.approx([0.25], abs=0.09)


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_a_missing_score_gives_a_missing_probability(kind: Any) -> None:
    p = kind.fit(*draw(100, 7))(np.array([math.nan, 0.5]))
    assert math.isnan(p[0])
    assert 0 < p[1] < 1


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_infinite_and_float32_scores(kind: Any) -> None:
    calibrator = kind.fit(*draw(100, 8))
    p = calibrator(np.array([-math.inf, math.inf]))
    assert 0 < p[0] <= p[1] < 1
    assert calibrator(np.array([0.2, 0.7], dtype=np.float32)) == pytest.approx(
        calibrator(np.array([0.2, 0.7])), abs=1e-6
    )
    assert calibrator(np.array([])).tolist() == []


BAD = [
    ([], [], "score"),
    ([0.1, 0.2], [1], "score and y"),
    ([0.1, 0.2], [1, 1], "y"),
    ([0.1, math.nan], [0, 1], "score[1]"),
    ([0.1, math.inf], [0, 1], "score[1]"),
    ([0.1, 0.2], [0, 2], "y[1]"),
    ([0.1, 0.2], [0, math.nan], "y[1]"),
    ([[0.1], [0.2]], [[0], [1]], "score and y"),
    (["a", "b"], [0, 1], "score and y"),
]


@pytest.mark.parametrize(("score", "y", "field"), BAD)
@pytest.mark.parametrize("fit", [*(kind.fit for kind in CALIBRATORS), fit_best])
def test_bad_input_is_named(fit: Any, score: Any, y: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        fit(score, y)
    assert caught.value.field == field


def test_beta_refuses_raw_scores() -> None:
    with pytest.raises(InvalidInput, match="Use Platt or isotonic"):
        BetaCalibrator.fit([-3.0, 2.0], [0, 1])


def test_best_of_a_beta_curve_is_not_platt_and_all_losses_are_told() -> None:
    rng = np.random.default_rng(9)
    score = rng.uniform(size=20_000)
    truth = BetaCalibrator(a=0.2, b=3.0, c=0.0)
    choice = fit_best(score, rng.uniform(size=20_000) < truth(score))
    losses = {kind: loss.value for kind, loss in choice.log_losses}
    assert list(losses) == ["platt", "beta", "isotonic"]
    assert choice.kind == min(losses, key=lambda kind: losses[kind]) == "beta"
    assert choice.uncalibrated is not None
    assert choice.uncalibrated.value > losses["beta"]
    found = choice.calibrator.to_dict()
    assert (found["a"], found["b"]) == pytest.approx((0.2, 3.0), abs=0.15)


def test_best_is_scored_on_rows_it_has_not_seen() -> None:
    score, y = draw(300, 10)
    choice = fit_best(score, y, kinds=[IsotonicCalibrator])
    assert choice.log_losses[0][1].value > log_loss(y, choice.calibrator(score)).value
    assert choice == fit_best(score, y, kinds=[IsotonicCalibrator])


def test_best_of_raw_scores_leaves_beta_out() -> None:
    score, y = draw(300, 11)
    choice = fit_best(10 * score - 3, y)
    assert [kind for kind, _ in choice.log_losses] == ["platt", "isotonic"]
    assert choice.uncalibrated is None
    with pytest.raises(InvalidInput):
        fit_best(10 * score - 3, y, kinds=[BetaCalibrator])


def test_best_with_few_positives_uses_fewer_folds() -> None:
    assert fit_best(np.linspace(0, 1, 30), [0] * 27 + [1] * 3).n_folds == 3
    with pytest.raises(InvalidInput, match="at least two of each"):
        fit_best([0.1, 0.2, 0.3], [0, 0, 1])
    with pytest.raises(InvalidInput, match="n_folds"):
        fit_best([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], n_folds=1)
    with pytest.raises(InvalidInput, match="kinds"):
        fit_best([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], kinds=[])


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": "spline"},
        {"kind": "platt", "slope": 1.0},
        {"kind": "isotonic", "scores": [], "probabilities": []},
        {"kind": "isotonic", "scores": [1.0, 0.5], "probabilities": [0.1, 0.2]},
        {"kind": "isotonic", "scores": [0.1, 0.5], "probabilities": [0.0, 0.2]},
        {"kind": "isotonic", "scores": [0.1, 0.5], "probabilities": [0.3, 0.2]},
        {"kind": "isotonic", "scores": [0.1], "probabilities": [0.3, 0.4]},
    ],
)
def test_broken_json_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        calibrator_from_dict(data)


@pytest.mark.parametrize("kind", [PlattCalibrator, BetaCalibrator, IsotonicCalibrator])
def test_a_weight_of_two_is_the_row_twice(kind: type) -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.01, 0.99, 4_000)
    y = (rng.random(4_000) < p**2).astype(float)
    weight = rng.integers(0, 3, 4_000)
    weighted, repeated = kind.fit(p, y, weight=weight), kind.fit(np.repeat(p, weight), np.repeat(y, weight))
    # Softened targets and pseudo-rows count rows at a mean weight of one, hence not exactly.
    np.testing.assert_allclose(weighted(p), repeated(p), atol=1e-2)
    np.testing.assert_allclose(kind.fit(p, y)(p), kind.fit(p, y, weight=np.full(4_000, 7.0))(p), atol=1e-9)
