"""Ranking metrics. Oracles: scikit-learn 1.9; the protocol written out row by row; simulation for the intervals."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from vitok.errors import InvalidInput
from vitok.stats import average_precision, card_precision_at_k, precision_at_k, roc_auc

ROWS = st.lists(st.tuples(st.booleans(), st.integers(-4, 4)), min_size=2, max_size=60).filter(
    lambda rows: len({y for y, _ in rows}) == 2
)


def draw(n: int, seed: int, rate: float = 0.05) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = rng.random(n) < rate
    return y, np.round(rng.normal(size=n) + 1.5 * y, 1)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_values_equal_sklearn_with_many_ties(rows: list[tuple[bool, int]]) -> None:
    y, score = np.array([row[0] for row in rows]), np.array([float(row[1]) for row in rows])
    for ours, theirs in ((roc_auc, roc_auc_score), (average_precision, average_precision_score)):
        found = ours(y, score)
        assert found.value == pytest.approx(theirs(y, score), abs=1e-12)
        assert 0 <= found.lower <= found.value <= found.upper <= 1


def test_delong_variance_by_its_definition() -> None:
    y, score = draw(200, 1, 0.2)
    positive, negative = score[y], score[~y]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    found = roc_auc(y, score)
    logit = [math.log(end / (1 - end)) for end in (found.lower, found.upper)]
    spread = (logit[1] - logit[0]) / 2 / 1.959964 * found.value * (1 - found.value)
    assert spread == pytest.approx(math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("metric", [roc_auc, average_precision])
def test_interval_covers(metric: Any) -> None:
    truth = metric(*draw(1_000_000, 99)).value
    covered = sum(metric(*draw(2000, seed)).lower <= truth <= metric(*draw(2000, seed)).upper for seed in range(200))
    assert 180 <= covered <= 200


@pytest.mark.parametrize("metric", [roc_auc, average_precision])
def test_perfect_ranking_is_not_certain(metric: Any) -> None:
    found = metric([0] * 30 + [1] * 10, range(40))
    assert found.value == 1.0
    assert 0.6 < found.lower < 1.0
    assert found.upper == 1.0


def test_worst_ranking_has_an_interval() -> None:
    found = roc_auc([1, 1, 0, 0], [1, 2, 3, 4])
    assert (found.value, found.lower) == (0.0, 0.0)
    assert found.upper > 0.1


def test_single_positive() -> None:
    assert roc_auc([0, 0, 1], [1, 3, 2]).value == 0.5
    found = average_precision([0, 0, 1], [1, 3, 2])
    assert (found.value, found.lower, found.upper) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("metric", [roc_auc, average_precision])
@pytest.mark.parametrize(("y", "reason"), [([], "no rows"), ([0, 0], "no positives"), ([1], "no negatives")])
def test_one_class_is_undefined_with_its_reason(metric: Any, y: list[int], reason: str) -> None:
    found = metric(y, [0.5] * len(y))
    assert math.isnan(found.value)
    assert (found.lower, found.upper, found.definition, found.n_obs) == (0.0, 1.0, reason, len(y))


def test_infinite_scores_rank() -> None:
    assert roc_auc([0, 1], [-math.inf, math.inf]).value == 1.0
    assert average_precision([0, 1], [-math.inf, math.inf]).value == 1.0


@pytest.mark.parametrize(
    ("y", "score", "field"),
    [
        ([0, 1], [0.1, math.nan], "score[1]"),
        ([0, 2], [0.1, 0.2], "y[1]"),
        ([0, math.nan], [0.1, 0.2], "y[1]"),
        ([0, 1], [0.1], "y and score"),
        ([[0], [1]], [[0.1], [0.2]], "y"),
        ([0, 1], ["a", "b"], "score"),
    ],
)
def test_bad_input_is_named(y: Any, score: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        roc_auc(y, score)
    assert caught.value.field == field


def test_precision_at_k_shares_ties() -> None:
    # Two places for four tied rows of which one is positive: half a hit.
    assert precision_at_k([1, 0, 0, 1, 0], [0.5, 0.5, 0.5, 0.9, 0.5], k=3).value == pytest.approx((1 + 0.5) / 3)
    assert precision_at_k([1, 0], [0.5, 0.1], k=5).value == 0.5
    assert math.isnan(precision_at_k([], [], k=5).value)
    with pytest.raises(InvalidInput, match="k: got 0"):
        precision_at_k([1], [1], k=0)


def slow_card_precision(day: Any, card: Any, is_fraud: Any, score: Any, k: int, *, remove_found: bool) -> list[float]:
    found: set[Any] = set()
    values = []
    for today in sorted(set(day)):
        cards: dict[Any, list[float]] = {}
        for d, c, f, s in zip(day, card, is_fraud, score, strict=True):
            if d == today and c not in found:
                best = cards.setdefault(c, [-math.inf, 0])
                cards[c] = [max(best[0], s), max(best[1], f)]
        top = sorted(sorted(cards), key=lambda c: -cards[c][0])[:k]
        caught = [c for c in top if cards[c][1]]
        values.append(len(caught) / k)
        if remove_found:
            found |= set(caught)
    return values


@pytest.mark.parametrize("remove_found", [True, False])
@pytest.mark.parametrize("kind", ["int", "str", "object"])
def test_card_precision_equals_the_protocol_row_by_row(kind: str, remove_found: bool) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 300))
        day, number = rng.integers(3, 9, n), rng.integers(0, 25, n)
        card = number if kind == "int" else np.array([f"card {c}" for c in number], dtype=kind)
        is_fraud, score = rng.random(n) < 0.2, np.round(rng.random(n), 1)
        k = int(rng.integers(1, 12))
        found = card_precision_at_k(day=day, card=card, is_fraud=is_fraud, score=score, k=k, remove_found=remove_found)
        expected = slow_card_precision(day, card, is_fraud, score, k, remove_found=remove_found)
        assert list(found.precision_by_day) == expected
        assert found.value == pytest.approx(np.mean(expected))
        assert found.days == tuple(sorted(set(day.tolist())))
        assert found.value <= found.best_possible + 1e-12 or not remove_found
        assert all(f <= c for f, c in zip(found.found_by_day, found.compromised_by_day, strict=True))


def test_card_precision_takes_cards_without_an_order() -> None:
    card = np.array(["a", 1, None, "a"], dtype=object)
    found = card_precision_at_k(day=[0, 0, 0, 1], card=card, is_fraud=[1, 0, 0, 1], score=[0.9, 0.5, 0.1, 0.9], k=1)
    assert found.precision_by_day == (1.0, 0.0)
    assert found.compromised_by_day == (1, 0)
    assert found.best_possible == 0.5


def test_card_precision_of_nothing_and_of_one_day() -> None:
    nothing = card_precision_at_k(day=[], card=[], is_fraud=[], score=[])
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.best_possible)
    assert (nothing.lower, nothing.upper) == (0.0, 1.0)
    one = card_precision_at_k(day=[4], card=[1], is_fraud=[1], score=[0.5], k=2)
    assert (one.value, one.n_obs) == (0.5, 1)
    assert 0 < one.lower < 0.5 < one.upper < 1


def test_card_precision_interval_is_students_over_days() -> None:
    # Mean 0.5, standard deviation 0.5, three days: half width 4.302653 * 0.5 / sqrt(3), cut to [0, 1].
    found = card_precision_at_k(day=[1, 1, 2, 2, 3], card=[1, 2, 3, 4, 5], is_fraud=[1, 1, 1, 0, 0], score=[1] * 5, k=2)
    assert found.precision_by_day == (1.0, 0.5, 0.0)
    assert (found.lower, found.upper) == (0.0, 1.0)
