"""A thousand features of a million users in LMDB: the slowest reads of one vector, and bytes a user."""

import tempfile
from pathlib import Path

from bench.features import _claim, _data, _stream, _thousand

CALLS = 20_000


def judge() -> None:
    users, calls = _data.scaled(1_000_000, 5_000), _data.scaled(CALLS, 500)
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        payload = {"store": f"lmdb://{folder}/rows", "users": users, "calls": calls}
        loaded = _claim.run_ours(__file__, {**payload, "do": "load"})
        found = _claim.run_ours(__file__, {**payload, "do": "read"})
        size = _stream.disk_mib(Path(folder)) * 2**20
    _thousand.told("LMDB", loaded, found, users=users, calls=calls, size=size)


if __name__ == "__main__":
    _claim.main(judge, _thousand.ours)
