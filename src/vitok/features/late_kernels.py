"""Events that became known after their event time: a tree over them, which each one enters when it becomes known.

A leaf holds what one event gives; a node what those below it give together.
"""

import numpy as np
from numba import njit

from vitok.features.two_float_kernels import add_two, difference_two, square_two

# What is kept of an input: how many values, their sum, sum and sum of squares about the key's first value (two floats
# each), extremes, and where the first and the last one stand.
HAVE, TOTAL, CENTRED, SQUARES, LEAST, MOST, EARLIEST, LATEST = range(8)


@njit(cache=True)
def fill_leaf(fields: np.ndarray, floats: np.ndarray, i: int, centre: np.ndarray, index: int, out: np.ndarray) -> None:
    """Writes what one event alone gives each slot.

    Args:
        fields: Shape (fields, 3): what is kept, of which input, in which slot.
        floats: Shape (events, any): inputs.
        i: Which event.
        centre: Shape (inputs,): the key's first values.
        index: What stands for its place.
        out: Shape (slots,), written; the last slot counts events.
    """
    out[-1] = 1.0
    for f in range(fields.shape[0]):
        kind, slot = fields[f, 0], fields[f, 2]
        value = floats[i, fields[f, 1]]
        there = value == value
        if kind == HAVE:
            out[slot] = 1.0 if there else 0.0
        elif kind == TOTAL:
            out[slot] = value if there else 0.0
            out[slot + 1] = 0.0
        elif kind in (CENTRED, SQUARES):
            high, low = 0.0, 0.0
            if there:
                high, low = difference_two(value, centre[fields[f, 1]])
                if kind == SQUARES:
                    high, low = square_two(high, low)
            out[slot] = high
            out[slot + 1] = low
        elif kind == LEAST:
            out[slot] = value if there else np.inf
        elif kind == MOST:
            out[slot] = value if there else -np.inf
        elif kind == EARLIEST:
            out[slot] = index if there else np.inf
        else:
            out[slot] = index if there else -np.inf


@njit(cache=True)
def fill_nothing(fields: np.ndarray, out: np.ndarray) -> None:
    """Writes what no event gives each slot."""
    out[:] = 0.0
    for f in range(fields.shape[0]):
        if fields[f, 0] in (LEAST, EARLIEST):
            out[fields[f, 2]] = np.inf
        elif fields[f, 0] in (MOST, LATEST):
            out[fields[f, 2]] = -np.inf


@njit(cache=True)
def join(fields: np.ndarray, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Joins what two sets of events give; `out` may be one of them."""
    out[-1] = a[-1] + b[-1]
    for f in range(fields.shape[0]):
        kind, slot = fields[f, 0], fields[f, 2]
        if kind == HAVE:
            out[slot] = a[slot] + b[slot]
        elif kind <= SQUARES:
            out[slot], out[slot + 1] = add_two(a[slot], a[slot + 1], b[slot], b[slot + 1])
        elif kind in (LEAST, EARLIEST):
            out[slot] = min(a[slot], b[slot])
        else:
            out[slot] = max(a[slot], b[slot])


@njit(cache=True)
def mend(tree: np.ndarray, n: int, i: int, fields: np.ndarray) -> None:
    """Mends all that lies above leaf `i` of `n`, which has been written."""
    node = (n + i) >> 1
    while node >= 1:
        join(fields, tree[2 * node], tree[2 * node + 1], tree[node])
        node >>= 1


@njit(cache=True)
def gather(tree: np.ndarray, n: int, first: int, last: int, fields: np.ndarray, out: np.ndarray) -> None:
    """Joins the leaves first up to last (without it) to what is in `out`."""
    a, b = first + n, last + n
    while a < b:
        if a & 1:
            join(fields, out, tree[a], out)
            a += 1
        if b & 1:
            b -= 1
            join(fields, out, tree[b], out)
        a >>= 1
        b >>= 1


@njit(cache=True)
def last_in(tree: np.ndarray, n: int, first: int, last: int, slot: int) -> int:
    """Returns the largest value of one slot among the leaves first up to last, -1 where there is none."""
    found = -np.inf
    a, b = first + n, last + n
    while a < b:
        if a & 1:
            found = max(found, tree[a, slot])
            a += 1
        if b & 1:
            b -= 1
            found = max(found, tree[b, slot])
        a >>= 1
        b >>= 1
    return -1 if found == -np.inf else int(found)


@njit(cache=True)
def largest_in(tree: np.ndarray, n: int, first: int, last: int) -> float:
    """Returns the largest among the leaves first up to last of a tree of numbers, -infinity where there is none."""
    found = -np.inf
    a, b = first + n, last + n
    while a < b:
        if a & 1:
            found = max(found, tree[a])
            a += 1
        if b & 1:
            b -= 1
            found = max(found, tree[b])
        a >>= 1
        b >>= 1
    return found
