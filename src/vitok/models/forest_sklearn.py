"""Reads the trees of scikit-learn from fitted estimators."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.models import forest_kernels as kernels
from vitok.models.forest_layout import Arrays, CategorySplit, Grove

_TREES = ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
_FORESTS = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
_BOOSTED = ("GradientBoostingClassifier", "GradientBoostingRegressor")
_HISTOGRAMS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_LINKS = {
    "IdentityLink": (kernels.IDENTITY, 1.0),
    "LogLink": (kernels.EXP, 1.0),
    "LogitLink": (kernels.SIGMOID, 1.0),
    "HalfLogitLink": (kernels.SIGMOID, 2.0),
    "MultinomialLogit": (kernels.SOFTMAX, 1.0),
}
_Read = tuple[Arrays, tuple[str, ...]]


def read_sklearn(model: Any) -> _Read:
    """Reads a fitted tree, forest or boosted ensemble.

    Returns:
        The trees, and the names of the features.

    Raises:
        InvalidInput: If it is not fitted, of another kind, has several targets, begins with an estimator that is no
            constant, or has categories that are no numbers.
    """
    kinds = {base.__name__ for base in type(model).__mro__ if base.__module__.split(".")[0] == "sklearn"}
    for known, read in ((_FORESTS, _forest), (_TREES, _tree), (_BOOSTED, _boosted), (_HISTOGRAMS, _histograms)):
        if kinds & set(known):
            if not hasattr(model, "n_features_in_"):
                raise InvalidInput("model", type(model).__name__, "be fitted")
            names = tuple(str(name) for name in getattr(model, "feature_names_in_", ()))
            return read(model), names
    every = ", ".join((*_TREES, *_FORESTS, *_BOOSTED, *_HISTOGRAMS))
    raise InvalidInput("model", type(model).__name__, f"be one of {every}", "Take the last step out of a pipeline")


def _refused(estimator: Any) -> int:
    allows_nan = estimator._support_missing_values(np.zeros((1, 1)))  # noqa: SLF001  (what its own predict asks)
    return kernels.NO_INFINITY | (0 if allows_nan else kernels.NO_NAN)


def _tree(model: Any) -> Arrays:
    return _averaged(model, [model])


def _forest(model: Any) -> Arrays:
    return _averaged(model, list(model.estimators_))


def _averaged(model: Any, estimators: list[Any]) -> Arrays:
    if model.n_outputs_ != 1:
        raise InvalidInput("n_outputs", model.n_outputs_, "be 1", "Fit a model for each target")
    n_classes = int(getattr(model, "n_classes_", 1))
    k = n_classes if n_classes > 2 else 1
    grove = Grove(
        n_features=model.n_features_in_, n_outputs=k, vector=k > 1, narrow=True, refuses=_refused(estimators[0])
    )
    for estimator in estimators:
        value = estimator.tree_.value[:, 0, :]
        if k == 1:
            value = value[:, -1]  # of two classes the second
        _add(grove, estimator.tree_, value)
    return grove.arrays(link=kernels.IDENTITY, divisor=float(len(estimators)))


def _boosted(model: Any) -> Arrays:
    constant = model.init_ if isinstance(model.init_, str) else type(model.init_).__name__
    if constant not in ("zero", "DummyClassifier", "DummyRegressor"):
        raise InvalidInput("init", constant, "be None or 'zero'", "Only a constant start can be scored exactly")
    stages = model.estimators_
    refuses = kernels.NO_NAN | kernels.NO_INFINITY
    grove = Grove(n_features=model.n_features_in_, n_outputs=stages.shape[1], narrow=True, refuses=refuses)
    for stage in stages:
        for output, estimator in enumerate(stage):
            _add(grove, estimator.tree_, model.learning_rate * estimator.tree_.value[:, 0, 0], output=output)
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_), dtype=np.float32))  # noqa: SLF001
    link, slope = _link(model)
    return grove.arrays(link=link, slope=slope, start=start[0].tolist())


def _link(model: Any) -> tuple[int, float]:
    name = type(model._loss.link).__name__  # noqa: SLF001
    if name not in _LINKS:
        raise InvalidInput("loss", name, f"have one of the links {', '.join(_LINKS)}")
    return _LINKS[name]


def _add(grove: Grove, tree: Any, value: np.ndarray, *, output: int = 0) -> None:
    inner = tree.children_left >= 0
    to_left = np.asarray(tree.missing_go_to_left) != 0
    column = np.zeros(tree.node_count, dtype=np.int64)
    for node in np.flatnonzero(inner).tolist():
        column[node] = grove.column(int(tree.feature[node]), kernels.NAN_LEFT if to_left[node] else kernels.AS_IS)
    grove.add(
        left=tree.children_left,
        right=tree.children_right,
        column=column,
        threshold=tree.threshold,
        value=value,
        output=output,
    )


def _histograms(model: Any) -> Arrays:
    order, categories = _remapped(model)
    stages = model._predictors  # noqa: SLF001
    k = int(model.n_trees_per_iteration_)
    grove = Grove(n_features=model.n_features_in_, n_outputs=k)
    for stage in stages:
        for output, predictor in enumerate(stage):
            _add_predictor(grove, predictor, order, categories, output=output)
    link, slope = _link(model)
    start = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1)  # noqa: SLF001
    return grove.arrays(link=link, slope=slope, start=start.tolist())


def _remapped(model: Any) -> tuple[np.ndarray, Mapping[int, np.ndarray]]:
    """Returns which feature each of the encoded columns is, and the categories of those that have them, by feature."""
    is_categorical = model.is_categorical_
    if is_categorical is None:
        return np.arange(model.n_features_in_), {}
    chosen = np.flatnonzero(is_categorical)
    encoder = model._preprocessor.named_transformers_["encoder"]  # noqa: SLF001
    categories = {}
    for feature, known in zip(chosen.tolist(), encoder.categories_, strict=True):
        if np.asarray(known).dtype.kind not in "biuf":
            raise InvalidInput(f"categories of feature {feature}", known, "be numbers", "Code them before training")
        categories[feature] = np.asarray(known, dtype=np.float64)
    return np.concatenate((chosen, np.flatnonzero(~np.asarray(is_categorical)))), categories


def _add_predictor(
    grove: Grove, predictor: Any, order: np.ndarray, categories: Mapping[int, np.ndarray], *, output: int
) -> None:
    nodes = predictor.nodes
    inner = nodes["is_leaf"] == 0
    column = np.zeros(len(nodes), dtype=np.int64)
    splits: dict[int, CategorySplit] = {}
    for node in np.flatnonzero(inner).tolist():
        feature = int(order[int(nodes["feature_idx"][node])])
        to_left = bool(nodes["missing_go_to_left"][node])
        if not nodes["is_categorical"][node]:
            column[node] = grove.column(feature, kernels.NAN_LEFT if to_left else kernels.AS_IS)
            continue
        known = categories[feature]
        words = predictor.raw_left_cat_bitsets[int(nodes["bitset_idx"][node])].astype("<u4")
        left = np.unpackbits(words.view(np.uint8), bitorder="little")[: len(known)] == 1
        column[node] = grove.column(feature, kernels.CATEGORY_EXACT)
        grove.know(int(column[node]), known[~np.isnan(known)].tolist(), unseen_is_missing=True)
        splits[node] = CategorySplit(
            members=frozenset(known[left].tolist()),
            members_right=False,
            unseen_right=not to_left,
            missing_right=not to_left,
        )
    grove.add(
        left=np.where(inner, nodes["left"].astype(np.int64), -1),
        right=np.where(inner, nodes["right"].astype(np.int64), -1),
        column=column,
        threshold=nodes["num_threshold"],
        value=nodes["value"],
        splits=splits,
        output=output,
    )
