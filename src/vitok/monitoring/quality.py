"""Data quality, first in every triage: a broken feed looks like drift, and retraining on it makes things worse.

All from the counts of a window against the profile: null spikes, silent join failures (columns of one view that go to
null or to a default together), unit changes, swapped categories, constant columns, values that the reference never
had; and from names and types, changes of the schema.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitok.errors import Conflict, InvalidInput
from vitok.monitoring.profile import PROBABILITY, ReferenceProfile
from vitok.monitoring.sketches import WindowCounts
from vitok.stats import FrozenEdges, jensen_shannon
from vitok.stats.results import Result

Kind = Literal["join_failure", "null_spike", "unit_change", "category_swap", "constant", "unseen_values", "schema"]
# Most factors that units differ by; the rest of the world's conversions are near one of these or their inverses.
_FACTORS = (
    ("10", 10.0), ("100", 100.0), ("1,000", 1e3), ("1,000,000", 1e6), ("60 (minutes and seconds)", 60.0),
    ("3,600 (hours and seconds)", 3600.0), ("24 (days and hours)", 24.0), ("7 (weeks and days)", 7.0),
    ("2.54 (inches)", 2.54), ("3.2808 (feet)", 3.2808), ("1.6093 (miles)", 1.6093), ("2.2046 (pounds)", 2.2046),
)  # fmt: skip
_AFFINE = (("Celsius to Fahrenheit", 1.8, 32.0), ("Fahrenheit to Celsius", 1 / 1.8, -32 / 1.8))
_SHARES = np.array([1.0, 0.75, 0.5, 0.35, 0.2, 0.1, 0.05])
_POINTS = 16


@dataclass(frozen=True, kw_only=True)
class QualityRule:
    """From when a change of the data is called a fault.

    Args:
        min_n: Fewest rows of a window to judge, at least 1.
        min_jump: Least rise of the share of nulls, of a default or of unseen values, in (0, 1).
        min_ratio: Least ratio of the share of nulls to that of the reference, at least 1.
        max_p_value: Chance of such a rise where nothing changed, at most.
        min_index: Least Jensen-Shannon distance from the reference for units and categories to be looked at.
        explained: How much of it a change of unit or a swap must explain, in (0, 1).

    Raises:
        InvalidInput: If an argument is outside its range.
    """

    min_n: int = 200
    min_jump: float = 0.03
    min_ratio: float = 1.5
    max_p_value: float = 1e-6
    min_index: float = 0.15
    explained: float = 0.6

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("min_n", self.min_n >= 1, "be at least 1"),
            ("min_jump", 0 < self.min_jump < 1, "be strictly between 0 and 1"),
            ("min_ratio", self.min_ratio >= 1, "be at least 1"),
            ("max_p_value", 0 < self.max_p_value < 1, "be strictly between 0 and 1"),
            ("min_index", 0 < self.min_index < 1, "be strictly between 0 and 1"),
            ("explained", 0 < self.explained < 1, "be strictly between 0 and 1"),
        ):
            if not holds:
                raise InvalidInput(name, getattr(self, name), rule)


@dataclass(frozen=True, kw_only=True)
class QualityFinding(Result):
    """A fault of the data.

    Attributes:
        kind: Which.
        columns: The columns it is seen in.
        value: Its size: the share of rows that it reached, for a unit the factor, for unseen values their share.
        reference: What the reference had.
        reason: In words.
    """

    kind: Kind
    columns: tuple[str, ...]
    value: float
    reference: float
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def check_quality(
    profile: ReferenceProfile,
    window: WindowCounts,
    *,
    views: Mapping[str, Sequence[str]] | None = None,
    rule: QualityRule | None = None,
) -> tuple[QualityFinding, ...]:
    """Looks for faults of the data in a window.

    Args:
        profile: The version's reference profile.
        window: What `Sketches.window` gave.
        views: View to the features that come from it. Without it, features that jump by the same share of rows are
            taken to come from one view.
        rule: From when a change is called a fault.

    Returns:
        The faults, join failures first; a column that one explains has no second one. None where the window is small.

    Raises:
        Conflict: If the window was counted over other bins.

    Example:
        >>> from vitok.stats import LatencyHistogram
        >>> rng = np.random.default_rng(7)
        >>> amount, p = rng.lognormal(3, 0.8, 5_000), rng.beta(1, 50, 5_000)
        >>> profile = ReferenceProfile.fit(["amount"], amount[:, None], p, start=0, end=1)
        >>> window = WindowCounts(model_version="m/1", start=0, end=1, n=5_000, n_hours=1, digest=profile.digest,
        ...     counts=profile.layout.count_columns([100 * amount, p]), actions={}, routes={}, feature_status={},
        ...     n_probability=5_000, mean_probability=0.02, latency=LatencyHistogram())
        >>> print(check_quality(profile, window)[0])
        unit_change: amount is multiplied by 100 in 100 % of the rows
    """
    limits = rule or QualityRule()
    if window.digest != profile.digest:
        raise Conflict(f"{window.model_version} was counted over other bins than those of its profile: load that one")
    if window.n < limits.min_n:
        return ()
    columns = {
        name: (frozen, reference, current)
        for name, frozen, reference, current in zip(
            profile.columns, profile.edges, profile.counts, profile.layout.split(window.counts), strict=True
        )
        if name != PROBABILITY
    }
    jumps = {name: found for name, parts in columns.items() if (found := _jump(*parts, limits)) is not None}
    findings = list(_joins(jumps, views, limits))
    explained = {name for finding in findings for name in finding.columns}
    for name, (frozen, reference, current) in columns.items():
        if name in explained:
            continue
        fault = _single(name, frozen, reference, current, limits, calendar=name in profile.ignored)
        if fault is not None:
            findings.append(fault)
    return tuple(findings)


@dataclass(frozen=True)
class _Jump:
    """A bin whose share rose: which, and the share of rows that must have moved into it."""

    label: str
    reached: float
    before: float
    after: float


def _p_of_rise(before: int, n: int, after: int, m: int) -> float:
    """Returns the one-sided chance of a rise of a share, by the normal law of the pooled share."""
    from scipy.special import ndtr

    pooled = (before + after + 1) / (n + m + 2)
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return float(ndtr(-(after / m - before / n) / deviation))


def _jump(
    frozen: FrozenEdges, reference: NDArray[np.int64], current: NDArray[np.int64], rule: QualityRule
) -> _Jump | None:
    n, m = int(reference.sum()), int(current.sum())
    before, after = reference / n, current / m
    defaults = [0, *(at for at in _masses(frozen, reference))]
    best = max(defaults, key=lambda at: after[at] - before[at])
    rise = float(after[best] - before[best])
    if rise < rule.min_jump or after[best] < rule.min_ratio * before[best]:
        return None
    if _p_of_rise(int(reference[best]), n, int(current[best]), m) > rule.max_p_value:
        return None
    label = "null" if best == 0 else frozen.labels()[best].removeprefix("x = ")
    return _Jump(label, rise / max(1e-12, 1 - float(before[best])), float(before[best]), float(after[best]))


def _masses(frozen: FrozenEdges, reference: NDArray[np.int64]) -> list[int]:
    """Returns the bins that hold one value and something of the reference."""
    found = [at for at, label in enumerate(frozen.labels()) if label.startswith("x = ")]
    return [at for at in found if reference[at] > 0]


def _joins(
    jumps: Mapping[str, _Jump], views: Mapping[str, Sequence[str]] | None, rule: QualityRule
) -> list[QualityFinding]:
    """Returns one finding for each view most of whose columns jumped by the same share of rows."""
    groups: list[tuple[str, list[str], int]] = []
    if views is not None:
        groups = [(view, [name for name in names if name in jumps], len(names)) for view, names in views.items()]
    else:
        left = sorted(jumps, key=lambda name: jumps[name].reached)
        while left:
            first = jumps[left[0]].reached
            alike = [name for name in left if jumps[name].reached <= first * 1.1 + 0.01]
            groups.append(("", alike, len(alike)))
            left = left[len(alike) :]
    found = []
    for view, names, size in groups:
        if len(names) < 2 or len(names) < 0.6 * size:
            continue
        reached = np.array([jumps[name].reached for name in names])
        middle = float(np.median(reached))
        together = [
            name for name, share in zip(names, reached, strict=True) if abs(share - middle) <= 0.02 + middle / 5
        ]
        if len(together) < 2 or middle < rule.min_jump:
            continue
        where = f"{view}: " if view else ""
        shown = ", ".join(f"{name} to {jumps[name].label}" for name in together[:4])
        more = f" and {len(together) - 4} more" if len(together) > 4 else ""
        found.append(
            QualityFinding(
                kind="join_failure",
                columns=tuple(together),
                value=middle,
                reference=0.0,
                reason=f"{where}{shown}{more}, together in {middle:.0%} of the rows",
            )
        )
    return found


def _single(
    name: str,
    frozen: FrozenEdges,
    reference: NDArray[np.int64],
    current: NDArray[np.int64],
    rule: QualityRule,
    *,
    calendar: bool,
) -> QualityFinding | None:
    n, m = int(reference.sum()), int(current.sum())
    before, after = reference / n, current / m
    rise = after[0] - before[0]
    large = rise >= rule.min_jump and after[0] >= rule.min_ratio * before[0]
    if large and _p_of_rise(int(reference[0]), n, int(current[0]), m) <= rule.max_p_value:
        reason = f"{name} is null in {after[0]:.1%} of the rows, {before[0]:.1%} in the reference"
        return QualityFinding(
            kind="null_spike", columns=(name,), value=float(after[0]), reference=float(before[0]), reason=reason
        )
    if calendar:
        # A flag of the calendar is constant all day, and swaps with the week.
        return None
    largest = int(np.argmax(after))
    if after[largest] >= 0.999 and before.max() <= 0.99:
        return QualityFinding(
            kind="constant",
            columns=(name,),
            value=float(after[largest]),
            reference=float(before[largest]),
            reason=f"{name} has one value only: {frozen.labels()[largest].removeprefix('x = ')}",
        )
    apart = _apart(reference, current) >= rule.min_index
    if apart and jensen_shannon(reference, current).p_value <= rule.max_p_value:
        found = _swap(name, frozen, reference, current, rule) or _unit(name, frozen, reference, current, rule)
        if found is not None:
            return found
    unseen = float(after[(reference == 0)].sum())
    expected = int(((reference > 0) | (current > 0)).sum()) / n
    if unseen >= max(rule.min_jump, 10 * expected):
        reason = f"{unseen:.1%} of {name} lies where the reference had nothing"
        return QualityFinding(kind="unseen_values", columns=(name,), value=unseen, reference=0.0, reason=reason)
    return None


def _apart(reference: NDArray[np.float64] | NDArray[np.int64], current: NDArray[np.int64]) -> float:
    """Returns the Jensen-Shannon distance alone: its null law costs a draw where bins hold few."""
    from scipy.special import xlogy

    p, q = reference / reference.sum(), current / current.sum()
    middle = (p + q) / 2
    used = middle > 0
    scale = np.where(used, middle, 1.0)
    terms = xlogy(p, p / scale) + xlogy(q, q / scale)
    return math.sqrt(max(0.0, float(terms.sum())) / (2 * math.log(2)))


def _swap(
    name: str, frozen: FrozenEdges, reference: NDArray[np.int64], current: NDArray[np.int64], rule: QualityRule
) -> QualityFinding | None:
    """Finds categories that took each other's place: the same shares, on other values."""
    masses = _masses(frozen, reference)
    if len(masses) < 2 or reference[masses].sum() < 0.95 * reference.sum():
        return None
    from scipy.optimize import linear_sum_assignment

    before, after = reference[masses] / reference.sum(), current[masses] / max(current.sum(), 1)
    # Roots of shares differ by sampling alike, whatever the share.
    cost = (np.sqrt(before)[:, None] - np.sqrt(after)[None, :]) ** 2
    # Where shares are alike, nothing has moved.
    cost += np.where(np.eye(len(masses), dtype=bool), 0.0, 1e-6)
    _, to = linear_sum_assignment(cost)
    moved = [at for at in range(len(masses)) if to[at] != at and max(before[at], after[at]) >= 0.005]
    if not moved:
        return None
    back = current.copy()
    back[masses] = current[masses][to]
    if _apart(reference, back) > (1 - rule.explained) * _apart(reference, current):
        return None
    labels = [frozen.labels()[at].removeprefix("x = ") for at in masses]
    shown = ", ".join(f"{labels[at]} is now {labels[to[at]]}" for at in moved[:4])
    return QualityFinding(
        kind="category_swap",
        columns=(name,),
        value=float(sum(before[at] for at in moved)),
        reference=0.0,
        reason=f"{name}: {shown}",
    )


def _unit(
    name: str, frozen: FrozenEdges, reference: NDArray[np.int64], current: NDArray[np.int64], rule: QualityRule
) -> QualityFinding | None:
    """Finds a factor that turns the reference, or a part of it, into the window."""
    if len(_masses(frozen, reference)) >= len(np.flatnonzero(reference)) - 1:
        # Of a few categories any factor makes others.
        return None
    risen = np.maximum(current / max(current.sum(), 1) - reference / reference.sum(), 0.0)
    points, weights = _points(frozen, reference)
    if not len(points):
        return None
    # What went to one place in a part of the rows is a default, and no other unit.
    shares = [1.0] if risen.max() > 0.8 * risen.sum() else _SHARES.tolist()
    rest = reference.astype(np.float64)
    rest[2:-1] = 0.0
    plain = _apart(reference, current)
    tried = [
        *((f"multiplied by {text}", factor, 0.0) for text, factor in _FACTORS),
        *((f"divided by {text}", 1 / factor, 0.0) for text, factor in _FACTORS),
        ("negated", -1.0, 0.0),
        *_AFFINE,
    ]
    best: tuple[float, str, float, float] = (math.inf, "", 0.0, 0.0)
    for text, factor, offset in tried:
        place = frozen.places(points * factor + offset)
        turned = np.bincount(place, weights=weights, minlength=frozen.n_bins) + rest
        # A part of the rows with the wrong sign is a fault of another kind.
        for share in shares if factor > 0 else (1.0,):
            mixed = share * turned + (1 - share) * reference
            found = _apart(np.maximum(mixed, 0.0), current)
            if found < best[0] - 1e-9:
                best = (found, text, factor, share)
    if best[0] > (1 - rule.explained) * plain:
        return None
    verb = best[1] if best[1].startswith(("multiplied", "divided", "negated")) else f"turned from {best[1]}"
    return QualityFinding(
        kind="unit_change",
        columns=(name,),
        value=best[2],
        reference=1.0,
        reason=f"{name} is {verb} in {100 * best[3]:.0f} % of the rows",
    )


def _points(frozen: FrozenEdges, reference: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Spreads the finite reference over points: a bin's rows evenly between its edges, a point mass on itself."""
    labels = frozen.labels()
    points, weights = [], []
    for at in range(2, frozen.n_bins - 1):
        n = int(reference[at])
        if not n:
            continue
        cell = at - 2
        low = frozen.edges[cell - 1] if cell > 0 else frozen.centers[at]
        high = frozen.edges[cell] if cell < len(frozen.edges) else frozen.centers[at]
        if labels[at].startswith("x = "):
            spread = np.full(1, frozen.centers[at])
        else:
            steps = (np.arange(_POINTS) + 0.5) / _POINTS
            # Where a bin spans several times its lower end, rows crowd towards it.
            wide = low > 0 and high > 2 * low
            spread = low * (high / low) ** steps if wide else low + (high - low) * steps
        points.append(spread)
        weights.append(np.full(len(spread), n / len(spread)))
    if not points:
        return np.zeros(0), np.zeros(0)
    return np.concatenate(points), np.concatenate(weights)


def check_schema(expected: Mapping[str, str], found: Mapping[str, Any]) -> tuple[QualityFinding, ...]:
    """Compares names and types of columns.

    Args:
        expected: Column to type, in words.
        found: Column to type; anything whose `str` names it, such as `frame.schema` of polars.

    Example:
        >>> for finding in check_schema({"amount": "Float64", "count": "Int64"}, {"amount": "String", "more": "Int64"}):
        ...     print(finding)
        schema: amount is String and was Float64
        schema: count is missing
        schema: more is new
    """
    reasons = []
    for name in expected:
        if name not in found:
            reasons.append((name, f"{name} is missing"))
        elif str(found[name]) != expected[name]:
            reasons.append((name, f"{name} is {found[name]} and was {expected[name]}"))
    reasons += [(name, f"{name} is new") for name in found if name not in expected]
    return tuple(
        QualityFinding(kind="schema", columns=(name,), value=1.0, reference=0.0, reason=reason)
        for name, reason in reasons
    )
