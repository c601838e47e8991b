"""The rest of the Open Inference Protocol over HTTP: health, metadata, the repository, and models not loaded yet."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitok import __version__
from vitok.errors import InvalidInput, NotFound, ServiceError, VitokError
from vitok.serving.asgi import DOOR
from vitok.serving.door import Door
from vitok.serving.hosting import ModelHost
from vitok.serving.inference import Hosted, described
from vitok.serving.inference_messages import error_reply
from vitok.serving.messages import HotRequest, Later, Reply
from vitok.serving.metrics import CONTENT_TYPE, Metrics
from vitok.serving.problems import MEDIA_TYPE, from_error, handlers
from vitok.serving.response_cache import CacheReport
from vitok.serving.shared_metrics import Exposing, SharedMetrics
from vitok.serving.shared_metrics import described as by_stage

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

    _Call = Callable[[Request], Awaitable[Response]]

EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
INFER, ADMIN = "infer:{name}", "admin"
"""What a key has to allow: for a model and what is told of it, and for the repository."""

_REFRESHING = threading.Lock()


def inference_routes(host: ModelHost, *, shared: SharedMetrics | None = None) -> "list[BaseRoute]":
    """Returns the routes of the protocol for a Starlette application beside the hot door.

    A model that a request loads is entered at the door, so that the next request takes the fast way.

    Args:
        host: The models.
        shared: What all workers of the service have measured; None where this process is the only one.
    """
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def enter(request: "Request") -> None:
        door = request.scope.get(DOOR)
        if door is not None:
            refresh(door, host)

    async def loaded(request: "Request") -> Hosted:
        name, version = request.path_params["name"], request.path_params.get("version")
        hosted = await asyncio.to_thread(host.get, name, version)
        enter(request)
        return hosted

    def answer(reply: Reply) -> "Response":
        lines = [line.decode("latin-1").partition(":") for line in reply.headers.splitlines()]
        headers = {name.strip(): value.strip() for name, _, value in lines}
        media = reply.media_type.decode() or ("application/json" if reply.status < 400 else MEDIA_TYPE)
        return Response(reply.body, reply.status, headers, media_type=media)

    def checked(call: "_Call", scope: str = INFER) -> "_Call":
        # The guard is asked before anything is loaded, or told of what is there.
        async def answered(request: "Request") -> "Response":
            if host.guard is not None:
                refused = host.guard.refusal(_hot(request), scope.format(**request.path_params))
                if refused is not None:
                    return answer(refused)
            try:
                return await call(request)
            except VitokError as error:
                return answer(error_reply(from_error(error)))

        return answered

    async def infer(request: "Request") -> "Response":
        body = await request.body()
        name, version = request.path_params["name"], request.path_params.get("version")
        try:
            endpoint = host.endpoint(name, version, entered=lambda: enter(request))
        except VitokError as error:
            return answer(error_reply(from_error(error)))
        reply = endpoint.handle([_hot(request, body)])[0]
        return answer(await _given(reply) if isinstance(reply, Later) else reply)

    async def metadata(request: "Request") -> "Response":
        return JSONResponse(described(await loaded(request)))

    async def model_ready(request: "Request") -> "Response":
        name, version = request.path_params["name"], request.path_params.get("version")
        await loaded(request)
        return JSONResponse({"name": name, "ready": True} | ({"version": version} if version else {}))

    async def statistics(request: "Request") -> "Response":
        return JSONResponse({"model_stats": [statistics_of(await loaded(request))]})

    async def latency(request: "Request") -> "Response":
        stages = (await loaded(request)).stages.histograms
        if shared is not None:
            mark = request.url.path.removesuffix("/latency") + "/infer:"
            found = await asyncio.to_thread(shared.latencies)
            stages = {key.removeprefix(mark): value for key, value in found.items() if key.startswith(mark)}
        return JSONResponse({"name": request.path_params["name"], "stages": by_stage(stages)})

    async def server(_: "Request") -> "Response":
        return JSONResponse({"name": "vitok", "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(_: "Request") -> "Response":
        return JSONResponse({"live": True})

    async def ready(_: "Request") -> "Response":
        told = {"missing": absent(host), "problems": dict(host.problems()), "failures": dict(host.failures)}
        # A version that cannot be loaded leaves the one before in force.
        well = not (told["missing"] or told["problems"])
        return JSONResponse(
            {"ready": well} | {name: found for name, found in told.items() if found}, 200 if well else 503
        )

    async def index(_: "Request") -> "Response":
        return JSONResponse(await asyncio.to_thread(listed, host))

    async def load(request: "Request") -> "Response":
        await asyncio.to_thread(loaded_anew, host, request.path_params["name"])
        enter(request)
        return JSONResponse({})

    async def unload(request: "Request") -> "Response":
        await asyncio.to_thread(unloaded, host, request.path_params["name"])
        enter(request)
        return JSONResponse({})

    one = "/v2/models/{name}"
    both = [one, one + "/versions/{version}"]
    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/repository/index", checked(index, ADMIN), methods=["POST"]),
        Route("/v2/repository/models/{name}/load", checked(load, ADMIN), methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", checked(unload, ADMIN), methods=["POST"]),
        *(Route(path, checked(metadata)) for path in both),
        *(Route(path + "/ready", checked(model_ready)) for path in both),
        *(Route(path + "/stats", checked(statistics)) for path in both),
        *(Route(path + "/latency", checked(latency)) for path in both),
        *(Route(path + "/infer", infer, methods=["POST"]) for path in both),
    ]


async def _given(later: Later) -> Reply:
    given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    later.then(lambda: None if given.done() else given.set_result(None))
    await given
    assert later.reply is not None  # noqa: S101
    return later.reply


def _hot(request: "Request", body: bytes = b"") -> HotRequest:
    peer = request.client.host if request.client is not None else ""
    return HotRequest(body, time.perf_counter_ns(), list(request.scope["headers"]), peer)


def refresh(door: Door, host: ModelHost) -> None:
    """Enters the loaded models at the hot door, and takes out those that were let go; on whatever thread.

    What is entered is what the host says, with its guard before it: whatever stood there before is replaced.
    """
    with _REFRESHING:
        known = {path.encode(): endpoint for path, endpoint in list(host.endpoints.items())}
        for path in [path for path in list(door.table) if path.startswith(b"/v2/models/") and path not in known]:
            door.table.pop(path, None)
        door.table.update(known)


def ready_to_answer(host: ModelHost) -> bool:
    """Says whether all that is pinned is loaded, and nothing keeps it from answering."""
    return not absent(host) and not host.problems()


def absent(host: ModelHost) -> list[str]:
    """Returns the pinned models that are not loaded: until there is none, the service is not ready."""
    here = {item.name for item in host.loaded()}
    return [name for name in host.pinned if name not in here]


def listed(host: ModelHost) -> list[dict[str, str]]:
    """Returns every version of every model with its state, as the repository extension has them."""
    here = {item.runtime.version for item in host.loaded()}
    names = {item.name for item in host.loaded()}
    rows = []
    for name in host.catalogue.names():
        versions = host.catalogue.versions(name)
        for version in versions:
            state = "READY" if f"{name}/{version}" in here else "UNAVAILABLE"
            rows.append({"name": name, "version": version, "state": state})
        if versions and name in host.failures and name in names:
            rows[-1]["reason"] = host.failures[name]
    return rows


def loaded_anew(host: ModelHost, name: str) -> None:
    """Loads a model, or the version of it that is in force by now.

    Raises:
        VitokError: If it cannot be loaded; the version before goes on answering.
    """
    host.get(name)
    host.follow()
    failure = host.failures.get(name)
    if failure is not None:
        raise ServiceError(failure)


def unloaded(host: ModelHost, name: str) -> None:
    """Lets a model go; what is not loaded is as it should be.

    Raises:
        InvalidInput: If it is pinned.
    """
    if name in host.pinned:
        raise InvalidInput("name", name, "not be pinned")
    with contextlib.suppress(NotFound):
        host.unload(name)


def inference_application(
    host: ModelHost,
    *,
    metrics: Metrics | None = None,
    lifespan: Callable[[Any], Any] | None = None,
    shared: SharedMetrics | None = None,
) -> "Starlette":
    """Makes the application beside the hot door: the protocol, its OpenAPI document, and metrics.

    Args:
        host: The models.
        metrics: What Prometheus reads at `/metrics`; None for nothing.
        lifespan: What is done before the first request and after the last, as Starlette has it.
        shared: What all workers of the service have measured, `metrics` of this one among it; None where this process
            is the only one.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from vitok.serving.inference_openapi import inference_openapi

    async def openapi(_: "Request") -> "Response":
        return JSONResponse(inference_openapi(host))

    def with_error(handle: Callable[..., Any]) -> Callable[..., Any]:
        # The protocol's clients look for what is wrong in `error`, whatever went wrong.
        async def answered(request: "Request", error: Exception) -> "Response":
            response = await handle(request, error)
            if response.media_type == MEDIA_TYPE:
                known = ("content-length", "content-type")
                headers = {name: value for name, value in response.headers.items() if name not in known}
                body = error_reply(Reply(response.status_code, response.body)).body
                return Response(body, response.status_code, headers, media_type=MEDIA_TYPE)
            return response

        return answered

    routes = [*inference_routes(host, shared=shared), Route("/openapi.json", openapi)]
    if metrics is not None:
        watch(metrics, host)
        routes.append(metrics_route(metrics if shared is None else shared))
    found = {kind: with_error(handle) for kind, handle in handlers().items()}
    return Starlette(routes=routes, exception_handlers=found, lifespan=lifespan)


def statistics_of(hosted: Hosted) -> dict[str, Any]:
    """Returns what a model has done, in the words of the statistics extension; times in nanoseconds."""
    counts, cost = hosted.counts, hosted.runtime.cost
    done = counts["requests"] - counts["refused"] - counts["failed"]
    cached = {} if hosted.cache is None else {"cache": _told(hosted.cache.report)}
    return {
        "name": hosted.name,
        "version": hosted.runtime.version.rpartition("/")[2],
        "inference_count": counts["rows"],
        "execution_count": cost.batches,
        "inference_stats": {
            "success": {"count": done, "ns": 1000 * hosted.latency.total},
            "fail": {"count": counts["failed"] + counts["refused"], "ns": 0},
            "queue": {"count": counts["requests"], "ns": 1000 * hosted.waited.total},
            "compute_infer": {"count": cost.batches, "ns": int(1e9 * cost.cpu_seconds)},
        },
        **cached,
    }


def _told(report: CacheReport) -> dict[str, Any]:
    # JSON has no NaN for what has not been measured yet.
    found = asdict(report)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def watch(metrics: Metrics, host: ModelHost) -> None:
    """Shows the models of a host in the metrics that Prometheus reads."""
    metrics.read_counter(
        "vitok_inference_total",
        "Requests, rows, batches, refusals and failures, by path.",
        lambda: {
            (path, kind): float(count)
            for path, item in host.by_path().items()
            for kind, count in dict(item.counts).items()
        },
        labels=("path", "kind"),
    )
    metrics.read_counter(
        "vitok_inference_cpu_seconds_total",
        "Processor seconds that a version has taken since it was loaded.",
        lambda: {(item.runtime.version,): item.runtime.cost.cpu_seconds for item in host.loaded()},
        labels=("version",),
    )
    metrics.latencies(
        "vitok_inference_seconds",
        "From the arrival of a request until its answer was written.",
        lambda: {(path,): item.latency for path, item in host.by_path().items()},
        labels=("path",),
    )
    metrics.latencies(
        "vitok_inference_wait_seconds",
        "From the arrival of a request to the start of its batch.",
        lambda: {(path,): item.waited for path, item in host.by_path().items()},
        labels=("path",),
    )
    metrics.latencies(
        "vitok_inference_stage_seconds",
        "Time that a batch spends in each stage.",
        lambda: {
            (path, stage): found
            for path, item in host.by_path().items()
            for stage, found in item.stages.histograms.items()
            if stage not in ("wait", "total")
        },
        labels=("path", "stage"),
    )
    metrics.read_counter(
        "vitok_cache_rows_total",
        "Rows that were looked up in the response cache, and what became of them, by path.",
        lambda: {
            (path, kind): float(getattr(report, kind))
            for path, report in [
                (path, item.cache.report) for path, item in host.by_path().items() if item.cache is not None
            ]
            for kind in ("rows", "hits", "coalesced", "passed")
        },
        labels=("path", "kind"),
    )
    metrics.read_counter(
        "vitok_guard_refused_total",
        "Requests that the guard has refused, by reason.",
        lambda: {} if host.guard is None else {(why,): float(n) for why, n in dict(host.guard.refused).items()},
        labels=("reason",),
    )


def metrics_route(metrics: Exposing) -> "BaseRoute":
    """Returns the route that Prometheus reads."""
    from starlette.responses import Response
    from starlette.routing import Route

    async def exposition(_: "Request") -> "Response":
        # Where several workers share their metrics this reads their files.
        return Response(await asyncio.to_thread(metrics.expose), media_type=CONTENT_TYPE)

    return Route("/metrics", exposition)
