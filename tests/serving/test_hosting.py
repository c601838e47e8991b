"""Models in one process: loaded by need, swapped whole, let go when room is short; and the protocol around them."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput, NotFound, ServiceError
from vitok.registry import Registry
from vitok.serving import Metrics, Running, running
from vitok.serving.hosting import FolderCatalogue, ModelHost, RegistryCatalogue
from vitok.serving.inference import Hosted
from vitok.serving.inference_http import inference_routes, metrics_route, watch
from vitok.serving.inference_log import InferenceLog

CODE = """
import time
def load(folder):
    time.sleep({sleep})
    {before}
    return lambda tensors: {{"y": tensors["x"].sum(axis=1) + {add}}}
"""
TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
}


def files(add: float, *, before: str = "", sleep: float = 0.0, padding: int = 0) -> dict[str, Any]:
    code = CODE.format(add=add, before=before, sleep=sleep)
    return {"model.py": code.encode(), "callable.json": {"factory": "model.py:load", **TENSORS, "pad": "x" * padding}}


def put(folder: Path, name: str, version: int, **how: Any) -> None:
    place = folder / name / str(version)
    place.mkdir(parents=True)
    for file, content in files(float(version), **how).items():
        (place / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def value(host: ModelHost, name: str, version: str | None = None) -> float:
    return float(host.get(name, version).runtime.score(np.zeros((1, 2)))[0])


def test_by_name_and_by_version(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        put(tmp_path, "a", version)
    host = ModelHost(FolderCatalogue(tmp_path), pinned=["a"])
    host.start()
    assert value(host, "a") == 10
    assert value(host, "a", "2") == 2
    assert host.get("a", "10").runtime is host.get("a").runtime
    assert sorted(host.endpoints) == [
        "/v2/models/a/infer",
        "/v2/models/a/versions/10/infer",
        "/v2/models/a/versions/2/infer",
    ]
    for name, version in (("b", None), ("a", "3"), ("a", "../1"), ("..", None), ("", None)):
        with pytest.raises(NotFound):
            host.get(name, version)
    host.unload("a")
    assert (host.loaded(), host.endpoints) == ([], {})
    with pytest.raises(NotFound):
        host.unload("a")
    (tmp_path / "flat").mkdir()
    assert host.catalogue.names() == ["a"]
    with pytest.raises(NotFound, match="in a folder named by a number, such as 'flat/1'"):
        host.get("flat")
    with pytest.raises(NotFound, match="folder of models"):
        FolderCatalogue(tmp_path / "none")
    with pytest.raises(InvalidInput):
        ModelHost(FolderCatalogue(tmp_path), max_bytes=0)


def test_two_that_ask_at_once_share_one_load(tmp_path: Path) -> None:
    put(tmp_path, "a", 1, sleep=0.05, before="(folder / 'once').mkdir()")
    host, start = ModelHost(FolderCatalogue(tmp_path)), threading.Barrier(4)
    found: list[Hosted] = []

    def work() -> None:
        start.wait()
        found.append(host.get("a"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(hosted) for hosted in found}) == 1


def test_what_was_used_the_longest_time_ago_goes(tmp_path: Path) -> None:
    for name in "abcd":
        put(tmp_path, name, 1, padding=1000)
    size = 3 * (tmp_path / "a" / "1" / "callable.json").stat().st_size
    host = ModelHost(FolderCatalogue(tmp_path), max_bytes=2 * size + 10, pinned=["d"])
    host.get("a")
    assert host.bytes == size
    host.get("b")
    host.get("a").counts["requests"] += 1
    host.get("c")
    assert {hosted.name for hosted in host.loaded()} in ({"b", "c"}, {"a", "c"})
    assert host.evictions == 1
    host.get("d")
    host.get("a")
    assert {hosted.name for hosted in host.loaded()} == {"a", "d"}
    small = ModelHost(FolderCatalogue(tmp_path), max_bytes=size - 1)
    with pytest.raises(ServiceError, match="more than max_bytes"):
        small.get("a")
    pinned = ModelHost(FolderCatalogue(tmp_path), max_bytes=size + 10, pinned=["a"])
    pinned.start()
    with pytest.raises(ServiceError, match="all that is loaded is pinned"):
        pinned.get("b")


def test_use_decides_who_goes(tmp_path: Path) -> None:
    for name in "abc":
        put(tmp_path, name, 1, padding=1000)
    size = 3 * (tmp_path / "a" / "1" / "callable.json").stat().st_size
    host = ModelHost(FolderCatalogue(tmp_path), max_bytes=2 * size + 10)
    host.get("a")
    host.get("b")
    host.unload("b")
    host.get("b")
    host._by_use()
    host.get("a").counts["requests"] += 1
    host.get("c")
    assert {hosted.name for hosted in host.loaded()} == {"a", "c"}


def test_a_new_version_takes_over_and_a_broken_one_does_not(tmp_path: Path) -> None:
    put(tmp_path, "a", 1)
    host = ModelHost(FolderCatalogue(tmp_path), pinned=["a"])
    host.start()
    assert host.follow() == []
    put(tmp_path, "a", 2)
    assert host.follow() == ["a/2"]
    assert (value(host, "a"), host.swaps) == (2, 1)
    put(tmp_path, "a", 3, before="1 / 0")
    assert host.follow() == []
    assert value(host, "a") == 2
    assert "ZeroDivisionError" in host.failures["a"]
    put(tmp_path, "a", 4)
    assert host.follow() == ["a/4"]
    assert host.failures == {}


def test_the_registry_says_which_version_is_in_force(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for number in (1, 2):
        registry.register("a", files(float(number)), now=number, actor="test")
    host = ModelHost(RegistryCatalogue(registry))
    with pytest.raises(NotFound, match="version of a for"):
        host.get("a")
    with pytest.raises(NotFound, match="model 'b'"):
        host.get("b")
    assert value(host, "a", "1") == 1
    assert value(ModelHost(RegistryCatalogue(registry, stage="latest")), "a") == 2
    assert list(RegistryCatalogue(registry).versions("a")) == ["1", "2"]
    registry.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "models", "a", 1)
    put(tmp_path / "models", "b", 7)
    return tmp_path / "models"


@pytest.fixture
def host(folder: Path) -> ModelHost:
    host = ModelHost(FolderCatalogue(folder), pinned=["a"])
    host.start()
    return host


@pytest.fixture
def service(host: ModelHost) -> Iterator[Running]:
    from starlette.applications import Starlette

    metrics = Metrics()
    watch(metrics, host)
    app = Starlette(routes=[*inference_routes(host), metrics_route(metrics)])
    with running(app, list(host.endpoints.values())) as service:
        yield service


def call(service: Running, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(service.host, service.port, timeout=10)
    connection.request(method, path, None if body is None else json.dumps(body))
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, json.loads(data) if data.startswith((b"{", b"[")) else data.decode()


ROW = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]}


def test_the_protocol_over_http(service: Running, host: ModelHost, folder: Path) -> None:
    assert call(service, "GET", "/v2")[1]["extensions"][0] == "binary_tensor_data"
    assert call(service, "GET", "/v2/health/live") == (200, {"live": True})
    assert call(service, "GET", "/v2/health/ready") == (200, {"ready": True})
    assert call(service, "GET", "/v2/models/a/ready") == (200, {"name": "a", "ready": True})
    assert call(service, "GET", "/v2/models/a") == (
        200,
        {"name": "a", "versions": ["1"], "platform": "python", **TENSORS},
    )
    assert call(service, "POST", "/v2/models/a/infer", ROW)[1]["outputs"][0]["data"] == [4.0]
    before = service.door.requests
    assert call(service, "POST", "/v2/models/b/infer", ROW)[1]["outputs"][0]["data"] == [10.0]
    assert service.door.requests == before
    assert call(service, "POST", "/v2/models/b/infer", ROW)[1]["model_version"] == "7"
    assert service.door.requests == before + 1
    assert call(service, "POST", "/v2/models/a/versions/1/infer", ROW)[0] == 200
    status, document = call(service, "POST", "/v2/models/none/infer", ROW)
    assert (status, document["error"]) == (404, "model 'none' does not exist; there is: a, b")
    assert call(service, "GET", "/v2/models/a/versions/9")[0] == 404
    states = call(service, "POST", "/v2/repository/index")[1]
    assert [(item["name"], item["state"]) for item in states] == [("a", "READY"), ("b", "READY")]
    stats = call(service, "GET", "/v2/models/a/stats")[1]["model_stats"][0]
    assert (stats["inference_count"], stats["inference_stats"]["success"]["count"]) == (1, 1)
    metrics = call(service, "GET", "/metrics")[1]
    assert 'vitok_inference_total{path="/v2/models/a/infer",kind="rows"} 1' in metrics
    put(folder, "b", 8)
    assert call(service, "POST", "/v2/repository/models/b/load") == (200, {})
    assert call(service, "POST", "/v2/models/b/infer", ROW)[1]["model_version"] == "8"
    put(folder, "b", 9, before="1 / 0")
    status, document = call(service, "POST", "/v2/repository/models/b/load")
    assert status == 503
    assert "ZeroDivisionError" in document["error"]
    assert call(service, "POST", "/v2/models/b/infer", ROW)[1]["model_version"] == "8"
    assert call(service, "POST", "/v2/repository/models/b/unload") == (200, {})
    assert call(service, "POST", "/v2/repository/models/b/unload") == (200, {})
    assert call(service, "POST", "/v2/repository/models/a/unload")[0] == 422
    assert [hosted.name for hosted in host.loaded() if hosted.name == "b"] == []


def test_answers_are_logged_before_they_leave(tmp_path: Path, folder: Path) -> None:
    from vitok import decisions
    from vitok.serving.inference import InferEndpoint
    from vitok.serving.messages import HotRequest, Reply

    log = InferenceLog(tmp_path / "log", system="a", features=["first", "second"])

    def dress(hosted: Hosted) -> None:
        hosted.recorder = log

    host = ModelHost(FolderCatalogue(folder), dress=dress)
    endpoint = InferEndpoint(host.get("a"))
    two = {"id": "pair", "inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP64", "data": [1, 2, None, 4]}]}
    replies = endpoint.handle(
        [HotRequest(json.dumps(body).encode(), 0, []) for body in ({**ROW, "id": "r1"}, two, ROW)]
    )
    documents = [json.loads(reply.body) for reply in replies if isinstance(reply, Reply)]
    tail = decisions.Tail(tmp_path / "log")
    frame = tail.read()
    assert frame is not None
    assert frame["request_id"].to_list()[:3] == ["r1", "pair/0", "pair/1"]
    assert frame["score"].to_list()[:2] == [4.0, 4.0]
    assert frame["f_first"].to_list()[0] == 1.0
    assert set(frame["model_version"]) == {"a/1"}
    assert len(documents[1]["parameters"]["decision_ids"]) == 2
    assert frame["request_id"].to_list()[3] == documents[2]["parameters"]["decision_id"]
    found = decisions.find(tmp_path / "log", decision_id=documents[0]["parameters"]["decision_id"])
    assert found is not None
    assert (found.route, found.action, found.propensity, found.shadow_version) == ("champion", "none", 1.0, None)
    log.close()
