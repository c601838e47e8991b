"""Taking the newest row of each entity from Parquet to Redis: time, memory, and what a killed run leaves to do."""

from bench._server import redis_server
from bench.features import _claim, materialise

SECONDS = 6.0


def judge() -> None:
    with redis_server() as url, redis_server() as other:
        base = url.removesuffix("/0")
        host = other.removeprefix("redis://").removesuffix("/0")
        found, peer = materialise.measured(__file__, f"{base}/{{}}", online="redis", redis=host)
        again = materialise.killed_and_resumed(__file__, f"{base}/9")
    materialise.told(found, again, peer, where="Redis", their="Redis", seconds=SECONDS)


if __name__ == "__main__":
    _claim.main(judge, materialise.ours)
