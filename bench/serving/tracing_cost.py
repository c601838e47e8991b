"""What tracing costs a request: the service's processor time with traces off, at 1 % and at 100 % of the requests."""

import contextlib
import http.server
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from bench import peers  # noqa: E402
from bench.features._claim import tell  # noqa: E402
from bench.serving._drive import median_interval  # noqa: E402
from bench.serving._side_by_side import CONNECTIONS, FEATURES, REQUESTS, ROUNDS, Service, in_turn  # noqa: E402

OTLP = ["opentelemetry-exporter-otlp-proto-http==1.45.2"]
PARENT = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
BAR = 0.5
OFF, ONE, ALL, PLAIN, READ = "off", "1 %", "100 %", "off, with a traceparent", "0 %, with a traceparent not sampled"


def find_exporter(python: Path) -> None:
    """Makes the exporter of an environment known to this process, behind all that it has itself."""
    sys.path.extend(str(folder) for folder in python.parent.parent.glob("lib/python3*/site-packages"))


def serve_it(mode: str, collector: str, python: str) -> None:
    """Serves a model of one matrix product, traced as told; prints its port, and its processor seconds when asked."""
    import time

    find_exporter(Path(python))

    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from vitok.serving import Hosted, InferEndpoint, Runtime, serve
    from vitok.serving.runners import CallableRunner
    from vitok.serving.tensors import TensorSpec
    from vitok.serving.tracing import Tracing, otlp

    weights = np.linspace(-1, 1, FEATURES)
    runner = CallableRunner(
        lambda tensors: {"y": tensors["x"] @ weights},
        [TensorSpec("x", "FP64", (-1, FEATURES))],
        [TensorSpec("y", "FP64", (-1,))],
    )
    tracing = None if mode == OFF else Tracing(otlp(collector), rate=float(mode), most=100_000, every=0.25)
    hosted = Hosted("sum", Runtime(runner, version="sum/1"), tracing=tracing, queue=False)

    async def spent(_: Any) -> PlainTextResponse:
        if tracing is not None:
            # The spans of what has been answered are part of the cost.
            tracing.flush()
        return PlainTextResponse(str(time.process_time()))

    app = Starlette(routes=[Route("/spent", spent)])
    serve(app, [InferEndpoint(hosted)], ready=lambda service: print(service.port, flush=True))


def collecting() -> Iterator[str]:
    """Runs a collector that throws all away; gives its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces"
        server.shutdown()


def main() -> None:
    python = str(peers.environment("otlp", OTLP))
    modes = {OFF: (OFF, ""), ONE: ("0.01", ""), ALL: ("1", ""), PLAIN: (OFF, PARENT), READ: ("0", PARENT)}
    for collector in collecting():
        with contextlib.ExitStack() as stack:
            services = {
                name: stack.enter_context(Service(__file__, (mode, collector, python), header))
                for name, (mode, header) in modes.items()
            }
            costs = in_turn(services, {ALL: REQUESTS // 4})
    middle = {name: statistics.median(found) for name, found in costs.items()}
    added = [one - off for one, off in zip(costs[ONE], costs[OFF], strict=True)]
    read = [one - off for one, off in zip(costs[READ], costs[PLAIN], strict=True)]
    told = ", ".join(f"{name} {value:.2f}" for name, value in middle.items())
    (low, high), (least, most) = median_interval(added), median_interval(read)
    value = statistics.median(added)
    tell(
        "tracing of 1 % of the requests, added to the processor time of a request",
        value=value,
        unit="CPU-us",
        bar=f"<= {BAR}",
        met=value <= BAR,
        n=REQUESTS * ROUNDS,
        protocol=f"One row of {FEATURES} numbers a request in JSON, closed loop of {CONNECTIONS} connections without "
        f"pipelining, a process each, {ROUNDS} rounds in turn, forwards and backwards; exported by OTLP to a collector "
        f"in the client. Median of the rounds' differences, 95 % interval by order statistics [{low:.2f}, {high:.2f}]. "
        f"CPU-us a request: {told}. Reading a traceparent that is not sampled adds {statistics.median(read):.2f} "
        f"[{least:.2f}, {most:.2f}].",
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve_it(*sys.argv[1:])
    else:
        main()
