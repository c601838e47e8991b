"""The bytes of a row: what goes in comes out, in the declared type, or is refused."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.engines.row_store import LONGEST_KEY, pack_version
from vitok.errors import InvalidInput
from vitok.features import Embedding, Entity, Latest, Source
from vitok.features.rows import RowLayout, declared, encode_key, layout_of, row_keys
from vitok.features.vectors import FRESH, MISSING, STALE

CUSTOMER = Entity("customer", "customer_id")
KINDS = {
    "float64": (pl.Float64, st.floats(allow_nan=False, allow_infinity=False)),
    "float32": (pl.Float64, st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "int64": (pl.Int64, st.integers(-(2**63), 2**63 - 1)),
    "int32": (pl.Int32, st.integers(-(2**31), 2**31 - 1)),
    "bool": (pl.Boolean, st.booleans()),
}


def view_of(dtypes: list[str], **options: Any) -> Latest:
    columns = {f"c{place}": dtype for place, dtype in enumerate(dtypes)}
    return Latest(name="v", entity=CUSTOMER, source=Source("s", ingest_time="known"), columns=columns, **options)


def decode(
    layout: RowLayout, rows: list[bytes | None], times: list[int]
) -> tuple[np.ndarray, list[int], list[int], int]:
    n = len(rows)
    out, event_times = np.full((n, layout.width + 2), 7.0), np.zeros((n, 1), np.int64)
    status = np.zeros((n, 1), np.uint8)
    damaged = layout.decode(rows, np.array(times, np.int64), out, 1, event_times, status, 0)
    assert (out[:, 0] == 7.0).all()
    assert (out[:, -1] == 7.0).all()
    return out[:, 1:-1], event_times[:, 0].tolist(), status[:, 0].tolist(), damaged


def decode_slowly(layout: RowLayout, row: bytes | None, time: int) -> tuple[list[float], int, int]:
    # The plain twin of the kernel: numpy's own reading of the record.
    nothing = [math.nan] * layout.width
    if row is None:
        return nothing, -1, MISSING
    event, known = int.from_bytes(row[:8], "big"), int.from_bytes(row[8:16], "big")
    record = np.frombuffer(row[16:], layout.dtype)[0]
    assert isinstance(layout.view, Latest)
    after = layout.view.available_after
    if record["flags"] or event >= time or (known if after is None else event + after) > time:
        return nothing, -1, MISSING
    if layout.view.max_age and time - event > layout.view.max_age:
        return nothing, event, STALE
    values = list(nothing)
    for dtype, places in layout.places.items():
        for rank, place in enumerate(places.tolist()):
            values[place] = float(record[dtype][rank])
    if len(layout.nullable):
        bits = np.unpackbits(record["nulls"], bitorder="little")[: len(layout.nullable)]
        for place, null in zip(layout.nullable.tolist(), bits.tolist(), strict=True):
            values[place] = math.nan if null else values[place]
    return values, event, FRESH


@given(st.data())
def test_rows_come_back_as_the_plain_twin_reads_them(data: st.DataObject) -> None:
    dtypes = data.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=14))
    n = data.draw(st.integers(0, 6))
    after = data.draw(st.sampled_from([None, "0s", "1s"]))
    layout = RowLayout(view_of(dtypes, ttl=data.draw(st.sampled_from(["", "1s"])), lag=after))
    columns, expected = [], []
    for dtype in dtypes:
        kind, numbers = KINDS[dtype]
        column = data.draw(st.lists(st.none() | numbers, min_size=n, max_size=n))
        columns.append(pl.Series(column, dtype=kind))
        expected.append([math.nan if value is None else float(value) for value in column])
    deleted = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), np.bool_)
    moments = st.integers(0, 3_000_000)
    versions = [(data.draw(moments), data.draw(moments)) for _ in range(n)]
    times = [data.draw(moments) for _ in range(n + 1)]
    packed = layout.pack(columns, deleted)
    rows: list[bytes | None] = [pack_version(*version) + value for version, value in zip(versions, packed, strict=True)]
    rows.append(None)
    out, event_times, status, damaged = decode(layout, rows, times)
    assert damaged == 0
    for place, (row, time) in enumerate(zip(rows, times, strict=True)):
        values, event, state = decode_slowly(layout, row, time)
        np.testing.assert_array_equal(out[place], values)
        assert (event_times[place], status[place]) == (event, state)
        if state == FRESH:
            np.testing.assert_array_equal(out[place], [column[place] for column in expected])


def test_the_ttl_holds_to_the_microsecond() -> None:
    layout = layout_of(view_of(["float64"], ttl="1s"))
    row = pack_version(100, 100) + layout.pack([pl.Series([1.0])])[0]
    times = [100, 101, 1_000_100, 1_000_101]
    out, event_times, status, _ = decode(layout, [row] * 4, times)
    np.testing.assert_array_equal(out[:, 0], [math.nan, 1.0, 1.0, math.nan])
    assert status == [MISSING, FRESH, FRESH, STALE]
    assert event_times == [-1, 100, 100, 100]


def test_a_row_that_was_not_known_yet_is_missing() -> None:
    layout = layout_of(view_of(["float64"]))
    row = pack_version(100, 500) + layout.pack([pl.Series([1.0])])[0]
    assert decode(layout, [row, row], [499, 500])[2] == [MISSING, FRESH]
    delayed = layout_of(view_of(["float64"], lag="1s"))
    row = pack_version(100, 5) + delayed.pack([pl.Series([1.0])])[0]
    assert decode(delayed, [row, row], [1_000_099, 1_000_100])[2] == [MISSING, FRESH]


def test_damaged_rows_are_missing_and_counted() -> None:
    layout = layout_of(view_of(["float64", "bool"]))
    good = pack_version(1, 1) + layout.pack([pl.Series([1.0]), pl.Series([True])])[0]
    other = RowLayout(view_of(["bool", "float64"]))
    strange = pack_version(1, 1) + other.pack([pl.Series([True]), pl.Series([1.0])])[0]
    assert len(strange) == len(good)
    out, _, status, damaged = decode(layout, [good, b"", good[:-1], good + b"x", strange, None], [9] * 6)
    assert damaged == 4
    assert status == [FRESH] + [MISSING] * 5
    np.testing.assert_array_equal(out[0], [1.0, 1.0])
    assert np.isnan(out[1:]).all()


def test_embeddings_have_no_time() -> None:
    view = Embedding(name="item", entity=Entity("item", "item_id"), index="items", index_version="1", dimension=3)
    layout = layout_of(view)
    vectors = np.array([[1.0, 2.0, 3.0], [0.1, 0.2, 0.3]])
    rows: list[bytes | None] = [bytes(16) + value for value in layout.pack_vectors(vectors)]
    out, event_times, status, _ = decode(layout, rows, [0, 10**15])
    np.testing.assert_array_equal(out, vectors.astype(np.float32))
    assert status == [FRESH, FRESH]
    assert event_times == [0, 0]
    with pytest.raises(InvalidInput, match=r"have shape \(n, 3\)"):
        layout.pack_vectors(vectors[:, :2])
    with pytest.raises(InvalidInput, match="be finite"):
        layout.pack_vectors(np.full((1, 3), np.nan))


@pytest.mark.parametrize(
    ("value", "dtype", "rule"),
    [
        (math.inf, "float64", "be finite"),
        (1e39, "float32", "fit float32"),
        (1.5, "int32", "be a whole number"),
        (2.0**31, "int32", "fits int32"),
        (2.0**63, "int64", "fits int64"),
        (2.0, "bool", "be 0, 1, true or false"),
    ],
)
def test_what_does_not_fit_is_refused(value: float, dtype: str, rule: str) -> None:
    with pytest.raises(InvalidInput, match=rule):
        declared(pl.Series([value]), dtype, "field")


def test_whole_numbers_keep_all_their_digits() -> None:
    big = pl.Series([2**60 + 1, None], dtype=pl.Int64)
    numbers, null = declared(big, "int64", "field")
    assert numbers.tolist() == [2**60 + 1, 0]
    assert null.tolist() == [False, True]
    with pytest.raises(InvalidInput, match="fit int64"):
        declared(pl.Series([2**63], dtype=pl.UInt64), "int64", "field")


@given(st.text(min_size=1), st.text(min_size=1))
def test_keys_are_hash_tags_and_tell_entities_apart(one: str, other: str) -> None:
    view = view_of(["float64"])
    a, b = row_keys(view, [one, other])
    assert (a == b) == (one == other)
    assert len(a) <= LONGEST_KEY
    # What Redis hashes: from the first brace to the first one that closes.
    tag = a[a.index(b"{") + 1 : a.index(b"}")]
    assert tag == b"customer:" + encode_key(one)
    assert a.endswith(f"}}v@{view.version}".encode())


def test_keys_of_other_entities_and_long_keys_differ() -> None:
    source = Source("s")
    one = Latest(name="v", entity=Entity("a:b", "k"), source=source, columns=("x",))
    other = Latest(name="v", entity=Entity("a", "k"), source=source, columns=("x",))
    assert row_keys(one, ["c"])[0].partition(b"}")[0] != row_keys(other, ["b:c"])[0].partition(b"}")[0]
    long = [row_keys(other, ["x" * n])[0] for n in (200, 201, 5000)]
    assert len(set(long)) == 3
    assert max(map(len, long)) <= LONGEST_KEY
    assert b"%#" not in row_keys(other, ["%#abc"])[0]


def test_a_key_is_the_same_alone_and_among_others() -> None:
    view = view_of(["float64"])
    texts = ["7", "a{b}", "ключ", "%", "x" * 300]
    assert row_keys(view, texts) == [row_keys(view, [text])[0] for text in texts]
