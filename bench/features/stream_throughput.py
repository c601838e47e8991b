"""Events a second of the embedded stream engine in batches: ten aggregates, out of order, deduplicated, durable."""

import tempfile
from pathlib import Path
from typing import Any

from bench.features import _claim, _data
from bench.peers import timed_usage

BATCH = 50_000
RUNS = 3


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    from bench.features import _stream

    _stream.one_core()

    import polars as pl

    from vitok.engines import LmdbStore
    from vitok.features import OnlineFeatures

    frame = pl.read_parquet(payload["events"])
    warm, folder = Path(payload["folder"], "warm"), Path(payload["folder"], "store")
    # Kernels are compiled, or loaded from where they are kept, before the clock starts.
    online = OnlineFeatures(_stream.features(), LmdbStore(warm), journal=True)
    online.ingest(_stream.SOURCE, frame[:1_000], positions={"row": 1_000})
    online.checkpoint()

    batch, every = payload["batch"], payload["checkpoint_every"]
    online = OnlineFeatures(_stream.features(), LmdbStore(folder), journal=True)
    n_new, longest, late = 0, 0.0, 0
    began = timed_usage()
    for number, start in enumerate(range(0, len(frame), batch), start=1):
        at = timed_usage()[0]
        found = online.ingest(
            _stream.SOURCE, frame[start : start + batch], positions={"row": min(start + batch, len(frame))}
        )
        if number % every == 0:
            online.checkpoint()
        taken = timed_usage()[0] - at
        longest, late = max(longest, taken), late + (taken > payload["deadline"])
        n_new += found.n_new
    online.checkpoint()
    ended = timed_usage()
    return {
        "wall": ended[0] - began[0],
        "cpu": ended[1] - began[1],
        "n_new": n_new,
        "n_batches": -(-len(frame) // batch),
        "n_late": late,
        "longest": longest,
        "disk_mib": _stream.disk_mib(folder),
    }


def runs(n: int, *, batch: int, checkpoint_every: int, deadline: float) -> list[dict[str, Any]]:
    """Runs our side some times over the same events, each time into an empty store.

    Args:
        n: Arrivals.
        batch: How many are handed over at once.
        checkpoint_every: Batches between two checkpoints.
        deadline: Seconds; batches that take longer are counted.
    """
    payload = {"events": str(_data.stream(n)), "batch": batch, "checkpoint_every": checkpoint_every}
    found = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
            found.append(_claim.run_ours(__file__, {**payload, "folder": folder, "deadline": deadline}))
    return found


def judge() -> None:
    n = _data.scaled(2_000_000, 20_000)
    found = runs(n, batch=BATCH, checkpoint_every=10, deadline=60.0)
    fresh = n - n // 50
    value = n / _claim.median(found, "cpu")
    _claim.tell(
        "stream of 10 aggregates on one core, in batches: out of order, deduplicated, durable",
        value=value,
        unit="events / CPU s",
        bar=">= 300,000",
        met=value >= 300_000 and all(result["n_new"] == fresh for result in found),
        n=n,
        protocol=(
            f"Median of {RUNS} runs, the process kept on one core: batches of {BATCH:,} events, each with its "
            "positions in LMDB before it counts, a checkpoint of all changed keys every 10 batches and at the end; "
            "10,000 skewed keys, 2 % copies (all found), windows of 1 h, 1 d and 30 d. By the wall clock "
            f"{n / _claim.median(found, 'wall'):,.0f} events/s; peak {_claim.most(found, 'peak_mib'):,.0f} MiB, store "
            f"{_claim.most(found, 'disk_mib'):,.0f} MiB. Reading the file is not counted."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, ours)
