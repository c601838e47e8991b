"""`vitok releases`: how far a release has come; hold it, send it on, approve or end it; what served when."""

import contextlib
import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.clock import SystemClock, isoformat, parse_time
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.console.printed import say
from vitok.console.shared_options import Home
from vitok.errors import NotFound
from vitok.loop import Records, Release, Releases
from vitok.loop.release_book import ReleaseBook
from vitok.registry import Registry, has_registry
from vitok.systems.fraud.messages import SYSTEM

release_app = typer.Typer(
    no_args_is_help=True, help="Releases: list, show, advance, pause, resume, abort, approve, at."
)

ReleaseId = Annotated[str, typer.Argument(help="Such as plan-0003, or fraud/2 for the latest of a version.")]
By = Annotated[str, typer.Option(help="Who does it; goes on record.")]
Reason = Annotated[str, typer.Option(help="Why; goes on record.")]
Now = Annotated[str | None, typer.Option(help="Present time in ISO 8601; the clock's by default.")]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON.")]
_OPTIONS = {"who": "--by", "why": "--reason"}


@release_app.command("list")
def list_releases(
    home: Home = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    json: Json = False,
) -> None:
    """Lists the releases by plan, the oldest first."""
    with plain_errors(), _book(home) as book:
        found = book.list(closed=every) if book else ()
    if json:
        typer.echo(jsonlib.dumps([release.to_dict() for release in found], indent=2))
        return
    for release in found:
        say(release)
    if not found:
        say(f"{'there was no release by plan yet' if every else 'no release is under way'} in {_path(home)}")


@release_app.command("show")
def show(release_id: ReleaseId, home: Home = None, *, json: Json = False) -> None:
    """Shows the steps of a release, what it waits for, what its judges said, and its story."""
    with plain_errors(), _book(home) as book:
        if book is None:
            raise NotFound("release", release_id)
        release = book.get(release_id)
    if json:
        typer.echo(jsonlib.dumps(release.to_dict(), indent=2))
        return
    for line in _page(release):
        say(line)


@release_app.command("advance")
def advance(release_id: ReleaseId, by: By, reason: Reason, home: Home = None, now: Now = None) -> None:
    """Asks for the next step at the next tick; its gate and its approvals hold all the same."""
    with plain_errors(), options_named(**_OPTIONS), _releases(home, release_id) as releases:
        release = releases.advance(release_id, who=by, why=reason, now=_moment(now))
    _told(release)


@release_app.command("pause")
def pause(release_id: ReleaseId, by: By, reason: Reason, home: Home = None, now: Now = None) -> None:
    """Holds a release where it is; a judge that refuses still rolls it back."""
    with plain_errors(), options_named(**_OPTIONS), _releases(home, release_id) as releases:
        release = releases.pause(release_id, who=by, why=reason, now=_moment(now))
    _told(release)


@release_app.command("resume")
def resume(release_id: ReleaseId, by: By, reason: Reason, home: Home = None, now: Now = None) -> None:
    """Lets a paused release go on."""
    with plain_errors(), options_named(**_OPTIONS), _releases(home, release_id) as releases:
        release = releases.resume(release_id, who=by, why=reason, now=_moment(now))
    _told(release)


@release_app.command("abort")
def abort(release_id: ReleaseId, by: By, reason: Reason, home: Home = None, now: Now = None) -> None:
    """Ends a release at once, paused or not; the version before answers everything again."""
    with plain_errors(), options_named(**_OPTIONS), _releases(home, release_id) as releases:
        release = releases.abort(release_id, who=by, why=reason, now=_moment(now))
    _told(release)


@release_app.command("approve")
def approve(release_id: ReleaseId, by: By, reason: Reason, home: Home = None, now: Now = None) -> None:
    """Approves the next step that asks for it; not for who began the release or asked for the step."""
    with plain_errors(), options_named(**_OPTIONS), _releases(home, release_id) as releases:
        release = releases.approve(release_id, who=by, why=reason, now=_moment(now))
    _told(release)


@release_app.command("at")
def at(
    time: Annotated[str, typer.Argument(help="ISO 8601, such as 2026-03-01T12:00:00Z.")],
    model: Annotated[str, typer.Option(help="Which model.")] = SYSTEM,
    home: Home = None,
    *,
    json: Json = False,
) -> None:
    """Says which version was in Production at a time, and which was a canary beside it."""
    with plain_errors(), options_named(time="TIME"), contextlib.closing(_registry(home)) as registry:
        moment = parse_time(time)
        if model not in registry.ledger.models():
            raise NotFound("model", model, registry.ledger.models())
        state = registry.ledger.state(model, at=moment)
    if json:
        found = {"model": model, "time_us": moment, "version": state.production}
        typer.echo(jsonlib.dumps({**found, "canary": state.canary, "canary_share": state.canary_share}, indent=2))
        return
    say(f"{isoformat(moment)} {state}")


def _told(release: Release) -> None:
    # What stands now, and what has been put on record.
    say(release)
    say(release.events[-1])


def _page(release: Release) -> Iterator[str]:
    yield str(release)
    yield f"began {isoformat(release.begun_at)} by {release.actor}: {release.reason}"
    first = release.step + 1 - sum(event.kind == "entered" for event in release.events)
    for place, step in enumerate(release.plan["steps"]):
        mark = "·" if place > release.step else "✓" if place >= first else "-"
        if place == release.step and release.status != "finished":
            mark = "→" if release.is_open else "✗"
        share = f", {100 * step['share']:g} %" if step["kind"] == "canary" else ""
        judges = f", judged by {', '.join(step['judges'])}" if step["judges"] else ""
        asks = f", {step['approvals']} to approve" if step["approvals"] else ""
        yield f"{mark} {step['name']} ({step['kind']}{share}{judges}{asks})"
    for name, verdict in release.verdicts.items():
        yield f"{name}: {verdict['state']}: {verdict['reason']}"
    for event in release.events:
        yield str(event)


def _path(home: Path | None) -> Path:
    return home or settings.current().home / "fraud"


@contextlib.contextmanager
def _book(home: Path | None) -> Iterator[ReleaseBook | None]:
    # To look makes no files where there are none.
    if not (_path(home) / "loop" / "releases.sqlite").exists():
        yield None
        return
    book = ReleaseBook(_path(home))
    try:
        yield book
    finally:
        book.close()


@contextlib.contextmanager
def _releases(home: Path | None, release_id: str) -> Iterator[Releases]:
    path = _path(home)
    if not (path / "loop" / "releases.sqlite").exists():
        raise NotFound("release", release_id)
    registry = Registry(path)
    releases = Releases(registry, Records(path))
    try:
        yield releases
    finally:
        releases.close()
        registry.close()


def _registry(home: Path | None) -> Registry:
    if not has_registry(_path(home)):
        raise NotFound("registry in", str(_path(home)))
    return Registry(_path(home))


def _moment(text: str | None) -> int:
    if text is None:
        return SystemClock().now()
    with options_named(time="--now"):
        return parse_time(text)
