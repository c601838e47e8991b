"""What a backup holds and how its files are copied: whole or not at all, with a checksum of what was copied."""

import contextlib
import hashlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitok.clock import isoformat
from vitok.errors import NotFound, StoreError
from vitok.registry.files import sync_folder
from vitok.registry.package import FileEntry
from vitok.registry.stages import canonical

MANIFEST = "backup.json"
UNFINISHED = "unfinished.json"
CONTENT = "home"
_NEW = ".new-"
_FORMAT = 1
_CHUNK = 1 << 20
_SUFFIXES = (".sqlite", ".sqlite3", ".db")
_COMPANIONS = ("-wal", "-shm", "-journal")
CACHE = "registry-cache"
"""Folder of a home with packages that are fetched again when they are asked for."""
_ARTIFACTS = "mlartifacts"
_PACKAGES = ("registry", "packages")


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A finished backup.

    Attributes:
        folder: Where it lies.
        home: Where the home lay that was copied.
        begun: When it was begun, in microseconds.
        finished: When it was finished, in microseconds.
        files: Path inside the home to checksum and size.
        databases: The same of the databases, which were copied after the files.
        missing: Packages that the ledger names and that the home did not have.
        skipped: What was not copied, inside the home: links, and stores that are made anew from the log.
        ledger_head: Hash of the latest entry of the ledger; empty where there is none.
        seal: Checksum of the manifest.
    """

    folder: Path
    home: str
    begun: int
    finished: int
    files: Mapping[str, FileEntry] = field(repr=False)
    databases: Mapping[str, FileEntry] = field(repr=False)
    missing: tuple[str, ...]
    skipped: tuple[str, ...]
    ledger_head: str
    seal: str

    @property
    def size(self) -> int:
        """Bytes of all files and databases."""
        return sum(entry.size for entry in (*self.files.values(), *self.databases.values()))

    def __str__(self) -> str:
        lines = [
            f"backup {self.folder} of {self.home}, {isoformat(self.finished)}: {len(self.files)} files, "
            f"{len(self.databases)} databases, {self.size:,} bytes"
        ]
        lines += [f"  not there when it was made: package {name}" for name in self.missing]
        lines += [f"  not copied: {name}" for name in self.skipped]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a home.

    Attributes:
        files: Plain files, by their path inside the home, sorted.
        databases: Files that are to be copied as databases.
        skipped: What is not copied.
    """

    files: tuple[str, ...]
    databases: tuple[str, ...]
    skipped: tuple[str, ...]


def listing(home: Path) -> Listing:
    """Lists a home. What is half made is left out: folders of packages that were never finished or set aside.

    So are copies of packages that lie in another place.
    """
    files, databases, skipped = [], [], []
    for place, folders, names in os.walk(home):
        inside = Path(place).relative_to(home)
        # The online store is made anew from the log, and its file cannot be copied while somebody writes it.
        if "data.mdb" in names and "lock.mdb" in names:
            skipped.append(f"{inside}/")
            folders.clear()
            continue
        if inside.parts == (CACHE,):
            folders.clear()
            continue
        hidden = inside.parts[:2] == _PACKAGES and len(inside.parts) == 3
        for name in list(folders):
            if (Path(place) / name).is_symlink():
                skipped.append(str(inside / name))
                folders.remove(name)
            elif hidden and name.startswith("."):
                folders.remove(name)
        present = set(names)
        for name in names:
            path, relative = Path(place) / name, str(inside / name)
            if not path.is_file() or path.is_symlink():
                # One that has gone meanwhile was never here.
                skipped += [relative] if path.is_symlink() or path.exists() else []
            elif _is_kept_whole(inside):
                files.append(relative)
            elif name.endswith(_SUFFIXES):
                databases.append(relative)
            elif not any(name.endswith(end) and name.removesuffix(end) in present for end in _COMPANIONS):
                files.append(relative)
    return Listing(files=tuple(sorted(files)), databases=tuple(sorted(databases)), skipped=tuple(sorted(skipped)))


def package_of(relative: str) -> str | None:
    """Returns the package, as `model/number`, that a file of a home belongs to; None of any other file.

    Example:
        >>> package_of("registry/packages/fraud/3/model.onnx"), package_of("log/decisions/1.arrow")
        ('fraud/3', None)
    """
    parts = Path(relative).parts
    return "/".join(parts[2:4]) if parts[:2] == _PACKAGES and len(parts) > 4 else None


def copy_file(source: Path, target: Path) -> FileEntry:
    """Copies a file under another name that it loses when it is whole and on the disk; says what was copied.

    Raises:
        OSError: If it cannot be read, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target) as new:
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as read, new.open("xb") as written:
            while chunk := read.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())
    return FileEntry(sha256=digest.hexdigest(), size=size)


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Gives a name beside a file under which it is written; at the end of the block it takes the file's place."""
    new = target.with_name(f".{target.name[:100]}{_NEW}{uuid.uuid4().hex[:12]}")
    try:
        yield new
        new.replace(target)
        sync_folder(target.parent)
    finally:
        new.unlink(missing_ok=True)


def is_unfinished(name: str) -> bool:
    """Says whether a name is one that `unfinished` gave."""
    return name.startswith(".") and _NEW in name


def sweep(folder: Path) -> None:
    """Removes what a copy that was killed left below a folder that only copies are written to."""
    for place, _, names in os.walk(folder):
        for name in names:
            if is_unfinished(name):
                (Path(place) / name).unlink(missing_ok=True)


def entry_of(path: Path) -> FileEntry | None:
    """Returns checksum and size of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)
    except FileNotFoundError:
        return None


def copy_database(source: Path, target: Path) -> FileEntry | None:
    """Copies a SQLite file as of one moment, while others write it; None where it is something else.

    Raises:
        sqlite3.Error: If it cannot be read.
        StoreError: If it is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=30.0)) as read,
        unfinished(target) as new,
    ):
        # An empty database writes nothing, and is a file nevertheless.
        new.touch()
        try:
            with contextlib.closing(sqlite3.connect(new)) as written:
                read.backup(written)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_NOTADB:
                raise
            copied = None
        else:
            with looking_at(new) as copy:
                found = copy.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise StoreError(f"database {source} is damaged: {found}")
            copied = entry_of(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
    if copied is None:
        target.unlink()
    return copied


@contextlib.contextmanager
def looking_at(database: Path) -> Iterator[sqlite3.Connection]:
    """Opens a copy that nobody writes, and leaves no file beside it."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?immutable=1", uri=True)) as connection:
        yield connection


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file as a whole.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    with unfinished(path) as new, new.open("x") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sealed(backup: Backup) -> dict[str, Any]:
    """Returns the manifest of a backup, with its seal."""
    body = {
        "format": _FORMAT,
        "home": backup.home,
        "begun": backup.begun,
        "finished": backup.finished,
        "files": {name: entry.__dict__ for name, entry in backup.files.items()},
        "databases": {name: entry.__dict__ for name, entry in backup.databases.items()},
        "missing": list(backup.missing),
        "skipped": list(backup.skipped),
        "ledger_head": backup.ledger_head,
    }
    return {**body, "seal": _seal(body)}


def read_backup(folder: Path) -> Backup:
    """Reads what a finished backup says of itself; its files are not looked at.

    Args:
        folder: Where it lies.

    Raises:
        NotFound: If there is no backup.
        StoreError: If it was never finished, or its manifest was changed.
    """
    folder = Path(folder).resolve()
    try:
        found = json.loads((folder / MANIFEST).read_bytes())
        seal = found.pop("seal")
    except FileNotFoundError:
        if (folder / UNFINISHED).exists():
            raise StoreError(f"backup {folder} was never finished; run vitok backup to it again") from None
        raise NotFound("backup", str(folder)) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise StoreError(f"backup {folder}: {MANIFEST} cannot be read: {error!r}") from error
    if _seal(found) != seal:
        raise StoreError(f"backup {folder}: {MANIFEST} was changed after the backup was made")
    if found["format"] != _FORMAT:
        raise StoreError(f"backup {folder}: format {found['format']} is not known here; vitok reads format {_FORMAT}")
    return Backup(
        folder=folder,
        home=found["home"],
        begun=found["begun"],
        finished=found["finished"],
        files={name: FileEntry(**entry) for name, entry in found["files"].items()},
        databases={name: FileEntry(**entry) for name, entry in found["databases"].items()},
        missing=tuple(found["missing"]),
        skipped=tuple(found["skipped"]),
        ledger_head=found["ledger_head"],
        seal=seal,
    )


def _is_kept_whole(inside: Path) -> bool:
    # What a run or a package holds is never changed, and counts by its bytes, also where it is a database.
    return inside.parts[:1] == (_ARTIFACTS,) or inside.parts[:2] == _PACKAGES


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(body).encode()).hexdigest()
