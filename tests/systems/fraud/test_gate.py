"""What the gate asks of a version, on rows made for it: what each question refuses, and what it lets through."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from vitok import stats
from vitok.clock import DAY
from vitok.systems.fraud.gate import Evidence, Incumbent, data_checks, judge
from vitok.systems.fraud.training import Sample

N = 20_000


def sample(seed: int = 0, n: int = N) -> tuple[Sample, np.ndarray]:
    """Rows of four days, and the probability of fraud that they were drawn with."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(n) < 0.02, 0.7, 0.005)
    rows = Sample(
        values=np.zeros((n, 1)),
        is_fraud=(rng.random(n) < truth).astype(float),
        event_time=np.sort(rng.integers(0, 4 * DAY, n)),
        customer=np.arange(n),
        amount=rng.uniform(1, 200, n),
    )
    return rows, truth


def evidence(**changes: Any) -> Evidence:
    """A version that knows the truth, and an incumbent that mixes it with chance."""
    train, _ = sample(1)
    held_out, truth = sample(2)
    known = Incumbent(name="fraud/1", probability=0.7 * truth + 0.3 * 0.02, cost=np.full(N, 2.0))
    given: dict[str, Any] = {
        "train": train,
        "held_out": held_out,
        "probability": truth,
        "cost": np.full(N, 1.0),
        "rules_cost": np.full(N, 3.0),
        "slices": {
            "amount_band": np.where(held_out.amount < 100, "under 100", "100 and more"),
            "time_of_day": np.where(np.arange(N) % 100 < 3, "night", "day"),
        },
        "latency_us": np.full(1_000, 5.0),
        "incumbent": known,
    } | changes
    found = stats.average_precision(given["held_out"].is_fraud, given["probability"])
    return Evidence(average_precision=found, **given)


def refused(given: Evidence) -> list[str]:
    return [check.name for check in judge(given).failed]


def test_a_good_version_passes_and_its_verdict_says_on_what_grounds() -> None:
    verdict = judge(evidence())
    assert verdict.accepted, verdict.table()
    assert [check.name for check in verdict.checks] == [
        "data: rows",
        "data: rejected rows",
        "data: frauds",
        "average precision",
        "Brier against fraud/1",
        "Brier against fraud/1 of amount_band 100 and more",
        "Brier against fraud/1 of amount_band under 100",
        "Brier against fraud/1 of time_of_day day",
        "Brier against fraud/1 of time_of_day night",
        "calibration",
        "calibration in the large",
        "cost against rules",
        "cost against fraud/1",
        "latency of a row",
    ]


def test_a_slice_with_few_frauds_says_so_and_refuses_nothing() -> None:
    given = evidence()
    night = given.slices["time_of_day"] == "night"
    assert 0 < given.held_out.is_fraud[night].sum() < 20
    worse = np.where(night, 0.9, given.probability)
    [check] = [check for check in judge(evidence(probability=worse)).checks if "night" in check.name]
    assert check.passed
    assert "too few to tell" in check.reason


def test_the_first_version_is_held_against_the_base_rate() -> None:
    verdict = judge(evidence(incumbent=None))
    assert verdict.accepted, verdict.table()
    names = [check.name for check in verdict.checks]
    assert "Brier against the base rate" in names
    assert "cost against rules" in names
    assert not any("fraud/1" in name for name in names)


def test_rows_that_break_the_contract_are_refused() -> None:
    train, _ = sample(1)
    few = train.where(np.arange(N) < 300)
    assert [check.state for check in data_checks(few)] == ["open", "passed", "FAILED"]
    negative = dataclasses.replace(train, amount=np.where(np.arange(N) < 300, -1.0, train.amount))
    assert refused(evidence(train=negative)) == ["data: rejected rows"]
    unknown = dataclasses.replace(train, is_fraud=np.where(np.arange(N) < 300, np.nan, train.is_fraud))
    assert [check.state for check in data_checks(unknown)] == ["passed", "FAILED", "passed"]


def test_labels_that_were_turned_round_are_refused_though_all_else_looks_well() -> None:
    given = evidence()
    turned = {
        name: dataclasses.replace(part, is_fraud=1 - part.is_fraud)
        for name, part in (("train", given.train), ("held_out", given.held_out))
    }
    verdict = judge(evidence(**turned, probability=1 - given.probability, incumbent=None))
    assert [check.name for check in verdict.failed] == ["data: contract", "average precision"]
    assert "be less than 50 percent with is_fraud = 1" in verdict.failed[0].reason


def test_a_version_no_better_than_chance_is_refused() -> None:
    names = refused(evidence(probability=np.full(N, 0.02), incumbent=None))
    assert "average precision" in names
    assert "cost against rules" not in names


def test_a_version_worse_in_one_slice_is_refused_for_it() -> None:
    given = evidence()
    high = given.held_out.amount >= 100
    # Better by far below, and blind above.
    better = np.where(given.held_out.is_fraud == 1, 0.9, 0.001)
    names = refused(evidence(probability=np.where(high, 0.019, better)))
    assert names == ["Brier against fraud/1 of amount_band 100 and more"]


@pytest.mark.parametrize(("share", "state"), [(0.7, "passed"), (0.0, "FAILED")])
def test_over_all_rows_the_value_decides_where_the_interval_does_not(share: float, state: str) -> None:
    _, truth = sample(2)
    given = evidence()
    assert given.incumbent is not None
    better = dataclasses.replace(given.incumbent, probability=truth)
    verdict = judge(evidence(probability=share * truth + (1 - share) * 0.02, incumbent=better))
    [check] = [check for check in verdict.checks if check.name == "Brier against fraud/1"]
    assert check.state == state
    # Oracle: the definition.
    y, at = given.held_out.is_fraud, share * truth + (1 - share) * 0.02
    assert check.passed is bool(np.mean((at - y) ** 2) <= 1.1 * np.mean((truth - y) ** 2))


def test_a_cost_that_a_few_rows_leave_open_is_decided_by_its_value() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = rng.exponential(2.0, (2, N))
    theirs += ours.mean() - theirs.mean()
    for dearer, accepted in ((0.04, True), (0.06, False)):
        given = evidence()
        assert given.incumbent is not None
        mean = theirs.mean() * (1 + dearer)
        cost = ours + mean - ours.mean()
        known = dataclasses.replace(given.incumbent, cost=theirs)
        verdict = judge(evidence(cost=cost, rules_cost=np.full(N, 9.0), incumbent=known))
        [check] = [check for check in verdict.checks if check.name == "cost against fraud/1"]
        assert check.passed is accepted
        assert "its value decides" in check.reason


def test_a_version_that_is_not_calibrated_is_refused() -> None:
    given = evidence()
    names = refused(evidence(probability=np.minimum(given.probability + 0.2, 1.0), incumbent=None))
    assert "calibration" in names


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_probabilities_that_are_off_by_a_factor_are_refused_though_few_points_off(factor: float) -> None:
    given = evidence()
    names = refused(evidence(probability=np.minimum(factor * given.probability, 1.0), incumbent=None))
    assert "calibration in the large" in names
    assert "calibration" not in names


def test_too_few_frauds_to_judge_the_calibration_leave_it_open() -> None:
    given = evidence()
    few = np.cumsum(given.held_out.is_fraud) <= 6
    verdict = judge(
        evidence(
            held_out=given.held_out.where(few),
            probability=given.probability[few],
            cost=given.cost[few],
            rules_cost=given.rules_cost[few],
            slices={name: values[few] for name, values in given.slices.items()},
            incumbent=given.incumbent.where(few) if given.incumbent else None,
        )
    )
    assert [check.state for check in verdict.checks if check.name == "calibration"] == ["open"]
    assert not verdict.accepted


@pytest.mark.parametrize(("change", "name"), [("rules_cost", "rules"), ("incumbent", "fraud/1")])
def test_a_dearer_version_is_refused(change: str, name: str) -> None:
    given = evidence()
    assert given.incumbent is not None
    cheaper = np.full(N, 0.9)
    changes = {"incumbent": dataclasses.replace(given.incumbent, cost=cheaper), "rules_cost": cheaper}
    assert refused(evidence(**{change: changes[change]})) == [f"cost against {name}"]


def test_a_slow_version_is_refused() -> None:
    slow = np.full(1_000, 5.0)
    slow[:40] = 20_000
    assert refused(evidence(latency_us=slow)) == ["latency of a row"]
    slow[4:] = 5.0
    assert refused(evidence(latency_us=slow)) == []


def test_after_a_change_only_later_days_are_compared_with_the_incumbent() -> None:
    given = evidence()
    assert given.incumbent is not None
    old = given.held_out.event_time < 2 * DAY
    # Of the old world the incumbent knew all; of the new one it says that each fraud is none.
    truth = given.held_out.is_fraud
    said = np.where(old, truth, np.where(truth == 1, 0.0, given.probability))
    paid = np.where(old, 0.0, 1.5)
    known = Incumbent(name="fraud/1", probability=said, cost=paid)
    assert refused(evidence(incumbent=known)) != []
    assert refused(evidence(incumbent=known, changed=2 * DAY)) == []
    verdict = judge(evidence(incumbent=known, changed=4 * DAY))
    assert [check.state for check in verdict.failed] == ["open", "open"]
