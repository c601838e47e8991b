"""A restored home: the online store is in no backup, and the service makes it anew from the log."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from vitok import decisions
from vitok.clock import DAY
from vitok.registry import backup, restore
from vitok.systems.fraud.features import FEATURES
from vitok.systems.fraud.replay import Hour, Replay, ServiceProcess, hours


def play(home: Path, part: list[Hour]) -> None:
    with ServiceProcess(home) as service:
        replay = Replay(service)
        for hour in part:
            replay.send(hour)
        assert replay.tally.refused == 0, replay.tally.first_refusal
        replay.close()


def known(home: Path) -> pl.DataFrame:
    names = [f"f_{name}" for name in FEATURES.names]
    return decisions.read(home / "log" / "decisions").select("request_id", *names, "score").sort("request_id")


@pytest.mark.slow
def test_the_online_state_comes_back_from_the_log(home: Path, world, tmp_path: Path) -> None:
    # What was filled in before the log began is no part of it: this home has known nothing but its log.
    shutil.rmtree(home / "online")
    start = world.timeline.replay_start
    part = list(hours(world.transactions, world.labels, start=start, end=start + 3 * DAY))
    play(home, part[:48])
    made = backup(home, tmp_path / "backup", now=start + 2 * DAY)
    assert "online/" in made.skipped
    restored = restore(made.folder, tmp_path / "elsewhere").home
    assert not (restored / "online").exists()
    assert known(restored).equals(known(home))
    # Both go on, and know the same of every customer and terminal.
    for place in (home, restored):
        play(place, part[48:])
    seen = known(restored)
    assert len(seen) == sum(len(hour.bodies) for hour in part)
    assert seen.equals(known(home))
