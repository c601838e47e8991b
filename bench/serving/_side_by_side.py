"""Services that differ in one thing, each in a process of its own, whose processor time is measured in turn."""

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from bench.serving._drive import saturate, wire

SCALE = min(float(os.environ.get("VITOK_BENCH_SCALE", "1")), 1.0)
REQUESTS = max(2_000, round(40_000 * SCALE))
ROUNDS = 15 if SCALE >= 1 else 5
FEATURES, CONNECTIONS = 30, 64
PATH = "/v2/models/sum/infer"


class Service:
    """One service in a process of its own, `file` run with `arguments`; the requests carry further header lines."""

    def __init__(self, file: str, arguments: Sequence[str], header: str = "", *, tensor: str = "x") -> None:
        self.process = subprocess.Popen([sys.executable, file, *arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        sent = []
        for place, row in enumerate(np.random.default_rng(0).normal(size=(256, FEATURES)).round(4).tolist()):
            given = {"name": tensor, "shape": [1, FEATURES], "datatype": "FP64", "data": row}
            sent.append(json.dumps({"id": f"r{place}", "inputs": [given]}).encode())
        self.requests = wire(PATH, sent, [header] * len(sent) if header else ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, path: str) -> bytes:
        """Returns what a GET gives."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            if reply.status != 200:
                raise RuntimeError(f"{path}: {reply.status}")
            return reply.read()
        finally:
            connection.close()

    def cost_us(self, n: int) -> float:
        """Returns processor microseconds a request of n requests."""
        before = float(self.ask("/spent"))
        driven = saturate(self.port, self.requests, connections=CONNECTIONS, count=n)
        return 1e6 * (float(self.ask("/spent")) - before) / driven.answered


def in_turn(services: Mapping[str, Service], sizes: Mapping[str, int]) -> dict[str, list[float]]:
    """Measures services in turn, forwards and backwards."""
    costs: dict[str, list[float]] = {name: [] for name in services}
    for service in services.values():
        service.cost_us(2_000)
    for turn in range(ROUNDS):
        names = list(services)
        for name in names if turn % 2 == 0 else reversed(names):
            costs[name].append(services[name].cost_us(sizes.get(name, REQUESTS)))
    return costs
