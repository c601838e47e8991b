"""Reading all windows of an entity and adding an event, one by one, with state in LMDB."""

import json
import statistics
import tempfile
import time

import numpy as np

from vitok.engines import LmdbStore
from vitok.systems.fraud.features import FEATURES, online_features
from vitok.systems.fraud.simulator import simulate

BLOCK = 4_000
TURN = 16  # requests that one turn of the event loop reads under load
NAMES = ("transaction_id", "customer_id", "terminal_id")


def main() -> None:
    rows = simulate(n_customers=1_000, n_terminals=2_000, days=40).transactions
    times = rows["event_time"].to_physical().to_list()
    records = [{**row, **{name: str(row[name]) for name in NAMES}} for row in rows.to_dicts()]
    ids = [row["transaction_id"] for row in records]
    figures = {}
    for turn in (TURN, 1):
        out = np.zeros((turn, len(FEATURES.computed)))
        blocks = []
        with tempfile.TemporaryDirectory() as folder:
            online = online_features(LmdbStore(folder))
            for start in range(0, len(records) - BLOCK, BLOCK):
                began = time.perf_counter()
                for at in range(start, start + BLOCK, turn):
                    part = slice(at, at + turn)
                    online.serve("transactions", ids[part], times[part], records[part], out)
                blocks.append((time.perf_counter() - began) / BLOCK * 1e6)
                online.checkpoint()
        figures[turn] = statistics.median(blocks[2:])
    value = figures[TURN]
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
                "protocol": f"Median over blocks of {BLOCK} events, {TURN} a call, state in LMDB, then a checkpoint; "
                f"one event a call: {figures[1]:.0f} us.",
            }
        )
    )


if __name__ == "__main__":
    main()
