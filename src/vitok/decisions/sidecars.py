"""Files beside a sealed segment: what was worked out of its rows once, when it was sealed, so that nobody reads them.

A system gives its log a function from the rows of a segment to a few bytes a kind, such as the histograms of its
hours. The bytes lie beside the segment as `segment-00000012.<kind>.side`, behind a head that says over which times
they go, so that a reader of a span opens what it needs.
"""

import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitok.decisions.files import replace
from vitok.decisions.schema import readable
from vitok.decisions.segments import sealed_path, segments
from vitok.errors import InvalidInput, NotFound, StoreError


class OnSeal(Protocol):
    """Makes the files beside a segment; any function of that shape will do.

    It is called in the thread that seals, while other threads answer requests: work that holds the interpreter for
    longer than a few milliseconds should be cut into pieces, or be done by compiled code that lets go of it.
    """

    def __call__(self, table: pa.Table, name: str, /) -> Mapping[str, bytes]:
        """Returns the contents of the files by kind: small letters, digits, `-` and `_`.

        Args:
            table: The rows of the segment as readers see them, each column in parts of some thousand rows.
            name: Name of the segment, such as `"segment-00000012"`.
        """
        ...


_HEAD = struct.Struct("<8sqqqI")
_MAGIC = b"vitoksc1"
_KIND = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


class Sidecar(NamedTuple):
    """One file beside a segment.

    Attributes:
        segment: Name of the segment, such as `"segment-00000012"`.
        first: Earliest event time of its rows, in microseconds.
        last: Latest event time of its rows, in microseconds.
        rows: How many rows the segment had when the file was made.
        data: What the function returned.
    """

    segment: str
    first: int
    last: int
    rows: int
    data: bytes


def side_path(sealed: Path, kind: str) -> Path:
    """Returns where a file beside a sealed segment lies.

    Raises:
        InvalidInput: If the kind is not a name that fits a file.
    """
    if not _KIND.fullmatch(kind):
        raise InvalidInput("kind", kind, "be small letters, digits, '-' and '_', at most 40")
    return sealed.with_name(f"{sealed.stem}.{kind}.side")


def write_sidecars(sealed: Path, table: pa.Table, on_seal: OnSeal, *, only: str | None = None) -> None:
    """Makes the files beside a segment, each whole or not at all.

    Args:
        sealed: Where the segment lies, or will lie once its files are there.
        table: Its rows as readers see them.
        on_seal: Makes the contents.
        only: Write this kind and no other.

    Raises:
        OSError: If the disk refuses.
        InvalidInput: If a kind is no name, or what comes out is not bytes.
    """
    made = on_seal(table, sealed.stem)
    span = pc.min_max(table.column("event_time").cast(pa.int64()))
    first, last = (span[name].as_py() or 0 for name in ("min", "max"))
    for kind, data in made.items():
        path = side_path(sealed, kind)
        if not isinstance(data, bytes):
            raise InvalidInput(f"on_seal: {kind}", type(data).__name__, "be bytes")
        if only is not None and kind != only:
            continue
        replace(path, _HEAD.pack(_MAGIC, first, last, table.num_rows, zlib.crc32(data)) + data)


def sidecars(
    folder: str | Path, kind: str, *, since: int | None = None, until: int | None = None, live: OnSeal | None = None
) -> Iterator[Sidecar]:
    """Reads the files of one kind beside the segments of a log, in the order of the log.

    A segment is passed over where none of its event times lie in `[since, until)`. One that lies there in part is
    given whole: what is inside must say which of it belongs to which time. Segments that have no such file yet are
    passed over too; `reseal` makes it.

    Args:
        folder: Folder of the log.
        kind: Which files.
        since: Earliest event time wanted, in microseconds, inclusive.
        until: Event time at which the span ends, in microseconds, exclusive.
        live: Makes the same of the rows of segments that are not sealed yet; without it they are left out.

    Raises:
        NotFound: If the folder holds no log.
        StoreError: If a file is damaged; delete it and `reseal`.

    Example:
        >>> import tempfile
        >>> from vitok.decision import Outcome
        >>> from vitok.decisions.log import OutcomeLog
        >>> def count(table, name):
        ...     return {"count": str(table.num_rows).encode()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with OutcomeLog(folder, on_seal=count) as log:
        ...         _ = log.append([Outcome(request_id="r1", kind="fraud", value=1.0, event_time=5)])
        ...         waiting = [found.data for found in sidecars(folder, "count", live=count)]
        ...     waiting, list(sidecars(folder, "count"))
        ([b'1'], [Sidecar(segment='segment-00000001', first=5, last=5, rows=1, data=b'1')])
    """
    top = Path(folder)
    if not top.is_dir():
        raise NotFound("log", str(top))
    for segment in segments(top):
        sealed = segment.path
        if not segment.sealed:
            found = None if live is None else _live(sealed, kind, live)
            if found is not None and _within(found.first, found.last, since, until):
                yield found
            if found is not None or sealed.exists():
                continue
            # It was sealed since the folder was listed.
            sealed = sealed_path(top, segment.number)
        if sealed.stem != segment.name:
            # And merged: what lies beside that tells of more.
            continue
        found = _read(side_path(sealed, kind), segment.name, since, until)
        if found is not None:
            yield found


def reseal(folder: str | Path, kind: str, on_seal: OnSeal) -> int:
    """Makes the files of a kind beside the sealed segments that lack them.

    Any process may do so, whoever writes the log, and whoever deletes rows of it: a file is whole or not there, and is
    made of the segment as it is.

    Args:
        folder: Folder of the log.
        kind: Which files; others that `on_seal` makes are left alone.
        on_seal: Makes the contents.

    Returns:
        How many were made.

    Raises:
        NotFound: If the folder holds no log.
        StoreError: If the disk refuses.
    """
    top = Path(folder)
    if not top.is_dir():
        raise NotFound("log", str(top))
    n = 0
    for segment in segments(top):
        if not segment.sealed or side_path(segment.path, kind).exists():
            continue
        try:
            _make(segment.path, kind, on_seal)
        except OSError as error:
            raise StoreError(f"log {str(top)!r}: {kind!r} of {segment.name} was not written ({error})") from error
        n += side_path(segment.path, kind).exists()
    return n


def _make(path: Path, kind: str, on_seal: OnSeal) -> None:
    while True:
        try:
            with path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                table = readable(pq.read_table(file, partitioning=None))
            write_sidecars(path, table, on_seal, only=kind)
            if path.stat().st_ino == inode:
                return
        except FileNotFoundError:
            # It went meanwhile, by age; or the folder with it.
            side_path(path, kind).unlink(missing_ok=True)
            if not path.exists():
                return
            raise
        # Rows were deleted meanwhile, and the file tells of them still.
        side_path(path, kind).unlink(missing_ok=True)


def _within(first: int, last: int, since: int | None, until: int | None) -> bool:
    return (since is None or last >= since) and (until is None or first < until)


def _read(path: Path, name: str, since: int | None, until: int | None) -> Sidecar | None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        content = os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    if len(content) >= _HEAD.size:
        magic, first, last, rows, check = _HEAD.unpack_from(content)
        data = content[_HEAD.size :]
        if magic == _MAGIC and check == zlib.crc32(data):
            return Sidecar(name, first, last, rows, data) if _within(first, last, since, until) else None
    raise StoreError(f"{str(path)!r} is damaged: delete it and make it anew with reseal")


def _live(path: Path, kind: str, live: OnSeal) -> Sidecar | None:
    from vitok.decisions.sealing import open_rows

    try:
        table = readable(open_rows(path)[0])
    except FileNotFoundError:
        return None
    if not table.num_rows:
        return None
    data = live(table, path.stem).get(kind)
    span = pc.min_max(table.column("event_time").cast(pa.int64()))
    return None if data is None else Sidecar(path.stem, span["min"].as_py(), span["max"].as_py(), table.num_rows, data)
