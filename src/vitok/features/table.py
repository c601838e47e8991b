"""Point-in-time tables: what each feature was worth at each past moment.

Events are read once for each source and entity, dealt out to their keys and put in order in linear time; then one pass
a view answers all questions of a key (see `sweep_kernels` and `order_kernels.newest`). What does not fit into memory
is dealt out to files by key first, and answered one file after the other.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.answers import Answers, Matrix, Partitions, Spilled, joined
from vitok.features.asof import AsOf
from vitok.features.definitions import FeatureSet
from vitok.features.events import microseconds, texts
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.history import Input, Session, plain
from vitok.features.key_table import KeyReader, KeyTable, has_key
from vitok.features.ordered import Asked, Collector
from vitok.features.repeats import repeated_rows
from vitok.features.sources import Entity, Source, unique
from vitok.features.spine import Spine, TableWriter, disk
from vitok.features.sweep import Sweep
from vitok.features.views import Embedding, Latest, View

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

_MOST_PARTS = 256  # files that are open at once
_SIGN = np.uint64(1 << 63)
_FUTURE = 2**62
_LEAST_FOR_IDS = 16 * 2**20  # bytes; with less, a source would be read too often


@overload
def table(
    spine: "pl.DataFrame | pl.LazyFrame | str | Path | Sequence[str | Path]",
    features: FeatureSet,
    sources: Mapping[str, Any],
    *,
    into: None = None,
    memory_limit: str | int = "2GB",
    indexes: Mapping[str, Any] | None = None,
) -> "pl.DataFrame": ...


@overload
def table(
    spine: "pl.DataFrame | pl.LazyFrame | str | Path | Sequence[str | Path]",
    features: FeatureSet,
    sources: Mapping[str, Any],
    *,
    into: str | Path,
    memory_limit: str | int = "2GB",
    indexes: Mapping[str, Any] | None = None,
) -> Path: ...


def table(
    spine: "pl.DataFrame | pl.LazyFrame | str | Path | Sequence[str | Path]",
    features: FeatureSet,
    sources: Mapping[str, Any],
    *,
    into: str | Path | None = None,
    memory_limit: str | int = "2GB",
    indexes: Mapping[str, Any] | None = None,
) -> "pl.DataFrame | Path":
    """Adds the value of each feature as of each row's `event_time`.

    A row at time t sees events with `event_time < t` that were known at t: whose ingest time is not after t, or, where
    the view states a lag, whose event time and lag are not. Rows in are rows out, in the same order.

    Args:
        spine: Rows to compute features for: `event_time`, the entities' key columns and the request columns of the
            feature set. A frame, or a path, folder or pattern of Parquet or CSV. A null key gives empty features.
        features: The definitions.
        sources: Source name to its events, as frames or paths: event id, times, entity keys and the columns that are
            asked for. Times are Datetime or Date; without a zone they are taken as UTC. Keys and ids in CSV files are
            read as text.
        into: A Parquet file to write instead of returning a frame; then nothing need fit into memory.
        memory_limit: About how much memory to use for rows; what does not fit goes to a temporary folder.
        indexes: By `"name@version"`, the vectors of embeddings: a mapping from key text to vector, or something that
            takes a list of key texts and returns shape (n, dimension), NaN where there is none (a function, or an
            object with such a method `vectors`).

    Returns:
        The spine's columns and one for each feature that is not already a column of the spine: latest values in their
        declared type, null where there is none, all others float64. With `into`, the path.

    Raises:
        InvalidInput: If a column is missing or of the wrong type, or a key, time or id of a source is null.
        StoreError: If a disk is full or cannot be written.

    Example:
        >>> import polars as pl
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> events = pl.DataFrame({"id": ["a", "b"], "customer_id": ["1", "1"], "event_time": [0, 60_000_000]})
        >>> events = events.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
        >>> customer = Entity("customer", "customer_id")
        >>> view = View(name="customer", entity=customer, source=Source("events", "id"), aggregations=(Count(("1h",)),))
        >>> table(events, FeatureSet(views=(view,)), {"events": events})["customer_count_1h"].to_list()
        [0.0, 1.0]
    """
    import polars as pl
    import pyarrow as pa

    for view in features.views:
        if not isinstance(view, Embedding) and view.source.name not in sources:
            raise InvalidInput("sources", sorted(sources), f"hold {view.source.name!r}, which view {view.name!r} reads")
        if isinstance(view, Embedding) and view.reference not in (indexes or {}):
            known = sorted(indexes or {})
            raise InvalidInput("indexes", known, f"hold {view.reference!r}, which view {view.name!r} reads")
    with Session(memory_limit) as session, disk("table"):
        asks = Spine(session, spine, features.entity_keys, whole=into is None)
        job = _Job(session, asks, features, sources, indexes or {}, spills=into is not None)
        job.compute()
        n_rows = 0
        made: list[pa.Table] = []
        writer: TableWriter | None = None
        if into is not None:
            writer = TableWriter(into, job.schema(asks.schema()), asks.columns)
        try:
            for block in asks.blocks(job.row_bytes):
                columns = job.columns(block, n_rows)
                n_rows += len(block)
                if writer is None:
                    made.append(pa.table(columns, schema=job.schema(pa.schema([]))))
                else:
                    writer.write(pa.table([*block.columns, *columns], schema=job.schema(block.schema)))
            if n_rows != asks.height:
                raise AssertionError(f"{asks.height} rows in, {n_rows} rows out")
            if writer is not None:
                return writer.finish()
        except BaseException:
            if writer is not None:
                writer.abandon()
            raise
        if not job.fresh:
            return asks.frame
        new = pl.DataFrame(pa.concat_tables(made) if made else pa.Table.from_batches([], job.schema(pa.schema([]))))
        return asks.frame.hstack(new.get_columns())


Computation = Sweep | AsOf


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    # One pass over one source for one entity, and the views that are fed by it.
    entity: Entity
    source: Source
    views: tuple[Computation, ...]

    @property
    def has_ingest(self) -> bool:
        if not self.source.ingest_time:
            return False
        return any(item.has_order or isinstance(item, AsOf) or item.view.available_after is None for item in self.views)

    @property
    def has_tie(self) -> bool:
        return any(item.has_order for item in self.views)

    @property
    def columns(self) -> tuple[str, ...]:
        source = self.source
        names = [*self.entity.keys, source.event_time, source.ingest_time if self.has_ingest else ""]
        names += [source.event_id if self.has_tie else ""]
        return unique([*names, *(name for item in self.views for name in item.columns)])

    @property
    def n_ranks(self) -> int:
        return 1 + self.has_ingest + self.has_tie

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(item.width for item in self.views)

    def reach(self, oldest: int) -> int:
        # Nothing before this moment can be seen by a question at or after `oldest`.
        if any(not item.view.longest for item in self.views):
            return -_FUTURE
        return oldest - max(item.view.longest for item in self.views)

    def ranks(self, frame: "pl.DataFrame") -> np.ndarray:
        where = f"source {self.source.name!r}"
        out = np.empty((len(frame), self.n_ranks), np.int64)
        out[:, 0] = microseconds(frame, self.source.event_time, where)
        if self.has_ingest:
            out[:, 1] = microseconds(frame, self.source.ingest_time, where)
        if self.has_tie:
            first = fingerprint_texts(texts(frame, self.source.event_id, where))[:, 0]
            out[:, -1] = (first ^ _SIGN).view(np.int64)
        return out


class _Job:
    # One call of `table`: which views are needed, their answers, and the columns made of these.
    def __init__(
        self,
        session: Session,
        spine: Spine,
        features: FeatureSet,
        sources: Mapping[str, Any],
        indexes: Mapping[str, Any],
        *,
        spills: bool,
    ) -> None:
        self.session, self.spine, self.features, self.indexes = session, spine, features, indexes
        self.spills = spills
        self.fresh = [name for name in features.names if name not in spine.columns]
        self.on_demand = [
            item for item in features.on_demand if {item.name for item in features.on_demand} & {*self.fresh}
        ]
        asked = {*self.fresh, *(name for item in self.on_demand for name in item.inputs)}
        self.views = [view for view in features.views if asked & {*view.feature_names}]
        self.asked = asked
        self._check_spine()
        self.computations: dict[str, Computation] = {}
        grouped: dict[tuple[Entity, Source, bool], list[Computation]] = {}
        for view in self.views:
            if not isinstance(view, Embedding):
                item = Sweep(view) if isinstance(view, View) else AsOf(view)
                self.computations[view.name] = item
                grouped.setdefault((view.entity, view.source, isinstance(view, View)), []).append(item)
        self.readings = [_Reading(entity, source, tuple(views)) for (entity, source, _), views in grouped.items()]
        self.inputs = {
            source.name: session.open(sources[source.name], f"source {source.name!r}", *self._wanted(source))
            for source in dict.fromkeys(reading.source for reading in self.readings)
        }
        self.repeated: dict[str, np.ndarray] = {}
        self.answers: dict[str, Answers] = {}
        self.budget = session.limit * 6 // 10
        self.held = self.n_folders = 0
        self.oldest, self.newest = _FUTURE, -_FUTURE

    @property
    def row_bytes(self) -> int:
        """Bytes that the features of one row take."""
        return 8 * (len(self.fresh) + (len(self.features.computed) if self.on_demand else 0))

    def _check_spine(self) -> None:
        wanted = ["event_time", *self.features.request]
        for view in self.views:
            wanted += view.entity.keys
            if isinstance(view, View) and view.include_current:
                wanted += [item.column for item in view.plan.inputs]
        missing = [name for name in unique(wanted) if name not in self.spine.columns]
        if missing:
            raise InvalidInput("spine: columns", self.spine.columns, f"hold {', '.join(missing)}")
        for name in self.features.request:
            kind = self.spine.rows.schema[name]
            if not (kind.is_numeric() or kind.is_(_boolean()) or not self.spine.height or kind.is_(_null())):
                raise InvalidInput(f"spine: {name}", str(kind), "be numeric", "It is a request feature.")

    def _wanted(self, source: Source) -> tuple[tuple[str, ...], tuple[str, ...]]:
        readings = [reading for reading in self.readings if reading.source == source]
        # Of copies of an event the one that was known first counts, also where no view asks when that was.
        first = source.ingest_time if source.event_id else ""
        names = [source.event_id, first, *(name for reading in readings for name in reading.columns)]
        return unique(names), unique([source.event_id, *(key for reading in readings for key in reading.entity.keys)])

    # Answers

    def compute(self) -> None:
        """Computes the answers of all views."""
        entities = list(dict.fromkeys(reading.entity for reading in self.readings))
        readers = {entity: self._reader(entity) for entity in entities}
        in_memory = self.spine.height * (8 + 12 * len(entities)) <= self.budget // 3
        tables = {entity: KeyTable() for entity in entities}
        codes: dict[Entity, list[np.ndarray]] = {entity: [] for entity in entities}
        times: list[np.ndarray] = []
        for frame in self.spine.rows.batches(unique(["event_time", *(key for item in entities for key in item.keys)])):
            time = microseconds(frame, "event_time", "spine")
            self.oldest = min(self.oldest, int(time.min(initial=_FUTURE)))
            self.newest = max(self.newest, int(time.max(initial=-_FUTURE)))
            if not in_memory:
                continue
            times.append(time)
            for entity in entities:
                codes[entity].append(tables[entity].add(*readers[entity].words_or_none(frame, "spine")))
        time = np.concatenate(times) if times else np.zeros(0, np.int64)
        asked: dict[Entity, Asked] = {}
        for reading in self.readings:
            parts = self._parts(reading)
            if parts > 1 or not in_memory:
                self._compute_in_parts(reading, readers[reading.entity], max(parts, 2))
                continue
            entity = reading.entity
            if entity not in asked:
                pieces = codes.pop(entity) or [np.zeros(0, np.int32)]
                asked[entity] = Asked.of(tables[entity], np.concatenate(pieces), time)
            self._compute_at_once(reading, readers[entity], asked[entity])

    def _reader(self, entity: Entity) -> KeyReader:
        sources = [self.inputs[reading.source.name] for reading in self.readings if reading.entity == entity]
        return KeyReader(entity, [self.spine.rows.schema, *(item.schema for item in sources)])

    def _parts(self, reading: _Reading) -> int:
        # Events are kept with their codes and order; windows are copied once into the order of their keys.
        words = sum(2 * item.width if isinstance(item, Sweep) else item.width for item in reading.views)
        event = 12 + 16 * reading.n_ranks + 8 * words
        question = 16 + max(8 * len(item.empty) for item in reading.views)
        need = self.inputs[reading.source.name].height * event + self.spine.height * question
        room = max(self.budget - self.held, self.budget // 4, 1)
        return min(_MOST_PARTS, -(-need // room))

    def _compute_at_once(self, reading: _Reading, reader: KeyReader, asked: Asked) -> None:
        height = self.inputs[reading.source.name].height
        collector = Collector(asked.table, height, reading.n_ranks, reading.widths)
        for keys, ranks, parts in self._events(reading, reader):
            collector.add(keys, ranks, parts)
        events = collector.finish()
        for place, item in enumerate(reading.views):
            answers = item.answer(events, place, asked.questions, asked.n_rows)
            size = 8 * (
                asked.n_rows * len(item.empty) if isinstance(item, Sweep) else height * item.width + asked.n_rows
            )
            if self.spills and self.held + size > self.budget:
                store = Spilled(self._folder(), item.empty)
                store.put(np.arange(asked.n_rows), answers)
                store.done()
                answers = store
            else:
                self.held += size
            self.answers[item.view.name] = answers

    def _compute_in_parts(self, reading: _Reading, reader: KeyReader, parts: int) -> None:
        n_ranks, widths = reading.n_ranks, reading.widths
        asking = Partitions(self._folder(), parts, 4)
        facts = Partitions(self._folder(), parts, 2 + n_ranks + sum(widths))
        stores = {item.view.name: self._store(item) for item in reading.views}
        try:
            at = 0
            for frame in self.spine.rows.batches(unique(["event_time", *reading.entity.keys])):
                words, there = reader.words_or_none(frame, "spine")
                place = np.arange(at, at + len(frame))
                rows = np.column_stack([place, words, microseconds(frame, "event_time", "spine")])
                at += len(frame)
                asking.put(words[there], rows[there])
            for keys, ranks, values in self._events(reading, reader):
                facts.put(keys, np.concatenate([keys, ranks, *values], axis=1))
        finally:
            asking.close()
            facts.close()
        cuts = list(itertools.accumulate([2, n_ranks, *widths]))
        for part in range(parts):
            rows = joined(list(asking.read(part)), 4)
            known = KeyTable()
            codes = known.add(np.ascontiguousarray(rows[:, 1:3]))
            asked = Asked.of(known, codes, np.ascontiguousarray(rows[:, 3]))
            collector = Collector(known, int(facts.heights[part]), n_ranks, widths)
            for block in facts.read(part):
                pieces = np.split(block, cuts[:-1], axis=1)
                collector.add(np.ascontiguousarray(pieces[0]), pieces[1], tuple(pieces[2:]))
            events = collector.finish()
            for number, item in enumerate(reading.views):
                answers = item.answer(events, number, asked.questions, asked.n_rows)
                stores[item.view.name].put(np.ascontiguousarray(rows[:, 0]), answers)
        for store in stores.values():
            store.done()
        self.answers.update(stores)

    def _store(self, item: Computation) -> Matrix | Spilled:
        size = self.spine.height * 8 * len(item.empty)
        if self.spills and self.held + size > self.budget // 2:
            return Spilled(self._folder(), item.empty)
        self.held += size
        words = np.empty((self.spine.height, len(item.empty)), np.int64)
        words[:] = item.empty
        return Matrix(words)

    def _folder(self) -> Path:
        self.n_folders += 1
        return self.session.folder / f"rows-{self.n_folders}"

    def _events(
        self, reading: _Reading, reader: KeyReader
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]]:
        # Keys, ranks and words of the events that can matter, in the order of their arrival.
        source, rows = reading.source, self.inputs[reading.source.name]
        where = f"source {source.name!r}"
        repeated = self._repeated(source, rows)
        reach, at = reading.reach(self.oldest), 0
        for frame in rows.batches(reading.columns):
            n = len(frame)
            if not n:
                continue
            keys, ranks = reader.words(frame, where), reading.ranks(frame)
            matters = (ranks[:, 0] < self.newest) & (ranks[:, 0] >= reach)
            first, last = np.searchsorted(repeated, [at, at + n])
            matters[repeated[first:last] - at] = False
            at += n
            if not matters.all():
                chosen = np.flatnonzero(matters)
                frame, keys, ranks = frame[chosen], keys[chosen], ranks[chosen]
                if not len(chosen):
                    continue
            yield keys, ranks, tuple(item.words(frame) for item in reading.views)

    def _repeated(self, source: Source, rows: Input) -> np.ndarray:
        if not source.event_id:
            return np.zeros(0, np.int64)
        if source.name not in self.repeated:
            self.repeated[source.name] = repeated_rows(rows, source, max(self.budget // 4, _LEAST_FOR_IDS))
        return self.repeated[source.name]

    # Columns

    def schema(self, spine: "pa.Schema") -> "pa.Schema":
        """Types of the spine's columns and of the new ones."""
        import pyarrow as pa

        types = {
            name: pa.bool_() if dtype == "bool" else pa.from_numpy_dtype(np.dtype(dtype))
            for view in self.views
            if isinstance(view, Latest)
            for name, dtype in zip(view.feature_names, view.dtypes, strict=True)
        }
        fields = [pa.field(name, types.get(name, pa.float64())) for name in self.fresh]
        return pa.schema([*spine, *fields])

    def columns(self, block: "pa.Table", first: int) -> "list[pa.Array]":
        """Makes the new columns of some rows.

        Args:
            block: Rows of the spine.
            first: The place of the first of them.
        """
        import pyarrow as pa

        frame = self._needed(block)
        last = first + len(frame)
        found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
        for view in self.views:
            if isinstance(view, Embedding):
                vectors = _vectors(view, self.indexes[view.reference], frame)
                parts: Any = [(vectors[:, place], None) for place in range(view.dimension)]
            else:
                item, words = self.computations[view.name], self.answers[view.name].rows(first, last)
                if isinstance(item, AsOf):
                    parts = item.columns_of(words)
                else:
                    values = item.finish(words.view(np.float64), frame)
                    parts = [(values[:, place], None) for place in range(len(view.feature_names))]
            found.update(zip(view.feature_names, parts, strict=True))
        if self.on_demand:
            self._add_on_demand(frame, found)
        schema = self.schema(pa.schema([]))
        return [_array(*found[name], schema.field(name).type) for name in self.fresh]

    def _needed(self, block: "pa.Table") -> "pl.DataFrame":
        # What the columns are made of besides the answers; most often nothing.
        import polars as pl

        names: list[str] = []
        if self.on_demand:
            names += ["event_time", *self.features.request]
        for view in self.views:
            if isinstance(view, Embedding):
                names += view.entity.keys
            elif isinstance(view, View) and view.include_current:
                names += [item.column for item in view.plan.inputs]
        if not names:
            return pl.DataFrame({"": np.empty(len(block), np.bool_)})
        frame = pl.from_arrow(block.select(unique(names)))
        assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table makes a frame
        return plain(frame)

    def _add_on_demand(self, frame: "pl.DataFrame", found: "dict[str, tuple[np.ndarray, np.ndarray | None]]") -> None:
        import polars as pl

        computed = self.features.computed
        values = np.empty((len(frame), len(computed)), order="F")
        for place, name in enumerate(computed):
            if name in found:
                column, null = found[name]
                values[:, place] = column
                if null is not None and null.any():
                    values[null, place] = np.nan
            elif name in self.asked and name in self.features.request:
                values[:, place] = frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        self.features.add_on_demand(values, microseconds(frame, "event_time", "spine"))
        for item in self.features.on_demand:
            found[item.name] = values[:, computed.index(item.name)], None


def _array(values: np.ndarray, null: np.ndarray | None, kind: "pa.DataType") -> "pa.Array":
    # Made of its buffers: pa.array would look at each value, and import pandas.
    import pyarrow as pa

    data = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else np.ascontiguousarray(values)
    there = pa.py_buffer(np.packbits(~null, bitorder="little")) if null is not None and null.any() else None
    return pa.Array.from_buffers(kind, len(values), [there, pa.py_buffer(data)])


def _vectors(view: Embedding, index: Any, frame: "pl.DataFrame") -> np.ndarray:
    # One lookup for each different key among the rows.
    from vitok.features.events import key_texts

    out = np.full((len(frame), view.dimension), np.nan)
    there = has_key(frame, view.entity)
    if not there.any():
        return out
    keys = key_texts(frame.filter(there) if not there.all() else frame, view.entity, "spine")
    different = keys.unique(maintain_order=True)
    found = _look_up(view, index, different.to_list())
    places = {key: place for place, key in enumerate(different)}
    out[there] = found[[places[key] for key in keys]]
    return out


def _look_up(view: Embedding, index: Any, keys: list[str]) -> np.ndarray:
    read: Callable[[list[str]], Any] | None = getattr(index, "vectors", None) or (index if callable(index) else None)
    if read is not None:
        found = np.asarray(read(keys), np.float64)
    else:
        nothing = np.full(view.dimension, np.nan)
        try:
            found = np.array([index.get(key, nothing) for key in keys], np.float64)
        except ValueError:
            found = np.zeros((0, 0))
    if found.shape != (len(keys), view.dimension):
        wanted = f"give vectors of shape ({len(keys)}, {view.dimension})"
        raise InvalidInput(f"indexes: {view.reference}", found.shape, wanted)
    return found


def _boolean() -> Any:
    import polars as pl

    return pl.Boolean


def _null() -> Any:
    import polars as pl

    return pl.Null
