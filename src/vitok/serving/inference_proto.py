"""The messages of the Open Inference Protocol over gRPC, declared here rather than generated: there is no build step.

`inference_service.proto` beside this file says the same to people. The classes live in a pool of their own, so that a
client of the protocol that brings generated classes of the same names may run in the same process.
"""

import functools
from collections.abc import Mapping
from typing import Any

from vitok.errors import MissingExtra

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"

_TYPES = {"double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "bool": 8, "string": 9, "bytes": 12}
_TYPES |= {"uint32": 13}
_MESSAGE, _ONE, _MANY = 11, 1, 3
_MODEL = {"name": (1, "string"), "version": (2, "string")}
_TENSOR = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")}
_FULL_TENSOR = _TENSOR | {"parameters": (4, "{InferParameter}"), "contents": (5, "InferTensorContents")}
_REPOSITORY = {
    "repository_name": (1, "string"),
    "model_name": (2, "string"),
    "parameters": (3, "{ModelRepositoryParameter}"),
}

# Message to fields: number and type. `x*` is repeated, `{X}` a map from texts, `x?` one of a choice.
_FIELDS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_MODEL, "extensions": (3, "string*")},
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "platform": (3, "string"),
        "inputs": (4, "ModelMetadataResponse.TensorMetadata*"),
        "outputs": (5, "ModelMetadataResponse.TensorMetadata*"),
    },
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": {
        "bool_param": (1, "bool?"),
        "int64_param": (2, "int64?"),
        "string_param": (3, "string?"),
        "double_param": (4, "double?"),
        "uint64_param": (5, "uint64?"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "bool*"),
        "int_contents": (2, "int32*"),
        "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"),
        "uint64_contents": (5, "uint64*"),
        "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"),
        "bytes_contents": (8, "bytes*"),
    },
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "inputs": (5, "ModelInferRequest.InferInputTensor*"),
        "outputs": (6, "ModelInferRequest.InferRequestedOutputTensor*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "ModelInferRequest.InferInputTensor": _FULL_TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "{InferParameter}")},
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "{InferParameter}"),
        "outputs": (5, "ModelInferResponse.InferOutputTensor*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "ModelInferResponse.InferOutputTensor": _FULL_TENSOR,
    "ModelStreamInferResponse": {"error_message": (1, "string"), "infer_response": (2, "ModelInferResponse")},
    "ModelStatisticsRequest": _MODEL,
    "StatisticDuration": {"count": (1, "uint64"), "ns": (2, "uint64")},
    "InferStatistics": {
        "success": (1, "StatisticDuration"),
        "fail": (2, "StatisticDuration"),
        "queue": (3, "StatisticDuration"),
        "compute_infer": (5, "StatisticDuration"),
    },
    "ModelStatistics": {
        **_MODEL,
        "inference_count": (4, "uint64"),
        "execution_count": (5, "uint64"),
        "inference_stats": (6, "InferStatistics"),
    },
    "ModelStatisticsResponse": {"model_stats": (1, "ModelStatistics*")},
    "ModelRepositoryParameter": {
        "bool_param": (1, "bool?"),
        "int64_param": (2, "int64?"),
        "string_param": (3, "string?"),
        "bytes_param": (4, "bytes?"),
    },
    "RepositoryIndexRequest": {"repository_name": (1, "string"), "ready": (2, "bool")},
    "RepositoryIndexResponse": {"models": (1, "RepositoryIndexResponse.ModelIndex*")},
    "RepositoryIndexResponse.ModelIndex": {**_MODEL, "state": (3, "string"), "reason": (4, "string")},
    "RepositoryModelLoadRequest": _REPOSITORY,
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": _REPOSITORY,
    "RepositoryModelUnloadResponse": {},
}
METHODS = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelInfer",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)
"""Each takes `<method>Request` and gives `<method>Response`."""
STREAM = "ModelStreamInfer"
"""Takes a stream of `ModelInferRequest` and gives one of `ModelStreamInferResponse`."""


@functools.cache
def pool() -> Any:
    """Returns the descriptors, for reflection.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool
    except ImportError:
        raise MissingExtra("grpc", "inference over gRPC") from None
    file = descriptor_pb2.FileDescriptorProto(name="vitok/inference_service.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in _FIELDS.items():
        outer, _, inner = name.partition(".")
        message = made[outer].nested_type.add(name=inner) if inner else file.message_type.add(name=name)
        made[name] = message
        for field, (number, kind) in fields.items():
            _add_field(message, f".{PACKAGE}.{name}", field, number, kind)
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in METHODS:
        service.method.add(
            name=method, input_type=f".{PACKAGE}.{method}Request", output_type=f".{PACKAGE}.{method}Response"
        )
    service.method.add(
        name=STREAM,
        input_type=f".{PACKAGE}.ModelInferRequest",
        output_type=f".{PACKAGE}.{STREAM}Response",
        client_streaming=True,
        server_streaming=True,
    )
    found = descriptor_pool.DescriptorPool()
    found.Add(file)
    return found


@functools.cache
def messages() -> dict[str, Any]:
    """Returns the message classes by name, such as `"ModelInferRequest.InferInputTensor"`.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    descriptors = pool()
    from google.protobuf import message_factory

    return {
        name: message_factory.GetMessageClass(descriptors.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _FIELDS
    }


def retry_details(code: int, message: str, seconds: int) -> bytes:
    """Writes a `google.rpc.Status` that holds a `RetryInfo`: the trailer `grpc-status-details-bin`.

    Args:
        code: Number of the status.
        message: What is wrong.
        seconds: When another try may be worth it.

    Example:
        >>> retry_details(8, "full", 1).hex()
        '08081204...'
    """
    # Field 1 of Duration is the seconds, field 1 of RetryInfo the Duration (google/rpc/error_details.proto).
    delay = _bytes_field(1, b"\x08" + _varint(seconds))
    kind = b"type.googleapis.com/google.rpc.RetryInfo"
    held = _bytes_field(1, kind) + _bytes_field(2, delay)
    return b"\x08" + _varint(code) + _bytes_field(2, message.encode()) + _bytes_field(3, held)


def _bytes_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _add_field(message: Any, path: str, name: str, number: int, kind: str) -> None:
    plain = kind.strip("*?{}")
    field = message.field.add(name=name, number=number, label=_MANY if kind.endswith(("*", "}")) else _ONE)
    if kind.startswith("{"):
        # A map is a repeated message of key and value, by the specification of proto3.
        entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        pair = message.nested_type.add(name=entry)
        pair.options.map_entry = True
        _add_field(pair, f"{path}.{entry}", "key", 1, "string")
        _add_field(pair, f"{path}.{entry}", "value", 2, plain)
        field.type, field.type_name = _MESSAGE, f"{path}.{entry}"
    elif plain in _TYPES:
        field.type = _TYPES[plain]
    else:
        field.type, field.type_name = _MESSAGE, f".{PACKAGE}.{plain}"
    if kind.endswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
