"""The kernels of the last n events: a key's newest values, in order, as many as a question can ask for."""

import numpy as np
from numba import njit

from vitok.features.plan import RECENT
from vitok.features.state_kernels import Arena, grow

WIDTH = 4  # time, ingest time, tie, value


@njit(cache=True)
def _shrink(arena: Arena, s: int, keep: int, span: int, earliest: int) -> None:
    # Drops events that the oldest question still allowed cannot reach, by number or by age.
    off, n = arena.offset[s], arena.n[s]
    older = 0
    while older < n and arena.pool[off + older, 0] < earliest:
        older += 1
    drop = max(0, older - keep)
    while drop < n and arena.pool[off + drop, 0] < earliest - span:
        drop += 1
    if drop > 0:
        for i in range(drop, n):
            arena.pool[off + i - drop] = arena.pool[off + i]
        arena.n[s] = n - drop


@njit(cache=True)
def insert(
    arena: Arena, s: int, time: int, ingest: int, tie: int, value: float, keep: int, span: int, reach: int
) -> bool:
    """Puts one value into a key's list; False where the pool must grow first."""
    if arena.n[s] >= arena.due[s]:
        _shrink(arena, s, keep, span, max(arena.newest[s], time) - reach)
        arena.due[s] = max(32, 2 * arena.n[s])
    if arena.n[s] == arena.room[s] and not grow(arena, s, arena.room[s] * 2 if arena.room[s] else 4):
        return False
    pool, off, n = arena.pool, arena.offset[s], arena.n[s]
    arena.newest[s] = max(arena.newest[s], time)
    at = n
    while at > 0:
        row = off + at - 1
        if pool[row, 0] < time or (
            pool[row, 0] == time
            and (pool[row, 1] < ingest or (pool[row, 1] == ingest and np.uint64(pool[row, 2]) < np.uint64(tie)))
        ):
            break
        pool[row + 1] = pool[row]
        at -= 1
    pool[off + at, 0], pool[off + at, 1], pool[off + at, 2] = time, ingest, tie
    arena.floats[off + at, 3] = value
    arena.n[s] = n + 1
    return True


@njit(cache=True)
def read(
    arena: Arena, s: int, time: int, lag: int, index: int, rows: np.ndarray, bounds: np.ndarray, out: np.ndarray
) -> None:
    """Answers the RECENT rows of one input as of one time.

    Args:
        arena: The lists.
        s: Which key.
        time: The question's time.
        lag: How long after its time an event is known.
        index: Which input.
        rows: Shape (width, 5): the plan's rows.
        bounds: Shape (windows, 2): the plan's windows.
        out: Shape (width,), written.
    """
    head = time - lag + 1 if lag > 0 else time
    off = arena.offset[s]
    low, high = 0, arena.n[s]
    while low < high:
        middle = (low + high) // 2
        if arena.pool[off + middle, 0] < head:
            low = middle + 1
        else:
            high = middle
    for row in range(rows.shape[0]):
        if rows[row, 0] == RECENT and rows[row, 2] == index:
            at = low - 1 - rows[row, 3]
            if at >= 0 and arena.pool[off + at, 0] >= time - bounds[rows[row, 1], 0]:
                out[row] = arena.floats[off + at, 3]
            else:
                out[row] = np.nan
