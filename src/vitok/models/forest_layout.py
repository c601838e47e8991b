"""From trees as libraries write them to the flat arrays that the kernels walk."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vitok.errors import InvalidInput
from vitok.models import forest_kernels as kernels

_MOST_COLUMNS = 2**16
_MOST_NODES = 2**32 - 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CategorySplit:
    """A node that asks whether a category is one of several.

    Attributes:
        members: The categories, as numbers.
        members_right: Whether they go right; other known categories go the other way.
        unseen_right: Whether a category goes right that no node of the column names.
        missing_right: Whether a missing one goes right.
    """

    members: frozenset[float]
    members_right: bool
    unseen_right: bool
    missing_right: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
    """What `forest_kernels.score` takes, as it names them."""

    nodes: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    plan: np.ndarray
    numbers: np.ndarray
    bits: np.ndarray


def fit_together(arrays: Arrays) -> bool:
    """Says whether arrays from a file can be walked: the kernels check no bounds."""
    plan, nodes, columns, k = arrays.plan, arrays.nodes, arrays.columns, 0
    if len(plan) > kernels.TREE_OUTPUT:
        k = int(plan[kernels.N_OUTPUTS])
    if k < 1 or len(nodes) < 2 or len(plan) != kernels.TREE_OUTPUT + plan[kernels.N_TREES] + 1:
        return False
    n_nodes, base = len(nodes), kernels.START + 2 * k
    lanes, starts = plan[kernels.LANE_TREE : kernels.TREE_OUTPUT], plan[kernels.LANE_START : kernels.LANE_TREE]
    counts, outputs = np.zeros(n_nodes, dtype=np.int64), plan[kernels.TREE_OUTPUT : -1]
    return bool(
        len(arrays.values) == n_nodes * (k if plan[kernels.VECTOR] else 1)
        and len(arrays.numbers) >= base
        and kernels.IDENTITY <= plan[kernels.LINK] <= kernels.STEP
        and ((outputs >= 0) & (outputs < k)).all()
        and (columns["feature"] < plan[kernels.N_FEATURES]).all()
        and ((columns["first"] >= base) & (columns["count"] >= 0)).all()
        and (columns["first"] + columns["count"] <= len(arrays.numbers)).all()
        and lanes[0] == 0
        and lanes[-1] == plan[kernels.N_TREES]
        and plan[-1] == (lanes[1:] + np.arange(kernels.LANES)).sum()
        and ((starts >= 0) & (starts < n_nodes)).all()
        and kernels.count_leaves(nodes, columns, len(arrays.bits), counts)
        and (counts[starts] == np.diff(lanes)).all()
    )


@dataclasses.dataclass(frozen=True)
class _Tree:
    left: np.ndarray
    right: np.ndarray
    column: np.ndarray
    threshold: np.ndarray
    value: np.ndarray
    splits: Mapping[int, CategorySplit]
    output: int


class Grove:
    """Collects the trees of one model, then lays them out.

    Args:
        n_features: Width of a row.
        n_outputs: Sums a row has.
        vector: Whether each leaf holds a value for each output, instead of each tree adding to one.
        single: Whether values are added in 32 bits.
        narrow: Whether rows are rounded to 32 bits first.
        refuses: What every feature refuses, bits of `forest_kernels`.
    """

    def __init__(
        self,
        *,
        n_features: int,
        n_outputs: int = 1,
        vector: bool = False,
        single: bool = False,
        narrow: bool = False,
        refuses: int = 0,
    ) -> None:
        if n_features < 1 or n_outputs < 1:
            raise InvalidInput("model", (n_features, n_outputs), "have at least one feature and one output")
        self.n_features = n_features
        self.n_outputs = n_outputs
        self._vector = vector
        self._flags = (int(single), int(narrow))
        self._refuses = refuses
        self._columns: dict[tuple[int, int], int] = {}
        self._known: dict[int, set[float]] = {}
        self._unseen_is_missing: set[int] = set()
        self._trees: list[_Tree] = []

    def column(self, feature: int, reading: int) -> int:
        """Returns the number of the column that reads `feature` so, a new one where there is none yet."""
        if not 0 <= feature < self.n_features:
            raise InvalidInput("split feature", feature, f"be one of the model's {self.n_features} features")
        found = self._columns.setdefault((feature, reading), len(self._columns))
        if found >= _MOST_COLUMNS:
            raise InvalidInput("model", found + 1, f"read its features in at most {_MOST_COLUMNS} ways")
        return found

    def know(self, column: int, categories: Iterable[float], *, unseen_is_missing: bool) -> None:
        """Names categories of a column beyond those in its splits, and says what any other one is."""
        self._known.setdefault(column, set()).update(categories)
        if unseen_is_missing:
            self._unseen_is_missing.add(column)

    def add(
        self,
        *,
        left: Any,
        right: Any,
        column: Any,
        threshold: Any,
        value: Any,
        splits: Mapping[int, CategorySplit] | None = None,
        output: int = 0,
    ) -> None:
        """Adds a tree; its root is node 0.

        Args:
            left: Shape (nodes,): the child where `x <= threshold`; -1 in a leaf.
            right: Shape (nodes,): the other child; -1 in a leaf.
            column: Shape (nodes,), from `column`.
            threshold: Shape (nodes,).
            value: Shape (nodes,), or (nodes, outputs); read in leaves.
            splits: The nodes that ask for a category.
            output: Which sum the tree adds to.

        Raises:
            InvalidInput: If the arrays do not describe a tree.
        """
        tree = _Tree(
            np.asarray(left, dtype=np.int64),
            np.asarray(right, dtype=np.int64),
            np.asarray(column, dtype=np.int64),
            np.asarray(threshold, dtype=np.float64),
            np.asarray(value, dtype=np.float64),
            splits or {},
            output,
        )
        n = len(tree.left)
        wanted = (n, self.n_outputs) if self._vector else (n,)
        if n == 0 or tree.value.shape != wanted or not len(tree.right) == len(tree.column) == len(tree.threshold) == n:
            raise _broken(len(self._trees), "have arrays of one length, and at least one node")
        if not 0 <= output < self.n_outputs:
            raise _broken(len(self._trees), f"add to one of {self.n_outputs} outputs")
        leaf = tree.left < 0
        children = np.concatenate((tree.left[~leaf], tree.right[~leaf]))
        if (leaf != (tree.right < 0)).any() or (children >= n).any() or (children == 0).any():
            raise _broken(len(self._trees), "have two children at each node that is no leaf")
        if len(np.unique(children)) != len(children):
            raise _broken(len(self._trees), "have each node as a child once")
        if np.isnan(tree.threshold[~leaf]).any():
            raise _broken(len(self._trees), "have no NaN among its thresholds")
        for node, split in tree.splits.items():
            self._known.setdefault(int(tree.column[node]), set()).update(split.members)
        self._trees.append(tree)

    def arrays(
        self,
        *,
        link: int,
        slope: float = 1.0,
        start: Sequence[float] | None = None,
        divisor: float = 1.0,
        scale: float = 1.0,
        bias: Sequence[float] | None = None,
    ) -> Arrays:
        """Lays the trees out; a sum is `(start + values) / divisor * scale + bias`, and then comes the link."""
        k, n_trees = self.n_outputs, len(self._trees)
        categories = {column: sorted(known) for column, known in self._known.items()}
        single, narrow = self._flags
        columns = np.zeros(len(self._columns), dtype=kernels.COLUMN)
        begin = kernels.START + 2 * k
        for (feature, reading), column in self._columns.items():
            n = len(categories.get(column, ()))
            unseen = int(column in self._unseen_is_missing)
            columns[column] = (feature, reading, self._refuses, unseen, begin, n)
            begin += n
        numbers = np.concatenate(
            [
                [divisor, scale, slope],
                np.zeros(k) if start is None else np.asarray(start, dtype=np.float64),
                # Adding -0.0 changes nothing, adding 0.0 would change -0.0.
                np.full(k, -0.0) if bias is None else np.asarray(bias, dtype=np.float64),
                *[categories.get(column, []) for column in range(len(columns))],
            ]
        ).astype(np.float64)
        lanes = np.round(np.linspace(0, n_trees, kernels.LANES + 1)).astype(np.int64)
        nodes, values, roots, bits = self._nodes(categories, set(lanes.tolist()))
        plan = np.zeros(kernels.TREE_OUTPUT + n_trees + 1, dtype=np.int64)
        plan[: kernels.LANE_START] = (n_trees, k, self._vector, single, narrow, len(bits) > 0, link, self.n_features)
        plan[kernels.LANE_START : kernels.LANE_TREE] = [
            roots[low] if low < high else roots[n_trees] for low, high in itertools.pairwise(lanes.tolist())
        ]
        plan[kernels.LANE_TREE : kernels.TREE_OUTPUT] = lanes
        plan[kernels.TREE_OUTPUT : -1] = [tree.output for tree in self._trees]
        plan[-1] = (lanes[1:] + np.arange(kernels.LANES)).sum()
        return Arrays(nodes=_aligned(nodes), values=values, columns=columns, plan=plan, numbers=numbers, bits=bits)

    def _nodes(
        self, categories: Mapping[int, list[float]], ends: set[int]
    ) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
        places = [_places(tree) for tree in self._trees]
        sizes = [2 * ((int(place.max()) + 2) // 2) for place in places]
        bases = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        end = int(bases[-1])
        if end + 2 > _MOST_NODES:
            raise InvalidInput("model", end + 2, f"have at most {_MOST_NODES} nodes")
        nodes = np.zeros(end + 2, dtype=kernels.NODE)
        # The end leads to itself whatever it is asked; a root has no brother, and what stands there is never reached.
        alone = np.concatenate((bases[:-1] + 1, [end, end + 1]))
        nodes["threshold"][alone] = np.inf
        nodes["child"][alone] = end
        values = np.zeros((end + 2, self.n_outputs) if self._vector else end + 2)
        words: list[np.ndarray] = []
        n_words = 0
        for tree, place, base in zip(self._trees, places, bases[:-1].tolist(), strict=True):
            inner = tree.left >= 0
            at = place + base
            if not inner[0]:
                # A tree without a split gets one, with its leaf on either side.
                nodes[base] = (np.inf, base + 2, 0, 0, 0)
                nodes["leaf"][base + 2 : base + 4] = 1
                values[base + 2 : base + 4] = tree.value[0]
                continue
            nodes["threshold"][at[inner]] = tree.threshold[inner]
            nodes["child"][at[inner]] = at[tree.left[inner]]
            nodes["column"][at[inner]] = tree.column[inner]
            nodes["leaf"][at[~inner]] = 1
            values[at[~inner]] = tree.value[~inner]
            for node, split in tree.splits.items():
                mask = _mask(categories[int(tree.column[node])], split)
                nodes["threshold"][at[node]] = n_words
                nodes["categorical"][at[node]] = 1
                words.append(mask)
                n_words += len(mask)
        roots = bases.tolist()
        for i, (base, size) in enumerate(zip(roots[:-1], sizes, strict=True)):
            here = nodes[base : base + size]
            following = nodes[end if i + 1 in ends else roots[i + 1]]
            for name in ("threshold", "child", "column", "categorical"):
                here[name][here["leaf"] == 1] = following[name]
        bits = np.concatenate(words) if words else np.zeros(0, dtype=np.uint64)
        return nodes, values.reshape(-1), roots, bits


def _broken(tree: int, rule: str) -> InvalidInput:
    return InvalidInput(f"tree {tree}", "a damaged model", rule, "Write the model anew with its library")


def _places(tree: _Tree) -> np.ndarray:
    """Returns where each node goes, level by level: the root at 0, nothing at 1, brothers side by side from 2 on."""
    place = np.full(len(tree.left), -1, dtype=np.int64)
    place[0] = 0
    if tree.left[0] < 0:
        place[0] = 3
        return place
    level, following = np.zeros(1, dtype=np.int64), 2
    while len(level):
        inner = level[tree.left[level] >= 0]
        level = np.column_stack((tree.left[inner], tree.right[inner])).reshape(-1)
        place[level] = np.arange(following, following + len(level))
        following += len(level)
    if (place < 0).any():
        raise InvalidInput("model", "a damaged model", "have no node that cannot be reached")
    return place


def _mask(categories: Sequence[float], split: CategorySplit) -> np.ndarray:
    right = [(category in split.members) == split.members_right for category in categories]
    packed = np.packbits([*right, split.unseen_right, split.missing_right], bitorder="little")
    words = np.zeros(-(-len(packed) // 8) * 8, dtype=np.uint8)
    words[: len(packed)] = packed
    return words.view("<u8").astype(np.uint64)


def _aligned(nodes: np.ndarray) -> np.ndarray:
    # Two brothers in one cache line: the array begins where a line does.
    room = np.zeros(nodes.nbytes + 64, dtype=np.uint8)
    first = -room.ctypes.data % 64
    found = room[first : first + nodes.nbytes].view(nodes.dtype)
    found[:] = nodes
    return found
