"""FTRL-Proximal: logistic regression, one row at a time, each coordinate with a rate of its own.

Source: McMahan et al., "Ad click prediction: a view from the trenches", KDD 2013, Algorithm 1, section 4.6 (weights)
and section 6 (uncertainty).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.models import online_kernels as kernels

_Floats = NDArray[np.float64]
MOST_BITS = 28
_SLOT, _VALUE = np.dtype(np.uint32), np.dtype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What FTRL-Proximal is told.

    Attributes:
        alpha: Learning rate, above 0: the rate of coordinate i is alpha / (beta + sqrt(n_i)).
        beta: Smooths the first steps, at least 0.
        l1: Keeps a weight at exactly 0 until the gradients against it add up to more, at least 0.
        l2: Pulls weights towards 0, at least 0.

    Example:
        >>> Rates(alpha=0.1, l1=1.0)
        Rates(alpha=0.1, beta=1.0, l1=1.0, l2=0.0)
    """

    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(name, value, "be finite and at least 0")
        if self.alpha == 0:
            raise InvalidInput("alpha", self.alpha, "be above 0")
        if self.beta == 0 and self.l2 == 0:
            raise InvalidInput("beta", self.beta, "be above 0 where l2 is 0", "A first step would have no bound")

    def to_dict(self) -> dict[str, float]:
        """Returns what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote."""
        return cls(**{name: float(data[name]) for name in ("alpha", "beta", "l1", "l2")})


class Ftrl:
    """Weights of 2**bits slots, learned one row after another.

    A row is k slots and k values. For each slot i of a row, with the weight w_i that the prediction used:

        w_i = 0 where |z_i| <= l1, else -(z_i - sgn(z_i) l1) / ((beta + sqrt(n_i)) / alpha + l2)
        p = 1 / (1 + exp(-sum_i w_i x_i));  g_i = weight (p - y) x_i
        z_i += g_i - (sqrt(n_i + g_i^2) - sqrt(n_i)) / alpha * w_i;  n_i += g_i^2

    Arithmetic is float64, in the order of the row, and the same in a batch and one by one: `learn_many` equals a loop
    over `learn_one` in every bit. Slots of one row that are equal are updated one after another with the weight that
    the prediction used; to make them one coordinate, as Algorithm 1 has it, add up their values first, as
    `HashedFeatures.encode` does. One thread learns at a time.

    Args:
        bits: The slots are 2**bits; 1 to 28.
        rates: What the algorithm is told.

    Attributes:
        state: z and n of each slot, shape (2**bits, 2).
        coefficients: The rates as the kernels take them: alpha, beta, l1, l2.
        n_learned: How many rows were learned.

    Raises:
        InvalidInput: If `bits` is outside its range.

    Example:
        >>> model = Ftrl(bits=4, rates=Rates(alpha=1.0))
        >>> slots, values = np.array([[3, 7]], np.uint32), np.ones((1, 2))
        >>> model.learn_many(slots, values, [1.0]).tolist(), model.predict(slots, values).round(3).tolist()
        ([0.5], [0.661])
    """

    def __init__(self, *, bits: int, rates: Rates | None = None) -> None:
        if not 1 <= bits <= MOST_BITS:
            raise InvalidInput("bits", bits, f"be 1 to {MOST_BITS}")
        self.bits = bits
        self.rates = rates or Rates()
        self.state = np.zeros((1 << bits, 2))
        self.n_learned = 0
        self.coefficients = np.array([self.rates.alpha, self.rates.beta, self.rates.l1, self.rates.l2])
        self._scratch = np.empty(64)

    def learn_many(
        self,
        slots: NDArray[np.uint32],
        values: _Floats,
        labels: ArrayLike,
        *,
        weights: ArrayLike | None = None,
    ) -> _Floats:
        """Predicts each row with what the rows before it taught, then learns it.

        Args:
            slots: Shape (n, k), each below 2**bits.
            values: Shape (n, k), of at most 1e75: the squares of larger gradients would not be numbers.
            labels: Shape (n,), 0 or 1.
            weights: Importance of each row, shape (n,), 0 to 1e75; 1 by default. The gradient is multiplied by it
                (section 4.6), so that a row kept with probability r and given 1 / r stands for all.

        Returns:
            The probabilities that were predicted before each row was learned, shape (n,).

        Raises:
            InvalidInput: If a shape does not fit or a value is outside its range; then nothing is learned.
        """
        slots, values = self._rows(slots, values)
        n = len(slots)
        y, w = _labels(labels, n), _weights(weights, n)
        out = np.empty(n)
        kernels.learn_many(self.state, self.coefficients, slots, values, y, w, self._room(slots.shape[1]), out)
        self.n_learned += n
        return out

    def learn_one(self, slots: NDArray[np.uint32], values: _Floats, label: float, *, weight: float = 1.0) -> float:
        """Predicts one row, then learns it.

        Args:
            slots: Shape (k,), uint32, each below 2**bits.
            values: Shape (k,), float64, of at most 1e75.
            label: 0 or 1.
            weight: Importance, 0 to 1e75.

        Returns:
            The probability that was predicted before the row was learned.

        Raises:
            InvalidInput: If a value is outside its range; then nothing is learned.
        """
        if label not in (0.0, 1.0) or not 0.0 <= weight <= kernels.LARGEST:
            _labels([label], 1), _weights([weight], 1)
        if slots.dtype != _SLOT or values.dtype != _VALUE or slots.shape != values.shape or slots.ndim != 1:
            slots, values = (row[0] for row in self._rows(np.asarray(slots)[None], np.asarray(values)[None]))
        if len(slots) > len(self._scratch):
            self._room(len(slots))
        p = kernels.learn_one(self.state, self.coefficients, slots, values, self._scratch, float(label), float(weight))
        if p < 0:
            self._rows(np.asarray(slots)[None], np.asarray(values)[None])
        self.n_learned += 1
        return p

    def predict(self, slots: NDArray[np.uint32], values: _Floats) -> _Floats:
        """Returns the probability of each row, shape (n,), and learns nothing.

        Raises:
            InvalidInput: If a shape does not fit, a slot is none, or a value is beyond 1e75.
        """
        slots, values = self._rows(slots, values)
        out = np.empty(len(slots))
        kernels.predict(self.state, self.coefficients, slots, values, out)
        return out

    def uncertainty(self, slots: NDArray[np.uint32], values: _Floats) -> _Floats:
        """Returns how far one more look at each row could move its own log odds, shape (n,).

        It is the sum of x_i^2 / ((beta + sqrt(n_i)) / alpha + l2): the upper bound of section 6 of the paper, which
        has x_i in place of x_i^2, since its features are 0 or 1. Many features that were hardly ever seen make it
        large. It is a bound on one step, and no standard error.

        Raises:
            InvalidInput: If a shape does not fit, a slot is none, or a value is beyond 1e75.
        """
        slots, values = self._rows(slots, values)
        out = np.empty(len(slots))
        kernels.uncertainty(self.state, self.coefficients, slots, values, out)
        return out

    def correct(self, slots: NDArray[np.uint32], values: _Floats, by: ArrayLike) -> None:
        """Puts right the gradients of rows that were learned with a label that was wrong.

        The gradient of the log loss is linear in the label: with label y' in place of y, the row had added
        weight (y - y') x_i more to z_i. That is added now. The rates (n) stay, and so does what was predicted with
        the weights in between.

        Args:
            slots: Shape (n, k), of rows that were learned.
            values: Shape (n, k).
            by: weight times (label learned - label that is right), shape (n,).

        Raises:
            InvalidInput: If a shape does not fit or a value is out of its range.
        """
        slots, values = self._rows(slots, values)
        amounts = np.asarray(by, dtype=np.float64)
        if amounts.shape != (len(slots),) or not np.isfinite(amounts).all():
            raise InvalidInput("by", by, f"be {len(slots)} finite numbers")
        kernels.correct(self.state, slots, values, amounts)

    def weights(self) -> _Floats:
        """Returns the weight of every slot, shape (2**bits,)."""
        out = np.empty(len(self.state))
        kernels.weights_of(self.state, self.coefficients, out)
        return out

    def put_weights(self, slots: ArrayLike, weights: ArrayLike) -> None:
        """Gives slots these weights and leaves their rates (n) as they are.

        Args:
            slots: Shape (m,), each below 2**bits.
            weights: Shape (m,), finite.

        Raises:
            InvalidInput: If a shape does not fit, a slot is none, or a weight is not finite.
        """
        places, given = np.asarray(slots, dtype=np.int64), np.asarray(weights, dtype=np.float64)
        if places.ndim != 1 or places.shape != given.shape or not np.isfinite(given).all():
            raise InvalidInput("weights", weights, "be finite, one for each slot")
        if len(places) and not 0 <= places.min() <= places.max() < len(self.state):
            raise InvalidInput("slots", slots, f"be 0 to {len(self.state) - 1}")
        kernels.put_weights(self.state, self.coefficients, places, given)

    def forget(self, memory: float) -> None:
        """Makes every rate as if only a share of the gradients had been seen; the weights stay as they are.

        Args:
            memory: Share of n that is kept, 0 to 1: 1 changes nothing, at 0 each coordinate learns as at the start.

        Raises:
            InvalidInput: If `memory` is outside its range.
        """
        if not 0.0 <= memory <= 1.0:
            raise InvalidInput("memory", memory, "be 0 to 1")
        if memory == 1.0:
            return
        # A slot that no row has touched has no weight to keep.
        used = np.flatnonzero(self.state.any(axis=1))
        weights = self.weights()[used]
        self.state[used, 1] *= memory
        kernels.put_weights(self.state, self.coefficients, used, weights)

    @property
    def n_weights(self) -> int:
        """How many weights are not 0."""
        return int(np.count_nonzero(np.abs(self.state[:, 0]) > self.rates.l1))

    def _rows(self, slots: Any, values: Any) -> tuple[NDArray[np.uint32], _Floats]:
        slots, values = _matrix("slots", slots, _SLOT), _matrix("values", values, _VALUE)
        if slots.shape != values.shape:
            raise InvalidInput("values", values.shape, f"have the shape of the slots, {slots.shape}")
        bad = kernels.first_bad(slots, values, len(self.state))
        if bad >= 0:
            row = (slots[bad].tolist(), values[bad].tolist())
            raise InvalidInput(f"row {bad}", row, f"have slots below {len(self.state)} and values up to 1e75")
        return slots, values

    def _room(self, k: int) -> _Floats:
        if k > len(self._scratch):
            self._scratch = np.empty(k)
        return self._scratch


def _matrix(field: str, given: Any, kind: np.dtype[Any]) -> NDArray[Any]:
    array = np.asarray(given)
    if array.dtype != kind:
        if array.dtype.kind not in ("iu" if kind == _SLOT else "iuf"):
            raise InvalidInput(field, array.dtype, f"be {kind}")
        if kind == _SLOT and array.size and not 0 <= array.min() <= array.max() < 2**32:
            raise InvalidInput(field, int(array.min()), "be slots, from 0")
        array = array.astype(kind)
    if array.ndim != 2:
        raise InvalidInput(field, array.shape, "have the shape (n, k)")
    return np.ascontiguousarray(array)


def _labels(labels: ArrayLike, n: int) -> _Floats:
    array = np.asarray(labels, dtype=np.float64)
    if array.shape != (n,):
        raise InvalidInput("labels", array.shape, f"have the shape ({n},)")
    bad = (array != 0.0) & (array != 1.0)
    if bad.any():
        at = int(np.argmax(bad))
        raise InvalidInput(f"labels[{at}]", float(array[at]), "be 0 or 1")
    return array


def _weights(weights: ArrayLike | None, n: int) -> _Floats:
    if weights is None:
        return np.ones(n)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (n,):
        raise InvalidInput("weights", array.shape, f"have the shape ({n},)")
    bad = ~((array >= 0.0) & (array <= kernels.LARGEST))
    if bad.any():
        at = int(np.argmax(bad))
        raise InvalidInput(f"weights[{at}]", float(array[at]), "be from 0 to 1e75")
    return array
