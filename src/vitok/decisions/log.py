"""The two logs that a system writes: what it decided, and what the world answered."""

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from vitok.clock import HOUR, Clock, SystemClock
from vitok.decision import Outcome
from vitok.decisions.files import replace
from vitok.decisions.messages import MessageMaker
from vitok.decisions.schema import (
    DecisionBlock,
    LogSchema,
    OutcomeBlock,
    decision_message,
    open_schema,
    outcome_message,
    outcome_schema,
    readable_schema,
)
from vitok.decisions.segments import Durability, Position
from vitok.decisions.sidecars import OnSeal, Sidecar, reseal, sidecars
from vitok.decisions.writer import SegmentWriter
from vitok.errors import InvalidInput, StoreError

SCHEMA_FILE = "schema.json"
_MOST_SET_BACK = HOUR


class _Log:
    """What both logs share: a position, an end, and a `with` block."""

    _writer: SegmentWriter
    _on_seal: OnSeal | None

    @property
    def position(self) -> Position:
        """The place after the last append."""
        return self._writer.position

    def seal(self) -> None:
        """Ends the open segment and waits until everything of this writer is sealed; the next append begins another.

        Raises:
            StoreError: If a segment could not be sealed; its rows stay readable and the next sealing tries again.
        """
        self._writer.seal()

    def reseal(self, kind: str) -> int:
        """Makes the files of a kind beside the sealed segments that lack them, with this log's `on_seal`.

        Returns:
            How many were made.

        Raises:
            InvalidInput: If the log has no `on_seal`.
            StoreError: If the disk refuses.
        """
        if self._on_seal is None:
            raise InvalidInput("on_seal", None, "be given", "Open the log with on_seal=, or use decisions.reseal")
        return reseal(self._writer.folder, kind, self._on_seal)

    def sidecars(self, kind: str, since: int | None = None, until: int | None = None) -> Iterator[Sidecar]:
        """Reads the files of a kind beside the sealed segments; see `vitok.decisions.sidecars`.

        Args:
            kind: Which files.
            since: Earliest event time wanted, in microseconds, inclusive.
            until: Event time at which the span ends, in microseconds, exclusive.
        """
        return sidecars(self._writer.folder, kind, since=since, until=until)

    def close(self) -> None:
        """Seals everything and lets the folder go; a second call does nothing.

        Raises:
            StoreError: If a segment could not be sealed; its rows stay readable and the next start tries again.
        """
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DecisionLog(_Log):
    """The writer of a folder of decisions; threads may share it.

    Args:
        folder: Such as `<home>/log/decisions`; made if absent.
        schema: What this run's decisions carry. It may differ from what earlier runs wrote: each segment tells its
            own schema, and a reader of both sees nulls where a column is absent.
        durability: `"process"`: an acknowledged decision survives `kill -9`. `"fsync"`: it survives a power cut,
            and each append waits for the disk; threads that append at the same time wait together, for one write.
        rows_per_segment: A segment is sealed into Parquet, in the background, once it has this many rows or its
            hour is over.
        shared: Whether other processes may write the log at the same time. Each then has segments of its own, and
            the order of the log is that of one process after another. Without it a second writer is refused.
        on_seal: Gets the rows of each segment at its sealing, in the sealing thread, and its name; returns files to
            keep beside it, by kind (see `vitok.decisions.OnSeal`). Where it fails, the segment stays open, its rows
            stay readable, and the next sealing tries again.

    Raises:
        InvalidInput: If an argument breaks its rule.
        StoreError: If another process writes the folder, or it cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        schema: LogSchema,
        *,
        durability: Durability = "process",
        rows_per_segment: int = 100_000,
        shared: bool = False,
        on_seal: OnSeal | None = None,
    ) -> None:
        self.schema = schema
        self._maker = MessageMaker(open_schema(schema))
        self._writer = SegmentWriter(
            Path(folder),
            self._maker.arrow,
            durability=durability,
            rows_per_segment=rows_per_segment,
            shared=shared,
            on_seal=on_seal,
        )
        self._on_seal = on_seal
        _describe(self._writer, {"kind": "decisions"} | schema.to_dict() | {"content_hash": schema.content_hash})

    def append(self, block: DecisionBlock) -> Position:
        """Writes a block of decisions; once this returns they are in the log.

        Returns:
            The place after the block.

        Raises:
            InvalidInput: If a column has a wrong length or type, or a null where none may be; nothing is written.
            StoreError: If the bytes could not be written; none of the block's decisions are in the log.
        """
        return self._writer.append(decision_message(block, self.schema, self._maker), len(block))


class OutcomeLog(_Log):
    """The writer of a folder of outcomes, such as `<home>/log/outcomes`; threads may share it.

    Args:
        folder: Folder of the log; made if absent.
        durability: As for `DecisionLog`.
        rows_per_segment: As for `DecisionLog`.
        shared: As for `DecisionLog`.
        on_seal: As for `DecisionLog`.
        clock: Tells when an outcome was learned of, where the outcome does not say (`ingest_time` of 0).

    Raises:
        InvalidInput: If an argument breaks its rule.
        StoreError: If another process writes the folder, or it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, OutcomeLog(folder) as log:
        ...     log.append([Outcome(request_id="r1", kind="fraud", value=1.0, event_time=5, ingest_time=9)])
        Position(segment=1, rows=1)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        durability: Durability = "process",
        rows_per_segment: int = 100_000,
        shared: bool = False,
        on_seal: OnSeal | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._maker = MessageMaker(outcome_schema())
        self._clock = clock or SystemClock()
        self._stamping = threading.Lock()
        self._latest = 0
        self._writer = SegmentWriter(
            Path(folder),
            self._maker.arrow,
            durability=durability,
            rows_per_segment=rows_per_segment,
            shared=shared,
            on_seal=on_seal,
        )
        self._on_seal = on_seal
        _describe(self._writer, {"kind": "outcomes"})

    def append(self, outcomes: Sequence[Outcome] | OutcomeBlock) -> Position:
        """Writes outcomes, given one by one or by columns; once this returns they are in the log.

        Returns:
            The place after them.

        Raises:
            InvalidInput: If a value is not finite, a column has a wrong length or type, or a null; nothing is written.
            StoreError: If the bytes could not be written; none of the outcomes are in the log.
        """
        block = outcomes if isinstance(outcomes, OutcomeBlock) else _by_columns(outcomes)
        ingest = np.asarray(block.ingest_time, dtype=np.int64)
        if (ingest == 0).any():
            ingest = np.where(ingest == 0, self._now(), ingest)
        return self._writer.append(outcome_message(block, ingest, self._maker), len(block))

    def _now(self) -> int:
        # A clock that is set back by a little would make what is learned later seem learned earlier, and the answer
        # that was taken back would count on. One that is set back by much was wrong before.
        now = self._clock.now()
        with self._stamping:
            if now < self._latest <= now + _MOST_SET_BACK:
                return self._latest
            self._latest = now
        return now


def _by_columns(outcomes: Sequence[Outcome]) -> OutcomeBlock:
    return OutcomeBlock(
        request_id=[outcome.request_id for outcome in outcomes],
        kind=[outcome.kind for outcome in outcomes],
        value=[outcome.value for outcome in outcomes],
        event_time=[outcome.event_time for outcome in outcomes],
        ingest_time=[outcome.ingest_time for outcome in outcomes],
        source=[outcome.source for outcome in outcomes],
        supersedes=[outcome.supersedes for outcome in outcomes],
    )


def declared_schema(folder: Path) -> pa.Schema | None:
    """Reads the columns that a folder's latest writer declared; None where no writer has been there.

    Raises:
        StoreError: If the file is damaged.
    """
    try:
        content = json.loads((folder / SCHEMA_FILE).read_text(encoding="utf-8"))
        return outcome_schema() if content["kind"] == "outcomes" else readable_schema(LogSchema.from_dict(content))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"log {str(folder)!r}: {SCHEMA_FILE} is damaged ({error}); remove it, the next writer makes it anew"
        ) from error


def _describe(writer: SegmentWriter, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    path = writer.folder / SCHEMA_FILE
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        replace(path, text.encode())
    except OSError as error:
        writer.close()
        raise StoreError(f"log {str(writer.folder)!r}: {SCHEMA_FILE} was not written ({error})") from error
