"""Reads the trees of XGBoost from its JSON or UBJSON."""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.models import forest_kernels as kernels
from vitok.models.forest_layout import Arrays, CategorySplit, Grove

_LINKS = {
    **dict.fromkeys(("binary:logistic", "reg:logistic"), kernels.SIGMOID),
    **dict.fromkeys(("multi:softprob", "multi:softmax"), kernels.SOFTMAX),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), kernels.EXP),
    **dict.fromkeys(("rank:pairwise", "rank:ndcg", "rank:map", "binary:logitraw"), kernels.IDENTITY),
    **dict.fromkeys(("reg:squarederror", "reg:squaredlogerror", "reg:linear"), kernels.IDENTITY),
    **dict.fromkeys(("reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror"), kernels.IDENTITY),
    "reg:expectileerror": kernels.IDENTITY,
    "binary:hinge": kernels.STEP,
}
_LOGIT = ("binary:logistic", "reg:logistic")
_Read = tuple[Arrays, tuple[str, ...]]


def read_xgboost_object(model: Any) -> _Read:
    """Reads a `Booster` or a fitted estimator; the iterations after the best one, where there is one, are left out.

    Raises:
        InvalidInput: If it is not fitted, marks missing values otherwise than by NaN, or cannot be scored exactly.
    """
    booster, last = model, None
    if hasattr(model, "get_booster"):
        missing = getattr(model, "missing", math.nan)
        if missing is not None and not math.isnan(missing):
            raise InvalidInput("missing", missing, "be NaN", "Turn missing values into NaN before training")
        try:
            booster = model.get_booster()
        except ValueError:  # scikit-learn's NotFittedError
            raise InvalidInput("model", type(model), "be fitted") from None
        last = booster.attr("best_iteration")
    if not hasattr(booster, "save_raw"):
        raise InvalidInput("model", type(model), "be a Booster or one of XGBoost's estimators")
    return read_xgboost(json.loads(booster.save_raw("json")), n_iterations=None if last is None else int(last) + 1)


def read_xgboost(model: Mapping[str, Any], *, n_iterations: int | None = None) -> _Read:
    """Reads what `Booster.save_model` wrote as JSON or UBJSON.

    Args:
        model: The decoded content.
        n_iterations: How many iterations count; all where None.

    Returns:
        The trees, and the names of the features.

    Raises:
        InvalidInput: If a part is missing, or it holds what cannot be scored exactly.
    """
    try:
        return _read(model, n_iterations)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput("model", "XGBoost's JSON", f"be whole: {error!r}", "The model is damaged") from None


def _read(model: Mapping[str, Any], n_iterations: int | None) -> _Read:
    learner = model["learner"]
    trained, weights = learner["gradient_booster"], None
    if trained["name"] == "dart":
        weights = np.asarray(trained["weight_drop"], dtype=np.float32)
        trained = trained["gbtree"]
    if trained["name"] != "gbtree":
        raise InvalidInput("booster", trained["name"], "be gbtree or dart", "Linear boosters are served by XGBoost")
    about = learner["learner_model_param"]
    k = max(int(about.get("num_class", 0)), int(about.get("num_target", 1)), 1)
    objective = learner["objective"]["name"]
    if objective not in _LINKS:
        raise InvalidInput("objective", objective, f"be one of {', '.join(sorted(_LINKS))}")
    forest = trained["model"]
    trees, outputs = forest["trees"], [int(output) for output in forest["tree_info"]]
    if len(trees) != len(outputs) or len(trees) != int(forest["gbtree_model_param"]["num_trees"]):
        raise InvalidInput("trees", len(trees), "be as many as the model says", "The model is damaged")
    if n_iterations is not None:
        width = k * max(int(forest["gbtree_model_param"].get("num_parallel_tree", 1)), 1)
        bounds = forest.get("iteration_indptr") or list(range(0, len(trees) + 1, width))
        trees = trees[: int(bounds[min(n_iterations, len(bounds) - 1)])]
    grove = Grove(n_features=int(about["num_feature"]), n_outputs=k, single=True, narrow=True)
    for i, (tree, output) in enumerate(zip(trees, outputs, strict=False)):
        _add(grove, tree, output=output, weight=None if weights is None else weights[i])
    base = np.atleast_1d(np.asarray(json.loads(str(about["base_score"])), dtype=np.float32))
    start = [_margin(score, objective) for score in np.broadcast_to(base, (k,))]
    names = tuple(learner.get("feature_names") or ())
    return grove.arrays(link=_LINKS[objective], start=start), names


def _margin(base: np.float32, objective: str) -> float:
    """Turns the base score, which is written as a prediction, into a sum, in 32 bits."""
    one = np.float32(1)
    if objective in _LOGIT:
        return -float(kernels.single_log(one / base - one))
    if _LINKS[objective] == kernels.EXP:
        return float(kernels.single_log(base))
    return float(base)


def _add(grove: Grove, tree: Mapping[str, Any], *, output: int, weight: np.float32 | None) -> None:
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise InvalidInput("multi_strategy", "multi_output_tree", "be one_output_per_tree")
    left = np.array(tree["left_children"], dtype=np.int64)
    right = np.array(tree["right_children"], dtype=np.int64)
    condition = np.array(tree["split_conditions"], dtype=np.float32)
    default_left = np.array(tree["default_left"], dtype=np.int64) != 0
    n = len(left)
    feature = np.array(tree["split_indices"], dtype=np.int64)
    kinds = np.array(tree.get("split_type") or np.zeros(n), dtype=np.int64)
    sets = _sets(tree)
    value = condition if weight is None else condition * weight
    columns = np.zeros(n, dtype=np.int64)
    # `x < t` and `x <= the number before t` are the same for 32-bit x.
    with np.errstate(over="ignore", under="ignore"):
        threshold = np.nextafter(condition, np.float32(-np.inf)).astype(np.float64)
    splits: dict[int, CategorySplit] = {}
    for node in np.flatnonzero(left >= 0).tolist():
        to_left = bool(default_left[node])
        if kinds[node]:
            columns[node] = grove.column(int(feature[node]), kernels.CATEGORY_CUT_POSITIVE)
            threshold[node] = 0.0  # XGBoost 2 writes NaN there
            splits[node] = CategorySplit(
                members=sets[node], members_right=True, unseen_right=False, missing_right=not to_left
            )
            continue
        if condition[node] == -np.inf:
            # Nothing is below: all that is not missing goes right, which here is called left.
            left[node], right[node], threshold[node], to_left = right[node], left[node], np.inf, not to_left
        columns[node] = grove.column(int(feature[node]), kernels.NAN_LEFT if to_left else kernels.AS_IS)
    kept, number = _reached(left, right)
    left, right = (np.where(child[kept] < 0, -1, number[child[kept]]) for child in (left, right))
    grove.add(
        left=left,
        right=right,
        column=columns[kept],
        threshold=threshold[kept],
        value=value[kept],
        splits={int(number[node]): split for node, split in splits.items() if number[node] >= 0},
        output=output,
    )


def _sets(tree: Mapping[str, Any]) -> dict[int, frozenset[float]]:
    categories = tree.get("categories") or []
    parts = zip(
        tree.get("categories_nodes") or [],
        tree.get("categories_segments") or [],
        tree.get("categories_sizes") or [],
        strict=True,
    )
    return {
        int(node): frozenset(float(category) for category in categories[int(first) : int(first) + int(size)])
        for node, first, size in parts
    }


def _reached(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nodes that the root leads to, and the new number of each (-1: pruned away)."""
    number = np.full(len(left), -1, dtype=np.int64)
    level = np.zeros(1, dtype=np.int64)
    while len(level):
        if (number[level] >= 0).any():
            raise InvalidInput("trees", "a node with two parents", "be trees", "The model is damaged")
        number[level] = 0
        inner = level[left[level] >= 0]
        level = np.concatenate((left[inner], right[inner]))
    kept = np.flatnonzero(number == 0)
    number[kept] = np.arange(len(kept))
    return kept, number


_UBJSON_NUMBERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}


def read_ubjson(content: bytes) -> Any:
    r"""Decodes UBJSON (Draft 12), which XGBoost writes by default.

    Raises:
        InvalidInput: If it is cut off or no UBJSON.

    Example:
        >>> read_ubjson(b"{i\x01a[$i#i\x02\x05\x06}")
        {'a': [5, 6]}
    """
    try:
        value, place = _value(content, 1, content[:1])
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, RecursionError):
        raise InvalidInput("model", content[:20], "be whole UBJSON", "The content is cut off or damaged") from None
    if place != len(content):
        raise InvalidInput("model", content[place : place + 20], "end where its UBJSON ends")
    return value


def _value(content: bytes, place: int, kind: bytes) -> tuple[Any, int]:
    if kind in _UBJSON_NUMBERS:
        layout = _UBJSON_NUMBERS[kind]
        return struct.unpack_from(layout, content, place)[0], place + struct.calcsize(layout)
    if kind == b"S":
        return _text(content, place)
    if kind == b"C":
        return content[place : place + 1].decode(), place + 1
    if kind == b"[":
        return _array(content, place)
    if kind == b"{":
        return _object(content, place)
    return {b"T": True, b"F": False, b"Z": None}[kind], place


def _length(content: bytes, place: int) -> tuple[int, int]:
    n, place = _value(content, place + 1, content[place : place + 1])
    if not isinstance(n, int) or n < 0:
        raise IndexError(n)
    return n, place


def _text(content: bytes, place: int) -> tuple[str, int]:
    n, place = _length(content, place)
    if place + n > len(content):
        raise IndexError(n)
    return content[place : place + n].decode(), place + n


def _counted(content: bytes, place: int) -> tuple[bytes | None, int | None, int]:
    """Reads the optional type and count of an array or object."""
    kind = None
    if content[place : place + 1] == b"$":
        kind, place = content[place + 1 : place + 2], place + 2
    if content[place : place + 1] == b"#":
        n, place = _length(content, place + 1)
        return kind, n, place
    return kind, None, place


def _array(content: bytes, place: int) -> tuple[Any, int]:
    kind, n, place = _counted(content, place)
    if kind is not None and n is not None and kind in _UBJSON_NUMBERS:
        layout = np.dtype(_UBJSON_NUMBERS[kind])
        if place + n * layout.itemsize > len(content):
            raise IndexError(n)
        return np.frombuffer(content, layout, n, place).tolist(), place + n * layout.itemsize
    found: list[Any] = []
    while n is None or len(found) < n:
        marker = kind
        if marker is None:
            marker, place = content[place : place + 1], place + 1
            if n is None and marker == b"]":
                return found, place
        value, place = _value(content, place, marker)
        found.append(value)
    return found, place


def _object(content: bytes, place: int) -> tuple[Any, int]:
    kind, n, place = _counted(content, place)
    found: dict[str, Any] = {}
    while n is None or len(found) < n:
        if n is None and content[place : place + 1] == b"}":
            return found, place + 1
        name, place = _text(content, place)
        marker = kind
        if marker is None:
            marker, place = content[place : place + 1], place + 1
        found[name], place = _value(content, place, marker)
    return found, place
