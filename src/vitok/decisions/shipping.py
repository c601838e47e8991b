"""Sealed segments brought to a store beyond one machine: each once, and again when it was written anew.

A store may keep rows for longer than the log. What was deleted because of a subject goes from the store all the same.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitok import ids
from vitok.decisions.forgetting import forgotten
from vitok.decisions.parts import moved, parts_of
from vitok.decisions.schema import readable
from vitok.decisions.segments import Segment, numbers, segment_name, segments
from vitok.engines.log_store import FILE, SEGMENT, LogStore
from vitok.errors import InvalidInput, NotFound

_AT_ONCE = 1_000


def ship(folder: str | Path, store: LogStore, table: str, *, mirror: bool = False) -> int:
    """Brings the sealed segments of a log to a store.

    A segment is brought when the store has not all of its rows, or has those of an earlier file of it: after a
    deletion or a redaction, shipping makes the store follow. A segment that `forget` took rows of goes from the store
    with what it has of it, where nothing of it is in the log any more and the store has it as it was before. Killed at
    any moment, the next call goes on.

    Args:
        folder: Folder of the log.
        store: As `vitok.engines.log_store.open_log_store` opens it.
        table: Name of the table; `decision_id` is text in it.
        mirror: Whether segments that are gone from the log, by age, go from the store too. Without it the store keeps
            them: neither `forget` nor `redact` reaches these rows, but `forget_shipped` does.

    Returns:
        How many segments were brought or removed.

    Raises:
        NotFound: If the folder holds no log.
        InvalidInput: If a column has another type in the store.
        StoreError: If the store cannot be reached or refuses, or the note of what was deleted is damaged.

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
    left = forgotten(top)
    for name, (_, count) in there.items():
        number, _ = numbers(f"{name}.parquet") or (0, 0)
        # With fewer rows it was brought after the deletion.
        if mirror or count > left.get(number, count):
            store.put(table, name, pa.table({FILE: pa.array([], pa.string())}))
            n += 1
    return n


def forget_shipped(
    store: LogStore, column: str, value: str, *, decisions: str = "decisions", outcomes: str | None = "outcomes"
) -> int:
    """Deletes one subject's decisions and their outcomes from a store, those too that only the store still has.

    Do this first, then `forget` in the log, then `ship`: what is shipped meanwhile comes from the log, and follows it.
    Killed at any moment, it is done again by calling it again; what else such a kill may cost says the store's `put`.

    Args:
        store: As `vitok.engines.log_store.open_log_store` opens it.
        column: The column of texts that names the subject, such as `"customer_id"`.
        value: The subject in it.
        decisions: Name of the table of decisions.
        outcomes: Name of that of outcomes; None where the store has none.

    Returns:
        How many rows went.

    Raises:
        InvalidInput: If the store has no such table or column.
        StoreError: If the store cannot be reached or refuses.

    Example:
        >>> import tempfile
        >>> from vitok.engines.log_store import open_log_store
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = open_log_store(f"duckdb://{folder}/log.duckdb")
        ...     rows = pa.table({"request_id": ["r1", "r2"], "customer_id": ["17", "4"]})
        ...     store.put("decisions", "segment-00000001", rows)
        ...     forget_shipped(store, "customer_id", "17", outcomes=None)
        ...     print(store.query("SELECT request_id FROM decisions").to_pylist())
        ...     store.close()
        1
        [{'request_id': 'r2'}]
    """
    if '"' in column:
        raise InvalidInput("column", column, "have no quotes")
    n = 0
    if outcomes is not None:
        # Before the decisions, which say whose outcomes to look for.
        found = store.query(f"SELECT DISTINCT request_id FROM {decisions} WHERE {_among(column, [value])}")  # noqa: S608
        n += _erase(store, outcomes, "request_id", found.column(0).to_pylist())
    return n + _erase(store, decisions, column, [value])


def _erase(store: LogStore, table: str, column: str, values: list[str]) -> int:
    names: set[str] = set()
    for at in range(0, len(values), _AT_ONCE):
        some = values[at : at + _AT_ONCE]
        sql = f'SELECT DISTINCT "{SEGMENT}" FROM {table} WHERE {_among(column, some)}'  # noqa: S608
        names.update(store.query(sql).column(0).to_pylist())
    n = 0
    for name in sorted(names):
        rows = store.query(f"SELECT * FROM {table} WHERE {_among(SEGMENT, [name])}")  # noqa: S608
        rows = rows.drop_columns([SEGMENT])
        going = pc.is_in(rows.column(column), value_set=pa.array(values, pa.string()))
        store.put(table, name, rows.filter(pc.invert(going)))
        n += int(pc.sum(going).as_py())
    return n


def _among(column: str, values: Iterable[str]) -> str:
    # In hex, since stores differ in how a text with quotes and backslashes is written.
    listed = ", ".join(f"'{one.encode().hex().upper()}'" for one in values)
    return f'hex("{column}") IN ({listed})'


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
