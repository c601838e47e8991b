"""Evidence of blocks that passed at random. Oracle: without an honest one the bound is 0.05 to the power of 1/n."""

from pathlib import Path

import numpy as np
import pytest

from vitok import decisions, ids
from vitok.clock import DAY
from vitok.console.block_reading import blocks
from vitok.decision import Outcome

SCHEMA = decisions.LogSchema("fraud", ("customer_id",), (("amount", "float64"),), ())
A_DAY = 700


def decide(home: Path, *, days: int = 1, passed: int = 600, of: str = "fraud/2") -> None:
    """Days of 700 decisions, of which some passed although they were blocks."""
    at = np.arange(A_DAY)
    with decisions.DecisionLog(home / "log" / "decisions", SCHEMA, rows_per_segment=500) as log:
        for day in range(days):
            times = day * DAY + at
            log.append(
                decisions.DecisionBlock(
                    decision_id=[ids.uuid7() for _ in at],
                    request_id=[f"{of} {day} {row}" for row in at],
                    event_time=times,
                    ingest_time=times,
                    entities=[["c"] * A_DAY],
                    request=[np.ones(A_DAY)],
                    features=np.empty((A_DAY, 0)),
                    feature_status=["fresh"] * A_DAY,
                    model_version=[of] * A_DAY,
                    stage=["Production"] * A_DAY,
                    route=["champion"] * A_DAY,
                    route_reason=["-"] * A_DAY,
                    score=np.zeros(A_DAY),
                    probability=np.full(A_DAY, 0.5),
                    shadow_version=[None] * A_DAY,
                    shadow_probability=np.full(A_DAY, np.nan),
                    policy_version=["tiers"] * A_DAY,
                    # Then one block, and payments that were allowed for what they are.
                    action=["allow"] * passed + ["block"] + ["allow"] * (A_DAY - passed - 1),
                    propensity=np.where(at < passed, 0.01, np.where(at == passed, 0.99, 1.0)),
                    latency_us=np.ones(A_DAY, np.int64),
                    cost=np.zeros(A_DAY),
                )
            )


def answer(home: Path, values: dict[int, float], *, day: int = 0, of: str = "fraud/2", later: int = 0) -> None:
    with decisions.OutcomeLog(home / "log" / "outcomes") as log:
        log.append(
            [
                Outcome(
                    request_id=f"{of} {day} {row}",
                    kind="fraud",
                    value=value,
                    event_time=day * DAY,
                    ingest_time=day * DAY + 1 + later,
                    supersedes=later > 0,
                )
                for row, value in values.items()
            ]
        )


def test_clean_blocks_show_the_precision_that_they_prove(tmp_path: Path) -> None:
    decide(tmp_path)
    answer(tmp_path, dict.fromkeys(range(600), 1.0))
    found = blocks(tmp_path, "fraud/2")
    assert found is not None
    assert (found.n_passed, found.n_known, found.n_fraud) == (600, 600, 600)
    assert found.evidence.precision.lower == pytest.approx(0.05 ** (1 / 600))
    told = (
        "precision at least 99.5 % with 95 % confidence, from 600 frauds of 600 that passed at random; 99.5 % is shown"
    )
    assert str(found) == told
    # One was a mistake: it is no fraud any more.
    answer(tmp_path, {7: 0.0}, later=1)
    found = blocks(tmp_path, "fraud/2")
    assert found is not None
    assert not found.evidence.shown
    assert f"599 frauds of 600 that passed at random; {found.evidence.more_needed} more clean ones are" in str(found)


def test_a_bound_is_never_rounded_up(tmp_path: Path) -> None:
    decide(tmp_path, passed=597)
    answer(tmp_path, dict.fromkeys(range(A_DAY), 1.0))
    found = blocks(tmp_path, "fraud/2")
    assert found is not None
    assert 0.9949 < found.evidence.precision.lower < 0.995
    assert str(found).startswith("precision at least 99.49 % with")
    assert str(found).endswith("; 1 more clean one is needed for 99.5 %")


def test_each_version_has_evidence_of_its_own(tmp_path: Path) -> None:
    for name, passed, value in (("fraud/1", 560, 0.0), ("fraud/2", 570, 1.0)):
        decide(tmp_path, passed=passed, of=name)
        answer(tmp_path, dict.fromkeys(range(A_DAY), value), of=name)
    told = {name: blocks(tmp_path, name) for name in ("fraud/1", "fraud/2", "fraud/3")}
    assert [(one.n_known, one.n_fraud) for one in told.values() if one] == [(560, 0), (570, 570), (0, 0)]
    assert str(told["fraud/3"]) == "no block has passed at random, so nothing is known of their precision"


def test_days_that_have_few_labels_wait(tmp_path: Path) -> None:
    decide(tmp_path, days=3)
    # Frauds are known first: of the second day nothing else is.
    answer(tmp_path, dict.fromkeys(range(600), 1.0))
    answer(tmp_path, dict.fromkeys(range(100), 1.0), day=1)
    found = blocks(tmp_path, "fraud/2")
    assert found is not None
    assert (found.n_passed, found.n_known, found.n_fraud) == (1_800, 600, 600)
    assert str(found).endswith(
        "99.5 % is shown; of 1\N{NARROW NO-BREAK SPACE}200 more that passed not enough is known yet"
    )


def test_what_is_not_known_yet_is_said(tmp_path: Path) -> None:
    assert blocks(tmp_path, "fraud/2") is None
    decide(tmp_path, passed=3)
    wanted = "not enough is known yet of the 3 that passed at random; 598 clean ones would show 99.5 %"
    assert str(blocks(tmp_path, "fraud/2")) == wanted
    answer(tmp_path, {0: 1.0})
    assert str(blocks(tmp_path, "fraud/2")) == wanted
