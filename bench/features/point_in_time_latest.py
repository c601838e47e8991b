"""A training table of latest values with a TTL: CPU, memory and rows, against DuckDB by hand and Feast's two stores."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.features import _claim, _data, _feast, _pit
from bench.peers import timed_usage

RUNS = 3
MEMORY_MIB = 650


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    from vitok.features import table

    features = _pit.features(bitemporal=payload["bitemporal"])
    # Imports and compiled kernels are loaded by a first run, as on the peers' side.
    for part in (payload["warm"], payload):
        began = timed_usage()
        table(Path(part["spine"]), features, {"history": Path(part["history"])}, into=Path(payload["out"]))
        ended = timed_usage()
    return {"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}


def judge() -> None:
    rows = _data.point_in_time()
    feast = _feast.name()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ours", "duckdb", "feast duckdb", "feast file")}
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        mine, hand = Path(folder, "ours.parquet"), Path(folder, "hand.parquet")
        payload = _feast.project(folder, out=str(mine), bitemporal=False)
        for _ in range(RUNS):
            found["ours"].append(_claim.run_ours(__file__, payload))
            found["duckdb"].append(_pit.by_hand(sys.executable, "plain", hand))
            found["feast duckdb"].append(_feast.offline("duckdb"))
            found["feast file"].append(_feast.offline("file"))
        n_out, wrong = _pit.differences(mine, hand)
    cpu = {name: _claim.median(results, "cpu") for name, results in found.items()}
    peak = {name: _claim.most(results, "peak_mib") for name, results in found.items()}
    value = cpu["ours"]
    ratios = {name: seconds / value for name, seconds in cpu.items()}
    dropped = rows.n_spine - found["feast file"][-1]["rows"]
    _claim.tell(
        "point-in-time table, 20 latest values with a TTL, 1 M history and 1 M training rows",
        value=value,
        unit="CPU s",
        peer="DuckDB ASOF join by hand",
        peer_value=cpu["duckdb"],
        ratio=ratios["duckdb"],
        bar=(
            ">= 0.8 of DuckDB by hand, >= 2.2 of Feast's DuckDB store, >= 12 of Feast's file store; peak <= "
            f"{MEMORY_MIB} MiB; rows in = rows out, 0 values differ"
        ),
        met=ratios["duckdb"] >= 0.8
        and ratios["feast duckdb"] >= 2.2
        and ratios["feast file"] >= 12
        and peak["ours"] <= MEMORY_MIB
        and n_out == rows.n_spine
        and wrong == 0,
        n=rows.n_spine,
        protocol=(
            f"Parquet to Parquet, each in a process of its own, {RUNS} alternating runs; median CPU seconds of the "
            f"call after a first run over 1,000 rows, largest peak of the process. {feast}: DuckDB store "
            f"{cpu['feast duckdb']:.2f} CPU s ({ratios['feast duckdb']:.1f} x ours), {peak['feast duckdb']:,.0f} MiB; "
            f"file store {cpu['feast file']:.1f} CPU s ({ratios['feast file']:.1f} x), {peak['feast file']:,.0f} MiB, "
            f"{dropped:,} rows dropped. Peak: ours {peak['ours']:,.0f} MiB, DuckDB {peak['duckdb']:,.0f} MiB. Wall: "
            f"ours {_claim.median(found['ours'], 'wall'):.2f} s, DuckDB {_claim.median(found['duckdb'], 'wall'):.2f} "
            f"s. {n_out:,} rows out, {wrong} differ from DuckDB's."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, ours)
