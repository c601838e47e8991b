"""The Open Inference Protocol over gRPC, by stubs of its own: what it answers, refuses, counts and logs."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.model_folders import ROWS, SUM, Served, folder_host, make_models, put_model, served

from vitok.errors import InvalidInput, MissingExtra, ServiceError
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.inference import Hosted
from vitok.serving.inference_log import InferenceLog
from vitok.serving.inference_proto import SERVICE, messages, pool
from vitok.serving.tensors import DATATYPES, to_bytes

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
from vitok.serving.inference_grpc import GrpcAddress, grpc_door, stub  # noqa: E402

Stub = Mapping[str, Callable[..., Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    make_models(found)
    return found


@pytest.fixture
def services(folder: Path) -> Iterator[Served]:
    with served(folder_host(folder, pinned=["sum"])) as found:
        yield found


@pytest.fixture
def calls(services: Served) -> Iterator[Stub]:
    with grpc.insecure_channel(services.grpc) as channel:
        yield stub(channel)


def request(model: str = "sum", *, version: str = "", **more: Any) -> Any:
    types = messages()
    tensor = types["ModelInferRequest.InferInputTensor"](name="x", datatype="FP64", shape=[1, 2])
    tensor.contents.fp64_contents.extend([1, 2.5])
    return types["ModelInferRequest"](model_name=model, model_version=version, inputs=[tensor], **more)


def refused(call: Callable[[], Any]) -> tuple[Any, str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    error: Any = failed.value
    return error.code(), error.details(), dict(error.trailing_metadata() or ())


def test_health_and_metadata(calls: Stub) -> None:
    types = messages()
    assert calls["ServerLive"](types["ServerLiveRequest"]()).live
    assert calls["ServerReady"](types["ServerReadyRequest"]()).ready
    server = calls["ServerMetadata"](types["ServerMetadataRequest"]())
    assert (server.name, next(iter(server.extensions))) == ("vitok", "binary_tensor_data")
    ask = types["ModelReadyRequest"]
    ready = [calls["ModelReady"](ask(name=n, version=v)).ready for n, v in (("sum", ""), ("sum", "9"), ("no", ""))]
    assert ready == [True, False, False]
    found = calls["ModelMetadata"](types["ModelMetadataRequest"](name="sum"))
    assert (found.name, list(found.versions), found.platform) == ("sum", ["2"], "python")
    assert (found.inputs[0].name, list(found.inputs[0].shape)) == ("x", [-1, 2])
    assert refused(lambda: calls["ModelMetadata"](types["ModelMetadataRequest"](name="no")))[0].name == "NOT_FOUND"


def test_typed_and_raw_tensors_of_every_type_come_back(calls: Stub) -> None:
    types = messages()
    rng = np.random.default_rng(7)
    sent: dict[str, np.ndarray] = {}
    for name, kind in DATATYPES.items():
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            sent[name] = np.array([[limits.min, limits.max], [0, 1]], kind)
        elif name == "BYTES":
            sent[name] = np.array([[b"", b"\xff\x00"], ["ä".encode(), b"x" * 300]], object)
        else:
            sent[name] = rng.normal(size=(2, 2)).astype(kind) if kind.kind == "f" else np.eye(2, dtype=bool)
    ask = types["ModelInferRequest"](model_name="echo", id="all")
    for name, values in sent.items():
        ask.inputs.append(types["ModelInferRequest.InferInputTensor"](name=name, datatype=name, shape=[2, 2]))
        ask.raw_input_contents.append(to_bytes(values))
    answer = calls["ModelInfer"](ask)
    assert (answer.model_name, answer.model_version, answer.id) == ("echo", "1", "all")
    assert [item.datatype for item in answer.outputs] == list(DATATYPES)
    assert [list(item.shape) for item in answer.outputs] == [[2, 2]] * len(DATATYPES)
    assert list(answer.raw_output_contents) == [to_bytes(values) for values in sent.values()]


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [("BYTES", "bytes_contents", [b"a", b"\xff"]), ("FP64", "fp64_contents", [1.5, float("nan")])],
)
def test_typed_contents(calls: Stub, datatype: str, field: str, values: list[Any]) -> None:
    types = messages()
    model, name = ("texts", "BYTES") if datatype == "BYTES" else ("sum", "x")
    tensor = types["ModelInferRequest.InferInputTensor"](name=name, datatype=datatype)
    tensor.shape.extend([2] if model == "texts" else [1, 2])
    getattr(tensor.contents, field).extend(values)
    answer = calls["ModelInfer"](types["ModelInferRequest"](model_name=model, inputs=[tensor]))
    assert not answer.raw_output_contents
    got = list(getattr(answer.outputs[0].contents, field))
    assert got == values if model == "texts" else np.isnan(got[0])


def test_requests_of_a_turn_are_one_run_and_are_counted_with_those_of_http(calls: Stub, services: Served) -> None:
    pending = [calls["ModelInfer"].future(request(id=str(i))) for i in range(40)]  # type: ignore[attr-defined]
    answers = [item.result(timeout=10) for item in pending]
    assert [answer.id for answer in answers] == [str(i) for i in range(40)]
    assert [list(answer.outputs[0].contents.fp64_contents) for answer in answers] == [[3.5]] * 40
    counts = services.host.get("sum").counts
    assert (counts["requests"], counts["rows"], counts["refused"]) == (40, 40, 0)
    assert counts["batches"] <= 40
    assert services.host.get("sum").latency.count == 40
    stats = calls["ModelStatistics"](messages()["ModelStatisticsRequest"](name="sum")).model_stats[0]
    assert (stats.inference_count, stats.inference_stats.success.count) == (40, 40)


def test_wrong_requests(calls: Stub) -> None:
    types = messages()
    tensor = types["ModelInferRequest.InferInputTensor"]

    def changed(**how: Any) -> Any:
        made = request()
        for name, value in how.items():
            if isinstance(value, list):
                del getattr(made.inputs[0], name)[:]
                getattr(made.inputs[0], name).extend(value)
            else:
                setattr(made.inputs[0], name, value)
        return made

    both = request()
    both.raw_input_contents.append(b"12345678")
    two = request()
    two.inputs.append(tensor(name="x", datatype="FP64", shape=[1, 2]))
    raw = types["ModelInferRequest"](model_name="sum", raw_input_contents=[b"123"])
    raw.inputs.append(tensor(name="x", datatype="FP64", shape=[1, 2]))
    other = changed()
    other.inputs[0].contents.fp32_contents.append(1)
    half = types["ModelInferRequest"](model_name="echo", inputs=[tensor(name="FP16", datatype="FP16", shape=[1, 2])])
    wish = request()
    wish.outputs.append(types["ModelInferRequest.InferRequestedOutputTensor"](name="z"))
    hurry = request()
    hurry.parameters["timeout"].string_param = "soon"
    known = [
        (changed(name="z"), "inputs[0].name: got 'z', must be one of x"),
        (changed(datatype="FP32"), "inputs[0].datatype: got 'FP32', must be FP64"),
        (changed(shape=[2, 2]), "inputs[0].data: got '2 values', must be 4"),
        (changed(shape=[1 << 62, 1 << 62]), "must hold at most"),
        (changed(shape=[2]), "inputs[0].shape: got [2], must be [-1, 2]"),
        (both, "inputs[0].contents: got 'values', must not be there beside raw_input_contents"),
        (two, "inputs[1].name: got 'x', must be given once"),
        (raw, "raw_input_contents[0]: got 3, must be 16 for 2 of FP64"),
        (types["ModelInferRequest"](model_name="sum", raw_input_contents=[b""]), "got '1 tensors', must be 0"),
        (types["ModelInferRequest"](model_name="sum"), "inputs: got [], must hold x"),
        (other, "fp32_contents: got 'values', must be fp64_contents for FP64"),
        (half, "inputs[0].contents: got 'FP16', must be sent in raw_input_contents"),
        (wish, "outputs[0].name: got 'z', must be one of y"),
        (hurry, "parameters.timeout: got 'soon'"),
    ]
    for wrong, message in known:
        code, details, _ = refused(lambda wrong=wrong: calls["ModelInfer"](wrong))  # type: ignore[misc]
        assert code.name == "INVALID_ARGUMENT"
        assert message in details
    for model, version in (("no", ""), ("sum", "9"), ("../sum", "1"), ("", "")):
        code, details, _ = refused(lambda m=model, v=version: calls["ModelInfer"](request(m, version=v)))  # type: ignore[misc]
        assert code.name == "NOT_FOUND", details


def test_a_model_that_fails_is_unavailable(calls: Stub) -> None:
    code, details, _ = refused(lambda: [calls["ModelInfer"](request("broken")) for _ in range(9)])
    assert code.name == "UNAVAILABLE"
    assert "out of memory" in details


def test_a_slow_model_has_its_queue_and_its_deadline(calls: Stub, services: Served) -> None:
    hosted = services.host.get("slow")
    assert hosted.queueing
    pending = [calls["ModelInfer"].future(request("slow", id=str(i))) for i in range(30)]  # type: ignore[attr-defined]
    assert [item.result(timeout=10).id for item in pending] == [str(i) for i in range(30)]
    assert hosted.runtime.cost.batches < 30
    late = request("slow")
    late.parameters["timeout"].int64_param = 1
    code, details, metadata = refused(lambda: calls["ModelInfer"](late))
    assert (code.name, metadata["retry-after"]) == ("UNAVAILABLE", "1")
    assert "deadline" in details


def test_a_stream_answers_in_order_and_goes_on_after_an_error(calls: Stub) -> None:
    asked = [request(id="0"), request("no", id="1"), request("slow", id="2"), request(version="9", id="3")]
    explain = {"explain": messages()["InferParameter"](bool_param=True)}
    asked += [request("slow", id=str(k), parameters=explain) for k in range(4, 54)]
    asked += [request(id=str(k)) for k in range(54, 204)]
    answers = list(calls["ModelStreamInfer"](iter(asked)))
    assert [answer.infer_response.id for answer in answers] == [str(k) for k in range(204)]
    told = {k: answer.error_message for k, answer in enumerate(answers) if answer.error_message}
    assert set(told) == {1, 3}
    assert "model 'no' does not exist" in told[1]
    assert [list(answers[k].infer_response.outputs[0].contents.fp64_contents) for k in (0, 2, 203)] == [[3.5]] * 3
    assert "triton_final_response" not in answers[0].infer_response.parameters
    # What came while the slow model was busy was one run.
    together = [answers[k].infer_response.parameters["batch_requests"].int64_param for k in range(4, 54)]
    assert max(together) > 5
    assert list(calls["ModelStreamInfer"](iter(()))) == []


def test_who_leaves_a_stream_leaves_the_service_well(calls: Stub) -> None:
    left = threading.Event()

    def endless() -> Iterator[Any]:
        while not left.wait(0.001):
            yield request("slow")

    stream = calls["ModelStreamInfer"](endless())
    assert next(iter(stream)).infer_response.outputs[0].name == "y"
    stream.cancel()
    left.set()
    assert calls["ModelInfer"](request()).outputs[0].name == "y"


def test_the_account_and_the_wishes(calls: Stub) -> None:
    asked = request(id="a")
    asked.parameters["explain"].bool_param = True
    asked.parameters["priority"].uint64_param = 0
    asked.outputs.append(messages()["ModelInferRequest.InferRequestedOutputTensor"](name="y"))
    answer = calls["ModelInfer"](asked)
    assert answer.parameters["batch_rows"].int64_param == 1
    assert answer.parameters["waited_us"].int64_param >= 0


def test_answers_are_logged(tmp_path: Path, folder: Path) -> None:
    from vitok import decisions

    with InferenceLog(tmp_path / "log", system="sum", features=["a", "b"]) as log:

        def dress(hosted: Hosted) -> None:
            hosted.recorder = log

        with (
            served(folder_host(folder, dress=dress)) as found,
            grpc.insecure_channel(found.grpc) as channel,
        ):
            answer = stub(channel)["ModelInfer"](request(id="r1"))
    kept = decisions.find(tmp_path / "log", decision_id=answer.parameters["decision_id"].string_param)
    assert kept is not None
    assert (kept.request_id, kept.score, kept.model_version) == ("r1", 3.5, "sum/2")


def test_the_repository(tmp_path: Path) -> None:
    types = messages()
    put_model(tmp_path, "a", 1, SUM.format(sleep=0), ROWS)
    put_model(tmp_path, "b", 1, SUM.format(sleep=0), ROWS)
    with served(folder_host(tmp_path, pinned=["a"])) as found, grpc.insecure_channel(found.grpc) as channel:
        calls = stub(channel)
        path = b"/v2/models/b/infer"

        def states(*, ready: bool = False) -> list[tuple[str, str, str]]:
            answer = calls["RepositoryIndex"](types["RepositoryIndexRequest"](ready=ready))
            return [(item.name, item.version, item.state) for item in answer.models]

        assert states() == [("a", "1", "READY"), ("b", "1", "UNAVAILABLE")]
        assert path not in found.service.door.table
        calls["RepositoryModelLoad"](types["RepositoryModelLoadRequest"](model_name="b"))
        assert path in found.service.door.table
        assert states(ready=True) == [("a", "1", "READY"), ("b", "1", "READY")]
        put_model(tmp_path, "b", 2, "1 / 0", ROWS)
        code, details, _ = refused(
            lambda: calls["RepositoryModelLoad"](types["RepositoryModelLoadRequest"](model_name="b"))
        )
        assert (code.name, "ZeroDivisionError" in details) == ("UNAVAILABLE", True)
        assert calls["ModelInfer"](request("b")).model_version == "1"
        unload = types["RepositoryModelUnloadRequest"]
        calls["RepositoryModelUnload"](unload(model_name="b"))
        calls["RepositoryModelUnload"](unload(model_name="b"))
        assert path not in found.service.door.table
        code, details, _ = refused(lambda: calls["RepositoryModelUnload"](unload(model_name="a")))
        assert (code.name, "pinned" in details) == ("INVALID_ARGUMENT", True)


def test_reflection_and_the_standard_health_service(services: Served) -> None:
    from google.protobuf import descriptor_pool
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(services.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in database.get_services()
        found = descriptor_pool.DescriptorPool(database).FindServiceByName(SERVICE)
        assert [method.name for method in found.methods][5] == "ModelInfer"
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1


def test_what_is_in_flight_is_answered_before_the_end(tmp_path: Path) -> None:
    put_model(tmp_path, "slow", 1, SUM.format(sleep=0.3), ROWS)
    host = folder_host(tmp_path, pinned=["slow"])
    with served(host) as found, grpc.insecure_channel(found.grpc) as channel:
        pending = stub(channel)["ModelInfer"].future(request("slow"))  # type: ignore[attr-defined]
        until = time.monotonic() + 10
        while not host.get("slow").counts["requests"] and time.monotonic() < until:
            threading.Event().wait(0.01)
        found.service.stop()
        assert list(pending.result(timeout=10).outputs[0].contents.fp64_contents) == [3.5]


def test_addresses_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    host = ModelHost(FolderCatalogue(folder))

    async def enter(address: GrpcAddress) -> None:
        async with grpc_door(host, address):
            pass

    with pytest.raises(ServiceError, match="cannot listen on 256"):
        asyncio.run(enter(GrpcAddress(host="256.0.0.1", port=1)))
    with pytest.raises(InvalidInput, match="certificate"):
        asyncio.run(enter(GrpcAddress(certificate=tmp_path / "no", key=tmp_path / "no")))


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "grpc", None)

    async def enter() -> None:
        async with grpc_door(ModelHost(FolderCatalogue(folder)), GrpcAddress()):
            pass

    with pytest.raises(MissingExtra, match=r"vitok\[grpc\]"):
        asyncio.run(enter())


def test_the_file_for_clients_says_the_same(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    from google.protobuf import descriptor_pb2

    from vitok.serving import inference_proto

    source = Path(inference_proto.__file__).with_name("inference_service.proto")
    out = tmp_path / "set"
    assert protoc.main(["protoc", f"-I{source.parent}", f"--descriptor_set_out={out}", source.name]) == 0
    compiled = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]
    ours = descriptor_pb2.FileDescriptorProto()
    pool().FindFileByName("vitok/inference_service.proto").CopyToProto(ours)

    def plain(found: Any, outer: str = "") -> list[str]:
        rows = []
        for message in found:
            fields = [
                (f.name, f.number, f.type, f.label, f.type_name, f.HasField("oneof_index")) for f in message.field
            ]
            rows.append(f"{outer}{message.name} {sorted(fields)} {message.options.map_entry}")
            rows += plain(message.nested_type, f"{outer}{message.name}.")
        return sorted(rows)

    assert plain(ours.message_type) == plain(compiled.message_type)
    assert ours.service == compiled.service
