"""Hours judged as they close: faults of the data, missing decisions and a model that does not answer wait for no day.

Hours differ by the time of day, so each is held against the same hour of the days before, and only what is plain to
see is called a fault; what is small is left to the day.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, HOUR, isoformat
from vitok.monitoring.alerts import Alert, Alerts
from vitok.monitoring.baselines import WEEK
from vitok.monitoring.conditions import (
    Finding,
    WatchRules,
    hourly_absence_finding,
    hourly_fallback_finding,
    quality_finding,
)
from vitok.monitoring.hours import HourlyCounts
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.quality import QualityFinding, check_quality
from vitok.monitoring.rules import AlertRule
from vitok.monitoring.sketches import Sketches, WindowCounts
from vitok.monitoring.volume import ExpectedVolume
from vitok.stats import LatencyHistogram
from vitok.stats.results import Result

_FEWEST_DAYS = 3
# Below this much of the rows elsewhere, and without one bin that rose, no check of an hour finds a fault.
_LEAST_MOVED = 0.3


@dataclass(frozen=True, kw_only=True)
class WatchedHour(Result):
    """What was seen in one hour, where there was something to see.

    Attributes:
        start: Beginning of the hour, in microseconds.
        end: Its end, not included.
        findings: What fired, or ended a row that did.
        raised: Alerts that this hour raised.
        cleared: Alerts that this hour cleared.
    """

    start: int
    end: int
    findings: tuple[Finding, ...]
    raised: tuple[Alert, ...]
    cleared: tuple[Alert, ...]

    def __str__(self) -> str:
        lines = [f"hour from {isoformat(self.start)[:16]}: {len(self.findings)} findings"]
        lines += [f"  {finding}" for finding in self.findings if finding.firing]
        lines += [f"  RAISED {alert}" for alert in self.raised]
        lines += [f"  cleared {alert}" for alert in self.cleared]
        return "\n".join(lines)


class HourlyWatch:
    """Watches the hours of one system; `Watch` has one.

    An hour is judged once. Quiet hours leave nothing behind unless an alert is open or a row of firing ones ends, so
    that watching them costs next to nothing.

    Args:
        system: Which system.
        profile_of: Gives the reference profile of a version, None for one without.
        sketches: Hourly counts of the system's log.
        alerts: Where observations and alerts are kept.
        rules: What is looked for.
        views: View to the features that come from it; see `check_quality`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sketches, alerts = Sketches(Path(folder) / "sketches.sqlite"), Alerts(Path(folder) / "alerts.sqlite")
        ...     watch = HourlyWatch("fraud", profile_of=lambda version: None, sketches=sketches, alerts=alerts,
        ...         rules=WatchRules())
        ...     print(watch.tick(now=5 * DAY))
        ...     sketches.close(), alerts.close()
        ()
        (None, None)
    """

    def __init__(
        self,
        system: str,
        *,
        profile_of: Callable[[str], ReferenceProfile | None],
        sketches: Sketches,
        alerts: Alerts,
        rules: WatchRules,
        views: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.system = system
        self.rules = rules
        self._profile_of = profile_of
        self._sketches = sketches
        self._alerts = alerts
        self._views = views
        self._progress = f"{system}/1h"
        self._in_row: set[tuple[str, str]] = set()

    def tick(self, now: int) -> tuple[WatchedHour, ...]:
        """Judges the hours that have closed, at most those of the last week.

        Args:
            now: The present, in microseconds. Where it has gone back behind what was judged, it goes on from there.

        Returns:
            The hours in which something fired or changed.

        Raises:
            StoreError: If sketches or alerts cannot be read or written; the next tick goes on there.
        """
        asked = (self.rules.hourly_quality, self.rules.hourly_absence, self.rules.hourly_fallback)
        if asked == (None, None, None):
            return ()
        end = (now - self.rules.settle) // HOUR * HOUR
        start = self._start(now, end)
        if start is None or start >= end:
            return ()
        found: dict[int, list[Finding]] = {}
        if self.rules.hourly_absence is not None:
            self._volumes(self.rules.hourly_absence, start, end, found)
        if self.rules.hourly_quality is not None:
            self._faults(self.rules.hourly_quality, start, end, found)
        if self.rules.hourly_fallback is not None:
            self._fallbacks(end, found)
        hours = tuple(self._observed(found, now))
        self._alerts.finish(self._progress, end, now=now)
        return hours

    def _start(self, now: int, end: int) -> int | None:
        until = self._alerts.watched_until(self._progress)
        if until is not None and until > now + HOUR:
            # The clock was ahead when these were judged.
            until = end - HOUR
        if until is not None and until >= end:
            return None
        hours = self._sketches.hours()
        if not hours:
            return None
        return max(hours[0], until or 0, end - WEEK)

    def _volumes(self, rule: AlertRule, start: int, end: int, found: dict[int, list[Finding]]) -> None:
        began = -(-self._sketches.hours()[0] // DAY) * DAY
        first = max(began, start // DAY * DAY - self.rules.volume_weeks * WEEK)
        volumes = self._sketches.volumes(first, end) if first < end else {}
        for day in range(start // DAY * DAY, end, DAY):
            since = max(began, day - self.rules.volume_weeks * WEEK)
            if day - since < WEEK:
                continue
            expected = ExpectedVolume.fit({hour: n for hour, n in volumes.items() if since <= hour < day})
            for hour in range(max(day, start), min(day + DAY, end), HOUR):
                check = expected.check(volumes.get(hour, 0), hour, hour + HOUR, level=self.rules.hourly_level)
                found.setdefault(hour, []).append(hourly_absence_finding(check, rule))

    def _faults(self, rule: AlertRule, start: int, end: int, found: dict[int, list[Finding]]) -> None:
        for version in self._sketches.versions(start, end):
            profile = self._profile_of(version)
            series = None if profile is None else self._sketches.series(version, start - WEEK, end)
            if profile is None or series is None or series.digest != profile.digest:
                continue
            for hour, faults in hourly_faults(profile, series, start, end, rules=self.rules, views=self._views):
                finding = quality_finding(version, faults, self.rules)
                found.setdefault(hour, []).append(dataclasses.replace(finding, rule=rule))

    def _fallbacks(self, end: int, found: dict[int, list[Finding]]) -> None:
        # What is done about an outage helps only while it lasts: hours before the last one are left to their day.
        totals = self._sketches.totals(end - HOUR, end)
        finding = None if totals is None else hourly_fallback_finding(totals, self.rules)
        if finding is not None:
            found.setdefault(end - HOUR, []).append(finding)

    def _observed(self, found: Mapping[int, Sequence[Finding]], now: int) -> list[WatchedHour]:
        opened = {(alert.rule, alert.version) for alert in self._alerts.open(system=self.system)}
        hours = []
        for hour in sorted(found):
            told: list[Finding] = []
            changed: list[Alert] = []
            for finding in found[hour]:
                key = (finding.rule.name, finding.version)
                if not finding.firing and key not in opened and key not in self._in_row:
                    continue
                (self._in_row.add if finding.firing else self._in_row.discard)(key)
                told.append(finding)
                alert = self._alerts.observe(
                    finding.rule,
                    system=self.system,
                    version=finding.version,
                    window_end=hour + HOUR,
                    firing=finding.firing,
                    value=finding.value,
                    bound=finding.bound,
                    reason=finding.reason,
                    now=now,
                )
                if alert is not None:
                    changed.append(alert)
                    (opened.add if alert.state == "open" else opened.discard)(key)
            if told:
                hours.append(
                    WatchedHour(
                        start=hour,
                        end=hour + HOUR,
                        findings=tuple(told),
                        raised=tuple(alert for alert in changed if alert.state == "open"),
                        cleared=tuple(alert for alert in changed if alert.state == "cleared"),
                    )
                )
        return hours


def hourly_faults(
    profile: ReferenceProfile,
    series: HourlyCounts,
    start: int,
    end: int,
    *,
    rules: WatchRules,
    views: Mapping[str, Sequence[str]] | None = None,
) -> list[tuple[int, tuple[QualityFinding, ...]]]:
    """Looks for faults of the data in each hour, held against the same hour of up to seven days before.

    Args:
        profile: The version's reference profile.
        series: Its hours, those of the week before `start` among them.
        start: Beginning of the first hour to judge, in microseconds.
        end: End of the last one.
        rules: What is looked for.
        views: View to its features; see `check_quality`.

    Returns:
        Beginning and faults of each hour that has enough decisions, now and in at least three of the days before.
    """
    limits = rules.hourly_faults
    heads = profile.layout.offsets[:-1]
    # The last column is the probability, which is no data.
    columns = slice(0, int(heads[-1]))
    place = {int(hour): at for at, hour in enumerate(series.hours)}
    judged = []
    for hour in range(start // HOUR, end // HOUR):
        at = place.get(hour)
        before = [place[hour - 24 * back] for back in range(1, 8) if hour - 24 * back in place]
        if at is None or series.n[at] < limits.min_n or len(before) < _FEWEST_DAYS:
            continue
        n = int(series.n[before].sum())
        if n < rules.min_n:
            continue
        reference = series.counts[before].sum(axis=0).astype(np.int64)
        moved = (series.counts[at] / series.n[at] - reference / n)[columns]
        faults: tuple[QualityFinding, ...] = ()
        if moved.max() >= limits.min_jump or _elsewhere(moved, heads) >= _LEAST_MOVED:
            counts = tuple(profile.layout.split(reference))
            held = dataclasses.replace(profile, counts=counts, n=n, slices={}, joint=None, ordinary=())
            window = window_of(series.between(hour * HOUR, (hour + 1) * HOUR), hour * HOUR, (hour + 1) * HOUR)
            faults = check_quality(held, window, views=views, rule=limits)
        judged.append((hour * HOUR, faults))
    return judged


def _elsewhere(moved: NDArray[np.float64], heads: NDArray[np.int64]) -> float:
    """Returns the largest share of rows of a column that lie in another bin than they did."""
    return float(np.add.reduceat(np.abs(moved), heads[:-1]).max()) / 2


def window_of(series: HourlyCounts, start: int, end: int) -> WindowCounts:
    """Adds up hours to a window that holds counts of bins and no more; see `Sketches.window` for all of it.

    Args:
        series: The hours, all of `[start, end)` that have decisions and no others.
        start: When the window begins, in microseconds.
        end: When it ends.
    """
    n = int(series.n.sum())
    return WindowCounts(
        model_version=series.version,
        start=start,
        end=end,
        n=n,
        n_hours=len(series.hours),
        digest=series.digest,
        counts=np.asarray(series.counts, dtype=np.int64).sum(axis=0),
        actions={},
        routes={},
        feature_status={},
        n_probability=n,
        mean_probability=math.nan,
        latency=LatencyHistogram(),
        joint=series.joint.sum(axis=0),
    )
