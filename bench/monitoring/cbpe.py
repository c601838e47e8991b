"""Performance without labels on NannyML's own car-loan data: the largest difference of any chunk and metric."""

import tempfile
import time
from pathlib import Path

import numpy as np
from bench.features._claim import tell
from bench.peers import environment, run, version

from vitok.monitoring.estimation import PerformanceEstimator, realised_performance

REQUIREMENTS = ["nannyml==0.13.1", "statsmodels==0.15.0"]
METRICS = ["roc_auc", "average_precision", "f1", "precision", "recall", "specificity", "accuracy"]
CHUNK = 5_000
BAR = 1e-3


def main() -> None:
    python = environment("nannyml", REQUIREMENTS)
    script = Path(__file__).parent / "peers" / "nannyml_cbpe.py"
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "car_loan.npz")
        peer = run(python, script, {"what": "car_loan", "metrics": METRICS, "chunk": CHUNK, "file": file})
        data = dict(np.load(file))
    began = time.perf_counter()
    estimator = PerformanceEstimator.fit(data["reference_score"], data["reference_y"])
    fitted = time.perf_counter()
    chunks = [slice(at, at + CHUNK) for at in range(0, len(data["score"]), CHUNK)]
    found = [estimator.estimate(data["score"][rows], flagged=data["flagged"][rows]) for rows in chunks]
    done = time.perf_counter()
    truth = [
        {
            each.name: each.value
            for each in realised_performance(data["score"][rows], data["y"][rows], flagged=data["flagged"][rows])
        }
        for rows in chunks
    ]
    differences, ours, theirs, covered, covered_peer = [], [], [], [], []
    for metric in METRICS:
        for at, one in enumerate(found):
            estimate, other, real = one[metric], peer["estimates"][metric][at], truth[at][metric]
            differences.append(abs(estimate.value - other))
            ours.append(abs(estimate.value - real))
            theirs.append(abs(other - real))
            covered.append(estimate.lower <= real <= estimate.upper)
            covered_peer.append(abs(other - real) <= 3 * peer["sampling_error"][metric])
    worst = max(differences)
    tell(
        "CBPE on NannyML's car-loan data: largest difference from NannyML over 7 metrics and 10 chunks",
        value=worst,
        unit="of a metric in [0, 1]",
        peer=f"nannyml {version(python, 'nannyml')}",
        peer_value=0.0,
        bar=f"<= {BAR:g}",
        met=worst <= BAR,
        n=len(differences),
        protocol=(
            f"50,000 reference and 50,000 analysis rows from the peer's package, chunks of {CHUNK:,}. Mean absolute"
            f" error against the realised value: vitok {np.mean(ours):.5f}, peer {np.mean(theirs):.5f}. Realised"
            f" inside vitok's 95 % interval in {np.mean(covered):.1%}, inside the peer's three sampling errors in"
            f" {np.mean(covered_peer):.1%}. Fit {fitted - began:.2f} s and estimate {done - fitted:.2f} s; peer"
            f" {peer['fit_seconds']:.2f} s and {peer['estimate_seconds']:.2f} s."
        ),
    )


if __name__ == "__main__":
    main()
