"""Which rows of a source come under an event id that was there before: they change nothing."""

from typing import TYPE_CHECKING

import numpy as np

from vitok.errors import InvalidInput
from vitok.features.events import microseconds, texts
from vitok.features.fingerprints import fingerprint_texts
from vitok.features.key_table import is_number
from vitok.features.sources import Source

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.history import Input


def repeated_rows(rows: "Input", source: Source, memory: int) -> np.ndarray:
    """Finds the rows to leave out: of one event id the first by ingest time counts, then by arrival.

    Ids are first compared by one word each, sorted; the few that come twice are then looked at in full. Whole numbers
    that only rise need no sorting.

    Args:
        rows: The source.
        source: Its declaration, with an event id.
        memory: Bytes that the words may take at a time.

    Returns:
        Places of the rows, rising, int64.

    Raises:
        InvalidInput: If an id is null, or neither text nor a whole number.
    """
    where = f"source {source.name!r}"
    if _only_rises(rows, source, where):
        return np.zeros(0, np.int64)
    passes = max(1, -(-rows.height * 16 // max(memory, 1)))
    found = [_twice(rows, source, where, part, passes) for part in range(passes)]
    words = np.sort(np.concatenate(found))
    if not len(words):
        return np.zeros(0, np.int64)
    # What may be a copy: id, moment of ingest, place.
    columns = [source.event_id] + ([source.ingest_time] if source.ingest_time else [])
    copies, at = [], 0
    for frame in rows.batches(columns):
        ids = _words(frame, source.event_id, where)
        is_candidate = words[np.minimum(np.searchsorted(words, ids[:, 0]), len(words) - 1)] == ids[:, 0]
        chosen = np.flatnonzero(is_candidate)
        ingests = np.zeros(len(chosen), np.int64)
        if source.ingest_time:
            ingests = microseconds(frame.select(source.ingest_time), source.ingest_time, where)[chosen]
        copies.append(np.column_stack([ids[chosen], ingests, chosen + at]))
        at += len(frame)
    whole = np.concatenate(copies)
    whole = whole[np.lexsort((whole[:, 3], whole[:, 2], whole[:, 1], whole[:, 0]))]
    is_copy = (whole[1:, 0] == whole[:-1, 0]) & (whole[1:, 1] == whole[:-1, 1])
    return np.sort(whole[1:][is_copy, 3])


def _words(frame: "pl.DataFrame", name: str, where: str) -> np.ndarray:
    # Two words of each id: the number itself and zero, or the fingerprint of the text.
    import polars as pl

    column = frame[name]
    if is_number(column.dtype):
        if column.null_count():
            raise InvalidInput(f"{where}: {name}", None, "not be null", "Let the contract keep such rows out.")
        out = np.zeros((len(column), 2), np.int64)
        out[:, 0] = column.cast(pl.Int64).to_numpy()
        return out
    return fingerprint_texts(texts(frame, name, where)).view(np.int64)


def _only_rises(rows: "Input", source: Source, where: str) -> bool:
    if not is_number(rows.schema[source.event_id]):
        return False
    before: int | None = None
    for frame in rows.batches([source.event_id]):
        ids = _words(frame, source.event_id, where)[:, 0]
        if not len(ids):
            continue
        if (before is not None and ids[0] <= before) or not (ids[1:] > ids[:-1]).all():
            return False
        before = int(ids[-1])
    return True


def _twice(rows: "Input", source: Source, where: str, part: int, passes: int) -> np.ndarray:
    # First words that come more than once among those that fall to this pass.
    words = np.empty(rows.height if passes == 1 else 0, np.int64)
    kept, at = [], 0
    for frame in rows.batches([source.event_id]):
        first = _words(frame, source.event_id, where)[:, 0]
        if passes == 1:
            words[at : at + len(first)] = first
        else:
            kept.append(
                first[(first.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % passes == part]
            )
        at += len(first)
    if passes > 1:
        words = np.concatenate(kept)
    words.sort()
    return np.unique(words[1:][words[1:] == words[:-1]])
