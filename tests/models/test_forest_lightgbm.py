"""Oracle: LightGBM's own `Booster.predict`, to the last bit."""

import re

import numpy as np
import pytest
from tests.models.forest_rows import equal, held_out, named, single, training

from vitok.errors import InvalidInput
from vitok.models import fit_boosted_trees
from vitok.models.forest import Forest

lightgbm = pytest.importorskip("lightgbm", reason="lightgbm comes with the extra 'models'")
BASE = {"verbosity": -1, "num_leaves": 31, "min_data_in_leaf": 5, "num_threads": 1, "deterministic": True}
RF = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}


def fit(params, X, y, n_trees=25, categories=()):
    data = lightgbm.Dataset(X, y, categorical_feature=list(categories), params={"verbosity": -1})
    return lightgbm.train({**BASE, **params}, data, n_trees)


def thresholds(text):
    found: dict[int, list[float]] = {}
    for features, values in re.findall(r"\nsplit_feature=(.+)\n(?:.*\n)*?threshold=(.+)\n", text):
        for feature, value in zip(features.split(), values.split(), strict=True):
            found.setdefault(int(feature), []).append(float(value))
    return {feature: np.array(values) for feature, values in found.items()}


def resized(text):
    """Writes the sizes of the trees anew after a text was changed."""
    head, rest = text.split("\n\nTree=", 1)
    body, tail = ("Tree=" + rest).split("end of trees", 1)
    blocks = re.split(r"(?=Tree=\d+\n)", body)[1:]
    sizes = " ".join(str(len(block)) for block in blocks)
    return re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", head) + "\n\n" + body + "end of trees" + tail


def check(booster, seed=0):
    forest = Forest.of(booster)
    text = booster.model_to_string()
    X = held_out(seed, thresholds(text))
    for rows in (X, single(X), X[:1], X[:0]):
        if len(rows):
            assert equal(forest.raw(rows), booster.predict(rows, raw_score=True))
            assert equal(forest.predict(rows), booster.predict(rows))
        else:
            assert len(forest.predict(rows)) == 0
    whole = forest.raw(X)
    assert all(equal(forest.raw(X[i : i + 1]), whole[i : i + 1]) for i in range(100))
    assert equal(Forest.of(text).raw(X), whole)
    return forest


def targets(objective, y):
    rng = np.random.default_rng(9)
    if objective == "binary":
        return (y > 0).astype(float)
    if objective.startswith("multiclass"):
        return rng.integers(0, 4, len(y))
    if objective.startswith("cross_entropy"):
        return 1 / (1 + np.exp(-y))
    return np.abs(y) + 0.1


@pytest.mark.parametrize("missing", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=named)
@pytest.mark.parametrize("categories", [(), (4, 5)], ids=["numbers", "categories"])
@pytest.mark.parametrize("share", [0.0, 0.1], ids=["complete", "missing"])
def test_missing_values_and_categories(missing, categories, share) -> None:
    X, y = training(1, missing=share)
    forest = check(fit({"objective": "binary", "sigmoid": 1.7, **missing}, X, y > 0, categories=categories))
    assert forest.n_features == 7
    assert (len(forest.bits) > 0) == bool(categories)


def test_one_category_against_the_rest() -> None:
    X, y = training(2)
    check(fit({"objective": "regression", "max_cat_to_onehot": 100}, X, y, categories=(4, 5)))


@pytest.mark.parametrize(
    "objective",
    [
        *("regression", "l1", "huber", "fair", "quantile", "mape", "poisson", "gamma", "tweedie", "binary"),
        *("cross_entropy", "cross_entropy_lambda", "multiclass", "multiclassova"),
    ],
)
def test_objectives_and_their_links(objective) -> None:
    X, y = training(3)
    params = {"objective": objective, **({"num_class": 4} if objective.startswith("multiclass") else {})}
    forest = check(fit(params, X, targets(objective, y), 8))
    assert forest.n_outputs == (4 if objective.startswith("multiclass") else 1)


@pytest.mark.parametrize(
    "params",
    [
        {"objective": "regression", "reg_sqrt": True},
        {"objective": "binary", "boosting": "dart"},
        {"objective": "binary", **RF},
        {"objective": "regression", **RF},
        {"objective": "multiclass", "num_class": 4, **RF},
        {"objective": "regression", "min_data_in_leaf": 5000},
        {"objective": "regression", "max_depth": 1, "num_leaves": 2},
        {"objective": "binary", "boost_from_average": False},
    ],
    ids=named,
)
def test_ways_of_boosting(params) -> None:
    X, y = training(4)
    check(fit(params, X, targets(params["objective"], y), 13))


def test_ranks() -> None:
    X, y = training(5)
    data = lightgbm.Dataset(X, np.clip(np.round(y + 2), 0, 4), group=[50] * 30)
    check(lightgbm.train({**BASE, "objective": "lambdarank"}, data, 10))


def test_an_objective_of_ones_own() -> None:
    X, y = training(6)
    params = {**BASE, "objective": lambda score, data: (score - data.get_label(), np.ones(len(score)))}
    check(lightgbm.train(params, lightgbm.Dataset(X, y), 10))


@pytest.mark.parametrize("missing", [{}, {"zero_as_missing": True}, {"use_missing": False}], ids=named)
def test_thresholds_next_to_zero_and_at_the_ends(missing) -> None:
    X, y = training(7)
    rng = np.random.default_rng(7)
    near = float(np.float32(1e-35))
    odd = ["1e-36", "-1e-36", repr(near), repr(-near), "0", "-0.0", "4e-35", "-4e-35", "inf", "-inf"]

    def write(found: re.Match[str]) -> str:
        return "\nthreshold=" + " ".join(rng.choice(odd) for _ in found[1].split())

    text = fit({"objective": "regression", **missing}, X, y).model_to_string()
    check(lightgbm.Booster(model_str=resized(re.sub(r"\nthreshold=(.*)", write, text))))


def test_any_bits_of_a_decision() -> None:
    X, y = training(8)
    rng = np.random.default_rng(8)

    def write(found: re.Match[str]) -> str:
        return "\ndecision_type=" + " ".join(str(rng.choice([0, 2, 4, 6, 8, 10])) for _ in found[1].split())

    text = fit({"objective": "regression"}, X, y).model_to_string()
    check(lightgbm.Booster(model_str=resized(re.sub(r"\ndecision_type=(.*)", write, text))))


@pytest.mark.parametrize("seed", range(6))
def test_random_models(seed) -> None:
    rng = np.random.default_rng(seed)
    X, y = training(seed + 20, int(rng.integers(60, 1500)), missing=float(rng.choice([0, 0.02, 0.5])))
    params = {
        "objective": "binary",
        "num_leaves": int(rng.integers(2, 120)),
        "min_data_in_leaf": int(rng.integers(1, 30)),
        "max_bin": int(rng.integers(3, 300)),
        "zero_as_missing": bool(rng.integers(0, 2)),
        "extra_trees": bool(rng.integers(0, 2)),
        "min_data_per_group": 2,
        "cat_smooth": 1.0,
    }
    check(fit(params, X, y > 0, int(rng.integers(1, 60)), categories=(4, 5) if rng.integers(0, 2) else ()), seed)


def test_iterations_after_the_best_one_are_left_out() -> None:
    X, y = training(9)
    booster = fit({"objective": "binary"}, X, y > 0, 20)
    booster.best_iteration = 7  # as early stopping sets it
    assert check(booster).n_trees == 7


def test_estimators_and_our_own_trees() -> None:
    X, y = training(10)
    classifier = lightgbm.LGBMClassifier(n_estimators=10, verbosity=-1, n_jobs=1).fit(X, y > 0)
    T = held_out(10, {})
    assert equal(Forest.of(classifier).predict(T), classifier.predict_proba(T)[:, 1])
    trees = fit_boosted_trees(X, y > 0, names=list("abcdefg"), n_trees=10)
    forest = Forest.of(trees)
    with np.errstate(over="ignore"):
        assert equal(forest.predict(T), trees.score(T))
    assert forest.feature_names == tuple("abcdefg")
    assert forest.input_dtype == np.float32
    with pytest.raises(InvalidInput, match="fitted"):
        Forest.of(lightgbm.LGBMClassifier())


def test_linear_trees_are_refused() -> None:
    X, y = training(11, missing=0.0)
    with pytest.raises(InvalidInput, match="linear"):
        Forest.of(fit({"objective": "regression", "linear_tree": True}, X, y, 3))


def test_damaged_text_is_refused_or_scores_the_same() -> None:
    X, y = training(12)
    text = fit({"objective": "binary"}, X, y > 0, 5, categories=(4,)).model_to_string()
    end = text.index("end of trees")
    rng = np.random.default_rng(12)
    for cut in rng.integers(5, end, 60):
        with pytest.raises(InvalidInput):
            Forest.of(text[:cut] + "\n")
    body = text.index("\nTree=0")
    raw = Forest.of(text).raw(X)
    for at in rng.integers(body, end, 120):
        broken = text[:at] + str(rng.choice(list("9-x= \n"))) + text[at + 1 :]
        try:
            scored = Forest.of(broken).raw(X)  # a digit of a number may have changed: then it is another model
        except InvalidInput:
            continue
        assert scored.shape == raw.shape


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("objective=binary sigmoid:1", "objective=magic"), "objective"),
        (("max_feature_idx=6", "max_feature_idx=2"), "feature"),
        (("end of trees", "end of tree"), "end of trees"),
        (("\nTree=2\n", "\nTree 2\n"), "trees"),
    ],
)
def test_what_does_not_fit_together(change, match) -> None:
    X, y = training(13)
    text = fit({"objective": "binary"}, X, y > 0, 4).model_to_string()
    assert change[0] in text
    with pytest.raises(InvalidInput, match=match):
        Forest.of(text.replace(*change))
