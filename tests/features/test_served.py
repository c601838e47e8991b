import itertools
import math

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from vitok.clock import HOUR
from vitok.engines import MemoryStore
from vitok.errors import Conflict, InvalidInput
from vitok.features.served import ServedStatistics, load
from vitok.stats import FrozenEdges

NAMES = ("amount", "count", "rate")
RNG = np.random.default_rng(7)
VALUES = RNG.lognormal(2.0, 1.0, (3_000, 3))
VALUES[RNG.random(VALUES.shape) < 0.1] = np.nan
VALUES[:, 1] = np.where(np.isnan(VALUES[:, 1]), np.nan, np.round(VALUES[:, 1]))
VALUES[5, 0], VALUES[6, 0] = np.inf, -np.inf
TIMES = np.sort(RNG.integers(0, 3 * HOUR, len(VALUES)))
EDGES = tuple(FrozenEdges.from_values(VALUES[:500, place], n_bins=12) for place in range(3))


def served(values: np.ndarray = VALUES, times: np.ndarray = TIMES) -> ServedStatistics:
    found = ServedStatistics(NAMES, edges=EDGES)
    found.add(values, times)
    return found


def check(found: ServedStatistics, values: np.ndarray, start: int, end: int) -> None:
    # Oracle: numpy over the rows, and FrozenEdges.count.
    window = found.window(start, end)
    assert window.n == len(values)
    for place, item in enumerate(window.features):
        column = values[:, place]
        finite = column[np.isfinite(column)]
        assert (item.n, item.nulls) == (len(column), int(np.isnan(column).sum()))
        assert item.counts.tolist() == EDGES[place].count(column).tolist()
        if len(finite):
            assert (item.least, item.largest) == (finite.min(), finite.max())
            assert item.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-14 * np.abs(finite).max())
        if len(finite) > 1:
            assert item.std == pytest.approx(finite.std(ddof=1), rel=1e-9, abs=1e-14 * np.abs(finite).max())


def test_hours_are_what_numpy_says() -> None:
    found = served()
    assert found.hours == (0, HOUR, 2 * HOUR)
    for hour in found.hours:
        check(found, VALUES[hour == TIMES // HOUR * HOUR], hour, hour + HOUR)
    check(found, VALUES, 0, 3 * HOUR)


@given(st.lists(st.integers(0, 3_000), max_size=4), st.booleans())
def test_any_division_into_parts_gives_the_same(cuts: list[int], shuffled: bool) -> None:
    order = np.random.default_rng(len(cuts)).permutation(len(VALUES)) if shuffled else np.arange(len(VALUES))
    values, times = VALUES[order], TIMES[order]
    whole = ServedStatistics(NAMES, edges=EDGES)
    ends = [0, *sorted(cuts), len(VALUES)]
    for first, last in itertools.pairwise(ends):
        whole.merge(served(values[first:last], times[first:last]))
    check(whole, VALUES, 0, 3 * HOUR)


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(0, 30), st.just(3)),
        elements=st.one_of(st.floats(-1e9, 1e9), st.sampled_from([math.nan, math.inf, -math.inf])),
    ),
)
def test_any_values(values: np.ndarray) -> None:
    found = ServedStatistics(NAMES, edges=EDGES)
    found.add(values, np.full(len(values), 10 * HOUR))
    check(found, values, 10 * HOUR, 11 * HOUR)


def test_large_values_lose_no_digits() -> None:
    # Oracle: the variance of the same values without the offset.
    small = np.random.default_rng(0).normal(size=4_000)
    found = ServedStatistics(["x"])
    for part in np.split(small, 8):
        found.add((part + 1e9)[:, None], 0)
    assert found.window(0, HOUR).features[0].std == pytest.approx(small.std(ddof=1), rel=1e-6)


def test_one_time_for_all_and_float32() -> None:
    found = ServedStatistics(NAMES)
    found.add(VALUES.astype(np.float32), 5 * HOUR + 7)
    found.add([[1, 2, 3]], -1)
    assert found.hours == (-HOUR, 5 * HOUR)
    assert found.window(5 * HOUR, 6 * HOUR).features[0].counts.size == 0
    assert found.window(-HOUR, 0).feature("count").mean == 2.0
    found.add(np.empty((0, 3)), np.empty(0, np.int64))
    assert len(found.hours) == 2


def test_empty_window_has_no_numbers() -> None:
    window = served().window(10 * HOUR, 11 * HOUR)
    assert (window.n, window.n_hours) == (0, 0)
    assert math.isnan(window.features[0].null_share)
    assert math.isnan(window.features[0].mean)
    assert math.isnan(window.features[0].least)
    with pytest.raises(InvalidInput, match="amount, count, rate"):
        window.feature("nothing")


def test_bytes_are_read_back() -> None:
    found = served()
    other = ServedStatistics(NAMES, edges=EDGES)
    other.add_bytes(found.to_bytes())
    assert other.to_bytes() == found.to_bytes()
    check(other, VALUES, 0, 3 * HOUR)
    other.add_bytes(found.to_bytes(HOUR))
    assert other.window(HOUR, 2 * HOUR).n == 2 * found.window(HOUR, 2 * HOUR).n


@pytest.mark.parametrize("damage", [b"", b"x", b"\0" * 200])
def test_other_bytes_are_refused(damage: bytes) -> None:
    found = served()
    before = found.to_bytes()
    for content in (damage, before[:-1]):
        with pytest.raises(InvalidInput, match="to_bytes"):
            found.add_bytes(content)
    assert found.to_bytes() == before


def test_other_features_or_edges_do_not_add_up() -> None:
    for other in (ServedStatistics(NAMES), ServedStatistics(("amount", "rate", "count"), edges=EDGES)):
        other.add(VALUES, 0)
        with pytest.raises(Conflict, match="keep them apart"):
            served().merge(other)
        with pytest.raises(Conflict, match="keep them apart"):
            served().add_bytes(other.to_bytes())


def test_store_adds_writers_up() -> None:
    store = MemoryStore()
    first, second = served(VALUES[::2], TIMES[::2]), served(VALUES[1::2], TIMES[1::2])
    assert first.save(store, writer="one") == 3
    second.save(store, writer="two")
    first.save(store, writer="one")
    (found,) = load(store)
    assert found.edges == EDGES
    check(found, VALUES, 0, 3 * HOUR)
    (mine,) = load(store, writer="one")
    assert mine.to_bytes() == first.to_bytes()
    (part,) = load(store, since=HOUR, until=2 * HOUR)
    assert part.hours == (HOUR,)


def test_store_keeps_models_apart() -> None:
    store = MemoryStore()
    served().save(store)
    other = ServedStatistics(["x"])
    other.add([[1.0]], -5 * HOUR)
    other.save(store)
    found = {item.names: item for item in load(store)}
    assert set(found) == {NAMES, ("x",)}
    assert found["x",].hours == (-5 * HOUR,)
    assert load(MemoryStore()) == ()
    with pytest.raises(InvalidInput):
        other.save(store, writer="")


@pytest.mark.parametrize(
    ("values", "times"),
    [([[1.0]], 0), ([1.0, 2.0, 3.0], 0), ([[1.0, 2.0, 3.0]], [0, 1]), ([[1.0, 2.0, 3.0]], [[0]])],
)
def test_wrong_shapes_count_nothing(values: object, times: object) -> None:
    found = ServedStatistics(NAMES)
    with pytest.raises(InvalidInput):
        found.add(values, times)  # type: ignore[arg-type]
    assert found.hours == ()


def test_names_and_edges_are_checked() -> None:
    for names in ([], ["a", "a"]):
        with pytest.raises(InvalidInput):
            ServedStatistics(names)
    with pytest.raises(InvalidInput, match="one for each"):
        ServedStatistics(["a"], edges=EDGES)


def test_what_never_varies_has_no_spread() -> None:
    found = ServedStatistics(["x"])
    for n in (3, 7, 11):
        found.add(np.full((n, 1), 0.1), 0)
    assert found.window(0, HOUR).features[0].std == 0.0
