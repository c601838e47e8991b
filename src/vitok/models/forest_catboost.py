"""Reads the trees of CatBoost from its JSON."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.models import forest_kernels as kernels
from vitok.models.forest_layout import Arrays, Grove

_LINKS = {
    **dict.fromkeys(("Logloss", "CrossEntropy", "MultiClassOneVsAll"), kernels.SIGMOID),
    **dict.fromkeys(("MultiLogloss", "MultiCrossEntropy"), kernels.SIGMOID),
    "MultiClass": kernels.SOFTMAX,
    **dict.fromkeys(("Poisson", "Tweedie"), kernels.EXP),
    **dict.fromkeys(("RMSE", "MAE", "Quantile", "MultiQuantile", "MultiRMSE", "MAPE"), kernels.IDENTITY),
    **dict.fromkeys(("Huber", "Expectile", "Lq", "LogCosh"), kernels.IDENTITY),
    **dict.fromkeys(("YetiRank", "YetiRankPairwise", "PairLogit", "PairLogitPairwise"), kernels.IDENTITY),
    **dict.fromkeys(("QueryRMSE", "QuerySoftMax", "LambdaMart", "StochasticRank"), kernels.IDENTITY),
}
_DEEPEST = 16
_Read = tuple[Arrays, tuple[str, ...]]


def read_catboost_object(model: Any) -> _Read:
    """Reads a fitted `CatBoost`, `CatBoostClassifier` or `CatBoostRegressor`.

    Raises:
        InvalidInput: If it is not fitted or cannot be scored exactly.
    """
    if not hasattr(model, "save_model") or not model.is_fitted():
        raise InvalidInput("model", type(model), "be a fitted model of CatBoost")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        return read_catboost(json.loads(path.read_text(encoding="utf-8")))


def read_catboost(model: Mapping[str, Any]) -> _Read:
    """Reads what `save_model(path, format="json")` wrote.

    Args:
        model: The decoded content.

    Returns:
        The trees, and the names of the features.

    Raises:
        InvalidInput: If a part is missing, or a split is made on anything but a number: CatBoost reads categories and
            texts as strings and keeps only hashes and statistics of them, so rows of numbers cannot be scored exactly.
    """
    try:
        return _read(model)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput("model", "CatBoost's JSON", f"be whole: {error!r}", "The model is damaged") from None


def _read(model: Mapping[str, Any]) -> _Read:
    about = model["features_info"]
    loss = model["model_info"]["params"]["loss_function"]["type"]
    if loss not in _LINKS:
        raise InvalidInput("loss_function", loss, f"be one of {', '.join(sorted(_LINKS))}")
    names: dict[int, str] = {}
    for kind in ("float_features", "categorical_features", "text_features", "embedding_features"):
        for feature in about.get(kind, ()):
            at = int(feature["flat_feature_index"])
            names[at] = feature.get("feature_id") or f"f{at}"
    scale, bias = model["scale_and_bias"]
    bias = [float(value) for value in np.atleast_1d(bias)]
    k = len(bias)
    grove = Grove(n_features=max(names, default=-1) + 1, n_outputs=k, vector=k > 1, narrow=True)
    columns = {
        int(feature["feature_index"]): grove.column(
            int(feature["flat_feature_index"]),
            kernels.AS_IS if feature.get("nan_value_treatment") == "AsTrue" else kernels.NAN_LEFT,
        )
        for feature in about.get("float_features", ())
    }
    for tree in model.get("oblivious_trees", ()):
        _add_oblivious(grove, tree, columns, k)
    for tree in model.get("trees", ()):
        _add_nested(grove, tree, columns, k)
    plain = float(scale) == 1.0 and not any(bias)
    arrays = grove.arrays(link=_LINKS[loss], scale=float(scale), bias=None if plain else bias)
    return arrays, tuple(names.get(i, f"f{i}") for i in range(grove.n_features))


def _split(split: Mapping[str, Any], columns: Mapping[int, int]) -> tuple[int, float]:
    kind = split.get("split_type", "FloatFeature")
    if kind != "FloatFeature":
        raise InvalidInput(
            "split_type",
            kind,
            "be FloatFeature",
            "Code categories and texts as numbers before training, or serve this model with CatBoost itself",
        )
    return columns[int(split["float_feature_index"])], float(np.float32(split["border"]))


def _add_oblivious(grove: Grove, tree: Mapping[str, Any], columns: Mapping[int, int], k: int) -> None:
    """Adds a tree that asks the same on each level: bit i of a leaf's number is the answer to split i."""
    asked = [_split(split, columns) for split in tree.get("splits") or ()]
    depth = len(asked)
    if depth > _DEEPEST:
        raise InvalidInput("depth", depth, f"be at most {_DEEPEST}")
    given = np.asarray(tree["leaf_values"], dtype=np.float64).reshape(2**depth, k)
    n_inner = 2**depth - 1
    # As in a heap: the children of i are 2 i + 1 and 2 i + 2, so the last split is asked first.
    inner = np.arange(n_inner)
    level = np.floor(np.log2(inner + 1)).astype(np.int64)
    leaf = np.full(2**depth, -1)
    value = np.vstack((np.zeros((n_inner, k)), given))
    order = [asked[depth - 1 - step] for step in level.tolist()]
    grove.add(
        left=np.concatenate((2 * inner + 1, leaf)),
        right=np.concatenate((2 * inner + 2, leaf)),
        column=np.concatenate(([column for column, _ in order], np.zeros(2**depth))),
        threshold=np.concatenate(([border for _, border in order], np.zeros(2**depth))),
        value=value if k > 1 else value[:, 0],
    )


def _add_nested(grove: Grove, tree: Mapping[str, Any], columns: Mapping[int, int], k: int) -> None:
    """Adds a tree that is written as nodes within nodes."""
    nodes, children = [tree], []
    asked: list[tuple[int, float]] = []
    for node in nodes:  # which grows as its children are met
        if "split" in node:
            asked.append(_split(node["split"], columns))
            children.append((len(nodes), len(nodes) + 1))
            nodes += [node["left"], node["right"]]
        else:
            asked.append((0, 0.0))
            children.append((-1, -1))
    value = np.array(
        [np.zeros(k) if "split" in node else np.asarray(node["value"], dtype=np.float64).reshape(k) for node in nodes]
    )
    grove.add(
        left=[left for left, _ in children],
        right=[right for _, right in children],
        column=[column for column, _ in asked],
        threshold=[border for _, border in asked],
        value=value if k > 1 else value[:, 0],
    )
