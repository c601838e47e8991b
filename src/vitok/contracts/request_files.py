"""The files that single bad requests are kept in: one line each, a new file each day or when one is large."""

import datetime as dt
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitok import ids
from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput, StoreError

_NAME = re.compile(r"requests-([0-9]{8}T[0-9]{6})Z-([0-9]{5})\.jsonl")
_LATEST = 253_402_300_800 * 1_000_000


@dataclass(frozen=True)
class BadRequest:
    """One line of a file of bad requests.

    Attributes:
        id: Its identifier; of a line that cannot be read, its file and place there.
        time: When it was refused, in microseconds.
        table: Name of the table in the contract, or "".
        rule: Name of the broken rule; `"torn"` for a line that cannot be read.
        reason: Why it was refused.
        row: The request as it came.
    """

    id: str
    time: int
    table: str
    rule: str
    reason: str
    row: str


class RequestFiles:
    """Bad requests in JSON Lines files, several processes appending at once.

    The name of a file says the day it is for, by the clock of its writers, so that no file is ever renamed while
    somebody writes to it. A file past its retention is deleted when a day begins.

    Args:
        folder: Where the files are; made with the first write.
        largest: Bytes after which a day gets another file.
        retention: Microseconds that a request is kept at least, counted from the end of its day.
    """

    def __init__(self, folder: Path, *, largest: int, retention: int) -> None:
        if largest < 1:
            raise InvalidInput("largest_file", largest, "be at least 1 byte")
        if retention < 1:
            raise InvalidInput("retention", retention, "be longer than zero")
        self._folder = folder
        self._largest = largest
        self._retention = retention
        self._day = -1
        self._number = 0

    def append(self, record: dict[str, Any], *, now: int) -> None:
        """Adds a line, whole or not at all.

        Raises:
            InvalidInput: If `now` is no time of the years 1970 to 9999.
            StoreError: If the disk is full or the folder cannot be written.
        """
        if not 0 <= now < _LATEST:
            raise InvalidInput("now", now, "be microseconds of the years 1970 to 9999")
        text = json.dumps({"id": ids.text(ids.uuid7()), "time": now, **record}, ensure_ascii=True)
        # A line begins with its own line feed, so that one which a kill cut short spoils no other.
        line = f"\n{text}\n".encode()
        day = now // DAY
        path = self._folder
        try:
            if day != self._day:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._number = max((_number(path) for path in self._of_day(day)), default=0)
                self._day = day
                self.prune(now=now)
            path = self._folder / _name(day, self._number)
            while not self._written(path, line):
                self._number += 1
                path = self._folder / _name(day, self._number)
        except OSError as error:
            raise StoreError(f"quarantine {path} cannot be written: {error}; nothing of it was kept") from error

    def _written(self, path: Path, line: bytes) -> bool:
        """Appends to one file; false where it is full. The lock lets a line that was cut short be taken back."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            handle = os.open(path, flags, 0o644)
        except FileNotFoundError:
            # Somebody has cleared the folder away.
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, flags, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            if size and size + len(line) > self._largest:
                return False
            written = 0
            try:
                while written < len(line):
                    step = os.write(handle, line[written:])
                    if step <= 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    written += step
            except OSError:
                os.ftruncate(handle, size)
                raise
            return True
        finally:
            os.close(handle)

    def read(self) -> Iterator[BadRequest]:
        """Reads all files, oldest first; a line that a crash cut short is told as such and spoils no other.

        Raises:
            StoreError: If a file cannot be read.
        """
        for path in self._files():
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                # Another process has just pruned it.
                continue
            except OSError as error:
                raise StoreError(f"quarantine {path} cannot be read: {error}") from error
            for number, line in enumerate(content.split(b"\n")):
                if line.strip():
                    yield _record(line, f"{path.stem}:{number}")

    def prune(self, *, now: int) -> int:
        """Deletes the files whose retention has passed; returns how many.

        Raises:
            StoreError: If one cannot be deleted.
        """
        pruned = 0
        for path in self._files():
            if (_day(path) + 1) * DAY + self._retention <= now:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StoreError(f"quarantine {path} cannot be deleted: {error}") from error
                pruned += 1
        return pruned

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("requests-*.jsonl") if _NAME.fullmatch(path.name))

    def _of_day(self, day: int) -> list[Path]:
        return [path for path in self._files() if _day(path) == day]


def _name(day: int, number: int) -> str:
    begins = isoformat(day * DAY).replace("-", "").replace(":", "").removesuffix("Z")
    return f"requests-{begins}Z-{number:05d}.jsonl"


def _day(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    begins = dt.datetime.strptime(match[1], "%Y%m%dT%H%M%S") if match else dt.datetime(1970, 1, 1)
    return (begins - dt.datetime(1970, 1, 1)).days


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[2]) if match else 0


def _record(line: bytes, place: str) -> BadRequest:
    try:
        item = json.loads(line)
        return BadRequest(
            str(item.get("id", place)), int(item["time"]), item["table"], item["rule"], item["reason"], item["row"]
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        reason = "this line of the quarantine was cut short while it was written"
        return BadRequest(place, 0, "", "torn", reason, line.decode("utf-8", "backslashreplace"))
