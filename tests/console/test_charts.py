import math

import pytest

from vitok.console import charts
from vitok.console.drift_reading import BinShare, DriftCell
from vitok.console.reading import DayOfDecisions


def day(number: int, cost: float = 1.0, n_labelled: int = 1, **actions: int) -> DayOfDecisions:
    return DayOfDecisions(
        day=number * 86_400_000_000, actions=actions, n_labelled=n_labelled, cost=cost, rules_cost=2 * cost
    )


def test_bars_stand_on_one_another_within_the_box() -> None:
    chart = charts.actions_by_day([day(0, review=3, block=1), day(1), day(2, review=4)], ["review", "block"])
    review, block, other = chart.marks
    assert (review.y + review.height, block.y + block.height) == (100, review.y)
    assert review.height == pytest.approx(75)
    assert block.height == pytest.approx(25)
    assert other.x > review.x + review.width
    assert chart.y_labels == ("4", "2", "0")


def test_line_has_a_gap_where_nothing_is_known() -> None:
    chart = charts.costs_by_day([day(0, 1.0), day(1, n_labelled=0), day(2, 2.0), day(3, 2.0)])
    by_rules, actual = chart.lines
    assert [len(piece.split()) for piece in actual.pieces] == [2, 2]
    # One day alone is a dash in the middle of its place.
    assert actual.pieces[0] == "7.50,75.00 17.50,75.00"
    assert by_rules.pieces[0] == "7.50,50.00 17.50,50.00"


@pytest.mark.parametrize(("largest", "end"), [(0.0, 1.0), (1.0, 1.0), (1.01, 2.0), (99, 100.0), (math.inf, 1.0)])
def test_axis_ends_at_a_round_number(largest: float, end: float) -> None:
    assert charts.nice(largest) == end


@pytest.mark.parametrize("power", range(-6, 9))
def test_axis_holds_its_largest_value(power: int) -> None:
    for digits in (1.0, 1.7, 2.5, 4.2, 9.99):
        assert digits * 10.0**power <= charts.nice(digits * 10.0**power) <= 2.5 * digits * 10.0**power


@pytest.mark.parametrize(
    ("effect", "judged", "level"),
    [(0.0, True, "heat0"), (0.01, True, "heat1"), (0.3, True, "heat5"), (0.3, False, "few"), (math.nan, True, "few")],
)
def test_heat_level(effect: float, judged: bool, level: str) -> None:
    assert charts.heat_level(DriftCell(day=0, effect=effect, shift=0.0, drifted=False, judged=judged)) == level


def test_empty_charts_draw_nothing() -> None:
    assert charts.actions_by_day([]).marks == ()
    assert charts.costs_by_day([]).lines[0].pieces == ()
    assert charts.distribution([]).marks == ()
    assert charts.lanes([]) == ((), ())
    assert charts.place(None, None).marks == ()


def test_marks_stay_in_the_box() -> None:
    bins = [BinShare(label="x < 1", reference=0.2, current=0.7), BinShare(label="x ≥ 1", reference=0.8, current=0.3)]
    marks = [*charts.distribution(bins).marks, *charts.place(1.0, 1.0).marks, *charts.place(0.0, 0.0).marks]
    for mark in marks:
        assert mark.x >= 0
        assert mark.y >= 0
        assert mark.x + mark.width <= 100 + 1e-9
        assert mark.y + mark.height <= 100 + 1e-9
