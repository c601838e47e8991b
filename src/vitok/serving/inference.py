"""The Open Inference Protocol, version 2, at the hot door: requests read in one turn are one run of the model.

`POST /v2/models/{name}/infer` and `/v2/models/{name}/versions/{version}/infer`, in JSON or with the binary tensor
extension. What is asked of a model that takes one matrix of rows, as trees do, is written into one array that is kept
from batch to batch.
"""

import asyncio
import contextlib
import functools
import logging
import math
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from vitok.errors import InvalidInput, ServiceError, VitokError
from vitok.serving.hosted import INLINE_SECONDS, ROUTE, Answered, Breach, Chosen, Hosted, Meter, Recorder
from vitok.serving.inference_messages import (
    InferRequest,
    Job,
    RowsRequest,
    Writer,
    error_reply,
    json_part,
    read_job,
)
from vitok.serving.messages import HotRequest, Later, Reply
from vitok.serving.problems import FAULT, UNDECODABLE, from_decode_error, from_error, problem
from vitok.serving.queues import BatchQueue, Refusal, Task
from vitok.serving.runtime import Runtime
from vitok.serving.tracing import Moments, Traced, trace_id_of
from vitok.stats import LatencyHistogram

__all__ = [
    "INLINE_SECONDS",
    "ROUTE",
    "Answered",
    "Breach",
    "Chosen",
    "Hosted",
    "InferEndpoint",
    "Meter",
    "Recorder",
    "by_rows",
    "described",
    "endpoints",
    "ids_and_latency",
    "record_all",
]

logger = logging.getLogger("vitok.serving")

_JSON_LENGTH = b"inference-header-content-length"
_FIRST_ROWS = 256
# Of the log's column: 36 minutes.
_LONGEST_US = 2**31 - 1


class InferEndpoint:
    """Answers inference requests for one model at the hot door.

    Args:
        hosted: The model.
        version: The version in the path; requests are refused once another one answers. By default any.

    Example:
        >>> from vitok.serving.runners import CallableRunner
        >>> from vitok.serving.tensors import TensorSpec
        >>> total = CallableRunner(
        ...     lambda t: {"sum": t["x"].sum(axis=1)},
        ...     [TensorSpec("x", "FP64", (-1, 2))],
        ...     [TensorSpec("sum", "FP64", (-1,))],
        ... )
        >>> endpoint = InferEndpoint(Hosted("total", Runtime(total, version="1")))
        >>> body = b'{"id": "a", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}]}'
        >>> endpoint.handle([HotRequest(body, 0, [])])[0].body.decode()  # doctest: -NORMALIZE_WHITESPACE
        '{"model_name":"total","model_version":"1","id":"a","outputs":[{"name":"sum","datatype":"FP64","shape":[1],"data":[3.5]}]}'
    """

    def __init__(self, hosted: Hosted, *, version: str | None = None) -> None:
        self.hosted = hosted
        self.version = version
        middle = "" if version is None else f"/versions/{version}"
        self.path = f"/v2/models/{hosted.name}{middle}/infer"
        self._fast = msgspec.json.Decoder(RowsRequest)
        self._general = msgspec.json.Decoder(InferRequest)
        self._rows = np.empty((_FIRST_ROWS, 0))
        self._bytes = memoryview(b"")
        self._pack = struct.Struct("").pack_into
        self._writer = Writer(hosted.name, hosted.runtime)

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Answers requests in the order of their arrival."""
        return self.answer(requests, self._take)

    def answer(
        self, requests: Sequence[HotRequest], take: Callable[[Runtime, HotRequest, int], Job]
    ) -> Sequence[Reply | Later]:
        """Answers requests of whatever door, on the thread of its event loop: the one place where jobs are run.

        Args:
            requests: The requests, in the order of their arrival.
            take: Reads a request for a runtime; the number is that of the rows before it, for `place`.
        """
        started = time.perf_counter_ns()
        cpu = time.thread_time_ns()
        hosted = self.hosted
        runtime = hosted.runtime
        counts = hosted.counts
        counts["requests"] += len(requests)
        counts["batches"] += 1
        if self.version is not None and runtime.version.rpartition("/")[2] != self.version:
            detail = f"version {self.version} of {hosted.name} does not answer any more; {runtime.version} does"
            return [error_reply(problem(404, "Not Found", detail))] * len(requests)
        traced = hosted.tracing.pick(requests) if hosted.tracing is not None else ()
        replies: list[Reply | None] = [None] * len(requests)
        jobs: list[Job] = []
        n = 0
        logged = hosted.recorder is not None
        queue = hosted.queue if hosted.queueing else None
        for i, request in enumerate(requests):
            if queue is not None:
                away = self._turned_away(queue, request)
                if away is not None:
                    replies[i] = away
                    continue
            try:
                job = take(runtime, request, n)
            except UNDECODABLE as error:
                replies[i] = error_reply(from_decode_error(error, request.body))
            except InvalidInput as error:
                replies[i] = error_reply(from_error(error))
            else:
                job.place = i
                job.arrived = request.arrived
                job.tenant = request.tenant
                if logged and not request.plain:  # a call less for nearly all
                    job.trace_id = trace_id_of(request)
                jobs.append(job)
                n += job.n
        counts["refused"] += len(requests) - len(jobs)
        if traced and logged:
            begun = {one.place: f"{one.trace_id:032x}" for one in traced}
            for job in jobs:
                job.trace_id = begun.get(job.place, job.trace_id)
        X = self._rows[:n]
        if jobs and n and hosted.rules is not None and runtime.takes_rows:
            jobs, X = self._check(hosted.rules, jobs, X, replies)
        moments = [started, time.perf_counter_ns(), 0, 0]
        if hosted.queueing:
            return self._enqueue(runtime, jobs, X, replies, {one.place: one for one in traced})
        if jobs and runtime.takes_rows:
            self._answer_rows(runtime, jobs, X, replies, moments, cpu)
        elif jobs:
            self._answer_tensors(runtime, jobs, replies, moments)
        self._measure([request.arrived for request in requests], moments, traced, replies)
        return replies  # type: ignore[return-value]

    def _turned_away(self, queue: BatchQueue, request: HotRequest) -> Reply | None:
        # What is refused whatever it holds need not be read; but a request may bring a deadline of its own.
        if type(request) is not HotRequest or b'"timeout"' in request.body or b'"priority"' in request.body:
            return None
        refusal = queue.turned_away(request.tenant, request.arrived + int(1e9 * self.hosted.deadline))
        return None if refusal is None else _refused(refusal)

    def _take(self, runtime: Runtime, request: HotRequest, at: int) -> Job:
        # Reads a request; the rows of a matrix go to their place in the batch at once.
        length = None if request.plain else request.header(_JSON_LENGTH)
        width = runtime.n_features if runtime.takes_rows else 0
        if length is None and width:
            spec = runtime.inputs[0]
            try:
                asked = self._fast.decode(request.body)
            except msgspec.ValidationError:
                pass
            else:
                tensor = asked.inputs[0]
                shape = tensor.shape
                if (
                    len(shape) == 2
                    and shape[1] == width
                    and tensor.datatype == spec.datatype
                    and tensor.name == spec.name
                    and len(tensor.data) == shape[0] * width
                    and tensor.parameters is None
                    and asked.outputs is None
                    and asked.parameters is None
                    and len(asked.inputs) == 1
                ):
                    rows = shape[0]
                    self._room(width, at + rows)
                    if rows == 1:
                        # A third of the time that numpy takes for a list of thirty.
                        self._pack(self._bytes, 8 * width * at, *tensor.data)
                    else:
                        self._rows[at : at + rows] = np.array(tensor.data).reshape(rows, width)
                    return Job(asked.id, rows)
        head, tail = json_part(request.body, length)
        only_bytes = length is not None and not head
        general = InferRequest.raw(runtime.inputs) if only_bytes else self._general.decode(head)
        return self.place(read_job(general, tail, runtime), runtime, at)

    def place(self, job: Job, runtime: Runtime, at: int) -> Job:
        """Moves the tensor of a job to its rows in the batch, where the model takes one matrix of rows."""
        if runtime.takes_rows:
            rows = len(job.inputs[runtime.inputs[0].name])
            self._room(runtime.n_features, at + rows)
            self._rows[at : at + rows] = job.inputs[runtime.inputs[0].name]
            job.n = rows
            job.inputs = {}
        return job

    def _enqueue(
        self,
        runtime: Runtime,
        jobs: Sequence[Job],
        X: np.ndarray,
        replies: list[Reply | None],
        traced: Mapping[int, Traced],
    ) -> list[Reply | Later]:
        # Each request is owed its reply, unless the queue says that it would come too late.
        queue = self.hosted.open_queue(self._run_tasks, self._expire)
        loop = asyncio.get_running_loop()
        out: list[Reply | Later] = list(replies)  # type: ignore[arg-type]
        at = 0
        for job in jobs:
            if runtime.takes_rows:
                # The batch's array is used again by the next turn, and this one's run is later.
                job.inputs = {runtime.inputs[0].name: X[at : at + job.n].copy()}
                at += job.n
            job.later, job.loop = Later(), loop
            job.traced = traced.get(job.place)
            deadline = job.arrived + (1000 * job.timeout_us if job.timeout_us else int(1e9 * self.hosted.deadline))
            task = Task(
                job,
                rows=max(job.n, 1),
                arrived=job.arrived,
                deadline=deadline,
                priority=job.priority,
                tenant=job.tenant,
            )
            refusal = queue.submit(task)
            if refusal is None:
                out[job.place] = job.later
            else:
                self.hosted.counts["refused"] += 1
                out[job.place] = _refused(refusal)
        return out

    def _run_tasks(self, tasks: Sequence[Task]) -> None:
        # In the queue's thread: a batch is answered as a turn of the event loop would answer it.
        started, cpu = time.perf_counter_ns(), time.thread_time_ns()
        runtime = self.hosted.runtime
        jobs: list[Job] = [task.job for task in tasks]
        replies: list[Reply | None] = [None] * len(jobs)
        for place, job in enumerate(jobs):
            job.place = place
            if job.traced is not None:
                job.traced.place = place
        moments = [started, started, 0, 0]
        try:
            if runtime.takes_rows:
                name = runtime.inputs[0].name
                X = np.concatenate([job.inputs[name] for job in jobs])
                self._answer_rows(runtime, jobs, X, replies, moments, cpu)
            else:
                self._answer_tensors(runtime, jobs, replies, moments)
        except Exception:
            # Whatever it was, whoever waits gets an answer.
            logger.exception("%s failed on %d requests", self.path, len(jobs))
            replies = [error_reply(FAULT)] * len(jobs)
        _hand_over(jobs, replies)
        traced = [job.traced for job in jobs if job.traced is not None]
        self._measure([task.arrived for task in tasks], moments, traced, replies, jobs[0].loop)

    def _measure(
        self,
        arrived: Sequence[int],
        moments: Sequence[int],
        traced: Sequence[Traced],
        replies: Sequence[Reply | None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        hosted = self.hosted
        ended = time.perf_counter_ns()
        record_all(hosted.waited, arrived, moments[0])
        record_all(hosted.latency, arrived, ended)
        hosted.stages.record(moments, ended)
        if traced and hosted.tracing is not None:
            found, version = Moments(*moments), hosted.runtime.version
            n = len(replies)
            hosted.tracing.note(traced, found, route=self.path, version=version, requests=n, replies=replies, loop=loop)

    def _expire(self, task: Task) -> None:
        self.hosted.counts["refused"] += 1
        _hand_over([task.job], [_refused(Refusal("late", 0.0))])

    def _room(self, width: int, n: int) -> None:
        rows = self._rows
        if rows.shape[1] == width and len(rows) >= n:
            return
        if rows.shape[1] != width:
            rows = np.empty((_FIRST_ROWS, width))
        if len(rows) < n:
            grown = np.empty((max(n, 2 * len(rows)), width))
            grown[: len(rows)] = rows
            rows = grown
        self._rows = rows
        self._bytes = rows.data.cast("B")
        self._pack = struct.Struct(f"{width}d").pack_into

    def _answer_rows(
        self,
        runtime: Runtime,
        jobs: list[Job],
        X: np.ndarray,
        replies: list[Reply | None],
        moments: list[int],
        cpu: int,
    ) -> None:
        hosted = self.hosted
        n = len(X)
        try:
            fed = X
            if X.dtype != runtime.dtype:
                # A number beyond float32 is an infinite one; numpy would warn of it.
                with np.errstate(over="ignore"):
                    fed = X.astype(runtime.dtype)
            name = runtime.inputs[0].name
            ran: np.ndarray | None = None
            outputs: Mapping[str, np.ndarray]
            if hosted.cache is None:
                outputs = runtime.infer({name: fed})
            else:
                served = hosted.cache.answer(runtime, fed, lambda rows: runtime.infer({name: rows}))
                outputs, ran = served.outputs, served.ran
            moments[2] = time.perf_counter_ns()
            identifiers = self._record(runtime, jobs, X, outputs, cpu, ran)
            if hosted.disclose is not None:
                outputs = hosted.disclose(X, outputs)
        except VitokError as error:
            hosted.counts["failed"] += len(jobs)
            failure = error_reply(from_error(error))
            for job in jobs:
                replies[job.place] = failure
            return
        hosted.counts["rows"] += n
        if hosted.recorder is not None:
            moments[3] = time.perf_counter_ns()
        at = 0
        for job in jobs:
            if job.explain:
                job.told = {
                    "batch_rows": n,
                    "batch_requests": len(jobs),
                    "waited_us": (moments[0] - job.arrived) // 1000,
                }
                if hosted.describe is not None:
                    job.told.update(hosted.describe(X[at : at + job.n]))
            at += job.n
        self._write(runtime, jobs, outputs, identifiers, replies)

    def _check(
        self,
        rules: Callable[[np.ndarray], Sequence[Breach]],
        jobs: list[Job],
        X: np.ndarray,
        replies: list[Reply | None],
    ) -> tuple[list[Job], np.ndarray]:
        # A row that breaks a rule refuses its own request and no other.
        breaches = rules(X)
        if not breaches:
            return jobs, X
        owner = np.repeat(np.arange(len(jobs)), [job.n for job in jobs])
        starts = np.cumsum([0, *(job.n for job in jobs)])
        wrong: dict[int, list[dict[str, object]]] = {}
        for row, name, detail in breaches:
            place = int(owner[row])
            told = f"row {row - starts[place]}: {detail}" if jobs[place].n > 1 else detail
            wrong.setdefault(place, []).append({"field": name, "detail": told})
        for place, errors in wrong.items():
            reason = "; ".join(str(error["detail"]) for error in errors)
            title = "The request breaks the contract"
            refusal = problem(422, title, reason, field=str(errors[0]["field"]), errors=errors)
            replies[jobs[place].place] = error_reply(refusal)
        self.hosted.counts["refused"] += len(wrong)
        keep = np.ones(len(jobs), np.bool_)
        keep[list(wrong)] = False
        return [job for job, kept in zip(jobs, keep, strict=True) if kept], X[keep[owner]]

    def _record(
        self,
        runtime: Runtime,
        jobs: Sequence[Job],
        X: np.ndarray,
        outputs: Mapping[str, np.ndarray],
        cpu: int,
        ran: np.ndarray | None,
    ) -> Sequence[bytes]:
        recorder, meter = self.hosted.recorder, self.hosted.meter
        n = len(X)
        if (recorder is None and meter is None) or not n:
            return ()
        spent = time.thread_time_ns() - cpu
        cost: float | np.ndarray = spent / n / 1e9
        if ran is not None:
            cost = np.where(ran, spent / max(int(ran.sum()), 1) / 1e9, 0.0)
        request_ids, latency = ids_and_latency(jobs, n)
        answered = Answered(
            runtime.version,
            X,
            runtime.scores_of(outputs),
            request_ids,
            latency,
            cost,
            tenants=by_rows(jobs, n, "tenant"),
            trace_ids=by_rows(jobs, n, "trace_id"),
            ran=ran,
        )
        if meter is not None:
            answered.cost = meter.charge(answered, spent)
        return () if recorder is None else recorder.record(answered)

    def _answer_tensors(
        self, runtime: Runtime, jobs: list[Job], replies: list[Reply | None], moments: list[int]
    ) -> None:
        # Requests whose tensors differ only in the number of rows are one run.
        together: dict[object, list[Job]] = {}
        for place, job in enumerate(jobs):
            shapes = tuple(job.inputs[spec.name].shape[1:] for spec in runtime.inputs)
            together.setdefault(shapes if runtime.batched else place, []).append(job)
        for group in together.values():
            inputs = {
                spec.name: np.concatenate([job.inputs[spec.name] for job in group])
                if len(group) > 1
                else group[0].inputs[spec.name]
                for spec in runtime.inputs
            }
            try:
                cpu = time.thread_time_ns()
                outputs = runtime.infer(inputs)
                moments[2] = time.perf_counter_ns()
                rows = sum(job.n for job in group)
                if runtime.batched and any(len(output) != rows for output in outputs.values()):
                    raise ServiceError(f"{runtime.version}: an output has another number of rows than the input")
            except VitokError as error:
                self.hosted.counts["failed"] += len(group)
                for job in group:
                    replies[job.place] = error_reply(from_error(error))
                continue
            self.hosted.counts["rows"] += rows
            if self.hosted.meter is not None and rows:
                self._charge(self.hosted.meter, runtime, group, rows, time.thread_time_ns() - cpu)
            for job in group:
                if job.explain:
                    waited = (moments[0] - job.arrived) // 1000
                    job.told = {"batch_rows": rows, "batch_requests": len(group), "waited_us": waited}
            self._write(runtime, group, outputs, (), replies)

    def _charge(self, meter: Meter, runtime: Runtime, jobs: Sequence[Job], rows: int, spent: int) -> None:
        request_ids, latency = ids_and_latency(jobs, rows)
        none = np.empty((rows, 0))
        score = np.full(rows, np.nan)
        tenants = by_rows(jobs, rows, "tenant")
        meter.charge(Answered(runtime.version, none, score, request_ids, latency, 0.0, tenants=tenants), spent)

    def _write(
        self,
        runtime: Runtime,
        jobs: Sequence[Job],
        outputs: Mapping[str, np.ndarray],
        ids: Sequence[bytes],
        replies: list[Reply | None],
    ) -> None:
        if self._writer.runtime is not runtime:
            self._writer = Writer(self.hosted.name, runtime)
        try:
            written = self._writer.write(jobs, outputs, ids)
        except InvalidInput as error:
            written = [error_reply(from_error(error))] * len(jobs)
        for job, reply in zip(jobs, written, strict=True):
            replies[job.place] = reply


def ids_and_latency(jobs: Sequence[Job], n: int) -> tuple[list[str], np.ndarray]:
    """Returns the caller's id of each of n rows, and the microseconds since it arrived, as a recorder takes them."""
    now = time.perf_counter_ns()
    since = [(now - job.arrived) // 1000 for job in jobs]
    if min(since, default=0) < 0 or max(since, default=0) > _LONGEST_US:
        since = [min(max(us, 0), _LONGEST_US) for us in since]
    latency = np.array(since, np.int32)
    request_ids = [job.id for job in jobs]
    if len(jobs) != n or any(job.n != 1 for job in jobs):
        latency = np.repeat(latency, [job.n for job in jobs])
        request_ids = [f"{job.id}/{k}" if job.id and job.n > 1 else job.id for job in jobs for k in range(job.n)]
    return request_ids, latency


def by_rows(jobs: Sequence[Job], n: int, name: Literal["tenant", "trace_id"]) -> list[str] | None:
    """Returns what jobs say of themselves for each of their n rows; None where none says anything."""
    values = [job.tenant for job in jobs] if name == "tenant" else [job.trace_id for job in jobs]
    if not any(values):
        return None
    if len(jobs) == n and all(job.n == 1 for job in jobs):
        return values
    return [value for job, value in zip(jobs, values, strict=True) for _ in range(job.n)]


def _refused(refusal: Refusal) -> Reply:
    return _refused_for(refusal.reason, max(1, math.ceil(refusal.retry_after)))


@functools.lru_cache(64)
def _refused_for(reason: str, after: int) -> Reply:
    header = b"retry-after: %d\r\n" % after
    if reason == "full":
        detail = f"The queue is full; try again in {after} s"
        return error_reply(problem(429, "Too Many Requests", detail, headers=header))
    if reason == "closed":
        return error_reply(problem(503, "Service Unavailable", "The service is shutting down", headers=header))
    detail = f"The answer would come after its deadline; try again in {after} s"
    return error_reply(problem(503, "Service Unavailable", detail, headers=header))


def _hand_over(jobs: Sequence[Job], replies: Sequence[Reply | None]) -> None:
    # Requests of one loop go back to it in one call.
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Later, Reply]]] = {}
    for job, reply in zip(jobs, replies, strict=True):
        if job.later is not None and job.loop is not None:
            by_loop.setdefault(job.loop, []).append((job.later, reply or error_reply(FAULT)))
    for loop, pairs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has been closed, and nobody waits any more
            loop.call_soon_threadsafe(_give, pairs)


def _give(pairs: Sequence[tuple[Later, Reply]]) -> None:
    for later, reply in pairs:
        later.give(reply)


def record_all(histogram: LatencyHistogram, arrived: Sequence[int], until: int) -> None:
    """Records how long ago requests arrived, in nanoseconds of `time.perf_counter_ns` all."""
    histogram.record_since(arrived, until)


def endpoints(hosted: Hosted) -> list[InferEndpoint]:
    """Returns the endpoints of a model: one without a version, and one for the version that answers now."""
    number = hosted.runtime.version.rpartition("/")[2]
    return [InferEndpoint(hosted), *([InferEndpoint(hosted, version=number)] if number else [])]


def described(hosted: Hosted) -> dict[str, Any]:
    """Returns the metadata of a model as the protocol has them."""
    runtime = hosted.runtime
    return {
        "name": hosted.name,
        "versions": [runtime.version.rpartition("/")[2]],
        "platform": runtime.platform,
        "inputs": [spec.to_dict() for spec in runtime.inputs],
        "outputs": [spec.to_dict() for spec in runtime.outputs],
    }
