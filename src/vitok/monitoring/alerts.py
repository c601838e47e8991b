"""Alerts that hold: raised after several windows in a row, open once, cleared after several quiet ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitok.clock import DAY, isoformat
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring.database import Database
from vitok.stats.results import Result

Severity = Literal["critical", "warning", "info"]
State = Literal["open", "cleared"]
_SEVERITIES = ("critical", "warning", "info")
_SCHEMA = """
CREATE TABLE observation (
    rule TEXT NOT NULL,
    system TEXT NOT NULL,
    version TEXT NOT NULL,
    window_end INTEGER NOT NULL,
    firing INTEGER NOT NULL,
    value REAL,
    bound REAL,
    reason TEXT NOT NULL,
    observed_at INTEGER NOT NULL,
    PRIMARY KEY (rule, system, version, window_end)
) STRICT;
CREATE TABLE alert (
    id INTEGER PRIMARY KEY,
    rule TEXT NOT NULL,
    severity TEXT NOT NULL,
    system TEXT NOT NULL,
    version TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    raised_at INTEGER NOT NULL,
    value REAL,
    bound REAL,
    reason TEXT NOT NULL,
    playbook TEXT NOT NULL,
    cleared_at INTEGER,
    cleared_reason TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX alert_open ON alert (rule, system, version) WHERE cleared_at IS NULL;
CREATE TABLE progress (system TEXT PRIMARY KEY, until INTEGER NOT NULL) STRICT
"""
_ALERT = (
    "id, rule, severity, system, version, first_seen, raised_at, value, bound, reason, playbook,"
    " cleared_at, cleared_reason"
)


@dataclass(frozen=True, kw_only=True)
class AlertRule:
    """When observations become an alert, and what to do then.

    Args:
        name: Name of the rule, such as `"data_drift"`.
        severity: `"critical"`, `"warning"` or `"info"`.
        playbook: The next step, in words that a person on call can follow or the loop can take.
        windows: Firing windows in a row that raise it, at least 1.
        clear_after: Quiet windows in a row that clear it, at least 1.
        every: How far the ends of two windows in a row are apart, in microseconds.

    Raises:
        InvalidInput: If an argument is outside its range.
    """

    name: str
    severity: Severity
    playbook: str
    windows: int = 3
    clear_after: int = 3
    every: int = DAY

    def __post_init__(self) -> None:
        if not self.name or not self.playbook:
            raise InvalidInput(
                "name, playbook", (self.name, self.playbook), "not be empty", "An alarm names its action"
            )
        if self.severity not in _SEVERITIES:
            raise InvalidInput("severity", self.severity, f"be one of {', '.join(_SEVERITIES)}")
        for field in ("windows", "clear_after", "every"):
            if getattr(self, field) < 1:
                raise InvalidInput(field, getattr(self, field), "be at least 1")


@dataclass(frozen=True, kw_only=True)
class Alert(Result):
    """An alert, open or cleared. Times are microseconds.

    Attributes:
        id: Number in its file.
        rule: Name of the rule.
        severity: `"critical"`, `"warning"` or `"info"`.
        system: Which system.
        version: Which model version, or `"all"`.
        first_seen: End of the first of the windows in a row.
        raised_at: End of the window that raised it.
        value: What was measured there; NaN where there is no number.
        bound: What it was held against.
        reason: Why, in words.
        playbook: The next step.
        state: `"open"` or `"cleared"`.
        cleared_at: End of the window that cleared it, or when somebody did; None while it is open.
        cleared_reason: Why it was cleared; empty while it is open.
    """

    id: int
    rule: str
    severity: str
    system: str
    version: str
    first_seen: int
    raised_at: int
    value: float
    bound: float
    reason: str
    playbook: str
    state: State
    cleared_at: int | None
    cleared_reason: str

    def __str__(self) -> str:
        text = (
            f"{isoformat(self.raised_at)} {self.severity} {self.rule} of {self.version} ({self.system}): {self.reason}"
        )
        if self.cleared_at is not None:
            return f"{text}. Cleared {isoformat(self.cleared_at)}: {self.cleared_reason}"
        return f"{text}. Next: {self.playbook}"


@dataclass(frozen=True, kw_only=True)
class Observation(Result):
    """What one rule saw in one window.

    Attributes:
        rule: Name of the rule.
        system: Which system.
        version: Which model version, or `"all"`.
        window_end: End of the window, in microseconds.
        firing: Whether the rule's condition held.
        value: What was measured; NaN where there is no number.
        bound: What it was held against.
        reason: Why, in words.
        observed_at: When it was looked at, in microseconds.
    """

    rule: str
    system: str
    version: str
    window_end: int
    firing: bool
    value: float
    bound: float
    reason: str
    observed_at: int

    def __str__(self) -> str:
        state = "FIRING" if self.firing else "quiet"
        return f"{isoformat(self.window_end)} {self.rule} of {self.version}: {state}, {self.reason}"


class Alerts:
    """Observations and the alerts that came of them, in a SQLite file.

    There is at most one open alert of a rule, system and version. Windows come in order: one that was observed
    already, or lies before one that was, changes nothing. A window that is missing is neither firing nor quiet, and
    breaks both rows.

    Args:
        path: The file; made where it does not exist.

    Raises:
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> rule = AlertRule(name="data_drift", severity="warning", windows=2, playbook="look at the source")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     alerts = Alerts(Path(folder) / "alerts.sqlite")
        ...     raised = [
        ...         alerts.observe(rule, system="fraud", version="fraud/1", window_end=day * DAY, firing=True,
        ...             value=0.3, bound=0.1, reason="amount moved", now=day * DAY)
        ...         for day in (1, 2, 3)]
        ...     alerts.close()
        >>> print(*raised, sep="; ")
        None; 1970-01-03T00:00:00Z warning data_drift of fraud/1 (fraud): amount moved. Next: look at the source; None
    """

    def __init__(self, path: str | Path) -> None:
        self._database = Database(path, schema=_SCHEMA, kind="alerts", version=1)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def observe(
        self,
        rule: AlertRule,
        *,
        system: str,
        version: str,
        window_end: int,
        firing: bool,
        value: float,
        bound: float,
        reason: str,
        now: int,
    ) -> Alert | None:
        """Records what a rule saw in a window, and raises or clears the alert where that is due.

        Args:
            rule: The rule.
            system: Which system.
            version: Which model version, or `"all"`.
            window_end: End of the window, in microseconds; windows in a row are `rule.every` apart.
            firing: Whether the rule's condition held.
            value: What was measured; NaN where there is no number.
            bound: What it was held against.
            reason: Why, in words.
            now: The present, in microseconds, not before the window's end.

        Returns:
            The alert that was raised or cleared by this very observation, else None. Who acts on alerts reads
            `open`, which also has what a crash swallowed here.

        Raises:
            InvalidInput: If the window has not ended yet.
            StoreError: If the file cannot be written; nothing was observed then.
        """
        if window_end > now:
            raise InvalidInput("window_end", window_end, f"not be after now ({now})", "Observe closed windows only")
        key = (rule.name, system, version)
        of = "rule = ? AND system = ? AND version = ?"
        with self._database.writing() as transaction:
            last = transaction.execute(f"SELECT max(window_end) FROM observation WHERE {of}", key).fetchone()[0]  # noqa: S608
            if last is not None and window_end <= last:
                return None
            transaction.execute(
                "INSERT INTO observation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, window_end, int(firing), _number(value), _number(bound), reason, now),
            )
            found = transaction.execute(
                f"SELECT {_ALERT} FROM alert WHERE {of} ORDER BY id DESC LIMIT 1",  # noqa: S608
                key,
            ).fetchone()
            latest = None if found is None else _alert(found)
            is_open = latest is not None and latest.state == "open"
            if is_open is firing:
                return None
            needed = rule.clear_after if is_open else rule.windows
            # A row starts anew after an alert was cleared, also where a person or the loop cleared it.
            after = -math.inf if latest is None else (latest.raised_at if is_open else latest.cleared_at)
            rows = transaction.execute(
                f"SELECT window_end, firing FROM observation WHERE {of} AND window_end > ?"  # noqa: S608
                " ORDER BY window_end DESC LIMIT ?",
                (*key, after, needed),
            ).fetchall()
            in_row = len(rows) == needed and all(
                end == window_end - step * rule.every and bool(fired) is firing
                for step, (end, fired) in enumerate(rows)
            )
            if not in_row:
                return None
            if latest is not None and is_open:
                quiet = f"{needed} quiet windows in a row; the last: {reason}"
                return _clear(transaction, latest.id, window_end, quiet)
            new = transaction.execute(
                "INSERT INTO alert (rule, severity, system, version, first_seen, raised_at, value, bound, reason,"
                " playbook) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(rule.name, rule.severity, system, version, rows[-1][0], window_end),
                    *(_number(value), _number(bound), reason, rule.playbook),
                ),
            ).lastrowid
            return _one(transaction, int(new or 0))

    def clear(self, alert_id: int, *, now: int, reason: str) -> Alert:
        """Clears an alert by hand or by playbook; one that is cleared already stays as it is.

        Args:
            alert_id: Which alert.
            now: The present, in microseconds; windows that ended until then no longer count.
            reason: Why, in words.

        Raises:
            NotFound: If there is no such alert.
        """
        with self._database.writing() as transaction:
            found = _one(transaction, alert_id)
            return found if found.state == "cleared" else _clear(transaction, alert_id, now, reason)

    def open(self, *, system: str | None = None) -> tuple[Alert, ...]:
        """Returns the open alerts, critical ones first, then by age."""
        found = self._select("cleared_at IS NULL AND (?1 IS NULL OR system = ?1)", (system,))
        return tuple(sorted(found, key=lambda alert: (_SEVERITIES.index(alert.severity), alert.raised_at, alert.id)))

    def history(self, *, system: str | None = None) -> tuple[Alert, ...]:
        """Returns all alerts, open and cleared, in the order in which they were raised."""
        return self._select("?1 IS NULL OR system = ?1", (system,))

    def observations(
        self, *, system: str, rule: str | None = None, version: str | None = None, since: int | None = None
    ) -> tuple[Observation, ...]:
        """Returns what was observed, by window: the course of a value over time.

        Args:
            system: Which system.
            rule: Of which rule; None for any.
            version: Of which version; None for any.
            since: Only windows that end after this time, in microseconds.
        """
        rows = self._database.read(
            "SELECT rule, system, version, window_end, firing, value, bound, reason, observed_at FROM observation"
            " WHERE system = ?1 AND (?2 IS NULL OR rule = ?2) AND (?3 IS NULL OR version = ?3)"
            " AND (?4 IS NULL OR window_end > ?4) ORDER BY window_end, rule, version",
            (system, rule, version, since),
        )
        return tuple(
            Observation(
                rule=row[0],
                system=row[1],
                version=row[2],
                window_end=row[3],
                firing=bool(row[4]),
                value=_float(row[5]),
                bound=_float(row[6]),
                reason=row[7],
                observed_at=row[8],
            )
            for row in rows
        )

    def watched_until(self, system: str) -> int | None:
        """Returns the end of the last day that `Watch` finished, in microseconds; None before the first."""
        rows = self._database.read("SELECT until FROM progress WHERE system = ?", (system,))
        return int(rows[0][0]) if rows else None

    def finish(self, system: str, until: int) -> None:
        """Records that all windows of a system that end until then were observed; never goes back."""
        with self._database.writing() as transaction:
            transaction.execute(
                "INSERT INTO progress VALUES (?1, ?2) ON CONFLICT (system) DO UPDATE SET until = max(until, ?2)",
                (system, until),
            )

    def _select(self, where: str, parameters: Sequence[Any]) -> tuple[Alert, ...]:
        sql = f"SELECT {_ALERT} FROM alert WHERE {where} ORDER BY raised_at, id"  # noqa: S608
        return tuple(_alert(row) for row in self._database.read(sql, parameters))


def _one(transaction: Any, alert_id: int) -> Alert:
    row = transaction.execute(f"SELECT {_ALERT} FROM alert WHERE id = ?", (alert_id,)).fetchone()  # noqa: S608
    if row is None:
        known = transaction.execute("SELECT id FROM alert ORDER BY id DESC LIMIT 12").fetchall()
        raise NotFound("alert", alert_id, [one[0] for one in known])
    return _alert(row)


def _clear(transaction: Any, alert_id: int, at: int, reason: str) -> Alert:
    transaction.execute("UPDATE alert SET cleared_at = ?, cleared_reason = ? WHERE id = ?", (at, reason, alert_id))
    return _one(transaction, alert_id)


def _alert(row: Sequence[Any]) -> Alert:
    return Alert(
        id=row[0],
        rule=row[1],
        severity=row[2],
        system=row[3],
        version=row[4],
        first_seen=row[5],
        raised_at=row[6],
        value=_float(row[7]),
        bound=_float(row[8]),
        reason=row[9],
        playbook=row[10],
        state="open" if row[11] is None else "cleared",
        cleared_at=row[11],
        cleared_reason=row[12],
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _float(value: float | None) -> float:
    return math.nan if value is None else value
