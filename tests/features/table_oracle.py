"""Tables worked out in plain Python, row by row, straight from what the definitions promise."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import polars as pl

from vitok.clock import DAY, HOUR, MINUTE
from vitok.features import Latest, Ratio, Recent, Source, TopK, View
from vitok.features.aggregations import Aggregation, Rate, Window
from vitok.features.fingerprints import fingerprint_texts

Row = Mapping[str, Any]
SCHEMA = {
    "id": pl.String,
    "event_time": pl.Int64,
    "seen_at": pl.Int64,
    "customer": pl.String,
    "terminal": pl.Int64,
    "amount": pl.Float64,
    "pieces": pl.Int32,
    "channel": pl.String,
    "city": pl.String,
    "gone": pl.Boolean,
}


def frame(rows: Sequence[Row]) -> pl.DataFrame:
    """Makes a frame of rows, in order."""
    whole = pl.DataFrame(list(rows), schema=SCHEMA)
    return whole.with_columns(pl.col("event_time", "seen_at").cast(pl.Datetime("us", "UTC")))


def history(seed: int, n: int, *, keys: int = 3, late: float = 0.3) -> list[dict[str, Any]]:
    """Makes events in the order of their arrival: ties, late ones, copies, nulls and NaN among them."""
    rng = random.Random(seed)
    grid = rng.choice([1, 7 * MINUTE, HOUR])
    rows: list[dict[str, Any]] = []
    for i in range(n):
        time = rng.randrange(-DAY, 3 * DAY) // grid * grid + rng.choice([0, 0, -1, 1])
        delay = rng.choice([1, MINUTE, 5 * HOUR, 2 * DAY]) if rng.random() < late else -rng.choice([0, 0, HOUR])
        row = {
            "id": f"e{i}",
            "event_time": time,
            "seen_at": time + delay,
            "customer": rng.choice([f"c{k}" for k in range(keys)]),
            "terminal": rng.randrange(2),
            "amount": rng.choice([None, math.nan, 0.0, -0.0, *(round(rng.uniform(-100, 100), 2) for _ in range(8))]),
            "pieces": rng.choice([None, *range(-2, 4)]),
            "channel": rng.choice([None, "web", "shop", "fax"]),
            "city": rng.choice([None, "", "Riga", "Århus", "北京"]),
            "gone": rng.choice([None, False, False, True]),
        }
        rows.append(row)
        if rng.random() < 0.15:
            # A copy under the same id with other contents: the one that became known first counts.
            rows.append({**row, "amount": 1e6, "seen_at": row["seen_at"] + rng.choice([-HOUR, 0, HOUR])})
    rng.shuffle(rows)
    return rows


def questions(seed: int, n: int, *, keys: int = 3) -> list[dict[str, Any]]:
    """Makes rows that ask: some at the moment of an event, some about nobody or about strangers."""
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        row = dict.fromkeys(SCHEMA)
        row["event_time"] = rng.randrange(-DAY, 6 * DAY) // HOUR * HOUR + rng.choice([0, 0, 1])
        row["customer"] = rng.choice([None, "", "stranger", *(f"c{k}" for k in range(keys) for _ in range(3))])
        row["terminal"] = rng.choice([None, 0, 0, 1, 1, 2])
        row["amount"], row["pieces"] = rng.choice([None, 12.5]), rng.choice([None, 2])
        out.append(row)
    return out


def known_once(source: Source, rows: Sequence[Row]) -> list[Row]:
    """Leaves out what comes under an id that was there before, by ingest time, then by arrival."""
    if not source.event_id:
        return list(rows)
    first: dict[Any, int] = {}
    order = sorted(range(len(rows)), key=lambda place: rows[place][source.ingest_time] if source.ingest_time else 0)
    for place in order:
        first.setdefault(rows[place][source.event_id], place)
    return [row for place, row in enumerate(rows) if first[row[source.event_id]] == place]


def _key(names: Sequence[str], row: Row) -> tuple[str, ...] | None:
    parts = tuple(str(row[name]) for name in names)
    return None if any(row[name] is None or row[name] == "" for name in names) else parts


def _is_visible(view: View | Latest, row: Row, time: int) -> bool:
    if row[view.source.event_time] >= time:
        return False
    if view.available_after is None:
        return row[view.source.ingest_time] <= time
    return row[view.source.event_time] + view.available_after <= time


def _is_nothing(value: Any) -> bool:
    return value is None or value != value


def _holds(row: Row, where: Sequence[tuple[str, str, Any]]) -> bool:
    compare = {
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        "in": lambda a, b: a in b,
        "not in": lambda a, b: a not in b,
    }
    return all(not _is_nothing(row[name]) and compare[how](row[name], value) for name, how, value in where)


def _numbers(item: Aggregation, source: Source, rows: Sequence[Row]) -> list[float]:
    held = [row[item.column] for row in rows if _holds(row, item.where)]
    encoding = source.encodings.get(item.column)
    return [float(encoding.code(value)) if encoding else float(value) for value in held if not _is_nothing(value)]


def one_number(item: Aggregation, source: Source, rows: Sequence[Row], window: Window) -> float:
    """Computes an aggregation of one number over the events inside a window, which are in order."""
    if isinstance(item, Ratio):
        upper, lower = (one_number(part, source, rows, window) for part in (item.upper, item.lower))
        return upper / lower if lower != 0 else math.nan
    if item.kind == "count":
        return float(sum(_holds(row, item.where) for row in rows))
    if isinstance(item, Rate):
        unit = {"1m": MINUTE, "1h": HOUR, "1d": DAY}[item.per]
        return sum(_holds(row, item.where) for row in rows) * (unit / window.span)
    if item.kind == "distinct":
        return float(
            len({row[item.column] for row in rows if _holds(row, item.where) and not _is_nothing(row[item.column])})
        )
    numbers = _numbers(item, source, rows)
    if item.kind == "sum":
        return math.fsum(numbers)
    if not numbers:
        return math.nan
    if item.kind == "std":
        exact = [Fraction(number) for number in numbers]
        mean = sum(exact) / len(exact)
        squares = sum((number - mean) ** 2 for number in exact)
        return math.sqrt(squares / (len(exact) - 1)) if len(exact) > 1 else math.nan
    simple = {
        "mean": lambda: math.fsum(numbers) / len(numbers),
        "min": lambda: min(numbers),
        "max": lambda: max(numbers),
    }
    simple |= {"first": lambda: numbers[0], "last": lambda: numbers[-1]}
    return simple[item.kind]()


def windowed(view: View, events: Sequence[Row], asked: Row) -> list[float]:
    """Computes the features of a view of windows for one row."""
    source, time = view.source, asked["event_time"]
    key = _key(view.entity.keys, asked)
    tie = {row[source.event_id]: int(fingerprint_texts([str(row[source.event_id])])[0, 0]) for row in events}
    seen = [row for row in known_once(source, events) if key is not None and _key(view.entity.keys, row) == key]
    seen = [row for row in seen if _is_visible(view, row, time)]
    seen.sort(
        key=lambda row: (
            row[source.event_time],
            row[source.ingest_time] if source.ingest_time else 0,
            tie[row[source.event_id]],
        )
    )
    out: list[float] = []
    for item in view.aggregations:
        for window in view.windows_of(item):
            begin = (time - window.span) // window.hop * window.hop
            inside = [row for row in seen if row[source.event_time] >= begin]
            if isinstance(item, TopK):
                counted = Counter(number + 0.0 for number in _numbers(item, source, inside))
                best = sorted(counted, key=lambda value: (-counted[value], value))[: item.k]
                out += best + [math.nan] * (item.k - len(best))
            elif isinstance(item, Recent):
                newest = _numbers(item, source, inside)[::-1][: item.n]
                out += newest + [math.nan] * (item.n - len(newest))
            else:
                out.append(one_number(item, source, inside, window))
    return out


def newest(view: Latest, events: Sequence[Row], asked: Row) -> list[Any]:
    """Computes the features of a view of latest values for one row; None where there is none."""
    source, time = view.source, asked["event_time"]
    key = _key(view.entity.keys, asked)
    best: Row | None = None
    best_rank: tuple[int, int] | None = None
    for row in known_once(source, events):
        if key is None or _key(view.entity.keys, row) != key or not _is_visible(view, row, time):
            continue
        rank = (row[source.event_time], row[source.ingest_time] if source.ingest_time else 0)
        if best_rank is None or rank >= best_rank:
            best, best_rank = row, rank
    gone = best is None or (source.deleted and best[source.deleted])
    if gone or (view.max_age and time - best[source.event_time] > view.max_age):
        return [None] * len(view.columns)
    out: list[Any] = []
    for name, dtype in zip(view.columns, view.dtypes, strict=True):
        value, encoding = best[name], source.encodings.get(name)
        if _is_nothing(value):
            out.append(None)
        elif encoding:
            out.append(encoding.code(value))
        else:
            out.append({"int64": int, "int32": int, "bool": bool}.get(dtype, float)(value))
    return out
