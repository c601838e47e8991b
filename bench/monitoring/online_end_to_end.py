"""Raw events to learned events with a record of each: hashed, predicted, learned, counted and in the decision log."""

import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import pyarrow as pa
from bench.features._claim import main, median, run_ours, tell
from bench.monitoring._online import FEATURES, N_COLUMNS, RATES, draw, scaled, texts

from vitok.decisions import Constant, DecisionBlock, DecisionLog, LogSchema
from vitok.ids import uuid7s
from vitok.models.online import OnlineModel

BAR = 1e5
BATCH = 4096
ROUNDS = 3
NAMES = tuple(f"c{i}" for i in range(N_COLUMNS))
SCHEMA = LogSchema("ads", (), tuple((name, "string") for name in NAMES), ())
EMPTY, NONE, ONE, NOTHING = Constant(""), Constant(None), Constant(1.0), Constant(0.0)
SHOWN, MODEL, POLICY, FRESH = Constant("show"), Constant("online/1"), Constant("all/1"), Constant("fresh")
STAGE, ROUTE = Constant("Production"), Constant("champion")


def block(events: pa.Table, p: Any, now: int) -> DecisionBlock:
    n = events.num_rows
    ids, times = uuid7s(n), np.full(n, now)
    return DecisionBlock(
        decision_id=ids,
        request_id=ids,
        event_time=times,
        ingest_time=times,
        entities=[],
        request=[events.column(name).combine_chunks() for name in NAMES],
        features=np.empty((n, 0)),
        feature_status=FRESH,
        model_version=MODEL,
        stage=STAGE,
        route=ROUTE,
        route_reason=EMPTY,
        score=p,
        probability=p,
        shadow_version=NONE,
        shadow_probability=NONE,
        policy_version=POLICY,
        action=SHOWN,
        propensity=ONE,
        latency_us=np.zeros(n, np.int32),
        cost=NOTHING,
    )


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    codes, labels = draw(payload["n"])
    table = pa.table({name: pa.array(column, pa.string()) for name, column in texts(codes).items()})
    OnlineModel(FEATURES).learn_many(table.slice(0, 2), labels[:2])
    seconds, closed = [], []
    for _ in range(ROUNDS):
        model = OnlineModel(FEATURES, rates=RATES)
        with tempfile.TemporaryDirectory(dir=os.environ.get("VITOK_BENCH_DIR")) as folder:
            log = DecisionLog(folder, SCHEMA)
            start = time.perf_counter()
            for i in range(0, payload["n"], BATCH):
                events = table.slice(i, BATCH)
                p = model.learn_many(events, labels[i : i + BATCH])
                log.append(block(events, p, time.time_ns() // 1000))
            seconds.append(time.perf_counter() - start)
            log.close()
            closed.append(time.perf_counter() - start)
    n = payload["n"]
    return {"rate": n / statistics.median(seconds), "closed": n / statistics.median(closed)}


def judge() -> None:
    n = scaled(500_000)
    found = [run_ours(__file__, {"n": n}) for _ in range(3)]
    rate = median(found, "rate")
    tell(
        "Raw events of 24 texts, hashed, predicted, learned and written to the decision log",
        value=rate,
        unit="events/s",
        bar=">= 100,000",
        met=rate >= BAR,
        n=n,
        protocol=f"Arrow tables of {BATCH} events; each is learned with its label and appended with its prediction "
        f"to a decision log that survives kill -9, which seals in the background; median of 3 processes of {ROUNDS} "
        f"runs. Until all is sealed into Parquet: {median(found, 'closed'):,.0f} events/s.",
    )


if __name__ == "__main__":
    main(judge, ours)
