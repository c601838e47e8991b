"""NannyML's univariate drift by Jensen-Shannon of all columns, one chunk."""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
import nannyml as nml  # noqa: E402

given = json.load(sys.stdin)


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def frame(path: str) -> pd.DataFrame:
    data = np.load(path)
    return pd.DataFrame(data.T, columns=[f"c{at:02}" for at in range(len(data))])


reference, current = frame(given["reference"]), frame(given["current"])
names = list(reference.columns)
Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
before = memory("VmRSS")
start = time.perf_counter()
calculator = nml.UnivariateDriftCalculator(column_names=names, continuous_methods=["jensen_shannon"], chunk_number=1)
calculator.fit(reference)
middle = time.perf_counter()
found = calculator.calculate(current)
end = time.perf_counter()
over = (memory("VmHWM") - before) / 1024
print(json.dumps({"fit": middle - start, "calculate": end - middle, "over": over}))
