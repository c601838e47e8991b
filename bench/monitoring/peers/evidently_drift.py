"""Evidently's drift of all columns by PSI."""

import json
import sys
import time
import warnings

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
from evidently import DataDefinition, Dataset, Report  # noqa: E402
from evidently.metrics import ValueDrift  # noqa: E402

given = json.load(sys.stdin)


def frame(path: str) -> pd.DataFrame:
    data = np.load(path)
    return pd.DataFrame(data.T, columns=[f"c{at:02}" for at in range(len(data))])


reference, current = frame(given["reference"]), frame(given["current"])
definition = DataDefinition(numerical_columns=list(reference.columns))
a = Dataset.from_pandas(reference, data_definition=definition)
b = Dataset.from_pandas(current, data_definition=definition)
start = time.perf_counter()
found = Report([ValueDrift(column=name, method="psi") for name in reference.columns]).run(b, a).dict()
print(json.dumps({"seconds": time.perf_counter() - start, "metrics": len(found["metrics"])}))
