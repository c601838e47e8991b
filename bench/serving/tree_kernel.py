"""Scoring 200 trees of 61 nodes on 30 features: one row and batches of 256, one thread, rows that differ."""

import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
from onnxmltools import convert_lightgbm
from onnxmltools.convert.common.data_types import FloatTensorType

from vitok.models.forest import Forest

N_TREES, N_LEAVES, N_FEATURES, BATCH = 200, 31, 30, 256
ROUNDS = 9
SINGLES = int(2_000 * min(float(os.environ.get("VITOK_BENCH_SCALE", "1")) * 5, 1))
BATCHES = max(SINGLES // 50, 2)
ONE_ROW_BAR, BATCH_BAR = 6.0, 4.0


def trained() -> lightgbm.Booster:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, N_FEATURES))
    y = X[:, 0] * X[:, 1] + X[:, 2] + np.sin(3 * X[:, 3]) + rng.normal(size=len(X)) > 0
    params = {"objective": "binary", "num_leaves": N_LEAVES, "verbosity": -1, "num_threads": 1}
    return lightgbm.train(params, lightgbm.Dataset(X, y), N_TREES)


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
            value = float(node["threshold"])
            X[rng.integers(0, n), node["split_feature"]] = rng.choice([value, np.nextafter(value, 9e9)])
            stack += [node["left_child"], node["right_child"]]
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
    held_out = odd_rows(booster, 20_000)
    equal = np.mean(forest.raw(held_out) == booster.predict(held_out, raw_score=True))
    equal_link = np.mean(forest.predict(held_out) == booster.predict(held_out))
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
    met = one <= ONE_ROW_BAR and batch <= BATCH_BAR and equal == 1.0
    print(
        json.dumps(
            {
                "claim": "score one row with 200 trees of 61 nodes, 30 features",
                "value": round(one, 2),
                "unit": "us",
                "peer": f"LightGBM {lightgbm.__version__} Booster.predict",
                "peer_value": round(found["lightgbm", 1], 1),
                "ratio": round(found["lightgbm", 1] / one, 1),
                "bar": f"<= {ONE_ROW_BAR:g} one row, <= {BATCH_BAR:g} a row in batches of {BATCH}, bit-exact",
                "met": bool(met),
                "n": ROUNDS * SINGLES,
                "protocol": f"Median call, the call from Python included, one thread, no row twice, in turn, median of "
                f"{ROUNDS} rounds. In batches of {BATCH}: {batch:.2f} us a row, LightGBM "
                f"{found['lightgbm', BATCH]:.1f}. onnxruntime {onnxruntime.__version__}: {found['onnxruntime', 1]:.1f} "
                f"and {found['onnxruntime', BATCH]:.1f}. On {len(held_out)} held-out rows with NaN, infinities, zeros "
                f"and values on thresholds {equal:.2%} of raw scores and {equal_link:.2%} of probabilities are "
                "LightGBM's to the last bit.",
            }
        )
    )


if __name__ == "__main__":
    main()
