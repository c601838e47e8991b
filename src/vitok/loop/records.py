"""Records of incidents and releases: what happened, why, and what was done, for people to read and to continue."""

import dataclasses
import json
import re
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

from vitok.clock import isoformat
from vitok.errors import Conflict, InvalidInput, NotFound, StoreError
from vitok.registry.files import exclusive, sync_folder, write_durable

Kind = Literal["incident", "release"]
_KINDS = get_args(Kind)
_ID = re.compile(rf"({'|'.join(_KINDS)})-(\d{{4,}})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordEntry:
    """One line of a record's timeline.

    Attributes:
        time_us: When, in microseconds.
        text: What happened or was done, in words.
        data: The numbers behind it, ready for JSON.
        key: The caller's idempotency key, or None.
    """

    time_us: int
    text: str
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: str | None = None

    def __str__(self) -> str:
        return f"{isoformat(self.time_us)} {self.text}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """An incident or a release, from its opening to its outcome.

    Attributes:
        record_id: Such as `"release-0003"`; of one kind, ids sort in the order of opening.
        kind: `"incident"` or `"release"`.
        title: What it is about, in one line.
        system: Which system, such as `"fraud"`.
        version: Which version, such as `"fraud/3"`, or None.
        opened: When it was opened, in microseconds.
        why: Why it was opened, in words.
        details: What belongs to it, ready for JSON.
        key: The caller's idempotency key, or None.
        closed: When it was closed, in microseconds, or None while it is open.
        outcome: How it ended, in words, or None while it is open.
        timeline: What happened since, in the order in which it was written.
    """

    record_id: str
    kind: Kind
    title: str
    system: str
    version: str | None
    opened: int
    why: str
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: str | None = None
    closed: int | None = None
    outcome: str | None = None
    timeline: tuple[RecordEntry, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.closed is None

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as a dict that `json.dumps` accepts; `from_dict` reads it."""
        return dataclasses.asdict(self) | {"timeline": [dataclasses.asdict(entry) for entry in self.timeline]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            InvalidInput: If a field is missing.
        """
        try:
            timeline = tuple(RecordEntry(**entry) for entry in data["timeline"])
            return cls(**{**data, "timeline": timeline})
        except (KeyError, TypeError) as error:
            raise InvalidInput("record", data, f"be what Record.to_dict wrote ({error})") from None

    def to_markdown(self) -> str:
        """Writes the record as a page."""
        outcome = "open" if self.closed is None else f"{self.outcome} ({isoformat(self.closed)})"
        facts = {"system": self.system, "version": self.version or "none", "opened": isoformat(self.opened)}
        lines = [f"# {self.record_id}: {_line(self.title)}", "", "| | |", "|---|---|"]
        lines += [
            f"| {name} | {_line(value).replace('|', '/')} |" for name, value in (facts | {"outcome": outcome}).items()
        ]
        lines += ["", "## Why", "", self.why, ""]
        if self.details:
            lines += ["## Details", "", *_block(self.details), ""]
        lines += ["## Timeline", ""]
        for entry in self.timeline:
            lines.append(f"- **{isoformat(entry.time_us)}** {_line(entry.text)}")
            if entry.data:
                lines += ["", *(f"  {line}" for line in _block(entry.data)), ""]
        if not self.timeline:
            lines.append("Nothing yet.")
        lines += [
            "",
            f"Written from `{self.record_id}.json`; an edit of this page is lost when the record goes on.",
            "",
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        state = "open" if self.is_open else self.outcome
        subject = self.system if self.version is None else self.version
        return f"{self.record_id} {subject} {self.title}: {state} ({len(self.timeline)} entries)"


class Records:
    """The records of a home: one JSON file and one Markdown page each, under `home/records/`.

    The JSON is the record, the page is written from it. Each write is whole or not there at all, and on the disk
    when the call returns; any number of processes may write.

    Args:
        home: Folder of everything vitok writes.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> records = Records(folder.name)
        >>> record = records.open("release", "canary at 10 %", system="fraud", version="fraud/2", now=0,
        ...                       why="retrained after drift", details={"share": 0.1})
        >>> _ = records.add(record.record_id, "1,000 decisions seen", now=60_000_000)
        >>> print(records.close(record.record_id, "accepted", now=120_000_000))
        release-0001 fraud/2 canary at 10 %: accepted (1 entries)
        >>> [record.record_id for record in records.list()]
        ['release-0001']
        >>> folder.cleanup()
    """

    def __init__(self, home: str | Path) -> None:
        self.folder = Path(home) / "records"

    def open(
        self,
        kind: Kind,
        title: str,
        *,
        system: str,
        version: str | None,
        now: int,
        why: str,
        details: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Record:
        """Opens a record.

        Args:
            kind: `"incident"` or `"release"`.
            title: What it is about, in one line.
            system: Which system.
            version: Which version, or None.
            now: The present, in microseconds.
            why: Why it is opened, in words.
            details: What belongs to it, ready for JSON.
            key: Idempotency key: the same key of the same kind again returns the record that was opened first.

        Raises:
            InvalidInput: If the kind is unknown, a text is empty, or the details are not JSON.
            Conflict: If the key was used for another system or version.
            StoreError: If the disk is full, or a record is damaged.
        """
        if kind not in _KINDS:
            raise InvalidInput("kind", kind, f"be one of {', '.join(_KINDS)}")
        for name, text in (("title", title), ("system", system), ("why", why)):
            _check_text(name, text)
        with self._writing():
            present = self.list(kind)
            if key is not None:
                for record in present:
                    if record.key == key:
                        if (record.system, record.version) != (system, version):
                            raise Conflict(f"key {key!r} was used for {record}; use a key of its own")
                        return self._save(record)
            number = 1 + max((int(record.record_id.rpartition("-")[2]) for record in present), default=0)
            return self._save(
                Record(
                    record_id=f"{kind}-{number:04d}",
                    kind=kind,
                    title=title,
                    system=system,
                    version=version,
                    opened=now,
                    why=why,
                    details=_jsonable("details", details),
                    key=key,
                )
            )

    def add(
        self, record_id: str, text: str, *, now: int, data: Mapping[str, Any] | None = None, key: str | None = None
    ) -> Record:
        """Adds to the timeline of a record, also of a closed one: what is learned later belongs there too.

        Args:
            record_id: Such as `"release-0003"`.
            text: What happened, in words.
            now: The present, in microseconds.
            data: The numbers behind it, ready for JSON.
            key: Idempotency key: an entry whose key is there already is not added again.

        Raises:
            NotFound: If there is no such record.
        """
        _check_text("text", text)
        entry = RecordEntry(time_us=now, text=text, data=_jsonable("data", data), key=key)
        with self._writing():
            record = self.get(record_id)
            if key is not None and any(known.key == key for known in record.timeline):
                return self._save(record)
            return self._save(dataclasses.replace(record, timeline=(*record.timeline, entry)))

    def close(self, record_id: str, outcome: str, *, now: int) -> Record:
        """Closes a record; closing it again with the same outcome changes nothing.

        Raises:
            NotFound: If there is no such record.
            Conflict: If it was closed with another outcome.
        """
        _check_text("outcome", outcome)
        with self._writing():
            record = self.get(record_id)
            if not record.is_open:
                if record.outcome != outcome:
                    raise Conflict(f"{record_id} was closed as {record.outcome!r}; open another record")
                return self._save(record)
            return self._save(dataclasses.replace(record, closed=now, outcome=outcome))

    def reopen(self, record_id: str, why: str, *, now: int, key: str | None = None) -> Record:
        """Opens a closed record again; its first outcome stays in the timeline. An open one only gets the entry.

        Args:
            record_id: Such as `"incident-0003"`.
            why: Why it goes on, in words.
            now: The present, in microseconds.
            key: Idempotency key, as for `add`.

        Raises:
            NotFound: If there is no such record.
        """
        _check_text("why", why)
        with self._writing():
            record = self.get(record_id)
            if key is not None and any(known.key == key for known in record.timeline):
                return self._save(record)
            data = {"event": "reopened", "outcome": record.outcome, "closed": record.closed}
            entry = RecordEntry(time_us=now, text=f"opened again: {why}", data=data, key=key)
            return self._save(
                dataclasses.replace(record, closed=None, outcome=None, timeline=(*record.timeline, entry))
            )

    def list(self, kind: Kind | None = None) -> tuple[Record, ...]:
        """Returns the records, by the time of their opening; of one kind where a kind is given.

        Raises:
            StoreError: If a record is damaged.
        """
        if not self.folder.is_dir():
            return ()
        names = [path.stem for path in self.folder.glob("*.json") if _ID.fullmatch(path.stem)]
        wanted = [name for name in names if kind is None or name.startswith(f"{kind}-")]
        return tuple(sorted(map(self.get, wanted), key=_place))

    def get(self, record_id: str) -> Record:
        """Returns one record.

        Raises:
            NotFound: If there is none of that id.
            StoreError: If it is damaged.
        """
        path = self.folder / f"{record_id}.json"
        if not _ID.fullmatch(record_id) or not path.is_file():
            known = sorted(path.stem for path in self.folder.glob("*.json")) if self.folder.is_dir() else []
            raise NotFound("record", record_id, known)
        try:
            record = Record.from_dict(json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise StoreError(f"record {path} cannot be read: {error}") from error
        return record

    def _writing(self) -> AbstractContextManager[None]:
        return exclusive(self.folder / ".lock")

    def _save(self, record: Record) -> Record:
        # Also where nothing changed: a crash may have come between the record and its page.
        pages = {".json": json.dumps(record.to_dict(), indent=1, ensure_ascii=False), ".md": record.to_markdown()}
        try:
            for suffix, text in pages.items():
                path = self.folder / f"{record.record_id}{suffix}"
                # A word from a command line that was not UTF-8 must not keep an incident from being written.
                content = text.encode(errors="backslashreplace")
                if not path.exists() or path.read_bytes() != content:
                    _replace(path, content)
        except OSError as error:
            raise StoreError(f"record {record.record_id} cannot be written in {self.folder}: {error}") from error
        return record


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        write_durable(new, content)
        new.replace(path)
        sync_folder(path.parent)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _place(record: Record) -> tuple[int, str, int]:
    return record.opened, record.kind, int(record.record_id.rpartition("-")[2])


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(name, text, "be a text that is not empty")


def _jsonable(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(dict(value or {}), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InvalidInput(name, value, f"become JSON ({error})", "Write a number, text or None") from None


def _line(text: str) -> str:
    return " ".join(text.split())


def _block(data: Mapping[str, Any]) -> "list[str]":
    return ["```json", *json.dumps(data, indent=1, ensure_ascii=False).splitlines(), "```"]
