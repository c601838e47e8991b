"""Models in folders for tests of the protocol, and a service of them with both doors."""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitok.serving import Running, running
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.inference_grpc import GrpcAddress, grpc_door
from vitok.serving.inference_http import inference_application, refresh
from vitok.serving.server import Tls
from vitok.serving.tensors import DATATYPES

SUM = """
import time
def load(folder):
    first = [True]
    def run(tensors):
        time.sleep({sleep})
        return {{"y": tensors["x"].sum(axis=1)}}
    return run
"""
ECHO = """
def load(folder):
    return lambda tensors: {"OUT_" + name: values for name, values in tensors.items()}
"""
BROKEN = """
def load(folder):
    calls = []
    def run(tensors):
        calls.append(1)
        if len(calls) > 9:
            raise RuntimeError("out of memory")
        return {"y": tensors["x"].sum(axis=1)}
    return run
"""
ROWS = {
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
}


def put_model(folder: Path, name: str, version: int, code: str, tensors: Mapping[str, Any], **files: Any) -> None:
    """Writes a package of a Python model."""
    place = folder / name / str(version)
    place.mkdir(parents=True)
    (place / "model.py").write_text(code)
    (place / "callable.json").write_text(json.dumps({"factory": "model.py:load", **tensors}))
    for file, content in files.items():
        (place / f"{file}.json").write_text(json.dumps(content))


def echo_of(*names: str, shape: tuple[int, ...] = (-1, 2)) -> dict[str, Any]:
    """Returns the tensors of a model that gives back what it takes, one of each data type."""
    kinds = names or tuple(DATATYPES)
    return {
        side: [{"name": prefix + name, "datatype": name, "shape": list(shape)} for name in kinds]
        for side, prefix in (("inputs", ""), ("outputs", "OUT_"))
    }


def make_models(folder: Path) -> None:
    """Writes `sum` (versions 1 and 2), `slow`, `echo` of all data types, `pair` that is no batch, and `broken`."""
    put_model(folder, "sum", 1, SUM.format(sleep=0), ROWS)
    put_model(folder, "sum", 2, SUM.format(sleep=0), ROWS)
    put_model(folder, "slow", 1, SUM.format(sleep=0.02), ROWS)
    put_model(folder, "echo", 1, ECHO, echo_of())
    put_model(folder, "texts", 1, ECHO, echo_of("BYTES", shape=(-1,)))
    put_model(folder, "pair", 1, ECHO, echo_of("FP32", "INT64", shape=(2, -1)))
    put_model(folder, "broken", 1, BROKEN, ROWS)


class Served(NamedTuple):
    service: Running
    grpc: str
    host: ModelHost


@contextlib.contextmanager
def served(host: ModelHost, *, tls: Tls | None = None, door: Any = "hot", max_body: int = 1 << 20) -> Iterator[Served]:
    """Serves a host over HTTP and gRPC on one event loop of a thread."""
    services: list[Running] = []
    ports: list[int] = []

    def changed() -> None:
        for service in services:
            refresh(service.door, host)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        address = GrpcAddress() if tls is None else GrpcAddress(certificate=tls.certificate, key=tls.key)
        async with grpc_door(host, address, changed=changed) as port:
            ports.append(port)
            yield

    app = inference_application(host, lifespan=lifespan)
    with running(app, list(host.endpoints.values()), tls=tls, door=door, max_body=max_body) as service:
        services.append(service)
        yield Served(service, f"127.0.0.1:{ports[0]}", host)
    host.close()


def folder_host(folder: Path, **options: Any) -> ModelHost:
    """Returns a host of the models of a folder, with what is pinned loaded."""
    host = ModelHost(FolderCatalogue(folder), **options)
    host.start()
    return host
