"""What threads and processes that append single decisions at the same time gain by sharing commits."""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

from bench.decisions._blocks import PLACE, SCALE, SCHEMA, Blocks
from bench.features._claim import path, tell

from vitok.decisions import DecisionLog, writer

THREADS, PROCESSES, BAR = 16, 4, 3.0

CHILD = """
import sys, time
from bench.decisions._blocks import SCHEMA, Blocks
from vitok.decisions import DecisionLog
blocks, log = Blocks(1), DecisionLog(sys.argv[1], SCHEMA, durability="fsync", shared=True)
log.append(blocks.make(0))
print("ready", flush=True)
sys.stdin.readline()
started, n = time.perf_counter(), int(sys.argv[2])
for at in range(n):
    log.append(blocks.make(at))
print(time.perf_counter() - started, flush=True)
sys.stdin.readline()
"""


def by_threads(folder: str, n_threads: int, n: int) -> tuple[float, float]:
    """Returns appends a second, and appends a commit."""
    calls = [0]
    real = writer._sync  # noqa: SLF001 - what is counted

    def counted(fd: int) -> None:
        calls[0] += 1
        real(fd)

    def work(log: DecisionLog) -> None:
        blocks = Blocks(1)
        for at in range(n):
            log.append(blocks.make(at))

    with mock.patch.object(writer, "_sync", counted), DecisionLog(folder, SCHEMA, durability="fsync") as log:
        threads = [threading.Thread(target=work, args=(log,)) for _ in range(n_threads)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        taken = time.perf_counter() - started
    return n * n_threads / taken, n * n_threads / calls[0]


def by_processes(folder: str, n_processes: int, n: int) -> float:
    """Returns appends a second of all processes together."""
    environment = os.environ | {"PYTHONPATH": path()}
    command = [sys.executable, "-c", CHILD, folder, str(n)]
    pipe = subprocess.PIPE
    children = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) for _ in range(n_processes)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    slowest = max(float(child.stdout.readline()) for child in children)
    for child in children:
        child.communicate("\n")
    return n * n_processes / slowest


def main() -> None:
    n = max(20, round(400 * SCALE))
    alone, together, commits, one, many = [], [], [], [], []
    for run in range(3):
        with tempfile.TemporaryDirectory(dir=PLACE) as folder:
            alone.append(by_threads(f"{folder}/a{run}", 1, n)[0])
            rate, each = by_threads(f"{folder}/b{run}", THREADS, n)
            together.append(rate)
            commits.append(each)
            one.append(by_processes(f"{folder}/c{run}", 1, n))
            many.append(by_processes(f"{folder}/d{run}", PROCESSES, n))
    value = statistics.median(together) / statistics.median(alone)
    tell(
        f"durable appends of single decisions by {THREADS} threads, against one thread",
        value=value,
        unit="times",
        bar=f">= {BAR:g}",
        met=value >= BAR,
        n=n * THREADS,
        protocol=(
            f"Median of three runs; one thread {statistics.median(alone):,.0f} appends/s, {THREADS} threads "
            f"{statistics.median(together):,.0f} with {statistics.median(commits):.1f} appends a commit; {PROCESSES} "
            f"processes on one log {statistics.median(many):,.0f} against {statistics.median(one):,.0f} of one, whose "
            "commits only the file system joins."
        ),
    )


if __name__ == "__main__":
    main()
