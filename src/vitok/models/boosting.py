"""Boosted trees by LightGBM, and the same trees as an ONNX graph."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitok import settings
from vitok.errors import InvalidInput, MissingExtra

PARAMETERS: Mapping[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 255,
    "verbosity": -1,
}


@dataclasses.dataclass(frozen=True)
class BoostedTrees:
    """Fitted trees.

    Attributes:
        text: The model in LightGBM's own text form.
        names: Features in order.
        n_trees: How many trees are used.
    """

    text: str
    names: tuple[str, ...]
    n_trees: int

    def __repr__(self) -> str:
        """Shows the size, not the text."""
        return f"BoostedTrees({self.n_trees} trees, {len(self.names)} features)"

    def booster(self) -> Any:
        """Returns the LightGBM booster."""
        return _lightgbm().Booster(model_str=self.text)

    def score(self, X: np.ndarray) -> np.ndarray:
        """Returns the probability of class 1, shape (n,), for rows of shape (n, features)."""
        return np.asarray(self.booster().predict(X.astype(np.float32), num_threads=settings.current().threads))

    def contributions(self, X: np.ndarray) -> np.ndarray:
        """Returns what each feature adds to the log-odds of each row (TreeSHAP), shape (n, features).

        Lundberg et al., Consistent Individualized Feature Attribution for Tree Ensembles, 2018.
        """
        return np.asarray(self.booster().predict(X.astype(np.float32), pred_contrib=True))[:, :-1]

    def importance(self) -> dict[str, float]:
        """Returns each feature's share of the total gain, largest first."""
        gain = self.booster().feature_importance("gain")
        total = float(gain.sum()) or 1.0
        order = np.argsort(-gain)
        return {self.names[i]: float(gain[i]) / total for i in order}

    def to_onnx(self) -> bytes:
        """Writes the trees as ONNX: input `X` float32 (n, features), outputs label and probabilities (n, 2).

        ONNX holds thresholds in 32 bits. Each is rounded down to a 32-bit number here, so that `x <= threshold` goes
        the same way as in LightGBM for every 32-bit x.

        Raises:
            MissingExtra: If the export packages are not installed.
        """
        try:
            import onnx
            from onnxmltools import convert_lightgbm
            from onnxmltools.convert.common.data_types import FloatTensorType
        except ImportError:
            raise MissingExtra("models", "writing ONNX") from None
        inputs = [("X", FloatTensorType([None, len(self.names)]))]
        graph = convert_lightgbm(self.booster(), initial_types=inputs, zipmap=False, target_opset=15)
        _round_down(graph, self.booster().dump_model()["tree_info"])
        return bytes(onnx.ModelProto.SerializeToString(graph))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtra("models", "fitting boosted trees") from None
    return lightgbm


def _round_down(graph: Any, trees: Sequence[Mapping[str, Any]]) -> None:
    # A 32-bit threshold may stand for several exact ones, so it is looked up by tree and feature.
    lower: dict[tuple[int, int, float], float] = {}
    for index, tree in enumerate(trees):
        stack = [tree["tree_structure"]]
        while stack:
            node = stack.pop()
            if "threshold" not in node:
                continue
            stack += [node["left_child"], node["right_child"]]
            with np.errstate(over="ignore"):  # the last threshold of a feature may be the largest 64-bit number
                rounded = np.float32(node["threshold"])
            if float(rounded) > float(node["threshold"]):
                down = float(np.nextafter(rounded, np.float32(-np.inf)))
                lower[index, int(node["split_feature"]), float(rounded)] = down
    for node in graph.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        values = attributes["nodes_values"].floats
        where = zip(attributes["nodes_treeids"].ints, attributes["nodes_featureids"].ints, values, strict=True)
        floats = [lower.get((tree, feature, value), value) for tree, feature, value in where]
        del values[:]
        values.extend(floats)


def fit_boosted_trees(
    X: np.ndarray,
    y: np.ndarray,
    *,
    names: Sequence[str],
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    parameters: Mapping[str, Any] | None = None,
    n_trees: int = 300,
    patience: int = 50,
) -> BoostedTrees:
    """Fits boosted trees; with a held-out set, stops where its log loss no longer falls.

    The same data, parameters, seed and thread count give the same trees.

    Args:
        X: Shape (n, features); kept in 32 bits, as it will be served.
        y: Shape (n,), 0 or 1, both present.
        names: Features in order.
        held_out: Rows and labels that are not trained on.
        parameters: Changes to the defaults, in LightGBM's names.
        n_trees: At most so many trees.
        patience: How many trees without gain before the end.

    Raises:
        InvalidInput: If shapes differ, or only one class is present.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(500, 2))
        >>> fit_boosted_trees(X, X[:, 0] > 0, names=["a", "b"], n_trees=5)
        BoostedTrees(5 trees, 2 features)
    """
    lightgbm = _lightgbm()
    y = np.asarray(y, dtype=np.float64)
    if X.ndim != 2 or X.shape != (len(y), len(names)):
        raise InvalidInput("X", X.shape, f"have shape ({len(y)}, {len(names)}): rows of y, columns named")
    if len(np.unique(y)) != 2 or not np.isin(y, (0, 1)).all():
        raise InvalidInput("y", np.unique(y)[:5].tolist(), "hold both 0 and 1", "Take a longer training period.")
    chosen = {
        **PARAMETERS,
        "seed": settings.current().seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": settings.current().threads,
        **(parameters or {}),
    }
    data = lightgbm.Dataset(X.astype(np.float32), y, feature_name=list(names), free_raw_data=True)
    callbacks, valid = [], []
    if held_out is not None and len(np.unique(held_out[1])) == 2:
        valid = [data.create_valid(held_out[0].astype(np.float32), np.asarray(held_out[1], dtype=np.float64))]
        callbacks = [lightgbm.early_stopping(patience, verbose=False)]
    booster = lightgbm.train(chosen, data, n_trees, valid_sets=valid, callbacks=callbacks)
    best = booster.best_iteration if booster.best_iteration > 0 else booster.num_trees()
    return BoostedTrees(booster.model_to_string(num_iteration=best), tuple(names), best)
