"""What a batch job does with rows: reads ranges of Parquet files, scores them, and writes shards that appear whole."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput, NotFound, ServiceError, StoreError
from vitok.registry.files import sync_folder
from vitok.serving.batch_manifest import MANIFEST, InputFile, Manifest, Shard
from vitok.serving.runtime import Runtime

if TYPE_CHECKING:
    import pyarrow as pa

ROW_ID, SCORE, REASON = "row_id", "score", "reason"
QUARANTINE = "_quarantine"


class BatchJob:
    """What is done with a batch of rows.

    Args:
        runtime: The model.
        names: Columns of the features in order; for a model of several inputs the columns named as these.
        id_column: Column with the id of each row, if there is one.
        keep: Columns that go into the results as they are.

    Raises:
        InvalidInput: If the names do not fit the model.
    """

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
        """Returns what the results depend on, for the manifest."""
        return {
            "model": self._runtime.version,
            "model_size": self._runtime.size,
            "names": list(self._names),
            "id_column": self._id,
            "keep": list(self._keep),
        }

    def check(self, path: Path) -> None:
        """Looks whether a file has the columns.

        Raises:
            InvalidInput: If one lacks.
        """
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


def write_shard(
    job: BatchJob,
    out: Path,
    file: InputFile,
    begun: Shard,
    batches: "Iterable[pa.RecordBatch]",
    *,
    after_batch: Callable[[int], bool] = lambda _: False,
    attempt: str = "",
) -> Shard:
    """Scores batches and writes them as one shard, with what cannot be scored beside it in the quarantine.

    Args:
        job: What is done with them.
        out: The output folder.
        file: Where they come from.
        begun: The shard: its number, and where it begins.
        batches: Its rows, from `begun.start` on.
        after_batch: Called with the number of batches that are done; True ends the shard.
        attempt: Distinguishes those who may write the same shard at one time.

    Returns:
        The shard with its counts; its files are durable.

    Raises:
        StoreError: If it cannot be written.
    """
    results, bad = _Part(out, begun.file, attempt), _Part(out / QUARANTINE, begun.file, attempt)
    rows = scored = quarantined = 0
    try:
        for count, batch in enumerate(batches, 1):
            found, refused = job.results(batch, file, begun.start + rows)
            results.write(found)
            rows, scored = rows + len(batch), scored + len(found)
            if refused is not None:
                bad.write(refused)
                quarantined += len(refused)
            if after_batch(count):
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

    def __init__(self, folder: Path, name: str, attempt: str) -> None:
        self._folder, self._path = folder, folder / name
        self._temporary = folder / f".{self._path.stem}{attempt}.parquet.tmp"
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
        # What is wrong with the folder was said when it was written to.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._temporary.unlink()


def read_batches(path: Path, start: int, batch_rows: int, *, end: int | None = None) -> "Iterator[pa.RecordBatch]":
    """Reads rows of a Parquet file, without the row groups before them.

    Args:
        path: The file.
        start: The first row.
        batch_rows: Rows of a batch, at most.
        end: The row before which it ends; None for the whole file.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        left = (file.metadata.num_rows if end is None else end) - start
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        first = 0
        while first < len(groups) and start >= groups[first]:
            start -= groups[first]
            first += 1
        for batch in file.iter_batches(batch_rows, row_groups=list(range(first, len(groups)))):
            if start >= len(batch):
                start -= len(batch)
                continue
            if left <= 0:
                return
            found = batch.slice(start, left)
            yield found
            left -= len(found)
            start = 0


def find_files(inputs: str | Path | Sequence[str | Path], out: Path) -> list[tuple[Path, str]]:
    """Returns the Parquet files to be scored, each with its name, in order.

    Raises:
        NotFound: If there is none.
        InvalidInput: If one is named twice.
    """
    inputs = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    found: list[tuple[Path, str]] = []
    for item in map(Path, inputs):
        if item.is_dir():
            below = sorted(path for path in item.rglob("*.parquet") if out.resolve() not in path.resolve().parents)
            names = [(path, path.relative_to(item).as_posix()) for path in below]
            found += [(path, name) for path, name in names if not any(p[0] in "_." for p in Path(name).parts)]
        elif item.is_file():
            found.append((item, item.name))
        else:
            raise NotFound("input", str(item), sorted(map(str, item.parent.glob("*.parquet"))))
    if not found:
        raise NotFound("Parquet file", [str(item) for item in inputs], ())
    if len({path.resolve() for path, _ in found}) != len(found):
        raise InvalidInput("inputs", [str(item) for item in inputs], "name each file once")
    return found


def clear_leftovers(out: Path, manifest: Manifest) -> None:
    """Removes what a run left that died between a shard and its line.

    Raises:
        StoreError: If a shard of the manifest is gone.
    """
    known = {shard.file for shard in manifest.shards}
    for folder in (out, out / QUARANTINE):
        for path in (*folder.glob("part-*.parquet"), *folder.glob(".part-*.parquet.tmp")):
            if path.name not in known:
                path.unlink(missing_ok=True)
    lost = sorted(shard.file for shard in manifest.shards if not (out / shard.file).is_file())
    if lost:
        raise StoreError(f"{out / MANIFEST} names {lost[:3]}, which are gone; name another folder to score anew")
