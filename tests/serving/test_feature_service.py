"""The feature service, by real clients: HTTP through the hot door, gRPC with reflection and health."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from vitok.clock import SECOND
from vitok.errors import InvalidInput
from vitok.features import Entity, FeatureSet, Latest, OnDemand, Source
from vitok.features.vectors import FRESH, MISSING, Vectors
from vitok.serving import running
from vitok.serving.feature_service import FeatureEndpoint, feature_application, feature_openapi
from vitok.serving.messages import HotRequest

CUSTOMER = Entity("customer", "customer_id")
LIMITS = Latest(name="account", entity=CUSTOMER, source=Source("accounts"), columns=("limit", "age"), owner="risk")
SET = FeatureSet(
    request=("amount",),
    views=(LIMITS,),
    on_demand=(OnDemand("share", lambda amount, account_limit: amount / account_limit),),
)


class Reader:
    """Knows customers 1 to 9: a limit of 100 times the number, an age of the question's seconds."""

    features = SET

    def __init__(self) -> None:
        self.calls = 0

    def read(
        self,
        keys: Mapping[str, Sequence[str | int]],
        *,
        time: int | Sequence[int] | None = None,
        request: Mapping[str, Sequence[float]] | None = None,
    ) -> Vectors:
        self.calls += 1
        n = len(keys["customer_id"])
        for key in keys["customer_id"]:
            if key == "":
                raise InvalidInput("customer_id", key, "not be empty")
        known = np.array([str(key) in "123456789" for key in keys["customer_id"]])
        times = np.full(n, 5 * SECOND) if time is None else np.broadcast_to(np.asarray(time, np.int64), (n,))
        values = np.full((n, 4), np.nan)
        values[:, 0] = (request or {})["amount"]
        values[known, 1] = [100.0 * int(key) for key, there in zip(keys["customer_id"], known, strict=True) if there]
        values[known, 2] = (times / SECOND)[known]
        SET.add_on_demand(values, times)
        status = np.where(known, FRESH, MISSING).astype(np.uint8)[:, None]
        return Vectors(
            names=SET.names,
            values=values,
            event_times=np.where(known, 1_000, -1)[:, None],
            status=status,
            source=np.zeros((n, 1), np.uint8),
            views=("account",),
        )


@pytest.fixture
def endpoint() -> FeatureEndpoint:
    return FeatureEndpoint("account", Reader(), max_entities=5)


@pytest.fixture
def client(endpoint: FeatureEndpoint) -> Iterator[httpx.Client]:
    with running(feature_application([endpoint]), [endpoint]) as service, httpx.Client(base_url=service.url) as http:
        yield http


def ask(client: httpx.Client, body: object) -> httpx.Response:
    return client.post("/v1/features/account/vectors", json=body)


def test_one_and_many(client: httpx.Client) -> None:
    answer = ask(client, {"keys": {"customer_id": 2}, "request": {"amount": 50}}).json()
    assert answer == {"version": SET.version, "values": [[50.0, 200.0, 5.0, 0.25]], "status": ["fresh"]}
    body = {"keys": {"customer_id": ["1", "x"]}, "request": {"amount": [1.0, None]}, "details": True}
    answer = ask(client, body).json()
    assert answer["values"] == [[1.0, 100.0, 5.0, 0.01], [None, None, None, None]]
    assert answer["status"] == ["fresh", "missing"]
    assert answer["views"] == {
        "account": {"event_time": [1_000, None], "status": ["fresh", "missing"], "source": ["store", "store"]}
    }


def test_as_of_a_moment(client: httpx.Client) -> None:
    body = {"keys": {"customer_id": ["1", "2"]}, "request": {"amount": 1.0}, "time": "1970-01-01T00:01:00+00:00"}
    assert [row[2] for row in ask(client, body).json()["values"]] == [60.0, 60.0]
    body["time"] = ["1970-01-01T00:01:00", "1970-01-01T01:00:30+01:00"]
    assert [row[2] for row in ask(client, body).json()["values"]] == [60.0, 30.0]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"keys": {}, "request": {"amount": 1}}, 422, "hold customer_id"),
        ({"keys": {"customer_id": "1"}}, 422, "hold amount"),
        ({"keys": {"customer_id": ["1", "2"]}, "request": {"amount": [1]}}, 422, "have 2"),
        ({"keys": {"customer_id": ["1"] * 6}, "request": {"amount": 1}}, 422, "at most 5"),
        ({"keys": {"customer_id": 1.5}, "request": {"amount": 1}}, 422, "Expected"),
        ({"keys": {"customer_id": "1"}, "request": {"amount": "much"}}, 422, "Expected"),
        ({"keys": {"customer_id": "1"}, "request": {"amount": 1}, "time": "noon"}, 422, "time"),
        ({"keys": {"customer_id": ""}, "request": {"amount": 1}}, 422, "not be empty"),
        ({"keys": {"customer_id": "1"}, "amount": 1}, 422, "unknown field"),
    ],
)
def test_wrong_requests_are_told_why(client: httpx.Client, body: object, status: int, words: str) -> None:
    reply = ask(client, body)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert words in reply.json()["detail"]


def test_no_json_no_path_no_method(client: httpx.Client) -> None:
    assert client.post("/v1/features/account/vectors", content=b"{").status_code == 400
    assert client.post("/v1/features/other/vectors", json={}).status_code == 404
    assert client.get("/v1/features/account/vectors").status_code == 405


def test_what_there_is(client: httpx.Client) -> None:
    assert [item["name"] for item in client.get("/v1/features").json()["feature_sets"]] == ["account"]
    one = client.get("/v1/features/account").json()
    assert one["features"] == list(SET.names)
    assert one["keys"] == ["customer_id"]
    assert client.get("/v1/features/none").status_code == 404
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").status_code == 200
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert "/v1/features/account/vectors" in document["paths"]


def test_every_reference_of_the_document_is_there(endpoint: FeatureEndpoint) -> None:
    document = feature_openapi([endpoint])
    text = json.dumps(document)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


def test_requests_of_one_turn_are_one_read_and_a_bad_one_fails_alone(endpoint: FeatureEndpoint) -> None:
    def request(key: str) -> HotRequest:
        return HotRequest(json.dumps({"keys": {"customer_id": key}, "request": {"amount": 1}}).encode(), 0, [])

    replies = endpoint.handle([request("1"), request("2"), HotRequest(b"[]", 0, []), request("3")])
    assert [reply.status for reply in replies] == [200, 200, 422, 200]
    assert [json.loads(replies[i].body)["values"][0][1] for i in (0, 1, 3)] == [100.0, 200.0, 300.0]
    assert endpoint.reader.calls == 1  # type: ignore[attr-defined]
    replies = endpoint.handle([request("1"), request(""), request("3")])
    assert [reply.status for reply in replies] == [200, 422, 200]
    assert endpoint.counts == {"requests": 7, "vectors": 5, "refused": 2}


class TestGrpc:
    @pytest.fixture
    def channel(self, endpoint: FeatureEndpoint) -> Iterator[object]:
        grpc = pytest.importorskip("grpc")
        from vitok.serving.feature_grpc import grpc_server

        server, port = grpc_server([endpoint])
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
        server.stop(None).wait()

    def call(self, channel: object, method: str, takes: str, gives: str, **fields: object) -> object:
        from vitok.serving.feature_grpc import SERVICE, messages

        types = messages()
        stub = channel.unary_unary(  # type: ignore[attr-defined]
            f"/{SERVICE}/{method}",
            request_serializer=types[takes].SerializeToString,
            response_deserializer=types[gives].FromString,
        )
        return stub(types[takes](**fields), timeout=10)

    def vectors(self, channel: object, **fields: object) -> object:
        return self.call(channel, "GetVectors", "GetVectorsRequest", "GetVectorsResponse", **fields)

    def test_vectors(self, channel: object) -> None:
        answer = self.vectors(
            channel,
            feature_set="account",
            keys=[{"name": "customer_id", "keys": ["2", "x"]}],
            request=[{"name": "amount", "numbers": [50.0, 1.0]}],
            times=[60 * SECOND],
        )
        values = np.array(answer.values).reshape(answer.n_vectors, answer.n_features)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(values, [[50.0, 200.0, 60.0, 0.25], [1.0, np.nan, np.nan, np.nan]])
        assert answer.version == SET.version  # type: ignore[attr-defined]
        assert answer.status == bytes([FRESH, MISSING])  # type: ignore[attr-defined]
        assert list(answer.event_times) == [1_000, -1]  # type: ignore[attr-defined]

    def test_describe(self, channel: object) -> None:
        answer = self.call(channel, "Describe", "DescribeRequest", "DescribeResponse", feature_set="account")
        assert list(answer.features) == list(SET.names)  # type: ignore[attr-defined]
        assert answer.max_entities == 5  # type: ignore[attr-defined]

    def test_wrong_requests(self, channel: object) -> None:
        import grpc

        key = {"name": "customer_id", "keys": ["1"]}
        amount = {"name": "amount", "numbers": [1.0]}
        for fields, code, words in (
            ({"feature_set": "other"}, grpc.StatusCode.NOT_FOUND, "must be one of account"),
            ({"feature_set": "account", "request": [amount]}, grpc.StatusCode.INVALID_ARGUMENT, "hold customer_id"),
            ({"feature_set": "account", "keys": [key]}, grpc.StatusCode.INVALID_ARGUMENT, "hold amount"),
            (
                {"feature_set": "account", "keys": [{"name": "customer_id", "keys": ["1"] * 6}], "request": [amount]},
                grpc.StatusCode.INVALID_ARGUMENT,
                "at most 5",
            ),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                self.vectors(channel, **fields)
            assert failed.value.code() == code
            assert words in failed.value.details()

    def test_reflection_and_health(self, channel: object) -> None:
        from google.protobuf import descriptor_pool
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

        database = ProtoReflectionDescriptorDatabase(channel)
        assert "vitok.features.v1.FeatureService" in database.get_services()
        service = descriptor_pool.DescriptorPool(database).FindServiceByName("vitok.features.v1.FeatureService")
        assert [method.name for method in service.methods] == ["GetVectors", "Describe"]
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="")).status == 1

    def test_the_file_for_clients_says_the_same(self, tmp_path: Path) -> None:
        protoc = pytest.importorskip("grpc_tools.protoc")
        from google.protobuf import descriptor_pb2

        from vitok.serving import feature_grpc

        feature_grpc.messages()
        source = Path(feature_grpc.__file__).with_name("feature_service.proto")
        out = tmp_path / "set"
        assert protoc.main(["protoc", f"-I{source.parent}", f"--descriptor_set_out={out}", source.name]) == 0
        compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
        from google.protobuf import descriptor_pool

        ours = descriptor_pb2.FileDescriptorProto()
        descriptor_pool.Default().FindFileByName("vitok/feature_service.proto").CopyToProto(ours)

        def plain(file: descriptor_pb2.FileDescriptorProto) -> list[object]:
            return [
                (message.name, [(f.name, f.number, f.type, f.label, f.type_name) for f in message.field])
                for message in file.message_type
            ] + [[(m.name, m.input_type, m.output_type) for m in service.method] for service in file.service]

        def by_name(rows: list[object]) -> list[str]:
            return sorted(str(row) for row in rows)

        assert by_name(plain(compiled)) == by_name(plain(ours))
