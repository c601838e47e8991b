"""`vitok contract`: draft, check and compare contracts, and settle what is in quarantine."""

import contextlib
import datetime as dt
import json as jsonlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitok import contracts, settings
from vitok.clock import SystemClock, isoformat, parse_time
from vitok.console.exits import REFUSED, plain_errors
from vitok.errors import ContractBroken, InvalidInput, NotFound, StoreError

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

contract_app = typer.Typer(no_args_is_help=True, help="Contracts: draft, check, compare; and what broke one.")
quarantine_app = typer.Typer(no_args_is_help=True, help="What broke a contract: inspect, repair, release, discard.")
contract_app.add_typer(quarantine_app, name="quarantine")

Now = Annotated[str | None, typer.Option(help="Present time in ISO 8601; the clock's by default.")]
Batch = Annotated[str, typer.Option(help="The batch; '' for single requests.")]
Tabled = Annotated[str | None, typer.Option("--table", help="The table; needed where there are several.")]
By = Annotated[str, typer.Option(help="Who settles them; goes into the ledger.")]
Why = Annotated[str, typer.Option("--reason", help="Why; goes into the ledger.")]
Chosen = Annotated[
    list[str] | None, typer.Option("--entry", help="Only this entry, as show names it; may be repeated.")
]
Folder = Annotated[Path, typer.Argument(help="Folder of the quarantine.")]


@contract_app.command("check")
def check(
    contract: Annotated[Path, typer.Argument(help="The contract, in ODCS YAML.")],
    data: Annotated[Path, typer.Argument(help="CSV, Parquet or JSON Lines file, or a folder of such.")],
    table: Tabled = None,
    html: Annotated[Path | None, typer.Option(help="Writes the report for a person to this file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Writes the report for a machine to this file.")] = None,
    quarantine: Annotated[Path | None, typer.Option(help="Keeps the rejected rows in this folder.")] = None,
    batch: Annotated[str | None, typer.Option(help="Name of the batch in quarantine; the data's by default.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="Data of a table that this one points to, as TABLE=FILE; may be repeated."),
    ] = None,
    expected_rows: Annotated[int | None, typer.Option(help="How many rows were to be expected.")] = None,
    volume_history: Annotated[
        Path | None,
        typer.Option(help="File with columns day and count: as many rows are expected as on such days of the week."),
    ] = None,
    day: Annotated[
        str | None, typer.Option(help="The day the data is counted for in the history, as 2018-04-01; now's in UTC.")
    ] = None,
    arrived: Annotated[
        str | None, typer.Option(help="When the data arrived, in ISO 8601, for promises of when it must be there.")
    ] = None,
    now: Now = None,
) -> None:
    """Checks data by a contract; leaves with 0 where it is good, 1 where rows are rejected, 2 where it is blocked."""
    from vitok.contracts.files import KNOWN, scan

    with plain_errors():
        moment = _moment(now)
        if contract.suffix.lower() in KNOWN:
            raise InvalidInput("contract", str(contract), "be a contract in ODCS YAML", "Name it first, then the data")
        agreed = contracts.load(contract)
        came = None if arrived is None else _time("--arrived", arrived)
        try:
            report = agreed.check(
                scan(data),
                now=moment,
                schema=table,
                expected_rows=expected_rows,
                volume_history=None if volume_history is None else _history(volume_history),
                day=None if day is None else _day(day),
                arrived=came,
                references=_references(reference or ()),
            )
        except ContractBroken as error:
            head = {"contract": agreed.name, "version": agreed.version, "status": "blocked", "problem": str(error)}
            _write(html, contracts.html.render(error, now=moment, source=data.name))
            _write(json, _json({**head, "data": str(data), "checked": isoformat(moment)}))
            raise
        status = "rejected" if report.n_rejected else "good"
        _write(html, contracts.html.render(report, now=moment, source=data.name))
        _write(json, _json({**report.to_dict(), "status": status, "data": str(data), "checked": isoformat(moment)}))
        _show_report(report)
        if quarantine is not None and report.n_rejected:
            name = data.name if batch is None else batch
            kept = contracts.Quarantine(quarantine).put(report, batch=name, now=moment)
            typer.echo(f"{kept:,} rows are in quarantine {quarantine} as batch {name!r}")
    if report.n_rejected:
        raise typer.Exit(REFUSED)


@contract_app.command("infer")
def infer(
    data: Annotated[Path, typer.Argument(help="CSV, Parquet or JSON Lines file, or a folder of such.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Writes the draft to this new file.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the contract; the data's by default.")] = None,
    now: Now = None,
) -> None:
    """Drafts a contract from data, each guess marked for somebody who knows the data to confirm or mend."""
    from vitok.contracts.files import scan, typed

    with plain_errors():
        if output is not None and output.exists():
            fix = "A draft would take the place of what somebody has mended; name another file"
            raise InvalidInput("--output", str(output), "not exist yet", fix)
        drafted = contracts.infer(typed(scan(data)), name=name or data.stem, now=_moment(now))
        if output is None:
            typer.echo(drafted.text, nl=False)
        else:
            drafted.dump(output)
            typer.echo(str(drafted))
            typer.echo(f"drafted {output}; confirm or mend what stands under vitok.draft")


@contract_app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(help="The contract in force.")],
    new: Annotated[Path, typer.Argument(help="The contract that is to follow.")],
    view: Annotated[str, typer.Option(help="Whose side to look from: consumer, producer or both.")] = "consumer",
    published: Annotated[
        str | None, typer.Option(help="When NEW was published, in ISO 8601; by default what it says of itself.")
    ] = None,
    impact: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of what stands downstream, {'table.column': ['feature a', ...]}; else the home's."
        ),
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Folder whose features and models are downstream.")] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
    now: Now = None,
) -> None:
    """Compares two versions of a contract; leaves with 1 where a breaking change lacks its notice or its version."""
    with plain_errors():
        change = contracts.diff(
            contracts.load(old),
            contracts.load(new),
            now=_moment(now),
            published=None if published is None else _time("--published", published),
            view=view,  # type: ignore[arg-type]  # diff says which words there are
            impact=_impact(impact) if impact is not None else _downstream(home),
        )
    typer.echo(_json(change.to_dict()) if json else str(change))
    if change.refused:
        raise typer.Exit(REFUSED)


@quarantine_app.command("list")
def list_batches(folder: Folder, *, json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False) -> None:
    """Lists the batches in quarantine: how many rows wait, were released and were discarded."""
    with plain_errors():
        batches = _opened(folder).batches()
    _show_frame(batches, json=json, empty=f"nothing is in quarantine {folder}")


@quarantine_app.command("show")
def show(
    folder: Folder,
    batch: Annotated[str | None, typer.Option(help="Only this batch; '' for single requests.")] = None,
    limit: Annotated[int, typer.Option(help="How many rows to show.")] = 20,
    table: Tabled = None,
    rows: Annotated[
        Path | None, typer.Option(help="Writes the waiting rows of the batch to this CSV or Parquet file, to mend.")
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Shows what waits in quarantine: entry, batch, rule, value and reason of each row."""
    with plain_errors():
        found = _opened(folder)
        if rows is not None:
            if not batch:
                raise InvalidInput("--batch", batch, "name the batch whose rows are written")
            waiting = found.rows(batch=batch, table=table)
            _write_rows(rows, waiting)
            typer.echo(f"{waiting.height:,} rows are in {rows}; mend them and keep the column quarantine_entry")
            return
        known = found.batches()["batch"].unique().sort().to_list()
        if batch and batch not in known:
            raise NotFound("batch in quarantine", batch, [name for name in known if name])
        waiting = found.read(batch=batch)
        if table is not None:
            waiting = waiting.filter(waiting["table"] == table)
    shown = waiting.head(limit)
    _show_frame(shown if json else shown.drop("rules", "row", "time"), json=json, empty="nothing waits")
    if waiting.height > limit and not json:
        typer.echo(f"{limit} of {waiting.height:,} rows; --limit shows more")


@quarantine_app.command("repair")
def repair(
    folder: Folder,
    contract: Annotated[Path, typer.Argument(help="The contract that the mended rows must keep.")],
    rows: Annotated[Path, typer.Argument(help="CSV or Parquet file of mended rows with their quarantine_entry.")],
    batch: Batch,
    by: By,
    reason: Why,
    table: Tabled = None,
    now: Now = None,
) -> None:
    """Checks mended rows and releases those that keep the contract; leaves with 1 where some do not."""
    with plain_errors():
        done = _opened(folder).repair(
            contracts.load(contract), rows, batch=batch, table=table, by=by, reason=reason, now=_moment(now)
        )
    typer.echo(str(done))
    for entry, why in done.refused.iter_rows():
        typer.echo(f"  {entry}  {why}")
    if done.n_refused:
        raise typer.Exit(REFUSED)


@quarantine_app.command("release")
def release(
    folder: Folder, batch: Batch, by: By, reason: Why, table: Tabled = None, entry: Chosen = None, now: Now = None
) -> None:
    """Releases rows as they came, on somebody's word."""
    with plain_errors():
        done = _opened(folder).release(batch=batch, table=table, entries=entry, by=by, reason=reason, now=_moment(now))
    typer.echo(str(done))


@quarantine_app.command("discard")
def discard(
    folder: Folder, batch: Batch, by: By, reason: Why, table: Tabled = None, entry: Chosen = None, now: Now = None
) -> None:
    """Settles rows that nobody will mend."""
    with plain_errors():
        done = _opened(folder).discard(batch=batch, table=table, entries=entry, by=by, reason=reason, now=_moment(now))
    typer.echo(str(done))


@quarantine_app.command("ledger")
def ledger(folder: Folder, *, json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False) -> None:
    """Lists who settled what, when and why."""
    with plain_errors():
        found = _opened(folder).ledger()
    _show_frame(found, json=json, empty="nothing was settled yet")


@quarantine_app.command("prune")
def prune(folder: Folder, now: Now = None) -> None:
    """Deletes bad requests past their retention, and rows all of which were settled before it."""
    with plain_errors():
        count = _opened(folder).prune(now=_moment(now))
    typer.echo(f"{count} files deleted")


def _moment(text: str | None) -> int:
    return SystemClock().now() if text is None else _time("--now", text)


def _time(option: str, text: str) -> int:
    try:
        return parse_time(text)
    except InvalidInput:
        raise InvalidInput(option, text, "be an ISO 8601 time such as 2018-08-08T12:00:00Z") from None


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise InvalidInput("--day", text, "be a day such as 2018-08-08") from None


def _references(given: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for item in given:
        name, sign, path = item.partition("=")
        if not (name and sign and path):
            raise InvalidInput("--reference", item, "be TABLE=FILE, such as customers=customers.parquet")
        if name in found:
            raise InvalidInput("--reference", item, f"name {name} once", "Give a folder where it has several files")
        found[name] = _existing("--reference", Path(path))
    return found


def _history(path: Path) -> "pl.DataFrame":
    from vitok.contracts.files import scan, typed

    return typed(scan(_existing("--volume-history", path))).collect()


def _existing(option: str, path: Path) -> Path:
    """The file of an option; that of the data is looked for by `scan`, which would not say which one is missing."""
    if not path.exists():
        beside = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
        raise NotFound(f"file for {option}", str(path), beside)
    return path


def _opened(folder: Path) -> contracts.Quarantine:
    """An empty quarantine and a misspelt folder look alike, so the folder must be there."""
    if not folder.is_dir():
        beside = (
            sorted(item.name for item in folder.parent.iterdir() if item.is_dir()) if folder.parent.is_dir() else []
        )
        raise NotFound("quarantine", str(folder), beside)
    return contracts.Quarantine(folder)


def _downstream(home: Path | None) -> Mapping[str, Sequence[str]]:
    from vitok.console.feature_reading import contract_impact

    return contract_impact(home or settings.current().home / "fraud")


def _impact(path: Path) -> dict[str, list[str]]:
    try:
        found = jsonlib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput("--impact", str(path), f"be a readable file ({error.strerror})") from None
    except ValueError as error:
        raise InvalidInput("--impact", str(path), f"be JSON ({error})") from None
    good = isinstance(found, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in found.values()
    )
    if not good:
        raise InvalidInput("--impact", str(path), "map columns to lists of names, as {'table.column': ['feature a']}")
    return {str(key): names for key, names in found.items()}


def _json(value: object) -> str:
    return jsonlib.dumps(value, indent=2, ensure_ascii=False, default=str)


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        _written(path, lambda draft: draft.write_text(text + "\n", encoding="utf-8"))


def _write_rows(path: Path, rows: "pl.DataFrame") -> None:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise InvalidInput("--rows", str(path), "end in .csv or .parquet")
    nested = [name for name, dtype in rows.schema.items() if dtype.is_nested()]
    if path.suffix.lower() == ".csv" and nested:
        raise InvalidInput("--rows", str(path), f"end in .parquet: CSV cannot hold the column {nested[0]}")
    _written(path, rows.write_csv if path.suffix.lower() == ".csv" else rows.write_parquet)


def _written(path: Path, write: Any) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error}") from error


def _show_report(report: contracts.CheckReport) -> None:
    """A table in colours for a terminal, plain text for a file or another program."""
    if not sys.stdout.isatty():
        typer.echo(str(report))
        return
    from rich.console import Console

    console = Console()
    console.print(verdict(report), style="bold")
    if any(item.status != "passed" or item.observed for item in report.results):
        console.print(report_table(report))
    for item in report.not_checked:
        console.print(f"not checked: {item}", style="dim", markup=False)


def verdict(report: contracts.CheckReport) -> str:
    """Says in one line what a check found."""
    named = f"{report.contract} {report.version}, {report.table}"
    rest = sum(item.status == "passed" and not item.observed for item in report.results)
    counts = f"{report.n_rows:,} rows, {report.n_accepted:,} accepted, {report.n_rejected:,} rejected"
    return f"{named}: {counts}; {rest} rules hold without more to say"


def report_table(report: contracts.CheckReport) -> "Table":
    """Writes the rules that are broken, or have something to say, as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    colours: Mapping[tuple[str, str], str] = {("failed", "warn"): "yellow", ("failed", "quarantine"): "red"}
    found = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("rule", "status", "checked", "failed", "if broken", "must"):
        found.add_column(name, justify="right" if name in ("checked", "failed") else "left", overflow="fold")
    for item in report.results:
        if item.status == "passed" and not item.observed:
            continue
        seen = f" ({item.observed})" if item.observed else ""
        style = colours.get((item.status, item.severity), "red" if item.status == "failed" else "")
        cells = (item.label, item.status, f"{item.n_checked:,}", f"{item.n_failed:,}", item.severity)
        # Text, since names and values may hold what rich would read as markup.
        found.add_row(*(Text(cell, style=style) for cell in cells), Text(f"{item.wanted}{seen}"))
    return found


def _show_frame(frame: "pl.DataFrame", *, json: bool, empty: str) -> None:
    import polars as pl

    if json:
        times = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Datetime)]
        told = frame.with_columns(pl.col(name).dt.to_string("%Y-%m-%dT%H:%M:%S%.fZ") for name in times)
        typer.echo(_json(told.to_dicts()))
        return
    if frame.is_empty():
        typer.echo(empty)
        return
    rows = [[_cell(value) for value in row] for row in frame.iter_rows()]
    widths = [max(len(name), *(len(row[place]) for row in rows)) for place, name in enumerate(frame.columns)]
    for line in [list(frame.columns), *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, dt.datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    text = ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."
