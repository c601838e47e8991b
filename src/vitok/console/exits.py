"""How a command ends: its exit codes, and errors in plain words."""

import contextlib
from collections.abc import Iterator

import typer

from vitok.console.printed import printable
from vitok.errors import VitokError

# 1 says that what was asked for was found wanting, 2 that it could not be found out.
REFUSED, FAILED = 1, 2


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turns an error of vitok into one message and the exit code for what could not be done."""
    try:
        yield
    except VitokError as error:
        typer.echo(f"vitok: {printable(str(error))}", err=True)
        raise typer.Exit(FAILED) from None
