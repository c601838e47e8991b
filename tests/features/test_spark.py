"""Spark gives what `table` gives: one list of cases, run once on a local Spark in an environment of its own."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from vitok.features import compare, table
from vitok.features.fingerprints import fingerprint_texts

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv" / "spark" / "bin" / "python"
REFUSALS = {
    "column": "source 'payments': columns: got ['customer_id', 'event_time'], must hold id",
    "source": "sources: got [], must hold 'payments', which view 'customer' reads",
    "type of time": "spine: event_time: got 'IntegerType', must be a timestamp",
    "type of key": "spine: customer_id: got 'DoubleType', must be text or whole numbers",
    "embedding": "view 'vector': got 'Embedding', must not be an embedding on Spark",
    "text": "source 'payments': y: got 'StringType', must be numeric where a number is wanted",
    "null key": "source 'payments': customer_id: must not be null or empty. Let the contract keep such rows out",
    "infinity": "source 'payments': y: must be finite. Let the contract keep such rows out",
    "time zone": "spark.sql.session.timeZone: got 'Europe/Riga', must be UTC",
}

_spec = importlib.util.spec_from_file_location("jvm_cases", Path(__file__).with_name("jvm_cases.py"))
assert _spec is not None
assert _spec.loader is not None
jvm_cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(jvm_cases)

pytestmark = [pytest.mark.jvm, pytest.mark.xdist_group("spark")]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with what Spark answered; all cases share its one start."""
    if not PYTHON.exists():
        pytest.skip("no environment for Spark; make .venv/spark makes it")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("no Java here; Spark needs version 17 or newer")
    folder = tmp_path_factory.mktemp("spark")
    for place, name in enumerate(jvm_cases.CASES):
        spine, sources = jvm_cases.data(name)
        (folder / str(place)).mkdir()
        spine.write_parquet(folder / str(place) / "spine.parquet")
        for source, frame in sources.items():
            frame.write_parquet(folder / str(place) / f"source_{source}.parquet")
    paths = os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths, "PYSPARK_PYTHON": str(PYTHON), "SPARK_LOCAL_IP": "127.0.0.1"}
    runner = Path(__file__).with_name("spark_runner.py")
    done = subprocess.run(
        [PYTHON, runner, folder], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("case", jvm_cases.CASES)
def test_spark_gives_what_the_table_gives(answers: Path, case: str) -> None:
    verdict = json.loads((answers / "verdicts.json").read_text())[case]
    assert not verdict, verdict
    features = jvm_cases.CASES[case]
    spine, sources = jvm_cases.data(case)
    expected = table(spine, features, sources)
    answered = pl.read_parquet(answers / str(list(jvm_cases.CASES).index(case)) / "out.parquet").sort("row")
    assert answered["row"].to_list() == spine["row"].to_list()  # rows in are rows out
    assert set(answered.columns) == set(expected.columns) - {"event_time"}
    seen, wanted = (frame.select(features.names).cast(pl.Float64).to_numpy() for frame in (answered, expected))
    comparison = compare(features, seen, wanted)
    assert comparison.n_differing_rows == 0, str(comparison)
    if case != "no events":
        assert np.isfinite(wanted).any(axis=0).all()  # no feature is equal only because it is never there


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_said(answers: Path, case: str) -> None:
    assert REFUSALS[case] in json.loads((answers / "refusals.json").read_text())[case]


def test_ties_are_those_of_the_fingerprints(answers: Path) -> None:
    texts = jvm_cases.TEXTS
    expected = fingerprint_texts(texts)[:, 0] ^ np.uint64(1 << 63)
    assert json.loads((answers / "fingerprints.json").read_text()) == expected.view(np.int64).tolist()
