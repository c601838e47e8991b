"""Metric points of training loops: how fast they are taken, how fast they are stored, and MLflow's own ways beside.

`python -m bench.registry.tracking`; it starts itself again as one of the writers.
"""

import contextlib
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402

from vitok.registry import Tracker, mlflow_client  # noqa: E402

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
POINTS = max(20_000, round(200_000 * SCALE))
BATCHED, SINGLE = max(2_000, round(20_000 * SCALE)), max(100, round(1_000 * SCALE))
ROUNDS, WRITERS, NAMES = 5, 8, 20
BAR_TAKEN, BAR_SINGLE, BAR_BATCH = 100_000, 5.0, 1.0
KILLS, WINDOW, PACE = max(3, round(10 * SCALE)), 0.5, 20_000
METRICS = [f"metric_{i}" for i in range(NAMES)]


def ours(tracker: Tracker, n: int) -> tuple[float, float]:
    """Logs steps of twenty metrics; gives points a second as the loop sees it, and until all are stored."""
    values = dict.fromkeys(METRICS, 0.5)
    with tracker.run("bench", name="ours") as run:
        began = time.perf_counter()
        for step in range(n // NAMES):
            run.log_metrics(values, step=step)
        taken = time.perf_counter() - began
        run.flush()
        stored = time.perf_counter() - began
    return n / taken, n / stored


def theirs(tracker: Tracker, n: int, log: Callable[[Any, str, int], None], size: int) -> float:
    """Gives points a second of one of MLflow's own calls with so many points each."""
    client = mlflow_client.import_mlflow().MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)
    with tracker.run("bench", name="theirs") as run:
        began = time.perf_counter()
        for step in range(n // size):
            log(client, run.run_id, step)
        return n / (time.perf_counter() - began)


def one(client: Any, run_id: str, step: int) -> None:
    client.log_metric(run_id, METRICS[step % NAMES], 0.5, step=step // NAMES)


def batch(client: Any, run_id: str, step: int) -> None:
    from mlflow.entities import Metric

    now = int(1000 * time.time())
    client.log_batch(run_id, [Metric(METRICS[i % NAMES], 0.5, now, step * 50 + i // NAMES) for i in range(1000)])


def writer(home: str, *, endless: bool) -> None:
    """One of the writers: logs, and says so; an endless one keeps a pace, and waits to be killed."""
    tracker, values = Tracker(home), dict.fromkeys(METRICS, 0.5)
    with tracker.run("bench", name="writer", flush_seconds=WINDOW) as run:
        print(run.run_id, flush=True)
        began = time.monotonic()
        for step in range(10**9 if endless else POINTS // NAMES // WRITERS):
            if endless:
                while time.monotonic() < began + step * NAMES / PACE:
                    pass
                if step % 100 == 0:
                    print(time.monotonic(), step, flush=True)
            run.log_metrics(values, step=step)


def many(home: Path) -> tuple[int, float]:
    """Eight processes at once: points that are missing, and those that failed counted as all of theirs."""
    command = [sys.executable, __file__, "writer", str(home)]
    environment = {**os.environ, "PYTHONPATH": path()}
    began = time.perf_counter()
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(WRITERS)]
    runs = [process.communicate()[0].strip() for process in started]
    seconds = time.perf_counter() - began
    steps = POINTS // NAMES // WRITERS
    return sum(steps * NAMES - stored(home, run) for run in runs), WRITERS * steps * NAMES / seconds


def stored(home: Path, run: str) -> int:
    """Counts a run's points in the file."""
    with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", (run,)).fetchone()[0])


def killed(home: Path, seconds: float) -> float:
    """Kills a writer, and gives the age in seconds of the oldest step that was lost."""
    command = [sys.executable, __file__, "writer", str(home), "endless"]
    told: list[tuple[float, int]] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path()}
    ) as process:
        assert process.stdout is not None
        run = process.stdout.readline().strip()
        for line in process.stdout:
            if not line.endswith("\n"):
                break
            at, step = line.split()
            told.append((float(at), int(step)))
            if told[-1][0] - told[0][0] > seconds:
                process.send_signal(signal.SIGKILL)
    n_steps = stored(home, run) // NAMES
    return told[-1][0] - max((at for at, step in told if step < n_steps), default=told[0][0])


def main() -> None:
    """Runs the ways in turn, and prints the line."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        Tracker.prepare(home)
        tracker = Tracker(home)
        ours(tracker, 2_000)
        theirs(tracker, 2_000, batch, 1000)
        found: dict[str, list[float]] = {"taken": [], "stored": [], "batch": [], "single": []}
        for _ in range(ROUNDS):
            taken, whole = ours(tracker, POINTS)
            found["taken"].append(taken)
            found["stored"].append(whole)
            found["batch"].append(theirs(tracker, BATCHED, batch, 1000))
            found["single"].append(theirs(tracker, SINGLE, one, 1))
        missing, together = many(home)
        lost = [killed(home, 1.0 + 0.137 * i) for i in range(KILLS)]
    median = {name: statistics.median(rates) for name, rates in found.items()}
    against_batch, against_single = median["stored"] / median["batch"], median["stored"] / median["single"]
    # The window, and the write that was under way.
    bar_lost = 2 * WINDOW
    met = (
        median["taken"] >= BAR_TAKEN
        and against_single >= BAR_SINGLE
        and against_batch >= BAR_BATCH
        and not missing
        and max(lost) <= bar_lost
    )
    tell(
        "metric points of a training loop, stored",
        value=median["stored"],
        unit="points/s",
        peer="MLflow 3.17.2 log_batch of 1,000 on the same SQLite",
        peer_value=median["batch"],
        ratio=against_batch,
        bar=(
            f">= {BAR_BATCH:g} x log_batch and >= {BAR_SINGLE:g} x log_metric; taken at >= {BAR_TAKEN:,}/s; "
            f"{WRITERS} writers, 0 missing; a kill loses the flush window at most"
        ),
        met=met,
        n=ROUNDS * POINTS,
        protocol=(
            f"One process, steps of {NAMES} metrics, SQLite in WAL, median of {ROUNDS} rounds in turn. Taken from the "
            f"loop at {median['taken']:,.0f} points/s, with the writing going on beside; stored, the last flush "
            f"counted, {median['stored']:,.0f}; log_batch {median['batch']:,.0f}, log_metric "
            f"{median['single']:,.0f} ({against_single:.0f} x). {WRITERS} processes at once, starts counted: "
            f"{together:,.0f} points/s, {missing} of {POINTS:,} missing. {KILLS} x kill -9 at {PACE:,} points/s and a "
            f"window of {WINDOW:g} s: the oldest step that was lost was {max(lost):.2f} s old at most, "
            f"{statistics.median(lost):.2f} in the median."
        ),
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["writer"]:
        writer(sys.argv[2], endless=len(sys.argv) > 3)
    else:
        main()
