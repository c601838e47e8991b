"""Packages as objects of an S3-compatible store, and the folder on this machine that keeps those in use."""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitok import ids
from vitok.engines.s3 import Bucket, Stored
from vitok.errors import Conflict, NotFound, StoreError
from vitok.registry.files import exclusive
from vitok.registry.package import (
    FORMAT,
    MANIFEST,
    Content,
    Package,
    check_model_name,
    contents_of,
    digest_of,
    read_package,
    sealed,
    unsealed,
    write_package,
)
from vitok.registry.stages import Version

CACHE_BYTES = 20 * 10**9
# What was used so lately is not put out of the cache: somebody may still be reading its files.
_IN_USE_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A package in the store that no entry of the ledger names yet.

    Attributes:
        path: Its place below the store's prefix: model and an id of its own.
        digest: Digest of its contents.
    """

    path: str
    digest: str


class ObjectPackages:
    """Packages below a prefix of a bucket.

    Each lies under `<model>/<id>/`, with an id that nobody else has: the files first, then `manifest.json` with their
    checksums and, where the bucket keeps versions, the version of each. A package that the ledger does not name does
    not exist; one that it names is whole. Where an object was overwritten or deleted, the version that has the bytes
    of the manifest is read.

    Args:
        url: Address of the bucket, as `vitok.engines.s3.Bucket` takes it.
        cache: Folder of this machine for the packages in use; several processes may share it.
        cache_bytes: How much it holds: beyond that, those unused for longest go, and none that was used within the
            hour.
    """

    def __init__(self, url: str, *, cache: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.bucket = Bucket(url)
        self.cache = cache
        self._cache_bytes = cache_bytes

    def upload(self, model: str, files: Mapping[str, Content], *, created: int, kind: str = "model") -> Upload:
        """Writes a package under an id of its own.

        Args:
            model: Name of the model.
            files: File name to contents, as in `write_package`.
            created: The present, in microseconds.
            kind: What the package holds.

        Raises:
            InvalidInput: If a name or a content cannot be stored.
            StoreError: If the store does not take it; what was written of it is cleaned up one day.
        """
        check_model_name(model)
        contents = contents_of(files)
        path = f"{model}/{ids.text(ids.uuid7())}"
        return Upload(path=path, digest=self._write(path, model, contents, created=created, kind=kind))

    def _write(self, path: str, model: str, contents: Mapping[str, bytes], *, created: int, kind: str) -> str:
        entries: dict[str, dict[str, Any]] = {}
        for name in sorted(contents):
            content = contents[name]
            version = self.bucket.put(f"{path}/{name}", content)
            entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "object": version}
        digest = digest_of(entries)
        said = {"format": FORMAT, "kind": kind, "name": model, "created": created, "digest": digest, "files": entries}
        self.bucket.put(f"{path}/{MANIFEST}", sealed(said))
        return digest

    def load(self, version: Version) -> Package:
        """Returns a version's package with its files on this machine, every byte checked against the ledger.

        Raises:
            NotFound: If the store does not have it.
            StoreError: If it is not the one that was registered, in none of its versions, or cannot be fetched.
        """
        folder = self.cache / version.path
        try:
            package = self._checked(read_package(folder), version)
        except (NotFound, StoreError):
            # Not here yet, or damaged here and whole in the store.
            _drop(folder)
            package = self.fetch(version, folder)
            self._make_room()
        with contextlib.suppress(OSError):
            os.utime(folder)
        return package

    def keep(self, version: Version, files: Mapping[str, Content], *, created: int) -> None:
        """Puts a package that was just uploaded from here into the cache; where that fails it is fetched when asked."""
        with contextlib.suppress(StoreError, Conflict):
            write_package(
                self.cache / version.path,
                name=version.model,
                version=version.version,
                files=files,
                created=created,
            )

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Returns the packages in the store: path to bytes, and when the latest object came, in microseconds."""
        found: dict[str, tuple[int, int]] = {}
        for item in self.bucket.objects():
            path = package_path(item)
            if path:
                size, latest = found.get(path, (0, 0))
                found[path] = (size + item.size, max(latest, item.modified))
        return found

    def discard(self, path: str) -> None:
        """Removes a package with all versions of its objects, its manifest first.

        Raises:
            StoreError: If the store does not answer, or refuses.
        """
        names = [item.name for item in self.bucket.objects(f"{path}/")]
        manifest = f"{path}/{MANIFEST}"
        self.bucket.remove([manifest, *(name for name in names if name != manifest)])
        _drop(self.cache / path)

    def fetch(self, version: Version, folder: Path) -> Package:
        """Reads a version's package out of the store into a folder, every byte checked against the ledger.

        Raises:
            NotFound: If the store does not have it.
            StoreError: If it is not the one that was registered, in none of its versions, or cannot be fetched.
        """
        path = version.path
        manifest = self._manifest(version)
        contents = {
            name: self._whole(f"{path}/{name}", entry["sha256"], entry["object"])
            for name, entry in manifest["files"].items()
        }
        try:
            package = write_package(
                folder,
                name=version.model,
                version=version.version,
                files=contents,
                created=manifest["created"],
                kind=manifest["kind"],
            )
        except Conflict:
            # Another process fetched it meanwhile.
            package = read_package(folder)
        return self._checked(package, version)

    def holds(self, version: Version) -> bool:
        """Says whether the store has a version's package, by its manifest, which is written last."""
        try:
            return bool(self._manifest(version))
        except NotFound:
            return False

    def put_back(self, path: str, package: Package) -> None:
        """Writes a package of a backup to the place that the ledger names."""
        files = {name: package.bytes(name) for name in package.files}
        self._write(path, package.name, files, created=package.created, kind=package.kind)

    def _manifest(self, version: Version) -> dict[str, Any]:
        name = f"{version.path}/{MANIFEST}"
        shown = f"{self.bucket.location}/{version.path}"
        damaged: StoreError | None = None
        for content in self._contents(name, None):
            try:
                manifest = unsealed(shown, content)
            except StoreError as error:
                damaged = error
                continue
            if manifest["digest"] == version.digest and manifest["name"] == version.model:
                return manifest
            damaged = StoreError(f"package {shown} is not the one that was registered as {version.name}")
        raise damaged or NotFound("package", shown)

    def _whole(self, name: str, sha256: str, version: str | None) -> bytes:
        for content in self._contents(name, version):
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
        raise StoreError(
            f"object {self.bucket.location}/{name} is gone or was changed, and no version of it has the bytes that "
            "were written; restore it from a backup"
        )

    def _contents(self, name: str, version: str | None) -> Any:
        """Gives what an object holds: the version that was written, or the latest; then each that is kept of it."""
        with contextlib.suppress(NotFound):
            yield self.bucket.get(name, version)
        for other in self.bucket.versions(name):
            with contextlib.suppress(NotFound):
                yield self.bucket.get(name, other)

    def _checked(self, package: Package, version: Version) -> Package:
        if package.digest != version.digest or (package.name, package.version) != (version.model, version.version):
            raise StoreError(f"package {package.folder} is not the one that was registered as {version.name}")
        return package

    def _make_room(self) -> None:
        with exclusive(self.cache / ".lock"):
            kept = []
            for folder in self.cache.glob("*/*"):
                with contextlib.suppress(FileNotFoundError):
                    size = sum(file.stat().st_size for file in folder.iterdir())
                    kept.append((folder.stat().st_mtime, size, folder))
            total = sum(size for _, size, _ in kept)
            for used, size, folder in sorted(kept):
                if total <= self._cache_bytes or used > time.time() - _IN_USE_SECONDS:
                    return
                _drop(folder)
                total -= size


def package_path(item: Stored) -> str:
    """Returns the package that an object belongs to, as model and id; empty for any other object."""
    parts = item.name.split("/")
    return "/".join(parts[:2]) if len(parts) == 3 else ""


def _drop(folder: Path) -> None:
    # Gone at once for who looks for it; a name that begins with a dot is never a package's.
    gone = folder.with_name(f".{folder.name}.new-{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
