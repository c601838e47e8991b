"""LightGBM of 200 trees on 30 features, one row a request in OIP JSON: processor time a request against five peers.

Ours checks each row against a contract and writes each decision to the log; the peers do neither. Bars are for MLServer
and FastAPI; Ray Serve, BentoML and LitServe are shown beside them.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import peers  # noqa: E402
from bench._server import free_port  # noqa: E402
from bench.features._claim import path, tell  # noqa: E402
from bench.serving._drive import Server, alone, answers, saturate, spread, wire  # noqa: E402
from bench.serving._serve import cpu_seconds  # noqa: E402
from bench.serving.tree_kernel import N_FEATURES, trained  # noqa: E402

from vitok.models.forest import Forest  # noqa: E402
from vitok.serving import Runtime  # noqa: E402
from vitok.serving.load import Target, run_load, varied  # noqa: E402
from vitok.serving.load_report import quantile  # noqa: E402

LIBRARY = ["lightgbm==4.6.0", "numpy==2.2.6"]
FASTAPI = ["fastapi==0.165.0", "uvicorn[standard]==0.54.0", *LIBRARY]
MLSERVER = ["mlserver==1.7.1", "mlserver-lightgbm==1.7.1", "lightgbm==4.6.0"]
LITSERVE = ["litserve==0.2.19", *LIBRARY]
BENTOML = ["bentoml==1.4.39", *LIBRARY]
RAY = ["ray[serve]==2.60.0", *LIBRARY]
MLSERVER_BAR, FASTAPI_BAR, CPU_BAR, RATE_BAR = 50.0, 15.0, 20.0, 40_000.0
INFER = "/v2/models/fraud/infer"
SCALE = min(float(os.environ.get("VITOK_BENCH_SCALE", "1")), 1.0)
ROUNDS = 3 if SCALE >= 1 else 1
SECONDS = max(4.0 * SCALE, 1.0)
IDLE_SECONDS = max(2.0 * SCALE, 1.0)
CONNECTIONS = 64
CHECKED = 8
HERE = Path(__file__).resolve().parent
OURS, ML, FAST = "vitok", "MLServer 1.7.1", "FastAPI + uvicorn + predict"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One round of one server.

    Attributes:
        spent: CPU-us a request in the closed loop, less what its processes take while nothing is asked.
        rate: Requests a second of the closed loop.
        cores: Cores that its processes were busy with.
        idle: CPU-us a second that its processes take while nothing is asked.
        busy: How busy the client was.
        open_spent: CPU-us a request in the open loop, less the same.
        p50: Milliseconds from the time meant to the answer, median of the open loop.
        p99: The same, 99th percentile.
    """

    spent: float
    rate: float
    cores: float
    idle: float
    busy: float
    open_spent: float
    p50: float
    p99: float


def bodies(name: str) -> list[bytes]:
    """Bodies with rows that differ, for a model whose input has this name."""
    head = f'{{"inputs":[{{"name":"{name}","shape":[1,{N_FEATURES}],"datatype":"FP64","data":[$ROW]}}]}}'
    return varied(head, width=N_FEATURES)


def prepare(folder: Path) -> tuple[list[bytes], list[float]]:
    """Writes the model as ours and as the peers take it; returns bodies, and what LightGBM says of the first few."""
    booster = trained()
    ours = folder / "models" / "fraud" / "1"
    ours.mkdir(parents=True)
    Forest.of(booster).save(ours / "model.forest")
    booster.save_model(folder / "model.txt")
    settings = {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    model = {
        "name": "fraud",
        "implementation": "mlserver_lightgbm.LightGBMModel",
        "parameters": {"uri": str(folder / "model.txt"), "version": "1"},
    }
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    sent = bodies(Runtime.load(ours).inputs[0].name)
    rows = [json.loads(body)["inputs"][0]["data"] for body in sent[:CHECKED]]
    return sent, booster.predict(rows).tolist()


def servers(folder: Path) -> list[Server]:
    """Returns all of them, one process or worker each."""
    model, script = str(folder / "model.txt"), HERE / "peers"

    def python(name: str, requirements: Sequence[str]) -> str:
        return str(peers.environment(name, requirements))

    ml, bento = (Path(python(*each)).parent for each in (("mlserver", MLSERVER), ("bentoml", BENTOML)))
    # With metrics and its own log, as it comes; its worker process does not start with the uvloop that it asks for.
    shipped = folder / "shipped"
    shipped.mkdir(exist_ok=True)
    shutil.copy(folder / "model-settings.json", shipped)
    (shipped / "settings.json").write_text('{"parallel_workers": 0}', encoding="utf-8")
    ml_variables = {
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_GRPC_PORT": "0",
        "MLSERVER_METRICS_PORT": str(free_port()),
        "PATH": f"{ml}{os.pathsep}{os.environ['PATH']}",
    }
    served = [str(HERE / "_oip_server.py"), str(folder / "models"), str(folder / "log"), "{port}", str(N_FEATURES)]
    return [
        Server(name=OURS, command=[sys.executable, *served], rate=20_000, variables={"PYTHONPATH": path()}),
        Server(
            name=FAST,
            command=[python("fastapi_lightgbm", FASTAPI), str(script / "fastapi_lightgbm.py"), model, "{port}"],
            rate=800,
            variables={},
        ),
        Server(
            name=ML,
            command=[str(ml / "mlserver"), "start", str(folder)],
            rate=400,
            variables=ml_variables,
            folder=folder,
        ),
        Server(
            name="MLServer as it comes, with metrics",
            command=[str(ml / "mlserver"), "start", str(shipped)],
            rate=300,
            variables=ml_variables,
            folder=folder,
        ),
        Server(
            name="LitServe 0.2.19",
            command=[python("litserve", LITSERVE), str(script / "litserve_lightgbm.py"), model, "{port}"],
            rate=300,
            variables={},
            folder=folder,
        ),
        Server(
            name="BentoML 1.4.39",
            command=[
                str(bento / "bentoml"),
                "serve",
                "bentoml_lightgbm:Fraud",
                "--host",
                "127.0.0.1",
                "--port",
                "{port}",
            ],
            rate=150,
            variables={
                "BENCH_MODEL": model,
                "BENTOML_HOME": str(folder / "bentoml"),
                "BENTOML_DO_NOT_TRACK": "True",
                "PATH": f"{bento}{os.pathsep}{os.environ['PATH']}",
            },
            folder=script,
        ),
        Server(
            name="Ray Serve 2.60.0",
            command=[python("ray_serve", RAY), str(script / "ray_lightgbm.py"), model, "{port}", str(folder / "ray")],
            rate=80,
            variables={"RAY_USAGE_STATS_ENABLED": "0"},
            folder=folder,
        ),
    ]


def measure(server: Server, sent: Sequence[bytes], truth: Sequence[float]) -> Reading:
    """Starts a server, sees that it answers what LightGBM answers, and loads it; the only one that runs meanwhile."""
    with alone(server) as (pid, port):
        found = answers(port, INFER, sent[:CHECKED])
        if max(abs(one - other) for one, other in zip(found, truth, strict=True)) > 1e-9:
            raise RuntimeError(f"{server.name} answers {found}, and LightGBM {truth}")
        requests = wire(INFER, sent)
        saturate(port, requests, connections=CONNECTIONS, seconds=min(SECONDS, 2.0))
        time.sleep(0.5)
        before = cpu_seconds(pid)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(pid) - before) / IDLE_SECONDS
        before = cpu_seconds(pid)
        closed = saturate(port, requests, connections=CONNECTIONS, seconds=SECONDS)
        used = cpu_seconds(pid) - before
        time.sleep(0.5)
        target = Target(url=f"http://127.0.0.1:{port}{INFER}", bodies=sent)
        before = cpu_seconds(pid)
        paced = run_load(target, rate=server.rate, seconds=SECONDS, connections=CONNECTIONS)
        open_used = cpu_seconds(pid) - before
        if paced.failed:
            raise RuntimeError(f"{server.name}: {paced}")
        return Reading(
            spent=1e6 * (used - idle * closed.seconds) / closed.answered,
            rate=closed.rate,
            cores=used / closed.seconds,
            idle=1e6 * idle,
            busy=closed.busy,
            open_spent=1e6 * (open_used - idle * paced.seconds) / paced.answered,
            p50=quantile(paced.latency, 0.5).us / 1e3,
            p99=quantile(paced.latency, 0.99).us / 1e3,
        )


def main() -> None:
    # Ray keeps sockets in its folder, whose paths may not be long.
    with tempfile.TemporaryDirectory(prefix="v", dir="/tmp") as name:
        folder = Path(name)
        sent, truth = prepare(folder)
        every = servers(folder)
        readings: dict[str, list[Reading]] = {server.name: [] for server in every}
        for turn in range(ROUNDS):
            for place in range(len(every)):
                server = every[(place + turn) % len(every)]
                readings[server.name].append(measure(server, sent, truth))
    spent = {name: statistics.median(one.spent for one in found) for name, found in readings.items()}
    mine = readings[OURS]
    against, beside = spent[ML] / spent[OURS], spent[FAST] / spent[OURS]
    rate = statistics.median(one.rate for one in mine)
    a_core = statistics.median(one.rate / max(one.cores, 1.0) for one in mine)
    told = []
    for server in every:
        found = readings[server.name]
        told.append(
            f"{server.name}: {spread([one.spent for one in found])} CPU-us, {spread([one.rate for one in found])}/s "
            f"on {statistics.median(one.cores for one in found):.2f} cores (client "
            f"{100 * statistics.median(one.busy for one in found):.0f} % busy), idle "
            f"{statistics.median(one.idle for one in found) / 1e3:,.1f} CPU-ms a second; at {server.rate:,.0f}/s open "
            f"{statistics.median(one.open_spent for one in found):,.4g} CPU-us, P50 "
            f"{statistics.median(one.p50 for one in found):.2f} and P99 "
            f"{statistics.median(one.p99 for one in found):.2f} ms"
        )
    bars = {
        f">= {MLSERVER_BAR:g} x MLServer": against >= MLSERVER_BAR,
        f">= {FASTAPI_BAR:g} x FastAPI": beside >= FASTAPI_BAR,
        f"<= {CPU_BAR:g} CPU-us": spent[OURS] <= CPU_BAR,
        f">= {RATE_BAR:,.0f}/s a core": a_core >= RATE_BAR,
    }
    missed = [bar for bar, met in bars.items() if not met]
    tell(
        "one row of a LightGBM model over HTTP, contract check and log on",
        value=spent[OURS],
        unit="CPU-us a request",
        peer=ML,
        peer_value=spent[ML],
        ratio=against,
        bar=", ".join(bars),
        met=not missed,
        n=round(ROUNDS * SECONDS * rate),
        protocol=(
            f"Missed: {', '.join(missed) or 'nothing'}. {against:.1f} x MLServer, {beside:.1f} x FastAPI, "
            f"{a_core:,.0f}/s a core. One server at a time, each anew in each of {ROUNDS} rounds, in an order that "
            f"rotates; one process or worker, OMP_NUM_THREADS=1, {len(sent):,} rows that differ, the same JSON to all, "
            f"answers held against LightGBM's. {CONNECTIONS} connections, closed loop without pipelining, "
            f"{SECONDS:g} s, processor time of the process tree, less what it takes idle (measured over "
            f"{IDLE_SECONDS:g} s before, and shown); then {SECONDS:g} s of open loop, Poisson, latency from the time "
            f"meant. Median (least to largest). {'; '.join(told)}."
        ),
    )


if __name__ == "__main__":
    main()
