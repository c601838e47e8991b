"""100 SIGKILLs at random moments: acknowledged decisions that are lost, and decisions that are there twice."""

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.decisions._blocks import PLACE, SCALE, SCHEMA
from bench.features._claim import path, tell

from vitok.decisions import DecisionLog, Tail, read

CHILD = """
import os, random, sys
import numpy as np
from bench.decisions._blocks import SCHEMA, Blocks
from vitok.decisions import DecisionLog, DecisionBlock
import msgspec
seed = int(sys.argv[2])
sizes = random.Random(seed)
blocks = {n: Blocks(n) for n in (1, 7, 64, 500)}
log = DecisionLog(sys.argv[1], SCHEMA, durability="fsync", rows_per_segment=2_000)
at = 0
while True:
    n = sizes.choice(sorted(blocks))
    block = msgspec.structs.replace(blocks[n].make(at), request_id=[f"{seed}-{at + i}" for i in range(n)])
    log.append(block)
    at += n
    os.write(1, f"{at}\\n".encode())
"""


def _moments(folder: Path, *, told_late: bool) -> list[str]:
    """Says from what lies in the folder of a log what its writer was doing when it was killed; more than one thing."""
    opened = {path.stem for path in folder.glob("segment-*.arrows")}
    sealed = {path.stem for path in folder.glob("day=*/hour=*/segment-*.parquet")}
    found = ["an append between its write and its answer"] if told_late else []
    # The last one is that which is appended to.
    found += ["a sealing"] if len(opened - sealed) > 1 else []
    found += ["a sealing half written"] if any(folder.glob("day=*/hour=*/*.tmp")) else []
    found += ["a sealing before the open form went"] if opened & sealed else []
    return found or ["nothing of these"]


def main() -> None:
    n_kills = max(5, round(100 * SCALE))
    generator = random.Random(17)
    environment = os.environ | {"PYTHONPATH": path()}
    told: list[int] = []
    moments: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        tail, followed = Tail(folder), []
        for run in range(n_kills):
            command = [sys.executable, "-c", CHILD, folder, str(run)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
                first = child.stdout.readline()
                try:
                    # The moment falls anywhere in appends, commits, rolls and sealings.
                    child.wait(generator.uniform(0.0, 0.3))
                except subprocess.TimeoutExpired:
                    os.kill(child.pid, signal.SIGKILL)
                rest = child.stdout.read().splitlines()
            told.append(int(([first.strip(), *rest])[-1]))
            found = tail.read()
            fresh = [] if found is None else found["request_id"].to_list()
            followed += fresh
            moments.update(_moments(Path(folder), told_late=len(fresh) > told[-1]))
        tail.close()
        with DecisionLog(folder, SCHEMA):
            pass
        names = read(folder, columns=["request_id"])["request_id"].to_list()
    there = set(names)
    lost = sum(f"{run}-{row}" not in there for run, n in enumerate(told) for row in range(n))
    doubled = len(names) - len(there) + len(followed) - len(set(followed))
    missed = len(there ^ set(followed))
    cut = sorted(moments.items())
    tell(
        "acknowledged decisions lost, doubled, or not seen by a reader that followed, over 100 SIGKILLs",
        value=lost + doubled + missed,
        unit="decisions",
        bar="0",
        met=not lost + doubled + missed,
        n=sum(told),
        protocol=(
            f"{n_kills} kills of a writer with fdatasync, blocks of 1 to 500 and segments of 2,000 rows, so that "
            f"sealings are cut too; {sum(told):,} decisions were acknowledged: {lost} lost, {doubled} doubled, "
            f"{missed} not followed. What the kills interrupted: {', '.join(f'{name} {n}' for name, n in cut)}."
        ),
    )


if __name__ == "__main__":
    main()
