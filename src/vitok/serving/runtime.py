"""Model versions at work: each is checked on its own examples when it is loaded; and the set of those in use."""

import json
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, NotFound, ServiceError
from vitok.serving.runners import FILES, Runner, Tensors, open_runner, zeros
from vitok.serving.tensors import TensorSpec, from_values

EXAMPLES = "examples.json"
_TIMED_RUNS = 5
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
    """One model version, ready to answer; may be used by several threads at once.

    Make it with `Runtime.load`.

    Args:
        runner: What runs the model.
        version: The version that it was loaded as, such as `"fraud/3"`.
        size: Bytes of its file, for whoever counts memory.

    Attributes:
        inputs: What it takes.
        outputs: What it gives.
        batched: Whether rows of several requests may go through it together.
        n_features: How many columns a row has, where the model takes one matrix of rows; else 0.
        dtype: Type of that matrix.
        seconds_per_run: How long a run of one row took when the model was warm; 0 before it was loaded.
    """

    def __init__(self, runner: Runner, *, version: str, size: int = 0) -> None:
        self.version = version
        self.inputs = runner.inputs
        self.outputs = runner.outputs
        self.platform = runner.platform
        self.size = size
        self._runner = runner
        self._lock = threading.Lock()
        self._batches = self._rows = self._ns = 0
        only = self.inputs[0] if len(self.inputs) == 1 else None
        scores = [item for item in self.outputs if item.datatype in ("FP32", "FP64")]
        self.n_features = 0
        self.dtype = np.dtype(np.float64)
        if only is not None and only.datatype in ("FP32", "FP64") and len(only.shape) == 2 and only.shape[1] > 0:
            self.n_features = only.shape[1]
            self.dtype = only.dtype
        self._score = scores[-1].name if scores else ""
        self.batched = all(spec.batched for spec in (*self.inputs, *self.outputs))
        self.seconds_per_run = 0.0

    @classmethod
    def load(cls, package: Path | str | PackageFiles, *, version: str = "", tolerance: float = 1e-5) -> "Runtime":
        """Loads the model of a package, checks it on the package's own examples, and warms it up.

        The model is `model.forest`, `model.onnx` or `callable.json`, the first that is there. `examples.json`, where
        there is one, holds `inputs` (rows, null for a missing value) and `outputs` (the score that the model gave for
        each when it was made); for a model of several inputs or outputs both are mappings from name to values.

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
        path = _model_file(files)
        version = version or path.parent.name
        runtime = cls(open_runner(path, name=version), version=version, size=path.stat().st_size)
        runtime.check(files, tolerance=tolerance)
        return runtime

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
        batched = all(spec.batched for spec in self.inputs)
        for n_rows in WARM_UP_ROWS if batched else (1,):
            outputs = self._run(zeros(self.inputs, n_rows))
            batched = batched and all(tensor.shape[:1] == (n_rows,) for tensor in outputs.values())
        started = time.perf_counter()
        for _ in range(_TIMED_RUNS):
            self._run(zeros(self.inputs, 1))
        self.seconds_per_run = (time.perf_counter() - started) / _TIMED_RUNS
        # What the model says of its outputs may be nothing; what it gives is certain.
        self.batched = batched
        if batched:
            self.outputs = tuple(
                TensorSpec(spec.name, spec.datatype, (-1, *outputs[spec.name].shape[1:])) for spec in self.outputs
            )

    def _verify(self, examples: Path, tolerance: float) -> None:
        try:
            recorded = json.loads(examples.read_bytes())
            inputs, outputs = recorded["inputs"], recorded["outputs"]
            if not isinstance(inputs, dict):
                inputs = {self.inputs[0].name: inputs}
            if not isinstance(outputs, dict):
                outputs = {self._score: outputs}
            fed = {spec.name: _recorded(spec, inputs[spec.name]) for spec in self.inputs}
            expected = {name: np.array(values, dtype=np.float64) for name, values in outputs.items()}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ServiceError(f"{self.version}: {examples.name} cannot be read: {error!r}") from None
        if not any(len(values) for values in (*fed.values(), *expected.values())):
            return
        wrong = [spec.name for spec in self.inputs if not spec.fits(fed[spec.name].shape)]
        found = self._run(fed) if not wrong else {}
        for name, wanted in expected.items():
            got = self._flat(found[name]) if name in found and name == self._score else found.get(name)
            if got is None or got.shape != wanted.shape:
                shapes = " and ".join(str(values.shape) for values in (*fed.values(), wanted))
                raise ServiceError(f"{self.version}: {examples.name} has the shapes {shapes}, not those of the model")
            # A missing score is missing in both, and what is infinite is so in both.
            same = (got == wanted) | (np.isnan(got) & np.isnan(wanted))
            with np.errstate(invalid="ignore"):
                off = np.where(same, 0.0, np.abs(got - wanted))
            if not (off <= tolerance).all():
                row = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
                raise ServiceError(
                    f"{self.version}: example {row} scores {float(got.flat[row]):.9g}, must be "
                    f"{float(wanted.flat[row]):.9g} within {tolerance:g}. The model is not the one that was "
                    "registered, or this machine computes differently"
                )

    @property
    def takes_rows(self) -> bool:
        """Whether the model takes one matrix of rows, each by itself, as trees do."""
        return self.batched and self.n_features > 0

    def infer(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs the model.

        Args:
            inputs: Each input by name, of the type that it has in `inputs` and a shape that fits.

        Returns:
            Each output by name.

        Raises:
            InvalidInput: If an input lacks, is one too many, or has another type or shape.
            ServiceError: If the engine fails, for instance for want of memory.
        """
        # The one that comes with nearly every request, without asking what could be wrong.
        rows = inputs.get(self.inputs[0].name) if self.takes_rows and len(inputs) == 1 else None
        if rows is not None and rows.ndim == 2 and rows.shape[1] == self.n_features and rows.dtype == self.dtype:
            return self._counted(inputs, len(rows))
        n = 1
        for spec in self.inputs:
            tensor = inputs.get(spec.name)
            if tensor is None:
                raise InvalidInput("inputs", sorted(inputs), f"hold {spec.name!r}")
            if tensor.dtype != spec.dtype:
                raise InvalidInput(spec.name, str(tensor.dtype), f"be {spec.datatype}")
            if not spec.fits(tensor.shape):
                raise InvalidInput(spec.name, tensor.shape, f"have the shape {spec.shape}, where -1 is any length")
            n = len(tensor) if spec.batched else n
        if len(inputs) != len(self.inputs):
            raise InvalidInput("inputs", sorted(inputs), f"be only {[spec.name for spec in self.inputs]}")
        return self._counted(inputs, n)

    def score(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Scores rows, where the model takes one matrix.

        Args:
            X: Shape (n, n_features), any n, of the model's own `dtype`; NaN where a value is missing.

        Returns:
            Shape (n,): the model's last output of floating point, of several columns the last: for a classifier the
            probability of class 1, not calibrated.

        Raises:
            InvalidInput: If type or shape are others.
            ServiceError: If the engine fails, or the model is not of this kind.
        """
        if not self.n_features or not self._score:
            kinds = ", ".join(f"{spec.name}: {spec.datatype}{list(spec.shape)}" for spec in self.inputs)
            outputs = ", ".join(f"{spec.name}: {spec.datatype}" for spec in self.outputs)
            raise ServiceError(
                f"{self.version}: the model must take one matrix of floats with a stated number of features and give "
                f"a tensor of scores; it takes {kinds} and gives {outputs}"
            )
        if X.dtype != self.dtype:
            raise InvalidInput("X", str(X.dtype), f"be {self.dtype}", "Convert once, where the rows are made")
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise InvalidInput("X", X.shape, f"have the shape (n, {self.n_features})")
        if len(X) == 0:
            return np.empty(0)
        return self._flat(self._counted({self.inputs[0].name: X}, len(X))[self._score])

    def _counted(self, inputs: Tensors, n_rows: int) -> dict[str, np.ndarray]:
        started = time.thread_time_ns()
        outputs = self._run(inputs)
        spent = time.thread_time_ns() - started
        with self._lock:
            self._batches += 1
            self._rows += n_rows
            self._ns += spent
        return outputs

    def _run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        try:
            return self._runner.run(inputs)
        except Exception as error:  # the engine's own exceptions share no other base class
            shapes = ", ".join(f"{name} of shape {tensor.shape}" for name, tensor in inputs.items())
            raise ServiceError(f"{self.version}: the model failed on {shapes}: {error}") from error

    def scores_of(self, outputs: Tensors) -> NDArray[np.float64]:
        """Returns the scores among the outputs, as `score` does; NaN where the model gives none."""
        if not self._score:
            return np.full(len(next(iter(outputs.values()))), np.nan)
        return self._flat(outputs[self._score])

    @staticmethod
    def _flat(scores: np.ndarray) -> NDArray[np.float64]:
        if scores.ndim == 2:
            scores = scores[:, -1]
        return np.asarray(scores, dtype=np.float64)

    @property
    def cost(self) -> Cost:
        """What scoring has cost so far."""
        with self._lock:
            return Cost(batches=self._batches, rows=self._rows, cpu_seconds=self._ns / 1e9)

    def __repr__(self) -> str:
        taken = f"{self.n_features} features" if self.n_features else f"{len(self.inputs)} inputs"
        return f"Runtime({self.version!r}, {taken})"


def _model_file(files: PackageFiles) -> Path:
    missing: NotFound | None = None
    for name in FILES:
        try:
            return files.path(name)
        except NotFound as error:
            missing = error
    assert missing is not None  # noqa: S101
    raise NotFound("model of the package", " or ".join(FILES), missing.known)


def _recorded(spec: TensorSpec, values: Any) -> np.ndarray:
    if spec.datatype == "BYTES":
        return from_values(spec.name, spec.datatype, np.shape(values), values)
    kind = np.dtype(np.float64) if spec.dtype.kind == "f" else None
    return np.array(values, dtype=kind).astype(spec.dtype)


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
            # A lock that somebody holds belongs to a load under way.
            for version in [version for version, lock in self._locks.items() if version not in self._loaded]:
                if not self._locks[version].locked():
                    del self._locks[version]
        return gone

    @property
    def versions(self) -> tuple[str, ...]:
        """The loaded versions, in order of name."""
        with self._lock:
            return tuple(sorted(self._loaded))
