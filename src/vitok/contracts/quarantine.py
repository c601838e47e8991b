"""Keeps what was rejected, with the reason, until somebody has mended it: rows of tables, and single bad requests."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok import ids
from vitok.errors import InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts.report import CheckReport

LONGEST_REQUEST = 64 * 1024
_REQUESTS = "requests.jsonl"
_SUFFIX = ".parquet"


class Quarantine:
    """A folder of rejected rows.

    A batch becomes one Parquet file with the rows as they came; a bad request becomes one line of a JSON Lines file.
    Several processes may write at once. Nothing is deleted here.

    Args:
        folder: Where it is; made with the first write.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> quarantine = Quarantine(folder.name)
        >>> quarantine.put_row(b'{"amount": -3}', "amount: got -3, must be at least 0", now=0)
        >>> quarantine.count()
        1
        >>> quarantine.read()["reason"].to_list()
        ['amount: got -3, must be at least 0']
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def put(self, report: "CheckReport", *, batch: str, now: int) -> int:
        """Keeps the rejected rows of a report.

        The same rows under the same batch are kept once, so that a run which is repeated after a crash does not
        double them.

        Args:
            report: What a check found.
            batch: Identifier of the batch, at most 200 characters.
            now: Present time in microseconds.

        Returns:
            How many rows of the report are in quarantine, those kept before included.

        Raises:
            InvalidInput: If the batch has no name.
            StoreError: If the disk is full or the folder cannot be written; then nothing of it is kept.
        """
        import polars as pl

        if not batch or len(batch) > 200:
            raise InvalidInput("batch", batch, "be a name of 1 to 200 characters")
        rejected = report.rejected
        if rejected.is_empty():
            return 0
        row = pl.struct(pl.exclude("reason", "rules")).alias("row")
        rows = rejected.select(
            pl.lit(batch).alias("batch"),
            pl.lit(report.table).alias("table"),
            pl.col("rules").list.first().alias("rule"),
            "reason",
            "rules",
            row,
        )
        digest = hashlib.sha256(_parquet(rows)).hexdigest()[:24]
        target = self.folder / f"{_safe(batch)}-{_safe(report.table)}-{digest}{_SUFFIX}"
        if target.exists():
            return rejected.height
        content = _parquet(rows.with_columns(pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("time")))
        # The dot keeps a file that a crash left half written from being read.
        draft = self.folder / f".{ids.text(ids.uuid7())}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
            _sync(self.folder)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StoreError(f"quarantine {self.folder} cannot be written: {error}") from error
        return rejected.height

    def put_row(
        self, raw: bytes | Mapping[str, Any], reason: str, *, now: int, rule: str = "request", table: str = ""
    ) -> None:
        """Keeps one bad request, by one append to a file.

        Args:
            raw: The request as it came, or as it was decoded; of more than 64 KiB the beginning is kept.
            reason: Why it was refused.
            now: Present time in microseconds.
            rule: Name of the broken rule, such as `"amount.minimum"`.
            table: Name of the table in the contract.

        Raises:
            StoreError: If the line cannot be written whole.
        """
        if isinstance(raw, bytes):
            row = raw[:LONGEST_REQUEST].decode("utf-8", "backslashreplace")
            size = len(raw)
        else:
            row = json.dumps(raw, default=str, ensure_ascii=True)
            size = len(row)
            row = row[:LONGEST_REQUEST]
        record = {"time": now, "table": table, "rule": rule, "reason": reason, "row": row, "bytes": size}
        # A line begins with its own line feed, so that a line which a full disk cut short spoils no other.
        line = b"\n" + json.dumps(record, ensure_ascii=True).encode() + b"\n"
        path = self.folder / _REQUESTS
        try:
            handle = self._open(path)
            try:
                written = os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise StoreError(f"quarantine {path} cannot be written: {error}") from error
        if written != len(line):
            raise StoreError(f"quarantine {path}: {written} of {len(line)} bytes were written; the disk is full")

    def _open(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o644)

    def read(self, *, batch: str | None = None) -> "pl.DataFrame":
        """Returns what is in quarantine, oldest first.

        Args:
            batch: Only this batch; bad requests belong to the batch "".

        Returns:
            A frame with `batch`, `time` (UTC), `table`, `rule` (the first broken one), `reason`, `rules` and `row`,
            the row as JSON. JSON has no NaN and no infinity: there they are null, and `rows` has them.

        Raises:
            StoreError: If a file is damaged.
        """
        import polars as pl

        frames = [pl.DataFrame(schema=_schema())]
        for path in self._batches():
            frame = _read(path)
            if batch is None or frame["batch"][0] == batch:
                frames.append(frame.with_columns(pl.col("row").struct.json_encode()).select(list(_schema())))
        if batch is None or batch == "":
            frames.append(self._requests())
        return pl.concat(frames).sort("time", maintain_order=True)

    def rows(self, *, batch: str, table: str | None = None) -> "pl.DataFrame":
        """Returns the rejected rows of a batch as they came, in their own types, to be mended and checked again.

        Args:
            batch: The batch they came in.
            table: Only the rows of this table; needed where a batch has rows of several.

        Raises:
            NotFound: If no row of that batch is in quarantine.
            StoreError: If a file is damaged.
        """
        import polars as pl

        found = []
        batches: set[str] = set()
        for path in self._batches():
            frame = _read(path)
            batches.add(frame["batch"][0])
            if frame["batch"][0] == batch and table in (None, frame["table"][0]):
                found.append(frame.select("row").unnest("row"))
        if not found:
            raise NotFound("batch in quarantine", batch, sorted(batches))
        try:
            return pl.concat(found)
        except pl.exceptions.PolarsError:
            raise InvalidInput("table", table, "be named: the batch has rows with several sets of columns") from None

    def count(self) -> int:
        """Returns how many rows and requests are in quarantine.

        Raises:
            StoreError: If a file is damaged.
        """
        import polars as pl

        total = len(self._lines())
        for path in self._batches():
            try:
                total += pl.scan_parquet(path).select(pl.len()).collect().item()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise StoreError(f"quarantine file {path} cannot be read: {error}") from error
        return total

    def _batches(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))

    def _lines(self) -> list[bytes]:
        try:
            content = (self.folder / _REQUESTS).read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"quarantine {self.folder / _REQUESTS} cannot be read: {error}") from error
        return [line for line in content.split(b"\n") if line.strip()]

    def _requests(self) -> "pl.DataFrame":
        import polars as pl

        rows = []
        for line in self._lines():
            try:
                item = json.loads(line)
                rows.append(
                    {
                        "batch": "",
                        "time": int(item["time"]),
                        "table": item["table"],
                        "rule": item["rule"],
                        "reason": item["reason"],
                        "rules": [item["rule"]],
                        "row": item["row"],
                    }
                )
            except (ValueError, KeyError, TypeError):
                text = line.decode("utf-8", "backslashreplace")
                reason = "this line of the quarantine was cut short while it was written"
                rows.append(
                    {"batch": "", "time": 0, "table": "", "rule": "torn", "reason": reason, "rules": [], "row": text}
                )
        schema = {**_schema(), "time": pl.Int64()}
        return pl.DataFrame(rows, schema=schema).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))


def _schema() -> "dict[str, pl.DataType]":
    import polars as pl

    return {
        "batch": pl.String(),
        "time": pl.Datetime("us", "UTC"),
        "table": pl.String(),
        "rule": pl.String(),
        "reason": pl.String(),
        "rules": pl.List(pl.String()),
        "row": pl.String(),
    }


def _parquet(frame: "pl.DataFrame") -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _read(path: Path) -> "pl.DataFrame":
    import polars as pl

    try:
        return pl.read_parquet(path, hive_partitioning=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(f"quarantine file {path} cannot be read: {error}") from error


def _safe(name: str) -> str:
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in name)
    return kept.lstrip(".")[:60] or "_"


def _sync(folder: Path) -> None:
    """Makes the new name durable: without it a renamed file may be gone after a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
