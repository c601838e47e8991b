"""Reads the trees of LightGBM from its model text."""

import re
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.models import forest_kernels as kernels
from vitok.models.forest_layout import Arrays, CategorySplit, Grove

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_READINGS = {
    # (missing type, default left): none, zero, NaN.
    (0, False): kernels.NAN_IS_ZERO,
    (0, True): kernels.NAN_IS_ZERO,
    (1, False): kernels.ZERO_RIGHT,
    (1, True): kernels.ZERO_LEFT,
    (2, False): kernels.AS_IS,
    (2, True): kernels.NAN_LEFT,
}
_LINKS = {
    **dict.fromkeys(("regression", "regression_l2", "mean_squared_error", "mse", "l2", "l2_root"), kernels.IDENTITY),
    **dict.fromkeys(("regression_l1", "huber", "fair", "quantile", "mape", "custom"), kernels.IDENTITY),
    **dict.fromkeys(("lambdarank", "rank_xendcg"), kernels.IDENTITY),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), kernels.EXP),
    **dict.fromkeys(("binary", "multiclassova", "cross_entropy"), kernels.SIGMOID),
    "cross_entropy_lambda": kernels.LOG1P_EXP,
    "multiclass": kernels.SOFTMAX,
}


def read_lightgbm_text(text: str, *, narrow: bool = False) -> tuple[Arrays, tuple[str, ...]]:
    """Reads a model that `Booster.model_to_string` or `save_model` wrote.

    Args:
        text: The model.
        narrow: Whether its rows are rounded to 32 bits before they are scored.

    Returns:
        The trees, and the names of the features.

    Raises:
        InvalidInput: If the text is cut off or damaged, or holds what cannot be scored exactly (linear trees).
    """
    head, *blocks = re.split(r"\n(?=Tree=\d+\n)", text.replace("\r\n", "\n"))
    about = _fields(head)
    if not head.startswith("tree\n") or "max_feature_idx" not in about:
        raise InvalidInput("model", text[:40], "be LightGBM's model text", "Write it with Booster.save_model")
    if "\nend of trees" not in text:
        raise InvalidInput("model", f"{len(blocks)} trees", "end with the line 'end of trees'", "The text is cut off")
    if blocks:
        blocks[-1] = blocks[-1].split("\nend of trees")[0]
    sizes = about.get("tree_sizes", "").split()
    if "tree_sizes" in about and len(sizes) != len(blocks):
        raise InvalidInput("model", f"{len(blocks)} trees", f"hold the {len(sizes)} trees that its head names")
    k = int(about.get("num_tree_per_iteration", about.get("num_class", "1")))
    n_features = int(about["max_feature_idx"]) + 1
    names = tuple(about.get("feature_names", "").split(" ")) if about.get("feature_names") else ()
    if names and len(names) != n_features:
        raise InvalidInput("feature_names", len(names), f"be the names of {n_features} features")
    if len(blocks) % max(k, 1):
        raise InvalidInput("model", f"{len(blocks)} trees", f"hold {k} trees for each iteration")
    grove = Grove(n_features=n_features, n_outputs=k, narrow=narrow, refuses=kernels.FLUSH)
    for i, block in enumerate(blocks):
        try:
            _add(grove, _fields(block), output=i % k)
        except (KeyError, ValueError, IndexError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"tree {i}", block[:40], "be whole", "The text is damaged") from None
    link, slope = _objective(about.get("objective", "custom"))
    averaged = any(line.strip() == "average_output" for line in head.split("\n"))
    arrays = grove.arrays(link=link, slope=slope, divisor=max(len(blocks) // k, 1) if averaged else 1.0)
    return arrays, names


def _fields(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.split("\n") if "=" in line)


def _objective(line: str) -> tuple[int, float]:
    name, *options = line.split() or ["custom"]
    if name not in _LINKS:
        raise InvalidInput("objective", name, f"be one of {', '.join(sorted(_LINKS))}")
    given = dict(option.split(":", 1) for option in options if ":" in option)
    link = _LINKS[name]
    if link == kernels.IDENTITY and "sqrt" in options:
        link = kernels.SIGNED_SQUARE
    return link, float(given.get("sigmoid", 1.0))


def _numbers(fields: dict[str, str], name: str, n: int, dtype: Any) -> np.ndarray:
    found = np.array(fields[name].split(), dtype=dtype)
    if len(found) != n:
        raise InvalidInput(name, len(found), f"hold {n} numbers", "The text is damaged")
    return found


def _add(grove: Grove, fields: dict[str, str], *, output: int) -> None:
    if fields.get("is_linear", "0").strip() != "0":
        raise InvalidInput("linear_tree", True, "be off", "Trees with linear leaves are served by LightGBM itself")
    n_leaves = int(fields["num_leaves"])
    leaf_value = _numbers(fields, "leaf_value", n_leaves, np.float64)
    if n_leaves == 1:
        grove.add(left=[-1], right=[-1], column=[0], threshold=[0.0], value=leaf_value, output=output)
        return
    n = n_leaves - 1
    feature = _numbers(fields, "split_feature", n, np.int64)
    threshold = _numbers(fields, "threshold", n, np.float64)
    kinds = _numbers(fields, "decision_type", n, np.int64)
    # Leaf i is written as ~i; here leaves come after the inner nodes.
    children = []
    for name in ("left_child", "right_child"):
        child = _numbers(fields, name, n, np.int64)
        children.append(np.concatenate((np.where(child < 0, n + ~child, child), np.full(n_leaves, -1))))
    splits: dict[int, CategorySplit] = {}
    columns = np.zeros(n + n_leaves, dtype=np.int64)
    n_sets = int(fields["num_cat"])
    bounds = _numbers(fields, "cat_boundaries", n_sets + 1, np.int64) if n_sets else np.zeros(1, dtype=np.int64)
    words = _numbers(fields, "cat_threshold", int(bounds[-1]), np.uint32) if n_sets else np.zeros(0, dtype=np.uint32)
    for node in range(n):
        kind = int(kinds[node])
        if kind & _CATEGORICAL:
            columns[node] = grove.column(int(feature[node]), kernels.CATEGORY_CUT)
            at = int(threshold[node])
            if not 0 <= at < n_sets:
                raise InvalidInput("threshold", at, f"be one of {n_sets} sets of categories", "The text is damaged")
            packed = words[bounds[at] : bounds[at + 1]].astype("<u4").view(np.uint8)
            members = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
            splits[node] = CategorySplit(
                members=frozenset(members.astype(np.float64).tolist()),
                members_right=False,
                unseen_right=True,
                missing_right=True,
            )
        else:
            if (kind >> 2, bool(kind & _DEFAULT_LEFT)) not in _READINGS:
                raise InvalidInput("decision_type", kind, "be below 12", "The text is damaged")
            columns[node] = grove.column(int(feature[node]), _READINGS[kind >> 2, bool(kind & _DEFAULT_LEFT)])
    grove.add(
        left=children[0],
        right=children[1],
        column=columns,
        threshold=np.concatenate((threshold, np.zeros(n_leaves))),
        value=np.concatenate((np.zeros(n), leaf_value)),
        splits=splits,
        output=output,
    )
