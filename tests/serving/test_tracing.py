"""Traces: what is picked, what the spans say, and what happens where they cannot go."""

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from starlette.applications import Starlette
from tests.serving.conftest import post, wire_to

from vitok.errors import InvalidInput, MissingExtra
from vitok.serving import HotRequest, Reply, running
from vitok.serving.tracing import Moments, Stages, Traced, TraceParent, Tracing, otlp, read_traceparent, trace_id_of
from vitok.stats import LatencyHistogram

pytest.importorskip("opentelemetry.sdk", reason="traces need the OpenTelemetry SDK")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def asked(traceparent: str | bytes | None = None, arrived: int = 1_000) -> HotRequest:
    value = traceparent.encode() if isinstance(traceparent, str) else traceparent
    headers = [(b"host", b"a"), (b"content-length", b"2")]
    return HotRequest(b"{}", arrived, [*headers, (b"traceparent", value)] if value is not None else headers)


@pytest.mark.parametrize(
    "value",
    [
        GOOD,
        f"00-{TRACE}-{SPAN}-00",
        f"00-{TRACE}-{SPAN}-ff",
        f"01-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"01-{TRACE}-{SPAN}-01more",
        "",
        "-" * 55,
        "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
    ],
)
def test_traceparent_is_read_as_the_sdk_reads_it(value: str) -> None:
    # Oracle: opentelemetry-api's propagator, which does not insist on lower case and forgives blanks at the end.
    from opentelemetry import trace

    context = trace.get_current_span(TraceContextTextMapPropagator().extract({"traceparent": value})).get_span_context()
    found = read_traceparent(value.encode())
    if value.lower() != value or value.strip() != value:
        assert found is None
    elif found is None:
        assert not context.is_valid
    else:
        assert found == TraceParent(context.trace_id, context.span_id, context.trace_flags.sampled)


def test_the_trace_id_of_a_decision() -> None:
    assert trace_id_of(asked(GOOD)) == trace_id_of(asked(f"00-{TRACE}-{SPAN}-00")) == TRACE
    assert trace_id_of(asked()) == trace_id_of(asked(b"\xff\x00")) == ""


def test_the_callers_flag_goes_before_the_rate() -> None:
    none = Tracing(InMemorySpanExporter())
    every = Tracing(InMemorySpanExporter(), rate=1.0)
    requests = [asked(), asked(GOOD), asked(f"00-{TRACE}-{SPAN}-00"), asked("nonsense")]
    assert [one.place for one in none.pick(requests)] == [1]
    assert [one.place for one in every.pick(requests)] == [0, 1, 3]
    own, followed, _ = every.pick(requests)
    assert (followed.trace_id, followed.parent) == (int(TRACE, 16), int(SPAN, 16))
    assert own.parent == 0
    assert own.trace_id not in (0, followed.trace_id)
    assert none.pick([]) == []


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_the_rate_is_kept_in_lists_of_any_length(rate: float) -> None:
    n = 40_000
    tracing = Tracing(InMemorySpanExporter(), rate=rate, seed=1)
    one = [asked()]
    alone = sum(len(tracing.pick(one)) for _ in range(n // 2))
    together = sum(len(tracing.pick(one * 50)) for _ in range(n // 100))
    # Oracle: the binomial distribution, within four standard deviations.
    for picked in (alone, together):
        assert abs(picked - rate * n / 2) < 4 * (n / 2 * rate * (1 - rate)) ** 0.5


def test_spans_are_what_was_measured() -> None:
    exporter = InMemorySpanExporter()
    with Tracing(exporter, rate=1.0, service="fraud") as tracing:
        begin = time.perf_counter_ns()
        first, second = tracing.pick([asked(GOOD, begin), asked(None, begin + 500)])
        second.status, second.rows = 503, 7
        moments = Moments(begin + 1_000, begin + 3_000, begin + 6_000, begin + 10_000)
        before = time.time_ns()
        tracing.note([first, second], moments, route="/infer", version="fraud/3", requests=9)
        after = time.time_ns()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans[:6]] == ["POST /infer", "wait", "read", "model", "log", "write"]
    root, *stages = spans[:6]
    assert root.context is not None
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, SPAN)
    assert root.kind is SpanKind.SERVER
    assert root.resource.attributes["service.name"] == "fraud"
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/infer",
        "http.response.status_code": 200,
        "vitok.model.version": "fraud/3",
        "vitok.rows": 1,
        "vitok.batch.requests": 9,
    }
    lengths = [(span.end_time or 0) - (span.start_time or 0) for span in stages]
    assert lengths[:4] == [1_000, 2_000, 3_000, 4_000]
    assert root.start_time == stages[0].start_time
    assert root.end_time == stages[-1].end_time
    # The machine's clock and the counter of nanoseconds are read a moment apart.
    assert before - 5_000_000 <= (root.end_time or 0) <= after + 5_000_000
    assert all(span.parent == root.context for span in stages)
    ids = {span.context.span_id for span in spans if span.context}
    assert len(ids) == len(spans) == 12
    other = spans[6]
    assert other.parent is None
    assert other.status.status_code is StatusCode.ERROR
    assert other.attributes is not None
    assert (other.attributes["http.response.status_code"], other.attributes["vitok.rows"]) == (503, 7)
    assert tracing.counts == {"traced": 2, "dropped": 0, "exported": 12, "failed": 0}


def test_a_stage_that_was_not_reached_has_no_span() -> None:
    exporter = InMemorySpanExporter()
    with Tracing(exporter, rate=1.0) as tracing:
        tracing.note(tracing.pick([asked()]), Moments(2_000, 3_000), route="/infer")
    assert [span.name for span in exporter.get_finished_spans()] == ["POST /infer", "wait", "read", "write"]


class Slow:
    """An endpoint that notes its traces as an inference endpoint does, in the loop or from a thread of its own."""

    path = "/hot"

    def __init__(self, tracing: Tracing) -> None:
        self.tracing = tracing

    def handle(self, requests: Sequence[HotRequest]) -> list[Reply]:
        traced = self.tracing.pick(requests)
        started = time.perf_counter_ns()
        self.tracing.note(traced, Moments(started, started), route=self.path, requests=len(requests))
        return [Reply(200, b"1" * 100_000) for _ in requests]


def test_the_end_is_the_moment_after_the_reply_was_written() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter)
    with running(Starlette(), [Slow(tracing)]) as service, wire_to(service) as wire:
        wire.send(post(b"1", headers=f"traceparent: {GOOD}\r\n") + post(b"2"))
        assert [reply.status for reply in wire.replies(2)] == [200, 200]
    tracing.close()
    root, _, write = exporter.get_finished_spans()
    assert root.context is not None
    assert f"{root.context.trace_id:032x}" == TRACE
    assert (write.end_time or 0) > (write.start_time or 0)


def test_from_another_thread_it_ends_after_the_loop_has_written() -> None:
    async def story() -> list[str]:
        order: list[str] = []
        loop = asyncio.get_running_loop()
        tracing = Tracing(InMemorySpanExporter(), rate=1.0)
        written = tracing._written
        tracing._written = lambda found: (order.append("noted"), written(found))  # type: ignore[method-assign, assignment]

        def work() -> None:
            # As a queue does it: replies are given in one turn of the loop, and written in the next.
            loop.call_soon_threadsafe(loop.call_soon, order.append, "written")
            tracing.note(tracing.pick([asked()]), Moments(2_000), route="/infer", loop=loop)

        await asyncio.to_thread(work)
        while "noted" not in order:
            await asyncio.sleep(0)
        await asyncio.to_thread(tracing.close)
        return order

    assert asyncio.run(story()) == ["written", "noted"]


class Gate:
    """An exporter that does what it is told, once it is let."""

    def __init__(self, outcome: SpanExportResult | Exception = SpanExportResult.SUCCESS) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.outcome = outcome
        self.ended = 0

    def export(self, spans: Sequence[ReadableSpan], /) -> SpanExportResult:
        self.entered.set()
        assert self.open.wait(10)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def shutdown(self) -> None:
        self.ended += 1


def noted(tracing: Tracing, n: int) -> None:
    for _ in range(n):
        tracing.note(tracing.pick([asked()]), Moments(2_000), route="/infer")


def test_what_finds_no_room_is_dropped_and_counted() -> None:
    gate = Gate()
    tracing = Tracing(gate, rate=1.0, most=10, every=0.001)
    noted(tracing, 1)
    assert gate.entered.wait(10)
    noted(tracing, 25)
    assert tracing.counts == {"traced": 26, "dropped": 15, "exported": 0, "failed": 0}
    gate.open.set()
    tracing.close()
    tracing.close()
    assert tracing.counts == {"traced": 26, "dropped": 15, "exported": 33, "failed": 0}
    assert gate.ended == 1
    noted(tracing, 1)
    assert tracing.counts["dropped"] == 16


@pytest.mark.parametrize("outcome", [SpanExportResult.FAILURE, OSError("no route")])
def test_a_failing_exporter_is_counted_and_asked_again(
    outcome: SpanExportResult | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(outcome)
    gate.open.set()
    tracing = Tracing(gate, rate=1.0, every=0.001)
    noted(tracing, 1)
    assert gate.entered.wait(10)
    gate.outcome = SpanExportResult.SUCCESS
    noted(tracing, 2)
    tracing.close()
    assert tracing.counts["failed"] in (3, 6, 9)
    assert tracing.counts["failed"] + tracing.counts["exported"] == 9
    assert ("exporting" in caplog.text) == isinstance(outcome, OSError)


@pytest.fixture
def collector() -> Iterator[Any]:
    bodies: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", bodies
        server.shutdown()


def test_over_the_wire_by_otlp(collector: tuple[str, list[bytes]]) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="comes with the extra 'tracing'")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url, bodies = collector
    with Tracing(otlp(url), service="fraud") as tracing:
        tracing.note(tracing.pick([asked(GOOD)]), Moments(2_000, 3_000, 4_000, 5_000), route="/infer")
    spans = []
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            assert resource.resource.attributes[-1].value.string_value or resource.resource.attributes
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["POST /infer", "wait", "read", "model", "log", "write"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert spans[0].parent_span_id.hex() == SPAN
    assert tracing.counts["exported"] == 6


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"rate": 1.5}, "rate"), ({"rate": -0.1}, "rate"), ({"most": 0}, "most"), ({"every": 0.0}, "every")],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Tracing(InMemorySpanExporter(), **arguments)
    assert caught.value.field == field


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="endpoint"):
        otlp("localhost:4318")
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"vitok\[tracing\]"):
        otlp("http://localhost:4318/v1/traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(MissingExtra, match=r"vitok\[tracing\]"):
        Tracing(InMemorySpanExporter())


def test_the_status_is_that_of_the_reply() -> None:
    exporter = InMemorySpanExporter()
    with Tracing(exporter, rate=1.0) as tracing:
        tracing.note(
            tracing.pick([asked()] * 3), Moments(2_000), route="/a", replies=[Reply(200, b""), Reply(422, b""), None]
        )
    roots = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [(span.attributes or {})["http.response.status_code"] for span in roots] == [200, 422, 500]
    assert [span.status.status_code for span in roots] == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]


def test_a_loop_that_has_been_closed_takes_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    tracing = Tracing(InMemorySpanExporter(), rate=1.0)
    tracing.note(tracing.pick([asked()]), Moments(2_000), route="/a", loop=loop)
    assert tracing.counts["dropped"] == 1
    tracing.close()


def test_stages_add_up_to_the_batch() -> None:
    stages = Stages(LatencyHistogram(), LatencyHistogram())
    stages.record(Moments(1_000, 3_000, 10_000, 14_000), 22_000)
    stages.record(Moments(1_000, 2_000), 4_000)
    totals = {name: (found.count, found.total) for name, found in stages.histograms.items()}
    assert totals == {"wait": (0, 0), "read": (2, 3), "model": (1, 7), "log": (1, 4), "write": (2, 10), "total": (0, 0)}


def test_nothing_traced_is_nothing_noted() -> None:
    tracing = Tracing(InMemorySpanExporter())
    tracing.note(list[Traced](), Moments(1), route="/infer")
    assert tracing.counts["traced"] == 0
    assert tracing._thread is None
    tracing.close()
