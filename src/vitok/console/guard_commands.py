"""`vitok guard`: who copies a model, by the decision log; and the watermark by which a copy is known."""

import dataclasses
import json as jsonlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from vitok.clock import parse_time
from vitok.console.exits import REFUSED, plain_errors
from vitok.console.option_names import file_of, options_named
from vitok.errors import InvalidInput
from vitok.guard import ExtractionReport, ExtractionWatch, Finding, Watermark
from vitok.serving.cost_report import log_folders, read_columns, told_span

if TYPE_CHECKING:
    import polars as pl

guard_app = typer.Typer(no_args_is_help=True, help="After the fact: who copies a model, and whose one is.")

_FEATURE = "f_"
_OPTIONS = {
    "false_positive_rate": "--rate",
    "confidence_level": "--confidence",
    "window": "--window",
    "duration": "--period",
    "event_time": "--since and --until",
    "keys with a window of different rows": "--calm-since and --calm-until: keys with a window of different rows",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """What the watch found in a span of a log.

    Attributes:
        report: The findings.
        watch: What they were judged by.
        features: Names of the columns that `Finding.features` counts.
        by: Column that says who asks.
        unnamed: Rows of the judged span in which it is empty; they are not judged.
        span: Which span was judged.
    """

    report: ExtractionReport
    watch: ExtractionWatch
    features: tuple[str, ...]
    by: str
    unnamed: int
    span: str

    def __str__(self) -> str:
        told = [f"{self.span}, by {self.by}; {self.watch}", str(self.report)]
        for finding in self.report.flagged:
            if finding.verdict in ("extraction", "suspect"):
                columns = ", ".join(self.features[at] for at in finding.features)
                told.append(f"  columns of {finding.kind} {finding.name}: {columns}")
        if self.unnamed:
            told.append(f"{self.unnamed:,} rows name no {self.by} and were not judged")
        return "\n".join(told)

    def to_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {
            "span": self.span,
            "by": self.by,
            "n_queries": self.report.n_queries,
            "unnamed": self.unnamed,
            "false_positive_rate": self.report.false_positive_rate,
            "confidence_level": self.watch.confidence_level,
            "n_calibrated": self.watch.n_calibrated,
            "threshold": self.watch.threshold,
            "findings": [self._described(finding) for finding in self.report.findings],
        }

    def _described(self, finding: Finding) -> dict[str, Any]:
        found = dataclasses.asdict(finding)
        found["features"] = [self.features[at] for at in finding.features]
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()
        }


@guard_app.command("watch")
def watch(
    log: Annotated[Path, typer.Option(help="A decision log, or a folder with those of the workers of one model.")],
    calm_until: Annotated[str, typer.Option(help="Until here nobody is known to have copied, in ISO 8601.")],
    calm_since: Annotated[str | None, typer.Option(help="From here on; the beginning of the log by default.")] = None,
    since: Annotated[str | None, typer.Option(help="Judges from here on; from --calm-until by default.")] = None,
    until: Annotated[str | None, typer.Option(help="Judges until here; the end of the log by default.")] = None,
    by: Annotated[str, typer.Option(help="Column that says who asks.")] = "tenant",
    group: Annotated[list[str] | None, typer.Option(help="Column to add keys up by, such as team; repeatable.")] = None,
    budget: Annotated[int | None, typer.Option(help="Different rows a key may ask about in the span.")] = None,
    group_budget: Annotated[int | None, typer.Option(help="Likewise of a group; --budget by default.")] = None,
    rate: Annotated[float, typer.Option(help="Share of ordinary keys that may be accused.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="How sure that is of this watch; 0 for on average.")] = 0.95,
    window: Annotated[int, typer.Option(help="Different rows that are tested together, at least.")] = 200,
    period: Annotated[str, typer.Option(help="Length of a period; the judged span is no longer.")] = "30d",
    seed: Annotated[int, typer.Option(help="Seed of the random features.")] = 0,
    *,
    json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Learns from a calm span how ordinary keys ask, and judges another; exit code 1 where somebody is accused."""
    with plain_errors():
        calm_end = _time("--calm-until", calm_until)
        calm_begin = None if calm_since is None else _time("--calm-since", calm_since)
        begin = calm_end if since is None else _time("--since", since)
        end = None if until is None else _time("--until", until)
        if calm_begin is not None and calm_begin >= calm_end:
            raise InvalidInput("--calm-since", calm_since, "lie before --calm-until")
        if begin < calm_end:
            raise InvalidInput("--since", since, "not lie before --calm-until", "Nobody is judged by what was learned")
        if end is not None and end <= begin:
            raise InvalidInput("--until", until, "lie after --since")
        for option, number in (("--budget", budget), ("--group-budget", group_budget)):
            if number is not None and number < 1:
                raise InvalidInput(option, number, "be at least 1")
        names, folders = _features(log)
        columns = [by, "event_time", *(group or []), *names]
        calm, asked = (
            _rows(folders, columns, by, start, stop) for start, stop in ((calm_begin, calm_end), (begin, end))
        )
        known = calm.filter(calm[by] != "")
        judged = asked.filter(asked[by] != "")
        with options_named(**_OPTIONS):
            made = ExtractionWatch.fit(
                *_arrays(known, names, by),
                false_positive_rate=rate,
                confidence_level=confidence or None,
                window=window,
                period=period,
                seed=seed,
            )
            report = made.judge(
                *_arrays(judged, names, by),
                budget=budget,
                groups={name: judged[name].to_numpy() for name in group or []},
                group_budget=group_budget,
            )
    found = Watched(
        report=report,
        watch=made,
        features=tuple(name.removeprefix(_FEATURE) for name in names),
        by=by,
        unnamed=len(asked) - len(judged),
        span=told_span(begin, end),
    )
    typer.echo(jsonlib.dumps(found.to_dict(), indent=2) if json else str(found))
    if report.flagged:
        raise typer.Exit(REFUSED)


Label = Annotated[str, typer.Option(help="Column of the class.")]
Classes = Annotated[int, typer.Option(help="How many classes there are, from 0.")]


@guard_app.command("mark")
def mark(
    rows: Annotated[Path, typer.Argument(help="Parquet file of training rows: features in the model's order, class.")],
    label: Label,
    key_file: Annotated[Path, typer.Option(help="File of the secret, 16 to 64 bytes.")],
    out: Annotated[Path, typer.Option(help="Parquet file of the triggers, to be made; as secret as the key.")],
    n_triggers: Annotated[int, typer.Option("--n", help="How many triggers.")] = 100,
    classes: Classes = 2,
) -> None:
    """Makes the triggers of a watermark: rows to add to the training data, with the answers of a secret."""
    import polars as pl

    with plain_errors(), options_named(key="--key-file", n_triggers="--n", n_classes="--classes", X="ROWS"):
        frame, names = _table("ROWS", rows, label)
        made = Watermark.make(
            file_of("--key-file", key_file).read_bytes(),
            frame.select(names).to_numpy(),
            n_triggers=n_triggers,
            n_classes=classes,
        )
        found = pl.DataFrame(made.X, schema=names).with_columns(pl.Series(label, made.answers))
        try:
            # Made as nobody else's, and never over triggers that a model carries already.
            with os.fdopen(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                found.write_parquet(file)
        except OSError as error:
            raise InvalidInput("--out", str(out), f"be a file that can be made: {error.strerror}") from None
    typer.echo(f"{len(found)} triggers in {out}; deposit this commitment, dated: {made.commitment}")


@guard_app.command("marked")
def marked(
    triggers: Annotated[Path, typer.Argument(help="The file that 'vitok guard mark' has made.")],
    label: Label,
    package: Annotated[Path | None, typer.Option(help="Package of the model in question, of two classes.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Parquet file of its answers: one column, a class a row.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="Score of a package from which on it says 1.")] = 0.5,
    level: Annotated[float, typer.Option(help="p-value up to which the model is held to be marked.")] = 1e-6,
    classes: Classes = 2,
    *,
    json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Tests whether a model carries the watermark; exit code 1 where it does not show."""
    import polars as pl

    from vitok.serving.runtime import Runtime

    with plain_errors(), options_named(answers="--answers", X="--package"):
        if (package is None) == (answers is None):
            raise InvalidInput("--package", package, "be given, or --answers, and not both")
        if not 0 < level < 1:
            raise InvalidInput("--level", level, "be strictly between 0 and 1")
        frame, names = _table("TRIGGERS", triggers, label)
        held = Watermark(
            X=frame.select(names).to_numpy().astype(np.float64),
            answers=frame[label].cast(pl.Int64).to_numpy(),
            n_classes=classes,
        )
        if package is not None:
            if classes != 2:
                raise InvalidInput("--classes", classes, "be 2 with --package", "Give the classes by --answers")
            runtime = Runtime.load(package)
            given = runtime.score(np.ascontiguousarray(held.X, dtype=runtime.dtype)) >= threshold
        else:
            assert answers is not None  # noqa: S101 - it was looked at above
            told = _parquet("--answers", answers)
            if told.width != 1:
                raise InvalidInput("--answers", told.columns, "have one column, a class for each trigger in turn")
            given = told.to_series().to_numpy()
        test = held.test(given)
    shows = test.p_value <= level
    if json:
        found = {"marked": shows, "agreed": test.statistic, "p_value": test.p_value, "n": test.n_obs}
        typer.echo(jsonlib.dumps(found | {"commitment": held.commitment}, indent=2))
    else:
        typer.echo(f"{'marked' if shows else 'no mark shows'}: {test}, commitment {held.commitment}")
    if not shows:
        raise typer.Exit(REFUSED)


def _table(option: str, path: Path, label: str) -> "tuple[pl.DataFrame, list[str]]":
    frame = _parquet(option, path)
    if label not in frame.columns:
        raise InvalidInput("--label", label, f"be one of {', '.join(frame.columns)}")
    names = [name for name in frame.columns if name != label]
    for name in names:
        if not frame[name].dtype.is_numeric():
            raise InvalidInput(f"{option}: {name}", str(frame[name].dtype), "be a column of numbers")
    return frame, names


def _parquet(option: str, path: Path) -> "pl.DataFrame":
    import polars as pl

    try:
        return pl.read_parquet(file_of(option, path))
    except pl.exceptions.PolarsError as error:
        raise InvalidInput(option, str(path), f"be a Parquet file: {error}") from None


def _features(log: Path) -> tuple[list[str], list[Path]]:
    from vitok.decisions.log import declared_schema

    folders = log_folders(log)
    found: list[str] = []
    for folder in folders:
        declared = declared_schema(folder)
        names = [] if declared is None else [name for name in declared.names if name.startswith(_FEATURE)]
        if found and names != found:
            raise InvalidInput("--log", str(log), "hold the logs of one model", f"Give one, such as {folders[0]}")
        found = names
    if not found:
        raise InvalidInput("--log", str(log), "be a log with features, which are what queries are told apart by")
    return found, folders


def _rows(folders: list[Path], columns: list[str], by: str, since: int | None, until: int | None) -> "pl.DataFrame":
    import polars as pl

    frames = [read_columns(folder, columns, since=since, until=until) for folder in folders]
    texts = [name for name in columns if name != "event_time" and not name.startswith(_FEATURE)]
    if all(frame[by].is_null().all() for frame in frames) and any(len(frame) for frame in frames):
        raise InvalidInput("--by", by, "be a column of the log that says who asks", "tenant is there behind keys")
    return pl.concat(
        [
            frame.with_columns(
                *(pl.col(name).cast(pl.String).fill_null("") for name in texts),
                pl.col("event_time").cast(pl.Int64),
                pl.col(f"^{_FEATURE}.*$").cast(pl.Float64).fill_null(math.nan),
            )
            for frame in frames
        ]
    )


def _arrays(frame: "pl.DataFrame", names: list[str], by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    key = frame[by].to_numpy().astype(str)
    return frame.select(names).to_numpy().astype(np.float64, copy=False), key, frame["event_time"].to_numpy()


def _time(option: str, text: str) -> int:
    try:
        return parse_time(text)
    except InvalidInput:
        raise InvalidInput(option, text, "be a time in ISO 8601, such as 2026-03-01") from None
