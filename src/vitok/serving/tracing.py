"""Traces of requests in OpenTelemetry's form: which few are traced is known at their head, spans are made afterwards.

On the path of a request there is only the look for its `traceparent` and the decision whether it is traced. The
moments that a span needs are those that the batch is measured by anyway; once the replies have been written, a thread
makes spans out of them and hands them to an exporter.

Source: W3C Trace Context, level 1 (https://www.w3.org/TR/trace-context/).
"""

import asyncio
import importlib
import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vitok.errors import InvalidInput, MissingExtra
from vitok.serving.messages import HotRequest, Reply
from vitok.stats import LatencyHistogram

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger("vitok.serving")

TRACEPARENT = b"traceparent"
_SHAPE = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_LENGTH = 55
_STAGES = ("wait", "read", "model", "log", "write")
_EXPORT = 512
_CLOSE_SECONDS = 5.0


class TraceParent(NamedTuple):
    """Where a request stands in a trace of its caller.

    Attributes:
        trace_id: 128 bits, not 0.
        span_id: The caller's span, 64 bits, not 0.
        sampled: Whether the caller records the trace.
    """

    trace_id: int
    span_id: int
    sampled: bool


def read_traceparent(value: bytes) -> TraceParent | None:
    """Reads the header `traceparent`; None where it is not as the standard has it, which is then as if it were absent.

    Example:
        >>> found = read_traceparent(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        >>> found.sampled, f"{found.trace_id:032x}"
        (True, '4bf92f3577b34da6a3ce929d0e0e4736')
        >>> read_traceparent(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01") is None
        True
    """
    found = _SHAPE.fullmatch(value)
    if found is None or (found[5] is not None and found[1] == b"00"):
        return None
    return TraceParent(int(found[2], 16), int(found[3], 16), bool(int(found[4], 16) & 1))


def trace_id_of(request: HotRequest) -> str:
    """Returns the trace id that came with a request, sampled or not, as a decision keeps it; empty where none did."""
    value = None if request.plain else request.header(TRACEPARENT)
    found = None if value is None else read_traceparent(value)
    return "" if found is None else f"{found.trace_id:032x}"


class Traced:
    """A request that is traced.

    Attributes:
        place: Its place in its list.
        arrived: When it came, in nanoseconds of `time.perf_counter_ns`.
        trace_id: 128 bits.
        span_id: Of its own span, 64 bits.
        parent: The caller's span; 0 where the trace begins here.
        status: Status code of its reply.
        rows: How many rows it has.
    """

    __slots__ = ("arrived", "parent", "place", "rows", "span_id", "status", "trace_id")

    def __init__(self, place: int, arrived: int, trace_id: int, span_id: int, parent: int) -> None:
        self.place = place
        self.arrived = arrived
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent = parent
        self.status = 200
        self.rows = 1


class Moments(NamedTuple):
    """When the stages of a batch ended, in nanoseconds of `time.perf_counter_ns`; 0 where one was not reached.

    Attributes:
        started: The batch was taken up.
        read: Its requests had been read and checked.
        ran: The model had answered.
        logged: The answers were in the log.
    """

    started: int
    read: int = 0
    ran: int = 0
    logged: int = 0


class Stages:
    """Latencies by stage: of each request how long it waited and took, of each batch how long the rest took.

    All requests of a batch spend the same time in a stage, so that is counted once a batch.

    Args:
        wait: Of each request, until its batch was taken up; kept by whoever measures it.
        total: Of each request, until its reply had been made; likewise.

    Attributes:
        histograms: Stage to histogram: `wait`, `read`, `model`, `log`, `write`, `total`.

    Example:
        >>> stages = Stages(LatencyHistogram(), LatencyHistogram())
        >>> stages.record(Moments(0, 5_000, 25_000), 31_000)
        >>> [(name, found.total) for name, found in stages.histograms.items() if found.count]
        [('read', 5), ('model', 20), ('write', 6)]
    """

    __slots__ = ("histograms",)

    def __init__(self, wait: LatencyHistogram, total: LatencyHistogram) -> None:
        own = {name: LatencyHistogram() for name in _STAGES[1:]}
        self.histograms = {"wait": wait, **own, "total": total}

    def record(self, moments: Sequence[int], ended: int) -> None:
        """Adds a batch.

        Args:
            moments: As `Moments`; a stage that was not reached is left out.
            ended: When the replies had been made.
        """
        begin, read, ran, logged = moments
        found = self.histograms
        for name, end in (("read", read), ("model", ran), ("log", logged), ("write", ended)):
            if end:
                found[name].record((end - begin) / 1e3)
                begin = end


class Exporter(Protocol):
    """Takes finished spans, as every `SpanExporter` of the OpenTelemetry SDK does."""

    def export(self, spans: "Sequence[ReadableSpan]", /) -> object:
        """Sends spans; returns a `SpanExportResult`."""
        ...

    def shutdown(self) -> None:
        """Ends it."""
        ...


class _Noted(NamedTuple):
    traced: Sequence[Traced]
    moments: Moments
    written: int
    route: str
    version: str
    requests: int


class Tracing:
    """Decides which requests are traced, and exports their spans.

    A request whose `traceparent` says that the caller records the trace is traced; one that says it does not is not.
    Of those that come without, chance picks a share. Where more is to be exported than there is room for, the newest
    is dropped and counted: traces never hold up a request.

    Args:
        exporter: Where spans go.
        rate: Share of the requests without `traceparent` that is traced, in [0, 1].
        service: Name of the service, the attribute `service.name`.
        most: Most requests that wait to be exported.
        every: Seconds between two exports.
        seed: Of the ids and of chance; by default from the operating system.

    Attributes:
        counts: Requests `traced`, those `dropped` for want of room, spans `exported`, and spans `failed`.

    Raises:
        InvalidInput: If an argument is out of its range.
        MissingExtra: If the OpenTelemetry SDK is not installed.

    Example:
        >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        >>> spans = InMemorySpanExporter()
        >>> with Tracing(spans, rate=1.0) as tracing:
        ...     traced = tracing.pick([HotRequest(b"{}", 1_000, [])])
        ...     tracing.note(traced, Moments(2_000, 3_000, 4_000, 5_000), route="/v2/models/a/infer")
        >>> [span.name for span in spans.get_finished_spans()]
        ['POST /v2/models/a/infer', 'wait', 'read', 'model', 'log', 'write']
    """

    def __init__(
        self,
        exporter: Exporter,
        *,
        rate: float = 0.0,
        service: str = "vitok",
        most: int = 4096,
        every: float = 1.0,
        seed: int | None = None,
    ) -> None:
        if not 0 <= rate <= 1:
            raise InvalidInput("rate", rate, "be in [0, 1]", "For 1 % write 0.01")
        if most < 1:
            raise InvalidInput("most", most, "be at least 1")
        if not 0 < every < math.inf:
            raise InvalidInput("every", every, "be seconds, above zero and finite")
        self._make = _span_maker(service)
        self.rate = rate
        self.counts = {"traced": 0, "dropped": 0, "exported": 0, "failed": 0}
        self._exporter = exporter
        self._most = most
        self._every = every
        self._random = Random(seed)  # noqa: S311 - it spreads samples and makes ids, it keeps no secret
        self._left = self._gap()
        self._noted: deque[_Noted] = deque()
        # Each counted by one thread: what is noted by the event loop's, what is taken by the exporter's.
        self._n_noted = self._n_taken = 0
        self._exporting = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def pick(self, requests: Sequence[HotRequest]) -> list[Traced]:
        """Returns those of a list of requests that are traced; called by one thread.

        Args:
            requests: As they came.
        """
        picked: list[Traced] = []
        for place, request in enumerate(requests):
            for name, value in () if request.plain else request.headers:
                if name == TRACEPARENT:
                    # The usual case is told by its end: only who records a trace has to be read.
                    unsampled = len(value) == _LENGTH and value.endswith(b"-00")
                    parent = None if unsampled else read_traceparent(value)
                    break
            else:
                unsampled, parent = False, None
            if unsampled:
                continue
            if parent is not None:
                if parent.sampled:
                    own = self._random.getrandbits(64) | 1
                    picked.append(Traced(place, request.arrived, parent.trace_id, own, parent.span_id))
                continue
            self._left -= 1
            if self._left <= 0:
                self._left = self._gap()
                bits = self._random.getrandbits
                picked.append(Traced(place, request.arrived, bits(128) | 1, bits(64) | 1, 0))
        return picked

    def note(
        self,
        traced: Sequence[Traced],
        moments: Moments,
        *,
        route: str,
        version: str = "",
        requests: int = 1,
        replies: Sequence[Reply | None] = (),
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Takes what is known of traced requests of a batch, at the end of its work.

        Args:
            traced: The requests; nothing is done where there are none.
            moments: When the stages of the batch ended.
            route: Path of the endpoint.
            version: Version of the model that answered, such as `"fraud/3"`.
            requests: How many requests the batch had.
            replies: The replies of the list, by the places of the requests, for their status; one that is missing is
                a fault. Empty leaves the status as it is.
            loop: Where the replies will be written, if this is another thread than the event loop's.
        """
        if not traced:
            return
        if replies:
            for one in traced:
                reply = replies[one.place]
                one.status = 500 if reply is None else reply.status
        found = _Noted(traced, moments, 0, route, version, requests)
        # The replies leave after the endpoint has returned: in this turn of the loop, or, where another thread hands
        # them over, in the turn after they have been given.
        if loop is not None:
            try:
                loop.call_soon_threadsafe(loop.call_soon, self._written, found)
            except RuntimeError:
                # The loop has been closed, so nothing was written either.
                self.counts["dropped"] += len(traced)
            return
        try:
            asyncio.get_running_loop().call_soon(self._written, found)
        except RuntimeError:
            self._written(found)

    def flush(self) -> None:
        """Exports what waits, now; it may take as long as the exporter does."""
        with self._exporting:
            self._drain()

    def close(self) -> None:
        """Exports what is left, for a few seconds at most, and ends the exporter."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        else:
            self.flush()
        self._exporter.shutdown()

    def __enter__(self) -> "Tracing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gap(self) -> float:
        # How many requests come until the next is picked, if each is picked with the same probability.
        if self.rate <= 0:
            return math.inf
        if self.rate >= 1:
            return 1
        return 1 + math.floor(math.log(1 - self._random.random()) / math.log1p(-self.rate))

    def _written(self, found: _Noted) -> None:
        n = len(found.traced)
        self.counts["traced"] += n
        waiting = self._n_noted - self._n_taken + n
        if waiting > self._most or self._closed:
            self.counts["dropped"] += n
            return
        self._n_noted += n
        self._noted.append(found._replace(written=time.perf_counter_ns()))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="vitok-tracing", daemon=True)
            self._thread.start()
        elif 2 * waiting > self._most:
            self._wake.set()

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait(self._every)
            self._wake.clear()
            self.flush()
        self.flush()

    def _drain(self) -> None:
        # What the clocks differ by is asked anew each time, since the machine's is corrected now and then.
        offset = time.time_ns() - time.perf_counter_ns()
        spans: list[ReadableSpan] = []
        while self._noted:
            found = self._noted.popleft()
            self._n_taken += len(found.traced)
            spans.extend(self._make(found, offset, self._random))
            if len(spans) >= _EXPORT:
                self._export(spans)
                spans = []
        if spans:
            self._export(spans)

    def _export(self, spans: "list[ReadableSpan]") -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            good = self._exporter.export(spans) == SpanExportResult.SUCCESS
        except Exception:
            # Whatever an exporter raises, the next spans are worth another try.
            logger.exception("exporting %d spans failed", len(spans))
            good = False
        self.counts["exported" if good else "failed"] += len(spans)


def otlp(endpoint: str, *, headers: Mapping[str, str] | None = None, timeout: float = 10.0) -> Exporter:
    """Returns an exporter to a collector, by OTLP over HTTP.

    Args:
        endpoint: Where the collector takes traces, such as `"http://localhost:4318/v1/traces"`.
        headers: Further headers, such as a key's.
        timeout: Seconds after which an export is given up.

    Raises:
        InvalidInput: If the endpoint is no address of HTTP.
        MissingExtra: If the extra `tracing` is not installed.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidInput("endpoint", endpoint, "be an address of HTTP", "Try http://localhost:4318/v1/traces")
    try:
        module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError:
        raise MissingExtra("tracing", "exporting traces") from None
    exporter: Exporter = module.OTLPSpanExporter(endpoint=endpoint, headers=dict(headers or {}), timeout=timeout)
    return exporter


def _span_maker(service: str) -> "Callable[[_Noted, int, Random], list[ReadableSpan]]":
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
    except ImportError:
        raise MissingExtra("tracing", "tracing requests") from None
    resource = Resource.create({"service.name": service})
    scope = InstrumentationScope("vitok.serving")
    flags = TraceFlags(TraceFlags.SAMPLED)
    unset, failed = Status(StatusCode.UNSET), Status(StatusCode.ERROR)

    def make(found: _Noted, offset: int, random: Random) -> list[Any]:
        spans = []
        moments = found.moments
        for one in found.traced:
            own = SpanContext(one.trace_id, one.span_id, is_remote=False, trace_flags=flags)
            parent = SpanContext(one.trace_id, one.parent, is_remote=True, trace_flags=flags) if one.parent else None
            attributes: dict[str, str | int] = {
                "http.request.method": "POST",
                "http.route": found.route,
                "http.response.status_code": one.status,
                "vitok.model.version": found.version,
                "vitok.rows": one.rows,
                "vitok.batch.requests": found.requests,
            }
            spans.append(
                ReadableSpan(
                    f"POST {found.route}",
                    own,
                    parent,
                    attributes=attributes,
                    kind=SpanKind.SERVER,
                    status=failed if one.status >= 500 else unset,
                    start_time=one.arrived + offset,
                    end_time=found.written + offset,
                    resource=resource,
                    instrumentation_scope=scope,
                )
            )
            ends = (moments.started, moments.read, moments.ran, moments.logged, found.written)
            begin = one.arrived
            for stage, end in zip(_STAGES, ends, strict=True):
                if end <= begin:
                    continue  # not reached, or nothing to do
                context = SpanContext(one.trace_id, random.getrandbits(64) | 1, is_remote=False, trace_flags=flags)
                spans.append(
                    ReadableSpan(
                        stage,
                        context,
                        own,
                        start_time=begin + offset,
                        end_time=end + offset,
                        resource=resource,
                        instrumentation_scope=scope,
                    )
                )
                begin = end
        return spans

    return make
