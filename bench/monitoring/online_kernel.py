"""FTRL-Proximal on rows that are hashed already: how many are predicted and learned a second, in one pass, one thread.

Vowpal Wabbit stands beside with the same slots and rates, from text and from its own binary cache; the faster counts.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.features._claim import main, median, run_ours, tell
from bench.monitoring._online import BITS, FEATURES, PEERS, RATES, VOWPAL_WABBIT, draw, scaled
from bench.peers import environment, run, version

from vitok.models.online_ftrl import Ftrl

BAR = 1e6
ROUNDS = 5


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    data = np.load(payload["file"])
    slots, values, labels = data["slots"], data["values"], data["labels"]
    Ftrl(bits=4).learn_many(np.zeros((1, 1), np.uint32), np.ones((1, 1)), [0.0])
    seconds, batches = [], []
    for _ in range(ROUNDS):
        model = Ftrl(bits=BITS, rates=RATES)
        start = time.perf_counter()
        model.learn_many(slots, values, labels)
        seconds.append(time.perf_counter() - start)
        model = Ftrl(bits=BITS, rates=RATES)
        start = time.perf_counter()
        for i in range(0, len(slots), 32):
            model.learn_many(slots[i : i + 32], values[i : i + 32], labels[i : i + 32])
        batches.append(time.perf_counter() - start)
    n = len(slots)
    return {"rate": n / statistics.median(seconds), "batches": n / statistics.median(batches)}


def judge() -> None:
    n = scaled(1_000_000)
    codes, labels = draw(n)
    slots, values = FEATURES.encode({f"c{i}": codes[:, i] for i in range(codes.shape[1])})
    python = environment("vowpal-wabbit", VOWPAL_WABBIT)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "events.npz")
        np.savez(file, slots=slots, values=values, labels=labels)
        found, theirs = [], []
        for _ in range(3):
            found.append(run_ours(__file__, {"file": file}))
            theirs.append(run(python, PEERS / "online_vw.py", {"file": file, "bits": BITS, **RATES.to_dict()}))
    rate, text, cache = median(found, "rate"), median(theirs, "text_rate"), median(theirs, "cached_rate")
    peer = max(text, cache)
    tell(
        "FTRL-Proximal learns rows of 24 hashed categories",
        value=rate,
        unit="events/s",
        peer=f"vowpalwabbit {version(python, 'vowpalwabbit')}",
        peer_value=peer,
        ratio=rate / peer,
        bar=">= 1,000,000",
        met=rate >= BAR,
        n=n,
        protocol=f"Predicted and learned in one pass, one thread, 2^{BITS} slots, the constant included; median of 3 "
        f"processes of {ROUNDS} passes, in turns with the peer. Ours in batches of 32 rows: "
        f"{median(found, 'batches'):,.0f} events/s; the peer from text {text:,.0f}, from its cache "
        f"{cache:,.0f}, reading included in both.",
    )


if __name__ == "__main__":
    main(judge, ours)
