"""FTRL-Proximal against Vowpal Wabbit's --ftrl: the largest difference of any prediction, on the same hashed rows."""

import tempfile
from pathlib import Path

import numpy as np
from bench.features._claim import tell
from bench.monitoring._online import BITS, FEATURES, PEERS, RATES, VOWPAL_WABBIT, draw
from bench.peers import environment, run, version

from vitok.models.online_ftrl import Ftrl

N = 10_000
BAR = 1e-6


def main() -> None:
    codes, labels = draw(N, seed=6)
    slots, values = FEATURES.encode({f"c{i}": codes[:, i] for i in range(codes.shape[1])})
    python = environment("vowpal-wabbit", VOWPAL_WABBIT)
    with tempfile.TemporaryDirectory() as folder:
        file, out = str(Path(folder) / "events.npz"), str(Path(folder) / "predicted.npy")
        np.savez(file, slots=slots, values=values, labels=labels)
        run(python, PEERS / "online_vw.py", {"file": file, "bits": BITS, "predicted": out, **RATES.to_dict()})
        theirs = 1 / (1 + np.exp(-np.load(out)))
    ours = Ftrl(bits=BITS, rates=RATES).learn_many(slots, values, labels)
    largest = float(np.abs(ours - theirs).max())
    tell(
        "FTRL-Proximal against Vowpal Wabbit's --ftrl: largest difference of a prediction",
        value=largest,
        unit="probability",
        peer=f"vowpalwabbit {version(python, 'vowpalwabbit')}",
        bar="<= 1e-6",
        met=largest <= BAR,
        n=N,
        protocol=f"Progressive predictions of the same {N:,} rows of 24 hashed categories in 2^{BITS} slots with the "
        f"same alpha, beta, L1 and L2, --noconstant; the peer computes in 32 bits. Mean difference "
        f"{np.abs(ours - theirs).mean():.2g}.",
    )


if __name__ == "__main__":
    main()
