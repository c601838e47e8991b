"""The two logs that a system writes: what it decided, and what the world answered."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from vitok.clock import Clock, SystemClock
from vitok.decision import Outcome
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
from vitok.decisions.segments import Durability, Position, SegmentWriter
from vitok.errors import StoreError

SCHEMA_FILE = "schema.json"


class _Log:
    """What both logs share: a position, an end, and a `with` block."""

    _writer: SegmentWriter

    @property
    def position(self) -> Position:
        """The place after the last append."""
        return self._writer.position

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
    """The one writer of a folder of decisions.

    Args:
        folder: Such as `<home>/log/decisions`; made if absent.
        schema: What this run's decisions carry. It may differ from what earlier runs wrote: each segment tells its
            own schema, and a reader of both sees nulls where a column is absent.
        durability: `"process"`: an acknowledged decision survives `kill -9`. `"fsync"`: it survives a power cut,
            and each append waits for the disk.
        rows_per_segment: A segment is sealed into Parquet, in the background, once it has this many rows.

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
    ) -> None:
        self.schema = schema
        self._maker = MessageMaker(open_schema(schema))
        self._writer = SegmentWriter(
            Path(folder), self._maker.arrow, durability=durability, rows_per_segment=rows_per_segment
        )
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
    """The one writer of a folder of outcomes, such as `<home>/log/outcomes`.

    Args:
        folder: Folder of the log; made if absent.
        durability: As for `DecisionLog`.
        rows_per_segment: As for `DecisionLog`.
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
        clock: Clock | None = None,
    ) -> None:
        self._maker = MessageMaker(outcome_schema())
        self._clock = clock or SystemClock()
        self._writer = SegmentWriter(
            Path(folder), self._maker.arrow, durability=durability, rows_per_segment=rows_per_segment
        )
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
            ingest = np.where(ingest == 0, self._clock.now(), ingest)
        return self._writer.append(outcome_message(block, ingest, self._maker), len(block))


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
    temporary = writer.folder / (SCHEMA_FILE + ".tmp")
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        writer.close()
        raise StoreError(f"log {str(writer.folder)!r}: {SCHEMA_FILE} was not written ({error})") from error
