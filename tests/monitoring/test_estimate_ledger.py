"""Oracles: counts done by hand; simulated windows whose estimates are honest, biased, or too sure of themselves."""

import math
from pathlib import Path

import numpy as np
import pytest

from vitok.clock import DAY
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.monitoring.estimate_ledger import EstimateLedger
from vitok.stats import Estimate


def estimate(value: float, half: float = 0.02, name: str = "precision") -> Estimate:
    return Estimate(name=name, value=value, lower=value - half, upper=value + half, n_obs=500)


@pytest.fixture
def ledger(tmp_path: Path) -> EstimateLedger:
    return EstimateLedger(tmp_path / "estimates.sqlite")


def fill(ledger: EstimateLedger, *, bias: float, noise: float, half: float, n: int = 60) -> None:
    rng = np.random.default_rng(0)
    for day in range(n):
        truth = 0.8 + 0.05 * math.sin(day / 5)
        said = truth + bias + noise * rng.normal()
        window = {"start": day * DAY, "end": (day + 1) * DAY}
        ledger.record("fraud/3", [estimate(said, half)], made_at=(day + 1) * DAY, **window)
        ledger.realise("fraud/3", [estimate(truth)], labelled=1.0, as_of=(day + 30) * DAY, **window)


@pytest.mark.parametrize(
    ("bias", "noise", "half", "verdict"),
    [
        (0.0, 0.01, 0.02, "trusted"),
        (0.06, 0.01, 0.02, "not trusted"),
        (0.0, 0.03, 0.01, "not trusted"),
        (0.09, 0.01, 0.2, "not trusted"),
    ],
)
def test_verdict(ledger: EstimateLedger, bias: float, noise: float, half: float, verdict: str) -> None:
    fill(ledger, bias=bias, noise=noise, half=half)
    grade = ledger.grade("fraud/3", "precision")
    assert grade.verdict == verdict, str(grade)
    assert grade.n_windows == 60
    errors = [pair.error for pair in ledger.pairs("fraud/3", "precision")]
    assert grade.mean_absolute_error == pytest.approx(np.mean(np.abs(errors)))
    assert grade.bias.value == pytest.approx(np.mean(errors))
    assert grade.coverage.value == pytest.approx(np.mean(np.abs(errors) <= half))
    assert ledger.grade("fraud/3", "precision", last=10).verdict == "too early"


def test_an_estimate_is_never_rewritten(ledger: EstimateLedger) -> None:
    window = {"start": 0, "end": DAY}
    assert ledger.record("a", [estimate(0.8)], made_at=DAY, **window) == 1
    assert ledger.record("a", [estimate(0.8)], made_at=2 * DAY, **window) == 0
    with pytest.raises(Conflict, match="first made"):
        ledger.record("a", [estimate(0.81)], made_at=2 * DAY, **window)
    ledger.realise("a", [estimate(0.7, name="recall")], labelled=0.5, as_of=3 * DAY, **window)
    with pytest.raises(Conflict, match="looked at before"):
        ledger.record("a", [estimate(0.7, name="recall")], made_at=4 * DAY, **window)


def test_labels_mature_and_the_past_can_be_asked(ledger: EstimateLedger) -> None:
    window = {"start": 0, "end": DAY}
    ledger.record("a", [estimate(0.8), estimate(math.nan, name="recall")], made_at=DAY, **window)
    ledger.realise("a", [estimate(0.7)], labelled=0.3, as_of=5 * DAY, **window)
    ledger.realise("a", [estimate(0.79)], labelled=1.0, as_of=30 * DAY, **window)
    [early] = ledger.pairs("a", "precision", as_of=10 * DAY)
    [late] = ledger.pairs("a", "precision")
    assert early.realised is not None
    assert (early.realised.value, early.labelled, early.covered) == (0.7, 0.3, False)
    assert late.realised is not None
    assert (late.realised.value, late.labelled, late.covered) == (0.79, 1.0, True)
    assert ledger.pairs("a", "precision", as_of=DAY - 1) == ()
    assert ledger.subjects() == {"a": ("precision",)}
    assert ledger.grade("a", "precision", as_of=10 * DAY).n_windows == 0


def test_missing_labels_widen_what_counts_as_covered(ledger: EstimateLedger) -> None:
    window = {"start": 0, "end": DAY}
    ledger.record("a", [estimate(0.8, 0.02)], made_at=DAY, **window)
    ledger.realise("a", [estimate(0.75, 0.06)], labelled=0.2, as_of=2 * DAY, **window)
    [pair] = ledger.pairs("a", "precision")
    assert pair.covered
    ledger.realise("a", [estimate(0.75, 0.06)], labelled=1.0, as_of=3 * DAY, **window)
    [pair] = ledger.pairs("a", "precision")
    assert not pair.covered


def test_two_openings_see_one_ledger(tmp_path: Path) -> None:
    first, second = (EstimateLedger(tmp_path / "e.sqlite") for _ in range(2))
    first.record("a", [estimate(0.8)], start=0, end=DAY, made_at=DAY)
    [pair] = second.pairs("a", "precision")
    assert pair.realised is None
    assert pair.covered is None
    assert math.isnan(pair.error)
    assert "no labels yet" in str(pair)
    first.close()
    second.close()


def test_wrong_input_is_named(ledger: EstimateLedger) -> None:
    with pytest.raises(InvalidInput, match="window"):
        ledger.record("a", [estimate(0.8)], start=DAY, end=DAY, made_at=0)
    with pytest.raises(InvalidInput, match="another metric"):
        ledger.record("a", [estimate(0.8), estimate(0.7)], start=0, end=DAY, made_at=0)
    with pytest.raises(InvalidInput, match="labelled"):
        ledger.realise("a", [estimate(0.8)], start=0, end=DAY, labelled=0.0, as_of=0)
    with pytest.raises(NotFound, match="precision of a"):
        ledger.grade("a", "precision")
    ledger.record("a", [estimate(0.8)], start=0, end=DAY, made_at=DAY)
    with pytest.raises(InvalidInput, match="slack"):
        ledger.grade("a", "precision", slack=1.0)
