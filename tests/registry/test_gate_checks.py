"""The checks of a gate: oracles are scipy's intervals, simulation of the error, and what each must refuse."""

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.stats import binom

from vitok.contracts.report import CheckReport, RuleResult
from vitok.errors import InvalidInput
from vitok.monitoring.drift import ColumnDrift
from vitok.monitoring.quality import QualityFinding
from vitok.monitoring.skew import skew
from vitok.registry import Verdict, evaluate
from vitok.registry.gate_checks import (
    all_of,
    calibrated,
    calibrated_in_the_large,
    close_to_traffic,
    contract_kept,
    data_in_order,
    fast_enough,
    no_dearer,
    no_skew,
    no_worse_by_slice,
)
from vitok.stats import wilson


def rule(**changes: Any) -> SimpleNamespace:
    given = {"field": "amount", "label": "amount.minimum", "status": "failed", "severity": "block", "n_failed": 3}
    return SimpleNamespace(**(given | changes))


def report(n: int = 1_000, rejected: int = 0, *results: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(n_rows=n, n_rejected=rejected, results=results)


def test_a_contract_is_kept_or_not() -> None:
    assert evaluate(contract_kept(report())).accepted
    assert not evaluate(contract_kept(report(1_000, 11))).accepted
    assert evaluate(contract_kept(report(1_000, 10))).accepted
    empty = evaluate(contract_kept(report(0)))
    assert not empty.accepted
    assert not empty.undecided
    few = evaluate(contract_kept(report(500), least=1_000))
    assert few.undecided
    for broken in (rule(), rule(field="", severity="quarantine", label="rowCount")):
        assert [check.name for check in evaluate(contract_kept(report(9, 0, broken))).failed] == [
            f"data: {broken.label}"
        ]
    for fine in (rule(severity="warn"), rule(severity="quarantine"), rule(status="skipped")):
        assert evaluate(contract_kept(report(9, 0, fine))).accepted
    for changes in ({"max_rejected": 1.0}, {"least": 0}):
        with pytest.raises(InvalidInput):
            contract_kept(report(), **changes)  # type: ignore[arg-type]


def test_the_reports_of_the_other_rooms_fit() -> None:
    for name in ("n_rows", "n_rejected", "results"):
        assert name in CheckReport.__dataclass_fields__
    for name in ("field", "status", "severity", "n_failed"):
        assert name in RuleResult.__dataclass_fields__
    assert hasattr(RuleResult, "label")
    found = skew(["a", "b"], {"amount": [1.0, 2.0]}, {"amount": [1.0, 2.5]})
    assert no_skew(found.columns, least=1).state == "FAILED"
    for kind, names in (
        (ColumnDrift, ("name", "effect", "adjusted_p_value")),
        (QualityFinding, ("kind", "value", "reason")),
    ):
        assert all(name in kind.__dataclass_fields__ for name in names)


def test_findings_of_the_data_refuse_unless_their_kind_is_tolerated() -> None:
    found = [SimpleNamespace(kind="unit_change", value=1.0, reason="amount is in cents")]
    assert data_in_order(found).reason == "amount is in cents"
    assert not data_in_order(found).passed
    assert data_in_order(found, tolerated=["unit_change"]).passed


def test_a_column_counts_only_where_it_is_far_and_no_chance() -> None:
    def moved(effect: float, p: float) -> SimpleNamespace:
        return SimpleNamespace(name="x", effect=effect, adjusted_p_value=p)

    assert close_to_traffic([moved(0.5, 0.2), moved(0.1, 1e-9)]).passed
    assert not close_to_traffic([moved(0.3, 1e-3)]).passed
    assert not close_to_traffic([]).passed
    with pytest.raises(InvalidInput):
        close_to_traffic([], max_effect=0)


def test_slices_share_the_error_and_find_the_one_that_is_worse() -> None:
    rng = np.random.default_rng(3)
    slices = np.repeat([f"s{number}" for number in range(20)], 300)
    refused = 0
    for _ in range(60):
        old, new = rng.exponential(1.0, (2, len(slices)))
        checks = no_worse_by_slice("cost", candidate=new + 0.3, incumbent=old, slices=slices, margin=0.3)
        # Exactly at the margin everywhere: a check that passes is an error, and at most one in twenty runs has one.
        refused += any(check.passed for check in checks)
    assert refused <= binom.ppf(0.999, 60, 0.05)
    worse = np.where(slices == "s7", 1.0, -0.1)
    checks = no_worse_by_slice("cost", candidate=old + worse, incumbent=old, slices=slices, margin=0.2)
    assert [check.name for check in checks if not check.passed] == ["cost of s7"]
    level = 1 - 0.05 / 21
    low, high = scipy_stats.t.interval(
        level, 299, *[(np.asarray(new - old)[:300]).mean(), scipy_stats.sem((new - old)[:300])]
    )
    first = no_worse_by_slice("cost", candidate=new, incumbent=old, slices=slices, margin=0.2)[1]
    assert f"{low:.4g} to {high:.4g}" in first.reason


@pytest.mark.parametrize(
    ("few", "state", "accepted"), [("wait", "open", False), ("pass", "passed", True), ("refuse", "FAILED", False)]
)
def test_a_small_slice_follows_its_rule(few: Any, state: str, accepted: bool) -> None:
    old = np.random.default_rng(0).random(1_000)
    slices = ["FR"] * 990 + ["MT"] * 10
    checks = no_worse_by_slice("loss", candidate=old - 0.5, incumbent=old, slices=slices, margin=0, few=few)
    assert checks[-1].state == state
    verdict = evaluate(checks)
    assert verdict.accepted is accepted
    assert verdict.undecided is (few == "wait")
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_slices_of_several_columns_share_one_error() -> None:
    rng = np.random.default_rng(8)
    old = rng.exponential(1.0, 2_000)
    new = old * rng.uniform(0.9, 1.05, 2_000)
    slices = {"country": ["FR", "IT"] * 1_000, "hour": ["day"] * 1_500 + ["night"] * 500}
    checks = no_worse_by_slice("loss", candidate=new, incumbent=old, slices=slices, margin=0.05, relative=True)
    assert [check.name for check in checks[1:]] == [
        "loss of country FR",
        "loss of country IT",
        "loss of hour day",
        "loss of hour night",
    ]
    night = (new - old)[1_500:]
    low, high = scipy_stats.t.interval(1 - 0.05 / 5, 499, night.mean(), scipy_stats.sem(night))
    assert f"{low:.4g} to {high:.4g}" in checks[-1].reason
    # A margin that is a share is one of the slice's own loss.
    assert checks[-1].bound == pytest.approx(0.05 * old[1_500:].mean())


def test_a_slice_with_few_of_the_rare_class_is_not_judged() -> None:
    old = np.full(1_000, 0.1)
    slices = np.repeat(["a", "b"], 500)
    positive = np.r_[np.arange(500) < 30, np.arange(500) < 3]
    worse = old + np.where(slices == "b", 0.2, -0.2)
    given: dict[str, Any] = {"candidate": worse, "incumbent": old, "slices": slices, "margin": 0.01, "few": "pass"}
    checks = no_worse_by_slice("loss", positive=positive, **given)
    assert checks[-1].passed
    assert checks[-1].reason == "3 positive labels, fewer than 20: too few to tell, passed by rule"
    assert no_worse_by_slice("loss", positive=positive, least_positives=3, **given)[-1].state == "FAILED"


@pytest.mark.parametrize(("rise", "state"), [(0.04, "passed"), (0.06, "FAILED")])
def test_of_all_rows_together_the_value_may_decide_where_the_interval_does_not(rise: float, state: str) -> None:
    rng = np.random.default_rng(5)
    old, noise = rng.random(400), rng.normal(0, 0.5, 400)
    given: dict[str, Any] = {
        "candidate": old + noise - noise.mean() + rise,
        "incumbent": old,
        "slices": ["a"] * 400,
        "margin": 0.05,
    }
    whole, part = no_worse_by_slice("loss", **given)
    assert (whole.state, part.state) == ("open", "open")
    whole, part = no_worse_by_slice("loss", whole="value", **given)
    assert (whole.state, part.state) == (state, "open")


@pytest.mark.parametrize(("unclear", "state"), [("wait", "open"), ("pass", "passed"), ("refuse", "FAILED")])
def test_a_slice_that_shows_neither_follows_its_rule(unclear: Any, state: str) -> None:
    rng = np.random.default_rng(9)
    old = rng.exponential(1.0, 1_000)
    new = old - np.r_[np.full(700, 0.5), rng.normal(0, 2.0, 300)]
    given: dict[str, Any] = {"incumbent": old, "slices": ["a"] * 700 + ["b"] * 300, "margin": 0.05, "unclear": unclear}
    checks = no_worse_by_slice("loss", candidate=new, **given)
    assert [check.state for check in checks] == ["passed", "passed", state]
    assert ("too few to tell" in checks[-1].reason) is (unclear != "wait")
    # All rows together have to show it, and a loss that is shown is refused by every rule.
    alike = no_worse_by_slice("loss", candidate=old + rng.normal(0, 2.0, 1_000), **given)
    assert alike[0].state == "open"
    assert no_worse_by_slice("loss", candidate=old + 1, **given)[-1].state == "FAILED"


def test_slices_with_bad_arguments() -> None:
    given: dict[str, Any] = {"candidate": [1.0], "incumbent": [1.0], "slices": ["a"], "margin": 0.0}
    for changes in (
        {"slices": []},
        {"few": "hope"},
        {"unclear": "hope"},
        {"whole": "hope"},
        {"few": "value"},
        {"slices": {"a": ["x"], "b": []}},
        {"positive": [1, 0]},
        {"margin": math.inf},
        {"least": 1},
        {"candidate": [np.nan]},
        {"margin": -1.0, "least": 2, "candidate": [1.0] * 2, "incumbent": [1.0] * 2, "slices": ["a"] * 2},
    ):
        with pytest.raises(InvalidInput):
            no_worse_by_slice("loss", **(given | changes))
    empty = no_worse_by_slice("loss", candidate=[], incumbent=[], slices=[], margin=0)
    assert [check.state for check in empty] == ["open"]


def test_calibration_needs_positives_and_a_small_error() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0, 0.2, 20_000)
    y = rng.random(20_000) < p
    assert calibrated(y, p).passed
    assert calibrated(y, np.minimum(3 * p, 1)).state == "FAILED"
    assert calibrated(y[:50], p[:50]).state == "open"
    assert calibrated([], []).state == "open"
    assert calibrated(y[:50], p[:50], few="pass").passed


def test_as_many_positives_happen_as_are_expected_up_to_a_factor() -> None:
    y = np.arange(10_000) % 100 == 0
    interval = wilson(100, 10_000)
    for p, passed in (
        (0.01, True),
        (1.49 * interval.upper, True),
        (1.51 * interval.upper, False),
        (interval.lower / 1.49, True),
        (interval.lower / 1.51, False),
    ):
        check = calibrated_in_the_large(y, np.full(10_000, p))
        assert check.passed is passed
        assert check.value == pytest.approx(p / 0.01)
        assert check.enough
    # Two frauds of a hundred rows exclude little; none of ten thousand exclude a lot.
    assert calibrated_in_the_large(y[:200], np.full(200, 0.05)).passed
    none = calibrated_in_the_large(np.zeros(10_000), np.full(10_000, 0.01))
    assert (none.state, none.value) == ("FAILED", None)
    assert calibrated_in_the_large(np.zeros(10_000), np.zeros(10_000)).passed
    assert calibrated_in_the_large([], []).state == "open"
    assert calibrated_in_the_large(y, np.full(10_000, 0.02), max_ratio=2).passed
    for wrong in ({"max_ratio": 0.9}, {"max_ratio": math.nan}, {"confidence_level": 1.0}):
        with pytest.raises(InvalidInput):
            calibrated_in_the_large(y, np.full(10_000, 0.01), **wrong)
    with pytest.raises(InvalidInput):
        calibrated_in_the_large(y, np.full(9, 0.01))


def test_a_dearer_candidate_fails_and_an_uncertain_one_is_open() -> None:
    rng = np.random.default_rng(2)
    old = rng.exponential(2.0, 10_000)
    assert no_dearer(1.2 * old, old).state == "FAILED"
    assert no_dearer(old, old).state == "passed"
    assert no_dearer(rng.exponential(2.0, 300), old[:300]).state == "open"
    assert no_dearer(old[:9], old[:9]).state == "open"
    assert no_dearer(1.2 * old, old).value == pytest.approx(0.2)
    theirs, ours = rng.exponential(2.0, (2, 300))
    for dearer in (0.04, 0.06):
        cost = ours - ours.mean() + (1 + dearer) * theirs.mean()
        assert no_dearer(cost, theirs).state == "open"
        decided = no_dearer(cost, theirs, unclear="value")
        assert decided.state == ("passed" if dearer < 0.05 else "FAILED")
        assert "its value decides" in decided.reason
    assert no_dearer(1.2 * old, old, unclear="value").state == "FAILED"
    assert no_dearer(old[:9], old[:9], unclear="value").state == "open"
    with pytest.raises(InvalidInput):
        no_dearer(old, old[1:])
    with pytest.raises(InvalidInput):
        no_dearer(old, old, margin=-1)


def test_a_fast_version_is_shown_fast_and_a_slow_one_slow() -> None:
    us = np.random.default_rng(4).exponential(1_000, 20_000)
    p99 = -1_000 * np.log(0.01)
    assert fast_enough(us, bound_us=1.1 * p99).passed
    assert fast_enough(us, bound_us=0.9 * p99).state == "FAILED"
    assert fast_enough(us[:200], bound_us=1.1 * p99).state == "open"
    assert fast_enough([], bound_us=1).state == "open"
    assert fast_enough(np.full(299, 1.0), bound_us=2).passed
    assert not fast_enough(np.full(298, 1.0), bound_us=2).passed
    with pytest.raises(InvalidInput):
        fast_enough([-1.0], bound_us=1)
    # The error is at most 5 %: versions whose P99 is exactly at the bound pass one time in twenty.
    rng = np.random.default_rng(5)
    passed = sum(fast_enough(rng.exponential(1_000, 1_000), bound_us=p99).passed for _ in range(200))
    assert passed <= binom.ppf(0.999, 200, 0.05)


def test_skew_looks_at_the_worst_feature() -> None:
    def column(name: str, k: int, n: int) -> SimpleNamespace:
        return SimpleNamespace(name=name, share=wilson(k, n))

    assert no_skew([column("a", 0, 5_000), column("b", 1, 5_000)]).passed
    bad = no_skew([column("a", 0, 5_000), column("b", 400, 5_000)])
    assert (bad.state, bad.reason[:10]) == ("FAILED", "b differs ")
    assert no_skew([column("a", 3, 300)]).state == "open"
    assert no_skew([column("a", 0, 20)]).state == no_skew([]).state == "open"
    with pytest.raises(InvalidInput):
        no_skew([], max_share=1)


def test_groups_become_one_verdict() -> None:
    verdict = evaluate(all_of(data_in_order([]), contract_kept(report())))
    assert [check.name for check in verdict.checks] == ["data quality", "data: rows", "data: rejected rows"]


def test_what_could_not_be_compared_is_open_and_kinds_may_come_from_a_generator() -> None:
    def column(name: str, effect: float, p: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, effect=effect, adjusted_p_value=p)

    nothing = close_to_traffic([])
    assert (nothing.state, nothing.reason) == ("open", "no column was compared")
    odd = close_to_traffic([column("a", math.nan, 1e-9), column("b", 0.1, math.nan), column("c", 0.01, 1e-9)])
    assert (odd.state, odd.reason) == ("open", "not known of a, b")
    assert close_to_traffic([column("a", math.nan, 1e-9), column("b", 0.5, 1e-9)]).state == "FAILED"
    found = [SimpleNamespace(kind=kind, value=1.0, reason=kind) for kind in ("late", "nulls", "late", "nulls")]
    assert data_in_order(found, tolerated=(kind for kind in ("late", "nulls"))).passed
    with pytest.raises(InvalidInput, match="y"):
        calibrated([1.0, math.nan], [0.5, 0.5])
    assert fast_enough([], bound_us=10).state == "open"


def test_rows_that_stand_for_more_count_for_more() -> None:
    rng = np.random.default_rng(6)
    old = rng.random(3_000)
    # Where a row stands for a hundred the candidate is worse, elsewhere better.
    heavy = np.arange(3_000) % 30 == 0
    new, weight = old + np.where(heavy, 0.5, -0.1), np.where(heavy, 100.0, 1.0)
    given: dict[str, Any] = {"candidate": new, "incumbent": old, "slices": ["a"] * 3_000, "margin": 0.05}
    assert [check.state for check in no_worse_by_slice("loss", **given)] == ["passed", "passed"]
    weighted = no_worse_by_slice("loss", **given, weight=weight)
    assert [check.state for check in weighted] == ["FAILED", "FAILED"]
    assert weighted[0].value == pytest.approx(np.average(new - old, weights=weight))
    # A row that stands for none is not there.
    none = np.where(heavy, 0.0, 1.0)
    left = no_worse_by_slice("loss", **given | {"slices": np.where(heavy, "b", "a").tolist()}, weight=none)
    assert [check.state for check in left] == ["passed", "passed", "open"]
    assert left[2].reason.startswith("0 rows")
    with pytest.raises(InvalidInput, match="weight"):
        no_worse_by_slice("loss", **given, weight=weight[1:])
