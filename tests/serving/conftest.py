"""A raw socket's view of a service: what a client sends and gets, byte by byte."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest

from vitok.serving import HotRequest, Reply, Running

# It is run by another Python, which has what it asks with.
collect_ignore = ["triton_calls.py"]


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Echo:
    """Gives back each body, and keeps the sizes of the lists it got."""

    def __init__(self, path: str = "/hot") -> None:
        self.path = path
        self.sizes: list[int] = []
        self.seen: list[HotRequest] = []

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        self.sizes.append(len(requests))
        self.seen.extend(requests)
        return [Reply(200, b"hot:" + request.body) for request in requests]


class Wire:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def more(self) -> bool:
        data = self.socket.recv(65_536)
        self.buffer += data
        return bool(data)

    def reply(self) -> Got:
        while b"\r\n\r\n" not in self.buffer:
            assert self.more(), f"the connection ended in {self.buffer!r}"
        head, _, rest = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        self.buffer = rest
        while len(self.buffer) < length:
            assert self.more(), "the connection ended in a body"
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Got(int(first.split()[1]), headers, body)

    def replies(self, count: int) -> list[Got]:
        return [self.reply() for _ in range(count)]

    def ended(self) -> bool:
        """Waits for the server to close; True if nothing came before."""
        try:
            while self.more():
                pass
        except ConnectionResetError:
            return True
        return self.buffer == b""


@contextlib.contextmanager
def wire_to(service: Running) -> Iterator[Wire]:
    with socket.create_connection((service.host, service.port), timeout=10) as connection:
        yield Wire(connection)


def post(body: bytes, *, path: str = "/hot", headers: str = "", method: str = "POST", version: str = "1.1") -> bytes:
    head = f"{method} {path} HTTP/{version}\r\nhost: test\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def chunked(*parts: bytes, path: str = "/hot", trailer: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return (
        head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer.encode() + b"\r\n"
    )


def called(app: Any, method: str, path: str, *chunks: bytes, raises: type[Exception] | None = None) -> Got:
    """Calls an ASGI application without a server; what it raises after its answer must be `raises`."""
    incoming = [
        {"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)} for i, chunk in enumerate(chunks)
    ] or [{"type": "http.request", "body": b"", "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return incoming.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-length", b"%d" % len(chunks[0]))] if len(chunks) == 1 else [],
    }
    with pytest.raises(raises) if raises else contextlib.nullcontext():
        asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0].get("headers", [])}
    return Got(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))
