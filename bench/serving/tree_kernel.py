"""Scoring 200 trees of 61 nodes on 30 features: one row and batches of 256, one thread, rows that differ.

Exact is judged on three models of 200 trees: that one, one with categories, and one of three classes.
"""

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from bench.features._claim import tell  # noqa: E402
from onnxmltools import convert_lightgbm  # noqa: E402
from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: E402

from vitok.models.forest import Forest  # noqa: E402

N_TREES, N_LEAVES, N_FEATURES, BATCH = 200, 31, 30, 256
ROUNDS = 9
SINGLES = int(2_000 * min(float(os.environ.get("VITOK_BENCH_SCALE", "1")) * 5, 1))
BATCHES = max(SINGLES // 50, 2)
ONE_ROW_BAR, BATCH_BAR = 6.0, 4.0
CATEGORIES = (12, 40, 3, 300, 9)
HELD_OUT = 20_000


def trained() -> lightgbm.Booster:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, N_FEATURES))
    y = X[:, 0] * X[:, 1] + X[:, 2] + np.sin(3 * X[:, 3]) + rng.normal(size=len(X)) > 0
    params = {"objective": "binary", "num_leaves": N_LEAVES, "verbosity": -1, "num_threads": 1}
    return lightgbm.train(params, lightgbm.Dataset(X, y), N_TREES)


def with_categories() -> lightgbm.Booster:
    """Trains on five columns of categories, one of them with many, and 25 of numbers, with values that are missing."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(20_000, N_FEATURES))
    for column, n in enumerate(CATEGORIES):
        X[:, column] = rng.integers(0, n, len(X))
    y = np.isin(X[:, 0] % 7, (1, 4)) + X[:, 6] + 0.3 * (X[:, 4] % 3) + rng.normal(size=len(X)) > 0.8
    X[rng.random(X.shape) < 0.05] = np.nan
    params = {"objective": "binary", "num_leaves": N_LEAVES, "verbosity": -1, "num_threads": 1, "max_cat_to_onehot": 4}
    data = lightgbm.Dataset(X, y, categorical_feature=list(range(len(CATEGORIES))))
    return lightgbm.train(params, data, N_TREES)


def of_three_classes() -> lightgbm.Booster:
    rng = np.random.default_rng(6)
    X = rng.normal(size=(10_000, N_FEATURES))
    X[rng.random(X.shape) < 0.3] = 0.0
    y = np.digitize(X[:, 0] + X[:, 1] * X[:, 2] + rng.normal(size=len(X)), (-0.7, 0.7))
    params = {"objective": "multiclass", "num_class": 3, "num_leaves": N_LEAVES, "verbosity": -1, "num_threads": 1}
    return lightgbm.train({**params, "zero_as_missing": True}, lightgbm.Dataset(X, y), N_TREES // 3)


def graph(booster: lightgbm.Booster) -> onnxruntime.InferenceSession:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = [("X", FloatTensorType([None, N_FEATURES]))]
        model = convert_lightgbm(booster, initial_types=inputs, zipmap=False, target_opset=15)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def odd_rows(booster: lightgbm.Booster, n: int) -> np.ndarray:
    """Rows with NaN, infinities, zeros, and numbers on and next to the thresholds."""
    rng = np.random.default_rng(2)
    X = rng.normal(size=(n, N_FEATURES)) * 2
    X[rng.random(X.shape) < 0.05] = np.nan
    odd = np.array([np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e-35, 1e300])
    chosen = rng.random(X.shape) < 0.05
    X[chosen] = rng.choice(odd, chosen.sum())
    stack = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while stack:
        node = stack.pop()
        if "threshold" in node:
            if node["decision_type"] == "<=":
                value = float(node["threshold"])
                X[rng.integers(0, n), node["split_feature"]] = rng.choice([value, np.nextafter(value, 9e9)])
            stack += [node["left_child"], node["right_child"]]
    return X


def odd_categories(booster: lightgbm.Booster, n: int) -> np.ndarray:
    """The same with categories, half of them known, the rest unseen, negative, not whole, or missing."""
    rng = np.random.default_rng(7)
    X = odd_rows(booster, n)
    for column, many in enumerate(CATEGORIES):
        odd = rng.choice(np.array([many, 10.0 * many, 1e9, -1.0, -0.5, 0.5, 2.7, np.nan, np.inf, -np.inf]), n)
        X[:, column] = np.where(rng.random(n) < 0.5, rng.integers(0, many, n), odd)
    return X


def timed(call: Callable[[np.ndarray], Any], parts: list[np.ndarray]) -> float:
    """Returns the median of a call, in microseconds; each part is scored once."""
    times = []
    for part in parts:
        began = time.perf_counter_ns()
        call(part)
        times.append(time.perf_counter_ns() - began)
    return statistics.median(times) / 1e3


def main() -> None:
    booster = trained()
    forest = Forest.of(booster).warm()
    session = graph(booster)
    models = {
        "numbers": (booster, odd_rows(booster, HELD_OUT)),
        "categories": (other := with_categories(), odd_categories(other, HELD_OUT)),
        "three classes": (third := of_three_classes(), odd_rows(third, HELD_OUT)),
    }
    equal = {}
    for name, (model, X) in models.items():
        ours = Forest.of(model)
        raw = np.mean(ours.raw(X) == model.predict(X, raw_score=True))
        equal[name] = (float(raw), float(np.mean(ours.predict(X) == model.predict(X))))
    sides: dict[str, tuple[Any, Callable[[np.ndarray], Any]]] = {
        "ours": (np.float64, forest.predict),
        "lightgbm": (np.float64, lambda X: booster.predict(X, num_threads=1)),
        "onnxruntime": (np.float32, lambda X: session.run(None, {"X": X})),
    }
    figures: dict[tuple[str, int], list[float]] = {}
    rng = np.random.default_rng(3)
    for _ in range(ROUNDS):
        X = rng.normal(size=(max(SINGLES, BATCHES * BATCH), N_FEATURES))
        for name, (dtype, call) in sides.items():
            rows = X.astype(dtype)
            for size, count in ((1, SINGLES), (BATCH, BATCHES)):
                parts = [rows[i * size : (i + 1) * size] for i in range(count)]
                figures.setdefault((name, size), []).append(timed(call, parts) / size)
    found = {key: statistics.median(values) for key, values in figures.items()}
    one, batch = found["ours", 1], found["ours", BATCH]
    exact = ", ".join(f"{name} {raw:.2%} and {link:.2%}" for name, (raw, link) in equal.items())
    tell(
        "score one row with 200 trees of 61 nodes, 30 features",
        value=one,
        unit="us",
        peer=f"LightGBM {lightgbm.__version__} Booster.predict",
        peer_value=found["lightgbm", 1],
        ratio=found["lightgbm", 1] / one,
        bar=f"<= {ONE_ROW_BAR:g} one row, <= {BATCH_BAR:g} a row in batches of {BATCH}, bit-exact",
        met=one <= ONE_ROW_BAR and batch <= BATCH_BAR and all(part == 1.0 for both in equal.values() for part in both),
        n=ROUNDS * SINGLES,
        protocol=f"Median call, the call from Python included, one thread, no row twice, in turn, median of {ROUNDS} "
        f"rounds. In batches of {BATCH}: {batch:.2f} us a row, LightGBM {found['lightgbm', BATCH]:.1f}. onnxruntime "
        f"{onnxruntime.__version__}: {found['onnxruntime', 1]:.1f} and {found['onnxruntime', BATCH]:.1f}. Raw scores "
        f"and probabilities that are LightGBM's to the last bit, on {HELD_OUT:,} held-out rows each with NaN, "
        f"infinities, zeros, values on thresholds and unseen categories: {exact}.",
    )


if __name__ == "__main__":
    main()
