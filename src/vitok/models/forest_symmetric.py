"""Finds out whether all trees of a forest are symmetric, and lays out what their kernel needs beside its arrays."""

import numpy as np

from vitok.models import forest_kernels as kernels
from vitok.models.forest_layout import Arrays

MOST_BORDERS = 255
DEEPEST = 16

TREE = np.dtype([("depth", "<i8"), ("test", "<i8"), ("leaf", "<i8")])
"""A tree: its levels, its first test, and where its first leaf lies in `values`."""

TEST = np.dtype([("border", "<f8"), ("column", "<u2"), ("least", "<u2"), ("bin", "<u4")])
"""What a level asks: whether the value of `column` is not at or below `border`, the one numbered `least` in `bin`."""

BIN = np.dtype([("column", "<i8"), ("first", "<i8"), ("end", "<i8")])
"""At most 255 ascending borders of one column, and where they lie."""


def symmetric_parts(arrays: Arrays) -> tuple[np.ndarray, ...] | None:
    """Returns what `score_symmetric` takes after the link, or None where the walk is the way.

    A tree is symmetric where each level asks all its nodes the same. It is found from the arrays, so a forest on disk
    needs no mark, and trees of any library may be: single splits always are.

    Args:
        arrays: Of one forest.

    Example:
        >>> from sklearn.tree import DecisionTreeRegressor
        >>> from vitok.models.forest_sklearn import read_sklearn
        >>> stump = DecisionTreeRegressor(max_depth=1).fit([[0.0], [1.0]], [5.0, 6.0])
        >>> lopsided = DecisionTreeRegressor().fit([[0.0], [1.0], [2.0]], [5.0, 6.0, 8.0])
        >>> [symmetric_parts(read_sklearn(model)[0]) is not None for model in (stump, lopsided)]
        [True, False]
    """
    plan, nodes = arrays.plan, arrays.nodes
    n_trees = int(plan[kernels.N_TREES])
    if plan[kernels.CATEGORICAL] or plan[kernels.SINGLE] or not n_trees:
        return None
    trees = np.zeros(n_trees, dtype=TREE)
    levels: list[np.ndarray] = []
    base = n_tests = 0
    for t in range(n_trees):
        found = _levels(nodes, base)
        if found is None:
            return None
        depth = len(found)
        trees[t] = depth, n_tests, base + 2**depth
        levels.append(found)
        n_tests += depth
        base += 2 ** (depth + 1)
    asked = np.concatenate(levels)
    tests = np.zeros(n_tests, dtype=TEST)
    tests["column"], tests["border"] = asked["column"], asked["threshold"]
    bins: list[tuple[int, int, int]] = []
    borders: list[np.ndarray] = []
    end = 0
    for column in np.unique(tests["column"]).tolist():
        mine = np.flatnonzero(tests["column"] == column)
        ascending, at = np.unique(tests["border"][mine], return_inverse=True)
        tests["bin"][mine] = len(bins) + at // MOST_BORDERS
        tests["least"][mine] = at % MOST_BORDERS
        for low in range(0, len(ascending), MOST_BORDERS):
            borders.append(ascending[low : low + MOST_BORDERS])
            bins.append((column, end, end + len(borders[-1])))
            end += len(borders[-1])
    derived = (trees, tests, np.array(bins, dtype=BIN), np.concatenate(borders))
    for array in derived:
        array.flags.writeable = False
    return (arrays.columns, plan, arrays.numbers, arrays.values, *derived)


def _levels(nodes: np.ndarray, base: int) -> np.ndarray | None:
    """Returns what the levels of a tree ask, from the root on; None where it is not symmetric.

    In `forest_layout` the root of a tree lies at its base, and level `l` of a symmetric one from `base + 2 ** l` on.
    """
    asked = [nodes[base]]
    for level in range(1, DEEPEST + 1):
        low = base + 2**level
        here = nodes[low : low + 2**level]
        above = np.array([base]) if level == 1 else np.arange(base + 2 ** (level - 1), low)
        if len(here) < 2**level or (nodes["child"][above] != np.arange(low, low + 2**level, 2)).any():
            return None
        if here["leaf"].all():
            return np.array(asked, dtype=nodes.dtype)
        if here["leaf"].any() or (here["column"] != here["column"][0]).any():
            return None
        if (here["threshold"] != here["threshold"][0]).any():
            return None
        asked.append(here[0])
    return None
