"""What comes in from a stream: parted into good rows and bad ones, and packed for the journal and the checkpoint."""

import dataclasses
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitok.clock import isoformat
from vitok.errors import InvalidInput, StoreError
from vitok.features.events import Events, key_texts, microseconds
from vitok.features.sources import SEPARATOR, Entity, Source, unique

if TYPE_CHECKING:
    import polars as pl

    from vitok.features.views import View

_HEAD = struct.Struct("<ii")
_CHECKSUM, _LENGTH = struct.Struct("<I"), struct.Struct("<i")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ingested:
    """What became of a batch of events.

    Attributes:
        n_new: Events that count from now on.
        n_duplicate: Events whose id was seen before.
        n_late: Of the new ones, those further behind the newest event than the lateness; they count all the same.
        rejected: The rows that were refused, with the column `reason`.
    """

    n_new: int
    n_duplicate: int
    n_late: int
    rejected: "pl.DataFrame" = dataclasses.field(repr=False)

    def __str__(self) -> str:
        """Says it in one line."""
        out = f"{self.n_new} new, {self.n_duplicate} seen before, {self.n_late} late, {len(self.rejected)} rejected"
        return out + (f"; first: {self.rejected['reason'][0]}" if len(self.rejected) else "")


def part(
    source: Source, views: "Sequence[View]", frame: "pl.DataFrame", *, earliest: int, latest: int | None
) -> "tuple[pl.DataFrame, pl.DataFrame]":
    """Parts a batch into rows that can be counted and rows that cannot, which get a column `reason`.

    Args:
        source: Where the rows come from.
        views: What is computed of them.
        frame: The rows.
        earliest: Events before this time (microseconds) are too old to tell whether they were counted.
        latest: Events after this time lie in the future; None for no limit.

    Raises:
        InvalidInput: If a column is missing.
    """
    import polars as pl

    keys = unique(key for view in views for key in view.entity.keys)
    numbers = unique(name for view in views for name in view.columns)
    needed = unique([source.event_id, source.event_time, source.ingest_time, *keys, *numbers])
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InvalidInput(f"source {source.name!r}: columns", frame.columns, f"hold {', '.join(missing)}")
    frame = frame.select(needed)
    kinds = kinds_of(source, views)
    # A column of nulls alone has no type, and cannot be compared with anything.
    untyped = [name for name in numbers if frame.schema[name] == pl.Null]
    frame = frame.with_columns(
        pl.col(name).cast(pl.String if kinds.get(name) == "text" else pl.Float64) for name in untyped
    ).with_columns(
        pl.col(name).cast(pl.Datetime("us", "UTC"))
        for name in unique([source.event_time, source.ingest_time])
        if frame.schema[name] == pl.Null
    )
    # What is not text to polars, and yet may be empty or hold a separator.
    frame = frame.with_columns(
        pl.col(name).cast(pl.String)
        for name in unique([source.event_id, *keys])
        if isinstance(frame.schema[name], pl.Categorical | pl.Enum)
    )
    checks: list[tuple[pl.Expr, str]] = []
    for name in unique([source.event_id, source.event_time, source.ingest_time, *keys]):
        if frame[name].null_count():
            checks.append((pl.col(name).is_null(), f"{name}: got null, must not be null"))
    for name in unique([source.event_id, *keys]):
        if frame.schema[name] == pl.String and (frame[name] == "").any():
            checks.append((pl.col(name) == "", f"{name}: got '', must not be empty"))
    for name in unique(key for view in views if len(view.entity.keys) > 1 for key in view.entity.keys):
        if frame.schema[name] == pl.String and frame[name].str.contains(SEPARATOR, literal=True).any():
            text = f"{name}: must hold no unit separator (U+001F), which stands between the parts of a key"
            checks.append((pl.col(name).str.contains(SEPARATOR, literal=True), text))
    for name in numbers:
        if frame.schema[name].is_float() and frame[name].is_infinite().any():
            checks.append((pl.col(name).is_infinite(), f"{name}: got an infinite number, must be finite"))
    if isinstance(frame.schema[source.event_time], pl.Datetime | pl.Date):
        at = pl.col(source.event_time).dt.epoch("us")
        low, high = frame.select(at.min().alias("low"), at.max().alias("high")).row(0)
        if low is not None and low < earliest:
            text = (
                f"{source.event_time}: must not be before {isoformat(earliest)}: so long ago duplicates cannot be told"
            )
            checks.append((at < earliest, text))
        if latest is not None and high is not None and high > latest:
            checks.append((at > latest, f"{source.event_time}: must not lie in the future (after {isoformat(latest)})"))
    if not checks:
        return frame, frame.clear().with_columns(pl.lit("").alias("reason"))
    reason = pl.coalesce(*(pl.when(bad).then(pl.lit(text)) for bad, text in checks))
    marked = frame.with_columns(reason.alias("reason"))
    return marked.filter(pl.col("reason").is_null()).drop("reason"), marked.filter(pl.col("reason").is_not_null())


def kinds_of(source: Source, views: "Sequence[View]") -> dict[str, str]:
    """Returns what columns must hold for the views to make sense of them: "number" or "text"; any others any value."""
    found: dict[str, str] = {}
    for view in views:
        for item in (*view.plan.inputs, *view.plan.codes):
            for name, _, value in item.where:
                one = value[0] if isinstance(value, tuple) else value
                found[name] = "text" if isinstance(one, str) else "number"
        numbers = (item.column for item in view.plan.inputs if item.column and item.column not in source.encodings)
        found |= dict.fromkeys(numbers, "number")
    return found


def only(events: Events, chosen: np.ndarray) -> Events:
    """Returns some of the events, by a mask or by places."""
    import polars as pl

    if chosen.dtype == np.bool_:
        if chosen.all():
            return events
        chosen = np.flatnonzero(chosen)
    return dataclasses.replace(
        events,
        ids=events.ids[chosen],
        times=events.times[chosen],
        ingests=events.ingests[chosen],
        keys={
            entity: [keys[place] for place in chosen.tolist()]
            if isinstance(keys, list)
            else keys.gather(pl.Series(chosen))
            for entity, keys in events.keys.items()
        },
        values={name: values[chosen] for name, values in events.values.items()},
        codes={name: codes[chosen] for name, codes in events.codes.items()},
    )


def only_rows(frame: "pl.DataFrame", chosen: np.ndarray) -> "pl.DataFrame":
    """Returns some rows of a frame, by a mask."""
    import polars as pl

    return frame.filter(pl.Series(chosen))


def keys_of(keys: "Mapping[str, Sequence[Any] | pl.Series]", entity: Entity) -> "pl.Series":
    """Returns the key texts of entities given by columns.

    Raises:
        InvalidInput: If a column of the entity's key is missing, or no key can be of what it holds.
    """
    import polars as pl

    gone = [name for name in entity.keys if name not in keys]
    if gone:
        raise InvalidInput("keys", sorted(keys), f"hold {', '.join(gone)}, the key of {entity.name!r}")
    return key_texts(pl.DataFrame({name: pl.Series(keys[name]) for name in entity.keys}), entity, "keys")


def history(
    source: Source, sources: "Mapping[str, pl.DataFrame]", notes: "Mapping[str, pl.Series]", begin: int, until: int
) -> "tuple[pl.DataFrame, pl.Series, pl.Series | None]":
    """Returns the rows of a source from `begin` until before `until`, their times in microseconds, and their notes.

    Raises:
        InvalidInput: If the source or one of its columns is not there.
    """
    import polars as pl

    if source.name not in sources:
        raise InvalidInput("sources", sorted(sources), f"hold {source.name!r}, which the windows read")
    frame = sources[source.name]
    times = pl.Series(microseconds(frame, source.event_time, f"source {source.name!r}"))
    inside = (times < until) & (times >= begin)
    noted = notes.get(source.name)
    return frame.filter(inside), times.filter(inside), None if noted is None else noted.filter(inside)


def pack_journal(source: str, positions: Mapping[str, Any], frame: "pl.DataFrame") -> bytes:
    """Packs a batch and the positions after it."""
    head = json.dumps({"source": source, "positions": dict(positions)}).encode()
    buffer = io.BytesIO()
    if len(frame):
        frame.write_ipc_stream(buffer)
    body = _LENGTH.pack(len(head)) + head + buffer.getvalue()
    return _CHECKSUM.pack(zlib.crc32(body)) + body


def unpack_journal(record: bytes) -> "tuple[str, dict[str, Any], pl.DataFrame | None]":
    """Reads a batch and the positions after it.

    Raises:
        StoreError: If the record is damaged.
    """
    import polars as pl

    body = record[_CHECKSUM.size :]
    # Before anything is made of it: the reader of frames ends the process on some bytes, and believes others.
    if len(body) < _LENGTH.size or record[: _CHECKSUM.size] != _CHECKSUM.pack(zlib.crc32(body)):
        raise StoreError(f"{len(record)} bytes of the online store are not a record of its journal; fill it anew")
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    head = json.loads(body[_LENGTH.size : end])
    return head["source"], head["positions"], pl.read_ipc_stream(body[end:]) if body[end:] else None


def pack_ids(blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Packs fingerprints of event ids with their days."""
    ids = np.concatenate([block for block, _ in blocks])
    days = np.concatenate([block for _, block in blocks])
    return _HEAD.pack(len(days), int(days.max())) + days.tobytes() + ids.tobytes()


def unpack_ids(blob: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Reads fingerprints, shape (n, 2), and days, shape (n,).

    Raises:
        StoreError: If the record is damaged.
    """
    n = (len(blob) - _HEAD.size) // 20
    if len(blob) != _HEAD.size + 20 * n or _HEAD.unpack_from(blob)[0] != n:
        raise StoreError(f"{len(blob)} bytes of the online store are not event ids; fill the store anew")
    days = np.frombuffer(blob, np.int32, n, _HEAD.size).copy()
    return np.frombuffer(blob, np.uint64, 2 * n, _HEAD.size + 4 * n).reshape(n, 2).copy(), days


def last_day(blob: bytes) -> int:
    """Returns the latest day of the packed ids."""
    return int(_HEAD.unpack_from(blob)[1])
