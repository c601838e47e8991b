"""Which members of a pool are so much worse than the others that they are left out for a while.

The rules are those of Envoy's outlier detection (Envoy documentation, "Outlier detection"): failures in a row, a
success rate far below the pool's, at most a share of the pool ejected but at least one member, and a panic threshold.
Latency is judged beside them. A member that is ejected comes back through the probes of its breaker.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vitok.errors import InvalidInput
from vitok.serving.breaker import CLOSED, Breaker, Nanoseconds

_SECOND = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class OutlierRules:
    """When a member of a pool is ejected.

    Attributes:
        consecutive_errors: Failures in a row after which it is, at once.
        consecutive_overtaken: Calls overtaken by a hedge, with none answered between them, after which it is, at
            once. More than of failures: being overtaken says only that another member was faster, and a member half
            of whose calls are overtaken loses as many in a row about once in a million calls.
        interval: Seconds between two comparisons of the members; each looks at the calls since the one before.
        min_calls: Calls that a member must have had in the interval to be compared.
        min_members: Members that must have had them for rates to be compared.
        deviations: A success rate this many standard deviations below the members' mean is an outlier.
        latency_factor: A mean latency this many times the median member's is an outlier.
        latency_floor: Seconds of mean latency below which nobody is an outlier for it.
        ejection: Seconds of the first ejection; the n-th in a row takes n times as long.
        max_share: Largest share of the members that is ejected at a time, in [0, 1]; one member always may be, if
            there is another.
        panic_share: Ejections never bring the share of members that are well below this; if failures do, ejected
            members are probed at once.

    Raises:
        InvalidInput: If a value is out of its range.
    """

    consecutive_errors: int = 5
    consecutive_overtaken: int = 20
    interval: float = 10.0
    min_calls: int = 100
    min_members: int = 5
    deviations: float = 1.9
    latency_factor: float = 3.0
    latency_floor: float = 0.001
    ejection: float = 30.0
    max_share: float = 0.1
    panic_share: float = 0.5

    def __post_init__(self) -> None:
        counts = (("consecutive_errors", 1), ("consecutive_overtaken", 1), ("min_calls", 1), ("min_members", 2))
        for name, least in counts:
            if getattr(self, name) < least:
                raise InvalidInput(name, getattr(self, name), f"be at least {least}")
        for name in ("interval", "ejection", "deviations"):
            if not 0 < getattr(self, name) < 1e9:
                raise InvalidInput(name, getattr(self, name), "be above zero and finite")
        if not self.latency_factor > 1:
            raise InvalidInput("latency_factor", self.latency_factor, "be above 1", "For three times as slow write 3")
        if not self.latency_floor >= 0:
            raise InvalidInput("latency_floor", self.latency_floor, "be at least 0")
        for name in ("max_share", "panic_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInput(name, getattr(self, name), "be in [0, 1]", "For 10 % write 0.1")


class OutlierDetector:
    """Watches the calls of a pool and ejects outliers by opening their breakers.

    Not made for several threads.

    Args:
        breakers: One for each member, in the order of the pool.
        rules: When a member is ejected.
        clock: Nanoseconds, the same as the breakers'.

    Attributes:
        ejections: How many times a member was ejected.
        spared: How many times one was not, because enough were ejected already.

    Example:
        >>> breakers = [Breaker(clock=lambda: 0) for _ in range(3)]
        >>> detector = OutlierDetector(breakers, clock=lambda: 0)
        >>> for _ in range(5):
        ...     detector.record(1, ok=False)
        >>> detector.ejected, breakers[1].reason
        ((1,), '5 failures in a row')
    """

    def __init__(
        self,
        breakers: Sequence[Breaker],
        rules: OutlierRules | None = None,
        *,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if not breakers:
            raise InvalidInput("breakers", breakers, "hold at least one")
        self.rules = rules if rules is not None else OutlierRules()
        self.ejections = self.spared = 0
        self._breakers = tuple(breakers)
        self._clock = clock
        self._interval = round(self.rules.interval * _SECOND)
        self._next = clock() + self._interval
        self._panicked = False
        n = len(self._breakers)
        self._row = [0] * n
        self._overtaken = [0] * n
        self._calls = [0] * n
        self._good = [0] * n
        self._took = [0] * n
        share = math.floor(self.rules.max_share * n + 1e-9)
        kept = math.ceil(self.rules.panic_share * n - 1e-9)
        self._most = 0 if n == 1 else max(1, min(share, n - kept))
        self._kept = kept

    @property
    def most(self) -> int:
        """How many members may be ejected at a time."""
        return self._most

    @property
    def ejected(self) -> tuple[int, ...]:
        """Members that are ejected and have not come back yet."""
        return tuple(k for k, breaker in enumerate(self._breakers) if breaker.ejected)

    @property
    def in_panic(self) -> bool:
        """Whether fewer members than the panic threshold are well."""
        return sum(breaker.state is CLOSED for breaker in self._breakers) < self._kept

    def record(self, member: int, *, ok: bool, took: int = 0) -> None:
        """Reports how a call ended.

        Args:
            member: Its place in the pool.
            ok: False where it failed or timed out.
            took: Nanoseconds.
        """
        self._calls[member] += 1
        self._took[member] += took
        if ok:
            self._good[member] += 1
            self._row[member] = self._overtaken[member] = 0
        else:
            self._row[member] += 1
            if self._row[member] >= self.rules.consecutive_errors:
                self._eject(member, f"{self._row[member]} failures in a row")
            self._calm()
        self._tick()

    def overtaken(self, member: int, *, took: int = 0) -> None:
        """Reports a call that was given up because a hedge, sent later to another member, was answered first.

        It counts among those overtaken in a row, and as a call that took at least so long. It is no failure where
        rates of success are compared: each member loses some calls to hedges, and what chance makes of these would be
        taken for an outlier.

        Args:
            member: Its place in the pool.
            took: Nanoseconds until it was given up.
        """
        self._calls[member] += 1
        self._good[member] += 1
        self._took[member] += took
        self._overtaken[member] += 1
        if self._overtaken[member] >= self.rules.consecutive_overtaken:
            self._eject(member, f"{self._overtaken[member]} calls overtaken by hedges and none answered")
        self._tick()

    def _tick(self) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + self._interval
            self._compare()

    def _compare(self) -> None:
        rules = self.rules
        seen = [k for k, n in enumerate(self._calls) if n >= rules.min_calls]
        outliers: dict[int, str] = {}
        if len(seen) >= rules.min_members:
            rates = [self._good[k] / self._calls[k] for k in seen]
            mean = sum(rates) / len(rates)
            spread = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
            least = mean - rules.deviations * spread
            for rate, k in sorted(zip(rates, seen, strict=True)):
                if rate < least and spread > 0:
                    outliers[k] = f"{100 * rate:.3g} % of its calls succeeded, {100 * mean:.3g} % of the pool's"
        if len(seen) >= max(2, min(rules.min_members, len(self._breakers))):
            means = {k: self._took[k] / self._calls[k] for k in seen}
            # The lower of two middles, so that in a pool of two the slow one is compared with the other.
            middle = sorted(means.values())[(len(means) - 1) // 2]
            most = max(rules.latency_factor * middle, rules.latency_floor * _SECOND)
            for k, mean_ns in sorted(means.items(), key=lambda item: -item[1]):
                if mean_ns > most:
                    outliers.setdefault(k, f"{mean_ns / 1e6:.3g} ms a call, {middle / 1e6:.3g} ms in the pool")
        for k, reason in outliers.items():
            self._eject(k, reason)
        n = len(self._breakers)
        self._calls, self._good, self._took = [0] * n, [0] * n, [0] * n

    def _eject(self, member: int, reason: str) -> None:
        breaker = self._breakers[member]
        self._row[member] = self._overtaken[member] = 0
        if breaker.state is not CLOSED:
            return
        well = sum(other.state is CLOSED for other in self._breakers)
        # The first may go even where that leaves fewer than the panic threshold: in a pool of two, one is half.
        if len(self.ejected) >= self._most or (well - 1 < self._kept and (well < len(self._breakers))) or well < 2:
            self.spared += 1
            return
        breaker.eject(reason, seconds=self.rules.ejection)
        self.ejections += 1

    def _calm(self) -> None:
        # Once for each panic: a member that is dead would else be probed by every call.
        before, self._panicked = self._panicked, self.in_panic
        if self._panicked and not before:
            for breaker in self._breakers:
                if breaker.ejected:
                    breaker.probe_now()

    def __str__(self) -> str:
        return f"{len(self.ejected)} of {len(self._breakers)} ejected, {self._most} may be at a time"
