"""`vitok alerts`: list alerts, take one, write the rules for Prometheus, silence, see what was not delivered."""

import contextlib
import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vitok.clock import DAY, duration, isoformat
from vitok.console.exits import plain_errors
from vitok.console.option_names import file_of, options_named
from vitok.console.printed import printable, say
from vitok.console.shared_options import By, Home, Json, Now, home_of, moment_of, time_of
from vitok.engines.sqlite import Database
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring.outbox import Outbox
from vitok.monitoring.rules import LOOKBACK, AlertRule, to_prometheus
from vitok.monitoring.silences import MATCHED, Silences

alert_app = typer.Typer(no_args_is_help=True, help="Alerts: list, rules, acknowledge, silence, what was not delivered.")

Why = Annotated[str, typer.Option("--reason", help="Why; goes on record.")]
_OPTIONS = {
    "who": "--by",
    "why": "--reason",
    "until": "--for, --until",
    "matchers": ", ".join(f"--{one}" for one in MATCHED),
}


@alert_app.command("list")
def list_alerts(
    home: Home = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that were cleared.")] = False,
    json: Json = False,
) -> None:
    """Lists the alerts: critical ones first, with the next step of each."""
    from vitok.monitoring import Alerts

    with plain_errors():
        path = _folder(home) / "alerts.sqlite"
        if not path.is_file():
            raise NotFound("file of alerts", str(path))
        alerts = Alerts(path)
        found = alerts.history() if every else alerts.open()
        alerts.close()
    if json:
        typer.echo(jsonlib.dumps([alert.to_dict() for alert in found], indent=2))
        return
    for alert in found:
        say(f"{alert.id} {alert}")
    if not found:
        say("no alert is open" if not every else "there was no alert yet")


@alert_app.command("rules")
def rules(
    file: Annotated[Path | None, typer.Option(help="Rules of one's own in YAML; the usual ones by default.")] = None,
    interval: Annotated[str, typer.Option(help="Time between two evaluations, at most 5m.")] = "1m",
    *,
    prometheus: Annotated[bool, typer.Option("--prometheus", help="Writes a rule file of Prometheus.")] = False,
) -> None:
    """Shows the rules, or writes them for Prometheus."""
    from vitok.monitoring.rule_set import read_rules

    with plain_errors(), options_named(rules="--file", interval="--interval", duration="--interval"):
        spacing = duration(interval)
        if not 0 < spacing <= LOOKBACK or spacing % 1000:
            raise InvalidInput("--interval", interval, "be whole milliseconds, up to 5m")
        found = _usual_rules() if file is None else read_rules(file_of("--file", file))
        if prometheus:
            typer.echo(to_prometheus(found, interval=spacing), nl=False)
            return
    for rule in found:
        say(f"{rule.severity:9}{rule.name}: {rule.expression}")
        say(f"{'':9}{rule.playbook}")


@alert_app.command("acknowledge")
def acknowledge_(
    alert_id: Annotated[int, typer.Argument(metavar="ALERT", help="The number that list shows.")],
    by: By,
    home: Home = None,
    now: Now = None,
) -> None:
    """Says that somebody takes care of an alert: it escalates no further."""
    from vitok.monitoring.delivery import acknowledge

    with plain_errors(), options_named(**_OPTIONS), _delivery(home) as database:
        acknowledge(database, alert_id, who=by, now=moment_of(now))
    say(f"alert {alert_id} is acknowledged by {by}")


@alert_app.command("silence")
def silence(
    by: By,
    reason: Why,
    rule: Annotated[str | None, typer.Option(help="Of which rule.")] = None,
    severity: Annotated[str | None, typer.Option(help="Of which severity.")] = None,
    system: Annotated[str | None, typer.Option(help="Of which system.")] = None,
    version: Annotated[str | None, typer.Option(help="Of which version.")] = None,
    slice_name: Annotated[str | None, typer.Option("--slice", help="Of which slice.")] = None,
    length: Annotated[str | None, typer.Option("--for", help="How long, such as 2h.")] = None,
    until: Annotated[str | None, typer.Option(help="Until when, in ISO 8601; instead of --for.")] = None,
    since: Annotated[str | None, typer.Option(help="From when, in ISO 8601; now by default.")] = None,
    home: Home = None,
    now: Now = None,
) -> None:
    """Tells nobody about the alerts that match, for a while; they are raised and shown as ever."""
    with plain_errors(), options_named(duration="--for", **_OPTIONS), _silences(home) as silences:
        moment = moment_of(now)
        if (length is None) == (until is None):
            raise InvalidInput("--for, --until", (length, until), "be one of the two")
        begin = moment if since is None else time_of("--since", since)
        end = time_of("--until", until) if until is not None else begin + duration(length or "")
        given = {"rule": rule, "severity": severity, "system": system, "version": version, "slice": slice_name}
        matchers = {name: value for name, value in given.items() if value is not None}
        made = silences.add(matchers, until=end, who=by, why=reason, now=moment, since=begin)
        known = _rule_names(home)
    say(made)
    if rule is not None and rule not in known:
        # It holds: a service may have rules of its own that never fired.
        typer.echo(f"vitok: no rule {printable(rule)!r} is known here; there is: {', '.join(known)}", err=True)


@alert_app.command("silences")
def list_silences(
    home: Home = None,
    now: Now = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """Lists the silences that hold or will."""
    with plain_errors(), _silences(home) as silences:
        found = silences.all(at=None if every else moment_of(now))
    for one in found:
        say(one)
    if not found:
        say("nothing is silenced")


@alert_app.command("unsilence")
def unsilence(
    silence_id: Annotated[int, typer.Argument(help="The number that silences shows.")],
    by: By,
    home: Home = None,
    now: Now = None,
) -> None:
    """Ends a silence now."""
    with plain_errors(), options_named(**_OPTIONS), _silences(home) as silences:
        ended = silences.end(silence_id, who=by, now=moment_of(now))
    say(ended)


@alert_app.command("undelivered")
def undelivered(home: Home = None) -> None:
    """Lists the messages that were given up, and those that still wait."""
    with plain_errors(), _outbox(home) as outbox:
        found = (*outbox.messages("dead"), *outbox.messages("waiting"))
    for message in found:
        say(message)
    if not found:
        say("everything was delivered")


@alert_app.command("retry")
def retry(
    message_id: Annotated[int, typer.Argument(help="The number that undelivered shows.")],
    home: Home = None,
    now: Now = None,
) -> None:
    """Lets a message that was given up be tried again."""
    with plain_errors(), _outbox(home) as outbox:
        again = outbox.again(message_id, now=moment_of(now))
    say(f"{again}, due {isoformat(again.due_at)}")


def _folder(home: Path | None) -> Path:
    return home_of(home) / "monitoring"


@contextlib.contextmanager
def _silences(home: Path | None) -> Iterator[Silences]:
    from vitok.monitoring.delivery import open_delivery

    with contextlib.closing(open_delivery(_folder(home) / "delivery.sqlite")) as database:
        yield Silences(database)


@contextlib.contextmanager
def _outbox(home: Path | None) -> Iterator[Outbox]:
    with _delivery(home) as database:
        yield Outbox(database, {})


@contextlib.contextmanager
def _delivery(home: Path | None) -> Iterator[Database]:
    from vitok.monitoring.delivery import open_delivery

    path = _folder(home) / "delivery.sqlite"
    if not path.is_file():
        raise NotFound("file of messages", str(path))
    with contextlib.closing(open_delivery(path)) as database:
        yield database


def _usual_rules() -> tuple[AlertRule, ...]:
    """Returns the rules that the operator of a live service evaluates."""
    from vitok.monitoring.rule_set import usual_rules
    from vitok.systems.fraud.observing import watch_rules

    # When labels are taken to be known changes no rule.
    return usual_rules(watch_rules(label_delay=DAY))


def _rule_names(home: Path | None) -> tuple[str, ...]:
    """Names the usual rules, and those that have raised an alert."""
    from vitok.monitoring import Alerts

    names = {rule.name for rule in _usual_rules()}
    path = _folder(home) / "alerts.sqlite"
    if path.is_file():
        with contextlib.closing(Alerts(path)) as alerts:
            names |= {alert.rule for alert in alerts.history()}
    return tuple(sorted(names))
