"""The two faces of vitok for people: the `vitok` command and the pages beside a service's API.

Both are views of the same read functions; nothing is decided or computed here that another room does not offer.
"""

from vitok.console.main import run

__all__ = ["run"]
