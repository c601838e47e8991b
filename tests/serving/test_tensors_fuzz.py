"""Anything at all sent to the service: it is answered or refused, and never a fault of the server."""

import http.client
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.serving.model_folders import Served, folder_host, make_models, served

from vitok.errors import InvalidInput
from vitok.serving.inference_openapi import inference_openapi
from vitok.serving.tensors import DATATYPES, from_bytes, from_values

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
NAMES = st.sampled_from([*DATATYPES, "FP8", ""])
LENGTHS = st.lists(st.integers(-2, 5) | st.sampled_from([1 << 31, 1 << 63, 1 << 64, 10**30]), max_size=5)


@given(NAMES, LENGTHS, st.binary(max_size=64))
def test_any_bytes_are_a_tensor_or_refused(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        found = from_bytes("x", datatype, shape, data)
    except InvalidInput:
        return
    assert found.shape == tuple(shape)


@given(NAMES, LENGTHS, JSON)
def test_any_values_are_a_tensor_or_refused(datatype: str, shape: list[int], values: Any) -> None:
    try:
        found = from_values("x", datatype, shape, values)
    except InvalidInput:
        return
    assert found.shape == tuple(shape)
    assert found.dtype == DATATYPES[datatype]


@given(st.lists(st.binary(max_size=9), max_size=4), st.binary(max_size=9), st.integers(0, 5))
def test_texts_with_something_behind(texts: list[bytes], rest: bytes, n: int) -> None:
    data = b"".join(struct.pack("<I", len(text)) + text for text in texts) + rest
    try:
        found = from_bytes("x", "BYTES", [n], data)
    except InvalidInput:
        return
    assert sum(4 + len(item) for item in found.tolist()) == len(data)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    with served(folder_host(folder, pinned=["sum", "echo", "texts", "pair"])) as found:
        yield found


def send(service: Served, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Any:
    connection = http.client.HTTPConnection(service.service.host, service.service.port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    faults = service.service.door.faults
    assert (response.status != 500, faults) == (True, 0), (path, body, headers, data)
    return response.status, response.headers.get("content-type", ""), data


WIDE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PATHS = st.sampled_from([f"/v2/models/{name}/infer" for name in ("sum", "echo", "texts", "pair", "none")])


@WIDE
@given(path=PATHS, body=st.binary(max_size=80), length=st.integers(-1, 90) | st.text("0123456789x-", max_size=5))
def test_any_body_with_any_length_of_its_json(service: Served, path: str, body: bytes, length: Any) -> None:
    status, _, data = send(service, "POST", path, body, {"Inference-Header-Content-Length": str(length)})
    assert status < 500 or status == 503
    if status != 200:
        assert "error" in json.loads(data)


@WIDE
@given(
    path=PATHS,
    shape=LENGTHS,
    datatype=NAMES,
    size=st.integers(-2, 64) | JSON,
    tail=st.binary(max_size=64),
    name=st.sampled_from(["x", "FP32", "BYTES"]),
)
def test_any_tensor_behind_the_json(
    service: Served, path: str, shape: list[int], datatype: str, size: Any, tail: bytes, name: str
) -> None:
    item = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [item]}, allow_nan=False) if finite(size) else "{}"
    headers = {"Inference-Header-Content-Length": str(len(head.encode()))}
    status, _, _ = send(service, "POST", path, head.encode() + tail, headers)
    assert status in (200, 400, 404, 422)


def finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False).encode()
    except (ValueError, UnicodeEncodeError):
        return False
    return True


def from_schema(schema: dict[str, Any], document: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Draws what a schema of the document allows; now and then something else in its place."""
    if "$ref" in schema:
        return from_schema(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, depth)
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return st.one_of(*(from_schema({"type": one}, document, depth + 1) for one in kind))
    if kind == "object":
        fields = {name: from_schema(part, document, depth + 1) for name, part in schema.get("properties", {}).items()}
        needed = schema.get("required", [])
        free = {name: part for name, part in fields.items() if name not in needed}
        return st.fixed_dictionaries({name: fields[name] for name in needed}, optional=free)
    if kind == "array":
        items = schema.get("items", {})
        return st.just([]) if depth > 6 else st.lists(from_schema(items, document, depth + 1), max_size=3)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        "string": st.sampled_from(["x", "y", "FP32", "INT64", "OUT_FP32"]) | st.text(max_size=4),
        "integer": st.integers(schema.get("minimum", -3), min(schema.get("maximum", 3), 3)) | st.integers(),
        "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        "boolean": st.booleans(),
        "null": st.none(),
    }
    return simple.get(kind, JSON)


def test_every_call_of_the_document(service: Served) -> None:
    document = json.loads(send(service, "GET", "/openapi.json")[2])
    assert document == json.loads(json.dumps(inference_openapi(service.host)))
    operations = [
        (path, method, call)
        for path, methods in document["paths"].items()
        for method, call in methods.items()
        if method != "parameters"
    ]
    assert len({call["operationId"] for _, _, call in operations}) == len(operations) == 16

    @WIDE
    @given(
        data=st.data(),
        operation=st.sampled_from(operations),
        name=st.sampled_from(["sum", "echo", "texts", "pair"]) | st.text("abc%2F./é?#\x7f ", min_size=1, max_size=5),
        version=st.sampled_from(["1", "2", "9", "x", "-1", "1e3", "..", "%00"]),
    )
    def check(data: st.DataObject, operation: Any, name: str, version: str) -> None:
        from urllib.parse import quote

        path, method, call = operation
        body = b""
        if "requestBody" in call:
            schema = call["requestBody"]["content"]["application/json"]["schema"]
            value = data.draw(from_schema(schema, document) | JSON)
            body = json.dumps(value).encode() if finite(value) else b"NaN"
        path = path.replace("{name}", quote(name, safe="")).replace("{version}", quote(version, safe=""))
        status, kind, answer = send(service, method.upper(), path, body)
        assert str(status) in call["responses"] or status in (404, 405)
        if "json" in kind:
            found = json.loads(answer)
            if status >= 400 and status != 405 and "ready" not in found:
                assert "error" in found

    check()


def test_rows_are_not_mixed_up_by_what_comes_between(service: Served) -> None:
    rng = np.random.default_rng(1)
    for row in rng.normal(size=(20, 2)):
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": row.tolist()}]}
        send(service, "POST", "/v2/models/sum/infer", b"{")
        answer = json.loads(send(service, "POST", "/v2/models/sum/infer", json.dumps(body).encode())[2])
        assert answer["outputs"][0]["data"] == [row.sum()]
