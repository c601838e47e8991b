"""Following topics that fail, move and hold rubbish: nothing is counted twice, and nothing is passed over."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.engines.servers import PATIENCE, make_topic, mock_kafka, tansu
from tests.features.test_live import CARDS, START, events, outgoing

from vitok.engines import MemoryStore, Outgoing, publish
from vitok.engines.key_value import Write
from vitok.errors import InvalidInput, StoreError
from vitok.features import FeatureSet, OnlineFeatures, StreamWorker

FEATURES = FeatureSet(views=(CARDS,))
N_PARTITIONS = 4
_numbers = itertools.count()


@pytest.fixture(scope="module")
def topics() -> Iterator[Callable[[str], str]]:
    """Makes topics of four partitions on brokers that run as long as the tests of this file."""
    running: dict[str, Any] = {}
    makers = {"kafka": tansu, "kafka-mock": mock_kafka}

    def fresh(kind: str) -> str:
        if kind == "memory":
            return f"memory://worker-{next(_numbers)}?n_partitions={N_PARTITIONS}"
        if kind not in running:
            block = makers[kind]()
            running[kind] = block, block.__enter__()
        return make_topic(running[kind][1], f"worker-{next(_numbers)}") + "?timeout_ms=10000"

    yield fresh
    for block, _ in running.values():
        block.__exit__(None, None, None)


KINDS = pytest.mark.parametrize("kind", ["memory", "kafka-mock", "kafka"])


class Weak(MemoryStore):
    """Fails the commits whose numbers are told."""

    def __init__(self, fails: Iterable[int] = ()) -> None:
        super().__init__()
        self.n, self.fails = 0, set(fails)

    def commit(self, writes: Iterable[Write]) -> None:
        rows = list(writes)
        self.n += 1
        if self.n in self.fails:
            raise StoreError("the disk is full")
        super().commit(rows)


def opened(store: MemoryStore) -> OnlineFeatures:
    return OnlineFeatures(FEATURES, store, journal=True)


def drain(worker: StreamWorker, n: int) -> int:
    """Steps until `n` messages have come; returns how often it failed."""
    failures = 0
    for _ in range(200):
        if worker.report.n_messages >= n:
            return failures
        try:
            worker.step(1.0)
        except StoreError:
            failures += 1
    raise AssertionError(f"{worker.report} of {n}")


def answers(made: OnlineFeatures, frame: pl.DataFrame) -> np.ndarray:
    keys = sorted(set(frame["card"]))
    out = np.empty((len(keys), len(FEATURES.computed)))
    made.read_many({"card": keys}, np.full(len(keys), START + 10**10), out)
    return out


def kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


RUBBISH = {
    b"": "not a JSON object",
    b"\xff\xfe": "not a JSON object",
    b"[1]": "not a JSON object",
    b"[" * 5_000: "not a JSON object",
    b'{"id": "\\ud800"}': "not a JSON object",
    b'{"id": 1.5}': "id: got 1.5, must be a text or a whole number",
    b'{"id": "x", "event_time": true}': "event_time: got True, must be ISO 8601 or a whole number",
    b'{"id": "x", "event_time": 9e99}': "event_time: got 9e+99, must be ISO 8601 or a whole number",
    b'{"id": "x", "event_time": "soon"}': "",
    b'{"id": "x", "event_time": 1, "card": "c", "amount": "1"}': "amount: got '1', must be a number",
    b'{"id": "x", "event_time": 1, "card": "c", "amount": [1]}': "amount: got [1], must be one value",
    b'{"id": "x", "event_time": 1, "card": "c", "amount": 99999999999999999999}': "amount: got 99999999999999999999",
    b'{"id": "x", "event_time": 99999999999999999999, "card": "c"}': "event_time: got 99999999999999999999",
    b'{"event_time": 1, "card": "c"}': "id: got null, must not be null",
    b'{"id": "x", "card": "c"}': "event_time: got null, must not be null",
    b'{"id": "x", "event_time": 1, "card": ""}': "card: got '', must not be empty",
}


@KINDS
def test_rubbish_is_kept_with_its_reason_and_stops_nothing(kind: str, topics: Any, tmp_path: Path) -> None:
    url, frame = topics(kind), events(1, 40)
    good = outgoing(frame)
    publish(url, [*good[:20], *(Outgoing(b"k", value, partition=1) for value in RUBBISH), *good[20:]])
    made, path = opened(MemoryStore()), tmp_path / "deep" / "rejected.jsonl"
    worker = StreamWorker("payments", url, made, rejected=path)
    assert drain(worker, 40 + len(RUBBISH)) == 0
    assert (worker.report.n_new, worker.report.n_rejected) == (40, len(RUBBISH))
    said = [record["reason"] for record in kept(path)]
    assert len(said) == len(RUBBISH)
    for reason in RUBBISH.values():
        assert any(one.startswith(reason) for one in said), reason
    twin = opened(MemoryStore())
    twin.ingest("payments", frame)
    np.testing.assert_array_equal(answers(made, frame), answers(twin, frame))
    worker.close()


@KINDS
def test_a_failure_in_the_middle_of_a_batch_passes_nothing_over(kind: str, topics: Any, tmp_path: Path) -> None:
    url, frame = topics(kind), events(2, 120)
    publish(url, [message._replace(partition=int(message.key[1:]) % 4) for message in outgoing(frame) if message.key])
    stores = {number: Weak({1, 3} if number == 2 else {2} if number == 1 else ()) for number in range(N_PARTITIONS)}
    states: dict[int, OnlineFeatures] = {}

    def of_partition(number: int) -> OnlineFeatures:
        states[number] = opened(stores[number])
        return states[number]

    worker = StreamWorker("payments", url, of_partition, rejected=tmp_path / "bad.jsonl", max_messages=50)
    assert drain(worker, 120) >= 1
    assert worker.report.n_new == 120
    for number in range(N_PARTITIONS):
        own = frame.filter(pl.col("card").str.slice(1).cast(pl.Int64) % 4 == number)
        twin = opened(MemoryStore())
        twin.ingest("payments", own)
        # What a process that dies now leaves behind is the same.
        for made in (states[number], opened(stores[number])):
            assert made.positions().get(str(number), 0) == len(own)
            np.testing.assert_array_equal(answers(made, frame), answers(twin, frame))
        stores[number].fails.clear()
    worker.close()


def test_messages_come_again_after_any_failure(topics: Any, tmp_path: Path) -> None:
    url, frame = topics("memory"), events(3, 30)
    publish(url, outgoing(frame))
    wrong: list[Exception] = [InvalidInput("column", "a", "be b"), KeyError("gone"), MemoryError(), StoreError("away")]

    def check(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        if wrong:
            raise wrong.pop()
        return rows, rows.clear().with_columns(reason=pl.lit(""))

    made = opened(MemoryStore())
    worker = StreamWorker("payments", url, made, check=check, rejected=tmp_path / "bad.jsonl", max_messages=10)
    for kind in (StoreError, MemoryError, KeyError, InvalidInput):
        with pytest.raises(kind):
            worker.step(1.0)
        assert made.positions() == {}
    assert drain(worker, 30) == 0
    assert worker.report.n_new == 30


def test_refused_rows_are_kept_before_the_batch_counts(topics: Any, tmp_path: Path) -> None:
    url, frame = topics("memory"), events(4, 20)
    publish(url, [*outgoing(frame), Outgoing(b"k", b"rubbish"), Outgoing(b"k", b'{"event_time": 1, "card": "c"}')])

    def check(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        dear = pl.col("amount") > 11
        return rows.filter(dear.not_() | dear.is_null()), rows.filter(dear).with_columns(reason=pl.lit("too dear"))

    path, made = tmp_path / "bad.jsonl", opened(MemoryStore())
    path.mkdir()
    worker = StreamWorker("payments", url, made, check=check, rejected=path)
    with pytest.raises(StoreError, match="rejected rows cannot be kept in"):
        worker.step(1.0)
    assert made.positions() == {}
    assert made.newest == 0
    path.rmdir()
    assert drain(worker, 22) == 0
    n_dear = frame.filter(pl.col("amount") > 11).height
    assert n_dear
    assert (worker.report.n_new, worker.report.n_rejected) == (20 - n_dear, n_dear + 2)
    reasons = [record["reason"] for record in kept(path)]
    assert reasons.count("too dear") == n_dear
    assert len(reasons) == n_dear + 2


@pytest.mark.parametrize("kind", ["memory", pytest.param("kafka-mock", marks=pytest.mark.slow)])
def test_partitions_move_with_their_windows(kind: str, topics: Any, tmp_path: Path) -> None:
    url, frame = topics(kind), events(5, 200)
    messages = [one._replace(partition=int(one.key[1:]) % N_PARTITIONS) for one in outgoing(frame) if one.key]
    grouped = url + ("&session_ms=6000" if kind == "kafka-mock" else "") + "&group=g"
    stores = {number: MemoryStore() for number in range(N_PARTITIONS)}

    def worker(name: str) -> StreamWorker:
        path = tmp_path / f"{name}.jsonl"
        return StreamWorker("payments", grouped, lambda number: opened(stores[number]), rejected=path, max_messages=15)

    def step(workers: list[StreamWorker], done: Callable[[], bool]) -> None:
        for _ in range(int(20 * PATIENCE)):
            if done():
                return
            for one in workers:
                one.step(0.05)
        raise AssertionError([one.partitions for one in workers])

    publish(url, messages[:100])
    first = worker("first")
    step([first], lambda: first.report.n_messages >= 30)
    second = worker("second")
    step([first, second], lambda: len(first.partitions) == len(second.partitions) == 2)
    assert not set(first.partitions) & set(second.partitions)
    publish(url, messages[100:])
    step([first, second], lambda: second.report.n_messages >= 20)
    first.close()
    step([second], lambda: len(second.partitions) == N_PARTITIONS)
    step([second], lambda: first.report.n_messages + second.report.n_messages >= 200)
    second.close()
    assert first.report.n_new + second.report.n_new == 200
    assert first.report.n_duplicate + second.report.n_duplicate == 0
    for number, store in stores.items():
        own = frame.filter(pl.col("card").str.slice(1).cast(pl.Int64) % N_PARTITIONS == number)
        twin, left = opened(MemoryStore()), opened(store)
        twin.ingest("payments", own)
        assert left.positions() == ({str(number): len(own)} if len(own) else {})
        np.testing.assert_array_equal(answers(left, frame), answers(twin, frame))
