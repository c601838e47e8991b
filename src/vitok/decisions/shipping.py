"""Sealed segments brought to a store beyond one machine: each once, and again when it was written anew."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from vitok import ids
from vitok.decisions.parts import moved, parts_of
from vitok.decisions.schema import readable
from vitok.decisions.segments import Segment, segment_name, segments
from vitok.engines.log_store import FILE, SEGMENT, LogStore
from vitok.errors import NotFound


def ship(folder: str | Path, store: LogStore, table: str, *, mirror: bool = False) -> int:
    """Brings the sealed segments of a log to a store.

    A segment is brought when the store has not all of its rows, or has those of an earlier file of it: after a
    deletion or a redaction, shipping makes the store follow. Killed at any moment, the next call goes on.

    Args:
        folder: Folder of the log.
        store: As `vitok.engines.log_store.open_log_store` opens it.
        table: Name of the table; `decision_id` is text in it.
        mirror: Whether segments that are gone from the log, by age, go from the store too.

    Returns:
        How many segments were brought or removed.

    Raises:
        NotFound: If the folder holds no log.
        InvalidInput: If a column has another type in the store.
        StoreError: If the store cannot be reached or refuses.

    Example:
        >>> import tempfile
        >>> from vitok.decision import Outcome
        >>> from vitok.decisions import OutcomeLog
        >>> from vitok.engines.log_store import open_log_store
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with OutcomeLog(f"{folder}/outcomes") as log:
        ...         _ = log.append([Outcome(request_id="r1", kind="fraud", value=1.0, event_time=5)])
        ...     store = open_log_store(f"duckdb://{folder}/log.duckdb")
        ...     print([ship(f"{folder}/outcomes", store, "outcomes") for _ in range(2)])
        ...     print(store.query("SELECT request_id, value FROM outcomes").to_pylist())
        ...     store.close()
        [1, 0]
        [{'request_id': 'r1', 'value': 1.0}]
    """
    top = Path(folder)
    if not top.is_dir():
        raise NotFound("log", str(top))
    sealed = [segment for segment in segments(top) if segment.sealed]
    # The table must be there to be asked what it has.
    store.put(table, "none", pa.table({FILE: pa.array([], pa.string())}))
    by_segment = f'SELECT "{SEGMENT}", min("{FILE}") AS f, count(*) AS n FROM {table} GROUP BY "{SEGMENT}"'  # noqa: S608
    listed: Any = store.query(by_segment)
    there = {row[SEGMENT]: (row["f"], row["n"]) for row in listed.to_pylist()}
    n = 0
    for segment in sealed:
        n += _bring(top, segment, store, table, there)
    if mirror:
        for name in there:
            store.put(table, name, pa.table({FILE: pa.array([], pa.string())}))
            n += 1
    return n


def _bring(top: Path, segment: Segment, store: LogStore, table: str, there: dict[str, tuple[str, int]]) -> int:
    # Takes what is in the log from `there`. The store has each segment under its own name, merged or not: so a merge
    # brings nothing twice.
    path: Path | None = segment.path
    while path is not None:
        try:
            with path.open("rb") as opened:
                return _bring_from(opened, segment, store, table, there)
        except FileNotFoundError:
            # It was merged since the folder was listed, or has gone: what the store has of it goes as of all that are
            # gone.
            path = moved(top, segment, path)
    return 0


def _bring_from(
    opened: BinaryIO, segment: Segment, store: LogStore, table: str, there: dict[str, tuple[str, int]]
) -> int:
    stat = os.fstat(opened.fileno())
    metadata = pq.read_metadata(opened)
    parts = parts_of(metadata.metadata, number=segment.number, rows=metadata.num_rows)
    rows: pa.Table | None = None
    n = begin = 0
    for part in parts:
        first, begin = begin, begin + part.rows
        if not segment.first <= part.number <= segment.number:
            continue
        name, file = segment_name(part.number), part.file or f"{stat.st_size}-{stat.st_mtime_ns}"
        if there.pop(name, None) == (file, part.rows):
            continue
        if rows is None:
            rows = _portable(readable(pq.read_table(opened, partitioning=None)))
        store.put(table, name, rows.slice(first, part.rows).append_column(FILE, pa.repeat(file, part.rows)))
        n += 1
    return n


def _portable(rows: pa.Table) -> pa.Table:
    at = rows.schema.get_field_index("decision_id")
    if at < 0:
        return rows
    texts = [ids.text(one) for one in rows.column(at).to_pylist()]
    return rows.set_column(at, "decision_id", pa.array(texts, pa.string()))
