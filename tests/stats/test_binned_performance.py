"""Oracle: the same estimate from the rows themselves, which the counts must approach within their stated bound."""

import json
import math

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.stats import FrozenEdges
from vitok.stats.binned_performance import ScoreBins, score_edges
from vitok.stats.performance_estimation import expected_performance


@pytest.mark.parametrize(("a", "b", "n"), [(0.05, 5.0, 100_000), (2.0, 2.0, 20_000), (0.3, 3.0, 40_000)])
@pytest.mark.parametrize("shift", [1.0, 1.5])
def test_counts_say_what_rows_say(a: float, b: float, n: int, shift: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(a, b, n)
    y = rng.random(n) < p
    now = rng.beta(a * shift, b, n // 4)
    edges = score_edges(p, n_bins=32, thresholds=(0.1,))
    bins = ScoreBins.fit(edges, p, y)
    found = bins.expected(edges.count(now), threshold=0.1)
    rows = expected_performance(now, now, flagged=now >= 0.1)
    assert found.n_obs == len(now)
    for metric in found.estimates:
        exact = rows[metric.name]
        off = abs(metric.value - exact.value)
        assert off <= metric.resolution + 4 * metric.calibration_error + 1e-12, metric.name
        # What is lost in practice: less than the labels' own noise, twice that in average precision.
        assert off <= 2.5 * math.hypot(metric.label_error, metric.calibration_error), metric.name
        assert metric.label_error == pytest.approx(exact.label_error, rel=0.25)


def test_without_the_noise_of_labels_the_bound_holds_alone() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 4.0, 200_000)
    y = rng.random(200_000) < p
    edges = FrozenEdges.from_values(p, n_bins=8)
    bins = ScoreBins.fit(edges, p, y)
    exact = {name: expected_performance(p, p)[name].value for name in ("roc_auc", "average_precision", "brier")}
    found = bins.expected(edges.count(p))
    for name, value in exact.items():
        assert abs(found[name].value - value) < 0.006
        assert found[name].resolution > 0.006
    # The order within a cell comes from the labelled rows; taken at random it would cost twenty times as much.
    random = np.array(bins.rate)[np.searchsorted(edges.edges, p, side="right")]
    assert expected_performance(random, random)["average_precision"].value < exact["average_precision"] - 0.02


def test_counts_of_windows_add_up() -> None:
    rng = np.random.default_rng(2)
    p = rng.beta(1, 9, 5_000)
    edges = score_edges(p)
    bins = ScoreBins.fit(edges, p, rng.random(5_000) < p)
    hours = [edges.count(part) for part in np.split(p, 10)]
    whole, summed = bins.expected(edges.count(p)), bins.expected(np.sum(hours, axis=0))
    assert [one.value for one in whole.estimates] == [one.value for one in summed.estimates]


def test_fine_cuts_where_the_positives_are() -> None:
    p = np.random.default_rng(3).beta(0.05, 5.0, 50_000)
    coarse, fine = FrozenEdges.from_values(p, n_bins=32), score_edges(p, n_bins=32)
    y = np.random.default_rng(4).random(50_000) < p
    bounds = [
        ScoreBins.fit(edges, p, y).expected(edges.count(p))["average_precision"].resolution for edges in (coarse, fine)
    ]
    assert bounds[1] < bounds[0] / 4


def test_empty_and_wrong_counts() -> None:
    p = np.linspace(0.01, 0.99, 200)
    edges = score_edges(p, n_bins=4)
    bins = ScoreBins.fit(edges, p, p > 0.5)
    empty = bins.expected(np.zeros(edges.n_bins))
    assert math.isnan(empty["roc_auc"].value)
    nulls = edges.count([math.nan, math.inf])
    assert bins.expected(nulls).n_obs == 0
    with pytest.raises(InvalidInput, match="counts"):
        bins.expected([1, 2])
    with pytest.raises(InvalidInput, match="thresholds"):
        bins.expected(edges.count(p), threshold=0.123)
    with pytest.raises(InvalidInput, match="both classes"):
        ScoreBins.fit(edges, p, np.zeros(200))
    with pytest.raises(InvalidInput, match="probability"):
        score_edges([])


def test_one_class_of_a_cell_takes_what_its_neighbours_say() -> None:
    p = np.repeat([0.1, 0.5, 0.9], 100)
    y = np.concatenate((np.zeros(100), np.tile([0, 1], 50), np.ones(100)))
    edges = FrozenEdges.from_values(p, n_bins=3)
    found = ScoreBins.fit(edges, p, y).expected(edges.count(p))
    assert found["positive_rate"].value == pytest.approx(0.5)
    assert found["brier"].value == pytest.approx(((p - y) ** 2).mean(), abs=1e-12)


def test_round_trip_through_json() -> None:
    p = np.linspace(0.01, 0.99, 300)
    edges = score_edges(p, n_bins=6)
    bins = ScoreBins.fit(edges, p, p > 0.4)
    assert ScoreBins.from_dict(json.loads(json.dumps(bins.to_dict()))) == bins
    with pytest.raises(InvalidInput, match="parts"):
        ScoreBins.from_dict({})
    with pytest.raises(InvalidInput, match="cuts"):
        ScoreBins.from_dict({**bins.to_dict(), "rate": [0.1]})


def test_a_window_without_rows_has_all_metrics_undefined() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(500)
    edges = score_edges(p, thresholds=(0.5,))
    bins = ScoreBins.fit(edges, p, rng.random(500) < p)
    full = bins.expected(edges.count(p), threshold=0.5)
    found = bins.expected(np.zeros(edges.n_bins), threshold=0.5)
    assert [one.name for one in found.estimates] == [one.name for one in full.estimates]
    assert all(math.isnan(one.value) for one in found.estimates)
