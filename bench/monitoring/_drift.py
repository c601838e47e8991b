"""Our side of the drift benchmarks: a stored profile, a frame in memory, and what one measurement takes on top."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.monitoring._frames import FOLDER, NAMES


def stored_profile(reference: Path) -> Path:
    """Fits the profile of a frame, the last column as its probability, and keeps it as JSON."""
    from vitok.monitoring import ReferenceProfile

    path = FOLDER / f"{reference.stem}.profile.json"
    data = np.load(reference)
    profile = ReferenceProfile.fit(NAMES, data.T, np.nan_to_num(data[-1]), start=0, end=1)
    path.write_text(json.dumps(profile.to_dict()), encoding="utf-8")
    return path


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Measures a frame against a stored profile: seconds, and MiB of peak memory over those held before."""
    from vitok.monitoring import ReferenceProfile, frame_drift

    profile = ReferenceProfile.from_dict(json.loads(Path(given["profile"]).read_text(encoding="utf-8")))
    data = np.load(given["current"])
    columns = [*data, np.nan_to_num(data[-1])]
    # Compiled code is read from its cache and libraries are loaded before the clock starts, as on the peers' side.
    frame_drift(profile, [column[:1_000] for column in columns])
    seconds, peaks = [], []
    for _ in range(given["runs"]):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _memory("VmRSS")
        started = time.perf_counter()
        report = frame_drift(profile, columns)
        seconds.append(time.perf_counter() - started)
        peaks.append((_memory("VmHWM") - before) / 1024)
    top = sorted(report.features, key=lambda item: -(item.effect + item.shift))[:5]
    return {"seconds": seconds, "peak": max(peaks), "found": sorted(item.name for item in top)}


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))
