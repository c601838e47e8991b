"""The parts of a table alone: keys, orders, partitions and answers on disk; the oracles are numpy and plain Python."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.features import Entity
from vitok.features.answers import Matrix, Partitions, Picked, Spilled, joined
from vitok.features.key_table import KeyReader, KeyTable
from vitok.features.order_kernels import group, newest, sort_groups
from vitok.features.ordered import Asked, Collector

SEEDS = st.integers(0, 10_000)


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 300), st.integers(1, 40), st.integers(1, 3))
def test_rows_are_grouped_and_sorted_as_numpy_does(seed: int, n: int, keys: int, n_ranks: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, keys, n).astype(np.int32)
    ranks = rng.integers(0, rng.choice([2, 50, 10_000]), (n, n_ranks))
    start, order = np.empty(keys + 1, np.int64), np.empty(int((codes >= 0).sum()), np.int64)
    group(codes, start, order)
    expected = np.argsort(codes, kind="stable")[(codes < 0).sum() :]
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(start, np.searchsorted(codes[expected], np.arange(keys + 1)))
    sorted_ranks = ranks[order]
    sort_groups(start, order, sorted_ranks)
    by_rank = np.lexsort((*(ranks[:, place] for place in range(n_ranks - 1, -1, -1)), codes))[(codes < 0).sum() :]
    np.testing.assert_array_equal(order, by_rank)
    np.testing.assert_array_equal(sorted_ranks, ranks[by_rank])


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 2_000), st.integers(1, 3_000))
def test_keys_get_their_numbers_in_the_order_of_their_first_row(seed: int, n: int, keys: int) -> None:
    rng = np.random.default_rng(seed)
    # Words that differ by little, and by the second word only.
    words = np.column_stack([rng.integers(-2, 3, n), rng.integers(0, keys, n) * rng.choice([1, 2**32])])
    there = rng.random(n) < 0.9
    table = KeyTable()
    numbers: dict[tuple[int, ...], int] = {}
    found = [code for at in range(0, n, 700) for code in table.add(words[at : at + 700], there[at : at + 700]).tolist()]
    expected = [
        numbers.setdefault(tuple(pair), len(numbers)) if is_there else -1
        for pair, is_there in zip(words.tolist(), there, strict=True)
    ]
    assert found == expected
    assert len(table) == len(numbers)
    others = np.column_stack([rng.integers(-3, 4, 50), rng.integers(0, keys + 5, 50)])
    assert table.find(others).tolist() == [numbers.get(tuple(pair), -1) for pair in others.tolist()]


@settings(max_examples=60)
@given(SEEDS, st.sampled_from([None, 0, 7]), st.sampled_from([0, 1, 30]))
def test_the_newest_row_is_what_a_look_at_all_rows_finds(seed: int, lag: int | None, max_age: int) -> None:
    has_known, shift = lag is None, lag or 0
    rng = np.random.default_rng(seed)
    n, m, keys = int(rng.integers(0, 200)), int(rng.integers(0, 60)), 5
    times, codes = rng.integers(0, 60, n), rng.integers(0, keys, n).astype(np.int32)
    known = times + rng.choice([-3, 0, 0, 1, 40], n)
    ask_times, ask_codes = rng.integers(-5, 120, m), rng.integers(-1, keys, m).astype(np.int32)
    table = KeyTable()
    table.add(np.column_stack([np.arange(keys), np.zeros(keys, np.int64)]))
    asked = Asked.of(table, ask_codes, ask_times)
    collector = Collector(table, n, 2, (1,))
    words = np.column_stack([codes.astype(np.int64), np.zeros(n, np.int64)])
    collector.add(words, np.column_stack([times, known]), (np.arange(n).reshape(-1, 1),))
    events = collector.finish()
    out = np.full(m, -1, np.int64)
    newest(*asked.questions, events.start, events.order, events.ranks, has_known, shift, max_age, out)
    expected = []
    for time, code in zip(ask_times, ask_codes, strict=True):
        seen = [
            (times[row], known[row], row)
            for row in range(n)
            if codes[row] == code and times[row] < time - shift and (not has_known or known[row] <= time)
        ]
        best = max(seen, default=None)
        expected.append(-1 if best is None or (max_age and time - best[0] > max_age) else best[2])
    assert out.tolist() == expected


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([1, 2, 7]), st.integers(0, 400))
def test_what_is_dealt_out_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, parts: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    keys = np.column_stack([rng.integers(0, 20, n), rng.integers(0, 3, n)])
    rows = np.column_stack([np.arange(n), keys, rng.integers(0, 9, n)])
    folder = tmp_path_factory.mktemp("rows")
    partitions = Partitions(folder / "dealt", parts, 4)
    for at in range(0, n, 90):
        partitions.put(keys[at : at + 90], rows[at : at + 90])
    partitions.done()
    empty = np.array([-1, -2], np.int64)
    spilled, shares = Spilled(folder / "answers", empty), []
    for part in range(parts):
        mine = joined(list(partitions.read(part)), 4)
        assert len(mine) == partitions.heights[part]
        assert (np.diff(mine[:, 0]) > 0).all()
        shares.append({tuple(pair) for pair in mine[:, 1:3].tolist()})
        chosen = mine[mine[:, 3] > 2]
        spilled.put(np.ascontiguousarray(chosen[:, 0]), Matrix(np.ascontiguousarray(chosen[:, [0, 3]])))
    spilled.done()
    assert sum(map(len, shares)) == len(set().union(*shares))
    assert list((folder / "dealt").iterdir()) == []
    expected = np.where(rows[:, 3:] > 2, rows[:, [0, 3]], empty)
    cuts = [0, *sorted(rng.integers(0, n + 1, 3).tolist()), n]
    for first, last in itertools.pairwise(cuts):
        np.testing.assert_array_equal(spilled.rows(first, last), expected[first:last])


def test_answers_that_are_rows_of_a_source() -> None:
    picked = Picked(np.array([[1, 2], [3, 4], [0, 0]]), np.array([1, 2, 0, 1]))
    assert picked.rows(1, 4).tolist() == [[0, 0], [1, 2], [3, 4]]
    assert picked.rows(2, 2).shape == (0, 2)


def test_keys_are_compared_as_numbers_only_where_all_are() -> None:
    entity = Entity("customer", "customer")
    numbers, texts = pl.DataFrame({"customer": [7, None]}), pl.DataFrame({"customer": ["7", ""]})
    alone = KeyReader(entity, [numbers.schema])
    words, there = alone.words_or_none(numbers, "spine")
    assert words[0].tolist() == [7, 0]
    assert there.tolist() == [True, False]
    mixed = KeyReader(entity, [numbers.schema, texts.schema])
    assert mixed.words_or_none(numbers, "spine")[0][0].tolist() == mixed.words_or_none(texts, "spine")[0][0].tolist()
    assert mixed.words_or_none(texts, "spine")[1].tolist() == [True, False]
    for reader, rows in ((alone, numbers), (mixed, numbers), (mixed, texts)):
        with pytest.raises(InvalidInput, match="customer"):
            reader.words(rows, "source 's'")
