"""Blocks of decisions that say by their contents where they belong."""

from collections.abc import Callable

import numpy as np
import pytest

from vitok import ids
from vitok.decisions import DecisionBlock, LogSchema

SCHEMA = LogSchema("fraud", ("customer_id",), (("amount", "float64"), ("channel", "string")), ("count_1d", "mean_1d"))


@pytest.fixture
def schema() -> LogSchema:
    return SCHEMA


def block_of(start: int, n: int = 1, schema: LogSchema = SCHEMA, **changes: object) -> DecisionBlock:
    """Makes rows `start` to `start + n`: request r<i> at event time 1000 i, features (i, i / 3)."""
    rows = np.arange(start, start + n)
    values = {"float64": rows * 0.5, "int64": rows, "string": [None if i % 2 else f"c{i}" for i in rows]}
    columns: dict[str, object] = {
        "decision_id": [ids.uuid7() for _ in rows],
        "request_id": [f"r{i}" for i in rows],
        "event_time": rows * 1000,
        "ingest_time": rows * 1000 + 1,
        "entities": [[f"{name}-{i}" for i in rows] for name in schema.entities],
        "request": [values[kind] for _, kind in schema.request],
        "features": np.stack([rows / (1 + 2 * j) for j in range(len(schema.features))], axis=1)
        if schema.features
        else np.empty((n, 0)),
        "feature_status": ["fresh"] * n,
        "model_version": ["fraud/1" if i % 2 else "fraud/2" for i in rows],
        "stage": ["Production"] * n,
        "route": ["champion"] * n,
        "route_reason": [""] * n,
        "score": rows * 0.1,
        "probability": rows * 0.01,
        "shadow_version": [None if i % 2 else "fraud/3" for i in rows],
        "shadow_probability": np.where(rows % 2, np.nan, 0.25),
        "policy_version": ["tiers/1"] * n,
        "action": ["allow"] * n,
        "propensity": np.ones(n),
        "latency_us": rows.astype(np.int32),
        "cost": np.full(n, 1e-5),
    }
    return DecisionBlock(**(columns | changes))  # type: ignore[arg-type]


@pytest.fixture
def make_block() -> Callable[..., DecisionBlock]:
    return block_of
