"""Clean-up of what no stage, decision or run refers to; what was decided with a version keeps its package."""

import contextlib
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from vitok.clock import DAY, duration
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.registry.attachment import attachment_of
from vitok.registry.files import exclusive
from vitok.registry.registry import Registry
from vitok.registry.stages import Version

Kind = Literal["package", "artifacts", "left over"]

RUNS_QUERY = "SELECT run_uuid, lifecycle_stage, artifact_uri, deleted_time FROM runs"
_VERSIONS = """
SELECT DISTINCT model_version FROM decisions WHERE model_version IS NOT NULL
UNION SELECT DISTINCT shadow_version FROM decisions WHERE shadow_version IS NOT NULL
"""
UNUSED_FILES = "their run was deleted, and no version that stays was made by it"
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One folder that is removed, or would be.

    Attributes:
        kind: What it is.
        name: The version, the run, or the folder's name.
        path: Where it lies: a folder, or an address.
        size: Its size, in bytes.
        why: Why nothing refers to it.
    """

    kind: Kind
    name: str
    path: Path | str
    size: int
    why: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} ({_size(self.size)}): {self.why}"


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What a clean-up removed, or would remove.

    Attributes:
        dry_run: Whether nothing was removed.
        removals: What was removed, or would be.
        kept: Versions that never came to a stage and are old enough, and why they are kept.
    """

    dry_run: bool
    removals: tuple[Removal, ...]
    kept: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Bytes of all removals."""
        return sum(removal.size for removal in self.removals)

    def __str__(self) -> str:
        verb = "would be removed" if self.dry_run else "removed"
        noun = "folder" if len(self.removals) == 1 else "folders"
        lines = [f"{_size(self.size)} in {len(self.removals)} {noun} {verb}"]
        lines += [f"  {removal}" for removal in self.removals]
        lines += [f"  kept {name}: {why}" for name, why in self.kept]
        return "\n".join(lines)


@dataclass(frozen=True)
class Runs:
    """The runs of a store.

    Attributes:
        present: Those that are there.
        deleted: Those that were deleted: id, address of its files, and when, in microseconds.
    """

    present: frozenset[str]
    deleted: tuple[tuple[str, str, int], ...]


def clean(
    home: str | Path,
    *,
    now: int,
    actor: str,
    older_than: str | int = 30 * DAY,
    logs: Sequence[Path] | None = None,
    dry_run: bool = True,
) -> Cleaned:
    """Removes packages, artifacts and left-over folders that nothing refers to.

    A package goes where its version was never in Staging or Production, never a canary, never proposed, is not the
    latest, no decision in the logs names it (as the version that answered or as a shadow), its run is not there any
    more, and it is old enough. The ledger keeps an entry `removed`, and the version never comes to a stage. Artifacts
    go where their run was deleted in MLflow that long ago and no version that stays was made by it. Folders that a
    crash left beside packages go by their age.

    Args:
        home: Folder of everything vitok writes.
        now: The present, in microseconds.
        actor: Who cleans up; the ledger keeps it.
        older_than: How old, such as `"30d"`, or in microseconds.
        logs: Folders above logs of decisions; `home/log` by default. Name every log that these models answer to:
            what it does not see, it cannot keep.
        dry_run: Only say what would be removed.

    Raises:
        InvalidInput: If the age is no length of time, or the home goes by another registry than its own.
        NotFound: If a log that was named is not there.
        StoreError: If a store cannot be read; nothing is removed then.

    Example:
        >>> import tempfile
        >>> place = tempfile.TemporaryDirectory()
        >>> registry = Registry(place.name)
        >>> for weights in (b"first", b"second"):
        ...     _ = registry.register("fraud", {"model.onnx": weights}, now=0, actor="train")
        >>> for removal in clean(place.name, now=40 * DAY, actor="ann").removals:
        ...     print(removal.kind, removal.name, removal.why)
        package fraud/1 never in a stage, and no decision or run names it
        >>> registry.close(); place.cleanup()
    """
    home = Path(home).resolve()
    attached = attachment_of(home)
    if attached is not None:
        raise InvalidInput("home", str(home), f"have a registry of its own; it goes by {attached}: clean that one up")
    before = now - duration(older_than)
    registry = Registry(home)
    try:
        runs = _runs(home / "mlflow.db")
        named = decided(logs if logs is not None else [folder for folder in (home / "log",) if folder.is_dir()])
        packages, kept, makers = unused_packages(registry, named, runs, before, look=_looking_at(registry.packages))
        removals = [*packages, *_artifacts(home, runs, makers, before), *_left_over(registry, before)]
        if not dry_run:
            removals = [removal for removal in removals if _remove(registry, removal, now=now, actor=actor)]
        return Cleaned(dry_run=dry_run, removals=tuple(removals), kept=tuple(kept))
    finally:
        registry.close()


def unused_packages(
    registry: Registry,
    named: frozenset[str],
    runs: Runs,
    before: int,
    *,
    look: Callable[[Version], tuple[Path | str, int] | None],
) -> tuple[list[Removal], list[tuple[str, str]], set[str]]:
    """Finds the packages that nothing refers to.

    Args:
        registry: The registry.
        named: The versions that decisions name.
        runs: The runs of its store.
        before: Only versions that were registered by then, in microseconds.
        look: Says where a version's package lies and how large it is; None where it is not there.

    Returns:
        The packages to remove, what is kept and why, and the runs that made a version that stays.
    """
    removals, kept, makers = [], [], set()
    for model in registry.ledger.models():
        state = registry.state(model)
        stood = {
            entry.version for entry in registry.ledger.history(model) if entry.kind in ("promoted", "canary_started")
        }
        for version in state.versions:
            why = "" if version.removed else _why_kept(version, stood, state.latest, named, runs)
            if not why and version.registered <= before:
                found = look(version)
                if found is not None:
                    told = "never in a stage, and no decision or run names it"
                    removals.append(Removal(kind="package", name=version.name, path=found[0], size=found[1], why=told))
                continue
            if version.run_id is not None and not version.removed:
                makers.add(version.run_id)
            if why and version.version not in stood and version.registered <= before:
                kept.append((version.name, why))
    return removals, kept, makers


def _looking_at(packages: Path) -> Callable[[Version], tuple[Path | str, int] | None]:
    def look(version: Version) -> tuple[Path | str, int] | None:
        folder = packages / version.path
        return (folder, _folder_size(folder)) if folder.exists() else None

    return look


def _why_kept(version: Version, stood: set[int | None], latest: int, named: frozenset[str], runs: Runs) -> str:
    if version.version in stood:
        return "it was in a stage"
    if version.stage not in ("None", "Archived") or version.proposed_by is not None:
        return "it is proposed"
    if version.version == latest:
        return "it is the latest"
    if version.name in named:
        return "decisions in the log name it"
    if version.run_id in runs.present:
        return f"its run {version.run_id} is there"
    return ""


def _artifacts(home: Path, runs: Runs, makers: set[str], before: int) -> list[Removal]:
    top = home / "mlartifacts"
    found = []
    for run_id, address, deleted in runs.deleted:
        folder = Path(os.path.normpath(unquote(urlparse(address).path))).parent
        if deleted <= before and run_id not in makers and top in folder.parents and folder.is_dir():
            found.append(_removal("artifacts", run_id, folder, UNUSED_FILES))
    return found


def _left_over(registry: Registry, before: int) -> list[Removal]:
    found = []
    for model in sorted(path for path in registry.packages.iterdir() if path.is_dir()):
        for folder in sorted(model.iterdir()):
            left = folder.name.startswith(".orphan-") or (folder.name.startswith(".") and ".new-" in folder.name)
            if left and folder.stat().st_mtime_ns // 1000 <= before:
                name = f"{model.name}/{folder.name}"
                found.append(_removal("left over", name, folder, "no entry of the ledger names it"))
    return found


def _remove(registry: Registry, removal: Removal, *, now: int, actor: str) -> bool:
    """Removes a folder; False where somebody needs it since it was looked at."""
    if removal.kind == "package":
        model, _, number = removal.name.partition("/")
        with exclusive(registry.packages.parent / "register.lock"):
            if not registry.state(model).version(int(number)).removed:
                try:
                    registry.ledger.remove(model, int(number), reason=removal.why, actor=actor, now=now)
                except Conflict:
                    return False
    assert isinstance(removal.path, Path)  # noqa: S101
    try:
        # Gone at once for who reads; a crash then leaves a folder that the registry clears away when it is opened.
        gone = removal.path.with_name(f".{removal.path.name}.new-{uuid.uuid4().hex}")
        removal.path.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise StoreError(f"{removal.path} cannot be removed: {error}") from error
    return True


def decided(logs: Sequence[Path]) -> frozenset[str]:
    """Returns the versions that decisions name, such as `"fraud/3"`.

    Args:
        logs: Folders above logs of decisions.

    Raises:
        NotFound: If one is not there.
    """
    from vitok import decisions

    return frozenset(name for folder in logs for (name,) in decisions.query(folder, _VERSIONS).iter_rows())


def _runs(database: Path) -> Runs:
    if not database.exists():
        return Runs(frozenset(), ())
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30.0)) as connection:
            return runs_of(connection.execute(RUNS_QUERY).fetchall())
    except sqlite3.Error as error:
        raise StoreError(f"MLflow store {database} cannot be read: {error}") from error


def runs_of(rows: Sequence[tuple[str, str, str | None, int | None]]) -> Runs:
    """Makes of the rows of `RUNS_QUERY` which runs there are."""
    return Runs(
        present=frozenset(run_id for run_id, stage, _, _ in rows if stage != "deleted"),
        deleted=tuple(
            (run_id, address or "", time * 1000)
            for run_id, stage, address, time in rows
            if stage == "deleted" and time is not None
        ),
    )


def _removal(kind: Kind, name: str, path: Path, why: str) -> Removal:
    return Removal(kind=kind, name=name, path=path, size=_folder_size(path), why=why)


def _folder_size(path: Path) -> int:
    size = 0
    for place, _, files in os.walk(path):
        for file in files:
            # Somebody else may be removing it.
            with contextlib.suppress(FileNotFoundError):
                size += (Path(place) / file).lstat().st_size
    return size


def _size(size: float) -> str:
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.3g} {unit}"
        size /= 1000
    raise AssertionError(size)
