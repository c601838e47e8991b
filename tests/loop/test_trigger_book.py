"""Triggers with a memory: what begins a run, what holds it back, and what a crash leaves behind."""

import contextlib
import dataclasses
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitok.clock import DAY, HOUR, MINUTE
from vitok.errors import Conflict, InvalidInput, NotFound
from vitok.loop.cron import Cron
from vitok.loop.trigger_book import Run, TriggerRules, Triggers

NIGHTLY = Cron("0 3 * * *")


@dataclasses.dataclass(frozen=True)
class Alert:
    rule: str
    first_seen: int = 0
    reason: str = ""


FIRST_LAYOUT = """
CREATE TABLE run (key TEXT PRIMARY KEY, system TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL,
    begun_at INTEGER NOT NULL, labels INTEGER NOT NULL, ended_at INTEGER, cost REAL NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT '') STRICT;
CREATE UNIQUE INDEX run_open ON run (system) WHERE ended_at IS NULL;
CREATE TABLE asked (id INTEGER PRIMARY KEY, system TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
    at INTEGER NOT NULL, run TEXT) STRICT;
CREATE TABLE since (system TEXT NOT NULL, kind TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (system, kind)) STRICT;
INSERT INTO asked (system, who, why, at) VALUES ('fraud', 'ann', 'a new feature', 0);
PRAGMA user_version = 1;
"""
BOTH = [Alert("data_drift"), Alert("quality")]


class Book:
    """Triggers in a home, asked in short."""

    def __init__(self, home: Path, **rules: Any) -> None:
        self.triggers = Triggers(home, TriggerRules(**rules))

    def due(self, now: int, alerts: Any = (), labels: int = 0, **more: Any) -> Run | None:
        return self.triggers.due("fraud", now=now, alerts=alerts, labels=labels, **more)

    def whole(self, now: int, alerts: Any = (), labels: int = 0, cost: float = 1.0) -> str:
        run = self.due(now, alerts, labels)
        if run is None:
            return ""
        self.triggers.end(run.key, now=now + MINUTE, cost=cost, outcome="made")
        return run.kind


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_a_schedule_is_kept_and_what_was_missed_is_caught_up_once(home: Path) -> None:
    book = Book(home, schedule=NIGHTLY, cool_down=0, runs_a_week=99)
    told = [book.whole(hour * HOUR) for hour in range(52)]
    assert [hour for hour, kind in enumerate(told) if kind] == [3, 27, 51]
    # Nobody looked for a month; then the schedule goes on as ever.
    told = [book.whole(30 * DAY + hour * HOUR) for hour in range(28)]
    assert [hour for hour, kind in enumerate(told) if kind] == [0, 3, 27]


def test_the_first_look_catches_nothing_up(home: Path) -> None:
    assert Book(home, schedule=NIGHTLY).due(1000 * DAY + 5 * HOUR) is None


def test_jitter_puts_off_and_stays_the_same(home: Path) -> None:
    book = Book(home, schedule=NIGHTLY, jitter=HOUR, cool_down=0, runs_a_week=99)
    times = [minute * MINUTE for minute in range(0, 3 * 24 * 60, 5) if book.whole(minute * MINUTE)]
    delays = {time % DAY - 3 * HOUR for time in times}
    assert (len(times), len(delays)) == (3, 1)
    assert 0 < delays.pop() <= HOUR


@pytest.mark.parametrize(
    ("alerts", "kind"),
    [
        ([], ""),
        ([Alert("data_drift")], ""),
        ([Alert("quality")], ""),
        ([Alert("data_drift"), Alert("absence")], ""),
        (BOTH, "loss"),
        ([Alert("prediction_drift"), Alert("calibration")], "loss"),
    ],
)
def test_drift_counts_only_with_a_loss(home: Path, alerts: list[Alert], kind: str) -> None:
    assert Book(home).whole(DAY, alerts) == kind


def test_it_must_hold_for_a_while_without_a_break(home: Path) -> None:
    book = Book(home, debounce=2 * HOUR)
    course = [BOTH, BOTH, [], BOTH, BOTH, BOTH]
    assert [book.whole(hour * HOUR, alerts) for hour, alerts in enumerate(course)] == ["", "", "", "", "", "loss"]


def test_labels_are_counted_from_the_last_run(home: Path) -> None:
    book = Book(home, labels=1000, cool_down=0)
    told = [book.whole(day * DAY, labels=labels) for day, labels in enumerate([999, 1000, 1999, 2000, 2000])]
    assert told == ["", "labels", "", "labels", ""]


def test_somebody_asks_and_waits_for_no_cool_down(home: Path) -> None:
    book = Book(home, cool_down=DAY)
    assert book.whole(0, BOTH) == "loss"
    assert book.whole(HOUR, BOTH) == ""
    book.triggers.ask("fraud", who="ann", why="new feed", now=HOUR)
    book.triggers.ask("fraud", who="bob", why="same", now=HOUR)
    assert book.whole(2 * HOUR) == "hand"
    assert book.triggers.runs()[-1].reason == "ann: new feed; bob: same"
    assert book.whole(3 * HOUR) == ""
    assert book.whole(26 * HOUR, BOTH) == "loss"
    with pytest.raises(InvalidInput):
        book.triggers.ask("fraud", who=" ", why="x", now=0)


@pytest.mark.parametrize(("rules", "days"), [({"runs_a_week": 2}, [0, 1, 7, 8]), ({"cost_a_week": 3.0}, [0, 1, 2, 7])])
def test_a_week_has_a_budget_of_runs_and_of_cost(home: Path, rules: dict[str, Any], days: list[int]) -> None:
    book = Book(home, cool_down=0, **({"runs_a_week": 99} | rules))
    assert [day for day in range(9) if book.whole(day * DAY, BOTH)][: len(days)] == days
    book.triggers.ask("fraud", who="ann", why="please", now=8 * DAY)
    spent = Book(home, **({"runs_a_week": 0} if "runs_a_week" in rules else {"cost_a_week": 0.0}))
    assert spent.due(8 * DAY + HOUR) is None


def test_data_that_are_not_ready_hold_everything_back(home: Path) -> None:
    book = Book(home)
    assert book.due(DAY, BOTH, ready=False) is None
    assert book.due(DAY, BOTH) is not None


def test_what_was_begun_is_gone_on_with_and_ends_once(home: Path) -> None:
    book = Book(home, cool_down=0)
    run = book.due(DAY, BOTH)
    assert run is not None
    again = Book(home, cool_down=0)
    assert again.due(9 * DAY) == run
    assert str(run).endswith("data_drift, quality at the same time; under way")
    ended = again.triggers.end(run.key, now=9 * DAY, cost=2.5, outcome="gate refused")
    assert again.triggers.end(run.key, now=10 * DAY, cost=9.0, outcome="gate refused") == ended
    with pytest.raises(Conflict, match="has ended as 'gate refused'"):
        again.triggers.end(run.key, now=9 * DAY, cost=0, outcome="made")
    with pytest.raises(NotFound, match="run 'x'"):
        again.triggers.end("x", now=0, cost=0, outcome="made")
    for wrong in ({"cost": -1}, {"cost": float("nan")}, {"outcome": " "}):
        with pytest.raises(InvalidInput):
            again.triggers.end(run.key, **({"now": 0, "cost": 0.0, "outcome": "x"} | wrong))
    assert [one.cost for one in again.triggers.runs(system="fraud")] == [2.5]
    assert again.triggers.runs(system="shop") == ()


def test_kill_9_after_a_run_was_begun_begins_no_second_one(home: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from vitok.loop.trigger_book import TriggerRules, Triggers\n"
        "triggers = Triggers(sys.argv[1], TriggerRules())\n"
        "triggers.ask('fraud', who='ann', why='now', now=0)\n"
        "print(triggers.due('fraud', now=0, alerts=[], labels=0).key, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(home)], capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    run = Book(home).due(5 * DAY)
    assert run is not None
    assert (run.key, run.begun_at) == (child.stdout.strip(), 0)
    assert len(Book(home).triggers.runs()) == 1


def test_systems_do_not_wait_for_each_other(home: Path) -> None:
    triggers = Book(home).triggers
    runs = [triggers.due(system, now=DAY, alerts=BOTH, labels=0) for system in ("fraud", "shop")]
    assert [run.system for run in runs if run is not None] == ["fraud", "shop"]
    triggers.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"jitter": -1},
        {"cool_down": -1},
        {"cost_a_week": float("nan")},
        {"labels": 0},
        {"runs_a_week": -1},
        {"cool_down": "1d"},
    ],
)
def test_odd_rules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        TriggerRules(**wrong)


def test_a_clock_that_was_ahead_holds_nothing_up(tmp_path: Path) -> None:
    book = Book(tmp_path, schedule=NIGHTLY, runs_a_week=1)
    assert book.whole(700 * DAY) == ""
    assert book.whole(702 * DAY, BOTH) == "loss"
    # The clock is set back by more than a year.
    assert book.whole(300 * DAY + HOUR) == ""
    assert book.whole(301 * DAY + 4 * HOUR) == "schedule"
    assert book.whole(302 * DAY + 4 * HOUR, BOTH) == ""
    # By an hour only, nothing is begun twice.
    assert book.whole(301 * DAY + 3 * HOUR, BOTH) == ""


def test_what_the_playbook_asks_waits_for_the_cool_down_and_can_be_withdrawn(home: Path) -> None:
    book = Book(home, cool_down=2 * DAY)
    assert book.whole(DAY, BOTH) == "loss"
    for _ in range(2):
        book.triggers.ask("fraud", who="loop", why="decisions got worse", now=DAY, kind="incident", key="i/1")
    assert book.triggers.pending("fraud") == ("loop: decisions got worse",)
    assert book.whole(2 * DAY) == ""
    book.triggers.withdraw("i/1")
    book.triggers.withdraw("i/1")
    assert book.whole(4 * DAY) == ""
    book.triggers.ask("fraud", who="loop", why="worse again", now=4 * DAY, kind="incident", key="i/2")
    assert book.whole(4 * DAY) == "incident"
    with pytest.raises(Conflict, match="it goes on"):
        book.triggers.withdraw("i/2")
    assert book.triggers.pending("fraud") == ()


def test_what_the_playbook_asked_lapses_and_what_a_person_asked_does_not(home: Path) -> None:
    book = Book(home)
    book.triggers.ask("fraud", who="loop", why="of the version before", now=DAY, kind="incident", key="i/1")
    book.triggers.ask("fraud", who="ann", why="a new feature", now=DAY)
    book.triggers.ask("fraud", who="loop", why="of this version", now=3 * DAY, kind="incident", key="i/2")
    book.triggers.ask("ads", who="loop", why="another system", now=DAY, kind="incident", key="i/3")
    assert book.triggers.lapse("fraud", before=3 * DAY) == ("loop: of the version before",)
    assert book.triggers.lapse("fraud", before=3 * DAY) == ()
    assert book.triggers.pending("fraud") == ("ann: a new feature", "loop: of this version")
    assert book.triggers.pending("ads") == ("loop: another system",)


def test_a_person_who_asks_too_waits_for_no_cool_down(home: Path) -> None:
    book = Book(home, cool_down=20 * DAY)
    assert book.whole(DAY, BOTH) == "loss"
    book.triggers.ask("fraud", who="loop", why="worse", now=DAY, kind="incident", key="i/1")
    assert book.whole(2 * DAY) == ""
    book.triggers.ask("fraud", who="ann", why="now please", now=2 * DAY)
    run = book.due(2 * DAY)
    assert run is not None
    assert (run.kind, run.reason) == ("hand", "loop: worse; ann: now please")


def test_a_file_of_the_first_layout_goes_on(home: Path) -> None:
    path = home / "loop" / "triggers.sqlite"
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path)) as old:
        old.executescript(FIRST_LAYOUT)
    book = Book(home)
    assert book.triggers.pending("fraud") == ("ann: a new feature",)
    assert book.whole(DAY) == "hand"
