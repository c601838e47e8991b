"""Files that are whole or not there, also after a power cut."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Makes a file's bytes, or the names in a folder, survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """Gives a file new contents in one step; who reads it meanwhile reads the old ones.

    Raises:
        OSError: If the disk refuses; then the file is as it was.
    """
    # Neither another process nor another thread writes to a file of this name.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Removes a file where the block fails: on a full disk what is half written takes the room of what is needed."""
    with contextlib.ExitStack() as stack:
        stack.callback(path.unlink, missing_ok=True)
        yield
        stack.pop_all()
