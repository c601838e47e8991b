"""Whether a version is less sure of itself than when it was made, from the hourly counts of its probability."""

import math
from collections.abc import Collection

from vitok.monitoring.conditions import Finding, WatchRules
from vitok.monitoring.confidence import ConfidenceCounts, confidence_shift, unsure_floor
from vitok.monitoring.profile import ReferenceProfile
from vitok.monitoring.sketches import WindowCounts

_MOST = 0.5


def confidence_finding(
    profile: ReferenceProfile, window: WindowCounts, rules: WatchRules, *, alerting: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Judges the share of unsure decisions: those in the bins that held the least sure tenth of the reference.

    It fires where the rise has a p-value of at most `rules.drift.false_discovery_rate`, its interval lies above
    `rules.max_unsure_rise` of the reference's share, and it is more than single days of the reference differed by. To
    be surer than before is no finding. A sign, not a proof: overconfidence on strange rows looks like health here.

    Args:
        profile: The version's reference profile.
        window: Its counts of the window, over the profile's bins.
        rules: What is looked for.
        alerting: Names of the rules that have an open alert on this version: for them the bounds of leaving hold.

    Returns:
        The finding; none where the window is too small, or the bins of the profile are too few to tell.

    Example:
        >>> import numpy as np
        >>> from vitok.stats import LatencyHistogram, count_matrix
        >>> rng = np.random.default_rng(7)
        >>> x, p = rng.normal(size=5_000), rng.beta(0.5, 20, 5_000)
        >>> profile = ReferenceProfile.fit(["x"], x[:, None], p, start=0, end=86_400_000_000)
        >>> later = np.concatenate(count_matrix(profile.edges, np.column_stack([x, rng.beta(1, 20, 5_000)])))
        >>> window = WindowCounts(model_version="fraud/1", start=0, end=86_400_000_000, n=5_000, n_hours=24,
        ...     digest=profile.digest, counts=later, actions={}, routes={}, feature_status={}, n_probability=5_000,
        ...     mean_probability=0.05, latency=LatencyHistogram())
        >>> print(*confidence_finding(profile, window, WatchRules()))
        confidence of fraud/1: FIRING, 31.7 % of the decisions are less sure than 0.947, 12.5 % were when it was
        made (psi 0.2254 (without change: mean 0.0004, ...))
    """
    edges = profile.edges[-1]
    floor = unsure_floor(edges, profile.counts[-1])
    if math.isnan(floor):
        return ()
    before = ConfidenceCounts.of_bins(edges, profile.counts[-1], floor=floor)
    now = ConfidenceCounts.of_bins(edges, window.counts[-edges.n_bins :], floor=floor)
    # Where most of the reference is in one bin there is no least sure part of it.
    if now.n < rules.min_n or before.n_below > _MOST * before.n:
        return ()
    found = confidence_shift(before, now, confidence_level=rules.confidence_level)
    share = rules.drift.leave if rules.confidence.name in alerting else 1.0
    rise = rules.max_unsure_rise * found.reference_below
    ordinary, _ = profile.ordinary[-1]
    firing = (
        found.below_law.p_value <= rules.drift.false_discovery_rate
        and found.change.lower > share * rise
        and found.below_law.excess > share * rules.drift.beyond_ordinary * ordinary
    )
    reason = (
        f"{100 * found.below:.3g} % of the decisions are less sure than {floor:.3g},"
        f" {100 * found.reference_below:.3g} % were when it was made ({found.below_law})"
    )
    bound = found.reference_below + rise
    version = window.model_version
    return (
        Finding(rule=rules.confidence, version=version, firing=firing, value=found.below, bound=bound, reason=reason),
    )
