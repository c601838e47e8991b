"""`vitok keys`: make, list, rotate and revoke the API keys of a service."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.clock import duration, isoformat
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.console.shared_options import By, Json, Now, moment_of, time_of
from vitok.errors import NotFound
from vitok.guard import Issued, Key, KeyStore

key_app = typer.Typer(no_args_is_help=True, help="API keys: create, list, rotate, revoke.")

Store = Annotated[Path | None, typer.Option(help="The file of keys; guard/keys.sqlite of the home by default.")]
Why = Annotated[str, typer.Option("--reason", help="Why; goes on record.")]
Valid = Annotated[str, typer.Option(help="How long it is valid, such as 90d; 'never' for without end.")]
_OPTIONS = {"tenant": "--tenant", "team": "--team", "scopes": "--scope", "actor": "--by", "reason": "--reason"}

KeyId = Annotated[str, typer.Argument(help="The 12 characters that list shows; no secret.")]


@key_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What it is for, in words.")],
    tenant: Annotated[str, typer.Option(help="Whose it is.")],
    scope: Annotated[list[str], typer.Option(help="What it allows, such as decide:fraud; may be repeated.")],
    by: By,
    team: Annotated[str, typer.Option(help="Which team of the tenant.")] = "",
    valid: Valid = "365d",
    since: Annotated[str | None, typer.Option(help="When it begins to be valid, in ISO 8601.")] = None,
    reason: Why = "",
    store: Store = None,
    now: Now = None,
    *,
    json: Json = False,
) -> None:
    """Makes a key and shows its token, this once."""
    with plain_errors(), options_named(duration="--valid", **_OPTIONS):
        moment = moment_of(now)
        begin = None if since is None else time_of("--since", since)
        made = KeyStore(_path(store)).create(
            name,
            tenant=tenant,
            team=team,
            scopes=scope,
            actor=by,
            now=moment,
            not_before=begin,
            expires=_length(valid),
            reason=reason,
        )
    _show_issued(made, json=json)


@key_app.command("list")
def list_keys(
    store: Store = None,
    now: Now = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that are revoked or have expired.")] = False,
    json: Json = False,
) -> None:
    """Lists the keys: whose each is, what it allows, until when."""
    with plain_errors():
        moment = moment_of(now)
        keys = _opened(store).keys()
    shown = [key for key in keys if every or key.state(moment) in ("valid", "early")]
    if json:
        typer.echo(jsonlib.dumps([_described(key, moment) for key in shown], indent=2))
        return
    for key in shown:
        typer.echo(f"{key.state(moment):8}{key}")
    hidden = len(keys) - len(shown)
    if hidden:
        typer.echo(f"{hidden} more are revoked or have expired; --all shows them")
    elif not keys:
        typer.echo("there are no keys yet")


@key_app.command("rotate")
def rotate(
    key_id: KeyId,
    by: By,
    overlap: Annotated[str, typer.Option(help="How long the old key is still good, such as 24h.")] = "1d",
    valid: Valid = "365d",
    reason: Why = "",
    store: Store = None,
    now: Now = None,
    *,
    json: Json = False,
) -> None:
    """Makes a key to follow another, which ends after the overlap; shows the new token, this once."""
    with plain_errors(), options_named(duration="--valid", **_OPTIONS):
        with options_named(duration="--overlap"):
            duration(overlap)
        made = _opened(store).rotate(
            key_id, actor=by, now=moment_of(now), overlap=overlap, expires=_length(valid), reason=reason
        )
    _show_issued(made, json=json)


@key_app.command("revoke")
def revoke(key_id: KeyId, by: By, reason: Why, store: Store = None, now: Now = None) -> None:
    """Ends a key for good; a running service refuses it about a second later."""
    with plain_errors(), options_named(**_OPTIONS):
        key = _opened(store).revoke(key_id, reason=reason, actor=by, now=moment_of(now))
    typer.echo(str(key))


@key_app.command("history")
def history(key_id: Annotated[str | None, typer.Argument(help="Only this key.")] = None, store: Store = None) -> None:
    """Lists what was done to keys: when, by whom and why."""
    with plain_errors():
        opened = _opened(store)
        if key_id is not None:
            opened.get(key_id)
        for event in opened.events(key_id):
            typer.echo(str(event))


def _show_issued(made: Issued, *, json: bool) -> None:
    if json:
        typer.echo(jsonlib.dumps({**_described(made.key, made.key.created), "token": made.token}, indent=2))
        return
    typer.echo(str(made.key), err=True)
    typer.echo("The token is shown this once; keep it where you keep secrets:", err=True)
    # Alone on standard output, so that a script can take it.
    typer.echo(made.token)


def _described(key: Key, now: int) -> dict[str, object]:
    times = {"created": key.created, "not_before": key.not_before, "expires": key.expires, "revoked": key.revoked}
    return {
        "key_id": key.key_id,
        "state": key.state(now),
        "name": key.name,
        "tenant": key.tenant,
        "team": key.team,
        "scopes": sorted(key.scopes),
        **{name: None if time is None else isoformat(time) for name, time in times.items()},
        "replaces": key.replaces,
    }


def _path(store: Path | None) -> Path:
    return settings.current().home / "guard" / "keys.sqlite" if store is None else store


def _opened(store: Path | None) -> KeyStore:
    """A store without keys and a misspelt path look alike, so the file must be there."""
    path = _path(store)
    if not path.is_file():
        raise NotFound("store of keys", str(path))
    return KeyStore(path)


def _length(text: str) -> str | None:
    return None if text == "never" else text
