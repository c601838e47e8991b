"""Histograms over edges frozen once, and a latency histogram: both merge by addition, exactly.

Windows, workers and days are added up from stored counts; the rows are never needed again.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import Counts, Floats, numbers, positive_integer

_SPECIAL = 3

LANE = 32
"""Edges are compared with a value so many at once: a few vector instructions, and no branch to guess wrongly."""


def _column(values: ArrayLike) -> Floats:
    array = numbers("values", values)
    if array.ndim != 1:
        raise InvalidInput("values", array.shape, "have one dimension", "Pass an array of shape (n,)")
    return array


def _after(masses: Floats) -> Floats:
    """Returns the cut just above each mass; above 0 the smallest normal number.

    The float next to 0 is subnormal, and other libraries may switch the processor to treat those as 0.
    """
    with np.errstate(over="ignore"):
        return np.where(masses == 0, np.finfo(np.float64).tiny, np.nextafter(masses, np.inf))


def _cuts(ordered: Floats, n_bins: int) -> Floats:
    """Returns ascending cuts for sorted finite values: two around each point mass, quantiles among the rest."""
    distinct, counts = np.unique(ordered, return_counts=True)
    # A value seen once is no mass: a few continuous rows must not become bins that nothing ever hits again.
    heavy = (counts * n_bins >= len(ordered)) & (counts > 1)
    if len(distinct) <= n_bins and len(ordered) >= 2 * len(distinct):
        heavy[:] = True
    masses = distinct[heavy]
    rest = np.repeat(distinct[~heavy], counts[~heavy])
    n_rest = max(1, n_bins - len(masses))
    quantiles = rest[(len(rest) * np.arange(1, n_rest)) // n_rest] if len(rest) else rest
    cuts = np.unique(np.concatenate((masses, _after(masses), quantiles)))
    return cuts[np.isfinite(cuts)] + 0.0


def _guards(ordered: Floats) -> Floats:
    """Returns cuts beyond sorted finite values, away from 0 and, where they all lie on one side of it, towards it."""
    factors = 10.0 ** (np.arange(1, 7) / 2)
    low, high = ordered[0], ordered[-1]
    found = []
    with np.errstate(over="ignore", under="ignore"):
        if high > 0:
            found.append(_after(np.array([high])))
            found.append(high * factors)
        if low < 0:
            found.append(np.array([low]))
            found.append(low * factors)
        if low > 0:
            found.append(np.concatenate(([low], low / factors)))
        if high < 0:
            found.append(np.concatenate(([high], high / factors)))
    cuts = np.concatenate(found) if found else np.empty(0)
    return cuts[np.isfinite(cuts) & (np.abs(cuts) >= np.finfo(np.float64).tiny)]


def _scale(ordered: Floats) -> float:
    # Heavy tails blow up a standard deviation, so spread is the first of these quantile ranges that is not 0.
    for low, high in ((0.25, 0.75), (0.05, 0.95), (0.0, 1.0)):
        if len(ordered):
            with np.errstate(over="ignore", invalid="ignore"):
                spread = float(np.quantile(ordered, high) - np.quantile(ordered, low))
            if 0 < spread < math.inf:
                return spread
    return 1.0


@dataclass(frozen=True, kw_only=True)
class FrozenEdges:
    """Bins frozen from a reference: null, -inf, the cells from low to high, +inf, in this order.

    A cell is [edge, next edge). A value that makes up a large part of the reference has a cell that holds it and
    nothing else. Compare like with like: 0.1 in float32 is another value than 0.1 in float64.

    Attributes:
        edges: Ascending cuts; k cuts make k + 1 cells, so `n_bins` is k + 4.
        centers: Mean of the reference in each bin; the cell's nearest edge where the reference has none there, NaN
            for null and the infinities.
        scale: Interquartile range of the finite reference (5 to 95 % range where that is 0, then the full range,
            then 1): the unit for distances along the axis.

    Example:
        >>> edges = FrozenEdges.from_values([0.0] * 50 + list(range(1, 51)), n_bins=4)
        >>> edges.labels()
        ('null', '-inf', 'x < 0', 'x = 0', '0 < x < 17', '17 <= x < 34', 'x >= 34', '+inf')
        >>> edges.count([0, 0, 5, 40, float("nan")]).tolist()
        [1, 0, 0, 2, 1, 0, 1, 0]
    """

    edges: tuple[float, ...]
    centers: tuple[float, ...]
    scale: float

    @classmethod
    def from_values(cls, values: ArrayLike, *, n_bins: int = 32, guarded: bool = False) -> "FrozenEdges":
        """Freezes edges at the quantiles of reference values.

        Args:
            values: Shape (n,), n at least 1; NaN is null, infinities are allowed.
            n_bins: About how many bins share the finite values, at least 2. A value with at least 1/n_bins of them
                is a point mass with its own bin, unless it is there once only; with at most n_bins distinct values,
                seen twice or more on average, each is one. Empty cells beside point masses come on top, and catch
                values that the reference never had.
            guarded: Adds cells beyond the reference, half a decade apart and three decades far, above it and, where
                all of it is positive, below it (and their mirror images where all of it is negative): without them
                a value that is a hundred times too large only says that it is large.

        Returns:
            The edges; without finite values a single cell holds every finite number.

        Raises:
            InvalidInput: If there are no values, or n_bins is below 2.
        """
        array = _column(values)
        if positive_integer("n_bins", n_bins) < 2:
            raise InvalidInput("n_bins", n_bins, "be at least 2")
        if len(array) == 0:
            raise InvalidInput("values", [], "hold at least one value", "Freeze edges from the training table")
        ordered = np.sort(array[np.isfinite(array)])
        edges = _cuts(ordered, n_bins) if len(ordered) else np.empty(0)
        if guarded and len(ordered):
            edges = np.unique(np.concatenate((edges, _guards(ordered))))
        cell = np.searchsorted(edges, ordered, side="right")
        n = np.bincount(cell, minlength=len(edges) + 1)
        # Divided before the sum, so that values near the largest float do not overflow.
        means = np.bincount(cell, weights=ordered / np.maximum(n, 1)[cell], minlength=len(edges) + 1)
        nearest = np.concatenate((edges[:1], edges)) if len(edges) else np.zeros(1)
        centers = np.where(n > 0, means, nearest)
        return cls(
            edges=tuple(edges.tolist()),
            centers=(math.nan, math.nan, *centers.tolist(), math.nan),
            scale=_scale(ordered),
        )

    @property
    def n_bins(self) -> int:
        """Length of every count vector over these edges."""
        return len(self.edges) + 1 + _SPECIAL

    @cached_property
    def _array(self) -> Floats:
        return np.array(self.edges, dtype=np.float64)

    def count(self, values: ArrayLike) -> Counts:
        """Counts values into the bins.

        Args:
            values: Shape (n,), any n; NaN counts as null.

        Returns:
            Shape (n_bins,), int64; counts of different parts add up to the counts of the whole.

        Raises:
            InvalidInput: If the shape is not (n,).
        """
        return np.bincount(self.places(values), minlength=self.n_bins).astype(np.int64, copy=False)

    def places(self, values: ArrayLike) -> NDArray[np.intp]:
        """Returns the bin of each value, shape (n,), from 0 (null) to `n_bins - 1` (+inf).

        Raises:
            InvalidInput: If the shape is not (n,).
        """
        array = _column(values)
        place = 2 + np.searchsorted(self._array, array, side="right")
        place[np.isnan(array)] = 0
        place[array == -np.inf] = 1
        place[array == np.inf] = self.n_bins - 1
        return place

    def labels(self) -> tuple[str, ...]:
        """Returns a name for each bin, in the order of the counts."""
        if not self.edges:
            return ("null", "-inf", "finite", "+inf")
        names = [f"x < {self.edges[0]:.6g}"]
        # The cell above a point mass starts just after the mass, and is named by it.
        start, closed = self.edges[0], True
        for high, after in zip(self.edges[1:], _after(self._array)[:-1].tolist(), strict=True):
            mass = closed and high == after
            names.append(f"x = {start:.6g}" if mass else f"{start:.6g} {'<=' if closed else '<'} x < {high:.6g}")
            start, closed = (start, False) if mass else (high, True)
        return ("null", "-inf", *names, f"x {'>=' if closed else '>'} {start:.6g}", "+inf")

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold; `from_dict` gives back the same bins to the last bit."""
        return {
            "edges": list(self.edges),
            "centers": [None if math.isnan(center) else center for center in self.centers],
            "scale": self.scale,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FrozenEdges":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing, or the edges do not ascend.
        """
        for field in ("edges", "centers", "scale"):
            if field not in data:
                raise InvalidInput(field, None, "be there", "Pass what FrozenEdges.to_dict returned")
        edges = tuple(float(edge) for edge in data["edges"])
        if any(not low < high for low, high in itertools.pairwise(edges)):
            raise InvalidInput("edges", edges, "ascend strictly")
        centers = tuple(math.nan if center is None else float(center) for center in data["centers"])
        if len(centers) != len(edges) + 1 + _SPECIAL:
            raise InvalidInput("centers", len(centers), f"have {len(edges) + 1 + _SPECIAL} items for these edges")
        return cls(edges=edges, centers=centers, scale=float(data["scale"]))


class BinLayout:
    """The bins of several columns end to end, with what counting them in compiled code needs: made once, used often.

    Args:
        edges: One `FrozenEdges` for each column, f of them.

    Example:
        >>> layout = BinLayout([FrozenEdges.from_values([1.0, 2.0], n_bins=2)] * 2)
        >>> layout.count(np.ones((5, 2))).sum().item(), layout.count_columns([[1.0], [2.0]]).sum().item()
        (10, 2)
    """

    def __init__(self, edges: Sequence[FrozenEdges]) -> None:
        self.edges = tuple(edges)
        self.offsets = np.cumsum([0, *(frozen.n_bins for frozen in self.edges)], dtype=np.int64)
        padded = [_padded(frozen.edges) for frozen in self.edges]
        self._flat = np.concatenate([np.empty(0), *padded])
        self._edge_offsets = np.cumsum([0, *map(len, padded)], dtype=np.int64)

    @property
    def n_bins(self) -> int:
        """Bins of all columns together: the length of every count vector."""
        return int(self.offsets[-1])

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return len(self.edges)

    def split(self, counts: Counts) -> tuple[Counts, ...]:
        """Cuts a vector of counts of all columns, shape (n_bins,), into one vector a column."""
        return tuple(np.split(counts, self.offsets[1:-1])) if self.edges else ()

    def count(self, X: ArrayLike) -> Counts:
        """Counts all columns of a matrix in one pass over its rows.

        Args:
            X: Shape (n, f), float32 or float64, any n; NaN counts as null.

        Returns:
            Shape (n_bins,), int64.

        Raises:
            InvalidInput: If the shape does not fit.
        """
        matrix = np.asarray(X)
        if matrix.dtype not in (np.float32, np.float64):
            matrix = matrix.astype(np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.edges):
            rule = f"have the shape (n, {len(self.edges)}), one column for each of the edges"
            raise InvalidInput("X", matrix.shape, rule)
        counts: NDArray[np.int64] = np.zeros(self.n_bins, dtype=np.int64)
        if self.edges:
            from vitok.stats.kernels import count_columns

            count_columns(matrix, self._flat, self._edge_offsets, self.offsets, counts)
        return counts

    def count_columns(self, columns: Sequence[ArrayLike]) -> Counts:
        """Counts columns that lie apart, as those of a data frame do, without putting them together first.

        Args:
            columns: f arrays of shape (n,), float32 or float64 (anything else is turned into float64); NaN is null.

        Returns:
            Shape (n_bins,), int64.

        Raises:
            InvalidInput: If there are not f columns, or one has not one dimension.
        """
        from vitok.stats.kernels import count_column

        if len(columns) != len(self.edges):
            raise InvalidInput("columns", len(columns), f"be {len(self.edges)}, one for each of the edges")
        counts: NDArray[np.int64] = np.zeros(self.n_bins, dtype=np.int64)
        for at, values in enumerate(columns):
            array = np.asarray(values)
            if array.dtype not in (np.float32, np.float64):
                array = _column(array)
            if array.ndim != 1:
                raise InvalidInput(f"columns[{at}]", array.shape, "have one dimension")
            first, last = self._edge_offsets[at], self._edge_offsets[at + 1]
            count_column(array, self._flat[first:last], counts[self.offsets[at] : self.offsets[at + 1]])
        return counts


def _padded(edges: Sequence[float]) -> Floats:
    """Returns edges with infinities after them, up to a multiple of what the compiled code compares at once."""
    return np.array([*edges, *[math.inf] * (-len(edges) % LANE)], dtype=np.float64)


def count_matrix(edges: Sequence[FrozenEdges], X: ArrayLike) -> tuple[Counts, ...]:
    """Counts all columns of a matrix at once, in compiled code; `BinLayout` does so again and again.

    Args:
        edges: One `FrozenEdges` for each column, f of them.
        X: Shape (n, f), float32 or float64, any n; NaN counts as null.

    Returns:
        For each column what `FrozenEdges.count` returns.

    Raises:
        InvalidInput: If the shape does not fit.

    Example:
        >>> edges = FrozenEdges.from_values([1.0, 2.0], n_bins=2)
        >>> [counts.sum().item() for counts in count_matrix([edges, edges], np.ones((5, 2)))]
        [5, 5]
    """
    layout = BinLayout(edges)
    return layout.split(layout.count(X))
