"""Decisions of 40 columns that one process appends a second, each group of 1,000 on the disk before it is told so."""

import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path

from bench.decisions._blocks import COLUMNS, PLACE, SCALE, SCHEMA, Blocks
from bench.features._claim import tell

from vitok.decisions import DecisionLog

GROUP, THREADS, BAR = 1_000, 4, 250_000


def ours(folder: str, n: int, n_threads: int) -> tuple[float, float, float]:
    """Returns rows a second of appends alone, and with sealing until the last segment; and the median commit."""
    commits: list[float] = []
    log = DecisionLog(folder, SCHEMA, durability="fsync")

    def work(groups: range) -> None:
        blocks = Blocks(GROUP, seed=groups.start)
        for group in groups:
            before = time.perf_counter()
            log.append(blocks.make(group * GROUP, 1))
            commits.append(time.perf_counter() - before)

    threads = [threading.Thread(target=work, args=(range(at, n // GROUP, n_threads),)) for at in range(n_threads)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    appended = time.perf_counter() - started
    log.close()
    sealed = time.perf_counter() - started
    return n / appended, n / sealed, statistics.median(commits)


def peer(path: Path, n: int) -> float:
    """Returns rows a second of SQLite with a write-ahead log and a full sync a commit."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"CREATE TABLE decisions ({', '.join(f'c{number}' for number in range(COLUMNS))})")
    block = Blocks(GROUP)
    texts = ["fresh", "bench/1", "Production", "champion", "", "tiers/1"]
    width = COLUMNS - 4 - len(texts)
    values = block.features.tolist()
    insert = f"INSERT INTO decisions VALUES ({', '.join('?' * COLUMNS)})"
    started = time.perf_counter()
    for group in range(n // GROUP):
        made = block.make(group * GROUP, 1)
        rows = [
            (own, customer, action, *texts, time_, *(row * width)[:width])
            for own, customer, action, time_, row in zip(
                made.decision_id, block.customer, block.action, made.event_time.tolist(), values, strict=True
            )
        ]
        with connection:
            connection.executemany(insert, rows)
    taken = time.perf_counter() - started
    connection.close()
    return n / taken


def main() -> None:
    n = max(10 * GROUP, round(400_000 * SCALE))
    rates, sealed, commits, alone, peers = [], [], [], [], []
    for _ in range(5):
        with tempfile.TemporaryDirectory(dir=PLACE) as folder:
            rate, with_seal, commit = ours(f"{folder}/log", n, THREADS)
            rates.append(rate)
            sealed.append(with_seal)
            commits.append(commit)
            alone.append(ours(f"{folder}/alone", n, 1)[0])
            peers.append(peer(Path(folder) / "peer.sqlite", n // 4))
    value, peer_value = statistics.median(rates), statistics.median(peers)
    tell(
        "decisions of 40 columns appended by one process, each group of 1,000 on the disk",
        value=value,
        unit="rows/s",
        bar=f">= {BAR:,}",
        met=value >= BAR,
        n=n,
        peer=f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL, executemany",
        peer_value=peer_value,
        ratio=value / peer_value,
        protocol=(
            f"Median of five runs of {n:,} rows by {THREADS} threads that share commits, ids and messages made in "
            f"the time (one thread, which waits for each commit alone: {statistics.median(alone):,.0f} rows/s); "
            "segments of 100,000 rows are sealed to Parquet beside, in the same process, and what is left of that at "
            f"the end is not counted: with it {statistics.median(sealed):,.0f} rows/s. Median commit "
            f"{1000 * statistics.median(commits):.1f} ms."
        ),
    )


if __name__ == "__main__":
    main()
