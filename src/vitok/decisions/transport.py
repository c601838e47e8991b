"""A topic between those who decide and the log: services publish blocks, a collector writes them as segments.

The collector keeps with each group of rows, in the same write, how far it has read the topic. After a crash it goes
on from what stands in the log: every row of the topic is in the log once.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from vitok.decisions.files import replace
from vitok.decisions.framing import frames
from vitok.decisions.log import SCHEMA_FILE
from vitok.decisions.messages import MessageMaker
from vitok.decisions.rewriting import furthest
from vitok.decisions.schema import (
    OFFSETS_KEY,
    DecisionBlock,
    LogSchema,
    decision_message,
    open_schema,
    schema_of,
)
from vitok.decisions.segments import Durability, Segment, segments
from vitok.decisions.sidecars import OnSeal
from vitok.decisions.writer import REMOVED, SegmentWriter
from vitok.engines import Message, Outgoing, open_stream, publish
from vitok.errors import InvalidInput, StoreError

QUARANTINE = "quarantine"


class TopicLog:
    """Publishes blocks of decisions to a topic; each message tells its own schema.

    Args:
        url: `kafka://host:port/topic`, or `memory://topic`.
        schema: What the decisions carry.

    Example:
        >>> TopicLog("memory://transport-example", LogSchema("fraud", (), (), ("count_1d",))).append([])
        0
    """

    def __init__(self, url: str, schema: LogSchema) -> None:
        self.url = url
        self.schema = schema
        self._maker = MessageMaker(open_schema(schema))
        self._head = self._maker.arrow.serialize().to_pybytes()

    def append(self, blocks: Iterable[DecisionBlock], *, key: bytes | None = None) -> int:
        """Publishes blocks, a message each, and waits until the topic has them.

        Args:
            blocks: In order.
            key: Messages of one key stay in order; None spreads them over the partitions.

        Returns:
            How many decisions were published.

        Raises:
            InvalidInput: If a column has a wrong length or type; nothing is published then.
            StoreError: If some could not be published.
        """
        messages, n = [], 0
        for block in blocks:
            if len(block):
                message = self._head + decision_message(block, self.schema, self._maker)
                messages.append(Outgoing(key, message))
                n += len(block)
        if messages:
            publish(self.url, messages)
        return n


class Collector:
    """Reads a topic of decisions into a log; the one writer of its folder.

    A message that holds no rows of decisions is put aside, under `quarantine/` in the folder, and counted.

    Args:
        url: The topic, with `?partitions=` for some of its partitions: each partition has one collector. Not with
            `?group=`: how far a partition was read stands in this folder.
        folder: Folder of the log.
        durability: As for `DecisionLog`; what one `step` reads is committed together.
        rows_per_segment: As for `DecisionLog`.
        on_seal: As for `DecisionLog`.

    Attributes:
        n_quarantined: Messages that were put aside by this object.

    Raises:
        InvalidInput: If the address is wrong.
        StoreError: If another process writes the folder, or there is no such topic.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Collector("memory://to-collect", folder) as collector:
        ...     collector.step(timeout_seconds=0.01)
        0
    """

    def __init__(
        self,
        url: str,
        folder: str | Path,
        *,
        durability: Durability = "fsync",
        rows_per_segment: int = 100_000,
        on_seal: OnSeal | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.n_quarantined = 0
        self._writer = SegmentWriter(
            self.folder, pa.schema([]), durability=durability, rows_per_segment=rows_per_segment, on_seal=on_seal
        )
        try:
            self._offsets = offsets(self.folder)
            self._stream = open_stream(url, on_assign=self._start)
        except BaseException:
            self._writer.close()
            raise

    @property
    def offsets(self) -> Mapping[int, int]:
        """The next offset of each partition that the log has rows of."""
        return dict(self._offsets)

    def step(self, *, max_messages: int = 1_000, timeout_seconds: float = 1.0) -> int:
        """Reads what has come, writes it, and returns how many decisions it was.

        Raises:
            StoreError: If the topic cannot be read or the log cannot be written. What was read and not written is
                read again by the next step.
        """
        messages = self._stream.poll(max_messages, timeout_seconds)
        n = 0
        batches: list[pa.RecordBatch] = []
        reached = dict(self._offsets)
        try:
            for message in messages:
                found = _batches(message.value)
                if found is None:
                    self._put_aside(message)
                elif batches and found and found[0].schema != batches[0].schema:
                    n += self._write(batches, reached)
                    batches = found
                else:
                    batches += found
                reached[message.partition] = message.offset + 1
            n += self._write(batches, reached)
        except StoreError:
            self._stream.seek({message.partition: self._next(message.partition, messages) for message in messages})
            raise
        return n

    def close(self) -> None:
        """Seals everything and lets the folder and the topic go; a second call does nothing."""
        self._stream.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, partitions: Sequence[int]) -> Mapping[int, int]:
        return {number: self._offsets[number] for number in partitions if number in self._offsets}

    def _next(self, partition: int, messages: Sequence[Message]) -> int:
        first = next(message.offset for message in messages if message.partition == partition)
        return self._offsets.get(partition, first)

    def _write(self, batches: list[pa.RecordBatch], reached: dict[int, int]) -> int:
        if not batches:
            return 0
        table = pa.Table.from_batches(batches).combine_chunks()
        (batch,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
        self._describe(batch.schema)
        self._writer.use(batch.schema)
        notes = {OFFSETS_KEY: json.dumps({str(number): offset for number, offset in sorted(reached.items())})}
        self._writer.append(_message(batch, notes), batch.num_rows)
        self._offsets = dict(reached)
        return batch.num_rows

    def _describe(self, arrow: pa.Schema) -> None:
        schema = schema_of(arrow)
        assert schema is not None  # noqa: S101
        text = json.dumps({"kind": "decisions"} | schema.to_dict() | {"content_hash": schema.content_hash}, indent=1)
        path = self.folder / SCHEMA_FILE
        try:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                replace(path, text.encode())
        except OSError as error:
            raise StoreError(f"log {str(self.folder)!r}: {SCHEMA_FILE} was not written ({error})") from error

    def _put_aside(self, message: Message) -> None:
        aside = self.folder / QUARANTINE
        try:
            aside.mkdir(exist_ok=True)
            replace(aside / f"{message.partition}-{message.offset}.bin", message.value)
        except OSError as error:
            raise StoreError(f"log {str(self.folder)!r}: a message was not put aside ({error})") from error
        self.n_quarantined += 1


def offsets(folder: Path) -> dict[int, int]:
    """Reads from a log how far it has read its topic: the next offset of each partition.

    Raises:
        StoreError: If a segment is damaged.
    """
    # The segment that told it last may have gone, by age or because it held nothing but rows of one subject.
    note = folder / REMOVED
    found: dict[str, int] = json.loads(note.read_text(encoding="utf-8")).get("offsets", {}) if note.exists() else {}
    for segment in reversed(segments(folder)):
        noted = _noted(folder, segment)
        if noted is not None:
            found = furthest(found, json.loads(noted))
            break
    return {int(number): offset for number, offset in found.items()}


def _noted(folder: Path, segment: Segment) -> bytes | None:
    path = segment.path
    try:
        if segment.sealed:
            return (pq.read_metadata(path).metadata or {}).get(OFFSETS_KEY)
        data = path.read_bytes()
    except FileNotFoundError:
        around = (one for one in segments(folder) if one.first <= segment.number <= one.number)
        sealed = next((one for one in around if one.sealed), None)
        return None if sealed is None else _noted(folder, sealed)
    whole = 0
    for frame in frames(data):
        whole = frame.end
    last = None
    if whole:
        for _, notes in pa.ipc.open_stream(memoryview(data)[:whole]).iter_batches_with_custom_metadata():
            last = last if notes is None else notes.get(OFFSETS_KEY, last)
    return last


def _batches(value: bytes) -> list[pa.RecordBatch] | None:
    # None for what holds no decisions.
    try:
        stream = pa.ipc.open_stream(pa.py_buffer(value))
        schema = schema_of(stream.schema)
        if schema is None or not _fits(stream.schema, schema):
            return None
        found = list(stream)
        for batch in found:
            # What is no text, or lies outside of its buffer, would end the process that reads it later.
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, InvalidInput):
        return None
    return found


def _fits(given: pa.Schema, schema: LogSchema) -> bool:
    # One message of other columns would keep its whole segment from ever being sealed or read.
    wanted = [field for field in open_schema(schema) if field.name not in schema.later or field.name in given.names]
    return given.equals(pa.schema(wanted))


def _message(batch: pa.RecordBatch, notes: Mapping[bytes, str]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch, custom_metadata=dict(notes))
    data = sink.getvalue().to_pybytes()
    head, body = list(frames(data))[:2]
    return data[head.end : body.end]
