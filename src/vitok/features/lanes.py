"""One view on the stream: the windows of its keys, what changed of them, and what a checkpoint writes."""

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from vitok.clock import DAY
from vitok.engines import KeyValueStore
from vitok.engines.row_store import Row, RowStore
from vitok.features import intake
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.hashing import KeyIndex
from vitok.features.rows import encode_key, row_keys
from vitok.features.state import Packed, WindowState
from vitok.features.views import View

if TYPE_CHECKING:
    import polars as pl

NUMBER = struct.Struct("<q")
ORDERED = struct.Struct(">q")


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
        """
        slots, n_gone = self.index.look(fingerprints)
        if not n_gone or (self.known_empty and not create):
            return slots
        found: dict[str, int] = {}
        places: list[int] = []
        for place in np.flatnonzero(slots < 0).tolist():
            text = keys[place]
            if text in found:
                continue
            blob = None if self.known_empty else store.get(self.table, encode_key(text))
            if blob is None and not create:
                continue
            slot = self.state.new_slot()
            if blob is not None:
                self.state.load(slot, blob)
            if slot == len(self.texts):
                self.texts.append(text)
            else:
                self.texts[slot] = text
            found[text] = slot
            places.append(place)
        if places:
            self.index.put(fingerprints[places], np.array(list(found.values()), np.int64))
            slots = self.index.find(fingerprints)
        return slots

    def take_back(self, texts: list[str], packed: Packed) -> None:
        """Takes windows back that could not be saved; a key that was evicted meanwhile is nowhere else."""
        for place, text in enumerate(texts):
            fingerprint = fingerprint_texts([text])
            slot = int(self.index.find(fingerprint)[0])
            if slot < 0:
                slot = self.state.load(self.state.new_slot(), packed.blob(place))
                self.texts[slot : slot + 1] = [text]
                self.index.put(fingerprint, np.array([slot]))
            self.mark(np.array([slot]))

    def publish(self, rows: RowStore, now: int, lock: AbstractContextManager[object]) -> int:
        """Writes the windows of keys that changed since the last call; returns how many rows were applied.

        The lock is held while windows are copied and not while they are written.
        """
        with lock:
            slots = np.flatnonzero(self.unpublished)
            packed = self.state.gather(slots)
            keys = row_keys(self.view, [self.texts[slot] for slot in slots.tolist()]) if len(slots) else []
        newest = np.maximum(packed.newest, 0).tolist()
        applied = rows.write(Row(key, (newest[place], now), packed.blob(place)) for place, key in enumerate(keys))
        self.unpublished[slots] = False
        return applied

    def evict(self) -> None:
        """Keeps the keys that changed since the last checkpoint; the others are read from the store again."""
        fingerprints, slots = self.index.items()
        keep = self.dirty[slots] | self.unpublished[slots]
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
    meta: dict[str, bytes]
    journal_until: int
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
    newest = NUMBER.unpack(checkpoint.meta["newest"])[0]
    stamp = ORDERED.pack(checkpoint.journal_until) + ORDERED.pack(newest)
    for source, blocks in checkpoint.ids.items():
        if sum(len(days) for _, days in blocks):
            yield "ids", source.encode() + b"\0" + stamp, intake.pack_ids(blocks)
    for (source, event_id), (note, time) in checkpoint.notes.items():
        yield f"note:{source}", event_id, note
        yield "expiry", ORDERED.pack((time + keep) // DAY) + f"{source}\0".encode() + event_id, b""
    if newest // DAY != swept_day:
        yield from _expired(store, newest, keep)
    for name, value in checkpoint.meta.items():
        yield "meta", name.encode(), value
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
