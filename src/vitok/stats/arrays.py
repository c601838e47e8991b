"""How this room reads the arrays that it is given: shapes, ranges and missing values, checked once and named."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]


def numbers(field: str, values: ArrayLike) -> Floats:
    """Reads an array of float64 of any shape; NaN and the infinities may be in it.

    Raises:
        InvalidInput: If an item is no number.

    Example:
        >>> numbers("amount", [[1, None]])
        array([[ 1., nan]])
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(field, values, "be an array of numbers") from None


def vector(field: str, values: ArrayLike, *, finite: bool = False) -> Floats:
    """Reads a one-dimensional array of float64 without NaN.

    Args:
        field: Name to use in an error.
        values: Anything that numpy turns into numbers, of shape (n,).
        finite: True refuses infinities as well.

    Raises:
        InvalidInput: If the shape is not (n,), an item is no number, is NaN, or is infinite where that is refused.

    Example:
        >>> vector("score", [1, 2])
        array([1., 2.])
    """
    array = numbers(field, values)
    if array.ndim != 1:
        raise InvalidInput(field, array.shape, "have one dimension", "Pass an array of shape (n,)")
    bad = ~np.isfinite(array) if finite else np.isnan(array)
    if bad.any():
        at = int(np.argmax(bad))
        rule = "be finite everywhere" if finite else "hold no NaN"
        raise InvalidInput(f"{field}[{at}]", float(array[at]), rule, "Drop or impute such rows first")
    return array


def labels(field: str, values: ArrayLike) -> Flags:
    """Reads a one-dimensional array of yes and no: bool, or numbers that are exactly 0 or 1.

    Raises:
        InvalidInput: If another value is in it, or the shape is not (n,).

    Example:
        >>> labels("y", [0, 1.0])
        array([False,  True])
    """
    array = np.asarray(values)
    if array.dtype == np.bool_ and array.ndim == 1:
        return array
    given = vector(field, values)
    flags = given == 1.0
    bad = ~(flags | (given == 0.0))
    if bad.any():
        at = int(np.argmax(bad))
        raise InvalidInput(f"{field}[{at}]", float(given[at]), "be 0 or 1")
    return flags


def same_length(**arrays: NDArray[Any]) -> int:
    """Returns the common length of the arrays.

    Raises:
        InvalidInput: If the lengths differ.

    Example:
        >>> same_length(y=np.zeros(3), score=np.ones(3))
        3
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        names = " and ".join(lengths)
        raise InvalidInput(names, tuple(lengths.values()), "have the same length")
    return next(iter(lengths.values()))


def labels_and_scores(y: ArrayLike, score: ArrayLike) -> tuple[Flags, Floats]:
    """Reads labels and scores of equal length; an infinite score is allowed, since it has a rank."""
    flags, scores = labels("y", y), vector("score", score)
    same_length(y=flags, score=scores)
    return flags, scores


def labels_and_probabilities(y: ArrayLike, probability: ArrayLike) -> tuple[Flags, Floats]:
    """Reads labels and probabilities in [0, 1] of equal length."""
    flags, p = labels("y", y), vector("probability", probability)
    same_length(y=flags, probability=p)
    bad = (p < 0.0) | (p > 1.0)
    if bad.any():
        at = int(np.argmax(bad))
        raise InvalidInput(f"probability[{at}]", float(p[at]), "be in [0, 1]", "Calibrate raw scores first")
    return flags, p


def open_unit(field: str, value: float) -> float:
    """Returns the value if it lies strictly between 0 and 1.

    Raises:
        InvalidInput: If it does not.

    Example:
        >>> open_unit("confidence_level", 0.95)
        0.95
    """
    if not 0.0 < value < 1.0:
        raise InvalidInput(field, value, "be strictly between 0 and 1")
    return float(value)


def positive_integer(field: str, value: int) -> int:
    """Returns the value if it is a whole number of at least 1.

    Raises:
        InvalidInput: If it is not.

    Example:
        >>> positive_integer("k", 100)
        100
    """
    if value != int(value) or value < 1:
        raise InvalidInput(field, value, "be a whole number of at least 1")
    return int(value)


def count_vectors(
    reference: Sequence[float] | ArrayLike, current: Sequence[float] | ArrayLike
) -> tuple[Floats, Floats]:
    """Reads two vectors of counts over the same bins.

    Raises:
        InvalidInput: If a count is negative or not finite, or the lengths differ.
    """
    pair = []
    for field, values in (("reference", reference), ("current", current)):
        array = vector(field, values, finite=True)
        if (array < 0.0).any():
            at = int(np.argmax(array < 0.0))
            raise InvalidInput(f"{field}[{at}]", float(array[at]), "be a count of at least 0")
        pair.append(array)
    same_length(reference=pair[0], current=pair[1])
    return pair[0], pair[1]
