"""Frozen edges. Oracles: numpy's own counts, addition over parts, a plain twin of the compiled kernel."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitok.errors import InvalidInput
from vitok.stats import FrozenEdges, count_matrix, psi
from vitok.stats.histograms import BinLayout

ANY = st.lists(
    st.one_of(st.floats(width=64), st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf])),
    min_size=1,
    max_size=80,
)


def slow_count(edges: FrozenEdges, values: Any) -> list[int]:
    counts = [0] * edges.n_bins
    for value in values:
        if math.isnan(value):
            counts[0] += 1
        elif value == -math.inf:
            counts[1] += 1
        elif value == math.inf:
            counts[-1] += 1
        else:
            counts[2 + sum(edge <= value for edge in edges.edges)] += 1
    return counts


@given(ANY, ANY, st.integers(2, 40))
@settings(max_examples=80, deadline=None)
def test_every_value_has_one_bin_and_parts_add_up(reference: list[float], current: list[float], n_bins: int) -> None:
    edges = FrozenEdges.from_values(reference, n_bins=n_bins)
    counts = edges.count(current)
    assert counts.dtype == np.int64
    assert counts.tolist() == slow_count(edges, current)
    assert (edges.count(current[::2]) + edges.count(current[1::2])).tolist() == counts.tolist()
    assert len(edges.labels()) == len(edges.centers) == edges.n_bins == len(counts)
    assert len(set(edges.edges)) == len(edges.edges)
    again = FrozenEdges.from_dict(json.loads(json.dumps(edges.to_dict(), allow_nan=False)))
    assert again.edges == edges.edges
    assert again.count(current).tolist() == counts.tolist()


def test_quantile_bins_hold_equal_shares() -> None:
    values = np.random.default_rng(0).lognormal(size=32_000)
    edges = FrozenEdges.from_values(values)
    counts = edges.count(values)[2:-1]
    assert len(counts) == 32
    assert counts.min() >= 999
    assert counts.max() <= 1001


def test_point_masses_have_their_own_bin() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate((np.zeros(500), rng.exponential(size=500) + 0.5))
    edges = FrozenEdges.from_values(values, n_bins=10)
    at = edges.labels().index("x = 0")
    assert edges.count(values)[at] == 500
    assert edges.count([0.0, -0.0, 1e-300, -1e-300])[at] == 2


def test_the_cut_above_zero_is_a_normal_number() -> None:
    edges = FrozenEdges.from_values([0.0, 0.0, 1.0, 1.0])
    assert edges.edges[1] == np.finfo(np.float64).tiny


def test_discrete_values_each_have_a_bin_and_unseen_ones_show() -> None:
    values = np.tile([0.0, 1.0, 2.0], 100)
    edges = FrozenEdges.from_values(values)
    assert [name for name in edges.labels() if "=" in name] == ["x = 0", "x = 1", "x = 2"]
    reference = edges.count(values)
    assert reference.sum() == reference.max() * 3
    unseen = edges.count(np.append(values, 0.5))
    assert unseen[edges.labels().index("0 < x < 1")] == 1
    assert psi(reference, edges.count(values)).n_bins == 3


def test_centers_and_scale_of_the_reference() -> None:
    edges = FrozenEdges.from_values(np.arange(100.0), n_bins=4)
    assert edges.centers[2:-1] == pytest.approx((12.0, 37.0, 62.0, 87.0))
    assert edges.scale == 49.5
    assert FrozenEdges.from_values([0.0] * 90 + [1.0] * 10).scale == 1.0
    assert FrozenEdges.from_values([3.0, 3.0]).scale == 1.0


def test_reference_without_finite_values() -> None:
    edges = FrozenEdges.from_values([math.nan, math.inf])
    assert edges.labels() == ("null", "-inf", "finite", "+inf")
    assert edges.count([1.0, -math.inf, math.inf, math.nan, 2.0]).tolist() == [1, 1, 2, 1]


def test_one_row_and_no_rows() -> None:
    edges = FrozenEdges.from_values([5.0])
    assert edges.count([4.0, 5.0, 6.0])[2:-1].tolist() == [1, 2]
    assert edges.count([]).tolist() == [0] * edges.n_bins


def test_largest_floats() -> None:
    top = np.finfo(np.float64).max
    edges = FrozenEdges.from_values([top, top, -top, -top], n_bins=4)
    assert all(math.isfinite(edge) for edge in edges.edges)
    assert edges.count([top, -top]).sum() == 2
    assert json.dumps(edges.to_dict(), allow_nan=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_matrix_equals_columns(dtype: Any, order: Any) -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(500, 4)) * 10
    reference[:, 1] = np.round(reference[:, 1] / 10)
    reference[:, 2] = math.nan
    edges = [FrozenEdges.from_values(column, n_bins=8) for column in reference.T]
    X = rng.normal(size=(300, 4)) * 12
    if dtype is not np.int64:
        X[:3, 0] = [math.nan, math.inf, -math.inf]
    X = np.asarray(X.astype(dtype), order=order)
    counts = count_matrix(edges, X)
    assert [c.tolist() for c in counts] == [slow_count(e, x) for e, x in zip(edges, X.T.astype(float), strict=True)]
    assert [c.tolist() for c in counts] == [e.count(x).tolist() for e, x in zip(edges, X.T, strict=True)]


def test_matrix_of_nothing() -> None:
    edges = FrozenEdges.from_values([1.0, 2.0])
    assert [counts.sum() for counts in count_matrix([edges, edges], np.empty((0, 2)))] == [0, 0]
    assert count_matrix([], np.empty((3, 0))) == ()


def test_bad_input_is_named() -> None:
    edges = FrozenEdges.from_values([1.0, 2.0])
    with pytest.raises(InvalidInput, match="at least one value"):
        FrozenEdges.from_values([])
    with pytest.raises(InvalidInput, match="n_bins"):
        FrozenEdges.from_values([1.0], n_bins=1)
    with pytest.raises(InvalidInput, match="one dimension"):
        edges.count([[1.0]])
    with pytest.raises(InvalidInput, match=r"shape \(n, 1\)"):
        count_matrix([edges], np.ones((2, 2)))
    data = edges.to_dict()
    broken_parts: list[dict[str, Any]] = [{**data, "edges": [2.0, 1.0]}, {**data, "centers": []}, {"edges": []}]
    for broken in broken_parts:
        with pytest.raises(InvalidInput):
            FrozenEdges.from_dict(broken)


@given(ANY, ANY)
@settings(max_examples=60, deadline=None)
def test_compiled_counts_of_guarded_edges_equal_the_slow_ones(reference: list[float], current: list[float]) -> None:
    edges = FrozenEdges.from_values(reference, n_bins=8, guarded=True)
    layout = BinLayout([edges, edges])
    expected = slow_count(edges, current)
    assert layout.count_columns([current, current]).tolist() == expected * 2
    assert layout.count(np.array([current, current]).T).tolist() == expected * 2
    assert len(edges.labels()) == edges.n_bins


def test_guards_lie_beyond_the_reference_on_both_sides() -> None:
    values = np.random.default_rng(0).lognormal(size=1_000)
    plain, guarded = FrozenEdges.from_values(values), FrozenEdges.from_values(values, guarded=True)
    assert set(plain.edges) < set(guarded.edges)
    assert guarded.edges[-1] == pytest.approx(values.max() * 1_000)
    assert guarded.edges[0] == pytest.approx(values.min() / 1_000)
    counts = guarded.count(values)
    for factor in (0.01, 100.0):
        assert (guarded.count(factor * values)[counts == 0]).sum() > 600


def test_columns_that_lie_apart() -> None:
    edges = FrozenEdges.from_values(np.arange(100.0))
    layout = BinLayout([edges])
    strided = np.arange(200.0).reshape(100, 2)[:, 0]
    assert layout.count_columns([strided]).tolist() == edges.count(strided).tolist()
    assert layout.count_columns([np.arange(50)]).tolist() == edges.count(np.arange(50)).tolist()
    assert [part.tolist() for part in layout.split(edges.count([1.0]))] == [edges.count([1.0]).tolist()]
    with pytest.raises(InvalidInput, match="columns"):
        layout.count_columns([])
    with pytest.raises(InvalidInput, match="one dimension"):
        layout.count_columns([np.ones((2, 2))])


@pytest.mark.parametrize("n_edges", [0, 1, 31, 32, 33, 127, 128, 129, 160, 500, 1_000])
def test_any_number_of_edges_is_counted_as_by_numpy(n_edges: int) -> None:
    rng = np.random.default_rng(n_edges)
    cuts = np.unique(rng.normal(size=n_edges))
    frozen = FrozenEdges(edges=tuple(cuts.tolist()), centers=(0.0,) * (n_edges + 4), scale=1.0)
    values = np.concatenate([rng.normal(size=2_000), cuts, [np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, -0.0]])
    counts = BinLayout([frozen, frozen]).count(np.column_stack([values, values])).reshape(2, -1)
    within = np.bincount(np.searchsorted(cuts, values[np.isfinite(values)], side="right"), minlength=n_edges + 1)
    assert counts[0].tolist() == counts[1].tolist() == [1, 1, *within.tolist(), 1]
