"""`vitok labels`: a sample of a home's decisions that goes to a reviewer as a file and comes back."""

import json
from pathlib import Path

import polars as pl
import pytest
from tests.console.conftest import Home
from typer.testing import CliRunner, Result

from vitok import decisions
from vitok.console.label_commands import label_app
from vitok.monitoring.label_samples import LabelSample

SINCE, UNTIL = "2018-07-01", "2018-07-05"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(label_app, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_what_a_reviewer_finds_estimates_recall(home: Home, tmp_path: Path) -> None:
    asked = ("--metric", "recall", "--since", SINCE, "--until", UNTIL, "--home", home.folder)
    planned = run("plan", *asked, "--budget", "300")
    assert planned.exit_code == 0
    assert "of 1,600 decisions to label for recall, fraud since 2018-07-01 until 2018-07-05" in planned.stderr
    sample = LabelSample.read(planned.stdout)
    assert 230 < len(sample.request_ids) < 370
    file = tmp_path / "sample.csv"
    file.write_text(planned.stdout)
    unfinished = run("estimate", file)
    assert unfinished.exit_code == 2
    assert "have none" in unfinished.stderr
    file.write_text(sample.labelled(home.labels[one] == 1 for one in sample.request_ids).to_csv())
    told = run("estimate", file)
    assert told.exit_code == 0
    assert told.stdout.startswith("recall 0.")
    assert "fraud since 2018-07-01 until 2018-07-05\n" in told.stdout
    found = json.loads(run("estimate", file, "--json").stdout)
    # All of these days are labelled, so the truth is known.
    known = decisions.read(home.folder / "log" / "decisions").filter(pl.col("request_id").is_in(list(home.labels)))
    fraud = pl.Series([home.labels[one] == 1 for one in known["request_id"]])
    truth = float((known["action"] != "allow").filter(fraud).mean() or 0.0)  # type: ignore[arg-type]
    assert found["lower"] < truth < found["upper"]
    assert run("plan", *asked, "--budget", "300").stdout == planned.stdout
    as_json = run("plan", *asked, "--budget", "300", "--json").stdout
    assert LabelSample.read(as_json) == sample
    narrower = run("plan", *asked, "--half-width", "0.05", "--version", "fraud/1", "--seed", "3")
    assert "fraud/1 since" in narrower.stderr


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--metric", "f1", "--budget", "9"), "--metric: got 'f1', must be one of"),
        (("--metric", "recall"), "--budget, --half-width: got"),
        (("--metric", "recall", "--budget", "0"), "--budget: got 0"),
        (("--metric", "recall", "--budget", "9", "--until", "2018-06-01"), "--until: got"),
        (("--metric", "recall", "--budget", "9", "--until", "never"), "--until: got"),
        (("--metric", "recall", "--budget", "9", "--seed", "-1"), "--seed: got -1"),
        (
            ("--metric", "recall", "--budget", "9", "--version", "fraud/77"),
            "fraud/77 since 2018-07-01' does not exist; there is: fraud/",
        ),
    ],
)
def test_wrong_questions_are_told_by_their_option(home: Home, given: tuple[str, ...], told: str) -> None:
    result = run("plan", *given, "--since", SINCE, "--home", home.folder)
    assert result.exit_code == 2
    assert told in result.stderr


def test_no_home_and_no_file(tmp_path: Path) -> None:
    result = run("plan", "--metric", "recall", "--budget", "9", "--since", SINCE, "--home", tmp_path)
    assert (result.exit_code, "decision log in" in result.stderr) == (2, True)
    assert "FILE: got" in run("estimate", tmp_path / "none.csv").stderr
    (tmp_path / "odd.csv").write_text("a,b\n")
    assert "odd.csv: got" in run("estimate", tmp_path / "odd.csv").stderr
