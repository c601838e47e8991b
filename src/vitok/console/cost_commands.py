"""`vitok cost`: what decisions have cost, what teams may spend, and what could be saved."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vitok import settings
from vitok.clock import SystemClock, isoformat, parse_time
from vitok.console import stores
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.errors import InvalidInput, NotFound
from vitok.serving.budgets import BudgetBook, BudgetState, Period, SpendingBudget, Then
from vitok.serving.cost_report import By, cost_report, told_span
from vitok.serving.costs import Prices
from vitok.serving.runtime import Runtime
from vitok.serving.savings import Unused, batching, caching, cascading, measure_time, quantising, unused_models
from vitok.serving.savings_traffic import read_traffic, used_versions

_OPTIONS = {
    **{name: f"--{name}" for name in ("then", "period", "by", "currency")},
    "team": "TEAM",
    "actor": "--by",
    "alerts": "--alert",
    "amount": "--cpu-seconds",
    "cpu_hour": "--price-cpu-hour",
}

cost_app = typer.Typer(no_args_is_help=True, help="Costs: what decisions have cost, budgets, what could be saved.")
budget_app = typer.Typer(no_args_is_help=True, help="Budgets of teams: set, list, remove, history.")
cost_app.add_typer(budget_app, name="budget")

Log = Annotated[Path, typer.Option(help="A decision log, or a folder with several below it.")]
Since = Annotated[str | None, typer.Option(help="From this time on, in ISO 8601.")]
Until = Annotated[str | None, typer.Option(help="Until this time, in ISO 8601.")]
CpuHour = Annotated[float | None, typer.Option("--price-cpu-hour", help="Price of an hour of one core.")]
Currency = Annotated[str, typer.Option(help="Of the price.")]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON.")]
Store = Annotated[Path | None, typer.Option(help="The file of budgets; costs/budgets.sqlite of the home by default.")]
Team = Annotated[str, typer.Argument(help="The team.")]
Actor = Annotated[str, typer.Option("--by", help="Who does it; goes on record.")]
Why = Annotated[str, typer.Option("--reason", help="Why; goes on record.")]
Now = Annotated[str | None, typer.Option(help="Present time in ISO 8601; the clock's by default.")]


@cost_app.command("report")
def report(
    log: Log,
    by: Annotated[str, typer.Option(help="model, version, tenant, team, route or day.")] = "model",
    since: Since = None,
    until: Until = None,
    price_cpu_hour: CpuHour = None,
    currency: Currency = "EUR",
    *,
    json: Json = False,
) -> None:
    """Adds up what decisions have cost: in all, a thousand, and how many a cache answered."""
    with plain_errors(), options_named(**_OPTIONS):
        begin, end = _span(since, until)
        prices = None if price_cpu_hour is None else Prices(cpu_hour=price_cpu_hour, currency=currency)
        found = cost_report(log, by=cast("By", by), since=begin, until=end, prices=prices)
    if json:
        typer.echo(jsonlib.dumps(found.to_dict() | {"span": told_span(begin, end)}, indent=2))
        return
    typer.echo(f"{found}\n{told_span(begin, end)}, from {len(found.logs)} logs")


@cost_app.command("savings")
def savings(
    log: Log,
    model: Annotated[
        str, typer.Option(help="Version whose traffic is replayed, such as fraud/3; the busiest else.")
    ] = "",
    package: Annotated[Path | None, typer.Option(help="Folder of its package, to measure the model itself.")] = None,
    small: Annotated[Path | None, typer.Option(help="Package of a smaller model, for a cascade.")] = None,
    quantised: Annotated[Path | None, typer.Option(help="Package of a quantised form.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder with the registry, for models that nobody asks.")] = None,
    max_loss: Annotated[float, typer.Option(help="Share of decisions that a cascade may change.")] = 0.01,
    threshold: Annotated[float, typer.Option(help="Probability from which on something is decided.")] = 0.5,
    ttl: Annotated[str, typer.Option(help="How long a cached answer is good.")] = "10m",
    cache_mb: Annotated[int, typer.Option(help="Memory of a cache in MB.")] = 64,
    max_delay_ms: Annotated[float, typer.Option(help="How long a batch may wait for company.")] = 5.0,
    since: Since = None,
    until: Until = None,
    price_cpu_hour: CpuHour = None,
    currency: Currency = "EUR",
    *,
    json: Json = False,
) -> None:
    """Replays the logged traffic: what caching, batching, cascading and quantising would save, and who is not asked."""
    with plain_errors(), options_named(**_OPTIONS):
        begin, end = _span(since, until)
        prices = None if price_cpu_hour is None else Prices(cpu_hour=price_cpu_hour, currency=currency)
        unused = () if home is None else _unused(home, log, begin, end)
        traffic = read_traffic(log, model, since=begin, until=end)
        full, lesser, cheap = (None if path is None else Runtime.load(path) for path in (package, small, quantised))
        time = None if full is None else measure_time(full, traffic)
        answers = None if lesser is None else lesser.score(traffic.X.astype(lesser.dtype))
        ways = (
            caching(traffic, time, max_bytes=cache_mb << 20, ttl=ttl),
            batching(traffic, max_delay=max_delay_ms / 1e3),
            cascading(
                traffic,
                time,
                None if lesser is None else measure_time(lesser, traffic),
                answers=answers,
                threshold=threshold,
                max_loss=max_loss,
            ),
            quantising(traffic, full, cheap, threshold=threshold),
        )
    if json:
        found = {
            "version": traffic.version,
            "rows": len(traffic),
            "batches": len(traffic.starts),
            "left_out": traffic.left_out,
            "cpu_seconds": float(traffic.cost.sum()),
            "span": told_span(begin, end),
            "ways": [way.to_dict() for way in ways],
            "unused": [{"version": item.version, "stage": item.stage, "shadows": item.shadows} for item in unused],
        }
        typer.echo(jsonlib.dumps(found, indent=2))
        return
    typer.echo(f"{traffic}, {told_span(begin, end)}")
    for way in ways:
        typer.echo(str(way))
        if prices is not None and way.seconds is not None:
            typer.echo(f"  {prices.money(way.seconds):,.4g} {prices.currency} of this traffic")
    typer.echo("savings overlap and must not be added up")
    for item in unused:
        typer.echo(f"unused: {item}")
    if home is not None and not unused:
        typer.echo("unused: no model that has a stage")


def _unused(home: Path, log: Path, since: int | None, until: int | None) -> tuple[Unused, ...]:
    with stores.ledger(home) as ledger:
        if ledger is None:
            raise NotFound("registry", str(home / "registry"))
        states = [ledger.state(name) for name in ledger.models()]
    return tuple(unused_models(states, used_versions(log, since=since, until=until)))


@budget_app.command("set")
def set_budget(
    team: Team,
    by: Actor,
    cpu_seconds: Annotated[float | None, typer.Option(help="Processor seconds a period.")] = None,
    money: Annotated[float | None, typer.Option(help="Money a period; goes with --price-cpu-hour.")] = None,
    price_cpu_hour: CpuHour = None,
    period: Annotated[str, typer.Option(help="hour, day or month, in UTC.")] = "day",
    then: Annotated[str, typer.Option(help="alert, throttle or block.")] = "block",
    alert: Annotated[list[float] | None, typer.Option(help="Share at which to alert; may be repeated.")] = None,
    reason: Why = "",
    store: Store = None,
    now: Now = None,
) -> None:
    """Gives a team a budget; a running service takes it up within about a second."""
    with plain_errors(), options_named(**_OPTIONS):
        budget = SpendingBudget(
            team=team,
            amount=_seconds(cpu_seconds, money, price_cpu_hour),
            period=cast("Period", period),
            then=cast("Then", then),
            alerts=(0.8,) if alert is None else tuple(alert),
        )
        book = BudgetBook(_path(store))
        try:
            book.set(budget, actor=by, now=_moment(now), reason=reason)
        finally:
            book.close()
    typer.echo(str(budget))


@budget_app.command("list")
def list_budgets(store: Store = None, now: Now = None, *, json: Json = False) -> None:
    """Lists the budgets and where each stands."""
    with plain_errors(), options_named(**_OPTIONS):
        book = _opened(store)
        try:
            states = [book.state(team, now=_moment(now)) for team in book.budgets()]
        finally:
            book.close()
    if json:
        typer.echo(jsonlib.dumps([_described(state) for state in states], indent=2))
        return
    for state in states:
        typer.echo(str(state))
        for raised in state.alerts:
            typer.echo(f"  alert: {raised}")
    if not states:
        typer.echo("there are no budgets yet")


@budget_app.command("remove")
def remove(team: Team, by: Actor, reason: Why = "", store: Store = None, now: Now = None) -> None:
    """Takes a team's budget away: it may spend what it likes."""
    with plain_errors(), options_named(**_OPTIONS):
        book = _opened(store)
        try:
            book.remove(team, actor=by, now=_moment(now), reason=reason)
        finally:
            book.close()


@budget_app.command("history")
def history(store: Store = None) -> None:
    """Lists what was done to budgets: when, by whom and why."""
    with plain_errors(), options_named(**_OPTIONS):
        book = _opened(store)
        try:
            for change in book.changes():
                typer.echo(change)
        finally:
            book.close()


def _described(state: BudgetState) -> dict[str, Any]:
    budget = state.budget
    return {
        "team": budget.team,
        "cpu_seconds": budget.amount,
        "period": budget.period,
        "then": budget.then,
        "start": isoformat(state.start),
        "end": isoformat(state.end),
        "spent": state.spent,
        "held": state.held,
        "lost": state.lost,
        "left": state.left,
        "alerts": [{"share": raised.share, "time": isoformat(raised.time)} for raised in state.alerts],
    }


def _seconds(cpu_seconds: float | None, money: float | None, price: float | None) -> float:
    if (cpu_seconds is None) == (money is None):
        raise InvalidInput("--cpu-seconds", cpu_seconds, "be given, or --money, and not both")
    if cpu_seconds is not None:
        return cpu_seconds
    if price is None:
        raise InvalidInput("--price-cpu-hour", None, "go with --money")
    return Prices(cpu_hour=price).seconds(money or 0.0)


def _span(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    return (None if since is None else parse_time(since), None if until is None else parse_time(until))


def _path(store: Path | None) -> Path:
    return settings.current().home / "costs" / "budgets.sqlite" if store is None else store


def _opened(store: Path | None) -> BudgetBook:
    """A book without budgets and a misspelt path look alike, so the file must be there."""
    path = _path(store)
    if not path.is_file():
        raise NotFound("file of budgets", str(path))
    return BudgetBook(path)


def _moment(text: str | None) -> int:
    return SystemClock().now() if text is None else parse_time(text)
