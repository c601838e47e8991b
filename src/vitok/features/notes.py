"""Small records that batch jobs keep in the store of rows beside the rows: how far they came, what was forgotten."""

import json
from collections.abc import Callable
from typing import Any

from vitok.engines.row_store import HEADER, Row, RowStore, unpack_version
from vitok.errors import Conflict, StoreError

_TRIES = 100


def read_note(store: RowStore, key: bytes) -> tuple[dict[str, Any], int]:
    """Returns a record and its number; an empty one and 0 where there is none.

    Raises:
        StoreError: If the store cannot be read or the record is damaged.
    """
    (row,) = store.read([key])
    if row is None:
        return {}, 0
    number, _ = unpack_version(row)
    try:
        note = json.loads(row[HEADER:])
    except ValueError as error:
        raise StoreError(f"the record {key!r} of the store is damaged: erase it and run the job again") from error
    return note, number


def change_note(
    store: RowStore, key: bytes, change: Callable[[dict[str, Any]], dict[str, Any]], *, expires: int = 0
) -> dict[str, Any]:
    """Writes what `change` makes of a record; where another process wrote it meanwhile, makes it anew from that.

    A record has the next number as its version and the newest wins, so of two writers only one gets a number.

    Raises:
        Conflict: If others write it all the time.
        StoreError: If the store cannot be read or written.

    Example:
        >>> from vitok.engines.row_store import open_rows
        >>> store = open_rows("memory://notes-example")
        >>> change_note(store, b"k", lambda note: {"n": note.get("n", 0) + 1})
        {'n': 1}
        >>> change_note(store, b"k", lambda note: {"n": note.get("n", 0) + 1})
        {'n': 2}
    """
    for _ in range(_TRIES):
        before, number = read_note(store, key)
        after = change(before)
        if after == before or store.write([Row(key, (number + 1, 0), json.dumps(after).encode(), expires)]):
            return after
    raise Conflict(f"the record {key!r} of the store is written by others all the time")
