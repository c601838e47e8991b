"""What only the embedded row store has: one environment a process, forks, kills, full maps and full disks."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.engines.servers import until

from vitok.clock import EventClock
from vitok.engines import HEADER, LmdbRows, LmdbStore, Row, open_rows
from vitok.errors import StoreError


def run(code: str, *arguments: str) -> str:
    """Runs a program that must end well; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_environment_a_folder_whoever_opens_it(tmp_path: Path) -> None:
    one = LmdbRows(tmp_path / "rows")
    (tmp_path / "link").symlink_to(tmp_path / "rows")
    two, three = LmdbRows(tmp_path / "rows"), LmdbRows(tmp_path / "link")
    one.write([Row(b"k", (1, 1), b"v")])
    one.close()
    one.close()
    assert two.read([b"k"]) == three.read([b"k"]) != [None]
    for use in (lambda: one.read([b"k"]), lambda: one.write([]), lambda: one.erase([]), one.sync, one.sweep):
        with pytest.raises(StoreError, match="is closed: open it again"):
            use()
    two.close()
    three.close()
    four = LmdbRows(tmp_path / "rows")
    assert four.read([b"k"]) != [None]
    four.close()


def test_a_folder_that_was_made_anew_is_another_store(tmp_path: Path) -> None:
    one = LmdbRows(tmp_path / "rows")
    one.write([Row(b"k", (1, 1), b"v")])
    shutil.rmtree(tmp_path / "rows")
    two = LmdbRows(tmp_path / "rows")
    assert two.read([b"k"]) == [None]
    two.write([Row(b"k", (1, 1), b"w")])
    one.close()
    assert LmdbRows(tmp_path / "rows").read([b"k"])[0][HEADER:] == b"w"


def test_a_folder_with_another_kind_of_store_is_refused(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreError, match="give each a folder of its own"):
        LmdbRows(tmp_path)
    store.close()
    with pytest.raises(StoreError, match="could not be opened"):
        LmdbRows("/proc/nowhere/rows")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be opened"):
        LmdbRows(tmp_path / "file")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(bytes(range(256)) * 64)
    with pytest.raises(StoreError, match="could not be opened"):
        LmdbRows(tmp_path)


_FORK = """
import os, sys
from vitok.engines import LmdbRows, Row
from vitok.errors import StoreError
store = LmdbRows(sys.argv[1])
store.write([Row(b"k", (1, 1), b"v")])
pid = os.fork()
if pid == 0:
    told = 0
    for use in (lambda: store.read([b"k"]), lambda: store.write([]), lambda: LmdbRows(sys.argv[1])):
        try:
            use()
        except StoreError as error:
            told += "from which this one was forked" in str(error) and "'spawn'" in str(error)
    sys.exit(told)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
assert store.read([b"k"]) != [None]
assert store.write([Row(b"k", (2, 2), b"v")]) == 1
"""


def test_a_forked_process_is_told_and_its_parent_goes_on(tmp_path: Path) -> None:
    run(_FORK, str(tmp_path))


_WRITER = """
import sys
from vitok.engines import LmdbRows, Row
store = LmdbRows(sys.argv[1])
for i in range(1_000_000):
    store.write([Row(b"%d" % k, (i, 0), b"%d" % i) for k in range(10)])
    print(i, flush=True)
"""


def test_a_killed_writer_loses_no_call_and_leaves_none_half_done(tmp_path: Path) -> None:
    for acknowledged in (0, 30, 250):
        folder = tmp_path / str(acknowledged)
        command = [sys.executable, "-c", _WRITER, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= acknowledged:
                    os.kill(child.pid, signal.SIGKILL)
                    break
            rest = child.stdout.read().split()
        last = int(rest[-1]) if rest else acknowledged
        store = LmdbRows(folder)
        found = {row[HEADER:] if row else None for row in store.read([b"%d" % k for k in range(10)])}
        assert found in ({b"%d" % last}, {b"%d" % (last + 1)})
        store.close()


_READER = """
import sys
from vitok.engines import LmdbRows
store = LmdbRows(sys.argv[1])
transaction = store._shared.env.begin()
print("reading", flush=True)
sys.stdin.read()
"""


def test_the_slot_of_a_killed_reader_is_cleared(tmp_path: Path) -> None:
    writer = LmdbRows(tmp_path, max_readers=1)
    command = [sys.executable, "-c", _READER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reading\n"
        with pytest.raises(StoreError, match=r"larger \?max_readers="):
            writer.read([b"k"])
        child.kill()
    assert writer.read([b"k"]) == [None]
    writer.close()


def test_a_full_map_changes_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    store = LmdbRows(tmp_path, map_size=1 << 20)
    store.write([Row(b"k", (1, 1), b"before")])
    many = [Row(b"%d" % i, (1, 1), bytes(1000)) for i in range(2000)]
    with pytest.raises(StoreError, match=r"its map is full: erase rows, or .* larger \?map_gib="):
        store.write([Row(b"k", (2, 2), b"after"), *many])
    assert [row and row[HEADER:] for row in store.read([b"k", b"0"])] == [b"before", None]
    assert store.write(many[:100]) == 100
    store.close()


def test_a_map_that_grew_elsewhere_is_told(tmp_path: Path) -> None:
    small = LmdbRows(tmp_path, map_size=1 << 20)
    code = "import sys; from vitok.engines import *; s = LmdbRows(sys.argv[1])\n"
    run(code + "s.write([Row(b'%d' % i, (1, 1), bytes(1000)) for i in range(3000)])", str(tmp_path))
    with pytest.raises(StoreError, match=r"the same \?map_gib="):
        small.read([b"1"])
    with pytest.raises(StoreError, match=r"the same \?map_gib="):
        small.write([Row(b"k", (1, 1), b"")])
    small.close()
    large = LmdbRows(tmp_path)
    assert large.read([b"1"]) != [None]
    large.close()


_FULL = """
import resource, signal, sys
from vitok.engines import LmdbRows, Row
from vitok.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LmdbRows(sys.argv[1])
store.write([Row(b"k", (1, 1), b"before")])
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
many = [Row(b"%d" % i, (1, 1), bytes(1000)) for i in range(2000)]
for _ in range(2):
    try:
        store.write([Row(b"k", (2, 2), b"after"), *many])
    except StoreError as error:
        assert "the disk is full" in str(error) and "free some space" in str(error), error
    else:
        raise AssertionError("the write went through")
    assert [row and row[16:] for row in store.read([b"k", b"0"])] == [b"before", None]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.write([Row(b"k", (2, 2), b"after"), *many]) == 2001
store.sync()
"""


def test_a_full_disk_changes_nothing_and_can_be_mended(tmp_path: Path) -> None:
    # A limit on the length of files stands for the full disk: both make the kernel refuse the write.
    run(_FULL, str(tmp_path))
    assert open_rows(f"lmdb://{tmp_path}").read([b"k"])[0][HEADER:] == b"after"


def test_sweep_removes_what_has_expired_and_nothing_else(tmp_path: Path) -> None:
    clock = EventClock(1000)
    store = LmdbRows(tmp_path, clock=clock)
    rows = [Row(b"%05d" % i, (1, 1), b"v", (0, 1500, 2500)[i % 3]) for i in range(25_000)]
    store.write(rows)
    assert store.sweep() == 0
    clock.advance(2000)
    assert store.sweep() == 8333
    assert store.sweep() == 0
    left = [row.key for row, found in zip(rows, store.read([row.key for row in rows]), strict=True) if found]
    assert left == [row.key for row in rows if row.expires != 1500]
    clock.advance(3000)
    assert store.sweep() == 8333
    store.close()


def test_reads_go_on_while_another_process_writes(tmp_path: Path) -> None:
    store = LmdbRows(tmp_path)
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.DEVNULL) as child:
        keys, last = [b"%d" % k for k in range(10)], -1

        def moved_on() -> bool:
            nonlocal last
            rows = store.read(keys)
            assert len(set(rows)) == 1  # the ten rows of a call come together
            now = int(rows[0][HEADER:]) if rows[0] else -1
            assert now >= last
            last = now
            return last > 200

        until(moved_on, child)
        child.kill()
    store.close()
