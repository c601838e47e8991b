"""A frame of 1 M rows and 50 columns against a stored profile, six distances and their null laws: beside NannyML."""

import statistics
from pathlib import Path

from bench.features._claim import main, run_ours, tell
from bench.monitoring._drift import measure, stored_profile
from bench.monitoring._frames import N_COLUMNS, paths, rows
from bench.peers import environment, run

NANNYML = ["nannyml==0.13.1", "statsmodels==0.15.0"]


def judge() -> None:
    n = rows()
    reference, current = paths(n)
    profile = stored_profile(reference)
    ours = run_ours(__file__, {"profile": str(profile), "current": str(current), "runs": 5})
    python = environment("nannyml", NANNYML)
    script = Path(__file__).parent / "peers" / "nannyml_drift.py"
    theirs = run(python, script, {"reference": str(reference), "current": str(current)})
    seconds = statistics.median(ours["seconds"])
    peer = theirs["fit"] + theirs["calculate"]
    tell(
        f"drift of a frame of {n:,} rows and {N_COLUMNS} columns, six distances with their null laws",
        value=seconds,
        unit="s",
        peer="NannyML 0.13.1 (Jensen-Shannon, fit and calculate)",
        peer_value=peer,
        ratio=peer / seconds,
        bar="<= 1 s and <= 50 MB over the frame, >= 8 times NannyML",
        met=seconds <= 1 and ours["peak"] * 1.048576 <= 50 and peer / seconds >= 8,
        n=n,
        protocol=(
            f"Median of 5; frame in memory, profile fitted before and stored; {ours['peak']:.0f} MiB over the frame and"
            f" the loaded libraries, NannyML {theirs['over']:.0f} MiB; largest five: {', '.join(ours['found'])}"
            f" (planted c00 to c04). NannyML: fit {theirs['fit']:.2f} s, calculate {theirs['calculate']:.2f} s,"
            " one chunk, one distance where vitok gives six; imports and making the frames are left out on both sides."
        ),
    )


if __name__ == "__main__":
    main(judge, measure)
