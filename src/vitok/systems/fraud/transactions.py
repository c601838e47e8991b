"""Card transactions and their labels, from CSV and Parquet files with columns of any name."""

import contextlib
import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitok.clock import DAY, HOUR, MINUTE, duration, isoformat
from vitok.errors import ContractBroken, InvalidInput

if TYPE_CHECKING:
    import polars as pl

_HANDBOOK = {
    "transaction_id": "TRANSACTION_ID",
    "event_time": "TX_DATETIME",
    "customer_id": "CUSTOMER_ID",
    "terminal_id": "TERMINAL_ID",
    "amount": "TX_AMOUNT",
    "is_fraud": "TX_FRAUD",
    "label_time": "LABEL_DATETIME",
}
COLUMNS = tuple(_HANDBOOK)
_OPTIONAL = ("transaction_id", "label_time")
# Parts of names that other data sets use, most telling first: for the mapping that an error message proposes.
_LIKELY = {
    "event_time": ("datetime", "timestamp", "time", "date"),
    "customer_id": ("customer", "card", "cc_num", "account", "client", "user", "orig"),
    "terminal_id": ("terminal", "merchant", "device", "shop", "store", "dest"),
    "amount": ("amount", "amt", "value", "sum"),
    "is_fraud": ("fraud", "label", "class", "target"),
}
_SUFFIXES = (".csv", ".csv.gz", ".parquet")
_SEPARATORS = ",;\t|"
# Whole numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, by their size; what is smaller
# than the first bound would lie before 1973 and is more likely a date without dashes or a count from another start.
_EPOCH_BOUNDS = (10**8, 10**11, 10**14, 10**17)
_SAMPLE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Transactions:
    """Card transactions and, apart from them and later, what became of them.

    Attributes:
        transactions: `transaction_id`, `event_time` (microseconds, UTC), `customer_id`, `terminal_id`, `amount`, in
            order of time. Values that could not be read are null; a contract sends their rows to quarantine.
        labels: `transaction_id`, `is_fraud` (0 or 1), `label_time` (when it became known); simulated data have
            `scenario` too.
        label_delay_us: How long labels take, in microseconds: a gap this long leaves nothing unknown behind it.
        assumptions: What was taken as given, in sentences for the reader of any result.
        fingerprint: Hash of the contents.

    Example:
        >>> from vitok.systems.fraud.simulator import simulate
        >>> data = simulate(n_customers=50, n_terminals=100, days=10, radius=20, seed=1)
        >>> data.transactions.columns
        ['transaction_id', 'event_time', 'customer_id', 'terminal_id', 'amount']
    """

    transactions: "pl.DataFrame"
    labels: "pl.DataFrame"
    label_delay_us: int
    assumptions: tuple[str, ...]
    fingerprint: str

    def span(self) -> tuple[int, int]:
        """Returns the first and the last event time, in microseconds.

        Raises:
            InvalidInput: If no transaction has a time.
        """
        times = self.transactions["event_time"].drop_nulls().to_physical()
        if times.is_empty():
            raise InvalidInput("transactions", len(self.transactions), "hold a transaction that has a time")
        return int(times.min()), int(times.max())  # type: ignore[arg-type]

    def __len__(self) -> int:
        """How many transactions."""
        return len(self.transactions)

    def __repr__(self) -> str:
        """Says it in one line."""
        if self.transactions["event_time"].null_count() == len(self):
            return f"Transactions({len(self)} transactions without a time)"
        first, last = (isoformat(moment)[:10] for moment in self.span())
        frauds = int((self.labels["is_fraud"] == 1).sum())
        customers, terminals = (self.transactions[name].n_unique() for name in ("customer_id", "terminal_id"))
        return (
            f"Transactions({len(self):,} of {customers:,} customers at {terminals:,} terminals, {first} to {last}, "
            f"{frauds:,} frauds = {frauds / max(1, len(self.labels)):.3%}, label delay "
            f"{self.label_delay_us / DAY:.3g} d)"
        )


def read(path: str | Path, *, mapping: Mapping[str, str] | None = None, label_delay: str | int = "7d") -> Transactions:
    r"""Reads transactions with labels from a CSV, CSV.gz or Parquet file, or from a folder of them.

    Our own column names and those of the Fraud Detection Handbook are known, in capitals or not; columns with other
    names that the mapping does not name are ignored. Times are read as UTC where they have no offset.

    Args:
        path: The file, or a folder of which all files are read in the order of their names.
        mapping: Our column name to the file's, such as `{"amount": "AMT"}`.
        label_delay: Age at which a label becomes known, where the file has no label time: such as `"7d"`, or
            microseconds.

    Returns:
        Transactions in order of time; rows with values that cannot be read are kept, with null in their place.

    Raises:
        ContractBroken: If a column is missing, or not one of its values can be read.
        InvalidInput: If there is no such file, it holds no row, or it is damaged; if the mapping names an unknown
            column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "payments.csv"
        ...     _ = file.write_text("when,card,shop,AMT,fraud\n2026-01-01T10:00:00,7,3,9.99,0\n")
        ...     names = {"event_time": "when", "customer_id": "card", "terminal_id": "shop", "amount": "AMT"}
        ...     read(file, mapping={**names, "is_fraud": "fraud"}, label_delay="30d")
        Transactions(1 of 1 customers at 1 terminals, 2026-01-01 to 2026-01-01, 0 frauds = 0.000%, label delay 30 d)
    """
    import polars as pl

    delay = duration(label_delay)
    chosen = dict(mapping or {})
    for name in chosen:
        if name not in COLUMNS:
            raise InvalidInput("mapping", name, f"map one of our columns: {', '.join(COLUMNS)}", "Write ours=theirs.")
    digest = hashlib.sha256(repr((sorted(chosen.items()), delay)).encode())
    notes = _Notes()
    parts = []
    for file in _files(Path(path)):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
        with _readable(file):
            parts.append(_read_file(file, chosen, notes))
        if parts[-1].columns != parts[0].columns:
            extra = sorted(set(parts[-1].columns) ^ set(parts[0].columns))
            raise ContractBroken(f"{file}: some files have a column for {', '.join(extra)} and some have not")
    frame = pl.concat(parts)
    del parts
    if frame.is_empty():
        raise InvalidInput("transactions", str(path), "hold at least one row")
    return _assemble(frame, notes, delay, digest.hexdigest()[:32])


class _Notes:
    """Counts what had to be assumed, over all files."""

    def __init__(self) -> None:
        self.unreadable: dict[str, int] = {}
        self.naive = False
        self.epoch: dict[str, str] = {}

    def count(self, name: str, before: "pl.Series", after: "pl.Series") -> None:
        lost = after.null_count() - before.null_count()
        filled = len(before) - before.null_count()
        if lost and lost == filled and name in {"event_time", "amount", "is_fraud"}:
            example = before.drop_nulls().head(1).to_list()[0]
            raise ContractBroken(
                f"{name}: not one of {filled:,} values of column {before.name!r} can be read, such as {example!r}; "
                f"{_EXPECTED[name]}. Name another column with --mapping {name}=COLUMN, or convert it"
            )
        self.unreadable[name] = self.unreadable.get(name, 0) + lost

    def sentences(self) -> Iterator[str]:
        for name, count in self.unreadable.items():
            if count:
                yield f"{count:,} values of {name} could not be read and are taken as missing."
        if self.naive:
            yield "Times without an offset are taken as UTC."
        for name, unit in self.epoch.items():
            yield f"{name} is taken as {unit} since 1970-01-01 UTC, by the size of its numbers."


_EXPECTED = {
    "event_time": "a time is ISO 8601 text, a timestamp, or a whole number since 1970 of at least 100,000,000",
    "amount": "an amount is a finite number with a decimal point",
    "is_fraud": "a label is 0 or 1, false or true",
}


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.lower().endswith(_SUFFIXES):
            raise InvalidInput("transactions", str(path), f"end in one of {', '.join(_SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise InvalidInput("transactions", str(path), "name a file or folder that exists")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.name.lower().endswith(_SUFFIXES) and not file.name.startswith((".", "_")) and file.is_file()
    )
    if not files:
        raise InvalidInput("transactions", str(path), f"hold at least one file that ends in {', '.join(_SUFFIXES)}")
    return files


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    import polars as pl

    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InvalidInput(
            "transactions", str(file), "be a sound file with a header", f"Reading said: {reason}"
        ) from None


def _read_file(file: Path, mapping: Mapping[str, str], notes: _Notes) -> "pl.DataFrame":
    import polars as pl

    is_text = not file.name.lower().endswith(".parquet")
    if is_text:
        # All as text: a column whose first rows look like numbers must not fail at the row that is not one.
        lazy = pl.scan_csv(file, infer_schema=False, separator=_separator(file), encoding="utf8-lossy")
    else:
        lazy = pl.scan_parquet(file)
    where = _resolve(lazy.collect_schema().names(), mapping, file)
    raw = lazy.select([pl.col(theirs).alias(f"{ours}={theirs}") for ours, theirs in where.items()]).collect()
    columns = []
    for ours, theirs in where.items():
        values = raw.drop_in_place(f"{ours}={theirs}").rename(theirs)
        if ours in {"event_time", "label_time"}:
            read_values = _times(ours, values, notes)
        elif ours == "amount":
            read_values = _numbers(values)
        elif ours == "is_fraud":
            read_values = _flags(values)
        else:
            read_values = _identifiers(values, is_text=is_text)
        notes.count(ours, values, read_values)
        columns.append(read_values.alias(ours))
    return pl.DataFrame(columns)


def _separator(file: Path) -> str:
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        header = stream.read(_SAMPLE).split(b"\n", 1)[0].decode("utf-8", errors="replace")
    return max(_SEPARATORS, key=header.count)


def _resolve(columns: Sequence[str], mapping: Mapping[str, str], file: Path) -> dict[str, str]:
    by_capitals = {name.strip().casefold(): name for name in reversed(columns)}
    where, missing, wrong = {}, [], []
    for ours in COLUMNS:
        if ours in mapping:
            if mapping[ours] in columns:
                where[ours] = mapping[ours]
            else:
                wrong.append(ours)
            continue
        found = next((name for name in (ours, _HANDBOOK[ours]) if name in columns), None)
        found = found or by_capitals.get(ours) or by_capitals.get(_HANDBOOK[ours].casefold())
        if found is not None:
            where[ours] = found
        elif ours not in _OPTIONAL:
            missing.append(ours)
    if not missing and not wrong:
        return where
    there = ", ".join(repr(name) for name in columns[:40]) or "no column"
    told = [f"{file}: found {there}"]
    if wrong:
        told.append("the mapping names columns that are not there: " + ", ".join(f"{w}={mapping[w]}" for w in wrong))
    if missing:
        told.append(f"nothing there is known as {', '.join(missing)}")
    if "is_fraud" in missing:
        told.append("without a label (0 or 1) nothing can be learnt or judged")
    free = [name for name in columns if name not in where.values()]
    hint = " ".join(f"--mapping {ours}={_likely(ours, free)}" for ours in (*wrong, *missing))
    raise ContractBroken("; ".join(told) + f". Say which column is which, perhaps: {hint}")


def _likely(ours: str, free: list[str]) -> str:
    for part in _LIKELY.get(ours, ()):
        for name in free:
            if part in name.casefold():
                free.remove(name)
                return repr(name) if " " in name else name
    return "COLUMN"


def _identifiers(values: "pl.Series", *, is_text: bool) -> "pl.Series":
    """Writes identifiers as text; 12.0, which a whole number becomes in a column with gaps, is written 12."""
    import polars as pl

    if values.dtype.is_float():
        values = values.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        text = whole.cast(pl.String)
        if (whole.cast(pl.Float64) == values.cast(pl.Float64)).all():
            return text
        return text.zip_with(
            (whole.cast(pl.Float64) == values.cast(pl.Float64)).fill_null(value=False), values.cast(pl.String)
        )
    text = values.cast(pl.String, strict=False)
    return text.str.replace(r"^(-?[0-9]+)\.0+$", "${1}") if is_text else text


def _numbers(values: "pl.Series") -> "pl.Series":
    """Reads numbers; what is infinite or not a number is null."""
    import polars as pl

    text = values.str.strip_chars() if values.dtype == pl.String else values
    numbers = text.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def _flags(values: "pl.Series") -> "pl.Series":
    import polars as pl

    if values.dtype == pl.String:
        words = values.str.strip_chars().str.to_lowercase()
        values = words.replace({"true": "1", "false": "0"})
    numbers = values.cast(pl.Float64, strict=False)
    flags = numbers.cast(pl.Int8, strict=False)
    return flags.set((flags.cast(pl.Float64) != numbers).fill_null(value=False), None)


def _times(ours: str, values: "pl.Series", notes: _Notes) -> "pl.Series":
    import polars as pl

    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("us"))
    if isinstance(values.dtype, pl.Datetime):
        if values.dtype.time_zone is None:
            notes.naive = True
            return values.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        return values.dt.convert_time_zone("UTC").cast(pl.Datetime("us", "UTC"))
    if values.dtype == pl.String:
        text = values.str.strip_chars()
        filled = text.drop_nulls()
        if filled.is_empty() or not filled.head(_SAMPLE).str.contains(r"^[0-9]+(\.0+)?$").all():
            return _iso_times(text, notes)
        values = text.str.replace(r"\.0+$", "").cast(pl.Int64, strict=False)
    if not (values.dtype.is_numeric() or values.dtype == pl.Null):
        raise ContractBroken(f"{ours}: column {values.name!r} is {values.dtype}; {_EXPECTED['event_time']}")
    return _epoch_times(ours, values.cast(pl.Int64, strict=False), notes)


def _iso_times(text: "pl.Series", notes: _Notes) -> "pl.Series":
    import polars as pl

    times = text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    notes.naive |= times.null_count() < len(times)
    rest = times.is_null() & text.is_not_null()
    if rest.any():
        # The rest: with T, a fraction, an offset, without seconds, or a bare date.
        parts = (
            text.filter(rest)
            .str.extract_groups(
                r"^(?<date>\d{4}-\d\d-\d\d)(?:[T ](?<time>\d\d:\d\d)(?<second>:\d\d)?(?<fraction>[.,]\d{1,9})?"
                r"\s*(?<offset>[Zz]|UTC|(?<sign>[+-])(?<hours>\d\d):?(?<minutes>\d\d)?)?)?$"
            )
            .struct.unnest()
        )
        written = parts.select(
            moment=(
                pl.col("date") + " " + pl.col("time").fill_null("00:00") + pl.col("second").fill_null(":00")
            ).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us"),
            fraction=(
                (pl.lit("0") + pl.col("fraction").str.replace(",", ".", literal=True)).cast(pl.Float64) * 1_000_000
            ).round(),
            offset=(pl.col("hours").cast(pl.Int64) * HOUR + pl.col("minutes").fill_null("0").cast(pl.Int64) * MINUTE)
            * pl.when(pl.col("sign") == "-").then(-1).otherwise(1),
            naive=pl.col("date").is_not_null() & pl.col("offset").is_null(),
        )
        micros = written.select(
            pl.col("moment").to_physical()
            + pl.col("fraction").fill_null(0).cast(pl.Int64)
            - pl.col("offset").fill_null(0)
        ).to_series()
        notes.naive |= bool(written["naive"].any())
        times = times.to_physical().scatter(rest.arg_true(), micros).cast(pl.Datetime("us"))
    return times.dt.replace_time_zone("UTC")


def _epoch_times(ours: str, numbers: "pl.Series", notes: _Notes) -> "pl.Series":
    import polars as pl

    utc = pl.Datetime("us", "UTC")
    middle = numbers.filter(numbers >= _EPOCH_BOUNDS[0]).median()
    if middle is None:
        return pl.Series(numbers.name, [None] * len(numbers), dtype=utc)
    size = sum(float(middle) >= bound for bound in _EPOCH_BOUNDS) - 1  # type: ignore[arg-type]
    notes.epoch[ours] = ("seconds", "milliseconds", "microseconds", "nanoseconds")[size]
    plausible = numbers.set(numbers < _EPOCH_BOUNDS[size], None)
    if size < len(_EPOCH_BOUNDS) - 1:
        plausible = plausible.set(plausible >= _EPOCH_BOUNDS[size + 1], None)
    micros = plausible // 1000 if size == 3 else plausible * (1_000_000, 1000, 1)[size]
    return micros.cast(utc)


def _assemble(frame: "pl.DataFrame", notes: _Notes, delay: int, fingerprint: str) -> Transactions:
    import polars as pl

    assumptions = list(notes.sentences())
    if "transaction_id" not in frame.columns:
        frame = frame.with_row_index("transaction_id").with_columns(pl.col("transaction_id").cast(pl.String))
        assumptions.append("There is no transaction id; the number of the row, from 0, stands for it.")
    if not frame["event_time"].is_sorted(nulls_last=True):
        frame = frame.sort("event_time", maintain_order=True, nulls_last=True)
    assumed = (pl.col("event_time") + pl.duration(microseconds=delay)).alias("label_time")
    named = f"{delay / DAY:.6g} days" if delay >= DAY else f"{delay / HOUR:.6g} hours"
    if "label_time" in frame.columns:
        labels = frame.select("transaction_id", "is_fraud", pl.col("label_time").fill_null(assumed))
        taken = frame.select((pl.col("label_time") - pl.col("event_time")).dt.total_microseconds()).to_series()
        missing = taken.null_count()
        if missing:
            assumptions.append(f"{missing:,} labels have no time; each is taken to be known after {named}.")
        if missing < len(taken):
            delay = max(0, int(taken.quantile(0.99, "higher") or 0))
            assumptions.append(f"99 % of the labels were known within {delay / DAY:.3g} days of the transaction.")
    else:
        labels = frame.select("transaction_id", "is_fraud", assumed)
        assumptions.append(f"There is no label time; every label is taken to be known {named} after the transaction.")
    return Transactions(
        transactions=frame.select("transaction_id", "event_time", "customer_id", "terminal_id", "amount"),
        labels=labels,
        label_delay_us=delay,
        assumptions=tuple(assumptions),
        fingerprint=fingerprint,
    )
