"""Progressive validation: every row is predicted before it is learned, so every row is a test row.

Source: Blum, Kalai and Langford, "Beating the hold-out", COLT 1999; McMahan et al., KDD 2013, section 5.1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.results import Result

_Floats = NDArray[np.float64]
_BINS, _SPAN = 1024, 12.0
_MOST_SLICES = 64
ALL, OTHERS = "all", "others"


@dataclass(frozen=True, kw_only=True)
class ProgressiveScore(Result):
    """How well rows were predicted before they were learned, in one window and slice.

    Attributes:
        slice: `"all"`, or the slice's name.
        half_life: Rows after which a row counts half; infinite where all count alike.
        n_obs: Rows counted, without decay.
        n_effective: (sum of weights)^2 / sum of squared weights, decay included.
        log_loss: Weighted mean, nats.
        relative_loss: Log loss over that of always saying the window's own rate of positives; below 1 is of use.
        roc_auc: Area under the ROC curve from 1024 bins of log odds, ties within a bin counting half; NaN where a
            class is missing.
        calibration_ratio: Sum of the predictions over sum of the labels: above 1 says too much. NaN where there is
            no positive.
        positive_rate: Weighted mean of the labels.
    """

    slice: str
    half_life: float
    n_obs: int
    n_effective: float
    log_loss: float
    relative_loss: float
    roc_auc: float
    calibration_ratio: float
    positive_rate: float

    def __str__(self) -> str:
        span = "all rows" if math.isinf(self.half_life) else f"half-life {self.half_life:,.0f} rows"
        return (
            f"{self.slice} ({span}, n = {self.n_obs:,}, effective {self.n_effective:,.0f}): "
            f"log loss {self.log_loss:.4g} ({self.relative_loss:.3f} of the base rate's), AUC {self.roc_auc:.4f}, "
            f"predicted / observed {self.calibration_ratio:.3f}"
        )


class ProgressiveValidation:
    """Counts progressive predictions in decayed windows, over all rows and by slice.

    Weights belong in: with rows subsampled and weighted by 1 / r, unweighted figures would be those of the sample.

    Args:
        half_lives: Rows after which a row counts half, one for each window, above 0; `math.inf` counts all alike.

    Example:
        >>> validation = ProgressiveValidation(half_lives=(math.inf,))
        >>> validation.update([0.9, 0.2, 0.6, 0.1], [1, 0, 1, 0], slices=["FR", "FR", "DE", "DE"])
        >>> print(validation.scores()[0])
        all (all rows, n = 4, effective 4): log loss 0.2362 (0.341 of the base rate's), AUC 1.0000,
        predicted / observed 0.900
        >>> [score.slice for score in validation.scores()]
        ['all', 'FR', 'DE']
    """

    def __init__(self, *, half_lives: Sequence[float] = (20_000.0, math.inf)) -> None:
        if not half_lives or any(not value > 0 for value in half_lives):
            raise InvalidInput("half_lives", half_lives, "be rows above 0, at least one")
        self.half_lives = tuple(float(value) for value in half_lives)
        self._growth = np.array([1.0 if math.isinf(value) else 2.0 ** (1.0 / value) for value in self.half_lives])
        self._gains = np.ones(len(self.half_lives))
        self._slices: dict[str, int] = {ALL: 0}
        self._counts = np.zeros((len(self.half_lives), 1, 3, _BINS))
        self._sums = np.zeros((len(self.half_lives), 1, 6))

    def update(
        self,
        probabilities: ArrayLike,
        labels: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        slices: Sequence[str] | None = None,
    ) -> None:
        """Counts rows, in the order in which they were learned.

        Args:
            probabilities: Predicted before the row was learned, shape (n,), in [0, 1].
            labels: Shape (n,), 0 or 1.
            weights: Shape (n,), at least 0; 1 by default.
            slices: One name a row. The first 64 names get figures of their own, later ones are `"others"`.

        Raises:
            InvalidInput: If shapes differ or a value is outside its range.
        """
        from vitok.models.online_kernels import count_progress

        p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
        w = np.ones(len(p)) if weights is None else np.asarray(weights, dtype=np.float64)
        if p.ndim != 1 or p.shape != y.shape or p.shape != w.shape:
            raise InvalidInput("labels", (p.shape, y.shape, w.shape), "have the shape of the probabilities, (n,)")
        if not ((p >= 0) & (p <= 1) & ((y == 0) | (y == 1)) & (w >= 0) & np.isfinite(w)).all():
            raise InvalidInput("rows", len(p), "have probabilities in [0, 1], labels 0 or 1 and weights from 0")
        places = np.zeros(len(p), np.int64) if slices is None else self._places(slices, len(p))
        count_progress(self._counts, self._sums, self._gains, self._growth, p, y, w, places, _SPAN)

    def scores(self) -> tuple[ProgressiveScore, ...]:
        """Returns the figures of every window over all rows, then of every slice in order of appearance."""
        return tuple(self._score(window, name) for name in self._slices for window in range(len(self.half_lives)))

    def score(self, *, window: int = 0, slice_name: str = ALL) -> ProgressiveScore:
        """Returns the figures of one window and slice.

        Raises:
            InvalidInput: If there is no such window or slice.
        """
        if slice_name not in self._slices or not 0 <= window < len(self.half_lives):
            raise InvalidInput("slice_name", (slice_name, window), f"be one of {list(self._slices)} and its window")
        return self._score(window, slice_name)

    def table(self, *, window: int = 0) -> tuple[_Floats, _Floats, _Floats]:
        """Returns mean prediction, positives and all rows by bin, weighted and decayed, for fitting a calibrator.

        Only bins that have rows are given; the three are of the same shape.
        """
        negatives, positives, predicted = self._counts[window, 0] / self._gains[window]
        total = negatives + positives
        there = total > 0
        return predicted[there] / total[there], positives[there], total[there]

    def _places(self, slices: Sequence[str], n: int) -> NDArray[np.int64]:
        if len(slices) != n:
            raise InvalidInput("slices", len(slices), f"be {n} names")
        places = np.empty(n, np.int64)
        for i, name in enumerate(slices):
            place = self._slices.get(name)
            if place is None:
                key = name if len(self._slices) <= _MOST_SLICES else OTHERS
                place = self._slices.setdefault(key, len(self._slices))
            places[i] = place
        more = len(self._slices) - self._counts.shape[1]
        if more:
            shape = len(self.half_lives), more
            self._counts = np.concatenate((self._counts, np.zeros((*shape, 3, _BINS))), axis=1)
            self._sums = np.concatenate((self._sums, np.zeros((*shape, 6))), axis=1)
        return places

    def _score(self, window: int, name: str) -> ProgressiveScore:
        place, gain = self._slices[name], self._gains[window]
        loss, predicted, positive, weight, squares, rows = self._sums[window, place].tolist()
        negatives, positives, _ = self._counts[window, place]
        pairs = float(negatives.sum() * positives.sum())
        above = float((positives * (np.cumsum(negatives) - negatives / 2)).sum())
        rate = positive / weight if weight else math.nan
        base = -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)) if 0 < rate < 1 else math.nan
        mean = loss / weight if weight else math.nan
        return ProgressiveScore(
            slice=name,
            half_life=self.half_lives[window],
            n_obs=int(rows),
            n_effective=weight * weight / squares if squares else 0.0,
            log_loss=mean,
            relative_loss=mean / base,
            roc_auc=above / pairs if pairs / gain / gain > 0 else math.nan,
            calibration_ratio=predicted / positive if positive else math.nan,
            positive_rate=rate,
        )

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Returns what JSON can hold, and the arrays, for a snapshot."""
        about = {"half_lives": [None if math.isinf(value) else value for value in self.half_lives]}
        arrays = {"counts": self._counts, "sums": self._sums, "gains": self._gains}
        return {**about, "slices": list(self._slices)}, {f"validation.{name}": array for name, array in arrays.items()}

    @classmethod
    def from_parts(cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Reads what `to_parts` gave."""
        made = cls(half_lives=[math.inf if value is None else value for value in about["half_lives"]])
        made._slices = {name: place for place, name in enumerate(about["slices"])}
        made._counts, made._sums, made._gains = (
            np.array(arrays[f"validation.{name}"]) for name in ("counts", "sums", "gains")
        )
        return made
