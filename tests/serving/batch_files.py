"""What tests of batch jobs share: a model in a folder, the results of a folder, and an environment with Spark."""

import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serving.model_folders import ROWS, put_model

from vitok.serving.batch_shards import QUARANTINE

ROOT = Path(__file__).parents[2]
SPARK = ROOT / ".venv" / "spark" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
NAMES = ["a", "b"]
# Each process that loads the package says so.
MODEL = """
import os
from pathlib import Path

def load(folder):
    (Path(folder).parent / f"loaded-{os.getpid()}").write_text("once", encoding="utf-8")
    def run(tensors):
        x = tensors["x"]
        if (x[:, 0] == 666).any():
            raise ValueError("666 cannot be scored")
        return {"y": x[:, 0] * 2 + x[:, 1]}
    return run
"""


def put_batch_model(folder: Path) -> Path:
    """Writes the package of a model of twice a plus b that fails where a is 666; returns its folder."""
    put_model(folder, "model", 1, MODEL, ROWS)
    return folder / "model" / "1"


def read(folder: Path) -> pa.Table:
    """Returns the rows of a folder's shards, in order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same results and the same quarantine, in whatever shards."""
    return bool(read(one).equals(read(other)) and read(one / QUARANTINE).equals(read(other / QUARANTINE)))


def spark_environment(tmp_path: Path) -> dict[str, str]:
    """Returns variables for a Python of this environment that has Spark from its own; skips where there is none."""
    if not (SPARK / "pyspark").exists():
        pytest.skip("no environment for Spark; make .venv/spark makes it")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("no Java here; Spark needs version 17 or newer")
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir(exist_ok=True)
    for name in ("pyspark", "py4j"):
        if not (borrowed / name).exists():
            (borrowed / name).symlink_to(SPARK / name)
    paths = os.pathsep.join([str(ROOT / "src"), str(borrowed)])
    return os.environ | {"PYTHONPATH": paths, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_HOME": str(SPARK / "pyspark")}
