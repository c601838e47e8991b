"""Features as of now: the windows of each key, kept up to date by events, durable with the position of their stream.

State lives in memory and in a key-value store. With `journal=True` each batch of events is written to the store, with
the stream's positions, in one atomic commit before it counts, so that a process which dies forgets nothing and counts
nothing twice. Without a journal the owner's own log is one: a checkpoint writes what changed and the positions of the
logs read so far in one commit, and the owner reads its logs on from there.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import DAY, MINUTE, Clock, duration
from vitok.engines import KeyValueStore
from vitok.engines.row_store import RowStore
from vitok.errors import Conflict, InvalidInput
from vitok.features import intake
from vitok.features.corrections import check_correctable
from vitok.features.definitions import FeatureSet
from vitok.features.events import one_key
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.lanes import ORDERED, Checkpoint, meta_writes, read_meta, writes
from vitok.features.locking import alone, at_once
from vitok.features.online_windows import STATUS, OnlineWindows
from vitok.features.rows import encode_key
from vitok.features.sources import Entity
from vitok.features.state import NEVER

if TYPE_CHECKING:
    import polars as pl

_JOURNAL_LIMIT = 256 << 20  # bytes of journal after which a checkpoint is due


class OnlineFeatures(OnlineWindows):
    """The online side of the windows of a feature set: adds events and answers as of any moment.

    One process writes; its other threads may read meanwhile. Events may come in any order; a question may come up to
    the lateness behind the newest event of its key and is still exact. Views of latest values and embeddings are not
    kept here (see `FeatureReader`).

    Args:
        features: The definitions.
        store: Where the state is kept.
        lateness: How far behind the newest event of its key a question may come and still be exact.
        keep_events: How long event ids are remembered; by default the longest window and the lateness. An older
            event is refused, since nobody could tell whether it was counted.
        max_cached: Keys held in memory a view, at most (more are read from the store again).
        journal: Whether `ingest` writes each batch to the store before it counts.
        clock: If given, an event more than five minutes after its present is refused.

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
        lateness: str | int = "10m",
        keep_events: str | int | None = None,
        max_cached: int = 1_000_000,
        journal: bool = False,
        clock: Clock | None = None,
    ) -> None:
        kept = duration(lateness)
        super().__init__(
            features, store, lateness=kept, keep=duration(keep_events) if keep_events else features.longest + kept
        )
        self._max_cached = max_cached
        self._journal = journal
        self._clock = clock
        self._sequence = 0
        self._journal_bytes = 0
        self.recovered_events = 0
        self._open()

    def _empty(self) -> None:
        super()._empty()
        self._swept_day = -(2**31)
        self._positions: dict[str, Any] = {}

    def _open(self) -> None:
        self._newest, self._positions = read_meta(self.store, self.features.version)
        for lane in self._lanes:
            lane.known_empty = next(iter(self.store.scan(lane.table)), None) is None
        for name, known in self._ids.items():
            for _, blob in self.store.scan("ids", name.encode() + b"\0"):
                known.seen.add(*intake.unpack_ids(blob))
        for key, record in self.store.scan("journal"):
            self._sequence = ORDERED.unpack(key)[0]
            self._journal_bytes += len(record)
            source, positions, frame = intake.unpack_journal(record)
            self._positions = positions
            if frame is not None:
                events = self._events(source, frame)
                # All of a record counted, also under an id that was used before and had been forgotten.
                self._ids[source].seen.take_back(events.ids)
                self._ids[source].add(events)
                self._count(events, self._slots(events))
                self.recovered_events += len(frame)

    def positions(self) -> dict[str, Any]:
        """Returns the stream positions up to which events count and are durable; empty where there are none."""
        return dict(self._positions)

    # Adding

    @alone
    def ingest(
        self,
        source: str,
        frame: "pl.DataFrame",
        *,
        positions: Mapping[str, Any] | None = None,
        keep_rejected: "Callable[[pl.DataFrame], None] | None" = None,
    ) -> intake.Ingested:
        """Adds a batch of events.

        Rows that cannot be used (no id, key or time, an infinite number, a time in the future or too long ago) are
        returned with the reason; the others count. With a journal the batch and the positions are in the store when
        this returns.

        Args:
            source: Name of the source.
            frame: Its columns: id, times, keys, aggregated columns; others are ignored.
            positions: Where the stream is to be read on after this batch, ready for JSON.
            keep_rejected: Gets the refused rows, if there are any, before anything of the batch counts.

        Raises:
            InvalidInput: If a column is missing or of the wrong type; then nothing of the batch counts.
            StoreError: If the store could not be read or written; then nothing of the batch counts.
        """
        definition = self._source(source)
        saving = self._saving  # another thread may end it meanwhile
        if self._journal_bytes > _JOURNAL_LIMIT and (saving is None or saving.failed):
            self.checkpoint(self._positions)
        views = [lane.view for lane in self._by_source[source]]
        latest = self._clock.now() + 5 * MINUTE if self._clock is not None else None
        kept_from = max(self._newest - self._keep, NEVER)
        good, rejected = intake.part(definition, views, frame, earliest=kept_from, latest=latest)
        if keep_rejected is not None and len(rejected):
            keep_rejected(rejected)
        events = self._events(source, good)
        after = self._positions if positions is None else dict(positions)
        new = self._ids[source].add(events)
        n_new = int(new.sum())
        n_late = int((new & (events.times < max(self._newest - self.lateness, NEVER))).sum())
        try:
            if n_new < len(events):
                good = intake.only_rows(good, new)
                events = intake.only(events, new)
            slots = self._slots(events)
            if self._journal and (n_new or positions is not None):
                record = intake.pack_journal(source, after, good)
                meta = [] if self._sequence else meta_writes(self.features.version)
                self.store.commit([("journal", ORDERED.pack(self._sequence + 1), record), *meta])
                self._sequence += 1
                self._journal_bytes += len(record)
        except BaseException:
            self._ids[source].undo()
            raise
        self._positions = after
        self._count(events, slots)
        return intake.Ingested(n_new=n_new, n_duplicate=len(new) - n_new, n_late=n_late, rejected=rejected)

    def add(self, source: str, event_id: str, time: int, row: Mapping[str, Any], *, note: bytes = b"") -> bool:
        """Adds one event, without a journal.

        Args:
            source: Name of the source.
            event_id: A second event of the same id changes nothing.
            time: Event time in microseconds.
            row: Entity keys and aggregated columns.
            note: Bytes to find again by `note`; nothing is kept where they are empty.

        Returns:
            True where the event was new.
        """
        return bool(self.add_many(source, [event_id], [time], [row], notes=[note] if note else ())[0])

    @alone
    def add_many(
        self,
        source: str,
        event_ids: Sequence[str],
        times: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
        *,
        notes: Sequence[bytes] = (),
    ) -> np.ndarray:
        """Adds some events, without a journal.

        Args:
            source: Name of the source.
            event_ids: Their ids; one that was seen before, or comes twice, changes nothing.
            times: Event times in microseconds.
            rows: Entity keys and aggregated columns.
            notes: Bytes to find again by `note`, one an event.

        Returns:
            Which were new, shape (events,).
        """
        if not len(event_ids):
            return np.zeros(0, np.bool_)
        events = self._row_events(source, event_ids, times, rows)
        new = self._ids[source].add(events)
        try:
            events = intake.only(events, new)
            slots = self._slots(events)
        except BaseException:
            self._ids[source].undo()
            raise
        self._count(events, slots)
        for event_id, time, note, fresh in zip(event_ids, times, notes, new.tolist(), strict=False):
            if fresh:
                self._notes[source, encode_key(event_id)] = (note, time)
        return new

    @alone
    @at_once
    def correct(
        self,
        source: str,
        event_ids: Sequence[str],
        times: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
        *,
        notes: Sequence[bytes] = (),
    ) -> None:
        """Puts events right that count already: adds what their values differ by, without a journal.

        No event is counted. A difference lies at the time of its event, so that it leaves every window together with
        it, and is seen from now on; `corrections.with_corrections` gives `table` the same. Whoever calls sees to it
        that none is added twice.

        Args:
            source: Name of the source; its views must be of counts, sums and means.
            event_ids: Ids of the events.
            times: The times that the events were added with, in microseconds.
            rows: Entity keys and columns of conditions as the events had them; in aggregated columns new less old.
            notes: What is noted with the events from now on, one an event; by default their notes stay.

        Raises:
            InvalidInput: If an event was not seen, or a view cannot be put right by a difference; nothing has changed.
        """
        if not len(event_ids):
            return
        check_correctable([lane.view for lane in self._by_source[self._source(source).name]])
        events = self._row_events(source, event_ids, times, rows)
        if not self._ids[source].seen.has(events.ids).all():
            raise InvalidInput("event_ids", event_ids, "have been seen before", "Only what counts can be put right.")
        for lane, slots in zip(self._by_source[source], self._slots(events), strict=True):
            lane.state.correct(slots, events.times, events.values[lane.view.name])
            lane.mark(slots)
        for event_id, time, note in zip(event_ids, times, notes, strict=False):
            self._notes[source, encode_key(event_id)] = (note, time)

    @alone
    @at_once
    def serve(
        self,
        source: str,
        event_ids: Sequence[str],
        times: Sequence[int],
        rows: Sequence[Mapping[str, Any]],
        out: np.ndarray,
        *,
        notes: Sequence[bytes] = (),
    ) -> list[str]:
        """For each event in turn: reads the windows of its entities as of its time, then adds it, without a journal.

        Args:
            source: Name of the source of the events.
            event_ids: Ids that were not seen before and differ from each other.
            times: Event times in microseconds.
            rows: Entity keys of all views and the aggregated columns.
            out: Shape (events, computed columns), float64; the columns of windows are written.
            notes: Bytes to find again by `note`, one an event.

        Returns:
            The status of each event's features, as of `read`.
        """
        if not len(event_ids):
            return []
        events = self._row_events(source, event_ids, times, rows)
        places: list[np.ndarray] = []
        looked: dict[Entity, tuple[Sequence[str] | pl.Series, np.ndarray]] = {}
        for lane in self._lanes:
            entity = lane.view.entity
            if entity not in looked:
                keys = events.keys.get(entity) or [entity.text(row) for row in rows]
                looked[entity] = (keys, fingerprint_texts(keys))
            places.append(lane.slots(self.store, *looked[entity], create=lane.view.source.name == source))
        if not self._ids[source].add(events).all():
            self._ids[source].undo()
            raise InvalidInput("event_ids", event_ids, "not have been seen before")
        status = np.zeros(len(times), np.uint8)
        for lane, slots in zip(self._lanes, places, strict=True):
            block = out[:, lane.columns]
            if lane.view.source.name == source:
                values, codes = events.values[lane.view.name], events.codes[lane.view.name]
                lane.state.serve(slots, events.times, events.ingests, events.ties, values, codes, block, status)
                lane.mark(slots)
            else:
                lane.state.read(slots, events.times, block, status)
        self._move_on(max(times))
        for event_id, time, note in zip(event_ids, times, notes, strict=False):
            self._notes[source, encode_key(event_id)] = (note, time)
        return [STATUS[code] for code in status.tolist()]

    # Keeping

    @alone
    @at_once
    def begin_checkpoint(self, positions: Mapping[str, Any]) -> Checkpoint:
        """Takes what has changed since the last checkpoint, in an instant; `save` writes it.

        Args:
            positions: Stream or log positions up to which events have been added, ready for JSON.

        Raises:
            Conflict: If the checkpoint before is still being saved.
        """
        saving = self._saving  # another thread may end it meanwhile
        if saving is not None:
            if not saving.failed:
                raise Conflict("a checkpoint is still being saved; wait for it")
            self._take_back(saving)
        said = json.dumps(dict(positions)).encode()  # first, as what JSON cannot hold must not cost anything
        states = []
        for lane in self._lanes:
            slots = np.flatnonzero(lane.dirty)
            states.append((lane, slots, [lane.texts[slot] for slot in slots.tolist()], lane.state.gather(slots)))
        self._positions = dict(positions)
        checkpoint = Checkpoint(
            states=states,
            ids={name: known.take() for name, known in self._ids.items()},
            notes=self._notes,
            newest=self._newest,
            meta=[*meta_writes(self.features.version), ("meta", b"positions", said)],
            journal_until=self._sequence,
            journal_bytes=self._journal_bytes,
        )
        self._notes = {}
        self._saving = checkpoint
        for lane in self._lanes:
            if len(lane.index) > self._max_cached:
                lane.evict()
            lane.dirty[:] = False
        return checkpoint

    def _take_back(self, failed: Checkpoint) -> None:
        for lane, _, texts, packed in failed.states:
            lane.take_back(texts, packed)
        for name, blocks in failed.ids.items():
            self._ids[name].unsaved[:0] = blocks
        self._notes = {**failed.notes, **self._notes}
        self._saving = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint in one atomic commit; may run in another thread.

        Raises:
            StoreError: If the store could not be written; the changes wait for the next checkpoint then.
        """
        try:
            self.store.commit(list(writes(self.store, checkpoint, keep=self._keep, swept_day=self._swept_day)))
        except BaseException:
            checkpoint.failed = True  # its owner takes the changes back, this may be another thread
            raise
        self._swept_day = checkpoint.newest // DAY
        self._journal_bytes -= checkpoint.journal_bytes
        self._saving = None

    @alone
    def checkpoint(self, positions: Mapping[str, Any] | None = None) -> None:
        """Takes and saves a checkpoint at once."""
        self.save(self.begin_checkpoint(self._positions if positions is None else positions))

    @alone
    def publish(self, rows: RowStore, *, now: int) -> int:
        """Writes the windows of keys that changed since the last call to a store that other processes read.

        Call it before the first checkpoint: that may put windows out of memory, and from the first call on it leaves
        those that wait to be published. Keys that the store was told to forget are left out.

        Args:
            rows: Such as Redis; what was written by an earlier call, or by a backfill, is overwritten.
            now: The present in microseconds; it orders the writes of one key, so it must not go back.

        Returns:
            How many rows were written.

        Raises:
            StoreError: If the store could not be written; the next call writes the same keys again.
        """
        written = 0
        for lane in self._lanes:
            written += lane.publish(rows, now, self.locks.windows)
        return written

    @alone
    def expire(self) -> None:
        """Forgets ids in memory that are too old to matter; call it now and then, such as once a day."""
        for known in self._ids.values():
            known.seen.expire((self._newest - self._keep) // DAY)

    @alone
    def backfill(
        self,
        sources: "Mapping[str, pl.DataFrame]",
        *,
        until: int,
        notes: "Mapping[str, pl.Series] | None" = None,
        positions: Mapping[str, Any] | None = None,
    ) -> int:
        """Fills an empty store with the state that the history before `until` would have left.

        Args:
            sources: Source name to events, as for `table`.
            until: Microseconds; only earlier events count.
            notes: Source name to a binary series, one note for each event; none by default.
            positions: Where the streams are to be read on.

        Returns:
            How many events went in.

        Raises:
            Conflict: If the store is not empty.
            InvalidInput: If a source is missing or a frame is not as it must be; then the store stays empty.
            StoreError: If the store could not be written; then it stays empty.
        """
        if self.store.get("meta", b"features") is not None or self._newest != NEVER:
            raise Conflict("the online store is not empty; backfill() fills an empty one")
        begin = until - max(self._keep, self.features.longest + self.lateness)
        try:
            total = sum(self._fill(name, sources, notes or {}, begin, until) for name in self._sources)
            for lane in self._lanes:
                for slot in range(len(lane.texts)):
                    lane.state.compact(slot)
            self.checkpoint(positions or {})
        except BaseException:
            self._empty()  # as the store is: another call fills it
            raise
        return total

    def _fill(
        self, name: str, sources: "Mapping[str, pl.DataFrame]", notes: "Mapping[str, pl.Series]", begin: int, until: int
    ) -> int:
        frame, moments, noted = intake.history(self._sources[name], sources, notes, begin, until)
        events = self._events(name, frame)
        # Of one id the first by ingest time counts, then by arrival.
        events = intake.only(events, np.argsort(events.ingests, kind="stable"))
        new = self._ids[name].add(events)
        order = np.argsort(events.times, kind="stable")
        events = intake.only(events, order[new[order]])
        self._count(events, self._slots(events))
        if noted is not None:
            for event_id, time, note in zip(frame[self._sources[name].event_id].cast(str), moments, noted, strict=True):
                self._notes.setdefault((name, encode_key(event_id)), (note, time))
        return len(events)

    @alone
    @at_once
    def forget(self, entity: str, keys: Mapping[str, Any]) -> int:
        """Forgets an entity: its windows are gone from memory and from the store when this returns.

        Journal records that hold its events are replaced by a checkpoint. Notes and event ids stay: they do not name
        the entity.

        Args:
            entity: Name of the entity.
            keys: Its key, by column.

        Returns:
            How many views held it.
        """
        self.checkpoint(self._positions)
        lanes = [lane for lane in self._lanes if lane.view.entity.name == entity]
        held = [(lane, one_key(lane.view.entity, keys)) for lane in lanes]
        n = sum(self.store.get(lane.table, encode_key(text)) is not None for lane, text in held)
        deletes = [(lane.table, encode_key(text), None) for lane, text in held]
        self.store.commit(deletes)
        for lane, text in held:
            lane.clear(text)
        return n
