import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from tests.contracts.conftest import NOW, frame

from vitok import contracts
from vitok.errors import InvalidInput, NotFound, StoreError


@pytest.fixture
def quarantine(tmp_path: Path) -> contracts.Quarantine:
    return contracts.Quarantine(tmp_path / "deep" / "quarantine")


def test_empty(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    assert quarantine.count() == 0
    assert quarantine.read().is_empty()
    assert quarantine.put(contract.check(frame({}), now=NOW), batch="b", now=NOW) == 0
    assert not quarantine.folder.exists()


def test_rows_come_back_as_they_were(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    report = contract.check(frame({}, {"amount": float("nan")}, {"amount": -1.0, "count": 0}), now=NOW)
    assert quarantine.put(report, batch="2018/04 №1", now=NOW) == 2
    assert quarantine.count() == 2
    read = quarantine.read()
    assert read["rule"].to_list() == ["amount.finite", "amount.minimum"]
    assert read["rules"].to_list() == report.rejected["rules"].to_list()
    assert read["reason"].to_list() == report.rejected["reason"].to_list()
    assert read["batch"].unique().to_list() == ["2018/04 №1"]
    assert read["time"].to_physical().to_list() == [NOW, NOW]
    assert '"amount":-1.0' in read["row"][1]
    assert quarantine.rows(batch="2018/04 №1").equals(report.rejected.drop("reason", "rules"), null_equal=True)


def test_the_same_batch_twice_is_kept_once(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    report = contract.check(frame({"amount": -1.0}), now=NOW)
    other = contract.check(frame({"amount": -2.0}), now=NOW)
    for moment in (NOW, NOW + 1):
        quarantine.put(report, batch="b", now=moment)
    quarantine.put(other, batch="b", now=NOW)
    quarantine.put(report, batch="c", now=NOW)
    assert quarantine.count() == 3
    assert quarantine.read(batch="b").height == 2
    assert sorted(quarantine.rows(batch="b")["amount"].to_list()) == [-2.0, -1.0]


def test_tables_of_several_shapes(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    quarantine.put(contract.check(frame({"amount": -1.0}), now=NOW), batch="b", now=NOW)
    wider = frame({"amount": -1.0}).with_columns(note=pl.lit("x"))
    quarantine.put(contract.check(wider, now=NOW), batch="b", now=NOW)
    assert quarantine.read().height == 2
    with pytest.raises(InvalidInput, match="several sets of columns"):
        quarantine.rows(batch="b")
    with pytest.raises(NotFound, match="b"):
        quarantine.rows(batch="x")


def test_single_requests(quarantine: contracts.Quarantine) -> None:
    quarantine.put_row(b'{"a": \xff', "body: not JSON", now=NOW)
    quarantine.put_row({"amount": float("nan"), "x": {1}}, "amount: NaN", now=NOW + 1, rule="amount.finite", table="t")
    quarantine.put_row(b"y" * 200_000, "body: too long", now=NOW + 2)
    assert quarantine.count() == 3
    read = quarantine.read()
    assert read["reason"].to_list() == ["body: not JSON", "amount: NaN", "body: too long"]
    assert read["row"][0] == '{"a": \\xff'
    assert len(read["row"][2]) == 64 * 1024
    assert read["rule"].to_list() == ["request", "amount.finite", "request"]


def test_a_torn_line_spoils_no_other(quarantine: contracts.Quarantine) -> None:
    quarantine.put_row(b"1", "first", now=NOW)
    with (quarantine.folder / "requests.jsonl").open("ab") as file:
        file.write(b'\n{"time": 3, "tab')
    quarantine.put_row(b"2", "last", now=NOW)
    assert quarantine.count() == 3
    assert sorted(quarantine.read()["rule"].to_list()) == ["request", "request", "torn"]


def test_a_crash_while_writing_leaves_nothing_to_read(
    quarantine: contracts.Quarantine, contract: contracts.Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    report = contract.check(frame({"amount": -1.0}), now=NOW)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space"):
            quarantine.put(report, batch="b", now=NOW)
    assert list(quarantine.folder.iterdir()) == []
    (quarantine.folder / ".0.part").write_bytes(b"half")
    assert quarantine.count() == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda _, line: len(line) - 3)
        with pytest.raises(StoreError, match="disk is full"):
            quarantine.put_row(b"1", "r", now=NOW)
    assert quarantine.put(report, batch="b", now=NOW) == 1


def test_damaged_file_is_named(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    quarantine.put(contract.check(frame({"amount": -1.0}), now=NOW), batch="b", now=NOW)
    (path,) = quarantine.folder.glob("*.parquet")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(StoreError, match=path.name):
        quarantine.read()
    with pytest.raises(StoreError, match=path.name):
        quarantine.count()


def test_batch_has_a_name(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    with pytest.raises(InvalidInput):
        quarantine.put(contract.check(frame({}), now=NOW), batch="", now=NOW)


WRITER = """
import sys
from vitok import contracts

folder, letter = sys.argv[1:]
quarantine = contracts.Quarantine(folder)
for number in range(200):
    quarantine.put_row({"n": number, "pad": letter * 3000}, letter, now=number)
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    read = contracts.Quarantine(tmp_path).read()
    assert sorted(read["reason"].to_list()) == ["a"] * 200 + ["b"] * 200
    assert read.filter(pl.col("rule") == "torn").is_empty()
