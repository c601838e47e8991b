"""`vitok runs`: what was tracked, one run, and several side by side."""

import contextlib
import json as jsonlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitok.clock import isoformat
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.console.shared_options import Home, Json, home_of
from vitok.engines.address import hidden
from vitok.errors import InvalidInput, NotFound
from vitok.registry import Compared, Registry, RunRecord, Tracker, compare, copy_home
from vitok.registry import attach as attach_home
from vitok.registry.attachment import LEDGER
from vitok.registry.run_reading import facts, told

run_app = typer.Typer(no_args_is_help=True, help="Runs of training, whoever logged them: list, show, compare, copy.")

_OPTIONS = {"matching": "--filter", "most": "--most", "runs": "RUN"}
_METRICS = 4
# Wide enough that nothing is cut where the output goes into a file.
_WIDE = 200


@run_app.command("list")
def listed(
    experiment: Annotated[str | None, typer.Option(help="Only of this experiment.")] = None,
    matching: Annotated[
        str, typer.Option("--filter", help='A condition in MLflow\'s words, such as "metrics.auc > 0.9".')
    ] = "",
    most: Annotated[int, typer.Option(help="How many at most.")] = 50,
    metric: Annotated[list[str] | None, typer.Option(help="Show this metric; again for more.")] = None,
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Lists runs, latest first."""
    with plain_errors(), options_named(**_OPTIONS):
        found = _tracker(home).runs(experiment=experiment, matching=matching, most=most)
        if json:
            _write([run.to_dict() for run in found])
            return
        if not len(found):
            typer.echo("no runs")
            return
        names = tuple(metric or found.metric_names()[:_METRICS])
        rows = [
            (
                run.short_id,
                run.name,
                run.experiment,
                run.status,
                "-" if run.started is None else isoformat(run.started // 1_000_000 * 1_000_000),
                *(told(run.metrics.get(name)) for name in names),
            )
            for run in found
        ]
        _table(("run", "name", "experiment", "status", "started", *names), rows, numbers=len(names))


@run_app.command("show")
def show(
    run: Annotated[str, typer.Argument(help="Id of the run, or its first characters.")],
    metric: Annotated[str | None, typer.Option(help="Also all points of this metric.")] = None,
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Shows one run: how it came about, its parameters and metrics."""
    with plain_errors(), options_named(**_OPTIONS):
        tracker = _tracker(home)
        found = tracker.recorded(run)
        history = None if metric is None else tracker.history(found, metric)
        if json:
            _write(found.to_dict() | ({} if history is None else {"history": history.to_dict()}))
            return
        typer.echo(f"{found.experiment}: {found.name} {found.status} ({found.run_id})")
        _table(("origin", ""), sorted(facts(found).items()))
        if found.params:
            _table(("parameter", ""), sorted(found.params.items()))
        if found.metrics:
            _table(("metric", "latest"), [(name, told(value)) for name, value in sorted(found.metrics.items())])
        if history is not None:
            typer.echo(str(history))
            steps = zip(history.steps.tolist(), history.values.tolist(), history.times.tolist(), strict=True)
            _table(("step", "value", "time"), [(str(step), told(value), isoformat(at)) for step, value, at in steps])


@run_app.command("compare")
def compared(
    run: Annotated[list[str], typer.Argument(help="Ids of two runs or more, or their first characters.")],
    *,
    every: Annotated[bool, typer.Option("--all", help="Also what is the same in all.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Puts runs side by side: what differs in how they came about, their parameters, and their metrics."""
    with plain_errors(), options_named(**_OPTIONS):
        tracker = _tracker(home)
        side = compare([tracker.recorded(one) for one in run])
        if json:
            _write(side.to_dict())
            return
        rows = [*_rows(side.facts, every=every), *_rows(side.params, every=every), *_rows(side.metrics, every=True)]
        _table(("", *map(_head, side.runs)), rows, numbers=len(side.runs))


@run_app.command("copy")
def copied(
    to: Annotated[str, typer.Option(help="Database to copy into: postgresql://user@host/database.")],
    artifacts: Annotated[str, typer.Option(help="Where the files of runs go: s3://bucket/prefix?endpoint=...")],
    packages: Annotated[
        str | None, typer.Option(help="Where packages go, s3://bucket/prefix?endpoint=...; needed if there are any.")
    ] = None,
    *,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also runs that say they are still going on: what was killed does.")
    ] = False,
    attach: Annotated[
        bool, typer.Option("--attach", help="Then the home goes by them: registry and runs are there from now on.")
    ] = False,
    home: Home = None,
) -> None:
    """Copies runs, versions and packages of a home into PostgreSQL and S3, and compares; the same again goes on."""
    from vitok.engines.postgres import is_postgres
    from vitok.engines.s3 import Bucket, is_s3

    with plain_errors(), options_named(home="--to", registry="--to", packages="--packages", artifacts="--artifacts"):
        place = home_of(home)
        if not is_postgres(to):
            raise InvalidInput("--to", hidden(to), "look like postgresql://user@host/database")
        if not is_s3(artifacts):
            raise InvalidInput("--artifacts", artifacts, "look like s3://bucket/prefix?endpoint=...")
        has_versions = (place / LEDGER).exists()
        if packages is None and (has_versions or attach):
            raise InvalidInput("--packages", packages, "be given: the home has versions, or is to go by the database")
        tracker, bucket = Tracker(to, artifacts=artifacts), Bucket(artifacts)
        with contextlib.ExitStack() as stack:
            registry = None
            if packages is not None:
                cache = stack.enter_context(tempfile.TemporaryDirectory(prefix="vitok-copy-"))
                registry = Registry(to, packages=packages, cache=Path(cache))
                stack.callback(registry.close)
            done = copy_home(place, to, registry=registry, tracker=tracker, bucket=bucket, unfinished=unfinished)
        typer.echo(str(done))
        if attach:
            attach_home(place, to, packages=packages, artifacts=artifacts)
            typer.echo(f"{place} goes by {hidden(to)} from now on")


def _rows(lines: Sequence[Compared], *, every: bool) -> list[tuple[str, ...]]:
    return [(line.name, *map(told, line.values)) for line in lines if every or line.differs]


def _head(run: RunRecord) -> str:
    return f"{run.short_id} {run.name}"


def _tracker(home: Path | None) -> Tracker:
    place = home_of(home)
    if not place.is_dir():
        raise NotFound("home", str(place))
    return Tracker(place)


def _write(found: Any) -> None:
    typer.echo(jsonlib.dumps(found, indent=2, allow_nan=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> None:
    """Prints a table whose last columns hold numbers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDE)
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(head):
        # Text, since names and values may hold what rich would read as markup.
        table.add_column(Text(name), justify="right" if at >= len(head) - numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
