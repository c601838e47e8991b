"""Looks at every closed day once and raises or clears what is due: the joint of sketches, labels, rules and alerts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitok.clock import DAY, isoformat
from vitok.monitoring.alerts import Alert, Alerts
from vitok.monitoring.baselines import WEEK
from vitok.monitoring.conditions import (
    Finding,
    WatchRules,
    absence_finding,
    drift_findings,
    fallback_finding,
    quality_finding,
    quality_findings,
)
from vitok.monitoring.drift import DriftReport, drift
from vitok.monitoring.performance import Performance, performance
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.quality import check_quality
from vitok.monitoring.sketches import ALL_VERSIONS, Sketches, WindowCounts
from vitok.monitoring.volume import ExpectedVolume, VolumeCheck
from vitok.policies import Costs
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class WatchedDay(Result):
    """What was seen on one day.

    Attributes:
        start: Beginning of the day, in microseconds.
        end: Its end, not included.
        findings: What each rule saw; a rule that could not judge has none.
        drift: One report for each version that was judged.
        performance: Version and what its matured decisions achieved, for each that had any.
        raised: Alerts that this day raised.
        cleared: Alerts that this day cleared.
    """

    start: int
    end: int
    findings: tuple[Finding, ...]
    drift: tuple[DriftReport, ...]
    performance: tuple[tuple[str, Performance], ...]
    raised: tuple[Alert, ...]
    cleared: tuple[Alert, ...]

    def __str__(self) -> str:
        firing = [finding for finding in self.findings if finding.firing]
        lines = [f"{isoformat(self.start)[:10]}: {len(self.findings)} findings, {len(firing)} firing"]
        lines += [f"  {finding}" for finding in firing]
        lines += [f"  RAISED {alert}" for alert in self.raised]
        lines += [f"  cleared {alert}" for alert in self.cleared]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Watched(Result):
    """What a tick saw.

    Attributes:
        days: The days that had closed since the tick before; empty where none had.
    """

    days: tuple[WatchedDay, ...]

    @property
    def raised(self) -> tuple[Alert, ...]:
        """Alerts raised, in order."""
        return tuple(alert for day in self.days for alert in day.raised)

    @property
    def cleared(self) -> tuple[Alert, ...]:
        """Alerts cleared, in order."""
        return tuple(alert for day in self.days for alert in day.cleared)

    def __str__(self) -> str:
        return "\n".join(str(day) for day in self.days) or "no day has closed since"


class Watch:
    """Watches the versions of one system, day by day.

    A tick judges every day (UTC) that has closed since the tick before, in order, each once; after a crash it goes
    on where it stopped, and what was observed already changes nothing. It reads sketches and labels and writes
    observations and alerts; taking a playbook's step is for the loop.

    Args:
        system: Which system.
        profile_of: Gives the reference profile of a version, None for one without (rules).
        sketches: Hourly counts of the system's log; let them catch up with the log before a tick.
        alerts: Where observations and alerts are kept.
        rules: What is looked for.
        labelled: Gives the decisions with `start <= event_time < end`, joined with the labels known as of a time:
            called as `labelled(start, end, as_of)`. None leaves quality and calibration out.
        costs: What actions cost; None leaves money out.
        amount: Column with the amount, where costs are given.
        views: View to the features that come from it, to tell a join that failed; see `check_quality`.
        weights: Gives for a version how much the model leans on each feature, such as its share of the gain; None
            takes all alike.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sketches, alerts = Sketches(Path(folder) / "sketches.sqlite"), Alerts(Path(folder) / "alerts.sqlite")
        ...     watch = Watch("fraud", profile_of=lambda version: None, sketches=sketches, alerts=alerts)
        ...     print(watch.tick(now=5 * DAY))
        ...     sketches.close(), alerts.close()
        no day has closed since
        (None, None)
    """

    def __init__(
        self,
        system: str,
        *,
        profile_of: Callable[[str], ReferenceProfile | None],
        sketches: Sketches,
        alerts: Alerts,
        rules: WatchRules | None = None,
        labelled: "Callable[[int, int, int], pl.DataFrame] | None" = None,
        costs: Costs | None = None,
        amount: str = "amount",
        views: Mapping[str, Sequence[str]] | None = None,
        weights: Callable[[str], Mapping[str, float] | None] | None = None,
    ) -> None:
        self.system = system
        self.rules = rules or WatchRules()
        self._profile_of = profile_of
        self._sketches = sketches
        self._alerts = alerts
        self._labelled = labelled
        self._costs = costs
        self._amount = amount
        self._views = views
        self._weights = weights

    def tick(self, now: int) -> Watched:
        """Judges the days that have closed.

        Args:
            now: The present, in microseconds.

        Returns:
            What was seen, raised and cleared on each of them.

        Raises:
            StoreError: If sketches or alerts cannot be read or written; the next tick goes on there.
        """
        until = self._alerts.watched_until(self.system)
        if until is None:
            hours = self._sketches.hours()
            if not hours:
                return Watched(days=())
            until = hours[0] // DAY * DAY
        days = []
        while until + DAY + self.rules.settle <= now:
            days.append(self._judge(until, until + DAY, now))
            until += DAY
            self._alerts.finish(self.system, until)
        return Watched(days=tuple(days))

    def _judge(self, start: int, end: int, now: int) -> WatchedDay:
        versions = self._sketches.versions(start, end)
        profiles = {version: self._profile_of(version) for version in versions}
        watched = {version: profile for version, profile in profiles.items() if profile is not None}
        totals = self._sketches.totals(start, end)
        findings = [absence_finding(totals, self.rules, volume=self._volume(totals, start, end))]
        fallback = None if totals is None else fallback_finding(totals, self.rules)
        if fallback is not None:
            findings.append(fallback)
        reports = []
        open_alerts = self._alerts.open(system=self.system)
        for version, profile in watched.items():
            alerting = {alert.rule for alert in open_alerts if alert.version == version}
            for length in self.rules.lengths:
                window = self._sketches.window(version, end - length, end)
                if window is None or window.n < self.rules.min_n:
                    continue
                faults = check_quality(profile, window, views=self._views, rule=self.rules.faults)
                report = drift(profile, window, weights=self._weights(version) if self._weights else None)
                reports.append(report)
                faulty = {name for fault in faults for name in fault.columns}
                findings.extend(drift_findings(report, self.rules, alerting=alerting, faulty=faulty))
                if length == self.rules.lengths[0]:
                    findings.append(quality_finding(version, faults, self.rules))
        performances = self._performances(tuple(watched), end)
        for version, found in performances:
            findings.extend(quality_findings(version, found, watched[version], self.rules))
        changed = [self._observe(finding, end, now) for finding in findings]
        changed += self._retire(versions, end)
        return WatchedDay(
            start=start,
            end=end,
            findings=tuple(findings),
            drift=tuple(reports),
            performance=performances,
            raised=tuple(alert for alert in changed if alert is not None and alert.state == "open"),
            cleared=tuple(alert for alert in changed if alert is not None and alert.state == "cleared"),
        )

    def _volume(self, totals: WindowCounts | None, start: int, end: int) -> VolumeCheck | None:
        hours = self._sketches.hours()
        # Hours before the log began are no hours without decisions, and its first day is seldom whole.
        since = max(start - self.rules.volume_weeks * WEEK, -(-hours[0] // DAY) * DAY) if hours else start
        if start - since < WEEK:
            return None
        expected = ExpectedVolume.fit(self._sketches.volumes(since, start))
        return expected.check(0 if totals is None else totals.n, start, end, level=self.rules.volume_level)

    def _performances(self, versions: tuple[str, ...], end: int) -> tuple[tuple[str, Performance], ...]:
        if self._labelled is None or not versions:
            return ()
        until = end - self.rules.maturity
        rows = self._labelled(until - self.rules.trailing, until, end)
        found = []
        for version in versions:
            own = rows.filter(rows["model_version"] == version)
            if own.height >= self.rules.min_n:
                level = self.rules.confidence_level
                measured = performance(own, costs=self._costs, amount=self._amount, confidence_level=level)
                found.append((version, measured))
        return tuple(found)

    def _observe(self, finding: Finding, end: int, now: int) -> Alert | None:
        return self._alerts.observe(
            finding.rule,
            system=self.system,
            version=finding.version,
            window_end=end,
            firing=finding.firing,
            value=finding.value,
            bound=finding.bound,
            reason=finding.reason,
            now=now,
        )

    def _retire(self, versions: dict[str, int], end: int) -> list[Alert]:
        # Nothing will ever be observed again of a version that left; its alerts would stay open for good.
        if not versions:
            return []
        return [
            self._alerts.clear(alert.id, now=end, reason=f"{alert.version} no longer decides")
            for alert in self._alerts.open(system=self.system)
            if alert.version != ALL_VERSIONS and alert.version not in versions
        ]
