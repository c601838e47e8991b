"""The schema of a log and what a block must look like."""

import math

import numpy as np
import pyarrow as pa
import pytest

from vitok.decision import Decision
from vitok.decisions import DecisionBlock, LogSchema
from vitok.decisions.messages import MessageMaker
from vitok.decisions.schema import decision_message, open_schema, readable, readable_schema, schema_of
from vitok.errors import InvalidInput


def batch_of(block: DecisionBlock, schema: LogSchema) -> pa.RecordBatch:
    arrow = open_schema(schema)
    return pa.ipc.read_record_batch(pa.py_buffer(decision_message(block, schema, MessageMaker(arrow))), arrow)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("", (), (), ()), "system"),
        (("s", ("score",), (), ()), "entities"),
        (("s", ("f_a",), (), ()), "entities"),
        (("s", ("a",), (("a", "float64"),), ()), "request"),
        (("s", (), (("a", "int64"), ("a", "int64")), ()), "request"),
        (("s", (), (("a", "decimal"),), ()), "request.a"),
        (("s", (), (("label", "float64"),), ()), "request"),
        (("s", (), (), ("a", "a")), "features"),
        (("s", (), (), ("",)), "features"),
    ],
)
def test_schema_refuses(arguments, field):
    with pytest.raises(InvalidInput) as caught:
        LogSchema(*arguments)
    assert caught.value.field == field


def test_hash_follows_content(schema):
    again = LogSchema.from_dict(schema.to_dict())
    assert again == schema
    assert again.content_hash == schema.content_hash
    assert LogSchema("fraud", (), (), ("b", "a")).content_hash != LogSchema("fraud", (), (), ("a", "b")).content_hash


def test_columns_are_the_fields_of_a_decision(schema):
    spread = {"entities": ["customer_id"], "request": ["amount", "channel"], "features": ["f_count_1d", "f_mean_1d"]}
    wanted = [column for name in Decision.__struct_fields__ for column in spread.get(name, [name])]
    assert list(schema.columns) == wanted


def test_readable_keeps_values_to_the_last_bit(schema, make_block):
    values = np.array([[0.1, math.nan], [math.inf, -0.0], [5e-324, 1 / 3]])
    batch = batch_of(make_block(0, 3, features=values), schema)
    table = readable(pa.Table.from_batches([batch.slice(1), batch.slice(0, 1)]))
    assert table.schema.equals(readable_schema(schema), check_metadata=True)
    assert schema_of(table.schema) == schema
    found = np.stack([table.column(f"f_{name}").to_numpy() for name in schema.features], axis=1)
    assert found.tobytes() == values[[1, 2, 0]].tobytes()
    assert table.column("system").to_pylist() == ["fraud"] * 3
    assert readable(table) is table


def test_shadow_nan_is_null_and_score_nan_is_not(schema, make_block):
    batch = batch_of(make_block(0, 2, score=np.full(2, np.nan)), schema)
    assert batch.column("shadow_probability").to_pylist() == [0.25, None]
    assert batch.column("score").null_count == 0


def test_log_without_features(make_block):
    schema = LogSchema("s", (), (), ())
    table = readable(pa.Table.from_batches([batch_of(make_block(0, 3, schema), schema)]))
    assert table.num_rows == 3
    assert table.schema.names == list(schema.columns)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"features": np.zeros((2, 3))}, "features"),
        ({"features": np.zeros((1, 2))}, "features"),
        ({"entities": []}, "entities"),
        ({"request": [[1.0, 2.0]]}, "request"),
        ({"request_id": ["a"]}, "request_id"),
        ({"request_id": ["a", None]}, "request_id"),
        ({"request_id": ["a", 3]}, "request_id"),
        ({"decision_id": [b"short", b"short"]}, "decision_id"),
        ({"decision_id": [bytes(16)]}, "features"),
        ({"event_time": ["now", "then"]}, "event_time"),
        ({"request": [["x", "y"], ["a", "b"]]}, "amount"),
        ({"latency_us": [2**31, 0]}, "latency_us"),
    ],
)
def test_block_refused(schema, make_block, changes, field):
    with pytest.raises(InvalidInput) as caught:
        batch_of(make_block(0, 2, **changes), schema)
    assert caught.value.field == field
