"""What keys, a limit, the contract and the anomaly score take from the throughput of the infer endpoint together.

With four keys, with a thousand, and with a key of its own for each request: what a turn of the event loop can share
between requests of one key is nothing in the last.
"""

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
from bench.features._claim import tell  # noqa: E402
from bench.serving._drive import Driven, median_interval, saturate, wire  # noqa: E402

from vitok import contracts, guard  # noqa: E402
from vitok.models.forest import Forest  # noqa: E402
from vitok.serving import Guarded, Hosted, HotRequest, InferenceLog, InferEndpoint, Runtime  # noqa: E402
from vitok.serving.disclosure import Disclosure  # noqa: E402
from vitok.serving.inference import Breach  # noqa: E402
from vitok.serving.messages import Endpoint  # noqa: E402
from vitok.serving.runners import ForestRunner  # noqa: E402
from vitok.serving.screening import Screen  # noqa: E402
from vitok.stats import FrozenEdges  # noqa: E402

SCALE = min(float(os.environ.get("VITOK_BENCH_SCALE", "1")), 1.0)
REQUESTS = max(2_048, round(30_720 * SCALE))
CALLS = max(50, round(1_000 * SCALE))
PAIRS = 15 if SCALE >= 1 else 5
ROUNDS = 9 if SCALE >= 1 else 3
FEATURES, TREES, TICK, CONNECTIONS = 30, 200, 16, 64
OWN = max(256, round(8_192 * SCALE))
KEYS = {"4 keys": 4, "1,000 keys": 1_000, "a key of its own each request": OWN}
PATH = "/v2/models/fraud/infer"
SCOPE = "infer:fraud"
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


def issue(folder: Path, n: int) -> list[str]:
    """Makes n keys in a folder; returns their tokens."""
    folder.mkdir()
    store = guard.KeyStore(folder / "keys.sqlite")
    make: dict[str, Any] = {"tenant": "t", "scopes": [SCOPE], "actor": "bench", "now": time.time_ns() // 1000}
    return [store.create(f"key {place}", **make).token for place in range(n)]


def build(folder: Path, model: Path, parts: Sequence[str]) -> Endpoint:
    """Returns an endpoint with the parts that are on, for the keys of the folder, and a log."""
    forest = Forest.of(lightgbm.Booster(model_file=model))
    hosted = Hosted("fraud", Runtime(ForestRunner(forest), version="fraud/1"), queue=False)
    hosted.recorder = InferenceLog(folder / f"log {'-'.join(parts)}", system="fraud", features=NAMES)
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
    endpoint = InferEndpoint(hosted)
    keys = guard.KeyRing(guard.KeyStore(folder / "keys.sqlite")) if "keys" in parts else None
    limit = guard.Limiter(guard.Limit(10_000_000, "1s")) if "limit" in parts else None
    if keys is None and limit is None:
        return endpoint
    return Guarded(endpoint, scope=SCOPE, keys=keys, key_limit=limit)


def bodies() -> list[bytes]:
    out = []
    for place, row in enumerate(rows(256, 3)):
        tensor = {"name": "input", "shape": [1, FEATURES], "datatype": "FP64", "data": row.round(4).tolist()}
        out.append(json.dumps({"id": f"r{place}", "inputs": [tensor]}).encode())
    return out


def in_process(folder: Path, model: Path) -> dict[str, float]:
    """Returns CPU-us a request in turns of `TICK`, by what is on; all measured in turn, the median of runs.

    Each request of a turn has a key of its own.
    """
    ways: dict[str, tuple[str, ...]] = {"nothing": (), **{part: (part,) for part in (*ALL, *OPTIONS)}, "guard": ALL}
    sent = bodies()
    tokens = issue(folder, len(sent))
    built = {name: build(folder, model, parts) for name, parts in ways.items()}
    shown = [f"Bearer {token}".encode() for token in tokens]
    header = [[(b"host", b"a"), (b"authorization", value)] for value in shown]

    def ticks() -> list[list[HotRequest]]:
        now = time.perf_counter_ns()
        # As the protocol makes them, which looks for a key while it reads the head.
        every = [
            HotRequest(body, now, lines, "10.0.0.1", plain=True, shown=key)
            for body, lines, key in zip(sent, header, shown, strict=True)
        ]
        return [every[at : at + TICK] for at in range(0, len(every), TICK)]

    for endpoint in built.values():
        assert all(reply.status == 200 for tick in ticks() for reply in endpoint.handle(tick))  # type: ignore[union-attr]
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, endpoint in built.items():
            given = ticks()
            begun = time.thread_time_ns()
            for call in range(CALLS):
                endpoint.handle(given[call % len(given)])
            found[name].append((time.thread_time_ns() - begun) / CALLS / TICK / 1e3)
    return {name: statistics.median(values) for name, values in found.items()}


def serve_it(folder: Path, model: Path, parts: Sequence[str]) -> None:
    """Serves over the real door; prints its port, and its processor seconds when asked."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from vitok.serving import serve

    async def spent(_: Any) -> PlainTextResponse:
        return PlainTextResponse(str(time.process_time()))

    endpoint = build(folder, model, parts)
    app = Starlette(routes=[Route("/spent", spent)])
    serve(app, [endpoint], ready=lambda service: print(service.port, flush=True))


class Service:
    """A service in a process of its own."""

    def __init__(self, folder: Path, model: Path, parts: Sequence[str]) -> None:
        command = [sys.executable, __file__, str(folder), str(model), ",".join(parts)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def spent(self) -> float:
        """Returns the processor seconds that it has taken."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/spent")
            return float(connection.getresponse().read())
        finally:
            connection.close()

    def load(self, requests: Sequence[bytes], n: int, start: int) -> tuple[float, Driven]:
        """Returns CPU-us a request of n requests, and what the client did."""
        before = self.spent()
        driven = saturate(self.port, requests, connections=CONNECTIONS, count=n, start=start)
        return 1e6 * (self.spent() - before) / driven.answered, driven


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.txt"
        booster().save_model(model)
        each = in_process(folder / "parts", model)
        sent = bodies()
        lost: dict[str, list[float]] = {}
        told = []
        for case, n_keys in KEYS.items():
            place = folder / case
            tokens = issue(place, n_keys)
            # As many requests as keys, each with the next one; with few keys they come in an order without pattern.
            order = np.random.default_rng(4).integers(n_keys, size=OWN) if n_keys < OWN else np.arange(OWN)
            lines = [f"authorization: Bearer {tokens[k]}" for k in order.tolist()]
            requests = wire(PATH, [sent[k % len(sent)] for k in range(len(lines))], lines)
            costs: dict[str, list[float]] = {"off": [], "on": []}
            rates: dict[str, list[float]] = {"off": [], "on": []}
            busy = []
            with Service(place, model, ()) as off, Service(place, model, ALL) as on:
                services = {"off": off, "on": on}
                for service in services.values():
                    service.load(requests, 2 * len(requests), 0)
                for turn in range(PAIRS):
                    for way in ("off", "on") if turn % 2 == 0 else ("on", "off"):
                        cost, driven = services[way].load(requests, REQUESTS, turn * REQUESTS)
                        costs[way].append(cost)
                        rates[way].append(driven.rate)
                        busy.append(driven.busy)
            lost[case] = [100 * (1 - one / other) for one, other in zip(costs["off"], costs["on"], strict=True)]
            low, high = median_interval(lost[case])
            slower = statistics.median(1 - other / one for one, other in zip(rates["off"], rates["on"], strict=True))
            told.append(
                f"{case}: {statistics.median(lost[case]):.1f} % [{low:.1f}, {high:.1f}], "
                f"{statistics.median(costs['off']):.2f} and {statistics.median(costs['on']):.2f} CPU-us a request, "
                f"{100 * slower:.1f} % fewer requests/s ({statistics.median(rates['off']):,.0f} and "
                f"{statistics.median(rates['on']):,.0f}; client {100 * statistics.median(busy):.0f} % busy)"
            )
    worst = max(lost, key=lambda case: statistics.median(lost[case]))
    value = statistics.median(lost[worst])
    added = ", ".join(f"{part} {each[part] - each['nothing']:+.2f}" for part in (*ALL, *OPTIONS))
    tell(
        f"throughput that the guard takes: keys, limit, contract and anomaly on, against all off; {worst}",
        value=value,
        unit="%",
        bar=f"< {BAR:g} in each of {len(KEYS)} mixes of keys",
        met=value < BAR,
        n=PAIRS * REQUESTS * len(KEYS),
        protocol=f"{TREES} trees, one row of {FEATURES} features a request in JSON, the same requests both ways, "
        f"decision log on; the hot door in a process each, closed loop of {CONNECTIONS} connections without "
        f"pipelining, {PAIRS} pairs of {REQUESTS:,} requests in the order off on, on off; throughput lost is one less "
        f"the ratio of processor time off to on, median of the pairs with its 95 % interval by order statistics. "
        f"{'; '.join(told)}. Endpoint alone in turns of {TICK}, each request with a key of its own, CPU-us a request: "
        f"{each['nothing']:.2f} without, {each['guard']:.2f} with; of each part by itself: {added}.",
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve_it(Path(sys.argv[1]), Path(sys.argv[2]), [part for part in sys.argv[3].split(",") if part])
    else:
        main()
