"""The log from its end: rows that match a condition, newest first, without touching what a page does not show.

A sealed segment gives only the columns that are asked for, and the scan ends with the page; of the open segment the
features, by far its largest part, are left out.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.decisions.schema import FEATURE_PREFIX, readable
from vitok.decisions.sealing import open_rows
from vitok.decisions.segments import Segment, sealed_path, segments

if TYPE_CHECKING:
    import polars as pl

SAMPLED = 80_000
SCANNED = 2_000_000
_FEATURES = "features"


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
    """
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
    """
    import polars as pl

    parts: list[pl.DataFrame] = []
    left = most
    opened = _whole if any(name.startswith(FEATURE_PREFIX) for name in columns) else _frame
    for segment in reversed(segments(folder)):
        frame = opened(folder, segment)
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


def sampled_rows(
    folder: Path, columns: Sequence[str], *, most: int = SAMPLED, until: int = SCANNED
) -> "tuple[pl.DataFrame | None, int]":
    """Reads the rows of one request in so many, the same requests in every log, so that a page never reads for long.

    Args:
        folder: Folder of a log of decisions or outcomes.
        columns: Names of the columns wanted, `request_id` among them; a segment that lacks one has nulls there.
        most: About how many rows are wanted.
        until: How many of the newest rows are looked at.

    Returns:
        The rows in the order of the log, None where there are none; and k, where one request in k was taken.
    """
    return taken_rows(folder, columns, one_in=one_in(folder, most=most, until=until), until=until)


def one_in(folder: Path, *, most: int = SAMPLED, until: int = SCANNED) -> int:
    """Returns k such that the rows of one request in k are about `most` of the newest `until` rows."""
    total = 0
    for frame in _from_the_end(folder):
        total += _length(frame)
        if total >= until:
            break
    return max(1, -(-min(total, until) // most))


def taken_rows(
    folder: Path, columns: Sequence[str], *, one_in: int, until: int = SCANNED
) -> "tuple[pl.DataFrame | None, int]":
    """Reads the rows of one request in `one_in`; as `sampled_rows`."""
    import polars as pl

    parts: list[pl.DataFrame] = []
    left = until
    opened = _whole if any(name.startswith(FEATURE_PREFIX) for name in columns) else _frame
    for segment in reversed(segments(folder)):
        frame = opened(folder, segment)
        if frame is None:
            continue
        names = frame.collect_schema().names()
        n = _length(frame)
        part = frame.tail(left)
        if one_in > 1:
            part = part.filter(pl.col("request_id").hash(seed=0) % one_in == 0)
        parts.append(part.select([name for name in columns if name in names]).collect())
        left -= n
        if left <= 0:
            break
    found = pl.concat(parts[::-1], how="diagonal_relaxed") if parts else None
    return (found if found is not None and found.height else None), one_in


def _whole(folder: Path, segment: Segment) -> "pl.LazyFrame | None":
    import polars as pl

    if segment.sealed:
        return pl.scan_parquet(segment.path, glob=False)
    try:
        table = open_rows(segment.path)[0]
    except FileNotFoundError:
        # It was sealed since the folder was listed.
        path = sealed_path(folder, segment.number)
        return pl.scan_parquet(path, glob=False) if path.exists() else None
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
        frame = _frame(folder, segment)
        if frame is not None:
            yield frame


def _frame(folder: Path, segment: Segment) -> "pl.LazyFrame | None":
    import polars as pl

    if not segment.sealed:
        try:
            table = open_rows(segment.path)[0]
        except FileNotFoundError:
            # It was sealed since the folder was listed.
            path = sealed_path(folder, segment.number)
            return pl.scan_parquet(path, glob=False) if path.exists() else None
        kept = [name for name in table.column_names if name != _FEATURES]
        frame = pl.from_arrow(table.select(kept)) if kept else None
        return frame.lazy() if isinstance(frame, pl.DataFrame) else None
    return pl.scan_parquet(segment.path, glob=False)
