"""The page of costs: sums by what was chosen, budgets, and a home where nothing was decided."""

from pathlib import Path

import pytest
from tests.console.conftest import get
from tests.console.test_pages import check_markup
from tests.serving.test_cost_report import write

from vitok import settings
from vitok.clock import EventClock, parse_time
from vitok.console.cost_reading import costs
from vitok.errors import InvalidInput
from vitok.serving.budgets import BudgetBook, SpendingBudget

NOW = parse_time("2026-03-10T10:30:00Z")


@pytest.fixture
def decided(tmp_path: Path) -> Path:
    odd = "<b>&\"'o"
    rows: list[dict[str, object]] = [{"cost": 0.25, "team": odd}, {"cost": 0.0, "team": odd}, {"cost": 0.5}]
    write(tmp_path / "log" / "decisions", rows)
    book = BudgetBook(tmp_path / "costs" / "budgets.sqlite")
    book.set(SpendingBudget(team=odd, amount=7.0, period="month"), actor="ann", now=NOW)
    book.close()
    return tmp_path


def test_sums_and_budgets(decided: Path) -> None:
    text = check_markup(get(decided, "/costs?by=team").text).text
    assert "<b>&\"'o" in text
    assert "not said" in text
    assert "Budgets" in text
    seen = costs(decided, "team", clock=EventClock(NOW))
    assert seen.report is not None
    assert [(line.decisions, line.hits, line.seconds) for line in seen.report.lines] == [(1, 0, 0.5), (2, 1, 0.25)]
    assert [state.left for state in seen.budgets] == [7.0]
    assert "7 left" in str(seen)


def test_budgets_are_where_the_command_keeps_them(tmp_path: Path, decided: Path) -> None:
    kept = decided / "costs"
    above = tmp_path / "above"
    above.mkdir()
    with settings.using(home=above):
        kept.rename(above / "costs")
        assert [state.budget.amount for state in costs(decided).budgets] == [7.0]
        assert "Budgets" in check_markup(get(decided, "/costs").text).text
    assert costs(decided).budgets == ()


def test_what_is_not_there(tmp_path: Path, decided: Path) -> None:
    empty = get(tmp_path / "absent", "/costs")
    assert empty.status == 200
    assert "Nothing was decided yet" in check_markup(empty.text).text
    assert not (tmp_path / "absent").exists()
    assert get(decided, "/costs?by=colour").status == 422
    with pytest.raises(InvalidInput):
        costs(tmp_path / "absent", "colour")
