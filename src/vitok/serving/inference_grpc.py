"""The Open Inference Protocol, version 2, over gRPC, beside the hot door and on the same event loop.

Requests that one turn of the loop has read are one run of the model here too: they go through the `InferEndpoint` of
their model, with its checks, its queue, its log and its counts, and differ only in how they are read and written.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitok import __version__
from vitok.errors import InvalidInput, MissingExtra, ServiceError, VitokError
from vitok.serving.hosting import ModelHost
from vitok.serving.inference import Hosted, InferEndpoint, described
from vitok.serving.inference_http import (
    ADMIN,
    EXTENSIONS,
    INFER,
    listed,
    loaded_anew,
    ready_to_answer,
    statistics_of,
    unloaded,
)
from vitok.serving.inference_messages import Given, InferOutput, InferRequest, Job, make_job, read_inputs
from vitok.serving.inference_proto import METHODS, SERVICE, messages, pool, retry_details
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.problems import FAULT, from_error
from vitok.serving.runtime import Runtime
from vitok.serving.tensors import TensorSpec, from_bytes, from_values, to_bytes

logger = logging.getLogger("vitok.serving")

MAX_MESSAGE = 4 << 20
DRAIN_SECONDS = 10.0
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}


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


class _Asked:
    # A request as an endpoint, and the guard before it, pass it on to whoever reads it: it has what a `HotRequest` has.
    __slots__ = ("arrived", "headers", "job", "message", "peer", "runtime", "tenant", "timeout_us")
    plain = False

    def __init__(self, message: Any, timeout_us: int, headers: list[tuple[bytes, bytes]], peer: str) -> None:
        self.message = message
        self.timeout_us = timeout_us
        self.headers = headers
        self.peer = peer
        self.arrived = time.perf_counter_ns()
        self.tenant = ""
        self.job: Job | None = None
        self.runtime: Runtime | None = None

    @property
    def body(self) -> bytes:
        return b""

    @property
    def size(self) -> int:
        size: int = self.message.ByteSize()
        return size

    def header(self, name: bytes) -> bytes | None:
        return next((value for known, value in self.headers if known == name), None)

    def ask(self, endpoint: InferEndpoint, requests: Sequence[Any]) -> Sequence[Reply | Later]:
        return endpoint.answer(requests, functools.partial(_take, endpoint))


def _headers(context: Any) -> list[tuple[bytes, bytes]]:
    return [
        (key.encode("latin-1"), value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape"))
        for key, value in context.invocation_metadata() or ()
    ]


def _address(peer: str) -> str:
    # "ipv4:10.0.0.1:5000" or "ipv6:%5B::1%5D:5000"; a Unix socket has no address.
    kind, _, place = urllib.parse.unquote(peer).partition(":")
    return place.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


class InferenceService:
    """Answers the calls of `inference.GRPCInferenceService`; all of it runs on one event loop.

    Args:
        host: The models.
        changed: Called when a model was loaded or let go, such as for the hot door to learn of it.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """

    def __init__(self, host: ModelHost, *, changed: Callable[[], object] | None = None) -> None:
        self.host = host
        self._changed = changed or (lambda: None)
        self._types = messages()
        self._waiting: dict[Endpoint, list[tuple[_Asked, asyncio.Future[Reply]]]] = {}

    async def server_live(self, _: Any, __: Any) -> Any:
        """Says that the process runs."""
        return self._types["ServerLiveResponse"](live=True)

    async def server_ready(self, _: Any, __: Any) -> Any:
        """Says whether all models are loaded that must be, and can answer."""
        return self._types["ServerReadyResponse"](ready=ready_to_answer(self.host))

    async def model_ready(self, request: Any, context: Any) -> Any:
        """Says whether a model answers; loads it, if need be."""
        await self._allow(context, request.name)
        try:
            await self._hosted(request.name, request.version)
        except VitokError:
            return self._types["ModelReadyResponse"](ready=False)
        return self._types["ModelReadyResponse"](ready=True)

    async def server_metadata(self, _: Any, __: Any) -> Any:
        """Says what this is."""
        return self._types["ServerMetadataResponse"](name="vitok", version=__version__, extensions=EXTENSIONS)

    async def model_metadata(self, request: Any, context: Any) -> Any:
        """Says what a model takes and gives."""
        await self._allow(context, request.name)
        found = described(await self._hosted(request.name, request.version))
        tensor = self._types["ModelMetadataResponse.TensorMetadata"]
        for side in ("inputs", "outputs"):
            found[side] = [tensor(**item) for item in found[side]]
        return self._types["ModelMetadataResponse"](**found)

    async def model_statistics(self, request: Any, context: Any) -> Any:
        """Says what a model has done; without a name, what each loaded one has."""
        await self._allow(context, request.name)
        chosen = self.host.loaded()
        if request.name:
            chosen = [await self._hosted(request.name, request.version)]
        return self._types["ModelStatisticsResponse"](model_stats=[statistics_of(item) for item in chosen])

    async def model_infer(self, request: Any, context: Any) -> Any:
        """Runs a model."""
        left = context.time_remaining()
        # Without a deadline of the caller's the remaining time is a very large number.
        within = max(int(1e6 * left), 1) if left is not None and left < 3600 else 0
        asked = _Asked(request, within, _headers(context), _address(context.peer()))
        endpoint = self.host.endpoint(request.model_name, request.model_version or None, entered=self._changed)
        reply = await self._submit(endpoint, asked)
        if reply.status != 200 or asked.job is None or asked.job.given is None:
            await _refuse(context, reply)
        if reply.headers:
            context.set_trailing_metadata(_lines(reply))
        return self._response(request, asked)

    async def repository_index(self, request: Any, context: Any) -> Any:
        """Lists the models that there are."""
        await self._allow(context)
        found = await asyncio.to_thread(listed, self.host)
        rows = [item for item in found if item["state"] == "READY" or not request.ready]
        entry = self._types["RepositoryIndexResponse.ModelIndex"]
        return self._types["RepositoryIndexResponse"](models=[entry(**item) for item in rows])

    async def repository_model_load(self, request: Any, context: Any) -> Any:
        """Loads a model, or the version of it that is in force by now."""
        await self._allow(context)
        await asyncio.to_thread(loaded_anew, self.host, request.model_name)
        self._changed()
        return self._types["RepositoryModelLoadResponse"]()

    async def repository_model_unload(self, request: Any, context: Any) -> Any:
        """Lets a model go."""
        await self._allow(context)
        await asyncio.to_thread(unloaded, self.host, request.model_name)
        self._changed()
        return self._types["RepositoryModelUnloadResponse"]()

    async def _allow(self, context: Any, name: str = "") -> None:
        # What is told of one model asks for a key to it; what concerns all, for that of an administrator.
        if self.host.guard is None:
            return
        asked = HotRequest(b"", time.perf_counter_ns(), _headers(context), _address(context.peer()))
        refusal = self.host.guard.refusal(asked, INFER.format(name=name) if name else ADMIN)
        if refusal is not None:
            await _refuse(context, refusal)

    async def _hosted(self, name: str, version: str) -> Hosted:
        found = await asyncio.to_thread(self.host.get, name, version or None)
        self._changed()
        return found

    async def _submit(self, endpoint: Endpoint, asked: _Asked) -> Reply:
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
                replies = endpoint.handle([asked for asked, _ in pairs])  # type: ignore[misc]
            except Exception:
                # Whoever waits is told, and the rest of the turn goes on.
                logger.exception("%s failed on %d requests", endpoint.path, len(pairs))
                replies = [FAULT] * len(pairs)
            for (_, future), reply in zip(pairs, replies, strict=True):
                if isinstance(reply, Later):
                    reply.then(functools.partial(_settle_later, future, reply))
                else:
                    _settle(future, reply)

    def _response(self, request: Any, asked: _Asked) -> Any:
        given: Given = asked.job.given  # type: ignore[assignment,union-attr]
        tensor = self._types["ModelInferResponse.InferOutputTensor"]
        # Of the version that has read the request, whichever is in force by now.
        names = {spec.name: spec.datatype for spec in asked.runtime.outputs}  # type: ignore[union-attr]
        name = request.model_name
        response = self._types["ModelInferResponse"](model_name=name, model_version=given.version, id=request.id)
        for key, value in given.parameters.items():
            _set_parameter(response.parameters[key], value)
        raw = bool(request.raw_input_contents) or any(names[name] not in _CONTENTS for name in given.outputs)
        for name, values in given.outputs.items():
            made = tensor(name=name, datatype=names[name], shape=values.shape)
            if raw:
                response.raw_output_contents.append(to_bytes(values))
            else:
                _fill(made.contents, names[name], values)
            response.outputs.append(made)
        return response


def _take(endpoint: InferEndpoint, runtime: Runtime, asked: Any, at: int) -> Job:
    asked.runtime = runtime
    job = _read(asked.message, runtime)
    # 0 stands for none.
    job.timeout_us = min(filter(None, (job.timeout_us, asked.timeout_us)), default=0)
    asked.job = job
    return endpoint.place(job, runtime, at)


def _read(message: Any, runtime: Runtime) -> Job:
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidInput("raw_input_contents", f"{len(raw)} tensors", f"be {len(message.inputs)}, one an input")

    def read(where: str, i: int, item: Any, _: TensorSpec) -> np.ndarray:
        if raw:
            if item.HasField("contents"):
                raise InvalidInput(f"{where}.contents", "values", "not be there beside raw_input_contents")
            return from_bytes(where, item.datatype, item.shape, raw[i], field=f"raw_input_contents[{i}]")
        return _typed(where, item)

    inputs = read_inputs(message.inputs, runtime, read)
    asked = InferRequest(
        [],
        message.id,
        [InferOutput(item.name, _parameters(item.parameters)) for item in message.outputs],
        _parameters(message.parameters),
    )
    job = make_job(asked, inputs, runtime)
    job.wanted = job.wanted or tuple(spec.name for spec in runtime.outputs)
    job.binary = None
    return job


def _typed(where: str, item: Any) -> np.ndarray:
    name = _CONTENTS.get(item.datatype)
    if name is None:
        raise InvalidInput(f"{where}.contents", item.datatype, "be sent in raw_input_contents")
    for field, _ in item.contents.ListFields():
        if field.name != name:
            raise InvalidInput(f"{where}.contents.{field.name}", "values", f"be {name} for {item.datatype}")
    values = getattr(item.contents, name)
    if item.datatype == "BYTES":
        found = np.empty(len(values), object)
        found[:] = list(values)
        joined = to_bytes(found)
        return from_bytes(where, item.datatype, item.shape, joined, field=f"{where}.contents.{name}")
    return from_values(where, item.datatype, item.shape, list(values))


def _fill(contents: Any, datatype: str, values: np.ndarray) -> None:
    flat = values.ravel().tolist()
    if datatype == "BYTES":
        flat = [item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass") for item in flat]
    getattr(contents, _CONTENTS[datatype]).extend(flat)


def _parameters(given: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param") for name, value in given.items()}


def _set_parameter(parameter: Any, value: Any) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        parameter.int64_param = value
    else:
        parameter.string_param = value if isinstance(value, str) else ",".join(value)


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if not future.done():
        future.set_result(reply)


def _settle_later(future: asyncio.Future[Reply], later: Later) -> None:
    _settle(future, later.reply or FAULT)


def _lines(reply: Reply) -> tuple[tuple[str, Any], ...]:
    lines = [line.partition(b":") for line in reply.headers.split(b"\r\n") if line]
    return tuple((name.strip().decode().lower(), value.strip().decode()) for name, _, value in lines)


async def _refuse(context: Any, reply: Reply) -> None:
    import grpc

    detail = msgspec.json.decode(reply.body).get("detail", "") if reply.body else ""
    code = getattr(grpc.StatusCode, _CODES.get(reply.status, "INTERNAL"))
    told = _lines(reply)
    after = dict(told).get("retry-after", "")
    if after.isdecimal():
        # As clients that retry by themselves look for it (gRFC A6), and as google.rpc.RetryInfo.
        details = retry_details(code.value[0], detail, int(after))
        told += (("grpc-retry-pushback-ms", str(1000 * int(after))), ("grpc-status-details-bin", details))
    await context.abort(code, detail, told)


def _plain(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    # An error of vitok leaves as the status that fits it.
    async def answered(request: Any, context: Any) -> Any:
        try:
            return await call(request, context)
        except VitokError as error:
            await _refuse(context, from_error(error))

    return answered


@contextlib.asynccontextmanager
async def grpc_door(
    host: ModelHost, address: GrpcAddress, *, changed: Callable[[], object] | None = None
) -> AsyncIterator[int]:
    """Answers gRPC on the running event loop while the block runs; with reflection and the standard health service.

    At the end it takes no new calls and finishes those in flight.

    Args:
        host: The models.
        address: Where to listen.
        changed: Called when a model was loaded or let go by a call.

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
        raise MissingExtra("grpc", "inference over gRPC") from None
    service = InferenceService(host, changed=changed)
    types = messages()
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            _plain(getattr(service, _snake(method))),
            request_deserializer=types[f"{method}Request"].FromString,
            response_serializer=types[f"{method}Response"].SerializeToString,
        )
        for method in METHODS
    }
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", address.max_message),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(address.reuse_port)),
        ]
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    class Checks(health.aio.HealthServicer):  # type: ignore[misc]
        async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - how gRPC spells it
            states = health_pb2.HealthCheckResponse
            state = states.SERVING if ready_to_answer(host) else states.NOT_SERVING
            for name in ("", SERVICE):
                await self.set(name, state)
            return await super().Check(request, context)

    checks = Checks()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    descriptors = pool()
    with contextlib.suppress(TypeError):  # they are in the pool since the last time
        for module in (health_pb2, reflection_pb2):
            descriptors.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
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


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def stub(channel: Any) -> Mapping[str, Callable[..., Any]]:
    """Returns the calls of the service over a channel, by name, for those who have no generated code."""
    types = messages()
    return {
        method: channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=types[f"{method}Request"].SerializeToString,
            response_deserializer=types[f"{method}Response"].FromString,
        )
        for method in METHODS
    }
