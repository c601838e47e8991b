"""A network of 1024-1024 with what has come together in one run, against one request a run: rates, and low load.

The same server, the same model and the same rows; the one without batches is the better of two: a run for each
request on the event loop, and a run for each in the thread of a queue.
"""

import json
import socket
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.serving import _mlp  # noqa: E402
from bench.serving._serve import SCALE, Served, served  # noqa: E402

from vitok.serving.load import varied  # noqa: E402
from vitok.serving.load_report import LoadReport  # noqa: E402
from vitok.serving.load_search import holds  # noqa: E402

INFER = "/v2/models/mlp/infer"
LIMIT_MS, SECONDS, BAR = 10.0, 4.0, 3.0
LOWEST, PRECISION, TRIES = 1_000.0, 0.1, 2
LOW_SHARE, LOW_SECONDS = 0.1, 5.0
ROUNDS = 7 if SCALE >= 1 else 3
TOGETHER: dict[str, Any] = {}
ALONE: dict[str, dict[str, Any]] = {
    "on the loop": {"queue": False, "max_batch": 1},
    "in a thread": {"queue": {"max_rows": 1}},
}
TOLD = {"batch_rows", "batch_requests", "waited_us"}
PIPELINED = 16


class Rates(NamedTuple):
    """Highest rates within the limit: of what has come together, and of one request a run by where it runs."""

    together: float
    alone: dict[str, float]
    told: bool

    @property
    def better(self) -> str:
        """Where one request a run goes faster."""
        return max(self.alone, key=lambda name: self.alone[name])

    @property
    def ratio(self) -> float:
        return self.together / self.alone[self.better]

    def __str__(self) -> str:
        others = ", ".join(f"{rate:,.0f} {name}" for name, rate in self.alone.items())
        return f"{self.together:,.0f} against {others}"


def told_of_batch(server: Served, body: bytes) -> bool:
    """Says whether answers tell how long they waited and in what batch, and whether one had company."""
    asked = json.dumps(json.loads(body) | {"parameters": {"explain": True}}).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
    message = b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(asked), asked)
    found = []
    with socket.create_connection((server.target.host, server.target.port), timeout=10) as connection:
        connection.sendall(PIPELINED * message)
        stream = connection.makefile("rb")
        for _ in range(PIPELINED):
            length = 0
            while line := stream.readline().strip():
                name, _, value = line.lower().partition(b":")
                length = int(value) if name == b"content-length" else length
            found.append(json.loads(stream.read(length)).get("parameters", {}))
    return all(set(item) >= TOLD for item in found) and max(item["batch_requests"] for item in found) > 1


def keeps_up(server: Served, rate: float) -> bool:
    """Says whether one of some trials at a rate has its P99 within the limit: a neighbour's stall says nothing."""
    return any(
        holds(server.load(rate, max(SECONDS, 2.0 / SCALE), connections=128, seed=i), limit_us=1e3 * LIMIT_MS)
        for i in range(TRIES)
    )


def highest(server: Served) -> float:
    """Returns the highest rate that the server keeps up with: doubled until it does not, then the gap is halved."""
    held, broke = 0.0, LOWEST
    while keeps_up(server, broke):
        held, broke = broke, 2 * broke
    if not held:
        raise RuntimeError(f"the server does not keep up with {LOWEST:,.0f} requests a second")
    while broke - held > PRECISION * broke:
        middle = (held + broke) / 2
        held, broke = (middle, broke) if keeps_up(server, middle) else (held, middle)
    return held


def command(folder: Path, models: str, ways: dict[str, Any]) -> list[str]:
    script = str(Path(__file__).resolve().parent / "_oip_server.py")
    return [sys.executable, script, str(folder / models), str(folder / "log"), "{port}", "0", json.dumps(ways)]


def rates(folder: Path, models: str, rows: list[bytes], variables: dict[str, str]) -> Rates:
    found = {}
    told = False
    for name, ways in {"together": TOGETHER, **ALONE}.items():
        with served(command(folder, models, ways), INFER, rows, variables=variables) as server:
            if name == "together":
                told = told_of_batch(server, rows[0])
            found[name] = highest(server)
    return Rates(found.pop("together"), found, told)


def low_load(
    folder: Path, models: str, rows: list[bytes], variables: dict[str, str], found: Rates
) -> tuple[float, list[LoadReport], list[LoadReport]]:
    """Loads both at a tenth of what one request a run can do, in turn."""
    rate = LOW_SHARE * found.alone[found.better]
    with (
        served(command(folder, models, TOGETHER), INFER, rows, variables=variables) as together,
        served(command(folder, models, ALONE[found.better]), INFER, rows, variables=variables) as alone,
    ):
        pairs = [
            (together.load(rate, LOW_SECONDS, seed=i), alone.load(rate, LOW_SECONDS, seed=i)) for i in range(ROUNDS)
        ]
    return rate, [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def spread(reports: list[LoadReport], q: float) -> tuple[float, float, float]:
    """Returns the median of a quantile over rounds, its least and its greatest, in milliseconds."""
    values = [report.latency.quantile(q) / 1e3 for report in reports]
    return statistics.median(values), min(values), max(values)


def no_worse(together: list[LoadReport], alone: list[LoadReport]) -> bool:
    """Says whether the median round is within what the rounds of the other reach, at P50 and at P99."""
    return all(spread(together, q)[0] <= spread(alone, q)[2] for q in (0.5, 0.99))


def shown(reports: list[LoadReport]) -> str:
    parts = []
    for q in (0.5, 0.99):
        middle, least, most = spread(reports, q)
        parts.append(f"P{100 * q:g} {middle:.3g} ms ({least:.3g} to {most:.3g})")
    return ", ".join(parts)


def main() -> None:
    rows = varied(_mlp.HEAD, width=_mlp.WIDTH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch = _mlp.save_torch(folder / "exported" / "mlp" / "1", folder / "function" / "mlp" / "1")
        variables = {"PYTHONPATH": f"{path()}:{_mlp.LIBRARIES}"}
        exported = rates(folder, "exported", rows, variables)
        function = rates(folder, "function", rows, variables)
        rate, together, alone = low_load(folder, "exported", rows, variables, exported)
        function_rate, function_together, function_alone = low_load(folder, "function", rows, variables, function)
    quiet = no_worse(together, alone)
    tell(
        "highest rate of a network of 1024-1024 from torch, requests that came together in one run",
        value=exported.together,
        unit=f"requests/s at P99 <= {LIMIT_MS:g} ms",
        peer="the same server, one request a run",
        peer_value=exported.alone[exported.better],
        ratio=exported.ratio,
        bar=f">= {BAR:g} x; at low load no worse; the answer tells its wait and its batch",
        met=exported.ratio >= BAR and quiet and exported.told and function.told,
        n=sum(report.offered for report in (*together, *alone)),
        protocol=(
            f"30-1024-1024-1 of torch {torch}, one thread, one row a request; open loop, Poisson, {SECONDS:g} s a "
            f"rate, latency from the time meant, rates to within 10 %, each tried twice at most. Exported to "
            f"ONNX: {exported}. As a Python function that calls torch: {function} ({function.ratio:.1f} x). Low load, "
            f"{ROUNDS} rounds in turn, median and range: ONNX at {rate:,.0f}/s {shown(together)}; one a run "
            f"({exported.better}) {shown(alone)}: {'no worse' if quiet else 'worse'}. Function at "
            f"{function_rate:,.0f}/s {shown(function_together)}; one a run ({function.better}) "
            f"{shown(function_alone)}. No worse: the median round is within the range of the other's. {PIPELINED} "
            f"pipelined requests were told of their batches: {exported.told and function.told}."
        ),
    )


if __name__ == "__main__":
    main()
