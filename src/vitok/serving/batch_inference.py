"""Scores Parquet files with a model: in batches, resumable after a crash, handing over when the machine is taken away.

    result = score_files(runtime, "in/", "out/", names=["amount", "hour"])

Results come in shards. A shard is written beside its place, synced, renamed, and only then named in the manifest; so
whatever a crash leaves, the rows of the manifest are exactly those whose results are durable, and a job that is
started again goes on after them, without a row twice or lost. A row has the same id in every run. Rows stay in the
order of the input; those that cannot be scored go to the quarantine with the reason, and are counted.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, NotFound, ServiceError, StoreError
from vitok.registry.files import exclusive, sync_folder
from vitok.serving.batch_manifest import MANIFEST, InputFile, Manifest, Shard
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runtime import Runtime

if TYPE_CHECKING:
    import pyarrow as pa

ROW_ID, SCORE, REASON = "row_id", "score", "reason"
QUARANTINE = "_quarantine"
RESUME = 75
"""Exit code of a job that was handed over and is to be started again (EX_TEMPFAIL of sysexits.h)."""

_LOCK = "_lock"
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
    paths = _files([inputs] if isinstance(inputs, (str, Path)) else list(inputs), out)
    files = [InputFile.of(path, name) for path, name in paths]
    job = _Job(runtime, tuple(names), id_column, tuple(keep))
    for path, _ in paths:
        job.check(path)
    with exclusive(out / _LOCK, wait_s=1.0):
        manifest = Manifest.open(out, job.describe(), files)
        _clear(out, manifest)
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
            shard = _write_shard(
                job,
                out,
                paths[at][0],
                files[at],
                Shard(number=number, input=at, start=row, rows=0, scored=0, quarantined=0),
                pace,
                watch,
            )
            manifest.add(shard)
            pace.written()
            if progress is not None:
                progress(_progress(manifest, total, resumed, clock() - started))
    return BatchResult(
        folder=out,
        done=manifest.done,
        notice=None if manifest.done or watch is None else watch.notice,
        total=total,
        scored=sum(shard.scored for shard in manifest.shards),
        quarantined=sum(shard.quarantined for shard in manifest.shards),
        shards=len(manifest.shards),
        resumed=resumed,
        seconds=clock() - started,
    )


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

    def batch(self) -> None:
        self._done += 1
        self._scored = self._clock()

    def written(self) -> None:
        if self._fixed or not self._done:
            return
        cost = max(self._clock() - self._scored, 1e-4)
        each = max((self._scored - self._began) / self._done, 1e-6)
        most = max(1, _MOST_ROWS // self.batch_rows)
        self.batches = max(1, min(most, round(checkpoint_seconds(cost, self._lifetime) / each)))


class _Job:
    """What is done with a batch of rows."""

    def __init__(self, runtime: Runtime, names: tuple[str, ...], id_column: str | None, keep: tuple[str, ...]) -> None:
        self._runtime, self._names, self._id, self._keep = runtime, names, id_column, keep
        clash = sorted({ROW_ID, SCORE, REASON} & set(keep))
        if clash or len(set(names)) != len(names):
            raise InvalidInput("keep and names", (keep, names), f"not hold {clash}, and each name once")
        if not runtime.batched:
            raise InvalidInput("runtime", runtime.version, "take any number of rows at once")
        wanted = [spec.name for spec in runtime.inputs]
        if runtime.n_features and len(names) != runtime.n_features:
            raise InvalidInput("names", len(names), f"be the {runtime.n_features} features of {runtime.version}")
        if not runtime.n_features and sorted(wanted) != sorted(names):
            raise InvalidInput("names", list(names), f"be the inputs of {runtime.version}, {wanted}")

    def describe(self) -> dict[str, Any]:
        return {
            "model": self._runtime.version,
            "model_size": self._runtime.size,
            "names": list(self._names),
            "id_column": self._id,
            "keep": list(self._keep),
        }

    def check(self, path: Path) -> None:
        import pyarrow.parquet as pq

        columns = pq.read_schema(path).names
        id_columns = [self._id] if self._id else []
        lacking = [name for name in (*self._names, *self._keep, *id_columns) if name not in columns]
        if lacking:
            raise InvalidInput(str(path), columns, f"have the columns {lacking}")

    def results(self, batch: "pa.RecordBatch", file: InputFile, start: int) -> "tuple[pa.Table, pa.Table | None]":
        """Returns results and, where there are any, bad rows of a batch that begins at row `start` of a file."""
        import pyarrow as pa

        table = pa.Table.from_batches([batch])
        ids = self._ids(table, file, start)
        reasons: dict[int, str] = {}
        columns = {name: self._column(name, table[name], reasons) for name in self._names}
        score = np.full(len(table), np.nan)
        good = np.array([row not in reasons for row in range(len(table))]) if reasons else np.ones(len(table), bool)
        self._score(columns, np.flatnonzero(good), score, reasons)
        for row in np.flatnonzero(np.isnan(score)).tolist():
            reasons.setdefault(row, "the model gave no number")
        bad = np.array(sorted(reasons), dtype=np.int64)
        good = np.setdiff1d(np.arange(len(table)), bad)
        kept = {name: table[name].take(good) for name in self._keep}
        found = pa.table({ROW_ID: ids.take(good), **kept, SCORE: score[good]})
        if not len(bad):
            return found, None
        rows = {name: table[name].take(bad) for name in table.column_names if name not in (ROW_ID, REASON)}
        texts = pa.array([reasons[row] for row in bad.tolist()], pa.string())
        return found, pa.table({ROW_ID: ids.take(bad), REASON: texts, **rows})

    def _ids(self, table: "pa.Table", file: InputFile, start: int) -> "pa.Array":
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._id is not None:
            return table[self._id].combine_chunks()
        # Two folders may hold a file of the same name: the mark makes ids of different data differ.
        stem = hashlib.sha256(f"{file.name}\0{file.mark}".encode()).hexdigest()[:12]
        places = pa.array(np.arange(start, start + len(table)), pa.int64()).cast(pa.string())
        return pc.binary_join_element_wise(stem, places, "-")

    def _column(self, name: str, values: "pa.ChunkedArray", reasons: dict[int, str]) -> NDArray[Any]:
        import polars as pl

        spec = next((item for item in self._runtime.inputs if item.name == name), None)
        series = pl.Series(name, pl.from_arrow(values))
        if spec is not None and not self._runtime.n_features and spec.datatype == "BYTES":
            texts = series.cast(pl.String, strict=False)
            for row in np.flatnonzero(texts.is_null().to_numpy()).tolist():
                reasons.setdefault(row, f"{name} is missing")
            out = np.empty(len(series), dtype=object)
            out[:] = [(text or "").encode() for text in texts.to_list()]
            return out
        try:
            numbers = series.cast(pl.Float64, strict=False)
        except pl.exceptions.PolarsError:
            raise InvalidInput(name, str(series.dtype), "hold numbers") from None
        for row in np.flatnonzero((numbers.is_null() & series.is_not_null()).to_numpy()).tolist():
            reasons.setdefault(row, f"{name} is {str(series[row])[:60]!r}, no number")
        return numbers.fill_null(float("nan")).to_numpy()

    def _score(
        self,
        columns: Mapping[str, NDArray[Any]],
        rows: NDArray[np.intp],
        score: NDArray[np.float64],
        reasons: dict[int, str],
    ) -> None:
        """Scores rows; where the model fails on them, each half by itself, down to the rows that it fails on."""
        if len(rows) == 0:
            return
        try:
            score[rows] = self._run(columns, rows)
        except ServiceError as error:
            if len(rows) == 1:
                reasons[int(rows[0])] = str(error)[:300]
                return
            half = len(rows) // 2
            self._score(columns, rows[:half], score, reasons)
            self._score(columns, rows[half:], score, reasons)

    def _run(self, columns: Mapping[str, NDArray[Any]], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        runtime = self._runtime
        if runtime.n_features:
            X = np.empty((len(rows), runtime.n_features), dtype=runtime.dtype)
            with np.errstate(over="ignore"):  # what is too large for 32 bits is infinite there
                for place, name in enumerate(self._names):
                    X[:, place] = columns[name][rows]
            return runtime.score(X)
        fed = {}
        for spec in runtime.inputs:
            values = columns[spec.name][rows]
            with np.errstate(invalid="ignore"):
                values = values if spec.datatype == "BYTES" else values.astype(spec.dtype)
            fed[spec.name] = values.reshape(-1, *(1 for _ in spec.shape[1:]))
        return runtime.scores_of(runtime.infer(fed))


def _write_shard(
    job: _Job, out: Path, path: Path, file: InputFile, begun: Shard, pace: _Pace, watch: PreemptionWatch | None
) -> Shard:
    results, bad = _Part(out, begun.file), _Part(out / QUARANTINE, begun.file)
    rows = scored = quarantined = 0
    pace.begin()
    try:
        for count, batch in enumerate(_batches(path, begun.start, pace.batch_rows), 1):
            found, refused = job.results(batch, file, begun.start + rows)
            results.write(found)
            rows, scored = rows + len(batch), scored + len(found)
            if refused is not None:
                bad.write(refused)
                quarantined += len(refused)
            pace.batch()
            if count >= pace.batches or (watch is not None and watch.notice is not None):
                break
        bad.close()
        results.close()
    except OSError as error:
        raise StoreError(f"{out / begun.file}: cannot be written: {error}") from error
    finally:
        results.discard()
        bad.discard()
    return Shard(
        number=begun.number,
        input=begun.input,
        start=begun.start,
        rows=rows,
        scored=scored,
        quarantined=quarantined,
    )


class _Part:
    """A Parquet file that appears whole or not at all; none where nothing was written."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._path = folder, folder / name
        self._temporary = folder / f".{name}.tmp"
        self._writer: Any = None

    def write(self, table: "pa.Table") -> None:
        import pyarrow.parquet as pq

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        handle = os.open(self._temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        self._temporary.rename(self._path)
        sync_folder(self._folder)

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._temporary.unlink(missing_ok=True)


def _batches(path: Path, start: int, batch_rows: int) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        first = 0
        while first < len(groups) and start >= groups[first]:
            start -= groups[first]
            first += 1
        for batch in file.iter_batches(batch_rows, row_groups=list(range(first, len(groups)))):
            if start >= len(batch):
                start -= len(batch)
                continue
            yield batch.slice(start)
            start = 0


def _files(inputs: Sequence[str | Path], out: Path) -> list[tuple[Path, str]]:
    found: list[tuple[Path, str]] = []
    for item in map(Path, inputs):
        if item.is_dir():
            below = sorted(path for path in item.rglob("*.parquet") if out.resolve() not in path.resolve().parents)
            names = [(path, path.relative_to(item).as_posix()) for path in below]
            found += [(path, name) for path, name in names if not any(p[0] in "_." for p in Path(name).parts)]
        elif item.is_file():
            found.append((item, item.name))
        else:
            raise NotFound("input", str(item), ())
    if not found:
        raise NotFound("Parquet file", [str(item) for item in inputs], ())
    if len({path.resolve() for path, _ in found}) != len(found):
        raise InvalidInput("inputs", [str(item) for item in inputs], "name each file once")
    return found


def _clear(out: Path, manifest: Manifest) -> None:
    """Removes what a run left that died between a shard and its line."""
    known = {shard.file for shard in manifest.shards}
    for folder in (out, out / QUARANTINE):
        for path in (*folder.glob("part-*.parquet"), *folder.glob(".part-*.parquet.tmp")):
            if path.name not in known:
                path.unlink(missing_ok=True)
    lost = sorted(shard.file for shard in manifest.shards if not (out / shard.file).is_file())
    if lost:
        raise StoreError(f"{out / MANIFEST} names {lost[:3]}, which are gone; name another folder to score anew")


def _progress(manifest: Manifest, total: int, resumed: int, seconds: float) -> Progress:
    rows = sum(shard.rows for shard in manifest.shards)
    return Progress(
        rows=rows,
        total=total,
        shards=len(manifest.shards),
        quarantined=sum(shard.quarantined for shard in manifest.shards),
        seconds=seconds,
        rows_per_second=(rows - resumed) / seconds if seconds > 0 else 0.0,
    )
