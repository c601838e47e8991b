"""Online reads of a hundred entities from Redis, and how many commands one read of several views sends."""

import tempfile
from typing import Any

from bench._server import redis_server
from bench.features import _claim, _data, _feast
from bench.peers import run

CALLS = 5_000
PEER_CALLS = 300
BAR = 600.0
N_VIEWS = 5


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    import redis
    from bench.features import _online

    from vitok.features import FeatureReader

    server = redis.Redis.from_url(payload["store"])
    found: dict[str, Any] = {}
    for n_views in (1, N_VIEWS):
        declared = _online.features(n_views)
        _online.fill(payload["store"], declared)
        with FeatureReader(declared, payload["store"]) as reader:
            found[str(n_views)] = _online.timed(reader, payload["calls"])
            keys = {"entity_id": list(range(100))}
            before = server.info("stats")["total_commands_processed"]
            for _ in range(100):
                reader.read(keys, time=_online.NOW)
            # One command of the second counter is the question before it.
            found[str(n_views)]["commands"] = (server.info("stats")["total_commands_processed"] - before - 1) / 100
    return found


def judge() -> None:
    calls = _data.scaled(CALLS, 300)
    entities = _data.scaled(100_000, 100)
    with redis_server() as url:
        found = _claim.run_ours(__file__, {"store": url, "calls": calls})
    with redis_server() as url, tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        project = _feast.project(folder, online="redis", redis=url.removeprefix("redis://").removesuffix("/0"))
        run(_feast.python(), _feast.SCRIPTS / "feast_materialise.py", project)
        asked = project | {"sizes": [1, 100], "calls": _data.scaled(PEER_CALLS, 20), "entities": entities, "seed": 0}
        peer = run(_feast.python(), _feast.SCRIPTS / "feast_online.py", asked)
    one, several = found["1"], found[str(N_VIEWS)]
    value, other = one["100"]["median"], peer["100"]["median"]
    _claim.tell(
        "online read from Redis, 100 entities x 20 features",
        value=value,
        unit="us",
        peer=f"{_feast.name()} on Redis",
        peer_value=other,
        ratio=other / value,
        bar=f"<= {BAR:g} us, one command whatever the number of views",
        met=value <= BAR
        and one["commands"] == several["commands"] == 1
        and all(part["wrong"] == part["not_fresh"] == 0 for part in (one, several)),
        n=calls,
        protocol=(
            f"Median of {calls:,} reads of random ones of {entities:,} entities (Feast: {asked['calls']}) over the "
            f"loopback, one thread each. P99 {one['100']['p99']:,.0f} us, Feast {peer['100']['p99']:,.0f} us. One "
            f"entity: {one['1']['median']:.0f} us, Feast {peer['1']['median']:,.0f} us. The same features in {N_VIEWS} "
            f"views: {several['100']['median']:.0f} us and {several['commands']:g} command a read. {one['wrong']} "
            "values differ from the newest rows."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, ours)
