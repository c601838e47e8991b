"""The outcomes that a learner has heard of: by the fingerprint of their request, in the order of the log."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitok.features.fingerprints import fingerprint_texts
from vitok.features.hashing import KeyIndex
from vitok.models.online_order import Told

_Times = NDArray[np.int64]
_FIELDS: tuple[tuple[str, Any], ...] = (
    ("told", np.int64),
    ("value", np.float64),
    ("event", np.int64),
    ("source", np.int32),
    ("supersedes", np.bool_),
)


class Heard:
    """Outcomes in columns, each once; those that no learned decision has passed yet come last.

    Kept in columns, and not as a list a request, so that a snapshot of a million of them is written as they lie here,
    and so that nothing but their number costs anything.

    Args:
        memory: How long an outcome counts for a decision, in microseconds; the same for a repeated delivery.

    Attributes:
        passed: How many of them learned decisions have passed.

    Example:
        >>> heard = Heard(memory=100)
        >>> came = [(10, "r1", "fraud", 5, 1.0, "bank", False), (12, "r1", "fraud", 5, 1.0, "bank", False)]
        >>> heard.add(came + [(15, "r1", "fraud", 5, 0.0, "bank", True)], np.array([10, 12, 15]))
        >>> keys = fingerprint_texts(["r1", "r2"])
        >>> heard.first_told(keys, np.array([0, 0]), never=99).tolist()
        [10, 99]
        >>> rows = heard.latest(keys, np.array([0, 0]), np.array([12, 12]))
        >>> rows.tolist(), len(heard), float(heard.values[rows[0]])
        ([0, -1], 2, 1.0)
    """

    def __init__(self, *, memory: int) -> None:
        self.memory = memory
        self.passed = 0
        self._keys = np.empty((0, 2), np.uint64)
        self._columns: dict[str, NDArray[Any]] = {name: np.empty(0, kind) for name, kind in _FIELDS}
        # Of each row the next one of the same request, and, in the first of a request, the latest; -1 for none.
        self._next, self._newest = np.empty(0, np.int64), np.empty(0, np.int64)
        self._n = 0
        self._index = KeyIndex()
        self._sources: dict[str, int] = {}
        # The requests of the rows that have not been passed.
        self._requests: list[str] = []
        self._swept = 0

    def __len__(self) -> int:
        return self._n

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The fingerprint of the request of each, shape (n, 2)."""
        return self._keys[: self._n]

    @property
    def told(self) -> _Times:
        """When each was learned of, in microseconds, ascending."""
        found: _Times = self._columns["told"][: self._n]
        return found

    @property
    def values(self) -> NDArray[np.float64]:
        """What each says."""
        found: NDArray[np.float64] = self._columns["value"][: self._n]
        return found

    def request(self, row: int) -> str:
        """Returns the request of an outcome that has not been passed."""
        return self._requests[row - self.passed]

    def add(self, outcomes: Sequence[Told], told: _Times) -> None:
        """Adds what came next in the log, less repeated deliveries.

        Args:
            outcomes: As the log has them.
            told: When each was learned of, shape (n,), ascending, and not before those that were added earlier.
        """
        if not outcomes:
            return
        requests = [outcome[1] for outcome in outcomes]
        keys = fingerprint_texts(requests)
        sources = [self._sources.setdefault(outcome[5], len(self._sources)) for outcome in outcomes]
        columns: dict[str, NDArray[Any]] = {
            "told": told,
            "value": np.array([outcome[4] for outcome in outcomes], np.float64),
            "event": np.array([outcome[3] for outcome in outcomes], np.int64),
            "source": np.array(sources, np.int32),
            "supersedes": np.array([outcome[6] for outcome in outcomes], np.bool_),
        }
        kept = self._new(keys, columns)
        self._append(keys[kept], {name: column[kept] for name, column in columns.items()})
        self._requests += [request for request, new in zip(requests, kept.tolist(), strict=True) if new]

    def _new(self, keys: NDArray[np.uint64], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
        # Says which are no repeated deliveries; only those of a request that has others can be.
        kept = np.ones(len(keys), np.bool_)
        known, groups, sizes = self._index.find(keys), *_groups(keys)
        before: dict[int, list[tuple[Any, ...]]] = {}
        for i in np.flatnonzero((known >= 0) | (sizes > 1)).tolist():
            told, *same = (columns[name][i].item() for name, _ in _FIELDS)
            others = before.setdefault(int(groups[i]), self._chain(int(known[i])))
            if any(other[1:] == tuple(same) and other[0] >= told - self.memory for other in others):
                kept[i] = False
            else:
                others.append((told, *same))
        return kept

    def _chain(self, row: int) -> list[tuple[Any, ...]]:
        found = []
        while row >= 0:
            found.append(tuple(self._columns[name][row].item() for name, _ in _FIELDS))
            row = int(self._next[row])
        return found

    def _append(self, keys: NDArray[np.uint64], columns: Mapping[str, NDArray[Any]]) -> None:
        first, n = self._n, self._n + len(keys)
        if n > len(self._keys):
            room = max(1024, 2 * n)
            self._keys = _longer(self._keys, first, room)
            self._columns = {name: _longer(column, first, room) for name, column in self._columns.items()}
            self._next, self._newest = _longer(self._next, first, room), _longer(self._newest, first, room)
        self._keys[first:n] = keys
        for name, column in columns.items():
            self._columns[name][first:n] = column
        self._next[first:n], self._newest[first:n] = -1, np.arange(first, n)
        self._n = n
        known, groups, sizes = self._index.find(keys), *_groups(keys)
        # The first of each request that is new here, the others behind the one before them.
        begins = (known < 0) & (groups == np.arange(len(keys)))
        self._index.put(keys[begins], first + np.flatnonzero(begins))
        for i in np.flatnonzero((known >= 0) | (sizes > 1)).tolist():
            if not begins[i]:
                head = int(known[i]) if known[i] >= 0 else first + int(groups[i])
                self._next[self._newest[head]] = first + i
                self._newest[head] = first + i

    def first_told(self, keys: NDArray[np.uint64], seen: _Times, *, never: int) -> _Times:
        """Returns when the first outcome that counts for each decision was learned of.

        Args:
            keys: Fingerprints of the requests, shape (n, 2).
            seen: When each decision came to the log, shape (n,).
            never: What stands for none.
        """
        rows = self._index.find(keys)
        at = np.flatnonzero(rows >= 0)
        while len(at):
            at = at[self.told[rows[at]] < seen[at] - self.memory]
            rows[at] = self._next[rows[at]]
            at = at[rows[at] >= 0]
        out = np.full(len(keys), never, np.int64)
        there = rows >= 0
        out[there] = self.told[rows[there]]
        return out

    def latest(self, keys: NDArray[np.uint64], seen: _Times, until: _Times) -> NDArray[np.int64]:
        """Returns the row of the last outcome that counts for each decision and was learned of by then, -1 for none.

        Args:
            keys: Fingerprints of the requests, shape (n, 2).
            seen: When each decision came to the log, shape (n,).
            until: By when, shape (n,).
        """
        found = np.full(len(keys), -1, np.int64)
        rows = self._index.find(keys)
        at = np.flatnonzero(rows >= 0)
        while len(at):
            at = at[self.told[rows[at]] <= until[at]]
            counts = at[self.told[rows[at]] >= seen[at] - self.memory]
            found[counts] = rows[counts]
            rows[at] = self._next[rows[at]]
            at = at[rows[at] >= 0]
        return found

    def passing(self, until: int) -> NDArray[np.int64]:
        """Returns the rows that are passed next: not passed before, and learned of by then."""
        return np.arange(self.passed, int(np.searchsorted(self.told, until, side="right")))

    def go_on(self, n: int) -> None:
        """Notes that so many more have been passed."""
        self.passed += n
        del self._requests[:n]

    def forget_some(self, time: int) -> None:
        """Forgets what was learned of before a time, once there are twice as many as there were after the last time.

        None of those may count any more, nor have to be passed.
        """
        if self._n < 2 * self._swept + 1024:
            return
        first = min(int(np.searchsorted(self.told, time)), self.passed)
        if first:
            made = Heard(memory=self.memory)
            made._append(self.keys[first:], {name: self._columns[name][first : self._n] for name in self._columns})
            made._sources, made._requests, made.passed = self._sources, self._requests, self.passed - first
            self.__dict__ = made.__dict__
        self._swept = self._n

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Returns what JSON can hold, and the arrays, for a snapshot."""
        arrays = {"keys": self.keys} | {name: column[: self._n] for name, column in self._columns.items()}
        about = {"sources": list(self._sources), "requests": self._requests}
        return about, {f"heard.{name}": array for name, array in arrays.items()}

    @classmethod
    def from_parts(cls, about: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], *, memory: int) -> Self:
        """Reads what `to_parts` gave."""
        made = cls(memory=memory)
        made._append(
            arrays["heard.keys"].astype(np.uint64),
            {name: arrays[f"heard.{name}"].astype(kind) for name, kind in _FIELDS},
        )
        made._sources = {source: place for place, source in enumerate(about["sources"])}
        made._requests = list(about["requests"])
        made.passed = len(made) - len(made._requests)
        return made


def _longer(array: NDArray[Any], n: int, room: int) -> NDArray[Any]:
    made = np.empty((room, *array.shape[1:]), array.dtype)
    made[:n] = array[:n]
    return made


def _groups(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Of each the place of the first with the same key, and how many have it.
    n = len(keys)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ranked = keys[order]
    begins = np.ones(n, np.bool_)
    begins[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    at = np.flatnonzero(begins)
    sizes = np.diff(np.append(at, n))
    first, size = np.empty(n, np.int64), np.empty(n, np.int64)
    # The sort is stable: the first of a run is the first of all.
    first[order], size[order] = np.repeat(order[at], sizes), np.repeat(sizes, sizes)
    return first, size
