"""The file of a snapshot: a description, arrays and a checksum, replaced as a whole or not at all."""

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.errors import StoreError

_MAGIC = b"VTKONLIN"
_VERSION = 2
_FIRST = struct.Struct("<8sIQQ")  # magic, version, bytes of the description, bytes in all
_HEAD = _FIRST.size + hashlib.sha256().digest_size


def pack_state(about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Returns the bytes of a snapshot."""
    listed = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    text = json.dumps({"about": about, "arrays": listed}, separators=(",", ":")).encode()
    # A view of bytes each: what is millions of numbers is copied once, into the result.
    contiguous = (np.ascontiguousarray(array).reshape(-1) for array in arrays.values())
    parts: list[bytes | memoryview] = [text, *(array.view(np.uint8).data for array in contiguous)]
    size = _HEAD + sum(len(part) for part in parts)
    first = _FIRST.pack(_MAGIC, _VERSION, len(text), size)
    digest = hashlib.sha256(first)
    for part in parts:
        digest.update(part)
    return b"".join([first, digest.digest(), *parts])


def unpack_state(content: bytes, where: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Reads what `pack_state` gave; the arrays can be written.

    Args:
        content: The bytes.
        where: What errors call them.

    Raises:
        StoreError: If they are cut off, damaged, of a later version, or no snapshot.
    """
    length, size = _lengths(content[:_HEAD], where)
    first, digest, body = content[: _FIRST.size], content[_FIRST.size : _HEAD], memoryview(content)[_HEAD:]
    found = hashlib.sha256(first)
    found.update(body)
    if size != len(content) or found.digest() != digest:
        raise StoreError(f"{where}: is cut off or damaged ({len(content)} of {size} bytes); take an earlier one")
    described = json.loads(bytes(body[:length]))
    arrays, at = {}, length
    for name, (kind, shape) in described["arrays"].items():
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(body, np.dtype(kind), count, at).reshape(shape).copy()
        at += arrays[name].nbytes
    return described["about"], arrays


def _lengths(head: bytes, where: str) -> tuple[int, int]:
    """Returns how many bytes the description has, and the whole snapshot, as its head says."""
    if len(head) < _HEAD or not head.startswith(_MAGIC):
        raise StoreError(f"{where}: is no snapshot of an online model")
    _, version, length, size = _FIRST.unpack(head[: _FIRST.size])
    if version != _VERSION:
        raise StoreError(f"{where}: has version {version}, and this vitok reads version {_VERSION}; save it anew")
    return length, size


def write_state(path: str | Path, content: bytes) -> None:
    """Puts a snapshot in the place of the one before; a crash at any moment leaves one of the two.

    Raises:
        StoreError: If it cannot be written.
    """
    path = Path(path)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error


def read_content(path: str | Path) -> bytes:
    """Returns the bytes of a snapshot, unchecked.

    Raises:
        StoreError: If they cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def read_description(path: str | Path) -> bytes:
    """Reads what a snapshot says of itself and none of its arrays, for who looks at a large one.

    The checksum is over the whole file and is left alone: text that was damaged is found by whoever reads it.

    Returns:
        The description in JSON, undecoded: what `unpack_state` gives first is its `about`.

    Raises:
        StoreError: If it cannot be read, is cut off, of a later version, or no snapshot.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_state(Path(folder, "model.online"), pack_state({"seen": 3}, {"weights": np.zeros(2)}))
        ...     read_description(Path(folder, "model.online"))
        b'{"about":{"seen":3},"arrays":{"weights":["<f8",[2]]}}'
    """
    try:
        with Path(path).open("rb") as file:
            length, size = _lengths(file.read(_HEAD), str(path))
            # A length from a damaged file must not be taken at its word.
            present = os.fstat(file.fileno()).st_size
            text = file.read(min(length, present))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    if len(text) < length:
        raise StoreError(f"{path}: is cut off or damaged ({present} of {size} bytes); take an earlier one")
    return text


def read_state(path: str | Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Reads a snapshot.

    Raises:
        StoreError: If it cannot be read, or is damaged.
    """
    return unpack_state(read_content(path), str(path))


def content_name(content: bytes) -> str:
    """Returns what to call a snapshot by its contents: the first 12 hex digits of their SHA-256.

    Example:
        >>> content_name(b"")
        'e3b0c44298fc'
    """
    return hashlib.sha256(content).hexdigest()[:12]
