"""Decisions of 40 columns for the benchmarks of the log, by blocks."""

import os
from pathlib import Path

import numpy as np

from vitok import ids
from vitok.decisions import Constant, DecisionBlock, LogSchema

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
PLACE = Path(__file__).parents[2] / ".venv"
_OTHERS = len(LogSchema("bench", ("customer_id",), (("amount", "float64"),), ()).columns)
COLUMNS = 40
SCHEMA = LogSchema(
    "bench",
    ("customer_id",),
    (("amount", "float64"),),
    tuple(f"feature_{number}" for number in range(COLUMNS - _OTHERS)),
)
WIDE = LogSchema("bench", (), (), tuple(f"x{number}" for number in range(30)))
_CONSTANTS = {
    "feature_status": Constant("fresh"),
    "model_version": Constant("bench/1"),
    "stage": Constant("Production"),
    "route": Constant("champion"),
    "route_reason": Constant(""),
    "shadow_version": Constant(None),
    "shadow_probability": Constant(float("nan")),
    "policy_version": Constant("tiers/1"),
}


class Blocks:
    """Makes blocks of n decisions as a service does: ids are new each time, values come from a pool."""

    def __init__(self, n: int, schema: LogSchema = SCHEMA, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.n, self.schema = n, schema
        self.features = rng.lognormal(2.0, 1.0, (n, len(schema.features)))
        self.probability = rng.beta(1, 50, n)
        self.amount = rng.lognormal(3.0, 1.0, n)
        self.customer = [str(key) for key in rng.integers(0, 100_000, n)]
        self.action = rng.choice(["allow", "review", "block"], n, p=[0.97, 0.02, 0.01]).tolist()

    def make(self, time: int, step: int = 0) -> DecisionBlock:
        """Makes a block whose event times begin at `time` and are `step` microseconds apart."""
        own = ids.uuid7s(self.n)
        times = time + step * np.arange(self.n, dtype=np.int64)
        return DecisionBlock(
            decision_id=own,
            request_id=own,
            event_time=times,
            ingest_time=times,
            entities=[self.customer] * len(self.schema.entities),
            request=[self.amount] * len(self.schema.request),
            features=self.features,
            score=self.probability,
            probability=self.probability,
            action=self.action,
            propensity=np.ones(self.n),
            latency_us=np.full(self.n, 800, np.int32),
            cost=np.full(self.n, 2e-5),
            **_CONSTANTS,
        )
