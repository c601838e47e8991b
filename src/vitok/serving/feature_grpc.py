"""The feature service over gRPC, with reflection and health: `vitok.features.v1.FeatureService`.

The messages are declared here rather than generated, so that there is no build step; clients learn them by reflection
or from `feature_service.proto` beside this file, which says the same.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vitok.errors import InvalidInput, MissingExtra, ServiceError, StoreError, VitokError
from vitok.serving.feature_readiness import Readiness
from vitok.serving.feature_service import Asked, FeatureEndpoint, summary

SERVICE = "vitok.features.v1.FeatureService"
MAX_MESSAGE = 4 << 20
_STRING, _DOUBLE, _INT64, _UINT32, _BYTES, _MESSAGE = 9, 1, 3, 13, 12, 11

# Message to fields: name, number, type, repeated, message type.
_MESSAGES: dict[str, tuple[tuple[str, int, int, bool, str], ...]] = {
    "KeyColumn": (("name", 1, _STRING, False, ""), ("keys", 2, _STRING, True, "")),
    "NumberColumn": (("name", 1, _STRING, False, ""), ("numbers", 2, _DOUBLE, True, "")),
    "GetVectorsRequest": (
        ("feature_set", 1, _STRING, False, ""),
        ("keys", 2, _MESSAGE, True, "KeyColumn"),
        ("request", 3, _MESSAGE, True, "NumberColumn"),
        ("times", 4, _INT64, True, ""),
    ),
    "GetVectorsResponse": (
        ("version", 1, _STRING, False, ""),
        ("n_vectors", 2, _UINT32, False, ""),
        ("n_features", 3, _UINT32, False, ""),
        ("values", 4, _DOUBLE, True, ""),
        ("views", 5, _STRING, True, ""),
        ("event_times", 6, _INT64, True, ""),
        ("status", 7, _BYTES, False, ""),
        ("source", 8, _BYTES, False, ""),
    ),
    "DescribeRequest": (("feature_set", 1, _STRING, False, ""),),
    "DescribeResponse": (
        ("version", 1, _STRING, False, ""),
        ("features", 2, _STRING, True, ""),
        ("keys", 3, _STRING, True, ""),
        ("request", 4, _STRING, True, ""),
        ("max_entities", 5, _UINT32, False, ""),
    ),
}
_METHODS = (
    ("GetVectors", "GetVectorsRequest", "GetVectorsResponse"),
    ("Describe", "DescribeRequest", "DescribeResponse"),
)


@functools.cache
def messages() -> dict[str, Any]:
    """Returns the message classes by name.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise MissingExtra("grpc", "the feature service over gRPC") from None
    file = descriptor_pb2.FileDescriptorProto(
        name="vitok/feature_service.proto", package="vitok.features.v1", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, other in fields:
            made = message.field.add(name=field, number=number, type=kind, label=3 if repeated else 1)
            if other:
                made.type_name = f".vitok.features.v1.{other}"
    service = file.service.add(name="FeatureService")
    for method, takes, gives in _METHODS:
        service.method.add(
            name=method, input_type=f".vitok.features.v1.{takes}", output_type=f".vitok.features.v1.{gives}"
        )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"vitok.features.v1.{name}"))
        for name in _MESSAGES
    }


def grpc_server(
    endpoints: Sequence[FeatureEndpoint],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    threads: int = 4,
    readiness: Readiness | None = None,
) -> tuple[Any, int]:
    """Makes a gRPC server for some feature sets; the caller starts and stops it.

    Args:
        endpoints: One a feature set.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        threads: How many requests are answered side by side.
        readiness: Says what a health check answers, with the reason in the trailing metadata `vitok-reason`; by
            default the stores of the endpoints alone count. Those who watch hear of a change when it next reports.

    Returns:
        The `grpc.Server` and its port.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
        ServiceError: If the address cannot be used.
    """
    try:
        import grpc
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection
    except ImportError:
        raise MissingExtra("grpc", "the feature service over gRPC") from None
    by_name = {endpoint.name: endpoint for endpoint in endpoints}
    types = messages()

    def endpoint_of(name: str, context: Any) -> FeatureEndpoint:
        if name not in by_name:
            known = ", ".join(sorted(by_name))
            context.abort(grpc.StatusCode.NOT_FOUND, f"feature_set: got {name!r}, must be one of {known}")
        return by_name[name]

    def get_vectors(request: Any, context: Any) -> Any:
        endpoint = endpoint_of(request.feature_set, context)
        try:
            vectors = endpoint.vectors(_asked(endpoint, request))
        except InvalidInput as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StoreError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except VitokError as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        return types["GetVectorsResponse"](
            version=endpoint.reader.features.version,
            n_vectors=len(vectors),
            n_features=len(vectors.names),
            values=vectors.values.ravel().tolist(),
            views=vectors.views,
            event_times=vectors.event_times.ravel().tolist(),
            status=vectors.status.tobytes(),
            source=vectors.source.tobytes(),
        )

    def describe(request: Any, context: Any) -> Any:
        known = summary(endpoint_of(request.feature_set, context))
        return types["DescribeResponse"](
            **{name: known[name] for name in ("version", "features", "keys", "request", "max_entities")}
        )

    functions = {"GetVectors": get_vectors, "Describe": describe}
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            functions[method],
            request_deserializer=types[takes].FromString,
            response_serializer=types[gives].SerializeToString,
        )
        for method, takes, gives in _METHODS
    }
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="features-grpc"),
        options=[("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.so_reuseport", 0)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    ready = readiness or Readiness(endpoints)

    class Checks(health.HealthServicer):  # type: ignore[misc]
        def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - how gRPC spells it
            found = ready.report()
            if not found.ready:
                text = str(found).encode("ascii", "backslashreplace").decode().replace("\n", " ")
                context.set_trailing_metadata((("vitok-reason", text),))
            return super().Check(request, context)

    checks = Checks()

    def tell(is_ready: bool) -> None:  # noqa: FBT001 - as a listener is called
        states = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            checks.set(name, states.SERVING if is_ready else states.NOT_SERVING)

    ready.listen(tell)
    ready.report()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ServiceError(
            f"cannot listen on {host} port {port}: {error}. Choose another, or 0 for a free one"
        ) from None
    return server, bound


def _asked(endpoint: FeatureEndpoint, request: Any) -> Asked:
    features = endpoint.reader.features
    keys = {column.name: list(column.keys) for column in request.keys}
    n = max((len(column) for column in keys.values()), default=0)
    if n > endpoint.max_entities:
        raise InvalidInput("keys", f"{n} entities", f"be at most {endpoint.max_entities}", "Ask in several requests.")
    numbers = {column.name: list(column.numbers) for column in request.request}
    for kind, wanted, given in (("keys", features.entity_keys, keys), ("request", features.request, numbers)):
        for name in wanted:
            if name not in given:
                raise InvalidInput(kind, sorted(given), f"hold {name}")
            if len(given[name]) != n:
                raise InvalidInput(f"{kind}: {name}", f"{len(given[name])} items", f"have {n}, as the keys do")
    times = list(request.times)
    if len(times) not in {0, 1, n}:
        raise InvalidInput("times", f"{len(times)} items", f"have {n}, one, or none for now")
    return Asked(n, keys, numbers, times * n if len(times) == 1 else times or None)
