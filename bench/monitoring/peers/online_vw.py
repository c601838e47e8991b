"""Vowpal Wabbit's FTRL on hashed rows: from text, from its cache, or one by one for the predictions."""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import vowpalwabbit

given = json.load(sys.stdin)
data = np.load(given["file"])
slots, values, labels = data["slots"].tolist(), data["values"].tolist(), data["labels"].tolist()
options = (
    f"--ftrl -b {given['bits']} --noconstant --loss_function logistic --quiet --ftrl_alpha {given['alpha']} "
    f"--ftrl_beta {given['beta']} --l1 {given['l1']} --l2 {given['l2']}"
)
lines = []
for row, numbers, label in zip(slots, values, labels, strict=True):
    features = " ".join(f"{slot}:{number:g}" for slot, number in zip(row, numbers, strict=True) if number)
    lines.append(f"{1 if label else -1} | {features}")
found = {}
if "predicted" in given:
    workspace = vowpalwabbit.Workspace(options)
    predicted = np.empty(len(lines))
    for i, line in enumerate(lines):
        example = workspace.example(line)
        workspace.learn(example)
        predicted[i] = example.get_partial_prediction()
        workspace.finish_example(example)
    workspace.finish()
    np.save(given["predicted"], predicted)
else:
    with tempfile.TemporaryDirectory() as folder:
        text, cache = Path(folder, "events.txt"), Path(folder, "events.cache")
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        for name, source in (
            ("text_rate", f"-d {text}"),
            ("made_rate", f"-d {text} --cache_file {cache}"),
            ("cached_rate", f"-d {text} --cache_file {cache}"),
        ):
            start = time.perf_counter()
            workspace = vowpalwabbit.Workspace(f"{options} {source}")
            seen = workspace.get_weighted_examples()
            workspace.finish()
            found[name] = len(lines) / (time.perf_counter() - start)
            if seen != len(lines):
                raise RuntimeError(f"{name}: {seen} of {len(lines)} examples")
        found["cache_bytes"] = cache.stat().st_size
print(json.dumps(found))
