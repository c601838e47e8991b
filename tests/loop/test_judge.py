"""The judge: errors over all looks, pairs, failures, and numbers against numpy."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok.errors import Conflict, InvalidInput
from vitok.loop import CANARY_FAILED, JudgeRules, PairedJudge, ReleaseVerdict
from vitok.loop.release_evidence import Look
from vitok.policies import Costs, TierPolicy

COSTS = Costs()
POLICY = TierPolicy(costs=COSTS)
LOOKS, DELAY = 60, 5


class World:
    """Transactions with a risk that two models see through noise; probabilities are Bayes', so calibrated."""

    def __init__(self, seed: int, *, n: int = 12_000, noise: tuple[float, float] = (1.0, 1.0)) -> None:
        rng = np.random.default_rng(seed)
        self.fraud = rng.random(n) < 0.01
        self.amount = rng.lognormal(3.5, 1.0, n)
        signal = 4.0 * self.fraud + rng.normal(size=n)
        self.incumbent, self.candidate = (self.probability(rng, signal, spread) for spread in noise)

    @staticmethod
    def probability(rng: np.random.Generator, signal: np.ndarray, spread: float) -> np.ndarray:
        seen, variance = signal + spread * rng.normal(size=len(signal)), 1 + spread**2
        return 1 / (1 + np.exp(-(np.log(0.01 / 0.99) + 4.0 * seen / variance - 8.0 / variance)))

    def frame(self, *, share: float = 0.1) -> pl.DataFrame:
        n = len(self.amount)
        ids = [f"r{row}" for row in range(n)]
        canary = np.arange(n) % 100 < 100 * share
        acting = np.where(canary, self.candidate, self.incumbent)
        return pl.DataFrame(
            {
                "request_id": ids,
                "amount": self.amount,
                "model_version": np.where(canary, "fraud/2", "fraud/1"),
                "probability": acting,
                "action": POLICY.decide(acting, self.amount, ids).actions,
                "shadow_version": np.where(canary, "fraud/1", "fraud/2"),
                "shadow_probability": np.where(canary, self.incumbent, self.candidate),
                "route_reason": [""] * n,
                "label": self.fraud.astype(float),
            }
        )


def judge(**changes: Any) -> PairedJudge:
    given: dict[str, Any] = {"candidate": "fraud/2", "incumbent": "fraud/1", "costs": COSTS}
    given |= {"candidate_policy": POLICY, "incumbent_policy": POLICY}
    return PairedJudge(**(given | changes))


def watched(frame: pl.DataFrame, **changes: Any) -> ReleaseVerdict:
    """Looks sixty times; labels come five looks after the decision."""
    judging = judge(**changes)
    size = len(frame) // LOOKS
    for look in range(LOOKS):
        judging.see(frame.slice(look * size, size))
        if look >= DELAY:
            judging.mature(frame.slice((look - DELAY) * size, size))
        verdict = judging.verdict(look)
        if verdict.state != "continue":
            break
    return verdict


def test_as_good_a_candidate_is_refused_at_most_one_time_in_twenty() -> None:
    # Both models are drawn from one law, so every refusal is an error; the level over all looks is 0.05.
    refused = sum(watched(World(seed).frame()).state == "refuse" for seed in range(25))
    assert refused <= 1


def test_a_candidate_at_the_tolerated_alert_rate_is_refused_at_most_one_time_in_twenty() -> None:
    # The hardest case of the immediate part: the rise is exactly what is tolerated, looked at sixty times.
    rng = np.random.default_rng(11)
    rules = JudgeRules(tuned_for=5_000)
    refused = 0
    for _ in range(200):
        judging = judge(rules=rules)
        incumbent = rng.random((LOOKS, 200)) < 0.03
        candidate = incumbent ^ (rng.random((LOOKS, 200)) < np.where(incumbent, 0.2, 0.026 / 0.97))
        for look in range(LOOKS):
            judging._alerts.add(candidate[look].astype(float), incumbent[look].astype(float))
            if judging.verdict(look).state == "refuse":
                refused += 1
                break
    assert refused <= 10


@pytest.mark.parametrize("broken", ["inverted", "constant"])
def test_a_broken_candidate_is_refused_within_a_few_hundred_decisions(broken: str) -> None:
    for seed in range(5):
        world = World(seed)
        world.candidate = 1 - world.candidate if broken == "inverted" else np.ones_like(world.candidate)
        verdict = watched(world.frame())
        assert verdict.state == "refuse"
        assert verdict.n_decisions <= 400
        assert "more of" in verdict.reason


def test_a_dearer_candidate_is_refused_by_its_outcomes() -> None:
    verdict = watched(World(1, n=60_000, noise=(0.3, 3.0)).frame())
    assert verdict.state == "refuse"
    assert verdict.reason.startswith("it is dearer")
    assert verdict.cost_difference.lower > 0


def test_a_better_candidate_is_accepted() -> None:
    for seed in range(5):
        verdict = watched(World(seed, n=30_000, noise=(3.0, 0.3)).frame())
        assert verdict.state == "accept"
        assert verdict.n_outcomes >= JudgeRules().min_outcomes
        assert verdict.cost_difference.value < 0


def test_an_equal_candidate_is_accepted_only_within_the_margin() -> None:
    world = World(3, n=30_000)
    world.candidate = world.incumbent
    assert watched(world.frame()).state == "accept"
    assert watched(world.frame(), rules=JudgeRules(cost_margin=0.0)).state == "continue"


def test_estimates_are_those_of_numpy() -> None:
    world = World(5, n=3_000)
    frame = world.frame(share=0.3)
    judging = judge()
    for part in frame.iter_slices(700):
        assert judging.see(part) == judging.mature(part) == len(part)
    verdict = judging.verdict(0)
    ids = frame["request_id"].to_list()
    acts = {
        name: np.array(POLICY.decide(chance, world.amount, ids).actions, dtype=object)
        for name, chance in (("new", world.candidate), ("old", world.incumbent))
    }
    cost = {name: COSTS.realised(done, world.amount, world.fraud) for name, done in acts.items()}
    difference = cost["new"] - cost["old"]
    assert verdict.cost_difference.value == pytest.approx(difference.mean())
    assert judging._cost.variance(1.0, -1.0) == pytest.approx(difference.var())
    assert judging._cost.variance(1.0, -1.05) == pytest.approx((cost["new"] - 1.05 * cost["old"]).var())
    assert verdict.incumbent_cost == pytest.approx(cost["old"].mean())
    stopped = (acts["new"] != "allow").mean() - (acts["old"] != "allow").mean()
    assert verdict.alert_rate_difference.value == pytest.approx(stopped)


def test_frames_may_overlap_and_other_versions_are_passed_over() -> None:
    frame = World(1, n=600).frame()
    judging = judge()
    assert judging.see(frame.slice(0, 400)) == 400
    assert judging.see(frame) == 200
    assert judging.see(pl.concat([frame, frame])) == 0
    others = frame.with_columns(request_id=pl.col("request_id") + "x", model_version=pl.lit("fraud/7"))
    assert judging.see(others) == 0
    alone = others.with_columns(
        model_version=pl.lit("fraud/1"),
        shadow_version=pl.lit(None, dtype=pl.String),
        shadow_probability=pl.lit(None, dtype=pl.Float64),
    )
    assert judging.see(alone) == 0
    unlabelled = frame.with_columns(label=pl.lit(None, dtype=pl.Float64))
    assert judging.mature(unlabelled) == 0
    assert judging.mature(frame.with_columns(label=pl.col("label") == 1)) == 600
    assert judging.mature(frame) == 0


def test_a_candidate_that_does_not_answer_is_refused() -> None:
    frame = World(2, n=1_200).frame(share=0.0).with_row_index("row")
    down = pl.col("row") % 2 == 0
    frame = frame.with_columns(
        shadow_version=pl.when(down).then(None).otherwise("shadow_version"),
        shadow_probability=pl.when(down).then(None).otherwise("shadow_probability"),
        route_reason=pl.when(down).then(pl.lit(CANARY_FAILED)).otherwise("route_reason"),
    )
    judging = judge()
    judging.see(frame)
    verdict = judging.verdict(0)
    assert verdict.state == "refuse"
    assert verdict.n_failures == 600
    assert "600 were not answered" in verdict.reason
    judging = judge()
    judging.see(World(2, n=300).frame(share=0.0).with_columns(shadow_probability=pl.lit(float("nan"))))
    assert judging.verdict(0).n_failures == 300


def test_an_incumbent_that_answers_in_the_place_of_the_candidate_is_its_failure() -> None:
    frame = (
        World(2, n=300)
        .frame(share=0.0)
        .with_columns(
            shadow_version=pl.lit(None, dtype=pl.String),
            shadow_probability=pl.lit(None, dtype=pl.Float64),
            route=pl.lit("fallback"),
        )
    )
    judging = judge()
    judging.see(frame)
    assert (judging.verdict(0).state, judging.verdict(0).n_failures) == ("refuse", 300)
    others = judge()
    assert others.see(frame.with_columns(route=pl.lit("champion"))) == 0


def test_where_the_incumbent_did_not_answer_there_is_no_pair() -> None:
    frame = World(2, n=300).frame(share=1.0).with_columns(shadow_probability=pl.lit(None, dtype=pl.Float64))
    judging = judge()
    assert judging.see(frame) == 0


def test_without_rows_and_with_one_the_judge_goes_on() -> None:
    frame = World(1, n=300).frame()
    judging = judge()
    assert judging.see(frame.head(0)) == judging.mature(frame.head(0)) == 0
    verdict = judging.verdict(5)
    assert verdict.state == "continue"
    assert "no decision was scored by both yet" in verdict.reason
    assert json.loads(json.dumps(verdict.to_dict(), allow_nan=False))["incumbent_cost"] is None
    assert judging.see(frame.head(1)) == judging.mature(frame.head(1)) == 1
    assert judging.verdict(6).state == "continue"


def test_a_verdict_is_final_and_prints_itself() -> None:
    world = World(1, n=900)
    good = world.frame()
    world.candidate = np.ones_like(world.candidate)
    judging = judge()
    judging.see(world.frame().head(300))
    verdict = judging.verdict(0)
    assert str(verdict).startswith("1970-01-01T00:00:00Z fraud/2 against fraud/1: refuse: it stops or fails 9")
    judging.see(good)
    assert judging.verdict(1) is verdict


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [("label", 2.0, "label: got 2.0"), ("label", float("nan"), "label: got nan"), ("amount", -1.0, "amount of r0")],
)
def test_values_that_break_a_rule_are_named(column: str, value: float, match: str) -> None:
    frame = World(1, n=10).frame().with_columns(pl.lit(value).alias(column))
    with pytest.raises(InvalidInput, match=match):
        judge().mature(frame)


@pytest.mark.parametrize("column", ["request_id", "shadow_probability", "amount"])
def test_a_missing_column_is_named(column: str) -> None:
    with pytest.raises(InvalidInput, match=column):
        judge().see(World(1, n=10).frame().drop(column))
    with pytest.raises(InvalidInput, match="'label'"):
        judge().mature(World(1, n=10).frame().drop("label"))


def test_rules_and_versions_are_checked() -> None:
    with pytest.raises(InvalidInput, match="another version"):
        judge(candidate="fraud/1")
    for changes in (
        {"max_alert_rate_increase": 1.0},
        {"cost_margin": -0.1},
        {"min_decisions": 0},
        {"min_positives": -1},
        {"confidence_level": 1.0},
        {"tuned_for": 0},
    ):
        with pytest.raises(InvalidInput):
            JudgeRules(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [(1.0, 1.0), (3.0, 0.3), (0.3, 3.0)])
def test_a_judge_that_is_kept_and_restored_at_every_look_is_the_same_to_the_last_bit(
    noise: tuple[float, float],
) -> None:
    frame = World(4, n=8_000, noise=noise).frame()
    once, again = judge(), judge()
    for look in range(16):
        fresh, old = frame.slice(look * 500, 600), frame.slice(max(look - DELAY, 0) * 500, 500)
        given = Look(decisions=fresh, labelled=old if look >= DELAY else None)
        first = once.take(given, now=look)
        kept = json.loads(json.dumps(again.to_state(), allow_nan=False))
        again = judge()
        again.restore(kept)
        assert again.take(given, now=look).to_dict() == first.to_dict()
        assert again.to_state() == once.to_state()
    assert again.verdict(99) == once.verdict(99)
    assert once.verdict(99).state in ("accept", "refuse", "continue")


def test_a_fresh_judge_without_numbers_can_be_kept_and_read() -> None:
    empty = judge()
    again = judge()
    again.restore(json.loads(json.dumps(empty.to_state(), allow_nan=False)))
    assert again.to_state() == empty.to_state()
    verdict = empty.take(Look(), now=3)
    read = ReleaseVerdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False)))
    assert read.to_dict() == verdict.to_dict()
    assert (read.alert_rate_difference.lower, read.cost_difference.upper) == (-np.inf, np.inf)


def test_a_state_of_another_judge_is_refused() -> None:
    state = judge().to_state()
    for changes in (
        {"candidate": "fraud/3"},
        {"costs": Costs(review=4)},
        {"rules": JudgeRules(min_positives=9)},
        {"candidate_policy": TierPolicy(costs=COSTS, review_price=1.0)},
    ):
        with pytest.raises(Conflict, match="the state is of a judge of"):
            judge(**changes).restore(state)
    for broken in ({}, state | {"alerts": {}}, state | {"seen": "no"}, state | {"seen": None}, state | {"final": {}}):
        with pytest.raises(InvalidInput):
            judge().restore(broken)
    with pytest.raises(InvalidInput, match="verdict"):
        ReleaseVerdict.from_dict({})
