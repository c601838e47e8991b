"""Questions and events of one share of the keys, in the order in which kernels want them."""

import dataclasses

import numpy as np

from vitok.features.key_table import KeyTable
from vitok.features.order_kernels import group, sort_groups
from vitok.features.sweep_kernels import Questions


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The rows of a spine, or of a share of it, that ask about one entity.

    Attributes:
        table: The keys that are asked about.
        questions: By key, then by time.
        n_rows: Rows, those without a key among them.
    """

    table: KeyTable
    questions: Questions
    n_rows: int

    @classmethod
    def of(cls, table: KeyTable, codes: np.ndarray, time: np.ndarray) -> "Asked":
        """Orders rows by key and time.

        Args:
            table: The keys.
            codes: Shape (rows,), int32: key of each row, -1 where it has none.
            time: Shape (rows,), int64.
        """
        start, order = _grouped(codes, len(table))
        sort_groups(start, order, np.take(time, order).reshape(-1, 1))
        return cls(table=table, questions=Questions(start, order, time), n_rows=len(codes))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ordered:
    """Events of the keys that are asked about.

    Attributes:
        start: Shape (keys + 1,): where each key's events begin in the order.
        order: Shape (n,): rows by key, then by rank.
        ranks: Shape (n, ranks), in that order: event time, ingest time, and what orders events of one instant.
        parts: What each view keeps of an event, shape (rows + 1, words), in the order of arrival; the last row is free.
    """

    start: np.ndarray
    order: np.ndarray
    ranks: np.ndarray
    parts: tuple[np.ndarray, ...]


class Collector:
    """Takes events in the order of their arrival, those of keys that nobody asks about left out.

    Args:
        table: The keys that are asked about.
        capacity: Most events that may come.
        ranks: How many ranks.
        widths: Words a view.
    """

    def __init__(self, table: KeyTable, capacity: int, ranks: int, widths: tuple[int, ...]) -> None:
        self._table, self._n = table, 0
        # Memory that is never written is never taken, so room for all is no waste.
        self._codes = np.empty(capacity, np.int32)
        self._ranks = np.empty((capacity, ranks), np.int64)
        self._parts = tuple(np.empty((capacity + 1, width), np.int64) for width in widths)

    def add(self, keys: np.ndarray, ranks: np.ndarray, parts: tuple[np.ndarray, ...]) -> None:
        """Takes some events: keys of shape (n, 2), ranks of shape (n, ranks), words of shape (n, width) a view."""
        codes = self._table.find(keys)
        wanted = codes >= 0
        first, last = self._n, self._n + int(wanted.sum())
        if last - first < len(codes):
            codes, ranks = codes[wanted], ranks[wanted]
            parts = tuple(part[wanted] for part in parts)
        self._codes[first:last] = codes
        self._ranks[first:last] = ranks
        for kept, part in zip(self._parts, parts, strict=True):
            kept[first:last] = part
        self._n = last

    def finish(self) -> Ordered:
        """Orders what came, once: what is not needed afterwards is let go."""
        n = self._n
        start, order = _grouped(self._codes[:n], len(self._table))
        ranks = np.take(self._ranks[:n], order, axis=0)
        del self._codes, self._ranks
        sort_groups(start, order, ranks)
        return Ordered(start=start, order=order, ranks=ranks, parts=tuple(part[: n + 1] for part in self._parts))


def _grouped(codes: np.ndarray, n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    start = np.empty(n_keys + 1, np.int64)
    order = np.empty(int((codes >= 0).sum()), np.int64)
    group(codes, start, order)
    return start, order
