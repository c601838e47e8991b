"""`vitok backup` and `vitok restore`: what comes back answers as what was registered."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from vitok.console.backup_commands import backup, clean, restore
from vitok.models.convert import convert
from vitok.registry import Registry, at_least, evaluate

ACCEPTED = evaluate([at_least("x", 1, 0)])
app = typer.Typer()
app.command("backup")(backup)
app.command("restore")(restore)
app.command("clean")(clean)


@pytest.fixture(scope="module")
def files() -> dict[str, Any]:
    import sklearn.tree

    X = np.random.default_rng(3).normal(size=(200, 3))
    model = sklearn.tree.DecisionTreeClassifier(random_state=0, max_depth=3).fit(X, X[:, 0] > 0)
    return dict(convert(model, X[:50], names=["a", "b", "c"]).files())


def serve(home: Path, files: dict[str, Any]) -> None:
    registry = Registry(home)
    registry.register("fraud", files, now=1, actor="train")
    registry.ledger.record_gate("fraud", 1, ACCEPTED, now=2, actor="gate")
    registry.ledger.promote("fraud", 1, "Production", reason="first", actor="ann", now=3)
    registry.register("shop", {"notes.json": []}, now=4, actor="train")
    registry.close()


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    # Errors come as one message, never as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_restored_home_answers(tmp_path: Path, files: dict[str, Any]) -> None:
    home = tmp_path / "home"
    serve(home, files)
    made = run("backup", tmp_path / "backup", "--home", home)
    assert made.exit_code == 0, made.output
    assert "restored for a check: 2 packages; ledger intact: 4 entries" in made.stdout
    assert "fraud/1 is in Production, answers and scores its examples" in made.stdout
    assert "shop: nothing is in Production" in made.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "home"]
    restored = run("restore", tmp_path / "backup", "--home", tmp_path / "elsewhere")
    assert "fraud/1 is in Production, answers and scores its examples" in restored.stdout


def test_a_model_that_answers_otherwise_is_found(tmp_path: Path, files: dict[str, Any]) -> None:
    home = tmp_path / "home"
    examples = files["examples.json"]
    serve(home, {**files, "examples.json": {**examples, "outputs": [0.123 for _ in examples["outputs"]]}})
    made = run("backup", tmp_path / "backup", "--home", home)
    assert made.exit_code == 2
    assert "not the one that was registered, or this machine computes differently" in made.stderr
    assert run("backup", tmp_path / "second", "--home", home, "--no-verify").exit_code == 0


def test_a_package_without_a_model_is_said(tmp_path: Path) -> None:
    serve(tmp_path / "home", {"notes.json": []})
    assert "holds no model that is served" in run("backup", tmp_path / "b", "--home", tmp_path / "home").stdout


def test_clean_up_says_first_and_removes_then(tmp_path: Path) -> None:
    serve(tmp_path, {"notes.json": []})
    registry = Registry(tmp_path)
    registry.register("shop", {"notes.json": []}, now=5, actor="train")
    registry.close()
    assert "1 folder would be removed" in run("clean", "--home", tmp_path).stdout
    refused = run("clean", "--home", tmp_path, "--no-dry-run")
    assert (refused.exit_code, "--by: got" in refused.stderr) == (2, True)
    done = run("clean", "--home", tmp_path, "--no-dry-run", "--by", "ann")
    assert "1 folder removed" in done.stdout
    assert "package shop/1" in done.stdout
    assert "0 bytes in 0 folders" in run("clean", "--home", tmp_path).stdout


def test_what_cannot_be_done_is_one_message(tmp_path: Path) -> None:
    for arguments, text in (
        (("backup", "gs://bucket/prefix", "--home", tmp_path), "TARGET: got 'gs://bucket/prefix', must be a folder"),
        (("backup", tmp_path / "b", "--home", tmp_path, "--packages", "s3://b"), "--packages: got 's3://b', must go"),
        (("backup", tmp_path / "b", "--home", tmp_path / "none"), "home"),
        (("restore", tmp_path / "b", "--home", tmp_path / "h"), "does not exist"),
        (("clean", "--home", tmp_path / "none"), "registry in"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert text in result.stderr
