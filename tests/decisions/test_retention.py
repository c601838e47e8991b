"""Rows that go by age, that a hold keeps, and columns that are hashed or dropped; readers keep their places."""

import math

import pytest

from vitok import decisions
from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.decisions import DecisionLog, Hold, OutcomeLog, Tail, find, hold, holds, read, redact, release, retain
from vitok.decisions.retention import keyed
from vitok.decisions.segments import segments
from vitok.errors import InvalidInput, NotFound, StoreError

KEY = b"a secret of sixteen bytes"


def hourly(folder, schema, make_block, n=4, rows=3):
    """Writes a segment an hour, of rows that came in that hour."""
    with DecisionLog(folder, schema, on_seal=lambda table, name: {"n": str(table.num_rows).encode()}) as log:
        for hour in range(n):
            start = hour * rows
            log.append(make_block(start, rows, event_time=[hour * HOUR] * rows, ingest_time=[hour * HOUR + 5] * rows))
            log.seal()


def names(folder):
    return read(folder, columns=["request_id"])["request_id"].to_list()


def test_old_segments_go_and_held_ones_stay(tmp_path, schema, make_block):
    hourly(tmp_path, schema, make_block)
    tail = Tail(tmp_path, [1, 1])
    hold(tmp_path, Hold(name="incident-7", reason="chargebacks", since=HOUR, until=2 * HOUR))
    hold(tmp_path, Hold(name="case", where={"customer_id": "customer_id-1"}))
    done = retain(tmp_path, HOUR, now=4 * HOUR + 4)
    assert (done.segments_removed, done.segments_rewritten, done.rows_removed, done.rows_held) == (1, 1, 5, 4)
    assert names(tmp_path) == ["r1", "r3", "r4", "r5", "r9", "r10", "r11"]
    # Row 1 of segment 1 keeps its number, though rows 0 and 2 are gone.
    assert tail.read()["request_id"].to_list() == ["r1", "r3", "r4", "r5", "r9", "r10", "r11"]
    assert Tail(tmp_path, [1, 2]).read()["request_id"].to_list()[0] == "r3"
    assert find(tmp_path, request_id="r0") is None
    assert find(tmp_path, request_id="r1").latency_us == 1
    # The rewritten segment lost its file; the others have theirs, and those of removed ones are gone.
    found = {side.segment[-1]: side.data for side in decisions.sidecars(tmp_path, "n")}
    assert found == {"2": b"3", "4": b"3"}
    assert not list(tmp_path.rglob("segment-00000003*"))
    assert not list((tmp_path / "day=1970-01-01").glob("hour=02"))
    assert [one.name for one in holds(tmp_path)] == ["incident-7", "case"]
    for name in ("incident-7", "case"):
        release(tmp_path, name)
    assert retain(tmp_path, HOUR, now=4 * HOUR + 4).rows_removed == 4
    assert retain(tmp_path, HOUR, now=4 * HOUR + 4).rows_removed == 0
    assert names(tmp_path) == ["r9", "r10", "r11"]


def test_numbers_of_removed_segments_are_not_used_anew(tmp_path, schema, make_block):
    hourly(tmp_path, schema, make_block, n=2)
    tail = Tail(tmp_path)
    assert tail.read().height == 6
    assert retain(tmp_path, 1, now=DAY).segments_removed == 2
    assert not segments(tmp_path)
    assert names(tmp_path) == []
    with DecisionLog(tmp_path, schema) as log:
        assert log.append(make_block(6)).segment == 3
        assert tail.read()["request_id"].to_list() == ["r6"]


def test_kinds_have_times_of_their_own(tmp_path, schema, make_block):
    rows = [("a", "click", 1), ("b", "fraud", 1), ("c", "click", 2), ("d", "click", 20), ("e", "fraud", 20)]
    with OutcomeLog(tmp_path) as log:
        for group in (rows[:3], rows[3:]):
            made = [Outcome(request_id=n, kind=k, value=1.0, event_time=1, ingest_time=d * DAY) for n, k, d in group]
            log.append(made)
            log.seal()
    # The newest click of the first segment is of day 2.
    assert retain(tmp_path, "90d", now=7 * DAY, by_kind={"click": "5d"}).rows_removed == 0
    done = retain(tmp_path, "90d", now=8 * DAY, by_kind={"click": "5d"})
    assert (done.segments_rewritten, done.rows_removed) == (1, 2)
    assert names(tmp_path) == ["b", "d", "e"]
    assert retain(tmp_path, "90d", now=92 * DAY, by_kind={"click": "5d"}).rows_removed == 2
    assert names(tmp_path) == ["e"]
    hourly(tmp_path / "decisions", schema, make_block, n=1)
    with pytest.raises(InvalidInput, match="by_kind"):
        retain(tmp_path / "decisions", "1d", now=0, by_kind={"click": "5d"})


def test_personal_columns_are_hashed_or_dropped(tmp_path, schema, make_block):
    hourly(tmp_path, schema, make_block, n=2)
    before = read(tmp_path)
    ways = {"customer_id": "hash", "channel": "drop", "f_mean_1d": "drop", "amount": "drop", "unknown": "drop"}
    hold(tmp_path, Hold(name="case", since=HOUR))
    # One segment is too young, and is then held.
    assert redact(tmp_path, ways, age=HOUR, now=HOUR + 6, key=KEY) == 1
    assert redact(tmp_path, ways, age=HOUR, now=DAY, key=KEY) == 0
    release(tmp_path, "case")
    assert redact(tmp_path, ways, age=HOUR, now=DAY, key=KEY) == 1
    # A second time does not hash hashes.
    assert redact(tmp_path, {"customer_id": "hash"}, age=HOUR, now=DAY, key=KEY) == 0
    after = read(tmp_path)
    assert after.schema == before.schema
    assert after["customer_id"].to_list() == [keyed(KEY, text) for text in before["customer_id"]]
    assert after["channel"].to_list() == after["amount"].to_list() == [None] * 6
    assert all(math.isnan(value) for value in after["f_mean_1d"])
    changed = ("customer_id", "channel", "amount", "f_mean_1d")
    assert after.drop(changed).equals(before.drop(changed), null_equal=True)
    assert find(tmp_path, request_id="r4").entities == {"customer_id": keyed(KEY, "customer_id-4")}


def test_wrong_input(tmp_path, schema, make_block):
    hourly(tmp_path, schema, make_block, n=1)
    with pytest.raises(InvalidInput, match="16 secret bytes"):
        redact(tmp_path, {"customer_id": "hash"}, age=1, now=DAY, key=b"short")
    with pytest.raises(InvalidInput, match="hash"):
        redact(tmp_path, {"customer_id": "blur"}, age=1, now=DAY, key=KEY)
    with pytest.raises(InvalidInput, match="columns"):
        redact(tmp_path, {"event_time": "drop"}, age=1, now=DAY, key=KEY)
    with pytest.raises(InvalidInput, match="Drop it instead"):
        redact(tmp_path, {"amount": "hash"}, age=1, now=DAY, key=KEY)
    with pytest.raises(InvalidInput, match="name"):
        hold(tmp_path, Hold(name=""))
    with pytest.raises(InvalidInput, match="until"):
        hold(tmp_path, Hold(name="a", since=5, until=5))
    with pytest.raises(NotFound, match="hold"):
        release(tmp_path, "a")
    for call in (lambda folder: retain(folder, 1, now=0), lambda folder: hold(folder, Hold(name="a"))):
        with pytest.raises(NotFound, match="log"):
            call(tmp_path / "none")
    assert read(tmp_path).height == 3
    (tmp_path / "holds.json").write_text("{")
    with pytest.raises(StoreError, match="nothing is deleted"):
        retain(tmp_path, 1, now=DAY)
    assert read(tmp_path).height == 3
