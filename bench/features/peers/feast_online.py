"""Feast: online reads in process, decoded to Python values, one call after another.

Reads the project's keys and sizes ([1, 100]), calls, entities (how many there are) and seed. Prints, for each size,
the median and the 99th percentile of a call in microseconds.
"""

import json
import statistics
import time

import feast_repository as repository
import numpy as np


def main() -> None:
    payload = repository.read()
    opened = repository.store(payload)
    references = repository.references(payload)
    rng = np.random.default_rng(payload["seed"])
    found = {}
    for size in payload["sizes"]:
        chosen = rng.integers(0, payload["entities"], (payload["calls"] + 20, size)).tolist()
        micros = []
        for keys in chosen:
            rows = [{"entity_id": key} for key in keys]
            began = time.perf_counter_ns()
            opened.get_online_features(features=references, entity_rows=rows).to_dict()
            micros.append((time.perf_counter_ns() - began) / 1_000)
        kept = micros[20:]
        found[str(size)] = {"median": statistics.median(kept), "p99": float(np.quantile(kept, 0.99))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
