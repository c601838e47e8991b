"""Hourly drift of 30 features over 10 M decisions, from the files that were written when segments were sealed."""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from bench.features._claim import tell

from vitok.clock import DAY, HOUR
from vitok.monitoring import HourSealer, ReferenceProfile, Sketches, drift_series
from vitok.monitoring.hours import decode, merge

N_FEATURES, HOURS, PER_SEGMENT = 30, 24 * 7, 100_000
BAR = 0.2


def segment(at: int, n: int, start: int, length: int) -> pl.DataFrame:
    rng = np.random.default_rng(at)
    columns = {
        f"f_x{number}": rng.lognormal(3.0, 0.8, n) if number % 2 else rng.normal(size=n) for number in range(N_FEATURES)
    }
    return pl.DataFrame(
        {
            "event_time": pl.Series(start + rng.integers(0, length, n)).cast(pl.Datetime("us", "UTC")),
            "model_version": ["m/1"] * n,
            "route": ["champion"] * n,
            "feature_status": ["fresh"] * n,
            "action": rng.choice(["allow", "review", "block"], n),
            "probability": rng.beta(1, 50, n),
            "latency_us": rng.integers(300, 3_000, n),
            **columns,
        }
    )


def main() -> None:
    scale = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
    segments = max(4, round(100 * scale))
    length = HOURS * HOUR // segments
    first = segment(10**6, PER_SEGMENT, 0, DAY)
    profile = ReferenceProfile.fit(
        [f"x{number}" for number in range(N_FEATURES)],
        first.select([f"f_x{number}" for number in range(N_FEATURES)]).to_numpy(),
        first["probability"].to_numpy(),
        start=0,
        end=DAY,
    )
    sealer = HourSealer(lambda version: profile if version == "m/1" else None)
    sealing, size = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at in range(segments):
            table = segment(at, PER_SEGMENT, at * length, length).to_arrow()
            started = time.perf_counter()
            data = sealer(table, f"segment-{at:08}")["hours"]
            sealing += time.perf_counter() - started
            size += len(data)
            (folder / f"{at:08}.side").write_bytes(data)
        taken = []
        for _ in range(7):
            started = time.perf_counter()
            hours = merge([decode(path.read_bytes())[0] for path in sorted(folder.iterdir())])
            series = drift_series(profile, hours)
            taken.append(time.perf_counter() - started)
        sketches = Sketches(folder / "sketches.sqlite")
        started = time.perf_counter()
        sketches.absorb((path.stem, path.read_bytes()) for path in sorted(folder.glob("*.side")))
        absorbing = time.perf_counter() - started
        stored = []
        for _ in range(7):
            started = time.perf_counter()
            again = sketches.series("m/1", 0, HOURS * HOUR)
            if again is not None:
                drift_series(profile, again)
            stored.append(time.perf_counter() - started)
        sketches.close()
    seconds, from_store = statistics.median(taken), statistics.median(stored)
    n = int(hours.n_total)
    tell(
        f"hourly drift of {N_FEATURES} features over {n:,} decisions from sealed files",
        value=1_000 * seconds,
        unit="ms",
        bar="< 200 ms",
        met=max(seconds, from_store) < BAR,
        n=n,
        protocol=(
            f"Median of 7: {segments} files of {size / 2**20:.1f} MiB read, added up and measured,"
            f" {series.psi.shape[0]} hours by {series.psi.shape[1]} columns (PSI, its null law, Kolmogorov-Smirnov,"
            f" Wasserstein); from the SQLite file they were absorbed into ({absorbing:.2f} s):"
            f" {1_000 * from_store:.0f} ms. Counting a segment of {PER_SEGMENT:,} rows when it is sealed:"
            f" {1_000 * sealing / segments:.0f} ms."
        ),
    )


if __name__ == "__main__":
    main()
