"""Reading a log at rest: a span of it as a frame, or one decision."""

import contextlib
import io
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitok.decision import Decision
from vitok.decisions.framing import frames
from vitok.decisions.index import Key, candidates
from vitok.decisions.log import declared_schema
from vitok.decisions.opened import Times, opened_rows
from vitok.decisions.parts import moved, standing
from vitok.decisions.schema import FEATURE_PREFIX, LATER, readable, schema_of
from vitok.decisions.sealing import whole_rows
from vitok.decisions.segments import Segment, sealed_path, segments
from vitok.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    import polars as pl

# How many sealed segments are held open at the same time.
_AT_ONCE = 128
_MOST_KEPT = 50_000
_MARK = b"\xff\xff\xff\xff"
_WINDOW = 1 << 20
_MOST_MISSES = 32
# Rows are chosen by these, so they are read whatever columns are wanted.
_FILTERED = ("event_time", "ingest_time", "model_version", "kind")

_Bounds = tuple[int | None, int | None]


class Span(NamedTuple):
    """Bounds of the two times of a row in microseconds, each from, inclusive, and until, exclusive; None for none."""

    event: _Bounds = (None, None)
    ingest: _Bounds = (None, None)

    @property
    def unbounded(self) -> bool:
        """Whether all rows lie in it."""
        return self == Span()

    def touches(self, event: Times, ingest: Times) -> bool:
        """Says whether rows may lie in it of which the earliest and the latest times are given."""
        pairs = ((self.event, event), (self.ingest, ingest))
        return all(
            (low is None or last >= low) and (high is None or first < high) for (low, high), (first, last) in pairs
        )


class _Times(NamedTuple):
    # Earliest and latest times of a sealed segment, and its columns.
    event: Times
    ingest: Times
    schema: pa.Schema


# By path: which file it was, and what is known of it. A sealed segment is replaced, never changed.
_kept_times: dict[str, tuple[tuple[int, int, int], _Times | None]] = {}


def read(
    folder: str | Path,
    *,
    since: int | None = None,
    until: int | None = None,
    columns: Sequence[str] | None = None,
    models: Collection[str] | None = None,
) -> "pl.DataFrame":
    """Reads decisions, or outcomes, of a span of event time, in the order of the log.

    Sealed segments without a row of the span are not read, only their footers. What retention or a deletion changes
    meanwhile is seen as it was before or as it is afterwards, segment by segment.

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
    if columns is not None and not columns:
        raise InvalidInput("columns", columns, "name at least one column, or be None for all")
    return scan(Path(folder), Span(event=(since, until)), columns=columns, models=models)


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
            sealed: Path | None = segment.path if segment.sealed else sealed_path(Path(folder), segment.number)
            while row is None and sealed is not None:
                row = _find_sealed(sealed, key, wanted, raw)
                sealed = None if row is not None or sealed.exists() else moved(Path(folder), segment, sealed)
        if row is not None:
            return row
    return None


def _moment(microseconds: int) -> "pl.Expr":
    import polars as pl

    return pl.lit(microseconds).cast(pl.Datetime("us", "UTC"))


def _check_log(folder: Path) -> None:
    if not folder.is_dir():
        raise NotFound("log", str(folder))


def scan(
    folder: Path,
    span: Span,
    *,
    columns: Sequence[str] | None = None,
    models: Collection[str] | None = None,
    kind: str | None = None,
) -> "pl.DataFrame":
    """Reads rows whose times lie in a span, and if wanted only decisions of models or outcomes of a kind; see `read`.

    Raises:
        NotFound: If the folder holds no log, or a column is in none of its segments.
    """
    import polars as pl

    _check_log(folder)
    parts: list[pl.DataFrame] = []
    known: dict[str, None] = {}
    # Segments without a row of the span still tell which columns there are.
    shapes: set[tuple[tuple[str, str], ...]] = set()
    listed = segments(folder)
    needed = None if columns is None else {*columns, *_FILTERED}
    for first in range(0, len(listed), _AT_ONCE):
        with contextlib.ExitStack() as stack:
            frames_: list[pl.LazyFrame] = []
            for segment in listed[first : first + _AT_ONCE]:
                opened = _opened(folder, segment, span, needed, shapes, stack)
                if opened is None:
                    continue
                frame, names = opened
                known.update(dict.fromkeys(names))
                frames_.append(_chosen(frame, names, span, columns, models, kind))
            if frames_:
                parts.append(pl.concat(frames_, how="diagonal_relaxed").collect())
    if not parts:
        declared = declared_schema(folder)
        if declared is None:
            raise NotFound("log", str(folder))
        known.update(dict.fromkeys(declared.names))
        parts.append(_lazy(declared.empty_table()).collect())
    for name in columns or ():
        if name not in known:
            raise NotFound("column", name, known)
    whole = parts[0] if len(parts) == 1 else pl.concat(parts, how="diagonal_relaxed")
    return whole if columns is None else whole.select(columns)


def _opened(
    folder: Path,
    segment: Segment,
    span: Span,
    needed: Collection[str] | None,
    shapes: set[tuple[tuple[str, str], ...]],
    stack: contextlib.ExitStack,
) -> "tuple[pl.LazyFrame, Sequence[str]] | None":
    # The rows of a segment, of which not all may lie in the span nor all columns be there, and its columns' names.
    path = segment.path
    if not segment.sealed:
        try:
            rows, names = opened_rows(path, touches=None if span.unbounded else span.touches, columns=needed)
        except FileNotFoundError:
            path = sealed_path(folder, segment.number)
        else:
            return (_lazy(rows), names) if names else None
    while (source := stack.enter_context(_held(path))) is None:
        place = moved(folder, segment, path)
        if place is None:
            return None
        path = place
    within = standing(path, source, segment)
    # Only what is not wanted is looked at twice, and then remembered.
    times = None if span.unbounded else _times(path, source)
    if times is None or span.touches(times.event, times.ingest):
        frame = _completed(_parquet(source) if within is None else _parquet(source).slice(*within))
        return frame, frame.collect_schema().names()
    shape = tuple((field.name, str(field.type)) for field in times.schema)
    if shape in shapes:
        return None
    shapes.add(shape)
    frame = _completed(_lazy(times.schema.empty_table()))
    return frame, frame.collect_schema().names()


def _chosen(
    frame: "pl.LazyFrame",
    names: Sequence[str],
    span: Span,
    columns: Sequence[str] | None,
    models: Collection[str] | None,
    kind: str | None,
) -> "pl.LazyFrame":
    import polars as pl

    for name, (low, high) in (("event_time", span.event), ("ingest_time", span.ingest)):
        if low is not None:
            frame = frame.filter(pl.col(name) >= _moment(low))
        if high is not None:
            frame = frame.filter(pl.col(name) < _moment(high))
    if models is not None:
        if "model_version" not in names:
            raise InvalidInput("models", list(models), "be None for a log of outcomes")
        frame = frame.filter(pl.col("model_version").is_in(list(models)))
    if kind is not None:
        frame = frame.filter(pl.col("kind") == kind)
    # The event time goes along so that a segment with none of the columns still gives its rows.
    wanted = {"event_time", *(columns or ())}
    return frame if columns is None else frame.select([name for name in names if name in wanted])


@contextlib.contextmanager
def _held(path: Path) -> Iterator[str | None]:
    # Gives a name for the file as it is now, which stays when another takes its place; None where it has gone.
    # Between two looks at a path, such as for the footer and for the rows, a deletion may come.
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield f"/dev/fd/{fd}"
    finally:
        os.close(fd)


def _parquet(source: str) -> "pl.LazyFrame":
    import polars as pl

    return pl.scan_parquet(source, glob=False)


def _times(path: Path, source: str) -> _Times | None:
    stat = os.stat(source)  # noqa: PTH116
    key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
    found = _kept_times.get(str(path))
    if found is None or found[0] != key:
        if len(_kept_times) >= _MOST_KEPT:
            _kept_times.clear()
        found = _kept_times[str(path)] = key, _read_times(source)
    return found[1]


def _read_times(source: str) -> _Times | None:
    metadata = pq.read_metadata(source)
    schema = metadata.schema.to_arrow_schema()
    spans = []
    for name in ("event_time", "ingest_time"):
        at = schema.get_field_index(name)
        found = [metadata.row_group(group).column(at).statistics for group in range(metadata.num_row_groups)]
        if at < 0 or not found or not all(one is not None and one.has_min_max for one in found):
            return None
        # As whole numbers: a time before the year 1 or after 9999 is no `datetime`.
        spans.append((min(one.min_raw for one in found), max(one.max_raw for one in found)))
    return _Times(spans[0], spans[1], schema.remove_metadata())


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
        table, names = opened_rows(segment.path)
    except FileNotFoundError:
        sealed = sealed_path(segment.path.parent, segment.number)
        return sealed if sealed.exists() else None
    return table if names else None


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
    with _held(path) as source:
        if source is None:
            return None
        for row in rows or ():
            found = _row(_parquet(source).slice(row, 1).collect(), source, key, wanted)
            if found is not None:
                return found
        # There is no index, or the segment was written anew since it was read.
        return _row(_parquet(source).filter(pl.col(key) == wanted).head(1).collect(), source, key, wanted)


def _row(frame: "pl.DataFrame", source: str, key: Key, wanted: bytes | str) -> Decision | None:
    if frame.is_empty() or frame[key][0] != wanted:
        return None
    return _decision(frame.to_arrow().replace_schema_metadata(pq.read_schema(source).metadata), 0)


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
