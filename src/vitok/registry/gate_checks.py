"""The checks that a gate is put together from: data, quality by slice, calibration, cost, latency, skew.

Each takes arrays or a report of another room and returns checks for `evaluate`; a bound meets a whole interval, never
a point. Where there are too few rows, a rule that the caller chose says what happens.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from vitok.errors import InvalidInput
from vitok.registry.gates import Check, at_most, not_worse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from vitok.stats.results import Estimate

Few = Literal["wait", "pass", "refuse"]
"""What becomes of a part with too few rows: it is open, it passes, or it fails."""
Unclear = Literal["wait", "pass", "refuse", "value"]
"""What becomes of a part whose interval holds the margin; `"value"`: its value decides."""


class BrokenRule(Protocol):
    """What one rule of a contract found: a `RuleResult`."""

    @property
    def field(self) -> str:
        """The field it is about, empty for the whole table."""
        ...

    @property
    def label(self) -> str:
        """Field and rule, such as `"amount.minimum"`."""
        ...

    @property
    def status(self) -> str:
        """`"passed"`, `"failed"` or `"skipped"`."""
        ...

    @property
    def severity(self) -> str:
        """What breaking it does: `"block"`, `"quarantine"` or `"warn"`."""
        ...

    @property
    def n_failed(self) -> int:
        """How many values break it."""
        ...


class DataReport(Protocol):
    """What a contract says of the training data: a `CheckReport`."""

    @property
    def n_rows(self) -> int:
        """Rows that came in."""
        ...

    @property
    def n_rejected(self) -> int:
        """Rows that break a rule."""
        ...

    @property
    def results(self) -> Sequence[BrokenRule]:
        """One result a rule."""
        ...


class Finding(Protocol):
    """Something wrong with the data: a `QualityFinding` of monitoring."""

    @property
    def kind(self) -> str:
        """Such as `"unit_change"`."""
        ...

    @property
    def value(self) -> float:
        """Its size."""
        ...

    @property
    def reason(self) -> str:
        """In words."""
        ...


class MovedColumn(Protocol):
    """How far a column of the training data lies from what is served: a `ColumnDrift` of monitoring."""

    @property
    def name(self) -> str:
        """The column."""
        ...

    @property
    def effect(self) -> float:
        """How far, 0 where nothing moved."""
        ...

    @property
    def adjusted_p_value(self) -> float:
        """Chance of that without a change, corrected over the columns."""
        ...


class SkewedColumn(Protocol):
    """How often a feature was served otherwise than it is computed: a `ColumnSkew` of monitoring."""

    @property
    def name(self) -> str:
        """The feature."""
        ...

    @property
    def share(self) -> "Estimate":
        """Share of decisions in which it differs, with its interval."""
        ...


def contract_kept(report: DataReport, *, max_rejected: float = 0.01, least: int = 1) -> tuple[Check, ...]:
    """Checks the training data against their contract: enough rows, few of them rejected, no rule of the table broken.

    Args:
        report: What the contract said of them.
        max_rejected: Share of the rows that may break a rule, in [0, 1).
        least: Rows at least, 1 or more.

    Returns:
        Two checks, and one more for each broken rule that stops a delivery or is about the whole table; warnings
        refuse nothing.

    Raises:
        InvalidInput: If a bound is out of range.

    Example:
        >>> from types import SimpleNamespace
        >>> report = SimpleNamespace(n_rows=1000, n_rejected=25, results=())
        >>> for check in contract_kept(report):
        ...     print(check)
        passed data: rows: 1,000 rows of at least 1
        FAILED data: rejected rows: 25 of 1,000 rows break the contract, at most 1 % may
    """
    if not 0 <= max_rejected < 1:
        raise InvalidInput("max_rejected", max_rejected, "be in [0, 1)")
    if least < 1:
        raise InvalidInput("least", least, "be at least 1")
    n, rejected = report.n_rows, report.n_rejected
    share = rejected / n if n else 1.0
    checks = [
        Check(
            name="data: rows",
            passed=n >= least,
            value=n,
            bound=least,
            reason=f"{n:,} rows of at least {least:,}",
            enough=False,
        ),
        Check(
            name="data: rejected rows",
            passed=share <= max_rejected,
            value=share,
            bound=max_rejected,
            reason=f"{rejected:,} of {n:,} rows break the contract, at most {100 * max_rejected:g} % may",
        ),
    ]
    for result in report.results:
        # What rejects rows is counted above; what speaks about the table has no row to reject.
        counted = result.severity == "quarantine" and result.field
        if result.status == "failed" and result.severity != "warn" and not counted:
            checks.append(
                Check(
                    name=f"data: {result.label}",
                    passed=False,
                    value=result.n_failed,
                    bound=0,
                    reason=f"the rule is broken, {result.n_failed:,} against it, severity {result.severity}",
                )
            )
    return tuple(checks)


def data_in_order(findings: Iterable[Finding], *, tolerated: Iterable[str] = ()) -> Check:
    """Checks that nothing is wrong with the data of the training span.

    Args:
        findings: What was found.
        tolerated: Kinds that refuse nothing.

    Example:
        >>> print(data_in_order([]))
        passed data quality: nothing was found
    """
    passed_over = frozenset(tolerated)
    wrong = [found for found in findings if found.kind not in passed_over]
    told = "; ".join(found.reason for found in wrong) or "nothing was found"
    return Check(name="data quality", passed=not wrong, value=len(wrong), bound=0, reason=told)


def close_to_traffic(
    columns: Iterable[MovedColumn], *, max_effect: float = 0.2, max_p_value: float = 0.01, name: str = "data drift"
) -> Check:
    """Checks that the data a version learned from look like the traffic it is to serve.

    Args:
        columns: Each column's distance between the two.
        max_effect: How far a column may lie away, above 0.
        max_p_value: A distance counts only where chance makes it this seldom, in (0, 1).
        name: Name of the check.

    Returns:
        A check whose value is the largest distance that is no chance; open where there is no column, or the distance
        of one could not be computed.

    Example:
        >>> from types import SimpleNamespace
        >>> moved = SimpleNamespace(name="amount", effect=0.4, adjusted_p_value=1e-9)
        >>> print(close_to_traffic([moved]))
        FAILED data drift: 1 of 1 columns lie away from the traffic: amount 0.4 above 0.2
    """
    if not (max_effect > 0 and 0 < max_p_value < 1):
        raise InvalidInput("max_effect, max_p_value", (max_effect, max_p_value), "be above 0, and in (0, 1)")
    seen = list(columns)
    found = [one for one in seen if one.adjusted_p_value <= max_p_value and not math.isnan(one.effect)]
    real = sorted(found, key=lambda one: -one.effect)
    away = [one for one in real if one.effect > max_effect]
    told = ", ".join(f"{one.name} {one.effect:.3g}" for one in away[:5])
    reason = (
        f"{len(away)} of {len(seen)} columns lie away from the traffic: {told} above {max_effect:g}"
        if away
        else f"none of {len(seen)} columns lies away from the traffic by more than {max_effect:g}"
    )
    value = real[0].effect if real else 0.0
    # What is no number is neither near nor far.
    unknown = [one.name for one in seen if math.isnan(one.effect) or math.isnan(one.adjusted_p_value)]
    if not away and (unknown or not seen):
        reason = f"not known of {', '.join(unknown[:5])}" if unknown else "no column was compared"
        return Check(name=name, passed=False, value=None, bound=max_effect, reason=reason, enough=False)
    return Check(name=name, passed=not away, value=value, bound=max_effect, reason=reason)


def no_worse_by_slice(
    name: str,
    *,
    candidate: "ArrayLike",
    incumbent: "ArrayLike",
    slices: Sequence[object] | Mapping[str, Sequence[object]],
    margin: float,
    weight: "ArrayLike | None" = None,
    relative: bool = False,
    least: int = 200,
    positive: "ArrayLike | None" = None,
    least_positives: int = 20,
    few: Few = "wait",
    unclear: Unclear = "wait",
    whole: Unclear = "wait",
    confidence_level: float = 0.95,
) -> tuple[Check, ...]:
    """Checks that a candidate loses nowhere more than a margin: on all rows, and on each slice.

    All intervals hold together at the level (Bonferroni, over the slices of all columns), so that a candidate is not
    refused because one of fifty slices looks bad by chance, nor let through because one looks good.

    Args:
        name: The quantity, such as `"cost"`.
        candidate: Loss of the candidate on each row, shape (n,), finite; lower is better.
        incumbent: Loss of the incumbent on the same rows.
        slices: Slice of each row, length n; or, by the name of a column, its slices, each of length n.
        margin: Rise of the mean loss that is still accepted, at least 0.
        weight: What each row stands for, shape (n,), at least 0, such as one over its propensity; None takes all
            alike.
        relative: Whether the margin is a share of the incumbent's mean loss on the rows in question.
        least: Rows below which a slice is not judged, at least 2.
        positive: Which rows are of the rare class, shape (n,), 0 or 1, where the loss comes from these.
        least_positives: Rows of the rare class below which a slice is not judged.
        few: What becomes of a slice that is not judged.
        unclear: What becomes of a slice whose interval holds the margin.
        whole: What becomes of all rows together where their interval does. Of two that are equally good, few rows
            show it seldom: where the value decides, half of what would be refused by them goes on, and what comes
            after, such as a canary, has to show it.
        confidence_level: Level of all of them together, in (0, 1).

    Returns:
        One check over all rows, then one a slice, the largest of each column first.

    Raises:
        InvalidInput: If lengths differ or a number is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> old = rng.random(2000)
        >>> where = ["FR"] * 1500 + ["IT"] * 480 + ["MT"] * 20
        >>> new = old + np.where(np.array(where) == "IT", 0.3, -0.1)
        >>> for check in no_worse_by_slice("loss", candidate=new, incumbent=old, slices=where, margin=0.05):
        ...     print(check.state, check.name)
        passed loss
        passed loss of FR
        FAILED loss of IT
        open loss of MT
    """
    from vitok.stats import mean_interval
    from vitok.stats.arrays import vector
    from vitok.stats.weighted_means import weighted_mean_interval, weights_of

    theirs, ours = vector("incumbent", incumbent, finite=True), vector("candidate", candidate, finite=True)
    rare = None if positive is None else vector("positive", positive, finite=True) == 1
    columns = slices if isinstance(slices, Mapping) else {"": slices}
    if len(theirs) != len(ours) or (rare is not None and len(rare) != len(ours)):
        raise InvalidInput("candidate, incumbent", (len(ours), len(theirs)), "have one length, as positive has")
    for field, value in (("few", few), ("unclear", unclear), ("whole", whole)):
        if value not in ("wait", "pass", "refuse") and (field == "few" or value != "value"):
            told = "be 'wait', 'pass' or 'refuse'" if field == "few" else "be 'wait', 'pass', 'refuse' or 'value'"
            raise InvalidInput(field, value, told)
    if least < 2:
        raise InvalidInput("least", least, "be at least 2")
    if not 0 <= margin < math.inf:
        raise InvalidInput("margin", margin, "be at least 0")
    weights = weights_of("weight", weight, len(ours))
    counted = weights > 0
    parts: list[tuple[str, NDArray[np.bool_]]] = []
    for column, values in columns.items():
        labels = np.array([str(one) for one in values], dtype=object)
        if len(labels) != len(ours):
            raise InvalidInput("slices", (len(ours), len(labels)), "be as long as both losses")
        names, counts = np.unique(labels, return_counts=True) if len(labels) else (np.array([]), np.array([]))
        of = f"{name} of {column} ".rstrip() + " "
        parts += [(f"{of}{names[at]}", counted & (labels == names[at])) for at in np.argsort(-counts, kind="stable")]

    unit = None if relative else margin

    def lacking(what: str, rows: "NDArray[np.bool_]") -> Check | None:
        if (n := int(rows.sum())) < least:
            return _too_few(what, n, least, unit, few)
        if rare is not None and (n := int(rare[rows].sum())) < least_positives:
            return _too_few(what, n, least_positives, unit, few, what="positive labels")
        return None

    # What is not judged takes nothing from the others.
    judged = [(what, rows, lacking(what, rows)) for what, rows in parts]
    level = 1 - (1 - confidence_level) / (sum(small is None for _, _, small in judged) + 1)

    def compared(what: str, rows: "NDArray[np.bool_]") -> Check:
        if not rows.any():
            return _too_few(what, 0, 1, unit, "wait")
        base, mean = (float(np.average(each[rows], weights=weights[rows])) for each in (theirs, ours))
        rise = (ours - theirs)[rows]
        return not_worse(
            what,
            candidate=mean,
            incumbent=base,
            difference=mean_interval(rise, confidence_level=level, name=what)
            if weight is None
            else weighted_mean_interval(rise, weights[rows], confidence_level=level, name=what),
            margin=margin * max(base, 0.0) if relative else margin,
            better="lower",
        )

    checks = [_settled(compared(name, counted), whole)]
    for what, rows, small in judged:
        checks.append(small or _settled(compared(what, rows), unclear))
    return tuple(checks)


def calibrated(
    y: "ArrayLike", probability: "ArrayLike", *, max_error: float = 0.05, least_positives: int = 20, few: Few = "wait"
) -> Check:
    """Checks that predicted probabilities are what happens: the upper end of the debiased error is within a bound.

    Args:
        y: Labels, shape (n,), 0 or 1, of rows that nothing was fitted on.
        probability: Shape (n,), in [0, 1].
        max_error: Root mean squared calibration error that is accepted, above 0.
        least_positives: Positive labels below which it is not judged.
        few: What happens then.

    Example:
        >>> p = np.repeat([0.2, 0.8], 500)
        >>> y = np.concatenate([np.arange(500) % 5 == 0, np.arange(500) % 5 != 0])
        >>> calibrated(y, p, max_error=0.1).passed
        True
    """
    from vitok.stats import calibration_error
    from vitok.stats.arrays import vector

    positives = int((vector("y", y, finite=True) == 1).sum())
    if positives < least_positives:
        return _too_few("calibration", positives, least_positives, max_error, few, what="positive labels")
    return at_most("calibration", calibration_error(y, probability), max_error)


def calibrated_in_the_large(
    y: "ArrayLike", probability: "ArrayLike", *, max_ratio: float = 1.5, confidence_level: float = 0.95
) -> Check:
    """Checks that as many positives happen as are expected, up to a factor.

    Where positives are rare, an error of so many points says little: probabilities twice too high are off by less than
    a point. It fails where the interval of the rate shows that the factor is exceeded, in either direction.

    Args:
        y: Labels, shape (n,), 0 or 1, of rows that nothing was fitted on.
        probability: Shape (n,), in [0, 1].
        max_ratio: The factor, at least 1.
        confidence_level: Level of the interval of the rate, in (0, 1).

    Returns:
        A check whose value is expected over happened, none where nothing happened; open without rows.

    Source: Van Calster et al., Calibration: the Achilles heel of predictive analytics, BMC Medicine 2019.

    Example:
        >>> y = np.arange(5_000) % 100 == 0
        >>> calibrated_in_the_large(y, np.full(5_000, 0.011)).state
        'passed'
        >>> print(calibrated_in_the_large(y, np.full(5_000, 0.04)).reason)
        expected 0.04, happened rate 0.01 (95 % interval 0.007594 to 0.01316, n = 5,000): more than 1.5 times apart
    """
    from vitok.stats import wilson
    from vitok.stats.arrays import labels_and_probabilities

    flags, expected = labels_and_probabilities(y, probability)
    if not 1 <= max_ratio < math.inf:
        raise InvalidInput("max_ratio", max_ratio, "be at least 1")
    name = "calibration in the large"
    if not len(flags):
        return _too_few(name, 0, 1, max_ratio, "wait")
    mean, rate = float(expected.mean()), wilson(int(flags.sum()), len(flags), confidence_level=confidence_level)
    passed = rate.lower / max_ratio <= mean <= rate.upper * max_ratio
    told = f"{'at most' if passed else 'more than'} {max_ratio:g} times apart"
    ratio = mean / rate.value if rate.value else math.inf
    reason = f"expected {mean:.4g}, happened {rate}: {told}"
    return Check(name=name, passed=passed, value=ratio, bound=max_ratio, reason=reason)


def no_dearer(
    candidate: "ArrayLike",
    incumbent: "ArrayLike",
    *,
    margin: float = 0.05,
    name: str = "cost",
    least: int = 200,
    unclear: Unclear = "wait",
) -> Check:
    """Checks that a decision costs at most so much more than the incumbent's, as a share of what the incumbent costs.

    The incumbent's cost is an estimate too, so both are judged as one mean: candidate less `1 + margin` times
    incumbent.

    Args:
        candidate: Cost of each decision under the candidate, shape (n,), finite.
        incumbent: The same decisions under the incumbent.
        margin: Share, at least 0.
        name: Name of the check.
        least: Rows below which it is open, at least 2.
        unclear: What becomes of it where the interval holds the margin.

    Returns:
        A check whose value is the rise as a share of the incumbent's cost.

    Example:
        >>> rng = np.random.default_rng(1)
        >>> old = rng.exponential(2.0, 5000)
        >>> print(no_dearer(old * 0.9, old).state)
        passed
    """
    from vitok.stats import mean_interval
    from vitok.stats.arrays import vector

    theirs, ours = vector("incumbent", incumbent, finite=True), vector("candidate", candidate, finite=True)
    if len(theirs) != len(ours):
        raise InvalidInput("candidate, incumbent", (len(ours), len(theirs)), "have one length")
    if not 0 <= margin < math.inf:
        raise InvalidInput("margin", margin, "be at least 0")
    if len(ours) < max(least, 2):
        return _too_few(name, len(ours), max(least, 2), margin, "wait")
    beyond = mean_interval(ours - (1 + margin) * theirs, name=name)
    base = float(theirs.mean())
    rise = float(ours.mean()) / base - 1 if base else math.nan
    reason = (
        f"{ours.mean():.4g} a decision against {base:.4g}, {100 * rise:+.3g} %; less {100 * (1 + margin):g} % of the "
        f"incumbent's it is {beyond.lower:.3g} to {beyond.upper:.3g}"
    )
    passed = beyond.upper <= 0
    found = Check(name=name, passed=passed, value=rise, bound=margin, reason=reason, enough=not beyond.lower <= 0)
    return _settled(found, unclear)


def fast_enough(
    us: "ArrayLike", *, bound_us: float, quantile: float = 0.99, name: str = "latency", confidence_level: float = 0.95
) -> Check:
    """Checks that a quantile of the latency lies within a bound, whatever the law of the latencies.

    The quantile is within the bound where the share of slower answers is at most `1 - quantile`; that share gets an
    exact one-sided bound, so that a hundred quick answers prove nothing about a P99.

    Args:
        us: Latencies in microseconds, shape (n,), at least 0.
        bound_us: The bound, above 0.
        quantile: Which quantile, in (0, 1).
        name: Name of the check.
        confidence_level: One-sided level, in (0, 1).

    Source: Clopper & Pearson 1934.

    Example:
        >>> print(fast_enough(np.full(100, 900.0), bound_us=1000))
        open latency: P99 900 us, 0 of 100 answers above 1,000 us; it takes 299 answers to show it
    """
    from vitok.stats import clopper_pearson_lower, trials_needed
    from vitok.stats.arrays import vector

    found = vector("us", us, finite=True)
    if (found < 0).any() or not bound_us > 0:
        raise InvalidInput("us, bound_us", bound_us, "be at least 0, and above 0")
    n, slow = len(found), int((found > bound_us).sum())
    needed = trials_needed(quantile, failures=slow, confidence_level=confidence_level)
    at = float(np.quantile(found, quantile, method="inverted_cdf")) if n else math.nan
    passed = clopper_pearson_lower(n - slow, n, confidence_level=confidence_level).lower >= quantile
    shown_slow = clopper_pearson_lower(slow, n, confidence_level=confidence_level).lower > 1 - quantile
    shown = f"{at:,.6g} us" if n else "unknown"
    reason = f"P{100 * quantile:g} {shown}, {slow:,} of {n:,} answers above {bound_us:,.6g} us"
    reason += "" if passed or shown_slow else f"; it takes {needed:,} answers to show it"
    return Check(name=name, passed=passed, value=at, bound=bound_us, reason=reason, enough=shown_slow)


def no_skew(columns: Iterable[SkewedColumn], *, max_share: float = 0.01, least: int = 200, few: Few = "wait") -> Check:
    """Checks that features are served as they are computed: in nearly all decisions each has the same value.

    Args:
        columns: Each feature's share of decisions in which it differs.
        max_share: Largest share that is accepted, in (0, 1); the upper end of each interval must be within.
        least: Decisions below which it is not judged.
        few: What happens then.

    Returns:
        A check whose value is the largest share.

    Example:
        >>> from types import SimpleNamespace
        >>> from vitok.stats import wilson
        >>> print(no_skew([SimpleNamespace(name="amount", share=wilson(40, 1000))]))
        FAILED skew: amount differs in 0.04 of 1,000 decisions (0.02951 to 0.05401), at most 0.01
    """
    if not 0 < max_share < 1:
        raise InvalidInput("max_share", max_share, "be in (0, 1)")
    seen = list(columns)
    n = min((one.share.n_obs for one in seen), default=0)
    if n < max(least, 1):
        return _too_few("skew", n, max(least, 1), max_share, few, what="decisions")
    worst = max(seen, key=lambda one: (one.share.upper, one.name))
    passed, share = worst.share.upper <= max_share, worst.share
    reason = (
        f"{worst.name} differs in {share.value:.4g} of {share.n_obs:,} decisions ({share.lower:.4g} to "
        f"{share.upper:.4g}), at most {max_share:g}"
    )
    shown = any(one.share.lower > max_share for one in seen)
    return Check(name="skew", passed=passed, value=share.value, bound=max_share, reason=reason, enough=shown)


def all_of(*groups: Check | Iterable[Check]) -> tuple[Check, ...]:
    """Puts checks and groups of checks into one row, for `evaluate`.

    Example:
        >>> [check.name for check in all_of(data_in_order([]), [at_most("x", 1, 2), at_most("y", 1, 2)])]
        ['data quality', 'x', 'y']
    """
    return tuple(check for group in groups for check in ([group] if isinstance(group, Check) else group))


_THEN: Mapping[Few, str] = {"wait": "", "pass": ", passed by rule", "refuse": ", refused by rule"}


def _too_few(name: str, n: int, least: int, bound: float | None, few: Few, *, what: str = "rows") -> Check:
    reason = f"{n:,} {what}, fewer than {least:,}: too few to tell{_THEN[few]}"
    return Check(name=name, passed=few == "pass", value=None, bound=bound, reason=reason, enough=few == "refuse")


def _settled(check: Check, unclear: Unclear) -> Check:
    if check.state != "open" or unclear == "wait":
        return check
    if unclear == "value":
        if check.value is None or check.bound is None:
            return check
        reason = f"{check.reason}, nor shows it: its value decides"
        return replace(check, passed=check.value <= check.bound, reason=reason, enough=True)
    reason = f"{check.reason}, nor shows it: too few to tell{_THEN[unclear]}"
    return replace(check, passed=unclear == "pass", reason=reason, enough=True)
