"""Guesses rules from what was seen of a column, with room for what next week may bring."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LISTED_AT_MOST = 20
_LISTED_SEEN_AT_LEAST = 5
_LISTED_ROWS_AT_LEAST = 200
_PATTERN_ROWS_AT_LEAST = 20
_IDENTIFIER = re.compile(
    r"(?:.*[_ .-])?(?:id|uuid|guid|key|code|number|no|nr|sku|iban|ref|reference|hash)|.*[a-z](?:Id|ID|Uuid|Key|Code)"
)
_KINDS = {"9": "[0-9]", "A": "[A-Z]", "a": "[a-z]"}
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_TIME_NAMES = (
    "event_time",
    "event_timestamp",
    "timestamp",
    "time",
    "ts",
    "created_at",
    "created",
    "updated_at",
    "date",
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of a column.

    Attributes:
        name: Its name.
        logical_type: Its type in the words of ODCS.
        rows: How many rows there are.
        nulls: How many of them have a null.
        distinct: How many values there are, nulls left out; None where they were not counted.
        low: The least value that is finite; None where there is none.
        middle: The median of numbers; None where it was not taken.
        high: The greatest.
        strange: How many values are NaN or infinite.
        shortest: The least length of a text, in letters.
        longest: The greatest.
    """

    name: str
    logical_type: str
    rows: int
    nulls: int
    distinct: int | None = None
    low: Any = None
    middle: float | None = None
    high: Any = None
    strange: int = 0
    shortest: int | None = None
    longest: int | None = None

    @property
    def known(self) -> int:
        """How many values there are."""
        return self.rows - self.nulls

    @property
    def is_identifier(self) -> bool:
        """Whether the name says that the column identifies something."""
        return _IDENTIFIER.fullmatch(self.name) is not None or _IDENTIFIER.fullmatch(self.name.lower()) is not None


def is_unique(seen: Seen) -> bool:
    """Guesses whether a column without repeats will stay so.

    The name of an identifier is taken at its word. Whole numbers without repeats are no accident where random ones
    of their range would have repeated with near certainty (more than n² / 2R = 5 repeats were to be expected).

    Example:
        >>> is_unique(Seen(name="position", logical_type="integer", rows=100, nulls=0, distinct=100, low=1, high=100))
        True
        >>> is_unique(Seen(name="price", logical_type="integer", rows=10, nulls=0, distinct=10, low=1, high=10**6))
        False
    """
    if seen.known < 2 or seen.distinct != seen.known:
        return False
    if seen.is_identifier:
        return True
    if seen.logical_type != "integer":
        return False
    return bool(seen.known**2 / (2 * (seen.high - seen.low + 1)) > 5)


def limits(seen: Seen) -> tuple[float | None, float | None]:
    """Guesses a range of numbers: as far again beyond each end as the values span, rounded outward, never across 0.

    An end that lies more than five times as far from the median as the other is a long tail, which the next large
    value leaves far behind: beyond it nine spans are left. What identifies or counts rows has no upper end.

    Example:
        >>> limits(Seen(name="amount", logical_type="number", rows=9, nulls=0, low=1.5, high=87.3))
        (0, 180.0)
        >>> limits(Seen(name="amount", logical_type="number", rows=9, nulls=0, low=1.0, middle=9.0, high=501.0))
        (0, 5100.0)
        >>> limits(Seen(name="delta", logical_type="integer", rows=9, nulls=0, low=-40, high=60))
        (-140, 160)
    """
    low, high = seen.low, seen.high
    if low is None or high is None:
        return None, None
    whole = seen.logical_type == "integer"
    span = high - low or abs(high) or 1
    below, above = (0, 0) if seen.middle is None else (seen.middle - low, high - seen.middle)
    bottom = 0 if low >= 0 else -_outward((9 if below > 5 * above else 1) * span - low, whole=whole)
    top = 0 if high <= 0 else _outward(high + (9 if above > 5 * below else 1) * span, whole=whole)
    if whole and (seen.is_identifier or is_unique(seen)):
        return _kept(bottom, whole=whole), None
    return _kept(bottom, whole=whole), _kept(top, whole=whole)


def _outward(value: float, *, whole: bool) -> float:
    """Rounds a number above 0 up to two digits."""
    if not math.isfinite(value):
        return value
    power = math.floor(math.log10(value)) - 1
    if whole:
        step = 10 ** max(power, 0)
        return -(-value // step) * step
    if power < -300:
        return value
    digits = math.ceil(value / 10.0**power)
    rounded = float(f"{digits}e{power}")
    return rounded if rounded >= value else float(f"{digits + 1}e{power}")


def _kept(bound: float, *, whole: bool) -> float | None:
    """No bound where the margin leads beyond what the type can hold."""
    if whole:
        return int(bound) if abs(bound) < 2**63 else None
    return bound if math.isfinite(bound) else None


def null_limit(seen: Seen) -> int | None:
    """Guesses how many percent of nulls are usual at most; None where any share is.

    Half as many again as were seen, three standard errors, and one percent.

    Example:
        >>> null_limit(Seen(name="city", logical_type="string", rows=1000, nulls=20))
        6
    """
    share = seen.nulls / seen.rows
    limit = math.ceil(100 * (1.5 * share + 3 * math.sqrt(share * (1 - share) / seen.rows)) + 1)
    return limit if limit < 100 else None


def longest(seen: Seen) -> int | None:
    """Guesses the greatest length of a text: a power of two, at least twice what was seen."""
    return None if seen.longest is None else max(16, 2 ** math.ceil(math.log2(max(1, 2 * seen.longest))))


def may_be_list(seen: Seen) -> bool:
    """Whether the values are few enough to count each: words, or the two numbers 0 and 1 of a flag."""
    if seen.distinct is None or seen.known < _LISTED_ROWS_AT_LEAST:
        return False
    if seen.logical_type == "integer":
        return seen.distinct == 2 and (seen.low, seen.high) == (0, 1)
    return 1 <= seen.distinct <= LISTED_AT_MOST and not (seen.is_identifier and seen.distinct == seen.known)


def is_list(counts: Sequence[int]) -> bool:
    """Guesses whether all values there are were seen: where one came only a few times, others may not have come yet."""
    return min(counts) >= _LISTED_SEEN_AT_LEAST


def may_have_pattern(seen: Seen) -> bool:
    """Whether a text column is worth looking for a pattern."""
    return seen.logical_type == "string" and seen.is_identifier and seen.known >= _PATTERN_ROWS_AT_LEAST


def pattern(shapes: Sequence[str], widths: Sequence[tuple[int, int]], literals: Sequence[str | None]) -> str | None:
    r"""Writes the pattern of texts of one shape.

    Runs of one width that begin with a 0 somewhere keep their width; other digits may grow, as T999 is followed by
    T1000.

    Args:
        shapes: The shapes that were seen, with a run of digits as `9`, of capitals as `A`, of small letters as `a`.
        widths: Least and greatest width of each run, in order.
        literals: The one text that a run always is, with `"0"` for a run of digits that is filled up with zeros.

    Returns:
        A regular expression, or None where there are several shapes.

    Example:
        >>> pattern(["A-9"], [(3, 3), (4, 4)], ["INV", "0"])
        '^INV-[0-9]{4}$'
        >>> pattern(["A9"], [(1, 1), (2, 3)], ["T", None])
        '^T[0-9]+$'
    """
    if len(shapes) != 1:
        return None
    parts = []
    runs = iter(zip(widths, literals, strict=True))
    for letter in shapes[0]:
        if letter not in _KINDS:
            parts.append(re.sub(r"([\\.^$*+?{}\[\]|()/])", r"\\\1", letter))
            continue
        (least, most), literal = next(runs)
        if letter != "9" and literal is not None:
            parts.append(literal)
        elif least == most and (letter != "9" or literal == "0"):
            parts.append(f"{_KINDS[letter]}{{{least}}}" if least > 1 else _KINDS[letter])
        else:
            parts.append(f"{_KINDS[letter]}+")
    return f"^{''.join(parts)}$"


def event_time(columns: Sequence[Seen]) -> Seen | None:
    """Picks the column that says when a row happened: a required time, by its name if it has a usual one."""
    times = [seen for seen in columns if seen.logical_type == "timestamp" and not seen.nulls and seen.rows > 1]
    times = times or [seen for seen in columns if seen.logical_type == "date" and not seen.nulls and seen.rows > 1]
    order = {name: place for place, name in enumerate(_TIME_NAMES)}
    return min(times, key=lambda seen: order.get(seen.name.lower(), len(order)), default=None)


def primary_key(columns: Sequence[Seen], table: str) -> Seen | None:
    """Picks the column that names a row: `id`, the table's own identifier, or the first unique one."""
    unique = [seen for seen in columns if is_unique(seen) and not seen.nulls and seen.is_identifier]
    own = {"id", f"{table}_id", f"{table.removesuffix('s')}_id"}
    return min(unique, key=lambda seen: seen.name.lower() not in own, default=None)


def pairs(columns: Sequence[Seen]) -> list[tuple[Seen, Seen]]:
    """Lists pairs of columns that may name a row together, where none does alone: identifiers, and when it was."""
    clock = event_time(columns)
    named = [seen for seen in columns if seen.is_identifier and not seen.nulls and seen.logical_type != "number"][:4]
    if clock is not None:
        named.append(clock)
    return list(itertools.combinations(named, 2)) if columns[0].rows > 1 else []
