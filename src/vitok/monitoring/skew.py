"""Training-serving skew: the features that a decision was made with against the same features computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import Estimate, wilson
from vitok.stats.arrays import numbers
from vitok.stats.results import Result

_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class ColumnSkew(Result):
    """How far the served values of one feature are from the recomputed ones.

    Attributes:
        name: The feature.
        share: Share of decisions in which they differ, with its interval.
        n_served_null: Decisions where only the served value is null.
        n_recomputed_null: Decisions where only the recomputed value is null.
        largest: Largest absolute difference where both are there; 0 where there is none.
        ratio: Middle ratio of served to recomputed among those that differ; NaN where there is none. A ratio far
            from 1 that all share is a change of unit, one that scatters around 1 a value that was late.
        examples: Ids of decisions that differ, at most five.
    """

    name: str
    share: Estimate
    n_served_null: int
    n_recomputed_null: int
    largest: float
    ratio: float
    examples: tuple[str, ...]

    def __str__(self) -> str:
        where = f"{self.share.value:.2%} of {self.share.n_obs:,} decisions"
        return f"{self.name} differs in {where}, by {self.largest:.4g} at most"


@dataclass(frozen=True, kw_only=True)
class SkewReport(Result):
    """Skew of all features of some decisions.

    Attributes:
        columns: The features, those that differ most often first.
        n: Decisions.
        n_exact: Decisions in which no feature differs.
    """

    columns: tuple[ColumnSkew, ...]
    n: int
    n_exact: int

    @property
    def differing(self) -> tuple[ColumnSkew, ...]:
        """The features that differ anywhere."""
        return tuple(column for column in self.columns if column.share.value > 0)

    def __str__(self) -> str:
        head = f"{self.n_exact:,} of {self.n:,} decisions were made with exactly the recomputed features"
        return "\n".join([head, *(f"  {column}" for column in self.differing[:10])])


def skew(
    ids: Sequence[object],
    served: Mapping[str, ArrayLike],
    recomputed: Mapping[str, ArrayLike],
    *,
    relative: float = 1e-6,
    absolute: float = 1e-9,
) -> SkewReport:
    """Compares logged feature values with the same features computed again, decision by decision.

    Args:
        ids: Ids of the n decisions.
        served: Feature to the values in the log, shape (n,), NaN where null.
        recomputed: The same features in the same order of decisions, from the offline table.
        relative: Relative difference that is rounding: 1e-6 leaves 32-bit floats in peace.
        absolute: Absolute difference that is.

    Raises:
        InvalidInput: If features or lengths differ.

    Example:
        >>> print(skew(["a", "b"], {"amount": [1.0, 2.0]}, {"amount": [1.0, 2.5]}))
        1 of 2 decisions were made with exactly the recomputed features
          amount differs in 50.00% of 2 decisions, by 0.5 at most
    """
    if set(served) != set(recomputed):
        odd = sorted(set(served) ^ set(recomputed))
        raise InvalidInput("served, recomputed", odd, "hold the same features", "Compare the features of one version")
    n = len(ids)
    exact = np.ones(n, dtype=bool)
    found = []
    for name in served:
        pair = []
        for side, values in (("served", served[name]), ("recomputed", recomputed[name])):
            array = numbers(f"{side}[{name}]", values)
            if array.shape != (n,):
                raise InvalidInput(f"{side}[{name}]", array.shape, f"have the shape ({n},), one for each decision")
            pair.append(array)
        column, differs = _column(name, ids, pair[0], pair[1], relative, absolute)
        exact &= ~differs
        found.append(column)
    found.sort(key=lambda column: (-column.share.value, column.name))
    return SkewReport(columns=tuple(found), n=n, n_exact=int(exact.sum()))


def _column(
    name: str,
    ids: Sequence[object],
    served: NDArray[np.float64],
    again: NDArray[np.float64],
    relative: float,
    absolute: float,
) -> tuple[ColumnSkew, NDArray[np.bool_]]:
    null, null_again = np.isnan(served), np.isnan(again)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(served - again)
        near = (gap <= absolute + relative * np.abs(again)) | (served == again)
    differs = np.where(null | null_again, null != null_again, ~near)
    both = differs & ~null & ~null_again
    ratios = served[both & (again != 0)] / again[both & (again != 0)]
    return (
        ColumnSkew(
            name=name,
            share=wilson(int(differs.sum()), len(served)),
            n_served_null=int((null & ~null_again).sum()),
            n_recomputed_null=int((null_again & ~null).sum()),
            largest=float(gap[both].max(initial=0.0)),
            ratio=float(np.median(ratios)) if len(ratios) else float("nan"),
            examples=tuple(str(ids[at]) for at in np.flatnonzero(differs)[:_EXAMPLES]),
        ),
        differs,
    )
