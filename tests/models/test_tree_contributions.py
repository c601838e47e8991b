"""Oracle: LightGBM's own `Booster.predict(..., pred_contrib=True)`."""

import re
import sys

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.models.tree_contributions import TreePaths

lightgbm = pytest.importorskip("lightgbm", reason="lightgbm comes with the extra 'models'")
BASE = {"verbosity": -1, "num_leaves": 31, "min_data_in_leaf": 5, "num_threads": 1, "deterministic": True}


def rows(n: int = 2_000, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 7))
    X[:, 2] = np.round(2 * X[:, 2])
    X[:, 3] = rng.integers(0, 40, n)
    X[rng.random(X.shape) < 0.08] = np.nan
    X[rng.random(X.shape) < 0.05] = 0.0
    X = X.astype(np.float32).astype(np.float64)
    y = np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 1] * X[:, 2]) + (np.nan_to_num(X[:, 3]) % 3 == 1) > 0.3
    return X, y.astype(float)


def fit(params: dict[str, object], X: np.ndarray, y: np.ndarray, *, n_trees: int = 20, categories: tuple = ()):
    data = lightgbm.Dataset(X, y, categorical_feature=list(categories), params={"verbosity": -1})
    return lightgbm.train({**BASE, **params}, data, n_trees)


@pytest.mark.parametrize(
    ("params", "categories"),
    [
        ({"objective": "binary"}, ()),
        ({"objective": "binary", "bagging_fraction": 0.5, "bagging_freq": 1, "feature_fraction": 0.5}, ()),
        ({"objective": "binary", "zero_as_missing": True}, ()),
        ({"objective": "binary", "use_missing": False}, ()),
        ({"objective": "binary", "num_leaves": 2}, ()),
        ({"objective": "binary", "max_cat_to_onehot": 1}, (3,)),
        ({"objective": "regression", "num_leaves": 127, "min_data_in_leaf": 1}, ()),
    ],
)
def test_contributions_are_those_of_lightgbm(params: dict[str, object], categories: tuple) -> None:
    X, y = rows()
    booster = fit(params, X, y, categories=categories)
    asked = np.concatenate([X[:40], np.full((1, 7), np.nan), np.zeros((1, 7)), np.full((1, 7), np.inf)])
    if categories:
        asked[:3, 3] = [41.0, -1.0, 3.7]
        asked = asked[:-1]
    found = TreePaths.of_lightgbm(booster.model_to_string()).contributions(asked)
    said = booster.predict(asked, pred_contrib=True)
    np.testing.assert_allclose(found, said[:, :-1], atol=1e-11, rtol=1e-9)


def test_they_add_up_to_the_score_less_its_mean() -> None:
    X, y = rows(seed=3)
    booster = fit({"objective": "binary"}, X, y)
    found = TreePaths.of_lightgbm(booster.model_to_string()).contributions(X[:20]).sum(axis=1)
    raw = booster.predict(X[:20], raw_score=True)
    assert np.ptp(raw - found) == pytest.approx(0, abs=1e-11)


def test_a_model_that_never_splits_explains_nothing() -> None:
    X, y = rows(60)
    booster = fit({"objective": "binary", "min_data_in_leaf": 60}, X, y)
    paths = TreePaths.of_lightgbm(booster.model_to_string())
    assert paths.contributions(X[:2]).tolist() == [[0.0] * 7] * 2
    assert paths.contributions(X[:0]).shape == (0, 7)


def test_what_has_no_contributions_is_refused() -> None:
    X, y = rows(300)
    text = fit({"objective": "binary"}, X, y, n_trees=3).model_to_string()
    several = fit({"objective": "multiclass", "num_class": 3}, X, np.arange(300) % 3, n_trees=2).model_to_string()
    averaged = fit({"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, X, y)
    linear = fit({"objective": "regression", "linear_tree": True}, np.nan_to_num(X), y, n_trees=2).model_to_string()
    for bad, told in (
        ("no trees", "whole model text"),
        (text.split("end of trees")[0], "whole model text"),
        (several, "one output"),
        (averaged.model_to_string(), "one output"),
        (linear, "linear"),
        (re.sub(r"leaf_count=\d+", "leaf_count=", text, count=1), "leaf_count"),
        (re.sub(r"internal_count=\d+", "internal_count=0", text, count=1), "internal_count"),
        (re.sub(r"left_child=-?\d+", "left_child=0", text, count=1), "tree"),
        (re.sub(r"\ndecision_type=.*", "", text, count=1), "tree 0"),
    ):
        with pytest.raises(InvalidInput, match=told):
            TreePaths.of_lightgbm(bad)
    with pytest.raises(InvalidInput, match="shape"):
        TreePaths.of_lightgbm(text).contributions(X[:, :3])


def test_nothing_heavy_is_imported() -> None:
    import subprocess

    code = "import sys; import vitok.models.tree_contributions; print('lightgbm' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
