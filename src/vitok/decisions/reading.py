"""Reading a log at rest: a span of it as a frame, or one decision."""

import contextlib
import io
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitok.decision import Decision
from vitok.decisions.framing import frames
from vitok.decisions.index import Key, candidates
from vitok.decisions.log import declared_schema
from vitok.decisions.schema import FEATURE_PREFIX, LATER, readable, schema_of
from vitok.decisions.sealing import open_rows, whole_rows
from vitok.decisions.segments import Segment, sealed_path, segments
from vitok.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    import polars as pl

_MARK = b"\xff\xff\xff\xff"
_WINDOW = 1 << 20
_MOST_MISSES = 32


def read(
    folder: str | Path,
    *,
    since: int | None = None,
    until: int | None = None,
    columns: Sequence[str] | None = None,
    models: Collection[str] | None = None,
) -> "pl.DataFrame":
    """Reads decisions, or outcomes, of a span of event time, in the order of the log.

    Args:
        folder: Folder of the log.
        since: Event time of the earliest row, in microseconds, inclusive.
        until: Event time at which the span ends, in microseconds, exclusive.
        columns: Names of the columns wanted, in this order; all by default.
        models: Only decisions of these model versions.

    Returns:
        One row per record; features as columns `f_<name>`; null where the segment of a row has no such column.

    Raises:
        NotFound: If the folder holds no log, or a column is in none of its segments.

    Example:
        >>> import tempfile
        >>> from vitok.decisions import DecisionLog, LogSchema
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     DecisionLog(folder, LogSchema("fraud", ("customer_id",), (), ("count_1d",))).close()
        ...     read(folder, columns=["request_id", "f_count_1d"]).schema
        Schema([('request_id', String), ('f_count_1d', Float64)])
    """
    import polars as pl

    parts = []
    known: dict[str, None] = {}
    for frame in _scan(Path(folder)):
        names = frame.collect_schema().names()
        known.update(dict.fromkeys(names))
        if since is not None:
            frame = frame.filter(pl.col("event_time") >= _moment(since))
        if until is not None:
            frame = frame.filter(pl.col("event_time") < _moment(until))
        if models is not None:
            if "model_version" not in names:
                raise InvalidInput("models", list(models), "be None for a log of outcomes")
            frame = frame.filter(pl.col("model_version").is_in(list(models)))
        # The event time goes along so that a segment with none of the columns still gives its rows.
        wanted = {"event_time", *(columns or ())}
        parts.append(frame if columns is None else frame.select([name for name in names if name in wanted]))
    if columns is None:
        return pl.concat(parts, how="diagonal_relaxed").collect()
    if not columns:
        raise InvalidInput("columns", columns, "name at least one column, or be None for all")
    for name in columns:
        if name not in known:
            raise NotFound("column", name, known)
    return pl.concat(parts, how="diagonal_relaxed").select(columns).collect()


def find(folder: str | Path, *, decision_id: str | None = None, request_id: str | None = None) -> Decision | None:
    """Finds one decision by its id or by the caller's; the first in the log where a request was decided twice.

    Args:
        folder: Folder of a decision log.
        decision_id: UUID as text.
        request_id: The caller's id.

    Returns:
        The decision, or None.

    Raises:
        InvalidInput: If not exactly one id is given, or the decision's is no UUID.
        NotFound: If the folder holds no log.
    """
    if (decision_id is None) == (request_id is None):
        raise InvalidInput("decision_id, request_id", (decision_id, request_id), "be given one of the two")
    key: Key
    wanted: bytes | str
    if decision_id is not None:
        try:
            key, wanted = "decision_id", uuid.UUID(decision_id).bytes
        except ValueError:
            raise InvalidInput("decision_id", decision_id, "be a UUID as text") from None
    else:
        key, wanted = "request_id", str(request_id)
    raw = wanted if isinstance(wanted, bytes) else wanted.encode()
    _check_log(Path(folder))
    for segment in segments(Path(folder)):
        row = None if segment.sealed else _find_open(segment.path, key, wanted, raw)
        if row is None:
            sealed = segment.path if segment.sealed else sealed_path(Path(folder), segment.number)
            row = _find_sealed(sealed, key, wanted, raw)
        if row is not None:
            return row
    return None


def _moment(microseconds: int) -> "pl.Expr":
    import polars as pl

    return pl.lit(microseconds).cast(pl.Datetime("us", "UTC"))


def _check_log(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFound("log", str(folder))


def _scan(folder: Path) -> "list[pl.LazyFrame]":
    import polars as pl

    _check_log(folder)
    parts = []
    for segment in segments(folder):
        table = segment.path if segment.sealed else open_table(segment)
        if isinstance(table, Path):
            parts.append(_completed(pl.scan_parquet(table, glob=False)))
        elif table is not None:
            parts.append(_lazy(table))
    if not parts:
        declared = declared_schema(folder)
        if declared is None:
            raise NotFound("log", str(folder))
        parts.append(_lazy(declared.empty_table()))
    return parts


def _completed(frame: "pl.LazyFrame") -> "pl.LazyFrame":
    # A segment may be older than a column that every log has by now.
    import polars as pl

    names = frame.collect_schema().names()
    if "decision_id" not in names:
        return frame
    return frame.with_columns(pl.lit(None, pl.String).alias(name) for name in LATER if name not in names)


def _lazy(table: pa.Table) -> "pl.LazyFrame":
    import polars as pl

    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101
    return frame.lazy()


def open_table(segment: Segment) -> pa.Table | Path | None:
    """Reads an open segment; where it was sealed meanwhile returns that path, where it held nothing None."""
    try:
        table = readable(open_rows(segment.path)[0])
    except FileNotFoundError:
        sealed = sealed_path(segment.path.parent, segment.number)
        return sealed if sealed.exists() else None
    return table if table.num_columns else None


def _find_open(path: Path, key: Key, wanted: bytes | str, raw: bytes) -> Decision | None:
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    with file:
        head = file.read(_WINDOW)
        schema = next(frames(head), None)
        if schema is None:
            return None
        looked, misses = schema.end, 0
        for at in _occurrences(file, raw):
            if at < looked:
                continue
            if misses == _MOST_MISSES:
                # A short id is part of many others: looking at every row at once is then the faster way.
                file.seek(0)
                return _find_row(whole_rows(file.readall())[0], key, wanted)
            for end, message in _messages_around(file, at):
                with contextlib.suppress(pa.ArrowException, OSError):
                    table = pa.ipc.open_stream(pa.py_buffer(head[: schema.end] + message)).read_all()
                    found = _find_row(table, key, wanted)
                    if found is not None:
                        return found
                    looked = end
                    break
            misses += 1
    return None


def _find_row(table: pa.Table, key: Key, wanted: bytes | str) -> Decision | None:
    row = pc.index(table.column(key), pa.scalar(wanted, type=table.column(key).type)).as_py()
    return _decision(readable(table.slice(row, 1)), 0) if row >= 0 else None


def _occurrences(file: io.FileIO, raw: bytes) -> Iterator[int]:
    """Finds where in the file bytes occur; the file is looked through in one buffer and never held whole."""
    buffer = bytearray(_WINDOW + len(raw))
    start = 0
    while (size := os.preadv(file.fileno(), [buffer], start)) >= max(1, len(raw)):
        at = buffer.find(raw, 0, size)
        while at >= 0:
            if at < _WINDOW:
                yield start + at
            at = buffer.find(raw, at + 1, size)
        start += _WINDOW


def _messages_around(file: io.FileIO, at: int) -> Iterator[tuple[int, bytes]]:
    """Gives what looks like a whole message around byte `at`, nearest start first, each with its end in the file."""
    span = _WINDOW // 16
    while True:
        low = max(0, at - span)
        data = os.pread(file.fileno(), at - low + span, low)
        start = data.rfind(_MARK, 0, at - low)
        while start >= 0:
            frame = next(frames(data, start), None)
            if frame is not None and frame.end > at - low:
                yield low + frame.end, data[start : frame.end]
            start = data.rfind(_MARK, 0, start)
        if low == 0 and len(data) < at - low + span:
            return
        span *= 8


def _find_sealed(path: Path, key: Key, wanted: bytes | str, raw: bytes) -> Decision | None:
    import polars as pl

    rows = candidates(path, key, raw)
    if rows == []:
        return None
    for row in rows or ():
        found = _row(pl.scan_parquet(path, glob=False).slice(row, 1).collect(), path, key, wanted)
        if found is not None:
            return found
    # There is no index, or the segment was written anew since it was read.
    if not path.exists():
        return None
    return _row(pl.scan_parquet(path, glob=False).filter(pl.col(key) == wanted).head(1).collect(), path, key, wanted)


def _row(frame: "pl.DataFrame", path: Path, key: Key, wanted: bytes | str) -> Decision | None:
    if frame.is_empty() or frame[key][0] != wanted:
        return None
    return _decision(frame.to_arrow().replace_schema_metadata(pq.read_schema(path).metadata), 0)


def _decision(table: pa.Table, index: int) -> Decision:
    schema = schema_of(table.schema)
    if schema is None:
        raise InvalidInput("folder", "a log of outcomes", "hold decisions")
    row = {name: table.column(name)[index] for name in table.schema.names}
    times = {name: row.pop(name).cast(pa.int64()).as_py() for name in ("event_time", "ingest_time")}
    values = {name: value.as_py() for name, value in row.items()} | times
    values["decision_id"] = str(uuid.UUID(bytes=values["decision_id"]))
    own = {*schema.entities, *(name for name, _ in schema.request)}
    # Nulls are what rows have that are older than the column.
    known = {
        name: value for name, value in values.items() if name not in own and (name not in LATER or value is not None)
    }
    return Decision(
        **{name: known[name] for name in Decision.__struct_fields__ if name in known},
        entities={name: values[name] for name in schema.entities},
        request={name: values[name] for name, _ in schema.request},
        features={name: values[FEATURE_PREFIX + name] for name in schema.features},
    )
