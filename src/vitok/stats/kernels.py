"""Compiled loops. Import this module inside the function that needs it: numba takes half a second to load."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

# numba's cache notes the text of this file only: where the value there changes, this file must change as well.
from vitok.stats.histograms import LANE

# So many rows of a row-major matrix are counted column by column while they lie in the processor's cache.
_ROWS_AT_ONCE = 512

_MOST_AT_ONCE = 4 * LANE


@njit(cache=True, nogil=True)
def count_column(values: NDArray[np.float64], edges: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
    """Adds the histogram of one column to `counts`, laid out as `FrozenEdges.count` does.

    `edges` ends with infinities, as many as make its length a multiple of `LANE`.
    """
    n_edges = len(counts) - 4
    padded = len(edges)
    for row in range(len(values)):
        x = np.float64(values[row])
        if not abs(x) < np.inf:
            if x != x:
                counts[0] += 1
            elif x < 0.0:
                counts[1] += 1
            else:
                counts[n_edges + 3] += 1
            continue
        first, last = 0, padded
        while last - first > _MOST_AT_ONCE:
            middle = (first + last) // (2 * LANE) * LANE
            if edges[middle] <= x:
                first = middle
            else:
                last = middle
        place = first
        for k in range(last - first):
            # Without a sign: the compiler makes vector instructions only where no index can count from the end.
            place += edges[np.uintp(first + k)] <= x
        counts[place + 2] += 1


@njit(cache=True, nogil=True)
def count_columns(
    X: NDArray[np.float64],
    edges: NDArray[np.float64],
    edge_offsets: NDArray[np.int64],
    count_offsets: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Adds the histogram of each column of X to its stretch of `counts`, in one pass over the rows."""
    n_rows, n_columns = X.shape
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        rows = X[start : start + _ROWS_AT_ONCE]
        for column in range(n_columns):
            count_column(
                rows[:, column],
                edges[edge_offsets[column] : edge_offsets[column + 1]],
                counts[count_offsets[column] : count_offsets[column + 1]],
            )
