"""Options that say where a registry and what belongs to it are: a folder, or a database with its buckets."""

from pathlib import Path
from typing import Annotated

import typer

from vitok.console.shared_options import home_of
from vitok.errors import InvalidInput

_DATABASE = "postgresql://user@host/database (its password by PGPASSWORD or ~/.pgpass)"

RegistryAt = Annotated[
    str | None,
    typer.Option(
        help=f"Registry to go by: another home, or {_DATABASE}. The home remembers it for all commands; by default it "
        "is the home's own."
    ),
]
HomeAt = Annotated[
    str | None,
    typer.Option(
        help=f"Folder of everything vitok writes, .vitok/fraud by default; or {_DATABASE} of a registry for many "
        "writers."
    ),
]
PackagesAt = Annotated[
    str | None, typer.Option(help="Where packages lie if the registry is a database: s3://bucket/prefix?endpoint=...")
]
ArtifactsAt = Annotated[
    str | None,
    typer.Option(help="Where the files of runs lie if the registry is a database; with it, runs belong to it as well."),
]
REGISTRY_OPTIONS = {"home": "--home", "registry": "--registry", "packages": "--packages", "artifacts": "--artifacts"}


def is_database(address: str | None) -> bool:
    """Says whether a registry is named by the address of a database, and not by a folder.

    Example:
        >>> is_database("postgresql://ann@localhost/models"), is_database(".vitok/fraud"), is_database(None)
        (True, False, False)
    """
    return address is not None and "://" in address


def folder_of(home: str | None) -> Path:
    """Returns the folder that `--home` names where it names no database, or the usual one."""
    return home_of(None if home is None else Path(home))


def only_with_a_database(option: str, address: str | None, *, packages: str | None, artifacts: str | None) -> None:
    """Checks that nobody says where a registry keeps its files that keeps them in its own folder.

    Args:
        option: The option that names the registry.
        address: What it names; None for the usual folder.
        packages: Where packages lie, as `--packages` says it.
        artifacts: Where the files of runs lie, as `--artifacts` says it.

    Raises:
        InvalidInput: If one of them is given and the registry is no database.
    """
    for name, value in (("packages", packages), ("artifacts", artifacts)):
        if value is not None and not is_database(address):
            raise InvalidInput(REGISTRY_OPTIONS[name], value, f"go with a database as {option}")
