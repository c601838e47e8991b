"""The folder of a log: its segments, who may write it, and the one writer behind every log.

A segment is born as `segment-00000012.arrows`, an Arrow IPC stream that only grows, and is sealed to
`segment-00000012.parquet` with the same rows in the same order. It is written by one process in one run.
"""

import contextlib
import fcntl
import os
import re
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from vitok.decisions.sealing import seal, sync
from vitok.errors import InvalidInput, StoreError

Durability = Literal["process", "fsync"]

_NAME = re.compile(r"segment-(\d{8,})\.(arrows|parquet)")
_sync = getattr(os, "fdatasync", os.fsync)
_SEALER_NICE = 10
# A sealer works a quarter of the time, unless so many segments wait for it.
_RESTS, _BACKLOG = 3.0, 2


class Position(NamedTuple):
    """A place in a log: everything before segment `segment`, and `rows` rows of it.

    It keeps its meaning when the segment is sealed. As JSON it is a list of two numbers.

    Example:
        >>> Position(3, 120) < Position(4, 0)
        True
    """

    segment: int
    rows: int


class Segment(NamedTuple):
    """One file of a log."""

    number: int
    path: Path

    @property
    def sealed(self) -> bool:
        """Whether the file is a sealed one, which never changes again."""
        return self.path.suffix == ".parquet"


def open_path(folder: Path, number: int) -> Path:
    """Returns where the open form of a segment lies."""
    return folder / f"segment-{number:08d}.arrows"


def sealed_path(folder: Path, number: int) -> Path:
    """Returns where the sealed form of a segment lies."""
    return folder / f"segment-{number:08d}.parquet"


def segments(folder: Path) -> list[Segment]:
    """Lists the segments of a log in order, each in one form; none where the folder does not exist."""
    found: dict[int, Path] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and (match[2] == "parquet" or int(match[1]) not in found):
                found[int(match[1])] = path
    if found:
        # A listing that races with a sealing may show neither form of the segment: ask for it by name.
        for number in range(min(found), max(found) + 2):
            if number not in found and sealed_path(folder, number).exists():
                found[number] = sealed_path(folder, number)
    return [Segment(number, found[number]) for number in sorted(found)]


def _lock(folder: Path) -> int:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise StoreError(
            f"log {str(folder)!r}: process {owner} is writing it, and a log has one writer; "
            "stop that process or give this one a folder of its own"
        ) from None
    # The kernel frees the lock of a dead process, so what is left of one is only its number in the file.
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


class SegmentWriter:
    """Appends the messages of Arrow batches to a log folder; the only writer of that folder while it is open.

    A segment's file is made by the first append to it. Whenever a write fails, the file is cut back to its last
    whole message and given up, and the next append starts another one: bytes of a file that a reader has seen are
    never written twice.

    Args:
        folder: Folder of the log; made if absent.
        schema: Arrow schema of all batches.
        durability: `"process"` returns when the kernel has the bytes, which a killed process does not undo;
            `"fsync"` returns when the disk has them.
        rows_per_segment: A segment is closed and sealed once it has this many rows.

    Raises:
        InvalidInput: If an argument breaks its rule.
        StoreError: If another process writes the folder, or it cannot be written.
    """

    def __init__(
        self, folder: Path, schema: pa.Schema, *, durability: Durability = "process", rows_per_segment: int = 100_000
    ) -> None:
        if durability not in ("process", "fsync"):
            raise InvalidInput("durability", durability, "be 'process' or 'fsync'")
        if rows_per_segment < 1:
            raise InvalidInput("rows_per_segment", rows_per_segment, "be at least 1")
        self.folder = folder
        self._schema = schema
        self._synced = durability == "fsync"
        self._rows_per_segment = rows_per_segment
        self._guard = threading.Lock()
        with _store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _lock(folder)
            if self._synced:
                sync(folder.parent)
        self._fd: int | None = None
        self._length = 0
        self._rows = 0
        self._closed = False
        self._seals: list[Future[None]] = []
        self._hurry = threading.Event()
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="vitok-seal", initializer=_step_back)
        # At its first array pyarrow imports pandas where there is one; a first request should not wait for that.
        pa.array([0.0])
        left = segments(folder)
        self._number = left[-1].number + 1 if left else 1
        if any(folder.glob("segment-*.arrows")) or any(folder.glob("segment-*.tmp")):
            self._seals.append(self._sealer.submit(self._seal_before, self._number))

    @property
    def position(self) -> Position:
        """The place after the last append."""
        return Position(self._number, self._rows)

    def append(self, message: bytes, rows: int) -> Position:
        """Writes the message of one batch and returns the place after it; without rows nothing is written.

        Args:
            message: As `MessageMaker` makes it, of the writer's schema.
            rows: How many rows it has.

        Raises:
            StoreError: If the bytes could not be written; then none of the batch's rows are in the log.
        """
        with self._guard:
            if self._closed:
                raise StoreError(f"log {str(self.folder)!r}: it was closed; open it again to append")
            if rows == 0:
                return self.position
            try:
                self._write(message)
            except OSError as error:
                self._give_up()
                raise StoreError(
                    f"log {str(self.folder)!r}: a batch of {rows} rows was not written ({error}); "
                    "free some space or mend the disk, later appends then work again"
                ) from error
            self._rows += rows
            if self._rows >= self._rows_per_segment:
                self._roll()
            return self.position

    def close(self) -> None:
        """Seals everything and lets the folder go; a second call does nothing.

        Raises:
            StoreError: If a segment could not be sealed; its rows stay readable and the next start tries again.
        """
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._roll()
        self._hurry.set()
        self._sealer.shutdown(wait=True)
        os.close(self._lock_fd)
        # Each sealing takes up what earlier ones left, so only the last tells how things stand.
        failure = self._seals[-1].exception() if self._seals else None
        if failure is not None:
            raise StoreError(
                f"log {str(self.folder)!r}: a segment was not sealed ({failure}); its rows stay readable, "
                "and the next start seals it"
            ) from failure

    def _write(self, data: bytes) -> None:
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._fd = os.open(open_path(self.folder, self._number), flags, 0o644)
            self._length = 0
            if self._synced:
                sync(self.folder)
            # Schema and first batch in one write: no reader meets a segment without its schema.
            data = self._schema.serialize().to_pybytes() + data
        written = os.write(self._fd, data)
        while written < len(data):
            # A short write is how a full disk announces itself; the next one fails with the reason.
            more = os.write(self._fd, data[written:])
            if more == 0:
                raise OSError("the file takes no more bytes")
            written += more
        if self._synced:
            _sync(self._fd)
        self._length += written

    def _give_up(self) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._length)
        if self._rows == 0:
            os.close(self._fd)
            self._fd = None
            try:
                open_path(self.folder, self._number).unlink()
            except OSError:
                self._number += 1
            return
        self._roll()

    def _roll(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._number += 1
            self._rows = 0
            self._seals = [job for job in self._seals if not job.done()]
            self._seals.append(self._sealer.submit(self._seal_before, self._number))

    def _seal_before(self, number: int) -> None:
        for path in self.folder.glob("segment-*.tmp"):
            path.unlink(missing_ok=True)
        for path in sorted(self.folder.glob("segment-*.arrows")):
            match = _NAME.fullmatch(path.name)
            if match and int(match[1]) < number:
                seal(path, sealed_path(self.folder, int(match[1])), rest=self._rest)

    def _rest(self, worked: float) -> None:
        # A burst of work would slow down whoever answers requests on the same processors; but the next segment and
        # whoever closes the log do not wait for a slow one.
        if sum(not job.done() for job in self._seals) < _BACKLOG:
            self._hurry.wait(_RESTS * worked)


def _step_back() -> None:
    # Who waits for an answer goes before a segment that nobody waits for. Only Linux gives each thread a rank.
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _SEALER_NICE)


@contextlib.contextmanager
def _store_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"log {str(folder)!r}: the folder cannot be written ({error})") from error
