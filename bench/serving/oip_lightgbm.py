"""LightGBM of 200 trees on 30 features, one row a request in OIP JSON: processor time a request against two peers.

Ours checks each row against a contract and logs each decision; the peers do neither.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import peers  # noqa: E402
from bench.features._claim import path, tell  # noqa: E402
from bench.serving._serve import SCALE, Served, served  # noqa: E402
from bench.serving.tree_kernel import N_FEATURES, trained  # noqa: E402

from vitok.models.forest import Forest  # noqa: E402
from vitok.serving.load import varied  # noqa: E402

FASTAPI = ["fastapi==0.165.0", "uvicorn[standard]==0.54.0", "lightgbm==4.6.0", "numpy==2.2.6"]
MLSERVER = ["mlserver==1.7.1", "mlserver-lightgbm==1.7.1", "lightgbm==4.6.0"]
MLSERVER_BAR, FASTAPI_BAR, CPU_BAR, RATE_BAR = 50.0, 15.0, 20.0, 40_000.0
INFER = "/v2/models/fraud/infer"
SECONDS = 10.0
HERE = Path(__file__).resolve().parent


def bodies(name: str) -> list[bytes]:
    """Bodies with rows that differ, for a model whose input has this name."""
    head = f'{{"inputs":[{{"name":"{name}","shape":[1,{N_FEATURES}],"datatype":"FP64","data":[$ROW]}}]}}'
    return varied(head, width=N_FEATURES)


def prepare(folder: Path) -> str:
    """Writes the model as ours and as the peers take it; returns the name of our input."""
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
    from vitok.serving import Runtime

    return Runtime.load(ours).inputs[0].name


def ours(folder: Path) -> Sequence[str]:
    """Returns the command of our server."""
    return [
        sys.executable,
        str(HERE / "_oip_server.py"),
        str(folder / "models"),
        str(folder / "log"),
        "{port}",
        str(N_FEATURES),
    ]


def mlserver(folder: Path) -> tuple[Sequence[str], dict[str, str]]:
    """Returns the command of MLServer and its variables."""
    python = peers.environment("mlserver", MLSERVER)
    variables = {
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_GRPC_PORT": "0",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    return [str(python.parent / "mlserver"), "start", str(folder)], variables


def measure(server: Served) -> tuple[float, float, float]:
    """Returns processor us a request, requests a second, and requests a second of a core."""
    spent, report = server.cpu_us_a_request(SECONDS)
    return spent, report.achieved, 1e6 / spent


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = bodies(prepare(folder))
        with served(ours(folder), INFER, rows, variables={"PYTHONPATH": path()}) as server:
            mine = measure(server)
        python = peers.environment("fastapi_lightgbm", FASTAPI)
        command = [str(python), str(HERE / "peers" / "fastapi_lightgbm.py"), str(folder / "model.txt"), "{port}"]
        with served(command, INFER, rows) as server:
            plain = measure(server)
        command, variables = mlserver(folder)
        with served(command, INFER, rows, variables=variables, folder=folder) as server:
            theirs = measure(server)
    against, beside = theirs[0] / mine[0], plain[0] / mine[0]
    tell(
        "one row of a LightGBM model over HTTP, contract check and log on",
        value=mine[0],
        unit="CPU-us a request",
        peer="MLServer 1.7.1",
        peer_value=theirs[0],
        ratio=against,
        bar=f">= {MLSERVER_BAR:g} x MLServer, >= {FASTAPI_BAR:g} x FastAPI; <= {CPU_BAR:g} us, >= {RATE_BAR:g}/s",
        met=against >= MLSERVER_BAR and beside >= FASTAPI_BAR and mine[0] <= CPU_BAR and mine[2] >= RATE_BAR,
        n=round(mine[1] * max(SECONDS * SCALE, 1)),
        protocol=(
            "32 connections, closed loop, OMP_NUM_THREADS=1, rows that differ, processor time of the process tree. "
            f"Ours {mine[1]:,.0f}/s ({mine[2]:,.0f}/s a core), FastAPI + uvicorn + predict {plain[0]:.0f} us, "
            f"{plain[1]:,.0f}/s ({beside:.1f} x), MLServer {theirs[1]:,.0f}/s."
        ),
    )


if __name__ == "__main__":
    main()
