"""Oracle: scikit-learn's own predictions in one thread, raw to the last bit, softmax and exponential within 8 units."""

import numpy as np
import pytest
from sklearn import ensemble, tree
from sklearn.linear_model import LinearRegression, LogisticRegression
from tests.models.forest_rows import ORDINARY, apart, equal, held_out, named, training

from vitok.errors import InvalidInput
from vitok.models.forest import Forest

FOUR = np.array([-1.0, 0.0, 1.0])
FINITE = ORDINARY[~np.isnan(ORDINARY)]


def theirs_of(model, X, forest):
    found = model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)
    return found[:, -1] if found.ndim == 2 and forest.n_outputs == 1 else found


def thresholds(estimators):
    found: dict[int, list[float]] = {}
    for estimator in estimators:
        parts = zip(estimator.tree_.feature, estimator.tree_.threshold, strict=True)
        for feature, value in parts:
            if feature >= 0 and np.isfinite(value):
                found.setdefault(int(feature), []).append(value)
    return {feature: np.array(values) for feature, values in found.items()}


@pytest.mark.parametrize("classes", [0, 2, 4])
@pytest.mark.parametrize("share", [0.0, 0.1], ids=["complete", "missing"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DecisionTree", {}),
        ("DecisionTree", {"max_depth": 1}),
        ("ExtraTree", {"max_depth": 6}),
        ("RandomForest", {"n_estimators": 11, "min_samples_leaf": 3}),
        ("ExtraTrees", {"n_estimators": 11, "min_samples_leaf": 3}),
    ],
)
def test_averaged_trees(kind, settings, share, classes) -> None:
    X, y = training(1, missing=share)
    name = f"{kind}{'Classifier' if classes else 'Regressor'}"
    model = getattr(tree if kind in ("DecisionTree", "ExtraTree") else ensemble, name)(random_state=0, **settings)
    model.fit(X, {0: y, 2: y > 0, 4: np.digitize(y, FOUR)}[classes])
    forest = Forest.of(model)
    assert forest.n_outputs == (4 if classes == 4 else 1)
    T = held_out(1, thresholds(getattr(model, "estimators_", [model])), odd=ORDINARY)
    assert equal(forest.predict(T), theirs_of(model, T, forest))
    assert equal(forest.predict(T[:1]), theirs_of(model, T[:1], forest))


def boosted(model, X):
    raw = model._raw_predict(np.asarray(X, dtype=np.float32)) if hasattr(model, "init_") else model._raw_predict(X)
    return raw[:, 0] if raw.shape[1] == 1 else raw


def check(model, T):
    forest = Forest.of(model)
    assert equal(forest.raw(T), boosted(model, T))
    if forest.link in ("softmax", "exp"):
        assert apart(forest.predict(T), theirs_of(model, T, forest)) <= 8
    else:
        assert equal(forest.predict(T), theirs_of(model, T, forest))
    return forest


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({}, lambda y: y > 0),
        ({"loss": "exponential"}, lambda y: y > 0),
        ({"init": "zero"}, lambda y: y > 0),
        ({}, lambda y: np.digitize(y, FOUR)),
    ],
    ids=named,
)
def test_gradient_boosting_classifiers(settings, target) -> None:
    X, y = training(2, missing=0.0)
    model = ensemble.GradientBoostingClassifier(n_estimators=15, random_state=0, **settings).fit(X, target(y))
    check(model, held_out(2, thresholds(model.estimators_.ravel()), odd=FINITE))


@pytest.mark.parametrize("settings", [{}, {"init": "zero"}, {"loss": "quantile", "alpha": 0.2}, {"loss": "huber"}])
def test_gradient_boosting_regressors(settings) -> None:
    X, y = training(3, missing=0.0)
    model = ensemble.GradientBoostingRegressor(n_estimators=15, random_state=0, **settings).fit(X, y)
    check(model, held_out(3, thresholds(model.estimators_.ravel()), odd=FINITE))


@pytest.mark.parametrize("share", [0.0, 0.1], ids=["complete", "missing"])
@pytest.mark.parametrize("categories", [None, [4, 1, 5]], ids=["numbers", "categories"])
@pytest.mark.parametrize("loss", ["squared_error", "poisson", "quantile", "binary", "four classes"])
def test_histogram_gradient_boosting(loss, categories, share) -> None:
    X, y = training(4, missing=share)
    X[:, 1] = np.round(X[:, 1] * 2) / 2
    settings = {"max_iter": 12, "categorical_features": categories, "random_state": 0}
    if loss in ("binary", "four classes"):
        target = y > 0 if loss == "binary" else np.digitize(y, FOUR)
        model = ensemble.HistGradientBoostingClassifier(**settings).fit(X, target)
    else:
        options = {"quantile": 0.3} if loss == "quantile" else {}
        model = ensemble.HistGradientBoostingRegressor(loss=loss, **options, **settings).fit(X, np.abs(y) + 0.1)
    found: dict[int, list[float]] = {}
    for stage in model._predictors:
        for predictor in stage:
            for node in predictor.nodes:
                if not node["is_leaf"] and categories is None:
                    found.setdefault(int(node["feature_idx"]), []).append(float(node["num_threshold"]))
    T = held_out(4, {feature: np.array(values) for feature, values in found.items()})
    if categories:
        T[:, 1] = np.round(T[:, 1] * 2) / 2
        T[np.isinf(T)] = 3.0  # its encoder refuses infinite categories
    forest = check(model, T)
    assert (len(forest.bits) > 0) == bool(categories)


def test_rows_that_the_library_refuses_score_nan() -> None:
    X, y = training(5, missing=0.0)
    forest = Forest.of(ensemble.RandomForestRegressor(5, random_state=0).fit(X, y))
    T = np.zeros((4, 7))
    T[0, 0], T[1, 0], T[2, 0] = np.inf, -np.inf, 1e300
    assert np.isnan(forest.predict(T)).tolist() == [True, True, True, False]
    forest = Forest.of(ensemble.GradientBoostingRegressor(n_estimators=5).fit(X, y))
    T[0, 0], T[1, 0] = np.nan, 1.0
    assert np.isnan(forest.predict(T)).tolist() == [True, False, True, False]


def test_names_of_a_frame_and_one_class() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    X, y = training(6)
    model = tree.DecisionTreeRegressor(max_depth=3).fit(pandas.DataFrame(X, columns=list("abcdefg")), y)
    assert Forest.of(model).feature_names == tuple("abcdefg")
    single = tree.DecisionTreeClassifier().fit(X, np.zeros(len(X)))
    assert Forest.of(single).predict(X[:3]).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda X, y: ensemble.RandomForestRegressor(2).fit(X, np.stack((y, y), axis=1)), "n_outputs"),
        (lambda X, y: ensemble.GradientBoostingRegressor(n_estimators=2, init=LinearRegression()).fit(X, y), "init"),
        (lambda X, y: ensemble.IsolationForest(n_estimators=2).fit(X), "be one of"),
        (lambda X, y: LogisticRegression().fit(X, y > 0), "be one of"),
        (lambda X, y: ensemble.RandomForestRegressor(2), "fitted"),
    ],
)
def test_other_estimators_are_refused(make, match) -> None:
    X, y = training(7, missing=0.0)
    with pytest.raises(InvalidInput, match=match):
        Forest.of(make(X, y))


def test_categories_that_are_no_numbers_are_refused() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame({"a": pandas.Categorical(["x", "y", "z", "y"] * 50), "b": np.arange(200.0)})
    model = ensemble.HistGradientBoostingRegressor(max_iter=2, categorical_features="from_dtype")
    with pytest.raises(InvalidInput, match="categories of feature 0"):
        Forest.of(model.fit(frame, np.arange(200.0) % 4))
