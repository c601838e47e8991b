"""`vitok cost`: reports, budgets and savings from the command line."""

import json
from pathlib import Path

import pytest
from tests.serving.model_folders import ROWS, put_model
from tests.serving.test_cost_report import START, write
from typer.testing import CliRunner, Result

from vitok.clock import parse_time
from vitok.console.cost_commands import cost_app
from vitok.console.main import app
from vitok.registry import Ledger
from vitok.serving.budgets import NS, BudgetBook

NOW = "2026-03-10T10:30:00Z"
HALF = """
def load(folder):
    return lambda tensors: {"y": tensors["x"][:, 0] * 0 + 0.2}
"""
ONE = {**ROWS, "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 1]}]}


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cost_app, [str(item) for item in arguments])
    # Errors come as one message, never as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [
        {
            "x": float(k % 10),
            "time": START + 1000 * (k - k % 3),
            "cost": 0.0 if k % 4 == 0 else 1e-3,
            "version": "fraud/1",
            "tenant": "web",
            "team": "checkout",
            "probability": 0.2,
        }
        for k in range(300)
    ]
    write(tmp_path / "log" / "fraud", rows)
    return tmp_path / "log"


def test_report(log: Path) -> None:
    told = run("report", "--log", log, "--by", "team", "--price-cpu-hour", "3.6", "--currency", "CHF")
    assert told.exit_code == 0, told.output
    assert "checkout" in told.stdout
    assert "CHF a 1,000" in told.stdout
    assert "25 %" in told.stdout
    found = json.loads(run("report", "--log", log, "--json").stdout)
    assert found["total"]["decisions"] == 300
    assert found["total"]["cpu_seconds"] == pytest.approx(0.225)
    assert found["total"]["hit_share"] == 0.25
    assert found["currency"] is None
    late = json.loads(run("report", "--log", log, "--since", "2027-01-01", "--json").stdout)
    assert late["total"]["decisions"] == 0


def test_what_cannot_be_reported(log: Path, tmp_path: Path) -> None:
    for arguments in (
        ("report", "--log", tmp_path / "nowhere"),
        ("report", "--log", log, "--by", "colour"),
        ("report", "--log", log, "--price-cpu-hour", "0"),
        ("report", "--log", log, "--since", "soon"),
        ("savings", "--log", log, "--model", "fraud/9"),
        ("savings", "--log", log, "--home", tmp_path / "nowhere"),
        ("savings", "--log", log, "--package", tmp_path / "nowhere"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, arguments
        assert "vitok: " in result.output


def test_the_life_of_a_budget(tmp_path: Path) -> None:
    store = tmp_path / "budgets.sqlite"
    made = run(
        *("budget", "set", "checkout", "--cpu-seconds", 60, "--period", "hour", "--then", "throttle"),
        *("--alert", 0.5, "--alert", 0.9, "--by", "ann", "--store", store, "--now", NOW),
    )
    assert made.exit_code == 0, made.output
    assert "checkout: 60 processor seconds a hour, alert at 50 % and 90 %, then throttle" in made.stdout
    book = BudgetBook(store)
    book.lease("checkout", "me", spent=0, needed=40 * NS, now=parse_time(NOW))
    book.give_back("checkout", "me", start=parse_time("2026-03-10T10:00:00Z"), spent=40 * NS)
    book.close()
    (state,) = json.loads(run("budget", "list", "--store", store, "--now", NOW, "--json").stdout)
    assert (state["spent"], state["left"], state["end"]) == (40.0, 20.0, "2026-03-10T11:00:00Z")
    assert "40 spent" in run("budget", "list", "--store", store, "--now", NOW).stdout
    gone = run("budget", "remove", "checkout", "--by", "bob", "--reason", "moved", "--store", store, "--now", NOW)
    assert gone.exit_code == 0
    assert "no budgets yet" in run("budget", "list", "--store", store).stdout
    told = run("budget", "history", "--store", store).stdout.splitlines()
    assert ["by ann" in told[0], "removed (moved)" in told[1]] == [True, True]


def test_a_budget_in_money(tmp_path: Path) -> None:
    store = tmp_path / "budgets.sqlite"
    options = ("--by", "ann", "--store", store, "--period", "month")
    made = run("budget", "set", "checkout", "--money", 36, "--price-cpu-hour", 0.036, *options)
    # 36 at 0.036 an hour are 1,000 hours.
    assert "3.6e+06 processor seconds a month" in made.stdout
    for wrong in (
        (),
        ("--money", 36),
        ("--money", 36, "--cpu-seconds", 1),
        ("--cpu-seconds", -1),
        ("--cpu-seconds", 1, "--period", "week"),
        ("--cpu-seconds", 1, "--then", "shout"),
        ("--cpu-seconds", 1, "--alert", 2),
    ):
        result = run("budget", "set", "a", *wrong, "--by", "ann", "--store", store)
        assert result.exit_code == 2, wrong
        assert "vitok: " in result.output
    assert run("budget", "remove", "a", "--by", "ann", "--store", store).exit_code == 2
    assert run("budget", "list", "--store", tmp_path / "nowhere").exit_code == 2


def test_savings_without_a_model_say_why_not(log: Path) -> None:
    found = json.loads(run("savings", "--log", log, "--json").stdout)
    assert (found["version"], found["rows"]) == ("fraud/1", 300)
    assert [way["way"] for way in found["ways"]] == ["caching", "batching", "cascading", "quantising"]
    assert [way["share"] is None for way in found["ways"]] == [True, True, True, True]
    assert all(way["reason"] for way in found["ways"])
    assert found["ways"][0]["details"]["rows that need no run"] > 0.9


def test_savings_with_models(log: Path, tmp_path: Path) -> None:
    for name in ("full", "small", "quantised"):
        put_model(tmp_path, name, 1, HALF, ONE)
    ledger = Ledger(tmp_path / "home" / "registry" / "ledger.sqlite")
    for model in ("fraud", "spam"):
        ledger.register(model, digest="d", path=f"{model}/1", now=1, actor="ann")
        ledger.promote(model, 1, "Staging", reason="first", actor="ann", now=2)
    ledger.close()
    folders = {name: tmp_path / name / "1" for name in ("full", "small", "quantised")}
    told = run(
        *("savings", "--log", log, "--package", folders["full"], "--small", folders["small"]),
        *("--quantised", folders["quantised"], "--home", tmp_path / "home", "--price-cpu-hour", 1),
    )
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert lines[0].startswith("fraud/1: 300 rows in 100 batches")
    for way in ("caching", "cascading", "quantising"):
        assert any(line.startswith(f"{way}: ") and "% interval" in line for line in lines), told.stdout
    assert "savings overlap and must not be added up" in lines
    assert [line.split()[1] for line in lines if line.startswith("unused")] == ["spam/1"]


def test_it_is_a_command_of_vitok() -> None:
    assert "report" in CliRunner().invoke(app, ["cost", "--help"]).stdout
