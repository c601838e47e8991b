"""Clean-up of a registry for many writers: packages, files of runs and uploads that nothing refers to."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from vitok.clock import DAY, duration
from vitok.engines.address import hidden
from vitok.engines.postgres import connect, store_errors
from vitok.engines.s3 import Bucket
from vitok.errors import Conflict
from vitok.registry.cleaning import (
    RUNS_QUERY,
    UNUSED_FILES,
    Cleaned,
    Removal,
    Runs,
    decided,
    runs_of,
    unused_packages,
)
from vitok.registry.registry import Registry
from vitok.registry.shared_backup import stores_of
from vitok.registry.stages import Version


def clean_stores(
    registry: Registry,
    *,
    now: int,
    actor: str,
    logs: Sequence[Path],
    older_than: str | int = 30 * DAY,
    bucket: Bucket | None = None,
    dry_run: bool = True,
) -> Cleaned:
    """Removes packages, files of runs and uploads that nothing refers to, by the rules of `clean`.

    The runs are those in the registry's database. An upload that no entry names goes by its age as well, and never
    within a day: somebody may be about to register it. Objects go with all their versions.

    Args:
        registry: A registry in a database and a bucket.
        now: The present, in microseconds.
        actor: Who cleans up; the ledger keeps it.
        logs: Folders above all logs of decisions that these models answer to; what is not looked at cannot be kept.
        older_than: How old, such as `"30d"`, or in microseconds.
        bucket: Where the files of runs lie; None to leave them alone.
        dry_run: Only say what would be removed.

    Raises:
        InvalidInput: If the registry is a folder, or the age no length of time.
        NotFound: If a log that was named is not there.
        StoreError: If a store cannot be read; nothing is removed then.
    """
    objects, database = stores_of(registry)
    before = now - duration(older_than)
    # Objects before ledger: an object's entry can come while we look, an entry's object is always there.
    there = objects.sizes()
    registry.ledger.catch_up()
    runs = _runs(database)

    def look(version: Version) -> tuple[str, int] | None:
        found = there.get(version.path)
        return None if found is None else (f"{objects.bucket.location}/{version.path}", found[0])

    packages, kept, makers = unused_packages(registry, decided(logs), runs, before, look=look)
    removals = [*packages, *_uploads(registry, there, min(before, now - DAY))]
    places = {removal.name: _place(registry, removal) for removal in removals}
    files = _files(bucket, runs, makers, before) if bucket is not None else []
    if not dry_run:
        done = []
        for removal in removals:
            if removal.kind == "package" and not _recorded(registry, removal, now=now, actor=actor):
                continue
            objects.discard(places[removal.name])
            done.append(removal)
        for removal in files:
            assert bucket is not None  # noqa: S101
            below = str(removal.path).removeprefix(f"{bucket.location}/")
            bucket.remove([item.name for item in bucket.objects(f"{below}/")])
        removals = done
    return Cleaned(dry_run=dry_run, removals=(*removals, *files), kept=tuple(kept))


def _uploads(registry: Registry, there: dict[str, tuple[int, int]], before: int) -> list[Removal]:
    named = {version.path for model in registry.ledger.models() for version in registry.state(model).versions}
    return [
        Removal(
            kind="left over",
            name=path,
            path=f"{registry.location}/{path}",
            size=size,
            why="no entry of the ledger names it",
        )
        for path, (size, latest) in sorted(there.items())
        if path not in named and latest <= before
    ]


def _place(registry: Registry, removal: Removal) -> str:
    return str(removal.path).removeprefix(f"{registry.location}/")


def _files(bucket: Bucket, runs: Runs, makers: set[str], before: int) -> list[Removal]:
    found = []
    for run_id, address, deleted in runs.deleted:
        folder = address.removesuffix("/artifacts")
        inside = folder.startswith(f"{bucket.location}/") and ".." not in folder
        if deleted > before or run_id in makers or not inside:
            continue
        below = folder.removeprefix(f"{bucket.location}/")
        size = sum(item.size for item in bucket.objects(f"{below}/"))
        if size:
            found.append(Removal(kind="artifacts", name=run_id, path=folder, size=size, why=UNUSED_FILES))
    return found


def _recorded(registry: Registry, removal: Removal, *, now: int, actor: str) -> bool:
    """Enters a removal; False where somebody needs the package since it was looked at."""
    model, _, number = removal.name.partition("/")
    if registry.state(model).version(int(number)).removed:
        return True
    try:
        registry.ledger.remove(model, int(number), reason=removal.why, actor=actor, now=now)
    except Conflict:
        return False
    return True


def _runs(database: str) -> Runs:
    with store_errors(f"runs in {hidden(database)}"), contextlib.closing(connect(database)) as connection:
        if connection.execute("SELECT to_regclass('runs')").fetchone()[0] is None:
            return Runs(frozenset(), ())
        return runs_of(connection.execute(RUNS_QUERY).fetchall())
