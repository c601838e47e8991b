"""`vitok backup`, `vitok restore` and `vitok clean`: what vitok keeps copied, made anew, and tidied."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vitok.clock import SystemClock
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.console.registry_options import (
    REGISTRY_OPTIONS,
    ArtifactsAt,
    HomeAt,
    PackagesAt,
    folder_of,
    is_database,
    only_with_a_database,
)
from vitok.engines.s3 import Bucket, is_s3
from vitok.errors import InvalidInput, NotFound
from vitok.registry import (
    Backup,
    Registry,
    Tracker,
    attachment_of,
    backup_stores,
    clean_stores,
    fetch_backup,
    restore_stores,
)
from vitok.registry import backup as make_backup
from vitok.registry import clean as remove
from vitok.registry import restore as make_restored
from vitok.registry import send_backup as send


def backup(
    target: Annotated[
        str, typer.Argument(help="Where the backup will lie: a folder, or s3://bucket/prefix?endpoint=...")
    ],
    *,
    home: HomeAt = None,
    packages: PackagesAt = None,
    artifacts: ArtifactsAt = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder that a backup to a bucket is made in, and that keeps it.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Restore it into an empty folder, score the Production versions, and remove that.")
    ] = True,
) -> None:
    """Copies what vitok keeps while others write it, and shows that it can be restored and served from."""
    with plain_errors(), options_named(folder="TARGET", **REGISTRY_OPTIONS), contextlib.ExitStack() as stack:
        if not is_s3(target):
            made = _made(_folder("TARGET", target), home, packages, artifacts)
            typer.echo(str(made))
            beside = made.folder.parent
        else:
            beside = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitok-backup-")))
            # Asked before the work begins: what it needs may not be installed.
            Bucket(target).check()
            folder = work or beside / "made"
            # One that was made and not sent whole goes on with sending.
            made = _finished(folder) or _made(folder, home, packages, artifacts)
            typer.echo(str(made))
            send(made.folder, target)
            typer.echo(f"sent to {Bucket(target).location}")
        if verify:
            with tempfile.TemporaryDirectory(prefix=".verify-", dir=beside) as place:
                source = fetch_backup(target, Path(place) / "fetched").folder if is_s3(target) else made.folder
                restored = make_restored(source, Path(place) / "home")
                typer.echo(f"restored for a check: {restored.n_packages} packages; {restored.ledger or 'no ledger'}")
                _serve_own(restored.home)


def restore(
    source: Annotated[str, typer.Argument(help="A finished backup: a folder, or s3://bucket/prefix?endpoint=...")],
    *,
    home: Annotated[str, typer.Option(help="Where it will lie: an empty folder, or none yet; or an empty database.")],
    packages: PackagesAt = None,
    artifacts: ArtifactsAt = None,
) -> None:
    """Makes a home, or a database and a bucket, of a backup; checks every byte; scores the Production versions."""
    with plain_errors(), options_named(folder="SOURCE", **REGISTRY_OPTIONS), _backup_at(source) as folder:
        only_with_a_database("--home", home, packages=packages, artifacts=artifacts)
        if not is_database(home):
            restored = make_restored(folder, home)
            typer.echo(str(restored))
            _serve_own(restored.home)
            return
        with contextlib.closing(Registry(home, packages=packages)) as registry:
            tracker, bucket = _runs(home, artifacts)
            typer.echo(str(restore_stores(folder, registry, tracker=tracker, bucket=bucket)))
            _serve_from(registry)


def _made(folder: Path, home: str | None, packages: str | None, artifacts: str | None) -> Backup:
    now = SystemClock().now()
    only_with_a_database("--home", home, packages=packages, artifacts=artifacts)
    if home is None or not is_database(home):
        return make_backup(folder_of(home), folder, now=now)
    with contextlib.closing(Registry(home, packages=packages)) as registry:
        tracker, bucket = _runs(home, artifacts)
        return backup_stores(registry, folder, now=now, tracker=tracker, bucket=bucket)


def _finished(folder: Path) -> Backup | None:
    from vitok.registry.backup_files import MANIFEST, read_backup

    return read_backup(folder) if (folder / MANIFEST).exists() else None


def _runs(home: str, artifacts: str | None) -> tuple[Tracker | None, Bucket | None]:
    return (None, None) if artifacts is None else (Tracker(home, artifacts=artifacts), Bucket(artifacts))


@contextlib.contextmanager
def _backup_at(source: str) -> Iterator[Path]:
    if not is_s3(source):
        yield _folder("SOURCE", source)
        return
    with tempfile.TemporaryDirectory(prefix="vitok-restore-") as place:
        yield fetch_backup(source, Path(place) / "fetched").folder


def _serve_own(home: Path) -> None:
    attached = attachment_of(home)
    if attached is not None:
        typer.echo(f"the home goes by the registry {attached}, which is in a backup of its own or in none")
    elif (home / "registry").is_dir():
        with contextlib.closing(Registry(home)) as registry:
            _serve_from(registry)


def _serve_from(registry: Registry) -> None:
    """Loads what is in Production as a service does: the model has to give the scores that it was registered with."""
    from vitok.serving import Runtime

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


def _folder(option: str, text: str) -> Path:
    if "://" in text:
        raise InvalidInput(option, text, "be a folder, or look like s3://bucket/prefix")
    return Path(text)


def clean(
    *,
    home: HomeAt = None,
    packages: PackagesAt = None,
    artifacts: ArtifactsAt = None,
    older_than: Annotated[str, typer.Option(help="Only what is older, such as 30d.")] = "30d",
    by: Annotated[str, typer.Option("--by", help="Who does it; the ledger keeps it. Needed to remove anything.")] = "",
    log: Annotated[
        list[Path] | None,
        typer.Option(help="Folder above logs of decisions; again for more. HOME/log by default, where it is a folder."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be removed.")] = True,
) -> None:
    """Removes packages, artifacts and left-over folders that no stage, decision or run refers to."""
    with plain_errors(), options_named(duration="--older-than", actor="--by", **REGISTRY_OPTIONS):
        if not dry_run and not by:
            raise InvalidInput("--by", by, "say who does it")
        only_with_a_database("--home", home, packages=packages, artifacts=artifacts)
        if home is not None and is_database(home):
            if not log:
                raise InvalidInput("--log", log, "name every log that these models answer to: others are not looked at")
            bucket = None if artifacts is None else Bucket(artifacts)
            with contextlib.closing(Registry(home, packages=packages)) as registry:
                done = clean_stores(
                    registry,
                    now=SystemClock().now(),
                    actor=by or "nobody",
                    older_than=older_than,
                    logs=log,
                    bucket=bucket,
                    dry_run=dry_run,
                )
            typer.echo(str(done))
            return
        place = folder_of(home)
        if not (place / "registry").is_dir():
            raise NotFound("registry in", str(place))
        done = remove(
            place, now=SystemClock().now(), actor=by or "nobody", older_than=older_than, logs=log, dry_run=dry_run
        )
        typer.echo(str(done))
