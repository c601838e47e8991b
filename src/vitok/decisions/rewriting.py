"""Changing sealed segments: rows that must go, and columns that must not stay as they were.

A sealed segment is replaced by a new file in one step, so that a reader sees the old one or the new one. Rows that
go leave a note of their numbers behind: positions in the log keep their meaning.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.files import removed_on_failure, replace, sync
from vitok.decisions.index import index_path, write_index
from vitok.decisions.parts import PARTS_KEY, Part, noted, parts_of, ranges, without
from vitok.decisions.schema import OFFSETS_KEY, REMOVED_KEY, readable
from vitok.decisions.sealing import ROWS_PER_GROUP, sealed_writer
from vitok.decisions.segments import LANE, MERGES, covered, numbers
from vitok.decisions.sidecars import OnSeal, write_sidecars
from vitok.decisions.writer import REMOVED, last_removed
from vitok.errors import StoreError

_SAMPLE = 512


@contextlib.contextmanager
def maintained(folder: Path) -> Iterator[None]:
    """Keeps others from changing sealed segments of a log meanwhile; whoever appends or reads is not kept.

    Raises:
        StoreError: If another process does so now, or the disk refuses.
    """
    try:
        fd = os.open(folder / "maintenance", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # What a merge left that was killed has rows too, which would come back when the merged file goes.
            give_way(folder, covered(folder))
            yield
        finally:
            os.close(fd)
    except BlockingIOError:
        raise StoreError(
            f"log {str(folder)!r}: another process changes its sealed segments now; try again when it is done"
        ) from None
    except OSError as error:
        raise StoreError(f"log {str(folder)!r}: a sealed segment was not changed ({error}); try again") from error


def rewrite(
    folder: Path,
    path: Path,
    *,
    keep: npt.NDArray[np.bool_] | None = None,
    change: Callable[[pa.Table], pa.Table] | None = None,
    notes: Mapping[bytes, bytes] | None = None,
    on_seal: OnSeal | None = None,
) -> int:
    """Writes a sealed segment anew; call it within `maintained`.

    Its files beside it are made anew too where `on_seal` is given; else they go, and `reseal` makes them.

    Args:
        folder: Folder of the log.
        path: The segment.
        keep: Which of its rows stay, of shape (rows,); all by default. A segment that keeps none goes.
        change: Returns the rows with other values, of the same schema.
        notes: What the segment carries from now on, besides what it carried.
        on_seal: Makes the files beside it.

    Returns:
        How many rows it has now.

    Raises:
        OSError: If the disk refuses; then the segment is as it was, though files beside it may be gone.
    """
    table = readable(pq.read_table(path, partitioning=None))
    metadata = dict(pq.read_metadata(path).metadata or {}) | dict(table.schema.metadata or {})
    metadata.pop(b"ARROW:schema", None)
    parts = parts_of(metadata, number=_last(path), rows=table.num_rows)
    if keep is not None and not keep.all():
        each = np.split(keep, np.cumsum([one.rows for one in parts])[:-1])
        parts = [without(one, mine) for one, mine in zip(parts, each, strict=True)]
        table = table.filter(pa.array(keep))
    if not table.num_rows:
        remove(folder, path)
        return 0
    if change is not None:
        table = change(table)
        parts = [Part(one.number, one.rows, one.removed) for one in parts]
    if PARTS_KEY in metadata:
        metadata |= noted([one for one in parts if one.rows])
    elif len(parts[0].removed):
        metadata[REMOVED_KEY] = json.dumps(ranges(parts[0].removed)).encode()
    table = table.replace_schema_metadata(metadata | dict(notes or {})).combine_chunks()
    temporary = path.with_name(path.name + ".tmp")
    with removed_on_failure(temporary):
        with pa.OSFile(str(temporary), "wb") as file, sealed_writer(file, table.schema, table.slice(0, _SAMPLE)) as out:
            out.write_table(table, row_group_size=ROWS_PER_GROUP)
        sync(temporary)
        # What was worked out of the old rows goes first: without it a reader works, with it he would be wrong.
        remove_beside(folder, path)
        temporary.rename(path)
    # Again: who makes such files of the old rows at the same time may have put one there meanwhile.
    remove_beside(folder, path)
    sync(path.parent)
    if "decision_id" in table.schema.names:
        write_index(path, table)
    if on_seal is not None:
        write_sidecars(path, table, on_seal)
    return table.num_rows


def remove(folder: Path, path: Path) -> None:
    """Removes a sealed segment and what lies beside it; its number is never used anew.

    What its messages carried, such as how far a topic was read, is kept: else it would be read again.

    Raises:
        OSError: If the disk refuses.
        StoreError: If the note of removed numbers is damaged.
    """
    number = _last(path)
    lane = number // LANE
    offsets = (pq.read_metadata(path).metadata or {}).get(OFFSETS_KEY)
    if number > last_removed(folder, lane) or offsets is not None:
        note = folder / REMOVED
        content = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        content[str(lane)] = max(number, last_removed(folder, lane))
        if offsets is not None:
            content["offsets"] = furthest(content.get("offsets", {}), json.loads(offsets))
        replace(note, json.dumps(content).encode())
    remove_beside(folder, path)
    path.unlink()
    sync(path.parent)
    _leave(folder, path.parent)


def give_way(folder: Path, places: Mapping[Path, Sequence[Path]]) -> None:
    """Removes sealed files whose rows are in merged ones too, which have their names.

    Args:
        folder: Folder of the log.
        places: The files that are to go, by the one that has their rows.

    Raises:
        OSError: If the disk refuses; readers see the merged files and not what is left.
    """
    if not places:
        return
    for place in {path.parent for path in places}:
        sync(place)
    # Before the first goes: who has listed the folders without seeing the merged files looks again.
    line = json.dumps([path.stem for path in places], separators=(",", ":"))
    fd = os.open(folder / MERGES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(fd, line.encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    left = [path for paths in places.values() for path in paths]
    for path in left:
        remove_beside(folder, path)
        path.unlink(missing_ok=True)
    for place in sorted({path.parent for path in left}):
        sync(place)
        _leave(folder, place)


def _leave(folder: Path, place: Path) -> None:
    # The folder of an hour that has nothing left goes, and then that of its day.
    for folder_of in (place, place.parent):
        if folder_of != folder:
            with contextlib.suppress(OSError):
                folder_of.rmdir()


def _last(path: Path) -> int:
    return (numbers(path.name) or (0, 0))[1]


def furthest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Joins notes of how far partitions of a topic were read.

    Example:
        >>> furthest({"0": 7, "1": 2}, {"1": 5})
        {'0': 7, '1': 5}
    """
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def remove_beside(folder: Path, path: Path) -> None:
    """Removes what lies beside a sealed segment, and its open form."""
    # A process that was killed right after it sealed the segment left the open form too: it must not come back.
    folder.joinpath(f"{path.stem}.arrows").unlink(missing_ok=True)
    index_path(path).unlink(missing_ok=True)
    for side in path.parent.glob(f"{path.stem}.*.side"):
        side.unlink(missing_ok=True)
