"""Online reads in process from LMDB, decoded, TTL and status checked: one entity and a hundred, against Feast."""

import tempfile
from typing import Any

from bench.features import _claim, _data, _feast
from bench.peers import run

CALLS = 20_000
PEER_CALLS = 500
BARS = {"1": 20.0, "100": 400.0}


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    from bench.features import _online

    from vitok.features import FeatureReader

    declared = _online.features()
    _online.fill(payload["store"], declared)
    with FeatureReader(declared, payload["store"]) as reader:
        return _online.timed(reader, payload["calls"])


def judge() -> None:
    calls = _data.scaled(CALLS, 500)
    entities = _data.scaled(100_000, 100)
    asked = _feast.project(_feast.filled_sqlite(), online="sqlite")
    asked |= {"sizes": [1, 100], "calls": _data.scaled(PEER_CALLS, 20), "entities": entities, "seed": 0}
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        found = _claim.run_ours(__file__, {"store": f"lmdb://{folder}", "calls": calls})
        peer = run(_feast.python(), _feast.SCRIPTS / "feast_online.py", asked)
    one, hundred = found["1"]["median"], found["100"]["median"]
    _claim.tell(
        "online read in process, LMDB, 20 features of one entity: TTL and status checked, decoded",
        value=one,
        unit="us",
        peer=f"{_feast.name()} on SQLite",
        peer_value=peer["1"]["median"],
        ratio=peer["1"]["median"] / one,
        bar=f"<= {BARS['1']:g} us; a hundred entities <= {BARS['100']:g} us",
        met=one <= BARS["1"] and hundred <= BARS["100"] and found["wrong"] == 0 and found["not_fresh"] == 0,
        n=calls,
        protocol=(
            f"Median of {calls:,} reads of random ones of {entities:,} entities (Feast: {asked['calls']}, decoded with "
            f"to_dict), one thread each. A hundred entities: {hundred:.0f} us, Feast {peer['100']['median']:,.0f} us "
            f"({peer['100']['median'] / hundred:.0f} x). P99: one {found['1']['p99']:.0f} us, a hundred "
            f"{found['100']['p99']:,.0f} us; Feast {peer['1']['p99']:,.0f} us and {peer['100']['p99']:,.0f} us. "
            f"{found['wrong']} values differ from the newest rows."
        ),
    )


if __name__ == "__main__":
    _claim.main(judge, ours)
