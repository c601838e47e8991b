"""Scores Parquet files with a model: in batches, resumable after a crash, handing over when the machine is taken away.

    result = score_files(runtime, "in/", "out/", names=["amount", "hour"])

On many machines it is `vitok.serving.batch_spark.score_files_on_spark`, with the same results and the same manifest.

Results come in shards. A shard is written beside its place, synced, renamed, and only then named in the manifest; so
whatever a crash leaves, the rows of the manifest are exactly those whose results are durable, and a job that is
started again goes on after them, without a row twice or lost. A row has the same id in every run. Rows stay in the
order of the input; those that cannot be scored go to the quarantine with the reason, and are counted.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitok.errors import InvalidInput
from vitok.registry.files import exclusive
from vitok.serving.batch_manifest import InputFile, Manifest, Shard
from vitok.serving.batch_shards import BatchJob, clear_leftovers, find_files, read_batches, write_shard
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runtime import Runtime

RESUME = 75
"""Exit code of a job that was handed over and is to be started again (EX_TEMPFAIL of sysexits.h)."""

LOCK = "_lock"
_MOST_ROWS = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is.

    Attributes:
        rows: Rows whose results are durable, those of earlier runs too.
        total: Rows of all inputs.
        shards: Shards written.
        quarantined: Rows that could not be scored.
        seconds: Since this run began.
        rows_per_second: Of this run; 0 at its beginning.
    """

    rows: int
    total: int
    shards: int
    quarantined: int
    seconds: float
    rows_per_second: float

    def __str__(self) -> str:
        share = self.rows / self.total if self.total else 1.0
        left = (self.total - self.rows) / self.rows_per_second if self.rows_per_second else math.nan
        when = f", {left:,.0f} s left" if math.isfinite(left) else ""
        return (
            f"{self.rows:,} of {self.total:,} rows ({share:.1%}), {self.quarantined:,} in quarantine, "
            f"{self.rows_per_second:,.0f} rows a second{when}"
        )


@dataclass(frozen=True, kw_only=True)
class BatchResult:
    """How a run of a job ended.

    Attributes:
        folder: Where the results lie.
        done: Whether all rows are dealt with; else the job was handed over and is to be started again.
        notice: Why it was handed over.
        total: Rows of all inputs.
        scored: Rows with a score, of all runs.
        quarantined: Rows in quarantine, of all runs.
        shards: Shards, of all runs.
        resumed: Rows that earlier runs had dealt with.
        seconds: How long this run took.
    """

    folder: Path
    done: bool
    notice: str | None
    total: int
    scored: int
    quarantined: int
    shards: int
    resumed: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 where it is done, else `RESUME`."""
        return 0 if self.done else RESUME

    def __str__(self) -> str:
        state = "done" if self.done else f"handed over ({self.notice}); start it again to go on"
        before = f", {self.resumed:,} rows by earlier runs" if self.resumed else ""
        return (
            f"{state}: {self.scored:,} of {self.total:,} rows scored, {self.quarantined:,} in quarantine, "
            f"{self.shards:,} shards in {self.folder}, {self.seconds:.1f} s{before}"
        )


def checkpoint_seconds(cost: float, mean_time_between_failures: float) -> float:
    """Returns how long to work between two checkpoints so that least time is lost, in the unit of its arguments.

    Young, A First Order Approximation to the Optimum Checkpoint Interval, 1974; Daly, Future Generation Computer
    Systems 2006: the root of twice the cost of a checkpoint times the mean time between failures.

    Raises:
        InvalidInput: If one is not above 0.

    Example:
        >>> checkpoint_seconds(0.5, 14_400)
        120.0
    """
    if not (cost > 0 and mean_time_between_failures > 0):
        raise InvalidInput("cost, mean_time_between_failures", (cost, mean_time_between_failures), "be above 0")
    return math.sqrt(2 * cost * mean_time_between_failures)


def score_files(
    runtime: Runtime,
    inputs: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    names: Sequence[str],
    id_column: str | None = None,
    keep: Sequence[str] = (),
    batch_rows: int = 8192,
    checkpoint_every: int | None = None,
    mean_time_between_failures: float = 4 * 3600.0,
    progress: Callable[[Progress], None] | None = None,
    watch: PreemptionWatch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BatchResult:
    """Scores Parquet files, or goes on with it.

    Args:
        runtime: The model.
        inputs: Files, or folders that are searched for `*.parquet`; names beginning with `_` or `.` are left out.
            They are taken in the order given, a folder's in the order of their names.
        folder: Where the results go, and the manifest; made where it does not exist.
        names: Columns of the features in order; for a model of several inputs the columns named as these.
        id_column: Column with the id of each row; without it the id is made from the file's contents and the row's
            place.
        keep: Columns that go into the results as they are.
        batch_rows: Rows of a run of the model.
        checkpoint_every: Batches of a shard; by default as many as `checkpoint_seconds` asks for, by the measured
            cost of a shard and a batch.
        mean_time_between_failures: How long a machine lives on average, in seconds.
        progress: Called after every shard.
        watch: Tells when the machine is about to be taken away: the shard in work is finished early, and the run ends.
        clock: Seconds.

    Raises:
        InvalidInput: If a file or a column lacks, or a number is out of range.
        NotFound: If there is no input.
        Conflict: If another process works on the folder, or it holds results of another job.
        StoreError: If the results cannot be written.
    """
    if batch_rows < 1 or (checkpoint_every is not None and checkpoint_every < 1):
        raise InvalidInput("batch_rows, checkpoint_every", (batch_rows, checkpoint_every), "be at least 1")
    started = clock()
    out = Path(folder)
    paths = find_files(inputs, out)
    files = [InputFile.of(path, name) for path, name in paths]
    job = BatchJob(runtime, tuple(names), id_column, tuple(keep))
    for path, _ in paths:
        job.check(path)
    with exclusive(out / LOCK, wait_s=1.0):
        manifest = Manifest.open(out, job.describe(), files)
        clear_leftovers(out, manifest)
        resumed = sum(shard.rows for shard in manifest.shards)
        total = sum(item.rows for item in files)
        pace = _Pace(checkpoint_every, mean_time_between_failures, batch_rows, clock)
        while not manifest.done and (watch is None or watch.notice is None):
            at, row = manifest.position
            while at < len(files) and row >= files[at].rows:
                at, row = at + 1, 0
            if at == len(files):
                manifest.finish()
                break
            number = len(manifest.shards)
            begun = Shard(number=number, input=at, start=row, rows=0, scored=0, quarantined=0)
            pace.begin()
            batches = read_batches(paths[at][0], row, batch_rows)
            shard = write_shard(job, out, files[at], begun, batches, after_batch=lambda count: pace.ends(count, watch))
            manifest.add(shard)
            pace.written()
            if progress is not None:
                progress(progress_of(manifest, total, resumed, clock() - started))
    return result_of(manifest, out, total, resumed, watch, clock() - started)


class _Pace:
    """How many batches a shard has."""

    def __init__(self, fixed: int | None, lifetime: float, batch_rows: int, clock: Callable[[], float]) -> None:
        self.batch_rows = batch_rows
        self.batches = fixed or 16
        self._fixed, self._lifetime, self._clock = fixed is not None, lifetime, clock
        self._began = self._scored = clock()
        self._done = 0

    def begin(self) -> None:
        self._began = self._scored = self._clock()
        self._done = 0

    def ends(self, count: int, watch: PreemptionWatch | None) -> bool:
        """Says after each batch whether the shard ends with it."""
        self._done += 1
        self._scored = self._clock()
        return count >= self.batches or (watch is not None and watch.notice is not None)

    def written(self) -> None:
        if self._fixed or not self._done:
            return
        cost = max(self._clock() - self._scored, 1e-4)
        each = max((self._scored - self._began) / self._done, 1e-6)
        most = max(1, _MOST_ROWS // self.batch_rows)
        self.batches = max(1, min(most, round(checkpoint_seconds(cost, self._lifetime) / each)))


def result_of(
    manifest: Manifest, folder: Path, total: int, resumed: int, watch: PreemptionWatch | None, seconds: float
) -> BatchResult:
    """Returns how a run of a job ended by its manifest."""
    return BatchResult(
        folder=folder,
        done=manifest.done,
        notice=None if manifest.done or watch is None else watch.notice,
        total=total,
        scored=sum(shard.scored for shard in manifest.shards),
        quarantined=sum(shard.quarantined for shard in manifest.shards),
        shards=len(manifest.shards),
        resumed=resumed,
        seconds=seconds,
    )


def progress_of(manifest: Manifest, total: int, resumed: int, seconds: float) -> Progress:
    """Returns how far a job is by its manifest."""
    rows = sum(shard.rows for shard in manifest.shards)
    return Progress(
        rows=rows,
        total=total,
        shards=len(manifest.shards),
        quarantined=sum(shard.quarantined for shard in manifest.shards),
        seconds=seconds,
        rows_per_second=(rows - resumed) / seconds if seconds > 0 else 0.0,
    )
