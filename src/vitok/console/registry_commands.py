"""`vitok serve registry`: the registry over HTTP, for any number of servers on one database and one bucket."""

import contextlib
import ipaddress
import json as codec
from pathlib import Path
from typing import Annotated

import typer

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
from vitok.errors import InvalidInput, NotFound
from vitok.guard import KeyRing, KeyStore
from vitok.registry import Registry, Tracker


def serve_registry(
    *,
    home: HomeAt = None,
    packages: PackagesAt = None,
    artifacts: ArtifactsAt = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the packages in use, if the registry is a database.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="File of the keys, which vitok keys makes; needed unless only this machine may ask."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8500,
    max_body: Annotated[int, typer.Option(help="Longest package in bytes.")] = 1 << 30,
    json: Annotated[bool, typer.Option("--json", help="Says in JSON where it is to be found.")] = False,
) -> None:
    """Serves the registry until SIGTERM or SIGINT; several may serve the same database and bucket."""
    from vitok.serving import Running, serve
    from vitok.serving.registry_service import PackageEndpoint, RegistryDesk, registry_application

    def ready(running: Running) -> None:
        typer.echo(codec.dumps({"url": running.url}) if json else f"the registry answers at {running.url}")

    with plain_errors(), options_named(cache="--cache", **REGISTRY_OPTIONS), contextlib.ExitStack() as stack:
        if keys is None and not _is_loopback(host):
            raise InvalidInput("--keys", None, f"be given where others than this machine may ask, as by --host {host}")
        if keys is not None and not keys.is_file():
            raise NotFound("file of keys", str(keys))
        only_with_a_database("--home", home, packages=packages, artifacts=artifacts)
        place = home if home is not None and is_database(home) else str(folder_of(home))
        tracker = None
        if not is_database(place):
            tracker = Tracker(place)
        elif artifacts is not None:
            tracker = Tracker(place, artifacts=artifacts)
        registry = stack.enter_context(contextlib.closing(Registry(place, packages=packages, cache=cache)))
        ring = None if keys is None else KeyRing(KeyStore(keys))
        desk = RegistryDesk(registry, keys=ring, tracker=tracker)
        endpoint = stack.enter_context(contextlib.closing(PackageEndpoint(desk)))
        serve(registry_application(desk), [endpoint], host=host, port=port, ready=ready, max_body=max_body)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
