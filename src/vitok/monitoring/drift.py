"""How far a window has moved from the reference profile, feature by feature, and the rule that calls it drift.

The statistic and the verdict are kept apart: `drift` measures, a `DriftRule` judges. With thousands of rows every
p-value is small, and rows are not even independent (one customer appears many times, and their window means hardly
differ from row to row), so the null law is too narrow. A p-value alone is therefore never drift: the change must also
be large, in one of two plain units, and larger than what single days of the reference differed by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.clock import isoformat
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.monitoring.baselines import Baseline
from vitok.monitoring.distance import distance
from vitok.monitoring.joint import JointDrift
from vitok.monitoring.profile import PROBABILITY, ReferenceProfile
from vitok.monitoring.sketches import WindowCounts
from vitok.stats import Divergence, benjamini_hochberg
from vitok.stats.results import Result

JOINT = "(joint)"
"""What stands for how features go together, where columns are named."""


@dataclass(frozen=True, kw_only=True)
class ColumnDrift(Result):
    """How far one column has moved.

    Attributes:
        name: The feature, or `"probability"`.
        psi: Population stability index over all bins; null and the infinities are bins too.
        null_mean: Its mean where nothing changed, at these n.
        null_quantile: Its 95 % quantile there.
        p_value: Chance of at least this index there, if rows were independent.
        adjusted_p_value: The same after Benjamini-Hochberg over the features.
        effect: `max(0, psi - null_mean)`: about 0 without change, whatever the n.
        shift: How far the values moved on average (Wasserstein-1), in interquartile ranges of the reference (where
            its tail is heavy, in mean distances from its median), less its null mean and at least 0; nulls and
            infinities, which have no place, are left out.
        ordinary_effect: Largest effect among single days of the reference; 0 where they are not known.
        ordinary_shift: Largest shift among them.
        null_share: Share of nulls in the window.
        reference_null_share: Share of nulls in the reference.
        weight: How much the model leans on the feature, as the caller says; 1 where nothing was said.
        n_reference: Rows of the reference.
        n_current: Rows of the window.
        statistics: PSI, Kolmogorov-Smirnov, Wasserstein (in units of the shift), Jensen-Shannon, Hellinger and
            chi-square, each with its null law.
    """

    name: str
    psi: float
    null_mean: float
    null_quantile: float
    p_value: float
    adjusted_p_value: float
    effect: float
    shift: float
    ordinary_effect: float
    ordinary_shift: float
    null_share: float
    reference_null_share: float
    weight: float
    n_reference: int
    n_current: int
    statistics: tuple[Divergence, ...] = ()

    def statistic(self, name: str) -> Divergence:
        """Returns one of `statistics` by its name, such as `"ks"`.

        Raises:
            NotFound: If there is none of that name.
        """
        for found in self.statistics:
            if found.name == name:
                return found
        raise NotFound("statistic", name, [found.name for found in self.statistics])

    def __str__(self) -> str:
        return (
            f"{self.name} PSI {self.psi:.3f} (effect {self.effect:.3f}, shift {self.shift:.3f},"
            f" adjusted p {self.adjusted_p_value:.3g})"
        )


@dataclass(frozen=True, kw_only=True)
class DriftReport(Result):
    """How far a window of one version has moved from its reference.

    Attributes:
        model_version: Which version.
        start: When the window begins, in microseconds.
        end: When it ends, not included.
        features: Data drift: the features by weighted effect, largest first.
        prediction: Prediction drift: the calibrated probability, never mixed with the features.
        ignored: Features in which no drift is looked for.
        n_reference: Rows of the reference.
        n_current: Rows of the window.
        baseline: What it was held against, such as `"training"`.
        joint: Joint drift of the features; None where the profile has no random features or the baseline is another.
    """

    model_version: str
    start: int
    end: int
    features: tuple[ColumnDrift, ...]
    prediction: ColumnDrift
    ignored: tuple[str, ...]
    n_reference: int
    n_current: int
    baseline: str = "training"
    joint: JointDrift | None = None

    def of(self, column: str) -> ColumnDrift:
        """Returns the drift of a feature or of `"probability"`.

        Raises:
            NotFound: If the report has no such column.
        """
        found = {item.name: item for item in (*self.features, self.prediction)}
        if column not in found:
            raise NotFound("column", column, found)
        return found[column]

    def __str__(self) -> str:
        head = (
            f"{self.model_version}, {isoformat(self.start)} to {isoformat(self.end)}:"
            f" n = {self.n_current:,} against {self.n_reference:,} of {self.baseline}"
        )
        rows = [
            f"{item.name:<28.28} {item.effect:>8.4f} {item.shift:>8.4f} {item.psi:>8.4f} {item.null_mean:>9.4f}"
            f" {item.adjusted_p_value:>10.3g}"
            for item in (self.prediction, *self.features[:10])
        ]
        title = f"{'column':<28} {'effect':>8} {'shift':>8} {'psi':>8} {'null mean':>9} {'adjusted p':>10}"
        rest = len(self.features) - 10
        return "\n".join([head, title, *rows, *([f"and {rest} features that moved less"] if rest > 0 else [])])


@dataclass(frozen=True, kw_only=True)
class DriftVerdict(Result):
    """What a rule says of a report.

    Attributes:
        judged: False where the window is too small to say anything.
        features: The features that drifted, largest first.
        prediction: Whether the probability drifted.
        reason: Why, in words.
        joint: Whether how features go together drifted although each stood still.
    """

    judged: bool
    features: tuple[str, ...]
    prediction: bool
    reason: str
    joint: bool = False

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, kw_only=True)
class DriftRule:
    """When a measured change is called drift: it is no accident of sampling, and it is large.

    A column has drifted where its adjusted p-value is at most `false_discovery_rate` and either its effect or its
    shift is large: at least the minimum, and at least `beyond_ordinary` times what the days of the reference showed
    (weekdays differ). The index sees changes of form (a new mass, a gap, many nulls); it is blind to a modest move of
    a wide distribution: amounts up by 15 % give about 0.03. The shift sees just that.

    Args:
        min_effect: Least PSI above its null mean, at least 0; 0.1 is the field's "some change".
        min_shift: Least shift in interquartile ranges, at least 0.
        false_discovery_rate: Level of Benjamini-Hochberg, in (0, 1).
        min_n: Fewest rows of the window, at least 1; smaller ones are not judged.
        beyond_ordinary: How many times the largest ordinary difference of days a change must be, at least 1.
        leave: Share of the bounds below which a change that was drift no longer is, in (0, 1]: what stands near a
            bound would else come and go.
        min_joint_effect: Least effect of the joint distribution, at least 0; two columns that go together with a
            correlation of 0.5 where they had none make 0.016 among two columns, and less among more.
        min_pair_effect: Least effect of the pair that moved most, at least 0.

    Raises:
        InvalidInput: If an argument is outside its range.
    """

    min_effect: float = 0.1
    min_shift: float = 0.1
    false_discovery_rate: float = 0.01
    min_n: int = 200
    beyond_ordinary: float = 1.5
    leave: float = 0.8
    min_joint_effect: float = 0.01
    min_pair_effect: float = 0.05

    def __post_init__(self) -> None:
        for name in ("min_effect", "min_shift", "min_joint_effect", "min_pair_effect"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(name, getattr(self, name), "be at least 0")
        if not 0 < self.false_discovery_rate < 1:
            raise InvalidInput("false_discovery_rate", self.false_discovery_rate, "be strictly between 0 and 1")
        if self.min_n < 1:
            raise InvalidInput("min_n", self.min_n, "be at least 1")
        if not self.beyond_ordinary >= 1:
            raise InvalidInput("beyond_ordinary", self.beyond_ordinary, "be at least 1")
        if not 0 < self.leave <= 1:
            raise InvalidInput("leave", self.leave, "be above 0 and at most 1")

    def bounds(self, column: ColumnDrift) -> tuple[float, float]:
        """Returns the effect and the shift from which a column's change is called large."""
        return (
            max(self.min_effect, self.beyond_ordinary * column.ordinary_effect),
            max(self.min_shift, self.beyond_ordinary * column.ordinary_shift),
        )

    def drifted(self, column: ColumnDrift, *, was: bool = False) -> bool:
        """Says whether one column has drifted; False where the window is too small.

        Args:
            column: How far it has moved.
            was: Whether it had drifted before: then the bounds of leaving hold.
        """
        share = self.leave if was else 1.0
        min_effect, min_shift = (share * bound for bound in self.bounds(column))
        large = column.effect >= min_effect or column.shift >= min_shift
        return column.n_current >= self.min_n and column.adjusted_p_value <= self.false_discovery_rate and large

    def drifted_together(self, joint: JointDrift, *, was: bool = False) -> bool:
        """Says whether how features go together has drifted, by the mean over all random features or by one pair.

        What moves each feature moves this too, so that it says something new only where no feature has drifted.

        Args:
            joint: How far the joint distribution has moved.
            was: Whether it had drifted before: then the bounds of leaving hold.
        """
        share = self.leave if was else 1.0
        # Two looks at the same features share the level.
        return joint.n_current >= self.min_n and any(
            2 * p_value <= self.false_discovery_rate and effect >= share * bound
            for p_value, effect, bound in self.joint_measures(joint)
        )

    def joint_measures(self, joint: JointDrift) -> tuple[tuple[float, float, float], ...]:
        """Returns p-value, effect and bound of the mean over all random features, and of the pair that moved most."""
        measured = (
            (joint.p_value, joint.effect, self.min_joint_effect, joint.ordinary_effect),
            (joint.pair_p_value, joint.pair_effect, self.min_pair_effect, joint.ordinary_pair_effect),
        )
        return tuple(
            (p_value, effect, max(least, self.beyond_ordinary * ordinary))
            for p_value, effect, least, ordinary in measured
        )

    def judge(self, report: DriftReport, *, before: Sequence[str] = ()) -> DriftVerdict:
        """Judges a report.

        Args:
            report: What `drift` measured.
            before: Columns, among them perhaps `"probability"` and `JOINT`, that had drifted in the window before.
        """
        if report.n_current < self.min_n:
            reason = f"not judged: {report.n_current:,} rows, fewer than {self.min_n:,}"
            return DriftVerdict(judged=False, features=(), prediction=False, reason=reason)
        moved = [item for item in report.features if self.drifted(item, was=item.name in before)]
        prediction = self.drifted(report.prediction, was=PROBABILITY in before)
        found = [str(item) for item in ([report.prediction] if prediction else []) + moved[:3]]
        joint = False
        if report.joint is not None and not moved:
            joint = self.drifted_together(report.joint, was=JOINT in before)
            found += [str(report.joint)] if joint else []
        if len(moved) > 3:
            found.append(f"{len(moved) - 3} more features")
        return DriftVerdict(
            judged=True,
            features=tuple(item.name for item in moved),
            prediction=prediction,
            joint=joint,
            reason="drifted: " + "; ".join(found) if found else f"no drift in {len(report.features)} features",
        )


def drift(
    profile: ReferenceProfile,
    window: WindowCounts,
    *,
    weights: Mapping[str, float] | None = None,
    baseline: Baseline | None = None,
) -> DriftReport:
    """Measures how far a window has moved from the reference, or from another baseline.

    Args:
        profile: The version's reference profile.
        window: What `Sketches.window` gave for this version.
        weights: Feature name to how much the model leans on it, such as its share of the gain; a feature that is
            not named weighs 0. Without weights all weigh 1. Weights order the features and change nothing else.
        baseline: What to hold the window against; None for training, which is the profile itself.

    Returns:
        The report; an empty window gives an effect of 0 and p-values of 1.

    Raises:
        Conflict: If the window was counted over other bins than the profile's.
        InvalidInput: If a weight is negative or not finite.

    Source: PSI and its null law, see `vitok.stats.psi`; Benjamini & Hochberg, JRSS B 1995.

    Example:
        >>> from vitok.stats import LatencyHistogram, count_matrix
        >>> rng = np.random.default_rng(7)
        >>> amount, p = rng.lognormal(3.0, 0.8, 5_000), rng.beta(1, 50, 5_000)
        >>> profile = ReferenceProfile.fit(["amount"], amount[:, None], p, start=0, end=86_400_000_000)
        >>> later = np.concatenate(count_matrix(profile.edges, np.column_stack([1.5 * amount, p])))
        >>> window = WindowCounts(model_version="fraud/1", start=0, end=86_400_000_000, n=5_000, n_hours=24,
        ...     digest=profile.digest, counts=later, actions={}, routes={}, feature_status={}, n_probability=5_000,
        ...     mean_probability=0.02, latency=LatencyHistogram())
        >>> print(DriftRule().judge(drift(profile, window)))
        drifted: amount PSI 0.271 (effect 0.259, shift 0.528, adjusted p ...)
    """
    given = baseline or Baseline.training(profile)
    for what, digest in ((window.model_version, window.digest), (given.name, given.digest)):
        if digest != profile.digest:
            raise Conflict(
                f"{what} was counted over bins {digest or 'of no profile'}, the profile has"
                f" {profile.digest}: load the profile of that version"
            )
    joint = None
    if profile.joint is not None and given.name == "training" and len(window.joint):
        joint = profile.joint.test(window.joint, window.n, names=profile.names)
    return _report(
        profile, given, window.counts, window.n, weights, (window.model_version, window.start, window.end), joint
    )


def frame_drift(
    profile: ReferenceProfile,
    columns: Sequence[ArrayLike],
    *,
    weights: Mapping[str, float] | None = None,
    name: str = "frame",
    start: int = 0,
    end: int = 0,
) -> DriftReport:
    """Measures how far the columns of a data frame have moved from the reference, in one pass and without a copy.

    Args:
        profile: The reference profile.
        columns: The values of `profile.columns` (the features, and last the probability), each of shape (n,) and of
            float32 or float64; NaN is null. `[frame[name].to_numpy() for name in profile.columns]` is such a list.
        weights: As for `drift`.
        name: What the report calls the frame.
        start: When its period begins, in microseconds.
        end: When it ends.

    Raises:
        InvalidInput: If the number of columns is another, or their lengths differ.

    Example:
        >>> rng = np.random.default_rng(7)
        >>> x, p = rng.normal(size=5_000), rng.random(5_000)
        >>> profile = ReferenceProfile.fit(["x"], x[:, None], p, start=0, end=86_400_000_000)
        >>> print(frame_drift(profile, [x + 1, p]).of("x").statistic("ks"))
        ks 0.3854 (without change: mean 0.015..., 95 % below 0.025...; p = 0; n = 5,000 and 5,000)
    """
    sizes = {len(np.asarray(column)) for column in columns}
    if len(sizes) != 1:
        raise InvalidInput("columns", sorted(sizes), "have one length")
    counts = profile.layout.count_columns(columns)
    return _report(profile, Baseline.training(profile), counts, sizes.pop(), weights, (name, start, end), None)


def _report(
    profile: ReferenceProfile,
    baseline: Baseline,
    counts: NDArray[np.int64],
    n: int,
    weights: Mapping[str, float] | None,
    of: tuple[str, int, int],
    joint: JointDrift | None,
) -> DriftReport:
    if weights is not None:
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InvalidInput(f"weights[{name}]", weight, "be a finite number of at least 0")
    current = dict(zip(profile.columns, profile.layout.split(counts), strict=True))
    reference = dict(zip(profile.columns, profile.layout.split(baseline.counts), strict=True))
    ordinary = dict(zip(profile.columns, profile.ordinary, strict=True))
    measured = {
        name: distance(frozen, reference[name], current[name], unit=unit, every=True)
        for name, frozen, unit in zip(profile.columns, profile.edges, profile.units, strict=True)
        if name not in profile.ignored
    }
    watched = [name for name in profile.names if name in measured]
    adjusted = benjamini_hochberg([measured[name].p_value for name in watched]).adjusted
    p_value = dict(zip(watched, adjusted, strict=True))

    def column(name: str, weight: float) -> ColumnDrift:
        found = measured[name]
        return ColumnDrift(
            name=name,
            psi=found.psi,
            null_mean=found.null_mean,
            null_quantile=found.null_quantile,
            p_value=found.p_value,
            adjusted_p_value=p_value.get(name, found.p_value),
            effect=found.effect,
            shift=found.shift,
            ordinary_effect=ordinary[name][0],
            ordinary_shift=ordinary[name][1],
            null_share=int(current[name][0]) / n if n else math.nan,
            reference_null_share=int(reference[name][0]) / baseline.n if baseline.n else math.nan,
            weight=weight,
            n_reference=baseline.n,
            n_current=n,
            statistics=found.statistics,
        )

    features = [column(name, 1.0 if weights is None else weights.get(name, 0.0)) for name in watched]
    features.sort(key=lambda item: (-item.weight * item.effect, -item.effect, -item.shift, item.name))
    return DriftReport(
        model_version=of[0],
        start=of[1],
        end=of[2],
        features=tuple(features),
        prediction=column(PROBABILITY, 1.0),
        ignored=profile.ignored,
        n_reference=baseline.n,
        n_current=n,
        baseline=baseline.name,
        joint=joint,
    )
