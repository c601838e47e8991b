"""Ten views of a hundred columns in one plan: what a training table of a thousand latest values costs."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from bench.features import _claim, _data, _feast
from bench.peers import PeerError, run, timed_usage

TTL_DAYS = 7
SHARES = (0.25, 0.5, 1.0)
PEER_SECONDS = 900


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    from vitok.features import Entity, FeatureSet, Latest, Source, table

    entity = Entity("entity", "entity_id")
    columns = dict.fromkeys(payload["columns"], "float32")
    views = tuple(
        Latest(name=f"v{number}", entity=entity, source=Source(f"s{number}"), columns=columns, ttl=f"{TTL_DAYS}d")
        for number in range(len(payload["histories"]))
    )
    sources = {f"s{number}": Path(path) for number, path in enumerate(payload["histories"])}
    features, out = FeatureSet(views=views), Path(payload["out"])
    # Imports and compiled kernels are loaded by a first run.
    warm = pl.read_parquet(payload["spine"], n_rows=10)
    table(warm, FeatureSet(views=views[:1]), sources)
    began = timed_usage()
    table(Path(payload["spine"]), features, sources, into=out)
    ended = timed_usage()
    return {"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}


def judge() -> None:
    rows = _data.wide()
    results = {}
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        payload = {"histories": [str(path) for path in rows.histories], "columns": list(rows.columns)}
        spine, mine, hand = Path(folder, "spine.parquet"), Path(folder, "ours.parquet"), Path(folder, "hand.parquet")
        for share in SHARES:
            pl.read_parquet(rows.spine).gather_every(round(1 / share)).write_parquet(spine)
            results[share] = _claim.run_ours(__file__, {**payload, "spine": str(spine), "out": str(mine)})
        script = _feast.SCRIPTS / "duckdb_wide.py"
        memory = _memory_mib()
        asked = {**payload, "spine": str(rows.spine), "out": str(hand), "ttl_days": TTL_DAYS}
        asked |= {"memory_limit": f"{memory}MiB"}
        try:
            peer = run(sys.executable, script, asked, limit_seconds=PEER_SECONDS)
        except PeerError as error:
            peer, said = None, f"it did not finish ({str(error)[:120]})"
        else:
            said = f"peak {peer['peak_mib']:,.0f} MiB, {peer['wall']:.1f} s wall"
        n_out, width = pl.scan_parquet(mine).select(pl.len()).collect().item(), len(pl.read_parquet_schema(mine))
        names = [f"v{number}_{rows.columns[-1]}" for number in range(len(rows.histories))]
        wrong = _wrong(mine, hand, names) if peer else 0
    whole = results[1.0]
    features = len(rows.histories) * len(rows.columns)
    steps = "; ".join(
        f"{round(rows.n_spine * share):,} rows {result['cpu']:.1f} CPU s, {result['peak_mib']:,.0f} MiB"
        for share, result in results.items()
    )
    _claim.tell(
        f"point-in-time table of {features:,} latest values: 10 views x 100 columns in one plan, 1 M training rows",
        value=whole["cpu"],
        unit="CPU s",
        peer="ten DuckDB ASOF joins by hand" if peer else None,
        peer_value=peer["cpu"] if peer else None,
        ratio=peer["cpu"] / whole["cpu"] if peer else None,
        bar="reported; rows in = rows out, 0 values differ",
        met=n_out == rows.n_spine and width >= features and wrong == 0,
        n=rows.n_spine,
        protocol=(
            f"Parquet to Parquet, {rows.n_history:,} rows a source, one run each in a process of its own. {steps}; "
            f"wall {whole['wall']:.1f} s; our memory limit is the default 2 GB. DuckDB by hand, one query, with half "
            f"of the machine's memory ({memory:,} MiB; without a limit it takes 20 GB) and a temporary folder for the "
            f"rest: {said}. {wrong} rows differ in the last column of any view."
        ),
    )


def _memory_mib() -> int:
    # So that the peer neither fails on a small machine nor spills where it need not.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21


def _wrong(mine: Path, hand: Path, names: list[str]) -> int:
    left = pl.scan_parquet(mine).select("row_id", *(pl.col(name).fill_nan(None) for name in names))
    right = pl.scan_parquet(hand).select("row_id", *names)
    unequal = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_right")) for name in names)
    return left.join(right, on="row_id").select(unequal.sum()).collect().item()


if __name__ == "__main__":
    _claim.main(judge, ours)
