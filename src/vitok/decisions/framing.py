"""Where the messages of an Arrow IPC stream begin and end, found without decoding them.

A reader that follows a growing file must know how far it is whole. The format says so at each message's start:
four bytes 0xFFFFFFFF, the length of the metadata (int32), the metadata (a flatbuffer `Message`), the body, whose
length the metadata tells. (Apache Arrow columnar format, "Encapsulated message format".)
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

_PREFIX = struct.Struct("<Ii")
_CONTINUATION = 0xFFFFFFFF
_INT16 = struct.Struct("<H")
_INT32 = struct.Struct("<i")
_INT64 = struct.Struct("<q")
_SCHEMA, _RECORD_BATCH = 1, 3


class Frame(NamedTuple):
    """One whole message: its bytes run up to `end`, and it holds `rows` rows (0 for the schema)."""

    end: int
    rows: int


def frames(data: bytes | memoryview, start: int = 0) -> Iterator[Frame]:
    """Lists the whole messages in `data` from `start` on, and stops at the first that is not whole.

    Bytes that are no message at all, such as the zeros that a file system leaves after a power cut, end the list too.

    Example:
        >>> import pyarrow as pa
        >>> batch = pa.record_batch({"a": [1, 2, 3]})
        >>> data = batch.schema.serialize().to_pybytes() + batch.serialize().to_pybytes()
        >>> [frame.rows for frame in frames(data)]
        [0, 3]
        >>> [frame.rows for frame in frames(data[:-1])]
        [0]
    """
    size = len(data)
    while start + _PREFIX.size <= size:
        mark, length = _PREFIX.unpack_from(data, start)
        body_start = start + _PREFIX.size + length
        if mark != _CONTINUATION or length <= 0 or body_start > size:
            return
        try:
            header_type, rows, body = _read_metadata(data, start + _PREFIX.size)
        except (struct.error, IndexError):
            return
        end = body_start + body
        if header_type not in (_SCHEMA, _RECORD_BATCH) or rows < 0 or body < 0 or end > size:
            return
        yield Frame(end, rows)
        start = end


def torn(data: bytes | memoryview, start: int) -> bool:
    """Says whether the bytes from `start` on are what a cut-short write leaves: nothing, part of a message, or zeros.

    Example:
        >>> torn(b"", 0), torn(bytes(100), 0), torn(b"no message at all", 0)
        (True, True, False)
    """
    rest = memoryview(data)[start:]
    if len(rest) < _PREFIX.size or not any(rest):
        return True
    mark, length = _PREFIX.unpack_from(rest, 0)
    if mark != _CONTINUATION or length <= 0:
        return False
    if _PREFIX.size + length > len(rest):
        return True
    try:
        kind, rows, body = _read_metadata(rest, _PREFIX.size)
    except (struct.error, IndexError):
        return False
    return kind in (_SCHEMA, _RECORD_BATCH) and rows >= 0 and _PREFIX.size + length + body > len(rest)


class Places(NamedTuple):
    """Where in the message of a record batch the numbers stand that differ from batch to batch, in bytes.

    Attributes:
        rows: How many rows it has, int64.
        body: How long the body is, int64.
        nodes: Two int64 for each array, in depth-first order: its length, and how many nulls it has.
        buffers: Two int64 for each buffer: where in the body it begins, and how long it is.
    """

    rows: int
    body: int
    nodes: int
    buffers: int


def record_batch_places(data: memoryview) -> tuple[int, Places]:
    """Finds in a message of at least one row where its body begins, and the places of its numbers."""
    start = _PREFIX.size
    _, length = _PREFIX.unpack_from(data, 0)
    message = start + _INT32.unpack_from(data, start)[0]
    header_at, body_at = (_field(data, message, slot) for slot in (2, 3))
    batch = header_at + _INT32.unpack_from(data, header_at)[0]
    rows_at, *vectors = (_field(data, batch, slot) for slot in (0, 1, 2))
    # A vector is its length, four bytes, and then what is in it.
    nodes, buffers = (at + _INT32.unpack_from(data, at)[0] + 4 for at in vectors)
    return start + length, Places(rows_at, body_at, nodes, buffers)


def _read_metadata(data: bytes | memoryview, at: int) -> tuple[int, int, int]:
    """Reads from a flatbuffer `Message`: the kind of its header, the rows of a record batch, the body's length."""
    message = at + _INT32.unpack_from(data, at)[0]
    # Fields of Message in order: version, header_type, header, bodyLength; of RecordBatch: length, ...
    kind_at, header_at, body_at = (_field(data, message, slot) for slot in (1, 2, 3))
    kind = data[kind_at] if kind_at else 0
    body = _INT64.unpack_from(data, body_at)[0] if body_at else 0
    rows = 0
    if kind == _RECORD_BATCH and header_at:
        length_at = _field(data, header_at + _INT32.unpack_from(data, header_at)[0], 0)
        rows = _INT64.unpack_from(data, length_at)[0] if length_at else 0
    return kind, rows, body


def _field(data: bytes | memoryview, table: int, slot: int) -> int:
    """Finds where field number `slot` of a flatbuffer table lies; 0 where the table leaves it out."""
    if table < 0:
        raise struct.error("a table before the start of the data")
    vtable = table - _INT32.unpack_from(data, table)[0]
    if vtable < 0:
        raise struct.error("a vtable before the start of the data")
    entry = 4 + 2 * slot
    if entry + 2 > _INT16.unpack_from(data, vtable)[0]:
        return 0
    offset: int = _INT16.unpack_from(data, vtable + entry)[0]
    return table + offset if offset else 0
