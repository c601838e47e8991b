"""What the watch for extraction sees: ordinary keys it accuses, and attackers of several kinds it finds."""

import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from bench.features._claim import tell  # noqa: E402
from scipy.spatial.distance import cdist  # noqa: E402
from scipy.stats import shapiro  # noqa: E402

from vitok.guard import ExtractionWatch  # noqa: E402

Matrix = np.ndarray[Any, np.dtype[np.float64]]
KEYS = max(40, int(400 * float(os.environ.get("VITOK_BENCH_SCALE", "1"))))
ASKED, WINDOW = 1_000, 200
RATE = 0.01 if KEYS >= 100 else 0.05
PRADA = 0.95


def ordinary(rng: np.random.Generator) -> Matrix:
    """Gives one key's queries: payments with heavy tails, counts, flags, nulls, and habits of the key's own."""
    n, habit = ASKED, rng.normal(0, 0.15, 3)
    amount = rng.lognormal(3 + habit[0], 1.0, n)
    count = rng.poisson(np.exp(0.8 + habit[1]), n).astype(float)
    mean = amount * rng.lognormal(0, 0.4, n)
    mean[count == 0] = np.nan
    week = count + rng.poisson(4 * np.exp(0.8 + habit[1]), n)
    hour = rng.normal(14 + 2 * habit[2], 4, n) % 24
    night = ((hour < 6) | (hour > 22)).astype(float)
    share = np.where(count > 0, amount / (amount + np.nan_to_num(mean)), 0.0)
    return np.column_stack((amount, count, mean, week, hour, night, share, rng.exponential(30, n)))


def uniform(rng: np.random.Generator, real: Matrix) -> Matrix:
    """Draws from the range of each feature."""
    return rng.uniform(np.nanmin(real, axis=0), np.nanquantile(real, 0.99, axis=0), real.shape)


def shuffled(rng: np.random.Generator, real: Matrix) -> Matrix:
    """Knows each feature's distribution, and not how they go together."""
    return np.column_stack([rng.permutation(column) for column in real.T])


def perturbed(rng: np.random.Generator, real: Matrix) -> Matrix:
    """Starts from 50 real rows and steps around them, as attacks along the boundary do."""
    seeds = real[rng.integers(50, size=len(real))]
    return seeds + rng.choice([-0.3, 0.3], real.shape) * np.nanstd(real, axis=0)


def hidden(rng: np.random.Generator, real: Matrix) -> Matrix:
    """Mixes one made-up row into four real ones, evenly over the month."""
    mixed = real.copy()
    mixed[::5] = uniform(rng, real)[::5]
    return mixed


def copied(_: np.random.Generator, real: Matrix) -> Matrix:
    """Asks about real rows only."""
    return real


def prada(X: Matrix) -> bool:
    """Tells whether PRADA would accuse: distances to the nearest earlier query are not normal (arXiv 1805.02628)."""
    Z = np.nan_to_num((X - np.nanmean(X, axis=0)) / np.nanstd(X, axis=0))
    apart = cdist(Z, Z)
    nearest = np.array([apart[i, :i].min() for i in range(1, len(Z))])
    kept = nearest[np.abs(nearest - nearest.mean()) <= 3 * nearest.std()]
    return bool(shapiro(kept).statistic < PRADA)


def main() -> None:
    rng = np.random.default_rng(0)
    keys, times = np.repeat([f"k{i}" for i in range(KEYS)], ASKED), np.tile(np.arange(ASKED), KEYS)
    begun = time.perf_counter()
    watch = ExtractionWatch.fit(
        np.concatenate([ordinary(rng) for _ in range(KEYS)]), keys, times, false_positive_rate=RATE, window=WINDOW
    )
    fitted = 1e6 * (time.perf_counter() - begun) / len(keys)
    found, theirs, plain, plain_threshold = {}, {}, {}, 0.0
    for attack in (copied, uniform, shuffled, perturbed, hidden):
        parts = [attack(rng, ordinary(rng)) for _ in range(KEYS)]
        # One key at a time, as alike keys would be put together.
        verdicts = [watch.judge(part, ["k"] * ASKED, times[:ASKED]).findings[0] for part in parts]
        found[attack.__name__] = sum(one.verdict == "suspect" for one in verdicts) / KEYS
        apart = np.array([one.discrepancy for one in verdicts])
        if attack is copied:
            plain_threshold = float(np.quantile(apart, 1 - RATE))
        else:
            plain[attack.__name__] = float((apart > plain_threshold).mean())
        theirs[attack.__name__] = sum(map(prada, parts[:100])) / len(parts[:100])
    accused = found.pop("copied")
    told = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
    other = ", ".join(f"{name} {share:.0%}" for name, share in theirs.items() if name != "copied")
    plainly = ", ".join(f"{name} {share:.1%}" for name, share in plain.items())
    allowed = RATE + 3 * (RATE * (1 - RATE) / KEYS) ** 0.5
    tell(
        "ordinary keys that the watch for extraction accuses in a month",
        value=accused,
        unit="share",
        bar=f"<= {RATE:g} as stated, and three standard errors",
        met=accused <= allowed,
        n=KEYS,
        protocol=(
            f"Fitted on {KEYS} keys of {ASKED:,} queries of 8 features, windows of {WINDOW}, {fitted:.1f} us a row; "
            f"judged on {KEYS} new ones. Attackers found by their windows alone, without any budget: {told}. By the "
            f"plain discrepancy, at a threshold of as many accused: {plainly}. Who asks about real rows is by "
            f"construction as ordinary keys are. PRADA at {PRADA:g} on 100 of each accuses "
            f"{theirs['copied']:.0%} of the ordinary and finds: {other}."
        ),
    )


if __name__ == "__main__":
    main()
