"""Rows that no judge can read are put aside. Oracle: the same judge on the same rows without them."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.loop.release_house import Traffic, furnish, plan_of

from vitok.errors import InvalidInput
from vitok.loop import CostRule, Look, PairedJudge, Split, TrafficJudge
from vitok.loop.release_looks import taken
from vitok.policies import Costs, TierPolicy

POLICY = TierPolicy(costs=Costs())
BAD = (3, 40, 41, 499)


def judge() -> PairedJudge:
    return PairedJudge(
        candidate="fraud/2", incumbent="fraud/1", candidate_policy=POLICY, incumbent_policy=POLICY, costs=Costs()
    )


def decided(n: int = 500) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    probability = rng.random(n) ** 4
    return pl.DataFrame(
        {
            "request_id": [f"t{row}" for row in range(n)],
            "amount": [50.0] * n,
            "model_version": ["fraud/1"] * n,
            "probability": probability,
            "action": POLICY.decide(probability, np.full(n, 50.0), [""] * n).actions,
            "shadow_version": ["fraud/2"] * n,
            "shadow_probability": probability,
            "label": (rng.random(n) < 0.05).astype(float),
        }
    )


def broken(rows: pl.DataFrame, column: str, value: float) -> pl.DataFrame:
    at = pl.Series(np.isin(np.arange(len(rows)), BAD))
    return rows.with_columns(pl.when(at).then(value).otherwise(pl.col(column)).alias(column))


@pytest.mark.parametrize(("column", "value"), [("amount", float("inf")), ("amount", -1.0), ("label", 2.0)])
def test_rows_that_a_judge_refuses_are_put_aside_and_the_rest_counts(column: str, value: float) -> None:
    rows = broken(decided(), column, value)
    tried, oracle = judge(), judge()
    look = Look(labelled=rows) if column == "label" else Look(decisions=rows, labelled=rows)
    said, aside = taken(tried, look, now=5)
    good = rows.filter(~pl.Series(np.isin(np.arange(len(rows)), BAD)))
    expected = oracle.take(Look(labelled=good) if column == "label" else Look(decisions=good, labelled=good), now=5)
    assert len(aside) == len(BAD) * (1 if column == "label" else 2)
    assert column in aside[0]
    assert said.to_dict()["n_outcomes"] == expected.n_outcomes == 500 - len(BAD)
    assert said.to_dict()["cost_difference"]["value"] == pytest.approx(expected.cost_difference.value, abs=1e-12)


def test_what_is_wrong_with_all_rows_is_no_fault_of_a_row() -> None:
    with pytest.raises(InvalidInput, match="amount"):
        taken(judge(), Look(decisions=decided().drop("amount")), now=5)
    with pytest.raises(InvalidInput, match="amount"):
        taken(judge(), Look(decisions=decided(4_000).with_columns(amount=pl.lit(-1.0))), now=5)


def test_split_traffic_counts_once_though_a_part_was_refused() -> None:
    n = 400
    version = np.where(np.arange(n) % 2 == 0, "m/1", "m/2")
    cost = pl.Series(np.ones(n))
    tried = TrafficJudge(candidate="m/2", incumbent="m/1", costs={"cost": CostRule(margin=1e-9)})
    good = Split(pl.DataFrame({"version": version, "cost": cost}), 0.5)
    bad = Split(
        pl.DataFrame({"version": version, "cost": cost}).with_columns(
            cost=pl.when(pl.int_range(n) == 7).then(float("nan")).otherwise(pl.col("cost"))
        ),
        0.5,
    )
    said, aside = taken(tried, Look(splits=(good, bad)), now=5)
    assert len(aside) == 1
    assert said.to_dict()["n_candidate"] + said.to_dict()["n_incumbent"] == 2 * n - 1


def test_a_release_says_once_that_rows_were_put_aside(tmp_path: Path) -> None:
    class Given(Traffic):
        def look(self, release: Any, *, now: int) -> Look:
            rows = broken(decided(), "amount", float("nan")).with_columns(
                request_id=pl.format("{}-{}", pl.lit(now), pl.col("request_id"))
            )
            return Look(decisions=rows, position=now)

    def pairs(**versions: Any) -> PairedJudge:
        versions.pop("confidence_level")
        return PairedJudge(candidate_policy=POLICY, incumbent_policy=POLICY, costs=Costs(), **versions)

    house = furnish(tmp_path, plan_of(canary=pairs, probation=pairs, shadow=pairs), Given())
    for now in (100, 101, 102, 103):
        release = house.tick(now)
    told = [event for event in release.events if event.kind == "aside"]
    assert [event.who for event in told] == ["shadow"]
    assert "4 here: amount of 101-t3" in told[0].text
    assert release.verdicts["shadow"]["n_decisions"] == 3 * (500 - len(BAD))
    house.close()
