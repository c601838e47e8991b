"""When a model had better not answer: a floor of confidence with a bound on the errors above it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import labels, open_unit, same_length, vector
from vitok.stats.results import Result


@dataclass(frozen=True, kw_only=True)
class ConfidenceFloor(Result):
    """The confidence from which a model answers; below it the answer is withheld or the fallback gives it.

    Attributes:
        floor: Answer where the confidence is at least this; infinite where no floor keeps the bound.
        coverage: Share of the rows that were answered when it was set.
        error: Share of wrong answers among those.
        error_bound: What that share is at most, at `confidence_level`.
        max_error: The bound that was asked for.
        n_obs: Rows it was set on.
        confidence_level: Level at which `error_bound` holds, for all floors that were tried.
    """

    floor: float
    coverage: float
    error: float
    error_bound: float
    max_error: float
    n_obs: int
    confidence_level: float

    def answers(self, confidence: ArrayLike) -> NDArray[np.bool_]:
        """Returns True where the model answers; NaN never does. About 2 us a batch.

        Args:
            confidence: Shape (n,).
        """
        return np.asarray(confidence, dtype=np.float64) >= self.floor

    def __str__(self) -> str:
        if math.isinf(self.floor):
            return f"no floor keeps errors at or below {self.max_error:.4g} (n = {self.n_obs:,}): withhold every answer"
        level = f"{100 * self.confidence_level:.6g} %"
        return (
            f"answer from confidence {self.floor:.4g}: {self.coverage:.1%} of rows, {self.error:.4g} of them wrong"
            f" (at most {self.error_bound:.4g}, {level}, n = {self.n_obs:,})"
        )


def confidence_of(probability: ArrayLike) -> NDArray[np.float64]:
    """Returns the confidence of answers: max(p, 1 - p), or the largest of the probabilities of the classes.

    Args:
        probability: Shape (n,), or (n, k) for k classes; calibrated, as a floor on a raw score means nothing.

    Example:
        >>> confidence_of([0.1, 0.5]).tolist(), confidence_of([[0.2, 0.7, 0.1]]).tolist()
        ([0.9, 0.5], [0.7])
    """
    p = np.asarray(probability, dtype=np.float64)
    return p.max(axis=1) if p.ndim == 2 else np.maximum(p, 1 - p)


def fit_floor(
    confidence: ArrayLike, correct: ArrayLike, *, max_error: float, confidence_level: float = 0.95
) -> ConfidenceFloor:
    """Finds the lowest floor above which the share of errors stays within a bound.

    Args:
        confidence: Shape (n,), of rows that the model was not fitted on.
        correct: Shape (n,), whether the answer was right.
        max_error: The bound, in (0, 1).
        confidence_level: Chance that the bound holds on new rows of the same distribution.

    Returns:
        The floor. Floors are tried by halving, each with its share of the allowed doubt, and the exact bound of the
        binomial is taken (Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017,
        algorithm 2). It says nothing about rows of another distribution: combine it with the anomaly score.

    Raises:
        InvalidInput: If there are no rows, lengths differ, or a number is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.random(20_000)
        >>> right = rng.random(20_000) < confidence_of(p)
        >>> print(fit_floor(confidence_of(p), right, max_error=0.1))
        answer from confidence 0.8204: 35.7% of rows, 0.09025 of them wrong (at most 0.09989, 95 %, n = 20,000)
    """
    from scipy.stats import beta

    scores, flags = vector("confidence", confidence, finite=True), labels("correct", correct)
    n = same_length(confidence=scores, correct=flags)
    if not n:
        raise InvalidInput("confidence", [], "hold at least one row")
    open_unit("max_error", max_error)
    doubt = (1 - open_unit("confidence_level", confidence_level)) / (math.ceil(math.log2(n)) + 1)
    order = np.argsort(-scores, kind="stable")
    ordered, wrong = scores[order], np.cumsum(~flags[order])

    def bound(at: int) -> tuple[int, int, float]:
        """Counts the rows from a floor on, ties included, and bounds their share of errors."""
        rows = int(np.searchsorted(-ordered, -ordered[at], side="right"))
        errors = int(wrong[rows - 1])
        upper = 1.0 if errors == rows else float(beta.ppf(1 - doubt, errors + 1, rows - errors))
        return rows, errors, upper

    best: tuple[int, int, float] | None = None
    low, high = 0, n - 1
    while low <= high:
        middle = (low + high) // 2
        found = bound(middle)
        if found[2] <= max_error:
            best, low = found, max(middle + 1, found[0])
        else:
            high = middle - 1
    rows, errors, upper = best or (0, 0, 1.0)
    return ConfidenceFloor(
        floor=float(ordered[rows - 1]) if rows else math.inf,
        coverage=rows / n,
        error=errors / rows if rows else math.nan,
        error_bound=upper,
        max_error=max_error,
        n_obs=n,
        confidence_level=confidence_level,
    )
