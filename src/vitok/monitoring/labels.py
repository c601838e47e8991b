"""What matured labels say: did the share of the positive change (label drift), or what a case means (concept drift)?

Both hold what happened against what was expected. For label drift that is the base rate of the reference, for concept
drift the calibrated probability of each decision: where the features moved and the model still knows what they mean,
labels move and residuals stay. No second model is needed.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitok.errors import InvalidInput
from vitok.stats import benjamini_hochberg
from vitok.stats.arrays import numbers
from vitok.stats.results import Result

_BINS = 5


@dataclass(frozen=True, kw_only=True)
class LabelDrift(Result):
    """Positives that came against those that the base rate lets expect by now.

    Attributes:
        n: Decisions.
        happened: Positive labels that have come.
        expected: Positives expected by now: the base rate, times the chance that a label of that age has come.
        ratio: Happened to expected.
        p_value: Two-sided chance of such a distance where the base rate holds.
    """

    n: int
    happened: int
    expected: float
    ratio: float
    p_value: float

    def __str__(self) -> str:
        return (
            f"{self.happened:,} positives of {self.n:,} where {self.expected:,.1f} were expected by now"
            f" (p = {self.p_value:.3g})"
        )


def label_drift(
    happened: int, arrived: ArrayLike, *, base_rate: float, base_n: int, dispersion: float = 1.0
) -> LabelDrift:
    """Tests whether positives come as often as they did, without waiting until all labels are in.

    Args:
        happened: Positive labels that have come of n decisions.
        arrived: Shape (n,): for each decision the chance that a positive label of its age has come, in [0, 1], as a
            maturity curve gives it. Ones where all labels are in.
        base_rate: Share of positives in the reference, in [0, 1].
        base_n: Decisions that this share rests on, at least 1.
        dispersion: How many times the variance of counts is that of independent ones, at least 1: frauds come in
            bursts.

    Raises:
        InvalidInput: If an argument is outside its range.

    Source: normal law of the square root of counts (Anscombe, Biometrika 1948), which holds for few positives too.

    Example:
        >>> young = label_drift(25, np.full(10_000, 0.25), base_rate=0.01, base_n=50_000)
        >>> late = label_drift(25, np.ones(10_000), base_rate=0.01, base_n=50_000)
        >>> young.p_value > 0.5, late.p_value < 1e-6
        (True, True)
    """
    from scipy.special import ndtr

    weight = numbers("arrived", arrived)
    if weight.ndim != 1 or not ((weight >= 0) & (weight <= 1)).all():
        raise InvalidInput("arrived", weight.shape, "be one share in [0, 1] for each decision")
    for name, holds, rule, value in (
        ("happened", 0 <= happened <= len(weight), "be at most the number of decisions", happened),
        ("base_rate", 0 <= base_rate <= 1, "be in [0, 1]", base_rate),
        ("base_n", base_n >= 1, "be at least 1", base_n),
        ("dispersion", dispersion >= 1, "be at least 1", dispersion),
    ):
        if not holds:
            raise InvalidInput(name, value, rule)
    expected = base_rate * float(weight.sum())
    if expected <= 0:
        return LabelDrift(n=len(weight), happened=happened, expected=expected, ratio=math.nan, p_value=1.0)
    known = base_rate * base_n
    # Twice the root of a count has variance 1; that of the expectation is as wide as what it rests on.
    gap = 2 * (math.sqrt(happened + 3 / 8) - math.sqrt(expected + 3 / 8))
    deviation = math.sqrt(dispersion * (1 + expected / max(known, 1e-9)))
    return LabelDrift(
        n=len(weight),
        happened=happened,
        expected=expected,
        ratio=happened / expected,
        p_value=float(2 * ndtr(-abs(gap) / deviation)),
    )


@dataclass(frozen=True, kw_only=True)
class GroupResidual(Result):
    """Labels of one group of decisions against their probabilities.

    Attributes:
        group: What the group is made by, such as `"score"` or a slice column.
        value: Which.
        n: Decisions.
        expected: Sum of the probabilities, times what the reference's ratio was.
        happened: Positive labels.
        z: Distance in standard deviations; above 0 where more happened than was expected.
        p_value: Two-sided.
        adjusted_p_value: After Benjamini-Hochberg over all groups.
    """

    group: str
    value: str
    n: int
    expected: float
    happened: float
    z: float
    p_value: float
    adjusted_p_value: float

    @property
    def ratio(self) -> float:
        """Happened to expected; infinite where nothing was expected."""
        return self.happened / self.expected if self.expected > 0 else math.inf

    def __str__(self) -> str:
        return (
            f"{self.group} {self.value}: {self.happened:,.0f} happened, {self.expected:,.1f} expected"
            f" (z {self.z:+.1f}, adjusted p {self.adjusted_p_value:.3g})"
        )


@dataclass(frozen=True, kw_only=True)
class ConceptDrift(Result):
    """Whether a decision still means what it meant: residuals of matured labels, by score, slice and feature.

    Attributes:
        n: Decisions with matured labels.
        overall: All of them.
        groups: The groups by absolute `z`, largest first.
        p_value: Least adjusted p-value, that of all decisions among them.
        effect: Largest relative distance of happened from expected among the groups whose change is no accident at
            1 %; 0 where there is none.
    """

    n: int
    overall: GroupResidual
    groups: tuple[GroupResidual, ...]
    p_value: float
    effect: float

    def __str__(self) -> str:
        return "\n".join([f"{self.n:,} matured decisions; {self.overall}", *(f"  {one}" for one in self.groups[:6])])


@dataclass(frozen=True, kw_only=True, eq=False)
class MaturedLabels:
    """Decisions whose labels are in, as arrays: what concept drift is tested on.

    Attributes:
        y: Shape (n,), 0 or 1.
        probability: Shape (n,), the calibrated probability that was served.
        groups: Name to shape (n,): slices, or features cut into a few pieces; `by_quantile` cuts one.
        day: Shape (n,), the day of each decision: days tell how bursty labels are. None takes them as independent.
    """

    y: NDArray[np.float64]
    probability: NDArray[np.float64]
    groups: Mapping[str, NDArray[np.object_]]
    day: NDArray[np.int64] | None = None


def by_quantile(values: ArrayLike, cuts: ArrayLike) -> NDArray[np.object_]:
    """Names the piece that each value falls into, between frozen cuts.

    Example:
        >>> by_quantile([0.5, 2.0, float("nan")], [1.0]).tolist()
        ['below 1', 'from 1', 'null']
    """
    array, edges = np.asarray(values, dtype=np.float64), np.asarray(cuts, dtype=np.float64)
    inner = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges.tolist())]
    names = np.array([f"below {edges[0]:.4g}", *inner, f"from {edges[-1]:.4g}", "null"], dtype=object)
    at = np.searchsorted(edges, array, side="right")
    at[np.isnan(array)] = len(names) - 1
    return np.asarray(names[at])


def concept_drift(
    current: MaturedLabels, *, reference: MaturedLabels | None = None, min_expected: float = 5.0
) -> ConceptDrift:
    """Tests whether labels still follow the probabilities, overall and group by group.

    Args:
        current: Matured decisions of the window.
        reference: Held-out decisions from when the version was made, with the same groups: what was not calibrated
            then is no drift. None takes the probabilities as calibrated.
        min_expected: Fewest expected positives, and negatives, of a group that is looked at.

    Returns:
        The residuals. Groups are quintiles of the score (of expected positives, since most decisions have hardly any)
        and those that were given.

    Raises:
        InvalidInput: If shapes differ or a probability is outside [0, 1].

    Source: the score test of calibration in groups, Hosmer & Lemeshow 1980; overdispersion as in McCullagh & Nelder,
    Generalized Linear Models, 1989, 4.5.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> p = rng.beta(1, 9, 20_000)
        >>> same = MaturedLabels(y=(rng.random(20_000) < p) * 1.0, probability=p, groups={})
        >>> flipped = MaturedLabels(y=(rng.random(20_000) < p[::-1]) * 1.0, probability=p, groups={})
        >>> concept_drift(same).p_value > 0.01, concept_drift(flipped).p_value < 1e-9
        (True, True)
    """
    for side, given in (("current", current), ("reference", reference)):
        if given is not None:
            _check(side, given)
    cuts = _score_cuts(current.probability if reference is None else reference.probability)
    dispersion = max(_dispersion(current), 1.0 if reference is None else _dispersion(reference))
    raw: list[tuple[str, str, int, float, float, float]] = []
    before = {}
    if reference is not None:
        before = {(group, value): found for group, value, found in _groups(reference, cuts)}
    for group, value, found in _groups(current, cuts):
        n, expected, happened, variance = found
        ratio, ratio_variance = 1.0, 0.0
        if (group, value) in before:
            _, expected_then, happened_then, variance_then = before[group, value]
            if expected_then >= min_expected:
                ratio, ratio_variance = happened_then / expected_then, variance_then / expected_then**2
        expected *= ratio
        if group != "all" and (expected < min_expected or n - expected < min_expected):
            continue
        spread = dispersion * (variance * max(ratio, 1e-3) + ratio_variance * (expected / max(ratio, 1e-3)) ** 2)
        z = (happened - expected) / math.sqrt(spread) if spread > 0 else 0.0
        raw.append((group, value, n, expected, happened, z))
    from scipy.special import ndtr

    p_values = [float(2 * ndtr(-abs(z))) for *_, z in raw]
    adjusted = benjamini_hochberg(p_values).adjusted
    found_groups = [
        GroupResidual(
            group=group, value=value, n=n, expected=expected, happened=happened, z=z, p_value=p, adjusted_p_value=q
        )
        for (group, value, n, expected, happened, z), p, q in zip(raw, p_values, adjusted, strict=True)
    ]
    overall = found_groups[0]
    sure = [abs(one.ratio - 1) for one in found_groups if one.adjusted_p_value <= 0.01 and one.expected > 0]
    return ConceptDrift(
        n=len(current.y),
        overall=overall,
        groups=tuple(sorted(found_groups[1:], key=lambda one: -abs(one.z))),
        p_value=min(one.adjusted_p_value for one in found_groups),
        effect=max(sure, default=0.0),
    )


def _check(side: str, given: MaturedLabels) -> None:
    n = len(given.y)
    for name, numeric in (("y", given.y), ("probability", given.probability)):
        if not isinstance(numeric, np.ndarray) or numeric.dtype.kind not in "bif":
            raise InvalidInput(f"{side}: {name}", type(numeric).__name__, "be an array of numbers")
    for name, values in (("probability", given.probability), *given.groups.items()):
        if len(values) != n:
            raise InvalidInput(f"{side}: {name}", len(values), f"have {n} items, one for each label")
    if n and not ((given.probability >= 0) & (given.probability <= 1)).all():
        raise InvalidInput(f"{side}: probability", "a value outside", "be in [0, 1]", "Calibrate raw scores first")


def _score_cuts(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(probability)
    if not len(ordered) or ordered[-1] <= 0:
        return np.zeros(0)
    share = np.cumsum(ordered) / ordered.sum()
    at = np.searchsorted(share, np.arange(1, _BINS) / _BINS)
    return np.unique(ordered[np.minimum(at, len(ordered) - 1)])


def _groups(given: MaturedLabels, cuts: NDArray[np.float64]) -> list[tuple[str, str, tuple[int, float, float, float]]]:
    """Returns group, value and (n, expected, happened, variance) of each; all decisions first."""
    y, p = given.y.astype(np.float64), given.probability
    named = dict(given.groups)
    if len(cuts):
        named = {"score": by_quantile(p, cuts), **named}
    found = [("all", "decisions", (len(y), float(p.sum()), float(y.sum()), float((p * (1 - p)).sum())))]
    for group, values in named.items():
        distinct, at = np.unique(np.asarray(values).astype(str), return_inverse=True)
        n = np.bincount(at, minlength=len(distinct))
        expected, happened = np.bincount(at, weights=p), np.bincount(at, weights=y)
        variance = np.bincount(at, weights=p * (1 - p))
        found += [
            (group, str(value), (int(n[k]), float(expected[k]), float(happened[k]), float(variance[k])))
            for k, value in enumerate(distinct)
        ]
    return found


def _dispersion(given: MaturedLabels) -> float:
    """Returns by how much residuals of days vary more than those of independent decisions, at least 1."""
    if given.day is None or not len(given.y):
        return 1.0
    days, at = np.unique(given.day, return_inverse=True)
    if len(days) < 4:
        return 1.0
    expected = np.bincount(at, weights=given.probability)
    gap = np.bincount(at, weights=given.y) - expected
    variance = np.bincount(at, weights=given.probability * (1 - given.probability))
    # Around their own mean: a change of level is what is looked for, not burstiness.
    level = gap.sum() / max(expected.sum(), 1e-12)
    gap = gap - level * expected
    kept = variance > 0
    return max(1.0, float((gap[kept] ** 2 / variance[kept]).sum()) / max(int(kept.sum()) - 1, 1))
