"""W-STREAM as vitok defines it: ten aggregates of one key over an hour, a day and thirty days."""

import os
from pathlib import Path

from vitok.features import Count, Distinct, Entity, FeatureSet, Max, Mean, Min, Source, Sum, View

SPANS = ("1h", "1d", "30d")
AGGREGATIONS = (
    Count(SPANS),
    Sum("amount", SPANS),
    Mean("amount", ("1d",)),
    Max("amount", ("1d",)),
    Min("amount", ("1d",)),
    Distinct("item", ("1d",)),
)
SOURCE = "events"


def features() -> FeatureSet:
    """Declares the ten aggregates."""
    view = View(
        name="key",
        entity=Entity("key", "key"),
        source=Source(SOURCE, "event_id", ingest_time="arrived"),
        aggregations=AGGREGATIONS,
    )
    return FeatureSet(views=(view,))


def one_core() -> None:
    """Keeps this process on one core from here on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.environ["POLARS_MAX_THREADS"] = "1"


def disk_mib(folder: Path) -> float:
    """Measures what a folder takes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) / 2**20
