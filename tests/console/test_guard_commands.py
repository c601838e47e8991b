"""`vitok guard`: who copies a model, from the decision log, and the watermark; findings, JSON, exit codes."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.serving.model_folders import ROWS, SUM, put_model
from typer.testing import CliRunner, Result

from vitok.clock import DAY, EventClock, isoformat
from vitok.console.exits import FAILED, REFUSED
from vitok.console.guard_commands import guard_app
from vitok.serving import InferenceLog
from vitok.serving.hosted import Answered

FEATURES = ("amount", "count_1d", "risk")
CALM, LATER = isoformat(10 * DAY), isoformat(20 * DAY)
SURE = ("--rate", 0.1, "--confidence", 0, "--window", 100)


def ordinary(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=(n, len(FEATURES))).cumsum(axis=1)


def put(log: InferenceLog, clock: EventClock, rows: np.ndarray, tenant: str, team: str = "", at: int = DAY) -> None:
    clock.advance(at)
    n = len(rows)
    batch = Answered("m/1", rows, np.zeros(n), [""] * n, np.zeros(n), 0.0, tenants=[tenant] * n, teams=[team] * n)
    log.record(batch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty ordinary keys for ten days; then a shop, a thief, three that share a budget, and one without a name."""
    found = tmp_path_factory.mktemp("log")
    # An ordinary key is accused at the stated rate; with this seed none is.
    rng = np.random.default_rng(6)
    clock = EventClock()
    with InferenceLog(found / "m", system="m", features=FEATURES, clock=clock) as log:
        for k in range(40):
            put(log, clock, ordinary(rng, 300), f"key{k}", at=DAY)
        put(log, clock, ordinary(rng, 300), "shop", at=12 * DAY)
        put(log, clock, rng.uniform(-3, 3, size=(600, len(FEATURES))), "thief", at=13 * DAY)
        for k in range(3):
            put(log, clock, ordinary(rng, 200), f"part{k}", "together", at=14 * DAY)
        put(log, clock, ordinary(rng, 50), "", at=15 * DAY)
        put(log, clock, ordinary(rng, 300), "calm shop", at=25 * DAY)
    return found


def run(*arguments: object, command: str = "watch") -> Result:
    result = CliRunner().invoke(guard_app, [command, *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_thief_is_named_and_the_shop_is_not(folder: Path) -> None:
    result = run("--log", folder, "--calm-until", CALM, "--until", LATER, "--budget", 500, *SURE)
    assert result.exit_code == REFUSED, result.output
    assert "key thief: extraction, 600 different rows of 500 allowed" in result.stdout
    assert "key shop" not in result.stdout
    assert "columns of key thief: " in result.stdout
    assert "50 rows name no tenant and were not judged" in result.stdout


def test_keys_are_added_up_by_a_column(folder: Path) -> None:
    options = ("--log", folder, "--calm-until", CALM, "--until", LATER, "--budget", 500, "--group", "team", "--json")
    result = run(*options, *SURE)
    assert result.exit_code == REFUSED
    told = json.loads(result.stdout)
    findings = {(item["kind"], item["name"]): item for item in told["findings"]}
    assert findings["key", "thief"]["verdict"] == "extraction"
    assert set(findings["key", "thief"]["features"]) == set(FEATURES)
    together = findings["team", "together"]
    assert (together["verdict"], together["action"], together["n_distinct"]) == ("over budget", "throttle", 600)
    assert together["keys"] == ["part0", "part1", "part2"]
    assert findings["key", "part0"]["verdict"] == "ordinary"
    assert (told["unnamed"], told["n_queries"], told["by"]) == (50, 1_500, "tenant")


def test_where_nobody_is_accused_the_exit_code_is_0(folder: Path) -> None:
    result = run("--log", folder, "--calm-until", CALM, "--since", LATER, *SURE)
    assert result.exit_code == 0, result.output
    assert "0 of 1 flagged in 300 queries" in result.stdout
    empty = run("--log", folder, "--calm-until", CALM, "--since", isoformat(40 * DAY), *SURE, "--json")
    assert (empty.exit_code, json.loads(empty.stdout)["findings"]) == (0, [])


def test_too_few_rows_have_no_distance(folder: Path) -> None:
    options = ("--log", folder, "--calm-until", CALM, "--since", LATER, "--json", "--rate", 0.1, "--confidence", 0)
    (finding,) = json.loads(run(*options, "--window", 300).stdout)["findings"]
    assert finding["distance"] is not None
    wide = run(*options, "--window", 301)
    assert wide.exit_code == FAILED
    assert "keys with a window of different rows" in wide.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--calm-until", "soon"), "--calm-until: got 'soon', must be a time in ISO 8601"),
        (("--calm-until", CALM, "--since", isoformat(DAY)), "--since"),
        (("--calm-until", CALM, "--until", isoformat(DAY)), "--until"),
        (("--calm-until", CALM, "--calm-since", LATER), "--calm-since"),
        (("--calm-until", CALM, "--budget", "0"), "--budget: got 0"),
        (("--calm-until", CALM, "--rate", "2"), "--rate: got 2.0"),
        (("--calm-until", CALM, "--confidence", "1"), "--confidence: got 1.0"),
        (("--calm-until", CALM, "--window", "3"), "--window: got 3"),
        (("--calm-until", CALM, "--period", "long"), "--period: got 'long'"),
        (("--calm-until", CALM, "--by", "nobody"), "--by: got 'nobody'"),
        (("--calm-until", CALM), "keys with a window of different rows: got 40, must be at least 301"),
        (("--calm-until", CALM, *map(str, SURE), "--period", "10d"), "--since and --until"),
    ],
)
def test_options_that_do_not_fit(folder: Path, options: tuple[str, ...], told: str) -> None:
    result = run("--log", folder, *options)
    assert result.exit_code == FAILED
    assert told in result.stderr


def test_logs_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    assert run("--log", tmp_path / "nowhere", "--calm-until", CALM).exit_code == FAILED
    for name, features in (("a", ("x",)), ("b", ("y",))):
        InferenceLog(tmp_path / name, system="m", features=features).close()
    result = run("--log", tmp_path, "--calm-until", CALM)
    assert (result.exit_code, "hold the logs of one model" in result.stderr) == (FAILED, True)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(b"a secret of sixteen bytes")
    rows = pl.DataFrame(np.random.default_rng(1).normal(size=(500, 2)), schema=["a", "b"])
    rows.with_columns(is_fraud=pl.lit(0)).write_parquet(tmp_path / "rows.parquet")
    return tmp_path


def marking(folder: Path, *more: object) -> Result:
    files = (folder / "rows.parquet", "--key-file", folder / "key", "--out", folder / "triggers.parquet")
    return run(*files, "--label", "is_fraud", *more, command="mark")


def test_the_life_of_a_watermark(secret: Path) -> None:
    made = marking(secret, "--n", 60)
    assert made.exit_code == 0, made.output
    triggers = secret / "triggers.parquet"
    assert triggers.stat().st_mode & 0o077 == 0
    frame = pl.read_parquet(triggers)
    assert (frame.columns, len(frame)) == (["a", "b", "is_fraud"], 60)
    frame.select("is_fraud").write_parquet(secret / "answers.parquet")
    own = run(triggers, "--label", "is_fraud", "--answers", secret / "answers.parquet", "--json", command="marked")
    told = json.loads(own.stdout)
    assert (own.exit_code, told["marked"], told["agreed"], told["n"]) == (0, True, 1.0, 60)
    assert told["p_value"] == pytest.approx(2.0**-60)
    assert told["commitment"] in made.stdout
    # A model that knows nothing of the secret.
    put_model(secret, "sum", 1, SUM.format(sleep=0), ROWS)
    other = run(triggers, "--label", "is_fraud", "--package", secret / "sum" / "1", command="marked")
    assert (other.exit_code, other.stdout.startswith("no mark shows: watermark 0.")) == (REFUSED, True)
    again = marking(secret)
    assert (again.exit_code, "--out" in again.stderr) == (FAILED, True)


def test_watermarks_that_cannot_be(secret: Path) -> None:
    assert "--n: got 5" in marking(secret, "--n", 5).stderr
    assert "--label: got 'none'" in marking(secret, "--label", "none").stderr
    (secret / "key").write_bytes(b"short")
    assert "--key-file: got '5 bytes'" in marking(secret).stderr
    (secret / "text.parquet").write_text("no Parquet")
    wrong = run(secret / "text.parquet", "--label", "is_fraud", "--package", secret, command="marked")
    assert (wrong.exit_code, "TRIGGERS" in wrong.stderr) == (FAILED, True)
    rows = secret / "rows.parquet"
    for options, told in (
        ((), "--package: got None"),
        (("--package", secret, "--classes", 3), "--classes: got 3"),
        (("--answers", rows, "--level", 1), "--level: got 1.0"),
        (("--answers", secret / "none"), "--answers"),
        (("--answers", rows), "--answers"),
    ):
        result = run(rows, "--label", "is_fraud", *options, command="marked")
        assert (result.exit_code, told in result.stderr) == (FAILED, True), result.stderr
