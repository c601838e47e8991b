"""The guard of a host: nobody gets by it, whichever door a request comes by, whatever was loaded or swapped before."""

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.serving.model_folders import ROWS, SUM, Served, make_models, put_model, served

from vitok.errors import NotFound
from vitok.guard import AddressList, KeyRing, KeyStore, Limit, Limiter
from vitok.serving.guarded import Guard
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.inference import Answered
from vitok.serving.inference_http import refresh
from vitok.serving.messages import HotRequest, Later
from vitok.serving.opening import Opening
from vitok.serving.routed import RoutedEndpoint, RoutedHost
from vitok.serving.targets import Constant
from vitok.serving.tensors import TensorSpec

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")

ROW = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}
INFER = "/v2/models/sum/infer"


class Keys(NamedTuple):
    good: str
    other: str
    admin: str


class Tenants:
    """A recorder that keeps whose each row was."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def record(self, batch: Answered) -> list[bytes]:
        self.seen += batch.tenants or [""] * len(batch)
        return [bytes(16)] * len(batch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_models(tmp_path / "models")
    return tmp_path


@pytest.fixture
def store(folder: Path) -> KeyStore:
    return KeyStore(folder / "keys.sqlite")


@pytest.fixture
def keys(store: KeyStore) -> Keys:
    def made(name: str, *scopes: str) -> str:
        return store.create(name, tenant=f"the {name}", scopes=scopes, actor="ann", now=0, expires=None).token

    return Keys(made("shop", "infer:sum", "infer:slow", "infer:risk"), made("bank", "infer:echo"), made("ops", "admin"))


def ask(service: Served, path: str = INFER, *, key: str = "", method: str = "POST", **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(service.service.host, service.service.port, timeout=20)
    sent = headers | ({"Authorization": f"Bearer {key}"} if key else {})
    body = json.dumps({"inputs": [ROW]}) if "/infer" in path else None
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    found = json.loads(answer.read() or b"null")
    connection.close()
    return answer.status, found


def call(service: Served, model: str = "sum", *, version: str = "", key: str = "", header: str = "x-api-key") -> Any:
    from vitok.serving.inference_grpc import stub
    from vitok.serving.inference_proto import messages

    types = messages()
    asked = types["ModelInferRequest"](model_name=model, model_version=version)
    asked.inputs.append(types["ModelInferRequest.InferInputTensor"](name="x", datatype="FP64", shape=[1, 2]))
    asked.inputs[0].contents.fp64_contents.extend([1, 2.5])
    metadata = [(header, f"Bearer {key}" if header == "authorization" else key)] if key else []
    with grpc.insecure_channel(service.grpc) as channel:
        return list(stub(channel)["ModelInfer"](asked, metadata=metadata).outputs[0].contents.fp64_contents)


def refusal(service: Served, *args: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as caught:
        call(service, *args, **more)
    error: Any = caught.value
    return error.code().name, dict(error.trailing_metadata() or ())


@pytest.mark.parametrize("door", ["hot", "asgi"])
def test_no_door_lets_a_stranger_in(folder: Path, store: KeyStore, keys: Keys, door: str) -> None:
    guard = Guard(keys=KeyRing(store))
    host = ModelHost(FolderCatalogue(folder / "models"), pinned=["sum"], guard=guard)
    host.start()
    paths = (
        INFER,
        "/v2/models/sum/versions/1/infer",
        "/v2/models/slow/infer",
        "/v2/models/su%6d/infer",
        INFER + "?a=1",
    )
    with served(host, door=door) as service:
        for _ in range(2):  # before anything was loaded on demand, and after
            for path in paths:
                assert ask(service, path)[0] == 401
                assert ask(service, path, key=keys.other)[0] == 403
            assert [item.name for item in host.loaded()].count("slow") == (1 if _ else 0)
            for path in paths:
                assert ask(service, path, key=keys.good)[0] == 200
            for version, model in (("", "sum"), ("1", "sum"), ("", "slow")):
                assert refusal(service, model, version=version)[0] == "UNAUTHENTICATED"
                assert refusal(service, model, version=version, key=keys.other)[0] == "PERMISSION_DENIED"
                assert call(service, model, version=version, key=keys.good) == [3.5]
            assert call(service, key=keys.good, header="authorization") == [3.5]
            refresh(service.service.door, host)
        put_model(folder / "models", "sum", 3, SUM.format(sleep=0), ROWS)
        assert host.follow() == ["sum/3"]
        refresh(service.service.door, host)
        host.unload("slow")
        for path in paths:
            assert ask(service, path)[0] == 401
            assert ask(service, path, key=keys.good)[0] == 200
        assert ask(service)[1]["error"].startswith("no key was sent")
    assert guard.refused["missing"] > 10


def test_what_is_told_of_models_and_the_repository(folder: Path, store: KeyStore, keys: Keys) -> None:
    from vitok.serving.inference_grpc import stub
    from vitok.serving.inference_proto import messages

    host = ModelHost(FolderCatalogue(folder / "models"), pinned=["sum"], guard=Guard(keys=KeyRing(store)))
    host.start()
    with served(host) as service:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/openapi.json"):
            assert ask(service, path, method="GET")[0] == 200
        for end in ("", "/ready", "/stats"):
            path = f"/v2/models/slow{end}"
            assert ask(service, path, method="GET")[0] == 401
            assert [item.name for item in host.loaded()] == ["sum"]
        for end in ("", "/ready", "/stats"):
            assert ask(service, f"/v2/models/slow{end}", method="GET", key=keys.good)[0] == 200
        for path in ("index", "models/slow/load", "models/slow/unload"):
            assert ask(service, f"/v2/repository/{path}", key=keys.good)[0] == 403
            assert ask(service, f"/v2/repository/{path}", key=keys.admin)[0] == 200
        types = messages()
        with grpc.insecure_channel(service.grpc) as channel:
            calls = stub(channel)
            assert calls["ServerLive"](types["ServerLiveRequest"]()).live
            for method, fields in (
                ("ModelMetadata", {"name": "sum"}),
                ("ModelReady", {"name": "sum"}),
                ("ModelStatistics", {"name": "sum"}),
                ("RepositoryIndex", {}),
                ("RepositoryModelUnload", {"model_name": "sum"}),
                ("RepositoryModelLoad", {"model_name": "sum"}),
            ):
                asked = types[f"{method}Request"](**fields)
                with pytest.raises(grpc.RpcError) as caught:
                    calls[method](asked)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                key = keys.admin if method.startswith("Repo") else keys.good
                if method != "RepositoryModelUnload":  # it is pinned
                    calls[method](asked, metadata=[("x-api-key", key)])


def test_limits_hold_over_all_doors_and_say_when_to_come_back(folder: Path, store: KeyStore, keys: Keys) -> None:
    guard = Guard(keys=KeyRing(store), key_limit=Limiter(Limit(4, "1h")))
    host = ModelHost(FolderCatalogue(folder / "models"), guard=guard)
    with served(host) as service:
        assert [ask(service, key=keys.good)[0] for _ in range(2)] == [200, 200]
        assert call(service, key=keys.good) == [3.5]
        assert ask(service, "/v2/models/slow/infer", key=keys.good)[0] == 200
        assert ask(service, key=keys.good)[0] == 429
        assert ask(service, "/v2/models/sum", method="GET", key=keys.good)[0] == 429
        name, told = refusal(service, key=keys.good)
        assert name == "RESOURCE_EXHAUSTED"
        seconds = int(told["retry-after"])
        assert 0 < seconds <= 900
        assert told["grpc-retry-pushback-ms"] == str(1000 * seconds)
        assert b"google.rpc.RetryInfo" in told["grpc-status-details-bin"]
        assert told["ratelimit"].startswith('"default";r=0')


def test_addresses_and_sizes_over_grpc(folder: Path) -> None:
    closed = Guard(addresses=AddressList(deny=["127.0.0.0/8"]))
    with served(ModelHost(FolderCatalogue(folder / "models"), guard=closed)) as service:
        assert refusal(service)[0] == "PERMISSION_DENIED"
        assert ask(service)[0] == 403
        assert service.host.loaded() == []
    small = Guard(max_body=10)
    with served(ModelHost(FolderCatalogue(folder / "models"), guard=small)) as service:
        assert refusal(service)[0] == "RESOURCE_EXHAUSTED"
        assert ask(service)[0] == 413


@pytest.mark.parametrize("door", ["hot", "asgi"])
@pytest.mark.parametrize("queue", [True, False])
def test_the_tenant_of_the_key_arrives(folder: Path, store: KeyStore, keys: Keys, door: str, *, queue: bool) -> None:
    recorder = Tenants()

    def dress(hosted: Any) -> None:
        hosted.recorder = recorder

    guard = Guard(keys=KeyRing(store))
    host = ModelHost(FolderCatalogue(folder / "models"), guard=guard, queue=queue, dress=dress)
    with served(host, door=door) as service:
        assert ask(service, key=keys.good)[0] == 200  # it is loaded for this one
        assert ask(service, key=keys.good)[0] == 200
        assert ask(service, "/v2/models/sum/versions/1/infer", key=keys.good)[0] == 200
        assert call(service, key=keys.good) == [3.5]
        assert call(service, "slow", key=keys.good) == [3.5]
    assert recorder.seen == ["the shop"] * 5


def test_a_route_is_guarded_too(folder: Path, store: KeyStore, keys: Keys) -> None:
    route = RoutedEndpoint("risk", Constant(0.5), inputs=[TensorSpec("x", "FP64", (-1, 2))])
    route.hosted.recorder = recorder = Tenants()
    host = RoutedHost(FolderCatalogue(folder / "models"), [route], guard=Guard(keys=KeyRing(store)))
    with served(host) as service:
        for path in ("/v2/models/risk/infer", "/v2/models/risk/versions/route/infer"):
            assert ask(service, path)[0] == 401
            assert ask(service, path, key=keys.good)[1]["outputs"][0]["data"] == [0.5]
        assert ask(service, "/v2/models/risk/versions/2/infer", key=keys.good)[0] == 404
        assert refusal(service, "risk")[0] == "UNAUTHENTICATED"
        assert call(service, "risk", key=keys.good) == [0.5]
    assert recorder.seen == ["the shop"] * 3


@pytest.fixture
def crowded(folder: Path) -> Iterator[Served]:
    looked = ModelHost(FolderCatalogue(folder / "models"))
    looked.get("slow")
    # There is room for one of the two models.
    host = ModelHost(FolderCatalogue(folder / "models"), max_bytes=looked.bytes + 1, queue=True)
    with served(host) as service:
        yield service


def test_whoever_comes_when_a_model_is_let_go_is_answered(crowded: Served) -> None:
    wrong: list[Any] = []

    def work(model: str, over_grpc: bool) -> None:
        for _ in range(15):
            if over_grpc:
                try:
                    call(crowded, model)
                except grpc.RpcError as error:
                    wrong.append(error)
                continue
            status, answer = ask(crowded, f"/v2/models/{model}/infer")
            if status != 200:
                wrong.append(answer)

    threads = [threading.Thread(target=work, args=(m, g)) for m in ("sum", "slow") for g in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert crowded.host.evictions > 0


def test_an_endpoint_that_is_gone_opens_its_model_again(crowded: Served) -> None:
    assert ask(crowded)[0] == 200
    stale = crowded.service.door.table[INFER.encode()]
    crowded.host.unload("sum")
    assert crowded.host.loaded() == []
    crowded.service.door.table[INFER.encode()] = stale
    assert ask(crowded)[0] == 200
    assert [item.name for item in crowded.host.loaded()] == ["sum"]


class Counting:
    """Something of one's own before each model, with the guard before it."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.seen: list[str] = []

    def before(self, endpoint: Any, scope: str) -> Any:
        seen = self.seen

        class Counted:
            path = endpoint.path

            def handle(self, requests: Any) -> Any:
                seen.extend(request.tenant for request in requests)
                return endpoint.handle(requests)

        return self.guard.before(Counted(), scope)


def test_what_else_stands_before_a_model_is_passed_by_every_door(folder: Path, store: KeyStore, keys: Keys) -> None:
    outer = Counting(Guard(keys=KeyRing(store)))
    host = ModelHost(FolderCatalogue(folder / "models"), guard=outer)
    assert host.guard is outer.guard
    with served(host) as service:
        for _ in range(2):
            assert ask(service, key=keys.good)[0] == 200
            assert call(service, key=keys.good) == [3.5]
        assert ask(service)[0] == 401
        assert ask(service, "/v2/models/sum", method="GET")[0] == 401
        assert refusal(service)[0] == "UNAUTHENTICATED"
    assert outer.seen == ["the shop"] * 4


def test_whoever_waits_for_a_model_is_answered_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    entered: list[int] = []

    def broken() -> Any:
        raise RuntimeError("the loader is broken")

    def missing() -> Any:
        raise NotFound("model", "a")

    async def work(load: Any) -> list[Any]:
        tasks: set[asyncio.Task[None]] = set()
        opening = Opening("/v2/models/a/infer", load, entered=lambda: entered.append(1), tasks=tasks)
        owed = opening.handle([HotRequest(b"{}", 0, []), HotRequest(b"{}", 0, [])])
        await asyncio.gather(*tasks)
        return [later.reply for later in owed if isinstance(later, Later)]

    assert [reply.status for reply in asyncio.run(work(broken))] == [500, 500]
    assert "the loader is broken" in caplog.text
    replies = asyncio.run(work(missing))
    assert [reply.status for reply in replies] == [404, 404]
    assert entered == [1, 1]
