"""Checking a file by ten rules against pandera (polars), pointblank and Great Expectations on the same file."""

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench import peers  # noqa: E402
from bench.contracts import _checks  # noqa: E402

SCRIPT = Path(__file__).parent / "peers" / "checkers.py"
TOOLS = {
    "pandera": ["pandera[polars]==0.35.0", "polars==2.1.0", "pyarrow==26.0.1"],
    "pointblank": ["pointblank==1.1.1", "polars==2.1.0", "pyarrow==26.0.1"],
    "great_expectations": ["great-expectations==1.24.1", "pyarrow==26.0.1"],
}
RUNS = 5


def judge() -> None:
    paths = {"good": str(_checks.table(bad=False)), "bad": str(_checks.table(bad=True))}
    mine: dict[str, dict[str, Any]] = {}
    for kind, path in paths.items():
        payload = {"path": path, "runs": RUNS}
        mine[kind] = peers.run(
            sys.executable, __file__, payload, arguments=["ours"], variables={"PYTHONPATH": str(ROOT)}
        )
    theirs = {
        name: peers.run(peers.environment(name, wanted), SCRIPT, {"tool": name, "paths": paths, "runs": RUNS})
        for name, wanted in TOOLS.items()
    }
    blind = [name for name, found in theirs.items() if found["good"]["counts"] or not found["bad"]["counts"]]
    fastest = {kind: min(theirs, key=lambda name: theirs[name][kind]["cpu"]) for kind in paths}
    ratios = {kind: theirs[fastest[kind]][kind]["cpu"] / mine[kind]["cpu"] for kind in paths}
    listed = "; ".join(
        f"{name} {wanted[0].partition('==')[2]} {theirs[name]['good']['cpu']:.2f} and {theirs[name]['bad']['cpu']:.2f}"
        for name, wanted in TOOLS.items()
    )
    version = TOOLS[fastest["good"]][0].partition("==")[2]
    _checks.tell(
        claim="check of 1 M rows by ten rules against pandera, pointblank and Great Expectations",
        value=mine["good"]["cpu"],
        unit="CPU s",
        peer=f"{fastest['good']} {version}, the fastest of three",
        peer_value=theirs[fastest["good"]]["good"]["cpu"],
        ratio=ratios["good"],
        bar="> 1 on the good and on the bad file",
        met=min(ratios.values()) > 1 and not blind,
        n=_checks.rows(),
        protocol=(
            f"Median CPU seconds of {RUNS} warm runs each from the Parquet file, a process a side, imports left out. "
            f"Good file and one in which 2 percent of the rows are bad: vitok {mine['good']['cpu']:.2f} and "
            f"{mine['bad']['cpu']:.2f}, with the rejected rows and their reasons; {listed}. On the bad file "
            f"{ratios['bad']:.1f} x the fastest of them. Tools that missed the bad rows: {len(blind)}."
        ),
    )


if __name__ == "__main__":
    _checks.main(judge, {"ours": _checks.ours})
