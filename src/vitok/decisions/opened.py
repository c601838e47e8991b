"""Reading an open segment: of its rows those that lie in a span, of its columns those that are wanted.

An open segment only grows, and no part of it that was whole once is ever other bytes. So a process that reads one
again need not go through the part that it has gone through before: it remembers, block by block, where messages begin
and which times the rows have. What lies behind the last full block is looked at anew each time.
"""

import os
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from vitok.decisions.framing import frames
from vitok.decisions.schema import readable, stored_names
from vitok.decisions.sealing import whole_rows

Times = tuple[int, int]
"""The earliest and the latest of some times, in microseconds."""

_BLOCK = 1 << 20
_HEAD = 1 << 16
_CHECKED = 4096
_MOST_KEPT = 256


class _Block(NamedTuple):
    # Whole messages that lie one after another, from byte `start` up to `end`.
    start: int
    end: int
    check: int
    event: Times
    ingest: Times


class _Known(NamedTuple):
    # What is known of a file: which it is, the message with its schema, and its full blocks.
    file: tuple[int, int]
    head: bytes
    blocks: tuple[_Block, ...]

    @property
    def end(self) -> int:
        return self.blocks[-1].end if self.blocks else len(self.head)


_kept: dict[str, _Known] = {}


def opened_rows(
    path: Path, *, touches: Callable[[Times, Times], bool] | None = None, columns: Collection[str] | None = None
) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads rows of an open segment as readers see them.

    Args:
        path: The file.
        touches: Says of the event times and of the ingest times of some rows whether they are wanted; rows that are
            not may come along. None reads all.
        columns: Columns wanted, those among them that there are; None for all.

    Returns:
        The rows, and the names of all columns that the segment has: none where not even its schema is whole.

    Raises:
        FileNotFoundError: If it has been sealed.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        if touches is None:
            found = _decoded(_pread(fd, 0, os.fstat(fd).st_size), columns)
        else:
            found = _spanned(fd, str(path), touches, columns)
    finally:
        os.close(fd)
    table, schema = found
    if schema is None:
        return table, ()
    return readable(table, columns), tuple(readable(schema.empty_table()).schema.names)


def _spanned(
    fd: int, path: str, touches: Callable[[Times, Times], bool], columns: Collection[str] | None
) -> tuple[pa.Table, pa.Schema | None]:
    stat = os.fstat(fd)
    file = stat.st_dev, stat.st_ino
    known = _kept.get(path)
    if known is None or known.file != file or known.end > stat.st_size or not _same(fd, known):
        head = next(frames(_pread(fd, 0, _HEAD)), None)
        if head is None:
            # No schema within the first bytes: so little, or so odd, that nothing is to be gained.
            return _decoded(_pread(fd, 0, stat.st_size), columns)
        known = _Known(file, _pread(fd, 0, head.end), ())
    rest = _pread(fd, known.end, stat.st_size - known.end)
    known, taken = _grown(known, rest)
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()
    _kept[path] = known
    ranges: list[list[int]] = []
    for block in known.blocks:
        if not touches(block.event, block.ingest):
            continue
        if ranges and ranges[-1][1] == block.start:
            ranges[-1][1] = block.end
        else:
            ranges.append([block.start, block.end])
    parts = [_pread(fd, start, end - start) for start, end in ranges]
    if [len(part) for part in parts] != [end - start for start, end in ranges]:
        # A write that failed was taken back meanwhile.
        _kept.pop(path, None)
        return _decoded(_pread(fd, 0, os.fstat(fd).st_size), columns)
    return _decoded(b"".join([known.head, *parts, rest[taken:]]), columns)


def _grown(known: _Known, rest: bytes) -> tuple[_Known, int]:
    # Returns what is known with the full blocks among the bytes behind, and how many bytes those are.
    base, taken, blocks = known.end, 0, []
    for frame in frames(rest):
        if frame.end - taken >= _BLOCK:
            blocks.append(_block(known.head, rest, taken, frame.end, base))
            taken = frame.end
    return known._replace(blocks=(*known.blocks, *blocks)), taken


def _block(head: bytes, data: bytes, start: int, end: int, base: int) -> _Block:
    table, _ = _decoded(head + data[start:end], ("event_time", "ingest_time"))
    spans = [pc.min_max(table.column(name).cast(pa.int64())) for name in ("event_time", "ingest_time")]
    event, ingest = ((span["min"].as_py(), span["max"].as_py()) for span in spans)
    return _Block(base + start, base + end, zlib.crc32(data[start : min(end, start + _CHECKED)]), event, ingest)


def _same(fd: int, known: _Known) -> bool:
    # A log that was made anew may have a file of the same name and number: its first rows have other ids and times.
    ends = (known.blocks[0], known.blocks[-1]) if known.blocks else ()
    return _pread(fd, 0, len(known.head)) == known.head and all(
        zlib.crc32(_pread(fd, block.start, min(_CHECKED, block.end - block.start))) == block.check for block in ends
    )


def _decoded(data: bytes, columns: Collection[str] | None) -> tuple[pa.Table, pa.Schema | None]:
    # The rows as they lie in the file, and its schema: None where that is not whole.
    seen: list[pa.Schema] = []

    def wanted(schema: pa.Schema) -> list[str]:
        seen.append(schema)
        return list(schema.names) if columns is None else stored_names(schema, columns)

    table, _ = whole_rows(data, wanted)
    return table, seen[-1] if table.num_columns else None


def _pread(fd: int, start: int, size: int) -> bytes:
    parts = []
    while size > 0:
        part = os.pread(fd, size, start)
        if not part:
            break
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
