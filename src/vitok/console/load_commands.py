"""`vitok load`: sends requests at a rate, or as fast as they are answered, and measures from when each was due."""

import json as jsonlib
import math
from pathlib import Path
from typing import Annotated

import typer

from vitok.console.exits import REFUSED, plain_errors
from vitok.console.option_names import file_of, options_named, text_of
from vitok.errors import InvalidInput
from vitok.serving.load import Target, run_load, varied
from vitok.serving.load_report import LoadReport
from vitok.serving.load_search import highest_rate, holds

_OPTIONS = {
    **{name: f"--{name}" for name in ("seconds", "connections", "timeout", "processes", "template", "width")},
    "url": "URL",
    "headers": "--header",
}


def load(
    url: Annotated[str, typer.Argument(help="Where to, such as http://127.0.0.1:8000/v2/models/fraud/infer.")],
    rates: Annotated[
        str | None, typer.Option(help="Requests a second, one or several: 1000,5000. Without it: closed loop.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each rate is held.")] = 10.0,
    connections: Annotated[int, typer.Option(help="Connections that are kept open.")] = 32,
    bodies: Annotated[Path | None, typer.Option(help="File of JSON lines, each a body; they are sent in turn.")] = None,
    template: Annotated[
        Path | None, typer.Option(help="File of one body with $ROW where the numbers of a row go.")
    ] = None,
    width: Annotated[int, typer.Option(help="How many numbers a row of the template has.")] = 1,
    header: Annotated[list[str] | None, typer.Option(help="A header, 'name: value'; may be repeated.")] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="An answer counts as good within this time.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 10.0,
    processes: Annotated[int, typer.Option(help="How many processes send.")] = 1,
    slo_ms: Annotated[
        float | None, typer.Option(help="Looks for the highest rate whose P99 is within this time.")
    ] = None,
    *,
    constant: Annotated[bool, typer.Option("--constant", help="Even gaps instead of Poisson arrivals.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Prints JSON, one line a rate.")] = False,
) -> None:
    """Loads a service without coordinated omission; ends with 1 where a request failed or no rate holds."""
    with plain_errors(), options_named(**_OPTIONS):
        steps = _rates(rates)
        for option, milliseconds in (("--deadline-ms", deadline_ms), ("--slo-ms", slo_ms)):
            if milliseconds is not None and not 0 < milliseconds < math.inf:
                raise InvalidInput(option, milliseconds, "be a finite number of milliseconds above 0")
        target = Target(url=url, bodies=_bodies(bodies, template, width), headers=_headers(header or []))
        if slo_ms is not None:
            if len(steps) > 1:
                raise InvalidInput("--rates", rates, "be one rate beside --slo-ms: the one to begin with")
            if deadline_ms is not None:
                raise InvalidInput("--deadline-ms", deadline_ms, "not be given beside --slo-ms, which is the bound")
            low = steps[0] or 100.0
            trials = highest_rate(
                target,
                limit_us=1e3 * slo_ms,
                low=low,
                high=max(low, 1e6),
                seconds=seconds,
                connections=connections,
                poisson=not constant,
                timeout=timeout,
                processes=processes,
            )
            _tell_highest(trials, slo_ms, json=json)
            return
        failed = 0
        for rate in steps:
            report = run_load(
                target,
                rate=rate,
                seconds=seconds,
                connections=connections,
                poisson=not constant,
                deadline=None if deadline_ms is None else deadline_ms / 1e3,
                timeout=timeout,
                processes=processes,
            )
            typer.echo(jsonlib.dumps(report.to_dict()) if json else str(report))
            failed += report.failed
    if failed:
        raise typer.Exit(REFUSED)


def _tell_highest(trials: tuple[LoadReport, ...], slo_ms: float, *, json: bool) -> None:
    held = [trial.rate for trial in trials if trial.rate and holds(trial, limit_us=1e3 * slo_ms)]
    best = max(held, default=None)
    if json:
        typer.echo(jsonlib.dumps({"highest_rate": best, "slo_ms": slo_ms, "trials": [t.to_dict() for t in trials]}))
    else:
        for trial in trials:
            typer.echo(str(trial))
        found = "no rate that was tried holds" if best is None else f"the highest rate that holds is {best:,.6g}/s"
        typer.echo(f"{found}: P99 within {slo_ms:g} ms, nothing failed")
    if best is None:
        raise typer.Exit(REFUSED)


def _rates(text: str | None) -> list[float | None]:
    if text is None:
        return [None]
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = [math.nan]
    if not all(0 < rate < math.inf for rate in rates):
        raise InvalidInput("--rates", text, "be numbers above 0 separated by commas, such as 1000,5000")
    return [*rates]


def _bodies(bodies: Path | None, template: Path | None, width: int) -> list[bytes]:
    if bodies is not None and template is not None:
        raise InvalidInput("--template", str(template), "not be given beside --bodies")
    if template is not None:
        return varied(text_of("--template", template).strip(), width=width)
    if bodies is None:
        return []
    lines = [line for line in file_of("--bodies", bodies).read_bytes().splitlines() if line.strip()]
    if not lines:
        raise InvalidInput("--bodies", str(bodies), "hold at least one line")
    return lines


def _headers(given: list[str]) -> dict[str, str]:
    headers = {}
    for item in given:
        name, colon, value = item.partition(":")
        if not colon or not name.strip():
            raise InvalidInput("--header", item, "look like 'name: value'")
        headers[name.strip()] = value.strip()
    return headers
