"""The conformance suite of key-value stores: a new engine gets all of it by being listed in `STORES`."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitok.engines import KeyValueStore, LmdbStore, MemoryStore, open_store
from vitok.errors import InvalidInput, StoreError

STORES: dict[str, Callable[[Path], KeyValueStore]] = {
    "memory": lambda _: MemoryStore(),
    "lmdb": lambda path: LmdbStore(path / "store"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> KeyValueStore:
    return STORES[request.param](tmp_path)


def test_what_was_written_is_read(store: KeyValueStore) -> None:
    store.commit([("t", b"k", b"v"), ("u", b"k", b"w")])
    assert store.get("t", b"k") == b"v"
    assert store.get("u", b"k") == b"w"


def test_unknown_table_and_key_are_none(store: KeyValueStore) -> None:
    assert store.get("nothing", b"k") is None
    store.commit([("t", b"k", b"v")])
    assert store.get("t", b"other") is None
    assert list(store.scan("nothing")) == []


def test_later_writes_win_and_none_deletes(store: KeyValueStore) -> None:
    store.commit([("t", b"k", b"1"), ("t", b"k", b"2")])
    assert store.get("t", b"k") == b"2"
    store.commit([("t", b"k", None), ("t", b"never", None)])
    assert store.get("t", b"k") is None


def test_scan_is_in_order_of_bytes_and_by_prefix(store: KeyValueStore) -> None:
    store.commit([("t", key, b"") for key in (b"b", b"a\xff", b"a", b"aa", b"c")])
    assert [key for key, _ in store.scan("t")] == [b"a", b"aa", b"a\xff", b"b", b"c"]
    assert [key for key, _ in store.scan("t", b"a")] == [b"a", b"aa", b"a\xff"]
    assert list(store.scan("t", b"zz")) == []


def test_an_empty_commit_and_an_empty_value_are_fine(store: KeyValueStore) -> None:
    store.commit([])
    store.commit([("t", b"k", b"")])
    assert store.get("t", b"k") == b""


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("tu"), st.binary(min_size=1, max_size=6), st.none() | st.binary(max_size=9))))
def test_any_sequence_equals_a_dictionary(tmp_path_factory: pytest.TempPathFactory, writes: list) -> None:
    for make in STORES.values():
        store = make(tmp_path_factory.mktemp("store"))
        expected: dict[tuple[str, bytes], bytes] = {}
        for table, key, value in writes:
            store.commit([(table, key, value)])
            if value is None:
                expected.pop((table, key), None)
            else:
                expected[table, key] = value
        for table in "tu":
            rows = sorted((key, value) for (name, key), value in expected.items() if name == table)
            assert list(store.scan(table)) == rows


def test_lmdb_commit_that_fails_changes_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    store.commit([("t", b"k", b"1")])
    with pytest.raises(StoreError, match="could not be written"):
        store.commit([("t", b"k", b"2"), ("t", b"x" * 600, b"too long a key")])
    assert store.get("t", b"k") == b"1"


_WRITER = """
import sys
from vitok.engines import LmdbStore
store = LmdbStore(sys.argv[1])
for i in range(1_000_000):
    number = str(i).encode()
    store.commit([("a", b"n", number), ("b", b"n", number)])
    print(i, flush=True)
"""


WHILE_WRITING = """
import sys, threading
from vitok.engines import LmdbStore
store = LmdbStore(sys.argv[1])
store.commit([("known", b"k", b"v")])
begun, read = threading.Event(), threading.Event()

def write():
    with store._env.begin(write=True):
        begun.set()
        read.wait()

writer = threading.Thread(target=write)
writer.start()
begun.wait()
assert store.get("unknown", b"k") is None
assert list(store.scan("unknown")) == []
assert store.get("known", b"k") == b"v"
read.set()
writer.join()
store.close()
"""


def test_lmdb_reads_of_a_table_that_is_not_there_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    # In a process of its own: what waits here holds the interpreter's lock, so that nothing could end it.
    done = subprocess.run([sys.executable, "-c", WHILE_WRITING, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == 0


def test_lmdb_survives_kill_whole(tmp_path: Path) -> None:
    for acknowledged in (1, 40, 300):
        folder = tmp_path / str(acknowledged)
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            last = -1
            for line in child.stdout:
                last = int(line)
                if last >= acknowledged:
                    os.kill(child.pid, signal.SIGKILL)
                    break
            rest = child.stdout.read().split()
        last = int(rest[-1]) if rest else last
        store = LmdbStore(folder)
        found = store.get("a", b"n")
        assert found is not None
        assert found == store.get("b", b"n")
        assert int(found) in (last, last + 1)
        store.close()


def test_addresses() -> None:
    with pytest.raises(InvalidInput, match="lmdb://"):
        open_store("cassette://tape")
    with pytest.raises(InvalidInput, match="scheme://location"):
        open_store("lmdb")
    with pytest.raises(StoreError, match="could not be opened"):
        open_store("lmdb:///proc/nowhere/store")
