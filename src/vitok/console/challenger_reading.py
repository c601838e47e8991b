"""The challenger's own detector of change: what it holds, how far it is from its next alarm, what it has begun anew.

Everything comes from the one file that the challenger writes. Only what is asked is read of it, and no model is made
of it: the file of a busy home has more outcomes that still wait for their decision than all else.
"""

import dataclasses
import functools
import math
from pathlib import Path

import msgspec
import numpy as np

from vitok.console import curves
from vitok.console.geometry import Chart, Line, Mark
from vitok.console.wording import count, figure, time
from vitok.errors import InvalidInput, StoreError
from vitok.models.online_state import read_description
from vitok.stats import ADWIN
from vitok.systems.fraud.challenger import LEARNER
from vitok.systems.fraud.challenger_serving import FOLDER
from vitok.systems.fraud.messages import CHALLENGER

MOST_RESTARTS = 20
_PIECES = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of the detector's window.

    Attributes:
        first: Number of its first row, counted from the first row that was ever learned.
        n: How many rows it holds.
        mean: Their mean squared error.
    """

    first: int
    n: int
    mean: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A place where the window may be cut in two, and what the detector thinks of it.

    Attributes:
        n_old: Rows before it.
        n_new: Rows after it.
        old: Mean before it.
        new: Mean after it.
        bound: By how much the means must differ for a change.
    """

    n_old: int
    n_new: int
    old: float
    new: float
    bound: float

    @property
    def way(self) -> float:
        """Share of the way to an alarm that the newer part has gone: 0 where it is not worse, 1 at the alarm."""
        return max(self.new - self.old, 0.0) / self.bound


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestartSeen:
    """Where the challenger has begun anew.

    Attributes:
        at: Time that it had reached, in microseconds.
        decisions: How many decisions it had gone through.
        reason: Why, in words.
        start: What it went on from: the name of a snapshot, or `"the start"`.
    """

    at: int
    decisions: int
    reason: str
    start: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChallengerSeen:
    """The challenger and its detector.

    Attributes:
        version: What its newest snapshot is called in the log; None before there is one.
        reached: Time up to which it has learned, in microseconds.
        decisions: Decisions that it has gone through.
        learned: Of those, learned.
        positives: Of those, frauds.
        n_seen: Rows that the detector was told, each once.
        delta: The detector's threshold: error probability at one look.
        clock: Rows from one look to the next.
        to_look: Rows to the next look.
        width: Rows in its window.
        mean: Mean squared error in its window; NaN where it is empty.
        since: Time that was reached about where the window begins, in microseconds; None where that is not known.
        pieces: The window, oldest first.
        cut: The cut that is nearest to an alarm; None where the window is too short for one.
        worse_since: Number of the row since which the error is higher, where an alarm waits for the next look of the
            challenger; None where none does.
        restarts: The latest first, at most `MOST_RESTARTS`.
        n_restarts: How many there were, as far as they are kept.
        n_marks: Snapshots that it can begin anew from.
    """

    version: str | None
    reached: int
    decisions: int
    learned: int
    positives: int
    n_seen: int
    delta: float
    clock: int
    to_look: int
    width: int
    mean: float
    since: int | None
    pieces: tuple[Piece, ...]
    cut: Cut | None
    worse_since: int | None
    restarts: tuple[RestartSeen, ...]
    n_restarts: int
    n_marks: int

    def __str__(self) -> str:
        way = "too short to be cut" if self.cut is None else f"{self.cut.way:.0%} of the way to an alarm"
        head = f"{self.version or CHALLENGER}: {count(self.width)} rows, squared error {figure(self.mean)}, {way}"
        return "\n".join([head, *(f"  {time(one.at)}: {one.reason}" for one in self.restarts)])


def challenger(home: Path) -> ChallengerSeen | None:
    """Reads what the challenger of a home has written; None where there is none.

    Args:
        home: Folder of everything vitok writes.

    Raises:
        StoreError: If its file cannot be read, or is no challenger's.

    Example:
        >>> challenger(Path("nowhere")) is None
        True
    """
    path = home / FOLDER / LEARNER
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    return _challenger(path, state.st_ino, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _challenger(path: Path, *_: int) -> ChallengerSeen:
    learner = _described(path).about.learner
    notes = learner.notes
    try:
        detector = ADWIN.from_bytes(bytes.fromhex(notes.detector))
    except (ValueError, InvalidInput) as error:
        raise StoreError(f"{path}: holds no detector ({error})") from None
    pieces = window(detector, notes.seen)
    begins = notes.seen - detector.width
    before = [reached for seen, reached, _ in notes.marks if seen <= begins]
    return ChallengerSeen(
        version=f"{CHALLENGER}/{notes.published[-1][1]}" if notes.published else None,
        reached=learner.times[0],
        decisions=learner.counts.decisions,
        learned=learner.counts.learned,
        positives=learner.counts.positives,
        n_seen=notes.seen,
        delta=detector.threshold,
        clock=int(detector.parameters["clock"]),
        to_look=looks_in(detector),
        width=detector.width,
        mean=detector.mean,
        since=before[-1] if before else None,
        pieces=pieces,
        cut=nearest(detector, pieces),
        worse_since=notes.worse_since,
        restarts=tuple(reversed(notes.restarts))[:MOST_RESTARTS],
        n_restarts=len(notes.restarts),
        n_marks=len(notes.marks),
    )


def window(detector: ADWIN, seen: int) -> tuple[Piece, ...]:
    """Returns what an ADWIN holds, oldest first: pieces of 1, 2, 4, … rows, the newest the shortest.

    Args:
        detector: The detector.
        seen: How many rows it was told; its window ends with the last of them.

    Example:
        >>> detector = ADWIN()
        >>> _ = detector.update_many([0.0] * 7 + [1.0])
        >>> [(piece.first, piece.n, piece.mean) for piece in window(detector, 8)]
        [(0, 2, 0.0), (2, 2, 0.0), (4, 1, 0.0), (5, 1, 0.0), (6, 1, 0.0), (7, 1, 1.0)]
    """
    from vitok.stats import detectors_adwin_kernels as kernels

    state = detector._state  # noqa: SLF001 - its window, which has no other face
    words = state.view(np.int64)
    each, sums = int(words[kernels.MOST]) + 1, kernels.HEAD + 2 * kernels.LEVELS
    found, first = [], seen - detector.width
    for level in range(int(words[kernels.TOP]), -1, -1):
        oldest, n = int(words[kernels.HEAD + kernels.LEVELS + level]), 1 << level
        for number in range(int(words[kernels.HEAD + level])):
            # The buckets of a level go round.
            total = float(state[sums + level * each + (oldest + number) % each])
            found.append(Piece(first=first, n=n, mean=total / n))
            first += n
    return tuple(found)


def looks_in(detector: ADWIN) -> int:
    """Returns how many rows an ADWIN takes until it looks for a change again."""
    from vitok.stats import detectors_adwin_kernels as kernels

    return int(detector._state.view(np.int64)[kernels.LEFT])  # noqa: SLF001 - as in `window`


def nearest(detector: ADWIN, pieces: tuple[Piece, ...]) -> Cut | None:
    """Returns the cut of an ADWIN's window that is nearest to an alarm; None where the window is too short for one.

    The bound is the detector's own (`vitok.stats.detectors_adwin_kernels`). Only a rise counts, as for the challenger;
    at a cut with `way` above 1 the next look would find it.
    """
    from vitok.stats import detectors_adwin_kernels as kernels

    least, grace = int(detector.parameters["min_window_length"]), int(detector.parameters["grace_period"])
    n = np.array([piece.n for piece in pieces], np.float64)
    width = n.sum()
    if width < max(2 * least, grace + 1):
        return None
    totals = n * np.array([piece.mean for piece in pieces])
    n_old, old = n.cumsum()[:-1], totals.cumsum()[:-1]
    n_new, new = width - n_old, totals.sum() - old
    long = (n_old >= least) & (n_new >= least)
    n_old, old, n_new, new = n_old[long], old[long], n_new[long], new[long]
    log = math.log(2.0 * math.log(width) / detector.threshold)
    spread = max(float(detector._state[kernels.SQUARES]) / width, 0.0)  # noqa: SLF001 - as in `window`
    share = 1.0 / (n_old - least + 1.0) + 1.0 / (n_new - least + 1.0)
    bound = np.sqrt(2.0 * share * spread * log) + 2.0 / 3.0 * log * share
    rise = new / n_new - old / n_old
    at = int(np.argmax(rise / bound))
    return Cut(
        n_old=int(n_old[at]),
        n_new=int(n_new[at]),
        old=float(old[at] / n_old[at]),
        new=float(new[at] / n_new[at]),
        bound=float(bound[at]),
    )


def window_drawn(seen: ChallengerSeen) -> Chart:
    """Draws the mean error over the rows of the window, the nearest cut, and what would be an alarm there."""
    pieces = thinned(seen.pieces, _PIECES)
    cut = seen.cut
    alarm = [] if cut is None else [cut.old + cut.bound]
    axis = curves.Axis.around([*(piece.mean for piece in pieces), *alarm], zero=True)
    first, width = seen.n_seen - seen.width, max(seen.width, 1)

    def along(row: int) -> float:
        return 100 * (row - first) / width

    steps = [(along(end), axis.up(piece.mean)) for piece in pieces for end in (piece.first, piece.first + piece.n)]
    marks = tuple(
        Mark(
            x=along(piece.first),
            y=0.0,
            width=max(along(piece.first + piece.n) - along(piece.first), 0.01),
            height=100.0,
            tone="pointed",
            title=f"rows {count(piece.first + 1)} to {count(piece.first + piece.n)}: {figure(piece.mean)}",
        )
        for piece in pieces
    )
    lines: tuple[Line, ...] = (curves.line(steps, "actual"),)
    if cut is not None:
        split, end = along(first + cut.n_old), 100.0
        lines = (
            curves.line([(0.0, axis.up(cut.old)), (split, axis.up(cut.old))], "reference"),
            curves.line([(split, axis.up(cut.new)), (end, axis.up(cut.new))], "reference"),
            curves.line([(split, axis.up(alarm[0])), (end, axis.up(alarm[0]))], "bound"),
            *lines,
        )
    return Chart(
        title="Squared error by row learned, in the window that the detector holds",
        marks=marks,
        lines=lines,
        y_labels=axis.labels(),
        x_labels=(f"row {count(first + 1)}", f"row {count(seen.n_seen)}") if seen.width else (),
    )


def thinned(pieces: tuple[Piece, ...], most: int) -> tuple[Piece, ...]:
    """Puts neighbours together until each piece holds the `most`-th part of the rows: single rows are all 0 or 1.

    Example:
        >>> found = thinned(tuple(Piece(first=at, n=1, mean=float(at)) for at in range(4)), 2)
        >>> [(piece.first, piece.n, piece.mean) for piece in found]
        [(0, 2, 0.5), (2, 2, 2.5)]
    """
    least = sum(piece.n for piece in pieces) / most
    found: list[Piece] = []
    for piece in pieces:
        if found and found[-1].n < least:
            last = found.pop()
            n = last.n + piece.n
            found.append(Piece(first=last.first, n=n, mean=(last.n * last.mean + piece.n * piece.mean) / n))
        else:
            found.append(piece)
    return tuple(found)


class _Counts(msgspec.Struct):
    decisions: int
    learned: int
    positives: int


class _Notes(msgspec.Struct):
    detector: str
    seen: int
    worse_since: int | None
    published: list[tuple[int, str]]
    marks: list[tuple[int, int, str]]
    restarts: list[RestartSeen]


class _Learner(msgspec.Struct):
    counts: _Counts
    times: list[int]
    notes: _Notes


class _About(msgspec.Struct):
    learner: _Learner


class _Described(msgspec.Struct):
    about: _About


def _described(path: Path) -> _Described:
    try:
        return msgspec.json.decode(read_description(path), type=_Described)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: is no snapshot of a challenger ({error})") from None
