"""Routes made of a file: each kind of target does what the file says, over the protocol and in the account of it."""

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.serving.backends import Backend, backends
from tests.serving.model_folders import ROWS, SUM, put_model

from vitok.errors import InvalidInput
from vitok.serving import HotRequest, Later, Reply, running
from vitok.serving.hosting import FolderCatalogue, ModelHost
from vitok.serving.inference_http import inference_application
from vitok.serving.route_building import BuiltRoute, HostedModel, account, build_route, example_of
from vitok.serving.route_files import parse_routes
from vitok.serving.routed import RoutedHost
from vitok.serving.targets import Batch

TWICE = SUM.replace(".sum(axis=1)", ".sum(axis=1) * 2")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelHost:
    # On a busy machine the quick models may be measured as slow, and would get queues.
    monkeypatch.setattr("vitok.serving.hosted.INLINE_SECONDS", 0.01)
    put_model(tmp_path, "small", 1, SUM.format(sleep=0), ROWS)
    put_model(tmp_path, "large", 1, TWICE.format(sleep=0), ROWS)
    put_model(tmp_path, "slow", 1, TWICE.format(sleep=0.02), ROWS)
    return ModelHost(FolderCatalogue(tmp_path))


def built(host: ModelHost, targets: str, route: str = "target: a") -> BuiltRoute:
    lines = "".join(f"  {line.strip()}\n" for line in targets.strip().splitlines())
    text = f"targets:\n  small: {{kind: model, model: small}}\n  large: {{kind: model, model: large}}\n{lines}"
    file = parse_routes(f"{text}routes:\n  r: {{{route}}}\n")
    return build_route(file, "r", host.get, columns=lambda _: ["amount", "age"])


def ask(route: BuiltRoute, *row: float, **more: Any) -> tuple[float, dict[str, Any]]:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": list(row)}
    columns = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [value]}
        for name, value in more.items()
        if name != "id"
    ]
    body = {"inputs": [tensor, *columns], "parameters": {"explain": True}, "id": more.get("id", "")}
    reply = route.endpoint.handle([HotRequest(json.dumps(body).encode(), time.perf_counter_ns(), [])])[0]
    assert isinstance(reply, Reply)
    answer = json.loads(reply.body)
    assert reply.status == 200, answer
    return answer["outputs"][0]["data"][0], answer["parameters"]


def test_content_rules_and_a_canary_in_it(host: ModelHost) -> None:
    route = built(
        host,
        """
        trial: {kind: canary, champion: small, canary: large, share: 0.5, salt: s}
        a: {kind: content, rules: [{when: "amount > 100 OR country = 'NG'", then: large}], otherwise: trial}
        """,
        "target: a, unit: country, columns: {country: string}",
    )
    assert [spec.name for spec in route.endpoint.hosted.runtime.inputs] == ["x", "country"]
    assert ask(route, 101, 1, country="DE")[0] == 204
    assert ask(route, 1, 1, country="NG")[0] == 4
    answers = {country: ask(route, 1, 1, country=country)[0] for country in "ABCDEFGHIJ"}
    assert set(answers.values()) == {2.0, 4.0}
    assert {country: ask(route, 1, 1, country=country)[0] for country in answers} == answers
    told = ask(route, 1, 1, country="A")[1]
    assert told["target"] in ("small", "large")
    assert "it meets no condition; hash of the unit is" in told["reason"]


def test_weights_cascades_and_costs(host: ModelHost) -> None:
    route = built(host, "a: {kind: weighted, weights: {small: 1, large: 0}}")
    assert {ask(route, 1, 2)[0] for _ in range(20)} == {3.0}
    cascade = built(host, "a: {kind: cascade, small: small, large: large, threshold: 0.8}")
    assert ask(cascade, 0.4, 0.5)[0] == 0.9
    assert ask(cascade, 0.2, 0.3)[0] == 1.0
    cheap = built(
        host,
        """
        one: {kind: model, model: small, cost: 1, quality: 0.9}
        two: {kind: model, model: large, cost: 9, quality: 0.96}
        a: {kind: cheapest, targets: [two, one], least_quality: 0.95}
        """,
    )
    assert ask(cheap, 1, 2)[0] == 6.0
    assert ask(built(host, "a: {kind: fastest, targets: [small, large]}"), 1, 2)[0] in (3.0, 6.0)
    shadow = built(host, "a: {kind: shadow, main: small, shadow: large}")
    assert ask(shadow, 1, 2)[0] == 3.0
    target: Any = shadow.targets["a"]
    target.drain()
    assert target.difference.mean == 3.0
    target.close()


async def asked(route: BuiltRoute, *row: float) -> tuple[Any, Any]:
    try:
        scored = await route.endpoint.target.call(Batch(np.array([row])), time.perf_counter_ns() + 2_000_000_000)
        return scored.values.tolist(), scored.choice(0)
    finally:
        await route.endpoint.aclose()


def test_remote_targets_and_what_is_there_when_they_fail(host: ModelHost) -> None:
    with backends(2) as (one, two):
        text = f"""
        near: {{kind: remote, url: "{one.url}", model: sum, input: x, timeout: 0.3}}
        far: {{kind: remote, url: "{two.url}", model: sum, input: x}}
        both: {{kind: pool, targets: [near, far], breaker: {{min_calls: 2}}, hedge: {{quantile: 0.9}}}}
        rules: {{kind: constant, value: 0.5}}
        a: {{kind: fallback, targets: [both, large, rules]}}
        """
        assert not built(host, text).endpoint.at_once
        assert asyncio.run(asked(built(host, text), 1, 2))[0] == [3.0]
        one.mode = two.mode = "error"
        values, choice = asyncio.run(asked(built(host, text), 1, 2))
        assert (values, choice.target, choice.route) == ([6.0], "large", "fallback")
        one.mode = "hang"
        alone = text.replace("targets: [both, large, rules]", "targets: [near, rules]")
        begun = time.perf_counter()
        values, choice = asyncio.run(asked(built(host, alone, "target: a, input: {width: 2, name: x}"), 1, 2))
        assert (values, choice.target) == ([0.5], "rules")
        assert 0.2 < time.perf_counter() - begun < 1.5
        assert "no answer within 300 ms" in choice.reason


def test_a_slow_model_has_a_thread_and_a_swap_is_followed(host: ModelHost, tmp_path: Path) -> None:
    route = built(
        host, "b: {kind: model, model: slow}\nc: {kind: constant, value: 0}\na: {kind: fallback, targets: [b, c]}"
    )
    assert not route.endpoint.at_once
    assert asyncio.run(asked(route, 1, 2))[0] == [6.0]
    quick = built(host, "c: {kind: constant, value: 0}\na: {kind: fallback, targets: [small, c]}")
    assert quick.endpoint.at_once
    assert ask(quick, 1, 2)[0] == 3.0
    put_model(tmp_path, "small", 2, TWICE.format(sleep=0), ROWS)
    assert host.follow() == ["small/2"]
    value, told = ask(quick, 1, 2)
    assert (value, told["model_version"]) == (6.0, "small/2")
    target = quick.targets["small"]
    assert isinstance(target, HostedModel)
    assert target.version == "small/2"


@pytest.mark.parametrize(
    ("targets", "route", "said"),
    [
        (
            "a: {kind: model, model: nobody}",
            "target: a",
            "targets.a.model: got 'nobody', must be a model that is served",
        ),
        ("a: {kind: model, model: small, version: '9'}", "target: a", "targets.a.version: got '9'"),
        ("a: {kind: weighted, weights: {small: -1, large: 2}}", "target: a", "targets.a.weights"),
        ("a: {kind: weighted, weights: {small: 0}}", "target: a", "targets.a.weights"),
        (
            "a: {kind: canary, champion: small, canary: large, share: 2}",
            "target: a, unit: age",
            "targets.a.share: got 2",
        ),
        ("a: {kind: canary, champion: small, canary: small, share: 0.1}", "target: a, unit: age", "another version"),
        (
            "a: {kind: canary, champion: small, canary: large, share: 1}",
            "target: a, unit: who",
            "routes.r.unit: got 'who'",
        ),
        ("a: {kind: cascade, small: small, large: large, threshold: .nan}", "target: a", "targets.a.threshold"),
        ("a: {kind: cascade, small: small, large: large, threshold: 1, audit: 2}", "target: a", "targets.a.audit"),
        ("a: {kind: content, rules: [{when: 'amont > 1', then: small}], otherwise: large}", "target: a", "a.rules[0]"),
        ("a: {kind: pool, targets: [small], tries: 0}", "target: a", "targets.a.tries"),
        ("a: {kind: pool, targets: [small], breaker: {error_share: 7}}", "target: a", "targets.a.breaker.error_share"),
        ("a: {kind: pool, targets: [small], retries: {share: 7}}", "target: a", "targets.a.share"),
        ("a: {kind: remote, url: 'ftp://a', model: m}", "target: a, input: {width: 2}", "targets.a.url"),
        ("a: {kind: remote, url: 'http://a', model: m}", "target: a", "routes.r.input"),
        ("a: {kind: remote, url: 'http://a', model: m, ca: no.pem}", "target: a, input: {width: 2}", "targets.a.ca"),
        ("a: {kind: remote, url: 'http://a', model: m, key_file: no}", "target: a, input: {width: 2}", "a.key_file"),
        ("a: {kind: constant, value: .inf}", "target: a, input: {width: 2}", "targets.a.value"),
        ("a: {kind: constant, value: 1, timeout: 1}", "target: a, input: {width: 2}", "targets.a.timeout"),
        ("a: {kind: constant, value: 1}", "target: a, input: {width: 0}", "routes.r.input.width"),
        ("a: {kind: constant, value: 1}", "target: a, input: {width: 2, features: [x]}", "routes.r.input.features"),
        ("a: {kind: fastest, targets: [small]}", "target: a, input: {width: 3}", "take the same number of columns"),
        ("a: {kind: fastest, targets: [small]}", "target: a, columns: {age: string}", "routes.r.columns.age"),
        ("a: {kind: cheapest, targets: [small], least_quality: 1}", "target: a", "targets.a.targets[0].quality"),
    ],
)
def test_what_does_not_fit_together_is_named(host: ModelHost, targets: str, route: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        built(host, targets, route)
    assert said in str(caught.value)
    assert str(caught.value).startswith("routes.yaml, line ")


def test_the_account_of_an_example(host: ModelHost) -> None:
    text = """
targets:
  small: {kind: model, model: small}
  large: {kind: model, model: large}
  far: {kind: remote, url: "http://127.0.0.1:1", model: sum, timeout: 0.05}
  rules: {kind: constant, value: 0.5}
  safe: {kind: fallback, targets: [far, small, rules]}
  sure: {kind: cascade, small: small, large: safe, threshold: 0.8}
  trial: {kind: canary, champion: sure, canary: large, share: 0.5}
  drawn: {kind: weighted, weights: {trial: 3, rules: 1}}
  seen: {kind: shadow, main: drawn, shadow: far}
  pool: {kind: pool, targets: [far, small]}
  a: {kind: content, rules: [{when: "amount > 100", then: pool}], otherwise: seen}
routes:
  r: {target: a, deadline: 0.2, unit: request_id}
"""
    file = parse_routes(text)
    route = build_route(file, "r", host.get, columns=lambda _: ["amount", "age"])
    lines = account(file, route, example_of(route, {"amount": 0.1, "age": 0.5, "request_id": "b"}))
    assert lines[0] == "r: answers within 0.2 s"
    assert lines[1] == "  a: it meets no condition"
    assert lines[2] == "    seen: drawn answers; far sees the same and is not waited for"
    assert lines[3] == "      drawn: draws trial with 0.75, rules with 0.25"
    assert "unit 'b', hash of the unit is" in lines[4]
    told = "\n".join(account(file, route, example_of(route, {"amount": 101})))
    assert "a: it meets 'amount > 100'" in told
    assert "pool: one of 2, less-busy; up to 2 tries" in told
    assert "far: model sum at http://127.0.0.1:1, at most 0.05 s" in told
    for wrong in ({"amount": "much"}, {"who": 1}):
        with pytest.raises(InvalidInput):
            example_of(route, wrong)


def test_served_beside_models(host: ModelHost, tmp_path: Path) -> None:
    from tests.serving.conftest import post, wire_to

    routes = RoutedHost(FolderCatalogue(tmp_path), [], pinned=["small"])
    routes.start()
    text = "targets:\n  c: {kind: constant, value: 0}\n  s: {kind: model, model: slow}\n"
    file = parse_routes(text + "  a: {kind: fallback, targets: [s, c]}\nroutes:\n  r: {target: a}\n")
    routes.add(build_route(file, "r", routes.get).endpoint)
    with pytest.raises(InvalidInput):
        routes.add(build_route(file, "r", routes.get).endpoint)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]}).encode()
    app = inference_application(routes)
    with running(app, list(routes.endpoints.values())) as service, wire_to(service) as wire:
        for path in ("r", "small", "slow"):
            wire.send(post(body, path=f"/v2/models/{path}/infer"))
        assert [json.loads(reply.body)["outputs"][0]["data"] for reply in wire.replies(3)] == [[6.0], [3.0], [6.0]]


def test_retry_after_of_a_remote_is_honoured() -> None:
    from vitok.serving.chains import Fallback
    from vitok.serving.remote import Busy, RemoteModel, retry_after
    from vitok.serving.targets import Constant

    class Polite(Backend):
        async def _do_later(self, writer: Any, headers: Any, body: Any) -> None:
            writer.write(b"HTTP/1.1 429 Too Many\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n")

    server = Polite()
    now = [0]

    async def work() -> None:
        remote = RemoteModel(server.url, "sum", clock=lambda: now[0])
        rows = Batch(np.ones((1, 2)))
        server.mode = "later"
        with pytest.raises(Busy, match="is to be asked again in 2 s") as caught:
            await remote.call(rows)
        assert caught.value.retry_after == 2
        server.mode = "answer"
        now[0] = 1_500_000_000
        with pytest.raises(Busy, match=r"another 0\.5 s") as caught:
            await remote.call(rows)
        assert server.requests == 1  # it was not asked
        scored = await Fallback([remote, Constant(0.5)], clock=lambda: now[0]).call(rows)
        assert scored.values.tolist() == [0.5]
        now[0] = 2_000_000_000
        assert (await remote.call(rows)).values.tolist() == [2.0]
        await remote.aclose()

    try:
        asyncio.run(work())
    finally:
        server.close()
    assert retry_after(b"100000", 0) == 60
    assert retry_after(b"", 0) == retry_after(b"-1", 0) == 0


def test_a_route_passes_the_wait_on(host: ModelHost) -> None:
    class Polite(Backend):
        async def _do_later(self, writer: Any, headers: Any, body: Any) -> None:
            writer.write(b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n")

    server = Polite()
    server.mode = "later"
    text = f'a: {{kind: remote, url: "{server.url}", model: sum, input: x}}'

    async def work() -> Reply:
        route = built(host, text, "target: a, input: {width: 2, name: x}")
        body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]}).encode()
        later = route.endpoint.handle([HotRequest(body, time.perf_counter_ns(), [])])[0]
        assert isinstance(later, Later)
        await route.endpoint.aclose()
        assert later.reply is not None
        return later.reply

    try:
        reply = asyncio.run(work())
    finally:
        server.close()
    assert (reply.status, reply.headers) == (503, b"retry-after: 7\r\n")


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    places = ("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem"))
    command = ("openssl", *made.split(), "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", *places)
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"openssl makes no certificate: {done.stderr.decode()}")
    return folder / f"{name}.pem", folder / f"{name}.key"


def test_https_with_a_ca_of_ones_own(host: ModelHost, tmp_path: Path) -> None:
    from vitok.serving.remote import RemoteModel
    from vitok.serving.server import Tls
    from vitok.serving.targets import TargetFailed

    cert, key = certificate(tmp_path, "own")
    other, _ = certificate(tmp_path, "other")
    host.get("small")
    rows = Batch(np.array([[1.0, 2.0]]))

    async def ask(url: str, ca: Path | None) -> Any:
        remote = RemoteModel(url, "small", input_name="x", ca=ca)
        try:
            return (await remote.call(rows, time.perf_counter_ns() + 5_000_000_000)).values.tolist()
        finally:
            await remote.aclose()

    with running(inference_application(host), list(host.endpoints.values()), tls=Tls(cert, key)) as service:
        assert service.url.startswith("https://")
        assert asyncio.run(ask(service.url, cert)) == [3.0]
        assert asyncio.run(ask(service.url.replace("127.0.0.1", "localhost"), cert)) == [3.0]
        for ca in (other, None):
            with pytest.raises(TargetFailed, match="certificate"):
                asyncio.run(ask(service.url, ca))
    with pytest.raises(InvalidInput, match="go with https"):
        RemoteModel("http://127.0.0.1:1", "small", ca=cert)
    with pytest.raises(InvalidInput, match="certificates in PEM"):
        RemoteModel("https://127.0.0.1:1", "small", ca=key)
