"""Adds up pytest's reports of several groups and closes with one line in pytest's own form."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

KINDS = {"failures": "failed", "errors": "error", "skipped": "skipped"}


def main(paths: list[str]) -> int:
    """Returns 1 where a report is missing, which means that its group did not run to the end."""
    counts = dict.fromkeys(["failed", "passed", "skipped", "error"], 0)
    seconds = 0.0
    missing = [path for path in paths if not Path(path).exists()]
    for path in set(paths) - set(missing):
        for suite in ET.parse(path).getroot().iter("testsuite"):
            other = {word: int(suite.get(attribute, "0")) for attribute, word in KINDS.items()}
            for word, count in other.items():
                counts[word] += count
            counts["passed"] += int(suite.get("tests", "0")) - sum(other.values())
            seconds += float(suite.get("time", "0"))
    words = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no tests ran"
    if missing:
        print(f"no report from {', '.join(missing)}: that group broke off")
    print(f"{f' {words} in {seconds:.2f}s ':=^100}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
