"""`vitok batch`: scores Parquet files with a registered model or a model in a folder, and goes on where it stopped."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.errors import InvalidInput, ServiceError
from vitok.registry import Package, Registry
from vitok.serving.batch_inference import Progress, score_files
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runtime import Runtime

_SIGNATURE = "signature.json"
_OPTIONS = {"model": "--model", "names": "--columns", "clouds": "--cloud", "inputs": "INPUTS"}

Inputs = Annotated[list[Path], typer.Argument(help="Parquet files, or folders of them.")]
Model = Annotated[str, typer.Option(help="A version such as fraud/3, a stage such as fraud/Production, or a folder.")]
Out = Annotated[Path, typer.Option(help="Folder for results, quarantine and manifest.")]


def batch(
    inputs: Inputs,
    model: Model,
    out: Out,
    columns: Annotated[str, typer.Option(help="Feature columns in order, by commas; the signature's by default.")] = "",
    id_column: Annotated[str | None, typer.Option(help="Column with each row's id; made up by default.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A column that goes into the results; may be repeated.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(help="Rows of a run of the model.")] = 8192,
    checkpoint_every: Annotated[int | None, typer.Option(help="Batches of a shard; measured by default.")] = None,
    lifetime: Annotated[float, typer.Option(help="Hours that a machine lives on average.")] = 4.0,
    cloud: Annotated[list[str] | None, typer.Option(help="Whose spot notices to ask for: aws, gcp, azure.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where the registry lies.")] = None,
    *,
    quiet: Annotated[bool, typer.Option(help="Shows no progress.")] = False,
) -> None:
    """Scores Parquet files. Exit code 75 says that it was handed over and is to be started again in the same words."""
    with plain_errors(), options_named(**_OPTIONS):
        for option, rows in (("--batch-rows", batch_rows), ("--checkpoint-every", checkpoint_every)):
            if rows is not None and rows < 1:
                raise InvalidInput(option, rows, "be at least 1")
        if not 0 < lifetime < math.inf:
            raise InvalidInput("--lifetime", lifetime, "be a finite number of hours above 0")
        package = _package(model, home)
        version = model if isinstance(package, Path) else f"{package.name}/{package.version}"
        runtime = Runtime.load(package, version=version)
        names = [name.strip() for name in columns.split(",") if name.strip()] or _names(package, runtime)
        with PreemptionWatch(clouds=cloud or ()) as watch:
            result = score_files(
                runtime,
                inputs,
                out,
                names=names,
                id_column=id_column,
                keep=keep or (),
                batch_rows=batch_rows,
                checkpoint_every=checkpoint_every,
                mean_time_between_failures=lifetime * 3600,
                progress=None if quiet else _show,
                watch=watch,
            )
    typer.echo(str(result))
    raise typer.Exit(result.exit_code)


def _show(progress: Progress) -> None:
    typer.echo(str(progress), err=True)


def _package(model: str, home: Path | None) -> Path | Package:
    if Path(model).is_dir():
        return Path(model)
    name, _, version = model.rpartition("/")
    if not name:
        raise InvalidInput("model", model, "be a folder, or a name and a version or stage such as fraud/3")
    return Registry(home or settings.current().home).load(name, int(version) if version.isdigit() else version)


def _names(package: Path | Package, runtime: Runtime) -> list[str]:
    known: list[str] = []
    try:
        if isinstance(package, Path):
            path = package / _SIGNATURE
            known = json.loads(path.read_bytes())["inputs"] if path.is_file() else []
        else:
            known = package.json(_SIGNATURE)["inputs"] if _SIGNATURE in package else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Name them with --columns"
        raise ServiceError(f"{runtime.version}: {_SIGNATURE} does not say the columns: {error!r}. {fix}") from None
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        raise ServiceError(f"{runtime.version}: inputs of {_SIGNATURE} must be a list of names, got {known!r:.80}")
    if not known and runtime.n_features:
        raise InvalidInput("--columns", "", f"name the {runtime.n_features} columns: the model has no {_SIGNATURE}")
    return known or [spec.name for spec in runtime.inputs]
