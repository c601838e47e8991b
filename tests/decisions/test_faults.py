"""A full disk while segments are sealed or written anew, kills at every call of the system, damaged ends, clocks."""

import errno
import json
import subprocess
import sys

import pyarrow as pa
import pytest

from vitok.clock import DAY, HOUR
from vitok.decision import Outcome
from vitok.decisions import DecisionLog, OutcomeLog, Tail, forget, labels, read, receipts, redact, retain, verify
from vitok.decisions.rewriting import remove
from vitok.decisions.schema import decision_message
from vitok.decisions.segments import open_path, segments
from vitok.decisions.sidecars import sidecars
from vitok.decisions.transport import Collector, TopicLog, offsets
from vitok.engines import Outgoing, publish
from vitok.errors import StoreError

KEY = b"a secret of sixteen bytes"


def full(*_arguments, **_named):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return read(folder, columns=["request_id"])["request_id"].to_list()


def test_what_is_half_written_does_not_fill_a_full_disk(tmp_path, schema, make_block, monkeypatch):
    log = DecisionLog(tmp_path, schema)
    log.append(make_block(0, 5))
    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.sealing.sync", full)
        with pytest.raises(StoreError, match="No space left"):
            log.seal()
        assert not list(tmp_path.rglob("*.tmp"))
        assert names(tmp_path) == [f"r{n}" for n in range(5)]
    log.close()
    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.rewriting.sync", full)
        with pytest.raises(StoreError, match="No space left"):
            redact(tmp_path, {"customer_id": "hash"}, age=1, now=DAY, key=KEY)
    assert not list(tmp_path.rglob("*.tmp"))
    assert read(tmp_path)["customer_id"][0] == "customer_id-0"
    assert redact(tmp_path, {"customer_id": "hash"}, age=1, now=DAY, key=KEY) == 1


def test_a_missing_file_of_the_sealing_function_is_told(tmp_path, schema, make_block):
    def broken(table, name):
        raise FileNotFoundError(errno.ENOENT, "No such file", "profile.json")

    log = DecisionLog(tmp_path, schema, on_seal=broken)
    log.append(make_block(0, 2))
    with pytest.raises(StoreError, match=r"profile\.json"):
        log.seal()
    with pytest.raises(StoreError, match=r"profile\.json"):
        log.close()
    assert names(tmp_path) == ["r0", "r1"]


def test_a_log_that_could_not_be_opened_is_not_kept(tmp_path, schema, make_block):
    (tmp_path / "removed.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        DecisionLog(tmp_path, schema)
    (tmp_path / "removed.json").unlink()
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0))


def test_a_hole_in_the_middle_is_kept_for_who_can_mend_it(tmp_path, schema, make_block):
    """After a power cut blocks of a file may be zeros though later ones were written."""
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 2))
        before = open_path(tmp_path, 1).stat().st_size
        log.append(make_block(2, 2))
        middle = open_path(tmp_path, 1).stat().st_size
        log.append(make_block(4, 2))
        data = bytearray(open_path(tmp_path, 1).read_bytes())
    for part in segments(tmp_path):
        part.path.unlink()
    data[before:middle] = bytes(middle - before)
    open_path(tmp_path, 1).write_bytes(data)
    with DecisionLog(tmp_path, schema):
        pass
    assert names(tmp_path) == ["r0", "r1"]
    assert [path.read_bytes() for path in tmp_path.glob("*.damaged")] == [bytes(data)]
    open_path(tmp_path, 7).write_bytes(bytes(data[:before]) + bytes(100))
    with DecisionLog(tmp_path, schema):
        pass
    assert names(tmp_path) == ["r0", "r1"] * 2
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_what_was_hashed_may_be_dropped_later(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 2))
    for way, n in (("hash", 1), ("hash", 0), ("drop", 1), ("drop", 0), ("hash", 0)):
        assert redact(tmp_path, {"customer_id": way}, age=1, now=DAY, key=KEY) == n
    assert read(tmp_path)["customer_id"].to_list() == ["", ""]


def test_a_deletion_that_was_killed_is_told_whole_by_the_next(tmp_path, schema, make_block, monkeypatch):
    with DecisionLog(tmp_path / "decisions", schema, rows_per_segment=4) as log:
        log.append(make_block(0, 4, entities=[["a", "b", "a", "b"]]))
        log.append(make_block(4, 4, entities=[["a", "b", "c", "c"]]))
    with OutcomeLog(tmp_path / "outcomes") as log:
        log.append([Outcome(request_id=f"r{n}", kind="fraud", value=1.0, event_time=5) for n in range(8)])
    calls = []
    real = forget.__globals__["rewrite"]

    def killed(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.forgetting.rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(tmp_path, "customer_id", "a", key=KEY, now=1)
    assert receipts(tmp_path) == ()
    # Another subject is no part of it.
    assert forget(tmp_path, "customer_id", "c", key=KEY, now=2).rows_removed == 4
    with monkeypatch.context() as patch:
        real_write = forget.__globals__["write_file"]
        patch.setattr(
            "vitok.decisions.forgetting.write_file",
            lambda path, data: full() if path.suffix == ".jsonl" else real_write(path, data),
        )
        with pytest.raises(StoreError, match="No space left"):
            forget(tmp_path, "customer_id", "a", key=KEY, now=3)
    receipt = forget(tmp_path, "customer_id", "a", key=KEY, now=4)
    assert receipt.rows_removed == 6
    assert len(receipt.requests) == 3
    assert [change.log for change in receipt.changes] == ["outcomes", "decisions", "decisions"]
    assert verify(tmp_path, receipt, "customer_id", "a", key=KEY).good
    assert [one.rows_removed for one in receipts(tmp_path)] == [4, 6]
    assert not (tmp_path / "forgetting.json").exists()
    with OutcomeLog(tmp_path / "outcomes") as log:
        log.append([Outcome(request_id="r0", kind="fraud", value=0.0, event_time=6)])
    assert verify(tmp_path, receipt, "customer_id", "a", key=KEY).outcomes_found == 1
    left = next((tmp_path / "decisions").rglob("*.parquet"))
    left.with_name(left.name + ".tmp").write_bytes(b"rows of b")
    forget(tmp_path, "customer_id", "b", key=KEY, now=5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_removed_segments_leave_the_offsets_of_a_topic(tmp_path, schema, make_block):
    url = "memory://decisions-faults"
    topic = TopicLog(url, schema)
    for start in (0, 3):
        topic.append([make_block(start, 3)])
        with Collector(url, tmp_path) as collector:
            assert collector.step(timeout_seconds=0.1) == 3
    remove(tmp_path, segments(tmp_path)[-1].path)
    assert offsets(tmp_path) == {0: 2}
    assert retain(tmp_path, 1, now=DAY).rows_removed == 3
    with Collector(url, tmp_path) as collector:
        assert collector.step(timeout_seconds=0.01) == 0
        topic.append([make_block(6, 3)])
        assert collector.step(timeout_seconds=0.1) == 3
    assert names(tmp_path) == ["r6", "r7", "r8"]


def test_a_message_of_other_columns_does_not_stop_the_log(tmp_path, schema, make_block):
    """It tells a schema that it does not have, or holds texts that are none."""
    url = "memory://decisions-foreign"
    topic = TopicLog(url, schema)
    arrow = topic._maker.arrow
    foreign = pa.table({"a": [1]}).replace_schema_metadata(arrow.metadata)
    good = pa.ipc.open_stream(topic._head + decision_message(make_block(0, 1), schema, topic._maker)).read_all()
    at = arrow.get_field_index("request_id")
    broken = pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe"))
    broken = good.set_column(at, arrow.field(at), broken)
    for table in (foreign, broken):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        publish(url, [Outgoing(None, sink.getvalue().to_pybytes())])
    topic.append([make_block(0, 2)])
    with Collector(url, tmp_path) as collector:
        assert collector.step(timeout_seconds=0.1) == 2
        assert collector.n_quarantined == 2
    assert names(tmp_path) == ["r0", "r1"]
    assert all(part.sealed for part in segments(tmp_path))


def test_a_clock_that_is_set_back_does_not_reorder_what_was_learned(tmp_path):
    times = [10 * DAY, 10 * DAY - HOUR // 2, 7 * DAY]

    class Clock:
        def now(self):
            return times.pop(0)

    with OutcomeLog(tmp_path, clock=Clock()) as log:
        for name, value in (("r1", 1.0), ("r1", 0.0), ("r2", 1.0)):
            log.append([Outcome(request_id=name, kind="fraud", value=value, event_time=5, supersedes=value == 0)])
    assert labels(tmp_path, as_of=10 * DAY, kind="fraud").select("request_id", "label").rows() == [
        ("r2", 1.0),
        ("r1", 0.0),
    ]
    # A clock that is set back by days was wrong before: what is learned from then on has the time that it tells.
    assert labels(tmp_path, as_of=7 * DAY, kind="fraud")["request_id"].to_list() == ["r2"]


KILLED = """if True:
    import importlib.util, json, os, signal, sys
    spec = importlib.util.spec_from_file_location("blocks", sys.argv[1])
    blocks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blocks)
    import pyarrow as pa
    from vitok.decisions import DecisionLog, writer
    from vitok.clock import HOUR
    top, step = sys.argv[2], int(sys.argv[3])

    def run(folder, told, at):
        n = 0
        def counted(real, name):
            def call(*arguments, **named):
                nonlocal n
                n += 1
                if n == at:
                    os.write(told, (json.dumps({"phase": name}) + "\\n").encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)
            return call
        real_write = os.write
        for name in ("fsync", "unlink", "rename", "mkdir", "ftruncate", "open"):
            setattr(os, name, counted(getattr(os, name), name))
        writer._sync = counted(os.fdatasync, "fdatasync")
        pa.OSFile = counted(pa.OSFile, "parquet")
        os.write = lambda fd, data: counted_write(fd, data) if fd != told else real_write(fd, data)
        counted_write = counted(real_write, "write")
        log = DecisionLog(folder, blocks.SCHEMA, durability="fsync", rows_per_segment=6,
                          on_seal=lambda table, name: {"n": str(table.num_rows).encode()})
        for start in range(0, 15, 3):
            log.append(blocks.block_of(start, 3, ingest_time=[start // 6 * HOUR] * 3))
            real_write(told, (json.dumps({"told": start + 3}) + "\\n").encode())
        log.seal()
        log.close()
        real_write(told, (json.dumps({"calls": n}) + "\\n").encode())

    at = 1
    while True:
        inbox, outbox = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(inbox)
            run(f"{top}/{at}", outbox, at)
            os._exit(0)
        os.close(outbox)
        with os.fdopen(inbox, "rb") as file:
            lines = [json.loads(line) for line in file.read().splitlines()]
        os.waitpid(child, 0)
        print(json.dumps({"at": at, "lines": lines}), flush=True)
        if lines and "calls" in lines[-1]:
            break
        at += step
"""


@pytest.mark.parametrize("step", [pytest.param(13, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def test_kill_at_every_call(tmp_path, schema, step):
    """A writer is killed before each call of the system that it makes: nothing acknowledged is lost or doubled."""
    conftest = __file__.replace("test_faults.py", "conftest.py")
    command = [sys.executable, "-c", KILLED, conftest, str(tmp_path), str(step)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    phases = {line["phase"] for run in runs for line in run["lines"] if "phase" in line}
    if step == 1:
        assert phases == {*("open", "write", "ftruncate", "fdatasync", "fsync", "rename", "unlink", "mkdir", "parquet")}
    for run in runs:
        folder = tmp_path / str(run["at"])
        told = max((line.get("told", 0) for line in run["lines"]), default=0)
        if not folder.is_dir() or (not told and not segments(folder)):
            continue
        before = Tail(folder).read()
        before = [] if before is None else before["request_id"].to_list()
        with DecisionLog(folder, schema, on_seal=lambda table, name: {"n": str(table.num_rows).encode()}):
            pass
        after = names(folder)
        assert after == before == [f"r{n}" for n in range(len(after))], run
        assert told <= len(after) <= told + 3, run
        parts = segments(folder)
        assert all(part.sealed for part in parts), run
        assert not list(folder.glob("*.damaged")), run
        assert sum(int(side.data) for side in sidecars(folder, "n")) == len(after), run
        assert not [path for path in folder.rglob("*.parquet.tmp") if path.with_suffix("").exists()], run
