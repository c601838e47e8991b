"""Looks at every closed hour and day once, and raises or clears what is due: sketches, labels, rules and alerts."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitok.clock import DAY, HOUR, isoformat
from vitok.decisions.schema import FEATURE_PREFIX
from vitok.monitoring.alerts import Alert, Alerts
from vitok.monitoring.baselines import WEEK, YEAR, Baseline
from vitok.monitoring.calibration_watch import CalibrationWatch, watch_calibration
from vitok.monitoring.conditions import (
    Finding,
    WatchRules,
    absence_finding,
    coverage_finding,
    drift_findings,
    explained,
    fallback_finding,
    quality_finding,
    quality_findings,
)
from vitok.monitoring.confidence_watch import confidence_finding
from vitok.monitoring.diagnosis import Diagnosis, DiagnosisRule, diagnose, onset
from vitok.monitoring.drift import DriftReport, drift
from vitok.monitoring.estimate_ledger import EstimatePair
from vitok.monitoring.estimate_watch import EstimateWatch, worth_telling
from vitok.monitoring.hourly_watch import HourlyWatch, WatchedHour, window_of
from vitok.monitoring.joint import told_apart
from vitok.monitoring.labels import ConceptDrift, LabelDrift, MaturedLabels, concept_drift, label_drift
from vitok.monitoring.performance import Performance, performance
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.quality import QualityFinding, check_quality
from vitok.monitoring.sketches import ALL_VERSIONS, Sketches, WindowCounts
from vitok.monitoring.volume import ExpectedVolume, VolumeCheck
from vitok.policies import Costs
from vitok.stats import ConformalSets, Estimate, watch_coverage
from vitok.stats.results import Result

if TYPE_CHECKING:
    import polars as pl

_HEALTHY_DAYS = 7


@dataclass(frozen=True, kw_only=True)
class WatchedDay(Result):
    """What was seen on one day.

    Attributes:
        start: Beginning of the day, in microseconds.
        end: Its end, not included.
        findings: What each rule saw; a rule that could not judge has none. Those that fire say what has happened,
            where and since when.
        drift: One report for each version and window that was judged.
        performance: Version and what its matured decisions achieved, for each that had any.
        raised: Alerts that this day raised.
        cleared: Alerts that this day cleared.
        diagnoses: What has happened, by its name, for each version of which a rule fired.
        estimated: Version and what is estimated of its day without labels; of a day that drifted under shift too.
        realised: Estimates of an earlier day beside what its labels say, which were taken to be in by now.
        calibration: Version and its calibration day by day, for each of which the rule about it fired.
    """

    start: int
    end: int
    findings: tuple[Finding, ...]
    drift: tuple[DriftReport, ...]
    performance: tuple[tuple[str, Performance], ...]
    raised: tuple[Alert, ...]
    cleared: tuple[Alert, ...]
    diagnoses: tuple[Diagnosis, ...] = ()
    estimated: tuple[tuple[str, tuple[Estimate, ...]], ...] = ()
    realised: tuple[tuple[str, tuple[EstimatePair, ...]], ...] = ()
    calibration: tuple[tuple[str, CalibrationWatch], ...] = ()

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
        hours: The hours among those closed since then in which something fired or changed.
    """

    days: tuple[WatchedDay, ...]
    hours: tuple[WatchedHour, ...] = ()

    @property
    def raised(self) -> tuple[Alert, ...]:
        """Alerts raised, those of hours first, each in order."""
        seen: tuple[WatchedHour | WatchedDay, ...] = (*self.hours, *self.days)
        return tuple(alert for one in seen for alert in one.raised)

    @property
    def cleared(self) -> tuple[Alert, ...]:
        """Alerts cleared, those of hours first, each in order."""
        seen: tuple[WatchedHour | WatchedDay, ...] = (*self.hours, *self.days)
        return tuple(alert for one in seen for alert in one.cleared)

    def __str__(self) -> str:
        return "\n".join(str(one) for one in (*self.hours, *self.days)) or "no day has closed since"


@dataclass(frozen=True)
class _Seen:
    """What was measured of one version on one day, before it is judged as a whole."""

    profile: ReferenceProfile
    window: WindowCounts
    report: DriftReport
    faults: tuple[QualityFinding, ...]


class Watch:
    """Watches the versions of one system, hour by hour and day by day.

    A tick judges every hour and every day (UTC) that has closed since the tick before, in order, each once; after a
    crash it goes on where it stopped, and what was observed already changes nothing. Hours are asked for faults of
    the data and missing decisions, days for all. It reads sketches and labels and writes observations, alerts and
    estimates; taking a playbook's step is for the loop.

    Args:
        system: Which system.
        profile_of: Gives the reference profile of a version, None for one without (rules).
        sketches: Hourly counts of the system's log; let them catch up with the log before a tick.
        alerts: Where observations and alerts are kept.
        rules: What is looked for.
        labelled: Gives the decisions with `start <= event_time < end`, joined with the labels known as of a time,
            null where none was: called as `labelled(start, end, as_of)`. None leaves out all that needs rows.
        costs: What actions cost; None leaves money out.
        amount: Column with the amount, where costs are given.
        hiding: Actions after which no outcome can be seen; see `performance`.
        views: View to the features that come from it, to tell a join that failed; see `check_quality`.
        weights: Gives for a version how much the model leans on each feature, such as its share of the gain; None
            takes all alike.
        estimates: Estimates each closed day and writes it down; None leaves that out.
        sets_of: Gives the conformal sets of a version, None for one without.
        groups: Gives the groups of labelled rows by which residuals are looked at, such as slices; each of shape (n,).
        logged: Gives the decisions with `start <= event_time < end` of whatever version, with their features, called
            as `logged(start, end)`. With it "last week" and "last year" reach behind a version's own beginning, and
            where only how features go together has drifted, a classifier says which ones tell the day from the one a
            week before.

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
        hiding: Collection[str] = (),
        views: Mapping[str, Sequence[str]] | None = None,
        weights: Callable[[str], Mapping[str, float] | None] | None = None,
        estimates: EstimateWatch | None = None,
        sets_of: Callable[[str], ConformalSets | None] | None = None,
        groups: "Callable[[pl.DataFrame], Mapping[str, NDArray[Any]]] | None" = None,
        logged: "Callable[[int, int], pl.DataFrame] | None" = None,
    ) -> None:
        self.system = system
        self.rules = rules or WatchRules()
        self._profile_of = profile_of
        self._sketches = sketches
        self._alerts = alerts
        self._labelled = labelled
        self._costs = costs
        self._amount = amount
        self._hiding = hiding
        self._views = views
        self._weights = weights
        self._estimates = estimates
        self._sets_of = sets_of
        self._groups = groups
        self._logged = logged
        self._drift_names = (self.rules.data_drift.name, self.rules.prediction_drift.name)
        self._diagnosing = DiagnosisRule(drift=self.rules.drift, quality=self.rules.faults)
        # Version to the end of the last day that had something, and the beginning of the first one in its row.
        self._rows: dict[str, tuple[int, int]] = {}
        self._judged: int | None = None
        self._hours = HourlyWatch(
            system, profile_of=profile_of, sketches=sketches, alerts=alerts, rules=self.rules, views=views
        )

    def tick(self, now: int) -> Watched:
        """Judges the hours and the days that have closed.

        Args:
            now: The present, in microseconds. Where it has gone back behind what was judged, because the clock was
                ahead, watching goes on from there.

        Returns:
            What was seen, raised and cleared on each of them.

        Raises:
            StoreError: If sketches or alerts cannot be read or written; the next tick goes on there.
        """
        hours = self._hours.tick(now)
        until = self._alerts.watched_until(self.system)
        if until is not None and until > now + HOUR:
            until = now // DAY * DAY
            self._alerts.finish(self.system, until, now=now)
        logged = self._sketches.hours()
        if until is None and not logged:
            return Watched(days=(), hours=hours)
        first = logged[0] // DAY * DAY if logged else 0
        until = first if until is None else max(until, first)
        days = []
        while until + DAY + self.rules.settle <= now:
            days.append(self._judge(until, until + DAY, now))
            until += DAY
            self._alerts.finish(self.system, until, now=now)
        return Watched(days=tuple(days), hours=hours)

    def _judge(self, start: int, end: int, now: int) -> WatchedDay:
        versions = self._sketches.versions(start, end)
        profiles = {version: self._profile_of(version) for version in versions}
        watched = {version: profile for version, profile in profiles.items() if profile is not None}
        totals = self._sketches.totals(start, end)
        findings = [absence_finding(totals, self.rules, volume=self._volume(totals, start, end))]
        fallback = None if totals is None else fallback_finding(totals, self.rules)
        if fallback is not None:
            findings.append(fallback)
        reports: list[DriftReport] = []
        seen: dict[str, _Seen] = {}
        open_alerts = self._alerts.open(system=self.system)
        for version, profile in watched.items():
            alerting = {alert.rule for alert in open_alerts if alert.version == version}
            for length in self.rules.lengths:
                # Only the bins are asked for: adding up what else the hours hold takes far longer.
                series = self._sketches.series(version, end - length, end)
                window = None if series is None else window_of(series, end - length, end)
                if window is None or window.n < self.rules.min_n:
                    continue
                faults = check_quality(profile, window, views=self._views, rule=self.rules.faults)
                report = drift(profile, window, weights=self._weights(version) if self._weights else None)
                reports.append(report)
                faulty = {name for fault in faults for name in fault.columns}
                findings.extend(drift_findings(report, self.rules, alerting=alerting, faulty=faulty))
                if length == self.rules.lengths[0]:
                    findings.append(quality_finding(version, faults, self.rules))
                    findings.extend(confidence_finding(profile, window, self.rules, alerting=alerting))
                    seen[version] = _Seen(profile, window, report, faults)
        rows = self._matured(tuple(watched), end)
        performances = self._performances(rows)
        for version, measured in performances:
            findings.extend(quality_findings(version, measured, watched[version], self.rules))
            findings.extend(self._coverage(version, rows[version]))
        drifted = {one.version for one in findings if one.firing and one.rule.name.startswith(self._drift_names)}
        estimated = self._estimated(watched, drifted, start, end, now)
        fired = [version for version in seen if any(one.firing and one.version == version for one in findings)]
        diagnoses = {
            version: self._diagnose(
                version, seen[version], rows.get(version), dict(performances).get(version), start, end
            )
            for version in fired
        }
        opened = {(alert.rule, alert.version) for alert in open_alerts}
        # Only what may raise an alert is held against other baselines: while one is open nobody reads it again.
        drifting = {
            one.version
            for one in findings
            if one.firing and one.rule.name.startswith(self._drift_names) and (one.rule.name, one.version) not in opened
        }
        against = {version: self._against(version, seen[version]) for version in fired if version in drifting}
        diagnoses |= {
            version: self._told_apart(found, seen[version].profile, start, end)
            for version, found in diagnoses.items()
            if version in drifting and "joint drift" in found.names
        }
        calibration = self._calibration(findings, rows)
        findings = [
            self._explained(one, diagnoses, seen, against, dict(estimated), calibration.get(one.version))
            for one in findings
        ]
        changed = [self._observe(finding, end, now) for finding in findings]
        changed += self._retire(versions, end)
        self._judged = end
        return WatchedDay(
            start=start,
            end=end,
            findings=tuple(findings),
            drift=tuple(reports),
            performance=performances,
            raised=tuple(alert for alert in changed if alert is not None and alert.state == "open"),
            cleared=tuple(alert for alert in changed if alert is not None and alert.state == "cleared"),
            diagnoses=tuple(diagnoses.values()),
            estimated=estimated,
            realised=self._realised(rows, end),
            calibration=tuple(calibration.items()),
        )

    def _volume(self, totals: WindowCounts | None, start: int, end: int) -> VolumeCheck | None:
        hours = self._sketches.hours()
        # Hours before the log began are no hours without decisions, and its first day is seldom whole.
        since = max(start - self.rules.volume_weeks * WEEK, -(-hours[0] // DAY) * DAY) if hours else start
        if start - since < WEEK:
            return None
        expected = ExpectedVolume.fit(self._sketches.volumes(since, start))
        return expected.check(0 if totals is None else totals.n, start, end, level=self.rules.volume_level)

    # Labels

    def _matured(self, versions: tuple[str, ...], end: int) -> "dict[str, pl.DataFrame]":
        if self._labelled is None or not versions:
            return {}
        until = end - self.rules.maturity
        rows = self._labelled(until - self.rules.trailing, until, end)
        return {version: rows.filter(rows["model_version"] == version) for version in versions}

    def _performances(self, rows: "Mapping[str, pl.DataFrame]") -> tuple[tuple[str, Performance], ...]:
        return tuple(
            (version, self._performance(own)) for version, own in rows.items() if own.height >= self.rules.min_n
        )

    def _performance(self, rows: "pl.DataFrame") -> Performance:
        level = self.rules.confidence_level
        return performance(rows, costs=self._costs, amount=self._amount, hiding=self._hiding, confidence_level=level)

    def _coverage(self, version: str, rows: "pl.DataFrame") -> tuple[Finding, ...]:
        sets = self._sets_of(version) if self._sets_of is not None else None
        if sets is None:
            return ()
        known = _known(rows, self._hiding)
        if known is None or known.day is None:
            return ()
        held = sets.predict(np.column_stack([1 - known.probability, known.probability]))
        covered = held[np.arange(len(known.y)), known.y.astype(np.intp)]
        days, at = np.unique(known.day, return_inverse=True)
        n, hits = np.bincount(at, minlength=len(days)), np.bincount(at, weights=covered, minlength=len(days))
        level = self.rules.confidence_level
        found = watch_coverage(
            hits.astype(np.int64).tolist(), n.tolist(), promised=sets.coverage, confidence_level=level
        )
        return (coverage_finding(version, found, self.rules),)

    def _calibration(
        self, findings: Sequence[Finding], rows: "Mapping[str, pl.DataFrame]"
    ) -> dict[str, CalibrationWatch]:
        found = {}
        for one in findings:
            if one.firing and one.rule.name == self.rules.calibration.name and one.version in rows:
                known = _known(rows[one.version], self._hiding)
                if known is not None and known.day is not None:
                    found[one.version] = watch_calibration(known.day * DAY, known.probability, known.y)
        return found

    # Estimates

    def _estimated(
        self, watched: Mapping[str, ReferenceProfile], drifted: Collection[str], start: int, end: int, now: int
    ) -> tuple[tuple[str, tuple[Estimate, ...]], ...]:
        if self._estimates is None or self._labelled is None or not watched:
            return ()
        rows = self._labelled(start, end, end)
        until = end - self.rules.maturity
        made = []
        for version, profile in watched.items():
            own = rows.filter(rows["model_version"] == version)
            if own.height < self.rules.min_n:
                continue
            found = self._estimates.estimate(version, own, start, end, made_at=now)
            if version in drifted:
                features = [name for name in profile.names if name not in profile.ignored]
                known = (until - self.rules.trailing, until)
                found += self._estimates.estimate_under_shift(version, features, start, end, known=known, made_at=now)
            if found:
                made.append((version, found))
        return tuple(made)

    def _realised(
        self, rows: "Mapping[str, pl.DataFrame]", end: int
    ) -> tuple[tuple[str, tuple[EstimatePair, ...]], ...]:
        if self._estimates is None:
            return ()
        import polars as pl

        last = (end - self.rules.maturity) // DAY * DAY
        found = []
        for version, own in rows.items():
            times = own["event_time"].to_physical().cast(pl.Int64)
            day = own.filter((times >= last - DAY) & (times < last))
            if day.height >= self.rules.min_n:
                pairs = self._estimates.realise(version, self._performance(day), last - DAY, last, as_of=end)
                found.append((version, pairs))
        return tuple((version, pairs) for version, pairs in found if pairs)

    # What has happened

    def _diagnose(
        self,
        version: str,
        seen: _Seen,
        rows: "pl.DataFrame | None",
        measured: Performance | None,
        start: int,
        end: int,
    ) -> Diagnosis:
        label, concept = self._of_labels(seen.profile, rows, measured)
        found = diagnose(
            seen.profile,
            seen.window,
            report=seen.report,
            slices=self._sketches.slices(version, start, end),
            label=label,
            concept=concept,
            views=self._views,
            rule=self._diagnosing,
        )
        if not found.names:
            return found
        since = start
        before = self._rows.get(version)
        if before is not None and before[0] == start:
            since = before[1]
        elif self._judged != start:
            # The day before was judged by another process, or never.
            first = onset(self._sketches, seen.profile, version, end, rule=self.rules.drift, quality=self.rules.faults)
            since = start if first is None else first
        self._rows[version] = (end, since)
        return dataclasses.replace(found, since=since)

    def _told_apart(self, found: Diagnosis, profile: ReferenceProfile, start: int, end: int) -> Diagnosis:
        if self._logged is None:
            return found
        before, now = self._logged(start - WEEK, end - WEEK), self._logged(start, end)
        return dataclasses.replace(found, domain=told_apart(profile.names, before, now, ignored=profile.ignored))

    def _of_labels(
        self, profile: ReferenceProfile, rows: "pl.DataFrame | None", measured: Performance | None
    ) -> tuple[LabelDrift | None, ConceptDrift | None]:
        if rows is None or measured is None or measured.n_fraud < self.rules.min_frauds:
            return None, None
        known = _known(rows, self._hiding, self._groups)
        base = profile.baseline_of("fraud_rate")
        label = None
        if base is not None and measured.fraud_rate.n_obs and base.n_obs:
            n = measured.fraud_rate.n_obs
            happened = min(n, round(measured.fraud_rate.value * n))
            spread = 1.0 if known is None else _burstiness(known)
            label = label_drift(happened, np.ones(n), base_rate=base.value, base_n=base.n_obs, dispersion=spread)
        return label, None if known is None else concept_drift(known)

    def _explained(
        self,
        finding: Finding,
        diagnoses: Mapping[str, Diagnosis],
        seen: Mapping[str, _Seen],
        against: Mapping[str, list[DriftReport]],
        estimated: Mapping[str, tuple[Estimate, ...]],
        calibration: CalibrationWatch | None,
    ) -> Finding:
        diagnosis = diagnoses.get(finding.version)
        if diagnosis is None or not finding.firing:
            return finding
        profile = seen[finding.version].profile
        drifted = finding.rule.name.startswith(self._drift_names)
        expected = worth_telling(estimated.get(finding.version, ()), profile.baseline_of) if drifted else ()
        held = against.get(finding.version, []) if drifted else []
        return explained(finding, diagnosis, against=held, expected=expected, calibration=calibration, rules=self.rules)

    def _against(self, version: str, seen: _Seen) -> list[DriftReport]:
        start, end = seen.window.start, seen.window.end
        found: list[Baseline | None] = []
        for name in self.rules.baselines:
            if name == "healthy":
                found.append(self._healthy(version, start))
            else:
                back = WEEK if name == "last week" else YEAR
                own = Baseline.season(self._sketches, version, start, end, back=back)
                found.append(own or self._before(seen.profile, start - back, end - back, name))
        return [
            drift(seen.profile, seen.window, baseline=one)
            for one in found
            if one is not None and one.n >= self.rules.min_n and one.digest == seen.profile.digest
        ]

    def _before(self, profile: ReferenceProfile, start: int, end: int, name: str) -> Baseline | None:
        """Returns what other versions decided then, over this one's bins; None where the log does not reach as far."""
        rows = None if self._logged is None else self._logged(start, end)
        if rows is None or not rows.height or any(FEATURE_PREFIX + one not in rows.columns for one in profile.names):
            return None
        return Baseline.of_rows(profile, rows, start, end, name=name)

    def _healthy(self, version: str, end: int) -> Baseline | None:
        since = end - 5 * WEEK
        judged: dict[int, bool] = {}
        for rule in (self.rules.data_drift, self.rules.prediction_drift, self.rules.data_quality):
            for one in self._alerts.observations(system=self.system, rule=rule.name, version=version, since=since):
                judged[one.window_end] = judged.get(one.window_end, True) and not one.firing
        last = next(
            (day for day in range(end, since, -DAY) if all(judged.get(day - k * DAY) for k in range(_HEALTHY_DAYS))),
            None,
        )
        if last is None:
            return None
        window = self._sketches.window(version, last - _HEALTHY_DAYS * DAY, last)
        if window is None or not window.digest:
            return None
        return Baseline.production(window, name=f"the healthy week to {isoformat(last)[:10]}")

    # Alerts

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
            slice=finding.slice,
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


def _known(
    rows: "pl.DataFrame",
    hiding: Collection[str],
    groups: "Callable[[pl.DataFrame], Mapping[str, NDArray[Any]]] | None" = None,
) -> MaturedLabels | None:
    """Returns the rows whose outcome was seen and that a model answered; None where there is none."""
    import polars as pl

    seen = rows.filter(pl.col("label").is_not_null() & pl.col("probability").is_finite())
    if hiding:
        seen = seen.filter(~pl.col("action").is_in(list(hiding)))
    if not seen.height:
        return None
    return MaturedLabels(
        y=seen["label"].cast(pl.Float64).to_numpy(),
        probability=seen["probability"].cast(pl.Float64).to_numpy(),
        groups={} if groups is None else groups(seen),
        day=seen["event_time"].to_physical().cast(pl.Int64).to_numpy() // DAY,
    )


def _burstiness(known: MaturedLabels) -> float:
    """Returns how many times the variance of positives a day is that of independent ones, at least 1."""
    if known.day is None:
        return 1.0
    days, at = np.unique(known.day, return_inverse=True)
    counts = np.bincount(at, weights=known.y, minlength=len(days))
    if len(days) < 4 or counts.mean() <= 0:
        return 1.0
    return max(1.0, float(counts.var(ddof=1) / counts.mean()))
