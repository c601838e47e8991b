"""Windowed aggregates of up to ten million events for a million training rows: CPU, memory and how they grow."""

import tempfile
from pathlib import Path
from typing import Any

from bench.features import _claim, _data
from bench.peers import timed_usage

SPANS = ("1h", "6h", "1d", "7d", "30d", "60d")
EVENTS = (1_250_000, 2_500_000, 5_000_000, 10_000_000)
LINEAR = 1.2


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    from vitok.features import Count, Entity, FeatureSet, Max, Mean, Source, Sum, View, table

    view = View(
        name="key",
        entity=Entity("key", "key"),
        source=Source("events", "event_id"),
        aggregations=(Count(SPANS), Sum("amount", SPANS), Mean("amount", SPANS), Max("amount", SPANS)),
    )
    features = FeatureSet(views=(view,))
    spine, out = Path(payload["spine"]), Path(payload["out"])
    # Compiled kernels are loaded before the clock starts, as the engine of a peer would be.
    warm = {"events": Path(payload["warm"])}
    table(Path(payload["warm_spine"]), features, warm, into=out.with_name("warm.parquet"))
    began = timed_usage()
    table(spine, features, {"events": Path(payload["events"])}, into=out)
    ended = timed_usage()
    return {"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}


def judge() -> None:
    import polars as pl

    n_spine = _data.scaled(1_000_000, 1_000)
    keys = _data.scaled(100_000, 100)
    results = {}
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        out = Path(folder, "out.parquet")
        payload = {
            "spine": str(_data.event_spine(n_spine, keys=keys)),
            "out": str(out),
            "warm": str(_data.events(1_000, keys=100)),
            "warm_spine": str(_data.event_spine(1_000, keys=100)),
        }
        for n in (_data.scaled(n, 1_000) for n in EVENTS):
            results[n] = _claim.run_ours(__file__, {**payload, "events": str(_data.events(n, keys=keys))})
            n_out = pl.scan_parquet(out).select(pl.len()).collect().item()
    (_, low), (n, high) = list(results.items())[-2:]
    growth = high["cpu"] / low["cpu"] / 2
    steps = "; ".join(
        f"{count:,} events {result['cpu']:.1f} CPU s, {result['peak_mib']:,.0f} MiB"
        for count, result in results.items()
    )
    _claim.tell(
        "point-in-time table, 6 windows x 4 aggregations over 10 M events, 1 M training rows",
        value=high["cpu"],
        unit="CPU s",
        bar=f"linear in events: the last doubling costs at most {LINEAR} x 2; memory reported",
        met=growth <= LINEAR and n_out == n_spine,
        n=n,
        protocol=(
            f"Parquet to Parquet, {keys:,} keys, one run each in a process of its own, kernels compiled before. "
            f"{steps}; wall at the end {high['wall']:.1f} s. The last doubling of events cost {2 * growth:.2f} x."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, ours)
