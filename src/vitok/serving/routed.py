"""A name of the Open Inference Protocol that a route answers: several models, local or remote, behind one path.

The requests of a turn are one batch for the route. Where all of its targets are of this process they are answered at
once, as a model is; else the route runs as a task of the event loop, and each request is owed its reply.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitok.errors import InvalidInput, NotFound, ServiceError, VitokError
from vitok.serving.costs import RouteTime
from vitok.serving.hosting import Catalogue, ModelHost
from vitok.serving.inference import (
    ROUTE,
    Answered,
    Breach,
    Chosen,
    Hosted,
    InferEndpoint,
    Recorder,
    by_rows,
    ids_and_latency,
    record_all,
)
from vitok.serving.inference_messages import Job, error_reply
from vitok.serving.messages import Endpoint, HotRequest, Later, Reply
from vitok.serving.opening import answered
from vitok.serving.paid_calls import paid
from vitok.serving.problems import FAULT, from_error, problem
from vitok.serving.remote import Busy
from vitok.serving.runners import Tensors
from vitok.serving.runtime import PackageFiles, Runtime
from vitok.serving.targets import (
    Batch,
    Choice,
    LocalModel,
    LocalTarget,
    Scored,
    Target,
    TargetFailed,
    asked,
    close_all,
)
from vitok.serving.tensors import TensorSpec
from vitok.serving.tracing import Traced

logger = logging.getLogger("vitok.serving")

REQUEST_ID = "request_id"
"""The unit of a request is its own id."""

FAILED = "failed"
"""The route under which calls are charged that gave no answer."""

_SCORE = (TensorSpec("score", "FP64", (-1,)),)
_GRACE = 50_000_000


class _Face:
    """What the protocol tells of a route: its tensors. It is not run as a model is."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.platform = ROUTE

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        raise ServiceError(f"a route is asked at its endpoint, not with {sorted(inputs)}")


def answers_at_once(target: Target) -> bool:
    """Says whether a target and all that it may ask answer in this process without waiting for anything.

    Example:
        >>> from vitok.serving.chains import Fallback
        >>> from vitok.serving.remote import RemoteModel
        >>> from vitok.serving.targets import Constant
        >>> answers_at_once(Constant(0.5))
        True
        >>> answers_at_once(Fallback([RemoteModel("http://127.0.0.1:1", "fraud"), Constant(0.5)]))
        False
    """
    if not isinstance(target, LocalTarget):
        return False
    if isinstance(target, LocalModel) and target._executor is not None:  # noqa: SLF001 - it waits for a thread
        return False
    inner = list(getattr(target, "targets", ()))
    inner += [getattr(target, name) for name in ("main", "small", "large") if hasattr(target, name)]
    return all(answers_at_once(item) for item in inner)


class RoutedEndpoint(InferEndpoint):
    """Answers inference requests for one name by a route, at the hot door.

    What a request asks is read as for a model. Requests with the same `parameters.timeout` are one batch; a request
    that the route calls wrong is refused alone, the others are asked again one by one. Where the route fails, status
    503 says why and when to come back. With `parameters.explain` an answer says which target gave it and why.

    Args:
        name: Name in the path.
        target: The route, or any target.
        inputs: The matrix of rows that the models see, of floats and shape (-1, k); then columns of shape (-1,),
            which conditions look at under their names.
        outputs: The one output, of the type and shape that the targets give.
        features: Columns of the matrix that conditions look at, by name, with their place.
        unit: What a canary is drawn by: the name of a column, or `"request_id"`; empty where no route needs it.
        version: What answers and metadata call the version.
        rules: Says which rows of the matrix break the contract, where it is the only input.
        recorder: Where answers are logged before they leave, each row with its choice; None where they are not.
        deadline: Seconds within which an answer is of use, where a request does not say.

    Attributes:
        target: The route.
        unit: What a canary is drawn by.
        at_once: Whether it is answered without leaving the turn.

    Raises:
        InvalidInput: If tensors or names do not fit together.

    Example:
        >>> from vitok.serving.chains import Fallback
        >>> from vitok.serving.targets import Constant
        >>> def broken(rows):
        ...     raise OSError("the disk is full")
        >>> chain = Fallback([LocalModel("fraud", broken), Constant(0.5, name="rules")])
        >>> endpoint = RoutedEndpoint("risk", chain, inputs=[TensorSpec("x", "FP64", (-1, 2))])
        >>> body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}]}'
        >>> reply = endpoint.handle([HotRequest(body, time.perf_counter_ns(), [])])[0]
        >>> reply.body.decode()  # doctest: -NORMALIZE_WHITESPACE
        '{"model_name":"risk","model_version":"route","outputs":[{"name":"score","datatype":"FP64","shape":[1],"data":[0.5]}]}'
    """

    def __init__(
        self,
        name: str,
        target: Target,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec] = _SCORE,
        features: Mapping[str, int] | None = None,
        unit: str = "",
        version: str = "route",
        rules: Callable[[np.ndarray], Sequence[Breach]] | None = None,
        recorder: Recorder | None = None,
        deadline: float = 1.0,
    ) -> None:
        face = _checked(inputs, outputs)
        matrix, columns = face.inputs[0], face.inputs[1:]
        features = dict(features or {})
        for feature, place in features.items():
            if not 0 <= place < matrix.shape[1]:
                raise InvalidInput(f"features[{feature!r}]", place, f"be a column, 0 to {matrix.shape[1] - 1}")
        known = [*(spec.name for spec in columns), *features]
        if unit not in ("", REQUEST_ID, *known):
            raise InvalidInput("unit", unit, f"be {REQUEST_ID!r} or a column: {', '.join(known) or 'there is none'}")
        if rules is not None and columns:
            raise InvalidInput("rules", "given", "be for a matrix without columns beside it")
        self.target = target
        self.unit = unit
        self.at_once = answers_at_once(target)
        runtime = Runtime(face, version=f"{name}/{version}")
        # "Queueing" is what the endpoint calls a reply that comes later.
        hosted = Hosted(name, runtime, rules=rules, recorder=recorder, deadline=deadline, queue=not self.at_once)
        super().__init__(hosted)
        self._time = RouteTime(target)
        self._matrix = matrix.name
        self._columns = tuple(spec.name for spec in columns)
        self._features = features
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, requests: Sequence[HotRequest]) -> Sequence[Reply | Later]:
        """Answers requests of whatever door in the order of their arrival."""
        return answered(self, requests)

    def answer(
        self, requests: Sequence[HotRequest], take: Callable[[Runtime, HotRequest, int], Job]
    ) -> Sequence[Reply | Later]:
        """Answers requests of whatever door, on the thread of its event loop."""
        if self.unit != REQUEST_ID:
            return super().answer(requests, take)

        def with_id(runtime: Runtime, request: HotRequest, at: int) -> Job:
            job = take(runtime, request, at)
            if not job.id:
                raise InvalidInput("id", "", "be given", "The model is chosen by the id of the request")
            return job

        return super().answer(requests, with_id)

    async def aclose(self) -> None:
        """Waits for what is owed and closes the route's connections; call it on the event loop that used them."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await close_all([self.target])

    def _answer_rows(
        self,
        runtime: Runtime,
        jobs: list[Job],
        X: np.ndarray,
        replies: list[Reply | None],
        moments: list[int],
        cpu: int,  # noqa: ARG002 - the route says what it costs
    ) -> None:
        for part, batch, deadline in self._parts(runtime, jobs, X):
            self._ask(part, batch, deadline, replies, moments[0])

    def _answer_tensors(
        self, runtime: Runtime, jobs: list[Job], replies: list[Reply | None], moments: list[int]
    ) -> None:
        self._answer_rows(runtime, jobs, self._rows_of(jobs), replies, moments, 0)

    def _enqueue(
        self,
        runtime: Runtime,
        jobs: Sequence[Job],
        X: np.ndarray,
        replies: list[Reply | None],
        traced: Mapping[int, Traced],  # noqa: ARG002 - a route's own calls are no stages of a batch
    ) -> list[Reply | Later]:
        out: list[Reply | Later] = list(replies)  # type: ignore[arg-type]
        if not jobs:
            return out
        started = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        for job in jobs:
            out[job.place] = job.later = Later()
        for part, batch, deadline in self._parts(runtime, jobs, X if runtime.takes_rows else self._rows_of(jobs)):
            for place, job in enumerate(part):
                job.place = place
            task = loop.create_task(self._owed(part, batch, deadline, started))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return out

    def _rows_of(self, jobs: Sequence[Job]) -> np.ndarray:
        return np.concatenate([job.inputs[self._matrix] for job in jobs])

    def _parts(self, runtime: Runtime, jobs: Sequence[Job], X: np.ndarray) -> list[tuple[Sequence[Job], Batch, int]]:
        timeouts = sorted({job.timeout_us for job in jobs})
        if len(timeouts) == 1:
            return [(jobs, *self._batch(runtime, jobs, X))]
        # One that has little time must not take it from the others.
        owner = np.repeat([job.timeout_us for job in jobs], [job.n for job in jobs])
        parts: list[tuple[Sequence[Job], Batch, int]] = []
        for timeout in timeouts:
            part = [job for job in jobs if job.timeout_us == timeout]
            parts.append((part, *self._batch(runtime, part, X[owner == timeout])))
        return parts

    def _batch(self, runtime: Runtime, jobs: Sequence[Job], X: np.ndarray) -> tuple[Batch, int]:
        # The matrix of a turn is used again by the next one, and a shadow looks at it later.
        with np.errstate(over="ignore"):
            rows = np.array(X, dtype=runtime.inputs[0].dtype)
        fields: dict[str, Any] = {name: rows[:, place] for name, place in self._features.items()}
        for name in self._columns:
            fields[name] = _plain(np.concatenate([job.inputs[name] for job in jobs]))
        units: list[str] = []
        if self.unit == REQUEST_ID:
            units = [job.id for job in jobs for _ in range(job.n)]
        elif self.unit:
            units = [str(value) for value in fields[self.unit]]
        first = jobs[0]
        seconds = first.timeout_us / 1e6 if first.timeout_us else self.hosted.deadline
        return Batch(rows, units, fields), min(job.arrived for job in jobs) + int(1e9 * seconds)

    def _ask(self, jobs: Sequence[Job], batch: Batch, deadline: int, replies: list[Reply | None], started: int) -> None:
        assert isinstance(self.target, LocalTarget)  # noqa: S101
        scored: Scored | None = None
        try:
            if len(batch):
                scored = self.target.score(batch, deadline)
        except InvalidInput as error:
            if len(jobs) == 1:
                return self._failed(jobs, error, replies)
            for part, own in _alone(jobs, batch):
                self._ask(part, own, deadline, replies, started)
            return None
        except VitokError as error:
            return self._unanswered(jobs, batch, error, replies)
        except Exception as error:
            # A target of the caller's own may raise anything.
            logger.exception("%s failed on %d requests", self.path, len(jobs))
            return self._unanswered(jobs, batch, TargetFailed(f"{self.target.name}: {error!r}"), replies)
        return self._answered(jobs, batch, scored, replies, started)

    async def _owed(self, jobs: Sequence[Job], batch: Batch, deadline: int, started: int) -> None:
        replies: list[Reply | None] = [None] * len(jobs)
        try:
            await self._ask_later(jobs, batch, deadline, replies, started)
        except Exception:
            # Whatever it was, whoever waits gets an answer.
            logger.exception("%s failed on %d requests", self.path, len(jobs))
        finally:
            arrived = [job.arrived for job in jobs]
            record_all(self.hosted.waited, arrived, started)
            record_all(self.hosted.latency, arrived, time.perf_counter_ns())
            for job, reply in zip(jobs, replies, strict=True):
                assert job.later is not None  # noqa: S101
                job.later.give(reply or error_reply(FAULT))

    async def _ask_later(
        self, jobs: Sequence[Job], batch: Batch, deadline: int, replies: list[Reply | None], started: int
    ) -> None:
        scored: Scored | None = None
        try:
            if len(batch):
                scored = await asked(self.target, batch, deadline, time.perf_counter_ns, grace=_GRACE)
        except InvalidInput as error:
            if len(jobs) == 1:
                return self._failed(jobs, error, replies)
            parts = _alone(jobs, batch)
            await asyncio.gather(*(self._ask_later(part, own, deadline, replies, started) for part, own in parts))
            return None
        except VitokError as error:
            return self._unanswered(jobs, batch, error, replies)
        return self._answered(jobs, batch, scored, replies, started)

    def _unanswered(
        self, jobs: Sequence[Job], batch: Batch, error: VitokError, replies: list[Reply | None], *, cost: float = 0.0
    ) -> None:
        # There is no decision, so there is none in the log; what was paid all the same goes to the accounts.
        meter, n = self.hosted.meter, len(batch)
        cost += paid(error)
        if meter is not None and n and cost:
            version = self.hosted.runtime.version
            reason = str(error)
            chosen = Chosen([version] * n, [FAILED] * n, [reason] * n, [1.0] * n)
            request_ids, latency = ids_and_latency(jobs, n)
            nothing = np.full(n, np.nan)
            tenants = by_rows(jobs, n, "tenant")
            entry = Answered(version, batch.rows, nothing, request_ids, latency, cost / n, chosen, tenants=tenants)
            meter.charge(entry, self._time.taken())
        self._failed(jobs, error, replies)

    def _failed(self, jobs: Sequence[Job], error: VitokError, replies: list[Reply | None]) -> None:
        reply = from_error(error)
        if reply.status >= 500:
            seconds = math.ceil(error.retry_after) if isinstance(error, Busy) else 1
            headers = b"retry-after: %d\r\n" % max(1, seconds)
            reply = problem(503, "Service Unavailable", str(error), headers=headers)
            self.hosted.counts["failed"] += len(jobs)
        else:
            self.hosted.counts["refused"] += len(jobs)
        reply = Reply(reply.status, error_reply(reply).body, reply.headers)
        for job in jobs:
            replies[job.place] = reply

    def _answered(
        self, jobs: Sequence[Job], batch: Batch, scored: Scored | None, replies: list[Reply | None], started: int
    ) -> None:
        hosted, n = self.hosted, len(batch)
        ids: Sequence[bytes] = ()
        try:
            outputs: Mapping[str, np.ndarray] = self._outputs(scored, n)
        except ServiceError as error:
            self._unanswered(jobs, batch, error, replies, cost=0.0 if scored is None else scored.cost)
            return
        try:
            if scored is not None:
                if hosted.recorder is not None or hosted.meter is not None:
                    entry = self._entry(jobs, batch, scored, outputs)
                    if hosted.meter is not None:
                        entry.cost = hosted.meter.charge(entry, self._time.taken())
                    if hosted.recorder is not None:
                        ids = hosted.recorder.record(entry)
                if hosted.disclose is not None:
                    outputs = hosted.disclose(batch.rows, outputs)
        except VitokError as error:
            self._failed(jobs, error, replies)
            return
        if scored is not None:
            self._count(scored, n)
        at = 0
        for job in jobs:
            if job.explain:
                waited = (started - job.arrived) // 1000
                job.told = {"batch_rows": n, "batch_requests": len(jobs), "waited_us": waited}
                if scored is not None and job.n:
                    job.told |= _told([scored.choice(row) for row in range(at, at + job.n)], waited)
                if hosted.describe is not None:
                    job.told |= hosted.describe(batch.rows[at : at + job.n])
            at += job.n
        self._write(hosted.runtime, jobs, outputs, ids, replies)

    def _outputs(self, scored: Scored | None, n: int) -> dict[str, np.ndarray]:
        spec = self.hosted.runtime.outputs[0]
        if scored is None:
            return {spec.name: np.empty((0, *(max(length, 0) for length in spec.shape[1:])), spec.dtype)}
        values = scored.values
        if len(values) != n or not spec.fits(values.shape) or not np.can_cast(values.dtype, spec.dtype, "same_kind"):
            raise ServiceError(
                f"{self.target.name} gave {values.dtype} of the shape {values.shape} for {n} rows, "
                f"and {spec.name} is {spec.datatype} {list(spec.shape)}"
            )
        with np.errstate(over="ignore"):
            return {spec.name: values.astype(spec.dtype, copy=False)}

    def _entry(self, jobs: Sequence[Job], batch: Batch, scored: Scored, outputs: Mapping[str, np.ndarray]) -> Answered:
        n = len(batch)
        choices = [scored.choice(row) for row in range(n)]
        chosen = Chosen(
            [choice.version for choice in choices],
            [choice.route for choice in choices],
            [choice.reason for choice in choices],
            [choice.propensity for choice in choices],
        )
        request_ids, latency = ids_and_latency(jobs, n)
        runtime = self.hosted.runtime
        X = np.asarray(batch.rows, np.float64)
        return Answered(
            runtime.version,
            X,
            runtime.scores_of(outputs),
            request_ids,
            latency,
            scored.cost / n,
            chosen=chosen,
            tenants=by_rows(jobs, n, "tenant"),
            trace_ids=by_rows(jobs, n, "trace_id"),
        )

    def _count(self, scored: Scored, n: int) -> None:
        counts = self.hosted.counts
        counts["rows"] += n
        shares = [n] if scored.places is None else np.bincount(scored.places, minlength=len(scored.choices)).tolist()
        for choice, rows in zip(scored.choices, shares, strict=False):
            if rows:
                counts[choice.route] = counts.get(choice.route, 0) + rows


def _checked(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> _Face:
    matrix = inputs[0] if inputs else None
    if matrix is None or matrix.datatype not in ("FP32", "FP64") or len(matrix.shape) != 2 or not matrix.batched:
        raise InvalidInput("inputs", matrix, "begin with a matrix of FP32 or FP64 and the shape (-1, k)")
    if matrix.shape[1] < 1:
        raise InvalidInput("inputs", matrix, "say how many columns the matrix has")
    for spec in inputs[1:]:
        if spec.shape != (-1,):
            raise InvalidInput("inputs", spec, "be columns of the shape (-1,) after the matrix")
    names = [spec.name for spec in inputs]
    if len(set(names)) != len(names):
        raise InvalidInput("inputs", names, "have different names")
    if len(outputs) != 1 or not outputs[0].batched:
        raise InvalidInput("outputs", list(outputs), "be one, with an answer for each row")
    return _Face(inputs, outputs)


def _plain(column: np.ndarray) -> list[Any]:
    # Bytes that are no UTF-8 still name a unit, the same each time.
    return [item.decode("utf-8", "backslashreplace") if isinstance(item, bytes) else item for item in column.tolist()]


def _alone(jobs: Sequence[Job], batch: Batch) -> list[tuple[list[Job], Batch]]:
    ends = np.cumsum([job.n for job in jobs]).tolist()
    return [([job], batch.take(np.arange(end - job.n, end))) for job, end in zip(jobs, ends, strict=True)]


def _told(choices: Sequence[Choice], waited: int) -> dict[str, Any]:
    # One text where all rows have the same choice, else one a row.
    found: dict[str, Any] = {
        "target": [choice.target for choice in choices],
        "model_version": [choice.version for choice in choices],
        "route": [choice.route for choice in choices],
        "reason": [choice.reason for choice in choices],
        "attempts": ["; ".join(map(str, choice.attempts)) for choice in choices],
    }
    if len(set(choices)) == 1:
        found = {name: values[0] for name, values in found.items()} | {"attempts": list(map(str, choices[0].attempts))}
    return found | {"waited_us": waited + max(choice.waited for choice in choices)}


class _WithRoutes:
    """A catalogue that also names the routes, so that the index of the repository lists them."""

    def __init__(self, catalogue: Catalogue, routes: Mapping[str, RoutedEndpoint]) -> None:
        self._catalogue = catalogue
        self._routes = routes
        self.revision = catalogue.revision

    def names(self) -> Sequence[str]:
        return [*(name for name in self._catalogue.names() if name not in self._routes), *self._routes]

    def versions(self, name: str) -> Sequence[str]:
        return [_number(self._routes[name])] if name in self._routes else self._catalogue.versions(name)

    def current(self, name: str) -> str:
        return _number(self._routes[name]) if name in self._routes else self._catalogue.current(name)

    def package(self, name: str, version: str) -> PackageFiles | Any:
        if name in self._routes:
            raise NotFound("package", name)
        return self._catalogue.package(name, version)


def _number(endpoint: RoutedEndpoint) -> str:
    return endpoint.hosted.runtime.version.rpartition("/")[2]


class RoutedHost(ModelHost):
    """The models that a process serves, and beside them names that routes answer.

    Health, metadata, statistics and the index know the routes as they know models; a route is never let go.

    Args:
        catalogue: Where models come from; a route hides a model of its name.
        routes: The routes.
        options: As for `ModelHost`.

    Raises:
        InvalidInput: If two routes have one name.
    """

    def __init__(self, catalogue: Catalogue, routes: Sequence[RoutedEndpoint], **options: Any) -> None:
        self._routes: dict[str, RoutedEndpoint] = {}
        super().__init__(_WithRoutes(catalogue, self._routes), **options)
        for endpoint in routes:
            self.add(endpoint)

    def add(self, endpoint: RoutedEndpoint) -> None:
        """Adds a route.

        Raises:
            InvalidInput: If there is one of this name.
        """
        if endpoint.hosted.name in self._routes:
            raise InvalidInput("routes", endpoint.hosted.name, "have different names")
        self._routes[endpoint.hosted.name] = endpoint
        self._enter(endpoint)
        self._tell()

    def endpoint(
        self, name: str, version: str | None = None, *, entered: Callable[[], object] = lambda: None
    ) -> Endpoint:
        """Returns what answers for a name, with the guard before it.

        Raises:
            NotFound: If a route has no such version.
        """
        if name not in self._routes:
            return super().endpoint(name, version, entered=entered)
        self.get(name, version)
        return self.endpoints[self._routes[name].path]

    def get(self, name: str, version: str | None = None) -> Hosted:
        """Returns a route, or a model, loaded.

        Raises:
            NotFound: If there is no such model or version.
            ServiceError: If it cannot be run, or there is no room for it.
        """
        endpoint = self._routes.get(name)
        if endpoint is None:
            return super().get(name, version)
        if version not in (None, _number(endpoint)):
            raise NotFound(f"version of {name}", str(version), [_number(endpoint)])
        return endpoint.hosted

    def loaded(self) -> list[Hosted]:
        """Returns the models that are loaded, and the routes."""
        return [*super().loaded(), *(endpoint.hosted for endpoint in self._routes.values())]

    def unload(self, name: str) -> None:
        """Lets a model go, with all its versions.

        Raises:
            InvalidInput: If it is a route.
            NotFound: If it is not loaded.
        """
        if name in self._routes:
            raise InvalidInput("name", name, "be a model", "A route stays as long as the process")
        super().unload(name)

    async def aclose(self) -> None:
        """Closes what routes hold open; call it on the event loop that has used them, before that ends."""
        for endpoint in self._routes.values():
            await endpoint.aclose()
