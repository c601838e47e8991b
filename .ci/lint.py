"""Runs every check of `make lint`, one line each; a check that fails shows its own words."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

CHECKS = {
    "ruff check": [BIN / "ruff", "check", "--quiet", "."],
    "ruff format": [BIN / "ruff", "format", "--check", "--quiet", "."],
    "mypy": [sys.executable, "-m", "mypy", "--no-error-summary"],
    "import floors": [BIN / "lint-imports", "--no-cache"],
    "layout": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", "tests/test_layout.py"],
}


def main() -> int:
    """Returns how many checks failed."""
    failed = []
    for name, command in CHECKS.items():
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        verdict = "ok" if done.returncode == 0 else "FAILED"
        print(f"{name:<14} {verdict:<6} {time.monotonic() - began:5.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print((done.stdout + done.stderr).strip() + "\n", flush=True)
    if failed:
        print(f"lint: {', '.join(failed)} failed; 'ruff check --fix .' and 'ruff format .' mend the simple things")
    return min(len(failed), 1)


if __name__ == "__main__":
    sys.exit(main())
