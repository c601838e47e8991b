"""Hashed features: what a row is made of, declared once, and the slots and values that it becomes.

The same row gets the same slots and values alone, in a list of dicts, in a frame or in an Arrow table, in every
process and on every machine: texts are hashed by `vitok.features.fingerprints` and nothing is learned from data.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vitok.errors import InvalidInput
from vitok.features.fingerprints import fingerprint_texts
from vitok.models.online_ftrl import MOST_BITS

if TYPE_CHECKING:
    import polars as pl

_Floats = NDArray[np.float64]
_Columns: TypeAlias = Mapping[str, Any]
CONSTANT = "constant"


@dataclass(frozen=True)
class Category:
    """A text, a whole number or a truth value, of which each is a weight of its own: a merchant, a country, a card.

    17, 17.0 and "17" are the same category; True is "true". Text is taken as it is: " a" is not "a". An empty text is a
    missing value, since a service's text inputs know no other.

    Attributes:
        name: Name of the column.
    """

    kind: ClassVar[str] = "category"

    name: str


@dataclass(frozen=True)
class Number:
    """A number with one weight, as (x - centre) / scale, kept within plus and minus `limit`.

    Attributes:
        name: Name of the column.
        centre: Such as the median of a reference period.
        scale: Such as its interquartile range, above 0.
        limit: Largest absolute value, above 0, that an outlier or an infinity gets.
    """

    kind: ClassVar[str] = "number"

    name: str
    centre: float = 0.0
    scale: float = 1.0
    limit: float = 10.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.centre):
            raise InvalidInput(f"{self.name}.centre", self.centre, "be finite")
        for field, value in (("scale", self.scale), ("limit", self.limit)):
            if not (math.isfinite(value) and value > 0):
                raise InvalidInput(f"{self.name}.{field}", value, "be finite and above 0")


@dataclass(frozen=True)
class Buckets:
    """A number that has a weight for each stretch between frozen edges; a value on an edge belongs above it.

    Attributes:
        name: Name of the column.
        edges: Ascending, finite, at least one.
    """

    kind: ClassVar[str] = "buckets"

    name: str
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges = np.asarray(self.edges, dtype=np.float64)
        if edges.ndim != 1 or len(edges) == 0 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
            raise InvalidInput(f"{self.name}.edges", self.edges, "be finite numbers that ascend, at least one")
        object.__setattr__(self, "edges", tuple(edges.tolist()))


@dataclass(frozen=True)
class Cross:
    """Two or more columns together: each combination is a weight of its own.

    Attributes:
        names: Columns that are a `Category` or `Buckets` among the features.
    """

    kind: ClassVar[str] = "cross"

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if len(self.names) < 2 or len(set(self.names)) != len(self.names):
            raise InvalidInput("cross", self.names, "name two columns or more, each once")

    @property
    def name(self) -> str:
        """The columns as one text."""
        return json.dumps(self.names)


Feature: TypeAlias = Category | Number | Buckets | Cross
# From so many rows on, each column is hashed by itself, without making its texts Python objects.
_FEW = 64
_EMPTY = fingerprint_texts([""])[0, 0]
_KINDS: dict[str, Callable[..., Feature]] = {kind.kind: kind for kind in (Category, Number, Buckets, Cross)}


@dataclass(frozen=True, kw_only=True)
class HashedFeatures:
    """What a row is made of: categories, numbers, buckets and crosses, hashed into 2**bits slots.

    Each feature gives one slot and one value in every row. A missing value (None, NaN, an empty text, an absent key)
    is a feature of its own with a weight of its own, and so is the constant. Features of a row that fall into the
    same slot are one coordinate: their values are added up. Two features share a slot with probability 2**-bits.

    Attributes:
        features: In any order; the order decides nothing but the order of the slots.
        bits: Slots are 2**bits, 1 to 28.
        constant: Whether every row has the value 1 in a slot of its own.

    Raises:
        InvalidInput: If there is no feature, one stands there twice, or a cross names a column that is no category
            and has no buckets.

    Example:
        >>> features = HashedFeatures(
        ...     features=(Category("merchant"), Category("country"), Number("amount", 50.0, 25.0),
        ...               Cross(("merchant", "country"))), bits=18)
        >>> slots, values = features.encode([{"merchant": "m1", "country": "FR", "amount": 100.0}, {"merchant": "m1"}])
        >>> slots.shape, values[0].tolist(), bool(slots[0, 0] == slots[1, 0])
        ((2, 5), [1.0, 1.0, 2.0, 1.0, 1.0], True)
    """

    features: tuple[Feature, ...]
    bits: int = 18
    constant: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        if not self.features:
            raise InvalidInput("features", self.features, "hold at least one")
        if not 1 <= self.bits <= MOST_BITS:
            raise InvalidInput("bits", self.bits, f"be 1 to {MOST_BITS}")
        seen = set()
        crossable = {feature.name for feature in self.features if isinstance(feature, (Category, Buckets))}
        for feature in self.features:
            key = ("" if isinstance(feature, (Category, Buckets)) else feature.kind, feature.name)
            if key in seen:
                raise InvalidInput("features", feature.name, "be there once, as a category or in buckets")
            seen.add(key)
            for part in feature.names if isinstance(feature, Cross) else ():
                if part not in crossable:
                    raise InvalidInput("cross", part, "be a Category or Buckets among the features")

    @property
    def n_slots(self) -> int:
        """How many slots there are."""
        return 1 << self.bits

    @property
    def width(self) -> int:
        """How many slots a row has."""
        return len(self.features) + self.constant

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are read, each once."""
        names = dict.fromkeys(feature.name for feature in self.features if not isinstance(feature, Cross))
        return tuple(names)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the columns that are categories."""
        return tuple(feature.name for feature in self.features if isinstance(feature, Category))

    @cached_property
    def content_hash(self) -> str:
        """The first 16 hex digits of SHA-256 over the declaration; equal ones have equal hashes."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {
            "features": [{"kind": feature.kind, **vars(feature)} for feature in self.features],
            "bits": self.bits,
            "constant": self.constant,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing or of an unknown kind.
        """
        try:
            features = []
            for item in data["features"]:
                given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
                features.append(_KINDS[given.pop("kind")](**given))
            return cls(features=tuple(features), bits=int(data["bits"]), constant=bool(data["constant"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput("features", dict(data), f"be what to_dict returned ({error!r})") from None

    def encode(self, rows: Any) -> tuple[NDArray[np.uint32], _Floats]:
        """Turns rows into slots and values.

        Args:
            rows: A list of dicts; a polars frame; an Arrow table or record batch; or a mapping from name to a column
                (list, array, polars series or Arrow array). Columns that no feature names are left alone. A key that
                a dict lacks is a missing value; a column that a table lacks is an error.

        Returns:
            Slots, uint32, and values, float64, both of shape (n, width): categories, buckets, numbers, crosses, the
            constant, each in the order of declaration.

        Raises:
            InvalidInput: If a column lacks, columns are of different lengths, a number is a text, or a category is a
                number with a fraction or another object.
        """
        from vitok.models.online_kernels import hash_rows

        n, texts, numbers, buckets = self._read(rows)
        slots, values = np.empty((n, self.width), np.uint32), np.empty((n, self.width))
        if n:
            seeds, parts, ends = self.plan
            hash_rows(texts, numbers, buckets, seeds, parts, ends, self.bits, int(self.constant), slots, values)
        return slots, values

    def slot(self, feature: str, value: str | None = None) -> int:
        """Returns the slot of one weight: to look at it, or to give it a start.

        Args:
            feature: Name of a number; of a category, with its value; or `"constant"`.
            value: A category's value as text.

        Raises:
            InvalidInput: If there is no such feature.

        Example:
            >>> features = HashedFeatures(features=(Category("country"), Number("amount")), bits=10)
            >>> features.slot("country", "FR"), features.encode([{"country": "FR", "amount": 1.0}])[0][0, 0].item()
            (152, 152)
        """
        row: dict[str, Any] = {name: 0.0 for name in self.columns if name not in self.texts}
        if value is not None and feature in self.texts:
            place = next(i for i, item in enumerate(self.ordered) if item == Category(feature))
            row[feature] = value
        elif value is None and feature == CONSTANT and self.constant:
            place = self.width - 1
        elif value is None and any(item.kind == "number" and item.name == feature for item in self.ordered):
            place = next(i for i, item in enumerate(self.ordered) if item.kind == "number" and item.name == feature)
        else:
            raise InvalidInput("feature", (feature, value), "be a number, a category with a value, or 'constant'")
        return int(self.encode([row])[0][0, place])

    @cached_property
    def ordered(self) -> tuple[Feature, ...]:
        """The features in the order of their slots: categories, buckets, numbers, crosses."""
        order = ("category", "buckets", "number", "cross")
        return tuple(sorted(self.features, key=lambda feature: order.index(feature.kind)))

    @cached_property
    def plan(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Seeds of the features and the constant, and the parts of the crosses, as the kernels take them."""
        names = [f"{feature.kind}:{feature.name}" for feature in self.ordered] + [CONSTANT] * self.constant
        crossable = [feature.name for feature in self.ordered if isinstance(feature, (Category, Buckets))]
        crosses = [feature for feature in self.ordered if isinstance(feature, Cross)]
        parts = [crossable.index(name) for cross in crosses for name in cross.names]
        ends = np.cumsum([len(cross.names) for cross in crosses], dtype=np.int64)
        return np.ascontiguousarray(fingerprint_texts(names)[:, 0]), np.array(parts, np.int64), ends

    def _read(self, rows: Any) -> tuple[int, NDArray[np.uint64], _Floats, NDArray[np.int64]]:
        if isinstance(rows, (list, tuple)):
            n = len(rows)
            texts = self._together(_by_row(rows, self.texts), n)
            found = {name: _numbers(name, [row.get(name) for row in rows]) for name in self._numeric}
        else:
            columns = _columns(rows, self.columns)
            n = len(columns[self.columns[0]])
            for name, column in columns.items():
                if len(column) != n:
                    raise InvalidInput(name, len(column), f"have {n} values, as {self.columns[0]!r} has")
            if n < _FEW:
                parts = [_plain(columns[name]) for name in self.texts]
                texts = self._together([value for row in zip(*parts, strict=True) for value in row], n)
            else:
                texts = np.empty((len(self.texts), n), np.uint64)
                for i, name in enumerate(self.texts):
                    texts[i] = _hashed(name, columns[name])
            found = {name: _numbers(name, columns[name]) for name in self._numeric}
        numeric = [feature for feature in self.ordered if isinstance(feature, Number)]
        numbers = np.empty((len(numeric), n))
        for i, number in enumerate(numeric):
            limit = number.limit
            # An infinity minus an infinity cannot come up: the centre is finite.
            numbers[i] = np.minimum(np.maximum((found[number.name] - number.centre) / number.scale, -limit), limit)
        bucketed = [feature for feature in self.ordered if isinstance(feature, Buckets)]
        buckets = np.empty((len(bucketed), n), np.int64)
        for i, feature in enumerate(bucketed):
            x = found[feature.name]
            buckets[i] = np.where(np.isnan(x), -1, np.searchsorted(np.array(feature.edges), x, side="right"))
        return n, texts, numbers, buckets

    @cached_property
    def _numeric(self) -> tuple[str, ...]:
        names = dict.fromkeys(feature.name for feature in self.features if isinstance(feature, (Number, Buckets)))
        return tuple(names)

    def _together(self, given: list[Any], n: int) -> NDArray[np.uint64]:
        # All categories in one call, row by row.
        out = np.zeros(len(given), np.uint64)
        if not given:
            return out.reshape(len(self.texts), n)
        # Nearly always all are texts, which joining them finds out; None is not rare either.
        if not (_fingerprinted(given, out) or _fingerprinted(["" if x is None else x for x in given], out)):
            out[:] = fingerprint_texts(self._texts(given))[:, 0]
            out[out == _EMPTY] = 0
        return np.ascontiguousarray(out.reshape(n, len(self.texts)).T)

    def _texts(self, given: list[Any]) -> list[str]:
        names = self.texts
        return [_text(names[i % len(names)], value) or "" for i, value in enumerate(given)]


def _fingerprinted(given: list[Any], out: NDArray[np.uint64]) -> bool:
    """Writes the fingerprints of texts, 0 for an empty one, unless not all are texts or one holds a zero byte."""
    from vitok.models.online_text_kernels import END, fingerprint_joined

    try:
        data = "\0".join([*given, END]).encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return fingerprint_joined(np.frombuffer(data, np.uint8), out)


def _by_row(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Any]:
    """Returns the values of these columns, row after row, None where a row has none."""
    keys = list(rows[0]) if len(rows) > 1 else []
    if len(names) < 2 or not set(names).issubset(keys):
        return [row.get(name) for row in rows for name in names]
    # Rows that one program made have their keys in one order: then no value has to be looked for by its name.
    places = [keys.index(name) for name in names]
    pick = None if places == list(range(len(keys))) else itemgetter(*places)
    values: list[Any] = []
    for row in rows:
        if [*row] != keys:
            values += [row.get(name) for name in names]
        elif pick is None:
            values += row.values()
        else:
            values += pick([*row.values()])
    return values


def _plain(column: Any) -> Sequence[Any]:
    import polars as pl
    import pyarrow as pa

    if isinstance(column, pl.Series):
        return column.to_list()
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        return column.to_pylist()
    return column.tolist() if isinstance(column, np.ndarray) else column


def _columns(rows: Any, names: Sequence[str]) -> dict[str, Any]:
    import polars as pl
    import pyarrow as pa

    if isinstance(rows, (pa.Table, pa.RecordBatch)):
        known: Sequence[str] = rows.schema.names
        given = {name: rows.column(name) for name in names if name in known}
    elif isinstance(rows, pl.DataFrame):
        known = rows.columns
        given = {name: rows.get_column(name) for name in names if name in known}
    elif isinstance(rows, Mapping):
        known = list(rows)
        given = {name: rows[name] for name in names if name in rows}
    else:
        raise InvalidInput("rows", type(rows), "be dicts, a frame, an Arrow table or a mapping from name to column")
    for name in names:
        if name not in given:
            raise InvalidInput("rows", list(known), f"have the column {name!r}")
    return given


def _hashed(name: str, column: Any) -> NDArray[np.uint64]:
    """Returns fingerprints, shape (n,), 0 where there is no value."""
    import polars as pl
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray) and pa.types.is_dictionary(column.type):
        return np.concatenate([np.empty(0, np.uint64), *(_hashed(name, chunk) for chunk in column.chunks)])
    if isinstance(column, pa.DictionaryArray):
        # Each entry of the dictionary is hashed once.
        table = np.append(_hashed(name, column.dictionary), np.uint64(0))
        return table[column.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False)]
    series = _series(name, column)
    if series.dtype == pl.Null or len(series) == 0:
        return np.zeros(len(series), np.uint64)
    if series.dtype.is_float():
        whole = series.fill_nan(None)
        small = (whole.floor() == whole) & (whole.abs() < 2.0**63)
        if not small.all():
            raise InvalidInput(name, whole.filter(~small)[0], "be a text or a whole number", "Give it Buckets")
        series = whole.cast(pl.Int64)
    if series.dtype.is_integer() or series.dtype in (pl.Boolean, pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        raise InvalidInput(name, str(series.dtype), "be texts, whole numbers or truth values")
    if series.null_count():
        series = series.fill_null("")
    out = np.ascontiguousarray(fingerprint_texts(series)[:, 0])
    out[out == _EMPTY] = 0
    return out


def _series(name: str, column: Any) -> "pl.Series":
    import polars as pl
    import pyarrow as pa

    if isinstance(column, pl.Series):
        return column
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        found = pl.from_arrow(column)
        assert isinstance(found, pl.Series)  # noqa: S101
        return found
    if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
        return pl.Series(column)
    return pl.Series([_text(name, value) for value in column], dtype=pl.String)


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isnan(number):
            return None
        if number.is_integer() and abs(number) < 2.0**63:
            return str(int(number))
    raise InvalidInput(name, value, "be a text or a whole number", "Give a number with a fraction Buckets")


def _numbers(name: str, column: Any) -> _Floats:
    import polars as pl
    import pyarrow as pa

    if isinstance(column, list):
        for value in column:
            if value is not None and not isinstance(value, (int, float, np.number, np.bool_)):
                raise InvalidInput(name, value, "be a number or None")
        return np.array([math.nan if value is None else value for value in column], dtype=np.float64)
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        column = pl.from_arrow(column)
    if isinstance(column, pl.Series):
        if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
            raise InvalidInput(name, str(column.dtype), "be numbers")
        return column.cast(pl.Float64).fill_null(math.nan).to_numpy()
    array = np.asarray(column)
    if array.dtype.kind not in "biuf":
        return _numbers(name, array.tolist())
    return array.astype(np.float64)
