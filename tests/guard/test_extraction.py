"""The watch for extraction: its rate of false positives, attackers alone and spread over keys, and too little data."""

from typing import Any

import numpy as np
import pytest

from vitok.clock import DAY
from vitok.errors import InvalidInput
from vitok.guard import ExtractionWatch

MONTH = 30 * DAY
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def customers(n_keys: int, n: int, seed: int) -> tuple[Matrix, np.ndarray, np.ndarray]:
    """Ordinary keys: heavy-tailed, with nulls and flags, and each with habits of its own."""
    rng = np.random.default_rng(seed)
    habit = np.repeat(rng.normal(0, 0.15, n_keys), n)
    amount = rng.lognormal(3 + habit, 1.0)
    count = rng.poisson(np.exp(0.5 + habit)).astype(float)
    mean = amount * rng.lognormal(0, 0.3, len(habit))
    mean[count == 0] = np.nan
    night = (rng.random(len(habit)) < 0.2).astype(float)
    key = np.repeat([f"shop{at:03}" for at in range(n_keys)], n)
    time = np.tile(np.arange(n) * (MONTH // (n + 1)), n_keys)
    return np.column_stack((amount, count, mean, night)), key, time


def made_up(n: int, seed: int) -> Matrix:
    """What somebody asks who knows the range of each feature and nothing about how they go together."""
    rng = np.random.default_rng(seed)
    return np.column_stack(
        (rng.uniform(0, 500, n), rng.integers(0, 10, n), rng.uniform(0, 500, n), rng.integers(0, 2, n))
    ).astype(float)


WATCH = ExtractionWatch.fit(*customers(200, 600, 1), false_positive_rate=0.02)


def asked(*parts: tuple[Matrix, str]) -> tuple[Matrix, np.ndarray, np.ndarray]:
    X = np.concatenate([rows for rows, _ in parts])
    key = np.repeat([name for _, name in parts], [len(rows) for rows, _ in parts])
    return X, key, np.concatenate([np.arange(len(rows)) for rows, _ in parts])


def test_ordinary_keys_are_flagged_as_rarely_as_stated() -> None:
    X, key, time = customers(400, 600, 2)
    report = WATCH.judge(X, key, time)
    flagged = [finding for finding in report.flagged if finding.kind == "key"]
    # 0.02 of 400 is 8; the threshold is itself from 200 keys.
    assert len(flagged) <= 20
    assert len(report.findings) >= 400
    assert {finding.verdict for finding in report.findings} <= {"ordinary", "suspect"}


def test_somebody_who_makes_rows_up() -> None:
    report = WATCH.judge(*asked((made_up(3_000, 1), "thief"), (customers(1, 2_500, 5)[0], "shop")), budget=2_000)
    thief, shop = report.findings
    assert (thief.name, thief.verdict, thief.action) == ("thief", "extraction", "block")
    assert thief.n_distinct == 3_000
    assert thief.p_value == pytest.approx(1 / 201)
    assert (shop.verdict, shop.action) == ("over budget", "throttle")
    assert "thief" in str(report)
    assert "block" in str(report)


def test_asking_again_spends_no_budget() -> None:
    rows = np.repeat(customers(1, 600, 5)[0], 5, axis=0)
    rows[0, 3] = -0.0 if rows[0, 3] == 0 else rows[0, 3]
    (found,) = WATCH.judge(*asked((rows, "shop")), budget=2_000).findings
    assert (found.n_queries, found.n_distinct, found.action) == (3_000, 600, "none")


def test_an_attack_hidden_among_copies_of_traffic() -> None:
    # The attack is a third of the key's queries, and in one stretch of the month.
    ordinary = customers(1, 800, 5)[0]
    mixed = np.concatenate((ordinary[:400], made_up(400, 1), ordinary[400:]))
    (found,) = WATCH.judge(*asked((mixed, "thief"))).findings
    assert found.verdict == "suspect"


def test_real_rows_within_the_budget_are_not_seen() -> None:
    (found,) = WATCH.judge(*asked((customers(1, 1_900, 5)[0], "thief")), budget=2_000).findings
    assert found.action == "none"


def test_one_attacker_behind_many_keys() -> None:
    # 30 keys, each too small to be tested and far below the budget.
    parts = [(made_up(100, seed), f"sybil{seed:02}") for seed in range(30)]
    X, key, time = asked(*parts, (customers(1, 600, 5)[0], "shop"))
    tenant = np.where(np.char.startswith(key, "sybil"), "acme", "shop")
    alone = WATCH.judge(X, key, time, budget=2_000)
    alike = [finding for finding in alone.findings if finding.kind == "alike"]
    assert {finding.verdict for finding in alone.findings if finding.kind == "key"} == {"too few", "ordinary"}
    # Found by their queries alone, but then for a person to look at.
    assert len(alike) == 1
    assert len(alike[0].keys) >= 28
    assert (alike[0].verdict, alike[0].action) == ("suspect", "review")
    together = WATCH.judge(X, key, time, budget=2_000, groups={"tenant": tenant}).findings[0]
    assert (together.kind, together.name, together.verdict) == ("tenant", "acme", "extraction")
    assert len(together.keys) == 30
    wider = WATCH.judge(X, key, time, budget=2_000, groups={"tenant": tenant}, group_budget=5_000).findings[0]
    assert wider.verdict == "suspect"


def test_ordinary_keys_are_not_put_together() -> None:
    X, key, time = customers(60, 100, 9)
    assert not [
        finding
        for finding in WATCH.judge(X, key, time).findings
        if finding.kind == "alike" and finding.action != "none"
    ]


def test_busier_keys_are_not_accused_for_having_more_chances() -> None:
    X, key, time = customers(30, 4_000, 21)
    assert len([finding for finding in WATCH.judge(X, key, time).flagged if finding.kind == "key"]) <= 3


def test_nothing_and_too_little() -> None:
    empty = WATCH.judge(np.empty((0, 4)), [], [])
    assert (empty.findings, empty.n_queries) == ((), 0)
    (found,) = WATCH.judge(made_up(199, 1), ["a"] * 199, np.arange(199)).findings
    assert (found.verdict, found.action) == ("too few", "none")
    assert np.isnan(found.distance)
    grouped = WATCH.judge(made_up(10, 1), ["a"] * 10, np.arange(10), groups={"tenant": [""] * 10}).findings
    assert [finding.kind for finding in grouped] == ["key"]


def test_what_cannot_be_calibrated_is_refused() -> None:
    X, key, time = customers(20, 300, 1)
    with pytest.raises(InvalidInput, match="be at least 99"):
        ExtractionWatch.fit(X, key, time, false_positive_rate=0.01)
    # Two periods of each key count twice.
    late = np.concatenate((time, time + MONTH))
    both = ExtractionWatch.fit(np.concatenate((X, X)), np.concatenate((key, key)), late, false_positive_rate=0.03)
    assert "40 ordinary key-periods" in repr(both)
    with pytest.raises(InvalidInput, match="several keys"):
        ExtractionWatch.fit(X, ["a"] * len(X), np.arange(len(X)) * MONTH // 1_000, false_positive_rate=0.5)
    for options in ({"false_positive_rate": 0.0}, {"window": 5}):
        with pytest.raises(InvalidInput):
            ExtractionWatch.fit(X, key, time, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="one period"):
        WATCH.judge(X, key, time * 3)
    for arguments in ((X[0], key, time), (X, key[1:], time), (X, key, time[1:])):
        with pytest.raises(InvalidInput, match="shape"):
            WATCH.judge(*arguments)
    with pytest.raises(InvalidInput, match="groups"):
        WATCH.judge(X, key, time, groups={"tenant": ["a"]})
