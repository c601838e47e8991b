"""DuckDB: latest values of several sources for one spine by hand, from Parquet to Parquet.

Reads histories (paths), spine, out, columns, ttl_days and memory_limit; every source has the same columns. What does
not fit into memory goes to a temporary folder.
"""

import json
import resource
import sys
import tempfile
import time

import duckdb


def usage() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def main() -> None:
    payload = json.load(sys.stdin)
    columns, joins = [], []
    for number, history in enumerate(payload["histories"]):
        fresh = f"s.event_time - h{number}.event_time <= interval {payload['ttl_days']} day"
        columns += [f"case when {fresh} then h{number}.{name} end as v{number}_{name}" for name in payload["columns"]]
        joins.append(
            f"asof left join read_parquet('{history}') h{number} "
            f"on s.entity_id = h{number}.entity_id and s.event_time >= h{number}.event_time"
        )
    text = (
        f"select s.row_id, s.entity_id, s.event_time, {', '.join(columns)} "
        f"from read_parquet('{payload['spine']}') s {' '.join(joins)}"
    )
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as spill:
        connection = duckdb.connect(config={"temp_directory": spill, "memory_limit": payload["memory_limit"]})
        connection.execute("set preserve_insertion_order = false")
        began = usage()
        connection.execute(f"copy ({text}) to '{payload['out']}' (format parquet)")
        ended = usage()
    print(json.dumps({"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}))


if __name__ == "__main__":
    main()
