"""The rows that a table is made for: read a block at a time, and written again with their features beside them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.errors import InvalidInput, StoreError
from vitok.features.history import BATCH, FilesInput, FrameInput, Input, Session

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import pyarrow.parquet as pq

_BLOCK_BYTES = 64 * 2**20
_LEAST_ROWS = 8192
_WAITING_BYTES = 16 * 2**20  # before a file is begun
_SAMPLE_ROWS = 4096
_LEAST_BYTES = 4096


class Spine:
    """The rows of a spine.

    Args:
        session: The session.
        data: A frame, a lazy frame, or files of Parquet or CSV.
        keys: Columns that CSV files are read as text for.
        whole: Whether the rows will be wanted as one frame in the end.

    Attributes:
        rows: For reading some columns of all rows.
        height: How many rows.
    """

    def __init__(self, session: Session, data: Any, keys: Sequence[str], *, whole: bool) -> None:
        import polars as pl

        if isinstance(data, pl.LazyFrame) and whole:
            data = data.collect()
        self.rows: Input = session.open(data, "spine", None, keys)
        if whole and isinstance(self.rows, FilesInput):
            self.rows = FrameInput(self.rows.frame())
        self.height = self.rows.height

    @property
    def columns(self) -> list[str]:
        """Names of its columns."""
        return list(self.rows.schema)

    @property
    def frame(self) -> "pl.DataFrame":
        """All rows, where they are in memory."""
        assert isinstance(self.rows, FrameInput)  # noqa: S101 - asked for only where `whole` was given
        return self.rows.frame

    def schema(self) -> "pa.Schema":
        """Types of its columns as they will be written."""
        import pyarrow.parquet as pq

        if isinstance(self.rows, FilesInput):
            return pq.read_schema(self.rows.files[0]).remove_metadata()
        return _to_arrow(self.frame.clear()).schema

    def blocks(self, row_bytes: int) -> "Iterator[pa.Table]":
        """Yields all rows in order, as many at a time as fit well in memory with `row_bytes` more each."""
        import pyarrow as pa

        n = min(BATCH, max(_LEAST_ROWS, _BLOCK_BYTES // max(row_bytes, 1)))
        if isinstance(self.rows, FrameInput):
            for part in self.frame.iter_slices(n):
                yield _to_arrow(part)
            return
        assert isinstance(self.rows, FilesInput)  # noqa: S101 - the other one of two
        schema = self.schema()
        for batch in self.rows.arrow(n):
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)


class TableWriter:
    """Writes a table to one Parquet file, which is there whole or not at all.

    Half of the work of writing is compressing what does not get smaller and looking for values that do not repeat. So
    the first rows wait until there is enough of them to tell which columns are worth it; the first rows of a table
    alone, which often have no features yet, would not tell.

    Args:
        path: Where.
        schema: Types of the columns.
        described: Columns whose values may repeat and are searched for: the spine's own.

    Raises:
        InvalidInput: If there is no such folder, or a folder is in the file's place.
    """

    def __init__(self, path: str | Path, schema: "pa.Schema", described: Sequence[str]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir() or self.path.is_dir():
            raise InvalidInput("into", str(path), "be a file in a folder that exists")
        self._unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._schema, self._described = schema, list(described)
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, block: "pa.Table") -> None:
        """Writes some rows."""
        if self._writer is not None:
            self._writer.write_table(block)
            return
        self._waiting.append(block)
        if sum(waiting.nbytes for waiting in self._waiting) >= _WAITING_BYTES:
            self._begin()

    def finish(self) -> Path:
        """Puts the file in its place."""
        self._begin().close()
        self._unfinished.replace(self.path)
        return self.path

    def abandon(self) -> None:
        """Removes what was written."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        self._unfinished.unlink(missing_ok=True)

    def _begin(self) -> "pq.ParquetWriter":
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            # Not Schema.empty_table, nor anywhere pa.array: they import pandas, 40 MiB.
            last = self._waiting[-1] if self._waiting else pa.Table.from_batches([], self._schema)
            repeating, compression = _worth(last.slice(max(0, len(last) - _SAMPLE_ROWS)), self._described)
            self._writer = pq.ParquetWriter(
                self._unfinished,
                self._schema,
                use_dictionary=repeating,
                write_statistics=self._described,
                compression=compression,
            )
            for block in self._waiting:
                self._writer.write_table(block)
            self._waiting.clear()
        return self._writer


def _worth(sample: "pa.Table", described: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    # Which columns get smaller by a dictionary, and which by compression, by writing some rows both ways.
    as_they_are, repeated = _sizes(sample, []), _sizes(sample, described)
    repeating = [name for name in described if name in repeated and repeated[name][0] < 0.7 * as_they_are[name][0]]
    chosen = {**as_they_are, **{name: repeated[name] for name in repeating}}
    # Of a few bytes nobody can say.
    small = [whole < _LEAST_BYTES or packed < 0.9 * whole for whole, packed in chosen.values()]
    return repeating, {name: "snappy" if is_small else "none" for name, is_small in zip(chosen, small, strict=True)}


def _sizes(sample: "pa.Table", repeating: Sequence[str]) -> dict[str, tuple[int, int]]:
    # Bytes of each column before and after compression.
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pa.BufferOutputStream()
    pq.write_table(sample, file, use_dictionary=list(repeating), write_statistics=False, compression="snappy")
    metadata = pq.read_metadata(pa.BufferReader(file.getvalue()))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    return {item.path_in_schema: (item.total_uncompressed_size, item.total_compressed_size) for item in columns}


@contextlib.contextmanager
def disk(what: str) -> Iterator[None]:
    """Turns the errors of a disk into ours."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror or error}; free some space or name another folder") from error


def _to_arrow(frame: "pl.DataFrame") -> "pa.Table":
    import polars as pl

    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
