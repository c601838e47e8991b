"""The tiles that a Flink job keeps: the tables they stand in, and how they are merged into features."""

import collections
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vitok.clock import MINUTE, duration
from vitok.errors import InvalidInput
from vitok.features import sql
from vitok.features.aggregations import Recent, Window
from vitok.features.definitions import FeatureSet
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.flink_streams import Input, Stream, kafka
from vitok.features.plan import (
    ABSENT,
    COUNT,
    DISTINCT,
    FIRST,
    LAST,
    MAX,
    MEAN,
    MIN,
    NUMBER,
    RATE,
    RATIO,
    RECENT,
    STD,
    SUM,
    TOP,
)
from vitok.features.sources import SEPARATOR
from vitok.features.sql import quoted
from vitok.features.views import View

# Which part of an input serves which kinds. Squares are about a pivot (the first value of the tile to arrive), so that
# they do not lose the digits in which values of one size differ; Chan, Golub and LeVeque (1983), shifted data.
_PARTS: tuple[tuple[str, frozenset[int]], ...] = (
    ("n", frozenset({MEAN, STD, NUMBER})),
    ("sum", frozenset({SUM, MEAN})),
    ("pivot", frozenset({STD})),
    ("shifted", frozenset({STD})),
    ("squares", frozenset({STD})),
    ("min", frozenset({MIN})),
    ("max", frozenset({MAX})),
)
_TYPES = {"n": "BIGINT", "values": "MULTISET<STRING NOT NULL>"}


class TileTables:
    """The tables that a view's tiles stand in: names, columns, and what each column is for.

    Args:
        view: A view of windows, none of them exact but those of `Recent`.

    Attributes:
        hops: Lengths of the tiles in microseconds, shortest first.
        tiles_table: Name of the table of tiles.
        ends_table: Name of the table of newest and oldest values; it is there where `ends` is not empty.
        parts: Columns of the tiles by (kind of part, input): `("sum", 0)` to `"amount_0_sum"`.
        ends: Names by (side, input), and how many values each keeps a tile; side is `"first"` or `"last"`.
    """

    def __init__(self, view: View) -> None:
        if view.exact:
            raise InvalidInput(
                f"view {view.name!r}: exact",
                True,
                "be off where tiles are made: the tail of an exact window lies inside a tile",
                "Leave the view out, or let its windows end on a hop.",
            )
        self.view = view
        self.keys = view.entity.keys
        self.tiles_table = f"{view.name}_tiles"
        self.ends_table = f"{view.name}_ends"
        hops = {window.hop for window in view.windows if window.hop > 1}
        for asked in view.aggregations:
            if isinstance(asked, Recent):
                hops |= {Window.of(span).hop if duration(span) % MINUTE == 0 else 5 * MINUTE for span in asked.over}
        self.hops = tuple(sorted(hops))
        self.parts: dict[tuple[str, int], str] = {}
        self.ends: dict[tuple[str, int], tuple[str, int]] = {}
        plan = view.plan
        for index, item in enumerate(plan.inputs):
            kinds = plan.kinds_of[index]
            title = f"{item.column or 'events'}_{index}"
            for part, needed in _PARTS:
                if kinds & needed:
                    self.parts[part, index] = f"{title}_{part}"
            if FIRST in kinds:
                self.ends["first", index] = (title, 1)
            if kinds & {LAST, RECENT}:
                most = max(
                    (row[3] + 1 for row in plan.rows.tolist() if row[0] == RECENT and row[2] == index), default=1
                )
                self.ends["last", index] = (title, most)
        for index, item in enumerate(plan.codes):
            self.parts["values", index] = f"{item.column}_{index}_values"

    def declarations(self, sink: str) -> list[str]:
        """Returns the statements that make the tables at a sink."""
        keys = [(name, "STRING NOT NULL") for name in self.keys]
        where = [("hop", "BIGINT NOT NULL"), ("tile", "BIGINT NOT NULL")]
        parts = [(name, _TYPES.get(part, "DOUBLE")) for (part, _), name in self.parts.items()]
        unique_key = (*self.keys, "hop", "tile")
        out = [_declared(self.tiles_table, [*keys, *where, ("events", "BIGINT"), *parts], unique_key, sink)]
        if self.ends:
            ends = [("side", "STRING NOT NULL"), ("input", "STRING NOT NULL"), ("place", "BIGINT NOT NULL")]
            row = [("event_time", "BIGINT"), ("ingest_time", "BIGINT"), ("event_id", "STRING"), ("value", "DOUBLE")]
            out.append(
                _declared(self.ends_table, [*keys, *where, *ends, *row], (*unique_key, "side", "input", "place"), sink)
            )
        return out


class TileReader:
    """Merges the rows that a job writes, and the raw events of the open tile, into the features of a view.

    It shows what the tiles mean and is what the job is tested with; it holds all rows it is given.

    Args:
        features: The definitions that the job was made of.
        view: Which view of windows.
        stream: How Flink reads its source; as for `job`.
    """

    def __init__(self, features: FeatureSet, view: View, stream: Stream | None = None) -> None:
        self.view = view
        self.tables = TileTables(view)
        self._types = Input(view.source, stream or Stream(), features).types
        self._tiles: dict[tuple[str, int, int], Mapping[str, Any]] = {}
        self._ends: dict[tuple[str, int, int], dict[tuple[str, str, int], Mapping[str, Any]]] = {}

    def put(self, table: str, row: Mapping[str, Any], *, gone: bool = False) -> None:
        """Takes a row of one of the tables: it replaces the one of its key.

        Args:
            table: Name of the table, such as `"customer_tiles"`.
            row: Columns by name.
            gone: Whether the row was taken back.
        """
        tile = (SEPARATOR.join(row[name] for name in self.tables.keys), row["hop"], row["tile"])
        if table == self.tables.tiles_table:
            self._tiles[tile] = row
            if gone:
                del self._tiles[tile]
        elif table == self.tables.ends_table:
            ends = self._ends.setdefault(tile, {})
            end = (row["side"], row["input"], row["place"])
            ends[end] = row
            if gone:
                del ends[end]
        else:
            known = (self.tables.tiles_table, self.tables.ends_table)
            raise InvalidInput("table", table, f"be one of {', '.join(known)}")

    def head(self, time: int) -> int:
        """Returns from which event time on the raw events of an entity are needed for a question at `time`."""
        upper = self._upper(time)
        return upper // self.tables.hops[0] * self.tables.hops[0]

    def read(self, key: Sequence[str], time: int, events: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Answers one question.

        Args:
            key: The parts of the entity's key, as texts.
            time: The question's time in microseconds.
            events: The entity's raw events from `head(time)` on, as mappings with times in microseconds; other events
                do no harm.

        Returns:
            Shape (features,), float64.
        """
        plan, upper, head = self.view.plan, self._upper(time), self.head(time)
        raw = self._raw(events, head, upper)
        out = np.full(plan.width, np.nan)
        for place, window in enumerate(self.view.windows):
            merged = _Merged(self, plan.inputs, window.start(time))
            for tile in self._covering(merged.start, head):
                merged.add_tile(
                    self._tiles.get((SEPARATOR.join(key), *tile)), self._ends.get((SEPARATOR.join(key), *tile))
                )
            merged.add_events(raw)
            for row, (kind, at, index, rank, _) in enumerate(plan.rows.tolist()):
                if at == place and kind not in {RATIO, RATE}:
                    out[row] = merged.value(kind, index, rank)
        for row, (kind, _, _, upper_row, lower_row) in enumerate(plan.rows.tolist()):
            if kind == RATE:
                out[row] = out[upper_row] * plan.scale[row]
            elif kind == RATIO:
                out[row] = out[upper_row] / out[lower_row] if out[lower_row] != 0 else np.nan
        return out[: len(plan.names)]

    def code(self, index: int, text: str) -> int:
        """Returns the code of a value that a tile counts, as the plan gives it for an event."""
        column = self.view.plan.codes[index].column
        encoding = self.view.source.encodings.get(column)
        if encoding is not None:
            number = encoding.code(text)
        elif self._types[column] == "STRING":
            return int(fingerprint_texts([text])[0, 0].view(np.int64))
        elif self._types[column] == "BOOLEAN":
            number = float(text.upper() == "TRUE")
        elif "INT" in self._types[column] and abs(int(text)) > 2**53:
            return int(fingerprint_texts([text])[0, 0].view(np.int64))
        else:
            number = float(text)
        return int((np.float64(number) + 0.0).view(np.int64))

    def _upper(self, time: int) -> int:
        # Events before this time count: those before the question that were known by then.
        return time - max(self.view.plan.lag, 1) + 1

    def _covering(self, start: int, head: int) -> Iterator[tuple[int, int]]:
        # Tiles (hop, start) from the one of `start` to the head, the longest that fits first.
        at = start // self.tables.hops[0] * self.tables.hops[0]
        while at < head:
            hop = next(hop for hop in reversed(self.tables.hops) if at % hop == 0 and at + hop <= head)
            yield hop, at
            at += hop

    def _raw(self, events: Sequence[Mapping[str, Any]], head: int, upper: int) -> "_Raw":
        source, plan = self.view.source, self.view.plan
        once: dict[str, dict[str, Any]] = {}
        for event in events:
            if head <= event[source.event_time] < upper:
                once.setdefault(str(event[source.event_id]), dict(event))
        rows = list(once.values())
        counted = {item.column for item in plan.codes if self._types[item.column] == "STRING"}
        for row in rows:  # what Flink reads as text is text here
            row.update({name: str(row[name]) for name in counted if row[name] is not None})
        ingests = [row[source.ingest_time] if source.ingest_time else 0 for row in rows]
        order = [(row[source.event_time], ingest, key) for row, ingest, key in zip(rows, ingests, once, strict=True)]
        return _Raw(order, plan.values_of_rows(rows), plan.codes_of_rows(rows))


_Order = tuple[int, int, str]


class _Raw:
    # Raw events: what orders them, their numbers (events, inputs), their codes (events, codes).
    def __init__(self, order: Sequence[_Order], values: np.ndarray, codes: np.ndarray) -> None:
        self.order = order
        self.values = values
        self.codes = codes


class _Merged:
    # One window of one question.
    def __init__(self, reader: TileReader, inputs: Sequence[Any], start: int) -> None:
        self.reader = reader
        self.start = start
        self.events = 0
        self.n = np.zeros(len(inputs), np.int64)
        self.sum = np.zeros(len(inputs))
        self.min = np.full(len(inputs), np.inf)
        self.max = np.full(len(inputs), -np.inf)
        self.spread: list[tuple[int, float, float]] = [(0, 0.0, 0.0)] * len(inputs)
        self.firsts: list[list[tuple[_Order, float]]] = [[] for _ in inputs]
        self.lasts: list[list[tuple[_Order, float]]] = [[] for _ in inputs]
        self.counts: collections.defaultdict[int, collections.Counter[int]] = collections.defaultdict(
            collections.Counter
        )

    def add_tile(
        self, row: Mapping[str, Any] | None, ends: Mapping[tuple[str, str, int], Mapping[str, Any]] | None
    ) -> None:
        if row is None:
            return
        tables = self.reader.tables
        self.events += row["events"]
        for (part, index), name in tables.parts.items():
            value = row[name]
            if value is None:
                continue
            if part == "n":
                self.n[index] += value
            elif part == "sum":
                self.sum[index] += value
            elif part == "min":
                self.min[index] = min(self.min[index], value)
            elif part == "max":
                self.max[index] = max(self.max[index], value)
            elif part == "squares":
                n = row[tables.parts["n", index]]
                shifted, pivot = row[tables.parts["shifted", index]], row[tables.parts["pivot", index]]
                self._spread(index, n, pivot + shifted / n, max(value - shifted * shifted / n, 0.0))
            elif part == "values":
                for text, count in value.items():
                    self.counts[index][self.reader.code(index, text)] += count
        for (side, index), (title, _) in tables.ends.items():
            kept = self.firsts if side == "first" else self.lasts
            for (its_side, its_title, _), end in (ends or {}).items():
                if (its_side, its_title) == (side, title) and end["event_time"] >= self.start:
                    order = (end["event_time"], end["ingest_time"], end["event_id"])
                    kept[index].append((order, end["value"]))

    def add_events(self, raw: _Raw) -> None:
        for order, values, codes in zip(raw.order, raw.values, raw.codes, strict=True):
            if order[0] < self.start:
                continue
            self.events += 1
            for index, value in enumerate(values.tolist()):
                if math.isnan(value):
                    continue
                self.n[index] += 1
                self.sum[index] += value
                self.min[index] = min(self.min[index], value)
                self.max[index] = max(self.max[index], value)
                self._spread(index, 1, value, 0.0)
                self.firsts[index].append((order, value))
                self.lasts[index].append((order, value))
            for index, code in enumerate(codes.tolist()):
                if code != ABSENT:
                    self.counts[index][code] += 1

    def _spread(self, index: int, n: int, mean: float, m2: float) -> None:
        # Chan, Golub and LeVeque's merge of two (number, mean, squared deviations).
        a, mean_a, m2_a = self.spread[index]
        away = mean - mean_a
        self.spread[index] = (a + n, mean_a + away * n / (a + n), m2_a + m2 + away * away * a * n / (a + n))

    def value(self, kind: int, index: int, rank: int) -> float:
        if kind == COUNT:
            return self.events
        if kind == DISTINCT:
            return len(self.counts[index])
        if kind == TOP:
            found = [(-count, float(np.int64(code).view(np.float64))) for code, count in self.counts[index].items()]
            return sorted(found)[rank][1] if rank < len(found) else math.nan
        if kind in {NUMBER, SUM, MEAN}:
            n, total = int(self.n[index]), float(self.sum[index])
            return n if kind == NUMBER else total if kind == SUM else total / n if n else math.nan
        if kind in {MIN, MAX}:
            extreme = float((self.min if kind == MIN else self.max)[index])
            return extreme if math.isfinite(extreme) else math.nan
        if kind == STD:
            n, _, m2 = self.spread[index]
            return math.sqrt(m2 / (n - 1)) if n > 1 else math.nan
        if kind == FIRST:
            return min(self.firsts[index])[1] if self.firsts[index] else math.nan
        newest = sorted(self.lasts[index], reverse=True)
        place = rank if kind == RECENT else 0
        return newest[place][1] if place < len(newest) else math.nan


def _declared(name: str, columns: Iterable[tuple[str, str]], key: Iterable[str], sink: str) -> str:
    scheme, _, place = sink.partition("://")
    if scheme == "kafka":
        servers, topic = kafka(place)
        options = {"connector": "upsert-kafka", "topic": f"{topic}.{name}", "properties.bootstrap.servers": servers}
        options |= {"key.format": "json", "value.format": "json"}
    elif scheme == "file":
        options = {"connector": "filesystem", "path": f"{sink.rstrip('/')}/{name}", "format": "debezium-json"}
    else:
        raise InvalidInput("sink", sink, "begin with kafka:// or file://", "Try file:///tmp/tiles.")
    listed = [f"{quoted(column)} {kind}" for column, kind in columns]
    listed.append(f"PRIMARY KEY ({', '.join(quoted(column) for column in key)}) NOT ENFORCED")
    return f"CREATE TABLE {quoted(name)} (\n  " + ",\n  ".join(listed) + f"\n) WITH ({sql.options(options)})"
