"""What the page of costs shows: what decisions have cost, and where the budgets of teams stand."""

import dataclasses
from pathlib import Path
from typing import cast

from vitok import settings
from vitok.clock import Clock, SystemClock
from vitok.console import stores
from vitok.errors import NotFound
from vitok.serving.budgets import BudgetBook, BudgetState
from vitok.serving.cost_report import BY, By, CostReport, cost_report


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostsSeen:
    """What decisions have cost.

    Attributes:
        by: What the lines are told apart by.
        choices: What else they can be.
        report: The sums; None where nothing was decided yet.
        budgets: Where the budgets stand, by team.
    """

    by: By
    choices: tuple[By, ...]
    report: CostReport | None
    budgets: tuple[BudgetState, ...]

    def __str__(self) -> str:
        told = "nothing was decided yet" if self.report is None else str(self.report)
        return "\n".join([told, *map(str, self.budgets)])


def costs(home: Path, by: str = "", *, clock: Clock | None = None) -> CostsSeen:
    """Adds up what the decisions of a home have cost, and reads its budgets, or else those of all systems.

    Args:
        home: The folder of a system.
        by: `"model"` by default; also `"version"`, `"tenant"`, `"team"`, `"route"` or `"day"`.
        clock: Tells the period of the budgets.

    Raises:
        InvalidInput: If `by` is none of these.
    """
    chosen = cast("By", by or BY[0])
    logs = stores.logs(home)
    report = None
    if logs is not None or chosen not in BY:
        try:
            report = cost_report(home / "log", by=chosen)
        except NotFound:
            report = None
    # Budgets are of teams, not of systems: `vitok cost budget` keeps them above the folders of the systems.
    places = (folder / "costs" / "budgets.sqlite" for folder in (home, settings.current().home))
    path = next((place for place in places if place.is_file()), None)
    states: tuple[BudgetState, ...] = ()
    if path is not None:
        book = BudgetBook(path)
        now = (clock or SystemClock()).now()
        try:
            states = tuple(book.state(team, now=now) for team in book.budgets())
        finally:
            book.close()
    return CostsSeen(by=chosen, choices=BY, report=report, budgets=states)
