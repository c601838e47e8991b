"""Conditions: what fires, what stays quiet, and what cannot be judged."""

import dataclasses
import json
import math

import numpy as np
import polars as pl
import pytest

from vitok.errors import InvalidInput
from vitok.monitoring import Performance, ReferenceProfile, WatchRules, performance
from vitok.monitoring.conditions import quality_findings
from vitok.policies import Costs
from vitok.stats import Estimate

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
