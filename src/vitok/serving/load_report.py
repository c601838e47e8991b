"""What a load run measured: quantiles with their intervals, what was answered in time, and how late the client was."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitok.errors import InvalidInput
from vitok.stats import LatencyHistogram

QUANTILES = (0.5, 0.99, 0.999)
_LATE_US = 1_000.0
_BUSY = 0.9
_BEHIND = 0.98


@dataclass(frozen=True)
class Quantile:
    """A quantile of latencies with an interval for that of the server in the long run.

    Attributes:
        q: Share, such as 0.99.
        us: The latency at that rank, in microseconds.
        low: Lower end of the interval.
        high: Its upper end; infinite where there are too few requests to bound it.
    """

    q: float
    us: float
    low: float
    high: float

    def __str__(self) -> str:
        high = f"{self.high / 1e3:,.4g}" if math.isfinite(self.high) else "?"
        return f"P{100 * self.q:g} {self.us / 1e3:,.4g} ms [{self.low / 1e3:,.4g}, {high}]"


def quantile(histogram: LatencyHistogram, q: float, *, confidence_level: float = 0.95) -> Quantile:
    """Returns a quantile with its interval by order statistics, which assumes no distribution.

    The requests are taken as independent; those of one stall are not, and then the interval is too narrow.

    Args:
        histogram: The latencies.
        q: Share, in (0, 1).
        confidence_level: Of the interval, in (0, 1).

    Raises:
        InvalidInput: If a share is out of its range.

    Source: David and Nagaraja, Order Statistics (2003), section 7.1: ranks from the binomial distribution.

    Example:
        >>> histogram = LatencyHistogram()
        >>> histogram.record_many(range(1_000, 2_000))
        >>> print(quantile(histogram, 0.5))
        P50 1.496 ms [1.464, 1.528]
        >>> print(quantile(histogram, 0.999))
        P99.9 1.992 ms [1.992, ?]
    """
    for name, value in (("q", q), ("confidence_level", confidence_level)):
        if not 0 < value < 1:
            raise InvalidInput(name, value, "be above 0 and below 1")
    n = histogram.count
    if not n:
        return Quantile(q, math.nan, math.nan, math.nan)
    from scipy.stats import binom

    tail = (1 - confidence_level) / 2
    low, high = int(binom.ppf(tail, n, q)), int(binom.ppf(1 - tail, n, q)) + 1
    return Quantile(
        q,
        histogram.quantile(q),
        histogram.quantile(low / n) if low >= 1 else 0.0,
        histogram.quantile(high / n) if high <= n else math.inf,
    )


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a run measured.

    Attributes:
        latency: Answered or given up, from the time that each was meant to be sent. A request without an answer
            counts with the time after which it was given up, so that it does not make the picture better.
        service: Of those answered, from the time that they were really sent. It hides what waited in the client;
            it is there to be compared.
        by_status: Latency of each status code, from the time meant.
        lateness: How late the client itself came to each request: the share of `latency` that is not the server's.
        offered: How many requests were due.
        broken: How many ended with their connection.
        timed_out: How many were given up.
        starved: How many waited for a free connection.
        in_time: How many were answered below 400 within the deadline; all below 400 where there is none.
        unasked: How many refusals (429, 503) did not say `Retry-After`.
        rate: Requests a second that were meant; None for a closed loop.
        deadline_us: Microseconds within which an answer counts as good; None for any.
        seconds: From the first time meant to the last answer.
        cpu_share: Processor time of the client to `seconds` and process; near 1 it is the bottleneck.
        processes: How many processes sent.
    """

    latency: LatencyHistogram
    service: LatencyHistogram
    by_status: Mapping[int, LatencyHistogram]
    lateness: LatencyHistogram
    offered: int
    broken: int
    timed_out: int
    starved: int
    in_time: int
    unasked: int
    rate: float | None
    deadline_us: float | None
    seconds: float
    cpu_share: float
    processes: int = 1

    @property
    def answered(self) -> int:
        """How many got an answer of any status."""
        return self.service.count

    @property
    def achieved(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds > 0 else math.nan

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return self.in_time / self.seconds if self.seconds > 0 else math.nan

    @property
    def failed(self) -> int:
        """How many got no answer, or one of 400 and above."""
        return self.offered - sum(item.count for status, item in self.by_status.items() if status < 400)

    def quantile(self, q: float) -> Quantile:
        """Returns a quantile of the latency with its 95 % interval."""
        return quantile(self.latency, q)

    @property
    def warnings(self) -> list[str]:
        """What speaks against the figures: where the client, not the server, may have set them."""
        found = []
        if self.cpu_share > _BUSY:
            busy = f"{100 * self.cpu_share:.0f} %"
            found.append(f"the client was busy {busy} of the time and may be the bottleneck: add processes")
        late = self.lateness.quantile(0.99) if self.lateness.count else 0.0
        if late > _LATE_US and late > 0.2 * self.latency.quantile(0.99):
            found.append(f"the client itself was {late / 1e3:.3g} ms late at its P99, a large part of what it measured")
        if self.rate is not None and self.achieved < _BEHIND * self.rate:
            found.append(f"{self.achieved:,.0f} a second were answered of {self.rate:,.0f} offered")
        if self.starved > 0.01 * max(self.offered, 1):
            found.append(f"{self.starved:,} requests waited for a free connection: the server is slow, or open more")
        return found

    def merged(self, other: "LoadReport") -> "LoadReport":
        """Returns the report of two processes that sent at the same time."""
        statuses = sorted({*self.by_status, *other.by_status})
        whole = self.processes + other.processes
        return LoadReport(
            latency=_sum(self.latency, other.latency),
            service=_sum(self.service, other.service),
            by_status={
                status: _sum(*(side.by_status[status] for side in (self, other) if status in side.by_status))
                for status in statuses
            },
            lateness=_sum(self.lateness, other.lateness),
            offered=self.offered + other.offered,
            broken=self.broken + other.broken,
            timed_out=self.timed_out + other.timed_out,
            starved=self.starved + other.starved,
            in_time=self.in_time + other.in_time,
            unasked=self.unasked + other.unasked,
            rate=None if self.rate is None or other.rate is None else self.rate + other.rate,
            deadline_us=self.deadline_us,
            seconds=max(self.seconds, other.seconds),
            cpu_share=(self.cpu_share * self.processes + other.cpu_share * other.processes) / whole,
            processes=whole,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold, the histogram of latencies included."""
        quantiles = [self.quantile(q) for q in QUANTILES]
        return {
            "offered_rate": self.rate,
            "achieved_rate": _number(self.achieved),
            "goodput": _number(self.goodput),
            "offered": self.offered,
            "answered": self.answered,
            "failed": self.failed,
            "broken": self.broken,
            "timed_out": self.timed_out,
            "starved": self.starved,
            "in_time": self.in_time,
            "deadline_us": self.deadline_us,
            "refusals_without_retry_after": self.unasked,
            "statuses": {str(status): item.count for status, item in self.by_status.items()},
            "latency_us": {
                **{
                    f"p{100 * item.q:g}": [_number(item.us), _number(item.low), _number(item.high)]
                    for item in quantiles
                },
                "max": self.latency.max,
                "n": self.latency.count,
            },
            "service_p99_us": _number(self.service.quantile(0.99)),
            "lateness_p99_us": _number(self.lateness.quantile(0.99)),
            "seconds": self.seconds,
            "client_cpu_share": self.cpu_share,
            "processes": self.processes,
            "warnings": self.warnings,
            "histogram": self.latency.to_dict(),
        }

    def __str__(self) -> str:
        offered = "closed loop" if self.rate is None else f"{self.rate:,.6g}/s offered"
        statuses = ", ".join(f"{status}: {item.count:,}" for status, item in self.by_status.items()) or "no answer"
        within = "" if self.deadline_us is None else f" within {self.deadline_us / 1e3:g} ms"
        lines = [
            f"{offered}, {self.achieved:,.6g}/s answered, {self.goodput:,.6g}/s good{within}; {self.failed:,} failed",
            f"latency from the time meant, n {self.latency.count:,}: "
            + ", ".join(str(self.quantile(q)) for q in QUANTILES)
            + f", max {self.latency.max / 1e3:,.4g} ms",
            f"status {statuses}; {self.broken:,} broken, {self.timed_out:,} given up",
        ]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sum(*parts: LatencyHistogram) -> LatencyHistogram:
    total = LatencyHistogram()
    for part in parts:
        total.merge(part)
    return total
