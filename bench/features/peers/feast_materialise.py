"""Feast: the newest row of each entity of W-PIT taken from Parquet to an online store.

Reads history, folder, features, ttl_days, online ("sqlite" or "redis") and redis ("host:port"). Only the call of
`materialize` is timed.
"""

import contextlib
import datetime as dt
import json
import sys

import feast_repository as repository


def main() -> None:
    payload = repository.read()
    opened = repository.store(payload)
    start, end = (dt.datetime.fromtimestamp(payload[name], dt.UTC) for name in ("start", "end"))
    began = repository.usage()
    with contextlib.redirect_stdout(sys.stderr):
        opened.materialize(start, end)
    ended = repository.usage()
    print(json.dumps({"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}))


if __name__ == "__main__":
    main()
