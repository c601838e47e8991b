"""The windows of a feature set in memory, over what the store keeps of them: what can be read, and where events go."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import DAY
from vitok.engines import KeyValueStore
from vitok.errors import InvalidInput
from vitok.features import intake
from vitok.features.definitions import FeatureSet
from vitok.features.events import Events, one_key
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.lanes import Checkpoint, Lane, RememberedIds
from vitok.features.locking import Locks, at_once
from vitok.features.rows import encode_key
from vitok.features.sources import Entity, Source
from vitok.features.state import NEVER

if TYPE_CHECKING:
    import polars as pl

STATUS = ("fresh", "missing", "late")


class OnlineWindows:
    """What `OnlineFeatures` knows at a moment: the windows of each key, the ids that count, and notes.

    A key that is not in memory is read from the store. Events are counted by `OnlineFeatures`, which also keeps them.

    Args:
        features: The definitions.
        store: Where the state is kept.
        lateness: How far behind the newest event of its key a question may come and still be exact, in microseconds.
        keep: How long event ids are remembered, in microseconds.

    Raises:
        InvalidInput: If a view counts the current event.
    """

    def __init__(self, features: FeatureSet, store: KeyValueStore, *, lateness: int, keep: int) -> None:
        self.features = features
        self.store = store
        self.lateness = lateness
        self._keep = keep
        for view in features.windowed:
            if view.include_current:
                raise InvalidInput(f"view {view.name!r}: include_current", True, "be off for features that are served")
        self._sources = {view.source.name: view.source for view in features.windowed}
        self.locks = Locks()
        self._empty()

    def _empty(self) -> None:
        columns = self.features.columns_of
        self._lanes = [Lane(view, columns[view.name], self.lateness) for view in self.features.windowed]
        self._by_source = {
            name: [lane for lane in self._lanes if lane.view.source.name == name] for name in self._sources
        }
        self._ids = {name: RememberedIds() for name in self._sources}
        self._notes: dict[tuple[str, bytes], tuple[bytes, int]] = {}
        self._saving: Checkpoint | None = None
        self._newest = NEVER

    @property
    def newest(self) -> int:
        """Time of the newest event, in microseconds; 0 where there was none."""
        return 0 if self._newest == NEVER else self._newest

    @property
    def n_keys(self) -> dict[str, int]:
        """How many keys each view holds in memory."""
        return {lane.view.name: len(lane.index) for lane in self._lanes}

    def seen(self, source: str, event_id: str) -> bool:
        """Says whether an event counts already."""
        return bool(self._ids[source].seen.has(fingerprint_texts([event_id]))[0])

    def note(self, source: str, event_id: str) -> bytes | None:
        """Returns what was noted with an event, or None where nothing was."""
        name = (source, encode_key(event_id))
        with self.locks.windows:  # notes move from the one to the other and back
            found, saving = self._notes.get(name), self._saving
            if found is None and saving is not None:
                found = saving.notes.get(name)
        return found[0] if found is not None else self.store.get(f"note:{source}", name[1])

    @at_once
    def read(self, keys: Mapping[str, str], time: int, out: np.ndarray) -> str:
        """Reads every window of the given entities as of a time.

        Args:
            keys: Entity key column to key.
            time: Microseconds; only earlier events count.
            out: Shape (computed columns,), float64; the columns of windows are written.

        Returns:
            `"fresh"`; `"missing"` where an entity was never seen; `"late"` where the question lies so far behind the
            newest event of its key that merged windows may answer it wrongly.
        """
        moment = np.array([time], np.int64)
        status = np.zeros(1, np.uint8)
        for lane in self._lanes:
            texts = [one_key(lane.view.entity, keys)]
            slots = lane.slots(self.store, texts, fingerprint_texts(texts), create=False)
            lane.state.read(slots, moment, out[None, lane.columns], status)
        return STATUS[int(status[0])]

    def read_many(
        self, keys: "Mapping[str, Sequence[Any] | pl.Series]", times: np.ndarray, out: np.ndarray
    ) -> np.ndarray:
        """Reads every window of many entities.

        Args:
            keys: Entity key column to n keys.
            times: Shape (n,), int64: as of when.
            out: Shape (n, computed columns), float64; the columns of windows are written.

        Returns:
            Shape (n, windowed views), int64: time of the newest event that each view holds; -1 where an entity was
            never seen.
        """
        texts = {lane.view.entity: intake.keys_of(keys, lane.view.entity) for lane in self._lanes}
        found = self.read_keys(texts, times, {lane.view.name: out[:, lane.columns] for lane in self._lanes})
        return np.column_stack(list(found.values())) if found else np.empty((len(times), 0), np.int64)

    @at_once
    def read_keys(
        self, texts: "Mapping[Entity, Sequence[str] | pl.Series]", times: np.ndarray, out: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """As `read_many`, of the views in `out`: by entity its keys as texts, by view what is written and returned."""
        newest, times = {}, np.asarray(times, np.int64)
        for lane in self._lanes:
            if lane.view.name in out:
                keys = texts[lane.view.entity]
                slots = lane.slots(self.store, keys, fingerprint_texts(keys), create=False)
                lane.state.read(slots, times, out[lane.view.name])
                times_of = np.where(slots < 0, NEVER, lane.state.newest_of(slots))
                newest[lane.view.name] = np.where(times_of == NEVER, -1, times_of)
        return newest

    # For who adds

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            raise InvalidInput("source", name, f"be one of {', '.join(sorted(self._sources)) or 'none'}")
        return self._sources[name]

    def _events(self, source: str, frame: "pl.DataFrame") -> Events:
        return Events.of_frame(self._source(source), [lane.view for lane in self._by_source[source]], frame)

    def _row_events(
        self, source: str, ids: Sequence[str], times: Sequence[int], rows: Sequence[Mapping[str, Any]]
    ) -> Events:
        views = [lane.view for lane in self._by_source[self._source(source).name]]
        return Events.of_rows(self._source(source), views, ids, times, rows)

    @at_once
    def _slots(self, events: Events) -> list[np.ndarray]:
        # Where the events of each lane go. All of counting that can fail, so that it is done before the journal.
        found = []
        for lane in self._by_source[events.source.name]:
            keys = events.keys[lane.view.entity]
            found.append(lane.slots(self.store, keys, fingerprint_texts(keys), create=True))
        return found

    @at_once
    def _count(self, events: Events, places: Sequence[np.ndarray]) -> None:
        if not len(events):
            return
        for lane, slots in zip(self._by_source[events.source.name], places, strict=True):
            values, codes = events.values[lane.view.name], events.codes[lane.view.name]
            lane.state.apply(slots, events.times, events.ingests, events.ties, values, codes)
            lane.mark(slots)
        self._move_on(int(events.times.max()))

    def _move_on(self, newest: int) -> None:
        self._newest = max(self._newest, newest)
        for known in self._ids.values():
            known.seen.keep_from((self._newest - self._keep) // DAY)
