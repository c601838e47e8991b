"""Problem documents (RFC 9457): how every error leaves the service, and handlers that make Starlette's errors such."""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

from vitok.errors import Conflict, InvalidInput, NotFound, ServiceError, StoreError, VitokError
from vitok.serving.messages import Reply

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"

_PATH = re.compile(r"^(?P<rule>.*?) - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_NAMED = re.compile(r"^(?P<rule>Object (?:missing required|contains unknown) field) `(?P<name>.*)`", re.DOTALL)
_BYTE = re.compile(r"\(byte (\d+)\)$")
_KEY = re.compile(rb'"((?:[^"\\]|\\.){1,200})"\s*:')
_STATUS: Mapping[type[VitokError], int] = {
    InvalidInput: 422,
    NotFound: 404,
    Conflict: 409,
    StoreError: 503,
    ServiceError: 503,
}


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    field: str | None = None,
    errors: Sequence[Mapping[str, object]] | None = None,
    headers: bytes = b"",
) -> Reply:
    r"""Writes a problem document.

    Args:
        status: Status code of HTTP, 400 to 599.
        title: The kind of problem in a few words, the same each time it occurs.
        detail: What is wrong this time and what to do.
        field: The field of the request that is wrong, where there is one.
        errors: All that is wrong, where it is more than one thing: mappings with `field` and `detail`.
        headers: Further header lines, each ended by CR LF.

    Example:
        >>> problem(422, "Invalid input", "amount: got -3.0", field="amount").body.decode()
        '{"type":"about:blank","title":"Invalid input","status":422,"detail":"amount: got -3.0","field":"amount"}'
    """
    document: dict[str, object] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if field is not None:
        document["field"] = field
    if errors is not None:
        document["errors"] = [dict(error) for error in errors]
    return Reply(status, msgspec.json.encode(document), headers)


def from_error(error: VitokError) -> Reply:
    """Writes an error of vitok as a problem document, with the status that fits its kind (else 500).

    Example:
        >>> from_error(NotFound("decision", "17")).status
        404
    """
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
    if status == 500:
        return FAULT
    title = "Invalid input" if status == 422 else HTTPStatus(status).phrase
    return problem(status, title, str(error), field=error.field if isinstance(error, InvalidInput) else None)


UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a wrong body: also text that is not UTF-8, and brackets nested too deeply. Catch all."""


def from_decode_error(error: Exception, body: bytes = b"") -> Reply:
    """Writes what msgspec says about a body as a problem document that names the field.

    Args:
        error: One of `UNDECODABLE`: a `msgspec.ValidationError` (status 422), or else the body is no JSON (status 400).
        body: The body, where at hand: for a body that is no JSON, the field is the last key before the fault.

    Example:
        >>> class Payment(msgspec.Struct):
        ...     amount: float
        >>> try:
        ...     msgspec.json.decode(b'{"amount": "much"}', type=Payment)
        ... except UNDECODABLE as error:
        ...     print(msgspec.json.decode(from_decode_error(error).body)["detail"])
        amount: Expected `float`, got `str`
    """
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        rule, path = text, ""
        if match := _PATH.match(text):
            rule, path = match["rule"], match["path"]
        if match := _NAMED.match(rule):
            rule, path = match["rule"], f"{path}.{match['name']}" if path else match["name"]
        return problem(422, "Invalid input", f"{path}: {rule}" if path else rule, field=path or None)
    field = None
    # Without a position the fault is the end of the body, as in a body that was cut off.
    place = int(match[1]) if (match := _BYTE.search(text)) else len(body)
    if isinstance(error, UnicodeDecodeError):
        place, text = _not_utf8(body), "Text must be UTF-8"
    elif isinstance(error, RecursionError):
        place, text = 0, "JSON is nested too deeply"
    if keys := _KEY.findall(body[:place]):
        field = keys[-1].decode("utf-8", "replace")
    return problem(400, "Not JSON", f"{field}: {text}" if field else text, field=field)


def _not_utf8(body: bytes) -> int:
    # The error counts from the start of one string; the whole body tells the place.
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(body)


FAULT = problem(500, "Internal Server Error", "The fault is ours; it has been logged")

_Handler = Callable[["Request", Exception], Awaitable["Response"]]


def handlers() -> dict[Any, _Handler]:
    """Returns exception handlers for `Starlette(exception_handlers=...)`: every error becomes a problem document.

    Wrong paths and methods keep their status and headers; errors of vitok and of msgspec get theirs as in
    `from_error` and `from_decode_error`; anything else is a fault of ours: 500, and the server logs the traceback.
    """
    from starlette.exceptions import HTTPException
    from starlette.responses import Response

    def response(reply: Reply, headers: Mapping[str, str] | None = None) -> Response:
        return Response(reply.body, reply.status, dict(headers or {}), media_type=MEDIA_TYPE)

    async def http(request: "Request", error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        if error.status_code < 400 or error.status_code in (204, 304):
            return Response(status_code=error.status_code, headers=error.headers)
        title = HTTPStatus(error.status_code).phrase
        detail = error.detail if error.detail != title else f"{title}: {request.method} {request.url.path}"
        return response(problem(error.status_code, title, detail), error.headers)

    async def known(_: "Request", error: Exception) -> Response:
        assert isinstance(error, VitokError)  # noqa: S101
        return response(from_error(error))

    async def undecodable(_: "Request", error: Exception) -> Response:
        if isinstance(error, RecursionError):
            # Most likely a body, but it may be a fault of ours.
            logging.getLogger("vitok.serving").warning("recursion", exc_info=error)
        return response(from_decode_error(error))

    async def not_json(_: "Request", error: Exception) -> Response:
        return response(problem(400, "Not JSON", str(error)))

    async def fault(_request: "Request", _error: Exception) -> Response:
        return response(FAULT)

    return {
        HTTPException: http,
        InvalidInput: known,
        NotFound: known,
        Conflict: known,
        StoreError: known,
        ServiceError: known,
        **dict.fromkeys(UNDECODABLE, undecodable),
        json.JSONDecodeError: not_json,
        Exception: fault,
    }
