"""Turns a finished open segment into Parquet, without ever having two halves of it.

The Parquet file is written beside, flushed to disk and renamed; only then does the open file go. A process killed
in between leaves the open file, and the next start begins anew.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.files import removed_on_failure, sync
from vitok.decisions.framing import frames, torn
from vitok.decisions.index import write_index
from vitok.decisions.schema import readable
from vitok.decisions.segments import partition
from vitok.decisions.sidecars import OnSeal, write_sidecars

ROWS_PER_GROUP = 8_192
_SAMPLE = 512
_BATCHES_AT_ONCE = 64
# How many zeros end an Arrow stream.
_END = 4
# Reads skip row groups by these columns; statistics of sixty features would only make every footer longer.
_WITH_STATISTICS = ("decision_id", "request_id", "event_time", "ingest_time", "model_version", "kind")


def open_rows(path: Path) -> tuple[pa.Table, bool]:
    """Reads the whole messages of an open segment; see `whole_rows`."""
    return whole_rows(path.read_bytes())


def whole_rows(data: bytes, wanted: Callable[[pa.Schema], Sequence[str]] | None = None) -> tuple[pa.Table, bool]:
    """Decodes the whole messages among the bytes of an open segment.

    Args:
        data: The bytes.
        wanted: Gives the columns, as they lie in the file, that are to be decoded; None for all.

    Returns:
        The rows as they lie in the file, with no columns where not even a schema is whole; and whether the rest of
        the file, if any, is only the beginning of a message.
    """
    try:
        return _read_all(pa.py_buffer(data), wanted), True
    except (pa.ArrowException, OSError):
        whole = 0
        for frame in frames(data):
            whole = frame.end
        if not whole:
            return pa.table({}), torn(data, 0)
        return _read_all(pa.py_buffer(memoryview(data)[:whole]), wanted), torn(data, whole)


def _read_all(data: pa.Buffer, wanted: Callable[[pa.Schema], Sequence[str]] | None) -> pa.Table:
    stream = pa.ipc.open_stream(data)
    if wanted is not None:
        places = [stream.schema.get_field_index(name) for name in wanted(stream.schema)]
        stream = pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(included_fields=places))
    return stream.read_all()


def seal(
    source: Path,
    target: Path | None = None,
    *,
    rest: Callable[[float], object] | None = None,
    on_seal: OnSeal | None = None,
) -> None:
    """Writes the rows of the open segment `source` to a Parquet file and removes `source`.

    What follows the last whole message is, as a rule, a write that was cut short and that nobody acknowledged: it
    goes. Bytes that are anything else mean a damaged disk; the file is then kept beside, named `.damaged`.

    Args:
        source: The open segment.
        target: The sealed one; None for the folder of the day and hour at which its first row was written.
        rest: Gets how many processor seconds were worked, a few hundredths at a time, and may wait so that others work.
        on_seal: Makes the files beside it, which are there before it is.

    Raises:
        OSError: If the disk refuses; then `source` is as it was, and nothing half written takes room.
    """
    data = source.read_bytes()
    try:
        whole = _write(data, source, target, rest, on_seal)
    except _CutShortError:
        whole = 0
        for frame in frames(data):
            whole = frame.end
        if whole:
            _write(memoryview(data)[:whole], source, target, rest, on_seal)
    if torn(data, whole):
        source.unlink()
    else:
        source.rename(source.with_suffix(".damaged"))


class _CutShortError(Exception):
    # What is read ends within a message.
    pass


def _pieces(source: pa.BufferReader, carried: dict[bytes, bytes]) -> Iterator[pa.Table]:
    # A few row groups at a time, each column in one part, since slices of thousands of small parts would be slow. To
    # join or to let go of so many at once holds the interpreter for longer than a request may take: a few at a time.
    few: list[pa.RecordBatch] = []
    joined: list[pa.Table] = []
    rows = 0
    try:
        for batch, notes in pa.ipc.open_stream(source).iter_batches_with_custom_metadata():
            carried.update({} if notes is None else dict(notes.items()))
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


def _write(
    data: bytes | memoryview,
    source: Path,
    target: Path | None,
    rest: Callable[[float], object] | None,
    on_seal: OnSeal | None,
) -> int:
    # Returns how many of the bytes are whole messages.
    started = time.thread_time()
    carried: dict[bytes, bytes] = {}
    stream = pa.BufferReader(pa.py_buffer(data))
    pieces = _pieces(stream, carried)
    first = next(pieces, None)
    if first is None:
        return _whole(stream, len(data))
    if target is None:
        began = first.column("ingest_time").cast(pa.int64())[0].as_py()
        target = source.parent / partition(began) / f"{source.stem}.parquet"
        _make(target.parent)
    if target.exists():
        # A process was killed before it could remove the open form.
        _clean(target)
        return len(data)
    schema = readable(first.slice(0, 0)).schema
    indexed = [name for name in ("decision_id", "request_id") if "decision_id" in schema.names]
    ids: list[pa.Table] = []
    kept: list[pa.Table] = []
    temporary = target.with_name(target.name + ".tmp")
    with removed_on_failure(temporary):
        # Arrow's own file: a Python file would ask for the interpreter at every page while requests wait for it.
        sample = readable(first.slice(0, _SAMPLE))
        with pa.OSFile(str(temporary), "wb") as file, sealed_writer(file, schema, sample) as out:
            for piece in itertools.chain((first,), pieces):
                rows = readable(piece)
                ids.append(rows.select(indexed))
                out.write_table(rows, row_group_size=ROWS_PER_GROUP)
                if on_seal is not None:
                    kept.append(rows)
                if rest is not None:
                    rest(time.thread_time() - started)
                    started = time.thread_time()
            if carried:
                # What the messages of batches carried, such as offsets of a topic: the last says it all.
                out.add_key_value_metadata(carried)
        if indexed:
            # Before the Parquet file has its name, so that a sealed segment always has its index.
            write_index(target, pa.concat_tables(ids))
        if on_seal is not None:
            write_sidecars(target, pa.concat_tables(kept), on_seal)
        sync(temporary)
        temporary.rename(target)
    sync(target.parent)
    _clean(target)
    return _whole(stream, len(data))


def _whole(stream: pa.BufferReader, size: int) -> int:
    # Zeros end a stream as the end of the bytes does: a hole that a power cut left in the middle of a file.
    end: int = stream.tell()
    return end - _END if end < size else size


def _clean(target: Path) -> None:
    # What processes left that were killed while they sealed it.
    for left in target.parent.glob(f"{target.stem}.*.tmp"):
        left.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    # Each new name must survive a power cut, or the file in it would not.
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sealed_writer(file: Any, schema: pa.Schema, sample: pa.Table) -> pq.ParquetWriter:
    """Opens a Parquet file as sealed segments are.

    Args:
        file: Where the bytes go.
        schema: As readers see it.
        sample: Some of the rows.
    """
    once = {"decision_id", "request_id"} if "decision_id" in schema.names else {"request_id"}
    repeated = [name for name in _repeated(sample) if name not in once]
    statistics = [name for name in _WITH_STATISTICS if name in schema.names]
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeated, write_statistics=statistics)


def _repeated(sample: pa.Table) -> list[str]:
    # Columns for which a dictionary pays: looking up numbers that all differ takes three times as long as writing them.
    names = []
    for name, column in zip(sample.schema.names, sample.columns, strict=True):
        most = len(column) // 4
        if not pa.types.is_floating(column.type) or len(column.unique()) <= most:
            names.append(name)
    return names
