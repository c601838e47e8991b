"""Silences: for whom, from when until when, by whom and why an alert is not told to anybody."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitok.clock import isoformat
from vitok.engines.sqlite import Database
from vitok.errors import InvalidInput, NotFound
from vitok.stats.results import Result

SCHEMA = """
CREATE TABLE silence (
    id INTEGER PRIMARY KEY,
    matchers TEXT NOT NULL,
    starts_at INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ended_by TEXT NOT NULL DEFAULT ''
) STRICT;
"""
MATCHED = ("rule", "severity", "system", "version", "slice")


@dataclass(frozen=True, kw_only=True)
class Silence(Result):
    """Alerts that nobody is told about for a while; they are raised, shown and cleared as ever.

    Attributes:
        id: Its number.
        matchers: What an alert must have, by field: rule, severity, system, version, slice.
        starts_at: From when, in microseconds.
        ends_at: Until when, not included.
        who: Who silenced.
        why: Why, in words.
        ended_by: Who ended it before its time; empty where nobody did.
    """

    id: int
    matchers: Mapping[str, str]
    starts_at: int
    ends_at: int
    who: str
    why: str
    ended_by: str = ""

    def matches(self, fields: Mapping[str, Any], now: int) -> bool:
        """Says whether an alert with these fields is silenced now."""
        holds = all(fields.get(name) == value for name, value in self.matchers.items())
        return holds and self.starts_at <= now < self.ends_at

    def __str__(self) -> str:
        about = ", ".join(f"{name}={value}" for name, value in self.matchers.items())
        ended = f", ended by {self.ended_by}" if self.ended_by else ""
        return (
            f"{self.id}: {about} from {isoformat(self.starts_at)} until {isoformat(self.ends_at)} by {self.who}:"
            f" {self.why}{ended}"
        )


class Silences:
    """The silences of one database, which holds the tables of `SCHEMA`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, matchers: Mapping[str, str], *, until: int, who: str, why: str, now: int, since: int | None = None
    ) -> Silence:
        """Silences the alerts that match.

        Args:
            matchers: What an alert must have, by field; at least one.
            until: Until when, in microseconds; later than now.
            who: Who silences.
            why: Why, in words.
            now: The present, in microseconds.
            since: From when; by default now.

        Raises:
            InvalidInput: If nothing is matched, a field is unknown, a text is empty or the time has passed.
        """
        unknown = set(matchers) - set(MATCHED)
        if unknown or not matchers or not all(matchers.values()):
            raise InvalidInput("matchers", dict(matchers), f"give texts to at least one of {', '.join(MATCHED)}")
        if not who.strip() or not why.strip():
            raise InvalidInput("who, why", (who, why), "not be empty", "A silence says whose it is and why")
        begin = now if since is None else since
        if until <= max(begin, now):
            raise InvalidInput("until", isoformat(until), f"be later than {isoformat(max(begin, now))}")
        with self._database.writing() as transaction:
            row = transaction.execute(
                "INSERT INTO silence (matchers, starts_at, ends_at, who, why, created_at) VALUES (?, ?, ?, ?, ?, ?)",
                (json.dumps(dict(matchers)), begin, until, who, why, now),
            ).lastrowid
        return self._get(int(row or 0))

    def end(self, silence_id: int, *, who: str, now: int) -> Silence:
        """Ends a silence now; one that is over stays as it is.

        Raises:
            NotFound: If there is no such silence.
            InvalidInput: If nobody is named.
        """
        if not who.strip():
            raise InvalidInput("who", who, "not be empty", "A silence says who ended it")
        found = self._get(silence_id)
        if now < found.ends_at:
            with self._database.writing() as transaction:
                transaction.execute(
                    "UPDATE silence SET ends_at = ?, starts_at = min(starts_at, ?), ended_by = ? WHERE id = ?",
                    (now, now, who, silence_id),
                )
        return self._get(silence_id)

    def all(self, *, at: int | None = None) -> tuple[Silence, ...]:
        """Returns the silences, or those that are in force at a time or will be."""
        rows = self._database.read(
            "SELECT id, matchers, starts_at, ends_at, who, why, ended_by FROM silence"
            " WHERE ?1 IS NULL OR ends_at > ?1 ORDER BY id",
            (at,),
        )
        return tuple(_silence(row) for row in rows)

    def _get(self, silence_id: int) -> Silence:
        found = {silence.id: silence for silence in self.all()}
        if silence_id not in found:
            raise NotFound("silence", silence_id, list(found)[-12:])
        return found[silence_id]


def _silence(row: Any) -> Silence:
    return Silence(
        id=row[0],
        matchers=json.loads(row[1]),
        starts_at=row[2],
        ends_at=row[3],
        who=row[4],
        why=row[5],
        ended_by=row[6],
    )
