"""FTRL-Proximal called from Python once for each event: predict it, then learn it."""

import statistics
import time
from typing import Any

from bench.features._claim import main, median, run_ours, tell
from bench.monitoring._online import BITS, FEATURES, RATES, draw, scaled

from vitok.models.online_ftrl import Ftrl

BAR = 5e5
ROUNDS = 5


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    codes, labels = draw(payload["n"])
    slots, values = FEATURES.encode({f"c{i}": codes[:, i] for i in range(codes.shape[1])})
    rows = list(zip(slots, values, labels.tolist(), strict=True))
    seconds = []
    for _ in range(ROUNDS):
        model = Ftrl(bits=BITS, rates=RATES)
        learn_one = model.learn_one
        learn_one(*rows[0])
        start = time.perf_counter()
        for row, value, label in rows:
            learn_one(row, value, label)
        seconds.append(time.perf_counter() - start)
    return {"rate": payload["n"] / statistics.median(seconds)}


def judge() -> None:
    n = scaled(300_000)
    found = [run_ours(__file__, {"n": n}) for _ in range(3)]
    rate = median(found, "rate")
    tell(
        "FTRL-Proximal called once for each event of 24 hashed categories",
        value=rate,
        unit="events/s",
        bar=">= 500,000",
        met=rate >= BAR,
        n=n,
        protocol=f"learn_one from Python on rows hashed before, which checks its arguments, one thread, 2^{BITS} "
        f"slots; median of 3 processes of {ROUNDS} passes.",
    )


if __name__ == "__main__":
    main(judge, ours)
