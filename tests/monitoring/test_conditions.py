"""Conditions: what fires, what stays quiet, and what cannot be judged."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY, HOUR
from vitok.errors import InvalidInput
from vitok.monitoring import Finding, Performance, ReferenceProfile, WatchRules, WindowCounts, diagnose, performance
from vitok.monitoring.conditions import explained, hourly_fallback_finding, quality_findings
from vitok.policies import Costs
from vitok.stats import Estimate, LatencyHistogram

RULES = WatchRules(min_n=500)


def estimate(name: str, value: float, half: float, level: float = 0.95) -> dict[str, object]:
    found = Estimate(
        name=name, value=value, lower=value - half, upper=value + half, n_obs=9, confidence_level=level, definition=""
    )
    return found.to_dict()


def with_baseline(profile: ReferenceProfile, **baseline: dict[str, object]) -> ReferenceProfile:
    return dataclasses.replace(profile, baseline=baseline)


@pytest.fixture
def found() -> Performance:
    rng = np.random.default_rng(9)
    n = 4_000
    probability = rng.beta(0.3, 6, n)
    frame = pl.DataFrame(
        {
            "label": (rng.random(n) < probability).astype(float),
            "probability": probability,
            "action": ["allow"] * n,
            "amount": rng.lognormal(3, 0.5, n),
        }
    )
    return performance(frame, costs=Costs(), confidence_level=0.99)


def test_quality_is_judged_beyond_both_intervals(profile: ReferenceProfile, found: Performance) -> None:
    value = found.average_precision.value
    high = value / 0.8 * 2
    for half, firing in ((0.01, True), (high, False)):
        baseline = with_baseline(profile, average_precision=estimate("average_precision", high, half))
        quality = quality_findings("fraud/1", found, baseline, RULES)[0]
        assert quality.firing is firing
        assert quality.bound == pytest.approx(0.8 * high)
        assert quality.value == value
    same = with_baseline(profile, average_precision=estimate("average_precision", value, 0.0))
    assert not quality_findings("fraud/1", found, same, RULES)[0].firing


def test_the_level_of_the_baseline_is_brought_to_that_of_the_window(
    profile: ReferenceProfile, found: Performance
) -> None:
    # Oracle: MOVER written out with both half-widths at 99 %.
    value, keep = found.average_precision.value, 0.8
    base, half = value / keep * 1.4, 0.1
    z95, z99 = 1.959963985, 2.575829304
    upper = value - keep * base + math.hypot(found.average_precision.upper - value, keep * half * z99 / z95)
    baseline = with_baseline(profile, average_precision=estimate("average_precision", base, half))
    assert quality_findings("fraud/1", found, baseline, RULES)[0].firing is (upper < 0)


def test_money_fires_where_ranking_does_not(profile: ReferenceProfile, found: Performance) -> None:
    cost = found.cost_per_decision.value
    baseline = with_baseline(
        profile,
        average_precision=estimate("average_precision", found.average_precision.value, 0.01),
        cost_per_decision=estimate("cost_per_decision", cost / 2, 0.0),
    )
    quality = quality_findings("fraud/1", found, baseline, RULES)[0]
    assert quality.firing
    assert quality.reason.startswith("cost_per_decision")
    tolerant = WatchRules(min_n=500, max_cost_rise=2.0)
    assert not quality_findings("fraud/1", found, baseline, tolerant)[0].firing


def test_without_a_baseline_only_calibration_is_judged(profile: ReferenceProfile, found: Performance) -> None:
    (calibration,) = quality_findings("fraud/1", found, profile, RULES)
    assert (calibration.rule.name, calibration.firing) == ("calibration", False)
    assert json.dumps(calibration.to_dict())
    assert str(calibration).startswith("calibration of fraud/1: quiet, calibration_error")


@pytest.mark.parametrize(
    "rules", [WatchRules(min_n=5_000), WatchRules(min_n=500, min_frauds=2_000), WatchRules(min_n=500, min_labelled=1.0)]
)
def test_too_few_labels_are_not_judged(profile: ReferenceProfile, found: Performance, rules: WatchRules) -> None:
    if rules.min_labelled == 1.0:
        found = dataclasses.replace(found, labelled=dataclasses.replace(found.labelled, value=0.99))
    assert quality_findings("fraud/1", found, profile, rules) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_n": 0},
        {"trailing": 0},
        {"maturity": -1},
        {"settle": -1},
        {"max_drop": 1.0},
        {"max_ratio": 1.0},
        {"confidence_level": 1.0},
        {"max_cost_rise": -0.1},
        {"min_labelled": 1.1},
    ],
)
def test_rules_refuse_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        WatchRules(**wrong)  # type: ignore[arg-type]


def test_a_firing_finding_says_what_where_and_since_when(profile: ReferenceProfile) -> None:
    window = WindowCounts(
        model_version="fraud/1",
        start=0,
        end=DAY,
        n=profile.n,
        n_hours=24,
        digest=profile.digest,
        counts=np.concatenate(profile.counts),
        actions={},
        routes={},
        feature_status={},
        n_probability=profile.n,
        mean_probability=0.1,
        latency=LatencyHistogram(),
    )
    diagnosis = dataclasses.replace(
        diagnose(profile, window), names=("data drift",), where="country = CH", since=3 * DAY
    )
    rule = RULES.data_drift
    finding = Finding(rule=rule, version="fraud/1", firing=True, value=0.3, bound=0.1, reason="amount moved")
    said = Estimate(name="average_precision", value=0.5, lower=0.4, upper=0.6, n_obs=9)
    made = dataclasses.replace(said, value=0.7)
    found = explained(finding, diagnosis, expected=[(said, made), (said, None)], rules=RULES)
    assert found.slice == "country = CH"
    assert found.reason == (
        f"amount moved; data drift in {profile.n:,} decisions, where country = CH, since 1970-01-04T00:00:00Z;"
        " estimated without labels: average precision 0.5 (0.4 to 0.6, 0.7 when it was made),"
        " average precision 0.5 (0.4 to 0.6)"
    )
    assert found.to_dict()["slice"] == "country = CH"
    quiet = dataclasses.replace(finding, firing=False)
    assert explained(quiet, diagnosis, rules=RULES) == quiet
    unnamed = dataclasses.replace(diagnosis, names=(), where="", since=None)
    assert "not explained by data or labels" in explained(finding, unnamed, rules=RULES).reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hourly_level", 0.0),
        ("hourly_min_n", 0),
        ("hourly_max_fallback_share", 1.0),
        ("baselines", ("yesterday",)),
    ],
)
def test_rules_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=field):
        dataclasses.replace(RULES, **{field: value})


@pytest.mark.parametrize(
    ("fallbacks", "n", "firing"), [(0, 100, False), (50, 100, False), (70, 100, True), (30, 30, True), (29, 29, None)]
)
def test_an_hour_that_a_fallback_answered_is_told_from_one_with_some(
    fallbacks: int, n: int, firing: bool | None
) -> None:
    hour = WindowCounts(
        model_version="all",
        start=0,
        end=HOUR,
        n=n,
        n_hours=1,
        digest="",
        counts=np.zeros(0, dtype=np.int64),
        actions={},
        routes={"fallback": fallbacks, "champion": n - fallbacks},
        feature_status={},
        n_probability=0,
        mean_probability=float("nan"),
        latency=LatencyHistogram(),
    )
    found = hourly_fallback_finding(hour, RULES)
    assert (None if found is None else found.firing) is firing
    if found is not None:
        assert (found.rule.name, found.version, found.bound) == ("fallback_1h", "all", 0.5)
        assert f"of {n} decisions were answered by a fallback" in found.reason
    assert hourly_fallback_finding(hour, dataclasses.replace(RULES, hourly_fallback=None)) is None
