"""The kernels that keep the windows of a stream: insert an event, read all windows, merge what no question tells apart.

The state of one key is a block of entries in a pool, in order of time. A fresh entry is one event; once no question
can fall inside it any more, the events of a tile are merged into one entry, so that a window of thirty days is read
from some dozens of entries. An entry is a row of 64-bit slots: time, count, codes, then what each input needs (number,
sum, squared deviations, smallest, largest, earliest, latest). Tiles that start on each window's own hop are what makes
the values equal to those of a table: nothing is subtracted, so no digit is lost.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from vitok.features.plan import COUNT, DISTINCT, FIRST, LAST, MAX, MEAN, MIN, NUMBER, RATE, RATIO, STD, SUM, TOP

# Places in a row of `Spec.slots`.
N_SLOT, SUM_SLOT, M2_SLOT, MIN_SLOT, MAX_SLOT, FIRST_SLOT, LAST_SLOT = range(7)
TIME, EVENTS, CODES = 0, 1, 2
_ABSENT = -(2**63)
_GOLDEN = 0x9E3779B97F4A7C15


class Arena(NamedTuple):
    """Blocks of entries in one pool.

    Attributes:
        pool: Shape (entries, width), int64.
        floats: The same memory as float64.
        offset: Shape (keys,): where a key's block begins; -1 where it has none.
        n: Shape (keys,): entries in use.
        room: Shape (keys,): entries in the block, a power of two.
        newest: Shape (keys,): time of the newest event.
        due: Shape (keys,): how many entries make it worth while to merge.
        free: Shape (48,): first free block of 2**i entries, or -1; a free block begins with the next one.
        top: Shape (1,): entries of the pool that were ever handed out.
    """

    pool: np.ndarray
    floats: np.ndarray
    offset: np.ndarray
    n: np.ndarray
    room: np.ndarray
    newest: np.ndarray
    due: np.ndarray
    free: np.ndarray
    top: np.ndarray


class Spec(NamedTuple):
    """What a view needs.

    Attributes:
        slots: Shape (inputs, 7): where an input's parts stand in an entry; -1 where it does not need one.
        n_codes: How many codes an entry has.
        rows: Shape (width, 5): the plan's rows.
        scale: Shape (width,).
        order: The rows that are read at a window's end, by window; then come ratios and rates.
        first: Shape (windows + 1,): where each window's rows begin in `order`.
        bounds: Shape (windows, 2): span and hop of the windows that are merged into tiles, shortest first.
        reach: Shape (codes, 2): span and hop of the longest window that counts each code.
        lag: How long after its time an event is known.
        lateness: How far behind the newest event of its key a question may come.
    """

    slots: np.ndarray
    n_codes: int
    rows: np.ndarray
    scale: np.ndarray
    order: np.ndarray
    first: np.ndarray
    bounds: np.ndarray
    reach: np.ndarray
    lag: int
    lateness: int


@njit(cache=True)
def grow(arena: Arena, s: int, least: int) -> bool:
    """Gives a key a block of at least `least` entries; False where the pool has none left."""
    room = 4
    size = 2
    while room < least:
        room *= 2
        size += 1
    block = arena.free[size]
    if block >= 0:
        arena.free[size] = arena.pool[block, 0]
    elif arena.top[0] + room <= arena.pool.shape[0]:
        block = arena.top[0]
        arena.top[0] += room
    else:
        return False
    old = arena.offset[s]
    for i in range(arena.n[s]):
        arena.pool[block + i] = arena.pool[old + i]
    release(arena, s)
    arena.offset[s] = block
    arena.room[s] = room
    return True


@njit(cache=True)
def release(arena: Arena, s: int) -> None:
    """Takes a key's block back."""
    room = arena.room[s]
    if room == 0:
        return
    size = 0
    while (1 << size) < room:
        size += 1
    arena.pool[arena.offset[s], 0] = arena.free[size]
    arena.free[size] = arena.offset[s]
    arena.offset[s] = -1
    arena.room[s] = 0


@njit(cache=True)
def _later(pool: np.ndarray, at: int, slot: int, time: int, ingest: int, tie: int) -> bool:
    # Whether (time, ingest, tie) comes after what the entry holds; ties compare as unsigned words.
    if time != pool[at, slot]:
        return time > pool[at, slot]
    if ingest != pool[at, slot + 1]:
        return ingest > pool[at, slot + 1]
    return bool(np.uint64(tie) > np.uint64(pool[at, slot + 2]))


@njit(cache=True)
def _clear(arena: Arena, spec: Spec, at: int) -> None:
    arena.pool[at] = 0
    for i in range(spec.slots.shape[0]):
        if spec.slots[i, MIN_SLOT] >= 0:
            arena.floats[at, spec.slots[i, MIN_SLOT]] = np.inf
        if spec.slots[i, MAX_SLOT] >= 0:
            arena.floats[at, spec.slots[i, MAX_SLOT]] = -np.inf
        if spec.slots[i, FIRST_SLOT] >= 0:
            arena.floats[at, spec.slots[i, FIRST_SLOT] + 3] = np.nan
        if spec.slots[i, LAST_SLOT] >= 0:
            arena.floats[at, spec.slots[i, LAST_SLOT] + 3] = np.nan


@njit(cache=True)
def _add_event(arena: Arena, spec: Spec, at: int, time: int, ingest: int, tie: int, values: np.ndarray) -> None:
    pool, floats = arena.pool, arena.floats
    pool[at, EVENTS] += 1
    for i in range(spec.slots.shape[0]):
        value = values[i]
        if np.isnan(value):
            continue
        n_slot, sum_slot, m2_slot = spec.slots[i, N_SLOT], spec.slots[i, SUM_SLOT], spec.slots[i, M2_SLOT]
        if m2_slot >= 0 and pool[at, n_slot] > 0:
            n = pool[at, n_slot]
            away = value - floats[at, sum_slot] / n
            floats[at, m2_slot] += away * away * n / (n + 1)
        if n_slot >= 0:
            pool[at, n_slot] += 1
        if sum_slot >= 0:
            floats[at, sum_slot] += value
        slot = spec.slots[i, MIN_SLOT]
        if slot >= 0:
            floats[at, slot] = min(floats[at, slot], value)
        slot = spec.slots[i, MAX_SLOT]
        if slot >= 0:
            floats[at, slot] = max(floats[at, slot], value)
        slot = spec.slots[i, FIRST_SLOT]
        if slot >= 0 and (np.isnan(floats[at, slot + 3]) or not _later(pool, at, slot, time, ingest, tie)):
            pool[at, slot], pool[at, slot + 1], pool[at, slot + 2] = time, ingest, tie
            floats[at, slot + 3] = value
        slot = spec.slots[i, LAST_SLOT]
        if slot >= 0 and (np.isnan(floats[at, slot + 3]) or _later(pool, at, slot, time, ingest, tie)):
            pool[at, slot], pool[at, slot + 1], pool[at, slot + 2] = time, ingest, tie
            floats[at, slot + 3] = value


@njit(cache=True)
def _add_entry(arena: Arena, spec: Spec, at: int, other: int) -> None:
    # Merges entry `other` into entry `at`.
    pool, floats = arena.pool, arena.floats
    pool[at, EVENTS] += pool[other, EVENTS]
    for i in range(spec.slots.shape[0]):
        n_slot, sum_slot, m2_slot = spec.slots[i, N_SLOT], spec.slots[i, SUM_SLOT], spec.slots[i, M2_SLOT]
        if m2_slot >= 0:
            a, b = pool[at, n_slot], pool[other, n_slot]
            if a > 0 and b > 0:
                away = floats[other, sum_slot] / b - floats[at, sum_slot] / a
                floats[at, m2_slot] += floats[other, m2_slot] + away * away * a * b / (a + b)
            elif b > 0:
                floats[at, m2_slot] = floats[other, m2_slot]
        if n_slot >= 0:
            pool[at, n_slot] += pool[other, n_slot]
        if sum_slot >= 0:
            floats[at, sum_slot] += floats[other, sum_slot]
        slot = spec.slots[i, MIN_SLOT]
        if slot >= 0:
            floats[at, slot] = min(floats[at, slot], floats[other, slot])
        slot = spec.slots[i, MAX_SLOT]
        if slot >= 0:
            floats[at, slot] = max(floats[at, slot], floats[other, slot])
        slot = spec.slots[i, FIRST_SLOT]
        if slot >= 0 and not np.isnan(floats[other, slot + 3]):
            time, ingest, tie = pool[other, slot], pool[other, slot + 1], pool[other, slot + 2]
            if np.isnan(floats[at, slot + 3]) or not _later(pool, at, slot, time, ingest, tie):
                for j in range(4):
                    pool[at, slot + j] = pool[other, slot + j]
        slot = spec.slots[i, LAST_SLOT]
        if slot >= 0 and not np.isnan(floats[other, slot + 3]):
            time, ingest, tie = pool[other, slot], pool[other, slot + 1], pool[other, slot + 2]
            if np.isnan(floats[at, slot + 3]) or _later(pool, at, slot, time, ingest, tie):
                for j in range(4):
                    pool[at, slot + j] = pool[other, slot + j]


@njit(cache=True)
def _same_codes(pool: np.ndarray, a: int, b: int, n_codes: int) -> bool:
    for d in range(CODES, CODES + n_codes):
        if pool[a, d] != pool[b, d]:
            return False
    return True


@njit(cache=True)
def compact(arena: Arena, spec: Spec, s: int) -> int:
    """Drops entries that no window can reach any more and merges those that no window can tell apart.

    A tile `[s, s + h)` may become one entry once it lies before every question still allowed (the newest event less
    the lateness) and once the tail of each window with a shorter hop has passed it.

    Returns:
        Entries in use afterwards.
    """
    pool, off, n = arena.pool, arena.offset[s], arena.n[s]
    if n == 0:
        return 0
    bounds = spec.bounds
    n_windows = bounds.shape[0]
    earliest = arena.newest[s] - spec.lateness
    # Events are seen `lag` late: the head of a question stands that much before it.
    settled = earliest - spec.lag
    horizon = earliest
    for w in range(n_windows):
        horizon = min(horizon, (earliest - bounds[w, 0]) // bounds[w, 1] * bounds[w, 1])
    kept = 0
    tile_first = 0
    tile_start = np.int64(_ABSENT)
    for i in range(n):
        time = pool[off + i, TIME]
        if time < horizon:
            continue
        # Which values came is forgotten once no window counts them any more, so that a tile is one entry.
        for d in range(spec.n_codes):
            if time < (earliest - spec.reach[d, 0]) // spec.reach[d, 1] * spec.reach[d, 1]:
                pool[off + i, CODES + d] = _ABSENT
        start = time
        merged = False
        for w in range(n_windows):
            hop = bounds[w, 1]
            tile = time // hop * hop
            possible = tile + hop <= settled and hop > 1
            for v in range(n_windows):
                if possible and bounds[v, 1] % hop != 0:
                    possible = tile + hop <= (earliest - bounds[v, 0]) // bounds[v, 1] * bounds[v, 1]
            if possible and tile <= start:
                start = tile
                merged = True
        target = kept
        if merged and tile_start == start:
            for j in range(tile_first, kept):
                if _same_codes(pool, off + j, off + i, spec.n_codes):
                    target = j
                    break
        if merged and tile_start != start:
            tile_first = kept
            tile_start = start
        if not merged:
            tile_start = np.int64(_ABSENT)
        if target == kept:
            if kept != i:
                pool[off + kept] = pool[off + i]
            pool[off + kept, TIME] = start
            kept += 1
        else:
            _add_entry(arena, spec, off + target, off + i)
    arena.n[s] = kept
    arena.due[s] = max(32, 2 * kept)
    return kept


@njit(cache=True)
def insert(
    arena: Arena, spec: Spec, s: int, time: int, ingest: int, tie: int, values: np.ndarray, codes: np.ndarray
) -> bool:
    """Puts one event into a key's state; False where the pool must grow first (then nothing has changed)."""
    if arena.n[s] >= arena.due[s]:
        compact(arena, spec, s)
    # When a block is full nothing is merged: a state must not depend on the room that its block happens to have, so
    # that one which was read from the store again goes on as if it had never left.
    if arena.n[s] == arena.room[s] and not grow(arena, s, arena.room[s] * 2 if arena.room[s] else 4):
        return False
    pool, off, n = arena.pool, arena.offset[s], arena.n[s]
    arena.newest[s] = max(arena.newest[s], time)
    at = n
    while at > 0 and pool[off + at - 1, TIME] > time:
        at -= 1
    j = at - 1
    while j >= 0 and pool[off + j, TIME] == time:
        same = True
        for d in range(spec.n_codes):
            same = same and pool[off + j, CODES + d] == codes[d]
        if same:
            _add_event(arena, spec, off + j, time, ingest, tie, values)
            return True
        j -= 1
    for i in range(n, at, -1):
        pool[off + i] = pool[off + i - 1]
    _clear(arena, spec, off + at)
    pool[off + at, TIME] = time
    for d in range(spec.n_codes):
        pool[off + at, CODES + d] = codes[d]
    _add_event(arena, spec, off + at, time, ingest, tie, values)
    arena.n[s] = n + 1
    return True


@njit(cache=True)
def apply(
    arena: Arena,
    spec: Spec,
    start: int,
    slots: np.ndarray,
    times: np.ndarray,
    ingests: np.ndarray,
    ties: np.ndarray,
    values: np.ndarray,
    codes: np.ndarray,
) -> int:
    """Puts events `start`, `start + 1`, ... into the states of their keys; returns the first that found no room."""
    for i in range(start, slots.shape[0]):
        if not insert(arena, spec, slots[i], times[i], ingests[i], ties[i], values[i], codes[i]):
            return i
    return slots.shape[0]


@njit(cache=True)
def _before(arena: Arena, s: int, head: int) -> int:
    # How many entries of a key begin before `head`.
    low, high = 0, arena.n[s]
    off = arena.offset[s]
    while low < high:
        middle = (low + high) // 2
        if arena.pool[off + middle, TIME] < head:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _count_code(keys: np.ndarray, counts: np.ndarray, shift: int, code: int, events: int) -> int:
    # Adds to the count of a code in an open hash table; returns 1 where the code is new. The low bits of a whole number
    # as a float are all zero, and so are those of its product: only the top ones tell codes apart.
    mask = keys.shape[0] - 1
    slot = np.int64((np.uint64(code) * np.uint64(_GOLDEN)) >> np.uint64(shift))
    while counts[slot] > 0:
        if keys[slot] == code:
            counts[slot] += events
            return 0
        slot = (slot + 1) & mask
    keys[slot] = code
    counts[slot] = events
    return 1


@njit(cache=True)
def _top(keys: np.ndarray, counts: np.ndarray, rank: int) -> float:
    # The value of the given rank: most frequent first, the smaller value first of equals.
    values = keys.view(np.float64)
    last_count = np.int64(2**62)
    last_value = -np.inf
    for _ in range(rank + 1):
        best_count = np.int64(0)
        best_value = np.nan
        for j in range(keys.shape[0]):
            count = counts[j]
            if count == 0 or count > last_count or (count == last_count and values[j] <= last_value):
                continue
            if count > best_count or (count == best_count and values[j] < best_value):
                best_count, best_value = count, values[j]
        if best_count == 0:
            return np.nan
        last_count, last_value = best_count, best_value
    return last_value


@njit(cache=True)
def correct(arena: Arena, spec: Spec, slots: np.ndarray, times: np.ndarray, differences: np.ndarray) -> None:
    """Adds differences to the sums of events that are in the states of their keys.

    The last entry that does not begin after an event holds it, or holds others of its tile, from which no question
    tells it apart any more. Where there is none, the event has left all windows, or its key was forgotten.
    """
    for i in range(slots.shape[0]):
        at = _before(arena, slots[i], times[i] + 1) - 1
        if at < 0:
            continue
        at += arena.offset[slots[i]]
        for k in range(spec.slots.shape[0]):
            slot = spec.slots[k, SUM_SLOT]
            if slot >= 0 and not np.isnan(differences[i, k]):
                arena.floats[at, slot] += differences[i, k]


@njit(cache=True)
def read(arena: Arena, spec: Spec, s: int, time: int, running: np.ndarray, out: np.ndarray) -> None:
    """Answers all windows of one key as of one time, in one pass from the newest entry back.

    Args:
        arena: The states.
        spec: The view.
        s: Which key.
        time: The question's time.
        running: Scratch of shape (inputs, 7) floats.
        out: Shape (width,), written.
    """
    pool, floats, off = arena.pool, arena.floats, arena.offset[s]
    n_windows, n_inputs, n_codes = spec.bounds.shape[0], spec.slots.shape[0], spec.n_codes
    last = _before(arena, s, time - spec.lag + 1 if spec.lag > 0 else time)
    size, shift = 0, 61
    if n_codes > 0:
        size = 8
        while size < 2 * last:
            size *= 2
            shift -= 1
    keys = np.zeros((n_codes, size), np.int64)
    counts = np.zeros((n_codes, size), np.int64)
    different = np.zeros(n_codes, np.int64)
    first_at = np.full(n_inputs, np.int64(-1))
    last_at = np.full(n_inputs, np.int64(-1))
    for i in range(n_inputs):
        running[i, N_SLOT] = 0.0
        running[i, SUM_SLOT] = 0.0
        running[i, M2_SLOT] = 0.0
        running[i, MIN_SLOT] = np.inf
        running[i, MAX_SLOT] = -np.inf
    events = np.int64(0)
    i = last - 1
    for w in range(n_windows):
        start = (time - spec.bounds[w, 0]) // spec.bounds[w, 1] * spec.bounds[w, 1]
        while i >= 0 and pool[off + i, TIME] >= start:
            at = off + i
            events += pool[at, EVENTS]
            for d in range(n_codes):
                if pool[at, CODES + d] != _ABSENT:
                    different[d] += _count_code(keys[d], counts[d], shift, pool[at, CODES + d], pool[at, EVENTS])
            for k in range(n_inputs):
                n_slot, sum_slot, m2_slot = spec.slots[k, N_SLOT], spec.slots[k, SUM_SLOT], spec.slots[k, M2_SLOT]
                if m2_slot >= 0 and pool[at, n_slot] > 0:
                    a, b = running[k, N_SLOT], float(pool[at, n_slot])
                    if a > 0:
                        away = floats[at, sum_slot] / b - running[k, SUM_SLOT] / a
                        running[k, M2_SLOT] += floats[at, m2_slot] + away * away * a * b / (a + b)
                    else:
                        running[k, M2_SLOT] = floats[at, m2_slot]
                if n_slot >= 0:
                    running[k, N_SLOT] += pool[at, n_slot]
                if sum_slot >= 0:
                    running[k, SUM_SLOT] += floats[at, sum_slot]
                slot = spec.slots[k, MIN_SLOT]
                if slot >= 0:
                    running[k, MIN_SLOT] = min(running[k, MIN_SLOT], floats[at, slot])
                slot = spec.slots[k, MAX_SLOT]
                if slot >= 0:
                    running[k, MAX_SLOT] = max(running[k, MAX_SLOT], floats[at, slot])
                slot = spec.slots[k, FIRST_SLOT]
                if slot >= 0 and not np.isnan(floats[at, slot + 3]):
                    o = first_at[k]
                    if o < 0 or not _later(pool, o, slot, pool[at, slot], pool[at, slot + 1], pool[at, slot + 2]):
                        first_at[k] = at
                slot = spec.slots[k, LAST_SLOT]
                if slot >= 0 and not np.isnan(floats[at, slot + 3]):
                    o = last_at[k]
                    if o < 0 or _later(pool, o, slot, pool[at, slot], pool[at, slot + 1], pool[at, slot + 2]):
                        last_at[k] = at
            i -= 1
        for place in range(spec.first[w], spec.first[w + 1]):
            row = spec.order[place]
            kind, k = spec.rows[row, 0], spec.rows[row, 2]
            if kind == COUNT:
                out[row] = events
            elif kind == NUMBER:
                out[row] = running[k, N_SLOT]
            elif kind == SUM:
                out[row] = running[k, SUM_SLOT]
            elif kind == MEAN:
                out[row] = running[k, SUM_SLOT] / running[k, N_SLOT] if running[k, N_SLOT] > 0 else np.nan
            elif kind == STD:
                n = running[k, N_SLOT]
                out[row] = np.sqrt(running[k, M2_SLOT] / (n - 1.0)) if n > 1 else np.nan
            elif kind == MIN:
                out[row] = running[k, MIN_SLOT] if running[k, MIN_SLOT] != np.inf else np.nan
            elif kind == MAX:
                out[row] = running[k, MAX_SLOT] if running[k, MAX_SLOT] != -np.inf else np.nan
            elif kind == FIRST:
                out[row] = floats[first_at[k], spec.slots[k, FIRST_SLOT] + 3] if first_at[k] >= 0 else np.nan
            elif kind == LAST:
                out[row] = floats[last_at[k], spec.slots[k, LAST_SLOT] + 3] if last_at[k] >= 0 else np.nan
            elif kind == DISTINCT:
                out[row] = different[k]
            elif kind == TOP:
                out[row] = _top(keys[k], counts[k], spec.rows[row, 3])


@njit(cache=True)
def finish(spec: Spec, out: np.ndarray) -> None:
    """Divides: fills the ratios and rates of a row of features from their parts."""
    for row in range(spec.rows.shape[0]):
        kind = spec.rows[row, 0]
        if kind == RATIO:
            lower = out[spec.rows[row, 4]]
            out[row] = out[spec.rows[row, 3]] / lower if lower != 0.0 else np.nan
        elif kind == RATE:
            out[row] = out[spec.rows[row, 3]] * spec.scale[row]
