"""Data, prediction, label and concept drift told apart; slices and joint drift. Oracles: identities and simulation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as oracle
from sklearn.metrics import roc_auc_score

from vitok.clock import DAY
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.monitoring import (
    DriftRule,
    MaturedLabels,
    RandomFeatures,
    ReferenceProfile,
    SliceCounts,
    WatchRules,
    WindowCounts,
    by_quantile,
    concept_drift,
    diagnose,
    domain_classifier,
    explain,
    label_drift,
    moved_slices,
    onset,
)
from vitok.monitoring.conditions import drift_findings
from vitok.monitoring.cross_fitting import delong
from vitok.stats import FrozenEdges, LatencyHistogram, psi

COUNTRIES = ("AT", "CH", "DE", "NL")


def rows(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    return X, 1 / (1 + np.exp(3.5 - X[:, 0])), rng.choice(COUNTRIES, n, p=(0.4, 0.1, 0.3, 0.2))


@pytest.fixture(scope="module")
def profile() -> ReferenceProfile:
    X, p, country = rows(0, 20_000)
    return ReferenceProfile.fit(["a", "b", "c"], X, p, start=0, end=DAY, slices={"country": country})


def counted(profile: ReferenceProfile, X: np.ndarray, p: np.ndarray, country: np.ndarray) -> tuple[SliceCounts, ...]:
    return tuple(
        SliceCounts(
            column="country",
            value=one,
            n=int((country == one).sum()),
            counts=profile.layout.count(np.column_stack([X, p])[country == one]),
        )
        for one in COUNTRIES
    )


def window(profile: ReferenceProfile, X: np.ndarray, p: np.ndarray) -> WindowCounts:
    joint = profile.joint
    return WindowCounts(
        model_version="m/1",
        start=DAY,
        end=2 * DAY,
        n=len(X),
        n_hours=24,
        digest=profile.digest,
        counts=profile.layout.count(np.column_stack([X, p])),
        actions={},
        routes={},
        feature_status={},
        n_probability=len(X),
        mean_probability=float(p.mean()),
        latency=LatencyHistogram(),
        joint=np.zeros(0) if joint is None else joint.sums(profile.edges[:-1], profile.counts[:-1], X),
    )


def test_the_parts_of_slices_add_up_exactly(profile: ReferenceProfile) -> None:
    X, p, country = rows(1, 4_000)
    X[:, 1] = np.where(country == "CH", X[:, 1] + 1.5, X[:, 1])
    report = explain(profile, counted(profile, X, p, country), column="b", by="country")
    assert report.total == pytest.approx(sum(one.contribution for one in report.slices), rel=1e-12)
    # Oracle: Jeffreys divergence of the joint counts, each used cell half a count more, by `psi` itself.
    at = profile.columns.index("b")
    first, last = profile.layout.offsets[at : at + 2]
    reference = np.concatenate([profile.slices["country"][one][first:last] for one in profile.slices["country"]])
    found = {one.value: one.counts[first:last] for one in counted(profile, X, p, country)}
    current = np.concatenate([found.get(one, np.zeros(last - first)) for one in profile.slices["country"]])
    used = (reference > 0) | (current > 0)
    assert report.total == pytest.approx(psi(reference[used] + 0.5, current[used] + 0.5).value, rel=1e-9)
    assert report.explaining is not None
    assert report.explaining.value == "CH"
    assert "b by country" in str(report)
    still = explain(profile, counted(profile, *rows(2, 4_000)), column="b", by="country")
    assert still.explaining is None
    with pytest.raises(NotFound):
        explain(profile, (), column="b", by="device")
    with pytest.raises(NotFound):
        explain(profile, (), column="z", by="country")
    wrong = SliceCounts(column="country", value="CH", n=1, counts=np.zeros(3, dtype=np.int64))
    with pytest.raises(Conflict):
        explain(profile, [wrong], column="b", by="country")


def test_a_change_of_the_mix_is_told_from_a_change_within(profile: ReferenceProfile) -> None:
    X, p, country = rows(3, 8_000)
    kept = (country != "DE") | (np.random.default_rng(0).random(8_000) < 0.2)
    report = explain(profile, counted(profile, X[kept], p[kept], country[kept]), column="b", by="country")
    assert report.mixture > 0.1
    assert sum(max(0.0, one.conditional - one.null_mean) for one in report.slices) < 0.02
    assert moved_slices(profile, counted(profile, X[kept], p[kept], country[kept])) == ()


def test_slices_that_did_not_move_are_not_found(profile: ReferenceProfile) -> None:
    for seed in range(10, 25):
        assert moved_slices(profile, counted(profile, *rows(seed, 2_000))) == ()
    X, p, country = rows(4, 4_000)
    X[country == "CH", 2] *= 3.0
    found = moved_slices(profile, counted(profile, X, p, country))
    assert [(one.value, one.column) for one in found] == [("CH", "c")]


def test_each_drift_has_its_name(profile: ReferenceProfile) -> None:
    X, p, country = rows(5, 5_000)
    slices = counted(profile, X, p, country)
    quiet = diagnose(profile, window(profile, X, p), slices=slices)
    assert quiet.names == ()
    assert str(quiet).endswith("as it was")
    assert diagnose(profile, window(profile, X + np.array([0.0, 1.0, 0.0]), p)).names == ("data drift",)
    assert diagnose(profile, window(profile, X, np.minimum(3 * p, 1.0))).names == ("prediction drift",)
    # A fault explains its column, which is then no drift of the data.
    broken = X.copy()
    broken[:, 1] *= 100
    faulty = diagnose(profile, window(profile, broken, p), since=DAY)
    assert faulty.names == ("data quality",)
    assert faulty.columns == ("b",)
    assert "since" in str(faulty)
    assert json.dumps(faulty.to_dict())
    within = X.copy()
    within[country == "CH", 2] *= 1.8
    found = diagnose(profile, window(profile, within, p), slices=counted(profile, within, p, country))
    assert (found.names, found.where) == (("slice drift",), "country = CH")


def labelled(seed: int, n: int, *, odds: float = 1.0, flipped: bool = False) -> MaturedLabels:
    rng = np.random.default_rng(seed)
    x, side = rng.normal(size=n), rng.choice(["left", "right"], n).astype(object)
    p = 1 / (1 + np.exp(3.5 - x - (side == "left")))
    truth = 1 / (1 + np.exp(3.5 - x - (side == "right"))) if flipped else p * odds
    day = np.arange(n) % 14
    return MaturedLabels(y=(rng.random(n) < truth) * 1.0, probability=p, groups={"side": side}, day=day)


def test_concept_drift_without_a_change_keeps_its_level() -> None:
    reference = labelled(0, 40_000)
    found = [concept_drift(labelled(seed, 4_000), reference=reference).p_value for seed in range(1, 81)]
    # Least adjusted p-values are uniform at most; 80 of them.
    assert np.mean(np.array(found) < 0.05) < 0.12


def test_concept_and_label_drift_are_told_apart(profile: ReferenceProfile) -> None:
    X, p, _ = rows(6, 5_000)
    seen = window(profile, X, p)
    reference = labelled(0, 40_000)
    same, flipped, more = labelled(1, 8_000), labelled(2, 8_000, flipped=True), labelled(3, 8_000, odds=1.6)
    base = float(reference.y.mean())
    names = []
    for labels in (same, flipped, more):
        concept = concept_drift(labels, reference=reference)
        label = label_drift(int(labels.y.sum()), np.ones(len(labels.y)), base_rate=base, base_n=40_000)
        names.append(diagnose(profile, seen, concept=concept, label=label).names)
    assert names == [(), ("concept drift",), ("concept drift", "label drift")]
    # Where the cases changed and the model knows it, labels move and residuals stay.
    risky = MaturedLabels(y=reference.y, probability=reference.probability, groups={})
    chosen = (reference.probability > 0.05) | (np.arange(40_000) % 5 == 0)
    shifted = MaturedLabels(y=risky.y[chosen], probability=risky.probability[chosen], groups={})
    label = label_drift(int(shifted.y.sum()), np.ones(int(chosen.sum())), base_rate=base, base_n=40_000)
    assert diagnose(profile, seen, concept=concept_drift(shifted), label=label).names == ("label drift",)
    with pytest.raises(InvalidInput, match="probability"):
        concept_drift(MaturedLabels(y=np.ones(2), probability=np.ones(3), groups={}))


def test_label_drift_keeps_its_level_with_late_labels() -> None:
    rng = np.random.default_rng(1)
    arrived = rng.random(6_000)
    p_values = []
    for _ in range(400):
        base = rng.binomial(50_000, 0.02) / 50_000
        happened = int((rng.random(6_000) < 0.02 * arrived).sum())
        p_values.append(label_drift(happened, arrived, base_rate=base, base_n=50_000).p_value)
    assert oracle.kstest(p_values, "uniform").pvalue > 1e-3
    assert np.isnan(label_drift(0, [], base_rate=0.1, base_n=10).ratio)
    for wrong in ({"base_rate": 2.0}, {"base_n": 0}, {"dispersion": 0.5}):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            label_drift(1, [1.0], **{"base_rate": 0.1, "base_n": 10, **wrong})  # type: ignore[arg-type]
    assert by_quantile([np.nan, 0.0, 5.0], [1.0, 2.0]).tolist() == ["null", "below 1", "from 2"]


def test_random_features_keep_their_level_and_see_what_marginals_do_not() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(8_000, 5))
    edges = [FrozenEdges.from_values(column) for column in reference.T]
    counts = [frozen.count(column) for frozen, column in zip(edges, reference.T, strict=True)]
    features = RandomFeatures.fit(edges, counts, reference, n_features=128)
    same = [rng.normal(size=(1_000, 5)) for _ in range(200)]
    p_values = np.array([features.test(features.sums(edges, counts, X), 1_000).p_value for X in same])
    assert 0.01 < np.mean(p_values < 0.05) < 0.1
    turned = rng.normal(size=(1_000, 5))
    turned[:, 1] = 0.9 * turned[:, 0] + np.sqrt(1 - 0.81) * turned[:, 1]
    found = features.test(features.sums(edges, counts, turned), 1_000)
    assert found.p_value < 1e-6
    assert max(oracle.ks_2samp(turned[:, at], reference[:, at]).statistic for at in range(5)) < 0.06
    halves = features.sums(edges, counts, turned[:300]) + features.sums(edges, counts, turned[300:])
    assert halves == pytest.approx(features.sums(edges, counts, turned))
    again = RandomFeatures.from_dict(json.loads(json.dumps(features.to_dict()))).test(halves, 1_000)
    assert again.discrepancy == pytest.approx(found.discrepancy)
    assert features.test(np.zeros(128), 0).p_value == 1.0
    with pytest.raises(InvalidInput, match="two columns"):
        RandomFeatures.fit(edges[:1], counts[:1], reference[:, :1])


def together(rng: np.random.Generator, n: int, *, rho: float, columns: int = 12) -> np.ndarray:
    """Draws standard normal columns, of which the first two have a correlation of rho."""
    X = rng.normal(size=(n, columns))
    X[:, 1] = rho * X[:, 0] + np.sqrt(1 - rho**2) * X[:, 1]
    return X


def test_one_pair_of_many_that_turns_is_found_and_named() -> None:
    rng = np.random.default_rng(5)
    names = [f"x{at}" for at in range(12)]
    time = np.repeat(np.arange(8), 2_500) * DAY
    profile = ReferenceProfile.fit(
        names, together(rng, 20_000, rho=0.0), rng.random(20_000), start=0, end=8 * DAY, event_time=time,
        n_random_features=132, ignored=["x11"],
    )  # fmt: skip
    assert profile.joint is not None
    assert ReferenceProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    # Each pair of the 11 columns that are looked at has two features or three.
    pairs, times = np.unique(profile.joint.pairs, axis=0, return_counts=True)
    assert (len(pairs), set(times.tolist()), int(pairs.max())) == (55, {2, 3}, 10)
    quiet = diagnose(profile, window(profile, together(rng, 5_000, rho=0.0), rng.random(5_000)))
    assert quiet.names == ()
    found = diagnose(profile, window(profile, together(rng, 5_000, rho=0.9), rng.random(5_000)))
    assert found.names == ("joint drift",)
    assert set(found.columns) == {"x0", "x1"}
    assert "x0 with x1" in str(found)
    joint = found.data.joint
    assert joint is not None
    assert joint.pair_effect > 0.05 > joint.effect
    # The same as alert: it fires as data drift and says which pair.
    findings = drift_findings(found.data, WatchRules())
    assert (findings[0].rule.name, findings[0].firing) == ("data_drift", True)
    assert "x0 with x1" in findings[0].reason
    assert not drift_findings(found.data, WatchRules(), faulty=["x0"])[0].firing
    # Where a feature itself has moved, that is what is said.
    moved = together(rng, 5_000, rho=0.9) + np.eye(12)[3] * 2
    assert diagnose(profile, window(profile, moved, rng.random(5_000))).names == ("data drift",)


def test_pairs_keep_their_level_and_ordinary_days_are_learnt() -> None:
    rng = np.random.default_rng(6)
    reference = together(rng, 8_000, rho=0.3, columns=4)
    edges = [FrozenEdges.from_values(column) for column in reference.T]
    counts = [frozen.count(column) for frozen, column in zip(edges, reference.T, strict=True)]
    day = np.arange(8_000) // 1_000
    features = RandomFeatures.fit(edges, counts, reference, n_features=48, day=day)
    fresh = (together(rng, 1_000, rho=0.3, columns=4) for _ in range(200))
    p_values = np.array([features.test(features.sums(edges, counts, X), 1_000).pair_p_value for X in fresh])
    # Bonferroni over features that depend on each other: at most what was asked for.
    assert np.mean(p_values < 0.05) < 0.09
    assert features.ordinary[0] < 0.005
    assert features.ordinary[1] < 0.05
    weekend = reference.copy()
    weekend[day == 6] = together(rng, 1_000, rho=0.95, columns=4)
    learnt = RandomFeatures.fit(edges, counts, weekend, n_features=48, day=day)
    another = learnt.test(learnt.sums(edges, counts, together(rng, 1_000, rho=0.95, columns=4)), 1_000)
    assert another.pair_p_value < 1e-6
    assert not DriftRule().drifted_together(another)
    old = {name: value for name, value in learnt.to_dict().items() if name not in ("variances", "ordinary")}
    assert RandomFeatures.from_dict(old).test(np.zeros(48), 1_000).pair == ()


def test_domain_classifier_keeps_its_level_and_names_the_columns() -> None:
    rng = np.random.default_rng(3)
    p_values = [
        domain_classifier(["a", "b"], rng.normal(size=(300, 2)), rng.normal(size=(200, 2)), seed=seed).p_value
        for seed in range(40)
    ]
    assert np.mean(np.array(p_values) < 0.05) <= 0.15
    a, b = rng.normal(size=(1_500, 3)), rng.normal(size=(1_500, 3))
    b[:, 2] = 0.95 * b[:, 1] + np.sqrt(1 - 0.95**2) * b[:, 2]
    found = domain_classifier(["a", "b", "c"], a, b)
    assert found.auc > 0.75
    assert {name for name, _ in found.features[:2]} == {"b", "c"}
    with pytest.raises(InvalidInput, match="at least 8 rows"):
        domain_classifier(["a"], [[1.0]], [[2.0]])
    with pytest.raises(InvalidInput, match="shape"):
        domain_classifier(["a", "b"], a, b)
    with pytest.raises(InvalidInput, match="array of numbers"):
        domain_classifier(["a"], [["x"]] * 20, a[:, :1])
    with pytest.raises(InvalidInput, match="names"):
        domain_classifier([], a, b)


def test_delong_equals_scikit_learn_and_the_normal_law() -> None:
    rng = np.random.default_rng(4)
    negative, positive = np.round(rng.normal(size=400), 1), np.round(rng.normal(0.3, 1, 300), 1)
    auc, _ = delong(negative, positive)
    y = np.repeat([0, 1], [400, 300])
    assert auc == pytest.approx(roc_auc_score(y, np.concatenate([negative, positive])), rel=1e-12)
    drawn = [delong(rng.normal(size=100), rng.normal(size=80)) for _ in range(1_000)]
    level = np.mean([area - 0.5 > 1.6449 * math.sqrt(variance) for area, variance in drawn])
    assert 0.03 < level < 0.075


def test_what_two_folds_share_by_chance_makes_no_drift() -> None:
    rng = np.random.default_rng(11)
    p_values = [
        domain_classifier(list("abc"), rng.normal(size=(120, 3)), rng.normal(size=(90, 3)), seed=seed).p_value
        for seed in range(150)
    ]
    # With DeLong's variance as it is, three times as many as promised are below 0.01.
    assert np.mean(np.array(p_values) < 0.01) <= 0.02
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


def test_onset_goes_back_to_the_first_day(tmp_path: Path, traffic: type) -> None:
    from vitok.monitoring import Sketches

    world = traffic(shift=1.5, shift_day=9)
    profile = world.profile(0, 7)
    sketches = Sketches(tmp_path / "sketches.sqlite")
    for day in range(7, 12):
        sketches.add(world.day(day), profile)
    assert onset(sketches, profile, "fraud/1", 12 * DAY) == 9 * DAY
    assert onset(sketches, profile, "fraud/1", 8 * DAY) is None
    sketches.close()
