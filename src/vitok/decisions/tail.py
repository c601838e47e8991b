"""Following a log while it is written: rows in order, once, from a position that can be kept.

The reader takes no lock and asks the writer for nothing. It keeps the current file open, looks only at bytes it has
not seen, and stops before a message that is not whole yet.
"""

import bisect
import itertools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitok.decisions.framing import frames
from vitok.decisions.parts import Part, parts_of
from vitok.decisions.schema import readable
from vitok.decisions.segments import LANE, Position, changed, open_path, sealed_path, segments
from vitok.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    import polars as pl

_CHUNK = 4 << 20
_CHECKED = 4096


class Tail:
    """Reads what was appended to a log of decisions or of outcomes since a position.

    Usable from another process while the writers run, and before they have started. What it returns was written
    whole; rows come in the order of the log, each once, also across sealings, restarts and crashes of a writer. Of a
    log that several processes write, the rows of each come in its order.

    Args:
        folder: Folder of the log; it need not exist yet.
        position: Where to go on, as an earlier `position` gave it (or the list that JSON made of it), or the list of
            an earlier `positions`; None starts at the oldest row.

    Raises:
        InvalidInput: If the position is not two numbers of at least 0, or a list of such.

    Example:
        >>> import tempfile
        >>> from vitok.decision import Outcome
        >>> from vitok.decisions.log import OutcomeLog
        >>> with tempfile.TemporaryDirectory() as folder, OutcomeLog(folder) as log:
        ...     tail = Tail(folder)
        ...     before = tail.read()
        ...     _ = log.append([Outcome(request_id="r1", kind="fraud", value=1.0, event_time=5)])
        ...     rows = tail.read()
        >>> before is None, rows.height, tail.position
        (True, 1, Position(segment=1, rows=1))
    """

    def __init__(self, folder: str | Path, position: Sequence[int] | Sequence[Sequence[int]] | None = None) -> None:
        self.folder = Path(folder)
        self._lanes = {place.segment // LANE: _Lane(self.folder, place) for place in _places(position)}
        self._looked: int | None = None
        self._turn = 0
        # Where the last `read` began, and which rows of which lane and segment it returned, one after another.
        self._began: dict[int, Position] = {}
        self._parts: list[tuple[int, int, _Rows]] = []

    @property
    def position(self) -> Position:
        """The place after the last row that `read` returned; give it to a new `Tail` to go on from there.

        Raises:
            Conflict: If several processes have written the log: then there are `positions`.
        """
        found = self.positions
        if len(found) > 1:
            raise Conflict(f"log {str(self.folder)!r} is written by several processes: keep positions, not position")
        return found[0] if found else Position(0, 0)

    @property
    def positions(self) -> tuple[Position, ...]:
        """The place in what each process has written; give them to a new `Tail` to go on from there."""
        return tuple(self._lanes[lane].position for lane in sorted(self._lanes))

    def behind(self, n_rows: int) -> tuple[Position, ...]:
        """The places after the first rows of what the last `read` returned, as `positions` gives them.

        Args:
            n_rows: How many of them; 0 is where it began.

        Raises:
            InvalidInput: If it returned fewer.
        """
        found, left = dict(self._began), n_rows
        for lane, segment, rows in self._parts:
            if left <= 0:
                break
            n = min(left, rows.n)
            found[lane] = Position(segment, rows.behind(n))
            left -= n
        if left:
            raise InvalidInput("n_rows", n_rows, "be from 0 to the rows of the last read")
        return tuple(found[lane] for lane in sorted(found))

    def read(self, max_rows: int | None = None) -> "pl.DataFrame | None":
        """Returns the rows appended since, features as columns `f_<name>`; None where there are none.

        Args:
            max_rows: Return at most so many; the next call goes on behind them.

        Raises:
            InvalidInput: If `max_rows` is below 1.
        """
        if max_rows is not None and max_rows < 1:
            raise InvalidInput("max_rows", max_rows, "be at least 1 or None")
        import polars as pl

        self._look()
        found: list[pl.DataFrame] = []
        self._began, self._parts = {number: lane.position for number, lane in self._lanes.items()}, []
        left = max_rows
        lanes = list(self._lanes.items())
        # Another lane goes first each time: with `max_rows` a busy one would keep the others waiting.
        self._turn += 1
        for number in range(len(lanes)):
            at, lane = lanes[(number + self._turn) % len(lanes)]
            while left is None or left > 0:
                taken = lane.take(left)
                if taken is None:
                    break
                table, rows = taken
                left = None if left is None else left - rows.n
                self._parts.append((at, lane.position.segment, rows))
                frame = pl.from_arrow(table)
                assert isinstance(frame, pl.DataFrame)  # noqa: S101
                found.append(frame)
        if not found:
            return None
        return found[0] if len(found) == 1 else pl.concat(found, how="diagonal_relaxed")

    def close(self) -> None:
        """Closes the current files; a later `read` opens them again."""
        for lane in self._lanes.values():
            lane.close()

    def _look(self) -> None:
        at = changed(self.folder)
        if at is not None and at == self._looked:
            return
        for segment in segments(self.folder):
            lane = segment.number // LANE
            if lane not in self._lanes:
                self._lanes[lane] = _Lane(self.folder, Position(lane * LANE, 0))
        self._looked = at


def _places(given: Sequence[int] | Sequence[Sequence[int]] | None) -> list[Position]:
    listed: list[Any] = [] if given is None else list(given)
    pairs = listed if listed and not isinstance(listed[0], int) else [listed] if given is not None else []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or any(not isinstance(n, int) or n < 0 for n in pair):
            raise InvalidInput("position", given, "be two whole numbers of at least 0: segment, rows")
    return [Position(*pair) for pair in pairs]


_NONE = np.empty(0, np.int64)


class _Rows(NamedTuple):
    # Some rows of a segment, from row `first` of its file on. Where some were deleted, the others keep their numbers:
    # `before` says how many are left in the file before each deleted one.
    first: int
    n: int
    before: NDArray[np.int64] = _NONE

    def behind(self, n: int) -> int:
        """Returns the number of the row behind the first `n` of them, which are at least one."""
        last = self.first + n - 1
        return last + int(np.searchsorted(self.before, last, side="right")) + 1


class _Lane:
    # What one process after another has written, each segment begun after the one before was finished.

    def __init__(self, folder: Path, position: Position) -> None:
        self._folder = folder
        self._segment, self._rows = position
        self._source: _OpenSource | _SealedSource | None = None
        self._looked: int | None = None

    @property
    def position(self) -> Position:
        return Position(self._segment, self._rows)

    def take(self, limit: int | None) -> tuple[pa.Table, _Rows] | None:
        while True:
            found = self._next(limit)
            if found is not None:
                self._rows = found[1].behind(found[1].n)
                return found
            if not self._advance():
                return None

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _next(self, limit: int | None) -> tuple[pa.Table, _Rows] | None:
        for _ in range(2):
            # A file without its name was sealed, or written anew without rows that had to go: these must not be
            # given any more.
            if self._source is not None and self._source.gone():
                self.close()
            if self._source is None:
                self._source = self._locate()
            if self._source is None:
                return None
            found = self._source.take(self._rows, limit)
            if found is not None or not self._source.gone():
                return found
        return None

    def _locate(self) -> "_OpenSource | _SealedSource | None":
        # A sealing or a merge may come between the two looks; the other form is then there at the next.
        for _ in range(3):
            try:
                return _OpenSource(open_path(self._folder, self._segment), self._rows)
            except FileNotFoundError:
                pass
            try:
                source = _SealedSource(sealed_path(self._folder, self._segment), self._segment)
            except FileNotFoundError:
                continue
            if source.segment != self._segment:
                # Of a merged file: no row of the segment is left.
                self._segment, self._rows = source.segment, 0
            return source
        return None

    def _advance(self) -> bool:
        if isinstance(self._source, _SealedSource) and self._source.following():
            self._segment, self._rows = self._source.segment, 0
            return True
        at = changed(self._folder)
        if at is not None and at == self._looked:
            return False
        end = (self._segment // LANE + 1) * LANE
        ahead = (one for one in segments(self._folder) if self._segment < one.number < end)
        later = next((one.first for one in ahead if self._source is None or not self._source.is_at(one.path)), None)
        if later is None:
            self._looked = at
            return False
        if later <= self._segment:
            # This one was merged, and what comes behind it is in the same file.
            self.close()
            return True
        # A later segment means that this one is finished; only now is it certain that nothing was missed.
        if self._next(1) is not None:
            return True
        self.close()
        self._segment, self._rows = later, 0
        return True


class _Behind(NamedTuple):
    # How far an open segment was gone through: which file, its schema, and the byte at which row `rows` begins. A log
    # that was made anew may have a file of the same name and number: it has other bytes at its begin, or before that.
    file: tuple[int, int]
    check: int
    schema: bytes
    offset: int
    rows: int


# By path: whoever looks each minute with a new `Tail` at a position need not go through the segment from its beginning.
_kept: dict[str, _Behind] = {}
_MOST_KEPT = 256


class _OpenSource:
    """Rows of an open segment: an Arrow IPC stream that may still grow."""

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY)
        self._schema = b""
        self._offset = 0
        self._rows = 0
        self._chunk = _CHUNK
        kept = _kept.get(str(path))
        if kept is not None and kept.rows <= start and self._is(kept):
            _, _, self._schema, self._offset, self._rows = kept

    def _is(self, kept: _Behind) -> bool:
        stat = os.fstat(self._fd)
        if (stat.st_dev, stat.st_ino) != kept.file or stat.st_size < kept.offset:
            return False
        return self._check(kept.offset) == kept.check

    def _check(self, offset: int) -> int:
        last = max(0, offset - _CHECKED)
        return zlib.crc32(os.pread(self._fd, offset - last, last), zlib.crc32(os.pread(self._fd, _CHECKED, 0)))

    def take(self, start: int, limit: int | None) -> tuple[pa.Table, _Rows] | None:
        """Returns rows from row `start` of the segment on, at most `limit`; None for none."""
        while True:
            data = os.pread(self._fd, self._chunk, self._offset)
            if not self._schema:
                head = next(frames(data), None)
                if head is not None:
                    self._schema = data[: head.end]
                    self._offset = head.end
                    continue
            # `whole` is what was read whole; `first` and `last` bound the bytes to decode.
            first = last = whole = 0
            before = after = self._rows
            for frame in frames(data) if self._schema else ():
                whole = frame.end
                if after + frame.rows <= start:
                    first = last = frame.end
                    before = after = after + frame.rows
                    continue
                last = frame.end
                after += frame.rows
                if limit is not None and after - start >= limit:
                    break
            if last > first:
                self._offset += first
                self._rows = before
                stream = pa.ipc.open_stream(pa.py_buffer(self._schema + data[first:last]))
                table = readable(stream.read_all().slice(start - before, limit))
                return table, _Rows(start, table.num_rows)
            if whole:
                self._offset += whole
                self._rows = after
            elif len(data) < self._chunk:
                return None
            else:
                self._chunk *= 2

    def gone(self) -> bool:
        """Says whether the file has lost its name."""
        return os.fstat(self._fd).st_nlink == 0

    def is_at(self, path: Path) -> bool:
        """Says whether the file has this name."""
        return path == self._path

    def close(self) -> None:
        """Closes the file."""
        stat = os.fstat(self._fd)
        if stat.st_nlink and self._schema:
            if len(_kept) >= _MOST_KEPT:
                _kept.clear()
            file, check = (stat.st_dev, stat.st_ino), self._check(self._offset)
            _kept[str(self._path)] = _Behind(file, check, self._schema, self._offset, self._rows)
        os.close(self._fd)


class _SealedSource:
    """Rows of a sealed segment: Parquet, of which rows may have been deleted, though their numbers stay.

    A merged file has several segments; one of them is read, and then the next.
    """

    def __init__(self, path: Path, segment: int) -> None:
        self.segment = segment
        self._path, self._inode = path, path.stat().st_ino
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        counts = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        self._starts = list(itertools.accumulate(counts, initial=0))
        self._parts = parts_of(metadata.metadata, number=segment, rows=metadata.num_rows)
        # And one more, of no rows, for a place behind all that are left.
        self._parts.append(Part(segment, 0, _NONE))
        self._begins = list(itertools.accumulate((one.rows for one in self._parts), initial=0))
        self._group = -1
        self._table: pa.Table | None = None
        # The segment, or the first one behind it that has rows left.
        own = range(len(self._parts) - 1)
        self._turn(next((at for at in own if self._parts[at].number >= segment), len(own)))

    def take(self, start: int, limit: int | None) -> tuple[pa.Table, _Rows] | None:
        """Returns rows from row `start` of the segment on, at most `limit`; None for none."""
        begin, end = self._begins[self._at : self._at + 2]
        at = begin + start - int(np.searchsorted(self._removed, start))
        if at >= end:
            return None
        group = bisect.bisect_right(self._starts, at) - 1
        if self._table is None or group != self._group:
            self._group, self._table = group, readable(self._file.read_row_group(group))
        table = self._table.slice(at - self._starts[group], end - at if limit is None else min(limit, end - at))
        return table, _Rows(at - begin, table.num_rows, self._before)

    def following(self) -> bool:
        """Goes on to the next segment in the file; says whether there is one."""
        if self._at + 2 >= len(self._parts):
            return False
        self._turn(self._at + 1)
        return True

    def _turn(self, at: int) -> None:
        self._at, self.segment = at, self._parts[at].number
        self._removed = self._parts[at].removed
        # How many rows are left before each deleted one.
        self._before = self._removed - np.arange(len(self._removed))

    def is_at(self, path: Path) -> bool:
        """Says whether the file has this name."""
        return path == self._path

    def gone(self) -> bool:
        """Says whether the file has lost its name."""
        try:
            return self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
