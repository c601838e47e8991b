"""Following a stream: messages are decoded, added to the windows, and their positions kept with what they changed.

The stream's positions live in the same store as the windows and are written in the same commit, so a process that dies
goes on exactly where its windows stand; what the broker believes about offsets does not matter.
"""

import contextlib
import dataclasses
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from vitok.clock import parse_time
from vitok.engines.event_stream import Message, open_stream
from vitok.errors import InvalidInput, StoreError
from vitok.features.intake import Ingested, kinds_of
from vitok.features.online import OnlineFeatures
from vitok.features.sources import Source, unique
from vitok.features.views import View

if TYPE_CHECKING:
    import polars as pl

Check = Callable[["pl.DataFrame"], "tuple[pl.DataFrame, pl.DataFrame]"]
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800_000_000, 253_402_300_799_999_999  # of the years 1 and 9999
_TYPES: dict[str, tuple[type, ...]] = {"number": (int, float), "text": (str,)}  # a truth value is a number


class Decode(Protocol):
    """Turns messages into rows."""

    def __call__(self, messages: Sequence[Message]) -> "tuple[pl.DataFrame, list[tuple[Message, str]]]":
        """Returns the rows, and each message that is none with the reason."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamReport:
    """What a worker has done.

    Attributes:
        n_messages: Messages taken from the stream.
        n_new: Events that count.
        n_duplicate: Events whose id was seen before.
        n_late: Of the new ones, those further behind the newest than the lateness.
        n_rejected: Messages and rows that were refused and kept with their reason.
    """

    n_messages: int = 0
    n_new: int = 0
    n_duplicate: int = 0
    n_late: int = 0
    n_rejected: int = 0

    def plus(self, done: Ingested, *, messages: int, rejected: int) -> "StreamReport":
        """Returns the report with one more batch."""
        return StreamReport(
            n_messages=self.n_messages + messages,
            n_new=self.n_new + done.n_new,
            n_duplicate=self.n_duplicate + done.n_duplicate,
            n_late=self.n_late + done.n_late,
            n_rejected=self.n_rejected + rejected,
        )

    def __str__(self) -> str:
        """Says it in one line."""
        return (
            f"{self.n_messages} messages: {self.n_new} new, {self.n_duplicate} seen before, {self.n_late} late, "
            f"{self.n_rejected} rejected"
        )


class JsonRows:
    """Decodes messages that are JSON objects, one event each.

    Times are ISO 8601 texts, or whole numbers of `time_unit`. A message whose value cannot be what the views make of
    it, such as a text where a number is summed, is none.

    Args:
        source: Whose columns are wanted.
        views: The views over it.
        time_unit: What whole numbers count: us, ms or s.
        columns: Other columns to keep, such as those that a contract speaks of, and what each holds: `"number"`,
            `"text"`, or "" for any one value.

    Example:
        >>> from vitok.features import Count, Entity, Source, View
        >>> source = Source("payments", "id")
        >>> view = View(name="card", entity=Entity("card", "card"), source=source, aggregations=(Count("1h"),))
        >>> decode = JsonRows(source, [view], columns={"shop": "text"})
        >>> value = b'{"id": 1, "event_time": "2026-01-01T10:00Z", "card": "7", "shop": 5}'
        >>> [reason for _, reason in decode([Message(0, 0, None, value, 0)])[1]]
        ['shop: got 5, must be a text']
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[View],
        *,
        time_unit: str = "us",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        if time_unit not in {"us", "ms", "s"}:
            raise InvalidInput("time_unit", time_unit, "be us, ms or s")
        self._times = unique([source.event_time, source.ingest_time])
        keys = unique(key for view in views for key in view.entity.keys)
        self._texts = unique([source.event_id, *keys])
        wanted = [*self._texts, *self._times, *(name for view in views for name in view.columns), *(columns or {})]
        self._columns = unique(wanted)
        others = {name: kind for name, kind in (columns or {}).items() if kind and name not in self._texts}
        self._kinds = others | kinds_of(source, views)
        self._factor = {"us": 1, "ms": 1_000, "s": 1_000_000}[time_unit]
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode

    def __call__(self, messages: Sequence[Message]) -> "tuple[pl.DataFrame, list[tuple[Message, str]]]":
        """Returns the rows, and each message that is none with the reason."""
        import polars as pl

        rows, bad = [], []
        for message in messages:
            try:
                row = self._decode(message.value)
                rows.append([self._value(name, row.get(name)) for name in self._columns])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                bad.append((message, f"not a JSON object: {error}"))
            except InvalidInput as error:
                bad.append((message, str(error)))
        frame = pl.DataFrame(rows, schema=list(self._columns), orient="row", infer_schema_length=None, strict=False)
        moments = [pl.col(name).cast(pl.Int64).cast(pl.Datetime("us", "UTC")) for name in self._times]
        return frame.with_columns(pl.col(name).cast(pl.String) for name in self._texts).with_columns(moments), bad

    def _value(self, name: str, value: Any) -> Any:
        if name in self._times:
            return self._microseconds(name, value)
        if name in self._texts and value is not None:
            if type(value) is not str and type(value) is not int:
                raise InvalidInput(name, value, "be a text or a whole number")
            return str(value)
        if isinstance(value, list | dict):
            raise InvalidInput(name, value, "be one value")
        kind = self._kinds.get(name)
        if kind is not None and value is not None and not isinstance(value, _TYPES[kind]):
            raise InvalidInput(name, value, f"be a {kind}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidInput(name, value, "fit 64 bits")
        return value

    def _microseconds(self, name: str, value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, str):
            moment = parse_time(value)
        elif type(value) is int:
            moment = value * self._factor
        else:
            raise InvalidInput(name, value, "be ISO 8601 or a whole number")
        if not _FIRST_MOMENT <= moment <= _LAST_MOMENT:
            raise InvalidInput(name, value, "lie in the years 1 to 9999", "Is time_unit right?")
        return moment


class StreamWorker:
    """Keeps windows up to date from one stream.

    Args:
        source: Name of the source that the stream carries.
        url: Its address, such as `kafka://host:9092/payments?group=features` (see `vitok.engines.open_stream`).
        online: The windows, opened with `journal=True`. One object takes all partitions that this process reads; a
            function from a partition to its own windows lets the partitions of a group move from process to process,
            for which each key must come on one partition only.
        decode: Turns messages into rows; `JsonRows` by default.
        check: Parts rows into good ones and bad ones with a column `reason`, such as a contract does.
        rejected: File that bad messages and rows are appended to as JSON lines.
        max_messages: Most messages of one commit.

    Example:
        >>> import json, tempfile
        >>> from vitok.engines import MemoryStore, Outgoing, publish
        >>> from vitok.features import Count, Entity, FeatureSet, Source, View
        >>> card = Entity("card", "card")
        >>> view = View(name="card", entity=card, source=Source("payments", "id"), aggregations=(Count("1h"),))
        >>> event = {"id": "p1", "event_time": "2026-01-01T10:00", "card": "7"}
        >>> publish("memory://worker-example?partitions=1", [Outgoing(b"7", json.dumps(event).encode())] * 2)
        2
        >>> online = OnlineFeatures(FeatureSet(views=(view,)), MemoryStore(), journal=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     worker = StreamWorker("payments", "memory://worker-example", online, rejected=f"{folder}/bad.jsonl")
        ...     print(worker.run(until_idle_seconds=0.1))
        2 messages: 1 new, 1 seen before, 0 late, 0 rejected
    """

    def __init__(
        self,
        source: str,
        url: str,
        online: OnlineFeatures | Callable[[int], OnlineFeatures],
        *,
        decode: Decode | None = None,
        check: Check | None = None,
        rejected: str | Path,
        max_messages: int = 10_000,
    ) -> None:
        self.source = source
        self.report = StreamReport()
        self._online = online
        self._states: dict[int, OnlineFeatures] = {}
        self._decode = decode
        self._check = check
        self._rejected = Path(rejected)
        self._max_messages = max_messages
        self.stream = open_stream(url, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    @property
    def partitions(self) -> tuple[int, ...]:
        """The partitions that this worker has."""
        return tuple(sorted(self._states))

    def step(self, timeout_seconds: float = 1.0) -> int:
        """Takes one batch in and returns how many messages it had; 0 where none came in time.

        Raises:
            StoreError: If the stream, the store or the file of rejected rows fails; the batch comes again then.
            InvalidInput: If the rows lack a column or hold another type than is wanted; the batch comes again.
        """
        messages = self.stream.poll(self._max_messages, timeout_seconds)
        by_state: dict[int, list[Message]] = {}
        for message in messages:
            by_state.setdefault(id(self._states[message.partition]), []).append(message)
        done: set[int] = set()
        try:
            for own in by_state.values():
                self._take(self._states[own[0].partition], own)
                done.update(message.partition for message in own)
        except BaseException:
            # Whatever it was, nothing may be passed over by a caller who goes on.
            self.stream.seek(
                {message.partition: message.offset for message in reversed(messages) if message.partition not in done}
            )
            raise
        return len(messages)

    def run(self, *, stop: threading.Event | None = None, until_idle_seconds: float | None = None) -> StreamReport:
        """Follows the stream until told to stop, or until nothing has come for a while; then saves a checkpoint.

        Args:
            stop: Set by another thread.
            until_idle_seconds: Ends when no message has come for so long; None to go on.
        """
        wait = 0.5 if until_idle_seconds is None else until_idle_seconds
        while stop is None or not stop.is_set():
            if self.step(wait) == 0 and until_idle_seconds is not None:
                break
        for state in set(self._states.values()):
            state.checkpoint()
        return self.report

    def close(self) -> None:
        """Saves the windows and gives the partitions back."""
        self.stream.close()

    def _take(self, online: OnlineFeatures, messages: Sequence[Message]) -> None:
        positions = online.positions()
        for message in messages:
            positions[str(message.partition)] = message.offset + 1
        if self._decode is None:
            views = [view for view in online.features.windowed if view.source.name == self.source]
            if not views:
                known = ", ".join(source.name for source in online.features.sources)
                raise InvalidInput("source", self.source, f"be one of {known}")
            self._decode = JsonRows(views[0].source, views)
        frame, bad = self._decode(messages)
        lines = [_line(self.source, reason, message) for message, reason in bad]
        if self._check is not None:
            frame, refused = self._check(frame)
            lines += _lines(self.source, refused)
        # Refused rows are kept before the positions move on, so that none is lost; a crash may keep some twice.
        self._keep(lines)
        done = online.ingest(
            self.source,
            frame,
            positions=positions,
            keep_rejected=lambda rows: self._keep(_lines(self.source, rows)),
        )
        self.report = self.report.plus(done, messages=len(messages), rejected=len(lines) + len(done.rejected))

    def _assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        out: dict[int, int] = {}
        for partition in partitions:
            self._lost([partition])  # what an attempt that failed has left
            online = self._online if isinstance(self._online, OnlineFeatures) else self._online(partition)
            self._states[partition] = online
            position = online.positions().get(str(partition))
            if position is not None:
                out[partition] = position
        return out

    def _revoked(self, partitions: Sequence[int]) -> None:
        # All of them are another's as soon as this returns, also where one could not be saved: it has its journal.
        with contextlib.ExitStack() as closing:
            states = [self._states.pop(partition) for partition in partitions if partition in self._states]
            for state in states:
                closing.callback(self._close, state)
                closing.callback(state.checkpoint)

    def _lost(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            state = self._states.pop(partition, None)
            if state is not None:
                self._close(state)

    def _close(self, state: OnlineFeatures) -> None:
        # Windows that belong to one partition are this worker's to close; those of all are their owner's.
        close = getattr(state.store, "close", None)
        if state is not self._online and close is not None:
            close()

    def _keep(self, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        try:
            self._rejected.parent.mkdir(parents=True, exist_ok=True)
            with self._rejected.open("ab") as file:
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"rejected rows cannot be kept in {self._rejected}: {error}") from error


def _line(source: str, reason: str, message: Message) -> bytes:
    record = {
        "source": source,
        "reason": reason,
        "partition": message.partition,
        "offset": message.offset,
        "value": message.value.decode("utf-8", "backslashreplace"),
    }
    return json.dumps(record).encode() + b"\n"


def _lines(source: str, refused: "pl.DataFrame") -> list[bytes]:
    rows: Sequence[Mapping[str, Any]] = refused.to_dicts()
    return [
        json.dumps({"source": source, "reason": row["reason"], "row": {**row, "reason": None}}, default=str).encode()
        + b"\n"
        for row in rows
    ]
