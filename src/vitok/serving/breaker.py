"""A breaker stops asking a target that fails or is slow, and finds out by a few probes when it is well again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vitok.errors import InvalidInput

Nanoseconds = Callable[[], int]
"""A clock that never goes back, such as `time.perf_counter_ns`."""

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half-open"
_SECOND = 1_000_000_000
_SLICES = 10


@dataclass(frozen=True, kw_only=True)
class BreakerRules:
    """When a breaker opens, and how it closes.

    Attributes:
        error_share: Opens where at least this share of the calls in the window failed, in (0, 1].
        slow_share: Opens where at least this share was slow or overtaken (`Breaker.overtaken`), in (0, 1].
        slow_after: Seconds from which a call is slow; infinity where only failures count. A call that timed out is a
            failure, however long it took.
        min_calls: Calls that the window must hold before anything is concluded from it. So many in a row that failed
            or were overtaken open it whatever went well before: a total failure is seen at once, not when half the
            window is filled.
        window: Seconds that are looked back; they leave in tenths.
        cool_down: Seconds that it stays open the first time.
        longest: Most seconds that it stays open: each opening in a row adds `cool_down`.
        jitter: Longest share that chance adds to the time it stays open, so that many do not come back at once.
        probes: Calls that are let through when it is half open; all must succeed for it to close.

    Raises:
        InvalidInput: If a value is out of its range.

    Example:
        >>> BreakerRules(slow_after=0.05).cool_down
        30.0
    """

    error_share: float = 0.5
    slow_share: float = 0.8
    slow_after: float = float("inf")
    min_calls: int = 20
    window: float = 10.0
    cool_down: float = 30.0
    longest: float = 300.0
    jitter: float = 0.1
    probes: int = 3

    def __post_init__(self) -> None:
        for name in ("error_share", "slow_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidInput(name, getattr(self, name), "be in (0, 1]", "For half of the calls write 0.5")
        for name in ("window", "cool_down"):
            if not 1e-6 <= getattr(self, name) < 1e9:
                raise InvalidInput(name, getattr(self, name), "be seconds, above zero and finite")
        if not self.slow_after > 0:
            raise InvalidInput("slow_after", self.slow_after, "be longer than zero")
        if not self.cool_down <= self.longest < 1e9:
            raise InvalidInput("longest", self.longest, "be at least the cool-down and finite")
        if not 0 <= self.jitter <= 1:
            raise InvalidInput("jitter", self.jitter, "be in [0, 1]")
        for name in ("min_calls", "probes"):
            if getattr(self, name) < 1:
                raise InvalidInput(name, getattr(self, name), "be at least 1")


class Breaker:
    """Lets calls through while they go well.

    Closed, it lets all through and counts. Open, it lets none through until its time is over. Half open, it lets
    `probes` calls through at a time: if all succeed it closes, if one fails it opens for longer. How often it opened
    in a row is forgotten one by one, for each time that it then stayed closed as long as it had been open.

    Whoever calls asks `admit` and gives the permit back with `record` or `release`. A permit belongs to the state in
    which it was given: what comes back after the state has changed says nothing about the present and is not counted.
    Not made for several threads.

    Args:
        rules: When it opens and how it closes.
        clock: Nanoseconds; never asked for more than differences.
        seed: Of the jitter.

    Attributes:
        state: `"closed"`, `"open"` or `"half-open"`, as of the last call of a method.
        reason: Why it opened last; empty where it never did.
        opened: How often it has opened.
        refused: How many calls it has not let through.
        probed: How many probes it has let through.
        ejected: Whether it was opened from outside (`eject`) and has not closed since.

    Example:
        >>> now = 0
        >>> breaker = Breaker(BreakerRules(min_calls=2, probes=1, jitter=0), clock=lambda: now)
        >>> for _ in range(2):
        ...     breaker.record(breaker.admit(), ok=False)
        >>> print(breaker)
        open: 2 calls in a row failed; half open in 30 s
        >>> breaker.admit()
        0
        >>> now = 31_000_000_000
        >>> breaker.record(breaker.admit(), ok=True)
        >>> print(breaker)
        closed
    """

    __slots__ = (
        "_at",
        "_calls",
        "_clock",
        "_closed_since",
        "_errors",
        "_generation",
        "_n_calls",
        "_n_errors",
        "_n_overtaken",
        "_n_slow",
        "_out",
        "_passed",
        "_random",
        "_row",
        "_slice",
        "_slow",
        "_slow_ns",
        "_streak",
        "_until",
        "_wait",
        "ejected",
        "opened",
        "probed",
        "reason",
        "refused",
        "rules",
        "state",
    )

    def __init__(
        self, rules: BreakerRules | None = None, *, clock: Nanoseconds = time.perf_counter_ns, seed: int = 0
    ) -> None:
        self.rules = rules if rules is not None else BreakerRules()
        self.state = CLOSED
        self.reason = ""
        self.opened = self.refused = self.probed = 0
        self.ejected = False
        self._clock = clock
        self._random = Random(seed)  # noqa: S311 - it spreads times, it keeps no secret
        self._slice = max(1, round(self.rules.window * _SECOND / _SLICES))
        slow = self.rules.slow_after * _SECOND
        self._slow_ns = slow if slow < 2**62 else 2**62
        self._generation = 1
        self._until = self._wait = 0
        self._row = 0
        self._out = self._passed = 0
        self._closed_since = clock()
        self._at = self._n_calls = self._n_errors = self._n_slow = self._n_overtaken = self._streak = 0
        self._forget()

    def admit(self) -> int:
        """Returns a permit, or 0 where the call must not be made."""
        if self.state is CLOSED:
            return self._generation
        now = self._clock()
        if self.state is OPEN:
            if now < self._until:
                self.refused += 1
                return 0
            self._to(HALF_OPEN)
            self._until = now + self._wait
        elif now >= self._until:
            # Probes that nobody reports back must not hold the places for ever.
            self._to(HALF_OPEN)
            self._until = now + self._wait
        if self._out + self._passed >= self.rules.probes:
            self.refused += 1
            return 0
        self._out += 1
        self.probed += 1
        return self._generation

    @property
    def admits(self) -> bool:
        """Whether `admit` would give a permit now; asking changes nothing."""
        if self.state is CLOSED:
            return True
        if self._clock() >= self._until:
            return True
        return self.state is HALF_OPEN and self._out + self._passed < self.rules.probes

    def record(self, permit: int, *, ok: bool, took: int = 0) -> None:
        """Reports how a call ended.

        Args:
            permit: What `admit` gave; 0 is not counted.
            ok: False where it failed or timed out.
            took: Nanoseconds.
        """
        if permit != self._generation:
            return
        slow = took >= self._slow_ns
        if self.state is CLOSED:
            k = self._count()
            if ok:
                self._streak = 0
                if not slow:
                    return
            else:
                self._streak += 1
                self._errors[k] += 1
                self._n_errors += 1
            if slow:
                self._slow[k] += 1
                self._n_slow += 1
            self._judge()
        elif self.state is HALF_OPEN:
            self._out -= 1
            if not ok or slow:
                self._open("a probe failed" if not ok else "a probe was slow")
                return
            self._passed += 1
            if self._passed >= self.rules.probes:
                self._close()

    def overtaken(self, permit: int) -> None:
        """Reports a call that was given up because one that was sent later, to another target, was answered first.

        It counts as slow, whatever `slow_after` is, and in the row of failures; as a probe it has failed.

        Args:
            permit: What `admit` gave; 0 is not counted.
        """
        if permit != self._generation:
            return
        if self.state is CLOSED:
            k = self._count()
            self._streak += 1
            self._slow[k] += 1
            self._n_slow += 1
            self._n_overtaken += 1
            self._judge()
        elif self.state is HALF_OPEN:
            self._out -= 1
            self._open("a probe was overtaken")

    def release(self, permit: int, *, took: int = 0) -> None:
        """Gives a permit back for a call that was given up before it ended; it counts only if it was slow already.

        Args:
            permit: What `admit` gave.
            took: Nanoseconds until it was given up.
        """
        if permit != self._generation:
            return
        if took >= self._slow_ns:
            self.record(permit, ok=True, took=took)
        elif self.state is HALF_OPEN:
            self._out -= 1

    def eject(self, reason: str, *, seconds: float | None = None) -> None:
        """Opens it from outside, as if its own window had; it comes back by probes as always.

        Args:
            reason: Why.
            seconds: How long the first time; by default the rules' cool-down.
        """
        if self.state is OPEN:
            return
        self._open(reason, seconds)
        self.ejected = True

    def probe_now(self) -> None:
        """Ends the time for which it is open: the next calls are probes."""
        if self.state is OPEN:
            self._until = self._clock()

    def _count(self) -> int:
        at = self._clock() // self._slice
        if at > self._at:
            self._pass(at)
        k = self._at % _SLICES
        self._calls[k] += 1
        self._n_calls += 1
        return k

    def _judge(self) -> None:
        n, rules = self._n_calls, self.rules
        if n < rules.min_calls:
            return
        overtaken = " or were overtaken" if self._n_overtaken else ""
        if self._streak >= rules.min_calls:
            self._open(f"{self._streak} calls in a row failed{overtaken}")
        elif self._n_errors >= rules.error_share * n:
            self._open(f"{self._n_errors} of {n} calls failed")
        elif self._n_slow >= rules.slow_share * n:
            self._open(f"{self._n_slow} of {n} calls took longer than {rules.slow_after:g} s{overtaken}")

    def _open(self, reason: str, seconds: float | None = None) -> None:
        now = self._clock()
        rules = self.rules
        if self.state is CLOSED and self._wait:
            self._row = max(0, self._row - max(0, now - self._closed_since) // self._wait)
        self._row += 1
        base = rules.cool_down if seconds is None else seconds
        wait = min(rules.longest, base * self._row) * (1 + rules.jitter * self._random.random())
        self._wait = max(1, round(wait * _SECOND))
        self._until = now + self._wait
        self.reason = reason
        self.opened += 1
        self._to(OPEN)

    def _close(self) -> None:
        self._closed_since = self._clock()
        self.ejected = False
        self._to(CLOSED)
        self._forget()

    def _to(self, state: str) -> None:
        self.state = state
        self._generation += 1
        self._out = self._passed = 0

    def _forget(self) -> None:
        self._at = self._clock() // self._slice
        self._calls = [0] * _SLICES
        self._errors = [0] * _SLICES
        self._slow = [0] * _SLICES
        self._n_calls = self._n_errors = self._n_slow = self._n_overtaken = self._streak = 0

    def _pass(self, at: int) -> None:
        if at - self._at >= _SLICES:
            self._forget()
            return
        for later in range(self._at + 1, at + 1):
            k = later % _SLICES
            self._n_calls -= self._calls[k]
            self._n_errors -= self._errors[k]
            self._n_slow -= self._slow[k]
            self._calls[k] = self._errors[k] = self._slow[k] = 0
        self._at = at

    def __str__(self) -> str:
        if self.state is CLOSED:
            return CLOSED
        if self.state is OPEN:
            left = max(0, self._until - self._clock()) / _SECOND
            return f"open: {self.reason}; half open in {left:.3g} s"
        return f"half-open: {self._passed} of {self.rules.probes} probes have succeeded"

    def __repr__(self) -> str:
        return f"Breaker({self})"
