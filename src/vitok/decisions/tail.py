"""Following a log while it is written: rows in order, once, from a position that can be kept.

The reader takes no lock and asks the writer for nothing. It keeps the current file open, looks only at bytes it has
not seen, and stops before a message that is not whole yet.
"""

import bisect
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.framing import frames
from vitok.decisions.schema import readable
from vitok.decisions.segments import Position, open_path, sealed_path, segments
from vitok.errors import InvalidInput

if TYPE_CHECKING:
    import polars as pl

_CHUNK = 4 << 20


class Tail:
    """Reads what was appended to a log of decisions or of outcomes since a position.

    Usable from another process while the writer runs, and before it has started. What it returns was written whole;
    rows come in the order of the log, each once, also across sealings, restarts and crashes of the writer.

    Args:
        folder: Folder of the log; it need not exist yet.
        position: Where to go on, as an earlier `position` gave it (or the list that JSON made of it); None starts
            at the oldest row.

    Raises:
        InvalidInput: If the position is not two numbers of at least 0.

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

    def __init__(self, folder: str | Path, position: Sequence[int] | None = None) -> None:
        start = (0, 0) if position is None else tuple(position)
        if len(start) != 2 or any(not isinstance(part, int) or part < 0 for part in start):
            raise InvalidInput("position", position, "be two whole numbers of at least 0: segment, rows")
        self.folder = Path(folder)
        self._segment, self._rows = start
        self._source: _OpenSource | _SealedSource | None = None

    @property
    def position(self) -> Position:
        """The place after the last row that `read` returned; give it to a new `Tail` to go on from there."""
        return Position(self._segment, self._rows)

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

        found: list[pl.DataFrame] = []
        left = max_rows
        while left is None or left > 0:
            table = self._take(left)
            if table is None:
                if not self._advance():
                    break
                continue
            self._rows += table.num_rows
            left = None if left is None else left - table.num_rows
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)  # noqa: S101
            found.append(frame)
        if not found:
            return None
        return found[0] if len(found) == 1 else pl.concat(found, how="diagonal_relaxed")

    def close(self) -> None:
        """Closes the current file; a later `read` opens it again."""
        if self._source is not None:
            self._source.close()
            self._source = None

    def _take(self, limit: int | None) -> pa.Table | None:
        for _ in range(2):
            if self._source is None:
                self._source = self._locate()
            if self._source is None:
                return None
            table = self._source.take(self._rows, limit)
            if table is not None:
                return table
            if not self._source.gone():
                return None
            # The file has no name any more: it was sealed, or it never had a whole row and its number is used anew.
            self.close()
        return None

    def _locate(self) -> "_OpenSource | _SealedSource | None":
        # A sealing may come between the two looks; the sealed form is then there at the next.
        for _ in range(2):
            try:
                return _SealedSource(sealed_path(self.folder, self._segment))
            except FileNotFoundError:
                pass
            try:
                return _OpenSource(open_path(self.folder, self._segment))
            except FileNotFoundError:
                pass
        return None

    def _advance(self) -> bool:
        later = next((segment.number for segment in segments(self.folder) if segment.number > self._segment), None)
        if later is None:
            return False
        # A later segment means that this one is finished; only now is it certain that nothing was missed.
        if self._remains():
            return True
        self.close()
        self._segment, self._rows = later, 0
        return True

    def _remains(self) -> bool:
        return self._take(1) is not None


class _OpenSource:
    """Rows of an open segment: an Arrow IPC stream that may still grow."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._schema = b""
        self._offset = 0
        self._rows = 0
        self._chunk = _CHUNK

    def take(self, start: int, limit: int | None) -> pa.Table | None:
        """Returns rows from row `start` of the segment on, at most `limit`; None where no whole ones are there."""
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
                return readable(stream.read_all().slice(start - before, limit))
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

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)


class _SealedSource:
    """Rows of a sealed segment: Parquet, which never changes."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        counts = (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        self._starts = list(itertools.accumulate(counts, initial=0))
        self._group = -1
        self._table: pa.Table | None = None

    def take(self, start: int, limit: int | None) -> pa.Table | None:
        """Returns rows from row `start` of the segment on, at most `limit`; None where there are no more."""
        if start >= self._starts[-1]:
            return None
        group = bisect.bisect_right(self._starts, start) - 1
        if self._table is None or group != self._group:
            self._group, self._table = group, readable(self._file.read_row_group(group))
        return self._table.slice(start - self._starts[group], limit)

    def gone(self) -> bool:
        """Says whether the file has lost its name; a sealed one keeps it."""
        return False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
