"""Healthy months raise nothing about confidence; a model that is less sure is told of. Oracle: simulation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.monitoring import Alerts, ReferenceProfile, WatchRules, WindowCounts, to_prometheus, usual_rules
from vitok.monitoring.conditions import Finding
from vitok.monitoring.confidence import ConfidenceCounts, unsure_floor
from vitok.monitoring.confidence_watch import confidence_finding
from vitok.stats import FrozenEdges, LatencyHistogram

RULES = WatchRules()


def window(profile: ReferenceProfile, p: np.ndarray, day: int = 0) -> WindowCounts:
    edges = profile.edges[-1]
    counts = np.zeros(profile.layout.n_bins, dtype=np.int64)
    counts[-edges.n_bins :] = edges.count(p)
    return WindowCounts(
        model_version="fraud/1",
        start=day * DAY,
        end=(day + 1) * DAY,
        n=len(p),
        n_hours=24,
        digest=profile.digest,
        counts=counts,
        actions={},
        routes={},
        feature_status={},
        n_probability=len(p),
        mean_probability=float(p.mean()) if len(p) else math.nan,
        latency=LatencyHistogram(),
    )


def observed(alerts: Alerts, finding: Finding, day: int) -> Any:
    return alerts.observe(
        finding.rule,
        system="fraud",
        version=finding.version,
        window_end=(day + 1) * DAY,
        firing=finding.firing,
        value=finding.value,
        bound=finding.bound,
        reason=finding.reason,
        now=(day + 1) * DAY,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_healthy_months_of_moderate_size_raise_nothing(tmp_path: Path, traffic: Any, seed: int) -> None:
    # Four months of 2,000 decisions a day a policy: customers come again, weekdays differ, and no day is like another.
    world = traffic(per_day=2_000, n_customers=800, seed=seed)
    profile = world.profile(0, 7)
    alerts = Alerts(tmp_path / "alerts.sqlite")
    fired = 0
    for day in range(7, 67):
        (found,) = confidence_finding(profile, window(profile, world.day(day)["probability"].to_numpy(), day), RULES)
        fired += found.firing
        observed(alerts, found, day)
    assert alerts.history() == ()
    # Not even the single days, of which three in a row would be needed.
    assert fired <= 1
    alerts.close()


def drifting(scale: float) -> Callable[[int], np.ndarray]:
    def day(number: int) -> np.ndarray:
        rng = np.random.default_rng((3, number))
        return rng.beta(0.5 * (scale if number >= 10 else 1.0), 20, 3_000)

    return day


def fitted(days: Callable[[int], np.ndarray]) -> ReferenceProfile:
    p = np.concatenate([days(number) for number in range(7)])
    times = np.repeat(np.arange(7) * DAY, 3_000)
    return ReferenceProfile.fit(["x"], np.zeros((len(p), 1)), p, start=0, end=7 * DAY, event_time=times)


def test_a_model_less_sure_of_itself_raises_information_after_three_days_and_clears_late(tmp_path: Path) -> None:
    days = drifting(2.5)
    profile = fitted(days)
    alerts = Alerts(tmp_path / "alerts.sqlite")
    changed = []
    for number in range(7, 14):
        (found,) = confidence_finding(profile, window(profile, days(number)), RULES)
        assert found.firing == (number >= 10)
        changed.append(observed(alerts, found, number))
    assert [one is not None for one in changed] == [False] * 5 + [True, False]
    assert (changed[5].severity, changed[5].rule) == ("info", "confidence")
    assert "of the decisions are less sure than 0.9" in changed[5].reason
    assert "were when it was made (psi" in changed[5].reason
    alerts.close()


def test_what_is_near_the_bound_stays_while_the_alert_is_open() -> None:
    days = drifting(1.0)
    profile = fitted(days)
    rng = np.random.default_rng(0)
    for scale in np.linspace(1.0, 3.0, 60):
        seen = window(profile, rng.beta(0.5 * scale, 20, 3_000))
        (plain,), (open_,) = (
            confidence_finding(profile, seen, RULES, alerting=names) for names in ((), ("confidence",))
        )
        if open_.firing and not plain.firing:
            break
    else:
        pytest.fail("nothing lay between the bounds")


def test_to_be_surer_is_no_finding_and_few_rows_are_none() -> None:
    days = drifting(1.0)
    profile = fitted(days)
    (found,) = confidence_finding(profile, window(profile, np.full(3_000, 1e-4)), RULES)
    assert not found.firing
    assert found.value < found.bound
    assert confidence_finding(profile, window(profile, days(9)[:900]), RULES) == ()
    assert confidence_finding(profile, window(profile, np.full(3_000, np.nan)), RULES) == ()
    # One bin holds nearly all: no part of it is the least sure one.
    flat = ReferenceProfile.fit(["x"], np.zeros((2_000, 1)), np.full(2_000, 0.25), start=0, end=DAY)
    assert confidence_finding(flat, window(flat, np.full(3_000, 0.25)), RULES) == ()


def test_bins_are_counted_as_rows_at_their_centers_are() -> None:
    rng = np.random.default_rng(4)
    p = rng.beta(0.4, 0.7, 5_000)
    edges = FrozenEdges.from_values(p)
    counts = edges.count(p)
    floor = unsure_floor(edges, counts)
    found = ConfidenceCounts.of_bins(edges, counts, floor=floor)
    by_rows = ConfidenceCounts.of(np.repeat(edges.centers[2:-1], counts[2:-1]), floor=floor)
    assert (found.n, found.n_below) == (by_rows.n, by_rows.n_below)
    assert found.largest.tolist() == by_rows.largest.tolist()
    assert found.entropy.tolist() == by_rows.entropy.tolist()
    assert found.sum_entropy == pytest.approx(by_rows.sum_entropy)
    assert 0.1 <= found.n_below / found.n < 0.2
    with pytest.raises(InvalidInput, match="counts"):
        ConfidenceCounts.of_bins(edges, counts[1:], floor=floor)
    with pytest.raises(InvalidInput, match="floor"):
        ConfidenceCounts.of_bins(edges, counts, floor=0.0)
    assert math.isnan(unsure_floor(edges, np.zeros(edges.n_bins)))


def test_the_rule_is_exported_as_the_others_are() -> None:
    assert "confidence" in [rule.name for rule in usual_rules()]
    assert "alert: confidence" in str(to_prometheus(usual_rules()))
    with pytest.raises(InvalidInput, match="max_unsure_rise"):
        WatchRules(max_unsure_rise=-1)
