"""The log from its end: rows that match a condition, newest first, without touching what a page does not show.

A sealed segment gives only the columns that are asked for, and the scan ends with the page; of the open segment the
features, by far its largest part, are left out. Where a file goes away under a reader, because it was sealed, merged or
too old, the folder is listed again and read from its end once more.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitok.decisions.schema import FEATURE_PREFIX, readable
from vitok.decisions.sealing import open_rows
from vitok.decisions.segments import Segment, segments
from vitok.errors import StoreError

if TYPE_CHECKING:
    import polars as pl

SAMPLED = 80_000
SCANNED = 2_000_000
_FEATURES = "features"
_TRIES = 8

_Read = TypeVar("_Read")


def newest(
    folder: Path, columns: Sequence[str], condition: "pl.Expr | None", *, skip: int, most: int
) -> tuple[list[dict[str, Any]], int]:
    """Reads rows from the end of a log.

    Args:
        folder: Folder of a log of decisions.
        columns: Names of the columns wanted; a segment that lacks one of them gives no rows.
        condition: Which rows; None for all.
        skip: How many of the newest are passed over.
        most: How many rows are wanted.

    Returns:
        The rows, newest first, with `decision_id` as text; and how many match in the whole log.

    Raises:
        StoreError: If files go away under the reader each time that it begins anew.
    """
    return _whatever_goes(folder, lambda: _newest(folder, columns, condition, skip=skip, most=most))


def _newest(
    folder: Path, columns: Sequence[str], condition: "pl.Expr | None", *, skip: int, most: int
) -> tuple[list[dict[str, Any]], int]:
    rows: list[dict[str, Any]] = []
    total = 0
    for frame in _from_the_end(folder):
        names = frame.collect_schema().names()
        if not set(columns) <= set(names):
            continue
        matching = frame if condition is None else frame.filter(condition)
        here = _length(matching)
        start = max(0, skip - total)
        if len(rows) < most and here > start:
            wanted = matching.select(columns).reverse().slice(start, most - len(rows)).collect()
            rows += [_named(row) for row in wanted.rows(named=True)]
        total += here
    return rows, total


def latest_rows(folder: Path, columns: Sequence[str], *, most: int) -> "pl.DataFrame | None":
    """Reads the last rows of a log, those of open segments with their features.

    Args:
        folder: Folder of a log of decisions or outcomes.
        columns: Names of the columns wanted; a segment that lacks one has nulls there.
        most: How many rows are wanted.

    Returns:
        The rows, of the latest segment first; None where there are none.

    Raises:
        StoreError: As of `newest`.
    """
    return _whatever_goes(folder, lambda: _latest(folder, columns, most))


def _latest(folder: Path, columns: Sequence[str], most: int) -> "pl.DataFrame | None":
    import polars as pl

    parts: list[pl.DataFrame] = []
    left = most
    opened = _whole if any(name.startswith(FEATURE_PREFIX) for name in columns) else _frame
    for segment in reversed(segments(folder)):
        frame = opened(segment)
        if frame is None:
            continue
        names = frame.collect_schema().names()
        part = frame.select([name for name in columns if name in names]).tail(left).collect()
        if part.height:
            parts.append(part)
            left -= part.height
        if left <= 0:
            break
    return pl.concat(parts, how="diagonal_relaxed") if parts else None


def one_in(folder: Path, *, most: int = SAMPLED, until: int = SCANNED) -> int:
    """Returns k such that the rows of one request in k are about `most` of the newest `until` rows.

    Raises:
        StoreError: As of `newest`.
    """

    def counted() -> int:
        total = 0
        for frame in _from_the_end(folder):
            total += _length(frame)
            if total >= until:
                break
        return total

    total = _whatever_goes(folder, counted)
    return max(1, -(-min(total, until) // most))


def taken_rows(
    folder: Path,
    columns: Sequence[str],
    *,
    one_in: int,
    until: int = SCANNED,
    condition: "pl.Expr | None" = None,
) -> "tuple[pl.DataFrame | None, int]":
    """Reads the rows of one request in so many, the same requests in every log, so that a page never reads for long.

    Args:
        folder: Folder of a log of decisions or outcomes.
        columns: Names of the columns wanted, `request_id` among them; a segment that lacks one has nulls there.
        one_in: One request in so many is taken: the function of that name says how many for a page.
        until: How many of the newest rows are looked at.
        condition: Which rows; None for all. A segment that lacks one of its columns gives none.

    Returns:
        The rows in the order of the log, None where there are none; and `one_in`.

    Raises:
        StoreError: As of `newest`.
    """
    return _whatever_goes(folder, lambda: _taken(folder, columns, one_in, until, condition)), one_in


def _taken(
    folder: Path, columns: Sequence[str], one_in: int, until: int, condition: "pl.Expr | None"
) -> "pl.DataFrame | None":
    import polars as pl

    parts: list[pl.DataFrame] = []
    left = until
    opened = _whole if any(name.startswith(FEATURE_PREFIX) for name in columns) else _frame
    for segment in reversed(segments(folder)):
        frame = opened(segment)
        if frame is None:
            continue
        names = frame.collect_schema().names()
        n = _length(frame)
        part = frame.tail(left)
        if condition is not None:
            part = part.filter(condition if set(condition.meta.root_names()) <= set(names) else False)
        if one_in > 1:
            part = part.filter(pl.col("request_id").hash(seed=0) % one_in == 0)
        parts.append(part.select([name for name in columns if name in names]).collect())
        left -= n
        if left <= 0:
            break
    found = pl.concat(parts[::-1], how="diagonal_relaxed") if parts else None
    return found if found is not None and found.height else None


def _whatever_goes(folder: Path, read: Callable[[], _Read]) -> _Read:
    # What was read before the file went is read again: its rows may since be in another file, beside some of those.
    for _ in range(_TRIES):
        try:
            return read()
        except FileNotFoundError as error:
            gone = error
    raise StoreError(f"{str(folder)!r}: files went away {_TRIES} times while they were read; try again") from gone


def _whole(segment: Segment) -> "pl.LazyFrame | None":
    import polars as pl

    if segment.sealed:
        return pl.scan_parquet(segment.path, glob=False)
    table = open_rows(segment.path)[0]
    frame = pl.from_arrow(readable(table)) if table.column_names else None
    return frame.lazy() if isinstance(frame, pl.DataFrame) else None


def _length(frame: "pl.LazyFrame") -> int:
    import polars as pl

    return int(frame.select(pl.len()).collect().item())


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(row)
    if "decision_id" in found:
        found["decision_id"] = str(uuid.UUID(bytes=found["decision_id"]))
    return found


def _from_the_end(folder: Path) -> "Iterator[pl.LazyFrame]":
    for segment in reversed(segments(folder)):
        frame = _frame(segment)
        if frame is not None:
            yield frame


def _frame(segment: Segment) -> "pl.LazyFrame | None":
    import polars as pl

    if not segment.sealed:
        table = open_rows(segment.path)[0]
        kept = [name for name in table.column_names if name != _FEATURES]
        frame = pl.from_arrow(table.select(kept)) if kept else None
        return frame.lazy() if isinstance(frame, pl.DataFrame) else None
    return pl.scan_parquet(segment.path, glob=False)
