"""The ledger of the quarantine: which rows were released or discarded, by whom, why, and each of them once.

A settlement is one file, which holds the entries it settles, the rows it releases, and who did it why. The file
appears by one rename, so that a process that is killed at any moment has settled all of it or nothing, and a second
try settles what is left.
"""

import contextlib
import fcntl
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitok import ids
from vitok.errors import InvalidInput, StoreError

if TYPE_CHECKING:
    import polars as pl

Action = Literal["released", "discarded"]
ENTRY = "quarantine_entry"
_SUFFIX = ".parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class Settlement:
    """What became of rows in quarantine.

    Attributes:
        id: Identifier of the settlement in the ledger; "" where there was nothing left to settle.
        action: `"released"` or `"discarded"`.
        batch: The batch they came in; "" for single requests.
        n_settled: How many rows it settled.
        n_before: How many of those asked for were settled before, and are not settled again.
        refused: The rows that still break the contract and stay, as `quarantine_entry` and `reason`.
    """

    id: str
    action: Action
    batch: str
    n_settled: int
    n_before: int
    refused: "pl.DataFrame" = field(repr=False)

    @property
    def n_refused(self) -> int:
        """How many rows stay in quarantine because they still break the contract."""
        return self.refused.height

    def __str__(self) -> str:
        told = [f"{self.batch or 'requests'}: {self.n_settled:,} rows {self.action}"]
        if self.n_before:
            told.append(f"{self.n_before:,} settled before")
        if self.n_refused:
            told.append(f"{self.n_refused:,} still break the contract and stay")
        return ", ".join(told)


class Settlements:
    """A folder of settlements; several processes may settle at once.

    Args:
        folder: Where they are; made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from settling; it ends with the process, however that ends.

        Raises:
            StoreError: If the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"quarantine {self._folder} cannot be written: {error}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def add(
        self, action: Action, rows: "pl.DataFrame", *, batch: str, table: str, by: str, reason: str, now: int
    ) -> str:
        """Writes one settlement; the caller holds the lock and has left out what was settled before.

        Args:
            action: What becomes of the rows.
            rows: Their entries in the column `quarantine_entry` and, where they are released, the rows besides it.
            batch: The batch they came in.
            table: Name of the table in the contract.
            by: Who settles them.
            reason: Why.
            now: Present time in microseconds.

        Returns:
            The identifier of the settlement.

        Raises:
            StoreError: If it cannot be written; then nothing is settled.
        """
        import polars as pl

        identifier = ids.text(ids.uuid7())
        told = {"id": identifier, "action": action, "batch": batch, "table": table, "by": by, "reason": reason}
        frame = rows.select(
            pl.col(ENTRY),
            *(pl.lit(value).alias(name) for name, value in told.items()),
            pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("time"),
            *([pl.struct(pl.exclude(ENTRY)).alias("row")] if action == "released" else []),
        )
        write_whole(self._folder / f"{identifier}-{action}{_SUFFIX}", parquet(frame))
        return identifier

    def entries(self) -> "pl.DataFrame":
        """Returns the entries that are settled, with `action`.

        Raises:
            StoreError: If a settlement is damaged.
        """
        import polars as pl

        frames = [pl.DataFrame(schema={ENTRY: pl.String(), "action": pl.String()})]
        return pl.concat([*frames, *(read_parquet(path, [ENTRY, "action"]) for path in self._files())])

    def ledger(self) -> "pl.DataFrame":
        """Returns one row a settlement: `time`, `action`, `id`, `batch`, `table`, `rows`, `by` and `reason`."""
        import polars as pl

        schema = dict.fromkeys(("action", "id", "batch", "table"), pl.String())
        empty = {
            "time": pl.Datetime("us", "UTC"),
            **schema,
            "rows": pl.UInt32(),
            "by": pl.String(),
            "reason": pl.String(),
        }
        frames = [pl.DataFrame(schema=empty)]
        for path in self._files():
            frame = read_parquet(path, ["time", *schema, "by", "reason"])
            frames.append(frame.head(1).with_columns(rows=pl.lit(frame.height, pl.UInt32)).select(list(empty)))
        return pl.concat(frames).sort("time", maintain_order=True)

    def released(self, *, table: str, batch: str | None = None, settlement: str | None = None) -> "pl.DataFrame":
        """Returns released rows; see `Quarantine.released`."""
        import polars as pl

        frames = []
        for path in self._files():
            if not path.stem.endswith("-released"):
                continue
            frame = read_parquet(path)
            head = frame.row(0, named=True)
            wanted = head["table"] == table and batch in (None, head["batch"]) and settlement in (None, head["id"])
            if wanted:
                frames.append(frame.select(ENTRY, "row").unnest("row"))
        return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame(schema={ENTRY: pl.String()})

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))


def named(value: str, field_name: str) -> str:
    """Returns a text that says something.

    Raises:
        InvalidInput: If it is empty or longer than 1,000 characters.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > 1000:
        raise InvalidInput(field_name, value, "be a text of 1 to 1,000 characters, for the ledger")
    return value.strip()


def parquet(frame: "pl.DataFrame") -> bytes:
    """Writes a frame as Parquet into memory, so that it reaches the disk in one piece."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def read_parquet(path: Path, columns: list[str] | None = None) -> "pl.DataFrame":
    """Reads a Parquet file of the quarantine.

    Raises:
        StoreError: If it is damaged.
    """
    import polars as pl

    try:
        return pl.read_parquet(path, columns=columns, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(f"quarantine file {path} cannot be read: {error}") from error


def write_whole(target: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, after a crash and a power loss too.

    Raises:
        StoreError: If the disk is full or the folder cannot be written.
    """
    # The dot keeps a file that a crash left half written from being read.
    draft = target.parent / f".{ids.text(ids.uuid7())}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StoreError(f"quarantine {target.parent} cannot be written: {error}; nothing of it was kept") from error
    # Without this a renamed file may be gone after a power loss.
    handle = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
