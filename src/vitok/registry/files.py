"""Files that survive a crash: a lock that dies with its holder, and writes that are on the disk when they return."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vitok.errors import Conflict, StoreError

LOCK_WAIT_S = 120.0
RESTORING = "restoring.json"
"""Lies in a home that is restored by half."""


@contextlib.contextmanager
def exclusive(path: Path, *, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Holds a lock between processes (and threads) for a block of code; it is freed when the process dies.

    Args:
        path: The lock's file; made where it does not exist, and left behind.
        wait_s: Seconds to wait for another holder.

    Raises:
        Conflict: If somebody else held it all that time.
        StoreError: If the file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, exclusive(Path(folder) / "lock"):
        ...     "alone"
        'alone'
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"lock {path} cannot be made: {error}") from error
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Conflict(f"lock {path} was held by another process for {wait_s:g} s; try again") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def check_whole(home: Path) -> None:
    """Checks that a home is not one that a restore was interrupted in.

    Raises:
        StoreError: If it is; opened now, it would be taken for an empty one.
    """
    if (home / RESTORING).exists():
        raise StoreError(f"{home} is restored by half; run vitok restore again with the same backup")


def write_durable(path: Path, content: bytes) -> None:
    """Writes a new file and returns when it is on the disk.

    Raises:
        OSError: If the disk is full, or the file exists.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: without this a renamed file may be gone after a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
