"""Small segments made into one file: rows, places, readers, stores and receipts are as before; kills, a full disk."""

import errno
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest

import vitok.decisions.segments as vitok_segments
from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.decisions import (
    DecisionLog,
    Hold,
    LogSchema,
    OutcomeLog,
    Tail,
    find,
    forget,
    hold,
    labels,
    query,
    read,
    redact,
    reseal,
    retain,
    sidecars,
    verify,
)
from vitok.decisions.merging import may_merge, merge
from vitok.decisions.parts import parts_of
from vitok.decisions.segments import segments
from vitok.decisions.shipping import ship
from vitok.decisions.transport import Collector, TopicLog, offsets
from vitok.engines.log_store import open_log_store
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError

KEY = b"a secret of sixteen bytes"
NOW = 30 * DAY


def names(folder, **span):
    return read(folder, columns=["request_id"], **span)["request_id"].to_list()


def wanted(n, start=0):
    return [f"r{at}" for at in range(start, start + n)]


@pytest.fixture
def write(schema, make_block):
    """Writes segments of some rows each, one an hour from the begin of day 1 on; row i is request r<i>."""

    def written(folder, n_segments, rows=3, *, start=0, shape=None, on_seal=None, every=HOUR, shared=False):
        with DecisionLog(folder, shape or schema, rows_per_segment=rows, on_seal=on_seal, shared=shared) as log:
            for at in range(start, start + n_segments):
                times = DAY + at * every + np.arange(rows)
                block = make_block(at * rows, rows, schema=shape or schema, event_time=times, ingest_time=times)
                log.append(block)
        return folder

    return written


def test_what_is_read_is_as_before(tmp_path, write):
    write(tmp_path, 30)
    before = read(tmp_path)
    found = [find(tmp_path, request_id=name) for name in wanted(90)]
    done = merge(tmp_path, now=NOW)
    assert (done.segments_before, done.segments_after, done.rows) == (30, 2, 90)
    assert str(done).startswith("30 sealed files with 90 rows and ")
    assert len(list(tmp_path.rglob("*.parquet"))) == len(list(tmp_path.rglob("*.ids.npy"))) == 2
    assert [one.name for one in segments(tmp_path)] == [
        "segment-00000001-00000024",
        "segment-00000025-00000030",
    ]
    assert [(one.first, one.number, one.merged) for one in segments(tmp_path)] == [(1, 24, True), (25, 30, True)]
    assert read(tmp_path).equals(before)
    assert [find(tmp_path, request_id=name) for name in wanted(90)] == found
    assert find(tmp_path, decision_id=found[40].decision_id) == found[40]
    assert names(tmp_path, since=DAY + 5 * HOUR, until=DAY + 6 * HOUR) == wanted(3, 15)
    # Again changes nothing, and what is written later gets numbers of its own.
    assert str(merge(tmp_path, now=NOW)) == "nothing to merge"
    write(tmp_path, 1, start=30)
    assert segments(tmp_path)[-1].number == 31
    assert names(tmp_path) == wanted(93)
    # A folder of an hour that has nothing left has gone.
    assert sorted(path.name for path in (tmp_path / "day=1970-01-02").iterdir()) == ["hour=00"]


def test_only_days_that_are_over_and_files_that_are_small(tmp_path, write):
    write(tmp_path, 30)
    assert merge(tmp_path, now=2 * DAY, older_than="1h").segments_before == 0
    assert merge(tmp_path, now=2 * DAY + HOUR, older_than="1h").segments_before == 24
    assert merge(tmp_path, now=NOW, rows=6).segments_after == 3
    assert [one.number - one.first for one in segments(tmp_path)] == [23, 1, 1, 1]
    # Files with more than half of the rows stay as they are.
    assert merge(tmp_path, now=NOW, rows=11).segments_before == 0
    # Those that are merged may be merged again, with places still in them.
    assert merge(tmp_path, now=NOW, rows=1_000).segments_after == 1
    assert [one.first for one in segments(tmp_path)] == [1, 25]
    assert Tail(tmp_path, [27, 1]).read()["request_id"].to_list() == wanted(11, 79)
    with pytest.raises(NotFound):
        merge(tmp_path / "none", now=NOW)
    with pytest.raises(InvalidInput, match="rows"):
        merge(tmp_path, now=NOW, rows=1)


def test_a_merge_ends_when_its_time_is_over(tmp_path, write):
    write(tmp_path, 72)
    assert not may_merge(tmp_path / "none", now=NOW)
    assert not may_merge(tmp_path, now=3 * DAY - 1)
    assert may_merge(tmp_path, now=3 * DAY)
    # One file is made in any case: so it comes to its end.
    done = [merge(tmp_path, now=NOW, seconds=0.0) for _ in range(4)]
    assert [(one.segments_before, one.segments_after, one.stopped) for one in done] == [(24, 1, True)] * 3 + [
        (0, 0, False)
    ]
    assert str(done[0]).endswith("bytes; there may be more")
    assert names(tmp_path) == wanted(216)
    assert not may_merge(tmp_path, now=NOW)


def test_other_columns_and_other_processes_stay_apart(tmp_path, schema, write):
    other = LogSchema("fraud", schema.entities, schema.request, ("count_1d",))
    write(tmp_path, 4)
    write(tmp_path, 4, start=4, shape=other)
    write(tmp_path, 4, start=8, shared=True)
    before = read(tmp_path)
    merge(tmp_path, now=NOW)
    assert [(one.first, one.number) for one in segments(tmp_path)] == [(1, 4), (5, 8), (100000001, 100000004)]
    assert read(tmp_path).equals(before)


def test_redacted_and_not_redacted_stay_apart(tmp_path, write):
    write(tmp_path, 4)
    hold(tmp_path, Hold(name="a", since=DAY + 2 * HOUR))
    assert redact(tmp_path, {"customer_id": "hash"}, age=1, now=NOW, key=KEY) == 2
    (tmp_path / "holds.json").unlink()
    merge(tmp_path, now=NOW)
    assert [(one.first, one.number) for one in segments(tmp_path)] == [(1, 2), (3, 4)]
    # What was not yet is redacted later, and then they fit.
    assert redact(tmp_path, {"customer_id": "hash"}, age=1, now=NOW, key=KEY) == 1
    merge(tmp_path, now=NOW)
    assert len(segments(tmp_path)) == 1
    assert redact(tmp_path, {"customer_id": "hash"}, age=1, now=NOW, key=KEY) == 0
    assert not read(tmp_path)["customer_id"].str.starts_with("customer").any()
    assert names(tmp_path) == wanted(12)


@pytest.mark.parametrize("most", [1, 2, 7, None])
def test_every_place_keeps_its_meaning(tmp_path, write, most):
    """From any place before the merge a tail goes on with the row that was next, and gives places that were before."""
    write(tmp_path, 8)
    places, tail = [], Tail(tmp_path)
    while tail.read(1) is not None:
        places.append(tail.position)
    standing = [Tail(tmp_path, place) for place in places]
    for tail in standing[::2]:
        # In the middle of a segment, with its file open; the others will open it.
        assert tail.read(1) is not None or tail is standing[-1]
    merge(tmp_path, now=NOW)
    for at, place in enumerate(places):
        fresh = Tail(tmp_path, place)
        for tail, first in ((fresh, at + 1), (standing[at], at + 1 + (at % 2 == 0))):
            seen = []
            while (frame := tail.read(most)) is not None:
                seen += frame["request_id"].to_list()
                assert tail.position == places[first + len(seen) - 1]
                if len(seen) < 24 - first:
                    assert tail.behind(1) == (places[first + len(seen) - frame.height],)
            assert seen == wanted(24 - first, first)


def test_places_across_deletions_before_and_after(tmp_path, write):
    """Rows go before the merge, after it, and whole segments of a merged file: a place still means the same row."""
    write(tmp_path / "decisions", 8)
    log = tmp_path / "decisions"
    before = {}
    tail = Tail(log)
    while (frame := tail.read(1)) is not None:
        before[frame["request_id"][0]] = tail.position
    gone, n = set(), 24

    def without(*rows):
        for row in rows:
            forget(tmp_path, "customer_id", f"customer_id-{row}", key=KEY, now=NOW)
            gone.add(f"r{row}")
        for name, place in before.items():
            left = [other for other in wanted(n - int(name[1:]) - 1, int(name[1:]) + 1) if other not in gone]
            tail, seen, last = Tail(log, place), [], place
            while (frame := tail.read(2)) is not None:
                seen += frame["request_id"].to_list()
                assert last < tail.position == before.get(seen[-1], tail.position)
                last = tail.position
            assert seen == left

    without(4, 6, 7, 8)
    merge(log, now=NOW)
    without()
    without(0, 13, 5, 22)
    without(3, 21, 23, 11)
    write(log, 2, start=8)
    n = 30
    assert Tail(log, before["r23"]).read()["request_id"].to_list() == wanted(6, 24)
    assert names(log) == [name for name in wanted(30) if name not in gone]
    merge(log, now=NOW)
    assert names(log) == [name for name in wanted(30) if name not in gone]
    without(9, 10)


def test_receipts_hold_and_nobody_comes_back(tmp_path, write):
    log = write(tmp_path / "decisions", 6)
    with OutcomeLog(tmp_path / "outcomes") as outcomes:
        outcomes.append([Outcome(request_id="r4", kind="fraud", value=1.0, event_time=1, ingest_time=DAY)])
    first = forget(tmp_path, "customer_id", "customer_id-4", key=KEY, now=NOW)
    merge(log, now=NOW)
    checked = verify(tmp_path, first, "customer_id", "customer_id-4", key=KEY)
    assert checked.good
    assert checked.changed_since == ()
    second = forget(tmp_path, "customer_id", "customer_id-5", key=KEY, now=NOW)
    assert [(one.segment, one.rows_before, one.rows_after) for one in second.changes] == [
        ("segment-00000001-00000006", 17, 16)
    ]
    assert verify(tmp_path, second, "customer_id", "customer_id-5", key=KEY).changed_since == ()
    # The segment of the first receipt has lost a row since.
    checked = verify(tmp_path, first, "customer_id", "customer_id-4", key=KEY)
    assert checked.good
    assert checked.changed_since == ("decisions/segment-00000002",)
    # A merge that was killed before it had removed what it merged leaves rows of whoever is forgotten then.
    merged = segments(log)[0].path
    left = merged.with_name("segment-00000001.parquet")
    write(tmp_path / "copy", 1)
    left.write_bytes(segments(tmp_path / "copy")[0].path.read_bytes())
    half = merged.with_name("segment-00000001-00000009.parquet.tmp")
    half.write_bytes(left.read_bytes())
    assert names(log) == [name for name in wanted(18) if name not in ("r4", "r5")]
    forget(tmp_path, "customer_id", "customer_id-0", key=KEY, now=NOW)
    assert not left.exists()
    assert not half.exists()
    assert names(log) == [name for name in wanted(18) if name not in ("r0", "r4", "r5")]


def test_a_deletion_that_was_killed_comes_first(tmp_path, write, monkeypatch):
    log = write(tmp_path / "decisions", 3)

    def killed(*_arguments, **_named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.forgetting.rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(tmp_path, "customer_id", "customer_id-4", key=KEY, now=NOW)
    with pytest.raises(Conflict, match="deletion was begun"):
        merge(log, now=NOW)
    receipt = forget(tmp_path, "customer_id", "customer_id-4", key=KEY, now=NOW)
    assert receipt.rows_removed == 1
    assert merge(log, now=NOW).segments_before == 3


def test_rows_go_by_the_age_of_their_segment(tmp_path, write):
    """A merged file keeps its rows no longer than the segments in it would have."""
    one, other = write(tmp_path / "one", 8), write(tmp_path / "other", 8)
    merge(one, now=NOW)
    for folder in (one, other):
        hold(folder, Hold(name="a", where={"request_id": "r1"}))
        done = retain(folder, "1d", now=2 * DAY + 4 * HOUR)
        assert (done.rows_removed, done.rows_held) == (11, 1)
    assert names(one) == names(other) == ["r1", *wanted(12, 12)]
    assert Tail(one, [2, 1]).read()["request_id"].to_list() == wanted(12, 12)
    (one / "holds.json").unlink()
    assert retain(one, "1d", now=NOW).segments_removed == 1
    assert segments(one) == []
    # The numbers of a merged file are not used again.
    write(one, 1, start=8)
    assert [part.number for part in segments(one)] == [9]


def test_outcomes_and_their_kinds(tmp_path):
    with OutcomeLog(tmp_path, rows_per_segment=2) as log:
        for at in range(6):
            time = DAY + at * HOUR
            log.append(
                [
                    Outcome(request_id=f"r{at}", kind=kind, value=at % 2, event_time=time, ingest_time=time)
                    for kind in ("fraud", "dispute")
                ]
            )
    before = labels(tmp_path, as_of=NOW, kind="fraud")
    assert merge(tmp_path, now=NOW).segments_after == 1
    assert labels(tmp_path, as_of=NOW, kind="fraud").equals(before)
    done = retain(tmp_path, "400d", now=2 * DAY + 3 * HOUR, by_kind={"dispute": "1d"})
    assert done.rows_removed == 3
    assert [part.rows for part in _parts(tmp_path)] == [1, 1, 1, 2, 2, 2]


def _parts(folder):
    (one,) = segments(folder)
    metadata = pq.read_metadata(one.path)
    return parts_of(metadata.metadata, number=one.number, rows=metadata.num_rows)


def test_a_store_notices_nothing(tmp_path, write):
    log = write(tmp_path / "decisions", 6)
    store = open_log_store(f"duckdb://{tmp_path}/store.duckdb")
    assert ship(log, store, "decisions") == 6
    write(log, 2, start=6)
    merge(log, now=NOW)
    # Only the two that it has not.
    assert [ship(log, store, "decisions", mirror=mirror) for mirror in (False, True, True)] == [2, 0, 0]
    forget(tmp_path, "customer_id", "customer_id-4", key=KEY, now=NOW)
    assert ship(log, store, "decisions") == 1
    merge(log, now=NOW)
    write(log, 1, start=8)
    merge(log, now=NOW)
    assert ship(log, store, "decisions") == 1
    rows = store.query("SELECT request_id FROM decisions ORDER BY request_id").to_pylist()
    assert sorted(row["request_id"] for row in rows) == sorted(name for name in wanted(27) if name != "r4")
    store.close()


def test_how_far_a_topic_was_read_is_kept(tmp_path, schema, make_block):
    url = "memory://merged"
    topic = TopicLog(url, schema)
    for at in range(4):
        topic.append([make_block(at, ingest_time=[DAY + at * HOUR])])
        with Collector(url, tmp_path) as collector:
            collector.step(timeout_seconds=0.01)
    before = offsets(tmp_path)
    assert sum(before.values()) == 4
    assert merge(tmp_path, now=NOW).segments_after == 1
    assert offsets(tmp_path) == before
    retain(tmp_path, "1d", now=NOW)
    assert segments(tmp_path) == []
    assert offsets(tmp_path) == before


def test_files_beside(tmp_path, write):
    def count(table, name):
        return {"n": f"{name} {table.num_rows}".encode()}

    write(tmp_path / "a", 4, on_seal=count)
    write(tmp_path / "b", 4, on_seal=count)
    merge(tmp_path / "a", now=NOW, on_seal=count)
    merge(tmp_path / "b", now=NOW)
    expected = [("segment-00000001-00000004", DAY, DAY + 3 * HOUR + 2, 12, b"segment-00000001-00000004 12")]
    assert list(sidecars(tmp_path / "a", "n")) == expected
    assert list(sidecars(tmp_path / "b", "n")) == []
    assert reseal(tmp_path / "b", "n", count) == 1
    assert list(sidecars(tmp_path / "b", "n")) == expected
    assert len(list(tmp_path.rglob("*.side"))) == 2


def test_a_full_disk_is_refused_and_leaves_nothing(tmp_path, write, monkeypatch):
    def full(*_arguments, **_named):
        raise OSError(errno.ENOSPC, "No space left on device")

    def count(table, name):
        return {"n": b"1"}

    write(tmp_path, 4, on_seal=count)
    before = sorted(path.name for path in tmp_path.rglob("segment-*"))
    for place in ("sync", "write_index", "write_sidecars", "pq.read_table"):
        with monkeypatch.context() as patch:
            patch.setattr(f"vitok.decisions.merging.{place}", full)
            with pytest.raises(StoreError, match="No space left"):
                merge(tmp_path, now=NOW, on_seal=count)
        assert sorted(path.name for path in tmp_path.rglob("segment-*")) == before
    # Where only the note of the merge finds no room, the merged file is there and nothing is doubled.
    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.rewriting.os.write", full)
        with pytest.raises(StoreError, match="No space left"):
            merge(tmp_path, now=NOW)
    assert len(list(tmp_path.rglob("*.parquet"))) == 5
    assert names(tmp_path) == wanted(12)
    assert merge(tmp_path, now=NOW).segments_before == 0
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert names(tmp_path) == wanted(12)


def test_a_segment_whose_sealing_is_not_done_stays(tmp_path, write):
    write(tmp_path, 3)
    path = tmp_path / "segment-00000002.arrows"
    path.write_bytes(b"")
    assert merge(tmp_path, now=NOW).segments_before == 0
    path.unlink()
    assert merge(tmp_path, now=NOW).segments_before == 3


def test_what_was_listed_before_is_read_after(tmp_path, write, monkeypatch):
    """A reader that has listed the folders reads each row once, whichever of them merge meanwhile."""
    write(tmp_path, 6)
    listed = segments(tmp_path)
    merge(tmp_path, now=NOW, rows=6)
    again = segments(tmp_path)
    merge(tmp_path, now=NOW)
    for old in (listed, again):
        for module in ("reading", "forgetting", "shipping", "transport"):
            monkeypatch.setattr(f"vitok.decisions.{module}.segments", lambda _folder, old=old: old)
        assert names(tmp_path) == wanted(18)
        assert names(tmp_path, since=DAY + 2 * HOUR, until=DAY + 3 * HOUR) == wanted(3, 6)
        assert find(tmp_path, request_id="r7").request_id == "r7"
        assert find(tmp_path, request_id="none") is None
        store = open_log_store(f"duckdb://{tmp_path}/{len(old)}.duckdb")
        assert ship(tmp_path, store, "decisions") == 6
        assert store.query("SELECT count(DISTINCT request_id) AS n, count(*) AS m FROM decisions").to_pylist() == [
            {"n": 18, "m": 18}
        ]
        store.close()


@pytest.mark.parametrize("at", [1, 3, 5, 7, 9])
def test_a_merge_while_the_folders_are_looked_through(tmp_path, write, monkeypatch, at):
    """Segments merge when some folders have been listed and others not: still all rows are found."""
    write(tmp_path, 6)
    real, calls = vitok_segments._names, []

    def names_of(folder):
        found = real(folder)
        calls.append(folder)
        if len(calls) == at:
            merge(tmp_path, now=NOW)
        return found

    monkeypatch.setattr(vitok_segments, "_names", names_of)
    found = segments(tmp_path)
    monkeypatch.undo()
    assert len(calls) > at
    assert [(one.first, one.number) for one in found] in ([(1, 6)], [(n, n) for n in range(1, 7)])
    monkeypatch.setattr("vitok.decisions.reading.segments", lambda _folder: found)
    assert names(tmp_path) == wanted(18)


def test_segments_longer_than_a_row_group(tmp_path, write):
    write(tmp_path, 4, rows=5_000)
    tail = Tail(tmp_path)
    assert tail.read(7_000).height == 7_000
    merge(tmp_path, now=NOW)
    metadata = pq.read_metadata(segments(tmp_path)[0].path)
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [8_192, 8_192, 3_616]
    assert tail.read(4_000)["request_id"].to_list() == wanted(4_000, 7_000)
    assert tail.position == (3, 1_000)
    assert tail.behind(3_500) == ((3, 500),)
    assert Tail(tmp_path, [3, 500]).read()["request_id"].to_list() == wanted(9_500, 10_500)
    assert tail.read()["request_id"].to_list() == wanted(9_000, 11_000)
    assert tail.position == (4, 5_000)


def test_readers_see_each_row_once_while_segments_merge(tmp_path, write):
    """Threads read, follow and look up all the time while a log is merged in many steps."""
    logs = tmp_path / "decisions"
    write(logs, 48)
    every = wanted(144)
    stop, failures = threading.Event(), []

    def watched(look):
        def run():
            while not stop.is_set():
                try:
                    found = look()
                except Exception as error:  # noqa: BLE001
                    failures.append(error)
                    return
                if found != every:
                    failures.append(found)
                    return

        return threading.Thread(target=run)

    def followed():
        tail, seen = Tail(logs), []
        while (frame := tail.read(50)) is not None:
            seen += frame["request_id"].to_list()
        tail.close()
        return seen

    sql = "SELECT request_id FROM decisions ORDER BY event_time"
    looks = [
        lambda: names(logs),
        followed,
        lambda: query(tmp_path, sql)["request_id"].to_list(),
        lambda: every if all(find(logs, request_id=f"r{at}") for at in range(0, 144, 29)) else [],
    ]
    threads = [watched(look) for look in looks]
    for thread in threads:
        thread.start()
    for rows in (6, 24, 96, 1_000):
        merge(logs, now=NOW, rows=rows)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(segments(logs)) == 2


KILLED = """if True:
    import json, os, signal, shutil, sys
    import pyarrow as pa
    from vitok.clock import DAY
    from vitok.decisions.merging import may_merge, merge
    source, top, step = sys.argv[1], sys.argv[2], int(sys.argv[3])

    def run(folder, told, at):
        n = 0
        def counted(real, name):
            def call(*arguments, **named):
                nonlocal n
                n += 1
                if n == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)
            return call
        for name in ("fsync", "unlink", "rename", "rmdir", "open"):
            setattr(os, name, counted(getattr(os, name), name))
        real_write = os.write
        os.write = counted(real_write, "write")
        pa.OSFile = counted(pa.OSFile, "parquet")
        merge(folder, now=30 * DAY, on_seal=lambda table, name: {"n": str(table.num_rows).encode()})
        real_write(told, b"done")

    at = 1
    while True:
        shutil.copytree(source, f"{top}/{at}")
        inbox, outbox = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inbox)
            run(f"{top}/{at}", outbox, at)
            os._exit(0)
        os.close(outbox)
        with os.fdopen(inbox, "rb") as file:
            done = file.read() == b"done"
        os.waitpid(child, 0)
        print(at, flush=True)
        if done:
            break
        at += step
"""


@pytest.mark.parametrize("step", [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_kill_at_every_call(tmp_path, write, step):
    """A merge is killed before each call of the system that it makes: rows are there once, and the next one ends it."""
    source = write(tmp_path / "source", 5, on_seal=lambda table, _name: {"n": str(table.num_rows).encode()})
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "runs"), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    runs = [int(line) for line in done.stdout.split()]
    assert len(runs) > 3
    for at in runs:
        folder = tmp_path / "runs" / str(at)
        assert names(folder) == wanted(15), at
        assert Tail(folder, [2, 1]).read()["request_id"].to_list() == wanted(11, 4), at
        assert sum(int(side.data) for side in sidecars(folder, "n")) == 15, at
        merge(folder, now=NOW, on_seal=lambda table, _name: {"n": str(table.num_rows).encode()})
        assert [one.name for one in segments(folder)] == ["segment-00000001-00000005"], at
        assert names(folder) == wanted(15), at
        assert sum(int(side.data) for side in sidecars(folder, "n")) == 15, at
        left = sorted(path.name for path in folder.rglob("segment-*"))
        assert left == [f"segment-00000001-00000005.{end}" for end in ("ids.npy", "n.side", "parquet")], at
        assert find(folder, request_id="r7").request_id == "r7", at
