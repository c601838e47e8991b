"""Text for a terminal: what others wrote may hold codes that clear a screen or forge a line; they are shown instead."""

import unicodedata

import typer

_KEPT = "\n\t"
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str) -> str:
    r"""Returns a text with its control characters, and those that turn its direction, written out.

    Example:
        >>> print(printable("country=\x1b[2JFR"))
        country=\x1b[2JFR
    """
    return "".join(
        one.encode("unicode_escape").decode()
        if one in _TURNS or (unicodedata.category(one) in ("Cc", "Cs") and one not in _KEPT)
        else one
        for one in text
    )


def say(text: object, *, line: bool = True) -> None:
    """Prints a text: in one line, whatever it holds, or as the page that it is."""
    typer.echo(printable(" ".join(str(text).splitlines()) if line else str(text)), nl=line)
