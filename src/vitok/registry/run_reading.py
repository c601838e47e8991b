"""Runs as they are read back: a list of them, one metric over its steps, and several runs side by side."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitok.clock import isoformat
from vitok.errors import InvalidInput

SHORT_ID = 8
"""So many characters of a run's id are shown in tables, and are enough to name it where they are unique."""

_MOST_COMPARED = 20
_COLUMNS = 4
_CELL = 32
# MLflow keeps an infinity as the largest number that a float of 64 bits holds.
_LARGEST = 1.7976931348623157e308
_NOTHING = "-"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as the store has it, whoever logged it.

    Attributes:
        run_id: Its id.
        name: Its name; empty where it was given none.
        experiment: Name of its experiment.
        status: MLflow's word: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED.
        started: When it began, in microseconds, or None.
        ended: When it ended, in microseconds, or None.
        params: Its parameters, as text.
        metrics: The latest value of each metric; NaN and infinities as plain MLflow code may have logged them.
        tags: Its tags.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started: int | None
    ended: int | None
    params: Mapping[str, str] = field(repr=False)
    metrics: Mapping[str, float] = field(repr=False)
    tags: Mapping[str, str] = field(repr=False)

    @property
    def short_id(self) -> str:
        """The first characters of its id."""
        return self.run_id[:SHORT_ID]

    @property
    def lasted(self) -> int | None:
        """How long it took, in microseconds; None while it runs."""
        return None if self.started is None or self.ended is None else self.ended - self.started

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts; a value that is not finite becomes text."""
        return {
            **self.__dict__,
            "started": None if self.started is None else isoformat(self.started),
            "ended": None if self.ended is None else isoformat(self.ended),
            "params": dict(self.params),
            "metrics": {name: _plain(value) for name, value in self.metrics.items()},
            "tags": dict(self.tags),
        }

    def __str__(self) -> str:
        lines = [f"{self.experiment}: {self.name} {self.status} ({self.run_id})"]
        lines += [f"  {name:12}{text}" for name, text in facts(self).items()]
        for title, values in (("parameters", self.params), ("metrics", _told(self.metrics))):
            lines += [title, *(f"  {name} = {value}" for name, value in sorted(values.items()))] if values else []
        return "\n".join(lines)


@dataclass(frozen=True)
class RunList:
    """Runs, latest first.

    Attributes:
        runs: The runs.
    """

    runs: tuple[RunRecord, ...]

    def __iter__(self) -> Iterator[RunRecord]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> RunRecord:
        return self.runs[index]

    def metric_names(self) -> tuple[str, ...]:
        """Returns the names of all metrics, those of most runs first."""
        counted: dict[str, int] = {}
        for run in self.runs:
            for name in run.metrics:
                counted[name] = counted.get(name, 0) + 1
        return tuple(sorted(counted, key=lambda name: (-counted[name], name)))

    def __str__(self) -> str:
        if not self.runs:
            return "no runs"
        names = self.metric_names()[:_COLUMNS]
        head = ("run", "name", "experiment", "status", "started", *names)
        rows = [
            (
                run.short_id,
                run.name,
                run.experiment,
                run.status,
                _NOTHING if run.started is None else isoformat(run.started // 1_000_000 * 1_000_000),
                *(told(run.metrics.get(name)) for name in names),
            )
            for run in self.runs
        ]
        return _table((head, *rows))


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricHistory:
    """A metric of a run over its steps.

    Attributes:
        run_id: The run.
        metric: Name of the metric.
        steps: Steps, ascending, int64 of shape (n,).
        values: Values, float64 of shape (n,); NaN and infinities where plain MLflow code logged them.
        times: When each was logged, microseconds, int64 of shape (n,).
    """

    run_id: str
    metric: str
    steps: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)
    times: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts; a value that is not finite becomes text."""
        return {
            "run_id": self.run_id,
            "metric": self.metric,
            "steps": self.steps.tolist(),
            "values": [_plain(value) for value in self.values.tolist()],
            "times": [isoformat(time) for time in self.times.tolist()],
        }

    def __str__(self) -> str:
        finite = self.values[np.isfinite(self.values)]
        span = f", {told(float(finite.min()))} to {told(float(finite.max()))}" if len(finite) else ""
        lost = len(self.values) - len(finite)
        odd = f", {lost} not finite" if lost else ""
        last = told(float(self.values[-1])) if len(self) else _NOTHING
        return f"{self.metric} of {self.run_id[:SHORT_ID]}: {len(self)} points{span}{odd}, last {last}"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One line of a comparison.

    Attributes:
        name: What is compared.
        values: Its value in each run, in their order; None where a run has none.
    """

    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        """Whether it is not the same in all runs."""
        # As text: a NaN is the same as a NaN here.
        return len({repr(value) for value in self.values}) > 1


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """Several runs side by side.

    Attributes:
        runs: The runs, in the order given.
        facts: What is known of how they came about: status, code, packages.
        params: All parameters.
        metrics: The latest value of all metrics.
    """

    runs: tuple[RunRecord, ...]
    facts: tuple[Compared, ...]
    params: tuple[Compared, ...]
    metrics: tuple[Compared, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict that `json.dumps` accepts."""
        return {
            "runs": [run.to_dict() for run in self.runs],
            "params": {line.name: list(line.values) for line in self.params},
            "metrics": {line.name: [_plain(value) for value in line.values] for line in self.metrics},
            "differ": [line.name for line in (*self.facts, *self.params) if line.differs],
        }

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", *(f"{run.short_id} {run.name}" for run in self.runs))]
        for lines in (self.facts, self.params):
            rows += [(line.name, *map(told, line.values)) for line in lines if line.differs]
        rows += [(line.name, *map(told, line.values)) for line in self.metrics]
        same = sum(not line.differs for line in (*self.facts, *self.params))
        return f"{_table(rows)}\n{same} more facts and parameters are the same in all"


def compare(runs: Sequence[RunRecord]) -> RunComparison:
    """Puts runs side by side: parameters, metrics, and how they came about.

    Args:
        runs: 2 to 20 runs, of any experiments.

    Raises:
        InvalidInput: If there are fewer, more, or one twice.

    Example:
        >>> def run(name: str, leaves: str, loss: float) -> RunRecord:
        ...     return RunRecord(run_id=name * 32, name=name, experiment="e", status="FINISHED", started=0, ended=1,
        ...                      params={"leaves": leaves, "seed": "7"}, metrics={"loss": loss}, tags={})
        >>> print(compare([run("a", "31", 0.5), run("b", "63", 0.25)]))
                aaaaaaaa a  bbbbbbbb b
        leaves  31          63
        loss    0.5         0.25
        4 more facts and parameters are the same in all
    """
    found = tuple(runs)
    ids = [run.run_id for run in found]
    if not 2 <= len(found) <= _MOST_COMPARED or len(set(ids)) < len(ids):
        raise InvalidInput("runs", [item[:SHORT_ID] for item in ids], f"be 2 to {_MOST_COMPARED} different runs")
    return RunComparison(
        runs=found,
        facts=_lines([facts(run) for run in found]),
        params=_lines([run.params for run in found]),
        metrics=_lines([run.metrics for run in found]),
    )


def facts(run: RunRecord) -> dict[str, str]:
    """Returns what a run's record says of how it came about, in words, for people."""
    tags = run.tags
    commit = tags.get("mlflow.source.git.commit", "")
    known = {
        "status": run.status,
        "started": "" if run.started is None else isoformat(run.started),
        "lasted": "" if run.lasted is None else f"{run.lasted / 1e6:g} s",
        "commit": _commit(commit, tags.get("vitok.git", "")),
        "branch": tags.get("mlflow.source.git.branch", ""),
        "python": tags.get("vitok.python", ""),
        "packages": tags.get("vitok.packages_digest", "")[:12],
        "lock": tags.get("vitok.lock_digest", "")[:12],
        "platform": tags.get("vitok.platform", ""),
        "hardware": _hardware(tags.get("vitok.hardware", "")),
        "source": tags.get("mlflow.source.name", ""),
        "error": tags.get("error", ""),
    }
    return {name: text for name, text in known.items() if text}


def _commit(commit: str, git: str) -> str:
    if not commit:
        return "none: no git repository" if git == "none" else ""
    return commit[:12] + (" and unsaved changes" if git == "changed" else "")


def _hardware(text: str) -> str:
    # A tag is whatever somebody has written there.
    try:
        known = json.loads(text)
    except ValueError:
        return text
    if not isinstance(known, dict):
        return text
    memory = known.get("memory")
    told = {
        "processor": known.get("processor"),
        "cores": f"{known['cores']} cores" if known.get("cores") else None,
        "memory": f"{memory / 2**30:.3g} GiB" if isinstance(memory, int | float) and memory else None,
    }
    return ", ".join(str(part) for part in told.values() if part)


def record(run: Any, experiment: str) -> RunRecord:
    """Makes a record of an MLflow run."""
    info, data = run.info, run.data
    return RunRecord(
        run_id=info.run_id,
        name=info.run_name or "",
        experiment=experiment,
        status=str(info.status),
        started=None if info.start_time is None else int(info.start_time) * 1000,
        ended=None if info.end_time is None else int(info.end_time) * 1000,
        params=dict(data.params),
        metrics={name: _unbounded(value) for name, value in data.metrics.items()},
        tags=dict(data.tags),
    )


def history(run_id: str, metric: str, points: Sequence[tuple[int, int, float]]) -> MetricHistory:
    """Makes a history of points (step, milliseconds, value), in any order."""
    ordered = sorted(points, key=lambda point: point[:2])
    return MetricHistory(
        run_id=run_id,
        metric=metric,
        steps=np.array([step for step, _, _ in ordered], dtype=np.int64),
        values=np.array([_unbounded(value) for _, _, value in ordered], dtype=np.float64),
        times=np.array([time * 1000 for _, time, _ in ordered], dtype=np.int64),
    )


def told(value: object) -> str:
    """Writes a value of a run for a table.

    Example:
        >>> told(0.123456789), told(None), told("text")
        ('0.123457', '-', 'text')
    """
    if value is None:
        return _NOTHING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _told(values: Mapping[str, float]) -> dict[str, str]:
    return {name: told(value) for name, value in values.items()}


def _lines(columns: Sequence[Mapping[str, Any]]) -> tuple[Compared, ...]:
    names = sorted({name for column in columns for name in column})
    return tuple(Compared(name=name, values=tuple(column.get(name) for column in columns)) for name in names)


def _unbounded(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value


def _plain(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[_short(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _short(text: str) -> str:
    # A name may hold anything that its author typed; a line stays a line.
    line = " ".join(text.split()) if text.strip() else text.strip()
    return line if len(line) <= _CELL else f"{line[: _CELL - 1]}…"
