"""`vitok labels`: which decisions to have labelled when labels cost money, and what their labels then say of all."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named, text_of
from vitok.console.printed import say
from vitok.console.shared_options import Home, Json, home_of, time_of
from vitok.errors import InvalidInput, NotFound

label_app = typer.Typer(no_args_is_help=True, help="Small samples for people to label: plan, estimate.")

_COLUMNS = ("request_id", "event_time", "model_version", "probability", "action")


@label_app.command("plan")
def plan(
    *,
    metric: Annotated[str, typer.Option(help="recall, precision, accuracy or positive_rate.")],
    since: Annotated[str, typer.Option(help="Begin of the decisions, an ISO 8601 time.")],
    until: Annotated[str | None, typer.Option(help="Their end, exclusive; the end of the log by default.")] = None,
    budget: Annotated[int | None, typer.Option(help="Labels to spend, on average; or give --half-width.")] = None,
    half_width: Annotated[float | None, typer.Option(help="Half width of the interval that is wanted.")] = None,
    version: Annotated[str | None, typer.Option(help="Only decisions of this version, such as fraud/3.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    home: Home = None,
    json: Json = False,
) -> None:
    """Draws the decisions whose labels say most, and prints them as CSV with a column for the label to fill in.

    A decision counts as taken for fraud where it was sent to review or blocked. What was drawn is said on the
    standard error, so that the output can be kept as a file.
    """
    names = {name: f"--{name.replace('_', '-')}" for name in ("metric", "budget", "half_width", "seed")}
    both = {"budget and half_width": "--budget, --half-width"}
    with plain_errors(), options_named(**names, **both):
        import polars as pl

        from vitok import decisions
        from vitok.console import stores
        from vitok.monitoring.label_samples import LabelSample
        from vitok.policies import ALLOW
        from vitok.systems.fraud.messages import SYSTEM

        begin = time_of("--since", since)
        end = None if until is None else time_of("--until", until)
        if end is not None and end <= begin:
            raise InvalidInput("--until", until, f"be later than --since, {since}")
        if seed < 0:
            raise InvalidInput("--seed", seed, "be at least 0")
        logs = stores.logs(home_of(home))
        if logs is None:
            raise NotFound("decision log in", str(home_of(home)))
        rows = decisions.read(logs / "decisions", since=begin, until=end, columns=_COLUMNS)
        given = rows.filter(pl.col("probability").is_finite()).unique("request_id", keep="last", maintain_order=True)
        if version is not None:
            known = given["model_version"].drop_nulls().unique().sort().to_list()
            given = given.filter(pl.col("model_version") == version)
        span = f"{SYSTEM if version is None else version} since {since}{'' if until is None else f' until {until}'}"
        if not given.height:
            raise NotFound("decisions with a probability:", span, known if version is not None else ())
        sample = LabelSample.draw(
            given["request_id"].cast(pl.String).to_list(),
            given["probability"].cast(pl.Float64).to_numpy(),
            (given["action"] != ALLOW).to_numpy(),
            metric=metric,
            budget=budget,
            half_width=half_width,
            seed=seed,
            rows=span,
        )
    typer.echo(jsonlib.dumps(sample.to_dict(), indent=2) if json else sample.to_csv(), nl=json)
    typer.echo(str(sample), err=True)


@label_app.command("estimate")
def estimate(
    file: Annotated[Path, typer.Argument(help="What 'vitok labels plan' printed, with every label filled in.")],
    *,
    json: Json = False,
) -> None:
    """Estimates the metric of all the decisions that were drawn from, with its interval; the log is not read."""
    with plain_errors():
        from vitok.monitoring.label_samples import LabelSample

        with options_named(sample=str(file)):
            sample = LabelSample.read(text_of("FILE", file))
        found = sample.estimate()
    if json:
        typer.echo(jsonlib.dumps({**found.to_dict(), "rows": sample.rows}, indent=2))
        return
    say(f"{found}{f', {sample.rows}' * bool(sample.rows)}")
    say(f"  {found.definition}")
