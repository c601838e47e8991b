"""A file of facts that only grows: a line a fact, each with the hash of the line before it, so a changed past shows.

Any number of processes may write it. A process that dies while it writes leaves an unfinished last line, which no
reader sees and the next writer cuts off.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitok.errors import Conflict, StoreError

_LOCK_WAIT_S = 60.0
_NO_HASH = "0" * 16


class Journal:
    """One file of facts, as far as it was read.

    Args:
        path: The file; made by the first append, with its folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder) / "facts.jsonl")
        ...     with journal.exclusive():
        ...         journal.append([{"a": 1}, {"b": 2}])
        ...     list(journal.follow()), list(journal.follow())
        ([{'a': 1}, {'b': 2}], [])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self._last = _NO_HASH

    def follow(self) -> Iterator[dict[str, Any]]:
        """Yields the facts that were added since the last call.

        Raises:
            StoreError: If the file cannot be read, or a line is not what was written.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                content = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be read: {error}") from error
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            fact = self._checked(line)
            self._read_to += len(line)
            yield fact

    def _checked(self, line: bytes) -> dict[str, Any]:
        damaged = StoreError(
            f"journal {self.path}: the line at byte {self._read_to} is not what was written; "
            "put back a copy of the file, or move it away and begin anew"
        )
        try:
            digest, _, text = line.decode().rstrip("\n").partition(" ")
            fact: dict[str, Any] = json.loads(text)
        except ValueError:
            raise damaged from None
        if digest != _hash(text) or fact.pop("previous", "") != self._last:
            raise damaged
        self._last = digest
        return fact

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other writers away for a block of code; the lock dies with its process.

        Raises:
            StoreError: If the folder cannot be written.
            Conflict: If another process held it all the time.
        """
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be written: {error}") from error
        try:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise Conflict(
                            f"journal {self.path} was held by another process for {_LOCK_WAIT_S:g} s; try again"
                        ) from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(descriptor)

    def append(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """Writes facts and returns when they are on the disk; only within `exclusive`, and after `follow`.

        Raises:
            StoreError: If they could not be written; then none was.
        """
        last, content = self._last, b""
        for fact in facts:
            text = json.dumps({**fact, "previous": last}, sort_keys=True, ensure_ascii=False)
            last = _hash(text)
            content += f"{last} {text}\n".encode()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"journal {self.path} cannot be opened: {error}") from error
        try:
            # Whatever stands after the last whole line is what a writer that died has left.
            os.ftruncate(descriptor, self._read_to)
            _write(descriptor, content, self._read_to)
            os.fsync(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, self._read_to)
            raise StoreError(f"journal {self.path} cannot be written, nothing was added: {error}") from error
        finally:
            os.close(descriptor)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(descriptor: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
