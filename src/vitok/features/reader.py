"""Online reads: the features of many entities in one call and one round trip, also while the store is down."""

import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vitok.clock import Clock, SystemClock, duration, isoformat
from vitok.engines.row_store import HEADER, RowStore, open_rows, unpack_version
from vitok.errors import InvalidInput, StoreError
from vitok.features.definitions import FeatureSet
from vitok.features.embeddings import VectorIndex
from vitok.features.rows import encode_keys, key_end, key_start, layout_of
from vitok.features.sources import SEPARATOR, key_text
from vitok.features.vectors import CACHE, DEFAULT, FRESH, MISSING, Vectors
from vitok.features.views import AnyView, Embedding, View

if TYPE_CHECKING:
    from vitok.features.online import OnlineFeatures

_LAST_MOMENT = 253_402_300_799_999_999  # the end of the year 9999; nanoseconds are beyond it
_CLOSED, _OPEN, _PROBING = "closed", "open", "probing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderCounters:
    """What a reader has seen since it was made.

    Attributes:
        reads: Calls of `read`.
        store_errors: Attempts that failed.
        cache_answers: Rows (of an entity and a view) answered from the cache.
        default_answers: Rows that were missing and got default values, or could not be looked up at all.
        damaged_rows: Rows of the store that could not be decoded, and were taken as missing.
        circuit: `"closed"`; `"open"`, the store is left alone; `"probing"`, one call tries it again.
        retry_at: When the store is tried again, in microseconds; 0 while the circuit is closed.
        last_error: What the store said last; "" where it never failed.
    """

    reads: int = 0
    store_errors: int = 0
    cache_answers: int = 0
    default_answers: int = 0
    damaged_rows: int = 0
    circuit: str = _CLOSED
    retry_at: int = 0
    last_error: str = ""

    def __str__(self) -> str:
        """Returns the counters as one line."""
        until = f" until {isoformat(self.retry_at)}" if self.retry_at else ""
        return (
            f"{self.reads} reads, {self.store_errors} store errors, rows from cache {self.cache_answers}, "
            f"by default {self.default_answers}, damaged {self.damaged_rows}; circuit {self.circuit}{until}"
        )


class _LastRows:
    # The last rows that the store gave, by key. Two generations: what is asked for again moves to the young one, and
    # when that is full the old one is thrown away. So one dict update, whatever the number of rows, keeps the order.
    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: dict[bytes, bytes | None] = {}
        self._old: dict[bytes, bytes | None] = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    def keep(self, keys: list[bytes], rows: Sequence[bytes | None]) -> None:
        if not self._half:
            return
        young = self._young
        young.update(zip(keys, rows, strict=True))
        if len(young) >= self._half:
            self._old, self._young = young, {}

    def find(self, keys: list[bytes]) -> tuple[list[bytes | None], np.ndarray]:
        # The rows, and of which of them the store ever said something, if only that there is none.
        young, old = self._young, self._old
        known = np.array([key in young or key in old for key in keys], np.bool_)
        return [young[key] if key in young else old.get(key) for key in keys], known

    def drop(self, keys: Iterable[bytes]) -> int:
        held = [(self._young.pop(key, None), self._old.pop(key, None)) for key in keys]
        return sum(young is not None or old is not None for young, old in held)


@dataclasses.dataclass(eq=False)
class _Part:
    # One view of the set: where its values and its status go, and how its rows are decoded.
    view: AnyView
    place: int
    columns: slice
    entity: int
    end: bytes
    layout: Any
    index: VectorIndex | None
    windows: "OnlineFeatures | None"
    defaults: tuple[tuple[int, float], ...]


class FeatureReader:
    """Reads feature vectors from the online store, and from windows that this process keeps itself.

    Args:
        features: What the model sees.
        store: The rows that `materialise` writes, or their address, such as `"lmdb://.vitok/rows"`; None where
            `windows` and `indexes` hold everything.
        windows: Windows of this process, which know the stream to its last event; another thread may fill them.
            Their views are read there, the others from the store.
        indexes: Indexes in this process by `"name@version"`; an embedding that has none is read from the store.
        defaults: Values of features for entities that have no row; they are marked DEFAULT.
        cache_entities: How many entities' last rows are kept for the time that the store is down; 0 for none.
        cooldown: How long a store that failed is left alone before one call tries it again.
        dtype: The model's type.
        lateness: As of the stream that fills the windows: how far behind the newest event of its key a question may
            come.
        clock: Tells the time of a question that names none, and when the cooldown is over.

    Raises:
        InvalidInput: If a default or an index belongs to no feature, an index has another dimension, windows were
            made by other definitions, or a view has no place to be read from.

    Example:
        >>> import polars as pl
        >>> from vitok.engines.row_store import open_rows
        >>> from vitok.features import Entity, FeatureSet, Latest, Source
        >>> from vitok.features.materialise import materialise
        >>> customer = Entity("customer", "customer_id")
        >>> limits = Latest(name="account", entity=customer, source=Source("accounts"), columns=("limit",), ttl="90d")
        >>> rows = pl.DataFrame({"customer_id": [7], "event_time": [1_000_000], "limit": [500.0]})
        >>> rows = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
        >>> features, store = FeatureSet(views=(limits,)), open_rows("memory://reader-example")
        >>> _ = materialise(features, {"accounts": rows}, store, until=2_000_000)
        >>> FeatureReader(features, store).read({"customer_id": ["7", "8"]}, time=3_000_000)
        2 vectors of 1 feature
        row  status   account_limit  account
          0  fresh            500.0  fresh from store, 1970-01-01T00:00:01Z
          1  missing            nan  missing from store
    """

    def __init__(
        self,
        features: FeatureSet,
        store: RowStore | str | None = None,
        *,
        windows: "OnlineFeatures | Sequence[OnlineFeatures]" = (),
        indexes: Mapping[str, VectorIndex] | None = None,
        defaults: Mapping[str, float] | None = None,
        cache_entities: int = 100_000,
        cooldown: str | int = "30s",
        dtype: Any = np.float64,
        lateness: str | int = "10m",
        clock: Clock | None = None,
    ) -> None:
        self.features = features
        self._windows = tuple(windows) if isinstance(windows, Sequence) else (windows,)
        self._clock = clock or SystemClock()
        self._dtype = np.dtype(dtype)
        self._cooldown = duration(cooldown)
        self._lateness = duration(lateness)
        self._names = features.names
        self._views = tuple(view.name for view in features.views)
        self._width = len(features.computed)
        self._entities = tuple(dict.fromkeys(view.entity for view in features.views))
        self._starts = tuple(key_start(entity) for entity in self._entities)
        self._parts = self._parts_of(dict(indexes or {}), dict(defaults or {}))
        self._stored = tuple(part for part in self._parts if part.index is None and part.windows is None)
        if store is None and self._stored:
            rest = [part.view.name for part in self._stored]
            raise InvalidInput("store", None, f"be given: {', '.join(rest)} must be read from one")
        self.store: RowStore | None = open_rows(store) if isinstance(store, str) else store
        self._live = tuple(
            (kept, tuple(part for part in self._parts if part.windows is kept)) for kept in self._windows
        )
        self._indexed = tuple((part, part.index) for part in self._parts if part.index is not None)
        self._has_defaults = any(part.defaults for part in self._parts)
        self._last = _LastRows(cache_entities * max(1, len(self._stored)))
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("reads", "store_errors", "cache_answers", "default_answers", "damaged_rows"), 0)
        self._circuit = _CLOSED
        self._retry_at = 0
        self._last_error = ""

    def read(
        self,
        keys: Mapping[str, Sequence[str | int]],
        *,
        time: int | Sequence[int] | None = None,
        request: Mapping[str, Sequence[float]] | None = None,
    ) -> Vectors:
        """Reads the vectors of n questions, in one round trip to the store.

        A value holds at its question's time as a point-in-time table has it, as far as the newest row alone can say:
        where that row came at that time or later, or was not known yet, the value is missing, though an older row may
        have existed.

        Args:
            keys: Each key column of the entities to n keys, texts or whole numbers; other columns are not looked at.
            time: When the questions are asked, in microseconds, one for all or one each; the present by default.
            request: Each request column of the set to n numbers; None for null.

        Raises:
            InvalidInput: If a column is missing, of another length, or holds what it cannot hold.
        """
        texts, n = self._texts(keys)
        times = self._times(time, n)
        values = np.empty((n, self._width))
        shape = (n, len(self._parts))
        event_times, status = np.empty(shape, np.int64), np.empty(shape, np.uint8)
        source = np.zeros(shape, np.uint8)
        with self._lock:
            self._counts["reads"] += 1
        if self.features.request:
            self._fill_request(values, request or {})
        if n and self._stored:
            rows, known = self._rows(texts)
            at = damaged = 0
            for part in self._stored:
                own = rows[at : at + n] if len(self._stored) > 1 else rows
                unknown = None if known is None else ~known[at : at + n]
                at += n
                if isinstance(part.view, View):
                    damaged += self._decode_windows(part, own, times, values, event_times, status, unknown)
                else:
                    damaged += part.layout.decode(
                        own, times, values, part.columns.start, event_times, status, part.place
                    )
                if unknown is not None:
                    source[:, part.place] = np.where(unknown, DEFAULT, CACHE)
            if damaged or known is not None:
                self._count_degraded(source, damaged)
        for kept, parts in self._live:
            self._read_windows(kept, parts, texts, times, values, event_times, status)
        for part, index in self._indexed:
            self._look_up(part, index, texts[part.entity], values, event_times, status)
        if self._has_defaults:
            self._fill_defaults(values, status, source)
        if self.features.on_demand:
            self.features.add_on_demand(values, times)
        return Vectors(
            names=self._names,
            values=self.features.arrange(values, self._dtype),
            event_times=event_times,
            status=status,
            source=source,
            views=self._views,
        )

    @property
    def counters(self) -> ReaderCounters:
        """What the reader has seen so far."""
        with self._lock:
            return ReaderCounters(
                **self._counts, circuit=self._circuit, retry_at=self._retry_at, last_error=self._last_error
            )

    def forget(self, entity: str, keys: Mapping[str, str | int]) -> int:
        """Drops the rows of an entity from the cache and from windows; not from the store (see `forgetting`).

        Args:
            entity: Name of the entity.
            keys: Its key, by column.

        Returns:
            How many rows and windows were held.
        """
        dropped = sum(kept.forget(entity, keys) for kept in self._windows)
        for place, known in enumerate(self._entities):
            if known.name == entity:
                start, (middle,) = self._starts[place], encode_keys([known.text(keys)])
                dropped += self._last.drop(start + middle + part.end for part in self._stored if part.entity == place)
        return dropped

    def close(self) -> None:
        """Forgets the cache and closes the store where it can be closed; windows are their owner's."""
        self._last = _LastRows(0)
        close = getattr(self.store, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        """Returns the reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the reader."""
        self.close()

    def _parts_of(self, indexes: dict[str, VectorIndex], defaults: dict[str, float]) -> tuple[_Part, ...]:
        known = {name for view in self.features.views for name in view.feature_names}
        strange = [name for name in defaults if name not in known]
        if strange:
            raise InvalidInput("defaults", strange, "name features of the views")
        asked = {view.reference for view in self.features.views if isinstance(view, Embedding)}
        if not asked.issuperset(indexes):
            raise InvalidInput("indexes", sorted(set(indexes) - asked), f"be among {sorted(asked)}")
        by_view = self._windows_of()
        parts = []
        for place, view in enumerate(self.features.views):
            columns = self.features.columns_of[view.name]
            index = indexes.get(view.reference) if isinstance(view, Embedding) else None
            own = tuple(
                (columns.start + rank, float(defaults[name]))
                for rank, name in enumerate(view.feature_names)
                if name in defaults
            )
            parts.append(
                _Part(
                    view=view,
                    place=place,
                    columns=columns,
                    entity=self._entities.index(view.entity),
                    end=key_end(view),
                    layout=_window_layout(view, self._lateness) if isinstance(view, View) else layout_of(view),
                    index=index,
                    windows=by_view.get(view.name),
                    defaults=own,
                )
            )
        return tuple(parts)

    def _windows_of(self) -> "dict[str, OnlineFeatures]":
        found: dict[str, OnlineFeatures] = {}
        wanted = {view.name: view for view in self.features.windowed}
        for kept in self._windows:
            for view in kept.features.windowed:
                if view.name not in wanted:
                    continue
                if view.version != wanted[view.name].version:
                    rule = f"be {wanted[view.name].version}, as it is declared"
                    raise InvalidInput(f"windows: version of view {view.name!r}", view.version, rule)
                if view.name in found:
                    raise InvalidInput("windows", view.name, "be kept in one place")
                found[view.name] = kept
        return found

    def _texts(self, keys: Mapping[str, Sequence[str | int]]) -> tuple[list[list[str]], int]:
        n = -1
        out = []
        columns: dict[str, list[str]] = {}
        for entity in self._entities:
            for name in entity.keys:
                if name not in columns:
                    if name not in keys:
                        raise InvalidInput("keys", sorted(keys), f"hold {name}", f"It is the key of {entity.name}.")
                    columns[name] = _key_texts(name, keys[name])
                if n not in {-1, len(columns[name])}:
                    raise InvalidInput(f"keys: {name}", f"{len(columns[name])} values", f"hold {n}, as the others do")
                n = len(columns[name])
            parts = [columns[name] for name in entity.keys]
            out.append(parts[0] if len(parts) == 1 else [SEPARATOR.join(row) for row in zip(*parts, strict=True)])
        if n < 0:
            raise InvalidInput("features", self._views, "hold a view", "Without one there is nothing to look up.")
        return out, n

    def _times(self, time: int | Sequence[int] | None, n: int) -> np.ndarray:
        if time is None:
            return np.full(n, self._clock.now(), np.int64)
        if type(time) is int:
            if not 0 <= time <= _LAST_MOMENT:
                raise InvalidInput("time", time, "be microseconds since 1970", "Not seconds, not nanoseconds.")
            return np.full(n, time, np.int64)
        times = np.asarray(time)
        if times.dtype.kind not in "iu" and times.size:
            raise InvalidInput("time", time, "be whole microseconds since 1970")
        if times.shape not in {(), (n,)}:
            raise InvalidInput("time", f"shape {times.shape}", f"be one moment or {n}")
        if times.size and not (times.min() >= 0 and times.max() <= _LAST_MOMENT):
            raise InvalidInput("time", int(times.max()), "be microseconds since 1970", "Not seconds, not nanoseconds.")
        return np.ascontiguousarray(np.broadcast_to(times, (n,)), np.int64)

    def _fill_request(self, values: np.ndarray, request: Mapping[str, Sequence[float]]) -> None:
        for place, name in enumerate(self.features.request):
            if name not in request:
                raise InvalidInput("request", sorted(request), f"hold {name}")
            column = np.asarray(request[name])
            if column.dtype.kind == "O" and all(item is None or isinstance(item, float | int) for item in column.flat):
                column = column.astype(np.float64)
            if column.shape != (len(values),) or (column.dtype.kind not in "fiub" and column.size):
                raise InvalidInput(f"request: {name}", request[name], f"be {len(values)} numbers")
            values[:, place] = column

    def _rows(self, texts: list[list[str]]) -> tuple[Sequence[bytes | None], np.ndarray | None]:
        # All rows of all views; where the store is down, those of the cache and which of them it knows.
        middles = [encode_keys(column) for column in texts]
        keys: list[bytes] = []
        for part in self._stored:
            start, end = self._starts[part.entity], part.end
            keys += [start + middle + end for middle in middles[part.entity]]
        if self._circuit != _CLOSED and not self._may_probe():
            return self._last.find(keys)
        answered = False
        assert self.store is not None  # noqa: S101 - there are views that are stored
        try:
            rows = self.store.read(keys)
            answered = True
        except StoreError as error:
            with self._lock:
                self._counts["store_errors"] += 1
                self._circuit = _OPEN
                self._retry_at = self._clock.now() + self._cooldown
                self._last_error = str(error)
            return self._last.find(keys)
        finally:
            # Whatever ended a probe, such as Ctrl-C, the next call may try again.
            if not answered and self._circuit == _PROBING:
                self._circuit = _OPEN
        if self._circuit != _CLOSED:
            with self._lock:
                self._circuit, self._retry_at = _CLOSED, 0
        self._last.keep(keys, rows)
        return rows, None

    def _may_probe(self) -> bool:
        now = self._clock.now()
        with self._lock:
            # A clock that went back must not keep the circuit open for longer than the cooldown.
            due = now >= self._retry_at or now < self._retry_at - self._cooldown
            if self._circuit == _OPEN and due:
                self._circuit = _PROBING
                return True
            return self._circuit == _CLOSED

    def _read_windows(
        self,
        kept: "OnlineFeatures",
        parts: tuple[_Part, ...],
        texts: list[list[str]],
        times: np.ndarray,
        values: np.ndarray,
        event_times: np.ndarray,
        status: np.ndarray,
    ) -> None:
        found = kept.read_keys(
            {part.view.entity: texts[part.entity] for part in parts},
            times,
            {part.view.name: values[:, part.columns] for part in parts},
        )
        for part in parts:
            newest = np.maximum(found[part.view.name], -1)
            # As of a row of the store: before that, events have been merged.
            unknown = times < newest - kept.lateness
            values[unknown, part.columns] = np.nan
            missing = unknown | (newest < 0)
            event_times[:, part.place] = np.where(missing, -1, newest)
            status[:, part.place] = np.where(missing, MISSING, FRESH)

    def _decode_windows(
        self,
        part: _Part,
        rows: Sequence[bytes | None],
        times: np.ndarray,
        values: np.ndarray,
        event_times: np.ndarray,
        status: np.ndarray,
        unasked: np.ndarray | None,
    ) -> int:
        n = len(rows)
        blobs = [None if row is None else row[HEADER:] for row in rows]
        newest = np.array(
            [-1 if row is None or len(row) < HEADER else unpack_version(row)[0] for row in rows], np.int64
        )
        out = np.empty((n, part.columns.stop - part.columns.start))
        damaged = 0
        try:
            part.layout.read_blobs(blobs, times, out)
        except StoreError:
            for place, blob in enumerate(blobs):
                try:
                    part.layout.read_blobs([blob], times[place : place + 1], out[place : place + 1])
                except StoreError:
                    out[place] = np.nan
                    newest[place] = -1
                    damaged += 1
        # Before that, events have been merged that this question should tell apart.
        unknown = times < newest - self._lateness
        out[unknown] = np.nan
        newest[unknown] = -1
        missing = newest < 0
        if unasked is not None:
            # Nobody knows whether these have events: that is not the same as none.
            out[unasked] = np.nan
        values[:, part.columns] = out
        event_times[:, part.place] = newest
        status[:, part.place] = np.where(missing, MISSING, FRESH)
        return damaged

    def _look_up(
        self,
        part: _Part,
        index: VectorIndex,
        texts: list[str],
        values: np.ndarray,
        event_times: np.ndarray,
        status: np.ndarray,
    ) -> None:
        found = np.asarray(index.vectors(texts), np.float64)
        wanted = (len(texts), part.columns.stop - part.columns.start)
        if found.shape != wanted:
            raise InvalidInput(f"index of view {part.view.name!r}: vectors", found.shape, f"have shape {wanted}")
        missing = np.isnan(found).all(axis=1)
        values[:, part.columns] = found.astype(np.float32)
        event_times[:, part.place] = np.where(missing, -1, 0)
        status[:, part.place] = np.where(missing, MISSING, FRESH)

    def _fill_defaults(self, values: np.ndarray, status: np.ndarray, source: np.ndarray) -> None:
        replaced = 0
        for part in self._parts:
            if part.defaults:
                missing = status[:, part.place] == MISSING
                if missing.any():
                    for column, value in part.defaults:
                        values[missing, column] = value
                    replaced += int((missing & (source[:, part.place] != DEFAULT)).sum())
                    source[missing, part.place] = DEFAULT
        if replaced:
            with self._lock:
                self._counts["default_answers"] += replaced

    def _count_degraded(self, source: np.ndarray, damaged: int) -> None:
        with self._lock:
            self._counts["damaged_rows"] += damaged
            self._counts["cache_answers"] += int((source == CACHE).sum())
            self._counts["default_answers"] += int((source == DEFAULT).sum())


def _window_layout(view: View, lateness: int) -> Any:
    from vitok.features.state import Layout

    return Layout(view.plan, lateness)


def _key_texts(name: str, column: Sequence[str | int]) -> list[str]:
    if isinstance(column, str | bytes | Mapping):
        raise InvalidInput(f"keys: {name}", column, "be a sequence of keys", f"For one key give [{column!r}].")
    items = column.tolist() if isinstance(column, np.ndarray) else column
    texts = [item if type(item) is str else key_text(name, item) for item in items]
    joined = "".join(texts)
    if SEPARATOR in joined or not all(texts):
        for text in texts:
            key_text(name, text)
    return texts
