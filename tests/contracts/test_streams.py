import datetime as dt
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contracts.conftest import NOW, SCHEMA, TEXT, frame
from tests.contracts.test_rows import ANY_ROW

from vitok import contracts
from vitok.clock import DAY, HOUR
from vitok.contracts import KeyMemory
from vitok.errors import Conflict, ContractBroken, InvalidInput, StoreError

CONTRACT = contracts.load(TEXT)


def ids(report: contracts.CheckReport) -> list[str]:
    return report.accepted["id"].to_list()


@settings(deadline=None)
@given(st.lists(st.lists(ANY_ROW, max_size=5), max_size=4))
def test_table_batches_and_rows_agree(batches: list[list[dict[str, Any]]]) -> None:
    whole = CONTRACT.check(pl.DataFrame([row for rows in batches for row in rows], schema=SCHEMA), now=NOW)
    checker, check = CONTRACT.batch_checker(), CONTRACT.row_checker()
    accepted, reasons = [], []
    for rows in batches:
        report = checker.check(pl.DataFrame(rows, schema=SCHEMA), now=NOW)
        accepted.append(report.accepted)
        reasons.extend(report.rejected["reason"].to_list())
        for row, rules in zip(
            report.rejected.select(*SCHEMA).iter_rows(named=True), report.rejected["rules"].to_list(), strict=True
        ):
            assert rules == ([f"{item.field}.{item.rule}" for item in check(row)] or ["id.unique"])
        checker.commit()
    assert reasons == whole.rejected["reason"].to_list()
    if accepted:
        assert pl.concat(accepted).equals(whole.accepted)


def test_arrow_batches() -> None:
    checker = CONTRACT.batch_checker()
    table = frame({}, {"amount": -1.0}).to_arrow()
    assert checker.check(table, now=NOW).n_accepted == 1
    (batch,) = table.to_batches()[:1]
    assert checker.check(batch, now=NOW).rejected["rules"].to_list() == [["id.unique"], ["amount.minimum"]]
    assert checker.check(table.schema.empty_table(), now=NOW).n_rows == 0


def test_keys_of_batches_that_are_not_committed_count() -> None:
    checker = CONTRACT.batch_checker()
    assert ids(checker.check(frame({"id": "a"}, {"id": "b"}), now=NOW)) == ["a", "b"]
    assert ids(checker.check(frame({"id": "b"}, {"id": "c"}), now=NOW)) == ["c"]
    checker.discard()
    assert ids(checker.check(frame({"id": "b"}, {"id": "c"}), now=NOW)) == ["b", "c"]


def test_rejected_rows_leave_no_key() -> None:
    checker = CONTRACT.batch_checker()
    checker.check(frame({"id": "a", "amount": -1.0}), now=NOW)
    checker.commit()
    assert ids(checker.check(frame({"id": "a"}), now=NOW)) == ["a"]


def test_a_key_is_forgotten_after_the_period() -> None:
    checker = CONTRACT.batch_checker(keys=KeyMemory(period="2d"))
    for day, expected in ((0, 1), (1, 0), (2, 1), (3, 0)):
        assert checker.check(frame({"id": "a"}), now=NOW + day * DAY).n_accepted == expected
        checker.commit()


def test_restart(tmp_path: Path) -> None:
    with KeyMemory(tmp_path / "keys", period="2d") as memory:
        checker = CONTRACT.batch_checker(keys=memory)
        checker.check(frame({"id": "a"}), now=NOW)
        checker.commit()
        checker.check(frame({"id": "b"}), now=NOW)
        memory.sync()
    with KeyMemory(tmp_path / "keys", period="2d") as memory:
        checker = CONTRACT.batch_checker(keys=memory)
        assert ids(checker.check(frame({"id": "a"}, {"id": "b"}), now=NOW + 1)) == ["b"]
        assert checker.period(now=NOW).n_rows == 3


def test_one_owner_and_one_period(tmp_path: Path, text: str) -> None:
    with KeyMemory(tmp_path, period="1d") as memory:
        with pytest.raises(Conflict, match="open elsewhere"):
            KeyMemory(tmp_path, period="1d")
        checker = CONTRACT.batch_checker(keys=memory)
        checker.check(frame({}), now=NOW)
        checker.commit()
    with pytest.raises(Conflict, match="was kept with a period"):
        KeyMemory(tmp_path, period="2d")
    other = contracts.load(text.replace("logicalType: string, primaryKey: true", "logicalType: string"))
    with KeyMemory(tmp_path, period="1d") as memory, pytest.raises(Conflict, match="kept for the keys"):
        other.batch_checker(keys=memory)
    with pytest.raises(InvalidInput, match="365"):
        KeyMemory(period="366d")


def test_other_words_in_the_contract_keep_the_keys(tmp_path: Path, text: str) -> None:
    memory = KeyMemory()
    checker = CONTRACT.batch_checker(keys=memory)
    checker.check(frame({"id": "a"}), now=NOW)
    checker.commit()
    changed = contracts.load(text.replace("version: 1.2.0", "version: 1.3.0"))
    again = changed.batch_checker(keys=memory)
    assert again.check(frame({"id": "a"}), now=NOW).n_accepted == 0
    assert again.period(now=NOW).n_rows == 2


def test_keys_are_exact() -> None:
    memory = KeyMemory()
    seen: dict[bytes, object] = {}
    for values in ([1], [1, 2], ["1"], ["a", "b"], ["ab", ""], ["a" * 600], ["a" * 601], [True], [0.5], [0.0], [""]):
        key = memory.encoded("t", tuple("xy"[: len(values)]), values)
        assert key not in seen
        assert len(key) <= 511
        seen[key] = values
    assert memory.encoded("t", ("x",), [-0.0]) == memory.encoded("t", ("x",), [0.0])
    assert memory.encoded("t", ("x",), [1]) != memory.encoded("u", ("x",), [1])


def test_key_of_several_fields(text: str) -> None:
    contract = contracts.load(
        text.replace("name: day, logicalType: date", "name: day, logicalType: date, primaryKey: true")
    )
    checker = contract.batch_checker()
    days = [dt.date(2018, 4, 1), dt.date(2018, 4, 2)]
    for expected in (2, 0):
        batch = frame({"id": "a", "day": days[0]}, {"id": "a", "day": days[1]}, {"id": "a", "day": days[1]})
        assert checker.check(batch, now=NOW).n_accepted == expected
        checker.commit()


def test_a_key_that_only_warns(text: str) -> None:
    warned = "{name: id, customProperties: [{property: vitok.severity.unique, value: warn}],"
    checker = contracts.load(text.replace("{name: id,", warned)).batch_checker()
    for expected in (1, 3):
        report = checker.check(frame({"id": "a"}, {"id": "a"}, {"id": "a"})[: 2 if expected == 1 else 3], now=NOW)
        unique = next(item for item in report.results if item.rule == "unique")
        assert (unique.n_failed, report.n_rejected) == (expected, 0)
        checker.commit()


def test_blocking_leaves_no_trace(text: str) -> None:
    custom = "{name: amount, customProperties: [{property: vitok.severity.minimum, value: block}],"
    checker = contracts.load(text.replace("{name: amount,", custom)).batch_checker()
    with pytest.raises(ContractBroken, match=r"amount\.minimum"):
        checker.check(frame({"id": "a"}, {"amount": -1.0}), now=NOW)
    assert ids(checker.check(frame({"id": "a"}), now=NOW)) == ["a"]
    assert checker.period(now=NOW).n_rows == 1


PERIOD = TEXT.replace(
    "quality:\n      - {metric: rowCount, mustBeBetween: [1, 1000]}",
    "quality:\n      - {metric: rowCount, mustBeBetween: [3, 4]}\n"
    "      - {type: sql, mustBeLessThan: 50, unit: percent, "
    "query: 'SELECT COUNT(*) FROM payments WHERE amount < count'}\n"
    "      - {type: sql, query: 'SELECT MAX(amount) FROM payments', mustBeLessThan: 50}",
).replace(
    "- {name: online, logicalType: boolean}",
    "- name: online\n        logicalType: boolean\n        quality:\n"
    "          - {metric: nullValues, mustBeLessThan: 40, unit: percent}\n"
    "          - {type: custom, engine: vitok, implementation: {metric: share, values: [true], mustBe: 100}}\n"
    "          - {metric: duplicateValues, mustBeLessThan: 1000}",
)


def test_a_period_is_judged_as_a_whole() -> None:
    contract = contracts.load(PERIOD)
    checker = contract.batch_checker(keys=KeyMemory(period="1d"))
    start = NOW // DAY * DAY
    checker.check(frame({"id": "a"}, {"id": "b", "amount": -1.0}), now=start + HOUR)
    running = checker.period(now=start + HOUR)
    found = {item.label: item for item in running.results}
    assert (found["rowCount"].status, found["rowCount"].observed) == ("skipped", "2 rows so far; more may come")
    checker.commit()
    # The same batch again: its first row repeats its own key and counts for nothing.
    assert checker.check(frame({"id": "a"}, {"id": "c", "online": None}), now=start + 2 * HOUR).n_rejected == 1
    checker.commit()
    assert checker.period(now=start + 3 * HOUR).n_rows == 4
    done = checker.period(now=start + DAY, finished=True)
    found = {item.label: item for item in done.results}
    assert (found["rowCount"].status, found["rowCount"].observed) == ("passed", "3 rows")
    assert (found["online.nullValues"].status, found["online.nullValues"].observed) == ("passed", "25 percent")
    assert found["online.share"].observed == "100 percent of 2 values"
    assert (found["amount,count.sql"].status, found["amount,count.sql"].observed) == ("passed", "25 percent")
    assert (found["sql"].status, found["online.duplicateValues"].status) == ("skipped", "skipped")
    assert found["time.latency"].status == "passed"
    assert (done.n_rows, done.n_rejected, done.end - done.start) == (4, 2, DAY)
    assert "4 rows, 2 rejected" in str(done)
    assert json.loads(json.dumps(done.to_dict()))["start"] == "2018-04-02T00:00:00Z"
    nothing = {item.label: item.status for item in checker.period(now=start + DAY).results}
    assert (nothing["rowCount"], nothing["online.share"]) == ("skipped", "skipped")
    late = {item.label: item.status for item in checker.period(now=start + 9 * DAY, finished=True).results}
    assert (late["rowCount"], late["time.latency"]) == ("failed", "failed")


def test_too_many_rows_are_a_fault_at_once() -> None:
    checker = contracts.load(PERIOD).batch_checker()
    checker.check(frame(*({} for _ in range(5))), now=NOW)
    assert next(item for item in checker.period(now=NOW).results if item.rule == "rowCount").status == "failed"
    expected = checker.period(now=NOW, expected_rows=5)
    assert [item.status for item in expected.results if item.rule == "rowCount"] == ["failed", "passed"]


def test_periods_follow_each_other() -> None:
    checker = contracts.load(PERIOD).batch_checker()
    for day in range(3):
        checker.check(frame({"id": f"d{day}"}), now=NOW + day * DAY)
        checker.commit()
    assert checker.period(now=NOW + 2 * DAY).n_rows == checker.period(now=NOW + 2 * DAY, finished=True).n_rows == 1
    assert checker.period(now=NOW + 9 * DAY, finished=True).n_rows == 0


@pytest.mark.parametrize(
    ("batch", "arguments"),
    [([1], {"now": 0}), (frame({}), {"now": None}), (frame({}), {"now": -1}), (frame({}), {"now": 0, "arrived": 1.5})],
)
def test_wrong_arguments(batch: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        CONTRACT.batch_checker().check(batch, **arguments)


def test_a_wrong_column_is_told_as_of_a_table() -> None:
    with pytest.raises(ContractBroken, match="'amount'"):
        CONTRACT.batch_checker().check(frame({}).drop("amount"), now=NOW)


def test_references_are_those_of_the_table(text: str) -> None:
    related = text.replace("{name: count,", "{name: count, relationships: [{to: payments.count}],")
    contract = contracts.load(related)
    checker = contract.batch_checker(references={"payments": pl.DataFrame({"count": [1, 2]})})
    assert ids(checker.check(frame({"id": "a", "count": 2}, {"id": "b", "count": 3}), now=NOW)) == ["a"]
    with pytest.raises(InvalidInput, match="references"):
        contract.batch_checker(references={"x": pl.DataFrame({"count": [1]})})


CONSUMER = """
import os, signal, sys
from pathlib import Path
from tests.contracts.conftest import NOW, TEXT, frame
from vitok import contracts

folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
steps = 0

def step():
    global steps
    steps += 1
    if steps == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

checker = contracts.load(TEXT).batch_checker(keys=contracts.KeyMemory(folder / "keys", period="30d"))
for number in range(int(checker.position or 0), 6):
    # Each batch brings three keys of its own and two of the one before.
    keys = [f"k{3 * number + offset}" for offset in range(-2, 3) if 3 * number + offset >= 0]
    step()
    report = checker.check(frame(*({"id": key} for key in keys)), now=NOW + number)
    step()
    (folder / str(number)).write_text(",".join(report.accepted["id"]))
    step()
    checker.commit(position=str(number + 1))
"""


@pytest.mark.parametrize("kill_at", [1, 2, 3, 4, 5, 6, 9])
def test_killed_between_the_steps(tmp_path: Path, kill_at: int) -> None:
    def run(*, kill_at: int) -> int:
        root = Path(__file__).parents[2]
        arguments = [sys.executable, "-c", CONSUMER, str(tmp_path), str(kill_at)]
        return subprocess.run(arguments, check=False, cwd=root).returncode

    assert run(kill_at=kill_at) == -signal.SIGKILL
    assert run(kill_at=0) == 0
    accepted = [key for number in range(6) for key in (tmp_path / str(number)).read_text().split(",")]
    assert accepted == [f"k{number}" for number in [0, 1, 2, *range(3, 18)]]


def test_a_commit_that_fails_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitok.engines.lmdb import LmdbRows

    def full(*_: Any) -> int:
        raise StoreError("the disk is full")

    with KeyMemory(tmp_path, period="1d") as memory:
        checker = CONTRACT.batch_checker(keys=memory)
        assert ids(checker.check(frame({"id": "a"}), now=NOW)) == ["a"]
        with monkeypatch.context() as patch:
            patch.setattr(LmdbRows, "write", full)
            with pytest.raises(StoreError, match="full"):
                checker.commit(position="1")
        assert checker.position == ""
        checker.commit(position="1")
        assert checker.position == "1"
        assert ids(checker.check(frame({"id": "a"}), now=NOW)) == []


def test_old_keys_leave_the_folder(tmp_path: Path) -> None:
    with KeyMemory(tmp_path, period="1d") as memory:
        checker = CONTRACT.batch_checker(keys=memory)
        for day in range(4):
            checker.check(frame(*({"id": f"{day}-{row}"} for row in range(50))), now=NOW + day * DAY)
            checker.commit()
        # Of four days one is known; one row more is what the stream has counted, and one the period.
        assert memory._rows is not None
        assert memory._rows.sweep() == 0
        names = [memory.encoded("payments", ("id",), [f"{day}-0"]) for day in range(4)]
        assert memory.known(names, now=NOW + 3 * DAY) == [False, False, False, True]
