"""Packed windows that were damaged, and counts of different values where there are many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import MemoryStore
from vitok.errors import StoreError
from vitok.features import (
    Count,
    Distinct,
    Entity,
    FeatureSet,
    First,
    Mean,
    OnlineFeatures,
    Recent,
    Source,
    Std,
    TopK,
    View,
)
from vitok.features.rows import encode_key
from vitok.features.state import WindowState
from vitok.features.state_kernels import _count_code

VIEW = View(
    name="c",
    entity=Entity("card", "card"),
    source=Source("payments", "id"),
    aggregations=(
        Count(("1h", "30d")),
        Mean("amount", "1d"),
        Std("amount", "1d"),
        First("amount", "1d"),
        Distinct("amount", ("1h", "30d")),
        TopK("amount", "1d", k=2),
        Recent("amount", "1d", n=3),
        Recent("pieces", "1h", n=1),
    ),
)
LATENESS = 10 * MINUTE


def filled(n: int) -> WindowState:
    state = WindowState(VIEW.plan, LATENESS)
    state.new_slot()
    rng = np.random.default_rng(n)
    times = np.sort(20_000 * DAY + rng.integers(0, 3 * HOUR, n))
    values = np.round(rng.uniform(0, 9, (n, len(VIEW.plan.inputs))))
    values[rng.random(values.shape) < 0.1] = np.nan
    codes = values[:, : len(VIEW.plan.codes)].copy().view(np.int64)
    none = np.zeros(n, np.int64)
    state.apply(none, times, none, np.arange(n), values, codes)
    return state


def answers(state: WindowState, slot: int) -> np.ndarray:
    out = np.empty((3, len(VIEW.plan.names)))
    state.read(np.full(3, slot), 20_000 * DAY + np.array([2 * HOUR, 3 * HOUR, 5 * HOUR]), out)
    return out


@given(st.integers(0, 200))
def test_a_packed_state_goes_on_as_it_was(n: int) -> None:
    state = filled(n)
    blob = state.pack(0)
    again = WindowState(VIEW.plan, LATENESS, keys=1)
    assert again.load(again.new_slot(), blob) == 0
    assert again.pack(0) == blob == again.gather(np.array([0])).blob(0)
    np.testing.assert_array_equal(answers(again, 0), answers(state, 0))
    assert again.newest(0) == state.newest(0)


@given(st.integers(1, 60), st.integers(0, 10**6), st.integers(-(2**63), 2**63 - 1))
def test_blobs_of_another_length_or_count_are_refused(n: int, cut: int, number: int) -> None:
    state = filled(n)
    blob = state.pack(0)
    head = state.layout.header
    wrong = [b"", blob[: cut % len(blob)], blob + bytes(1 + cut % 80)]
    for place in range(1, head, 2):
        numbers = np.frombuffer(blob, np.int64).copy()
        if numbers[place] != number:
            numbers[place] = number
            wrong.append(numbers.tobytes())
    for one in wrong:
        with pytest.raises(StoreError, match=f"^{len(one)} bytes of the store are not the windows of a key"):
            state.load(state.new_slot(), one)
        with pytest.raises(StoreError, match="are not the windows of a key"):
            state.layout.read_blobs([None, one], np.zeros(2, np.int64), np.empty((2, len(VIEW.plan.names))))


def test_a_damaged_key_fails_alone_and_changes_nothing() -> None:
    features, store = FeatureSet(views=(VIEW,)), MemoryStore()
    row = {"card": "good", "amount": 1.0, "pieces": 1}
    online = OnlineFeatures(features, store)
    online.add("payments", "1", 20_000 * DAY, row)
    online.checkpoint()
    store.commit([("state:c", encode_key("bad"), b"\1" * 40)])
    online = OnlineFeatures(features, store)
    bad, time = {**row, "card": "bad"}, 20_000 * DAY + 1
    out = np.zeros((2, len(features.computed)))
    with pytest.raises(StoreError, match="40 bytes of the store are not the windows of a key"):
        online.read({"card": "bad"}, time, out[0])
    with pytest.raises(StoreError, match="40 bytes"):
        online.add_many("payments", ["2", "3"], [time, time], [row, bad])
    with pytest.raises(StoreError, match="40 bytes"):
        online.serve("payments", ["2", "3"], [time, time], [row, bad], out)
    assert not online.seen("payments", "2")
    assert online.read({"card": "good"}, time + 1, out[0]) == "fresh"
    assert out[0, features.computed.index("c_count_30d")] == 1
    assert online.forget("card", {"card": "bad"}) == 1
    assert online.add("payments", "3", time, bad)


FAMILIES = {
    "whole numbers": np.arange(30_000.0),
    "negative numbers": -np.arange(30_000.0),
    "card numbers": 4_000_000_000_000_000.0 + np.arange(30_000.0),
    "hundreds": np.arange(30_000.0) * 100,
    "cents": np.arange(30_000.0) / 100,
    "quarters": np.arange(30_000.0) / 4,
    "powers of two": np.ldexp(1.0 + np.arange(30_000) % 1024 / 1024, np.arange(30_000) // 1024),
    "numbers of texts": np.arange(30_000).view(np.float64),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_of_any_kind_are_spread_over_the_table(family: str) -> None:
    codes = FAMILIES[family].view(np.int64)
    size, shift = 8, 61
    while size < 2 * len(codes):
        size, shift = 2 * size, shift - 1
    keys, counts = np.zeros(size, np.int64), np.zeros(size, np.int64)
    new = [_count_code(keys, counts, shift, code, 1) for code in [*codes.tolist(), *codes[:50].tolist()]]
    assert sum(new) == len(codes)
    assert sorted(keys[counts > 0].tolist()) == sorted(codes.tolist())
    # Linear probing walks at most one run of used places; of a random table this full none is longer than some dozens.
    used = np.concatenate([[0], np.flatnonzero(counts == 0), [size]])
    assert np.diff(used).max() < 200


@pytest.mark.parametrize("n", [1, 7, 3_000])
def test_many_different_values_are_counted_exactly(n: int) -> None:
    view = View(
        name="c",
        entity=VIEW.entity,
        source=VIEW.source,
        aggregations=(Distinct("amount", "30d"), TopK("amount", "30d")),
    )
    online = OnlineFeatures(FeatureSet(views=(view,)), MemoryStore())
    times = [20_000 * DAY + i for i in range(2 * n)]
    rows = [{"card": "c", "amount": float(i % n)} for i in range(2 * n)]
    online.add_many("payments", [str(i) for i in range(2 * n)], times, rows)
    online.add("payments", "one more", times[-1] + 1, {"card": "c", "amount": float(n - 1)})
    out = np.zeros(len(online.features.computed))
    online.read({"card": "c"}, times[-1] + 2, out)
    assert out[:2].tolist() == [n, n - 1]
