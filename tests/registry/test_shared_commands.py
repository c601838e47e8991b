"""`vitok backup`, `vitok restore` and `vitok clean` with a database and buckets."""

from pathlib import Path

import typer
from tests.registry.conftest import accepted
from tests.registry.servers import PostgresServer, S3Server
from typer.testing import CliRunner, Result

from vitok.console.backup_commands import backup, clean, restore
from vitok.registry import Registry

app = typer.Typer()
app.command("backup")(backup)
app.command("restore")(restore)
app.command("clean")(clean)


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def serve(registry: Registry) -> None:
    registry.register("fraud", {"notes.json": [1]}, now=1, actor="train")
    registry.ledger.record_gate("fraud", 1, accepted(), now=2, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=3)


def test_a_home_to_a_bucket_and_back(tmp_path: Path, bucket: str) -> None:
    home = Registry(tmp_path / "home")
    serve(home)
    home.close()
    place = bucket.replace("?", "/monday?")
    made = run("backup", place, "--home", tmp_path / "home")
    assert made.exit_code == 0, made.output
    assert f"sent to {place.partition('?')[0]}" in made.stdout
    assert "restored for a check: 1 packages; ledger intact: 3 entries" in made.stdout
    assert "fraud/1 is in Production" in made.stdout
    back = run("restore", place, "--home", tmp_path / "elsewhere")
    assert "fraud/1 is in Production" in back.stdout
    # What lies in a folder of one's own is sent, and not made again.
    kept = run("backup", bucket.replace("?", "/kept?"), "--home", tmp_path / "home", "--work", tmp_path / "w")
    assert kept.exit_code == 0, kept.output
    sent = run("backup", bucket.replace("?", "/again?"), "--home", tmp_path / "none", "--work", tmp_path / "w")
    assert sent.exit_code == 0, sent.output


def test_stores_to_a_bucket_and_to_other_stores(
    tmp_path: Path, shared: Registry, database: str, bucket: str, postgres_server: PostgresServer, s3_server: S3Server
) -> None:
    serve(shared)
    place = s3_server.fresh()
    made = run("backup", place, "--home", database, "--packages", bucket)
    assert made.exit_code == 0, made.output
    assert "restored for a check: 1 packages" in made.stdout
    other = postgres_server.database("other"), s3_server.fresh()
    back = run("restore", place, "--home", other[0], "--packages", other[1])
    assert back.exit_code == 0, back.output
    assert "1 packages; ledger intact: 3 entries" in back.stdout
    assert "fraud/1 is in Production" in back.stdout
    again = run("restore", place, "--home", other[0], "--packages", other[1])
    assert (again.exit_code, "never goes over" in again.stderr) == (2, True)


def test_clean_wants_the_logs(tmp_path: Path, shared: Registry, database: str, bucket: str) -> None:
    serve(shared)
    refused = run("clean", "--home", database, "--packages", bucket)
    assert (refused.exit_code, "--log" in refused.stderr) == (2, True)
    nowhere = run("clean", "--home", database, "--packages", bucket, "--log", tmp_path / "nowhere")
    assert nowhere.exit_code == 2
