"""W-PIT as vitok defines it, its answer by hand, and how two answers are compared."""

import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from bench.features import _data
from bench.features._feast import SCRIPTS, project
from bench.peers import run

from vitok.features import Entity, FeatureSet, Latest, Source

VIEW = "pit"


def features(*, bitemporal: bool, ttl: str = f"{_data.TTL_DAYS}d", n_views: int = 1) -> FeatureSet:
    """Declares the twenty latest values.

    Args:
        bitemporal: Whether a row counts from the time it was created.
        ttl: How old a row may be.
        n_views: Among how many views the twenty are dealt; one of them is called "pit", several "pit0", "pit1".
    """
    source = Source("history", ingest_time="created" if bitemporal else "")
    entity = Entity("entity", "entity_id")
    each = len(_data.FEATURES) // n_views
    views = tuple(
        Latest(
            name=VIEW if n_views == 1 else f"{VIEW}{number}",
            entity=entity,
            source=source,
            columns=dict.fromkeys(_data.FEATURES[number * each : (number + 1) * each], "float32"),
            ttl=ttl,
        )
        for number in range(n_views)
    )
    return FeatureSet(views=views)


def by_hand(python: Path | str, form: str, out: Path | str) -> dict[str, Any]:
    """Runs the query written by hand; `form` is "plain", "bitemporal" or "window"."""
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        return run(python, SCRIPTS / "duckdb_asof.py", project(folder, form=form, out=str(out)))


def differences(ours: Path | str, theirs: Path | str) -> tuple[int, int]:
    """Counts rows of our table, and those of them that differ from a table by hand in any value.

    A row that the other table lacks differs.
    """
    mine = pl.scan_parquet(ours).select("row_id", *(pl.col(f"{VIEW}_{name}").fill_nan(None) for name in _data.FEATURES))
    other = pl.scan_parquet(theirs).select("row_id", *_data.FEATURES)
    unequal = pl.any_horizontal(pl.col(f"{VIEW}_{name}").ne_missing(pl.col(name)) for name in _data.FEATURES)
    found = mine.join(other, on="row_id", how="left", coalesce=False).select(
        rows=pl.len(), wrong=(pl.col("row_id_right").is_null() | unequal).sum()
    )
    rows, wrong = found.collect().row(0)
    return int(rows), int(wrong)
