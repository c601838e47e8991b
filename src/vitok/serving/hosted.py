"""A model under its name, and what goes with its answers: rules, a log, a meter, a cache, traces."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vitok.errors import InvalidInput
from vitok.serving.queues import BatchQueue, ServiceCurve, Task
from vitok.serving.response_cache import ResponseCache
from vitok.serving.runtime import Runtime
from vitok.serving.tracing import Stages, Tracing
from vitok.stats import LatencyHistogram

INLINE_SECONDS = 200e-6
ROUTE = "vitok_route"
"""The platform that metadata tell of a name behind which a route answers."""

Breach = tuple[int, str, str]
"""A row that breaks a rule: its place, the feature, and what is wrong."""


class Recorder(Protocol):
    """Keeps what was decided, as `vitok.serving.InferenceLog` does."""

    def record(self, batch: "Answered") -> Sequence[bytes]:
        """Writes a batch; once it returns, the rows are in the log. Returns the decision id of each row."""
        ...


class Chosen(NamedTuple):
    """What a route chose for each row of a batch, n each.

    Attributes:
        versions: Model version that answered.
        routes: `"champion"`, `"canary"`, `"shadow"` or `"fallback"`.
        reasons: Why it was chosen.
        propensities: Probability with which a random draw chose it; 1 where nothing was drawn.
    """

    versions: Sequence[str]
    routes: Sequence[str]
    reasons: Sequence[str]
    propensities: Sequence[float]


class Answered:
    """A batch of rows that a model has answered, by columns, as a recorder and a meter take it.

    Attributes:
        version: Such as `"fraud/3"`.
        X: Rows as the model saw them, shape (n, n_features).
        score: Its scores, shape (n,).
        request_ids: The callers' ids, n texts; empty where a caller gave none.
        latency_us: Microseconds since the arrival of each row's request, shape (n,).
        cost: Processor seconds a row, or one number for each; for a route in the unit of its targets.
        chosen: What a route chose; None where one version answered all.
        tenants: Whose each row is, n texts; None where nobody has asked who calls.
        teams: The team that each row is charged to, n texts; None where there are none. A meter that knows the teams
            of tenants may set it.
        trace_ids: The trace that each row's request belongs to, n texts of 32 hex digits, empty where it has none;
            None where no request has one.
        ran: Shape (n,), False for the rows that a cache answered; None where the model ran on all.
    """

    __slots__ = (
        "X",
        "chosen",
        "cost",
        "latency_us",
        "ran",
        "request_ids",
        "score",
        "teams",
        "tenants",
        "trace_ids",
        "version",
    )

    def __init__(
        self,
        version: str,
        X: np.ndarray,
        score: np.ndarray,
        request_ids: Sequence[str],
        latency_us: np.ndarray,
        cost: float | np.ndarray,
        chosen: Chosen | None = None,
        *,
        tenants: Sequence[str] | None = None,
        teams: Sequence[str] | None = None,
        trace_ids: Sequence[str] | None = None,
        ran: np.ndarray | None = None,
    ) -> None:
        self.version = version
        self.X = X
        self.score = score
        self.request_ids = request_ids
        self.latency_us = latency_us
        self.cost = cost
        self.chosen = chosen
        self.tenants = tenants
        self.teams = teams
        self.trace_ids = trace_ids
        self.ran = ran

    def __len__(self) -> int:
        return len(self.latency_us)

    @property
    def routes(self) -> Sequence[str] | None:
        """What a route chose for each row, such as `"canary"`; None where there is no route."""
        return None if self.chosen is None else self.chosen.routes


class Meter(Protocol):
    """Charges what a batch has cost to whoever asked for it."""

    def charge(self, batch: Answered, cpu_ns: int) -> float | np.ndarray:
        """Takes the cost of a batch; returns the processor seconds of each row, or one number for all, for the log.

        Args:
            batch: The rows; its `cost` is not known yet, and it may have no `X` and no `score`.
            cpu_ns: Processor time of this thread for the batch so far, in nanoseconds.
        """
        ...


class Hosted:
    """A model under its name: the version that answers, and what goes with each answer.

    The version is replaced as a whole, between two batches: `hosted.replace(other)`. A model that takes longer than
    `INLINE_SECONDS` for one row has a queue and a thread of its own, so that the event loop goes on meanwhile.

    Args:
        name: Name of the model, as in the path.
        runtime: The version that answers.
        rules: Says which rows of a matrix break the contract of the features; None where nothing is checked.
        recorder: Where answers are logged before they leave; None where they are not.
        deadline: Seconds within which an answer is of use, where a request does not say.
        tracing: Which requests are traced, and where the traces go; None where none is.
        cache: Answers of rows seen lately, for a model that takes one matrix of rows; None for none. One cache belongs
            to one `Hosted`.
        meter: Who is charged for each batch; None where the cost is only measured.
        queue: How the queue is made, where there is one: the arguments of `BatchQueue` such as `max_rows`; or False
            for none, True for one in any case.

    Attributes:
        counts: Requests, rows, and refusals so far.
        disclose: What leaves of the outputs, by the rows and what the model gave, for a model of one matrix of rows;
            the log keeps what it gave. None where all leaves as it is.
        describe: Says of the rows of a request, which lie in a matrix, what its answer tells where it is explained.
        waited: Time from the arrival of a request to the start of its batch.
        latency: Time from the arrival of a request until its answer was written.
        stages: Latencies by stage, those two among them.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        *,
        rules: Callable[[np.ndarray], Sequence[Breach]] | None = None,
        recorder: Recorder | None = None,
        deadline: float = 1.0,
        tracing: Tracing | None = None,
        cache: ResponseCache | None = None,
        meter: Meter | None = None,
        queue: Mapping[str, Any] | bool | None = None,
    ) -> None:
        if not deadline > 0:
            raise InvalidInput("deadline", deadline, "be a number of seconds above 0")
        self.name = name
        self.runtime = runtime
        self.rules = rules
        self.recorder = recorder
        self.deadline = deadline
        self.queue: BatchQueue | None = None
        self.queueing = _is_slow(runtime) if queue is None else queue is not False
        self._as_it_needs = queue is None
        self._queue_options = queue if isinstance(queue, Mapping) else {}
        self.disclose: Callable[[np.ndarray, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None
        self.describe: Callable[[np.ndarray], Mapping[str, Any]] | None = None
        self.counts = {"requests": 0, "rows": 0, "refused": 0, "failed": 0, "batches": 0}
        self.waited = LatencyHistogram()
        self.latency = LatencyHistogram()
        self.tracing = tracing
        self.cache = cache
        self.meter = meter
        self.stages = Stages(self.waited, self.latency)

    def replace(self, runtime: Runtime) -> None:
        """Has another version answer from the next batch on, with a queue where that one needs it."""
        self.runtime = runtime
        if self._as_it_needs:
            self.queueing = _is_slow(runtime)

    def open_queue(self, run: Callable[[Sequence[Task]], None], expire: Callable[[Task], None]) -> BatchQueue:
        """Returns the queue; starts it where it does not run yet."""
        if self.queue is None:
            first = 1e9 * max(self.runtime.seconds_per_run, 1e-6)
            curve = ServiceCurve(fixed_ns=first, row_ns=0.1 * first)
            self.queue = BatchQueue(run, expire, curve, name=self.name, **self._queue_options)
        return self.queue

    def close(self) -> None:
        """Finishes what waits."""
        if self.queue is not None:
            self.queue.close()


def _is_slow(runtime: Runtime) -> bool:
    return runtime.seconds_per_run > INLINE_SECONDS
