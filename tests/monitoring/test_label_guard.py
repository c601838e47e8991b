"""What is held of a source that has gone wrong, and when it is believed again; on simulated label views."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY
from vitok.errors import InvalidInput, StoreError
from vitok.monitoring import Alerts
from vitok.monitoring.label_guard import GuardRules, LabelGuard
from vitok.monitoring.label_sources import SourceRules

SOURCES = ("a", "b", "c")
FLOOD = range(32, 37)


def view(days: int, *, flood: range = range(0), seed: int = 0) -> pl.DataFrame:
    """Labels of three sources, 600 a day each at 2 %; on the days of the flood `c` reports 20 %."""
    rng = np.random.default_rng(seed)
    parts = []
    for day in range(days):
        for source in SOURCES:
            rate = 0.2 if source == "c" and day in flood else 0.02
            parts.append(
                pl.DataFrame(
                    {
                        "source": [source] * 600,
                        "label": (rng.random(600) < rate).astype(float),
                        "label_ingest_time": np.sort(rng.integers(day * DAY, (day + 1) * DAY, 600)),
                    }
                )
            )
    return pl.concat(parts).with_columns(pl.col("label_ingest_time").cast(pl.Datetime("us", "UTC")))


@pytest.fixture
def guard(tmp_path: Path) -> Iterator[LabelGuard]:
    guard = LabelGuard(tmp_path / "holds.sqlite")
    yield guard
    guard.close()


def test_a_flood_is_held_at_the_end_of_its_first_day_and_ends_when_it_is_over(guard: LabelGuard) -> None:
    labels = view(45, flood=FLOOD)
    times = labels["label_ingest_time"].to_physical()
    held = []
    for day in range(1, 46):
        (seen,) = guard.look(labels.filter(times < day * DAY), day * DAY)
        held.append(seen.held)
    assert set(held[: FLOOD.start]) == {()}
    assert set(held[FLOOD.start : FLOOD.stop]) == {("c",)}
    assert held[-1] == ()
    (hold,) = guard.holds()
    assert (hold.source, hold.since, hold.until) == ("c", FLOOD.start * DAY, FLOOD.stop * DAY)
    kept = guard.trusted(labels)
    assert len(labels) - len(kept) == 600 * len(FLOOD)
    lost = labels.join(kept, on=["source", "label_ingest_time"], how="anti")
    assert set(lost["source"]) == {"c"}
    assert set((lost["label_ingest_time"].to_physical() // DAY).to_list()) == set(FLOOD)


def test_days_are_judged_once_also_in_another_process(tmp_path: Path) -> None:
    labels = view(34, flood=FLOOD)
    first = LabelGuard(tmp_path / "holds.sqlite")
    days = first.look(labels, 33 * DAY + 5)
    assert [one.end // DAY for one in days] == list(range(1, 34))
    first.close()
    second = LabelGuard(tmp_path / "holds.sqlite")
    assert second.look(labels, 33 * DAY + 9) == ()
    assert [hold.source for hold in second.holds()] == ["c"]
    assert len(second.look(labels, 34 * DAY)) == 1
    second.close()


def test_a_source_in_order_is_never_held(tmp_path: Path) -> None:
    for seed in range(4):
        guard = LabelGuard(tmp_path / f"{seed}.sqlite")
        labels = view(60, seed=seed)
        guard.look(labels, 60 * DAY)
        assert guard.holds() == ()
        assert guard.trusted(labels).equals(labels)
        guard.close()


def test_a_flooded_day_raises_an_alert_that_clears(guard: LabelGuard, tmp_path: Path) -> None:
    alerts = Alerts(tmp_path / "alerts.sqlite")
    raised, cleared = [], []
    for day in guard.look(view(45, flood=FLOOD), 45 * DAY):
        one = day.finding
        alert = alerts.observe(
            one.rule,
            system="fraud",
            version=one.version,
            window_end=day.end,
            firing=one.firing,
            value=one.value,
            bound=one.bound,
            reason=one.reason,
            now=day.end,
        )
        if alert is not None:
            (raised if alert.state == "open" else cleared).append(alert)
    assert [alert.raised_at // DAY for alert in raised] == [FLOOD.start + 1]
    assert "c: AT FAULT" in raised[0].reason
    assert len(cleared) == 1
    alerts.close()


def test_a_person_holds_and_releases(guard: LabelGuard) -> None:
    labels = view(5)
    guard.hold("b", since=3 * DAY, why="its export is known to be broken")
    guard.hold("b", since=2 * DAY, why="it began a day earlier")
    assert len(guard.trusted(labels)) == len(labels) - 3 * 600
    guard.release("b", until=4 * DAY, why="mended")
    assert len(guard.trusted(labels)) == len(labels) - 2 * 600
    guard.release("b", until=0, why="again changes nothing")
    guard.hold("b", since=4 * DAY, why="a false alarm")
    guard.release("b", until=0, why="it was in order")
    assert len(guard.trusted(labels)) == len(labels) - 2 * 600
    for wrong in (lambda: guard.hold("", since=0, why="x"), lambda: guard.hold("a", since=0, why=" ")):
        with pytest.raises(InvalidInput):
            wrong()
    with pytest.raises(InvalidInput):
        guard.release("a", until=0, why="")


def test_a_source_that_reports_little_is_believed_after_more_days(tmp_path: Path) -> None:
    rules = GuardRules(source=SourceRules(min_expected=40.0))
    guard = LabelGuard(tmp_path / "little.sqlite", rules=rules)
    guard.look(view(48, flood=FLOOD), 48 * DAY)
    (hold,) = guard.holds()
    assert (hold.since, hold.until) == (FLOOD.start * DAY, FLOOD.stop * DAY)
    assert int(hold.ended.split()[0]) > 2
    guard.close()


def test_labels_of_a_clock_that_was_ahead_are_passed_over(guard: LabelGuard) -> None:
    labels = view(3)
    ahead = labels.head(1).with_columns(label_ingest_time=pl.lit(400_000 * DAY).cast(pl.Datetime("us", "UTC")))
    assert [one.end // DAY for one in guard.look(pl.concat([labels, ahead]), 3 * DAY)] == [1, 2, 3]


def test_no_labels_yet(guard: LabelGuard) -> None:
    assert guard.look(view(1).clear(), 9 * DAY) == ()
    assert guard.trusted(view(1).clear()).is_empty()


def test_labels_without_a_source_name_are_no_fault(guard: LabelGuard) -> None:
    labels = view(3).with_columns(source=pl.lit(None, pl.String))
    assert guard.look(labels, 3 * DAY) == ()
    assert len(guard.trusted(labels)) == len(labels)


def test_a_file_of_something_else(tmp_path: Path) -> None:
    Alerts(tmp_path / "alerts.sqlite").close()
    with pytest.raises(StoreError):
        LabelGuard(tmp_path / "alerts.sqlite")


def test_rules_out_of_range() -> None:
    with pytest.raises(InvalidInput):
        GuardRules(windows=())
    for quiet in (0, 8):
        with pytest.raises(InvalidInput):
            GuardRules(quiet=quiet)
