"""Feast as a peer: its environment, its project over W-PIT, and its online store filled once."""

import tempfile
from pathlib import Path
from typing import Any

from bench.features import _data
from bench.peers import environment, run, version

REQUIREMENTS = ("feast[redis,duckdb]==0.67.0",)
WARM_ROWS = 1_000  # each side of an offline comparison runs once over so many, unmeasured
SCRIPTS = Path(__file__).resolve().parent / "peers"


def python() -> Path:
    """Makes Feast's environment where it is missing and returns its Python."""
    return environment("feast", REQUIREMENTS)


def name() -> str:
    """Returns what stands in a claim: name and version."""
    return f"Feast {version(python(), 'feast')}"


def project(folder: Path | str, **more: Any) -> dict[str, Any]:
    """Describes a project over W-PIT in a folder, as the peers' scripts take it."""
    rows, warm = _data.point_in_time(), _data.point_in_time(WARM_ROWS)
    return {
        "folder": str(folder),
        "history": str(rows.history),
        "spine": str(rows.spine),
        "features": list(_data.FEATURES),
        "ttl_days": _data.TTL_DAYS,
        "warm": {"history": str(warm.history), "spine": str(warm.spine)},
        "start": _data.START / 1e6,
        "end": (_data.START + (_data.PIT_DAYS + 3) * _data.DAY) / 1e6,
        **more,
    }


def filled_sqlite() -> Path:
    """Returns a project whose SQLite store holds all entities of W-PIT, filled once and kept with the data."""
    folder = _data.CACHE / f"feast-sqlite-{_data.point_in_time().n_history}-g{_data.GENERATION}"
    if not (folder / "filled").exists():
        run(python(), SCRIPTS / "feast_materialise.py", project(folder, online="sqlite"))
        (folder / "filled").touch()
    return folder


def offline(store: str, *, bitemporal: bool = False) -> dict[str, Any]:
    """Runs the training table of W-PIT on one of Feast's offline stores and counts the rows that came out."""
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        payload = project(folder, offline=store, bitemporal=bitemporal, out=f"{folder}/out.parquet")
        return run(python(), SCRIPTS / "feast_offline.py", payload)
