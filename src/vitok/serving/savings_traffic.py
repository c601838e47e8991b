"""The logged traffic of one model, as it is replayed: rows in batches, what each cost, when each request came."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok import decisions
from vitok.decisions.schema import FEATURE_PREFIX
from vitok.errors import NotFound
from vitok.serving.cost_report import log_folders, read_columns

_MOST_ROWS = 200_000


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Rows that one model version has answered, in the order of their logs; rows of one batch lie together.

    Attributes:
        version: Such as `"fraud/3"`.
        X: What the model saw, shape (n, n_features).
        cost: Processor seconds that the log has for each row, shape (n,).
        probability: What it answered, shape (n,).
        shadow: What the shadow answered, shape (n,); NaN where none was asked.
        event_time: When each row was answered, in microseconds, shape (n,).
        arrived: When its request came, in microseconds, shape (n,).
        starts: First row of each batch, shape (m,); no batch goes over two logs.
        log: Number of the log that each row is from, shape (n,): each was written by a process of its own.
        left_out: Earlier rows that were not read, since there are too many.
    """

    version: str
    X: NDArray[np.float64] = field(repr=False)
    cost: NDArray[np.float64] = field(repr=False)
    probability: NDArray[np.float64] = field(repr=False)
    shadow: NDArray[np.float64] = field(repr=False)
    event_time: NDArray[np.int64] = field(repr=False)
    arrived: NDArray[np.int64] = field(repr=False)
    starts: NDArray[np.int64] = field(repr=False)
    log: NDArray[np.int64] = field(repr=False)
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.cost)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each batch, shape (m,)."""
        return np.diff(np.append(self.starts, len(self)))

    @property
    def batch_cost(self) -> NDArray[np.float64]:
        """Processor seconds of each batch, shape (m,)."""
        return np.add.reduceat(self.cost, self.starts) if len(self.starts) else np.empty(0)

    def batches(self) -> Iterator[slice]:
        """Gives the rows of one batch after another."""
        for begin, n in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            yield slice(begin, begin + n)

    def __str__(self) -> str:
        more = f"; {self.left_out:,} earlier ones were left out" if self.left_out else ""
        return (
            f"{self.version}: {len(self):,} rows in {len(self.starts):,} batches, "
            f"{self.cost.sum():,.4g} processor seconds{more}"
        )


@dataclass(frozen=True, kw_only=True)
class Use:
    """How often a version has answered, or was asked as a shadow.

    Attributes:
        decisions: How often it answered.
        shadows: How often its answer was logged beside another's.
        last: Event time of the last decision with it, in microseconds.
    """

    decisions: int
    shadows: int
    last: int


def used_versions(folder: str | Path, *, since: int | None = None, until: int | None = None) -> dict[str, Use]:
    """Returns how often each version of the logs was used in a span of time."""
    import polars as pl

    found: dict[str, Use] = {}
    for log in log_folders(folder):
        frame = read_columns(log, ("event_time", "model_version", "shadow_version"), since=since, until=until)
        for column in ("model_version", "shadow_version"):
            seen = frame.filter(pl.col(column).is_not_null()).group_by(column)
            counts = seen.agg(pl.len().alias("n"), pl.col("event_time").max().dt.epoch("us").alias("last"))
            for version, n, last in counts.iter_rows():
                before = found.get(version, Use(decisions=0, shadows=0, last=last))
                answered = n if column == "model_version" else 0
                found[version] = Use(
                    decisions=before.decisions + answered,
                    shadows=before.shadows + n - answered,
                    last=max(before.last, last),
                )
    return found


def read_traffic(
    folder: str | Path,
    version: str = "",
    *,
    since: int | None = None,
    until: int | None = None,
    max_rows: int = _MOST_ROWS,
) -> Traffic:
    """Reads the traffic of one version from its logs.

    Args:
        folder: A decision log, or a folder with several below it.
        version: Which one; by default the one that has answered most.
        since: Event time of the earliest decision, in microseconds, inclusive.
        until: Event time at which the span ends, exclusive.
        max_rows: Most rows; of more the latest of each log are taken.

    Raises:
        NotFound: If there is no log, or the version has answered nothing.
    """
    import polars as pl

    used = {name: use.decisions for name, use in used_versions(folder, since=since, until=until).items()}
    chosen = version or max(used, key=lambda name: (used[name], name), default="")
    if not used.get(chosen):
        raise NotFound("decisions of", chosen or "any version", sorted(used))
    frames: list[pl.DataFrame] = []
    for log in log_folders(folder):
        frame = decisions.read(log, since=since, until=until, models=[chosen])
        if len(frame):
            frames.append(frame.with_columns(pl.lit(len(frames), pl.Int64).alias("_log")))
    features = [name for name in frames[0].columns if name.startswith(FEATURE_PREFIX)]
    frames = [frame for frame in frames if set(features) <= set(frame.columns)]
    share = max(max_rows // len(frames), 1)
    total = sum(len(frame) for frame in frames)
    wanted = ["cost", "probability", "shadow_probability", "event_time", "latency_us", "_log", *features]
    whole = pl.concat([frame.select(wanted).tail(share) for frame in frames])
    numbers = {
        name: whole[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in ("cost", "probability", "shadow_probability")
    }
    times = whole["event_time"].dt.epoch("us").to_numpy().astype(np.int64)
    logs = whole["_log"].to_numpy().astype(np.int64)
    begins = np.flatnonzero(np.append(True, (np.diff(times) != 0) | (np.diff(logs) != 0)))
    return Traffic(
        version=chosen,
        X=_matrix(whole, features),
        cost=np.where(np.isfinite(numbers["cost"]), numbers["cost"], 0.0),
        probability=numbers["probability"],
        shadow=numbers["shadow_probability"],
        event_time=times,
        arrived=times - whole["latency_us"].to_numpy().astype(np.int64),
        starts=begins.astype(np.int64),
        log=logs,
        left_out=total - len(whole),
    )


def _matrix(frame: Any, features: list[str]) -> NDArray[np.float64]:
    if not features:
        return np.empty((len(frame), 0))
    return np.ascontiguousarray(frame.select(features).fill_null(float("nan")).to_numpy(), dtype=np.float64)
