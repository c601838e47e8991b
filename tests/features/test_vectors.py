"""Vectors: what they say of themselves."""

import dataclasses

import numpy as np
import pytest

from vitok.features.vectors import CACHE, DEFAULT, FRESH, MISSING, STALE, STORE, Vectors


def some(n: int = 3) -> Vectors:
    return Vectors(
        names=("a", "b"),
        values=np.array([[1.5, 2.0], [np.nan, 3.0], [np.nan, np.nan]])[:n],
        event_times=np.array([[5, 6], [5, 6], [-1, -1]])[:n],
        status=np.array([[FRESH, FRESH], [STALE, FRESH], [MISSING, STALE]], np.uint8)[:n],
        source=np.array([[STORE, STORE], [STORE, CACHE], [DEFAULT, CACHE]], np.uint8)[:n],
        views=("v", "w"),
    )


def test_the_worst_view_decides() -> None:
    vectors = some()
    assert [vectors.status_of(row) for row in range(3)] == ["fresh", "stale", "missing"]
    assert [vectors.source_of(row) for row in range(3)] == ["store", "cache", "default"]


def test_dicts_are_for_people() -> None:
    row = some().to_dicts()[1]
    assert row["values"] == {"a": None, "b": 3.0}
    assert row["views"]["v"] == {"event_time": "1970-01-01T00:00:00.000005Z", "status": "stale", "source": "store"}
    assert some().to_dicts()[2]["views"]["v"]["event_time"] is None


def test_it_prints_a_few_rows_and_is_frozen() -> None:
    shown = repr(some())
    assert shown.splitlines()[0] == "3 vectors of 2 features"
    assert "stale from cache" in shown
    assert len(repr(some(0)).splitlines()) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        some().names = ()  # type: ignore[misc]


def test_without_views_everything_is_fresh() -> None:
    none = np.zeros((2, 0), np.uint8)
    vectors = Vectors(
        names=("a",), values=np.zeros((2, 1)), event_times=none.astype(np.int64), status=none, source=none, views=()
    )
    assert vectors.status_of(0) == "fresh"
    assert len(vectors) == 2
