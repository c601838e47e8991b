"""A store that fails at any of its operations: the call never happened, or happened wholly; a twin is the oracle."""

import contextlib
import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.features.test_live import CARD, CARDS, PAID, SHOPS, START

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import LmdbStore, MemoryStore
from vitok.engines.key_value import Write
from vitok.engines.memory import MemoryRows
from vitok.engines.row_store import Row
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.features import Count, FeatureSet, OnlineFeatures, Source, View, intake, online

BILLS = View(name="bills", entity=CARD, source=Source("bills", "id"), aggregations=(Count("1d"),))
FEATURES = FeatureSet(views=(CARDS, SHOPS, BILLS))
KEYS = {"card": [f"c{i}" for i in range(6)], "shop": [f"s{i % 3}" for i in range(6)]}
END = START + 12 * DAY


class Failing(MemoryStore):
    """Fails once, `left` operations from now; a commit fails after it was written where `late` is true."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.late, self.failed = -1, False, False

    def _step(self) -> None:
        self.left -= 1
        if self.left == -1:
            self.failed = True
            raise StoreError("the store is away")

    def get(self, table: str, key: bytes) -> bytes | None:
        self._step()
        return super().get(table, key)

    def commit(self, writes: Iterable[Write]) -> None:
        rows = list(writes)
        if not self.late:
            self._step()
        super().commit(rows)
        if self.late:
            self._step()

    def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        self._step()
        for place, row in enumerate(super().scan(table, prefix)):
            if place == 1:
                self._step()
            yield row


class FailingRows(MemoryRows):
    """The same for rows."""

    left = -1

    def _step(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise StoreError("the rows are away")

    def read(self, keys: Any) -> list[bytes | None]:
        self._step()
        return super().read(keys)

    def write(self, rows: Iterable[Row]) -> int:
        self._step()
        return super().write(rows)

    def erase(self, keys: Any) -> int:
        self._step()
        return super().erase(keys)


def rows(day: int, n: int, *, source: str = "payments", start: int = START) -> pl.DataFrame:
    rng = np.random.default_rng([day, n])
    return pl.DataFrame(
        {
            "id": [f"{source}-{day}-{i}" for i in range(n)],
            "event_time": start + day * DAY + rng.integers(0, 8 * HOUR, n),
            "card": [f"c{i}" for i in rng.integers(0, 6, n)],
            "shop": [f"s{i}" for i in rng.integers(0, 3, n)],
            "amount": rng.integers(1, 50, n) / 4,
        }
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def opened(store: Any) -> OnlineFeatures:
    return OnlineFeatures(FEATURES, store, keep_events="30d", max_cached=1, journal=True)


def filled() -> tuple[Failing, OnlineFeatures]:
    """Windows of which some are put away, some have changed, and some events are in the journal alone."""
    store = Failing()
    made = opened(store)
    made.ingest("payments", rows(0, 40), positions={"at": 0})
    made.add("payments", "noted", START + 3 * DAY, {"card": "c1", "shop": "s1", "amount": 1.0}, note=b"old")
    made.ingest("bills", rows(1, 20, source="bills"))
    for _ in range(2):
        made.checkpoint()
    made.ingest("payments", rows(9, 10), positions={"at": 1})
    return store, made


def said(made: OnlineFeatures) -> tuple[Any, ...]:
    """All that can be asked."""
    out = np.full((12, len(FEATURES.computed)), np.nan)
    keys = {name: [*values, *values] for name, values in KEYS.items()}
    times = np.repeat([made.newest + 1, made.newest + 5 * HOUR], 6)
    newest = made.read_many(keys, times, out)
    seen = [made.seen("payments", name) for name in (*rows(0, 40)["id"], *rows(9, 10)["id"], *rows(10, 30)["id"])]
    seen += [made.seen("bills", name) for name in rows(1, 20, source="bills")["id"]]
    seen += [made.seen("payments", f"n{i}") for i in range(4)]
    notes = [made.note("payments", name) for name in ("noted", "n0", "n1", "n2", "n3")]
    return out.tolist(), newest.tolist(), made.newest, made.positions(), seen, notes


def same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return np.array_equal(one[0], other[0], equal_nan=True) and one[1:] == other[1:]


def few(n: int) -> tuple[list[str], list[int], list[dict[str, Any]]]:
    made = [{"card": f"c{i + 1}", "shop": f"s{i % 3}", "amount": 2.0 + i} for i in range(n)]
    return [f"n{i}" for i in range(n)], [START + 10 * DAY + i for i in range(n)], made


def serve(made: OnlineFeatures) -> None:
    made.serve("payments", *few(3), np.zeros((3, len(FEATURES.computed))), notes=[b"a", b"b", b"c"])


CALLS: dict[str, Callable[[OnlineFeatures], Any]] = {
    "ingest": lambda made: made.ingest("payments", rows(10, 30), positions={"at": 2}),
    "ingest nothing": lambda made: made.ingest("payments", rows(9, 10), positions={"at": 2}),
    "add": lambda made: made.add("payments", *[one[0] for one in few(1)], note=b"new"),
    "add_many": lambda made: made.add_many("payments", *few(4), notes=[b"new"] * 4),
    "serve": serve,
    "checkpoint": lambda made: made.checkpoint(),
    "forget": lambda made: made.forget("card", {"card": "c1"}),
    "expire": lambda made: made.expire(),
    "read": said,
}


@pytest.mark.parametrize("late", [False, True], ids=["nothing written", "all written"])
@pytest.mark.parametrize("limit", [256 << 20, 0], ids=["", "a checkpoint is due"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_fails_never_happened_or_happened_wholly(
    call: str, limit: int, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "_JOURNAL_LIMIT", limit)
    if limit == 0 and not call.startswith("ingest"):
        return
    before_store, before = filled()
    after_store, after = filled()
    CALLS[call](after)
    possible = [said(before), said(after)]
    durable = [said(opened(before_store)), said(opened(after_store))]
    for place in range(200):
        store, made = filled()
        store.left, store.late = place, late
        with contextlib.suppress(StoreError):
            CALLS[call](made)
        ended, store.left = not store.failed, -1
        if not (call == "forget" and late):  # of windows that are gone from the store some may be in memory still
            assert any(same(said(made), one) for one in possible), place
        assert any(same(said(opened(store)), one) for one in durable), place
        if ended:
            break
        # The caller tries again.
        serving = call == "serve" and made.seen("payments", "n0")
        if not serving:
            CALLS[call](made)
        assert same(said(made), possible[1]), place
        made.checkpoint()
        assert same(said(made), possible[1]), place
        assert same(said(opened(store)), possible[1]), place
    assert ended


def test_publishing_that_fails_is_made_up_for() -> None:
    whole = MemoryRows()
    filled()[1].publish(whole, now=END)
    for place in range(100):
        _, made = filled()
        store = FailingRows()
        store.left = place
        with contextlib.suppress(StoreError):
            made.publish(store, now=END)
        ended, store.left = store.left >= 0, -1
        before = said(made)
        made.publish(store, now=END)
        assert same(said(made), before)
        assert {key: kept[0][16:] for key, kept in store._rows.items()} == {
            key: kept[0][16:] for key, kept in whole._rows.items()
        }
        made.checkpoint()
        assert made.publish(store, now=END) == 0
        if ended:
            break
    assert ended


@pytest.mark.parametrize("late", [False, True])
def test_a_backfill_that_fails_leaves_an_empty_store(late: bool) -> None:
    sources = {"payments": rows(0, 40), "bills": rows(1, 20, source="bills")}
    notes = {"payments": pl.Series([b"%d" % i for i in range(40)])}
    twin_store = Failing()
    n = opened(twin_store).backfill(sources, until=START + 5 * DAY, notes=notes, positions={"at": 5})
    wanted = said(opened(twin_store))
    for place in range(100):
        store = Failing()
        made = opened(store)
        empty = said(made)
        store.left, store.late = place, late
        with contextlib.suppress(StoreError):
            made.backfill(sources, until=START + 5 * DAY, notes=notes, positions={"at": 5})
        ended, store.left = not store.failed, -1
        if ended:
            break
        if store.get("meta", b"features") is None:
            assert same(said(made), empty)
            assert made.backfill(sources, until=START + 5 * DAY, notes=notes, positions={"at": 5}) == n
            assert same(said(made), wanted)
        else:
            with pytest.raises(Conflict, match="not empty"):
                made.backfill(sources, until=START + 5 * DAY)
        assert same(said(opened(store)), wanted)
    assert ended


def test_a_backfill_without_one_source_fills_nothing() -> None:
    made = opened(MemoryStore())
    with pytest.raises(InvalidInput, match="hold 'bills'"):
        made.backfill({"payments": rows(0, 40)}, until=START + 5 * DAY)
    assert made.newest == 0
    assert made.backfill({"payments": rows(0, 40), "bills": rows(1, 3, source="bills")}, until=START + 5 * DAY) == 43


def test_windows_stay_where_a_checkpoint_failed_in_another_thread() -> None:
    store, made = filled()
    _, twin = filled()
    gate, plain = threading.Event(), store.commit

    def away(_: Iterable[Write]) -> None:
        gate.wait(10)
        raise StoreError("the store is away")

    store.commit = away  # type: ignore[method-assign]
    taken = made.begin_checkpoint({"at": 1})
    failures: list[StoreError] = []

    def save() -> None:
        try:
            made.save(taken)
        except StoreError as error:
            failures.append(error)

    saving = threading.Thread(target=save)
    saving.start()
    for one in (made, twin):
        one.add_many("payments", *few(4), notes=[b"new"] * 4)
    assert same(said(made), said(twin))
    with pytest.raises(Conflict, match="still being saved"):
        made.checkpoint()
    gate.set()
    saving.join()
    assert len(failures) == 1
    assert same(said(made), said(twin))
    # It is taken back and put away: only the store has the windows then.
    store.commit = plain  # type: ignore[method-assign]
    for _ in range(2):
        made.checkpoint()
    assert max(made.n_keys.values()) == 0
    assert same(said(made), said(twin))
    assert same(said(opened(store)), said(twin))


def test_positions_that_json_cannot_hold_cost_nothing() -> None:
    store, made = filled()
    wanted = said(made)
    with pytest.raises(TypeError):
        made.checkpoint({"at": object()})
    with pytest.raises(TypeError):
        made.ingest("payments", rows(10, 30), positions={"at": object()})
    made.checkpoint()
    assert same(said(made), wanted)
    assert same(said(opened(store)), wanted)


def test_an_id_that_was_forgotten_counts_again_also_after_a_crash() -> None:
    store = MemoryStore()
    made = opened(store)
    made.ingest("payments", rows(0, 700))
    made.checkpoint()
    made.ingest("payments", rows(50, 1))
    made.expire()
    again = rows(0, 700).with_columns(pl.col("event_time") + pl.duration(days=50))
    assert made.ingest("payments", again[:50]).n_new == 50
    wanted = said(made)
    survivor = opened(store)
    assert same(said(survivor), wanted)
    survivor.checkpoint()
    assert opened(store).ingest("payments", again[:60]).n_new == 10


def test_ids_take_no_more_room_than_their_windows_where_events_are_served() -> None:
    made = OnlineFeatures(FeatureSet(views=(SHOPS,)), MemoryStore(), keep_events="1d")
    sizes = []
    for number in range(300):
        n = 100
        names = [f"{number}-{i}" for i in range(n)]
        payments = [{"card": "c", "shop": "s", "amount": 1.0}] * n
        made.serve(PAID.name, names, [START + number * 12 * HOUR] * n, payments, np.zeros((n, 2)))
        sizes.append(len(made._ids[PAID.name].seen))
    assert max(sizes) <= 2_048


def test_a_damaged_journal_is_told() -> None:
    store, _ = filled()
    key, record = next(iter(store.scan("journal")))
    store.commit([("journal", key, record[:-1])])
    with pytest.raises(StoreError, match="not a record of its journal"):
        opened(store)
    assert intake.unpack_journal(record)[0] == "payments"


def until_full(made: OnlineFeatures, twin: OnlineFeatures) -> tuple[int, StoreError]:
    """Takes batches in until the store refuses; returns how many it took, and the error."""
    for number in range(1_000):
        batch = rows(number % 9, 500).with_columns(id=_named(number))
        try:
            made.ingest("payments", batch, positions={"at": number})
        except StoreError as error:
            return number, error
        twin.ingest("payments", batch, positions={"at": number})
    raise AssertionError("the store took everything")


def test_a_full_map_loses_nothing_and_goes_on_in_a_larger_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("vitok.engines.lmdb.MAP_SIZE", 1 << 19)
        store = LmdbStore(tmp_path)
    made, twin = opened(store), opened(MemoryStore())
    done, error = until_full(made, twin)
    assert done > 3
    assert "could not be written" in str(error)
    assert "its map is full" in str(error)
    assert same(said(made), said(twin))
    store.close()
    store = LmdbStore(tmp_path)
    made = opened(store)
    assert same(said(made), said(twin))
    for one in (made, twin):
        one.ingest("payments", rows(9, 500).with_columns(id=_named(done)), positions={"at": done})
        one.checkpoint()
    assert same(said(made), said(twin))
    store.close()


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_space(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    made, twin = opened(store), opened(MemoryStore())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that may not grow is what a process sees of a disk that is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))
    try:
        done, error = until_full(made, twin)
        with pytest.raises(StoreError, match="could not be written"):
            made.checkpoint()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done > 3
    assert f"the store at {tmp_path} could not be written" in str(error)
    assert same(said(made), said(twin))
    for one in (made, twin):
        one.ingest("payments", rows(9, 500).with_columns(id=_named(done)), positions={"at": done})
        one.checkpoint()
    assert same(said(made), said(twin))
    store.close()
    store = LmdbStore(tmp_path)
    assert same(said(opened(store)), said(twin))
    store.close()


def _named(number: int) -> pl.Expr:
    return pl.format("{}-{}", pl.lit(number), pl.col("id"))


def test_reads_go_on_while_the_store_is_written() -> None:
    store, made = filled()
    writing, gate, plain = threading.Event(), threading.Event(), store.commit

    def slow(writes: Iterable[Write]) -> None:
        rows_ = list(writes)
        writing.set()
        gate.wait(10)
        plain(rows_)

    wanted = said(made)
    store.commit = slow  # type: ignore[method-assign]
    taking = threading.Thread(target=made.ingest, args=("payments", rows(10, 30)), kwargs={"positions": {"at": 2}})
    taking.start()
    writing.wait(10)
    found = [np.zeros(len(FEATURES.computed)) for _ in range(2)]
    for out in found:
        made.read({"card": "c1", "shop": "s1"}, made.newest + MINUTE, out)
    np.testing.assert_array_equal(found[0], found[1])
    assert made.positions() == wanted[3]
    gate.set()
    taking.join()
    assert made.positions() == {"at": 2}
