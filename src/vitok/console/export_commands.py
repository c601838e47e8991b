"""`vitok export`: what other systems read, such as the manifests with which a cluster runs a service."""

import json as jsonlib
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vitok.console.exits import plain_errors
from vitok.console.option_names import options_named
from vitok.errors import InvalidInput, NotFound

export_app = typer.Typer(no_args_is_help=True, help="Writes what other systems read.")


@dataclass(frozen=True)
class _Known:
    # How a system is started in a container, and whether it keeps its state in its folder.
    command: tuple[str, ...]
    port: int
    volume: str = ""
    live: str = "/healthz"
    ready: str = "/readyz"
    models: bool = False
    wait: str = "vitok_inference_wait_seconds"


_SYSTEMS = {
    "fraud": _Known(
        ("vitok", "serve", "fraud", "--home", "/var/lib/vitok/fraud", "--host", "0.0.0.0", "--port", "8200"),  # noqa: S104
        8200,
        "10Gi",
    ),
    "features": _Known(
        (
            *("vitok", "features", "serve", "--store", "$(VITOK_ONLINE)", "--no-sketches"),
            *("--host", "0.0.0.0", "--port", "8300"),  # noqa: S104
        ),
        8300,
        wait="vitok_feature_wait_seconds",
    ),
    # The models lie in the image: what answers is then as fixed as the code, and a roll-back is one of the image.
    "models": _Known(
        ("vitok", "serve-models", "--models", "/models", "--host", "0.0.0.0", "--port", "8300"),  # noqa: S104
        8300,
        live="/v2/health/live",
        ready="/v2/health/ready",
        models=True,
    ),
}
_OPTIONS = {
    **{name: f"--{name}" for name in ("image", "namespace", "command", "port", "live", "ready", "replicas", "rate")},
    **{name: f"--{name}" for name in ("memory", "gateway", "volume")},
    "most_replicas": "--most-replicas",
    "settings": "--setting",
    "secrets": "--secret",
    "hostnames": "--hostname",
    "canary": "--canary-image",
    "canary_image": "--canary-image",
    "canary_share": "--canary-share",
}


@export_app.callback()
def _export() -> None:
    # With a callback typer keeps the name of a lone command.
    pass


@export_app.command("k8s")
def k8s(
    system: Annotated[str, typer.Argument(help="fraud, features, models, or any name with --command and --port.")],
    image: Annotated[str, typer.Option(help="The image that runs, best by digest.")],
    *,
    name: Annotated[str, typer.Option(help="Name of the objects; the system's by default.")] = "",
    namespace: Annotated[str, typer.Option(help="Namespace; that of kubectl by default.")] = "",
    command: Annotated[str, typer.Option(help="What runs in the image, as in a shell, without its features.")] = "",
    port: Annotated[int | None, typer.Option(help="Where it listens.")] = None,
    live: Annotated[str, typer.Option(help="Path that answers while it lives; /healthz by default.")] = "",
    ready: Annotated[str, typer.Option(help="Path that answers 200 once it can work; /readyz by default.")] = "",
    replicas: Annotated[int | None, typer.Option(help="Fewest replicas; 2, or 1 where state lies in a folder.")] = None,
    most_replicas: Annotated[int, typer.Option(help="Most replicas.")] = 20,
    rate: Annotated[float | None, typer.Option(help="Requests a second that it must bear.")] = None,
    cpu_us: Annotated[float | None, typer.Option(help="Processor microseconds a request, as measured.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Folder of logs, <home>/log, out of whose decisions that is read.")
    ] = None,
    memory: Annotated[str, typer.Option(help="Memory of a replica.")] = "1Gi",
    queue_delay: Annotated[float, typer.Option(help="Mean wait, in ms, above which replicas are added.")] = 5.0,
    setting: Annotated[list[str] | None, typer.Option(help="Environment variable, NAME=value; repeatable.")] = None,
    secret: Annotated[list[str] | None, typer.Option(help="Variable out of a Secret, NAME=secret/key.")] = None,
    canary_image: Annotated[str, typer.Option(help="Image of a canary.")] = "",
    canary_share: Annotated[float, typer.Option(help="Share of the requests that it gets.")] = 0.05,
    gateway: Annotated[str, typer.Option(help="Gateway that splits the requests: name or namespace/name.")] = "",
    hostname: Annotated[list[str] | None, typer.Option(help="Host name of the gateway's route; repeatable.")] = None,
    volume: Annotated[str | None, typer.Option(help="Size of the volume of its state; '' for none.")] = None,
    rule: Annotated[
        bool, typer.Option("--adapter-rule", help="Writes the rule of prometheus-adapter instead.")
    ] = False,
    wait: Annotated[
        str, typer.Option("--wait-metric", help="Histogram of waits that the service shows, for --adapter-rule.")
    ] = "",
    json: Annotated[bool, typer.Option("--json", help="Writes a JSON list instead of YAML.")] = False,
) -> None:
    """Writes Kubernetes manifests of a service to standard output; applies nothing."""
    with plain_errors(), options_named(name="--name" if name else "SYSTEM", **_OPTIONS):
        from vitok.serving.kubernetes import Canary, Deployed, SecretKey, adapter_rule, manifests, to_yaml

        known = _SYSTEMS.get(system)
        if known is None and not (command and port is not None):
            raise NotFound("system", system, [*_SYSTEMS, "any other with --command and --port"])
        known = known or _Known((), 0)
        size = known.volume if volume is None else volume
        if rule and size:
            fix = "What keeps its state in its folder runs once and has no autoscaler"
            raise InvalidInput("--adapter-rule", system, "be of a service with replicas", fix)
        cost = _cost(cpu_us, log, rate)
        if not 1e-3 <= queue_delay < 3_600_000:
            raise InvalidInput("--queue-delay", queue_delay, "be milliseconds, from 0.001 to an hour")
        secrets = {}
        for text, (variable, place) in _pairs("--secret", secret, "NAME=secret/key"):
            where, mark, key = place.partition("/")
            if not mark:
                raise InvalidInput("--secret", text, "look like NAME=secret/key")
            secrets[variable] = SecretKey(where, key)
        service = Deployed(
            name=name or system,
            namespace=namespace,
            image=image,
            command=_words(command) or (*known.command, *(("--max-memory", _half(memory)) if known.models else ())),
            port=known.port if port is None else port,
            live=live or known.live,
            ready=ready or known.ready,
            replicas=replicas if replicas is not None else (1 if size else 2),
            most_replicas=most_replicas,
            rate=rate,
            cpu_seconds=cost,
            memory=memory,
            queue_delay=queue_delay / 1e3,
            settings=dict(pair for _, pair in _pairs("--setting", setting, "NAME=value")),
            secrets=secrets,
            canary=Canary(image=canary_image, share=canary_share) if canary_image else None,
            gateway=gateway,
            hostnames=tuple(hostname or ()),
            volume=size,
        )
        objects = [adapter_rule(service, series=wait or known.wait)] if rule else manifests(service)
        typer.echo(jsonlib.dumps(objects, indent=2) if json else to_yaml(objects), nl=json)


def _words(command: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise InvalidInput("--command", command, f"be words as in a shell: {error}") from None


def _half(memory: str) -> str:
    # What models may take of a replica's memory: beyond its limit the kernel ends it without a word.
    size = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}.get(memory[-2:])
    if size is None or not memory[:-2].isdecimal():
        return "1M"  # of a size that is none the manifest says what is wrong
    return f"{max((int(memory[:-2]) << size) >> 21, 1)}M"


def _cost(cpu_us: float | None, log: Path | None, rate: float | None) -> float | None:
    if cpu_us is not None and log is not None:
        raise InvalidInput("--cpu-us", cpu_us, "not be given beside --log, which says it too")
    if cpu_us is not None and not 0 < cpu_us < math.inf:
        raise InvalidInput("--cpu-us", cpu_us, "be microseconds above 0")
    if rate is not None and cpu_us is None and log is None:
        raise InvalidInput("--cpu-us", None, "be given with --rate, or --log", "Measure it: the mean cost of decisions")
    if log is not None:
        return _measured(log)
    return None if cpu_us is None else cpu_us / 1e6


def _pairs(option: str, texts: list[str] | None, form: str) -> list[tuple[str, tuple[str, str]]]:
    pairs = []
    for text in texts or []:
        variable, mark, value = text.partition("=")
        if not mark:
            raise InvalidInput(option, text, f"look like {form}")
        pairs.append((text, (variable, value)))
    return pairs


def _measured(log: Path) -> float:
    """Returns the mean processor seconds of the decisions in a log."""
    from vitok import decisions

    found = decisions.query(log, "SELECT avg(cost) AS cost, count(*) AS n FROM decisions")
    cost, n = found.row(0)
    if not n or cost is None or not cost > 0:
        raise InvalidInput("--log", str(log), "hold decisions with a cost")
    return float(cost)
