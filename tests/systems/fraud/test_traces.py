"""Spans of the fraud service. Oracle: what the OpenTelemetry SDK exports, and the moments that the log keeps."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="the extra 'tracing' is not installed")

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vitok import decisions
from vitok.clock import EventClock
from vitok.errors import StoreError
from vitok.serving import HotRequest, running
from vitok.serving.tracing import Tracing
from vitok.systems.fraud.app import application
from vitok.systems.fraud.service import FraudService

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def service(home: Path, spans: InMemorySpanExporter) -> Iterator[FraudService]:
    tracing = Tracing(spans, every=3600.0, seed=1)
    service = FraudService(home, clock=EventClock(), deadline=5.0, tracing=tracing)
    yield service
    service.close()
    tracing.close()


def request(number: int, *, traced: bool = True, ago: int = 0, **changes: object) -> HotRequest:
    fields = {
        "transaction_id": f"t-{number}",
        "event_time": "2018-05-20T12:00:00Z",
        "customer_id": str(number),
        "terminal_id": "2",
        "amount": 12.5,
    }
    headers = [(b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())] if traced else []
    return HotRequest(json.dumps({**fields, **changes}).encode(), time.perf_counter_ns() - ago, headers)


def exported(service: FraudService, spans: InMemorySpanExporter) -> list[ReadableSpan]:
    assert service.tracing is not None
    service.tracing.flush()
    return list(spans.get_finished_spans())


def attributes(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


def test_a_decision_and_its_stages(service: FraudService, spans: InMemorySpanExporter) -> None:
    service.handle([request(1), request(2, traced=False)])
    first, *stages = exported(service, spans)
    assert first.name == "POST /v1/systems/fraud/decide"
    assert first.parent is not None
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, SPAN)
    found = attributes(first)
    assert found["vitok.model.version"] == "fraud/1"
    assert (found["http.response.status_code"], found["vitok.batch.requests"]) == (200, 2)
    assert [stage.name for stage in stages] == ["wait", "read", "model", "log", "write"]
    assert all(stage.parent is not None and stage.parent.span_id == first.context.span_id for stage in stages)
    assert stages[0].start_time == first.start_time
    assert stages[-1].end_time == first.end_time


def test_who_is_refused_late_or_not_recorded(
    service: FraudService, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.handle([request(1, amount=-1.0), request(2), request(3, ago=6_000_000_000)])
    found = [attributes(span) for span in exported(service, spans) if span.name.startswith("POST")]
    told = {(item["http.response.status_code"], item["vitok.model.version"]) for item in found}
    assert told == {(422, ""), (200, "fraud/1"), (200, "rules")}
    spans.clear()

    def full(_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(service._log, "append", full)
    service.handle([request(4)])
    failed, *stages = exported(service, spans)
    assert attributes(failed)["http.response.status_code"] == 503
    assert not failed.status.is_ok
    assert {stage.name for stage in stages} <= {"wait", "write"}


def test_a_trace_that_begins_here_is_in_the_log(home: Path, spans: InMemorySpanExporter) -> None:
    with Tracing(spans, rate=1.0, every=3600.0) as tracing:
        service = FraudService(home, clock=EventClock(), deadline=5.0, tracing=tracing)
        service.handle([request(1, traced=False), request(2, amount=-1.0, traced=False), request(3)])
        rows = decisions.read(home / "log" / "decisions").sort("request_id")
        service.close()
    begun = {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()}
    assert len(begun) == 3
    assert set(rows["trace_id"]) < begun
    assert rows["trace_id"].to_list()[1] == TRACE


def test_outcomes_over_http(service: FraudService, spans: InMemorySpanExporter) -> None:
    outcome = {"request_id": "t-1", "value": 1, "event_time": "2018-05-21T12:00:00Z"}
    with running(application(service), [service]) as server, httpx.Client(base_url=server.url) as client:
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        decided = client.post(service.path, content=request(1).body, headers=headers)
        learnt = client.post("/v1/outcomes", json={"outcomes": [outcome]}, headers=headers)
        client.post("/v1/outcomes", json={"outcomes": [outcome]})
        assert (decided.status_code, learnt.json()["accepted"]) == (200, 1)
    roots = [span.name for span in exported(service, spans) if span.name.startswith("POST")]
    assert roots == ["POST /v1/systems/fraud/decide", "POST /v1/outcomes"]
    names = [span.name for span in exported(service, spans)]
    assert names[-1] == "write"
    assert "log" in names[names.index("POST /v1/outcomes") :]
