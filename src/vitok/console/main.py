"""The `vitok` command."""

import contextlib
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from vitok import __version__, settings
from vitok.clock import Clock, EventClock, SystemClock, duration
from vitok.console import feature_commands, feature_work
from vitok.console.batch_commands import batch
from vitok.console.contract_commands import contract_app
from vitok.console.export_commands import export_app
from vitok.console.key_commands import key_app
from vitok.console.load_commands import load
from vitok.console.model_serving import serve_models
from vitok.errors import InvalidInput, VitokError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The closed loop of production machine learning.")
serve_app = typer.Typer(no_args_is_help=True, help="Starts the service of a system, with its console.")
demo_app = typer.Typer(no_args_is_help=True, help="Runs the whole turn of a system, for real.")
app.add_typer(serve_app, name="serve")
app.add_typer(demo_app, name="demo")
feature_commands.app.add_typer(feature_work.app)
app.add_typer(feature_commands.app, name="features")
app.add_typer(contract_app, name="contract")
app.add_typer(key_app, name="keys")
app.add_typer(export_app, name="export")
app.command("batch")(batch)
app.command("load")(load)
app.command("serve-models")(serve_models)

Home = Annotated[Path | None, typer.Option(help="Folder of everything vitok writes; .vitok/fraud by default.")]


def run() -> None:
    """Runs the command; an error of vitok is one clear message, not a traceback."""
    try:
        app()
    except VitokError as error:
        _say(f"vitok: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(text: str) -> None:
    typer.echo(text, err=True)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Shows the version.")] = False) -> None:
    """Shows the version."""
    if version:
        typer.echo(f"vitok {__version__}")
        raise typer.Exit


@serve_app.command("fraud")
def serve_fraud(
    home: Home = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8200,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    clock: Annotated[str, typer.Option(help="'system', or 'events' for a replay of the past.")] = "system",
    durability: Annotated[str, typer.Option(help="'process' survives kill -9, 'fsync' a power cut.")] = "process",
    label_delay: Annotated[str, typer.Option(help="Age at which a label is taken to be known.")] = "7d",
    quiet: Annotated[bool, typer.Option("--quiet", help="Says nothing.")] = False,
) -> None:
    """Serves decisions on card transactions, their outcomes, and the console."""
    from vitok.console.pages import routes
    from vitok.serving import Running, serve
    from vitok.systems.fraud import FraudService, announce, application, observe

    clocks: dict[str, type[SystemClock] | type[EventClock]] = {"system": SystemClock, "events": EventClock}
    if clock not in clocks:
        raise InvalidInput("--clock", clock, "be system or events")
    if durability not in ("process", "fsync"):
        raise InvalidInput("--durability", durability, "be process or fsync")
    folder = home or settings.current().home / "fraud"
    folder.mkdir(parents=True, exist_ok=True)
    chosen: Clock = clocks[clock]()
    # A thread that packs a checkpoint must not hold the loop for the usual 5 ms.
    sys.setswitchinterval(0.0005)
    service = FraudService(folder, clock=chosen, durability="fsync" if durability == "fsync" else "process")
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
            _say(f"console   {running.url}/")
            _say(f"decisions POST {running.url}{service.path}")
            _say(f"API       {running.url}/openapi.json      stop with Ctrl-C")

    try:
        serve(application(service, pages=routes(service)), [service], host=host, port=port, ready=ready)
    finally:
        stop.set()
        if watcher is not None:
            watcher.join(10)
        with contextlib.suppress(FileNotFoundError):
            (folder / "service.json").unlink()
        service.close()


@demo_app.command("fraud")
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
    concept_change: Annotated[bool, typer.Option(help="Whether fraud changes its ways during the replay.")] = True,
    protocol: Annotated[str | None, typer.Option(help="'handbook': the published features, split and metric.")] = None,
    json: Annotated[Path | None, typer.Option(help="Writes the numbers to this file.")] = None,
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


@app.command()
def doctor(home: Home = None) -> None:
    """Says what is installed, which stores are in use, and whether they answer."""
    from vitok.console.doctor import examine

    report = examine(home or settings.current().home / "fraud")
    typer.echo(str(report))
    if not report.good:
        raise typer.Exit(1)
