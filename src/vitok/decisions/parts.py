"""What a merged file knows of the segments in it, so that places in the log keep their meaning.

A merged file stands for the segments of its numbers: their rows lie in it one segment after another, and its metadata
say of each which rows are its own and which of them were deleted.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.schema import REMOVED_KEY, removed_rows
from vitok.decisions.segments import Segment, numbers, sealed_path

PARTS_KEY = b"vitok.parts"


class Part(NamedTuple):
    """One segment in a file.

    Attributes:
        number: Of the segment.
        rows: How many rows it has now.
        removed: Which of its rows were deleted, by their numbers at its sealing, ascending.
        file: Size and time of the file whose rows these are, as stores beyond one machine know it; empty for the file
            in which it lies.
        sha256: Of the file that it was, in hex; empty where it was changed since.
    """

    number: int
    rows: int
    removed: npt.NDArray[np.int64]
    file: str = ""
    sha256: str = ""


def parts_of(metadata: Mapping[bytes, bytes] | None, *, number: int, rows: int) -> list[Part]:
    """Reads from what a sealed file carries which segments are in it, in order.

    Args:
        metadata: Of the file.
        number: The last of its numbers.
        rows: How many rows it has.

    Example:
        >>> parts_of({REMOVED_KEY: b"[[0, 2]]"}, number=3, rows=8)
        [Part(number=3, rows=8, removed=array([0, 1]), file='', sha256='')]
    """
    found = (metadata or {}).get(PARTS_KEY)
    if found is None:
        return [Part(number, rows, removed_rows(metadata))]
    return [
        Part(at, n, removed_rows({REMOVED_KEY: json.dumps(removed).encode()} if removed else None), file, sha256)
        for at, n, removed, file, sha256 in json.loads(found)
    ]


def noted(parts: Sequence[Part]) -> dict[bytes, bytes]:
    """Returns what a file of several segments carries.

    Example:
        >>> one = Part(3, 8, np.array([0, 1]))
        >>> parts_of(noted([one, Part(4, 1, np.array([], int))]), number=4, rows=9)[0]
        Part(number=3, rows=8, removed=array([0, 1]), file='', sha256='')
    """
    listed = [[one.number, one.rows, ranges(one.removed), one.file, one.sha256] for one in parts]
    return {PARTS_KEY: json.dumps(listed, separators=(",", ":")).encode()}


def ranges(rows: npt.NDArray[np.int64]) -> list[list[int]]:
    """Returns ascending numbers as first ones and lengths of what follows without a gap.

    Example:
        >>> ranges(np.array([3, 4, 9]))
        [[3, 2], [9, 1]]
    """
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    lengths = np.diff(np.append(starts, len(rows)))
    return [[int(rows[at]), int(n)] for at, n in zip(starts, lengths, strict=True)]


def without(part: Part, keep: npt.NDArray[np.bool_]) -> Part:
    """Returns a part that has lost rows.

    Args:
        part: The part.
        keep: Which of its rows stay, of shape (rows,).
    """
    if keep.all():
        return part
    left = np.ones(part.rows + len(part.removed), bool)
    left[part.removed] = False
    gone = np.union1d(part.removed, np.flatnonzero(left)[~keep])
    return Part(part.number, int(keep.sum()), gone)


def rows_of(parts: Sequence[Part], first: int, last: int) -> tuple[int, int]:
    """Returns where in a file the rows of segments `first` to `last` begin, and how many they are.

    Example:
        >>> none = np.array([], int)
        >>> rows_of([Part(3, 8, none), Part(5, 2, none), Part(6, 1, none)], 4, 6)
        (8, 3)
    """
    before = sum(one.rows for one in parts if one.number < first)
    return before, sum(one.rows for one in parts if first <= one.number <= last)


def standing(path: Path, source: Any, segment: Segment) -> tuple[int, int] | None:
    """Returns where in a sealed file the rows of a segment begin, and how many they are.

    Args:
        path: The file.
        source: The file, open, or a name for it as it is now.
        segment: As it was listed.

    Returns:
        None where the file is that of the segment and of no other.
    """
    if numbers(path.name) == (segment.first, segment.number):
        return None
    metadata = pq.read_metadata(source)
    found = parts_of(metadata.metadata, number=segment.number, rows=metadata.num_rows)
    return rows_of(found, segment.first, segment.number)


def sealed_rows(folder: Path, segment: Segment, columns: Sequence[str] | None = None) -> pa.Table | None:
    """Reads the rows of a segment that is sealed, also where it was merged since it was listed.

    Args:
        folder: Folder of the log.
        segment: As it was listed.
        columns: Which columns, those that are not there left out; all by default.

    Returns:
        As they lie in the file; None where the segment has gone.
    """
    path: Path | None = segment.path if segment.sealed else sealed_path(folder, segment.number)
    while path is not None:
        try:
            with path.open("rb") as file:
                there = pq.read_schema(file).names
                wanted = None if columns is None else [name for name in columns if name in there]
                within = standing(path, file, segment)
                table = pq.read_table(file, columns=wanted, partitioning=None)
                return table if within is None else table.slice(*within)
        except FileNotFoundError:
            path = moved(folder, segment, path)
    return None


def moved(folder: Path, segment: Segment, path: Path) -> Path | None:
    """Returns the file that the rows of a segment are in now that they are not at `path`; None where they have gone."""
    found = sealed_path(folder, segment.number)
    return None if found == path else found
