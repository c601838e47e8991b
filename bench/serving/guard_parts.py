"""What each part of the guard costs a request, and the four that stand before the model together."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from bench.features._claim import tell  # noqa: E402

from vitok import guard  # noqa: E402
from vitok.stats import FrozenEdges  # noqa: E402

# 15 % of the 14 us that a request of the fast path was to take. guard_on.py judges what the whole guard may take.
BAR = 2.1
REPEATS = 15
FEATURES, TICK = 30, 10
KEYS = 1_000
CALLS = 20_000
NOW = 1_700_000_000_000_000


def best(call: Callable[[int], object], calls: int) -> float:
    """Returns the median of some runs, in microseconds a call."""
    runs = []
    for _ in range(REPEATS):
        begun = time.perf_counter_ns()
        for i in range(calls):
            call(i)
        runs.append((time.perf_counter_ns() - begun) / calls / 1000)
    return statistics.median(runs)


def profile(X: np.ndarray[Any, Any]) -> dict[str, Any]:
    columns = []
    for at, column in enumerate(X.T):
        edges = FrozenEdges.from_values(column)
        columns.append({"name": f"f{at}", **edges.to_dict(), "counts": edges.count(column).tolist()})
    return {"kind": "vitok.reference_profile/1", "n": len(X), "ignored": [], "columns": columns}


def key_cost(folder: str) -> tuple[float, float, float]:
    """Returns what a check takes of a key seen lately, of one that was not, and of a typo."""
    store = guard.KeyStore(f"{folder}/keys.sqlite")
    make = {"tenant": "t", "scopes": ["decide:fraud"], "actor": "bench", "now": NOW}
    tokens = [store.create(f"key {i}", **make).token.encode() for i in range(KEYS)]  # type: ignore[arg-type]
    ring = guard.KeyRing(store)
    assert all(isinstance(ring.check(token, "decide:fraud", NOW), guard.Key) for token in tokens)
    good = best(lambda i: ring.check(tokens[i % KEYS], "decide:fraud", NOW), CALLS)
    # Each round comes when what was remembered in the one before has been forgotten.
    unseen = best(lambda i: ring.check(tokens[i % KEYS], "decide:fraud", NOW + i // KEYS * 60_000_000), CALLS)
    typo = tokens[0][:-1] + b"?"
    assert isinstance(ring.check(typo, "decide:fraud", NOW), guard.Refusal)
    return good, unseen, best(lambda _: ring.check(typo, "decide:fraud", NOW), CALLS)


def limit_cost() -> tuple[float, float]:
    names = [f"key{i}" for i in range(KEYS)]
    limiter = guard.Limiter(guard.Limit(1_000_000, "1s"))
    admit = best(lambda i: limiter.admit(names[i % KEYS], 1_000_000_000 + i * 1_000), CALLS)
    return admit, best(lambda i: limiter.check(names[i % KEYS], 1_000_000_000 + i * 1_000).headers(), CALLS)


def address_cost() -> tuple[float, float]:
    networks = [f"{a}.{b}.0.0/17" for a in range(1, 100) for b in range(0, 250, 10)]
    edge = guard.AddressList(deny=networks, trusted=["10.0.0.0/8"])
    lately = [f"203.0.{i % 256}.5" for i in range(1_000)]
    fresh = [f"{100 + i % 100}.{i // 100 % 256}.{i // 25_600}.9" for i in range(CALLS)]
    seen = best(lambda i: edge.check(lately[i % 1_000]), CALLS)
    return seen, best(lambda i: edge.check("10.0.0.1", fresh[i]), CALLS)


def row_costs(rng: np.random.Generator) -> dict[str, float]:
    X = rng.lognormal(size=(20_000, FEATURES))
    scorer = guard.AnomalyScorer.fit(profile(X[:10_000]), X[10_000:], false_alarm_rate=0.01)
    noise = guard.KeyedNoise(b"0123456789abcdef", scale=0.1, thresholds=[0.5])
    p = rng.random(TICK)
    floor = guard.fit_floor(rng.uniform(0.5, 1, 5_000), rng.random(5_000) < 0.99, max_error=0.05)
    batches = [np.ascontiguousarray(X[TICK * i : TICK * (i + 1)]) for i in range(200)]
    single = [batch[:1] for batch in batches]
    scorer.score(batches[0])
    calls = CALLS // 10
    return {
        "anomaly": best(lambda i: scorer.score(batches[i % 200]), calls) / TICK,
        "anomaly of one row": best(lambda i: scorer.score(single[i % 200]), calls),
        "noise": best(lambda i: noise.apply(p, batches[i % 200]), calls) / TICK,
        "rounding": best(lambda _: guard.rounded(p, 3), calls) / TICK,
        "floor": best(lambda _: floor.answers(guard.confidence_of(p)), calls) / TICK,
    }


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        good, unseen, typo = key_cost(folder)
    admit, headers = limit_cost()
    seen, fresh = address_cost()
    rows = row_costs(rng)
    value = good + admit + seen + rows["anomaly"]
    tell(
        "guard before the model: key, limit, address, anomaly",
        value=value,
        unit="us",
        bar=f"<= {BAR:g}",
        met=value <= BAR,
        n=REPEATS * CALLS,
        protocol=(
            f"Median of {REPEATS} runs, one thread, rows of {FEATURES} features in ticks of {TICK}, us each: key "
            f"{good:.2f} (not seen for ten seconds {unseen:.2f}, a typo {typo:.2f}), limit {admit:.2f} (with headers "
            f"{headers:.2f}), address {seen:.2f} (a "
            f"new one behind a proxy, 2,475 networks, {fresh:.2f}), anomaly {rows['anomaly']:.2f} (one row alone "
            f"{rows['anomaly of one row']:.2f}). Options after the model: noise {rows['noise']:.2f}, rounding "
            f"{rows['rounding']:.2f}, confidence floor {rows['floor']:.2f}."
        ),
    )


if __name__ == "__main__":
    main()
