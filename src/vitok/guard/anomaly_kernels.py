"""Compiled loops of the anomaly score. Import this module inside the function that needs it.

Tables are packed into two arrays, as a call with ten costs more than scoring a row. A line of `plan` is a column: its
number, how many edges it has, how many there are with the padding (2^k - 1, padded with infinity), and where it
begins in `table`: mean excess of the lowest and of the highest cell, edges with
padding, surprise of each bin. It is unsigned, as a signed index is looked at for being negative each time.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

# Up to so many edges it is faster to count, several at a time, than to search: a search waits for each of its
# comparisons. The open cells are rare, and left to the function that knows about them.
_FEW = 255

Floats = NDArray[np.float64]
Places = NDArray[np.uintp]
Flags = NDArray[np.bool_]


@njit(cache=True, nogil=True)
def surprise_of(x: float, n_edges: np.uintp, padded: np.uintp, start: np.uintp, table: Floats) -> float:
    """Returns how rare the bin of x is, and how far out x lies where the bin is open to that side."""
    one, two = np.uintp(1), np.uintp(2)
    edges = start + two
    bins = edges + padded
    if not abs(x) < np.inf:
        if x != x:
            return table[bins]
        return table[bins + one] if x < 0 else table[bins + one + two + n_edges]
    place = np.uintp(0)
    half = (padded + one) >> one
    while half > 0:
        if table[edges + place + half - one] <= x:
            place += half
        half >>= one
    surprise = table[bins + two + place]
    if n_edges > 0:
        if place == 0:
            surprise += 2.0 * np.log1p(min((table[edges] - x) / table[start], 1e300))
        elif place == n_edges:
            surprise += 2.0 * np.log1p(min((x - table[edges + n_edges - one]) / table[start + one], 1e300))
    return surprise


@njit(cache=True, nogil=True)
def score_rows(
    X: Floats, plan: Places, table: Floats, limits: tuple[float, float], scores: Floats, flagged: Flags
) -> int:
    """Writes the sum and the largest of the surprises of each row into `scores`, shape (2, n).

    Returns:
        How many rows are flagged.
    """
    n = 0
    two = np.uintp(2)
    for row in range(X.shape[0]):
        total, largest = 0.0, 0.0
        for at in range(len(plan)):
            x, n_edges, padded, start = np.float64(X[row, plan[at, 0]]), plan[at, 1], plan[at, 2], plan[at, 3]
            place = np.uintp(0)
            if padded <= _FEW and abs(x) < np.inf:
                for edge in range(padded):
                    place += np.uintp(table[start + two + np.uintp(edge)] <= x)
            if 0 < place < n_edges:
                one = table[start + two + padded + two + place]
            else:
                one = surprise_of(x, n_edges, padded, start, table)
            total += one
            largest = max(largest, one)
        scores[0, row] = total
        scores[1, row] = largest
        flagged[row] = total > limits[0] or largest > limits[1]
        n += flagged[row]
    return n
