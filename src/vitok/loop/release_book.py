"""What is kept of a release: how far it has come, what its judges have seen, who ordered and approved what.

Every change is one transaction. What is done outside of the file (a move in the ledger) is written down here before
it is done and ticked off after it, so that whoever comes after a crash knows what to finish.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitok.clock import isoformat
from vitok.engines.sqlite import Database
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.loop.release_evidence import Seen
from vitok.loop.release_plan import ReleasePlan
from vitok.registry.people import check_person, person
from vitok.stats.results import Result

Status = Literal["running", "paused", "finished", "refused", "inconclusive", "aborted", "superseded", "overtaken"]
"""`"superseded"`: it was ended undecided, for a newer version. `"overtaken"`: something else moved the model first,
such as the playbook or a push by hand."""

OPEN = ("running", "paused")
_SCHEMA = """
CREATE TABLE release (
    id INTEGER PRIMARY KEY,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    incumbent INTEGER NOT NULL,
    plan TEXT NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    begun_at INTEGER NOT NULL,
    key TEXT UNIQUE,
    status TEXT NOT NULL DEFAULT 'running',
    step INTEGER NOT NULL DEFAULT -1,
    entered_at INTEGER,
    decisions INTEGER NOT NULL DEFAULT 0,
    waits TEXT NOT NULL DEFAULT '',
    position TEXT NOT NULL DEFAULT 'null',
    move TEXT,
    ordered TEXT,
    closed_at INTEGER,
    revision INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX release_open ON release (model) WHERE closed_at IS NULL;
CREATE TABLE judge (
    release INTEGER NOT NULL REFERENCES release (id),
    name TEXT NOT NULL,
    state BLOB NOT NULL,
    verdict TEXT NOT NULL,
    PRIMARY KEY (release, name)
) STRICT;
CREATE TABLE approval (
    release INTEGER NOT NULL REFERENCES release (id),
    step INTEGER NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (release, step, who)
) STRICT;
CREATE TABLE event (
    release INTEGER NOT NULL REFERENCES release (id),
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    who TEXT NOT NULL,
    text TEXT NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (release, number)
) STRICT;
"""
_IDS = """
CREATE TABLE seen (
    release INTEGER NOT NULL REFERENCES release (id),
    judge TEXT NOT NULL,
    name TEXT NOT NULL,
    place INTEGER NOT NULL,
    ids BLOB NOT NULL,
    PRIMARY KEY (release, judge, name, place)
) STRICT;
"""
_MIGRATIONS = {1: _IDS + "ALTER TABLE release ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;"}
_COLUMNS = (
    "id, model, version, incumbent, plan, actor, reason, begun_at, key, status, step, entered_at, decisions, waits, "
    "position, move, ordered, closed_at, revision"
)
_JSON = ("plan", "position", "move", "ordered")


@dataclass(frozen=True, kw_only=True)
class ReleaseEvent(Result):
    """One line of a release's story.

    Attributes:
        at: When, in microseconds.
        kind: `"begun"`, `"entered"`, `"aside"`, `"ordered"`, `"approved"`, `"paused"`, `"resumed"` or `"closed"`.
        who: Who did it.
        text: What, in words.
        data: The numbers behind it, ready for JSON.
    """

    at: int
    kind: str
    who: str
    text: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{isoformat(self.at)} {self.kind} by {self.who}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Release(Result):
    """A release by a plan, as far as it has come.

    Attributes:
        release_id: Such as `"plan-0003"`.
        model: Name of the model.
        version: Number of the candidate.
        incumbent: Number of the version it is compared with, and that a roll back puts back.
        plan: What is kept of its plan.
        actor: Who began it.
        reason: Why, in words.
        begun_at: When, in microseconds.
        key: The caller's idempotency key, or None.
        status: `"running"`, `"paused"`, or how it ended.
        step: Place of the step it is in, -1 before the first.
        entered_at: When it came into that step, in microseconds; None before the first.
        decisions: How many decisions the candidate has scored in that step.
        waits: What it waits for, in words.
        position: Where in the logs its judges have read to.
        move: What was begun and not finished: a process died there, or is at it. None as a rule.
        ordered: The step that somebody asked to go on to at once, with who and why, or None.
        closed_at: When it ended, in microseconds, or None.
        revision: How often it was changed.
        verdicts: What each judge said last, by name.
        approvals: Who approved which step: (place, who, why).
        events: What happened, in order.
    """

    release_id: str
    model: str
    version: int
    incumbent: int
    plan: Mapping[str, Any]
    actor: str
    reason: str
    begun_at: int
    key: str | None = None
    status: Status = "running"
    step: int = -1
    entered_at: int | None = None
    decisions: int = 0
    waits: str = ""
    position: Any = None
    move: Mapping[str, Any] | None = None
    ordered: Mapping[str, Any] | None = None
    closed_at: int | None = None
    revision: int = 0
    verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    approvals: tuple[tuple[int, str, str], ...] = ()
    events: tuple[ReleaseEvent, ...] = ()

    @property
    def candidate(self) -> str:
        """Such as `"fraud/2"`."""
        return f"{self.model}/{self.version}"

    @property
    def champion(self) -> str:
        """The version it is compared with, such as `"fraud/1"`."""
        return f"{self.model}/{self.incumbent}"

    def key_of(self, what: str) -> str:
        """Names something of this release in ledger and records; other homes have a `plan-0001` of the model too."""
        return f"{self.release_id} of {self.candidate} since {self.begun_at}: {what}"

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in OPEN

    @property
    def step_name(self) -> str:
        """Name of the step it is in, `"not begun"` before the first."""
        return self.plan["steps"][self.step]["name"] if self.step >= 0 else "not begun"

    @property
    def kind(self) -> str:
        """Kind of that step: `"shadow"`, `"canary"`, `"full"`, or `""` before the first."""
        return self.plan["steps"][self.step]["kind"] if self.step >= 0 else ""

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        """Since when which share of the decisions went to the candidate, in microseconds."""
        return tuple((one.at, float(one.data["share"])) for one in self.events if "share" in one.data)

    @property
    def warm(self) -> tuple[str, ...]:
        """The versions that a service must keep loaded and ready: both of an open release, none of one that ended."""
        return (self.candidate, self.champion) if self.is_open and self.step >= 0 else ()

    def __str__(self) -> str:
        place = f"{self.step_name} ({self.step + 1} of {len(self.plan['steps'])})"
        waits = f"; {self.waits}" if self.waits else ""
        return f"{self.release_id} {self.candidate} beside {self.champion}: {self.status}, {place}{waits}"


class ReleaseBook:
    """The releases of a home, in `home/loop/releases.sqlite`.

    Args:
        home: Folder of everything vitok writes.

    Raises:
        StoreError: If the file cannot be opened, or is something else.
    """

    def __init__(self, home: str | Path) -> None:
        self.path = Path(home) / "loop" / "releases.sqlite"
        self._database = Database(
            self.path, schema=_SCHEMA + _IDS, kind="releases", version=2, migrations=_MIGRATIONS, durable=True
        )

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def begin(
        self,
        model: str,
        version: int,
        incumbent: int,
        plan: ReleasePlan,
        *,
        actor: str,
        reason: str,
        now: int,
        key: str | None = None,
        move: Mapping[str, Any] | None = None,
    ) -> Release:
        """Begins a release; the same that is open already, or that was begun under the key, is returned.

        Raises:
            Conflict: If another release of the model is open.
        """
        kept = plan.to_dict()
        with self._database.writing() as transaction:
            if key is not None and (known := _select(transaction, "key = ?", (key,))):
                return known[0]
            present = _select(transaction, "model = ? AND closed_at IS NULL", (model,))
            if present:
                if (present[0].version, present[0].incumbent, present[0].plan) != (version, incumbent, kept):
                    raise Conflict(f"{present[0]} is open; end it first")
                return present[0]
            told = str(plan)
            if move is not None:
                step = plan.steps[move["step"]]
                told = f"{step.name} alone, of {plan}" if step.kind == "full" else f"from {step.name} on, of {plan}"
            begun = None if move is None else json.dumps(move, allow_nan=False)
            values = (model, version, incumbent, json.dumps(kept, allow_nan=False), actor, reason, now, key, begun)
            names = "model, version, incumbent, plan, actor, reason, begun_at, key, move"
            row = transaction.execute(f"INSERT INTO release ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
            number = int(row.lastrowid or 0)
            _tell(transaction, number, ReleaseEvent(at=now, kind="begun", who=actor, text=f"{reason}. {told}"))
            return _select(transaction, "id = ?", (number,))[0]

    def keyed(self, key: str) -> Release | None:
        """Returns the release that was begun under a key, or None."""
        with self._database.reading() as connection:
            return next(iter(_select(connection, "key = ?", (key,))), None)

    def get(self, release_id: str) -> Release:
        """Returns a release by its id, or the latest of a version such as `"fraud/2"`.

        Raises:
            NotFound: If there is none.
        """
        with self._database.reading() as connection:
            # No number of more digits is in the file, nor can one be asked for.
            if match := re.fullmatch(r"plan-(\d{1,18})", release_id):
                found = _select(connection, "id = ?", (int(match[1]),))
            elif match := re.fullmatch(r"(.+)/(\d{1,18})", release_id):
                found = _select(connection, "model = ? AND version = ?", (match[1], int(match[2])))
            else:
                found = []
            if not found:
                known = connection.execute(
                    "SELECT id, model, version FROM release ORDER BY id DESC LIMIT 12"
                ).fetchall()
                shown = [f"{_name(number)} ({model}/{version})" for number, model, version in known]
                raise NotFound("release", release_id, shown)
        return found[-1]

    def list(self, *, model: str | None = None, closed: bool = True) -> tuple[Release, ...]:
        """Returns the releases in the order in which they began.

        Args:
            model: Only those of this model.
            closed: Also those that have ended.
        """
        where = "(?1 IS NULL OR model = ?1) AND (?2 OR closed_at IS NULL)"
        with self._database.reading() as connection:
            return tuple(_select(connection, where, (model, closed)))

    def state(self, release: Release, judge: str) -> dict[str, Any] | None:
        """Returns what a judge of a release has seen, None where it has not looked yet; without the `ids`."""
        rows = self._database.read("SELECT state FROM judge WHERE release = ? AND name = ?", (_number(release), judge))
        return json.loads(zlib.decompress(rows[0][0])) if rows else None

    def n_ids(self, release: Release, judge: str) -> dict[str, int]:
        """Returns how many ids a judge of a release has counted, by name; it reads none of them."""
        sql = "SELECT name, sum(length(ids)) FROM seen WHERE release = ? AND judge = ? GROUP BY name"
        return {name: int(size) // 8 for name, size in self._database.read(sql, (_number(release), judge))}

    def ids(self, release: Release, judge: str) -> dict[str, Seen]:
        """Returns the ids that a judge of a release has counted, by name; only those of which there are some."""
        sql = "SELECT name, ids FROM seen WHERE release = ? AND judge = ? ORDER BY name, place"
        runs: dict[str, list[np.ndarray]] = {}
        for name, kept in self._database.read(sql, (_number(release), judge)):
            runs.setdefault(name, []).append(np.frombuffer(kept, dtype="<u8"))
        return {name: Seen(found) for name, found in runs.items()}

    @contextmanager
    def changing(self, release: Release) -> Iterator["Writing"]:
        """Changes a release in one transaction.

        Raises:
            Conflict: If somebody changed it since it was read.
        """
        with self._database.writing() as transaction:
            changed = "UPDATE release SET revision = revision + 1 WHERE id = ? AND revision = ?"
            if not transaction.execute(changed, (_number(release), release.revision)).rowcount:
                raise Conflict(f"{release.release_id} was changed by somebody else; read it again")
            yield Writing(transaction, _number(release))


class Writing:
    """A change of a release in progress."""

    def __init__(self, transaction: Any, number: int) -> None:
        self._transaction, self._number = transaction, number

    def set(self, **values: Any) -> None:
        """Sets columns of the release; those that hold structures become JSON."""
        for name, value in values.items():
            kept = json.dumps(value, allow_nan=False) if name in _JSON and (value is not None) else value
            if name == "position" and value is None:
                kept = "null"
            self._transaction.execute(f"UPDATE release SET {_column(name)} = ? WHERE id = ?", (kept, self._number))  # noqa: S608

    def judged(
        self, judge: str, state: Mapping[str, Any], verdict: Mapping[str, Any], *, ids: Mapping[str, Seen] | None = None
    ) -> None:
        """Keeps what a judge has seen and said; of its ids, the runs that have not been kept yet."""
        packed = zlib.compress(json.dumps(state, allow_nan=False).encode(), 1)
        self._transaction.execute(
            "INSERT INTO judge VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET state = excluded.state, "
            "verdict = excluded.verdict",
            (self._number, judge, packed, json.dumps(verdict, allow_nan=False)),
        )
        for name, seen in (ids or {}).items():
            place = (self._number, judge, name)
            first = seen.n_kept
            where = "release = ? AND judge = ? AND name = ? AND place >= ?"
            self._transaction.execute(f"DELETE FROM seen WHERE {where}", (*place, first))  # noqa: S608
            rows = [(*place, at, run.astype("<u8").tobytes()) for at, run in enumerate(seen.runs[first:], first)]
            self._transaction.executemany("INSERT INTO seen VALUES (?, ?, ?, ?, ?)", rows)

    def approve(self, step: int, *, who: str, why: str, now: int) -> None:
        """Keeps an approval of a step; the same person's again changes nothing, however the name is spelled."""
        known = "SELECT who FROM approval WHERE release = ? AND step = ?"
        given = self._transaction.execute(known, (self._number, step)).fetchall()
        if person(who) not in {person(name) for (name,) in given}:
            values = (self._number, step, who, why, now)
            self._transaction.execute("INSERT INTO approval VALUES (?, ?, ?, ?, ?)", values)

    def close(self, status: Status, *, now: int) -> None:
        """Ends the release; what its judges have said stays, the ids that they have counted are not needed any more."""
        self.set(status=status, closed_at=now, move=None, waits="", ordered=None)
        self._transaction.execute("DELETE FROM seen WHERE release = ?", (self._number,))

    def tell(self, event: ReleaseEvent) -> None:
        """Adds to the story."""
        _tell(self._transaction, self._number, event)


def check_words(**texts: str) -> None:
    """Checks that who acts is named and says why.

    Raises:
        InvalidInput: If a text is empty, or has blanks around it; if a name holds characters that cannot be seen.
    """
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(name, text, "not be empty", "Say who does it, and why")
        if text != text.strip():
            raise InvalidInput(name, text, "have no blanks before or after it")
        if name in ("who", "actor"):
            check_person(name, text)


def _column(name: str) -> str:
    if name not in [field.name for field in fields(Release)]:
        raise InvalidInput("column", name, "be one of a release")
    return name


def _name(number: int) -> str:
    return f"plan-{number:04d}"


def _number(release: Release) -> int:
    return int(release.release_id.partition("-")[2])


def _tell(transaction: Any, number: int, event: ReleaseEvent) -> None:
    place = transaction.execute("SELECT count(*) FROM event WHERE release = ?", (number,)).fetchone()[0]
    data = json.dumps(dict(event.data), allow_nan=False)
    values = (number, place, event.at, event.kind, event.who, event.text, data)
    transaction.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", values)


def _select(connection: Any, where: str, parameters: Sequence[Any]) -> list[Release]:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM release WHERE {where} ORDER BY id", parameters).fetchall()  # noqa: S608
    return [_release(connection, row) for row in rows]


def _release(connection: Any, row: Sequence[Any]) -> Release:
    values = dict(zip([name.strip() for name in _COLUMNS.split(",")], row, strict=True))
    number = values.pop("id")
    values |= {name: None if values[name] is None else json.loads(values[name]) for name in _JSON}
    verdicts = connection.execute("SELECT name, verdict FROM judge WHERE release = ? ORDER BY name", (number,))
    values["verdicts"] = {name: json.loads(verdict) for name, verdict in verdicts.fetchall()}
    approvals = connection.execute("SELECT step, who, why FROM approval WHERE release = ? ORDER BY at", (number,))
    values["approvals"] = tuple(approvals.fetchall())
    told = connection.execute(
        "SELECT at, kind, who, text, data FROM event WHERE release = ? ORDER BY number", (number,)
    )
    values["events"] = tuple(
        ReleaseEvent(at=at, kind=kind, who=who, text=text, data=json.loads(data))
        for at, kind, who, text, data in told.fetchall()
    )
    return Release(release_id=_name(number), **values)
