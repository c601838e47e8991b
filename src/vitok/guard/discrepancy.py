"""How far two sets of rows are apart, in time linear in the rows: plainly, and by how ordinary sets differ anyway.

Plain is the unbiased squared maximum mean discrepancy (`mmd2`). Keys have habits, and along these they differ a lot
without meaning anything: `Habits` learns the directions and counts a difference there for less, as Hotelling's test
and the kernel Fisher discriminant do. On keys with habits this finds what the plain one misses altogether
(bench/serving/guard_watch.py).

Sources: Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012 (the estimate and the median heuristic); Rahimi and
Recht, Random Features for Large-Scale Kernel Machines, 2007 (the kernel as a product of cosines and sines);
Harchaoui, Bach and Moulines, Testing for Homogeneity with Kernel Fisher Discriminant Analysis, 2007.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput

Floats = NDArray[np.float64]

_QUANTILES = 129
_PAIRED = 1_000
_CHUNK = 1 << 15
# Outside of [0, 1], where the ranks of the reference lie, and far enough to count.
_BELOW, _ABOVE, _NULL = -0.25, 1.25, -0.75


class Embedded(NamedTuple):
    """A set of rows as the sum of their random features; sums of parts add up to that of the whole.

    Attributes:
        n: How many rows.
        total: Shape (d,), the sum. Each row has length 1.
    """

    n: int
    total: Floats

    def plus(self, other: "Embedded") -> "Embedded":
        """Returns both sets together."""
        return Embedded(self.n + other.n, self.total + other.total)

    def less(self, other: "Embedded") -> "Embedded":
        """Returns this set without another that is part of it."""
        return Embedded(self.n - other.n, self.total - other.total)


class Habits:
    """How the means of ordinary windows scatter, to measure others by.

    Args:
        means: Shape (m, d), the mean of the random features of each of m ordinary windows, m at least 2.
        shrinkage: Share of the mean variance that is added to every direction, so that directions in which the
            windows happen not to scatter are not taken for certain; above 0.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> habits = Habits(rng.normal(size=(5_000, 2)) * [10.0, 0.1])
        >>> far = habits.distance([[10.0, 0.0], [0.0, 10.0]])
        >>> bool(far[1] > 5 * far[0])
        True
    """

    def __init__(self, means: ArrayLike, *, shrinkage: float = 0.1) -> None:
        matrix = np.asarray(means, dtype=np.float64)
        if matrix.ndim != 2 or len(matrix) < 2:
            raise InvalidInput("means", matrix.shape, "be at least two")
        self._center = matrix.mean(axis=0)
        scatter = np.atleast_2d(np.cov(matrix.T))
        # Where all windows are equal there is no unit, and any will do.
        ridge = shrinkage * float(np.trace(scatter)) / len(scatter) or 1.0
        self._precision = np.linalg.inv(scatter + ridge * np.eye(len(scatter)))

    def distance(self, means: ArrayLike) -> Floats:
        """Returns the squared distance of each window, about d where it is ordinary.

        Args:
            means: Shape (m, d).
        """
        away = np.asarray(means, dtype=np.float64) - self._center
        found: Floats = np.einsum("ij,jk,ik->i", away, self._precision, away, optimize=True)
        return found


class KernelMap:
    """Maps rows to random features of a Gaussian kernel over ranks.

    Each feature is replaced by its rank in the reference, so that units and long tails do not matter; a value beyond
    the reference and a null get places of their own. The kernel's width is the median distance of two rows.

    Args:
        X: Shape (n, f), rows of the reference, n at least 2.
        n_features: How many random features, an even number; the error of the kernel is about n_features ** -0.5.
        seed: Seed of the random features.

    Raises:
        InvalidInput: If the shape does not fit.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> kernel = KernelMap(rng.normal(size=(2_000, 3)))
        >>> one, same, other = (kernel.embed(rng.normal(m, 1, size=(500, 3))) for m in (0.0, 0.0, 0.5))
        >>> abs(mmd2(one, same)) < 0.005, mmd2(one, other) > 0.03
        (True, True)
    """

    def __init__(self, X: ArrayLike, *, n_features: int = 256, seed: int = 0) -> None:
        matrix = np.asarray(X, dtype=np.float64)
        if matrix.ndim != 2 or len(matrix) < 2 or not matrix.shape[1]:
            raise InvalidInput("X", matrix.shape, "have at least two rows and one feature")
        if n_features < 2 or n_features % 2:
            raise InvalidInput("n_features", n_features, "be an even number of at least 2")
        rng = np.random.default_rng(seed)
        shares = np.linspace(0.0, 1.0, _QUANTILES)
        self._grids = [np.quantile(column, shares) if len(column) else None for column in map(_finite, matrix.T)]
        some = self.ranks(matrix[rng.permutation(len(matrix))[:_PAIRED]])
        half = len(some) // 2
        distances = np.sqrt(((some[:half] - some[half : 2 * half]) ** 2).sum(axis=1))
        median = float(np.median(distances))
        # Where most rows are equal the median is 0 and says nothing.
        self.width = median or float(distances.mean()) or 1.0
        self._frequencies = rng.normal(0.0, 1.0 / self.width, size=(matrix.shape[1], n_features // 2))
        self.n_columns = matrix.shape[1]

    def ranks(self, X: Floats) -> Floats:
        """Returns each value's rank in the reference: in [0, 1], or the place of what is beyond it or null."""
        out = np.empty_like(X)
        for at, grid in enumerate(self._grids):
            column = X[:, at]
            if grid is None:
                out[:, at] = np.where(np.isnan(column), _NULL, _ABOVE)
                continue
            left, right = (np.searchsorted(grid, column, side=side) for side in ("left", "right"))
            rank = (left + right - 1) / (2 * (len(grid) - 1))
            inside = (left == right) & (left > 0) & (left < len(grid))
            # Between two quantiles by proportion, so that close values have close ranks.
            i = np.where(inside, left, 1)
            low, high = grid[i - 1], grid[i]
            with np.errstate(over="ignore", invalid="ignore"):
                share = np.divide(column - low, high - low, out=np.zeros_like(column), where=inside & (high > low))
            rank = np.where(inside, (i - 1 + share) / (len(grid) - 1), np.clip(rank, 0.0, 1.0))
            rank = np.where(column < grid[0], _BELOW, np.where(column > grid[-1], _ABOVE, rank))
            out[:, at] = np.where(np.isnan(column), _NULL, rank)
        return out

    def embed(self, X: ArrayLike) -> Embedded:
        """Embeds rows; about 2 us a row of 30 features.

        Raises:
            InvalidInput: If the shape does not fit.
        """
        found = self.embed_groups(X, np.zeros(len(np.asarray(X)), dtype=np.int64), 1)
        return Embedded(int(found[1][0]), found[0][0])

    def embed_groups(self, X: ArrayLike, group: NDArray[np.int64], n_groups: int) -> tuple[Floats, NDArray[np.int64]]:
        """Embeds the rows of many groups in one pass.

        Args:
            X: Shape (n, f).
            group: Shape (n,), the group of each row, in [0, n_groups); -1 leaves a row out.
            n_groups: How many groups.

        Returns:
            The sums, shape (n_groups, d), and the rows of each group.
        """
        matrix = np.asarray(X, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != self.n_columns:
            raise InvalidInput("X", matrix.shape, f"have the shape (n, {self.n_columns})")
        half = self._frequencies.shape[1]
        sums = np.zeros((n_groups, 2 * half))
        order = np.argsort(group, kind="stable")
        order = order[int(np.searchsorted(group[order], 0)) :]
        for start in range(0, len(order), _CHUNK):
            rows = order[start : start + _CHUNK]
            angles = self.ranks(matrix[rows]) @ self._frequencies
            present, first = np.unique(group[rows], return_index=True)
            sums[present, :half] += np.add.reduceat(np.cos(angles), first, axis=0)
            sums[present, half:] += np.add.reduceat(np.sin(angles), first, axis=0)
        return sums / np.sqrt(half), np.bincount(group[order], minlength=n_groups)


def mmd2(one: Embedded, other: Embedded) -> float:
    """Returns the unbiased estimate of the squared discrepancy; about 0, also below it, for samples of one law.

    Raises:
        InvalidInput: If a side has fewer than two rows.
    """
    if min(one.n, other.n) < 2:
        raise InvalidInput("rows", (one.n, other.n), "be at least two on each side")
    # The rows have length 1, so n of the n squared products in a square are those of a row with itself.
    within = [(float(side.total @ side.total) - side.n) / (side.n * (side.n - 1)) for side in (one, other)]
    return sum(within) - 2 * float(one.total @ other.total) / (one.n * other.n)


def _finite(column: Floats) -> Floats:
    return column[np.isfinite(column)]
