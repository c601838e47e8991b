"""The ledger after 10,000 transitions: who served when, how long a stage takes to resolve, and what shows a change.

`python -m bench.registry.ledger`.
"""

import contextlib
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.features._claim import tell  # noqa: E402

from vitok.errors import Conflict, GateRefused  # noqa: E402
from vitok.loop import Look, Records, Release, ReleasePlan, Releases, Step, push  # noqa: E402
from vitok.registry import Registry, Tracker, at_least, evaluate, mlflow_client  # noqa: E402
from vitok.registry.ledger import Ledger  # noqa: E402

SCALE = float(os.environ.get("VITOK_BENCH_SCALE", "1"))
TRANSITIONS, VERSIONS = max(300, round(10_000 * SCALE)), 50
ASKED, RESOLVED, ALTERED, THEIRS = max(50, round(1_000 * SCALE)), 20_000, max(10, round(100 * SCALE)), 300
BAR_RESOLVE_US = 50.0
GOOD = evaluate([at_least("quality", 1.0, 0.5)])


def transitions(ledger: Ledger, rng: np.random.Generator) -> list[tuple[int, int | None]]:
    """Promotes and rolls back at random times; gives the time of each change and the version that served from then."""
    truth: list[tuple[int, int | None]] = []
    served: list[int] = []
    now = 0
    for version in range(1, VERSIONS + 1):
        ledger.register("fraud", digest=f"d{version}", path=f"fraud/{version}", now=now, actor="bench")
    while len(truth) < TRANSITIONS:
        # Often within the same microsecond as the change before.
        now += int(rng.integers(0, 5))
        if len(served) > 1 and rng.random() < 0.3:
            ledger.rollback("fraud", reason="drill", actor="bench", now=now)
            served.pop()
        else:
            version = int(rng.choice([v for v in range(1, VERSIONS + 1) if not served or v != served[-1]]))
            ledger.promote("fraud", version, "Production", reason="r", actor="bench", now=now, override="drill")
            served.append(version)
        truth.append((now, served[-1]))
    return truth


def by_plan(registry: Registry, records: Records) -> None:
    """Lets a release by plan go as far as it does."""

    class Nothing:
        def look(self, release: Release, *, now: int) -> Look:  # noqa: ARG002
            return Look()

    canary, full = Step(name="canary", kind="canary", share=0.1), Step(name="full", kind="full", share=1)
    plan = ReleasePlan(steps=(canary, full))
    with contextlib.closing(Releases(registry, records)) as releases:
        release = releases.begin("shop", 1, plan, now=2, actor="ann", reason="r")
        for now in (2, 3, 4):
            releases.tick(release.release_id, plan, Nothing(), now=now)


def unapproved(home: Path) -> tuple[int, int]:
    """Tries every public call that lets a version answer; gives how many, and how many did without its approval."""
    registry, records = Registry(home), Records(home)
    ledger = registry.ledger
    for _ in range(2):
        registry.register("shop", {"m": b"w"}, now=0, actor="ann")
    ledger.promote("shop", 2, "Production", reason="first", actor="ann", now=0, override="first")
    ledger.record_gate("shop", 1, GOOD, now=1, actor="ann")
    ledger.require_approvals("shop", 1, reason="audit", actor="ann", now=1)
    say = {"actor": "ann", "now": 2}
    calls: list[Callable[[], object]] = []
    for override in (None, "sure"):
        calls += [
            lambda o=override: ledger.promote("shop", 1, "Production", reason="r", override=o, **say),  # type: ignore[misc]
            lambda o=override: ledger.start_canary("shop", 1, 0.1, reason="r", override=o, **say),  # type: ignore[misc]
            lambda o=override: push(registry, records, "shop", 1, override=o, **say),  # type: ignore[misc]
        ]
    calls += [
        lambda: by_plan(registry, records),
        lambda: ledger.approve("shop", 1, reason="r", **say),
        lambda: ledger.rollback("shop", reason="r", **say),
    ]
    let = 0
    for proposed in (False, True):
        if proposed:
            ledger.propose("shop", 1, reason="r", **say)
            calls.append(lambda: ledger.require_approvals("shop", 0, reason="r", **say))
        for call in calls:
            with contextlib.suppress(GateRefused, Conflict):
                call()
            state = ledger.state("shop")
            let += state.production == 1 or state.canary == 1
    registry.close()
    return 2 * len(calls) - 1, let


def alterations(path: Path, rng: np.random.Generator, folder: Path) -> int:
    """Changes one field of one entry past the triggers, in copies of the file; gives how many were seen."""
    found = 0
    fields = ["time_us", "version", "stage_to", "actor", "reason", "details", "previous_hash"]
    for i in range(ALTERED):
        copy = folder / "altered.sqlite"
        shutil.copy(path, copy)
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            last = connection.execute("SELECT max(seq) FROM entry").fetchone()[0]
            seq, field = int(rng.integers(1, last + 1)), fields[i % len(fields)]
            value: object = 77 if field in ("time_us", "version") else "{}" if field == "details" else "Staging"
            connection.execute(f"UPDATE entry SET {field} = ? WHERE seq = ?", (value, seq))
            connection.commit()
        ledger = Ledger(copy)
        seen = ledger.verify()
        found += not seen.intact and seen.seq == seq
        ledger.close()
    return found


def main() -> None:
    """Writes the ledger, asks it, changes copies of it, and prints the line."""
    rng = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        registry = Registry(home)
        began = time.perf_counter()
        truth = transitions(registry.ledger, rng)
        each = (time.perf_counter() - began) / len(truth)
        times, versions = np.array([at for at, _ in truth]), [version for _, version in truth]
        asked = rng.integers(0, times[-1] + 2, ASKED)
        wrong, lengths = 0, []
        for at in asked:
            began = time.perf_counter()
            answer = registry.ledger.at("fraud", int(at))
            lengths.append(time.perf_counter() - began)
            place = int(np.searchsorted(times, at, side="right"))
            wrong += answer != (versions[place - 1] if place else None)
        resolving = []
        for _ in range(RESOLVED):
            began = time.perf_counter()
            registry.state("fraud").resolve("Production")
            resolving.append(time.perf_counter() - began)
        resolve_us = 1e6 * statistics.median(resolving)

        registry.ledger.verify()
        path = registry.ledger.path
        registry.close()
        seen = alterations(path, rng, home)
        tried, let = unapproved(home / "approvals")

        Tracker.prepare(home)
        client = mlflow_client.import_mlflow().MlflowClient(
            tracking_uri=Tracker(home).uri, registry_uri=Tracker(home).uri
        )
        client.create_registered_model("fraud")
        client.create_model_version("fraud", "file:///m")
        client.set_registered_model_alias("fraud", "champion", "1")
        theirs = []
        for _ in range(THEIRS):
            began = time.perf_counter()
            client.get_model_version_by_alias("fraud", "champion")
            theirs.append(time.perf_counter() - began)
        theirs_us = 1e6 * statistics.median(theirs)
    tell(
        "the version in Production by its stage, after 10,000 transitions",
        value=resolve_us,
        unit="us",
        peer="MLflow 3.17.2, alias on SQLite",
        peer_value=theirs_us,
        ratio=theirs_us / resolve_us,
        bar=(
            f"<= {BAR_RESOLVE_US:g} us; at(time) exact; no promotion without its approvals by any public call; each "
            "changed entry found"
        ),
        met=resolve_us <= BAR_RESOLVE_US and not wrong and not let and seen == ALTERED,
        n=len(truth),
        protocol=(
            f"One process, one thread, {len(truth):,} promotions and roll backs of {VERSIONS} versions, "
            f"{1e3 * each:.2f} ms each, median of {RESOLVED:,} resolutions (another process may have written: the file "
            f"is asked each time). at(time) at {ASKED:,} random times: {wrong} wrong, "
            f"{1e3 * statistics.median(lengths):.1f} ms in the median. One field of one entry changed past the "
            f"triggers: {seen} of {ALTERED} found at the very entry. {tried} calls for a version without its approval, "
            f"with and without an override: {let} let it answer."
        ),
    )


if __name__ == "__main__":
    main()
