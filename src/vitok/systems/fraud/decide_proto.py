"""The messages of decisions over gRPC, declared here rather than generated: there is no build step.

`decide_service.proto` beside this file says the same to people. The classes live in a pool of their own, so that a
client with generated classes of the same names may run in the same process.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from vitok.errors import MissingExtra

PACKAGE = "vitok.decide.v1"
SERVICE = f"{PACKAGE}.DecideService"
METHODS = ("Decide", "Outcome")
"""Each takes `<method>Request` and gives `<method>Response`."""
WANTED = "decisions over gRPC"

_TYPES = {"double": 1, "bool": 8, "string": 9, "uint32": 13}
_MESSAGE, _ONE, _MANY = 11, 1, 3
# Message to fields, by number from 1. `x?` is told apart from its default, `x*` is repeated.
_FIELDS: Mapping[str, Mapping[str, str]] = {
    "DecideRequest": {
        "transaction_id": "string?",
        "event_time": "string?",
        "customer_id": "string?",
        "terminal_id": "string?",
        "amount": "double?",
    },
    "DecideResponse": {
        "decision_id": "string",
        "transaction_id": "string",
        "action": "string",
        "probability": "double?",
        "propensity": "double",
        "model_version": "string",
        "route": "string",
        "feature_status": "string",
    },
    "OutcomeRequest": {"outcomes": "OutcomeItem*"},
    "OutcomeItem": {
        "request_id": "string?",
        "value": "double?",
        "event_time": "string?",
        "kind": "string?",
        "source": "string?",
        "supersedes": "bool?",
    },
    "OutcomeResponse": {"accepted": "uint32", "duplicates": "uint32", "rejected": "RejectedOutcome*"},
    "RejectedOutcome": {"index": "uint32", "request_id": "string", "detail": "string"},
}


@functools.cache
def pool() -> Any:
    """Returns the descriptors, for reflection.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool
    except ImportError:
        raise MissingExtra("grpc", WANTED) from None
    file = descriptor_pb2.FileDescriptorProto(name="vitok/decide_service.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            plain = kind.strip("*?")
            made = message.field.add(name=field, number=number, label=_MANY if kind.endswith("*") else _ONE)
            if plain in _TYPES:
                made.type = _TYPES[plain]
            else:
                made.type, made.type_name = _MESSAGE, f".{PACKAGE}.{plain}"
            if kind.endswith("?"):
                made.proto3_optional, made.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field}")
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in METHODS:
        service.method.add(
            name=method, input_type=f".{PACKAGE}.{method}Request", output_type=f".{PACKAGE}.{method}Response"
        )
    found = descriptor_pool.DescriptorPool()
    found.Add(file)
    return found


@functools.cache
def messages() -> dict[str, Any]:
    """Returns the message classes by name.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    descriptors = pool()
    from google.protobuf import message_factory

    return {
        name: message_factory.GetMessageClass(descriptors.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _FIELDS
    }


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
    lists = [field.name for field in message.DESCRIPTOR.fields if field.type == _MESSAGE]
    found: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    found |= {name: [as_json(item) for item in getattr(message, name)] for name in lists}
    for unknown in UnknownFieldSet(message):
        found[f"number {unknown.field_number}"] = None
    return found
