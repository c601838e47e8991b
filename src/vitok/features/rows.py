"""How the features of one entity lie in a store of rows: the key, and the bytes of a value, for one view at a time.

The value of a view of latest values or of an embedding is a record of fixed length, so that the rows of many entities
are decoded together. The value of a view of windows is the packed state of its key (see `state`).
"""

import functools
import hashlib
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from vitok.engines.row_store import HEADER
from vitok.errors import InvalidInput
from vitok.features.sources import Entity
from vitok.features.vectors import FRESH, MISSING, STALE
from vitok.features.views import AnyView, Embedding, Latest

if TYPE_CHECKING:
    import polars as pl

_LONGEST_KEY = 200  # LMDB takes keys of 511 bytes; a longer text is kept as its hash
_DELETED, _ABSENT = 1, 2  # flags of a record; the second one stands for a row that is not there
_TYPES = ("float64", "int64", "float32", "int32", "bool")  # by falling width, so that each one is aligned
_LETTERS = {"float64": "<f8", "int64": "<i8", "float32": "<f4", "int32": "<i4", "bool": "u1"}
_WIDTHS = {name: np.dtype(letter).itemsize for name, letter in _LETTERS.items()}
_NO_TIME, _BY_INGEST = -2, -1


def encode_key(text: str) -> bytes:
    """Writes the key of an entity so that it can stand between braces: `{`, `}` and `%` are escaped as in a URL.

    A text of more than 200 bytes becomes `%#` and its SHA-256.

    Example:
        >>> encode_key("7"), encode_key("a{b}%")
        (b'7', b'a%7Bb%7D%25')
    """
    if "%" in text or "{" in text or "}" in text:
        text = text.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    out = text.encode("utf-8", "surrogatepass")
    return out if len(out) <= _LONGEST_KEY else b"%#" + hashlib.sha256(out).hexdigest().encode()


def encode_keys(texts: Sequence[str]) -> list[bytes]:
    """As `encode_key`, for many."""
    joined = "".join(texts)
    if "%" in joined or "{" in joined or "}" in joined or not joined.isascii() or max(map(len, texts)) > _LONGEST_KEY:
        return [encode_key(text) for text in texts]
    return [text.encode() for text in texts]


def key_start(entity: Entity) -> bytes:
    """Returns what comes before the entity's key in the key of a row.

    The braces are the hash tag of a Redis cluster: all rows of an entity lie on one node.
    """
    return b"{" + encode_key(entity.name.replace("%", "%25").replace(":", "%3A")) + b":"


def key_end(view: AnyView) -> bytes:
    """Returns what comes after the entity's key in the key of a row: the view and its version."""
    return b"}" + encode_key(view.name) + b"@" + view.version.encode()


def row_keys(view: AnyView, keys: Sequence[str]) -> list[bytes]:
    """Returns the store's keys of the rows of some entities.

    Args:
        view: Whose rows.
        keys: Keys as texts, as `Entity.text` writes them.

    Example:
        >>> from vitok.features import Entity, Latest, Source
        >>> view = Latest(name="account", entity=Entity("customer", "id"), source=Source("s"), columns=("limit",))
        >>> row_keys(view, ["7"]) == [b"{customer:7}account@" + view.version.encode()]
        True
    """
    start, end = key_start(view.entity), key_end(view)
    return [start + key + end for key in encode_keys(keys)]


class RowLayout:
    """Where everything stands in the record of a view of latest values or of an embedding.

    A record holds the layout's id (uint32), flags, the columns by falling width, and one bit for each whole number or
    bool that may be null; a float that is null is NaN. Its length is a multiple of eight bytes.

    Args:
        view: The view.

    Attributes:
        dtype: The record as a numpy type.
        size: Its length in bytes.
        width: How many features.
    """

    def __init__(self, view: Latest | Embedding) -> None:
        self.view = view
        names, dtypes = _columns(view)
        self.names, self.dtypes, self.width = names, dtypes, len(names)
        by_type = {dtype: [i for i, name in enumerate(dtypes) if name == dtype] for dtype in _TYPES}
        nullable = [place for dtype in ("int64", "int32", "bool") for place in by_type[dtype]]
        fields: list[tuple[str, str, tuple[int, ...]]] = [
            ("layout", "<u4", ()),
            ("flags", "u1", ()),
            ("pad", "u1", (3,)),
        ]
        fields += [(dtype, _LETTERS[dtype], (len(places),)) for dtype, places in by_type.items() if places]
        if nullable:
            fields.append(("nulls", "u1", (-(-len(nullable) // 8),)))
        size = np.dtype(fields).itemsize
        if size % 8:
            fields.append(("end", "u1", (8 - size % 8,)))
        self.dtype = np.dtype(fields)
        self.size = self.dtype.itemsize
        self.places = {dtype: np.array(places, np.intp) for dtype, places in by_type.items() if places}
        self.nullable = np.array(nullable, np.intp)
        self.id = zlib.crc32(repr((names, dtypes, fields)).encode())
        offsets = {name: int(field[1]) for name, field in (self.dtype.fields or {}).items()}
        # Of each column: its type, where it stands in a row with its header, and which null bit is its own.
        self._columns = np.empty((self.width, 3), np.int64)
        for dtype, places in self.places.items():
            for rank, place in enumerate(places.tolist()):
                at = HEADER + offsets[dtype] + rank * _WIDTHS[dtype]
                self._columns[place] = (_TYPES.index(dtype), at // _WIDTHS[dtype], -1)
        self._columns[self.nullable, 2] = np.arange(len(nullable))
        lag, ttl = _NO_TIME, 0
        if isinstance(view, Latest):
            lag = _BY_INGEST if view.available_after is None else view.available_after
            ttl = view.max_age
        nulls_at = HEADER + offsets.get("nulls", 0)
        self._shape = np.array([HEADER + self.size, self.id, nulls_at, ttl, lag], np.int64)
        absent = np.zeros(1, self.dtype)
        absent["layout"], absent["flags"] = self.id, _ABSENT
        self.absent = bytes(HEADER) + absent.tobytes()

    def pack(self, columns: "Sequence[pl.Series]", deleted: np.ndarray | None = None) -> list[bytes]:
        """Writes rows.

        Args:
            columns: One series of numbers for each feature, all of n values, in the view's order.
            deleted: Shape (n,), bool: rows that end an entity's values.

        Returns:
            The n values.

        Raises:
            InvalidInput: If a number is not finite or does not fit the declared type.
        """
        n = len(columns[0])
        records = np.zeros(n, self.dtype)
        records["layout"] = self.id
        if deleted is not None:
            records["flags"] = np.where(deleted, _DELETED, 0)
        nulls = np.zeros((n, len(self.nullable)), np.bool_)
        bits = {place: bit for bit, place in enumerate(self.nullable.tolist())}
        for dtype, places in self.places.items():
            for rank, place in enumerate(places.tolist()):
                where = f"view {self.view.name!r}: {self.names[place]}"
                records[dtype][:, rank], null = declared(columns[place], dtype, where)
                if place in bits:
                    nulls[:, bits[place]] = null
        if len(bits):
            records["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
        return self._split(records)

    def pack_vectors(self, vectors: np.ndarray) -> list[bytes]:
        """Writes the rows of an embedding from its vectors, shape (n, dimension).

        Raises:
            InvalidInput: If a component is not finite.
        """
        values = np.asarray(vectors, np.float32)
        if values.ndim != 2 or values.shape[1] != self.width:
            raise InvalidInput(f"view {self.view.name!r}: vectors", values.shape, f"have shape (n, {self.width})")
        if not np.isfinite(values).all():
            raise InvalidInput(f"view {self.view.name!r}: vectors", "NaN or infinity", "be finite")
        records = np.zeros(len(values), self.dtype)
        records["layout"] = self.id
        records["float32"] = values
        return self._split(records)

    def decode(
        self,
        rows: Sequence[bytes | None],
        times: np.ndarray,
        out: np.ndarray,
        column: int,
        event_times: np.ndarray,
        status: np.ndarray,
        place: int,
    ) -> int:
        """Reads rows as the store returned them, all in one step.

        A row that may not be seen at the question's time (it happened then or later, or was not known yet), one that
        says that the entity is gone, and one that is damaged are missing; a row older than the TTL is stale. The
        values of all of them are NaN.

        Args:
            rows: Version and value of n rows, None where there is none.
            times: Shape (n,), int64: when each question is asked.
            out: Shape (n, any), float64; the view's columns are written.
            column: The first of them.
            event_times: Shape (n, views), int64; the view's column is written, -1 where the row is missing.
            status: Shape (n, views), uint8; the view's column is written.
            place: The view's column in these two.

        Returns:
            How many rows were damaged.
        """
        absent = self.absent
        whole = b"".join([absent if row is None else row for row in rows])
        damaged = -1
        if len(whole) == len(rows) * len(absent):
            data = np.frombuffer(whole, np.uint8)
            damaged = _decode(data, self._shape, self._columns, times, out, column, event_times, status, place)
        if damaged:
            # A row of another length shifts those after it; without such rows, each one is judged for itself.
            sound = [row if row is not None and len(row) == len(absent) else absent for row in rows]
            damaged = sum(row is not None and len(row) != len(absent) for row in rows)
            data = np.frombuffer(b"".join(sound), np.uint8)
            damaged += _decode(data, self._shape, self._columns, times, out, column, event_times, status, place)
        return damaged

    def _split(self, records: np.ndarray) -> list[bytes]:
        whole, size = records.tobytes(), self.size
        return [whole[at : at + size] for at in range(0, len(whole), size)]


@functools.lru_cache(maxsize=1024)
def layout_of(view: Latest | Embedding) -> RowLayout:
    """Returns the layout of a view's rows; the same object each time."""
    return RowLayout(view)


def declared(series: "pl.Series", dtype: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Turns numbers into a view's declared type.

    Args:
        series: Numbers or bools; NaN counts as null.
        dtype: `"float64"`, `"float32"`, `"int64"`, `"int32"` or `"bool"`.
        where: Named in an error.

    Returns:
        The numbers (NaN or 0 for null) and which are null, each of shape (n,).

    Raises:
        InvalidInput: If a number is infinite, too large for the type, or not whole where it must be.

    Example:
        >>> import polars as pl
        >>> declared(pl.Series([1.0, None]), "int32", "example")
        (array([1, 0], dtype=int32), array([False,  True]))
    """
    import polars as pl

    if dtype == "int64" and series.dtype.is_integer():
        # Through a float, a whole number above 2**53 would lose digits.
        if series.dtype == pl.UInt64 and (series.max() or 0) >= 2**63:  # type: ignore[operator]
            raise InvalidInput(where, series.max(), "fit int64")
        return series.cast(pl.Int64).fill_null(0).to_numpy(), series.is_null().to_numpy()
    numbers = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    null = np.isnan(numbers)
    bad = np.isinf(numbers)
    rule = "be finite"
    if dtype == "float32":
        bad = bad | (np.abs(numbers) > np.finfo(np.float32).max)
        rule = "be finite and fit float32"
    elif dtype in {"int64", "int32"}:
        limit = 2.0**63 if dtype == "int64" else 2.0**31
        with np.errstate(invalid="ignore"):
            bad = bad | (numbers != np.trunc(numbers)) & ~null | (numbers < -limit) | (numbers >= limit)
        rule = f"be a whole number that fits {dtype}"
    elif dtype == "bool":
        bad = bad | ~((numbers == 0) | (numbers == 1) | null)
        rule = "be 0, 1, true or false"
    if bad.any():
        raise InvalidInput(where, float(numbers[bad][0]), rule, "Let the contract keep such rows out.")
    if dtype in {"float64", "float32"}:
        return numbers.astype(dtype), null
    return np.where(null, 0.0, numbers).astype(dtype), null


def _columns(view: Latest | Embedding) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(view, Embedding):
        return view.feature_names, ("float32",) * view.dimension
    return tuple(view.columns), view.dtypes


@njit(cache=True)
def _time_at(data: np.ndarray, at: int) -> int:
    value = np.int64(0)
    for i in range(8):
        value = (value << 8) | np.int64(data[at + i])
    return int(value)


@njit(cache=True)
def _decode(
    data: np.ndarray,
    shape: np.ndarray,
    columns: np.ndarray,
    times: np.ndarray,
    out: np.ndarray,
    first: int,
    event_times: np.ndarray,
    status: np.ndarray,
    place: int,
) -> int:
    stride, layout, nulls_at, ttl, lag = shape[0], shape[1], shape[2], shape[3], shape[4]
    words, floats = data.view(np.uint32), data.view(np.float32)
    longs, doubles, ints = data.view(np.int64), data.view(np.float64), data.view(np.int32)
    damaged = 0
    for i in range(times.shape[0]):
        at = i * stride
        found = FRESH
        flags = data[at + HEADER + 4]
        event_time, known = _time_at(data, at), _time_at(data, at + 8)
        if flags == _ABSENT:
            found = MISSING
        elif np.int64(words[(at + HEADER) // 4]) != layout:
            found = MISSING
            damaged += 1
        elif flags == _DELETED:
            found = MISSING
        elif lag != _NO_TIME:
            if lag >= 0:
                known = event_time + lag
            if event_time >= times[i] or known > times[i]:
                found = MISSING
            elif ttl > 0 and times[i] - event_time > ttl:
                found = STALE
        status[i, place] = found
        event_times[i, place] = -1 if found == MISSING else event_time
        if found != FRESH:
            for j in range(columns.shape[0]):
                out[i, first + j] = np.nan
            continue
        for j in range(columns.shape[0]):
            kind, where, bit = columns[j, 0], columns[j, 1], columns[j, 2]
            if bit >= 0 and (data[at + nulls_at + bit // 8] >> np.uint8(bit % 8)) & 1:
                out[i, first + j] = np.nan
            elif kind == 2:
                out[i, first + j] = floats[at // 4 + where]
            elif kind == 0:
                out[i, first + j] = doubles[at // 8 + where]
            elif kind == 1:
                out[i, first + j] = longs[at // 8 + where]
            elif kind == 3:
                out[i, first + j] = ints[at // 4 + where]
            else:
                out[i, first + j] = data[at + where]
    return damaged
