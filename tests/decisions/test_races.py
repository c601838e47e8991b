"""What happens between two looks at a folder: segments begun and sealed, written anew, removed, while others read."""

import json
import os

import pytest

from vitok import decisions
from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.decisions import DecisionLog, Hold, OutcomeLog, Tail, find, forget, hold, labels, query, read, redact, retain
from vitok.decisions import segments as segments_module
from vitok.decisions.rewriting import maintained
from vitok.decisions.segments import open_path, segments
from vitok.decisions.shipping import ship
from vitok.decisions.sidecars import reseal
from vitok.engines.log_store import open_log_store
from vitok.errors import StoreError

KEY = b"a secret of sixteen bytes"


def counted(table, name):
    return {"n": str(table.num_rows).encode()}


def hourly(folder, schema, make_block, n=3, rows=3):
    """Writes a segment an hour, of rows that came in that hour."""
    with DecisionLog(folder, schema, on_seal=counted) as log:
        for hour in range(n):
            times = [hour * HOUR] * rows
            log.append(make_block(hour * rows, rows, event_time=times, ingest_time=times))
            log.seal()


def names(folder):
    return read(folder, columns=["request_id"])["request_id"].to_list()


def once(monkeypatch, target, act, *, after=False):
    """Has something happen at the first call of a function."""
    module, name = target.rsplit(".", 1)
    real = pytest.importorskip(module).__dict__[name]
    done = []

    def wrapped(*arguments, **named):
        first = not done
        done.append(1)
        if first and not after:
            act()
        found = real(*arguments, **named)
        if first and after:
            act()
        return found

    monkeypatch.setattr(target, wrapped)


def test_no_segment_is_missed_before_one_that_is_listed(tmp_path, schema, make_block, monkeypatch):
    """Two segments are begun and sealed while folders are looked through: the earlier where the look was already."""
    hourly(tmp_path, schema, make_block, n=2)
    log = DecisionLog(tmp_path, schema)
    real = segments_module._names
    looked = []

    def listing(folder):
        found = real(folder)
        if "hour=" in folder and not looked:
            looked.append(folder)
            this = int(folder[-2:])
            for hour in (this, 1 - this):
                start = 6 + 3 * len(looked)
                looked.append(folder)
                log.append(make_block(start, 3, ingest_time=[hour * HOUR] * 3))
                log.seal()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(segments_module, "_names", listing)
        found = [part.number for part in segments(tmp_path)]
    assert found == list(range(1, len(found) + 1))
    assert [part.number for part in segments(tmp_path)] == [1, 2, 3, 4]
    log.close()


@pytest.mark.parametrize("how", ["forget", "redact", "retain"])
def test_rows_are_read_though_their_segment_is_changed(tmp_path, schema, make_block, monkeypatch, how):
    """Between the look at a footer and that at the rows another file takes the place, or none."""
    folder = tmp_path / "decisions"
    hourly(folder, schema, make_block, rows=200)
    before = names(folder)

    def change():
        if how == "forget":
            forget(tmp_path, "customer_id", "customer_id-250", key=KEY, now=DAY)
        elif how == "redact":
            assert redact(folder, {"customer_id": "hash", "channel": "drop"}, age=1, now=DAY, key=KEY) == 3
        else:
            assert retain(folder, HOUR, now=DAY).segments_removed == 3

    once(monkeypatch, "vitok.decisions.reading._chosen", change)
    found = read(folder)["request_id"].to_list()
    assert found[:200] == before[:200]
    assert set(found) <= set(before)
    left = {"forget": 599, "redact": 600, "retain": 0}[how]
    assert len(names(folder)) == left
    assert len(read(folder, since=HOUR)) == max(0, left - 200)


def test_a_segment_that_went_since_the_listing_is_no_failure(tmp_path, schema, make_block, monkeypatch):
    folder = tmp_path / "decisions"
    hourly(folder, schema, make_block)
    listed = segments(folder)
    store = open_log_store(f"duckdb://{tmp_path}/log.duckdb")
    assert ship(folder, store, "decisions") == 3
    assert retain(folder, DAY, now=DAY + 5).segments_removed == 1
    with monkeypatch.context() as patch:
        for function in (read, decisions.sidecars, ship):
            patch.setitem(function.__globals__, "segments", lambda _: listed)
        assert names(folder) == [f"r{n}" for n in range(3, 9)]
        assert find(folder, request_id="r1") is None
        assert [side.segment[-1] for side in decisions.sidecars(folder, "n")] == ["2", "3"]
        assert ship(folder, store, "decisions", mirror=True) == 1
    assert store.query("SELECT count(*) AS n FROM decisions").to_pylist() == [{"n": 6}]
    store.close()


def test_sql_over_segments_that_go_meanwhile(tmp_path, schema, make_block, monkeypatch):
    folder = tmp_path / "decisions"
    hourly(folder, schema, make_block)
    once(monkeypatch, "vitok.decisions.sql._make_view", lambda: retain(folder, DAY, now=DAY + 5), after=True)
    assert query(tmp_path, "SELECT count(*) AS n, min(request_id) AS first FROM decisions").rows() == [(6, "r3")]


def test_files_beside_a_segment_are_not_those_of_its_earlier_rows(tmp_path, schema, make_block):
    """Rows are deleted while another process makes the files of them."""
    folder = tmp_path / "decisions"
    hourly(folder, schema, make_block, n=1)
    seen = []

    def summed(table, name):
        seen.append(table.num_rows)
        if len(seen) == 1:
            forget(tmp_path, "customer_id", "customer_id-1", key=KEY, now=DAY)
        return {"rows": ",".join(table.column("request_id").to_pylist()).encode()}

    assert reseal(folder, "rows", summed) == 1
    assert seen == [3, 2]
    assert [side.data for side in decisions.sidecars(folder, "rows")] == [b"r0,r2"]


def test_a_hold_does_not_come_while_rows_are_deleted(tmp_path, schema, make_block):
    hourly(tmp_path, schema, make_block)
    with maintained(tmp_path), pytest.raises(StoreError, match="try again"):
        hold(tmp_path, Hold(name="case"))
    hold(tmp_path, Hold(name="case"))
    assert retain(tmp_path, 1, now=DAY).rows_held == 9


def test_forgetting_waits_for_retention_before_anything_is_deleted(tmp_path, schema, make_block):
    hourly(tmp_path / "decisions", schema, make_block)
    with OutcomeLog(tmp_path / "outcomes") as log:
        log.append([Outcome(request_id="r1", kind="fraud", value=1.0, event_time=5)])
    with maintained(tmp_path / "decisions"), pytest.raises(StoreError, match="try again"):
        forget(tmp_path, "customer_id", "customer_id-1", key=KEY, now=DAY)
    assert names(tmp_path / "outcomes") == ["r1"]
    assert forget(tmp_path, "customer_id", "customer_id-1", key=KEY, now=DAY).rows_removed == 2


def test_rows_that_went_do_not_come_back_from_an_open_form(tmp_path, schema, make_block):
    """A process is killed right after a sealing, before it removes the open form; then the rows are deleted."""
    folder = tmp_path / "decisions"
    log = DecisionLog(folder, schema)
    log.append(make_block(0, 3))
    left = open_path(folder, 1).read_bytes()
    log.close()
    other = DecisionLog(folder, schema, shared=True)
    open_path(folder, 1).write_bytes(left)
    assert retain(folder, 1, now=DAY).segments_removed == 1
    other.close()
    with DecisionLog(folder, schema):
        pass
    assert names(folder) == []
    assert Tail(folder).read() is None


def test_a_fork_does_not_write_the_log_of_its_parent(tmp_path, schema, make_block):
    log = DecisionLog(tmp_path, schema)
    log.append(make_block(0, 3))
    inbox, outbox = os.pipe()
    block = make_block(9)
    child = os.fork()
    if child == 0:
        told = []
        for call in (lambda: log.append(block), log.seal, log.close):
            try:
                call()
                told.append("done")
            except StoreError as error:
                told.append(str(error))
        os.write(outbox, json.dumps(told).encode())
        os._exit(0)
    os.close(outbox)
    with os.fdopen(inbox, "rb") as file:
        told = json.loads(file.read())
    os.waitpid(child, 0)
    assert ["open the log after the fork" in text for text in told] == [True, True, False]
    assert told[2] == "done"
    # The open segment is still that of the parent.
    assert open_path(tmp_path, 1).exists()
    log.append(make_block(3, 1))
    log.close()
    assert names(tmp_path) == ["r0", "r1", "r2", "r3"]


def test_only_segments_of_the_span_are_read(tmp_path, schema, make_block, monkeypatch):
    hourly(tmp_path / "decisions", schema, make_block, n=5)
    with OutcomeLog(tmp_path / "outcomes") as log:
        for hour in range(5):
            one = Outcome(request_id=f"r{3 * hour}", kind="fraud", value=1.0, event_time=5, ingest_time=hour * HOUR + 9)
            log.append([one])
            log.seal()
    opened = []
    real = decisions.reading._parquet
    monkeypatch.setattr("vitok.decisions.reading._parquet", lambda source: opened.append(source) or real(source))
    folder = tmp_path / "decisions"
    found = read(folder, since=2 * HOUR, until=3 * HOUR)
    assert (found["request_id"].to_list(), len(opened)) == (["r6", "r7", "r8"], 1)
    assert found.schema == read(folder).schema
    opened.clear()
    assert read(folder, since=50 * HOUR).schema == found.schema
    assert read(folder, since=50 * HOUR, columns=["f_mean_1d"]).shape == (0, 1)
    assert not opened
    label = labels(tmp_path / "outcomes", as_of=3 * HOUR, kind="fraud", weights=folder, since=HOUR)
    assert label.select("request_id", "weight").rows() == [("r3", 1.0), ("r6", 1.0)]
    assert len(opened) == 2 + 4
    assert labels(tmp_path / "outcomes", as_of=2**63 - 1, kind="fraud").height == 5
