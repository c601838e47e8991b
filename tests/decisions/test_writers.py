"""Many who write one log: threads that share a commit, processes with segments of their own, and who reads them."""

import errno
import os
import subprocess
import sys
import threading

import pytest

from vitok.decisions import DecisionLog, Position, Tail, find, query, read
from vitok.decisions.segments import segments
from vitok.errors import Conflict, StoreError


def test_threads_share_commits_and_nothing_is_lost(tmp_path, schema, make_block, monkeypatch):
    """A commit that takes long gathers what the others wrote meanwhile; each append returns after its own commit."""
    real = os.fdatasync
    calls: list[int] = []
    entered, go_on = threading.Event(), threading.Event()

    def slow(fd):
        calls.append(fd)
        if len(calls) == 1:
            entered.set()
            assert go_on.wait(20)
        real(fd)

    monkeypatch.setattr("vitok.decisions.writer._sync", slow)
    with DecisionLog(tmp_path, schema, durability="fsync") as log:
        threads = [threading.Thread(target=log.append, args=(make_block(10 * n, 10),)) for n in range(12)]
        threads[0].start()
        assert entered.wait(20)
        for thread in threads[1:]:
            thread.start()
        # The others have written, though none of them has been told so.
        tail = Tail(tmp_path)
        rows = 0
        while rows < 120:
            found = tail.read()
            rows += 0 if found is None else found.height
        assert all(thread.is_alive() for thread in threads)
        go_on.set()
        for thread in threads:
            thread.join(20)
        assert len(calls) == 2
        tail.close()
    names = read(tmp_path)["request_id"].to_list()
    assert sorted(names) == sorted(f"r{i}" for i in range(120))
    # The rows of a block lie together, in order.
    assert all(names[i : i + 10] == [f"r{int(names[i][1:]) + j}" for j in range(10)] for i in range(0, 120, 10))


def test_a_commit_that_fails_is_told_to_all_that_waited_for_it(tmp_path, schema, make_block, monkeypatch):
    entered, go_on = threading.Event(), threading.Event()
    refused: list[str] = []

    def broken(fd):
        entered.set()
        assert go_on.wait(20)
        raise OSError(errno.EIO, "Input/output error")

    def append(log, start):
        try:
            log.append(make_block(start, 3))
        except StoreError as error:
            refused.append(str(error))

    with DecisionLog(tmp_path, schema, durability="fsync") as log:
        log.append(make_block(0, 2))
        with monkeypatch.context() as patch:
            patch.setattr("vitok.decisions.writer._sync", broken)
            threads = [threading.Thread(target=append, args=(log, 100 * n)) for n in (1, 2, 3)]
            threads[0].start()
            assert entered.wait(20)
            for thread in threads[1:]:
                thread.start()
            while read(tmp_path).height < 11:
                pass
            go_on.set()
            for thread in threads:
                thread.join(20)
        assert len(refused) == 3
        assert all("Input/output error" in text and "later appends" in text for text in refused)
        assert read(tmp_path)["request_id"].to_list() == ["r0", "r1"]
        assert log.append(make_block(2, 1)) == Position(2, 1)
    assert read(tmp_path)["request_id"].to_list() == ["r0", "r1", "r2"]


def test_first_commit_that_fails_does_not_use_its_number_anew(tmp_path, schema, make_block, monkeypatch):
    with DecisionLog(tmp_path, schema, durability="fsync") as log:
        with monkeypatch.context() as patch:
            patch.setattr("vitok.decisions.writer._sync", lambda fd: os.close(-1))
            with pytest.raises(StoreError):
                log.append(make_block(99, 2))
        assert not segments(tmp_path)
        assert log.append(make_block(0, 1)) == Position(2, 1)
        assert Tail(tmp_path, [1, 2]).read().height == 1


WRITER = """if True:
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("blocks", sys.argv[1])
    blocks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(blocks)
    from vitok.decisions import DecisionLog
    start, n = int(sys.argv[3]), int(sys.argv[4])
    log = DecisionLog(sys.argv[2], blocks.SCHEMA, rows_per_segment=30, shared=True)
    for at in range(start, start + n, 4):
        log.append(blocks.block_of(at, 4))
    print("written", flush=True)
    if sys.stdin.read() == "close":
        log.close()
"""


def writer(folder, start, n):
    conftest = __file__.replace("test_writers.py", "conftest.py")
    command = [sys.executable, "-c", WRITER, conftest, str(folder), str(start), str(n)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_three_processes_write_one_log(tmp_path, schema, make_block):
    folder = tmp_path / "decisions"
    processes = [writer(folder, 1000 * n, 100) for n in (1, 2)]
    tail = Tail(folder)
    try:
        with DecisionLog(folder, schema, shared=True) as log:
            log.append(make_block(0, 4))
            assert [process.stdout.readline() for process in processes] == ["written\n"] * 2
            with pytest.raises(StoreError, match="shared=True"):
                DecisionLog(folder, schema)
            wanted = {f"r{i}" for i in (*range(4), *range(1000, 1100), *range(2000, 2100))}
            names = read(folder)["request_id"].to_list()
            assert (len(names), set(names)) == (204, wanted)
            got = tail.read(50)["request_id"].to_list()
            got += tail.read()["request_id"].to_list()
            assert (len(got), set(got)) == (204, wanted)
            assert all(
                [n for n in got if n[:2] == lane and len(n) == 5] == [n for n in names if n[:2] == lane and len(n) == 5]
                for lane in ("r1", "r2")
            )
            with pytest.raises(Conflict, match="positions"):
                _ = tail.position
            assert find(folder, request_id="r2050").latency_us == 2050
            assert query(tmp_path, "SELECT count(*) AS n FROM decisions").item() == 204
            kept = [list(place) for place in tail.positions]
            assert len(kept) == 3
            processes[0].communicate("close", timeout=30)
            processes[1].kill()
            processes[1].wait()
            # Another writer takes the killed one's place, and seals what that one left.
            with DecisionLog(folder, schema, shared=True) as other:
                other.append(make_block(5000, 2))
                assert Tail(folder, kept).read()["request_id"].to_list() == ["r5000", "r5001"]
                assert tail.read()["request_id"].to_list() == ["r5000", "r5001"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        tail.close()
    assert all(part.sealed for part in segments(folder))
    assert read(folder).height == 206
    with DecisionLog(folder, schema) as log:
        log.append(make_block(7000, 1))
    assert read(folder).height == 207


def test_an_idle_tail_looks_at_nothing(tmp_path, schema, make_block, monkeypatch):
    """Once a folder has rested, asking again costs one look at its time."""
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(0, 2))
    tail = Tail(tmp_path)
    assert tail.read().height == 2
    long_ago = 1_000_000_000_000_000_000
    os.utime(tmp_path, ns=(long_ago, long_ago))
    assert tail.read() is None
    with monkeypatch.context() as patch:
        patch.setattr("vitok.decisions.tail.segments", lambda folder: pytest.fail("nothing has changed"))
        assert tail.read() is None
    with DecisionLog(tmp_path, schema) as log:
        log.append(make_block(2, 1))
        assert tail.read()["request_id"].to_list() == ["r2"]
    tail.close()
