"""Hourly drift of 30 features over 10 M logged decisions, from the files beside their segments."""

import statistics
import tempfile
import time

from bench.decisions._blocks import PLACE, SCALE, WIDE, Blocks
from bench.features._claim import tell

from vitok.clock import DAY, HOUR
from vitok.decisions import DecisionLog, read, sidecars
from vitok.monitoring import HourSealer, ReferenceProfile, drift_series
from vitok.monitoring.hours import decode, merge

PER_SEGMENT, HOURS, BAR = 100_000, 24 * 7, 0.2


def main() -> None:
    n_segments = max(2, round(100 * SCALE))
    step = HOURS * HOUR // (n_segments * PER_SEGMENT)
    pool = Blocks(10_000, WIDE)
    profile = ReferenceProfile.fit(list(WIDE.features), pool.features, pool.probability, start=0, end=DAY)
    sealer = HourSealer(lambda _: profile)
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        started = time.perf_counter()
        with DecisionLog(folder, WIDE, rows_per_segment=PER_SEGMENT, on_seal=sealer) as log:
            for at in range(0, n_segments * PER_SEGMENT, pool.n):
                log.append(pool.make(at * step, step))
        written = time.perf_counter() - started
        taken, reading = [], []
        for _ in range(7):
            started = time.perf_counter()
            found = [side.data for side in sidecars(folder, "hours", since=0, until=HOURS * HOUR)]
            reading.append(time.perf_counter() - started)
            hours = merge([part for data in found for part in decode(data)])
            series = drift_series(profile, hours)
            taken.append(time.perf_counter() - started)
        started = time.perf_counter()
        read(folder, columns=[f"f_{WIDE.features[0]}"])
        rows = time.perf_counter() - started
    assert series is not None
    value = statistics.median(taken)
    tell(
        "hourly drift of 30 features over 10 M logged decisions",
        value=value,
        unit="s",
        bar=f"< {BAR:g}",
        met=value < BAR,
        n=n_segments * PER_SEGMENT,
        protocol=(
            f"Median of seven; a week in {n_segments} sealed segments whose files were made at their sealing; of it "
            f"{1000 * statistics.median(reading):.0f} ms to list and read {len(found)} files of "
            f"{sum(map(len, found)) / 1e6:.1f} MB, the rest adds and compares. Writing and sealing the log took "
            f"{written:.0f} s; reading one of the 30 columns by rows takes {rows:.2f} s."
        ),
    )


if __name__ == "__main__":
    main()
