"""The compiled loop that looks at each number of a matrix once."""

import numpy as np
from numba import njit

NEEDED, FINITE, WHOLE = 1, 2, 4


@njit(cache=True)
def suspects(X: np.ndarray, low: np.ndarray, high: np.ndarray, flags: np.ndarray, out: np.ndarray) -> int:
    """Finds the rows in which a value lies outside its bounds, lacks, is not finite or not whole, as its flags say.

    Args:
        X: Shape (n, k); NaN where a value is missing.
        low: Least value of each column, shape (k,).
        high: Largest value of each column, shape (k,).
        flags: Sums of NEEDED, FINITE and WHOLE, shape (k,).
        out: Shape (n,), int64: receives the places of the rows found, in order.

    Returns:
        How many were found.
    """
    n_found = 0
    for i in range(X.shape[0]):
        bad = False
        for j in range(X.shape[1]):
            value = X[i, j]
            # One comparison passes almost every value; NaN and infinities fail it.
            if low[j] <= value <= high[j]:
                if flags[j] & WHOLE and value != np.floor(value):
                    bad = True
            elif value != value:
                if flags[j] & NEEDED:
                    bad = True
            elif abs(value) == np.inf:
                if flags[j] & (FINITE | WHOLE):
                    bad = True
            else:
                bad = True
        if bad:
            out[n_found] = i
            n_found += 1
    return n_found
