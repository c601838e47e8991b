"""Reading the windows of one key, 1 h, 24 h and 30 d, from the state that the stream has left."""

import statistics
import tempfile
import time
from typing import Any

import numpy as np
from bench.features import _claim, _data


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    import polars as pl
    from bench.features import _stream

    from vitok.engines import LmdbStore
    from vitok.features import OnlineFeatures

    features = _stream.features()
    frame = pl.read_parquet(payload["events"])
    online = OnlineFeatures(features, LmdbStore(payload["folder"]))
    for start in range(0, len(frame), 50_000):
        online.ingest(_stream.SOURCE, frame[start : start + 50_000])
    rng = np.random.default_rng(0)
    keys = rng.choice(frame["key"].to_numpy(), payload["reads"]).tolist()
    out = np.zeros(len(features.computed))
    now, taken, fresh = online.newest + 1, [], 0
    for place, key in enumerate(keys):
        asked = {"key": key}
        began = time.perf_counter_ns()
        status = online.read(asked, now + place, out)
        taken.append(time.perf_counter_ns() - began)
        fresh += status != "missing"
    kept = [micros / 1_000 for micros in taken[100:]]
    return {"median": statistics.median(kept), "p99": float(np.quantile(kept, 0.99)), "found": fresh}


def judge() -> None:
    n, reads = _data.scaled(2_000_000, 20_000), _data.scaled(100_000, 2_000)
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        payload = {"events": str(_data.stream(n)), "folder": folder, "reads": reads}
        found = _claim.run_ours(__file__, payload)
    _claim.tell(
        "reading 10 aggregates of a key over 1 h, 1 d and 30 d where the stream is kept",
        value=found["median"],
        unit="us",
        bar="<= 50",
        met=found["median"] <= 50 and found["found"] == reads,
        n=reads,
        protocol=(
            f"Median of single reads from Python after {n:,} events of 10,000 skewed keys, keys asked for as often as "
            f"they occur; P99 {found['p99']:.1f} us."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, ours)
