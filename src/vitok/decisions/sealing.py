"""Turns a finished open segment into Parquet, without ever having two halves of it.

The Parquet file is written beside, flushed to disk and renamed; only then does the open file go. A process killed
in between leaves the open file, and the next start begins anew.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.framing import frames, torn
from vitok.decisions.index import write_index
from vitok.decisions.schema import readable

ROWS_PER_GROUP = 8_192
_SAMPLE = 512
_BATCHES_AT_ONCE = 64
# Reads skip row groups by these columns; statistics of sixty features would only make every footer longer.
_WITH_STATISTICS = ("decision_id", "request_id", "event_time", "ingest_time", "model_version", "kind")


def open_rows(path: Path) -> tuple[pa.Table, bool]:
    """Reads the whole messages of an open segment; see `whole_rows`."""
    return whole_rows(path.read_bytes())


def whole_rows(data: bytes) -> tuple[pa.Table, bool]:
    """Decodes the whole messages among the bytes of an open segment.

    Returns:
        The rows as they lie in the file, with no columns where not even a schema is whole; and whether the rest of
        the file, if any, is only the beginning of a message.
    """
    try:
        return pa.ipc.open_stream(pa.py_buffer(data)).read_all(), True
    except (pa.ArrowException, OSError):
        whole = 0
        for frame in frames(data):
            whole = frame.end
        if not whole:
            return pa.table({}), torn(data, 0)
        return pa.ipc.open_stream(pa.py_buffer(memoryview(data)[:whole])).read_all(), torn(data, whole)


def seal(source: Path, target: Path, *, rest: Callable[[float], object] | None = None) -> None:
    """Writes the rows of the open segment `source` to the Parquet file `target` and removes `source`.

    What follows the last whole message is, as a rule, a write that was cut short and that nobody acknowledged: it
    goes. Bytes that are anything else mean a damaged disk; the file is then kept beside, named `.damaged`.

    Args:
        source: The open segment.
        target: The sealed one.
        rest: Gets how many processor seconds were worked, a few hundredths at a time, and may wait so that others work.

    Raises:
        OSError: If the disk refuses; then `source` is as it was.
    """
    if target.exists():
        source.unlink(missing_ok=True)
        return
    data = source.read_bytes()
    usual = True
    try:
        _write(data, target, rest)
    except _CutShortError:
        whole = 0
        for frame in frames(data):
            whole = frame.end
        usual = torn(data, whole)
        if whole:
            _write(memoryview(data)[:whole], target, rest)
    if usual:
        source.unlink()
    else:
        source.rename(source.with_suffix(".damaged"))


class _CutShortError(Exception):
    # What is read ends within a message.
    pass


def _pieces(data: bytes | memoryview) -> Iterator[pa.Table]:
    # A few row groups at a time, each column in one part, since slices of thousands of small parts would be slow. To
    # join or to let go of so many at once holds the interpreter for longer than a request may take: a few at a time.
    few: list[pa.RecordBatch] = []
    joined: list[pa.Table] = []
    rows = 0
    try:
        for batch in pa.ipc.open_stream(pa.py_buffer(data)):
            few.append(batch)
            rows += batch.num_rows
            if len(few) >= _BATCHES_AT_ONCE or rows >= ROWS_PER_GROUP:
                joined.append(pa.Table.from_batches(few).combine_chunks())
                few = []
            if rows >= ROWS_PER_GROUP:
                table = pa.concat_tables(joined).combine_chunks()
                full = rows // ROWS_PER_GROUP * ROWS_PER_GROUP
                joined, rows = [table.slice(full)], rows - full
                yield table.slice(0, full)
    except (pa.ArrowException, OSError) as error:
        raise _CutShortError(str(error)) from error
    if few:
        joined.append(pa.Table.from_batches(few))
    if rows:
        yield pa.concat_tables(joined).combine_chunks()


def _write(data: bytes | memoryview, target: Path, rest: Callable[[float], object] | None) -> None:
    started = time.thread_time()
    pieces = _pieces(data)
    first = next(pieces, None)
    if first is None:
        return
    schema = readable(first.slice(0, 0)).schema
    statistics = [name for name in _WITH_STATISTICS if name in schema.names]
    indexed = [name for name in ("decision_id", "request_id") if "decision_id" in schema.names]
    once = set(indexed) or {"request_id"}
    repeated = [name for name in _repeated(first) if name not in once]
    ids: list[pa.Table] = []
    temporary = target.with_name(target.name + ".tmp")
    # Arrow's own file: a Python file would ask for the interpreter at every page while requests wait for it.
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": repeated, "write_statistics": statistics}
    with pa.OSFile(str(temporary), "wb") as file, pq.ParquetWriter(file, schema, **options) as writer:
        for piece in itertools.chain((first,), pieces):
            rows = readable(piece)
            ids.append(rows.select(indexed))
            writer.write_table(rows, row_group_size=ROWS_PER_GROUP)
            if rest is not None:
                rest(time.thread_time() - started)
                started = time.thread_time()
    if indexed:
        # Before the Parquet file has its name, so that a sealed segment always has its index.
        write_index(target, pa.concat_tables(ids))
    sync(temporary)
    temporary.rename(target)
    sync(target.parent)


def _repeated(table: pa.Table) -> list[str]:
    # Columns for which a dictionary pays: looking up numbers that all differ takes three times as long as writing them.
    sample = readable(table.slice(0, _SAMPLE))
    names = []
    for name, column in zip(sample.schema.names, sample.columns, strict=True):
        most = len(column) // 4
        if not pa.types.is_floating(column.type) or len(column.unique()) <= most:
            names.append(name)
    return names


def sync(path: Path) -> None:
    """Makes a file's bytes, or the names in a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
