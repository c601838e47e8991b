"""Files that are whole or not there, also after a power cut."""

import os
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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
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
