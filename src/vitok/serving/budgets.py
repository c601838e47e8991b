"""What a team may spend in an hour, a day or a month, kept in one file for all processes that spend it.

The unit is the one of the log's `cost`: processor seconds, in which GPU seconds and paid calls are counted too (see
`vitok.serving.costs`). A process takes a part of what is left as a lease, in one transaction, and spends it from memory
without asking again. All leases together are never more than the budget, so it holds however many processes there are.

A lease of a process that was killed counts as spent: how much of it was, only that process knew. It is at most a
hundredth of the budget, or one batch where that is more. A process that ends in order gives back what it has left,
and so does one that has asked for nothing for a minute.
"""

import datetime as dt
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vitok.clock import DAY, HOUR, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import InvalidInput, NotFound
from vitok.serving.holders import holding

Period = Literal["hour", "day", "month"]
Then = Literal["alert", "throttle", "block"]

NS = 1_000_000_000
"""Nanoseconds of a second; what is left is counted in whole ones."""

_PERIODS: tuple[Period, ...] = ("hour", "day", "month")
_THEN: tuple[Then, ...] = ("alert", "throttle", "block")
_WAIT_SECONDS = 1.0
_LAYOUT = 1
_MOST_SECONDS = 1e9
_PARTS = 100  # a lease is at most this part of the budget
_SPREAD = 8  # and this part of what is left, by the processes that hold one
_SCHEMA = """
CREATE TABLE budget (
    team TEXT PRIMARY KEY,
    amount INTEGER NOT NULL,
    period TEXT NOT NULL,
    alerts TEXT NOT NULL,
    action TEXT NOT NULL
) STRICT;
CREATE TABLE account (
    team TEXT NOT NULL,
    start INTEGER NOT NULL,
    paced INTEGER,
    PRIMARY KEY (team, start)
) STRICT;
CREATE TABLE lease (
    team TEXT NOT NULL,
    start INTEGER NOT NULL,
    holder TEXT NOT NULL,
    granted INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (team, start, holder)
) STRICT;
CREATE TABLE alert (
    team TEXT NOT NULL,
    start INTEGER NOT NULL,
    share REAL NOT NULL,
    time INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    amount INTEGER NOT NULL,
    PRIMARY KEY (team, start, share)
) STRICT;
CREATE TABLE change (
    number INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    team TEXT NOT NULL,
    what TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class SpendingBudget:
    """What a team may spend in a period, and what happens when it is spent.

    Attributes:
        team: The team.
        amount: Processor seconds a period, above 0.
        period: `"hour"`, `"day"` or `"month"`, each from its beginning in UTC.
        alerts: Shares of the amount at which an alert is raised, once a period each, in (0, 1].
        then: `"block"` refuses everything from the amount on, until the next period. `"throttle"` lets out what is
            left evenly until the end of the period once the smallest of the alert shares is spent (from the start
            where there is none). `"alert"` refuses nothing.

    Raises:
        InvalidInput: If a value breaks its rule.

    Example:
        >>> print(SpendingBudget(team="checkout", amount=3600, period="day", then="block"))
        checkout: 3,600 processor seconds a day, alert at 80 %, then block
    """

    team: str
    amount: float
    period: Period = "day"
    alerts: tuple[float, ...] = (0.8,)
    then: Then = "block"

    def __post_init__(self) -> None:
        if not self.team or not self.team.isprintable():
            raise InvalidInput("team", self.team, "be a printable text")
        if not 1 / NS <= self.amount <= _MOST_SECONDS:
            raise InvalidInput("amount", self.amount, f"be seconds above 0 and at most {_MOST_SECONDS:g}")
        if self.period not in _PERIODS:
            raise InvalidInput("period", self.period, f"be one of {', '.join(_PERIODS)}")
        if self.then not in _THEN:
            raise InvalidInput("then", self.then, f"be one of {', '.join(_THEN)}")
        wrong = [share for share in self.alerts if not 0 < share <= 1]
        if wrong:
            raise InvalidInput("alerts", wrong[0], "be shares in (0, 1]", "For 80 % write 0.8")
        object.__setattr__(self, "alerts", tuple(sorted(set(self.alerts))))

    @property
    def total(self) -> int:
        """The amount in whole nanoseconds."""
        return round(self.amount * NS)

    @property
    def steady_from(self) -> int:
        """Nanoseconds that may be spent at any speed; what is above them is let out evenly where it is throttled."""
        if self.then != "throttle":
            return self.total
        return round(self.total * self.alerts[0]) if self.alerts else 0

    def __str__(self) -> str:
        told = f", alert at {' and '.join(f'{100 * share:g} %' for share in self.alerts)}" if self.alerts else ""
        return f"{self.team}: {self.amount:,g} processor seconds a {self.period}{told}, then {self.then}"


@dataclass(frozen=True, kw_only=True)
class BudgetAlert:
    """A share of a budget that has been spent; raised once a period.

    Attributes:
        team: The team.
        start: Start of the period, in microseconds.
        share: The share that was passed.
        time: When it was noticed.
        spent: Processor seconds spent by then, as far as the processes have reported.
        amount: The budget.
    """

    team: str
    start: int
    share: float
    time: int
    spent: float
    amount: float

    def __str__(self) -> str:
        return (
            f"{isoformat(self.time)} {self.team} has spent {self.spent:,.4g} of {self.amount:,.4g} processor seconds, "
            f"over {100 * self.share:g} %"
        )


@dataclass(frozen=True, kw_only=True)
class BudgetState:
    """Where a budget stands.

    Attributes:
        budget: The budget.
        start: Start of the period, in microseconds.
        end: Its end.
        spent: Processor seconds that processes have reported, or that those which ended have spent.
        held: What live processes hold and have not reported as spent.
        lost: What processes held that were killed; it counts as spent.
        alerts: The alerts of the period.
    """

    budget: SpendingBudget
    start: int
    end: int
    spent: float
    held: float
    lost: float
    alerts: tuple[BudgetAlert, ...]

    @property
    def left(self) -> float:
        """Processor seconds that nobody has taken; below 0 where more was spent."""
        return self.budget.amount - self.spent - self.held - self.lost

    def __str__(self) -> str:
        lost = f", {self.lost:,.4g} lost to killed processes" if self.lost else ""
        return (
            f"{self.budget}; since {isoformat(self.start)}: {self.spent:,.4g} spent, {self.held:,.4g} held{lost}, "
            f"{self.left:,.4g} left until {isoformat(self.end)}"
        )


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a process may spend of a budget.

    Attributes:
        start: Start of the period, in microseconds.
        end: Its end.
        granted: Nanoseconds that it may spend in this period altogether.
        enough: Whether what was needed was granted.
        again: When to ask again where it was not, in microseconds.
        alerts: What was raised.
    """

    start: int
    end: int
    granted: int
    enough: bool
    again: int
    alerts: tuple[BudgetAlert, ...] = ()


def period_of(period: Period, now: int) -> tuple[int, int]:
    """Returns start and end of the period that a time lies in, in microseconds, UTC.

    Example:
        >>> from vitok.clock import parse_time
        >>> start, end = period_of("month", parse_time("2026-12-24T18:00:00Z"))
        >>> isoformat(start), isoformat(end)
        ('2026-12-01T00:00:00Z', '2027-01-01T00:00:00Z')
    """
    if period != "month":
        length = HOUR if period == "hour" else DAY
        start = now // length * length
        return start, start + length
    epoch = dt.datetime.fromtimestamp(0, dt.UTC)
    first = (epoch + dt.timedelta(microseconds=now)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + dt.timedelta(days=32)).replace(day=1)
    microsecond = dt.timedelta(microseconds=1)
    return (first - epoch) // microsecond, (following - epoch) // microsecond


class BudgetBook:
    """The budgets of all teams and what has been taken of them, in one SQLite file (write-ahead log).

    Any number of threads and processes may use it. What was committed survives `kill -9`; a power cut may lose the
    last leases, and then what was spent of them.

    Args:
        path: The file; made where it does not exist.

    Raises:
        StoreError: If it cannot be used, or holds something else.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> book = BudgetBook(folder.name + "/budgets.sqlite")
        >>> book.set(SpendingBudget(team="checkout", amount=60, period="hour"), actor="ann", now=0)
        >>> grant = book.lease("checkout", "me", spent=0, needed=NS, now=0)
        >>> grant.enough, grant.granted / NS
        (True, 1.0)
        >>> print(book.state("checkout", now=0))
        checkout: 60 processor seconds a hour, alert at 80 %, then block; since 1970-01-01T00:00:00Z: 0 spent, ...
        >>> book.close(); folder.cleanup()
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._database = Database(path, schema=_SCHEMA, kind="budgets", version=_LAYOUT, wait_seconds=_WAIT_SECONDS)

    def __repr__(self) -> str:
        return f"BudgetBook({str(self.path)!r})"

    def set(self, budget: SpendingBudget, *, actor: str, now: int, reason: str = "") -> None:
        """Gives a team a budget, in place of the one it has; what it has spent in the period stays spent.

        Raises:
            InvalidInput: If nobody does it.
            StoreError: If it cannot be kept.
        """
        _check_actor(actor)
        row = (budget.team, budget.total, budget.period, json.dumps(budget.alerts), budget.then)
        with self._database.writing() as connection:
            connection.execute("INSERT OR REPLACE INTO budget VALUES (?, ?, ?, ?, ?)", row)
            # A clock that had run ahead would else keep the team in a period to come.
            start = period_of(budget.period, now)[0]
            for table in ("account", "lease", "alert"):
                connection.execute(f"DELETE FROM {table} WHERE team = ? AND start > ?", (budget.team, start))  # noqa: S608
            _note(connection, now, budget.team, str(budget), actor, reason)

    def remove(self, team: str, *, actor: str, now: int, reason: str = "") -> None:
        """Takes a team's budget away: it may spend what it likes.

        Raises:
            NotFound: If it has none.
        """
        _check_actor(actor)
        with self._database.writing() as connection:
            if not connection.execute("DELETE FROM budget WHERE team = ?", (team,)).rowcount:
                raise NotFound(
                    "budget of team", team, [row[0] for row in connection.execute("SELECT team FROM budget")]
                )
            _note(connection, now, team, "removed", actor, reason)

    def changes(self) -> list[str]:
        """Returns what was done to budgets: when, by whom and why."""
        rows = self._database.read("SELECT time, team, what, actor, reason FROM change ORDER BY number")
        return [
            f"{isoformat(time)} {team} by {actor}: {what}" + (f" ({reason})" if reason else "")
            for time, team, what, actor, reason in rows
        ]

    def budgets(self) -> dict[str, SpendingBudget]:
        """Returns the budgets by team."""
        return {row[0]: _budget(row) for row in self._database.read("SELECT * FROM budget ORDER BY team")}

    def revision(self) -> int:
        """Returns what changes once somebody has changed a budget or taken a lease; takes about 5 us."""
        return int(self._database.read("PRAGMA data_version")[0][0])

    def lease(self, team: str, holder: str, *, spent: int, needed: int, now: int, start: int | None = None) -> Grant:
        """Reports what a holder has spent, and gives it what it needs, and some more for the next batches.

        Args:
            team: The team.
            holder: Who asks, see `vitok.serving.holders.holder_name`.
            spent: Nanoseconds that the holder has spent in the period altogether. More than it was granted is taken
                from what is left for all.
            needed: Nanoseconds that it needs on top of what it was granted, 0 to report only.
            now: The present, in microseconds.
            start: The period that `spent` belongs to; None for the present one.

        Raises:
            NotFound: If the team has no budget.
            StoreError: If the file cannot be used.
        """
        with self._database.writing() as connection:
            budget = _find(connection, team)
            begin, end = _current(connection, budget, now)
            if start is not None and start != begin:
                _report(connection, team, start, holder, spent)
                spent = 0
            connection.execute("INSERT OR IGNORE INTO account VALUES (?, ?, NULL)", (team, begin))
            connection.execute("INSERT OR IGNORE INTO lease VALUES (?, ?, ?, 0, 0, 0)", (team, begin, holder))
            _report(connection, team, begin, holder, spent)
            taken, holders = _taken(connection, team, begin)
            allowed, again = _allowed(connection, budget, (begin, end), taken + needed, now)
            give = _part(budget, allowed - taken, needed, holders)
            if give:
                connection.execute(
                    "UPDATE lease SET granted = granted + ? WHERE team = ? AND start = ? AND holder = ?",
                    (give, team, begin, holder),
                )
            granted = connection.execute(
                "SELECT granted FROM lease WHERE team = ? AND start = ? AND holder = ?", (team, begin, holder)
            ).fetchone()[0]
            # Who is refused is told why: leases that are out count then, whatever has been spent of them.
            alerts = _raise_alerts(connection, budget, begin, now, taken if give < needed else 0)
        return Grant(start=begin, end=end, granted=granted, enough=give >= needed, again=again, alerts=alerts)

    def give_back(self, team: str, holder: str, *, start: int, spent: int) -> None:
        """Ends a lease: what is not spent of it is there for others again."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE lease SET granted = ?, spent = ?, ended = 1 WHERE team = ? AND start = ? AND holder = ?",
                (spent, spent, team, start, holder),
            )

    def state(self, team: str, *, now: int) -> BudgetState:
        """Returns where a team's budget stands.

        Raises:
            NotFound: If it has none.
        """
        with self._database.reading() as connection:
            budget = _find(connection, team)
            start, end = _current(connection, budget, now)
            rows = connection.execute(
                "SELECT holder, granted, spent, ended FROM lease WHERE team = ? AND start = ?", (team, start)
            ).fetchall()
            raised = connection.execute(
                "SELECT * FROM alert WHERE team = ? AND start = ? ORDER BY share", (team, start)
            ).fetchall()
        rest: dict[str, int] = {"live": 0, "ended": 0, "killed": 0}
        for holder, granted, spent, ended in rows:
            rest["ended" if ended else holding(holder)] += granted - spent
        return BudgetState(
            budget=budget,
            start=start,
            end=end,
            spent=sum(row[2] for row in rows) / NS,
            held=rest["live"] / NS,
            lost=rest["killed"] / NS,
            alerts=tuple(_alert(row) for row in raised),
        )

    def close(self) -> None:
        """Closes the file; it cannot be used any more."""
        self._database.close()


def _check_actor(actor: str) -> None:
    if not actor or not actor.isprintable():
        raise InvalidInput("actor", actor, "be a printable text", "Say who does it")


def _note(connection: sqlite3.Connection, now: int, team: str, what: str, actor: str, reason: str) -> None:
    connection.execute(
        "INSERT INTO change (time, team, what, actor, reason) VALUES (?, ?, ?, ?, ?)", (now, team, what, actor, reason)
    )


def _budget(row: Sequence[Any]) -> SpendingBudget:
    team, amount, period, alerts, then = row
    return SpendingBudget(
        team=team,
        amount=amount / NS,
        period=cast("Period", period),
        alerts=tuple(json.loads(alerts)),
        then=cast("Then", then),
    )


def _alert(row: Sequence[Any]) -> BudgetAlert:
    team, start, share, time, spent, amount = row
    return BudgetAlert(team=team, start=start, share=share, time=time, spent=spent / NS, amount=amount / NS)


def _find(connection: sqlite3.Connection, team: str) -> SpendingBudget:
    row = connection.execute("SELECT * FROM budget WHERE team = ?", (team,)).fetchone()
    if row is None:
        raise NotFound("budget of team", team, _teams(connection))
    return _budget(row)


def _teams(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT team FROM budget ORDER BY team")]


def _current(connection: sqlite3.Connection, budget: SpendingBudget, now: int) -> tuple[int, int]:
    # A clock that goes back does not open a period anew: the latest that was begun goes on.
    latest = connection.execute("SELECT max(start) FROM account WHERE team = ?", (budget.team,)).fetchone()[0]
    return period_of(budget.period, max(now, latest or 0))


def _report(connection: sqlite3.Connection, team: str, start: int, holder: str, spent: int) -> None:
    connection.execute(
        "UPDATE lease SET spent = max(spent, ?), granted = max(granted, ?), ended = 0 "
        "WHERE team = ? AND start = ? AND holder = ?",
        (spent, spent, team, start, holder),
    )


def _taken(connection: sqlite3.Connection, team: str, start: int) -> tuple[int, int]:
    row = connection.execute(
        "SELECT coalesce(sum(granted), 0), coalesce(sum(ended = 0), 0) FROM lease WHERE team = ? AND start = ?",
        (team, start),
    ).fetchone()
    return row[0], row[1]


def _allowed(
    connection: sqlite3.Connection, budget: SpendingBudget, period: tuple[int, int], wanted: int, now: int
) -> tuple[int, int]:
    # What all together may have taken by now, and when they may have taken what is wanted.
    start, end = period
    steady = budget.steady_from
    if budget.then != "throttle" or wanted <= steady:
        return steady, end
    paced = connection.execute(
        "SELECT paced FROM account WHERE team = ? AND start = ?", (budget.team, start)
    ).fetchone()[0]
    if paced is None:
        paced = min(max(now, start), end)
        connection.execute("UPDATE account SET paced = ? WHERE team = ? AND start = ?", (paced, budget.team, start))
    rest, span = budget.total - steady, max(end - paced, 1)
    allowed = steady + rest * min(max(now - paced, 0), span) // span
    over = wanted - steady
    again = end if over > rest or not rest else min(paced + -(-over * span // rest), end)
    return allowed, again


def _part(budget: SpendingBudget, left: int, needed: int, holders: int) -> int:
    # Enough for this batch and, where there is much left, for some more of them.
    usual = min(budget.total // _PARTS, left // (_SPREAD * max(holders, 1)))
    if budget.then == "alert":
        return max(needed, budget.total // _PARTS) if needed else 0
    return min(max(needed, usual), left) if 0 < needed <= left else 0


def _raise_alerts(
    connection: sqlite3.Connection, budget: SpendingBudget, start: int, now: int, taken: int
) -> tuple[BudgetAlert, ...]:
    team = budget.team
    spent = connection.execute(
        "SELECT coalesce(sum(spent), 0) FROM lease WHERE team = ? AND start = ?", (team, start)
    ).fetchone()[0]
    spent = max(spent, taken)
    raised = []
    for share in budget.alerts:
        if spent >= share * budget.total:
            row = (team, start, share, now, spent, budget.total)
            if connection.execute("INSERT OR IGNORE INTO alert VALUES (?, ?, ?, ?, ?, ?)", row).rowcount:
                raised.append(_alert(row))
    return tuple(raised)
