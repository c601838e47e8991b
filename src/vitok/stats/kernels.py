"""Compiled loops. Import this module inside the function that needs it: numba takes half a second to load."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True)
def count_columns(
    X: NDArray[np.float64],
    edges: NDArray[np.float64],
    edge_offsets: NDArray[np.int64],
    count_offsets: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Adds the histogram of each column of X to its stretch of `counts`, laid out as `FrozenEdges.count` does."""
    n_rows, n_columns = X.shape
    for column in range(n_columns):
        first, last = edge_offsets[column], edge_offsets[column + 1]
        base = count_offsets[column]
        n_edges = last - first
        for row in range(n_rows):
            x = np.float64(X[row, column])
            if x != x:
                counts[base] += 1
            elif x == -np.inf:
                counts[base + 1] += 1
            elif x == np.inf:
                counts[base + 3 + n_edges] += 1
            else:
                low, size = first, n_edges
                while size > 0:
                    half = size >> 1
                    if edges[low + half] <= x:
                        low += half + 1
                        size -= half + 1
                    else:
                        size = half
                counts[base + 2 + low - first] += 1
