"""Maturity: plain shares of decisions, and the product-limit law of the labels' delays in reversed time.

Oracles: the definition as a loop over ages; for the law its definition as a loop, the empirical distribution where
everything was watched long enough, and the true law of truncated exponential delays.
"""

import math

import numpy as np
import polars as pl
import pytest

from vitok.decisions import label_weights, maturity
from vitok.decisions.label_maturity import arrived_by
from vitok.errors import InvalidInput

US = pl.Datetime("us", "UTC")


def by_definition(delay, limit, age):
    share = 1.0
    for d in np.unique(delay[delay > age]):
        share *= 1 - (delay == d).sum() / ((delay <= d) & (limit >= d)).sum()
    return share


def test_law_of_delays_equals_its_definition():
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 60):
        limit = rng.integers(0, 30, n)
        delay = rng.integers(0, 20, n)
        seen = delay <= limit
        delay, limit = delay[seen], limit[seen]
        found = arrived_by(delay, limit, range(-1, 31))
        for age, (share, lower, upper) in zip(range(-1, 31), found, strict=True):
            if len(delay):
                assert share == pytest.approx(by_definition(delay, limit, age), abs=1e-12)
                assert 0 <= lower <= share <= upper <= 1


def test_watched_long_enough_it_is_the_empirical_distribution():
    delay = np.array([5, 5, 9, 1, 3, 3, 3, 8])
    found = arrived_by(delay, np.full(8, 100), [0, 1, 3, 5, 8, 9])
    assert [share for share, _, _ in found] == pytest.approx([(delay <= age).mean() for age in (0, 1, 3, 5, 8, 9)])


def test_truncation_does_not_bend_the_curve_and_the_interval_covers():
    """Exponential delays of mean 30 days, decisions spread over 90 days: young ones show only their early labels."""
    rng = np.random.default_rng(11)
    truth = (1 - math.exp(-10 / 30)) / (1 - math.exp(-90 / 30))
    covered, naive = 0, []
    for _ in range(200):
        limit = rng.uniform(0, 90e6, 1500).astype(np.int64)
        delay = rng.exponential(30e6, 1500).astype(np.int64)
        seen = delay <= limit
        ((_, lower, upper),) = arrived_by(delay[seen], limit[seen], [10_000_000])
        covered += lower <= truth <= upper
        naive.append((delay[seen] <= 10_000_000).mean())
    assert np.mean(naive) > truth + 0.08
    assert covered >= 180


def test_nothing_known():
    assert arrived_by(np.empty(0, np.int64), np.empty(0, np.int64), [5])[0][1:] == (0.0, 1.0)


def frames():
    made = pl.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(12)],
            "event_time": pl.Series([100 * i for i in range(12)]).cast(US),
            "country": ["de", "fr"] * 6,
        }
    )
    rows = [("r0", "fraud", 50), ("r0", "fraud", 60), ("r1", "fraud", 400), ("r1", "click", 101), ("r4", "click", 402)]
    came = pl.DataFrame(rows, schema=["request_id", "kind", "ingest_time"], orient="row")
    return made, came.with_columns(pl.col("ingest_time").cast(US))


def test_kinds_and_slices():
    made, came = frames()
    found = maturity(made, came, [60, 500], by=["country"], as_of=1000)
    assert found.columns[:5] == ["kind", "country", "age", "n_obs", "labelled"]
    assert found.select("kind", "country", "age", "n_obs", "labelled").rows() == [
        ("click", "de", 60, 5, 1),
        ("click", "de", 500, 3, 1),
        ("click", "fr", 60, 5, 1),
        ("click", "fr", 500, 3, 1),
        ("fraud", "de", 60, 5, 1),
        ("fraud", "de", 500, 3, 1),
        ("fraud", "fr", 60, 5, 0),
        ("fraud", "fr", 500, 3, 1),
    ]
    assert found.filter(pl.col("labelled") > 0)["arrived"].to_list() == [1.0] * 7
    # Without a kind, and before anything was known.
    one = maturity(made, came.filter(pl.col("kind") == "fraud").drop("kind"), ["1s"], as_of=49)
    assert one.select("n_obs", "labelled").row(0) == (0, 0)
    with pytest.raises(InvalidInput, match="by"):
        maturity(made, came, [5], by=["device"])


def test_weights_of_a_random_pass_through():
    """Weighted, what passed stands for everything: the share of frauds is that of all payments."""
    rng = np.random.default_rng(5)
    n, passed = 40_000, 0.1
    risky = rng.random(n) < 0.2
    fraud = rng.random(n) < np.where(risky, 0.6, 0.01)
    let_pass = rng.random(n) < passed
    action = np.where(risky & ~let_pass, "block", "allow")
    propensity = np.where(risky, np.where(let_pass, passed, 1 - passed), 1.0)
    rows = pl.DataFrame({"action": action, "propensity": propensity})
    found = label_weights(rows)
    weighted = float((found.weight * fraud).sum() / found.weight.sum())
    seen = action == "allow"
    assert abs(weighted - fraud.mean()) < 0.01
    assert fraud[seen].mean() < fraud.mean() - 0.08
    assert found.weight.sum() == pytest.approx(n, rel=0.05)
    assert found.n_eff == pytest.approx(found.weight.sum() ** 2 / (found.weight**2).sum())
    assert (found.n_obs + found.n_hidden, found.n_unsupported) == (n, 0)
    assert "worth" in str(found)
    certain = label_weights(pl.DataFrame({"action": ["block"], "propensity": [1.0]}))
    assert (certain.n_unsupported, certain.n_eff) == (1, 0.0)
    assert "no chance" in str(certain)
    with pytest.raises(InvalidInput, match="propensity"):
        label_weights(pl.DataFrame({"action": ["allow"], "propensity": [0.0]}))
