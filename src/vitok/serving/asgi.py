"""The ASGI road: the application for all that is not hot, with the hot endpoints answered here too."""

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from vitok.serving.door import Door
from vitok.serving.messages import HotRequest, Later, Reply
from vitok.serving.problems import MEDIA_TYPE, problem

MAX_ASGI_BODY = 1_048_576
DOOR = "vitok.door"
"""Where the application finds the hot door in the scope of a request."""

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Any]
_Send = Callable[[_Message], Any]


class AsgiRoad:
    """The ASGI application as the server sees it: hot endpoints are answered here too, and every body has a limit.

    A request for a hot path comes this way when it has a query, asks for `100-continue`, or stands in a pipeline
    behind a request to the application; and in tests that call the application without a server.

    Args:
        app: The application for all other paths.
        door: Whose endpoints are answered.
        max_body: Longest body that the application gets, in bytes; it gets each body in one piece.
    """

    def __init__(self, app: Any, door: Door, *, max_body: int = MAX_ASGI_BODY) -> None:
        self._app = app
        self._door = door
        self._max_body = max_body

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answers one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = self._door.table.get(scope["path"].encode())
        if endpoint is not None and scope["method"] != "POST":
            refusal = problem(405, "Method Not Allowed", f"{scope['method']}: this path takes POST only")
            await send_reply(refusal, send, ((b"allow", b"POST"),))
            return
        limit = self._max_body if endpoint is None else self._door.max_body
        body = await _read(scope, receive, limit)
        if body is None:
            detail = f"body: must be at most {limit} bytes long"
            await send_reply(problem(413, "Content Too Large", detail, field="body"), send)
        elif endpoint is None:
            scope[DOOR] = self._door
            await self._app(scope, _replayed(body, receive), send)
        else:
            peer = scope["client"][0] if scope.get("client") else ""
            request = HotRequest(body, time.perf_counter_ns(), list(scope["headers"]), peer)
            reply = self._door.answer(endpoint, [request])[0]
            await send_reply(await _known(reply) if isinstance(reply, Later) else reply, send)


async def _known(later: Later) -> Reply:
    given = asyncio.get_running_loop().create_future()

    def settle() -> None:
        if not given.done():
            given.set_result(later.reply)

    later.then(settle)
    reply: Reply = await given
    return reply


async def _read(scope: _Message, receive: _Receive, limit: int) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            return None
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return body


def _replayed(body: bytes, receive: _Receive) -> _Receive:
    messages: list[_Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> _Message:
        return messages.pop() if messages else await receive()

    return replay


async def send_reply(reply: Reply, send: _Send, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """Sends a reply of the hot door as ASGI has it, with further headers."""
    lines = [line.partition(b":") for line in reply.headers.split(b"\r\n") if line]
    headers = [
        (b"content-type", reply.media_type or (b"application/json" if reply.status < 400 else MEDIA_TYPE.encode())),
        (b"content-length", b"%d" % len(reply.body)),
        *((name.strip().lower(), value.strip()) for name, _, value in lines),
        *extra,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
