"""Whether it still holds: how far features have moved day by day, and the alerts that came of it."""

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np

from vitok.clock import DAY
from vitok.console import stores
from vitok.console.wording import count, day, figure
from vitok.errors import InvalidInput, NotFound
from vitok.loop import Record
from vitok.monitoring import (
    Alert,
    DriftReport,
    DriftRule,
    Observation,
    ReferenceProfile,
    Sketches,
    WindowCounts,
)
from vitok.monitoring import drift as measure
from vitok.monitoring.profile import PROBABILITY
from vitok.registry import Version
from vitok.systems.fraud.messages import SYSTEM

DAYS = (14, 28, 56)
_KEPT_REPORTS = 256
_RULE = DriftRule()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftCell:
    """A column on a day.

    Attributes:
        day: Beginning of the day, in microseconds.
        effect: PSI above its null mean; NaN where the day has no decisions.
        shift: Shift in interquartile ranges of the reference; NaN where the day has no decisions.
        drifted: Whether the rule calls it drift.
        judged: Whether the day has enough decisions to say anything.
    """

    day: int
    effect: float
    shift: float
    drifted: bool
    judged: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftRow:
    """A column over the days.

    Attributes:
        name: The feature, or `"probability"`.
        cells: One for each day.
    """

    name: str
    cells: tuple[DriftCell, ...]

    @property
    def largest(self) -> float:
        """The largest effect on a day that can be judged; 0 where there is none."""
        return max((cell.effect for cell in self.cells if cell.judged), default=0.0)

    @property
    def drifted_days(self) -> int:
        """On how many days the rule calls it drift."""
        return sum(cell.drifted for cell in self.cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinShare:
    """A bin of a column.

    Attributes:
        label: What falls into it.
        reference: Share of the reference in it.
        current: Share of the day in it.
    """

    label: str
    reference: float
    current: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnStory:
    """One column on one day, against the reference.

    Attributes:
        name: The feature, or `"probability"`.
        day: Beginning of the day, in microseconds.
        cell: How far it moved.
        effect_bound: The effect from which a change of this column is called large.
        shift_bound: The shift from which it is.
        bins: Bins that are not empty in both.
        n_reference: Rows of the reference.
        n_current: Decisions of the day.
    """

    name: str
    day: int
    cell: DriftCell
    effect_bound: float
    shift_bound: float
    bins: tuple[BinShare, ...]
    n_reference: int
    n_current: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriftSeen:
    """Drift of one version over days.

    Attributes:
        version: Which version, or None where there is none.
        versions: Versions to choose from, newest first.
        days: The days, in microseconds, oldest first.
        span: How many days were asked for.
        probability: What the model says, or None where nothing was counted.
        features: The features, the one that moved most first.
        ignored: Features in which no drift is looked for.
        column: The chosen column on the chosen day, or None.
        reason: Why there is nothing to show, in words; empty where there is.
    """

    version: str | None
    versions: tuple[str, ...]
    days: tuple[int, ...]
    span: int
    probability: DriftRow | None
    features: tuple[DriftRow, ...]
    ignored: tuple[str, ...]
    column: ColumnStory | None
    reason: str

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        rows = ([self.probability] if self.probability else []) + list(self.features)
        lines = [f"{self.version}: largest PSI above its null mean in {len(self.days)} days"]
        return "\n".join(lines + [f"  {row.name:<28} {row.largest:.3f}  {row.drifted_days} days" for row in rows])


def drift(
    home: Path,
    version: str | None = None,
    *,
    days: int = 28,
    column: str | None = None,
    on: int | None = None,
) -> DriftSeen:
    """Reads how far a version's features and probability have moved, by days.

    Args:
        home: Folder of everything vitok writes.
        version: Which version, such as `"fraud/2"`; by default the one that serves, else the newest.
        days: How many of its latest days, one of `DAYS`.
        column: The feature (or `"probability"`) to look at; by default the one that moved most.
        on: Beginning of the day on which to look at it, in microseconds; by default the latest on which it drifted,
            else the latest.

    Raises:
        InvalidInput: If `days` is not offered.
        NotFound: If the version was never registered, or the column or day is not there.
    """
    if days not in DAYS:
        raise InvalidInput("days", days, f"be one of {', '.join(map(str, DAYS))}")
    state = stores.state(home)
    known = {item.name: item for item in reversed(state.versions)}
    if version is not None and version not in known:
        raise NotFound("version", version, known)
    if not known:
        return _nothing(None, (), days, "No version was registered yet, so there is no reference to compare with.")
    chosen = known[version] if version else (state.version(state.production) if state.production else None)
    chosen = chosen or next(iter(known.values()))
    profile = stores.profile(home, chosen)
    names = tuple(known)
    if profile is None:
        return _nothing(chosen.name, names, days, f"{chosen.name} carries no reference profile.")
    with stores.sketches(home) as sketches:
        if sketches is None:
            return _nothing(chosen.name, names, days, "Nothing was sketched yet; the watch beside the service does it.")
        windows = _windows(sketches, chosen.name, days)
    if not windows:
        return _nothing(chosen.name, names, days, f"{chosen.name} has not decided yet.")
    reports = [_report(home, chosen, profile, window) for window in windows]
    rows = [_row(name, reports) for name in (PROBABILITY, *(item.name for item in reports[0].features))]
    features = sorted(rows[1:], key=lambda row: (-row.drifted_days, -row.largest, row.name))
    wanted = column or (features[0].name if features else PROBABILITY)
    if on is None:
        moved = [cell.day for row in rows if row.name == wanted for cell in row.cells if cell.drifted]
        on = moved[-1] if moved else None
    story = _story(profile, windows, reports, wanted, on)
    return DriftSeen(
        version=chosen.name,
        versions=names,
        days=tuple(window.start for window in windows),
        span=days,
        probability=rows[0],
        features=tuple(features),
        ignored=reports[0].ignored,
        column=story,
        reason="",
    )


def _nothing(version: str | None, names: tuple[str, ...], days: int, reason: str) -> DriftSeen:
    return DriftSeen(
        version=version,
        versions=names,
        days=(),
        span=days,
        probability=None,
        features=(),
        ignored=(),
        column=None,
        reason=reason,
    )


def _windows(sketches: Sketches, version: str, days: int) -> list[WindowCounts]:
    hours = sketches.hours(version)
    starts = sorted({hour // DAY * DAY for hour in hours})[-days:]
    windows = [sketches.window(version, start, start + DAY) for start in starts]
    return [window for window in windows if window is not None]


def _report(home: Path, version: Version, profile: ReferenceProfile, window: WindowCounts) -> DriftReport:
    return _measured(_Day(home, version.digest, window.start, window.n, profile=profile, window=window))


@dataclasses.dataclass(frozen=True)
class _Day:
    # A day of a version is told by its number of decisions: the log only grows.
    home: Path
    digest: str
    start: int
    n: int
    profile: ReferenceProfile = dataclasses.field(compare=False)
    window: WindowCounts = dataclasses.field(compare=False)


@functools.lru_cache(maxsize=_KEPT_REPORTS)
def _measured(one: _Day) -> DriftReport:
    return measure(one.profile, one.window)


def _row(name: str, reports: list[DriftReport]) -> DriftRow:
    return DriftRow(name=name, cells=tuple(_cell(report, name) for report in reports))


def _cell(report: DriftReport, name: str) -> DriftCell:
    found = report.of(name)
    return DriftCell(
        day=report.start,
        effect=found.effect if report.n_current else math.nan,
        shift=found.shift if report.n_current else math.nan,
        drifted=_RULE.drifted(found),
        judged=report.n_current >= _RULE.min_n,
    )


def _story(
    profile: ReferenceProfile, windows: list[WindowCounts], reports: list[DriftReport], name: str, on: int | None
) -> ColumnStory:
    if name not in profile.columns:
        raise NotFound("feature", name, profile.columns)
    starts = [window.start for window in windows]
    if on is not None and on not in starts:
        raise NotFound("day", day(on), [f"{day(starts[0])} to {day(starts[-1])}"])
    index = len(windows) - 1 if on is None else starts.index(on)
    window, report = windows[index], reports[index]
    at = profile.columns.index(name)
    splits = np.cumsum([frozen.n_bins for frozen in profile.edges])[:-1]
    current, reference = np.split(window.counts, splits)[at], profile.counts[at]
    bins = tuple(
        BinShare(
            label=label.replace("<=", "≤").replace(">=", "≥"),
            reference=int(before) / profile.n,
            current=int(now) / window.n,
        )
        for label, before, now in zip(profile.edges[at].labels(), reference, current, strict=True)
        if before or now
    )
    if name in report.ignored:
        cell = DriftCell(day=window.start, effect=math.nan, shift=math.nan, drifted=False, judged=False)
        bounds = (math.nan, math.nan)
    else:
        cell, bounds = _cell(report, name), _RULE.bounds(report.of(name))
    return ColumnStory(
        name=name,
        day=window.start,
        cell=cell,
        effect_bound=bounds[0],
        shift_bound=bounds[1],
        bins=bins,
        n_reference=profile.n,
        n_current=window.n,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlertSeen:
    """An alert with what its rule saw over time.

    Attributes:
        alert: The alert.
        observations: What its rule saw of this version, by window, oldest first.
        incident: The incident that was opened for it, or None.
    """

    alert: Alert
    observations: tuple[Observation, ...]
    incident: Record | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlertsSeen:
    """Alerts, open and past.

    Attributes:
        open: Open ones, critical first.
        past: Cleared ones, the latest first.
        watched_until: End of the last day that was watched, in microseconds, or None.
    """

    open: tuple[AlertSeen, ...]
    past: tuple[AlertSeen, ...]
    watched_until: int | None

    def __str__(self) -> str:
        lines = [f"{count(len(self.open))} open, {count(len(self.past))} past"]
        return "\n".join(lines + [f"  {seen.alert}" for seen in (*self.open, *self.past)])


def alerts(home: Path) -> AlertsSeen:
    """Reads the alerts, open and past, each with its playbook step and the course of what it watches."""
    with stores.alert_store(home) as store:
        if store is None:
            return AlertsSeen(open=(), past=(), watched_until=None)
        opened, every = store.open(system=SYSTEM), store.history(system=SYSTEM)
        observed = store.observations(system=SYSTEM)
        until = store.watched_until(SYSTEM)
    incidents = {record.details.get("alert"): record for record in stores.records(home).list("incident")}

    def seen(alert: Alert) -> AlertSeen:
        ours = tuple(item for item in observed if (item.rule, item.version) == (alert.rule, alert.version))
        return AlertSeen(alert=alert, observations=ours, incident=incidents.get(alert.id))

    past = sorted((alert for alert in every if alert.state == "cleared"), key=lambda alert: -alert.raised_at)
    return AlertsSeen(open=tuple(map(seen, opened)), past=tuple(map(seen, past)), watched_until=until)


def value_of(alert: Alert) -> str:
    """Writes what was measured against what it was held against."""
    if math.isnan(alert.value):
        return ""
    return figure(alert.value) if math.isnan(alert.bound) else f"{figure(alert.value)} against {figure(alert.bound)}"
