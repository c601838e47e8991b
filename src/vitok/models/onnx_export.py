"""Writes models as ONNX with one input `input` of shape (n, features), or one input of shape (n, 1) for each column."""

import importlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, MissingExtra
from vitok.models.boosting import BoostedTrees
from vitok.models.convert_sources import Source, import_torch

INPUT = "input"
OUTPUT = "output"
OPSET = 17
# The newest sets of operators that the exporters of trees know.
_TREE_OPSET = 15
_SETS = {"": 18, "ai.onnx.ml": 3}
_Rows = NDArray[Any] | Mapping[str, NDArray[Any]]


def export(model: Any, source: Source, rows: _Rows, *, dtype: np.dtype[Any], link: str) -> bytes:
    """Writes a model as ONNX.

    Args:
        model: The model.
        source: What `read_source` found it to be.
        rows: Rows of the kind that it will take: a matrix, or columns of shape (n, 1) by name.
        dtype: float32 or float64, which floating-point inputs have.
        link: What follows a torch module.

    Raises:
        InvalidInput: If the model holds what ONNX or its exporter cannot express.
        MissingExtra: If the exporter is not installed.
    """
    if source.library == "torch":
        return _torch(model, rows, dtype, link)
    try:
        onnxmltools = importlib.import_module("onnxmltools")
        skl2onnx = importlib.import_module("skl2onnx")
    except ImportError:
        raise MissingExtra("models", "writing ONNX") from None
    if source.library == "sklearn":
        return _sklearn(skl2onnx, model, rows, dtype)
    if isinstance(rows, Mapping) or dtype != np.float32:
        raise InvalidInput("dtype", str(dtype), f"be float32 with one matrix for {source.library}'s trees in ONNX")
    if source.library == "lightgbm":
        booster = model.booster() if isinstance(model, BoostedTrees) else getattr(model, "booster_", model)
        names = tuple(booster.feature_name())
        best = booster.best_iteration if booster.best_iteration > 0 else booster.num_trees()
        return _renamed(BoostedTrees(booster.model_to_string(num_iteration=best), names, best).to_onnx())
    if source.library == "xgboost":
        kinds = importlib.import_module("onnxmltools.convert.common.data_types")
        inputs = [(INPUT, kinds.FloatTensorType([None, rows.shape[1]]))]
        return _attempt(
            lambda: onnxmltools.convert_xgboost(model, initial_types=inputs, target_opset=_TREE_OPSET), source.kind
        )
    raise InvalidInput("engine", "onnx", f"be 'forest' for a model of {source.library}")


def _attempt(write: Any, kind: str) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bytes(write().SerializeToString())
    except Exception as error:  # each converter raises what it likes
        reason = " ".join(str(error).split())[:300]
        raise InvalidInput("model", kind, f"be one that can be written as ONNX: {reason}") from error


def _sklearn(skl2onnx: Any, model: Any, rows: _Rows, dtype: np.dtype[Any]) -> bytes:
    kinds = importlib.import_module("skl2onnx.common.data_types")
    floats = kinds.FloatTensorType if dtype == np.float32 else kinds.DoubleTensorType
    if isinstance(rows, Mapping):
        known = {"f": floats, "i": kinds.Int64TensorType, "O": kinds.StringTensorType}
        types = [(name, known[column.dtype.kind]([None, 1])) for name, column in rows.items()]
    else:
        types = [(INPUT, floats([None, rows.shape[1]]))]
    for library in ("lightgbm", "xgboost"):
        _register(skl2onnx, model, library)
    options = {id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None
    return _attempt(
        lambda: skl2onnx.convert_sklearn(model, initial_types=types, options=options, target_opset=_SETS),
        type(model).__name__,
    )


def _register(skl2onnx: Any, model: Any, library: str) -> None:
    """Tells skl2onnx how the trees of a library at the end of a pipeline are written."""
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    if type(last).__module__.split(".")[0] != library:
        return
    shapes = importlib.import_module("skl2onnx.common.shape_calculator")
    title = {"lightgbm": "LightGbm", "xgboost": "XGBoost"}[library]
    place = {"lightgbm": "LightGbm", "xgboost": "XGBoost"}[library]
    writer = importlib.import_module(f"onnxmltools.convert.{library}.operator_converters.{place}")
    classifier = hasattr(last, "predict_proba")
    shape = shapes.calculate_linear_classifier_output_shapes if classifier else None
    skl2onnx.update_registered_converter(
        type(last),
        f"{title}{type(last).__name__}",
        shape or shapes.calculate_linear_regressor_output_shapes,
        getattr(writer, f"convert_{library}"),
        options={"nocl": [True, False], "zipmap": [True, False, "columns"]} if classifier else None,
    )


def _renamed(content: bytes) -> bytes:
    onnx = importlib.import_module("onnx")
    graph = onnx.load_from_string(content)
    old = graph.graph.input[0].name
    graph.graph.input[0].name = INPUT
    for node in graph.graph.node:
        names = [INPUT if name == old else name for name in node.input]
        del node.input[:]
        node.input.extend(names)
    return bytes(graph.SerializeToString())


def _torch(module: Any, rows: _Rows, dtype: np.dtype[Any], link: str) -> bytes:
    torch = import_torch()
    if isinstance(rows, Mapping):
        raise InvalidInput("examples", sorted(rows), "be one matrix for a torch module")
    kind = torch.float32 if dtype == np.float32 else torch.float64
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.dtype != kind:
        raise InvalidInput("dtype", str(dtype), f"be the module's own, {parameter.dtype}")
    follow = {"identity": [], "sigmoid": [torch.nn.Sigmoid()], "softmax": [torch.nn.Softmax(dim=-1)]}[link]
    was = module.training
    whole = torch.nn.Sequential(module, *follow).eval()
    content = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Two rows: a single one may be taken for a constant. The newer exporter needs onnxscript, a package more.
            torch.onnx.export(
                whole,
                (torch.as_tensor(np.repeat(rows[:1], 2, axis=0), dtype=kind),),
                content,
                dynamo=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "n"}, OUTPUT: {0: "n"}},
                opset_version=OPSET,
            )
    except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())[:300]
        kind_name = type(module).__name__
        raise InvalidInput("model", kind_name, f"be a module that can be written as ONNX: {reason}") from error
    finally:
        module.train(was)
    return content.getvalue()
