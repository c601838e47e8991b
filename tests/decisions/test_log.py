"""What a writer promises: order, positions, one writer, nothing half written, nothing lost on a full disk."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import polars as pl
import pytest

from vitok.decision import Outcome
from vitok.decisions import DecisionLog, LogSchema, OutcomeBlock, OutcomeLog, Position, Tail, read
from vitok.decisions import segments as layout
from vitok.decisions.segments import sealed_path, segments
from vitok.errors import InvalidInput, StoreError


def requests(folder) -> list[str]:
    return read(folder, columns=["request_id"])["request_id"].to_list()


def names(n: int) -> list[str]:
    return [f"r{i}" for i in range(n)]


def test_positions_segments_and_order(tmp_path, schema, make_block):
    log = DecisionLog(tmp_path, schema, rows_per_segment=10)
    assert log.position == Position(1, 0)
    assert not segments(tmp_path)
    assert log.append(make_block(0, 0)) == Position(1, 0)
    assert log.append(make_block(0, 6)) == Position(1, 6)
    assert log.append(make_block(6, 6)) == Position(2, 0)
    assert log.append(make_block(12, 3)) == log.position == Position(2, 3)
    assert requests(tmp_path) == names(15)
    log.close()
    log.close()
    assert [(part.number, part.sealed) for part in segments(tmp_path)] == [(1, True), (2, True)]
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.arrows"))
    assert requests(tmp_path) == names(15)
    with pytest.raises(StoreError, match="closed"):
        log.append(make_block(15))


def test_restart_opens_a_new_segment(tmp_path, schema, make_block):
    for start in range(3):
        with DecisionLog(tmp_path, schema) as log:
            assert log.position == Position(start + 1, 0)
            log.append(make_block(start))
    with DecisionLog(tmp_path, schema) as log:
        assert log.position == Position(4, 0)
    assert len(segments(tmp_path)) == 3
    assert requests(tmp_path) == names(3)


@pytest.mark.parametrize("durability", ["process", "fsync"])
def test_sealed_rows_equal_open_rows(tmp_path, schema, make_block, durability):
    with DecisionLog(tmp_path, schema, durability=durability) as log:
        for start in range(0, 40, 4):
            log.append(make_block(start, 4))
        before = read(tmp_path)
    after = read(tmp_path)
    assert before.schema == after.schema
    assert before.schema["event_time"] == pl.Datetime("us", "UTC")
    assert before.equals(after, null_equal=True)


def test_arguments(tmp_path, schema):
    with pytest.raises(InvalidInput, match="durability"):
        DecisionLog(tmp_path, schema, durability="hope")
    with pytest.raises(InvalidInput, match="rows_per_segment"):
        DecisionLog(tmp_path, schema, rows_per_segment=0)


def test_second_writer_is_refused_and_told_who(tmp_path, schema):
    with DecisionLog(tmp_path, schema), pytest.raises(StoreError, match=f"process {os.getpid()} is writing"):
        DecisionLog(tmp_path, schema)
    code = (
        "import sys; from vitok.decisions import OutcomeLog; log = OutcomeLog(sys.argv[1]);"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match=f"process {other.pid} is writing"):
            DecisionLog(tmp_path, schema)
        other.kill()
        other.wait()
        # The lock of a dead process binds nobody.
        DecisionLog(tmp_path, schema).close()


def test_folder_that_cannot_be_made(tmp_path, schema):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        DecisionLog(tmp_path / "file" / "log", schema)


def test_torn_tail_at_every_byte(tmp_path, schema, make_block):
    source = tmp_path / "source"
    log = DecisionLog(source, schema)
    log.append(make_block(0, 2))
    path = source / "segment-00000001.arrows"
    first = path.stat().st_size
    log.append(make_block(2, 2))
    whole = path.read_bytes()
    log.close()
    for size in range(first, len(whole) + 1):
        folder = tmp_path / "torn"
        folder.mkdir()
        (folder / path.name).write_bytes(whole[:size])
        rows = 4 if size == len(whole) else 2
        tail = Tail(folder)
        assert tail.read().height == rows
        if size % 64 == 1 or size >= len(whole) - 1:
            assert requests(folder) == names(rows)
            with DecisionLog(folder, schema) as log:
                log.append(make_block(rows))
            assert requests(folder) == names(rows + 1)
            assert tail.read()["request_id"].to_list() == [f"r{rows}"]
            assert tail.position == Position(2, 1)
            assert not list(folder.glob("*.arrows")) + list(folder.glob("*.damaged"))
        tail.close()
        shutil.rmtree(folder)


def test_torn_before_the_first_row(tmp_path, schema, make_block):
    with DecisionLog(tmp_path / "source", schema) as log:
        log.append(make_block(0))
        whole = (tmp_path / "source" / "segment-00000001.arrows").read_bytes()
    for size in (0, 1, 7, 100, len(whole) - 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / "segment-00000001.arrows").write_bytes(whole[:size])
        tail = Tail(folder)
        assert tail.read() is None
        with DecisionLog(folder, schema) as log:
            assert tail.read() is None
            log.append(make_block(0))
            assert tail.read().height == 1
        assert requests(folder) == ["r0"]
        tail.close()


def test_number_of_an_empty_torn_segment_is_used_anew(tmp_path, schema, make_block):
    (tmp_path / "segment-00000001.arrows").write_bytes(b"")
    tail = Tail(tmp_path, [1, 0])
    assert tail.read() is None
    DecisionLog(tmp_path, schema).close()
    with DecisionLog(tmp_path, schema) as log:
        assert log.append(make_block(0)) == Position(1, 1)
        assert tail.read()["request_id"].to_list() == ["r0"]
    tail.close()


def test_crash_between_rename_and_removal(tmp_path, schema, make_block):
    log = DecisionLog(tmp_path, schema)
    log.append(make_block(0, 3))
    kept = (tmp_path / "segment-00000001.arrows").read_bytes()
    log.close()
    (tmp_path / "segment-00000001.arrows").write_bytes(kept)
    (segments(tmp_path)[0].path.parent / "segment-00000001.parquet.tmp").write_bytes(b"half")
    assert requests(tmp_path) == names(3)
    DecisionLog(tmp_path, schema).close()
    assert requests(tmp_path) == names(3)
    assert not list(tmp_path.rglob("*.arrows")) + list(tmp_path.rglob("*.tmp"))


def test_damaged_bytes_are_kept_beside(tmp_path, schema, make_block):
    log = DecisionLog(tmp_path, schema)
    log.append(make_block(0, 3))
    path = tmp_path / "segment-00000001.arrows"
    data = path.read_bytes() + b"these bytes are no message"
    log.close()
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / path.name).write_bytes(data)
    DecisionLog(folder, schema).close()
    assert requests(folder) == names(3)
    assert (folder / "segment-00000001.damaged").read_bytes() == data


def test_short_write_then_full_disk(tmp_path, schema, make_block, monkeypatch):
    real = os.write
    plan: list[str] = []

    def write(fd, data):
        step = plan.pop(0) if plan else "all"
        if step == "short":
            return real(fd, bytes(data)[: len(data) // 2])
        if step == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with DecisionLog(tmp_path, schema) as log:
        plan[:] = ["short", "full"]
        with pytest.raises(StoreError, match="No space left"):
            log.append(make_block(0, 5))
        assert log.position == Position(1, 0)
        assert not segments(tmp_path)
        log.append(make_block(0, 5))
        tail = Tail(tmp_path)
        assert tail.read().height == 5
        plan[:] = ["short", "full"]
        with pytest.raises(StoreError, match="5 rows was not written"):
            log.append(make_block(99, 5))
        assert tail.read() is None
        assert log.position == Position(2, 0)
        plan[:] = ["full"]
        with pytest.raises(StoreError):
            log.append(make_block(99, 5))
        # A short write that goes on is no failure.
        plan[:] = ["short", "all"]
        log.append(make_block(5, 5))
        assert tail.read()["request_id"].to_list() == names(10)[5:]
        tail.close()
    assert requests(tmp_path) == names(10)


def test_failed_sync_takes_the_rows_back(tmp_path, schema, make_block, monkeypatch):
    with DecisionLog(tmp_path, schema, durability="fsync") as log:
        log.append(make_block(0, 2))

        def broken(fd):
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("vitok.decisions.writer._sync", broken)
            with pytest.raises(StoreError, match="Input/output error"):
                log.append(make_block(99, 2))
        assert requests(tmp_path) == names(2)
        log.append(make_block(2, 2))
    assert requests(tmp_path) == names(4)


def test_file_size_limit(tmp_path, schema, make_block):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with DecisionLog(tmp_path, schema) as log:
        written = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        try:
            while (tmp_path / "segment-00000001.arrows").stat().st_size < 50_000 if written else True:
                log.append(make_block(written, 20))
                written += 20
            with pytest.raises(StoreError):
                log.append(make_block(written, 200))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert requests(tmp_path) == names(written)
        log.append(make_block(written, 20))
    assert requests(tmp_path) == names(written + 20)


@pytest.mark.parametrize("durability", ["process", "fsync"])
def test_a_disk_that_is_full_for_a_while(tmp_path, schema, make_block, durability):
    """Appends are refused in words, sealing waits, nothing acknowledged is lost, and all goes on when there is room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept: list[str] = []
    refused: list[str] = []
    tail = Tail(tmp_path)
    with DecisionLog(tmp_path, schema, durability=durability, rows_per_segment=60) as log:
        for start in range(0, 400, 20):
            if start == 100:
                # Not even the smallest file fits: no segment can be begun, and none sealed.
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
            if start == 300:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            try:
                log.append(make_block(start, 20))
                kept += [f"r{i}" for i in range(start, start + 20)]
            except StoreError as error:
                refused.append(str(error))
            finally:
                if start == 380:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(refused) == 10
        assert all("was not written" in text and "later appends then work again" in text for text in refused)
        assert requests(tmp_path) == kept
        log.seal()
    assert requests(tmp_path) == kept
    assert tail.read()["request_id"].to_list() == kept
    assert all(part.sealed for part in segments(tmp_path))
    assert not list(tmp_path.rglob("*.tmp"))


def test_seal_that_fails_is_told_and_tried_again(tmp_path, schema, make_block, monkeypatch):
    log = DecisionLog(tmp_path, schema, rows_per_segment=2)

    def refuse(source, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.writer.seal", refuse)
        log.append(make_block(0, 2))
        log.append(make_block(2, 1))
        with pytest.raises(StoreError, match="was not sealed"):
            log.close()
    assert requests(tmp_path) == names(3)
    DecisionLog(tmp_path, schema).close()
    assert [part.sealed for part in segments(tmp_path)] == [True, True]
    assert requests(tmp_path) == names(3)


def test_changed_schema_starts_a_segment_of_its_own(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 2))
    changed = LogSchema("fraud", ("customer_id",), (("amount", "float64"), ("device", "int64")), ("mean_1d", "risk_7d"))
    with DecisionLog(tmp_path, changed) as log:
        log.append(make_block(2, 2, changed))
        assert json.loads((tmp_path / "schema.json").read_text())["content_hash"] == changed.content_hash
        for _ in range(2):
            frame = read(tmp_path)
            assert frame["request_id"].to_list() == names(4)
            assert frame["f_count_1d"].to_list() == [0.0, 1.0, None, None]
            assert frame["f_mean_1d"].to_list() == [0.0, 1 / 3, 2.0, 3.0]
            assert frame["f_risk_7d"].to_list() == [None, None, 2 / 3, 1.0]
            assert frame["device"].to_list() == [None, None, 2, 3]
            assert read(tmp_path, columns=["device"])["device"].to_list() == [None, None, 2, 3]
            assert Tail(tmp_path).read()["f_risk_7d"].to_list() == [None, None, 2 / 3, 1.0]
            # The second time around both segments are sealed.
            log.close()


def test_outcomes_one_by_one_and_by_columns(tmp_path):
    class Noon:
        def now(self) -> int:
            return 777

    with OutcomeLog(tmp_path, clock=Noon()) as log:
        assert log.append([]) == Position(1, 0)
        log.append([Outcome(request_id="a", kind="fraud", value=1.0, event_time=5)])
        block = OutcomeBlock(
            request_id=["b", "c"],
            kind=["fraud"] * 2,
            value=[0.0, 1.0],
            event_time=[6, 7],
            ingest_time=[0, 9],
            source=["x", "y"],
            supersedes=[False, True],
        )
        assert len(block) == 2
        assert log.append(block) == Position(1, 3)
        with pytest.raises(InvalidInput, match="value: got nan"):
            log.append([Outcome(request_id="a", kind="fraud", value=float("nan"), event_time=5)])
        with pytest.raises(InvalidInput, match="models"):
            read(tmp_path, models=["fraud/1"])
    frame = read(tmp_path)
    assert frame["request_id"].to_list() == ["a", "b", "c"]
    assert frame["ingest_time"].cast(pl.Int64).to_list() == [777, 777, 9]
    assert frame["supersedes"].to_list() == [False, False, True]


def test_listing_while_segments_are_sealed(tmp_path, schema, make_block, monkeypatch):
    """A segment that is sealed between two looks is in the listing, once, in one of its forms."""
    with DecisionLog(tmp_path, schema) as log:
        for start in range(3):
            log.append(make_block(start))
            log.seal()
        log.append(make_block(3))
        look = layout._names
        looked: list[str] = []

        def names_then_seal(folder: str):
            found = look(folder)
            looked.append(folder)
            if len(looked) == 1:
                log.seal()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(layout, "_names", names_then_seal)
            found = segments(tmp_path)
    assert [(part.number, part.sealed) for part in found] == [(number, True) for number in (1, 2, 3, 4)]


def test_folders_of_a_sealed_log(tmp_path, schema, make_block):
    """A segment lies in the folder of the UTC day and hour of its first row, whatever time that is."""
    moments = {1: "day=1970-01-01/hour=00", 1_772_373_600_000_000: "day=2026-03-01/hour=14"}
    moments |= {-5: "day=1970-01-01/hour=00", 2**62: "day=9999-12-31/hour=23"}
    with DecisionLog(tmp_path, schema) as log:
        for number, (moment, folder) in enumerate(moments.items(), 1):
            log.append(make_block(number, 1, ingest_time=[moment]))
            log.seal()
            assert (tmp_path / folder / f"segment-{number:08d}.parquet").exists()
            assert sealed_path(tmp_path, number) == tmp_path / folder / f"segment-{number:08d}.parquet"
    assert requests(tmp_path) == names(5)[1:]


def test_sealed_segments_of_old_logs_lie_beside_the_open_ones(tmp_path, schema, make_block):
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 3))
    for path in tmp_path.rglob("segment-*"):
        path.rename(tmp_path / path.name)
    with DecisionLog(tmp_path, schema) as log:
        assert log.append(make_block(3)) == Position(2, 1)
        assert requests(tmp_path) == names(4)
        assert Tail(tmp_path, [1, 2]).read()["request_id"].to_list() == ["r2", "r3"]


def test_a_segment_ends_with_its_hour(tmp_path, schema, make_block, monkeypatch):
    """Also where the clock steps forth and back: each step begins a segment, and the order stays that of the log."""
    hour = 3_600_000_000_000
    now = [hour * 1000]
    monkeypatch.setattr("vitok.decisions.writer.time_ns", lambda: now[0])
    with DecisionLog(tmp_path, schema) as log:
        for start, step in enumerate((0, 10, hour, 5, -hour, 3, 24 * hour)):
            now[0] += step
            log.append(make_block(start))
    assert [part.number for part in segments(tmp_path)] == [1, 2, 3, 4]
    assert requests(tmp_path) == names(7)
    assert Tail(tmp_path).read()["request_id"].to_list() == names(7)


def test_numbers_are_not_used_anew(tmp_path, schema, make_block):
    (tmp_path / "removed.json").write_text('{"0": 7}')
    with DecisionLog(tmp_path, schema) as log:
        assert log.append(make_block(0)) == Position(8, 1)
    (tmp_path / "removed.json").write_text("[]")
    with pytest.raises(StoreError, match="damaged"):
        DecisionLog(tmp_path, schema)
