"""Hashed rows. Oracle: SplitMix64's finaliser and the fingerprints, put together in plain Python."""

import math
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.features.fingerprints import fingerprint_texts
from vitok.models import online_features
from vitok.models.online_features import Buckets, Category, Cross, HashedFeatures, Number

FEATURES = HashedFeatures(
    features=(
        Cross(("card", "amount")),
        Category("card"),
        Number("amount", 50.0, 20.0, 4.0),
        Category("country"),
        Buckets("amount", (10.0, 100.0)),
        Cross(("country", "card", "amount")),
    ),
    bits=16,
)
MASK = 2**64 - 1
MISSING = 0x9E3779B97F4A7C15

ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "card": st.none() | st.text(st.characters(codec="utf-8"), max_size=12),
            "country": st.none() | st.sampled_from(["FR", "DE", "é"]),
            "amount": st.none() | st.floats(allow_infinity=True, allow_nan=True),
        },
    ),
    max_size=30,
)


def mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def seed(name: str) -> int:
    return int(fingerprint_texts([name])[0, 0])


def plain(row: dict[str, Any]) -> tuple[list[int], list[float]]:
    """One row of FEATURES, by the definition."""
    tokens = {}
    for name in ("card", "country"):
        value = row.get(name)
        tokens[name] = mixed(seed(f"category:{name}") ^ (seed(value) if value else MISSING))
    amount = row.get("amount")
    none = amount is None or math.isnan(amount)
    bucket = MISSING if none else mixed(sum(amount >= edge for edge in (10.0, 100.0)) + 1)
    tokens["amount"] = mixed(seed("buckets:amount") ^ bucket)
    own = seed("number:amount")
    slots = [tokens["card"], tokens["country"], tokens["amount"], mixed(own ^ MISSING) if none else mixed(own)]
    values = [1.0, 1.0, 1.0, 1.0 if none else min(max((amount - 50.0) / 20.0, -4.0), 4.0)]
    for names in ('["card", "amount"]', '["country", "card", "amount"]'):
        token = seed(f"cross:{names}")
        for name in eval(names):
            token = mixed(token ^ tokens[name])
        slots.append(token)
        values.append(1.0)
    slots.append(mixed(seed("constant")))
    places = [slot >> 48 for slot in slots]
    values.append(1.0)
    for i, place in enumerate(places):
        if place in places[:i]:
            values[places.index(place)] += values[i]
            values[i] = 0.0
    return places, values


@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition_in_every_form_of_a_row(rows: list[dict[str, Any]]) -> None:
    slots, values = FEATURES.encode(rows)
    assert slots.shape == values.shape == (len(rows), FEATURES.width)
    for i, row in enumerate(rows):
        assert (slots[i].tolist(), values[i].tolist()) == plain(row)
        alone = FEATURES.encode([row])
        assert (alone[0][0] == slots[i]).all()
        assert (alone[1][0] == values[i]).all()
    columns = {name: [row.get(name) for row in rows] for name in FEATURES.columns}
    schema = {"card": pl.String, "amount": pl.Float64, "country": pl.String}
    frame = pl.DataFrame(columns, schema=schema)
    table = frame.to_arrow()
    dictionary = table.set_column(0, "card", table.column("card").cast(pa.string()).dictionary_encode())
    halves = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    categorical = frame.with_columns(pl.col("country").cast(pl.Categorical))
    for form in (frame, table, dictionary, halves, categorical, columns, {k: np.array(v) for k, v in columns.items()}):
        for few in (64, 0):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(online_features, "_FEW", few)
                found = FEATURES.encode(form)
            assert (found[0] == slots).all()
            assert (found[1] == values).all()


def test_a_batch_of_arrow_and_a_sliced_column() -> None:
    table = pa.table({"card": ["a", None, "b", "c"], "country": ["FR"] * 4, "amount": [1.0, 2.0, None, 4.0]})
    slots, values = FEATURES.encode(table)
    batch = table.to_batches()[0].slice(1, 2)
    assert (FEATURES.encode(batch)[0] == slots[1:3]).all()
    assert (FEATURES.encode(table.to_pylist())[1] == values).all()


@pytest.mark.parametrize("column", [[17, 3], [17.0, 3.0], ["17", "3"], np.array([17, 3], np.uint8), pl.Series([17, 3])])
@pytest.mark.parametrize("few", [0, 64])
def test_whole_numbers_are_categories_of_their_decimals(column: Any, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_features, "_FEW", few)
    features = HashedFeatures(features=(Category("card"),), bits=20)
    slots = features.encode({"card": column})[0]
    assert (slots == features.encode([{"card": "17"}, {"card": 3}])[0]).all()


@pytest.mark.parametrize("few", [0, 64])
def test_truth_values_and_numpy_scalars(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_features, "_FEW", few)
    features = HashedFeatures(features=(Category("new"),), bits=20)
    wanted = features.encode([{"new": "true"}, {"new": "false"}])[0]
    for form in (
        [{"new": True}, {"new": False}],
        [{"new": np.bool_(True)}, {"new": np.bool_(False)}],
        {"new": [b"true", b"false"]},
        {"new": np.array([True, False])},
        pl.DataFrame({"new": [True, False]}),
    ):
        assert (features.encode(form)[0] == wanted).all()


def test_an_outlier_is_limited_and_an_edge_belongs_above() -> None:
    features = HashedFeatures(features=(Number("x", 0, 1, 3), Buckets("x", (1.0,))), bits=20, constant=False)
    slots, values = features.encode([{"x": value} for value in (math.inf, -math.inf, 2.5, 1.0, 0.999)])
    assert values[:, 1].tolist() == [3.0, -3.0, 2.5, 1.0, 0.999]
    assert slots[0, 0] == slots[2, 0] == slots[3, 0] != slots[4, 0] == slots[1, 0]


def test_values_spread_evenly_over_the_slots() -> None:
    features = HashedFeatures(features=(Category("id"),), bits=8, constant=False)
    n = 200_000
    counts = np.bincount(features.encode({"id": np.arange(n)})[0][:, 0], minlength=256)
    # Chi-square of 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert 255 - 5 * 22.6 < ((counts - n / 256) ** 2 / (n / 256)).sum() < 255 + 5 * 22.6


def test_a_declaration_survives_json_and_has_a_hash() -> None:
    import json

    again = HashedFeatures.from_dict(json.loads(json.dumps(FEATURES.to_dict())))
    assert again == FEATURES
    assert again.content_hash == FEATURES.content_hash
    assert HashedFeatures(features=FEATURES.features, bits=17).content_hash != FEATURES.content_hash
    for broken in ({}, {"features": [{"kind": "other", "name": "a"}], "bits": 8, "constant": True}):
        with pytest.raises(InvalidInput):
            HashedFeatures.from_dict(broken)


def test_single_slots_can_be_named() -> None:
    row = FEATURES.encode([{"card": "c1", "country": "FR", "amount": 3.0}])[0][0]
    assert FEATURES.slot("card", "c1") == row[0]
    assert FEATURES.slot("country", "FR") == row[1]
    assert FEATURES.slot("amount") == row[3]
    assert FEATURES.slot("constant") == row[-1]
    for wrong in (("card", None), ("amount", "3"), ("other", None), ("constant", "1")):
        with pytest.raises(InvalidInput):
            FEATURES.slot(*wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HashedFeatures(features=()),
        lambda: HashedFeatures(features=(Category("a"), Category("a"))),
        lambda: HashedFeatures(features=(Category("a"), Buckets("a", (1.0,)))),
        lambda: HashedFeatures(features=(Number("a"), Number("a"))),
        lambda: HashedFeatures(features=(Category("a"), Number("b"), Cross(("a", "b")))),
        lambda: HashedFeatures(features=(Category("a"),), bits=0),
        lambda: HashedFeatures(features=(Category("a"),), bits=29),
        lambda: Cross(("a",)),
        lambda: Cross(("a", "a")),
        lambda: Number("a", scale=0.0),
        lambda: Number("a", centre=math.nan),
        lambda: Number("a", limit=math.inf),
        lambda: Buckets("a", ()),
        lambda: Buckets("a", (2.0, 1.0)),
        lambda: Buckets("a", (math.nan,)),
    ],
)
def test_declarations_are_checked(make: Any) -> None:
    with pytest.raises(InvalidInput):
        make()


@pytest.mark.parametrize(
    "rows",
    [
        [{"card": 1.5}],
        [{"card": ["a"]}],
        [{"amount": "3"}],
        {"card": ["a"], "country": ["FR"]},
        {"card": ["a"], "country": ["FR", "DE"], "amount": [1.0]},
        {"card": np.array([1.5]), "country": ["FR"], "amount": [1.0]},
        {"card": ["a"], "country": ["FR"], "amount": pl.Series(["x"])},
        {"card": pl.Series([[1]]), "country": ["FR"], "amount": [1.0]},
        {"card": [math.inf], "country": ["FR"], "amount": [1.0]},
        "text",
    ],
)
@pytest.mark.parametrize("few", [0, 64])
def test_rows_are_checked(rows: Any, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online_features, "_FEW", few)
    with pytest.raises(InvalidInput):
        FEATURES.encode(rows)


def test_no_rows() -> None:
    for rows in ([], {"card": [], "country": [], "amount": []}, pa.table({"card": pa.array([], pa.string())})):
        if isinstance(rows, pa.Table):
            rows = rows.append_column("country", pa.array([], pa.string())).append_column("amount", pa.array([], "f8"))
        assert FEATURES.encode(rows)[0].shape == (0, 7)


def test_many_dicts_of_mixed_values_are_read_as_each_by_itself() -> None:
    features = HashedFeatures(features=(Category("a"), Category("b")), bits=20)
    values = ["x", None, 7, 7.0, "7", True, "", float("nan"), b"x", np.str_("x"), np.int64(7), np.float32(7)]
    rows = [{"a": value, "b": "y"} for value in values] * 20 + [{"b": None}, {}]
    slots, _ = features.encode(rows)
    assert slots.tolist() == [features.encode([row])[0][0].tolist() for row in rows]
    texts = [{"a": f"t{i % 30}", "b": None if i % 7 == 0 else "y"} for i in range(200)]
    slots, _ = features.encode(texts)
    assert slots.tolist() == [features.encode([row])[0][0].tolist() for row in texts]
    for wrong in ("\ud800", 0.5, [1]):
        with pytest.raises(InvalidInput):
            features.encode([*texts, {"a": wrong}])


def test_joined_texts_have_the_fingerprints_of_each_by_itself() -> None:
    rng = np.random.default_rng(3)
    letters = np.array(list("ab-_ 19\u00e9\u6f22\U0001f600"))
    texts = ["".join(rng.choice(letters, rng.integers(0, 27))) for _ in range(3_000)] + ["", "x" * 700, ""]
    features = HashedFeatures(features=(Category("a"), Category("b")), bits=28, constant=False)
    rows = [{"a": one, "b": other} for one, other in zip(texts, reversed(texts), strict=True)]
    wanted = features.encode(pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}))[0]
    assert (features.encode(rows)[0] == wanted).all()
    # A zero byte within a text, and texts that only together have as many as there are places.
    for odd in (["a\0b", "c"], ["\0"], ["", "\0"], ["a\0", ""], ["\0\0\0"]):
        of = [{"a": text, "b": None} for text in odd]
        frame = pl.DataFrame(of, schema={"a": pl.String, "b": pl.String})
        assert (features.encode(of)[0] == features.encode(frame)[0]).all()


def test_keys_may_stand_in_any_order_and_among_others() -> None:
    features = HashedFeatures(features=(Category("a"), Category("b"), Number("x")), bits=20)
    rows: list[dict[str, Any]] = [{"a": f"a{i}", "b": f"b{i}", "x": float(i)} for i in range(40)]
    wanted, values = features.encode(rows)
    turned = [dict(reversed(row.items())) for row in rows]
    more = [{"other": [1], **row, "last": None} for row in rows]
    mixed_up = [one if i % 3 else other for i, (one, other) in enumerate(zip(turned, more, strict=True))]
    for form in (turned, more, mixed_up, [rows[0], *turned[1:]]):
        slots, found = features.encode(form)
        assert (slots == wanted).all()
        assert (found == values).all()
    lacking = [{key: value for key, value in row.items() if key != "b"} if i % 2 else row for i, row in enumerate(rows)]
    none = [row | {"b": None} if i % 2 else row for i, row in enumerate(rows)]
    for form in (lacking, lacking[1:]):
        assert (features.encode(form)[0] == features.encode(none[len(none) - len(form) :])[0]).all()
