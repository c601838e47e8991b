"""Problem documents against RFC 9457, and what they say about wrong bodies."""

import json

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.serving.conftest import Got, called

from vitok.errors import Conflict, InvalidInput, NotFound, ServiceError, StoreError, VitokError
from vitok.serving import UNDECODABLE, Reply, from_decode_error, from_error, handlers, problem


class Payment(msgspec.Struct, forbid_unknown_fields=True):
    transaction_id: str
    amount: float
    items: list[int] = []


def decoded(reply: Reply) -> dict[str, object]:
    document: dict[str, object] = json.loads(reply.body)
    assert document["status"] == reply.status
    assert document["type"] == "about:blank"
    return document


def test_members() -> None:
    errors = [{"field": "a", "detail": "too small"}, {"field": "b", "detail": "missing"}]
    reply = problem(422, "Invalid input", "two fields", errors=errors, headers=b"retry-after: 1\r\n")
    assert decoded(reply)["errors"] == errors
    assert "field" not in decoded(reply)
    assert reply.headers == b"retry-after: 1\r\n"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("amount", float("nan"), "be a number"), 422),
        (NotFound("decision", "17"), 404),
        (Conflict("changed"), 409),
        (StoreError("down"), 503),
        (ServiceError("stopping"), 503),
        (VitokError("secret"), 500),
    ],
)
def test_errors_of_vitok(error: VitokError, status: int) -> None:
    document = decoded(from_error(error))
    assert document["status"] == status
    assert document.get("field") == ("amount" if status == 422 else None)
    assert "secret" not in str(document["detail"])


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b'{"transaction_id": "1"}', 422, "amount"),
        (b'{"transaction_id": "1", "amount": 1, "color": 2}', 422, "color"),
        (b'{"transaction_id": "1", "amount": "1"}', 422, "amount"),
        (b'{"transaction_id": "1", "amount": null}', 422, "amount"),
        (b'{"transaction_id": "1", "amount": 1, "items": [1, "x"]}', 422, "items[1]"),
        (b"[1]", 422, None),
        (b'{"transaction_id": "1", "amount": NaN}', 400, "amount"),
        (b'{"transaction_id": "1", "amount": Infinity, "items": []}', 400, "amount"),
        (b'{"transaction_id": "1", "amount": 1', 400, "amount"),
        (b"", 400, None),
        (b"not json", 400, None),
        (b'{"transaction_id": "\xff"}', 400, "transaction_id"),
        (b'{"transaction_id": "\xc3\xa4", "color": "\xff"}', 422, "color"),
        (b"[" * 50_000, 400, None),
    ],
)
def test_wrong_bodies_name_the_field(body: bytes, status: int, field: str | None) -> None:
    try:
        msgspec.json.decode(body, type=Payment if body[:1] != b"[" or len(body) < 9 else object)
    except UNDECODABLE as error:
        document = decoded(from_decode_error(error, body))
    assert document["status"] == status
    assert document.get("field") == field


def answer_to(error: Exception) -> Got:
    async def view(_: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", view)], exception_handlers=handlers())
    return called(app, "GET", "/", raises=KeyError if isinstance(error, KeyError) else None)


def decode_error(body: bytes) -> msgspec.DecodeError:
    with pytest.raises(msgspec.DecodeError) as caught:
        msgspec.json.decode(body, type=Payment)
    return caught.value


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(403), 403),
        (HTTPException(418, "no coffee"), 418),
        (InvalidInput("amount", -1, "be at least 0"), 422),
        (NotFound("decision", 1), 404),
        (decode_error(b"{}"), 422),
        (decode_error(b"{"), 400),
        (json.JSONDecodeError("no", "x", 0), 400),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), 400),
        (RecursionError("too deep"), 400),
        (KeyError("secret"), 500),
    ],
)
def test_handlers(error: Exception, status: int) -> None:
    answer = answer_to(error)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body)["status"] == status
    assert b"secret" not in answer.body


def test_handlers_keep_headers_and_empty_answers() -> None:
    assert answer_to(HTTPException(429, headers={"Retry-After": "2"})).headers["retry-after"] == "2"
    assert answer_to(HTTPException(304)).body == b""
