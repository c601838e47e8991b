"""Reading all windows of an entity and adding an event, one by one, with state in LMDB."""

import json
import statistics
import tempfile
import time

import numpy as np

from vitok.engines import LmdbStore
from vitok.features import OnlineFeatures
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.simulator import simulate

BLOCK = 5_000


def main() -> None:
    rows = simulate(n_customers=1_000, n_terminals=2_000, days=40).transactions
    times = rows["event_time"].to_physical().to_list()
    records = rows.to_dicts()
    out = np.zeros(len(FEATURES.names))
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        online = OnlineFeatures(FEATURES, LmdbStore(folder))
        for start in range(0, len(records) - BLOCK, BLOCK):
            began = time.perf_counter()
            for row, moment in zip(records[start : start + BLOCK], times[start : start + BLOCK], strict=True):
                online.read(row, moment, out)
                online.add("transactions", row["transaction_id"], moment, row)
            blocks.append((time.perf_counter() - began) / BLOCK * 1e6)
            online.checkpoint()
    value = statistics.median(blocks[2:])
    print(
        json.dumps(
            {
                "claim": "read 30 windowed features of two entities and add the event",
                "value": round(value, 1),
                "unit": "us",
                "peer": None,
                "peer_value": None,
                "ratio": None,
                "bar": "<= 50",
                "met": value <= 50,
                "n": len(records),
                "protocol": f"Median over blocks of {BLOCK} events, state in LMDB, a checkpoint after each block.",
            }
        )
    )


if __name__ == "__main__":
    main()
