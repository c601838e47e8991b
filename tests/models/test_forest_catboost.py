"""Oracle: CatBoost's own `predict`, raw values to the last bit, the softmax and the exponential within 8 units."""

import json

import numpy as np
import pytest
from tests.models.forest_rows import apart, equal, held_out, named, single, training

from vitok.errors import InvalidInput
from vitok.models.forest import Forest

catboost = pytest.importorskip("catboost", reason="catboost is in no extra; pip install catboost")
SETTINGS = {"verbose": 0, "allow_writing_files": False, "thread_count": 1, "iterations": 21, "random_seed": 1}
FOUR = np.array([-1.0, 0.0, 1.0])


def thresholds(model):
    return {feature: np.array(borders) for feature, borders in model.get_borders().items() if len(borders)}


def check(model, seed=0, prediction=None):
    forest = Forest.of(model)
    X = held_out(seed, thresholds(model))
    raw = model.predict(X, prediction_type="RawFormulaVal")
    assert equal(forest.raw(X), raw)
    assert forest.symmetric == (model.get_all_params().get("grow_policy", "SymmetricTree") == "SymmetricTree")
    # A few rows are compared one by one, more in blocks, of which the last is seldom full.
    for n in (0, 1, 15, 16, 17, 255, 256, 257, 1023):
        assert equal(forest.raw(X[:n]), raw[:n])
    assert all(
        equal(forest.raw(X[i : i + 1]), model.predict(X[i : i + 1], prediction_type="RawFormulaVal")) for i in range(30)
    )
    theirs = model.predict(X, prediction_type=prediction)
    if theirs.ndim == 2 and forest.n_outputs == 1:
        theirs = theirs[:, 1]
    if forest.link in ("softmax", "exp"):
        assert apart(forest.predict(X), theirs) <= 8
    else:
        assert equal(forest.predict(X), theirs)
    assert equal(forest.raw(single(X)), raw)
    return forest


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({}, lambda y: y > 0),
        ({"depth": 1}, lambda y: y > 0),
        ({"depth": 8, "iterations": 5}, lambda y: y > 0),
        ({"depth": 9, "iterations": 5}, lambda y: y > 0),
        ({"depth": 12, "iterations": 3}, lambda y: y > 0),
        ({"iterations": 300, "border_count": 2000, "depth": 8}, lambda y: y > 0),
        ({"boost_from_average": True}, lambda y: y > 0),
        ({"grow_policy": "Lossguide"}, lambda y: y > 0),
        ({"loss_function": "MultiClass", "depth": 4}, lambda y: np.digitize(y, FOUR)),
        ({"loss_function": "MultiClass", "grow_policy": "Depthwise"}, lambda y: np.digitize(y, FOUR)),
        ({"loss_function": "MultiClassOneVsAll", "depth": 4}, lambda y: np.digitize(y, FOUR)),
        ({"nan_mode": "Max"}, lambda y: y > 0),
    ],
    ids=named,
)
def test_classifiers(settings, target) -> None:
    X, y = training(1)
    check(catboost.CatBoostClassifier(**{**SETTINGS, **settings}).fit(X, target(y)), prediction="Probability")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nan_mode": "Max"},
        {"grow_policy": "Depthwise"},
        {"loss_function": "MAE"},
        {"loss_function": "MultiQuantile:alpha=0.1,0.9"},
    ],
    ids=named,
)
def test_regressors(settings) -> None:
    X, y = training(2)
    check(catboost.CatBoostRegressor(**SETTINGS, **settings).fit(X, y), prediction="RawFormulaVal")


@pytest.mark.parametrize("loss", ["Poisson", "Tweedie:variance_power=1.5"])
def test_what_is_fitted_as_a_logarithm(loss) -> None:
    X, y = training(3)
    model = catboost.CatBoostRegressor(**SETTINGS, loss_function=loss).fit(X, np.abs(np.round(y)))
    check(model, prediction="Exponent")


def test_rows_without_missing_values_in_training() -> None:
    X, y = training(4, missing=0.0)
    forest = Forest.of(catboost.CatBoostRegressor(**SETTINGS).fit(X, y))
    assert np.isfinite(forest.predict(np.full((1, 7), np.nan))).all()


def test_files_and_names(tmp_path) -> None:
    X, y = training(5)
    model = catboost.CatBoostClassifier(**SETTINGS).fit(catboost.Pool(X, y > 0, feature_names=list("abcdefg")))
    model.save_model(str(tmp_path / "model.json"), format="json")
    forest = Forest.of(tmp_path / "model.json")
    assert forest.feature_names == tuple("abcdefg")
    assert equal(forest.raw(X), model.predict(X, prediction_type="RawFormulaVal"))
    text = (tmp_path / "model.json").read_text(encoding="utf-8")
    for cut in np.random.default_rng(5).integers(2, len(text) - 1, 40):
        with pytest.raises(InvalidInput):
            Forest.of(text[:cut])
    for part in ("features_info", "oblivious_trees", "scale_and_bias", "model_info"):
        described = json.loads(text)
        described[part] = None
        with pytest.raises(InvalidInput):
            Forest.of(described)


def test_categories_and_other_losses_are_refused() -> None:
    X, y = training(6, missing=0.0)
    mixed = np.column_stack((X[:, 5].astype(int).astype(object), X[:, :3]))
    for size in (10, 2):
        model = catboost.CatBoostClassifier(**SETTINGS, one_hot_max_size=size)
        with pytest.raises(InvalidInput, match="split_type"):
            Forest.of(model.fit(mixed, (X[:, 5] == 3), cat_features=[0]))
    with pytest.raises(InvalidInput, match="loss_function"):
        Forest.of(catboost.CatBoostRegressor(**SETTINGS, loss_function="RMSEWithUncertainty").fit(X, y))
    with pytest.raises(InvalidInput, match="fitted"):
        Forest.of(catboost.CatBoostClassifier())
