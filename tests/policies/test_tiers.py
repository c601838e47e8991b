"""Oracle: the closed forms r / (q L) and (F - r) / (F + (1 - q) L), and brute force over the three actions."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.policies import Costs, TierPolicy


@given(st.floats(0, 1), st.floats(0, 5000), st.floats(0, 20))
def test_action_has_the_least_expected_cost(probability: float, amount: float, price: float) -> None:
    costs = Costs()
    policy = TierPolicy(costs=costs, review_price=price)
    [action] = policy.decide(np.array([probability]), np.array([amount]), ["u"]).actions
    by_hand = {
        "allow": probability * amount,
        "review": 3 + price + probability * 0.1 * amount,
        "block": (1 - probability) * 30,
    }
    assert by_hand[action] <= min(by_hand.values()) + 1e-9


def test_thresholds_of_the_research_note() -> None:
    assert TierPolicy().thresholds(300.0) == (0.0111, 0.45)


def test_capacity_is_kept() -> None:
    rng = np.random.default_rng(0)
    probability, amount = rng.beta(0.1, 5, 20_000), rng.gamma(2, 50, 20_000)
    policy = TierPolicy.fit(probability, amount, days=10, reviews_per_day=50)
    actions = np.array(policy.decide(probability, amount, ["x"] * 20_000).actions)
    assert 45 <= (actions == "review").sum() / 10 <= 50
    assert TierPolicy.fit(probability, amount, days=10, reviews_per_day=1e9).review_price == 0


def test_pass_through_is_logged_with_its_propensity_and_is_sticky() -> None:
    policy = TierPolicy(pass_through=0.1)
    units = [f"u{i}" for i in range(5000)]
    tiers = policy.decide(np.full(5000, 0.99), np.full(5000, 500.0), units)
    passed = np.array(tiers.actions) == "allow"
    assert 400 < passed.sum() < 600
    np.testing.assert_allclose(tiers.propensity[passed], 0.1)
    np.testing.assert_allclose(tiers.propensity[~passed], 0.9)
    assert tiers.actions == policy.decide(np.full(5000, 0.99), np.full(5000, 500.0), units).actions


def test_round_trip_and_version() -> None:
    policy = TierPolicy(review_price=1.5, pass_through=0.01)
    again = TierPolicy.from_dict(json.loads(json.dumps(policy.describe())))
    assert again == policy
    assert again.version == policy.version != TierPolicy().version


@pytest.mark.parametrize(
    ("probability", "amount", "units", "said"),
    [
        ([0.1, float("nan")], [1.0, 900.0], "ab", r"probability\[1\]: got nan"),
        ([0.1, 1.5], [1.0, 1.0], "ab", r"probability\[1\]"),
        ([-0.1, 0.5], [1.0, 1.0], "ab", r"probability\[0\]"),
        ([0.1, 0.5], [1.0, float("nan")], "ab", r"amount\[1\]: got nan"),
        ([0.1, 0.5], [-1.0, 1.0], "ab", r"amount\[0\]"),
        ([0.1, 0.5], [1.0], "ab", "one shape"),
        ([0.1], [1.0], "ab", "one shape"),
        (["high"], [1.0], "a", "array of numbers"),
    ],
)
def test_a_row_without_a_number_is_never_allowed(
    probability: list[float], amount: list[float], units: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        TierPolicy(pass_through=0.01).decide(np.array(probability), np.array(amount), list(units))


def test_no_rows_and_the_ends_of_the_range_are_decided() -> None:
    assert TierPolicy().decide(np.zeros(0), np.zeros(0), []).actions == []
    ends = TierPolicy().decide(np.array([0.0, 1.0, 0.0]), np.array([0.0, 500.0, 1e12]), ["a", "b", "c"])
    assert ends.actions == ["allow", "block", "allow"]


@pytest.mark.parametrize("costs", [{"review": 0}, {"false_block": -1}, {"reviewer_recall": 1.5}, {"review": "3"}])
def test_wrong_costs_are_named(costs: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(costs))):
        Costs(**costs)


@pytest.mark.parametrize(
    ("probability", "amount", "said"),
    [
        ([0.1, float("nan")], [1.0, 1.0], r"probability\[1\]"),
        ([0.1, 1.5], [1.0, 1.0], r"probability\[1\]"),
        ([0.1, 0.2], [float("inf"), 1.0], r"amount\[0\]"),
        ([0.1, 0.2], [1.0, -1.0], r"amount\[1\]"),
        ([0.1, 0.2], [1.0], "shape"),
        ([], [], "with rows"),
        (["a"], [1.0], "array of numbers"),
    ],
)
def test_a_period_that_cannot_be_priced_is_refused(probability: list[float], amount: list[float], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        TierPolicy.fit(np.array(probability), np.array(amount), days=1, reviews_per_day=1)


def test_a_capacity_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidInput, match="reviews_per_day"):
        TierPolicy.fit(np.array([0.1]), np.array([1.0]), days=1, reviews_per_day=float("nan"))
