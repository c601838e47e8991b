"""Calibrators of several classes at once: one temperature, or one slope and one offset for each class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats.arrays import numbers
from vitok.stats.weighted_means import weights_of

_Floats = NDArray[np.float64]
_SMALLEST = 1e-12


def _read(score: ArrayLike, y: ArrayLike, weight: ArrayLike | None) -> tuple[_Floats, NDArray[np.intp], _Floats]:
    p, truth = numbers("score", score), np.asarray(y)
    if p.ndim != 2 or p.shape[1] < 2 or len(p) == 0 or truth.shape != p.shape[:1]:
        raise InvalidInput(
            "score and y", (p.shape, truth.shape), "have the shapes (n, k) and (n,), k at least 2, n > 0"
        )
    if not np.isfinite(p).all() or (p < 0).any() or not (p.sum(axis=1) > 0).all():
        raise InvalidInput("score", "outside [0, 1]", "be probabilities", "Pass the softmax of the logits")
    codes = truth.astype(np.intp)
    if (codes != truth).any() or (codes < 0).any() or (codes >= p.shape[1]).any():
        raise InvalidInput("y", truth[:5].tolist(), f"be whole numbers from 0 to {p.shape[1] - 1}")
    return _log(p), codes, weights_of("weight", weight, len(p)) / len(p)


def _log(p: _Floats) -> _Floats:
    return np.log(np.maximum(p, _SMALLEST))


def _softmax(z: _Floats) -> _Floats:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _loss(z: _Floats, y: NDArray[np.intp], weight: _Floats) -> float:
    top = z.max(axis=1)
    total = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return float(weight @ (total - z[np.arange(len(y)), y]))


@dataclass(frozen=True, kw_only=True)
class TemperatureScaling:
    """One temperature for all classes: never changes which class is the likeliest.

    Attributes:
        temperature: Above 0; above 1 where the model was too sure of itself.

    Source: Guo, Pleiss, Sun & Weinberger, ICML 2017.

    Example:
        >>> TemperatureScaling(temperature=2.0)(np.array([[0.8, 0.1, 0.1]])).round(3).tolist()
        [[0.586, 0.207, 0.207]]
    """

    kind: ClassVar[str] = "temperature_scaling"

    temperature: float

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """Fits the temperature by log loss.

        Args:
            score: Probabilities of shape (n, k); the softmax of logits gives the same temperature as the logits.
            y: Index of the true class, shape (n,), 0 to k - 1.
            weight: What each row stands for, shape (n,), at least 0; None takes all alike.

        Raises:
            InvalidInput: If shapes do not fit or a value is out of range.
        """
        from scipy.optimize import minimize_scalar

        z, truth, weights = _read(score, y, weight)
        if not np.ptp(z, axis=1).any():
            # Any temperature fits rows that tell no class from another: the search would end far out.
            return cls(temperature=1.0)
        found = minimize_scalar(
            lambda log_t: _loss(z * math.exp(-log_t), truth, weights),
            bounds=(-6.0, 6.0),
            method="bounded",
            options={"xatol": 1e-9},
        )
        return cls(temperature=math.exp(float(found.x)))

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n, k), rows adding up to 1."""
        return _softmax(_log(np.asarray(score, dtype=np.float64)) / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "temperature": self.temperature}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote."""
        return cls(temperature=float(data["temperature"]))


@dataclass(frozen=True, kw_only=True)
class VectorScaling:
    """A slope and an offset for each class, on the log probabilities.

    Attributes:
        slopes: One for each class.
        offsets: One for each class; they add up to 0.

    Source: Guo, Pleiss, Sun & Weinberger, ICML 2017.

    Example:
        >>> VectorScaling(slopes=(1.0, 1.0), offsets=(0.5, -0.5))(np.array([[0.5, 0.5]])).round(3).tolist()
        [[0.731, 0.269]]
    """

    kind: ClassVar[str] = "vector_scaling"

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    @classmethod
    def fit(cls, score: ArrayLike, y: ArrayLike, *, weight: ArrayLike | None = None, penalty: float = 1e-4) -> Self:
        """Fits slopes and offsets by log loss.

        Args:
            score: Probabilities of shape (n, k).
            y: Index of the true class, shape (n,), 0 to k - 1.
            weight: What each row stands for, shape (n,), at least 0; None takes all alike.
            penalty: Ridge that pulls slopes to 1 and offsets to 0: without it, separable rows have no finite fit.

        Raises:
            InvalidInput: If shapes do not fit or a value is out of range.
        """
        from scipy.optimize import minimize

        z, truth, weights = _read(score, y, weight)
        k = z.shape[1]
        rows = np.arange(len(z))

        def loss(theta: _Floats) -> tuple[float, _Floats]:
            scaled = z * theta[:k] + theta[k:]
            p = _softmax(scaled)
            value = _loss(scaled, truth, weights)
            p[rows, truth] -= 1.0
            pull = p * weights[:, None]
            gradient = np.concatenate(((pull * z).sum(axis=0), pull.sum(axis=0)))
            away = theta - start
            return value + penalty * float(away @ away), gradient + 2 * penalty * away

        start = np.concatenate((np.ones(k), np.zeros(k)))
        theta = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13}).x
        offsets = theta[k:] - theta[k:].mean()
        return cls(slopes=tuple(theta[:k].tolist()), offsets=tuple(offsets.tolist()))

    def __call__(self, score: _Floats) -> _Floats:
        """Returns probabilities of shape (n, k), rows adding up to 1."""
        return _softmax(_log(np.asarray(score, dtype=np.float64)) * np.array(self.slopes) + np.array(self.offsets))

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold."""
        return {"kind": self.kind, "slopes": list(self.slopes), "offsets": list(self.offsets)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote."""
        return cls(slopes=tuple(map(float, data["slopes"])), offsets=tuple(map(float, data["offsets"])))
