"""Seven change detectors against River's: the same changes and warnings on 200 streams, and how fast.

River takes one observation at a time. Ours are timed in batches, which is the claim, and one at a time from Python.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench.features._claim import main, run_ours, tell
from bench.peers import environment, run, version

RIVER = ["river==0.26.1"]
PEER = Path(__file__).resolve().parent / "peers" / "detectors_river.py"
N_STREAMS = 200
ROUNDS = 3
BAR = 5.0
SCALE = min(1.0, float(os.environ.get("VITOK_BENCH_SCALE", "1")))

# The name, the class, our options, River's where they are called otherwise, and which streams it takes.
SETTINGS: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("ADWIN", "ADWIN", {}, {}, "number"),
    ("ADWIN clock 1", "ADWIN", {"clock": 1}, {}, "number"),
    (
        "ADWIN clock 7",
        "ADWIN",
        {"clock": 7, "max_buckets": 3, "min_window_length": 2, "grace_period": 0, "delta": 0.05},
        {},
        "number",
    ),
    ("DDM", "DDM", {}, {}, "error"),
    ("EDDM", "EDDM", {}, {}, "error"),
    ("HDDM_A", "HDDMA", {}, {}, "share"),
    ("HDDM_A two-sided", "HDDMA", {"two_sided": True}, {"two_sided_test": True}, "share"),
    ("HDDM_W", "HDDMW", {}, {}, "share"),
    (
        "HDDM_W two-sided",
        "HDDMW",
        {"weight": 0.1, "two_sided": True},
        {"lambda_val": 0.1, "two_sided_test": True},
        "share",
    ),
    ("KSWIN", "KSWIN", {"seed": 7}, {}, "short"),
    (
        "KSWIN small samples",
        "KSWIN",
        {"seed": 11, "window_size": 150, "stat_size": 10, "alpha": 0.02},
        {},
        "short",
    ),
    ("PageHinkley", "PageHinkley", {}, {}, "number"),
    ("PageHinkley low", "PageHinkley", {"threshold": 5.0, "alpha": 1.0}, {}, "number"),
]


def streams(n: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns streams of ten kinds by name, and what their observations are: errors, shares or numbers."""
    rng = np.random.default_rng(2024)
    made: dict[str, np.ndarray] = {}
    what: dict[str, str] = {}
    for i in range(n):
        kind = i % 10
        size = int(rng.integers(1_500, 5_000))
        half = size // 2
        ramp = np.clip((np.arange(size) - size / 3) / (size / 3), 0, 1)
        low, high = rng.uniform(0.01, 0.3), rng.uniform(0.2, 0.9)
        if kind == 0:
            values = rng.random(size) < np.where(np.arange(size) < half, low, high)
        elif kind == 1:
            values = rng.random(size) < low + (high - low) * ramp
        elif kind == 2:
            values = rng.random(size) < low
        elif kind == 3:
            values = rng.random(size) < np.where(np.arange(size) < half, high, low)
        elif kind == 4:
            values = (rng.random(size) < low)[: int(rng.integers(0, 60))]
        elif kind == 5:
            values = np.full(int(rng.integers(1, 400)), float(rng.integers(0, 2)))
        elif kind == 6:
            values = np.where(np.arange(size) < half, rng.beta(2, 8, size), rng.beta(4, 6, size))
        elif kind == 7:
            values = rng.normal(size=size) + np.where(np.arange(size) < half, 0, rng.uniform(-2, 2))
        elif kind == 8:
            values = np.round(rng.normal(100, 5, size) + 10 * ramp * rng.uniform(-1, 1), int(rng.integers(0, 3)))
        else:
            values = rng.standard_t(2, size) * np.where(np.arange(size) < half, 1, 3) + 1e4 * (i % 20 == 9)
        made[f"s{i}"] = np.asarray(values, dtype=np.float64)
        what[f"s{i}"] = "error" if kind <= 5 else "share" if kind == 6 else "number"
    return made, what


def settings(what: dict[str, str]) -> list[dict[str, Any]]:
    """Returns the settings with the streams that each takes: shares are numbers, and errors are shares."""
    takes = {"error": ("error",), "share": ("error", "share")}
    return [
        {
            "name": name,
            "kind": kind,
            "ours": ours_,
            "river": {**{key: value for key, value in ours_.items() if key not in ("two_sided", "weight")}, **river},
            "streams": [stream for stream, of in what.items() if of in takes.get(domain, tuple(what.values()))],
            "limit": 600 if domain == "short" else 1_000_000,
        }
        for name, kind, ours_, river, domain in SETTINGS
    ]


def ours(payload: dict[str, Any]) -> dict[str, Any]:
    from vitok.stats.detectors import Detector
    from vitok.stats.detectors_adwin import ADWIN
    from vitok.stats.detectors_error_rates import DDM, EDDM
    from vitok.stats.detectors_hddm import HDDMA, HDDMW
    from vitok.stats.detectors_kswin import KSWIN
    from vitok.stats.detectors_page_hinkley import PageHinkley

    kinds: dict[str, type[Detector]] = {
        kind.__name__: kind for kind in (ADWIN, DDM, EDDM, HDDMA, HDDMW, KSWIN, PageHinkley)
    }
    loaded = np.load(payload["streams"])
    found: dict[str, Any] = {}
    for setting in payload["settings"]:
        detector = kinds[setting["kind"]](**setting["ours"])
        arrays = [loaded[name][: setting["limit"]] for name in setting["streams"]]
        lists = [part.tolist() for part in arrays]
        detector.update_many(arrays[0])
        batch = single = 0.0
        flagged = []
        for part in arrays:
            detector.reset()
            began = time.perf_counter()
            seen = detector.update_many(part)
            batch += time.perf_counter() - began
            flagged.append((list(seen.changes), list(seen.warnings)))
        for number, values in enumerate(lists):
            detector.reset()
            changes = 0
            began = time.perf_counter()
            for x in values:
                if detector.update(x).change:
                    changes += 1
            single += time.perf_counter() - began
            assert changes == len(flagged[number][0])
        found[setting["name"]] = {"batch": batch, "single": single, "n": sum(map(len, lists)), "flagged": flagged}
    return found


def judge() -> None:
    python = environment("river", RIVER)
    n_streams = max(10, int(N_STREAMS * SCALE))
    made, what = streams(n_streams)
    chosen = settings(what)
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(prefix="vitok-bench-") as folder:
        file = str(Path(folder, "streams.npz"))
        np.savez(file, **made)
        for number in range(ROUNDS):
            mine = run_ours(__file__, {"streams": file, "settings": chosen})
            theirs = run(python, PEER, {"streams": file, "settings": chosen, "compare": number == 0})
            rounds.append((mine, theirs))
    identical = compared = 0
    lines, batch_ratios, single_ratios = [], {}, {}
    for setting in chosen:
        name = setting["name"]
        same = [
            list(map(list, a)) == list(map(list, b))
            for a, b in zip(rounds[0][0][name]["flagged"], rounds[0][1][name]["flagged"], strict=True)
        ]
        identical, compared = identical + sum(same), compared + len(same)
        n = rounds[0][0][name]["n"]
        batch, single = (statistics.median(mine[name][key] for mine, _ in rounds) for key in ("batch", "single"))
        river = statistics.median(theirs[name]["seconds"] for _, theirs in rounds)
        batch_ratios[name], single_ratios[name] = river / batch, river / single
        lines.append(
            f"{name}: {sum(same)} of {len(same)} identical, {batch / n * 1e9:.0f} ns in batches ({river / batch:.1f} "
            f"x), {single / n * 1e9:.0f} ns one by one ({river / single:.1f} x), River {river / n * 1e9:.0f} ns"
        )
    worst = min(batch_ratios, key=lambda name: batch_ratios[name])
    n = rounds[0][0][worst]["n"]
    mine_ns = statistics.median(mine[worst]["batch"] for mine, _ in rounds) / n * 1e9
    tell(
        "change detectors in batches, the one with the smallest gain, and the same detections",
        value=mine_ns,
        unit="ns per observation",
        peer=f"River {version(python, 'river')}, one by one",
        peer_value=mine_ns * batch_ratios[worst],
        ratio=batch_ratios[worst],
        bar=f"identical on all of {N_STREAMS} streams, >= {BAR:g} x in batches",
        met=identical == compared and batch_ratios[worst] >= BAR and n_streams >= N_STREAMS,
        n=sum(len(values) for values in made.values()),
        protocol=(
            f"{n_streams} streams of ten kinds (errors abrupt, gradual, without change, improving, tiny, all equal; "
            f"shares; Gaussian; rounded with a slope; heavy tails), changes and warnings compared at every "
            f"observation: {identical} of {compared} pairs of setting and stream identical. Medians of {ROUNDS} "
            f"rounds in turn, one thread; River has no batches. KSWIN on the first 600 of each stream. "
            f"Smallest gain {worst}. One by one, the call from Python included, the smallest gain is "
            f"{min(single_ratios.values()):.1f} x. " + "; ".join(lines) + "."
        ),
    )


if __name__ == "__main__":
    main(judge, ours)
