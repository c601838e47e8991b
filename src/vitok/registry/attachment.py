"""Which registry a home goes by: its own, or one that several homes share; a file in the home says so."""

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from vitok.engines.address import hidden
from vitok.engines.postgres import is_postgres
from vitok.engines.s3 import is_s3
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry.backup_files import CACHE, write_json
from vitok.registry.ledger import Ledger

__all__ = ["CACHE", "FILE", "LEDGER", "Attachment", "attach", "attachment_of", "has_registry"]

FILE = "registry.json"
LEDGER = Path("registry", "ledger.sqlite")


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """The registry that a home goes by instead of its own.

    Attributes:
        registry: A home whose registry it is; or `postgresql://user@host/database`.
        packages: Where packages lie if it is a database, `s3://bucket/prefix?endpoint=...`; None for a folder.
        artifacts: Where the files of runs lie, if runs go to the database as well; None where they stay in the home.
    """

    registry: str
    packages: str | None = None
    artifacts: str | None = None

    @property
    def folder(self) -> Path | None:
        """The home whose registry it is; None of a database."""
        return None if is_postgres(self.registry) else Path(self.registry)

    @property
    def ledger(self) -> str | Path:
        """Where the ledger lies, as `Ledger` takes it."""
        return self.registry if self.folder is None else self.folder / LEDGER

    def __str__(self) -> str:
        return hidden(self.registry)


def attachment_of(home: str | Path) -> Attachment | None:
    """Returns the registry that a home goes by; None where that is its own.

    Raises:
        StoreError: If the file that says so cannot be read, or says something else.
    """
    path = Path(home) / FILE
    try:
        said = json.loads(path.read_bytes())
        return Attachment(**said)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{path} does not say which registry this home goes by: {error}") from error


def has_registry(home: str | Path) -> bool:
    """Says whether a home goes by a registry: its own, which is there, or another."""
    return (Path(home) / LEDGER).exists() or attachment_of(home) is not None


def attach(
    home: str | Path, registry: str | Path, *, packages: str | None = None, artifacts: str | None = None
) -> Attachment:
    """Lets a home go by another registry from now on: `Registry(home)` opens that one, whoever calls it.

    It is kept in a file of the home, and not in the environment: the service, the process that makes versions and
    whoever gives an order at the command line are different processes, and one that did not know of it would begin a
    second ledger. Keys and passwords are never kept there; each process has them from its environment.

    Args:
        home: Folder of everything vitok writes, made where it does not exist.
        registry: A home whose registry it is; or `postgresql://user@host/database`.
        packages: Where packages lie if it is a database: `s3://bucket/prefix?endpoint=...`.
        artifacts: Where the files of runs lie, if runs shall go to the database as well.

    Returns:
        What the home goes by. The same again changes nothing.

    Raises:
        InvalidInput: If an address is missing or none of these, or carries a password.
        NotFound: If there is no such folder.
        Conflict: If the home goes by another registry already, or has entries of its own that are not there.
        StoreError: If the registry does not answer, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from vitok.registry import Registry
        >>> folder = tempfile.TemporaryDirectory()
        >>> shared, home = Path(folder.name, "shared"), Path(folder.name, "home")
        >>> registry = Registry(shared)
        >>> _ = registry.register("fraud", {"model.onnx": b"weights"}, now=0, actor="train")
        >>> wanted = attach(home, shared)
        >>> Registry(home).load("fraud", 1).bytes("model.onnx")
        b'weights'
        >>> registry.close(); folder.cleanup()
    """
    home = Path(home)
    wanted = _checked(home, str(registry), packages, artifacts)
    present = attachment_of(home)
    if present is not None:
        if artifacts is None:
            wanted = Attachment(registry=wanted.registry, packages=wanted.packages, artifacts=present.artifacts)
        if wanted == present:
            return present
        if (wanted.registry, wanted.packages) != (present.registry, present.packages) or present.artifacts is not None:
            raise Conflict(
                f"{home} goes by the registry {present} already; where that has moved, take {home / FILE} away first"
            )
    _contained(home, wanted)
    try:
        home.mkdir(parents=True, exist_ok=True)
        said = {"registry": wanted.registry, "packages": wanted.packages, "artifacts": wanted.artifacts}
        write_json(home / FILE, said)
    except OSError as error:
        raise StoreError(f"{home / FILE} cannot be written: {error}") from error
    return wanted


def _checked(home: Path, registry: str, packages: str | None, artifacts: str | None) -> Attachment:
    if is_postgres(registry):
        parts = urlsplit(registry)
        if parts.password or "password" in parse_qs(parts.query):
            fix = "Give it by PGPASSWORD or ~/.pgpass"
            shown = hidden(registry).partition("?")[0]
            raise InvalidInput("registry", shown, "have no password: the home keeps this address", fix)
        if packages is None or not is_s3(packages):
            raise InvalidInput("packages", packages, "look like s3://bucket/prefix where the ledger is in a database")
        return Attachment(registry=registry, packages=packages, artifacts=artifacts)
    if "://" in registry:
        rule = "be a home in a folder, or look like postgresql://user@host/database"
        raise InvalidInput("registry", hidden(registry), rule)
    for name, value in (("packages", packages), ("artifacts", artifacts)):
        if value is not None:
            raise InvalidInput(name, value, "be left out where the registry is in a folder")
    folder = Path(registry).resolve()
    if folder == home.resolve():
        raise InvalidInput("registry", registry, "be another than the home's own")
    if not folder.is_dir():
        # Made now, it would be empty, and look like one whose path is misspelt.
        raise NotFound("home", registry)
    further = attachment_of(folder)
    if further is not None:
        raise InvalidInput("registry", registry, f"have a registry of its own; that home goes by {further}")
    return Attachment(registry=str(folder))


def _contained(home: Path, wanted: Attachment) -> None:
    """Checks that a home has no entries of its own, or that the other registry goes on from them."""
    there = Ledger(wanted.ledger)
    try:
        if not (home / LEDGER).exists():
            return
        own = Ledger(home / LEDGER)
        try:
            # By the hash of the last, which holds all before it.
            if own.revision() and not there.verify(head=own.verify().head).intact:
                raise Conflict(
                    f"{home} has versions of its own that {wanted} does not have; copy them there first with "
                    "vitok runs copy, or name another home"
                )
        finally:
            own.close()
    finally:
        there.close()
