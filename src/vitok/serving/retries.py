"""How often and for how long a call may be tried: budgets of retries and hedges, and timeouts that add up.

A retry helps where one member of a pool is ill, and is what brings a pool down where all are overloaded; so retries
are a share of the traffic and never a count alone. A hedge is a second call that is sent before the first has failed,
once it takes longer than nearly all do (Dean & Barroso, The tail at scale, CACM 2013).
"""

import math

import numpy as np

from vitok.errors import InvalidInput

NO_DEADLINE = 2**62
"""Later than any time of `time.perf_counter_ns`."""


class Budget:
    """A bucket of tokens: each request puts in a share of one, each extra call takes one.

    So there are never more extra calls than `reserve` plus `share` times the requests, over any stretch of time, and
    a share alone over the long run. Not made for several threads.

    Args:
        share: Extra calls a request, in [0, 1].
        reserve: Tokens that it holds at most, and at the start; at least 1.

    Attributes:
        requests: How many requests there were.
        taken: How many extra calls were allowed.
        refused: How many were not.

    Raises:
        InvalidInput: If an argument is out of its range.

    Example:
        >>> budget = Budget(0.1, reserve=1)
        >>> budget.take(), budget.take()
        (True, False)
        >>> for _ in range(10):
        ...     budget.deposit()
        >>> budget.take(), budget.take()
        (True, False)
    """

    __slots__ = ("_most", "_share", "_tokens", "refused", "requests", "share", "taken")

    def __init__(self, share: float = 0.1, *, reserve: float = 10.0) -> None:
        if not 0 <= share <= 1:
            raise InvalidInput("share", share, "be in [0, 1]", "For 10 % write 0.1")
        if not 1 <= reserve <= 1e9:
            raise InvalidInput("reserve", reserve, "be at least 1 and at most 1e9")
        self.share = share
        self.requests = self.taken = self.refused = 0
        # Whole millionths, so that ten tenths are one.
        self._share = round(share * 1_000_000)
        self._most = self._tokens = round(reserve * 1_000_000)

    def deposit(self, n: int = 1) -> None:
        """Counts requests."""
        self.requests += n
        tokens = self._tokens + n * self._share
        self._tokens = tokens if tokens < self._most else self._most

    def take(self) -> bool:
        """Says whether an extra call may be made, and counts it."""
        if self._share and self._tokens >= 1_000_000:
            self._tokens -= 1_000_000
            self.taken += 1
            return True
        self.refused += 1
        return False

    def __str__(self) -> str:
        return (
            f"{self.taken:,} extra calls for {self.requests:,} requests, {self.refused:,} refused; "
            f"{100 * self.share:g} % allowed"
        )


class RecentQuantile:
    """A quantile of the newest values, computed anew once in a while. Not made for several threads.

    Args:
        q: Share of the values that are at most the quantile, in (0, 1).
        keep: How many values are looked at.
        least: Values below which there is no answer.

    Example:
        >>> median = RecentQuantile(0.5, keep=100, least=3)
        >>> for value in (5, 1, 9):
        ...     median.add(value)
        >>> median.value
        5.0
    """

    __slots__ = ("_every", "_least", "_n", "_next", "_ring", "q", "value")

    def __init__(self, q: float, *, keep: int = 1000, least: int = 100) -> None:
        if not 0 < q < 1:
            raise InvalidInput("q", q, "be in (0, 1)", "For the slowest 5 % write 0.95")
        if not 1 <= least <= keep:
            raise InvalidInput("least", least, f"be from 1 to keep, {keep}")
        self.q = q
        self.value = math.nan
        self._ring = np.zeros(keep)
        self._n = 0
        self._least = least
        self._every = max(1, least // 2)
        self._next = least

    def add(self, value: float) -> None:
        """Adds a value."""
        n = self._n
        self._ring[n % len(self._ring)] = value
        self._n = n = n + 1
        if n >= self._next:
            self._next = n + self._every
            known = self._ring[: min(n, len(self._ring))]
            rank = max(0, math.ceil(self.q * len(known) * (1 - 1e-12)) - 1)
            self.value = float(np.partition(known, rank)[rank])


class Hedge:
    """When a second call is sent for one that has not been answered yet. Not made for several threads.

    Args:
        quantile: It is sent once the first takes longer than this share of the recent calls, in (0, 1).
        share: Most hedges a request, in [0, 1].
        reserve: How many there may be beyond that share, at the start.
        least: Calls that must have been seen before there is any.

    Attributes:
        budget: How many there may be.

    Example:
        >>> hedge = Hedge(quantile=0.9, least=10)
        >>> for milliseconds in range(1, 11):
        ...     hedge.observe(milliseconds * 1_000_000)
        >>> hedge.delay
        9000000
    """

    def __init__(self, *, quantile: float = 0.95, share: float = 0.05, reserve: float = 5.0, least: int = 100) -> None:
        self.budget = Budget(share, reserve=reserve)
        self._seen = RecentQuantile(quantile, keep=max(1000, least), least=least)

    @property
    def delay(self) -> int | None:
        """Nanoseconds after which a second call may be sent; None while too little is known."""
        value = self._seen.value
        return None if math.isnan(value) else int(value)

    def observe(self, took: int) -> None:
        """Adds what a call took, in nanoseconds; of one that was given up, what it had taken by then."""
        self._seen.add(took)

    def allow(self) -> bool:
        """Says whether a second call may be sent now, and counts it."""
        return self.budget.take()


def allowance(deadline: int, now: int, *, after: int = 0, margin: int = 0, cap: int | None = None) -> int:
    """Returns how long an attempt may take so that it and the attempts after it end before the deadline.

    What is left is shared evenly by this attempt and those after it; what this one leaves over goes to them. However
    many there are, their timeouts add up to no more than the deadline.

    Args:
        deadline: When all must be over, in nanoseconds of a clock that does not go back.
        now: The present on the same clock.
        after: How many attempts that take time may follow.
        margin: Nanoseconds that are kept for what does not: merging, a constant, writing the answer.
        cap: Most nanoseconds of one attempt.

    Returns:
        Nanoseconds; 0 where nothing is left.

    Example:
        >>> allowance(100, 0, after=1, margin=10)
        45
        >>> allowance(100, 20, margin=10)
        70
        >>> allowance(100, 200)
        0
    """
    left = deadline - now - margin
    if left <= 0:
        return 0
    share = left // (after + 1)
    return share if cap is None else min(share, cap)
