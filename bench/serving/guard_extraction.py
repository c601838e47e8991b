"""How much a student learns from rounded, noisy and bare answers, and from fewer of them."""

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
from bench.features._claim import tell  # noqa: E402

from vitok import guard  # noqa: E402

Matrix = np.ndarray[Any, np.dtype[np.float64]]
FEATURES = 30
ROWS = int(20_000 * float(os.environ.get("VITOK_BENCH_SCALE", "1")))
FEW = ROWS // 10
OPTIONS = {"num_leaves": 31, "learning_rate": 0.1, "verbose": -1, "num_threads": 1, "seed": 0, "deterministic": True}


def world(n: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Rows, and labels that follow a few features and two interactions."""
    X = rng.normal(size=(n, FEATURES))
    odds = X[:, 0] + X[:, 1] * X[:, 2] + np.sin(2 * X[:, 3]) + 0.5 * X[:, 4] * (X[:, 5] > 0) - 1
    return X, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(float)


def logit(p: Matrix) -> Matrix:
    clipped = np.clip(p, 0.001, 0.999)
    return np.log(clipped / (1 - clipped))


def student(X: Matrix, answers: Matrix) -> Any:
    """Learns the log-odds of what was answered."""
    return lightgbm.train({**OPTIONS, "objective": "l2"}, lightgbm.Dataset(X, logit(answers)), 200)


def main() -> None:
    rng = np.random.default_rng(0)
    X, y = world(2 * ROWS, rng)
    victim = lightgbm.train({**OPTIONS, "objective": "binary"}, lightgbm.Dataset(X, y), 200)
    asked, judged = world(ROWS, rng)[0], world(ROWS, rng)[0]
    p, truth = victim.predict(asked), victim.predict(judged) > 0.5
    noise = guard.KeyedNoise(b"0123456789abcdef", scale=0.3)
    answers = {
        "in full": p,
        "3 digits": guard.rounded(p, 3),
        "1 digit": guard.rounded(p, 1),
        "keyed noise of 0.3 in log-odds": noise.apply(p, asked),
        "labels only": (p > 0.5).astype(float),
    }
    agree = {
        name: float(((student(asked, given).predict(judged) > 0) == truth).mean()) for name, given in answers.items()
    }
    few = float(((student(asked[:FEW], p[:FEW]).predict(judged) > 0) == truth).mean())
    lost = agree["in full"] - min(agree["3 digits"], agree["1 digit"], agree["keyed noise of 0.3 in log-odds"])
    told = ", ".join(f"{name} {share:.3f}" for name, share in agree.items())
    tell(
        "what a tenth of the queries costs a thief, beside what rounding and noise cost",
        value=agree["in full"] - few,
        unit="agreement",
        bar="more than rounding and noise",
        met=agree["in full"] - few > lost,
        n=ROWS,
        protocol=(
            f"LightGBM of 200 trees taught by {2 * ROWS:,} rows of {FEATURES} features; a student of the same kind "
            f"asks {ROWS:,} rows of the same law; share of {ROWS:,} new rows on which both decide alike: {told}; "
            f"in full, but {FEW:,} queries: {few:.3f}. The most that rounding or noise cost: {lost:.3f}."
        ),
    )


if __name__ == "__main__":
    main()
