"""The highest rate of requests at which a service keeps a promise of latency."""

import math

from vitok.errors import InvalidInput
from vitok.serving.load import Target, run_load
from vitok.serving.load_report import LoadReport


def highest_rate(
    target: Target,
    *,
    limit_us: float,
    q: float = 0.99,
    low: float = 100.0,
    high: float = 100_000.0,
    precision: float = 0.05,
    seconds: float = 5.0,
    connections: int = 64,
    poisson: bool = True,
    timeout: float = 10.0,
    processes: int = 1,
) -> tuple[LoadReport, ...]:
    """Looks for the highest rate at which a quantile of the latency stays within a limit.

    A rate holds where the quantile is within the limit, 98 % of what is offered is answered and nothing fails. The
    rate is doubled from `low` until one does not hold, and the gap is then halved.

    Args:
        target: Where and what.
        limit_us: Most microseconds at the quantile.
        q: Which one, in (0, 1).
        low: Rate to begin with.
        high: Highest rate that is tried.
        precision: How close, as a share of the rate, the answer must be.
        seconds: Length of each trial.
        connections: As `run_load`.
        poisson: As `run_load`.
        timeout: As `run_load`.
        processes: As `run_load`.

    Returns:
        The trials in their order; the answer is the highest of those that hold (see `holds`).

    Raises:
        InvalidInput: If a number is out of its range.
        ServiceError: As `run_load`.
    """
    for name, wrong, rule in (
        ("limit_us", not limit_us > 0, "be above 0"),
        ("q", not 0 < q < 1, "be above 0 and below 1"),
        ("low", not 0 < low <= high < math.inf, "be above 0 and at most high"),
        ("precision", not 0 < precision < 1, "be above 0 and below 1"),
    ):
        if wrong:
            raise InvalidInput(name, {"limit_us": limit_us, "q": q, "low": low, "precision": precision}[name], rule)
    trials: list[LoadReport] = []

    def good(rate: float) -> bool:
        trials.append(
            run_load(
                target,
                rate=rate,
                seconds=seconds,
                connections=connections,
                poisson=poisson,
                timeout=timeout,
                processes=processes,
            )
        )
        return holds(trials[-1], limit_us=limit_us, q=q)

    held, broke, rate = 0.0, math.inf, low
    while math.isinf(broke):
        if not good(rate):
            broke = rate
        else:
            held = rate
            if rate >= high:
                return tuple(trials)
            rate = min(2 * rate, high)
    while held and broke - held > precision * broke:
        middle = (held + broke) / 2
        held, broke = (middle, broke) if good(middle) else (held, middle)
    return tuple(trials)


def holds(report: LoadReport, *, limit_us: float, q: float = 0.99) -> bool:
    """Says whether a server kept up with a rate: quantile within the limit, nothing failed, 98 % answered."""
    return (
        not report.failed
        and report.latency.quantile(q) <= limit_us
        and (report.rate is None or report.achieved >= 0.98 * min(report.rate, report.offered / report.seconds))
    )
