"""What keys, a limit, the contract and the anomaly score take from the throughput of the infer endpoint together."""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from bench.features._claim import tell

from vitok import contracts, guard
from vitok.models.forest import Forest
from vitok.serving import Guarded, Hosted, HotRequest, InferenceLog, InferEndpoint, Runtime
from vitok.serving.disclosure import Disclosure
from vitok.serving.inference import Breach
from vitok.serving.messages import Endpoint
from vitok.serving.runners import ForestRunner
from vitok.serving.screening import Screen
from vitok.stats import FrozenEdges

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
REQUESTS = max(2_048, round(40_000 * SCALE))
CALLS = max(50, round(1_000 * SCALE))
ROUNDS = 9 if SCALE >= 1 else 3
FEATURES, TREES, TICK, KEYS = 30, 200, 16, 4
PATH = "/v2/models/fraud/infer"
BAR = 15.0
NAMES = [f"f{place}" for place in range(FEATURES)]
ALL = ("keys", "limit", "contract", "anomaly")
OPTIONS = ("rounding", "floor", "noise")


def rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, FEATURES))


def booster() -> lightgbm.Booster:
    X = rows(8_000, 0)
    y = X[:, 0] * X[:, 1] + X[:, 2] > 0
    params = {"objective": "binary", "num_leaves": 31, "verbosity": -1, "num_threads": 1}
    return lightgbm.train(params, lightgbm.Dataset(X, y), TREES)


def scorer() -> guard.AnomalyScorer:
    X = rows(8_000, 1)
    columns = []
    for name, column in zip(NAMES, X[:4_000].T, strict=True):
        edges = FrozenEdges.from_values(column)
        columns.append({"name": name, **edges.to_dict(), "counts": edges.count(column).tolist()})
    profile = {"kind": "vitok.reference_profile/1", "n": 4_000, "ignored": [], "columns": columns}
    return guard.AnomalyScorer.fit(profile, X[4_000:], false_alarm_rate=0.001)


def contract_rules() -> Callable[[np.ndarray], list[Breach]]:
    fields = [
        {"name": name, "logicalType": "number", "logicalTypeOptions": {"minimum": -50, "maximum": 50}} for name in NAMES
    ]
    document = {
        "apiVersion": "v3.0.2",
        "kind": "DataContract",
        "id": "bench",
        "version": "1.0.0",
        "status": "active",
        "schema": [{"name": "rows", "properties": fields}],
    }
    check = contracts.load(json.dumps(document, indent=1)).matrix_checker(NAMES)
    return lambda X: [(row, found.field, found.message) for row, found in check(X)]


class Built:
    """An endpoint with the parts that are on, and the tokens of its keys."""

    def __init__(self, folder: Path, model: Path, parts: Sequence[str]) -> None:
        forest = Forest.of(lightgbm.Booster(model_file=model))
        hosted = Hosted("fraud", Runtime(ForestRunner(forest), version="fraud/1"), queue=False)
        hosted.recorder = InferenceLog(folder / "log", system="fraud", features=NAMES)
        store = guard.KeyStore(folder / "keys.sqlite")
        now = time.time_ns() // 1000
        make: dict[str, Any] = {"tenant": "t", "scopes": ["infer:fraud"], "actor": "bench", "now": now}
        self.tokens = [store.create(f"key {place}", **make).token for place in range(KEYS)]
        if "contract" in parts:
            hosted.rules = contract_rules()
        if "anomaly" in parts:
            Screen(scorer()).dress(hosted)
        if "rounding" in parts:
            Disclosure(decimals=3).dress(hosted)
        if "floor" in parts:
            generator = np.random.default_rng(2)
            right = generator.random(5_000) < 0.99
            floor = guard.fit_floor(generator.uniform(0.5, 1, 5_000), right, max_error=0.05)
            Disclosure(floor=floor).dress(hosted)
        if "noise" in parts:
            Disclosure(noise=guard.KeyedNoise(b"0123456789abcdef", scale=0.1, thresholds=[0.5])).dress(hosted)
        self.endpoint: Endpoint = InferEndpoint(hosted)
        keys = guard.KeyRing(store) if "keys" in parts else None
        limit = guard.Limiter(guard.Limit(10_000_000, "1s")) if "limit" in parts else None
        if keys is not None or limit is not None:
            self.endpoint = Guarded(self.endpoint, scope="infer:fraud", keys=keys, key_limit=limit)


def bodies() -> list[bytes]:
    out = []
    for place, row in enumerate(rows(256, 3)):
        tensor = {"name": "input", "shape": [1, FEATURES], "datatype": "FP64", "data": row.round(4).tolist()}
        out.append(json.dumps({"id": f"r{place}", "inputs": [tensor]}).encode())
    return out


def in_process(folder: Path, model: Path) -> dict[str, float]:
    """Returns microseconds a request in turns of `TICK`, by what is on; all measured in turn, the median of runs."""
    ways: dict[str, tuple[str, ...]] = {"nothing": (), **{part: (part,) for part in (*ALL, *OPTIONS)}, "guard": ALL}
    built = {}
    for name, parts in ways.items():
        (folder / name).mkdir()
        built[name] = Built(folder / name, model, parts)
    ticks = []
    sent = bodies()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for item in built.values():
        header = [(b"host", b"a"), (b"authorization", f"Bearer {item.tokens[0]}".encode())]
        ticks = [[HotRequest(one, 0, header, "10.0.0.1") for one in sent[at : at + TICK]] for at in range(0, 256, TICK)]
        assert all(reply.status == 200 for tick in ticks for reply in item.endpoint.handle(tick))  # type: ignore[union-attr]
    for _ in range(ROUNDS):
        for name, item in built.items():
            header = [(b"host", b"a"), (b"authorization", f"Bearer {item.tokens[0]}".encode())]
            now = time.perf_counter_ns()
            ticks = [
                [HotRequest(one, now, header, "10.0.0.1") for one in sent[at : at + TICK]] for at in range(0, 256, TICK)
            ]
            begun = time.thread_time_ns()
            for call in range(CALLS):
                item.endpoint.handle(ticks[call % len(ticks)])
            found[name].append((time.thread_time_ns() - begun) / CALLS / TICK / 1e3)
    return {name: statistics.median(values) for name, values in found.items()}


def serve_it(folder: Path, model: Path, parts: Sequence[str]) -> None:
    """Serves over the real door; prints port and keys."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from vitok.serving import serve

    async def spent(_: Any) -> PlainTextResponse:
        return PlainTextResponse(str(time.process_time()))

    built = Built(folder, model, parts)
    app = Starlette(routes=[Route("/spent", spent)])
    serve(
        app,
        [built.endpoint],
        ready=lambda service: print(json.dumps({"port": service.port, "keys": built.tokens}), flush=True),
    )


class Service:
    """A service in a process of its own, asked over four connections that always have sixteen requests in flight."""

    def __init__(self, folder: Path, model: Path, parts: Sequence[str]) -> None:
        folder.mkdir()
        command = [sys.executable, __file__, str(folder), str(model), ",".join(parts)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        self.port = told["port"]
        sent = bodies()
        self.windows = []
        for place, key in enumerate(told["keys"]):
            head = (
                f"POST {PATH} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
            )
            chosen = sent[place * TICK : (place + 1) * TICK]
            self.windows.append(
                b"".join(b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(b), b) for b in chosen)
            )

    def spent(self) -> float:
        """Returns the processor seconds that it has taken."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"GET /spent HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            answer = b""
            while more := connection.recv(65_536):
                answer += more
        return float(answer.rpartition(b"\r\n\r\n")[2])

    def load(self, n: int) -> tuple[float, float]:
        """Returns seconds and processor seconds that n requests took."""
        sockets = [socket.create_connection(("127.0.0.1", self.port)) for _ in self.windows]
        for one in sockets:
            one.settimeout(30)
        before, begun = self.spent(), time.perf_counter()
        try:
            for window, one in zip(self.windows, sockets, strict=True):
                one.sendall(window)
            rounds = n // (TICK * len(sockets))
            for turn in range(rounds):
                for window, one in zip(self.windows, sockets, strict=True):
                    # Status lines and nothing else: the client must not be what is measured.
                    left, rest = TICK, b""
                    while left:
                        data = one.recv(1 << 20)
                        if not data:
                            raise ConnectionError("the service has closed the connection")
                        left -= (rest + data).count(b"HTTP/1.1 200")
                        rest = (rest + data)[-11:]
                    if turn + 1 < rounds:
                        one.sendall(window)
            took = time.perf_counter() - begun
        finally:
            for one in sockets:
                one.close()
        return took, self.spent() - before


def judge() -> None:
    """Measures in the process, then end to end, both ways in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.txt"
        booster().save_model(model)
        each = in_process(folder, model)
        services = {way: Service(folder / f"service {way}", model, parts) for way, parts in (("off", ()), ("on", ALL))}
        n = REQUESTS // (TICK * KEYS) * TICK * KEYS
        try:
            for service in services.values():
                service.load(2_048)
            rates: dict[str, list[float]] = {way: [] for way in services}
            costs: dict[str, list[float]] = {way: [] for way in services}
            for _ in range(ROUNDS):
                for way, service in services.items():
                    took, spent = service.load(n)
                    rates[way].append(n / took)
                    costs[way].append(1e6 * spent / n)
        finally:
            for service in services.values():
                service.process.kill()
                service.process.wait()
    off, on = (statistics.median(rates[way]) for way in ("off", "on"))
    lost = 100 * (1 - on / off)
    cpu = {way: statistics.median(found) for way, found in costs.items()}
    added = ", ".join(f"{part} {each[part] - each['nothing']:+.2f}" for part in (*ALL, *OPTIONS))
    tell(
        "throughput that the guard takes: keys, limit, contract and anomaly on, against all off",
        value=lost,
        unit="%",
        bar=f"< {BAR:g}",
        met=lost < BAR,
        n=ROUNDS * n,
        protocol=f"{TREES} trees, one row of {FEATURES} features a request in JSON, decision log on; the hot door in "
        f"a process, closed loop of {KEYS} connections with {TICK} requests in flight each, in turn, median of "
        f"{ROUNDS}: {off:,.0f} and {on:,.0f} requests/s, {cpu['off']:.2f} and {cpu['on']:.2f} CPU-us a request. "
        f"Endpoint alone in turns of {TICK}, CPU-us a request: {each['nothing']:.2f} without, {each['guard']:.2f} "
        f"with; of each part by itself: {added}.",
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve_it(Path(sys.argv[1]), Path(sys.argv[2]), [part for part in sys.argv[3].split(",") if part])
    else:
        judge()
