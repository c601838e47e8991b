"""A backup of a registry for many writers, in the form of a home's; and such stores made of a backup."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitok.engines.address import hidden
from vitok.engines.postgres import Session, connect, store_errors
from vitok.engines.s3 import Bucket
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry.backup_files import (
    CONTENT,
    MANIFEST,
    UNFINISHED,
    Backup,
    entry_of,
    listing,
    looking_at,
    read_backup,
    sealed,
    sweep,
    unfinished,
    write_json,
)
from vitok.registry.copying import LEDGER
from vitok.registry.files import exclusive
from vitok.registry.object_packages import ObjectPackages
from vitok.registry.package import FileEntry, read_package
from vitok.registry.registry import Registry
from vitok.registry.run_tables import dump_runs, fill_runs
from vitok.registry.stages import Entry, ModelState, Version, replay
from vitok.registry.storage import EntryStore, Verification, entry_of_row, rows_of
from vitok.registry.tracking import Tracker

_ARTIFACTS = "mlartifacts"
_RUNS = "mlflow-tables"
_PACKAGES = "registry/packages"


@dataclass(frozen=True, kw_only=True)
class RestoredStores:
    """A database and a bucket that were filled from a backup.

    Attributes:
        database: Address of the database, as it may be shown.
        location: Where the packages lie.
        ledger: The check of the ledger.
        n_packages: How many packages the ledger names, each loaded and found as it was registered.
        n_runs: How many runs came back; None where the backup has no tables of runs, or no tracker was named.
    """

    database: str
    location: str
    ledger: Verification
    n_packages: int
    n_runs: int | None

    def __str__(self) -> str:
        runs = "" if self.n_runs is None else f", {self.n_runs} runs"
        return f"restored {self.database} and {self.location}: {self.n_packages} packages{runs}; {self.ledger}"


def backup_stores(
    registry: Registry, folder: str | Path, *, now: int, tracker: Tracker | None = None, bucket: Bucket | None = None
) -> Backup:
    """Copies a registry for many writers into a folder, while others write it.

    Packages and the files of runs come first, then ledger and runs out of the database as of one moment, then what
    these name and came in between. The folder is a backup as of a home: `restore` makes a home of it, without the
    runs, and `restore_stores` a database and a bucket. One that was interrupted goes on where it was.

    Args:
        registry: A registry in a database and a bucket.
        folder: Where the backup will lie; empty, not there yet, or with one of this registry that was interrupted.
        now: The present, in microseconds.
        tracker: The runs, where they lie in the same database.
        bucket: The files of the runs; None to leave them out.

    Raises:
        InvalidInput: If the registry is a folder, or the folder holds something else.
        Conflict: If the folder holds a finished backup, or one of another registry.
        StoreError: If something cannot be read or written, or a package is damaged.
    """
    objects, database = stores_of(registry)
    if tracker is not None and tracker.database != database:
        raise InvalidInput("tracker", tracker, "have its runs in the database of the registry")
    folder = Path(folder).resolve()
    begun = _begun(folder, hidden(database), now)
    with _step(f"backup {folder} cannot be written"), exclusive(folder / ".lock", wait_s=1.0):
        write_json(folder / UNFINISHED, {"home": hidden(database), "begun": begun})
        content = folder / CONTENT
        sweep(content)
        registry.ledger.catch_up()
        known = [version for model in registry.ledger.models() for version in registry.state(model).versions]
        missing = _packages(objects, content, known)
        if bucket is not None:
            _files(bucket, content / _ARTIFACTS)
        with _snapshot(database) as session:
            head, named, ledger = _ledger(session, content / LEDGER)
            if tracker is not None:
                dump_runs(session.connection, content / _RUNS, roots=(tracker.artifact_root, registry.location))
        missing = _packages(objects, content, named)
        if bucket is not None:
            _files(bucket, content / _ARTIFACTS)
        found = listing(content)
        made = Backup(
            folder=folder,
            home=hidden(database),
            begun=begun,
            finished=max(now, begun),
            files={name: entry for name in found.files if (entry := entry_of(content / name))},
            databases={LEDGER: ledger},
            missing=missing,
            skipped=(),
            ledger_head=head,
            seal="",
        )
        write_json(folder / MANIFEST, sealed(made))
        (folder / UNFINISHED).unlink()
    return read_backup(folder)


def restore_stores(
    folder: str | Path, registry: Registry, *, tracker: Tracker | None = None, bucket: Bucket | None = None
) -> RestoredStores:
    """Fills a database and a bucket from a backup, of a home or of other stores, and loads every package from there.

    Packages and files come before the database, whose tables are filled in one transaction: until it ends there is
    nothing to serve. One that was interrupted before that can be done again.

    Args:
        folder: A finished backup.
        registry: A registry in a database without entries and a bucket.
        tracker: Where the runs go, in the same database, without runs; None to leave them out.
        bucket: Where the files of the runs go.

    Raises:
        InvalidInput: If the registry is a folder.
        NotFound: If there is no backup.
        Conflict: If the database has entries or runs.
        StoreError: If the backup is not finished or damaged, or the stores cannot be written.
    """
    objects, database = stores_of(registry)
    found = read_backup(Path(folder))
    content = found.folder / CONTENT
    if registry.ledger.catch_up():
        raise Conflict(f"{hidden(database)} has a ledger with entries; a backup never goes over what is there")
    for name, entry in {**found.files, **found.databases}.items():
        if entry_of(content / name) != entry:
            raise StoreError(f"backup: {name} is damaged: its SHA-256 is not the one that was written")
    entries = _entries(content / LEDGER)
    versions = [version for version in versions_of(entries) if version.path not in found.missing]
    for version in versions:
        package = read_package(content / _PACKAGES / version.path)
        if package.digest != version.digest:
            raise StoreError(f"package {package.folder} is not the one that was registered as {version.name}")
        objects.put_back(version.path, package)
    if bucket is not None:
        for path in sorted((content / _ARTIFACTS).rglob("*")):
            if path.is_file():
                bucket.put_file(str(path.relative_to(content / _ARTIFACTS)), path)
    n_runs = None
    if tracker is not None and (content / _RUNS).is_dir():
        if tracker.database != database:
            raise InvalidInput("tracker", tracker, "have its runs in the database of the registry")
        tracker.make()
        n_runs = fill_runs(database, content / _RUNS, roots=(tracker.artifact_root, registry.location))
    registry.ledger.take_over(entries)
    checked = registry.ledger.verify(head=found.ledger_head)
    if not checked.intact:
        raise StoreError(f"backup {found.folder}: {checked}")
    for version in versions:
        objects.load(version)
    return RestoredStores(
        database=hidden(database),
        location=registry.location,
        ledger=checked,
        n_packages=len(versions),
        n_runs=n_runs,
    )


def stores_of(registry: Registry) -> tuple[ObjectPackages, str]:
    """Returns the packages and the database of a registry for many writers.

    Raises:
        InvalidInput: If it is a folder.
    """
    place = registry.ledger.place
    if registry.objects is None or not isinstance(place, str):
        raise InvalidInput("registry", registry, "lie in a database and a bucket")
    return registry.objects, place


def versions_of(entries: list[Entry]) -> list[Version]:
    """Returns the versions that entries name, less those that were removed."""
    models = sorted({entry.model for entry in entries})
    states = [
        replay([entry for entry in entries if entry.model == model], start=ModelState(model=model)) for model in models
    ]
    return [version for state in states for version in state.versions if not version.removed]


def _packages(objects: ObjectPackages, content: Path, versions: list[Version]) -> tuple[str, ...]:
    """Copies what is not copied yet; gives those that the store does not have."""
    missing = []
    for version in versions:
        folder = content / _PACKAGES / version.path
        if version.removed:
            continue
        try:
            if read_package(folder).digest == version.digest:
                continue
        except NotFound:
            pass
        try:
            objects.fetch(version, folder)
        except NotFound:
            missing.append(version.path)
    return tuple(missing)


def _files(bucket: Bucket, target: Path) -> None:
    for item in bucket.objects():
        path = target / item.name
        # What a run has written is never changed.
        if path.exists() and path.stat().st_size == item.size:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(NotFound), unfinished(path) as new:
            bucket.get_file(item.name, new)


@contextlib.contextmanager
def _snapshot(database: str) -> Iterator[Session]:
    with store_errors(f"backup of {hidden(database)}"), contextlib.closing(connect(database)) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield Session(connection)
        connection.execute("ROLLBACK")


def _ledger(session: Session, target: Path) -> tuple[str, list[Version], FileEntry]:
    entries = [entry_of_row(row) for row in rows_of(session)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target) as new:
        store = EntryStore(new)
        try:
            store.take_over(entries)
            checked = store.verify()
        finally:
            store.close()
        if not checked.intact:
            raise StoreError(f"it cannot be copied: {checked}")
    copied = entry_of(target)
    assert copied is not None  # noqa: S101
    return checked.head, versions_of(entries), copied


def _entries(ledger: Path) -> list[Entry]:
    with looking_at(ledger) as connection:
        return [entry_of_row(row) for row in rows_of(connection, "entry")]


def _begun(folder: Path, home: str, now: int) -> int:
    if (folder / MANIFEST).exists():
        raise Conflict(f"{folder} holds a finished backup; name another folder")
    marker = folder / UNFINISHED
    if marker.exists():
        left: Mapping[str, Any] = json.loads(marker.read_bytes())
        if left["home"] != home:
            raise Conflict(f"{folder} holds an unfinished backup of {left['home']}; name another folder")
        return int(left["begun"])
    if folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise InvalidInput("folder", str(folder), "be empty, or hold a backup that was interrupted")
    return now


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error}; run it again to go on") from error
