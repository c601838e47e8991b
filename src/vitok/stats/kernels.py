"""Compiled loops. Import this module inside the function that needs it: numba takes half a second to load."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

# So many rows of a row-major matrix are counted column by column while they lie in the processor's cache.
_ROWS_AT_ONCE = 512


@njit(cache=True, nogil=True)
def count_column(
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    table: NDArray[np.int32],
    low: float,
    per_unit: float,
    counts: NDArray[np.int64],
) -> None:
    """Adds the histogram of one column to `counts`, laid out as `FrozenEdges.count` does.

    `table[c]` is how many edges lie at or below the start of the cell before c (a cell earlier than need be, since
    the cell of a value is found by a rounded product), and the last item how many there are.
    """
    n_edges = len(edges)
    cells = len(table) - 2
    for row in range(len(values)):
        x = np.float64(values[row])
        if x != x:
            counts[0] += 1
            continue
        cell = (x - low) * per_unit
        if cell < 0.0:
            place, last = 0, table[1]
        elif cell < cells:
            at = int(cell)
            place, last = table[at], table[at + 2]
        elif x == np.inf:
            counts[n_edges + 3] += 1
            continue
        else:
            place, last = table[cells], n_edges
        while last - place > 4:
            middle = (place + last) >> 1
            if edges[middle] <= x:
                place = middle + 1
            else:
                last = middle
        while place < n_edges and edges[place] <= x:
            place += 1
        if place == 0 and x == -np.inf:
            counts[1] += 1
        else:
            counts[place + 2] += 1


@njit(cache=True, nogil=True)
def count_columns(
    X: NDArray[np.float64],
    edges: NDArray[np.float64],
    edge_offsets: NDArray[np.int64],
    tables: NDArray[np.int32],
    lows: NDArray[np.float64],
    per_unit: NDArray[np.float64],
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
                tables[column],
                lows[column],
                per_unit[column],
                counts[count_offsets[column] : count_offsets[column + 1]],
            )
