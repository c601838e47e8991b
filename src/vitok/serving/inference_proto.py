"""The messages of the Open Inference Protocol over gRPC, declared here rather than generated: there is no build step.

`inference_service.proto` beside this file says the same to people. The classes live in a pool of their own, so that a
client of the protocol that brings generated classes of the same names may run in the same process.
"""

import functools
from typing import Any

from vitok.serving.proto_building import Fields, build_pool, message_classes

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"

_MODEL = {"name": (1, "string"), "version": (2, "string")}
_TENSOR = {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")}
_FULL_TENSOR = _TENSOR | {"parameters": (4, "{InferParameter}"), "contents": (5, "InferTensorContents")}
_REPOSITORY = {
    "repository_name": (1, "string"),
    "model_name": (2, "string"),
    "parameters": (3, "{ModelRepositoryParameter}"),
}

_FIELDS: Fields = {
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
        "bool_param": (1, "bool|"),
        "int64_param": (2, "int64|"),
        "string_param": (3, "string|"),
        "double_param": (4, "double|"),
        "uint64_param": (5, "uint64|"),
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
        "bool_param": (1, "bool|"),
        "int64_param": (2, "int64|"),
        "string_param": (3, "string|"),
        "bytes_param": (4, "bytes|"),
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
    methods = {method: (f"{method}Request", f"{method}Response", False) for method in METHODS}
    methods[STREAM] = ("ModelInferRequest", f"{STREAM}Response", True)
    return build_pool("vitok/inference_service.proto", SERVICE, _FIELDS, methods, wanted="inference over gRPC")


@functools.cache
def messages() -> dict[str, Any]:
    """Returns the message classes by name, such as `"ModelInferRequest.InferInputTensor"`.

    Raises:
        MissingExtra: If the extra `grpc` is not installed.
    """
    return message_classes(pool(), PACKAGE, _FIELDS)


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
