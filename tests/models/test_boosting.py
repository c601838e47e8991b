"""Oracle: LightGBM's own prediction, on rows with NaN, infinities and values that sit on the thresholds."""

import json

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.models import fit_boosted_trees


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 6)).astype(np.float32).astype(np.float64)
    X[:, 3] = np.round(X[:, 3] * 4)
    X[rng.random(X.shape) < 0.05] = np.nan
    y = (np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 3]) + rng.normal(size=4000) > 1).astype(float)
    return X, y, fit_boosted_trees(X[:3000], y[:3000], names=list("abcdef"), held_out=(X[3000:], y[3000:]), n_trees=80)


def test_onnx_goes_the_same_way_at_every_threshold(fitted) -> None:
    import onnxruntime as ort

    X, _, trees = fitted
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(trees.to_onnx(), options)
    rows = [X.astype(np.float32)]
    stack = [tree["tree_structure"] for tree in trees.booster().dump_model()["tree_info"]]
    rng = np.random.default_rng(1)
    while stack:
        node = stack.pop()
        if "threshold" not in node:
            continue
        stack += [node["left_child"], node["right_child"]]
        # LightGBM reads anything within 1e-35 of zero as zero, so the smallest numbers are no fair question.
        near = np.float32(0 if abs(node["threshold"]) < 1e-30 else node["threshold"])
        for value in (near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))):
            value = np.float32(0) if abs(value) < 1e-30 else value
            row = X[rng.integers(len(X))].astype(np.float32)
            row[node["split_feature"]] = value
            rows.append(row[None])
    edge = X[:4].astype(np.float32)
    edge[0], edge[1], edge[2] = np.nan, np.inf, -np.inf
    rows.append(edge)
    everything = np.concatenate(rows)
    [_, probability] = session.run(None, {"X": everything})
    np.testing.assert_allclose(probability[:, 1], trees.score(everything), atol=2e-6)


def test_same_seed_gives_the_same_trees(fitted) -> None:
    X, y, trees = fitted
    again = fit_boosted_trees(X[:3000], y[:3000], names=list("abcdef"), held_out=(X[3000:], y[3000:]), n_trees=80)
    assert again.text == trees.text


def test_contributions_add_up_to_the_log_odds(fitted) -> None:
    X, _, trees = fitted
    raw = trees.booster().predict(X[:50].astype(np.float32), raw_score=True)
    base = trees.booster().predict(X[:50].astype(np.float32), pred_contrib=True)[:, -1]
    np.testing.assert_allclose(trees.contributions(X[:50]).sum(axis=1) + base, raw, atol=1e-9)
    assert json.dumps(trees.importance())
    assert next(iter(trees.importance())) in {"a", "d"}


def test_wrong_input_is_named() -> None:
    with pytest.raises(InvalidInput, match="both 0 and 1"):
        fit_boosted_trees(np.zeros((3, 1)), np.zeros(3), names=["a"])
    with pytest.raises(InvalidInput, match="shape"):
        fit_boosted_trees(np.zeros((3, 2)), np.zeros(3), names=["a"])
