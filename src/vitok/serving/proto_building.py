"""Messages of gRPC that are declared as tables rather than generated: there is no build step.

A service says its messages as `{message: {field: (number, type)}}`. In a type `x*` is repeated, `{X}` a map from texts,
`x?` optional, told apart from its default, and `x|` one of the choice that all such fields of a message make.
"""

from collections.abc import Mapping
from typing import Any

from vitok.errors import MissingExtra

MESSAGE = 11
"""The type of a field that holds a message (google/protobuf/descriptor.proto)."""
_ONE, _MANY = 1, 3
_TYPES = {"double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12}
_TYPES |= {"uint32": 13}
_CHOICE = "parameter_choice"

Fields = Mapping[str, Mapping[str, tuple[int, str]]]
"""Message to its fields, each with number and type; `A.B` is the message B inside of A, which comes after A."""


def build_pool(
    file: str, service: str, fields: Fields, methods: Mapping[str, tuple[str, str, bool]], *, wanted: str
) -> Any:
    """Returns the descriptors of a service, in a pool of their own.

    Args:
        file: Name that the file of the messages would have.
        service: Full name, such as `"vitok.decide.v1.DecideService"`; its package is that of the messages.
        fields: The messages.
        methods: Method to the names of what it takes and gives, and whether both are streams.
        wanted: What the extra is wanted for, for the error.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.

    Example:
        >>> pool = build_pool("a.proto", "a.Asking", {"Question": {"text": (1, "string?")}}, {}, wanted="an example")
        >>> sorted(message_classes(pool, "a", ["Question"]))
        ['Question']
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool
    except ImportError:
        raise MissingExtra("grpc", wanted) from None
    package, _, name = service.rpartition(".")
    described = descriptor_pb2.FileDescriptorProto(name=file, package=package, syntax="proto3")
    made: dict[str, Any] = {}
    for path, members in fields.items():
        outer, _, inner = path.partition(".")
        message = made[outer].nested_type.add(name=inner) if inner else described.message_type.add(name=path)
        made[path] = message
        for field, (number, kind) in members.items():
            _add_field(message, package, path, field, number, kind)
    offered = described.service.add(name=name)
    for method, (takes, gives, streams) in methods.items():
        offered.method.add(
            name=method,
            input_type=f".{package}.{takes}",
            output_type=f".{package}.{gives}",
            client_streaming=streams,
            server_streaming=streams,
        )
    found = descriptor_pool.DescriptorPool()
    found.Add(described)
    return found


def message_classes(pool: Any, package: str, names: "Mapping[str, object] | list[str]") -> dict[str, Any]:
    """Returns the classes of messages by name, from what `build_pool` gave."""
    from google.protobuf import message_factory

    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in names}


def _add_field(message: Any, package: str, path: str, name: str, number: int, kind: str) -> None:
    plain = kind.strip("*?|{}")
    field = message.field.add(name=name, number=number, label=_MANY if kind.endswith(("*", "}")) else _ONE)
    if kind.startswith("{"):
        # A map is a repeated message of key and value, by the specification of proto3.
        entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        pair = message.nested_type.add(name=entry)
        pair.options.map_entry = True
        _add_field(pair, package, f"{path}.{entry}", "key", 1, "string")
        _add_field(pair, package, f"{path}.{entry}", "value", 2, plain)
        field.type, field.type_name = MESSAGE, f".{package}.{path}.{entry}"
    elif plain in _TYPES:
        field.type = _TYPES[plain]
    else:
        field.type, field.type_name = MESSAGE, f".{package}.{plain}"
    if kind.endswith("|"):
        if not message.oneof_decl:
            message.oneof_decl.add(name=_CHOICE)
        field.oneof_index = 0
    elif kind.endswith("?"):
        field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")
