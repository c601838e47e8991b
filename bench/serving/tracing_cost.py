"""What tracing costs a request: the service's processor time with traces off, at 1 % and at 100 % of the requests."""

import http.server
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from bench.features._claim import tell

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
REQUESTS = max(2_000, round(60_000 * SCALE))
ROUNDS = 5 if SCALE >= 1 else 3
FEATURES = 30
PATH = "/v2/models/sum/infer"
PARENT = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n"
BAR = 2.0


def serve_it(mode: str, collector: str) -> None:
    """Serves a model of one matrix product, traced as told; prints its port, and its processor seconds when asked."""
    import time

    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from vitok.serving import HotRequest, Later, Reply, serve
    from vitok.serving.inference import Hosted, InferEndpoint
    from vitok.serving.runners import CallableRunner
    from vitok.serving.runtime import Runtime
    from vitok.serving.tensors import TensorSpec
    from vitok.serving.tracing import Moments, Tracing, otlp

    class TracedEndpoint(InferEndpoint):
        tracing: Tracing

        def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
            traced = self.tracing.pick(requests)
            started = time.perf_counter_ns()
            replies = super().handle(requests)
            ended = time.perf_counter_ns()
            self.tracing.note(traced, Moments(started, started, ended, ended), route=self.path, requests=len(requests))
            return replies

    weights = np.linspace(-1, 1, FEATURES)
    runner = CallableRunner(
        lambda tensors: {"y": tensors["x"] @ weights},
        [TensorSpec("x", "FP64", (-1, FEATURES))],
        [TensorSpec("y", "FP64", (-1,))],
    )
    hosted = Hosted("sum", Runtime(runner, version="sum/1"), queue=False)
    endpoint: InferEndpoint = InferEndpoint(hosted)
    if mode != "off":
        endpoint = TracedEndpoint(hosted)
        endpoint.tracing = Tracing(otlp(collector), rate=float(mode), most=100_000, every=0.25)

    async def spent(_: Any) -> PlainTextResponse:
        if isinstance(endpoint, TracedEndpoint):
            # The spans of what has been answered are part of the cost.
            endpoint.tracing.flush()
        return PlainTextResponse(str(time.process_time()))

    app = Starlette(routes=[Route("/spent", spent)])
    serve(app, [endpoint], ready=lambda service: print(service.port, flush=True))


class Service:
    """One service in a process of its own, asked over four connections that always have sixteen requests in flight."""

    def __init__(self, mode: str, collector: str, headers: str) -> None:
        command = [sys.executable, __file__, mode, collector]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        tensor = {"name": "x", "shape": [1, FEATURES], "datatype": "FP64", "data": [0.25 * k for k in range(FEATURES)]}
        body = json.dumps({"id": "a", "inputs": [tensor]})
        lines = f"host: a\r\nuser-agent: bench\r\naccept: */*\r\ncontent-type: application/json\r\n{headers}"
        self.request = f"POST {PATH} HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n{body}".encode()

    def spent(self) -> float:
        """Returns the processor seconds that it has taken."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"GET /spent HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            answer = b""
            while more := connection.recv(65_536):
                answer += more
        return float(answer.rpartition(b"\r\n\r\n")[2])

    def load(self, n: int, *, window: int = 16, connections: int = 4) -> None:
        """Sends n requests and reads the replies."""
        sockets = [socket.create_connection(("127.0.0.1", self.port)) for _ in range(connections)]
        try:
            for _ in range(n // (window * connections)):
                for one in sockets:
                    one.sendall(self.request * window)
                for one in sockets:
                    left = window
                    while left:
                        left -= one.recv(1 << 20).count(b"HTTP/1.1 200")
        finally:
            for one in sockets:
                one.close()

    def cost_us(self, n: int) -> float:
        """Returns processor microseconds a request."""
        before = self.spent()
        self.load(n)
        return 1e6 * (self.spent() - before) / n


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


def judge() -> None:
    """Measures all ways in turn, several times over."""
    modes = {"off": ("off", ""), "0 %": ("0", PARENT), "1 %": ("0.01", ""), "100 %": ("1", "")}
    for collector in collecting():
        services = {name: Service(mode, collector, headers) for name, (mode, headers) in modes.items()}
        services["off, with header"] = Service("off", collector, PARENT)
        try:
            costs: dict[str, list[float]] = {name: [] for name in services}
            for service in services.values():
                service.load(1_000)
            for _ in range(ROUNDS):
                for name, service in services.items():
                    costs[name].append(service.cost_us(REQUESTS if name != "100 %" else REQUESTS // 4))
        finally:
            for service in services.values():
                service.process.kill()
                service.process.wait()
    middle = {name: statistics.median(found) for name, found in costs.items()}
    added = middle["1 %"] - middle["off"]
    told = ", ".join(f"{name} {value:.2f}" for name, value in middle.items())
    tell(
        "tracing of 1 % of the requests, added to the processor time of a request",
        value=added,
        unit="CPU-us",
        bar=f"<= {BAR}",
        met=added <= BAR,
        n=REQUESTS * ROUNDS,
        protocol=f"One row of {FEATURES} numbers a request in JSON, 4 connections with 16 requests in flight each, a "
        f"process each, in turn, median of {ROUNDS}; exported by OTLP to a collector in the client. CPU-us a request: "
        f"{told}; 0 % reads a traceparent that is not sampled in each request.",
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve_it(sys.argv[1], sys.argv[2])
    else:
        judge()
