"""The options of `vitok serve-models`: keys, limits, addresses, what leaves, caches, queues, traces, metrics."""

import http.client
import http.server
import json
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.console.test_model_serving import place, process
from tests.serving.model_folders import put_model, served
from typer.testing import CliRunner

from vitok import decisions
from vitok.console.main import app
from vitok.console.model_dressing import ANOMALY, FLOOR, PROFILE, OutputPlan, Watched
from vitok.console.model_guarding import GuardPlan, read_limit
from vitok.console.model_serving import ServingPlan
from vitok.errors import InvalidInput, NotFound, StoreError
from vitok.guard import AnomalyScorer, KeyStore, confidence_of, fit_floor
from vitok.serving.budgets import BudgetBook, SpendingBudget
from vitok.serving.hosted import Answered
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.stats import FrozenEdges

CODE = """
import numpy as np
def load(folder):
    return lambda tensors: {"score": 1 / (1 + np.exp(-tensors["x"].sum(axis=1)))}
"""
TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
    "outputs": [{"name": "score", "datatype": "FP64", "shape": [-1]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(7)
    X = rng.normal(size=(6_000, 2))
    columns = []
    for name, column in zip(("amount", "age"), X[:3_000].T, strict=True):
        edges = FrozenEdges.from_values(column)
        columns.append({"name": name, **edges.to_dict(), "counts": edges.count(column).tolist()})
    profile = {"kind": "vitok.reference_profile/1", "n": 3_000, "ignored": [], "columns": columns}
    p = rng.random(20_000)
    floor = fit_floor(confidence_of(p), (rng.random(20_000) < p) == (p > 0.5), max_error=0.1)
    files = {
        PROFILE: profile,
        ANOMALY: AnomalyScorer.fit(profile, X[3_000:], false_alarm_rate=0.01).to_dict(),
        FLOOR: floor.to_dict(),
        "signature.json": {"inputs": ["amount", "age"]},
    }
    put_model(tmp_path / "models", "risk", 1, CODE, TENSORS, **{n.removesuffix(".json"): v for n, v in files.items()})
    put_model(tmp_path / "models", "bare", 1, CODE, TENSORS)
    return tmp_path


def ask(
    found: dict[str, Any], *row: float, model: str = "risk", key: str = "", parameters: Any = None, **headers: str
) -> tuple[int, Any, Any]:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": row or (0.25, 0.5)}]}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key:
        sent["x-api-key"] = key
    text = json.dumps(body | ({"parameters": parameters} if parameters else {}))
    return call(found, "POST", f"/v2/models/{model}/infer", text, sent)


def call(
    found: dict[str, Any], method: str, path: str, body: str | None = None, headers: Any = None
) -> tuple[int, Any, Any]:
    connection = http.client.HTTPConnection(*place(found), timeout=20)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data) if data[:1] in (b"{", b"[") else data.decode(), answer.headers


def score(answer: Any) -> Any:
    return answer["outputs"][0]["data"][0]


def test_keys_limits_and_addresses(folder: Path) -> None:
    store = KeyStore(folder / "keys.sqlite")
    key = store.create("shop", tenant="shop", scopes=["infer:risk"], actor="ann", now=0, expires=None).token
    options = ("--keys", str(store.path), "--key-limit", "3/1h", "--user-limit", "1/1h", "--log", str(folder / "log"))
    with process(folder, *options, "--allow", "127.0.0.0/8", "--trust-proxy", "127.0.0.1") as (_, found):
        assert ask(found)[0] == 401
        assert ask(found, model="bare", key=key)[0] == 403
        status, _, headers = ask(found, key=key, x_user_id="u")
        assert (status, headers["ratelimit"]) == (200, '"key";r=2;t=1200')
        assert ask(found, key=key, x_user_id="u")[0] == 429
        assert ask(found, key=key, x_forwarded_for="9.9.9.9")[0] == 403
        assert ask(found, key=key)[0] == 200
        status, answer, headers = ask(found, key=key)
        assert (status, "retry-after" in headers) == (429, True)
        assert "3 a 3600 s" in answer["error"] or "key" in answer["error"]
        metrics = call(found, "GET", "/metrics")[1]
        assert 'vitok_guard_refused_total{reason="missing"} 1' in metrics
    frame = decisions.Tail(folder / "log" / "risk").read()
    assert frame is not None
    assert frame["tenant"].to_list() == ["shop"] * 2


def test_what_leaves(folder: Path) -> None:
    (folder / "secret").write_bytes(b"a secret of sixteen bytes\n")
    true = 1 / (1 + math.exp(-0.75))
    with process(folder, "--round", "2", "--log", str(folder / "log")) as (_, found):
        assert score(ask(found)[1]) == round(true, 2)
    frame = decisions.Tail(folder / "log" / "risk").read()
    assert frame is not None
    assert frame["score"].to_list() == [pytest.approx(true)]
    noisy = ("--noise", "0.3", "--noise-key", str(folder / "secret"), "--threshold", "0.5", "--floor", "0.6")
    with process(folder, *noisy) as (_, found):
        first, again = score(ask(found)[1]), score(ask(found)[1])
        assert first == again != true
        assert abs(first - true) < 0.3
        assert score(ask(found, 0.1, 0.1)[1]) is None
    with process(folder, "--floor", "package") as (_, found):
        assert score(ask(found, 0.1, 0.1)[1]) is None
        assert score(ask(found, 4.0, 4.0)[1]) == pytest.approx(1 / (1 + math.exp(-8)))
        status, answer, _ = ask(found, model="bare")
        assert (status, "its package has no confidence_floor.json" in answer["error"]) == (503, True)


def test_a_screen_before_the_model(folder: Path) -> None:
    with process(folder, "--screen", "refuse") as (_, found):
        assert ask(found)[0] == 200
        status, answer, _ = ask(found, 1e9, 0.0)
        assert (status, answer["field"]) == (422, "amount")
        # A new version brings a profile of its own.
        status, answer, _ = ask(found, model="bare")
        assert (status, "profile.json" in answer["error"]) == (503, True)
    with process(folder, "--screen", "count") as (_, found):
        status, answer, _ = ask(found, 1e9, 0.0, parameters={"explain": True})
        assert (status, answer["parameters"]["anomaly"]) == (200, True)


def test_a_cache_and_a_queue(folder: Path) -> None:
    with process(folder, "--cache", "1M", "--cache-ttl", "10m", "--queue", "on", "--max-rows", "8") as (_, found):
        assert [score(ask(found)[1]) for _ in range(5)] == [pytest.approx(1 / (1 + math.exp(-0.75)))] * 5
        metrics = call(found, "GET", "/metrics")[1]
        assert 'vitok_cache_rows_total{path="/v2/models/risk/infer",kind="hits"} 4' in metrics
        assert ask(found, parameters={"timeout": 1})[0] == 503


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.bodies = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_traces(folder: Path, collector: Any) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra tracing is not installed")
    address = f"http://127.0.0.1:{collector.server_address[1]}/v1/traces"
    with process(folder, "--trace", address, "--trace-rate", "1") as (child, found):
        assert ask(found)[0] == 200
        child.terminate()
        child.wait(20)
    assert any(b"POST /v2/models/risk/infer" in body for body in collector.bodies)


def test_metrics_and_stages_of_all_workers(folder: Path) -> None:
    with process(folder, "--workers", "2", "--pin", "risk") as (_, found):
        n = 24
        for _ in range(n):
            assert ask(found)[0] == 200  # each on a connection of its own, which the kernel deals out
        until = time.monotonic() + 20
        pattern = re.compile(r'vitok_inference_total\{path="/v2/models/risk/infer",kind="requests"\} (\d+)')
        total = 0
        while total != n and time.monotonic() < until:
            match = pattern.search(call(found, "GET", "/metrics")[1])
            total = int(match[1]) if match else 0
        assert total == n
        stages: dict[str, Any] = {}
        while stages.get("total", {}).get("count") != n and time.monotonic() < until:
            stages = call(found, "GET", "/v2/models/risk/latency")[1]["stages"]
        assert stages["total"]["count"] == n
        assert {"wait", "read", "model", "write", "total"} <= set(stages)


def test_options_that_do_not_fit(folder: Path) -> None:
    models = folder / "models"
    for wrong, field in (
        ({"queue": "maybe"}, "--queue"),
        ({"queue_options": {"max_rows": 4}}, "--max-rows"),
        ({"queue": "on", "queue_options": {"max_delay": -1.0}}, "--max-delay"),
        ({"trace_rate": 0.1}, "--trace-rate"),
        ({"trace_rate": 2.0, "trace": "http://a"}, "--trace-rate"),
        ({"cache_ttl": "soon"}, "--cache-ttl"),
        ({"deadline": 0.0}, "--deadline"),
        ({"port": 70_000}, "--port"),
    ):
        with pytest.raises(InvalidInput, match=re.escape(field)):
            ServingPlan(models=models, home=None, **wrong)
    for text in ("100", "100/", "a/1s", "1/1s:", "0/1s", "1/1y"):
        with pytest.raises(InvalidInput, match="--key-limit"):
            read_limit("--key-limit", text)
    for bad, name in (
        ({"limit_store": "redis://localhost"}, "--limit-store"),
        ({"trust": ("10.0.0.1",)}, "--trust-proxy"),
        ({"key_limit": "much"}, "--key-limit"),
    ):
        with pytest.raises(InvalidInput, match=name):
            GuardPlan(**bad)
    with pytest.raises(NotFound, match="store of keys"):
        GuardPlan(keys=folder / "none.sqlite")
    for output, name in (
        ({"screen": "often"}, "--screen"),
        ({"noise": 0.1}, "--noise-key"),
        ({"noise": 0.1, "noise_key": folder / "none"}, "--noise-key"),
        ({"thresholds": (0.5,)}, "--threshold"),
        ({"floor": "high"}, "--floor"),
        ({"floor": "2"}, "--floor"),
        ({"decimals": 99}, "--round"),
    ):
        with pytest.raises(InvalidInput, match=name):
            OutputPlan(**output)
    runner = CliRunner()
    for options, told in (
        (["--models", str(models), "--door", "back"], "--door"),
        (["--models", str(folder / "none")], "folder of models"),
        (["--models", str(models), "--pin", "nobody", "--port", "0"], "'nobody' does not exist"),
        (["--models", str(models), "--cache", "lots"], "--cache"),
        ([], "--models"),
        (["--home", str(folder / "nowhere")], "--home"),
        (["--home", str(folder), "--stage", "Nope"], "--stage"),
        (["--models", str(models), "--stage", "Staging"], "--home"),
        (["--models", str(models), "--budgets", str(folder / "none"), "--port", "0"], "file of budgets"),
    ):
        done = runner.invoke(app, ["serve-models", *options])
        assert done.exit_code == 2, done.output
        assert told in done.output
        assert "Traceback" not in done.output


def test_a_log_that_cannot_be_written_makes_a_service_unready(folder: Path) -> None:
    class Full:
        full = True

        def record(self, batch: Answered) -> list[bytes]:
            if self.full:
                raise StoreError("No space left on device")
            return [bytes(16)] * len(batch)

    now = [100.0]
    recorder = Full()
    watched = Watched(recorder, clock=lambda: now[0])
    host = ModelHost(
        FolderCatalogue(folder / "models"),
        pinned=["risk"],
        dress=lambda hosted: setattr(hosted, "recorder", watched),
        problems=lambda: {"risk": watched.problem} if watched.problem else {},
    )
    host.start()
    with served(host) as service:
        found = {"http": service.service.url}
        assert call(found, "GET", "/v2/health/ready")[0] == 200
        assert ask(found)[0] == 503
        status, answer, _ = call(found, "GET", "/v2/health/ready")
        assert (status, answer) == (503, {"ready": False, "problems": {"risk": "No space left on device"}})
        assert call(found, "GET", "/v2/health/live")[0] == 200
        recorder.full = False
        now[0] += 6
        assert call(found, "GET", "/v2/health/ready")[0] == 200
        assert ask(found)[0] == 200


def test_a_worker_gets_all_options(folder: Path) -> None:
    store = KeyStore(folder / "keys.sqlite")
    plan = ServingPlan(
        models=folder / "models",
        home=None,
        workers=2,
        pinned=("risk",),
        guard=GuardPlan(keys=store.path, key_limit="3/1s:4", allow=("10.0.0.0/8", "::1"), trust=("10.0.0.1",)),
        outputs=OutputPlan(screen="count", decimals=3, floor="0.7"),
        cache_bytes=1000,
        trace="http://localhost:4318/v1/traces",
        trace_rate=0.1,
        queue="on",
        queue_options={"max_rows": 5, "max_delay": 0.01},
        routes=folder / "routes.yaml",
    )
    line = " ".join(plan.command(1, port=8000, grpc_port=None, metrics_folder=folder / "m"))
    for part in (
        "--pin risk",
        f"--keys {store.path}",
        "--key-limit 3/1s:4",
        "--allow 10.0.0.0/8 --allow ::1",
        "--trust-proxy 10.0.0.1",
        "--screen count",
        "--round 3",
        "--floor 0.7",
        "--cache 1000",
        "--trace http://localhost:4318/v1/traces",
        "--trace-rate 0.1",
        "--queue on",
        "--max-rows 5",
        "--max-delay 0.01",
        "--worker 1",
        f"--routes {folder / 'routes.yaml'}",
        f"--metrics-folder {folder / 'm'}",
    ):
        assert part in line
    assert "--workers" not in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_team_that_has_spent_its_budget_is_told_so(folder: Path, workers: int) -> None:
    now = time.time_ns() // 1000
    book = BudgetBook(folder / "budgets.sqlite")
    book.set(SpendingBudget(team="checkout", amount=1e-7, period="month", then="block"), actor="ann", now=now)
    book.close()
    store = KeyStore(folder / "keys.sqlite")
    made = store.create("web", tenant="shop", team="checkout", scopes=["infer:*"], actor="ann", now=now)
    options = ("--keys", str(folder / "keys.sqlite"), "--budgets", str(folder / "budgets.sqlite"))
    options += ("--workers", str(workers))
    with process(folder, "--pin", "bare", *options) as (_, found):
        statuses = []
        for _ in range(12):
            connection = http.client.HTTPConnection(*place(found), timeout=20)
            body = b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2.5]}]}'
            connection.request("POST", "/v2/models/bare/infer", body, {"x-api-key": made.token})
            answer = connection.getresponse()
            statuses.append(answer.status)
            if answer.status == 402:
                assert "budget" in json.loads(answer.read())["error"]
            connection.close()
    # What costs nothing yet may pass; then there is nothing left.
    assert set(statuses) <= {200, 402}
    assert statuses[-1] == 402
