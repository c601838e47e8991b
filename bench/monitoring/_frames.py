"""What the drift benchmarks measure on: 50 columns of five families, 5 of which have drifted, one of each family."""

import os
from pathlib import Path

import numpy as np
from bench.peers import ROOT

N_COLUMNS = 50
NAMES = tuple(f"c{at:02}" for at in range(N_COLUMNS))
FOLDER = ROOT / ".venv" / "bench-data" / "monitoring"


def rows() -> int:
    return max(10_000, round(1_000_000 * float(os.environ.get("VITOK_BENCH_SCALE", "1"))))


def paths(n: int) -> tuple[Path, Path]:
    """Makes the reference and the current frame once, as float64 matrices of columns."""
    found = FOLDER / f"reference-{n}.npy", FOLDER / f"current-{n}.npy"
    if not all(path.exists() for path in found):
        FOLDER.mkdir(parents=True, exist_ok=True)
        for seed, path in enumerate(found):
            data = np.empty((N_COLUMNS, n))
            rng = np.random.default_rng(seed)
            for at in range(N_COLUMNS):
                # Columns 0 to 4 drift in the second frame.
                data[at] = _column(rng, at % 5, n, drifted=seed == 1 and at < 5)
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, data)
            temporary.rename(path)
    return found


def _column(rng: np.random.Generator, family: int, n: int, *, drifted: bool) -> np.ndarray:
    if family == 0:
        return rng.normal(0.5 if drifted else 0.0, 1.0, n)
    if family == 1:
        return rng.lognormal(3.0, 1.0, n) * (1.6 if drifted else 1.0)
    if family == 2:
        return rng.gamma(2.0, 2.0 if drifted else 1.4, n)
    if family == 3:
        return rng.poisson(4.4 if drifted else 4.0, n).astype(np.float64)
    return np.where(rng.random(n) < (0.15 if drifted else 0.05), np.nan, rng.beta(2.0, 5.0, n))
