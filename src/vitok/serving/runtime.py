"""Model versions at work: ONNX Runtime sessions that are checked when loaded, and the set of those in use."""

import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, MissingExtra, NotFound, ServiceError

MODEL = "model.onnx"
EXAMPLES = "examples.json"
WARM_UP_ROWS = (1, 2, 64, 256)


class PackageFiles(Protocol):
    """The part of a model package (`registry.Package`) that a runtime reads."""

    def path(self, name: str) -> Path:
        """Returns the path of one of its files; raises `NotFound` if there is no such file."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What scoring has cost since the runtime was loaded; warm-up is not counted.

    Attributes:
        batches: How many batches were scored.
        rows: How many rows they held.
        cpu_seconds: Processor seconds that they took.

    Example:
        >>> print(Cost(batches=10, rows=640, cpu_seconds=0.0032))
        640 rows in 10 batches, 5 us a row
    """

    batches: int
    rows: int
    cpu_seconds: float

    @property
    def seconds_per_row(self) -> float:
        """Processor seconds a row; 0 where none was scored."""
        return self.cpu_seconds / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        return f"{self.rows:,} rows in {self.batches:,} batches, {1e6 * self.seconds_per_row:.3g} us a row"


class Runtime:
    """One model version, ready to score; may be used by several threads at once.

    Make it with `Runtime.load`.

    Attributes:
        version: The version that it was loaded as, such as `"fraud/3"`.
        n_features: How many columns a row has.
    """

    def __init__(self, session: Any, *, version: str, input_name: str, output_name: str, n_features: int) -> None:
        self.version = version
        self.n_features = n_features
        self._session = session
        self._input = input_name
        self._outputs = [output_name]
        self._lock = threading.Lock()
        self._batches = self._rows = self._ns = 0

    @classmethod
    def load(cls, package: Path | str | PackageFiles, *, version: str = "", tolerance: float = 1e-5) -> "Runtime":
        """Loads `model.onnx`, checks it on the package's own examples, and warms it up.

        `examples.json`, where there is one, holds `inputs` (rows, null for a missing value) and `outputs` (the
        probability of class 1 that the model gave for each when it was made).

        Args:
            package: A folder, or a model package with `path(name)`.
            version: Name of the version; by default the folder's.
            tolerance: Largest difference from the recorded outputs.

        Raises:
            NotFound: If there is no model.
            ServiceError: If the file is no usable model, or it does not reproduce its examples.
            MissingExtra: If the extra `serve` is not installed.
        """
        files = _Folder(Path(package)) if isinstance(package, (str, Path)) else package
        runtime = cls._open(files.path(MODEL), version or files.path(MODEL).parent.name)
        runtime.check(files, tolerance=tolerance)
        return runtime

    @classmethod
    def _open(cls, model: Path, version: str) -> "Runtime":
        try:
            import onnxruntime
            from onnxruntime.capi import onnxruntime_pybind11_state as state
        except ImportError:
            raise MissingExtra("serve", "running models") from None
        options = onnxruntime.SessionOptions()
        # One thread a session: batches are small, and threads that spin take the core from the event loop.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        refusals = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel)
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except (*refusals, state.NoSuchFile, state.NotImplemented, state.RuntimeException) as error:
            raise ServiceError(f"{version}: {model.name} cannot be run: {error}") from None
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
            raise ServiceError(f"{version}: the model must have one input, float32 of shape (n, features)")
        n_features = inputs[0].shape[1]
        if not isinstance(n_features, int) or n_features < 1:
            raise ServiceError(f"{version}: the model's input must state its number of features; export it with it")
        scores = [out for out in outputs if out.type in ("tensor(float)", "tensor(double)")]
        if not scores:
            kinds = ", ".join(f"{out.name}: {out.type}" for out in outputs)
            raise ServiceError(f"{version}: no output is a tensor of scores ({kinds}); export it with zipmap=False")
        return cls(
            session, version=version, input_name=inputs[0].name, output_name=scores[-1].name, n_features=n_features
        )

    def check(self, package: PackageFiles, *, tolerance: float = 1e-5) -> None:
        """Scores the package's examples, if it has any, and rows of zeros, so that the first request is not the first.

        Raises:
            ServiceError: If an example cannot be read, or scores something else than recorded.
        """
        try:
            examples = package.path(EXAMPLES)
        except NotFound:
            pass
        else:
            self._verify(examples, tolerance)
        for n_rows in WARM_UP_ROWS:
            self._run(np.zeros((n_rows, self.n_features), np.float32))

    def _verify(self, examples: Path, tolerance: float) -> None:
        try:
            recorded = json.loads(examples.read_bytes())
            inputs, outputs = recorded["inputs"], recorded["outputs"]
            X = np.array(inputs, dtype=np.float32)
            expected = np.array(outputs, dtype=np.float64)
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"{self.version}: {examples.name} cannot be read: {error!r}") from None
        if len(X) == 0 and len(expected) == 0:
            return
        if X.ndim != 2 or X.shape[1] != self.n_features or expected.shape != (len(X),):
            shapes = f"{X.shape} and {expected.shape}"
            raise ServiceError(f"{self.version}: {examples.name} has the shapes {shapes}, not those of the model")
        off = np.abs(self._run(X) - expected)
        if not (off <= tolerance).all():
            row = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
            got = float(self._run(X)[row])
            raise ServiceError(
                f"{self.version}: example {row} scores {got:.9g}, must be {expected[row]:.9g} within {tolerance:g}. "
                "The model is not the one that was registered, or this machine computes differently"
            )

    def score(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores rows.

        Args:
            X: Shape (n, n_features), float32, any n; NaN where a value is missing.

        Returns:
            Shape (n,): the probability of class 1, not calibrated.

        Raises:
            InvalidInput: If type or shape are others.
            ServiceError: If the engine fails, for instance for want of memory.
        """
        if X.dtype != np.float32:
            raise InvalidInput("X", str(X.dtype), "be float32", "Convert once, where the rows are made")
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise InvalidInput("X", X.shape, f"have the shape (n, {self.n_features})")
        if len(X) == 0:
            return np.empty(0)
        started = time.thread_time_ns()
        try:
            scores = self._run(X)
        except Exception as error:  # the engine's own exceptions share no other base class
            raise ServiceError(f"{self.version}: the model failed on {len(X)} rows: {error}") from error
        spent = time.thread_time_ns() - started
        with self._lock:
            self._batches += 1
            self._rows += len(X)
            self._ns += spent
        return scores

    def _run(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = self._session.run(self._outputs, {self._input: X})[0]
        if scores.ndim == 2:
            scores = scores[:, -1]
        return np.asarray(scores, dtype=np.float64)

    @property
    def cost(self) -> Cost:
        """What scoring has cost so far."""
        with self._lock:
            return Cost(batches=self._batches, rows=self._rows, cpu_seconds=self._ns / 1e9)

    def __repr__(self) -> str:
        return f"Runtime({self.version!r}, {self.n_features} features)"


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise NotFound("file of the package", str(path), sorted(p.name for p in self._folder.glob("*")))
        return path


class RuntimeSet:
    """The versions in use, each loaded once when it is first asked for.

    Whoever has got a runtime keeps it: a version that is released here answers the batches it is in and is freed
    after the last. Loading takes long for an event loop; load a version from a thread before the route names it.

    Args:
        find: Gives the package of a version: a folder, or a model package.

    Example:
        >>> runtimes = RuntimeSet(lambda version: f"packages/{version}")
        >>> runtimes.versions
        ()
    """

    def __init__(self, find: Callable[[str], Path | str | PackageFiles]) -> None:
        self._find = find
        self._loaded: dict[str, Runtime] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, version: str) -> Runtime:
        """Returns a version; loads it where it is not loaded. Two that ask at once share one load.

        Raises:
            VitokError: As `find` and `Runtime.load`; the other versions are not touched.
        """
        runtime = self._loaded.get(version)
        if runtime is not None:
            return runtime
        with self._lock:
            lock = self._locks.setdefault(version, threading.Lock())
        with lock:
            runtime = self._loaded.get(version)
            if runtime is None:
                runtime = Runtime.load(self._find(version), version=version)
                self._loaded[version] = runtime
            return runtime

    def retain(self, versions: Collection[str]) -> tuple[str, ...]:
        """Releases all but the named versions; returns those released."""
        with self._lock:
            gone = tuple(sorted(set(self._loaded) - set(versions)))
            for version in gone:
                self._loaded.pop(version, None)
                self._locks.pop(version, None)
        return gone

    @property
    def versions(self) -> tuple[str, ...]:
        """The loaded versions, in order of name."""
        with self._lock:
            return tuple(sorted(self._loaded))
