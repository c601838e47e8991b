"""Budgets that hold over any stretch of time, quantiles of the recent, and timeouts that add up."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.serving.retries import Budget, Hedge, RecentQuantile, allowance


@given(st.lists(st.booleans(), max_size=500), st.sampled_from([0.0, 0.05, 0.1, 0.3, 1.0]), st.integers(1, 12))
def test_a_budget_is_never_overspent(steps: list[bool], share: float, reserve: int) -> None:
    budget = Budget(share, reserve=reserve)
    # At each step: when it was, how many requests and how many extra calls there had been.
    history = [(0, 0)]
    for is_request in steps:
        if is_request:
            budget.deposit()
        else:
            budget.take()
        history.append((budget.requests, budget.taken))
    for k in range(0, len(history), 7):
        for requests, taken in history[k:]:
            assert taken - history[k][1] <= reserve + share * (requests - history[k][0]) + 1e-9


def test_in_the_long_run_it_is_the_share() -> None:
    budget = Budget(0.1, reserve=1)
    for _ in range(10_000):
        budget.deposit()
        budget.take()
    assert budget.taken == 1000
    assert str(budget) == "1,000 extra calls for 10,000 requests, 9,000 refused; 10 % allowed"


def test_a_share_of_nothing_allows_nothing() -> None:
    budget = Budget(0.0)
    budget.deposit()
    assert not budget.take()


@given(st.lists(st.integers(1, 10**6), min_size=10, max_size=300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_quantile_of_the_recent(values: list[int], q: float) -> None:
    recent = RecentQuantile(q, keep=50, least=1)
    for n, value in enumerate(values, 1):
        recent.add(value)
        known = sorted(values[max(0, n - 50) : n])
        # Oracle: numpy's inverse of the empirical distribution.
        assert recent.value == float(np.quantile(known, q, method="inverted_cdf"))


def test_no_quantile_of_too_few() -> None:
    recent = RecentQuantile(0.5, least=3)
    recent.add(1)
    recent.add(1)
    assert math.isnan(recent.value)


def test_a_hedge_waits_until_it_knows() -> None:
    hedge = Hedge(quantile=0.9, share=0.5, reserve=1, least=10)
    for k in range(9):
        hedge.observe(k)
        assert hedge.delay is None
    hedge.observe(9)
    assert hedge.delay == 8
    assert [hedge.allow(), hedge.allow()] == [True, False]


@given(
    st.integers(0, 10**9),
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.integers(0, 10**7),
)
def test_timeouts_add_up(length: int, used: list[float], margin: int) -> None:
    deadline, now = length, 0
    for k, share in enumerate(used):
        got = allowance(deadline, now, after=len(used) - 1 - k, margin=margin)
        assert got >= 0
        now += int(share * got)
    assert now <= max(0, deadline - margin)


def test_all_that_is_left_goes_to_the_last_up_to_a_cap() -> None:
    assert allowance(100, 60, margin=10) == 30
    assert allowance(100, 60, margin=10, cap=7) == 7


def test_wrong_arguments() -> None:
    for share in (-0.1, 10, math.nan):
        with pytest.raises(InvalidInput, match="share"):
            Budget(share)
    with pytest.raises(InvalidInput, match="reserve"):
        Budget(reserve=0)
    with pytest.raises(InvalidInput, match="q: "):
        RecentQuantile(95)
    with pytest.raises(InvalidInput, match="least"):
        RecentQuantile(0.5, keep=10, least=11)
