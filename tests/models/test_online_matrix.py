"""Rows of one matrix. Oracle: `OnlineModel.predict` on the same columns, in every bit."""

from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.models.online import OnlineModel
from vitok.models.online_calibration import PowerCalibrator
from vitok.models.online_features import Buckets, Category, Cross, Feature, HashedFeatures, Number
from vitok.models.online_ftrl import Rates
from vitok.models.online_matrix import MatrixScorer

NAMES = tuple(f"x{i}" for i in range(12))
WEIRD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e300, -1e300, 5e-324)
BUCKETS = tuple(Buckets(f"x{i}", tuple(np.linspace(-2, 2, 3 + i).tolist())) for i in range(7))
NUMBERS = (Number("x7"), Number("x8", 0.3, 0.7, 2.0), Number("x0", -1.0, 3.0))
CROSSES = (Cross(("x1", "x2")), Cross(("x3", "x0", "x6")))
DECLARED: dict[str, dict[str, Any]] = {
    "all": {"features": (*NUMBERS, *CROSSES, *BUCKETS)},
    "numbers": {"features": NUMBERS},
    "buckets": {"features": BUCKETS, "constant": False},
    # So few slots that every row has several features in one.
    "collisions": {"features": (*BUCKETS, *NUMBERS, *CROSSES), "bits": 2},
    "wide": {"features": (*BUCKETS, *CROSSES), "bits": 22},
}


def matrix(n: int, *, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, len(NAMES))).round(1)
    X[rng.random(X.shape) < 0.2] = np.nan
    for at, value in enumerate(WEIRD[:n]):
        X[at] = value
    return X


def columns(X: Any) -> dict[str, Any]:
    return {name: X[:, i] for i, name in enumerate(NAMES)}


def learned(features: tuple[Feature, ...], **how: Any) -> OnlineModel:
    model = OnlineModel(HashedFeatures(features=features, **how), rates=Rates(alpha=0.3, l1=0.01))
    X = matrix(600, seed=7)
    model.learn_many(columns(X), (np.random.default_rng(8).random(600) < 0.3).astype(float))
    return model


@pytest.mark.parametrize("which", DECLARED)
@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_it_answers_as_the_model_does(which: str, n: int) -> None:
    model = learned(**DECLARED[which])
    scorer, X = MatrixScorer(model, NAMES), matrix(n)
    assert scorer.direct
    expected = model.predict(columns(X))
    assert scorer(X).tolist() == expected.tolist()
    assert scorer(np.asfortranarray(X)).tolist() == expected.tolist()
    assert scorer(np.repeat(X, 2, axis=1)[:, ::2]).tolist() == expected.tolist()
    assert [float(scorer(X[i : i + 1])[0]) for i in range(min(n, 9))] == expected[:9].tolist()


def test_rows_of_32_bits_and_whole_numbers() -> None:
    model = learned(**DECLARED["all"])
    scorer = MatrixScorer(model, NAMES)
    for X in (np.clip(matrix(50), -1e30, 1e30).astype(np.float32), np.arange(36).reshape(3, 12)):
        assert scorer(X).tolist() == model.predict(columns(X)).tolist()


def test_it_follows_its_model() -> None:
    model = learned(**DECLARED["all"])
    scorer, X = MatrixScorer(model, NAMES[::-1]), matrix(40)
    before = scorer(X[:, ::-1])
    model.learn_many(columns(X), np.ones(40))
    model.calibrator = PowerCalibrator(gamma=0.7, kappa=1.1)
    after = scorer(X[:, ::-1])
    assert after.tolist() == model.predict(columns(X)).tolist()
    assert after.tolist() != before.tolist()
    model.warm_restart(learned(**DECLARED["all"]))
    assert scorer(X[:, ::-1]).tolist() == before.tolist()


def test_what_needs_the_long_way_takes_it() -> None:
    for features in ((Category("x1"), Number("x2")), (Number("x2", limit=1e80),)):
        model = OnlineModel(HashedFeatures(features=features, bits=10))
        X = np.arange(120.0).reshape(10, 12)
        model.learn_many(columns(X), np.arange(10) % 2)
        scorer = MatrixScorer(model, NAMES)
        assert not scorer.direct
        assert scorer(X).tolist() == model.predict(columns(X)).tolist()


def test_a_matrix_that_does_not_fit_is_refused() -> None:
    model = learned(**DECLARED["all"])
    with pytest.raises(InvalidInput, match="hold every column"):
        MatrixScorer(model, NAMES[1:])
    scorer = MatrixScorer(model, NAMES)
    for wrong in (np.zeros(12), np.zeros((2, 11)), np.zeros((2, 12)).astype(str), np.zeros((2, 12), object)):
        with pytest.raises(InvalidInput, match="matrix"):
            scorer(wrong)
