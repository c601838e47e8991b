"""`vitok routes check`, and routes of a file behind `vitok serve-models`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.console.test_model_options import ask, call, score
from tests.console.test_model_serving import process
from tests.serving.model_folders import ROWS, SUM, put_model
from typer.testing import CliRunner

from vitok import decisions
from vitok.console.model_routing import route_app

ROUTES = """
targets:
  small: {kind: model, model: sum}
  large: {kind: model, model: twice}
  rules: {kind: constant, value: 0.5}
  trial: {kind: canary, champion: small, canary: large, share: 0.5, salt: s}
  safe: {kind: fallback, targets: [trial, rules]}
  odd:
    kind: content
    rules:
      - {when: amount > 100, then: large}
    otherwise: safe
  spare: {kind: constant, value: 1}
routes:
  risk: {target: odd, deadline: 0.5, unit: request_id}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    signature = {"inputs": ["amount", "age"]}
    put_model(tmp_path / "models", "sum", 1, SUM.format(sleep=0), ROWS, signature=signature)
    twice = SUM.replace(".sum(axis=1)", ".sum(axis=1) * 2")
    put_model(tmp_path / "models", "twice", 1, twice.format(sleep=0), ROWS, signature=signature)
    (tmp_path / "routes.yaml").write_text(ROUTES)
    return tmp_path


def check(folder: Path, *options: str) -> Any:
    return CliRunner().invoke(route_app, ["check", str(folder / "routes.yaml"), *options])


def test_the_account_of_a_file(folder: Path) -> None:
    models = ("--models", str(folder / "models"))
    done = check(folder, *models, "--example", '{"amount": 5000}')
    assert done.exit_code == 0, done.output
    assert "risk: answers within 0.5 s\n  odd: it meets 'amount > 100'\n    large: model twice/1 of this" in done.output
    assert "targets.spare is asked by no route" in done.output
    done = check(folder, *models, "--example", '{"amount": 5, "request_id": "17"}', "--json")
    lines = json.loads(done.stdout)["routes"]["risk"]
    assert "trial: unit '17', hash of the unit is" in "\n".join(lines)


def test_what_is_wrong_with_a_file(folder: Path) -> None:
    models = ("--models", str(folder / "models"))
    done = check(folder)
    assert (done.exit_code, "--models" in done.output) == (1, True)
    for example in ("{", "[]", '{"who": 1}', '{"amount": "much"}'):
        done = check(folder, *models, "--example", example)
        assert done.exit_code != 0
        assert "vitok: " in done.output
    for wrong, said in (
        ("model: sum", "line 3: targets.small.model: got 'smu', must be a model that is served. There is: sum, twice"),
        ("amount > 100", "targets.odd.rules[0]"),
        ("share: 0.5", "targets.trial.share: got 7"),
    ):
        change = {"model: sum": "model: smu", "amount > 100": "amont > 100", "share: 0.5": "share: 7"}[wrong]
        (folder / "routes.yaml").write_text(ROUTES.replace(wrong, change))
        done = check(folder, *models)
        assert (done.exit_code, said in done.output) == (1, True), done.output
        command = [sys.executable, "-m", "vitok", "serve-models", *models, "--port", "0"]
        served = subprocess.run(
            [*command, "--routes", str(folder / "routes.yaml")], capture_output=True, text=True, check=False
        )
        assert (served.returncode, said in served.stderr) == (2, True), served.stderr
        assert "Traceback" not in served.stderr
    assert check(folder, "--models", "a", "--home", "b").exit_code == 2


def test_routes_are_served_and_logged(folder: Path) -> None:
    options = ("--routes", str(folder / "routes.yaml"), "--log", str(folder / "log"))
    with process(folder, *options) as (_, found):
        assert found["models"] == ["risk", "sum", "twice"]
        status, answer, _ = ask(found, 101.0, 1.0, model="risk")
        assert (status, "id: got" in str(answer)) == (422, True)
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [101, 1]}], "id": "a"}
        answer = call(found, "POST", "/v2/models/risk/infer", json.dumps(body))[1]
        assert score(answer) == 204.0
        assert score(ask(found, 1.0, 1.0, model="sum")[1]) == 2.0
        assert call(found, "GET", "/v2/health/ready")[1]["ready"] is True
        assert call(found, "POST", "/v2/repository/models/risk/unload")[0] == 422
    frame = decisions.Tail(folder / "log" / "risk").read()
    assert frame is not None
    assert frame["model_version"].to_list() == ["twice/1"]
    assert "it meets" in frame["route_reason"].to_list()[0]
    assert frame["f_amount"].to_list() == [101.0]


def test_a_route_named_as_its_model_is_refused(folder: Path) -> None:
    (folder / "routes.yaml").write_text(ROUTES.replace("  risk:", "  sum:"))
    command = [sys.executable, "-m", "vitok", "serve-models", "--models", str(folder / "models"), "--port", "0"]
    done = subprocess.run(
        [*command, "--routes", str(folder / "routes.yaml")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "routes.sum" in done.stderr) == (2, True), done.stderr
