"""Checking a file by ten rules against one aggregate scan of the same file, by Polars and by DuckDB."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import peers  # noqa: E402
from bench.contracts import _checks  # noqa: E402

BAR = 2.0


def polars_scan(payload: dict[str, Any]) -> dict[str, Any]:
    """One select of aggregates, uniqueness by an exact count of distinct values."""
    import polars as pl

    def run() -> dict[str, int]:
        mail, currency = pl.col("mail"), pl.col("currency")
        found = (
            pl.scan_parquet(payload["path"])
            .select(
                pl.len().alias("rows"),
                pl.col("id").null_count().alias("id_null"),
                (pl.col("id").count() - pl.col("id").n_unique()).alias("id_repeated"),
                pl.col("time").null_count().alias("time_null"),
                pl.col("amount").null_count().alias("amount_null"),
                (pl.col("amount") < 0).sum().alias("amount_low"),
                pl.col("customer").null_count().alias("customer_null"),
                (~currency.is_in(["EUR", "USD", "GBP"])).sum().alias("currency_other"),
                (pl.col("score") > 1).sum().alias("score_high"),
                (~mail.str.contains(r"^[0-9]+@[a-z]+\.org$")).sum().alias("mail_form"),
            )
            .collect(engine="streaming")
        )
        return found.row(0, named=True)

    return _checks.timed(run, payload["runs"])


def duckdb_scan(payload: dict[str, Any]) -> dict[str, Any]:
    """The same in SQL."""
    import duckdb

    query = f"""
        SELECT count(*) AS rows,
               count(*) - count(id) AS id_null,
               count(id) - count(DISTINCT id) AS id_repeated,
               count(*) - count("time") AS time_null,
               count(*) - count(amount) AS amount_null,
               count(*) FILTER (amount < 0) AS amount_low,
               count(*) - count(customer) AS customer_null,
               count(*) FILTER (currency NOT IN ('EUR', 'USD', 'GBP')) AS currency_other,
               count(*) FILTER (score > 1) AS score_high,
               count(*) FILTER (NOT regexp_matches(mail, '^[0-9]+@[a-z]+\\.org$')) AS mail_form
        FROM read_parquet('{payload["path"]}')"""
    connection = duckdb.connect()

    def run() -> dict[str, int]:
        cursor = connection.execute(query)
        return dict(zip((item[0] for item in cursor.description), cursor.fetchone(), strict=True))

    return _checks.timed(run, payload["runs"])


SIDES = {"ours": _checks.ours, "polars": polars_scan, "duckdb": duckdb_scan}


def judge() -> None:
    found: dict[str, dict[str, Any]] = {}
    wrong = []
    for kind in ("good", "bad"):
        payload = {"path": str(_checks.table(bad=kind == "bad")), "runs": _checks.RUNS}
        for name in SIDES:
            found[f"{kind} {name}"] = peers.run(
                sys.executable, __file__, payload, arguments=[name], variables={"PYTHONPATH": str(ROOT)}
            )
        # A key may repeat a row that another rule rejects: that is no repeat for us, and one for a count of values.
        mine = found[f"{kind} ours"]["counts"]
        for name in ("polars", "duckdb"):
            theirs = found[f"{kind} {name}"]["counts"]
            wrong += [(kind, name, rule) for rule in mine if rule != "id_repeated" and mine[rule] != theirs[rule]]
    good, bad = found["good ours"]["cpu"], found["bad ours"]["cpu"]
    floors = {kind: min(found[f"{kind} {name}"]["cpu"] for name in ("polars", "duckdb")) for kind in ("good", "bad")}
    named = min(("polars", "duckdb"), key=lambda name: found[f"good {name}"]["cpu"])
    walls = {kind: found[f"{kind} ours"]["wall"] for kind in ("good", "bad")}
    _checks.tell(
        claim="check of 1 M rows by ten rules, rejected rows with reasons included, from Parquet",
        value=good,
        unit="CPU s",
        peer=f"one aggregate scan ({named})",
        peer_value=floors["good"],
        ratio=floors["good"] / good,
        bar=f"<= {BAR:g} x the scan",
        met=good <= BAR * floors["good"] and not wrong,
        n=_checks.rows(),
        protocol=(
            f"Median of {_checks.RUNS} warm runs each, a process a side, uniqueness exact on all sides. Good file: "
            f"{good:.3f} CPU s, {walls['good']:.3f} s wall; polars {found['good polars']['cpu']:.3f}, duckdb "
            f"{found['good duckdb']['cpu']:.3f}. A file in which 2 percent of the rows are bad: {bad:.3f} CPU s, "
            f"{walls['bad']:.3f} s wall, {bad / floors['bad']:.2f} x the faster scan "
            f"(polars {found['bad polars']['cpu']:.3f}, duckdb {found['bad duckdb']['cpu']:.3f}). Counts that differ: "
            f"{len(wrong)}."
        ),
    )


if __name__ == "__main__":
    _checks.main(judge, SIDES)
