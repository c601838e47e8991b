"""One view on the stream: the windows of its keys, what changed of them, and what a checkpoint writes."""

import dataclasses
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import DAY
from vitok.engines import KeyValueStore
from vitok.engines.key_value import Write
from vitok.engines.row_store import Row, RowStore
from vitok.errors import Conflict, StoreError
from vitok.features import intake
from vitok.features.events import Events
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.hashing import KeyIndex, SeenIds
from vitok.features.materialise import forgotten
from vitok.features.rows import encode_key, row_keys
from vitok.features.state import NEVER, Packed, WindowState
from vitok.features.views import View

if TYPE_CHECKING:
    import polars as pl

FORMAT = b"4"
_NUMBER = struct.Struct("<q")
ORDERED = struct.Struct(">q")


def meta_writes(version: str) -> list[Write]:
    """Returns what tells a store of windows from an empty one, and from one of other definitions."""
    return [("meta", b"features", version.encode()), ("meta", b"format", FORMAT)]


def read_meta(store: KeyValueStore, version: str) -> tuple[int, dict[str, Any]]:
    """Reads the time of the newest event, `NEVER` where there is none, and the positions of the streams.

    Raises:
        Conflict: If the store was filled from other definitions than those of this version.
        StoreError: If it is damaged.
    """
    kept = store.get("meta", b"features")
    if kept is None:
        return NEVER, {}
    if kept != version.encode():
        raise Conflict(
            f"the online store holds features {kept.decode(errors='replace')}, the definitions are {version}; "
            "fill an empty store with backfill()"
        )
    if store.get("meta", b"format") != FORMAT:
        raise Conflict("the online store was written by another version of vitok; fill an empty one")
    try:
        newest = _NUMBER.unpack(store.get("meta", b"newest") or _NUMBER.pack(NEVER))[0]
        return newest, dict(json.loads(store.get("meta", b"positions") or b"{}"))
    except (struct.error, ValueError) as error:
        raise StoreError(f"the positions in the online store are damaged, fill it anew: {error}") from error


class RememberedIds:
    """The event ids of one source: which were seen, and which of them the store does not have yet."""

    def __init__(self) -> None:
        self.seen = SeenIds()
        self.unsaved: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, events: Events) -> np.ndarray:
        """Remembers the ids of some events and says which were new."""
        days = (events.times // DAY).astype(np.int32)
        new = self.seen.add(events.ids, days)
        self.unsaved.append((events.ids, days) if new.all() else (events.ids[new], days[new]))
        return new

    def undo(self) -> None:
        """Takes the last `add` back, as its events did not count after all."""
        ids, _ = self.unsaved.pop()
        self.seen.take_back(ids)

    def take(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Hands over what the store does not have yet."""
        out, self.unsaved = self.unsaved, []
        return out


class Lane:
    """One view: the windows of its keys, and which of them changed since the last checkpoint."""

    def __init__(self, view: View, columns: slice, lateness: int) -> None:
        self.view = view
        self.columns = columns
        self.table = f"state:{view.name}"
        self.lateness = lateness
        self.state = WindowState(view.plan, lateness)
        self.index = KeyIndex()
        self.texts: list[str] = []
        self.dirty = np.zeros(1024, np.bool_)
        self.unpublished = np.zeros(1024, np.bool_)
        self.publishes = False
        self.published_at = 0
        self.known_empty = False
        self.layout = self.state.layout

    def mark(self, slots: np.ndarray) -> None:
        """Notes that the windows of some keys changed."""
        if len(self.dirty) < len(self.texts):
            more = np.zeros(max(len(self.dirty), len(self.texts)), np.bool_)
            self.dirty = np.concatenate([self.dirty, more])
            self.unpublished = np.concatenate([self.unpublished, more])
        self.dirty[slots] = True
        self.unpublished[slots] = True

    def slots(
        self, store: KeyValueStore, keys: "Sequence[str] | pl.Series", fingerprints: np.ndarray, *, create: bool
    ) -> np.ndarray:
        """Returns the places of some keys, read from the store where they are not in memory.

        Args:
            store: Where windows that were put away are.
            keys: Key texts.
            fingerprints: Shape (n, 2): theirs.
            create: Whether a key that is nowhere gets an empty place; else it is -1.

        Raises:
            StoreError: If the store cannot be read or holds something else; then nothing has changed.
        """
        slots, n_gone = self.index.look(fingerprints)
        if not n_gone or (self.known_empty and not create):
            return slots
        found: dict[str, tuple[int, bytes | None]] = {}
        for place in np.flatnonzero(slots < 0).tolist():
            text = keys[place]
            if text in found:
                continue
            blob = None if self.known_empty else store.get(self.table, encode_key(text))
            if blob is not None:
                self.state.numbers(blob)
            if blob is not None or create:
                found[text] = place, blob
        if found:
            new = [self._place(text, blob) for text, (_, blob) in found.items()]
            self.index.put(fingerprints[[place for place, _ in found.values()]], np.array(new, np.int64))
            slots = self.index.find(fingerprints)
        return slots

    def _place(self, text: str, blob: bytes | None) -> int:
        slot = self.state.new_slot()
        self.texts.append(text)
        return slot if blob is None else self.state.load(slot, blob)

    def take_back(self, texts: list[str], packed: Packed) -> None:
        """Takes windows back that could not be saved; a key that was evicted meanwhile is nowhere else."""
        for place, text in enumerate(texts):
            fingerprint = fingerprint_texts([text])
            slot = int(self.index.find(fingerprint)[0])
            if slot < 0:
                slot = self._place(text, packed.blob(place))
                self.index.put(fingerprint, np.array([slot]))
            self.mark(np.array([slot]))

    def publish(self, rows: RowStore, now: int, lock: AbstractContextManager[object]) -> int:
        """Writes the windows of keys that changed since the last call; returns how many rows were applied.

        The lock is held while windows are copied and not while they are written.
        """
        # Of two writes of a key at one moment the second would not count.
        self.published_at = now = max(now, self.published_at + 1)
        with lock:
            self.publishes = True
            slots = np.flatnonzero(self.unpublished)
            packed = self.state.gather(slots)
            texts = [self.texts[slot] for slot in slots.tolist()]
        keys = row_keys(self.view, texts) if texts else []
        refused = forgotten(rows, self.view.entity.name, texts, now)
        newest = np.maximum(packed.newest, 0).tolist()
        chosen = np.flatnonzero(~refused).tolist()
        applied = rows.write(Row(keys[place], (newest[place], now), packed.blob(place)) for place in chosen)
        # Whoever forgets says so first and erases then: what was written in between is found here, or there.
        refused = forgotten(rows, self.view.entity.name, texts, now)
        if refused.any():
            rows.erase([keys[place] for place in np.flatnonzero(refused).tolist()])
        self.unpublished[slots] = False
        return applied

    def clear(self, text: str) -> None:
        """Empties the windows of a key in memory, as if it had never come."""
        slot = int(self.index.find(fingerprint_texts([text]))[0])
        if slot >= 0:
            self.state.clear(slot)
            self.mark(np.empty(0, np.int64))
            self.dirty[slot] = self.unpublished[slot] = False

    def evict(self) -> None:
        """Keeps the keys that changed since the last checkpoint; the others are read from the store again."""
        fingerprints, slots = self.index.items()
        self.mark(np.empty(0, np.int64))
        keep = self.dirty[slots] | (self.unpublished[slots] & self.publishes)
        packed = self.state.gather(slots[keep])
        state, texts = WindowState(self.view.plan, self.lateness, keys=max(1024, int(keep.sum()))), []
        for place, slot in enumerate(slots[keep].tolist()):
            state.load(state.new_slot(), packed.blob(place))
            texts.append(self.texts[slot])
        self.state, self.texts, self.index = state, texts, KeyIndex()
        self.index.put(fingerprints[keep], np.arange(len(texts)))
        unpublished = self.unpublished[slots[keep]]
        self.dirty = np.ones(max(1024, len(texts)), np.bool_)
        self.unpublished = np.zeros(max(1024, len(texts)), np.bool_)
        self.unpublished[: len(unpublished)] = unpublished
        self.known_empty = False


@dataclasses.dataclass(eq=False)
class Checkpoint:
    """What one checkpoint will write: taken in an instant, saved at leisure, from any thread."""

    states: list[tuple[Lane, np.ndarray, list[str], Packed]]
    ids: dict[str, list[tuple[np.ndarray, np.ndarray]]]
    notes: dict[tuple[str, bytes], tuple[bytes, int]]
    meta: list[Write]
    newest: int
    journal_until: int
    journal_bytes: int = 0
    failed: bool = False


def writes(
    store: KeyValueStore, checkpoint: Checkpoint, *, keep: int, swept_day: int
) -> Iterator[tuple[str, bytes, bytes | None]]:
    """Yields what a checkpoint writes and deletes, to be committed at once.

    Args:
        store: Where it will be written.
        checkpoint: What was taken.
        keep: How long ids and notes are kept, in microseconds.
        swept_day: The day of the newest event when old ids were looked for last.
    """
    for lane, _, texts, packed in checkpoint.states:
        for place, text in enumerate(texts):
            yield lane.table, encode_key(text), packed.blob(place)
    newest = checkpoint.newest
    for source, blocks in checkpoint.ids.items():
        first = next((ids[0] for ids, _ in blocks if len(ids)), None)
        if first is not None:
            # An id is new once, so that no checkpoint writes over the ids of another one.
            yield "ids", source.encode() + b"\0" + ORDERED.pack(newest) + first.tobytes(), intake.pack_ids(blocks)
    for (source, event_id), (note, time) in checkpoint.notes.items():
        yield f"note:{source}", event_id, note
        yield "expiry", ORDERED.pack((time + keep) // DAY) + f"{source}\0".encode() + event_id, b""
    if newest // DAY != swept_day:
        yield from _expired(store, newest, keep)
    yield from checkpoint.meta
    yield "meta", b"newest", _NUMBER.pack(newest)
    for key, _ in store.scan("journal"):
        if ORDERED.unpack(key)[0] <= checkpoint.journal_until:
            yield "journal", key, None


def _expired(store: KeyValueStore, newest: int, keep: int) -> Iterator[tuple[str, bytes, bytes | None]]:
    # Ids and notes are forgotten a day at a time, once an event of that day would be refused.
    for key, _ in store.scan("expiry"):
        if ORDERED.unpack_from(key)[0] >= newest // DAY:
            break
        source, _, event_id = key[8:].partition(b"\0")
        yield f"note:{source.decode()}", event_id, None
        yield "expiry", key, None
    first_day = (newest - keep) // DAY
    for key, blob in store.scan("ids"):
        if intake.last_day(blob) < first_day:
            yield "ids", key, None
