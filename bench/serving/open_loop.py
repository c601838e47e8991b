"""The tail at fixed rates: 10,000 a second at ours, and 300 a second at ours and at MLServer in turn."""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _forest  # noqa: E402
from bench.serving._serve import SCALE, served  # noqa: E402

from vitok.serving.load_report import LoadReport  # noqa: E402

HIGH, LOW = 10_000.0, 300.0
LIMIT_MS, SHARE = 5.0, 3.0
HIGH_SECONDS, LOW_SECONDS = 30.0, 15.0
ROUNDS = 3 if SCALE >= 1 else 1


def middle(reports: Sequence[LoadReport], q: float) -> float:
    """Returns the median of a quantile over the rounds, in milliseconds."""
    return statistics.median(report.latency.quantile(q) / 1e3 for report in reports)


def told(reports: Sequence[LoadReport]) -> str:
    each = ", ".join(str(report.quantile(0.99)) for report in reports)
    rest = ", ".join(f"P{100 * q:g} {middle(reports, q):.3g} ms" for q in (0.5, 0.999))
    count, failed = (sum(getattr(report, name) for report in reports) for name in ("offered", "failed"))
    late = max(report.lateness.quantile(0.99) for report in reports)
    return f"{each}; {rest}, n {count:,}, {failed} failed, P99 of the client's own lateness {late:,.0f} us"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _forest.prepare(folder)
        command, variables = _forest.mlserver(folder)
        with (
            served(_forest.ours(folder), _forest.INFER, rows, variables={"PYTHONPATH": path()}) as server,
            served(command, _forest.INFER, rows, variables=variables, folder=folder) as peer,
        ):
            # Who is not asked does nothing meanwhile.
            fast, slow, theirs = [], [], []
            for i in range(ROUNDS):
                fast.append(server.load(HIGH, HIGH_SECONDS, connections=64, seed=i))
                slow.append(server.load(LOW, LOW_SECONDS, connections=32, seed=i))
                theirs.append(peer.load(LOW, LOW_SECONDS, connections=32, seed=i))
    high, low, other = (middle(reports, 0.99) for reports in (fast, slow, theirs))
    failed = sum(report.failed for report in (*fast, *slow))
    tell(
        "P99 of one row of a LightGBM model over HTTP, open loop, contract check and log on",
        value=high,
        unit=f"ms at {HIGH:,.0f}/s",
        peer=f"MLServer 1.7.1 at {LOW:g}/s, to ours at {LOW:g}/s",
        peer_value=other,
        ratio=other / low,
        bar=f"<= {LIMIT_MS:g} ms at {HIGH:,.0f}/s; at {LOW:g}/s {SHARE:g} x below MLServer's",
        met=high <= LIMIT_MS and other >= SHARE * low and not failed,
        n=sum(report.offered for report in (*fast, *slow, *theirs)),
        protocol=(
            f"Poisson arrivals, latency from the time meant, client and server on one machine, median of {ROUNDS} "
            f"rounds in turn of {HIGH_SECONDS:g} s and {LOW_SECONDS:g} s, P99 of each with its interval of 95 %. "
            f"{HIGH:,.0f}/s: {told(fast)}. {LOW:g}/s: {told(slow)}. MLServer, neither contract nor log: {told(theirs)}."
        ),
    )


if __name__ == "__main__":
    main()
