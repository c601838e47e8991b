"""The venn-abers library's side of the benchmark of calibrators."""

import json
import sys
import time

import numpy as np
from venn_abers import VennAbers

if __name__ == "__main__":
    given = json.load(sys.stdin)
    data = np.load(given["file"])
    score, y, new = data["score"], data["y"], data["new"]
    began = time.perf_counter()
    calibrator = VennAbers()
    calibrator.fit(np.column_stack([1 - score, score]), y)
    found, both = calibrator.predict_proba(np.column_stack([1 - new, new]))
    seconds = time.perf_counter() - began
    np.savez(given["answer"], probability=found[:, 1], both=both)
    print(json.dumps({"seconds": seconds}))
