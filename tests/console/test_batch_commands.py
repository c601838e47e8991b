"""Oracle: the library call that the command wraps, and the model's definition."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from tests.serving.batch_files import put_batch_model, same, spark_environment
from typer.testing import CliRunner

from vitok.console import batch_commands
from vitok.console.batch_commands import batch
from vitok.models.convert import convert
from vitok.registry import Registry
from vitok.serving.batch_inference import BatchResult, score_files
from vitok.serving.runtime import Runtime

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
    for model in ("nothing", "none/1", "none/Productoin"):
        done = CliRunner().invoke(app, [*command, "--model", model])
        assert done.exit_code == 2
        assert "vitok:" in done.output


def test_a_folder_of_versions_says_which_there_are(sums: Path) -> None:
    version = sums.parent / "models" / "1"
    version.parent.mkdir()
    sums.rename(version)
    command = [str(sums.parent / "nowhere.parquet"), "--out", str(sums.parent / "out"), "--model"]
    done = CliRunner().invoke(app, [*command, str(version.parent)])
    assert done.exit_code == 2
    assert f"must be the folder of one version. There is {version}" in done.stderr
    done = CliRunner().invoke(app, [*command, str(version)])
    assert f"nowhere.parquet' does not exist; there is: {sums.parent / 'in.parquet'}" in done.stderr
    assert not (sums.parent / "out").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--batch-rows", "0"), "--batch-rows: got 0, must be at least 1"),
        (("--checkpoint-every", "0"), "--checkpoint-every: got 0, must be at least 1"),
        (("--lifetime", "nan"), "--lifetime: got nan, must be a finite number of hours above 0"),
        (("--model", "nothing"), "--model: got 'nothing', must be a folder"),
        (("--columns", "amount"), "--columns: got 1, must be the 2 features"),
        (("--cloud", "moon"), "--cloud: got ['moon']"),
        (("--keep", "score"), "--keep and --columns: got"),
        (("--wave", "0"), "--wave: got 0, must be at least 1"),
        (("--wave", "2"), "--wave: got 2, must come with --spark. Here a checkpoint is every shard"),
        (("--spark", "spark://local", "--lifetime", "2"), "--lifetime: got 2.0, must not come with --spark"),
        (("--spark", "yarn"), "--spark: got 'yarn', must be the address of a master. Write spark://host:7077"),
    ],
)
def test_what_is_wrong_is_named(options: tuple[str, ...], told: str, sums: Path) -> None:
    done = CliRunner().invoke(
        app, [str(sums.parent / "in.parquet"), "--out", str(sums.parent / "out"), "--model", str(sums), *options]
    )
    assert done.exit_code == 2, done.exception
    assert told in done.stderr


def test_without_spark_the_extra_is_named(sums: Path) -> None:
    if importlib.util.find_spec("pyspark") is not None:
        pytest.skip("pyspark is installed here")
    command = [str(sums.parent / "in.parquet"), "--out", str(sums.parent / "out"), "--model", str(sums)]
    done = CliRunner().invoke(app, [*command, "--spark", "spark://local[1]"])
    assert done.exit_code == 2, done.exception
    assert "pip install 'vitok[spark]'" in done.stderr


def test_what_was_begun_on_spark_is_ended_here(sums: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Spark itself is in the test of the library; here is what the words become.
    asked: dict[str, object] = {}

    def on_spark(spark: str, package: Path, inputs: object, out: Path, **options: object) -> BatchResult:
        asked.update(options, spark=spark, package=package)
        for option in ("wave", "version", "checkpoint_every"):
            del options[option]
        version = str(asked["version"])
        return score_files(Runtime.load(package, version=version), inputs, out, checkpoint_every=1, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(batch_commands, "score_files_on_spark", on_spark)
    command = [str(sums.parent / "in.parquet"), "--out", str(sums.parent / "out"), "--model", str(sums)]
    on = ["--spark", "spark://host:7077", "--wave", "3", "--checkpoint-every", "7"]
    done = CliRunner().invoke(app, [*command, *on])
    assert done.exit_code == 0, done.output
    assert (asked["spark"], asked["package"], asked["version"]) == ("spark://host:7077", sums, str(sums))
    assert (asked["wave"], asked["checkpoint_every"], asked["names"]) == (3, 7, ["amount", "age"])
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "2 of 2 rows" in again.output


@pytest.mark.jvm
@pytest.mark.xdist_group("spark")
def test_the_command_on_a_local_spark(tmp_path: Path) -> None:
    package = put_batch_model(tmp_path)
    values = np.random.default_rng(0).normal(size=(500, 2))
    values[::90, 0] = 666
    pq.write_table(pa.table({"a": values[:, 0], "b": values[:, 1]}), tmp_path / "in.parquet")
    command = [sys.executable, "-m", "vitok", "batch", str(tmp_path / "in.parquet"), "--model", str(package)]
    command += ["--columns", "a,b", "--batch-rows", "32"]
    environment = spark_environment(tmp_path)
    here, there = tmp_path / "here", tmp_path / "there"
    for out, options in ((here, []), (there, ["--spark", "spark://local[2]", "--checkpoint-every", "2"])):
        done = subprocess.run(
            [*command, "--out", str(out), *options],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "494 of 500 rows scored, 6 in quarantine" in done.stdout
    assert same(here, there)
    environment["JAVA_HOME"] = str(tmp_path)
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "no java"), "--spark", "spark://local[2]"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "vitok: there is no Spark at spark://local[2]: [JAVA_GATEWAY_EXITED]" in done.stderr
    assert "has Java 17 or newer" in done.stderr


@pytest.mark.parametrize("signature", ["{oops", '{"x": 1}', "[]", '{"inputs": 5}', '{"inputs": [1, 2]}'])
def test_a_signature_that_cannot_be_read(signature: str, sums: Path) -> None:
    (sums / "signature.json").write_text(signature)
    command = [str(sums.parent / "in.parquet"), "--out", str(sums.parent / "out"), "--model", str(sums)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2, done.exception
    assert "signature.json" in done.stderr
    named = CliRunner().invoke(app, [*command, "--columns", "amount,age"])
    assert named.exit_code == 0, named.output
