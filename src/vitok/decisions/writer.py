"""Who writes a log: the process that appends to open segments, commits them in groups and has them sealed.

Threads that append at the same time share one write to the disk: whoever comes first commits for all that are behind
it, and the others find their rows committed. Several processes may write one log, each to segments of its own, so
that none waits for another; the file system joins their commits as it joins all.
"""

import contextlib
import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import time_ns

import pyarrow as pa

from vitok.decisions.files import sync
from vitok.decisions.sealing import seal
from vitok.decisions.segments import LANE, NAME, Durability, Position, open_path, segments
from vitok.decisions.sidecars import OnSeal
from vitok.errors import InvalidInput, StoreError

_sync = getattr(os, "fdatasync", os.fsync)
_HOUR_NS = 3_600_000_000_000
REMOVED = "removed.json"
_SEALER_NICE = 10
# A sealer works a quarter of the time, unless so many segments wait for it.
_RESTS, _BACKLOG = 3.0, 2
_MOST_LANES = 1_000


class _File:
    # The open segment: how far it is written, and how far the disk has it.

    def __init__(self, path: Path, number: int) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self.path = path
        self.number = number
        self.hour = time_ns() // _HOUR_NS
        self.length = self.rows = 0
        self.synced_length = self.synced_rows = 0
        self.guard = threading.Lock()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> None:
        written = os.write(self.fd, data)
        while written < len(data):
            # A short write is how a full disk announces itself; the next one fails with the reason.
            more = os.write(self.fd, data[written:])
            if more == 0:
                raise OSError("the file takes no more bytes")
            written += more
        self.length += written

    def commit(self, length: int) -> None:
        """Returns once the disk has the first `length` bytes; one call does it for all that wait."""
        with self.guard:
            if self.synced_length >= length:
                return
            if self.failure is not None:
                raise self.failure
            rows, reached = self.rows, self.length
            try:
                _sync(self.fd)
            except OSError as error:
                # What the disk has of the rest cannot be known, and asking it again would not tell.
                self.failure = error
                raise
            self.synced_length, self.synced_rows = reached, rows


class SegmentWriter:
    """Appends the messages of Arrow batches to a log folder; threads may share it.

    A segment's file is made by the first append to it. Whenever a write fails, the file is cut back to its last
    whole message (to its last committed one where a commit failed) and given up, and the next append starts another
    one: bytes of a file that a reader has seen are never written twice.

    Args:
        folder: Folder of the log; made if absent.
        schema: Arrow schema of all batches.
        durability: `"process"` returns when the kernel has the bytes, which a killed process does not undo;
            `"fsync"` returns when the disk has them.
        rows_per_segment: A segment is closed and sealed once it has this many rows, or when the hour is over.
        shared: Whether other processes may write the log too.
        on_seal: Makes the files beside each sealed segment.

    Raises:
        InvalidInput: If an argument breaks its rule.
        StoreError: If another process writes the folder, or it cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        *,
        durability: Durability = "process",
        rows_per_segment: int = 100_000,
        shared: bool = False,
        on_seal: OnSeal | None = None,
    ) -> None:
        if durability not in ("process", "fsync"):
            raise InvalidInput("durability", durability, "be 'process' or 'fsync'")
        if rows_per_segment < 1:
            raise InvalidInput("rows_per_segment", rows_per_segment, "be at least 1")
        self.folder = folder
        self._head = schema.serialize().to_pybytes()
        self._synced = durability == "fsync"
        self._rows_per_segment = rows_per_segment
        self._on_seal = on_seal
        self._guard = threading.Lock()
        with _store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._locks, self._lane = lock(folder, shared=shared)
            if self._synced:
                sync(folder.parent)
        self._process = os.getpid()
        self._file: _File | None = None
        self._closed = False
        self._seals: dict[int, Future[None]] = {}
        self._hurry = threading.Event()
        with contextlib.ExitStack() as on_failure, _store_errors(folder):
            on_failure.callback(_release, self._locks)
            own = [segment.number for segment in segments(folder) if segment.number // LANE == self._lane]
            self._number = max([*own, last_removed(folder, self._lane), self._lane * LANE]) + 1
            on_failure.pop_all()
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="vitok-seal", initializer=_step_back)
        # At its first array pyarrow imports pandas where there is one; a first request should not wait for that.
        pa.array([0.0])
        self._submit()

    @property
    def position(self) -> Position:
        """The place after the last append."""
        return Position(self._number, 0 if self._file is None else self._file.rows)

    def use(self, schema: pa.Schema) -> None:
        """Takes batches of another schema from now on, in segments of their own."""
        head = schema.serialize().to_pybytes()
        with self._guard:
            if head != self._head:
                self._roll()
                self._head = head

    def append(self, message: bytes, rows: int) -> Position:
        """Writes the message of one batch and returns the place after it; without rows nothing is written.

        Args:
            message: As `MessageMaker` makes it, of the writer's schema.
            rows: How many rows it has.

        Raises:
            StoreError: If the bytes could not be written; then none of the batch's rows are in the log.
        """
        self._check_process()
        with self._guard:
            if self._closed:
                raise StoreError(f"log {str(self.folder)!r}: it was closed; open it again to append")
            if rows == 0:
                return self.position
            try:
                file = self._write(message)
            except OSError as error:
                self._give_up()
                raise self._refused(rows, error) from error
            file.rows += rows
            length = file.length
            if file.rows >= self._rows_per_segment:
                self._roll()
            place = self.position
        if self._synced:
            try:
                file.commit(length)
            except OSError as error:
                with self._guard:
                    if self._file is file:
                        self._give_up()
                raise self._refused(rows, error) from error
        return place

    def seal(self) -> None:
        """Closes the open segment and waits until all of this writer's segments are sealed.

        Raises:
            StoreError: If one could not be sealed; its rows stay readable and the next sealing tries again.
        """
        self._check_process()
        with self._guard:
            if self._closed:
                return
            self._roll()
            self._submit()
            jobs = list(self._seals.values())
        self._hurry.set()
        failures = [job.exception() for job in jobs]
        self._hurry.clear()
        self._tell(failures)

    def close(self) -> None:
        """Seals everything and lets the folder go; a second call does nothing.

        Raises:
            StoreError: If a segment could not be sealed; its rows stay readable and the next start tries again.
        """
        if os.getpid() != self._process:
            # The process that opened it goes on writing: its segment must not be sealed under its hands.
            return
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._roll()
            # Also what could not be sealed before: a disk that was full may have room by now.
            self._submit()
        self._hurry.set()
        self._sealer.shutdown(wait=True)
        _release(self._locks)
        self._tell([job.exception() for job in self._seals.values()])

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise StoreError(
                f"log {str(self.folder)!r}: process {self._process} opened it, and a fork of that cannot write it; "
                "open the log after the fork, with shared=True where several processes write it"
            )

    def _refused(self, rows: int, error: OSError) -> StoreError:
        return StoreError(
            f"log {str(self.folder)!r}: a batch of {rows} rows was not written ({error}); "
            "free some space or mend the disk, later appends then work again"
        )

    def _tell(self, failures: "list[BaseException | None]") -> None:
        failure = next((failure for failure in failures if failure is not None), None)
        if failure is not None:
            raise StoreError(
                f"log {str(self.folder)!r}: a segment was not sealed ({failure}); its rows stay readable, "
                "and the next start seals it"
            ) from failure

    def _write(self, data: bytes) -> _File:
        if self._file is not None and self._file.hour != time_ns() // _HOUR_NS:
            self._roll()
        if self._file is None:
            if self._number // LANE != self._lane:
                raise OSError(f"all {LANE} numbers of segments are used up; go on in another folder")
            self._file = _File(open_path(self.folder, self._number), self._number)
            if self._synced:
                sync(self.folder)
            # Schema and first batch in one write: no reader meets a segment without its schema.
            data = self._head + data
        self._file.write(data)
        return self._file

    def _give_up(self) -> None:
        file = self._file
        if file is None:
            return
        if file.failure is not None:
            file.length, file.rows = file.synced_length, file.synced_rows
        with contextlib.suppress(OSError):
            os.ftruncate(file.fd, file.length)
        if file.length:
            self._roll()
            return
        os.close(file.fd)
        self._file = None
        if file.failure is not None:
            # Readers may have seen rows of it: another file of this number would hide its first ones from them.
            self._number += 1
        try:
            file.path.unlink()
        except OSError:
            self._number += file.failure is None

    def _roll(self) -> None:
        file = self._file
        if file is None:
            return
        if self._synced:
            # Threads that wait for their commit find it done; a failure is theirs to tell.
            with contextlib.suppress(OSError):
                file.commit(file.length)
            if file.failure is not None and file.length > file.synced_length:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fd, file.synced_length)
        os.close(file.fd)
        self._file = None
        self._number += 1
        self._submit()

    def _submit(self) -> None:
        # Also what an earlier sealing could not do, and what a process left that died.
        for path in sorted(self.folder.glob("segment-*.arrows")):
            match = NAME.fullmatch(path.name)
            number = int(match[1]) if match else self._number
            if number // LANE == self._lane and number >= self._number:
                continue
            job = self._seals.get(number)
            if job is None or job.done():
                self._seals[number] = self._sealer.submit(self._seal, number, path)
        for number in [number for number, job in self._seals.items() if job.done() and job.exception() is None]:
            del self._seals[number]

    def _seal(self, number: int, path: Path) -> None:
        with contextlib.ExitStack() as stack:
            if number // LANE != self._lane:
                # Where the process of that lane lives, it seals its own.
                held = _try(self.folder / _lane_file(number // LANE))
                if held is None:
                    return
                stack.callback(os.close, held)
            for again in (True, False):
                try:
                    seal(path, rest=self._rest, on_seal=self._on_seal)
                except FileNotFoundError:
                    # Another may have sealed it before. Else the folder of its hour went as empty, once, or a file is
                    # not there that `on_seal` reads, which is a failure.
                    if path.exists():
                        if again:
                            continue
                        raise
                return

    def _rest(self, worked: float) -> None:
        # A burst of work would slow down whoever answers requests on the same processors; but the next segment and
        # whoever closes the log do not wait for a slow one.
        if sum(not job.done() for job in list(self._seals.values())) < _BACKLOG:
            self._hurry.wait(_RESTS * worked)


def lock(folder: Path, *, shared: bool) -> tuple[list[int], int]:
    """Makes this process the writer of a log, or one of its writers.

    Returns:
        The files that hold the locks while they are open; and the lane.

    Raises:
        StoreError: If others write the log.
    """
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise
        raise StoreError(
            f"log {str(folder)!r}: process {owner} is writing it, and a log has one writer; "
            "stop that process, give this one a folder of its own, or open the log with shared=True in all of them"
        ) from None
    if shared:
        for lane in range(1, _MOST_LANES):
            held = _try(folder / _lane_file(lane))
            if held is not None:
                return [fd, held], lane
        os.close(fd)
        raise StoreError(f"log {str(folder)!r}: {_MOST_LANES - 1} processes write it already")
    # The kernel frees the lock of a dead process, so what is left of one is only its number in the file.
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return [fd], 0


def last_removed(folder: Path, lane: int) -> int:
    """Reads the highest number of a segment that went by age; numbers are never used anew."""
    try:
        return int(json.loads((folder / REMOVED).read_text(encoding="utf-8")).get(str(lane), 0))
    except FileNotFoundError:
        return 0
    except (ValueError, AttributeError, TypeError) as error:
        raise StoreError(f"log {str(folder)!r}: {REMOVED} is damaged ({error}); write it anew from a backup") from error


def _release(locks: list[int]) -> None:
    for fd in locks:
        os.close(fd)


def _lane_file(lane: int) -> str:
    return f"lock-{lane:03d}"


def _try(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


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
