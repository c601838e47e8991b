"""`vitok serve-models --routes`, and `vitok routes check`: the routes of a file over the models that are served."""

import functools
import json as codec
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vitok.console.exits import REFUSED, plain_errors
from vitok.console.model_costing import Costing
from vitok.console.model_dressing import Dressing, feature_names
from vitok.errors import InvalidInput, NotFound, ServiceError
from vitok.registry import Registry
from vitok.serving.hosted import Hosted
from vitok.serving.hosting import Catalogue, FolderCatalogue, ModelHost, RegistryCatalogue
from vitok.serving.inference_log import InferenceLog
from vitok.serving.route_building import BuiltRoute, account, build_route, example_of
from vitok.serving.route_files import ModelTarget, RouteFile, read_routes
from vitok.serving.routed import REQUEST_ID, RoutedHost

route_app = typer.Typer(no_args_is_help=True, help="Routes: which model answers a name, and what if it does not.")


@route_app.callback()
def _routes() -> None:
    """Routes: which model answers a name, and what if it does not."""


def routed_host(
    path: Path, catalogue: Catalogue, dressing: Dressing, options: Mapping[str, Any], costing: Costing
) -> RoutedHost:
    """Makes a host of models and of the routes of a file, with all models loaded that the routes ask.

    Args:
        path: The file.
        catalogue: Where models come from.
        dressing: What goes with models and routes.
        options: As for `ModelHost`.
        costing: What charges for answers.

    Raises:
        InvalidInput: If the file is wrong, or something in it does not fit together.
        ServiceError: If a model cannot be run, or a route cannot be served as is asked for.
    """
    file = read_routes(path)
    asked = dict.fromkeys(model for name in file.routes for model in file.models(name))
    for name in file.routes:
        if name in asked:
            raise file.error(f"routes.{name}", name, "not be the name of a model that a route asks")
    _there(file, catalogue)
    host = RoutedHost(catalogue, [], **(dict(options) | {"pinned": (*options.get("pinned", ()), *asked)}))
    names = functools.partial(feature_names, catalogue)
    for name in file.routes:
        built = build_route(file, name, host.get, columns=names)
        hosted = built.endpoint.hosted
        hosted.tracing = options.get("tracing")
        costing.dress(hosted)
        try:
            _dress(built, dressing)
        except InvalidInput as error:
            raise ServiceError(f"the route {name} cannot be served so: {error}") from None
        host.add(built.endpoint)
    host.start()
    return host


def _dress(built: BuiltRoute, dressing: Dressing) -> None:
    hosted = built.endpoint.hosted
    rules = dressing.rules(f"the route {built.name}", built.features)
    if rules is not None and len(hosted.runtime.inputs) > 1:
        raise InvalidInput("--contract", built.name, "be for routes without columns beside the matrix")
    hosted.rules = rules
    dressing.disclose(hosted)
    folder = dressing.folder(built.name)
    if folder is not None:
        hosted.recorder = dressing.keep(built.name, InferenceLog(folder, system=built.name, features=built.features))


def _there(file: RouteFile, catalogue: Catalogue) -> None:
    # Said before anything is loaded, and with what there is.
    known = catalogue.names()
    for name, spec in file.targets.items():
        if isinstance(spec, ModelTarget) and spec.model not in known:
            told = f"There is: {', '.join(known) or 'nothing yet'}"
            raise file.error(f"targets.{name}.model", spec.model, "be a model that is served", told)


@route_app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="File of routes.")],
    models: Annotated[Path | None, typer.Option(help="Folder of the models, as for serve-models.")] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of vitok whose registry says what answers.")] = None,
    stage: Annotated[str, typer.Option(help="Stage in the registry.")] = "Production",
    example: Annotated[
        str | None, typer.Option(help='A request as JSON: {"amount": 5000, "country": "DE", "request_id": "17"}.')
    ] = None,
    *,
    json: Annotated[bool, typer.Option("--json", help="Prints JSON.")] = False,
) -> None:
    """Checks a file of routes, and says what each would do for an example; asks nobody over the network."""
    with plain_errors():
        request = _request(example)
        if models is not None and home is not None:
            raise InvalidInput("--models", str(models), "be given, or --home, and not both")
        catalogue: Catalogue | None = None
        if models is not None:
            catalogue = FolderCatalogue(models)
        elif home is not None:
            catalogue = RegistryCatalogue(Registry(home), stage=stage)
        try:
            found = read_routes(file)
            if catalogue is not None:
                _there(found, catalogue)
            told = _accounts(found, catalogue, request)
        except (InvalidInput, ServiceError) as error:
            typer.echo(f"vitok: {error}", err=True)
            raise typer.Exit(REFUSED) from None
    unused = found.unused()
    if json:
        typer.echo(codec.dumps({"routes": told, "unused": unused}, indent=2))
        return
    for lines in told.values():
        typer.echo("\n".join(lines))
    for name in unused:
        typer.echo(f"targets.{name} is asked by no route", err=True)


def _accounts(file: RouteFile, catalogue: Catalogue | None, request: Mapping[str, Any]) -> dict[str, list[str]]:
    host = None if catalogue is None else ModelHost(catalogue)
    told: dict[str, list[str]] = {}
    known: set[str] = {REQUEST_ID}
    for name in file.routes:
        if catalogue is None or host is None:
            if file.models(name):
                raise InvalidInput("--models", None, f"be given: {name} asks {', '.join(file.models(name))}")
            built = build_route(file, name, _nothing)
        else:
            built = build_route(file, name, host.get, columns=functools.partial(feature_names, catalogue))
        # What suits one route may be unknown to another.
        own = {key: value for key, value in request.items() if key in built.types or key == REQUEST_ID}
        known.update(built.types)
        told[name] = account(file, built, example_of(built, own))
    stray = sorted(set(request) - known)
    if stray:
        raise InvalidInput("--example", stray, f"be among {', '.join(sorted(known))}")
    return told


def _nothing(name: str, version: str | None) -> Hosted:
    raise NotFound("model", f"{name}/{version}" if version else name)


def _request(example: str | None) -> Mapping[str, Any]:
    if example is None:
        return {}
    try:
        found = codec.loads(example)
    except ValueError as error:
        raise InvalidInput("--example", example, f"be JSON ({error})") from None
    if not isinstance(found, dict):
        raise InvalidInput("--example", example, 'be an object of JSON, such as {"amount": 5000}')
    return found
