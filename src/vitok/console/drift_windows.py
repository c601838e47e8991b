"""Windows of sketches held against a baseline, each measured once and kept, and never for longer than a page may take.

Measuring a day of a thousand features takes some milliseconds, a year of them seconds. Closed hours do not change, so
what was measured is kept in the process; a page measures the newest windows first and stops when its time is over, and
the next load of it goes on there.
"""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, HOUR
from vitok.errors import Conflict
from vitok.monitoring import Baseline, DriftRule, HourlyCounts, ReferenceProfile, Sketches, drift_series
from vitok.monitoring.baselines import WEEK, YEAR
from vitok.monitoring.profile import PROBABILITY
from vitok.registry import Version
from vitok.stats import benjamini_hochberg, psi
from vitok.stats.null_laws import is_sparse

BaselineName = Literal["training", "healthy", "last week", "last year"]
BASELINES: tuple[BaselineName, ...] = ("training", "healthy", "last week", "last year")
RULE = DriftRule()
HEALTHY_DAYS = 7
_BACK = {"last week": WEEK, "last year": YEAR}
_KEPT_WINDOWS = 2_048
# A law is drawn in about twenty milliseconds.
_MOST_DRAWN = 16
_KEPT_SUMS = 128
# Windows against one baseline share a part of the work; more of them would not stop in time.
_TOGETHER = 6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Decisions of a window, over all bins of a profile.

    Attributes:
        start: When the window begins, in microseconds.
        end: When it ends, not included.
        n: Decisions.
        counts: Shape (b,), all columns end to end.
    """

    start: int
    end: int
    n: int
    counts: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """One window against its baseline; f columns, the probability last.

    Attributes:
        start: When it begins, in microseconds.
        n: Decisions in it; 0 where there is nothing to hold it against.
        effect: Shape (f,), PSI above its null mean, at least 0.
        shift: Shape (f,), in interquartile ranges of the reference.
        drifted: Shape (f,), whether the rule calls it drift.
    """

    start: int
    n: int
    effect: NDArray[np.float32]
    shift: NDArray[np.float32]
    drifted: NDArray[np.bool_]

    @property
    def judged(self) -> bool:
        """Whether the window has enough decisions to say anything."""
        return self.n >= RULE.min_n


class _Kept:
    """The latest results, by key, for all threads that make pages."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: Any, value: Any) -> None:
        with self._lock:
            self._found[key] = value
            while len(self._found) > self._most:
                self._found.popitem(last=False)


_MEASURED, _SUMS = _Kept(_KEPT_WINDOWS), _Kept(_KEPT_SUMS)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """What is held against what.

    Attributes:
        home: Folder of everything vitok writes.
        version: Which version's hours.
        profile: Its reference profile.
        baseline: Against what.
        healthy: The days that the baseline `"healthy"` stands for, their beginnings in microseconds.
        slice: Column and value of the slice that is looked at; None for all decisions.
    """

    home: Path
    version: Version
    profile: ReferenceProfile
    baseline: BaselineName
    healthy: tuple[int, ...] = ()
    slice: tuple[str, str] | None = None

    def measure(
        self, sketches: Sketches, windows: Sequence[tuple[int, int]], *, seconds: float
    ) -> tuple[list[Measured], int]:
        """Measures windows, the newest first, as long as there is time; what was measured before costs none.

        Args:
            sketches: The open sketches of the home.
            windows: Beginning and end of each, oldest first, whole hours.
            seconds: When no other window is begun.

        Returns:
            What was measured, oldest first, and how many windows are left.
        """
        found: dict[int, Measured] = {}
        unknown: list[tuple[tuple[Any, ...], int, int]] = []
        for start, end in windows:
            key = (*self._key(), start, end, self._size(sketches, start, end), self._base_size(sketches, start, end))
            known = _MEASURED.get(key)
            if known is None:
                unknown.append((key, start, end))
            else:
                found[start] = known
        # What is loaded for the first ones in a process is no measure of the others.
        deadline = math.inf if not found else time.monotonic() + seconds
        first = True
        longest = max((end - start for start, end in windows), default=DAY)
        together = 1 if self.baseline in _BACK else 2 if longest > DAY else _TOGETHER
        while unknown and (first or time.monotonic() <= deadline):
            first = False
            taken, unknown = unknown[-together:], unknown[:-together]
            for (key, start, _), one in zip(taken, self._measure(sketches, [one[1:] for one in taken]), strict=True):
                _MEASURED.put(key, one)
                found[start] = one
            deadline = min(deadline, time.monotonic() + seconds)
        return [found[start] for start in sorted(found)], len(unknown)

    def counts(self, sketches: Sketches, start: int, end: int) -> Counts | None:
        """Adds up the hours of a window; None where nothing was decided in it."""
        if self.slice is not None:
            column, value = self.slice
            own = [one for one in sketches.slices(self.version.name, start, end) if one.column == column]
            chosen = [one for one in own if one.value == value]
            return Counts(start=start, end=end, n=chosen[0].n, counts=chosen[0].counts) if chosen else None
        n, total = 0, None
        # Day by day, so that a month of a thousand features need not lie in memory at once.
        for first in range(start, end, DAY):
            hours = sketches.series(self.version.name, first, min(first + DAY, end))
            if hours is not None:
                if hours.digest != self.profile.digest:
                    raise Conflict(f"{self.version.name} was counted over other bins than its profile has")
                n += hours.n_total
                part = hours.counts.sum(axis=0)
                total = part if total is None else total + part
        return None if total is None else Counts(start=start, end=end, n=n, counts=total)

    def against(self, sketches: Sketches, start: int, end: int) -> Baseline | None:
        """Returns what a window is held against; None where there is nothing to hold it against."""
        if self.baseline == "training":
            whole = Baseline.training(self.profile)
            if self.slice is None:
                return whole
            column, value = self.slice
            counts = np.asarray(self.profile.slices[column][value])
            return self._base("training", Counts(start=whole.start, end=whole.end, n=self._rows(counts), counts=counts))
        if self.baseline == "healthy":
            return self._healthy(sketches)
        back = _BACK[self.baseline]
        return self._base(self.baseline, self.counts(sketches, start - back, end - back))

    def _healthy(self, sketches: Sketches) -> Baseline | None:
        if not self.healthy:
            return None
        size = tuple(self._size(sketches, first, first + DAY) for first in self.healthy)
        key = ("healthy", *self._key(), self.healthy, size)
        known = _SUMS.get(key)
        if known is None:
            parts = [part for first in self.healthy if (part := self.counts(sketches, first, first + DAY)) is not None]
            if not parts:
                return None
            known = Counts(
                start=parts[0].start,
                end=parts[-1].end,
                n=sum(part.n for part in parts),
                counts=np.sum([part.counts for part in parts], axis=0),
            )
            _SUMS.put(key, known)
        return self._base("healthy", known)

    def _base(self, name: str, found: Counts | None) -> Baseline | None:
        if found is None or not found.n:
            return None
        return Baseline(
            name=name,
            start=found.start,
            end=found.end,
            n=found.n,
            digest=self.profile.digest,
            counts=found.counts.astype(np.int64),
        )

    def _rows(self, counts: NDArray[np.int64]) -> int:
        # Every row is in one bin of every column.
        return int(counts[: self.profile.layout.offsets[1]].sum())

    def _measure(self, sketches: Sketches, windows: list[tuple[int, int]]) -> list[Measured]:
        """Measures windows against one baseline: that of the first."""
        names = self.profile.columns
        none = np.full(len(names), np.nan, dtype=np.float32)
        still = np.zeros(len(names), dtype=np.bool_)
        given = self.against(sketches, *windows[0])
        parts = [self.counts(sketches, start, end) for start, end in windows]
        there = [part for part in parts if part is not None and part.n]
        if given is None or not there:
            return [Measured(start=start, n=0, effect=none, shift=none, drifted=still) for start, _ in windows]
        length = windows[0][1] - windows[0][0]
        series = drift_series(self.profile, _windows(self, there), baseline=given, every=length)
        ordinary = np.asarray(self.profile.ordinary, dtype=np.float64).reshape(len(names), 2)
        bound = np.maximum(RULE.min_effect, RULE.beyond_ordinary * ordinary[:, 0])
        watched = [at for at, name in enumerate(names) if name not in self.profile.ignored and name != PROBABILITY]
        found: dict[int, Measured] = {}
        effects = series.effect
        for at, part in enumerate(there):
            effect, adjusted = effects[at], series.p_value[at].copy()
            if part.n >= RULE.min_n:
                self._again(given, part, effect, adjusted, bound, most=max(2, _MOST_DRAWN // len(there)))
            adjusted[watched] = benjamini_hochberg(adjusted[watched]).adjusted
            large = effect >= bound
            large |= series.shift[at] >= np.maximum(RULE.min_shift, RULE.beyond_ordinary * ordinary[:, 1])
            found[part.start] = Measured(
                start=part.start,
                n=part.n,
                effect=effect.astype(np.float32),
                shift=series.shift[at].astype(np.float32),
                drifted=large & (adjusted <= RULE.false_discovery_rate) & (part.n >= RULE.min_n),
            )
        empty = Measured(start=0, n=0, effect=none, shift=none, drifted=still)
        return [found.get(start, dataclasses.replace(empty, start=start)) for start, _ in windows]

    def _again(
        self,
        given: Baseline,
        found: Counts,
        effect: NDArray[np.float64],
        p_value: NDArray[np.float64],
        bound: NDArray[np.float64],
        *,
        most: int,
    ) -> None:
        """Measures anew, by its drawn law, what would be called drift from bins too sparse for the chi-square law."""
        large = np.flatnonzero(effect >= bound)
        if not len(large):
            return
        before, now = self.profile.layout.split(given.counts), self.profile.layout.split(found.counts)
        measured = 0
        for at in large[np.argsort(-effect[large])].tolist():
            used = (before[at] > 0) | (now[at] > 0)
            if used.sum() < 2 or not is_sparse("psi", before[at][used].astype(float), now[at][used].astype(float)):
                continue
            exact = psi(before[at], now[at])
            effect[at], p_value[at] = max(0.0, exact.excess), exact.p_value
            measured += 1
            if measured == most:
                return

    def _key(self) -> tuple[Any, ...]:
        return (self.home, self.version.name, self.version.digest, self.baseline, self.healthy, self.slice)

    def _size(self, sketches: Sketches, start: int, end: int) -> int:
        # A window is told by its number of decisions: the log only grows.
        return sketches.versions(start, end).get(self.version.name, 0)

    def _base_size(self, sketches: Sketches, start: int, end: int) -> int:
        back = _BACK.get(self.baseline)
        return 0 if back is None else self._size(sketches, start - back, end - back)


def _windows(held: Held, found: list[Counts]) -> HourlyCounts:
    none = np.zeros(0, dtype=np.int64)
    counts = np.stack([part.counts for part in found])
    return HourlyCounts(
        version=held.version.name,
        digest=held.profile.digest,
        hours=np.array([part.start // HOUR for part in found], dtype=np.int64),
        n=np.array([part.n for part in found], dtype=np.int64),
        counts=counts,
        numbers=("{}",) * len(found),
        slices=(),
        slice_at=none.reshape(0, 2),
        slice_n=none,
        slice_counts=none.reshape(0, counts.shape[1]),
        joint=np.zeros((len(found), 0)),
    )


def healthy_days(
    sketches: Sketches, version: str, firing: Iterable[tuple[int, int]], *, before: int | None = None
) -> tuple[int, ...]:
    """Returns the first days of a version on which no alert about it held, with enough decisions, at most seven.

    Args:
        sketches: Hourly counts.
        version: Which version.
        firing: From when until when alerts held, in microseconds.
        before: Only days that end by then.
    """
    spans = list(firing)
    found: list[int] = []
    for day in sorted({hour // DAY * DAY for hour in sketches.hours(version)}):
        troubled = any(start < day + DAY and day < end for start, end in spans)
        if before is not None and day + DAY > before:
            break
        if not troubled and sketches.versions(day, day + DAY).get(version, 0) >= RULE.min_n:
            found.append(day)
        if len(found) == HEALTHY_DAYS:
            break
    return tuple(found)


def slice_choices(profile: ReferenceProfile) -> tuple[tuple[str, str], ...]:
    """Returns the slices that a profile has, as column and value."""
    return tuple((column, value) for column, values in profile.slices.items() for value in values)
