"""The pipelined client against the real service, and against servers that misbehave."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.serving.conftest import Echo

from vitok.errors import InvalidInput, ServiceError
from vitok.serving import (
    Answer,
    ConnectionBroken,
    HotRequest,
    PipelinedClient,
    Reply,
    Running,
    handlers,
    problem,
    running,
)


async def hello(request: Request) -> Response:
    return PlainTextResponse(b"hello " + await request.body())


class Picky(Echo):
    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        replies = super().handle(requests)
        return [
            problem(422, "no", "no") if request.body == b"bad" else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    app = Starlette(routes=[Route("/hello", hello, methods=["GET", "POST"])], exception_handlers=handlers())
    with running(app, [Picky()]) as service:
        yield service


def client_of(service: Running, *, window: int = 64, path: str = "/hot") -> PipelinedClient:
    return PipelinedClient(service.host, service.port, path, window=window, timeout=10)


@pytest.mark.parametrize("window", [1, 2, 64, 5000])
@pytest.mark.parametrize("count", [0, 1, 2, 64, 128, 1000])
def test_all_answers_in_order(service: Running, window: int, count: int) -> None:
    got: list[tuple[int, int, bytes]] = []
    with client_of(service, window=window) as client:
        bodies = (b"%d" % i for i in range(count))
        assert client.send_all(bodies, lambda *reply: got.append(reply)) == count
        assert got == [(i, 200, b"hot:%d" % i) for i in range(count)]
        assert client.send_all([b"again"], lambda *reply: got.append(reply)) == 1
    assert got[-1] == (0, 200, b"hot:again")


@given(st.lists(st.binary(max_size=3000), max_size=40), st.integers(1, 70))
def test_any_bodies(service: Running, bodies: list[bytes], window: int) -> None:
    got: list[bytes] = []
    with client_of(service, window=window) as client:
        client.send_all(bodies, lambda _index, _status, body: got.append(body))
    assert got == [problem(422, "no", "no").body if body == b"bad" else b"hot:" + body for body in bodies]


def test_bodies_are_not_taken_far_ahead(service: Running) -> None:
    taken = answered = ahead = 0

    def bodies() -> Iterator[bytes]:
        nonlocal taken
        for i in range(500):
            taken += 1
            yield b"%d" % i

    def on_reply(_index: int, _status: int, _body: bytes) -> None:
        nonlocal answered, ahead
        ahead = max(ahead, taken - answered)
        answered += 1

    with client_of(service, window=16) as client:
        client.send_all(bodies(), on_reply)
    assert ahead == 16


def test_large_bodies_do_not_lock_up(service: Running) -> None:
    sizes: list[int] = []
    with client_of(service, window=400) as client:
        client.send_all([b"x" * 60_000] * 400, lambda _i, _s, body: sizes.append(len(body)))
    assert sizes == [60_004] * 400


def test_refusals_are_answers(service: Running) -> None:
    got: list[int] = []
    with client_of(service) as client:
        client.send_all([b"a", b"bad", b"b"], lambda _i, status, _b: got.append(status))
    assert got == [200, 422, 200]


def test_a_handler_that_raises_leaves_a_clean_client(service: Running) -> None:
    def fail(index: int, _status: int, _body: bytes) -> None:
        if index == 3:
            raise KeyError(index)

    got: list[bytes] = []
    with client_of(service) as client:
        with pytest.raises(KeyError):
            client.send_all([b"%d" % i for i in range(10)], fail)
        client.send_all([b"next"], lambda _i, _s, body: got.append(body))
    assert got == [b"hot:next"]


def test_get_and_post(service: Running) -> None:
    client = client_of(service)
    assert client.get("/hello") == Answer(200, b"hello ")
    assert client.post("/hello", b"you") == Answer(200, b"hello you")
    assert client.post("/hot", b"{}") == Answer(200, b"hot:{}")
    assert client.get("/hot").status == 405


def serve_once(*scripts: Callable[[socket.socket], None]) -> tuple[int, threading.Thread]:
    """Plays one script for each connection, in order."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        with listener:
            for script in scripts:
                connection, _ = listener.accept()
                with connection:
                    script(connection)

    thread = threading.Thread(target=work)
    thread.start()
    return int(listener.getsockname()[1]), thread


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"


def replies(*parts: bytes, requests: int = 1) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        data = b""
        while data.count(b"POST ") < requests:
            data += connection.recv(65_536)
        for part in parts:
            connection.sendall(part)

    return script


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200", "closed the connection"),
        (OK, "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not a reply"),
        (b"HTTP/1.1 abc\r\n\r\n", "not a reply"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "without Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n9", "closed the connection"),
    ],
)
@pytest.mark.parametrize("answered", [0, 3])
def test_a_broken_connection_says_how_many_were_answered(data: bytes, reason: str, answered: int) -> None:
    port, thread = serve_once(replies(*[OK + b"%d" % i for i in range(answered)], data, requests=10))
    got: list[bytes] = []
    with (
        PipelinedClient("127.0.0.1", port, "/hot", timeout=10) as client,
        pytest.raises(ConnectionBroken, match=reason) as caught,
    ):
        client.send_all([b"{}"] * 10, lambda _i, _s, body: got.append(body))
    thread.join()
    assert caught.value.acknowledged == len(got) == answered + data.endswith(b"9")
    assert f"{len(got)} requests were answered" in str(caught.value)
    assert isinstance(caught.value, ServiceError)


def test_going_on_after_a_break() -> None:
    port, thread = serve_once(
        replies(OK + b"0", OK + b"1", requests=5), replies(OK + b"2", OK + b"3", OK + b"4", requests=3)
    )
    bodies = [b"%d" % i for i in range(5)]
    got: list[bytes] = []
    with PipelinedClient("127.0.0.1", port, "/hot", timeout=10) as client:
        with pytest.raises(ConnectionBroken) as caught:
            client.send_all(bodies, lambda _i, _s, body: got.append(body))
        client.send_all(bodies[caught.value.acknowledged :], lambda _i, _s, body: got.append(body))
    thread.join()
    assert got == bodies


def test_a_server_that_closes_between_requests() -> None:
    closing = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
    port, thread = serve_once(*[replies(closing + b"%d" % i) for i in range(3)])
    got: list[bytes] = []
    with PipelinedClient("127.0.0.1", port, "/hot", window=1, timeout=10) as client:
        assert client.send_all([b"a", b"b"], lambda _i, _s, body: got.append(body)) == 2
        client.send_all([b"c"], lambda _i, _s, body: got.append(body))
    thread.join()
    assert got == [b"0", b"1", b"2"]


def test_an_idle_connection_that_was_closed_is_opened_again() -> None:
    port, thread = serve_once(replies(OK + b"0"), replies(OK + b"1"))
    got: list[bytes] = []
    with PipelinedClient("127.0.0.1", port, "/hot", timeout=10) as client:
        client.send_all([b"a"], lambda _i, _s, body: got.append(body))
        assert client._socket is not None
        client._socket.settimeout(10)
        assert client._socket.recv(1, socket.MSG_PEEK) == b""
        client._socket.settimeout(0)
        client.send_all([b"b"], lambda _i, _s, body: got.append(body))
    thread.join()
    assert got == [b"0", b"1"]


def test_replies_in_pieces() -> None:
    stream = b"HTTP/1.1 100 Continue\r\n\r\n" + b"".join(OK + b"%d" % i for i in range(5))
    port, thread = serve_once(replies(*[bytes([byte]) for byte in stream], requests=5))
    got: list[bytes] = []
    with PipelinedClient("127.0.0.1", port, "/hot", timeout=10) as client:
        client.send_all([b""] * 5, lambda _i, _s, body: got.append(body))
    thread.join()
    assert got == [b"0", b"1", b"2", b"3", b"4"]


def test_a_server_that_stands_still() -> None:
    done = threading.Event()

    def wait(_: socket.socket) -> None:
        done.wait(10)

    port, thread = serve_once(wait)
    with PipelinedClient("127.0.0.1", port, "/hot", timeout=0.1) as client:
        with pytest.raises(ConnectionBroken, match=r"nothing has moved for 0\.1 s; 0 requests"):
            client.send_all([b""], lambda *_: None)
        done.set()
    thread.join()


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = PipelinedClient("127.0.0.1", port, "/hot")
    with pytest.raises(ConnectionBroken, match="no connection to"):
        client.send_all([b""], lambda *_: None)
    with pytest.raises(ServiceError, match="got no answer"):
        client.get("/")


def test_paced(service: Running) -> None:
    got: list[bytes] = []
    with client_of(service) as client:
        report = client.paced(
            (b"bad" if i % 10 == 0 else b"%d" % i for i in range(200)),
            4000,
            on_reply=lambda _i, _s, body: got.append(body),
        )
    assert got[1:3] == [b"hot:1", b"hot:2"]
    assert (report.sent, report.errors, len(got)) == (200, 20, 200)
    assert report.latency.count == report.lateness.count == 200
    # The last is meant to be sent 199 gaps after the first, and cannot be answered before.
    assert report.achieved_rate <= 200 / (199 / 4000)
    assert "at 4,000/s offered" in str(report)


def test_paced_without_bodies(service: Running) -> None:
    with client_of(service) as client:
        report = client.paced([], 10)
    assert (report.sent, report.latency.count) == (0, 0)


def test_paced_sees_a_server_that_stood_still() -> None:
    # A stall of the whole server for a fixed time: from the intended times on, every request that came due in it
    # waited, not only the first (coordinated omission, Tene).
    stalled, n_requests, rate = threading.Event(), 100, 500

    def script(connection: socket.socket) -> None:
        data = b""
        while data.count(b"POST ") < n_requests:
            data += connection.recv(65_536)
        stalled.set()
        connection.sendall((OK + b"0") * n_requests)

    port, thread = serve_once(script)
    with PipelinedClient("127.0.0.1", port, "/hot", timeout=10) as client:
        report = client.paced([b""] * n_requests, rate)
    thread.join()
    # Request i waits at least (n - 1 - i) / rate seconds; so the median waits about half of 198 ms.
    assert report.latency.quantile(0.5) >= 0.95 * 98_000
    assert report.latency.max >= 197_000
    assert report.lateness.quantile(0.5) < 98_000


def test_paced_reports_a_break() -> None:
    port, thread = serve_once(replies(OK + b"0"))
    with (
        PipelinedClient("127.0.0.1", port, "/hot", timeout=10) as client,
        pytest.raises(ConnectionBroken) as caught,
    ):
        client.paced([b""] * 1000, 2000)
    thread.join()
    assert caught.value.acknowledged == 1


def test_wrong_arguments(service: Running) -> None:
    for path in ("hot", "", "/a b", "/ä", "/a\r\nx: y"):
        with pytest.raises(InvalidInput, match="path: got"):
            PipelinedClient("127.0.0.1", 1, path)
    with pytest.raises(InvalidInput, match="window"):
        PipelinedClient("127.0.0.1", 1, "/", window=0)
    with pytest.raises(InvalidInput, match="timeout"):
        PipelinedClient("127.0.0.1", 1, "/", timeout=0)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="rate"):
            client_of(service).paced([], rate)
