"""The hot protocol in a real server, seen from the wire."""

import asyncio
import inspect
import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.serving.conftest import Echo, Got, Wire, chunked, post, wire_to

from vitok.serving import HotRequest, Reply, Running, handlers, running


async def slow(request: Request) -> Response:
    body = await request.body()
    for _ in range(20):
        await asyncio.sleep(0)
    return PlainTextResponse(b"asgi:" + body)


async def headers(request: Request) -> Response:
    return Response(json.dumps(dict(request.headers)), media_type="application/json")


async def broken(_: Request) -> Response:
    raise KeyError("amount")


def application() -> Starlette:
    routes = [
        Route("/slow", slow, methods=["POST", "GET"]),
        Route("/headers", headers, methods=["POST"]),
        Route("/broken", broken),
    ]
    return Starlette(routes=routes, exception_handlers=handlers())


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(application(), [Echo("/hot"), Echo("/other")]) as service:
        yield service


@pytest.fixture
def wire(service: Running) -> Iterator[Wire]:
    with wire_to(service) as wire:
        yield wire


def bodies(replies: Sequence[Got]) -> list[bytes]:
    return [reply.body for reply in replies]


def problem_of(reply: Got) -> dict[str, Any]:
    assert reply.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = json.loads(reply.body)
    assert document["status"] == reply.status
    return document


def test_what_the_protocol_leans_on_exists() -> None:
    from uvicorn import Server
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
    from uvicorn.server import ServerState

    source = inspect.getsource(HttpToolsProtocol)
    for name in (
        "app", "loop", "parser", "url", "headers", "expect_100_continue", "cycle", "pipeline", "flow", "transport",
        "server_state", "timeout_keep_alive", "timeout_keep_alive_task",
    ):  # fmt: skip
        assert f"self.{name}" in source, name
    for name in (
        "connection_made", "connection_lost", "eof_received", "shutdown", "timeout_keep_alive_handler", "data_received",
        "_unset_keepalive_if_required", "on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body",
        "on_message_complete",
    ):  # fmt: skip
        assert callable(getattr(HttpToolsProtocol, name)), name
    cycle = inspect.getsource(RequestResponseCycle)
    for name in ("response_complete", "response_started", "more_body", "keep_alive", "disconnected", "message_event"):
        assert f"self.{name}" in cycle, name
    for name in ("pause_reading", "resume_reading", "pause_writing", "resume_writing"):
        assert callable(getattr(FlowControl, name)), name
    assert "self._transport" in inspect.getsource(FlowControl)
    assert {"default_headers", "total_requests"} <= set(vars(ServerState()))
    # The new app of a gated request is read from the attribute, and the scope's headers are the protocol's list.
    assert "app = self.app" in inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert '"headers": self.headers' in inspect.getsource(HttpToolsProtocol.on_message_begin)
    for name in ("startup", "capture_signals", "handle_exit", "run"):
        assert callable(getattr(Server, name)), name


def test_hot_and_asgi_on_one_port(wire: Wire) -> None:
    wire.send(post(b"{}"))
    reply = wire.reply()
    assert reply.status == 200
    assert reply.body == b"hot:{}"
    assert reply.headers["content-type"] == "application/json"
    assert "date" in reply.headers
    assert "server" not in reply.headers
    wire.send(post(b"x", path="/slow"))
    assert wire.reply().body == b"asgi:x"


def test_an_empty_body_is_a_request(wire: Wire) -> None:
    wire.send(b"POST /hot HTTP/1.1\r\nhost: test\r\n\r\n" + post(b""))
    assert bodies(wire.replies(2)) == [b"hot:", b"hot:"]


def test_the_endpoint_sees_headers_and_arrival() -> None:
    echo = Echo()
    with running(application(), [echo]) as service, wire_to(service) as wire:
        wire.send(post(b"{}", headers="X-Request-Id: 17\r\n") + post(b"{}"))
        wire.replies(2)
    first, second = echo.seen
    assert first.header(b"x-request-id") == b"17"
    assert first.header(b"x-other") is None
    assert second.header(b"x-request-id") is None
    assert 0 < first.arrived <= second.arrived


def test_the_key_is_noted_while_the_head_is_read() -> None:
    echo = Echo()
    heads = [
        "Authorization: Basic x\r\nX-API-Key: vitok_1\r\nAuthorization: Bearer vitok_2\r\n",
        "authorization: bearer vitok_2\r\nx-api-key: vitok_1\r\n",
        "X-Other: Bearer vitok_3\r\n",
        "X-API-KEY: \r\n",
    ]
    with running(application(), [echo]) as service, wire_to(service) as wire:
        wire.send(b"".join(post(b"{}", headers=head) for head in heads))
        wire.replies(len(heads))
    assert [request.shown for request in echo.seen] == [b" vitok_1", b"bearer vitok_2", None, b" "]


def test_a_pipeline_comes_in_lists() -> None:
    echo = Echo()
    with running(application(), [echo], max_batch=32) as service, wire_to(service) as wire:
        wire.send(b"".join(post(b"%d" % i) for i in range(200)))
        assert bodies(wire.replies(200)) == [b"hot:%d" % i for i in range(200)]
    assert sum(echo.sizes) == 200
    assert max(echo.sizes) == 32
    assert service.door.requests == 200
    assert service.door.batches == len(echo.sizes)


def test_hot_and_asgi_in_one_pipeline_keep_order(wire: Wire) -> None:
    paths = ["/hot", "/hot", "/slow", "/hot", "/slow", "/slow", "/other", "/hot", "/hot?x=1", "/hot"]
    wire.send(b"".join(post(b"%d" % i, path=path) for i, path in enumerate(paths)))
    expected = [(b"asgi:%d" if path == "/slow" else b"hot:%d") % i for i, path in enumerate(paths)]
    assert bodies(wire.replies(len(paths))) == expected


def test_a_long_hot_queue_goes_before_the_asgi_request() -> None:
    with running(application(), [Echo()], max_batch=2) as service, wire_to(service) as wire:
        wire.send(b"".join(post(b"%d" % i) for i in range(9)) + post(b"a", path="/slow") + post(b"z"))
        assert bodies(wire.replies(11)) == [*(b"hot:%d" % i for i in range(9)), b"asgi:a", b"hot:z"]


_KINDS: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "hot": lambda i: (post(b"%d" % i), b"hot:%d" % i),
    "other": lambda i: (post(b"%d" % i, path="/other"), b"hot:%d" % i),
    "chunked": lambda i: (chunked(b"%d" % i, b"+", b"x" * 50), b"hot:%d+" % i + b"x" * 50),
    "slow": lambda i: (post(b"%d" % i, path="/slow"), b"asgi:%d" % i),
    "query": lambda i: (post(b"%d" % i, path="/hot?a=b"), b"hot:%d" % i),
    "upgrade": lambda i: (post(b"%d" % i, headers="connection: Upgrade\r\nupgrade: h2c\r\n"), b"hot:%d" % i),
    "upgrade slow": lambda i: (
        post(b"%d" % i, path="/slow", headers="connection: Upgrade\r\nupgrade: websocket\r\n"),
        b"asgi:%d" % i,
    ),
    "get": lambda i: (b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n", b"asgi:"),
    "large": lambda i: (post(b"y" * 40_000), b"hot:" + b"y" * 40_000),
}


@given(st.lists(st.sampled_from(sorted(_KINDS)), min_size=1, max_size=25), st.data())
def test_any_mix_cut_anywhere_is_answered_in_order(service: Running, kinds: list[str], data: st.DataObject) -> None:
    pairs = [_KINDS[kind](i) for i, kind in enumerate(kinds)]
    stream = b"".join(request for request, _ in pairs)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    with wire_to(service) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            wire.send(stream[start:end])
        assert bodies(wire.replies(len(pairs))) == [expected for _, expected in pairs]


def test_byte_by_byte(wire: Wire) -> None:
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post(b"ab") + chunked(b"a", b"bc", trailer="x-late: 1\r\n"):
        wire.send(bytes([byte]))
    assert bodies(wire.replies(2)) == [b"hot:ab", b"hot:abc"]


def test_connection_close_ends_the_connection_after_the_reply(wire: Wire) -> None:
    wire.send(post(b"1") + post(b"2", headers="connection: close\r\n") + post(b"3"))
    first, second = wire.replies(2)
    assert "connection" not in first.headers
    assert second.headers["connection"] == "close"
    assert second.body == b"hot:2"
    assert wire.ended()


def test_http_1_0_closes(wire: Wire) -> None:
    wire.send(post(b"1", version="1.0", headers="connection: keep-alive\r\n"))
    assert wire.reply().body == b"hot:1"
    assert wire.ended()


def test_expect_100_continue(wire: Wire) -> None:
    head, body = post(b"0" * 2000, headers="expect: 100-continue\r\n").split(b"\r\n\r\n")
    wire.send(post(b"before") + head + b"\r\n\r\n")
    assert wire.reply().body == b"hot:before"
    assert wire.reply().status == 100
    wire.send(body + post(b"after"))
    assert bodies(wire.replies(2)) == [b"hot:" + b"0" * 2000, b"hot:after"]


def test_a_body_over_the_limit_is_refused_at_once(wire: Wire) -> None:
    head = b"POST /hot HTTP/1.1\r\nhost: test\r\ncontent-length: 65537\r\n\r\n"
    wire.send(post(b"1") + head)
    assert wire.reply().body == b"hot:1"
    reply = wire.reply()
    assert reply.status == 413
    assert problem_of(reply)["field"] == "body"
    assert reply.headers["connection"] == "close"
    assert wire.ended()


def test_a_client_that_sends_its_large_body_all_the_same_gets_the_refusal(wire: Wire) -> None:
    wire.send(post(b"1" * 1_000_000))
    assert wire.reply().status == 413
    assert wire.ended()


def test_the_largest_body_is_taken(wire: Wire) -> None:
    wire.send(post(b"1" * 65_536))
    assert len(wire.reply().body) == 65_540


@pytest.mark.parametrize("path", ["/hot", "/hot?x=1"])
def test_a_chunked_body_over_the_limit(wire: Wire, path: str) -> None:
    wire.send(chunked(*[b"1" * 30_000] * 3, path=path))
    assert wire.reply().status == 413


def test_bodies_over_the_limit_on_the_asgi_road(wire: Wire) -> None:
    wire.send(post(b"1" * 70_000, path="/hot?x=1") + post(b"2" * 1_100_000, path="/slow") + post(b"3", path="/slow"))
    first, second, third = wire.replies(3)
    assert problem_of(first)["field"] == "body"
    assert (first.status, second.status) == (413, 413)
    assert third.body == b"asgi:3"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods(wire: Wire, method: str) -> None:
    wire.send(post(b"", method=method))
    reply = wire.reply()
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert problem_of(reply)["detail"].startswith(method)


def test_errors_of_the_application_are_problem_documents(wire: Wire) -> None:
    wire.send(post(b"", path="/nowhere") + post(b"", method="DELETE", path="/slow") + post(b"", path="/%zz"))
    missing, method, odd = wire.replies(3)
    assert (missing.status, method.status, odd.status) == (404, 405, 404)
    assert problem_of(missing)["detail"] == "Not Found: POST /nowhere"
    assert "POST" in method.headers["allow"]


def test_a_fault_of_the_application_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with running(application()) as service, wire_to(service) as wire:
        wire.send(post(b"", method="GET", path="/broken"))
        reply = wire.reply()
    assert problem_of(reply)["title"] == "Internal Server Error"
    assert "amount" not in reply.body.decode()
    assert "KeyError: 'amount'" in caplog.text


MALFORMED = [
    b"\x00\x01\x02\r\n\r\n",
    b"POST /hot HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /hot HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    b"POST /hot HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /hot HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /hot HTTP/9.9\r\n\r\n",
    b"POST /hot HTTP/1.1\r\nbad header\r\n\r\n",
    b"BREW /hot HTTP/1.1\r\n\r\n",
    b"POST /h\xc3\xa4t HTTP/1.1\r\n\r\n",
    b"CONNECT example.org:443 HTTP/1.1\r\n\r\n",
    b"POST http://[bad HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_requests(wire: Wire, data: bytes) -> None:
    wire.send(post(b"1") + data)
    assert wire.reply().body == b"hot:1"
    reply = wire.reply()
    assert reply.status == 400
    assert problem_of(reply)["title"] == "Bad Request"
    assert wire.ended()


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_behind_an_asgi_request_ends_the_connection_after_its_reply(wire: Wire, data: bytes) -> None:
    wire.send(post(b"1", path="/slow") + data)
    assert wire.reply().body == b"asgi:1"
    if b"chunked\r\n\r\nzz" in data:
        assert wire.reply().status == 400
    assert wire.ended()


def test_a_malformed_body_on_the_asgi_road(wire: Wire) -> None:
    wire.send(post(b"1") + chunked(b"a", path="/slow")[:-5] + b"zz\r\n")
    assert wire.reply().body == b"hot:1"
    assert wire.reply().status == 400
    assert wire.ended()


@given(st.binary(min_size=1, max_size=300))
def test_noise_never_harms_the_server(service: Running, noise: bytes) -> None:
    with wire_to(service) as wire:
        wire.send(noise)
        wire.socket.shutdown(socket.SHUT_WR)
        wire.ended()
        assert wire.buffer == b"" or wire.buffer.startswith(b"HTTP/1.1 4")
    with wire_to(service) as wire:
        wire.send(post(b"alive"))
        assert wire.reply().body == b"hot:alive"


FLOODS = {
    "many": b"POST /hot HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(200)) + b"\r\n",
    "long": b"POST /hot HTTP/1.1\r\nx-long: " + b"a" * 100_000 + b"\r\n\r\n",
    "long path": b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "endless": b"POST /hot HTTP/1.1\r\nx-long: " + b"a" * 1_000_000,
    "trailers": chunked(b"a")[:-2] + b"x-long: " + b"a" * 1_000_000,
    "on the other road": b"POST /slow HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % i for i in range(200)) + b"\r\n",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_floods_of_headers(wire: Wire, flood: bytes) -> None:
    wire.send(flood)
    assert wire.reply().status == 431
    assert wire.ended()


def test_trailers_do_not_become_headers() -> None:
    echo = Echo()
    with running(application(), [echo]) as service, wire_to(service) as wire:
        wire.send(chunked(b"a", trailer="x-role: admin\r\n"))
        wire.send(chunked(b"", path="/headers", trailer="x-role: admin\r\n"))
        assert wire.reply().body == b"hot:a"
        assert "x-role" not in json.loads(wire.reply().body)
    assert echo.seen[0].header(b"x-role") is None


def test_a_half_closed_client_gets_all_its_replies(wire: Wire) -> None:
    wire.send(post(b"1") + post(b"2") + post(b"3", path="/slow"))
    wire.socket.shutdown(socket.SHUT_WR)
    assert bodies(wire.replies(3)) == [b"hot:1", b"hot:2", b"asgi:3"]
    assert wire.ended()


def test_a_half_closed_client_with_half_a_request(wire: Wire) -> None:
    wire.send(post(b"1") + post(b"22")[:-1])
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.reply().body == b"hot:1"
    assert wire.ended()


class Held(Echo):
    """Answers only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        self.entered.set()
        assert self.released.wait(10)
        return super().handle(requests)


def test_a_client_that_leaves_does_not_harm_the_batch() -> None:
    held = Held()
    with running(application(), [held]) as service, wire_to(service) as stays:
        with wire_to(service) as leaves:
            leaves.send(post(b"left") * 3)
            assert held.entered.wait(10)
            # With linger 0 the connection is reset, not closed.
            leaves.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stays.send(post(b"stays"))
        held.released.set()
        assert stays.reply().body == b"hot:stays"
        stays.send(post(b"again"))
        assert stays.reply().body == b"hot:again"
    assert [request.body for request in held.seen].count(b"left") == 3


def test_a_client_that_does_not_read_is_not_read() -> None:
    class Large(Echo):
        def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
            super().handle(requests)
            return [Reply(200, request.body * 1000) for request in requests]

    large, n_requests = Large(), 40_000
    with running(application(), [large]) as service, wire_to(service) as wire:
        stream = memoryview(post(b"12345678") * n_requests)
        wire.socket.setblocking(False)
        while stream and select.select([], [wire.socket], [], 0.5)[1]:
            stream = stream[wire.socket.send(stream) :]
        handled = len(large.seen)
        assert handled < n_requests
        with wire_to(service) as other:
            other.send(post(b"1"))
            assert len(other.reply().body) == 1000
        got, wire.buffer = 0, b""
        while stream or got < handled * 8000:
            readable, writable, _ = select.select([wire.socket], [wire.socket] if stream else [], [], 10)
            assert readable or writable
            if readable:
                got += len(wire.socket.recv(1 << 20))
            if writable:
                stream = stream[wire.socket.send(stream) :]
    assert len(large.seen) > handled


def test_an_endpoint_that_raises_gives_500_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Picky(Echo):
        def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
            if any(request.body == b"bad" for request in requests):
                raise KeyError("amount")
            return super().handle(requests)

    with running(application(), [Picky()]) as service, wire_to(service) as wire:
        wire.send(post(b"bad"))
        reply = wire.reply()
        assert problem_of(reply)["title"] == "Internal Server Error"
        wire.send(post(b"good"))
        assert wire.reply().body == b"hot:good"
        wire.send(post(b"bad", path="/hot?x=1"))
        assert wire.reply().status == 500
    assert service.door.faults == 2
    assert "KeyError" in caplog.text


def test_idle_connections_are_closed() -> None:
    with (
        running(application(), [Echo()], idle_seconds=1) as service,
        wire_to(service) as silent,
        wire_to(service) as used,
        wire_to(service) as asgi,
    ):
        used.send(post(b"1"))
        assert used.reply().body == b"hot:1"
        asgi.send(post(b"1", path="/slow"))
        assert asgi.reply().body == b"asgi:1"
        assert silent.ended()
        assert used.ended()
        assert asgi.ended()


def test_a_request_half_sent_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitok.serving.protocol.REQUEST_SECONDS", 0.2)
    with running(application(), [Echo()], idle_seconds=1) as service, wire_to(service) as hot, wire_to(service) as asgi:
        hot.send(post(b"12")[:-1])
        asgi.send(post(b"12", path="/slow")[:-1])
        assert hot.ended()
        assert asgi.ended()
