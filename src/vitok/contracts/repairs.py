"""Mended rows on their way out of quarantine: read, matched with the rows they were, and checked again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from vitok.contracts.contract import Contract, Table
from vitok.contracts.files import scan
from vitok.contracts.settlements import ENTRY
from vitok.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from vitok.contracts.report import CheckReport

_ADDED = ("reason", "rules")


def mended_rows(
    mended: pl.DataFrame | Callable[[pl.DataFrame], pl.DataFrame] | str | Path, rows: pl.DataFrame
) -> pl.DataFrame:
    """Reads mended rows and matches each with the row it was.

    Args:
        mended: As `Quarantine.repair` takes them.
        rows: The rows as they came, with `quarantine_entry`.

    Raises:
        InvalidInput: If `quarantine_entry` is missing or one is given twice.
        NotFound: If an entry is not among the rows, or the file does not exist.
    """
    if isinstance(mended, str | Path):
        frame = scan(mended).collect()
    elif isinstance(mended, pl.DataFrame):
        frame = mended
    else:
        frame = mended(rows)
        if not isinstance(frame, pl.DataFrame):
            raise InvalidInput("mended", type(frame).__name__, "be a function that returns a polars DataFrame")
    if ENTRY not in frame.columns:
        fix = f"Keep the column {ENTRY} of the rows that came out of quarantine"
        raise InvalidInput("mended", frame.columns[:12], f"have a column {ENTRY}", fix)
    frame = frame.drop(*(name for name in _ADDED if name in frame.columns)).with_columns(pl.col(ENTRY).cast(pl.String))
    if frame[ENTRY].null_count():
        raise InvalidInput(f"mended.{ENTRY}", None, "be given in each row")
    twice = frame.filter(pl.col(ENTRY).is_duplicated())[ENTRY]
    if len(twice):
        raise InvalidInput(f"mended.{ENTRY}", twice[0], "be given once")
    unknown = frame.join(rows, on=ENTRY, how="anti")[ENTRY]
    if len(unknown):
        raise NotFound("entry in the batch:", unknown[0], rows[ENTRY].head(12).to_list())
    return frame


def checked(contract: Contract, frame: pl.DataFrame, table: str, *, now: int) -> "CheckReport":
    """Checks mended rows by the rules of rows; volume, freshness and shares judge a whole delivery, which this is not.

    Raises:
        ContractBroken: If a column is missing or of another type.
        NotFound: If the contract has no such table.
    """
    judged = contract.table(table).row_rules_only
    return replace(contract, tables=(judged,), freshness=(), deliveries=()).check(frame, now=now)


def without_repeats(
    table: Table, passed: pl.DataFrame, *earlier: pl.DataFrame | pl.LazyFrame | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Parts rows whose key was accepted or released before from the others.

    Args:
        table: Says what is unique.
        passed: Rows that keep the contract otherwise, cast to its types.
        earlier: Rows accepted or released before; None counts as none.

    Returns:
        The rows without a repeat, and the others as `quarantine_entry` and `reason`.
    """
    refused = []
    for key in table.keys:
        if key.rule.severity == "warn":
            continue
        for rows in earlier:
            if rows is None:
                continue
            known = rows.lazy()
            if not set(key.fields) <= set(known.collect_schema()):
                continue
            if ENTRY in known.collect_schema():
                # A row does not repeat itself: a second try finds what the first one released.
                known = known.join(passed.lazy().select(ENTRY), on=ENTRY, how="anti")
            keys = known.select(pl.col(name).cast(passed.schema[name], strict=False) for name in key.fields).collect()
            repeats = passed.join(keys, on=list(key.fields), how="semi", maintain_order="left")
            passed = passed.join(keys, on=list(key.fields), how="anti", maintain_order="left")
            names = ", ".join(key.fields)
            reason = pl.lit(f"{names}: must be unique; a row with the same was accepted or released before")
            refused.append(repeats.select(pl.col(ENTRY), reason.alias("reason")))
    empty = pl.DataFrame(schema={ENTRY: pl.String(), "reason": pl.String()})
    return passed, pl.concat([empty, *refused])
