"""The service over real HTTP: every path, the published document, and what bad input gets."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from vitok.clock import EventClock
from vitok.serving import running
from vitok.systems.fraud.app import application, openapi
from vitok.systems.fraud.service import FraudService

BODY = {
    "transaction_id": "h-1",
    "event_time": "2018-05-20T12:00:00Z",
    "customer_id": "1",
    "terminal_id": "2",
    "amount": 300.0,
}


@pytest.fixture(scope="module")
def client(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("http") / "home"
    shutil.copytree(template, home)
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    with running(application(service), [service]) as server, httpx.Client(base_url=server.url) as client:
        yield client
    service.close()


def test_a_decision_and_its_whole_story(client: httpx.Client) -> None:
    reply = client.post("/v1/systems/fraud/decide", json=BODY)
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["action"] in {"allow", "review", "block"}
    story = client.get(f"/v1/decisions/{answer['decision_id']}").json()
    assert story["request"] == {"amount": 300.0}
    assert story["model_version"] == "fraud/1"
    assert story["event_time"] == "2018-05-20T12:00:00Z"
    assert len(story["reasons"]) == 6
    assert set(story["features"]) >= {"amount", "customer_count_15m", "terminal_labels_risk_7d"}
    outcome = {"request_id": "h-1", "value": 1, "event_time": "2018-05-27T12:00:00Z"}
    assert client.post("/v1/outcomes", json={"outcomes": [outcome]}).json()["accepted"] == 1


def test_health_readiness_and_metrics(client: httpx.Client) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["model"], ready.json()["online_store"]) == (200, "ok", "ok")
    client.post("/v1/systems/fraud/decide", json=BODY)
    text = client.get("/metrics").text
    assert re.search(r'vitok_events_total\{kind="requests"\} \d+', text)
    assert "vitok_decision_seconds_bucket" in text


def test_the_document_names_every_path(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document == json.loads(json.dumps(openapi()))
    assert set(document["paths"]) == {
        "/v1/systems/fraud/decide",
        "/v1/outcomes",
        "/v1/decisions/{decision_id}",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/systems/fraud/latency",
    }
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("GET", "/v1/systems/fraud/decide", None, 405),
        ("DELETE", "/v1/outcomes", None, 405),
        ("GET", "/v1/decisions/not-a-uuid", None, 422),
        ("GET", "/v1/decisions/00000000-0000-0000-0000-000000000000", None, 404),
        ("POST", "/v1/systems/fraud/decide", b"{", 400),
        ("POST", "/v1/systems/fraud/decide", json.dumps({**BODY, "amount": None}).encode(), 422),
        ("POST", "/v1/systems/fraud/decide", json.dumps({**BODY, "more": 1}).encode(), 422),
        ("POST", "/v1/systems/fraud/decide", b'{"amount": NaN}', 400),
        ("POST", "/v1/systems/fraud/decide", b" " * 70_000, 413),
        ("POST", "/v1/outcomes", b"", 400),
        ("POST", "/v1/outcomes", b'{"outcomes": [{"request_id": "h-1"}]}', 422),
        ("POST", "/v1/outcomes", b" " * 2_000_000, 413),
    ],
)
def test_bad_requests_get_a_problem_document(
    client: httpx.Client, method: str, path: str, content: bytes | None, status: int
) -> None:
    reply = client.request(method, path, content=content)
    assert reply.status_code == status
    assert reply.headers["content-type"].startswith("application/problem+json")
    assert reply.json()["status"] == status
    assert reply.json()["detail"]
