"""Runs the `vitok` command: `python -m vitok`."""

from vitok.console.main import run

if __name__ == "__main__":
    run()
