"""How a benchmark of features tells what it found, and how its own side is run in a process of its own."""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.peers import run

OURS = "ours"


def tell(
    claim: str,
    *,
    value: float,
    unit: str,
    bar: str,
    met: bool,
    n: int,
    protocol: str,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
) -> None:
    """Prints the one line of a benchmark, as bench/README.md describes it."""

    def short(number: float | None) -> float | None:
        return None if number is None else float(f"{number:.4g}")

    line = {
        "claim": claim,
        "value": short(value),
        "unit": unit,
        "peer": peer,
        "peer_value": short(peer_value),
        "ratio": short(ratio),
        "bar": bar,
        "met": bool(met),
        "n": n,
        "protocol": protocol,
    }
    print(json.dumps(line), flush=True)


def main(judge: Callable[[], None], ours: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Runs `judge`, or, where the file was started by `run_ours`, our side of it."""
    if sys.argv[1:] == [OURS]:
        print(json.dumps(ours(json.load(sys.stdin))), flush=True)
    else:
        judge()


def run_ours(file: str, payload: Mapping[str, Any], *, limit_seconds: float = 1500.0) -> dict[str, Any]:
    """Runs our side of the benchmark `file` in a process of its own, measured as a peer's is."""
    return run(
        sys.executable, file, payload, arguments=[OURS], limit_seconds=limit_seconds, variables={"PYTHONPATH": path()}
    )


def path() -> str:
    """Returns the PYTHONPATH with which a process finds `bench`."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    return os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))


def median(results: Iterable[Mapping[str, Any]], key: str) -> float:
    """Returns the median of one figure over several runs."""
    return statistics.median(result[key] for result in results)


def most(results: Iterable[Mapping[str, Any]], key: str) -> float:
    """Returns the largest of one figure over several runs."""
    return max(result[key] for result in results)
