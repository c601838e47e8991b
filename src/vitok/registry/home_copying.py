"""A home's registry and runs copied into a database and a bucket, and compared with what they were."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vitok.engines.address import hidden
from vitok.engines.postgres import alone
from vitok.engines.s3 import Bucket
from vitok.errors import Conflict, NotFound, StoreError
from vitok.registry.attachment import LEDGER
from vitok.registry.package import read_package
from vitok.registry.registry import Registry
from vitok.registry.run_copying import CopiedRuns, copy_runs
from vitok.registry.shared_backup import stores_of, versions_of
from vitok.registry.stages import Entry, Version
from vitok.registry.storage import EntryStore, Verification
from vitok.registry.tracking import Tracker

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CopiedHome:
    """What a database and a bucket have of a home.

    Attributes:
        home: The home; it is as it was.
        database: Address of the database, as it may be shown.
        ledger: The check of the ledger there; None where the home has no versions, or no registry was named.
        n_packages: Packages there, each loaded from there and found as it was registered.
        runs: What came of the runs; None where the home has none, or no tracker was named.
        n_files: Files of runs there, each compared by its digest.
        left: What was left behind, in words.
    """

    home: Path
    database: str
    ledger: Verification | None
    n_packages: int
    runs: CopiedRuns | None
    n_files: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        told = [f"{self.database} has what {self.home} had:"]
        if self.ledger is not None:
            told.append(f"  {self.n_packages:,} packages; {self.ledger}")
        if self.runs is not None:
            before = f" ({self.runs.n_before:,} of them before)" if self.runs.n_before else ""
            told.append(
                f"  {self.runs.n_runs + self.runs.n_before:,} runs{before} of {self.runs.n_experiments:,} experiments, "
                f"{self.runs.n_points:,} points of metrics, {self.runs.n_models:,} logged models, "
                f"{self.n_files:,} files"
            )
        return "\n".join(told + [f"  left behind: {what}" for what in self.left])


def copy_home(
    home: str | Path,
    database: str,
    *,
    registry: Registry | None = None,
    tracker: Tracker | None = None,
    bucket: Bucket | None = None,
    unfinished: bool = False,
) -> CopiedHome:
    """Copies versions, packages, runs and the files of runs of a home into a database and a bucket.

    The ledger is copied entry by entry as it is, so that its chain of hashes holds; therefore into an empty one only,
    and last, when all that it names is there. Runs may come to others. What is there already is compared and left as
    it is: the same call again goes on with the rest, and at the end finds nothing to do. The home is only read.

    Args:
        home: Folder of everything vitok writes.
        database: Address of the database.
        registry: The registry in that database; None to leave the versions behind.
        tracker: The runs in that database; None to leave the runs behind.
        bucket: Where the files of its runs lie.
        unfinished: Whether to copy runs as well that say that they are still going on.

    Raises:
        NotFound: If there is no home.
        Conflict: If the ledger there is another's, a run or a file is there with other contents, or somebody else
            copies into the database now.
        StoreError: If something is damaged, or cannot be read or written.
    """
    home = Path(home).resolve()
    if not home.is_dir():
        raise NotFound("home", str(home))
    with alone(database, "copy of a home", wait_seconds=1.0):
        runs, n_files = None, 0
        if tracker is not None and (home / "mlflow.db").exists():
            n_files = 0 if bucket is None else _files(home / "mlartifacts", bucket)
            runs = _runs(home, tracker, unfinished=unfinished)
        ledger: Verification | None = None
        n_packages, missing = 0, tuple[str, ...]()
        if registry is not None and (home / LEDGER).exists():
            ledger, n_packages, missing = _versions(home, registry)
            if tracker is not None and runs is not None:
                for model in registry.ledger.models():
                    tracker.mirror(registry.state(model), packages=registry.location)
    return CopiedHome(
        home=home,
        database=hidden(database),
        ledger=ledger,
        n_packages=n_packages,
        runs=runs,
        n_files=n_files,
        left=(
            *(() if runs is None else runs.left),
            *(f"package {path}, which the home does not have" for path in missing),
        ),
    )


def _versions(home: Path, registry: Registry) -> tuple[Verification | None, int, tuple[str, ...]]:
    objects, database = stores_of(registry)
    entries, head = _own(home)
    if not entries:
        return None, 0, ()
    if registry.ledger.catch_up() and not registry.ledger.verify(head=head).intact:
        raise Conflict(
            f"the ledger in {hidden(database)} has entries, and does not go on from those of {home}: two ledgers "
            "cannot become one; name another database"
        )
    missing: list[str] = []
    versions: list[Version] = []
    for version in versions_of(entries):
        try:
            package = read_package(home / LEDGER.parent / "packages" / version.path)
        except NotFound:
            missing.append(version.path)
            continue
        if package.digest != version.digest:
            raise StoreError(f"package {package.folder} is not the one that was registered as {version.name}")
        versions.append(version)
        if not objects.holds(version):
            objects.put_back(version.path, package)
    if not registry.ledger.catch_up():
        registry.ledger.take_over(entries)
    checked = registry.ledger.verify(head=head)
    if not checked.intact:
        raise StoreError(f"copy of {home}: {checked}")
    for version in versions:
        objects.load(version)
    return checked, len(versions), tuple(missing)


def _own(home: Path) -> tuple[list[Entry], str]:
    store = EntryStore(home / LEDGER)
    try:
        checked = store.verify()
        if not checked.intact:
            raise StoreError(f"{home}: {checked}")
        entries = store.read("seq <= ?", (checked.n_entries,))
    finally:
        store.close()
    return entries, checked.head


def _runs(home: Path, tracker: Tracker, *, unfinished: bool) -> CopiedRuns:
    tracker.make()
    folder = home / "mlartifacts"

    def address(given: str) -> str:
        for root in (folder.as_uri(), str(folder)):
            if given == root or given.startswith(f"{root}/"):
                return tracker.artifact_root + given.removeprefix(root)
        # Not ours, and reached from anywhere or from nowhere: as it was.
        return given

    return copy_runs(
        home / "mlflow.db", tracker.uri, experiment=tracker.take_over, address=address, unfinished=unfinished
    )


def _files(folder: Path, bucket: Bucket) -> int:
    present = {item.name for item in bucket.objects()}
    count = 0
    with tempfile.TemporaryDirectory(prefix="vitok-copy-") as place:
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or path.is_symlink():
                continue
            name = path.relative_to(folder).as_posix()
            there = name in present
            if not there:
                bucket.put_file(name, path)
            fetched = Path(place) / "fetched"
            bucket.get_file(name, fetched)
            if _digest(fetched) != _digest(path):
                if there:
                    raise Conflict(f"{bucket.location}/{name} is there already, and with other contents than {path}")
                raise StoreError(f"{bucket.location}/{name}: what was read back is not what was written")
            count += 1
    return count


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
