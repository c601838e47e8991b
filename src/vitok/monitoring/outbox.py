"""Messages that must arrive: written down first, sent then, and sent again until somebody has taken them.

A message is sent at least once. It carries a key by which the receiver knows it again, since one that was sent right
before the process died is sent anew. What is said of one subject arrives in the order in which it was said: an end
that overtook its beginning would leave an alarm at the receiver for ever.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vitok.clock import DAY, HOUR, MINUTE, SECOND, isoformat
from vitok.engines.sqlite import Database
from vitok.errors import InvalidInput, NotFound, VitokError
from vitok.stats.results import Result

Kind = Literal["raised", "cleared", "escalated", "summary"]
MessageState = Literal["waiting", "sent", "dead"]

SCHEMA = """
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    channel TEXT NOT NULL,
    notice TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    claimed_until INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'waiting',
    error TEXT NOT NULL DEFAULT '',
    ended_at INTEGER,
    subject TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX message_due ON message (state, due_at);
CREATE INDEX message_ended ON message (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX message_subject ON message (channel, subject, id) WHERE state = 'waiting';
"""
MIGRATION_1 = """
ALTER TABLE message ADD COLUMN subject TEXT NOT NULL DEFAULT '';
UPDATE message SET subject = json_extract(notice, '$.key') WHERE json_valid(notice);
CREATE INDEX message_ended ON message (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX message_subject ON message (channel, subject, id) WHERE state = 'waiting';
"""
_MESSAGE = "id, key, channel, notice, created_at, due_at, attempts, state, error, ended_at"
_LONGEST_ERROR = 300
# One pass ends after so long, so that what was raised meanwhile is written down, and a critical one goes first.
_LONGEST_PASS = MINUTE


@dataclass(frozen=True, kw_only=True)
class Notice(Result):
    """What people are told.

    Attributes:
        key: Names what it is about: a later notice with the same key (cleared) ends the earlier one (raised).
        kind: `"raised"`, `"cleared"`, `"escalated"` or `"summary"`.
        severity: Of the worst alert in it.
        title: One line.
        body: The text: system, version, slice, size, since when and playbook step of each alert.
        alerts: The alerts in it as dicts, as `Alert.to_dict` and its fingerprint.
    """

    key: str
    kind: Kind
    severity: str
    title: str
    body: str
    alerts: tuple[Mapping[str, Any], ...] = ()


class Channel(Protocol):
    """A way to somebody."""

    def send(self, notice: Notice) -> None:
        """Sends a notice and returns once it was taken.

        Raises:
            VitokError: If it was not taken; the message names no secret.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often a message is tried.

    Attributes:
        first: Pause after the first failure, in microseconds; it doubles with each.
        longest: Longest pause, in microseconds.
        jitter: Share of a pause that is drawn by lot, in [0, 1], so that not all come back at once.
        attempts: After so many failures a message is dead, at least 1.
        give_up: A message that is older is dead at its next failure, in microseconds.
        lease: How long one process has a message to itself, in microseconds; longer than a channel may take.
    """

    first: int = 30 * SECOND
    longest: int = HOUR
    jitter: float = 0.5
    attempts: int = 12
    give_up: int = DAY
    lease: int = 5 * MINUTE

    def __post_init__(self) -> None:
        for name in ("first", "longest", "attempts", "give_up", "lease"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"retry: {name}", getattr(self, name), "be at least 1")
        if not 0 <= self.jitter <= 1:
            raise InvalidInput("retry: jitter", self.jitter, "be in [0, 1]")

    def pause(self, key: str, attempts: int) -> int:
        """Returns the pause after so many failures, in microseconds; the lot is drawn by the message's key.

        Example:
            >>> Retry(jitter=0).pause("a", 3) // SECOND
            120
        """
        full = min(self.longest, self.first * 2 ** min(attempts - 1, 40))
        lot = int.from_bytes(hashlib.sha256(f"{key}/{attempts}".encode()).digest()[:8], "big") / 2**64
        return int(full * (1 - self.jitter * lot))


@dataclass(frozen=True, kw_only=True)
class Message(Result):
    """A notice on its way to one channel.

    Attributes:
        id: Its number.
        key: By which it is known again; one message a key.
        channel: Which channel.
        notice: What is told.
        created_at: When it was written down, in microseconds.
        due_at: When it is tried next.
        attempts: How often it was tried.
        state: `"waiting"`, `"sent"`, or `"dead"`, which is given up until somebody says `retry`.
        error: Why the last attempt failed; empty where none did.
        ended_at: When it was sent or given up, else None.
    """

    id: int
    key: str
    channel: str
    notice: Notice
    created_at: int
    due_at: int
    attempts: int
    state: MessageState
    error: str = ""
    ended_at: int | None = None

    def __str__(self) -> str:
        end = f" {isoformat(self.ended_at)}" if self.ended_at is not None else ""
        why = f": {self.error}" if self.error else ""
        return (
            f"{self.id} to {self.channel}: {self.state}{end} after {self.attempts} attempts, {self.notice.title}{why}"
        )


@dataclass(frozen=True, kw_only=True)
class Delivered(Result):
    """What became of the messages that were due.

    Attributes:
        sent: How many were taken.
        failed: How many will be tried again.
        dead: How many were given up.
    """

    sent: int = 0
    failed: int = 0
    dead: int = 0

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.failed} to be tried again, {self.dead} given up"


@dataclass
class Outbox:
    """The messages of one database, which holds the tables of `SCHEMA`.

    Args:
        database: Where they are.
        channels: Whom they go to, by name.
        retry: How often they are tried.
    """

    database: Database
    channels: Mapping[str, Channel]
    retry: Retry = field(default_factory=Retry)

    def put(self, transaction: Any, channel: str, notice: Notice, *, key: str, now: int) -> None:
        """Writes a message down in a transaction of the caller; one whose key is there already changes nothing."""
        transaction.execute(
            "INSERT INTO message (key, channel, notice, created_at, due_at, subject) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO NOTHING",
            (
                f"{channel}/{key}",
                channel,
                json.dumps(notice.to_dict() | {"alerts": list(notice.alerts)}),
                now,
                now,
                notice.key,
            ),
        )

    def deliver(self, now: int, *, clock: Callable[[], int] | None = None) -> Delivered:
        """Sends what is due, critical ones first; of several processes only one has a message.

        A channel that did not take a message is left alone until the next call, so that one which hangs holds the
        others up once a call and not once a message.

        Args:
            now: The present, in microseconds.
            clock: Tells the time while messages are sent, for their leases; by default `now` and what has passed
                since.
        """
        begin = time.monotonic_ns()
        counts = {"sent": 0, "waiting": 0, "dead": 0}
        failed: set[str] = set()
        present = now if clock is None else clock()
        end = present + _LONGEST_PASS
        while present < end and (message := self._claim(present, now, failed)) is not None:
            error = self._try(message)
            if error is not None:
                failed.add(message.channel)
            counts[self._settle(message, error, now)] += 1
            present = now + (time.monotonic_ns() - begin) // 1000 if clock is None else clock()
        return Delivered(sent=counts["sent"], failed=counts["waiting"], dead=counts["dead"])

    def messages(self, state: MessageState | None = None) -> tuple[Message, ...]:
        """Returns messages in the order in which they were written down; of one state where one is given."""
        rows = self.database.read(
            f"SELECT {_MESSAGE} FROM message WHERE ?1 IS NULL OR state = ?1 ORDER BY id",  # noqa: S608
            (state,),
        )
        return tuple(_message(row) for row in rows)

    def again(self, message_id: int, *, now: int) -> Message:
        """Lets a dead message be tried again, from the first attempt on.

        Raises:
            NotFound: If there is no such message that is dead.
        """
        with self.database.writing() as transaction:
            changed = transaction.execute(
                "UPDATE message SET state = 'waiting', due_at = ?, created_at = ?, attempts = 0, claimed_until = 0,"
                " ended_at = NULL WHERE id = ? AND state = 'dead'",
                (now, now, message_id),
            ).rowcount
        if not changed:
            raise NotFound("dead message", message_id, [message.id for message in self.messages("dead")])
        return next(message for message in self.messages("waiting") if message.id == message_id)

    def forget(self, transaction: Any, *, before: int) -> None:
        """Deletes messages that were sent or given up before a time, in microseconds."""
        transaction.execute("DELETE FROM message WHERE ended_at < ? AND state <> 'waiting'", (before,))

    def _claim(self, present: int, now: int, without: Iterable[str]) -> Message | None:
        with self.database.writing() as transaction:
            # A time farther ahead than any pause or lease was written while the clock was ahead, and means nothing.
            row = transaction.execute(
                f"SELECT {_MESSAGE} FROM message WHERE state = 'waiting'"  # noqa: S608
                " AND (attempts = 0 OR due_at NOT BETWEEN ?1 + 1 AND ?1 + ?2)"
                " AND claimed_until NOT BETWEEN ?3 + 1 AND ?3 + ?4"
                " AND channel NOT IN (SELECT value FROM json_each(?5))"
                " AND NOT EXISTS (SELECT 1 FROM message AS earlier WHERE earlier.state = 'waiting'"
                " AND earlier.channel = message.channel AND earlier.subject = message.subject"
                " AND earlier.id < message.id)"
                " ORDER BY json_extract(notice, '$.severity') <> 'critical', due_at, id LIMIT 1",
                (now, self.retry.longest, present, self.retry.lease, json.dumps(sorted(without))),
            ).fetchone()
            if row is None:
                return None
            transaction.execute(
                "UPDATE message SET claimed_until = ? WHERE id = ?", (present + self.retry.lease, row[0])
            )
        return _message(row)

    def _try(self, message: Message) -> str | None:
        channel = self.channels.get(message.channel)
        if channel is None:
            return f"there is no channel {message.channel!r}"
        try:
            channel.send(message.notice)
        except VitokError as error:
            return str(error)[:_LONGEST_ERROR] or type(error).__name__
        except OSError as error:
            # Its text may hold an address, and that a token.
            return f"{message.channel} does not answer: {type(error).__name__}"
        return None

    def _settle(self, message: Message, error: str | None, now: int) -> MessageState:
        attempts = message.attempts + 1
        state: MessageState = "sent"
        if error is not None:
            hopeless = attempts >= self.retry.attempts or now - message.created_at >= self.retry.give_up
            state = "dead" if hopeless else "waiting"
        due = now + self.retry.pause(message.key, attempts) if state == "waiting" else message.due_at
        with self.database.writing() as transaction:
            transaction.execute(
                "UPDATE message SET state = ?, attempts = ?, error = ?, due_at = ?, claimed_until = 0, ended_at = ?"
                " WHERE id = ? AND state = 'waiting'",
                (state, attempts, error or "", due, None if state == "waiting" else now, message.id),
            )
        return state


def _message(row: Any) -> Message:
    fields = dict(zip([name.strip() for name in _MESSAGE.split(",")], row, strict=True))
    notice = json.loads(fields.pop("notice"))
    return Message(notice=Notice(**{**notice, "alerts": tuple(notice["alerts"])}), **fields)
