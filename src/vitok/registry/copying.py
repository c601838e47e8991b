"""A copy of a home that is whole, made while others write it, and a home made of such a copy."""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry.backup_files import (
    CONTENT,
    MANIFEST,
    UNFINISHED,
    Backup,
    Listing,
    copy_database,
    copy_file,
    entry_of,
    is_unfinished,
    listing,
    looking_at,
    package_of,
    read_backup,
    sealed,
    sweep,
    unfinished,
    write_json,
)
from vitok.registry.files import RESTORING, exclusive
from vitok.registry.package import FileEntry, read_package
from vitok.registry.run_tables import ADDRESSES
from vitok.registry.storage import EntryStore, Verification

LEDGER = "registry/ledger.sqlite"
_RUNS = "mlflow.db"
_LOCK = ".lock"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A home that was made of a backup.

    Attributes:
        home: Where it lies.
        backup: What it was made of.
        ledger: The check of its ledger; None where there is none.
        n_packages: How many packages its ledger names and were found as they were registered.
    """

    home: Path
    backup: Backup
    ledger: Verification | None
    n_packages: int

    def __str__(self) -> str:
        ledger = "no ledger" if self.ledger is None else str(self.ledger)
        return (
            f"restored {self.home} from {self.backup.folder}: {len(self.backup.files)} files, "
            f"{len(self.backup.databases)} databases, {self.n_packages} packages; {ledger}"
        )


def backup(home: str | Path, folder: str | Path, *, now: int) -> Backup:
    """Copies a home into a folder, while others write it.

    Files come first and databases after them, each as of one moment; what the databases name and came in between is
    fetched at the end. So nothing that a database names is missing. Packages that came after the copy of the ledger
    are left out. A log of decisions is copied as a power cut at that moment would leave it.

    One that was interrupted goes on where it was: call it with the same folder again. It is finished when its
    manifest is there, which is written last.

    Args:
        home: Folder of everything vitok writes.
        folder: Where the backup will lie; empty, not there yet, or with a backup of this home that was interrupted.
        now: The present, in microseconds.

    Returns:
        The backup, each file with its checksum.

    Raises:
        NotFound: If there is no home.
        InvalidInput: If the folder holds something else, or one of the two lies in the other.
        Conflict: If the folder holds a finished backup, or one of another home, or somebody writes it now.
        StoreError: If something cannot be read or written, or a package is damaged.

    Example:
        >>> import tempfile
        >>> from vitok.registry import Registry
        >>> place = tempfile.TemporaryDirectory()
        >>> registry = Registry(Path(place.name) / "home")
        >>> _ = registry.register("fraud", {"model.onnx": b"weights"}, now=0, actor="train")
        >>> made = backup(registry.home, Path(place.name) / "backup", now=0)
        >>> restored = restore(made.folder, Path(place.name) / "elsewhere")
        >>> restored.n_packages, restored.ledger.intact
        (1, True)
        >>> registry.close(); place.cleanup()
    """
    home, folder = Path(home).resolve(), Path(folder).resolve()
    if not home.is_dir():
        raise NotFound("home", str(home))
    if (home / RESTORING).exists():
        raise StoreError(f"{home} is itself restored by half; finish that first")
    _apart(home, folder)
    begun = _begun(home, folder, now)
    with _step(f"backup {folder} cannot be written", "run it again to go on"), exclusive(folder / _LOCK, wait_s=1.0):
        begun = _begun(home, folder, now)
        write_json(folder / UNFINISHED, {"home": str(home), "begun": begun})
        content = folder / CONTENT
        sweep(content)
        first = listing(home)
        files: dict[str, FileEntry] = {}
        _fetch(home, content, first.files, files)
        databases: dict[str, FileEntry] = {}
        for name in first.databases:
            copied = copy_database(home / name, content / name)
            if copied is None:
                _fetch(home, content, [name], files)
            else:
                databases[name] = copied
        named = _named(content / LEDGER) if LEDGER in databases else {}
        second = _look(home)
        kept = [name for name in second.files if package_of(name) is None or package_of(name) in named]
        present = {*second.files, *second.databases}
        wanted = [name for name in kept if _differs(home / name, files.get(name))]
        # Segments may be merged again while those that took the place of others are copied.
        while gone := _fetch(home, content, wanted, files):
            moved = _in_their_place(gone, _look(home).files)
            present.update(moved)
            wanted = [name for name in moved if name not in files]
        for name in list(files):
            package = package_of(name)
            if (package not in named) if package is not None else (name not in present):
                del files[name]
        _remove_others(content, {*files, *databases})
        made = Backup(
            folder=folder,
            home=str(home),
            begun=begun,
            finished=max(now, begun),
            files=files,
            databases=databases,
            missing=_checked(content, home, named),
            skipped=second.skipped,
            ledger_head=_head(content / LEDGER) if LEDGER in databases else "",
            seal="",
        )
        manifest = sealed(made)
        write_json(folder / MANIFEST, manifest)
        (folder / UNFINISHED).unlink()
    return read_backup(folder)


def restore(folder: str | Path, home: str | Path) -> Restored:
    """Makes a home of a backup, and checks every byte, the ledger's chain, and each package that it names.

    Artifacts and packages come before the databases. Addresses of files in the store of runs become those of the new
    home. One that was interrupted goes on where it was; until it is finished, nobody can open the home.

    Args:
        folder: A finished backup.
        home: Where the home will lie; empty, not there yet, or half restored from this very backup.

    Raises:
        NotFound: If there is no backup.
        InvalidInput: If the home is not empty, or one of the two lies in the other.
        Conflict: If the home is half restored from another backup, or somebody restores it now.
        StoreError: If the backup is not finished or damaged, or the home cannot be written.
    """
    found = read_backup(Path(folder))
    home = Path(home).resolve()
    _apart(home, found.folder)
    _check_empty(home, found)
    with _step(f"home {home} cannot be restored", "run it again to go on"), exclusive(home / _LOCK, wait_s=1.0):
        _check_empty(home, found)
        write_json(home / RESTORING, {"backup": str(found.folder), "seal": found.seal})
        _fill(found, home)
        restored = _verified(found, home)
        (home / _LOCK).unlink()
        (home / RESTORING).unlink()
    return restored


def _fill(found: Backup, home: Path) -> None:
    sweep(home)
    content = found.folder / CONTENT
    for name, entry in found.files.items():
        if entry_of(home / name) != entry:
            _same(name, entry, copy_file(content / name, home / name))
    for name, entry in found.databases.items():
        target = home / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(target) as new:
            _same(name, entry, copy_file(content / name, new))
            if name == _RUNS:
                _readdress(new, found.home, home)


def _verified(found: Backup, home: Path) -> Restored:
    if LEDGER not in found.databases:
        return Restored(home=home, backup=found, ledger=None, n_packages=0)
    store = EntryStore(home / LEDGER)
    try:
        checked = store.verify(found.ledger_head)
    finally:
        store.close()
    if not checked.intact:
        raise StoreError(f"backup {found.folder}: {checked}")
    named = _named(home / LEDGER)
    missing = _checked(home, home, named)
    if set(missing) - set(found.missing):
        raise StoreError(f"backup {found.folder}: packages {', '.join(missing)} are not in it")
    return Restored(home=home, backup=found, ledger=checked, n_packages=len(named) - len(missing))


def _fetch(home: Path, content: Path, names: Sequence[str], files: dict[str, FileEntry]) -> list[str]:
    # Gives those that have gone since the folder was listed: others took their place, which the next look finds.
    gone = []
    for name in names:
        try:
            there = entry_of(content / name)
            if there is None or there.size != (home / name).stat().st_size or there != entry_of(home / name):
                there = copy_file(home / name, content / name)
            files[name] = there
        except FileNotFoundError:
            gone.append(name)
    return gone


def _look(home: Path) -> Listing:
    from vitok.decisions.segments import settled

    # While segments are merged, a walk may miss both the old files and the one with the rows of all.
    log = home / "log"
    return settled(log / "decisions", lambda: settled(log / "outcomes", lambda: listing(home)))


def _in_their_place(gone: Sequence[str], names: Sequence[str]) -> list[str]:
    """Finds where what has gone lies now.

    A segment of a log that was sealed after the look lies elsewhere, under the same stem; one that was merged lies in
    a file that spans its number. What came later than the look is left out otherwise: with it, a part in between
    could be missing.
    """
    from vitok.decisions.segments import numbers

    stems = {Path(name).stem for name in gone}
    spans = [span for name in gone if (span := numbers(Path(name).name))]

    def holds(name: str) -> bool:
        # What lies beside a segment is named after it.
        own = numbers(Path(name).name.partition(".")[0] + ".parquet")
        return own is not None and any(own[0] <= first and last <= own[1] for first, last in spans)

    return [name for name in names if Path(name).stem in stems or holds(name)]


def _differs(path: Path, copied: FileEntry | None) -> bool:
    # Whether a file was not copied yet, or has grown since; one that has gone counts, so that it is looked for.
    try:
        return copied is None or path.stat().st_size != copied.size
    except FileNotFoundError:
        return True


def _named(ledger: Path) -> dict[str, str]:
    """Gives the packages that a copy of a ledger names, with their digests."""
    with looking_at(ledger) as connection:
        rows = connection.execute(
            "SELECT details FROM entry AS made WHERE kind = 'registered' AND NOT EXISTS (SELECT 1 FROM entry "
            "WHERE kind = 'removed' AND model = made.model AND version = made.version) ORDER BY seq"
        ).fetchall()
    details = [json.loads(row[0]) for row in rows]
    return {found["path"]: found["digest"] for found in details}


def _head(ledger: Path) -> str:
    with looking_at(ledger) as connection:
        rows = connection.execute("SELECT hash FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
    return str(rows[0][0]) if rows else ""


def _checked(copied: Path, home: Path, named: Mapping[str, str]) -> tuple[str, ...]:
    """Reads every byte of the packages that a ledger names; returns those that the home does not have either."""
    missing = []
    for path, digest in named.items():
        try:
            package = read_package(copied / "registry" / "packages" / path)
        except NotFound:
            if (home / "registry" / "packages" / path).exists() and copied != home:
                raise
            missing.append(path)
            continue
        if package.digest != digest:
            raise StoreError(f"package {package.folder} is not the one that was registered as {path}")
    return tuple(missing)


def _readdress(database: Path, old: str, home: Path) -> None:
    """Gives the files of runs the addresses that they have below another home."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for table, column in ADDRESSES:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if column not in columns:
                continue
            for before, after in ((Path(old).as_uri(), home.as_uri()), (old, str(home))):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                    (after, len(before) + 1, len(before) + 1, f"{before}/"),
                )
        connection.commit()


def _same(name: str, wanted: FileEntry, found: FileEntry) -> None:
    if found != wanted:
        raise StoreError(f"backup: {name} is damaged: its SHA-256 is not the one that was written")


def _remove_others(content: Path, wanted: set[str]) -> None:
    for place, folders, names in os.walk(content, topdown=False):
        for name in names:
            path = Path(place) / name
            if str(path.relative_to(content)) not in wanted:
                path.unlink()
        for name in folders:
            # Those that are not empty stay.
            with contextlib.suppress(OSError):
                (Path(place) / name).rmdir()


def _apart(home: Path, folder: Path) -> None:
    if home == folder or home in folder.parents or folder in home.parents:
        raise InvalidInput("folder", str(folder), f"neither lie in the home {home} nor hold it")


def _begun(home: Path, folder: Path, now: int) -> int:
    """Looks whether a backup may be written into a folder, and when it was begun."""
    if folder.exists() and not folder.is_dir():
        raise InvalidInput("folder", str(folder), "be a folder")
    if (folder / MANIFEST).exists():
        raise Conflict(f"{folder} holds a finished backup; name another folder")
    marker = folder / UNFINISHED
    if not marker.exists():
        if folder.is_dir() and _in_use(folder):
            raise InvalidInput("folder", str(folder), "be empty, or hold a backup that was interrupted")
        return now
    left = json.loads(marker.read_bytes())
    if left["home"] != str(home):
        raise Conflict(f"{folder} holds an unfinished backup of {left['home']}; name another folder")
    return int(left["begun"])


def _check_empty(home: Path, found: Backup) -> None:
    if not home.exists():
        return
    marker = home / RESTORING
    if marker.exists():
        left = json.loads(marker.read_bytes())
        if left["seal"] != found.seal:
            raise Conflict(f"{home} is half restored from {left['backup']}; finish that, or empty the folder")
    elif not home.is_dir() or _in_use(home):
        raise InvalidInput("home", str(home), "be empty; a backup never goes over what is there", "Name another")


def _in_use(folder: Path) -> bool:
    # The first thing that is done to a folder is to lock it and to mark it; that may have been interrupted as well.
    return any(path.name != _LOCK and not is_unfinished(path.name) for path in folder.iterdir())


@contextlib.contextmanager
def _step(what: str, then: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{what}: {error}; {then}") from error
