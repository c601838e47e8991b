"""Whether it still holds: how far features have moved over time, against what, and which slice explains it."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitok.clock import DAY, HOUR
from vitok.console import stores
from vitok.console.drift_windows import (
    BASELINES,
    RULE,
    BaselineName,
    Held,
    Measured,
    healthy_days,
    slice_choices,
)
from vitok.console.wording import day, plural
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring import Baseline, ReferenceProfile, Sketches, SliceCounts, SliceReport, explain, moved_slices
from vitok.monitoring.baselines import WEEK
from vitok.monitoring.distance import distance
from vitok.monitoring.profile import PROBABILITY
from vitok.monitoring.slices import SliceFinding
from vitok.registry import Version
from vitok.stats import Divergence
from vitok.systems.fraud.messages import SYSTEM

SPANS = {2: HOUR, 14: DAY, 28: DAY, 56: DAY, 364: WEEK}
ROWS = 60
SECONDS = 0.25
# Beyond so many cells, to look for what moved within slices takes longer than a page may.
_MOST_CELLS = 4_000
# To add up more bytes of slices than these takes longer than a page may.
_MOST_BYTES = 64_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftCell:
    """A column in a window.

    Attributes:
        day: Beginning of the window, in microseconds.
        effect: PSI above its null mean; NaN where the window has no decisions.
        shift: Shift in interquartile ranges of the reference; NaN where the window has no decisions.
        drifted: Whether the rule calls it drift.
        judged: Whether the window has enough decisions to say anything.
    """

    day: int
    effect: float
    shift: float
    drifted: bool
    judged: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftRow:
    """A column over the windows.

    Attributes:
        name: The feature, or `"probability"`.
        cells: One for each window.
    """

    name: str
    cells: tuple[DriftCell, ...]

    @property
    def largest(self) -> float:
        """The largest effect in a window that can be judged; 0 where there is none."""
        return max((cell.effect for cell in self.cells if cell.judged), default=0.0)

    @property
    def drifted_days(self) -> int:
        """In how many windows the rule calls it drift."""
        return sum(cell.drifted for cell in self.cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinShare:
    """A bin of a column.

    Attributes:
        label: What falls into it.
        reference: Share of the baseline in it.
        current: Share of the window in it.
    """

    label: str
    reference: float
    current: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnStory:
    """One column in one window, against the baseline.

    Attributes:
        name: The feature, or `"probability"`.
        day: Beginning of the window, in microseconds.
        end: Its end, not included.
        cell: How far it moved.
        effect_bound: The effect from which a change of this column is called large.
        shift_bound: The shift from which it is.
        bins: Bins that are not empty in both.
        statistics: Six distances, each with its null law.
        baseline: What it is held against; None where there is nothing.
        n_current: Decisions of the window.
        explained: How its drift against training splits over the slices, by slice column.
    """

    name: str
    day: int
    end: int
    cell: DriftCell
    effect_bound: float
    shift_bound: float
    bins: tuple[BinShare, ...]
    statistics: tuple[Divergence, ...]
    baseline: Baseline | None
    n_current: int
    explained: tuple[SliceReport, ...]

    @property
    def n_reference(self) -> int:
        """Rows of the baseline."""
        return 0 if self.baseline is None else self.baseline.n


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSeen:
    """Drift of one version over time.

    Attributes:
        version: Which version, or None where there is none.
        versions: Versions to choose from, newest first.
        days: Beginnings of the windows, in microseconds, oldest first.
        span: How many days were asked for.
        length: Length of a window, in microseconds.
        baseline: Against what, one of `baselines`.
        baselines: What can be chosen.
        slice: The slice that is looked at, as `"column=value"`; empty for all decisions.
        slices: Slices to choose from.
        find: Only features with this in their name.
        probability: What the model says, or None where nothing was counted.
        features: The features of this page, the one that moved most first.
        n_features: Features that match.
        page: Number of the page, from 1.
        pages: How many there are.
        ignored: Features in which no drift is looked for.
        column: The chosen column in the chosen window, or None.
        moved: Columns that moved within a slice of the chosen window, the largest first.
        left: Windows that are still to be measured, at the next load.
        reason: Why there is nothing to show, in words; empty where there is.
    """

    version: str | None
    versions: tuple[str, ...]
    days: tuple[int, ...] = ()
    span: int
    length: int
    baseline: BaselineName
    baselines: tuple[BaselineName, ...] = BASELINES
    slice: str = ""
    slices: tuple[str, ...] = ()
    find: str = ""
    probability: DriftRow | None = None
    features: tuple[DriftRow, ...] = ()
    n_features: int = 0
    page: int = 1
    pages: int = 1
    ignored: tuple[str, ...] = ()
    column: ColumnStory | None = None
    moved: tuple[SliceFinding, ...] = ()
    left: int = 0
    reason: str = ""

    @property
    def given(self) -> dict[str, object]:
        """What was asked for, by name, without what is asked for by default: for addresses."""
        return {
            "version": self.version,
            "days": self.span if self.span != 28 else None,
            "against": self.baseline if self.baseline != "training" else None,
            "slice": self.slice,
            "find": self.find,
        }

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        rows = ([self.probability] if self.probability else []) + list(self.features)
        windows = plural(len(self.days), {HOUR: "hour", DAY: "day"}.get(self.length, "week"))
        lines = [f"{self.version}: largest PSI above its null mean in {windows}, against {self.baseline}"]
        return "\n".join(lines + [f"  {row.name:<28} {row.largest:.3f}  {row.drifted_days} drifted" for row in rows])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftAsked:
    """What is asked of drift.

    Attributes:
        version: Which version, such as `"fraud/2"`; None for the one that serves, else the newest.
        days: How many of its latest days, one of `SPANS`: 2 by the hour, 364 by the week, else by the day.
        column: The feature (or `"probability"`) to look at; None for the one that moved most.
        on: Beginning of the window in which to look at it, in microseconds; None for the latest in which it
            drifted, else the latest.
        against: The baseline, one of `BASELINES`.
        slice: `"column=value"` of a slice of the profile; empty for all decisions.
        find: Only features with this in their name.
        page: Number of the page of features, from 1.
        seconds: When no other window is begun to be measured.

    Raises:
        InvalidInput: If something is not offered.
    """

    version: str | None = None
    days: int = 28
    column: str | None = None
    on: int | None = None
    against: str = "training"
    slice: str = ""
    find: str = ""
    page: int = 1
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.days not in SPANS:
            raise InvalidInput("days", self.days, f"be one of {', '.join(map(str, SPANS))}")
        if self.against not in BASELINES:
            raise InvalidInput("against", self.against, f"be one of {', '.join(BASELINES)}")
        if self.page < 1:
            raise InvalidInput("page", self.page, "be at least 1")


def drift(home: Path, version: str | None = None, *, asked: DriftAsked | None = None) -> DriftSeen:
    """Reads how far a version's features and probability have moved.

    Args:
        home: Folder of everything vitok writes.
        version: Which version, where nothing else is asked.
        asked: What is asked.

    Raises:
        NotFound: If the version was never registered, or the column, window, slice or page is not there.
    """
    want = asked or DriftAsked(version=version)
    state = stores.state(home)
    known = {item.name: item for item in reversed(state.versions)}
    if want.version is not None and want.version not in known:
        raise NotFound("version", want.version, known)
    if not known:
        return _nothing(want, None, (), "No version was registered yet, so there is no reference to compare with.")
    chosen = known[want.version] if want.version else (state.version(state.production) if state.production else None)
    chosen = chosen or next(iter(known.values()))
    profile = stores.profile(home, chosen)
    names = tuple(known)
    if profile is None:
        return _nothing(want, chosen.name, names, f"{chosen.name} carries no reference profile.")
    with stores.sketches(home) as sketches:
        if sketches is None:
            told = "Nothing was sketched yet; the watch beside the service does it."
            return _nothing(want, chosen.name, names, told)
        return _seen(home, want, names, chosen, profile, sketches)


def _nothing(want: DriftAsked, version: str | None, names: tuple[str, ...], reason: str) -> DriftSeen:
    baseline = next(name for name in BASELINES if name == want.against)
    return DriftSeen(
        version=version, versions=names, span=want.days, length=SPANS[want.days], baseline=baseline, reason=reason
    )


def _seen(
    home: Path,
    want: DriftAsked,
    names: tuple[str, ...],
    chosen: Version,
    profile: ReferenceProfile,
    sketches: Sketches,
) -> DriftSeen:
    length = SPANS[want.days]
    starts = sorted({hour // length * length for hour in sketches.hours(chosen.name)})[-want.days * DAY // length :]
    if not starts:
        return _nothing(want, chosen.name, names, f"{chosen.name} has not decided yet.")
    slices = {f"{column}={value}": (column, value) for column, value in slice_choices(profile)}
    if want.slice and want.slice not in slices:
        raise NotFound("slice", want.slice, slices)
    held = Held(
        home=home,
        version=chosen,
        profile=profile,
        baseline=next(name for name in BASELINES if name == want.against),
        healthy=healthy_days(sketches, chosen.name, _firing(home, chosen)) if want.against == "healthy" else (),
        slice=slices.get(want.slice),
    )
    windows = [(start, start + length) for start in starts]
    measured, left = held.measure(sketches, windows, seconds=want.seconds)
    order = _ordered(profile, measured, want.find)
    pages = max(1, -(-len(order) // ROWS))
    if want.page > pages:
        raise NotFound("page", want.page, [f"1 to {pages}"])
    shown = order[(want.page - 1) * ROWS : want.page * ROWS]
    column = want.column or (profile.columns[order[0]] if order else PROBABILITY)
    story = _story(held, sketches, measured, column, want.on, length)
    return DriftSeen(
        version=chosen.name,
        versions=names,
        days=tuple(one.start for one in measured),
        span=want.days,
        length=length,
        baseline=held.baseline,
        slice=want.slice,
        slices=tuple(slices),
        find=want.find,
        probability=_row(profile, measured, len(profile.columns) - 1),
        features=tuple(_row(profile, measured, at) for at in shown),
        n_features=len(order),
        page=want.page,
        pages=pages,
        ignored=profile.ignored,
        column=story,
        moved=_moved(profile, sketches, chosen.name, story),
        left=left,
    )


def _firing(home: Path, version: Version) -> list[tuple[int, int]]:
    with stores.alert_store(home) as store:
        found = () if store is None else store.history(system=SYSTEM)
    return [
        (alert.first_seen - DAY, 2**62 if alert.cleared_at is None else alert.cleared_at)
        for alert in found
        if alert.version in (version.name, "all")
    ]


def _ordered(profile: ReferenceProfile, measured: Sequence[Measured], find: str) -> list[int]:
    """Returns the places of the watched features, the one that drifted on most days first, then the largest."""
    watched = [
        at
        for at, name in enumerate(profile.names)
        if name not in profile.ignored and find.casefold() in name.casefold()
    ]
    if not watched:
        return []
    judged = [one for one in measured if one.judged]
    if not judged:
        return sorted(watched, key=lambda at: profile.columns[at])
    times = np.sum([one.drifted[watched] for one in judged], axis=0)
    largest = np.max([one.effect[watched] for one in judged], axis=0)
    keys = zip(watched, times.tolist(), largest.tolist(), strict=True)
    return [at for at, _, _ in sorted(keys, key=lambda key: (-key[1], -key[2], profile.columns[key[0]]))]


def _row(profile: ReferenceProfile, measured: Sequence[Measured], at: int) -> DriftRow:
    return DriftRow(name=profile.columns[at], cells=tuple(_cell(one, at) for one in measured))


def _cell(one: Measured, at: int) -> DriftCell:
    return DriftCell(
        day=one.start,
        effect=float(one.effect[at]),
        shift=float(one.shift[at]),
        drifted=bool(one.drifted[at]),
        judged=one.judged,
    )


def _story(
    held: Held, sketches: Sketches, measured: Sequence[Measured], name: str, on: int | None, length: int
) -> ColumnStory:
    profile = held.profile
    if name not in profile.columns:
        raise NotFound("feature", name, profile.columns)
    at = profile.columns.index(name)
    starts = [one.start for one in measured]
    if on is not None:
        # Whoever comes from another length of windows means the window that holds the day.
        on = on // length * length
        if on not in starts:
            raise NotFound("day", day(on), [f"{day(starts[0])} to {day(starts[-1])}"])
    else:
        on = next((one.start for one in reversed(measured) if one.drifted[at]), starts[-1])
    one = measured[starts.index(on)]
    found, given = held.counts(sketches, on, on + length), held.against(sketches, on, on + length)
    bins: tuple[BinShare, ...] = ()
    statistics: tuple[Divergence, ...] = ()
    n = 0 if found is None else found.n
    if found is not None and given is not None and n:
        current, reference = profile.layout.split(found.counts)[at], profile.layout.split(given.counts)[at]
        bins = tuple(
            BinShare(
                label=label.replace("<=", "≤").replace(">=", "≥"),
                reference=int(before) / given.n,
                current=int(now) / n,
            )
            for label, before, now in zip(profile.edges[at].labels(), reference, current, strict=True)
            if before or now
        )
        measures = distance(profile.edges[at], reference, current, unit=profile.units[at], every=True)
        statistics = measures.statistics
    ordinary = profile.ordinary[at]
    ignored = name in profile.ignored
    return ColumnStory(
        name=name,
        day=on,
        end=on + length,
        cell=dataclasses.replace(_cell(one, at), judged=False, drifted=False) if ignored else _cell(one, at),
        effect_bound=math.nan if ignored else max(RULE.min_effect, RULE.beyond_ordinary * ordinary[0]),
        shift_bound=math.nan if ignored else max(RULE.min_shift, RULE.beyond_ordinary * ordinary[1]),
        bins=bins,
        statistics=statistics,
        baseline=given,
        n_current=n,
        explained=_explained(held, sketches, name, on, on + length),
    )


def _explained(held: Held, sketches: Sketches, name: str, start: int, end: int) -> tuple[SliceReport, ...]:
    slices = _slices(held.profile, sketches, held.version.name, start, end)
    return tuple(explain(held.profile, slices, column=name, by=by) for by in held.profile.slices) if slices else ()


def _moved(profile: ReferenceProfile, sketches: Sketches, version: str, story: ColumnStory) -> tuple[SliceFinding, ...]:
    cells = len(profile.columns) * sum(len(values) for values in profile.slices.values())
    if cells > _MOST_CELLS:
        return ()
    return moved_slices(profile, _slices(profile, sketches, version, story.day, story.end))[:12]


def _slices(
    profile: ReferenceProfile, sketches: Sketches, version: str, start: int, end: int
) -> tuple[SliceCounts, ...]:
    n = sum(len(values) for values in profile.slices.values())
    if not n or 8 * profile.layout.n_bins * n * (end - start) // HOUR > _MOST_BYTES:
        return ()
    return sketches.slices(version, start, end)
