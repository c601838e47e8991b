"""The manifest of a batch job: which rows lie in which shard, one line a shard, written after the shard is durable."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.registry.files import sync_folder

MANIFEST = "_manifest.jsonl"
_FORMAT = 1
_FOOTER = 65_536


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A Parquet file to be scored.

    Attributes:
        name: Its path below the folder that was named, or its name.
        rows: How many rows it has.
        size: Bytes.
        mark: SHA-256 of its last 64 KiB, where Parquet keeps what describes all of it.
    """

    name: str
    rows: int
    size: int
    mark: str

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        """Reads what identifies a file.

        Raises:
            InvalidInput: If it is no Parquet file, or cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.ParquetFile(path).metadata.num_rows
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(0, size - _FOOTER))
                mark = hashlib.sha256(file.read()).hexdigest()
        except (OSError, pa.ArrowException) as error:
            raise InvalidInput("inputs", str(path), f"be a readable Parquet file ({error})") from None
        return cls(name, rows, size, mark)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard, as the manifest tells of it.

    Attributes:
        number: From 0, in the order of the rows.
        input: Index of the input file.
        start: Its first row in that file.
        rows: How many rows of the file it covers.
        scored: How many of them were scored.
        quarantined: How many were not.
    """

    number: int
    input: int
    start: int
    rows: int
    scored: int
    quarantined: int

    @property
    def file(self) -> str:
        """Name of its file, among the results and in the quarantine."""
        return f"part-{self.number:06}.parquet"


class Manifest:
    """The lines of a job; a line that a crash cut short is taken back when the manifest is opened.

    Use `Manifest.open`.
    """

    def __init__(self, path: Path, shards: list[Shard], *, done: bool) -> None:
        self._path = path
        self.shards = shards
        self.done = done

    @classmethod
    def open(cls, folder: Path, job: dict[str, Any], inputs: Sequence[InputFile]) -> Self:
        """Opens the manifest of a folder, or begins one.

        Args:
            folder: The output folder.
            job: What the results depend on: model version, columns.
            inputs: The files, in order.

        Raises:
            Conflict: If the folder holds results of another job, or of inputs that have changed since.
            StoreError: If it is damaged, or cannot be written.
        """
        head = {"format": _FORMAT, **job, "inputs": [dataclasses.asdict(item) for item in inputs]}
        path = folder / MANIFEST
        try:
            if not path.exists():
                return cls._begin(path, head)
            raw = path.read_bytes()
            whole = raw[: raw.rfind(b"\n") + 1]
            if not whole:  # the crash was in the first line
                path.unlink()
                return cls._begin(path, head)
            if len(whole) < len(raw):
                os.truncate(path, len(whole))
            first, *rest = map(json.loads, whole.splitlines())
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        if first != head:
            changed = sorted(key for key in {*first, *head} if first.get(key) != head.get(key))
            raise Conflict(f"{folder} holds results of another job: {', '.join(changed)} differ; name another folder")
        done = bool(rest) and rest[-1].get("done") is True
        shards = [Shard(**line) for line in (rest[:-1] if done else rest)]
        if [shard.number for shard in shards] != list(range(len(shards))):
            raise StoreError(f"{path}: shards lack or stand twice; the manifest was changed by hand")
        return cls(path, shards, done=done)

    @classmethod
    def _begin(cls, path: Path, head: dict[str, Any]) -> Self:
        manifest = cls(path, [], done=False)
        manifest._append(head)
        sync_folder(path.parent)
        return manifest

    @property
    def position(self) -> tuple[int, int]:
        """Index of the input file and row in it where the next shard begins."""
        return (self.shards[-1].input, self.shards[-1].start + self.shards[-1].rows) if self.shards else (0, 0)

    def add(self, shard: Shard) -> None:
        """Writes the line of a shard whose files are durable.

        Raises:
            StoreError: If the disk is full.
        """
        self._append(dataclasses.asdict(shard))
        self.shards.append(shard)

    def finish(self) -> None:
        """Writes the last line."""
        self._append({"done": True, "shards": len(self.shards)})
        self.done = True

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written: {error}") from error
