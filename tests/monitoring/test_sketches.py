"""Sketches: sums are exact, whatever the order, the pieces, the crashes and the processes."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from vitok.clock import DAY, HOUR
from vitok.errors import Conflict, InvalidInput, StoreError
from vitok.monitoring import HourSealer, ReferenceProfile, Sketches, WindowCounts
from vitok.stats import LatencyHistogram

Frames = Callable[..., pl.DataFrame]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sketches.sqlite"


def told(window: WindowCounts | None) -> dict[str, Any]:
    """Everything of a window in comparable form; the sum of probabilities is a float sum."""
    assert window is not None
    return {
        "n": window.n,
        "counts": window.counts.tolist(),
        "actions": dict(sorted(window.actions.items())),
        "routes": dict(window.routes),
        "feature_status": dict(sorted(window.feature_status.items())),
        "n_probability": window.n_probability,
        "mean": round(window.mean_probability, 12),
        "latency": window.latency.to_dict(),
        "n_hours": window.n_hours,
    }


def test_pieces_in_any_order_add_up_to_the_whole(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    frame = decisions(3_000, hours=5)
    whole, pieces = Sketches(path), Sketches(path.with_name("pieces.sqlite"))
    assert whole.add(frame, profile) == 3_000
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    for start in range(0, 3_000, 700):
        pieces.add(shuffled[start : start + 700], profile)
    one, other = (sketches.window("fraud/1", 0, DAY) for sketches in (whole, pieces))
    assert told(one) == told(other)
    assert one is not None
    # Oracle: counting all rows at once.
    assert one.counts[: profile.edges[0].n_bins].tolist() == profile.edges[0].count(frame["f_amount"]).tolist()
    assert one.counts[profile.edges[0].n_bins :].tolist() == profile.edges[1].count(frame["probability"]).tolist()
    latency = LatencyHistogram()
    latency.record_many(frame["latency_us"].to_numpy())
    assert one.latency.to_dict() == latency.to_dict()
    assert one.actions == dict(frame["action"].value_counts().iter_rows())
    assert one.mean_probability == pytest.approx(frame["probability"].mean(), rel=1e-12)
    assert whole.hours("fraud/1") == tuple(hour * HOUR for hour in range(5))
    assert str(one).startswith("fraud/1: 3,000 decisions")


def test_a_window_takes_its_own_hours_only(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    frame = decisions(1_000, hours=4)
    sketches = Sketches(path)
    sketches.add(frame, profile)
    hour = frame["event_time"].to_physical() // HOUR
    found = sketches.window("fraud/1", HOUR, 3 * HOUR)
    assert found is not None
    assert found.n == ((hour >= 1) & (hour < 3)).sum()
    assert sketches.window("fraud/1", 4 * HOUR, DAY) is None
    assert sketches.window("fraud/2", 0, DAY) is None
    with pytest.raises(InvalidInput, match="full hours"):
        sketches.window("fraud/1", 0, HOUR + 1)


def test_the_same_position_counts_once(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    sketches = Sketches(path)
    assert sketches.position() is None
    assert sketches.add(decisions(10), profile, position=(1, 10), since=(0, 0)) == 10
    assert sketches.add(decisions(10), profile, position=(1, 10), since=(0, 0)) == 0
    assert sketches.add(decisions(10), profile, position=(1, 4)) == 0
    sketches.close()
    again = Sketches(path)
    assert again.position() == (1, 10)
    assert again.add(decisions(5), profile, position=(2, 0), since=(1, 10)) == 5
    with pytest.raises(Conflict, match="another reader"):
        again.add(decisions(5), profile, position=(3, 0), since=(1, 10))
    window = again.window("fraud/1", 0, DAY)
    assert window is not None
    assert window.n == 15


def test_versions_with_and_without_a_profile(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    rules = decisions(20, version="rules", route="fallback", seed=1).with_columns(probability=pl.lit(float("nan")))
    frame = pl.concat([decisions(100), rules, decisions(30, version="fraud/2", route="canary", seed=2)])
    sketches = Sketches(path)
    assert sketches.follow(frame, lambda name: None if name == "rules" else profile, position=(1, 150)) == 150
    assert sketches.versions(0, DAY) == {"fraud/1": 100, "fraud/2": 30, "rules": 20}
    found = sketches.window("rules", 0, DAY)
    assert found is not None
    assert (found.n, found.counts.size, found.n_probability, found.digest) == (20, 0, 0, "")
    assert np.isnan(found.mean_probability)
    totals = sketches.totals(0, DAY)
    assert totals is not None
    assert (totals.n, dict(totals.routes)) == (150, {"champion": 100, "canary": 30, "fallback": 20})
    assert totals.n_hours == 1
    assert sketches.forget(HOUR) == 3
    assert sketches.totals(0, DAY) is None


def test_other_bins_are_refused_and_nothing_is_half_done(
    path: Path, profile: ReferenceProfile, decisions: Frames
) -> None:
    sketches = Sketches(path)
    sketches.add(decisions(10), profile, position=(1, 10))
    other = ReferenceProfile.fit(["amount"], [[1.0], [2.0]], [0.1, 0.2], start=0, end=DAY)
    two = pl.concat([decisions(5, version="fraud/0"), decisions(5)])
    with pytest.raises(Conflict, match="bins"):
        sketches.follow(two, lambda _: other, position=(1, 20))
    assert sketches.position() == (1, 10)
    assert sketches.versions(0, DAY) == {"fraud/1": 10}


def test_refuses_what_is_no_log(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    sketches = Sketches(path)
    with pytest.raises(InvalidInput, match="latency_us"):
        sketches.add(decisions(3).drop("latency_us"), profile)
    with pytest.raises(InvalidInput, match="f_amount"):
        sketches.add(decisions(3).drop("f_amount"), profile)
    with pytest.raises(InvalidInput, match="follow"):
        sketches.add(pl.concat([decisions(3), decisions(3, version="fraud/2")]), profile)
    nothing = decisions(3).with_columns(event_time=pl.lit(None, dtype=pl.Datetime("us", "UTC")))
    with pytest.raises(InvalidInput, match="event_time"):
        sketches.add(nothing, profile)
    assert sketches.add(decisions(0), profile, position=(1, 0)) == 0
    assert sketches.hours() == ()


def test_infinite_and_missing_values_have_their_bins(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    frame = decisions(4).with_columns(f_amount=pl.Series([None, np.nan, np.inf, -np.inf], strict=False))
    sketches = Sketches(path)
    sketches.add(frame, profile)
    window = sketches.window("fraud/1", 0, DAY)
    assert window is not None
    bins = profile.edges[0].n_bins
    assert window.counts[[0, 1, bins - 1]].tolist() == [2, 1, 1]


def test_a_file_of_something_else_is_left_alone(path: Path) -> None:
    from vitok.monitoring import Alerts

    Alerts(path).close()
    with pytest.raises(StoreError, match="does not hold sketches"):
        Sketches(path)
    torn = path.with_name("torn.sqlite")
    torn.write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(StoreError):
        Sketches(torn)


def test_a_full_disk_counts_nothing(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    sketches = Sketches(path)
    sketches.add(decisions(10), profile, position=(1, 10))
    assert sketches._database._connections is not None
    connection = sketches._database._connections.writer
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full"):
        sketches.add(decisions(2_000, hours=400), profile, position=(1, 2_010))
    connection.execute("PRAGMA max_page_count = 1000000")
    assert sketches.position() == (1, 10)
    assert sketches.add(decisions(2_000, hours=400), profile, position=(1, 2_010)) == 2_000


FOLLOWER = """
import json, os, signal, sys
import polars as pl
from vitok.monitoring import ReferenceProfile, Sketches

folder, kill_at = sys.argv[1], int(sys.argv[2])
frame = pl.read_ipc(folder + "/log.arrow")
profile = ReferenceProfile.from_dict(json.load(open(folder + "/profile.json")))
sketches = Sketches(folder + "/sketches.sqlite")
at = (sketches.position() or (0, 0))[1]
while at < frame.height:
    rows = frame[at : at + 100]
    sketches.add(rows, profile, position=(0, at + rows.height), since=(0, at))
    at += rows.height
    if at >= kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_readers_lose_and_double_nothing(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    frame = decisions(1_000, hours=3)
    frame.write_ipc(path.with_name("log.arrow"))
    path.with_name("profile.json").write_text(json.dumps(profile.to_dict()))
    for kill_at in (300, 600, 2_000):
        command = [sys.executable, "-c", FOLLOWER, str(path.parent), str(kill_at)]
        finished = subprocess.run(command, timeout=60, check=False)
        assert finished.returncode == (-signal.SIGKILL if kill_at < 1_000 else 0)
    whole = Sketches(path.with_name("whole.sqlite"))
    whole.add(frame, profile)
    assert told(Sketches(path).window("fraud/1", 0, DAY)) == told(whole.window("fraud/1", 0, DAY))


def test_usable_after_a_fork(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    sketches = Sketches(path)
    sketches.add(decisions(10), profile, position=(1, 10))
    # Stands for what os.fork leaves behind; forking here would copy the threads of polars.
    assert sketches._database._connections is not None
    sketches._database._connections.pid = -1
    assert sketches.add(decisions(5), profile, position=(1, 15)) == 5
    assert sketches.versions(0, DAY) == {"fraud/1": 15}


def test_opening_does_not_wait_for_a_writer(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    writer = Sketches(path)
    writer.add(decisions(10), profile, position=(1, 10))
    with writer._database.writing():
        reader = Sketches(path)
        assert reader.position() == (1, 10)
        reader.close()


def test_a_file_of_an_older_layout_is_counted_anew(path: Path, profile: ReferenceProfile, decisions: Frames) -> None:
    frame = decisions(500)
    old = Sketches(path)
    old.add(frame, profile, position=(1, frame.height))
    before = told(old.window("fraud/1", 0, DAY))
    old.close()
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE absorbed")
        database.execute("PRAGMA user_version = 1")
    database.close()
    sketches = Sketches(path)
    assert sketches.position() is None
    assert sketches.window("fraud/1", 0, DAY) is None
    assert sketches.add(frame, profile, position=(1, frame.height)) == frame.height
    assert told(sketches.window("fraud/1", 0, DAY)) == before
    sketches.close()


def test_absorbing_behind_a_position_counts_once(tmp_path: Path, traffic: Any) -> None:
    made = traffic(per_day=500)
    profile = made.profile(0, 7)
    sealed = HourSealer(lambda version: profile)(made.day(7).to_arrow(), "segment-00000001")["hours"]
    sketches = Sketches(tmp_path / "sketches.sqlite")
    n = sketches.absorb([("segment-00000001", sealed)], position=(2, 0))
    assert n == made.day(7).height
    # Another name for the same rows, as after a restore, is behind the position: nothing changes.
    assert sketches.absorb([("segment-00000009", sealed)], position=(2, 0)) == 0
    rows = made.day(8)
    assert sketches.follow(rows, lambda version: profile, position=(2, rows.height), since=(2, 0)) == rows.height
    with pytest.raises(Conflict, match="another reader"):
        sketches.absorb([("segment-00000002", sealed)], position=(3, 0), since=(2, 0))
    assert sketches.position() == (2, rows.height)
    sketches.close()
