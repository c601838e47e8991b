"""The `vitok` command."""

import sys
from typing import Annotated

import typer

from vitok import __version__
from vitok.console import feature_commands, feature_work
from vitok.console.alert_commands import alert_app
from vitok.console.backup_commands import backup, clean, restore
from vitok.console.batch_commands import batch
from vitok.console.contract_commands import contract_app
from vitok.console.cost_commands import cost_app
from vitok.console.decision_commands import log_app, replay
from vitok.console.exits import FAILED
from vitok.console.export_commands import export_app
from vitok.console.fraud_commands import demo_fraud, serve_fraud
from vitok.console.guard_commands import guard_app
from vitok.console.incident_commands import incident_app
from vitok.console.key_commands import key_app
from vitok.console.label_commands import label_app
from vitok.console.load_commands import load
from vitok.console.model_routing import route_app
from vitok.console.model_serving import serve_models
from vitok.console.printed import printable
from vitok.console.registry_commands import serve_registry
from vitok.console.release_commands import release_app
from vitok.console.run_commands import run_app
from vitok.console.shared_options import Home, home_of
from vitok.errors import VitokError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The closed loop of production machine learning.")
serve_app = typer.Typer(no_args_is_help=True, help="Starts the service of a system, with its console.")
demo_app = typer.Typer(no_args_is_help=True, help="Runs the whole turn of a system, for real.")
app.add_typer(serve_app, name="serve")
app.add_typer(demo_app, name="demo")
feature_commands.app.add_typer(feature_work.app)
app.add_typer(feature_commands.app, name="features")
app.add_typer(contract_app, name="contract")
app.add_typer(key_app, name="keys")
app.add_typer(guard_app, name="guard")
app.add_typer(cost_app, name="cost")
app.add_typer(export_app, name="export")
app.add_typer(route_app, name="routes")
app.add_typer(alert_app, name="alerts")
app.add_typer(incident_app, name="incidents")
app.add_typer(release_app, name="releases")
app.add_typer(log_app, name="log")
app.add_typer(label_app, name="labels")
app.add_typer(run_app, name="runs")
app.command("backup")(backup)
app.command("restore")(restore)
app.command("clean")(clean)
app.command("replay")(replay)
app.command("batch")(batch)
app.command("load")(load)
app.command("serve-models")(serve_models)
serve_app.command("fraud")(serve_fraud)
serve_app.command("registry")(serve_registry)
demo_app.command("fraud")(demo_fraud)


def run() -> None:
    """Runs the command; an error of vitok is one clear message, not a traceback."""
    try:
        app()
    except VitokError as error:
        typer.echo(f"vitok: {printable(str(error))}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(130)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Shows the version.")] = False) -> None:
    """Shows the version."""
    if version:
        typer.echo(f"vitok {__version__}")
        raise typer.Exit


@app.command()
def doctor(home: Home = None) -> None:
    """Says what is installed, which stores are in use, and whether they answer."""
    from vitok.console.doctor import examine

    report = examine(home_of(home))
    typer.echo(str(report))
    if not report.good:
        raise typer.Exit(1)
