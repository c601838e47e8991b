"""The loss of a regression without its truth, on NannyML's own car-price data: how near each comes to what happened."""

import tempfile
from pathlib import Path

import numpy as np
from bench.features._claim import tell
from bench.monitoring.cbpe import REQUIREMENTS
from bench.peers import environment, run, version

from vitok.monitoring.loss_estimation import LossEstimator

CHUNK = 6_000


def main() -> None:
    python = environment("nannyml", REQUIREMENTS)
    script = Path(__file__).parent / "peers" / "nannyml_cbpe.py"
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "car_price.npz")
        peer = run(python, script, {"what": "car_price", "chunk": CHUNK, "file": file})
        data = dict(np.load(file))
    estimator = LossEstimator.fit(data["reference"], data["reference_prediction"], data["reference_y"])
    chunks = [slice(at, at + CHUNK) for at in range(0, len(data["y"]), CHUNK)]
    real, ours, covered = [], [], []
    for rows in chunks:
        truth = float(np.abs(data["y"][rows] - data["prediction"][rows]).mean())
        found = estimator.estimate(data["current"][rows], data["prediction"][rows])["mae"]
        real.append(truth)
        ours.append(found.value)
        covered.append(found.lower <= truth <= found.upper)
    error = float(np.mean(np.abs(np.array(ours) / real - 1)))
    other = float(np.mean(np.abs(np.array(peer["estimates"]["mae"]) / real - 1)))
    tell(
        "DLE on NannyML's car-price data: mean relative error of the estimated mean absolute error",
        value=100 * error,
        unit="%",
        peer=f"nannyml {version(python, 'nannyml')} DLE",
        peer_value=100 * other,
        ratio=other / error,
        bar="none set",
        met=True,
        n=len(chunks),
        protocol=(
            f"Reference and analysis rows from the peer's package, chunks of {CHUNK:,}; mean over chunks of"
            f" |estimated / realised - 1|. Realised inside vitok's 95 % interval in {np.mean(covered):.0%}."
        ),
    )


if __name__ == "__main__":
    main()
