"""Changing sealed segments: rows that must go, and columns that must not stay as they were.

A sealed segment is replaced by a new file in one step, so that a reader sees the old one or the new one. Rows that
go leave a note of their numbers behind: positions in the log keep their meaning.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.files import removed_on_failure, replace, sync
from vitok.decisions.index import index_path, write_index
from vitok.decisions.schema import OFFSETS_KEY, REMOVED_KEY, readable, removed_rows
from vitok.decisions.sealing import ROWS_PER_GROUP, sealed_writer
from vitok.decisions.segments import LANE, NAME
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
    if keep is not None and not keep.all():
        gone = removed_rows(metadata)
        left = np.ones(table.num_rows + len(gone), bool)
        left[gone] = False
        numbers = np.flatnonzero(left)
        metadata[REMOVED_KEY] = _ranges(np.union1d(gone, numbers[~keep]))
        table = table.filter(pa.array(keep))
    if not table.num_rows:
        remove(folder, path)
        return 0
    if change is not None:
        table = change(table)
    table = table.replace_schema_metadata(metadata | dict(notes or {})).combine_chunks()
    temporary = path.with_name(path.name + ".tmp")
    with removed_on_failure(temporary):
        with pa.OSFile(str(temporary), "wb") as file, sealed_writer(file, table.schema, table.slice(0, _SAMPLE)) as out:
            out.write_table(table, row_group_size=ROWS_PER_GROUP)
        sync(temporary)
        # What was worked out of the old rows goes first: without it a reader works, with it he would be wrong.
        _remove_beside(folder, path)
        temporary.rename(path)
    # Again: who makes such files of the old rows at the same time may have put one there meanwhile.
    _remove_beside(folder, path)
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
    match = NAME.fullmatch(path.name)
    number = int(match[1]) if match else 0
    lane = number // LANE
    offsets = (pq.read_metadata(path).metadata or {}).get(OFFSETS_KEY)
    if number > last_removed(folder, lane) or offsets is not None:
        note = folder / REMOVED
        content = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        content[str(lane)] = max(number, last_removed(folder, lane))
        if offsets is not None:
            content["offsets"] = furthest(content.get("offsets", {}), json.loads(offsets))
        replace(note, json.dumps(content).encode())
    _remove_beside(folder, path)
    path.unlink()
    sync(path.parent)
    for folder_of in (path.parent, path.parent.parent):
        # The folder of an hour that has nothing left, and then that of its day.
        if folder_of != folder:
            with contextlib.suppress(OSError):
                folder_of.rmdir()


def furthest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Joins notes of how far partitions of a topic were read.

    Example:
        >>> furthest({"0": 7, "1": 2}, {"1": 5})
        {'0': 7, '1': 5}
    """
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {**one, **other}}


def _remove_beside(folder: Path, path: Path) -> None:
    # A process that was killed right after it sealed the segment left the open form too: it must not come back.
    folder.joinpath(f"{path.stem}.arrows").unlink(missing_ok=True)
    index_path(path).unlink(missing_ok=True)
    for side in path.parent.glob(f"{path.stem}.*.side"):
        side.unlink(missing_ok=True)


def _ranges(numbers: npt.NDArray[np.int64]) -> bytes:
    starts = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
    lengths = np.diff(np.append(starts, len(numbers)))
    return json.dumps([[int(numbers[at]), int(n)] for at, n in zip(starts, lengths, strict=True)]).encode()
