"""The messages of decisions over gRPC, declared here rather than generated: there is no build step.

`decide_service.proto` beside this file says the same to people. The classes live in a pool of their own, so that a
client with generated classes of the same names may run in the same process.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from vitok.serving.proto_building import MESSAGE, Fields, build_pool, message_classes

PACKAGE = "vitok.decide.v1"
SERVICE = f"{PACKAGE}.DecideService"
METHODS = ("Decide", "Outcome")
"""Each takes `<method>Request` and gives `<method>Response`."""
WANTED = "decisions over gRPC"

_FIELDS: Fields = {
    "DecideRequest": {
        "transaction_id": (1, "string?"),
        "event_time": (2, "string?"),
        "customer_id": (3, "string?"),
        "terminal_id": (4, "string?"),
        "amount": (5, "double?"),
    },
    "DecideResponse": {
        "decision_id": (1, "string"),
        "transaction_id": (2, "string"),
        "action": (3, "string"),
        "probability": (4, "double?"),
        "propensity": (5, "double"),
        "model_version": (6, "string"),
        "route": (7, "string"),
        "feature_status": (8, "string"),
    },
    "OutcomeRequest": {"outcomes": (1, "OutcomeItem*")},
    "OutcomeItem": {
        "request_id": (1, "string?"),
        "value": (2, "double?"),
        "event_time": (3, "string?"),
        "kind": (4, "string?"),
        "source": (5, "string?"),
        "supersedes": (6, "bool?"),
    },
    "OutcomeResponse": {"accepted": (1, "uint32"), "duplicates": (2, "uint32"), "rejected": (3, "RejectedOutcome*")},
    "RejectedOutcome": {"index": (1, "uint32"), "request_id": (2, "string"), "detail": (3, "string")},
}


@functools.cache
def pool() -> Any:
    """Returns the descriptors, for reflection.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    methods = {method: (f"{method}Request", f"{method}Response", False) for method in METHODS}
    return build_pool("vitok/decide_service.proto", SERVICE, _FIELDS, methods, wanted=WANTED)


@functools.cache
def messages() -> dict[str, Any]:
    """Returns the message classes by name.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    return message_classes(pool(), PACKAGE, _FIELDS)


def stub(channel: Any) -> Mapping[str, Callable[..., Any]]:
    """Returns the calls of the service over a channel, by name, for those who have no generated code.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    types = messages()
    return {
        method: channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=types[f"{method}Request"].SerializeToString,
            response_deserializer=types[f"{method}Response"].FromString,
        )
        for method in METHODS
    }


def as_json(message: Any) -> dict[str, Any]:
    """Returns what is set in a message, as the body of the HTTP request that says the same.

    A field that this version does not know gets a name that nobody takes, so that it is refused as it is over HTTP.
    """
    from google.protobuf.unknown_fields import UnknownFieldSet

    # Whether a list was set cannot be told: an empty one was. All messages in messages here are lists.
    lists = [field.name for field in message.DESCRIPTOR.fields if field.type == MESSAGE]
    found: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    found |= {name: [as_json(item) for item in getattr(message, name)] for name in lists}
    for unknown in UnknownFieldSet(message):
        found[f"number {unknown.field_number}"] = None
    return found
