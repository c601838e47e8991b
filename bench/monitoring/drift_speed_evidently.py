"""The same frame beside Evidently, which gives one distance of each column."""

import statistics
from pathlib import Path

from bench.features._claim import main, run_ours, tell
from bench.monitoring._drift import measure, stored_profile
from bench.monitoring._frames import N_COLUMNS, paths, rows
from bench.peers import PeerError, environment, run

EVIDENTLY = ["evidently==0.7.23", "pandas==2.3.3"]
LIMIT = 900.0


def judge() -> None:
    n = rows()
    reference, current = paths(n)
    profile = stored_profile(reference)
    ours = run_ours(__file__, {"profile": str(profile), "current": str(current), "runs": 5})
    python = environment("evidently", EVIDENTLY)
    script = Path(__file__).parent / "peers" / "evidently_drift.py"
    payload = {"reference": str(reference), "current": str(current)}
    try:
        theirs = run(python, script, payload, limit_seconds=LIMIT)
        peer, more = theirs["seconds"], f"peak {theirs['peak_mib']:.0f} MiB of the whole process"
    except PeerError as error:
        peer, more = LIMIT, f"stopped: {str(error)[:120]}"
    seconds = statistics.median(ours["seconds"])
    tell(
        f"drift of a frame of {n:,} rows and {N_COLUMNS} columns, beside Evidently",
        value=seconds,
        unit="s",
        peer="Evidently 0.7.23 (ValueDrift by PSI)",
        peer_value=peer,
        ratio=peer / seconds,
        bar=">= 80 times",
        met=peer / seconds >= 80,
        n=n,
        protocol=(
            f"Median of 5, {ours['peak']:.0f} MiB over the frame; profile stored. Evidently: one report of the drift of"
            f" each column by PSI, both frames in memory, {more}; imports and making the frames are left out."
        ),
    )


if __name__ == "__main__":
    main(judge, measure)
