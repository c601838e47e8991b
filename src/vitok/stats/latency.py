"""A histogram of latencies in microseconds with at most 1 % relative error, cheap enough for every request."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vitok.errors import InvalidInput
from vitok.stats.arrays import vector

_SUB_BITS = 6
_LINEAR = 2 << _SUB_BITS
_LARGEST = 100_000_000


def _bucket(value: int) -> int:
    shift = max(0, value.bit_length() - _SUB_BITS - 1)
    return (shift << _SUB_BITS) + (value >> shift)


_OVERFLOW = _bucket(_LARGEST) + 1


def _middle(bucket: int) -> float:
    if bucket < _LINEAR:
        return float(bucket)
    shift = (bucket >> _SUB_BITS) - 1
    low = (bucket - (shift << _SUB_BITS)) << shift
    return low + ((1 << shift) - 1) / 2


class LatencyHistogram:
    """Counts latencies in buckets that grow with the value: whole microseconds below 128, then 64 a doubling.

    A quantile is the middle of its bucket, so it is within 0.8 % of the value at that rank, up to 100 s; above, all
    share one bucket and only the maximum is known. Fractions of a microsecond are cut off. Not made for several
    threads: give each its own and merge.

    Source: the log-linear layout is that of HdrHistogram (Tene, 2012).

    Example:
        >>> latencies = LatencyHistogram()
        >>> latencies.record_many(np.arange(1, 1001))
        >>> latencies.record(9_000)
        >>> print(latencies)
        n 1,001, P50 501.5 us, P99 987.5 us, P99.9 1,003.5 us, max 9,000 us
    """

    def __init__(self) -> None:
        self._counts = [0] * (_OVERFLOW + 1)
        self._count = 0
        self._total = 0
        self._min = 0
        self._max = 0

    def record(self, us: float) -> None:
        """Adds one latency.

        Args:
            us: Microseconds, at least 0.

        Raises:
            InvalidInput: If it is negative, NaN or infinite.
        """
        if not 0 <= us < math.inf:
            raise InvalidInput(
                "us", us, "be a finite number of microseconds, at least 0", "Measure with a monotonic clock"
            )
        value = int(us)
        shift = value.bit_length() - 7
        if shift <= 0:
            bucket = value
        elif value <= _LARGEST:
            bucket = (shift << _SUB_BITS) + (value >> shift)
        else:
            bucket = _OVERFLOW
        self._counts[bucket] += 1
        if value > self._max:
            self._max = value
        if value < self._min or not self._count:
            self._min = value
        self._count += 1
        self._total += value

    def record_many(self, us: ArrayLike) -> None:
        """Adds many latencies at once.

        Args:
            us: Microseconds of shape (n,), each at least 0; n may be 0.

        Raises:
            InvalidInput: If one is negative, NaN or infinite; then none is added.
        """
        array = vector("us", us, finite=True)
        if len(array) == 0:
            return
        if float(array.min()) < 0:
            raise InvalidInput("us", float(array.min()), "be at least 0", "Measure with a monotonic clock")
        values = array.astype(np.int64)
        shift = np.maximum(np.frexp(np.minimum(values, _LARGEST).astype(np.float64))[1] - _SUB_BITS - 1, 0)
        buckets = np.where(values > _LARGEST, _OVERFLOW, (shift.astype(np.int64) << _SUB_BITS) + (values >> shift))
        found = np.bincount(buckets)
        for bucket in np.flatnonzero(found).tolist():
            self._counts[bucket] += int(found[bucket])
        low, high = int(values.min()), int(values.max())
        self._min = min(self._min, low) if self._count else low
        self._max = max(self._max, high)
        self._count += len(values)
        self._total += int(values.sum())

    def record_since(self, moments_ns: Iterable[int], now_ns: int) -> None:
        """Adds how long ago each of some moments was; cheaper than `record_many` for up to some hundred of them.

        Args:
            moments_ns: Nanoseconds of a monotonic clock; one that lies after `now_ns` counts as 0.
            now_ns: The present on the same clock.

        Example:
            >>> latencies = LatencyHistogram()
            >>> latencies.record_since([1_000, 5_000], 9_000)
            >>> latencies.total
            12
        """
        counts = self._counts
        low, high, total, n = 1 << 62, 0, 0, 0
        for moment in moments_ns:
            value = (now_ns - moment) // 1000
            if value < 0:
                value = 0
            shift = value.bit_length() - 7
            if shift <= 0:
                counts[value] += 1
            elif value <= _LARGEST:
                counts[(shift << _SUB_BITS) + (value >> shift)] += 1
            else:
                counts[_OVERFLOW] += 1
            low = value if value < low else low
            high = value if value > high else high
            total += value
            n += 1
        if n:
            self._min = min(self._min, low) if self._count else low
            self._max = max(self._max, high)
            self._count += n
            self._total += total

    def merge(self, other: "LatencyHistogram") -> None:
        """Adds all that another histogram holds; the other stays as it is."""
        if other.count == 0:
            return
        self._min = min(self._min, other.min) if self._count else other.min
        self._max = max(self._max, other.max)
        self._count += other.count
        self._total += other.total
        for bucket, count in other.buckets():
            self._counts[bucket] += count

    def buckets(self) -> list[tuple[int, int]]:
        """Returns the buckets in use, ascending, with their counts."""
        return [(bucket, count) for bucket, count in enumerate(self._counts) if count]

    @property
    def count(self) -> int:
        """How many latencies were added."""
        return self._count

    @property
    def max(self) -> int:
        """The largest, exactly; 0 where there is none."""
        return self._max

    @property
    def min(self) -> int:
        """The smallest, exactly; 0 where there is none."""
        return self._min

    @property
    def total(self) -> int:
        """The sum of the whole microseconds, exactly."""
        return self._total

    @property
    def mean(self) -> float:
        """The mean of the whole microseconds, exactly; NaN where there is none."""
        return self._total / self._count if self._count else math.nan

    def quantile(self, q: float) -> float:
        """Returns the smallest latency that at least a share q of all do not exceed.

        Args:
            q: Share, in [0, 1]; 0.999 for P99.9.

        Returns:
            Microseconds; NaN where nothing was recorded.

        Raises:
            InvalidInput: If q is outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise InvalidInput("q", q, "be in [0, 1]")
        if self._count == 0:
            return math.nan
        # q n is often a hair above a whole number in floating point; the next rank would then be one too far.
        rank = max(1, math.ceil(q * self._count * (1 - 1e-12)))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                if bucket == _OVERFLOW:
                    break
                return min(max(_middle(bucket), float(self._min)), float(self._max))
        return float(self._max)

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold: only the buckets in use."""
        # Counted anew: whoever reads from another thread may come between two additions, and they must add up.
        buckets = self.buckets()
        return {
            "count": sum(count for _, count in buckets),
            "total_us": self._total,
            "min_us": self._min,
            "max_us": self._max,
            "buckets": [list(pair) for pair in buckets],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LatencyHistogram":
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a part is missing, a bucket does not exist, or the buckets do not add up to the count.
        """
        for field in ("count", "total_us", "min_us", "max_us", "buckets"):
            if field not in data:
                raise InvalidInput(field, None, "be there", "Pass what LatencyHistogram.to_dict returned")
        histogram = cls()
        for bucket, count in data["buckets"]:
            if not 0 <= bucket <= _OVERFLOW:
                raise InvalidInput("buckets", bucket, f"number from 0 to {_OVERFLOW}")
            histogram._counts[bucket] += count
        if sum(histogram._counts) != data["count"]:
            raise InvalidInput("count", data["count"], "be the sum of the buckets")
        histogram._count, histogram._total = int(data["count"]), int(data["total_us"])
        histogram._min, histogram._max = int(data["min_us"]), int(data["max_us"])
        return histogram

    def __str__(self) -> str:
        if self._count == 0:
            return "n 0"
        shown = ", ".join(
            f"{name} {self.quantile(q):,.6g} us" for name, q in (("P50", 0.5), ("P99", 0.99), ("P99.9", 0.999))
        )
        return f"n {self._count:,}, {shown}, max {self._max:,} us"
