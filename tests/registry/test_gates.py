import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.registry import Check, Verdict, at_least, at_most, evaluate, not_worse
from vitok.stats.results import Estimate


def estimate(value: float, lower: float, upper: float) -> Estimate:
    return Estimate(name="x", value=value, lower=lower, upper=upper, n_obs=10, confidence_level=0.9)


@pytest.mark.parametrize(
    ("value", "passed"),
    [(0.5, True), (0.4999, False), (1, True), (math.nan, False), (math.inf, True), (-math.inf, False)],
)
def test_at_least_of_a_number(value: float, passed: bool) -> None:
    check = at_least("x", value, 0.5)
    assert check.passed is passed
    assert check.bound == 0.5
    assert check.value == (value if math.isfinite(value) else None)


def test_an_interval_has_to_be_on_the_right_side() -> None:
    assert at_least("x", estimate(0.6, 0.5, 0.7), 0.5).passed
    assert not at_least("x", estimate(0.6, 0.49, 0.7), 0.5).passed
    assert at_most("x", estimate(0.6, 0.5, 0.7), 0.7).passed
    few = at_most("x", estimate(0.6, 0.5, 0.71), 0.7)
    assert not few.passed
    assert few.reason == "0.6 (90 % interval 0.5 to 0.71): its upper end is above 0.7"
    undefined = estimate(math.nan, 0.0, 1.0)
    for check in (at_least("x", undefined, -1), at_most("x", undefined, 2)):
        assert not check.passed
        assert check.reason == "could not be computed"


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(1), True])
def test_numbers_of_numpy(number: float) -> None:
    assert at_least("x", number, 0.5).passed
    assert json.dumps(at_most("x", number, 2).to_dict())


def test_not_worse() -> None:
    common: dict[str, Any] = {"candidate": 0.6, "incumbent": 0.61}
    assert not_worse("ap", **common, difference=estimate(-0.01, -0.02, 0.0), margin=0.02).passed
    lost = not_worse("ap", **common, difference=estimate(-0.01, -0.03, 0.01), margin=0.02)
    assert not lost.passed
    assert lost.reason == (
        "0.6 against 0.61: difference -0.01 (90 % interval -0.03 to 0.01) does not exclude a loss above 0.02"
    )
    assert (lost.value, lost.bound) == (-0.01, -0.02)
    cost = not_worse("cost", **common, difference=estimate(-0.01, -0.03, 0.01), margin=0.02, better="lower")
    assert cost.passed
    assert cost.bound == 0.02
    assert not not_worse("ap", **common, difference=estimate(math.nan, -1, 1), margin=1).passed


def test_not_worse_with_bad_arguments() -> None:
    difference = estimate(0, -1, 1)
    with pytest.raises(InvalidInput, match="margin"):
        not_worse("ap", candidate=0, incumbent=0, difference=difference, margin=-0.1)
    with pytest.raises(InvalidInput, match="margin"):
        not_worse("ap", candidate=0, incumbent=0, difference=difference, margin=math.nan)
    with pytest.raises(InvalidInput, match="better"):
        not_worse("ap", candidate=0, incumbent=0, difference=difference, better="more")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="bound"):
        at_least("x", 1, math.nan)
    with pytest.raises(InvalidInput, match="x: got 'much'"):
        at_least("x", "much", 1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="x: got None"):
        at_most("x", None, 1)  # type: ignore[arg-type]


def test_nothing_is_accepted_without_evidence() -> None:
    verdict = evaluate([])
    assert not verdict.accepted
    assert "no check was made" in verdict.reason


def test_names_are_their_own() -> None:
    with pytest.raises(InvalidInput, match="name of its own"):
        evaluate([at_least("x", 1, 0), at_most("x", 1, 2)])


def test_the_verdict_says_why() -> None:
    good = Check(name="signature", passed=True, value=None, bound=None, reason="the inputs are the same")
    assert evaluate([good]).reason == "signature the inputs are the same"
    assert evaluate([good, at_least("x", 1, 0)]).reason == "all 2 checks passed"
    verdict = evaluate([good, at_least("x", 1, 2), at_most("y", 1, 0)])
    assert verdict.reason == "2 of 3 checks failed: x 1 is below 2; y 1 is above 0"
    assert [check.name for check in verdict.failed] == ["x", "y"]
    assert str(verdict).splitlines()[1] == "  passed signature: the inputs are the same"


@given(
    st.lists(
        st.builds(
            Check,
            name=st.text(min_size=1),
            passed=st.booleans(),
            value=st.none() | st.floats(),
            bound=st.none() | st.floats(),
            reason=st.text(),
        ),
        unique_by=lambda check: check.name,
        max_size=5,
    )
)
def test_verdicts_survive_json(checks: list[Check]) -> None:
    verdict = evaluate(checks)
    assert verdict.accepted == (bool(checks) and all(check.passed for check in checks))
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict(), allow_nan=False))) == verdict


def test_a_refusal_for_want_of_evidence_is_told_from_one_that_was_shown() -> None:
    straddles, below = estimate(0.6, 0.4, 0.8), estimate(0.3, 0.2, 0.4)
    assert at_least("x", straddles, 0.5).state == at_most("x", straddles, 0.5).state == "open"
    assert at_least("x", below, 0.5).state == at_most("x", straddles, 0.3).state == "FAILED"
    assert not_worse("x", candidate=1, incumbent=1, difference=estimate(0, -0.1, 0.1), margin=0.05).state == "open"
    assert at_least("x", 0.4, 0.5).state == at_least("x", math.nan, 0.5).state == "FAILED"
    assert evaluate([at_least("x", straddles, 0.5), at_least("y", 1, 0)]).undecided
    assert not evaluate([at_least("x", straddles, 0.5), at_least("y", below, 0.5)]).undecided
    assert not evaluate([]).undecided
    assert not evaluate([at_least("y", 1, 0)]).undecided


def test_a_verdict_as_a_table_has_a_line_a_check() -> None:
    verdict = evaluate(
        [at_least("x", estimate(0.6, 0.4, 0.8), 0.5), Check(name="y", passed=True, value=None, bound=None, reason="ok")]
    )
    lines = verdict.table().splitlines()
    assert lines[0].split() == ["check", "value", "bound", "state", "reason"]
    assert (lines[1].split()[:4], lines[2].split()) == (["x", "0.6", "0.5", "open"], ["y", "passed", "ok"])
    assert lines[-1].startswith("refused: 1 of 2 checks failed")
    assert evaluate([]).table().splitlines()[-1].startswith("refused: no check was made")


def test_a_verdict_of_an_older_ledger_is_read() -> None:
    document = {"accepted": False, "reason": "x", "checks": [at_least("x", 1, 2).to_dict()]}
    del document["checks"][0]["enough"]  # type: ignore[attr-defined, index]
    assert Verdict.from_dict(document).checks[0].enough


@pytest.mark.parametrize("document", [{}, {"accepted": True, "reason": "", "checks": [{}]}, {"accepted": True}])
def test_from_dict_of_something_else(document: dict[str, object]) -> None:
    with pytest.raises(InvalidInput, match="verdict"):
        Verdict.from_dict(document)
