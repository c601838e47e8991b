"""`vitok serve fraud` and `vitok demo fraud`: the service of card fraud behind its guard, and the whole turn."""

import contextlib
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from vitok import settings
from vitok.clock import Clock, EventClock, SystemClock, duration
from vitok.console.model_guarding import GuardPlan
from vitok.errors import InvalidInput

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]


def serve_fraud(
    home: Home = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8200,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    clock: Annotated[str, typer.Option(help="'system', or 'events' for a replay of the past.")] = "system",
    durability: Annotated[str, typer.Option(help="'process' survives kill -9, 'fsync' a power cut.")] = "process",
    label_delay: Annotated[str, typer.Option(help="Age at which a label is taken to be known.")] = "7d",
    deadline: Annotated[float, typer.Option(help="Seconds from arrival after which rules answer.")] = 0.05,
    keys: Annotated[Path | None, typer.Option(help="File of keys ('vitok keys'): who has none is refused.")] = None,
    key_limit: Annotated[str | None, typer.Option(help="Requests a key, or address: 100/1s, 100/1s:200.")] = None,
    user_limit: Annotated[str | None, typer.Option(help="Requests a user, likewise.")] = None,
    user_header: Annotated[str, typer.Option(help="Header that names the user.")] = "x-user-id",
    allow: Annotated[list[str] | None, typer.Option(help="Network that may ask; may be repeated.")] = None,
    deny: Annotated[list[str] | None, typer.Option(help="Network that may not; may be repeated.")] = None,
    trust_proxy: Annotated[list[str] | None, typer.Option(help="Proxy whose X-Forwarded-For is believed.")] = None,
    door: Annotated[str, typer.Option(help="'hot', or 'asgi' for every request through ASGI.")] = "hot",
    workers: Annotated[int, typer.Option(help="Processes; 1 is what this system allows.")] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificates in PEM, for TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Their key in PEM.")] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="Says nothing.")] = False,
) -> None:
    """Serves decisions on card transactions, their outcomes, and the console."""
    from vitok.console.pages import routes
    from vitok.serving import Running, serve
    from vitok.serving.server import Tls
    from vitok.systems.fraud import FraudService, announce, application, observe
    from vitok.systems.fraud.edge import DECIDE, one_process

    clocks: dict[str, type[SystemClock] | type[EventClock]] = {"system": SystemClock, "events": EventClock}
    if clock not in clocks:
        raise InvalidInput("--clock", clock, "be system or events")
    if durability not in ("process", "fsync"):
        raise InvalidInput("--durability", durability, "be process or fsync")
    if door not in ("hot", "asgi"):
        raise InvalidInput("--door", door, "be hot or asgi")
    one_process(workers)
    if (tls_cert is None) != (tls_key is None):
        raise InvalidInput("--tls-key", tls_key, "go with --tls-cert")
    tls = Tls(tls_cert, tls_key) if tls_cert is not None and tls_key is not None else None
    guard = GuardPlan(
        keys=keys,
        key_limit=key_limit,
        user_limit=user_limit,
        user_header=user_header,
        allow=tuple(allow or ()),
        deny=tuple(deny or ()),
        trust=tuple(trust_proxy or ()),
    ).guard()
    folder = home or settings.current().home / "fraud"
    folder.mkdir(parents=True, exist_ok=True)
    chosen: Clock = clocks[clock]()
    # A thread that packs a checkpoint must not hold the loop for the usual 5 ms.
    sys.setswitchinterval(0.0005)
    service = FraudService(
        folder, clock=chosen, durability="fsync" if durability == "fsync" else "process", deadline=deadline
    )
    stop = threading.Event()
    # In a replay of the past, whoever sends it also watches it.
    watcher = None
    if clock == "system":
        options = {"clock": chosen, "label_delay": duration(label_delay), "stop": stop}
        watcher = threading.Thread(target=observe, args=(folder,), kwargs=options, name="observer", daemon=True)
        watcher.start()

    def ready(running: Running) -> None:
        announce(folder, running.port)
        if not quiet:
            typer.echo(f"console   {running.url}/", err=True)
            typer.echo(f"decisions POST {running.url}{service.path}", err=True)
            typer.echo(f"API       {running.url}/openapi.json      stop with Ctrl-C", err=True)

    app = application(service, pages=routes(service), guard=guard)
    endpoint = service if guard is None else guard.before(service, DECIDE)
    try:
        serve(app, [endpoint], host=host, port=port, ready=ready, tls=tls, door="hot" if door == "hot" else "asgi")
    finally:
        stop.set()
        if watcher is not None:
            watcher.join(10)
        with contextlib.suppress(FileNotFoundError):
            (folder / "service.json").unlink()
        service.close()


def demo_fraud(
    home: Home = None,
    transactions: Annotated[
        Path | None, typer.Option(help="CSV or Parquet file, or a folder of them; by default data are simulated.")
    ] = None,
    mapping: Annotated[
        list[str] | None, typer.Option(help="Our column name = yours, such as amount=AMT; may be repeated.")
    ] = None,
    label_delay: Annotated[str, typer.Option(help="Assumed age of a label where the file has no label time.")] = "7d",
    customers: Annotated[int, typer.Option(help="Customers to simulate.")] = 2500,
    days: Annotated[int, typer.Option(help="Days to simulate.")] = 121,
    seed: Annotated[int, typer.Option(help="Seed of the simulation and of training.")] = 0,
    protocol: Annotated[str | None, typer.Option(help="'handbook': the published features, split and metric.")] = None,
    json: Annotated[Path | None, typer.Option(help="Writes the numbers to this file.")] = None,
    *,
    concept_change: Annotated[bool, typer.Option(help="Whether fraud changes its ways during the replay.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Runs again also where nothing has changed.")] = False,
) -> None:
    """Runs contract, features, training, gate, service, monitoring, retraining, canary and rollback on card data."""
    from vitok.systems.fraud import run_demo

    with settings.using(seed=seed):
        run_demo(
            home=home or settings.current().home / "fraud",
            transactions=transactions,
            mapping=_pairs(mapping or []),
            label_delay=label_delay,
            n_customers=customers,
            days=days,
            concept_change=concept_change,
            protocol=protocol,
            json_file=json,
            fresh=fresh,
        )


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        ours, mark, theirs = text.partition("=")
        if not mark or not ours or not theirs:
            raise InvalidInput("--mapping", text, "look like ours=theirs, such as amount=AMT")
        pairs[ours.strip()] = theirs.strip()
    return pairs
