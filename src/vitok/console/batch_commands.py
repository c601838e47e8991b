"""`vitok batch`: scores Parquet files here or on Spark, with a registered model or one in a folder, and goes on."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.errors import InvalidInput, ServiceError
from vitok.registry import Package, Registry
from vitok.serving.batch_inference import BatchResult, Progress, score_files
from vitok.serving.batch_spark import score_files_on_spark
from vitok.serving.preemption import PreemptionWatch
from vitok.serving.runners import FILES
from vitok.serving.runtime import Runtime

_SIGNATURE = "signature.json"
_LIFETIME = 4.0
_OPTIONS = {
    "model": "--model",
    "version": "--model",
    "names": "--columns",
    "keep and names": "--keep and --columns",
    "clouds": "--cloud",
    "inputs": "INPUTS",
    "spark": "--spark",
}

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
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Batches of a shard; measured by default, 64 on Spark.")
    ] = None,
    lifetime: Annotated[
        float | None, typer.Option(help="Hours that a machine lives on average, 4 by default; not on Spark.")
    ] = None,
    cloud: Annotated[list[str] | None, typer.Option(help="Whose spot notices to ask for: aws, gcp, azure.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where the registry lies.")] = None,
    spark: Annotated[
        str | None,
        typer.Option(help="Scores on Spark: spark://host:7077, or spark://local[4] for cores of this machine."),
    ] = None,
    wave: Annotated[
        int | None, typer.Option(help="On Spark: shards between two checkpoints; four for each core by default.")
    ] = None,
    *,
    quiet: Annotated[bool, typer.Option(help="Shows no progress.")] = False,
) -> None:
    """Scores Parquet files. Exit code 75 says that it was handed over and is to be started again in the same words.

    Here or on Spark, results and checkpoints are the same: what was begun in one place can be ended in the other.
    """
    with plain_errors(), options_named(**_OPTIONS):
        for option, number in (
            ("--batch-rows", batch_rows),
            ("--checkpoint-every", checkpoint_every),
            ("--wave", wave),
        ):
            if number is not None and number < 1:
                raise InvalidInput(option, number, "be at least 1")
        if lifetime is not None and not 0 < lifetime < math.inf:
            raise InvalidInput("--lifetime", lifetime, "be a finite number of hours above 0")
        if spark is None and wave is not None:
            raise InvalidInput("--wave", wave, "come with --spark", "Here a checkpoint is every shard")
        if spark is not None and lifetime is not None:
            fix = "Say how long a shard is with --checkpoint-every"
            raise InvalidInput("--lifetime", lifetime, "not come with --spark", fix)
        package = _package(model, home)
        version = model if isinstance(package, Path) else f"{package.name}/{package.version}"
        runtime = Runtime.load(package, version=version)
        names = [name.strip() for name in columns.split(",") if name.strip()] or _names(package, runtime)
        score: Callable[..., BatchResult]
        if spark is None:
            hours = _LIFETIME if lifetime is None else lifetime
            score = partial(
                score_files, runtime, mean_time_between_failures=hours * 3600, checkpoint_every=checkpoint_every
            )
        else:
            folder = package if isinstance(package, Path) else package.folder
            score = partial(score_files_on_spark, spark, folder, version=version, wave=wave)
            if checkpoint_every is not None:
                score = partial(score, checkpoint_every=checkpoint_every)
        with PreemptionWatch(clouds=cloud or ()) as watch:
            result = score(
                inputs,
                out,
                names=names,
                id_column=id_column,
                keep=keep or (),
                batch_rows=batch_rows,
                progress=None if quiet else _show,
                watch=watch,
            )
    typer.echo(str(result))
    raise typer.Exit(result.exit_code)


def _show(progress: Progress) -> None:
    typer.echo(str(progress), err=True)


def _package(model: str, home: Path | None) -> Path | Package:
    folder = Path(model)
    if folder.is_dir():
        versions = sorted(str(path.parent) for name in FILES for path in folder.glob(f"*/{name}"))
        if versions and not any((folder / name).is_file() for name in FILES):
            raise InvalidInput("model", model, "be the folder of one version", f"There is {', '.join(versions)}")
        return folder
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
