"""Decisions and outcomes over gRPC, beside the hot door and on the same event loop: `vitok.decide.v1.DecideService`.

A call is read into the body that the HTTP request would have, and goes the same way from there: the same guard, the
same turn, the same log, the same errors. Calls that one turn of the loop has read are decided together.
"""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from vitok.errors import MissingExtra
from vitok.serving import HotRequest, Reply, problem
from vitok.serving.door import MAX_BODY
from vitok.serving.grpc_calls import GrpcAddress, Turns, address_of, headers_of, lines_of, listening, plain, refuse
from vitok.serving.guarded import Guard
from vitok.serving.messages import Endpoint
from vitok.systems.fraud.decide_proto import METHODS, SERVICE, WANTED, as_json, messages, pool
from vitok.systems.fraud.edge import LEARN
from vitok.systems.fraud.service import FraudService


class DecideCalls:
    """Answers the calls; all of it runs on one event loop.

    Args:
        service: Takes outcomes.
        endpoint: What decides: the service, with what stands before it.
        guard: Stands before outcomes; None for nothing.
    """

    def __init__(self, service: FraudService, endpoint: Endpoint, *, guard: Guard | None = None) -> None:
        self._service = service
        self._endpoint = endpoint
        self._guard = guard
        self._turns = Turns()
        self._types = messages()

    async def decide(self, message: Any, context: Any) -> Any:
        """Decides on one transaction."""
        request = _request(message, context)
        if len(request.body) > MAX_BODY:
            detail = f"body: must be at most {MAX_BODY} bytes long"
            await refuse(context, problem(413, "Content Too Large", detail, field="body"))
        return await self._said("DecideResponse", await self._turns.ask(self._endpoint, request), context)

    async def outcome(self, message: Any, context: Any) -> Any:
        """Takes outcomes."""
        request = _request(message, context)
        refused = None if self._guard is None else self._guard.refusal(request, LEARN)
        reply = self._service.take(request) if refused is None else refused
        return await self._said("OutcomeResponse", reply, context)

    async def _said(self, name: str, reply: Reply, context: Any) -> Any:
        if reply.status != 200:
            await refuse(context, reply)
        if reply.headers:
            context.set_trailing_metadata(lines_of(reply))
        told = {key: value for key, value in msgspec.json.decode(reply.body).items() if value is not None}
        return self._types[name](**told)


def _request(message: Any, context: Any) -> HotRequest:
    body = msgspec.json.encode(as_json(message))
    return HotRequest(body, time.perf_counter_ns(), headers_of(context), address_of(context.peer()))


@contextlib.asynccontextmanager
async def decide_door(
    service: FraudService, endpoint: Endpoint, address: GrpcAddress, *, guard: Guard | None = None
) -> AsyncIterator[int]:
    """Answers gRPC on the running event loop while the block runs, with reflection and the standard health service.

    Args:
        service: Takes outcomes, and says whether it can do its work.
        endpoint: What decides: the service, with what stands before it.
        address: Where to listen.
        guard: Stands before outcomes; None for nothing.

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
        raise MissingExtra("grpc", WANTED) from None
    calls, types = DecideCalls(service, endpoint, guard=guard), messages()
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            plain(getattr(calls, method.lower())),
            request_deserializer=types[f"{method}Request"].FromString,
            response_serializer=types[f"{method}Response"].SerializeToString,
        )
        for method in METHODS
    }
    async with listening(
        address, service=SERVICE, handlers=handlers, descriptors=pool(), ready=service.can_decide, wanted=WANTED
    ) as port:
        yield port
