"""Runtimes, with LightGBM 4.7 as the oracle of the scores."""

import gc
import json
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput, MissingExtra, NotFound, ServiceError
from vitok.models import BoostedTrees, fit_boosted_trees
from vitok.registry import write_package
from vitok.serving import Runtime, RuntimeSet

RNG = np.random.default_rng(3)
X = RNG.normal(size=(600, 3)).astype(np.float32)
X[::7, 1] = np.nan


@pytest.fixture(scope="module")
def trees() -> BoostedTrees:
    return fit_boosted_trees(X, X[:, 0] > 0.3, names=["a", "b", "c"], n_trees=12)


@pytest.fixture(scope="module")
def onnx(trees: BoostedTrees) -> bytes:
    return trees.to_onnx()


@pytest.fixture
def folder(tmp_path: Path, onnx: bytes, trees: BoostedTrees) -> Path:
    (tmp_path / "model.onnx").write_bytes(onnx)
    return tmp_path


def write_examples(folder: Path, inputs: Any, outputs: Any) -> None:
    (folder / "examples.json").write_text(json.dumps({"inputs": inputs, "outputs": outputs}))


def test_scores_are_those_of_lightgbm(folder: Path, trees: BoostedTrees) -> None:
    runtime = Runtime.load(folder, version="fraud/1")
    scores = runtime.score(X)
    assert scores.shape == (600,)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, trees.score(X), atol=1e-6)
    np.testing.assert_allclose(runtime.score(X[:1]), scores[:1], atol=1e-7)
    assert repr(runtime) == "Runtime('fraud/1', 3 features)"


def test_no_rows_and_rows_of_nothing(folder: Path) -> None:
    runtime = Runtime.load(str(folder))
    assert runtime.score(np.empty((0, 3), np.float32)).shape == (0,)
    odd = runtime.score(np.array([[np.nan] * 3, [np.inf] * 3, [-np.inf] * 3], np.float32))
    assert ((odd >= 0) & (odd <= 1)).all()


def test_rows_that_are_not_contiguous(folder: Path) -> None:
    runtime = Runtime.load(folder)
    np.testing.assert_array_equal(runtime.score(X[::2]), runtime.score(np.ascontiguousarray(X[::2])))
    np.testing.assert_array_equal(runtime.score(np.asfortranarray(X)), runtime.score(X))


def test_wrong_rows(folder: Path) -> None:
    runtime = Runtime.load(folder)
    with pytest.raises(InvalidInput, match="float64', must be float32"):
        runtime.score(X.astype(np.float64))
    with pytest.raises(InvalidInput, match=r"must have the shape \(n, 3\)"):
        runtime.score(X[:, :2])
    with pytest.raises(InvalidInput, match="shape"):
        runtime.score(X[0])


def test_cost_counts_what_was_asked_for(folder: Path) -> None:
    runtime = Runtime.load(folder)
    assert (runtime.cost.rows, runtime.cost.seconds_per_row) == (0, 0.0)
    runtime.score(X)
    runtime.score(X[:10])
    cost = runtime.cost
    assert (cost.batches, cost.rows) == (2, 610)
    assert 0 < cost.cpu_seconds < 1


def test_examples_are_reproduced(folder: Path, trees: BoostedTrees) -> None:
    inputs = [[None if np.isnan(value) else float(value) for value in row] for row in X[:20]]
    outputs = trees.score(X[:20]).tolist()
    write_examples(folder, inputs, outputs)
    assert Runtime.load(folder).n_features == 3
    outputs[7] += 0.01
    write_examples(folder, inputs, outputs)
    with pytest.raises(ServiceError, match=r"fraud/2: example 7 scores 0\.\d+, must be"):
        Runtime.load(folder, version="fraud/2")
    outputs[7] = None
    write_examples(folder, inputs, outputs)
    with pytest.raises(ServiceError, match="example 7 scores"):
        Runtime.load(folder)


def test_examples_that_cannot_be_read(folder: Path) -> None:
    for inputs, outputs in ([[1, 2]], [0.5]), ([[1, 2, 3]], [0.5, 0.5]), ([[1, 2, 3]], [[0.5]]):
        write_examples(folder, inputs, outputs)
        with pytest.raises(ServiceError, match="shapes"):
            Runtime.load(folder)
    for text in ("{", "[]", "{}", '{"inputs": [["x"]], "outputs": [1]}', '{"inputs": [[1], [1, 2]], "outputs": [1]}'):
        (folder / "examples.json").write_text(text)
        with pytest.raises(ServiceError, match="cannot be read"):
            Runtime.load(folder)
    write_examples(folder, [], [])
    assert Runtime.load(folder).n_features == 3


def test_examples_whose_score_is_missing_or_infinite(tmp_path: Path) -> None:
    code = "import numpy as np\ndef load(folder):\n    return lambda t: {'y': np.log(t['x'][:, 0])}\n"
    (tmp_path / "model.py").write_text(code)
    specs = {
        side: [{"name": name, "datatype": "FP64", "shape": shape}]
        for side, name, shape in (("inputs", "x", [-1, 1]), ("outputs", "y", [-1]))
    }
    (tmp_path / "callable.json").write_text(json.dumps({"factory": "model.py:load", **specs}))
    write_examples(tmp_path, [[1.0], [-1.0], [0.0]], [0.0, None, float("-inf")])
    with np.errstate(divide="ignore", invalid="ignore"):
        Runtime.load(tmp_path)
        write_examples(tmp_path, [[1.0], [-1.0], [0.0]], [0.0, 1.0, float("-inf")])
        with pytest.raises(ServiceError, match="example 1 scores nan, must be 1 "):
            Runtime.load(tmp_path)


def test_a_package_of_the_registry(tmp_path: Path, onnx: bytes, trees: BoostedTrees) -> None:
    row = [0.1, 0.2, 0.3]
    outputs = trees.score(np.array([row])).tolist()
    examples = {"inputs": [row], "outputs": outputs}
    files: dict[str, Any] = {"model.onnx": onnx, "examples.json": examples}
    package = write_package(tmp_path / "1", name="fraud", version=1, created=0, files=files)
    assert Runtime.load(package).score(np.array([row], np.float32)) == pytest.approx(outputs, abs=1e-6)
    bare = write_package(tmp_path / "2", name="fraud", version=2, created=0, files={"notes.txt": "none"})
    with pytest.raises(NotFound, match=r"model\.onnx or callable\.json' does not exist; there is: notes\.txt"):
        Runtime.load(bare)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"model\.onnx"):
        Runtime.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x07" * 100])
def test_damaged_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ServiceError, match="cannot be run"):
        Runtime.load(tmp_path, version="fraud/1")


def graph(folder: Path, output: Any, *, shape: list[Any], kind: int = 1, op: str = "Sigmoid") -> Path:
    from onnx import TensorProto, helper, save

    node = helper.make_node(op, ["X"], ["y"], **({"axes": [1], "keepdims": 0} if op == "ReduceMean" else {}))
    value = helper.make_tensor_value_info("X", kind, shape)
    model = helper.make_model(
        helper.make_graph(
            [node], "g", [value], [output or helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    save(model, str(folder / "model.onnx"))
    return folder


def test_other_shapes_of_output(tmp_path: Path) -> None:
    rows = np.array([[0.0], [2.0]], np.float32)
    column = Runtime.load(graph(tmp_path, None, shape=[None, 1]))
    assert column.score(rows) == pytest.approx(1 / (1 + np.exp(-rows[:, 0])))
    flat = Runtime.load(graph(tmp_path, None, shape=[None, 2], op="ReduceMean"))
    assert flat.score(np.array([[1, 2], [3, 4]], np.float32)).tolist() == [1.5, 3.5]


def test_models_that_take_no_matrix(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    double = helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)
    exact = Runtime.load(graph(tmp_path, double, shape=[None, 1], kind=TensorProto.DOUBLE))
    assert exact.score(np.zeros((1, 1))).tolist() == [0.5]
    with pytest.raises(InvalidInput, match="float32', must be float64"):
        exact.score(np.zeros((1, 1), np.float32))
    open_ended = Runtime.load(graph(tmp_path, None, shape=[None, None]))
    with pytest.raises(ServiceError, match="stated number of features"):
        open_ended.score(np.zeros((1, 2), np.float32))
    assert open_ended.infer({"X": np.zeros((1, 2), np.float32)})["y"].tolist() == [[0.5, 0.5]]
    label = helper.make_tensor_value_info("y", TensorProto.BOOL, None)
    nan = Runtime.load(graph(tmp_path, label, shape=[None, 2], op="IsNaN"))
    assert nan.infer({"X": np.array([[np.nan, 1]], np.float32)})["y"].tolist() == [[True, False]]
    with pytest.raises(ServiceError, match="a tensor of scores"):
        nan.score(np.zeros((1, 2), np.float32))


def test_wrong_tensors(folder: Path) -> None:
    runtime = Runtime.load(folder)
    name = runtime.inputs[0].name
    for inputs, message in (
        ({}, "hold "),
        ({name: X.astype(np.float64)}, "must be FP32"),
        ({name: X[:, :2]}, "must have the shape"),
        ({name: X, "more": X}, "must be only"),
    ):
        with pytest.raises(InvalidInput, match=message):
            runtime.infer(inputs)
    assert runtime.infer({name: X})[runtime.outputs[-1].name].shape[0] == 600


def write_callable(folder: Path, code: str, factory: str = "model.py:load") -> Path:
    (folder / "model.py").write_text(code)
    described = {
        "factory": factory,
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "length", "datatype": "INT64", "shape": [-1]}],
    }
    (folder / "callable.json").write_text(json.dumps(described))
    return folder


def test_a_python_function(tmp_path: Path) -> None:
    code = """
import numpy as np

def load(folder):
    assert (folder / "callable.json").exists()
    return lambda tensors: {"length": [len(text) for text in tensors["text"]]}
"""
    write_callable(tmp_path, code)
    (tmp_path / "examples.json").write_text(
        json.dumps({"inputs": {"text": ["a", "bcd"]}, "outputs": {"length": [1, 3]}})
    )
    runtime = Runtime.load(tmp_path, version="lengths/1")
    assert runtime.infer({"text": np.array([b"four"], object)})["length"].tolist() == [4]
    assert (runtime.n_features, repr(runtime)) == (0, "Runtime('lengths/1', 1 inputs)")
    (tmp_path / "examples.json").write_text(json.dumps({"inputs": {"text": ["a"]}, "outputs": {"length": [2]}}))
    with pytest.raises(ServiceError, match="example 0 scores 1, must be 2"):
        Runtime.load(tmp_path)


@pytest.mark.parametrize(
    ("code", "factory", "message"),
    [
        ("", "model.py:load", "has no attribute 'load'"),
        ("raise RuntimeError('no')", "model.py:load", "no"),
        ("def load(folder):\n    1 / 0", "model.py:load", "ZeroDivisionError"),
        ("", "nowhere_at_all:load", "nowhere_at_all"),
        ("def load(folder): return lambda t: {}", "model.py:load", "no output 'length'"),
        ("def load(folder): return lambda t: {'length': [[1]]}", "model.py:load", "must be \\(-1,\\)"),
        ("def load(folder): return lambda t: {'length': [0.5]}", "model.py:load", "Cannot cast"),
    ],
)
def test_functions_that_cannot_be_used(tmp_path: Path, code: str, factory: str, message: str) -> None:
    with pytest.raises(ServiceError, match=message):
        Runtime.load(write_callable(tmp_path, code, factory)).infer({"text": np.array([b"a"], object)})


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"vitok\[serve\]"):
        Runtime.load(folder)


def test_several_threads_score_alike(folder: Path) -> None:
    runtime = Runtime.load(folder)
    expected = [runtime.score(X[: n + 1]) for n in range(40)]
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(n for n, scores in enumerate(expected) if not np.array_equal(runtime.score(X[: n + 1]), scores))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert runtime.cost.batches == 200


def test_the_set_loads_by_need_and_once(folder: Path) -> None:
    asked: list[str] = []
    inside = threading.Barrier(4)

    def find(version: str) -> Path:
        asked.append(version)
        return folder

    runtimes = RuntimeSet(find)
    got: list[Runtime] = []

    def work() -> None:
        inside.wait()
        got.append(runtimes.get("fraud/1"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == ["fraud/1"]
    assert {id(runtime) for runtime in got} == {id(runtimes.get("fraud/1"))}
    assert runtimes.versions == ("fraud/1",)


def test_a_released_version_lives_as_long_as_it_is_used(folder: Path) -> None:
    runtimes = RuntimeSet(lambda _: folder)
    old = runtimes.get("fraud/1")
    runtimes.get("fraud/2")
    assert runtimes.retain(["fraud/2", "fraud/3"]) == ("fraud/1",)
    assert runtimes.versions == ("fraud/2",)
    assert len(old.score(X)) == 600
    seen = weakref.ref(old)
    del old
    gc.collect()
    assert seen() is None
    assert runtimes.get("fraud/1").version == "fraud/1"


def test_a_version_that_does_not_load_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    folders = {"fraud/1": folder, "fraud/2": tmp_path / "nowhere"}
    runtimes = RuntimeSet(folders.__getitem__)
    runtimes.get("fraud/1")
    with pytest.raises(NotFound):
        runtimes.get("fraud/2")
    assert runtimes.versions == ("fraud/1",)
    folders["fraud/2"] = folder
    assert runtimes.get("fraud/2").version == "fraud/2"
