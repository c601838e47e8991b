"""Counts of one version by hour and slice as arrays, and the bytes in which they lie beside a sealed segment."""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitok.clock import HOUR
from vitok.errors import Conflict, InvalidInput

_MAGIC = b"vitokhr1"
_HEAD = struct.Struct("<8sI")
_DTYPES = ("<u2", "<u4", "<i8")
_ARRAYS = ("hours", "n", "counts", "slice_at", "slice_n", "slice_counts", "joint")


@dataclass(frozen=True, kw_only=True, eq=False)
class HourlyCounts:
    """What one version saw and said, hour by hour: h hours, b bins of all columns, k cells of slices.

    Attributes:
        version: Which version.
        digest: `ReferenceProfile.digest` of the bins; empty where the version has none, and b is 0.
        hours: Shape (h,), hours since 1970, ascending.
        n: Shape (h,), decisions.
        counts: Shape (h, b), decisions in each bin.
        numbers: What else was counted in each hour, as JSON; see `Sketches`.
        slices: The slices that occur, as (column, value).
        slice_at: Shape (k, 2): place in `hours` and place in `slices` of each cell.
        slice_n: Shape (k,), decisions.
        slice_counts: Shape (k, b).
        joint: Shape (h, d), sums of the random features, d of them; d is 0 where the profile has none.
    """

    version: str
    digest: str
    hours: NDArray[np.int64]
    n: NDArray[np.int64]
    counts: NDArray[np.int64]
    numbers: tuple[str, ...]
    slices: tuple[tuple[str, str], ...]
    slice_at: NDArray[np.int64]
    slice_n: NDArray[np.int64]
    slice_counts: NDArray[np.int64]
    joint: NDArray[np.float64]

    @property
    def n_total(self) -> int:
        """Decisions of all hours."""
        return int(self.n.sum())

    def between(self, start: int, end: int) -> "HourlyCounts":
        """Returns the hours of `[start, end)`, times in microseconds."""
        low, high = np.searchsorted(self.hours, [-(-start // HOUR), -(-end // HOUR)])
        inside = (self.slice_at[:, 0] >= low) & (self.slice_at[:, 0] < high)
        return HourlyCounts(
            version=self.version,
            digest=self.digest,
            hours=self.hours[low:high],
            n=self.n[low:high],
            counts=self.counts[low:high],
            numbers=self.numbers[low:high],
            slices=self.slices,
            slice_at=self.slice_at[inside] - [low, 0],
            slice_n=self.slice_n[inside],
            slice_counts=self.slice_counts[inside],
            joint=self.joint[low:high],
        )

    def of_slice(self, column: str, value: str) -> tuple[int, NDArray[np.int64]]:
        """Returns decisions and counts, shape (b,), of one slice over all hours; zeros where it never occurs."""
        if (column, value) not in self.slices:
            return 0, np.zeros(self.counts.shape[1], dtype=np.int64)
        chosen = self.slice_at[:, 1] == self.slices.index((column, value))
        return int(self.slice_n[chosen].sum()), self.slice_counts[chosen].sum(axis=0)


def encode(found: Iterable[HourlyCounts]) -> bytes:
    """Writes counts as bytes that numpy reads in place: a head in JSON, then the arrays, integers as short as they go.

    Example:
        >>> none = np.zeros(0, dtype=np.int64)
        >>> one = HourlyCounts(version="fraud/1", digest="d", hours=np.array([7]), n=np.array([3]),
        ...     counts=np.array([[1, 2]]), numbers=("{}",), slices=(), slice_at=np.zeros((0, 2), dtype=np.int64),
        ...     slice_n=none, slice_counts=np.zeros((0, 2), dtype=np.int64), joint=np.zeros((1, 0)))
        >>> (again,) = decode(encode([one]))
        >>> again.version, again.counts.tolist(), again.hours.tolist()
        ('fraud/1', [[1, 2]], [7])
    """
    entries, parts, at = [], [], 0
    for one in found:
        arrays = []
        for name in _ARRAYS:
            array = np.ascontiguousarray(getattr(one, name))
            dtype = "<f8"
            if array.dtype.kind != "f":
                largest = int(array.max(initial=0))
                dtype = next((kind for kind in _DTYPES[:2] if 0 <= largest <= np.iinfo(kind).max), _DTYPES[2])
                if int(array.min(initial=0)) < 0:
                    dtype = _DTYPES[2]
            data = array.astype(dtype).tobytes()
            arrays.append([dtype, list(array.shape), at])
            parts.append(data + b"\0" * (-len(data) % 8))
            at += len(parts[-1])
        numbers = json.dumps(one.numbers, separators=(",", ":")).encode()
        entries.append([one.version, one.digest, one.slices, arrays, at, len(numbers)])
        parts.append(numbers + b"\0" * (-len(numbers) % 8))
        at += len(parts[-1])
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-(_HEAD.size + len(head)) % 8)
    return b"".join([_HEAD.pack(_MAGIC, len(head)), head, *parts])


def decode(data: bytes) -> tuple[HourlyCounts, ...]:
    """Reads what `encode` wrote, one item a version.

    Raises:
        InvalidInput: If it is something else.
    """
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise InvalidInput("hourly counts", data[:16], f"begin with {_MAGIC!r}", "Pass what `encode` wrote")
    _, length = _HEAD.unpack_from(data)
    start = _HEAD.size + length
    found = []
    for version, digest, slices, arrays, at, size in json.loads(data[_HEAD.size : start]):
        read: dict[str, Any] = {}
        for name, (dtype, shape, offset) in zip(_ARRAYS, arrays, strict=True):
            count = int(np.prod(shape, dtype=np.int64))
            read[name] = np.frombuffer(data, dtype=dtype, count=count, offset=start + offset).reshape(shape)
        found.append(
            HourlyCounts(
                version=version,
                digest=digest,
                slices=tuple((column, value) for column, value in slices),
                numbers=tuple(json.loads(data[start + at : start + at + size])),
                **read,
            )
        )
    return tuple(found)


def merge(found: Sequence[HourlyCounts]) -> HourlyCounts:
    """Adds up counts of one version, hour by hour.

    Args:
        found: At least one, all of one version and over the same bins.

    Raises:
        Conflict: If versions or bins differ.
    """
    first = found[0]
    for other in found[1:]:
        if (other.version, other.digest) != (first.version, first.digest):
            raise Conflict(
                f"{other.version} was counted over bins {other.digest or 'of no profile'}, {first.version} over"
                f" {first.digest or 'of no profile'}: a version keeps the profile that it was registered with"
            )
    if len(found) == 1:
        return first
    hours, at = np.unique(np.concatenate([one.hours for one in found]).astype(np.int64), return_inverse=True)
    slices = sorted({each for one in found for each in one.slices})
    n, counts = _added(at, len(hours), [one.n for one in found]), _added(at, len(hours), [one.counts for one in found])
    joint = np.zeros((len(hours), first.joint.shape[1]))
    np.add.at(joint, at, np.concatenate([one.joint for one in found]))
    numbers: list[str] = [""] * len(hours)
    for place, text in zip(at.tolist(), (text for one in found for text in one.numbers), strict=True):
        numbers[place] = text if not numbers[place] else add_numbers(numbers[place], text)
    keys = []
    for one in found:
        places = np.searchsorted(hours, one.hours)
        kinds = np.array([slices.index(each) for each in one.slices], dtype=np.int64)
        cells = one.slice_at.astype(np.int64)
        keys.append(places[cells[:, 0]] * max(len(slices), 1) + kinds[cells[:, 1]] if len(cells) else cells[:, 0])
    distinct, where = np.unique(np.concatenate(keys), return_inverse=True)
    width = max(len(slices), 1)
    return HourlyCounts(
        version=first.version,
        digest=first.digest,
        hours=hours,
        n=n,
        counts=counts,
        numbers=tuple(numbers),
        slices=tuple(slices),
        slice_at=np.column_stack([distinct // width, distinct % width]),
        slice_n=_added(where, len(distinct), [one.slice_n for one in found]),
        slice_counts=_added(where, len(distinct), [one.slice_counts for one in found]),
        joint=joint,
    )


def _added(at: NDArray[np.intp], length: int, parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros((length, *parts[0].shape[1:]), dtype=np.int64)
    first = 0
    for part in parts:
        # Within a part each place occurs once.
        total[at[first : first + len(part)]] += part
        first += len(part)
    return total


def add_numbers(one: str, other: str) -> str:
    """Adds up two of `HourlyCounts.numbers`."""
    from vitok.stats import LatencyHistogram

    left, right = json.loads(one), json.loads(other)
    latency = LatencyHistogram.from_dict(left["latency"])
    latency.merge(LatencyHistogram.from_dict(right["latency"]))
    groups: Mapping[str, dict[str, int]] = left["groups"]
    for group, counts in right["groups"].items():
        for name, count in counts.items():
            groups[group][name] = groups[group].get(name, 0) + count
    return json.dumps(
        {
            "groups": groups,
            "n_probability": left["n_probability"] + right["n_probability"],
            "probability": left["probability"] + right["probability"],
            "latency": latency.to_dict(),
        },
        separators=(",", ":"),
    )
