"""`vitok releases`: what a person sees of a release, and what each order does to it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vitok.console.release_commands import release_app
from vitok.loop import Look, Records, ReleasePlan, Releases, Step, push
from vitok.registry import Registry, at_least, evaluate

PLAN = ReleasePlan(
    steps=(
        Step(name="canary 10 %", kind="canary", share=0.1, least=10),
        Step(name="full", kind="full", share=1, least=20, approvals=1),
    )
)


class Quiet:
    def look(self, release: Any, *, now: int) -> Look:
        return Look()


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(release_app, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ticked(home: Path, now: int) -> str:
    registry = Registry(home)
    releases = Releases(registry, Records(home))
    try:
        return releases.tick("fraud/2", PLAN, Quiet(), now=now).step_name
    finally:
        releases.close()
        registry.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    registry = Registry(tmp_path)
    for number in (1, 2):
        registry.register("fraud", {"weights": bytes([number])}, now=number, actor="train")
        gate = evaluate([at_least("average_precision", 0.6, 0.5)])
        registry.ledger.record_gate("fraud", number, gate, now=5, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=6)
    releases = Releases(registry, Records(tmp_path))
    releases.begin("fraud", 2, PLAN, now=100, actor="ann", reason="retrained")
    releases.close()
    registry.close()
    return tmp_path


def test_a_person_holds_sends_on_and_ends_a_release(home: Path) -> None:
    at = ("--home", home, "--now", "1970-01-01T00:00:00.000102Z")
    who = ("--by", "bob", "--reason", "drill")
    assert ticked(home, 101) == "canary 10 %"
    assert "plan-0001 fraud/2 beside fraud/1: running, canary 10 % (1 of 2)" in run("list", "--home", home).stdout
    assert "paused by bob: drill" in run("pause", "fraud/2", *who, *at).stdout
    refused = run("advance", "fraud/2", *who, *at)
    assert (refused.exit_code, "resume it first" in refused.stderr) == (2, True)
    assert "running" in run("resume", "fraud/2", *who, *at).stdout
    assert "running" in run("advance", "plan-0001", *who, *at).stdout
    assert ticked(home, 103) == "canary 10 %"
    mine = run("approve", "fraud/2", *who, *at)
    assert (mine.exit_code, "somebody else has to approve" in mine.stderr) == (2, True)
    assert run("approve", "fraud/2", "--by", "cid", "--reason", "read it", *at).exit_code == 0
    assert ticked(home, 104) == "full"
    page = run("show", "fraud/2", "--home", home).stdout
    assert "✓ canary 10 % (canary, 10 %)" in page
    assert "→ full (full, 1 to approve)" in page
    assert "approved by cid: full: read it" in page
    assert json.loads(run("show", "fraud/2", "--home", home, "--json").stdout)["step"] == 1
    assert "aborted by bob: drill" in run("abort", "fraud/2", *who, *at).stdout
    assert "✗ full (full, 1 to approve)" in run("show", "fraud/2", "--home", home).stdout
    registry = Registry(home)
    assert registry.state("fraud").production == 1
    registry.close()
    assert "no release is under way" in run("list", "--home", home).stdout
    assert len(json.loads(run("list", "--home", home, "--all", "--json").stdout)) == 1


def test_where_nothing_is_nothing_is_made(tmp_path: Path) -> None:
    assert "there was no release by plan yet" in run("list", "--home", tmp_path, "--all").stdout
    for command in (("show", "fraud/2"), ("abort", "fraud/2", "--by", "bob", "--reason", "x")):
        result = run(*command, "--home", tmp_path)
        assert (result.exit_code, "release 'fraud/2' does not exist" in result.stderr) == (2, True)
    result = run("at", "2026-01-01", "--home", tmp_path)
    assert (result.exit_code, "registry in" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_who_and_why_are_asked_for(home: Path) -> None:
    result = run("pause", "fraud/2", "--by", " ", "--reason", "x", "--home", home)
    assert (result.exit_code, "--by" in result.stderr) == (2, True)


@pytest.mark.parametrize("odd", ["plan-9", "plan-" + 30 * "9", "fraud/" + 30 * "9", "fraud", "", "plan-0001/"])
def test_what_is_no_release_is_answered_with_those_that_are(home: Path, odd: str) -> None:
    result = run("show", odd, "--home", home)
    assert (result.exit_code, "there is: plan-0001 (fraud/2)" in result.stderr) == (2, True)


def test_the_steps_that_an_adopted_version_left_out_are_not_ticked_off(home: Path) -> None:
    registry, records = Registry(home), Records(home)
    releases = Releases(registry, records)
    push(registry, records, "fraud", 2, override=None, now=101, actor="ann")
    releases.adopt("fraud", 2, PLAN, now=102, actor="ann", reason="a fix")
    releases.close()
    registry.close()
    page = run("show", "plan-2", "--home", home).stdout
    assert "- canary 10 % (canary, 10 %)" in page
    assert "→ full (full, 1 to approve)" in page
    assert "begun by ann: a fix. full alone, of canary 10 %" in page


def test_what_served_at_a_time(home: Path) -> None:
    def served(moment: str, *more: str) -> str:
        return run("at", f"1970-01-01T00:00:00.{moment}Z", "--home", home, *more).stdout

    assert "nothing in Production, 2 versions" in served("000005")
    assert served("000006").startswith("1970-01-01T00:00:00.000006Z fraud/1 in Production, 2 versions")
    assert ticked(home, 101) == "canary 10 %"
    assert "fraud/1 in Production, canary fraud/2 at 10 %" in served("000101")
    told = json.loads(served("000101", "--json"))
    assert told == {"model": "fraud", "time_us": 101, "version": 1, "canary": 2, "canary_share": 0.1}
    assert "canary" not in served("000100")
    for arguments, text in ((("soon",), "TIME: got 'soon'"), (("2026-01-01", "--model", "shop"), "there is: fraud")):
        wrong = run("at", *arguments, "--home", home)
        assert (wrong.exit_code, text in wrong.stderr) == (2, True)


def test_nobody_approves_under_another_spelling(home: Path) -> None:
    for name, text in (("ANN", "somebody else has to approve"), ("a\u200bnn", "--by: got"), ("\u200b", "--by: got")):
        wrong = run("approve", "fraud/2", "--by", name, "--reason", "x", "--home", home)
        assert (wrong.exit_code, text in wrong.stderr) == (2, True)
