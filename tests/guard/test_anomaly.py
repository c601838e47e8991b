"""The anomaly score: against a plain numpy twin, its rate of false alarms, what it finds, and what it does not."""

import json
from typing import Any

import numpy as np
import pytest

from vitok.errors import InvalidInput
from vitok.guard import AnomalyScorer
from vitok.guard.anomaly import CANNOT_SEE
from vitok.stats import FrozenEdges, clopper_pearson

NAMES = ("amount", "count_1d", "flag", "age", "gap")


def traffic(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, n)
    gap = rng.exponential(3.0, n)
    gap[rng.random(n) < 0.1] = np.nan
    return np.column_stack([rng.lognormal(3, 1, n), rng.poisson(2.0, n), rng.random(n) < 0.02, age, gap])


def profile_of(X: np.ndarray[Any, np.dtype[np.float64]], ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    columns = []
    for name, column in zip((*NAMES, "probability"), (*X.T, X[:, 0]), strict=True):
        edges = FrozenEdges.from_values(column)
        columns.append({"name": name, **edges.to_dict(), "counts": edges.count(column).tolist()})
    return {"kind": "vitok.reference_profile/1", "n": len(X), "ignored": list(ignored), "columns": columns}


PROFILE = profile_of(traffic(5_000, 1))
SCORER = AnomalyScorer.fit(PROFILE, traffic(20_000, 2), false_alarm_rate=0.01)


def twin(profile: dict[str, Any], x: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """The surprise of each feature, as the module's text says it."""
    found = []
    for item, value in zip(profile["columns"], x, strict=False):
        edges = FrozenEdges.from_dict(item)
        counts = np.array(item["counts"])
        place = int(np.argmax(edges.count([value])))
        one = -np.log((counts[place] + 0.5) / (counts.sum() + 0.5 * len(counts)))
        if place == 2:
            mean = edges.edges[0] - edges.centers[2] if counts[2] else edges.scale
            one += 2 * np.log1p(min((edges.edges[0] - value) / mean, 1e300))
        if place == edges.n_bins - 2:
            mean = edges.centers[-2] - edges.edges[-1] if counts[-2] else edges.scale
            one += 2 * np.log1p(min((value - edges.edges[-1]) / mean, 1e300))
        found.append(float(one))
    return found


def test_as_the_plain_twin() -> None:
    X = traffic(300, 3)
    X[0, 0], X[1, 1], X[2, 3], X[3, 2], X[4, 0] = np.inf, -np.inf, -1e300, np.nan, 1e308
    scores = SCORER.score(X)
    each = [twin(PROFILE, x) for x in X]
    np.testing.assert_allclose(scores.total, [sum(one) for one in each], rtol=1e-12)
    np.testing.assert_allclose(scores.largest, [max(one) for one in each], rtol=1e-12)
    np.testing.assert_allclose(SCORER.score(X[5:].astype(np.float32)).total, scores.total[5:], rtol=1e-2)


@pytest.mark.parametrize("n_bins", [2, 8, 200, 600])
def test_few_edges_are_counted_and_many_searched_with_one_result(n_bins: int) -> None:
    X = traffic(4_000, 21)
    columns = []
    for name, column in zip(NAMES, X.T, strict=True):
        edges = FrozenEdges.from_values(column, n_bins=n_bins)
        columns.append({"name": name, **edges.to_dict(), "counts": edges.count(column).tolist()})
    profile = {"kind": "vitok.reference_profile/1", "n": len(X), "ignored": [], "columns": columns}
    # On an edge, too, both have to agree.
    asked = np.vstack([traffic(300, 22), [[item["edges"][-1] for item in columns]]])
    scores = AnomalyScorer.fit(profile, X, false_alarm_rate=0.01).score(asked)
    np.testing.assert_allclose(scores.total, [sum(twin(profile, x)) for x in asked], rtol=1e-12)


def test_the_quick_way_names_the_same_rows() -> None:
    X = traffic(5_000, 23)
    assert SCORER.odd(X) == np.flatnonzero(SCORER.score(X).flagged).tolist()
    assert SCORER.odd(X[:0]) == []
    assert SCORER.odd([[np.inf, 2.0, 0.0, 40.0, 1.0]]) == [0]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_the_share_of_false_alarms_is_kept(seed: int) -> None:
    n = 50_000
    flagged = int(SCORER.score(traffic(n, seed)).flagged.sum())
    # At most 1 % by construction, less where the two scores flag the same rows; 20,000 calibration rows move it a bit.
    found = clopper_pearson(flagged, n, confidence_level=0.999)
    assert found.lower < 0.012
    assert found.upper > 0.004


def test_what_it_finds_and_names() -> None:
    ordinary = [20.0, 2.0, 0.0, 40.0, 3.0]
    assert not SCORER.explain(ordinary).flagged
    cases = {
        "amount": (1e7, "far"),
        "count_1d": (-1.0, "unseen"),
        "age": (np.nan, "null"),
        "gap": (np.inf, "infinite"),
        "flag": (0.5, "unseen"),
    }
    for name, (value, reason) in cases.items():
        x = list(ordinary)
        x[NAMES.index(name)] = value
        found = SCORER.explain(x)
        assert found.flagged, name
        assert (found.features[0].name, found.features[0].reason) == (name, reason)
        assert found.p_value <= 0.01
        assert name in str(found)
    # Nothing odd enough alone, but all of it together.
    together = SCORER.explain([200.0, 6.0, 1.0, 68.0, 9.0])
    assert together.flagged
    assert together.largest < SCORER.thresholds[1]


def test_what_it_cannot_see_is_so() -> None:
    # Two features that always agree in the reference; the row in which they do not looks ordinary.
    rng = np.random.default_rng(5)
    same = rng.normal(size=20_000)
    X = np.column_stack([same] * 5)
    scorer = AnomalyScorer.fit(profile_of(X[:10_000]), X[10_000:], false_alarm_rate=0.01)
    assert not scorer.score([[1.5, -1.5, 1.5, -1.5, 1.5]]).flagged[0]
    assert "combination" in CANNOT_SEE


def test_it_travels_with_the_package() -> None:
    again = AnomalyScorer(json.loads(json.dumps(PROFILE)), json.loads(json.dumps(SCORER.to_dict())))
    X = traffic(100, 4)
    assert (again.score(X).total == SCORER.score(X).total).all()
    assert again.thresholds == SCORER.thresholds
    assert again.explain(X[0]) == SCORER.explain(X[0])
    assert "5 of 5 features" in repr(again)


def test_ignored_features_do_not_count() -> None:
    scorer = AnomalyScorer.fit(profile_of(traffic(5_000, 1), ("age",)), traffic(5_000, 2), false_alarm_rate=0.01)
    x = [20.0, 2.0, 0.0, 40.0, 3.0]
    y = [20.0, 2.0, 0.0, np.nan, 3.0]
    assert scorer.score([x]).total == scorer.score([y]).total


def test_constant_and_empty_features() -> None:
    X = traffic(3_000, 1)
    X[:, 1], X[:, 3] = 7.0, np.nan
    scorer = AnomalyScorer.fit(profile_of(X), X, false_alarm_rate=0.01)
    assert not scorer.score(X[:1]).flagged[0]
    changed = X[:1].copy()
    changed[0, 3] = 1.0
    assert scorer.score(changed).flagged[0]
    changed[0, 3], changed[0, 1] = np.nan, 7.0000001
    assert scorer.score(changed).flagged[0]


def test_no_rows_and_wrong_input() -> None:
    assert SCORER.score(np.empty((0, 5))).flagged.shape == (0,)
    with pytest.raises(InvalidInput, match="shape"):
        SCORER.score(np.zeros((3, 4)))
    with pytest.raises(InvalidInput, match="at least 2000 rows"):
        AnomalyScorer.fit(PROFILE, traffic(1_000, 2), false_alarm_rate=0.001)
    with pytest.raises(InvalidInput, match="between"):
        AnomalyScorer.fit(PROFILE, traffic(1_000, 2), false_alarm_rate=1.0)
    for profile, calibration in (
        ({**PROFILE, "kind": "x"}, SCORER.to_dict()),
        (PROFILE, {}),
        (PROFILE, {**SCORER.to_dict(), "names": ["a"]}),
        ({**PROFILE, "ignored": list(NAMES)}, SCORER.to_dict()),
    ):
        with pytest.raises(InvalidInput):
            AnomalyScorer(profile, calibration)
