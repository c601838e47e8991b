"""MLflow's registry on PostgreSQL: how long an alias takes to move, and to resolve."""

import json
import os
import statistics
import sys
import time

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"

import mlflow


def main() -> None:
    given = json.load(sys.stdin)
    client = mlflow.MlflowClient(tracking_uri=given["uri"], registry_uri=given["uri"])
    client.create_registered_model("fraud")
    for _ in range(2):
        client.create_model_version("fraud", "file:///m")
    moved, resolved = [], []
    for i in range(given["n"]):
        began = time.perf_counter()
        client.set_registered_model_alias("fraud", "champion", str(i % 2 + 1))
        moved.append(time.perf_counter() - began)
        began = time.perf_counter()
        client.get_model_version_by_alias("fraud", "champion")
        resolved.append(time.perf_counter() - began)
    found = {"moved_ms": 1e3 * statistics.median(moved), "resolved_us": 1e6 * statistics.median(resolved)}
    print(json.dumps({**found, "version": mlflow.__version__}))


if __name__ == "__main__":
    main()
