"""Columns of a Spark frame as the numbers, codes, keys and times that features are made of.

What is wrong with a column's type is said when the table is planned; what is wrong with a single value (a null key, an
infinity) stops the Spark job that meets it, with the same words.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from vitok.errors import InvalidInput, MissingExtra
from vitok.features.aggregations import Condition
from vitok.features.sources import SEPARATOR, Buckets, Categories, Source
from vitok.features.sql import quoted

_WHOLE = ("ByteType", "ShortType", "IntegerType", "LongType")
_NUMERIC = (*_WHOLE, "FloatType", "DoubleType", "DecimalType")
_TIMES = ("TimestampType", "TimestampNTZType", "DateType")
SPARK_TYPES = {"float64": "double", "float32": "float", "int64": "bigint", "int32": "int", "bool": "boolean"}
_MEND = "Let the contract keep such rows out."


def functions() -> Any:
    """Returns `pyspark.sql.functions`.

    Raises:
        MissingExtra: If pyspark is not installed.
    """
    try:
        from pyspark.sql import functions as f
    except ImportError as error:
        raise MissingExtra("spark", "a table on Spark") from error
    return f


class Columns:
    """Reads the columns of one frame.

    Args:
        frame: A Spark frame.
        where: What messages call it, such as `"spine"` or `"source 'transactions'"`.
        source: Whose encodings hold; None for none.
    """

    def __init__(self, frame: Any, where: str, source: Source | None = None) -> None:
        self.f = functions()
        self.where = where
        self.encodings = source.encodings if source is not None else {}
        self.types = {field.name: type(field.dataType).__name__ for field in frame.schema.fields}

    def kind(self, name: str) -> str:
        """Returns the name of a column's type.

        Raises:
            InvalidInput: If there is no such column.
        """
        if name not in self.types:
            raise InvalidInput(f"{self.where}: columns", sorted(self.types), f"hold {name}")
        return self.types[name]

    def text(self, name: str) -> Any:
        """Reads ids as texts: 7 and "7" are the same."""
        return self._or_stop(self._text(name), name, self._column(name).isNull(), "not be null")

    def key(self, names: Iterable[str]) -> Any:
        """Reads the key of an entity as one text; a part that is null or empty stops the job."""
        parts = []
        for name in names:
            text = self._text(name)
            parts.append(self._or_stop(text, name, text.isNull() | (text == ""), "not be null or empty"))
        return self.f.concat_ws(SEPARATOR, *parts)

    def key_or_null(self, names: Iterable[str]) -> Any:
        """Reads the key of an entity as one text; null where a part is null or empty."""
        parts = [self.f.when(self._text(name) != "", self._text(name)) for name in names]
        there = functools.reduce(lambda a, b: a & b, (part.isNotNull() for part in parts))
        return self.f.when(there, self.f.concat_ws(SEPARATOR, *parts))

    def microseconds(self, name: str) -> Any:
        """Reads times as whole microseconds since 1970 UTC; without a zone they are taken as UTC."""
        column, kind = self._column(name), self.kind(name)
        if kind not in _TIMES:
            raise InvalidInput(f"{self.where}: {name}", kind, "be a timestamp", "For whole numbers: timestamp_micros.")
        return self._or_stop(self.f.unix_micros(column.cast("timestamp")), name, column.isNull(), "not be null")

    def number(self, name: str) -> Any:
        """Reads a column as doubles: encoded where its source says so, a NaN as null.

        Raises:
            InvalidInput: If it is neither numeric nor encoded.
        """
        column, kind = self._column(name), self.kind(name)
        encoding = self.encodings.get(name)
        if encoding is not None:
            return self._encoded(name, encoding)
        if kind in _TIMES:
            return self.f.unix_micros(column.cast("timestamp")).cast("double")
        if kind not in {*_NUMERIC, "BooleanType"}:
            raise InvalidInput(
                f"{self.where}: {name}",
                kind,
                "be numeric where a number is wanted",
                f"Give the source an encoding: encode={{{name!r}: Categories((...))}}.",
            )
        number = column.cast("double")
        number = self.f.when(~self.f.isnan(number), number)
        return self._or_stop(number, name, self.f.abs(number) == float("inf"), "be finite")

    def request(self, name: str) -> Any:
        """Reads a request column as doubles."""
        if self.kind(name) not in {*_NUMERIC, "BooleanType", "NullType"}:
            raise InvalidInput(f"{self.where}: {name}", self.kind(name), "be numeric", "It is a request feature.")
        return self._column(name).cast("double")

    def declared(self, name: str, dtype: str) -> Any:
        """Reads a column in the type that a view declares; a value that it cannot hold stops the job."""
        number = self.number(name)
        if dtype == "float64":
            return number
        if dtype == "int64" and self.kind(name) in _WHOLE and name not in self.encodings:
            return self._column(name).cast("bigint")  # a double cannot tell the largest apart
        if dtype == "float32":
            wrong, rule = self.f.abs(number.cast("float")) == float("inf"), "be finite and fit float32"
        elif dtype == "bool":
            wrong, rule = ~number.isin(0.0, 1.0), "be 0, 1, true or false"
        else:
            limit, rule = 2.0**63 if dtype == "int64" else 2.0**31, f"be a whole number that fits {dtype}"
            wrong = (number != self.f.rint(number)) | (number < -limit) | (number >= limit)
        return self._or_stop(number, name, wrong, rule).cast(SPARK_TYPES[dtype])

    def code(self, name: str) -> Any:
        """Reads a column as values that are counted by kind: texts as they are, numbers as doubles."""
        if name not in self.encodings:
            if self.kind(name) == "StringType":
                return self._column(name)
            if self.kind(name) in _WHOLE:  # a double cannot tell the largest apart
                return self._column(name).cast("bigint")
        return self.number(name) + 0.0  # so that -0.0 and 0.0 are one value

    def flag(self, name: str) -> Any:
        """Reads a column of truth values; null is false."""
        if self.kind(name) != "BooleanType":
            raise InvalidInput(f"{self.where}: {name}", self.kind(name), "be boolean")
        return self.f.coalesce(self._column(name), self.f.lit(False))

    def holds(self, where: Iterable[Condition]) -> Any | None:
        """Returns whether all conditions hold, or None where there is none; a null or NaN meets none."""
        found = None
        for name, operator, value in where:
            held = self._holds(name, operator, value)
            found = held if found is None else found & held
        return found

    def _holds(self, name: str, operator: str, value: Any) -> Any:
        column, kind = self._column(name), self.kind(name)
        values = value if isinstance(value, tuple) else (value,)
        for one in values:
            fits = (
                kind == "StringType"
                if isinstance(one, str)
                else kind == "BooleanType"
                if isinstance(one, bool)
                else kind in _NUMERIC
            )
            if not fits:
                raise InvalidInput(f"{self.where}: where {name} {operator}", one, f"be comparable with {kind}")
        if operator in {"in", "not in"}:
            held = column.isin(*values)
            held = held if operator == "in" else ~held
        else:
            held = _COMPARE[operator](column, self.f.lit(value))
        if kind in {"FloatType", "DoubleType"}:
            held = held & ~self.f.isnan(column)
        return self.f.coalesce(held, self.f.lit(False))

    def _encoded(self, name: str, encoding: Categories | Buckets) -> Any:
        kind = self.kind(name)
        if kind not in {*_WHOLE, "StringType", "BooleanType"}:
            raise InvalidInput(
                f"{self.where}: {name}", kind, "be text, whole numbers or boolean where it is encoded",
                "Spark writes other numbers as text in its own way, so cast it to text first.",
            )  # fmt: skip
        text = self._column(name).cast("string")
        if isinstance(encoding, Buckets):
            return (self.f.crc32(text.cast("binary")) % encoding.n).cast("double")
        pairs = [self.f.lit(part) for value in encoding.values for part in (value, encoding.code(value))]
        return self.f.when(text.isNotNull(), self.f.coalesce(self.f.create_map(*pairs)[text], self.f.lit(-1.0)))

    def _text(self, name: str) -> Any:
        column, kind = self._column(name), self.kind(name)
        if kind not in {*_WHOLE, "StringType"}:
            raise InvalidInput(f"{self.where}: {name}", kind, "be text or whole numbers", "Cast it to text first.")
        return column.cast("string")

    def _column(self, name: str) -> Any:
        self.kind(name)
        return self.f.col(quoted(name))

    def _or_stop(self, column: Any, name: str, wrong: Any, rule: str) -> Any:
        message = f"{self.where}: {name}: must {rule}. {_MEND}"
        return self.f.when(wrong, self.f.raise_error(self.f.lit(message))).otherwise(column)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def fingerprint() -> Any:
    """Returns a Spark function from ids to what orders events of one instant: as `fingerprints`, in numpy alone.

    The function travels to the executors by value: they need numpy, pandas and pyarrow, not vitok.
    """
    import numpy as np
    import pandas as pd

    def words(ids: pd.Series) -> pd.Series:
        # SipHash-2-4 with 128 bits of output and a key of zero; the first word, moved so that its order is that of
        # unsigned numbers.
        texts = [str(text).encode() for text in ids]
        length = np.array([len(text) for text in texts], np.int64)
        blocks = length // 8
        width = int(blocks.max(initial=0)) + 1
        data = np.zeros((len(texts), width * 8), np.uint8)
        for row, text in zip(data, texts, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
        message = data.view("<u8").astype(np.uint64)
        last = message[np.arange(len(texts)), blocks] | (length.astype(np.uint64) << np.uint64(56))

        def rotated(v: np.ndarray, by: int) -> np.ndarray:
            return (v << np.uint64(by)) | (v >> np.uint64(64 - by))

        def rounds(v: np.ndarray, n: int) -> np.ndarray:
            v0, v1, v2, v3 = v
            for _ in range(n):
                v0 = v0 + v1
                v1 = rotated(v1, 13) ^ v0
                v0 = rotated(v0, 32)
                v2 = v2 + v3
                v3 = rotated(v3, 16) ^ v2
                v0 = v0 + v3
                v3 = rotated(v3, 21) ^ v0
                v2 = v2 + v1
                v1 = rotated(v1, 17) ^ v2
                v2 = rotated(v2, 32)
            return np.stack([v0, v1, v2, v3])

        def absorbed(v: np.ndarray, word: np.ndarray) -> np.ndarray:
            v = v.copy()
            v[3] ^= word
            v = rounds(v, 2)
            v[0] ^= word
            return v

        start = [0x736F6D6570736575, 0x646F72616E646F6D ^ 0xEE, 0x6C7967656E657261, 0x7465646279746573]
        state = np.repeat(np.array(start, np.uint64)[:, None], len(texts), axis=1)
        for block in range(width - 1):
            state = np.where(block < blocks, absorbed(state, message[:, block]), state)
        state = absorbed(state, last)
        state[2] ^= np.uint64(0xEE)
        state = rounds(state, 4)
        word = state[0] ^ state[1] ^ state[2] ^ state[3]
        return pd.Series((word ^ np.uint64(1 << 63)).view(np.int64))

    return functions().pandas_udf(words, "bigint")
