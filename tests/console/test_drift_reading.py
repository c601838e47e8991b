"""Drift on a home of its own: three features, two channels, of which one moves on the last days."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.console.conftest import get
from tests.console.test_pages import check_markup

from vitok.clock import DAY, HOUR
from vitok.console import drift_windows
from vitok.console.drift_reading import ROWS, DriftAsked, drift
from vitok.console.drift_windows import healthy_days
from vitok.errors import InvalidInput, NotFound
from vitok.monitoring import DriftRule, HourlyCounts, ReferenceProfile, Sketches
from vitok.monitoring import drift as measure
from vitok.monitoring.hours import encode
from vitok.registry import Registry, at_least, evaluate
from vitok.systems.fraud.messages import SYSTEM

START = 17_700 * DAY
N_DAYS, A_DAY = 12, 1_200
ODD = "<b>'&x"
NAMES = ("amount", ODD, "steady")


def columns(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.lognormal(3.0, 0.5, (n, len(NAMES))), rng.choice(["shop", ODD], n)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(11)
    X, channel = columns(rng, 6_000)
    profile = ReferenceProfile.fit(
        list(NAMES), X, rng.beta(1, 30, len(X)), start=START - 7 * DAY, end=START, slices={"channel": channel}
    )
    register(folder, profile)
    frames = []
    for day in range(N_DAYS):
        X, channel = columns(rng, A_DAY)
        # On the last three days amounts rise by half, but only in one channel.
        X[:, 0] *= np.where((channel == ODD) & (day >= N_DAYS - 3), 2.0, 1.0)
        frames.append(
            pl.DataFrame(
                {
                    "event_time": START + day * DAY + np.sort(rng.integers(0, DAY, A_DAY)),
                    "model_version": ["fraud/1"] * A_DAY,
                    "channel": channel,
                    "probability": rng.beta(1, 30, A_DAY),
                    "latency_us": [900] * A_DAY,
                    "action": ["allow"] * A_DAY,
                    "route": ["champion"] * A_DAY,
                    "feature_status": ["fresh"] * A_DAY,
                    **{f"f_{name}": X[:, at] for at, name in enumerate(NAMES)},
                }
            )
        )
    sketches = Sketches(folder / "monitoring" / "sketches.sqlite")
    sketches.follow(pl.concat(frames), lambda _: profile)
    sketches.close()
    return folder


def register(folder: Path, profile: ReferenceProfile) -> None:
    registry = Registry(folder)
    registry.register(SYSTEM, {"profile.json": profile.to_dict()}, now=START, actor="test", reason="the first")
    registry.ledger.record_gate(SYSTEM, 1, evaluate([at_least("auc", 0.9, 0.5)]), now=START, actor="gate")
    registry.ledger.promote(SYSTEM, 1, "Production", reason="the first", actor="test", now=START)
    registry.close()


def test_cells_are_what_the_rule_says_of_each_day(home: Path) -> None:
    # Oracle: monitoring.drift of each day, with its null laws, and the rule.
    seen = drift(home)
    profile = ReferenceProfile.from_dict(Registry(home).load(SYSTEM, 1).json("profile.json"))
    sketches = Sketches(home / "monitoring" / "sketches.sqlite")
    for at, day in enumerate(seen.days):
        window = sketches.window("fraud/1", day, day + DAY)
        assert window is not None
        report = measure(profile, window)
        for row in seen.features:
            found = report.of(row.name)
            assert row.cells[at].effect == pytest.approx(found.effect, abs=1e-5)
            assert row.cells[at].shift == pytest.approx(found.shift, abs=0.02)
            assert row.cells[at].drifted == DriftRule().drifted(found)
    sketches.close()


def test_slice_that_moved_explains_the_drift(home: Path) -> None:
    seen = drift(home)
    assert seen.features[0].name == "amount"
    assert seen.slices == ("channel=<b>'&x", "channel=shop", "channel=other")
    story = seen.column
    assert story is not None
    (report,) = story.explained
    assert report.explaining is not None
    assert report.explaining.value == ODD
    assert [(one.column, one.value) for one in seen.moved] == [("amount", ODD)]
    assert {one.name for one in story.statistics} >= {"psi", "ks", "wasserstein", "chi_square"}


def test_slice_is_held_against_its_own_reference(home: Path) -> None:
    moved = drift(home, asked=DriftAsked(slice=f"channel={ODD}")).features[0]
    still = drift(home, asked=DriftAsked(slice="channel=shop")).features[0]
    assert (moved.name, moved.drifted_days, still.drifted_days) == ("amount", 3, 0)
    assert moved.largest > drift(home).features[0].largest > still.largest


def test_baselines_are_other_days(home: Path) -> None:
    week = drift(home, asked=DriftAsked(against="last week"))
    # The first seven days have no week before them.
    assert [cell.judged for cell in week.features[0].cells] == [False] * 7 + [True] * 5
    assert week.features[0].drifted_days == 3
    healthy = drift(home, asked=DriftAsked(against="healthy"))
    assert healthy.column is not None
    assert healthy.column.baseline is not None
    assert (healthy.column.baseline.start, healthy.column.n_reference) == (START, 7 * A_DAY)
    year = drift(home, asked=DriftAsked(against="last year"))
    assert year.column is not None
    assert year.column.baseline is None
    assert year.features[0].drifted_days == 0


def test_healthy_days_are_those_without_an_alert(home: Path) -> None:
    sketches = Sketches(home / "monitoring" / "sketches.sqlite")
    firing = [(START + DAY, START + 2 * DAY + 1)]
    days = [(day - START) // DAY for day in healthy_days(sketches, "fraud/1", firing)]
    assert days == [0, 3, 4, 5, 6, 7, 8]
    assert healthy_days(sketches, "fraud/1", [(0, 2**62)]) == ()
    sketches.close()


def test_windows_are_hours_days_and_weeks(home: Path) -> None:
    hours = drift(home, asked=DriftAsked(days=2))
    assert (len(hours.days), hours.length) == (48, HOUR)
    # 50 decisions an hour say nothing.
    assert not any(cell.judged for cell in hours.features[0].cells)
    weeks = drift(home, asked=DriftAsked(days=364))
    assert len(weeks.days) in (2, 3)
    assert str(weeks).startswith(f"fraud/1: largest PSI above its null mean in {len(weeks.days)} weeks")


def test_what_is_not_offered_is_refused() -> None:
    for asked in ({"days": 3}, {"against": "hope"}, {"page": 0}):
        with pytest.raises(InvalidInput, match="must be"):
            DriftAsked(**asked)


def test_page_names_the_slice_and_escapes_it(home: Path) -> None:
    page = get(home, "/drift").text
    text = check_markup(page).text
    assert f"By channel: {ODD} explains it" in text
    assert f"amount where channel is {ODD} : PSI excess" in text
    assert "<b>'" not in page
    one = check_markup(get(home, "/drift?slice=channel%3D%3Cb%3E%27%26x").text).text
    assert f"where channel={ODD}" in one
    assert get(home, "/drift?slice=channel%3Dnothing").status == 404


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 features over ten weeks, 24 hours a day: what `bench/console/large_drift.py` makes larger."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(3)
    n, days = 150, 70
    names = [f"feature_{at:03}" for at in range(n)]
    X = rng.normal(size=(1_000, n))
    profile = ReferenceProfile.fit(names, X, rng.random(1_000), start=START - DAY, end=START)
    register(folder, profile)
    share = np.concatenate([counts / counts.sum() for counts in profile.counts])
    # Feature 7 loses what lies in the lower half of its bins in the last week.
    counts = np.repeat(np.round(share * 100).astype(np.int64)[None], 24 * days, axis=0)
    first, last = profile.layout.offsets[7:9]
    counts[-24 * 7 :, first : (first + last) // 2] = 0
    none = np.zeros(0, dtype=np.int64)
    hours = HourlyCounts(
        version="fraud/1",
        digest=profile.digest,
        hours=START // HOUR + np.arange(24 * days),
        n=np.full(24 * days, 100),
        counts=counts,
        numbers=(NUMBERS,) * (24 * days),
        slices=(),
        slice_at=none.reshape(0, 2),
        slice_n=none,
        slice_counts=none.reshape(0, counts.shape[1]),
        joint=np.zeros((24 * days, 0)),
    )
    sketches = Sketches(folder / "monitoring" / "sketches.sqlite")
    sketches.absorb([("all", encode([hours]))])
    sketches.close()
    return folder


NUMBERS = json.dumps({"groups": {}, "latency": {}, "n_probability": 0, "probability": 0.0})


def test_many_features_are_turned_over_by_pages(wide: Path) -> None:
    seen = drift(wide, asked=DriftAsked(days=14))
    assert (seen.n_features, seen.pages, len(seen.features)) == (150, 3, ROWS)
    assert (seen.features[0].name, seen.features[0].drifted_days) == ("feature_007", 7)
    last = drift(wide, asked=DriftAsked(days=14, page=3))
    assert len(last.features) == 150 - 2 * ROWS
    with pytest.raises(NotFound, match="page"):
        drift(wide, asked=DriftAsked(days=14, page=4))
    assert [row.name for row in drift(wide, asked=DriftAsked(find="E_14", days=14)).features] == [
        f"feature_{at}" for at in range(140, 150)
    ]
    text = check_markup(get(wide, "/drift?days=14&page=2").text).text
    assert "page 2 of 3, 150 features" in text


def test_page_ends_in_time_and_goes_on_at_the_next_load(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_windows, "_MEASURED", drift_windows._Kept(100))
    asked = DriftAsked(days=56, seconds=0.0)
    left = [drift(wide, asked=asked).left for _ in range(3)]
    # Without time each load still measures some windows more, the newest first.
    assert left == [50, 44, 38]
    assert drift(wide, asked=asked).days[-1] == START + 69 * DAY
    whole = drift(wide, asked=DriftAsked(days=56, seconds=60.0))
    assert (whole.left, len(whole.days)) == (0, 56)
    monkeypatch.setattr(drift_windows, "_MEASURED", drift_windows._Kept(100))
    monkeypatch.setattr("vitok.console.pages.DriftAsked", lambda **given: DriftAsked(**{**given, "seconds": 0.0}))
    page = get(wide, "/drift?days=56").text
    assert "older days are still being measured" in check_markup(page).text
    assert '<meta http-equiv="refresh" content="2">' in page


def test_later_decisions_are_counted_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2_000, 1))
    profile = ReferenceProfile.fit(["x"], X, rng.random(2_000), start=0, end=1)
    register(tmp_path, profile)
    sketches = Sketches(tmp_path / "monitoring" / "sketches.sqlite")

    def add(shift: float) -> None:
        frame = pl.DataFrame(
            {
                "event_time": np.full(500, START),
                "model_version": ["fraud/1"] * 500,
                "probability": rng.random(500),
                "latency_us": [1] * 500,
                "action": ["allow"] * 500,
                "route": ["champion"] * 500,
                "feature_status": ["fresh"] * 500,
                "f_x": rng.normal(shift, 1, 500),
            }
        )
        sketches.follow(frame, lambda _: profile)

    add(0.0)
    before = drift(tmp_path).features[0].largest
    add(4.0)
    assert drift(tmp_path).features[0].largest > before + 0.5
    sketches.close()
