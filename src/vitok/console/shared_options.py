"""Options that many commands have, and how each is read: whose home, who does it, when, in what form."""

from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.clock import SystemClock, parse_time
from vitok.console.option_names import options_named

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]
By = Annotated[str, typer.Option(help="Who does it; goes on record.")]
Now = Annotated[str | None, typer.Option(help="Present time in ISO 8601; the clock's by default.")]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON.")]


def home_of(home: Path | None) -> Path:
    """Returns the home that `--home` names, or the usual one.

    Example:
        >>> home_of(Path("elsewhere"))
        PosixPath('elsewhere')
    """
    return home or settings.current().home / "fraud"


def moment_of(text: str | None) -> int:
    """Returns the present as `--now` says it, or the clock's, in microseconds.

    Raises:
        InvalidInput: If it is no time.

    Example:
        >>> moment_of("1970-01-01T00:00:01Z")
        1000000
    """
    return SystemClock().now() if text is None else time_of("--now", text)


def time_of(option: str, text: str) -> int:
    """Returns the time that an option says, in microseconds.

    Raises:
        InvalidInput: If it is none.
    """
    with options_named(time=option):
        return parse_time(text)
