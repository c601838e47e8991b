"""Backups in a bucket: a finished folder sent there, and fetched from there, whole or not at all."""

from pathlib import Path

from vitok.engines.s3 import Bucket
from vitok.errors import Conflict, NotFound, StoreError
from vitok.registry.backup_files import CONTENT, MANIFEST, Backup, entry_of, read_backup, sweep, unfinished
from vitok.registry.package import FileEntry

_SUM = "sha256"


def send_backup(folder: str | Path, url: str) -> Backup:
    """Sends a finished backup to a bucket; its manifest goes last, and without it nothing is there.

    One that was interrupted goes on where it was: what is there with its checksum is not sent again.

    Args:
        folder: A finished backup.
        url: Where it will lie, `s3://bucket/prefix?endpoint=...`; empty, or with this very backup by half.

    Returns:
        The backup that was sent.

    Raises:
        NotFound: If there is no backup.
        Conflict: If another backup is there.
        StoreError: If the backup is not finished or damaged, or the bucket cannot be written.
    """
    made = read_backup(Path(folder))
    bucket = Bucket(url)
    manifest = (made.folder / MANIFEST).read_bytes()
    try:
        there = bucket.get(MANIFEST)
    except NotFound:
        there = manifest
    if there != manifest:
        raise Conflict(f"{bucket.location} holds another backup; name another place")
    present = {item.name for item in bucket.objects(f"{CONTENT}/")}
    wanted = {**made.files, **made.databases}
    others = sorted(present - {f"{CONTENT}/{name}" for name in wanted})
    if others:
        raise Conflict(f"{bucket.location} holds something else, such as {others[0]}; name another place")
    for name, entry in wanted.items():
        _same(name, entry, made.folder / CONTENT / name)
        target = f"{CONTENT}/{name}"
        if target not in present or (bucket.notes(target) or {}).get(_SUM) != entry.sha256:
            bucket.put_file(target, made.folder / CONTENT / name, notes={_SUM: entry.sha256})
    bucket.put(MANIFEST, manifest)
    return made


def fetch_backup(url: str, folder: str | Path) -> Backup:
    """Fetches a backup from a bucket into a folder and checks every byte; then `restore` takes it.

    One that was interrupted goes on where it was.

    Args:
        url: Where it lies, `s3://bucket/prefix?endpoint=...`.
        folder: Where it will lie here.

    Raises:
        NotFound: If there is no finished backup.
        StoreError: If it is damaged, or cannot be read or written.
    """
    bucket, folder = Bucket(url), Path(folder)
    try:
        manifest = bucket.get(MANIFEST)
    except NotFound:
        raise NotFound("backup", bucket.location) from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        with unfinished(folder / MANIFEST) as new:
            new.write_bytes(manifest)
        made = read_backup(folder)
        for name, entry in {**made.files, **made.databases}.items():
            path = made.folder / CONTENT / name
            if entry_of(path) == entry:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished(path) as new:
                bucket.get_file(f"{CONTENT}/{name}", new)
                _same(name, entry, new)
    except OSError as error:
        raise StoreError(f"backup {bucket.location} cannot be fetched into {folder}: {error}") from error
    return made


def _same(name: str, wanted: FileEntry, path: Path) -> None:
    if entry_of(path) != wanted:
        raise StoreError(f"backup: {name} is damaged: its SHA-256 is not the one that was written")
