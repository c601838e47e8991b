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

_BLOCK_BYTES = 64 * 2**20
_LEAST_ROWS = 8192


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
            try:
                self.rows = FrameInput(pl.read_parquet(list(self.rows.files)))
            except pl.exceptions.PolarsError as error:
                raise InvalidInput("spine", str(error).splitlines()[0], "be files of one schema") from error
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
        import pyarrow.parquet as pq

        n = min(BATCH, max(_LEAST_ROWS, _BLOCK_BYTES // max(row_bytes, 1)))
        if isinstance(self.rows, FrameInput):
            for part in self.frame.iter_slices(n):
                yield _to_arrow(part)
            return
        assert isinstance(self.rows, FilesInput)  # noqa: S101 - the other one of two
        schema = self.schema()
        for path in self.rows.files:
            # One thread and no reading ahead: a third of the CPU and of the memory.
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for batch in file.iter_batches(n, use_threads=False):
                    try:
                        yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
                    except (KeyError, pa.ArrowInvalid) as error:
                        raise InvalidInput("spine", path, "have the columns of its first file", str(error)) from error


class TableWriter:
    """Writes a table to one Parquet file, which is there whole or not at all.

    Args:
        path: Where.
        schema: Types of the columns.
        described: Columns whose values repeat and are searched for: the spine's own.

    Raises:
        InvalidInput: If there is no such folder.
    """

    def __init__(self, path: str | Path, schema: "pa.Schema", described: Sequence[str]) -> None:
        import pyarrow.parquet as pq

        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise InvalidInput("into", str(path), "be in a folder that exists")
        self._unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        # Dictionaries and bounds of features are of no use, and cost half of the writing.
        self._writer = pq.ParquetWriter(
            self._unfinished, schema, use_dictionary=list(described), write_statistics=list(described)
        )

    def write(self, block: "pa.Table") -> None:
        """Writes some rows."""
        self._writer.write_table(block)

    def finish(self) -> Path:
        """Puts the file in its place."""
        self._writer.close()
        self._unfinished.replace(self.path)
        return self.path

    def abandon(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):
            self._writer.close()
        self._unfinished.unlink(missing_ok=True)


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
