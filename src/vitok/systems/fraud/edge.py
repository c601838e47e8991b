"""What stands before the service: who may ask for decisions, send outcomes, and look at what was decided."""

import base64
import binascii
import time
from typing import Any

from vitok.errors import InvalidInput
from vitok.serving import HotRequest, Reply
from vitok.serving.asgi import send_reply
from vitok.serving.guarded import Guard
from vitok.systems.fraud.messages import SYSTEM

DECIDE, LEARN, READ = (f"{right}:{SYSTEM}" for right in ("decide", "learn", "read"))
OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json")
"""Paths that probes and scrapers read without a key."""
OUTCOMES = "/v1/outcomes"
_BROWSER = b'Basic realm="vitok: any name, and a key as the password"'


class GuardedApplication:
    """An ASGI application behind the guard of the service, by the scopes `learn:fraud` and `read:fraud`.

    A browser, which can send no key by itself, asks for one: it goes into the field of the password.

    Args:
        app: Outcomes, look-ups and the console.
        guard: The guard; it stands before decisions as well, with the scope `decide:fraud`.
    """

    def __init__(self, app: Any, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request, as ASGI has it."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        peer = scope["client"][0] if scope.get("client") else ""
        reads = scope["path"] != OUTCOMES
        # A browser adds its password by itself, to whatever page has it send something: good enough for reading only.
        headers = _with_key(scope["headers"]) if reads else scope["headers"]
        refused = self._guard.refusal(HotRequest(b"", time.perf_counter_ns(), headers, peer), READ if reads else LEARN)
        if refused is None:
            await self._app(scope, receive, send)
        elif refused.status == 401 and reads and _shows_pages(headers):
            await send_reply(Reply(401, refused.body), send, ((b"www-authenticate", _BROWSER),))
        else:
            await send_reply(refused, send)


def _with_key(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    # A key that a browser sends as a password is shown as any other.
    return [
        (name, b"Bearer " + _password(value[6:]) if name == b"authorization" and _is_basic(value) else value)
        for name, value in headers
    ]


def _is_basic(value: bytes) -> bool:
    return value[:6].lower() == b"basic "


def _password(encoded: bytes) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _shows_pages(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"accept" and b"text/html" in value for name, value in headers)


def one_process(workers: int) -> None:
    """Says why the service is one process.

    Raises:
        InvalidInput: If there is to be another number of them.
    """
    if workers != 1:
        raise InvalidInput(
            "--workers",
            workers,
            "be 1: the windows of customers and terminals are counted in one process, in the order of arrival, and two "
            "would each see half of a customer's payments",
            "Give each part of the customers a service and a home of its own, or serve the model alone from as many "
            "processes as you like with vitok serve-models",
        )
