"""Rate limits by the generic cell rate algorithm: smooth, exact, one number a bucket.

A limit of `rate` requests a `period` with a `burst` is a bucket of `burst` tokens that fills at that rate. A fixed
window lets twice the rate through at its edge; this does not: in any span of length t at most burst + rate t / period
requests pass. Kept is the theoretical arrival time only (ITU-T I.371, Annex A), in parts of a nanosecond of which the
time that a request costs is a whole number, so that no division rounds and a million requests leave no error behind.

`Limiter.admit` takes about 0.2 us (bench/serving/guard_parts.py).
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from vitok.clock import SECOND, duration
from vitok.errors import InvalidInput

_NS = 1000  # a microsecond
_MOST_SECONDS = 366 * 24 * 3600
_OTHERS = object()

_Caller = TypeVar("_Caller", bound=Hashable)


@dataclass(frozen=True)
class Limit:
    """How many requests may come.

    Args:
        rate: Requests a period, a whole number of at least 1.
        period: The period, such as `"1s"`, `"1m"`, or microseconds.
        burst: How many may come at once after a pause; None for `rate`.
        name: Its name in headers.

    Raises:
        InvalidInput: If a number is below 1, or an empty bucket takes more than a year to fill.

    Example:
        >>> print(Limit(100, "1m", burst=20))
        100 a 60 s, 20 at once
    """

    rate: int
    period: str | int = SECOND
    burst: int | None = None
    name: str = "default"

    def __post_init__(self) -> None:
        object.__setattr__(self, "period", duration(self.period))
        if self.burst is None:
            object.__setattr__(self, "burst", self.rate)
        for what, value in (("rate", self.rate), ("burst", self.burst)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000_000:
                raise InvalidInput(what, value, "be a whole number from 1 to 1,000,000,000")
        if not self.name or not self.name.isascii() or not self.name.isprintable() or set(self.name) & {'"', "\\"}:
            raise InvalidInput("name", self.name, "be printable ASCII without quotes")
        if self.size * self.microseconds > _MOST_SECONDS * SECOND * self.rate:
            raise InvalidInput("burst", self.burst, "fill within a year at this rate", "Take a smaller burst")

    @property
    def microseconds(self) -> int:
        """The period in microseconds."""
        return int(self.period)

    @property
    def size(self) -> int:
        """The burst."""
        return self.rate if self.burst is None else self.burst

    def policy(self) -> str:
        """Returns the header RateLimit-Policy: the quota `q` of each window of `w` seconds.

        Source: draft-ietf-httpapi-ratelimit-headers-09, section 3.

        Example:
            >>> Limit(100, "1m", name="key").policy()
            '"key";q=100;w=60'
        """
        return self._policy

    @cached_property
    def _policy(self) -> str:
        seconds = -(-self.microseconds // SECOND)
        return f'"{self.name}";q={self.rate * seconds * SECOND // self.microseconds};w={seconds}'

    def __str__(self) -> str:
        return f"{self.rate} a {self.microseconds / SECOND:g} s, {self.size} at once"


class Allowance(NamedTuple):
    """What a limit says about a request.

    Attributes:
        limit: The limit.
        admitted: Whether the request may pass; where not, it cost nothing.
        remaining: How many more would pass now.
        reset: Nanoseconds until the bucket is full.
        retry_after: Nanoseconds until it would pass; 0 where it may, -1 where it never will: it costs more than a
            burst.
        degraded: True where the server of the limits could not be asked.
    """

    limit: Limit
    admitted: bool
    remaining: int
    reset: int
    retry_after: int
    degraded: bool = False

    def headers(self) -> dict[str, str]:
        """Returns RateLimit-Policy, RateLimit and, for a refusal, Retry-After, whose seconds are rounded up.

        Source: draft-ietf-httpapi-ratelimit-headers-09; Retry-After of RFC 9110, section 10.2.3.

        Example:
            >>> Allowance(Limit(10), False, 0, 1_000_000_000, 100_000_000).headers()
            {'ratelimit-policy': '"default";q=10;w=1', 'ratelimit': '"default";r=0;t=1', 'retry-after': '1'}
        """
        found = {
            "ratelimit-policy": self.limit.policy(),
            "ratelimit": f'"{self.limit.name}";r={self.remaining};t={_seconds(self.reset)}',
        }
        if not self.admitted and self.retry_after >= 0:
            found["retry-after"] = str(max(1, _seconds(self.retry_after)))
        return found

    def __str__(self) -> str:
        if self.admitted:
            return f"admitted, {self.remaining} more of {self.limit}"
        if self.retry_after < 0:
            return f"refused: it costs more than {self.limit} ever allows"
        return f"refused by {self.limit}: again in {self.retry_after / 1e9:.3g} s"


class Limiter:
    """One limit for many callers, each with a bucket of its own, in the memory of this process.

    A bucket that is full again is forgotten, as no bucket and a full one are the same. So memory is bounded by the
    callers of about twice the time that an empty bucket takes to fill, and by `capacity`: new callers beyond it share
    one bucket, and those who have one keep it, so that nobody gets a fresh bucket by a flood of invented names.

    Times are nanoseconds of any clock that the caller passes; `time.monotonic_ns` is best. Where it goes back, nobody
    waits longer than an empty bucket takes to fill, and nobody gets more than a burst.

    It is for one thread, such as that of an event loop; N processes admit N times the rate (see `SharedLimiter`).

    Args:
        limit: The limit.
        capacity: How many callers may have a bucket of their own at one time.

    Example:
        >>> limiter = Limiter(Limit(2, "1s"))
        >>> [limiter.admit("key", now=0) for _ in range(3)]
        [0, 0, 500000000]
        >>> limiter.check("key", now=500_000_000).admitted
        True
    """

    def __init__(self, limit: Limit, *, capacity: int = 100_000) -> None:
        if capacity < 1:
            raise InvalidInput("capacity", capacity, "be at least 1")
        self.limit = limit
        self.capacity = capacity
        # A request costs period / rate nanoseconds, and a whole bucket a burst of them. In units of that fraction's
        # denominator in lowest terms all is whole, and small for the usual limits.
        period = limit.microseconds * _NS
        shared = math.gcd(period, limit.rate)
        self._rate, self._cost = limit.rate // shared, period // shared
        self._size = self._cost * limit.size
        # Rounded up: what was not touched for so long is full.
        self._fill = -(-self._size // self._rate)
        self._young: dict[Hashable, int] = {}
        self._old: dict[Hashable, int] = {}
        self._since: int | None = None
        self.n_shared = 0

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._young) + len(self._old)

    def admit(self, caller: Hashable, now: int, n: int = 1) -> int:
        """Takes `n` tokens if they are there.

        Args:
            caller: Whose bucket, such as a key's id or `(key_id, user)`.
            now: The present, in nanoseconds.
            n: How many tokens the request costs, at least 1.

        Returns:
            0 where it may pass; else the nanoseconds until it would, and nothing was taken. -1 where it costs more
            than a burst.
        """
        # A generation is at least as long as the fill time, so what the older one still holds is full when it goes.
        # Where the clock goes back a little, as between two threads, it goes on: to turn then would forget everybody.
        if self._since is None or not self._since - self._fill <= now < self._since + self._fill:
            self._turn(now)
        present = now * self._rate
        arrival = self._young.get(caller)
        if arrival is None:
            arrival = self._old.pop(caller, None)
            if arrival is None:
                arrival = present
                if len(self._young) + len(self._old) >= self.capacity:
                    caller = _OTHERS
                    self.n_shared += 1
                    arrival = self._young.get(caller, self._old.get(caller, present))
        if arrival < present:
            arrival = present
        elif arrival > present + self._size:
            arrival = present + self._size
        later = arrival + n * self._cost
        wait = later - present - self._size
        if wait <= 0:
            self._young[caller] = later
            return 0
        self._young[caller] = arrival
        return -(-wait // self._rate) if n * self._cost <= self._size else -1

    def check(self, caller: Hashable, now: int, n: int = 1) -> Allowance:
        """Does what `admit` does, and says what is left; about 0.7 us more, and as much again for the headers."""
        wait = self.admit(caller, now, n)
        return self._said(caller, now, wait)

    def admit_many(self, callers: Iterable[Hashable], now: int) -> list[int]:
        """Admits one request of each caller, in order; see `admit`."""
        return [self.admit(caller, now) for caller in callers]

    def take(self, counts: Mapping[_Caller, int], now: int) -> dict[_Caller, tuple[int, int]]:
        """Takes the tokens of a turn's requests: of each caller all that it needs, or none.

        Args:
            counts: How many tokens each caller needs, at least 1.
            now: The present, in nanoseconds.

        Returns:
            For each caller who got them, how many more would pass now, and in how many nanoseconds its bucket is full.
            Who is not among them may still get some of them one by one.

        Example:
            >>> limiter = Limiter(Limit(2, "1s"))
            >>> limiter.take({"a": 1, "b": 2, "c": 3}, now=0)
            {'a': (1, 500000000), 'b': (0, 1000000000)}
        """
        if self._since is None or not self._since - self._fill <= now < self._since + self._fill:
            self._turn(now)
        found: dict[_Caller, tuple[int, int]] = {}
        young, rate, cost, size = self._young, self._rate, self._cost, self._size
        present = now * rate
        for caller, n in counts.items():
            # What `admit` does for whoever has a bucket that was touched lately, without the call.
            arrival = young.get(caller)
            if arrival is None:
                if not self.admit(caller, now, n):
                    found[caller] = self._left(caller, present)
                continue
            ahead = arrival - present
            if ahead < 0:
                ahead = 0
            elif ahead > size:
                ahead = size
            ahead += n * cost
            if ahead <= size:
                young[caller] = present + ahead
                found[caller] = (size - ahead) // cost, -(-ahead // rate)
        return found

    def peek(self, caller: Hashable, now: int) -> Allowance:
        """Says what is left and takes nothing; `admitted` tells whether one request would pass."""
        arrival = self._young.get(caller, self._old.get(caller))
        ahead = 0 if arrival is None else min(max(0, arrival - now * self._rate), self._size)
        wait = max(0, -(-(ahead + self._cost - self._size) // self._rate))
        return self._allowance(ahead, wait)

    def _left(self, caller: Hashable, present: int) -> tuple[int, int]:
        arrival = self._young.get(caller)
        if arrival is None:
            arrival = self._young[_OTHERS]
        ahead = arrival - present
        return (self._size - ahead) // self._cost, -(-ahead // self._rate)

    def _said(self, caller: Hashable, now: int, wait: int) -> Allowance:
        arrival = self._young.get(caller)
        if arrival is None:
            arrival = self._young[_OTHERS]
        return self._allowance(min(max(0, arrival - now * self._rate), self._size), wait)

    def _allowance(self, ahead: int, wait: int) -> Allowance:
        return Allowance(self.limit, wait == 0, (self._size - ahead) // self._cost, -(-ahead // self._rate), wait)

    def _turn(self, now: int) -> None:
        if self._since is not None and now >= self._since + 2 * self._fill:
            self._young = {}
        self._old, self._young, self._since = self._young, {}, now

    def __repr__(self) -> str:
        return f"Limiter({self.limit}, {len(self)} callers)"


def _seconds(nanoseconds: int) -> int:
    return -(-nanoseconds // 1_000_000_000)
