import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from tests.contracts.conftest import NOW, TEXT, frame

from vitok import contracts
from vitok.clock import DAY
from vitok.errors import ContractBroken, InvalidInput, NotFound, StoreError


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
    assert read["value"].to_list() == ["NaN", "-1.0"]
    rows = quarantine.rows(batch="2018/04 №1")
    assert rows["quarantine_entry"].to_list() == read["quarantine_entry"].to_list()
    assert rows.drop("quarantine_entry").equals(report.rejected.drop("reason", "rules"), null_equal=True)


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
    with (quarantine.folder / "requests-20180402T000000Z-00000.jsonl").open("ab") as file:
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
        with pytest.raises(StoreError, match="No space"):
            quarantine.put_row(b"1", "r", now=NOW)
    assert quarantine.count() == 0
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
quarantine = contracts.Quarantine(folder, largest_file=100_000)
for number in range(200):
    quarantine.put_row({"n": number, "pad": letter * 3000}, letter, now=number)
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    read = contracts.Quarantine(tmp_path).read()
    assert sorted(read["reason"].to_list()) == ["a"] * 200 + ["b"] * 200
    assert read.filter(pl.col("rule") == "torn").is_empty()
    assert read["quarantine_entry"].is_unique().all()
    sizes = [path.stat().st_size for path in tmp_path.glob("requests-*.jsonl")]
    assert len(sizes) > 5
    assert max(sizes) <= 100_000


def test_files_of_requests_rotate_by_day_and_size_and_end_with_their_retention(tmp_path: Path) -> None:
    quarantine = contracts.Quarantine(tmp_path, retention=3 * DAY, largest_file=2000)
    for day in range(6):
        for number in range(5):
            quarantine.put_row({"pad": "x" * 700}, f"{day}.{number}", now=NOW + day * DAY)
    # Midnight of the sixth day: the first two have ended three days ago or more, the third has not.
    assert quarantine.read()["reason"].to_list() == [f"{day}.{number}" for day in (2, 3, 4, 5) for number in range(5)]
    names = sorted(path.name for path in tmp_path.glob("requests-*"))
    assert names[:3] == [f"requests-20180404T000000Z-0000{number}.jsonl" for number in range(3)]
    assert quarantine.prune(now=NOW + 6 * DAY - 1) == 0
    assert quarantine.prune(now=NOW + 6 * DAY) == 3
    assert quarantine.count() == 15


def test_a_clock_that_steps_back_writes_to_the_file_of_its_day(quarantine: contracts.Quarantine) -> None:
    for moment in (NOW, NOW - DAY, NOW):
        quarantine.put_row(b"1", "r", now=moment)
    assert len(list(quarantine.folder.glob("requests-*"))) == 2
    assert quarantine.count() == 3
    with pytest.raises(InvalidInput, match="1970"):
        quarantine.put_row(b"1", "r", now=-1)
    with pytest.raises(InvalidInput, match="retention"):
        contracts.Quarantine(quarantine.folder, retention=0)
    with pytest.raises(InvalidInput, match="largest_file"):
        contracts.Quarantine(quarantine.folder, largest_file=0)


FULL = """
import resource, signal, sys
from vitok import contracts
from vitok.errors import StoreError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
quarantine = contracts.Quarantine(sys.argv[1])
quarantine.put_row(b"1", "first", now=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    quarantine.put_row(b"x" * 8000, "too much", now=0)
except StoreError as error:
    print(error)
quarantine.put_row(b"3", "last", now=0)
"""


def test_a_line_that_the_disk_cuts_short_is_taken_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "nothing of it was kept" in done.stdout
    assert contracts.Quarantine(tmp_path).read()["reason"].to_list() == ["first", "last"]


def filled(quarantine: contracts.Quarantine, contract: contracts.Contract) -> contracts.Quarantine:
    """Three bad rows under the batch "b"."""
    bad = frame({"amount": -1.0}, {"amount": -2.0}, {"count": 0})
    quarantine.put(contract.check(bad, now=NOW), batch="b", now=NOW)
    return quarantine


def mend(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("amount").abs())


def test_mended_rows_are_released_once_and_the_others_stay(
    quarantine: contracts.Quarantine, contract: contracts.Contract
) -> None:
    filled(quarantine, contract)
    done = quarantine.repair(contract, mend, batch="b", by="ann", reason="sign was lost", now=NOW + 1)
    assert (done.n_settled, done.n_before, done.n_refused) == (2, 0, 1)
    assert "must be greater than 0" in done.refused["reason"][0]
    assert str(done) == "b: 2 rows released, 1 still break the contract and stay"
    released = quarantine.released(table="payments")
    assert released["amount"].to_list() == [1.0, 2.0]
    assert quarantine.count() == 1
    assert quarantine.rows(batch="b")["count"].to_list() == [0]

    again = quarantine.repair(contract, mend, batch="b", by="ann", reason="once more", now=NOW + 2)
    assert (again.n_settled, again.n_before, again.n_refused, again.id) == (0, 2, 1, "")
    assert quarantine.released(table="payments").equals(released)
    # The run that made the batch is repeated: what was settled does not come back.
    filled(quarantine, contract)
    assert quarantine.count() == 1
    ledger = quarantine.ledger()
    assert ledger.select("action", "batch", "table", "rows", "by", "reason").rows() == [
        ("released", "b", "payments", 2, "ann", "sign was lost")
    ]
    assert quarantine.released(table="payments", settlement=done.id).height == 2
    assert quarantine.released(table="payments", batch="other").is_empty()
    assert quarantine.released(table="other").is_empty()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_mended_in_a_file(
    quarantine: contracts.Quarantine, contract: contracts.Contract, tmp_path: Path, suffix: str
) -> None:
    rows = mend(filled(quarantine, contract).rows(batch="b")).head(2).with_columns(reason=pl.lit("kept by the tool"))
    path = tmp_path / f"mended.{suffix}"
    if suffix == "csv":
        rows.write_csv(path)
    else:
        rows.write_parquet(path)
    done = quarantine.repair(contract, path, batch="b", by="ann", reason="by hand", now=NOW)
    assert (done.n_settled, done.n_refused) == (2, 0)
    released = quarantine.released(table="payments")
    assert released["amount"].to_list() == [1.0, 2.0]
    assert released.schema["time"] == pl.Datetime("us", "UTC")
    assert released["day"].to_list() == [rows["day"][0]] * 2


def test_mended_rows_do_not_repeat_a_key(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    bad = frame({"id": "x", "amount": -1.0}, {"id": "x", "amount": -2.0}, {"id": "y", "amount": -3.0})
    quarantine.put(contract.check(bad, now=NOW), batch="b", now=NOW)
    entries = quarantine.rows(batch="b")["quarantine_entry"].to_list()

    def only(*chosen: int) -> pl.DataFrame:
        rows = mend(quarantine.rows(batch="b"))
        return rows.filter(pl.col("quarantine_entry").is_in([entries[index] for index in chosen]))

    said = {"batch": "b", "by": "ann", "reason": "r", "now": NOW}
    assert quarantine.repair(contract, only(0), **said).n_settled == 1
    second = quarantine.repair(contract, only(1), **said)
    assert (second.n_settled, second.n_refused) == (0, 1)
    assert "released before" in second.refused["reason"][0]
    third = quarantine.repair(contract, only(2), accepted=frame({"id": "y"}).lazy(), **said)
    assert (third.n_settled, third.n_refused) == (0, 1)
    assert quarantine.repair(contract, only(2), **said).n_settled == 1
    assert quarantine.released(table="payments")["id"].to_list() == ["x", "y"]


def test_released_on_somebodys_word_and_discarded(
    quarantine: contracts.Quarantine, contract: contracts.Contract
) -> None:
    filled(quarantine, contract).put_row(b"{", "body: not JSON", now=NOW)
    first, second, third = quarantine.rows(batch="b")["quarantine_entry"]
    done = quarantine.release(batch="b", entries=[first], by="bob", reason="the rule is wrong", now=NOW)
    assert (done.n_settled, done.n_before) == (1, 0)
    done = quarantine.discard(batch="b", entries=[first, second], by="bob", reason="test data", now=NOW)
    assert (done.n_settled, done.n_before) == (1, 1)
    assert quarantine.released(table="payments")["amount"].to_list() == [-1.0]
    assert quarantine.read()["quarantine_entry"].to_list()[0] == third
    overview = quarantine.batches().sort("batch").select("batch", "rows", "waiting", "released", "discarded")
    assert overview.rows() == [("", 1, 1, 0, 0), ("b", 3, 1, 1, 1)]
    assert quarantine.discard(batch="", by="bob", reason="mended at the sender's", now=NOW).n_settled == 1
    assert quarantine.discard(batch="b", by="bob", reason="rest", now=NOW).n_settled == 1
    assert quarantine.count() == 0
    assert quarantine.read().is_empty()
    assert quarantine.rows(batch="b").is_empty()
    assert quarantine.ledger()["action"].to_list() == ["released", "discarded", "discarded", "discarded"]


def test_what_is_all_settled_goes_after_its_retention(
    quarantine: contracts.Quarantine, contract: contracts.Contract
) -> None:
    filled(quarantine, contract)
    quarantine.put(contract.check(frame({"amount": -9.0}), now=NOW), batch="c", now=NOW)
    quarantine.repair(contract, mend, batch="c", by="ann", reason="r", now=NOW)
    assert quarantine.prune(now=NOW + 90 * DAY - 1) == 0
    assert quarantine.prune(now=NOW + 90 * DAY) == 1
    assert quarantine.count() == 3
    assert quarantine.released(table="payments")["amount"].to_list() == [9.0]
    quarantine.put(contract.check(frame({"amount": -9.0}), now=NOW), batch="c", now=NOW)
    assert quarantine.count() == 3


def test_settling_wrongly(quarantine: contracts.Quarantine, contract: contracts.Contract) -> None:
    said = {"by": "ann", "reason": "r", "now": NOW}
    with pytest.raises(NotFound, match="batch in quarantine"):
        quarantine.repair(contract, mend, batch="b", **said)
    rows = filled(quarantine, contract).rows(batch="b")
    with pytest.raises(InvalidInput, match="quarantine_entry"):
        quarantine.repair(contract, rows.drop("quarantine_entry"), batch="b", **said)
    with pytest.raises(InvalidInput, match="given once"):
        quarantine.repair(contract, pl.concat([rows, rows]), batch="b", **said)
    with pytest.raises(NotFound, match="entry"):
        quarantine.repair(contract, rows.with_columns(quarantine_entry=pl.lit("x")).head(1), batch="b", **said)
    with pytest.raises(InvalidInput, match="each row"):
        quarantine.repair(
            contract, rows.head(1).with_columns(quarantine_entry=pl.lit(None, pl.String)), batch="b", **said
        )
    with pytest.raises(InvalidInput, match="returns a polars DataFrame"):
        quarantine.repair(contract, lambda rows: rows.lazy(), batch="b", **said)  # type: ignore[arg-type, return-value]
    with pytest.raises(ContractBroken, match="missing"):
        quarantine.repair(contract, rows.drop("amount"), batch="b", **said)
    with pytest.raises(NotFound, match="entry"):
        quarantine.discard(batch="b", entries=["x"], **said)
    with pytest.raises(InvalidInput, match="sends it again"):
        quarantine.release(batch="", **said)
    with pytest.raises(InvalidInput, match="only"):
        quarantine.repair(contract, mend, batch="", **said)
    for wrong in ({"by": " "}, {"reason": ""}):
        with pytest.raises(InvalidInput, match="ledger"):
            quarantine.discard(batch="b", **{**said, **wrong})
    assert quarantine.count() == 3
    assert quarantine.ledger().is_empty()


def test_a_full_disk_settles_nothing(
    quarantine: contracts.Quarantine, contract: contracts.Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    filled(quarantine, contract)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="nothing of it was kept"):
            quarantine.repair(contract, mend, batch="b", by="ann", reason="r", now=NOW)
    assert quarantine.count() == 3
    assert quarantine.released(table="payments").is_empty()
    assert sorted(path.name for path in (quarantine.folder / "settled").iterdir()) == [".lock"]
    assert quarantine.repair(contract, mend, batch="b", by="ann", reason="r", now=NOW).n_settled == 2


# Dies at the nth step that touches the disk; leaves with 0 where there are fewer.
REPAIRER = """
import builtins, fcntl, os, pathlib, signal, sys
from vitok import contracts

folder, text, now, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
contract = contracts.load(text)
steps = 0

def dying(function, after):
    def step(*args, **kwargs):
        global steps
        if not after:
            steps += 1
        if steps == last and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if after:
            steps += 1
            if steps == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step

def mend(rows):
    import polars as pl
    os.fsync, os.close = dying(os.fsync, False), dying(os.close, False)
    fcntl.flock = dying(fcntl.flock, True)
    for name in ("open", "replace", "mkdir"):
        setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name), False))
    pathlib.Path.replace = dying(pathlib.Path.replace, True)
    return rows.with_columns(pl.col("amount").abs(), pl.lit(1).alias("count"))

done = contracts.Quarantine(folder).repair(contract, mend, batch="b", by="ann", reason="r", now=now)
"""


def test_a_repair_that_is_killed_at_any_step_releases_each_row_once(
    tmp_path: Path, contract: contracts.Contract
) -> None:
    killed = 0
    for step in range(1, 40):
        quarantine = filled(contracts.Quarantine(tmp_path / str(step)), contract)
        command = [sys.executable, "-c", REPAIRER, str(quarantine.folder), TEXT, str(NOW)]
        status = subprocess.run([*command, str(step)], check=False).returncode
        assert status in (0, -signal.SIGKILL)
        # Whole or not at all, and the next try releases what is left.
        assert (quarantine.released(table="payments").height, quarantine.count()) in ((0, 3), (3, 0))
        done = quarantine.repair(
            contract,
            lambda rows: rows.with_columns(pl.col("amount").abs(), pl.lit(1).alias("count")),
            batch="b",
            by="bob",
            reason="again",
            now=NOW,
        )
        assert done.n_settled + done.n_before == 3
        released = quarantine.released(table="payments")
        assert sorted(released["id"].to_list()) == ["r0", "r1", "r2"]
        assert quarantine.count() == 0
        if status == 0:
            break
        killed += 1
    assert killed >= 6


def test_two_processes_that_repair_at_once_release_each_row_once(tmp_path: Path, contract: contracts.Contract) -> None:
    bad = frame(*({"amount": -1.0} for _ in range(200)))
    contracts.Quarantine(tmp_path).put(contract.check(bad, now=NOW), batch="b", now=NOW)
    command = [sys.executable, "-c", REPAIRER, str(tmp_path), TEXT, str(NOW), "0"]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    quarantine = contracts.Quarantine(tmp_path)
    released = quarantine.released(table="payments")
    assert released.height == released["id"].n_unique() == 200
    assert quarantine.ledger()["rows"].sum() == 200
    assert quarantine.count() == 0
