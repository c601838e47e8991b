"""Where the vectors of entities come from: the protocol of an index, and one made of an array."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from vitok.errors import InvalidInput


class VectorIndex(Protocol):
    """One version of an index, asked for the vectors of its entities."""

    def keys(self) -> Sequence[str]:
        """Returns the keys of all its entities, as texts."""
        ...

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the vectors of some keys, shape (n, dimension); a row of NaN where there is none."""
        ...


class ArrayIndex:
    """An index made of an array.

    Args:
        keys: Keys of the entities, as texts, each once.
        vectors: Shape (keys, dimension).

    Example:
        >>> ArrayIndex(["a", "b"], np.array([[1.0, 2.0], [3.0, 4.0]])).vectors(["b", "c"])
        array([[ 3.,  4.],
               [nan, nan]], dtype=float32)
    """

    def __init__(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        self._keys = tuple(keys)
        self._vectors = np.asarray(vectors, np.float32)
        self._places = {key: place for place, key in enumerate(self._keys)}
        if self._vectors.ndim != 2 or len(self._vectors) != len(self._keys):
            raise InvalidInput("vectors", self._vectors.shape, f"have shape ({len(self._keys)}, dimension)")
        if len(self._places) < len(self._keys):
            raise InvalidInput("keys", keys, "be different")

    def keys(self) -> Sequence[str]:
        """Returns the keys."""
        return self._keys

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the vectors of some keys, shape (n, dimension); a row of NaN where there is none."""
        places = np.array([self._places.get(key, -1) for key in keys], np.intp)
        out = np.full((len(keys), self._vectors.shape[1]), np.nan, np.float32)
        out[places >= 0] = self._vectors[places[places >= 0]]
        return out
