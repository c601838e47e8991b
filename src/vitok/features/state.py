"""The windows of one view for many keys: what the stream adds to, what online reads are answered from.

A `WindowState` holds the keys in memory and packs each into bytes for a store; `read_blobs` answers from such bytes
alone, in a process that does not follow the stream.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from vitok.errors import StoreError
from vitok.features import recent_kernels, state_kernels
from vitok.features.plan import (
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
    Plan,
)
from vitok.features.state_kernels import (
    FIRST_SLOT,
    LAST_SLOT,
    M2_SLOT,
    MAX_SLOT,
    MIN_SLOT,
    N_SLOT,
    SUM_SLOT,
    Arena,
    Spec,
)

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.views import View

NEVER = -(2**63)  # the time of the newest event where there is none
FRESH, MISSING, LATE = range(3)
_MISSING, _LATE = np.uint8(MISSING), np.uint8(LATE)
_PARTS: dict[int, tuple[int, ...]] = {
    SUM: (SUM_SLOT,),
    MEAN: (N_SLOT, SUM_SLOT),
    STD: (N_SLOT, SUM_SLOT, M2_SLOT),
    NUMBER: (N_SLOT,),
    MIN: (MIN_SLOT,),
    MAX: (MAX_SLOT,),
    FIRST: (FIRST_SLOT,),
    LAST: (LAST_SLOT,),
}


class Layout:
    """Where everything stands in the state of a key of a view.

    Args:
        plan: The compiled view.
        lateness: How far behind the newest event of its key a question may come, in microseconds.
    """

    def __init__(self, plan: Plan, lateness: int) -> None:
        self.plan = plan
        self.lateness = lateness
        slots = np.full((len(plan.inputs), 7), -1, np.int64)
        width = 2 + len(plan.codes)
        for index, kinds in enumerate(plan.kinds_of):
            for part in sorted({part for kind in kinds for part in _PARTS.get(kind, ())}):
                slots[index, part] = width
                width += 4 if part in {FIRST_SLOT, LAST_SLOT} else 1
        tiled = sorted({int(row[1]) for row in plan.rows if row[0] not in {RECENT, RATIO, RATE}})
        places = {window: place for place, window in enumerate(tiled)}
        rows = plan.rows.copy()
        order: list[int] = []
        first = [0]
        for window in tiled:
            order.extend(i for i, row in enumerate(plan.rows) if row[1] == window and row[0] in _READ)
            first.append(len(order))
        for row in rows:
            row[1] = places.get(int(row[1]), -1)
        self.width = width
        self.spec = Spec(
            slots=slots,
            n_codes=len(plan.codes),
            rows=rows,
            scale=plan.scale,
            order=np.array(order, np.int64),
            first=np.array(first, np.int64),
            bounds=np.ascontiguousarray(plan.bounds[tiled]).reshape(-1, 2),
            reach=_reach(plan),
            lag=max(plan.lag, 0),
            lateness=lateness,
        )
        # One list of newest values for each input that a sequence asks for: input, how many, how old.
        self.recents: list[tuple[int, int, int]] = []
        for index in sorted({int(row[2]) for row in plan.rows if row[0] == RECENT}):
            asked = [row for row in plan.rows if row[0] == RECENT and row[2] == index]
            longest = max(int(plan.bounds[row[1], 0]) for row in asked)
            self.recents.append((index, max(int(row[3]) for row in asked) + 1, longest))
        self.header = 3 + 2 * len(self.recents)
        self.divides = bool(np.isin(plan.rows[:, 0], (RATIO, RATE)).any())

    @functools.cached_property
    def empty(self) -> np.ndarray:
        """A row of the kernels' output for a key without events, shape (width,)."""
        return np.concatenate([self.plan.empty, np.zeros(self.plan.width - len(self.plan.names))])

    def read_blobs(self, blobs: Sequence[bytes | None], times: np.ndarray, out: np.ndarray) -> None:
        """Answers from packed states.

        Args:
            blobs: What `WindowState.pack` wrote, or None where a key has no state.
            times: Shape (n,), int64: the questions' times.
            out: Shape (n, features), float64, written.

        Raises:
            StoreError: If a blob is not the state of a key of this view.
        """
        state = WindowState(self.plan, self.lateness, keys=len(blobs))
        slots = np.array([-1 if blob is None else state.load(state.new_slot(), blob) for blob in blobs], np.int64)
        state.read(slots, times, out)

    def backfill(self, view: "View", frame: "pl.DataFrame") -> Iterator[tuple[str, bytes, int]]:
        """Yields key, packed state and time of the newest event for each key of a history."""
        import polars as pl

        from vitok.features.events import Events

        events = Events.of_frame(view.source, (view,), frame)
        state = WindowState(self.plan, self.lateness)
        texts = pl.Series(events.keys[view.entity])
        keys = texts.unique().sort()
        slots = (texts.rank("dense").to_numpy() - 1).astype(np.int64)
        for _ in range(len(keys)):
            state.new_slot()
        order = np.lexsort((events.times, slots))
        values, codes = events.values[view.name][order], events.codes[view.name][order]
        state.apply(slots[order], events.times[order], events.ingests[order], events.ties[order], values, codes)
        for slot, key in enumerate(keys.to_list()):
            state.compact(slot)
            yield key, state.pack(slot), state.newest(slot)


_READ = frozenset({COUNT, SUM, MEAN, DISTINCT, MIN, MAX, STD, FIRST, LAST, TOP, NUMBER})


class WindowState:
    """The states of many keys of one view, in memory.

    Args:
        plan: The compiled view.
        lateness: How far behind the newest event of its key a question may come, in microseconds.
        keys: How many keys to make room for at first.
    """

    def __init__(self, plan: Plan, lateness: int, *, keys: int = 1024) -> None:
        self.layout = Layout(plan, lateness)
        self.plan = plan
        self._main = _arena(self.layout.width, max(keys, 8))
        self._recents = [_arena(recent_kernels.WIDTH, max(keys, 8)) for _ in self.layout.recents]
        self._n_slots = 0

    def new_slot(self) -> int:
        """Returns a place for a key that has none yet."""
        if self._n_slots == len(self._main.offset):
            self._main = _more_keys(self._main)
            self._recents = [_more_keys(arena) for arena in self._recents]
        self._n_slots += 1
        return self._n_slots - 1

    def newest(self, slot: int) -> int:
        """Returns the time of a key's newest event."""
        return int(self._main.newest[slot])

    def apply(
        self,
        slots: np.ndarray,
        times: np.ndarray,
        ingests: np.ndarray,
        ties: np.ndarray,
        values: np.ndarray,
        codes: np.ndarray,
    ) -> None:
        """Adds events.

        Args:
            slots: Shape (events,): places of their keys.
            times: Shape (events,), int64 microseconds.
            ingests: Shape (events,): when each became known; orders events of one instant.
            ties: Shape (events,), int64: orders what is still equal.
            values: Shape (events, inputs).
            codes: Shape (events, codes).
        """
        at, spec = 0, self.layout.spec
        while at < len(slots):
            at = state_kernels.apply(self._main, spec, at, slots, times, ingests, ties, values, codes)
            if at < len(slots):
                self._main = _more_room(self._main)
        for place, (index, keep, span) in enumerate(self.layout.recents):
            at = 0
            column = np.ascontiguousarray(values[:, index])
            reach = self.layout.lateness + spec.lag
            while at < len(slots):
                at = _apply_recent(self._recents[place], at, slots, times, ingests, ties, column, keep, span, reach)
                if at < len(slots):
                    self._recents[place] = _more_room(self._recents[place])

    def correct(self, slots: np.ndarray, times: np.ndarray, differences: np.ndarray) -> None:
        """Adds differences to the sums of events and counts none; the view must be one of counts, sums and means.

        Args:
            slots: Shape (n,): places of the keys.
            times: Shape (n,), int64 microseconds: times of the events.
            differences: Shape (n, inputs): new less old; NaN where nothing changes.
        """
        state_kernels.correct(self._main, self.layout.spec, slots, times, differences)

    def read(self, slots: np.ndarray, times: np.ndarray, out: np.ndarray, status: np.ndarray | None = None) -> None:
        """Answers all features of some keys.

        Args:
            slots: Shape (n,): places of the keys, -1 where a key has none.
            times: Shape (n,): as of when.
            out: Shape (n, features), float64, written.
            status: Shape (n,), uint8: raised to MISSING or LATE where that is so.
        """
        status = np.zeros(len(slots), np.uint8) if status is None else status
        none = np.empty(0, np.int64)
        wide = out if out.shape[1] == self.plan.width else np.empty((len(slots), self.plan.width))
        _serve(
            self._main,
            self.layout.spec,
            0,
            slots,
            times,
            none,
            none,
            _NO_VALUES,
            _NO_CODES,
            self.layout.empty,
            wide,
            status,
        )
        for place, (index, _, _) in enumerate(self.layout.recents):
            _serve_recent(
                self._recents[place], self.layout.spec.lag, 0, slots, times, none, none, np.empty(0), 0, 0, 0,
                index, self.plan.rows, self.plan.bounds, wide,
            )  # fmt: skip
        if self.layout.divides:
            _finish(self.layout.spec, wide)
        if wide is not out:
            out[:] = wide[:, : len(self.plan.names)]

    def serve(
        self,
        slots: np.ndarray,
        times: np.ndarray,
        ingests: np.ndarray,
        ties: np.ndarray,
        values: np.ndarray,
        codes: np.ndarray,
        out: np.ndarray,
        status: np.ndarray,
    ) -> None:
        """For each event in turn: answers its key's features as of its time, then adds it.

        Args:
            slots: As for `apply`.
            times: As for `apply`.
            ingests: As for `apply`.
            ties: As for `apply`.
            values: As for `apply`.
            codes: As for `apply`.
            out: Shape (events, features), written.
            status: Shape (events,), uint8: raised to MISSING or LATE where that is so.
        """
        at, spec = 0, self.layout.spec
        wide = out if out.shape[1] == self.plan.width else np.empty((len(slots), self.plan.width))
        while at < len(slots):
            at = _serve(
                self._main, spec, at, slots, times, ingests, ties, values, codes, self.layout.empty, wide, status
            )
            if at < len(slots):
                self._main = _more_room(self._main)
        for place, (index, keep, span) in enumerate(self.layout.recents):
            at = 0
            column = np.ascontiguousarray(values[:, index])
            while at < len(slots):
                at = _serve_recent(
                    self._recents[place], spec.lag, at, slots, times, ingests, ties, column, keep, span,
                    self.layout.lateness + spec.lag, index, self.plan.rows, self.plan.bounds, wide,
                )  # fmt: skip
                if at < len(slots):
                    self._recents[place] = _more_room(self._recents[place])
        if self.layout.divides:
            _finish(spec, wide)
        if wide is not out:
            out[:] = wide[:, : len(self.plan.names)]

    def newest_of(self, slots: np.ndarray) -> np.ndarray:
        """Returns the time of the newest event of each key, shape (n,)."""
        return self._main.newest[slots]

    def clear(self, slot: int) -> None:
        """Empties the state of a key, which keeps its place."""
        for arena in (self._main, *self._recents):
            state_kernels.release(arena, slot)
            arena.n[slot], arena.due[slot] = 0, 32
            arena.newest[slot] = NEVER

    def gather(self, slots: np.ndarray) -> "Packed":
        """Copies the states of many keys at once; they are made into bytes later, by any thread."""
        counts, pools = [], []
        for arena in (self._main, *self._recents):
            n = arena.n[slots]
            pool = np.empty((int(n.sum()), arena.pool.shape[1]), np.int64)
            _gather(arena, slots, pool)
            counts.append(np.concatenate([[0], np.cumsum(n)]))
            pools.append(pool)
        due = tuple(arena.due[slots] for arena in (self._main, *self._recents))
        return Packed(newest=self._main.newest[slots], due=due, starts=tuple(counts), pools=tuple(pools))

    def compact(self, slot: int) -> None:
        """Merges what no question tells apart any more."""
        state_kernels.compact(self._main, self.layout.spec, slot)

    def pack(self, slot: int) -> bytes:
        """Returns the state of a key as bytes."""
        arenas = (self._main, *self._recents)
        counts = [number for arena in arenas for number in (arena.n[slot], arena.due[slot])]
        head = np.array([self._main.newest[slot], *counts], np.int64)
        parts = [head.tobytes()]
        for arena in arenas:
            off = arena.offset[slot]
            parts.append(arena.pool[off : off + arena.n[slot]].tobytes())
        return b"".join(parts)

    def numbers(self, blob: bytes) -> np.ndarray:
        """Reads a packed state as the numbers it is made of.

        Raises:
            StoreError: If the bytes are not the state of a key of this view.
        """
        head = self.layout.header
        if len(blob) % 8 == 0 and len(blob) >= 8 * head:
            numbers = np.frombuffer(blob, np.int64)
            counts = numbers[1:head:2].tolist()
            n_recent = recent_kernels.WIDTH * sum(counts[1:])
            if min(counts) >= 0 and len(numbers) == head + self.layout.width * counts[0] + n_recent:
                return numbers
        raise StoreError(f"{len(blob)} bytes of the store are not the windows of a key; fill the store anew")

    def load(self, slot: int, blob: bytes) -> int:
        """Puts a packed state into a place and returns the place.

        Raises:
            StoreError: If the bytes are not the state of a key of this view.
        """
        numbers = self.numbers(blob)
        arenas = [self._main, *self._recents]
        widths = [self.layout.width, *(recent_kernels.WIDTH for _ in self._recents)]
        at = self.layout.header
        for place, width in enumerate(widths):
            n = int(numbers[1 + 2 * place])
            while n and not state_kernels.grow(arenas[place], slot, n):
                arenas[place] = _more_room(arenas[place])
            arena = arenas[place]
            off = arena.offset[slot]
            arena.pool[off : off + n] = numbers[at : at + n * width].reshape(n, width)
            arena.n[slot] = n
            # A sequence leaves out events without a value, and the newest of a key may be one.
            arena.newest[slot] = numbers[0] if place == 0 else arena.pool[off + n - 1, 0] if n else NEVER
            arena.due[slot] = numbers[2 + 2 * place]
            at += n * width
        self._main, self._recents = arenas[0], arenas[1:]
        return slot


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Copies of the states of some keys.

    Attributes:
        newest: Shape (keys,): time of each key's newest event.
        due: For the windows and for each sequence, shape (keys,): how many entries make it worth while to merge.
        starts: For the windows and for each sequence, shape (keys + 1,): where each key's entries start.
        pools: For the windows and for each sequence, shape (entries, width).
    """

    newest: np.ndarray
    due: tuple[np.ndarray, ...]
    starts: tuple[np.ndarray, ...]
    pools: tuple[np.ndarray, ...]

    def blob(self, place: int) -> bytes:
        """Returns the state of one key as bytes."""
        cuts = [(int(start[place]), int(start[place + 1])) for start in self.starts]
        counts = [
            number for due, (begin, end) in zip(self.due, cuts, strict=True) for number in (end - begin, due[place])
        ]
        head = np.array([self.newest[place], *counts], np.int64)
        return head.tobytes() + b"".join(
            pool[begin:end].tobytes() for pool, (begin, end) in zip(self.pools, cuts, strict=True)
        )


@njit(cache=True)
def _gather(arena: Arena, slots: np.ndarray, out: np.ndarray) -> None:
    at = 0
    for i in range(slots.shape[0]):
        off = arena.offset[slots[i]]
        for j in range(arena.n[slots[i]]):
            out[at] = arena.pool[off + j]
            at += 1


def _reach(plan: Plan) -> np.ndarray:
    # Span and hop of the longest window that counts each code, shape (codes, 2).
    out = np.zeros((len(plan.codes), 2), np.int64)
    for kind, window, index, _, _ in plan.rows.tolist():
        if kind in {DISTINCT, TOP} and plan.bounds[window, 0] > out[index, 0]:
            out[index] = plan.bounds[window]
    return out


def _arena(width: int, keys: int) -> Arena:
    pool = np.empty((max(64, 4 * keys), width), np.int64)
    zeros = np.zeros(keys, np.int64)
    return Arena(
        pool=pool,
        floats=pool.view(np.float64),
        offset=np.full(keys, -1, np.int64),
        n=zeros,
        room=zeros.copy(),
        newest=np.full(keys, NEVER, np.int64),
        due=np.full(keys, 32, np.int64),
        free=np.full(48, -1, np.int64),
        top=np.zeros(1, np.int64),
    )


def _more_keys(arena: Arena) -> Arena:
    more = len(arena.offset)
    zeros = np.zeros(more, np.int64)
    return arena._replace(
        offset=np.concatenate([arena.offset, np.full(more, -1, np.int64)]),
        n=np.concatenate([arena.n, zeros]),
        room=np.concatenate([arena.room, zeros]),
        newest=np.concatenate([arena.newest, np.full(more, NEVER, np.int64)]),
        due=np.concatenate([arena.due, np.full(more, 32, np.int64)]),
    )


def _more_room(arena: Arena) -> Arena:
    # What np.empty asks for takes no memory before it is written.
    pool = np.empty((2 * len(arena.pool), arena.pool.shape[1]), np.int64)
    used = int(arena.top[0])
    pool[:used] = arena.pool[:used]
    return arena._replace(pool=pool, floats=pool.view(np.float64))


_NO_VALUES = np.empty((0, 0))
_NO_CODES = np.empty((0, 0), np.int64)


@njit(cache=True)
def _serve(
    arena: Arena,
    spec: Spec,
    begin: int,
    slots: np.ndarray,
    times: np.ndarray,
    ingests: np.ndarray,
    ties: np.ndarray,
    values: np.ndarray,
    codes: np.ndarray,
    empty: np.ndarray,
    out: np.ndarray,
    status: np.ndarray,
) -> int:
    running = np.zeros((spec.slots.shape[0], 7))
    for i in range(begin, slots.shape[0]):
        s = slots[i]
        if s < 0 or arena.n[s] == 0:
            out[i] = empty
            status[i] = max(status[i], _MISSING)
        else:
            if times[i] < arena.newest[s] - spec.lateness:
                status[i] = _LATE
            state_kernels.read(arena, spec, s, times[i], running, out[i])
        if ingests.shape[0] > 0:
            if not state_kernels.insert(arena, spec, s, times[i], ingests[i], ties[i], values[i], codes[i]):
                return i
    return slots.shape[0]


@njit(cache=True)
def _serve_recent(
    arena: Arena,
    lag: int,
    begin: int,
    slots: np.ndarray,
    times: np.ndarray,
    ingests: np.ndarray,
    ties: np.ndarray,
    column: np.ndarray,
    keep: int,
    span: int,
    reach: int,
    index: int,
    rows: np.ndarray,
    bounds: np.ndarray,
    out: np.ndarray,
) -> int:
    for i in range(begin, slots.shape[0]):
        s = slots[i]
        if s >= 0:
            recent_kernels.read(arena, s, times[i], lag, index, rows, bounds, out[i])
        if ingests.shape[0] > 0 and not np.isnan(column[i]):
            if not recent_kernels.insert(arena, s, times[i], ingests[i], ties[i], column[i], keep, span, reach):
                return i
    return slots.shape[0]


@njit(cache=True)
def _apply_recent(
    arena: Arena,
    begin: int,
    slots: np.ndarray,
    times: np.ndarray,
    ingests: np.ndarray,
    ties: np.ndarray,
    column: np.ndarray,
    keep: int,
    span: int,
    reach: int,
) -> int:
    for i in range(begin, slots.shape[0]):
        if not np.isnan(column[i]):
            if not recent_kernels.insert(arena, slots[i], times[i], ingests[i], ties[i], column[i], keep, span, reach):
                return i
    return slots.shape[0]


@njit(cache=True)
def _finish(spec: Spec, out: np.ndarray) -> None:
    for i in range(out.shape[0]):
        state_kernels.finish(spec, out[i])
