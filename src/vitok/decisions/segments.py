"""The folder of a log: its segments, where each lies, and the places of a log that readers keep.

A segment is born as `segment-00000012.arrows`, an Arrow IPC stream that only grows, and is sealed to
`day=2026-03-01/hour=14/segment-00000012.parquet` with the same rows in the same order. It is written by one process
in one run. Where several processes write a log, each has a row of numbers of its own, its lane: segments of lane 2
are numbered from 200000001 on, and the order of the log is lane by lane.

Small sealed segments may be merged into one file, `segment-00000012-00000040.parquet`. From the moment it has its name
it stands for all segments of these numbers, whatever else lies there.
"""

import contextlib
import datetime as dt
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

Durability = Literal["process", "fsync"]

LANE = 100_000_000
"""How many numbers of segments a lane has; lane 0 is that of the only writer of a log."""

NAME = re.compile(r"segment-(\d{8,})(?:-(\d{8,}))?\.(arrows|parquet)")
MERGES = "merges.jsonl"
_FOLDER = re.compile(r"(day|hour)=[\d-]+")
_LAST_TIME = 253_402_300_799_000_000
# A folder's time is a few milliseconds coarse: only one that has rested for longer tells that nothing was added.
_RESTED_NS = 2_000_000_000
_MOST_KEPT = 50_000
_kept: dict[str, tuple[tuple[int, int], tuple[tuple[str, bool], ...]]] = {}
# First and last number of the segments in a file, and the file.
_Spanned = tuple[int, int, Path]


class Position(NamedTuple):
    """A place in a log: everything before segment `segment`, and `rows` rows of it.

    It keeps its meaning when the segment is sealed, and when rows of it are deleted. As JSON it is a list of two
    numbers.

    Example:
        >>> Position(3, 120) < Position(4, 0)
        True
    """

    segment: int
    rows: int


class Segment(NamedTuple):
    """One file of a log; `number` is the last of its numbers where it is a merged one."""

    number: int
    path: Path

    @property
    def first(self) -> int:
        """The first of its numbers.

        Example:
            >>> Segment(40, Path("segment-00000012-00000040.parquet")).first
            12
        """
        found = numbers(self.path.name)
        return self.number if found is None else found[0]

    @property
    def merged(self) -> bool:
        """Whether the file holds the rows of several segments."""
        return self.first < self.number

    @property
    def sealed(self) -> bool:
        """Whether the file is a sealed one."""
        return self.path.suffix == ".parquet"

    @property
    def name(self) -> str:
        """What the segment is called, open or sealed.

        Example:
            >>> Segment(12, open_path(Path("log"), 12)).name
            'segment-00000012'
        """
        return self.path.stem


def numbers(name: str) -> tuple[int, int] | None:
    """Reads from the name of a file the first and the last number of the segments in it; None of any other file.

    Example:
        >>> numbers("segment-00000012.arrows"), numbers("segment-00000012-00000040.parquet"), numbers("schema.json")
        ((12, 12), (12, 40), None)
    """
    match = NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2] or match[1]))


def segment_name(number: int) -> str:
    """Returns what the segment of a number is called."""
    return f"segment-{number:08d}"


def open_path(folder: Path, number: int) -> Path:
    """Returns where the open form of a segment lies."""
    return folder / f"{segment_name(number)}.arrows"


def partition(ingest_time: int) -> str:
    """Names the folder of a sealed segment after the day and hour (UTC) at which its first row was written.

    Args:
        ingest_time: Of that row, in microseconds.

    Example:
        >>> partition(1_772_373_600_000_000)
        'day=2026-03-01/hour=14'
    """
    moment = dt.datetime.fromtimestamp(min(max(ingest_time, 0), _LAST_TIME) / 1_000_000, tz=dt.UTC)
    return f"day={moment:%Y-%m-%d}/hour={moment:%H}"


def sealed_path(folder: Path, number: int) -> Path:
    """Returns where the sealed form of a segment lies, which may be a merged one.

    Beside the open ones, as in old logs, where there is none.
    """
    for first, last, path in settled(folder, lambda: _outermost(_sealed(folder))):
        if first <= number <= last:
            return path
    return folder / f"{segment_name(number)}.parquet"


def segments(folder: Path) -> list[Segment]:
    """Lists the segments of a log in order, each in one form; none where the folder does not exist.

    Of each writer's segments all are there up to the last one listed, also while segments are begun and sealed. Those
    that were merged are there once, in the file that has the rows of all.
    """
    found = settled(folder, lambda: _looked_up(folder))
    return [Segment(number, found[number]) for number in sorted(found)]


_Found = TypeVar("_Found")


def settled(folder: Path, look: Callable[[], _Found]) -> _Found:
    """Returns what a look through the folders of a log finds, with no merge between its begin and its end.

    Args:
        folder: Folder of the log.
        look: Looks, and returns what it found; called again where segments were merged meanwhile.
    """
    # A look that began before a merged file had its name may have missed both it and some of those that it took the
    # place of. The note of merges grows after the one and before the other.
    while True:
        before = _merges(folder)
        found = look()
        if _merges(folder) == before:
            return found


def _merges(folder: Path) -> int:
    try:
        return os.stat(f"{folder}/{MERGES}").st_size  # noqa: PTH116
    except FileNotFoundError:
        return 0


def _looked_up(folder: Path) -> dict[int, Path]:
    before = _stamp(str(folder)), _names(str(folder))
    found = _listed(folder)
    if (_stamp(str(folder)), _names(str(folder))) != before:
        # Of two segments that were begun and sealed while the folders were looked through, one after another, the
        # later may have been found and the earlier not. All that had been begun by now are found by a second look.
        last = {number // LANE: number for number in sorted(found)}
        found = {number: path for number, path in _listed(folder).items() if number <= last.get(number // LANE, -1)}
    return found


def changed(folder: Path) -> int | None:
    """Tells when names in a log's folder last changed, once that is certain; each new or sealed segment changes it.

    Returns:
        A time that is the same as long as no segment was begun or sealed; None where that cannot be told.
    """
    try:
        at = folder.stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return at if time.time_ns() - at > _RESTED_NS else None


def _listed(folder: Path) -> dict[int, Path]:
    # The open ones first: one that is sealed meanwhile has its other form before it loses this one.
    found = []
    for name, _ in _names(str(folder)):
        match = NAME.fullmatch(name)
        if match and match[3] == "arrows":
            found.append((int(match[1]), int(match[1]), folder / name))
    return {last: path for _, last, path in _outermost(found + _sealed(folder))}


def _outermost(found: list[_Spanned]) -> list[_Spanned]:
    # Of files that hold the same segments the one that holds most; of the two forms of one the sealed one.
    reach, out = -1, []
    for one in sorted(found, key=_widest_first):
        if one[1] > reach:
            out.append(one)
            reach = one[1]
    return out


def _widest_first(one: _Spanned) -> tuple[int, int, bool]:
    return one[0], -one[1], one[2].suffix == ".arrows"


def covered(folder: Path) -> dict[Path, list[Path]]:
    """Lists by merged file the sealed ones whose rows are in it too, which a merge has left that was killed."""
    over: _Spanned = (0, -1, folder)
    out: dict[Path, list[Path]] = {}
    for first, last, path in sorted(_sealed(folder), key=_widest_first):
        if last > over[1]:
            over = first, last, path
        elif (first, last) != over[:2]:
            out.setdefault(over[2], []).append(path)
    return out


def _sealed(folder: Path) -> list[_Spanned]:
    found = []
    pending = [str(folder)]
    while pending:
        place = pending.pop()
        for name, is_folder in _names(place):
            if is_folder:
                if _FOLDER.fullmatch(name):
                    pending.append(f"{place}/{name}")
            elif name.endswith(".parquet"):
                match = NAME.fullmatch(name)
                if match:
                    found.append((int(match[1]), int(match[2] or match[1]), Path(place, name)))
    return found


def _stamp(folder: str) -> tuple[int, int] | None:
    # When names in a folder last changed, and which folder it is: one of the name may have been made anew.
    try:
        found = os.stat(folder)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def _names(folder: str) -> tuple[tuple[str, bool], ...]:
    # A log of years has thousands of folders of hours, of which all but the last are as they were.
    at = _stamp(folder)
    if at is None:
        return ()
    kept = _kept.get(folder)
    if kept is not None and kept[0] == at:
        return kept[1]
    found: tuple[tuple[str, bool], ...] = ()
    with contextlib.suppress(FileNotFoundError):
        with os.scandir(folder) as entries:
            found = tuple((entry.name, entry.is_dir()) for entry in entries)
        if time.time_ns() - at[0] > _RESTED_NS:
            if len(_kept) >= _MOST_KEPT:
                _kept.clear()
            _kept[folder] = at, found
    return found
