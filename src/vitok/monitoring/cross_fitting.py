"""Telling two samples apart by trees, each row judged by trees that never saw it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok import settings
from vitok.errors import MissingExtra

_Floats = NDArray[np.float64]
_WORTH_THREADS = 50_000


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFit:
    """Scores of rows by trees of the other folds; reference rows first, then current ones.

    Attributes:
        logit: Shape (n + m,), log odds that a row is current, both samples counting alike.
        fold: Shape (n + m,), the fold of each row, from 0.
        n_reference: Reference rows, n.
        gain: Shape (f,), gain of each feature, summed over the folds' trees.
    """

    logit: _Floats
    fold: NDArray[np.intp]
    n_reference: int
    gain: _Floats

    def auc(self) -> tuple[float, float]:
        """Returns how well current rows are told from the reference's, and the standard error where nothing changed.

        Scores of a fold are turned into ranks before folds are put together, since scores of different fits do not
        compare. DeLong's variance is doubled: what two folds have in common by chance shows twice, when the one is
        learned from and the other judged, and the other way round, so that of the pairs of folds each counts double.

        Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988; the doubling is derived for scores that are linear
        in the chance of each fold, and is an upper bound elsewhere.
        """
        score = np.empty(len(self.logit))
        for one in np.unique(self.fold):
            rows = self.fold == one
            score[rows] = middle_ranks(self.logit[rows]) / int(rows.sum())
        area, variance = delong(score[: self.n_reference], score[self.n_reference :])
        return area, math.sqrt(2 * variance)


def cross_fit(
    reference: _Floats, current: _Floats, *, parameters: Mapping[str, Any], n_folds: int, n_trees: int, seed: int
) -> CrossFit:
    """Fits boosted trees to the rows of all folds but one, and scores that one, for each.

    Args:
        reference: Shape (n, f), n at least `n_folds`; NaN where a value is missing.
        current: Shape (m, f), m at least `n_folds`.
        parameters: Of LightGBM, but for the objective, the seed and the threads.
        n_folds: At least 2, drawn within each sample.
        n_trees: Trees of each fit.
        seed: Of the folds and the trees.

    Raises:
        MissingExtra: If LightGBM is missing.
    """
    try:
        import lightgbm
    except ImportError:
        raise MissingExtra("models", "telling two samples apart") from None

    whole = np.vstack([reference, current])
    is_current = np.arange(len(whole)) >= len(reference)
    rng = np.random.default_rng(seed)
    fold = np.empty(len(whole), dtype=np.intp)
    for side in (False, True):
        rows = np.flatnonzero(is_current == side)
        fold[rng.permutation(rows)] = np.arange(len(rows)) % n_folds
    told = {
        **parameters,
        "objective": "binary",
        "verbosity": -1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        # On few rows threads wait for each other longer than they work.
        "num_threads": settings.current().threads if len(whole) >= _WORTH_THREADS else 1,
    }
    # Both samples count alike, so that the odds are the ratio of the densities itself.
    balance = np.where(is_current, len(reference) / len(current), 1.0)
    logit, gain = np.empty(len(whole)), np.zeros(whole.shape[1])
    for one in range(n_folds):
        rest = fold != one
        data = lightgbm.Dataset(
            whole[rest], is_current[rest].astype(np.float64), weight=balance[rest], params={"verbosity": -1}
        )
        trees = lightgbm.train(told, data, num_boost_round=n_trees)
        logit[~rest] = trees.predict(whole[~rest], raw_score=True)
        gain += trees.feature_importance(importance_type="gain")
    return CrossFit(logit=logit, fold=fold, n_reference=len(reference), gain=gain)


def middle_ranks(values: _Floats) -> _Floats:
    """Returns the ranks from 1, ties at their middle.

    Example:
        >>> middle_ranks(np.array([3.0, 1.0, 3.0])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[at])


def delong(negative: _Floats, positive: _Floats) -> tuple[float, float]:
    """Returns the area under the ROC curve and its variance, of at least two scores of each kind.

    Example:
        >>> delong(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
        (0.875, 0.03125)
    """
    n, m = len(negative), len(positive)
    both = middle_ranks(np.concatenate([negative, positive]))
    below = (both[n:] - middle_ranks(positive)) / n
    above = 1 - (both[:n] - middle_ranks(negative)) / m
    return float(below.mean()), float(below.var(ddof=1) / m + above.var(ddof=1) / n)
