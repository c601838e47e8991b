"""Networks of dense layers whose cost dominates the request: as ONNX, and as a function of torch; weights at random."""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 30
TWO_OF_1024 = (WIDTH, 1024, 1024, 1)
HEAD = '{"inputs":[{"name":"x","shape":[1,30],"datatype":"FP32","data":[$ROW]}]}'
LIBRARIES = Path(__file__).resolve().parents[2] / ".venv" / "libraries"

_TORCH = """
import itertools
import torch

def network(sizes):
    parts = []
    for wide, narrow in itertools.pairwise(sizes):
        parts += [torch.nn.Linear(wide, narrow), torch.nn.ReLU()]
    return torch.nn.Sequential(*parts[:-1], torch.nn.Sigmoid()).eval()

def load(folder):
    torch.set_num_threads(1)
    layers = network({sizes})
    layers.load_state_dict(torch.load(folder / "weights.pt"))

    def run(tensors):
        with torch.inference_mode():
            return {{"score": layers(torch.from_numpy(tensors["x"])).numpy()}}

    return run
"""


def save(folder: Path, sizes: Sequence[int] = TWO_OF_1024, *, tied: bool = False) -> None:
    """Writes a network as `model.onnx` of a new folder; torch is not needed.

    Args:
        folder: The folder.
        sizes: Width of each layer.
        tied: Whether layers of one shape share their weights, so that much work needs little memory.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    names: set[str] = set()
    last = len(sizes) - 2
    for i, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
        name = f"w{wide}x{narrow}" if tied else f"w{i}"
        if name not in names:
            # The root of 2 makes up for the half that a ReLU takes.
            matrix = rng.normal(size=(wide, narrow)).astype(np.float32) * np.float32(np.sqrt(2 / wide))
            weights.append(numpy_helper.from_array(matrix, name))
            names.add(name)
        nodes.append(helper.make_node("MatMul", [at, name], [f"m{i}"]))
        at = "score" if i == last else f"h{i}"
        nodes.append(helper.make_node("Sigmoid" if i == last else "Relu", [f"m{i}"], [at]))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])]
        for name, width in (("x", sizes[0]), ("score", sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "mlp", *ends, weights)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "model.onnx")


def save_torch(exported: Path, function: Path, sizes: Sequence[int] = TWO_OF_1024) -> str:
    """Writes one network of torch twice, as `model.onnx` that torch exports and as a Python function that calls torch.

    Both have examples with the scores of torch itself, which a server checks before it answers.

    Args:
        exported: New folder of the first.
        function: New folder of the second.
        sizes: Width of each layer.

    Returns:
        The version of torch.

    Raises:
        RuntimeError: If torch is neither in the environment nor among the libraries of `make test-libraries`.
    """
    if LIBRARIES.is_dir():
        # Behind ours: what is there twice comes from our environment.
        sys.path.append(str(LIBRARIES))
    try:
        import torch
    except ImportError:
        raise RuntimeError("torch is missing: make torch, or make test-libraries") from None
    import warnings

    torch.manual_seed(0)
    code = _TORCH.format(sizes=tuple(sizes))
    made: dict[str, Any] = {}
    exec(code, made)
    network = made["network"](sizes)
    rows = torch.from_numpy(np.random.default_rng(1).normal(size=(32, sizes[0])).astype(np.float32))
    with torch.inference_mode():
        scores = network(rows).numpy()
    examples = json.dumps({"inputs": rows.tolist(), "outputs": scores[:, 0].astype(float).tolist()})
    for folder in (exported, function):
        folder.mkdir(parents=True)
        (folder / "examples.json").write_text(examples, encoding="utf-8")
    names = {"input_names": ["x"], "output_names": ["score"], "dynamic_axes": {"x": {0: "n"}, "score": {0: "n"}}}
    with warnings.catch_warnings():
        # The old exporter needs no further package, and says that there is a newer one.
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (rows,), str(exported / "model.onnx"), dynamo=False, opset_version=17, **names)
    torch.save(network.state_dict(), function / "weights.pt")
    (function / "model.py").write_text(code, encoding="utf-8")
    described = {
        "factory": "model.py:load",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, sizes[0]]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, sizes[-1]]}],
    }
    (function / "callable.json").write_text(json.dumps(described), encoding="utf-8")
    return str(torch.__version__)
