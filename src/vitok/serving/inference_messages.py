"""The messages of the Open Inference Protocol, version 2, over HTTP: read from a body and written as a reply."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

from vitok import ids as identifiers
from vitok.errors import InvalidInput
from vitok.serving.messages import Later, Reply
from vitok.serving.runtime import Runtime
from vitok.serving.tensors import TensorSpec, from_bytes, from_values, to_bytes, to_json
from vitok.serving.tracing import Traced

Parameters = dict[str, Any]
_BINARY_SIZE = "binary_data_size"
_NOT_DONE = ("classification", "shared_memory_region")


class Rows(msgspec.Struct):
    """An input that is a matrix of numbers, flat."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]
    parameters: Parameters | None = None


class RowsRequest(msgspec.Struct):
    """The usual request: one matrix of rows, and no wishes."""

    inputs: tuple[Rows]
    id: str = ""
    outputs: list[Any] | None = None
    parameters: Parameters | None = None


class InferInput(msgspec.Struct):
    """An input of any kind."""

    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: Parameters = {}


class InferOutput(msgspec.Struct):
    """An output that is wanted, and how."""

    name: str
    parameters: Parameters = {}


class InferRequest(msgspec.Struct):
    """A request of any kind."""

    inputs: list[InferInput]
    id: str = ""
    outputs: list[InferOutput] = []
    parameters: Parameters = {}

    @classmethod
    def raw(cls, specs: Sequence[TensorSpec]) -> "InferRequest":
        """Returns the request of a body that is one tensor's bytes and nothing else."""
        if len(specs) != 1:
            raise InvalidInput("inputs", f"{len(specs)} of the model", "be one for a body of bytes alone", "Send JSON")
        return cls([InferInput(specs[0].name, list(specs[0].shape), specs[0].datatype, None, {_BINARY_SIZE: -1})])


_NOTHING: dict[str, Any] = {}


class Given(NamedTuple):
    """An answer that is not text yet.

    Attributes:
        version: Number of the version that answered.
        outputs: The outputs that were wanted, in the order of the model's.
        parameters: What is told besides.
    """

    version: str
    outputs: dict[str, np.ndarray]
    parameters: dict[str, Any]


class Job:
    """One request on its way through the model.

    Attributes:
        id: The caller's id; may be empty.
        n: How many rows it has.
        inputs: Its tensors by name; empty for the rows of a matrix, which lie in the batch.
        wanted: Names of the outputs to be returned; empty for all.
        binary: Which of them leave as bytes; None where the answer is not written but left in `given`.
        explain: Whether the answer says in what batch it was.
        told: What it says.
        given: The answer, where it is not written.
        place: Place of the request in its list.
        arrived: When it came, in nanoseconds of `time.perf_counter_ns`.
        timeout_us: Microseconds within which the answer is of use; 0 where the request does not say.
        priority: 0 goes before 1, and so on.
        tenant: Whose it is.
        trace_id: Its trace, 32 hex digits, for the log; empty where it has none.
        traced: What its trace needs; None where it is not traced.
        later: Its reply, where that is owed.
        loop: The event loop that the reply goes to.
    """

    # What most jobs do not say stands with the class, so that making one costs little.
    wanted: tuple[str, ...] = ()
    binary: frozenset[str] | None = frozenset()
    explain = False
    told: dict[str, Any] = _NOTHING
    given: Given | None = None
    place = 0
    arrived = 0
    timeout_us = 0
    priority = 1
    tenant = ""
    trace_id = ""
    traced: Traced | None = None
    later: Later | None = None
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self, identifier: str, n: int, inputs: dict[str, np.ndarray] | None = None) -> None:
        self.id = identifier
        self.n = n
        self.inputs = inputs if inputs is not None else {}


def json_part(body: bytes, length: bytes | None) -> tuple[bytes, memoryview]:
    """Cuts a body into its JSON and the tensors behind.

    Raises:
        InvalidInput: If the length is no number, or longer than the body.
    """
    if length is None:
        return body, memoryview(b"")
    field = "Inference-Header-Content-Length"
    if not length.isdigit() or len(length) > 12:
        raise InvalidInput(field, length[:40].decode("latin-1"), "be a whole number of bytes")
    n = int(length)
    if n > len(body):
        raise InvalidInput(field, n, f"be at most the length of the body, {len(body)}")
    return body[:n], memoryview(body)[n:]


class _Named(Protocol):
    name: str
    datatype: str


_Item = TypeVar("_Item", bound=_Named)


def read_inputs(
    items: Sequence[_Item], runtime: Runtime, read: Callable[[str, int, _Item, TensorSpec], np.ndarray]
) -> dict[str, np.ndarray]:
    """Reads the tensors of a request of whatever door and checks them against what the model takes.

    Args:
        items: The inputs as they were sent.
        runtime: The version that shall answer.
        read: Makes a tensor of what an error calls it, its place, what was sent, and what the model takes.

    Raises:
        InvalidInput: If a tensor lacks, is one too many, or does not fit.
    """
    specs = {spec.name: spec for spec in runtime.inputs}
    inputs: dict[str, np.ndarray] = {}
    for i, item in enumerate(items):
        where = f"inputs[{i}]"
        spec = specs.get(item.name)
        if spec is None:
            raise InvalidInput(f"{where}.name", item.name, f"be one of {', '.join(specs)}")
        if item.name in inputs:
            raise InvalidInput(f"{where}.name", item.name, "be given once")
        if item.datatype != spec.datatype:
            raise InvalidInput(f"{where}.datatype", item.datatype, f"be {spec.datatype}, which {item.name} has")
        tensor = read(where, i, item, spec)
        if not spec.fits(tensor.shape):
            wanted = f"be {list(spec.shape)}, where -1 is any length"
            raise InvalidInput(f"{where}.shape", list(tensor.shape), wanted)
        inputs[item.name] = tensor
    missing = [name for name in specs if name not in inputs]
    if missing:
        raise InvalidInput("inputs", [item.name for item in items], f"hold {', '.join(missing)}")
    return inputs


def read_job(asked: InferRequest, tail: memoryview, runtime: Runtime) -> Job:
    """Reads a request that came as JSON with tensors in bytes behind it, or without.

    Raises:
        InvalidInput: If a tensor lacks, is one too many, or does not fit, or a wish cannot be met.
    """
    at = 0

    def read(where: str, _: int, item: InferInput, spec: TensorSpec) -> np.ndarray:
        nonlocal at
        size = item.parameters.get(_BINARY_SIZE)
        if size is None:
            return from_values(where, item.datatype, item.shape, item.data)
        shape, size = _sized(where, item, size, spec, len(tail) - at)
        at += size
        return from_bytes(where, item.datatype, shape, tail[at - size : at])

    inputs = read_inputs(asked.inputs, runtime, read)
    if at != len(tail):
        raise InvalidInput("body", f"{len(tail)} bytes of tensors", f"be {at}, as the inputs say")
    return make_job(asked, inputs, runtime)


def make_job(asked: InferRequest, inputs: dict[str, np.ndarray], runtime: Runtime) -> Job:
    """Makes a job of tensors that fit the model and of what the request says besides.

    Raises:
        InvalidInput: If tensors have different numbers of rows, or a wish cannot be met.
    """
    lengths = {len(inputs[spec.name]) for spec in runtime.inputs if spec.batched}
    if runtime.batched and len(lengths) > 1:
        raise InvalidInput("inputs", f"{sorted(lengths)} rows", "have the same number of rows")
    job = Job(asked.id, lengths.pop() if runtime.batched else 1, inputs)
    _read_wishes(job, asked, runtime)
    return job


def _sized(where: str, item: InferInput, size: Any, spec: TensorSpec, left: int) -> tuple[Sequence[int], int]:
    field = f"{where}.parameters.{_BINARY_SIZE}"
    if type(size) is not int or (size < 0 and item.data is not None):
        raise InvalidInput(field, size, "be a whole number of bytes")
    if item.data is not None:
        raise InvalidInput(f"{where}.data", "values", f"not be there beside {_BINARY_SIZE}")
    if size > left:
        raise InvalidInput(field, size, f"be at most {left}, the bytes that are left of the body")
    if size != -1:
        return item.shape, size
    # The body is the tensor: how many rows it has is what its length says.
    if spec.datatype == "BYTES" or -1 in spec.shape[1:]:
        raise InvalidInput("body", f"a tensor of {spec.datatype} {list(spec.shape)}", "be JSON", "Its shape is open")
    row = spec.dtype.itemsize * int(np.prod(spec.shape[1:], dtype=np.int64))
    if not spec.batched or not row or left % row:
        row = row or 1
        raise InvalidInput("body", f"{left} bytes", f"be a whole number of rows of {row} bytes")
    return [left // row, *spec.shape[1:]], left


def _read_wishes(job: Job, asked: InferRequest, runtime: Runtime) -> None:
    known = {spec.name for spec in runtime.outputs}
    everything = _flag("parameters", asked.parameters, "binary_data_output", default=False)
    binary = set(known) if everything else set()
    for i, item in enumerate(asked.outputs):
        where = f"outputs[{i}]"
        if item.name not in known:
            raise InvalidInput(f"{where}.name", item.name, f"be one of {', '.join(sorted(known))}")
        for name in _NOT_DONE:
            if item.parameters.get(name):
                raise InvalidInput(f"{where}.parameters.{name}", item.parameters[name], "not be asked for")
        if _flag(f"{where}.parameters", item.parameters, "binary_data", default=everything):
            binary.add(item.name)
        else:
            binary.discard(item.name)
    job.wanted = tuple(item.name for item in asked.outputs)
    job.binary = frozenset(binary)
    job.explain = _flag("parameters", asked.parameters, "explain", default=False)
    job.timeout_us = _whole("timeout", asked.parameters, 0, 3_600_000_000)
    job.priority = _whole("priority", asked.parameters, 1, 255)


def _flag(where: str, parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"{where}.{name}", value, "be true or false")
    return value


def _whole(name: str, parameters: Mapping[str, Any], default: int, most: int) -> int:
    value = parameters.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidInput(f"parameters.{name}", value, f"be a whole number from 0 to {most}")
    return value


class Writer:
    """Writes the answers of one version of a model.

    What is the same in every answer is made once, and the numbers of a batch become text in one go.

    Args:
        name: Name of the model.
        runtime: The version that answers.
    """

    def __init__(self, name: str, runtime: Runtime) -> None:
        self.runtime = runtime
        number = msgspec.json.encode(runtime.version.rpartition("/")[2])
        self._head = b'{"model_name":%b,"model_version":%b,' % (msgspec.json.encode(name), number)
        self._opening = {
            spec.name: b'{"name":%b,"datatype":"%b","shape":['
            % (msgspec.json.encode(spec.name), spec.datatype.encode())
            for spec in runtime.outputs
        }

    def write(
        self, jobs: Sequence[Job], outputs: Mapping[str, np.ndarray], decision_ids: Sequence[bytes]
    ) -> list[Reply]:
        """Writes the answers to requests whose rows lie one after another in the outputs.

        Args:
            jobs: The requests.
            outputs: Each output of the model for all rows.
            decision_ids: The id of each row in the decision log; empty where there is none.
        """
        batched = self.runtime.batched
        names = identifiers.texts(decision_ids)
        texts: dict[str, tuple[list[bytes], int, bytes]] = {}
        replies = []
        at = 0
        # Where a row has one number, the answer to one row is a template with that number in it.
        numbers: list[bytes] | None = None
        opening = b""
        for job in jobs:
            end = at + job.n
            ids = names[at:end]
            if job.wanted or job.binary or job.explain or not batched:
                own = {name: tensor[at:end] for name, tensor in outputs.items()} if batched else dict(outputs)
                replies.append(self._special(job, own, ids))
                at = end
                continue
            if not texts:
                texts = {name: _by_rows(tensor) for name, tensor in outputs.items()}
                first = next(iter(self._opening))
                if len(self._opening) == 1 and texts[first][1] == 1:
                    numbers = texts[first][0]
                    opening = b'"outputs":[%b1%b],"data":[' % (self._opening[first], texts[first][2])
            given = b'"id":%b,' % msgspec.json.encode(job.id) if job.id else b""
            told = b'"parameters":{"decision_id":"%b"},' % ids[0].encode() if len(ids) == 1 else _told(job, ids)
            if numbers is not None and job.n == 1:
                replies.append(Reply(200, b"%b%b%b%b%b]}]}" % (self._head, given, told, opening, numbers[at])))
                at = end
                continue
            parts = []
            for name, begin in self._opening.items():
                rows, width, rest = texts[name]
                content = b",".join(rows[at * width : end * width])
                parts.append(b'%b%d%b],"data":[%b]}' % (begin, job.n, rest, content))
            replies.append(Reply(200, b'%b%b%b"outputs":[%b]}' % (self._head, given, told, b",".join(parts))))
            at = end
        return replies

    def _special(self, job: Job, outputs: Mapping[str, np.ndarray], decision_ids: Sequence[str]) -> Reply:
        # An answer of which only some outputs are wanted, or in bytes, or with an account of its batch.
        if job.binary is None:
            wanted = {spec.name: outputs[spec.name] for spec in self.runtime.outputs if spec.name in job.wanted}
            version = self.runtime.version.rpartition("/")[2]
            job.given = Given(version, wanted, _account(job, decision_ids))
            return _GIVEN
        parts: list[bytes] = []
        tails: list[bytes] = []
        for spec in self.runtime.outputs:
            if job.wanted and spec.name not in job.wanted:
                continue
            tensor = outputs[spec.name]
            shape = b",".join([b"%d" % length for length in tensor.shape])
            if job.binary and spec.name in job.binary:
                data = to_bytes(tensor)
                tails.append(data)
                content = b'"parameters":{"binary_data_size":%d}' % len(data)
            else:
                content = b'"data":%b' % to_json(tensor)
            parts.append(b"%b%b],%b}" % (self._opening[spec.name], shape, content))
        head = b'%b%b%b"outputs":[%b]}' % (
            self._head,
            b'"id":%b,' % msgspec.json.encode(job.id) if job.id else b"",
            _told(job, decision_ids),
            b",".join(parts),
        )
        if not tails:
            return Reply(200, head)
        length = b"inference-header-content-length: %d\r\n" % len(head)
        return Reply(200, b"".join([head, *tails]), length, b"application/octet-stream")


def _by_rows(tensor: np.ndarray) -> tuple[list[bytes], int, bytes]:
    # The text of each element, how many of them a row has, and the shape of a row.
    rest = b"".join([b",%d" % length for length in tensor.shape[1:]])
    width = math.prod(tensor.shape[1:])
    if tensor.dtype.kind in "SUO":
        return [to_json(item)[1:-1] for item in tensor.reshape(-1, 1)], width, rest
    text = to_json(tensor)[1:-1]
    return text.split(b",") if text else [], width, rest


_GIVEN = Reply(200, b"")


def _told(job: Job, decision_ids: Sequence[str]) -> bytes:
    told = _account(job, decision_ids)
    return b'"parameters":%b,' % msgspec.json.encode(told) if told else b""


def _account(job: Job, decision_ids: Sequence[str]) -> dict[str, Any]:
    told = dict(job.told)
    if len(decision_ids) == 1:
        told["decision_id"] = decision_ids[0]
    elif len(decision_ids):
        told["decision_ids"] = list(decision_ids)
    return told


def error_reply(reply: Reply) -> Reply:
    """Adds the member `error`, in which the protocol's clients look for what is wrong, to a problem document."""
    document = msgspec.json.decode(reply.body)
    document["error"] = document["detail"]
    return Reply(reply.status, msgspec.json.encode(document), reply.headers)
