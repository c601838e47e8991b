"""What the benchmarks of checking share: a table, good and bad, a contract of ten rules, and how a run is timed.

`VITOK_BENCH_SCALE` (default 1) makes the table smaller, to see whether a benchmark runs; a figure stands at 1 only.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".venv" / "bench-data"
ROWS = 1_000_000
RUNS = 9
START = 1_522_540_800_000_000
CONTRACT = r"""
apiVersion: v3.1.0
kind: DataContract
id: speed
version: 1.0.0
status: active
schema:
  - name: payments
    properties:
      - {name: id, logicalType: string, required: true, unique: true}
      - {name: time, logicalType: timestamp, required: true}
      - {name: amount, logicalType: number, required: true, logicalTypeOptions: {minimum: 0}}
      - {name: customer, logicalType: integer, required: true}
      - name: currency
        logicalType: string
        quality: [{metric: invalidValues, arguments: {validValues: [EUR, USD, GBP]}, mustBe: 0}]
      - {name: score, logicalType: number, logicalTypeOptions: {maximum: 1}}
      - {name: mail, logicalType: string, logicalTypeOptions: {pattern: '^[0-9]+@[a-z]+\.org$'}}
    quality:
      - {metric: rowCount, mustBeGreaterThan: 0}
"""
# What each of the ten rules counts, by the names that all sides use.
RULES = {
    "id_null": "id.required",
    "id_repeated": "id.unique",
    "time_null": "time.required",
    "amount_null": "amount.required",
    "amount_low": "amount.minimum",
    "customer_null": "customer.required",
    "currency_other": "currency.validValues",
    "score_high": "score.maximum",
    "mail_form": "mail.pattern",
}


def rows() -> int:
    """How many rows the table has."""
    return max(1_000, round(ROWS * float(os.environ.get("VITOK_BENCH_SCALE", "1"))))


def table(*, bad: bool) -> Path:
    """Returns the file, made where it is missing: one row in fifty has no customer, some break other rules."""
    import numpy as np
    import polars as pl

    n = rows()
    path = CACHE / f"checks-{'bad' if bad else 'good'}-{n}.parquet"
    if path.exists():
        return path
    random, place = np.random.default_rng(1), pl.int_range(n)
    customer = random.integers(1, 100_000, n)
    frame = pl.DataFrame(
        {
            "id": np.char.add("tx_", np.char.zfill(np.arange(n).astype(str), 8)),
            "time": pl.Series(START + np.arange(n) * 1_000_000).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            "amount": random.lognormal(3, 1, n),
            "customer": customer,
            "currency": random.choice(["EUR", "USD", "GBP"], n),
            "score": random.random(n),
            "mail": np.char.add(customer.astype(str), "@x.org"),
        }
    )
    if bad:
        frame = frame.with_columns(
            id=pl.when(place % 10_000 == 7).then(pl.lit("tx_00000000")).otherwise("id"),
            amount=pl.when(place % 20_000 == 1).then(-1.0).otherwise("amount"),
            customer=pl.when(place % 50 == 2).then(None).otherwise("customer"),
            currency=pl.when(place % 1_000 == 3).then(pl.lit("ZZZ")).otherwise("currency"),
        )
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(unfinished, row_group_size=122_880)
    unfinished.replace(path)
    return path


def timed(run: Callable[[], dict[str, int]], runs: int) -> dict[str, Any]:
    """Runs once to warm up, then `runs` times; returns the medians and what was counted."""
    counts = run()
    wall, cpu = [], []
    for _ in range(runs):
        begun, used = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - used)
    return {"wall": statistics.median(wall), "cpu": statistics.median(cpu), "counts": counts}


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    """Checks the file from the disk, rejected rows included."""
    import polars as pl

    from vitok import contracts

    contract = contracts.load(CONTRACT)

    def run() -> dict[str, int]:
        report = contract.check(pl.scan_parquet(payload["path"]))
        found = {item.label: item.n_failed for item in report.results}
        return {name: found[label] for name, label in RULES.items()}

    return timed(run, payload["runs"])


def tell(**line: object) -> None:
    """Prints the one line of a benchmark."""
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in line.items()}
    print(json.dumps(rounded), flush=True)


def main(judge: Callable[[], None], sides: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Runs `judge`, or the side that the first argument names."""
    if sys.argv[1:]:
        print(json.dumps(sides[sys.argv[1]](json.load(sys.stdin))), flush=True)
    else:
        judge()
