"""Compressed bodies: what is read, what is refused before it grows, and which replies are compressed."""

import gzip
import http.client
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.model_folders import Served, make_models, served

from vitok.errors import InvalidInput
from vitok.serving.encodings import LEAST_COMPRESSED, accepted, compressed, inflated
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.messages import Reply

LIMIT = 100_000


@pytest.fixture(params=["hot", "asgi"])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    make_models(tmp_path)
    host = ModelHost(FolderCatalogue(tmp_path), max_body=LIMIT)
    with served(host, door=request.param) as found:
        yield found


def body(n: int = 1) -> bytes:
    tensor = {"name": "x", "shape": [n, 2], "datatype": "FP64", "data": [1, 2.5] * n}
    return json.dumps({"inputs": [tensor], "parameters": {"timeout": 20_000_000}}).encode()


def post(service: Served, data: bytes, model: str = "sum", **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(service.service.host, service.service.port, timeout=20)
    connection.request("POST", f"/v2/models/{model}/infer", data, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read()
    connection.close()
    return found


def raw_deflate(data: bytes) -> bytes:
    writer = zlib.compressobj(wbits=-15)
    return writer.compress(data) + writer.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [("gzip", gzip.compress), ("GZIP", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_compressed_requests_are_read(service: Served, coding: str, pack: Callable[[bytes], bytes]) -> None:
    for _ in range(2):  # the first one loads the model
        status, _, answer = post(service, pack(body()), content_encoding=coding)
        assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [3.5])
    assert post(service, body(), content_encoding="identity")[0] == 200
    assert post(service, b"  " + body())[0] == 200


def test_a_bomb_is_refused_before_it_grows(service: Served) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < LIMIT
    for model in ("sum", "slow"):
        status, _, answer = post(service, bomb, model, content_encoding="gzip")
        assert status == 413
        assert "at most 100000 bytes" in json.loads(answer)["error"]
    # It fits exactly, or is one byte too long.
    padded = body() + b" " * (LIMIT - len(body()))
    assert post(service, gzip.compress(padded), content_encoding="gzip")[0] == 200
    assert post(service, gzip.compress(padded + b" "), content_encoding="gzip")[0] == 413


def test_damaged_and_unknown_codings(service: Served) -> None:
    whole = gzip.compress(body())
    for damaged in (whole[:-5], whole + b"more", b"\x1f\x8bnonsense", b""):
        status, _, answer = post(service, damaged, content_encoding="gzip")
        assert status == 400, damaged
        assert "body" in json.loads(answer)["error"]
    status, headers, answer = post(service, b"\x28\xb5\x2f\xfd", content_encoding="zstd")
    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "'zstd'" in json.loads(answer)["error"]


@pytest.mark.parametrize("model", ["sum", "slow"])  # one is answered at once, one has a queue
def test_long_replies_are_compressed_for_who_asks(service: Served, model: str) -> None:
    for _ in range(2):
        status, headers, answer = post(service, body(1000), model, accept_encoding="gzip, deflate;q=0.5")
        assert (status, headers["content-encoding"], headers["vary"]) == (200, "gzip", "accept-encoding")
        assert json.loads(gzip.decompress(answer))["outputs"][0]["data"] == [3.5] * 1000
    status, headers, answer = post(service, body(1000), model, accept_encoding="deflate")
    assert headers["content-encoding"] == "deflate"
    assert json.loads(zlib.decompress(answer))["outputs"][0]["shape"] == [1000]
    for wish, rows in (("gzip", 1), ("identity", 1000), ("br", 1000), ("gzip;q=0", 1000)):
        status, headers, answer = post(service, body(rows), model, accept_encoding=wish)
        assert (status, headers["content-encoding"]) == (200, None)
        assert len(json.loads(answer)["outputs"][0]["data"]) == rows


def test_functions_alone() -> None:
    assert accepted(b"") is None
    assert accepted(b"gzip;q=nonsense") is None
    assert accepted(b"*;q=0.1") == b"gzip"
    reply = compressed(Reply(200, b"a" * (LEAST_COMPRESSED + 1), b"x-one: 1\r\n"), b"gzip")
    assert reply.headers.startswith(b"x-one: 1\r\n")
    assert inflated(reply.body, b"gzip", most=LEAST_COMPRESSED + 1) == b"a" * (LEAST_COMPRESSED + 1)
    with pytest.raises(InvalidInput, match="once it is inflated"):
        inflated(reply.body, b"gzip", most=LEAST_COMPRESSED)
