"""The OpenAPI document of the Open Inference Protocol over HTTP, as this service answers it."""

from collections.abc import Mapping
from typing import Any

from vitok import __version__
from vitok.serving.hosting import ModelHost
from vitok.serving.problems import MEDIA_TYPE
from vitok.serving.tensors import DATATYPES

Document = dict[str, Any]
_GUARD = (401, 403, 429)
_TEXT: Document = {"type": "string"}
_NUMBERS: Document = {"type": "object", "properties": {name: {"type": "integer"} for name in ("count", "ns")}}


def inference_openapi(host: ModelHost) -> Document:
    """Writes the document, OpenAPI 3.1.

    Args:
        host: The models, whose names it gives as examples.

    Example:
        >>> from vitok.serving.hosting import FolderCatalogue
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     document = inference_openapi(ModelHost(FolderCatalogue(pathlib.Path(folder))))
        >>> sorted(document["paths"])[:2]
        ['/v2', '/v2/health/live']
    """
    # Whoever has no key is not told which models there are.
    names = [] if host.guard is not None else list(host.catalogue.names())
    name: Document = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1} | ({"examples": names} if names else {}),
    }
    version: Document = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    guard = () if host.guard is None else _GUARD
    paths: Document = {
        "/v2": {"get": _call("server", "Says what this is.", "ServerMetadata")},
        "/v2/health/live": {"get": _call("live", "Says that the process runs.", "Live")},
        "/v2/health/ready": {
            "get": _call("ready", "Says whether all pinned models are loaded and can answer.", "Ready", 503)
        },
        "/v2/repository/index": {"post": _call("index", "Lists versions and their states.", "Index", guard=guard)},
    }
    for verb, told in (("load", "Loads the version in force."), ("unload", "Lets a model go.")):
        path = f"/v2/repository/models/{{name}}/{verb}"
        paths[path] = {"parameters": [name], "post": _call(verb, told, "Empty", 404, 422, 503, guard=guard)}
    for middle, parameters, suffix in (("", [name], ""), ("/versions/{version}", [name, version], "_version")):
        one = f"/v2/models/{{name}}{middle}"
        failures = (400, 404, 405, 413, 415, 422, 429, 503)
        infer = _call("infer" + suffix, "Runs the model.", "InferResponse", *failures, guard=guard)
        infer["requestBody"] = {"required": True, "content": _either("InferRequest")}
        infer["parameters"] = [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "Length of the JSON, where tensors in bytes stand behind it.",
                "schema": {"type": "integer", "minimum": 0},
            },
            {
                "name": "Content-Encoding",
                "in": "header",
                "description": "How the body is compressed.",
                "schema": {"type": "string", "enum": ["identity", "gzip", "deflate"]},
            },
        ]
        infer["responses"]["200"]["content"] = _either("InferResponse")
        for end, told, gives in (
            ("", "Says what the model takes and gives.", "ModelMetadata"),
            ("/ready", "Says whether it answers; loads it, if need be.", "ModelReady"),
            ("/stats", "Says what it has done.", "Statistics"),
            ("/latency", "Says how long each stage takes, in all processes.", "Latency"),
        ):
            call = _call(f"model{end.replace('/', '_')}{suffix}", told, gives, 404, 503, guard=guard)
            paths[one + end] = {"parameters": parameters, "get": call}
        paths[one + "/infer"] = {"parameters": parameters, "post": infer}
    components: Document = {"schemas": _schemas()}
    if host.guard is not None and host.guard.keys is not None:
        components["securitySchemes"] = {
            "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }
        for path in paths.values():
            for call in path.values():
                if isinstance(call, dict) and "401" in call["responses"]:
                    call["security"] = [{"key": []}, {"bearer": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Open Inference Protocol", "version": __version__},
        "paths": paths,
        "components": components,
    }


def _call(name: str, told: str, gives: str, *failures: int, guard: tuple[int, ...] = ()) -> Document:
    failures = tuple(sorted({*failures, *guard}))
    responses: Document = {"200": {"description": "Done.", "content": {"application/json": {"schema": _ref(gives)}}}}
    for status in failures:
        kind = "application/json" if (gives, status) == ("Ready", 503) else MEDIA_TYPE
        schema = _ref("Ready" if kind == "application/json" else "Problem")
        responses[str(status)] = {"description": _FAILURES[status], "content": {kind: {"schema": schema}}}
        if status in (429, 503) and kind == MEDIA_TYPE:
            responses[str(status)]["headers"] = {
                "Retry-After": {"description": "Seconds, where it is worth a try.", "schema": {"type": "integer"}}
            }
    return {"operationId": name, "summary": told, "responses": responses}


_FAILURES: Mapping[int, str] = {
    400: "The body is no JSON, or not what its headers say.",
    401: "There is no key, or not one that is good.",
    403: "The key does not allow this, or the address may not ask.",
    404: "There is no such model or version.",
    405: "The path takes another method.",
    413: "The body is too long.",
    415: "The body is compressed in a way that is not read here.",
    422: "The request does not fit the model, or breaks its contract.",
    429: "There is no room in the queue of the model, or the limit is used up.",
    503: "The model cannot answer, or not before the deadline.",
}


def _ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def _either(name: str) -> Document:
    return {"application/json": {"schema": _ref(name)}, "application/octet-stream": {}}


def _object(required: tuple[str, ...], /, **properties: Document) -> Document:
    return {"type": "object", "required": list(required), "properties": properties}


def _many(item: Document) -> Document:
    return {"type": "array", "items": item}


def _schemas() -> Document:
    shape = _many({"type": "integer", "minimum": 0})
    datatype: Document = {"type": "string", "enum": list(DATATYPES)}
    parameters: Document = {"type": "object"}
    # Elements stand flat or nested: numbers, truth values, texts, or null for NaN.
    element: Document = {"type": ["number", "boolean", "string", "null", "array"]}
    specs = _many(_ref("TensorMetadata"))
    answer = _object(("name", "datatype", "shape"), name=_TEXT, datatype=datatype, shape=shape)
    answer["properties"] |= {"data": _many({}), "parameters": parameters}
    asked = _object(("name", "datatype", "shape"), name=_TEXT, datatype=datatype, shape=shape)
    asked["properties"] |= {"data": _many(element), "parameters": parameters}
    wishes: Document = {
        "type": "object",
        "properties": {
            "binary_data_output": {"type": "boolean"},
            "explain": {"type": "boolean"},
            "timeout": {"type": "integer", "minimum": 0, "maximum": 3_600_000_000, "description": "Microseconds."},
            "priority": {"type": "integer", "minimum": 0, "maximum": 255, "description": "0 goes first."},
        },
    }
    return {
        "Empty": {"type": "object"},
        "Problem": _object(
            ("type", "title", "status", "detail"),
            type=_TEXT,
            title=_TEXT,
            status={"type": "integer"},
            detail=_TEXT,
            field=_TEXT,
            error=_TEXT,
            errors=_many({"type": "object"}),
        ),
        "ServerMetadata": _object(("name", "version"), name=_TEXT, version=_TEXT, extensions=_many(_TEXT)),
        "Live": _object(("live",), live={"type": "boolean"}),
        "Ready": _object(
            ("ready",),
            ready={"type": "boolean"},
            missing=_many(_TEXT),
            problems={"type": "object"},
            failures={"type": "object"},
        ),
        "ModelReady": _object(("name", "ready"), name=_TEXT, version=_TEXT, ready={"type": "boolean"}),
        "TensorMetadata": _object(
            ("name", "datatype", "shape"), name=_TEXT, datatype=datatype, shape=_many({"type": "integer"})
        ),
        "ModelMetadata": _object(
            ("name", "versions", "platform", "inputs", "outputs"),
            name=_TEXT,
            versions=_many(_TEXT),
            platform=_TEXT,
            inputs=specs,
            outputs=specs,
        ),
        "Index": _many(_object(("name", "version", "state"), name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)),
        "Statistics": _object(
            ("model_stats",),
            model_stats=_many(
                _object(
                    ("name", "version", "inference_stats"),
                    name=_TEXT,
                    version=_TEXT,
                    inference_count={"type": "integer"},
                    execution_count={"type": "integer"},
                    inference_stats={"type": "object", "additionalProperties": _NUMBERS},
                )
            ),
        ),
        "Latency": _object(
            ("name", "stages"),
            name=_TEXT,
            stages={
                "type": "object",
                "additionalProperties": _object(
                    ("count", "histogram"),
                    count={"type": "integer"},
                    **{name: {"type": ["number", "null"]} for name in ("p50_us", "p99_us", "p999_us", "mean_us")},
                    max_us={"type": "number"},
                    histogram={"type": "object"},
                ),
            },
        ),
        "InferRequest": _object(
            ("inputs",),
            id=_TEXT,
            parameters=wishes,
            inputs=_many(asked),
            outputs=_many(_object(("name",), name=_TEXT, parameters=parameters)),
        ),
        "InferResponse": _object(
            ("model_name", "model_version", "outputs"),
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            parameters=parameters,
            outputs=_many(answer),
        ),
    }
