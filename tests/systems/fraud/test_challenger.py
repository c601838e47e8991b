"""The challenger's side that learns: from the logs, late, killed at any moment, and anew where its loss has risen."""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.systems.fraud.challenger_logs import BEGIN, Life, rows

from vitok.clock import DAY, HOUR
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.loop import Records
from vitok.models.online import OnlineModel
from vitok.models.online_state import write_state
from vitok.registry import Registry
from vitok.stats.detectors_adwin import ADWIN
from vitok.systems.fraud.challenger import Challenger, ChallengerRules, declared
from vitok.systems.fraud.challenger_serving import FOLDER, SERVING, SNAPSHOTS
from vitok.systems.fraud.training import Sample

DELAY = DAY
RULES = ChallengerRules(grace=HOUR, correct_for=2 * DAY, publish_every=1, check_every=64, mark_every=2)


def rising(X: Any) -> Any:
    return np.where(X[:, 0] > 60, 0.3, 0.01)


def falling(X: Any) -> Any:
    return np.where(X[:, 0] > 60, 0.01, 0.3)


def even(X: Any) -> Any:
    return np.full(len(X), 0.1)


def opened(home: Path, **more: Any) -> Challenger:
    return Challenger(home, Registry(home), **{"label_delay": DELAY, "rules": RULES, **more})


def weights(challenger: Challenger) -> Any:
    assert challenger.model is not None
    return challenger.model.ftrl.state


def lived(home: Path, X: Any, law: Any, *, days: float) -> Life:
    """A life whose logs are written and sealed."""
    life = Life(home, X, law, days=days, delay=DELAY)
    life.until(life.end)
    life.close()
    return life


def test_it_learns_what_became_known_and_shows_it(home: Path) -> None:
    life = Life(home, rows(6000), rising, days=3, delay=DELAY)
    challenger = opened(home)
    first = challenger.hour(life.until(BEGIN + 2 * DAY))
    assert 1900 < first.learned < 2000
    assert first.positives > 50
    assert str(first).startswith(f"{first.version} learned ")
    again = challenger.hour(BEGIN + 2 * DAY)
    assert (again.learned, again.version) == (0, first.version)
    assert challenger.hour(life.until(life.end)).learned > 3900
    served = OnlineModel.load(home / FOLDER / SERVING)
    assert (served.ftrl.state == weights(challenger)).all()
    snapshot = home / FOLDER / SNAPSHOTS / f"{str(challenger.version).rpartition('/')[2]}.online"
    assert snapshot.read_bytes() == (home / FOLDER / SERVING).read_bytes()
    day = challenger.day(life.end)
    assert day.progressive is not None
    assert day.progressive.roc_auc > 0.7
    assert day.standing is None
    assert not day.better
    assert "before learning: all (half-life" in str(day)
    life.close()


def test_called_more_often_it_publishes_every_six_hours_and_after_a_crash_learns_the_rest_again(home: Path) -> None:
    life = Life(home, rows(6000), rising, days=3, delay=DELAY)
    challenger = opened(home, rules=ChallengerRules(grace=HOUR))
    first = challenger.hour(life.until(BEGIN + 2 * DAY))
    second = challenger.hour(life.until(BEGIN + 2 * DAY + HOUR // 2))
    assert second.learned > 0
    assert second.version == first.version
    again = opened(home, rules=ChallengerRules(grace=HOUR))
    assert again.hour(BEGIN + 2 * DAY + HOUR // 2).learned == second.learned
    assert (weights(again) == weights(challenger)).all()
    assert again.hour(life.until(BEGIN + 2 * DAY + 5 * HOUR)).version == first.version
    assert again.hour(life.until(BEGIN + 2 * DAY + 6 * HOUR)).version != first.version
    life.close()


def test_nothing_begins_before_a_version_is_in_production(world: Any, tmp_path: Path) -> None:
    home = world.home(tmp_path / "home", model=False)
    challenger = opened(home)
    assert challenger.version is None
    assert str(challenger.hour(BEGIN)).startswith("no challenger")
    assert not challenger.day(BEGIN).better
    assert challenger.restart(reason="a test", now=BEGIN, key="a") is None


def test_it_begins_with_the_share_of_frauds_or_with_the_history(home: Path) -> None:
    X = rows(4000, seed=5)
    known = np.where(np.arange(4000) % 7 == 0, np.nan, rising(X) > 0.1)
    history = Sample(
        values=X, is_fraud=known, event_time=np.arange(4000), customer=np.zeros(4000, np.int64), amount=X[:, 0]
    )
    taught = opened(home, history=history)
    taught.hour(BEGIN)
    other = home.parent / "other"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns(FOLDER))
    plain = opened(other)
    plain.hour(BEGIN)
    assert taught.model is not None
    assert plain.model is not None
    columns = {name: X[:, i] for i, name in enumerate(plain.features.names)}
    p = plain.model.predict(columns)
    assert 0.0001 < p.min() == p.max() < 0.05
    from sklearn.metrics import roc_auc_score

    assert roc_auc_score(rising(X) > 0.1, taught.model.predict(columns)) > 0.9
    assert taught.model.validation.score().n_obs == 0


def turning(n: int) -> Any:
    """A law that is another one from row n on."""
    return lambda X: np.where(np.arange(len(X)) < n, rising(X), falling(X))


@pytest.mark.parametrize("seed", [0, 1])
def test_stopped_at_any_hour_it_comes_to_the_same_bits(home: Path, seed: int) -> None:
    life = Life(home, rows(12_000), turning(6000), days=6, delay=DELAY)
    rng = random.Random(seed)
    challenger = opened(home)
    for now in range(BEGIN + DAY, life.end, 5 * HOUR):
        life.until(now)
        if rng.random() < 0.6:
            challenger.hour(now)
        if rng.random() < 0.4:
            challenger = opened(home)
    challenger.hour(life.until(life.end))
    life.close()
    other = home.parent / "other"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns(FOLDER))
    straight = opened(other)
    straight.hour(life.end)
    assert len(straight.restarts) == 1
    assert challenger.restarts == straight.restarts
    assert (weights(challenger) == weights(straight)).all()
    assert challenger.version == straight.version


def test_a_crash_at_any_write_loses_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(home, rows(2000), rising, days=2, delay=DELAY)
    few = ChallengerRules(grace=HOUR, publish_every=1, mark_every=4)
    rng, crashes = random.Random(3), 0

    def write(path: Path, content: bytes) -> None:
        nonlocal crashes
        if rng.random() < 0.15:
            crashes += 1
            raise StoreError("the disk is full")
        write_state(path, content)

    with monkeypatch.context() as patch:
        for place in ("systems.fraud.challenger", "models.online_learning", "models.online"):
            patch.setattr(f"vitok.{place}.write_state", write)
        challenger = opened(home, rules=few)
        for now in range(BEGIN + DAY, life.end, 4 * HOUR):
            life.until(now)
            done = False
            while not done:
                with contextlib.suppress(StoreError):
                    if rng.random() < 0.5:
                        challenger = opened(home, rules=few)
                    challenger.hour(now)
                    done = True
    assert crashes > 3
    life.close()
    found = opened(home, rules=few)
    other = home.parent / "other"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns(FOLDER))
    straight = opened(other, rules=few)
    straight.hour(now)
    assert (weights(found) == weights(straight)).all()
    assert found.version == straight.version
    assert (home / FOLDER / SERVING).read_bytes() == (other / FOLDER / SERVING).read_bytes()


CHILD = """
import sys
from pathlib import Path
from tests.systems.fraud.test_challenger import opened
challenger = opened(Path(sys.argv[1]))
print("ready", flush=True)
for now in map(int, sys.argv[2:]):
    challenger.hour(now)
"""


def test_a_crash_before_the_service_was_shown_the_snapshot_is_made_good(home: Path) -> None:
    life = lived(home, rows(1000), rising, days=1)
    opened(home).hour(life.end)
    served = home / FOLDER / SERVING
    content = served.read_bytes()
    for lost in (b"the one before", None):
        served.unlink()
        if lost is not None:
            served.write_bytes(lost)
        opened(home)
        assert served.read_bytes() == content


@pytest.mark.slow
def test_killed_at_any_moment_it_comes_to_the_same_bits(home: Path) -> None:
    life = Life(home, rows(12_000), turning(6000), days=6, delay=DELAY)
    rng, kills = random.Random(5), 0
    for now in range(BEGIN + DAY, life.end, 32 * HOUR):
        life.until(now)
        hours = [str(now - back * HOUR) for back in (30, 20, 10, 0)]
        while True:
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(home), *hours], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
            )
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            try:
                child.wait(timeout=rng.random() * 0.4 if kills < 6 else None)
            except subprocess.TimeoutExpired:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
                kills += 1
            child.stdout.close()
            if child.returncode == 0:
                break
    life.until(life.end)
    life.close()
    assert kills == 6
    other = home.parent / "other"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns(FOLDER))
    found, straight = opened(home), opened(other)
    for challenger in (found, straight):
        challenger.hour(life.end)
    assert len(straight.restarts) == 1
    assert found.restarts == straight.restarts
    assert (weights(found) == weights(straight)).all()
    assert found.version == straight.version


def test_it_begins_anew_where_its_loss_has_risen(home: Path) -> None:
    n = 9000
    life = lived(home, rows(2 * n), turning(n), days=6)
    challenger = opened(home, rules=dataclasses.replace(RULES, marks=1000))
    hour = challenger.hour(life.end)
    [restarted] = hour.restarts
    assert n < restarted.decisions < n + 2500
    assert restarted.start.startswith("fraud-online/")
    assert "its loss has risen since the decision" in restarted.reason
    # What it went on from knew nothing of the change yet.
    path = home / FOLDER / SNAPSHOTS / f"{restarted.start.rpartition('/')[2]}.online"
    assert OnlineModel.load(path).ftrl.n_learned <= n + 200
    [record] = Records(home).list("incident")
    assert (record.version, record.is_open) == ("fraud-online", False)
    assert record.outcome == str(restarted)
    assert str(restarted) in str(hour)


def test_it_never_begins_anew_because_it_got_better(home: Path) -> None:
    n = 9000
    life = lived(home, rows(2 * n), lambda X: rising(X) / np.where(np.arange(len(X)) < n, 1, 5), days=6)
    challenger = opened(home)
    # That there is a change can be seen, and that it is one for the better.
    blind = ADWIN(delta=RULES.delta)
    alarms = blind.update_many((life.label - rising(life.X)) ** 2)
    assert set(alarms.directions) == {"lower"}
    assert challenger.hour(life.end).restarts == ()
    assert challenger.model is not None
    assert challenger.model.validation.score().log_loss < 0.15
    assert Records(home).list() == ()


def test_an_alert_begins_it_anew_once(home: Path) -> None:
    life = lived(home, rows(6000), rising, days=3)
    challenger = opened(home)
    challenger.hour(life.end)
    before = weights(challenger).copy()
    done = challenger.restart(reason="poisoned labels", now=life.end, key="alert/7")
    assert done is not None
    assert done.start.startswith("fraud-online/")
    assert not (weights(challenger) == before).all()
    after = weights(challenger).copy()
    assert challenger.restart(reason="poisoned labels", now=life.end, key="alert/7") is None
    found = opened(home)
    assert (weights(found) == after).all()
    assert found.restart(reason="poisoned labels", now=life.end, key="alert/7") is None
    assert found.restarts == (done,)
    served = OnlineModel.load(home / FOLDER / SERVING)
    assert (served.ftrl.state == after).all()
    assert found.restart(reason="by hand", now=BEGIN, key="b") is not None
    assert found.restarts[-1].start == "the start"
    assert len(Records(home).list("incident")) == 2


def test_old_snapshots_go(home: Path) -> None:
    life = Life(home, rows(3000), rising, days=3, delay=DELAY)
    challenger = opened(home, rules=ChallengerRules(grace=HOUR, keep=DAY, marks=2, check_every=64))
    for hour in range(30, 98, 12):
        challenger.hour(life.until(BEGIN + hour * HOUR))
    life.close()
    kept = {path.stem for path in (home / FOLDER / SNAPSHOTS).iterdir()}
    assert 2 <= len(kept) <= 4
    assert str(challenger.version).rpartition("/")[2] in kept


def test_what_was_learned_otherwise_is_refused(home: Path) -> None:
    opened(home).hour(BEGIN)
    with pytest.raises(Conflict, match="move the folder"):
        opened(home, label_delay=2 * DELAY)
    path = home / FOLDER / "learner.online"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(StoreError, match="cut off or damaged"):
        opened(home)
    OnlineModel.load(home / FOLDER / SERVING).save(path)
    with pytest.raises(StoreError, match="no learner"):
        opened(home)


def test_rules_that_make_no_sense_are_refused() -> None:
    for wrong in ({"grace": 0}, {"check_every": 0}, {"slack": -1}):
        with pytest.raises(InvalidInput):
            ChallengerRules(**wrong)


def test_bins_are_those_of_the_profile(home: Path) -> None:
    from vitok.monitoring import ReferenceProfile

    profile = ReferenceProfile.from_dict(Registry(home).load("fraud", 1).json("profile.json"))
    features = declared(profile)
    assert set(features.columns) <= set(profile.names)
    edges = [edge for item in features.features for edge in getattr(item, "edges", ())]
    assert edges == [float(np.float32(edge)) for edge in edges]
