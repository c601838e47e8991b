"""Forgetting a subject: its rows go from the online store and from the files, and a later run does not bring them back.

What is written down about it is a hash of its key. A key that can be guessed, such as a short number, can be found from
its hash by trying; who may read the store should be few.
"""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vitok.clock import Clock, SystemClock, isoformat
from vitok.engines.row_store import RowStore, open_rows
from vitok.errors import InvalidInput, StoreError
from vitok.features.definitions import FeatureSet
from vitok.features.materialise import any_forgotten_key, forgotten_key, known_views
from vitok.features.notes import change_note
from vitok.features.rows import encode_key, key_start, row_keys
from vitok.features.scans import parquet_files
from vitok.features.sources import Entity, key_text

if TYPE_CHECKING:
    import pyarrow as pa

_FOR_EVER = 2**62


class Holder(Protocol):
    """What holds something of entities besides the store: a `FeatureReader`, an `OnlineFeatures`."""

    def forget(self, entity: str, keys: Mapping[str, Any]) -> int:
        """Forgets an entity, named and with its key by column; returns in how many places it was held."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileReport:
    """What happened to one file that held the subject.

    Attributes:
        path: The file.
        rows_before: Its rows before.
        rows_after: Its rows after, counted in the new file; none of them holds the key.
    """

    path: str
    rows_before: int
    rows_after: int

    @property
    def removed(self) -> int:
        """How many rows went."""
        return self.rows_before - self.rows_after


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForgetReport:
    """The proof that a subject was forgotten.

    Attributes:
        entity: Name of the entity.
        key_hash: SHA-256 of entity and key, as the store keeps it.
        until: Up to when a run refuses to bring it back, in microseconds; None for ever.
        rows_online: Rows that the online store held.
        held_elsewhere: Places in caches and streams that held it.
        files_read: Files that were looked into.
        files: Files that held it and were rewritten.
    """

    entity: str
    key_hash: str
    until: int | None
    rows_online: int
    held_elsewhere: int
    files_read: int
    files: tuple[FileReport, ...]

    @property
    def rows_offline(self) -> int:
        """Rows removed from files."""
        return sum(file.removed for file in self.files)

    def __str__(self) -> str:
        """Returns the report as some lines."""
        until = "for ever" if self.until is None else f"until {isoformat(self.until)}"
        lines = [
            f"{self.entity} {self.key_hash[:12]}: {self.rows_online} rows online, "
            f"{self.held_elsewhere} held elsewhere, {self.rows_offline} rows in {len(self.files)} of "
            f"{self.files_read} files; refused {until}"
        ]
        lines += [f"  {file.path}: {file.rows_before} rows before, {file.rows_after} after" for file in self.files]
        return "\n".join(lines)


def forget(
    features: FeatureSet,
    entity: str | Entity,
    key: str | int | Mapping[str, str | int],
    *,
    store: RowStore | str,
    sources: Sequence[str | Path] = (),
    holders: Sequence[Holder] = (),
    until: int | None = None,
    clock: Clock | None = None,
) -> ForgetReport:
    """Deletes a subject everywhere; run again after a crash or an error, it goes on where it stopped.

    First the store learns that the key is to be refused, then its rows are deleted there, then the files are
    rewritten one by one, then the store is looked at again. Rows of earlier versions of views go too. An entity of
    several columns, such as a card at a terminal, is another entity: forget it as well. Pages of an LMDB file and
    backups may hold deleted bytes until they are used again.

    Args:
        features: Where the entity is declared.
        entity: The entity or its name.
        key: Its key; by column where there are several.
        store: The online store or its address.
        sources: Local Parquet files, folders or patterns that hold its events.
        holders: Readers and streams of this process that hold something of it.
        until: Up to when runs refuse to bring it back, in microseconds; None for ever.
        clock: Tells the present.

    Returns:
        What was found and deleted.

    Raises:
        InvalidInput: If the entity is unknown, the key cannot be one, `until` is past, or a file has no such column.
        StoreError: If the store or a file cannot be written; what was done stays done.

    Example:
        >>> import polars as pl
        >>> from vitok.features import Entity, FeatureSet, Latest, Source
        >>> from vitok.features.materialise import materialise
        >>> customer = Entity("customer", "id")
        >>> view = Latest(name="account", entity=customer, source=Source("accounts"), columns=("limit",))
        >>> rows = pl.DataFrame({"id": [7, 8], "event_time": [1, 2], "limit": [1.0, 2.0]})
        >>> rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC"))).write_parquet("accounts.parquet")
        >>> features, url = FeatureSet(views=(view,)), "memory://forget-example"
        >>> materialise(features, {"accounts": "accounts.parquet"}, url, until=10).written
        2
        >>> print(forget(features, "customer", 7, store=url, sources=["accounts.parquet"]))
        customer ...: 1 rows online, 0 held elsewhere, 1 rows in 1 of 1 files; refused for ever
          accounts.parquet: 2 rows before, 1 after
    """
    known = _entity(features, entity)
    keys = _keys(known, key)
    now = (clock or SystemClock()).now()
    if until is not None and until <= now:
        raise InvalidInput("until", until, f"be after the present, {now}", "Or leave it out, for ever.")
    rows: RowStore = open_rows(store) if isinstance(store, str) else store
    files = [path for source in sources for path in _local(source)]
    for path in files:
        _check_columns(path, keys)
    text = known.text(keys)
    refuse = {"until": _FOR_EVER if until is None else until}
    record = forgotten_key(known.name, text)
    # In this order: whoever finds the key refused has been told before that there is something to look for.
    change_note(rows, any_forgotten_key(known.name), lambda _: {"any": True})
    change_note(rows, record, lambda note: {"until": max(refuse["until"], note.get("until", 0))})
    online = rows.erase(_row_keys(rows, features, known, text))
    reports = [report for path in files if (report := _rewrite(Path(path), keys)) is not None]
    # A run that had read its chunk before the key was refused may have written it meanwhile.
    online += rows.erase(_row_keys(rows, features, known, text))
    return ForgetReport(
        entity=known.name,
        key_hash=record.rpartition(b":")[2].rstrip(b"}").decode(),
        until=until,
        rows_online=online,
        held_elsewhere=sum(holder.forget(known.name, keys) for holder in holders),
        files_read=len(files),
        files=tuple(reports),
    )


def _entity(features: FeatureSet, entity: str | Entity) -> Entity:
    entities = {view.entity.name: view.entity for view in features.views}
    name = entity.name if isinstance(entity, Entity) else entity
    if name not in entities:
        raise InvalidInput("entity", name, f"be one of {', '.join(sorted(entities))}")
    return entities[name]


def _keys(entity: Entity, key: str | int | Mapping[str, str | int]) -> dict[str, str]:
    if not isinstance(key, Mapping):
        if len(entity.keys) > 1:
            raise InvalidInput("key", key, f"be by column: {', '.join(entity.keys)}")
        key = {entity.keys[0]: key}
    if set(key) != set(entity.keys):
        raise InvalidInput("key", sorted(key), f"be by column: {', '.join(entity.keys)}")
    return {name: key_text(name, key[name]) for name in entity.keys}


def _row_keys(store: RowStore, features: FeatureSet, entity: Entity, text: str) -> list[bytes]:
    out = [key for view in features.views if view.entity == entity for key in row_keys(view, [text])]
    start = key_start(entity) + encode_key(text) + b"}"
    out += [start + encode_key(name) + b"@" + version.encode() for name, version in known_views(store, entity.name)]
    return list(dict.fromkeys(out))


def _local(source: str | Path) -> list[str]:
    files = parquet_files(source, "sources")
    for path in files:
        if "://" in path:
            raise InvalidInput(
                "sources", path, "be local files", "Delete the rows there with the tool that wrote them."
            )
    return files


def _rewrite(path: Path, keys: Mapping[str, str]) -> FileReport | None:
    """Rewrites a file without the rows of a key; None where it has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = path.resolve()
    new = target.with_name(f".{target.name}.forgetting")
    try:
        with pq.ParquetFile(target) as file:
            schema = file.schema_arrow
            before = file.metadata.num_rows
            groups = range(file.metadata.num_row_groups)
            removed = sum(_matches(file.read_row_group(group, columns=list(keys)), keys)[1] for group in groups)
            if not removed:
                new.unlink(missing_ok=True)
                return None
            codec = file.metadata.row_group(0).column(0).compression
            with pq.ParquetWriter(new, schema, compression="NONE" if codec == "UNCOMPRESSED" else codec) as writer:
                for group in groups:
                    rows = file.read_row_group(group)
                    writer.write_table(rows.filter(_matches(rows, keys)[0]))
        _check_new(new, keys, before - removed)
        shutil.copymode(target, new)
        _sync(new)
        new.replace(target)
        _sync(target.parent)
    except (OSError, pa.ArrowException) as error:
        new.unlink(missing_ok=True)
        raise StoreError(f"{path} could not be rewritten and is as it was: {error}") from error
    return FileReport(path=str(path), rows_before=before, rows_after=before - removed)


def _check_columns(path: str, keys: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} could not be read: {error}") from error
    whole = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer)
    for name in keys:
        if name not in schema.names:
            raise InvalidInput(f"sources: {path}", schema.names, f"have the column {name}")
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_of(kind) for is_of in whole):
            rule = "be text or whole numbers"
            raise InvalidInput(f"sources: {path}: {name}", str(kind), rule, "Cast it to text first.")


def _matches(rows: "pa.Table", keys: Mapping[str, str]) -> "tuple[pa.ChunkedArray, int]":
    # Which rows stay, and how many go.
    import pyarrow as pa
    import pyarrow.compute as pc

    held: Any = None
    for name, text in keys.items():
        same = pc.fill_null(pc.equal(pc.cast(rows[name], pa.string()), text), False)
        held = same if held is None else pc.and_(held, same)
    return pc.invert(held), pc.sum(held).as_py() or 0


def _check_new(path: Path, keys: Mapping[str, str], expected: int) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        n = file.metadata.num_rows
        groups = range(file.metadata.num_row_groups)
        left = sum(_matches(file.read_row_group(group, columns=list(keys)), keys)[1] for group in groups)
    if n != expected or left:
        raise OSError(f"the new file has {n} rows for {expected}, {left} of them the subject's")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
