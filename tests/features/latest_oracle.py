"""Views of latest values worked out in plain Python, row by row, and the histories that tests ask about."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from vitok.clock import HOUR
from vitok.engines.row_store import Row, RowStore
from vitok.errors import StoreError
from vitok.features import Latest

TIMES = ("event_time", "known_at")


def frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Makes a source's frame; its rows stand in the order in which they arrived."""
    schema = {
        "customer_id": pl.String,
        "event_time": pl.Int64,
        "known_at": pl.Int64,
        "gone": pl.Boolean,
        "limit": pl.Float64,
        "level": pl.Int32,
        "vip": pl.Boolean,
    }
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col(TIMES).cast(pl.Datetime("us", "UTC")))


def history(seed: int, n: int, customers: int = 6, hours: int = 100) -> list[dict[str, Any]]:
    """Makes rows in the order of arrival: late ones, corrections, ties, deletes and nulls among them."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(n):
        event = rng.randrange(hours) * HOUR
        row = {
            "customer_id": f"c{rng.randrange(customers)}",
            "event_time": event,
            "known_at": event + rng.choice([0, 1, HOUR, 30 * HOUR]),
            "gone": rng.random() < 0.1,
            "limit": rng.choice([None, rng.random()]),
            "level": rng.choice([None, rng.randrange(-5, 5)]),
            "vip": rng.choice([None, True, False]),
        }
        if rows and rng.random() < 0.2:
            # The same moment of the same customer once more, known later: a correction.
            first = rng.choice(rows)
            row |= {name: first[name] for name in ("customer_id", "event_time")}
            row["known_at"] = first["known_at"] + rng.choice([1, HOUR])
        rows.append(row)
    rows.sort(key=lambda row: row["known_at"])
    return rows


def latest(view: Latest, rows: Sequence[Mapping[str, Any]], key: str, time: int) -> tuple[list[float], str]:
    """Returns the values and the status of one entity at one time, from all rows in the order of arrival."""
    best: tuple[tuple[int, int, int], Mapping[str, Any]] | None = None
    for place, row in enumerate(rows):
        event = row["event_time"]
        known = row["known_at"] if view.available_after is None else event + view.available_after
        if row["customer_id"] == key and event < time and known <= time:
            rank = (event, row["known_at"] if view.source.ingest_time else 0, place)
            if best is None or rank > best[0]:
                best = rank, row
    nothing = [math.nan] * len(view.columns)
    if best is None or (view.source.deleted and best[1]["gone"]):
        return nothing, "missing"
    if view.max_age and time - best[1]["event_time"] > view.max_age:
        return nothing, "stale"
    values = [best[1][name] for name in view.columns]
    return [math.nan if value is None else float(value) for value in values], "fresh"


class Failing:
    """A store that can be told to fail, and counts what it is asked."""

    def __init__(self, store: RowStore) -> None:
        self.store = store
        self.down = False
        self.fails_at_write = -1
        self.reads = self.writes = 0

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.reads += 1
        if self.down:
            raise StoreError("the store does not answer")
        return self.store.read(keys)

    def write(self, rows: Iterable[Row]) -> int:
        self.writes += 1
        if self.down or self.writes == self.fails_at_write:
            raise StoreError("the store does not answer")
        return self.store.write(rows)

    def erase(self, keys: Sequence[bytes]) -> int:
        if self.down:
            raise StoreError("the store does not answer")
        return self.store.erase(keys)
