"""Who features are about and where their events come from: entities, sources, and how text becomes numbers."""

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from vitok.clock import DAY, duration
from vitok.errors import InvalidInput

SEPARATOR = "\x1f"  # ASCII unit separator: stands between the parts of a key of several columns
_LONGEST = 36_600 * DAY


@dataclasses.dataclass(frozen=True)
class Entity:
    """Who a feature is about.

    Args:
        name: Singular noun, such as `"customer"`.
        key: Column that holds its key, such as `"customer_id"`, or several that do so together.

    Example:
        >>> Entity("card at terminal", ("card_id", "terminal_id")).keys
        ('card_id', 'terminal_id')
    """

    name: str
    key: str | tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks that there is a key."""
        if not self.keys or not all(self.keys) or len(set(self.keys)) < len(self.keys):
            raise InvalidInput(f"entity {self.name!r}: key", self.key, "name one column or several different ones")

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """Columns of the key."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    def text(self, row: Mapping[str, Any]) -> str:
        """Returns the key of a row as one text; 7 and "7" are the same entity.

        Raises:
            InvalidInput: If a part is missing, null, or neither a text nor a whole number.
        """
        if len(self.keys) == 1:
            return key_text(self.keys[0], row.get(self.keys[0]))
        return SEPARATOR.join(key_text(name, row.get(name)) for name in self.keys)


def key_text(name: str, value: object) -> str:
    """Returns one part of a key as text.

    Raises:
        InvalidInput: If it is neither a text nor a whole number, or is empty.
    """
    if type(value) is str and value and SEPARATOR not in value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidInput(name, value, "be a text that is not empty, or a whole number", "It is the key of an entity.")


@dataclasses.dataclass(frozen=True)
class Categories:
    """Turns a text into its place in a list: 0, 1, ...; -1 where the list does not have it.

    Args:
        values: The list, in the order that the model was trained with.

    Example:
        >>> Categories(("food", "fuel")).code("fuel"), Categories(("food", "fuel")).code("toys")
        (1.0, -1.0)
    """

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        """Checks that there are values, each once."""
        if not self.values or len(set(self.values)) < len(self.values):
            raise InvalidInput("categories", self.values, "be some different texts")

    @functools.cached_property
    def _codes(self) -> dict[str, float]:
        return {value: float(place) for place, value in enumerate(self.values)}

    def code(self, value: str) -> float:
        """Returns the number that stands for a text."""
        return self._codes.get(str(value), -1.0)

    def describe(self) -> dict[str, Any]:
        """Returns the encoding, ready for JSON."""
        return {"categories": list(self.values)}


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Turns a text into one of `n` numbers by its CRC-32; for columns of too many values to list.

    Args:
        n: How many buckets, at least 2.

    Example:
        >>> 0 <= Buckets(1000).code("merchant-17") < 1000
        True
    """

    n: int

    def __post_init__(self) -> None:
        """Checks the number."""
        if self.n < 2:
            raise InvalidInput("buckets", self.n, "be at least 2")

    def code(self, value: str) -> float:
        """Returns the number that stands for a text."""
        return float(zlib.crc32(str(value).encode()) % self.n)

    def describe(self) -> dict[str, Any]:
        """Returns the encoding, ready for JSON."""
        return {"buckets": self.n}


Encoding = Categories | Buckets


@dataclasses.dataclass(frozen=True)
class Source:
    """Where events come from: a stream or table of timestamped facts.

    Args:
        name: Such as `"transactions"`.
        event_id: Column that identifies an event; a second event of the same id changes nothing.
        event_time: Column with the time the fact became true.
        ingest_time: Column with the time the fact became known here; "" where there is none. Where there is one,
            features see a fact from then on only (unless the view states a lag).
        deleted: Boolean column; a true one says that the entity's values end with this event. Of use to `Latest`.
        encode: How columns of text become numbers, by column.
        location: Where batch jobs find it, such as a folder of Parquet files or `kafka://host:9092/topic`.
        owner: Who answers for it.
        description: What an event is.
    """

    name: str
    event_id: str = ""
    event_time: str = "event_time"
    ingest_time: str = ""
    deleted: str = ""
    encode: tuple[tuple[str, Encoding], ...] | Mapping[str, Encoding] = ()
    location: str = ""
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        """Makes the encodings hashable."""
        if isinstance(self.encode, Mapping):
            object.__setattr__(self, "encode", tuple(self.encode.items()))

    @functools.cached_property
    def encodings(self) -> dict[str, Encoding]:
        """How columns of text become numbers, by column."""
        return dict(self.encode)

    def describe(self) -> dict[str, Any]:
        """Returns what gives the features their values, ready for JSON and for the content hash."""
        out: dict[str, Any] = {"name": self.name, "event_id": self.event_id, "event_time": self.event_time}
        if self.ingest_time:
            out["ingest_time"] = self.ingest_time
        if self.deleted:
            out["deleted"] = self.deleted
        if self.encodings:
            out["encode"] = {column: how.describe() for column, how in self.encodings.items()}
        return out


def length_of(where: str, text: str | int) -> int:
    """Reads a length of time that a definition states, in microseconds.

    Args:
        where: Named in an error.
        text: Such as `"7d"`; a whole number is microseconds.

    Raises:
        InvalidInput: If it is neither, not longer than zero, or longer than a hundred years.

    Example:
        >>> length_of("ttl", "1h")
        3600000000
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise InvalidInput(where, text, "be a text such as '7d', or whole microseconds")
    try:
        length = duration(text)
    except InvalidInput as error:
        raise InvalidInput(where, text, error.rule, error.fix) from None
    if length > _LONGEST:
        raise InvalidInput(where, text, "be at most a hundred years")
    return length


def lag_of(lag: str | int | None, where: str = "lag") -> int | None:
    """Reads a view's lag: None, or microseconds, 0 allowed; errors name `where`."""
    if lag is None:
        return None
    return 0 if lag in (0, "0s", "0") else length_of(where, lag)


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names in order, each once, without empty ones."""
    return tuple(dict.fromkeys(name for name in names if name))
