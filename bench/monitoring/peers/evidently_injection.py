"""Evidently's data drift preset with its defaults, a report a day: on how many days any column drifts."""

import json
import sys
import warnings

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
from evidently import DataDefinition, Dataset, Report  # noqa: E402
from evidently.presets import DataDriftPreset  # noqa: E402

given = json.load(sys.stdin)


def frame(path: str) -> pd.DataFrame:
    data = pd.DataFrame(dict(np.load(path)))
    for name in given["categorical"]:
        data[name] = data[name].astype(int).astype(str)
    return data


cases = {case["case"]: case["path"] for case in given["cases"]}
reference = frame(cases.pop("reference")).drop(columns="day")
numerical = [name for name in reference.columns if name not in given["categorical"]]
definition = DataDefinition(numerical_columns=numerical, categorical_columns=given["categorical"])
reference = Dataset.from_pandas(reference, data_definition=definition)
alarmed = {}
for case, path in cases.items():
    data = frame(path)
    alarmed[case] = 0
    for _, rows in data.groupby("day"):
        current = Dataset.from_pandas(rows.drop(columns="day"), data_definition=definition)
        found = Report([DataDriftPreset()]).run(current, reference).dict()
        count = next(metric["value"]["count"] for metric in found["metrics"] if "count" in (metric["value"] or {}))
        alarmed[case] += count > 0
print(json.dumps({"alarmed": alarmed}))
