"""Oracle: the library call that the command wraps, and the model's definition."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from vitok.console.batch_commands import batch
from vitok.models.convert import convert
from vitok.registry import Registry

app = typer.Typer()
app.command()(batch)


@pytest.fixture
def rows(tmp_path: Path) -> np.ndarray:
    X = np.random.default_rng(0).normal(size=(300, 2))
    pq.write_table(pa.table({"b": X[:, 1], "a": X[:, 0]}), tmp_path / "in.parquet")
    return X


def test_a_model_of_the_registry_and_of_a_folder(rows: np.ndarray, tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(max_depth=3).fit(rows, rows[:, 0])
    files = convert(tree, rows, names=["a", "b"]).files()
    registry = Registry(tmp_path / "home")
    registry.register("tree", files, now=0, actor="test")
    registry.close()
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for model in ("tree/1", "tree/latest", str(folder)):
        out = tmp_path / model.replace("/", "-").strip("-")
        command = [str(tmp_path / "in.parquet"), "--model", model, "--out", str(out), "--home", str(tmp_path / "home")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "done: 300 of 300 rows scored" in done.output
        found = pq.read_table(out / "part-000000.parquet")["score"].to_numpy()
        assert np.array_equal(found, tree.predict(rows))


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A folder with a model that adds two columns, beside a file of rows."""
    pq.write_table(pa.table({"amount": [1.0, 2.0], "age": [3.0, 4.0]}), tmp_path / "in.parquet")
    folder = tmp_path / "sum"
    folder.mkdir()
    (folder / "model.py").write_text("def load(folder):\n    return lambda t: {'y': t['x'].sum(axis=1)}\n")
    specs = {
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1]}],
    }
    (folder / "callable.json").write_text(json.dumps({"factory": "model.py:load", **specs}))
    (folder / "signature.json").write_text(json.dumps({"inputs": ["amount", "age"]}))
    return folder


def test_what_cannot_be_done_is_said(rows: np.ndarray, tmp_path: Path) -> None:
    command = [str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), "--home", str(tmp_path / "home")]
    for model in ("nothing", "none/1"):
        done = CliRunner().invoke(app, [*command, "--model", model])
        assert done.exit_code == 2
        assert "vitok:" in done.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--batch-rows", "0"), "--batch-rows: got 0, must be at least 1"),
        (("--checkpoint-every", "0"), "--checkpoint-every: got 0, must be at least 1"),
        (("--lifetime", "nan"), "--lifetime: got nan, must be a finite number of hours above 0"),
        (("--model", "nothing"), "--model: got 'nothing', must be a folder"),
        (("--columns", "amount"), "--columns: got 1, must be the 2 features"),
        (("--cloud", "moon"), "--cloud: got ['moon']"),
    ],
)
def test_what_is_wrong_is_named(options: tuple[str, ...], told: str, sums: Path) -> None:
    done = CliRunner().invoke(
        app, [str(sums.parent / "in.parquet"), "--out", str(sums.parent / "out"), "--model", str(sums), *options]
    )
    assert done.exit_code == 2, done.exception
    assert told in done.stderr


@pytest.mark.parametrize("signature", ["{oops", '{"x": 1}', "[]", '{"inputs": 5}', '{"inputs": [1, 2]}'])
def test_a_signature_that_cannot_be_read(signature: str, sums: Path) -> None:
    (sums / "signature.json").write_text(signature)
    command = [str(sums.parent / "in.parquet"), "--out", str(sums.parent / "out"), "--model", str(sums)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.exception
    assert "signature.json" in done.stderr
    named = CliRunner().invoke(app, [*command, "--columns", "amount,age"])
    assert named.exit_code == 0, named.output
