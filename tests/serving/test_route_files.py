"""Files of routes: what is read, and that each mistake is named with its place, its line and what to do."""

from pathlib import Path

import pytest

from vitok.errors import InvalidInput, NotFound
from vitok.serving.route_files import CanaryTarget, longest, parse_routes, read_routes

WHOLE = """
targets:
  small: {kind: model, model: fraud-small, cost: 1, quality: 0.9, timeout: 0.02}
  near: {kind: remote, url: "http://10.0.0.5:8080", model: fraud, timeout: 1e-2}
  far: {kind: remote, url: "https://10.0.1.5", model: fraud, version: "3", input: x, headers: {x-team: risk}}
  both:
    kind: pool
    targets: [near, far]
    tries: 2
    retries: {share: 0.2}
    hedge: {quantile: 0.9}
    breaker: {error_share: 0.3, cool_down: 5, slow_after: 0.05}
  rules: {kind: constant, value: 0.5}
  safe: {kind: fallback, targets: [both, small, rules]}
  trial: {kind: canary, champion: small, canary: far, share: 0.1, salt: release-4}
  drawn: {kind: weighted, weights: {small: 3, trial: 1}}
  sure: {kind: cascade, small: small, large: both, threshold: 0.8}
  odd:
    kind: content
    rules:
      - {when: "amount > 1000 OR country = 'NG'", then: sure}
    otherwise: drawn
  watched: {kind: shadow, main: odd, shadow: far, tolerance: 0.1}
  quick: {kind: fastest, targets: [near, far]}
  cheap: {kind: cheapest, targets: [small, far], least_quality: 0.5}
routes:
  risk: {target: watched, deadline: 0.2, unit: customer, columns: {country: string, customer: string}}
  plain: {target: safe, deadline: 0.1}
"""


def test_a_whole_file(tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text(WHOLE)
    file = read_routes(tmp_path / "routes.yaml")
    assert list(file.routes) == ["risk", "plain"]
    assert file.routes["risk"].columns == {"country": "string", "customer": "string"}
    trial = file.targets["trial"]
    assert isinstance(trial, CanaryTarget)
    assert (trial.share, trial.salt) == (0.1, "release-4")
    assert file.models("risk") == ["fraud-small"]
    assert set(file.unused()) == {"quick", "cheap"}
    took, how = longest(file, "safe")
    assert took == pytest.approx(0.035)
    assert how == "near 0.01 + small 0.02 + margin 0.005"
    assert longest(file, "sure")[0] == pytest.approx(0.03)
    assert file.targets["near"].timeout == 0.01


def wrong(text: str) -> str:
    with pytest.raises(InvalidInput) as caught:
        parse_routes(text)
    return str(caught.value)


def one(target: str, route: str = "{target: a}", more: str = "") -> str:
    return f"targets:\n  c: {{kind: constant, value: 0}}\n  a: {target}\n{more}routes:\n  r: {route}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (one("{kind: constant, value: much}"), "line 3: targets.a.value: got 'much', must be a number"),
        (one("{kind: constnt, value: 1}"), "targets.a.kind: got 'constnt', must be a kind of target. Did you mean"),
        (one("{value: 1}"), "targets.a.kind: got None"),
        (one("7"), "line 3: targets.a: got 7, must be a mapping that begins with kind"),
        (one("{kind: constant, vlue: 1}"), "targets.a.vlue: got 1, must be a field that is known here. Did you mean"),
        (one("{kind: model}"), "targets.a.model: got None, must be given"),
        (one("{kind: remote, url: 'http://a', model: m, connections: 1.5}"), "must be a whole number"),
        (one("{kind: remote, url: 'http://a', model: m, binary: 'no'}"), "must be true or false"),
        (one("{kind: fallback, targets: c}"), "targets.a.targets: got 'c', must be a list"),
        (one("{kind: fallback, targets: [c, d]}"), "targets.a.targets[1]: got 'd', must name a target. There is: c, a"),
        (one("{kind: pool, targets: [c], breaker: {slow_shar: 1}}"), "targets.a.breaker.slow_shar"),
        (one("{kind: pool, targets: [c], balance: weights}"), "targets.a.weights"),
        (one("{kind: pool, targets: [c], balance: random}"), "targets.a.balance"),
        (one("{kind: content, rules: [{if: 'x', then: c}], otherwise: c}"), "targets.a.rules[0].if"),
        (one("{kind: fallback, targets: [a, c]}"), "targets.a: got 'a -> a', must not ask itself"),
        (one("{kind: fallback, targets: []}"), "end in a target of the kind constant"),
        (one("{kind: model, model: m, timeout: 0}"), "targets.a.timeout: got 0.0, must be seconds above 0"),
        (one("{kind: canary, champion: c, canary: c, share: 1}"), "routes.r.unit: got '', must say what the canary a"),
        (one("{kind: constant, value: 1}", "{target: b}"), "line 5: routes.r.target: got 'b', must name a target"),
        (one("{kind: constant, value: 1}", "{target: a, deadline: -1}"), "routes.r.deadline"),
        (one("{kind: constant, value: 1}", "{target: a, deadlin: 1}"), "Did you mean 'deadline'?"),
        (one("{kind: constant, value: 1}", "{target: a, columns: {x: text}}"), "routes.r.columns"),
        (
            one("{kind: fallback, targets: [m, m, c]}", "{target: a, deadline: 0.2}").replace(
                "  a:", "  m: {kind: model, model: m, timeout: 0.1}\n  a:"
            ),
            "line 6: routes.r.deadline: got 0.2, must be at least what the timeouts add up to: m 0.1 + m 0.1 + margin",
        ),
        ("targets: {a: {kind: constant, value: 1}}\n", "name at least one route"),
        ("route: {}\n", "Did you mean 'routes'?"),
        ("targets:\n  a: 1\n  a: 2\n", "line 3: got 'a', must be a key given once"),
        ("targets: [\n", "must be YAML"),
        ("- a\n", "be a mapping with targets and routes"),
        ("targets: {'a b': 1}\n", "be a name of letters"),
        ("targets: &t\n  a: *t\nroutes: {}\n", "not hold itself"),
        ("targets: []\nroutes: {}\n", "must be a mapping of names"),
        ("", "be a mapping with targets and routes"),
    ],
)
def test_mistakes_are_named(text: str, said: str) -> None:
    assert said in wrong(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "routes.yml").write_bytes(b"\xff")
    with pytest.raises(NotFound, match=r"routes\.yml"):
        read_routes(tmp_path / "route.yaml")
    with pytest.raises(InvalidInput, match="UTF-8"):
        read_routes(tmp_path / "routes.yml")
    with pytest.raises(InvalidInput, match="readable"):
        read_routes(tmp_path)
