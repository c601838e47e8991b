"""`vitok backup`, `vitok restore` and `vitok clean`: a home copied, made anew, and tidied."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.clock import SystemClock
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.errors import InvalidInput, NotFound
from vitok.registry import Registry
from vitok.registry import backup as make_backup
from vitok.registry import clean as remove
from vitok.registry import restore as make_restored

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]


def backup(
    folder: Annotated[str, typer.Argument(help="Where the backup will lie; or one that was interrupted.")],
    *,
    home: Home = None,
    verify: Annotated[
        bool, typer.Option(help="Restore it into a folder beside it, score the Production versions, and remove that.")
    ] = True,
) -> None:
    """Copies a home while others write it, and shows that it can be restored and served from."""
    with plain_errors(), options_named(folder="FOLDER", home="--home"):
        place = _folder("FOLDER", folder)
        made = make_backup(_home(home), place, now=SystemClock().now())
        typer.echo(str(made))
        if verify:
            with tempfile.TemporaryDirectory(prefix=".verify-", dir=made.folder.parent) as beside:
                restored = make_restored(made.folder, Path(beside) / "home")
                typer.echo(f"restored for a check: {restored.n_packages} packages; {restored.ledger or 'no ledger'}")
                _serve_from(restored.home)


def restore(
    folder: Annotated[str, typer.Argument(help="A finished backup.")],
    *,
    home: Annotated[Path, typer.Option(help="Where the home will lie: an empty folder, or none yet.")],
) -> None:
    """Makes a home of a backup, checks every byte of it, and scores the examples of the Production versions."""
    with plain_errors(), options_named(folder="FOLDER", home="--home"):
        restored = make_restored(_folder("FOLDER", folder), home)
        typer.echo(str(restored))
        _serve_from(restored.home)


def _serve_from(home: Path) -> None:
    """Loads what is in Production as a service does: the model has to give the scores that it was registered with."""
    from vitok.serving import Runtime

    if not (home / "registry").is_dir():
        return
    registry = Registry(home)
    try:
        for name in registry.ledger.models():
            number = registry.state(name).production
            if number is None:
                typer.echo(f"{name}: nothing is in Production")
                continue
            package = registry.load(name, number)
            try:
                Runtime.load(package, version=f"{name}/{number}")
            except NotFound:
                typer.echo(f"{name}/{number} is in Production; its package is whole and holds no model that is served")
            else:
                examples = "and scores its examples" if "examples.json" in package else "and has no examples"
                typer.echo(f"{name}/{number} is in Production, answers {examples}")
    finally:
        registry.close()


def _folder(option: str, text: str) -> Path:
    if "://" in text:
        raise InvalidInput(option, text, "be a folder", "Copy the finished folder to where it is kept")
    return Path(text)


def _home(home: Path | None) -> Path:
    return home or settings.current().home / "fraud"


def clean(
    *,
    home: Home = None,
    older_than: Annotated[str, typer.Option(help="Only what is older, such as 30d.")] = "30d",
    by: Annotated[str, typer.Option("--by", help="Who does it; the ledger keeps it. Needed to remove anything.")] = "",
    log: Annotated[
        list[Path] | None, typer.Option(help="Folder above logs of decisions; again for more. HOME/log by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = True,
) -> None:
    """Removes packages, artifacts and left-over folders that no stage, decision or run refers to."""
    with plain_errors(), options_named(duration="--older-than", actor="--by"):
        if not dry_run and not by:
            raise InvalidInput("--by", by, "say who does it")
        place = _home(home)
        if not (place / "registry").is_dir():
            raise NotFound("registry in", str(place))
        done = remove(
            place, now=SystemClock().now(), actor=by or "nobody", older_than=older_than, logs=log, dry_run=dry_run
        )
        typer.echo(str(done))
