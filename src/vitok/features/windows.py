"""The kernels under every window: one that sweeps a sorted history, and those that keep a stream's state.

The sweep (`sweep`) and the stream (`insert`, `read`, `compact`) compute the same windows by different means, so that
comparing what a decision saw with what the table says is a real check.
"""

import numpy as np
from numba import njit

COUNT, SUM, MEAN, DISTINCT = 0, 1, 2, 3


@njit(cache=True)
def _two_sum(high: float, low: float, value: float) -> tuple[float, float]:
    # Knuth's TwoSum: the pair (high, low) carries the running sum to about 106 bits.
    total = high + value
    part = total - high
    error = (high - (total - part)) + (value - part)
    low += error
    out = total + low
    return out, low - (out - total)


@njit(cache=True)
def sweep(
    event_start: np.ndarray,
    event_time: np.ndarray,
    values: np.ndarray,
    codes: np.ndarray,
    n_codes: int,
    query_key: np.ndarray,
    query_time: np.ndarray,
    bounds: np.ndarray,
    plan: np.ndarray,
    out: np.ndarray,
) -> None:
    """Computes all windows of all questions in one pass over the sorted history.

    Each window keeps two pointers that only move forward. Sums are differences of prefix sums carried in two floats,
    so that they are right to the last bit or two however long the history is.

    Args:
        event_start: Shape (keys + 1,): where each key's events start.
        event_time: Shape (events,), sorted within each key.
        values: Shape (columns, events).
        codes: Shape (distinct columns, events): dense codes 0.. within each key.
        n_codes: One more than the largest code.
        query_key: Shape (questions,), sorted; -1 for a key without events.
        query_time: Shape (questions,), sorted within each key.
        bounds: Shape (windows, 2): span and hop.
        plan: Shape (features, 3): kind, window, column.
        out: Shape (questions, features), written.
    """
    n_columns, n_windows, n_features = values.shape[0], bounds.shape[0], plan.shape[0]
    n_distinct, n_queries = codes.shape[0], query_key.shape[0]
    seen = np.zeros((n_windows, n_distinct, max(n_codes, 1)), np.int32)
    different = np.zeros((n_windows, n_distinct), np.int64)
    low = np.zeros(n_windows, np.int64)
    head = np.zeros(n_windows, np.int64)
    high_sum = np.zeros((n_columns, event_time.shape[0] + 1))
    low_sum = np.zeros((n_columns, event_time.shape[0] + 1))
    for key in range(event_start.shape[0] - 1):
        for column in range(n_columns):
            a, b = 0.0, 0.0
            # Each key starts from zero so that one key's huge values cannot blur another's.
            for i in range(event_start[key], event_start[key + 1]):
                high_sum[column, i] = a
                low_sum[column, i] = b
                a, b = _two_sum(a, b, values[column, i])
            if event_start[key + 1] == event_time.shape[0]:
                high_sum[column, event_time.shape[0]] = a
                low_sum[column, event_time.shape[0]] = b
    last_key = -2
    end_high = np.zeros(n_columns)
    end_low = np.zeros(n_columns)
    for q in range(n_queries):
        key = query_key[q]
        if key < 0:
            for f in range(n_features):
                out[q, f] = np.nan if plan[f, 0] == MEAN else 0.0
            continue
        if key != last_key:
            if last_key >= 0:
                for w in range(n_windows):
                    for d in range(n_distinct):
                        for i in range(low[w], head[w]):
                            seen[w, d, codes[d, i]] = 0
            last_key = key
            for w in range(n_windows):
                low[w] = event_start[key]
                head[w] = event_start[key]
                for d in range(n_distinct):
                    different[w, d] = 0
            for column in range(n_columns):
                end_high[column], end_low[column] = 0.0, 0.0
                if event_start[key + 1] > event_start[key]:
                    last = event_start[key + 1] - 1
                    end_high[column], end_low[column] = _two_sum(
                        high_sum[column, last], low_sum[column, last], values[column, last]
                    )
        t = query_time[q]
        stop = event_start[key + 1]
        for w in range(n_windows):
            hop = bounds[w, 1]
            start = (t - bounds[w, 0]) // hop * hop
            while head[w] < stop and event_time[head[w]] < t:
                for d in range(n_distinct):
                    code = codes[d, head[w]]
                    if seen[w, d, code] == 0:
                        different[w, d] += 1
                    seen[w, d, code] += 1
                head[w] += 1
            while low[w] < head[w] and event_time[low[w]] < start:
                for d in range(n_distinct):
                    code = codes[d, low[w]]
                    seen[w, d, code] -= 1
                    if seen[w, d, code] == 0:
                        different[w, d] -= 1
                low[w] += 1
        for f in range(n_features):
            w = plan[f, 1]
            n = head[w] - low[w]
            if plan[f, 0] == COUNT:
                out[q, f] = n
            elif plan[f, 0] == DISTINCT:
                out[q, f] = different[w, plan[f, 2]]
            elif n == 0:
                out[q, f] = 0.0 if plan[f, 0] == SUM else np.nan
            else:
                column = plan[f, 2]
                if head[w] == stop:
                    a, b = end_high[column], end_low[column]
                else:
                    a, b = high_sum[column, head[w]], low_sum[column, head[w]]
                total = (a - high_sum[column, low[w]]) + (b - low_sum[column, low[w]])
                out[q, f] = total if plan[f, 0] == SUM else total / n


@njit(cache=True)
def insert(ints: np.ndarray, sums: np.ndarray, n: int, time: int, codes: np.ndarray, values: np.ndarray) -> int:
    """Puts one event into a key's state, in order of time; the arrays must have room.

    Args:
        ints: Shape (capacity, 2 + distinct columns): time, count, codes.
        sums: Shape (capacity, columns).
        n: Entries in use.
        time: Event time in microseconds.
        codes: Shape (distinct columns,).
        values: Shape (columns,).

    Returns:
        Entries in use afterwards.
    """
    at = n
    while at > 0 and ints[at - 1, 0] > time:
        at -= 1
    for i in range(n, at, -1):
        ints[i] = ints[i - 1]
        sums[i] = sums[i - 1]
    ints[at, 0] = time
    ints[at, 1] = 1
    for d in range(codes.shape[0]):
        ints[at, 2 + d] = codes[d]
    for c in range(values.shape[0]):
        sums[at, c] = values[c]
    return n + 1


@njit(cache=True)
def _is_new(ints: np.ndarray, first: int, last: int, d: int, table: np.ndarray) -> bool:
    # True where the code of entry `first` does not stand in entries (first, last).
    code = ints[first, 2 + d]
    if table.shape[0] == 0:
        for i in range(first + 1, last):
            if ints[i, 2 + d] == code:
                return False
        return True
    mask = table.shape[0] - 1
    slot = (code * np.int64(-7046029254386353131)) & mask
    while table[slot] >= 0:
        if ints[table[slot], 2 + d] == code:
            return False
        slot = (slot + 1) & mask
    table[slot] = first
    return True


@njit(cache=True)
def read(
    ints: np.ndarray, sums: np.ndarray, n: int, time: int, bounds: np.ndarray, plan: np.ndarray, out: np.ndarray
) -> None:
    """Answers all windows of one key at one time in one pass from the newest entry back.

    Args:
        ints: Shape (capacity, 2 + distinct columns).
        sums: Shape (capacity, columns).
        n: Entries in use.
        time: The question's time: only earlier events count.
        bounds: Shape (windows, 2): span and hop, shortest window first.
        plan: Shape (features, 3).
        out: Shape (features,), written.
    """
    n_windows, n_columns, n_distinct = bounds.shape[0], sums.shape[1], ints.shape[1] - 2
    counts = np.zeros(n_windows, np.int64)
    totals = np.zeros((n_windows, n_columns))
    different = np.zeros((n_windows, n_distinct), np.int64)
    last = n
    while last > 0 and ints[last - 1, 0] >= time:
        last -= 1
    size = 0
    if n_distinct > 0 and last > 64:
        size = 128
        while size < 2 * last:
            size *= 2
    table = np.full((n_distinct, size), -1, np.int64)
    w = 0
    start = (time - bounds[0, 0]) // bounds[0, 1] * bounds[0, 1]
    count = 0
    running = np.zeros(n_columns)
    new = np.zeros(n_distinct, np.int64)
    for i in range(last - 1, -1, -1):
        while w < n_windows and ints[i, 0] < start:
            counts[w] = count
            totals[w] = running
            different[w] = new
            w += 1
            if w < n_windows:
                start = (time - bounds[w, 0]) // bounds[w, 1] * bounds[w, 1]
        if w == n_windows:
            break
        count += ints[i, 1]
        for c in range(n_columns):
            running[c] += sums[i, c]
        for d in range(n_distinct):
            if _is_new(ints, i, last, d, table[d]):
                new[d] += 1
    while w < n_windows:
        counts[w] = count
        totals[w] = running
        different[w] = new
        w += 1
    for f in range(plan.shape[0]):
        kind, w, column = plan[f, 0], plan[f, 1], plan[f, 2]
        if kind == COUNT:
            out[f] = counts[w]
        elif kind == DISTINCT:
            out[f] = different[w, column]
        elif kind == SUM:
            out[f] = totals[w, column]
        else:
            out[f] = totals[w, column] / counts[w] if counts[w] else np.nan


@njit(cache=True)
def compact(ints: np.ndarray, sums: np.ndarray, n: int, bounds: np.ndarray, lateness: int) -> int:
    """Drops entries that no window can reach any more and merges those that no window can tell apart.

    A tile `[s, s + h)` may become one entry once it lies before every question still allowed (the newest event less
    the lateness) and once the tail of each window with a shorter hop has passed it.

    Args:
        ints: Shape (capacity, 2 + distinct columns).
        sums: Shape (capacity, columns).
        n: Entries in use.
        bounds: Shape (windows, 2): span and hop.
        lateness: How far behind the newest event a question or an event may come, in microseconds.

    Returns:
        Entries in use afterwards.
    """
    if n == 0:
        return 0
    n_windows = bounds.shape[0]
    earliest = ints[n - 1, 0] - lateness
    horizon = earliest
    for w in range(n_windows):
        horizon = min(horizon, (earliest - bounds[w, 0]) // bounds[w, 1] * bounds[w, 1])
    kept = 0
    tile_first = 0
    tile_start = np.int64(-(1 << 62))
    for i in range(n):
        time = ints[i, 0]
        if time < horizon:
            continue
        start = time
        merged = False
        for w in range(n_windows):
            hop = bounds[w, 1]
            tile = time // hop * hop
            possible = tile + hop <= earliest
            for v in range(n_windows):
                if bounds[v, 1] % hop != 0:
                    tail = (earliest - bounds[v, 0]) // bounds[v, 1] * bounds[v, 1]
                    possible = possible and tile + hop <= tail
            if possible and (tile < start or (tile == start and hop > 1)):
                start = tile
                merged = True
        target = kept
        if merged and tile_start == start:
            for j in range(tile_first, kept):
                same = True
                for d in range(2, ints.shape[1]):
                    same = same and ints[j, d] == ints[i, d]
                if same:
                    target = j
                    break
        if merged and tile_start != start:
            tile_first = kept
            tile_start = start
        if not merged:
            tile_start = np.int64(-(1 << 62))
        if target == kept:
            ints[kept] = ints[i]
            ints[kept, 0] = start
            sums[kept] = sums[i]
            kept += 1
        else:
            ints[target, 1] += ints[i, 1]
            sums[target] += sums[i]
    return kept
