"""Readiness by real clients: HTTP and gRPC say the same of the store and the streams, and what is served is counted."""

from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from tests.serving.test_feature_service import SET, Reader

from vitok.clock import HOUR, SystemClock
from vitok.errors import StoreError
from vitok.features import served_writer
from vitok.features.lag import Lag
from vitok.features.reader import ReaderCounters
from vitok.features.served_writer import ServedWriter
from vitok.serving import running
from vitok.serving.feature_readiness import Readiness
from vitok.serving.feature_service import FeatureEndpoint, feature_application


class Stream:
    """A follower whose lag is set by hand."""

    def __init__(self, source: str = "payments") -> None:
        self.lag = Lag(source=source, messages=0, seconds=0.0)

    def is_behind(self, seconds: float | None, messages: int | None = 5, failing: str = "") -> None:
        self.lag = Lag(source=self.lag.source, messages=messages, seconds=seconds, failing=failing)


class Counted(Reader):
    """A reader that says how its store stands."""

    counters = ReaderCounters()


@pytest.fixture
def writer() -> ServedWriter:
    return ServedWriter("memory://readiness")


@pytest.fixture
def endpoint(writer: ServedWriter) -> FeatureEndpoint:
    return FeatureEndpoint("account", Counted(), served=writer.of("account", SET))


@pytest.fixture
def stream() -> Stream:
    return Stream()


@pytest.fixture
def readiness(endpoint: FeatureEndpoint, stream: Stream, writer: ServedWriter) -> Readiness:
    return Readiness([endpoint], [stream, Stream("labels")], served=writer, most_behind="30s")


@pytest.fixture
def client(endpoint: FeatureEndpoint, readiness: Readiness) -> Iterator[httpx.Client]:
    application = feature_application([endpoint], readiness=readiness)
    with running(application, [endpoint]) as service, httpx.Client(base_url=service.url) as http:
        yield http


@pytest.fixture
def channel(endpoint: FeatureEndpoint, readiness: Readiness) -> Iterator[object]:
    grpc = pytest.importorskip("grpc")
    from vitok.serving.feature_grpc import grpc_server

    server, port = grpc_server([endpoint], readiness=readiness)
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(None).wait()


def test_readyz_says_how_far_streams_are_behind(client: httpx.Client, stream: Stream) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "store": {"account": "closed"},
        "streams": {
            "payments": {"behind_messages": 0, "behind_s": 0.0, "failing": ""},
            "labels": {"behind_messages": 0, "behind_s": 0.0, "failing": ""},
        },
        "served": {"written": 0, "failed": 0},
    }
    stream.is_behind(30.0)
    assert client.get("/readyz").status_code == 200
    stream.is_behind(31.0, None, "no server can be reached")
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "degraded"
    assert answer.json()["reasons"] == [
        "payments is 31 s behind, more than 30 s; it fails: no server can be reached",
    ]
    assert answer.json()["streams"]["payments"]["behind_messages"] is None
    stream.is_behind(None, None)
    assert client.get("/readyz").json()["reasons"] == ["payments has not been read yet"]
    assert client.get("/healthz").status_code == 200
    stream.is_behind(0.0, 0)
    assert client.get("/readyz").status_code == 200


def test_a_store_that_is_down_is_a_reason(client: httpx.Client, endpoint: FeatureEndpoint) -> None:
    endpoint.reader.counters = ReaderCounters(circuit="open", last_error="no route")  # type: ignore[attr-defined]
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"] == ["the store of account is open: no route"]


def test_any_distance_may_be_allowed(endpoint: FeatureEndpoint, stream: Stream) -> None:
    stream.is_behind(1e9)
    assert Readiness([endpoint], [stream], most_behind="").report().ready
    assert str(Readiness([endpoint]).report()) == "ready"


def test_grpc_health_says_the_same(channel: object, stream: Stream) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from vitok.serving.feature_grpc import SERVICE

    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        request = health_pb2.HealthCheckRequest(service=name)
        answer, call = health.Check.with_call(request, timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert call.trailing_metadata() == ()
        stream.is_behind(31.0, 5, "gröber\nfault")
        answer, call = health.Check.with_call(request, timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        told = dict(call.trailing_metadata())["vitok-reason"]
        assert told == "payments is 31 s behind (5 messages), more than 30 s; it fails: gr\\xf6ber fault"
        stream.is_behind(0.0)


def test_those_who_watch_hear_of_a_change_once(channel: object, stream: Stream, readiness: Readiness) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
    seen = [next(watch).status]
    for seconds in (31.0, 40.0, 0.0, 0.0, 99.0):
        stream.is_behind(seconds)
        readiness.report()
    seen += [next(watch).status for _ in range(3)]
    watch.cancel()
    states = health_pb2.HealthCheckResponse
    assert seen == [states.SERVING, states.NOT_SERVING, states.SERVING, states.NOT_SERVING]


def test_both_doors_are_counted_in_one_place(
    client: httpx.Client, channel: object, endpoint: FeatureEndpoint, writer: ServedWriter
) -> None:
    from vitok.serving.feature_grpc import SERVICE, messages

    endpoint.warm_up()
    body = {"keys": {"customer_id": ["2", "x"]}, "request": {"amount": 50.0}, "time": "1970-01-01T00:00:05Z"}
    assert client.post(endpoint.path, json=body).status_code == 200
    assert client.post(endpoint.path, json={"keys": {"customer_id": ""}, "request": {"amount": 1}}).status_code == 422
    types = messages()
    call = channel.unary_unary(  # type: ignore[attr-defined]
        f"/{SERVICE}/GetVectors",
        request_serializer=types["GetVectorsRequest"].SerializeToString,
        response_deserializer=types["GetVectorsResponse"].FromString,
    )
    keys, amounts = [{"name": "customer_id", "keys": ["4"]}], [{"name": "amount", "numbers": [20.0]}]
    request = types["GetVectorsRequest"](feature_set="account", keys=keys, request=amounts, times=[5_000_000])
    assert call(request, timeout=10).n_vectors == 1
    counted = endpoint.served
    assert isinstance(counted, served_writer.ServedSet)
    counted.drain()
    window = counted.statistics.window(0, SystemClock().now() + HOUR)
    assert window.n == 3
    assert window.feature("amount").mean == 40.0
    assert (window.feature("account_limit").nulls, window.feature("account_limit").mean) == (1, 300.0)
    age = window.feature("account.age_seconds")
    assert age.nulls == 1
    assert age.mean == pytest.approx(4.999)
    assert writer.n_saved == 0


def test_counts_that_cannot_be_kept_harm_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(served_writer, "open_store", refuse)
    told: list[str] = []
    with ServedWriter("memory://readiness-full", every=1, tell=told.append) as writer:
        endpoint = FeatureEndpoint("account", Reader(), served=writer.of("account", SET))
        readiness = Readiness([endpoint], served=writer)
        with running(feature_application([endpoint], readiness=readiness), [endpoint]) as service:
            body = {"keys": {"customer_id": "2"}, "request": {"amount": 50}}
            assert httpx.post(service.url + endpoint.path, json=body).status_code == 200
            writer.turn()
            answer = httpx.get(f"{service.url}/readyz")
    assert answer.status_code == 200
    assert answer.json()["served"]["error"] == "the disk is full"
    assert answer.json()["served"]["failed"] >= 1
    assert told[0] == "what is served is counted but cannot be kept: the disk is full; trying again"


def test_listeners_hear_from_the_next_report() -> None:
    heard: list[bool] = []
    endpoint = SimpleNamespace(name="a", reader=SimpleNamespace(counters=ReaderCounters()))
    readiness = Readiness([endpoint])  # type: ignore[list-item]
    readiness.report()
    readiness.listen(heard.append)
    for circuit in ("closed", "closed", "open", "closed"):
        endpoint.reader.counters = ReaderCounters(circuit=circuit)
        readiness.report()
    assert heard == [True, False, True]
