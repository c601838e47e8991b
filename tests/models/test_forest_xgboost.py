"""Oracle: XGBoost's own `Booster.predict`, to the last bit of its 32."""

import json

import numpy as np
import pytest
from tests.models.forest_rows import ORDINARY, equal, held_out, training

from vitok.errors import InvalidInput
from vitok.models.forest import Forest
from vitok.models.forest_xgboost import read_ubjson

xgboost = pytest.importorskip("xgboost", reason="xgboost is in no extra; pip install xgboost-cpu")
NUMBERS = ["q"] * 7
# XGBoost refuses what is infinite in 32 bits, and negative categories.
FINITE = ORDINARY


def matrix(X, y=None, types=NUMBERS):
    return xgboost.DMatrix(X, y, feature_types=types, enable_categorical="c" in types, nthread=1)


def fit(params, X, y, n_trees=20, types=NUMBERS):
    return xgboost.train({"max_depth": 5, "verbosity": 0, "nthread": 1, **params}, matrix(X, y, types), n_trees)


def thresholds(model):
    booster = model["learner"]["gradient_booster"]
    found: dict[int, list[float]] = {}
    for tree in booster.get("gbtree", booster)["model"]["trees"]:
        parts = zip(tree["split_indices"], tree["split_conditions"], tree["left_children"], strict=True)
        for feature, value, left in parts:
            if left >= 0:
                found.setdefault(feature, []).append(value)
    return {feature: np.array(values) for feature, values in found.items()}


def check(booster, seed=0, types=NUMBERS):
    model = json.loads(booster.save_raw("json"))
    forest = Forest.of(booster)
    X = held_out(seed, thresholds(model), odd=FINITE)
    X[np.abs(X) > float(np.finfo(np.float32).max)] = np.nan
    for feature, kind in enumerate(types):
        if kind == "c":
            X[:, feature] = np.abs(X[:, feature])
    for rows in (X, X[:1]):
        data = matrix(rows, types=types)
        assert equal(forest.raw(rows), booster.predict(data, output_margin=True))
        assert equal(forest.predict(rows), booster.predict(data))
    assert all(equal(forest.raw(X[i : i + 1]), forest.raw(X)[i : i + 1]) for i in range(50))
    for source in (model, json.dumps(model), bytes(booster.save_raw("ubj")), bytes(booster.save_raw("json"))):
        assert equal(Forest.of(source).raw(X), forest.raw(X))
    return forest


@pytest.mark.parametrize(
    ("params", "target"),
    [
        ({"objective": "reg:squarederror"}, lambda y: y),
        ({"objective": "reg:absoluteerror"}, lambda y: y),
        ({"objective": "binary:logistic"}, lambda y: y > 0),
        ({"objective": "binary:logistic", "base_score": 0.21}, lambda y: y > 0),
        ({"objective": "binary:logitraw"}, lambda y: y > 0),
        ({"objective": "binary:hinge"}, lambda y: y > 0),
        ({"objective": "reg:logistic"}, lambda y: 1 / (1 + np.exp(-y))),
        ({"objective": "count:poisson"}, lambda y: np.abs(np.round(y))),
        ({"objective": "reg:gamma"}, lambda y: np.abs(y) + 0.1),
        ({"objective": "reg:tweedie"}, lambda y: np.abs(y)),
        ({"objective": "multi:softprob", "num_class": 4}, lambda y: np.digitize(y, [-1, 0, 1])),
        ({"objective": "multi:softprob", "num_class": 3, "booster": "dart", "rate_drop": 0.3}, lambda y: y > 0),
        ({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.9]}, lambda y: y),
        ({"objective": "reg:squarederror"}, lambda y: np.stack((y, 2 * y - 1), axis=1)),
        ({"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3}, lambda y: y > 0),
        ({"num_parallel_tree": 10, "subsample": 0.5, "colsample_bynode": 0.5, "learning_rate": 1.0}, lambda y: y),
        ({"tree_method": "exact", "gamma": 5.0}, lambda y: y),
        ({"grow_policy": "lossguide", "max_leaves": 40, "max_depth": 0}, lambda y: y),
        ({"max_depth": 1}, lambda y: y),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("share", [0.0, 0.1], ids=["complete", "missing"])
def test_objectives_and_ways_of_boosting(params, target, share) -> None:
    X, y = training(1, missing=share)
    check(fit(params, X, target(y)))


@pytest.mark.parametrize("one_hot", [1, 100])
def test_categories(one_hot) -> None:
    X, y = training(2)
    types = ["q"] * 4 + ["c", "c", "q"]
    forest = check(fit({"tree_method": "hist", "max_cat_to_onehot": one_hot}, X, y, types=types), types=types)
    assert len(forest.bits) > 0


def test_infinite_values_and_odd_categories_as_in_inplace_predict() -> None:
    X, y = training(9)
    booster = fit({"tree_method": "hist"}, X, y, types=["q"] * 4 + ["c", "c", "q"])
    T = held_out(9, {})  # a DMatrix would refuse some of it
    with np.errstate(over="ignore"):
        assert equal(Forest.of(booster).raw(T), booster.inplace_predict(T, predict_type="margin"))


def test_no_trees() -> None:
    X, y = training(3)
    check(fit({}, X, y, 0))


@pytest.mark.parametrize("seed", range(4))
def test_random_models(seed) -> None:
    rng = np.random.default_rng(seed)
    X, y = training(seed + 20, int(rng.integers(30, 1500)), missing=float(rng.choice([0, 0.02, 0.5])))
    params = {"max_depth": int(rng.integers(1, 10)), "min_child_weight": 0.0, "reg_lambda": 0.1, "subsample": 0.7}
    check(fit({"objective": "binary:logistic", **params}, X, y > 0, int(rng.integers(1, 60))), seed)


def test_thresholds_at_the_ends() -> None:
    X, y = training(4)
    model = json.loads(fit({}, X, y).save_raw("json"))
    rng = np.random.default_rng(4)
    largest = float(np.finfo(np.float32).max)
    odd = [0.0, -0.0, 1e-45, -1e-45, largest, -largest]
    for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
        for node, left in enumerate(tree["left_children"]):
            if left >= 0:
                tree["split_conditions"][node] = float(rng.choice(odd))
    booster = xgboost.Booster()
    booster.load_model(bytearray(json.dumps(model).encode()))
    check(booster)


def test_nothing_is_below_minus_infinity() -> None:
    X, y = training(5)
    model = json.loads(fit({"max_depth": 1, "base_score": 0.0}, X, y, 1).save_raw("json"))
    tree = model["learner"]["gradient_booster"]["model"]["trees"][0]
    feature = tree["split_indices"][0]
    low, high = (np.float32(value) for value in tree["split_conditions"][1:3])
    tree["split_conditions"][0] = -np.inf
    rows = np.zeros((3, 7))
    rows[:, feature] = [-np.inf, 0.0, np.nan]
    for default_left, last in ((1, low), (0, high)):
        tree["default_left"][0] = default_left
        assert Forest.of(model).raw(rows).tolist() == [high, high, last]


def test_estimators_stop_at_the_best_iteration() -> None:
    X, y = training(6)
    classifier = xgboost.XGBClassifier(n_estimators=50, early_stopping_rounds=2, n_jobs=1, learning_rate=1.0)
    classifier.fit(X, y > 0, eval_set=[(X[:100], y[:100] < 0)], verbose=False)
    assert classifier.best_iteration + 1 < classifier.get_booster().num_boosted_rounds()
    T = held_out(6, {}, odd=FINITE)
    forest = Forest.of(classifier)
    assert forest.n_trees == classifier.best_iteration + 1
    assert equal(forest.predict(T), classifier.predict_proba(T)[:, 1])


def test_what_cannot_be_exact_is_refused() -> None:
    X, y = training(7, missing=0.0)
    with pytest.raises(InvalidInput, match="multi_strategy"):
        Forest.of(fit({"multi_strategy": "multi_output_tree"}, X, X[:, :2], 2))
    with pytest.raises(InvalidInput, match="booster"):
        Forest.of(fit({"booster": "gblinear"}, X, y, 2))
    with pytest.raises(InvalidInput, match="fitted"):
        Forest.of(xgboost.XGBClassifier())
    with pytest.raises(InvalidInput, match="missing"):
        Forest.of(xgboost.XGBRegressor(n_estimators=2, missing=-1.0).fit(X, y))
    model = json.loads(fit({}, X, y, 2).save_raw("json"))
    model["learner"]["objective"]["name"] = "magic"
    with pytest.raises(InvalidInput, match="objective"):
        Forest.of(model)


def test_damaged_models_are_refused() -> None:
    X, y = training(8)
    booster = fit({}, X, y, 3)
    packed, text = bytes(booster.save_raw("ubj")), bytes(booster.save_raw("json"))
    rng = np.random.default_rng(8)
    for cut in rng.integers(2, len(packed) - 1, 60):
        with pytest.raises(InvalidInput):
            Forest.of(packed[:cut])
    for cut in rng.integers(2, len(text) - 1, 60):
        with pytest.raises(InvalidInput):
            Forest.of(text[:cut])
    for part in ("left_children", "split_conditions", "default_left", "split_indices", "tree_param"):
        model = json.loads(text)
        del model["learner"]["gradient_booster"]["model"]["trees"][1][part]
        with pytest.raises(InvalidInput):
            Forest.of(model)
    model = json.loads(text)
    model["learner"]["gradient_booster"]["model"]["trees"][1]["left_children"][1] = 0
    with pytest.raises(InvalidInput):
        Forest.of(model)


def test_ubjson_of_every_kind() -> None:
    content = b"{i\x01a[TFZ]U\x01bd\x3f\x80\x00\x00i\x01c[$i#U\x03\x01\xff\x02"
    content += b"i\x01dSi\x02hii\x01e{}i\x01f[#i\x01I\x01\x00}"
    expected = {"a": [True, False, None], "b": 1.0, "c": [1, -1, 2], "d": "hi", "e": {}, "f": [256]}
    assert read_ubjson(content) == expected
    for cut in range(1, len(content)):
        with pytest.raises(InvalidInput):
            read_ubjson(content[:cut])
    with pytest.raises(InvalidInput):
        read_ubjson(content + b"x")
