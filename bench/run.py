"""Runs the benchmarks and writes docs/benchmarks.md.

    python bench/run.py             # all of them
    python bench/run.py features    # one room's
    python bench/run.py features/online features/parity    # some claims

Each file bench/<room>/<claim>.py is run alone, one after another, and prints one JSON line (bench/README.md says
what is in it). The lines are kept in bench/results.jsonl, so that running one room leaves the others' figures.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results.jsonl"
PAGE = ROOT / "docs" / "benchmarks.md"
KEYS = ("claim", "value", "unit", "peer", "peer_value", "ratio", "bar", "met", "n", "protocol")
LIMIT_SECONDS = 1800

HEAD = """# Benchmarks

Written by `make bench`; do not edit by hand. Each line is one claim, measured by one file of `bench/`; vitok and
the peer it is compared with worked on the same data in the same run. *Ratio* is vitok to peer, *bar* is what the
ratio (or, without a peer, the value) has to reach, and *met* says whether it did. Timings depend on the machine and
on what else it was doing: trust ratios more than values.
"""


def machine() -> str:
    """Says in a few words what the figures were measured on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def last_json(text: str) -> dict[str, Any]:
    """Reads the last line that a benchmark printed.

    Raises:
        ValueError: If it is no JSON object, or lacks a key, or has one too many.
    """
    lines = text.strip().splitlines()
    if not lines:
        raise ValueError("it printed nothing")
    found = json.loads(lines[-1])
    if not isinstance(found, dict) or set(found) != set(KEYS):
        raise ValueError(f"its last line must be a JSON object with exactly: {', '.join(KEYS)}")
    return found


def run(path: Path) -> dict[str, Any]:
    """Runs one benchmark.

    Raises:
        ValueError: If it fails, takes too long, or prints something else than its line.
    """
    # So that a benchmark finds `bench.peers` wherever it is started from.
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    try:
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it took more than {LIMIT_SECONDS} s") from None
    if done.returncode != 0:
        raise ValueError(f"it left with {done.returncode}: {done.stderr.strip()[-800:]}")
    return last_json(done.stdout)


def figure(value: object) -> str:
    """Writes a number with four significant digits, and nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def render(lines: list[dict[str, Any]]) -> str:
    """Writes the page: one table a room, and below each the protocols that its figures were measured by."""
    page = [HEAD]
    for room in sorted({line["room"] for line in lines}):
        chosen = [line for line in lines if line["room"] == room]
        page += [f"## {room}", "", "| claim | vitok | unit | peer | peer's | ratio | bar | met |"]
        page += ["|---|---:|---|---|---:|---:|---|---|"]
        for line in chosen:
            shown = [figure(line[key]) for key in ("claim", "value", "unit", "peer", "peer_value", "ratio", "bar")]
            page.append(f"| {' | '.join([*shown, 'yes' if line['met'] else '**no**'])} |")
        page.append("")
        for line in chosen:
            page.append(
                f"- *{line['claim']}*: {line['protocol']} n = {figure(line['n'])}. {line['machine']}; {line['day']}."
            )
        page.append("")
    return "\n".join(page)


def main(*wanted: str) -> int:
    """Runs benchmarks; returns 1 where one broke or missed its bar.

    Args:
        wanted: Rooms, or single claims such as `features/online`; all rooms where there is none.
    """
    paths = sorted(
        path
        for path in (ROOT / "bench").glob("*/*.py")
        if not path.stem.startswith("_") and path.parent.name != "peers"
    )
    known = sorted({path.parent.name for path in paths})
    room = " ".join(wanted)
    chosen = [path for path in paths if not room or {path.parent.name, f"{path.parent.name}/{path.stem}"} & set(wanted)]
    if not chosen:
        print(
            f"no benchmarks{f' for {room!r}' if room else ''}; there are some for: {', '.join(known) or 'no room yet'}"
        )
        return 1 if room else 0

    names = {path.relative_to(ROOT).as_posix() for path in paths}
    kept = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []
    results = {line["file"]: line for line in kept if line["file"] in names}
    broken = 0
    for number, path in enumerate(chosen, start=1):
        name = path.relative_to(ROOT).as_posix()
        print(f"[{number}/{len(chosen)}] {name} ", end="", flush=True)
        began = time.monotonic()
        try:
            line = run(path)
        except ValueError as error:
            broken += 1
            print(f"BROKEN: {error}")
            continue
        day = time.strftime("%Y-%m-%d", time.gmtime())
        results[name] = {"file": name, "room": path.parent.name, **line, "machine": machine(), "day": day}
        verdict = "met" if line["met"] else "MISSED"
        print(f"{figure(line['value'])} {line['unit']}, {verdict}, {time.monotonic() - began:.0f} s", flush=True)

    ordered = [results[name] for name in sorted(results)]
    RESULTS.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered), encoding="utf-8")
    PAGE.write_text(render(ordered), encoding="utf-8")
    missed = [line["file"] for line in ordered if not line["met"]]
    print(f"{len(ordered)} figures in {PAGE.relative_to(ROOT)}")
    print(f"bar missed: {', '.join(missed) or 'none'}; broken: {broken}")
    return 1 if broken or missed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
