"""The kernel under a table of windows: one pass over the sorted events of each key answers all its questions.

Events that were known at once are aggregated by structures that never change: prefix sums in two floats, trees of
extremes, the next and the former value. Events that became known after their event time wait until a question comes
that may see them, and then enter a tree of their own; where there are none, nothing of this is touched. Both parts are
joined for each window.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from vitok.features.count_kernels import change, collect_codes, keep_different, lead, most_frequent, number_codes
from vitok.features.late_kernels import (
    CENTRED,
    EARLIEST,
    HAVE,
    LATEST,
    LEAST,
    MOST,
    SQUARES,
    TOTAL,
    fill_leaf,
    fill_nothing,
    gather,
    largest_in,
    last_in,
    mend,
)
from vitok.features.plan import COUNT, DISTINCT, FIRST, LAST, MAX, MEAN, MIN, NUMBER, RATE, RATIO, STD, SUM, TOP
from vitok.features.two_float_kernels import add_two, deviation, difference_two, square_two

_MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)


class Facts(NamedTuple):
    """Events by key, then in their order.

    Attributes:
        start: Shape (keys + 1,): where each key's events begin.
        time: Shape (n,): event time.
        known: Shape (n,): when each became known; read for late ones only.
        words: Shape (n, inputs + codes), int64: values as their bits, then codes.
        floats: The same as float64.
        place: Shape (n,): place in the order of all events; not read where none is late.
    """

    start: np.ndarray
    time: np.ndarray
    known: np.ndarray
    words: np.ndarray
    floats: np.ndarray
    place: np.ndarray


class Questions(NamedTuple):
    """Questions by key, then by time.

    Attributes:
        start: Shape (keys + 1,).
        order: Shape (n,): the rows that ask.
        time: Shape (rows,): when each row asks.
    """

    start: np.ndarray
    order: np.ndarray
    time: np.ndarray


class Work(NamedTuple):
    """What is to be computed.

    Attributes:
        rows: Shape (width, 5): as in `Plan.rows`.
        scale: Shape (width,).
        bounds: Shape (windows, 2): span and hop.
        fields: Shape (fields, 3): what is kept, of which input, in which slot; those that add up come first.
        slot: Shape (8, inputs): the slot of each kept thing, -1 where it is not kept.
        uses: Shape (windows, fields), bool.
        trackers: Shape (trackers, 3): window, code, whether the most frequent are asked for.
        tracker_of: Shape (width,): the tracker of DISTINCT and TOP rows.
        recents: Shape (recents, 4): window, input, first row, how many.
        kept: Shape (columns,): the rows that are written.
        shape: Inputs, codes, slots, slots that add up, longest rank of TOP and one, shift of the head.
    """

    rows: np.ndarray
    scale: np.ndarray
    bounds: np.ndarray
    fields: np.ndarray
    slot: np.ndarray
    uses: np.ndarray
    trackers: np.ndarray
    tracker_of: np.ndarray
    recents: np.ndarray
    kept: np.ndarray
    shape: np.ndarray


@njit(cache=True)
def _first_value(facts: Facts, first: int, n: int, late: Facts, late_first: int, m: int, column: int) -> float:
    for i in range(first, first + n):
        if facts.floats[i, column] == facts.floats[i, column]:
            return facts.floats[i, column]
    for i in range(late_first, late_first + m):
        if late.floats[i, column] == late.floats[i, column]:
            return late.floats[i, column]
    return 0.0


@njit(cache=True)
def _recent(
    group: np.ndarray,
    facts: Facts,
    late: Facts,
    first: int,
    late_first: int,
    values: np.ndarray,
    r: int,
    r_low: int,
    tree: np.ndarray,
    m: int,
    j_low: int,
    j: int,
    slot: int,
    out: np.ndarray,
) -> None:
    # Newest first: two lists, each in order, taken from their ends.
    column = group[1]
    j = last_in(tree, m, j_low, j, slot) if m > 0 else -1
    for rank in range(group[3]):
        out[group[2] + rank] = np.nan
    for rank in range(group[3]):
        if r <= r_low and j < 0:
            break
        takes_late = j >= 0
        if takes_late and r > r_low:
            takes_late = late.place[late_first + j] > facts.place[first + values[r - 1]]
        if takes_late:
            out[group[2] + rank] = late.floats[late_first + j, column]
            j = last_in(tree, m, j_low, j, slot)
        else:
            r -= 1
            out[group[2] + rank] = facts.floats[first + values[r], column]


@njit(cache=True)
def _emit(
    work: Work, state: np.ndarray, squares: np.ndarray, distinct: np.ndarray, tops: np.ndarray, values: np.ndarray
) -> None:
    # Makes features of what the windows hold; ratios and rates last, as they are made of other rows.
    for i in range(work.rows.shape[0]):
        kind, w, c = work.rows[i, 0], work.rows[i, 1], work.rows[i, 2]
        if kind == COUNT:
            values[i] = state[w, state.shape[1] - 1]
        elif kind == NUMBER:
            values[i] = state[w, work.slot[HAVE, c]]
        elif kind == SUM:
            values[i] = state[w, work.slot[TOTAL, c]]
        elif kind == MEAN:
            n = state[w, work.slot[HAVE, c]]
            values[i] = state[w, work.slot[TOTAL, c]] / n if n > 0 else np.nan
        elif kind == STD:
            s, q = work.slot[CENTRED, c], work.slot[SQUARES, c]
            n = state[w, work.slot[HAVE, c]]
            values[i] = deviation(n, state[w, s], state[w, s + 1], state[w, q], state[w, q + 1], squares[c])
        elif kind in (MIN, MAX):
            found = state[w, work.slot[LEAST if kind == MIN else MOST, c]]
            values[i] = found if abs(found) != np.inf else np.nan
        elif kind == FIRST:
            values[i] = state[w, work.slot[EARLIEST, c]]
        elif kind == LAST:
            values[i] = state[w, work.slot[LATEST, c]]
        elif kind == DISTINCT:
            values[i] = distinct[work.tracker_of[i]]
        elif kind == TOP:
            values[i] = tops[work.tracker_of[i], work.rows[i, 3]]
    for i in range(work.rows.shape[0]):
        if work.rows[i, 0] == RATE:
            values[i] = values[work.rows[i, 3]] * work.scale[i]
        elif work.rows[i, 0] == RATIO:
            lower = values[work.rows[i, 4]]
            values[i] = values[work.rows[i, 3]] / lower if lower != 0.0 else np.nan


@njit(cache=True)
def sweep(asked: Questions, facts: Facts, late: Facts, work: Work, empty: np.ndarray, out: np.ndarray) -> None:
    """Answers all questions of all windows of a view.

    Args:
        asked: The questions.
        facts: Events that were known at once.
        late: Events that became known after their event time.
        work: What is computed.
        empty: Shape (columns,): what a question about a key without events gets.
        out: Shape (rows, columns), written where a row asks.
    """
    n_inputs, n_codes, n_slots, n_added = work.shape[0], work.shape[1], work.shape[2], work.shape[3]
    n_windows, n_trackers, width = work.bounds.shape[0], work.trackers.shape[0], work.rows.shape[0]
    shift = work.shape[5]
    fields = work.fields
    cap, late_cap = 0, 0
    for k in range(asked.start.shape[0] - 1):
        if asked.start[k] < asked.start[k + 1]:
            cap = max(cap, facts.start[k + 1] - facts.start[k])
            late_cap = max(late_cap, late.start[k + 1] - late.start[k])
    prefix = np.zeros((cap + 1, n_added))
    one = np.zeros(n_slots)
    none = np.zeros(n_slots)
    fill_nothing(fields, none)
    state = np.zeros((n_windows, n_slots))
    centre = np.zeros(n_inputs)
    squares = np.zeros(n_inputs)
    least = np.empty((n_inputs, 2 * cap if (work.slot[LEAST] >= 0).any() else 0))
    most = np.empty((n_inputs, 2 * cap if (work.slot[MOST] >= 0).any() else 0))
    following = np.empty((n_inputs, cap + 1 if (work.slot[EARLIEST] >= 0).any() else 0), np.int64)
    former = np.empty((n_inputs, cap + 1 if (work.slot[LATEST] >= 0).any() else 0), np.int64)
    present = np.empty((n_inputs, cap if work.recents.shape[0] else 0), np.int64)
    tree = np.empty((2 * late_cap, n_slots))
    is_in = np.zeros(late_cap, np.bool_)
    n_different = np.zeros(max(n_codes, 1), np.int64)
    different = np.empty((n_codes, cap + late_cap), np.int64)
    codes = np.empty((n_codes, cap), np.int64)
    late_codes = np.empty((n_codes, late_cap), np.int64)
    counts = np.zeros((n_trackers, cap + late_cap if n_trackers else 0), np.int64)
    best = np.zeros((n_trackers, cap + late_cap if work.shape[4] else 0), np.int64)
    distinct = np.zeros(max(n_trackers, 1), np.int64)
    nodes = np.empty(work.shape[4] * 64 + 64, np.int64)
    leaves = np.empty(work.shape[4] + 1, np.int64)
    tops = np.empty((n_trackers, work.shape[4]))
    low = np.zeros(n_windows, np.int64)
    late_low = np.zeros(n_windows, np.int64)
    values = np.empty(width)
    bits = np.empty(1, np.int64)
    as_float = bits.view(np.float64)
    for k in range(asked.start.shape[0] - 1):
        if asked.start[k] == asked.start[k + 1]:
            continue
        first, late_first = facts.start[k], late.start[k]
        n, m = facts.start[k + 1] - first, late.start[k + 1] - late_first
        if n + m == 0:
            for q in range(asked.start[k], asked.start[k + 1]):
                out[asked.order[q]] = empty
            continue

        # What the key's events are aggregated by.
        for c in range(n_inputs):
            centre[c] = 0.0
            if work.slot[CENTRED, c] >= 0:
                centre[c] = _first_value(facts, first, n, late, late_first, m, c)
        if n_added:
            for f in range(fields.shape[0]):
                kind, c, slot = fields[f, 0], fields[f, 1], fields[f, 2]
                if kind == HAVE:
                    for i in range(n):
                        value = facts.floats[first + i, c]
                        prefix[i + 1, slot] = prefix[i, slot] + (1.0 if value == value else 0.0)
                elif kind <= SQUARES:
                    for i in range(n):
                        value = facts.floats[first + i, c]
                        high, low_part = 0.0, 0.0
                        if value == value:
                            high = value
                            if kind != TOTAL:
                                high, low_part = difference_two(value, centre[c])
                                if kind == SQUARES:
                                    high, low_part = square_two(high, low_part)
                        prefix[i + 1, slot], prefix[i + 1, slot + 1] = add_two(
                            prefix[i, slot], prefix[i, slot + 1], high, low_part
                        )
        for c in range(n_inputs):
            if work.slot[LEAST, c] >= 0:
                for i in range(n):
                    value = facts.floats[first + i, c]
                    least[c, n + i] = -value if value == value else -np.inf
                for i in range(n - 1, 0, -1):
                    least[c, i] = max(least[c, 2 * i], least[c, 2 * i + 1])
            if work.slot[MOST, c] >= 0:
                for i in range(n):
                    value = facts.floats[first + i, c]
                    most[c, n + i] = value if value == value else -np.inf
                for i in range(n - 1, 0, -1):
                    most[c, i] = max(most[c, 2 * i], most[c, 2 * i + 1])
            if work.slot[EARLIEST, c] >= 0:
                following[c, n] = n
                for i in range(n - 1, -1, -1):
                    value = facts.floats[first + i, c]
                    following[c, i] = i if value == value else following[c, i + 1]
            if work.slot[LATEST, c] >= 0:
                former[c, 0] = -1
                for i in range(n):
                    value = facts.floats[first + i, c]
                    former[c, i + 1] = i if value == value else former[c, i]
            if present.shape[1]:
                r = 0
                for i in range(n):
                    if facts.floats[first + i, c] == facts.floats[first + i, c]:
                        present[c, r] = i
                        r += 1
        for c in range(n_codes):
            size = collect_codes(facts.words, first, first + n, n_inputs + c, different[c], 0)
            size = collect_codes(late.words, late_first, late_first + m, n_inputs + c, different[c], size)
            n_different[c] = size = keep_different(different[c], size)
            number_codes(facts.words, first, first + n, n_inputs + c, different[c], size, codes[c])
            number_codes(late.words, late_first, late_first + m, n_inputs + c, different[c], size, late_codes[c])
        for r in range(n_trackers):
            distinct[r] = 0
            size = n_different[work.trackers[r, 1]]
            counts[r, :size] = 0
            if work.trackers[r, 2]:
                lead(best[r], size)
        for i in range(2 * m):
            tree[i] = none
        is_in[:m] = False
        waiting = np.argsort(late.known[late_first : late_first + m], kind="mergesort")
        next_late = 0
        head, late_head = 0, 0
        low[:] = 0
        late_low[:] = 0

        for q in range(asked.start[k], asked.start[k + 1]):
            row = asked.order[q]
            time = asked.time[row]
            limit = time - shift
            old_head, old_late_head = head, late_head
            while head < n and facts.time[first + head] < limit:
                head += 1
            while late_head < m and late.time[late_first + late_head] < limit:
                late_head += 1
            for w in range(n_windows):
                begin = (time - work.bounds[w, 0]) // work.bounds[w, 1] * work.bounds[w, 1]
                old_low, old_late_low = low[w], late_low[w]
                while low[w] < head and facts.time[first + low[w]] < begin:
                    low[w] += 1
                while late_low[w] < late_head and late.time[late_first + late_low[w]] < begin:
                    late_low[w] += 1
                for r in range(n_trackers):
                    if work.trackers[r, 0] != w:
                        continue
                    c, is_top = work.trackers[r, 1], work.trackers[r, 2]
                    size = n_different[c]
                    for i in range(old_low, min(low[w], old_head)):
                        distinct[r] += change(counts[r], best[r], size, codes[c, i], -1, is_top)
                    for i in range(max(old_head, low[w]), head):
                        distinct[r] += change(counts[r], best[r], size, codes[c, i], 1, is_top)
                    # What is in the tree before this question's news came in while it was inside the window.
                    for i in range(old_late_low, min(late_low[w], old_late_head)):
                        if is_in[i]:
                            distinct[r] += change(counts[r], best[r], size, late_codes[c, i], -1, is_top)
            while next_late < m and late.known[late_first + waiting[next_late]] <= time:
                i = waiting[next_late]
                next_late += 1
                is_in[i] = True
                fill_leaf(fields, late.floats, late_first + i, centre, i, tree[m + i])
                mend(tree, m, i, fields)
                for r in range(n_trackers):
                    if late_low[work.trackers[r, 0]] <= i:
                        c = work.trackers[r, 1]
                        distinct[r] += change(
                            counts[r], best[r], n_different[c], late_codes[c, i], 1, work.trackers[r, 2]
                        )
            for w in range(n_windows):
                a = low[w]
                if m:
                    one[:] = none
                    gather(tree, m, late_low[w], late_head, fields, one)
                state[w, n_slots - 1] = head - a + (one[n_slots - 1] if m else 0.0)
                for f in range(fields.shape[0]):
                    if not work.uses[w, f]:
                        continue
                    kind, c, slot = fields[f, 0], fields[f, 1], fields[f, 2]
                    if kind == HAVE:
                        state[w, slot] = prefix[head, slot] - prefix[a, slot] + (one[slot] if m else 0.0)
                    elif kind <= SQUARES:
                        high, low_part = add_two(
                            prefix[head, slot], prefix[head, slot + 1], -prefix[a, slot], -prefix[a, slot + 1]
                        )
                        if m:
                            high, low_part = add_two(high, low_part, one[slot], one[slot + 1])
                        state[w, slot] = high
                        state[w, slot + 1] = low_part
                        if kind == SQUARES:
                            squares[c] = prefix[head, slot]
                    elif kind == LEAST:
                        found = -largest_in(least[c], n, a, head)
                        state[w, slot] = min(found, one[slot]) if m else found
                    elif kind == MOST:
                        found = largest_in(most[c], n, a, head)
                        state[w, slot] = max(found, one[slot]) if m else found
                    else:
                        i = following[c, a] if kind == EARLIEST else former[c, head]
                        there = i < head if kind == EARLIEST else i >= a
                        value = facts.floats[first + i, c] if there else np.nan
                        if m and abs(one[slot]) != np.inf:
                            j = late_first + np.int64(one[slot])
                            if not there or (late.place[j] < facts.place[first + i]) == (kind == EARLIEST):
                                value = late.floats[j, c]
                        state[w, slot] = value
            for r in range(n_trackers):
                if work.trackers[r, 2]:
                    c = work.trackers[r, 1]
                    found_n = most_frequent(counts[r], best[r], n_different[c], work.trackers[r, 2], nodes, leaves)
                    for rank in range(work.trackers[r, 2]):
                        tops[r, rank] = np.nan
                        if rank < found_n:
                            code = different[c, leaves[rank]]
                            bits[0] = code ^ ((code >> 63) & _MAGNITUDE)
                            tops[r, rank] = as_float[0]
            for g in range(work.recents.shape[0]):
                w, c = work.recents[g, 0], work.recents[g, 1]
                slot = work.slot[HAVE, c]
                _recent(
                    work.recents[g],
                    facts,
                    late,
                    first,
                    late_first,
                    present[c],
                    np.int64(prefix[head, slot]),
                    np.int64(prefix[low[w], slot]),
                    tree,
                    m,
                    late_low[w],
                    late_head,
                    work.slot[LATEST, c],
                    values,
                )
            _emit(work, state, squares, distinct, tops, values)
            for i in range(work.kept.shape[0]):
                out[row, i] = values[work.kept[i]]
