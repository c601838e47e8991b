"""Addresses of stores: `lmdb://folder`, `sqlite:///file`, `redis://host`; the scheme says which engine."""

from typing import NamedTuple

from vitok.errors import InvalidInput


class StoreUrl(NamedTuple):
    """A store's address, taken apart."""

    scheme: str
    location: str


def parse(url: str) -> StoreUrl:
    """Takes a store's address apart.

    Raises:
        InvalidInput: If there is no scheme.

    Example:
        >>> parse("lmdb://.vitok/online")
        StoreUrl(scheme='lmdb', location='.vitok/online')
    """
    scheme, mark, location = url.partition("://")
    if not mark or not scheme or not location:
        raise InvalidInput("store address", url, "look like scheme://location", "Try lmdb://.vitok/online")
    return StoreUrl(scheme, location)
