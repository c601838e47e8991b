"""What runs a model: ONNX Runtime, our own tree kernel, or a Python function, all taking and giving named tensors."""

import importlib
import importlib.util
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitok.errors import MissingExtra, NotFound, ServiceError
from vitok.serving.tensors import DATATYPES, TensorSpec

if TYPE_CHECKING:
    from vitok.models.forest import Forest

_LOG = logging.getLogger("vitok.serving")

FOREST = "model.forest"
ONNX = "model.onnx"
CALLABLE = "callable.json"
FILES = (FOREST, ONNX, CALLABLE)

Tensors = Mapping[str, np.ndarray]

# The first that is there runs the model, the others take what it cannot.
_PROCESSOR = "CPUExecutionProvider"
_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", _PROCESSOR)
_GPU = frozenset(_PROVIDERS) - {_PROCESSOR}
_GIVEN_UP = 3
_ONNX_TYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


class Runner(Protocol):
    """Runs one model.

    Attributes:
        inputs: What it takes, each by name.
        outputs: What it gives.
        platform: What it is made of, in the words of the protocol's metadata, such as `"onnx_onnxruntime"`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs the model on inputs of the right names, types and shapes; may be called by several threads."""
        ...


class OnnxRunner:
    """Runs an ONNX model with ONNX Runtime, on a GPU where its provider is installed, else on the processor.

    A provider that is installed and cannot be started, for want of its driver or library, is passed over, and the log
    `vitok.serving` says why. Where a run fails on the GPU, the processor runs it; after three such runs in a row the
    GPU is not asked any more. What fails on the processor as well is the input's fault or the model's.

    Args:
        path: The model.
        name: What errors call it.
        threads: Threads of one run. Batches are small, and threads that spin take the core from the event loop.

    Raises:
        ServiceError: If it cannot be loaded, or has inputs or outputs that are no tensors.
        MissingExtra: If the extra `serve` is not installed.
    """

    def __init__(self, path: Path, *, name: str = "", threads: int = 1) -> None:
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError:
            raise MissingExtra("serve", "running models") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        refusals = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel)
        others = (state.NoSuchFile, state.NotImplemented, state.RuntimeException, state.EPFail, ValueError)
        self._refusals: tuple[type[Exception], ...] = (*refusals, *others)
        self._where = where = name or path.parent.name
        self._lock = threading.Lock()
        self._spare: Any = None
        self._failed = 0

        def opened(providers: Sequence[str]) -> Any:
            # Its own way back prints to standard output, and says nothing where a provider merely lacks.
            return onnxruntime.InferenceSession(str(path), options, providers=list(providers), enable_fallback=0)

        self._opened = opened
        available = onnxruntime.get_available_providers()
        try:
            self._session = self._started([provider for provider in _PROVIDERS if provider in available])
        except self._refusals as error:
            raise ServiceError(f"{where}: {path.name} cannot be run: {error}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        strange = [f"{item.name}: {item.type}" for item in inputs if item.type not in _ONNX_TYPES]
        if strange:
            raise ServiceError(f"{where}: inputs must be tensors, got {', '.join(strange)}")
        self.inputs = tuple(_spec(item) for item in inputs)
        self.outputs = tuple(_spec(item) for item in outputs if item.type in _ONNX_TYPES)
        if not self.outputs:
            kinds = ", ".join(f"{item.name}: {item.type}" for item in outputs)
            raise ServiceError(f"{where}: no output is a tensor ({kinds}); export it with zipmap=False")
        self.platform = "onnx_onnxruntime"
        self._names = [item.name for item in self.outputs]
        self._texts = {item.name for item in self.inputs if item.datatype == "BYTES"}

    @property
    def providers(self) -> tuple[str, ...]:
        """What runs it."""
        return tuple(self._session.get_providers())

    def _started(self, wanted: Sequence[str]) -> Any:
        # The best that can be started: a model that none can run is told of by the error of the processor.
        failed: list[str] = []
        while True:
            try:
                session = self._opened(wanted)
                break
            except self._refusals as error:
                if len(wanted) < 2:
                    raise
                failed.append(f"{wanted[0]}: {error}")
                wanted = wanted[1:]
        here = session.get_providers()
        failed += [f"{provider}: its driver or library is missing" for provider in wanted if provider not in here]
        if failed:
            _LOG.warning("%s runs on %s; not started: %s", self._where, here[0], "; ".join(failed))
        return session

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs the model."""
        fed = dict(inputs)
        for name in self._texts:
            texts = np.empty(fed[name].size, object)
            texts[:] = [item.decode("utf-8", "replace") for item in fed[name].flat]
            fed[name] = texts.reshape(fed[name].shape)
        session = self._session
        try:
            found = session.run(self._names, fed)
        except self._refusals as error:
            if session.get_providers()[0] == _PROCESSOR:
                raise
            found = self._run_instead(fed, error)
        else:
            self._failed = 0
        return dict(zip(self._names, found, strict=True))

    def _run_instead(self, fed: Tensors, error: Exception) -> Sequence[np.ndarray]:
        with self._lock:
            if self._spare is None:
                self._spare = self._opened([_PROCESSOR])
        found: Sequence[np.ndarray] = self._spare.run(self._names, fed)
        with self._lock:
            self._failed += 1
            if self._failed >= _GIVEN_UP:
                self._session = self._spare
            what = "it runs on the processor from now on" if self._failed >= _GIVEN_UP else "the processor ran it"
        _LOG.warning("%s failed on the GPU, %s: %s", self._where, what, error)
        return found


class ForestRunner:
    """Runs trees with the flat-array kernel of `vitok.models.forest`, exact to the library that trained them.

    Args:
        forest: The trees.
    """

    def __init__(self, forest: "Forest") -> None:
        datatype = "FP32" if forest.input_dtype == np.float32 else "FP64"
        self._forest = forest
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("input", datatype, (-1, forest.n_features)),)
        shape = (-1,) if forest.n_outputs == 1 else (-1, forest.n_outputs)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("output", "FP64", shape),)
        self.platform = "vitok_forest"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Scores the rows."""
        return {"output": self._forest.predict(inputs["input"])}


class CallableRunner:
    """Runs a Python function from a mapping of arrays to a mapping of arrays.

    Args:
        function: The function; several threads may call it at once.
        inputs: What it takes.
        outputs: What it gives.

    Example:
        >>> rows = TensorSpec("x", "FP64", (-1, 2))
        >>> runner = CallableRunner(lambda t: {"y": t["x"].sum(axis=1)}, [rows], [TensorSpec("y", "FP64", (-1,))])
        >>> runner.run({"x": np.array([[1.0, 2.0]])})
        {'y': array([3.])}
    """

    def __init__(
        self,
        function: Callable[[Tensors], Mapping[str, Any]],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
    ) -> None:
        self._function = function
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.platform = "python"

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Calls the function and checks what it gives.

        Raises:
            ServiceError: If an output lacks or has another type or shape than promised.
        """
        found = self._function(inputs)
        out: dict[str, np.ndarray] = {}
        for spec in self.outputs:
            if spec.name not in found:
                raise ServiceError(f"the function gave {sorted(found)}, and no output {spec.name!r}")
            value = np.asarray(found[spec.name])
            if spec.datatype != "BYTES":
                value = value.astype(spec.dtype, casting="same_kind", copy=False)
            if not spec.fits(value.shape):
                raise ServiceError(f"output {spec.name}: got the shape {value.shape}, must be {spec.shape}")
            out[spec.name] = value
        return out


def open_runner(path: Path, *, name: str = "") -> Runner:
    """Opens the model that a file of a package holds.

    Args:
        path: A file named as one of `FILES`. `callable.json` holds `factory`, `"module:name"` of an installed module
            or `"model.py:name"` of a file beside it, which is called with the package's folder and returns the
            function; and `inputs` and `outputs` as lists of name, datatype and shape.
        name: What errors call the model.

    Raises:
        NotFound: If the file is none of them.
        ServiceError: If it cannot be run.
    """
    if path.name == ONNX:
        runner = OnnxRunner(path, name=name)
        if _GPU.isdisjoint(runner.providers):
            return runner
        from vitok.serving.costs import GpuRunner

        return GpuRunner(runner, on_gpu=lambda: not _GPU.isdisjoint(runner.providers))
    if path.name == FOREST:
        from vitok.models.forest import Forest

        return ForestRunner(Forest.load(path))
    if path.name == CALLABLE:
        return _callable(path, name or path.parent.name)
    raise NotFound("kind of model", path.name, FILES)


def _callable(path: Path, where: str) -> CallableRunner:
    try:
        described = json.loads(path.read_bytes())
        module, _, attribute = described["factory"].partition(":")
        specs = {
            side: [TensorSpec(item["name"], item["datatype"], tuple(item["shape"])) for item in described[side]]
            for side in ("inputs", "outputs")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ServiceError(f"{where}: {path.name} cannot be read: {error!r}") from None
    try:
        factory = getattr(_module(path.parent, module), attribute)
        function = factory(path.parent)
    except Exception as error:  # whatever the model's own code raises
        raise ServiceError(f"{where}: {described['factory']} cannot be used: {error!r}") from error
    return CallableRunner(function, specs["inputs"], specs["outputs"])


def _module(folder: Path, name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    # A name of its own for each file, so that two versions do not share one module.
    path = folder / Path(name).name
    spec = importlib.util.spec_from_file_location(f"vitok_model_{abs(hash(str(path.resolve()))):x}", path)
    if spec is None or spec.loader is None:
        raise ServiceError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _spec(item: Any) -> TensorSpec:
    shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in item.shape or ())
    return TensorSpec(item.name, _ONNX_TYPES[item.type], shape)


def zeros(specs: Sequence[TensorSpec], n: int) -> dict[str, np.ndarray]:
    """Returns inputs of nothing, n rows where rows are counted and one of every other length that is open."""
    out = {}
    for spec in specs:
        shape = [n if i == 0 and spec.batched else max(length, 1) for i, length in enumerate(spec.shape)]
        out[spec.name] = np.zeros(shape, DATATYPES[spec.datatype])
        if spec.datatype == "BYTES":
            out[spec.name][...] = b""
    return out
