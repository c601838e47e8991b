"""`vitok serve fraud` as a process: which registry it goes by."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.engines.servers import until
from typer.testing import CliRunner

from vitok.console.main import app
from vitok.registry import Registry, attachment_of


def test_it_goes_by_the_registry_that_is_named(tmp_path: Path) -> None:
    home, shared = tmp_path / "home", tmp_path / "shared"
    registry = Registry(shared)
    registry.ledger.note("fraud", "of all homes", actor="ann", now=1)
    command = [sys.executable, "-m", "vitok", "serve", "fraud", "--home", str(home), "--registry", str(shared)]
    said = home / "service.json"
    with subprocess.Popen([*command, "--port", "0", "--quiet"], stderr=subprocess.PIPE, text=True) as child:
        try:
            until(lambda: said.exists() and said.read_text(), None)
            port = json.loads(said.read_text())["port"]

            def ready() -> dict[str, object]:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=20) as answer:
                    return dict(json.load(answer))

            assert ready()["registry"] == "ok"
            registry.ledger.note("fraud", "and another", actor="ann", now=2)
            until(lambda: ready()["revision"] == 2)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(20)
    registry.close()
    # Whoever opens the home from now on finds the same.
    assert str(attachment_of(home)) == str(shared)
    assert not (home / "registry").exists()
    told = CliRunner().invoke(app, ["doctor", "--home", str(home)]).output
    assert f"in {shared}" in told.replace("\n", "")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--packages", "s3://models"), "--packages"),
        (("--artifacts", "s3://runs"), "--artifacts"),
        (("--registry", "elsewhere", "--packages", "s3://models"), "must go with a database"),
        (("--registry", "http://localhost:8500"), "--registry"),
        (("--registry", "postgresql://ann:word@localhost/models", "--packages", "s3://models"), "PGPASSWORD"),
        (("--registry", "postgresql://ann@localhost/models"), "--packages"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    for command in (["serve", "fraud"], ["serve-models"]):
        if command == ["serve-models"] and "--artifacts" in options:
            continue
        home = tmp_path / command[-1]
        home.mkdir()
        result = CliRunner().invoke(app, [*command, "--home", str(home), *options])
        assert result.exit_code == 2, result.output
        assert told in result.stderr
        assert "word@" not in result.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--customers", "0"), "--customers: got 0, must be a whole number of at least 1"),
        (("--label-delay", "soon"), "--label-delay: got 'soon'"),
        (("--seed", "-1"), "--seed: got -1"),
        (("--days", "3", "--customers", "9"), "--days: got '3 days', must be at least 26 days"),
        (("--transactions", "no-such-file.csv"), "--transactions: got 'no-such-file.csv'"),
        (("--transactions", __file__), f"--transactions: got '{__file__}'"),
        (("--transactions", __file__, "--mapping", "price=AMT"), "--mapping: got 'price'"),
        (("--mapping", "amount=AMT"), "--mapping: got 'amount=AMT', must go with --transactions"),
        (("--protocol", "other"), "--protocol: got 'other'"),
        (("--json", "/"), "--json: got '/', must be a file"),
        (("--home", __file__), f"--home: got '{__file__}', must be a folder"),
        (("--home", f"{__file__}/home"), f"--home: got '{__file__}/home', must be a folder"),
    ],
)
def test_the_demo_names_the_option_that_is_wrong(tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(app, ["demo", "fraud", "--home", str(tmp_path / "home"), *options])
    assert (result.exit_code, f"vitok: {told}" in result.stderr) == (2, True), result.stderr
