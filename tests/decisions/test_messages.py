"""Messages written from a template, against those of pyarrow (the oracle): the same head and the same rows."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.decisions.framing import frames
from vitok.decisions.messages import Constant, MessageMaker
from vitok.decisions.schema import LogSchema, open_schema, outcome_schema
from vitok.errors import InvalidInput

TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    [
        pa.field("id", pa.binary(16), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("row", pa.list_(pa.float64(), 3), nullable=False),
        pa.field("note", pa.string()),
        pa.field("x", pa.float64()),
        pa.field("y", pa.float64(), nullable=False),
        pa.field("count", pa.int32(), nullable=False),
        pa.field("whole", pa.int64()),
        pa.field("yes", pa.bool_(), nullable=False),
    ],
    metadata={b"key": b"value"},
)
PLACES = {name: i for i, name in enumerate(SCHEMA.names)}


def columns_of(n: int) -> list[Any]:
    return [
        [bytes([i % 256] * 16) for i in range(n)],
        ["ж" * (i % 4) + "a" * (i % 3) for i in range(n)],
        np.arange(n) * 1_000_000,
        np.arange(3.0 * n).reshape(n, 3) / 7,
        [None if i % 3 == 1 else f"n{i}" for i in range(n)],
        np.where(np.arange(n) % 2, np.nan, 0.25),
        np.where(np.arange(n) % 5, 0.5, np.nan),
        np.arange(n, dtype=np.int32),
        [None if i % 4 else i for i in range(n)],
        [i % 3 == 0 for i in range(n)],
    ]


def expected(columns: list[Any], n: int) -> pa.RecordBatch:
    values = [[item.value] * n if isinstance(item, Constant) else item for item in columns]
    plain = [item.tolist() if isinstance(item, np.ndarray) else item for item in values]
    arrays = [
        pa.array(item, type=field.type, from_pandas=field.nullable) for item, field in zip(plain, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def same(message: bytes, batch: pa.RecordBatch) -> None:
    read = pa.ipc.read_record_batch(pa.py_buffer(message), batch.schema)
    read.validate(full=True)
    assert read.num_rows == batch.num_rows
    for name in batch.schema.names:
        # NaN differs from itself, so numbers are compared as bits.
        one, other = read.column(name), batch.column(name)
        assert one.null_count == other.null_count, name
        if pa.types.is_fixed_size_list(one.type):
            one, other = one.flatten(), other.flatten()
        if pa.types.is_floating(one.type):
            one, other = (pa.array(part.to_numpy(zero_copy_only=False).view(np.int64)) for part in (one, other))
        assert one.equals(other), name
    theirs = batch.serialize().to_pybytes()
    assert len(message) == len(theirs)
    (found,), (wanted,) = frames(message), frames(theirs)
    assert found == wanted


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 63, 64, 65, 1000])
def test_the_same_rows_as_pyarrow_writes(n: int) -> None:
    maker = MessageMaker(SCHEMA)
    for _ in range(2):
        # The second time its head is a kept one.
        same(maker.make(columns_of(n), n), expected(columns_of(n), n))


@pytest.mark.parametrize("n", [1, 3, 64, 65, 300])
def test_constants_are_columns_of_one_value(n: int) -> None:
    maker = MessageMaker(SCHEMA)
    text, nothing, number = Constant("fraud/ж"), Constant(None), Constant(0.25)
    columns = columns_of(n)
    columns[1], columns[4], columns[5], columns[6], columns[8] = text, nothing, nothing, number, nothing
    same(maker.make(columns, n), expected(columns, n))
    columns[4], columns[5], columns[7] = text, number, Constant(7)
    for _ in range(2):
        same(maker.make(columns, n), expected(columns, n))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("name", ["", "", ""]),
        ("name", ("a", "b", "c")),
        ("name", ["x" * 70_000, "", "ж" * 9_000]),
        ("name", np.array(["a", "bc", ""])),
        ("name", pa.array(["z", "a", "bc", "d"]).slice(1)),
        ("note", [None, None, None]),
        ("note", ["", None, "ж"]),
        ("x", [1.0, None, math.inf]),
        ("x", [1, 2, 3]),
        ("x", np.array([1.0, np.nan, -0.0])[::-1]),
        ("y", np.arange(6.0)[::2]),
        ("y", [1.5, math.nan, 5e-324]),
        ("y", np.arange(3, dtype=np.float32)),
        ("time", [0, -1, 2**62]),
        ("count", [2**31 - 1, -(2**31), 0]),
        ("whole", [2**63 - 1, None, -(2**63)]),
        ("whole", np.arange(3)),
        ("row", np.arange(9.0).reshape(3, 3).T),
        ("row", [[1, 2, 3], [4, 5, math.nan], [7, 8, math.inf]]),
        ("row", np.arange(9, dtype=np.float32).reshape(3, 3)),
        ("id", np.array([bytes([1] * 16)] * 3, dtype=object)),
        ("yes", np.array([True, False, True])),
    ],
)
def test_columns_of_any_form(name: str, values: Any) -> None:
    columns = columns_of(3)
    columns[PLACES[name]] = values
    wanted = list(columns)
    if name in ("x", "y", "row", "name") and not isinstance(values, pa.Array):
        # What numbers of another kind become is what numpy makes of them.
        wanted[PLACES[name]] = np.asarray(values, object if name == "name" else np.float64)
    elif isinstance(values, pa.Array):
        wanted[PLACES[name]] = values.to_pylist()
    same(MessageMaker(SCHEMA).make(columns, 3), expected(wanted, 3))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("id", [bytes(16), bytes(15), bytes(17)]),
        ("id", [bytes(16), bytes(16)]),
        ("id", [bytes(16), None, bytes(16)]),
        ("id", [7, 8, 9]),
        ("name", ["a", "b"]),
        ("name", ["a", None, "b"]),
        ("name", ["a", 3, "b"]),
        ("name", ["a", "\ud800", "b"]),
        ("name", Constant(None)),
        ("name", Constant(1.5)),
        ("time", ["now"] * 3),
        ("time", [2**63, 0, 0]),
        ("y", ["1.5", 2.0, 3.0]),
        ("y", [1.0, None, 2.0]),
        ("y", np.zeros((3, 1))),
        ("y", np.zeros(4)),
        ("count", [2**31, 0, 0]),
        ("row", np.zeros((3, 2))),
        ("row", np.zeros((2, 3))),
        ("yes", [True, None, False]),
    ],
)
@pytest.mark.parametrize("n", [0, 3])
def test_a_bad_column_is_named(name: str, values: Any, n: int) -> None:
    columns = columns_of(n)
    columns[PLACES[name]] = values
    with pytest.raises(InvalidInput) as caught:
        MessageMaker(SCHEMA).make(columns, n)
    assert caught.value.field == name


def test_no_rows_are_no_message() -> None:
    assert MessageMaker(SCHEMA).make(columns_of(0), 0) == b""


def test_a_stream_of_several_and_heads_without_end() -> None:
    maker = MessageMaker(SCHEMA)
    sizes = [n % 130 + 1 for n in range(1_400)]
    data = [SCHEMA.serialize().to_pybytes()]
    for k, n in enumerate(sizes):
        columns = columns_of(n)
        columns[1] = ["y" * (k % 17)] * n
        data.append(maker.make(columns, n))
    table = pa.ipc.open_stream(pa.py_buffer(b"".join(data))).read_all()
    assert table.num_rows == sum(sizes)
    assert [frame.rows for frame in frames(b"".join(data))] == [0, *sizes]
    assert len(maker._heads) <= 512


@pytest.mark.parametrize(
    "schema",
    [
        open_schema(LogSchema("s", (), (), ())),
        open_schema(LogSchema("s", ("a", "b"), (("c", "int64"), ("d", "string"), ("e", "float64")), ("x",))),
        open_schema(LogSchema("s", (), (), tuple(f"x{i}" for i in range(500)))),
        outcome_schema(),
    ],
)
def test_each_kind_of_log_has_its_template(schema: pa.Schema) -> None:
    n = 5
    values: list[Any] = []
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            values.append(np.random.default_rng(0).normal(size=(n, field.type.list_size)))
        elif field.type == pa.binary(16):
            values.append([bytes([i] * 16) for i in range(n)])
        elif field.type == pa.string():
            values.append([f"{field.name}{i}" for i in range(n)])
        elif field.type == pa.bool_():
            values.append([True, False, True, False, False])
        else:
            values.append(list(range(n)))
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(v.tolist() if isinstance(v, np.ndarray) else v, type=f.type)
            for v, f in zip(values, schema, strict=True)
        ],
        schema=schema,
    )
    message = MessageMaker(schema).make(values, n)
    assert message == batch.serialize().to_pybytes()


texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.binary(min_size=16, max_size=16),
            texts,
            st.integers(-(2**62), 2**62),
            st.one_of(st.none(), texts),
            st.one_of(st.none(), st.floats(allow_nan=False)),
            st.floats(allow_nan=False),
            st.integers(-(2**31), 2**31 - 1),
            st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
            st.booleans(),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_the_rows(rows: list[tuple[Any, ...]]) -> None:
    n = len(rows)
    columns: list[Any] = [list(column) for column in zip(*rows, strict=True)]
    columns.insert(3, np.arange(3.0 * n).reshape(n, 3))
    same(MessageMaker(SCHEMA).make(columns, n), expected(columns, n))
