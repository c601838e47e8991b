"""An operator that is killed in the middle of a retraining and a canary: nothing is done twice, nothing is lost.

Oracle: the life of one that was not killed.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.systems.fraud.operator_life import PLACES
from tests.systems.fraud.test_operations import fill

from vitok.clock import DAY
from vitok.loop.release_book import ReleaseBook
from vitok.loop.trigger_book import TriggerRules, Triggers
from vitok.registry import Registry
from vitok.systems.fraud.messages import SYSTEM

LIFE = Path(__file__).with_name("operator_life.py")


def lived(home: Path, start: int, place: str = "") -> int:
    hour = home / "hour"
    command = [sys.executable, str(LIFE), str(home), str(start), hour.read_text() if hour.exists() else "0", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def kept(home: Path) -> dict[str, Any]:
    registry, book = Registry(home), ReleaseBook(home)
    triggers = Triggers(home, TriggerRules())
    (release,) = book.list()
    found = {
        "ledger": [(entry.kind, entry.version, entry.stage_to) for entry in registry.ledger.history(SYSTEM)],
        "intact": registry.ledger.verify().intact,
        "state": str(registry.state(SYSTEM)),
        "events": [(event.kind, event.who) for event in release.events],
        "verdicts": {name: said["n_decisions"] for name, said in release.verdicts.items()},
        "step": (release.status, release.step_name, release.move),
        "runs": [(run.kind, run.outcome) for run in triggers.runs()],
    }
    triggers.close()
    book.close()
    registry.close()
    return found


@pytest.mark.slow
def test_an_operator_that_is_killed_everywhere_ends_where_one_that_lived_does(
    home: Path, tmp_path: Path, world
) -> None:
    fill(home, world, 3)
    start = world.timeline.replay_start + 2 * DAY
    unharmed = tmp_path / "unharmed"
    shutil.copytree(home, unharmed)
    assert lived(unharmed, start) == 0
    expected = kept(unharmed)
    assert expected["state"].startswith("fraud/2 in Production")
    assert expected["verdicts"]["canary"] > 500
    for place in PLACES:
        assert lived(home, start, place) == -signal.SIGKILL, place
    assert lived(home, start) == 0
    assert kept(home) == expected
