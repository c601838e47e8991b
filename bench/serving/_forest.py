"""LightGBM of 200 trees on 30 features, served with its contract checked and its log on; and by MLServer."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import peers
from bench.serving.tree_kernel import N_FEATURES, trained

from vitok.models.forest import Forest
from vitok.serving import Runtime
from vitok.serving.load import varied

INFER = "/v2/models/fraud/infer"
MLSERVER = ["mlserver==1.7.1", "mlserver-lightgbm==1.7.1", "lightgbm==4.6.0"]


def prepare(folder: Path, *, versions: int = 1) -> list[bytes]:
    """Writes the model into `models` of a folder, and returns bodies with rows that differ."""
    booster = trained()
    forest = Forest.of(booster)
    for version in range(1, versions + 1):
        place = folder / "models" / "fraud" / str(version)
        place.mkdir(parents=True)
        forest.save(place / "model.forest")
    booster.save_model(folder / "model.txt")
    name = Runtime.load(folder / "models" / "fraud" / "1").inputs[0].name
    head = f'{{"inputs":[{{"name":"{name}","shape":[1,{N_FEATURES}],"datatype":"FP64","data":[$ROW]}}]}}'
    return varied(head, width=N_FEATURES)


def ours(folder: Path, ways: Mapping[str, Any] | None = None) -> Sequence[str]:
    """Returns the command of our server."""
    script = str(Path(__file__).resolve().parent / "_oip_server.py")
    columns, told = str(N_FEATURES), json.dumps(dict(ways or {}))
    return [sys.executable, script, str(folder / "models"), str(folder / "log"), "{port}", columns, told]


def mlserver(folder: Path) -> tuple[Sequence[str], dict[str, str]]:
    """Returns the command of MLServer on the same model, and its variables; its metrics and second process are off."""
    python = peers.environment("mlserver", MLSERVER)
    place = folder / "mlserver"
    place.mkdir()
    shutil.copy(folder / "model.txt", place)
    settings = {"debug": False, "parallel_workers": 0, "metrics_endpoint": None}
    (place / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    model = {
        "name": "fraud",
        "implementation": "mlserver_lightgbm.LightGBMModel",
        "parameters": {"uri": str(place / "model.txt"), "version": "1"},
    }
    (place / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    variables = {
        "MLSERVER_HTTP_PORT": "{port}",
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_GRPC_PORT": "0",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    return [str(python.parent / "mlserver"), "start", str(place)], variables
