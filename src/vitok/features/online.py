"""Features as of now: the state of each key's windows, kept event by event, durable with the log's position.

State lives in memory and in a key-value store. A checkpoint writes what changed, the events seen, and the positions
of the logs that were read so far in one atomic commit; after a crash the owner reads the logs on from those positions
and nothing is lost or counted twice.
"""

import hashlib
import json
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import DAY, duration
from vitok.engines import KeyValueStore
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features import windows
from vitok.features.definitions import FeatureSet, View
from vitok.features.table import ordered_events

if TYPE_CHECKING:
    import polars as pl

FRESH, MISSING, LATE = "fresh", "missing", "late"
_COUNT = struct.Struct("<q")
_ROOM = 16


class _State:
    # Entries of one key in one view: time, count and codes in `ints`, sums in `sums`, `n` of them in use.
    __slots__ = ("ints", "n", "sums")

    def __init__(self, ints: np.ndarray, sums: np.ndarray, n: int) -> None:
        self.ints, self.sums, self.n = ints, sums, n

    def pack(self) -> bytes:
        return _COUNT.pack(self.n) + self.ints[: self.n].tobytes() + self.sums[: self.n].tobytes()


class _Slot:
    # What one view needs at hand on the hot path, and the states of its keys.
    def __init__(self, view: View, first: int) -> None:
        self.view = view
        self.key = view.entity.key
        self.table = f"state:{view.name}"
        self.values = view.value_columns
        self.codes = view.distinct_columns
        self.bounds, self.plan = view.bounds(), view.plan()
        self.columns = slice(first, first + len(view.feature_names))
        self.states: dict[str, _State] = {}
        self.dirty: dict[str, _State] = {}
        self.empty = np.where(self.plan[:, 0] == windows.MEAN, np.nan, 0.0)

    def unpack(self, blob: bytes) -> _State:
        (n,) = _COUNT.unpack_from(blob)
        width, columns = 2 + len(self.codes), len(self.values)
        ints = np.zeros((n + _ROOM, width), np.int64)
        sums = np.zeros((n + _ROOM, columns))
        ints[:n] = np.frombuffer(blob, np.int64, n * width, 8).reshape(n, width)
        sums[:n] = np.frombuffer(blob, np.float64, n * columns, 8 + 8 * n * width).reshape(n, columns)
        return _State(ints, sums, n)

    def new(self) -> _State:
        return _State(np.zeros((_ROOM, 2 + len(self.codes)), np.int64), np.zeros((_ROOM, len(self.values))), 0)


class Checkpoint:
    """What one checkpoint will write: taken in an instant, saved at leisure, from any thread."""

    def __init__(self, states: dict[tuple[int, str], _State], events: dict[tuple[str, bytes], bytes]) -> None:
        self.states = states
        self.events = events
        self.waiting = dict(states)
        self.blobs: list[tuple[tuple[int, str], bytes]] = []
        self.lock = threading.Lock()
        self.failed = False
        self.meta: dict[str, bytes] = {}

    def keep(self, name: tuple[int, str]) -> None:
        """Packs a state before its owner changes it."""
        with self.lock:
            state = self.waiting.pop(name, None)
            if state is not None:
                self.blobs.append((name, state.pack()))

    def drain(self) -> Iterator[tuple[tuple[int, str], bytes]]:
        """Packs what is left, one state at a time so that the owner waits for one at most."""
        while True:
            with self.lock:
                if not self.waiting:
                    break
                name, state = self.waiting.popitem()
                self.blobs.append((name, state.pack()))
        yield from self.blobs


class OnlineFeatures:
    """The online side of a feature set: reads and adds events one by one, in any order within the lateness.

    One process writes. Reading a key and adding an event cost some microseconds each.

    Args:
        features: The definitions.
        store: Where the state is kept.
        lateness: How far behind the newest event of a key an event or a question may come and still be exact.
        keep_events: How long event ids are remembered; by default the longest window and 15 days more.
        max_cached: States of keys held in memory a view, at most (more are read from the store again).

    Raises:
        Conflict: If the store was filled from other definitions.

    Example:
        >>> import numpy as np
        >>> from vitok.clock import HOUR, MINUTE
        >>> from vitok.engines import MemoryStore
        >>> from vitok.features import Count, Entity, FeatureSet, Mean, Source, View
        >>> customer = Entity("customer", "customer_id")
        >>> pay = Source("payments", "payment_id")
        >>> spend = View(name="c", entity=customer, source=pay, aggregations=(Count(("1h",)), Mean("amount", ("1h",))))
        >>> online = OnlineFeatures(FeatureSet(views=(spend,)), MemoryStore())
        >>> online.add("payments", "p1", 10 * MINUTE, {"customer_id": "7", "amount": 20.0})
        True
        >>> online.add("payments", "p1", 10 * MINUTE, {"customer_id": "7", "amount": 20.0})
        False
        >>> values = np.zeros(2)
        >>> online.read({"customer_id": "7"}, HOUR, values), values.tolist()
        ('fresh', [1.0, 20.0])
    """

    def __init__(
        self,
        features: FeatureSet,
        store: KeyValueStore,
        *,
        lateness: str | int = "1h",
        keep_events: str | int | None = None,
        max_cached: int = 250_000,
    ) -> None:
        self.features = features
        self.store = store
        self._lateness = duration(lateness)
        self._keep = duration(keep_events) if keep_events else features.longest + 15 * DAY
        self._max_cached = max_cached
        self._slots: list[_Slot] = []
        at = len(features.request)
        for view in features.views:
            if view.include_current:
                raise InvalidInput(f"view {view.name!r}: include_current", True, "be off for features that are served")
            self._slots.append(_Slot(view, at))
            at += len(view.feature_names)
        self._by_source = {
            source.name: [(i, slot) for i, slot in enumerate(self._slots) if slot.view.source == source]
            for source in features.sources
        }
        self._events: dict[tuple[str, bytes], bytes] = {}
        self._saving: Checkpoint | None = None
        newest = store.get("meta", b"newest")
        self._newest = _COUNT.unpack(newest)[0] if newest else 0
        self._swept_day = 0
        version = store.get("meta", b"features")
        if version is not None and version.decode() != features.version:
            raise Conflict(
                f"the online store holds features {version.decode()}, the definitions are {features.version}; "
                "fill an empty store with backfill()"
            )

    @property
    def newest(self) -> int:
        """Time of the newest event, in microseconds; 0 where there was none."""
        return self._newest

    def positions(self) -> dict[str, Any]:
        """Returns the log positions of the last checkpoint; empty where there was none."""
        raw = self.store.get("meta", b"positions")
        return json.loads(raw) if raw else {}

    def note(self, source: str, event_id: str) -> bytes | None:
        """Returns what was noted with an event, or None where the event was not seen."""
        name = (source, event_id.encode())
        found = self._events.get(name)
        if found is None and self._saving is not None:
            found = self._saving.events.get(name)
        if found is None:
            found = self.store.get(f"event:{source}", name[1])
        return found

    def add(self, source: str, event_id: str, time: int, row: Mapping[str, Any], *, note: bytes = b"") -> bool:
        """Adds one event to every view of its source.

        Args:
            source: Name of the source.
            event_id: A second event of the same id changes nothing.
            time: Event time in microseconds.
            row: Entity keys and aggregated columns.
            note: Bytes to find again by `note`.

        Returns:
            True where the event was new.
        """
        if self.note(source, event_id) is not None:
            return False
        self._events[(source, event_id.encode())] = note
        self._newest = max(self._newest, time)
        for index, slot in self._by_source[source]:
            key = row[slot.key]
            state = self._state(slot, key) or slot.new()
            if self._saving is not None:
                self._saving.keep((index, key))
            if state.n == len(state.ints):
                self._make_room(slot, state)
            codes = np.array([code(row[name]) for name in slot.codes], np.int64)
            values = np.array([row[name] for name in slot.values], np.float64)
            state.n = windows.insert(state.ints, state.sums, state.n, time, codes, values)
            slot.states[key] = state
            slot.dirty[key] = state
        return True

    def read(self, keys: Mapping[str, str], time: int, out: np.ndarray) -> str:
        """Reads every window of the given entities as of a time.

        Args:
            keys: Entity key column to key.
            time: Microseconds; only earlier events count.
            out: Shape (features,), float64; the columns of views are written.

        Returns:
            `"fresh"`; `"missing"` where an entity was never seen; `"late"` where the question lies so far behind the
            newest event that merged windows may answer it wrongly.
        """
        status = FRESH
        for slot in self._slots:
            state = self._state(slot, keys[slot.key])
            if state is None:
                out[slot.columns] = slot.empty
                status = MISSING if status == FRESH else status
                continue
            windows.read(state.ints, state.sums, state.n, time, slot.bounds, slot.plan, out[slot.columns])
        return LATE if time < self._newest - self._lateness else status

    def _state(self, slot: _Slot, key: str) -> _State | None:
        state = slot.states.get(key)
        if state is None:
            blob = self.store.get(slot.table, key.encode())
            if blob is None:
                return None
            state = slot.states[key] = slot.unpack(blob)
        return state

    def _make_room(self, slot: _Slot, state: _State) -> None:
        state.n = windows.compact(state.ints, state.sums, state.n, slot.bounds, self._lateness)
        if state.n > len(state.ints) // 2:
            state.ints = np.concatenate([state.ints, np.zeros_like(state.ints)])
            state.sums = np.concatenate([state.sums, np.zeros_like(state.sums)])

    def begin_checkpoint(self, positions: Mapping[str, Any]) -> Checkpoint:
        """Takes what has changed since the last checkpoint, in an instant; `save` writes it.

        Args:
            positions: Log positions up to which events have been added, ready for JSON.

        Raises:
            Conflict: If the checkpoint before is still being saved.
        """
        if self._saving is not None:
            if not self._saving.failed:
                raise Conflict("a checkpoint is still being saved; wait for it")
            for (index, key), state in self._saving.states.items():
                self._slots[index].dirty.setdefault(key, state)
            self._events = {**self._saving.events, **self._events}
        states = {(i, key): state for i, slot in enumerate(self._slots) for key, state in slot.dirty.items()}
        checkpoint = Checkpoint(states, self._events)
        checkpoint.meta = {
            "features": self.features.version.encode(),
            "positions": json.dumps(dict(positions)).encode(),
            "newest": _COUNT.pack(self._newest),
        }
        for slot in self._slots:
            slot.dirty = {}
            if len(slot.states) > self._max_cached:
                slot.states = {key: state for (_, key), state in states.items() if slot.states.get(key) is state}
        self._events = {}
        self._saving = checkpoint
        return checkpoint

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in one atomic commit; may run in another thread.

        Raises:
            StoreError: If the store could not be written; the changes wait for the next checkpoint then.
        """
        writes: list[tuple[str, bytes, bytes | None]] = []
        for (index, key), blob in checkpoint.drain():
            writes.append((self._slots[index].table, key.encode(), blob))
        day = (self._newest + self._keep) // DAY
        for (source, event_id), note in checkpoint.events.items():
            writes.append((f"event:{source}", event_id, note))
            writes.append(("expiry", struct.pack(">q", day) + f"{source}\0".encode() + event_id, b""))
        writes.extend(self._expired())
        writes.extend(("meta", name.encode(), value) for name, value in checkpoint.meta.items())
        try:
            self.store.commit(writes)
        except StoreError:
            checkpoint.failed = True  # its owner takes the changes back, this may be another thread
            raise
        self._saving = None

    def checkpoint(self, positions: Mapping[str, Any] | None = None) -> None:
        """Takes and saves a checkpoint at once."""
        self.save(self.begin_checkpoint(positions or {}))

    def _expired(self) -> Iterator[tuple[str, bytes, bytes | None]]:
        # Event ids are forgotten a day at a time, once no window and no late answer can ask for them.
        today = self._newest // DAY
        if today == self._swept_day:
            return
        self._swept_day = today
        for key, _ in self.store.scan("expiry"):
            if struct.unpack_from(">q", key)[0] >= today:
                return
            source, _, event_id = key[8:].partition(b"\0")
            yield f"event:{source.decode()}", event_id, None
            yield "expiry", key, None

    def backfill(
        self,
        sources: Mapping[str, "pl.DataFrame"],
        *,
        until: int,
        notes: Mapping[str, "pl.Series"] | None = None,
    ) -> int:
        """Fills an empty store with the state that the history before `until` would have left.

        Args:
            sources: Source name to events, as for `table`.
            until: Microseconds; only earlier events count.
            notes: Source name to a binary series, one note for each event; empty notes by default.

        Returns:
            How many events went in.

        Raises:
            Conflict: If the store is not empty.
        """
        import polars as pl

        if self.store.get("meta", b"features") is not None:
            raise Conflict("the online store is not empty; backfill() fills an empty one")
        writes: list[tuple[str, bytes, bytes | None]] = []
        total = 0
        moment = pl.lit(until).cast(pl.Datetime("us", "UTC"))
        oldest = pl.lit(until - self._keep).cast(pl.Datetime("us", "UTC"))
        for source in self.features.sources:
            events = sources[source.name]
            at = pl.col(source.event_time)
            events = events.with_columns((notes or {}).get(source.name, pl.lit(b"", pl.Binary)).alias("_note")).filter(
                (at < moment) & (at >= oldest)
            )
            total += len(events)
            if len(events):
                self._newest = max(self._newest, int(events[source.event_time].cast(pl.Int64).max()))  # type: ignore[arg-type]
            times = events[source.event_time].cast(pl.Datetime("us", "UTC")).to_physical()
            for event_id, time, note in zip(events[source.event_id], times, events["_note"], strict=True):
                writes.append((f"event:{source.name}", event_id.encode(), note))
                day = struct.pack(">q", (time + self._keep) // DAY)
                writes.append(("expiry", day + f"{source.name}\0".encode() + event_id.encode(), b""))
            for _, slot in self._by_source[source.name]:
                writes.extend(self._backfilled(slot, events))
        writes.append(("meta", b"features", self.features.version.encode()))
        writes.append(("meta", b"positions", b"{}"))
        writes.append(("meta", b"newest", _COUNT.pack(self._newest)))
        self.store.commit(writes)
        return total

    def _backfilled(self, slot: _Slot, events: "pl.DataFrame") -> Iterator[tuple[str, bytes, bytes]]:
        frame, keys, start, time, values = ordered_events(slot.view, events)
        ints = np.ones((len(time), 2 + len(slot.codes)), np.int64)
        ints[:, 0] = time
        for column, name in enumerate(slot.codes):
            different = frame[name].unique()
            codes = {value: code(value) for value in different}
            ints[:, 2 + column] = [codes[value] for value in frame[name]]
        sums = np.ascontiguousarray(values.T).reshape(len(time), len(slot.values))
        for i, key in enumerate(keys):
            a, b = int(start[i]), int(start[i + 1])
            n = windows.compact(ints[a:b], sums[a:b], b - a, slot.bounds, self._lateness)
            if n:
                yield slot.table, key.encode(), _State(ints[a : a + n], sums[a : a + n], n).pack()


def code(value: str) -> int:
    """Returns 64 bits that stand for a value when different values are counted (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "little", signed=True)
