"""Values read online while a stream is replayed, against the point-in-time table of the same definitions."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench.features import _claim, _data

READS = {"in order": 300_000, "out of order, copies, late": 400_000, "the same, killed 20 times": 300_000}
BATCH = 500
KILLS = 20
TOLERANCE = 1e-9
SPANS = ("1h", "1d", "30d")


def features() -> Any:
    """Declares every kind of aggregate over a source whose events are known when they arrive."""
    from vitok.features import (
        Count,
        Distinct,
        Entity,
        FeatureSet,
        First,
        Last,
        Max,
        Mean,
        Min,
        Rate,
        Ratio,
        Recent,
        Source,
        Std,
        Sum,
        TopK,
        View,
    )

    large = (("amount", ">", 60.0),)
    view = View(
        name="key",
        entity=Entity("key", "key"),
        source=Source("events", "event_id", ingest_time="arrived"),
        aggregations=(
            Count(SPANS),
            Count(SPANS, where=large, name="large"),
            Sum("amount", SPANS),
            Sum("item", SPANS),
            Mean("amount", SPANS),
            Std("amount", SPANS),
            Min("amount", SPANS),
            Max("amount", SPANS),
            First("amount", SPANS),
            Last("amount", SPANS),
            Distinct("item", SPANS),
            TopK("item", SPANS, k=2),
            Recent("amount", ("30d",), n=3),
            Rate(("1d",), per="1h"),
            Ratio(Count(("1d",), where=large), Count(("1d",))),
        ),
    )
    return FeatureSet(views=(view,))


def exact(declared: Any) -> np.ndarray:
    """Says of each feature whether it must be equal bit for bit: all but sums, means and the like of floats."""
    float_sums = ("amount_sum", "amount_mean", "amount_std", "_rate_", "_per_")
    return np.array([not any(word in name for word in float_sums) for name in declared.computed])


def moments(arrived: np.ndarray, reads: int, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Draws when to ask after each batch: after its last arrival and before the next batch's first.

    Arrivals are at even microseconds, so that an odd one lies between; where the gap is shorter than that nothing is
    asked.

    Returns:
        Shape (batches, reads a batch), int64; rows of zeros where nothing is asked.
    """
    ends = np.arange(batch, len(arrived) + batch, batch).clip(max=len(arrived))
    low = arrived[ends - 1]
    high = np.append(arrived[ends[:-1]], low[-1] + _data.DAY)
    each = -(-reads // len(ends))
    drawn = low[:, None] + (rng.random((len(ends), each)) * (high - low)[:, None]).astype(np.int64) // 2 * 2 + 1
    return np.where((high - low >= 2)[:, None], np.minimum(drawn, (high - 1)[:, None]), 0)


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    """Replays one stream, keeps what was read, and dies without a word where it is told to."""
    import os
    import signal

    import polars as pl

    from vitok.engines import LmdbStore
    from vitok.features import OnlineFeatures

    declared = features()
    folder = Path(payload["folder"])
    frame = pl.read_parquet(payload["events"])
    arrived = frame["arrived"].to_physical().to_numpy()
    asked = moments(arrived, payload["reads"], BATCH, np.random.default_rng(payload["seed"]))
    known = frame["key"].unique(maintain_order=True).to_list()
    online = OnlineFeatures(declared, LmdbStore(folder / "store"), journal=True)
    first = online.positions().get("batch", 0)
    last = min(payload["stop"], len(asked))
    kept: dict[str, list[Any]] = {"batch": [], "time": [], "key": [], "values": []}
    for number in range(first, last):
        online.ingest("events", frame[number * BATCH : (number + 1) * BATCH], positions={"batch": number + 1})
        times = asked[number]
        if times[0]:
            # A draw of its own for each batch, so that a start in the middle asks the same.
            rng = np.random.default_rng([payload["seed"], number])
            keys = [known[place] for place in _data.skewed(rng, len(known), len(times)).tolist()]
            values = np.zeros((len(times), len(declared.computed)))
            online.read_many({"key": keys}, times, values)
            kept["time"].append(times)
            kept["key"].extend(keys)
            kept["values"].append(values)
        if number % 200 == 199:
            online.checkpoint()
    if kept["time"]:
        columns = {name: np.concatenate(kept["values"])[:, place] for place, name in enumerate(declared.computed)}
        out = pl.DataFrame({"event_time": np.concatenate(kept["time"]), "key": kept["key"], **columns})
        out.write_parquet(folder / f"read-{first:06d}.parquet")
    if payload["stop"] < len(asked):
        os.kill(os.getpid(), signal.SIGKILL)
    return {"batches": last - first}


def compare(payload: dict[str, Any]) -> dict[str, Any]:
    """Computes the point-in-time table of what was asked and counts the values that differ."""
    import polars as pl

    from vitok.features import table

    declared = features()
    names = list(declared.computed)
    read = pl.read_parquet(Path(payload["folder"], "read-*.parquet"))
    spine = read.select(pl.col("event_time").cast(pl.Datetime("us", "UTC")), "key")
    found = table(spine, declared, {"events": pl.read_parquet(payload["events"])})
    online = read.select(names).to_numpy()
    offline = found.select(pl.col(names).cast(pl.Float64).fill_null(np.nan)).to_numpy()
    both_none = np.isnan(online) & np.isnan(offline)
    same = (online == offline) | both_none
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = np.abs(online - offline) / np.maximum(np.abs(offline), np.finfo(float).tiny)
    strict = exact(declared)
    wrong = np.where(strict, ~same, ~(same | (apart <= TOLERANCE)))
    by_name = {name: int(count) for name, count in zip(names, wrong.sum(axis=0), strict=True) if count}
    loose = np.where(same, 0.0, apart)[:, ~strict]
    return {
        "reads": len(read),
        "values": int(online.size),
        "found": int((~np.isnan(online)).sum()),
        "wrong": int(wrong.sum()),
        "by_name": by_name,
        "worst": float(loose.max(initial=0.0)),
        "exact": int(strict.sum()),
        "features": len(names),
    }


def side(payload: dict[str, Any]) -> dict[str, Any]:
    return compare(payload) if payload["do"] == "compare" else ours(payload)


def judge() -> None:
    from bench.peers import PeerError

    results = {}
    for place, (name, reads) in enumerate(READS.items()):
        n = reads = _data.scaled(reads, 5_000)
        batches = -(-n // BATCH)
        events = _data.stream(n, keys=_data.scaled(10_000, 100), seed=place, ordered=place == 0)
        stops = np.random.default_rng(place).integers(1, batches, KILLS if "killed" in name else 0)
        with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
            payload = {"folder": folder, "events": str(events), "reads": reads, "seed": place, "do": "read"}
            for stop in sorted(set(stops.tolist())):
                try:
                    _claim.run_ours(__file__, {**payload, "stop": stop})
                except PeerError as error:
                    if "left with -9" not in str(error):
                        raise
            _claim.run_ours(__file__, {**payload, "stop": batches})
            results[name] = _claim.run_ours(__file__, {**payload, "do": "compare"})
    wrong = sum(result["wrong"] for result in results.values())
    reads = sum(result["reads"] for result in results.values())
    first = next(iter(results.values()))
    details = "; ".join(
        f"{name}: {result['reads']:,} reads, {result['wrong']} differ"
        + (f" ({', '.join(f'{key} {count}' for key, count in result['by_name'].items())})" if result["wrong"] else "")
        for name, result in results.items()
    )
    _claim.tell(
        "online values that differ from the point-in-time table",
        value=wrong,
        unit="differences",
        bar="0 in 1 M reads",
        met=wrong == 0 and reads >= _data.scaled(1_000_000) * 0.99,
        n=reads,
        protocol=(
            f"Streams replayed in batches of {BATCH} with reads of random keys in between, then the table of the same "
            f"definitions at the same moments. {details}. {first['exact']} features (counts, whole numbers, extremes, "
            f"ends, distinct, most frequent, last three) bit for bit, {first['features'] - first['exact']} (sums, "
            f"means, deviations, rates, shares of floats) within {TOLERANCE:g} relative; the worst of these was "
            f"{max(result['worst'] for result in results.values()):.1e}."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, side)
