"""Compiled loops of the response cache. Import this module inside the function that needs it.

W-TinyLFU (Einziger, Friedman and Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM Transactions on
Storage 13(4), 2017): a small window takes every new row; what falls out of it gets into the main part only if it was
asked for more often than what would have to leave. How often is counted by a sketch of 4-bit counters that are all
halved now and then. The main part is a segmented LRU: probation, and protected for what was asked for again.

Slots are linked into three rings by `links`, shape (2, slots + 3): the slot before and the slot after, the last three
places being the heads of the rings. `state` holds what the names below say.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Slots = NDArray[np.int32]
Bytes = NDArray[np.uint8]

WINDOW, PROBATION, PROTECTED, FREE, ADDED, EVICTED, EXPIRED, WINDOW_MOST, PROTECTED_MOST, MAIN_MOST = range(10)
NO_SLOT = -1


@njit(cache=True, nogil=True)
def hash_of(row: Words, seed: np.uint64) -> np.uint64:
    """Returns a 64-bit hash of the words of a row; equal words only are certain to be equal rows."""
    h = seed
    for word in row:
        h = (h ^ np.uint64(word)) * np.uint64(0x9E3779B97F4A7C15)
        h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    return h ^ (h >> np.uint64(32))


@njit(cache=True, nogil=True)
def same(a: Words, b: Words) -> bool:
    """Compares two rows word by word, so that NaN equals itself and -0.0 differs from 0.0."""
    for k in range(len(a)):  # noqa: SIM110
        if a[k] != b[k]:
            return False
    return True


@njit(cache=True, nogil=True)
def count(sketch: Words, state: Numbers, h: np.uint64) -> None:
    """Adds one to the four counters of a hash; halves all after ten times as many additions as there are words."""
    mask = np.uint64(len(sketch) - 1)
    offset = (h & np.uint64(3)) << np.uint64(2)
    spread = h
    added = False
    for k in range(4):
        spread = (spread + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0x94D049BB133111EB)
        at = np.int64((spread >> np.uint64(32)) & mask)
        shift = (offset + np.uint64(k)) << np.uint64(2)
        if (sketch[at] >> shift) & np.uint64(15) < np.uint64(15):
            sketch[at] += np.uint64(1) << shift
            added = True
    if added:
        state[ADDED] += 1
        if state[ADDED] >= 10 * len(sketch):
            for word in range(len(sketch)):
                sketch[word] = (sketch[word] >> np.uint64(1)) & np.uint64(0x7777777777777777)
            state[ADDED] //= 2


@njit(cache=True, nogil=True)
def counted(sketch: Words, h: np.uint64) -> np.uint64:
    """Returns about how often a hash was asked for lately, 0 to 15."""
    mask = np.uint64(len(sketch) - 1)
    offset = (h & np.uint64(3)) << np.uint64(2)
    spread = h
    least = np.uint64(15)
    for k in range(4):
        spread = (spread + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0x94D049BB133111EB)
        at = np.int64((spread >> np.uint64(32)) & mask)
        shift = (offset + np.uint64(k)) << np.uint64(2)
        least = min(least, (sketch[at] >> shift) & np.uint64(15))
    return least


@njit(cache=True, nogil=True)
def unlink(links: Slots, slot: int) -> None:
    """Takes a slot out of its ring."""
    before, after = links[0, slot], links[1, slot]
    links[1, before], links[0, after] = after, before


@njit(cache=True, nogil=True)
def link(links: Slots, head: int, slot: int) -> None:
    """Puts a slot first into a ring."""
    after = links[1, head]
    links[0, slot], links[1, slot] = head, after
    links[1, head], links[0, after] = slot, slot


@njit(cache=True, nogil=True)
def move(links: Slots, state: Numbers, ring: Bytes, slot: int, to: int) -> None:
    """Moves a slot to the front of a ring."""
    unlink(links, slot)
    state[ring[slot]] -= 1
    ring[slot] = to
    state[to] += 1
    link(links, len(ring) + to, slot)


@njit(cache=True, nogil=True)
def find(table: Slots, hashes: Words, keys: Words, row: Words, h: np.uint64) -> int:
    """Returns the slot of a row, or -1."""
    mask = len(table) - 1
    at = np.int64(h & np.uint64(mask))
    while table[at] != NO_SLOT:
        slot = table[at]
        if hashes[slot] == h and same(keys[slot], row):
            return slot
        at = (at + 1) & mask
    return NO_SLOT


@njit(cache=True, nogil=True)
def forget(table: Slots, hashes: Words, links: Slots, state: Numbers, ring: Bytes, slot: int) -> None:
    """Empties a slot; entries of the hash table that come after it move up."""
    mask = len(table) - 1
    at = np.int64(hashes[slot] & np.uint64(mask))
    while table[at] != slot:
        at = (at + 1) & mask
    gap = at
    while True:
        at = (at + 1) & mask
        if table[at] == NO_SLOT:
            break
        home = np.int64(hashes[table[at]] & np.uint64(mask))
        if ((at - home) & mask) >= ((at - gap) & mask):
            table[gap] = table[at]
            gap = at
    table[gap] = NO_SLOT
    unlink(links, slot)
    state[ring[slot]] -= 1
    links[1, slot] = state[FREE]
    state[FREE] = slot


@njit(cache=True, nogil=True)
def touch(links: Slots, state: Numbers, ring: Bytes, slot: int) -> None:
    """Moves what was asked for again to where it belongs."""
    if ring[slot] == WINDOW:
        move(links, state, ring, slot, WINDOW)
        return
    move(links, state, ring, slot, PROTECTED)
    if state[PROTECTED] > state[PROTECTED_MOST]:
        move(links, state, ring, links[0, len(ring) + PROTECTED], PROBATION)


@njit(cache=True, nogil=True)
def make_room(table: Slots, hashes: Words, links: Slots, state: Numbers, ring: Bytes, sketch: Words) -> None:
    """Lets the oldest of a window that is full go on to the main part, or go, or another in its stead."""
    if state[WINDOW] < state[WINDOW_MOST]:
        return
    slots = len(ring)
    candidate = links[0, slots + WINDOW]
    if state[PROBATION] + state[PROTECTED] < state[MAIN_MOST]:
        move(links, state, ring, candidate, PROBATION)
        return
    victim = links[0, slots + (PROBATION if state[PROBATION] > 0 else PROTECTED)]
    state[EVICTED] += 1
    if counted(sketch, hashes[candidate]) > counted(sketch, hashes[victim]):
        forget(table, hashes, links, state, ring, victim)
        move(links, state, ring, candidate, PROBATION)
    else:
        forget(table, hashes, links, state, ring, candidate)


@njit(cache=True, nogil=True)
def probe(
    rows: Words,
    now: int,
    ttl: int,
    seed: np.uint64,
    table: Slots,
    hashes: Words,
    keys: Words,
    values: Bytes,
    stored: Numbers,
    links: Slots,
    state: Numbers,
    ring: Bytes,
    sketch: Words,
    scratch: Slots,
    found: Bytes,
    row_hashes: Words,
    source: Numbers,
    run: Numbers,
) -> int:
    """Answers the rows that are kept, and finds among the rest those that are there twice.

    `scratch` has a power of two of places, at least twice as many as rows. Written are `found` (the answers),
    `row_hashes`, `source` (-1 where answered, else which run of the model answers the row) and `run` (rows to be
    run).

    Returns:
        How many rows are to be run.
    """
    mask = len(scratch) - 1
    scratch[:] = NO_SLOT
    n_run = 0
    for i in range(len(rows)):
        h = hash_of(rows[i], seed)
        row_hashes[i] = h
        count(sketch, state, h)
        slot = find(table, hashes, keys, rows[i], h)
        if slot != NO_SLOT:
            age = now - stored[slot]
            if 0 <= age < ttl:
                touch(links, state, ring, slot)
                found[i] = values[slot]
                source[i] = -1
                continue
            forget(table, hashes, links, state, ring, slot)
            state[EXPIRED] += 1
        at = np.int64(h & np.uint64(mask))
        while True:
            first = scratch[at]
            if first == NO_SLOT:
                scratch[at] = n_run
                run[n_run] = i
                source[i] = n_run
                n_run += 1
                break
            if row_hashes[run[first]] == h and same(rows[run[first]], rows[i]):
                source[i] = first
                break
            at = (at + 1) & mask
    return n_run


@njit(cache=True, nogil=True)
def keep(
    rows: Words,
    fresh: Bytes,
    now: int,
    table: Slots,
    hashes: Words,
    keys: Words,
    values: Bytes,
    stored: Numbers,
    links: Slots,
    state: Numbers,
    ring: Bytes,
    sketch: Words,
    row_hashes: Words,
    run: Numbers,
) -> None:
    """Keeps the answers of the rows that were run; `fresh` has one line for each of `run`."""
    mask = len(table) - 1
    for k in range(len(run)):
        i = run[k]
        h = row_hashes[i]
        slot = find(table, hashes, keys, rows[i], h)
        if slot == NO_SLOT:
            make_room(table, hashes, links, state, ring, sketch)
            slot = state[FREE]
            state[FREE] = links[1, slot]
            hashes[slot] = h
            keys[slot] = rows[i]
            ring[slot] = WINDOW
            state[WINDOW] += 1
            link(links, len(ring) + WINDOW, slot)
            at = np.int64(h & np.uint64(mask))
            while table[at] != NO_SLOT:
                at = (at + 1) & mask
            table[at] = slot
        values[slot] = fresh[k]
        stored[slot] = now


@njit(cache=True, nogil=True)
def spread(fresh: Bytes, source: Numbers, found: Bytes) -> None:
    """Writes the answers of the model to the rows that they answer."""
    for i in range(len(source)):
        if source[i] >= 0:
            found[i] = fresh[source[i]]
