"""Whom an alert is told, when, and how often: routes by severity, grouping, silences, inhibition, escalation.

`Delivery` follows the alerts of a file and writes each message down before it is sent, so that a crash at any place
costs at most a message sent twice. It changes no alert: silenced or not, an alert is raised, shown and cleared.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitok.clock import DAY, HOUR, MINUTE, SECOND, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.monitoring import outbox, silences
from vitok.monitoring.alerts import Alert, Alerts
from vitok.monitoring.notices import notice_of, summary_of
from vitok.monitoring.outbox import Channel, Delivered, Message, Notice, Outbox, Retry
from vitok.monitoring.prometheus import Sample
from vitok.monitoring.rules import SEVERITIES, Severity
from vitok.monitoring.silences import Silence, Silences

_SCHEMA = (
    outbox.SCHEMA
    + silences.SCHEMA
    + """
CREATE TABLE followed (
    alert INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    noticed_at INTEGER NOT NULL,
    told_at INTEGER,
    held TEXT NOT NULL DEFAULT '',
    ended INTEGER NOT NULL DEFAULT 0,
    escalated INTEGER NOT NULL DEFAULT 0,
    acknowledged_at INTEGER,
    acknowledged_by TEXT NOT NULL DEFAULT '',
    summed INTEGER NOT NULL DEFAULT 0,
    raised_at INTEGER,
    told_as TEXT NOT NULL DEFAULT '',
    told_key TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE summary (severity TEXT NOT NULL, day INTEGER NOT NULL, PRIMARY KEY (severity, day)) STRICT;
"""
)
_MIGRATIONS = {
    1: outbox.MIGRATION_1
    + """
ALTER TABLE followed ADD COLUMN raised_at INTEGER;
ALTER TABLE followed ADD COLUMN told_as TEXT NOT NULL DEFAULT '';
ALTER TABLE followed ADD COLUMN told_key TEXT NOT NULL DEFAULT '';
UPDATE followed SET told_as = fingerprint, told_key = 'raised/' || alert WHERE told_at IS NOT NULL;
"""
}
_FOLLOWED = (
    "alert, fingerprint, noticed_at, told_at, held, ended, escalated, acknowledged_at, acknowledged_by, summed,"
    " told_as, told_key"
)


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """Who is told next where nobody has acknowledged.

    Attributes:
        after: How long after the first message, in microseconds.
        channels: Names of the channels.
    """

    after: int
    channels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Route:
    """What happens with the alerts of a severity.

    Attributes:
        severity: Which severity.
        channels: Names of the channels that are told.
        wait: How long the first alert of a group waits for others of its system, in microseconds; 0 tells each
            alert at once, in a message of its own.
        daily_at: Tell them once a day, at this time of the day (UTC) in microseconds, together with what else
            happened; None tells them as they come.
        cleared: Whether the end of an alert is told too.
        escalations: Who is told next, in order, where nobody acknowledges.
    """

    severity: Severity
    channels: tuple[str, ...]
    wait: int = 0
    daily_at: int | None = None
    cleared: bool = True
    escalations: tuple[Escalation, ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise InvalidInput("severity", self.severity, f"be one of {', '.join(SEVERITIES)}")
        if self.wait < 0 or (self.daily_at is not None and not 0 <= self.daily_at < DAY):
            raise InvalidInput("wait, daily_at", (self.wait, self.daily_at), "be at least 0, and within a day")
        after = [one.after for one in self.escalations]
        if after != sorted(after) or any(value <= 0 for value in after):
            raise InvalidInput("escalations", after, "come later and later")


@dataclass(frozen=True, kw_only=True)
class DeliveryRules:
    """What keeps people from being told too much.

    Attributes:
        routes: One for each severity that is told.
        inhibited_by: Severities that keep an open alert of a lesser one back, by the severity that is kept back. An
            alert that nobody is told, since it is silenced or has no route, keeps none back.
        same: What such two alerts must have in common: `"system"`, `"version"`, `"slice"`. Alerts without a system
            have none in common.
        repeat_after: An alert on the same subject as one that was told is told again only so long after it, in
            microseconds.
        retry: How often a message is tried.
        keep: How long messages and what is known of alerts are kept after their end, in microseconds.
    """

    routes: tuple[Route, ...]
    inhibited_by: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"warning": ("critical",)})
    same: tuple[str, ...] = ("system",)
    repeat_after: int = HOUR
    retry: Retry = field(default_factory=Retry)
    keep: int = 90 * DAY

    def __post_init__(self) -> None:
        severities = [route.severity for route in self.routes]
        if not severities or len(set(severities)) < len(severities):
            raise InvalidInput("routes", severities, "be at least one, and one a severity")
        if not set(self.same) <= {"system", "version", "slice"}:
            raise InvalidInput("same", self.same, "be of system, version and slice")
        for held, stronger in self.inhibited_by.items():
            ranks: dict[str, int] = {name: place for place, name in enumerate(SEVERITIES)}
            if held not in ranks or any(ranks.get(name, len(ranks)) >= ranks[held] for name in stronger):
                raise InvalidInput("inhibited_by", {held: stronger}, "name severities that are stronger than it")
        if self.keep < max(self.repeat_after, self.retry.give_up, 2 * DAY):
            raise InvalidInput("keep", self.keep, "be at least two days, repeat_after and the time of giving up")

    @classmethod
    def usual(cls, *, critical: Sequence[str], warning: Sequence[str], info: Sequence[str]) -> "DeliveryRules":
        """Returns the usual rules: critical at once and again after 15 minutes, warnings in groups, info once a day.

        Args:
            critical: Channels for critical alerts, such as a pager.
            warning: Channels for warnings, such as a chat; also told of critical alerts that nobody acknowledges.
            info: Channels of the daily summary, such as a mailbox. A name in place of a list is InvalidInput.
        """
        if any(isinstance(names, str) for names in (critical, warning, info)):
            raise InvalidInput("channels", (critical, warning, info), "be lists of names", "Write ['pager'] for one")
        again = Escalation(after=15 * MINUTE, channels=(*critical, *warning))
        return cls(
            routes=(
                Route(severity="critical", channels=tuple(critical), escalations=(again,)),
                Route(severity="warning", channels=tuple(warning), wait=30 * SECOND),
                Route(severity="info", channels=tuple(info), daily_at=7 * HOUR),
            )
        )


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What delivery knows of an alert.

    Attributes:
        alert: The alert as it is now.
        noticed_at: When delivery saw it first, in microseconds.
        told_at: When its message was written down, None before.
        held: Why it is not told yet; empty where nothing holds it.
        ended: Whether its end was dealt with.
        escalated: How many escalations were made.
        acknowledged_at: When somebody took it, None before.
        acknowledged_by: Who.
        summed: Whether a daily summary has told it.
        told_as: Key of the notice that told it, shared by all that were told in it; empty before.
        told_key: Key of the messages of that notice, without the channel; empty before.
    """

    alert: Alert
    noticed_at: int
    told_at: int | None
    held: str
    ended: bool
    escalated: int
    acknowledged_at: int | None
    acknowledged_by: str
    summed: bool
    told_as: str = ""
    told_key: str = ""


class Delivery:
    """Tells people of alerts.

    Args:
        path: File of messages and silences; made where it does not exist.
        alerts: The alerts that are followed.
        channels: Ways to people, by name.
        rules: Whom to tell what.

    Raises:
        InvalidInput: If a route names a channel that is not there.
        StoreError: If the file cannot be opened, or is something else.

    Example:
        >>> import tempfile
        >>> from vitok.monitoring import AlertRule
        >>> class Wall:
        ...     def send(self, notice): print(notice.title)
        >>> rules = DeliveryRules(routes=(Route(severity="critical", channels=("wall",)),))
        >>> rule = AlertRule(name="absence", severity="critical", windows=1, playbook="check the service")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     alerts = Alerts(Path(folder) / "alerts.sqlite")
        ...     delivery = Delivery(Path(folder) / "delivery.sqlite", alerts, {"wall": Wall()}, rules)
        ...     _ = alerts.observe(rule, system="fraud", version="all", window_end=DAY, firing=True,
        ...         value=0.0, bound=1.0, reason="no decisions", now=DAY)
        ...     print(delivery.tick(now=DAY), delivery.tick(now=DAY), sep=chr(10))
        ...     delivery.close(), alerts.close()
        CRITICAL absence of fraud all: no decisions
        1 sent, 0 to be tried again, 0 given up
        0 sent, 0 to be tried again, 0 given up
        (None, None)
    """

    def __init__(self, path: str | Path, alerts: Alerts, channels: Mapping[str, Channel], rules: DeliveryRules) -> None:
        named = {name for route in rules.routes for name in route.channels}
        named |= {name for route in rules.routes for one in route.escalations for name in one.channels}
        for name in sorted(named - set(channels)):
            raise InvalidInput("rules: channel", name, f"be one of {', '.join(channels) or 'none'}")
        self._alerts = alerts
        self._rules = rules
        self._routes: dict[str, Route] = {route.severity: route for route in rules.routes}
        # Durable: what was written down here was promised to be told.
        self._database = open_delivery(path)
        self.outbox = Outbox(self._database, channels, rules.retry)
        self.silences = Silences(self._database)

    def close(self) -> None:
        """Closes the file; the alerts stay open."""
        self._database.close()

    def tick(self, now: int, *, clock: Callable[[], int] | None = None) -> Delivered:
        """Writes down what is to be told by now, and sends what is due; call it every few seconds.

        Args:
            now: The present, in microseconds.
            clock: Tells the time while messages are sent; by default `now` and what has passed since.

        Raises:
            StoreError: If a file cannot be read or written; the next tick goes on there.
        """
        self._follow(now)
        with self._database.writing() as transaction:
            followed = self._followed(transaction)
            self._hold(transaction, followed, now)
            followed = self._followed(transaction)
            self._tell(transaction, followed, now)
            self._tell_ends(transaction, followed, now)
            self._escalate(transaction, followed, now)
            self._sum_up(transaction, now)
            self._forget(transaction, now)
        return self.outbox.deliver(now, clock=clock)

    def followed(self) -> tuple[Followed, ...]:
        """Returns the alerts whose end was not told yet, and why each is held."""
        with self._database.writing() as transaction:
            return tuple(self._followed(transaction))

    def acknowledge(self, alert_id: int, *, who: str, now: int) -> None:
        """Records that somebody takes care of an alert: it escalates no further.

        Raises:
            NotFound: If no such alert is followed.
            Conflict: If somebody else has taken it.
        """
        acknowledge(self._database, alert_id, who=who, now=now)

    def dead(self) -> tuple[Message, ...]:
        """Returns the messages that were given up; `outbox.again` tries one anew."""
        return self.outbox.messages("dead")

    def samples(self) -> tuple[Sample, ...]:
        """Returns how many messages wait, were sent and are dead, by channel, as gauges."""
        rows = self._database.read("SELECT channel, state, count(*) FROM message GROUP BY channel, state")
        return tuple(
            Sample(metric="vitok_notices", labels={"channel": row[0], "state": row[1]}, value=float(row[2]))
            for row in rows
        )

    def _follow(self, now: int) -> None:
        with self._database.writing() as transaction:
            known = transaction.execute(
                "SELECT alert, fingerprint, raised_at FROM followed ORDER BY alert DESC LIMIT 1"
            ).fetchone()
            new = self._alerts.after(0 if known is None else known[0] - 1)
            if known is not None:
                # Where the last one is not there, the file of alerts is another: put back, or begun anew. Its numbers
                # come again, and who took them for those of before would never tell anybody.
                new = new[1:] if new and _is_same(known, new[0]) else self._followed_anew(transaction)
            for alert in new:
                transaction.execute(
                    "INSERT INTO followed (alert, fingerprint, raised_at, noticed_at) VALUES (?, ?, ?, ?)",
                    (alert.id, alert.fingerprint, alert.raised_at, now),
                )

    def _followed_anew(self, transaction: Any) -> tuple[Alert, ...]:
        """Forgets the alerts that are not there any more; returns those that are not followed."""
        present = {alert.id: alert for alert in self._alerts.after(0)}
        kept = set()
        for row in transaction.execute("SELECT alert, fingerprint, raised_at FROM followed").fetchall():
            if row[0] in present and _is_same(row, present[row[0]]):
                kept.add(row[0])
            else:
                transaction.execute("DELETE FROM followed WHERE alert = ?", (row[0],))
        return tuple(alert for alert in present.values() if alert.id not in kept)

    def _followed(self, transaction: Any) -> list[Followed]:
        rows = transaction.execute(f"SELECT {_FOLLOWED} FROM followed WHERE NOT ended ORDER BY alert").fetchall()  # noqa: S608
        return [
            Followed(
                alert=self._alerts.get(row[0]),
                noticed_at=row[2],
                told_at=row[3],
                held=row[4],
                ended=bool(row[5]),
                escalated=row[6],
                acknowledged_at=row[7],
                acknowledged_by=row[8],
                summed=bool(row[9]),
                told_as=row[10],
                told_key=row[11],
            )
            for row in rows
        ]

    # What holds an alert back

    def _hold(self, transaction: Any, followed: Iterable[Followed], now: int) -> None:
        followed = [one for one in followed if one.alert.state == "open"]
        silences = self.silences.all(at=now)
        for one in followed:
            held = self._why_held(transaction, one, followed, silences, now)
            if held != one.held:
                transaction.execute("UPDATE followed SET held = ? WHERE alert = ?", (held, one.alert.id))

    def _why_held(
        self, transaction: Any, one: Followed, followed: Iterable[Followed], known: Sequence[Silence], now: int
    ) -> str:
        alert = one.alert
        silence = _silencing(alert, known, now)
        if silence is not None:
            return f"silenced until {isoformat(silence.ends_at)} by {silence.who}: {silence.why}"
        stronger = self._rules.inhibited_by.get(alert.severity, ())
        for other in followed:
            alike = all(getattr(other.alert, name) == getattr(alert, name) for name in self._rules.same)
            if other.alert.severity not in stronger or not alike or ("system" in self._rules.same and not alert.system):
                continue
            if other.alert.severity in self._routes and _silencing(other.alert, known, now) is None:
                return f"inhibited by alert {other.alert.id}, {other.alert.rule}"
        if one.told_at is None:
            last = transaction.execute(
                "SELECT max(told_at) FROM followed WHERE fingerprint = ? AND alert < ?", (alert.fingerprint, alert.id)
            ).fetchone()[0]
            if last is not None and _within(now, last, self._rules.repeat_after):
                return f"the same was told at {isoformat(last)}"
        return ""

    # What is written down

    def _tell(self, transaction: Any, followed: Sequence[Followed], now: int) -> None:
        waiting: dict[tuple[str, str], list[Followed]] = {}
        for one in followed:
            route = self._routes.get(one.alert.severity)
            if route is None or route.daily_at is not None or one.told_at is not None or one.held:
                continue
            if one.alert.state == "open":
                waiting.setdefault((one.alert.severity, one.alert.system), []).append(one)
        for (severity, _), group in waiting.items():
            route = self._routes[severity]
            if _within(now, min(one.noticed_at for one in group), route.wait):
                continue
            parts = [group] if route.wait else [[one] for one in group]
            for part in parts:
                notice = notice_of("raised", [one.alert for one in part])
                key = self._put(transaction, route.channels, notice, part, now)
                for one in part:
                    transaction.execute(
                        "UPDATE followed SET told_at = ?, told_as = ?, told_key = ? WHERE alert = ?",
                        (now, notice.key, key, one.alert.id),
                    )

    def _tell_ends(self, transaction: Any, followed: Iterable[Followed], now: int) -> None:
        for one in followed:
            if one.alert.state == "open":
                continue
            route = self._routes.get(one.alert.severity)
            daily = route is not None and route.daily_at is not None
            if daily and not one.summed:
                continue
            if route is not None and route.cleared and not daily and one.told_at is not None:
                told = [
                    *route.channels,
                    *(name for step in route.escalations[: one.escalated] for name in step.channels),
                ]
                # Of several that were told as one, only the last may end it at the receiver.
                others = transaction.execute(
                    "SELECT count(*) FROM followed WHERE told_key = ? AND NOT ended AND alert <> ?",
                    (one.told_key, one.alert.id),
                ).fetchone()[0]
                key = one.alert.fingerprint if others else one.told_as
                self._put(transaction, dict.fromkeys(told), notice_of("cleared", [one.alert], key=key), [one], now)
            transaction.execute("UPDATE followed SET ended = 1 WHERE alert = ?", (one.alert.id,))

    def _escalate(self, transaction: Any, followed: Iterable[Followed], now: int) -> None:
        for one in followed:
            route = self._routes.get(one.alert.severity)
            if route is None or one.told_at is None or one.acknowledged_at is not None or one.held:
                continue
            if one.alert.state == "cleared" or one.escalated >= len(route.escalations):
                continue
            step = route.escalations[one.escalated]
            if _within(now, one.told_at, step.after) and not self._is_lost(transaction, route, one):
                continue
            notice = notice_of("escalated", [one.alert], since=one.told_at, level=one.escalated + 1, key=one.told_as)
            self._put(transaction, step.channels, notice, [one], now, suffix=f"/{one.escalated + 1}")
            transaction.execute("UPDATE followed SET escalated = escalated + 1 WHERE alert = ?", (one.alert.id,))

    def _is_lost(self, transaction: Any, route: Route, one: Followed) -> bool:
        """Says whether every message that first told of an alert was given up, so that nobody knows."""
        keys = [f"{channel}/{one.told_key}" for channel in route.channels]
        marks = ", ".join("?" * len(keys))
        dead = transaction.execute(
            f"SELECT count(*) FROM message WHERE state = 'dead' AND key IN ({marks})",  # noqa: S608
            keys,
        ).fetchone()[0]
        return bool(keys) and dead == len(keys)

    def _sum_up(self, transaction: Any, now: int) -> None:
        for route in self._routes.values():
            if route.daily_at is None:
                continue
            day = (now - route.daily_at) // DAY
            # Days that have not come were told while the clock was ahead; they would keep the true ones back.
            transaction.execute("DELETE FROM summary WHERE severity = ? AND day > ?", (route.severity, day + 1))
            of = (route.severity,)
            done = transaction.execute("SELECT max(day) FROM summary WHERE severity = ?", of).fetchone()[0]
            if done is not None and day <= done:
                continue
            transaction.execute("INSERT INTO summary VALUES (?, ?)", (route.severity, day))
            # The first tick of all only begins the days: nothing was left untold before it.
            if done is None:
                continue
            rows = transaction.execute("SELECT alert FROM followed WHERE NOT summed ORDER BY alert").fetchall()
            new = [alert for alert in (self._alerts.get(row[0]) for row in rows) if self._is_in(route, alert)]
            told = {one.id for one in new}
            still = [one for one in self._alerts.open() if one.id not in told and self._is_in(route, one)]
            notice = summary_of(new, still, route.severity, day * DAY + route.daily_at)
            for channel in route.channels:
                self.outbox.put(transaction, channel, notice, key=f"summary/{route.severity}/{day}/{now}", now=now)
            transaction.executemany("UPDATE followed SET summed = 1 WHERE alert = ?", [(number,) for number in told])

    def _is_in(self, route: Route, alert: Alert) -> bool:
        """Says whether a daily summary tells of an alert: its own ones, and all that have no summary of their own."""
        own = self._routes.get(alert.severity)
        return own is None or own.daily_at is None or own is route

    def _forget(self, transaction: Any, now: int) -> None:
        before = now - self._rules.keep
        self.outbox.forget(transaction, before=before)
        # The last one stays: by it the file of alerts is known again.
        transaction.execute(
            "DELETE FROM followed WHERE ended AND noticed_at < ? AND coalesce(told_at, 0) < ?"
            " AND alert < (SELECT max(alert) FROM followed)",
            (before, before),
        )
        transaction.execute("DELETE FROM summary WHERE day < ?", (before // DAY,))

    def _put(
        self,
        transaction: Any,
        channels: Iterable[str],
        notice: Notice,
        part: Sequence[Followed],
        now: int,
        *,
        suffix: str = "",
    ) -> str:
        numbers = ",".join(str(one.alert.id) for one in part)
        # With the time, since numbers come again in another file of alerts.
        key = f"{notice.kind}/{numbers}/{part[0].alert.raised_at}{suffix}"
        for channel in channels:
            self.outbox.put(transaction, channel, notice, key=key, now=now)
        return key


def open_delivery(path: str | Path) -> Database:
    """Opens the file of messages and silences, for `Silences` or `Outbox` alone, as the commands of the console do.

    Raises:
        StoreError: If the file cannot be opened, or is something else.
    """
    return Database(path, schema=_SCHEMA, kind="delivery", version=2, migrations=_MIGRATIONS, durable=True)


def acknowledge(database: Database, alert_id: int, *, who: str, now: int) -> None:
    """Records that somebody takes care of an alert, as `Delivery.acknowledge`, also where no service delivers.

    Args:
        database: The file of messages, as `open_delivery` returns it.
        alert_id: Number of the alert.
        who: Who takes it.
        now: The present, in microseconds.

    Raises:
        NotFound: If no such alert is followed.
        Conflict: If somebody else has taken it.
    """
    if not who.strip():
        raise InvalidInput("who", who, "not be empty")
    with database.writing() as transaction:
        row = transaction.execute("SELECT acknowledged_by FROM followed WHERE alert = ?", (alert_id,)).fetchone()
        if row is None:
            known = transaction.execute("SELECT alert FROM followed ORDER BY alert DESC LIMIT 12").fetchall()
            raise NotFound("followed alert", alert_id, [one[0] for one in known])
        if row[0] not in ("", who):
            raise Conflict(f"alert {alert_id} is acknowledged by {row[0]} already")
        transaction.execute(
            "UPDATE followed SET acknowledged_by = ?, acknowledged_at = coalesce(acknowledged_at, ?) WHERE alert = ?",
            (who, now, alert_id),
        )


def _is_same(row: Sequence[Any], alert: Alert) -> bool:
    return row[0] == alert.id and row[1] == alert.fingerprint and row[2] in (None, alert.raised_at)


def _silencing(alert: Alert, known: Iterable[Silence], now: int) -> Silence | None:
    return next((silence for silence in known if silence.matches(alert.__dict__, now)), None)


def _within(now: int, begin: int, span: int) -> bool:
    """Says whether less than a span has passed; one that begins far ahead was written while the clock was ahead."""
    return abs(now - begin) < span
