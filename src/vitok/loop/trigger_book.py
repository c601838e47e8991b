"""When a job such as a retraining begins: by schedule, drift with loss, labels, playbook or hand; what holds it back.

What was begun, ended and paid is kept in a file, so a restart forgets no cool-down, begins nothing twice and goes on
with what a crash left unfinished.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol

from vitok.clock import DAY, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.loop.cron import Cron
from vitok.loop.triage import of_any_length
from vitok.stats.results import Result

Kind = Literal["hand", "incident", "loss", "labels", "schedule"]
AskedBy = Literal["hand", "incident"]
_SCHEMA = """
CREATE TABLE run (
    key TEXT PRIMARY KEY,
    system TEXT NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    begun_at INTEGER NOT NULL,
    labels INTEGER NOT NULL,
    ended_at INTEGER,
    cost REAL NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX run_open ON run (system) WHERE ended_at IS NULL;
CREATE TABLE asked (
    id INTEGER PRIMARY KEY,
    system TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    at INTEGER NOT NULL,
    run TEXT,
    kind TEXT NOT NULL DEFAULT 'hand',
    key TEXT
) STRICT;
CREATE UNIQUE INDEX asked_key ON asked (key) WHERE key IS NOT NULL;
CREATE TABLE since (
    system TEXT NOT NULL,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (system, kind)
) STRICT;
"""
# Only people asked in files of the first layout.
_MIGRATIONS = {
    1: """
ALTER TABLE asked ADD COLUMN kind TEXT NOT NULL DEFAULT 'hand';
ALTER TABLE asked ADD COLUMN key TEXT;
CREATE UNIQUE INDEX asked_key ON asked (key) WHERE key IS NOT NULL;
"""
}
_RUN = "key, system, kind, reason, begun_at, labels, ended_at, cost, outcome"
_WEEK = 7 * DAY


class OpenAlert(Protocol):
    """What a trigger reads of an alert that is open."""

    @property
    def rule(self) -> str:
        """Name of the rule that raised it, such as `"data_drift"`."""
        ...


@dataclass(frozen=True, kw_only=True)
class TriggerRules:
    """What begins a job and what holds it back.

    Attributes:
        schedule: When it is due whatever happens; None for never. Times that passed unseen are caught up once.
        jitter: By up to how much a scheduled time is put off, in microseconds, the same for each time of a system,
            so that not all systems begin at once.
        drift: Rules that say that something moved.
        loss: Rules that say that decisions got worse; drift counts only with one of them.
        labels: After so many matured labels since the last run; None for never.
        debounce: How long drift with loss must hold before it counts, in microseconds.
        cool_down: Least time between the beginnings of two runs, in microseconds; a person's request waits for none.
        runs_a_week: How many runs may begin within 7 days, those by hand included.
        cost_a_week: What they may cost together; a run begins only while less is spent.
    """

    schedule: Cron | None = None
    jitter: int = 0
    drift: frozenset[str] = frozenset({"data_drift", "prediction_drift"})
    loss: frozenset[str] = frozenset({"quality", "calibration"})
    labels: int | None = None
    debounce: int = 0
    cool_down: int = DAY
    runs_a_week: int = 3
    cost_a_week: float = field(default=float("inf"))

    def __post_init__(self) -> None:
        for name in ("jitter", "debounce", "cool_down", "runs_a_week", "cost_a_week"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not float(value) >= 0:
                raise InvalidInput(f"trigger: {name}", value, "be a number of at least 0")
        if self.labels is not None and self.labels < 1:
            raise InvalidInput("trigger: labels", self.labels, "be at least 1, or None")


@dataclass(frozen=True, kw_only=True)
class Run(Result):
    """A job that was begun.

    Attributes:
        key: Its name, for `Durable.run`: the same until it has ended.
        system: Which system.
        kind: `"hand"`, `"incident"` where the playbook asked, `"loss"`, `"labels"` or `"schedule"`.
        reason: Why, in words.
        begun_at: When, in microseconds.
        labels: Matured labels that there were then.
        ended_at: When it ended; None before.
        cost: What it cost.
        outcome: How it ended, in words.
    """

    key: str
    system: str
    kind: Kind
    reason: str
    begun_at: int
    labels: int
    ended_at: int | None = None
    cost: float = 0.0
    outcome: str = ""

    def __str__(self) -> str:
        end = "under way" if self.ended_at is None else f"{self.outcome}, cost {self.cost:g}"
        return f"{isoformat(self.begun_at)} {self.key} ({self.kind}): {self.reason}; {end}"


class Triggers:
    """The triggers of a home.

    Args:
        home: Folder of everything vitok writes; the file is `home/loop/triggers.sqlite`.
        rules: What begins a job and what holds it back.

    Raises:
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     triggers = Triggers(home, TriggerRules(schedule=Cron("0 3 * * *")))
        ...     print(triggers.due("fraud", now=0, alerts=[], labels=0))
        ...     run = triggers.due("fraud", now=2 * DAY, alerts=[], labels=0)
        ...     print(run.reason)
        ...     print(triggers.end(run.key, now=3 * DAY, cost=1.5, outcome="fraud/2 made").outcome)
        ...     triggers.close()
        None
        due at 1970-01-02T03:00:00Z by the schedule 0 3 * * *
        fraud/2 made
    """

    def __init__(self, home: str | Path, rules: TriggerRules) -> None:
        self._rules = rules
        path = Path(home) / "loop" / "triggers.sqlite"
        self._database = Database(
            path, schema=_SCHEMA, kind="triggers", version=2, migrations=_MIGRATIONS, durable=True
        )

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def due(self, system: str, *, now: int, alerts: Iterable[OpenAlert], labels: int, ready: bool = True) -> Run | None:
        """Says whether a job is to be done now, and writes down that it begins.

        A run that was begun and has not ended is returned again: after a crash the caller goes on with it, under the
        same key.

        Args:
            system: Which system.
            now: The present, in microseconds.
            alerts: The open alerts of the system.
            labels: How many labels have matured so far, in all.
            ready: Whether there is checked data to learn from and to judge on; False begins nothing.

        Returns:
            The run to do, or None.
        """
        names = {of_any_length(alert.rule) for alert in alerts}
        with self._database.writing() as transaction:
            current = self._select(transaction, "system = ? AND ended_at IS NULL", (system,))
            if current:
                return current[0]
            # The first look only starts the clocks: nothing was missed before anybody looked.
            first = self._mark(transaction, system, "looked", now)
            both = bool(names & self._rules.drift) and bool(names & self._rules.loss)
            if not both:
                transaction.execute("DELETE FROM since WHERE system = ? AND kind = 'loss'", (system,))
            held = now - self._mark(transaction, system, "loss", now) if both else -1
            found = self._reason(transaction, system, now, names, held, labels, first)
            if found is None or not ready or self._held_back(transaction, system, found[0], now):
                return None
            kind, reason = found
            key = f"{kind}/{system}/{isoformat(now)}"
            transaction.execute(
                "INSERT INTO run (key, system, kind, reason, begun_at, labels) VALUES (?, ?, ?, ?, ?, ?)",
                (key, system, kind, reason, now, labels),
            )
            transaction.execute("UPDATE asked SET run = ? WHERE system = ? AND run IS NULL", (key, system))
            return self._select(transaction, "key = ?", (key,))[0]

    def ask(self, system: str, *, who: str, why: str, now: int, kind: AskedBy = "hand", key: str | None = None) -> None:
        """Asks for a run; the next `due` that has data begins it, if the week's budget is not spent.

        Args:
            system: Which system.
            who: Who asks.
            why: Why, in words.
            now: The present, in microseconds.
            kind: `"hand"` for a person, who waits for no cool-down, or `"incident"` for the playbook, which does.
            key: Names what is asked: the same key again asks nothing.

        Raises:
            InvalidInput: If a text is empty.
        """
        if not who.strip() or not why.strip():
            raise InvalidInput("who, why", (who, why), "not be empty", "Say who asks for it, and why")
        with self._database.writing() as transaction:
            transaction.execute(
                "INSERT INTO asked (system, who, why, at, kind, key) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (system, who, why, now, kind, key),
            )

    def withdraw(self, key: str) -> None:
        """Takes back what was asked under a key; where nothing was, or it was taken back, nothing changes.

        Raises:
            Conflict: If a run has begun because of it.
        """
        with self._database.writing() as transaction:
            row = transaction.execute("SELECT run FROM asked WHERE key = ?", (key,)).fetchone()
            if row is not None and row[0] is not None:
                raise Conflict(f"{row[0]} was begun because of {key!r}; it goes on")
            transaction.execute("DELETE FROM asked WHERE key = ?", (key,))

    def lapse(self, system: str, *, before: int) -> tuple[str, ...]:
        """Drops what the playbook asked before a time and has not begun; what a person asked stands.

        Args:
            system: Which system.
            before: The time, in microseconds, such as when the version that it was asked for left Production.

        Returns:
            What was dropped, each as who and why.
        """
        with self._database.writing() as transaction:
            rows = transaction.execute(
                "SELECT id, who, why FROM asked WHERE system = ? AND run IS NULL AND kind = 'incident' AND at < ?"
                " ORDER BY id",
                (system, before),
            ).fetchall()
            transaction.executemany("DELETE FROM asked WHERE id = ?", [row[:1] for row in rows])
        return tuple(f"{who}: {why}" for _, who, why in rows)

    def pending(self, system: str) -> tuple[str, ...]:
        """Returns what was asked and has not begun, each as who and why, in the order in which it was asked."""
        rows = self._database.read("SELECT who, why FROM asked WHERE system = ? AND run IS NULL ORDER BY id", (system,))
        return tuple(f"{who}: {why}" for who, why in rows)

    def end(self, key: str, *, now: int, cost: float, outcome: str) -> Run:
        """Writes down that a run has ended; the same again changes nothing.

        Args:
            key: The run's key.
            now: The present, in microseconds.
            cost: What it cost, at least 0.
            outcome: How it ended, in words.

        Raises:
            NotFound: If there is no such run.
            Conflict: If it ended with another outcome.
        """
        if not 0 <= cost < float("inf") or not outcome.strip():
            raise InvalidInput("cost, outcome", (cost, outcome), "be at least 0 and finite, and not empty")
        with self._database.writing() as transaction:
            found = self._select(transaction, "key = ?", (key,))
            if not found:
                known = transaction.execute("SELECT key FROM run ORDER BY begun_at DESC LIMIT 12").fetchall()
                raise NotFound("run", key, [row[0] for row in known])
            if found[0].ended_at is not None:
                if found[0].outcome != outcome:
                    raise Conflict(f"{key} has ended as {found[0].outcome!r}")
                return found[0]
            transaction.execute(
                "UPDATE run SET ended_at = ?, cost = ?, outcome = ? WHERE key = ?", (now, cost, outcome, key)
            )
            return self._select(transaction, "key = ?", (key,))[0]

    def runs(self, *, system: str | None = None) -> tuple[Run, ...]:
        """Returns all runs in the order in which they began."""
        rows = self._database.read(
            f"SELECT {_RUN} FROM run WHERE ?1 IS NULL OR system = ?1 ORDER BY begun_at, key",  # noqa: S608
            (system,),
        )
        return tuple(_run(row) for row in rows)

    def _reason(
        self, transaction: Any, system: str, now: int, names: set[str], held: int, labels: int, first: int
    ) -> tuple[Kind, str] | None:
        asked = transaction.execute(
            "SELECT who, why, kind FROM asked WHERE system = ? AND run IS NULL ORDER BY id", (system,)
        ).fetchall()
        if asked:
            kind: Kind = "hand" if any(row[2] == "hand" for row in asked) else "incident"
            return kind, "; ".join(f"{who}: {why}" for who, why, _ in asked)
        if held >= self._rules.debounce:
            return "loss", f"{', '.join(sorted(names & (self._rules.drift | self._rules.loss)))} at the same time"
        last = self._select(transaction, "system = ?", (system,))
        if self._rules.labels is not None:
            new = labels - max((run.labels for run in last), default=0)
            if new >= self._rules.labels:
                return "labels", f"{new:,} labels have matured since the last run"
        if self._rules.schedule is not None:
            delay = self._delay(system)
            # The cool-down holds back what a clock that was set back would begin twice.
            since = max([first, *(run.begun_at - delay for run in last if run.begun_at <= now)])
            time = self._rules.schedule.before(now - delay, since=since)
            if time is not None:
                return "schedule", f"due at {isoformat(time + delay)} by the schedule {self._rules.schedule.text}"
        return None

    def _delay(self, system: str) -> int:
        lot = int.from_bytes(hashlib.sha256(system.encode()).digest()[:8], "big") / 2**64
        return int(self._rules.jitter * lot)

    def _held_back(self, transaction: Any, system: str, kind: Kind, now: int) -> bool:
        runs = self._select(
            transaction, "system = ? AND begun_at > ?", (system, now - max(_WEEK, self._rules.cool_down))
        )
        # A run that begins farther ahead than a span was written while the clock was ahead; it holds nothing up.
        week = [run for run in runs if abs(now - run.begun_at) < _WEEK]
        if len(week) >= self._rules.runs_a_week or sum(run.cost for run in week) >= self._rules.cost_a_week:
            return True
        return kind != "hand" and any(abs(now - run.begun_at) < self._rules.cool_down for run in runs)

    def _mark(self, transaction: Any, system: str, kind: str, now: int) -> int:
        """Returns since when something holds; from now on where it did not."""
        transaction.execute("INSERT INTO since VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (system, kind, now))
        # Nothing holds since a time to come: the clock was ahead then.
        of = "WHERE system = ? AND kind = ?"
        transaction.execute(f"UPDATE since SET at = min(at, ?) {of}", (now, system, kind))  # noqa: S608
        return int(transaction.execute(f"SELECT at FROM since {of}", (system, kind)).fetchone()[0])  # noqa: S608

    def _select(self, transaction: Any, where: str, parameters: tuple[Any, ...]) -> list[Run]:
        sql = f"SELECT {_RUN} FROM run WHERE {where} ORDER BY begun_at DESC"  # noqa: S608
        return [_run(row) for row in transaction.execute(sql, parameters).fetchall()]


def _run(row: Any) -> Run:
    return Run(**dict(zip([name.strip() for name in _RUN.split(",")], row, strict=True)))
