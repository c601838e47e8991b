"""Oracles: definitions by hand, and ONNX Runtime's own quantiser; times are judged on made-up figures only."""

import math
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.models.onnx_scoring import OnnxScorer
from vitok.models.quantise import FULL, VARIANTS, make_variant, quantise
from vitok.models.tradeoffs import (
    Bounds,
    Timing,
    check_batches,
    judge,
    measure_loss,
    measure_quality,
    time_in_turns,
    weighted_ratio,
)


def ticking() -> Any:
    now = iter(range(0, 10**12, 1000))
    return lambda: next(now)


@pytest.fixture(scope="module")
def data() -> Any:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 6)).astype(np.float32)
    X[:, 5] = np.abs(X[:, 5])
    p = 1 / (1 + np.exp(-(X[:, 0] * 2 + X[:, 1] - X[:, 2])))
    return X, (rng.uniform(size=3000) < p).astype(int)


@pytest.fixture(scope="module")
def network() -> bytes:
    """A small network of known weights that scores the probability by which labels are drawn."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.zeros((6, 8), dtype=np.float32)
    weights[[0, 1, 2, 5], 0] = [2, 1, -1, 0.0]
    weights[[0, 1, 2], 1] = [-2, -1, 1]
    weights[5, 2] = 1.0
    last = np.array([[1], [-1], [0], [0], [0], [0], [0], [0]], dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 6])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(last, "v")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_a_static_form_that_loses_its_calibration_is_refused_though_auc_holds(network: bytes, data: Any) -> None:
    X, y = data
    found = quantise(
        network,
        calibration=0.4 * X[:1000],  # narrower than what is served, so that a static form cuts scores off
        held_out=(X[1000:], y[1000:]),
        batch_sizes={1: 0.7, 64: 0.3},
        bounds=Bounds(auc=0.05, calibration=1.0, flips=1.0),
        rounds=1,
        clock=ticking(),
    )
    static = found["int8_static"]
    assert static.loss is not None
    assert static.loss.log_loss > 0.01
    assert abs(static.loss.auc) < 0.05
    assert any("log loss" in reason for reason in static.reasons)
    assert found.chosen.name == FULL  # all take the same made-up time
    assert found.full.accepted
    assert "int8_static: refused" in str(found)
    assert set(found.fastest.values()) == {FULL}
    assert len(found["int8_dynamic"].content) > 0
    assert found["int8_dynamic"].batch_spread > 0  # its scale comes from the batch
    assert "depends on its batch" in str(found["int8_dynamic"])
    assert found["fp16"].loss is not None
    assert found["fp16"].loss.comparison.max_difference < 0.01
    with pytest.raises(InvalidInput, match="variant"):
        found["int4"]


def test_calibrating_anew_mends_the_loss(network: bytes, data: Any) -> None:
    X, y = data
    y = np.where(np.random.default_rng(1).uniform(size=len(y)) < 0.2, 1 - y, y)  # now the network promises too much
    common: dict[str, Any] = {
        "calibration": X[:1000],
        "held_out": (X[1000:], y[1000:]),
        "batch_sizes": {64: 1},
        "variants": ["int8_static"],
        "rounds": 1,
    }
    plain = quantise(network, **common, clock=ticking())["int8_static"]
    anew = quantise(network, **common, labels=y[:1000], clock=ticking())["int8_static"]
    assert plain.quality is not None
    assert anew.quality is not None
    assert anew.quality.log_loss.value < plain.quality.log_loss.value
    assert set(anew.files()) == {"model.onnx", "calibrator.json"}
    assert set(plain.files()) == {"model.onnx"}


def timing(size: int, us: float, ratio: float) -> Timing:
    return Timing(batch_size=size, microseconds=us, ratio=ratio, lower=ratio * 0.98, upper=ratio * 1.02)


def test_a_form_is_taken_only_where_it_is_faster_at_the_sizes_seen() -> None:
    y = np.array([0, 1, 0, 1] * 50)
    score = np.array([0.1, 0.9, 0.2, 0.8] * 50)
    same = measure_loss(y, score, score)
    full = [timing(1, 10, 1), timing(256, 330, 1)]
    small = [timing(1, 15, 1.5), timing(256, 132, 0.4)]
    for shares, taken in (({1: 0.99, 256: 0.01}, False), ({1: 0.1, 256: 0.9}, True)):
        ratio = weighted_ratio(small, full, shares)
        assert (judge(same, small, ratio, Bounds()) == ()) is taken
    [reason] = judge(same, small, 1.2, Bounds())
    assert "takes 1.20 x the time" in reason
    [reason] = judge(same, small, 0.97, Bounds())
    assert "saves 3% of the time" in reason
    unsure = [Timing(batch_size=1, microseconds=9, ratio=0.9, lower=0.5, upper=1.5)]
    assert judge(same, unsure, 0.9, Bounds()) == ("is not certainly faster at any batch size seen",)


def test_bounds_name_what_they_break() -> None:
    y = np.array([0, 1, 0, 1] * 50)
    full = np.array([0.1, 0.9, 0.4, 0.6] * 50)
    loss = measure_loss(y, full, full[::-1].copy())
    broken = Bounds().broken_by(loss)
    assert [reason.split(" ")[0] for reason in broken] == ["log", "AUC", "calibration", "100.00%"]
    p, q = full, full[::-1]
    by_hand = (
        -np.where(y == 1, np.log(q), np.log(1 - q)).mean() / -np.where(y == 1, np.log(p), np.log(1 - p)).mean() - 1
    )
    assert math.isclose(loss.log_loss, by_hand)
    assert loss.log_loss_lower < loss.log_loss
    for field in ("auc", "log_loss", "flips"):
        with pytest.raises(InvalidInput, match=field):
            Bounds(**{field: -1.0})
    with pytest.raises(InvalidInput, match="saving"):
        Bounds(saving=1.0)


def test_time_is_taken_in_turns() -> None:
    now = 0
    order: list[str] = []

    def form(name: str, cost: int) -> Any:
        def prepared(size: int) -> Any:
            def run() -> None:
                nonlocal now
                now += cost * size
                order.append(name)

            return run

        return prepared

    forms = {"full": form("full", 1000), "half": form("half", 500)}
    found = time_in_turns(forms, [1, 10], rounds=5, round_ns=1, clock=lambda: now)
    assert [(t.microseconds, t.ratio) for t in found["half"]] == [(0.5, 0.5), (5.0, 0.5)]
    assert found["half"][0].faster
    assert not found["full"][0].faster
    assert order.count("full") == order.count("half") + 2
    with pytest.raises(InvalidInput, match="at least one each"):
        time_in_turns({}, [1])


def test_inputs_that_cannot_be(network: bytes, data: Any, tmp_path: Any) -> None:
    X, y = data
    good: dict[str, Any] = {"calibration": X[:9], "held_out": (X, y), "batch_sizes": {1: 1}, "variants": []}
    for change, message in (
        ({"variants": ["int4"]}, "variants"),
        ({"batch_sizes": {}}, "batch_sizes"),
        ({"batch_sizes": {0: 1}}, "batch_sizes"),
        ({"batch_sizes": {1: math.nan}}, "batch_sizes"),
        ({"held_out": (X, y[:5])}, "have shapes"),
        ({"calibration": X[:, :2]}, "have shapes"),
        ({"calibration": X[:0]}, "at least one row"),
        ({"labels": y[:3]}, "one for each"),
        ({"held_out": (X[:50], np.zeros(50))}, "both classes"),
    ):
        with pytest.raises(InvalidInput, match=message):
            quantise(network, **{**good, **change}, clock=ticking())
    with pytest.raises(InvalidInput, match="readable"):
        quantise(tmp_path / "none.onnx", **good)
    with pytest.raises(InvalidInput, match="runs"):
        quantise(b"nothing", **good)
    path = tmp_path / "model.onnx"
    path.write_bytes(network)
    assert quantise(path, **good, clock=ticking()).chosen.name == FULL
    with pytest.raises(InvalidInput, match="probabilities"):
        measure_quality(np.array([0, 1]), np.array([-1.0, 3.0]))
    assert check_batches({16: 1, 1: 3}) == {1: 0.75, 16: 0.25}


def test_what_cannot_be_made_is_a_refused_variant(data: Any) -> None:
    from vitok.models import fit_boosted_trees

    X, y = data
    trees = fit_boosted_trees(X, y, names=list("abcdef"), n_trees=3).to_onnx()
    found = quantise(
        trees, calibration=X[:100], held_out=(X, y), batch_sizes={1: 1}, rounds=1, clock=ticking(), op_types=["MatMul"]
    )
    assert found.chosen.name == FULL
    assert all(not variant.accepted for variant in found.variants)


def test_variants_are_models_of_their_own(network: bytes, data: Any) -> None:
    X, _ = data
    full = OnnxScorer(network).score(X)
    for name in VARIANTS:
        made = OnnxScorer(make_variant(network, name, calibration=X))
        assert made.score(X).shape == full.shape


def test_a_form_that_is_certain_where_the_full_model_doubts_is_refused() -> None:
    y, full = np.array([0, 1, 1, 0] * 50), np.array([0.0001, 0.9999, 0.6, 0.4] * 50)
    certain = measure_loss(y, full, np.array([0.0, 1.0, 0.6, 0.4] * 50))
    # On these rows it is even better; what it does to a row that turns out otherwise is not among them.
    assert certain.log_loss < 0
    assert certain.saturated == 100
    assert any("100 of 200 rows get 0 or 1" in reason for reason in Bounds().broken_by(certain))
    # What 32 bits round to 1 is no certainty of the cheaper form's.
    rounded = measure_loss(y, np.array([1e-8, 1 - 1e-8, 0.6, 0.4] * 50), np.array([1e-8, 1.0, 0.6, 0.4] * 50))
    assert rounded.saturated == 0


def test_a_rounding_over_one_is_one() -> None:
    y = np.array([0, 1, 1, 0])
    over = measure_quality(y, np.array([0.2, 1.0000001192, 0.8, 0.2]))
    assert over.log_loss.value == pytest.approx(-3 * math.log(0.8) / 4)
    with pytest.raises(InvalidInput, match="probabilities"):
        measure_quality(y, np.array([0.2, 1.001, 0.8, 0.2]))


def test_what_may_be_too_much_on_other_rows_is_refused() -> None:
    # Worse by 0.6 % here, but by a few rows alone.
    rng = np.random.default_rng(0)
    y = (rng.uniform(size=400) < 0.5).astype(int)
    full = np.where(y == 1, 0.6, 0.4)
    cheap = full.copy()
    cheap[:4] = np.where(y[:4] == 1, 0.45, 0.55)
    loss = measure_loss(y, full, cheap)
    assert 0 < loss.log_loss < 0.01 < loss.log_loss_upper
    assert any("may be" in reason for reason in Bounds().broken_by(loss))
