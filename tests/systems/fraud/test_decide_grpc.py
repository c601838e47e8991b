"""Decisions and outcomes over gRPC by a real client: what they are equal to, who may ask, and what is refused."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from vitok import decisions
from vitok.clock import EventClock
from vitok.errors import MissingExtra, ServiceError
from vitok.guard import KeyRing, KeyStore, Limit, Limiter
from vitok.serving import running
from vitok.serving.door import MAX_BODY
from vitok.serving.guarded import Guard
from vitok.serving.messages import Endpoint
from vitok.systems.fraud import decide_proto
from vitok.systems.fraud.app import application
from vitok.systems.fraud.decide_proto import SERVICE, as_json, messages, pool, stub
from vitok.systems.fraud.edge import DECIDE, LEARN
from vitok.systems.fraud.messages import Answer, OutcomeItem, Transaction
from vitok.systems.fraud.service import FraudService

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
from vitok.serving.grpc_calls import GrpcAddress  # noqa: E402
from vitok.systems.fraud.decide_grpc import decide_door  # noqa: E402

Stub = Mapping[str, Callable[..., Any]]
DECIDING, OUTCOMES = "/v1/systems/fraud/decide", "/v1/outcomes"


def body(number: object, **changes: Any) -> dict[str, Any]:
    event = {"event_time": "2018-05-20T12:00:00Z", "customer_id": "1", "terminal_id": "2", "amount": 30.0}
    return {"transaction_id": f"g-{number}", **event, **changes}


class Served:
    """A service with both doors, and a client of each."""

    def __init__(self, service: FraudService, calls: Stub, client: httpx.Client, channel: Any) -> None:
        self.service, self.calls, self.client, self.channel = service, calls, client, channel

    def decide(self, fields: Mapping[str, Any], **options: Any) -> Any:
        return self.calls["Decide"](messages()["DecideRequest"](**fields), **options)

    def decisions(self) -> Any:
        return decisions.read(self.service.home / "log" / "decisions")


@contextlib.contextmanager
def doors(home: Path, guard: Guard | None = None) -> Iterator[Served]:
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    endpoint: Endpoint = service if guard is None else guard.before(service, DECIDE)
    bound: list[int] = []

    @contextlib.asynccontextmanager
    async def beside() -> Any:
        async with decide_door(service, endpoint, GrpcAddress(), guard=guard) as port:
            bound.append(port)
            yield

    app = application(service, guard=guard, beside=beside)
    with (
        running(app, [endpoint]) as server,
        httpx.Client(base_url=server.url) as client,
        grpc.insecure_channel(f"127.0.0.1:{bound[0]}") as channel,
    ):
        yield Served(service, stub(channel), client, channel)
    service.close()


@pytest.fixture(scope="module")
def served(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("grpc") / "home"
    shutil.copytree(template, home)
    with doors(home) as found:
        yield found


def refused(call: Callable[[], Any]) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    error: Any = failed.value
    return error.code().name, error.details(), dict(error.trailing_metadata() or ())


def test_a_decision_is_equal_to_that_over_http(served: Served) -> None:
    by_grpc = served.decide(body("same"))
    by_http = served.client.post(DECIDING, json=body("same")).json()
    assert as_json(by_grpc) == by_http
    assert by_http["model_version"] == "fraud/1"
    first = served.client.post(DECIDING, json=body("same again")).json()
    assert as_json(served.decide(body("same again"))) == first
    story = served.client.get(f"/v1/decisions/{by_grpc.decision_id}").json()
    assert (story["request"], story["request_id"]) == ({"amount": 30.0}, "g-same")


def test_two_services_decide_alike_by_either_door(template: Path, tmp_path: Path) -> None:
    answers, logged = [], []
    for way in ("grpc", "http"):
        shutil.copytree(template, tmp_path / way)
        with doors(tmp_path / way) as found:
            asked = [body(k, amount=10.0 + 40 * k, event_time=f"2018-05-20T12:{k:02}:00Z") for k in range(20)]
            if way == "grpc":
                told = [as_json(found.decide(fields)) for fields in asked]
            else:
                told = [found.client.post(DECIDING, json=fields).json() for fields in asked]
        answers.append([{k: v for k, v in answer.items() if k != "decision_id"} for answer in told])
        log = decisions.read(tmp_path / way / "log" / "decisions").sort("event_time")
        made_now = {"decision_id", "ingest_time", "latency_us", "cost", "trace_id"}
        logged.append(log.drop([name for name in log.columns if name in made_now]))
    assert answers[0] == answers[1]
    assert logged[0].equals(logged[1], null_equal=True)


def test_calls_in_flight_together_are_all_answered(served: Served) -> None:
    ask, make = served.calls["Decide"], messages()["DecideRequest"]
    pending = [ask.future(make(**body(f"many-{k}"))) for k in range(60)]  # type: ignore[attr-defined]
    twice = [ask.future(make(**body("twice"))) for _ in range(5)]  # type: ignore[attr-defined]
    assert [item.result(timeout=20).transaction_id for item in pending] == [f"g-many-{k}" for k in range(60)]
    assert len({item.result(timeout=20).decision_id for item in twice}) == 1


def test_outcomes_are_learned(served: Served) -> None:
    served.decide(body("known"))
    item, ask = messages()["OutcomeItem"], messages()["OutcomeRequest"]
    known = {"request_id": "g-known", "value": 1.0, "event_time": "2018-05-27T12:00:00Z"}
    asked = ask(outcomes=[item(**known), item(**known), item(**(known | {"request_id": "g-never"}))])
    answer = served.calls["Outcome"](asked)
    assert (answer.accepted, answer.duplicates, len(answer.rejected)) == (1, 1, 1)
    assert (answer.rejected[0].index, answer.rejected[0].request_id) == (2, "g-never")
    assert "decided or loaded before" in answer.rejected[0].detail
    assert served.client.post(OUTCOMES, json={"outcomes": [known]}).json()["duplicates"] == 1
    empty = served.calls["Outcome"](ask())
    assert refused(lambda: served.calls["Outcome"](ask(outcomes=[item(value=1.0)])))[0] == "INVALID_ARGUMENT"
    assert (empty.accepted, empty.duplicates) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "without", "code"),
    [
        ({}, "amount", "INVALID_ARGUMENT"),
        ({}, "transaction_id", "INVALID_ARGUMENT"),
        ({"amount": -1.0}, "", "INVALID_ARGUMENT"),
        ({"amount": float("nan")}, "", "INVALID_ARGUMENT"),
        ({"amount": float("inf")}, "", "INVALID_ARGUMENT"),
        ({"event_time": "yesterday"}, "", "INVALID_ARGUMENT"),
        ({"customer_id": ""}, "", "INVALID_ARGUMENT"),
        ({"transaction_id": "g-taken"}, "", "ABORTED"),
    ],
)
def test_what_http_refuses_is_refused_in_the_same_words(
    served: Served, changes: dict[str, Any], without: str, code: str
) -> None:
    served.decide(body("taken", amount=1.0))
    fields = body("wrong", **changes)
    fields.pop(without, None)
    # JSON has no NaN and no infinity: what says nothing is null.
    written = json.dumps({k: v if v not in (float("inf"),) and v == v else None for k, v in fields.items()})
    told = served.client.post(DECIDING, content=written).json()
    assert refused(lambda: served.decide(fields))[:2] == (code, told["detail"])


def test_fields_that_nobody_knows_and_bodies_that_are_too_long(served: Served) -> None:
    known = messages()["DecideRequest"](**body("unknown")).SerializeToString()
    send = served.channel.unary_unary(f"/{SERVICE}/Decide")
    before = served.service.counts.get("rejected", 0)
    code, details, _ = refused(lambda: send(known + bytes([9 << 3, 1])))
    assert (code, details) == ("INVALID_ARGUMENT", "number 9: Object contains unknown field")
    assert served.service.counts["rejected"] == before + 1
    code, details, _ = refused(lambda: served.decide(body("x" * MAX_BODY)))
    assert (code, details) == ("RESOURCE_EXHAUSTED", f"body: must be at most {MAX_BODY} bytes long")


def test_the_guard_stands_before_both(home: Path, tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.sqlite")
    tokens = {
        scope: store.create(scope, tenant="shop", scopes=[scope], actor="test", now=0, expires=None).token
        for scope in (DECIDE, LEARN)
    }
    ask = messages()["OutcomeRequest"]()
    with doors(home, Guard(keys=KeyRing(store), key_limit=Limiter(Limit(3, "1h")))) as found:
        assert refused(lambda: found.decide(body(1)))[0] == "UNAUTHENTICATED"
        assert refused(lambda: found.calls["Outcome"](ask))[0] == "UNAUTHENTICATED"
        deciding = [("authorization", f"Bearer {tokens[DECIDE]}")]
        learning = [("x-api-key", tokens[LEARN])]
        assert refused(lambda: found.calls["Outcome"](ask, metadata=deciding))[0] == "PERMISSION_DENIED"
        assert refused(lambda: found.decide(body(1), metadata=learning))[0] == "PERMISSION_DENIED"
        assert found.calls["Outcome"](ask, metadata=learning).accepted == 0
        make = messages()["DecideRequest"]
        answer, call = found.calls["Decide"].with_call(make(**body(1)), metadata=deciding)  # type: ignore[attr-defined]
        assert answer.transaction_id == "g-1"
        assert dict(call.trailing_metadata())["ratelimit"].startswith('"default";r=')
        codes = [refused(lambda: [found.decide(body(k), metadata=deciding) for k in range(2, 9)])]
        assert (codes[0][0], int(codes[0][2]["retry-after"]) > 0) == ("RESOURCE_EXHAUSTED", True)
        assert found.decisions()["tenant"].unique().to_list() == ["shop"]


def test_the_trace_of_the_caller_is_logged(served: Served) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = served.decide(body("traced"), metadata=[("traceparent", f"00-{trace}-b7ad6b7169203331-01")])
    assert served.service.find(answer.decision_id).trace_id == trace


def test_reflection_and_the_standard_health_service(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.protobuf import descriptor_pool
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    database = ProtoReflectionDescriptorDatabase(served.channel)
    assert SERVICE in database.get_services()
    found = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE)
    assert [method.name for method in found.methods] == ["Decide", "Outcome"]
    health = health_pb2_grpc.HealthStub(served.channel)
    ask = health_pb2.HealthCheckRequest
    assert [health.Check(ask(service=name)).status for name in ("", SERVICE)] == [1, 1]
    monkeypatch.setattr("vitok.systems.fraud.service._UNREADY_SECONDS", 3600.0)
    served.service.count("log_failures")
    assert health.Check(ask(service=SERVICE)).status == 2
    assert served.client.get("/readyz").status_code == 503
    # Later it is asked again, since somebody may have made room.
    monkeypatch.setattr("vitok.systems.fraud.service._UNREADY_SECONDS", 0.0)
    assert health.Check(ask(service=SERVICE)).status == 1
    assert served.client.get("/readyz").status_code == 200


def test_a_log_that_cannot_be_written_is_unavailable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitok.errors import StoreError

    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("no space left")

    with doors(home) as found:
        monkeypatch.setattr(found.service._log, "append", fails)
        code, details, metadata = refused(lambda: found.decide(body(1)))
        assert (code, details, metadata["grpc-retry-pushback-ms"]) == ("UNAVAILABLE", "no space left", "1000")
        monkeypatch.undo()
        assert found.decide(body(1)).transaction_id == "g-1"


def test_the_messages_have_the_fields_of_http() -> None:
    for name, struct in (("DecideRequest", Transaction), ("DecideResponse", Answer), ("OutcomeItem", OutcomeItem)):
        assert [field.name for field in messages()[name].DESCRIPTOR.fields] == list(struct.__struct_fields__)


def test_addresses_and_a_missing_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FraudService(home, clock=EventClock())

    async def enter(address: GrpcAddress) -> None:
        async with decide_door(service, service, address):
            pass

    with pytest.raises(ServiceError, match="cannot listen on 256"):
        asyncio.run(enter(GrpcAddress(host="256.0.0.1", port=1)))
    monkeypatch.setitem(__import__("sys").modules, "grpc", None)
    with pytest.raises(MissingExtra, match=r"vitok\[grpc\]"):
        asyncio.run(enter(GrpcAddress()))
    service.close()


def test_the_file_for_clients_says_the_same(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    from google.protobuf import descriptor_pb2

    source = Path(decide_proto.__file__).with_name("decide_service.proto")
    out = tmp_path / "set"
    assert protoc.main(["protoc", f"-I{source.parent}", f"--descriptor_set_out={out}", source.name]) == 0
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    ours = descriptor_pb2.FileDescriptorProto()
    pool().FindFileByName("vitok/decide_service.proto").CopyToProto(ours)

    def plain(found: Any) -> list[str]:
        return sorted(
            f"{message.name} "
            + str([(f.name, f.number, f.type, f.label, f.type_name, f.proto3_optional) for f in message.field])
            for message in found
        )

    assert plain(ours.message_type) == plain(compiled.message_type)
    assert ours.service == compiled.service
