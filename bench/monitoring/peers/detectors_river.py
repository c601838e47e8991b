"""River's detectors over the streams of bench/monitoring/detectors.py, one observation at a time, as it offers."""

import json
import sys
import time

import numpy as np
from river import drift

KINDS = {
    "ADWIN": drift.ADWIN,
    "DDM": drift.binary.DDM,
    "EDDM": drift.binary.EDDM,
    "HDDMA": drift.binary.HDDMA,
    "HDDMW": drift.binary.HDDMW,
    "KSWIN": drift.KSWIN,
    "PageHinkley": drift.PageHinkley,
}


def flagged(detector, values):
    """Returns the places of changes and of warnings."""
    changes, warnings = [], []
    warns = hasattr(detector, "warning_detected")
    for at, x in enumerate(values):
        detector.update(x)
        if detector.drift_detected:
            changes.append(at)
        if warns and detector.warning_detected:
            warnings.append(at)
    return changes, warnings


def seconds(detector, values):
    """Returns how long the updates take where all that is asked is whether there is a change."""
    changes = 0
    began = time.perf_counter()
    for x in values:
        detector.update(x)
        if detector.drift_detected:
            changes += 1
    return time.perf_counter() - began


def main() -> None:
    payload = json.load(sys.stdin)
    streams = np.load(payload["streams"])
    found = {}
    for setting in payload["settings"]:
        kind, options = KINDS[setting["kind"]], setting["river"]
        values = [streams[name][: setting["limit"]].tolist() for name in setting["streams"]]
        result = {"seconds": sum(seconds(kind(**options), part) for part in values)}
        if payload["compare"]:
            result["flagged"] = [flagged(kind(**options), part) for part in values]
        found[setting["name"]] = result
    print(json.dumps(found))


if __name__ == "__main__":
    main()
