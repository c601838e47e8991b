"""The service behind its guard, over TLS, and through ASGI: who may do what, and what is refused with which reason."""

import base64
import contextlib
import json
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vitok import decisions
from vitok.clock import EventClock
from vitok.console.exits import FAILED
from vitok.console.model_costing import Costing
from vitok.errors import InvalidInput
from vitok.guard import AddressList, KeyRing, KeyStore, Limit, Limiter
from vitok.serving import HotRequest, Reply, running
from vitok.serving.budgets import BudgetBook, SpendingBudget
from vitok.serving.costs import CostMeter
from vitok.serving.guarded import Guard
from vitok.serving.server import Tls
from vitok.serving.spending import Spending, teams_of
from vitok.systems.fraud.app import application
from vitok.systems.fraud.edge import DECIDE, LEARN, READ, one_process
from vitok.systems.fraud.service import FraudService

DECIDING, OUTCOMES = "/v1/systems/fraud/decide", "/v1/outcomes"


def body(number: object) -> dict[str, Any]:
    event = {"event_time": "2018-05-20T12:00:00Z", "customer_id": "1", "terminal_id": "2", "amount": 30.0}
    return {"transaction_id": f"e-{number}", **event}


class Served:
    """A service behind a guard, and a client."""

    def __init__(self, service: FraudService, client: httpx.Client, tokens: dict[str, str]) -> None:
        self.service, self.client, self.tokens = service, client, tokens

    def bearer(self, scope: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens[scope]}"}


@pytest.fixture(scope="module", params=["hot", "asgi"])
def served(
    request: pytest.FixtureRequest, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("edge")
    home = folder / "home"
    shutil.copytree(template, home)
    store = KeyStore(folder / "keys.sqlite")
    tokens = {
        scope: store.create(
            scope, tenant="shop", team="checkout", scopes=[scope], actor="test", now=0, expires=None
        ).token
        for scope in (DECIDE, LEARN, READ)
    }
    guard = Guard(keys=KeyRing(store))
    service = FraudService(home, clock=EventClock(), deadline=5.0, team_of=teams_of(store.keys()))
    with (
        running(application(service, guard=guard), [guard.before(service, DECIDE)], door=request.param) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        yield Served(service, client, tokens)
    service.close()


def test_each_right_has_a_scope_of_its_own(served: Served) -> None:
    calls = {
        DECIDE: ("POST", DECIDING, body("scopes")),
        LEARN: ("POST", OUTCOMES, {"outcomes": []}),
        READ: ("GET", "/v1/systems/fraud/latency", None),
    }
    for wanted, (method, path, content) in calls.items():
        for scope in calls:
            reply = served.client.request(method, path, json=content, headers=served.bearer(scope))
            assert reply.status_code == (200 if scope == wanted else 403), (wanted, scope)
        refused = served.client.request(method, path, json=content)
        assert refused.status_code == 401
        assert refused.headers["content-type"].startswith("application/problem+json")
        assert refused.headers["www-authenticate"].startswith("Bearer")


def test_probes_and_scrapers_need_no_key(served: Served) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert served.client.get(path).status_code == 200
    served.client.post(DECIDING, json=body("refused"))
    text = served.client.get("/metrics").text
    assert 'vitok_guard_refused_total{reason="missing"}' in text
    assert 'vitok_stage_seconds_bucket{stage="model"' in text


def test_tenant_and_team_of_the_key_are_in_the_log(served: Served) -> None:
    answer = served.client.post(DECIDING, json=body("tenant"), headers=served.bearer(DECIDE)).json()
    story = served.client.get(f"/v1/decisions/{answer['decision_id']}", headers=served.bearer(READ)).json()
    assert (story["tenant"], story["team"]) == ("shop", "checkout")


def test_a_browser_asks_for_a_key_and_only_reads_with_it(served: Served) -> None:
    path = "/v1/systems/fraud/latency"
    page = served.client.get(path, headers={"accept": "text/html"})
    assert page.status_code == 401
    assert page.headers["www-authenticate"].startswith("Basic ")
    assert served.client.get(path, auth=("anyone", served.tokens[READ])).status_code == 200
    assert served.client.get(path, auth=("anyone", "wrong")).status_code == 401
    assert served.client.get(path, headers={"authorization": "Basic %%%"}).status_code == 401
    password = base64.b64encode(f"anyone:{served.tokens[LEARN]}".encode()).decode()
    learnt = served.client.post(OUTCOMES, json={"outcomes": []}, headers={"authorization": f"Basic {password}"})
    assert learnt.status_code == 401


def test_latency_is_told_by_stage(served: Served) -> None:
    served.client.post(DECIDING, json=body("latency"), headers=served.bearer(DECIDE))
    found = served.client.get("/v1/systems/fraud/latency", headers=served.bearer(READ)).json()
    assert set(found["stages"]) == {"wait", "read", "model", "log", "write", "total"}
    assert found["stages"]["total"]["p50_us"] > 0


def test_limits_and_addresses_hold_for_all_that_is_asked(home: Path) -> None:
    guard = Guard(key_limit=Limiter(Limit(2, "1h")), addresses=AddressList(allow=["127.0.0.0/8"]))
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    with (
        running(application(service, guard=guard), [guard.before(service, DECIDE)]) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.post(DECIDING, json=body(1)).headers["ratelimit"].startswith('"default";r=1')
        assert client.post(OUTCOMES, json={"outcomes": []}).status_code == 200
        refused = [client.post(DECIDING, json=body(2)), client.get("/v1/systems/fraud/latency")]
        assert [reply.status_code for reply in refused] == [429, 429]
        assert int(refused[0].headers["retry-after"]) > 0
    service.close()
    assert len(decisions.read(home / "log" / "decisions")) == 1


def test_strangers_are_refused(home: Path) -> None:
    guard = Guard(addresses=AddressList(allow=["203.0.113.0/24"]))
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    with (
        running(application(service, guard=guard), [guard.before(service, DECIDE)]) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.post(DECIDING, json=body(1)).status_code == 403
        assert client.post(OUTCOMES, json={"outcomes": []}).status_code == 403
        assert client.get("/healthz").status_code == 200
    service.close()


def certificate(folder: Path) -> Tls:
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    places = ("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"))
    done = subprocess.run(
        ("openssl", *made.split(), "-addext", "subjectAltName=IP:127.0.0.1", *places), capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"openssl makes no certificate: {done.stderr.decode()}")
    return Tls(folder / "cert.pem", folder / "key.pem")


def test_decisions_over_tls(home: Path, tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    service = FraudService(home, clock=EventClock(), deadline=5.0)
    trusting = ssl.create_default_context(cafile=str(tls.certificate))
    with (
        running(application(service), [service], tls=tls) as server,
        httpx.Client(base_url=server.url, verify=trusting) as client,
    ):
        assert client.post(DECIDING, json=body(1)).status_code == 200
    service.close()


def test_several_processes_are_refused_with_the_reason() -> None:
    one_process(1)
    with pytest.raises(InvalidInput, match="each see half of a customer's payments"):
        one_process(2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "2"], "vitok serve-models"),
        (["--door", "back"], "hot or asgi"),
        (["--tls-cert", "cert.pem"], "--tls-key"),
        (["--keys", "nowhere.sqlite"], "nowhere.sqlite"),
        (["--key-limit", "many"], "100/1s"),
        (["--deadline", "0"], "--deadline"),
        (["--clock", "sun"], "system or events"),
        (["--durability", "stone"], "process or fsync"),
        (["--label-delay", "soon"], "--label-delay: got 'soon'"),
        (["--grpc-port", "70000"], "--grpc-port: got 70000"),
        (["--budgets", "nowhere.sqlite"], "file of budgets"),
        (["--trace-rate", "0.1"], "--trace-rate: got 0.1, must go with --trace"),
        (["--trace", "collector:4318"], "--trace"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: list[str], told: str) -> None:
    command = [sys.executable, "-m", "vitok", "serve", "fraud", "--home", str(tmp_path / "home"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == FAILED
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def budgets_of(folder: Path, now: int) -> BudgetBook:
    book = BudgetBook(folder / "budgets.sqlite")
    book.set(SpendingBudget(team="checkout", amount=1.0, period="month"), actor="ann", now=now)
    return book


def test_decisions_are_charged_to_the_team_until_its_budget_is_spent(home: Path, tmp_path: Path) -> None:
    now = time.time_ns() // 1000
    store = KeyStore(tmp_path / "keys.sqlite")
    made = store.create("switch", tenant="shop", team="checkout", scopes=[DECIDE], actor="test", now=now)
    book = budgets_of(tmp_path, now)
    costing = Costing(
        guard=Guard(keys=KeyRing(store)), keys=tmp_path / "keys.sqlite", budgets=tmp_path / "budgets.sqlite"
    )
    service = FraudService(home, clock=EventClock(), deadline=5.0, meter=costing.meter)
    assert costing.guard is not None
    endpoint = costing.guard.before(service, DECIDE)
    shown = [(b"x-api-key", made.token.encode())]

    def statuses(*numbers: int) -> list[int]:
        asked = [HotRequest(json.dumps(body(n)).encode(), time.perf_counter_ns(), shown) for n in numbers]
        return [reply.status for reply in endpoint.handle(asked) if isinstance(reply, Reply)]

    assert [statuses(1), statuses(2, 3, 4)] == [[200], [200] * 3]
    (line,) = costing.meter.report().charged
    assert (line.version, line.tenant, line.team, line.route, line.rows) == (
        "fraud/1",
        "shop",
        "checkout",
        "champion",
        4,
    )
    assert costing.meter.spending is not None
    costing.meter.spending.spend("checkout", 2 * 10**9)
    assert statuses(5) == [402]
    # What was decided already costs nothing, but who may not ask is not told it either.
    assert statuses(1) == [402]
    log = decisions.read(home / "log" / "decisions")
    assert log["team"].to_list() == ["checkout"] * 4
    assert log["cost"].sum() == pytest.approx(line.seconds)
    service.close()
    costing.close()
    assert book.state("checkout", now=now).spent > 2.0
    book.close()


def test_rows_that_rules_have_answered_are_charged_to_them(world: Any, tmp_path: Path) -> None:
    meter = CostMeter()
    service = FraudService(world.home(tmp_path / "home", model=False), clock=EventClock(), deadline=5.0, meter=meter)
    service.handle([HotRequest(json.dumps(body(n)).encode(), time.perf_counter_ns(), []) for n in range(3)])
    (line,) = meter.report().charged
    assert (line.version.startswith("rules"), line.route, line.rows) == (True, "fallback", 3)
    assert meter.report().paid == 0
    service.close()


def test_the_command_serves_both_doors_behind_keys_and_budgets(home: Path, tmp_path: Path) -> None:
    grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
    from vitok.systems.fraud.decide_proto import as_json, messages, stub

    now = time.time_ns() // 1000
    store = KeyStore(tmp_path / "keys.sqlite")
    poor, rich = (
        store.create(team, tenant=team, team=team, scopes=[DECIDE], actor="test", now=now).token
        for team in ("checkout", "other")
    )
    book = budgets_of(tmp_path, now)
    spending = Spending(book)
    spending.spend("checkout", 2 * 10**9)
    spending.close()
    book.close()
    files = ["--keys", str(tmp_path / "keys.sqlite"), "--budgets", str(tmp_path / "budgets.sqlite")]
    command = [sys.executable, "-m", "vitok", "serve", "fraud", "--home", str(home), "--clock", "events"]
    command += ["--port", "0", "--grpc-port", "0", *files]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process, contextlib.ExitStack() as at_last:
        at_last.callback(process.kill)
        assert process.stderr is not None
        told = "".join(process.stderr.readline() for _ in range(4))
        http, place = (re.search(pattern, told) for pattern in (r"POST (http://\S+)", r"gRPC +(\S+)  vitok\.decide"))
        assert http, told
        assert place, told
        replies = [httpx.post(http[1], json=body("by http"), headers={"x-api-key": key}) for key in (poor, rich)]
        assert [reply.status_code for reply in replies] == [402, 200]
        with grpc.insecure_channel(place[1]) as channel:
            decide, ask = stub(channel)["Decide"], messages()["DecideRequest"](**body("by http"))
            assert as_json(decide(ask, metadata=[("x-api-key", rich)])) == replies[1].json()
            with pytest.raises(grpc.RpcError) as refused:
                decide(ask, metadata=[("x-api-key", poor)])
            error: Any = refused.value
            assert (error.code().name, error.details()) == ("RESOURCE_EXHAUSTED", replies[0].json()["detail"])
        process.terminate()
        assert process.wait(20) == 0
    assert not (home / "service.json").exists()


def test_the_ledger_is_followed_while_the_service_runs(home: Path) -> None:
    from vitok.registry import Registry
    from vitok.systems.fraud.messages import SYSTEM

    service = FraudService(home, clock=EventClock(), deadline=5.0)
    with running(application(service), [service]) as server, httpx.Client(base_url=server.url) as client:
        assert client.post(DECIDING, json=body(1)).json()["model_version"] == "fraud/1"
        registry = Registry(home)
        package = registry.load(SYSTEM, 1)
        version = registry.register(SYSTEM, {n: package.bytes(n) for n in package.files}, now=0, actor="test")
        why: Any = {"reason": "test", "actor": "test", "override": "a test"}
        registry.ledger.promote(SYSTEM, version.version, "Production", now=package.created, **why)
        registry.close()
        answers = (client.post(DECIDING, json=body(number)).json() for number in range(2, 5_000))
        assert next(answer for answer in answers if answer["model_version"] == version.name)["route"] == "champion"
        assert json.loads(client.get("/readyz").text)["model"] == "ok"
    service.close()
