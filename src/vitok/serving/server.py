"""One process, one port: an ASGI application with hot endpoints beside it, from the first bind to the last reply."""

import contextlib
import functools
import gc
import queue
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitok.errors import InvalidInput, MissingExtra, ServiceError
from vitok.serving.asgi import MAX_ASGI_BODY, AsgiRoad
from vitok.serving.door import MAX_BATCH, MAX_BODY, Door
from vitok.serving.messages import Endpoint

DRAIN_SECONDS = 10
BACKLOG = 1024

Way = Literal["hot", "asgi"]
"""Whether POSTs to the endpoints are handed over by the turn of the event loop, or go through ASGI as all else."""


@dataclass(frozen=True)
class Tls:
    """What a service shows to prove that it is who it says; connections are encrypted then.

    Args:
        certificate: File of the certificate, and of those between it and the root, in PEM.
        key: File of its key in PEM, without a pass phrase.

    Raises:
        InvalidInput: If a file is not there, or the key is not that of the certificate.
    """

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        for name, path in (("certificate", self.certificate), ("key", self.key)):
            if not path.is_file():
                raise InvalidInput(name, str(path), "be a file in PEM")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, InvalidInput) as error:
            rule = f"be a certificate in PEM with its key, without a pass phrase: {error}"
            raise InvalidInput("certificate", str(self.certificate), rule) from None


def _no_password() -> str:
    # Without it the process would ask at the terminal.
    raise InvalidInput("key", "encrypted", "have no pass phrase")


@dataclass(frozen=True, kw_only=True)
class Running:
    """A service that accepts connections.

    Attributes:
        host: Address it listens on; empty for a Unix socket.
        port: Port it listens on; 0 for a Unix socket.
        uds: Path of its Unix socket, or None.
        door: Its hot door, with the counters.
        stop: Asks it to finish what it owes and to end; may be called from any thread.
        tls: Whether its connections are encrypted.
    """

    host: str
    port: int
    uds: str | None
    door: Door
    stop: Callable[[], None]
    tls: bool = False

    @property
    def url(self) -> str:
        """Where a client finds it."""
        if self.uds is not None:
            return f"unix:{self.uds}"
        scheme = "https" if self.tls else "http"
        return f"{scheme}://[{self.host}]:{self.port}" if ":" in self.host else f"{scheme}://{self.host}:{self.port}"


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
    tls: Tls | None = None,
    door: Way = "hot",
    reuse_port: bool = False,
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
        tls: Encrypts connections.
        door: `"asgi"` answers the endpoints' requests one by one through ASGI, for comparison and as a way out.
        reuse_port: Whether several processes listen on the port, among which the kernel deals out connections.

    Raises:
        ServiceError: If the address cannot be used, or the application fails to start.
        MissingExtra: If the extra `serve` is not installed.
    """
    made = Door(endpoints, max_body=max_body, max_batch=max_batch)
    listening = functools.partial(listen, host, port, reuse_port=reuse_port)
    if uds is not None:
        listening = functools.partial(_listen_unix, uds)
    _run(app, made, listening, uds=uds, ready=ready, idle_seconds=idle_seconds, tls=tls, way=door, freeze=True)


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
    tls: Tls | None = None,
    door: Way = "hot",
) -> Iterator[Running]:
    """Serves from a thread of this process while the block runs: for tests and notebooks.

    Raises:
        ServiceError: As `serve`.
    """
    made = Door(endpoints, max_body=max_body, max_batch=max_batch)
    listening = functools.partial(listen, host, port)
    if uds is not None:
        listening = functools.partial(_listen_unix, uds)
    news: queue.Queue[Running | BaseException] = queue.Queue()

    def work() -> None:
        try:
            _run(app, made, listening, uds=uds, ready=news.put, idle_seconds=idle_seconds, tls=tls, way=door)
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
    listening: Callable[[], socket.socket],
    *,
    uds: str | None,
    ready: Callable[[Running], None] | None,
    idle_seconds: int,
    tls: Tls | None,
    way: Way,
    freeze: bool = False,
) -> None:
    try:
        import uvicorn

        from vitok.serving.protocol import bound_to
    except ImportError:
        raise MissingExtra("serve", "the service") from None
    with listening() as listener:
        config = uvicorn.Config(
            AsgiRoad(app, door, max_body=max(MAX_ASGI_BODY, door.max_body)),
            http=bound_to(door if way == "hot" else Door()),
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
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
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
                ready(Running(host=bound_host, port=bound_port, uds=uds, door=door, stop=stop, tls=tls is not None))

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


def listen(host: str, port: int, *, reuse_port: bool = False, backlog: int = BACKLOG) -> socket.socket:
    """Opens a socket that accepts connections.

    Args:
        host: Address to listen on.
        port: Port; 0 takes a free one.
        reuse_port: Whether other processes of this user may listen on the port too.
        backlog: Most connections that wait to be accepted.

    Raises:
        InvalidInput: If the port is out of range.
        ServiceError: If the address cannot be used.
    """
    if not 0 <= port <= 65_535:
        raise InvalidInput("port", port, "be in 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=backlog, reuse_port=reuse_port)
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
