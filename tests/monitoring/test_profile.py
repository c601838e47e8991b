"""The reference profile: frozen, complete, and the same after a journey through JSON."""

import json

import numpy as np
import pytest

from vitok import stats
from vitok.clock import DAY
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring import ReferenceProfile


def test_survives_json_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.lognormal(3, 1, 4_000), rng.poisson(2, 4_000), np.full(4_000, np.nan)])
    X[0, 0], X[1, 0] = np.inf, -np.inf
    found = ReferenceProfile.fit(
        ["amount", "count", "empty"],
        X,
        rng.beta(1, 50, 4_000),
        start=5,
        end=7 * DAY,
        event_time=rng.integers(0, 7 * DAY, 4_000),
        baseline={"average_precision": stats.average_precision([0, 1, 1], [0.1, 0.2, 0.3]).to_dict()},
        ignored=["count"],
    )
    again = ReferenceProfile.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    assert again.digest == found.digest
    assert hash(again) == hash(found)
    assert again.ordinary == found.ordinary
    assert again.counts_of("empty")[0] == 4_000
    assert again.counts_of("probability").sum() == again.n == 4_000


def test_ordinary_days_are_measured_where_their_times_are_given() -> None:
    rng = np.random.default_rng(3)
    days = np.repeat(np.arange(7), 500)
    X = rng.normal(size=(3_500, 2))
    X[:, 0] += days >= 5
    found = ReferenceProfile.fit(["weekly", "steady"], X, rng.random(3_500), start=0, end=DAY, event_time=days * DAY)
    weekly, steady, probability = found.ordinary
    assert weekly[0] > 0.3
    assert weekly[1] > 0.3
    assert max(steady + probability) < 0.06
    plain = ReferenceProfile.fit(["weekly", "steady"], X, rng.random(3_500), start=0, end=DAY)
    assert plain.ordinary == ((0.0, 0.0),) * 3


def test_days_of_few_rows_say_nothing() -> None:
    days = np.concatenate([np.zeros(1_000), np.ones(5)]).astype(np.int64)
    X = np.concatenate([np.zeros(1_000), np.full(5, 9.0)])[:, None]
    found = ReferenceProfile.fit(["x"], X, np.zeros(1_005), start=0, end=DAY, event_time=days * DAY)
    assert max(found.ordinary[0]) < 0.05


def test_baseline_keeps_what_was_undefined_apart_from_what_is_exact(profile: ReferenceProfile) -> None:
    data = profile.to_dict()
    data["baseline"] = {
        "auc": stats.roc_auc([0, 0], [0.1, 0.2]).to_dict(),
        "cost_per_decision": {"value": 0.25},
        "mean": {"value": 1.0, "lower": None, "upper": None},
    }
    found = ReferenceProfile.from_dict(data)
    assert found.baseline_of("auc") is None
    assert found.baseline_of("unknown") is None
    cost, mean = found.baseline_of("cost_per_decision"), found.baseline_of("mean")
    assert cost is not None
    assert (cost.lower, cost.upper) == (0.25, 0.25)
    assert mean is not None
    assert (mean.lower, mean.upper) == (-np.inf, np.inf)


def test_one_row_is_enough() -> None:
    found = ReferenceProfile.fit(["x"], [[1.0]], [0.5], start=0, end=1)
    assert found.counts_of("x").sum() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"X": np.zeros((0, 1)), "probability": []}, "X"),
        ({"X": np.zeros((3, 2))}, "X"),
        ({"probability": np.zeros(2)}, "probability"),
        ({"names": ["probability"]}, "names"),
        ({"names": ["a", "a"], "X": np.zeros((3, 2))}, "names"),
        ({"ignored": ["b"]}, "ignored"),
        ({"start": 5, "end": 5}, "start, end"),
        ({"event_time": [1, 2]}, "event_time"),
    ],
)
def test_refuses_what_does_not_fit(change: dict[str, object], field: str) -> None:
    given: dict[str, object] = {"names": ["a"], "X": np.zeros((3, 1)), "probability": np.zeros(3), "start": 0, "end": 9}
    given.update(change)
    names, X, probability = given.pop("names"), given.pop("X"), given.pop("probability")
    with pytest.raises(InvalidInput) as caught:
        ReferenceProfile.fit(names, X, probability, **given)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_refuses_counts_that_were_tampered_with(profile: ReferenceProfile) -> None:
    data = profile.to_dict()
    data["columns"][0]["counts"][0] += 1
    with pytest.raises(InvalidInput, match="add up"):
        ReferenceProfile.from_dict(data)
    with pytest.raises(InvalidInput, match="kind"):
        ReferenceProfile.from_dict({})
    with pytest.raises(NotFound, match="amount"):
        profile.counts_of("amounts")
