"""A model behind the Open Inference Protocol, version 2, as a target: KServe, Triton, MLServer, or another vitok."""

import asyncio
import time
import urllib.parse
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.breaker import Nanoseconds
from vitok.serving.connections import MAX_ANSWER, Answered, Connections
from vitok.serving.inference_messages import json_part
from vitok.serving.retries import NO_DEADLINE
from vitok.serving.targets import ASKED, Attempt, Batch, Choice, Scored, TargetFailed, TimedOut
from vitok.serving.tensors import DATATYPES, from_bytes, from_values, to_bytes, to_json

# What the caller can mend: the target itself is well. Anything else of 400 and more is the target's failure.
_CALLERS_FAULT = frozenset({400, 413, 422})
_BUSY = frozenset({429, 503})
LONGEST_WAIT = 60.0


def retry_after(header: bytes, now: float) -> float:
    """Reads a `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.

    Args:
        header: What the server sent.
        now: The present, in seconds since 1970.

    Returns:
        Seconds, at most `LONGEST_WAIT`; 0 where it cannot be read or is over.

    Example:
        >>> retry_after(b"2", 0.0), retry_after(b"Thu, 01 Jan 1970 00:00:09 GMT", 5.0), retry_after(b"soon", 0.0)
        (2.0, 4.0, 0.0)
    """
    text = header.decode("latin-1").strip()
    if text.isdecimal():
        return min(float(text[:9]), LONGEST_WAIT)
    try:
        until = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(until - now, 0.0), LONGEST_WAIT)


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] = {}


class _Inferred(msgspec.Struct):
    outputs: list[_Output]
    model_version: str | None = None


_ANSWER = msgspec.json.Decoder(_Inferred)


class Busy(TargetFailed):
    """A target that has said when it may be asked again.

    Attributes:
        retry_after: Seconds until then.
    """

    def __init__(
        self, reason: str, retry_after: float, *, attempts: tuple[Attempt, ...] = (), cost: float = 0.0
    ) -> None:
        self.retry_after = retry_after
        super().__init__(reason, attempts=attempts, cost=cost)


class RemoteModel:
    """A model that takes one tensor of rows over HTTP.

    It asks once and never by itself again; how often, and where else, is for a `Pool` or a `Fallback` to say. Where
    the server answers 429 or 503 and says with `Retry-After` when to come back, it is not asked before that, for a
    minute at most: every call until then fails at once, and whoever has another target asks that. It belongs to the
    event loop that first calls it.

    Args:
        url: Scheme, host and port of the server.
        model: Name of the model there.
        model_version: Version in the path; by default the server chooses.
        name: What choices and errors call it; by default the host, the port and the model.
        input_name: Name of the tensor that the model takes.
        output: Name of the output that is the answer; by default the last. One of several columns gives its last
            column, for a classifier the probability of class 1.
        datatype: Type of the rows in the request, such as `"FP64"`.
        binary: Whether tensors are sent and wanted as bytes; False for servers without the binary extension.
        cost: What a row costs. A call that timed out or was given up counts as paid, and one whose answer cannot be
            used; one that was refused with a status of an error, or could not be sent, does not.
        quality: How good the model is; larger is better.
        headers: Further header lines, such as a key's.
        ca: File in PEM of those who vouch for the server; by default whom the system trusts.
        connections: Most requests in flight; one more fails at once.
        max_answer: Longest answer, in bytes.
        clock: Of the deadlines.

    Raises:
        InvalidInput: If an argument is out of its range.
        MissingExtra: If the extra `serve` is not installed.

    Example:
        >>> remote = RemoteModel("http://127.0.0.1:8080", "fraud", cost=0.0001)
        >>> remote.name, remote.version
        ('127.0.0.1:8080/fraud', 'fraud')
    """

    billed = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        model_version: str = "",
        name: str = "",
        input_name: str = "input",
        output: str = "",
        datatype: str = "FP64",
        binary: bool = True,
        cost: float = 0.0,
        quality: float | None = None,
        headers: dict[str, str] | None = None,
        ca: Path | None = None,
        connections: int = 64,
        max_answer: int = MAX_ANSWER,
        clock: Nanoseconds = time.perf_counter_ns,
    ) -> None:
        if datatype not in DATATYPES:
            raise InvalidInput("datatype", datatype, f"be one of {', '.join(DATATYPES)}")
        if not model:
            raise InvalidInput("model", model, "name a model of the server")
        self._connections = Connections(url, most=connections, max_answer=max_answer, ca=ca)
        self.name = name or f"{self._connections.authority}/{model}"
        self.version = f"{model}/{model_version}" if model_version else model
        self.cost = float(cost)
        self.quality = quality
        self._model = model
        self._output = output
        self._datatype = datatype
        self._binary = binary
        self._clock = clock
        self._not_before = 0
        self._input = msgspec.json.encode(input_name)
        path = urllib.parse.quote(urllib.parse.urlsplit(url).path.rstrip("/") + f"/v2/models/{model}")
        if model_version:
            path += urllib.parse.quote(f"/versions/{model_version}")
        lines = [f"POST {path}/infer HTTP/1.1", f"host: {self._connections.authority}"]
        for key, value in (headers or {}).items():
            if any(sign < " " or sign > "~" for sign in key + value):
                raise InvalidInput("headers", {key: value}, "be printable ASCII")
            lines.append(f"{key}: {value}")
        self._head = "\r\n".join([*lines, ""]).encode()

    async def call(self, batch: Batch, deadline: int = NO_DEADLINE) -> Scored:
        """Asks the model.

        Raises:
            InvalidInput: If the server says that the request is wrong (400, 413, 422), or the rows are no such tensor.
            TargetFailed: If the server cannot be reached, breaks off, answers nonsense or another status from 400 on.
            Busy: If it has said that it is not to be asked yet.
            TimedOut: If the deadline passes.
        """
        data = self._request(batch.rows)
        started = self._clock()
        paid = 0.0
        if started >= deadline:
            raise TimedOut(f"{self.name}: no time was left")
        if started < self._not_before:
            left = (self._not_before - started) / 1e9
            raise Busy(f"{self.name}: it has asked not to be asked for another {left:.3g} s", left)
        try:
            if deadline >= NO_DEADLINE:
                answered = await self._connections.exchange(data)
            else:
                async with asyncio.timeout((deadline - started) / 1e9):
                    answered = await self._connections.exchange(data)
            if answered.status < 300:
                paid = self.cost * len(batch)
            if answered.status in _BUSY:
                self._wait(answered, started)
            values, version = self._read(answered, len(batch))
        except TimeoutError:
            reason = f"{self.name}: no answer within {(deadline - started) / 1e6:.3g} ms"
            cost = self.cost * len(batch)
            raise TimedOut(reason, attempts=self._tried(started, reason), cost=cost) from None
        except Busy:
            raise
        except ServiceError as error:
            reason = f"{self.name}: {error}"
            raise TargetFailed(reason, attempts=self._tried(started, reason), cost=paid) from error
        choice = Choice(self.name, version, "champion", ASKED, self._tried(started, ""))
        return Scored(values, (choice,), None, self.cost * len(batch))

    def _wait(self, answered: Answered, started: int) -> None:
        seconds = retry_after(answered.headers.get(b"retry-after", b""), time.time())
        if seconds > 0:
            self._not_before = self._clock() + round(1e9 * seconds)
            reason = f"{self.name}: it answered {answered.status} and is to be asked again in {seconds:.3g} s"
            raise Busy(reason, seconds, attempts=self._tried(started, reason))

    def _tried(self, started: int, failure: str) -> tuple[Attempt, ...]:
        return (Attempt(self.name, (self._clock() - started) // 1000, failure),)

    def _request(self, rows: np.ndarray) -> bytes:
        kind = DATATYPES[self._datatype]
        try:
            tensor = rows.astype(kind, copy=False)
        except (ValueError, TypeError) as error:
            raise InvalidInput("rows", str(rows.dtype), f"become {self._datatype}: {error}") from None
        shape = b",".join([b"%d" % length for length in tensor.shape])
        start = b'"inputs":[{"name":%b,"datatype":"%b","shape":[%b],' % (self._input, self._datatype.encode(), shape)
        if not self._binary:
            body = b'{%b"data":%b}]}' % (start, to_json(tensor))
            return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (self._head, len(body), body)
        tail = to_bytes(tensor)
        head = b'{"parameters":{"binary_data_output":true},%b"parameters":{"binary_data_size":%d}}]}' % (
            start,
            len(tail),
        )
        return (
            b"%bcontent-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
            b"content-length: %d\r\n\r\n%b%b" % (self._head, len(head), len(head) + len(tail), head, tail)
        )

    def _read(self, answered: Answered, n: int) -> tuple[np.ndarray, str]:
        if answered.status >= 300:
            said = answered.body[:200].decode("utf-8", "replace")
            if answered.status in _CALLERS_FAULT:
                raise InvalidInput("rows", f"{n} rows", f"be what {self.name} takes: {answered.status} {said}")
            raise ServiceError(f"it answered {answered.status} {said}".rstrip())
        try:
            head, tail = json_part(answered.body, answered.headers.get(b"inference-header-content-length"))
            inferred = _ANSWER.decode(head)
            tensors = self._tensors(inferred, tail)
        except (InvalidInput, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ServiceError(f"its answer cannot be read: {error}") from None
        if not tensors:
            raise ServiceError("its answer has no outputs")
        name = self._output or next(reversed(tensors))
        if name not in tensors:
            raise ServiceError(f"its answer has no output {name!r}, only {', '.join(tensors)}")
        values = tensors[name]
        if values.shape[:1] != (n,):
            raise ServiceError(f"it gave the shape {list(values.shape)} for {n} rows")
        if values.ndim == 2 and values.shape[1] > 0:
            values = values[:, -1]
        version = f"{self._model}/{inferred.model_version}" if inferred.model_version else self.version
        return values.astype(np.float64) if values.dtype.kind in "fiub" else values, version

    def _tensors(self, inferred: _Inferred, tail: memoryview) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        at = 0
        for k, item in enumerate(inferred.outputs):
            size = item.parameters.get("binary_data_size")
            if size is None:
                tensors[item.name] = from_values(f"outputs[{k}]", item.datatype, item.shape, item.data)
                continue
            if not isinstance(size, int) or not 0 <= size <= len(tail) - at:
                raise InvalidInput(f"outputs[{k}]", size, f"be at most {len(tail) - at} bytes")
            tensors[item.name] = from_bytes(f"outputs[{k}]", item.datatype, item.shape, tail[at : at + size])
            at += size
        return tensors

    async def aclose(self) -> None:
        """Closes its connections; call it on the event loop that has used it, before that ends."""
        await self._connections.close()

    def __repr__(self) -> str:
        return f"RemoteModel({self.name!r})"
