"""The inference endpoint by itself: what it reads, what it refuses, and what it writes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from vitok.serving import HotRequest, Reply, Runtime
from vitok.serving.inference import Hosted, InferEndpoint
from vitok.serving.runners import CallableRunner
from vitok.serving.tensors import TensorSpec


class Sums:
    """Adds up the columns, and remembers how many rows each run had."""

    def __init__(self, *, width: int = 3) -> None:
        self.runs: list[int] = []
        self.fail = False
        self.runner = CallableRunner(
            self.run,
            [TensorSpec("x", "FP64", (-1, width))],
            [TensorSpec("sum", "FP64", (-1,)), TensorSpec("parts", "FP64", (-1, width))],
        )

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.fail:
            raise RuntimeError("no memory")
        self.runs.append(len(tensors["x"]))
        return {"sum": tensors["x"].sum(axis=1), "parts": tensors["x"]}


def rows_body(rows: Sequence[Sequence[float | None]], **more: Any) -> dict[str, Any]:
    flat = [value for row in rows for value in row]
    width = len(rows[0]) if rows else 3
    return {"inputs": [{"name": "x", "shape": [len(rows), width], "datatype": "FP64", "data": flat}], **more}


def ask(endpoint: InferEndpoint, *bodies: Any, headers: Sequence[tuple[bytes, bytes]] = ()) -> list[Reply]:
    data = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
    replies = endpoint.handle([HotRequest(body, 0, list(headers)) for body in data])
    return [reply for reply in replies if isinstance(reply, Reply)]


def outputs(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply
    return {item["name"]: item for item in json.loads(reply.body)["outputs"]}


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
def endpoint(sums: Sums) -> InferEndpoint:
    return InferEndpoint(Hosted("sums", Runtime(sums.runner, version="sums/3")))


def test_requests_of_a_turn_are_one_run_and_each_gets_its_own_rows(endpoint: InferEndpoint, sums: Sums) -> None:
    replies = ask(
        endpoint,
        rows_body([[1, 2, 3]], id="a"),
        rows_body([[4, 5, 6], [7, 8, 9]]),
        rows_body([], id="none"),
        rows_body([[0.5, None, 1]], id="gap"),
        {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP64", "data": [[1, 1, 1]]}], "id": "nested"},
    )
    assert sums.runs == [5]
    first = json.loads(replies[0].body)
    assert (first["model_name"], first["model_version"], first["id"]) == ("sums", "3", "a")
    assert outputs(replies[0])["sum"] == {"name": "sum", "datatype": "FP64", "shape": [1], "data": [6.0]}
    assert outputs(replies[0])["parts"]["shape"] == [1, 3]
    assert outputs(replies[1])["sum"]["data"] == [15.0, 24.0]
    assert outputs(replies[1])["parts"]["data"] == [4, 5, 6, 7, 8, 9]
    assert "id" not in json.loads(replies[1].body)
    assert outputs(replies[2])["sum"] == {"name": "sum", "datatype": "FP64", "shape": [0], "data": []}
    assert outputs(replies[3])["sum"]["data"] == [None]
    assert outputs(replies[4])["sum"]["data"] == [3.0]
    assert endpoint.hosted.counts == {"requests": 5, "rows": 5, "refused": 0, "failed": 0, "batches": 1}
    assert endpoint.hosted.latency.count == 5


def test_many_rows_make_room(endpoint: InferEndpoint, sums: Sums) -> None:
    rows = np.arange(3000.0).reshape(1000, 3)
    (reply,) = ask(endpoint, rows_body(rows.tolist()))
    np.testing.assert_array_equal(outputs(reply)["sum"]["data"], rows.sum(axis=1))
    replies = ask(endpoint, *(rows_body([[i, 0, 0]]) for i in range(600)))
    assert [outputs(reply)["sum"]["data"] for reply in replies] == [[float(i)] for i in range(600)]


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"name": "y"}, 422, "inputs[0].name: got 'y', must be one of x"),
        ({"shape": [1, 2]}, 422, "inputs[0].data: got '3 values', must be 2, as the shape [1, 2] says"),
        ({"shape": [3]}, 422, "inputs[0].shape: got [3], must be [-1, 3], where -1 is any length"),
        ({"shape": [-1, 3]}, 422, "inputs[0].shape: got [-1, 3], must have lengths of 0 or more"),
        ({"datatype": "FP32"}, 422, "inputs[0].datatype: got 'FP32', must be FP64, which x has"),
        ({"datatype": "FP8"}, 422, "inputs[0].datatype: got 'FP8', must be FP64, which x has"),
        ({"data": [1, 2]}, 422, "inputs[0].data: got '2 values', must be 3, as the shape [1, 3] says"),
        ({"data": [1, 2, "3"]}, 422, "must be numbers"),
        ({"data": [[1, 2], [3]]}, 422, "must be rows of one length"),
        ({"data": None}, 422, "must be 3, as the shape [1, 3] says"),
        ({"shape": "x"}, 422, "inputs[0].shape: Expected `array`, got `str`"),
        ({"parameters": {"binary_data_size": 24}}, 422, "inputs[0].data: got 'values', must not be there beside"),
    ],
)
def test_a_wrong_input_refuses_its_own_request_only(
    endpoint: InferEndpoint, sums: Sums, change: Mapping[str, Any], status: int, message: str
) -> None:
    wrong = rows_body([[1, 2, 3]])
    wrong["inputs"][0].update(change)
    replies = ask(endpoint, rows_body([[1, 1, 1]]), wrong, rows_body([[2, 2, 2]]))
    assert [reply.status for reply in replies] == [200, status, 200]
    document = json.loads(replies[1].body)
    assert message in document["detail"]
    assert document["error"] == document["detail"]
    assert outputs(replies[2])["sum"]["data"] == [6.0]
    assert sums.runs == [2]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "truncated"),
        (b"{", 400, "truncated"),
        (b"[]", 422, "Expected `object`, got `array`"),
        (b"\xff\xfe", 400, "malformed"),
        ({}, 422, "inputs: Object missing required field"),
        ({"inputs": []}, 422, "inputs: got [], must hold x"),
        ({"inputs": [], "id": 5}, 422, "id: Expected `str`"),
        (rows_body([[1, 2, 3]], outputs=[{"name": "none"}]), 422, "outputs[0].name: got 'none', must be one of"),
        (rows_body([[1, 2, 3]], parameters={"explain": 1}), 422, "parameters.explain: got 1, must be true or false"),
        (
            rows_body([[1, 2, 3]], outputs=[{"name": "sum", "parameters": {"classification": 2}}]),
            422,
            "outputs[0].parameters.classification",
        ),
    ],
)
def test_bodies_that_are_refused(endpoint: InferEndpoint, body: Any, status: int, message: str) -> None:
    (reply,) = ask(endpoint, body)
    assert reply.status == status
    assert message in json.loads(reply.body)["detail"]
    assert endpoint.hosted.counts["refused"] == 1


def test_twice_the_same_input(endpoint: InferEndpoint) -> None:
    body = rows_body([[1, 2, 3]])
    body["inputs"] *= 2
    (reply,) = ask(endpoint, body)
    assert "inputs[1].name: got 'x', must be given once" in json.loads(reply.body)["detail"]


def test_only_the_outputs_that_are_wanted_and_an_account_of_the_batch(endpoint: InferEndpoint) -> None:
    replies = ask(
        endpoint,
        rows_body([[1, 2, 3]], outputs=[{"name": "sum"}]),
        rows_body([[1, 2, 3], [1, 2, 3]], parameters={"explain": True}),
    )
    assert list(outputs(replies[0])) == ["sum"]
    told = json.loads(replies[1].body)["parameters"]
    assert (told["batch_rows"], told["batch_requests"]) == (3, 2)
    assert told["waited_us"] >= 0


def binary(head: Mapping[str, Any], *tensors: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    text = json.dumps(head).encode()
    return b"".join([text, *tensors]), [(b"inference-header-content-length", b"%d" % len(text))]


def test_tensors_as_bytes(endpoint: InferEndpoint) -> None:
    X = np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]])
    item = {"name": "x", "shape": [2, 3], "datatype": "FP64", "parameters": {"binary_data_size": X.nbytes}}
    body, headers = binary({"inputs": [item], "parameters": {"binary_data_output": True}}, X.tobytes())
    (reply,) = ask(endpoint, body, headers=headers)
    assert reply.media_type == b"application/octet-stream"
    length = int(reply.headers.partition(b": ")[2])
    found = json.loads(reply.body[:length])["outputs"]
    assert [item["parameters"]["binary_data_size"] for item in found] == [16, 48]
    np.testing.assert_array_equal(np.frombuffer(reply.body[length : length + 16]), [np.nan, 15.0])
    np.testing.assert_array_equal(np.frombuffer(reply.body[length + 16 :]).reshape(2, 3), X)
    mixed = {"inputs": [item], "outputs": [{"name": "parts", "parameters": {"binary_data": True}}, {"name": "sum"}]}
    body, headers = binary(mixed, X.tobytes())
    (reply,) = ask(endpoint, body, headers=headers)
    length = int(reply.headers.partition(b": ")[2])
    assert outputs(Reply(200, reply.body[:length]))["sum"]["data"] == [None, 15.0]


def test_a_body_of_bytes_alone(endpoint: InferEndpoint) -> None:
    X = np.arange(6.0)
    zero = [(b"inference-header-content-length", b"0")]
    (reply,) = ask(endpoint, X.tobytes(), headers=zero)
    assert outputs(reply)["sum"]["data"] == [3.0, 12.0]
    (reply,) = ask(endpoint, X.tobytes()[:-1], headers=zero)
    assert "a whole number of rows of 24 bytes" in json.loads(reply.body)["detail"]


@pytest.mark.parametrize(
    ("size", "tail", "length", "message"),
    [
        (24, b"", None, "must be at most 0, the bytes that are left of the body"),
        (16, bytes(24), None, "must be 24 for 3 of FP64"),
        (24, bytes(30), None, "body: got '30 bytes of tensors', must be 24"),
        (24, bytes(24), b"9999", "Inference-Header-Content-Length: got 9999, must be at most"),
        (24, bytes(24), b"-1", "must be a whole number of bytes"),
        (24, bytes(24), b"x" * 50, "must be a whole number of bytes"),
        ("24", bytes(24), None, "must be a whole number of bytes"),
        (True, bytes(24), None, "must be a whole number of bytes"),
        (-24, bytes(24), None, "must be"),
    ],
)
def test_bytes_that_do_not_fit(
    endpoint: InferEndpoint, size: Any, tail: bytes, length: bytes | None, message: str
) -> None:
    item = {"name": "x", "shape": [1, 3], "datatype": "FP64", "parameters": {"binary_data_size": size}}
    body, headers = binary({"inputs": [item]}, tail)
    if length is not None:
        headers = [(b"inference-header-content-length", length)]
    (reply,) = ask(endpoint, body, headers=headers)
    assert reply.status in (400, 422)
    assert message in json.loads(reply.body)["detail"]


def test_a_model_that_fails_refuses_the_batch_and_the_next_is_answered(endpoint: InferEndpoint, sums: Sums) -> None:
    sums.fail = True
    replies = ask(endpoint, rows_body([[1, 2, 3]]), rows_body([[1, 2, 3]]))
    assert [reply.status for reply in replies] == [503, 503]
    assert "no memory" in json.loads(replies[0].body)["error"]
    sums.fail = False
    assert ask(endpoint, rows_body([[1, 2, 3]]))[0].status == 200
    assert endpoint.hosted.counts["failed"] == 2


def test_a_row_that_breaks_a_rule_refuses_its_own_request(sums: Sums) -> None:
    def rules(X: np.ndarray) -> list[tuple[int, str, str]]:
        return [
            (int(row), "amount", f"amount: got {X[row, 0]}, must be at least 0") for row in np.flatnonzero(X[:, 0] < 0)
        ]

    hosted = Hosted("sums", Runtime(sums.runner, version="sums/1"), rules=rules)
    replies = ask(
        InferEndpoint(hosted),
        rows_body([[1, 0, 0], [2, 0, 0]]),
        rows_body([[3, 0, 0], [-4, 0, 0]]),
        rows_body([[5, 0, 0]]),
    )
    assert [reply.status for reply in replies] == [200, 422, 200]
    document = json.loads(replies[1].body)
    assert (document["field"], document["detail"]) == ("amount", "row 1: amount: got -4.0, must be at least 0")
    assert outputs(replies[0])["sum"]["data"] == [1.0, 2.0]
    assert outputs(replies[2])["sum"]["data"] == [5.0]
    assert sums.runs == [3]
    assert ask(InferEndpoint(hosted), rows_body([[-1, 0, 0]]))[0].status == 422


def test_a_version_is_swapped_between_two_batches(endpoint: InferEndpoint) -> None:
    other = Sums(width=2)
    pinned = InferEndpoint(endpoint.hosted, version="3")
    assert ask(pinned, rows_body([[1, 2, 3]]))[0].status == 200
    endpoint.hosted.runtime = Runtime(other.runner, version="sums/4")
    (reply,) = ask(endpoint, rows_body([[1, 2]]))
    assert json.loads(reply.body)["model_version"] == "4"
    (reply,) = ask(pinned, rows_body([[1, 2]]))
    assert reply.status == 404
    assert "version 3 of sums does not answer any more; sums/4 does" in json.loads(reply.body)["detail"]


def test_a_model_of_texts_and_several_inputs() -> None:
    def run(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        texts = [text.decode() * int(k) for text, k in zip(tensors["text"], tensors["times"], strict=True)]
        return {"text": np.array(texts, object), "long": np.array([len(text) > 3 for text in texts])}

    runner = CallableRunner(
        run,
        [TensorSpec("text", "BYTES", (-1,)), TensorSpec("times", "INT32", (-1,))],
        [TensorSpec("text", "BYTES", (-1,)), TensorSpec("long", "BOOL", (-1,))],
    )
    endpoint = InferEndpoint(Hosted("repeat", Runtime(runner, version="1")))

    def body(texts: list[str], times: list[int]) -> dict[str, Any]:
        return {
            "inputs": [
                {"name": "times", "shape": [len(times)], "datatype": "INT32", "data": times},
                {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": texts},
            ]
        }

    replies = ask(endpoint, body(["a,b", "ü"], [2, 3]), body(["x"], [1, 2]), body(['"'], [1]))
    assert [reply.status for reply in replies] == [200, 422, 200]
    assert outputs(replies[0])["text"]["data"] == ["a,ba,b", "üüü"]
    assert outputs(replies[0])["long"]["data"] == [True, False]
    assert outputs(replies[2])["text"] == {"name": "text", "datatype": "BYTES", "shape": [1], "data": ['"']}
    assert "must have the same number of rows" in json.loads(replies[1].body)["detail"]
