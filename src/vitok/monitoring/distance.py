"""How far counts of one column have moved from the reference, in the two units that this room uses."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitok.stats import Divergence, FrozenEdges, chi_square, hellinger, jensen_shannon, ks, psi, wasserstein


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Distance of two count vectors over the same bins; see `ColumnDrift` for the fields."""

    psi: float
    null_mean: float
    null_quantile: float
    p_value: float
    effect: float
    shift: float
    statistics: tuple[Divergence, ...] = ()


def distance(
    frozen: FrozenEdges,
    reference: NDArray[np.int64],
    current: NDArray[np.int64],
    *,
    unit: float | None = None,
    every: bool = False,
) -> Distance:
    """Measures how far `current` is from `reference`; an empty window has moved by 0.

    Args:
        frozen: The bins, b of them.
        reference: Counts of shape (b,), not all 0.
        current: Counts of shape (b,).
        unit: Unit of the shift, as `spread` gives it for the profile's own counts; None for that of `reference`.
        every: True gives all six distances in `statistics`, with their null laws; False only the two that are used.

    Example:
        >>> bins = FrozenEdges.from_values(np.arange(100.0), n_bins=4)
        >>> found = distance(bins, bins.count(np.arange(100.0)), bins.count(np.arange(100.0) + 25))
        >>> round(found.effect, 2), round(found.shift, 2)
        (1.07, 0.3)
    """
    index = psi(reference, current)
    scale = spread(frozen, reference) if unit is None else unit
    moved = wasserstein(reference, current, positions=frozen.centers, scale=scale)
    statistics: tuple[Divergence, ...] = (index, moved)
    if every:
        # Null and the infinities are no points of the axis: for the cumulated shares they lie at its ends.
        statistics = (
            index,
            ks(reference, current),
            moved,
            jensen_shannon(reference, current),
            hellinger(reference, current),
            chi_square(reference, current),
        )
    return Distance(
        psi=index.value,
        null_mean=index.null_mean,
        null_quantile=index.null_quantile,
        p_value=index.p_value,
        effect=0.0 if math.isnan(index.value) else max(0.0, index.excess),
        # Where one side is all null nothing can be placed; the index sees that change.
        shift=0.0 if math.isnan(moved.value) else max(0.0, moved.excess),
        statistics=statistics,
    )


def spread(frozen: FrozenEdges, reference: NDArray[np.int64]) -> float:
    """Returns the unit of shifts: the interquartile range, or the mean distance from the median where that is larger.

    Where most values lie close together and a few far out, as fraud probabilities do, the interquartile range is
    tiny beside what the few ordinarily add or take; the mean distance is not.

    Args:
        frozen: The bins, b of them.
        reference: Counts of shape (b,).

    Example:
        >>> values = np.concatenate([np.linspace(0.001, 0.002, 990), np.full(10, 0.9)])
        >>> bins = FrozenEdges.from_values(values)
        >>> round(bins.scale, 4), round(spread(bins, bins.count(values)), 4)
        (0.0005, 0.0092)
    """
    places = np.array(frozen.centers)
    placed = np.isfinite(places) & (reference > 0)
    at, n = places[placed], reference[placed]
    if not len(at):
        return frozen.scale
    order = np.argsort(at)
    at, n = at[order], n[order]
    median = at[np.searchsorted(np.cumsum(n), n.sum() / 2)]
    return max(frozen.scale, float(np.abs(at - median) @ n / n.sum()))
