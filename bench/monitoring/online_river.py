"""The same events through River's FTRL and through ours, each from the form it takes events in, hashing included.

The two do not compute the same: River predicts with weights that are one update old and never sets a weight back to
0, so that its predictions differ from Algorithm 1 of the paper. Only the speed is compared.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench.features._claim import main, median, run_ours, tell
from bench.monitoring._online import FEATURES, PEERS, RATES, RIVER, draw, scaled, texts
from bench.peers import environment, run, version

from vitok.models.online import OnlineModel

BAR = 10.0
BATCH = 4096


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    data = np.load(payload["file"])
    labels = data["labels"]
    table = pa.table(texts(data["codes"]))
    rows = table.slice(0, payload["dicts"]).to_pylist()
    # Once each way before the clock starts, with enough rows to take the way of a batch.
    for first in (table.slice(0, BATCH), rows[:BATCH]):
        OnlineModel(FEATURES).learn_many(first, labels[: len(first)])
    model = OnlineModel(FEATURES, rates=RATES)
    start = time.perf_counter()
    for i in range(0, len(labels), BATCH):
        model.learn_many(table.slice(i, BATCH), labels[i : i + BATCH])
    seconds = time.perf_counter() - start
    other = OnlineModel(FEATURES, rates=RATES)
    start = time.perf_counter()
    for i in range(0, len(rows), BATCH):
        other.learn_many(rows[i : i + BATCH], labels[: len(rows)][i : i + BATCH])
    dicts = len(rows) / (time.perf_counter() - start)
    return {
        "rate": len(labels) / seconds,
        "dicts": dicts,
        "log_loss": model.validation.score(window=1).log_loss,
    }


def judge() -> None:
    n, n_peer = scaled(400_000), scaled(60_000, 4_000)
    codes, labels = draw(n)
    python = environment("river", RIVER)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "events.npz")
        np.savez(file, codes=codes, labels=labels)
        found, theirs = [], []
        for _ in range(3):
            found.append(run_ours(__file__, {"file": file, "dicts": n_peer}))
            theirs.append(run(python, PEERS / "online_river.py", {"file": file, "n": n_peer, **RATES.to_dict()}))
    rate, peer = median(found, "rate"), median(theirs, "rate")
    tell(
        "Events of 24 texts, hashed, predicted, learned and counted",
        value=rate,
        unit="events/s",
        peer=f"river {version(python, 'river')} FTRLProximal",
        peer_value=peer,
        ratio=rate / peer,
        bar=">= 10 times",
        met=rate >= BAR * peer,
        n=n,
        protocol=f"Ours from Arrow in batches of {BATCH}, progressive validation included; from dicts in such batches "
        f"{median(found, 'dicts'):,.0f} events/s. River's own way: {n_peer:,} dicts, one after another, predict_proba_"
        "one and learn_one, made before the clock starts. Median of 3 processes in turns, one thread. River's rule is "
        "another one: it predicts with weights one update old and never sets a weight back to 0.",
    )


if __name__ == "__main__":
    main(judge, ours)
