"""One run in the MLflow store: what is logged is kept back and written in large batches."""

import contextlib
import json
import math
import posixpath
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from vitok.clock import Clock
from vitok.errors import InvalidInput, StoreError
from vitok.registry.gates import is_estimate
from vitok.registry.mlflow_client import store_errors

if TYPE_CHECKING:
    from vitok.stats.results import Estimate

# The limits of MLflow's log_batch: 1000 entities a call in all.
_METRICS_A_CALL, _PARAMS_A_CALL, _TAGS_A_CALL = 800, 100, 100
_PARAM_LENGTH, _TAG_LENGTH = 6000, 8000
_FLUSH_S = 10.0
_NAME = re.compile(r"[\w. :/-]{1,250}")


class TrackedRun:
    """A run in progress. What is logged is kept back and written in large batches; use it from one thread.

    Kept back means: after `kill -9` up to ten seconds of metrics are lost, and the run stays "running".

    Args:
        client: MLflow's client.
        run_id: The run's id.
        clock: Gives the times of metrics.
    """

    def __init__(self, client: Any, run_id: str, *, clock: Clock) -> None:
        self.run_id = run_id
        self._client = client
        self._clock = clock
        self._metrics: list[tuple[str, float, int, int]] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._known_params: dict[str, str] = {}
        self._not_finite: dict[str, list[str]] = {}
        self._flushed = time.monotonic()
        self._open = True

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
        self._flush_if_due()

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
        self._flush_if_due()

    def log_history(self, name: str, values: Iterable[float], *, first_step: int = 0) -> None:
        """Keeps a metric's values over consecutive steps, such as the loss after each tree."""
        self._check_open()
        for step, value in enumerate(values, start=first_step):
            self._metric(name, float(value), step)
        self._flush_if_due()

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
        self._flush_if_due()

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

    def flush(self) -> None:
        """Writes everything that was kept back.

        Raises:
            StoreError: If the store cannot be written; what was not written is kept for the next time.
        """
        from mlflow.entities import Metric, Param, RunTag

        for name, seen in self._not_finite.items():
            more = f" and {len(seen) - 20} more" if len(seen) > 20 else ""
            self._tags[f"not_finite.{name}"[:250]] = "; ".join(seen[:20]) + more
        with store_errors(f"run {self.run_id} cannot be written"):
            while self._metrics or self._params or self._tags:
                metrics = self._metrics[:_METRICS_A_CALL]
                params = list(self._params.items())[:_PARAMS_A_CALL]
                tags = list(self._tags.items())[:_TAGS_A_CALL]
                self._client.log_batch(
                    self.run_id,
                    [Metric(name, value, timestamp, step) for name, value, timestamp, step in metrics],
                    [Param(name, value) for name, value in params],
                    [RunTag(name, value) for name, value in tags],
                )
                del self._metrics[:_METRICS_A_CALL]
                for name, _ in params:
                    del self._params[name]
                for name, _ in tags:
                    del self._tags[name]
        self._flushed = time.monotonic()

    def end(self, status: str = "FINISHED") -> None:
        """Writes what was kept back and ends the run; ending it twice does nothing.

        Args:
            status: `"FINISHED"`, `"FAILED"` or `"KILLED"`, MLflow's words.
        """
        if not self._open:
            return
        try:
            self.flush()
        finally:
            self._open = False
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
        _checked(name)
        if not math.isfinite(value):
            self._not_finite.setdefault(name, []).append(f"{value} at step {step}")
            return
        self._metrics.append((name, float(value), self._clock.now() // 1000, step))

    def _flush_if_due(self) -> None:
        if len(self._metrics) >= _METRICS_A_CALL or time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"run {self.run_id} has ended; nothing can be logged to it any more")


def _checked(name: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or posixpath.normpath(name) != name or name[0] in "/.":
        fix = "MLflow allows letters, digits, _ - . : space and / between parts"
        raise InvalidInput("name", name, "be a name that MLflow can keep", fix)
    return name
