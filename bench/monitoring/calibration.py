"""Venn-Abers calibration of many scores, and whether it is the library's to the last digits."""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bench.features._claim import tell
from bench.peers import environment, run, version

from vitok.models.calibrators_venn_abers import VennAbersCalibrator

REQUIREMENTS = ["venn-abers==1.5.4", "numpy==2.4.6", "pandas==3.1.1", "scikit-learn==1.9.1"]
SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
ROWS = max(500, int(20_000 * SCALE))
RUNS = 3


def main() -> None:
    python = environment("venn_abers", REQUIREMENTS)
    script = Path(__file__).parent / "peers" / "venn_abers_fit.py"
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 5, 2 * ROWS)
    y = (rng.random(2 * ROWS) < p**1.2).astype(np.int64)
    score, new = p[:ROWS], p[ROWS:]
    VennAbersCalibrator.fit(score[:100], np.arange(100) % 2).interval(new[:5])
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        file, answer = str(Path(folder) / "rows.npz"), str(Path(folder) / "answer.npz")
        np.savez(file, score=score, y=y[:ROWS], new=new)
        for _ in range(RUNS):
            theirs.append(run(python, script, {"file": file, "answer": answer})["seconds"])
            began = time.perf_counter()
            calibrator = VennAbersCalibrator.fit(score, y[:ROWS])
            low, high = calibrator.interval(new)
            merged = calibrator(new)
            ours.append(time.perf_counter() - began)
        found = np.load(answer)
        off = max(
            float(np.abs(found["both"] - np.column_stack([low, high])).max()),
            float(np.abs(found["probability"] - merged).max()),
        )
    value, peer_value = statistics.median(ours), statistics.median(theirs)
    tell(
        f"Venn-Abers: fit {ROWS:,} rows and calibrate {ROWS:,} scores",
        value=1e3 * value,
        unit="ms",
        peer=f"venn-abers {version(python, 'venn-abers')}",
        peer_value=1e3 * peer_value,
        ratio=peer_value / value,
        bar="same numbers to 1e-9",
        met=off <= 1e-9,
        n=ROWS,
        protocol=(
            f"Median of {RUNS} alternating runs, each in a warm process's time without imports; scores continuous, so"
            f" that no two are equal. Largest difference of any probability: {off:.1e}."
        ),
    )


if __name__ == "__main__":
    main()
