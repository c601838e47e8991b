"""How often each value came in a window: different ones, and the most frequent."""

import numpy as np
from numba import njit

_ABSENT = np.int64(-(2**63))
_MAGNITUDE = np.int64(0x7FFFFFFFFFFFFFFF)


@njit(cache=True)
def collect_codes(words: np.ndarray, first: int, last: int, column: int, out: np.ndarray, n: int) -> int:
    """Adds the codes of some events to `out` from place `n` on, turned so that they sort as the floats they stand for.

    Args:
        words: Shape (events, any): codes in one of the columns.
        first: The first event.
        last: The one after the last.
        column: Which column.
        out: Shape (any,), written.
        n: Codes in `out` before.

    Returns:
        Codes in `out` afterwards.
    """
    for i in range(first, last):
        code = words[i, column]
        if code != _ABSENT:
            out[n] = code ^ ((code >> 63) & _MAGNITUDE)
            n += 1
    return n


@njit(cache=True)
def keep_different(codes: np.ndarray, n: int) -> int:
    """Sorts the first `n` codes and leaves each once; returns how many are left."""
    codes[:n].sort()
    kept = 0
    for i in range(n):
        if i == 0 or codes[i] != codes[kept - 1]:
            codes[kept] = codes[i]
            kept += 1
    return kept


@njit(cache=True)
def number_codes(
    words: np.ndarray, first: int, last: int, column: int, different: np.ndarray, n: int, out: np.ndarray
) -> None:
    """Writes the place of each event's code among the `n` different ones, -1 where it has none."""
    for i in range(first, last):
        code = words[i, column]
        if code == _ABSENT:
            out[i - first] = -1
            continue
        code = code ^ ((code >> 63) & _MAGNITUDE)
        low, high = 0, n - 1
        while low < high:
            middle = (low + high) >> 1
            if different[middle] < code:
                low = middle + 1
            else:
                high = middle
        out[i - first] = low


@njit(cache=True)
def lead(best: np.ndarray, n: int) -> None:
    """Sets the leaders of all subtrees where nothing is counted yet: the smallest value of each."""
    for node in range(n - 1, 0, -1):
        left = 2 * node - n if 2 * node >= n else best[2 * node]
        right = 2 * node + 1 - n if 2 * node + 1 >= n else best[2 * node + 1]
        best[node] = min(left, right)


@njit(cache=True)
def change(counts: np.ndarray, best: np.ndarray, n: int, code: int, by: int, is_top: int) -> int:
    """Counts one value in or out.

    Args:
        counts: Shape (values,): how often each came.
        best: Shape (values,): the leader of each subtree over the values; kept where the most frequent are asked for.
        n: Values.
        code: Which value; -1 for none.
        by: 1 or -1.
        is_top: Not 0 where the most frequent are asked for.

    Returns:
        By how much the number of different values changed.
    """
    if code < 0:
        return 0
    before = counts[code]
    counts[code] = before + by
    if is_top:
        node = (n + code) >> 1
        while node >= 1:
            left = 2 * node - n if 2 * node >= n else best[2 * node]
            right = 2 * node + 1 - n if 2 * node + 1 >= n else best[2 * node + 1]
            # The more frequent one, and of equals the smaller value, which has the smaller number.
            if counts[right] > counts[left] or (counts[right] == counts[left] and right < left):
                left = right
            best[node] = left
            node >>= 1
    return 1 if before == 0 else -1 if before + by == 0 else 0


@njit(cache=True)
def most_frequent(counts: np.ndarray, best: np.ndarray, n: int, k: int, nodes: np.ndarray, out: np.ndarray) -> int:
    """Finds the most frequent values, and of equals the smaller one first.

    The best leader of some subtrees is taken, and its subtree split along the way to it.

    Args:
        counts: Shape (values,).
        best: Shape (values,), as `change` left it.
        n: Values.
        k: How many to find.
        nodes: Room for k times 64 nodes and one.
        out: Shape (k,), written: the values.

    Returns:
        How many were found.
    """
    size = 0
    if n > 0:
        nodes[0] = 1
        size = 1
    for rank in range(k):
        chosen, leaf = -1, -1
        for i in range(size):
            other = nodes[i] - n if nodes[i] >= n else best[nodes[i]]
            if leaf < 0 or counts[other] > counts[leaf] or (counts[other] == counts[leaf] and other < leaf):
                chosen, leaf = i, other
        if leaf < 0 or counts[leaf] == 0:
            return rank
        out[rank] = leaf
        node = nodes[chosen]
        size -= 1
        nodes[chosen] = nodes[size]
        while node < n:
            left = 2 * node - n if 2 * node >= n else best[2 * node]
            step = 2 * node if left == leaf else 2 * node + 1
            nodes[size] = 4 * node + 1 - step
            size += 1
            node = step
    return k
