"""Oracles: venn-abers 1.5.4 and betacal 1.1.0 on the same rows; isotonic regression twice; scipy's minimisers."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.models.calibrators import (
    BetaCalibrator,
    Calibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    TemperatureCalibrator,
    calibrator_from_dict,
    fit_best,
)
from vitok.models.calibrators_multiclass import TemperatureScaling, VectorScaling
from vitok.models.calibrators_refit import judge_calibrator, refit_calibrator
from vitok.models.calibrators_venn_abers import CrossVennAbersCalibrator, VennAbersCalibrator
from vitok.models.online_calibration import PowerCalibrator
from vitok.stats import calibration_error, isotonic_means, log_loss
from vitok.stats.calibration_variants import class_wise_error

# Of venn_abers.VennAbers().fit(...).predict_proba(...) for the rows below, at these scores.
SCORES = [0.0, 0.05, 0.123456, 0.3, 0.7, 0.95, 1.0]
LOW = [0.0, 0.0, 0.030927835051546393, 0.19117647058823528, 0.5609756097560976, 0.9375, 0.95]
HIGH = [0.004347826086956522, 0.021367521367521368, 0.041237113402061855, 0.19852941176470587, 0.573170731707317, 1, 1]


def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(42)
    p = rng.beta(1, 2, 2_000)
    return p, (rng.random(2_000) < p**1.5).astype(int)


def test_venn_abers_is_the_library_s() -> None:
    p, y = rows()
    calibrator = VennAbersCalibrator.fit(p, y)
    low, high = calibrator.interval(np.array(SCORES))
    np.testing.assert_allclose(low, LOW, atol=1e-12)
    np.testing.assert_allclose(high, HIGH, atol=1e-12)
    np.testing.assert_allclose(calibrator(np.array(SCORES)), np.array(HIGH) / (1 - np.array(LOW) + HIGH), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(1, 3)), min_size=2, max_size=25).filter(
        lambda given: len({label for _, label, _ in given}) == 2
    ),
    st.lists(st.integers(-1, 17), min_size=1, max_size=5),
)
def test_venn_abers_is_isotonic_regression_twice(given: list[tuple[int, bool, int]], asked: list[int]) -> None:
    score, y = np.array([one[0] for one in given], dtype=float), np.array([one[1] for one in given], dtype=float)
    weight = np.array([one[2] for one in given], dtype=float)
    low, high = VennAbersCalibrator.fit(score, y, weight=weight).interval(np.array(asked) / 2)
    mean = weight / weight.mean()
    for at, place in enumerate(np.array(asked) / 2):
        for label, found in ((0.0, low[at]), (1.0, high[at])):
            x, fitted, _ = isotonic_means(np.append(score, place), np.append(y, label), np.append(mean, 1.0))
            assert found == pytest.approx(fitted[np.searchsorted(x, place)], abs=1e-9)


def test_one_of_the_two_probabilities_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    below = above = total = 0.0
    for _ in range(200):
        p = rng.random(120)
        y = rng.random(120) < p**2
        if y[:60].all() or not y[:60].any():
            continue
        low, high = VennAbersCalibrator.fit(p[:60], y[:60]).interval(p[60:])
        below, above, total = below + low.sum(), above + high.sum(), total + y[60:].sum()
    assert below < total < above


def test_cross_venn_abers_merges_folds_by_geometric_means() -> None:
    p, y = rows()
    fold = np.arange(2_000) % 4
    cross = CrossVennAbersCalibrator.fit(p, y, fold=fold)
    at = np.array([0.2, 0.6])
    parts = [VennAbersCalibrator.fit(p[fold == k], y[fold == k]).interval(at) for k in range(4)]
    gm_high = np.prod([high for _, high in parts], axis=0) ** 0.25
    gm_not = np.prod([1 - low for low, _ in parts], axis=0) ** 0.25
    np.testing.assert_allclose(cross(at), gm_high / (gm_not + gm_high), atol=1e-12)
    np.testing.assert_allclose(cross(np.column_stack([at] * 4)), cross(at))
    with pytest.raises(InvalidInput, match="column"):
        cross(np.zeros((2, 3)))


def test_beta_is_betacal_s_but_for_the_softened_targets() -> None:
    p, y = rows()
    expected = [0.008116800328064779, 0.146943594369345, 0.586661146339752, 0.9257489418247843]
    np.testing.assert_allclose(BetaCalibrator.fit(p, y)(np.array([0.05, 0.3, 0.7, 0.95])), expected, atol=2e-3)


def test_temperature_minimises_log_loss() -> None:
    rng = np.random.default_rng(1)
    p = rng.uniform(0.01, 0.99, 5_000)
    sharp = p**3 / (p**3 + (1 - p) ** 3)
    y = rng.random(5_000) < p
    found = TemperatureCalibrator.fit(sharp, y)
    assert found.temperature == pytest.approx(3.0, rel=0.08)
    for factor in (0.99, 1.01):
        other = TemperatureCalibrator(temperature=found.temperature * factor)
        assert log_loss(y, other(sharp)).value > log_loss(y, found(sharp)).value
    twice = TemperatureScaling.fit(np.column_stack([1 - sharp, sharp]), y.astype(int))
    assert twice.temperature == pytest.approx(found.temperature, rel=1e-4)
    weighted = TemperatureCalibrator.fit(sharp, y, weight=np.where(p < 0.5, 0.0, 1.0))
    assert weighted.temperature == pytest.approx(3.0, rel=0.1)


def test_vector_scaling_undoes_what_it_can_express() -> None:
    rng = np.random.default_rng(2)
    p = rng.dirichlet([1, 1, 1], 20_000)
    y = (p.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    z = (np.log(p) - [0.5, 0.0, -0.5]) / [0.5, 1.0, 1.5]
    bent = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    vector, single = VectorScaling.fit(bent[:10_000], y[:10_000]), TemperatureScaling.fit(bent[:10_000], y[:10_000])
    held = slice(10_000, None)
    errors = [class_wise_error(y[held], q).mean for q in (bent[held], single(bent[held]), vector(bent[held]))]
    assert errors[2] < 0.04 < errors[0]
    assert errors[2] < errors[1]
    np.testing.assert_allclose(vector(bent[:5]).sum(axis=1), 1)
    again = VectorScaling.from_dict(json.loads(json.dumps(vector.to_dict())))
    np.testing.assert_array_equal(again(bent[:5]), vector(bent[:5]))
    assert TemperatureScaling.from_dict(single.to_dict()) == single
    with pytest.raises(InvalidInput, match="y"):
        VectorScaling.fit(bent[:2], [0, 3])
    with pytest.raises(InvalidInput, match="score and y"):
        TemperatureScaling.fit(bent[:0], [])


@pytest.mark.parametrize("kind", [TemperatureCalibrator, VennAbersCalibrator, CrossVennAbersCalibrator])
def test_round_trip_through_json(kind: type) -> None:
    p, y = rows()
    calibrator = kind.fit(p, y)
    again = calibrator_from_dict(json.loads(json.dumps(calibrator.to_dict())))
    at = np.array([0.0, 0.31, 1.0])
    np.testing.assert_array_equal(again(at), calibrator(at))
    inside = calibrator(at)
    assert ((inside > 0) & (inside < 1)).all()


def test_venn_abers_can_be_a_candidate_and_keeps_nan() -> None:
    p, y = rows()
    choice = fit_best(p, y, kinds=[PlattCalibrator, VennAbersCalibrator])
    assert choice.kind in {"platt", "venn_abers"}
    assert np.isnan(VennAbersCalibrator.fit(p, y)(np.array([np.nan, 0.5]))).tolist() == [True, False]
    with pytest.raises(InvalidInput, match="scores"):
        VennAbersCalibrator.from_dict({"scores": [2, 1], "weights": [1, 1], "positives": [0, 1]})


def test_a_new_calibrator_is_taken_only_where_it_is_better_later() -> None:
    rng = np.random.default_rng(3)
    p = rng.beta(1, 6, 12_000)
    time = np.arange(12_000)
    moved = refit_calibrator(p, rng.random(12_000) < np.minimum(1.5 * p, 1), time, incumbent=None)
    assert moved.taken
    assert moved.difference.upper < 0
    assert moved.candidate_error.value < moved.incumbent_error.value
    assert moved.to_dict()["candidate"]["kind"] == moved.candidate.kind  # type: ignore[index]
    assert "taken" in str(moved)
    taken = sum(
        refit_calibrator(
            p[:2_000], rng.random(2_000) < p[:2_000], time[:2_000], incumbent=None, kinds=[PlattCalibrator]
        ).taken
        for _ in range(40)
    )
    assert taken <= 3


def test_a_calibrator_of_yesterday_is_not_taken_where_today_is_otherwise() -> None:
    rng = np.random.default_rng(4)
    p = rng.beta(1, 6, 10_000)
    y = rng.random(10_000) < np.where(np.arange(10_000) < 6_000, np.minimum(2 * p, 1), p)
    assert not refit_calibrator(p, y, np.arange(10_000), incumbent=None).taken


def test_rows_of_one_moment_stay_on_one_side() -> None:
    rng = np.random.default_rng(5)
    p = rng.random(1_000)
    y = rng.random(1_000) < p
    time = np.repeat([0, 1, 2], [500, 300, 200])
    assert refit_calibrator(p, y, time, incumbent=None, kinds=[PlattCalibrator]).n_fitted == 800
    weight = np.where(np.arange(1_000) % 2 == 0, 2.0, 0.0)
    judged = judge_calibrator(IsotonicCalibrator.fit(p, y), PlattCalibrator.fit(p, y), p, y, weight=weight)
    assert judged.n_judged == 500
    with pytest.raises(InvalidInput, match="incumbent"):
        judge_calibrator(PlattCalibrator.fit(p * 3, y), None, p * 3, y)
    with pytest.raises(InvalidInput, match="judged"):
        refit_calibrator(p, y, time, incumbent=None, judged=1.0)


@pytest.mark.parametrize(
    "calibrator",
    [
        PlattCalibrator(slope=1.0, intercept=0.0, on_logit=True),
        PlattCalibrator(slope=1.0, intercept=0.0, on_logit=False),
        BetaCalibrator(a=1.0, b=1.0, c=0.0),
        TemperatureCalibrator(temperature=0.5),
        IsotonicCalibrator(scores=(0.0, 1.0), probabilities=(1e-9, 1 - 1e-9)),
        PowerCalibrator(gamma=1.0, kappa=1.0),
    ],
)
def test_scores_in_float32_stay_strictly_inside(calibrator: Calibrator | PowerCalibrator) -> None:
    scores: Any = np.array([0.0, 0.5, 1.0, 100.0], dtype=np.float32)
    found = calibrator(scores)
    assert found.dtype == np.float64
    assert ((found > 0) & (found < 1)).all()
    assert found.tolist() == calibrator(scores.astype(np.float64)).tolist()


def test_a_temperature_that_nothing_tells_is_one() -> None:
    assert TemperatureCalibrator.fit([0.5] * 10, [0, 1] * 5).temperature == 1.0
    assert TemperatureScaling.fit(np.full((9, 3), 1 / 3), [0, 1, 2] * 3).temperature == 1.0


@pytest.mark.parametrize("n", [40, 60])
def test_weights_of_another_length_are_refused(n: int) -> None:
    rng = np.random.default_rng(0)
    p = rng.random(50)
    y = rng.random(50) < p
    with pytest.raises(InvalidInput, match="weight"):
        refit_calibrator(p, y, np.arange(50), incumbent=None, weight=np.ones(n))
    with pytest.raises(InvalidInput, match="weight"):
        CrossVennAbersCalibrator.fit(p, y, weight=np.ones(n))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "platt", "slope": math.nan, "intercept": 0.0, "on_logit": True}, "slope"),
        ({"kind": "platt", "slope": -1.0, "intercept": 0.0, "on_logit": True}, "slope"),
        ({"kind": "beta", "a": 1.0, "b": 1.0, "c": None}, "c"),
        ({"kind": "temperature", "temperature": 0.0}, "temperature"),
    ],
)
def test_damaged_parameters_are_refused(data: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        calibrator_from_dict(data)


def test_calibration_errors_of_a_verdict_count_rows_by_their_weights() -> None:
    """Oracle: the error of the rows themselves, each as often as it stands for."""
    rng = np.random.default_rng(3)
    p = rng.beta(1, 3, 30_000)
    new = rng.random(30_000) < 0.5
    y = rng.random(30_000) < np.where(new, p**2, p)
    # Of the new ones, for whom the probabilities are far off, one in twenty has a label.
    seen = rng.random(30_000) < np.where(new, 0.05, 1.0)
    weight = 1 / np.where(new, 0.05, 1.0)[seen]
    same = PlattCalibrator(slope=1.0, intercept=0.0, on_logit=True)
    found = judge_calibrator(same, None, p[seen], y[seen], weight=weight).incumbent_error
    plain = judge_calibrator(same, None, p[seen], y[seen]).incumbent_error
    whole = calibration_error(y, p)
    assert plain.upper < whole.value
    assert found.lower < whole.value < found.upper
    assert found.value == pytest.approx(whole.value, abs=0.02)
    alike = judge_calibrator(same, None, p, y, weight=np.full(len(p), 3.0)).incumbent_error
    assert alike == whole
    one = judge_calibrator(same, None, [0.2, 0.8], [0, 1], weight=[1.0, 2.0]).incumbent_error
    assert np.isnan(one.value)


@pytest.mark.parametrize(
    "kind", [PlattCalibrator, BetaCalibrator, IsotonicCalibrator, VennAbersCalibrator, CrossVennAbersCalibrator]
)
def test_words_are_no_scores(kind: Any) -> None:
    fitted = kind.fit(np.linspace(0.1, 0.9, 20), np.arange(20) % 2)
    with pytest.raises(InvalidInput, match=r"^score: got .*numbers"):
        fitted(["high"])
    with pytest.raises(InvalidInput, match=r"^score"):
        kind.fit(["high", "low"], [0, 1])


def test_times_that_are_missing_order_nothing() -> None:
    p = np.linspace(0.1, 0.9, 20)
    for times in (np.full(20, np.nan), ["monday"] * 20):
        with pytest.raises(InvalidInput, match="event_time"):
            refit_calibrator(p, np.arange(20) % 2, times, incumbent=None)
