"""The stream engine killed with SIGKILL at a hundred random moments: its state and offsets against a calm run's."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.features import _claim, _data

KILLS = 100
BATCH = 500
REPEATED = 1_000  # rows that the stream hands over again after a start, as one with at-least-once delivery may
CHUNK = 100_000
LONGEST = 1.0  # seconds between a start and a kill, at most


def consume(payload: dict[str, Any]) -> dict[str, Any]:
    """Reads the stream on from the store's own position to its end."""
    import polars as pl
    from bench.features import _stream

    from vitok.engines import LmdbStore
    from vitok.features import OnlineFeatures

    features = _stream.features()
    print("started", flush=True)
    online = OnlineFeatures(features, LmdbStore(payload["folder"]), journal=True)
    rows = pl.scan_parquet(payload["events"])
    n = payload["n"]
    at = online.positions().get("row", 0)
    start, recovered = max(0, at - REPEATED), online.recovered_events
    for begin in range(start, n, CHUNK):
        frame = rows.slice(begin, min(CHUNK, n - begin)).collect()
        for number, first in enumerate(range(0, len(frame), BATCH)):
            end = min(first + BATCH, len(frame))
            # What is read again moves no position back.
            at = max(at, begin + end)
            online.ingest(_stream.SOURCE, frame[first:end], positions={"row": at})
            if number % 40 == 39:
                online.checkpoint()
    online.checkpoint()
    return {"positions": online.positions(), "recovered": recovered}


def killed(payload: dict[str, Any], kills: int, rng: np.random.Generator) -> int:
    """Starts the consumer over and over and kills it; returns how many kills hit it before it was done."""
    hit = 0
    while hit < kills:
        process = subprocess.Popen(
            [sys.executable, __file__, _claim.OURS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            process.stdin.write(json.dumps(payload))
            process.stdin.close()
            process.stdout.readline()
            time.sleep(rng.uniform(0, LONGEST))
            if process.poll() is not None:
                if process.returncode != 0:
                    raise RuntimeError(f"the consumer failed with {process.returncode}")
                return hit
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
            # Nothing after "started" was printed where it did not come to its end.
            unfinished = not process.stdout.read().strip()
            process.stdout.close()
        hit += unfinished
    return hit


def different_keys(one: Path, other: Path, n: int) -> tuple[int, int, int]:
    """Compares two stores: keys whose packed state differs, keys in all, and positions that differ."""
    from vitok.engines import LmdbStore

    left, right = LmdbStore(one), LmdbStore(other)
    states = [dict(store.scan("state:key")) for store in (left, right)]
    keys = states[0].keys() | states[1].keys()
    differ = sum(states[0].get(key) != states[1].get(key) for key in keys)
    wanted = json.dumps({"row": n}).encode()
    positions = sum(store.get("meta", b"positions") != wanted for store in (left, right))
    return differ, len(keys), positions


def different_answers(one: Path, other: Path) -> int:
    """Counts values that two stores answer differently, in any bit, for every key at several times."""
    from bench.features import _stream

    from vitok.engines import LmdbStore
    from vitok.features import OnlineFeatures

    features = _stream.features()
    answers = []
    for folder in (one, other):
        store = LmdbStore(folder)
        keys = [key.decode() for key, _ in store.scan("state:key")]
        online = OnlineFeatures(features, store)
        for ahead in (1, _data.HOUR, 3 * _data.DAY, 20 * _data.DAY):
            out = np.zeros((len(keys), len(features.computed)))
            online.read_many({"key": keys}, np.full(len(keys), online.newest + ahead), out)
            answers.append(out.view(np.int64))
    half = len(answers) // 2
    return sum(
        int((mine != other).sum()) if mine.shape == other.shape else max(mine.size, other.size)
        for mine, other in zip(answers[:half], answers[half:], strict=True)
    )


def judge() -> None:
    n = _data.scaled(3_000_000, 50_000)
    rng = np.random.default_rng(0)
    os.environ["PYTHONPATH"] = _claim.path()
    hit = rounds = states = keys = positions = answers = recovered = 0
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        calm = Path(folder, "calm")
        payload = {"events": str(_data.stream(n)), "n": n}
        _claim.run_ours(__file__, {**payload, "folder": str(calm)})
        # A machine so fast that the stream ends before the last kill reads it again, into another store.
        while hit < KILLS and rounds < KILLS:
            rounds += 1
            harried = Path(folder, f"harried-{rounds}")
            hit += killed({**payload, "folder": str(harried)}, KILLS - hit, rng)
            recovered += _claim.run_ours(__file__, {**payload, "folder": str(harried)})["recovered"]
            found = different_keys(calm, harried, n)
            states, keys, positions = states + found[0], found[1], positions + found[2]
            answers += different_answers(calm, harried)
    _claim.tell(
        f"kill -9 of the stream engine at {hit} random moments: values, states and offsets that differ",
        value=answers + states + positions,
        unit="differences",
        bar=f"0 after {KILLS} kills",
        met=answers == 0 and states == 0 and positions == 0 and hit >= KILLS,
        n=hit,
        protocol=(
            f"{n:,} events of W-STREAM in batches of {BATCH}, killed up to {LONGEST} s after a start, also while it "
            f"recovers; each start hands the last {REPEATED:,} rows over again. {keys:,} keys compared with an "
            f"uninterrupted run: packed states byte for byte ({states} differ), ten aggregates at four times bit for "
            f"bit ({answers} differ), the stream's position ({positions} differ). {rounds} streams; their last starts "
            f"recovered {recovered:,} events from the journal."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, consume)
