"""How sure the model is of itself, against how sure it was: a shift is a sign, not a proof, of change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import Divergence, Estimate, FrozenEdges, psi, wilson
from vitok.stats.arrays import Counts, numbers
from vitok.stats.results import Result

N_BINS = 20
# Of the bins of frozen edges those that hold finite values: null and the infinities stand around them.
_CELLS = slice(2, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfidenceCounts:
    """Counts of how sure a model was; counts of parts add up to the counts of the whole.

    Attributes:
        n_classes: Classes, at least 2.
        floor: Largest probability below which a row counts as unsure.
        largest: Rows by their largest class probability, over 20 bins from 1 / k to 1.
        entropy: Rows by their entropy over the largest possible, 20 bins from 0 to 1.
        n_below: Rows whose largest probability is below the floor.
        sum_entropy: Sum of the entropies over the largest possible.
        n: Rows.
    """

    n_classes: int
    floor: float
    largest: Counts
    entropy: Counts
    n_below: int
    sum_entropy: float
    n: int

    @classmethod
    def of(cls, probability: ArrayLike, *, floor: float = 0.6) -> "ConfidenceCounts":
        """Counts rows.

        Args:
            probability: Shape (n,) of the positive class, or (n, k); rows with a NaN are left out.
            floor: See above, in (0, 1].

        Raises:
            InvalidInput: If the shape does not fit or a value is outside [0, 1].

        Example:
            >>> found = ConfidenceCounts.of([0.5, 0.9, 0.99])
            >>> found.n_below, found.n
            (1, 3)
        """
        p = numbers("probability", probability)
        p = np.column_stack([1 - p, p]) if p.ndim == 1 else p
        if p.ndim != 2 or p.shape[1] < 2:
            raise InvalidInput("probability", p.shape, "have the shape (n,) or (n, k), k at least 2")
        if not 0 < floor <= 1:
            raise InvalidInput("floor", floor, "be in (0, 1]")
        p = p[~np.isnan(p).any(axis=1)]
        if ((p < 0) | (p > 1)).any():
            raise InvalidInput("probability", float(p.min()), "be in [0, 1]")
        return cls._counted(p, np.ones(len(p)), floor)

    @classmethod
    def of_bins(cls, edges: FrozenEdges, counts: ArrayLike, *, floor: float) -> "ConfidenceCounts":
        """Counts the bins of a probability, such as a profile and its windows have, each row at its bin's center.

        The center of a bin is that of the reference, so that two windows over the same edges are counted alike.

        Args:
            edges: Bins of the probability of the positive class.
            counts: Rows in each of them, shape (edges.n_bins,); those without a finite probability are left out.
            floor: See above, in (0, 1]; `unsure_floor` gives one.

        Raises:
            InvalidInput: If the shape does not fit, or the floor is out of range.

        Example:
            >>> edges = FrozenEdges.from_values(np.repeat([0.1, 0.5, 0.9], 10))
            >>> found = ConfidenceCounts.of_bins(edges, edges.count([0.5, 0.1, 0.9, 0.9, math.nan]), floor=0.8)
            >>> found.n_below, found.n
            (1, 4)
        """
        rows = numbers("counts", counts)
        if rows.shape != (edges.n_bins,):
            raise InvalidInput("counts", rows.shape, f"have the shape ({edges.n_bins},)")
        if not 0 < floor <= 1:
            raise InvalidInput("floor", floor, "be in (0, 1]")
        p = _centers(edges)
        return cls._counted(np.column_stack([1 - p, p]), rows[_CELLS], floor)

    @classmethod
    def _counted(cls, p: NDArray[np.float64], copies: NDArray[np.float64], floor: float) -> "ConfidenceCounts":
        k = p.shape[1]
        top = p.max(axis=1) if len(p) else np.empty(0)
        entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1) / math.log(k)
        return cls(
            n_classes=k,
            floor=floor,
            largest=_counts((top - 1 / k) / (1 - 1 / k), copies),
            entropy=_counts(entropy, copies),
            n_below=int(copies[top < floor].sum()),
            sum_entropy=float(entropy @ copies),
            n=int(copies.sum()),
        )

    def __add__(self, other: "ConfidenceCounts") -> "ConfidenceCounts":
        self.check_same(other)
        return ConfidenceCounts(
            n_classes=self.n_classes,
            floor=self.floor,
            largest=self.largest + other.largest,
            entropy=self.entropy + other.entropy,
            n_below=self.n_below + other.n_below,
            sum_entropy=self.sum_entropy + other.sum_entropy,
            n=self.n + other.n,
        )

    def check_same(self, other: "ConfidenceCounts") -> None:
        """Checks that both count the same way.

        Raises:
            InvalidInput: If classes or floor differ.
        """
        if (self.n_classes, self.floor) != (other.n_classes, other.floor):
            given = (self.n_classes, self.floor), (other.n_classes, other.floor)
            raise InvalidInput("classes and floor", given, "be the same on both sides")

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {**vars(self), "largest": self.largest.tolist(), "entropy": self.entropy.tolist()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ConfidenceCounts":
        """Reads what `to_dict` wrote."""
        return cls(
            n_classes=int(data["n_classes"]),
            floor=float(data["floor"]),
            largest=np.array(data["largest"], dtype=np.int64),
            entropy=np.array(data["entropy"], dtype=np.int64),
            n_below=int(data["n_below"]),
            sum_entropy=float(data["sum_entropy"]),
            n=int(data["n"]),
        )


def _counts(share: NDArray[np.float64], copies: NDArray[np.float64]) -> Counts:
    place = np.clip((share * N_BINS).astype(np.int64), 0, N_BINS - 1)
    return np.bincount(place, weights=copies, minlength=N_BINS).astype(np.int64)


def _centers(edges: FrozenEdges) -> NDArray[np.float64]:
    return np.clip(np.array(edges.centers[_CELLS], dtype=np.float64), 0.0, 1.0)


def unsure_floor(edges: FrozenEdges, counts: ArrayLike, *, least: float = 0.1) -> float:
    """Returns the floor below which a share of the reference lies: what unsure means for this very model.

    Where positives are rare nearly all probabilities are close to 0, and a floor such as 0.6 would never be met.

    Args:
        edges: Bins of the probability of the positive class.
        counts: Rows of the reference in each of them, shape (edges.n_bins,).
        least: Share of the reference that is below the floor at least, in (0, 1): the bins of the least sure rows.

    Returns:
        The floor; NaN where bins are so few that no floor parts them.

    Example:
        >>> edges = FrozenEdges.from_values(np.linspace(0, 0.1, 1_001))
        >>> unsure_floor(edges, edges.count(np.linspace(0, 0.1, 1_001))) < 0.92
        True
    """
    rows = numbers("counts", counts)[_CELLS]
    p = _centers(edges)
    sure, at = np.unique(np.maximum(p, 1 - p), return_inverse=True)
    below = np.cumsum(np.bincount(at, weights=rows, minlength=len(sure)))
    reached = np.flatnonzero(below >= least * below[-1])
    if not below[-1] or reached[0] + 1 >= len(sure):
        return math.nan
    return float(sure[reached[0] + 1])


@dataclass(frozen=True, kw_only=True)
class ConfidenceShift(Result):
    """Confidence of a window against that of the reference.

    Attributes:
        largest: Divergence of the largest probabilities, with its null law.
        entropy: Divergence of the entropies.
        below: Share below the floor now.
        reference_below: Share below the floor in the reference.
        change: Difference of the two shares with its interval; above 0 the model is less sure.
        below_law: Divergence of the two shares, with its null law.
        mean_entropy: Mean entropy now, over the largest possible.
        reference_entropy: The same in the reference.
        n_obs: Rows of the window.
    """

    largest: Divergence
    entropy: Divergence
    below: float
    reference_below: float
    change: Estimate
    below_law: Divergence
    mean_entropy: float
    reference_entropy: float
    n_obs: int

    def __str__(self) -> str:
        return (
            f"below the floor {self.below:.3g}, in the reference {self.reference_below:.3g}; {self.change};"
            f" mean entropy {self.mean_entropy:.3g}, in the reference {self.reference_entropy:.3g}"
        )


def confidence_shift(
    reference: ConfidenceCounts, current: ConfidenceCounts, *, confidence_level: float = 0.95
) -> ConfidenceShift:
    """Compares how sure a model is with how sure it was.

    A model that meets what it never saw is often less sure, but not always: overconfidence on strange rows looks
    like health here. Read it beside drift and estimated performance.

    Args:
        reference: Counts of the reference.
        current: Counts of the window.
        confidence_level: Level, in (0, 1).

    Returns:
        The shift; the interval of the change is Newcombe's hybrid score interval, [-1, 1] without rows on a side.

    Raises:
        InvalidInput: If classes or floor differ.

    Source: Newcombe, Statistics in Medicine 1998, method 10.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> sure, unsure = ConfidenceCounts.of(rng.beta(0.2, 0.2, 5_000)), ConfidenceCounts.of(rng.beta(1, 1, 500))
        >>> confidence_shift(sure, unsure).change.lower > 0.05
        True
    """
    reference.check_same(current)
    value, lower, upper = math.nan, -1.0, 1.0
    if reference.n and current.n:
        before = wilson(reference.n_below, reference.n, confidence_level=confidence_level)
        now = wilson(current.n_below, current.n, confidence_level=confidence_level)
        value = now.value - before.value
        lower = value - math.hypot(now.value - now.lower, before.upper - before.value)
        upper = value + math.hypot(now.upper - now.value, before.value - before.lower)
    change = Estimate(
        name="change_below_floor",
        value=value,
        lower=lower,
        upper=upper,
        n_obs=current.n,
        confidence_level=confidence_level,
        definition="share below the floor now less that of the reference, Newcombe's hybrid score interval"
        if reference.n and current.n
        else "a side has no rows",
    )

    def share(part: float, counts: ConfidenceCounts) -> float:
        return part / counts.n if counts.n else math.nan

    return ConfidenceShift(
        largest=psi(reference.largest, current.largest),
        entropy=psi(reference.entropy, current.entropy),
        below=share(current.n_below, current),
        reference_below=share(reference.n_below, reference),
        change=change,
        below_law=psi(_below_and_above(reference), _below_and_above(current)),
        mean_entropy=share(current.sum_entropy, current),
        reference_entropy=share(reference.sum_entropy, reference),
        n_obs=current.n,
    )


def _below_and_above(counts: ConfidenceCounts) -> Counts:
    return np.array([counts.n_below, counts.n - counts.n_below], dtype=np.int64)
