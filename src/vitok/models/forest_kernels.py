"""How rows go through trees: compiled loops over the flat arrays of a `Forest`.

All trees are one array of nodes, brothers side by side, so that a step is `child + (not x <= threshold)`, without a
branch. The leaves of a tree hold the root of the next one as well: a walk that comes to a leaf notes it and is in the
next tree with the same step. Eight such walks, each over an eighth of the trees, go in turn, because a processor that
waits for one node can fetch seven others. What a missing value means is settled before, once a row: each *column* is a
feature read in one way, and a missing value is replaced by the number that goes the way it has to.
"""

import math
from typing import Any

import numpy as np
from numba import boolean, float32, float64, from_dtype, int64, njit, types, uint32, uint64, void

LANES = 8

NODE = np.dtype([("threshold", "<f8"), ("child", "<u4"), ("column", "<u2"), ("leaf", "u1"), ("categorical", "u1")])
"""A node: its left child's place (the right one follows), and what is compared with what.

`threshold` of a node with categories is the place of its first word in `bits`.
"""

COLUMN = np.dtype(
    [("feature", "<u4"), ("reading", "u1"), ("refuses", "u1"), ("unseen", "<u2"), ("first", "<i8"), ("count", "<i8")]
)
"""A feature read in one way; `first` and `count` say where its categories lie in `numbers`."""

# Readings: what becomes of a missing value.
AS_IS = 0  # NaN goes right: `not NaN <= t`
NAN_LEFT = 1
NAN_IS_ZERO = 2
ZERO_RIGHT = 3  # a zero is missing too
ZERO_LEFT = 4
CATEGORY_CUT = 5  # the category is the number without its fraction: -0.5 is category 0
CATEGORY_CUT_POSITIVE = 6  # the same, but below zero there is none
CATEGORY_EXACT = 7

# What a column refuses, and whether numbers next to zero are zero; bits.
NO_NAN = 1
NO_INFINITY = 2
FLUSH = 4

# Places in `plan`.
N_TREES, N_OUTPUTS, VECTOR, SINGLE, NARROW, CATEGORICAL, LINK, N_FEATURES = range(8)
LANE_START = 8
LANE_TREE = LANE_START + LANES
TREE_OUTPUT = LANE_TREE + LANES + 1

# Places in `numbers`; after the biases come the categories.
DIVISOR, SCALE, SLOPE, START = range(4)

# Links.
IDENTITY, SIGMOID, SOFTMAX, EXP, LOG1P_EXP, SIGNED_SQUARE, STEP = range(7)
RAW = -1

_NEAR_ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold
_LARGEST_CATEGORY = 2.0**31

_NODES = types.Array(from_dtype(NODE), 1, "C", readonly=True)
COLUMNS = types.Array(from_dtype(COLUMN), 1, "C", readonly=True)
_FLOATS = types.Array(float64, 1, "C", readonly=True)
_INTS = types.Array(int64, 1, "C", readonly=True)
_WORDS = types.Array(uint64, 1, "C", readonly=True)
_ROWS = types.Array(float64, 2, "C", readonly=True)


@njit(inline="always")
def _step(nodes: np.ndarray, node: Any, row: np.ndarray) -> Any:
    return np.uint64(nodes[node].child) + np.uint64(not (row[nodes[node].column] <= nodes[node].threshold))


@njit(inline="always")
def _mixed_step(nodes: np.ndarray, bits: np.ndarray, node: Any, row: np.ndarray) -> Any:
    x = row[nodes[node].column]
    if nodes[node].categorical:
        code = np.uint64(x)
        word = bits[np.uint64(nodes[node].threshold) + (code >> np.uint64(6))]
        return np.uint64(nodes[node].child) + ((word >> (code & np.uint64(63))) & np.uint64(1))
    return np.uint64(nodes[node].child) + np.uint64(not (x <= nodes[node].threshold))


@njit(void(_NODES, _INTS, float64[::1], uint32[::1]), cache=True, nogil=True)
def _walk(nodes: np.ndarray, plan: np.ndarray, row: np.ndarray, leaves: np.ndarray) -> None:
    """Writes the leaf of each tree; lane `l` writes from `plan[LANE_TREE + l] + l` on and has a place to spare."""
    a, b, c, d = (
        np.uint64(plan[LANE_START]),
        np.uint64(plan[LANE_START + 1]),
        np.uint64(plan[LANE_START + 2]),
        np.uint64(plan[LANE_START + 3]),
    )
    e, f, g, h = (
        np.uint64(plan[LANE_START + 4]),
        np.uint64(plan[LANE_START + 5]),
        np.uint64(plan[LANE_START + 6]),
        np.uint64(plan[LANE_START + 7]),
    )
    at, bt, ct, dt = (
        np.uint64(plan[LANE_TREE]),
        np.uint64(plan[LANE_TREE + 1] + 1),
        np.uint64(plan[LANE_TREE + 2] + 2),
        np.uint64(plan[LANE_TREE + 3] + 3),
    )
    et, ft, gt, ht = (
        np.uint64(plan[LANE_TREE + 4] + 4),
        np.uint64(plan[LANE_TREE + 5] + 5),
        np.uint64(plan[LANE_TREE + 6] + 6),
        np.uint64(plan[LANE_TREE + 7] + 7),
    )
    # The last leaf of a lane leads to a node that leads to itself and is no leaf, so that going on does no harm.
    left = np.int64(1)
    while left > 0:
        for _ in range(4):
            a, b, c, d = _step(nodes, a, row), _step(nodes, b, row), _step(nodes, c, row), _step(nodes, d, row)
            e, f, g, h = _step(nodes, e, row), _step(nodes, f, row), _step(nodes, g, row), _step(nodes, h, row)
            leaves[at], leaves[bt], leaves[ct], leaves[dt] = a, b, c, d
            leaves[et], leaves[ft], leaves[gt], leaves[ht] = e, f, g, h
            at += np.uint64(nodes[a].leaf)
            bt += np.uint64(nodes[b].leaf)
            ct += np.uint64(nodes[c].leaf)
            dt += np.uint64(nodes[d].leaf)
            et += np.uint64(nodes[e].leaf)
            ft += np.uint64(nodes[f].leaf)
            gt += np.uint64(nodes[g].leaf)
            ht += np.uint64(nodes[h].leaf)
        # Each lane ends where the next begins, so the sum of the places says whether all are there.
        left = plan[TREE_OUTPUT + plan[N_TREES]] - np.int64(at + bt + ct + dt + et + ft + gt + ht)


@njit(void(_NODES, _WORDS, _INTS, float64[::1], uint32[::1]), cache=True, nogil=True)
def _walk_mixed(nodes: np.ndarray, bits: np.ndarray, plan: np.ndarray, row: np.ndarray, leaves: np.ndarray) -> None:
    """Does as `_walk` where some nodes ask for a category."""
    node = np.empty(LANES, dtype=np.uint64)
    place = np.empty(LANES, dtype=np.uint64)
    for lane in range(LANES):
        node[lane] = plan[LANE_START + lane]
        place[lane] = plan[LANE_TREE + lane] + lane
    left = np.int64(1)
    while left > 0:
        total = np.uint64(0)
        for lane in range(LANES):
            node[lane] = _mixed_step(nodes, bits, node[lane], row)
            leaves[place[lane]] = node[lane]
            place[lane] += np.uint64(nodes[node[lane]].leaf)
            total += place[lane]
        left = plan[TREE_OUTPUT + plan[N_TREES]] - np.int64(total)


@njit(float64(float64, from_dtype(COLUMN), _FLOATS), cache=True, nogil=True)
def _code(x: float, column: Any, numbers: np.ndarray) -> float:
    """Returns the place of a category among those of its column; one after them is any other, then the missing."""
    n = column.count
    if x != x:
        return float(n + 1)
    other = float(n + column.unseen)
    if column.reading != CATEGORY_EXACT:
        if column.reading == CATEGORY_CUT_POSITIVE and x < 0:
            return other
        if not -_LARGEST_CATEGORY < x < _LARGEST_CATEGORY:
            return other
        x = math.trunc(x)
    low, high = column.first, column.first + n
    while low < high:
        middle = (low + high) >> 1
        if numbers[middle] < x:
            low = middle + 1
        else:
            high = middle
    if low < column.first + n and numbers[low] == x:
        return float(low - column.first)
    return other


@njit(boolean(_ROWS, int64, COLUMNS, _INTS, _FLOATS, float64[::1]), cache=True, nogil=True)
def read_row(
    X: np.ndarray, i: int, columns: np.ndarray, plan: np.ndarray, numbers: np.ndarray, row: np.ndarray
) -> bool:
    """Writes the columns of row `i`; returns False where a value is refused."""
    for c in range(len(columns)):
        column = columns[c]
        x = X[i, column.feature]
        if plan[NARROW]:
            x = float64(float32(x))
        if column.refuses:
            if column.refuses & NO_NAN and x != x:
                return False
            if column.refuses & NO_INFINITY and math.isinf(x):
                return False
            if column.refuses & FLUSH and abs(x) <= _NEAR_ZERO:
                x = 0.0
        if column.reading == AS_IS:
            row[c] = x
        elif column.reading == NAN_LEFT:
            row[c] = -math.inf if x != x else x
        elif column.reading == NAN_IS_ZERO:
            row[c] = 0.0 if x != x else x
        elif column.reading == ZERO_RIGHT:
            row[c] = math.nan if abs(x) <= _NEAR_ZERO else x
        elif column.reading == ZERO_LEFT:
            row[c] = -math.inf if (abs(x) <= _NEAR_ZERO or x != x) else x
        else:
            row[c] = _code(x, column, numbers)
    return True


@njit(void(float64[::1], int64, int64, int64, float64), cache=True, nogil=True)
def apply_link(out: np.ndarray, first: int, n: int, link: int, slope: float) -> None:
    """Applies a link to `n` places of `out` from `first` on."""
    if link == SIGMOID:
        for j in range(first, first + n):
            out[j] = 1.0 / (1.0 + math.exp(-slope * out[j]))
    elif link == SOFTMAX:
        largest = out[first]
        for j in range(first + 1, first + n):
            largest = max(largest, out[j])
        total = 0.0
        for j in range(first, first + n):
            out[j] = math.exp(out[j] - largest)
            total += out[j]
        for j in range(first, first + n):
            out[j] /= total
    elif link == EXP:
        for j in range(first, first + n):
            out[j] = math.exp(out[j])
    elif link == LOG1P_EXP:
        for j in range(first, first + n):
            out[j] = math.log1p(math.exp(out[j]))
    elif link == SIGNED_SQUARE:
        for j in range(first, first + n):
            out[j] = math.copysign(out[j] * out[j], out[j])
    elif link == STEP:
        for j in range(first, first + n):
            out[j] = 1.0 if out[j] > 0 else 0.0


@njit(void(float64[::1], int64, int64, int64), cache=True, nogil=True)
def _single_link(out: np.ndarray, first: int, n: int, link: int) -> None:
    """Does as `apply_link` in 32 bits, as XGBoost does."""
    one = float32(1.0)
    if link == SIGMOID:
        for j in range(first, first + n):
            out[j] = one / (math.exp(min(-float32(out[j]), float32(88.7))) + one + float32(1e-16))
    elif link == SOFTMAX:
        largest = float32(out[first])
        for j in range(first + 1, first + n):
            largest = max(largest, float32(out[j]))
        total = 0.0
        for j in range(first, first + n):
            out[j] = math.exp(float32(out[j]) - largest)
            total += out[j]
        for j in range(first, first + n):
            out[j] = float32(out[j]) / float32(total)
    elif link == EXP:
        for j in range(first, first + n):
            out[j] = math.exp(float32(out[j]))
    else:
        apply_link(out, first, n, link, 1.0)


@njit(float32(float32), cache=True)
def single_log(x: float) -> float:
    """Returns the logarithm that the C library has for 32 bits."""
    return math.log(x)


@njit(boolean(_NODES, COLUMNS, int64, int64[::1]), cache=True, nogil=True)
def count_leaves(nodes: np.ndarray, columns: np.ndarray, n_words: int, out: np.ndarray) -> bool:
    """Counts the leaves that a walk meets after each node, until the end.

    Args:
        nodes: Of type `NODE`; the last two are the end.
        columns: Of type `COLUMN`.
        n_words: Words in `bits`.
        out: Shape (nodes,), written.

    Returns:
        Whether each walk ends, meets the same leaves whichever way it goes, and asks only for what there is.
    """
    end = len(nodes) - 2
    n_columns = max(len(columns), 1)
    for i in range(len(nodes) - 1, -1, -1):
        node = nodes[i]
        child = np.int64(node.child)
        if child > end or node.leaf > 1 or node.column >= n_columns or (i < end and child <= i):
            return False
        if node.categorical:
            if node.column >= len(columns) or columns[node.column].reading < CATEGORY_CUT:
                return False
            words = (columns[node.column].count + 65) // 64
            if not 0 <= node.threshold <= n_words - words:
                return False
        if i >= end:
            if child != end or node.leaf or node.categorical:
                return False
            out[i] = 0
            continue
        out[i] = out[child] + nodes[child].leaf
        if out[i] != out[child + 1] + nodes[child + 1].leaf:
            return False
    return True


@njit(void(_ROWS, float64[::1], int64, _NODES, _FLOATS, COLUMNS, _INTS, _FLOATS, _WORDS), cache=True, nogil=True)
def score(
    X: np.ndarray,
    out: np.ndarray,
    link: int,
    nodes: np.ndarray,
    values: np.ndarray,
    columns: np.ndarray,
    plan: np.ndarray,
    numbers: np.ndarray,
    bits: np.ndarray,
) -> None:
    """Scores rows.

    The values of the trees are added in the order of the trees, in 64 or, where `plan` says so, 32 bits.

    Args:
        X: Shape (n, features).
        out: Shape (n * outputs,), written; NaN in each place of a row with a value that the model refuses.
        link: What is applied to the sums; with `RAW` they are not divided either.
        nodes: Of type `NODE`.
        values: Shape (nodes,), or (nodes * outputs,) where a leaf has a value for each output.
        columns: Of type `COLUMN`.
        plan: Counts and flags, where each lane starts, and the output of each tree.
        numbers: Divisor, scale, slope of the link, where each sum starts, what is added last, and the categories.
        bits: For each node with categories, which of them go right.
    """
    n_trees, k = plan[N_TREES], plan[N_OUTPUTS]
    row = np.empty(max(len(columns), 1))
    leaves = np.empty(n_trees + LANES, dtype=np.uint32)
    divisor, scale = 1.0 if link == RAW else numbers[DIVISOR], numbers[SCALE]
    bias = START + k
    for i in range(X.shape[0]):
        first = i * k
        if not read_row(X, i, columns, plan, numbers, row):
            for j in range(first, first + k):
                out[j] = math.nan
            continue
        if plan[CATEGORICAL]:
            _walk_mixed(nodes, bits, plan, row, leaves)
        else:
            _walk(nodes, plan, row, leaves)
        if plan[SINGLE]:
            for j in range(k):
                out[first + j] = numbers[START + j]
            for lane in range(LANES):
                for tree in range(plan[LANE_TREE + lane], plan[LANE_TREE + lane + 1]):
                    j = first + plan[TREE_OUTPUT + tree]
                    out[j] = float32(out[j]) + float32(values[leaves[tree + lane]])
            for j in range(k):
                out[first + j] = float32(out[first + j]) + float32(numbers[bias + j])
            _single_link(out, first, k, link)
            continue
        if k == 1:
            total = numbers[START]
            for lane in range(LANES):
                for place in range(plan[LANE_TREE + lane] + lane, plan[LANE_TREE + lane + 1] + lane):
                    total += values[leaves[place]]
            out[first] = total / divisor * scale + numbers[bias]
        else:
            for j in range(k):
                out[first + j] = numbers[START + j]
            for lane in range(LANES):
                for tree in range(plan[LANE_TREE + lane], plan[LANE_TREE + lane + 1]):
                    leaf = np.int64(leaves[tree + lane])
                    if plan[VECTOR]:
                        for j in range(k):
                            out[first + j] += values[leaf * k + j]
                    else:
                        out[first + plan[TREE_OUTPUT + tree]] += values[leaf]
            for j in range(k):
                out[first + j] = out[first + j] / divisor * scale + numbers[bias + j]
        apply_link(out, first, k, link, numbers[SLOPE])
