"""Scores Parquet files on the executors of a Spark cluster, with the results, the ids and the manifest of a local run.

    result = score_files_on_spark("spark://local[2]", "models/risk/1", "in/", "out/", names=["amount", "hour"])

Spark hands out the work and nothing else: a task is a range of rows of one file, and an executor reads it, scores it
and writes its shard, so no row goes through the JVM and a task that Spark starts again writes the same file again.
Each Python process of an executor loads the package once. The driver writes the manifest, in the order of the rows, a
wave of tasks at a time; what dies in between is at most a wave. A job that was begun on one machine can be ended on
Spark, and the other way round.
"""

import functools
import hashlib
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitok.errors import InvalidInput, MissingExtra, ServiceError
from vitok.registry.files import exclusive
from vitok.serving.batch_inference import LOCK, BatchResult, Progress, progress_of, result_of
from vitok.serving.batch_manifest import InputFile, Manifest, Shard
from vitok.serving.batch_shards import BatchJob, clear_leftovers, find_files, read_batches, write_shard
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runners import FILES
from vitok.serving.runtime import Runtime

if TYPE_CHECKING:
    import pyarrow as pa

SCHEME = "spark://"
_COUNTS = "number long, rows long, scored long, quarantined long"
_EACH = 4


class _Package(NamedTuple):
    """Which model an executor loads, and what it does with rows."""

    folder: str
    version: str
    digest: str
    names: tuple[str, ...]
    id_column: str | None
    keep: tuple[str, ...]


class _Task(NamedTuple):
    """A range of rows of one file."""

    shard: Shard
    path: str
    file: InputFile


def score_files_on_spark(
    spark: Any,
    package: str | Path,
    inputs: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    names: Sequence[str],
    version: str = "",
    id_column: str | None = None,
    keep: Sequence[str] = (),
    batch_rows: int = 8192,
    checkpoint_every: int = 64,
    wave: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    watch: PreemptionWatch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BatchResult:
    """Scores Parquet files on Spark, or goes on with it.

    Inputs, package and output folder must be at the same paths on the driver and all executors (a shared file system),
    and the executors' Python must have vitok with the extra `serve`.

    Args:
        spark: A Spark session; or the address of a master, `"spark://host:7077"` or `"spark://local[2]"`, on which a
            session is made for the job.
        package: Folder of the model package.
        inputs: As `score_files` has it.
        folder: Where the results go, and the manifest.
        names: As `score_files` has it.
        version: Name of the version; by default the folder's.
        id_column: As `score_files` has it.
        keep: As `score_files` has it.
        batch_rows: Rows of a run of the model.
        checkpoint_every: Batches of a shard, which is one task.
        wave: Tasks between two checkpoints; by default four for each core of the cluster.
        progress: Called after every wave.
        watch: Tells when the driver's machine is about to be taken away: the wave in work is finished.
        clock: Seconds.

    Raises:
        InvalidInput: If a file or a column lacks, a number is out of range, or `spark` is no session and no address.
        NotFound: If there is no input or no model.
        Conflict: If another process works on the folder, or it holds results of another job.
        ServiceError: If Spark cannot be reached, or the job fails there, for instance because an executor finds
            another model in the folder.
        StoreError: If the manifest cannot be written.
        MissingExtra: If the driver has no pyspark.
    """
    if min(batch_rows, checkpoint_every, 1 if wave is None else wave) < 1:
        raise InvalidInput("batch_rows, checkpoint_every, wave", (batch_rows, checkpoint_every, wave), "be at least 1")
    _check_spark(spark)
    started = clock()
    out, home = Path(folder).absolute(), Path(package).absolute()
    paths = find_files(inputs, out)
    files = [InputFile.of(path, name) for path, name in paths]
    runtime = Runtime.load(home, version=version)
    what = _Package(str(home), runtime.version, _digest(home), tuple(names), id_column, tuple(keep))
    job = BatchJob(runtime, what.names, what.id_column, what.keep)
    for path, _ in paths:
        job.check(path)
    with exclusive(out / LOCK, wait_s=1.0):
        manifest = Manifest.open(out, job.describe(), files)
        clear_leftovers(out, manifest)
        resumed = sum(shard.rows for shard in manifest.shards)
        total = sum(item.rows for item in files)
        session: Any = None
        ours = False
        if not manifest.done:
            session, ours = _session(spark)
        try:
            size = wave if wave is not None or session is None else _EACH * session.sparkContext.defaultParallelism
            while not manifest.done and (watch is None or watch.notice is None):
                shards = _plan(manifest, files, batch_rows * checkpoint_every, size or 1)
                if not shards:
                    manifest.finish()
                    break
                tasks = [_Task(shard, str(paths[shard.input][0].absolute()), files[shard.input]) for shard in shards]
                for shard in _run(session, what, tasks, str(out), batch_rows):
                    manifest.add(shard)
                if progress is not None:
                    progress(progress_of(manifest, total, resumed, clock() - started))
        finally:
            if ours:
                session.stop()
    return result_of(manifest, out, total, resumed, watch, clock() - started)


def _check_spark(spark: Any) -> None:
    if not isinstance(spark, str):
        if not hasattr(spark, "range"):
            raise InvalidInput("spark", type(spark).__name__, "be a Spark session or the address of a master")
    elif not spark.startswith(SCHEME) or spark == SCHEME:
        raise InvalidInput("spark", spark, "be the address of a master", "Write spark://host:7077 or spark://local[2]")
    elif importlib.util.find_spec("pyspark") is None:
        raise MissingExtra("spark", "scoring on Spark")


def _session(spark: Any) -> tuple[Any, bool]:
    """Returns a session, and whether it was made here."""
    if not isinstance(spark, str):
        return spark, False
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    master = spark.removeprefix(SCHEME) if spark.startswith(SCHEME + "local") else spark
    there = SparkSession.getActiveSession()
    if there is None:
        if master != spark:
            # Here executors are children of the driver; the first python3 of the path need not have vitok.
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        try:
            made = SparkSession.builder.master(master).appName("vitok batch").getOrCreate()
        except (PySparkException, Py4JError) as error:
            raise ServiceError(
                f"there is no Spark at {spark}: {_cause(str(error))}; look whether the master answers, and whether "
                "this machine has Java 17 or newer"
            ) from error
        made.sparkContext.setLogLevel("ERROR")
        return made, True
    # Spark has one session a process, and it is not ours to stop.
    if there.sparkContext.master != master:
        raise InvalidInput("spark", spark, f"be the master of the session that is there, {there.sparkContext.master}")
    return there, False


def _plan(manifest: Manifest, files: Sequence[InputFile], shard_rows: int, most: int) -> list[Shard]:
    """Returns the next shards, at most so many, each a range of rows of one file."""
    at, row = manifest.position
    first, found = len(manifest.shards), list[Shard]()
    while at < len(files) and len(found) < most:
        rows = min(shard_rows, files[at].rows - row)
        if rows <= 0:
            at, row = at + 1, 0
            continue
        number = first + len(found)
        found.append(Shard(number=number, input=at, start=row, rows=rows, scored=0, quarantined=0))
        row += rows
    return found


def _run(session: Any, what: _Package, tasks: Sequence[_Task], out: str, batch_rows: int) -> list[Shard]:
    """Runs tasks on the executors, each in a partition of its own, and returns their shards in order."""

    def work(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        for batch in batches:
            done = [score_range(what, tasks[place], out, batch_rows) for place in batch.column(0).to_pylist()]
            columns = {name: [getattr(shard, name) for shard in done] for name in ("number", "rows", "scored")}
            yield pa.RecordBatch.from_pydict({**columns, "quarantined": [shard.quarantined for shard in done]})

    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        told = session.range(0, len(tasks), 1, len(tasks)).mapInArrow(work, _COUNTS).collect()
    except (PySparkException, Py4JError) as error:
        raise ServiceError(f"scoring on Spark stopped: {_reason(str(error))}") from error
    counts = {row["number"]: row for row in told}
    done = []
    for task in tasks:
        row = counts.get(task.shard.number)
        if row is None or row["rows"] != task.shard.rows:
            raise ServiceError(
                f"{task.path}: {row and row['rows']} of {task.shard.rows} rows from {task.shard.start} on were read; "
                "it changed while the job was in work"
            )
        done.append(
            Shard(
                number=task.shard.number,
                input=task.shard.input,
                start=task.shard.start,
                rows=row["rows"],
                scored=row["scored"],
                quarantined=row["quarantined"],
            )
        )
    return done


def _reason(told: str) -> str:
    """Returns the last line of what Python said on the executor, without the frames of both languages."""
    lines = [line.strip() for line in told.partition("JVM stacktrace")[0].splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("at ")), told)[:500]


def _cause(told: str) -> str:
    """Returns the line that says why: the one of Java, which a colon begins, else the first."""
    lines = told.splitlines() or [""]
    return next((line.lstrip(": ") for line in lines if line.startswith(":")), lines[0])[:500]


def score_range(what: _Package, task: _Task, out: str, batch_rows: int) -> Shard:
    """Scores a range of rows and writes its shard; runs on an executor.

    Raises:
        ServiceError: If the executor's package holds another model than the driver's.
        StoreError: If the shard cannot be written.
    """
    batches = read_batches(Path(task.path), task.shard.start, batch_rows, end=task.shard.start + task.shard.rows)
    # Spark may run a task twice at a time; both write the same, each into a file of its own until it is whole.
    attempt = f"-{socket.gethostname()}-{os.getpid()}"
    return write_shard(_job(what), Path(out), task.file, task.shard, batches, attempt=attempt)


@functools.lru_cache(maxsize=2)
def _job(what: _Package) -> BatchJob:
    digest = _digest(Path(what.folder))
    if digest != what.digest:
        raise ServiceError(f"{what.folder} on {socket.gethostname()} holds another model than the driver's")
    runtime = Runtime.load(what.folder, version=what.version)
    return BatchJob(runtime, what.names, what.id_column, what.keep)


def _digest(folder: Path) -> str:
    """Returns a digest of the model's file; empty where there is none, which loading it says better."""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    return "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
