"""Hash tables of fingerprints: which place a key has, and which events were seen."""

import numpy as np
from numba import njit

_DEAD = np.int32(-(2**31))


class KeyIndex:
    """Finds the place of a key by its fingerprint.

    Example:
        >>> index = KeyIndex()
        >>> keys = np.array([[1, 2], [3, 4]], np.uint64)
        >>> index.find(keys).tolist()
        [-1, -1]
        >>> index.put(keys, np.array([7, 9]))
        >>> index.find(keys).tolist()
        [7, 9]
    """

    def __init__(self) -> None:
        self._keys = np.zeros((1024, 2), np.uint64)
        self._places = np.full(1024, -1, np.int64)
        self._n = 0

    def __len__(self) -> int:
        """How many keys there are."""
        return self._n

    def find(self, fingerprints: np.ndarray) -> np.ndarray:
        """Returns the place of each key, -1 where it is not there; shape (n,)."""
        return self.look(fingerprints)[0]

    def look(self, fingerprints: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns what `find` does, and how many are not there."""
        out = np.empty(len(fingerprints), np.int64)
        return out, _find(self._keys, self._places, fingerprints, out)

    def put(self, fingerprints: np.ndarray, places: np.ndarray) -> None:
        """Adds keys that are not there yet."""
        need = self._n + len(fingerprints)
        if 2 * need > len(self._places):
            size = len(self._places)
            while 2 * need > size:
                size *= 2
            keys, places_before = self._keys, self._places
            self._keys, self._places = np.zeros((size, 2), np.uint64), np.full(size, -1, np.int64)
            there = places_before >= 0
            _put(self._keys, self._places, keys[there], places_before[there])
        _put(self._keys, self._places, fingerprints, places)
        self._n = need

    def items(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all fingerprints, shape (n, 2), and their places, shape (n,)."""
        there = self._places >= 0
        return self._keys[there], self._places[there]


class SeenIds:
    """Remembers the ids of events for as long as a duplicate may come.

    Example:
        >>> seen = SeenIds()
        >>> ids = np.array([[1, 2], [3, 4], [1, 2]], np.uint64)
        >>> seen.add(ids, np.zeros(3, np.int32)).tolist()
        [True, True, False]
        >>> seen.has(ids).tolist()
        [True, True, True]
        >>> seen.expire(1)
        >>> seen.has(ids).tolist()
        [False, False, False]
    """

    def __init__(self) -> None:
        self._table = _empty_table(1024)  # replaced as one, so that another thread that looks sees a whole one
        self._n = 0
        self._first_day = int(_DEAD) + 1

    def __len__(self) -> int:
        """How many ids are kept, those that were taken back or are too old included until room is needed."""
        return self._n

    def keep_from(self, day: int) -> None:
        """Lets the ids of events of earlier days go once room is needed."""
        self._first_day = max(self._first_day, day)

    def add(self, fingerprints: np.ndarray, days: np.ndarray) -> np.ndarray:
        """Remembers ids and says which were new.

        Args:
            fingerprints: Shape (n, 2), uint64.
            days: Shape (n,), int32: the day of each event.
        """
        self._make_room(len(fingerprints))
        new = np.empty(len(fingerprints), np.bool_)
        self._n += _remember(*self._table, fingerprints, days, new)
        return new

    def has(self, fingerprints: np.ndarray) -> np.ndarray:
        """Says which ids are remembered, shape (n,)."""
        out = np.empty(len(fingerprints), np.bool_)
        _has(*self._table, fingerprints, out)
        return out

    def take_back(self, fingerprints: np.ndarray) -> None:
        """Forgets ids that were added for an event which could not be kept after all."""
        _mark(*self._table, fingerprints)

    def expire(self, before_day: int) -> None:
        """Forgets the ids of events of earlier days at once."""
        self.keep_from(before_day)
        self._rebuild(0)

    def _make_room(self, more: int) -> None:
        if 2 * (self._n + more) > len(self._table[2]):
            self._rebuild(more)

    def _rebuild(self, more: int) -> None:
        keys, days, used = self._table
        kept = used & (days >= self._first_day)
        n = int(np.count_nonzero(kept))
        size = len(used)
        # Three eighths: a table that was just rebuilt is not full again at once.
        while 8 * (n + more) > 3 * size:
            size *= 2
        table = _empty_table(size)
        _remember(*table, keys[kept], days[kept], np.empty(n, np.bool_))
        self._table, self._n = table, n


def _empty_table(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Keys, days, which places are used.
    return np.zeros((size, 2), np.uint64), np.zeros(size, np.int32), np.zeros(size, np.bool_)


@njit(cache=True)
def _find(keys: np.ndarray, places: np.ndarray, wanted: np.ndarray, out: np.ndarray) -> int:
    mask = np.uint64(places.shape[0] - 1)
    gone = 0
    for i in range(wanted.shape[0]):
        slot = wanted[i, 0] & mask
        while places[slot] >= 0 and (keys[slot, 0] != wanted[i, 0] or keys[slot, 1] != wanted[i, 1]):
            slot = (slot + np.uint64(1)) & mask
        out[i] = places[slot]
        gone += places[slot] < 0
    return gone


@njit(cache=True)
def _put(keys: np.ndarray, places: np.ndarray, new: np.ndarray, their: np.ndarray) -> None:
    mask = np.uint64(places.shape[0] - 1)
    for i in range(new.shape[0]):
        slot = new[i, 0] & mask
        while places[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        keys[slot, 0], keys[slot, 1] = new[i, 0], new[i, 1]
        places[slot] = their[i]


@njit(cache=True)
def _remember(
    keys: np.ndarray, days: np.ndarray, used: np.ndarray, new: np.ndarray, their: np.ndarray, out: np.ndarray
) -> int:
    mask = np.uint64(used.shape[0] - 1)
    added = 0
    for i in range(new.shape[0]):
        slot = new[i, 0] & mask
        while used[slot] and (keys[slot, 0] != new[i, 0] or keys[slot, 1] != new[i, 1]):
            slot = (slot + np.uint64(1)) & mask
        out[i] = not used[slot] or days[slot] == _DEAD
        if not used[slot]:
            used[slot] = True
            keys[slot, 0], keys[slot, 1] = new[i, 0], new[i, 1]
            added += 1
        if out[i]:
            days[slot] = their[i]
    return added


@njit(cache=True)
def _has(keys: np.ndarray, days: np.ndarray, used: np.ndarray, wanted: np.ndarray, out: np.ndarray) -> None:
    mask = np.uint64(used.shape[0] - 1)
    for i in range(wanted.shape[0]):
        slot = wanted[i, 0] & mask
        while used[slot] and (keys[slot, 0] != wanted[i, 0] or keys[slot, 1] != wanted[i, 1]):
            slot = (slot + np.uint64(1)) & mask
        out[i] = used[slot] and days[slot] != _DEAD


@njit(cache=True)
def _mark(keys: np.ndarray, days: np.ndarray, used: np.ndarray, wanted: np.ndarray) -> None:
    mask = np.uint64(used.shape[0] - 1)
    for i in range(wanted.shape[0]):
        slot = wanted[i, 0] & mask
        while used[slot] and (keys[slot, 0] != wanted[i, 0] or keys[slot, 1] != wanted[i, 1]):
            slot = (slot + np.uint64(1)) & mask
        if used[slot]:
            days[slot] = _DEAD
