"""Alerts that hold: raised after several windows in a row, open once, cleared after several quiet ones."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitok.clock import HOUR, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring.prometheus import Sample
from vitok.monitoring.rules import (
    ALL_VERSIONS,
    SEVERITIES,
    WINDOWS,
    AlertRule,
    Labels,
    RuleState,
    advance,
    canonical,
    check_names,
)
from vitok.stats.results import Result

State = Literal["open", "cleared"]
_RULES_AND_SLICES = """
CREATE UNIQUE INDEX alert_open ON alert (rule, system, version, slice) WHERE cleared_at IS NULL;
CREATE TABLE rule_state (
    rule TEXT NOT NULL,
    labels TEXT NOT NULL,
    since INTEGER NOT NULL,
    fired_at INTEGER,
    quiet_since INTEGER,
    value REAL,
    alert INTEGER,
    PRIMARY KEY (rule, labels)
) STRICT;
CREATE TABLE rule_time (rule TEXT PRIMARY KEY, at INTEGER NOT NULL) STRICT;
"""
_SCHEMA = (
    """
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
    slice TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    raised_at INTEGER NOT NULL,
    value REAL,
    bound REAL,
    reason TEXT NOT NULL,
    playbook TEXT NOT NULL,
    cleared_at INTEGER,
    cleared_reason TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE progress (system TEXT PRIMARY KEY, until INTEGER NOT NULL) STRICT;
"""
    + _RULES_AND_SLICES
)
# Files of the first layout knew neither slices nor rules about gauges.
_MIGRATIONS = {
    1: "ALTER TABLE alert ADD COLUMN slice TEXT NOT NULL DEFAULT ''; DROP INDEX alert_open;" + _RULES_AND_SLICES
}
# Two processes may differ by this much; what lies farther ahead was written while the clock was wrong.
_AHEAD = HOUR
_ALERT = (
    "id, rule, severity, system, version, slice, first_seen, raised_at, value, bound, reason, playbook,"
    " cleared_at, cleared_reason"
)


@dataclass(frozen=True, kw_only=True)
class Alert(Result):
    """An alert, open or cleared. Times are microseconds.

    Attributes:
        id: Number in its file.
        rule: Name of the rule.
        severity: `"critical"`, `"warning"` or `"info"`.
        system: Which system.
        version: Which model version, or `"all"`.
        slice: Which part of the decisions, such as `"country=FR"`; empty for all of them.
        first_seen: Since when: end of the first of the windows in a row.
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
    slice: str = ""
    first_seen: int
    raised_at: int
    value: float
    bound: float
    reason: str
    playbook: str
    state: State
    cleared_at: int | None
    cleared_reason: str

    @property
    def fingerprint(self) -> str:
        """What it is about, in 16 characters: the same for each time that this rule fires on this subject."""
        subject = json.dumps([self.rule, self.system, self.version, self.slice])
        return hashlib.sha256(subject.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        where = f", {self.slice}" if self.slice else ""
        text = (
            f"{isoformat(self.raised_at)} {self.severity} {self.rule} of {self.version} ({self.system}{where}):"
            f" {self.reason}"
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

    There is at most one open alert of a rule, system, version and slice. Windows come in order: one that was observed
    already, or lies before one that was, changes nothing. A window that is missing is neither firing nor quiet, and
    breaks both rows.

    Args:
        path: The file; made where it does not exist.

    Raises:
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> from vitok.clock import DAY
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
        # Durable: delivery and incidents refer to alerts by number, so none may vanish and its number come again.
        self._database = Database(path, schema=_SCHEMA, kind="alerts", version=2, migrations=_MIGRATIONS, durable=True)

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
        slice: str = "",  # noqa: A002 - as the alert has it
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
            slice: Which part of the decisions shows it, for the alert that this window raises; it does not tell
                alerts apart.

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
            # Windows that have not ended yet were observed while the clock was ahead; they would stop all others.
            transaction.execute(f"DELETE FROM observation WHERE {of} AND window_end > ?", (*key, now + _AHEAD))  # noqa: S608
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
            if after is None or after > now + _AHEAD:
                after = -math.inf
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
            return _raise(
                transaction,
                rule,
                (system, version, slice),
                since=rows[-1][0],
                at=window_end,
                value=value,
                bound=bound,
                reason=reason,
            )

    def evaluate(self, rules: Sequence[AlertRule], samples: Iterable[Sample], *, now: int) -> tuple[Alert, ...]:
        """Evaluates rules about gauges once, as of now, and raises or clears what is due.

        What is pending and what fires is kept in the file, so a restart begins no `for` anew. Rules without a metric
        are about windows and pass by here: `observe` is theirs.

        Args:
            rules: The rules; a series that raised an alert and whose rule is not among them stays as it is.
            samples: All gauges as they are now; a series that is not among them is gone.
            now: The present, in microseconds. A time that was evaluated already, or an earlier one, changes nothing,
                unless it is so much earlier that the clock must have been set back; then it goes on from there.

        Returns:
            The alerts that were raised or cleared by this very evaluation.

        Raises:
            InvalidInput: If two rules have one name, as they would share their memory.
            StoreError: If the file cannot be written; nothing was evaluated then.
        """
        check_names(rules)
        vectors: dict[str, list[Sample]] = {}
        for sample in samples:
            vectors.setdefault(sample.metric, []).append(sample)
        changed: list[Alert] = []
        with self._database.writing() as transaction:
            for rule in rules:
                if not rule.metric:
                    continue
                last = transaction.execute("SELECT at FROM rule_time WHERE rule = ?", (rule.name,)).fetchone()
                if last is None or now > last[0] or now < last[0] - _AHEAD:
                    changed += _evaluate(transaction, rule, vectors.get(rule.metric, ()), now)
                    transaction.execute("INSERT OR REPLACE INTO rule_time VALUES (?, ?)", (rule.name, now))
        return tuple(changed)

    def windows(self, rules: Sequence[AlertRule], *, system: str) -> tuple[Sample, ...]:
        """Returns the gauge that rules about windows compare: firing windows in a row, quiet ones as a negative.

        A row begins anew where an alert was raised or cleared, so that Prometheus raises and clears when `observe`
        does.

        Args:
            rules: The rules; those about gauges have none.
            system: Which system.
        """
        found = []
        for rule in rules:
            if rule.metric:
                continue
            versions = self._database.read(
                "SELECT DISTINCT version FROM observation WHERE rule = ? AND system = ?", (rule.name, system)
            )
            for (version,) in versions:
                labels = {"rule": rule.name, "system": system, "version": version}
                found.append(Sample(metric=WINDOWS, labels=labels, value=float(self._row(rule, system, version))))
        return tuple(found)

    def _row(self, rule: AlertRule, system: str, version: str) -> int:
        key = (rule.name, system, version)
        needed = max(rule.windows, rule.clear_after)
        latest = self._database.read(
            "SELECT raised_at, cleared_at FROM alert WHERE rule = ? AND system = ? AND version = ?"
            " ORDER BY id DESC LIMIT 1",
            key,
        )
        rows = self._database.read(
            "SELECT window_end, firing FROM observation WHERE rule = ? AND system = ? AND version = ?"
            " ORDER BY window_end DESC LIMIT ?",
            (*key, needed),
        )
        raised, cleared = latest[0] if latest else (None, None)
        is_open, firing = raised is not None and cleared is None, bool(rows[0][1])
        # Firing windows count towards the next alert, quiet ones towards the end of this one.
        start = cleared if firing and not is_open else raised if is_open and not firing else None
        length = 0
        for place, (end, fired) in enumerate(rows):
            if end != rows[0][0] - place * rule.every or bool(fired) is not firing or (start or -math.inf) >= end:
                break
            length += 1
        if is_open:
            return length if firing else -length
        # Where it was cleared by hand, Prometheus lets go only if it sees as many quiet windows.
        return length if firing and length else -max(length, rule.clear_after)

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
            transaction.execute("DELETE FROM rule_state WHERE alert = ?", (alert_id,))
            return found if found.state == "cleared" else _clear(transaction, alert_id, now, reason)

    def get(self, alert_id: int) -> Alert:
        """Returns one alert.

        Raises:
            NotFound: If there is no such alert.
        """
        found = self._select("id = ?", (alert_id,))
        if not found:
            raise NotFound("alert", alert_id, [alert.id for alert in self.history()[-12:]])
        return found[0]

    def after(self, alert_id: int) -> tuple[Alert, ...]:
        """Returns the alerts that were raised after another one, open and cleared, by number; after 0 all."""
        return tuple(sorted(self._select("id > ?", (alert_id,)), key=lambda alert: alert.id))

    def open(self, *, system: str | None = None) -> tuple[Alert, ...]:
        """Returns the open alerts, critical ones first, then by age."""
        found = self._select("cleared_at IS NULL AND (?1 IS NULL OR system = ?1)", (system,))
        return tuple(sorted(found, key=lambda alert: (SEVERITIES.index(alert.severity), alert.raised_at, alert.id)))

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

    def finish(self, system: str, until: int, *, now: int | None = None) -> None:
        """Records that all windows of a system that end until then were observed; never goes back.

        Args:
            system: Which system.
            until: End of the last window, in microseconds.
            now: The present, in microseconds: what was recorded as later than this was so while the clock was ahead,
                and gives way. None takes the record as right.
        """
        latest = 2**62 if now is None else now + _AHEAD
        with self._database.writing() as transaction:
            transaction.execute(
                "INSERT INTO progress VALUES (?1, ?2) ON CONFLICT (system) DO UPDATE"
                " SET until = CASE WHEN until > ?3 THEN ?2 ELSE max(until, ?2) END",
                (system, until, latest),
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


def _evaluate(transaction: Any, rule: AlertRule, samples: Iterable[Sample], now: int) -> list[Alert]:
    condition = rule.condition
    rows = transaction.execute(
        "SELECT labels, since, fired_at, quiet_since, value, alert FROM rule_state WHERE rule = ?", (rule.name,)
    ).fetchall()
    states = {
        _labels(row[0]): RuleState(
            since=min(row[1], now), fired_at=_until(row[2], now), quiet_since=_until(row[3], now), value=_float(row[4])
        )
        for row in rows
    }
    alerts = {_labels(row[0]): row[5] for row in rows}
    vector = {
        canonical(sample.labels): sample.value for sample in samples if condition.matches(rule.metric, sample.labels)
    }
    changed = []
    after = advance(rule, states, vector, now)
    for labels in dict.fromkeys((*states, *after)):
        key = (rule.name, json.dumps(labels))
        state, alert = after.get(labels), alerts.get(labels)
        if state is None or (not state.firing and alert is not None):
            transaction.execute("DELETE FROM rule_state WHERE rule = ? AND labels = ?", key)
            shared = transaction.execute("SELECT count(*) FROM rule_state WHERE alert = ?", (alert,)).fetchone()[0]
            if alert is not None and not shared:
                changed.append(_clear(transaction, alert, now, "the condition does not hold any more"))
        if state is None:
            continue
        if state.firing and alert is None:
            # Series whose labels are one subject share an alert, and so does a rule that was about windows before.
            alert = _open_of(transaction, rule, _subject(labels))
        if state.firing and alert is None:
            raised = _raise(
                transaction,
                rule,
                _subject(labels),
                since=state.since,
                at=now,
                value=state.value,
                bound=condition.threshold,
                reason=rule.summary(dict(labels), state.value),
            )
            changed.append(raised)
            alert = raised.id
        transaction.execute(
            "INSERT OR REPLACE INTO rule_state VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, state.since, state.fired_at, state.quiet_since, _number(state.value), alert),
        )
    return changed


def _open_of(transaction: Any, rule: AlertRule, subject: tuple[str, str, str]) -> int | None:
    row = transaction.execute(
        "SELECT id FROM alert WHERE rule = ? AND system = ? AND version = ? AND slice = ? AND cleared_at IS NULL",
        (rule.name, *subject),
    ).fetchone()
    return None if row is None else int(row[0])


def _until(time: int | None, now: int) -> int | None:
    return None if time is None else min(time, now)


def _labels(text: str) -> Labels:
    return tuple((name, value) for name, value in json.loads(text))


def _subject(labels: Labels) -> tuple[str, str, str]:
    """Returns system, version and slice; labels that are none of these become part of the slice."""
    given: Mapping[str, str] = dict(labels)
    parts = [given["slice"]] if "slice" in given else []
    parts += [f"{name}={value}" for name, value in labels if name not in ("system", "version", "slice")]
    return given.get("system", ""), given.get("version", ALL_VERSIONS), ", ".join(parts)


def _raise(
    transaction: Any,
    rule: AlertRule,
    subject: tuple[str, str, str],
    *,
    since: int,
    at: int,
    value: float,
    bound: float,
    reason: str,
) -> Alert:
    new = transaction.execute(
        "INSERT INTO alert (rule, severity, system, version, slice, first_seen, raised_at, value, bound, reason,"
        " playbook) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (rule.name, rule.severity, *subject, since, at, _number(value), _number(bound), reason, rule.playbook),
    ).lastrowid
    return _one(transaction, int(new or 0))


def _alert(row: Sequence[Any]) -> Alert:
    names = [name.strip() for name in _ALERT.split(",")]
    fields = dict(zip(names, row, strict=True))
    numbers = {name: _float(fields[name]) for name in ("value", "bound")}
    return Alert(**{**fields, **numbers, "state": "open" if fields["cleared_at"] is None else "cleared"})


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _float(value: float | None) -> float:
    return math.nan if value is None else value
