"""Compiled loops of the Venn-Abers calibrator."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)
def chains(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Links the lower convex hulls of all prefixes and all suffixes of points ascending in x.

    Returns:
        `before[i]`: the vertex left of i on the hull of the points up to i, -1 for none; `after[i]`: the vertex right
        of i on the hull of the points from i on.
    """
    k = len(x)
    before = np.full(k, -1, np.int64)
    after = np.full(k, -1, np.int64)
    for i in range(1, k):
        j = i - 1
        while before[j] >= 0:
            h = before[j]
            if (y[j] - y[h]) * (x[i] - x[j]) < (y[i] - y[j]) * (x[j] - x[h]):
                break
            j = h
        before[i] = j
    for i in range(k - 2, -1, -1):
        j = i + 1
        while after[j] >= 0:
            h = after[j]
            if (y[j] - y[i]) * (x[h] - x[j]) < (y[h] - y[j]) * (x[j] - x[i]):
                break
            j = h
        after[i] = j
    return before, after


@njit(cache=True)
def inserted_slopes(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    label: float,
) -> NDArray[np.float64]:
    """Returns the isotonic value of one more row of weight 1 with this label at each place.

    The row stands between the cumulated sums `left[q]` and `right[q]`: the same index in a gap, the next one where it
    joins rows of equal score. The value is the slope of the line that touches the hulls on both sides from below.
    """
    found = np.empty(len(left))
    for q in range(len(left)):
        a, b = left[q], right[q]
        while True:
            width = x[b] + 1.0 - x[a]
            height = y[b] + label - y[a]
            moved = False
            h = before[a]
            if h >= 0 and (y[a] - y[h]) * width > height * (x[a] - x[h]):
                a = h
                moved = True
                width = x[b] + 1.0 - x[a]
                height = y[b] + label - y[a]
            g = after[b]
            if g >= 0 and (y[g] - y[b]) * width < height * (x[g] - x[b]):
                b = g
                moved = True
            if not moved:
                break
        found[q] = (y[b] + label - y[a]) / (x[b] + 1.0 - x[a])
    return found
