import io
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from tests.contracts.conftest import NOW, TEXT, frame
from typer.testing import CliRunner, Result

from vitok import contracts
from vitok.console.contract_commands import contract_app, report_table, verdict

NOW_TEXT = "2018-04-02T00:00:00Z"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(contract_app, [str(item) for item in arguments])
    # Errors come as one message, never as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def agreed(tmp_path: Path) -> Path:
    path = tmp_path / "payments.odcs.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "day.parquet"
    frame({}, {"amount": -1.0}, {"count": 0}).write_parquet(path)
    return path


def test_good_data(agreed: Path, tmp_path: Path) -> None:
    for name in ("good.csv", "good.parquet"):
        path = tmp_path / name
        rows = frame({}, {"currency": None})
        rows.write_csv(path) if name.endswith("csv") else rows.write_parquet(path)
        result = run("check", agreed, path, "--now", NOW_TEXT)
        assert result.exit_code == 0, result.output
        assert "2 rows, 2 accepted, 0 rejected" in result.output


def test_rejected_rows_are_reported_and_kept(agreed: Path, data: Path, tmp_path: Path) -> None:
    page, machine, folder = tmp_path / "out" / "report.html", tmp_path / "report.json", tmp_path / "quarantine"
    options = ("--html", page, "--json", machine, "--quarantine", folder, "--now", NOW_TEXT)
    for _ in range(2):
        result = run("check", agreed, data, *options)
        assert result.exit_code == 1
    assert "amount.minimum" in result.output
    assert "2 rows are in quarantine" in result.output
    assert "2 of 3 rows are rejected" in page.read_text()
    found = json.loads(machine.read_text())
    assert (found["status"], found["n_rejected"], found["checked"]) == ("rejected", 2, NOW_TEXT)
    quarantine = contracts.Quarantine(folder)
    assert quarantine.count() == 2
    assert quarantine.read()["batch"].unique().to_list() == ["day.parquet"]
    assert not list(tmp_path.glob(".*.part"))


def test_blocked_data(agreed: Path, data: Path, tmp_path: Path) -> None:
    pl.read_parquet(data).drop("amount").write_parquet(data)
    page, machine = tmp_path / "report.html", tmp_path / "report.json"
    result = run("check", agreed, data, "--html", page, "--json", machine)
    assert result.exit_code == 2
    assert "column 'amount' (number) is missing" in result.output
    assert "blocked" in page.read_text()
    assert json.loads(machine.read_text())["status"] == "blocked"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "none.yaml", "day.parquet"], "contract file 'none.yaml' does not exist"),
        (["check", "payments.odcs.yaml", "none.csv"], "day.parquet"),
        (["check", "payments.odcs.yaml", "day.parquet", "--now", "noon"], "ISO 8601"),
        (["check", "payments.odcs.yaml", "day.parquet", "--table", "x"], "there is: payments"),
        (["check", "day.parquet", "payments.odcs.yaml"], "Name it first, then the data"),
        (["check", "payments.odcs.yaml", "day.parquet", "--html", "day.parquet/x.html"], "cannot be written"),
        (["infer", "payments.odcs.yaml"], "found ['.yaml']"),
        (["infer", "day.parquet", "-o", "payments.odcs.yaml"], "not exist yet"),
        (["diff", "payments.odcs.yaml", "none.yaml"], "does not exist"),
        (["diff", "payments.odcs.yaml", "payments.odcs.yaml", "--view", "none"], "consumer, producer, both"),
        (["diff", "payments.odcs.yaml", "payments.odcs.yaml", "--impact", "none.json"], "readable"),
        (["diff", "payments.odcs.yaml", "payments.odcs.yaml", "--impact", "payments.odcs.yaml"], "be JSON"),
        (["diff", "payments.odcs.yaml", "payments.odcs.yaml", "--impact", "list.json"], "map columns"),
        (["quarantine", "list", "none"], "quarantine 'none' does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], said: str, agreed: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert contracts.load(agreed).text == TEXT


def test_infer(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "sales.csv"
    path.write_text("sale_id,amount,day\n007,1.5,2018-04-01\n008,,2018-04-02\n")
    result = run("infer", path, "--now", NOW_TEXT)
    assert result.exit_code == 0
    drafted = contracts.load(result.output)
    assert (drafted.name, drafted.status) == ("sales", "draft")
    assert [field.logical_type for field in drafted.table().fields] == ["string", "number", "date"]
    written = tmp_path / "draft.yaml"
    assert run("infer", path, "--now", NOW_TEXT, "-o", written, "--name", "sales").exit_code == 0
    assert written.read_text() == result.output
    assert run("check", written, path, "--now", NOW_TEXT).exit_code == 0


def test_diff(agreed: Path, tmp_path: Path) -> None:
    old, new, impact = tmp_path / "old.yaml", tmp_path / "new.yaml", tmp_path / "impact.json"
    old.write_text(TEXT + "  - {property: noticePeriod, value: 30, unit: d}\n")
    wider = old.read_text().replace("maximum: 10}", "maximum: 20}")
    new.write_text(wider.replace("version: 1.2.0", "version: 2.0.0"))
    impact.write_text(json.dumps({"payments.count": ["model fraud/3"]}))
    result = run("diff", old, new, "--now", NOW_TEXT, "--impact", impact)
    assert result.exit_code == 1
    assert "touches model fraud/3" in result.output
    assert "2018-05-02T00:00:00Z at the earliest" in result.output
    result = run("diff", old, new, "--now", NOW_TEXT, "--json")
    assert result.exit_code == 1
    assert json.loads(result.output)["notice"]["earliest"] == "2018-05-02T00:00:00Z"
    assert run("diff", old, new, "--now", NOW_TEXT, "--published", "2018-03-02").exit_code == 0
    assert run("diff", old, new, "--now", NOW_TEXT, "--view", "producer").exit_code == 0
    assert run("diff", old, old).exit_code == 0
    new.write_text(wider)
    result = run("diff", old, new, "--now", NOW_TEXT, "--published", "2018-03-02")
    assert result.exit_code == 1
    assert "needs version 2.0.0" in result.output


def test_quarantine_from_end_to_end(agreed: Path, data: Path, tmp_path: Path) -> None:
    folder, rows = tmp_path / "quarantine", tmp_path / "mend.csv"
    run("check", agreed, data, "--quarantine", folder, "--batch", "monday", "--now", NOW_TEXT)
    contracts.Quarantine(folder).put_row(b"{", "body: not JSON", now=NOW)
    listed = run("quarantine", "list", folder)
    assert listed.exit_code == 0
    assert "monday" in listed.output
    waiting = json.loads(run("quarantine", "list", folder, "--json").output)
    assert {item["batch"]: item["waiting"] for item in waiting} == {"monday": 2, "": 1}
    shown = run("quarantine", "show", folder, "--batch", "monday", "--limit", 1)
    assert "amount.minimum" in shown.output
    assert "1 of 2 rows" in shown.output
    first = json.loads(run("quarantine", "show", folder, "--batch", "monday", "--json").output)[0]
    assert (first["value"], first["rule"], first["time"]) == ("-1.0", "amount.minimum", "2018-04-02T00:00:00Z")

    assert run("quarantine", "show", folder, "--rows", rows).exit_code == 2
    assert run("quarantine", "show", folder, "--batch", "monday", "--rows", tmp_path / "x.txt").exit_code == 2
    assert run("quarantine", "show", folder, "--batch", "monday", "--rows", rows).exit_code == 0
    pl.read_csv(rows).with_columns(pl.col("amount").abs()).write_csv(rows)
    said = ("--batch", "monday", "--by", "ann", "--reason", "sign was lost", "--now", NOW_TEXT)
    mended = run("quarantine", "repair", folder, agreed, rows, *said)
    assert mended.exit_code == 1
    assert "1 rows released, 1 still break the contract and stay" in mended.output
    assert "must be greater than 0" in mended.output
    entry = json.loads(run("quarantine", "show", folder, "--batch", "monday", "--json").output)[0]["quarantine_entry"]
    assert "1 rows released" in run("quarantine", "release", folder, *said, "--entry", entry).output
    assert "0 rows released, 2 settled before" in run("quarantine", "release", folder, *said).output
    done = run("quarantine", "discard", folder, "--batch", "", "--by", "ann", "--reason", "junk", "--now", NOW_TEXT)
    assert done.exit_code == 0
    assert "nothing waits" in run("quarantine", "show", folder).output
    assert [item["action"] for item in json.loads(run("quarantine", "ledger", folder, "--json").output)] == [
        "released",
        "released",
        "discarded",
    ]
    assert "sign was lost" in run("quarantine", "ledger", folder).output
    assert "2 files deleted" in run("quarantine", "prune", folder, "--now", "2019-01-01").output
    assert "nothing is in quarantine" in run("quarantine", "list", folder).output


def test_a_terminal_gets_a_table() -> None:
    report = contracts.load(TEXT).check(frame({}, {"amount": -1.0}), now=NOW)
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(report_table(report))
    text = console.export_text()
    assert "amount.minimum" in text
    assert "id.required" not in text
    assert verdict(report).startswith("payments 1.2.0, payments: 2 rows, 1 accepted, 1 rejected")


def test_help_is_fast_to_come() -> None:
    code = "import sys, vitok.console.contract_commands; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


RELATED = TEXT.replace(
    "      - {name: online, logicalType: boolean}\n",
    "      - {name: online, logicalType: boolean}\n"
    "      - {name: customer, logicalType: string, relationships: [{to: customers.id}]}\n",
).replace(
    "slaProperties:\n",
    "  - name: customers\n    properties:\n      - {name: id, logicalType: string, primaryKey: true}\n"
    "slaProperties:\n"
    "  - {property: timeOfAvailability, value: '06:00', element: payments.time}\n",
)


@pytest.fixture
def related(tmp_path: Path) -> tuple[Path, Path]:
    agreed, data = tmp_path / "related.yaml", tmp_path / "related.parquet"
    agreed.write_text(RELATED)
    frame({}, {"id": "b"}).with_columns(customer=pl.Series(["ann", "bob"])).write_parquet(data)
    return agreed, data


def test_references(related: tuple[Path, Path], tmp_path: Path) -> None:
    pl.DataFrame({"id": ["ann"]}).write_csv(tmp_path / "customers.csv")
    options = ("--table", "payments", "--now", "2018-04-01T12:00:00Z")
    result = run("check", *related, *options)
    assert result.exit_code == 0
    assert "customer.relationship" in result.output
    assert "skipped" in result.output
    result = run("check", *related, *options, "--reference", f"customers={tmp_path / 'customers.csv'}")
    assert result.exit_code == 1
    assert "2 rows, 1 accepted, 1 rejected" in result.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--reference", "customers.csv"], "--reference: got 'customers.csv', must be TABLE=FILE"),
        (["--reference", "customers=nowhere.csv"], "file for --reference"),
        (["--reference", "buyers=history.csv"], "The contract points to customers"),
        (["--reference", "customers=history.csv"], "must have the column id"),
        (["--reference", "customers=history.csv", "--reference", "customers=history.csv"], "must name customers once"),
        (["--volume-history", "nowhere.csv"], "file for --volume-history"),
        (["--volume-history", "customers.csv"], "must have the columns day and count"),
        (["--volume-history", "history.csv", "--day", "monday"], "--day: got 'monday', must be a day"),
        (["--arrived", "noon"], "--arrived: got 'noon', must be an ISO 8601 time"),
        (["--now", "noon"], "--now: got 'noon', must be an ISO 8601 time"),
    ],
)
def test_wrong_circumstances(
    related: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("history.csv").write_text("day,count\n2018-03-04,2\n2018-03-11,2\n2018-03-18,2\n")
    Path("customers.csv").write_text("id,name\nann,Ann\n")
    result = run("check", *related, "--table", "payments", *options)
    assert result.exit_code == 2, result.output
    assert words in result.output


def test_history_and_arrival(related: tuple[Path, Path], tmp_path: Path) -> None:
    history = tmp_path / "history.csv"
    history.write_text("day,count\n2018-03-04,20\n2018-03-11,20\n2018-03-18,20\n2018-03-19,2\n")
    options = ("--table", "payments", "--now", "2018-04-02T07:00:00Z", "--volume-history", history)
    # 2018-04-01 is a Sunday; the data is of that day, and due at six on Monday.
    result = run("check", *related, *options, "--day", "2018-04-01", "--arrived", "2018-04-02T06:30:00Z")
    assert result.exit_code == 0
    assert "median of 3 Sundays" in result.output
    late = next(line for line in result.output.splitlines() if line.startswith("time.timeOfAvailability"))
    assert late.split()[1] == "failed"
    result = run("check", *related, *options, "--arrived", "2018-04-02T05:30:00Z")
    assert "volume_history knows 1 Monday, and 3 are needed" in result.output
    kept = next(line for line in result.output.splitlines() if line.startswith("time.timeOfAvailability"))
    assert kept.split()[1] == "passed"


def test_misspelt_batch(agreed: Path, data: Path, tmp_path: Path) -> None:
    run("check", agreed, data, "--quarantine", tmp_path / "q", "--now", NOW_TEXT)
    result = run("quarantine", "show", tmp_path / "q", "--batch", "dya.parquet")
    assert result.exit_code == 2
    assert "batch in quarantine 'dya.parquet' does not exist; there is: day.parquet" in result.output
    assert run("quarantine", "show", tmp_path / "q", "--batch", "").exit_code == 0
