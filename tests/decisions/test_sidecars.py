"""Files beside a segment: there before the segment is sealed, whole, made anew where they lack, and found by time."""

import threading

import polars as pl
import pytest

from vitok import decisions
from vitok.decision import Outcome
from vitok.decisions import DecisionLog, OutcomeLog
from vitok.decisions.segments import segments
from vitok.decisions.sidecars import side_path
from vitok.errors import InvalidInput, NotFound, StoreError


def summed(table, name):
    frame = pl.from_arrow(table)
    return {"sum": f"{name}:{frame['f_count_1d'].sum():.0f}".encode(), "n": str(len(frame)).encode()}


def test_files_are_made_at_the_seal_and_found_by_event_time(tmp_path, schema, make_block):
    threads = []

    def hook(table, name):
        threads.append(threading.current_thread().name)
        assert "segment-" in name
        assert not list(tmp_path.rglob(f"{name}.parquet")), "the segment counts as sealed only with its files"
        assert {"f_count_1d", "f_mean_1d", "event_time", "system"} <= set(table.column_names)
        return summed(table, name)

    with DecisionLog(tmp_path, schema, rows_per_segment=10_000, on_seal=hook) as log:
        for start in range(0, 30_000, 1000):
            log.append(make_block(start, 1000))
        log.seal()
        assert [found.segment for found in log.sidecars("sum")] == [f"segment-0000000{n}" for n in (1, 2, 3)]
        log.append(make_block(30_000, 5))
        live = list(decisions.sidecars(tmp_path, "n", live=summed))
        assert [found.data for found in live] == [b"10000", b"10000", b"10000", b"5"]
        assert len(list(log.sidecars("n"))) == 3
    assert set(threads) == {"vitok-seal_0"}
    found = list(decisions.sidecars(tmp_path, "sum"))
    assert [part.data for part in found[:2]] == [b"segment-00000001:49995000", b"segment-00000002:149995000"]
    assert (found[1].first, found[1].last, found[1].rows) == (10_000_000, 19_999_000, 10_000)
    spans = [(None, 10_000_000), (9_999_000, 10_000_000), (10_000_000, 10_000_001), (19_999_001, None)]
    names = [[part.segment[-1] for part in decisions.sidecars(tmp_path, "sum", since=a, until=b)] for a, b in spans]
    assert names == [["1"], ["1"], ["2"], ["3", "4"]]
    assert not list(tmp_path.rglob("*.tmp"))


def test_reseal_makes_what_lacks(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 4))
        log.seal()
        with pytest.raises(InvalidInput, match="on_seal"):
            log.reseal("sum")
    with DecisionLog(tmp_path, schema, on_seal=summed) as log:
        log.append(make_block(4, 4))
        log.seal()
        assert len(list(log.sidecars("sum"))) == 1
        assert log.reseal("sum") == 1
        assert log.reseal("sum") == 0
        assert [part.data for part in log.sidecars("sum")] == [b"segment-00000001:6", b"segment-00000002:22"]
        assert [part.data for part in log.sidecars("n")] == [b"4"], "only the kind that was asked for"
    assert decisions.reseal(tmp_path, "n", summed) == 1
    with pytest.raises(NotFound):
        decisions.reseal(tmp_path / "none", "n", summed)
    with pytest.raises(NotFound):
        list(decisions.sidecars(tmp_path / "none", "n"))


def test_a_hook_that_fails_keeps_the_rows_and_no_other_segment(tmp_path, schema, make_block):
    def hook(table, name):
        if name == "segment-00000001":
            raise KeyError("no such column")
        return {"n": b""}

    log = DecisionLog(tmp_path, schema, on_seal=hook)
    log.append(make_block(0, 2))
    with pytest.raises(StoreError, match="no such column"):
        log.seal()
    log.append(make_block(2, 2))
    with pytest.raises(StoreError, match="was not sealed"):
        log.close()
    assert [part.sealed for part in segments(tmp_path)] == [False, True]
    assert decisions.read(tmp_path).height == 4
    DecisionLog(tmp_path, schema, on_seal=summed).close()
    assert [part.sealed for part in segments(tmp_path)] == [True, True]
    assert [part.data for part in decisions.sidecars(tmp_path, "n")] == [b"2", b""]


def test_bad_contents(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.append([Outcome(request_id="a", kind="k", value=1.0, event_time=5, ingest_time=5)])
    with pytest.raises(InvalidInput, match="kind"):
        decisions.reseal(tmp_path, "../n", summed)
    with pytest.raises(InvalidInput, match="bytes"):
        decisions.reseal(tmp_path, "n", lambda table, name: {"n": 5})
    with pytest.raises(InvalidInput, match="kind"):
        decisions.reseal(tmp_path, "n", lambda table, name: {"N": b""})
    assert decisions.reseal(tmp_path, "n", lambda table, name: {"n": b"good"}) == 1
    path = side_path(segments(tmp_path)[0].path, "n")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="reseal"):
        list(decisions.sidecars(tmp_path, "n"))
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="reseal"):
        list(decisions.sidecars(tmp_path, "n"))
