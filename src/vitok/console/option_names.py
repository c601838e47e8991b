"""Errors of the library under the names of the options that a command was given."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vitok.errors import InvalidInput


@contextlib.contextmanager
def options_named(**options: str) -> Iterator[None]:
    """Calls an argument of the library by the option that its value came from.

    Args:
        **options: Option by the name of the argument; for `canary.share` and `settings[A]` what stands before the
            point or bracket.

    Example:
        >>> with options_named(rate="--rates"):
        ...     raise InvalidInput("rate", -1.0, "be above 0")
        Traceback (most recent call last):
        vitok.errors.InvalidInput: --rates: got -1.0, must be above 0
    """
    try:
        yield
    except InvalidInput as error:
        option = options.get(error.field) or options.get(error.field.replace(".", "_").partition("[")[0])
        if option is None:
            raise
        raise InvalidInput(option, error.value, error.rule, error.fix) from None


def file_of(option: str, path: Path) -> Path:
    """Returns the path of a file that an option names.

    Raises:
        InvalidInput: If there is none.
    """
    if not path.is_file():
        raise InvalidInput(option, str(path), "be a file that exists")
    return path


def text_of(option: str, path: Path) -> str:
    """Reads a file of text that an option names.

    Raises:
        InvalidInput: If there is none, or it is no UTF-8.
    """
    try:
        return file_of(option, path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(option, str(path), f"be a text in UTF-8: {error}") from None
