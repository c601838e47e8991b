"""Drift: figures against oracles, the null law where nothing changed, and the rule apart from the statistic."""

import json

import numpy as np
import pytest

from vitok.clock import DAY
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.monitoring import DriftRule, ReferenceProfile, WindowCounts, drift, frame_drift
from vitok.stats import LatencyHistogram, count_matrix, psi


def windowed(profile: ReferenceProfile, X: np.ndarray, probability: np.ndarray) -> WindowCounts:
    return WindowCounts(
        model_version="fraud/1",
        start=0,
        end=DAY,
        n=len(X),
        n_hours=24,
        digest=profile.digest,
        counts=np.concatenate(count_matrix(profile.edges, np.column_stack([X, probability]))),
        actions={},
        routes={},
        feature_status={},
        n_probability=len(X),
        mean_probability=float(np.mean(probability)) if len(X) else float("nan"),
        latency=LatencyHistogram(),
    )


def world(seed: int, n: int, f: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.lognormal(3, 0.8, (n, f)), rng.beta(1, 50, n)


NAMES = ["a", "b", "c", "d", "e", "f"]


def made(n: int = 20_000, **more: object) -> ReferenceProfile:
    X, p = world(0, n)
    return ReferenceProfile.fit(NAMES, X, p, start=0, end=DAY, **more)  # type: ignore[arg-type]


def test_figures_are_those_of_the_statistics() -> None:
    profile = made()
    X, p = world(1, 5_000)
    X[:, 2] *= 1.4
    report = drift(profile, windowed(profile, X, p))
    assert report.features[0].name == "c"
    # Oracle: the formula written out, over the bins that are used on either side.
    r, q = profile.counts_of("c"), profile.edges[2].count(X[:, 2])
    used = (r > 0) | (q > 0)
    share_r = np.where(r > 0, r, 0.5)[used] / r.sum()
    share_q = np.where(q > 0, q, 0.5)[used] / q.sum()
    value = ((share_q - share_r) * np.log(share_q / share_r)).sum()
    found = report.of("c")
    assert found.psi == pytest.approx(value, rel=1e-12)
    assert found.psi == psi(r, q).value
    assert found.null_mean == pytest.approx((used.sum() - 1) * (1 / 20_000 + 1 / 5_000))
    assert found.effect == pytest.approx(found.psi - found.null_mean)
    # A factor of 1.4 moves a lognormal by 0.4 of its mean; what leaves the last bin, whose place is frozen, is lost.
    iqr = np.subtract(*np.quantile(world(0, 20_000)[0][:, 2], [0.75, 0.25]))
    assert 0.7 < found.shift / (0.4 * np.exp(3 + 0.32) / iqr) < 1.0
    assert json.dumps(report.to_dict())
    assert "c    " in str(report)


def test_without_change_p_values_are_uniform_and_effects_vanish() -> None:
    effects, p_values = [], []
    for seed in range(60):
        X, p = world(1_000 + seed, 3_000)
        profile = made()
        report = drift(profile, windowed(profile, X, p))
        effects += [item.effect for item in report.features]
        p_values += [item.p_value for item in report.features]
        assert DriftRule().judge(report).features == ()
    assert np.mean(effects) < 0.002
    # 360 p-values; the same reference is used throughout, hence the wide margin around 5 %.
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


@pytest.mark.parametrize("n", [500, 1_000, 10_000])
def test_small_windows_are_no_drift(n: int) -> None:
    profile = made()
    for seed in range(20):
        X, p = world(seed + 50, n)
        verdict = DriftRule().judge(drift(profile, windowed(profile, X, p)))
        assert verdict.judged
        assert verdict.features == ()
        assert not verdict.prediction


def test_nulls_are_drift_that_only_the_index_sees() -> None:
    profile = made()
    X, p = world(2, 4_000)
    X[:400, 1] = np.nan
    X[:, 3] = np.nan
    report = drift(profile, windowed(profile, X, p))
    assert DriftRule().judge(report).features == ("d", "b")
    assert report.of("b").null_share == 0.1
    assert report.of("b").reference_null_share == 0.0
    assert report.of("b").shift < 0.02
    assert report.of("d").shift == 0.0


def test_a_modest_move_is_seen_by_the_shift_alone() -> None:
    profile = made()
    X, p = world(3, 4_000)
    X[:, 0] *= 1.15
    report = drift(profile, windowed(profile, X, p))
    assert report.of("a").effect < 0.1
    assert DriftRule().judge(report).features == ("a",)
    assert DriftRule(min_shift=np.inf).judge(report).features == ()


def test_prediction_drift_is_told_apart() -> None:
    profile = made()
    X, p = world(4, 4_000)
    report = drift(profile, windowed(profile, X, np.minimum(2 * p, 1.0)))
    verdict = DriftRule().judge(report)
    assert verdict.prediction
    assert verdict.features == ()
    assert "probability" not in [item.name for item in report.features]
    assert report.prediction.adjusted_p_value == report.prediction.p_value
    assert str(verdict).startswith("drifted: probability PSI")


def test_what_days_differ_by_anyway_is_no_drift() -> None:
    rng = np.random.default_rng(5)
    days = np.repeat(np.arange(7), 2_000)
    X = rng.normal(size=(14_000, 1)) + 0.5 * (days[:, None] == 6)
    p = rng.random(14_000)
    knowing = ReferenceProfile.fit(["x"], X, p, start=0, end=DAY, event_time=days * DAY)
    unknowing = ReferenceProfile.fit(["x"], X, p, start=0, end=DAY)
    sunday, far = rng.normal(size=(2_000, 1)) + 0.5, rng.normal(size=(2_000, 1)) + 1.0
    for profile, expected in ((knowing, ()), (unknowing, ("x",))):
        assert DriftRule().judge(drift(profile, windowed(profile, sunday, p[:2_000]))).features == expected
        assert DriftRule().judge(drift(profile, windowed(profile, far, p[:2_000]))).features == ("x",)


def test_ignored_features_and_weights() -> None:
    profile = made(ignored=["c"])
    X, p = world(6, 4_000)
    X[:, [1, 2, 4]] *= [[1.3, 9.0, 1.6]]
    window = windowed(profile, X, p)
    report = drift(profile, window)
    assert report.ignored == ("c",)
    assert [item.name for item in report.features][:2] == ["e", "b"]
    weighted = drift(profile, window, weights={"b": 1.0, "e": 0.01})
    assert [item.name for item in weighted.features][:2] == ["b", "e"]
    assert weighted.of("b").effect == report.of("b").effect
    with pytest.raises(NotFound):
        report.of("c")
    with pytest.raises(InvalidInput, match="weights"):
        drift(profile, window, weights={"b": -1.0})


def test_empty_and_tiny_windows_are_not_judged() -> None:
    profile = made()
    for n in (0, 1, 199):
        X, p = world(7, n)
        report = drift(profile, windowed(profile, X, p))
        verdict = DriftRule().judge(report)
        assert not verdict.judged
        assert verdict.features == ()
        assert not any(DriftRule().drifted(item) for item in report.features)
        assert str(report)
    assert report.n_current == 199


def test_other_bins_are_refused() -> None:
    profile, other = made(), made(1_000)
    X, p = world(8, 300)
    with pytest.raises(Conflict, match="load the profile"):
        drift(other, windowed(profile, X, p))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_effect": -1.0},
        {"min_shift": np.nan},
        {"false_discovery_rate": 1.0},
        {"min_n": 0},
        {"beyond_ordinary": 0.5},
        {"leave": 0.0},
    ],
)
def test_rule_refuses_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        DriftRule(**wrong)  # type: ignore[arg-type]


def test_what_has_drifted_stays_drift_until_it_is_well_below_the_bounds() -> None:
    profile = made()
    X, p = world(3, 4_000)
    X[:, 0] *= 1.085
    report = drift(profile, windowed(profile, X, p))
    low, high = DriftRule().bounds(report.of("a"))
    assert 0.8 * high < report.of("a").shift < high
    assert report.of("a").effect < low
    assert DriftRule().judge(report).features == ()
    assert DriftRule().judge(report, before=["a"]).features == ("a",)
    assert DriftRule(leave=1.0).judge(report, before=["a"]).features == ()


def test_a_frame_is_measured_as_its_window_is() -> None:
    profile = made()
    X, p = world(4, 3_000)
    report, other = frame_drift(profile, [*X.T, p]), drift(profile, windowed(profile, X, p))
    assert report.features == other.features
    assert [found.name for found in report.of("a").statistics] == [
        "psi", "ks", "wasserstein", "jensen_shannon", "hellinger", "chi_square",
    ]  # fmt: skip
    with pytest.raises(NotFound, match="psi"):
        report.of("a").statistic("energy")
    with pytest.raises(InvalidInput, match="one length"):
        frame_drift(profile, [*X.T, p[:-1]])
