"""A topic into a log: every row once, across kills of the collector; on a topic in memory and on a real broker."""

import itertools
import os
import random
import subprocess
import sys

import pytest
from tests.engines.servers import make_topic, tansu

from vitok.decisions import DecisionLog, LogSchema, Tail, find, forget, read
from vitok.decisions.segments import segments
from vitok.decisions.transport import Collector, TopicLog, offsets
from vitok.engines import Outgoing, publish
from vitok.errors import StoreError

_numbers = itertools.count()


@pytest.fixture
def url():
    return f"memory://decisions-{next(_numbers)}?n_partitions=3"


def names(folder):
    return read(folder, columns=["request_id"])["request_id"].to_list()


def test_blocks_come_through_once(tmp_path, url, schema, make_block):
    topic = TopicLog(url, schema)
    assert topic.append(make_block(start, 5) for start in range(0, 100, 5)) == 100
    with Collector(url, tmp_path, rows_per_segment=30) as collector:
        assert sum(collector.step(max_messages=7, timeout_seconds=0.1) for _ in range(4)) == 100
        assert collector.step(timeout_seconds=0.01) == 0
        reached = dict(collector.offsets)
        assert offsets(tmp_path) == reached
    assert sum(reached.values()) == 20
    assert sorted(names(tmp_path)) == sorted(f"r{i}" for i in range(100))
    assert all(part.sealed for part in segments(tmp_path))
    # Sealed segments tell the offsets too, and the log is as any other.
    assert offsets(tmp_path) == reached
    found = find(tmp_path, request_id="r17")
    assert (found.latency_us, found.features["mean_1d"]) == (17, 17 / 3)
    topic.append([make_block(100, 5)])
    with Collector(url, tmp_path) as collector:
        assert collector.step(timeout_seconds=0.1) == 5
    assert len(set(names(tmp_path))) == len(names(tmp_path)) == 105


def test_a_deletion_leaves_the_offsets(tmp_path, url, schema, make_block):
    TopicLog(url, schema).append([make_block(0, 10)])
    folder = tmp_path / "decisions"
    with Collector(url, folder) as collector:
        collector.step(timeout_seconds=0.1)
    before = offsets(folder)
    receipt = forget(tmp_path, "customer_id", "customer_id-3", key=bytes(16), now=1)
    assert receipt.rows_removed == 1
    assert offsets(folder) == before


def test_other_schemas_and_what_is_no_decision(tmp_path, url, schema, make_block):
    other = LogSchema("fraud", ("customer_id",), (("amount", "float64"),), ("risk_7d",))
    TopicLog(url, schema).append([make_block(0, 2)], key=b"a")
    publish(url, [Outgoing(b"a", b"no arrow at all"), Outgoing(b"a", b"")])
    TopicLog(url, other).append([make_block(2, 2, other)], key=b"a")
    TopicLog(url, schema).append([make_block(4, 2)], key=b"a")
    with Collector(url, tmp_path) as collector:
        assert collector.step(timeout_seconds=0.1) == 6
        assert collector.n_quarantined == 2
    assert names(tmp_path) == [f"r{i}" for i in range(6)]
    assert read(tmp_path)["f_risk_7d"].to_list() == [None, None, 2.0, 3.0, None, None]
    assert sorted(path.read_bytes() for path in (tmp_path / "quarantine").iterdir()) == [b"", b"no arrow at all"]
    assert len(segments(tmp_path)) == 3


def test_a_log_that_cannot_be_written_is_read_again(tmp_path, url, schema, make_block, monkeypatch):
    TopicLog(url, schema).append([make_block(0, 2)])
    with Collector(url, tmp_path) as collector:
        with monkeypatch.context() as patch:
            patch.setattr("vitok.decisions.writer._sync", lambda fd: os.close(-1))
            with pytest.raises(StoreError, match="was not written"):
                collector.step(timeout_seconds=0.1)
        assert collector.step(timeout_seconds=0.1) == 2
        with pytest.raises(StoreError, match="is writing it"):
            DecisionLog(tmp_path, schema)
    assert names(tmp_path) == ["r0", "r1"]


COLLECTOR = """if True:
    import sys
    from vitok.decisions.transport import Collector
    collector = Collector(sys.argv[1], sys.argv[2], rows_per_segment=40)
    while True:
        n = collector.step(max_messages=3, timeout_seconds=0.2)
        print(n, flush=True)
"""


def test_kills_lose_and_double_nothing_on_a_broker(tmp_path, schema, make_block):
    pytest.importorskip("confluent_kafka")
    generator = random.Random(5)
    with tansu() as server:
        url = make_topic(server, "decisions")
        topic = TopicLog(url, schema)
        for start in range(0, 400, 40):
            topic.append(make_block(at, 4) for at in range(start, start + 40, 4))
        tail, got = Tail(tmp_path), []
        for run in range(12):
            command = [sys.executable, "-c", COLLECTOR, url, str(tmp_path)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for _ in range(1000 if run == 11 else generator.randrange(1, 5)):
                    line = process.stdout.readline()
                    if run == 11 and line == "0\n":
                        break
                process.kill()
            found = tail.read()
            got += [] if found is None else found["request_id"].to_list()
        tail.close()
    assert sorted(got) == sorted(f"r{i}" for i in range(400))
    assert sorted(names(tmp_path)) == sorted(got)
    assert sum(offsets(tmp_path).values()) == 100
