"""The Open Inference Protocol, version 2, over gRPC, beside the hot door and on the same event loop.

Requests that one turn of the loop has read are one run of the model here too: they go through the `InferEndpoint` of
their model, with its checks, its queue, its log and its counts, and differ only in how they are read and written.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitok import __version__
from vitok.errors import InvalidInput, MissingExtra, VitokError
from vitok.serving.grpc_calls import (
    GrpcAddress,
    Turns,
    address_of,
    detail_of,
    headers_of,
    lines_of,
    listening,
    plain,
    refuse,
)
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
from vitok.serving.inference_proto import METHODS, SERVICE, STREAM, messages, pool
from vitok.serving.messages import HotRequest, Later, Reply
from vitok.serving.problems import from_error
from vitok.serving.runtime import Runtime
from vitok.serving.tensors import TensorSpec, from_bytes, from_values, to_bytes

__all__ = ["AHEAD", "GrpcAddress", "InferenceService", "grpc_door", "stub"]

AHEAD = 64
"""Requests of one stream that are in work at a time."""
_WANTED = "inference over gRPC"
_WANTS_FINAL, _FINAL = "triton_enable_empty_final_response", "triton_final_response"
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
        self._turns = Turns()

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
        asked, reply = await self._run(request, context)
        if not _answered(asked, reply):
            await refuse(context, reply)
        if reply.headers:
            context.set_trailing_metadata(lines_of(reply))
        return self._response(request, asked)

    async def model_stream_infer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Runs models for the requests of a stream; answers leave in the order of the requests.

        As many requests as `AHEAD` are in work at a time, so that a model with a queue finds company for them. One that
        is refused or fails is answered with the reason, and the stream goes on.
        """
        room = asyncio.Semaphore(AHEAD)
        running: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    running.put_nowait(asyncio.create_task(self._streamed(request, context)))
            finally:
                running.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await running.get()) is not None:
                yield await task
                room.release()
            await reader
        finally:
            # Where the caller has gone, nobody waits for what is still in work.
            reader.cancel()
            while not running.empty():
                if (task := running.get_nowait()) is not None:
                    task.cancel()

    async def _streamed(self, request: Any, context: Any) -> Any:
        try:
            asked, reply = await self._run(request, context)
        except VitokError as error:
            reply = from_error(error)
        else:
            if _answered(asked, reply):
                response = self._response(request, asked)
                if _WANTS_FINAL in request.parameters and request.parameters[_WANTS_FINAL].bool_param:
                    response.parameters[_FINAL].bool_param = True
                return self._types[f"{STREAM}Response"](infer_response=response)
        known = self._types["ModelInferResponse"](model_name=request.model_name, id=request.id)
        return self._types[f"{STREAM}Response"](error_message=detail_of(reply) or "it failed", infer_response=known)

    async def _run(self, request: Any, context: Any) -> tuple[_Asked, Reply]:
        left = context.time_remaining()
        # Without a deadline of the caller's the remaining time is a very large number.
        within = max(int(1e6 * left), 1) if left is not None and left < 3600 else 0
        asked = _Asked(request, within, headers_of(context), address_of(context.peer()))
        endpoint = self.host.endpoint(request.model_name, request.model_version or None, entered=self._changed)
        return asked, await self._turns.ask(endpoint, asked)

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
        asked = HotRequest(b"", time.perf_counter_ns(), headers_of(context), address_of(context.peer()))
        refusal = self.host.guard.refusal(asked, INFER.format(name=name) if name else ADMIN)
        if refusal is not None:
            await refuse(context, refusal)

    async def _hosted(self, name: str, version: str) -> Hosted:
        found = await asyncio.to_thread(self.host.get, name, version or None)
        self._changed()
        return found

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


def _answered(asked: _Asked, reply: Reply) -> bool:
    return reply.status == 200 and asked.job is not None and asked.job.given is not None


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
    except ImportError:
        raise MissingExtra("grpc", _WANTED) from None
    service = InferenceService(host, changed=changed)
    types = messages()
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            plain(getattr(service, _snake(method))),
            request_deserializer=types[f"{method}Request"].FromString,
            response_serializer=types[f"{method}Response"].SerializeToString,
        )
        for method in METHODS
    }
    handlers[STREAM] = grpc.stream_stream_rpc_method_handler(
        service.model_stream_infer,
        request_deserializer=types["ModelInferRequest"].FromString,
        response_serializer=types[f"{STREAM}Response"].SerializeToString,
    )
    async with listening(
        address,
        service=SERVICE,
        handlers=handlers,
        descriptors=pool(),
        ready=functools.partial(ready_to_answer, host),
        wanted=_WANTED,
    ) as port:
        yield port


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def stub(channel: Any) -> Mapping[str, Callable[..., Any]]:
    """Returns the calls of the service over a channel, by name, for those who have no generated code."""
    types = messages()
    calls = {
        method: channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=types[f"{method}Request"].SerializeToString,
            response_deserializer=types[f"{method}Response"].FromString,
        )
        for method in METHODS
    }
    calls[STREAM] = channel.stream_stream(
        f"/{SERVICE}/{STREAM}",
        request_serializer=types["ModelInferRequest"].SerializeToString,
        response_deserializer=types[f"{STREAM}Response"].FromString,
    )
    return calls
