"""Keeps what was rejected, with the reason, until somebody has settled it: rows of tables, and single bad requests."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitok.clock import DAY
from vitok.contracts.contract import Contract
from vitok.contracts.request_files import RequestFiles
from vitok.contracts.settlements import (
    ENTRY,
    Action,
    Settlement,
    Settlements,
    named,
    parquet,
    read_parquet,
    write_whole,
)
from vitok.errors import InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl

    from vitok.contracts.report import CheckReport

    Mended = pl.DataFrame | Callable[[pl.DataFrame], pl.DataFrame] | str | Path

LONGEST_REQUEST = 64 * 1024
_SUFFIX = ".parquet"


class Quarantine:
    """A folder of rejected rows, and the ledger of what became of them.

    A batch becomes one Parquet file with the rows as they came; a bad request becomes one line of a JSON Lines file
    of its day. A row stays until it is released (as it came, or mended) or discarded; each row once, also where a
    process is killed in the middle or two settle at the same time. Several processes may write at once.

    Args:
        folder: Where it is; made with the first write.
        retention: How long bad requests, and files of rows that are all settled, are kept at least, in microseconds.
        largest_file: Bytes after which the requests of a day go on in another file.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> quarantine = Quarantine(folder.name)
        >>> quarantine.put_row(b'{"amount": -3}', "amount: got -3, must be at least 0", now=0)
        >>> quarantine.count()
        1
        >>> quarantine.read()["reason"].to_list()
        ['amount: got -3, must be at least 0']
        >>> print(quarantine.discard(batch="", by="ann", reason="the sender has mended it", now=5))
        requests: 1 rows discarded
        >>> quarantine.count()
        0
        >>> folder.cleanup()
    """

    def __init__(self, folder: str | Path, *, retention: int = 90 * DAY, largest_file: int = 64 * 2**20) -> None:
        self.folder = Path(folder)
        self._retention = retention
        self._requests = RequestFiles(self.folder, largest=largest_file, retention=retention)
        self._settled = Settlements(self.folder / "settled")

    def put(self, report: "CheckReport", *, batch: str, now: int) -> int:
        """Keeps the rejected rows of a report.

        The same rows under the same batch are kept once, so that a run which is repeated after a crash does not
        double them, and does not bring back what was settled.

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
        digest = hashlib.sha256(parquet(rows)).hexdigest()[:24]
        target = self.folder / f"{_safe(batch)}-{_safe(report.table)}-{digest}{_SUFFIX}"
        if not target.exists():
            write_whole(target, parquet(rows.with_columns(pl.lit(now).cast(pl.Datetime("us", "UTC")).alias("time"))))
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
            StoreError: If the line cannot be written whole; then nothing of it is kept.
        """
        if isinstance(raw, bytes):
            row = raw[:LONGEST_REQUEST].decode("utf-8", "backslashreplace")
            size = len(raw)
        else:
            row = json.dumps(raw, default=str, ensure_ascii=True)
            size = len(row)
            row = row[:LONGEST_REQUEST]
        self._requests.append({"table": table, "rule": rule, "reason": reason, "row": row, "bytes": size}, now=now)

    def read(self, *, batch: str | None = None) -> "pl.DataFrame":
        """Returns what waits in quarantine, oldest first.

        Args:
            batch: Only this batch; bad requests belong to the batch "".

        Returns:
            A frame with `quarantine_entry` (by which a row is named), `batch`, `time` (UTC), `table`, `rule` (the
            first broken one), `value` (what it was broken with, as text; null for a request), `reason`, `rules` and
            `row`, the row as JSON. JSON has no NaN and no infinity: there they are null, and `rows` has them.

        Raises:
            StoreError: If a file is damaged.
        """
        import polars as pl

        wanted = _schema()
        frames = [pl.DataFrame(schema=wanted)]
        settled = self._settled.entries()
        for path in self._batches():
            frame = _entries(path)
            if batch is None or frame["batch"][0] == batch:
                waiting = frame.join(settled, on=ENTRY, how="anti", maintain_order="left")
                told = waiting.with_columns(_value(waiting), pl.col("row").struct.json_encode())
                frames.append(told.select(list(wanted)))
        if batch is None or batch == "":
            frames.append(self._waiting_requests(settled))
        return pl.concat(frames).sort("time", maintain_order=True)

    def batches(self) -> "pl.DataFrame":
        """Returns one row for each batch and table, oldest first, bad requests as the batch "".

        Returns:
            A frame with `batch`, `table`, `time` of the first row, how many `rows` there are and how many are
            `waiting`, `released` and `discarded`, and the `rules` that were broken first.

        Raises:
            StoreError: If a file is damaged.
        """
        import polars as pl

        schema = _schema()
        wanted = [ENTRY, "batch", "table", "time", "rule"]
        frames = [_entries(path, ["batch", "table", "time", "rule"]).select(wanted) for path in self._batches()]
        frames += [self._all_requests().select(wanted), pl.DataFrame(schema={name: schema[name] for name in wanted})]
        every = pl.concat(frames).join(self._settled.entries(), on=ENTRY, how="left")
        found = every.group_by("batch", "table").agg(
            pl.col("time").min(),
            pl.len().alias("rows"),
            pl.col("action").is_null().sum().alias("waiting"),
            (pl.col("action") == "released").sum().alias("released"),
            (pl.col("action") == "discarded").sum().alias("discarded"),
            pl.col("rule").unique().sort().alias("rules"),
        )
        return found.sort("time", "batch", "table")

    def rows(self, *, batch: str, table: str | None = None) -> "pl.DataFrame":
        """Returns the rows of a batch that wait, as they came, in their own types, to be mended and checked again.

        Args:
            batch: The batch they came in.
            table: Only the rows of this table; needed where a batch has rows of several.

        Returns:
            The rows, and `quarantine_entry` before them, by which a mended row finds its place.

        Raises:
            NotFound: If no row of that batch is in quarantine.
            InvalidInput: If the batch has rows with several sets of columns.
            StoreError: If a file is damaged.
        """
        import polars as pl

        settled = self._settled.entries()
        found = []
        batches: set[str] = set()
        for path in self._batches():
            frame = _entries(path)
            batches.add(frame["batch"][0])
            if frame["batch"][0] == batch and table in (None, frame["table"][0]):
                waiting = frame.join(settled, on=ENTRY, how="anti", maintain_order="left")
                found.append(waiting.select(ENTRY, "row").unnest("row"))
        if not found:
            raise NotFound("batch in quarantine", batch, sorted(batches))
        try:
            return pl.concat(found)
        except pl.exceptions.PolarsError:
            raise InvalidInput("table", table, "be named: the batch has rows with several sets of columns") from None

    def repair(
        self,
        contract: Contract,
        mended: "Mended",
        *,
        batch: str,
        by: str,
        reason: str,
        now: int,
        table: str | None = None,
        accepted: "pl.DataFrame | pl.LazyFrame | None" = None,
    ) -> Settlement:
        """Checks mended rows by the contract and releases those that keep it; the others stay.

        Rules of rows are checked, not those of the whole table: a handful of mended rows is no delivery. Two rows
        with one key are released once, whether they come together or one after another.

        Args:
            contract: The contract, which may be a newer one than the rows once broke.
            mended: The mended rows with their `quarantine_entry`: a frame, a CSV or Parquet file, or a function from
                the rows as they came to the mended ones. Rows that it leaves out stay.
            batch: The batch they came in.
            by: Who mends them; goes into the ledger.
            reason: What was wrong and how it was mended; goes into the ledger.
            now: Present time in microseconds.
            table: Name of the table; needed where the batch has rows of several.
            accepted: Rows accepted before; a mended row may not repeat a key of theirs.

        Returns:
            How many rows were released, and which still break the contract and why.

        Raises:
            NotFound: If nothing of that batch is in quarantine, or an entry is not of it.
            InvalidInput: If an entry is missing, given twice, or `by` or `reason` is empty.
            ContractBroken: If the mended rows lack a column or have one of another type.
            StoreError: If the ledger cannot be written; then nothing is released.
        """
        from vitok.contracts import repairs

        by, reason = named(by, "by"), named(reason, "reason")
        rows, name = self._of_batch(batch, table)
        frame = repairs.mended_rows(mended, rows)
        checked = repairs.checked(contract, frame, name, now=now)
        with self._settled.lock():
            settled = self._settled.entries()
            earlier = self._settled.released(table=name)
            passed, refused = repairs.without_repeats(contract.table(name), checked.accepted, earlier, accepted)
            stay = checked.rejected.select(ENTRY, "reason")
            # A row that was released before cannot be refused now.
            refused = stay.vstack(refused).join(settled, on=ENTRY, how="anti", maintain_order="left")
            fresh = passed.join(settled, on=ENTRY, how="anti", maintain_order="left")
            before = frame.join(settled, on=ENTRY, how="semi").height
            identifier = ""
            if fresh.height:
                identifier = self._settled.add(
                    "released", fresh, batch=batch, table=name, by=by, reason=reason, now=now
                )
        return Settlement(
            id=identifier, action="released", batch=batch, n_settled=fresh.height, n_before=before, refused=refused
        )

    def release(
        self,
        *,
        batch: str,
        by: str,
        reason: str,
        now: int,
        table: str | None = None,
        entries: Collection[str] | None = None,
    ) -> Settlement:
        """Releases rows as they came, on somebody's word, though they break the contract.

        Args:
            batch: The batch they came in.
            by: Who says so; goes into the ledger.
            reason: Why; goes into the ledger.
            now: Present time in microseconds.
            table: Name of the table; needed where the batch has rows of several.
            entries: Which of them, by `quarantine_entry`; all that wait by default.

        Raises:
            NotFound: If nothing of that batch is in quarantine, or an entry is not of it.
            InvalidInput: If `by` or `reason` is empty, or the batch is that of single requests: those were refused
                to their senders, who send them again.
            StoreError: If the ledger cannot be written; then nothing is released.
        """
        if not batch:
            fix = "A request was refused to its sender, who sends it again; discard it here"
            raise InvalidInput("batch", batch, "be that of rows", fix)
        return self._settle("released", batch, table, entries, by=by, reason=reason, now=now)

    def discard(
        self,
        *,
        batch: str,
        by: str,
        reason: str,
        now: int,
        table: str | None = None,
        entries: Collection[str] | None = None,
    ) -> Settlement:
        """Settles rows that nobody will mend; they stay in their file until its retention has passed.

        Args:
            batch: The batch they came in; "" for single requests.
            by: Who says so; goes into the ledger.
            reason: Why; goes into the ledger.
            now: Present time in microseconds.
            table: Name of the table; needed where the batch has rows of several.
            entries: Which of them, by `quarantine_entry`; all that wait by default.

        Raises:
            NotFound: If nothing of that batch is in quarantine, or an entry is not of it.
            InvalidInput: If `by` or `reason` is empty.
            StoreError: If the ledger cannot be written; then nothing is discarded.
        """
        return self._settle("discarded", batch, table, entries, by=by, reason=reason, now=now)

    def released(self, *, table: str, batch: str | None = None, settlement: str | None = None) -> "pl.DataFrame":
        """Returns the released rows of a table: what a run adds to the rows it accepted.

        Rows that a repair released have the contract's types; what they were before is in quarantine still.

        Args:
            table: Name of the table in the contract.
            batch: Only the rows of this batch.
            settlement: Only the rows of this settlement, for a reader that takes each one once.

        Returns:
            The rows, and `quarantine_entry` before them; no row twice.

        Raises:
            StoreError: If a settlement is damaged.
        """
        return self._settled.released(table=table, batch=batch, settlement=settlement)

    def ledger(self) -> "pl.DataFrame":
        """Returns who settled what and why, oldest first.

        Returns:
            A frame with `time` (UTC), `action`, `id`, `batch`, `table`, how many `rows`, `by` and `reason`.

        Raises:
            StoreError: If a settlement is damaged.
        """
        return self._settled.ledger()

    def prune(self, *, now: int) -> int:
        """Deletes files of bad requests past their retention, and files of rows all of which were settled before it.

        Rows that wait are never deleted, and neither is the ledger with the rows it released.

        Args:
            now: Present time in microseconds.

        Returns:
            How many files were deleted.

        Raises:
            StoreError: If a file is damaged or cannot be deleted.
        """
        pruned = self._requests.prune(now=now)
        settled = self._settled.entries()
        for path in self._batches():
            frame = _entries(path, ["time"])
            old = frame["time"].to_physical().max()
            waits = frame.join(settled, on=ENTRY, how="anti").height
            if not waits and isinstance(old, int) and old + self._retention <= now:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise StoreError(f"quarantine {path} cannot be deleted: {error}") from error
                pruned += 1
        return pruned

    def count(self) -> int:
        """Returns how many rows and requests wait in quarantine.

        Raises:
            StoreError: If a file is damaged.
        """
        return int(self.batches()["waiting"].sum())

    def _batches(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))

    def _of_batch(self, batch: str, table: str | None) -> "tuple[pl.DataFrame, str]":
        """All rows of one table of a batch, settled ones too, and the name of the table."""
        import polars as pl

        known = self.batches()
        if not batch:
            raise InvalidInput("batch", batch, "be that of rows", "Single requests can be discarded only")
        of_batch = known.filter(pl.col("batch") == batch)
        if of_batch.is_empty():
            raise NotFound("batch in quarantine", batch, [name for name in known["batch"].unique().sort() if name])
        names = of_batch["table"].to_list()
        if table is None and len(names) > 1:
            raise InvalidInput("table", table, f"be one of {', '.join(names)}: the batch has rows of several")
        name = names[0] if table is None else table
        if name not in names:
            raise NotFound(f"table in batch {batch}:", name, names)
        frames = [
            frame.select(ENTRY, "row").unnest("row")
            for frame in map(_entries, self._batches())
            if frame["batch"][0] == batch and frame["table"][0] == name
        ]
        return pl.concat(frames, how="diagonal_relaxed"), name

    def _settle(
        self,
        action: Action,
        batch: str,
        table: str | None,
        entries: Collection[str] | None,
        *,
        by: str,
        reason: str,
        now: int,
    ) -> Settlement:
        import polars as pl

        by, reason = named(by, "by"), named(reason, "reason")
        if batch:
            rows, name = self._of_batch(batch, table)
        else:
            rows, name = self._all_requests().select(ENTRY), table or ""
        if entries is not None:
            unknown = sorted(set(entries) - set(rows[ENTRY]))
            if unknown:
                raise NotFound(f"entry in batch {batch!r}:", unknown[0], rows[ENTRY].head(12).to_list())
            rows = rows.filter(pl.col(ENTRY).is_in(list(entries)))
        with self._settled.lock():
            settled = self._settled.entries()
            fresh = rows.join(settled, on=ENTRY, how="anti", maintain_order="left")
            identifier = ""
            if fresh.height:
                identifier = self._settled.add(action, fresh, batch=batch, table=name, by=by, reason=reason, now=now)
        return Settlement(
            id=identifier,
            action=action,
            batch=batch,
            n_settled=fresh.height,
            n_before=rows.height - fresh.height,
            refused=pl.DataFrame(schema={ENTRY: pl.String(), "reason": pl.String()}),
        )

    def _waiting_requests(self, settled: "pl.DataFrame") -> "pl.DataFrame":
        return self._all_requests().join(settled, on=ENTRY, how="anti", maintain_order="left")

    def _all_requests(self) -> "pl.DataFrame":
        import polars as pl

        rows = [
            {
                ENTRY: item.id,
                "batch": "",
                "time": item.time,
                "table": item.table,
                "rule": item.rule,
                "value": None,
                "reason": item.reason,
                "rules": [item.rule],
                "row": item.row,
            }
            for item in self._requests.read()
        ]
        schema = {**_schema(), "time": pl.Int64()}
        return pl.DataFrame(rows, schema=schema).with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))


def _schema() -> "dict[str, pl.DataType]":
    import polars as pl

    text = pl.String()
    return {
        ENTRY: text,
        "batch": text,
        "time": pl.Datetime("us", "UTC"),
        "table": text,
        "rule": text,
        "value": text,
        "reason": text,
        "rules": pl.List(pl.String()),
        "row": text,
    }


def _entries(path: Path, columns: list[str] | None = None) -> "pl.DataFrame":
    """Reads a file of rows and names each: by the file's digest, which is that of its rows, and the row's place."""
    import polars as pl

    frame = read_parquet(path, columns)
    digest = path.stem.rpartition("-")[2]
    return (
        frame.with_row_index("__place")
        .with_columns(pl.concat_str(pl.lit(f"{digest}."), pl.col("__place").cast(pl.String)).alias(ENTRY))
        .drop("__place")
    )


def _value(frame: "pl.DataFrame") -> "pl.Expr":
    """What the first broken rule was broken with: the value of its field, several joined by commas."""
    import polars as pl

    names = {field.name: field.dtype for field in frame.schema["row"].fields}  # type: ignore[attr-defined]  # it is a struct
    found = pl.lit(None, pl.String)
    for rule in frame["rule"].unique().sort():
        fields = rule.rpartition(".")[0]
        columns = [fields] if fields in names else fields.split(",")
        if not all(name in names for name in columns):
            continue
        text = [
            (column := pl.col("row").struct.field(name)).cast(pl.String)
            if not names[name].is_nested()
            else column.struct.json_encode()
            for name in columns
        ]
        shown = pl.concat_str([value.fill_null("null") for value in text], separator=", ")
        found = pl.when(pl.col("rule") == rule).then(shown).otherwise(found)
    return found.alias("value")


def _safe(name: str) -> str:
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.-") else "_" for letter in name)
    return kept.lstrip(".")[:60] or "_"
