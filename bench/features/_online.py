"""W-ONLINE: the newest row of every entity of W-PIT in an online store, and how reads of it are timed."""

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from bench.features import _data, _pit

from vitok.features import FeatureSet

TTL = "3650d"  # checked at every read and passed by no row: a stale row would be decoded faster
NOW = _data.START + (_data.PIT_DAYS + 3) * _data.DAY
SIZES = (1, 100)
WARM_CALLS = 200


def features(n_views: int = 1) -> FeatureSet:
    """Declares the twenty values in one view or in several."""
    return _pit.features(bitemporal=True, ttl=TTL, n_views=n_views)


def fill(store: Any, declared: FeatureSet) -> None:
    """Takes the newest row of each entity to a store."""
    from vitok.features import materialise

    materialise(declared, {"history": Path(_data.point_in_time().history)}, store, until=NOW)


def newest() -> pl.DataFrame:
    """Computes the newest row of each entity on its own: entity_id and the twenty values."""
    rows = pl.scan_parquet(_data.point_in_time().history)
    ordered = rows.sort("event_time", "created").group_by("entity_id").last()
    return ordered.select("entity_id", *_data.FEATURES).sort("entity_id").collect()


def timed(reader: Any, calls: int) -> dict[str, Any]:
    """Times reads of one and of a hundred entities, and counts the values that are not the newest row's.

    Args:
        reader: A `FeatureReader`.
        calls: How many reads of each size.
    """
    entities = _data.scaled(100_000, 100)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for size in SIZES:
        micros = []
        for keys in rng.integers(0, entities, (calls + WARM_CALLS, size)).tolist():
            asked = {"entity_id": keys}
            began = time.perf_counter_ns()
            reader.read(asked, time=NOW)
            micros.append((time.perf_counter_ns() - began) / 1_000)
        kept = micros[WARM_CALLS:]
        found[str(size)] = {"median": statistics.median(kept), "p99": float(np.quantile(kept, 0.99))}
    truth = newest()
    keys = truth["entity_id"].to_list()[:2_000]
    read = reader.read({"entity_id": keys}, time=NOW)
    found["wrong"] = int((read.values != truth.select(_data.FEATURES).to_numpy()[: len(keys)]).sum())
    found["not_fresh"] = int((read.status != 0).sum())
    return found
