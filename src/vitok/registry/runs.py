"""One run in the MLflow store: what is logged is kept back and written in large batches, beside the program."""

import atexit
import collections
import contextlib
import json
import logging
import math
import os
import posixpath
import re
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from vitok.clock import Clock
from vitok.errors import InvalidInput, StoreError
from vitok.registry.gates import is_estimate
from vitok.registry.metric_store import MetricStore, Point
from vitok.registry.mlflow_client import store_errors

if TYPE_CHECKING:
    from vitok.stats.results import Estimate

# The limits of MLflow's log_batch: 1000 entities a call in all.
_METRICS_A_CALL, _PARAMS_A_CALL, _TAGS_A_CALL = 800, 100, 100
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000
_FLUSH_S = 1.0
# Kept back where the store cannot be written, about 200 MB; then logging says so.
_MOST_POINTS = 1_000_000
_POINTS_A_TRANSACTION = 50_000
_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[\w. :/-]{1,250}")


class TrackedRun:
    """A run in progress. Logging appends to memory; a thread of the run writes once in a flush window.

    After `kill -9` the points of the last window are lost, and the run stays "running". A store that cannot be
    written does not stop the program: it is tried again in each window, and what waits is kept, until `flush` or `end`
    says what is wrong, or a million points wait. Any thread of the process that began the run may log; a process that
    was forked from it may not, and does not end it either.

    Args:
        client: MLflow's client.
        run_id: The run's id.
        clock: Gives the times of metrics.
        points: Writes points; None to write them through MLflow's `log_batch`.
        flush_seconds: The flush window, in seconds, above 0.

    Raises:
        InvalidInput: If the window is not above 0.
    """

    def __init__(
        self,
        client: Any,
        run_id: str,
        *,
        clock: Clock,
        points: MetricStore | None = None,
        flush_seconds: float = _FLUSH_S,
    ) -> None:
        if not 0 < flush_seconds < math.inf:
            raise InvalidInput("flush_seconds", flush_seconds, "be above 0")
        self.run_id = run_id
        self._client = client
        self._clock = clock
        self._points = points
        self._flush_seconds = flush_seconds
        self._metrics: collections.deque[Point] = collections.deque()
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._known_params: dict[str, str] = {}
        self._known_names: set[str] = set()
        self._not_finite: dict[str, list[str]] = {}
        self._open = True
        self._pid = os.getpid()
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._write_beside, name=f"run {run_id}", daemon=True)
        self._writer.start()
        atexit.register(self._flush_at_exit)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keeps parameters; text longer than MLflow holds goes into an artifact, whose name stands in its place.

        Raises:
            InvalidInput: If a parameter was logged before with another value.
        """
        self._check_open()
        for name, value in params.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            if self._known_params.setdefault(_checked(name), text) != text:
                raise InvalidInput(f"params[{name}]", value, f"stay {self._known_params[name]!r}, as logged before")
            if len(text) > _PARAM_LENGTH:
                file = f"params/{name.replace('/', '_')}.txt"
                self.log_artifact(file, text)
                text = f"{len(text)} characters, see the artifact {file}"
            self._params[name] = text
        self._check_room()

    def log_metrics(self, metrics: "Mapping[str, float | Estimate]", *, step: int = 0) -> None:
        """Keeps metrics; an Estimate also keeps its ends, as `<name>_lower` and `<name>_upper`.

        NaN and infinities are not stored as numbers: the tag `not_finite.<name>` says where they came.
        """
        self._check_open()
        for name, value in metrics.items():
            if is_estimate(value):
                self._metric(name, value.value, step)
                self._metric(f"{name}_lower", value.lower, step)
                self._metric(f"{name}_upper", value.upper, step)
            else:
                self._metric(name, float(cast("float", value)), step)
        self._check_room()

    def log_history(self, name: str, values: Iterable[float], *, first_step: int = 0) -> None:
        """Keeps a metric's values over consecutive steps, such as the loss after each tree."""
        self._check_open()
        for step, value in enumerate(values, start=first_step):
            self._metric(name, float(value), step)
        self._check_room()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value replaces an earlier one.

        Raises:
            InvalidInput: If a value is longer than MLflow holds (8000 characters).
        """
        self._check_open()
        for name, value in tags.items():
            if len(str(value)) > _TAG_LENGTH:
                raise InvalidInput(f"tags[{name}]", value, f"have at most {_TAG_LENGTH} characters", "Log an artifact")
            self._tags[_checked(name)] = str(value)
        self._check_room()

    def log_artifact(self, name: str, content: bytes | str | Path | Mapping[str, Any] | list[Any]) -> None:
        """Writes a file of the run at once.

        Args:
            name: Path inside the run's artifacts, such as `"reports/card.md"`.
            content: Bytes, text, something that becomes JSON, or the path of a file to copy.
        """
        self._check_open()
        if posixpath.normpath(name) != name or name.startswith(("/", "..")):
            raise InvalidInput("artifact", name, "be a relative path without '..'")
        if isinstance(content, Path):
            content = content.read_bytes()
        elif isinstance(content, str):
            content = content.encode(errors="backslashreplace")
        elif not isinstance(content, bytes):
            try:
                content = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"artifact {name}", content, f"become JSON ({error})") from None
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary, store_errors(f"artifact {name} cannot be written"):
            path = Path(temporary) / file
            path.write_bytes(content)
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_folder(self, folder: Path, name: str) -> None:
        """Copies a folder, such as a model package, into the run's artifacts under a name."""
        self._check_open()
        with store_errors(f"folder {folder} cannot be copied"):
            self._client.log_artifacts(self.run_id, str(folder), name)

    def log_checkpoint(
        self, name: str, content: bytes | Path, *, step: int, metrics: "Mapping[str, float | Estimate] | None" = None
    ) -> None:
        """Writes a checkpoint of training under `checkpoints/<step>/<name>`, after what was logged before it.

        So a checkpoint that is there has its metrics there too, and training can go on from it after `kill -9`.

        Args:
            name: Name of the file.
            content: Its bytes, or the path of a file or folder to copy.
            step: Step of training, at least 0.
            metrics: What was measured at that step.

        Raises:
            InvalidInput: If the step is below 0 or the name leaves the folder.
            StoreError: If the store cannot be written.
        """
        if step < 0:
            raise InvalidInput("step", step, "be at least 0")
        if metrics:
            self.log_metrics(metrics, step=step)
        self.flush()
        place = f"checkpoints/{step:010d}"
        if isinstance(content, Path) and content.is_dir():
            self.log_folder(content, f"{place}/{_checked(name)}")
        else:
            self.log_artifact(f"{place}/{_checked(name)}", content)

    def flush(self) -> None:
        """Writes everything that was kept back.

        Raises:
            StoreError: If the store cannot be written; what was not written is kept for the next time.
        """
        self._check_process()
        with self._writing:
            self._write()

    def _write(self) -> None:
        """Writes what is there now; what fails is put back, in its order."""
        from mlflow.entities import Param, RunTag

        for name, seen in list(self._not_finite.items()):
            more = f" and {len(seen) - 20} more" if len(seen) > 20 else ""
            self._tags[f"not_finite.{name}"[:250]] = "; ".join(seen[:20]) + more
        with store_errors(f"run {self.run_id} cannot be written"):
            while self._params or self._tags:
                params = list(self._params.items())[:_PARAMS_A_CALL]
                tags = list(self._tags.items())[:_TAGS_A_CALL]
                self._client.log_batch(
                    self.run_id, [], [Param(name, value) for name, value in params], [RunTag(*tag) for tag in tags]
                )
                for name, _ in params:
                    del self._params[name]
                for name, value in tags:
                    # One that was set anew meanwhile is written the next time.
                    if self._tags.get(name) == value:
                        del self._tags[name]
            most = _METRICS_A_CALL if self._points is None else _POINTS_A_TRANSACTION
            while self._metrics:
                taken = [self._metrics.popleft() for _ in range(min(most, len(self._metrics)))]
                try:
                    self._write_points(taken)
                except BaseException:
                    self._metrics.extendleft(reversed(taken))
                    raise

    def _write_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        if self._points is not None:
            self._points.write(self.run_id, points)
        else:
            self._client.log_batch(self.run_id, [Metric(*point) for point in points], [], [])

    def _write_beside(self) -> None:
        """What the thread of the run does until the run ends."""
        while not self._ended.wait(self._flush_seconds):
            with self._writing:
                try:
                    self._write()
                except StoreError as error:
                    _LOG.warning("%s; it is tried again, and %d points wait", error, len(self._metrics))

    def end(self, status: str = "FINISHED") -> None:
        """Writes what was kept back and ends the run; ending it twice does nothing.

        Args:
            status: `"FINISHED"`, `"FAILED"` or `"KILLED"`, MLflow's words.
        """
        if not self._open or self._pid != os.getpid():
            return
        self._ended.set()
        self._writer.join()
        atexit.unregister(self._flush_at_exit)
        try:
            self.flush()
        finally:
            self._open = False
            if self._points is not None:
                self._points.close()
            with store_errors(f"run {self.run_id} cannot be ended"):
                self._client.set_terminated(self.run_id, status, end_time=self._clock.now() // 1000)

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.end("FINISHED")
            return
        self._tags["error"] = f"{kind.__name__}: {error}"[:_TAG_LENGTH]
        # A store that fails here as well must not hide the error that came first.
        with contextlib.suppress(StoreError):
            self.end("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _metric(self, name: str, value: float, step: int) -> None:
        if name not in self._known_names:
            self._known_names.add(_checked(name))
        if not math.isfinite(value):
            self._not_finite.setdefault(name, []).append(f"{value} at step {step}")
            return
        self._metrics.append((name, value, self._clock.now() // 1000, step))

    def _check_room(self) -> None:
        waiting = len(self._metrics)
        if waiting <= _MOST_POINTS:
            return
        # Kept, and tried once more: the store may be back, or the thread is behind.
        with self._writing:
            self._write()

    def _flush_at_exit(self) -> None:
        """Saves the last window of a program that ended without ending the run."""
        if self._pid == os.getpid():
            with contextlib.suppress(StoreError):
                self.flush()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise StoreError(f"run {self.run_id} belongs to process {self._pid}; begin a run in this one")

    def _check_open(self) -> None:
        self._check_process()
        if not self._open:
            raise StoreError(f"run {self.run_id} has ended; nothing can be logged to it any more")


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or posixpath.normpath(name) != name or name[0] in "/.":
        fix = "MLflow allows letters, digits, _ - . : space and / between parts"
        raise InvalidInput("name", name, "be a name that MLflow can keep", fix)
    return name
