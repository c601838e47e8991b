"""What a learner remembers of the decisions it has learned: enough to know one again and to put it right."""

import numpy as np
from numpy.typing import NDArray

from vitok.features.hashing import KeyIndex


class Learned:
    """Label, weight and time of each decision that was gone through, by the fingerprint of its request.

    Example:
        >>> from vitok.features.fingerprints import fingerprint_texts
        >>> memory = Learned()
        >>> keys = fingerprint_texts(["r1", "r2"])
        >>> memory.add(keys, np.array([0.0, 1.0]), np.ones(2), np.array([10, 20]))
        >>> place = memory.find(fingerprint_texts(["r2", "r3"]))
        >>> place.tolist(), float(memory.labels[place[0]])
        ([1, -1], 1.0)
        >>> memory.forget_before(15)
        >>> memory.find(keys).tolist(), len(memory)
        ([-1, 0], 1)
    """

    def __init__(self) -> None:
        self._keys = np.empty((0, 2), np.uint64)
        self._numbers = np.empty((2, 0))
        self._times = np.empty(0, np.int64)
        self._n = 0
        self._index = KeyIndex()

    def __len__(self) -> int:
        return self._n

    @property
    def labels(self) -> NDArray[np.float64]:
        """The label that each was learned with, or put right to; can be written."""
        return self._numbers[0, : self._n]

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight that each was learned with; 0 where it was left out."""
        return self._numbers[1, : self._n]

    @property
    def times(self) -> NDArray[np.int64]:
        """When each was learned, in microseconds, ascending."""
        return self._times[: self._n]

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns the place of each, -1 where it is not remembered; shape (n,)."""
        return self._index.find(keys)

    def add(
        self,
        keys: NDArray[np.uint64],
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        times: NDArray[np.int64],
    ) -> None:
        """Remembers decisions that are not remembered yet, each once, with ascending times."""
        first, n = self._n, self._n + len(keys)
        if n > len(self._times):
            room = max(1024, 2 * n)
            self._keys = np.concatenate((self._keys[:first], np.empty((room - first, 2), np.uint64)))
            self._numbers = np.concatenate((self._numbers[:, :first], np.empty((2, room - first))), axis=1)
            self._times = np.concatenate((self._times[:first], np.empty(room - first, np.int64)))
        self._keys[first:n], self._times[first:n] = keys, times
        self._numbers[0, first:n], self._numbers[1, first:n] = labels, weights
        self._n = n
        self._index.put(keys, np.arange(first, n))

    def forget_before(self, time: int) -> None:
        """Forgets what was learned before a time, in microseconds."""
        first = int(np.searchsorted(self.times, time))
        if first:
            keys, labels, weights, times = self._parts()
            self._rebuild(keys[first:], labels[first:], weights[first:], times[first:])

    def forget_some(self, time: int) -> None:
        """Does what `forget_before` does once half of all is that old, so that it costs little a decision."""
        if 2 * int(np.searchsorted(self.times, time)) > self._n:
            self.forget_before(time)

    def _parts(self) -> tuple[NDArray[np.uint64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        return self._keys[: self._n], self.labels, self.weights, self.times

    def _rebuild(
        self,
        keys: NDArray[np.uint64],
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
        times: NDArray[np.int64],
    ) -> None:
        made = Learned()
        made.add(keys, labels, weights, times)
        self.__dict__ = made.__dict__

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Returns the arrays for a snapshot."""
        names = ("keys", "labels", "weights", "times")
        return {f"learned.{name}": array for name, array in zip(names, self._parts(), strict=True)}

    @classmethod
    def from_arrays(cls, arrays: "dict[str, NDArray[np.generic]]") -> "Learned":
        """Reads what `to_arrays` gave."""
        made = cls()
        made.add(
            arrays["learned.keys"].astype(np.uint64),
            arrays["learned.labels"].astype(np.float64),
            arrays["learned.weights"].astype(np.float64),
            arrays["learned.times"].astype(np.int64),
        )
        return made
