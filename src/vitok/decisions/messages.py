"""Arrow IPC messages of one schema, written from a template.

All messages of record batches of one schema have the same metadata but for some whole numbers: how many rows there
are, how many nulls a column has, and where each buffer lies in the body. pyarrow makes one such message when the
writer starts; from then on those numbers are written over, and the body is the buffers one after another. That takes a
tenth of the time of a `RecordBatch`, which counts where a service logs a few rows at a time.

Source: Apache Arrow columnar format, "Encapsulated message format" and "RecordBatch message"; `Message.fbs`.
"""

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vitok.decisions.framing import record_batch_places
from vitok.errors import InvalidInput
from vitok.ids import Made

_KEPT_ROWS = 64
_KEPT_HEADS = 512
_PADDING = tuple(bytes(n) for n in range(8))
_PAIR = struct.Struct("=ii")
_MOST_TEXT = 2**31 - 1
_TIME = pa.timestamp("us", tz="UTC")

_Parts = list[Any]
_Sizes = list[int]


class Constant:
    """A column of a block in which every row has the same value; keep it, and the next block costs nothing for it.

    Args:
        value: A text, a number, or None where the column may be null.

    Example:
        >>> Constant("champion")
        Constant('champion')
    """

    __slots__ = ("_made", "value")

    def __init__(self, value: str | float | None) -> None:
        self.value = value
        self._made: dict[tuple[str, int], tuple[bytes, tuple[int, ...]]] = {}

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"

    def encoded(self, column: "_Column", n: int) -> tuple[bytes, tuple[int, ...]]:
        """Returns the buffers of n times the value, and the sizes that go with them."""
        found = self._made.get((column.code, n))
        if found is None:
            parts: _Parts = []
            sizes: _Sizes = []
            column.take(pa.repeat(pa.scalar(self.value, column.kind), n), n, parts, sizes)
            found = b"".join(parts), tuple(sizes)
            # In large batches it costs little beside the rest, and would take much room.
            if n <= _KEPT_ROWS:
                self._made[column.code, n] = found
        return found


class _Column:
    # One column of the schema: how its values become buffers. `sizes` gets what a head depends on besides the rows.

    def __init__(self, field: pa.Field) -> None:
        self.name: str = field.name
        self.kind: pa.DataType = field.type
        self.nullable: bool = field.nullable
        self.code = f"{field.type}{'?' if field.nullable else ''}"
        self.is_text = self.kind == pa.string()
        self.dtype = _PLAIN.get(self.kind)
        self.width = 0 if self.is_text else self.kind.bit_width
        self.scalar: type = int
        # Takes the usual forms of a column; what it does not take goes through pyarrow.
        self.quick: Callable[[Any, int, _Parts, _Sizes], bool] | None = None
        if self.is_text:
            self.quick = self._texts
        elif self.dtype is not None:
            self.scalar = float if self.dtype == np.float64 else int
            self.quick = self._numbers
        elif self.kind == pa.binary(16):
            self.quick = self._ids

    def add(self, column: Any, n: int, parts: _Parts, sizes: _Sizes) -> None:
        if type(column) is Constant:
            if column.value is None and not self.nullable:
                raise InvalidInput(self.name, None, "have a value in every row")
            try:
                data, found = column.encoded(self, n)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise InvalidInput(self.name, column, f"be a column of {self.kind}", str(error)) from None
            parts.append(data)
            sizes.extend(found)
        elif self.quick is None or not self.quick(column, n, parts, sizes):
            try:
                # NaN becomes null only where a null is allowed: a score of NaN is a fact, a missing shadow is not.
                array = pa.array(column, type=self.kind, from_pandas=self.nullable)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise InvalidInput(self.name, column, f"be a column of {self.kind}", str(error)) from None
            self.take(array, n, parts, sizes)

    def take(self, array: pa.Array | pa.ChunkedArray, n: int, parts: _Parts, sizes: _Sizes) -> None:
        """Adds the buffers of an array of this type."""
        if len(array) != n:
            raise InvalidInput(self.name, f"{len(array)} values", f"have {n} values, as the first column has")
        nulls = array.null_count
        if nulls and not self.nullable:
            raise InvalidInput(self.name, None, "have a value in every row")
        if isinstance(array, pa.ChunkedArray):
            raise InvalidInput(self.name, f"{array.nbytes} bytes", f"be at most {_MOST_TEXT} bytes", "Append less")
        if not n:
            return
        if array.offset:
            array = pa.concat_arrays([array, array.slice(0, 0)])
        buffers = array.buffers()
        if self.nullable:
            sizes.append(nulls)
            if nulls:
                _add(parts, memoryview(buffers[0])[: (n + 7) // 8])
        if not self.is_text:
            _add(parts, memoryview(buffers[1])[: (n * self.width + 7) // 8])
            return
        offsets = np.frombuffer(buffers[1], np.int32, n + 1)
        _add(parts, offsets.tobytes())
        _add(parts, memoryview(buffers[2])[: offsets[-1]] if buffers[2] is not None else b"")
        sizes.append(int(offsets[-1]))

    def lengths(self, n: int, sizes: Iterator[int]) -> tuple[int, list[int]]:
        """Returns how many nulls there are and the length of each buffer."""
        nulls = next(sizes) if self.nullable else 0
        validity = (n + 7) // 8 if nulls else 0
        if self.is_text:
            return nulls, [validity, 4 * (n + 1), next(sizes)]
        return nulls, [validity, (n * self.width + 7) // 8]

    def _texts(self, column: Any, n: int, parts: _Parts, sizes: _Sizes) -> bool:
        width = 0
        if type(column) is Made:
            # Ids as texts, which are all of one length.
            column, width = column.texts, 36
        if (type(column) is not list and type(column) is not tuple) or len(column) != n:
            return False
        try:
            joined = "".join(column)
            data = joined.encode()
        except (TypeError, UnicodeEncodeError):
            return False
        length = len(data)
        if length > _MOST_TEXT:
            return False
        if n == 1:
            offsets = _PAIR.pack(0, length)
        elif width:
            offsets = np.arange(0, length + 1, width, dtype=np.int32).tobytes()
        else:
            ends = np.empty(n + 1, np.int32)
            ends[0] = 0
            if length == len(joined):
                ends[1:] = np.fromiter(map(len, column), np.int32, n)
            else:
                ends[1:] = np.fromiter((len(text.encode()) for text in column), np.int32, n)
            offsets = ends.cumsum(dtype=np.int32).tobytes()
        if self.nullable:
            sizes.append(0)
        parts += (offsets, _PADDING[-len(offsets) & 7], data, _PADDING[-length & 7])
        sizes.append(length)
        return True

    def _numbers(self, column: Any, n: int, parts: _Parts, sizes: _Sizes) -> bool:
        if type(column) is np.ndarray:
            if column.dtype != self.dtype or column.ndim != 1:
                return False
            values = column
        elif type(column) is list and set(map(type, column)) == {self.scalar}:
            try:
                values = np.array(column, self.dtype)
            except OverflowError:
                return False
        else:
            return False
        if len(values) != n:
            return False
        if self.nullable:
            missing = np.isnan(values) if self.scalar is float else _NONE_MISSING
            nulls = int(np.count_nonzero(missing))
            sizes.append(nulls)
            if nulls:
                _add(parts, np.packbits(~missing, bitorder="little").tobytes())
        data = values.tobytes()
        parts.append(data)
        if len(data) & 7:
            parts.append(_PADDING[-len(data) & 7])
        return True

    def _ids(self, column: Any, n: int, parts: _Parts, _sizes: _Sizes) -> bool:
        if len(column) != n:
            return False
        if type(column) is Made:
            parts.append(column.data)
            return True
        if type(column) is not list or set(map(type, column)) != {bytes} or set(map(len, column)) != {16}:
            return False
        parts.append(b"".join(column))
        return True


_PLAIN: dict[Any, np.dtype[Any]] = {
    pa.float64(): np.dtype(np.float64),
    pa.int32(): np.dtype(np.int32),
    pa.int64(): np.dtype(np.int64),
    _TIME: np.dtype(np.int64),
}
_NONE_MISSING = np.zeros(0, np.bool_)


def _add(parts: _Parts, data: bytes | memoryview) -> None:
    parts.append(data)
    parts.append(_PADDING[-len(data) & 7])


class MessageMaker:
    """Makes the messages of one schema, of which it has taken apart once what each of them needs.

    Args:
        arrow: Types that a log has: texts, float64, int32, int64, times, truth values, 16 bytes, and fixed-size lists
            of float64 that are never null.

    Example:
        >>> schema = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("x", pa.float64())])
        >>> message = MessageMaker(schema).make([["a", "b"], [1.5, float("nan")]], 2)
        >>> pa.ipc.read_record_batch(pa.py_buffer(message), schema).to_pylist()
        [{'name': 'a', 'x': 1.5}, {'name': 'b', 'x': None}]
    """

    def __init__(self, arrow: pa.Schema) -> None:
        self.arrow = arrow
        self._columns = [None if pa.types.is_fixed_size_list(field.type) else _Column(field) for field in arrow]
        self._names = list(arrow.names)
        self._widths = [field.type.list_size if pa.types.is_fixed_size_list(field.type) else 0 for field in arrow]
        sample = pa.RecordBatch.from_arrays(
            [pa.array([_SAMPLES[_of(field.type)](field.type)], type=field.type) for field in arrow], schema=arrow
        ).serialize()
        # Without its body, which begins where the metadata ends.
        body, self._places = record_batch_places(memoryview(sample))
        self._head = bytes(memoryview(sample)[:body])
        self._heads: dict[tuple[int, ...], bytes] = {}

    def make(self, values: Sequence[Any], n: int) -> bytes:
        """Makes the message of n rows; without rows it is empty.

        Args:
            values: A column each: a `Constant`, or n values; for a fixed-size list float64 of shape (n, its size).
            n: How many rows, at least 0.

        Raises:
            InvalidInput: If a column has another length, a wrong type, or a null where none may be.
        """
        parts: _Parts = [b""]
        sizes: _Sizes = [n]
        for i, column in enumerate(self._columns):
            if column is not None:
                column.add(values[i], n, parts, sizes)
                continue
            matrix = np.ascontiguousarray(values[i], dtype=np.float64)
            if matrix.shape != (n, self._widths[i]):
                rule = f"have the shape ({n}, {self._widths[i]})"
                raise InvalidInput(self._names[i], matrix.shape, rule)
            parts.append(matrix.tobytes())
        if not n:
            return b""
        key = tuple(sizes)
        head = self._heads.get(key)
        if head is None:
            head = self._fill(key)
        parts[0] = head
        return b"".join(parts)

    def _fill(self, key: tuple[int, ...]) -> bytes:
        n = key[0]
        sizes = itertools.islice(key, 1, None)
        nodes: list[int] = []
        lengths: list[int] = []
        for column, width in zip(self._columns, self._widths, strict=True):
            if column is None:
                nodes += (n, 0, n * width, 0)
                lengths += (0, 0, 8 * n * width)
            else:
                nulls, found = column.lengths(n, sizes)
                nodes += (n, nulls)
                lengths += found
        places = np.empty((len(lengths), 2), "<i8")
        places[:, 1] = lengths
        ends = np.cumsum((places[:, 1] + 7) & ~7)
        places[0, 0] = 0
        places[1:, 0] = ends[:-1]
        head = bytearray(self._head)
        at = self._places
        struct.pack_into("<q", head, at.rows, n)
        struct.pack_into("<q", head, at.body, int(ends[-1]))
        head[at.nodes : at.nodes + 8 * len(nodes)] = np.array(nodes, "<i8").tobytes()
        head[at.buffers : at.buffers + places.nbytes] = places.tobytes()
        made = bytes(head)
        if len(self._heads) >= _KEPT_HEADS:
            self._heads.clear()
        self._heads[key] = made
        return made


def _of(kind: pa.DataType) -> str:
    return "list" if pa.types.is_fixed_size_list(kind) else str(kind)


_SAMPLES: dict[str, Callable[[pa.DataType], Any]] = {
    "string": lambda _: "a",
    "double": lambda _: 1.0,
    "int32": lambda _: 1,
    "int64": lambda _: 1,
    str(_TIME): lambda _: 1,
    "bool": lambda _: True,
    str(pa.binary(16)): lambda _: bytes(16),
    "list": lambda kind: [1.0] * kind.list_size,
}
