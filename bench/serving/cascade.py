"""A small LightGBM model first, a large one where it is unsure: what that costs at nearly the large one's quality."""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
from bench.features._claim import tell  # noqa: E402

from vitok.models.calibrators import PlattCalibrator  # noqa: E402
from vitok.serving.cascade import Cascade  # noqa: E402
from vitok.serving.targets import Batch, LocalModel  # noqa: E402
from vitok.serving.thresholds import frontier  # noqa: E402
from vitok.stats import Estimate, mean_interval  # noqa: E402

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
N_TRAIN, N_FIT, N_TEST = (max(4000, round(n * SCALE)) for n in (200_000, 50_000, 100_000))
FEATURES = 30
SMALL_TREES, LARGE_TREES = 20, 500
CHEAPER = 1.5
# Of what the large model saves in losses against the small one, what the cascade is chosen to keep, and must keep.
WANTED, LEAST = 0.98, 0.95


class Case(NamedTuple):
    """A kind of traffic: how rare what is looked for is, and how many false alarms one miss is worth."""

    name: str
    shift: float
    miss: float


RARE = Case("few positives, a miss as dear as ten false alarms", -4.5, 10.0)
EVEN = Case("as many positives as negatives, errors alike", 0.8, 1.0)


class Found(NamedTuple):
    """What one kind of traffic gave, on rows that chose nothing."""

    positives: float
    cost_large: float
    cost: float
    kept: float
    escalated: float
    losses: tuple[float, float, float]
    held: Estimate


def data(n: int, case: Case, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    X = generator.normal(size=(n, FEATURES))
    score = 2 * X[:, 0] + X[:, 1] * X[:, 2] + np.sin(3 * X[:, 3]) + 0.7 * X[:, 4] * X[:, 5] + X[:, 6] ** 2 - 1
    score += 0.5 * (X[:, 7:15] > 0.5).sum(axis=1) - 2.0 + case.shift
    return X, (generator.random(n) < 1 / (1 + np.exp(-2.5 * score))).astype(float)


def microseconds_a_row(model: lightgbm.Booster, X: np.ndarray) -> float:
    spent = []
    for _ in range(5):
        before = time.process_time()
        model.predict(X, num_threads=1)
        spent.append(time.process_time() - before)
    return 1e6 * float(np.median(spent)) / len(X)


def study(case: Case) -> Found:
    generator = np.random.default_rng(1)
    (X, y), (X_fit, y_fit), (X_test, y_test) = (data(n, case, generator) for n in (N_TRAIN, N_FIT, N_TEST))
    half = len(X_fit) // 2
    predict = []
    costs = []
    for trees, leaves, rate in ((SMALL_TREES, 15, 0.15), (LARGE_TREES, 63, 0.06)):
        settings = {"objective": "binary", "num_leaves": leaves, "learning_rate": rate, "verbose": -1, "seed": 1}
        settings["num_threads"] = 1
        model = lightgbm.train(settings, lightgbm.Dataset(X, y), num_boost_round=trees)
        costs.append(microseconds_a_row(model, X_test[:20_000]))
        calibrate = PlattCalibrator.fit(model.predict(X_fit[:half], num_threads=1), y_fit[:half])
        predict.append(lambda rows, m=model, c=calibrate: c(np.asarray(m.predict(rows, num_threads=1))))
    cut = 1 / (1 + case.miss)

    def loss(p: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.where(p >= cut, 1.0 - truth, case.miss * truth)

    def confidence(p: np.ndarray) -> np.ndarray:
        # What the better of both decisions is expected to lose, the less the surer.
        return -np.minimum(case.miss * p, 1 - p)

    p_small, p_large = (each(X_fit[half:]) for each in predict)
    small, large = loss(p_small, y_fit[half:]), loss(p_large, y_fit[half:])
    curve = frontier(confidence(p_small), small, large, cost_small=costs[0], cost_large=costs[1])
    chosen = curve.reaching(float(large.mean() + (1 - WANTED) * (small.mean() - large.mean())))
    route = Cascade(
        LocalModel("small", predict[0], cost=costs[0]),
        LocalModel("large", predict[1], cost=costs[1]),
        threshold=chosen.threshold,
        confidence=confidence,
    )
    scored = route.score(Batch(X_test))
    each = [loss(p, y_test) for p in (predict[0](X_test), predict[1](X_test), scored.values)]
    losses = tuple(float(column.mean()) for column in each)
    return Found(
        positives=float(y_test.mean()),
        cost_large=costs[1],
        cost=scored.cost / len(X_test),
        kept=(losses[0] - losses[2]) / (losses[0] - losses[1]),
        escalated=route.report.escalated / len(X_test),
        losses=(losses[0], losses[1], losses[2]),
        held=mean_interval(each[2] - each[1], name="loss beyond the large model's"),
    )


def passes(found: Found) -> bool:
    return found.cost_large / found.cost >= CHEAPER and found.kept >= LEAST


def main() -> None:
    rare, even = study(RARE), study(EVEN)
    generator = np.random.default_rng(2)
    n_pass = max(10_000, round(1_000_000 * SCALE))
    sure, wrong = generator.random(n_pass), (generator.random(n_pass) < 0.1).astype(float)
    before = time.process_time()
    frontier(sure, wrong, 0 * wrong, cost_small=1.0, cost_large=9.0)
    passed = time.process_time() - before
    told = []
    for case, found in ((RARE, rare), (EVEN, even)):
        small, large, both = found.losses
        told.append(
            f"{case.name} ({100 * found.positives:.1f} % positive): {found.cost_large / found.cost:.2f} x cheaper, "
            f"{'met' if passes(found) else 'missed'}; mean loss {small:.4f} small, {large:.4f} large, {both:.4f} "
            f"cascade, {100 * found.kept:.1f} % of the gain, {100 * found.escalated:.1f} % escalated ({found.held})"
        )
    worse = min((rare, even), key=lambda found: found.cost_large / found.cost)
    tell(
        "confidence cascade: CPU of a row at nearly the quality of the large model, the worse of two kinds of traffic",
        value=worse.cost,
        unit="us",
        peer=f"the large model alone, {LARGE_TREES} trees",
        peer_value=worse.cost_large,
        ratio=worse.cost_large / worse.cost,
        bar=f">= {CHEAPER:g} on each, with >= {100 * LEAST:g} % of the gain kept",
        met=passes(rare) and passes(even),
        n=2 * N_TEST,
        protocol=(
            f"LightGBM, {FEATURES} features, {SMALL_TREES} trees first and {LARGE_TREES} where they are unsure; CPU of "
            f"each in batches, one thread, median of five. Platt calibration on {N_FIT // 2} rows, threshold for "
            f"{100 * WANTED:g} % of the gain on as many others, judged on {N_TEST} that chose nothing. "
            f"{'. '.join(told)}. The frontier of {n_pass} thresholds took {passed:.2f} s."
        ),
    )


if __name__ == "__main__":
    main()
