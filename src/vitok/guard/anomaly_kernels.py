"""Compiled loops of the anomaly score. Import this module inside the function that needs it.

Tables are packed into two arrays, as a call with ten costs more than scoring a row. A line of `plan` is a column: its
number, how many edges it has, how many there are with the padding (2^k - 1, padded with infinity, so that the search
always takes k steps), and where it begins in `table`: mean excess of the lowest and of the highest cell, edges with
padding, surprise of each bin. It is unsigned, as a signed index is looked at for being negative each time.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

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
    found = edges
    half = (padded + one) >> one
    while half > 0:
        if table[found + half - one] <= x:
            found += half
        half >>= one
    place = found - edges
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
) -> None:
    """Writes the sum and the largest of the surprises of each row into `scores`, shape (2, n)."""
    for row in range(X.shape[0]):
        total, largest = 0.0, 0.0
        for at in range(len(plan)):
            one = surprise_of(np.float64(X[row, plan[at, 0]]), plan[at, 1], plan[at, 2], plan[at, 3], table)
            total += one
            largest = max(largest, one)
        scores[0, row] = total
        scores[1, row] = largest
        flagged[row] = total > limits[0] or largest > limits[1]
