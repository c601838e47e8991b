"""The whole turn on small data through the command that users call, and what wrong input gets."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from vitok import decisions
from vitok.contracts import Quarantine
from vitok.registry import Ledger
from vitok.systems.fraud.simulator import simulate


def vitok(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitok", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def handbook_frame(**options: object) -> pl.DataFrame:
    data = simulate(**options)
    return data.transactions.join(data.labels, on="transaction_id").select(
        TRANSACTION_ID=pl.col("transaction_id").cast(pl.Int64),
        TX_DATETIME=pl.col("event_time").dt.replace_time_zone(None),
        CUSTOMER_ID=pl.col("customer_id").cast(pl.Int64),
        TERMINAL_ID=pl.col("terminal_id").cast(pl.Int64),
        TX_AMOUNT=pl.col("amount"),
        TX_FRAUD=pl.col("is_fraud").cast(pl.Int64),
    )


@pytest.mark.slow
def test_the_turn_on_a_users_file_with_bad_rows(tmp_path: Path) -> None:
    frame = handbook_frame(n_customers=1200, n_terminals=2400, days=63, seed=5)
    bad = frame.head(3).with_columns(TX_AMOUNT=pl.Series([-5.0, None, 3.0]), TRANSACTION_ID=pl.Series([-1, -2, 7]))
    pl.concat([frame, bad]).write_csv(tmp_path / "payments.csv")
    home, out = tmp_path / "home", tmp_path / "out.json"
    first = vitok("demo", "fraud", "--home", home, "--transactions", tmp_path / "payments.csv", "--json", out)
    assert first.returncode == 0, first.stderr
    numbers = json.loads(out.read_text())
    for key in ("auc", "average_precision", "card_precision_100"):
        assert {"rules", "incumbent"} <= set(numbers[key])
        assert all(values["version"] for values in numbers[key].values())
    assert numbers["feature_mismatches"] == 0
    assert numbers["decisions"] > 15_000
    assert numbers["refused"] == 0
    [rollback] = numbers["rollbacks"]
    assert 0 < rollback["seconds"] < 1
    kinds = {(entry["version"], entry["kind"]) for entry in numbers["releases"]}
    assert kinds >= {(rollback["version"], "promoted"), (rollback["version"], "rolled_back")}
    assert set(numbers["latency_ms"]) == {"p50", "p99", "p99.9"}
    assert numbers["decisions_per_second"] > 0
    assert any("assumed" in text or "taken to be" in text for text in numbers["assumptions"])
    assert Quarantine(home / "quarantine").count() >= 3
    logged = decisions.read(home / "log" / "decisions")
    assert len(logged) == numbers["decisions"] == logged["request_id"].n_unique()
    ledger = Ledger(home / "registry" / "ledger.sqlite")
    assert ledger.verify().intact
    assert [entry.kind for entry in ledger.history("fraud")].count("rolled_back") == 1
    ledger.close()
    with sqlite3.connect(home / "mlflow.db") as connection:
        assert connection.execute("select count(*) from runs").fetchone()[0] >= 2
    again = vitok("demo", "fraud", "--home", home, "--transactions", tmp_path / "payments.csv", timeout=20)
    assert again.returncode == 0
    assert "Nothing has changed" in again.stderr
    examined = vitok("doctor", "--home", home)
    assert examined.returncode == 0, examined.stdout
    assert "tracking" in examined.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--transactions", "no-such-file.csv"], "--transactions"),
        (["--protocol", "other"], "handbook"),
        (["--mapping", "amount", "--transactions", "/"], "ours=theirs"),
        (["--label-delay", "soon"], "7d"),
        (["--days", "20", "--customers", "50"], "at least 26 days"),
    ],
)
def test_wrong_arguments_get_one_clear_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    result = vitok("demo", "fraud", "--home", tmp_path / "home", *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda frame: frame.drop("TX_AMOUNT"), "amount"),
        (lambda frame: frame.drop("TX_FRAUD"), "fraud"),
        (lambda frame: frame.head(0), "row"),
        (lambda frame: frame.with_columns(TX_FRAUD=0), "frauds"),
    ],
)
def test_files_that_cannot_be_used_are_explained(tmp_path: Path, change, told: str) -> None:
    change(handbook_frame(n_customers=60, n_terminals=120, days=40, seed=1)).write_parquet(tmp_path / "t.parquet")
    result = vitok("demo", "fraud", "--home", tmp_path / "home", "--transactions", tmp_path / "t.parquet")
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_named_by_mistake_keeps_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    vitok("demo", "fraud", "--home", tmp_path, "--days", "20")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_doctor_on_an_empty_home(tmp_path: Path) -> None:
    result = vitok("doctor", "--home", tmp_path / "nothing")
    assert result.returncode == 0
    assert "not there yet" in result.stdout
