"""Twice as many requests as a network can answer: what is answered in time, and how fast the rest is told.

Requests of an open loop never wait in the client: there are more connections than can be in flight within a deadline.
"""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _mlp  # noqa: E402
from bench.serving._serve import Served, cpu_seconds, served  # noqa: E402

from vitok.serving.load import varied  # noqa: E402
from vitok.serving.load_report import LoadReport, quantile  # noqa: E402
from vitok.stats import LatencyHistogram  # noqa: E402

INFER = "/v2/models/mlp/infer"
# A run of it takes some milliseconds, so that neither the client nor the event loop is what is overloaded; its weights
# stay in the cache, so that a run takes the same time whatever else is in memory.
LAYERS = 32
SIZES = (_mlp.WIDTH, *[1024] * (LAYERS + 1), 1)
DEADLINE, SECONDS, CONNECTIONS, CLOSED = 0.1, 60.0, 1024, 256
GOOD_BAR, REFUSED_MS = 0.9, 2.0
# Where the machine was busier before than after, twice the capacity of then is no overload.
LEAST_TIMES = 1.8
REFUSALS = (429, 503)


def seen(server: Served) -> dict[str, Any]:
    """Returns what the server has measured since it was asked the last time."""
    target = server.target
    with urllib.request.urlopen(f"http://{target.host}:{target.port}/bench", timeout=10) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def _refusing(server: Served) -> str:
    return f"http://{server.target.host}:{server.target.port}/refuse"


def refusals(report: LoadReport) -> LatencyHistogram:
    """Returns the latencies of what was refused."""
    found = LatencyHistogram()
    for status in REFUSALS:
        if status in report.by_status:
            found.merge(report.by_status[status])
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _mlp.save(folder / "models" / "mlp" / "1", SIZES, tied=True)
        script = str(Path(__file__).resolve().parent / "_oip_server.py")
        ways = json.dumps({"deadline": DEADLINE, "watched": True})
        command = [sys.executable, script, str(folder / "models"), str(folder / "log"), "{port}", "0", ways]
        rows = varied(_mlp.HEAD, width=_mlp.WIDTH)
        with served(command, INFER, rows, variables={"PYTHONPATH": path()}) as server:
            # The client stands for other machines; where it may, it does not wait for the server's cores.
            with contextlib.suppress(PermissionError):
                os.setpriority(os.PRIO_PROCESS, 0, -10)
            before = server.load(None, SECONDS / 6, connections=CLOSED)
            seen(server)
            spent = cpu_seconds(server.pid)
            report = server.load(2 * before.goodput, SECONDS, connections=CONNECTIONS, deadline=DEADLINE)
            spent = cpu_seconds(server.pid) - spent
            told = seen(server)
            # What the client and the wire take by themselves, at this rate and over as many connections.
            bare = dataclasses.replace(server, target=dataclasses.replace(server.target, url=_refusing(server)))
            alone = bare.load(2 * before.goodput, SECONDS / 6, connections=CONNECTIONS)
            after = server.load(None, SECONDS / 6, connections=CLOSED)
    # The machine is shared: capacity is what was there on both sides of the overload.
    capacity = (before.goodput + after.goodput) / 2
    refused, by_themselves = refusals(report), refusals(alone)
    at_server, answered = (LatencyHistogram.from_dict(told[name]) for name in ("refused", "answered"))
    accepted = report.by_status.get(200, LatencyHistogram())
    good, times = report.goodput / capacity, 2 * before.goodput / capacity
    late = accepted.count - report.in_time
    tell(
        f"goodput at twice the load that a network of {LAYERS} layers of 1024 can take",
        value=good,
        unit="of capacity",
        bar=f">= {GOOD_BAR:g}; P99 of the accepted in time; P99 of the refused < {REFUSED_MS:g} ms, with Retry-After",
        met=good >= GOOD_BAR
        and times >= LEAST_TIMES
        and accepted.quantile(0.99) <= 1e6 * DEADLINE
        and refused.count > 0
        and refused.quantile(0.99) < 1e3 * REFUSED_MS
        and refused.count + accepted.count == report.offered
        and not report.unasked
        and not report.starved,
        n=report.offered,
        protocol=(
            f"ONNX Runtime, one thread, its queue as the server makes it, deadline {1e3 * DEADLINE:g} ms. Capacity "
            f"{before.goodput:,.0f} and {after.goodput:,.0f}/s, by closed loops of {CLOSED} connections before and "
            f"after; between them Poisson arrivals of {2 * before.goodput:,.0f}/s, {times:.2f} times their mean, for "
            f"{report.seconds:.0f} s over {CONNECTIONS} connections, of which a free one lacked {report.starved} "
            f"times; latency from the time meant. Good {report.goodput:,.0f}/s; accepted "
            f"{quantile(accepted, 0.5)}, {quantile(accepted, 0.99)}, {quantile(accepted, 0.999)}, "
            f"{late:,} of {accepted.count:,} late, {quantile(answered, 0.99)} at the "
            f"server; refused {refused.count:,}: "
            f"{quantile(refused, 0.5)}, {quantile(refused, 0.99)}, {quantile(refused, 0.999)} at the client and "
            f"{quantile(at_server, 0.99)}, {quantile(at_server, 0.999)} at the server; the same client at the same "
            f"rate, from an endpoint that refuses all at once while no model runs: {quantile(by_themselves, 0.5)}, "
            f"{quantile(by_themselves, 0.99)}, P99 of its lateness {alone.lateness.quantile(0.99):,.0f} us. "
            f"Refused {report.unasked} without "
            f"Retry-After, {told['expired']:,} after they had been accepted; other answers "
            f"{report.offered - refused.count - accepted.count}; {told['batches']:,} batches; the server took "
            f"{spent / report.seconds:.2f} cores and the client {report.cpu_share:.2f}, P99 of whose lateness was "
            f"{report.lateness.quantile(0.99):,.0f} us."
        ),
    )


if __name__ == "__main__":
    main()
