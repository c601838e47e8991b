"""A service from start to end: addresses, signals, draining, and starts that fail."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from tests.serving.conftest import Echo, Wire, called, post, wire_to

from vitok.errors import InvalidInput, MissingExtra, ServiceError
from vitok.serving import Door, HotRequest, Reply, handlers, running, serve
from vitok.serving.asgi import AsgiRoad

SERVICE = """
import contextlib, gc, sys
from starlette.applications import Starlette
from vitok.serving import Reply, serve

class Echo:
    path = "/hot"
    def handle(self, requests):
        return [Reply(200, request.body) for request in requests]

@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    print("lifespan ended", flush=True)

def ready(service):
    print(service.url, gc.get_freeze_count() > 0, flush=True)

serve(Starlette(lifespan=lifespan), [Echo()], ready=ready, uds=sys.argv[1] if len(sys.argv) > 1 else None)
print("after", flush=True)
"""


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-W", "error", "-c", SERVICE, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            url, frozen = child.stdout.readline().split()
            assert frozen == "True"
            yield child, url
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly_and_in_order(number: signal.Signals) -> None:
    with process() as (child, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            wire = Wire(connection)
            wire.send(post(b"1"))
            assert wire.reply().body == b"1"
            child.send_signal(number)
            assert wire.ended()
        out, err = child.communicate(timeout=10)
    assert out.split("\n") == ["lifespan ended", "after", ""]
    assert err == ""
    assert child.returncode == 0


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "service.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with process(str(path)) as (child, url):
        assert url == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            wire = Wire(connection)
            wire.send(post(b"1"))
            assert wire.reply().body == b"1"
        with pytest.raises(ServiceError, match="cannot listen on the socket"):
            serve(Starlette(), uds=str(path))
        child.terminate()
        child.communicate(timeout=10)
    assert not path.exists()


def test_what_is_owed_is_written_before_the_end() -> None:
    entered, released = threading.Event(), threading.Event()

    class Held(Echo):
        def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
            entered.set()
            assert released.wait(10)
            return super().handle(requests)

    with contextlib.ExitStack() as stack:
        service = stack.enter_context(running(Starlette(), [Held()], max_batch=8))
        wire = stack.enter_context(wire_to(service))
        wire.send(post(b"1") * 20)
        assert entered.wait(10)
        service.stop()
        released.set()
        assert [reply.status for reply in wire.replies(20)] == [200] * 20
        assert wire.ended()


def test_the_address_is_taken() -> None:
    with (
        running(Starlette()) as service,
        pytest.raises(ServiceError, match=f"cannot listen on 127.0.0.1 port {service.port}"),
    ):
        serve(Starlette(), port=service.port)


def test_wrong_addresses(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="port: got 70000"):
        serve(Starlette(), port=70_000)
    with pytest.raises(ServiceError, match="cannot listen"):
        serve(Starlette(), host="256.0.0.1")
    with pytest.raises(ServiceError, match="cannot listen"):
        serve(Starlette(), uds=str(tmp_path / "missing" / "x.sock"))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ServiceError, match="cannot listen"):
        serve(Starlette(), uds=str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_application_that_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        raise KeyError("store")
        yield

    with pytest.raises(ServiceError, match="failed to start"), running(Starlette(lifespan=lifespan)):
        pass
    assert "KeyError" in caplog.text


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"vitok\[serve\]"):
        serve(Starlette())


def test_importing_the_room_is_light() -> None:
    code = "import sys, vitok.serving; print([m for m in ('uvicorn', 'starlette', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_ipv6() -> None:
    with contextlib.ExitStack() as stack:
        try:
            service = stack.enter_context(running(Starlette(), [Echo()], host="::1"))
        except ServiceError as error:
            pytest.skip(f"no IPv6 here: {error}")
        assert service.url == f"http://[::1]:{service.port}"
        wire = stack.enter_context(wire_to(service))
        wire.send(post(b"1"))
        assert wire.reply().body == b"hot:1"


def test_the_asgi_road_needs_no_server() -> None:
    class Busy(Echo):
        def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
            return [Reply(503, b"{}", b"Retry-After: 1\r\n") for _ in requests]

    door = Door([Echo("/hot"), Busy("/busy")])
    road = AsgiRoad(Starlette(exception_handlers=handlers()), door)
    assert called(road, "POST", "/hot", b"1", b"2").body == b"hot:12"
    busy = called(road, "POST", "/busy")
    assert busy.headers["retry-after"] == "1"
    assert busy.headers["content-type"] == "application/problem+json"
    assert called(road, "GET", "/hot").status == 405
    assert called(road, "POST", "/hot", b"1" * 70_000).status == 413
    assert called(road, "POST", "/hot", b"1" * 40_000, b"1" * 40_000).status == 413
    assert b"Not Found" in called(road, "GET", "/nowhere").body
