"""The rest of the Open Inference Protocol over HTTP: health, metadata, the repository, and models not loaded yet."""

import asyncio
import contextlib
import time
from collections.abc import Callable
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
from vitok.serving.problems import MEDIA_TYPE, from_error, handlers, problem

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute

EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")


def inference_routes(host: ModelHost) -> "list[BaseRoute]":
    """Returns the routes of the protocol for a Starlette application beside the hot door.

    A model that a request loads is entered at the door, so that the next request takes the fast way.

    Args:
        host: The models.
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

    def refusal(error: VitokError) -> "Response":
        return answer(error_reply(from_error(error)))

    async def infer(request: "Request") -> "Response":
        body = await request.body()
        arrived = time.perf_counter_ns()
        try:
            await loaded(request)
        except VitokError as error:
            return refusal(error)
        endpoint = host.endpoints.get(request.url.path)
        if endpoint is None:
            return answer(error_reply(problem(404, "Not Found", f"{request.url.path} is not served")))
        reply = endpoint.handle([HotRequest(body, arrived, list(request.scope["headers"]))])[0]
        if isinstance(reply, Later):
            given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            reply.then(lambda: None if given.done() else given.set_result(None))
            await given
            assert reply.reply is not None  # noqa: S101
            return answer(reply.reply)
        return answer(reply)

    async def metadata(request: "Request") -> "Response":
        try:
            return JSONResponse(described(await loaded(request)))
        except VitokError as error:
            return refusal(error)

    async def model_ready(request: "Request") -> "Response":
        name, version = request.path_params["name"], request.path_params.get("version")
        try:
            await loaded(request)
        except VitokError as error:
            return refusal(error)
        return JSONResponse({"name": name, "ready": True} | ({"version": version} if version else {}))

    async def statistics(request: "Request") -> "Response":
        try:
            return JSONResponse({"model_stats": [statistics_of(await loaded(request))]})
        except VitokError as error:
            return refusal(error)

    async def server(_: "Request") -> "Response":
        return JSONResponse({"name": "vitok", "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(_: "Request") -> "Response":
        return JSONResponse({"live": True})

    async def ready(_: "Request") -> "Response":
        missing = absent(host)
        status = {"ready": not missing} | ({"missing": missing} if missing else {})
        return JSONResponse(status | ({"failures": host.failures} if host.failures else {}), 503 if missing else 200)

    async def index(_: "Request") -> "Response":
        return JSONResponse(await asyncio.to_thread(listed, host))

    async def load(request: "Request") -> "Response":
        try:
            await asyncio.to_thread(loaded_anew, host, request.path_params["name"])
        except VitokError as error:
            return refusal(error)
        enter(request)
        return JSONResponse({})

    async def unload(request: "Request") -> "Response":
        try:
            await asyncio.to_thread(unloaded, host, request.path_params["name"])
        except VitokError as error:
            return refusal(error)
        enter(request)
        return JSONResponse({})

    one = "/v2/models/{name}"
    both = [one, one + "/versions/{version}"]
    return [
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", unload, methods=["POST"]),
        *(Route(path, metadata) for path in both),
        *(Route(path + "/ready", model_ready) for path in both),
        *(Route(path + "/stats", statistics) for path in both),
        *(Route(path + "/infer", infer, methods=["POST"]) for path in both),
    ]


def refresh(door: Door, host: ModelHost) -> None:
    """Enters the loaded models at the hot door, and takes out those that were let go."""
    known = {path.encode(): endpoint for path, endpoint in list(host.endpoints.items())}
    for path in [path for path in list(door.table) if path.startswith(b"/v2/models/") and path not in known]:
        door.table.pop(path, None)
    door.table.update(known)


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
    host: ModelHost, *, metrics: Metrics | None = None, lifespan: Callable[[Any], Any] | None = None
) -> "Starlette":
    """Makes the application beside the hot door: the protocol, its OpenAPI document, and metrics.

    Args:
        host: The models.
        metrics: What Prometheus reads at `/metrics`; None for nothing.
        lifespan: What is done before the first request and after the last, as Starlette has it.
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

    routes = [*inference_routes(host), Route("/openapi.json", openapi)]
    if metrics is not None:
        watch(metrics, host)
        routes.append(metrics_route(metrics))
    found = {kind: with_error(handle) for kind, handle in handlers().items()}
    return Starlette(routes=routes, exception_handlers=found, lifespan=lifespan)


def statistics_of(hosted: Hosted) -> dict[str, Any]:
    """Returns what a model has done, in the words of the statistics extension; times in nanoseconds."""
    counts, cost = hosted.counts, hosted.runtime.cost
    done = counts["requests"] - counts["refused"] - counts["failed"]
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
    }


def watch(metrics: Metrics, host: ModelHost) -> None:
    """Shows the models of a host in the metrics that Prometheus reads."""
    metrics.read_counter(
        "vitok_inference_total",
        "Requests, rows, batches, refusals and failures, by path.",
        lambda: {
            (path, kind): float(count) for path, item in host.by_path().items() for kind, count in item.counts.items()
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


def metrics_route(metrics: Metrics) -> "BaseRoute":
    """Returns the route that Prometheus reads."""
    from starlette.responses import Response
    from starlette.routing import Route

    async def exposition(_: "Request") -> "Response":
        return Response(metrics.expose(), media_type=CONTENT_TYPE)

    return Route("/metrics", exposition)
