"""The calibration layer of the paper: p' = gamma p^kappa, fitted by Poisson regression on counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput

_Floats = NDArray[np.float64]
_SMALLEST = 1e-12


@dataclass(frozen=True, kw_only=True)
class PowerCalibrator:
    """gamma p^kappa: a straight line between the logarithms, for probabilities far below 1.

    For small p this is Platt's line; near 1 it may say more than 1, and is cut there. Where probabilities of one half
    and more matter, take `BetaCalibrator` or `IsotonicCalibrator`.

    Attributes:
        gamma: Above 0.
        kappa: At least 0.

    Source: McMahan et al., KDD 2013, section 7.

    Example:
        >>> calibrator = PowerCalibrator.fit_counts([0.001, 0.01, 0.1], [2, 20, 200], [1000, 1000, 1000])
        >>> round(calibrator.gamma, 6), round(calibrator.kappa, 6)
        (2.0, 1.0)
        >>> calibrator(np.array([0.02])).round(3).tolist()
        [0.04]
    """

    kind: ClassVar[str] = "power"

    gamma: float
    kappa: float

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike) -> Self:
        """Fits to probabilities of shape (n,) in (0, 1] and labels of shape (n,), bool or 0 and 1.

        Raises:
            InvalidInput: If a value is outside its range, shapes differ, or there is no positive.
        """
        labels = np.asarray(y, dtype=np.float64)
        return cls.fit_counts(score, labels, np.ones(labels.shape))

    @classmethod
    def fit_counts(cls, score: ArrayLike, positives: ArrayLike, totals: ArrayLike) -> Self:
        """Fits to groups of rows: mean probability, weight of the positives and of all rows, each of shape (groups,).

        Raises:
            InvalidInput: If a value is outside its range, shapes differ, or there is no positive.
        """
        p, k, n = (np.asarray(values, dtype=np.float64) for values in (score, positives, totals))
        if p.ndim != 1 or p.shape != k.shape or p.shape != n.shape or len(p) == 0:
            raise InvalidInput("score", (p.shape, k.shape, n.shape), "be of one shape (n,), at least one row")
        if not ((p >= 0) & (p <= 1) & (k >= 0) & (k <= n) & np.isfinite(n)).all():
            raise InvalidInput("score", p, "be in [0, 1], with positives from 0 to the totals")
        if k.sum() == 0:
            raise InvalidInput("positives", 0, "be above 0", "Take a longer period")
        x = np.log(np.maximum(p, _SMALLEST))
        centre = float((k @ x) / k.sum())
        slope, level = _poisson(x - centre, k, n)
        if slope < 0:
            slope, level = 0.0, math.log(k.sum() / n.sum())
        return cls(gamma=math.exp(level - slope * centre), kappa=slope)

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n,), strictly inside (0, 1)."""
        # In float32 the upper end would be rounded to 1.
        raised = self.gamma * np.maximum(np.asarray(score, dtype=np.float64), _SMALLEST) ** self.kappa
        return np.minimum(np.maximum(raised, _SMALLEST), 1 - _SMALLEST)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "gamma": self.gamma, "kappa": self.kappa}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing or outside its range.
        """
        try:
            gamma, kappa = float(data["gamma"]), float(data["kappa"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput("calibrator", dict(data), f"be what to_dict returned ({error!r})") from None
        if not (0 < gamma < math.inf and 0 <= kappa < math.inf):
            raise InvalidInput("calibrator", (gamma, kappa), "have gamma above 0 and kappa from 0")
        return cls(gamma=gamma, kappa=kappa)


def _poisson(x: _Floats, k: _Floats, n: _Floats) -> tuple[float, float]:
    """Fits log rate = level + slope x by Newton's method with halved steps; one distinct x gives slope 1."""
    if x.min() == x.max():
        return 1.0, math.log(k.sum() / n.sum()) - float(x[0])
    design = np.vstack((x, np.ones(len(x))))
    weights = np.array([1.0, math.log(k.sum() / float(n @ np.exp(x)))])

    def loss(w: _Floats) -> float:
        line = np.minimum(w @ design, 700.0)
        return float(n @ np.exp(line) - k @ line)

    current = loss(weights)
    for _ in range(100):
        expected = n * np.exp(np.minimum(weights @ design, 700.0))
        gradient = design @ (expected - k)
        hessian = (design * expected) @ design.T
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2) * np.trace(hessian), gradient)
        for _ in range(40):
            moved = weights - step
            found = loss(moved)
            if found <= current:
                break
            step = step / 2
        else:
            break
        weights, current = moved, found
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])
