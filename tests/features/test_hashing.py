"""Tables of fingerprints against a dict: Python's own is the oracle."""

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitok.features.hashing import KeyIndex, SeenIds

WORDS = st.sampled_from([0, 1, 2, 1024, 2**63, 2**64 - 1])
PAIRS = st.lists(st.tuples(WORDS, st.integers(0, 3)), max_size=12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PAIRS, st.integers(-3, 9)),
        st.tuples(st.just("take back"), PAIRS, st.just(0)),
        st.tuples(st.just("expire"), st.just([]), st.integers(-3, 9)),
    ),
    max_size=25,
)


def words(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.uint64).reshape(-1, 2)


def fingerprints(begin: int, n: int) -> np.ndarray:
    """Makes fingerprints that differ, with all kinds of low bits."""
    out = np.empty((n, 2), np.uint64)
    out[:, 0] = np.arange(begin, begin + n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    out[:, 1] = np.arange(begin, begin + n)
    return out


@given(STEPS)
def test_seen_ids_are_those_of_a_dict(steps: list[tuple[str, list[tuple[int, int]], int]]) -> None:
    seen, oracle = SeenIds(), dict[tuple[int, int], int]()
    asked = words([(word, other) for word in (0, 1, 2, 1024, 2**63, 2**64 - 1) for other in range(4)])
    for step, pairs, day in steps:
        if step == "add":
            wanted = []
            for pair in pairs:
                wanted.append(pair not in oracle)
                oracle.setdefault(pair, day)
            assert seen.add(words(pairs), np.full(len(pairs), day, np.int32)).tolist() == wanted
        elif step == "take back":
            seen.take_back(words(pairs))
            for pair in pairs:
                oracle.pop(pair, None)
        else:
            # Days that were let go once do not come back when a later call names an earlier one.
            seen.expire(day)
            oracle = {pair: kept for pair, kept in oracle.items() if kept >= seen._first_day}
        assert seen.has(asked).tolist() == [(int(a), int(b)) in oracle for a, b in asked]
        assert len(seen) >= len(oracle)


def test_an_id_that_was_taken_back_may_come_on_another_day() -> None:
    seen, ids = SeenIds(), fingerprints(0, 3)
    seen.add(ids, np.zeros(3, np.int32))
    seen.take_back(ids[:2])
    assert seen.add(ids, np.full(3, 9, np.int32)).tolist() == [True, True, False]
    seen.expire(5)
    assert seen.has(ids).tolist() == [True, True, False]


def test_ids_survive_growth() -> None:
    seen = SeenIds()
    for begin in range(0, 20_000, 700):
        ids = fingerprints(begin, 700)
        assert seen.add(ids, np.zeros(700, np.int32)).all()
        assert not seen.add(ids, np.zeros(700, np.int32)).any()
    assert seen.has(fingerprints(0, 20_000)).all()
    assert not seen.has(fingerprints(30_000, 1000)).any()


def test_a_stream_without_end_takes_the_room_of_its_windows() -> None:
    seen, per_day, kept_days = SeenIds(), 1_000, 30
    sizes = []
    for day in range(10 * kept_days):
        seen.keep_from(day - kept_days)
        assert seen.add(fingerprints(day * per_day, per_day), np.full(per_day, day, np.int32)).all()
        begin = max(0, day - kept_days)
        assert seen.has(fingerprints(begin * per_day, (day - begin + 1) * per_day)).all()
        sizes.append(len(seen._table[2]))
    # A table has room for at most 16/3 of what it must keep, rounded up to a power of two.
    assert max(sizes) <= 2 ** np.ceil(np.log2(16 / 3 * (kept_days + 2) * per_day))
    assert sizes[2 * kept_days :] == [sizes[-1]] * (8 * kept_days)


def test_batches_that_are_taken_back_again_and_again_take_no_room() -> None:
    seen = SeenIds()
    for attempt in range(2_000):
        ids = fingerprints(attempt * 100, 100)
        seen.add(ids, np.zeros(100, np.int32))
        seen.take_back(ids)
    assert len(seen._table[2]) <= 2048


def test_readers_see_a_whole_table_while_it_is_made_anew() -> None:
    seen, known = SeenIds(), fingerprints(0, 300)
    seen.add(known, np.full(300, 10_000, np.int32))
    wrong, ended = [], threading.Event()

    def look() -> None:
        while not ended.is_set():
            found = seen.has(known)
            if not found.all():
                wrong.append(found)

    reader = threading.Thread(target=look)
    reader.start()
    for day in range(300):
        seen.add(fingerprints(1_000 + day * 500, 500), np.full(500, day, np.int32))
        seen.expire(day)
    ended.set()
    reader.join()
    assert not wrong


@given(st.lists(st.lists(st.tuples(WORDS, st.integers(0, 400)), max_size=40), max_size=12))
def test_places_are_those_of_a_dict(batches: list[list[tuple[int, int]]]) -> None:
    index, oracle = KeyIndex(), dict[tuple[int, int], int]()
    for batch in batches:
        new = [pair for pair in dict.fromkeys(batch) if pair not in oracle]
        places = list(range(len(oracle), len(oracle) + len(new)))
        index.put(words(new), np.array(places, np.int64))
        oracle |= dict(zip(new, places, strict=True))
        found, n_gone = index.look(words([*batch, (7, 7)]))
        assert found.tolist() == [*(oracle[pair] for pair in batch), -1]
        assert (n_gone, len(index)) == (1, len(oracle))
    keys, places_of = index.items()
    got = {(int(key[0]), int(key[1])): int(place) for key, place in zip(keys, places_of, strict=True)}
    assert got == oracle


def test_many_places_survive_growth() -> None:
    index = KeyIndex()
    for begin in range(0, 50_000, 2_500):
        index.put(fingerprints(begin, 2_500), np.arange(begin, begin + 2_500))
    np.testing.assert_array_equal(index.find(fingerprints(0, 50_000)), np.arange(50_000))
    assert index.find(fingerprints(0, 0)).shape == (0,)
