"""A thousand features of a million users in Redis: the slowest reads of one vector, and bytes a user."""

import redis
from bench._server import redis_server
from bench.features import _claim, _data, _thousand

CALLS = 20_000


def judge() -> None:
    users, calls = _data.scaled(1_000_000, 5_000), _data.scaled(CALLS, 500)
    with redis_server() as url:
        server = redis.Redis.from_url(url)
        empty = server.info("memory")["used_memory"]
        payload = {"store": url, "users": users, "calls": calls}
        loaded = _claim.run_ours(__file__, {**payload, "do": "load"})
        size = server.info("memory")["used_memory"] - empty
        found = _claim.run_ours(__file__, {**payload, "do": "read"})
    _thousand.told("Redis", loaded, found, users=users, calls=calls, size=size)


if __name__ == "__main__":
    _claim.main(judge, _thousand.ours)
