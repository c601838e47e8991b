"""The events that online learners are measured on: 24 categories a row, of which a few values are most of the rows."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from vitok.models.online_features import Category, HashedFeatures
from vitok.models.online_ftrl import Rates

N_COLUMNS = 24
BITS = 20
SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
RATES = Rates(alpha=0.1, beta=1.0, l1=1.0, l2=0.1)
FEATURES = HashedFeatures(features=tuple(Category(f"c{i}") for i in range(N_COLUMNS)), bits=BITS)
RIVER = ["river==0.26.1"]
VOWPAL_WABBIT = ["vowpalwabbit==9.11.9", "numpy==2.4.6"]
PEERS = Path(__file__).resolve().parent / "peers"


def scaled(n: int, least: int = 20_000) -> int:
    """Returns `n` times `VITOK_BENCH_SCALE`, at least `least`."""
    return max(least, round(n * SCALE))


def draw(n: int, *, seed: int = 5) -> tuple[Any, Any]:
    """Returns the number of each value, int32 of shape (n, 24), and labels, of which about a tenth are 1."""
    rng = np.random.default_rng(seed)
    sizes = np.array([10 ** (1 + i % 5) for i in range(N_COLUMNS)])
    codes = (rng.zipf(1.3, (n, N_COLUMNS)) % sizes).astype(np.int32)
    odds = np.full(n, -2.4)
    for i, size in enumerate(sizes.tolist()):
        odds += rng.normal(scale=0.25, size=size)[codes[:, i]]
    return codes, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(np.float64)


def texts(codes: Any) -> dict[str, list[str]]:
    """Returns the columns as texts, as events have them."""
    return {f"c{i}": [f"c{i}-value-{code}" for code in codes[:, i].tolist()] for i in range(N_COLUMNS)}
