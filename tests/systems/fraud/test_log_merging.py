"""The operator merges the small files of its home's logs by itself, beside others, and nothing else depends on it."""

import errno
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.systems.fraud.challenger_logs import BEGIN, Life, rows

from vitok import decisions
from vitok.clock import DAY, HOUR, EventClock
from vitok.decisions.rewriting import maintained
from vitok.decisions.segments import segments
from vitok.monitoring.counting import KIND
from vitok.registry.files import exclusive
from vitok.systems.fraud import log_merging
from vitok.systems.fraud.log_merging import LOCK, MergingApart
from vitok.systems.fraud.operating import Gauges, operate

NOW = BEGIN + 4 * DAY
TOLD = ["log of decisions: 8 sealed files with 480 rows", "log of outcomes: 8 sealed files with 480 rows"]


@pytest.fixture
def filled(home: Path) -> Path:
    """A home of two days with four sealed files of decisions each, and four of outcomes."""
    life = Life(home, rows(480), lambda X: X[:, 0] * 0.0 + 0.1, days=2, delay=1)
    for hour in range(6, 49, 6):
        life.until(BEGIN + hour * HOUR)
        life._log.seal()
        life._outcomes.seal()
    life.close()
    assert counts(home) == [8, 8]
    return home


def counts(home: Path) -> list[int]:
    return [len(segments(home / "log" / name)) for name in ("decisions", "outcomes")]


def requests(home: Path) -> list[list[str]]:
    logs = (home / "log" / name for name in ("decisions", "outcomes"))
    return [decisions.read(log, columns=["request_id"])["request_id"].to_list() for log in logs]


def end_of_processes() -> None:
    for process in multiprocessing.active_children():
        process.join(60)
        assert not process.is_alive()


class Rounds(threading.Event):
    """Lets a loop make so many rounds; what it began beside it has ended before the next one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        end_of_processes()
        self.left -= 1
        return self.left < 0


def test_the_operator_merges_by_itself_unless_it_is_told_not_to(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, clock = requests(filled), EventClock(NOW)
    operate(filled, clock=clock, label_delay=7 * DAY, stop=Rounds(2), merge=False)
    assert counts(filled) == [8, 8]
    with caplog.at_level(logging.INFO, "vitok.fraud"):
        # Where the machine is slow, a process does not end it.
        operate(filled, clock=clock, label_delay=7 * DAY, stop=Rounds(4))
    assert counts(filled) == [2, 2]
    assert requests(filled) == before
    told = [one.getMessage() for one in caplog.records if one.getMessage().startswith("log of")]
    assert {one.partition(":")[0] for one in told} == {"log of decisions", "log of outcomes"}
    # Counted as at the sealing, so that whoever watches reads no row of them.
    sides = list(decisions.sidecars(filled / "log" / "decisions", KIND))
    assert [side.rows for side in sides] == [240, 240]


def test_no_round_waits_and_once_a_day_is_enough(filled: Path) -> None:
    told: list[str] = []
    merging = MergingApart(filled, tell=lambda _, text: told.append(text), seconds=0.0)
    merging.tick(BEGIN + 2 * DAY - 1)  # no day has been over for a day yet
    assert multiprocessing.active_children() == []
    merging.tick(NOW)
    # A file of each log at a time; the next tick goes on.
    for tick in range(2):
        merging.tick(NOW + tick)
        end_of_processes()
    merging.tick(NOW + 3)
    assert counts(filled) == [2, 2]
    assert [one.partition(":")[0] for one in told] == ["log of decisions", "log of outcomes"] * 2
    assert told[0].endswith("; there may be more")
    merging.tick(NOW + DAY)
    assert multiprocessing.active_children() == []
    merging.close()


def test_where_there_is_nothing_to_merge_it_looks_again_an_hour_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(log_merging, "may_merge", lambda _, *, now: asked.append(now))
    merging = MergingApart(tmp_path, tell=lambda _, _text: None)
    # Also after a clock that had gone ahead was set back.
    for now in (NOW, NOW + 1, NOW + HOUR - 1, NOW + HOUR, 5, 6, HOUR + 5):
        merging.tick(now)
    assert list(dict.fromkeys(asked)) == [NOW, NOW + HOUR, 5, HOUR + 5]
    merging.close()


def test_of_two_operators_one_merges(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, told = requests(filled), []
    both = [MergingApart(filled, tell=lambda _, text: told.append(text), seconds=600.0) for _ in range(2)]
    for _ in range(2):
        for one in both:
            one.tick(NOW)
        end_of_processes()
    assert counts(filled) == [2, 2]
    assert requests(filled) == before
    # Who came second found it being done, or done.
    assert [one.partition(" and ")[0] for one in told] == TOLD
    assert caplog.records == []
    for one in both:
        one.close()


def test_while_another_merges_or_deletes_it_waits(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    merging = MergingApart(filled, tell=lambda _, text: told.append(text), seconds=600.0)

    def ended(now: int) -> None:
        merging.tick(now)
        end_of_processes()
        merging.tick(now)
        assert multiprocessing.active_children() == []

    with exclusive(filled / "log" / LOCK):
        ended(NOW)
    assert caplog.records == []
    ended(NOW + HOUR - 1)
    assert counts(filled) == [8, 8]
    # As retention and a deletion do.
    with maintained(filled / "log" / "decisions"):
        ended(NOW + HOUR)
    ((message),) = [record.getMessage() for record in caplog.records]
    assert "are not merged, tried again each hour" in message
    assert "another process changes its sealed segments now" in message
    assert counts(filled) == [8, 8]
    assert told == []
    ended(NOW + 2 * HOUR)
    assert counts(filled) == [2, 2]
    merging.close()


@pytest.mark.parametrize("by_hand", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_killed_in_the_middle_the_next_goes_on(
    filled: Path, caplog: pytest.LogCaptureFixture, *, by_hand: bool
) -> None:
    before = requests(filled)
    merging = MergingApart(filled, tell=lambda _, _text: None, seconds=0.0)
    merging.tick(NOW)
    end_of_processes()
    merging.tick(NOW)  # one day of each is merged, and the next is begun
    (process,) = multiprocessing.active_children()
    if by_hand:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        end_of_processes()
        merging.tick(NOW)
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
            "the process that merges ended with code -9"
        ]
    else:
        # The service stops.
        merging.close()
        assert not process.is_alive()
        merging = MergingApart(filled, tell=lambda _, _text: None)
    assert requests(filled) == before
    merging.tick(NOW + HOUR)
    end_of_processes()
    assert counts(filled) == [2, 2]
    assert requests(filled) == before
    merging.close()


def test_a_full_disk_is_told_once_and_watching_goes_on(
    filled: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    sent: list[dict[str, Any]] = []

    class Outbox:
        def send(self, found: dict[str, Any]) -> None:
            sent.append(found)

    with monkeypatch.context() as patch:
        patch.setattr(os, "nice", lambda _: 0)
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr("vitok.decisions.merging.sync", full)
        log_merging._run(Outbox(), filled, NOW, 1.0)  # type: ignore[arg-type]  # it only sends
    assert "No space left on device" in sent[0]["failed"]
    assert counts(filled) == [8, 8]

    # No process can be begun either, for which the clock of the rounds does not stand still.
    class Hours(EventClock):
        def now(self) -> int:
            self.advance(super().now() + HOUR)
            return super().now()

    gauges = Gauges()
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", full)
        operate(filled, clock=Hours(NOW), label_delay=7 * DAY, stop=Rounds(4), gauges=gauges)
    failed = [one for one in caplog.records if "are not merged" in one.getMessage()]
    assert ["No space left on device" in one.getMessage() for one in failed] == [True]
    assert not any("operating" in one.getMessage() for one in caplog.records)
    assert gauges.read()
