"""What was served, by the hour: how many values, how many missing, their moments, extremes and histograms.

Counts add up and moments merge, so that an hour may be put together from batches, processes and machines, and a day
from hours; the values themselves are never needed again.
"""

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from vitok.clock import HOUR, isoformat
from vitok.engines import KeyValueStore
from vitok.engines.key_value import Write
from vitok.errors import Conflict, InvalidInput
from vitok.stats import FrozenEdges

TABLE = "served"
_MAGIC = b"vtks1"
_HEAD = struct.Struct("<5s16sIQ")  # magic, digest of names and edges, features, counts in all
_HOUR = struct.Struct("<qq")
_KEY = struct.Struct(">Q")
_SHIFT = 1 << 63  # so that keys of hours before 1970 sort before those after
_SPECIAL = 4  # bins besides the cuts: null, -inf, +inf, and one cell more than there are cuts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedFeature:
    """One feature over some hours.

    Attributes:
        name: The feature.
        n: Values served, with or without a value.
        nulls: How many had no value.
        mean: Mean of the finite ones; NaN where there is none.
        std: Their standard deviation, n - 1 below; NaN for fewer than two.
        least: The smallest of them; NaN where there is none.
        largest: The largest of them; NaN where there is none.
        counts: How many fell into each bin of the frozen edges, shape (n_bins,), int64; empty without edges.
    """

    name: str
    n: int
    nulls: int
    mean: float
    std: float
    least: float
    largest: float
    counts: np.ndarray = dataclasses.field(repr=False, compare=False)

    @property
    def null_share(self) -> float:
        """Share without a value; NaN where nothing was served."""
        return self.nulls / self.n if self.n else math.nan

    def __str__(self) -> str:
        return f"{self.name}: {self.n:,} served, {100 * self.null_share:.3g} % null, mean {self.mean:.4g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedWindow:
    """What was served in some whole hours.

    Attributes:
        start: When they begin, in microseconds.
        end: When they end, not included.
        n: Vectors served.
        n_hours: Hours that have any.
        features: One for each feature, in the order of the vector.
    """

    start: int
    end: int
    n: int
    n_hours: int
    features: tuple[ServedFeature, ...]

    def feature(self, name: str) -> ServedFeature:
        """Returns one feature.

        Raises:
            InvalidInput: If it was not among those served.
        """
        for item in self.features:
            if item.name == name:
                return item
        raise InvalidInput("feature", name, f"be one of {', '.join(item.name for item in self.features)}")

    def __str__(self) -> str:
        head = f"{self.n:,} vectors in {self.n_hours} hours, {isoformat(self.start)} to {isoformat(self.end)}"
        return "\n".join([head, *(f"  {item}" for item in self.features)])


class _Hour:
    __slots__ = ("bins", "limits", "moments", "n", "whole")

    def __init__(self, n_features: int, n_bins: int) -> None:
        self.n = 0
        self.whole = np.zeros((n_features, 2), np.int64)  # nulls, finite values
        self.moments = np.zeros((n_features, 2))  # mean, sum of squares about it
        self.limits = np.tile([np.inf, -np.inf], (n_features, 1))
        self.bins = np.zeros(n_bins, np.int64)

    def merge(self, other: "_Hour") -> None:
        self.n += other.n
        a, b = self.whole[:, 1].astype(np.float64), other.whole[:, 1].astype(np.float64)
        total = np.maximum(a + b, 1.0)
        delta = other.moments[:, 0] - self.moments[:, 0]
        self.moments[:, 1] += other.moments[:, 1] + delta * delta * (a / total) * b
        self.moments[:, 0] += delta * (b / total)
        self.whole += other.whole
        self.limits[:, 0] = np.minimum(self.limits[:, 0], other.limits[:, 0])
        self.limits[:, 1] = np.maximum(self.limits[:, 1], other.limits[:, 1])
        self.bins += other.bins

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.whole, self.moments, self.limits, self.bins


class ServedStatistics:
    """Statistics of served vectors by the hour, ready to be merged and written.

    Args:
        names: The features, in the order of the vectors.
        edges: Frozen edges for each feature, such as those of the model's reference profile; without them no
            histogram is kept.
        about: What served them, such as the name and version of a feature set; what is about different things is kept
            apart.

    Raises:
        InvalidInput: If names are missing or twice there, or the edges are of another number.

    Example:
        >>> served = ServedStatistics(["amount"], edges=[FrozenEdges.from_values([1.0, 2.0, 3.0], n_bins=4)])
        >>> served.add([[1.0], [3.0], [float("nan")]], 5 * HOUR)
        >>> print(served.window(5 * HOUR, 6 * HOUR))
        3 vectors in 1 hours, 1970-01-01T05:00:00Z to 1970-01-01T06:00:00Z
          amount: 3 served, 33.3 % null, mean 2
    """

    def __init__(self, names: Sequence[str], *, edges: Sequence[FrozenEdges] | None = None, about: str = "") -> None:
        self.names = tuple(names)
        self.about = about
        self.edges = tuple(edges) if edges is not None else None
        if not self.names or len(set(self.names)) < len(self.names):
            raise InvalidInput("names", self.names, "be some different names of features")
        if self.edges is not None and len(self.edges) != len(self.names):
            raise InvalidInput("edges", len(self.edges), f"be one for each of the {len(self.names)} features")
        cuts = [item.edges for item in self.edges] if self.edges is not None else []
        self._cuts = np.array([cut for item in cuts for cut in item], np.float64)
        self._cut_offsets = np.cumsum([0, *(len(item) for item in cuts)]).astype(np.int64)
        self._bin_offsets = np.cumsum([0, *(len(item) + _SPECIAL for item in cuts)]).astype(np.int64)
        told = [list(self.names), None if self.edges is None else [list(item) for item in cuts], *filter(None, [about])]
        self.digest = hashlib.sha256(json.dumps(told).encode()).digest()[:16]
        self._hours: dict[int, _Hour] = {}

    @property
    def hours(self) -> tuple[int, ...]:
        """Beginnings of the hours that have any, in microseconds."""
        return tuple(sorted(self._hours))

    def add(self, values: ArrayLike, times: ArrayLike) -> None:
        """Counts served vectors.

        Args:
            values: Shape (n, features), float64 or float32; NaN is a missing value.
            times: When they were served, microseconds: one for all, or shape (n,).

        Raises:
            InvalidInput: If a shape does not fit; nothing was counted then.
        """
        matrix = np.asarray(values)
        if matrix.dtype not in (np.float64, np.float32):
            matrix = matrix.astype(np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.names):
            raise InvalidInput("values", matrix.shape, f"have the shape (n, {len(self.names)})")
        moments = np.asarray(times, np.int64)
        if moments.ndim > 1 or (moments.ndim == 1 and len(moments) != len(matrix)):
            raise InvalidInput("times", moments.shape, f"be one time, or have the shape ({len(matrix)},)")
        if not len(matrix):
            return
        if moments.ndim == 0:
            self._count(int(moments) // HOUR * HOUR, matrix)
            return
        first, last = int(moments.min()) // HOUR, int(moments.max()) // HOUR
        if first == last:
            self._count(first * HOUR, matrix)
            return
        which = moments // HOUR
        for hour in np.unique(which).tolist():
            self._count(hour * HOUR, matrix[which == hour])

    def _count(self, hour: int, matrix: np.ndarray) -> None:
        found = self._hours.get(hour)
        if found is None:
            found = self._hours[hour] = self._new()
        found.n += len(matrix)
        _add(
            matrix,
            found.whole,
            found.moments,
            found.limits,
            found.bins,
            self._cuts,
            self._cut_offsets,
            self._bin_offsets,
        )

    def _new(self) -> _Hour:
        return _Hour(len(self.names), int(self._bin_offsets[-1]))

    def merge(self, other: "ServedStatistics") -> None:
        """Adds what another one counted.

        Raises:
            Conflict: If it has other features or other edges.
        """
        if other.digest != self.digest:
            raise Conflict("served statistics of other features or other edges cannot be added up; keep them apart")
        for hour, found in other._hours.items():  # noqa: SLF001
            self._hours.setdefault(hour, self._new()).merge(found)

    def window(self, start: int, end: int) -> ServedWindow:
        """Adds up the hours that begin in `[start, end)`.

        Args:
            start: Microseconds.
            end: Microseconds.
        """
        hours = [hour for hour in self.hours if start <= hour < end]
        total = self._new()
        for hour in hours:
            total.merge(self._hours[hour])
        features = []
        for place, name in enumerate(self.names):
            nulls, n = (int(value) for value in total.whole[place])
            mean, squares = (float(value) for value in total.moments[place])
            low, high = (float(value) for value in total.limits[place])
            first, last = (0, 0) if self.edges is None else self._bin_offsets[place : place + 2]
            features.append(
                ServedFeature(
                    name=name,
                    n=total.n,
                    nulls=nulls,
                    mean=mean if n else math.nan,
                    std=math.sqrt(squares / (n - 1)) if n > 1 else math.nan,
                    least=low if n else math.nan,
                    largest=high if n else math.nan,
                    counts=total.bins[first:last].copy(),
                )
            )
        return ServedWindow(start=start, end=end, n=total.n, n_hours=len(hours), features=tuple(features))

    def to_bytes(self, hour: int | None = None) -> bytes:
        """Packs one hour, or all.

        Args:
            hour: Its beginning, in microseconds; None for all.
        """
        hours = self.hours if hour is None else (hour,)
        parts = [_HEAD.pack(_MAGIC, self.digest, len(self.names), int(self._bin_offsets[-1]))]
        for start in hours:
            found = self._hours[start]
            parts.append(_HOUR.pack(start, found.n))
            parts += [array.tobytes() for array in found.arrays]
        return b"".join(parts)

    def add_bytes(self, content: bytes) -> None:
        """Adds what `to_bytes` packed.

        Raises:
            Conflict: If it is of other features or other edges.
            InvalidInput: If it is no such content, or a part is missing; nothing was added then.
        """
        wrong = InvalidInput("content", content[:16], "be what ServedStatistics.to_bytes returned")
        if len(content) < _HEAD.size:
            raise wrong
        magic, digest, n_features, n_bins = _HEAD.unpack_from(content)
        if magic != _MAGIC:
            raise wrong
        if digest != self.digest or (n_features, n_bins) != (len(self.names), int(self._bin_offsets[-1])):
            raise Conflict("served statistics of other features or other edges cannot be added up; keep them apart")
        size = _HOUR.size + 8 * (6 * n_features + n_bins)
        if (len(content) - _HEAD.size) % size:
            raise wrong
        for at in range(_HEAD.size, len(content), size):
            start, n = _HOUR.unpack_from(content, at)
            hour = self._new()
            hour.n = n
            place = at + _HOUR.size
            for array in hour.arrays:
                array[...] = np.frombuffer(content, array.dtype, array.size, place).reshape(array.shape)
                place += array.nbytes
            self._hours.setdefault(start, self._new()).merge(hour)

    def save(self, store: KeyValueStore, *, writer: str = "main", table: str = TABLE) -> int:
        """Writes every hour to a store, in one commit, in place of what this writer wrote of it before.

        A process goes on counting and saves again; a process that begins anew takes another writer's name, or reads
        its own hours back with `load` first. Readers add the writers up.

        Args:
            store: Where to.
            writer: Who counts: each process that serves has its own.
            table: Table of the store.

        Returns:
            How many hours were written.

        Raises:
            StoreError: If the store could not be written; nothing was, then.
        """
        writes = self.writes(writer=writer, table=table)
        store.commit(writes)
        return len(writes) - 1

    def writes(self, *, writer: str = "main", table: str = TABLE) -> list[Write]:
        """Returns what `save` commits, as it stands now: for those who commit later, or elsewhere."""
        if not writer or "\0" in writer:
            raise InvalidInput("writer", writer, "be a short name")
        about = {
            "names": list(self.names),
            "edges": None if self.edges is None else [item.to_dict() for item in self.edges],
            "about": self.about,
        }
        writes: list[Write] = [(table, b"about" + self.digest, json.dumps(about).encode())]
        for hour in self.hours:
            key = b"hour" + self.digest + _KEY.pack(hour + _SHIFT) + writer.encode()
            writes.append((table, key, self.to_bytes(hour)))
        return writes


def load(
    store: KeyValueStore,
    *,
    since: int | None = None,
    until: int | None = None,
    writer: str | None = None,
    table: str = TABLE,
) -> tuple[ServedStatistics, ...]:
    """Reads what was saved: one for each set of features and edges that was served.

    Args:
        store: Where from.
        since: First hour, microseconds; by default all.
        until: Up to this hour, not included.
        writer: One writer's alone; by default the sum of all.
        table: Table of the store.

    Example:
        >>> from vitok.engines import MemoryStore
        >>> store = MemoryStore()
        >>> served = ServedStatistics(["amount"])
        >>> served.add([[1.0], [3.0]], 0)
        >>> served.save(store, writer="server-1"), served.save(store, writer="server-2")
        (1, 1)
        >>> [found.window(0, HOUR).n for found in load(store)]
        [4]
    """
    out = []
    for key, value in store.scan(table, b"about"):
        about = json.loads(value)
        edges = about["edges"]
        found = ServedStatistics(
            about["names"],
            edges=None if edges is None else [FrozenEdges.from_dict(item) for item in edges],
            about=about.get("about", ""),
        )
        prefix = b"hour" + key[len(b"about") :]
        for place, content in store.scan(table, prefix):
            hour = _KEY.unpack_from(place, len(prefix))[0] - _SHIFT
            if (since is not None and hour < since) or (until is not None and hour >= until):
                continue
            if writer is None or place[len(prefix) + _KEY.size :] == writer.encode():
                found.add_bytes(content)
        out.append(found)
    return tuple(out)


def expired(store: KeyValueStore, *, before: int, table: str = TABLE) -> list[Write]:
    """Returns the writes that delete the hours of all writers that begin before a moment.

    Args:
        store: Where they are.
        before: Microseconds.
        table: Table of the store.
    """
    writes: list[Write] = []
    for about, _ in store.scan(table, b"about"):
        prefix = b"hour" + about[len(b"about") :]
        for key, _ in store.scan(table, prefix):
            if _KEY.unpack_from(key, len(prefix))[0] - _SHIFT >= before:
                break
            writes.append((table, key, None))
    return writes


@njit(cache=True, nogil=True)
def _add(
    X: np.ndarray,
    whole: np.ndarray,
    moments: np.ndarray,
    limits: np.ndarray,
    bins: np.ndarray,
    cuts: np.ndarray,
    cut_offsets: np.ndarray,
    bin_offsets: np.ndarray,
) -> Any:
    # Two passes a column: the mean first, then the squares about it, so that large values lose no digits.
    n_rows, n_columns = X.shape
    has_bins = cut_offsets.shape[0] > 1
    for column in range(n_columns):
        n, nulls = 0, 0
        total, low, high = 0.0, np.inf, -np.inf
        first = size_of = base = 0
        if has_bins:
            first, base = cut_offsets[column], bin_offsets[column]
            size_of = cut_offsets[column + 1] - first
        own = cuts[first : first + size_of]
        for row in range(n_rows):
            x = np.float64(X[row, column])
            if x != x:
                nulls += 1
                if has_bins:
                    bins[base] += 1
            elif x == -np.inf:
                if has_bins:
                    bins[base + 1] += 1
            elif x == np.inf:
                if has_bins:
                    bins[base + 3 + size_of] += 1
            else:
                n += 1
                total += x
                low = min(low, x)
                high = max(high, x)
                if has_bins:
                    # Some dozens of cuts are counted faster, several at a time, than a search finds its place in them.
                    at = 0
                    for k in range(own.shape[0]):
                        at += 1 if own[k] <= x else 0
                    bins[base + 2 + at] += 1
        whole[column, 0] += nulls
        if n == 0:
            continue
        # Kept among the values, so that a column that never varies has no spread.
        mean, squares = min(max(total / n, low), high), 0.0
        for row in range(n_rows):
            x = np.float64(X[row, column])
            if x - x == 0.0:
                squares += (x - mean) * (x - mean)
        before = whole[column, 1]
        both = before + n
        delta = mean - moments[column, 0]
        moments[column, 1] += squares + delta * delta * before * (n / both)
        moments[column, 0] += delta * (n / both)
        limits[column, 0] = min(limits[column, 0], low)
        limits[column, 1] = max(limits[column, 1], high)
        whole[column, 1] = both
    return None
