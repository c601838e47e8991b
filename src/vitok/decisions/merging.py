"""Small sealed segments made into one file, so that a scan of a quiet log does not pay for each.

The segments of a day that one process after another has written lie side by side in a merged file, and it knows which
rows are whose: places in the log, what a store beyond one machine has, and receipts of deletions keep their meaning.
The file takes the place of all of them in one step, at its renaming; what they leave behind goes then.
"""

import contextlib
import datetime as dt
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vitok.clock import DAY, duration
from vitok.decisions.files import sync
from vitok.decisions.forgetting import BEGUN
from vitok.decisions.index import write_index
from vitok.decisions.parts import PARTS_KEY, Part, noted, parts_of
from vitok.decisions.rewriting import furthest, give_way, maintained, remove_beside
from vitok.decisions.schema import OFFSETS_KEY, REMOVED_KEY, readable
from vitok.decisions.sealing import ROWS_PER_GROUP, sealed_writer
from vitok.decisions.segments import LANE, Segment, numbers, segment_name, segments
from vitok.decisions.sidecars import OnSeal, write_sidecars
from vitok.errors import Conflict, InvalidInput, NotFound

_SAMPLE = 512
# What a file knows of its parts is read with its footer.
_MOST_PARTS = 1_000
_NOT_SHARED = (b"ARROW:schema", OFFSETS_KEY, REMOVED_KEY, PARTS_KEY)


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What merging did to a log.

    Attributes:
        segments_before: Sealed files that were made into others.
        segments_after: Files that took their place.
        rows: Rows in these.
        bytes_before: Size of the files before.
        bytes_after: Size of those that took their place.
        stopped: Whether its time was over before all was looked at: the next call goes on.
    """

    segments_before: int
    segments_after: int
    rows: int
    bytes_before: int
    bytes_after: int
    stopped: bool = False

    def __str__(self) -> str:
        """Says it in one line."""
        if not self.segments_before:
            return "nothing to merge"
        return (
            f"{self.segments_before:,} sealed files with {self.rows:,} rows and {self.bytes_before:,} bytes became "
            f"{self.segments_after:,} of {self.bytes_after:,} bytes" + ("; there may be more" if self.stopped else "")
        )


class _Small(NamedTuple):
    # A sealed file that is worth merging; files of one kind may lie side by side.
    segment: Segment
    rows: int
    parts: int
    kind: tuple[pa.Schema, dict[bytes, bytes]]


def merge(
    folder: str | Path,
    *,
    older_than: int | str = "1d",
    now: int,
    rows: int = 100_000,
    on_seal: OnSeal | None = None,
    seconds: float | None = None,
) -> Merged:
    """Makes the small sealed segments of each day into as few files as there must be.

    Segments lie in one file when they follow each other in what one process after another has written, their first
    rows were written on the same day (UTC), and they have the same columns and the same ones redacted. Any process may
    do so while others write and read: a reader has each row once, as it lay before or as it lies now. Killed at any
    moment, the log is whole, and the next call goes on.

    Args:
        folder: Folder of a log.
        older_than: For how long a day must have been over, such as `"1d"`.
        now: The present, in microseconds.
        rows: A file gets at most so many rows; one that has more than half as many is not small, and stays.
        on_seal: Makes the files beside those that are made. Without it they go, and `reseal` makes them.
        seconds: Begins no further file once it has worked for so long; one is made in any case. Meanwhile no rows can
            be deleted or held.

    Raises:
        InvalidInput: If `rows` is below 2, or the time is not of that form.
        NotFound: If the folder holds no log.
        Conflict: If a deletion was begun and is not finished: `forget` the subject again first.
        StoreError: If the disk refuses, or another process changes sealed segments. What was merged by then stays.

    Example:
        >>> import tempfile
        >>> from vitok.decision import Outcome
        >>> from vitok.decisions import OutcomeLog, read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for hour in range(3):
        ...         with OutcomeLog(folder) as log:
        ...             at = hour * 3_600_000_000 + 1
        ...             one = Outcome(request_id=f"r{hour}", kind="fraud", value=1.0, event_time=at, ingest_time=at)
        ...             _ = log.append([one])
        ...     done = merge(folder, now=3 * DAY)
        ...     read(folder)["request_id"].to_list(), done.segments_before, done.segments_after
        (['r0', 'r1', 'r2'], 3, 1)
    """
    top = Path(folder)
    if not top.is_dir():
        raise NotFound("log", str(top))
    if rows < 2:
        raise InvalidInput("rows", rows, "be at least 2")
    cutoff = now - duration(older_than)
    done, stopped, begun = [0] * 5, False, time.monotonic()
    with maintained(top):
        if (top.parent / BEGUN).exists():
            raise Conflict(
                f"log {str(top)!r}: a deletion was begun and is not finished; forget the subject again, then merge"
            )
        _sweep(top)
        places: dict[Path, list[Path]] = {}
        try:
            for group in _groups(top, cutoff, rows):
                before = [one.segment.path for one in group]
                sizes = sum(path.stat().st_size for path in before)
                path = _merge(top, group, on_seal)
                places[path] = before
                counts = (len(group), 1, sum(one.rows for one in group), sizes, path.stat().st_size)
                done = [total + n for total, n in zip(done, counts, strict=True)]
                if seconds is not None and time.monotonic() - begun >= seconds:
                    stopped = True
                    break
        finally:
            # All at once: a long read that finds files gone under its hands begins anew.
            give_way(top, places)
    return Merged(
        segments_before=done[0],
        segments_after=done[1],
        rows=done[2],
        bytes_before=done[3],
        bytes_after=done[4],
        stopped=stopped,
    )


def may_merge(folder: str | Path, *, older_than: int | str = "1d", now: int) -> bool:
    """Says whether `merge` may find something to do; no file is opened for it.

    Args:
        folder: Folder of a log; where there is none, there is nothing to do.
        older_than: For how long a day must have been over, such as `"1d"`.
        now: The present, in microseconds.

    Example:
        >>> may_merge("no/such/log", now=3 * DAY)
        False
    """
    return next(_days(Path(folder), now - duration(older_than)), None) is not None


def _days(top: Path, cutoff: int) -> Iterator[list[Segment]]:
    # The files of a day that is over and has several, of one process after another.
    for (_, day), run in itertools.groupby(segments(top), key=lambda one: (one.number // LANE, _day(one))):
        listed = list(run)
        if day is not None and len(listed) > 1 and _begin(day) + DAY <= cutoff:
            yield listed


def _groups(top: Path, cutoff: int, most: int) -> Iterator[list[_Small]]:
    # Where the open form is still there, its sealing is not done.
    unfinished = {path.stem for path in top.glob("segment-*.arrows")}
    for listed in _days(top, cutoff):
        group: list[_Small] = []
        for segment in listed:
            small = None if segment.name in unfinished else _small(segment, most)
            if group and (small is None or not _fits(group, small, most)):
                if len(group) > 1:
                    yield group
                group = []
            group += [] if small is None else [small]
        if len(group) > 1:
            yield group


def _small(segment: Segment, most: int) -> _Small | None:
    metadata = pq.read_metadata(segment.path)
    if metadata.num_rows > most // 2:
        return None
    found = readable(metadata.schema.to_arrow_schema().empty_table()).schema
    content = dict(metadata.metadata or {}) | dict(found.metadata or {})
    shared = {name: value for name, value in content.items() if name not in _NOT_SHARED}
    n = len(parts_of(content, number=segment.number, rows=metadata.num_rows))
    return _Small(segment, metadata.num_rows, n, (found.remove_metadata(), shared))


def _fits(group: Sequence[_Small], one: _Small, most: int) -> bool:
    enough = sum(other.rows for other in group) + one.rows > most
    return not enough and sum(other.parts for other in group) + one.parts <= _MOST_PARTS and group[0].kind == one.kind


def _merge(top: Path, group: Sequence[_Small], on_seal: OnSeal | None) -> Path:
    first, last = group[0].segment, group[-1].segment
    path = first.path.with_name(f"{segment_name(first.first)}-{last.number:08d}.parquet")
    temporary = path.with_name(path.name + ".tmp")
    arrow, shared = group[0].kind
    schema = arrow.with_metadata(shared)
    parts: list[Part] = []
    offsets: dict[str, int] = {}
    ids: list[pa.Table] = []
    kept: list[pa.Table] = []
    indexed = [name for name in ("decision_id", "request_id") if "decision_id" in schema.names]
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(remove_beside, top, path)
        on_failure.callback(temporary.unlink, missing_ok=True)
        pieces = _pieces(_taken(one.segment, schema, parts, offsets) for one in group)
        piece = next(pieces)
        with (
            pa.OSFile(str(temporary), "wb") as file,
            sealed_writer(file, schema, piece.slice(0, _SAMPLE)) as out,
        ):
            for one in itertools.chain((piece,), pieces):
                out.write_table(one, row_group_size=ROWS_PER_GROUP)
                ids.append(one.select(indexed))
                kept += [one] if on_seal is not None else []
            out.add_key_value_metadata(noted(parts))
            if offsets:
                out.add_key_value_metadata({OFFSETS_KEY: json.dumps(offsets).encode()})
        # Before the file has its name, so that it always has them.
        if indexed:
            write_index(path, pa.concat_tables(ids))
        if on_seal is not None:
            write_sidecars(path, pa.concat_tables(kept), on_seal)
        sync(temporary)
        temporary.rename(path)
        on_failure.pop_all()
    return path


def _taken(segment: Segment, schema: pa.Schema, parts: list[Part], offsets: dict[str, int]) -> pa.Table:
    with segment.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        stat = os.fstat(file.fileno())
        metadata = pq.read_metadata(file)
        table = readable(pq.read_table(file, partitioning=None))
    known_as = f"{stat.st_size}-{stat.st_mtime_ns}"
    content = metadata.metadata or {}
    for part in parts_of(content, number=segment.number, rows=metadata.num_rows):
        own = part.sha256 if segment.merged else digest
        parts.append(part._replace(file=part.file or known_as, sha256=own))
    if OFFSETS_KEY in content:
        offsets |= furthest(offsets, json.loads(content[OFFSETS_KEY]))
    return pa.Table.from_arrays(table.columns, schema=schema)


def _pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    # A few row groups at a time: one of each small segment would be as slow to read as before.
    waiting: list[pa.Table] = []
    n = 0
    for table in tables:
        waiting.append(table)
        n += table.num_rows
        if n >= ROWS_PER_GROUP:
            joined = pa.concat_tables(waiting).combine_chunks()
            full = n // ROWS_PER_GROUP * ROWS_PER_GROUP
            waiting, n = [joined.slice(full)], n - full
            yield joined.slice(0, full)
    if n:
        yield pa.concat_tables(waiting).combine_chunks()


def _sweep(top: Path) -> None:
    # What a merge that was killed left of a file that never had its name; only merges make such.
    for left in top.rglob("segment-*-*.*"):
        stem = left.name.partition(".")[0]
        if left.suffix != ".parquet" and numbers(f"{stem}.parquet") and not left.with_name(f"{stem}.parquet").exists():
            left.unlink(missing_ok=True)


def _day(segment: Segment) -> str | None:
    name = segment.path.parent.parent.name
    return name.removeprefix("day=") if segment.sealed and name.startswith("day=") else None


def _begin(day: str) -> int:
    return int(dt.datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()) * 1_000_000
