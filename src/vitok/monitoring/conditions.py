"""What is looked for in a day: pure functions from measurements to findings, with the reason in words."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from vitok.clock import DAY, HOUR, isoformat
from vitok.errors import InvalidInput
from vitok.monitoring.calibration_watch import CalibrationWatch
from vitok.monitoring.diagnosis import Diagnosis
from vitok.monitoring.drift import JOINT, ColumnDrift, DriftReport, DriftRule
from vitok.monitoring.performance import Performance
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.quality import QualityFinding, QualityRule
from vitok.monitoring.rules import AlertRule
from vitok.monitoring.sketches import ALL_VERSIONS, WindowCounts
from vitok.monitoring.volume import VolumeCheck
from vitok.stats import Estimate, wilson
from vitok.stats.conformal import CoverageWatch
from vitok.stats.intervals import normal_quantile
from vitok.stats.results import Result

_NAMED = 6
BASELINES = ("healthy", "last week", "last year")
_LENGTHS = "be whole hours in microseconds, at least one"
DATA_DRIFT = AlertRule(
    name="data_drift",
    severity="warning",
    playbook="compare the features with their source; if the world changed, retrain",
    windows=3,
    clear_after=3,
)
DATA_QUALITY = AlertRule(
    name="data_quality",
    severity="critical",
    playbook="mend the feed that the reason names; do not retrain on it",
    windows=1,
    clear_after=2,
)
PREDICTION_DRIFT = AlertRule(
    name="prediction_drift",
    severity="warning",
    playbook="see which features drifted; if none did, check which version the runtime answers with",
    windows=3,
    clear_after=3,
)
QUALITY = AlertRule(
    name="quality",
    severity="critical",
    playbook="retrain on matured labels; roll back where the version before does better",
    windows=2,
    clear_after=2,
)
CALIBRATION = AlertRule(
    name="calibration",
    severity="warning",
    playbook="refit the calibrator on matured labels",
    windows=2,
    clear_after=2,
)
FALLBACK = AlertRule(
    name="fallback",
    severity="critical",
    playbook="look at the runtime and the online store; roll back the last release",
    windows=1,
    clear_after=1,
)
ABSENCE = AlertRule(
    name="absence",
    severity="critical",
    playbook="check the service and those who call it",
    windows=1,
    clear_after=1,
)
COVERAGE = AlertRule(
    name="coverage",
    severity="warning",
    playbook="fit the conformal sets anew on matured labels",
    windows=2,
    clear_after=2,
)
CONFIDENCE = AlertRule(
    name="confidence",
    severity="info",
    playbook="read it beside drift and the estimates; have a small sample labelled with 'vitok labels plan'",
    windows=3,
    clear_after=3,
)
HOURLY_QUALITY = AlertRule(
    name="data_quality_1h",
    severity="critical",
    playbook="mend the feed that the reason names; do not retrain on it",
    windows=2,
    clear_after=2,
    every=HOUR,
)
HOURLY_ABSENCE = AlertRule(
    name="absence_1h",
    severity="critical",
    playbook="check the service and those who call it",
    windows=2,
    clear_after=2,
    every=HOUR,
)
HOURLY_FALLBACK = AlertRule(
    name="fallback_1h",
    severity="critical",
    playbook="look at the runtime and the online store; roll back the last release",
    windows=1,
    clear_after=2,
    every=HOUR,
)
# An hour has few rows and hours differ: only what is plain to see is called a fault.
HOURLY_FAULTS = QualityRule(min_n=200, min_jump=0.15, min_index=0.35)


@dataclass(frozen=True, kw_only=True)
class WatchRules:
    """What a `Watch` looks for and how sure it must be.

    Attributes:
        drift: When a change of a distribution is called drift.
        min_n: Fewest decisions that a version must have in a window to be judged on it.
        maturity: Age at which labels are taken to be in, in microseconds; at least the delay of a label.
        trailing: Length of the window of matured decisions, in microseconds.
        min_labelled: Least share of those decisions that must have a label.
        min_frauds: Fewest labelled frauds among them.
        confidence_level: Level of the intervals on which quality and calibration are judged, in (0, 1). Windows of
            days in a row overlap and are looked at every day, so 0.95 would cry wolf.
        max_drop: Largest tolerated drop of average precision, relative to the baseline's value, in [0, 1).
        max_cost_rise: Largest tolerated rise of realised cost a decision, relative to the baseline's, at least 0.
        max_calibration_error: Calibration error that is tolerated whatever the baseline was.
        max_ratio: Largest tolerated ratio of expected to happened frauds, either way, above 1.
        max_fallback_share: Largest tolerated share of decisions that a fallback answered.
        settle: How long after its end a day is left to settle before it is judged, in microseconds.
        lengths: Lengths of the windows in which drift is looked for, in microseconds, whole hours; all of them end
            with the day. Alerts of one that is not a day are named by it, such as `data_drift_7d`.
        volume_level: Chance a day of a false alarm about too few decisions, in (0, 1).
        volume_weeks: How many weeks before the day tell what is expected of it, at least 1.
        faults: From when a change is called a fault of the data.
        data_quality: Rule for faults of the data.
        data_drift: Rule for the features.
        prediction_drift: Rule for the probability.
        quality: Rule for average precision and cost.
        calibration: Rule for calibration.
        fallback: Rule for the share of fallbacks.
        absence: Rule for a day without decisions, or with fewer than its hours of the week let expect.
        coverage: Rule for conformal sets that hold the truth less often than they promise.
        confidence: Rule for a model that is less sure of itself than when it was made.
        max_unsure_rise: Largest tolerated rise of the share of unsure decisions, relative to the reference's, at
            least 0.
        hourly_quality: Rule for faults of the data in an hour; None leaves hours to their day.
        hourly_absence: Rule for an hour with fewer decisions than its hour of the week lets expect; None for none.
        hourly_fallback: Rule for the hour that has just closed, where a fallback answered most of it; None for none.
        hourly_min_n: Fewest decisions that an hour must have to be judged on its fallbacks.
        hourly_max_fallback_share: Largest tolerated share of an hour's decisions that a fallback answered: more says
            that no model answers.
        hourly_faults: From when a change is called a fault of an hour, held against the same hour of the days before.
        hourly_level: Chance an hour of a false alarm about too few decisions, in (0, 1).
        baselines: What a window that drifted is held against besides training: `"last week"`, `"last year"` (the same
            days then) and `"healthy"` (the last seven days in a row in which nothing drifted and no fault was found).
    """

    drift: DriftRule = field(default_factory=DriftRule)
    min_n: int = 1_000
    maturity: int = 7 * DAY
    trailing: int = 7 * DAY
    min_labelled: float = 0.8
    min_frauds: int = 30
    confidence_level: float = 0.99
    max_drop: float = 0.2
    max_cost_rise: float = 0.2
    max_calibration_error: float = 0.02
    max_ratio: float = 1.5
    max_fallback_share: float = 0.02
    settle: int = 0
    lengths: tuple[int, ...] = (DAY,)
    volume_level: float = 1e-5
    volume_weeks: int = 4
    faults: QualityRule = field(default_factory=QualityRule)
    data_quality: AlertRule = DATA_QUALITY
    data_drift: AlertRule = DATA_DRIFT
    prediction_drift: AlertRule = PREDICTION_DRIFT
    quality: AlertRule = QUALITY
    calibration: AlertRule = CALIBRATION
    fallback: AlertRule = FALLBACK
    absence: AlertRule = ABSENCE
    coverage: AlertRule = COVERAGE
    confidence: AlertRule = CONFIDENCE
    max_unsure_rise: float = 0.5
    hourly_quality: AlertRule | None = HOURLY_QUALITY
    hourly_absence: AlertRule | None = HOURLY_ABSENCE
    hourly_fallback: AlertRule | None = HOURLY_FALLBACK
    hourly_min_n: int = 30
    hourly_max_fallback_share: float = 0.5
    hourly_faults: QualityRule = HOURLY_FAULTS
    hourly_level: float = 1e-5
    baselines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ranges = (
            ("min_n", self.min_n >= 1, "be at least 1"),
            ("maturity", self.maturity >= 0, "be at least 0"),
            ("trailing", self.trailing > 0, "be longer than zero"),
            ("settle", self.settle >= 0, "be at least 0"),
            ("lengths", bool(self.lengths) and all(one > 0 and one % HOUR == 0 for one in self.lengths), _LENGTHS),
            ("volume_level", 0 < self.volume_level < 1, "be strictly between 0 and 1"),
            ("volume_weeks", self.volume_weeks >= 1, "be at least 1"),
            ("hourly_level", 0 < self.hourly_level < 1, "be strictly between 0 and 1"),
            ("hourly_min_n", self.hourly_min_n >= 1, "be at least 1"),
            ("hourly_max_fallback_share", 0 <= self.hourly_max_fallback_share < 1, "be in [0, 1)"),
            ("baselines", set(self.baselines) <= set(BASELINES), f"be of {', '.join(BASELINES)}"),
            ("min_labelled", 0 <= self.min_labelled <= 1, "be in [0, 1]"),
            ("confidence_level", 0 < self.confidence_level < 1, "be strictly between 0 and 1"),
            ("max_drop", 0 <= self.max_drop < 1, "be in [0, 1)"),
            ("max_cost_rise", self.max_cost_rise >= 0, "be at least 0"),
            ("max_unsure_rise", self.max_unsure_rise >= 0, "be at least 0"),
            ("max_calibration_error", self.max_calibration_error >= 0, "be at least 0"),
            ("max_ratio", self.max_ratio > 1, "be above 1"),
            ("max_fallback_share", 0 <= self.max_fallback_share < 1, "be in [0, 1)"),
        )
        for name, holds, rule in ranges:
            if not holds:
                raise InvalidInput(f"rules: {name}", getattr(self, name), rule)


@dataclass(frozen=True, kw_only=True)
class Finding(Result):
    """What one rule sees in one window of one version.

    Attributes:
        rule: The rule.
        version: Which version, or `"all"`.
        firing: Whether its condition holds.
        value: What was measured.
        bound: What it was held against.
        reason: Why, in words.
        slice: Which part of the decisions shows it, such as `"country = CH"`; empty for all of them.
    """

    rule: AlertRule
    version: str
    firing: bool
    value: float
    bound: float
    reason: str
    slice: str = ""

    def to_dict(self) -> dict[str, object]:
        """Returns the fields as JSON, the rule by its name."""
        return {
            "rule": self.rule.name,
            "version": self.version,
            "firing": self.firing,
            "value": self.value if math.isfinite(self.value) else None,
            "bound": self.bound if math.isfinite(self.bound) else None,
            "reason": self.reason,
            "slice": self.slice,
        }

    def __str__(self) -> str:
        return f"{self.rule.name} of {self.version}: {'FIRING' if self.firing else 'quiet'}, {self.reason}"


def for_length(rule: AlertRule, length: int) -> AlertRule:
    """Returns a rule under the name of its windows' length, such as `data_drift_7d`; a day keeps the plain name.

    Example:
        >>> for_length(DATA_DRIFT, 7 * DAY).name, for_length(DATA_DRIFT, DAY).name, for_length(DATA_DRIFT, HOUR).name
        ('data_drift_7d', 'data_drift', 'data_drift_1h')
    """
    if length == DAY:
        return rule
    name = f"{length // DAY}d" if length % DAY == 0 else f"{length // HOUR}h"
    return replace(rule, name=f"{rule.name}_{name}")


def drift_findings(
    report: DriftReport, rules: WatchRules, *, alerting: Collection[str] = (), faulty: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Judges the drift of features and of the probability; nothing where the window is too small.

    Args:
        report: What was measured.
        rules: What is looked for.
        alerting: Names of the rules that have an open alert on this version: for them the bounds of leaving hold.
        faulty: Features that a fault of the data explains; they are no drift.
    """
    length = report.end - report.start
    data_drift, prediction_drift = (for_length(rule, length) for rule in (rules.data_drift, rules.prediction_drift))
    before: list[str] = []
    if data_drift.name in alerting:
        before += [item.name for item in report.features]
        before.append(JOINT)
    if prediction_drift.name in alerting:
        before.append(report.prediction.name)
    verdict = rules.drift.judge(report, before=before)
    if not verdict.judged or report.n_current < rules.min_n:
        return ()

    def finding(rule: AlertRule, item: ColumnDrift, reason: str, *, firing: bool) -> Finding:
        _, value, bound = _nearness(item, rules.drift)
        return Finding(rule=rule, version=report.model_version, firing=firing, value=value, bound=bound, reason=reason)

    moved = [report.of(name) for name in verdict.features if name not in faulty]
    # Where nothing drifted, the feature that came nearest shows how far the day was from an alarm.
    nearest = max(moved or report.features, key=lambda item: _nearness(item, rules.drift)[0], default=None)
    findings = []
    joint = report.joint if verdict.joint and not faulty else None
    if joint is not None:
        measured = (
            (effect / limit if limit else math.inf, effect, limit)
            for _, effect, limit in rules.drift.joint_measures(joint)
        )
        _, value, bound = max(measured)
        version = report.model_version
        findings.append(
            Finding(rule=data_drift, version=version, firing=True, value=value, bound=bound, reason=str(joint))
        )
    elif nearest is not None:
        reason = "; ".join(str(item) for item in moved[:_NAMED]) if moved else f"nearest: {nearest}"
        if len(moved) > _NAMED:
            reason += f"; and {len(moved) - _NAMED} more features"
        findings.append(finding(data_drift, nearest, reason, firing=bool(moved)))
    prediction = report.prediction
    findings.append(finding(prediction_drift, prediction, str(prediction), firing=verdict.prediction))
    return tuple(findings)


def _nearness(item: ColumnDrift, rule: DriftRule) -> tuple[float, float, float]:
    """Returns the larger of effect and shift relative to its bound, with that value and bound."""
    pairs = zip((item.effect, item.shift), rule.bounds(item), strict=True)
    return max((value / bound if bound else math.inf, value, bound) for value, bound in pairs)


def quality_findings(
    version: str, found: Performance, profile: ReferenceProfile, rules: WatchRules
) -> tuple[Finding, ...]:
    """Judges ranking, money and calibration of matured decisions against the baseline of the profile.

    Both the window and the baseline are samples: a change counts where the interval of the difference, put together
    from both intervals, leaves out what is tolerated.

    Source: Zou & Donner, Statistics in Medicine 2008 (MOVER), for the interval of the difference.

    Returns:
        At most two findings; none where too few labels or frauds are known, or there is no baseline.
    """
    enough = found.n_labelled >= rules.min_n and found.n_fraud >= rules.min_frauds
    if not enough or found.labelled.value < rules.min_labelled:
        return ()
    findings = []
    quality = [
        one
        for one in (
            _worse_ranking(version, found.average_precision, profile, rules),
            _dearer(version, found.cost_per_decision, profile, rules),
        )
        if one is not None
    ]
    if quality:
        findings.append(next((one for one in quality if one.firing), quality[0]))
    calibration = _miscalibrated(version, found, profile, rules)
    if calibration is not None:
        findings.append(calibration)
    return tuple(findings)


def _worse_ranking(version: str, found: Estimate, profile: ReferenceProfile, rules: WatchRules) -> Finding | None:
    baseline = profile.baseline_of("average_precision")
    if baseline is None or math.isnan(found.value):
        return None
    keep = 1 - rules.max_drop
    bound = keep * baseline.value
    upper = (
        found.value
        - bound
        + math.hypot(found.upper - found.value, keep * (baseline.value - baseline.lower) * _level(found, baseline))
    )
    return Finding(
        rule=rules.quality,
        version=version,
        firing=upper < 0,
        value=found.value,
        bound=bound,
        reason=f"{found} against {baseline.value:.4g} when it was made",
    )


def _level(found: Estimate, baseline: Estimate) -> float:
    """Returns what brings an interval from the baseline's level to that of the window."""
    return normal_quantile(found.confidence_level) / normal_quantile(baseline.confidence_level)


def _dearer(version: str, found: Estimate, profile: ReferenceProfile, rules: WatchRules) -> Finding | None:
    baseline = profile.baseline_of("cost_per_decision")
    if baseline is None or math.isnan(found.value):
        return None
    times = 1 + rules.max_cost_rise
    bound = times * baseline.value
    lower = (
        found.value
        - bound
        - math.hypot(found.value - found.lower, times * (baseline.upper - baseline.value) * _level(found, baseline))
    )
    return Finding(
        rule=rules.quality,
        version=version,
        firing=lower > 0,
        value=found.value,
        bound=bound,
        reason=f"{found} against {baseline.value:.4g} when it was made",
    )


def _miscalibrated(version: str, found: Performance, profile: ReferenceProfile, rules: WatchRules) -> Finding | None:
    error, expected, happened = found.calibration_error, found.mean_probability, found.fraud_rate
    if math.isnan(error.value) or math.isnan(expected.value):
        return None
    baseline = profile.baseline_of("calibration_error")
    bound = max(rules.max_calibration_error, baseline.upper if baseline is not None else 0.0)
    level = f"expected {expected.value:.4g}, happened {happened.value:.4g}"
    far = expected.value > rules.max_ratio * happened.upper or expected.value < happened.lower / rules.max_ratio
    if far and error.lower <= bound:
        ratio = expected.value / happened.value if happened.value else math.inf
        ratio = max(ratio, 1 / ratio if ratio else math.inf)
        reason = f"{level}: more than {rules.max_ratio:g} times apart"
        return Finding(
            rule=rules.calibration, version=version, firing=True, value=ratio, bound=rules.max_ratio, reason=reason
        )
    return Finding(
        rule=rules.calibration,
        version=version,
        firing=error.lower > bound,
        value=error.value,
        bound=bound,
        reason=f"{error}; {level}",
    )


def fallback_finding(totals: WindowCounts, rules: WatchRules) -> Finding | None:
    """Judges the share of decisions that a fallback answered; None where there are too few decisions."""
    return _fallbacks(totals, rules.fallback, min_n=rules.min_n, tolerated=rules.max_fallback_share)


def hourly_fallback_finding(totals: WindowCounts, rules: WatchRules) -> Finding | None:
    """Judges whether a model answered in an hour; None where it has too few decisions, or nobody asks."""
    if rules.hourly_fallback is None:
        return None
    tolerated = rules.hourly_max_fallback_share
    return _fallbacks(totals, rules.hourly_fallback, min_n=rules.hourly_min_n, tolerated=tolerated)


def _fallbacks(totals: WindowCounts, rule: AlertRule, *, min_n: int, tolerated: float) -> Finding | None:
    if totals.n < min_n:
        return None
    share = wilson(totals.routes.get("fallback", 0), totals.n)
    return Finding(
        rule=rule,
        version=ALL_VERSIONS,
        firing=share.lower > tolerated,
        value=share.value,
        bound=tolerated,
        reason=f"{share.value:.2%} of {totals.n:,} decisions were answered by a fallback",
    )


def absence_finding(totals: WindowCounts | None, rules: WatchRules, *, volume: VolumeCheck | None = None) -> Finding:
    """Judges whether a window in which decisions were expected has any, and as many as it should.

    Args:
        totals: What was decided; None where nothing was.
        rules: What is looked for.
        volume: What was expected; None where the past is too short to say.
    """
    n = 0 if totals is None else totals.n
    low = volume is not None and volume.is_low
    reason = f"{n:,} decisions" if n else "no decisions, though there were some before"
    if n and volume is not None:
        reason = str(volume)
    return Finding(
        rule=rules.absence,
        version=ALL_VERSIONS,
        firing=n == 0 or low,
        value=float(n),
        bound=1.0 if volume is None else float(max(1, volume.lower)),
        reason=reason,
    )


def quality_finding(version: str, faults: tuple[QualityFinding, ...], rules: WatchRules) -> Finding:
    """Judges whether the data of a window are faulty."""
    reason = "; ".join(str(fault) for fault in faults[:_NAMED]) if faults else "no fault of the data"
    if len(faults) > _NAMED:
        reason += f"; and {len(faults) - _NAMED} more faults"
    return Finding(
        rule=rules.data_quality,
        version=version,
        firing=bool(faults),
        value=float(len(faults)),
        bound=0.0,
        reason=reason,
    )


def hourly_absence_finding(check: VolumeCheck, rule: AlertRule) -> Finding:
    """Judges whether an hour has as many decisions as its hour of the week lets expect."""
    return Finding(
        rule=rule,
        version=ALL_VERSIONS,
        firing=check.is_low,
        value=float(check.n),
        bound=float(check.lower),
        reason=str(check),
    )


def coverage_finding(version: str, found: CoverageWatch, rules: WatchRules) -> Finding:
    """Judges whether conformal sets hold the truth as often as they promise, over all windows that were given."""
    return Finding(
        rule=rules.coverage,
        version=version,
        firing=found.running.upper < found.promised,
        value=found.running.value,
        bound=found.promised,
        reason=str(found),
    )


def explained(
    finding: Finding,
    diagnosis: Diagnosis,
    *,
    against: Sequence[DriftReport] = (),
    expected: Sequence[tuple[Estimate, Estimate | None]] = (),
    calibration: CalibrationWatch | None = None,
    rules: WatchRules,
) -> Finding:
    """Adds to a firing finding what has happened by its name, where, since when, in how many decisions.

    Args:
        finding: What a rule saw.
        diagnosis: What has happened in its window.
        against: The drift of the same window held against other baselines.
        expected: What is estimated of the window's performance without labels, each beside what it was when the
            version was made.
        calibration: Its calibration day by day, for a finding about it.
        rules: What is looked for.
    """
    if not finding.firing:
        return finding
    size = f"{diagnosis.data.n_current:,} decisions"
    parts = [finding.reason, f"{', '.join(diagnosis.names) or 'not explained by data or labels'} in {size}"]
    if diagnosis.where:
        parts[-1] += f", where {diagnosis.where}"
    if diagnosis.since is not None:
        parts[-1] += f", since {isoformat(diagnosis.since)}"
    if finding.rule.name in (rules.quality.name, rules.calibration.name) and diagnosis.concept is not None:
        parts.append(str(diagnosis.concept.groups[0] if diagnosis.concept.groups else diagnosis.concept.overall))
    if finding.rule.name == rules.calibration.name and calibration is not None:
        parts.append(str(calibration).splitlines()[0])
    for report in against:
        moved = rules.drift.judge(report).features
        shown = ", ".join(moved[:3]) + (f" and {len(moved) - 3} more" if len(moved) > 3 else "")
        parts.append(f"against {report.baseline}: {shown or 'as it was'}")
    if diagnosis.domain is not None:
        parts.append(f"against the same day a week before: {diagnosis.domain}")
    said = []
    for estimate, made in expected:
        name = estimate.name.replace("_", " ")
        if math.isnan(estimate.value):
            said.append(f"{name}: {estimate.definition}")
            continue
        before = "" if made is None or math.isnan(made.value) else f", {made.value:.3g} when it was made"
        said.append(f"{name} {estimate.value:.3g} ({estimate.lower:.3g} to {estimate.upper:.3g}{before})")
    if said:
        parts.append(f"estimated without labels: {', '.join(said)}")
    return replace(finding, reason="; ".join(parts), slice=diagnosis.where)
