"""How long a read takes with writers and without: readers take no lock, so they wait for nobody but the processor."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from bench.decisions._blocks import PLACE, SCALE, SCHEMA, Blocks
from bench.features._claim import path, tell

from vitok.decisions import DecisionLog, Tail, find

BAR = 2.0

CHILD = """
import sys, threading, time
from bench.decisions._blocks import SCHEMA, Blocks
from vitok.decisions import DecisionLog
blocks = Blocks(100)
log = DecisionLog(sys.argv[1], SCHEMA, durability="fsync", shared=True)
pause, at = threading.Event(), 10**12
while True:
    log.append(blocks.make(at, 1))
    if at == 10**12:
        print("ready", flush=True)
    at += 100
    pause.wait(0.02)
"""


def timed(folder: str, names: list[str], n: int) -> np.ndarray:
    """Returns the seconds of n reads: one decision by its id, and what was appended since."""
    tail = Tail(folder)
    while tail.read() is not None:
        pass
    taken = np.empty(n)
    for at in range(n):
        started = time.perf_counter()
        assert find(folder, request_id=names[at % len(names)]) is not None
        tail.read(100)
        taken[at] = time.perf_counter() - started
    tail.close()
    return taken


def main() -> None:
    n = max(100, round(3_000 * SCALE))
    environment = os.environ | {"PYTHONPATH": path()}
    quantiles = {}
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        blocks = Blocks(1_000)
        names = []
        with DecisionLog(folder, SCHEMA, shared=True) as log:
            for group in range(100):
                block = blocks.make(group * 1_000, 1)
                names.append(block.request_id.texts[group])
                log.append(block)
        quantiles["alone"] = np.quantile(timed(folder, names, n), [0.5, 0.99])
        command = [sys.executable, "-c", CHILD, folder]
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
        try:
            for child in children:
                assert child.stdout.readline() == "ready\n"
            quantiles["writing"] = np.quantile(timed(folder, names, n), [0.5, 0.99])
            for child in children:
                os.kill(child.pid, signal.SIGSTOP)
            quantiles["stopped"] = np.quantile(timed(folder, names, n), [0.5, 0.99])
        finally:
            for child in children:
                child.kill()
                child.communicate()
    value = quantiles["writing"][1] / quantiles["alone"][1]
    shown = "; ".join(f"{name} {1e3 * low:.2f} / {1e3 * high:.2f} ms" for name, (low, high) in quantiles.items())
    tell(
        "P99 of a read while two processes write, against nobody writing",
        value=value,
        unit="times",
        bar=f"<= {BAR:g}",
        met=value <= BAR,
        n=n,
        protocol=(
            "A read is one decision of 100,000 by its id and what was appended since; two processes append 100 rows "
            f"every 20 ms with fdatasync. Median / P99: {shown}, the last with both writers halted by SIGSTOP."
        ),
    )


if __name__ == "__main__":
    main()
