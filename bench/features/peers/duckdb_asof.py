"""DuckDB: the training table of W-PIT written by hand, from Parquet to Parquet.

Reads history, spine, out, features, ttl_days, warm (a few rows for a first run that is not timed) and form:
"plain"       the newest row by event time (ASOF JOIN), null where it is older than the TTL;
"bitemporal"  the newest of the rows known at the time: ASOF JOIN first, and the few spine rows whose answer was not
              yet known are looked up again in a window over all their candidates;
"window"      the same by one window over every candidate inside the TTL, as one would write it first.
"""

import json
import resource
import sys
import time

import duckdb

PLAIN = """
select s.row_id, s.entity_id, s.event_time,
  {columns}
from read_parquet('{spine}') s
asof left join read_parquet('{history}') h
  on s.entity_id = h.entity_id and s.event_time >= h.event_time
"""

WINDOW = """
select s.row_id, s.entity_id, s.event_time, {plain}
from read_parquet('{spine}') s
left join (
  select q.row_id, h.*
  from read_parquet('{spine}') q
  join read_parquet('{history}') h
    on h.entity_id = q.entity_id and h.event_time <= q.event_time and h.created <= q.event_time
    and q.event_time - h.event_time <= interval {ttl_days} day
  qualify row_number() over (partition by q.row_id order by h.event_time desc, h.created desc) = 1
) h on h.row_id = s.row_id
"""

REPAIRED = """
with first as (
  select s.row_id, s.entity_id, s.event_time, h.created as known, h.event_time as at, {plain}
  from read_parquet('{spine}') s
  asof left join read_parquet('{history}') h
    on s.entity_id = h.entity_id and s.event_time >= h.event_time
), again as (
  select q.row_id, {plain}
  from (select row_id, entity_id, event_time from first where known > event_time) q
  join read_parquet('{history}') h
    on h.entity_id = q.entity_id and h.event_time <= q.event_time and h.created <= q.event_time
    and q.event_time - h.event_time <= interval {ttl_days} day
  qualify row_number() over (partition by q.row_id order by h.event_time desc, h.created desc) = 1
)
select f.row_id, f.entity_id, f.event_time, {repaired}
from first f left join again a on a.row_id = f.row_id
"""


def query(payload: dict) -> str:
    """Writes the query of a form."""
    fresh = f"s.event_time - h.event_time <= interval {payload['ttl_days']} day"
    names = payload["features"]
    kept = "f.known <= f.event_time and f.event_time - f.at <= interval {ttl_days} day".format(**payload)
    parts = {
        "columns": ",\n  ".join(f"case when {fresh} then h.{name} end as {name}" for name in names),
        "plain": ", ".join(f"h.{name}" for name in names),
        "repaired": ",\n  ".join(
            f"case when f.known > f.event_time then a.{name} when {kept} then f.{name} end as {name}" for name in names
        ),
    }
    form = {"plain": PLAIN, "window": WINDOW, "bitemporal": REPAIRED}[payload["form"]]
    return form.format(**payload, **parts)


def usage() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def main() -> None:
    payload = json.load(sys.stdin)
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    # Rows may come out in any order, as a training table's may: an engine that need not keep it uses less memory.
    connection.execute("set preserve_insertion_order = false")
    for given in ({**payload, **payload["warm"]}, payload):
        text = query(given)
        began = usage()
        connection.execute(f"copy ({text}) to '{payload['out']}' (format parquet)")
        ended = usage()
    print(json.dumps({"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}))


if __name__ == "__main__":
    main()
