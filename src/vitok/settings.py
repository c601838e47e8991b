"""The defaults of vitok, in one place; change them for a block of code with `using`."""

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What applies where a call does not say otherwise.

    Attributes:
        home: Folder for everything vitok writes; the environment variable VITOK_HOME sets it.
        confidence_level: Coverage of every interval, in (0, 1).
        threads: How many threads training may use.
        seed: Seed of every random draw that is not a decision.
        lock: The lock or constraints file that the environment was made from, whose hash goes into every run; the
            environment variable VITOK_LOCK sets it. None where there is none.
    """

    home: Path = Path(".vitok")
    confidence_level: float = 0.95
    threads: int = 2
    seed: int = 0
    lock: Path | None = None


_LOCK = os.environ.get("VITOK_LOCK")
_DEFAULT = Settings(home=Path(os.environ.get("VITOK_HOME", ".vitok")), lock=Path(_LOCK) if _LOCK else None)
_current: contextvars.ContextVar[Settings | None] = contextvars.ContextVar("vitok_settings", default=None)


def current() -> Settings:
    """Returns the settings in force."""
    return _current.get() or _DEFAULT


@contextlib.contextmanager
def using(**changes: Any) -> Iterator[Settings]:
    """Changes settings for a block of code.

    Example:
        >>> with using(confidence_level=0.9):
        ...     current().confidence_level
        0.9
    """
    changed = dataclasses.replace(current(), **changes)
    token = _current.set(changed)
    try:
        yield changed
    finally:
        _current.reset(token)
