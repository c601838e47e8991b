"""The judge of split traffic: errors over all looks, late costs, units, and what is not evidence."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import binom

from vitok.errors import Conflict, InvalidInput
from vitok.loop import CostRule, RateRule, TrafficJudge, TrafficVerdict
from vitok.loop.release_evidence import Look, Split

NAMES = {"candidate": "m/2", "incumbent": "m/1"}


def judge(**changes: Any) -> TrafficJudge:
    given: dict[str, Any] = NAMES | {"rates": {"failed": RateRule(margin=0.02)}}
    return TrafficJudge(**(given | changes))


def requests(rng: np.random.Generator, *, n: int = 600, share: float = 0.1, rates: tuple[float, float]) -> pl.DataFrame:
    candidate = rng.random(n) < share
    return pl.DataFrame(
        {
            "version": np.where(candidate, "m/2", "m/1"),
            "failed": rng.random(n) < np.where(candidate, rates[1], rates[0]),
        }
    )


def watched(seed: int, rates: tuple[float, float], *, outage: bool = False) -> TrafficVerdict:
    rng, judging = np.random.default_rng(seed), judge()
    for look in range(60):
        now = (0.5, 0.5) if outage and 20 <= look < 25 else rates
        judging.see(requests(rng, share=0.1 if look < 30 else 0.5, rates=now))
        if (verdict := judging.verdict(look)).state != "continue":
            break
    return verdict


def test_a_bad_candidate_is_refused_and_a_good_one_accepted() -> None:
    assert watched(0, (0.02, 0.08)).state == "refuse"
    good = watched(0, (0.02, 0.01))
    assert good.state == "accept"
    assert "no worse by a margin: failed" in good.reason


def test_an_equal_candidate_is_seldom_refused_also_when_both_fail_together() -> None:
    refused = sum(watched(seed, (0.02, 0.02), outage=seed % 2 == 0).state == "refuse" for seed in range(60))
    assert refused <= binom.ppf(0.998, 60, 0.05)


def test_the_difference_is_that_of_the_counts() -> None:
    frame = requests(np.random.default_rng(5), n=5_000, share=0.3, rates=(0.02, 0.04))
    judging = judge()
    for at in range(0, 5_000, 500):
        judging.see(frame[at : at + 500])
    found = judging.verdict(0)
    means = dict(frame.group_by("version").agg(pl.col("failed").mean()).rows())
    assert found.differences[0].value == pytest.approx(means["m/2"] - means["m/1"])
    assert found.n_candidate + found.n_incumbent == 5_000
    assert json.loads(json.dumps(found.to_dict()))["differences"][0]["name"] == "failed"
    assert "m/2 against m/1" in str(found)


def test_costs_come_later_and_are_weighted_by_the_share_of_their_look() -> None:
    # The first looks are dearer for everybody, and the candidate had few of them: pooled means would call it cheaper.
    rng, judging = np.random.default_rng(2), judge(rates={}, costs={"cost": CostRule(margin=0.5, tuned_for=20_000)})
    pooled: dict[str, list[float]] = {"m/1": [], "m/2": []}
    for look in range(40):
        share, level = (0.05, 5.0) if look < 20 else (0.5, 1.0)
        version = np.where(rng.random(1_000) < share, "m/2", "m/1")
        cost = rng.exponential(level + 0.3 * (version == "m/2"))
        judging.see(pl.DataFrame({"version": version, "cost": cost}), share=share)
        for name, kept in pooled.items():
            kept.extend(cost[version == name])
    assert np.mean(pooled["m/2"]) < np.mean(pooled["m/1"])
    found = judging.verdict(0).differences[0]
    assert found.lower < 0.3 < found.upper
    assert abs(found.value - 0.3) < 0.15


def test_an_outcome_that_is_not_known_counts_for_nobody_until_it_comes() -> None:
    judging = judge(rates={"failed": RateRule(margin=0.02), "fraud": RateRule(margin=0.02)})
    versions = ["m/1"] * 50 + ["m/2"] * 50
    judging.see(pl.DataFrame({"version": versions, "failed": [False] * 100, "fraud": pl.Series([None] * 100)}))
    assert judging.verdict(0).differences[1].n_obs == 0
    judging.see(pl.DataFrame({"version": versions, "fraud": [True] * 100}))
    first, second = judging.verdict(0).differences
    assert (first.n_obs, second.n_obs) == (100, 100)


def test_each_unit_counts_once() -> None:
    judging = judge(unit="user")
    frame = pl.DataFrame(
        {"version": ["m/1", "m/1", "m/2", "m/2"], "failed": [False, True, True, True], "user": ["a", "a", "b", "b"]}
    )
    judging.see(frame)
    judging.see(frame)
    assert judging.verdict(0).differences[0].n_obs == 2
    with pytest.raises(InvalidInput, match="user"):
        judging.see(frame.drop("user"))


def test_no_traffic_is_inconclusive_and_other_versions_are_passed_over() -> None:
    judging = judge()
    judging.see(pl.DataFrame({"version": ["m/1", "m/9"], "failed": [True, True]}))
    verdict = judging.verdict(7)
    assert (verdict.state, verdict.n_candidate, verdict.n_incumbent) == ("continue", 0, 1)
    assert "inconclusive" in verdict.reason
    assert "m/2" in verdict.reason


def test_a_verdict_stays() -> None:
    rng, judging = np.random.default_rng(0), judge()
    for _ in range(10):
        judging.see(requests(rng, rates=(0.01, 0.3)))
    first = judging.verdict(1)
    assert first.state == "refuse"
    for _ in range(50):
        judging.see(requests(rng, rates=(0.01, 0.0)))
    assert judging.verdict(2) is first


@pytest.mark.parametrize(
    ("frame", "share", "said"),
    [
        ({"failed": [True]}, None, "version"),
        ({"version": ["m/1"]}, None, "column of a rule"),
        ({"version": ["m/1"], "failed": [1]}, None, "boolean"),
        ({"version": ["m/1"], "cost": ["a"]}, 0.5, "number"),
        ({"version": ["m/1"], "cost": [1.0]}, None, "share"),
        ({"version": ["m/1"], "cost": [float("inf")]}, 0.5, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(frame: dict[str, list[Any]], share: float | None, said: str) -> None:
    judging = judge(costs={"cost": CostRule(margin=0.1)})
    with pytest.raises(InvalidInput, match=said):
        judging.see(pl.DataFrame(frame), share=share)


def test_rules_are_checked() -> None:
    for given, said in (
        ({"rates": {}}, "at least one rule"),
        ({"candidate": "m/1"}, "another version"),
        ({"confidence_level": 0.5}, "confidence_level"),
        ({"costs": {"failed": CostRule(margin=1.0)}}, "other names"),
    ):
        with pytest.raises(InvalidInput, match=said):
            judge(**given)
    with pytest.raises(InvalidInput, match="tolerated"):
        RateRule(tolerated=-0.1)
    with pytest.raises(InvalidInput, match="margin"):
        RateRule(tolerated=0.02, margin=0.02)
    with pytest.raises(InvalidInput, match="margin"):
        CostRule(margin=0.0)
    with pytest.raises(InvalidInput, match="tuned_for"):
        CostRule(margin=1.0, tuned_for=0)


def test_a_look_that_is_refused_counts_nowhere_and_can_be_given_again() -> None:
    rules: dict[str, Any] = {"rates": {"failed": RateRule(margin=0.02)}, "costs": {"cost": CostRule(margin=1.0)}}
    judging, once = judge(**rules, unit="user"), judge(**rules, unit="user")
    frame = pl.DataFrame(
        {
            "version": ["m/1", "m/2"] * 300,
            "failed": [False, True, False] * 200,
            "cost": [1.0, 2.0] * 300,
            "user": range(600),
        }
    )
    with pytest.raises(InvalidInput, match="share"):
        judging.see(frame)
    with pytest.raises(InvalidInput, match="cost"):
        judging.see(frame.with_columns(cost=pl.lit(float("nan"))), share=0.5)
    assert judging.verdict(0).n_candidate == 0
    for each in (judging, once):
        each.see(frame, share=0.5)
    assert judging.verdict(0).to_dict() == once.verdict(0).to_dict()
    assert judging.verdict(0).differences[1].n_obs == 600


@pytest.mark.parametrize("rate", [0.02, 0.08, 0.005])
def test_a_judge_that_is_kept_and_restored_at_every_look_is_the_same_to_the_last_bit(rate: float) -> None:
    rules: dict[str, Any] = {"costs": {"cost": CostRule(margin=0.5)}, "unit": "user"}
    rng, once, again = np.random.default_rng(8), judge(**rules), judge(**rules)
    for look in range(40):
        share = 0.1 if look < 20 else 0.4
        frame = requests(rng, share=share, rates=(0.02, rate)).with_columns(
            cost=pl.Series(rng.exponential(1.0, 600)), user=pl.Series(rng.integers(0, 5_000, 600))
        )
        given = Look(splits=(Split(frame, share),))
        first = once.take(given, now=look)
        kept = json.loads(json.dumps(again.to_state(), allow_nan=False))
        again = judge(**rules)
        again.restore(kept)
        assert again.take(given, now=look).to_dict() == first.to_dict()
        assert again.to_state() == once.to_state()
    assert again.verdict(99) == once.verdict(99)


def test_a_state_of_another_judge_is_refused() -> None:
    state = judge().to_state()
    for changes in (
        {"candidate": "m/3"},
        {"unit": "user"},
        {"confidence_level": 0.9},
        {"rates": {"failed": RateRule()}},
    ):
        with pytest.raises(Conflict, match="the state is of a judge of"):
            judge(**changes).restore(state)
    for broken in ({}, state | {"compared": {}}, state | {"units": {"failed": "no"}}, state | {"final": {}}):
        with pytest.raises(InvalidInput):
            judge().restore(broken)
    with pytest.raises(InvalidInput, match="verdict"):
        TrafficVerdict.from_dict({})


def test_two_units_that_look_alike_are_two() -> None:
    judging = judge(unit="user")
    for users in (pl.Series([7, 8]), pl.Series(["7", "8"])):
        judging.see(pl.DataFrame({"version": ["m/1", "m/2"], "failed": [False, False]}).with_columns(user=users))
    assert judging.verdict(0).differences[0].n_obs == 4
