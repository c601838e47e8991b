"""What has happened, by its name: faults of the data first, then data, prediction, label and concept drift."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vitok.clock import DAY, isoformat
from vitok.monitoring.drift import JOINT, DriftReport, DriftRule, drift
from vitok.monitoring.joint import DomainClassifier
from vitok.monitoring.labels import ConceptDrift, LabelDrift
from vitok.monitoring.profile import PROBABILITY, ReferenceProfile
from vitok.monitoring.quality import QualityFinding, QualityRule, check_quality
from vitok.monitoring.sketches import Sketches, SliceCounts, WindowCounts
from vitok.monitoring.slices import SliceFinding, explain, moved_slices
from vitok.stats.results import Result

Name = Literal[
    "data quality", "concept drift", "label drift", "prediction drift", "data drift", "joint drift", "slice drift"
]


@dataclass(frozen=True, kw_only=True)
class DiagnosisRule:
    """When what was measured is given a name.

    Args:
        drift: For features and prediction.
        quality: For faults of the data.
        max_p_value: For labels and residuals.
        min_ratio: How far labels must be from what was expected, either way, above 1.
        slice_min_n: Fewest rows of a slice.
        slice_min_effect: Least PSI within a slice, less its null mean.
    """

    drift: DriftRule = field(default_factory=DriftRule)
    quality: QualityRule = field(default_factory=QualityRule)
    max_p_value: float = 1e-3
    min_ratio: float = 1.25
    slice_min_n: int = 100
    slice_min_effect: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Result):
    """What has happened in a window, what it is called, since when, where, and in which columns.

    Attributes:
        model_version: Which version.
        start: When the window begins, in microseconds.
        end: When it ends, not included.
        names: What was found, the first cause to look at first; empty where all is as it was.
        quality: Faults of the data.
        data: How far features and prediction moved.
        label: Positives against the base rate; None where labels were not given.
        concept: Residuals of matured labels; None where they were not given.
        slices: Columns that moved within slices.
        where: The slice that explains the largest drift, as `"country = CH"`; empty where none stands out.
        columns: What drifted or is faulty, by impact on the model: weight times effect.
        since: Beginning of the first of the days in a row with it; None where nothing was found or it is not known.
        domain: Which features tell the window from the one a week before; None where that was not asked.
    """

    model_version: str
    start: int
    end: int
    names: tuple[Name, ...]
    quality: tuple[QualityFinding, ...]
    data: DriftReport
    label: LabelDrift | None
    concept: ConceptDrift | None
    slices: tuple[SliceFinding, ...]
    where: str
    columns: tuple[str, ...]
    since: int | None
    domain: DomainClassifier | None = None

    def __str__(self) -> str:
        head = f"{self.model_version}, {isoformat(self.start)} to {isoformat(self.end)}:"
        if not self.names:
            return f"{head} as it was"
        since = f" since {isoformat(self.since)}" if self.since is not None else ""
        where = f", where {self.where}" if self.where else ""
        lines = [f"{head} {', '.join(self.names)}{since}{where}", *(f"  {fault}" for fault in self.quality)]
        if "concept drift" in self.names and self.concept is not None:
            lines.append(f"  {self.concept.groups[0] if self.concept.groups else self.concept.overall}")
        if "label drift" in self.names:
            lines.append(f"  {self.label}")
        if "prediction drift" in self.names:
            lines.append(f"  {self.data.prediction}")
        if "joint drift" in self.names:
            lines.append(f"  {self.data.joint}")
        if self.domain is not None:
            lines.append(f"  {self.domain}")
        lines += [f"  {self.data.of(name)}" for name in self.columns[:5] if name in _measured(self.data)]
        lines += [f"  {one}" for one in self.slices[:3]]
        return "\n".join(lines)


def diagnose(
    profile: ReferenceProfile,
    window: WindowCounts,
    *,
    report: DriftReport | None = None,
    slices: Sequence[SliceCounts] = (),
    label: LabelDrift | None = None,
    concept: ConceptDrift | None = None,
    weights: Mapping[str, float] | None = None,
    views: Mapping[str, Sequence[str]] | None = None,
    rule: DiagnosisRule | None = None,
    since: int | None = None,
) -> Diagnosis:
    """Names what has happened in a window.

    Concept drift is told from label drift by the probabilities: where labels moved and the probabilities moved with
    them, the base rate changed and the model knows it; where labels left their probabilities, the concept changed.

    Args:
        profile: The version's reference profile.
        window: What `Sketches.window` gave.
        report: What `drift` gave, against any baseline; None measures against training.
        slices: What `Sketches.slices` gave.
        label: What `label_drift` gave; None where no labels are known.
        concept: What `concept_drift` gave; None where too few labels have matured.
        weights: Feature to how much the model leans on it, such as its share of the gain; None takes all alike.
        views: View to its features; see `check_quality`.
        rule: When something is given its name.
        since: When it began, as `onset` finds it.

    Returns:
        The diagnosis.
    """
    limits = rule or DiagnosisRule()
    measured = report if report is not None else drift(profile, window, weights=weights)
    faults = check_quality(profile, window, views=views, rule=limits.quality)
    verdict = limits.drift.judge(measured)
    within = moved_slices(profile, slices, min_n=limits.slice_min_n, min_effect=limits.slice_min_effect)
    faulty = [name for fault in faults for name in fault.columns]
    # What a fault explains is no drift: the columns that are left are.
    moved = [name for name in verdict.features if name not in faulty]
    names: list[Name] = []
    if faults:
        names.append("data quality")
    if concept is not None and _far(concept, limits):
        names.append("concept drift")
    if label is not None and _moved_labels(label, limits):
        names.append("label drift")
    if verdict.prediction:
        names.append("prediction drift")
    if moved:
        names.append("data drift")
    if verdict.joint and not faults:
        names.append("joint drift")
    if within and not moved and not faults:
        names.append("slice drift")
    together = measured.joint.pair if measured.joint is not None and "joint drift" in names else ()
    effects = {item.name: max(item.weight, 1e-9) * (item.effect + item.shift) for item in measured.features}
    columns = sorted(
        {*faulty, *moved, *together, *(one.column for one in within)}, key=lambda name: -effects.get(name, 0.0)
    )
    return Diagnosis(
        model_version=window.model_version,
        start=window.start,
        end=window.end,
        names=tuple(names),
        quality=faults,
        data=measured,
        label=label,
        concept=concept,
        slices=within,
        where=_where(profile, slices, columns, within),
        columns=tuple(columns),
        since=since if names else None,
    )


def _measured(report: DriftReport) -> set[str]:
    return {item.name for item in (*report.features, report.prediction)}


def _far(concept: ConceptDrift, rule: DiagnosisRule) -> bool:
    groups = (concept.overall, *concept.groups)
    return any(
        one.adjusted_p_value <= rule.max_p_value and not 1 / rule.min_ratio < one.ratio < rule.min_ratio
        for one in groups
    )


def _moved_labels(label: LabelDrift, rule: DiagnosisRule) -> bool:
    return label.p_value <= rule.max_p_value and not 1 / rule.min_ratio < label.ratio < rule.min_ratio


def _where(
    profile: ReferenceProfile, slices: Sequence[SliceCounts], columns: Sequence[str], within: Sequence[SliceFinding]
) -> str:
    if not slices:
        return ""
    for column in columns:
        for by in profile.slices:
            if column in profile.columns and any(one.column == by for one in slices):
                found = explain(profile, slices, column=column, by=by).explaining
                if found is not None:
                    return f"{by} = {found.value}"
    return f"{within[0].by} = {within[0].value}" if within else ""


def onset(
    sketches: Sketches,
    profile: ReferenceProfile,
    model_version: str,
    end: int,
    *,
    rule: DriftRule | None = None,
    quality: QualityRule | None = None,
    step: int = DAY,
    most: int = 30,
) -> int | None:
    """Goes back from a window that drifted or is faulty to the first of those in a row.

    Args:
        sketches: Hourly counts.
        profile: The version's reference profile.
        model_version: Which version.
        end: End of the last window, a full hour in microseconds.
        rule: When a window has drifted.
        quality: When it is faulty.
        step: Length of a window, whole hours in microseconds.
        most: How many windows to go back.

    Returns:
        Beginning of the first; None where the last window is as it should be.
    """
    judge, found = rule or DriftRule(), None
    for back in range(most):
        start = end - (back + 1) * step
        window = sketches.window(model_version, start, start + step)
        if window is None:
            break
        verdict = judge.judge(drift(profile, window), before=(*profile.names, PROBABILITY, JOINT) if back else ())
        if not (
            verdict.features or verdict.prediction or verdict.joint or check_quality(profile, window, rule=quality)
        ):
            break
        found = start
    return found
