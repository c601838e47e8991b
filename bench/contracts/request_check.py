"""Checking one request against a contract of seven fields."""

import statistics
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.contracts import _checks  # noqa: E402

from vitok import contracts  # noqa: E402

BAR = 10.0
CALLS, REPEATS = 20_000, 15
GOOD = {
    "id": "tx_00000001",
    "time": "2018-04-01T10:20:30Z",
    "amount": 12.5,
    "customer": 4711,
    "currency": "EUR",
    "score": 0.25,
    "mail": "4711@x.org",
}
# The same with a rule across fields and one to another table.
WIDER = """
    quality:
      - {type: sql, query: "SELECT COUNT(*) FROM {object} WHERE amount < score", mustBe: 0}
    relationships:
      - {from: payments.customer, to: payments.customer}
"""


def median(check: Callable[[dict[str, object]], object], row: dict[str, object]) -> float:
    """Returns the median of a call in microseconds."""
    runs = timeit.repeat(lambda: check(row), number=CALLS, repeat=REPEATS)
    return 1e6 * statistics.median(runs) / CALLS


def main() -> None:
    import polars as pl

    plain = contracts.load(_checks.CONTRACT).row_checker()
    text = _checks.CONTRACT.replace("    quality:\n      - {metric: rowCount, mustBeGreaterThan: 0}\n", WIDER[1:])
    known = {"payments": pl.DataFrame({"customer": range(100_000)})}
    wider = contracts.load(text).row_checker(references=known)
    bad = {**GOOD, "amount": -1.0, "currency": "ZZZ"}
    assert plain(GOOD) == wider(GOOD) == []
    assert [item.rule for item in plain(bad)] == ["minimum", "validValues"]
    value = median(plain, GOOD)
    _checks.tell(
        claim="check of one request: seven fields, ten rules",
        value=value,
        unit="us",
        peer=None,
        peer_value=None,
        ratio=None,
        bar=f"<= {BAR:g}",
        met=value <= BAR,
        n=CALLS * REPEATS,
        protocol=(
            f"Median of {REPEATS} runs of {CALLS:,} calls, one thread, a good request. A bad one, whose two messages "
            f"are written: {median(plain, bad):.1f} us. A good one with a rule across two fields and a reference to "
            f"100,000 keys besides: {median(wider, GOOD):.1f} us."
        ),
    )


if __name__ == "__main__":
    main()
