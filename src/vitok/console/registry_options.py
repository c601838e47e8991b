"""Options that say which registry a home goes by, for the commands that serve."""

from typing import Annotated

import typer

RegistryAt = Annotated[
    str | None,
    typer.Option(
        help="Registry to go by: another home, or postgresql://user@host/database (its password by PGPASSWORD or "
        "~/.pgpass). The home remembers it for all commands; by default it is the home's own."
    ),
]
PackagesAt = Annotated[
    str | None, typer.Option(help="Where packages lie if --registry is a database: s3://bucket/prefix?endpoint=...")
]
ArtifactsAt = Annotated[
    str | None,
    typer.Option(help="Where the files of runs lie if --registry is a database; with it, new runs go there as well."),
]
REGISTRY_OPTIONS = {"registry": "--registry", "packages": "--packages", "artifacts": "--artifacts"}
