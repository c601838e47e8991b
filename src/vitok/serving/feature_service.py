"""The feature service over HTTP: entity keys, request features and a time in, vectors in the model's order out.

All requests that one turn of the event loop has read for one feature set are answered by one read of the store.
"""

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from vitok import __version__
from vitok.errors import InvalidInput, NotFound, VitokError
from vitok.features import FeatureSet
from vitok.features.vectors import SOURCE_WORDS, STATUS_WORDS, Vectors
from vitok.serving.feature_readiness import Readiness
from vitok.serving.inference_http import metrics_route
from vitok.serving.messages import HotRequest, Reply
from vitok.serving.metrics import Metrics
from vitok.serving.problems import UNDECODABLE, from_decode_error, from_error, handlers, problem
from vitok.stats import LatencyHistogram

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MAX_ENTITIES = 1_000
WAIT_METRIC = "vitok_feature_wait_seconds"
"""Histogram that an autoscaler looks at."""
_OTHERS = (("/healthz", "Alive"), ("/readyz", "Able to answer"), ("/metrics", "For Prometheus"))
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)

Key = str | int
Moment = dt.datetime


class VectorReader(Protocol):
    """Reads vectors of a feature set, as `vitok.features.FeatureReader` does."""

    features: FeatureSet

    def read(
        self,
        keys: Mapping[str, Sequence[Key]],
        *,
        time: int | Sequence[int] | None = None,
        request: Mapping[str, Sequence[float]] | None = None,
    ) -> Vectors:
        """Returns one vector for each key."""
        ...


class Served(Protocol):
    """Notes what was served, as `vitok.features.served_writer.ServedSet` does; takes no time and never fails."""

    def add(self, vectors: Vectors, times: Sequence[int] | None = None) -> None:
        """Notes vectors that are served now."""
        ...


class VectorsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/features/{name}/vectors`.

    Attributes:
        keys: Key column to one key or to n of them.
        request: Request column to one number or to n; null where it has none.
        time: When the question is asked, or n such moments; now by default.
        details: Whether the answer says by view how old its values are and where they come from.
    """

    keys: dict[str, Key | list[Key]]
    request: dict[str, float | list[float | None] | None] = {}
    time: Moment | list[Moment] | None = None
    details: bool = False


class VectorsAnswer(msgspec.Struct, omit_defaults=True):
    """The body of an answer.

    Attributes:
        version: Content hash of the definitions.
        values: n rows in the order of `GET /v1/features/{name}`; null where a feature has no value.
        status: The worst status of each row's views: fresh, stale or missing.
        views: By view, for each row: when its values were true, their status, and where they come from.
    """

    version: str
    values: list[list[float]]
    status: list[str]
    views: dict[str, "ViewDetails"] | None = None


class ViewDetails(msgspec.Struct):
    """How old the values of one view are and where they come from, one item a row.

    Attributes:
        event_time: Microseconds since 1970 UTC; null where there is no row.
        status: fresh, stale or missing.
        source: store, cache or default.
    """

    event_time: list[int | None]
    status: list[str]
    source: list[str]


class Asked(msgspec.Struct, frozen=True):
    """A request as the reader wants it: n keys, n request numbers, n times or None."""

    n: int
    keys: dict[str, list[Key]]
    request: dict[str, list[float]]
    times: list[int] | None


class FeatureEndpoint:
    """Answers requests for the vectors of one feature set, at the hot door.

    Args:
        name: Name of the set in the path.
        reader: Where the vectors come from.
        max_entities: Most entities that one request may ask for.
        served: Notes every vector that is served, through whatever door.

    Attributes:
        counts: Requests, vectors and refusals at this door.
        waited: How long requests waited until their turn was taken up.

    Example:
        >>> from vitok.engines import open_rows
        >>> from vitok.features import Entity, FeatureReader, FeatureSet, Latest, Source
        >>> limits = Latest(
        ...     name="account", entity=Entity("customer", "customer_id"), source=Source("accounts"), columns=("limit",)
        ... )
        >>> reader = FeatureReader(FeatureSet(views=(limits,)), open_rows("memory://service-example"))
        >>> endpoint = FeatureEndpoint("account", reader)
        >>> endpoint.handle([HotRequest(b'{"keys": {"customer_id": "7"}}', 0, [])])[0].body[-39:]
        b'"values":[[null]],"status":["missing"]}'
    """

    def __init__(
        self, name: str, reader: VectorReader, *, max_entities: int = MAX_ENTITIES, served: Served | None = None
    ) -> None:
        self.name = name
        self.path = f"/v1/features/{name}/vectors"
        self.reader = reader
        self.max_entities = max_entities
        self.served = served
        self.counts = {"requests": 0, "vectors": 0, "refused": 0}
        self.waited = LatencyHistogram()
        self._decoder = msgspec.json.Decoder(VectorsRequest)
        self._encoder = msgspec.json.Encoder()
        self._version = reader.features.version

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        """Answers requests in order, by one read."""
        self.counts["requests"] += len(requests)
        self.waited.record_since([request.arrived for request in requests], time.perf_counter_ns())
        replies: list[Reply | None] = [None] * len(requests)
        asked: list[tuple[int, VectorsRequest, Asked]] = []
        for place, request in enumerate(requests):
            try:
                body = self._decoder.decode(request.body)
                asked.append((place, body, self.admit(body)))
            except UNDECODABLE as error:
                replies[place] = from_decode_error(error, request.body)
            except InvalidInput as error:
                replies[place] = from_error(error)
        for place, body, reply in self._answered(asked):
            replies[place] = reply if isinstance(reply, Reply) else self._reply(body, *reply)
        self.counts["refused"] += sum(reply is not None and reply.status >= 400 for reply in replies)
        return [reply or problem(500, "No answer", "This is a fault of the service.") for reply in replies]

    def admit(self, body: VectorsRequest) -> Asked:
        """Checks a request and gives every column its n items.

        Raises:
            InvalidInput: If a column is missing or of another length, or there are too many entities.
        """
        features = self.reader.features
        lengths = {len(keys) for keys in body.keys.values() if isinstance(keys, list)}
        n = max(lengths, default=1)
        if n > self.max_entities:
            raise InvalidInput("keys", f"{n} entities", f"be at most {self.max_entities}", "Ask in several requests.")
        keys: dict[str, list[Key]] = {}
        for name in features.entity_keys:
            if name not in body.keys:
                raise InvalidInput("keys", sorted(body.keys), f"hold {name}")
            keys[name] = _column(f"keys.{name}", body.keys[name], n)
        numbers: dict[str, list[float]] = {}
        for name in features.request:
            if name not in body.request:
                raise InvalidInput("request", sorted(body.request), f"hold {name}")
            column = _column(f"request.{name}", body.request[name], n)
            numbers[name] = [float("nan") if number is None else number for number in column]
        times = None
        if body.time is not None:
            times = [_microseconds(moment) for moment in _column("time", body.time, n)]
        return Asked(n, keys, numbers, times)

    def vectors(self, asked: Asked) -> Vectors:
        """Reads what a request of any door asks for, and notes what it gets."""
        vectors = self.reader.read(asked.keys, time=asked.times, request=asked.request)
        if self.served is not None:
            self.served.add(vectors, asked.times)
        return vectors

    def warm_up(self) -> None:
        """Asks for an entity that nobody has, so that the first client does not wait for what is made on first use."""
        features = self.reader.features
        keys: dict[str, list[Key]] = {name: ["-"] for name in features.entity_keys}
        self.reader.read(keys, request={name: [0.0] for name in features.request})

    def _answered(
        self, asked: "Sequence[tuple[int, VectorsRequest, Asked]]"
    ) -> "list[tuple[int, VectorsRequest, Reply | tuple[Vectors, int, int]]]":
        # Requests about now are read together; where one of them is wrong, each is read alone so that only it fails.
        out: list[tuple[int, VectorsRequest, Reply | tuple[Vectors, int, int]]] = []
        together = [item for item in asked if item[2].times is None]
        if len(together) > 1:
            try:
                vectors = self.vectors(_joined([item[2] for item in together]))
            except VitokError:
                vectors = None
            if vectors is not None:
                at = 0
                for place, body, one in together:
                    out.append((place, body, (vectors, at, at + one.n)))
                    at += one.n
                asked = [item for item in asked if item[2].times is not None]
        for place, body, one in asked:
            try:
                out.append((place, body, (self.vectors(one), 0, one.n)))
            except VitokError as error:
                out.append((place, body, from_error(error)))
        return out

    def _reply(self, body: VectorsRequest, vectors: Vectors, begin: int, end: int) -> Reply:
        self.counts["vectors"] += end - begin
        worst = vectors.status[begin:end].max(axis=1, initial=0).tolist()
        answer = VectorsAnswer(
            self._version,
            vectors.values[begin:end].tolist(),
            [STATUS_WORDS[status] for status in worst],
            _details(vectors, begin, end) if body.details else None,
        )
        return Reply(200, self._encoder.encode(answer))


def feature_application(endpoints: Sequence[FeatureEndpoint], *, readiness: Readiness | None = None) -> "Starlette":
    """Makes the ASGI application beside the hot endpoints: what sets there are, health, and the OpenAPI document.

    Args:
        endpoints: One a feature set; hand them to `vitok.serving.serve` too.
        readiness: Says what `/readyz` answers; by default the stores of the endpoints alone count.
    """
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    by_name = {endpoint.name: endpoint for endpoint in endpoints}
    readiness = readiness or Readiness(endpoints)
    metrics = _metrics(by_name, readiness)

    async def listed(_: "Request") -> "Response":
        return JSONResponse({"feature_sets": [summary(endpoint) for endpoint in by_name.values()]})

    async def one(request: "Request") -> "Response":
        name = request.path_params["name"]
        if name not in by_name:
            raise NotFound("feature set", name, sorted(by_name))
        return JSONResponse({**summary(by_name[name]), "definition": by_name[name].reader.features.describe()})

    async def healthy(_: "Request") -> "Response":
        return JSONResponse({"status": "ok", "version": __version__})

    async def ready(_: "Request") -> "Response":
        found = readiness.report()
        return JSONResponse(found.to_dict(), 200 if found.ready else 503)

    async def document(_: "Request") -> "Response":
        return JSONResponse(feature_openapi(endpoints))

    return Starlette(
        routes=[
            Route("/v1/features", listed),
            Route("/v1/features/{name}", one),
            Route("/healthz", healthy),
            Route("/readyz", ready),
            metrics_route(metrics),
            Route("/openapi.json", document),
        ],
        exception_handlers=handlers(),
    )


def _metrics(endpoints: Mapping[str, FeatureEndpoint], readiness: Readiness) -> Metrics:
    metrics = Metrics()
    metrics.read_counter(
        "vitok_feature_requests_total",
        "Requests, vectors and refusals over HTTP, by feature set.",
        lambda: {(name, kind): float(n) for name, one in endpoints.items() for kind, n in one.counts.items()},
        labels=("feature_set", "kind"),
    )
    metrics.latencies(
        WAIT_METRIC,
        "From the arrival of a request until its turn was taken up.",
        lambda: {(name,): one.waited for name, one in endpoints.items()},
        labels=("feature_set",),
    )
    metrics.gauge("vitok_ready", "1 where it can answer.", lambda: {(): float(readiness.report().ready)})
    return metrics


def summary(endpoint: FeatureEndpoint) -> dict[str, Any]:
    """Returns what a client has to know of a feature set."""
    features = endpoint.reader.features
    return {
        "name": endpoint.name,
        "version": features.version,
        "features": list(features.names),
        "keys": list(features.entity_keys),
        "request": list(features.request),
        "views": [
            {"name": view.name, "version": view.version, "owner": view.owner, "description": view.description}
            for view in features.views
        ],
        "max_entities": endpoint.max_entities,
    }


def feature_openapi(endpoints: Sequence[FeatureEndpoint]) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the service."""
    (request, answer), components = msgspec.json.schema_components(
        (VectorsRequest, VectorsAnswer), ref_template="#/components/schemas/{name}"
    )
    refusal = {"description": "What is wrong, as RFC 9457 has it", "content": {"application/problem+json": {}}}
    codes = dict.fromkeys(("400", "405", "413", "422"), refusal)
    paths: dict[str, Any] = {
        endpoint.path: {
            "post": {
                "summary": f"Vectors of {endpoint.name}: {len(endpoint.reader.features.names)} features",
                "operationId": f"vectors_{endpoint.name}",
                "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
                "responses": {
                    "200": {"description": "One vector an entity", "content": {"application/json": {"schema": answer}}},
                    **codes,
                },
            }
        }
        for endpoint in endpoints
    }
    for path, text in (("/v1/features", "The feature sets"), *_OTHERS):
        paths[path] = {"get": {"summary": text, "responses": {"200": {"description": text}}}}
    late = {"description": "The store is down, or a stream too far behind; the body says which and why"}
    paths["/readyz"]["get"]["responses"]["503"] = late
    return {
        "openapi": "3.1.0",
        "info": {"title": "vitok features", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _column(name: str, given: Any, n: int) -> list[Any]:
    if not isinstance(given, list):
        return [given] * n
    if len(given) != n:
        raise InvalidInput(name, f"{len(given)} items", f"have {n}, as the longest of the keys does")
    return given


def _microseconds(moment: dt.datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=dt.UTC)
    return (moment - _EPOCH) // _MICROSECOND


def _joined(asked: Sequence[Asked]) -> Asked:
    keys = {name: [key for one in asked for key in one.keys[name]] for name in asked[0].keys}
    request = {name: [number for one in asked for number in one.request[name]] for name in asked[0].request}
    return Asked(sum(one.n for one in asked), keys, request, None)


def _details(vectors: Vectors, begin: int, end: int) -> dict[str, ViewDetails]:
    out = {}
    for place, view in enumerate(vectors.views):
        times = np.asarray(vectors.event_times[begin:end, place]).tolist()
        out[view] = ViewDetails(
            [None if time < 0 else time for time in times],
            [STATUS_WORDS[status] for status in vectors.status[begin:end, place].tolist()],
            [SOURCE_WORDS[source] for source in vectors.source[begin:end, place].tolist()],
        )
    return out
