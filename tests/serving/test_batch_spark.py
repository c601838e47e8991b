"""Batches on a local Spark. Oracle: the same job by `score_files`, equal in every value."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serving.batch_files import NAMES, put_batch_model, read, same, spark_environment

from vitok.errors import InvalidInput, ServiceError
from vitok.serving.batch_inference import score_files
from vitok.serving.batch_manifest import InputFile, Manifest, Shard
from vitok.serving.batch_shards import QUARANTINE
from vitok.serving.batch_spark import _cause, _plan, _reason, score_files_on_spark
from vitok.serving.runtime import Runtime


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return put_batch_model(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three files of other lengths, with rows that cannot be scored, and one without rows."""
    for seed, n in enumerate((1000, 0, 37, 530)):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=n)
        a[5:n:97] = 666
        table = pa.table({"a": a, "b": rng.normal(size=n), "key": np.arange(n) + 10_000 * seed})
        path = tmp_path / "in" / f"{seed}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path, row_group_size=70)
    return tmp_path / "in"


def on_spark(tmp_path: Path, package: Path, inputs: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs jobs in one driver, with this environment's packages and Spark from its own."""
    environment = spark_environment(tmp_path) | {"PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, Path(__file__).with_name("batch_spark_runner.py"), "spark://local[2]", package, inputs]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "spark"), json.dumps({"jobs": [{"names": NAMES} | job for job in jobs]})],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answers: list[dict[str, Any]] = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    return answers


@pytest.mark.jvm
@pytest.mark.xdist_group("spark")
def test_on_spark_as_on_one_machine(package: Path, rows: Path, tmp_path: Path) -> None:
    runtime = Runtime.load(package)
    local = score_files(runtime, rows, tmp_path / "local", names=NAMES, keep=["key"], batch_rows=32)
    # A job that is begun here is ended on Spark.
    begun = tmp_path / "begun"
    score_files(
        runtime,
        rows,
        begun,
        names=NAMES,
        keep=["key"],
        batch_rows=32,
        checkpoint_every=3,
        watch=_Gone(3),  # type: ignore[arg-type]
    )
    left = len(read(begun))
    for mark in (tmp_path / "model").glob("loaded-*"):
        mark.unlink()
    job: dict[str, Any] = {"keep": ["key"], "batch_rows": 32, "checkpoint_every": 2, "wave": 5}
    whole, first, second, ended, refused, elsewhere = on_spark(
        tmp_path,
        package,
        rows,
        job,
        job | {"out": str(tmp_path / "twice"), "stop_after": 2},
        job | {"out": str(tmp_path / "twice"), "address": "spark://local[2]"},
        job | {"out": str(begun)},
        job | {"out": str(tmp_path / "twice"), "keep": []},
        job | {"out": str(tmp_path / "other"), "address": "spark://local[7]"},
    )
    expected = {"done": True, "scored": local.scored, "quarantined": local.quarantined}
    assert whole.items() >= (expected | {"resumed": 0, "notice": None}).items()
    assert same(tmp_path / "spark", tmp_path / "local")
    # 1,567 rows in ranges of 64 that end with their file: 16 + 1 + 9, five a wave.
    assert (whole["shards"], whole["waves"]) == (26, 6)

    assert (first["done"], first["notice"], first["shards"]) == (False, "taken away", 10)
    assert second.items() >= (expected | {"resumed": 640}).items()
    assert same(tmp_path / "twice", tmp_path / "local")
    assert ended["done"]
    assert ended["resumed"] >= left > 0
    assert same(begun, tmp_path / "local")
    assert refused["error"].startswith("Conflict: ")
    assert "keep differ" in refused["error"]
    assert "be the master of the session that is there, local[2]" in elsewhere["error"]

    # The driver, and the Python processes of the one executor, of which Spark keeps as many as there are cores.
    loaded = len(list((tmp_path / "model").glob("loaded-*")))
    assert 2 <= loaded <= 5


@pytest.mark.jvm
@pytest.mark.xdist_group("spark")
def test_what_goes_wrong_on_an_executor_is_said(package: Path, rows: Path, tmp_path: Path) -> None:
    # What cannot be written: a file lies where the quarantine would be.
    out = tmp_path / "spark"
    out.mkdir()
    (out / QUARANTINE).write_text("in the way")
    (found,) = on_spark(tmp_path, package, rows, {"batch_rows": 32, "checkpoint_every": 2, "wave": 2})
    assert found["error"].startswith("ServiceError: scoring on Spark stopped: vitok.errors.StoreError: "), found
    assert "cannot be written" in found["error"]


class _Gone:
    """A machine that is taken away after it was asked so many times."""

    def __init__(self, after: int) -> None:
        self.left = after

    @property
    def notice(self) -> str | None:
        self.left -= 1
        return "taken away" if self.left < 0 else None


def test_the_reason_is_the_last_line_of_python() -> None:
    python = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nvitok.errors.StoreError: disk\n'
    assert (
        _reason(f"[X] An exception.\n{python}\n\nJVM stacktrace:\norg.Y: no\n\tat z") == "vitok.errors.StoreError: disk"
    )
    assert _reason(f"{python}\n\tat org.apache.spark.A\n\tat B") == "vitok.errors.StoreError: disk"
    assert _reason("") == ""
    java = "An error occurred while calling None.org.X.\n: java.lang.IllegalStateException: stopped\n\tat Y"
    assert _cause(java) == "java.lang.IllegalStateException: stopped"
    assert (
        _cause("[JAVA_GATEWAY_EXITED] Java gateway process exited")
        == "[JAVA_GATEWAY_EXITED] Java gateway process exited"
    )
    assert _cause("") == ""


def test_ranges_go_on_after_the_manifest(tmp_path: Path) -> None:
    files = [InputFile(name, n, 1, "") for name, n in (("a", 100), ("b", 0), ("c", 64), ("d", 1))]
    manifest = Manifest(tmp_path / "none", [], done=False)
    plan = [(shard.number, shard.input, shard.start, shard.rows) for shard in _plan(manifest, files, 64, 10)]
    assert plan == [(0, 0, 0, 64), (1, 0, 64, 36), (2, 2, 0, 64), (3, 3, 0, 1)]
    assert [shard.number for shard in _plan(manifest, files, 64, 2)] == [0, 1]
    begun = Manifest(
        tmp_path / "none", [Shard(number=0, input=0, start=0, rows=70, scored=70, quarantined=0)], done=False
    )
    assert [(shard.number, shard.start, shard.rows) for shard in _plan(begun, files, 64, 1)] == [(1, 70, 30)]
    assert _plan(Manifest(tmp_path / "none", [], done=False), files[1:2], 64, 1) == []


def test_what_is_no_spark(package: Path, rows: Path, tmp_path: Path) -> None:
    for spark in ("yarn", "spark://", 5):
        with pytest.raises(InvalidInput, match="address of a master"):
            score_files_on_spark(spark, package, rows, tmp_path / "out", names=NAMES)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="be at least 1"):
        score_files_on_spark("spark://local", package, rows, tmp_path / "out", names=NAMES, wave=0)


def test_an_executor_with_another_model(package: Path, rows: Path, tmp_path: Path) -> None:
    from vitok.serving.batch_spark import _Package, _Task, score_range

    path = rows / "2.parquet"
    task = _Task(
        Shard(number=0, input=0, start=3, rows=20, scored=0, quarantined=0), str(path), InputFile.of(path, "2.parquet")
    )
    what = _Package(str(package), "1", "another", tuple(NAMES), None, ())
    with pytest.raises(ServiceError, match="another model than the driver's"):
        score_range(what, task, str(tmp_path / "out"), 8)
