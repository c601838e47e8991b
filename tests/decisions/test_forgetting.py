"""One subject leaves both logs, nobody else does, and the receipt proves it."""

import dataclasses
import json
import subprocess
import sys

import pytest

from vitok import decisions
from vitok.decision import Outcome
from vitok.decisions import DecisionLog, Hold, OutcomeLog, Tail, forget, hold, read, receipts, verify
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError

KEY = b"a secret of sixteen bytes"
N = 40


def counted(table, name):
    return {"n": str(table.num_rows).encode()}


def outcome(number, time=5):
    return Outcome(request_id=f"r{number}", kind="fraud", value=1.0, event_time=time, ingest_time=time)


def filled(top, schema, make_block):
    """Opens both logs with sealed and open segments; every fourth decision is of customer c3."""
    log = DecisionLog(top / "decisions", schema, rows_per_segment=15, on_seal=counted)
    outcomes = OutcomeLog(top / "outcomes", rows_per_segment=15)
    for start in range(0, N, 5):
        names = [f"c{row % 4}" for row in range(start, start + 5)]
        log.append(make_block(start, 5, entities=[names]))
        outcomes.append([outcome(row) for row in range(start, start + 5)])
    return log, outcomes


def others():
    return [f"r{row}" for row in range(N) if row % 4 != 3]


def test_rows_go_from_sealed_and_open_segments(tmp_path, schema, make_block):
    log, outcomes = filled(tmp_path, schema, make_block)
    tail = Tail(tmp_path / "decisions")
    assert tail.read(20).height == 20
    (tmp_path / "decisions" / "segment-00000099.damaged").write_bytes(b"... c3 ...")
    (tmp_path / "decisions" / "segment-00000098.damaged").write_bytes(b"... c2 ...")
    receipt = forget(tmp_path, "customer_id", "c3", key=KEY, now=77, open_logs=(log, outcomes), on_seal=counted)
    assert receipt.rows_removed == 20
    assert receipt.damaged == ("segment-00000099.damaged",)
    assert {change.log for change in receipt.changes} == {"decisions", "outcomes"}
    assert [path.name for path in (tmp_path / "decisions").glob("*.damaged")] == ["segment-00000098.damaged"]
    for folder in ("decisions", "outcomes"):
        assert read(tmp_path / folder)["request_id"].to_list() == others()
    # Numbers of rows keep their meaning for a reader in the middle of a segment.
    assert tail.read()["request_id"].to_list() == [name for name in others() if int(name[1:]) >= 20]
    sides = [side.data for side in decisions.sidecars(tmp_path / "decisions", "n")]
    assert sum(int(data) for data in sides) == 30
    assert b"c3" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*.arrows"))
    assert not list(tmp_path.rglob("*.tmp"))
    found = verify(tmp_path, receipt, "customer_id", "c3", key=KEY)
    assert found.good
    assert found.changed_since == ()
    assert str(found).startswith("the receipt is genuine; found 0 decisions")
    assert "20 rows of subject" in str(receipt)
    assert "=c3" not in (tmp_path / "receipts.jsonl").read_text()
    # Both logs go on.
    log.append(make_block(100, 1, entities=[["c3"]]))
    outcomes.append([outcome(3, 99)])
    late = verify(tmp_path, receipt, "customer_id", "c3", key=KEY)
    assert (late.good, late.decisions_found, late.outcomes_found) == (False, 1, 1)
    log.close()
    outcomes.close()
    again = forget(tmp_path, "customer_id", "c3", key=KEY, now=78)
    assert again.rows_removed == 1
    assert receipts(tmp_path) == (receipt, again)


def test_receipts_are_chained_and_signed(tmp_path, schema, make_block):
    for log in filled(tmp_path, schema, make_block):
        log.close()
    first = forget(tmp_path, "customer_id", "c3", key=KEY, now=1)
    second = forget(tmp_path, "customer_id", "c2", key=KEY, now=2)
    assert second.previous
    checked = verify(tmp_path, first, "customer_id", "c3", key=KEY)
    assert checked.good
    assert len(checked.changed_since) == len(first.changes), "the second deletion wrote the same segments anew"
    forged = dataclasses.replace(first, at=5)
    assert not verify(tmp_path, forged, "customer_id", "c3", key=KEY).signed
    with pytest.raises(InvalidInput, match="this subject"):
        verify(tmp_path, first, "customer_id", "c2", key=KEY)
    with pytest.raises(InvalidInput, match="this key"):
        verify(tmp_path, first, "customer_id", "c3", key=b"another secret, as long")
    path = tmp_path / "receipts.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace('"at": 1', '"at": 3'), lines[1]]) + "\n")
    assert not verify(tmp_path, second, "customer_id", "c2", key=KEY).chained
    path.write_text(json.dumps({"at": 1}) + "\n")
    with pytest.raises(StoreError, match="damaged"):
        receipts(tmp_path)


def test_a_hold_keeps_the_subject(tmp_path, schema, make_block):
    for log in filled(tmp_path, schema, make_block):
        log.close()
    hold(tmp_path / "decisions", Hold(name="case 12", where={"customer_id": "c3"}))
    with pytest.raises(Conflict, match="case 12"):
        forget(tmp_path, "customer_id", "c3", key=KEY, now=1)
    assert read(tmp_path / "outcomes").height == N
    assert forget(tmp_path, "customer_id", "c1", key=KEY, now=1).rows_removed == 20


def test_nobody_and_no_column(tmp_path, schema, make_block):
    with pytest.raises(NotFound, match="log"):
        forget(tmp_path, "customer_id", "c3", key=KEY, now=1)
    for log in filled(tmp_path, schema, make_block):
        log.close()
    assert forget(tmp_path, "customer_id", "nobody", key=KEY, now=1).rows_removed == 0
    with pytest.raises(NotFound, match="column"):
        forget(tmp_path, "e_mail", "c3", key=KEY, now=1)
    with pytest.raises(InvalidInput, match="key"):
        forget(tmp_path, "customer_id", "c3", key=b"", now=1)
    # All rows of a segment go: so does the segment.
    for number in (0, 1, 2, 3):
        forget(tmp_path, "customer_id", f"c{number}", key=KEY, now=1)
    assert read(tmp_path / "decisions").height == 0


WRITER = """if True:
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("blocks", sys.argv[1])
    blocks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blocks)
    from vitok.decisions import DecisionLog
    log = DecisionLog(sys.argv[2], blocks.SCHEMA)
    log.append(blocks.block_of(0, 5))
    print("written", flush=True)
    sys.stdin.read()
"""


def test_another_process_that_lives_and_one_that_died(tmp_path, schema, make_block):
    conftest = __file__.replace("test_forgetting.py", "conftest.py")
    command = [sys.executable, "-c", WRITER, conftest, str(tmp_path / "decisions")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"written\n"
        with pytest.raises(StoreError, match="open_logs"):
            forget(tmp_path, "customer_id", "customer_id-2", key=KEY, now=1)
        assert forget(tmp_path, "customer_id", "nobody", key=KEY, now=1).rows_removed == 0
        other.kill()
        other.wait()
    receipt = forget(tmp_path, "customer_id", "customer_id-2", key=KEY, now=1)
    assert [(change.rows_before, change.rows_after) for change in receipt.changes] == [(5, 4)]
    assert verify(tmp_path, receipt, "customer_id", "customer_id-2", key=KEY).good
