"""A Feast project over the rows of W-PIT: one entity, one feature view of float32 columns, one feature service."""

import datetime as dt
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float32

VIEW = "pit"
SERVICE = "all_features"


def store(payload: dict[str, Any]) -> FeatureStore:
    """Opens the project of a payload with the keys folder, history, features, ttl_days, offline, online and redis.

    `offline` is "duckdb" or "file" and `online` is "sqlite" or "redis" (then `redis` is "host:port").
    """
    folder = Path(payload["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML too.
    online = {"type": "sqlite", "path": str(folder / "online.db")}
    if payload.get("online") == "redis":
        online = {"type": "redis", "connection_string": payload["redis"]}
    config = {
        "project": "bench",
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "offline_store": {"type": payload.get("offline", "duckdb")},
        "online_store": online,
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(json.dumps(config), encoding="utf-8")
    opened = FeatureStore(repo_path=str(folder))
    entity = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.INT64)
    source = FileSource(
        name="history", path=payload["history"], timestamp_field="event_time", created_timestamp_column="created"
    )
    view = FeatureView(
        name=VIEW,
        entities=[entity],
        ttl=dt.timedelta(days=payload["ttl_days"]),
        schema=[Field(name=name, dtype=Float32) for name in payload["features"]],
        source=source,
        online=True,
    )
    opened.apply([entity, view, FeatureService(name=SERVICE, features=[view])])
    return opened


def references(payload: dict[str, Any]) -> list[str]:
    """Names the features as Feast's calls take them."""
    return [f"{VIEW}:{name}" for name in payload["features"]]


def read() -> dict[str, Any]:
    """Reads what the benchmark asks for."""
    return json.load(sys.stdin)


def usage() -> tuple[float, float]:
    """Reads the wall clock and the CPU seconds of this process and its children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime
