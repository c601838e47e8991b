"""Adjusted p-values for many tests at once, so that watching fifty features does not mean two false alarms a look."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import Floats, vector
from vitok.stats.results import Result


@dataclass(frozen=True, kw_only=True)
class AdjustedPValues(Result):
    """P-values before and after adjustment, in the order they were given.

    Attributes:
        name: `"benjamini_hochberg"` or `"holm"`.
        p_values: As given.
        adjusted: Reject test i at level q exactly where `adjusted[i] <= q`.
        definition: What a rejection at level q promises.
    """

    name: str
    p_values: tuple[float, ...]
    adjusted: tuple[float, ...]
    definition: str

    def __str__(self) -> str:
        smallest = f", smallest {min(self.adjusted):.4g}" if self.adjusted else ""
        return f"{self.name} of {len(self.adjusted)} tests{smallest}"


def _read(p_values: ArrayLike) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.intp]]]:
    p = vector("p_values", p_values)
    if ((p < 0) | (p > 1)).any():
        at = int(np.argmax((p < 0) | (p > 1)))
        raise InvalidInput(f"p_values[{at}]", float(p[at]), "be in [0, 1]")
    return p, np.argsort(p, kind="stable")


def benjamini_hochberg(p_values: ArrayLike) -> AdjustedPValues:
    """Adjusts for the false discovery rate: at level q, on average at most a share q of the rejections is false.

    Args:
        p_values: Shape (m,), in [0, 1], of independent or positively dependent tests; may be empty.

    Returns:
        The adjusted p-values.

    Raises:
        InvalidInput: If one is NaN or outside [0, 1].

    Source: Benjamini & Hochberg, JRSS B 1995.

    Example:
        >>> benjamini_hochberg([0.01, 0.04, 0.03]).adjusted
        (0.03, 0.04, 0.04)
    """
    p, order = _read(p_values)
    m = len(p)
    scaled = p[order] * m / np.arange(1, m + 1)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return AdjustedPValues(
        name="benjamini_hochberg",
        p_values=tuple(p.tolist()),
        adjusted=tuple(adjusted.tolist()),
        definition="false discovery rate at most q among rejections at q, independent or positively dependent tests",
    )


def holm(p_values: ArrayLike) -> AdjustedPValues:
    """Adjusts for the family: at level q, the chance of even one false rejection is at most q.

    Args:
        p_values: Shape (m,), in [0, 1], with any dependence; may be empty.

    Returns:
        The adjusted p-values.

    Raises:
        InvalidInput: If one is NaN or outside [0, 1].

    Source: Holm, Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03]).adjusted
        (0.03, 0.06, 0.06)
    """
    p, order = _read(p_values)
    m = len(p)
    scaled = p[order] * np.arange(m, 0, -1)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return AdjustedPValues(
        name="holm",
        p_values=tuple(p.tolist()),
        adjusted=tuple(adjusted.tolist()),
        definition="chance of any false rejection at q is at most q, any dependence",
    )
