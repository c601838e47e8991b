"""Venn-Abers: two probabilities for each score, one of them calibrated whatever the model, and one number of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.models.calibrators import read_labelled
from vitok.stats.arrays import numbers
from vitok.stats.weighted_means import weights_of

_Floats = NDArray[np.float64]


def _merged(p0: _Floats, p1: _Floats) -> _Floats:
    # The single probability of least regret in log loss.
    return p1 / (1 - p0 + p1)


@dataclass(frozen=True, kw_only=True)
class VennAbersCalibrator:
    """Isotonic regression twice for each score: with the row itself counted as a negative, and as a positive.

    Under exchangeable rows one of the two probabilities is perfectly calibrated. Their distance says how much the
    calibration rows know at that score: wide at the ends and where rows are few.

    Attributes:
        scores: Distinct scores of the calibration rows, ascending.
        weights: Weight of the rows at each score, mean 1 a row.
        positives: Weight of the positives at each score.

    Source: Vovk & Petej, UAI 2014; the inductive form of Vovk, Petej & Fedorova, NIPS 2015. The values at all places
    come from the hulls of prefixes and suffixes of the cumulated sums.

    Example:
        >>> calibrator = VennAbersCalibrator.fit([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1])
        >>> low, high = calibrator.interval(np.array([0.05, 0.25]))
        >>> low.round(3).tolist(), high.round(3).tolist()
        ([0.0, 0.0], [0.333, 1.0])
        >>> calibrator(np.array([0.05, 0.25])).round(3).tolist()
        [0.25, 0.5]
    """

    kind: ClassVar[str] = "venn_abers"

    scores: tuple[float, ...]
    weights: tuple[float, ...]
    positives: tuple[float, ...]

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Keeps the calibration rows, grouped by score.

        Args:
            score: Finite scores of shape (n,).
            y: Labels of shape (n,), bool or 0 and 1, both present.
            weight: What each row stands for, shape (n,), at least 0; None takes all alike. With weights the promise
                is that of the weighted law, approximately.

        Raises:
            InvalidInput: If the input is empty, not finite, of one class, or of different shapes.
        """
        scores, labels, weights = read_labelled(score, y, weight)
        distinct, group = np.unique(scores, return_inverse=True)
        return cls(
            scores=tuple(distinct.tolist()),
            weights=tuple(np.bincount(group, weights=weights).tolist()),
            positives=tuple(np.bincount(group, weights=weights * labels).tolist()),
        )

    @cached_property
    def _tables(self) -> tuple[_Floats, _Floats, _Floats]:
        """Distinct scores, and p0 and p1 at the places gap, score, gap, score, ..., gap."""
        from vitok.models.calibrators_kernels import chains, inserted_slopes

        x = np.concatenate(([0.0], np.cumsum(self.weights)))
        y = np.concatenate(([0.0], np.cumsum(self.positives)))
        before, after = chains(x, y)
        k = len(self.scores)
        left, right = np.arange(2 * k + 1) // 2, (np.arange(2 * k + 1) + 1) // 2
        found = [inserted_slopes(x, y, before, after, left, right, label) for label in (0.0, 1.0)]
        return np.array(self.scores), np.clip(found[0], 0.0, 1.0), np.clip(found[1], 0.0, 1.0)

    def interval(self, score: _Floats) -> tuple[_Floats, _Floats]:
        """Returns the two probabilities of each score, the lower first, each of shape (n,)."""
        scores, p0, p1 = self._tables
        values = numbers("score", score)
        at = np.searchsorted(scores, values, side="left")
        hit = scores[np.minimum(at, len(scores) - 1)] == values
        place = 2 * at + hit
        nothing = np.isnan(values)
        return np.where(nothing, np.nan, p0[place * ~nothing]), np.where(nothing, np.nan, p1[place * ~nothing])

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        return _merged(*self.interval(score))

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold: as long as there are distinct scores."""
        return {
            "kind": self.kind,
            "scores": list(self.scores),
            "weights": list(self.weights),
            "positives": list(self.positives),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing, or scores do not ascend.
        """
        parts = []
        for field in ("scores", "weights", "positives"):
            if field not in data:
                raise InvalidInput(field, None, "be there", "Pass what to_dict returned")
            parts.append(tuple(float(value) for value in data[field]))
        if not parts[0] or len({len(part) for part in parts}) > 1 or not (np.diff(parts[0]) > 0).all():
            raise InvalidInput("scores", parts[0], "ascend strictly, with a weight and positives each")
        return cls(scores=parts[0], weights=parts[1], positives=parts[2])


@dataclass(frozen=True, kw_only=True)
class CrossVennAbersCalibrator:
    """Several Venn-Abers calibrators, one for each fold, merged by geometric means.

    Where the scores of each fold come from a model trained on the other folds, all rows serve both for training and
    for calibration, and a new row is scored by each of those models.

    Attributes:
        parts: One calibrator for each fold.

    Source: Vovk, Petej & Fedorova, Large-scale probabilistic predictors with and without guarantees of validity,
    NIPS 2015, section 4.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.random(600)
        >>> calibrator = CrossVennAbersCalibrator.fit(p, rng.random(600) < p, fold=np.arange(600) % 3)
        >>> bool(abs(calibrator(np.array([0.5]))[0] - 0.5) < 0.15)
        True
    """

    kind: ClassVar[str] = "cross_venn_abers"

    parts: tuple[VennAbersCalibrator, ...]

    @classmethod
    def fit(
        cls,
        score: ArrayLike,
        y: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        fold: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> Self:
        """Keeps the rows of each fold.

        Args:
            score: Finite scores of shape (n,), each from a model that did not see its fold.
            y: Labels of shape (n,), bool or 0 and 1, both present in each fold.
            weight: What each row stands for, shape (n,), at least 0; None takes all alike.
            fold: Number of each row's fold, shape (n,); None takes five folds in turn.

        Raises:
            InvalidInput: If shapes differ, or a fold has one class only.
        """
        scores, labels = numbers("score", score), np.asarray(y)
        if scores.ndim != 1:
            raise InvalidInput("score", scores.shape, "have the shape (n,)")
        folds = np.arange(len(scores)) % 5 if fold is None else np.asarray(fold)
        if scores.ndim != 1 or not scores.shape == labels.shape == folds.shape:
            raise InvalidInput("score, y and fold", (scores.shape, labels.shape, folds.shape), "have the same shape")
        weights = weights_of("weight", weight, len(scores))
        return cls(
            parts=tuple(
                VennAbersCalibrator.fit(
                    scores[folds == each],
                    labels[folds == each],
                    weight=weights[folds == each],
                )
                for each in np.unique(folds).tolist()
            )
        )

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,).

        Args:
            score: Shape (n,) for one model's scores, or (n, folds) with the score by each fold's model.
        """
        values = numbers("score", score)
        if values.ndim == 2 and values.shape[1] != len(self.parts):
            raise InvalidInput("score", values.shape, f"have one column for each of the {len(self.parts)} folds")
        columns = values.T if values.ndim == 2 else [values] * len(self.parts)
        found = [part.interval(column) for part, column in zip(self.parts, columns, strict=True)]
        with np.errstate(divide="ignore"):
            not_0 = np.exp(np.mean([np.log1p(-low) for low, _ in found], axis=0))
            is_1 = np.exp(np.mean([np.log(high) for _, high in found], axis=0))
        return is_1 / (not_0 + is_1)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing.
        """
        if not data.get("parts"):
            raise InvalidInput("parts", data.get("parts"), "be there", "Pass what to_dict returned")
        return cls(parts=tuple(VennAbersCalibrator.from_dict(part) for part in data["parts"]))
