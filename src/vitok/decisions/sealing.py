"""Turns a finished open segment into Parquet, without ever having two halves of it.

The Parquet file is written beside, flushed to disk and renamed; only then does the open file go. A process killed
in between leaves the open file, and the next start begins anew.
"""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.framing import frames, torn
from vitok.decisions.index import write_index
from vitok.decisions.schema import readable

ROWS_PER_GROUP = 8_192
_SAMPLE = 512
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


def seal(source: Path, target: Path) -> None:
    """Writes the rows of the open segment `source` to the Parquet file `target` and removes `source`.

    What follows the last whole message is, as a rule, a write that was cut short and that nobody acknowledged: it
    goes. Bytes that are anything else mean a damaged disk; the file is then kept beside, named `.damaged`.

    Raises:
        OSError: If the disk refuses; then `source` is as it was.
    """
    if target.exists():
        source.unlink(missing_ok=True)
        return
    table, usual = open_rows(source)
    if table.num_rows:
        _write(table, target)
    if usual:
        source.unlink()
    else:
        source.rename(source.with_suffix(".damaged"))


def _write(table: pa.Table, target: Path) -> None:
    first = readable(table.slice(0, 0))
    statistics = [name for name in _WITH_STATISTICS if name in first.schema.names]
    once = {"decision_id", "request_id"} if "decision_id" in first.schema.names else {"request_id"}
    repeated = [name for name in _repeated(table) if name not in once]
    if "decision_id" in table.schema.names:
        # Before the Parquet file has its name, so that a sealed segment always has its index.
        write_index(target, table)
    # One piece for each column: slices of thousands of small pieces would be slow, and hold the interpreter.
    table = table.combine_chunks()
    temporary = target.with_name(target.name + ".tmp")
    # Arrow's own file: a Python file would ask for the interpreter at every page while requests wait for it.
    with (
        pa.OSFile(str(temporary), "wb") as file,
        pq.ParquetWriter(
            file, first.schema, compression="zstd", use_dictionary=repeated, write_statistics=statistics
        ) as writer,
    ):
        for start in range(0, table.num_rows, ROWS_PER_GROUP):
            writer.write_table(readable(table.slice(start, ROWS_PER_GROUP)), row_group_size=ROWS_PER_GROUP)
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
