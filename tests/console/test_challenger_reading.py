"""The challenger's detector as the console reads it: its window, its nearest alarm, its file."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.console.conftest import START, Home, get
from tests.console.test_pages import check_markup

from vitok.clock import DAY
from vitok.console.challenger_reading import (
    MOST_RESTARTS,
    ChallengerSeen,
    challenger,
    looks_in,
    nearest,
    thinned,
    window,
    window_drawn,
)
from vitok.errors import StoreError
from vitok.models.online import OnlineModel
from vitok.models.online_features import Buckets, HashedFeatures
from vitok.models.online_learning import LearningCounts, LearningRules, LogLearner
from vitok.stats import ADWIN
from vitok.systems.fraud.challenger import LEARNER
from vitok.systems.fraud.challenger_serving import FOLDER


def write(home: Path, detector: ADWIN, *, seen: int, n_restarts: int = 2, worse_since: int | None = None) -> Path:
    """Writes the file of a challenger as `Challenger` does, with notes as it keeps them."""
    folder = home / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    model = OnlineModel(HashedFeatures(features=(Buckets("amount", (10.0, 50.0)),), bits=8))
    rules = LearningRules(kind="fraud", maturity=DAY)
    learner = LogLearner(model, rules, decisions=home / "log" / "decisions", outcomes=home / "log" / "outcomes")
    learner.reached = START + 8 * DAY
    learner.counts = dataclasses.replace(LearningCounts(), decisions=seen, learned=seen, positives=7)
    learner.notes = {
        "published": [[START, "0123456789ab"]],
        "shown": [seen, 0],
        "marks": [[100, START + DAY, "aaaaaaaaaaaa"], [seen - 10, START + 2 * DAY, "bbbbbbbbbbbb"]],
        "restarts": [
            {"at": START + at * DAY, "decisions": 256 * (at + 1), "reason": f"reason {at} <b>", "start": "the start"}
            for at in range(n_restarts)
        ],
        "keys": [],
        "most_weight": 1.0,
        "tally": {},
        "detector": detector.to_bytes().hex(),
        "seen": seen,
        "worse_since": worse_since,
    }
    learner.save(folder / LEARNER)
    return folder / LEARNER


def told(losses: np.ndarray, *, clock: int = 32) -> ADWIN:
    detector = ADWIN(delta=0.002, clock=clock, worse="higher", after_change="keep")
    detector.update_many(losses)
    return detector


def test_window_holds_the_last_rows() -> None:
    # Oracle: the rows themselves.
    rng = np.random.default_rng(2)
    losses = np.concatenate([rng.beta(1, 60, 5_000), rng.beta(1, 12, 1_777)])
    detector = told(losses)
    assert 0 < detector.width < len(losses)
    found = window(detector, len(losses))
    assert sum(piece.n for piece in found) == detector.width
    for piece in found:
        assert piece.mean == pytest.approx(losses[piece.first : piece.first + piece.n].mean())
    assert [piece.first for piece in found] == sorted(piece.first for piece in found)
    assert found[-1].first + found[-1].n == len(losses)
    assert window(ADWIN(), 0) == ()


@pytest.mark.parametrize("then", [0.02, 0.03, 0.05, 0.12])
def test_an_alarm_is_near_as_far_as_the_detector_thinks(then: float) -> None:
    # Oracle: the detector, which looks at the same window at its next look.
    rng = np.random.default_rng(4)
    losses = np.concatenate([rng.beta(1, 49, 2_000), rng.beta(1, 1 / then - 1, 700)])
    asleep = told(losses, clock=10_000)
    assert asleep.width == len(losses)
    assert looks_in(asleep) == 10_000 - len(losses)
    found = nearest(asleep, window(asleep, len(losses)))
    assert found is not None
    assert found.n_old + found.n_new == len(losses)
    assert found.new == pytest.approx(losses[found.n_old :].mean())
    awake = told(losses[:-1], clock=len(losses))
    assert bool(awake.update(losses[-1])) == (found.way > 1)


def test_better_is_no_alarm() -> None:
    rng = np.random.default_rng(6)
    detector = told(np.concatenate([rng.beta(1, 12, 1_500), rng.beta(1, 200, 400)]), clock=10_000)
    found = nearest(detector, window(detector, 1_900))
    assert found is not None
    assert found.way < 0.3


@pytest.mark.parametrize("n", [0, 1, 9, 10])
def test_a_window_that_cannot_be_cut(n: int) -> None:
    detector = told(np.full(n, 0.1))
    assert nearest(detector, window(detector, n)) is None


def test_pieces_put_together_keep_rows_and_mean() -> None:
    rng = np.random.default_rng(8)
    losses = rng.beta(1, 60, 3_000)
    pieces = window(told(losses), 3_000)
    found = thinned(pieces, 60)
    assert len(found) < len(pieces)
    assert sum(piece.n for piece in found) == sum(piece.n for piece in pieces)
    assert sum(piece.n * piece.mean for piece in found) == pytest.approx(sum(p.n * p.mean for p in pieces))


def test_challenger_of_a_home(tmp_path: Path) -> None:
    losses = np.random.default_rng(1).beta(1, 60, 3_000)
    write(tmp_path, told(losses), seen=3_000)
    seen = challenger(tmp_path)
    assert seen is not None
    assert (seen.version, seen.n_seen, seen.decisions, seen.positives) == ("fraud-online/0123456789ab", 3_000, 3_000, 7)
    assert (seen.delta, seen.clock, seen.width, seen.n_marks) == (0.002, 32, 3_000, 2)
    assert seen.mean == pytest.approx(losses.mean())
    assert [one.decisions for one in seen.restarts] == [512, 256]
    # The window begins before the first mark.
    assert seen.since is None
    assert "of the way to an alarm" in str(seen)
    drawn = window_drawn(seen)
    assert drawn.x_labels == ("row 1", "row 3\u202f000")
    assert [line.tone for line in drawn.lines] == ["reference", "reference", "bound", "actual"]


def test_it_is_read_anew_when_it_was_written_anew(tmp_path: Path) -> None:
    write(tmp_path, told(np.full(50, 0.1)), seen=50, n_restarts=0)
    first = challenger(tmp_path)
    write(tmp_path, told(np.full(80, 0.1)), seen=80, n_restarts=MOST_RESTARTS + 5, worse_since=60)
    then = challenger(tmp_path)
    assert isinstance(first, ChallengerSeen)
    assert isinstance(then, ChallengerSeen)
    assert (first.n_seen, first.restarts, first.worse_since) == (50, (), None)
    assert (then.n_seen, then.n_restarts, len(then.restarts), then.worse_since) == (80, 25, 20, 60)


@pytest.mark.parametrize("damage", ["empty", "head", "cut", "other", "lacks", "detector"])
def test_a_damaged_file_is_an_error_that_says_so(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path, told(np.full(50, 0.1)), seen=50)
    content = path.read_bytes()
    changed = {
        "empty": b"",
        "head": content[:30],
        "cut": content[:400],
        "other": b"this is no snapshot of anything, whatever its name says" * 9,
        "lacks": content.replace(b'"restarts"', b'"rostarts"'),
        "detector": content.replace(b'"detector":"76', b'"detector":"zz'),
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(StoreError, match=r"challenger|detector"):
        challenger(tmp_path)
    assert get(tmp_path, "/detectors").status == 503


def test_page_shows_the_challenger(home: Home, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home.folder, copy)
    assert "own detector" not in get(copy, "/detectors").text
    losses = np.concatenate([np.full(3_000, 0.01), np.random.default_rng(3).beta(1, 50, 60)])
    write(copy, told(losses, clock=10_000), seen=3_060)
    page = get(copy, "/detectors")
    assert page.status == 200
    text = check_markup(page.text).text
    assert "The challenger's own detector" in text
    assert "Now quiet" in text
    assert "To the next alarm" in text
    assert "of the way: the newest" in text
    assert "ADWIN, delta 0.002, one look in 10 000 rows, the next in 6 940" in text
    assert "reason 1 <b>" in text
    assert "1 Jul 2018 00:00 256 reason 0 <b> the start" in text
    write(copy, told(np.full(60, 0.1)), seen=60, n_restarts=0, worse_since=52)
    text = check_markup(get(copy, "/detectors").text).text
    assert "Now alarm : higher since row 52" in text or "Now alarm: higher since row 52" in text
    assert "It has never begun anew." in text


def test_page_without_decisions(tmp_path: Path) -> None:
    write(tmp_path, told(np.full(0, 0.1)), seen=0, n_restarts=0)
    assert "Nothing to watch yet" in get(tmp_path, "/detectors").text
