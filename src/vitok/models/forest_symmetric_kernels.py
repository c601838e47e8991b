"""How rows go through symmetric trees, which ask the same of all nodes of a level, as CatBoost grows them.

A row's leaf is then a number whose bits are the answers, and needs no walk. Rows go in blocks: first each value becomes
the count of thresholds that it is beyond, a byte, for a whole block of rows; then a tree compares bytes, and one
instruction compares those of many rows. Source: Dorogush, Ershov and Gulin, CatBoost: gradient boosting with
categorical features support, 2018, section 4.1; the code is our own. A few rows are compared as they are, without
bytes.

Values are added in the order of the trees, so sums are those of `forest_kernels.score` to the last bit.
"""

import math

import numpy as np
from numba import boolean, float64, from_dtype, int64, njit, types, uint8, void

from vitok.models import forest_kernels as kernels
from vitok.models.forest_symmetric import BIN, TEST, TREE

BLOCK = 256
FEW = 16
"""Up to so many rows are compared as they are."""

_FLOATS = types.Array(float64, 1, "C", readonly=True)
_INTS = types.Array(int64, 1, "C", readonly=True)
_ROWS = types.Array(float64, 2, "C", readonly=True)
_TREES = types.Array(from_dtype(TREE), 1, "C", readonly=True)
_TESTS = types.Array(from_dtype(TEST), 1, "C", readonly=True)
_BINS = types.Array(from_dtype(BIN), 1, "C", readonly=True)


@njit(void(float64[::1], uint8[::1], _FLOATS), cache=True, nogil=True)
def _count_beyond(column: np.ndarray, beyond: np.ndarray, borders: np.ndarray) -> None:
    """Writes for each value how many of the ascending borders it is not at or below; of NaN all."""
    beyond[:] = 0
    for border in borders:
        for r in range(len(column)):
            beyond[r] += np.uint8(1) if not (column[r] <= border) else np.uint8(0)


@njit(inline="always")
def _set_first_bit(beyond: np.ndarray, least: int, bit: int, leaf: np.ndarray) -> None:
    at, mask, none = np.uint8(least), np.uint8(1 << bit), np.uint8(0)
    for r in range(len(leaf)):
        leaf[r] = mask if beyond[r] > at else none


@njit(inline="always")
def _set_bit(beyond: np.ndarray, least: int, bit: int, leaf: np.ndarray) -> None:
    at, mask, none = np.uint8(least), np.uint8(1 << bit), np.uint8(0)
    for r in range(len(leaf)):
        leaf[r] |= mask if beyond[r] > at else none


@njit(void(uint8[:, ::1], _TESTS, int64, int64, uint8[::1], uint8[::1]), cache=True, nogil=True)
def _find_leaves(
    beyond: np.ndarray, tests: np.ndarray, first: int, depth: int, lows: np.ndarray, highs: np.ndarray
) -> None:
    """Writes the number of each row's leaf: its lower eight bits, and those above where there are any."""
    for level in range(depth):
        test = tests[first + level]
        bit = depth - 1 - level
        if bit >= 8:
            if level == 0:
                _set_first_bit(beyond[test.bin], test.least, bit - 8, highs)
            else:
                _set_bit(beyond[test.bin], test.least, bit - 8, highs)
        elif bit == 7 or level == 0:
            _set_first_bit(beyond[test.bin], test.least, bit, lows)
        else:
            _set_bit(beyond[test.bin], test.least, bit, lows)


@njit(void(float64[::1], float64[:, ::1], int64, int64, int64, _INTS, _FLOATS), cache=True, nogil=True)
def _finish(
    out: np.ndarray, sums: np.ndarray, begin: int, n: int, link: int, plan: np.ndarray, numbers: np.ndarray
) -> None:
    k = plan[kernels.N_OUTPUTS]
    divisor, scale = 1.0 if link == kernels.RAW else numbers[kernels.DIVISOR], numbers[kernels.SCALE]
    bias = kernels.START + k
    for r in range(n):
        first = (begin + r) * k
        for j in range(k):
            out[first + j] = sums[j, r] / divisor * scale + numbers[bias + j]
        kernels.apply_link(out, first, k, link, numbers[kernels.SLOPE])


@njit(
    void(_ROWS, float64[::1], int64, kernels.COLUMNS, _INTS, _FLOATS, _FLOATS, _TREES, _TESTS),
    cache=True,
    nogil=True,
)
def _score_few(
    X: np.ndarray,
    out: np.ndarray,
    link: int,
    columns: np.ndarray,
    plan: np.ndarray,
    numbers: np.ndarray,
    values: np.ndarray,
    trees: np.ndarray,
    tests: np.ndarray,
) -> None:
    k = plan[kernels.N_OUTPUTS]
    row = np.empty(max(len(columns), 1))
    sums = np.empty((k, 1))
    for i in range(len(X)):
        if not kernels.read_row(X, i, columns, plan, numbers, row):
            for j in range(i * k, (i + 1) * k):
                out[j] = math.nan
            continue
        for j in range(k):
            sums[j, 0] = numbers[kernels.START + j]
        for t in range(len(trees)):
            first = np.uint64(trees[t].test)
            leaf = np.uint64(0)
            for test in range(first, first + np.uint64(trees[t].depth)):
                right = np.uint64(not (row[tests[test].column] <= tests[test].border))
                leaf = (leaf << np.uint64(1)) | right
            place = np.uint64(trees[t].leaf) + leaf
            if plan[kernels.VECTOR]:
                for j in range(k):
                    sums[j, 0] += values[np.int64(place) * k + j]
            else:
                sums[plan[kernels.TREE_OUTPUT + t], 0] += values[place]
        _finish(out, sums, i, 1, link, plan, numbers)


@njit(
    boolean(_ROWS, int64, kernels.COLUMNS, _INTS, _FLOATS, float64[:, ::1], float64[::1], uint8[::1]),
    cache=True,
    nogil=True,
)
def _read_block(
    X: np.ndarray,
    begin: int,
    columns: np.ndarray,
    plan: np.ndarray,
    numbers: np.ndarray,
    block: np.ndarray,
    row: np.ndarray,
    refused: np.ndarray,
) -> bool:
    """Writes the columns of a block of rows; returns whether a row is refused."""
    found = False
    for r in range(block.shape[1]):
        refused[r] = not kernels.read_row(X, begin + r, columns, plan, numbers, row)
        found |= refused[r] != 0
        for c in range(len(columns)):
            block[c, r] = row[c]
    return found


@njit(
    void(
        _ROWS,
        float64[::1],
        int64,
        kernels.COLUMNS,
        _INTS,
        _FLOATS,
        _FLOATS,
        _TREES,
        _TESTS,
        _BINS,
        _FLOATS,
    ),
    cache=True,
    nogil=True,
)
def score_symmetric(
    X: np.ndarray,
    out: np.ndarray,
    link: int,
    columns: np.ndarray,
    plan: np.ndarray,
    numbers: np.ndarray,
    values: np.ndarray,
    trees: np.ndarray,
    tests: np.ndarray,
    bins: np.ndarray,
    borders: np.ndarray,
) -> None:
    """Scores rows, as `forest_kernels.score` does.

    Args:
        X: Shape (n, features).
        out: Shape (n * outputs,), written; NaN in each place of a row with a value that the model refuses.
        link: What is applied to the sums; with `RAW` they are not divided either.
        columns: Of type `COLUMN`.
        plan: As in `forest_kernels.score`.
        numbers: As in `forest_kernels.score`.
        values: As in `forest_kernels.score`; the leaves of a tree lie in the order of their numbers.
        trees: Of type `TREE`.
        tests: Of type `TEST`; those of a tree from its root on.
        bins: Of type `BIN`.
        borders: Of all bins, ascending in each.
    """
    n, k = len(X), plan[kernels.N_OUTPUTS]
    if n <= FEW:
        _score_few(X, out, link, columns, plan, numbers, values, trees, tests)
        return
    size = min(n, BLOCK)
    row = np.empty(max(len(columns), 1))
    rows = np.empty((max(len(columns), 1), size))
    beyond = np.empty((len(bins), size), dtype=np.uint8)
    lows = np.empty(size, dtype=np.uint8)
    highs = np.empty(size, dtype=np.uint8)
    refused = np.zeros(size, dtype=np.uint8)
    sums = np.empty((k, size))
    begin = 0
    while begin < n:
        # The last block begins earlier rather than to be shorter, so that all are of one size.
        begin = min(begin, n - size)
        some_refused = _read_block(X, begin, columns, plan, numbers, rows, row, refused)
        for b in range(len(bins)):
            _count_beyond(rows[bins[b].column], beyond[b], borders[bins[b].first : bins[b].end])
        for j in range(k):
            sums[j, :] = numbers[kernels.START + j]
        for t in range(len(trees)):
            depth, first = trees[t].depth, trees[t].leaf
            _find_leaves(beyond, tests, trees[t].test, depth, lows, highs)
            if plan[kernels.VECTOR]:
                for r in range(size):
                    leaf = np.int64(lows[r])
                    if depth > 8:
                        leaf += np.int64(highs[r]) << 8
                    for j in range(k):
                        sums[j, r] += values[(first + leaf) * k + j]
                continue
            j = plan[kernels.TREE_OUTPUT + t]
            if depth > 8:
                for r in range(size):
                    sums[j, r] += values[np.uint64(first) + (np.uint64(highs[r]) << np.uint64(8)) + np.uint64(lows[r])]
            else:
                for r in range(size):
                    sums[j, r] += values[np.uint64(first) + np.uint64(lows[r])]
        _finish(out, sums, begin, size, link, plan, numbers)
        if some_refused:
            for r in range(size):
                if refused[r]:
                    for j in range((begin + r) * k, (begin + r + 1) * k):
                        out[j] = math.nan
        begin += size
