"""The response cache. Oracles: the model itself, run on every row, and an exact LRU for the hit ratio."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.clock import SECOND, EventClock
from vitok.errors import InvalidInput, ServiceError
from vitok.serving.response_cache import ResponseCache


class Model:
    """Gives the bits of each row back, so that no other row's answer can look right."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        self.rows += len(rows)
        bits = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
        return {"bits": bits.copy(), "first": rows[:, 0].copy()}


def cache_of(**more: object) -> ResponseCache:
    return ResponseCache(**{"max_bytes": 1 << 16, "ttl": "1h", "measured": False, **more})  # type: ignore[arg-type]


SPECIAL = st.sampled_from([0.0, -0.0, 1.0, 2.0, float("nan"), -float("nan"), float("inf")])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(SPECIAL, SPECIAL), min_size=1, max_size=12), min_size=1, max_size=20),
    st.sampled_from([np.float32, np.float64]),
)
def test_every_answer_is_that_of_the_row_to_the_bit(turns: list[list[tuple[float, float]]], kind: type) -> None:
    cache, model = cache_of(max_bytes=3000), Model()
    for turn in turns:
        rows: np.ndarray = np.array(turn, kind)
        served = cache.answer("m/1", rows, model)
        assert (served.outputs["bits"] == rows.view(np.uint8).reshape(len(rows), -1)).all()
        assert served.outputs["first"].tobytes() == rows[:, 0].tobytes()
        assert cache.report.size <= 3000


def test_many_rows_through_a_small_cache_stay_right_and_within_its_bound() -> None:
    rng = np.random.default_rng(7)
    cache, model = cache_of(max_bytes=20_000), Model()
    for _ in range(400):
        rows = rng.zipf(1.2, (64, 3)).astype(np.float64)
        served = cache.answer("m/1", rows, model)
        assert (served.outputs["bits"] == rows.view(np.uint8).reshape(64, -1)).all()
    report = cache.report
    assert report.size <= 20_000
    assert report.evicted > 0
    assert report.hits + report.coalesced + model.rows >= report.rows


def test_equal_rows_of_a_turn_are_one_run() -> None:
    cache, model = cache_of(), Model()
    cache.answer("m/1", np.array([[9.0]]), model)
    served = cache.answer("m/1", np.array([[1.0], [2.0], [1.0], [1.0], [9.0]]), model)
    assert model.rows == 3
    assert served.outputs["first"].tolist() == [1, 2, 1, 1, 9]
    assert served.ran.tolist() == [True, True, True, True, False]
    assert (cache.report.hits, cache.report.coalesced) == (1, 2)


def test_an_answer_is_good_for_its_time_only() -> None:
    clock = EventClock()
    cache, model = cache_of(ttl="10s", clock=clock), Model()
    row = np.array([[1.0]])
    for moment, runs in ((0, 1), (9, 1), (10, 2), (19, 2), (20, 3)):
        clock.advance(moment * SECOND)
        cache.answer("m/1", row, model)
        assert model.rows == runs, moment
    assert cache.report.expired == 2


def test_another_version_finds_nothing() -> None:
    cache, old, new = cache_of(), Model(), Model()
    row = np.array([[1.0]])
    cache.answer("m/1", row, old)
    cache.answer("m/2", row, new)
    assert (old.rows, new.rows) == (1, 1)
    assert cache.report.entries == 1


def test_a_swap_while_the_model_runs_keeps_nothing_of_the_old_version() -> None:
    cache, new = cache_of(), Model()
    cache.answer("m/1", np.array([[5.0]]), Model())
    row = np.array([[1.0]])

    def slow(rows: np.ndarray) -> dict[str, np.ndarray]:
        cache.answer("m/2", np.array([[7.0]]), new)
        return {name: values * 0 for name, values in Model()(rows).items()}

    cache.answer("m/1", row, slow)
    cache.answer("m/2", row, new)
    assert cache.answer("m/2", row, new).outputs["first"].tolist() == [1.0]
    assert new.rows == 2


def test_errors_are_not_kept() -> None:
    cache, model = cache_of(), Model()
    cache.answer("m/1", np.array([[5.0]]), model)

    def failing(rows: np.ndarray) -> dict[str, np.ndarray]:
        raise ServiceError("no memory")

    row = np.array([[1.0]])
    with pytest.raises(ServiceError):
        cache.answer("m/1", row, failing)
    assert cache.answer("m/1", row, model).outputs["first"].tolist() == [1.0]


def lru_hits(items: np.ndarray, size: int) -> int:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for item in items.tolist():
        if item in kept:
            hits += 1
            kept.move_to_end(item)
        else:
            kept[item] = None
            if len(kept) > size:
                kept.popitem(last=False)
    return hits


def test_on_zipf_with_scans_it_hits_at_least_as_often_as_lru() -> None:
    rng = np.random.default_rng(1)
    ranks = np.arange(1, 20_001)
    weights = ranks**-1.1
    items = rng.choice(ranks, 60_000, p=weights / weights.sum()).astype(np.float64)
    scans = rng.random(60_000) < 0.3
    items[scans] = 1e6 + np.arange(scans.sum())
    cache, model = cache_of(max_bytes=60_000), Model()
    for item in items:
        cache.answer("m/1", np.array([[item]]), model)
    most = 60_000 // 17  # no more entries than fit; an LRU of that many is the stronger opponent
    assert cache.report.hits >= lru_hits(items, min(most, cache.report.entries))


@pytest.mark.parametrize(("model_ns", "stays"), [(200, False), (100_000, True)])
def test_it_switches_itself_off_where_it_costs_more_than_it_saves(model_ns: int, stays: bool) -> None:
    now = [0]

    def timer() -> int:
        now[0] += 5_000  # each reading of the timer stands for work of the cache
        return now[0]

    cache, model = cache_of(measured=True, timer=timer), Model()

    def run(rows: np.ndarray) -> dict[str, np.ndarray]:
        now[0] += model_ns * len(rows)
        return model(rows)

    rng = np.random.default_rng(3)
    seen_off = False
    for _ in range(8_800):
        cache.answer("m/1", rng.integers(0, 12, (8, 1)).astype(np.float64), run)
        seen_off |= not cache.on
    report = cache.report
    assert seen_off is not stays
    # Off for 8,192 rows, another trial, and then off for longer.
    assert (report.passed > 0) is not stays
    assert report.rows + report.passed == 16 * 4_400
    if not stays:
        assert report.rows > 2 * 8_192


def test_it_is_off_for_answers_it_cannot_hold() -> None:
    cache = cache_of(max_bytes=600)
    cache.answer("m/1", np.zeros((1, 100)), Model())
    assert not cache.on
    assert "max_bytes" in cache.report.reason


def test_no_rows_and_wrong_bounds() -> None:
    served = cache_of().answer("m/1", np.zeros((0, 2)), lambda rows: {"first": rows[:, 0]})
    assert served.outputs["first"].shape == (0,)
    with pytest.raises(InvalidInput, match="max_bytes"):
        cache_of(max_bytes=0)
    with pytest.raises(InvalidInput, match="duration"):
        cache_of(ttl="soon")
