"""What a shadow adds to the latency of the model that answers: paced requests with none, a like one, and a slow one."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
from bench.features._claim import tell  # noqa: E402

from vitok.models.forest import Forest  # noqa: E402
from vitok.serving.shadow import Shadow  # noqa: E402
from vitok.serving.targets import Batch, LocalModel, LocalTarget  # noqa: E402

N_FEATURES, RATE, ROUNDS = 30, 500.0, 7
REQUESTS = max(200, round(4_000 * float(os.environ.get("VITOK_BENCH_SCALE", "1"))))
BAR = 1.25
SHORTER = 0.0005


def trained() -> Forest:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, N_FEATURES))
    y = X[:, 0] * X[:, 1] + X[:, 2] + np.sin(3 * X[:, 3]) + rng.normal(size=len(X)) > 0
    params = {"objective": "binary", "num_leaves": 31, "verbosity": -1, "num_threads": 1}
    return Forest.of(lightgbm.train(params, lightgbm.Dataset(X, y), 200))


def paced(ask: Callable[[Batch], object], batches: list[Batch]) -> np.ndarray:
    """Asks as Poisson arrivals come; returns microseconds from when each was due, as an open loop counts."""
    # At even gaps the shadow of one request would always be done before the next, and nothing would be seen.
    gaps = np.random.default_rng(2).exponential(1 / RATE, len(batches)).cumsum().tolist()
    took = np.empty(len(batches))
    began = time.perf_counter()
    for k, batch in enumerate(batches):
        due = began + gaps[k]
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        ask(batch)
        took[k] = 1e6 * (time.perf_counter() - due)
    return took


def in_python(rows: np.ndarray) -> np.ndarray:
    # A model that keeps the interpreter for itself, for about a millisecond.
    return np.array([sum(k * value for k, value in enumerate(row * 300)) for row in rows.tolist()])


def judge() -> None:
    forest = trained()
    rng = np.random.default_rng(1)
    batches = [Batch(rows) for rows in rng.normal(size=(REQUESTS, 4, N_FEATURES))]
    main = LocalModel("main", forest.predict)
    like = Shadow(main, LocalModel("like", forest.predict))
    python = Shadow(main, LocalModel("python", in_python))
    arms: dict[str, LocalTarget] = {"none": main, "like": like, "python": python, "shorter": python}
    found: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    usual = sys.getswitchinterval()
    for target in arms.values():
        paced(target.score, batches[:100])
    for turn in range(ROUNDS):
        for name in list(arms) if turn % 2 else list(arms)[::-1]:
            if name == "shorter":
                sys.setswitchinterval(SHORTER)
            found[name].append(paced(arms[name].score, batches))
            sys.setswitchinterval(usual)
            for shadow in (like, python):
                shadow.drain()
    p50, p99 = (
        {name: float(np.median([np.quantile(a, q) for a in runs])) for name, runs in found.items()} for q in (0.5, 0.99)
    )
    told = like.difference
    like.close()
    python.close()
    tell(
        "a shadow of the same kind adds nothing to the latency of the model that answers",
        value=p99["like"],
        unit="us at P99",
        peer="no shadow",
        peer_value=p99["none"],
        ratio=p99["none"] / p99["like"],
        bar=f"P99 <= {BAR} x that without a shadow",
        met=p99["like"] <= BAR * p99["none"] and told.dropped == 0,
        n=ROUNDS * REQUESTS,
        protocol=(
            f"LightGBM 200 trees x 31 leaves, four rows a request, {RATE:g} requests a second, Poisson, in the "
            f"same process, {REQUESTS:,} requests, median of {ROUNDS} runs in turn. P50 {p50['none']:.3g} us without, "
            f"{p50['like']:.3g} us with it, {told.dropped} of {told.taken:,} batches dropped. A shadow written in "
            f"Python, which keeps the interpreter for 1 ms a request: P50 {p50['python']:.3g}, P99 {p99['python']:.4g} "
            f"us, and with a switch interval of the interpreter of {1e3 * SHORTER:g} ms P50 {p50['shorter']:.3g}, P99 "
            f"{p99['shorter']:.4g} us"
        ),
    )


if __name__ == "__main__":
    judge()
