"""River's FTRL on dicts of hashed categories, one after another."""

import json
import sys
import time

import numpy as np
from river import linear_model, optim

given = json.load(sys.stdin)
data = np.load(given["file"])
n = given["n"]
codes, labels = data["codes"][:n].tolist(), data["labels"][:n].astype(bool).tolist()
rows = [{f"c{i}=c{i}-value-{code}": 1 for i, code in enumerate(row)} for row in codes]


def fresh():
    """Returns a model that has seen nothing."""
    return linear_model.LogisticRegression(
        optimizer=optim.FTRLProximal(alpha=given["alpha"], beta=given["beta"], l1=given["l1"], l2=given["l2"]),
        intercept_lr=0.01,
    )


# Another one before, so that the clock sees no first time of anything.
model = fresh()
for row, label in zip(rows[:4096], labels[:4096], strict=True):
    model.predict_proba_one(row)
    model.learn_one(row, label)
model = fresh()
start = time.perf_counter()
for row, label in zip(rows, labels, strict=True):
    model.predict_proba_one(row)
    model.learn_one(row, label)
seconds = time.perf_counter() - start
print(json.dumps({"rate": n / seconds}))
