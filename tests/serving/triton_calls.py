"""What tritonclient does with the service, in an environment of its own: prints each check with what went wrong.

python triton_calls.py HTTP_ADDRESS GRPC_ADDRESS
"""

import functools
import json
import queue
import sys
import traceback
from typing import Any

import numpy as np
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

KINDS = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    out: dict[str, np.ndarray] = {}
    for name, kind in KINDS.items():
        if name == "BYTES":
            out[name] = np.array([["a", "ä"], ["", "x" * 200]], dtype=np.object_)
        elif name == "BOOL":
            out[name] = np.array([[True, False], [False, True]])
        elif np.issubdtype(kind, np.integer):
            limits = np.iinfo(kind)
            out[name] = np.array([[limits.min, limits.max], [0, 1]], kind)
        else:
            out[name] = rng.normal(size=(2, 2)).astype(kind)
    return out


def asked(module: Any, arrays: dict[str, np.ndarray], **how: Any) -> list[Any]:
    inputs = []
    for name, values in arrays.items():
        one = module.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        one.set_data_from_numpy(values, **how)
        inputs.append(one)
    return inputs


def same(result: Any, arrays: dict[str, np.ndarray]) -> None:
    for name, values in arrays.items():
        got = result.as_numpy(f"OUT_{name}")
        if name == "BYTES":
            decoded = [[item.decode() if isinstance(item, bytes) else item for item in row] for row in got.tolist()]
            assert decoded == values.tolist(), (decoded, values)
        else:
            assert got.dtype == values.dtype, (name, got.dtype)
            np.testing.assert_array_equal(got, values)


def row() -> dict[str, np.ndarray]:
    return {"x": np.array([[1.0, 2.5]])}


def refused(call: Any, words: str) -> None:
    told = ""
    try:
        call()
    except InferenceServerException as error:
        told = error.message()
    assert words in told, f"{told!r} does not say {words!r}"


def http_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum")
    assert client.is_model_ready("sum", "1")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "vitok"
    found = client.get_model_metadata("sum")
    assert found["inputs"][0] == {"name": "x", "datatype": "FP64", "shape": [-1, 2]}
    assert client.get_inference_statistics("sum")["model_stats"][0]["name"] == "sum"
    refused(lambda: client.get_model_metadata("none"), "model 'none' does not exist")
    refused(lambda: client.get_model_config("sum"), "Not Found")


def http_binary_both_ways(client: Any) -> None:
    arrays = tensors()
    same(client.infer("echo", asked(by_http, arrays), request_id="r"), arrays)


def http_json_in_binary_out(client: Any) -> None:
    arrays = {name: values for name, values in tensors().items() if name != "FP16"}
    arrays["FP16"] = np.array([[1.5, -2], [0, 4]], np.float16)
    how = {"binary_data": False}
    inputs = asked(by_http, {k: v for k, v in arrays.items() if k != "FP16"}, **how)
    inputs += asked(by_http, {"FP16": arrays["FP16"]})
    same(client.infer("echo", inputs), arrays)


def http_binary_in_json_out(client: Any) -> None:
    arrays = tensors()
    outputs = [by_http.InferRequestedOutput(f"OUT_{name}", binary_data=name == "FP16") for name in arrays]
    same(client.infer("echo", asked(by_http, arrays), outputs=outputs), arrays)


def http_json_both_ways(client: Any) -> None:
    outputs = [by_http.InferRequestedOutput("y", binary_data=False)]
    result = client.infer("sum", asked(by_http, row(), binary_data=False), outputs=outputs, request_id="j")
    assert result.as_numpy("y").tolist() == [3.5]
    assert result.get_response()["id"] == "j"
    assert result.get_response()["model_version"] == "2"


def http_versions_and_wishes(client: Any) -> None:
    result = client.infer("sum", asked(by_http, row()), model_version="1", priority=3, timeout=5_000_000)
    assert result.get_response()["model_version"] == "1"
    result = client.infer("sum", asked(by_http, row()), parameters={"explain": True})
    assert result.get_response()["parameters"]["batch_rows"] == 1


def http_a_model_of_one_case(client: Any) -> None:
    arrays = {"FP32": np.ones((2, 3), np.float32), "INT64": np.ones((2, 1), np.int64)}
    same(client.infer("pair", asked(by_http, arrays)), arrays)


def http_errors(client: Any) -> None:
    refused(lambda: client.infer("none", asked(by_http, row())), "model 'none' does not exist")
    refused(lambda: client.infer("sum", asked(by_http, {"x": np.ones((1, 3))})), "inputs[0].shape")
    refused(lambda: client.infer("sum", asked(by_http, {"z": np.ones((1, 2))})), "must be one of x")
    refused(lambda: client.infer("sum", asked(by_http, {"x": np.ones((1, 2), np.float32)})), "must be FP64")
    bad = [by_http.InferRequestedOutput("q")]
    refused(lambda: client.infer("sum", asked(by_http, row()), outputs=bad), "outputs[0].name")
    counted = [by_http.InferRequestedOutput("y", class_count=2)]
    refused(lambda: client.infer("sum", asked(by_http, row()), outputs=counted), "classification")


def http_async(client: Any) -> None:
    pending = [client.async_infer("slow", asked(by_http, {"x": np.array([[i, 0.5]])})) for i in range(24)]
    assert [item.get_result().as_numpy("y").tolist() for item in pending] == [[i + 0.5] for i in range(24)]


def http_compressed(client: Any) -> None:
    arrays = {"x": np.arange(1000.0).reshape(500, 2)}
    for asking in ("gzip", "deflate", None):
        for answering in ("gzip", "deflate", None):
            how = {"request_compression_algorithm": asking, "response_compression_algorithm": answering}
            for binary in (True, False):
                inputs = asked(by_http, arrays, binary_data=binary)
                outputs = [by_http.InferRequestedOutput("y", binary_data=binary)]
                result = client.infer("sum", inputs, outputs=outputs, **how)
                np.testing.assert_array_equal(result.as_numpy("y"), arrays["x"].sum(axis=1))


def http_repository(client: Any) -> None:
    client.load_model("texts")
    states = {(item["name"], item["version"]): item["state"] for item in client.get_model_repository_index()}
    assert states["texts", "1"] == "READY"
    client.unload_model("texts")
    states = {(item["name"], item["version"]): item["state"] for item in client.get_model_repository_index()}
    assert states["texts", "1"] == "UNAVAILABLE"
    refused(lambda: client.load_model("none"), "does not exist")


def grpc_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sum")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata().name == "vitok"
    found = client.get_model_metadata("sum", as_json=True)
    assert found["inputs"][0] == {"name": "x", "datatype": "FP64", "shape": ["-1", "2"]}
    assert client.get_inference_statistics("sum").model_stats[0].name == "sum"
    refused(lambda: client.get_model_metadata("none"), "model 'none' does not exist")


def grpc_every_type(client: Any) -> None:
    arrays = tensors()
    same(client.infer("echo", asked(by_grpc, arrays), request_id="r"), arrays)


def grpc_versions_and_wishes(client: Any) -> None:
    outputs = [by_grpc.InferRequestedOutput("y")]
    result = client.infer("sum", asked(by_grpc, row()), model_version="1", outputs=outputs, request_id="g", priority=3)
    assert result.as_numpy("y").tolist() == [3.5]
    assert (result.get_response().id, result.get_response().model_version) == ("g", "1")


def grpc_errors(client: Any) -> None:
    refused(lambda: client.infer("none", asked(by_grpc, row())), "model 'none' does not exist")
    refused(lambda: client.infer("sum", asked(by_grpc, {"x": np.ones((1, 3))})), "inputs[0].shape")
    refused(lambda: client.infer("slow", asked(by_grpc, row()), timeout=1), "deadline")


def grpc_async(client: Any) -> None:
    done: queue.Queue[tuple[int, Any, Any]] = queue.Queue()

    def keep(place: int, result: Any, error: Any) -> None:
        done.put((place, result, error))

    for i in range(24):
        arrays = {"x": np.array([[i, 0.5]])}
        client.async_infer("slow", asked(by_grpc, arrays), callback=functools.partial(keep, i))
    for _ in range(24):
        place, result, error = done.get(timeout=20)
        assert error is None, error
        assert result.as_numpy("y").tolist() == [place + 0.5]


def grpc_stream(client: Any) -> None:
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: done.put((result, error)))
    for i in range(24):
        model = "none" if i == 7 else "slow" if i % 3 else "sum"
        arrays = {"x": np.array([[i, 0.5]])}
        client.async_stream_infer(model, asked(by_grpc, arrays), request_id=str(i), enable_empty_final_response=True)
    for i in range(24):
        result, error = done.get(timeout=20)
        if i == 7:
            assert "model 'none' does not exist" in error.message()
            continue
        assert error is None, error
        assert result.as_numpy("y").tolist() == [i + 0.5]
        assert result.get_response().id == str(i)
        assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


def grpc_compressed(client: Any) -> None:
    for algorithm in ("gzip", "deflate"):
        arrays = {"x": np.arange(1000.0).reshape(500, 2)}
        result = client.infer("sum", asked(by_grpc, arrays), compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("y"), arrays["x"].sum(axis=1))


def grpc_repository(client: Any) -> None:
    client.load_model("texts")
    states = {(item.name, item.version): item.state for item in client.get_model_repository_index().models}
    assert states["texts", "1"] == "READY"
    client.unload_model("texts")
    states = {(item.name, item.version): item.state for item in client.get_model_repository_index().models}
    assert states["texts", "1"] == "UNAVAILABLE"
    refused(lambda: client.load_model("none"), "does not exist")


def main() -> None:
    clients = {
        "http": by_http.InferenceServerClient(sys.argv[1], concurrency=8),
        "grpc": by_grpc.InferenceServerClient(sys.argv[2]),
    }
    found = {}
    for name, check in list(globals().items()):
        kind = name.partition("_")[0]
        if kind in clients and callable(check):
            try:
                check(clients[kind])
            except Exception:  # noqa: BLE001 - whatever it was is reported
                found[name] = traceback.format_exc()
            else:
                found[name] = "ok"
    for client in clients.values():
        client.close()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
