"""What the doors of gRPC have in common: who calls, turns of the event loop, errors as statuses, health, reflection."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vitok.errors import InvalidInput, MissingExtra, ServiceError, VitokError
from vitok.serving.inference_proto import retry_details
from vitok.serving.messages import Endpoint, Later, Reply
from vitok.serving.problems import FAULT, from_error

logger = logging.getLogger("vitok.serving")

MAX_MESSAGE = 4 << 20
DRAIN_SECONDS = 10.0
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}

Call = Callable[[Any, Any], Any]
"""A call as gRPC has it: the message and the context give the answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrpcAddress:
    """Where gRPC listens, and how.

    Attributes:
        host: Address.
        port: Port; 0 takes a free one.
        certificate: File of the certificates in PEM, for TLS; None for none.
        key: File of their key in PEM.
        reuse_port: Whether several processes listen on the port.
        max_message: Longest message in bytes.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    reuse_port: bool = False
    max_message: int = MAX_MESSAGE


def headers_of(context: Any) -> list[tuple[bytes, bytes]]:
    """Returns the metadata of a call as headers."""
    return [
        (key.encode("latin-1"), value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape"))
        for key, value in context.invocation_metadata() or ()
    ]


def address_of(peer: str) -> str:
    """Returns the address in what gRPC calls a peer; a Unix socket has none.

    Example:
        >>> address_of("ipv4:10.0.0.1:5000"), address_of("ipv6:%5B::1%5D:5000"), address_of("unix:")
        ('10.0.0.1', '::1', '')
    """
    kind, _, place = urllib.parse.unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


class Turns:
    """Hands what one turn of the event loop has read to its endpoint as one list, as the hot door does."""

    def __init__(self) -> None:
        self._waiting: dict[Endpoint, list[tuple[Any, asyncio.Future[Reply]]]] = {}

    async def ask(self, endpoint: Endpoint, asked: Any) -> Reply:
        """Returns the answer of an endpoint to a request, which has what a `HotRequest` has."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.setdefault(endpoint, []).append((asked, future))
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for endpoint, pairs in waiting.items():
            try:
                replies: Sequence[Reply | Later] = endpoint.handle([asked for asked, _ in pairs])
            except Exception:
                # Whoever waits is told, and the rest of the turn goes on.
                logger.exception("%s failed on %d requests", endpoint.path, len(pairs))
                replies = [FAULT] * len(pairs)
            for (_, future), reply in zip(pairs, replies, strict=True):
                if isinstance(reply, Later):
                    reply.then(functools.partial(_settle_later, future, reply))
                else:
                    _settle(future, reply)


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if not future.done():
        future.set_result(reply)


def _settle_later(future: asyncio.Future[Reply], later: Later) -> None:
    _settle(future, later.reply or FAULT)


def lines_of(reply: Reply) -> tuple[tuple[str, Any], ...]:
    """Returns the headers of a reply as metadata."""
    lines = [line.partition(b":") for line in reply.headers.split(b"\r\n") if line]
    return tuple((name.strip().decode().lower(), value.strip().decode()) for name, _, value in lines)


def detail_of(reply: Reply) -> str:
    """Returns what a refusal says is wrong."""
    found: str = msgspec.json.decode(reply.body).get("detail", "") if reply.body else ""
    return found


async def refuse(context: Any, reply: Reply) -> None:
    """Ends a call with the status that fits a reply, its reason, and when another try may be worth it."""
    import grpc

    detail = detail_of(reply)
    code = getattr(grpc.StatusCode, _CODES.get(reply.status, "INTERNAL"))
    told = lines_of(reply)
    after = dict(told).get("retry-after", "")
    if after.isdecimal():
        # As clients that retry by themselves look for it (gRFC A6), and as google.rpc.RetryInfo.
        details = retry_details(code.value[0], detail, int(after))
        told += (("grpc-retry-pushback-ms", str(1000 * int(after))), ("grpc-status-details-bin", details))
    await context.abort(code, detail, told)


def plain(call: Call) -> Call:
    """Makes a call whose errors of vitok leave as the status that fits them."""

    async def answered(request: Any, context: Any) -> Any:
        try:
            return await call(request, context)
        except VitokError as error:
            await refuse(context, from_error(error))

    return answered


@contextlib.asynccontextmanager
async def listening(
    address: GrpcAddress,
    *,
    service: str,
    handlers: Mapping[str, Any],
    descriptors: Any,
    ready: Callable[[], bool],
    wanted: str,
) -> AsyncIterator[int]:
    """Answers a service on the running event loop while the block runs, with reflection and the health service.

    At the end it takes no new calls and finishes those in flight.

    Args:
        address: Where to listen.
        service: Full name of the service.
        handlers: Method to its handler, as gRPC makes it.
        descriptors: Pool with the service, for reflection.
        ready: Whether the service can answer, for the health service.
        wanted: What the extra is wanted for.

    Yields:
        The port.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
        ServiceError: If the address cannot be used.
        InvalidInput: If the certificate or its key cannot be read.
    """
    try:
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection, reflection_pb2
    except ImportError:
        raise MissingExtra("grpc", wanted) from None
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", address.max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(address.reuse_port)),
        ]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(handlers)),))

    class Checks(health.aio.HealthServicer):  # type: ignore[misc]
        async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - how gRPC spells it
            states = health_pb2.HealthCheckResponse
            state = states.SERVING if ready() else states.NOT_SERVING
            for name in ("", service):
                await self.set(name, state)
            return await super().Check(request, context)

    checks = Checks()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    with contextlib.suppress(TypeError):  # they are in the pool since the last time
        for module in (health_pb2, reflection_pb2):
            descriptors.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    names = (service, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=descriptors)
    place = f"[{address.host}]" if ":" in address.host else address.host
    try:
        bound = (
            server.add_insecure_port(f"{place}:{address.port}")
            if address.certificate is None
            else server.add_secure_port(f"{place}:{address.port}", _credentials(address))
        )
    except RuntimeError as error:
        raise ServiceError(
            f"cannot listen on {address.host} port {address.port}: {error}. Choose another, or 0 for a free one"
        ) from None
    await server.start()
    try:
        yield bound
    finally:
        # Whoever watches the health is told before calls are refused.
        await checks.enter_graceful_shutdown()
        await server.stop(DRAIN_SECONDS)


def _credentials(address: GrpcAddress) -> Any:
    import grpc

    if address.certificate is None or address.key is None:
        raise InvalidInput("key", None, "be given beside the certificate")
    try:
        pair = (address.key.read_bytes(), address.certificate.read_bytes())
    except OSError as error:
        raise InvalidInput("certificate", str(address.certificate), f"be readable: {error}") from None
    return grpc.ssl_server_credentials([pair])
