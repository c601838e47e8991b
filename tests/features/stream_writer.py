"""A stream taken in until it ends or this process is killed; run by the kill tests and the kill benchmark.

    python stream_writer.py FOLDER SEED N_BATCHES

The events are made from the seed, the same in every process: out of order, with duplicates. Each batch is acknowledged
on standard output once `ingest` has returned.
"""

import sys

import numpy as np
import polars as pl

from vitok.clock import DAY, HOUR, MINUTE
from vitok.engines import LmdbStore
from vitok.features import (
    Count,
    Distinct,
    Entity,
    FeatureSet,
    Last,
    Max,
    Mean,
    OnlineFeatures,
    Recent,
    Source,
    Std,
    Sum,
    TopK,
    View,
)

LATENESS = 20 * MINUTE
PER_BATCH = 200
CUSTOMER, SHOP = Entity("customer", "customer"), Entity("shop", "shop")
SOURCE = Source("payments", "id")
FEATURES = FeatureSet(
    views=(
        View(
            name="c",
            entity=CUSTOMER,
            source=SOURCE,
            aggregations=(
                Count(("1h", "1d", "30d")),
                Sum("amount", ("1h", "30d")),
                Mean("amount", "1d"),
                Std("amount", "1d"),
                Max("amount", "30d"),
                Last("amount", "30d"),
                Recent("amount", "1d", n=3),
            ),
        ),
        View(
            name="s",
            entity=SHOP,
            source=SOURCE,
            aggregations=(Count("1h"), Distinct("customer", ("1h", "30d")), TopK("amount", "1d", k=2)),
        ),
    )
)


def batch(seed: int, number: int) -> pl.DataFrame:
    """Makes one batch: 3 % of its rows repeat rows of the batch before."""
    rng = np.random.default_rng([seed, number])
    begin = 17_000 * DAY + number * 10 * MINUTE
    times = begin + rng.integers(0, 10 * MINUTE, PER_BATCH) - rng.integers(0, 9 * MINUTE, PER_BATCH)
    frame = pl.DataFrame(
        {
            "id": [f"{number}-{i}" for i in range(PER_BATCH)],
            "event_time": times,
            "customer": [f"c{i}" for i in rng.zipf(1.5, PER_BATCH) % 50],
            "shop": [f"s{i}" for i in rng.integers(0, 8, PER_BATCH)],
            "amount": rng.integers(1, 50, PER_BATCH) / 4,
        }
    ).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    again = batch(seed, number - 1).sample(6, seed=number) if number % 5 == 1 else frame.clear()
    return pl.concat([frame, again])


def vectors(online: OnlineFeatures, n_batches: int) -> np.ndarray:
    """Reads every key at the end of the stream."""
    time = 17_000 * DAY + n_batches * 10 * MINUTE + HOUR
    keys = {"customer": [f"c{i}" for i in range(50)], "shop": [f"s{i % 8}" for i in range(50)]}
    out = np.empty((50, len(FEATURES.computed)))
    online.read_many(keys, np.full(50, time), out)
    return out


def main(folder: str, seed: int, n_batches: int) -> None:
    """Takes the stream in from where the store says."""
    online = OnlineFeatures(FEATURES, LmdbStore(folder), lateness=LATENESS, journal=True)
    for number in range(online.positions().get("next", 0), n_batches):
        online.ingest("payments", batch(seed, number), positions={"next": number + 1})
        sys.stdout.write(f"{number + 1}\n")
        sys.stdout.flush()
        if number % 7 == 6:
            online.checkpoint()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
