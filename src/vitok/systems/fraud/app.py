"""The HTTP side of the fraud service: outcomes, look-ups, health, metrics, and the OpenAPI document."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vitok import __version__, contracts, ids
from vitok.clock import isoformat
from vitok.decision import Decision
from vitok.errors import InvalidInput, VitokError
from vitok.models import BoostedTrees
from vitok.monitoring.prometheus import Sample, publish
from vitok.registry import Registry
from vitok.serving import HotRequest, Metrics, handlers
from vitok.serving.guarded import Guard
from vitok.serving.shared_metrics import described
from vitok.systems.fraud.edge import OUTCOMES, GuardedApplication
from vitok.systems.fraud.intake import CONTRACT
from vitok.systems.fraud.messages import SYSTEM, Answer, OutcomeBatch
from vitok.systems.fraud.notices import GAUGES
from vitok.systems.fraud.service import FraudService

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

PROBLEM = "application/problem+json"
FOLLOW_SECONDS = 0.05
_LOG = logging.getLogger("vitok.fraud")


def application(
    service: FraudService,
    *,
    pages: "Sequence[BaseRoute]" = (),
    guard: Guard | None = None,
    samples: Callable[[], Iterable[Sample]] | None = None,
    beside: "Callable[[], contextlib.AbstractAsyncContextManager[object]]" = contextlib.nullcontext,
) -> "Starlette | GuardedApplication":
    """Makes the ASGI application; decisions themselves take the hot door beside it.

    While it runs, a thread follows the ledger, so that a version is loaded beside the requests and not among them.

    Args:
        service: What it shows.
        pages: Further routes, such as the console's.
        guard: Stands before all but health, metrics and the document; None for nothing.
        samples: Gives the gauges of who watches and acts, for the page of metrics; None where nobody does here.
        beside: Makes what is entered before the first request and left after the last, such as a door of gRPC.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    metrics = _metrics(service, guard)
    if samples is not None:
        publish(metrics, samples, gauges=GAUGES)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=follow, args=(service, stop), name="follower", daemon=True)
        thread.start()
        try:
            async with beside():
                yield
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)

    async def outcomes(request: "Request") -> "Response":
        came = HotRequest(await request.body(), time.perf_counter_ns(), request.headers.raw)
        reply = service.take(came)
        media = "application/json" if reply.status < 400 else PROBLEM
        return Response(reply.body, reply.status, media_type=media)

    async def decision(request: "Request") -> "Response":
        text = request.path_params["decision_id"]
        if not _is_uuid(text):
            raise InvalidInput("decision_id", text, "be a UUID", "It is the decision_id of an answer.")
        found = service.find(text)
        document = msgspec.to_builtins(found)
        document["features"] = {name: None if value != value else value for name, value in found.features.items()}
        document["event_time"], document["ingest_time"] = isoformat(found.event_time), isoformat(found.ingest_time)
        document["reasons"] = [{"feature": name, "log_odds": value} for name, value in reasons(service.registry, found)]
        return Response(msgspec.json.encode(document), media_type="application/json")

    async def healthy(_: "Request") -> "Response":
        return JSONResponse({"status": "ok", "version": __version__})

    async def ready(_: "Request") -> "Response":
        parts = service.ready()
        good = service.can_decide()
        current = service.versions.current
        told: dict[str, Any] = {"status": "ok" if good else "not ready", **parts, "revision": current.revision}
        told["overrides"] = [one.key for one in current.overrides]
        return JSONResponse(told, 200 if good else 503)

    async def exposition(_: "Request") -> "Response":
        return Response(metrics.expose(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def latency(_: "Request") -> "Response":
        return JSONResponse({"name": SYSTEM, "stages": described(service.stages.histograms)})

    async def document(_: "Request") -> "Response":
        return JSONResponse(openapi())

    app = Starlette(
        routes=[
            Route(OUTCOMES, outcomes, methods=["POST"]),
            Route("/v1/decisions/{decision_id}", decision),
            Route("/healthz", healthy),
            Route("/readyz", ready),
            Route("/metrics", exposition),
            Route("/v1/systems/fraud/latency", latency),
            Route("/openapi.json", document),
            *pages,
        ],
        exception_handlers=handlers(),
        lifespan=lifespan,
    )
    return app if guard is None else GuardedApplication(app, guard)


def follow(service: FraudService, stop: threading.Event, *, every: float = FOLLOW_SECONDS) -> None:
    """Puts in force what the ledger says, and the challenger's newest snapshot, until `stop` is set.

    Made for a thread of its own. A ledger that cannot be read is said once, and what was in force goes on.
    """
    said = ""
    while not stop.wait(every):
        try:
            service.refresh()
            said = ""
        except VitokError as error:
            if str(error) != said:
                _LOG.exception("the ledger cannot be read; the versions in force go on")
            said = str(error)


def reasons(registry: Registry, decision: Decision, *, most: int = 6) -> list[tuple[str, float]]:
    """Says what moved a decision's score: the features with the largest part in the log-odds, from its own version.

    Returns:
        (feature, change of the log-odds), largest first; empty where rules answered, or a model that is no trees.
    """
    if "/" not in decision.model_version:
        return []
    package = registry.load(SYSTEM, int(decision.model_version.partition("/")[2]))
    if "model.txt" not in package:
        return []
    names = tuple(package.json("signature.json")["inputs"])
    trees = BoostedTrees(package.text("model.txt"), names, 0)
    row = np.array([[decision.features.get(name, np.nan) for name in names]], dtype=np.float64)
    parts = trees.contributions(row)[0]
    order = np.argsort(-np.abs(parts))[:most]
    return [(names[i], round(float(parts[i]), 4)) for i in order]


def _is_uuid(text: str) -> bool:
    try:
        return ids.text(bytes.fromhex(text.replace("-", ""))) == text.lower()
    except ValueError:
        return False


def _metrics(service: FraudService, guard: Guard | None) -> Metrics:
    metrics = Metrics()
    if guard is not None:
        metrics.read_counter(
            "vitok_guard_refused_total",
            "Requests that the guard has refused, by reason.",
            lambda: {(reason,): float(n) for reason, n in dict(guard.refused).items()},
            labels=("reason",),
        )
    metrics.latencies(
        "vitok_stage_seconds",
        "Where the time of a decision goes: of each request `wait` and `total`, of each turn the rest.",
        lambda: {(stage,): found for stage, found in service.stages.histograms.items()},
        labels=("stage",),
    )
    metrics.read_counter(
        "vitok_events_total",
        "What happened, by kind.",
        lambda: {(name,): float(count) for name, count in service.counts.items()},
        labels=("kind",),
    )
    metrics.latencies(
        "vitok_decision_seconds",
        "From the arrival of a request until its answer was made.",
        lambda: {(): service.latency},
    )
    metrics.gauge(
        "vitok_ready",
        "1 where a part can do its work.",
        lambda: {(name,): float(state == "ok") for name, state in service.ready().items()},
        labels=("part",),
    )
    return metrics


def openapi() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the service."""
    (answer, batch), components = msgspec.json.schema_components(
        (Answer, OutcomeBatch), ref_template="#/components/schemas/{name}"
    )
    components["Transaction"] = contracts.load(CONTRACT).json_schema("transactions")
    components["Problem"] = {
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string"},
            "errors": {"type": "array", "items": {"type": "object"}},
        },
        "required": ["type", "title", "status", "detail"],
    }

    def response(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
        content = {"application/json": {"schema": schema or {"type": "object"}}}
        return {"description": description, "content": content}

    def trouble(description: str) -> dict[str, Any]:
        return {"description": description, "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}

    refused = {
        "400": trouble("The body is not JSON."),
        "401": trouble("Where keys are asked for: there is none, or it is not good."),
        "403": trouble("The key does not allow this, or the address may not ask."),
        "413": trouble("The body is too large."),
        "422": trouble("A field is missing, unknown, of the wrong type, or breaks the contract."),
        "429": trouble("Too many requests of this key, user or address; Retry-After says when."),
        "503": trouble("The log cannot be written; nothing was decided."),
    }

    def body(schema: dict[str, Any]) -> dict[str, Any]:
        return {"required": True, "content": {"application/json": {"schema": schema}}}

    text = {"200": {"description": "Metrics", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    uuid = {"name": "decision_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "vitok fraud", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": {
            "/v1/systems/fraud/decide": {
                "post": {
                    "summary": "Decides on one transaction; the same transaction_id always gets the same decision.",
                    "requestBody": body({"$ref": "#/components/schemas/Transaction"}),
                    "responses": {
                        "200": response("The decision", answer),
                        **refused,
                        "409": trouble("The transaction_id came before with other contents."),
                    },
                }
            },
            OUTCOMES: {
                "post": {
                    "summary": "Takes what became of transactions.",
                    "requestBody": body(batch),
                    "responses": {"200": response("How many were taken, and which were not"), **refused},
                }
            },
            "/v1/decisions/{decision_id}": {
                "get": {
                    "summary": "Shows one decision with everything that made it.",
                    "parameters": [uuid],
                    "responses": {
                        "200": response("The decision"),
                        "404": trouble("There is no such decision."),
                        "422": trouble("The id is not a UUID."),
                    },
                }
            },
            "/healthz": {"get": {"summary": "Whether the process lives.", "responses": {"200": response("It does")}}},
            "/readyz": {
                "get": {
                    "summary": "Whether it can decide and record.",
                    "responses": {"200": response("It can"), "503": response("It cannot; the body says which part")},
                }
            },
            "/metrics": {"get": {"summary": "Prometheus metrics.", "responses": text}},
            "/v1/systems/fraud/latency": {
                "get": {
                    "summary": "Where the time of decisions goes, by stage.",
                    "responses": {"200": response("Quantiles in microseconds, and histograms that can be added up")},
                }
            },
        },
        "components": {"schemas": components},
    }
