"""What small segments cost who reads a month of a quiet log, what they cost once merged, and what merging costs."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.decisions._blocks import PLACE, SCALE, SCHEMA, Blocks
from bench.features._claim import tell

from vitok.clock import DAY
from vitok.decisions import DecisionLog, query, read
from vitok.decisions.merging import merge

BAR = 5.0
SEGMENTS, ROWS, DAYS = 2_000, 50, 30
BEGIN = 20_000 * DAY
COLUMNS = ["request_id", "event_time", "action", "probability"]
SQL = "SELECT action, count(*) AS n, avg(probability) AS p FROM decisions GROUP BY action"


def median(call: Callable[[], object], times: int) -> float:
    """Returns the seconds of a call, the median of some after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    n = max(60, round(SEGMENTS * SCALE))
    blocks = Blocks(ROWS)
    with tempfile.TemporaryDirectory(dir=PLACE) as top:
        folder = Path(top) / "decisions"
        step = DAYS * DAY // (n * ROWS)
        with DecisionLog(folder, SCHEMA, rows_per_segment=ROWS) as log:
            for at in range(n):
                log.append(blocks.make(BEGIN + at * ROWS * step, step))
        end = BEGIN + DAYS * DAY
        scans: dict[str, Callable[[], object]] = {
            "four columns": lambda: read(folder, columns=COLUMNS, since=BEGIN, until=end),
            "all 40 columns": lambda: read(folder, since=BEGIN, until=end),
            "an hour": lambda: read(folder, columns=COLUMNS, since=BEGIN + DAY, until=BEGIN + DAY + DAY // 24),
            "SQL": lambda: query(top, SQL),
        }
        rows = read(folder, since=BEGIN, until=end)
        before = {name: median(call, 5) for name, call in scans.items()}
        started = time.perf_counter()
        done = merge(folder, now=BEGIN + 60 * DAY)
        cost = time.perf_counter() - started
        after = {name: median(call, 5) for name, call in scans.items()}
        assert read(folder, since=BEGIN, until=end).equals(rows)
        assert rows.height == done.rows == n * ROWS
    ratio = before["four columns"] / after["four columns"]
    shown = "; ".join(f"{name} {1e3 * before[name]:,.1f} / {1e3 * after[name]:,.1f} ms" for name in scans)
    tell(
        "A month of a quiet log read before its small segments are merged, against after",
        value=ratio,
        unit="times",
        bar=f">= {BAR:g}",
        met=ratio >= BAR,
        n=n,
        protocol=(
            f"{n} sealed segments of {ROWS} decisions of 40 columns over {DAYS} days, merged into "
            f"{done.segments_after} files in {cost:.1f} s ({1e3 * cost / n:.1f} ms a segment; {done.bytes_before:,} "
            f"bytes became {done.bytes_after:,}), each flushed to the disk. Before / after, medians of five: {shown}. "
            "The value is that of four columns."
        ),
    )


if __name__ == "__main__":
    main()
