"""`vitok incidents`: read incidents, go on with them, resolve them, and say what the loop may do by itself."""

import contextlib
import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vitok.clock import SystemClock
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.console.printed import say
from vitok.console.shared_options import By, Home, Json, Now, home_of, moment_of
from vitok.errors import InvalidInput, NotFound
from vitok.loop import Playbook
from vitok.loop.incidents import Incidents
from vitok.loop.switches import ALL, Switches

incident_app = typer.Typer(no_args_is_help=True, help="Incidents: read them, go on with them, order and stop the loop.")

RecordId = Annotated[str, typer.Argument(help="Such as incident-0003.")]
_OPTIONS = {"who": "--by", "why": "--reason", "text": "TEXT", "outcome": "TEXT", "into": "--into", "action": "ACTION"}


@incident_app.command("list")
def list_incidents(
    home: Home = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that are resolved.")] = False,
    json: Json = False,
) -> None:
    """Lists the incidents, the oldest first."""
    with plain_errors():
        incidents = Incidents(home_of(home))
        found = incidents.records.list("incident") if every else incidents.open()
    if json:
        typer.echo(jsonlib.dumps([record.to_dict() for record in found], indent=2))
        return
    for record in found:
        say(record)
    if not found:
        say("there was no incident yet" if every else "no incident is open")


@incident_app.command("show")
def show(
    record_id: RecordId,
    home: Home = None,
    *,
    timeline: Annotated[bool, typer.Option("--timeline", help="Every entry with its numbers.")] = False,
    json: Json = False,
) -> None:
    """Shows an incident as a report: what, since when, causes, what was ruled out, what was done and is proposed."""
    from vitok.loop.incidents_report import report

    with plain_errors():
        record = Incidents(home_of(home)).records.get(record_id)
    if json:
        typer.echo(jsonlib.dumps(record.to_dict(), indent=2))
    else:
        say(record.to_markdown() if timeline else report(record), line=False)


@incident_app.command("note")
def note(
    record_id: RecordId,
    text: Annotated[str, typer.Argument(help="What was found out or done.")],
    by: By,
    home: Home = None,
    now: Now = None,
) -> None:
    """Adds a note."""
    with plain_errors(), options_named(**_OPTIONS):
        record = Incidents(home_of(home)).note(record_id, text, who=by, now=moment_of(now))
    say(record)


@incident_app.command("resolve")
def resolve(
    record_id: RecordId,
    text: Annotated[str, typer.Argument(help="What the cause was, and what ended it.")],
    by: By,
    home: Home = None,
    now: Now = None,
) -> None:
    """Resolves an incident, and says what would keep it from coming again."""
    from vitok.loop.incidents_report import prevention

    with plain_errors(), options_named(**_OPTIONS):
        record = Incidents(home_of(home)).resolve(record_id, text, who=by, now=moment_of(now))
    say(record)
    for proposal in prevention(record):
        say(f"next time: {proposal}")


@incident_app.command("merge")
def merge(
    record_id: RecordId,
    into: Annotated[str, typer.Option(help="The incident that goes on.")],
    by: By,
    home: Home = None,
    now: Now = None,
) -> None:
    """Closes an incident as a duplicate of another."""
    with plain_errors(), options_named(**_OPTIONS):
        record = Incidents(home_of(home)).merge(record_id, into, who=by, now=moment_of(now))
    say(record)


@incident_app.command("approve")
def approve(
    record_id: RecordId,
    key: Annotated[str, typer.Argument(help="The key that the report shows beside the proposal.")],
    by: By,
    home: Home = None,
    now: Now = None,
) -> None:
    """Does what the loop only proposed, or could not do; a service that runs follows it at once."""
    with _playbook(home) as playbook:
        record = playbook.approve(record_id, key, who=by, now=moment_of(now))
    say(record.timeline[-1])


@incident_app.command("undo")
def undo(
    record_id: RecordId,
    key: Annotated[str, typer.Argument(help="The key that the report shows beside the action.")],
    by: By,
    reason: Annotated[str, typer.Option(help="Why; goes on record.")],
    home: Home = None,
    now: Now = None,
) -> None:
    """Takes back what the loop or a person did."""
    with _playbook(home) as playbook:
        record = playbook.undo(record_id, key, who=by, why=reason, now=moment_of(now))
    say(record.timeline[-1])


@incident_app.command("retrain")
def retrain(
    by: By,
    reason: Annotated[str, typer.Option(help="Why; goes on record.")],
    home: Home = None,
    now: Now = None,
) -> None:
    """Asks for a retraining; the service's operator begins it, if the week's budget is not spent."""
    from vitok.loop import TriggerRules, Triggers
    from vitok.systems.fraud.messages import SYSTEM

    with plain_errors(), options_named(**_OPTIONS), contextlib.ExitStack() as stack:
        triggers = stack.enter_context(contextlib.closing(Triggers(_known(home), TriggerRules())))
        triggers.ask(SYSTEM, who=by, why=reason, now=moment_of(now))
        asked = triggers.pending(SYSTEM)
    for one in asked:
        say(f"asked for: {one}")


@incident_app.command("propose-only")
def propose_only(
    action: Annotated[
        str, typer.Argument(help="rollback, raise_threshold, use_rules, recalibrate, retrain, or all.")
    ] = ALL,
    by: Annotated[str | None, typer.Option(help="Who decides it; without, the switches are shown.")] = None,
    reason: Annotated[str, typer.Option(help="Why; goes on record.")] = "",
    home: Home = None,
    now: Now = None,
    *,
    off: Annotated[bool, typer.Option("--off", help="Lets the loop act by itself again.")] = False,
) -> None:
    """Lets the loop only propose an action, or act by itself again; without --by shows what holds."""
    with plain_errors(), options_named(**_OPTIONS):
        switches = Switches(home_of(home))
        if by is not None:
            say(switches.set(action, propose_only=not off, who=by, why=reason, now=moment_of(now)))
            return
        if off:
            raise InvalidInput("--by", by, "be given with --off")
        known = switches.history()
    for switch in known:
        say(switch)
    if not known:
        say("the loop acts by itself, within its bounds")


@contextlib.contextmanager
def _playbook(home: Path | None) -> Iterator[Playbook]:
    from vitok.systems.fraud.operating import by_hand

    with plain_errors(), options_named(**_OPTIONS), by_hand(_known(home), clock=SystemClock()) as playbook:
        yield playbook


def _known(home: Path | None) -> Path:
    # Nobody is to find an order in a folder that was made by a slip of the pen.
    folder = home_of(home)
    if not folder.is_dir():
        raise NotFound("home", str(folder))
    return folder
