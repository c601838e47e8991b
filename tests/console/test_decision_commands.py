"""`vitok replay` on a home of the fraud system, and the upkeep of its log."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from vitok import decisions, ids
from vitok.clock import DAY
from vitok.console import stores
from vitok.console.decision_commands import log_app, replay
from vitok.console.decision_replay import FraudReplay
from vitok.decision import Outcome
from vitok.models import fit_boosted_trees
from vitok.models.calibrators import PlattCalibrator
from vitok.models.convert import convert
from vitok.policies import TierPolicy
from vitok.registry import Registry, at_least, evaluate
from vitok.systems.fraud import rules
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.messages import SYSTEM, log_schema

N = 400
KEY = "00" * 20


def run(*arguments: object, app: typer.Typer | None = None) -> Result:
    if app is None:
        app = typer.Typer()
        app.command()(replay)
    return CliRunner(env={"VITOK_LOG_KEY": KEY}).invoke(app, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes two versions, and a log of what the first of them, and the rules, decided."""
    folder = tmp_path_factory.mktemp("replay") / "home"
    rng = np.random.default_rng(4)
    X = rng.lognormal(3.0, 0.7, (1500, len(FEATURES.names)))
    X[rng.random(X.shape) < 0.02] = np.nan
    X[:, 0] = np.nan_to_num(X[:, 0], nan=20.0)
    fraud = rng.random(1500) < np.where(X[:, 0] > 40, 0.6, 0.02)
    registry = Registry(folder)
    for number in (1, 2):
        register(registry, X, fraud, number)
    verdict = evaluate([at_least("average_precision", 0.6, 0.5)])
    registry.ledger.record_gate(SYSTEM, 1, verdict, now=DAY, actor="gate")
    registry.ledger.promote(SYSTEM, 1, "Production", reason="the first", actor="test", now=DAY)
    registry.close()
    write_log(folder, X[:N], fraud[:N].astype(float))
    return folder


def register(registry: Registry, X: np.ndarray, fraud: np.ndarray, number: int) -> None:
    rows = X.astype(np.float32)
    trees = fit_boosted_trees(rows, fraud, names=FEATURES.names, n_trees=5 * number)
    files = {
        **convert(trees, rows[:64], names=FEATURES.names).files(),
        "features.json": {"version": FEATURES.version},
        "calibrator.json": PlattCalibrator.fit(trees.score(rows), fraud.astype(float)).to_dict(),
        "policy.json": TierPolicy(pass_through=0.2).describe(),
    }
    registry.register(SYSTEM, files, now=number, actor="test", reason="a test")


def write_log(folder: Path, X: np.ndarray, fraud: np.ndarray) -> None:
    """Answers half of the rows by the version and half by the rules, and labels what was not blocked."""
    model = FraudReplay(folder).model("fraud/1")
    score, probability = model.answer(X)
    requests = [f"t{i}" for i in range(N)]
    tiers = model.policy.decide(probability, X[:, 0], requests)
    by_rules = np.arange(N) % 2 == 1
    rule_score = FraudReplay._by_rules(X)
    action = np.where(by_rules, rules.rule_actions(rule_score), tiers.actions)
    with (
        decisions.DecisionLog(folder / "log" / "decisions", log_schema(), rows_per_segment=150) as log,
        decisions.OutcomeLog(folder / "log" / "outcomes") as outcomes,
    ):
        log.append(
            decisions.DecisionBlock(
                decision_id=ids.uuid7s(N),
                request_id=requests,
                event_time=DAY + np.arange(N),
                ingest_time=DAY + np.arange(N),
                entities=[[f"c{i % 7}" for i in range(N)], ["5"] * N],
                request=[X[:, 0]],
                features=X,
                feature_status=["fresh"] * N,
                model_version=np.where(by_rules, rules.VERSION, "fraud/1").tolist(),
                stage=["Production"] * N,
                route=["champion"] * N,
                route_reason=[""] * N,
                score=np.where(by_rules, rule_score, score),
                probability=np.where(by_rules, np.nan, probability),
                shadow_version=["fraud/1"] * N,
                shadow_probability=probability,
                policy_version=np.where(by_rules, rules.VERSION, model.policy_version).tolist(),
                action=action.tolist(),
                propensity=np.where(by_rules, 1.0, tiers.propensity),
                latency_us=[5] * N,
                cost=[1e-5] * N,
            )
        )
        made = [
            Outcome(request_id=requests[i], kind="fraud", value=fraud[i], event_time=2 * DAY, ingest_time=2 * DAY)
            for i in range(N)
            if action[i] != "block"
        ]
        outcomes.append(made)


def some(home: Path) -> list[str]:
    found = decisions.read(home / "log" / "decisions", columns=["decision_id"])["decision_id"]
    return [ids.text(one) for one in found[:6]]


def test_every_decision_comes_out_as_it_stands(home: Path) -> None:
    for decision_id in some(home):
        result = run(decision_id, "--home", home)
        assert result.exit_code == 0, result.output
        assert "no difference in score, probability, policy_version, action, propensity" in result.output
    told = json.loads(run(some(home)[0], "--home", home, "--json").output)
    assert told["differences"] == []
    assert told["model_version"] == "fraud/1"


def test_a_decision_that_does_not_come_out(home: Path) -> None:
    fraud = FraudReplay(home)
    found = decisions.find(home / "log" / "decisions", decision_id=some(home)[0])
    assert found is not None
    changed = dataclasses.replace(fraud.model("fraud/1"), policy_version="tiers-other")
    fraud._loaded["fraud/1"] = changed
    replayed = decisions.replay_decision(home / "log" / "decisions", found.decision_id, fraud.recompute)
    assert [one.field for one in replayed.differences] == ["policy_version"]


def test_a_period_by_a_candidate(home: Path) -> None:
    result = run("--since", "1970-01-01", "--home", home)
    assert result.exit_code == 0, result.output
    assert "400 decisions from 1970-01-01" in result.output
    assert "answered by fraud/2" in result.output
    assert "difference: dr" in result.output
    told = json.loads(run("--since", "1970-01-01", "--system", "fraud@1", "--home", home, "--json").output)
    assert set(told["difference"]) == {"ips", "snips", "dr"}
    assert told["n"] == N
    assert run("--since", "1970-01-01", "--system", "fraud@rules", "--home", home).exit_code == 0
    # Versions are named as people do.
    fraud = FraudReplay(home)
    names = ["production", "candidate", "3", "fraud/2", "rules"]
    assert [fraud.named(name) for name in names] == ["fraud/1", "fraud/2", "fraud/3", "fraud/2", "rules"]
    assert stores.state(home).canary is None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "be given one of the two"),
        (["x", "--since", "1970-01-01"], "be given one of the two"),
        (["x"], "UUID"),
        (["--since", "1970-01-01", "--system", "shop@1"], "look like fraud@candidate"),
        (["--since", "1970-01-01", "--system", "fraud@newest"], "behind the @"),
        (["--since", "1970-01-01", "--system", "fraud@9"], "fraud/9"),
        (["--since", "1970-01-01", "--system", "fraud@previous"], "previous"),
        (["--since", "2030-01-01", "--until", "2031-01-01"], "does not exist"),
        (["--since", "never"], "--since: got 'never'"),
        (["--since", "1970-01-01", "--until", "never"], "--until: got 'never'"),
        (["--since", "1970-01-02", "--until", "1970-01-01"], "--until: got '1970-01-01', must be later than --since"),
        (["--since", "1970-01-01", "--as-of", "never"], "--as-of: got 'never'"),
    ],
)
def test_wrong_input(home: Path, arguments: list[str], told: str) -> None:
    result = run(*arguments, "--home", home)
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_forgetting_and_retention(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    result = run("forget", "customer_id=c3", "--home", copy, app=log_app)
    assert result.exit_code == 0, result.output
    assert "rows of subject" in result.output
    assert "found 0 decisions" in result.output
    assert run("verify", "customer_id=c3", "--home", copy, app=log_app).exit_code == 0
    assert run("verify", "customer_id=c4", "--home", copy, app=log_app).exit_code == 2
    assert run("forget", "c3", "--home", copy, app=log_app).exit_code == 2
    assert "rows removed" in run("retain", "1d", "--log", "outcomes", "--home", copy, app=log_app).output
    assert run("retain", "1d", "--log", "both", "--home", copy, app=log_app).exit_code == 2


def test_small_files_are_merged(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    for at in range(2):
        late = Outcome(request_id=f"t{at}", kind="fraud", value=1.0, event_time=DAY, ingest_time=2 * DAY)
        with decisions.OutcomeLog(copy / "log" / "outcomes") as outcomes:
            outcomes.append([late])
    before = decisions.read(copy / "log" / "outcomes")
    result = run("merge", "--home", copy, app=log_app)
    assert result.exit_code == 0, result.output
    assert "decisions: nothing to merge" in result.output
    assert f"outcomes: 3 sealed files with {before.height} rows" in result.output
    assert decisions.read(copy / "log" / "outcomes").equals(before)
    assert "nothing to merge" in run("merge", "--log", "outcomes", "--home", copy, app=log_app).output
    assert run("merge", "--log", "both", "--home", copy, app=log_app).exit_code == 2
    assert run("merge", "--home", tmp_path / "none", app=log_app).exit_code == 2


def test_a_merged_file_is_counted_as_the_service_counts(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    logs = copy / "log" / "decisions"
    write_log(copy, X=np.full((N, len(FEATURES.names)), 20.0), fraud=np.zeros(N))
    rows = decisions.read(logs).height
    assert list(decisions.sidecars(logs, "hours")) == []
    result = run("merge", "--log", "decisions", "--home", copy, app=log_app)
    assert result.exit_code == 0, result.output
    assert f"2 sealed files with {rows} rows" in result.output
    assert [one.rows for one in decisions.sidecars(logs, "hours")] == [rows]
    # Where no version was ever registered, nothing is opened and nothing made.
    shutil.copytree(home / "log", tmp_path / "other" / "log")
    assert run("merge", "--home", tmp_path / "other", app=log_app).exit_code == 0
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["log"]


def test_holds_and_redaction(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    place = ["--home", copy]
    held = ["hold", "case 7", "--where", "customer_id=c3", "--reason", "a court", "--since", "1970-01-01"]
    assert run(*held, *place, app=log_app).output == "held: case 7\n"
    assert run("hold", "all", "--until", "1990-01-01", *place, app=log_app).exit_code == 0
    listed = run("holds", *place, app=log_app).output
    assert "case 7: customer_id=c3 from 1970-01-01T00:00:00Z to the end; a court" in listed
    assert "all: all rows from 1970-01-01T00:00:00Z to 1990-01-01T00:00:00Z\n" in listed
    assert "0 rows removed" in run("retain", "1d", *place, app=log_app).output
    assert run("forget", "customer_id=c3", *place, app=log_app).exit_code == 2
    redacted = ["redact", "customer_id=hash", "terminal_id=drop", "--age", "30d"]
    assert run(*redacted, *place, app=log_app).output == "0 sealed files redacted\n"
    for name in ("case 7", "all"):
        assert run("release", name, *place, app=log_app).output == f"released: {name}\n"
    assert run("release", "all", *place, app=log_app).exit_code == 2
    assert run(*redacted, *place, app=log_app).output == "1 sealed files redacted\n"
    rows = decisions.read(copy / "log" / "decisions")
    assert rows["terminal_id"].unique().to_list() == [""]
    assert rows["customer_id"].str.len_chars().unique().to_list() == [32]
    for wrong in ("customer_id", "customer_id=burn", "event_time=drop", "score=hash"):
        assert run("redact", wrong, "--age", "30d", *place, app=log_app).exit_code == 2
    # Who was hashed is taken again from the record as before.
    assert "no difference" in run(some(home)[0], *place).output
