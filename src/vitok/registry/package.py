"""A model package: a folder with everything one version is made of, and a manifest with the checksum of each file."""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitok.clock import isoformat
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry.files import sync_folder, write_durable

MANIFEST = "manifest.json"
MODEL_ONNX = "model.onnx"
MODEL_FOREST = "model.forest"
MODEL_NATIVE = "model.txt"
SIGNATURE = "signature.json"
FEATURES = "features.json"
CALIBRATOR = "calibrator.json"
POLICY = "policy.json"
PROFILE = "profile.json"
METRICS = "metrics.json"
EXAMPLES = "examples.json"

FORMAT = 1
_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Content = bytes | str | Path | Mapping[str, Any] | list[Any]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What the manifest says of one file.

    Attributes:
        sha256: SHA-256 of the file's bytes, in hexadecimal.
        size: Length in bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Package:
    """One version's files, as they stood when they were written.

    Attributes:
        folder: Where it lies.
        name: Name of the model.
        version: Its number, from 1.
        created: When it was written, in microseconds.
        kind: What the package holds, such as `"model"`.
        files: File name to checksum and size.
        digest: SHA-256 over names and checksums of all files: equal contents have equal digests, whatever the
            version.
    """

    folder: Path
    name: str
    version: int
    created: int
    kind: str
    files: Mapping[str, FileEntry] = field(repr=False)
    digest: str

    def path(self, name: str) -> Path:
        """Returns where a file of the package lies.

        Raises:
            NotFound: If the package has no such file.
        """
        if name not in self.files:
            raise NotFound("file of the package", name, sorted(self.files))
        return self.folder / name

    def bytes(self, name: str) -> bytes:
        """Reads a file, and checks it once more: what is returned is what the manifest promises.

        Raises:
            NotFound: If the package has no such file.
            StoreError: If the file is not what it was.
        """
        path = self.path(name)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"package {self.folder}: file {name} cannot be read: {error}") from error
        _check(self.folder, name, self.files[name], len(content), hashlib.sha256(content).hexdigest())
        return content

    def text(self, name: str) -> str:
        """Reads a file as UTF-8 text."""
        return self.bytes(name).decode()

    def json(self, name: str) -> Any:
        """Reads a file as JSON."""
        return json.loads(self.bytes(name))

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __str__(self) -> str:
        size = sum(entry.size for entry in self.files.values())
        return (
            f"{self.name}/{self.version} ({self.kind}, {len(self.files)} files, {size:,} bytes, "
            f"written {isoformat(self.created)}, digest {self.digest[:12]})"
        )


def check_model_name(name: str) -> str:
    """Returns a model's name if it can be the name of a folder on any system.

    Raises:
        InvalidInput: If it has other signs than small letters, digits, `_` and `-`, or is too long.

    Example:
        >>> check_model_name("fraud")
        'fraud'
    """
    if not isinstance(name, str) or not _MODEL_NAME.fullmatch(name):
        raise InvalidInput("model", name, "be 1 to 64 small letters, digits, _ or -, starting with a letter or digit")
    return name


def write_package(
    folder: Path,
    *,
    name: str,
    version: int,
    files: Mapping[str, Content],
    created: int,
    kind: str = "model",
) -> Package:
    """Writes a package as a whole or not at all: into a folder beside, which is then renamed.

    Args:
        folder: Where the package will lie; its parent is made where it does not exist.
        name: Name of the model.
        version: Its number, at least 1.
        files: File name to contents: bytes, text, something that becomes JSON, or the path of a file to copy.
        created: The present, in microseconds.
        kind: What the package holds.

    Returns:
        The package as read back.

    Raises:
        InvalidInput: If a name or a content cannot be stored; NaN and infinities are not JSON.
        Conflict: If the folder exists already.
        StoreError: If the disk is full or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     package = write_package(
        ...         Path(home) / "1", name="fraud", version=1, created=0,
        ...         files={"model.onnx": b"weights", "signature.json": {"inputs": ["amount"]}},
        ...     )
        ...     package.json("signature.json")
        {'inputs': ['amount']}
    """
    check_model_name(name)
    if version < 1:
        raise InvalidInput("version", version, "be at least 1")
    contents = contents_of(files)
    folder = Path(folder)
    temporary = folder.parent / f".{folder.name}.new-{uuid.uuid4().hex}"
    try:
        if folder.exists():
            raise Conflict(f"package {folder} exists already; a package is never written twice")
        temporary.mkdir(parents=True)
        entries = {}
        for file in sorted(contents):
            write_durable(temporary / file, contents[file])
            entries[file] = {"sha256": hashlib.sha256(contents[file]).hexdigest(), "size": len(contents[file])}
        manifest = {
            "format": FORMAT,
            "kind": kind,
            "name": name,
            "version": version,
            "created": created,
            "digest": digest_of(entries),
            "files": entries,
        }
        write_durable(temporary / MANIFEST, sealed(manifest))
        sync_folder(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if folder.exists():
                raise Conflict(f"package {folder} was written by somebody else just now") from None
            raise
        sync_folder(folder.parent)
    except OSError as error:
        raise StoreError(f"package {folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_package(folder)


def read_package(folder: Path) -> Package:
    """Reads a package and checks every byte of it.

    Args:
        folder: Where the package lies.

    Returns:
        The package.

    Raises:
        NotFound: If there is no package.
        StoreError: If a file is missing, added or changed, or the manifest is damaged; the message names the file.
    """
    folder = Path(folder)
    try:
        raw = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("package", str(folder), _beside(folder)) from None
    except OSError as error:
        raise StoreError(f"package {folder}: {MANIFEST} cannot be read: {error}") from error
    manifest = unsealed(folder, raw)
    entries = {name: FileEntry(**entry) for name, entry in manifest["files"].items()}
    present = {entry.name for entry in os.scandir(folder)} - {MANIFEST}
    for name in sorted(present - entries.keys()):
        raise StoreError(f"package {folder}: file {name} was added after the package was written")
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise StoreError(f"package {folder}: file {name} is missing")
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(f"package {folder}: file {name} cannot be read: {error}") from error
        _check(folder, name, entry, path.stat().st_size, sha256)
    return Package(
        folder=folder,
        name=manifest["name"],
        version=manifest["version"],
        created=manifest["created"],
        kind=manifest["kind"],
        files=entries,
        digest=manifest["digest"],
    )


def contents_of(files: Mapping[str, Content]) -> dict[str, bytes]:
    """Returns the bytes of a package's files, by name.

    Raises:
        InvalidInput: If there is no file, or a name or a content cannot be stored.
    """
    if not files:
        raise InvalidInput("files", dict(files), "hold at least one file")
    return {name: _encoded(name, content) for name, content in files.items()}


def _encoded(name: str, content: Content) -> bytes:
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name) or name == MANIFEST:
        raise InvalidInput("files", name, f"be a plain file name of letters, digits, _ . -, and not {MANIFEST}")
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    if isinstance(content, Path):
        try:
            return content.read_bytes()
        except OSError as error:
            raise InvalidInput(f"files[{name}]", str(content), "be the path of a readable file") from error
    try:
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"files[{name}]", content, f"become JSON ({error})", "Write a number, text or None"
        ) from None


def digest_of(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the digest of a package from the checksum of each file, `{"sha256": ...}`, by name."""
    lines = "".join(f"{entries[name]['sha256']}  {name}\n" for name in sorted(entries))
    return hashlib.sha256(lines.encode()).hexdigest()


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """Writes a manifest with its own checksum."""
    body = json.dumps(manifest, indent=1)
    return json.dumps({**manifest, "seal": hashlib.sha256(body.encode()).hexdigest()}, indent=1).encode() + b"\n"


def unsealed(folder: Path | str, raw: bytes) -> dict[str, Any]:
    """Reads what `sealed` wrote.

    Args:
        folder: Where it lies, for errors.
        raw: The manifest's bytes.

    Raises:
        StoreError: If it was changed, or is of another format.
    """
    damaged = StoreError(f"package {folder}: file {MANIFEST} was changed after the package was written")
    try:
        manifest = json.loads(raw)
    except ValueError:
        raise damaged from None
    if not isinstance(manifest, dict) or "seal" not in manifest:
        raise damaged
    # The seal is checked by writing the manifest again: then a changed space counts as well as a changed letter.
    body = {name: value for name, value in manifest.items() if name != "seal"}
    if sealed(body) != raw:
        raise damaged
    if body["format"] != FORMAT:
        raise StoreError(f"package {folder}: format {body['format']} is not known here; vitok reads format {FORMAT}")
    return body


def _check(folder: Path, name: str, entry: FileEntry, size: int, sha256: str) -> None:
    if size != entry.size:
        raise StoreError(f"package {folder}: file {name} was changed: it has {size} bytes, {entry.size} were written")
    if sha256 != entry.sha256:
        raise StoreError(f"package {folder}: file {name} was changed: its SHA-256 is not the one that was written")


def _beside(folder: Path) -> list[str]:
    if not folder.parent.is_dir():
        return []
    return sorted(entry.name for entry in folder.parent.iterdir() if (entry / MANIFEST).is_file())
