"""Names that routes answer: in the turn and later, over a real door, with real backends that fail."""

import asyncio
import contextlib
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.backends import Backend, Scripted, always, backends

from vitok import decisions
from vitok.clock import SystemClock
from vitok.errors import InvalidInput, NotFound, StoreError
from vitok.serving import HotRequest, Later, PipelinedClient, Reply, Route, Running, running
from vitok.serving.budgets import BudgetBook, SpendingBudget
from vitok.serving.chains import Fallback
from vitok.serving.costs import CostMeter
from vitok.serving.hosting import FolderCatalogue
from vitok.serving.inference import Answered
from vitok.serving.inference_http import inference_application
from vitok.serving.inference_log import InferenceLog
from vitok.serving.pool import Pool
from vitok.serving.remote import RemoteModel
from vitok.serving.routed import RoutedEndpoint, RoutedHost, answers_at_once
from vitok.serving.routing import Canary, ContentRules, Weighted
from vitok.serving.shadow import Shadow
from vitok.serving.spending import Spending
from vitok.serving.targets import Batch, Constant, LocalModel, Target, TargetFailed
from vitok.serving.tensors import TensorSpec

X = TensorSpec("x", "FP64", (-1, 2))


def model(name: str, place: int, **more: Any) -> LocalModel:
    return LocalModel(
        name, lambda rows: rows[:, place].astype(float), version=f"fraud/{place}", cost=1.0 + place, **more
    )


def body(*rows: Sequence[float | None], columns: dict[str, list[Any]] | None = None, **more: Any) -> bytes:
    inputs: list[dict[str, Any]] = [
        {"name": "x", "shape": [len(rows), 2], "datatype": "FP64", "data": [value for row in rows for value in row]}
    ]
    for name, values in (columns or {}).items():
        kind = "BYTES" if values and isinstance(values[0], str) else "FP64"
        inputs.append({"name": name, "shape": [len(values)], "datatype": kind, "data": values})
    return json.dumps({"inputs": inputs, **more}).encode()


def ask(endpoint: RoutedEndpoint, *bodies: bytes) -> list[Reply]:
    now = time.perf_counter_ns()
    found = endpoint.handle([HotRequest(item, now, []) for item in bodies])
    return [reply for reply in found if isinstance(reply, Reply)]


async def given(reply: Reply | Later) -> Reply:
    if not isinstance(reply, Later):
        return reply
    known = asyncio.Event()
    reply.then(known.set)
    await known.wait()
    assert reply.reply is not None
    return reply.reply


async def ask_later(endpoint: RoutedEndpoint, *bodies: bytes) -> list[Reply]:
    now = time.perf_counter_ns()
    return [await given(reply) for reply in endpoint.handle([HotRequest(item, now, []) for item in bodies])]


def told(reply: Reply) -> dict[str, Any]:
    found = json.loads(reply.body)["parameters"]
    assert isinstance(found, dict)
    return found


def values(reply: Reply) -> list[float]:
    assert reply.status == 200, reply
    return list(json.loads(reply.body)["outputs"][0]["data"])


EXPLAIN: dict[str, Any] = {"parameters": {"explain": True}}


def test_a_turn_is_one_batch_and_each_gets_its_rows() -> None:
    sizes: list[int] = []

    def run(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        return rows.sum(axis=1)

    endpoint = RoutedEndpoint("sum", LocalModel("sum", run, version="sum/3"), inputs=[X])
    replies = ask(endpoint, body((1, 2), id="a"), body((3, 4), (5, 6)), body(), b"{", body((7, None)))
    assert sizes == [4]
    assert [reply.status for reply in replies] == [200, 200, 200, 400, 200]
    assert [values(replies[k]) for k in (0, 1, 2, 4)] == [[3], [7, 11], [], [None]]
    assert json.loads(replies[0].body)["id"] == "a"
    assert values(ask(endpoint, body())[0]) == []
    assert endpoint.hosted.counts | {"rows": 4, "requests": 6, "refused": 1, "champion": 4} == endpoint.hosted.counts


def test_an_answer_says_which_target_and_why() -> None:
    def broken(rows: np.ndarray) -> np.ndarray:
        raise OSError("the disk is full")

    chain = Fallback([LocalModel("fraud", broken), model("first", 0), Constant(0.5)])
    endpoint = RoutedEndpoint("risk", chain, inputs=[X])
    plain, explained = ask(endpoint, body((0.25, 1)), body((0.75, 1), **EXPLAIN))
    assert "parameters" not in json.loads(plain.body)
    assert values(explained) == [0.75]
    found = told(explained)
    assert (found["target"], found["model_version"], found["route"]) == ("first", "fraud/0", "fallback")
    assert found["reason"] == "fraud: OSError('the disk is full')"
    assert [text.partition(":")[0] for text in found["attempts"]] == ["fraud", "first"]
    assert found["batch_requests"] == 2
    assert found["waited_us"] >= 0
    assert endpoint.hosted.counts["fallback"] == 2


def test_units_and_conditions_come_from_columns() -> None:
    both = [model("old", 0), model("new", 1)]
    split = Canary(Route(champion="fraud/0", canary="fraud/1", share=0.5), *both)
    country = TensorSpec("country", "BYTES", (-1,))
    content = ContentRules(
        [("country = 'NG' OR amount > 100", Constant(0.9, name="strict"))],
        otherwise=split,
        types={"country": "string", "amount": "number"},
    )
    customer = TensorSpec("customer", "BYTES", (-1,))
    endpoint = RoutedEndpoint("risk", content, inputs=[X, country, customer], features={"amount": 1}, unit="customer")
    rows = [(0.1, 0.2), (0.1, 0.2), (0.1, 500)]
    columns = {"country": ["DE", "NG", "DE"], "customer": ["17", "18", "19"]}
    request = body(*rows, columns=columns, **EXPLAIN)
    reply, again = ask(endpoint, request, request)
    found = told(reply)
    assert values(reply)[1:] == [0.9, 0.9]
    assert found["target"][1:] == ["strict", "strict"]
    assert found["target"][0] == (
        "new" if Route(champion="fraud/0", canary="fraud/1", share=0.5).assign("17").route == "canary" else "old"
    )
    assert told(again)["target"] == found["target"]
    missing = ask(endpoint, body((1, 2)))[0]
    assert missing.status == 422
    assert "country" in json.loads(missing.body)["error"]


def test_the_id_of_a_request_as_its_unit() -> None:
    split = Canary(Route(champion="fraud/0", canary="fraud/1", share=0.5), model("old", 0), model("new", 1))
    endpoint = RoutedEndpoint("risk", split, inputs=[X], unit="request_id")
    replies = ask(endpoint, *(body((0, 1), id=str(k)) for k in range(40)), body((0, 1)))
    assert [reply.status for reply in replies] == [200] * 40 + [422]
    assert {values(reply)[0] for reply in replies[:40]} == {0.0, 1.0}
    assert values(ask(endpoint, body((0, 1), id="7"))[0]) == values(replies[7])


def test_a_request_that_the_route_calls_wrong_refuses_itself_only() -> None:
    def picky(rows: np.ndarray) -> np.ndarray:
        if (rows < 0).any():
            raise InvalidInput("rows", float(rows.min()), "be at least 0")
        return rows[:, 0]

    local = LocalModel("picky", picky)
    with ThreadPoolExecutor(1) as executor:
        threaded = LocalModel("picky", picky, executor=executor)
        for target in (local, threaded):
            endpoint = RoutedEndpoint("risk", target, inputs=[X])
            assert endpoint.at_once == (target is local)
            replies = asyncio.run(ask_later(endpoint, body((1, 0)), body((-1, 0)), body((2, 0), (3, 0))))
            assert [reply.status for reply in replies] == [200, 422, 200]
            assert values(replies[2]) == [2, 3]
            assert endpoint.hosted.counts["refused"] == 1


class Full:
    def record(self, batch: Answered) -> Sequence[bytes]:
        raise StoreError("the disk is full")


@pytest.mark.parametrize("way", ["at once", "later"])
def test_a_failed_route_is_503_with_retry_after(way: str) -> None:
    def broken(rows: np.ndarray) -> np.ndarray:
        raise OSError("gone")

    with ThreadPoolExecutor(1) as executor:
        more: dict[str, Any] = {} if way == "at once" else {"executor": executor}
        shapes = RoutedEndpoint("risk", LocalModel("m", lambda rows: rows, **more), inputs=[X])
        failing = RoutedEndpoint("risk", LocalModel("m", broken, **more), inputs=[X])
        unlogged = RoutedEndpoint("risk", model("m", 0, **more), inputs=[X], recorder=Full())
        for endpoint, words in ((shapes, "of the shape"), (failing, "gone"), (unlogged, "disk is full")):
            replies = asyncio.run(ask_later(endpoint, body((1, 2)), body((3, 4), **EXPLAIN)))
            for reply in replies:
                assert (reply.status, reply.headers) == (503, b"retry-after: 1\r\n")
                assert words in json.loads(reply.body)["error"]
            assert endpoint.hosted.counts["failed"] == 2


class Rude:
    name = version = "rude"
    cost = 0.0
    quality = None

    def score(self, batch: Batch, deadline: int = 0) -> Any:
        raise KeyError("what")

    async def call(self, batch: Batch, deadline: int = 0) -> Any:
        raise KeyError("what")


def test_a_target_that_raises_anything_is_a_failed_route() -> None:
    endpoint = RoutedEndpoint("risk", Rude(), inputs=[X])
    assert [reply.status for reply in ask(endpoint, body((1, 2)))] == [503]


def test_every_row_is_logged_with_its_choice(tmp_path: Path) -> None:
    route = Weighted([model("old", 0), model("new", 1)], weights=[3, 1])
    with InferenceLog(tmp_path / "log", system="risk", features=["a", "b"]) as log:
        endpoint = RoutedEndpoint("risk", route, inputs=[TensorSpec("x", "FP32", (-1, 2))], recorder=log)
        request = json.dumps(
            {
                "id": "many",
                "inputs": [{"name": "x", "shape": [30, 2], "datatype": "FP32", "data": [0, 1] * 30}],
                "parameters": {"explain": True},
            }
        ).encode()
        found = told(ask(endpoint, request)[0])
    seen = {}
    for row, key in enumerate(found["decision_ids"]):
        kept = decisions.find(tmp_path / "log", decision_id=key)
        assert kept is not None
        new = found["target"][row] == "new"
        assert (kept.request_id, kept.model_version) == (f"many/{row}", found["model_version"][row])
        assert (kept.route, kept.route_reason, kept.score) == ("champion", found["reason"][row], float(new))
        assert kept.propensity == pytest.approx(0.25 if new else 0.75)
        seen[kept.model_version] = kept.cost
    new_rows = found["target"].count("new")
    assert set(seen) == {"fraud/0", "fraud/1"}
    assert seen["fraud/0"] == pytest.approx((30 + new_rows) / 30)


def test_a_shadow_keeps_its_own_copy_of_the_rows() -> None:
    pairs: list[np.ndarray] = []
    shadow = Shadow(model("main", 0), model("other", 1), on_pair=lambda batch, _one, _two: pairs.append(batch.rows))
    endpoint = RoutedEndpoint("risk", shadow, inputs=[X])
    for value in range(3):
        ask(endpoint, body((value, value)))
    shadow.drain()
    shadow.close()
    assert [rows.tolist() for rows in pairs] == [[[0, 0]], [[1, 1]], [[2, 2]]]


def test_what_answers_at_once() -> None:
    remote = RemoteModel("http://127.0.0.1:1", "fraud")
    here, away = model("here", 0), Fallback([remote, Constant(0.5)])
    assert answers_at_once(Fallback([Weighted([here], weights=[1]), Constant(0.5)]))
    assert not answers_at_once(Weighted([here, away], weights=[1, 1]))
    assert not answers_at_once(Pool([remote]))
    assert not answers_at_once(Shadow(away, here))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": [TensorSpec("x", "INT64", (-1, 2))]}, "inputs"),
        ({"inputs": [TensorSpec("x", "FP64", (-1, -1))]}, "inputs"),
        ({"inputs": [X, TensorSpec("c", "BYTES", (-1, 2))]}, "inputs"),
        ({"inputs": [X, TensorSpec("x", "BYTES", (-1,))]}, "inputs"),
        ({"inputs": [X], "outputs": [TensorSpec("y", "FP64", (1,))]}, "outputs"),
        ({"inputs": [X], "features": {"amount": 2}}, "features['amount']"),
        ({"inputs": [X], "unit": "customer"}, "unit"),
        ({"inputs": [X, TensorSpec("c", "BYTES", (-1,))], "rules": lambda _: []}, "rules"),
    ],
)
def test_what_does_not_fit_together(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        RoutedEndpoint("risk", Constant(0.5), **arguments)
    assert caught.value.field == field


# From here on over a real door.


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "asyncio":
        # The server takes the loop that it finds.
        monkeypatch.setitem(sys.modules, "uvloop", None)
    return str(request.param)


@contextlib.contextmanager
def served(folder: Path, *endpoints: RoutedEndpoint) -> Iterator[tuple[Running, RoutedHost]]:
    host = RoutedHost(FolderCatalogue(folder), endpoints)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await host.aclose()

    app = inference_application(host, lifespan=lifespan)
    with running(app, list(host.endpoints.values())) as service:
        yield service, host


def post_all(service: Running, path: str, bodies: Sequence[bytes]) -> list[Reply]:
    replies: list[Reply] = []
    with PipelinedClient("127.0.0.1", service.port, path) as client:
        client.send_all(bodies, lambda _place, status, answer: replies.append(Reply(status, answer)))
    return replies


def fetch(service: Running, path: str, *, method: str = "GET") -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(service.url + path, method=method), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def two(loop: str) -> Iterator[list[Backend]]:
    with backends(2) as servers:
        yield servers


PATH = "/v2/models/risk/infer"


def test_no_request_is_lost_while_backends_die(tmp_path: Path, two: list[Backend]) -> None:
    pool = Pool([RemoteModel(server.url, "sum", name=f"backend {k}") for k, server in enumerate(two)])
    endpoint = RoutedEndpoint("risk", Fallback([pool, Constant(-1.0, name="rules")]), inputs=[X], deadline=5.0)
    with (
        InferenceLog(tmp_path / "log", system="risk", features=["a", "b"]) as log,
        served(tmp_path, endpoint) as (service, _),
    ):
        endpoint.hosted.recorder = log
        requests = [body((k, 1), id=str(k), **EXPLAIN) for k in range(200)]
        first = post_all(service, PATH, requests)
        two[0].kill()
        second = post_all(service, PATH, requests)
        two[1].kill()
        third = post_all(service, PATH, requests)
    for replies in (first, second):
        assert [values(reply) for reply in replies] == [[k + 1] for k in range(200)]
    assert [values(reply) for reply in third] == [[-1]] * 200
    assert {told(reply)["route"] for reply in first} == {"champion"}
    assert {told(reply)["target"] for reply in second} <= {"backend 0", "backend 1"}
    assert {(told(reply)["route"], told(reply)["target"]) for reply in third} == {("fallback", "rules")}
    kept = decisions.find(tmp_path / "log", decision_id=told(third[17])["decision_id"])
    assert kept is not None
    assert (kept.request_id, kept.route, kept.model_version, kept.score) == ("17", "fallback", "rules", -1)
    assert "no connection" in kept.route_reason


def test_a_timeout_is_that_of_its_own_request(tmp_path: Path, two: list[Backend]) -> None:
    two[0].mode = "slow"
    endpoint = RoutedEndpoint("risk", RemoteModel(two[0].url, "sum"), inputs=[X], deadline=5.0)
    with served(tmp_path, endpoint) as (service, _):
        bodies = [body((1, 1)), body((2, 2), parameters={"timeout": 20_000}), body((3, 3))]
        began = time.perf_counter()
        replies = post_all(service, PATH, bodies)
        assert time.perf_counter() - began < 2
    assert [reply.status for reply in replies] == [200, 503, 200]
    assert "no answer within" in json.loads(replies[1].body)["error"]
    assert endpoint.hosted.counts["failed"] == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_a_route_without_an_answer_is_paid_all_the_same(tmp_path: Path, *, at_once: bool) -> None:
    def nonsense(rows: np.ndarray) -> np.ndarray:
        return rows[:, :1]

    if at_once:
        target: Target = LocalModel("paid", nonsense, cost=2.0)
    else:
        target = Scripted("paid", always(0.0, TargetFailed("no use", cost=4.0)))
    book = BudgetBook(tmp_path / "budgets.sqlite")
    book.set(SpendingBudget(team="checkout", amount=10.0, then="alert"), actor="ann", now=SystemClock().now())
    spending = Spending(book, on_alert=lambda alert: None)
    meter = CostMeter(spending=spending, team_of=lambda tenant: "checkout", cpu=lambda: 0)
    endpoint = RoutedEndpoint("risk", target, inputs=[X])
    assert endpoint.at_once is at_once
    endpoint.hosted.meter = meter
    now = time.perf_counter_ns()
    requests = [HotRequest(body((1, 2)), now, [], tenant=tenant) for tenant in ("web", "app")]

    async def main() -> list[int]:
        replies = [await given(reply) for reply in endpoint.handle(requests)]
        return [reply.status for reply in replies]

    assert asyncio.run(main()) == [503, 503]
    charged = {(item.tenant, item.team, item.route): item.seconds for item in meter.report().charged}
    assert charged == {(tenant, "checkout", "failed"): pytest.approx(2.0, rel=1e-3) for tenant in ("app", "web")}
    assert spending.spent("checkout") == pytest.approx(4e9, rel=1e-3)
    spending.close()
    book.close()


def test_a_service_that_stops_gives_what_it_owes(tmp_path: Path, two: list[Backend]) -> None:
    two[0].mode = "slow"
    endpoint = RoutedEndpoint("risk", RemoteModel(two[0].url, "sum"), inputs=[X], deadline=5.0)
    with ThreadPoolExecutor(1) as other, served(tmp_path, endpoint) as (service, _):
        waiting = other.submit(post_all, service, PATH, [body((1, 1))])
        deadline = time.monotonic() + 5
        while not two[0].requests and time.monotonic() < deadline:
            pass
        service.stop()
        assert values(waiting.result(10)[0]) == [2]


def test_the_protocol_knows_a_route(tmp_path: Path, two: list[Backend]) -> None:
    remote = RemoteModel(two[0].url, "sum")
    endpoint = RoutedEndpoint("risk", remote, inputs=[X], outputs=[TensorSpec("sum", "FP64", (-1,))])
    with served(tmp_path, endpoint) as (service, host):
        assert values(post_all(service, PATH, [body((1, 2))])[0]) == [3]
        assert fetch(service, "/v2/models/risk") == (
            200,
            {
                "name": "risk",
                "versions": ["route"],
                "platform": "vitok_route",
                "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
                "outputs": [{"name": "sum", "datatype": "FP64", "shape": [-1]}],
            },
        )
        assert fetch(service, "/v2/models/risk/ready") == (200, {"name": "risk", "ready": True})
        assert fetch(service, "/v2/models/risk/versions/9/ready")[0] == 404
        assert fetch(service, "/v2/health/ready") == (200, {"ready": True})
        state = {"name": "risk", "version": "route", "state": "READY"}
        assert fetch(service, "/v2/repository/index", method="POST") == (200, [state])
        assert fetch(service, "/v2/models/risk/stats")[1]["model_stats"][0]["inference_count"] == 1
        assert fetch(service, "/v2/repository/models/risk/unload", method="POST")[0] == 422
        assert post_all(service, PATH, [body((1, 2))])[0].status == 200
        assert host.follow() == []
        with pytest.raises(NotFound):
            host.get("other")
    with pytest.raises(InvalidInput, match="different names"):
        RoutedHost(FolderCatalogue(tmp_path), [endpoint, endpoint])
