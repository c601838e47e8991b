"""Random definitions, streams and mishaps against the tables of the oracle: whatever happens, reads are right."""

import dataclasses
import random
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.features.table_oracle import frame, windowed

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import MemoryStore
from vitok.engines.key_value import Write
from vitok.errors import StoreError
from vitok.features import (
    Categories,
    Count,
    Distinct,
    Entity,
    FeatureSet,
    First,
    Last,
    Max,
    Mean,
    Min,
    OnlineFeatures,
    Rate,
    Ratio,
    Recent,
    Source,
    Std,
    Sum,
    TopK,
    View,
)
from vitok.features.aggregations import Aggregation

# Each length has a neighbour whose tail moves in other steps.
SPANS = ("1m", "5m", "7m", "1h", "719m", "12h", "721m", "13h", "12d", "17281m", "13d")
WHERE = (
    (),
    (("channel", "==", "web"),),
    (("channel", "in", ("web", "fax")), ("amount", ">", 0.0)),
    (("pieces", "not in", (1, 2)),),
    (("amount", "<=", 10.0),),
)
CUSTOMER, PAIR = Entity("customer", "customer"), Entity("pair", ("customer", "terminal"))
CITIES = Categories(("Riga", "Århus"))
STRANGE = ("c0", "a{b}%", "Ж", "x" * 300)


class Store(MemoryStore):
    """A store that fails now and then, leaving nothing behind."""

    fails = False

    def commit(self, writes: Iterable[Write]) -> None:
        rows = list(writes)
        if self.fails:
            raise StoreError("the disk is full")
        super().commit(rows)


def some_aggregations(rng: random.Random, *, exact: bool) -> tuple[Aggregation, ...]:
    spans = (*SPANS, "90s", "1s") if exact else SPANS

    def over() -> tuple[str, ...]:
        return tuple(rng.sample(spans, rng.randrange(1, 4)))

    def where() -> Any:
        return rng.choice(WHERE)

    shared = over()
    made: list[Aggregation] = [
        Count(over(), where=where()),
        Sum("amount", over(), where=where()),
        Sum("pieces", over()),
        Mean("amount", over(), where=where()),
        Std("amount", over(), where=where()),
        Min("amount", over(), where=where()),
        Max("pieces", over(), where=where()),
        First("amount", over(), where=where()),
        Last("amount", over(), where=where()),
        Last("city", over()),
        Distinct("city", over(), where=where()),
        Distinct("amount", over()),
        TopK("pieces", over(), k=2, where=where()),
        TopK("city", over(), k=3),
        Recent("amount", rng.choice(spans), n=rng.randrange(1, 5), where=where()),
        Ratio(Sum("amount", shared, where=where()), Count(shared), name="share"),
        Rate(over(), per="1d", where=where()),
    ]
    chosen = rng.sample(made, rng.randrange(1, 7))
    return tuple(dataclasses.replace(item, name=f"f{i}") if _has_name(item) else item for i, item in enumerate(chosen))


def _has_name(item: Aggregation) -> bool:
    return not isinstance(item, Count | Ratio)


def some_views(rng: random.Random) -> FeatureSet:
    encode = {"city": CITIES} if rng.random() < 0.7 else {}
    source = Source("payments", "id", ingest_time="seen_at", encode={"city": CITIES})
    bills = Source("bills", "id", encode=encode or {"city": CITIES})
    views = []
    for name, entity in (("a", CUSTOMER), ("b", PAIR), ("c", CUSTOMER)):
        exact = rng.random() < 0.2
        views.append(
            View(
                name=name,
                entity=entity,
                source=bills if name == "c" else source,
                aggregations=some_aggregations(rng, exact=exact),
                exact=exact,
                # Everything that has come is seen: the ingest time only orders.
                lag=rng.choice(["0s", "7m", "2h"]) if name != "c" else None,
            )
        )
    return FeatureSet(views=tuple(views))


def some_events(rng: random.Random, n: int, base: int) -> list[dict[str, Any]]:
    span = rng.choice([20 * MINUTE, 14 * HOUR, 3 * DAY, 30 * DAY])
    grain = rng.choice([1, MINUTE, 5 * MINUTE, HOUR])
    rows = []
    for i in range(n):
        time = base + rng.randrange(span) // grain * grain + rng.choice([0, 0, -1, 1])
        rows.append(
            {
                "id": f"e{i}",
                "event_time": time,
                "seen_at": time + rng.choice([0, 0, 5, HOUR]),
                "customer": rng.choice(STRANGE),
                "terminal": rng.randrange(2),
                "amount": rng.choice([None, float("nan"), 0.0, -0.0, *(round(rng.uniform(0, 50), 2) for _ in "xxxx")]),
                "pieces": rng.choice([None, *range(4)]),
                "channel": rng.choice([None, "web", "shop", "fax"]),
                "city": rng.choice([None, "Riga", "Århus", "Oslo"]),
                "gone": None,
            }
        )
    # In any order at all: how late an event may come is not bounded while its id is remembered.
    jitter = rng.choice([1, 30 * MINUTE, span])
    rows.sort(key=lambda row: row["event_time"] + rng.randrange(jitter))
    return rows


class Game:
    """One stream with its mishaps, and what has come so far by source."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.features = some_views(self.rng)
        self.lateness = self.rng.choice([1, MINUTE, 10 * MINUTE, 3 * HOUR])
        self.store = Store()
        self.journal = self.rng.random() < 0.7
        self.options = {"max_cached": self.rng.choice([1, 2, 1000]), "keep_events": "60d", "lateness": self.lateness}
        self.come: dict[str, dict[str, dict[str, Any]]] = {"payments": {}, "bills": {}}
        self.at = 0
        self.base = self.rng.choice([-20 * DAY, -DAY, 0, 17_000 * DAY])
        self.online = self.opened()

    def opened(self) -> OnlineFeatures:
        return OnlineFeatures(self.features, self.store, journal=self.journal, **self.options)

    def ingest(self, source: str, batch: list[dict[str, Any]]) -> None:
        self.at += 1
        if self.journal and self.rng.random() < 0.1:
            self.store.fails = True
            with pytest.raises(StoreError):
                self.online.ingest(source, frame(batch), positions={"at": self.at})
            self.store.fails = False
            assert self.online.positions() == ({"at": self.at - 1} if self.at > 1 else {})
        done = self.online.ingest(source, frame(batch), positions={"at": self.at})
        kept = self.come[source]
        n = len(kept)
        for row in batch:
            kept.setdefault(row["id"], row)
        assert (done.n_new, len(done.rejected)) == (len(kept) - n, 0)
        assert done.n_duplicate == len(batch) - done.n_new

    def mishap(self) -> None:
        kind = self.rng.randrange(8)
        if kind == 0:
            self.online.checkpoint()
        elif kind == 1:
            self.store.fails = True
            with pytest.raises(StoreError):
                self.online.checkpoint()
            self.store.fails = False
        elif kind == 2 and self.journal:
            self.online = self.opened()
            assert self.online.positions() == {"at": self.at}
        elif kind == 3 and not self.journal:
            self.online.checkpoint()
            self.online = self.opened()
            assert self.online.positions() == {"at": self.at}

    def ask(self, source: str) -> None:
        view = self.rng.choice([view for view in self.features.windowed if view.source.name == source])
        customer, terminal = self.rng.choice([*STRANGE, "nobody"]), self.rng.randrange(2)
        rows = list(self.come[source].values())
        own = [row for row in rows if row["customer"] == customer]
        own = [row for row in own if row["terminal"] == terminal or view.entity is CUSTOMER]
        newest = max((row["event_time"] for row in own), default=0)
        step = self.rng.choice([5 * MINUTE, HOUR, DAY])
        time = newest + self.rng.choice([0, 1, HOUR, 13 * HOUR, 13 * DAY])
        time = self.rng.choice([newest - self.lateness, time, -(-time // step) * step, -(-time // step) * step + 1])
        out = np.zeros((1, len(self.features.computed)))
        keys = {"customer": [customer], "terminal": [terminal]}
        found = self.online.read_many(keys, np.array([time]), out)
        place = [item.name for item in self.features.windowed].index(view.name)
        assert found[0, place] == (newest if own else -1)
        got = out[0, self.features.columns_of[view.name]]
        wanted = np.array(windowed(view, rows, {"event_time": time, "customer": customer, "terminal": terminal}))
        exact = view.plan.is_exact
        np.testing.assert_array_equal(got[exact], wanted[exact])
        np.testing.assert_allclose(got[~exact], wanted[~exact], rtol=1e-9, atol=1e-9)
        own_keys = {"customer": customer, "terminal": str(terminal)}
        statuses = {self.online.read(own_keys, moment, out[0]) for moment in (time, newest + 100 * DAY)}
        assert own or "missing" in statuses or "late" in statuses


@settings(max_examples=120)
@given(st.integers(0, 10**9))
def test_whatever_happens_reads_are_right(seed: int) -> None:
    game = Game(seed)
    rng = game.rng
    events = {source: some_events(rng, rng.choice([0, 1, 30, 90]), game.base) for source in ("payments", "bills")}
    while any(events.values()):
        source = rng.choice([name for name, rows in events.items() if rows])
        size = rng.choice([1, 2, 40])
        batch, events[source] = events[source][:size], events[source][size:]
        if game.come[source] and rng.random() < 0.4:
            # A copy under an id that has come, with other contents and another key.
            first = rng.choice(list(game.come[source].values()))
            batch.insert(rng.randrange(len(batch) + 1), {**first, "amount": 1e6, "customer": "c0"})
        game.ingest(source, batch)
        game.mishap()
        game.ask(source)
        game.ask(rng.choice(["payments", "bills"]))


@given(st.integers(0, 10**9))
@settings(max_examples=15)
def test_events_come_while_a_checkpoint_is_saved(seed: int) -> None:
    game = Game(seed)
    events = some_events(game.rng, 60, game.base)
    gate = threading.Event()
    plain = game.store.commit

    def slow(writes: Iterator[Write]) -> None:
        if threading.current_thread() is not threading.main_thread():
            gate.wait(10)
        plain(writes)

    game.store.commit = slow  # type: ignore[method-assign]
    game.ingest("payments", events[:20])
    taken, at = game.online.begin_checkpoint({"at": game.at}), game.at
    saving = threading.Thread(target=game.online.save, args=(taken,))
    saving.start()
    for begin in (20, 40):
        game.ingest("payments", events[begin : begin + 20])
        game.ask("payments")
    gate.set()
    saving.join()
    if not game.journal:
        # What came after the checkpoint was begun is the owner's to add again.
        game.online = game.opened()
        assert game.online.positions() == {"at": at}
        assert not game.online.seen("payments", events[-1]["id"])
        game.at = at
        game.come["payments"] = {row["id"]: row for row in events[:20]}
        game.ingest("payments", events[20:])
    game.online = game.opened() if game.journal else game.online
    assert game.online.positions() == {"at": game.at}
    for _ in range(5):
        game.ask("payments")
