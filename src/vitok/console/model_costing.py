"""What `vitok serve-models` needs for costs: one meter of the process, and budgets before its models."""

from collections.abc import Callable
from pathlib import Path

from vitok.errors import NotFound
from vitok.guard import KeyStore
from vitok.serving.budgets import BudgetBook
from vitok.serving.costs import CostMeter
from vitok.serving.guarded import Outer
from vitok.serving.hosted import Hosted
from vitok.serving.spending import BudgetGate, Spending
from vitok.serving.teams import KeyTeams


class Costing:
    """The meter of a process, and the budgets of a file before its models, behind the guard.

    Args:
        guard: What says who calls; None for nothing.
        keys: File of the keys, which name the team of a tenant; None for none.
        budgets: File of the budgets, which `vitok cost budget` makes; None for none.

    Attributes:
        meter: The meter.
        guard: What stands before the models: the guard, with the budgets behind it where there are some.

    Raises:
        NotFound: If there is no such file of budgets.
        InvalidInput: If keys of a tenant name different teams.
        StoreError: If a file cannot be used.
    """

    def __init__(self, *, guard: Outer | None = None, keys: Path | None = None, budgets: Path | None = None) -> None:
        team_of: Callable[[str], str] = str if keys is None else KeyTeams(KeyStore(keys))
        self._spending: Spending | None = None
        self.guard = guard
        if budgets is not None:
            if not budgets.is_file():
                # A new file would limit nobody, and look like one whose path is misspelt.
                raise NotFound("file of budgets", str(budgets))
            self._spending = Spending(BudgetBook(budgets))
            self.guard = BudgetGate(self._spending, guard=guard, team_of=team_of)
        self.meter = CostMeter(team_of=team_of, spending=self._spending)

    def dress(self, hosted: Hosted) -> None:
        """Has a model charged."""
        hosted.meter = self.meter

    def close(self) -> None:
        """Gives back what is not spent."""
        if self._spending is not None:
            self._spending.close()
            self._spending.book.close()
