"""Taking the newest row of each entity from Parquet to LMDB: time, memory, and what a killed run leaves to do."""

import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from bench.features import _claim, _data, _feast
from bench.peers import PeerError, run, timed_usage

RUNS = 3
SECONDS = 4.0
MEMORY_MIB = 1024


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    import polars as pl
    from bench.features import _online, _pit

    from vitok.engines import open_rows
    from vitok.features import FeatureReader, materialise

    declared = _online.features()
    store = open_rows(payload["store"])
    sources = {"history": Path(payload["history"])}

    def watch(progress: Any) -> None:
        if payload["die"] and 2 * progress.done >= progress.of:
            os.kill(os.getpid(), signal.SIGKILL)

    chunk = _data.scaled(20_000)
    began = timed_usage()
    done = materialise(declared, sources, store, until=_online.NOW, progress=watch, chunk_entities=chunk)
    ended = timed_usage()
    found = {"wall": ended[0] - began[0], "cpu": ended[1] - began[1]}
    found |= {"resumed": done.views[0].resumed, "written": done.written}
    if payload["check"]:
        truth = _online.newest()
        with FeatureReader(declared, store) as reader:
            read = reader.read({"entity_id": truth["entity_id"].to_list()}, time=_online.NOW)
        columns = [f"{_pit.VIEW}_{name}" for name in _data.FEATURES]
        values = pl.DataFrame(read.values, schema=columns).cast(pl.Float32)
        expected = truth.select(_data.FEATURES).rename(dict(zip(_data.FEATURES, columns, strict=True)))
        wrong = (values != expected).sum_horizontal().sum()
        found |= {"wrong": int(wrong), "entities": len(truth)}
    return found


def measured(file: str, store: str, *, online: str, redis: str = "") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs both sides in turn, each into an empty store.

    Args:
        file: The benchmark, for our side.
        store: Address of our store; `{}` becomes a new folder or the number of a database.
        online: Feast's store, "sqlite" or "redis".
        redis: host:port for Feast.

    Returns:
        What our side used in each run, and what Feast used in its one.
    """
    history = str(_data.point_in_time().history)
    found = []
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        for number in range(RUNS):
            address = store.format(Path(folder, f"store-{number}") if online == "sqlite" else number)
            payload = {"store": address, "history": history, "check": number == RUNS - 1, "die": False}
            found.append(_claim.run_ours(file, payload))
        # Feast takes from half a minute to a minute and a half: once says enough.
        project = _feast.project(Path(folder, "feast"), online=online, redis=redis)
        peer = run(_feast.python(), _feast.SCRIPTS / "feast_materialise.py", project)
    return found, peer


def killed_and_resumed(file: str, store: str) -> dict[str, Any]:
    """Kills a run when half of the entities are in an empty store, and runs it again."""
    payload = {"store": store, "history": str(_data.point_in_time().history)}
    try:
        _claim.run_ours(file, {**payload, "check": False, "die": True})
    except PeerError as error:
        if "left with -9" not in str(error):
            raise
    return _claim.run_ours(file, {**payload, "check": True, "die": False})


def told(
    found: list[dict[str, Any]],
    again: dict[str, Any],
    peer: dict[str, Any],
    *,
    where: str,
    their: str,
    seconds: float,
) -> None:
    """Prints the claim."""
    wall, peak = _claim.median(found, "wall"), _claim.most(found, "peak_mib")
    last = found[-1]
    _claim.tell(
        f"materialise the newest rows of 100 k entities x 20 features from 1 M rows to {where}",
        value=wall,
        unit="s",
        peer=f"{_feast.name()} to {their}",
        peer_value=peer["wall"],
        ratio=peer["wall"] / wall,
        bar=f"<= {seconds:g} s, < {MEMORY_MIB:,} MiB, resumable",
        met=wall <= seconds
        and peak < MEMORY_MIB
        and last["wrong"] == again["wrong"] == 0
        and again["resumed"]
        and 0 < again["written"] < last["written"],
        n=_data.point_in_time().n_history,
        protocol=(
            f"Median of {RUNS} runs into an empty store by the wall clock, Feast's one run. CPU: ours "
            f"{_claim.median(found, 'cpu'):.2f} s, Feast {peer['cpu']:.1f} s. Peak: ours {peak:,.0f} MiB, Feast "
            f"{peer['peak_mib']:,.0f} MiB. All {last['entities']:,} entities read back: {last['wrong']} values differ "
            "from the newest rows. Killed with SIGKILL when half of the entities were written, the next run wrote the "
            f"other {again['written']:,} of {last['written']:,} rows, and {again['wrong']} values differ."
        ),
    )


def judge() -> None:
    found, peer = measured(__file__, "lmdb://{}", online="sqlite")
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        again = killed_and_resumed(__file__, f"lmdb://{folder}/store")
    told(found, again, peer, where="LMDB", their="SQLite", seconds=SECONDS)


if __name__ == "__main__":
    _claim.main(judge, ours)
