"""Kernels that number keys and put rows into the order of key and time."""

import numpy as np
from numba import njit, uint64

_RUN = 16  # shorter stretches are sorted by insertion


@njit(cache=True, inline="always")
def _slot(first: int, second: int, mask: int) -> int:
    word = uint64(first) * uint64(0x9E3779B97F4A7C15) ^ uint64(second) * uint64(0xC2B2AE3D27D4EB4F)
    word = (word ^ (word >> uint64(32))) * uint64(0xD6E8FEB86659FD93)
    return int(np.int64((word ^ (word >> uint64(29))) & uint64(mask)))


@njit(cache=True)
def number_keys(table: np.ndarray, codes: np.ndarray, n: int, words: np.ndarray, out: np.ndarray) -> int:
    """Gives each key its number, a new one where it was not seen before; out -1 stands for no key and stays.

    Args:
        table: Shape (size, 2), int64: keys by slot; more than twice as many as there will be keys, a power of two.
        codes: Shape (size,), int32: number of the key in each slot, -1 where there is none.
        n: Keys so far.
        words: Shape (rows, 2), int64: the keys of the rows.
        out: Shape (rows,), int32: written where it is not -1.

    Returns:
        Keys afterwards.
    """
    mask = codes.shape[0] - 1
    for i in range(words.shape[0]):
        if out[i] == -1:
            continue
        first, second = words[i, 0], words[i, 1]
        slot = _slot(first, second, mask)
        while codes[slot] >= 0 and (table[slot, 0] != first or table[slot, 1] != second):
            slot = (slot + 1) & mask
        if codes[slot] < 0:
            codes[slot] = n
            table[slot, 0] = first
            table[slot, 1] = second
            n += 1
        out[i] = codes[slot]
    return n


@njit(cache=True)
def find_keys(table: np.ndarray, codes: np.ndarray, words: np.ndarray, out: np.ndarray) -> int:
    """Writes the number of each key, -1 where it was never seen; returns how many were."""
    mask = codes.shape[0] - 1
    found = 0
    for i in range(words.shape[0]):
        first, second = words[i, 0], words[i, 1]
        slot = _slot(first, second, mask)
        while codes[slot] >= 0 and (table[slot, 0] != first or table[slot, 1] != second):
            slot = (slot + 1) & mask
        out[i] = codes[slot]
        found += codes[slot] >= 0
    return found


@njit(cache=True)
def move_keys(table: np.ndarray, codes: np.ndarray, larger_table: np.ndarray, larger_codes: np.ndarray) -> None:
    """Moves the keys of a table into a larger one."""
    mask = larger_codes.shape[0] - 1
    for i in range(codes.shape[0]):
        if codes[i] >= 0:
            slot = _slot(table[i, 0], table[i, 1], mask)
            while larger_codes[slot] >= 0:
                slot = (slot + 1) & mask
            larger_codes[slot] = codes[i]
            larger_table[slot] = table[i]


@njit(cache=True)
def part_of(words: np.ndarray, parts: int, out: np.ndarray) -> None:
    """Writes the partition of each key, 0 up to `parts`."""
    for i in range(words.shape[0]):
        out[i] = _slot(words[i, 1], words[i, 0], 0x7FFFFFFFFFFF) % parts


@njit(cache=True)
def group(codes: np.ndarray, start: np.ndarray, order: np.ndarray) -> None:
    """Orders rows by the number of their key, stably and in linear time; rows without a key are left out.

    Args:
        codes: Shape (rows,), int32; -1 for no key.
        start: Shape (keys + 1,), int64, written: where each key's rows begin in `order`.
        order: Shape (rows with a key,), written.
    """
    start[:] = 0
    for i in range(codes.shape[0]):
        if codes[i] >= 0:
            start[codes[i] + 1] += 1
    for k in range(start.shape[0] - 1):
        start[k + 1] += start[k]
    # Each key's own start moves on to the start of the next key while its rows are dealt out.
    for i in range(codes.shape[0]):
        if codes[i] >= 0:
            order[start[codes[i]]] = i
            start[codes[i]] += 1
    for k in range(start.shape[0] - 1, 0, -1):
        start[k] = start[k - 1]
    start[0] = 0


@njit(cache=True, inline="always")
def _is_after(ranks: np.ndarray, i: int, j: int) -> bool:
    for r in range(ranks.shape[1]):
        if ranks[i, r] != ranks[j, r]:
            return ranks[i, r] > ranks[j, r]
    return False


@njit(cache=True)
def _sort_stretch(ranks: np.ndarray, first: int, n: int, places: np.ndarray, other: np.ndarray) -> None:
    # Stable merge sort of rows first .. first + n; their sorted places are left in `places`.
    for i in range(n):
        places[i] = first + i
    for begin in range(0, n, _RUN):
        for i in range(begin + 1, min(begin + _RUN, n)):
            place = places[i]
            j = i
            while j > begin and _is_after(ranks, places[j - 1], place):
                places[j] = places[j - 1]
                j -= 1
            places[j] = place
    width = _RUN
    while width < n:
        for begin in range(0, n - width, 2 * width):
            middle, end = begin + width, min(begin + 2 * width, n)
            if not _is_after(ranks, places[middle - 1], places[middle]):
                continue
            for i in range(begin, middle):
                other[i] = places[i]
            i, j, k = begin, middle, begin
            while i < middle:
                if j < end and _is_after(ranks, other[i], places[j]):
                    places[k] = places[j]
                    j += 1
                else:
                    places[k] = other[i]
                    i += 1
                k += 1
        width *= 2


@njit(cache=True)
def sort_groups(start: np.ndarray, order: np.ndarray, ranks: np.ndarray) -> None:
    """Sorts the rows of each key by their ranks, stably; what is sorted already costs one look.

    Args:
        start: Shape (keys + 1,): where each key's rows begin.
        order: Shape (rows,), int64: sorted along.
        ranks: Shape (rows, ranks), int64: the first column decides, the next one among equals; sorted in place.
    """
    longest = 0
    for k in range(start.shape[0] - 1):
        longest = max(longest, start[k + 1] - start[k])
    places = np.empty(0, np.int64)
    other = np.empty(0, np.int64)
    old_order = np.empty(0, np.int64)
    old_ranks = np.empty((0, 0), np.int64)
    for k in range(start.shape[0] - 1):
        first, last = start[k], start[k + 1]
        is_sorted = True
        for i in range(first + 1, last):
            if _is_after(ranks, i - 1, i):
                is_sorted = False
                break
        if is_sorted:
            continue
        if places.shape[0] == 0:
            places = np.empty(longest, np.int64)
            other = np.empty(longest, np.int64)
            old_order = np.empty(longest, np.int64)
            old_ranks = np.empty((longest, ranks.shape[1]), np.int64)
        n = last - first
        _sort_stretch(ranks, first, n, places, other)
        for i in range(n):
            old_order[i] = order[first + i]
            for r in range(ranks.shape[1]):
                old_ranks[i, r] = ranks[first + i, r]
        for i in range(n):
            order[first + i] = old_order[places[i] - first]
            for r in range(ranks.shape[1]):
                ranks[first + i, r] = old_ranks[places[i] - first, r]


@njit(cache=True)
def newest(
    question_start: np.ndarray,
    question_order: np.ndarray,
    question_time: np.ndarray,
    start: np.ndarray,
    order: np.ndarray,
    ranks: np.ndarray,
    has_known: bool,  # noqa: FBT001 - numba takes no keywords
    shift: int,
    max_age: int,
    out: np.ndarray,
) -> None:
    """Finds the newest row that each question may see.

    Rows known at once are met by one pointer that moves with the questions. A row that came to be known after its
    event time waits in a second list, ordered by that moment; what was met last in the order of rows answers.

    Args:
        question_start: Shape (keys + 1,).
        question_order: Shape (questions,): questions by key, then time.
        question_time: Shape (all questions,), int64.
        start: Shape (keys + 1,).
        order: Shape (rows,): rows by key, then rank.
        ranks: Shape (rows, ranks), in that order: event time, and when it became known.
        has_known: Whether the second rank decides what may be seen.
        shift: A question at t sees rows with event time < t - shift.
        max_age: How old a row may be; 0 for any age.
        out: Shape (all questions,), int64, written where there is an answer: the row.
    """
    late = np.empty(64, np.int64)
    known = np.empty(64, np.int64)
    for k in range(start.shape[0] - 1):
        first, last = start[k], start[k + 1]
        if first == last or question_start[k] == question_start[k + 1]:
            continue
        n_late = 0
        if has_known:
            for i in range(first, last):
                if ranks[i, 1] > ranks[i, 0]:
                    if n_late == late.shape[0]:
                        late = np.concatenate((late, late))
                        known = np.concatenate((known, known))
                    late[n_late] = i
                    known[n_late] = ranks[i, 1]
                    n_late += 1
        waiting = np.argsort(known[:n_late], kind="mergesort")
        head, next_late = first, 0
        best = np.int64(-1)
        for q in range(question_start[k], question_start[k + 1]):
            row = question_order[q]
            time = question_time[row]
            while head < last and ranks[head, 0] < time - shift:
                if not has_known or ranks[head, 1] <= ranks[head, 0]:
                    best = max(best, head)
                head += 1
            while next_late < n_late and known[waiting[next_late]] <= time:
                best = max(best, late[waiting[next_late]])
                next_late += 1
            if best >= 0 and (max_age == 0 or time - ranks[best, 0] <= max_age):
                out[row] = order[best]
