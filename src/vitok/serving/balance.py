"""Which member of a pool a call goes to: by what this process itself has in flight, and by the latency it has seen.

Only local counts are read. Counts that others report are late, and then whoever looks shortest is swamped by all
(herding); two choices on local counts need no agreement. Source: Mitzenmacher, The power of two choices in randomized
load balancing, IEEE TPDS 2001; the latency is Finagle's peak EWMA.
"""

import math
import time
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Protocol

from vitok.errors import InvalidInput
from vitok.serving.breaker import Nanoseconds


class Loads:
    """What is known of the members of a pool, each at its place. Not made for several threads.

    Args:
        n: How many members there are, at least 1.
        costs: What a row costs at each; by default nothing.
        weights: Which share of the calls each shall have; by default the same.
        decay: Seconds after which an old latency counts for 37 %.
        clock: Nanoseconds.

    Attributes:
        in_flight: Calls that each has not answered yet.
        calls: Calls that each was given.

    Raises:
        InvalidInput: If the lists have other lengths, or a weight or cost is negative or not finite.

    Example:
        >>> loads = Loads(2, clock=lambda: 0)
        >>> loads.start(1)
        >>> loads.in_flight
        [0, 1]
        >>> loads.finish(1, took=3_000_000)
        >>> loads.in_flight, loads.latency(1)
        ([0, 0], 3000000.0)
    """

    __slots__ = ("_clock", "_decay", "_ewma", "_row", "_seen", "calls", "costs", "in_flight", "weights")

    def __init__(
        self,
        n: int,
        *,
        costs: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        decay: float = 10.0,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if n < 1:
            raise InvalidInput("n", n, "be at least 1")
        if not 0 < decay < math.inf:
            raise InvalidInput("decay", decay, "be seconds, above zero and finite")
        self.costs = checked("costs", costs if costs is not None else [0.0] * n, n)
        self.weights = checked("weights", weights if weights is not None else [1.0] * n, n)
        if sum(self.weights) <= 0:
            raise InvalidInput("weights", list(self.weights), "not all be 0")
        self.in_flight = [0] * n
        self.calls = [0] * n
        self._ewma = [-1.0] * n
        self._seen = [0] * n
        self._row = [0] * n
        self._decay = decay * 1e9
        self._clock = clock

    def start(self, member: int) -> None:
        """Counts a call that is sent."""
        self.in_flight[member] += 1
        self.calls[member] += 1

    def finish(self, member: int, *, took: int | None = None, ok: bool | None = True) -> None:
        """Counts a call that has ended.

        Args:
            member: Whose.
            took: Nanoseconds it took; None where that says nothing about how fast it answers.
            ok: Whether it was answered; None where it was given up before that was known.
        """
        self.in_flight[member] -= 1
        now = self._clock()
        if ok is not None:
            self._row[member] = 0 if ok else self._row[member] + 1
        if took is None:
            self._seen[member] = now
            return
        known = self._ewma[member]
        if took >= known:
            # A peak counts at once and fades slowly, so that a member that stalls is left alone at once.
            self._ewma[member] = float(took)
        else:
            kept = math.exp(-max(0, now - self._seen[member]) / self._decay)
            self._ewma[member] = known * kept + took * (1 - kept)
        self._seen[member] = now

    def latency(self, member: int) -> float:
        """Returns the nanoseconds that a call is expected to take; 0 where none has ended.

        It fades while nothing is sent, so that a member that was slow once is tried again.
        """
        known = self._ewma[member]
        if known <= 0:
            return 0.0
        idle = self._clock() - self._seen[member]
        if self.in_flight[member] == 0 and idle > self._decay:
            return known * math.exp(-(idle - self._decay) / self._decay)
        return known

    def queue(self, member: int) -> int:
        """Returns the calls in flight and, for a while, the failures in a row.

        What fails at once has nothing in flight; counted by that alone it would draw all calls to itself.
        """
        row = self._row[member]
        if row and self._clock() - self._seen[member] > self._decay:
            row = 0
        return self.in_flight[member] + row

    def burden(self, member: int) -> float:
        """Returns the expected nanoseconds until one more call would be answered.

        A member that has never answered is tried by one call at a time.
        """
        queue = self.queue(member)
        if self._ewma[member] < 0:
            return math.inf if queue else 0.0
        return self.latency(member) * (queue + 1)


def checked(field: str, values: Sequence[float], n: int) -> tuple[float, ...]:
    """Returns values of which there must be n, each finite and at least 0.

    Raises:
        InvalidInput: If they are not.
    """
    if len(values) != n:
        raise InvalidInput(field, list(values), f"hold {n} numbers, one for each target")
    for k, value in enumerate(values):
        if not 0 <= value < math.inf:
            raise InvalidInput(f"{field}[{k}]", value, "be finite and at least 0")
    return tuple(float(value) for value in values)


class Balancer(Protocol):
    """Picks a member of a pool."""

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        """Returns one of `candidates`, which are one or more places in the pool."""
        ...

    def reason(self, member: int, loads: Loads) -> str:
        """Says why it was picked, right after `pick` returned it."""
        ...


def _two(candidates: Sequence[int], random: Random) -> tuple[int, int]:
    n = len(candidates)
    first = int(random.random() * n)
    second = int(random.random() * (n - 1))
    return candidates[first], candidates[second + (second >= first)]


class PowerOfTwo:
    """Of two members drawn at random, the one with fewer calls in flight; failures in a row count as such.

    Args:
        seed: Of the draws.

    Example:
        >>> loads = Loads(2)
        >>> loads.start(0)
        >>> PowerOfTwo().pick([0, 1], loads)
        1
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._random = Random(seed)  # noqa: S311 - it spreads load, it keeps no secret

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        """Returns the one with fewer in flight."""
        if len(candidates) == 1:
            return candidates[0]
        one, other = _two(candidates, self._random)
        return one if loads.queue(one) <= loads.queue(other) else other

    def reason(self, member: int, loads: Loads) -> str:
        """Says how many it had in flight."""
        return f"{loads.in_flight[member]} in flight, the fewer of two drawn"


class PeakEwma:
    """Of two members drawn at random, the one with the smaller latency times calls in flight.

    For members of unlike speed; a stall counts at once.

    Args:
        seed: Of the draws.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._random = Random(seed)  # noqa: S311 - it spreads load, it keeps no secret

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        """Returns the one with the smaller burden."""
        if len(candidates) == 1:
            return candidates[0]
        one, other = _two(candidates, self._random)
        return one if loads.burden(one) <= loads.burden(other) else other

    def reason(self, member: int, loads: Loads) -> str:
        """Says which latency was expected."""
        return f"{_milliseconds(loads, member)} expected, the faster of two drawn"


class LeastLatency:
    """The member with the smallest latency times calls in flight, of all; for a few targets of unlike speed."""

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        """Returns the one with the smallest burden, of equal ones the first."""
        return min(candidates, key=loads.burden)

    def reason(self, member: int, loads: Loads) -> str:
        """Says which latency was expected."""
        return f"{_milliseconds(loads, member)} expected, the fastest"


class ByWeight:
    """A member drawn at random by the weights of `Loads`.

    Args:
        seed: Of the draws.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self._random = Random(seed)  # noqa: S311 - it spreads load, it keeps no secret

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        """Returns one drawn by weight; where all weights are 0, the first."""
        sums = list(accumulate(loads.weights[k] for k in candidates))
        if sums[-1] <= 0:
            return candidates[0]
        return candidates[min(bisect(sums, self._random.random() * sums[-1]), len(candidates) - 1)]

    def reason(self, member: int, loads: Loads) -> str:
        """Says which weight it has."""
        return f"drawn by its weight of {loads.weights[member]:g} in {sum(loads.weights):g}"


class LeastCost:
    """The cheapest member; of equally cheap ones the one with the fewest calls in flight."""

    def pick(self, candidates: Sequence[int], loads: Loads) -> int:
        """Returns the cheapest."""
        return min(candidates, key=lambda k: (loads.costs[k], loads.queue(k)))

    def reason(self, member: int, loads: Loads) -> str:
        """Says what it costs."""
        return f"{loads.costs[member]:g} a row, the cheapest"


def _milliseconds(loads: Loads, member: int) -> str:
    found = loads.latency(member)
    return f"{found / 1e6:.3g} ms" if found else "no latency known yet,"
