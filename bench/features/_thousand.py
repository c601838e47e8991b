"""A thousand features of a million users: made in blocks, loaded into a store, read one vector at a time."""

import time
from typing import Any

import numpy as np
import polars as pl
from bench.features import _claim, _data

from vitok.features import Entity, FeatureSet, Latest, Source

N_VIEWS, N_COLUMNS = 10, 100
BLOCK = 50_000
TTL = "3650d"
NOW = _data.START + _data.DAY
P99_MS = 10.0
COLUMNS = tuple(f"c{number:02d}" for number in range(N_COLUMNS))


def features() -> FeatureSet:
    """Declares ten views of a hundred float32 columns each, from ten sources."""
    entity = Entity("user", "user_id")
    columns = dict.fromkeys(COLUMNS, "float32")
    return FeatureSet(
        views=tuple(
            Latest(name=f"v{number}", entity=entity, source=Source(f"s{number}"), columns=columns, ttl=TTL)
            for number in range(N_VIEWS)
        )
    )


def block(view: int, first: int, n: int) -> pl.DataFrame:
    """Makes the rows of `n` users, beginning with `first`, for one source."""
    rng = np.random.default_rng([view, first])
    values = rng.standard_normal((n, N_COLUMNS), dtype=np.float32)
    keys = pl.DataFrame(
        {"user_id": np.arange(first, first + n), "event_time": _data.START + 2 * np.arange(first, first + n)}
    )
    keys = keys.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    return keys.hstack(pl.DataFrame(values, schema=list(COLUMNS)))


def load(store: Any, declared: FeatureSet, users: int) -> dict[str, float]:
    """Loads all users block by block; making the rows is not counted."""
    from vitok.features import materialise

    wall = cpu = 0.0
    for first in range(0, users, BLOCK):
        n = min(BLOCK, users - first)
        sources = {f"s{number}": block(number, first, n) for number in range(N_VIEWS)}
        began = time.perf_counter(), time.process_time()
        # Users have rising event times: each block goes on where the one before it ended.
        materialise(declared, sources, store, until=_data.START + 2 * (first + n))
        wall, cpu = wall + time.perf_counter() - began[0], cpu + time.process_time() - began[1]
    return {"wall": wall, "cpu": cpu}


def read(reader: Any, users: int, calls: int) -> dict[str, float]:
    """Times reads of one user's thousand features in milliseconds, and checks some of the values."""
    rng = np.random.default_rng(0)
    taken = []
    for user in rng.integers(0, users, calls).tolist():
        asked = {"user_id": [user]}
        began = time.perf_counter_ns()
        reader.read(asked, time=NOW)
        taken.append((time.perf_counter_ns() - began) / 1e6)
    last = (users - 1) // BLOCK * BLOCK
    n = min(100, users - last)
    got = reader.read({"user_id": list(range(last, last + n))}, time=NOW)
    expected = np.hstack(
        [block(number, last, min(BLOCK, users - last)).select(COLUMNS).to_numpy()[:n] for number in range(N_VIEWS)]
    )
    return {
        "median": float(np.median(taken)),
        "p99": float(np.quantile(taken, 0.99)),
        "wrong": int((got.values != expected).sum() + (got.status != 0).sum()),
    }


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    """Does one step, `load` or `read`, on the store of a payload."""
    from vitok.engines import open_rows
    from vitok.features import FeatureReader

    declared = features()
    if payload["do"] == "load":
        return load(open_rows(payload["store"]), declared, payload["users"])
    with FeatureReader(declared, payload["store"], dtype=np.float32) as reader:
        return read(reader, payload["users"], payload["calls"])


def told(where: str, loaded: dict[str, Any], found: dict[str, Any], *, users: int, calls: int, size: float) -> None:
    """Prints the claim; `size` is bytes of the store."""
    width = N_VIEWS * N_COLUMNS
    _claim.tell(
        f"P99 of a vector of {width:,} features, 1 M users in {where}",
        value=found["p99"],
        unit="ms",
        bar=f"< {P99_MS:g} ms; bytes a user reported",
        met=found["p99"] < P99_MS and found["wrong"] == 0,
        n=calls,
        protocol=(
            f"{users:,} users x {N_VIEWS} views x {N_COLUMNS} float32, loaded by materialise in {loaded['wall']:.0f} s "
            f"({loaded['cpu']:.0f} CPU s, peak {loaded['peak_mib']:,.0f} MiB, making the rows not counted in the "
            f"time); {size / users:,.0f} bytes a user in the store for {4 * width:,} bytes of values. {calls:,} reads "
            f"of random users by a fresh process: median {found['median']:.3f} ms. {found['wrong']} values or states "
            "wrong in a sample."
        ),
    )
