"""The registry: packages, and the ledger that says where each version stands, kept in step."""

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from vitok import settings
from vitok.engines.address import hidden
from vitok.engines.postgres import is_postgres
from vitok.engines.s3 import is_s3
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry.attachment import CACHE, attachment_of
from vitok.registry.files import check_whole, exclusive
from vitok.registry.ledger import Ledger
from vitok.registry.object_packages import CACHE_BYTES, ObjectPackages
from vitok.registry.package import Content, Package, check_model_name, read_package, write_package
from vitok.registry.stages import ModelState, Version


class Registry:
    """All versions of all models: under one folder, or in PostgreSQL and an S3-compatible store.

    A home may go by the registry of another home, or by one for many writers, see `attach`; then that one is opened.

    A folder has `home/registry/packages/<model>/<version>/` and `home/registry/ledger.sqlite`. A version exists
    when its ledger entry does: a package is put in its place first, and one without an entry (a crash came between)
    is set aside when the registry is opened next.

    For many writers on many machines, name a database and a bucket. The same holds: objects are written before the
    ledger names them, and what it does not name does not exist. Packages that are loaded are kept in a folder of this
    machine, and each time checked against the ledger.

    Args:
        home: Folder of everything vitok writes, made where it does not exist; or `postgresql://user@host/database`.
        packages: Address of the packages where `home` is a database:
            `s3://bucket/prefix?endpoint=https://host:port&region=name`; keys come from the environment.
        cache: Folder for the packages in use; by default one in the settings' home. Only with a database.
        cache_bytes: How much that folder holds.

    Raises:
        InvalidInput: If an address is missing, or none of these.
        StoreError: If the folder or the database cannot be used.
        MissingExtra: If psycopg or boto3 is needed and not installed.

    Example:
        >>> import tempfile
        >>> home = tempfile.TemporaryDirectory()
        >>> registry = Registry(home.name)
        >>> print(registry.register("fraud", {"model.onnx": b"weights"}, now=0, actor="train"))
        fraud/1 None (no gate, registered 1970-01-01T00:00:00Z)
        >>> registry.load("fraud", 1).bytes("model.onnx")
        b'weights'
        >>> registry.close(); home.cleanup()
    """

    def __init__(
        self,
        home: str | Path,
        *,
        packages: str | None = None,
        cache: Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._named = (home, packages, cache, cache_bytes)
        self.objects: ObjectPackages | None = None
        self.packages: Path
        if isinstance(home, str) and "://" in home:
            if packages is not None:
                name = hashlib.sha256(packages.encode()).hexdigest()[:12]
                cache = cache or settings.current().home / "registry-cache" / name
            self._open_stores(home, packages, cache, cache_bytes)
            self.home = self.packages.parent
            return
        if packages is not None or cache is not None:
            raise InvalidInput("packages, cache", (packages, cache), "be left out where the registry is a folder")
        self.home = Path(home)
        check_whole(self.home)
        attached = attachment_of(self.home)
        if attached is not None and attached.folder is None:
            # By its address: what was known of one database is never taken for what another has.
            name = f"ledger-{hashlib.sha256(attached.registry.encode()).hexdigest()[:12]}.sqlite"
            copy = self.home / CACHE / name
            self._open_stores(attached.registry, attached.packages, self.home / CACHE, cache_bytes, copy=copy)
            return
        owner = self.home if attached is None or attached.folder is None else attached.folder
        check_whole(owner)
        self._root = owner / "registry"
        self._lock = self._root / "register.lock"
        self.packages = self._root / "packages"
        try:
            self.packages.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"registry {self._root} cannot be made: {error}") from error
        self.ledger = Ledger(self._root / "ledger.sqlite")
        self.repair()

    def _open_stores(
        self,
        database: str,
        packages: str | None,
        cache: Path | None,
        cache_bytes: int,
        *,
        copy: Path | None = None,
    ) -> None:
        if not is_postgres(database):
            raise InvalidInput("home", hidden(database), "be a folder, or look like postgresql://user@host/database")
        if packages is None or cache is None or not is_s3(packages):
            raise InvalidInput("packages", packages, "look like s3://bucket/prefix where the ledger is in a database")
        self.packages = cache / "packages"
        self.objects = ObjectPackages(packages, cache=self.packages, cache_bytes=cache_bytes)
        self.ledger = Ledger(database, copy=copy)

    def __reduce__(self) -> tuple[object, tuple[str | Path, str | None, Path | None, int]]:
        return _opened, self._named

    def __repr__(self) -> str:
        if self.objects is not None:
            return f"Registry({hidden(str(self.ledger.place))!r}, packages={self.objects.bucket.url!r})"
        return f"Registry({str(self.home)!r})"

    @property
    def location(self) -> str:
        """Where the packages lie, each below it by its version's path: a folder, or `s3://bucket/prefix`."""
        return str(self.packages) if self.objects is None else self.objects.bucket.location

    def problem(self) -> str:
        """Says why what the ledger says may be old: its database does not answer. Empty where all is well.

        Nobody is asked; it is for a page that says whether a service is ready.
        """
        return self.ledger.problem()

    def close(self) -> None:
        """Closes the ledger."""
        self.ledger.close()

    def register(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        now: int,
        actor: str,
        run_id: str | None = None,
        reason: str = "registered",
        key: str | None = None,
    ) -> Version:
        """Writes a package and enters it as the next version.

        Args:
            name: Name of the model.
            files: File name to contents, as in `write_package`.
            now: The present, in microseconds.
            actor: Who registers it.
            run_id: The training run that made it.
            reason: Why, in words.
            key: Idempotency key: the same key again returns the version that was made first.

        Returns:
            The version, in stage None.

        Raises:
            InvalidInput: If a name or a content cannot be stored.
            Conflict: If the key came with something else, or other processes registered all the time.
            StoreError: If the disk is full or cannot be written; nothing is left behind.
        """
        check_model_name(name)
        if self.objects is not None:
            made = self._made_before(name, key)
            return made or self._upload(
                self.objects, name, files, now=now, actor=actor, run_id=run_id, reason=reason, key=key
            )
        with exclusive(self._lock):
            made = self._made_before(name, key)
            if made is not None:
                return made
            number = self.state(name).latest + 1
            folder = self.packages / name / str(number)
            if folder.exists():
                _set_aside(folder)
            package = write_package(folder, name=name, version=number, files=files, created=now)
            try:
                self.ledger.register(
                    name,
                    digest=package.digest,
                    path=f"{name}/{number}",
                    run_id=run_id,
                    reason=reason,
                    now=now,
                    actor=actor,
                    expected=number,
                    key=key,
                )
            except BaseException:
                if self.state(name).latest < number:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
        return self.state(name).version(number)

    def _made_before(self, name: str, key: str | None) -> Version | None:
        entry = None if key is None else self.ledger.entry(name, key)
        if entry is None or entry.kind != "registered" or entry.version is None:
            return None
        return self._version(name, entry.version)

    def _version(self, name: str, number: int) -> Version:
        if number > self.state(name).latest:
            self.ledger.catch_up()
        return self.state(name).version(number)

    def _upload(
        self,
        objects: ObjectPackages,
        name: str,
        files: Mapping[str, Content],
        *,
        now: int,
        actor: str,
        run_id: str | None,
        reason: str,
        key: str | None,
    ) -> Version:
        upload = objects.upload(name, files, created=now)
        try:
            number = self.ledger.register(
                name,
                digest=upload.digest,
                path=upload.path,
                run_id=run_id,
                reason=reason,
                now=now,
                actor=actor,
                key=key,
            )
        except (Conflict, InvalidInput):
            objects.discard(upload.path)
            raise
        # After any other error the ledger may name it; what it does not name, a clean-up finds.
        version = self._version(name, number)
        if version.path == upload.path:
            objects.keep(version, files, created=now)
        else:
            with contextlib.suppress(StoreError):
                objects.discard(upload.path)
        return version

    def load(self, name: str, version: int | str = "Production") -> Package:
        """Reads a version's package, and checks every byte of it against manifest and ledger.

        Args:
            name: Name of the model.
            version: A number, a stage (`"Production"`, or `"Staging"` for the newest there), `"canary"` or `"latest"`.

        Raises:
            NotFound: If there is no such model, version, or package.
            StoreError: If the package is not the one that was registered.
        """
        entry = self.state(name).resolve(version)
        if entry.removed:
            kept = [version.name for version in self.state(name).versions if not version.removed]
            raise NotFound("package", f"{entry.name}, which was removed,", kept)
        if self.objects is not None:
            return self.objects.load(entry)
        package = read_package(self.packages / entry.path)
        if package.digest != entry.digest or (package.name, package.version) != (entry.model, entry.version):
            raise StoreError(f"package {package.folder} is not the one that was registered as {entry.name}")
        return package

    def versions(self, name: str) -> tuple[Version, ...]:
        """Returns all versions of a model, by number.

        Raises:
            NotFound: If there is no such model.
        """
        state = self.state(name)
        if not state.versions:
            raise NotFound("model", name, self.ledger.models())
        return state.versions

    def state(self, name: str) -> ModelState:
        """Returns where a model stands; of an unknown model, the empty state."""
        return self.ledger.state(name)

    def repair(self) -> tuple[Path, ...]:
        """Clears away what a crash left in a folder; done on opening. A package with a ledger entry is never touched.

        Files half written are removed. A whole package that never came into the ledger is set aside under a name
        that starts with `.orphan-`, not deleted.

        Returns:
            The folders that were cleared away.

        Raises:
            StoreError: If there are more packages than a crash can leave: then the ledger is older than they are.
        """
        if self.objects is not None or not self._left_over():
            return ()
        with exclusive(self._lock):
            found = self._left_over()
            for folder in found:
                if folder.name.isdecimal():
                    _set_aside(folder)
                else:
                    shutil.rmtree(folder, ignore_errors=True)
        return tuple(found)

    def _left_over(self) -> list[Path]:
        found = []
        for model in [folder for folder in self.packages.iterdir() if folder.is_dir()]:
            # Folders before ledger: a folder's entry can come while we look, an entry's folder is always there.
            folders = list(model.iterdir())
            latest = self.state(model.name).latest
            numbers = [int(folder.name) for folder in folders if folder.name.isdecimal()]
            if max(numbers, default=0) > latest + 1:
                raise StoreError(
                    f"registry {self._root}: the ledger knows {latest} versions of {model.name}, but package "
                    f"{max(numbers)} is there; the ledger is older than the packages, put the right one back"
                )
            found += [folder for folder in folders if folder.name.isdecimal() and int(folder.name) > latest]
            found += [folder for folder in folders if folder.name.startswith(".") and ".new-" in folder.name]
        return sorted(found)


def _opened(home: str | Path, packages: str | None, cache: Path | None, cache_bytes: int) -> Registry:
    return Registry(home, packages=packages, cache=cache, cache_bytes=cache_bytes)


def _set_aside(folder: Path) -> None:
    folder.rename(folder.with_name(f".orphan-{folder.name}-{uuid.uuid4().hex[:8]}"))
