"""NannyML's univariate drift with its defaults, a chunk a day: on how many days any column alarms."""

import json
import sys
import warnings

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
import nannyml as nml  # noqa: E402

given = json.load(sys.stdin)


def frame(path: str) -> pd.DataFrame:
    data = pd.DataFrame(dict(np.load(path)))
    data["timestamp"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(data.pop("day"), unit="D")
    for name in given["categorical"]:
        data[name] = data[name].astype(int).astype(str).astype("category")
    return data


cases = {case["case"]: case["path"] for case in given["cases"]}
reference = frame(cases.pop("reference"))
names = [name for name in reference.columns if name != "timestamp"]
calculator = nml.UnivariateDriftCalculator(column_names=names, timestamp_column_name="timestamp", chunk_period="D")
calculator.fit(reference)
alarmed = {}
for case, path in cases.items():
    found = calculator.calculate(frame(path)).filter(period="analysis").to_df()
    alerts = found.loc[:, [column for column in found.columns if column[-1] == "alert"]]
    alarmed[case] = int(alerts.any(axis=1).sum())
print(json.dumps({"alarmed": alarmed}))
