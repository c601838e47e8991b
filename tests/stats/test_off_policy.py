"""Off-policy estimators. Oracles: the formulas as loops, numpy's weighted mean, a simulation whose value is known."""

import math

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats.off_policy import doubly_robust, importance_weights, ips, snips


def logged(seed: int, n: int = 2000):
    """Two actions in two contexts; the logging policy takes action 1 with 0.2 or 0.7, the other one with 0.9 or 0.1."""
    rng = np.random.default_rng(seed)
    context = rng.integers(0, 2, n)
    chance = np.array([0.2, 0.7])[context]
    action = (rng.random(n) < chance).astype(int)
    mean = np.array([[0.3, 0.6], [0.5, 0.2]])
    reward = (rng.random(n) < mean[context, action]).astype(float)
    propensity = np.where(action == 1, chance, 1 - chance)
    other = np.array([0.9, 0.1])[context]
    target = np.where(action == 1, other, 1 - other)
    direct = other * mean[context, 1] + (1 - other) * mean[context, 0]
    return reward, importance_weights(target, propensity), mean[context, action], direct


TRUTH = 0.5 * (0.9 * 0.6 + 0.1 * 0.3) + 0.5 * (0.1 * 0.2 + 0.9 * 0.5)


def test_formulas():
    reward, weight, predicted, direct = logged(1)
    n = len(reward)
    found = ips(reward, weight)
    terms = [w * r for w, r in zip(weight, reward, strict=True)]
    assert found.value == pytest.approx(sum(terms) / n)
    spread = math.sqrt(sum((t - found.value) ** 2 for t in terms) / (n - 1) / n)
    assert found.upper - found.value == pytest.approx(1.959963985 * spread)
    assert snips(reward, weight).value == pytest.approx(np.average(reward, weights=weight))
    robust = doubly_robust(reward, weight, predicted, direct)
    assert robust.value == pytest.approx(np.mean(direct + weight * (reward - predicted)))
    assert found.n_eff == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert found.largest_share == pytest.approx(weight.max() / weight.sum())
    assert str(found).endswith(f"n = 2,000, worth {found.n_eff:,.1f})")
    assert found.to_dict()["n_eff"] == found.n_eff


def test_intervals_cover_the_truth_and_the_model_narrows_them():
    covered = np.zeros(3)
    widths = np.zeros(3)
    for seed in range(300):
        reward, weight, predicted, direct = logged(seed, 500)
        all_ = ips(reward, weight), snips(reward, weight), doubly_robust(reward, weight, predicted, direct)
        covered += [one.lower <= TRUTH <= one.upper for one in all_]
        widths += [one.upper - one.lower for one in all_]
    assert (covered >= 276).all()
    assert widths[2] < widths[0]
    assert widths[1] < widths[0]


def test_a_wrong_model_is_mended_by_right_weights():
    values = [
        doubly_robust(r, w, np.full(len(r), 0.9), np.full(len(r), 0.9)).value for r, w, _, _ in map(logged, range(60))
    ]
    assert abs(np.mean(values) - TRUTH) < 0.01


def test_rewards_that_were_not_seen():
    found = ips([1.0, math.nan], [2.0, 0.0])
    assert found.value == 1.0
    empty = snips([math.nan], [0.0])
    assert math.isnan(empty.value)
    assert (empty.lower, empty.upper, empty.n_eff) == (-math.inf, math.inf, 0.0)
    assert math.isnan(ips([], []).value)
    assert ips([1.0], [1.0]).upper == math.inf


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: importance_weights([1.5], [0.5]), "target"),
        (lambda: importance_weights([0.5], [0.0]), "propensity"),
        (lambda: importance_weights([0.5], [math.nan]), "propensity"),
        (lambda: importance_weights([0.5], [0.5, 0.5]), "target"),
        (lambda: ips([1.0], [-1.0]), "weight"),
        (lambda: ips([1.0], [math.inf]), "weight"),
        (lambda: ips([math.nan], [1.0]), "reward"),
        (lambda: ips([1.0, 2.0], [1.0]), "weight"),
        (lambda: doubly_robust([1.0], [1.0], [math.nan], [1.0]), "predicted"),
        (lambda: doubly_robust([1.0], [1.0], [1.0], [1.0, 2.0]), "direct"),
    ],
)
def test_wrong_input(call, field):
    with pytest.raises(InvalidInput, match=field):
        call()
