"""Feast: the training table of W-PIT, from Parquet to Parquet, with one of its offline stores.

Reads history, spine, out, folder, features, ttl_days, offline ("duckdb" or "file") and, where the table is to see
only what was known at the time, bitemporal. Only the call and writing its answer are timed; importing Feast, opening
the project, reading the spine into pandas, which Feast asks for, and a first run over the few rows of warm are not.
"""

import json
from typing import Any

import feast_repository as repository
import pandas as pd
import pyarrow.parquet as pq


def table(payload: dict[str, Any]) -> dict[str, Any]:
    """Makes the table of a payload and says what it took."""
    opened = repository.store(payload)
    spine = pd.read_parquet(payload["spine"]).rename(columns={"event_time": "event_timestamp"})
    options = {"filter_by_created_timestamp": True} if payload.get("bitemporal") else {}
    began = repository.usage()
    job = opened.get_historical_features(entity_df=spine, features=repository.references(payload), **options)
    made = job.to_arrow()
    pq.write_table(made, payload["out"])
    ended = repository.usage()
    return {"rows": made.num_rows, "wall": ended[0] - began[0], "cpu": ended[1] - began[1]}


def main() -> None:
    payload = repository.read()
    table({**payload, **payload["warm"], "folder": payload["folder"] + "/warm"})
    print(json.dumps(table(payload)))


if __name__ == "__main__":
    main()
