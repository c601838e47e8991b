"""What is computed of the events in a window: counts, sums, extremes, ends, different values, shares, sequences."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from vitok.clock import DAY, HOUR, MINUTE
from vitok.errors import InvalidInput
from vitok.features.sources import length_of

OPERATORS = ("==", "!=", ">", ">=", "<", "<=", "in", "not in")
Condition = tuple[str, str, Any]


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of time that ends at the moment of the question: `[floor_hop(t - span), t)`.

    The head is exact: an event counts at once. The tail moves in steps of the hop (a sawtooth window), so that a
    stream needs to keep one number for each hop rather than every event. `hop=1` (a microsecond) makes both exact.

    Args:
        span: Length in microseconds.
        hop: Step of the tail in microseconds.

    Example:
        >>> Window.of("7d")
        Window(7d, hop 1h)
        >>> Window.of("7d").start(8 * DAY + 90 * MINUTE) == DAY + 60 * MINUTE
        True
    """

    span: int
    hop: int

    @classmethod
    def of(cls, span: str | int, *, exact: bool = False) -> Self:
        """Makes a window with the usual hop: 5 min up to 12 h, 1 h up to 12 d, else 1 d."""
        length = length_of("window", span)
        if exact:
            return cls(length, 1)
        hop = 5 * MINUTE if length <= 12 * HOUR else HOUR if length <= 12 * DAY else DAY
        if length % MINUTE:
            raise InvalidInput("window", span, "be whole minutes", "Ask for exact=True to have any length.")
        return cls(length, hop)

    def start(self, time: int) -> int:
        """Returns the first microsecond that the window covers when asked at `time`."""
        return (time - self.span) // self.hop * self.hop

    @property
    def label(self) -> str:
        """Short name, as in feature names: `"15m"`, `"6h"`, `"30d"`."""
        for unit, letter in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1_000_000, "s")):
            if self.span % unit == 0:
                return f"{self.span // unit}{letter}"
        return f"{self.span}us"

    def __repr__(self) -> str:
        """Shows span and hop in words."""
        hop = "exact" if self.hop == 1 else f"hop {Window(self.hop, 1).label}"
        return f"Window({self.label}, {hop})"


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """What is computed of one column over some windows; use the kinds below.

    Args:
        column: Which column.
        over: Lengths of the windows, such as `("1h", "7d")`.
        name: Middle part of the feature's name; column and kind by default.
        where: Conditions that an event must meet to count, such as `(("channel", "==", "web"),)`: column, one of
            ==, !=, >, >=, <, <=, in, not in, and a value. All must hold; a null meets none.
    """

    column: str
    over: tuple[str, ...]
    name: str = dataclasses.field(default="", kw_only=True)
    where: tuple[Condition, ...] = dataclasses.field(default=(), kw_only=True)

    kind: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Checks windows and conditions."""
        over = (self.over,) if isinstance(self.over, str) else tuple(self.over)
        object.__setattr__(self, "over", over)
        object.__setattr__(self, "where", _conditions(self.where))
        if not over:
            raise InvalidInput(f"{type(self).__name__}: over", self.over, "hold a window, such as '7d'")

    @property
    def title(self) -> str:
        """Middle part of the names of its features."""
        return self.name or (f"{self.column}_{self.kind}" if self.column else self.kind)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return tuple(dict.fromkeys(name for name in (self.column, *(item[0] for item in self.where)) if name))

    def describe(self) -> dict[str, Any]:
        """Returns what gives the features their values, ready for JSON."""
        out: dict[str, Any] = {"kind": self.kind, "column": self.column, "over": list(self.over), "name": self.title}
        if self.where:
            out["where"] = [[name, operator, _plain(value)] for name, operator, value in self.where]
        return out


class Count(Aggregation):
    """How many events.

    Args:
        over: Lengths of the windows, such as `("1h", "7d")`.
        name: Middle part of the feature's name; `"count"` by default.
        where: Conditions that an event must meet to count.
    """

    kind = "count"

    def __init__(self, over: Sequence[str], *, name: str = "", where: Sequence[Condition] = ()) -> None:
        super().__init__("", tuple(over) if not isinstance(over, str) else (over,), name=name, where=tuple(where))


class Sum(Aggregation):
    """Sum of a column; 0 where there is no event. Nulls are left out."""

    kind = "sum"


class Mean(Aggregation):
    """Mean of a column; NaN where there is no value. The mean of a 0/1 column is its rate."""

    kind = "mean"


class Min(Aggregation):
    """Smallest value of a column; NaN where there is none."""

    kind = "min"


class Max(Aggregation):
    """Largest value of a column; NaN where there is none."""

    kind = "max"


class Std(Aggregation):
    """Standard deviation of a sample (n - 1 below); NaN for fewer than two values."""

    kind = "std"


class First(Aggregation):
    """Value of the earliest event, by event time, then ingest time, then event id; nulls are left out."""

    kind = "first"


class Last(Aggregation):
    """Value of the latest event, by event time, then ingest time, then event id; nulls are left out."""

    kind = "last"


class Distinct(Aggregation):
    """How many different values a column takes."""

    kind = "distinct"


@dataclasses.dataclass(frozen=True)
class TopK(Aggregation):
    """The `k` most frequent values of a column, as k features: `..._top1`, `..._top2`; NaN where there are fewer.

    Values must be numbers, or text with an encoding of its source. The smaller value comes first of equals.

    Args:
        column: Which column.
        over: Lengths of the windows.
        k: How many, 1 to 64.
    """

    k: int = dataclasses.field(default=1, kw_only=True)
    kind: ClassVar[str] = "top"

    def __post_init__(self) -> None:
        """Checks k."""
        super().__post_init__()
        if not 1 <= self.k <= 64:
            raise InvalidInput("TopK: k", self.k, "be between 1 and 64")

    def describe(self) -> dict[str, Any]:
        """Returns what gives the features their values, ready for JSON."""
        return {**super().describe(), "k": self.k}


@dataclasses.dataclass(frozen=True)
class Recent(Aggregation):
    """The values of the last `n` events, newest first, as n features: `..._recent_1`, ...; NaN where there are fewer.

    Args:
        column: Which column.
        over: How old an event may be, one length: exact to the microsecond.
        n: How many, 1 to 1,000.
    """

    n: int = dataclasses.field(default=1, kw_only=True)
    kind: ClassVar[str] = "recent"

    def __post_init__(self) -> None:
        """Checks n and the one length."""
        super().__post_init__()
        if not 1 <= self.n <= 1000:
            raise InvalidInput("Recent: n", self.n, "be between 1 and 1000")
        if len(self.over) != 1:
            raise InvalidInput("Recent: over", self.over, "be one length, such as '30d'")

    def describe(self) -> dict[str, Any]:
        """Returns what gives the features their values, ready for JSON."""
        return {**super().describe(), "n": self.n}


@dataclasses.dataclass(frozen=True)
class Ratio(Aggregation):
    """One aggregation divided by another over the same windows; NaN where the lower one is 0.

    Args:
        upper: Such as `Count("1d", where=(("channel", "==", "web"),))`.
        lower: Such as `Count("1d")`; its windows must be those of `upper`.
        name: Middle part of the feature's name; made of both by default.

    Example:
        >>> Ratio(Sum("refund", "7d"), Sum("amount", "7d")).title
        'refund_sum_per_amount_sum'
    """

    column: str = dataclasses.field(default="", init=False)
    over: tuple[str, ...] = dataclasses.field(default=(), init=False)
    upper: Aggregation
    lower: Aggregation

    kind: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        """Takes the windows of both."""
        if self.where:
            raise InvalidInput("Ratio: where", self.where, "be empty", "Put conditions on upper and lower.")
        for part in (self.upper, self.lower):
            if isinstance(part, TopK | Recent | Ratio | Rate):
                raise InvalidInput("Ratio", part.kind, "be of two aggregations that give one number a window")
        if self.upper.over != self.lower.over:
            raise InvalidInput("Ratio: windows", (self.upper.over, self.lower.over), "be the same above and below")
        object.__setattr__(self, "over", self.upper.over)

    @property
    def title(self) -> str:
        """Middle part of the names of its features."""
        return self.name or f"{self.upper.title}_per_{self.lower.title}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns that it reads."""
        return tuple(dict.fromkeys((*self.upper.inputs, *self.lower.inputs)))

    def describe(self) -> dict[str, Any]:
        """Returns what gives the features their values, ready for JSON."""
        parts = {"upper": self.upper.describe(), "lower": self.lower.describe()}
        return {"kind": self.kind, "over": list(self.over), "name": self.title, **parts}


@dataclasses.dataclass(frozen=True)
class Rate(Aggregation):
    """Events per unit of time: how many came in the window, divided by its length.

    Args:
        over: Lengths of the windows.
        per: The unit, such as `"1h"`.
        name: Middle part of the feature's name; `"rate"` by default.
        where: Conditions that an event must meet to count.
    """

    column: str = dataclasses.field(default="", init=False)
    over: tuple[str, ...]
    per: str = dataclasses.field(default="1h", kw_only=True)

    kind: ClassVar[str] = "rate"

    def __post_init__(self) -> None:
        """Checks the unit."""
        super().__post_init__()
        length_of(f"{type(self).__name__}: per", self.per)

    def describe(self) -> dict[str, Any]:
        """Returns what gives the features their values, ready for JSON."""
        return {**super().describe(), "per": self.per}


def _conditions(where: Sequence[Condition] | Mapping[str, Any]) -> tuple[Condition, ...]:
    out: list[Condition] = []
    for item in where:
        if not isinstance(item, tuple | list) or len(item) != 3 or not isinstance(item[0], str):
            raise InvalidInput("where", item, "be conditions such as ('channel', '==', 'web')")
        column, operator, value = item
        if operator not in OPERATORS:
            raise InvalidInput(f"where: {column}", operator, f"use one of {', '.join(OPERATORS)}")
        values = tuple(value) if operator in {"in", "not in"} and not isinstance(value, str) else (value,)
        if not values or any(not isinstance(one, str | int | float | bool) for one in values):
            raise InvalidInput(f"where: {column}", value, "compare with a text, a number or a truth value")
        if operator in {"in", "not in"}:
            if isinstance(value, str):
                raise InvalidInput(f"where: {column}", value, "compare with a list of values")
            value = values
        out.append((column, operator, value))
    return tuple(out)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
