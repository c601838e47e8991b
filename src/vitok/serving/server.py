"""One process, one port: an ASGI application with hot endpoints beside it, from the first bind to the last reply."""

import contextlib
import functools
import gc
import queue
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitok.errors import InvalidInput, MissingExtra, ServiceError
from vitok.serving.asgi import AsgiRoad
from vitok.serving.door import MAX_BATCH, MAX_BODY, Door
from vitok.serving.messages import Endpoint

DRAIN_SECONDS = 10
BACKLOG = 1024


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service that accepts connections.

    Attributes:
        host: Address it listens on; empty for a Unix socket.
        port: Port it listens on; 0 for a Unix socket.
        uds: Path of its Unix socket, or None.
        door: Its hot door, with the counters.
        stop: Asks it to finish what it owes and to end; may be called from any thread.
    """

    host: str
    port: int
    uds: str | None
    door: Door
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        """Where a client finds it."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def serve(
    app: Any,
    endpoints: Sequence[Endpoint] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    uds: str | None = None,
    ready: Callable[[Running], None] | None = None,
    max_body: int = MAX_BODY,
    max_batch: int = MAX_BATCH,
    idle_seconds: int = 75,
) -> None:
    """Serves until SIGTERM or SIGINT (or `Running.stop`); then finishes what it owes and returns.

    A second SIGINT ends it at once. The application's lifespan is run before the first request and after the last.

    Args:
        app: An ASGI application, such as one of Starlette with `problems.handlers()`.
        endpoints: The hot endpoints; POSTs to their paths do not reach `app`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        uds: Path of a Unix socket to listen on instead; a dead one that is left there is replaced.
        ready: Called with the address once connections are accepted.
        max_body: Longest body of a hot request, in bytes.
        max_batch: Most requests that an endpoint gets at once.
        idle_seconds: How long a connection without requests stays open.

    Raises:
        ServiceError: If the address cannot be used, or the application fails to start.
        MissingExtra: If the extra `serve` is not installed.
    """
    door = Door(endpoints, max_body=max_body, max_batch=max_batch)
    _run(app, door, host=host, port=port, uds=uds, ready=ready, idle_seconds=idle_seconds, freeze=True)


@contextlib.contextmanager
def running(
    app: Any,
    endpoints: Sequence[Endpoint] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    uds: str | None = None,
    max_body: int = MAX_BODY,
    max_batch: int = MAX_BATCH,
    idle_seconds: int = 75,
) -> Iterator[Running]:
    """Serves from a thread of this process while the block runs: for tests and notebooks.

    Raises:
        ServiceError: As `serve`.
    """
    door = Door(endpoints, max_body=max_body, max_batch=max_batch)
    news: queue.Queue[Running | BaseException] = queue.Queue()

    def work() -> None:
        try:
            _run(app, door, host=host, port=port, uds=uds, ready=news.put, idle_seconds=idle_seconds, freeze=False)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the thread was started
            news.put(error)

    thread = threading.Thread(target=work, name="vitok-serving", daemon=True)
    thread.start()
    service = news.get()
    if isinstance(service, BaseException):
        raise service
    try:
        yield service
    finally:
        service.stop()
        thread.join()
    if not news.empty():
        error = news.get()
        if isinstance(error, BaseException):
            raise error


def _run(
    app: Any,
    door: Door,
    *,
    host: str,
    port: int,
    uds: str | None,
    ready: Callable[[Running], None] | None,
    idle_seconds: int,
    freeze: bool,
) -> None:
    try:
        import uvicorn

        from vitok.serving.protocol import bound_to
    except ImportError:
        raise MissingExtra("serve", "the service") from None
    listener = _listen_unix(uds) if uds is not None else _listen(host, port)
    with listener:
        config = uvicorn.Config(
            AsgiRoad(app, door),
            http=bound_to(door),
            loop="auto",
            ws="none",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=idle_seconds,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        server = _server_class()(config)
        bound_host, bound_port = ("", 0) if uds is not None else listener.getsockname()[:2]

        def stop() -> None:
            server.should_exit = True

        def started() -> None:
            if freeze:
                gc.collect()
                gc.freeze()
            if ready is not None:
                ready(Running(host=bound_host, port=bound_port, uds=uds, door=door, stop=stop))

        server.on_started = started
        try:
            server.run(sockets=[listener])
        except SystemExit as error:
            raise ServiceError("the application failed to start; the log says why") from error
        finally:
            if uds is not None:
                Path(uds).unlink(missing_ok=True)


@functools.cache
def _server_class() -> type[Any]:
    import uvicorn

    class Server(uvicorn.Server):
        on_started: Callable[[], None]

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                self.on_started()

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn raises the signal again at the end, which would kill the process before its owner has closed
            # the log and the stores.
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise InvalidInput("port", port, "be in 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ServiceError(
            f"cannot listen on {host} port {port}: {error}. Choose another, or 0 for a free one"
        ) from None


def _listen_unix(path: str) -> socket.socket:
    place = Path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if place.exists() and stat.S_ISSOCK(place.stat().st_mode) and not _answers(path):
            place.unlink()
        listener.bind(path)
        place.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServiceError(f"cannot listen on the socket {path}: {error}. Choose another path") from None
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
